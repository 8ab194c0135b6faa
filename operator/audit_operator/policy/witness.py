"""A request that some rules match and others do not, or the certainty that there is none.

The fields of a rule are independent of one another. So per field only those values count that the wanted rules allow,
and where they allow any value, one that no rule names: it is matched by no more rules than any other. Each value is the
bits of the unwanted rules that accept it; a request is a choice of values, one per field, without a common bit.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count, product
from typing import Any, Final

import msgspec

from audit_operator.policy.evaluate import (
    bits,
    groups_match,
    namespace_matches,
    non_resource_matches,
    resource_matches,
    rule_matches,
    user_matches,
    verb_matches,
)
from audit_operator.policy.kinds import RESOURCE_VERBS
from audit_operator.policy.model import Request, Rule
from audit_operator.policy.region import NON_RESOURCE, RESOURCE, Atom, Region

_MOST_STEPS: Final = 20_000
"""After so many choices the search gives up; what people write takes a few dozen."""

_METHODS: Final = ("get", "post", "put", "patch", "delete", "head", "options")
_NAMELESS_VERBS: Final = frozenset({"create", "list", "watch", "deletecollection"})


class Unknown(Exception):  # noqa: N818 - not an error but an answer: it would take too long
    """The search was given up: there may be such a request or not."""


Part = Mapping[str, Any]
"""Some fields of a Request."""


def find(must: Sequence[Rule], avoid: Sequence[Rule]) -> Request | None:
    """A request that every rule of ``must`` matches and none of ``avoid`` does; None if there is none.

    Where the rules leave a choice, the request is one that a cluster could really see.

    Raises:
        Unknown: the search took too long.
        ValueError: a rule has a namespaceSelector that is not resolved.

    """
    region: Region | None = Region()
    for rule in must:
        region = region & Region.of(rule) if region is not None else None
    if region is None:
        return None
    for scope in (RESOURCE, NON_RESOURCE):
        if region.scope & scope:
            unwanted = [rule for rule in avoid if Region.of(rule).scope & scope]
            fields = [_least(options) for options in _fields(region, scope, must, unwanted)]
            choice = _without_common_bit(fields)
            if choice is not None:
                return _lifelike(Request(is_resource=scope == RESOURCE, **choice), must, avoid)
    return None


# -- the values that count -------------------------------------------------------------------------------------------


def _fields(
    region: Region, scope: int, must: Sequence[Rule], avoid: Sequence[Rule]
) -> Iterator[list[tuple[int, Part]]]:
    """Per field the values that count, each with the bits of the rules of ``avoid`` that accept it."""

    def options(parts: Iterable[Part], accepts: Callable[[Rule, Any], bool]) -> list[tuple[int, Part]]:
        return [(bits(accepts(rule, part) for rule in avoid), part) for part in parts]

    def named(values: Callable[[Rule], Iterable[str]]) -> frozenset[str]:
        return frozenset(value for rule in avoid for value in values(rule))

    yield options(
        ({"user": user} for user in sorted(region.users or {_unnamed(["alice"], named(lambda rule: rule.users))})),
        lambda rule, part: user_matches(rule, part["user"]),
    )
    yield options(
        ({"groups": groups} for groups in _group_sets(must)),
        lambda rule, part: groups_match(rule, Request(user="", verb="", groups=part["groups"])),
    )
    usual = RESOURCE_VERBS if scope == RESOURCE else _METHODS
    yield options(
        ({"verb": verb} for verb in sorted(region.verbs or {_unnamed(usual, named(lambda rule: rule.verbs))})),
        lambda rule, part: verb_matches(rule, part["verb"]),
    )
    if scope == NON_RESOURCE:
        paths = region.paths or {"*"}
        known = named(lambda rule: rule.non_resource_urls)
        yield options(
            ({"path": _path(spec, known)} for spec in sorted(paths)),
            lambda rule, part: non_resource_matches(rule, part["path"]),
        )
        return
    namespace = _unnamed(["default"], named(lambda rule: rule.namespaces))
    yield options(
        ({"namespace": name} for name in sorted(region.namespaces or {namespace})),
        lambda rule, part: namespace_matches(rule, part["namespace"]),
    )
    yield options(
        _resources(region, must, [Region.of(rule).atoms or frozenset() for rule in avoid]),
        lambda rule, part: resource_matches(rule, Request(user="", verb="", **part)),
    )


def _group_sets(must: Sequence[Rule]) -> list[tuple[str, ...]]:
    """The smallest sets of groups that satisfy the userGroups of every rule."""
    sets: set[frozenset[str]] = {frozenset()}
    for rule in must:
        if rule.user_groups:
            sets = {
                chosen if chosen & {*rule.user_groups} else chosen | {group}
                for chosen in sets
                for group in rule.user_groups
            }
        if len(sets) > _MOST_STEPS:
            raise Unknown
    return sorted(tuple(sorted(chosen)) for chosen in sets)


def _resources(region: Region, must: Sequence[Rule], unwanted: Iterable[frozenset[Atom]]) -> Iterator[Part]:
    """One object per atom of the region, with values that no rule names where the atom is open."""
    atoms = [atom for some in unwanted for atom in some]
    group = _unnamed(["example.com"], {atom.group for atom in atoms})
    resource = _unnamed(["widgets"], {atom.resource for atom in atoms})
    subresource = _unnamed(["other"], {atom.subresource for atom in atoms})
    name = _unnamed(["web"], {atom.name for atom in atoms})
    for atom in sorted(region.atoms or {Atom(None, None, None)}, key=repr):
        for part in ("", subresource) if atom.subresource is None else (atom.subresource,):
            found: Part = {
                "api_group": group if atom.group is None else atom.group,
                "resource": resource if atom.resource is None else atom.resource,
                "subresource": part,
                "name": name if atom.name is None else atom.name,
            }
            # "*/*" has no exact intersection with others, so an atom may say more than all rules do.
            if all(not rule.resources or resource_matches(rule, Request(user="", verb="", **found)) for rule in must):
                yield found


def _path(spec: str, known: Iterable[str]) -> str:
    """A path that ``spec`` matches, and of the known patterns only those that match all of ``spec``."""
    if not spec.endswith("*"):
        return spec
    base = spec.rstrip("*") or "/"
    taken = {path[len(base) : len(base) + 1] for path in known if path.startswith(base)} - {"*"}
    usual = ["other", "some"] if base.endswith("/") else ["/other", "-other"]
    unusual = (chr(0x4E00 + number) for number in range(len(taken) + 1))
    return base + next(rest for rest in (*usual, *unusual) if rest[0] not in taken)


def _unnamed(usual: Sequence[str], known: Collection[str | None]) -> str:
    """The first of the usual values that is not known; if all are, one nobody uses."""
    numbered = (f"{usual[0]}-{number}" for number in range(2, len(known) + 3))
    return next(candidate for candidate in (*usual, *numbered) if candidate not in known)


# -- the choice ------------------------------------------------------------------------------------------------------


def _least(options: list[tuple[int, Part]]) -> list[tuple[int, Part]]:
    """Without values that more rules accept than another value: whatever they can do, the other can."""
    distinct: dict[int, Part] = {}
    for accepted, part in options:
        distinct.setdefault(accepted, part)
    least: list[tuple[int, Part]] = []
    for accepted in sorted(distinct, key=int.bit_count):
        if not any(fewer & accepted == fewer for fewer, _ in least):
            least.append((accepted, distinct[accepted]))
    return least


def _without_common_bit(fields: list[list[tuple[int, Part]]]) -> dict[str, Any] | None:
    """One value per field so that no rule accepts all of them, None if there is no such choice."""
    if not all(fields):
        return None
    ordered = sorted(fields, key=len)
    steps = count()
    inevitable = [-1]  # the rules that accept every value of the fields still to come
    for options in reversed(ordered):
        common = inevitable[-1]
        for accepted, _ in options:
            common &= accepted
        inevitable.append(common)
    inevitable.reverse()

    def choose(depth: int, accepting: int) -> dict[str, Any] | None:
        if depth == len(ordered):
            return {} if not accepting else None
        if accepting & inevitable[depth]:
            return None
        if next(steps) > _MOST_STEPS:
            raise Unknown
        for accepted, part in ordered[depth]:
            chosen = choose(depth + 1, accepting & accepted)
            if chosen is not None:
                return {**part, **chosen}
        return None

    return choose(0, -1)


# -- what a cluster could really see ---------------------------------------------------------------------------------


def _lifelike(request: Request, must: Sequence[Rule], avoid: Sequence[Rule]) -> Request:
    """The request with the groups that every user has, and no name where there is none, as far as the rules allow."""
    changes: list[list[Part]] = [
        [
            {"groups": (*request.groups, "system:authenticated")},
            {"user": "system:anonymous", "groups": (*request.groups, "system:unauthenticated")},
            {"user": None, "groups": ()},
            {},
        ],
        [{"name": ""}, {}] if request.verb in _NAMELESS_VERBS and not request.subresource else [{}],
    ]
    for choice in product(*changes):
        merged = {name: value for part in choice for name, value in part.items()}
        lifelike: Request = msgspec.structs.replace(request, **merged)
        if all(rule_matches(rule, lifelike) for rule in must) and not any(
            rule_matches(rule, lifelike) for rule in avoid
        ):
            return lifelike
    return request
