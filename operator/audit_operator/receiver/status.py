"""What the operator reads of a receiver, to make conditions of: JSON with a versioned schema, at GET /status."""

import time
from typing import Final

from msgspec import structs

from audit_operator.receiver.certificates import Certificates
from audit_operator.receiver.delivery import Condition, Worker
from audit_operator.receiver.intake import Intake, Limited
from audit_operator.receiver.journal import Log
from audit_operator.receiver.programs import Programs
from audit_operator.receiver.quarantine import MALFORMED, Quarantine
from audit_operator.receiver.running import Running
from audit_operator.receiver.shares import name_of, of_a_tenant
from audit_operator.render.program import Program, SinkProgram
from audit_operator.render.report import DELIVERING, IDLE, SCHEMA, ProgramStatus, SinkStatus, Status


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
            dropped = intake.dropped.get(name, 0) + running.shed.get(name, 0)
            limited = intake.limited.get(name)
            found = _sink(name, sink.type, worker, log, dropped=dropped, full=name in full)
            sinks.append(_explained(found, program, sink, limited) if program else found)
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
        state=_state(condition),
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


def _state(condition: Condition | None) -> str:
    """In a word. Nothing is said to deliver that has never taken anything."""
    if condition is None or not (condition.error or condition.delivered):
        return IDLE
    return condition.error or DELIVERING


_LATELY: Final = 60.0
"""Seconds for which a limit that was passed is said."""


def _explained(found: SinkStatus, program: Program, sink: SinkProgram, limited: Limited | None) -> SinkStatus:
    """With why events are dropped, if they are."""
    limiting = limited is not None and time.monotonic() - limited.last < _LATELY
    why = ""
    if found.dropping:
        whose = f"namespace {sink.namespace}" if of_a_tenant(program, sink.namespace) else "this sink"
        why = f"what waits for it takes up the part of the journal that {whose} may have"
    elif limiting and program.tenants is not None:
        most = program.tenants.events_per_second
        why = f"tenants' policies ask for more than {most} events a second of a namespace, or for more work on them"
    events = limited.events if limited is not None else 0
    return structs.replace(found, limiting=limiting, limited=events, why_dropping=why)


def _sizes(quarantine: Quarantine, names: list[str]) -> dict[str, int]:
    return {name: size for name in names if (size := quarantine.size(name))}
