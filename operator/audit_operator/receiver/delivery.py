"""One worker per sink: from the journal's cursor to the sink, until every event is taken or refused.

With concurrency 1 a batch ends before the next begins, so a sink gets events in the order in which they came. Above 1
batches are delivered side by side and the cursor follows the oldest of them.

**What a failure is about.** A batch that the sink refuses (400, 413, 422) is halved. So is one that fails `_FAILURES`
times in a way that one of its events may cause: an answer that is none, a connection closed without one, no answer in
time, 5xx. An event that fails alone is a *suspect*: it may be the event, it may be the sink, and only another event can
tell. So suspects wait, and what comes behind them is tried.

* Something else is taken: suspects are tried again. What is refused again goes to quarantine. What fails again in
  another way does so only after that has happened twice, and after it was not taken in another form either: with its
  bodies as strings, without them.
* There are `_ENOUGH` suspects, and nothing was taken meanwhile: no other event is touched, but for one at random in
  each round, in case there is a run of bad ones at the front. If all were refused alike, the sink is `Misconfigured`:
  all of them wait, and none goes to quarantine. If it has something else to say of each, it is about them, and they go.
"""

import asyncio
import contextlib
import logging
import random
import re
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple

from msgspec import structs

from audit_operator.receiver.formats import Formatter, as_recorded, formatter, without_bodies
from audit_operator.receiver.journal import BLOCK_BYTES, Damage, Journal, Log, Position, Stored
from audit_operator.receiver.metrics import Metrics, epoch
from audit_operator.receiver.quarantine import LARGEST, FullError, Quarantine, refused
from audit_operator.receiver.sinks import (
    BLIND,
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

_FAILURES: Final = 3
"""Failures of a batch after which it is looked for an event that causes them."""

_ENOUGH: Final = 16
"""Events that fail alone, with none taken in between: as many as are needed to tell a sink that refuses everything from
one that does not take some.
"""

_CONVICTIONS: Final = 2
"""How often an event must fail, and others be taken right before it, for it to be the cause. 1 where it is refused."""

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
        return news


class _Work:
    """A batch on its way, and where the log goes on after it."""

    __slots__ = ("after", "done", "items")

    def __init__(self, items: list[Item], after: Position) -> None:
        self.items = items
        self.after = after
        self.done = False

    def has(self, item: Item) -> bool:
        """Whether the event is one of its."""
        return self.items[0].sequence <= item.sequence <= self.items[-1].sequence

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(len(item.data) for item in self.items)


@dataclass
class _Suspect:
    """An event that failed alone. ``passes``: how often the sink had taken something by then."""

    item: Item
    error: SinkError
    passes: int
    convictions: int = 0


@dataclass
class _Left:
    """What is left of a batch: parts, the first to be delivered next, and suspects, in the order of the log.

    ``failures``: how often the first part has failed in a way that an event may cause. ``halving``: one was looked for
    already. ``attempt``: failures since something went forward.
    """

    parts: deque[list[Item]]
    suspects: list[_Suspect] = field(default_factory=list)
    failures: int = 0
    halving: bool = False
    attempt: int = 0


_DIFFERENT_EACH_TIME: Final = re.compile("[0-9]+|[0-9a-f]{8,}+")
"""What tells two answers apart that mean the same: numbers, names of requests."""


def _kind(error: SinkError) -> str:
    """The same for failures that are alike."""
    return f"{type(error).__name__} {_DIFFERENT_EACH_TIME.sub('#', str(error))}"


class _Lines:
    """Log lines of one worker: one a minute for each reason, which says how many were left out before."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, int]] = {}

    def say(self, level: int, reason: str, text: str, *arguments: object) -> None:
        """``reason``: what lines have in common that say the same."""
        if reason not in self._said and len(self._said) >= _REASONS:
            reason = ""
        last, left_out = self._said.get(reason, (-_MINUTE, 0))
        now = time.monotonic()
        if now - last < _MINUTE:
            self._said[reason] = (last, left_out + 1)
            return
        self._said[reason] = (now, 0)
        logger.log(level, f"{text}%s", *arguments, f" ({left_out} more such lines before)" if left_out else "")


_MINUTE: Final = 60.0
_REASONS: Final = 64
"""Reasons that are told apart. A server may have as many as there are events."""


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
        self._passes = 0
        """How often the sink has taken something."""
        self._passed = asyncio.Event()
        self._lines = _Lines()
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

    async def _next(self, *, now: bool = False) -> _Work | None:
        """The next batch: as soon as it is full, or its first event has waited long enough. None: drained.

        ``now``: what is there already; None: nothing.
        """
        batch, buffer, form = self.program.batch, self._buffer, self._format
        items: list[Item] = []
        size, after = 0, self._read
        max_bytes = max(min(batch.max_bytes, self.in_flight // self.program.concurrency), SMALLEST_BATCH)
        deadline: float | None = None
        while len(items) < batch.max_events:
            if self._leaving.is_set():
                return None
            if not self._buffer and not await self._fill():
                if items and (self._draining or now or (deadline is not None and time.monotonic() >= deadline)):
                    break
                if self._draining or now:
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
        works = [work]
        while not all(each.done for each in works):
            try:
                await self._deliver(sink, works)
            except _LeavingError:
                raise
            except Exception:
                await self._after_bug("the batch is delivered again")
        await self._follow()

    async def _follow(self) -> None:
        """The cursor follows the oldest batch that is not done."""
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

    async def _deliver(self, sink: Sink, works: list[_Work]) -> None:
        """Until every item is taken or refused. See the module. Further batches may come to ``works``."""
        left = _Left(deque(work.items for work in works if not work.done))
        while left.parts or left.suspects:
            if any(self._passes > suspect.passes for suspect in left.suspects):
                await self._judge(sink, left)
            elif left.suspects and (not left.parts or len(left.suspects) >= _ENOUGH):
                await self._look_further(sink, works, left)
            else:
                await self._forward(sink, left)
        for work in works:
            work.done = True

    async def _forward(self, sink: Sink, left: _Left) -> None:
        """One delivery of the first part."""
        part = left.parts.popleft()
        rest, error = await self._try(sink, part)
        if len(rest) < len(part):
            left.failures, left.attempt = 0, 0
        if error is None:
            return
        if isinstance(error, RefusedError):
            self._halve(left, rest, error)
            return
        # Alike or not: a server that an event ends resets connections, closes them, and refuses them while it starts.
        left.failures += error.sent
        if error.sent and (left.halving or left.failures >= _FAILURES):
            left.halving = True
            self._halve(left, rest, error)
            if len(rest) == 1:
                return  # whether it is this one, the next will tell
        else:
            left.parts.appendleft(rest)
        await self._again(left, error, len(rest))

    def _halve(self, left: _Left, part: list[Item], error: SinkError) -> None:
        left.failures, left.attempt = 0, 0
        if len(part) == 1:
            left.suspects.append(_Suspect(part[0], error, self._passes))
            return
        middle = len(part) // 2
        left.parts.extendleft((part[middle:], part[:middle]))

    async def _judge(self, sink: Sink, left: _Left) -> None:
        """Something was taken since some failed: what of these fails again is itself the cause."""
        undecided: list[_Suspect] = []
        while left.suspects:
            suspect = left.suspects.pop(0)
            if self._passes <= suspect.passes:
                undecided.append(suspect)
                continue
            before = self._passes
            _, error = await self._try(sink, [suspect.item])
            if error is None:
                continue
            if not (error.sent or isinstance(error, RefusedError)):
                # That says nothing about the event: all of them are in their places again.
                back = [*undecided, suspect, *left.suspects]
                left.suspects = []
                left.parts.extendleft([one.item] for one in reversed(back))
                await self._again(left, error, 1)
                return
            suspect.error, suspect.passes = error, before  # what others delivered meanwhile counts
            suspect.convictions += 1
            if isinstance(error, RefusedError):
                await self._refuse([suspect.item], [str(error)])
            elif suspect.convictions < _CONVICTIONS:
                undecided.append(suspect)
            elif not await self._otherwise(sink, suspect.item):
                await self._refuse([suspect.item], [f"{error}; that is so for this event alone, others are taken"])
        left.suspects = undecided
        if not undecided:
            self._well()  # what was said meanwhile was about these

    async def _otherwise(self, sink: Sink, item: Item) -> bool:
        """Whether the event is taken in another form."""
        for name, data in self._other_forms(item):
            _, error = await self._try(sink, [structs.replace(item, data=data)])
            if error is None:
                self._lines.say(
                    logging.WARNING, f"form {name}", "%s: an event that it does not take as it is was delivered %s",
                    self.name, name,
                )  # fmt: skip
                return True
        return False

    def _other_forms(self, item: Item) -> list[tuple[str, bytes]]:
        as_strings = formatter(
            structs.replace(self.program, format={**self.program.format, "bodies": "String"}), self.surroundings.cluster
        )
        smaller = without_bodies(item.audit, "the sink does not take it")
        forms = [
            ("with its bodies as strings", as_strings(item.audit)),
            ("without its bodies", self._format(smaller)),
        ]
        return [(name, data) for name, data in forms if data != item.data]

    async def _look_further(self, sink: Sink, works: list[_Work], left: _Left) -> None:
        """Nothing was taken since some failed: look for something that is."""
        if await self._more(works, left) and len(left.suspects) < _ENOUGH:
            return
        kinds = {_kind(suspect.error) for suspect in left.suspects}
        refused = all(isinstance(suspect.error, RefusedError) for suspect in left.suspects)
        if refused and len(left.suspects) >= _ENOUGH and len(kinds) > 1:
            suspects, left.suspects = left.suspects, []
            await self._refuse([one.item for one in suspects], [str(one.error) for one in suspects])
            return
        self._passed.clear()
        first = left.suspects[0]
        _, error = await self._try(sink, [first.item])
        if error is None:
            left.suspects.pop(0)
            left.attempt = 0
            return
        first.error = error
        if left.parts:
            (part,) = random.choices(left.parts, [len(part) for part in left.parts])  # noqa: S311
            one = random.choice(part)  # noqa: S311
            _, other = await self._try(sink, [one])
            if other is None:
                rest = ([item for item in part if item is not one] for part in left.parts)
                left.parts = deque(part for part in rest if part)
                return
        await self._again(left, error, len(left.suspects), arrivals=not left.parts)

    async def _more(self, works: list[_Work], left: _Left) -> bool:
        """Whether there was another batch that may be in the memory with these."""
        if self.program.concurrency > 1:
            return False  # others are on their way
        if not left.parts:
            for work in works:
                work.done = not any(work.has(suspect.item) for suspect in left.suspects)
            await self._follow()
        if sum(work.size for work in works if not work.done) > self.in_flight // 2:
            return False
        following = await self._next(now=True)
        if following is None:
            return False
        self._works.append(following)
        works.append(following)
        left.parts.append(following.items)
        return True

    async def _again(self, left: _Left, error: SinkError, count: int, *, arrivals: bool = False) -> None:
        """Say it, and wait. ``arrivals``: see `_pause`."""
        if isinstance(error, RefusedError):
            self._say("Misconfigured", f"{error}; it has taken nothing else since, so what it refuses waits")
        else:
            self._say(_KINDS.get(type(error), "Unreachable"), str(error))
        self._metrics.retried.labels(self.name).inc(count)
        self.condition.retried += count
        await self._pause(left.attempt, error.retry_after, arrivals=arrivals)
        left.attempt += 1

    async def _try(self, sink: Sink, part: list[Item]) -> tuple[list[Item], SinkError | None]:
        """One delivery: what is left, and why."""
        try:
            result = await self._attempt(sink, part)
        except SinkError as error:
            error.sent = error.sent and self.program.type not in BLIND
            return part, error
        return await self._settle(part, result)

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
            raise UnreachableError(f"no answer within {self.program.timeout:g} s", sent=True) from None
        except Exception as error:
            logger.exception("%s: a bug in the sink, the delivery is repeated", self.name)
            _let_go(error)
            raise UnreachableError(f"this is a bug in audit-operator: {type(error).__name__}", sent=True) from error

    async def _settle(self, items: list[Item], result: Result) -> tuple[list[Item], SinkError | None]:
        """What is left of them, and why."""
        again = {at for at in result.retry if 0 <= at < len(items)}
        gone = again | {each.at for each in result.refused}
        taken = [item for at, item in enumerate(items) if at not in gone] if gone else items
        if taken:
            self._passes += 1
            self._passed.set()
            self.condition.delivered += len(taken)
            self.condition.last_delivery = time.time()
            self._metrics.delivered.labels(self.name).inc(len(taken))
            self._metrics.latency.observe(self.name, [item.timestamp for item in taken], time.time())
        refused = list(result.refused)
        doubtful = [each for each in refused if not each.certain]
        alike: SinkError | None = None
        if doubtful and not taken and len({_kind(RefusedError(each.reason)) for each in doubtful}) == 1:
            # Each alone, as for a refusal of the batch: it may be the sink.
            alike = RefusedError(doubtful[0].reason)
            refused = [each for each in refused if each.certain]
            again |= {each.at for each in doubtful}
        if refused:
            await self._refuse([items[each.at] for each in refused], [each.reason for each in refused])
        left = [item for at, item in enumerate(items) if at in again]
        if not left:
            if taken:
                self._well()
            return left, None
        if alike is not None and not result.retry:
            return left, alike
        reason = result.reason or "not all events were taken"
        kind = ThrottledError if result.retry_after else UnreachableError
        return left, kind(reason, retry_after=result.retry_after, sent=result.sent)

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
        self._lines.say(
            logging.WARNING, f"refused {_kind(RefusedError(reasons[0]))}",
            "%s refused %d events for good, they are in quarantine: %s", self.name, len(held), reasons[0],
        )  # fmt: skip

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

    async def _pause(self, attempt: int, retry_after: float | None, *, arrivals: bool = False) -> None:
        """Doubled each time, with jitter so that receivers do not come back all at once; at least what is asked for.

        ``arrivals``: no longer than until there are more events, or some were taken.
        """
        program = self.program
        longest = min(program.initial_backoff * 2 ** min(attempt, 30), program.max_backoff)
        if self.surroundings.tenant:
            longest = max(longest, min(2.0 ** min(attempt, 30), _TENANTS_PAUSE))
        seconds = max(longest * random.uniform(0.5, 1.0), retry_after or 0.0)  # noqa: S311
        news = self._passed if self.program.concurrency > 1 else self._log.arrived
        events = [self._leaving, *([news] if arrivals and not retry_after else ())]
        waits = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._leaving.is_set():
            raise _LeavingError

    def _well(self) -> None:
        if self.condition.well():
            self._lines.say(logging.INFO, "well", "%s: delivering again", self.name)

    def _say(self, error: str, message: str) -> None:
        self._metrics.errors.labels(self.name, error).inc()
        if self.condition.failed(error, message):
            self._lines.say(
                logging.WARNING, error, "%s: %s: %s; repeated until it passes", self.name, error, message
            )  # fmt: skip

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
