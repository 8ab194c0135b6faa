"""One server policy that records at least what every policy needs: sound always, tight and small where it can be.

How it works. A server policy is built as a list of regions; each gets the outcome that is enough for every request
that can reach it. For a region and a policy, that outcome is bounded by the policy's rules that meet the region, up to
the first that covers it, without those that are *placed*: a rule is placed once its region has been emitted, because a
request that still comes by did not match it. So any list of regions in any order is sound; order and choice of regions
only make it tight.

* Rules are placed policy by policy in order (interleaved), so a rule's own outcome is exact when its turn comes.
* Where the others make a region's outcome uncertain (some of its requests need less), the region is first split by the
  rules that do (this is the product of the policies, built only where it pays), within a budget.

Then the list is simplified: covered rules go, rules that change nothing go, rules of one shape merge, so that a
thousand tenants who differ only in their namespace cost what one does.

All policies' rules are bits of one integer, a segment per policy, so a question to a thousand policies is a handful
of integer operations.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from hashlib import blake2b

import msgspec

from audit_operator.policy.model import STAGES, Level, Policy, Rule, Stage
from audit_operator.policy.region import BOTH, NON_RESOURCE, RESOURCE, Region, RegionIndex, entries, normal

# How far a region is split. Few policies get all the exactness there is; many get what is worth its time: at most
# (splits of a region, regions in all) behind one rule.
_SPLIT_DEPTH = 3
_FEW_RULES = 400
_SPLITS_FEW = (48, 256)
_SPLITS_MANY = (8, 16)
_BRANCHES = 8


class Outcome(msgspec.Struct, frozen=True):
    """What a server policy does with a request."""

    level: Level
    omit_stages: frozenset[Stage]
    omit_managed_fields: bool


NOTHING = Outcome(Level.NONE, frozenset(STAGES), omit_managed_fields=True)
"""The outcome of a request that nobody wants; the least there is."""


def union(policies: Iterable[Policy]) -> Policy:
    """The server policy that records at least what each policy needs.

    Minimal counts as Metadata (an API server has no Minimal). A rule with a namespaceSelector may match in any
    namespace or in none, so that a label never changes the result. The order of the policies does not matter.

    Args:
        policies: any number, with any rules.

    Returns:
        a policy without Minimal and namespaceSelector, in which for every request level, stages and managedFields are
        at least what each policy asks for. Without input, or if nobody wants anything: one rule of level None (an API
        server refuses an empty list).

    """
    return _policy(_simplified(list(_fold({_source(policy) for policy in policies})), rounds=8))


def outcome_of(policy: Policy, rule: Rule) -> Outcome:
    """What the rule, when it decides, asks of a server."""
    level = rule.level.server
    if level is Level.NONE:
        return NOTHING
    omit = policy.omit_managed_fields if rule.omit_managed_fields is None else rule.omit_managed_fields
    return Outcome(level, policy.omit_stages | rule.omit_stages, omit or level < Level.REQUEST)


class _Entry(msgspec.Struct, frozen=True):
    """A rule as the union sees it. Optional: it matches or not, by labels nobody knows here."""

    region: Region
    outcome: Outcome
    optional: bool


_NO_NAMESPACE = frozenset({""})
_WITHOUT_NAMESPACE = Region(scope=RESOURCE, namespaces=_NO_NAMESPACE)


class _Source:
    """The meaning of a policy or of a union of some, without names and origins."""

    __slots__ = ("digest", "entries", "order")

    def __init__(self, entries_: tuple[_Entry, ...]) -> None:
        self.entries = entries_
        written = [(_written(entry.region), entry.outcome, entry.optional) for entry in entries_]
        self.digest = blake2b(msgspec.json.encode(written, order="deterministic"), digest_size=16).digest()
        # Cluster-wide policies side by side, and those that differ in users and namespaces only: they merge early.
        wide = sum(entry.region.users is None and entry.region.namespaces is None for entry in entries_)
        shape = [_written(msgspec.structs.replace(entry.region, users=None, namespaces=None)) for entry in entries_]
        self.order = 2 * wide > len(entries_), msgspec.json.encode(shape), self.digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Source) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def _written(region: Region) -> tuple[object, ...]:
    """The region as it is written everywhere: sets have no order of their own."""
    fields = (region.users, region.user_groups, region.verbs, region.namespaces, region.paths)
    atoms = (
        None if region.atoms is None else sorted([[part or "", part is None] for part in atom] for atom in region.atoms)
    )
    return region.scope, atoms, *(None if values is None else sorted(values) for values in fields)


@lru_cache(maxsize=4096)
def _source(policy: Policy) -> _Source:
    """The policy without what can never match behind a catch-all, and without a tail that records nothing."""
    result: list[_Entry] = []
    for rule in policy.rules:
        optional = rule.namespace_selector is not None
        result.append(_Entry(Region.of(rule), outcome_of(policy, rule), optional))
        if not optional and result[-1].region == Region():
            break
    while result and result[-1].outcome == NOTHING:
        result.pop()
    return _Source(tuple(result))


def _fold(sources: Iterable[_Source]) -> tuple[tuple[Region, Outcome], ...]:
    """The union of all, as a tree of small unions that are remembered: one changed policy costs one path to the root.

    Where the tree branches depends on the contents alone, so that a change moves the branches next to it at most.
    """
    level = sorted((_united((source,)) for source in sources), key=_order)
    while len(level) > 1:
        groups: list[list[_Source]] = [[]]
        for source in level:
            groups[-1].append(source)
            if len(groups[-1]) >= 2 and (source.digest[0] % _BRANCHES == 0 or len(groups[-1]) >= 2 * _BRANCHES):
                groups.append([])
        level = sorted((_united(tuple(group)) for group in groups if group), key=_order)
    return tuple((entry.region, entry.outcome) for source in level for entry in source.entries)


def _order(source: _Source) -> tuple[bool, bytes, bytes]:
    return source.order


@lru_cache(maxsize=4096)
def _united(sources: tuple[_Source, ...]) -> _Source:
    if len(sources) == 1 and not any(entry.optional for entry in sources[0].entries):
        return sources[0]
    builder = _Builder([source.entries for source in sources])
    builder.run()
    rules = _simplified(builder.emitted, rounds=1)
    return _Source(tuple(_Entry(region, outcome, optional=False) for region, outcome in rules))


class _Wants:
    """Each thing that can be asked for, and which bits ask for it."""

    def __init__(self, entries_: Sequence[_Entry | None]) -> None:
        def asking(test: Callable[[Outcome], bool]) -> int:
            return _mask(i for i, entry in enumerate(entries_) if entry and test(entry.outcome))

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


class _Builder:
    """Emits regions with their outcomes, first match first."""

    def __init__(self, policies: Sequence[tuple[_Entry, ...]]) -> None:
        # A segment per policy: its rules, then "no rule matched", then a bit that stays clear for carries.
        layout: list[_Entry | None] = []
        starts, ends = [], []
        self._segment: dict[int, tuple[int, int]] = {}
        for policy in policies:
            start = len(layout)
            starts.append(start)
            layout += [*policy, None, None]
            ends.append(len(layout) - 2)
            self._segment |= dict.fromkeys(range(start, start + len(policy)), (start, (1 << len(policy)) - 1))
        self._entries = layout
        self._starts = _mask(starts)
        self._ends = _mask(ends)
        self._tops = self._ends << 1
        self._ones = self._tops - self._starts
        self._rules = _mask(self._segment)
        self._certain = _mask(i for i, entry in enumerate(layout) if entry and not entry.optional)
        self._wants = _Wants(layout)
        self._index = RegionIndex([entry.region if entry else None for entry in layout])
        self._splits, self._row = _SPLITS_FEW if len(self._segment) <= _FEW_RULES else _SPLITS_MANY
        self._row_end = 0
        self.emitted: list[tuple[Region, Outcome]] = []

    def run(self) -> None:
        self._split(Region(), self._rules, self._rules, (self._rules, -1), 0)

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
        self.emitted.append((region, self._wants.outcome(live)))

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
        for position in _positions(rules):
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
                        inners[position] = region & entry.region or region
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
                        self.emitted.append((inner, self._wants.outcome(live)))
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
            lumped = [p for p in _positions(rules) if getattr(self._region(p), field) is not None]
            if len(lumped) > 1:
                values = frozenset().union(*(getattr(self._region(p), field) for p in lumped))
                scope = RESOURCE if field == "namespaces" else BOTH
                inner = region & msgspec.structs.replace(Region(scope=scope), **{field: values})
                if inner is not None:
                    self._place(inner, pending, _SPLIT_DEPTH)
                    mask = _mask(lumped)
                    pending &= ~mask
                    rules &= ~mask
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
        for position in _positions(crossing):
            start, ones = self._segment[position]
            rest = ones & -(1 << (position - start))
            if any((live & asking) >> start & rest for asking in uncertain):
                chosen.append(position)
        return _mask(chosen)


def _positions(mask: int) -> Iterator[int]:
    """The set bits, lowest first."""
    offset = 0
    for byte in mask.to_bytes((mask.bit_length() + 7) // 8, "little"):
        if byte:
            for bit in range(8):
                if byte >> bit & 1:
                    yield offset + bit
        offset += 8


def _mask(indices: Iterable[int]) -> int:
    positions = list(indices)
    buffer = bytearray(max(positions, default=0) // 8 + 1)
    for position in positions:
        buffer[position >> 3] |= 1 << (position & 7)
    return int.from_bytes(buffer, "little")


def _simplified(rules: list[tuple[Region, Outcome]], rounds: int) -> list[tuple[Region, Outcome]]:
    """Fewer rules with the same outcome for every request. Ends when a round is no longer worth its time."""
    for _ in range(rounds):
        size = len(rules)
        rules = _merged(_needed(rules))
        if len(rules) > 0.98 * size:
            break
    return rules


def _by_outcome(rules: Sequence[tuple[Region, Outcome]]) -> dict[Outcome, int]:
    groups: dict[Outcome, list[int]] = {}
    for i, (_, outcome) in enumerate(rules):
        groups.setdefault(outcome, []).append(i)
    return {outcome: _mask(positions) for outcome, positions in groups.items()}


def _needed(rules: list[tuple[Region, Outcome]]) -> list[tuple[Region, Outcome]]:
    """Without rules that an earlier one covers, and without those whose requests fare the same without them."""
    index = RegionIndex([region for region, _ in rules])
    same = _by_outcome(rules)
    kept = (1 << len(rules)) - 1
    relations = [index.relations(region) for region, _ in rules]
    for i, (_, covers) in enumerate(relations):
        if covers & kept & ((1 << i) - 1):
            kept &= ~(1 << i)
    for i in range(len(rules) - 1, -1, -1):
        if not kept >> i & 1:
            continue
        meets, covers = relations[i]
        later = kept & -(2 << i)
        covering = covers & later
        reach = later & ((covering ^ (covering - 1)) if covering else -1)
        outcome = rules[i][1]
        ends_alike = covering or outcome == NOTHING
        if ends_alike and not meets & reach & ~same[outcome]:
            kept &= ~(1 << i)
    return [rule for i, rule in enumerate(rules) if kept >> i & 1]


_MERGEABLE = ("namespaces", "atoms", "verbs", "users", "user_groups", "paths")


def _merged(rules: list[tuple[Region, Outcome]]) -> list[tuple[Region, Outcome]]:
    """Rules of one outcome that differ in one field become one, where moving the later one up changes nothing."""
    for field in _MERGEABLE:
        shapes = _shapes(field, rules)
        if len(set(shapes)) < len(shapes):
            rules = _merged_in(field, shapes, rules)
    return rules


def _shapes(field: str, rules: Sequence[tuple[Region, Outcome]]) -> list[Hashable]:
    """Per rule what two rules must share to be merged in this field; unique where the field is open."""
    others = [other for other in _MERGEABLE if other != field]
    return [
        i if getattr(region, field) is None else (outcome, region.scope, *[getattr(region, other) for other in others])
        for i, (region, outcome) in enumerate(rules)
    ]


def _merged_in(
    field: str, shapes: Sequence[Hashable], rules: list[tuple[Region, Outcome]]
) -> list[tuple[Region, Outcome]]:
    index = RegionIndex([region for region, _ in rules])
    same = _by_outcome(rules)
    heads: dict[Hashable, int] = {}
    members: dict[int, list[int]] = {}
    for i, (region, outcome) in enumerate(rules):
        head = heads.get(shapes[i])
        if head is not None:
            meets, _ = index.relations(region)
            if not meets & ((1 << i) - (2 << head)) & ~same[outcome]:
                members[head].append(i)
                continue
        heads[shapes[i]] = i
        members[i] = [i]
    result = []
    for head, group in sorted(members.items()):
        region, outcome = rules[head]
        if len(group) > 1:
            values = frozenset().union(*(getattr(rules[i][0], field) for i in group))
            region = normal(msgspec.structs.replace(region, **{field: values}))
        result.append((region, outcome))
    return result


def _policy(rules: Sequence[tuple[Region, Outcome]]) -> Policy:
    """The list as a policy, with what all its rules share said once, for the whole policy."""
    recorded = [outcome for _, outcome in rules if outcome != NOTHING]
    if not recorded:
        return Policy(rules=(Rule(level=Level.NONE),))
    stages = frozenset.intersection(*(outcome.omit_stages for outcome in recorded))
    bodies = [outcome for outcome in recorded if outcome.level >= Level.REQUEST]
    managed_fields = bool(bodies) and all(outcome.omit_managed_fields for outcome in bodies)
    return Policy(
        rules=tuple(_rule(region, outcome, stages, managed_fields) for region, outcome in rules),
        omit_stages=stages,
        omit_managed_fields=managed_fields,
    )


def _rule(region: Region, outcome: Outcome, stages: frozenset[Stage], managed_fields: bool) -> Rule:
    nothing = outcome == NOTHING
    own_choice = outcome.level >= Level.REQUEST and outcome.omit_managed_fields != managed_fields
    return Rule(
        level=outcome.level,
        users=_listed(region.users),
        user_groups=_listed(region.user_groups),
        verbs=_listed(region.verbs),
        namespaces=_listed(region.namespaces),
        resources=entries(region.atoms) if region.atoms is not None else (),
        non_resource_urls=_listed(frozenset("*") if region.paths is None else region.paths)
        if region.scope == NON_RESOURCE
        else (),
        omit_stages=frozenset() if nothing else outcome.omit_stages - stages,
        omit_managed_fields=outcome.omit_managed_fields if own_choice else None,
    )


def _listed(values: frozenset[str] | None) -> tuple[str, ...]:
    return tuple(sorted(values or ()))
