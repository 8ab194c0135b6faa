"""Which requests can a rule match? Regions of the space of requests: intersect, cover, and an index over many of them.

A region is a rule without its outcome. Every question is answered on the safe side: ``intersect`` never loses a
request, ``covers`` is never claimed wrongly. Both are exact but for two lists of userGroups that only overlap (a
request has many groups, so "in A and in B" is no list of groups) and for the item ``*/*``.
"""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import islice, product
from typing import Final, NamedTuple, Self, TypeVar

import msgspec

from audit_operator.policy.model import GroupResources, Rule

T = TypeVar("T", bound=Hashable)


RESOURCE: Final = 1
NON_RESOURCE: Final = 2
BOTH: Final = RESOURCE | NON_RESOURCE
"""Scopes, which kinds of request a region holds. Plain integers: a union asks for them millions of times."""


class Atom(NamedTuple):
    """One pattern of resources: None matches any value; subresource ``""`` is the bare resource.

    ``pods`` is ``Atom(group, "pods", "")``, ``pods/*`` leaves the subresource open, ``*/scale`` the resource.
    """

    group: str | None
    resource: str | None
    subresource: str | None
    name: str | None = None


def _atom_and(one: Atom, other: Atom) -> Atom | None:
    """The pattern of what both match, None if there is nothing."""
    fields = []
    for mine, theirs in zip(one, other, strict=True):
        if mine is None:
            fields.append(theirs)
        elif theirs is None or theirs == mine:
            fields.append(mine)
        else:
            return None
    return Atom(*fields)


def _atom_covers(one: Atom, other: Atom) -> bool:
    """Whether everything that the other pattern matches is matched by this one."""
    return all(mine is None or mine == theirs for mine, theirs in zip(one, other, strict=True))


Values = frozenset[str] | None
"""A set of exact values; None is any value."""


class Region(msgspec.Struct, frozen=True):
    """The requests that a rule can match. None in a field: any value."""

    scope: int = BOTH
    users: Values = None
    user_groups: Values = None
    verbs: Values = None
    namespaces: Values = None
    atoms: frozenset[Atom] | None = None
    paths: Values = None

    @classmethod
    def of(cls, rule: Rule) -> Self:
        """The rule's region. A namespaceSelector counts as every namespace: labels come and go."""
        if rule.namespaces or rule.resources or rule.namespace_selector is not None:
            scope = RESOURCE
        elif rule.non_resource_urls:
            scope = NON_RESOURCE
        else:
            scope = BOTH
        # A selector alone: "all resource requests" needs a field of its own, without one a rule sees all requests.
        resources = rule.resources or ((GroupResources("*"),) if scope == RESOURCE and not rule.namespaces else ())
        return cls(
            scope=scope,
            users=_values(rule.users),
            user_groups=_values(rule.user_groups),
            verbs=_values(rule.verbs),
            namespaces=_values(rule.namespaces),
            atoms=_reduced_atoms(_atoms(resources)) if resources else None,
            paths=_reduced_paths(rule.non_resource_urls)
            if scope == NON_RESOURCE and "*" not in rule.non_resource_urls
            else None,
        )

    def __and__(self, other: Self) -> Self | None:
        """A region inside this one that holds all the requests of both, or None if there are none."""
        scope = self.scope & other.scope
        if not scope:
            return None
        users = _both(self.users, other.users)
        verbs = _both(self.verbs, other.verbs)
        namespaces = _both(self.namespaces, other.namespaces)
        if _nothing(users) or _nothing(verbs) or _nothing(namespaces):
            return None
        atoms = self.atoms if other.atoms is None else other.atoms
        if self.atoms is not None and other.atoms is not None:
            atoms = _both_atoms(self.atoms, other.atoms)
        paths = self.paths if other.paths is None else other.paths
        if self.paths is not None and other.paths is not None:
            paths = _both_paths(self.paths, other.paths)
        if _nothing(atoms) or _nothing(paths):
            return None
        return type(self)(
            scope=scope,
            users=users,
            user_groups=_both_groups(self.user_groups, other.user_groups),
            verbs=verbs,
            namespaces=namespaces,
            atoms=atoms,
            paths=paths,
        )

    def covers(self, other: Self) -> bool:
        """Whether every request of the other region is in this one."""
        return (
            (self.scope | other.scope) == self.scope
            and _superset(self.users, other.users)
            and _superset(self.user_groups, other.user_groups)
            and _superset(self.verbs, other.verbs)
            and _superset(self.namespaces, other.namespaces)
            and _all_covered(self.atoms, other.atoms, _atom_covers)
            and _all_covered(self.paths, other.paths, path_covers)
        )


def normal(region: Region) -> Region:
    """The same region without atoms and paths that another one covers: equal regions are equal values."""
    return msgspec.structs.replace(
        region,
        atoms=None if region.atoms is None else _reduced_atoms(region.atoms),
        paths=None if region.paths is None else _reduced_paths(region.paths),
    )


def path_covers(spec: str, other: str) -> bool:
    """Whether nonResourceURL ``spec`` matches everything that ``other`` matches."""
    if spec == "*":
        return True
    if spec.endswith("*"):
        return other != "*" and other.rstrip("*").startswith(spec.rstrip("*"))
    return spec == other


def _path_and(spec: str, other: str) -> str | None:
    """Two patterns of paths are nested or disjoint."""
    if path_covers(spec, other):
        return other
    return spec if path_covers(other, spec) else None


def _nothing(values: frozenset[T] | None) -> bool:
    return values is not None and not values


def _values(values: Sequence[str]) -> Values:
    return frozenset(values) if values else None


def _both(mine: Values, theirs: Values) -> Values:
    if mine is None or theirs is None:
        return theirs if mine is None else mine
    return mine & theirs


def _both_groups(mine: Values, theirs: Values) -> Values:
    """Lists that only overlap give mine: the result must stay inside this region."""
    return theirs if mine is None or (theirs is not None and theirs <= mine) else mine


def shared_atoms(mine: Iterable[Atom], theirs: Iterable[Atom]) -> list[Atom]:
    """What both match, exactly, pattern by pattern."""
    return [both for one, other in product(mine, theirs) if (both := _atom_and(one, other)) is not None]


MOST_PAIRS: Final = 1 << 18
"""Pairs of patterns that are looked at to say what two rules share; above it the answer is too much instead."""


@lru_cache(maxsize=1 << 14)
def _both_atoms(mine: frozenset[Atom], theirs: frozenset[Atom]) -> frozenset[Atom]:
    if mine == theirs or len(mine) * len(theirs) > MOST_PAIRS:
        return mine
    pairs = shared_atoms(mine, theirs)
    # Only "*/*" (a common mistake) speaks of a resource or subresource that is literally "*", and a part of it cannot
    # be written as a rule. Then all of mine is the answer: too much, never too little, and still inside this region.
    if any("*" in (atom.resource, atom.subresource) for atom in pairs):
        return mine
    return _reduced_atoms(pairs)


def _both_paths(mine: frozenset[str], theirs: frozenset[str]) -> frozenset[str]:
    if mine == theirs or len(mine) * len(theirs) > MOST_PAIRS:
        return mine
    shared = (_path_and(one, other) for one, other in product(mine, theirs))
    return _reduced_paths(path for path in shared if path is not None)


def _superset(mine: Values, theirs: Values) -> bool:
    return mine is None or (theirs is not None and mine >= theirs)


def _all_covered(mine: frozenset[T] | None, theirs: frozenset[T] | None, covers: Callable[[T, T], bool]) -> bool:
    if mine is None or theirs is None:
        return mine is None
    return mine >= theirs or all(any(covers(big, small) for big in mine) for small in theirs)


def _reduced_atoms(atoms: Iterable[Atom]) -> frozenset[Atom]:
    """Without the patterns that another one covers: equal regions get equal values."""
    distinct = frozenset(atoms)
    # Only a pattern that leaves something else open can cover another one.
    if len({tuple(value is None for value in atom) for atom in distinct}) == 1:
        return distinct
    return frozenset(atom for atom in distinct if not any(wider in distinct for wider in _wider_atoms(atom)))


def _wider_atoms(atom: Atom) -> Iterator[Atom]:
    """The patterns that cover this one, without itself."""
    wider = product(*((None,) if value is None else (value, None) for value in atom))
    return (Atom(*values) for values in wider if values != atom)


def _reduced_paths(paths: Iterable[str]) -> frozenset[str]:
    """Without the patterns that another one covers."""
    distinct = frozenset(paths)
    if len(distinct) == 1 or "*" in distinct:
        return distinct if "*" not in distinct else frozenset("*")
    prefixes = {path.rstrip("*"): path for path in sorted(distinct) if path.endswith("*")}
    return frozenset(path for path in distinct if _shortest_cover(path, prefixes) in (None, path))


def _shortest_cover(path: str, prefixes: Mapping[str, str]) -> str | None:
    """The pattern with the shortest prefix that covers the path."""
    stem = path.rstrip("*")
    return next((prefixes[stem[:end]] for end in range(len(stem) + 1) if stem[:end] in prefixes), None)


def _atoms(entries: Iterable[GroupResources]) -> Iterator[Atom]:
    for entry in entries:
        group = None if entry.group == "*" else entry.group
        for item in entry.resources or ("*",):
            for resource, subresource in _item(item):
                for name in entry.resource_names or (None,):
                    yield Atom(group, resource, subresource, name)


def _item(item: str) -> list[tuple[str | None, str | None]]:
    """The patterns of one string, exactly as `evaluate.item_matches` reads it."""
    if item == "*":
        return [(None, None)]
    patterns: list[tuple[str | None, str | None]] = []
    resource, _, subresource = item.partition("/")
    if subresource and resource == "*":
        patterns.append((None, subresource))
    if item.endswith("/*"):
        patterns.append((item[:-2], None))
    if not patterns:
        patterns.append((resource, subresource) if subresource else (item, ""))
    return patterns


def entries(atoms: frozenset[Atom]) -> tuple[GroupResources, ...]:
    """Atoms as ``resources`` of a rule: few entries, sorted."""
    items: dict[tuple[str, str], set[str | None]] = {}
    for atom in atoms:
        group = "*" if atom.group is None else atom.group
        items.setdefault((group, _text(atom)), set()).add(atom.name)
    shared: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (group, item), names in items.items():
        key = () if None in names else tuple(sorted(name for name in names if name is not None))
        shared.setdefault((group, key), []).append(item)
    return tuple(GroupResources(group, tuple(sorted(texts)), names) for (group, names), texts in sorted(shared.items()))


def _text(atom: Atom) -> str:
    if atom.resource is None:
        return "*" if atom.subresource is None else f"*/{atom.subresource}"
    if atom.subresource is None:
        return f"{atom.resource}/*"
    return f"{atom.resource}/{atom.subresource}" if atom.subresource else atom.resource


class RegionIndex:
    """Many regions at once: one question, answered for all of them as the bits of an integer.

    Args:
        regions: region i is bit i of every answer. None is a gap, in no answer.

    """

    def __init__(self, regions: Sequence[Region | None]) -> None:
        self._scopes = {
            scope: (
                _mask(i for i, region in enumerate(regions) if region and region.scope & scope),
                _mask(i for i, region in enumerate(regions) if region and region.scope & scope == scope),
            )
            for scope in (RESOURCE, NON_RESOURCE, BOTH)
        }
        self._users = _ValueIndex([region.users if region else None for region in regions])
        self._user_groups = _ValueIndex([region.user_groups if region else None for region in regions])
        self._verbs = _ValueIndex([region.verbs if region else None for region in regions])
        self._namespaces = _ValueIndex([region.namespaces if region else None for region in regions])
        self._atoms = _AtomIndex([region.atoms if region else None for region in regions])
        self._paths = _PathIndex([region.paths if region else None for region in regions])

    def relations(self, region: Region) -> tuple[int, int]:
        """(regions that share a request with this one, regions that cover it); the second is a subset of the first.

        Sharing is judged field by field, so a region may be named that shares nothing only where userGroups overlap.
        """
        meets, covers = self._scopes[region.scope]
        for meet, cover in (
            self._users.relations(region.users),
            self._user_groups.relations_of_groups(region.user_groups),
            self._verbs.relations(region.verbs),
            self._namespaces.relations(region.namespaces),
        ):
            meets &= meet
            covers &= cover
        if not meets:
            return 0, 0
        resource_meets, resource_covers = self._atoms.relations(region.atoms)
        path_meets, path_covers = self._paths.relations(region.paths)
        if region.scope == RESOURCE:
            meets &= resource_meets
        elif region.scope == NON_RESOURCE:
            meets &= path_meets
        return meets, covers & resource_covers & path_covers

    # Per field, the regions that hold a value of it, whatever their other fields; the regions of a request are the AND.

    def with_user(self, user: str | None) -> int:
        """Without a user nobody is named, and no group."""
        return self._users.holding(user)

    def with_groups(self, groups: Iterable[str]) -> int:
        """Any of the groups will do."""
        return reduce(int.__or__, map(self._user_groups.holding, groups), self._user_groups.holding(None))

    def with_verb(self, verb: str) -> int:
        """Verbs."""
        return self._verbs.holding(verb)

    def with_namespace(self, namespace: str) -> int:
        """Regions of resource requests; ``""`` is a request without namespace."""
        return self._scopes[RESOURCE][0] & self._namespaces.holding(namespace)

    def with_resource(self, group: str, resource: str, subresource: str, name: str) -> int:
        """Regions of resource requests."""
        return self._scopes[RESOURCE][0] & self._atoms.holding(Atom(group, resource, subresource, name))

    def with_path(self, path: str) -> int:
        """Regions of other requests."""
        return self._scopes[NON_RESOURCE][0] & self._paths.holding(path)


def _mask(indices: Iterable[int]) -> int:
    """The integer with these bits set; linear in its length, unlike setting them one by one."""
    positions = list(indices)
    if not positions:
        return 0
    buffer = bytearray(max(positions) // 8 + 1)
    for position in positions:
        buffer[position >> 3] |= 1 << (position & 7)
    return int.from_bytes(buffer, "little")


class _ValueIndex:
    """A field of exact values over all regions."""

    def __init__(self, fields: Sequence[Values]) -> None:
        self._all = (1 << len(fields)) - 1
        self._any = _mask(i for i, values in enumerate(fields) if values is None)
        same: dict[frozenset[str], list[int]] = {}
        for i, values in enumerate(fields):
            if values is not None:
                same.setdefault(values, []).append(i)
        self._named: dict[str, int] = {}
        for values, positions in same.items():
            mask = _mask(positions)
            for value in values:
                self._named[value] = self._named.get(value, 0) | mask
        self._memo: dict[frozenset[str], tuple[int, int]] = {}

    def relations(self, values: Values) -> tuple[int, int]:
        if values is None:
            return self._all, self._any
        if values not in self._memo:
            meets, covers = 0, self._all
            for value in values:
                mask = self._named.get(value, 0)
                meets |= mask
                covers &= mask
            self._memo[values] = meets | self._any, covers | self._any
        return self._memo[values]

    def holding(self, value: str | None) -> int:
        """The regions that take the value; None is none that anybody names."""
        return self._any if value is None else self._named.get(value, 0) | self._any

    def relations_of_groups(self, groups: Values) -> tuple[int, int]:
        """Any two lists of groups meet: a user can be in both."""
        return self._all, self.relations(groups)[1]


_Token = object
_ALL: Final = object()


class _AtomIndex:
    """The resources over all regions. Buckets by every mix of exact fields and "whatever it is there"."""

    def __init__(self, fields: Sequence[frozenset[Atom] | None]) -> None:
        self._all = (1 << len(fields)) - 1
        self._any = _mask(i for i, atoms in enumerate(fields) if atoms is None)
        self._positions: dict[Atom, list[int]] = {}
        for i, atoms in enumerate(fields):
            for atom in atoms or ():
                self._positions.setdefault(atom, []).append(i)
        self._buckets: dict[tuple[_Token, ...], list[Atom]] = {}
        for atom in self._positions:
            for tokens in product(*(((value, 0), (value, 1)) for value in atom)):
                key = tuple(_ALL if wide else value for value, wide in tokens)
                self._buckets.setdefault(key, []).append(atom)
        self._masks: dict[Atom, int] = {}
        self._memo: dict[frozenset[Atom], tuple[int, int]] = {}
        self._atom_memo: dict[Atom, tuple[int, int]] = {}

    def relations(self, atoms: frozenset[Atom] | None) -> tuple[int, int]:
        if atoms is None:
            return self._all, self._any
        if atoms not in self._memo:
            meets, covers = 0, self._all
            for atom in atoms:
                meet, cover = self._relations_of_atom(atom)
                meets |= meet
                covers &= cover
            self._memo[atoms] = meets | self._any, covers | self._any
        return self._memo[atoms]

    def holding(self, point: Atom) -> int:
        """The regions that hold this one object."""
        patterns = (Atom(*values) for values in product(*((value, None) for value in point)))
        return reduce(
            int.__or__, (self._mask_of(pattern) for pattern in patterns if pattern in self._positions), self._any
        )

    def _mask_of(self, atom: Atom) -> int:
        if atom not in self._masks:
            self._masks[atom] = _mask(self._positions[atom])
        return self._masks[atom]

    def _relations_of_atom(self, atom: Atom) -> tuple[int, int]:
        if atom not in self._atom_memo:
            meeting = [(_ALL,) if value is None else (value, None) for value in atom]
            covering = [(None,) if value is None else (value, None) for value in atom]
            self._atom_memo[atom] = self._lookup(meeting), self._lookup(covering)
        return self._atom_memo[atom]

    def _lookup(self, tokens: Sequence[tuple[_Token, ...]]) -> int:
        atoms = (atom for key in product(*tokens) for atom in self._buckets.get(key, ()))
        return _mask(position for atom in atoms for position in self._positions[atom])


class _PathIndex:
    """The nonResourceURLs over all regions, by their prefixes."""

    def __init__(self, fields: Sequence[Values]) -> None:
        self._all = (1 << len(fields)) - 1
        self._any = _mask(i for i, paths in enumerate(fields) if paths is None)
        positions: dict[str, list[int]] = {}
        for i, paths in enumerate(fields):
            for path in paths or ():
                positions.setdefault(path, []).append(i)
        self._exact = {path: _mask(where) for path, where in positions.items() if not path.endswith("*")}
        self._prefixes: dict[str, int] = {}
        for path, where in positions.items():
            if path.endswith("*"):
                stem = path.rstrip("*")
                self._prefixes[stem] = self._prefixes.get(stem, 0) | _mask(where)
        # What begins with a prefix stands together.
        self._stems = sorted({path.rstrip("*") for path in positions})
        self._memo: dict[frozenset[str], tuple[int, int]] = {}

    def holding(self, path: str) -> int:
        """The regions that match this one path."""
        return self._any | self._exact.get(path, 0) | self._covering(path)

    def _covering(self, stem: str) -> int:
        """The patterns whose prefix this begins with."""
        prefixes = self._prefixes
        found = (prefixes[stem[:end]] for end in range(len(stem) + 1) if stem[:end] in prefixes)
        return reduce(int.__or__, found, 0)

    def _inside(self, stem: str) -> int:
        """The paths and patterns that begin with this prefix."""
        found = 0
        for other in islice(self._stems, bisect_left(self._stems, stem), None):
            if not other.startswith(stem):
                break
            found |= self._exact.get(other, 0) | self._prefixes.get(other, 0)
        return found

    def relations(self, paths: Values) -> tuple[int, int]:
        if paths is None:
            return self._all, self._any
        if paths not in self._memo:
            meets, covers = 0, self._all
            for path in paths:
                stem = path.rstrip("*")
                covering = self._covering(stem)
                if path.endswith("*"):
                    meets |= self._inside(stem) | covering
                else:
                    covering |= self._exact.get(path, 0)
                    meets |= covering
                covers &= covering
            self._memo[paths] = meets | self._any, covers | self._any
        return self._memo[paths]
