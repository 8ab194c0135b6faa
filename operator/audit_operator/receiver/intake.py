"""A POST from its body to the moment it may be answered 200: split, decide, cut, journal."""

import asyncio
import logging
import time
import traceback
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeVar

from msgspec import Raw

from audit_operator.net.throttling import ThrottledLog
from audit_operator.policy.events import Event, EventError, TakesLongError, decode, split
from audit_operator.policy.model import Request
from audit_operator.policy.request import request_of
from audit_operator.receiver.cutting import cut
from audit_operator.receiver.deciding import Deciding, Plan
from audit_operator.receiver.duplicates import Duplicates, Key, key, moment
from audit_operator.receiver.journal import AppendError, Blocks, Entry, Journal, blocks
from audit_operator.receiver.metrics import Metrics
from audit_operator.receiver.quarantine import MALFORMED, FullError, Held, Quarantine, malformed
from audit_operator.receiver.threads import FairThread

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


_AT_A_TIME: Final = 100
"""Events decided before others get a turn: a millisecond or two."""

_WORKED: Final = 0.005
"""Seconds of work after which they do, however few events that were."""

_MOST_PLANS: Final = 4096
"""Counted before they become counters by policy; a second's POSTs have some hundred."""

_LARGE: Final = 1 << 20
"""Bytes from which on a body is taken apart in a thread: health checks and other API servers must be answered."""

_LARGE_REFUSED: Final = 1 << 17
"""The same for one that the JSON library refuses, which takes ten times as long (`policy.events`)."""

_LARGE_ITEM: Final = 1 << 15
"""Bytes of an event, times the forms in which it leaves, from which on it is decoded, cut and redacted there: each kB
takes some µs, and 100 or so where a redaction looks at every value.
"""

_MOST_MALFORMED: Final = 100
"""Items of one POST that go to quarantine. The rest is counted: the cause is in these."""


class Limited(NamedTuple):
    """``events`` since the start, the last of them at ``last`` (`time.monotonic`)."""

    events: int
    last: float


@dataclass(slots=True)
class _Gathered:
    """What a POST comes to. ``ours``: whether it was kept, for POSTs that repeat it. ``plans``: of every event that is
    no repetition, for the metrics. ``no_events``: items that are none, of which the first are in ``malformed``.
    ``lane``: whose time in the thread it takes.
    """

    server: str
    lane: Hashable
    ours: "asyncio.Future[bool]"
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    keys: list[Key] = field(default_factory=list)
    waits: "set[asyncio.Future[bool]]" = field(default_factory=set)
    malformed: list[Held] = field(default_factory=list)
    no_events: int = 0
    plans: list[Plan] = field(default_factory=list)
    redacted: int = 0
    failed: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    limited: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    latest: str = ""


class _Chosen(NamedTuple):
    """An event that some sink gets, and did not have."""

    item: Raw
    raw: bytes
    event: Event
    request: Request
    plan: Plan
    held: Collection[str]


class Intake:
    """Takes POSTs, several at the same time."""

    def __init__(self, journal: Journal, quarantine: Quarantine, metrics: Metrics, duplicates: Duplicates) -> None:
        self._journal = journal
        self._quarantine = quarantine
        self._metrics = metrics
        self._duplicates = duplicates
        self.last_event: dict[str, str] = {}
        """API server -> stageTimestamp of the event last taken."""
        self._not_covered: dict[str, int] = {}
        self._decided: Counter[Plan] = Counter()
        metrics.before_reading(self.settle)
        self.dropped: dict[str, int] = {}
        """Sink -> events it does not get because its part of the journal was full, or because of `limited`, since the
        start.
        """
        self.limited: dict[str, Limited] = {}
        """Sink -> events it does not get because a tenant's policies asked for too many."""
        # One: each large event is in the memory several times.
        self._aside = FairThread("large")
        self._log = ThrottledLog(logger)

    @property
    def not_covered(self) -> Mapping[str, int]:
        """Policy -> events that were recorded at a lower level than it asks for, since the start."""
        self.settle()
        return self._not_covered

    def keep(self, policies: Collection[str], sinks: Collection[str]) -> None:
        """Forget the counters of all others: policies and sinks come and go."""
        for counters, known in ((self._not_covered, policies), (self.dropped, sinks), (self.limited, sinks)):
            for name in counters.keys() - set(known):
                counters.pop(name)

    def forget(self, policies: Iterable[str]) -> None:
        """What was recorded for these before they were changed: it says nothing of what they ask for now."""
        self.settle()
        for name in policies:
            self._not_covered.pop(name, None)

    def close(self) -> None:
        """Let the thread for what is large end."""
        self._aside.close()

    async def take(self, server: str, body: bytes, target: Target, lane: Hashable = None) -> int:
        """Back when every event of the POST is on disk for every sink that gets it; how many events it held.

        ``lane``: who shares the thread for large events with others, if not all of ``server`` together. Raises
        BodyError, and BusyError if that could not be done.
        """
        begun = time.perf_counter()
        lane = server if lane is None else lane
        try:
            items = await self._split(body, lane)
        except EventError as error:
            raise BodyError(str(error)) from None
        self._metrics.spent("split", time.perf_counter() - begun)
        ours: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        gathered = _Gathered(server, lane, ours)
        try:
            await self._gather(items, target, gathered)
            await self._keep(gathered)
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

    async def _split(self, body: bytes, lane: Hashable) -> list[Raw]:
        if len(body) < _LARGE:
            try:
                return split(body, at_once=len(body) >= _LARGE_REFUSED)
            except TakesLongError:
                pass
        return await self._aside.run(lane, partial(split, body))

    async def _gather(self, items: Sequence[Raw], target: Target, gathered: _Gathered) -> None:
        deciding, full, crowded = target.deciding, frozenset(target.full()), frozenset(target.crowded())
        deciding_seconds = cutting_seconds = 0.0
        for some, large in _slices(items):
            if some[0] is not items[0]:
                await asyncio.sleep(0)
            begun = time.perf_counter()
            if large:
                events = await self._aside.run(gathered.lane, partial(_decoded, some))
            else:
                events = _decoded(some)
            chosen = self._decide(some, events, deciding, gathered)
            turn = decided = time.perf_counter()
            for each in chosen:
                closed = full
                if each.plan.guests:
                    closed = _closed(each, target, full, crowded, gathered)
                work = partial(self._cut, each, closed, gathered)
                aside = large or len(each.raw) * len(each.plan.routes) >= _LARGE_ITEM
                try:
                    seconds = await self._aside.run(gathered.lane, work) if aside else work()
                except Exception as error:
                    gathered.no_events += 1
                    if len(gathered.malformed) < _MOST_MALFORMED:
                        gathered.malformed.append(_unreadable(gathered.server, each.item, error))
                    continue
                if seconds:
                    target.spend(each.request.namespace, seconds)
                if not aside and time.perf_counter() - turn > _WORKED:
                    await asyncio.sleep(0)
                    turn = time.perf_counter()
                gathered.plans.append(each.plan)
                gathered.latest = each.event.stage_timestamp
            deciding_seconds += decided - begun
            cutting_seconds += time.perf_counter() - decided
        if gathered.latest:
            self.last_event[self._metrics.server(gathered.server)] = gathered.latest
        self._metrics.spent("decide", deciding_seconds)
        self._metrics.spent("cut", cutting_seconds)
        self._count(gathered)

    def _decide(
        self, items: Sequence[Raw], events: Sequence[Event | Exception], deciding: Deciding, gathered: _Gathered
    ) -> list[_Chosen]:
        """Those that must be cut: some sink gets them, and they did not come before."""
        duplicates, pending, taken = self._duplicates, self._duplicates.pending, self._duplicates.taken
        server, ours = gathered.server, gathered.ours
        chosen = []
        for item, event in zip(items, events, strict=True):
            try:
                if isinstance(event, Exception):
                    raise event
                if not event.audit_id or not event.stage_timestamp:
                    raise EventError("it has no auditID or no stageTimestamp")
                request = request_of(event)
                plan = deciding.plan(request, event.stage, event.level)
                if not plan.routes:
                    # Whether it came before makes no difference to anybody.
                    gathered.plans.append(plan)
                    gathered.latest = event.stage_timestamp
                    continue
                raw = bytes(item)
                when = moment(server, event.audit_id, event.stage, event.stage_timestamp)
                name = key(when, raw)
                if name in pending or taken(name):
                    if (other := pending.get(name, ours)) is not ours:
                        gathered.waits.add(other)
                    gathered.repeated += 1
                    continue
                pending[name] = ours
                gathered.keys.append(name)
                chosen.append(_Chosen(item, raw, event, request, plan, duplicates.held(when)))
            except Exception as error:
                gathered.no_events += 1
                if len(gathered.malformed) < _MOST_MALFORMED:
                    gathered.malformed.append(_unreadable(server, item, error))
        return chosen

    def _cut(self, chosen: _Chosen, closed: Collection[str], gathered: _Gathered) -> float:
        """Into ``gathered``, for every sink that gets it, or not at all. The seconds of the processor that it took for
        a tenant's policies alone.
        """
        _, raw, event, request, plan, held = chosen
        forms, seconds = [], 0.0
        for wanted, sinks in plan.routes:
            getting = sinks
            if closed or held:
                getting = tuple(sink for sink in sinks if sink not in closed and sink not in held)
                for sink in closed:
                    if sink in sinks:
                        gathered.dropped[sink] = gathered.dropped.get(sink, 0) + 1
            if getting and plan.guests.isdisjoint(getting):
                forms.append((cut(raw, event, request, plan.recorded, wanted), getting))
            elif getting:
                begun = time.thread_time()
                forms.append((cut(raw, event, request, plan.recorded, wanted), getting))
                seconds += time.thread_time() - begun
        for done, getting in forms:
            gathered.redacted += done.redacted
            gathered.failed += done.failed
            entry = Entry(event.audit_id, event.stage, event.stage_timestamp, done.data)
            for sink in getting:
                entries = gathered.entries.get(sink)
                if entries is None:
                    entries = gathered.entries[sink] = []
                entries.append(entry)
        return seconds

    async def _keep(self, gathered: _Gathered) -> None:
        server = gathered.server
        if gathered.malformed:
            await self._set_aside(server, gathered.malformed, gathered.no_events)
        if not gathered.entries:
            return
        begun = time.perf_counter()
        parts: Mapping[str, Blocks] = {sink: blocks(server, entries) for sink, entries in gathered.entries.items()}
        try:
            await self._journal.append(parts)
        except AppendError as error:
            # What was written is remembered, so that the repetition does not reach those sinks twice.
            for sink, entries in gathered.entries.items():
                if sink not in error.failed:
                    self._duplicates.hold((moment(server, *_identity(entry)) for entry in entries), sink)
            raise BusyError(str(error)) from None
        self._metrics.spent("journal", time.perf_counter() - begun)
        for sink, entries in gathered.entries.items():
            self._metrics.journaled.labels(sink).inc(len(entries))

    async def _set_aside(self, server: str, items: Sequence[Held], number: int) -> None:
        self._metrics.malformed.labels(self._metrics.server(server)).inc(number)
        self._log.report(
            f"malformed {server}", "API server %s sent %s items that are no events: %s", server, number, items[0].reason
        )
        try:
            await self._journal.reading(lambda: self._quarantine.put(MALFORMED, items))
        except FullError:
            pass  # counted and logged; what is kept already is enough to find the cause
        except OSError as error:
            raise BusyError(f"quarantine: {error.strerror}") from None

    def _count(self, gathered: _Gathered) -> None:
        metrics = self._metrics
        self._decided.update(gathered.plans)
        if len(self._decided) >= _MOST_PLANS:
            self.settle()
        if gathered.redacted:
            metrics.redacted.inc(gathered.redacted)
        for name in gathered.failed:
            metrics.failed_closed.labels(name).inc()
        for sink, events in gathered.dropped.items():
            metrics.dropped.labels(sink).inc(events)
            self.dropped[sink] = self.dropped.get(sink, 0) + events
        now = time.monotonic()
        for sink, events in gathered.limited.items():
            self.limited[sink] = Limited(self.limited.get(sink, Limited(0, now)).events + events, now)
        if gathered.repeated:
            metrics.duplicates.labels(metrics.server(gathered.server)).inc(gathered.repeated)

    def settle(self) -> None:
        """Bring the counters by policy up to date: counted are plans, for a POST has events of a hundred labels."""
        counted, self._decided = self._decided, Counter()
        sums: Counter[tuple[str, str, str]] = Counter()
        missing: Counter[str] = Counter()
        for plan, events in counted.items():
            for label, covered in plan.decided:
                sums[label] += events
                if not covered:
                    missing[label[0]] += events
        for label, events in sums.items():
            self._metrics.decided.labels(*label).inc(events)
        for policy, events in missing.items():
            self._metrics.not_covered.labels(policy).inc(events)
            self._not_covered[policy] = self._not_covered.get(policy, 0) + events


def _closed(
    chosen: _Chosen, target: Target, full: frozenset[str], crowded: frozenset[str], gathered: _Gathered
) -> frozenset[str]:
    """The sinks that do not get an event that a tenant's policies ask for."""
    guests = chosen.plan.guests
    closed = full | (guests & crowded)
    if not target.admits(chosen.request.namespace):
        for sink in guests - closed:
            gathered.limited[sink] = gathered.limited.get(sink, 0) + 1
        closed |= guests
    return closed


def _slices(items: Sequence[Raw]) -> Iterator[tuple[Sequence[Raw], bool]]:
    """All of them, in order, as many at once as may keep others waiting; large ones each by itself, and so marked."""
    start, size = 0, 0
    for at, length in enumerate(map(len, items)):
        large = length >= _LARGE_ITEM
        if start < at and (large or at - start >= _AT_A_TIME or size + length > _LARGE_ITEM * 4):
            yield items[start:at], False
            start, size = at, 0
        if large:
            yield items[at : at + 1], True
            start = at + 1
        else:
            size += length
    if start < len(items):
        yield items[start:], False


def _decoded(items: Sequence[Raw]) -> list[Event | Exception]:
    """Each of them, or why it is none."""
    found: list[Event | Exception] = []
    for item in items:
        try:
            found.append(decode(item))
        except Exception as error:
            found.append(error)
    return found


def _unreadable(server: str, item: Raw, error: Exception) -> Held:
    """Whatever is in an item, it does not cost the others; it is kept, and nobody gets it unredacted."""
    reason = str(error)
    if not isinstance(error, EventError):
        # Where it happened, not what: an exception's message may quote the item.
        where = "".join(traceback.format_tb(error.__traceback__))
        reason = f"this is a bug: {type(error).__name__}"
        logger.error("an item of API server %s goes to quarantine; %s\n%s", server, reason, where)
    return malformed(server, bytes(item), reason, _now())


def _identity(entry: Entry) -> tuple[str, str, str]:
    return entry.audit_id, entry.stage, entry.timestamp


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
