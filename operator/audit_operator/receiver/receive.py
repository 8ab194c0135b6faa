"""`audit-operator receive`: puts the parts together, and takes them apart when told to stop."""

import asyncio
import gc
import ipaddress
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvloop

from audit_operator.receiver.certificates import Certificates
from audit_operator.receiver.clients import Clients
from audit_operator.receiver.delivery import Kept
from audit_operator.receiver.duplicates import Duplicates, moment
from audit_operator.receiver.intake import Intake
from audit_operator.receiver.journal import Journal, LockedError
from audit_operator.receiver.metrics import Metrics
from audit_operator.receiver.programs import Programs
from audit_operator.receiver.quarantine import Quarantine
from audit_operator.receiver.running import Running
from audit_operator.receiver.server import Parts, Server
from audit_operator.receiver.shares import name_of
from audit_operator.receiver.sinks import Surroundings
from audit_operator.receiver.status import status
from audit_operator.render.program import CLAIMS_DIRECTORY
from audit_operator.render.report import CLIENTS_FILE, encoded

logger = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 1.0
"""Between looks at files that are mounted, and at the disk after it failed."""

_REQUESTS_GRACE: Final = 10.0
_DELIVERY_GRACE: Final = 35.0
"""Seconds after SIGTERM for what is being answered, then for what can be delivered: together less than the 60 of the
pod (terminationGracePeriodSeconds). What is not delivered stays in the journal.
"""

_NESTING: Final = 20_000
"""Levels of JSON. API servers record 10,000; where the library stops earlier, a slower way takes over, for so many
brackets, and the body is replaced. A thread's stack of 8 MB holds as many in the library.
"""

_SWITCH_SECONDS: Final = 0.001
"""That a thread which makes a batch keeps the interpreter from POSTs; by default it is 5 ms."""

_RECENT: Final = 4 << 20
"""Bytes at the end of each log: what a crash can have left without an answer."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says. ``program``: the mounted file. ``files``: folder for file sinks. ``pod``: its UID."""

    program: Path
    journal: Path
    listen: tuple[str, int]
    certificates: Path
    metrics: tuple[str, int]
    receiver: str
    files: Path
    claims: Path = Path(CLAIMS_DIRECTORY)
    pod: str = ""


class StartError(Exception):
    """It cannot start; the message is for the person at the keyboard."""


class Receiver:
    """All of it."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.metrics = Metrics()
        self.journal = Journal(options.journal)
        self.quarantine = Quarantine(options.journal / "quarantine")
        state = options.journal / "state"
        surroundings = Surroundings("", options.receiver, options.files, options.claims, state, platform=_api_server())
        self.running = Running(Kept(self.journal, self.quarantine, self.metrics), surroundings, volume=options.journal)
        self.duplicates = Duplicates()
        self.intake = Intake(self.journal, self.quarantine, self.metrics, self.duplicates)
        self.running.when_changed = self.intake.forget
        self.programs = Programs(options.program, options.journal, self.running, options.pod)
        self.certificates = Certificates(options.certificates)
        self.clients = Clients(options.program.with_name(CLIENTS_FILE))
        parts = Parts(self.intake, self.running, self.programs, self.certificates, self.clients, self.metrics)
        self.server = Server(parts, self._status)
        self._tasks: list[asyncio.Task[None]] = []
        self.ports = (0, 0)

    async def start(self) -> None:
        """Until it listens. Raises StartError."""
        options = self._options
        try:
            await self.journal.open()
        except (OSError, LockedError) as error:
            raise StartError(f"--journal: {error}") from error
        self._say_what_was_found()
        self.certificates.look()
        self.clients.look()
        try:
            self.ports = await self.server.start(options.listen, options.metrics)
        except OSError as error:
            await self.journal.close()
            raise StartError(f"--listen or --metrics: {error.strerror or error}") from error
        self.metrics.on_scrape(self._measure)
        await self.programs.start()
        self._tasks = [
            asyncio.create_task(self._every(self._look), name="look"),
            asyncio.create_task(self._every(self._mend), name="mend"),
        ]
        logger.info("listening on port %d, health and metrics on port %d", *self.ports)

    async def stop(self, *, delivery_grace: float = _DELIVERY_GRACE) -> None:
        """Answer what is there, deliver what can be, close."""
        logger.info("stopping: answering what is there, delivering for at most %d s", delivery_grace)
        await self.server.stop(_REQUESTS_GRACE)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.running.stop(delivery_grace)
        left = sum(log.backlog for log in self.journal.logs.values())
        await self.journal.close()
        self.intake.close()
        await self.server.close()
        logger.info("stopped; %d events wait in the journal for the next start", left)

    def _say_what_was_found(self) -> None:
        """After a crash: what is known, and what is lost."""
        for name, log in self.journal.logs.items():
            if log.torn:
                logger.warning(
                    "%s: the last %d bytes of the journal are incomplete; nothing of them was acknowledged",
                    name,
                    log.torn,
                )
            for damage in log.damaged:
                logger.error(
                    "%s: %d events from number %d on are damaged in the journal; if the machine lost power they may "
                    "never have been acknowledged", name, damage.events, damage.first,
                )  # fmt: skip
            if log.backlog:
                logger.info("%s: %d events wait", name, log.backlog)
            for stored in log.recent(_RECENT):
                entry = stored.entry
                self.duplicates.hold([moment(stored.server, entry.audit_id, entry.stage, entry.timestamp)], name)

    async def _every(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await work()
            except Exception:
                logger.exception("a bug; going on")

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self.certificates.look)
        await loop.run_in_executor(None, self.clients.look)
        await self.programs.look()

    async def _mend(self) -> None:
        if self.journal.failure:
            await self.journal.probe()
        await self.running.make_room()
        if (program := self.running.program) is not None:
            policies = {f"{policy.namespace}/{policy.name}" for policy in program.policies}
            self.intake.keep(policies, {name_of(sink) for sink in program.sinks})
        await self.running.deliver_again()

    def _status(self) -> bytes:
        return encoded(status(self._options.receiver, self.running, self.programs, self.certificates, self.intake))

    def _measure(self) -> None:
        metrics = self.metrics
        metrics.ready.set(0 if self.running.refusal else 1)
        for name, worker in self.running.workers.items():
            log = self.journal.logs.get(name)
            if log is not None:
                metrics.journal_bytes.labels(name).set(log.size if log.backlog else 0)
                metrics.backlog.labels(name).set(log.backlog)
                metrics.oldest.labels(name).set(worker.oldest_age)


async def _serve(options: Options) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    receiver = Receiver(options)
    await receiver.start()
    await stop.wait()
    await receiver.stop()


def receive(options: Options) -> None:
    """Run until SIGTERM or SIGINT. Raises StartError."""
    # Every sink's journal is two files and every connection one; the soft limit is often 1024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    sys.setrecursionlimit(_NESTING)
    # Most of what a POST makes lives until it is answered: looking for garbage among it every 700 objects costs 3 %.
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    uvloop.run(_serve(options))


def _api_server() -> tuple[str, ...]:
    """The API server's Service, as the kubelet tells every container: no tenant's sink has business there."""
    try:
        return (str(ipaddress.ip_network(os.environ.get("KUBERNETES_SERVICE_HOST", ""))),)
    except ValueError:
        return ()


def receiver_name() -> str:
    """The pod's name, which a StatefulSet keeps over restarts."""
    return os.environ.get("HOSTNAME", "") or socket.gethostname()
