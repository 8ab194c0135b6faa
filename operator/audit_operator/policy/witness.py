"""A request that some rules match and others do not: the proof behind "unreachable", "not covered" and differences.

The search is exact. A field that the rules to match leave open takes a value that no rule names, which escapes the most
rules; a field they restrict is tried value by value, and values that escape the same rules are tried once. What is
found is then made to look like a request people know, as far as that changes nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from itertools import product
from typing import Final

import msgspec

from audit_operator.policy.evaluate import namespace_matches, rule_matches
from audit_operator.policy.model import Request, Rule
from audit_operator.policy.region import MOST_PAIRS, NON_RESOURCE, RESOURCE, Atom, Region, RegionIndex, shared_atoms

_LIMIT = 20_000
_SEARCH = 10
"""What a search costs before its first combination, in combinations."""
_COMPARED = 64
"""Values of a field that are compared with one another; among more, that costs more than it saves."""
_FRESH = "witness"

# What a found request is made of where the rules leave it open, the best known first.
_USERS = ("alice", "bob")
_VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
_NAMESPACES = ("default", "production", "")
_RESOURCES = (("", "pods"), ("apps", "deployments"), ("", "nodes"), ("batch", "jobs"), ("example.com", "widgets"))
_PATHS = ("/healthz", "/version", "/api", "/metrics", "/apis", "/logs")


class Unknown(Exception):  # noqa: N818 - an answer, not a fault
    """The search gave up before it knew."""


def find(must: Sequence[Rule], avoid: Sequence[Rule], *, limit: int = _LIMIT) -> Request | None:
    """A request that every rule of ``must`` matches and no rule of ``avoid`` does; None if there is none.

    A namespaceSelector in ``must`` counts as any namespace; ``avoid`` may have none (ValueError).

    Raises:
        Unknown: there may be one, but ``limit`` combinations were not enough to tell.

    """
    for rule in avoid:
        namespace_matches(rule, "")  # refuses an unresolved namespaceSelector
    return Finder(avoid).find(must, -1, limit=limit)


MOST_RULES: Final = 20_000
MOST_RESOURCES: Final = 100_000
"""Rules of one policy, and resources and names of resources in them, that are compared with one another."""


def comparable(rules: Sequence[Rule]) -> bool:
    """Whether the rules are few enough to make a Finder of them, which takes memory for every pair of them."""
    if len(rules) > MOST_RULES:
        return False
    resources = sum(
        max(1, len(entry.resources)) * max(1, len(entry.resource_names)) for rule in rules for entry in rule.resources
    )
    return resources <= MOST_RESOURCES


class Finder:
    """Rules to be avoided, made ready for many searches. A set of them is given as the bits of an integer.

    Args:
        rules: rule i is bit i. None is a gap, and so is a rule with a namespaceSelector: nothing need avoid them.
        budget: combinations tried in all searches together; after them every search ends in Unknown.

    """

    def __init__(self, rules: Sequence[Rule | None], *, budget: int | None = None) -> None:
        regions = [None if rule is None or rule.namespace_selector else Region.of(rule) for rule in rules]
        self._index = RegionIndex(regions)
        self._left = budget

    @property
    def exhausted(self) -> bool:
        """Whether the budget is spent."""
        return self._left is not None and self._left <= 0

    def relations(self, region: Region) -> tuple[int, int]:
        """(rules that may match a request of the region, rules that match all of them)."""
        return self._index.relations(region)

    def find(self, must: Sequence[Rule], avoid: int, *, limit: int = _LIMIT, familiar: bool = True) -> Request | None:
        """As the function of this name; ``avoid``: which of the rules, -1 is all.

        ``familiar`` False: nobody will read the request, so it need not look like one that people know.
        """
        if self._left is not None:
            limit = min(limit, self._left)
        budget = _Budget(limit)
        try:
            plain = [_without_selector(rule) for rule in must]
            found = self._find(plain, _common(must, budget), avoid, budget)
            return self._familiar(found, plain, avoid) if familiar and found is not None else found
        finally:
            if self._left is not None:
                self._left -= budget.spent

    def _find(self, must: Sequence[Rule], region: Region | None, avoid: int, budget: "_Budget") -> Request | None:
        if region is None:
            return None
        meets, covers = self._index.relations(region)
        if covers & avoid:
            return None
        for scope in (RESOURCE, NON_RESOURCE):
            if region.scope & scope:
                fields = _fields(region, must, self._index, meets & avoid, scope=scope, budget=budget)
                found = _search(fields, must, meets & avoid, budget)
                if found is not None:
                    return found
        return None

    def _matching(self, request: Request) -> int:
        """The rules that match the request."""
        index = self._index
        groups = request.groups if request.user is not None else ()
        matching = index.with_user(request.user) & index.with_groups(groups) & index.with_verb(request.verb)
        if not request.is_resource:
            return matching & index.with_path(request.path)
        resource = index.with_resource(request.api_group, request.resource, request.subresource, request.name)
        return matching & index.with_namespace(request.namespace) & resource

    def _familiar(self, found: Request, must: Sequence[Rule], avoid: int) -> Request:
        """The same proof with values people know, where any would do."""

        def proves(request: Request) -> bool:
            return not self._matching(request) & avoid and all(rule_matches(rule, request) for rule in must)

        tries: list[Iterable[Change]] = []
        if found.user == _FRESH:
            tries.append([{"user": user} for user in _USERS])
        if found.is_resource:
            kinds: list[Change] = [{"api_group": group, "resource": resource} for group, resource in _RESOURCES]
            tries += [
                [{"subresource": ""}] if found.subresource == _FRESH else (),
                kinds if _FRESH in (found.api_group, found.resource) else (),
                [{"namespace": namespace} for namespace in _NAMESPACES] if found.namespace == _FRESH else (),
                [{"verb": verb} for verb in _VERBS] if found.verb == _FRESH else (),
                [{"name": name} for name in ("", "example")] if found.name == _FRESH else (),
            ]
        else:
            tries += [
                [{"path": path} for path in _PATHS] if found.path.endswith(_FRESH) else (),
                [{"verb": verb} for verb in ("get", "post")] if found.verb == _FRESH else (),
            ]
        for changes in tries:
            for change in changes:
                candidate = msgspec.structs.replace(found, **change)
                if proves(candidate):
                    found = candidate
                    break
        return found


class _Budget:
    """Combinations that may still be tried."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tried = 0
        self._charged = 0

    @property
    def spent(self) -> int:
        """What the search cost."""
        return _SEARCH + self._tried + self._charged

    def spend(self) -> None:
        """One of them. Raises Unknown."""
        self._tried += 1
        if self._tried > self._limit:
            raise Unknown("no answer within the limit")

    def allow(self, number: int) -> None:
        """Whether so many can be tried at all, before they are made ready. Raises Unknown."""
        if self._tried + number - 1 > self._limit:
            self.charge(number)
            raise Unknown("more values than the limit")

    def charge(self, number: int) -> None:
        """Work that takes as long as so many, and does not count against the limit of one search."""
        self._charged += number


def _without_selector(rule: Rule) -> Rule:
    return msgspec.structs.replace(rule, namespace_selector=None) if rule.namespace_selector is not None else rule


def _common(must: Sequence[Rule], budget: "_Budget") -> Region | None:
    """The region that all share, without userGroups: lists of groups that only overlap have no region."""
    common = Region()
    for rule in must:
        region = msgspec.structs.replace(Region.of(rule), user_groups=None)
        both = common & region
        if both is None:
            return None
        if common.atoms is not None and region.atoms is not None:
            pairs = len(common.atoms) * len(region.atoms)
            if pairs > MOST_PAIRS:
                raise Unknown("too many resources to look at")
            budget.charge(pairs)
            # Exactly, where a region is generous: what is tried here is judged by the rules themselves.
            both = msgspec.structs.replace(both, atoms=frozenset(shared_atoms(common.atoms, region.atoms)))
        common = both
    return common


Change = dict[str, object]


class _Field(msgspec.Struct, frozen=True):
    """The values to try in one field, and per value the rules to avoid that accept it."""

    values: tuple[tuple[int, Change], ...]


def _fields(
    region: Region, must: Sequence[Rule], index: RegionIndex, avoid: int, *, scope: int, budget: _Budget
) -> list[_Field]:
    def field(options: Iterable[tuple[Change, int]]) -> _Field:
        tried: dict[int, Change] = {}
        for change, accepting in options:
            if tried:
                budget.spend()
            tried.setdefault(accepting & avoid, change)
        # A value whose rules are a superset of another's can never do better.
        least = (
            [mask for mask in tried if not any(other & ~mask == 0 and other != mask for other in tried)]
            if len(tried) <= _COMPARED
            else tried
        )
        return _Field(tuple((mask, tried[mask]) for mask in sorted(least, key=int.bit_count)))

    def values(name: str, wanted: frozenset[str] | None, accepting: Callable[[str], int]) -> _Field:
        budget.allow(len(wanted or ()))
        return field(({name: value}, accepting(value)) for value in ([_FRESH] if wanted is None else sorted(wanted)))

    fields = [
        values("user", region.users, index.with_user),
        field(({"groups": groups}, index.with_groups(groups)) for groups in _groups(must)),
        values("verb", region.verbs, index.with_verb),
    ]
    if scope == NON_RESOURCE:
        budget.allow(len(region.paths or ()))
        patterns = region.paths or ("*",)
        paths = {"/" + _FRESH if path == "*" else path.rstrip("*") + _FRESH * path.endswith("*") for path in patterns}
        return [*fields, values("path", frozenset(paths), index.with_path)]
    budget.allow(len(region.atoms or ()))
    atoms = sorted(region.atoms or (Atom(None, None, None),), key=repr)
    points = (tuple(_FRESH if part is None else part for part in atom) for atom in atoms)
    return [
        *fields,
        values("namespace", region.namespaces, index.with_namespace),
        field((_of_point(*point), index.with_resource(*point)) for point in points),
    ]


def _groups(must: Sequence[Rule]) -> Iterator[tuple[str, ...]]:
    """One group for every rule that asks for groups; more would only match more rules."""
    lists = [sorted(rule.user_groups) for rule in must if rule.user_groups]
    for choice in product(*lists):
        yield tuple(sorted(set(choice)))


def _of_point(group: str, resource: str, subresource: str, name: str) -> Change:
    return {"api_group": group, "resource": resource, "subresource": subresource, "name": name}


def _search(fields: Sequence[_Field], must: Sequence[Rule], avoid: int, budget: _Budget) -> Request | None:
    """Depth first; ``standing`` are the rules to avoid that still accept all that was chosen."""
    # The field that escapes the most rules first: it prunes the most.
    ordered = sorted(fields, key=lambda field: min((mask.bit_count() for mask, _ in field.values), default=0))
    # What the remaining fields can escape at best; if that is not enough, no choice of them is.
    floors = [avoid]
    for field in reversed(ordered):
        floors.append(floors[-1] & reduce(int.__and__, (mask for mask, _ in field.values), avoid))
    floors.reverse()

    def choose(depth: int, standing: int, chosen: Change) -> Request | None:
        budget.spend()
        if standing & floors[depth]:
            return None
        if depth == len(ordered):
            is_resource = "path" not in chosen
            request = msgspec.convert({"user": _FRESH, "verb": _FRESH, **chosen, "is_resource": is_resource}, Request)
            return request if all(rule_matches(rule, request) for rule in must) else None
        for mask, change in ordered[depth].values:
            found = choose(depth + 1, standing & mask, chosen | change)
            if found is not None:
                return found
        return None

    return choose(0, avoid, {})
