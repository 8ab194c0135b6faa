"""What is scarce for all, in bytes, and who gets how much of it: the platform first, then tenants in fair parts.

What one namespace asks for is never weighed against another's wish, only against an equal part: whoever asks for less
than that gets all of it, and of those who ask for more each loses its own newest.
"""

import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from audit_operator.policy.memo import Same
from audit_operator.render.program import Program
from audit_operator.render.world import Identity
from audit_operator.resources.auditpolicy import AuditPolicy
from audit_operator.resources.auditsink import AuditSink

_MANY: Final = 8192
"""Resources whose size is remembered, by who they are (see `remembered`)."""

_DENSEST: Final = 32
"""How many bytes of text count like one that is packed: what packs well needs room in memory and on the wire."""


class Demand(NamedTuple):
    """What one resource needs of what is scarce: ``parts`` with their bytes; one that several need is there once.

    ``age``: the smaller, the older.
    """

    identity: Identity
    age: tuple[str, ...]
    parts: Mapping[Hashable, int]


def spec_bytes(resource: AuditPolicy | AuditSink) -> int:
    """Bytes of the spec as compact JSON, without what is the default anyway."""
    return _spec_bytes(Same(resource))


@lru_cache(maxsize=_MANY)
def _spec_bytes(same: Same[AuditPolicy | AuditSink]) -> int:
    return len(same.value.spec.model_dump_json(by_alias=True, exclude_defaults=True).encode())


def weight(text: bytes) -> int:
    """What a part of the receivers' program counts: its bytes as gzip has them, and something if it packs well."""
    return max(len(zlib.compress(text)), len(text) // _DENSEST)


def excess(demands: Iterable[Demand], most: int) -> dict[Identity, int]:
    """The resources that ``most`` has no room for -> what they and all older ones that have need together.

    Of the oldest first each has what it needs, if it is there: one that is too large is left out alone.
    """
    return _filled(demands, most, {})


def _filled(demands: Iterable[Demand], most: int, held: dict[Hashable, int]) -> dict[Identity, int]:
    """As `excess`; what has room is added to ``held``."""
    used = sum(held.values())
    out: dict[Identity, int] = {}
    for demand in sorted(demands, key=lambda each: (each.age, each.identity)):
        needed = used + sum(size for part, size in demand.parts.items() if part not in held)
        if needed > most:
            out[demand.identity] = needed
        else:
            held.update(demand.parts)
            used = needed
    return out


def divided(groups: Iterable[Sequence[Demand]], most: int) -> dict[Identity, int]:
    """The resources that ``most`` has no room for, if every group has its part of it -> how much that is.

    What is left, because resources are no dust, is for the oldest of those that did not fit.
    """
    wanted = list(groups)
    part = equal_part((sum(_together(group).values()) for group in wanted), most)
    held: dict[Hashable, int] = {}
    late: list[Demand] = []
    for number, group in enumerate(wanted):
        own: dict[Hashable, int] = {}
        out = _filled(group, part, own)
        held |= {(number, each): size for each, size in own.items()}
        late += [
            demand._replace(parts={(number, each): size for each, size in demand.parts.items()})
            for demand in group
            if demand.identity in out
        ]
    return dict.fromkeys(_filled(late, most, held), part)


def _together(demands: Iterable[Demand]) -> dict[Hashable, int]:
    return {part: size for demand in demands for part, size in demand.parts.items()}


def equal_part(sizes: Iterable[int], most: int) -> int:
    """What nobody gets more of, so that all together get ``most``: who needs less leaves the rest to the others.

    ``most``, if there is enough for all.
    """
    left, waiting = max(most, 0), sorted(sizes)
    for number, size in enumerate(waiting):
        part = left // (len(waiting) - number)
        if size > part:
            return part
        left -= size
    return max(most, 0)


def program_excess(
    program: Program, ages: Mapping[Identity, tuple[str, ...]], root_namespace: str, most: int
) -> dict[Identity, int]:
    """The resources without which the program has about ``most`` bytes as gzip -> what their namespace may have.

    A list of rules that several policies share counts for each in part.
    """
    users = Counter(policy.rule_list for policy in program.policies)
    lists = [weight(msgspec.json.encode(each)) for each in program.rule_lists]
    demands: dict[str, list[Demand]] = {}

    def add(kind: str, namespace: str, name: str, size: int) -> None:
        identity = Identity(kind, namespace, name)
        # Without its sinks no policy delivers anything: they come first.
        age = ("" if kind == AuditSink.__name__ else "policy", *ages.get(identity, ()))
        demands.setdefault(namespace, []).append(Demand(identity, age, {identity: size}))

    for sink in program.sinks:
        add(AuditSink.__name__, sink.namespace, sink.name, weight(msgspec.json.encode(sink)))
    for policy in program.policies:
        size = weight(msgspec.json.encode(policy)) + lists[policy.rule_list] // users[policy.rule_list]
        add(AuditPolicy.__name__, policy.namespace, policy.name, size)

    platform = demands.pop(root_namespace, [])
    held: dict[Hashable, int] = {}
    out = dict.fromkeys(_filled(platform, most, held), most)
    return out | divided(demands.values(), most - sum(held.values()))
