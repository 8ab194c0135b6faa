"""The program in force: what decides, which logs there are and how much of the disk each may take, who delivers.

A program is swapped as a whole: what it needs is made first, then one assignment, and from the next POST on it decides.
Workers of sinks that did not change never notice.
"""

import asyncio
import contextlib
import logging
import os
import stat
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from audit_operator.policy.events import decode
from audit_operator.receiver.deciding import Deciding
from audit_operator.receiver.delivery import IN_FLIGHT, Kept, Worker
from audit_operator.receiver.journal import Entry, blocks
from audit_operator.receiver.sinks import Surroundings
from audit_operator.render.program import Program, SinkProgram

logger = logging.getLogger(__name__)

_HIGH_WATER: Final = 0.95
"""Of the journal's limit. The rest is for what is on its way, and for the last segments, which go as a whole."""

_FREE: Final = 64 << 20
"""Bytes the volume must have left: what several POSTs can be at once, and quarantine."""

_MEASURED_EVERY: Final = 0.1
"""Seconds between looks at sizes: at 12,000 events a second 2 MB come in meanwhile."""

REFUSED_TO_TENANTS: Final = (
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
    "::/127",
    "fe80::/10",
    "fd00:ec2::254/128",
    "ff00::/8",
)
"""Where sinks in tenants' namespaces never connect to: the receiver itself and its node, clouds' metadata services,
which hand out the node's identity, and what is no single machine.
"""

_HANDOVER: Final = 5.0
"""Seconds that a worker has for the delivery it is at when its sink's settings change."""


def shares(program: Program) -> dict[str, int]:
    """Bytes of the journal for each sink.

    One that is dead fills its own part and none of the others'. Sinks of tenants' policies alone have half of it, if
    there are any, divided by namespace and then by sink: what one namespace does costs no other and not the platform.
    """
    fed = {sink for policy in program.policies if policy.tenant is None for sink in policy.sinks}
    fed_by_tenants = {sink for policy in program.policies if policy.tenant is not None for sink in policy.sinks}
    platform, tenants = [], dict[str, list[str]]()
    for sink in program.sinks:
        name = name_of(sink)
        if name in fed_by_tenants and name not in fed:
            tenants.setdefault(sink.namespace, []).append(name)
        else:
            platform.append(name)
    whole = program.journal_limit
    half = whole // 2 if tenants and platform else whole
    found = {name: half // len(platform) for name in platform}
    for names in tenants.values():
        found |= {name: half // len(tenants) // len(names) for name in names}
    return found


def platform_sinks(program: Program) -> frozenset[str]:
    """The sinks that a policy of the platform delivers to."""
    return frozenset(sink for policy in program.policies if policy.tenant is None for sink in policy.sinks)


def tenants(program: Program) -> frozenset[str]:
    """The namespaces that have policies of their own."""
    return frozenset(policy.tenant for policy in program.policies if policy.tenant is not None)


def name_of(sink: SinkProgram) -> str:
    """``namespace/name``."""
    return f"{sink.namespace}/{sink.name}"


def _bytes_below(folder: Path) -> int:
    """Of files, which may go while they are counted."""
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            found = path.stat()
            size += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return size


class Running:
    """See the module. ``deciding`` is what POSTs use; None until there is a program."""

    def __init__(self, kept: Kept, surroundings: Surroundings, volume: Path) -> None:
        self.deciding: Deciding | None = None
        self.program: Program | None = None
        self.workers: dict[str, Worker] = {}
        self._kept = kept
        self.journal = kept.journal
        self.quarantine = kept.quarantine
        self._surroundings = surroundings
        self._volume = volume
        self._platform: frozenset[str] = frozenset()
        self._tenants: frozenset[str] = frozenset()
        self._applying = asyncio.Lock()
        self._measured = 0.0
        self._full: frozenset[str] = frozenset()
        self._refusal = ""
        self._full_volume = False
        self._files = 0

    # --- swapping ---

    async def apply(self, program: Program, hash_key: bytes) -> None:
        """From now on this program. Raises RedactionError, OSError: then the one before stays, whole."""
        async with self._applying:
            deciding = await asyncio.to_thread(Deciding, program, hash_key)
            journal = self._kept.journal
            limits = shares(program)
            for name in limits:
                (await journal.log(name)).limit = limits[name]
            before, self.program, self.deciding = self.program, program, deciding
            self._platform = platform_sinks(program)
            self._tenants = tenants(program)
            self._measured = 0.0
            await self._swap_workers(program, moved=before is not None and before.cluster != program.cluster)
            for name in list(journal.logs):
                if name not in limits and journal.logs[name].backlog == 0:
                    await journal.remove(name)
            self._kept.metrics.keep({f"{policy.namespace}/{policy.name}" for policy in program.policies}, set(limits))

    async def _swap_workers(self, program: Program, *, moved: bool) -> None:
        wanted = {name_of(sink): sink for sink in program.sinks}
        together = sum(sink.concurrency for sink in program.sinks)
        ended = {}
        for name, worker in list(self.workers.items()):
            if moved or wanted.get(name) != worker.program:
                ended[name] = self.workers.pop(name)
        for name, sink in wanted.items():
            in_flight = IN_FLIGHT * sink.concurrency // together
            if name in self.workers:
                self.workers[name].in_flight = in_flight
            elif name not in ended:
                await self._begin(sink, program, in_flight)
        # One after the other: two workers of one log would deliver everything twice.
        await asyncio.gather(*(worker.hand_over(_HANDOVER) for worker in ended.values()))
        for name in ended:
            if name in wanted:
                await self._begin(wanted[name], program, IN_FLIGHT * wanted[name].concurrency // together)

    async def _begin(self, sink: SinkProgram, program: Program, in_flight: int) -> None:
        log = await self._kept.journal.log(name_of(sink))
        refused = REFUSED_TO_TENANTS if sink.namespace in self._tenants else ()
        surroundings = replace(self._surroundings, cluster=program.cluster, refused_networks=refused)
        worker = Worker(sink, surroundings, log, self._kept)
        worker.in_flight = in_flight
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
        self._files = await self.journal.reading(partial(_bytes_below, self._surroundings.files))
        self._measured = 0.0
        if self.refusal and not self._kept.journal.failure:
            for name, events in list(self.orphans.items()):
                logger.warning("%s is gone: %d events for it are dropped to make room", name, events)
                await self._kept.journal.remove(name)

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
        over = frozenset(name for name, log in journal.logs.items() if log.limit is not None and log.size >= log.limit)
        total = journal.size + self._files
        platform = self._platform & journal.logs.keys()
        volume = os.statvfs(self._volume)
        self._full_volume = volume.f_bavail * volume.f_frsize < _FREE
        self._refusal = ""
        if total >= _HIGH_WATER * program.journal_limit:
            self._refusal = f"journal and files take {total} of {program.journal_limit} bytes"
        elif platform and platform <= over:
            self._refusal = "every sink of the platform has used up its part of the journal"
        self._full = over
