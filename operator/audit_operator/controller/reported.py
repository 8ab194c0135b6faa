"""What receivers report, as conditions. Pure; the words change only when something happens, for each change is a write.

So no message holds a number that grows: those are metrics.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from audit_operator.render.apiserver import APISERVER
from audit_operator.render.program import Program, SinkProgram, policies_of
from audit_operator.render.report import DELIVERING, IDLE, SinkStatus, Status
from audit_operator.render.status import Condition, counted, false, not_observed, see_sink, true, under_way, whose
from audit_operator.render.tenants import Refusal
from audit_operator.render.world import Identity

LATELY: Final = 300.0
"""Seconds for which what was lost or refused stays in a condition."""

_SETTLING: Final = 120.0
"""Seconds in which what fails may come right by itself: credentials reach a receiver's volume within about a minute."""

_FILLING: Final = 0.5
"""The part of what a journal may take from which on somebody should look."""

_QUIET: Final = 900.0
"""Seconds without any event after which nobody can tell whether events still flow."""

_WORST_FIRST: Final = ("Misconfigured", "Unauthorized", "QuarantineFull", "JournalError", "Unreachable", "Throttled")
_DELIVERING: Final = "Delivering"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the receiver in ``pod`` said when it was last asked; ``status`` None: nothing, and ``error`` says why.

    ``ready``: whether the kubelet sends it events. ``dropped``, ``refused_events``: sinks that lost, or refused for
    good, events of this receiver lately. ``not_covered``: policies that lately asked for more than was recorded.
    """

    pod: str
    ready: bool
    status: Status | None = None
    error: str = ""
    dropped: frozenset[str] = frozenset()
    refused_events: frozenset[str] = frozenset()
    not_covered: frozenset[str] = frozenset()


class Reported(msgspec.Struct, frozen=True, kw_only=True):
    """What all receivers together say. ``asked``: whether anybody asks receivers at all.

    ``answering``: receivers that answer. ``behind``: receivers that answer and do not run the wanted program -> its
    hash, empty for none. ``sinks``: ``namespace/name`` -> Delivering. ``not_covered``: policies, likewise.
    """

    asked: bool
    answering: int = 0
    behind: Mapping[str, str] = {}
    sinks: Mapping[str, Condition] = {}
    backend: tuple[Condition, ...] = ()
    not_covered: frozenset[str] = frozenset()


NOBODY: Final = Reported(asked=False)


def reported(answers: Iterable[Answer], program: Program, hash_: str, root_namespace: str, now: datetime) -> Reported:
    """What is to be said, given that ``program``, known as ``hash_``, is to run."""
    everybody = sorted(answers, key=lambda answer: answer.pod)
    heard = [(answer, answer.status) for answer in everybody if answer.status is not None]
    by_sink: dict[str, list[tuple[Answer, SinkStatus]]] = {}
    for answer, status in heard:
        for each in status.sinks:
            by_sink.setdefault(each.name, []).append((answer, each))
    sinks = {}
    for sink in program.sinks:
        name = f"{sink.namespace}/{sink.name}"
        if name in by_sink:
            sinks[name] = _sink(by_sink[name], name, now)
    return Reported(
        asked=True,
        answering=len(heard),
        behind={answer.pod: status.program.hash for answer, status in heard if status.program.hash != hash_},
        sinks=sinks,
        backend=(
            _program_in_force(everybody, heard, hash_),
            *_fare(heard, {name: each for name, each in sinks.items() if name.startswith(f"{root_namespace}/")}, now),
        ),
        not_covered=frozenset().union(*(answer.not_covered for answer in everybody)),
    )


# --- a sink ----------------------------------------------------------------------------------------------------------


def _sink(states: Sequence[tuple[Answer, SinkStatus]], name: str, now: datetime) -> Condition:
    """Delivering, of the sink ``name``, as every receiver sees it that has it."""
    dropping = [status for _, status in states if status.dropping]
    failing = [status for _, status in states if status.state not in (DELIVERING, IDLE)]
    worst = min(failing, key=_severity, default=None)
    why = f" because of this: {worst.message}" if worst is not None and worst.message else ""
    if dropping:
        everywhere = len(dropping) == len(states)
        return false(
            _DELIVERING,
            Refusal(
                "AllDataDropped" if everywhere else "SomeDataDropped",
                f"{_of(dropping, states)}: its part of the journal is used up, so new events for it are lost{why}",
            ),
        )
    limiting = [status for _, status in states if status.limiting]
    if limiting:
        said = f"{_of(limiting, states)}: {limiting[0].why_dropping}; what is above is dropped{why}"
        return false(_DELIVERING, Refusal("SomeDataDropped", said))
    if any(name in answer.dropped for answer, _ in states):
        lost = "events for it were lost in the last minutes, because its part of the journal was used up"
        return false(_DELIVERING, Refusal("SomeDataDropped", f"{lost}{why}"))
    filling = [status for _, status in states if status.backlog_bytes > _FILLING * status.share_bytes > 0]
    full = f"; {_of(filling, states)}: over half of its part of the journal is used" if filling else ""
    if worst is not None:
        since = datetime.fromtimestamp(min(each.since for each in failing), UTC)
        said = f"{_of(failing, states)}: {worst.message or worst.state} (since {since:%Y-%m-%d %H:%M} UTC){full}"
        if worst.state == "Throttled" or (now - since).total_seconds() < _SETTLING:
            return under_way(_DELIVERING, worst.state, said)
        return false(_DELIVERING, Refusal(worst.state, said))
    if any(name in answer.refused_events for answer, _ in states):
        said = "it refused events for good in the last minutes; `audit-operator quarantine` shows them and why"
        return false(_DELIVERING, Refusal("SomeDataRefused", said))
    if filling:
        return under_way(_DELIVERING, "BufferFillingUp", full.removeprefix("; "))
    past = [
        text
        for count, text in (
            (
                sum(status.dropped - status.limited for _, status in states),
                "were lost, because its part of the journal was used up",
            ),
            (sum(status.limited for _, status in states), "were dropped, because tenants' policies asked for too many"),
            (sum(status.dead_lettered for _, status in states), "were refused by it and are in quarantine"),
            (sum(status.damaged for _, status in states), "were damaged in the journal and are lost"),
        )
        if count
    ]
    rest = "".join(f"; since the receivers started events {text}" for text in past)
    if all(status.last_delivery is None for _, status in states):
        return true(_DELIVERING, f"no event has been for it yet{rest}", "NothingToDeliver")
    return true(_DELIVERING, f"it takes events{rest}")


def _severity(status: SinkStatus) -> tuple[int, float, str]:
    worst = _WORST_FIRST.index(status.state) if status.state in _WORST_FIRST else len(_WORST_FIRST)
    return worst, status.since, status.message


def _of(some: Sequence[object], all_: Sequence[object]) -> str:
    return f"{len(some)} of {counted(len(all_), 'receiver')}"


# --- the AuditBackend ------------------------------------------------------------------------------------------------


def _fare(
    heard: Sequence[tuple[Answer, Status]], platforms: Mapping[str, Condition], now: datetime
) -> Iterator[Condition]:
    """How receivers fare; ``platforms``: the platform's sinks. A tenant's sink is the tenant's affair."""
    if not heard:
        yield not_observed("EventsFlowing", "no receiver answers the operator")
        return
    idle = [f"{answer.pod}: {status.why}" for answer, status in heard if not status.ready and status.program.hash]
    if idle:
        yield under_way("ReceiverReady", "NotTakingEvents", "\n".join(idle))
    old = [f"{answer.pod}: {status.certificates}" for answer, status in heard if status.certificates]
    if old:
        yield false("CertificatesValid", Refusal("NotLoaded", "\n".join(old)))
    yield _delivering(heard, platforms)
    yield _events_flowing(heard, now)


def _program_in_force(everybody: Sequence[Answer], heard: Sequence[tuple[Answer, Status]], hash_: str) -> Condition:
    kind = "ProgramInForce"
    running = [answer for answer, status in heard if status.program.hash == hash_]
    said = f"{len(running)} of {counted(len(everybody), 'receiver')} run program {hash_}"
    refusing = [
        f"{answer.pod} refuses it: {status.program.refused}"
        for answer, status in heard
        if status.program.hash != hash_ and status.program.refused
    ]
    silent = [f"{answer.pod} does not answer: {answer.error}" for answer in everybody if answer.status is None]
    message = "\n".join((said, *refusing, *silent))
    if refusing:
        return false(kind, Refusal("ProgramRefused", message))
    if len(running) < len(heard):
        return under_way(kind, "RollingOut", message)
    # One that is not ready takes no events, and gets the program when it comes up.
    if any(answer.ready for answer in everybody if answer.status is None):
        return Condition(kind, "Unknown", "ReceiverSilent", message)
    return true(kind, message) if running else not_observed(kind, message)


def _delivering(heard: Sequence[tuple[Answer, Status]], sinks: Mapping[str, Condition]) -> Condition:
    """Delivering of the AuditBackend."""
    failing = [(name, sink) for name, sink in sorted(sinks.items()) if sink.status != "True"]
    if failing:
        said = "\n".join(f"AuditSink {name}: {sink.reason}" for name, sink in failing)
        moving = all(sink.under_way for _, sink in failing)
        reason = failing[0][1].reason
        return under_way(_DELIVERING, reason, said) if moving else false(_DELIVERING, Refusal(reason, said))
    filling = [answer.pod for answer, status in heard if status.journal_bytes > _FILLING * status.journal_limit > 0]
    if filling:
        said = f"over half of the journal is used: {', '.join(filling)}"
        return under_way(_DELIVERING, "BufferFillingUp", said)
    return true(_DELIVERING, f"{counted(len(sinks), 'sink')} of the platform, and nothing is held up")


def _events_flowing(heard: Sequence[tuple[Answer, Status]], now: datetime) -> Condition:
    """EventsFlowing. A policy may record next to nothing, so silence is no failure, and keeps nobody waiting."""
    kind = "EventsFlowing"
    last: dict[str, float] = {}
    for _, status in heard:
        for server, stamp in status.servers.items():
            last[server] = max(last.get(server, 0.0), _epoch(stamp))
    if not last:
        return not_observed(
            kind, f"no API server has sent an event since receivers started: install what ConfigMap {APISERVER} has"
        )
    flowing = sorted(server for server, at in last.items() if now.timestamp() - at < _QUIET)
    malformed = "; some items were no events, and are in quarantine" if _malformed(heard) else ""
    if not flowing:
        return not_observed(kind, f"for over {_QUIET / 60:g} minutes no API server has sent an event{malformed}")
    return true(kind, f"events of {', '.join(flowing)} arrive{malformed}")


def _malformed(heard: Sequence[tuple[Answer, Status]]) -> bool:
    return any(status.quarantine.get("malformed") for _, status in heard)


def _epoch(stamp: str) -> float:
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return 0.0


# --- for each resource -----------------------------------------------------------------------------------------------


class Conditions:
    """The conditions of policies and sinks that follow from what is reported. Made for one pass."""

    def __init__(self, found: Reported, wanted: Program, earlier: Mapping[str, Program]) -> None:
        self._found = found
        self._policies = policies_of(wanted)
        self._sinks = _sinks(wanted)
        programs = {hash_: earlier.get(hash_) for hash_ in set(found.behind.values())}
        self._old_policies = {hash_: policies_of(each) for hash_, each in programs.items() if each is not None}
        self._old_sinks = {hash_: _sinks(each) for hash_, each in programs.items() if each is not None}

    def of(self, identity: Identity) -> Iterator[Condition]:
        """Those of one AuditPolicy or AuditSink."""
        name = f"{identity.namespace}/{identity.name}"
        if not self._found.asked:
            return
        if not self._found.answering:
            if name in (self._policies if identity.kind == "AuditPolicy" else self._sinks):
                yield not_observed(_DELIVERING, "no receiver answers the operator; see AuditBackend default")
            return
        if identity.kind == "AuditSink" and name in self._sinks:
            yield self._sink(name)
        elif identity.kind == "AuditPolicy" and name in self._policies:
            yield self._policy(name)
            if name in self._found.not_covered:
                yield false("Covered", Refusal("NotCovered", _NOT_COVERED))

    def _sink(self, name: str) -> Condition:
        if late := self._late(name, self._sinks[name], self._old_sinks):
            return late
        return self._found.sinks.get(name) or under_way(_DELIVERING, "RollingOut", "no receiver has it yet")

    def _policy(self, name: str) -> Condition:
        part = self._policies[name]
        if late := self._late(name, part, self._old_policies):
            return late
        for sink in part[1].sinks:
            found = self._sink(sink)
            if found.status != "True":
                # Who may read a policy may not read what another namespace's server answers.
                own = whose(sink) == part[1].namespace
                said = f"AuditSink {sink}: {found.message if own else see_sink(found.reason)}"
                return Condition(_DELIVERING, found.status, found.reason, said, found.under_way)
        takes = "takes" if len(part[1].sinks) == 1 else "take"
        return true(_DELIVERING, f"in force in every receiver that runs; {', '.join(part[1].sinks)} {takes} its events")

    def _late(self, name: str, part: object, old: Mapping[str, Mapping[str, object]]) -> Condition | None:
        """A receiver that runs another program matters only to those whose part of it is another."""
        late = sorted(
            pod for pod, hash_ in self._found.behind.items() if hash_ not in old or old[hash_].get(name) != part
        )
        if not late:
            return None
        said = f"not in force yet in {', '.join(late)}; see condition ProgramInForce of AuditBackend default"
        return under_way(_DELIVERING, "RollingOut", said)


_NOT_COVERED: Final = (
    "in the last minutes API servers recorded events at a lower level than it asks for: they do not run the newest "
    f"policy file; install what ConfigMap {APISERVER} has"
)


def _sinks(program: Program) -> dict[str, SinkProgram]:
    return {f"{each.namespace}/{each.name}": each for each in program.sinks}
