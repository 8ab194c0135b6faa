"""The demo in the order in which it happens: three API servers, a receiver that is killed, a collector that is away."""

import asyncio
import contextlib
import functools
import random
import secrets
import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import aiohttp

from audit_operator.cli.demo.api_servers import ApiServer
from audit_operator.cli.demo.findings import Findings, Search, Sent, expected, policy_rows, sink_row
from audit_operator.cli.demo.laptop import Collector, Receiver, arrived, certificates, client_tls
from audit_operator.cli.demo.traffic import Planting, needles, occurrences, posts
from audit_operator.cli.errors import CliError
from audit_operator.policy.explain import Explainer, Source
from audit_operator.policy.load import load_policy
from audit_operator.render.plan import Plan
from audit_operator.render.program import SinkProgram

API_SERVERS: Final = ("kube-apiserver-1", "kube-apiserver-2", "kube-apiserver-3")
ROUNDS: Final = 3
"""Times that each of them replays the recording."""

_PAUSE: Final = 0.05
"""Seconds between an API server's POSTs, on average, so that there is something to see."""

_AWAY, _KILLED, _BACK = 0.2, 0.4, 0.65
"""Parts of the events that are acknowledged when the collector goes, the receiver is killed, the collector returns."""

_MOST_SECONDS: Final = 180.0


class Show(Protocol):
    """Tells a person how far it is."""

    def said(self, text: str) -> None:
        """Something happened."""

    def progress(self, done: int, total: int) -> None:
        """So many events are acknowledged."""


class Load(NamedTuple):
    """What one API server is to send: bodies and the number of events in each."""

    server: ApiServer
    posts: tuple[tuple[bytes, int], ...]


class Demo:
    """One run in ``folder``, which is empty at first. ``recorded``: EventLists."""

    def __init__(self, plan: Plan, recorded: Sequence[bytes], folder: Path, show: Show) -> None:
        self._plan = plan
        self._show = show
        self._marker = f"planted-{secrets.token_hex(8)}"
        self._planting = Planting(self._marker)
        self.receiver = Receiver(folder)
        self.collector = Collector(folder)
        own = certificates((*plan.exposed.names, "localhost"), API_SERVERS)
        # As an API server reads it, from the file that it would be given.
        policy = load_policy(plan.files()["apiserver/policy.yaml"]).policy
        if policy is None:
            raise CliError("no API server accepts the policy that was rendered")
        self.loads = tuple(
            Load(
                ApiServer(name, client_tls(own.ca, own.api_servers[name], folder), plan.exposed.server_name),
                tuple(posts(recorded, policy, name, ROUNDS, self._planting)),
            )
            for name in API_SERVERS
        )
        self._total = sum(size for load in self.loads for _, size in load.posts)
        self._acknowledged = 0
        self._moved = asyncio.Condition()
        self._searches: list[Search] = []
        self._own = own
        self._folder = folder

    async def run(self) -> Findings:
        """Everything. Whatever happens, no process is left."""
        show, receiver, collector = self._show, self.receiver, self.collector
        async with asyncio.timeout(_MOST_SECONDS), self._everything_ends():
            await collector.start()
            receiver.mount(self._plan.files()["receiver/program.json"], self._own, self._plan.credentials, collector)
            await receiver.start()
            show.said(f"receiver started (process {receiver.pid}), mTLS at port {receiver.port}")
            show.said(f"{len(self.loads)} API servers begin to send {self._total:,} recorded events")
            sending = asyncio.gather(*map(self._send, self.loads))
            try:
                await self._until(_AWAY, sending)
                await collector.stop()
                show.said("the http sink is away: its events wait in the receiver's journal")
                await self._until(_KILLED, sending)
                # At any moment, so that now and then events are on the disk whose POST was not answered.
                await asyncio.sleep(_some(_PAUSE))
                await receiver.kill()
                show.said(f"receiver killed (SIGKILL) after {self._acknowledged:,} events")
                self._search("journal after SIGKILL", self._files("state/journal"))
                await receiver.start()
                show.said(f"receiver started again (process {receiver.pid}); API servers repeat what it did not answer")
                await self._until(_BACK, sending)
                await collector.start()
                show.said("the http sink is back")
                await sending
            finally:
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await sending
            show.said("API servers are done")
            well = await receiver.stop()
            show.said("receiver stopped (SIGTERM): it delivers what waits, and ends")
        return await asyncio.to_thread(self._findings, well)

    @contextlib.asynccontextmanager
    async def _everything_ends(self) -> AsyncIterator[None]:
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, functools.partial(_cancel, task))
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)
            await self.receiver.kill()
            await self.collector.stop()

    async def _send(self, load: Load) -> None:
        async with aiohttp.ClientSession() as session:
            for body, size in load.posts:
                # The port is the receiver's own choice, and stays.
                url = f"https://127.0.0.1:{self.receiver.port}/audit?timeout=30s"
                if await load.server.send(body, url, session):
                    self._acknowledged += size
                    self._show.progress(self._acknowledged, self._total)
                async with self._moved:
                    self._moved.notify_all()
                await asyncio.sleep(_some(2 * _PAUSE))

    async def _until(self, part: float, sending: "asyncio.Future[list[None]]") -> None:
        """Until this part of the events is acknowledged, or there is nothing more to send."""
        async with self._moved:
            await self._moved.wait_for(lambda: sending.done() or self._acknowledged >= part * self._total)

    # --- what came of it ---

    def _findings(self, well: bool) -> Findings:
        plan, receiver = self._plan, self.receiver
        ours = [
            Source(f"{each.namespace}/{each.name}", each.policy, each.redactions, each.sinks) for each in plan.policies
        ]
        explainer = Explainer(plan.server_policy, ours)
        acknowledged = expected(explainer, (body for load in self.loads for body in load.server.acknowledged))
        sent = expected(explainer, (body for load in self.loads for body, _ in load.posts))
        sinks = {f"{sink.namespace}/{sink.name}": sink for sink in plan.program.sinks}
        there = {name: arrived(self.sink_file(sink)) for name, sink in sinks.items()}
        for title, paths in (
            ("the sinks", [self.sink_file(sink) for sink in sinks.values()]),
            ("journal at the end", self._files("state/journal")),
            ("receiver's log", [receiver.log]),
        ):
            self._search(title, paths)
        return Findings(
            sent=Sent(
                posts=sum(len(load.server.acknowledged) for load in self.loads),
                events=self._acknowledged,
                repeated=sum(load.server.repeated for load in self.loads),
                given_up=sum(len(load.server.lost) for load in self.loads),
            ),
            policies=policy_rows(acknowledged, there),
            sinks=tuple(sink_row(name, _kind(sink), acknowledged, sent, there[name]) for name, sink in sinks.items()),
            planted=sum(
                occurrences(needles(self._marker), body) for load in self.loads for body in load.server.acknowledged
            ),
            searches=tuple(self._searches),
            left=receiver.waiting(),
            ended_well=well,
        )

    def sink_file(self, sink: SinkProgram) -> Path:
        """Where everything is that a sink got."""
        match sink.type:
            case "http":
                return self.collector.received
            case "stdout":
                return self.receiver.console
            case _:
                return self._folder / "state" / "files" / sink.namespace / sink.name / "audit-receiver-0.log"

    def _files(self, folder: str) -> list[Path]:
        return [path for path in (self._folder / folder).rglob("*") if path.is_file()]

    def _search(self, place: str, paths: Iterable[Path]) -> None:
        """For planted values, whatever form they have. Files that are not there are searched, too."""
        texts = [path.read_bytes() for path in paths if path.exists()]
        found = sum(occurrences(needles(self._marker), text) for text in texts)
        self._searches.append(Search(place, sum(map(len, texts)), found))


def _some(seconds: float) -> float:
    """Of these, more or less."""
    return random.uniform(0, seconds)  # noqa: S311 - no secret


def _cancel(task: "asyncio.Task[object] | None") -> None:
    if task is not None:
        task.cancel()


def _kind(sink: SinkProgram) -> str:
    """``http, ECS``: where it goes, and in which format if that is not the API server's."""
    form = sink.format.get("type", "audit")
    return sink.type if form == "audit" else f"{sink.type}, {form}"


def run(plan: Plan, recorded: Sequence[bytes], folder: Path, show: Show) -> Findings:
    """The demo in ``folder``. Raises CliError; KeyboardInterrupt for SIGINT, SIGTERM and SIGHUP."""

    async def whole() -> Findings:
        return await Demo(plan, recorded, folder, show).run()

    try:
        return asyncio.run(whole())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    except TimeoutError:
        raise CliError(f"did not come to its end within {_MOST_SECONDS:.0f} s; is the machine very busy?") from None
