"""Which requests can a rule match? Regions of the space of requests: intersect, cover, and an index over many of them.

A region is a rule without its outcome. Every question is answered on the safe side: ``intersect`` never loses a
request, ``covers`` is never claimed wrongly. Both are exact but for two lists of userGroups that only overlap (a
request has many groups, so "in A and in B" is no list of groups) and for the item ``*/*``.
"""

import operator
from bisect import bisect_left
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import islice, product
from typing import Final, NamedTuple, Self, TypeVar

import msgspec

from audit_operator.policy.bitsets import mask
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
    """The pattern of what both match, None if there is nothing. Written out: a union asks this most of all."""
    group, resource, subresource, name = one
    their_group, their_resource, their_subresource, their_name = other
    if resource is None:
        resource = their_resource
    elif their_resource is not None and their_resource != resource:
        return None
    if group is None:
        group = their_group
    elif their_group is not None and their_group != group:
        return None
    if subresource is None:
        subresource = their_subresource
    elif their_subresource is not None and their_subresource != subresource:
        return None
    if name is None:
        name = their_name
    elif their_name is not None and their_name != name:
        return None
    return Atom(group, resource, subresource, name)


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
        user_groups = _both_groups(self.user_groups, other.user_groups)
        return type(self)(scope, users, user_groups, verbs, namespaces, atoms, paths)

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


def shared_atoms(mine: Iterable[Atom], theirs: Collection[Atom]) -> list[Atom]:
    """What both match, exactly, pattern by pattern."""
    return [
        both
        for one in mine
        for other in theirs
        if one[1] == other[1] or one[1] is None or other[1] is None  # most pairs of resources end here
        if (both := _atom_and(one, other)) is not None
    ]


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


@lru_cache(maxsize=4096)
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
                mask(i for i, region in enumerate(regions) if region and region.scope & scope),
                mask(i for i, region in enumerate(regions) if region and region.scope & scope == scope),
            )
            for scope in (RESOURCE, NON_RESOURCE, BOTH)
        }
        self._users = _ValueIndex([region.users if region else None for region in regions])
        self._user_groups = _ValueIndex([region.user_groups if region else None for region in regions])
        self._verbs = _ValueIndex([region.verbs if region else None for region in regions])
        self._namespaces = _ValueIndex([region.namespaces if region else None for region in regions])
        self._atoms = _AtomIndex([region.atoms if region else None for region in regions])
        self._paths = _PathIndex([region.paths if region else None for region in regions])
        # Many lists of rules name no users, and many no namespaces: such a field decides nothing.
        fields = (("users", self._users), ("verbs", self._verbs), ("namespaces", self._namespaces))
        self._said = [(field, index) for field, index in fields if index]

    def relations(self, region: Region) -> tuple[int, int]:
        """(regions that share a request with this one, regions that cover it); the second is a subset of the first.

        Sharing is judged field by field, so a region may be named that shares nothing only where userGroups overlap.
        """
        meets, covers = self._scopes[region.scope]
        for field, index in self._said:
            meet, cover = index.relations(getattr(region, field))
            meets &= meet
            covers &= cover
        covers &= self._user_groups.relations(region.user_groups)[1]  # any two lists meet: a user can be in both
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


class _ValueIndex:
    """A field of exact values over all regions."""

    def __init__(self, fields: Sequence[Values]) -> None:
        self._all = (1 << len(fields)) - 1
        self._any = mask(i for i, values in enumerate(fields) if values is None)
        same: dict[frozenset[str], list[int]] = {}
        for i, values in enumerate(fields):
            if values is not None:
                same.setdefault(values, []).append(i)
        self._named: dict[str, int] = {}
        for values, numbers in same.items():
            regions = mask(numbers)
            for value in values:
                self._named[value] = self._named.get(value, 0) | regions
        self._memo: dict[frozenset[str], tuple[int, int]] = {}

    def relations(self, values: Values) -> tuple[int, int]:
        if values is None:
            return self._all, self._any
        if values not in self._memo:
            meets, covers = 0, self._all
            for value in values:
                regions = self._named.get(value, 0)
                meets |= regions
                covers &= regions
            self._memo[values] = meets | self._any, covers | self._any
        return self._memo[values]

    def holding(self, value: str | None) -> int:
        """The regions that take the value; None is none that anybody names."""
        return self._any if value is None else self._named.get(value, 0) | self._any

    def __bool__(self) -> bool:
        """Whether any region says something of the field."""
        return bool(self._named)


_Form = tuple[bool, ...]
"""Which fields of an atom are open."""


class _AtomIndex:
    """The resources over all regions: atoms of one form side by side, found by the fields they say something of."""

    def __init__(self, fields: Sequence[frozenset[Atom] | None]) -> None:
        self._all = (1 << len(fields)) - 1
        self._any = mask(i for i, atoms in enumerate(fields) if atoms is None)
        same: dict[frozenset[Atom], list[int]] = {}
        for i, atoms in enumerate(fields):
            if atoms is not None:
                same.setdefault(atoms, []).append(i)
        self._forms: dict[_Form, dict[Atom, int]] = {}
        for atoms, numbers in same.items():
            regions = mask(numbers)
            for atom in atoms:
                alike = self._forms.setdefault(_form(atom), {})
                alike[atom] = alike.get(atom, 0) | regions
        self._tables: dict[tuple[_Form, _Form], dict[tuple[str | None, ...], int]] = {}
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
        found = self._any
        for form, alike in self._forms.items():
            found |= alike.get(Atom(*_said(point, form)), 0)
        return found

    def _relations_of_atom(self, atom: Atom) -> tuple[int, int]:
        if atom not in self._atom_memo:
            meets, covers = 0, 0
            own = _form(atom)
            for form in self._forms:
                open_in_either = tuple(map(operator.or_, own, form))
                found = self._table(form, open_in_either).get(_said(atom, open_in_either), 0)
                meets |= found
                if open_in_either == form:  # it leaves open what this one leaves open, and more
                    covers |= found
            self._atom_memo[atom] = meets, covers
        return self._atom_memo[atom]

    def _table(self, form: _Form, unsaid: _Form) -> dict[tuple[str | None, ...], int]:
        """The atoms of one form by what they say outside of these fields."""
        if (form, unsaid) not in self._tables:
            table = self._tables[form, unsaid] = {}
            for atom, regions in self._forms[form].items():
                said = _said(atom, unsaid)
                table[said] = table.get(said, 0) | regions
        return self._tables[form, unsaid]


def _form(atom: Atom) -> _Form:
    group, resource, subresource, name = atom
    return group is None, resource is None, subresource is None, name is None


def _said(atom: Atom, unsaid: _Form) -> tuple[str | None, ...]:
    group, resource, subresource, name = atom
    no_group, no_resource, no_subresource, no_name = unsaid
    return (
        None if no_group else group,
        None if no_resource else resource,
        None if no_subresource else subresource,
        None if no_name else name,
    )


class _PathIndex:
    """The nonResourceURLs over all regions, by their prefixes."""

    def __init__(self, fields: Sequence[Values]) -> None:
        self._all = (1 << len(fields)) - 1
        self._any = mask(i for i, paths in enumerate(fields) if paths is None)
        positions: dict[str, list[int]] = {}
        for i, paths in enumerate(fields):
            for path in paths or ():
                positions.setdefault(path, []).append(i)
        self._exact = {path: mask(where) for path, where in positions.items() if not path.endswith("*")}
        self._prefixes: dict[str, int] = {}
        for path, where in positions.items():
            if path.endswith("*"):
                stem = path.rstrip("*")
                self._prefixes[stem] = self._prefixes.get(stem, 0) | mask(where)
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
