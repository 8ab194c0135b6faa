"""Explain says what happens to a request, and why not where nothing does."""

from hypothesis import given, settings
from policy_space import EVERY_REQUEST, rules

from audit_operator.policy.evaluate import rule_matches
from audit_operator.policy.explain import Explainer, Source, mismatch
from audit_operator.policy.model import GroupResources, Level, Policy, Request, Rule, Stage

SECRET = Request(user="alice", verb="create", resource="secrets", namespace="default")
READ = Rule(level=Level.NONE, verbs=("get",), origin="spec.rules[0]")
BODIES = Rule(level=Level.REQUEST, origin="spec.rules[1]")


def verdict(policy: Policy, server: Policy, request: Request = SECRET):
    return Explainer(server, [Source("audit/p", policy, sinks=("audit/siem",))]).explain(request).policies[0]


def test_what_is_delivered_is_redacted_and_said() -> None:
    got = verdict(Policy(rules=(READ, BODIES)), Policy(rules=(Rule(level=Level.REQUEST_RESPONSE),)))
    assert (got.level, got.origin, got.sinks) == (Level.REQUEST, "spec.rules[1]", ("audit/siem",))
    assert any("data" in path for path in got.redacted)
    assert got.why == "spec.rules[1] matches first"


def test_a_level_is_never_raised_above_what_was_recorded() -> None:
    got = verdict(Policy(rules=(BODIES,)), Policy(rules=(Rule(level=Level.METADATA),)))
    assert (got.level, got.redacted) == (Level.METADATA, ())
    assert got.why == "spec.rules[1] asks for Request, but API servers record Metadata"


def test_none_says_which_rule_or_that_there_is_none() -> None:
    everything = Policy(rules=(Rule(level=Level.METADATA),))
    read = Request(user="alice", verb="get", resource="pods")
    assert verdict(Policy(rules=(READ,)), everything, read).why == "spec.rules[0] matches first and says None"
    assert verdict(Policy(rules=(READ,)), everything).why == "no rule matches, so nothing is recorded"


def test_omitted_stages_are_not_delivered() -> None:
    late = Policy(rules=(BODIES,), omit_stages=frozenset(Stage) - {Stage.PANIC})
    assert verdict(late, Policy(rules=(Rule(level=Level.REQUEST),))).stages == (Stage.PANIC,)
    none = Policy(rules=(BODIES,), omit_stages=frozenset(Stage))
    assert verdict(none, Policy(rules=(Rule(level=Level.REQUEST),))).sinks == ()


@given(rules)
@settings(max_examples=60, deadline=None)
def test_a_reason_is_given_exactly_when_the_rule_does_not_match(rule: Rule) -> None:
    for request in EVERY_REQUEST[::9]:
        assert (mismatch(rule, request) == "") == rule_matches(rule, request), request


def test_reasons_name_the_field_and_the_value() -> None:
    rule = Rule(level=Level.NONE, resources=(GroupResources("", ("pods", "secrets"), ("a",)),))
    assert mismatch(rule, SECRET) == 'resourceNames: the request names ""'
    assert mismatch(READ, SECRET) == "verbs: create is not one of get"
