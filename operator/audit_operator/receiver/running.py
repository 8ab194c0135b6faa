"""The program in force: what decides, which logs there are and how much of the disk each may take, who delivers.

A program is swapped as a whole: what it needs is made first, then one assignment, and from the next POST on it decides.
Workers of sinks that did not change never notice.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from audit_operator.policy.events import decode
from audit_operator.receiver.deciding import Deciding
from audit_operator.receiver.delivery import IN_FLIGHT, Kept, Worker
from audit_operator.receiver.files import Account
from audit_operator.receiver.journal import Entry, blocks
from audit_operator.receiver.quarantine import LARGEST
from audit_operator.receiver.rates import Rates
from audit_operator.receiver.reach import ANYWHERE, Reach
from audit_operator.receiver.shares import Shares, divided, memory, name_of, of_a_tenant, shares, tenants
from audit_operator.receiver.sinks import Surroundings
from audit_operator.render.program import Program, SinkProgram, policies_of

logger = logging.getLogger(__name__)

_HIGH_WATER: Final = 0.95
"""Of the journal's limit. The rest is for what is on its way, and for the last segments, which go as a whole."""

_FREE: Final = 64 << 20
"""Bytes the volume must have left: what several POSTs can be at once, and quarantine."""

_MEASURED_EVERY: Final = 0.1
"""Seconds between looks at sizes: at 12,000 events a second 2 MB come in meanwhile."""

_HANDOVER: Final = 5.0
"""Seconds that a worker has for the delivery it is at when its sink's settings change."""


def platform_sinks(program: Program) -> frozenset[str]:
    """The platform's sinks that one of its policies delivers to."""
    fed = {sink for policy in program.policies if policy.tenant is None for sink in policy.sinks}
    return frozenset(fed.intersection(divided(program)[0]))


class Running:
    """See the module. ``deciding`` is what POSTs use; None until there is a program."""

    def __init__(self, kept: Kept, surroundings: Surroundings, volume: Path) -> None:
        self.deciding: Deciding | None = None
        self.program: Program | None = None
        self.workers: dict[str, Worker] = {}
        self._kept = kept
        self.journal = kept.journal
        self.quarantine = kept.quarantine
        self._account = surroundings.account or Account(surroundings.files)
        self._surroundings = replace(surroundings, account=self._account)
        self._volume = volume
        self._platform: frozenset[str] = frozenset()
        self._tenants: frozenset[str] = frozenset()
        self._shares = Shares({}, {}, {}, 0)
        self._memory: dict[str, int] = {}
        self._rates = Rates()
        self._applying = asyncio.Lock()
        self._measured = 0.0
        self._full: frozenset[str] = frozenset()
        self._crowded: frozenset[str] = frozenset()
        self._quarantined: dict[str, int] = {}
        self.shed: dict[str, int] = {}
        """Sink of a tenant -> events that were taken out of its log again, since the start: others joined, and its part
        of the journal became smaller.
        """
        self.when_changed: Callable[[Iterable[str]], None] = lambda _: None
        """Called with the policies that ask for something else, once they do."""
        self._refusal = ""
        self._full_volume = False

    # --- swapping ---

    async def apply(self, program: Program, hash_key: bytes) -> None:
        """From now on this program. Raises RedactionError, OSError: then the one before stays, whole."""
        async with self._applying:
            deciding = await asyncio.to_thread(Deciding, program, hash_key)
            journal = self._kept.journal
            divided_ = shares(program)
            limits = divided_.logs
            for name in limits:
                (await journal.log(name)).limit = limits[name]
            earlier = policies_of(self.program) if self.program else {}
            self.program, self.deciding, self._shares = program, deciding, divided_
            self.when_changed(name for name, now in policies_of(program).items() if earlier.get(name, now) != now)
            self._platform = platform_sinks(program)
            self._tenants = tenants(program)
            self._rates.allow(program.tenants.events_per_second if program.tenants else None, self._tenants)
            self._measured = 0.0
            await self._swap_workers(program)
            for name in list(journal.logs):
                if name not in limits and journal.logs[name].backlog == 0:
                    await journal.remove(name)
            self._kept.metrics.keep({f"{policy.namespace}/{policy.name}" for policy in program.policies}, set(limits))

    async def _swap_workers(self, program: Program) -> None:
        wanted = {name_of(sink): (sink, self._around(sink, program)) for sink in program.sinks}
        self._memory = memory(program, IN_FLIGHT)
        ended = {}
        for name, worker in list(self.workers.items()):
            if wanted.get(name) != (worker.program, worker.surroundings):
                ended[name] = self.workers.pop(name)
        for name, each in wanted.items():
            if name not in self.workers and name not in ended:
                await self._begin(*each)
        # One after the other: two workers of one log would deliver everything twice.
        await asyncio.gather(*(worker.hand_over(_HANDOVER) for worker in ended.values()))
        for name in ended:
            if name in wanted:
                await self._begin(*wanted[name])
        for worker in self.workers.values():
            self._grant(worker)

    def _grant(self, worker: Worker) -> None:
        worker.in_flight = self._memory[worker.name]
        worker.quarantine_limit = min(LARGEST, self._shares.quarantines.get(worker.name, LARGEST))

    def _around(self, sink: SinkProgram, program: Program) -> Surroundings:
        theirs = sink.namespace in self._tenants
        reach = Reach.of_tenants(program.tenants, self._surroundings.platform) if theirs else ANYWHERE
        return replace(self._surroundings, cluster=program.cluster, reach=reach)

    async def _begin(self, sink: SinkProgram, surroundings: Surroundings) -> None:
        log = await self._kept.journal.log(name_of(sink))
        worker = Worker(sink, surroundings, log, self._kept)
        self._grant(worker)
        self.workers[name_of(sink)] = worker
        worker.start()

    async def stop(self, grace: float) -> None:
        """Deliver what is there for at most so many seconds."""
        await asyncio.gather(*(worker.stop(grace) for worker in self.workers.values()))

    # --- room ---

    def full(self) -> Collection[str]:
        """Sinks that have used up their part of the journal."""
        self._measure()
        return self._full

    def crowded(self) -> Collection[str]:
        """The platform's sinks in which there is no more room for what only tenants ask for: half of it is the
        platform's alone.
        """
        self._measure()
        return self._crowded

    def admits(self, namespace: str) -> bool:
        """Whether the policies of a tenant's namespace may have one more event; it counts then."""
        return self._rates.admits(namespace)

    def spend(self, namespace: str, seconds: float) -> None:
        """What an event of a tenant's namespace has cost of the processor, for its policies alone."""
        self._rates.spend(namespace, seconds)

    @property
    def failure(self) -> str:
        """Why this receiver cannot do its work, and another should; empty: it can."""
        if self.deciding is None:
            return "there is no program yet"
        if self._kept.journal.failure:
            return f"the journal cannot be written: {self._kept.journal.failure}"
        self._measure()
        return "the volume is full" if self._full_volume else ""

    @property
    def refusal(self) -> str:
        """Why no POST is taken now; empty: they are. At the high-water mark a receiver stays ready: its 503 with
        Retry-After makes API servers wait three times as long as one that is gone.
        """
        return self.failure or self._refusal

    @property
    def orphans(self) -> Mapping[str, int]:
        """Logs of sinks that are in the program no longer -> events in them. They wait for the sink to come back."""
        known = {name_of(sink) for sink in self.program.sinks} if self.program else set()
        return {name: log.backlog for name, log in self._kept.journal.logs.items() if name not in known}

    async def make_room(self) -> None:
        """Above the high-water mark the events of sinks that are gone go first."""
        if self._account.due(full=bool(self.refusal)):
            await self.journal.reading(self._account.count)
        self._measured = 0.0
        if self.refusal and not self._kept.journal.failure:
            for name, events in list(self.orphans.items()):
                logger.warning("%s is gone: %d events for it are dropped to make room", name, events)
                await self._kept.journal.remove(name)
        if self._tenants or (self.program is not None and self.program.tenants is not None):
            await self._hold_tenants()

    async def _hold_tenants(self) -> None:
        """Nor do tenants take more than their part by sinks that come and go, or because there are more of them now."""
        program, divided_, logs = self.program, self._shares, self.journal.logs
        if program is None:
            return
        live = divided_.logs.keys()
        self._quarantined = {
            name: size
            for name, size in (await self.journal.reading(self.quarantine.sizes)).items()
            if of_a_tenant(program, name.partition("/")[0])
        }
        used = self._used_by_tenants()
        for namespace in list(used):
            most = divided_.namespaces.get(namespace, divided_.tenants)
            if used[namespace] >= most or sum(used.values()) >= divided_.tenants:
                for name in [name for name in (*logs, *self._quarantined) if name.partition("/")[0] == namespace]:
                    if name in live:
                        continue
                    logger.warning("%s is gone: what waited for it is dropped to make room for its namespace", name)
                    await self.journal.remove(name)
                    await self.journal.reading(partial(self.quarantine.remove, name))
                    self._quarantined.pop(name, None)
                used[namespace] = self._used_by_tenants().get(namespace, 0)
        if sum(used.values()) >= divided_.tenants:
            for name in live:
                if name.partition("/")[0] in divided_.namespaces and logs[name].size > divided_.logs[name]:
                    events = await self.journal.reading(partial(logs[name].shed, divided_.logs[name]))
                    if events:
                        self.shed[name] = self.shed.get(name, 0) + events
                        self._kept.metrics.dropped.labels(name).inc(events)
                        logger.warning("%s: %d events are dropped, there are more tenants now", name, events)

    def _used_by_tenants(self) -> dict[str, int]:
        """Bytes of journal and quarantine by tenant's namespace, of sinks that are gone, too."""
        used: dict[str, int] = {}
        if self.program is not None:
            sizes = ((name, log.size) for name, log in self.journal.logs.items())
            for name, size in (*sizes, *self._quarantined.items()):
                namespace = name.partition("/")[0]
                if of_a_tenant(self.program, namespace):
                    used[namespace] = used.get(namespace, 0) + size
        return used

    async def deliver_again(self) -> None:
        """What somebody has asked for with `audit-operator quarantine retry`. Raises AppendError, OSError."""
        for sink, entries in await self.journal.reading(self.quarantine.asked):
            if sink not in self.journal.logs:
                continue
            for held in entries:
                event = decode(held.event)
                entry = Entry(event.audit_id, event.stage, event.stage_timestamp, bytes(held.event))
                await self.journal.append({sink: blocks(held.server, [entry])})
            await self.journal.reading(partial(self.quarantine.done, sink))
            logger.info("%s: %d events from quarantine are delivered again", sink, len(entries))

    def _measure(self) -> None:
        program = self.program
        now = time.monotonic()
        if program is None or now - self._measured < _MEASURED_EVERY:
            return
        self._measured = now
        journal = self._kept.journal
        sizes = {name: log.size for name, log in journal.logs.items()}
        limits = self._shares.logs
        over = {name for name, limit in limits.items() if sizes.get(name, 0) >= limit}
        if self._tenants:
            used = self._used_by_tenants()
            spent = {name for name, most in self._shares.namespaces.items() if used.get(name, 0) >= most}
            over |= {name for name in limits if name.partition("/")[0] in spent}
            self._crowded = frozenset(
                name
                for name, limit in limits.items()
                if name.partition("/")[0] not in self._shares.namespaces and sizes.get(name, 0) >= limit // 2
            )
        total = sum(sizes.values()) + self._account.bytes
        platform = self._platform & journal.logs.keys()
        volume = os.statvfs(self._volume)
        self._full_volume = volume.f_bavail * volume.f_frsize < _FREE
        self._refusal = ""
        if total >= _HIGH_WATER * program.journal_limit:
            self._refusal = f"journal and files take {total} of {program.journal_limit} bytes"
        elif platform and platform <= over:
            self._refusal = "every sink of the platform has used up its part of the journal"
        self._full = frozenset(over)
