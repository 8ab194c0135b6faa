"""One worker per sink: from the journal's cursor to the sink, until every event is taken or refused.

With concurrency 1 a batch ends before the next begins, so a sink gets events in the order in which they came. Above 1
batches are delivered side by side and the cursor follows the oldest of them.
"""

import asyncio
import contextlib
import logging
import random
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple

from audit_operator.receiver.formats import Formatter, as_recorded, formatter
from audit_operator.receiver.journal import BLOCK_BYTES, Damage, Journal, Log, Position, Stored
from audit_operator.receiver.metrics import Metrics, epoch
from audit_operator.receiver.quarantine import LARGEST, FullError, Quarantine, refused
from audit_operator.receiver.sinks import (
    Batch,
    Item,
    MisconfiguredError,
    RefusedError,
    Result,
    Sink,
    SinkError,
    Surroundings,
    ThrottledError,
    UnauthorizedError,
    UnknownSinkError,
    UnreachableError,
)
from audit_operator.receiver.sinks import make as make_sink
from audit_operator.render.program import SinkProgram

logger = logging.getLogger(__name__)

IN_FLIGHT: Final = 64 << 20
"""Bytes of events in the memory for deliveries, all sinks together. Each has a fixed part, so that one that hangs with
its batches in hand takes nothing from the others.
"""

_GATHERING: Final = 0.05
"""Seconds. With a POST every few milliseconds reading each by itself costs as much as deciding it."""

_AT_A_TIME: Final = 100
"""Events formatted before others get a turn: as OCSF each takes some 20 µs."""

SMALLEST_BATCH: Final = 64 << 10

_TENANTS_PAUSE: Final = 30.0
"""Seconds, reached by doubling from 1, whatever the sink says: each repetition compresses and encrypts anew, and who
asks for no wait must not have the processor.
"""

_KINDS: Final = {
    UnauthorizedError: "Unauthorized",
    ThrottledError: "Throttled",
    MisconfiguredError: "Misconfigured",
    UnreachableError: "Unreachable",
}


@dataclass
class Condition:
    """How a sink fares, for the status. ``error``: a class of errors, empty if the last delivery went well."""

    error: str = ""
    message: str = ""
    since: float = field(default_factory=time.time)
    delivered: int = 0
    retried: int = 0
    dead_lettered: int = 0
    damaged: int = 0
    last_delivery: float | None = None

    def failed(self, error: str, message: str) -> bool:
        """Whether that is news."""
        news = error != self.error
        if news:
            self.since = time.time()
        self.error, self.message = error, message
        return news

    def well(self) -> bool:
        """Whether that is news."""
        news = bool(self.error)
        if news:
            self.since = time.time()
        self.error = self.message = ""
        self.last_delivery = time.time()
        return news


class _Work:
    """A batch on its way: what of it is left, and where the log goes on after it."""

    __slots__ = ("after", "done", "items")

    def __init__(self, items: list[Item], after: Position) -> None:
        self.items = items
        self.after = after
        self.done = False


class _LeavingError(Exception):
    """Another worker goes on with what is left."""


class Kept(NamedTuple):
    """What all workers share."""

    journal: Journal
    quarantine: Quarantine
    metrics: Metrics


class Worker:
    """Delivers one log to one sink.

    Args:
        make: makes the sink, when the worker starts.

    """

    def __init__(
        self,
        program: SinkProgram,
        surroundings: Surroundings,
        log: Log,
        kept: Kept,
        *,
        make: Callable[[SinkProgram, Surroundings], Sink] = make_sink,
    ) -> None:
        self.name = f"{program.namespace}/{program.name}"
        self.program = program
        self.condition = Condition()
        self.oldest = ""
        """stageTimestamp of the first event that is not delivered, as far as it was read; empty: none waits."""
        self.surroundings = surroundings
        self._make = make
        self._format: Formatter = as_recorded
        self._log = log
        self._journal, self._quarantine, self._metrics = kept
        self.in_flight = IN_FLIGHT
        """Bytes that may be in the memory for this sink."""
        self.quarantine_limit = LARGEST
        """Bytes that may be in its quarantine."""
        self._read = log.position
        self._buffer: deque[Stored] = deque()
        self._works: deque[_Work] = deque()
        self._draining = False
        self._leaving = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to deliver."""
        self._task = asyncio.create_task(self._run(), name=f"deliver {self.name}")

    async def stop(self, grace: float) -> None:
        """Deliver what is there for at most ``grace`` seconds; what is not delivered then stays in the journal."""
        self._draining = True
        self._log.arrived.set()
        await self._end(grace)

    async def hand_over(self, grace: float) -> None:
        """End as soon as the delivery that is under way has ended, at most after ``grace`` seconds: another worker goes
        on with what is left.
        """
        self._leaving.set()
        self._log.arrived.set()
        await self._end(grace)

    async def _end(self, grace: float) -> None:
        if self._task is not None:
            if grace > 0:
                await asyncio.wait([self._task], timeout=grace)
            self._stopping.set()
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                await self._deliver_all()
            except UnknownSinkError as error:
                # Events wait: the next program, or the next version, may know it.
                self._say("Misconfigured", str(error))
                return
            except _LeavingError:
                return
            except Exception:
                await self._after_bug("the worker begins again at the last event that was taken")
                self._read = self._log.position
                self._buffer.clear()
                self._works.clear()
            else:
                return

    async def _after_bug(self, what: str) -> None:
        logger.exception("%s: a bug; %s", self.name, what)
        self._say("Unreachable", "this is a bug in audit-operator; its log says more")
        await asyncio.sleep(self.program.max_backoff)

    async def _deliver_all(self) -> None:
        if not self._buffer:
            await self._fill()  # how long events wait is known then, even if the sink cannot be made or opened
        sink = self._make(self.program, self.surroundings)
        self._format = formatter(self.program, self.surroundings.cluster)
        running: set[asyncio.Task[None]] = set()
        try:
            await self._until_it_works(sink.open)
            while True:
                work = await self._next()
                if work is None:
                    return
                self._works.append(work)
                if self.program.concurrency == 1:
                    await self._finish(sink, work)
                    continue
                running.add(asyncio.create_task(self._finish(sink, work)))
                if len(running) >= self.program.concurrency:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in [each for each in running if each.done()]:
                    running.discard(task)
                    task.result()  # one that failed would hold the cursor for good
        finally:
            try:
                if running and (self._draining or self._leaving.is_set()) and not self._stopping.is_set():
                    await asyncio.wait(running)
            finally:
                # Also when the time for them has run out: else they would go on beside the next worker.
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
                await sink.close()

    # --- batches ---

    async def _next(self) -> _Work | None:
        """The next batch: as soon as it is full, or its first event has waited long enough. None: drained."""
        batch, buffer, form = self.program.batch, self._buffer, self._format
        items: list[Item] = []
        size, after = 0, self._read
        max_bytes = max(min(batch.max_bytes, self.in_flight // self.program.concurrency), SMALLEST_BATCH)
        deadline: float | None = None
        while len(items) < batch.max_events:
            if self._leaving.is_set():
                return None
            if not self._buffer and not await self._fill():
                if items and (self._draining or (deadline is not None and time.monotonic() >= deadline)):
                    break
                if self._draining:
                    return None
                wait = None if deadline is None else max(0.0, deadline - time.monotonic())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._log.arrived.wait()
                        if not self._draining:
                            # A batch has time: what comes meanwhile is read in one go.
                            await asyncio.sleep(min(_GATHERING, batch.max_age / 4))
                continue
            if deadline is None:
                deadline = time.monotonic() + batch.max_age
            last, full = None, False
            while buffer and len(items) < batch.max_events:
                stored = buffer[0]
                entry = stored.entry
                data = form(entry.data)
                if items and size + len(data) > max_bytes:
                    full = True
                    break
                last = buffer.popleft()
                items.append(
                    Item(last.server, entry.audit_id, entry.stage, entry.timestamp, last.sequence, data, entry.data)
                )
                size += len(data)
                if not len(items) % _AT_A_TIME:
                    await asyncio.sleep(0)
            if last is not None:
                after = last.after
            if full:
                break
        return _Work(items, after)

    async def _fill(self) -> bool:
        """More events from the journal, a block of them."""
        self._log.arrived.clear()
        while True:
            try:
                some = partial(self._log.read_some, self._read, min(BLOCK_BYTES, self.in_flight))
                events, self._read, missing = await self._journal.reading(some)
            except OSError as error:
                self._say("JournalError", f"the journal cannot be read: {error.strerror}")
                await asyncio.sleep(self.program.initial_backoff)
                continue
            self._report(missing)
            self._buffer.extend(events)
            if events:
                self.oldest = self.oldest or events[0].entry.timestamp
            return bool(events)

    def _report(self, missing: Sequence[Damage]) -> None:
        for damage in missing:
            self.condition.damaged += damage.events
            self._metrics.damaged.labels(self.name).inc(damage.events)
            logger.error(
                "%s: %d events from number %d on are damaged in the journal and lost",
                self.name, damage.events, damage.first,
            )  # fmt: skip

    # --- delivery ---

    async def _finish(self, sink: Sink, work: _Work) -> None:
        """Until no event of it is left."""
        while not work.done:
            try:
                await self._deliver(sink, work.items)
                work.done = True
            except _LeavingError:
                raise
            except Exception:
                await self._after_bug("the batch is delivered again")
        position = None
        while self._works and self._works[0].done:
            position = self._works.popleft().after
        if position is not None:
            await self._advance(position)

    async def _advance(self, position: Position) -> None:
        if self._works:
            self.oldest = self._works[0].items[0].timestamp
        else:
            self.oldest = self._buffer[0].entry.timestamp if self._buffer else ""
        while True:
            try:
                await self._journal.reading(partial(self._log.acknowledge, position))
            except OSError as error:
                self._say("JournalError", f"what is delivered cannot be noted: {error.strerror}")
                await asyncio.sleep(self.program.initial_backoff)
            else:
                return

    async def _deliver(self, sink: Sink, items: list[Item]) -> None:
        """Repeat, and halve, until every item is taken or refused; the first half is done before the other."""
        halves = deque([items])
        attempt = 0
        while halves:
            part = halves[0]
            retry_after: float | None = None
            try:
                result = await self._attempt(sink, part)
            except RefusedError as error:
                halves.popleft()
                if len(part) == 1:
                    await self._refuse(part, [str(error)])
                else:
                    middle = len(part) // 2
                    halves.extendleft((part[middle:], part[:middle]))
                attempt = 0
                continue
            except SinkError as error:
                retry_after = error.retry_after
                self._say(_KINDS.get(type(error), "Unreachable"), str(error))
            else:
                halves.popleft()
                left = await self._settle(part, result)
                if not left:
                    attempt = 0
                    continue
                halves.appendleft(left)
                retry_after = result.retry_after
                self._say("Throttled" if retry_after else "Unreachable", result.reason or "not all events were taken")
                if len(left) < len(part):
                    attempt = 0
            self._metrics.retried.labels(self.name).inc(len(halves[0]))
            self.condition.retried += len(halves[0])
            await self._pause(attempt, retry_after)
            attempt += 1

    async def _attempt(self, sink: Sink, items: list[Item]) -> Result:
        batch = Batch(self.surroundings.cluster, items, sum(len(item.data) for item in items))
        begun = time.perf_counter()
        try:
            return await self._guarded(partial(sink.deliver, batch))
        finally:
            self._metrics.spent("deliver", time.perf_counter() - begun)

    async def _guarded(self, call: Callable[[], Awaitable[Result]]) -> Result:
        try:
            async with asyncio.timeout(self.program.timeout):
                return await call()
        except SinkError as error:
            _let_go(error)
            raise
        except TimeoutError as error:
            _let_go(error)
            raise UnreachableError(f"no answer within {self.program.timeout:g} s") from None
        except Exception as error:
            logger.exception("%s: a bug in the sink, the delivery is repeated", self.name)
            _let_go(error)
            raise UnreachableError(f"this is a bug in audit-operator: {type(error).__name__}") from error

    async def _settle(self, items: list[Item], result: Result) -> list[Item]:
        """What is left of them."""
        if result.refused:
            await self._refuse([items[each.at] for each in result.refused], [each.reason for each in result.refused])
        again = {each for each in result.retry if 0 <= each < len(items)}
        gone = again | {each.at for each in result.refused}
        taken = [item for at, item in enumerate(items) if at not in gone] if gone else items
        if taken:
            self.condition.delivered += len(taken)
            self._metrics.delivered.labels(self.name).inc(len(taken))
            self._metrics.latency.observe(self.name, [item.timestamp for item in taken], time.time())
        left = [item for at, item in enumerate(items) if at in again]
        if not left and self.condition.well():
            logger.info("%s: delivering again", self.name)
        return left

    async def _refuse(self, items: list[Item], reasons: list[str]) -> None:
        """To quarantine. As long as that has no room the sink waits: nothing goes without having been looked at."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        held = [refused(item.server, item.audit, reason, now) for item, reason in zip(items, reasons, strict=True)]
        attempt = 0
        while True:
            try:
                await self._quarantine.aside(partial(self._quarantine.put, self.name, held, self.quarantine_limit))
            except (FullError, OSError) as error:
                self._say("QuarantineFull", str(error))
                await self._pause(attempt, None)
                attempt += 1
            else:
                break
        self.condition.dead_lettered += len(held)
        self._metrics.dead_lettered.labels(self.name).inc(len(held))
        logger.warning("%s refused %d events for good, they are in quarantine: %s", self.name, len(held), reasons[0])

    async def _until_it_works(self, open_: Callable[[], Awaitable[None]]) -> None:
        async def call() -> Result:
            await open_()
            return Result()

        attempt = 0
        while True:
            try:
                await self._guarded(call)
            except SinkError as error:
                self._say(_KINDS.get(type(error), "Unreachable"), str(error))
                await self._pause(attempt, error.retry_after)
                attempt += 1
            else:
                return

    async def _pause(self, attempt: int, retry_after: float | None) -> None:
        """Doubled each time, with jitter so that receivers do not come back all at once; at least what is asked for."""
        program = self.program
        longest = min(program.initial_backoff * 2 ** min(attempt, 30), program.max_backoff)
        if self.surroundings.tenant:
            longest = max(longest, min(2.0 ** min(attempt, 30), _TENANTS_PAUSE))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(longest * random.uniform(0.5, 1.0), retry_after or 0.0)):  # noqa: S311
                await self._leaving.wait()
        if self._leaving.is_set():
            raise _LeavingError

    def _say(self, error: str, message: str) -> None:
        self._metrics.errors.labels(self.name, error).inc()
        if self.condition.failed(error, message):
            logger.warning("%s: %s: %s; repeated until it passes", self.name, error, message)

    @property
    def oldest_age(self) -> float:
        """Seconds since the oldest event that is not delivered; 0: none waits."""
        return max(0.0, time.time() - epoch(self.oldest)) if self.oldest else 0.0


def _let_go(error: BaseException | None) -> None:
    """Of the batch that failed. Libraries' errors refer to themselves by way of their frames, which hold the request:
    megabytes per attempt until the garbage collector finds them, for as long as a sink is down.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
