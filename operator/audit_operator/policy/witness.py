"""A request that some rules match and others do not: the proof behind "unreachable", "not covered" and differences.

The search is exact. A field that the rules to match leave open takes a value that no rule names, which escapes the most
rules; a field they restrict is tried value by value, and values that escape the same rules are tried once. What is
found is then made to look like a request people know, as far as that changes nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from itertools import product

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
from audit_operator.policy.model import Request, Rule
from audit_operator.policy.region import NON_RESOURCE, RESOURCE, Atom, Region, shared_atoms

_LIMIT = 20_000
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
    plain = [_without_selector(rule) for rule in must]
    budget = [limit]
    for region in _common(must):
        for scope in (RESOURCE, NON_RESOURCE):
            if region.scope & scope:
                found = _search(_fields(region, plain, avoid, scope), plain, avoid, budget)
                if found is not None:
                    return _familiar(found, plain, avoid)
    return None


def _without_selector(rule: Rule) -> Rule:
    return msgspec.structs.replace(rule, namespace_selector=None) if rule.namespace_selector is not None else rule


def _common(must: Sequence[Rule]) -> list[Region]:
    """The region that all share, without userGroups: lists of groups that only overlap have no region."""
    common = Region()
    for rule in must:
        region = msgspec.structs.replace(Region.of(rule), user_groups=None)
        both = common & region
        if both is None:
            return []
        if common.atoms is not None and region.atoms is not None:
            # Exactly, where a region is generous: what is tried here is judged by the rules themselves.
            both = msgspec.structs.replace(both, atoms=frozenset(shared_atoms(common.atoms, region.atoms)))
        common = both
    return [common]


Change = dict[str, object]


class _Field(msgspec.Struct, frozen=True):
    """The values to try in one field, and per value the rules to avoid that accept it."""

    values: tuple[tuple[int, Change], ...]


def _fields(region: Region, must: Sequence[Rule], avoid: Sequence[Rule], scope: int) -> list[_Field]:
    resource = scope == RESOURCE
    base = Request(user=_FRESH, verb=_FRESH, is_resource=resource)

    def field(changes: Iterable[Change], accepts: Callable[[Rule, Request], bool]) -> _Field:
        tried: dict[int, Change] = {}
        for change in changes:
            request = msgspec.structs.replace(base, **change)
            tried.setdefault(bits(accepts(rule, request) for rule in avoid), change)
        # A value whose rules are a superset of another's can never do better.
        least = [mask for mask in tried if not any(other & ~mask == 0 and other != mask for other in tried)]
        return _Field(tuple((mask, tried[mask]) for mask in sorted(least, key=int.bit_count)))

    def options(values: frozenset[str] | None) -> list[str]:
        return [_FRESH] if values is None else sorted(values)

    fields = [
        field(
            ({"user": user} for user in options(region.users)), lambda rule, request: user_matches(rule, request.user)
        ),
        field(({"groups": groups} for groups in _groups(must)), groups_match),
        field(
            ({"verb": verb} for verb in options(region.verbs)), lambda rule, request: verb_matches(rule, request.verb)
        ),
    ]
    if not resource:
        paths = (
            "/" + _FRESH if path == "*" else path.rstrip("*") + _FRESH * path.endswith("*")
            for path in region.paths or ("*",)
        )
        return [
            *fields,
            field(
                ({"path": path} for path in sorted(paths)),
                lambda rule, request: non_resource_matches(rule, request.path),
            ),
        ]
    return [
        *fields,
        field(
            ({"namespace": namespace} for namespace in options(region.namespaces)),
            lambda rule, request: namespace_matches(rule, request.namespace),
        ),
        field(
            (_of_atom(atom) for atom in sorted(region.atoms or (Atom(None, None, None),), key=repr)), resource_matches
        ),
    ]


def _groups(must: Sequence[Rule]) -> Iterator[tuple[str, ...]]:
    """One group for every rule that asks for groups; more would only match more rules."""
    lists = [sorted(rule.user_groups) for rule in must if rule.user_groups]
    for choice in product(*lists):
        yield tuple(sorted(set(choice)))


def _of_atom(atom: Atom) -> Change:
    group, resource, subresource, name = (_FRESH if part is None else part for part in atom)
    return {"api_group": group, "resource": resource, "subresource": subresource, "name": name}


def _search(fields: Sequence[_Field], must: Sequence[Rule], avoid: Sequence[Rule], budget: list[int]) -> Request | None:
    """Depth first; ``standing`` are the rules to avoid that still accept all that was chosen."""
    # The field that escapes the most rules first: it prunes the most.
    ordered = sorted(fields, key=lambda field: min((mask.bit_count() for mask, _ in field.values), default=0))
    everything = (1 << len(avoid)) - 1
    # What the remaining fields can escape at best; if that is not enough, no choice of them is.
    floors = [everything]
    for field in reversed(ordered):
        floors.append(floors[-1] & reduce(int.__and__, (mask for mask, _ in field.values), everything))
    floors.reverse()

    def choose(depth: int, standing: int, chosen: Change) -> Request | None:
        budget[0] -= 1
        if budget[0] < 0:
            raise Unknown(f"no answer after {_LIMIT} combinations")
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

    return choose(0, everything, {})


def _familiar(found: Request, must: Sequence[Rule], avoid: Sequence[Rule]) -> Request:
    """The same proof with values people know, where any would do."""

    def proves(request: Request) -> bool:
        return all(rule_matches(rule, request) for rule in must) and not any(
            rule_matches(rule, request) for rule in avoid
        )

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
