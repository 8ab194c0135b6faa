"""What tenants may do, and which sinks a policy reaches: said by reason, with the way out."""

from collections.abc import Sequence
from typing import Any

import pytest

from audit_operator.render.tenants import Refusal, Sinks, refusals, sinks_of
from audit_operator.render.world import Identity, Resources, World
from audit_operator.resources.auditbackend import Tenants
from audit_operator.resources.auditpolicy import AuditPolicy
from audit_operator.resources.auditsink import AuditSink

WORLD = World(namespaces={"team-a": {"tenant": "yes"}, "team-b": {}})
SELECTOR = {"selector": {"matchLabels": {"tenant": "yes"}}}


def policy(name: str = "p", namespace: str = "team-a", created: str = "", **spec: Any) -> AuditPolicy:
    metadata = {"name": name, "namespace": namespace} | ({"creationTimestamp": created} if created else {})
    return AuditPolicy.model_validate({"metadata": metadata, "spec": spec or {"preset": "CIS"}})


def sink(name: str = "s", namespace: str = "team-a", **spec: Any) -> AuditSink:
    defaults = {} if len(spec) > ("allowedNamespaces" in spec) else {"http": {"url": "https://siem.example.com/x"}}
    return AuditSink.model_validate({"metadata": {"name": name, "namespace": namespace}, "spec": defaults | spec})


def judged(items: Sequence[AuditPolicy | AuditSink], **tenants: Any) -> dict[str, str]:
    """``kind/name`` -> reason, of the refused."""
    settings = Tenants.model_validate({"enabled": True} | tenants)
    found = refusals(Resources.of(items), settings, WORLD)
    return {f"{identity.kind}/{identity.name}": refusal.reason for identity, refusal in found.items()}


def test_nothing_outside_the_root_namespace_counts_until_tenants_are_enabled() -> None:
    items: list[AuditPolicy | AuditSink] = [policy(), sink()]
    items += [policy("root", "audit-system"), sink("root", "audit-system")]
    assert judged(items, enabled=False) == {"AuditPolicy/p": "TenantsDisabled", "AuditSink/s": "TenantsDisabled"}
    assert judged(items) == {}


@pytest.mark.parametrize("namespaces", [{"from": "Names", "names": ["team-a"]}, {"from": "Selector", **SELECTOR}])
def test_only_chosen_namespaces_are_tenants(namespaces: dict[str, Any]) -> None:
    items = [policy("a", "team-a"), policy("b", "team-b"), policy("c", "unknown")]
    assert judged(items, namespaces=namespaces) == {"AuditPolicy/b": "NotATenant", "AuditPolicy/c": "NotATenant"}


def test_of_too_many_the_oldest_count() -> None:
    items = [
        policy("young", created="2026-03-01T00:00:00Z"),
        policy("old", created="2024-01-01T00:00:00Z"),
        policy("new-without-time"),
        policy("other-namespace", "team-b"),
    ]
    assert judged(items, limits={"maxPolicies": 1}) == {
        "AuditPolicy/young": "TooManyPolicies",
        "AuditPolicy/new-without-time": "TooManyPolicies",
    }
    assert judged([sink("a"), sink("b")], limits={"maxSinks": 0}) == {
        "AuditSink/a": "TooManySinks",
        "AuditSink/b": "TooManySinks",
    }


def test_large_policies_are_refused_with_the_numbers() -> None:
    rules = [{"level": "Metadata"}] * 3
    redaction = {"resources": [{"group": "", "resources": ["pods"]}], "paths": ["spec.x"]}
    settings = Tenants.model_validate({"enabled": True, "limits": {"maxRulesPerPolicy": 2}})
    (refusal,) = refusals(Resources.of([policy(rules=rules)]), settings, WORLD).values()
    assert refusal == Refusal("TooManyRules", "spec.rules has 3 entries; a tenant's policy may have 2")
    assert judged([policy(rules=rules[:1], redactions=[redaction])], limits={"maxRedactionsPerPolicy": 0}) == {
        "AuditPolicy/p": "TooManyRedactions"
    }
    assert judged([policy("root", "audit-system", rules=rules)], limits={"maxRulesPerPolicy": 2}) == {}


AWS_KEYS = {
    "accessKeyID": {"name": "aws", "key": "id"},
    "secretAccessKey": {"name": "aws", "key": "secret"},
}


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"stdout": {}}, "SinkTypeNotAllowed"),
        ({"file": {}}, "SinkTypeNotAllowed"),
        ({"syslog": {"address": "siem.example.com:6514"}}, None),
        ({"syslog": {"address": "[fd00::1]:6514"}}, "HostNotAllowed"),
        ({"kafka": {"brokers": ["a.example.com:9093", "b.example.org:9093"], "topic": "t"}}, "HostNotAllowed"),
        ({"http": {"url": "https://example.com/x"}}, "HostNotAllowed"),
        ({"http": {"url": "https://A.Example.COM:8443/x"}}, None),
        ({"http": {"url": "https://a.example.com/"}, "proxy": {"url": "http://proxy:3128"}}, "HostNotAllowed"),
        ({"http": {"url": "https://a.example.com.evil.org/"}}, "HostNotAllowed"),
        ({"cloudWatch": {"region": "eu-central-1"}}, "IdentityNotAllowed"),
        ({"cloudWatch": {"region": "eu-central-1", "auth": AWS_KEYS}}, None),
        ({"objectStore": {"gcs": {"bucket": "abc"}}}, "IdentityNotAllowed"),
        ({"googleCloudLogging": {"parent": "projects/p"}}, "IdentityNotAllowed"),
        (
            {"objectStore": {"azure": {"storageAccount": "abc", "container": "abc", "auth": {"workloadIdentity": {}}}}},
            "IdentityNotAllowed",
        ),
    ],
)
def test_a_tenants_sink_goes_only_where_tenants_may_and_never_as_the_platform(
    spec: dict[str, Any], reason: str | None
) -> None:
    found = judged([sink(**spec)], hosts=["*.example.com"])
    assert found == ({"AuditSink/s": reason} if reason else {})
    assert judged([sink(namespace="audit-system", **spec)], hosts=["*.example.com"]) == {}


def test_a_tenant_cannot_mount_a_claim_of_the_platform() -> None:
    item = sink(file={"claimName": "archive"})
    assert judged([item], sinkTypes=["file"]) == {"AuditSink/s": "ClaimNotAllowed"}


class TestSinksOfAPolicy:
    def found(self, item: AuditPolicy, *sinks: AuditSink, refused: str = "", invalid: str = "") -> Sinks:
        return sinks_of(
            item,
            {(each.metadata.namespace, each.metadata.name): each for each in sinks},
            {Identity("AuditSink", "team-a", refused): Refusal("TooManySinks", "there are too many")},
            [Identity("AuditSink", "team-a", invalid)],
            WORLD.namespaces,
        )

    def test_are_named_by_namespace_and_name(self) -> None:
        item = policy(preset="CIS", sinks=[{"name": "s"}, {"name": "s", "namespace": "team-a"}])
        assert self.found(item, sink()) == Sinks(("team-a/s",), ())

    @pytest.mark.parametrize(
        ("allowed", "namespace", "reached"),
        [
            ({}, "team-a", False),
            ({"from": "All"}, "team-b", True),
            ({"from": "Names", "names": ["team-a"]}, "team-a", True),
            ({"from": "Names", "names": ["team-a"]}, "team-b", False),
            ({"from": "Selector", **SELECTOR}, "team-a", True),
            ({"from": "Selector", **SELECTOR}, "team-b", False),
            ({}, "audit-system", True),
        ],
    )
    def test_of_another_namespace_must_allow_it(self, allowed: dict[str, Any], namespace: str, reached: bool) -> None:
        archive = sink("archive", "audit-system", **({"allowedNamespaces": allowed} if allowed else {}))
        item = policy(namespace=namespace, preset="CIS", sinks=[{"name": "archive", "namespace": "audit-system"}])
        found = self.found(item, archive)
        assert bool(found.resolved) == reached
        if not reached:
            assert found.refused[0].reason == "SinkNotAllowed"
            assert f"does not allow policies of namespace {namespace}" in found.refused[0].message

    def test_that_are_missing_broken_or_refused_are_told_apart_and_the_others_stay(self) -> None:
        item = policy(preset="CIS", sinks=[{"name": name} for name in ("s", "gone", "late", "broken")])
        found = self.found(item, sink(), sink("late"), refused="late", invalid="broken")
        assert found.resolved == ("team-a/s",)
        assert [refusal.reason for refusal in found.refused] == ["SinkNotFound", "SinkNotAccepted", "SinkInvalid"]
        assert [refusal.message.split(":")[0] for refusal in found.refused] == [
            "spec.sinks[1]",
            "spec.sinks[2]",
            "spec.sinks[3]",
        ]
