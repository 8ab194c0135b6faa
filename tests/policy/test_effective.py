"""What an AuditPolicy asks for: its rules, its preset's, in its namespace, by the labels of today."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from audit_operator.policy.effective import Effective, effective, redactions_of, resolve, selects
from audit_operator.policy.evaluate import Evaluator
from audit_operator.policy.model import LabelSelector, Level, Policy, Request, Rule, SelectorRequirement, Stage
from audit_operator.policy.presets import NAMES, preset
from audit_operator.policy.redact import Redactor
from audit_operator.resources.auditpolicy import AuditPolicy

NAMESPACES = {"prod": {"tier": "prod"}, "dev": {"tier": "dev"}, "tools": {}}


def asked(namespace: str = "audit-system", **spec: Any) -> Effective:
    document = {"metadata": {"name": "p", "namespace": namespace}, "spec": spec}
    return effective(AuditPolicy.model_validate(document), root_namespace="audit-system")


def resource_request(namespace: str = "", resource: str = "pods", verb: str = "get") -> Request:
    return Request(user="alice", groups=("g",), verb=verb, namespace=namespace, resource=resource)


def url_request(path: str) -> Request:
    return Request(user="alice", verb="get", is_resource=False, path=path)


def test_every_field_of_a_rule_arrives() -> None:
    rule = {
        "level": "Minimal",
        "users": ["a"],
        "userGroups": ["g"],
        "verbs": ["get"],
        "namespaces": ["prod"],
        "resources": [{"group": "apps", "resources": ["deployments"], "resourceNames": ["x"]}],
        "omitStages": ["Panic"],
        "omitManagedFields": True,
        "namespaceSelector": {
            "matchLabels": {"b": "2", "a": "1"},
            "matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}],
        },
    }
    policy = asked(rules=[rule], omitStages=["RequestReceived"], omitManagedFields=True).policy
    assert policy.omit_stages == {Stage.REQUEST_RECEIVED}
    assert policy.omit_managed_fields
    (rule_read,) = policy.rules
    assert rule_read.level is Level.MINIMAL
    assert (rule_read.users, rule_read.user_groups, rule_read.verbs) == (("a",), ("g",), ("get",))
    assert rule_read.namespaces == ("prod",)
    assert [(e.group, e.resources, e.resource_names) for e in rule_read.resources] == [
        ("apps", ("deployments",), ("x",))
    ]
    assert rule_read.omit_stages == {Stage.PANIC}
    assert rule_read.omit_managed_fields is True
    assert rule_read.namespace_selector == LabelSelector(
        (("a", "1"), ("b", "2")), (SelectorRequirement("k", "In", ("v",)),)
    )
    assert rule_read.origin == "spec.rules[0]"


def test_the_preset_comes_after_the_rules_and_means_what_it_means_alone() -> None:
    base = preset("CIS")
    policy = asked(preset="CIS", rules=[{"level": "None", "users": ["noise"]}]).policy
    assert [rule.origin for rule in policy.rules][:2] == ["spec.rules[0]", "preset CIS rules[0]"]
    alone, appended = Evaluator(base), Evaluator(policy)
    requests = [
        resource_request(resource=resource, verb=verb)
        for resource in ("secrets", "pods", "configmaps", "nodes")
        for verb in ("get", "create", "watch")
    ]
    for request in [*requests, url_request("/version"), url_request("/healthz")]:
        one, two = alone.decide(request), appended.decide(request)
        assert (two.level, two.omit_managed_fields) == (one.level, one.omit_managed_fields)
        if one.level:  # without a match omitStages says nothing
            assert two.omit_stages == one.omit_stages


def test_the_stages_a_preset_omits_are_not_omitted_from_own_rules() -> None:
    policy = asked(preset="Metadata", rules=[{"level": "Metadata", "verbs": ["delete"]}]).policy
    decide = Evaluator(policy).decide
    assert decide(resource_request(verb="delete")).omit_stages == frozenset()
    assert decide(resource_request()).omit_stages == {Stage.REQUEST_RECEIVED}


PATH_PARTS = [
    "a",
    "b-1",
    ".",
    ".*",
    "[*]",
    "[0]",
    '["x.y/z"]',
    '["a b"]',
    "$",
    "_",
    "*",
    "metadata",
    "]",
    '["é"]',
    "\n",
]
RESOURCE_PARTS = ["a", "-", "/", "*", ".", "0", "A", "pods"]


@settings(max_examples=400, deadline=None)
@given(
    path=st.lists(st.sampled_from(PATH_PARTS), min_size=1, max_size=4).map("".join),
    resource=st.lists(st.sampled_from(RESOURCE_PARTS), min_size=1, max_size=4).map("".join),
    group=st.sampled_from(["", "apps", "*", "v1", "a.b", "A"]),
    action=st.sampled_from(["Remove", "Mask", "Hash"]),
)
def test_every_redaction_that_a_resource_can_hold_can_work(path: str, resource: str, group: str, action: str) -> None:
    redaction = {"resources": [{"group": group, "resources": [resource]}], "paths": [path], "action": action}
    document = {"metadata": {"name": "p"}, "spec": {"preset": "CIS", "redactions": [redaction]}}
    try:
        accepted = AuditPolicy.model_validate(document)
    except ValidationError:
        return
    (rule,) = redactions_of(accepted)
    assert (rule.resources[0].group, rule.resources[0].resources, rule.paths) == (group, (resource,), (path,))
    Redactor([rule], hash_key=bytes(32))


class TestTenants:
    def test_see_only_requests_in_their_namespace(self) -> None:
        tenant = asked("team-a", preset="Metadata", rules=[{"level": "Request", "verbs": ["create"]}])
        assert tenant.tenant == "team-a"
        decide = Evaluator(tenant.policy).decide
        assert decide(resource_request("team-a", verb="create")).level is Level.REQUEST
        assert decide(resource_request("team-a")).level is Level.METADATA
        for request in (resource_request("team-b"), resource_request(""), url_request("/version")):
            assert decide(request).level is Level.NONE

    def test_rules_that_could_never_match_are_left_out_and_named(self) -> None:
        tenant = asked(
            "team-a",
            rules=[
                {"level": "Metadata", "nonResourceURLs": ["*"]},
                {"level": "Metadata", "namespaces": ["team-b", ""]},
                {"level": "Metadata", "namespaces": ["team-a", "team-b"]},
            ],
        )
        assert [rule.origin for rule in tenant.policy.rules] == ["spec.rules[2]"]
        assert tenant.policy.rules[0].namespaces == ("team-a",)
        assert len(tenant.notices) == 2
        assert "spec.rules[0] is left out: nonResourceURLs are in no namespace" in tenant.notices[0]
        assert "spec.rules[1] is left out" in tenant.notices[1]
        assert "'team-b', ''" in tenant.notices[1]

    def test_rules_of_a_preset_are_left_out_without_a_word(self) -> None:
        tenant = asked("team-a", preset="CIS")
        assert not tenant.notices
        assert all(rule.namespaces == ("team-a",) for rule in tenant.policy.rules)

    @settings(max_examples=60, deadline=None)
    @given(
        preset=st.sampled_from([None, *NAMES]),
        namespaces=st.lists(st.sampled_from(["", "team-a", "team-b"]), max_size=2, unique=True),
        urls=st.booleans(),
    )
    def test_nothing_outside_ever_matches(self, preset: str | None, namespaces: list[str], urls: bool) -> None:
        rules = [{"level": "Metadata", "namespaces": namespaces}, {"level": "Metadata"}]
        if urls:
            rules.insert(0, {"level": "Metadata", "nonResourceURLs": ["/api*"]})
        tenant = asked("team-a", rules=rules, **({"preset": preset} if preset else {}))
        decide = Evaluator(tenant.policy).decide
        for request in (resource_request("team-b"), resource_request(""), url_request("/api"), url_request("/")):
            assert decide(request).rule is None


class TestSelectors:
    RULE = Rule(level=Level.METADATA, namespace_selector=LabelSelector((("tier", "prod"),)))

    def test_become_the_namespaces_they_select(self) -> None:
        assert resolve(Policy(rules=(self.RULE,)), NAMESPACES).rules[0].namespaces == ("prod",)

    def test_that_select_nothing_take_their_rule_with_them(self) -> None:
        assert resolve(Policy(rules=(self.RULE,)), {"dev": {}}).rules == ()

    def test_and_namespaces_must_both_hold(self) -> None:
        both = Rule(level=Level.METADATA, namespaces=("dev", ""), namespace_selector=LabelSelector())
        assert resolve(Policy(rules=(both,)), NAMESPACES).rules[0].namespaces == ("dev",)
        neither = Rule(level=Level.METADATA, namespaces=("dev",), namespace_selector=self.RULE.namespace_selector)
        assert resolve(Policy(rules=(neither,)), NAMESPACES).rules == ()

    def test_an_empty_one_selects_every_namespace_and_nothing_outside_namespaces(self) -> None:
        everywhere = Rule(level=Level.METADATA, namespace_selector=LabelSelector())
        decide = Evaluator(resolve(Policy(rules=(everywhere,)), NAMESPACES)).decide
        assert decide(resource_request("tools")).level is Level.METADATA
        assert decide(resource_request("")).level is Level.NONE
        assert decide(url_request("/version")).level is Level.NONE

    def test_a_namespace_unknown_to_the_world_has_its_name_for_a_label(self) -> None:
        by_name = LabelSelector((("kubernetes.io/metadata.name", "new"),))
        assert selects(by_name, "new", {})
        rule = Rule(level=Level.METADATA, namespaces=("new", "newer"), namespace_selector=by_name)
        assert resolve(Policy(rules=(rule,)), {}).rules[0].namespaces == ("new",)

    @pytest.mark.parametrize(
        ("requirement", "selected"),
        [
            (SelectorRequirement("tier", "In", ("prod", "dev")), {"prod", "dev"}),
            (SelectorRequirement("tier", "NotIn", ("prod",)), {"dev", "tools"}),
            (SelectorRequirement("tier", "Exists"), {"prod", "dev"}),
            (SelectorRequirement("tier", "DoesNotExist"), {"tools"}),
        ],
    )
    def test_requirements_mean_what_they_mean_in_kubernetes(
        self, requirement: SelectorRequirement, selected: set[str]
    ) -> None:
        selector = LabelSelector((), (requirement,))
        assert {name for name in NAMESPACES if selects(selector, name, NAMESPACES)} == selected

    def test_rules_without_one_stay_as_they_are(self) -> None:
        policy = Policy(rules=(Rule(level=Level.REQUEST, namespaces=("gone",)),))
        assert resolve(policy, NAMESPACES) == policy
