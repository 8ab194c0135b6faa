"""A POST from its body to the moment it may be answered 200: split, decide, cut, journal."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeVar

from msgspec import Raw

from audit_operator.policy.events import Event, EventError, decode, split
from audit_operator.policy.model import STAGES, Level
from audit_operator.policy.request import request_of
from audit_operator.receiver.cutting import Cut, cut
from audit_operator.receiver.deciding import Deciding, Plan
from audit_operator.receiver.duplicates import Duplicates, Key, key, moment
from audit_operator.receiver.journal import AppendError, Blocks, Entry, Journal, blocks
from audit_operator.receiver.metrics import Metrics
from audit_operator.receiver.quarantine import MALFORMED, FullError, Held, Quarantine, malformed

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class BodyError(ValueError):
    """The body is no EventList: nothing of it is taken."""


class BusyError(Exception):
    """Nothing of it is taken now; it may be later."""


class Target(Protocol):
    """The program in force, as far as events are concerned."""

    @property
    def deciding(self) -> Deciding:
        """What decides."""

    def full(self) -> Collection[str]:
        """The sinks whose part of the journal is used up: they get nothing more for now."""

    def crowded(self) -> Collection[str]:
        """The sinks that get nothing more for now of what only tenants' policies ask for."""

    def admits(self, namespace: str) -> bool:
        """Whether the policies of a tenant's namespace may have one more event; it counts then."""

    def spend(self, namespace: str, seconds: float) -> None:
        """What an event of a tenant's namespace has cost of the processor, for its policies alone."""


_LEVELS: Final = {str(level): level for level in Level if level is not Level.NONE}
_STAGES: Final = frozenset(map(str, STAGES))

_AT_A_TIME: Final = 200
"""Events decided before others get a turn: some milliseconds."""
_WORKED: Final = 0.005
"""Seconds of work after which they do, where a tenant's redactions may take that long for one event."""


_LARGE: Final = 1 << 20
"""Bytes from which on a body is taken apart, and an event cut and redacted, in a thread: redaction of 20 MB takes more
than a second, in which health checks and other API servers must be answered.
"""


class Limited(NamedTuple):
    """``events`` since the start, the last of them at ``last`` (`time.monotonic`)."""

    events: int
    last: float


class _Gathered(NamedTuple):
    """What a POST comes to."""

    entries: dict[str, list[Entry]]
    keys: list[Key]
    keys_of: dict[str, list[Key]]
    waits: "set[asyncio.Future[bool]]"
    malformed: list[Held]


class Intake:
    """Takes POSTs, several at the same time."""

    def __init__(self, journal: Journal, quarantine: Quarantine, metrics: Metrics, duplicates: Duplicates) -> None:
        self._journal = journal
        self._quarantine = quarantine
        self._metrics = metrics
        self._duplicates = duplicates
        self.last_event: dict[str, str] = {}
        """API server -> stageTimestamp of the event last taken."""
        self.not_covered: dict[str, int] = {}
        """Policy -> events that were recorded at a lower level than it asks for, since the start."""

        self.dropped: dict[str, int] = {}
        """Sink -> events it does not get because its part of the journal was full, or because of `limited`, since the
        start.
        """
        self.limited: dict[str, Limited] = {}
        """Sink -> events it does not get because a tenant's policies asked for too many."""
        # One: several would only take the interpreter from each other, and each large event is in the memory twice.
        self._aside = ThreadPoolExecutor(1, "large")

    def keep(self, policies: Collection[str], sinks: Collection[str]) -> None:
        """Forget the counters of all others: policies and sinks come and go."""
        for counters, known in ((self.not_covered, policies), (self.dropped, sinks), (self.limited, sinks)):
            for name in counters.keys() - set(known):
                counters.pop(name)

    def close(self) -> None:
        """Let the thread for what is large end."""
        self._aside.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._aside, work)

    async def take(self, server: str, body: bytes, target: Target) -> int:
        """Back when every event of the POST is on disk for every sink that gets it; how many events it held.

        Raises BodyError, and BusyError if that could not be done.
        """
        try:
            items = split(body) if len(body) < _LARGE else await self._in_thread(partial(split, body))
        except EventError as error:
            raise BodyError(str(error)) from None
        ours: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        gathered = _Gathered({}, [], {}, set(), [])
        try:
            await self._gather(server, items, target, gathered, ours)
            await self._keep(server, gathered)
            ours.set_result(True)
        finally:
            for each in gathered.keys:
                self._duplicates.pending.pop(each, None)
            if not ours.done():
                ours.set_result(False)
        self._duplicates.take(gathered.keys)
        # Others are writing what came twice: it is taken once they are done.
        for other in gathered.waits:
            if not await other:
                raise BusyError("the first of two POSTs with the same events failed")
        return len(items)

    async def _gather(
        self, server: str, items: Sequence[Raw], target: Target, gathered: _Gathered, ours: "asyncio.Future[bool]"
    ) -> None:
        deciding, full, crowded = target.deciding, frozenset(target.full()), frozenset(target.crowded())
        duplicates, pending, taken = self._duplicates, self._duplicates.pending, self._duplicates.taken
        plans: dict[int, tuple[Plan, int]] = {}
        cuts: list[Cut] = []
        dropped: dict[str, int] = {}
        limited: dict[str, int] = {}
        repeated, latest, worked = 0, "", 0.0
        for index, item in enumerate(items):
            if index % _AT_A_TIME == _AT_A_TIME - 1:
                await asyncio.sleep(0)
            try:
                event = decode(item)
                recorded = _recorded(event)
                raw = bytes(item)
                when = moment(server, event.audit_id, event.stage, event.stage_timestamp)
                name = key(when, raw)
                if name in pending or taken(name):
                    if (other := pending.get(name, ours)) is not ours:
                        gathered.waits.add(other)
                    repeated += 1
                    continue
                pending[name] = ours
                gathered.keys.append(name)
                request = request_of(event)
                plan = deciding.plan(request, event.stage, recorded)
                forms = []
                held = duplicates.held(when)
                closed = full
                if plan.guests:
                    closed = full | (plan.guests & crowded)
                    if not target.admits(request.namespace):
                        for sink in plan.guests - closed:
                            limited[sink] = limited.get(sink, 0) + 1
                        closed |= plan.guests
                for wanted, sinks in plan.routes:
                    open_ = [sink for sink in sinks if sink not in closed and sink not in held]
                    for sink in sinks:
                        if sink in closed:
                            dropped[sink] = dropped.get(sink, 0) + 1
                    if open_ and not plan.guests:
                        done = (
                            cut(raw, event, request, recorded, wanted)
                            if len(raw) < _LARGE
                            else await self._in_thread(partial(cut, raw, event, request, recorded, wanted))
                        )
                        forms.append((done, open_))
                    elif open_:
                        work = partial(_timed, partial(cut, raw, event, request, recorded, wanted))
                        done, seconds = work() if len(raw) < _LARGE else await self._in_thread(work)
                        forms.append((done, open_))
                        if not plan.guests.isdisjoint(open_):
                            target.spend(request.namespace, seconds)
                        worked += seconds
                        if worked > _WORKED:
                            await asyncio.sleep(0)
                            worked = 0.0
            except EventError as error:
                gathered.malformed.append(malformed(server, bytes(item), str(error), _now()))
                continue
            except Exception as error:
                # Whatever is in an item, it does not cost the others; it is kept, and nobody gets it unredacted.
                logger.exception("a bug: an item of API server %s goes to quarantine", server)
                reason = f"this is a bug: {type(error).__name__}"
                gathered.malformed.append(malformed(server, bytes(item), reason, _now()))
                continue
            counted = plans.get(id(plan))
            plans[id(plan)] = (plan, 1 if counted is None else counted[1] + 1)
            for done, sinks_ in forms:
                if done.redacted or done.failed:
                    cuts.append(done)
                entry = Entry(event.audit_id, event.stage, event.stage_timestamp, done.data)
                for sink in sinks_:
                    gathered.entries.setdefault(sink, []).append(entry)
                    gathered.keys_of.setdefault(sink, []).append(name)
            latest = event.stage_timestamp
        if latest:
            self.last_event[self._metrics.server(server)] = latest
        now = time.monotonic()
        for sink, events in limited.items():
            self.limited[sink] = Limited(self.limited.get(sink, Limited(0, now)).events + events, now)
        self._count(server, plans.values(), cuts, dropped, repeated)

    async def _keep(self, server: str, gathered: _Gathered) -> None:
        if gathered.malformed:
            await self._set_aside(server, gathered.malformed)
        if not gathered.entries:
            return
        parts: Mapping[str, Blocks] = {sink: blocks(server, entries) for sink, entries in gathered.entries.items()}
        try:
            await self._journal.append(parts)
        except AppendError as error:
            # What was written is remembered, so that the repetition does not reach those sinks twice.
            for sink in parts:
                if sink not in error.failed:
                    self._duplicates.hold([each >> 64 for each in gathered.keys_of[sink]], sink)
            raise BusyError(str(error)) from None
        for sink, entries in gathered.entries.items():
            self._metrics.journaled.labels(sink).inc(len(entries))

    async def _set_aside(self, server: str, items: Sequence[Held]) -> None:
        self._metrics.malformed.labels(self._metrics.server(server)).inc(len(items))
        logger.warning("API server %s sent %d items that are no events: %s", server, len(items), items[0].reason)
        try:
            await self._journal.reading(lambda: self._quarantine.put(MALFORMED, items))
        except FullError:
            pass  # counted and logged; what is kept already is enough to find the cause
        except OSError as error:
            raise BusyError(f"quarantine: {error.strerror}") from None

    def _count(
        self,
        server: str,
        plans: Collection[tuple[Plan, int]],
        cuts: Sequence[Cut],
        dropped: Mapping[str, int],
        repeated: int,
    ) -> None:
        metrics = self._metrics
        sums: dict[tuple[str, str, str], int] = {}
        for plan, events in plans:
            for policy, origin, level, covered in plan.decided:
                label = (policy, origin, str(level))
                sums[label] = sums.get(label, 0) + events
                if not covered:
                    metrics.not_covered.labels(policy).inc(events)
                    self.not_covered[policy] = self.not_covered.get(policy, 0) + events
        for label, events in sums.items():
            metrics.decided.labels(*label).inc(events)
        if cuts:
            metrics.redacted.inc(sum(each.redacted for each in cuts))
            for each in cuts:
                for name in each.failed:
                    metrics.failed_closed.labels(name).inc()
        for sink, events in dropped.items():
            metrics.dropped.labels(sink).inc(events)
            self.dropped[sink] = self.dropped.get(sink, 0) + events
        if repeated:
            metrics.duplicates.labels(metrics.server(server)).inc(repeated)


def _timed(work: Callable[[], Cut]) -> tuple[Cut, float]:
    """``work()``, and the seconds of the processor that it took."""
    before = time.thread_time()
    return work(), time.thread_time() - before


def _recorded(event: Event) -> Level:
    """The level it was recorded at. Raises EventError for what no policy can be asked about."""
    level = _LEVELS.get(event.level)
    if level is None:
        raise EventError("its level is none of Metadata, Request and RequestResponse")
    if event.stage not in _STAGES:
        raise EventError("its stage is none that API servers have")
    if not event.audit_id or not event.stage_timestamp:
        raise EventError("it has no auditID or no stageTimestamp")
    return level


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
