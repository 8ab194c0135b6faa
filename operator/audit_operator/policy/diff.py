"""Which requests fare differently under two policies, each difference with a request that proves it."""

from collections.abc import Iterator

import msgspec

from audit_operator.policy import witness
from audit_operator.policy.evaluate import Evaluator
from audit_operator.policy.model import STAGES, Decision, Level, Policy, Request, Rule
from audit_operator.policy.region import Region, RegionIndex


class Change(msgspec.Struct, frozen=True):
    """Requests like ``request`` are decided by ``before`` in the first policy and by ``after`` in the second.

    ``request`` None: the rules may differ for some request, but the search for one gave up.
    """

    request: Request | None
    before: Decision
    after: Decision


def diff(a: Policy, b: Policy) -> list[Change]:
    """Every pair of rules that decide some request differently, in the order of ``a`` and then of ``b``.

    Different is: another level, other stages recorded, or bodies with and without managedFields. An empty list is a
    proof that the policies record the same. Policies must have their namespaceSelectors resolved (ValueError).
    """
    return list(_changes(a, b))


def _changes(a: Policy, b: Policy) -> Iterator[Change]:
    evaluators = Evaluator(a), Evaluator(b)
    end = Rule(level=Level.NONE)
    rules_a, rules_b = (*a.rules, end), (*b.rules, end)
    index = RegionIndex([Region.of(rule) for rule in rules_b])
    for i, one in enumerate(rules_a):
        meets, covers = index.relations(Region.of(one))
        last = (covers & -covers).bit_length() - 1
        for j, other in enumerate(rules_b[: last + 1]):
            before, after = evaluators[0].outcome(i), evaluators[1].outcome(j)
            if not meets >> j & 1 or _recorded(before) == _recorded(after):
                continue
            try:
                request = witness.find([one, other], [*a.rules[:i], *b.rules[:j]])
            except witness.Unknown:
                yield Change(None, before, after)
                continue
            if request is not None:
                yield Change(request, before, after)


def _recorded(decision: Decision) -> tuple[object, ...]:
    """What of a decision shows in events."""
    kept = frozenset(STAGES) - decision.omit_stages
    if decision.level is Level.NONE or not kept:
        return (Level.NONE,)
    return decision.level, kept, decision.level >= Level.REQUEST and decision.omit_managed_fields
