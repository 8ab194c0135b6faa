"""Every difference of two policies is found, and each is shown by a request."""

from hypothesis import given, settings
from policy_space import EVERY_REQUEST, policies

from audit_operator.policy.diff import MOST_CHANGES, Diff, diff
from audit_operator.policy.evaluate import Evaluator
from audit_operator.policy.model import STAGES, Decision, Level, Policy, Rule
from audit_operator.policy.witness import MOST_RULES


def recorded(decision: Decision) -> tuple[object, ...] | None:
    if decision.level is Level.NONE or len(decision.omit_stages) == len(STAGES):
        return None
    return decision.level, decision.omit_stages, decision.level >= Level.REQUEST and decision.omit_managed_fields


@given(policies, policies)
@settings(max_examples=60, deadline=None)
def test_each_change_is_proven_and_none_is_missing(a: Policy, b: Policy) -> None:
    before, after = Evaluator(a), Evaluator(b)
    shown = set()
    for change in diff(a, b).changes:
        assert change.request is not None
        assert (before.decide(change.request), after.decide(change.request)) == (change.before, change.after)
        shown.add((change.before.rule, change.after.rule))
    for request in EVERY_REQUEST[::3]:
        one, other = before.decide(request), after.decide(request)
        assert recorded(one) == recorded(other) or (one.rule, other.rule) in shown, request


@given(policies)
@settings(max_examples=20, deadline=None)
def test_a_policy_does_not_differ_from_itself(policy: Policy) -> None:
    assert diff(policy, policy) == Diff(())


def test_another_text_of_the_same_policy_is_no_difference() -> None:
    one = Policy(rules=(Rule(level=Level.METADATA, verbs=("get", "list")), Rule(level=Level.NONE)))
    other = Policy(rules=(Rule(level=Level.METADATA, verbs=("list",)), Rule(level=Level.METADATA, verbs=("get",))))
    assert diff(one, other) == Diff(())


def test_policies_too_large_to_compare_are_not_said_to_be_the_same() -> None:
    many = Policy(rules=(Rule(level=Level.METADATA, users=("a",)),) * (MOST_RULES + 1))
    assert diff(many, Policy(rules=(Rule(level=Level.NONE),))) == Diff((), complete=False)
    assert diff(many, many) == Diff(())


def test_more_changes_than_anybody_reads_are_not_looked_for() -> None:
    some = range(1, int(MOST_CHANGES**0.5) + 2)
    users = Policy(rules=tuple(Rule(level=Level.METADATA, users=(f"u{i}",)) for i in some))
    verbs = Policy(rules=tuple(Rule(level=Level.REQUEST, verbs=(f"v{i}",)) for i in some))
    found = diff(users, verbs)
    assert len(found.changes) == MOST_CHANGES
    assert not found.complete
