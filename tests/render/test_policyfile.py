"""A policy file says what the policy says, to the server version it is written for."""

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from audit_operator.policy.evaluate import Evaluator
from audit_operator.policy.load import load_policy
from audit_operator.policy.model import GroupResources, LabelSelector, Level, Policy, Request, Rule, Stage
from audit_operator.render.policyfile import lower, policy_file

GROUPS = ("", "apps", "rbac.authorization.k8s.io")


def some(*values: str) -> Any:
    return st.lists(st.sampled_from(values), max_size=2, unique=True).map(tuple)


ENTRIES = st.builds(
    GroupResources,
    group=st.sampled_from([*GROUPS, "*", "*"]),
    resources=some("*", "pods", "pods/exec", "*/status", "pods/*"),
    resource_names=st.just(()),
) | st.builds(GroupResources, st.sampled_from(["", "*"]), st.just(("pods",)), st.just(("a",)))
COMMON: dict[str, Any] = {
    "level": st.sampled_from(Level),
    "users": some("alice", "bob", "no"),
    "user_groups": some("system:authenticated", "0755"),
    "verbs": some("get", "create"),
    "omit_stages": st.frozensets(st.sampled_from(Stage)),
    "omit_managed_fields": st.sampled_from([None, True, False]),
}
RULES = st.one_of(
    st.builds(Rule, **COMMON),
    st.builds(Rule, **COMMON, resources=st.lists(ENTRIES, max_size=2).map(tuple), namespaces=some("", "prod", "on")),
    st.builds(Rule, **COMMON, non_resource_urls=some("/healthz*", "*", "/version")),
)
POLICIES = st.builds(
    Policy,
    rules=st.lists(RULES, max_size=6).map(tuple),
    omit_stages=st.frozensets(st.sampled_from(Stage)),
    omit_managed_fields=st.booleans(),
)
WHO: dict[str, Any] = {
    "user": st.sampled_from(["alice", "carol", None]),
    "groups": some("system:authenticated", "0755"),
    "verb": st.sampled_from(["get", "create", "list"]),
}
REQUESTS = st.one_of(
    st.builds(
        Request,
        **WHO,
        namespace=st.sampled_from(["", "prod", "dev"]),
        api_group=st.sampled_from(GROUPS),
        resource=st.sampled_from(["pods", "roles"]),
        subresource=st.sampled_from(["", "exec", "status"]),
        name=st.sampled_from(["", "a"]),
    ),
    st.builds(
        Request, **WHO, is_resource=st.just(False), path=st.sampled_from(["/healthz/etcd", "/version", "/metrics"])
    ),
)


@settings(max_examples=200, deadline=None)
@given(
    policy=POLICIES, requests=st.lists(REQUESTS, min_size=5, max_size=30), server=st.sampled_from([(1, 28), (1, 36)])
)
def test_lowering_changes_no_decision_but_minimal(
    policy: Policy, requests: list[Request], server: tuple[int, int]
) -> None:
    before, after = Evaluator(policy), Evaluator(lower(policy, server, GROUPS).policy)
    for request in requests:
        asked, given_ = before.decide(request), after.decide(request)
        assert given_.level == asked.level.server
        if asked.level:
            assert (given_.omit_stages, given_.omit_managed_fields) == (asked.omit_stages, asked.omit_managed_fields)


@settings(max_examples=150, deadline=None)
@given(policy=POLICIES, server=st.sampled_from([(1, 28), (1, 35), (1, 36)]), origins=st.booleans())
def test_the_server_it_is_written_for_accepts_the_file_and_reads_the_same_policy(
    policy: Policy, server: tuple[int, int], origins: bool
) -> None:
    lowered = lower(policy, server, GROUPS).policy
    loaded = load_policy(policy_file(lowered, header="head", origins=origins), server=server)
    assert (loaded.accepted, loaded.error, loaded.problems, loaded.extra_documents) == (True, "", (), ())
    assert loaded.policy is not None
    assert without_origins(loaded.policy) == without_origins(lowered)


def without_origins(policy: Policy) -> Policy:
    return structs.replace(policy, rules=tuple(structs.replace(rule, origin="") for rule in policy.rules))


@settings(max_examples=100, deadline=None)
@given(policy=POLICIES)
def test_servers_before_1_36_never_see_the_group_wildcard(policy: Policy) -> None:
    for rule in lower(policy, (1, 35), GROUPS).policy.rules:
        assert all(entry.group != "*" for entry in rule.resources)


def test_everything_in_every_group_needs_no_list_of_groups_before_1_36() -> None:
    policy = Policy(
        rules=(
            Rule(level=Level.REQUEST, resources=(GroupResources("*", ("*",)),), verbs=("create",)),
            Rule(level=Level.METADATA, non_resource_urls=("/version",)),
        )
    )
    lowered = lower(policy, (1, 35), [])
    assert not lowered.notices
    assert policy_file(lowered.policy) == (
        "apiVersion: audit.k8s.io/v1\n"
        "kind: Policy\n"
        "rules:\n"
        "- level: Metadata\n"
        "  nonResourceURLs:\n"
        "  - /version\n"
        "- level: None\n"
        "  nonResourceURLs:\n"
        '  - "*"\n'
        "- level: Request\n"
        "  verbs:\n"
        "  - create\n"
    )


def test_an_expanded_group_wildcard_is_said() -> None:
    rule = Rule(level=Level.METADATA, resources=(GroupResources("*", ("*/status",)),), origin="spec.rules[4]")
    lowered = lower(Policy(rules=(rule,)), (1, 30), ["apps", "batch"])
    assert [entry.group for entry in lowered.policy.rules[0].resources] == ["", "apps", "batch"]
    assert [notice.split(";")[0] for notice in lowered.notices] == ["spec.rules[4]: group * needs Kubernetes 1.36"]


def test_nothing_asked_for_is_one_rule_of_level_none_because_a_server_stops_at_no_rules() -> None:
    document = yaml.safe_load(policy_file(lower(Policy(rules=()), (1, 36), GROUPS).policy))
    assert document["rules"] == [{"level": "None"}]


def test_a_namespace_selector_never_reaches_a_policy_file() -> None:
    rule = Rule(level=Level.METADATA, namespace_selector=LabelSelector(), origin="spec.rules[0]")
    with pytest.raises(ValueError, match=r"spec.rules\[0\]: a policy file knows no namespaceSelector"):
        lower(Policy(rules=(rule,)), (1, 36), GROUPS)


def test_origins_are_comments_only() -> None:
    policy = lower(Policy(rules=(Rule(level=Level.METADATA, origin="a/b spec.rules[0]"),)), (1, 36), GROUPS).policy
    plain, commented = policy_file(policy), policy_file(policy, origins=True, header="made by")
    assert "# a/b spec.rules[0]\n" in commented
    assert commented.startswith("# made by\n")
    assert yaml.safe_load(plain) == yaml.safe_load(commented)
