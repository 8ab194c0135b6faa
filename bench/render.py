"""How long everything takes that follows from 1,000 AuditPolicies of 20 rules, and what one change costs."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import structs

from audit_operator.policy.model import Policy
from audit_operator.policy.union import forget
from audit_operator.render import remembered
from audit_operator.render.plan import Plan, render
from audit_operator.render.policyfile import rule_value
from audit_operator.render.world import Resources, World
from audit_operator.resources.auditpolicy import AuditPolicy
from audit_operator.resources.load import Resource, load_resource
from bench.policies import platform, tenant
from bench.table import Row, best

COLD = 3.0
CHANGED = 0.25
COUNT = 1000
CHANGES = 3

_NAMESPACES = {f"team-{number}": {"tier": "prod" if number % 3 else "dev"} for number in range(COUNT)}
_SELECTING = {"level": "Metadata", "namespaceSelector": {"matchLabels": {"tier": "prod"}}, "verbs": ["delete"]}
_API = "audit-operator.dev/v1alpha1"


def run() -> Iterator[Row]:
    """All measurements; about half a minute."""
    for what, resources in (("tenants in 25 shapes", _tenants()), ("platform policies", _platform())):
        world = World(namespaces=_NAMESPACES, served=None)
        cold = best(lambda given: _render(*given), lambda: (_forgetting(resources), world), 2)  # noqa: B023
        yield Row(f"render of 1,000 {what}, cold", cold, "s", COLD)
        current = _render(resources, world)
        world = structs.replace(world, server_policy=current.server_policy)
        _render(resources, world)
        yield Row(f"render of 1,000 {what}, nothing changed", _again([(resources, world)] * CHANGES), "s", CHANGED)
        changed = [(_changed(resources, change), world) for change in range(CHANGES)]
        yield Row(f"render of 1,000 {what}, one of them changed", _again(changed), "s", CHANGED)
        relabelled = [(resources, _relabelled(world, change)) for change in range(CHANGES)]
        yield Row(f"render of 1,000 {what}, a namespace's label changed", _again(relabelled), "s", CHANGED)


def _render(resources: Sequence[Resource], world: World) -> Plan:
    return render(Resources.of(resources), world)


def _again(given: list[tuple[Sequence[Resource], World]]) -> float:
    left = iter(given)
    return best(lambda each: _render(*each), lambda: next(left), len(given))


def _forgetting(resources: Sequence[Resource]) -> list[Resource]:
    """Equal resources that nobody has seen."""
    forget()
    for memory in (remembered._judged, remembered._one, remembered._recording, remembered.bodies_recorded):
        memory.cache_clear()
    return [resource.model_copy(deep=True) for resource in resources]


def _resource(kind: str, name: str, namespace: str, spec: dict[str, Any]) -> Resource:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return load_resource({"apiVersion": _API, "kind": kind, "metadata": metadata, "spec": spec})


def _policy(name: str, namespace: str, policy: Policy, *, selecting: bool) -> Resource:
    rules = [rule_value(rule) for rule in policy.rules]
    if selecting:
        rules = [_SELECTING, *rules[1:]]
    spec = {"rules": rules, "omitStages": ["RequestReceived"], "sinks": [{"name": "out"}]}
    return _resource("AuditPolicy", name, namespace, spec)


def _tenants() -> list[Resource]:
    result = [_resource("AuditBackend", "default", "", {"clusterName": "bench", "tenants": {"enabled": True}})]
    for number, name in enumerate(_NAMESPACES):
        result += [
            _policy("audit", name, tenant(random.Random(number % 25), name), selecting=False),
            _resource("AuditSink", "out", name, {"loki": {"url": "https://loki.example.com"}}),
        ]
    return result


def _platform() -> list[Resource]:
    return [
        _resource("AuditBackend", "default", "", {"clusterName": "bench"}),
        _resource("AuditSink", "out", "audit-system", {"stdout": {}}),
        *(
            _policy(f"p-{number}", "audit-system", platform(random.Random(number)), selecting=number % 5 == 0)
            for number in range(COUNT)
        ),
    ]


def _changed(resources: Sequence[Resource], change: int) -> list[Resource]:
    """One policy records deletions as well."""
    position = (change + 1) * len(resources) // (CHANGES + 1)
    while not isinstance(policy := resources[position], AuditPolicy):
        position += 1
    first = policy.spec.rules[-1].model_copy(update={"level": "Request", "verbs": ("delete",)})
    spec = policy.spec.model_copy(update={"rules": (first, *policy.spec.rules)})
    return [*resources[:position], policy.model_copy(update={"spec": spec}), *resources[position + 1 :]]


def _relabelled(world: World, change: int) -> World:
    namespaces = {**world.namespaces, f"team-{change}": {"tier": f"other-{change}"}}
    return structs.replace(world, namespaces=namespaces)
