"""A policy means what kube-apiserver means by it."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_space import EVERY_REQUEST, policies, selecting_rules, server_decisions

from audit_operator.policy.evaluate import Evaluator, Evaluators, rule_matches
from audit_operator.policy.load import policy_of
from audit_operator.policy.memo import LIMIT, LONGEST
from audit_operator.policy.model import GroupResources, Level, Policy, Request, Rule


def request_of_case(case: dict) -> Request:
    return Request(
        user=case["user"],
        groups=tuple(case["groups"]),
        verb=case["verb"],
        is_resource=case["isResource"],
        namespace=case["namespace"],
        api_group=case["apiGroup"],
        resource=case["resource"],
        subresource=case["subresource"],
        name=case["name"],
        path=case["path"],
    )


def test_every_decision_of_a_real_api_server_is_reproduced() -> None:
    decided = 0
    for record in server_decisions():
        evaluator = Evaluator(policy_of(record["policy"]))
        for case in record["cases"]:
            decision = evaluator.decide(request_of_case(case["request"]))
            assert {
                "level": str(decision.level),
                "omitStages": sorted(decision.omit_stages),
                "omitManagedFields": decision.omit_managed_fields,
            } == case["expect"] | {"omitStages": sorted(case["expect"]["omitStages"])}, record["id"]
            decided += 1
    assert decided == 5000


@given(policies)
@settings(max_examples=25, deadline=None)
def test_all_rules_at_once_decide_as_the_first_matching_rule_does(policy: Policy) -> None:
    evaluator = Evaluator(policy)
    for request in EVERY_REQUEST[::7]:
        first = next((i for i, rule in enumerate(policy.rules) if rule_matches(rule, request)), None)
        assert evaluator.decide(request).rule == first
        assert evaluator.decide(msgspec.structs.replace(request)).rule == first


@pytest.mark.parametrize(
    ("item", "matching"),
    [
        ("*", {"pods", "pods/log", "jobs", "jobs/log"}),
        ("pods", {"pods"}),
        ("pods/log", {"pods/log"}),
        ("pods/*", {"pods", "pods/log"}),
        ("*/log", {"pods/log", "jobs/log"}),
        ("*/*", set()),
        ("*/", set()),
        ("/*", set()),
        ("/log", set()),
        ("", set()),
        ("*pods", set()),
        ("pod*", set()),
    ],
)
def test_each_spelling_of_a_resource_matches_what_the_api_server_matches(item: str, matching: set[str]) -> None:
    """ruleMatchesResource of k8s.io/apiserver's pkg/audit/policy/checker.go, spelling by spelling."""
    rule = Rule(level=Level.METADATA, resources=(GroupResources("", (item,)),))
    evaluator = Evaluator(Policy(rules=(rule,)))
    found = set()
    for text in ("pods", "pods/log", "jobs", "jobs/log"):
        resource, _, subresource = text.partition("/")
        request = Request(user="u", verb="get", resource=resource, subresource=subresource)
        assert rule_matches(rule, request) == (evaluator.decide(request).rule == 0)
        found |= {text} if rule_matches(rule, request) else set()
    assert found == matching


def test_a_failed_login_matches_no_rule_about_users_or_groups() -> None:
    nobody = Request(user=None, groups=("system:authenticated",), verb="get", resource="pods")
    by_user = Rule(level=Level.METADATA, users=("",))
    by_group = Rule(level=Level.METADATA, user_groups=("system:authenticated",))
    assert Evaluator(Policy(rules=(by_user, by_group))).decide(nobody).rule is None
    assert Evaluator(Policy(rules=(by_user, Rule(level=Level.METADATA)))).decide(nobody).rule == 1


@given(st.lists(policies, max_size=4))
@settings(max_examples=15, deadline=None)
def test_policies_asked_together_answer_as_each_does_alone(some: list[Policy]) -> None:
    together, alone = Evaluators(some), [Evaluator(policy) for policy in some]
    for request in EVERY_REQUEST[::11]:
        expected = tuple(evaluator.decide(request) for evaluator in alone)
        assert together.decide(request) == expected
        assert together.decide(msgspec.structs.replace(request)) == expected


def test_what_clients_invent_does_not_grow_without_end() -> None:
    policy = Policy(rules=(Rule(level=Level.METADATA, resources=(GroupResources("", ("pods",)),)),))
    evaluators = Evaluators([policy])
    (evaluator,) = evaluators._evaluators
    for number in range(3 * LIMIT):
        evaluators.decide(Request(user="u", verb="get", resource=f"r{number}"))
        evaluators.decide(Request(user="u", verb="get", is_resource=False, path=f"/{number}"))
    assert max(map(len, (evaluators._known, evaluator._paths, evaluator._resources))) <= LIMIT


def test_what_is_too_long_to_be_kept_is_decided_all_the_same() -> None:
    rules = (
        Rule(level=Level.REQUEST, resources=(GroupResources("", ("pods",)),)),
        Rule(level=Level.METADATA, non_resource_urls=("/x*",)),
    )
    evaluators = Evaluators([Policy(rules=rules)])
    (evaluator,) = evaluators._evaluators
    endless = "x" * (LONGEST + 1)
    for request, level in [
        (Request(user=endless, verb="get", resource="pods"), Level.REQUEST),
        (Request(user="u", groups=("g", endless), verb="get", resource="pods"), Level.REQUEST),
        (Request(user="u", verb="get", resource="pods", name=endless), Level.REQUEST),
        (Request(user="u", verb="get", resource=endless), Level.NONE),
        (Request(user=None, verb="get", is_resource=False, path="/" + endless), Level.METADATA),
    ]:
        assert [decision.level for decision in evaluators.decide(request)] == [level]
    assert not evaluators._known
    assert list(evaluator._resources) == [("", "pods", "")]
    assert not evaluator._paths


@given(selecting_rules)
@settings(max_examples=5)
def test_a_selector_must_be_resolved_before_anything_is_decided(rule: Rule) -> None:
    with pytest.raises(ValueError, match="resolve namespaceSelector"):
        Evaluator(Policy(rules=(rule,)))
