"""How long a union takes, how large it is, and how much more than anybody asked for it records."""

import random
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from audit_operator.policy import presets
from audit_operator.policy import union as module
from audit_operator.policy.evaluate import Evaluator
from audit_operator.policy.model import STAGES, Decision, Level, Policy, Request, Stage
from audit_operator.policy.union import union
from bench.evaluate import recorded_requests
from bench.policies import mixed, platform, tenants
from bench.table import Row, best

COLD = 3.0
CHANGED = 0.1
EXCESS = 1.0
RULES = 1000
CHANGES = 9


def run() -> Iterator[Row]:
    """All measurements; about a minute."""
    yield from _sizes()
    yield from _excesses()
    anywhere = {"one of them changed": range(1000)}
    kinds = {
        "a cluster-wide one changed": [number for number in range(1000) if number % 50 == 0],
        "an application's changed": [number for number in range(1000) if number % 10 < 3 and number % 50],
        "a tenant's changed": [number for number in range(1000) if number % 10 >= 3],
    }
    for what, policies, changes in (
        ("tenants in 25 shapes", tenants(1000, shapes=25), anywhere),
        ("platform policies", [platform(random.Random(seed)) for seed in range(1000)], anywhere),
        ("mixed policies", mixed(1000), kinds),
    ):
        yield Row(f"union of 1,000 {what}", len(union(policies).rules), "rules", RULES)
        yield Row(f"union of 1,000 {what}, cold", best(union, lambda: _forgetting(policies), 3), "s", COLD)  # noqa: B023
        for which, numbers in changes.items():
            yield Row(f"union of 1,000 {what}, {which}", _changes(policies, numbers), "s", CHANGED)


def _changes(policies: list[Policy], numbers: Sequence[int]) -> float:
    """Seconds for one change, the median of several, one after the other at different places."""
    took = []
    for change in range(CHANGES):
        policies = _changed(policies, numbers[(change + 1) * len(numbers) // (CHANGES + 1)])
        took.append(best(union, lambda: policies, 1))  # noqa: B023 - called here and now
    return statistics.median(took)


def _forgetting(policies: list[Policy]) -> list[Policy]:
    """The policies, after the union has lost all memory of them."""
    module.forget()
    return policies


def _changed(policies: list[Policy], position: int) -> list[Policy]:
    """The policies, but one of them records deletions as well."""
    policy = policies[position]
    first = msgspec.structs.replace(policy.rules[-1], level=Level.REQUEST, verbs=("delete",))
    changed = msgspec.structs.replace(policy, rules=(first, *policy.rules))
    return [*policies[:position], changed, *policies[position + 1 :]]


def _sizes() -> Iterator[Row]:
    alone = len(union(tenants(1)).rules)
    yield Row("union of 1 tenant", alone, "rules")
    for count in (10, 100, 1000):
        yield Row(
            f"union of {count:,} tenants with one shape of policy", len(union(tenants(count)).rules), "rules", alone
        )


def _excesses() -> Iterator[Row]:
    traffic = Counter(recorded_requests())
    sets = {
        "the presets": [presets.preset(name) for name in presets.NAMES],
        "10 platform policies": [platform(random.Random(seed)) for seed in range(10)],
        "30 platform policies": [platform(random.Random(seed)) for seed in range(30)],
        "100 mixed policies": mixed(100),
        "1,000 mixed policies": mixed(1000),
    }
    for what, policies in sets.items():
        yield Row(f"union of {what}: events recorded in excess", 100 * _excess(policies, traffic), "%", EXCESS)
        if "mixed" in what:
            numbers = range(len(policies))
            moved = Counter(_moved(traffic.elements(), [number for number in numbers if number % 10 >= 3]))
            yield Row(
                "the same, the traffic moved into the tenants' namespaces", 100 * _excess(policies, moved), "%", EXCESS
            )
            own = Counter(_own(traffic.elements(), [number for number in numbers if number % 10 < 3 and number % 50]))
            yield Row("the same, made by applications in their own namespaces", 100 * _excess(policies, own), "%")


def _moved(traffic: Iterable[Request], tenants_: Sequence[int]) -> Iterator[Request]:
    """The traffic, spread over the namespaces of the tenants in turn: as it was, it hardly knows any of them."""
    for number, request in enumerate(traffic):
        namespace = f"team-{tenants_[number % len(tenants_)]}" if request.namespace else ""
        yield msgspec.structs.replace(request, namespace=namespace)


def _own(traffic: Iterable[Request], applications: Sequence[int]) -> Iterator[Request]:
    """The traffic in namespaces, as if service accounts of applications made it, in turn, each in its own namespace."""
    for number, request in enumerate(request for request in traffic if request.namespace):
        name = f"app-{applications[number % len(applications)]}"
        yield msgspec.structs.replace(request, user=f"system:serviceaccount:{name}:controller", namespace=name)


def _excess(policies: Sequence[Policy], traffic: Counter[Request]) -> float:
    """The share of events whose request the union records at a level, or at a stage, that no policy asks for."""
    server = Evaluator(union(policies))
    evaluators = [Evaluator(policy) for policy in policies]
    excess = 0
    for request, events in traffic.items():
        wanted = [evaluator.decide(request) for evaluator in evaluators]
        recorded = server.decide(request)
        level = max(decision.level.server for decision in wanted)
        stages = frozenset[Stage]().union(*map(_stages, wanted))
        if recorded.level > level or not _stages(recorded) <= stages:
            excess += events
    return excess / traffic.total()


def _stages(decision: Decision) -> frozenset[Stage]:
    return frozenset() if decision.level is Level.NONE else frozenset(STAGES) - decision.omit_stages
