"""Which requests fare differently under two policies, each difference with a request that proves it."""

from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from audit_operator.policy.evaluate import Evaluator, bits, namespace_matches
from audit_operator.policy.model import STAGES, Decision, Level, Policy, Request, Rule
from audit_operator.policy.region import Region
from audit_operator.policy.witness import Finder, Unknown, comparable


class Change(msgspec.Struct, frozen=True):
    """Requests like ``request`` are decided by ``before`` in the first policy and by ``after`` in the second.

    ``request`` None: the rules may differ for some request, but the search for one gave up.
    """

    request: Request | None
    before: Decision
    after: Decision


class Diff(NamedTuple):
    """``changes`` in the order of the first policy's rules and then of the second's.

    ``complete`` False: the policies are too large or too tangled to compare all of their rules; what is here is true,
    and there may be more.
    """

    changes: tuple[Change, ...]
    complete: bool = True


MOST_CHANGES: Final = 10_000
"""Changes after which nobody reads on."""

_BUDGET: Final = 1_500_000
"""Combinations tried to find requests: some seconds."""


def diff(a: Policy, b: Policy) -> Diff:
    """Every pair of rules that decide some request differently.

    Different is: another level, other stages recorded, or bodies with and without managedFields. No changes, and
    complete, is a proof that the policies record the same. Policies must have their namespaceSelectors resolved
    (ValueError).
    """
    for rule in (*a.rules, *b.rules):
        namespace_matches(rule, "")  # refuses an unresolved namespaceSelector
    if a == b:
        return Diff(())
    if not (comparable(a.rules) and comparable(b.rules)):
        return Diff((), complete=False)
    finder = Finder([*a.rules, *b.rules, Rule(level=Level.NONE)], budget=_BUDGET)
    changes = tuple(islice(_changes(a, b, finder), MOST_CHANGES + 1))
    return Diff(changes[:MOST_CHANGES], complete=len(changes) <= MOST_CHANGES and not finder.exhausted)


def _changes(a: Policy, b: Policy, finder: Finder) -> Iterator[Change]:
    end = Rule(level=Level.NONE)
    decisions_a, decisions_b = _decisions(a), _decisions(b)
    start = len(a.rules)
    ones = (1 << len(b.rules) + 1) - 1
    # Behind the first rule of ``a`` that covers it, a rule of ``b`` meets none of a's requests: of two texts that are
    # nearly the same, hardly any pair is left to look at.
    open_, covered_by = ones, dict[int, int]()
    for j, other in enumerate((*b.rules, end)):
        covers = finder.relations(Region.of(other))[1] & ((1 << start) - 1)
        if covers:
            first = (covers & -covers).bit_length() - 1
            covered_by[first] = covered_by.get(first, 0) | 1 << j
    alike: dict[tuple[object, ...], int] = {}
    for decision in decisions_b:
        key = _recorded(decision)
        if key not in alike:
            alike[key] = bits(_recorded(other) == key for other in decisions_b)
    for i, one in enumerate((*a.rules, end)):
        before = decisions_a[i]
        meets, covers = (mask >> start & ones for mask in finder.relations(Region.of(one)))
        reach = meets & (covers ^ (covers - 1)) & open_ & ~alike.get(_recorded(before), 0)
        open_ &= ~covered_by.get(i, 0)
        while reach:
            j = (reach & -reach).bit_length() - 1
            reach &= reach - 1
            if finder.exhausted:
                return
            must = [one, b.rules[j] if j < len(b.rules) else end]
            try:
                request = finder.find(must, (1 << i) - 1 | ((1 << j) - 1) << start)
            except Unknown:
                yield Change(None, before, decisions_b[j])
                continue
            if request is not None:
                yield Change(request, before, decisions_b[j])


def _decisions(policy: Policy) -> list[Decision]:
    """What each rule decides, and last what is decided when none matches."""
    evaluator = Evaluator(policy)
    return [evaluator.outcome(index) for index in range(len(policy.rules) + 1)]


def _recorded(decision: Decision) -> tuple[object, ...]:
    """What of a decision shows in events."""
    kept = frozenset(STAGES) - decision.omit_stages
    if decision.level is Level.NONE or not kept:
        return (Level.NONE,)
    return decision.level, kept, decision.level >= Level.REQUEST and decision.omit_managed_fields
