"""What is remembered is what would be made anew."""

import random
from typing import Any

import pytest
from msgspec import structs

from audit_operator.policy.kinds import BUILT_IN
from audit_operator.policy.lint import Severity, lint
from audit_operator.policy.load import NEWEST
from audit_operator.render import remembered
from audit_operator.render.plan import Plan, render
from audit_operator.render.world import Resources, World
from audit_operator.resources.auditpolicy import AuditPolicy
from audit_operator.resources.load import Resource, load_resource

Json = dict[str, Any]

VERBS = ["get", "GET", "create", "delete"]
RESOURCES = ["pods", "pods*", "secrets", "nodes", "deployments"]


def rule(rng: random.Random, namespaces: list[str]) -> Json:
    found: Json = {"level": rng.choice(["None", "Metadata", "Request", "Minimal"])}
    if rng.random() < 0.6:
        found["verbs"] = rng.sample(VERBS, 2)
    if rng.random() < 0.7:
        found["resources"] = [{"group": rng.choice(["", "apps"]), "resources": rng.sample(RESOURCES, 2)}]
    if rng.random() < 0.5:
        found["namespaces"] = rng.sample(namespaces, rng.randint(1, 2))
    if rng.random() < 0.2:
        found["namespaceSelector"] = {"matchLabels": {"tier": "prod"}}
    return found


def policy(rng: random.Random, number: int, namespace: str) -> AuditPolicy:
    names = [namespace, "default", "kube-system", "Team-A", "somewhere"]
    rules = [rule(rng, names) for _ in range(rng.randint(1, 8))]
    spec = {"rules": rules, "preset": rng.choice([None, "CIS", "Minimal"])}
    metadata = {"name": f"p{number}", "namespace": namespace, "uid": f"u{number}", "generation": 1}
    found = load_resource(
        {"apiVersion": "audit-operator.dev/v1alpha1", "kind": "AuditPolicy", "metadata": metadata, "spec": spec}
    )
    assert isinstance(found, AuditPolicy)
    return found


@pytest.mark.parametrize("seed", range(40))
def test_findings_are_counted_as_if_nothing_was_remembered(seed: int) -> None:
    rng = random.Random(seed)
    for number in range(4):
        given = policy(rng, number, rng.choice(["team-a", "team-b", "audit-system", "somewhere"]))
        written = remembered.meaning_of(given, given.metadata.namespace).policy
        findings = lint(written, written=len(given.spec.rules), whole=False, redacted=True, modes=())
        warnings = [finding for finding in findings if finding.severity is not Severity.INFO]
        unreachable = sum(finding.name == "unreachable-rule" for finding in warnings)
        assert remembered.judged(given, BUILT_IN, NEWEST) == (len(warnings), unreachable)


def shown(plan: Plan) -> tuple[Any, ...]:
    return plan.files(), plan.objects, [status.document() for status in plan.statuses]


def test_rendering_after_changes_is_rendering_from_the_start() -> None:
    """The same objects again and again, some replaced, labels changed: as the operator does it."""
    rng = random.Random(7)
    resources: list[Resource] = [policy(rng, number, f"team-{number % 5}") for number in range(25)]
    spec = {"clusterName": "x", "tenants": {"enabled": True, "level": "Request", "limits": {"maxPolicies": 20}}}
    resources.append(
        load_resource(
            {
                "apiVersion": "audit-operator.dev/v1alpha1",
                "kind": "AuditBackend",
                "metadata": {"name": "default"},
                "spec": spec,
            }
        )
    )
    world = World()
    for turn in range(12):
        labels = {f"team-{number}": {"tier": rng.choice(["prod", "test"])} for number in range(5)}
        world = structs.replace(world, namespaces=labels)
        which = rng.randrange(25)
        resources[which] = policy(rng, which, f"team-{which % 5}" if turn % 3 else "audit-system")
        known = shown(render(Resources.of(resources), world))
        copies = [resource.model_copy(deep=True) for resource in resources]
        assert shown(render(Resources.of(copies), world)) == known
