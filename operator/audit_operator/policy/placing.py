"""Regions with the outcome that is enough for all policies there, in the order in which a server tries them.

For a region and a policy, the outcome is bounded by the policy's rules that meet the region, up to the first that
covers it, without those that are *placed*: a rule is placed once its region has been emitted, because a request that
still comes by did not match it. So any list of regions in any order is sound; order and choice of regions only make it
tight.

* Rules are placed policy by policy in order (interleaved), so a rule's own outcome is exact when its turn comes.
* Where the others make a region's outcome uncertain (some of its requests need less), the region is first split by the
  rules that do (this is the product of the policies, built only where it pays), within a budget.

Behind the result may stand a *base*, a list that is already there. It is one more policy, of which nothing is placed:
regions are enough for it too, and what it has enough for is not placed unless it is an exception to what is.

All policies' rules are bits of one integer, a segment per policy.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from audit_operator.policy.bitsets import mask, positions
from audit_operator.policy.model import STAGES, Level, Stage
from audit_operator.policy.outcome import NOTHING, Outcome
from audit_operator.policy.region import BOTH, RESOURCE, Region, RegionIndex

_SPLIT_DEPTH = 3


class Splitting(NamedTuple):
    """How far a region is split: into how many, and how many regions in all may stand for one rule."""

    regions: int
    in_all: int


FINE = Splitting(48, 256)
COARSE = Splitting(8, 16)
COARSER = Splitting(2, 4)
NONE = Splitting(0, 0)
"""Every rule once: the result is not longer than what it is made of."""


class Entry(msgspec.Struct, frozen=True):
    """A rule as the union sees it. Optional: it matches or not, by labels nobody knows here."""

    region: Region
    outcome: Outcome
    optional: bool = False


_NO_NAMESPACE = frozenset({""})
_WITHOUT_NAMESPACE = Region(scope=RESOURCE, namespaces=_NO_NAMESPACE)


class _Wants:
    """Each thing that can be asked for, and which bits ask for it."""

    def __init__(self, entries_: Sequence[Entry | None]) -> None:
        same: dict[Outcome, list[int]] = {}
        for i, entry in enumerate(entries_):
            if entry:
                same.setdefault(entry.outcome, []).append(i)

        def asking(test: Callable[[Outcome], bool]) -> int:
            return mask(i for outcome, rules in same.items() if test(outcome) for i in rules)

        self.levels = {
            level: asking(partial(_reaches, level)) for level in (Level.REQUEST_RESPONSE, Level.REQUEST, Level.METADATA)
        }
        self.stages = {stage: asking(partial(_keeps, stage)) for stage in STAGES}
        self.managed_fields = asking(lambda outcome: not outcome.omit_managed_fields)
        self.all = (*self.levels.values(), *self.stages.values(), self.managed_fields)

    def outcome(self, live: int) -> Outcome:
        """Enough for all of these rules."""
        for level, asking in self.levels.items():
            if live & asking:
                return Outcome(
                    level,
                    frozenset(stage for stage, asking in self.stages.items() if not live & asking),
                    not live & self.managed_fields,
                )
        return NOTHING


def _reaches(level: Level, outcome: Outcome) -> bool:
    return outcome.level >= level


def _keeps(stage: Stage, outcome: Outcome) -> bool:
    return stage not in outcome.omit_stages


class Placed(NamedTuple):
    """A region and the outcome that is enough for it. Falls: without it, its requests would have enough in the base."""

    region: Region
    outcome: Outcome
    falls: bool


def place(
    policies: Sequence[tuple[Entry, ...]], base: tuple[Entry, ...] = (), splitting: Splitting = COARSE
) -> list[Placed]:
    """What to put before ``base`` so that every request has enough for these policies and for the base.

    Args:
        policies: the rules of each.
        base: a list of rules for certain, which will stand behind the result.
        splitting: how much may be spent on exactness.

    """
    builder = _Builder(policies, base, splitting)
    builder.run()
    return builder.emitted


class _Builder:
    """Emits regions with their outcomes, first match first."""

    def __init__(self, policies: Sequence[tuple[Entry, ...]], base: tuple[Entry, ...], splitting: Splitting) -> None:
        # A segment per policy: its rules, then "no rule matched", then a bit that stays clear for carries.
        layout: list[Entry | None] = []
        starts, ends = [], []
        self._segment: dict[int, tuple[int, int]] = {}
        for policy in (*policies, base):
            start = len(layout)
            starts.append(start)
            layout += [*policy, None, None]
            ends.append(len(layout) - 2)
            self._segment |= dict.fromkeys(range(start, start + len(policy)), (start, (1 << len(policy)) - 1))
        self._entries = layout
        self._starts = mask(starts)
        self._ends = mask(ends)
        self._tops = self._ends << 1
        self._ones = self._tops - self._starts
        self._base = mask(range(starts[-1], len(layout)))
        self._certain = mask(i for i, entry in enumerate(layout) if entry and not entry.optional)
        self._wants = _Wants(layout)
        self._index = RegionIndex([entry.region if entry else None for entry in layout])
        self._to_place = self._more_than_base(mask(self._segment) & ~self._base)
        self._rules = self._to_place | (mask(self._segment) & self._base)
        self._splits, self._row = splitting
        self._row_end = 0
        self.emitted: list[Placed] = []

    def run(self) -> None:
        self._split(Region(), self._rules, self._to_place, (self._rules, -1), 0)

    def _more_than_base(self, rules: int) -> int:
        """Without the rules for which the base has enough, unless a later one of the same policy meets them.

        Then they stay, as its exceptions.
        """
        if not any(bits & self._base for bits in self._wants.all):
            return rules
        kept = 0
        for position in reversed(list(positions(rules))):
            start, ones = self._segment[position]
            meets, covers = self._relations(self._region(position))
            later = (ones << start) & -(2 << position) & kept
            if meets & later or not self._falls((meets & self._base) | 1 << position, self._reach(covers)):
                kept |= 1 << position
        return kept

    def _falls(self, live: int, reach: int) -> bool:
        """Whether the base has, all over the region, what the live rules of the policies ask for."""
        own = live & ~self._base
        base = live & reach & self._base
        silent = reach & self._ends & self._base
        return not any(own & asking and (silent or base & ~asking) for asking in self._wants.all)

    def _emit(self, region: Region, live: int, reach: int) -> None:
        self.emitted.append(Placed(region, self._wants.outcome(live), self._falls(live, reach)))

    def _place(self, region: Region, pending: int, depth: int) -> None:
        """Emit the region so that every request in it that comes by has enough.

        ``pending``: the rules that such a request may still match.
        """
        meets, covers = self._relations(region)
        if covers & self._rules & ~pending:
            return  # all of it has been emitted before
        reach = self._reach(covers)
        live = meets & reach & pending
        if depth == 1:
            self._row_end = len(self.emitted) + self._row
        if depth < _SPLIT_DEPTH and len(self.emitted) < self._row_end and self._uncertain(live, reach):
            pending = self._split(region, pending, self._splitters(live & ~covers, live, reach), (meets, reach), depth)
            live = meets & reach & pending
        self._emit(region, live, reach)

    def _relations(self, region: Region) -> tuple[int, int]:
        """Rules that may match a request of the region, and rules whose region covers it."""
        meets, covers = self._index.relations(region)
        # No selector selects a request without a namespace.
        return (meets & self._certain if region.namespaces == _NO_NAMESPACE else meets), covers

    def _reach(self, covers: int) -> int:
        """Per segment, the bits up to and including the first rule for certain that covers, or its end."""
        first = (covers & self._certain) | self._ends
        return first ^ (first - self._starts)

    def _split(self, region: Region, pending: int, rules: int, bounds: tuple[int, int], depth: int) -> int:
        """Place what these rules and the region share, and return what is still pending behind it.

        Each policy's rules in order; first, whichever they are, those whose outcome is certain.
        """
        queues: dict[int, list[int]] = {}
        if depth and rules.bit_count() > self._splits:
            pending, rules = self._lump(region, pending, rules)
        for position in positions(rules):
            queues.setdefault(self._segment[position][0], []).append(position)
        inners: dict[int, Region] = {}
        splits = 0
        while queues:
            waiting: list[tuple[int, int]] = []
            for start, queue in list(queues.items()):
                while queue:
                    position = queue[0]
                    if position not in inners:
                        entry = self._entries[position]
                        assert entry is not None  # noqa: S101 - positions of rules only
                        inners[position] = (region & entry.region or region) if depth else entry.region
                        outside = entry.optional and inners[position] & _WITHOUT_NAMESPACE
                        if outside:
                            self._place(outside, pending, _SPLIT_DEPTH)
                    inner = inners[position]
                    if inner == region and depth:
                        queue.pop(0)
                        continue
                    meets, covers = self._relations(inner)
                    if not covers & self._rules & ~pending:
                        reach = self._reach(covers)
                        live = meets & reach & pending
                        if self._uncertain(live, reach):
                            waiting.append(((live & ~covers).bit_count(), start))
                            break
                        self._emit(inner, live, reach)
                    queue.pop(0)
                    pending &= ~(1 << position)
                if not queue:
                    del queues[start]
            waiting.sort()
            for _, start in waiting[: 1 + len(waiting) // 16]:
                meets, reach = bounds
                if depth and (splits > self._splits or not self._uncertain(meets & reach & pending, reach)):
                    return pending
                splits += 1
                position = queues[start].pop(0)
                self._place(inners[position], pending, depth + 1)
                pending &= ~(1 << position)
                if not queues[start]:
                    del queues[start]
        return pending

    def _lump(self, region: Region, pending: int, rules: int) -> tuple[int, int]:
        """Place what the region shares with all rules of some namespaces, or of some users, as one region each.

        Coarse, but only there; splitting by each of very many would take forever and help nobody.
        """
        for field in ("namespaces", "users"):
            if getattr(region, field) is not None:
                continue
            lumped = [p for p in positions(rules) if getattr(self._region(p), field) is not None]
            if len(lumped) > 1:
                values = frozenset().union(*(getattr(self._region(p), field) for p in lumped))
                scope = RESOURCE if field == "namespaces" else BOTH
                inner = region & msgspec.structs.replace(Region(scope=scope), **{field: values})
                if inner is not None:
                    self._place(inner, pending, _SPLIT_DEPTH)
                    pending &= ~mask(lumped)
                    rules &= ~mask(lumped)
        return pending, rules

    def _region(self, position: int) -> Region:
        entry = self._entries[position]
        assert entry is not None  # noqa: S101 - positions of rules only
        return entry.region

    def _uncertain(self, live: int, reach: int) -> list[int]:
        """The wants that some live rule has and no policy has for certain all over the region."""
        undecided = reach & self._ends
        result = []
        for asking in self._wants.all:
            if not live & asking:
                continue
            # A segment is certain if it cannot end in anything that does not ask: then no carry reaches its top bit.
            otherwise = (live & ~asking) | undecided
            if (otherwise + self._ones) & self._tops == self._tops:
                result.append(asking)
        return result

    def _splitters(self, crossing: int, live: int, reach: int) -> int:
        """The rules that meet the region without covering it and stand before, or are, a cause of uncertainty."""
        uncertain = self._uncertain(live, reach)
        chosen = []
        for position in positions(crossing):
            start, ones = self._segment[position]
            rest = ones & -(1 << (position - start))
            if any((live & asking) >> start & rest for asking in uncertain):
                chosen.append(position)
        return mask(chosen)
