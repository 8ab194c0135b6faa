"""Many lists of rules united as a tree of small unions that are remembered by content.

What a list is called and who wrote it plays no part: lists that say the same are one.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b

import msgspec

from audit_operator.policy.generalize import generalized
from audit_operator.policy.model import Policy
from audit_operator.policy.outcome import NOTHING, outcome_of
from audit_operator.policy.placing import COARSE, COARSER, FINE, NONE, Entry, place
from audit_operator.policy.region import Region
from audit_operator.policy.simplify import Rules, simplified

_BRANCHES = 8

# Up to this many rules get all the exactness there is; more of them get what is worth its time.
_FEW = 400

# No union of the tree has more rules, unless one of those it is made of has: it is made less exact until it fits.
_LARGEST = 1000
_SHORT = 24


class Source:
    """The meaning of a policy or of a union of some, without names and origins.

    ``optional``: some rule matches or not, by labels nobody knows here.
    """

    __slots__ = ("_hash", "digest", "entries", "optional", "order")

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        self.entries = entries
        self.optional = any(entry.optional for entry in entries)
        written = [(_written(entry.region), entry.outcome, entry.optional) for entry in entries]
        self.digest = blake2b(msgspec.json.encode(written, order="deterministic"), digest_size=16).digest()
        # Cluster-wide policies side by side, and those that differ in users and namespaces only: they merge early.
        wide = sum(entry.region.users is None and entry.region.namespaces is None for entry in entries)
        shape = [_written(msgspec.structs.replace(entry.region, users=None, namespaces=None)) for entry in entries]
        self.order = 2 * wide > len(entries), msgspec.json.encode(shape), self.digest
        self._hash = hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Source) and self.digest == other.digest)

    def __hash__(self) -> int:
        return self._hash


def _written(region: Region) -> tuple[object, ...]:
    """The region as it is written everywhere: sets have no order of their own."""
    fields = (region.users, region.user_groups, region.verbs, region.namespaces, region.paths)
    atoms = (
        None if region.atoms is None else sorted([[part or "", part is None] for part in atom] for atom in region.atoms)
    )
    return region.scope, atoms, *(None if values is None else sorted(values) for values in fields)


@lru_cache(maxsize=4096)
def source_of(policy: Policy) -> Source:
    """The policy without what can never match behind a catch-all, and without a tail that records nothing."""
    result: list[Entry] = []
    for rule in policy.rules:
        optional = rule.namespace_selector is not None
        result.append(Entry(Region.of(rule), outcome_of(policy, rule), optional))
        if not optional and result[-1].region == Region():
            break
    return trimmed(result)


def trimmed(entries: Sequence[Entry]) -> Source:
    """The rules without a tail that records nothing."""
    end = len(entries)
    while end and entries[end - 1].outcome == NOTHING:
        end -= 1
    return Source(tuple(entries[:end]))


def listed(rules: Rules) -> Source:
    """The rules, all for certain."""
    return Source(tuple(Entry(region, outcome) for region, outcome in rules))


def rules_of(source: Source) -> Rules:
    """The rules of a source in which none is optional."""
    return [(entry.region, entry.outcome) for entry in source.entries]


@lru_cache(maxsize=2048)
def united(sources: tuple[Source, ...]) -> Source:
    """The union of a few, without optional rules."""
    sizes = [len(one.entries) for one in sources]
    few = sum(sizes) <= _FEW
    limit = max([_LARGEST, *sizes])
    for splitting in (FINE, COARSE, COARSER, NONE) if few else (COARSE, COARSER, NONE):
        placed = place([one.entries for one in sources], splitting=splitting)
        rules = simplified([(region, outcome) for region, outcome, _ in placed], rounds=1)
        if len(rules) > limit:
            rules = simplified(rules, rounds=8)
        if len(rules) <= limit:
            return listed(rules)
    return listed(generalized(rules, limit))


@lru_cache(maxsize=2048)
def roughly_united(sources: tuple[Source, ...]) -> Source:
    """A short list that asks for at least what these ask for; none of them has optional rules."""
    return listed(generalized([rule for one in sources for rule in rules_of(one)], _SHORT))


Unite = Callable[[tuple[Source, ...]], Source]


def fold(sources: Iterable[Source], unite: Unite = united) -> Source:
    """The union of all, without optional rules: one changed policy costs one path to the root."""
    level = {united((one,)) if one.optional else one for one in sources}
    while len(level) > 1:
        level = {unite(tuple(branch)) for branch in branches(level)}
    return level.pop() if level else Source(())


def branches(sources: Iterable[Source]) -> list[list[Source]]:
    """The sources in groups of a few.

    Where a group ends depends on the contents alone, so that a change moves the groups next to it at most.
    """
    groups: list[list[Source]] = [[]]
    for one in sorted(sources, key=_order):
        last = groups[-1]
        if len(last) >= 2 * _BRANCHES or (len(last) >= 2 and last[-1].digest[0] % _BRANCHES == 0):
            groups.append([])
        groups[-1].append(one)
    return groups


def _order(source: Source) -> tuple[bool, bytes, bytes]:
    return source.order
