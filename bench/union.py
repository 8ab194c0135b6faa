"""How long a union takes, how large it is, and how much more than anybody asked for it records."""

import random
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
CHANGES = 3


def run() -> Iterator[Row]:
    """All measurements; about two minutes, most of it for the mixed policies."""
    yield from _sizes()
    yield from _excesses()
    for what, policies in (
        ("tenants in 25 shapes", tenants(1000, shapes=25)),
        ("platform policies", [platform(random.Random(seed)) for seed in range(1000)]),
    ):
        yield _cold(what, policies, runs=2)
        changes = iter(range(CHANGES))
        changed = best(union, lambda: _changed(policies, next(changes)), CHANGES)  # noqa: B023 - called here and now
        yield Row(f"union of 1,000 {what}, one of them changed", changed, "s", CHANGED)
    yield _cold("mixed policies", mixed(1000), runs=1)


def _cold(what: str, policies: list[Policy], runs: int) -> Row:
    return Row(f"union of 1,000 {what}, cold", best(union, lambda: _forgetting(policies), runs), "s", COLD)


def _forgetting(policies: list[Policy]) -> list[Policy]:
    """The policies, after the union has lost all memory of them."""
    module._united.cache_clear()
    module._source.cache_clear()
    return policies


def _changed(policies: list[Policy], change: int) -> list[Policy]:
    """The policies, but one of them records deletions as well: another one, elsewhere in the list, for each change."""
    position = (change + 1) * len(policies) // (CHANGES + 1)
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
    }
    for what, policies in sets.items():
        yield Row(f"union of {what}: events recorded in excess", 100 * _excess(policies, traffic), "%", EXCESS)
    moved = Counter(_moved(traffic.elements(), [number for number in range(100) if number % 10 >= 3]))
    excess = 100 * _excess(sets["100 mixed policies"], moved)
    yield Row("the same, the traffic moved into the tenants' namespaces", excess, "%", EXCESS)


def _moved(traffic: Iterable[Request], tenants_: Sequence[int]) -> Iterator[Request]:
    """The traffic, spread over the namespaces of the tenants in turn: as it was, it hardly knows any of them."""
    for number, request in enumerate(traffic):
        namespace = f"team-{tenants_[number % len(tenants_)]}" if request.namespace else ""
        yield msgspec.structs.replace(request, namespace=namespace)


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
