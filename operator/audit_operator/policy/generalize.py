"""Too many rules made few: they ask for more than before, never for less."""

from collections.abc import Hashable, Sequence
from functools import reduce
from itertools import chain
from typing import TypeVar

from audit_operator.policy.bitsets import positions
from audit_operator.policy.outcome import NOTHING, Outcome
from audit_operator.policy.region import BOTH, NON_RESOURCE, Atom, Region, RegionIndex, normal
from audit_operator.policy.simplify import Rules, simplified

_T = TypeVar("_T")

_DETAILS = 6


def generalized(rules: Rules, limit: int) -> Rules:
    """At most ``limit`` rules, 1 or more, that ask for at least as much.

    Exceptions go first: a rule asks for what all that meet it ask for, whichever comes first. Then rules that have the
    most in common become one that holds all their requests, the largest families first.
    """
    wanted = [rule for rule in rules if rule[1] != NOTHING]
    for detail in range(_DETAILS):
        if len(wanted) > limit:
            wanted = _with_families_as_one(wanted, limit, detail)
    wanted.sort(key=lambda rule: -rule[1].level)  # what asks for the most decides
    index = RegionIndex([region for region, _ in wanted])
    result = []
    for i, (region, outcome) in enumerate(wanted):
        meets, _ = index.relations(region)
        result.append((region, reduce(Outcome.with_, (wanted[j][1] for j in positions(meets >> i << i)), outcome)))
    return simplified(result, rounds=1)


def _with_families_as_one(rules: Rules, limit: int, detail: int) -> Rules:
    families: dict[Hashable, Rules] = {}
    for rule in rules:
        families.setdefault(_family(*rule, detail), []).append(rule)
    result: Rules = []
    too_many = len(rules) - limit
    for family in sorted(families.values(), key=len, reverse=True):
        if too_many <= 0 or len(family) == 1:
            result += family
        else:
            too_many -= len(family) - 1
            regions = [region for region, _ in family]
            result.append((_hull(regions), reduce(Outcome.with_, (outcome for _, outcome in family))))
    return result


def _family(region: Region, outcome: Outcome, detail: int) -> Hashable:
    """What rules have in common that may become one: less and less of it, as more details are given up."""
    atoms = region.atoms or frozenset()
    said = region.scope, *(getattr(region, field) is None for field in _FIELDS)
    but_for_who_and_where = outcome, said, region.verbs, region.user_groups, region.paths
    if detail == 0:
        return but_for_who_and_where, atoms
    if detail == 1:
        return but_for_who_and_where, frozenset(atom[:-1] for atom in atoms)  # objects' names
    if detail == 2:
        return but_for_who_and_where, frozenset(atom.group for atom in atoms)
    return ((outcome, said, region.verbs), outcome, None)[detail - 3]


_FIELDS = ("users", "user_groups", "verbs", "namespaces", "atoms", "paths")


def _hull(regions: Sequence[Region]) -> Region:
    """A region that a rule can say, and that holds the requests of all."""
    scope = reduce(int.__or__, (region.scope for region in regions))
    namespaces = _either([region.namespaces for region in regions])
    atoms: frozenset[Atom] | None = _either([region.atoms for region in regions])
    if scope & NON_RESOURCE or (namespaces is None and atoms is None):
        namespaces = atoms = None
        scope = scope if scope == NON_RESOURCE else BOTH
    return normal(
        Region(
            scope=scope,
            users=_either([region.users for region in regions]),
            user_groups=_either([region.user_groups for region in regions]),
            verbs=_either([region.verbs for region in regions]),
            namespaces=namespaces,
            atoms=atoms,
            paths=_either([region.paths for region in regions]) if scope == NON_RESOURCE else None,
        )
    )


def _either(fields: Sequence[frozenset[_T] | None]) -> frozenset[_T] | None:
    said = [values for values in fields if values is not None]
    return frozenset(chain.from_iterable(said)) if len(said) == len(fields) else None
