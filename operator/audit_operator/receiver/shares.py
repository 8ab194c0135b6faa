"""How the journal and the memory are divided. Pure.

A sink that is dead fills its own part and none of the others'. Tenants' sinks have a part of the whole, divided by
namespace and then by sink: what one namespace does costs no other and not the platform. Whose a sink is, its namespace
says, whoever's policies deliver to it.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from audit_operator.render.program import Program, SinkProgram

_TENANTS: Final = 0.4
_PLATFORM: Final = 0.5
"""Of the journal, where there are tenants. The rest is what may be on its way when a part is used up, so that all parts
together stay below the mark at which API servers are told to wait. Without tenants the platform has all of it: its
sinks are the ones to wait for then.
"""

_EVENTS: Final = 0.8
"""Of a tenant's part. The rest is for what its sinks refuse."""


class Shares(NamedTuple):
    """Bytes. ``logs``: of the journal, by sink. ``quarantines``: by sink of a tenant. ``namespaces``: of one tenant's
    sinks, together; ``tenants``: of all of them.
    """

    logs: Mapping[str, int]
    quarantines: Mapping[str, int]
    namespaces: Mapping[str, int]
    tenants: int


def shares(program: Program) -> Shares:
    """How the journal is divided."""
    platform, theirs = divided(program)
    whole = program.journal_limit
    if not theirs:
        return Shares({name: whole // len(platform) for name in platform}, {}, {}, int(whole * _TENANTS))
    together = int(whole * _TENANTS)
    each = together // len(theirs)
    if program.tenants is not None:
        each = min(each, program.tenants.journal_bytes)
    logs = {name: int(whole * _PLATFORM) // len(platform) for name in platform}
    quarantines = {}
    for names in theirs.values():
        for name in names:
            logs[name] = int(each * _EVENTS) // len(names)
            quarantines[name] = each // len(names) - logs[name]
    return Shares(logs, quarantines, dict.fromkeys(theirs, each), together)


def memory(program: Program, most: int) -> dict[str, int]:
    """Bytes of events that each sink may have in the memory, of ``most``: by concurrency, and tenants half of it."""
    platform, theirs = divided(program)
    wide = {name_of(sink): sink.concurrency for sink in program.sinks}
    half = most // 2 if platform and theirs else most
    found: dict[str, int] = {}
    for names, part in ((platform, half), *((names, half // len(theirs)) for names in theirs.values())):
        together = sum(wide[name] for name in names)
        found |= {name: part * wide[name] // together for name in names}
    return found


def divided(program: Program) -> tuple[list[str], dict[str, list[str]]]:
    """Sinks of the platform, and those of tenants by namespace."""
    known = tenants(program)
    platform: list[str] = []
    theirs: dict[str, list[str]] = {}
    for sink in program.sinks:
        (theirs.setdefault(sink.namespace, []) if sink.namespace in known else platform).append(name_of(sink))
    return platform, theirs


def tenants(program: Program) -> frozenset[str]:
    """The tenants' namespaces that the program names."""
    if program.tenants is None:  # there are none, or an older version wrote it
        return frozenset(policy.tenant for policy in program.policies if policy.tenant is not None)
    named = {sink.namespace for sink in program.sinks} | {policy.namespace for policy in program.policies}
    return frozenset(named - {program.tenants.root_namespace})


def of_a_tenant(program: Program, namespace: str) -> bool:
    """Whether sinks of this namespace, in the program or no longer, are a tenant's."""
    if program.tenants is None:
        return namespace in tenants(program)
    return namespace != program.tenants.root_namespace


def name_of(sink: SinkProgram) -> str:
    """``namespace/name``."""
    return f"{sink.namespace}/{sink.name}"
