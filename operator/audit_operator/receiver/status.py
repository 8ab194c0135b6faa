"""What the operator reads of a receiver, to make conditions of: JSON with a versioned schema, at GET /status."""

from typing import Final

import msgspec

from audit_operator.receiver.certificates import Certificates
from audit_operator.receiver.delivery import Worker
from audit_operator.receiver.intake import Intake
from audit_operator.receiver.journal import Log
from audit_operator.receiver.programs import Programs
from audit_operator.receiver.quarantine import MALFORMED, Quarantine
from audit_operator.receiver.running import Running, name_of

SCHEMA: Final = "status.receiver.audit-operator.dev/v1"


class _Wire(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """camelCase; readers ignore what they do not know."""


class ProgramStatus(_Wire, frozen=True):
    """``hash``: `text_hash` of the program in force, empty for none. ``refused``: why the newer one ``refused_hash``
    does not run.
    """

    hash: str
    source: str
    refused: str
    refused_hash: str


class SinkStatus(_Wire, frozen=True):
    """One sink of the program.

    ``state``: Delivering; Unreachable, Unauthorized, Throttled, Misconfigured, QuarantineFull or JournalError, since
    ``since`` (seconds since the epoch), with ``message`` for a person. ``backlog_bytes`` of ``share_bytes`` wait in the
    journal, the oldest for ``oldest_seconds``. Counters are since the start of the receiver: ``dropped`` never reached
    the journal because the share was used up, ``dead_lettered`` the sink refused for good, ``damaged`` could not be
    read back. ``dropping``: the share is used up now.
    """

    name: str
    type: str
    state: str
    message: str
    since: float
    last_delivery: float | None
    backlog_events: int
    backlog_bytes: int
    share_bytes: int
    oldest_seconds: float
    delivered: int
    retried: int
    dead_lettered: int
    dropped: int
    damaged: int
    dropping: bool


class Status(_Wire, frozen=True):
    """``ready``: events are taken; if not, ``why`` says why. ``servers``: API server -> stageTimestamp of its last
    event. ``not_covered``: policy -> events recorded at a lower level than it asks for. ``orphans``: sinks that are in
    the program no longer -> events that wait for them. ``quarantine``: sink or ``malformed`` -> bytes.
    """

    schema: str
    receiver: str
    ready: bool
    why: str
    program: ProgramStatus
    certificates: str
    journal_bytes: int
    journal_limit: int
    servers: dict[str, str]
    not_covered: dict[str, int]
    sinks: list[SinkStatus]
    orphans: dict[str, int]
    quarantine: dict[str, int]


def status(receiver: str, running: Running, programs: Programs, certificates: Certificates, intake: Intake) -> Status:
    """As it is now."""
    journal, quarantine = running.journal, running.quarantine
    state = programs.state
    program = running.program
    full = frozenset(running.full())
    sinks = []
    for sink in program.sinks if program else ():
        name = name_of(sink)
        worker, log = running.workers.get(name), journal.logs.get(name)
        if log is not None:
            sinks.append(_sink(name, sink.type, worker, log, dropped=intake.dropped.get(name, 0), full=name in full))
    return Status(
        schema=SCHEMA,
        receiver=receiver,
        ready=not running.refusal,
        why=running.refusal,
        program=ProgramStatus(
            hash=state.hash, source=state.source, refused=state.refused, refused_hash=state.refused_hash
        ),
        certificates=certificates.error,
        journal_bytes=journal.size,
        journal_limit=program.journal_limit if program else 0,
        servers=dict(intake.last_event),
        not_covered=dict(intake.not_covered),
        sinks=sinks,
        orphans=dict(running.orphans),
        quarantine=_sizes(quarantine, [MALFORMED, *(sink.name for sink in sinks)]),
    )


def _sink(name: str, kind: str, worker: Worker | None, log: Log, *, dropped: int, full: bool) -> SinkStatus:
    condition = worker.condition if worker is not None else None
    return SinkStatus(
        name=name,
        type=kind,
        state=(condition.error if condition else "") or "Delivering",
        message=condition.message if condition else "",
        since=condition.since if condition else 0.0,
        last_delivery=condition.last_delivery if condition else None,
        backlog_events=log.backlog,
        backlog_bytes=log.size if log.backlog else 0,
        share_bytes=log.limit or 0,
        oldest_seconds=worker.oldest_age if worker is not None else 0.0,
        delivered=condition.delivered if condition else 0,
        retried=condition.retried if condition else 0,
        dead_lettered=condition.dead_lettered if condition else 0,
        dropped=dropped,
        damaged=(condition.damaged if condition else 0),
        dropping=full,
    )


def _sizes(quarantine: Quarantine, names: list[str]) -> dict[str, int]:
    return {name: size for name in names if (size := quarantine.size(name))}


def encoded(current: Status) -> bytes:
    """As JSON."""
    return msgspec.json.encode(current)
