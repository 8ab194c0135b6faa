"""Policies about some users, groups or namespaces, taken apart so that thousands of them stay few rules.

Rules about users and rules about namespaces cross nearly everywhere, and their product is large and helps nobody. So
a policy is written as *confined lists*: an identity (these users, these groups, in these namespaces) and rules that do
not repeat it. Lists that mean the same are then one value, whoever they are about; unions of them are remembered and
shared.

Lists are gathered by kind: by what their identities speak of. A kind becomes few lists in two steps: identities that
the same lists apply to are one, which is exact; then, over the budget, similar lists become one for all of their
identities, which records more, but only of those identities. Where kinds cross (a user of one list in a namespace of
another), one short list stands for all of them.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, Self

import msgspec

from audit_operator.policy.folding import (
    Source,
    Unite,
    branches,
    fold,
    listed,
    roughly_united,
    rules_of,
    trimmed,
    united,
)
from audit_operator.policy.generalize import generalized
from audit_operator.policy.outcome import NOTHING
from audit_operator.policy.placing import Entry
from audit_operator.policy.region import BOTH, RESOURCE, Region, Values
from audit_operator.policy.simplify import simplified

# Lists within this many times their budget stay as they are. If they are more, the lists of the most identities keep
# this share of the budget, exactly, and the rest is for all others, generalized.
_ROOM = 1.5
_EXACT = 0.75

# What may be spent on telling users in their own namespaces from users elsewhere: rules per list, names in all rules.
_SHORTEST = 3
_NAMES = 10_000


class Identity(NamedTuple):
    """Who and where: the fields of a region of the same names. None is anyone or anywhere."""

    users: Values = None
    user_groups: Values = None
    namespaces: Values = None

    @classmethod
    def of(cls, region: Region) -> Self:
        return cls(region.users, region.user_groups, region.namespaces)

    @property
    def kind(self) -> "Kind":
        return frozenset(field for field, values in zip(self._fields, self, strict=True) if values is not None)

    @property
    def size(self) -> int:
        return sum(len(values) for values in self if values is not None)

    @property
    def written(self) -> list[list[str]]:
        """To sort by: sets have no order of their own."""
        return [sorted(values or ()) for values in self]

    def within(self, other: "Identity") -> bool:
        """Whether everyone and everything in this one is in the other."""
        return all(
            theirs is None or (mine is not None and mine <= theirs) for mine, theirs in zip(self, other, strict=True)
        )


Kind = frozenset[str]
"""The fields that an identity says something of."""


class Confined(NamedTuple):
    """Rules, and to whom and where they apply."""

    identity: Identity
    source: Source

    def entries(self) -> tuple[Entry, ...]:
        """The rules with the identity said in each."""
        users, user_groups, namespaces = self.identity
        source = self.source
        if user_groups is not None and any(entry.region.user_groups is not None for entry in source.entries):
            # "In one of these groups and in one of those" cannot be said in a rule. One that holds more must not decide
            # for less than what follows it: without exceptions it does not.
            source = listed(generalized(rules_of(source), len(source.entries)))
        scope = BOTH if namespaces is None else RESOURCE
        inside = Region(scope=scope, users=users, user_groups=user_groups, namespaces=namespaces)
        both = ((inside & entry.region, entry) for entry in source.entries)
        return tuple(Entry(region, entry.outcome, entry.optional) for region, entry in both if region is not None)


@lru_cache(maxsize=4096)
def confined(policy: Source) -> tuple[Confined, ...]:
    """Lists that together ask for all that the policy asks for; none if it records for anyone anywhere.

    Exact for a policy about namespaces. Otherwise a rule keeps those exceptions that decide for all of its identity.
    """
    recording = [entry.region for entry in policy.entries if entry.outcome != NOTHING]
    if all(region.namespaces is not None for region in recording):
        return tuple(_by_namespace(policy.entries))
    identities = dict.fromkeys(map(Identity.of, recording))
    if Identity() in identities:
        return ()
    return tuple(Confined(identity, _inside(identity, policy.entries)) for identity in identities)


def _by_namespace(entries: Sequence[Entry]) -> Iterable[Confined]:
    """For the namespaces that the same rules name, those rules in their order."""
    naming: dict[str, list[int]] = {}
    for i, entry in enumerate(entries):
        for namespace in entry.region.namespaces or ():
            naming.setdefault(namespace, []).append(i)
    alike: dict[tuple[int, ...], set[str]] = {}
    for namespace, numbers in naming.items():
        alike.setdefault(tuple(numbers), set()).add(namespace)
    for own, namespaces in alike.items():
        rules = [
            _without(("namespaces",), entry)
            for i, entry in enumerate(entries)
            if i in own or entry.region.namespaces is None
        ]
        yield Confined(Identity(namespaces=frozenset(namespaces)), _short(trimmed(rules)))


def _inside(identity: Identity, entries: Iterable[Entry]) -> Source:
    """The rules of this identity, and between them those that decide for all of it, which ask for nothing here."""
    rules = []
    for entry in entries:
        own = Identity.of(entry.region)
        if own == identity:
            rules.append(_without(Identity._fields, entry))
        elif identity.within(own) and not entry.optional:
            rules.append(_without(Identity._fields, msgspec.structs.replace(entry, outcome=NOTHING)))
    return _short(trimmed(rules))


def _without(fields: Iterable[str], entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, region=msgspec.structs.replace(entry.region, **dict.fromkeys(fields)))


@lru_cache(maxsize=4096)
def _short(source: Source) -> Source:
    """One value for all that are equal, as short as it can be."""
    return source if source.optional else listed(simplified(rules_of(source), rounds=1))


def sections(lists: Iterable[Confined], budget: int) -> list[list[Confined]]:
    """The lists as few, in sections to be placed one before the other.

    A section settles what all lists ask for of the requests that its own lists are about: those about more (users in
    namespaces) come before those about less, with all that the latter may ask for of the same requests.

    Args:
        lists: any, of any kinds.
        budget: how many rules a kind about namespaces may have; others get half of it.

    """
    kinds: dict[Kind, list[Confined]] = {}
    for one in lists:
        kinds.setdefault(one.identity.kind, []).append(one)
    few: dict[Kind, list[Confined]] = {}
    result: list[list[Confined]] = []
    for kind in _with_crossings(kinds):
        below = [one for other in kinds if other < kind for one in kinds[other]]
        if kind in kinds and below:
            few[kind] = _fewer(_with_all_that_applies(kinds[kind], below), budget // 2, roughly_united)
        elif kind in kinds:
            few[kind] = _fewer(kinds[kind], budget if "namespaces" in kind else budget // 2, united)
        if below:
            result.append(
                _crossings([one for other, found in few.items() if other <= kind for one in found], few.get(kind, []))
            )
        result.append(few.get(kind, []))
    return [section for section in reversed(result) if section]


def _with_crossings(kinds: Iterable[Kind]) -> list[Kind]:
    """The kinds and all that several of them make together; what says the least first."""
    closed: set[Kind] = set()
    for kind in kinds:
        closed |= {kind, *(kind | other for other in closed)}
    return sorted(closed, key=lambda kind: (len(kind), sorted(kind)))


def _fewer(lists: Iterable[Confined], budget: int, unite: Unite) -> list[Confined]:
    """The lists, of one kind, as few: those of the most identities exactly, the others as the budget allows."""
    groups = [Confined(identity, fold(sources)) for identity, sources in _alike(lists)]
    groups.sort(key=lambda group: (-group.identity.size, group.source.order, group.identity.written))
    if _size(groups) <= _ROOM * budget:
        return groups
    exact, rules = 0, 0
    while exact < len(groups) and rules + len(groups[exact].source.entries) <= _EXACT * budget:
        rules += len(groups[exact].source.entries)
        exact += 1
    kept, rest = groups[:exact], groups[exact:]
    while len(rest) > 1 and _size(rest) > budget - rules:
        identities: dict[Source, list[Identity]] = {}
        for group in rest:
            identities.setdefault(group.source, []).append(group.identity)
        rest = [
            Confined(_all([identity for source in branch for identity in identities[source]]), unite(tuple(branch)))
            for branch in branches(identities)
        ]
    return kept + rest


def _size(groups: Iterable[Confined]) -> int:
    return sum(len(group.source.entries) for group in groups)


def _alike(lists: Iterable[Confined]) -> list[tuple[Identity, frozenset[Source]]]:
    """Identities, apart where that can be told (users, namespaces), and all of the lists that apply to them."""
    applying: dict[Identity, set[Source]] = {}
    for identity, source in lists:
        for one in _apart(identity):
            applying.setdefault(one, set()).add(source)
    alike: dict[frozenset[Source], list[Identity]] = {}
    for identity, sources in applying.items():
        alike.setdefault(frozenset(sources), []).append(identity)
    return [(_all(identities), sources) for sources, identities in alike.items()]


def _apart(identity: Identity) -> Iterable[Identity]:
    users, user_groups, namespaces = identity
    if identity.size == 1:
        return (identity,)
    if users is not None and user_groups is namespaces is None:
        return (Identity(users=frozenset({user})) for user in users)
    if namespaces is not None and users is user_groups is None:
        return (Identity(namespaces=frozenset({namespace})) for namespace in namespaces)
    return (identity,)


def _all(identities: Sequence[Identity]) -> Identity:
    """The identity that holds these, which say something of the same fields."""
    if len(identities) == 1:
        return identities[0]
    fields = zip(*identities, strict=True)
    return Identity(*(None if None in field else frozenset().union(*field) for field in fields))


def _with_all_that_applies(lists: Iterable[Confined], others: Iterable[Confined]) -> list[Confined]:
    """The lists, each with what others may ask for of the same requests."""
    about: dict[tuple[str, str], set[Source]] = {}
    for one in others:
        for topic in _topics(one.identity):
            about.setdefault(topic, set()).add(one.source)
    return [
        Confined(one.identity, fold({one.source}.union(*(about.get(topic, ()) for topic in _topics(one.identity)))))
        for one in lists
    ]


def _topics(identity: Identity) -> Iterable[tuple[str, str]]:
    """Identities without a common topic share no request. A user has many groups: they are one topic, all of them."""
    yield from (("users", user) for user in identity.users or ())
    yield from (("namespaces", namespace) for namespace in identity.namespaces or ())
    if identity.user_groups:
        yield "userGroups", ""


def _crossings(lists: Sequence[Confined], own: Sequence[Confined]) -> list[Confined]:
    """One short list for everyone whom several of these lists, of different kinds, may be about at the same time.

    ``own``: lists that have all there is for their users in their namespaces. As far as that can be said in few words,
    those requests are left out: they are most of what such users do, and deserve better.
    """
    fields = zip(*(one.identity for one in lists), strict=True)
    everyone = Identity(*(frozenset().union(*(values or () for values in field)) or None for field in fields))
    short = fold({one.source for one in lists}, roughly_united)
    users, user_groups, namespaces = everyone
    if user_groups or not users or not namespaces or len(own) * len(namespaces) * _SHORTEST > _NAMES:
        return [Confined(everyone, short)]
    others = [(users.difference(*(one.identity.users or () for one in own)), namespaces)]
    others += [(one.identity.users or users, namespaces - (one.identity.namespaces or namespaces)) for one in own]
    shortest = listed(generalized(rules_of(short), _SHORTEST))
    return [Confined(Identity(who, None, where), shortest) for who, where in others if who and where]
