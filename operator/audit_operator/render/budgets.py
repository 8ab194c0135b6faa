"""What is scarce for all, in bytes, and who gets how much of it: the platform first, then tenants in fair parts.

What one namespace asks for is never weighed against another's wish, only against an equal part: whoever asks for less
than that gets all of it, and of those who ask for more each loses its own newest.
"""

import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple, TypeVar

import msgspec

from audit_operator.policy.memo import Same
from audit_operator.render.program import Program
from audit_operator.render.world import Identity
from audit_operator.resources.auditpolicy import AuditPolicy
from audit_operator.resources.auditsink import AuditSink

Key = TypeVar("Key", bound=Hashable)

_MANY: Final = 8192
"""Resources whose size is remembered, by who they are (see `remembered`)."""

_DENSEST: Final = 32
"""How many bytes of text count like one that is packed: what packs well needs room in memory and on the wire."""


class Demand(NamedTuple):
    """What one resource needs of what is scarce. ``age``: the smaller, the older."""

    identity: Identity
    age: tuple[str, ...]
    size: int


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
    used = 0
    out: dict[Identity, int] = {}
    for demand in sorted(demands, key=lambda each: (each.age, each.identity)):
        if used + demand.size > most:
            out[demand.identity] = used + demand.size
        else:
            used += demand.size
    return out


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
        demands.setdefault(namespace, []).append(Demand(identity, age, size))

    for sink in program.sinks:
        add(AuditSink.__name__, sink.namespace, sink.name, weight(msgspec.json.encode(sink)))
    for policy in program.policies:
        size = weight(msgspec.json.encode(policy)) + lists[policy.rule_list] // users[policy.rule_list]
        add(AuditPolicy.__name__, policy.namespace, policy.name, size)

    platform = demands.pop(root_namespace, [])
    out = dict.fromkeys(excess(platform, most), most)
    left = most - sum(demand.size for demand in platform if demand.identity not in out)
    part = equal_part((sum(each.size for each in theirs) for theirs in demands.values()), left)
    for theirs in demands.values():
        out |= dict.fromkeys(excess(theirs, part), part)
    return out
