"""Statuses are ones that API servers take, whatever they are made of: one that is refused is never written again."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit_operator.render.plan import render
from audit_operator.render.status import LONGEST_MESSAGE, Condition, ResourceStatus, false, invalid_status
from audit_operator.render.tenants import Refusal
from audit_operator.render.world import Identity, Invalid, Resources, World
from audit_operator.resources.load import Problem, load_resource
from audit_operator.resources.meta import Condition as OnTheWire

LONG = st.builds(lambda text, times: text * times, st.text(min_size=1, max_size=40), st.integers(0, 4000))


@given(reason=st.text(max_size=50) | LONG | st.from_regex("[A-Za-z]{1,9}", fullmatch=True), message=LONG)
def test_a_condition_is_one_that_the_crd_takes_whatever_it_is_made_of(reason: str, message: str) -> None:
    made = Condition("Applied", "False", reason, message)
    OnTheWire(
        type=made.type, status=made.status, reason=made.reason, message=made.message, last_transition_time="2026-01-01"
    )
    assert len(made.message) <= LONGEST_MESSAGE
    if len(message) <= LONGEST_MESSAGE:
        assert made.message == message


def test_a_long_message_ends_with_a_whole_line_and_says_what_is_missing() -> None:
    lines = [f"spec.rules[{number}] is left out: {'x' * 80}" for number in range(500)]
    shown, _, rest = false("Compiled", Refusal("X", "\n".join(lines))).message.rpartition("\n")
    assert shown.split("\n") == lines[: shown.count("\n") + 1]
    assert rest == f"… and {500 - shown.count(chr(10)) - 1} more lines"
    assert Condition("A", "True", "B", "y" * 5000).message.endswith(" more characters")


def test_of_many_problems_it_stays_in_sight_which_version_is_in_force() -> None:
    identity = Identity("AuditPolicy", "team-a", "p")
    problems = tuple(Problem(f"spec.rules[{number}]", "is odd" * 30) for number in range(500))
    before = ResourceStatus(identity=identity, generation=4, conditions=(Condition("Ready", "True", "Ready", ""),))
    found = invalid_status(Invalid(identity=identity, problems=problems, generation=5), before)
    assert found.ready.message.endswith("until that is put right generation 4 stays in force")


def status_of(**spec: Any) -> dict[str, Condition]:
    api = "audit-operator.dev/v1alpha1"
    backend = {"metadata": {"name": "default"}, "spec": {"clusterName": "c", "tenants": {"enabled": True}}}
    policy = {"metadata": {"name": "p", "namespace": "team-a"}, "spec": spec}
    items = [
        load_resource({"apiVersion": api, "kind": "AuditBackend"} | backend),
        load_resource({"apiVersion": api, "kind": "AuditPolicy"} | policy),
    ]
    plan = render(Resources.of(items), World(namespaces={"team-a": {}}))
    (found,) = (each for each in plan.statuses if each.identity.name == "p")
    return {each.type: each for each in found.conditions}


@pytest.mark.parametrize(("rules", "length"), [(1, 400), (20, 63)])
def test_rules_for_many_other_namespaces_are_named_in_few_words(rules: int, length: int) -> None:
    elsewhere = [f"{number:0{length}d}" for number in range(20)]
    compiled = status_of(rules=[{"level": "Metadata", "namespaces": elsewhere}] * rules)["Compiled"]
    notices = [line for line in compiled.message.split("\n") if "is left out" in line]
    assert notices
    assert all(line.endswith("and 17 more") and len(line) < 400 for line in notices)
    assert len(compiled.message) <= LONGEST_MESSAGE


def test_a_tenants_policy_that_takes_long_to_judge_is_not_judged_for_everybody_to_wait() -> None:
    def rules(values: int) -> list[dict[str, Any]]:
        return [{"level": "Metadata", "users": [f"u{rule}-{number}" for number in range(values)]} for rule in range(40)]

    few, many = status_of(rules=rules(4)), status_of(rules=rules(30))
    assert "too many values to be judged here" not in few["Compiled"].message
    assert "too many values to be judged here" in many["Compiled"].message
    assert many["Compiled"].status == "True"
