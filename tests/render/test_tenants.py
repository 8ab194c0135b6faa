"""What tenants may do, and which sinks a policy reaches: said by reason, with the way out."""

from collections.abc import Sequence
from typing import Any

import pytest

from audit_operator.render.program import TenantProgram
from audit_operator.render.tenants import Refusal, Sinks, refusals, sinks_of, tenant_program
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


SECRET = {"name": "own", "key": "key"}
AZURE = {"storageAccount": "abc", "container": "abc"}


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"stdout": {}}, "SinkTypeNotAllowed"),
        ({"file": {}}, "SinkTypeNotAllowed"),
        ({"syslog": {"address": "siem.example.com:6514"}}, None),
        ({"syslog": {"address": "[fd00::1]:6514"}}, "HostNotAllowed"),
        ({"kafka": {"brokers": ["a.example.com:9093"], "topic": "t"}}, "SinkTypeNotAllowed"),
        ({"elasticsearch": {"urls": ["https://a.example.com", "https://b.example.org"]}}, "HostNotAllowed"),
        ({"http": {"url": "https://example.com/x"}}, "HostNotAllowed"),
        ({"http": {"url": "https://A.Example.COM:8443/x"}}, None),
        ({"http": {"url": "https://a.example.com/"}, "proxy": {"url": "http://proxy:3128"}}, "HostNotAllowed"),
        ({"http": {"url": "https://a.example.com/"}, "proxy": {"url": "http://proxy.example.com:3128"}}, None),
        ({"http": {"url": "https://a.example.com.evil.org/"}}, "HostNotAllowed"),
        ({"http": {"url": "https://a.example.com/"}, "tls": {"serverName": "b.example.com"}}, None),
        ({"http": {"url": "https://a.example.com/"}, "tls": {"serverName": "internal"}}, "HostNotAllowed"),
        ({"http": {"url": "https://a.example.com/", "headers": [{"name": "X-Host", "value": "b"}]}}, None),
        ({"cloudWatch": {"region": "eu-central-1"}}, "IdentityNotAllowed"),
        ({"cloudWatch": {"region": "eu-central-1", "auth": AWS_KEYS}}, None),
        ({"objectStore": {"gcs": {"bucket": "abc"}}}, "IdentityNotAllowed"),
        ({"objectStore": {"gcs": {"bucket": "abc", "credentials": SECRET}}}, None),
        (
            {"objectStore": {"gcs": {"bucket": "abc", "credentials": SECRET, "endpoint": "https://a.example.com"}}},
            "EndpointNotAllowed",
        ),
        ({"objectStore": {"azure": {**AZURE, "auth": {"accountKey": SECRET}}}}, None),
        (
            {"objectStore": {"azure": {**AZURE, "auth": {"sasToken": SECRET}, "endpoint": "https://a.example.com"}}},
            "EndpointNotAllowed",
        ),
        ({"googleCloudLogging": {"parent": "projects/p"}}, "IdentityNotAllowed"),
        ({"objectStore": {"azure": {**AZURE, "auth": {"workloadIdentity": {}}}}}, "IdentityNotAllowed"),
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


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ({"rotation": {"maxSize": "10Mi", "maxFiles": 5}}, None),
        ({}, "FilesTooLarge"),
        ({"rotation": {"maxSize": "1Mi", "maxFiles": 10000}}, "FilesTooLarge"),
        ({"path": "team-b/s/audit-receiver-0.log", "rotation": {"maxSize": "1Mi"}}, "PathNotAllowed"),
        ({"path": "{cluster}/{namespace}/x.log", "rotation": {"maxSize": "1Mi"}}, "PathNotAllowed"),
        ({"path": "{namespace}-2/x.log", "rotation": {"maxSize": "1Mi"}}, "PathNotAllowed"),
    ],
)
def test_a_tenants_files_stay_in_a_folder_of_its_own_and_within_its_quota(
    file: dict[str, Any], reason: str | None
) -> None:
    assert judged([sink(file=file)], sinkTypes=["file"]) == ({"AuditSink/s": reason} if reason else {})
    assert judged([sink(namespace="audit-system", file=file)]) == {}


@pytest.mark.parametrize("proxy", ["http://proxy:3128", "http://proxy.other.example.com:3128"])
def test_a_tenant_uses_a_proxy_only_where_the_administrators_name_it(proxy: str) -> None:
    through = sink(http={"url": "https://siem.example.com/"}, proxy={"url": proxy})
    assert judged([through]) == {"AuditSink/s": "ProxyNotAllowed"}
    assert judged([through], hosts=["siem.example.com", "proxy", "proxy.other.example.com"]) == {}


def test_kafka_is_for_tenants_only_where_administrators_say_so() -> None:
    brokers = sink(kafka={"brokers": ["kafka:9093"], "topic": "t"})
    assert judged([brokers]) == {"AuditSink/s": "SinkTypeNotAllowed"}
    assert judged([brokers], sinkTypes=["kafka"]) == {}


def test_receivers_are_told_what_tenants_may_have() -> None:
    assert tenant_program(Tenants(), "audit-system") is None
    limits = {"journalBytes": "64Mi", "eventsPerSecond": 100}
    given = {"enabled": True, "limits": limits, "networks": ["10.0.0.0/8"], "refusedNetworks": ["10.96.0.0/12"]}
    assert tenant_program(Tenants.model_validate(given), "audit-system") == TenantProgram(
        root_namespace="audit-system",
        journal_bytes=64 << 20,
        events_per_second=100,
        networks=("10.0.0.0/8",),
        refused_networks=("10.96.0.0/12",),
    )


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

    def test_of_another_namespace_tell_nobody_that_they_exist_nor_what_is_wrong_with_them(self) -> None:
        item = policy(namespace="team-b", preset="CIS", sinks=[{"name": "s", "namespace": "team-a"}])
        there, gone = self.found(item, sink()), self.found(item)
        broken = self.found(item, invalid="s")
        assert there == gone == broken
        refused = self.found(item, sink(allowedNamespaces={"from": "All"}), refused="s")
        assert refused.refused[0].reason == "SinkNotAccepted"
        assert "too many" not in refused.refused[0].message


def test_all_files_of_a_namespace_together_are_within_its_quota() -> None:
    file = {"file": {"path": "{namespace}/{sink}.log", "rotation": {"maxSize": "40Mi", "maxFiles": 1}}}
    items = [sink(name, **file) for name in "abc"]
    found = judged(items, sinkTypes=["file"], limits={"journalBytes": "200Mi"})
    assert found == {"AuditSink/c": "FilesTooLarge"}
