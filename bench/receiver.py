"""What the receiver costs and stands: a real process behind mTLS, recorded events, a sink that takes them.

The figure of merit is acknowledged events per second of the receiver's processor time, from when it has started until
its sink has everything: it survives a noisy machine. The load and the sink are processes of their own.
"""

import asyncio
import contextlib
import gzip
import multiprocessing
import os
import queue
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import uvloop
from aiohttp import web
from isal import igzip

from audit_operator.policy import presets
from audit_operator.policy.events import split
from audit_operator.render.program import (
    PolicyProgram,
    Program,
    RuleList,
    SinkProgram,
    WireBatch,
    WireRedaction,
    WireResources,
    encode,
)
from audit_operator.render.program import program as rendered
from bench.table import Row

TESTS = Path(__file__).parent.parent / "tests"
CORPUS = TESTS / "data" / "audit-eventlists.jsonl.gz"
sys.path.insert(0, str(TESTS / "receiver"))

_RULES = 20


def run() -> Iterator[Row]:
    """The table but for the long rounds; about two minutes."""
    for size in (400, 100):
        found = _throughput(_program(), size, 120_000)
        yield Row(f"receiver: one policy, Elasticsearch, batches of {size}", found, "ev/cpu-s", at_least=50_000)
    found = _throughput(_program(policies=10, sinks=5), 400, 40_000)
    yield Row("receiver: ten policies, five sinks, batches of 400", found, "ev/cpu-s", at_least=15_000)
    steady = _steady(12_000, 400, 15.0)
    yield Row("receiver: at 12,000 events/s, p99 to the answer", steady.p99 * 1000, "ms", 25)
    yield Row("receiver: at 12,000 events/s, p50 to the answer", steady.p50 * 1000, "ms")
    yield Row("receiver: at 12,000 events/s, memory", steady.memory / 2**20, "MiB", 120)
    yield Row("receiver: at 12,000 events/s, processor", steady.cores, "cores", 0.35)
    lost, acknowledged = _killed(int(os.environ.get("ROUNDS", "10")))
    yield Row(f"receiver: SIGKILL under load, lost of {acknowledged:,} acknowledged", lost, "events", 0)
    backlog = _backlog(200_000)
    yield Row("receiver: sink down, memory grown over a backlog of 200,000 events", backlog.grown / 2**20, "MiB", 20)
    yield Row("receiver: then drained, times as fast as 4,000 events/s", backlog.drained / 4000, "times", at_least=2)
    yield Row(f"receiver: start after that, journal of {backlog.journal / 2**20:,.0f} MiB", backlog.start, "s")
    yield Row("receiver: start with a journal of 10 GB", _start_with(10 << 30), "s", 5)


# --- the program -----------------------------------------------------------------------------------------------------


def _program(policies: int = 1, sinks: int = 1) -> Program:
    rules = rendered([], [], cluster="", body_limit=0, journal_limit=0).rule_lists
    assert not rules
    policy = presets.preset("Forensic")
    from audit_operator.render.program import PolicyInput

    inputs = [
        PolicyInput("audit-system", f"p{number}", policy, None, (), (f"audit-system/s{number % sinks}",))
        for number in range(policies)
    ]
    made = rendered(inputs, [], cluster="bench", body_limit=40 << 20, journal_limit=40 << 30)
    lists = tuple(
        RuleList(rules=each.rules[:_RULES], omit_stages=each.omit_stages, omit_managed_fields=each.omit_managed_fields)
        for each in made.rule_lists
    )
    redaction = WireRedaction(
        resources=(WireResources(resources=("pods",)), WireResources(group="apps", resources=("deployments",))),
        paths=("spec.containers[*].env[*].value", "spec.template.spec.containers[*].env[*].value"),
        action="Mask",
    )
    entries = tuple(
        PolicyProgram(
            namespace=each.namespace,
            name=each.name,
            rule_list=each.rule_list,
            redactions=(redaction,),
            sinks=each.sinks,
        )
        for each in made.policies
    )
    return Program(
        schema=made.schema,
        cluster="bench",
        body_limit=40 << 20,
        journal_limit=40 << 30,
        rule_lists=lists,
        policies=entries,
        sinks=tuple(_sink(f"s{number}") for number in range(sinks)),
    )


_KEY_FILE: Final = "secret_audit-system_elasticsearch_api-key"
"""As a receiver wants it named: it reads no credential that is not the sink's namespace's."""


def _sink(name: str) -> SinkProgram:
    return SinkProgram(
        namespace="audit-system",
        name=name,
        type="elasticsearch",
        settings={"urls": ["http://127.0.0.1:PORT"], "auth": {"apiKey": {"file": f"FOLDER/{_KEY_FILE}"}}},
        batch=WireBatch(max_events=1000, max_bytes=5 << 20, max_age=1.0),
        initial_backoff=0.2,
        max_backoff=1.0,
        timeout=30.0,
        concurrency=1,
        format={},
    )


# --- processes -------------------------------------------------------------------------------------------------------


class _Receiver:
    """A receiver process in a folder of its own, and the server that its sinks deliver to."""

    def __init__(self, folder: Path, program: Program, sink_port: int) -> None:
        from elasticsearch_double import KEY
        from tls_certificates import issued, written

        self.folder = folder
        text = encode(program).replace(":PORT", f":{sink_port}").replace("FOLDER", str(folder))
        (folder / _KEY_FILE).write_text(KEY)
        (folder / "program.json").write_text(text)
        written(folder / "tls", issued("audit-receiver", "localhost"))
        written(folder / "client", issued("kube-apiserver"))
        self.process: subprocess.Popen[bytes] | None = None
        self.port = self.metrics = 0

    def start(self) -> float:
        """Seconds until it is ready."""
        begun = time.monotonic()
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "audit_operator", "receive",
                f"--program={self.folder}/program.json",
                f"--journal={self.folder}/journal",
                f"--certificates={self.folder}/tls",
                "--listen=127.0.0.1:0",
                "--metrics=127.0.0.1:0",
            ],
            stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if ports := re.search(rb"listening on port (\d+), health and metrics on port (\d+)", line):
                self.port, self.metrics = int(ports[1]), int(ports[2])
                break
        else:
            raise RuntimeError("the receiver did not start")
        os.set_blocking(self.process.stderr.fileno(), False)
        while not _ready(self.metrics):
            time.sleep(0.01)
        return time.monotonic() - begun

    @property
    def seconds(self) -> float:
        """Of processor time since its start."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def memory(self) -> int:
        """Bytes resident."""
        return int(Path(f"/proc/{self._pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def _pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self._ended()

    def stop(self) -> None:
        """SIGTERM."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
            self._ended()

    def _ended(self) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        os.set_blocking(self.process.stderr.fileno(), True)
        self.process.communicate()

    def metric(self, name: str) -> float:
        """The sum over all labels."""
        text = _get(self.metrics, "/metrics")
        return sum(
            float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))
        )


def _get(port: int, path: str) -> str:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return f"{error.code}"


def _ready(port: int) -> bool:
    return _get(port, "/readyz") == "ok\n"


def _collector(
    port: "multiprocessing.sharedctypes.Synchronized[int]", keep: "multiprocessing.Queue[Any] | None"
) -> None:
    """A sink's server: the tests' double of Elasticsearch, which reads every document and answers for each; with
    ``keep`` it tells which events it has.
    """
    from elasticsearch_double import Elasticsearch
    from faults import Request

    async def main() -> None:
        double = Elasticsearch()

        async def handle(request: web.BaseRequest) -> web.Response:
            body = igzip.decompress(await request.read())
            headers = {name.lower(): value for name, value in request.headers.items()}
            reply = double.answer(Request(request.method, request.path_qs, headers, body, body))
            if keep is not None and reply.status == 200:
                keep.put(double.taken)
            double.stored.clear()
            return web.Response(status=reply.status, body=reply.body, content_type="application/json")

        server = await asyncio.get_running_loop().create_server(
            web.Server(handle, access_log=None, auto_decompress=False), "127.0.0.1", port.value
        )
        port.value = server.sockets[0].getsockname()[1]
        await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(main())


class _Sink:
    def __init__(self, *, keep: bool = False) -> None:
        self._port = multiprocessing.Value("i", 0)
        self.queue: Any = multiprocessing.Queue() if keep else None
        self.start()

    @property
    def port(self) -> int:
        return int(self._port.value)

    def start(self) -> None:
        self._process = multiprocessing.Process(target=_collector, args=(self._port, self.queue), daemon=True)
        self._process.start()
        while not self._port.value:
            time.sleep(0.01)

    def stop(self) -> None:
        self._process.kill()
        self._process.join()


# --- load ------------------------------------------------------------------------------------------------------------


class _Bodies:
    """EventLists of recorded events, each event with an auditID of its own: a repeated one would be dropped."""

    def __init__(self, size: int, first: int) -> None:
        with gzip.open(CORPUS) as lines:
            items = [bytes(item) for line in lines for item in split(line)]
        self._parts = [re.split(rb'(?<="auditID":")[^"]*', item, maxsplit=1) for item in items]
        self._size = size
        self._next = first

    def make(self) -> tuple[bytes, range]:
        numbers = range(self._next, self._next + self._size)
        self._next += self._size
        parts = self._parts
        items = [b"%b%032x%b" % (parts[n % len(parts)][0], n, parts[n % len(parts)][1]) for n in numbers]
        head = b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":['
        return head + b",".join(items) + b"]}", numbers


def _client(folder: Path) -> aiohttp.ClientSession:
    context = ssl.create_default_context(cafile=folder / "client" / "ca.crt")
    context.load_cert_chain(folder / "client" / "tls.crt", folder / "client" / "tls.key")
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, limit=32))


async def _post(session: aiohttp.ClientSession, port: int, body: bytes) -> int:
    try:
        async with session.post(
            f"https://localhost:{port}/audit?timeout=30s", data=body, headers={"Content-Type": "application/json"}
        ) as answer:
            return answer.status
    except aiohttp.ClientError:
        return 0


class _Task(NamedTuple):
    """``events`` in EventLists of ``size``, numbered from ``first`` on, ``rate`` a second; 0: three EventLists at a
    time, as fast as they are taken.
    """

    folder: Path
    port: int
    size: int
    events: int
    first: int = 0
    rate: float = 0


def _load(task: _Task, result: Any) -> None:
    """Do it; latencies, and which events were acknowledged, into ``result``."""
    folder, port, size, events, first, rate = task

    async def main() -> None:
        latencies: list[float] = []
        acknowledged: list[tuple[int, int]] = []
        bodies = _Bodies(size, first)
        async with _client(folder) as session:

            async def one(body: bytes, numbers: range) -> None:
                begun = time.perf_counter()
                if await _post(session, port, body) == 200:
                    latencies.append(time.perf_counter() - begun)
                    acknowledged.append((numbers.start, numbers.stop))

            if rate:
                tasks, begun = [], time.perf_counter()
                for number in range(events // size):
                    body, numbers = bodies.make()
                    await asyncio.sleep(max(0.0, begun + number * size / rate - time.perf_counter()))
                    tasks.append(asyncio.create_task(one(body, numbers)))
                await asyncio.gather(*tasks)
            else:
                left = iter(range(events // size))

                async def worker() -> None:
                    for _ in left:
                        await one(*bodies.make())

                await asyncio.gather(*(worker() for _ in range(3)))
        result.put((latencies, acknowledged))

    uvloop.run(main())


def _loaded(
    receiver: "_Receiver", size: int, events: int, *, first: int = 0, rate: float = 0
) -> tuple[list[float], Any]:
    result: Any = multiprocessing.Queue()
    task = _Task(receiver.folder, receiver.port, size, events, first, rate)
    process = multiprocessing.Process(target=_load, args=(task, result))
    process.start()
    found = result.get()
    process.join()
    return found  # type: ignore[no-any-return]


# --- measurements ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _running(program: Program, *, keep: bool = False) -> Iterator[tuple[_Receiver, _Sink]]:
    folder = Path(tempfile.mkdtemp(prefix="bench-receiver-"))
    sink = _Sink(keep=keep)
    receiver = _Receiver(folder, program, sink.port)
    receiver.start()
    try:
        yield receiver, sink
    finally:
        receiver.stop()
        sink.stop()
        shutil.rmtree(folder)


def _until(what: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.05)


def _drained(receiver: _Receiver) -> None:
    _until(lambda: receiver.metric("audit_receiver_backlog_events") == 0)


def _throughput(program: Program, size: int, events: int) -> float:
    with _running(program) as (receiver, _):
        _loaded(receiver, size, 20_000, first=1 << 60)
        _drained(receiver)
        before = receiver.seconds
        latencies, _ = _loaded(receiver, size, events)
        _drained(receiver)
        return len(latencies) * size / (receiver.seconds - before)


class _Steady(NamedTuple):
    p50: float
    p99: float
    memory: int
    cores: float


def _steady(rate: int, size: int, seconds: float) -> _Steady:
    with _running(_program()) as (receiver, _):
        _loaded(receiver, size, 2 * rate, first=1 << 60, rate=rate)
        before, begun = receiver.seconds, time.monotonic()
        latencies, _ = _loaded(receiver, size, int(rate * seconds), rate=rate)
        cores = (receiver.seconds - before) / (time.monotonic() - begun)
        latencies.sort()
        return _Steady(latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)], receiver.memory, cores)


def _killed(rounds: int) -> tuple[int, int]:
    """(events lost, events acknowledged) of as many SIGKILLs in the middle of the load."""
    acknowledged: set[int] = set()
    with _running(_everything(), keep=True) as (receiver, sink):
        for number in range(rounds):
            result: Any = multiprocessing.Queue()
            task = _Task(receiver.folder, receiver.port, 100, 10_000, number << 20)
            load = multiprocessing.Process(target=_load, args=(task, result))
            load.start()
            time.sleep(0.4 + 0.05 * (number % 10))
            receiver.kill()
            _, ranges = result.get()
            load.join()
            acknowledged |= {n for start, stop in ranges for n in range(start, stop)}
            receiver.start()
        _drained(receiver)
        delivered: set[int] = set()
        # The queue is filled by a thread of its own, which on a busy machine is late.
        with contextlib.suppress(queue.Empty):
            while acknowledged - delivered:
                delivered |= {int(name, 16) for name in sink.queue.get(timeout=10)}
    return len(acknowledged - delivered), len(acknowledged)


def _start_with(size: int) -> float:
    """Seconds until it is ready. Segments but the last are not read at the start: these are one file by many names."""
    with _running(_everything()) as (receiver, sink):
        sink.stop()
        _loaded(receiver, 400, 40_000)
        receiver.kill()
        folder = receiver.folder / "journal" / "sinks" / "audit-system" / "s0"
        (first, *_) = sorted(folder.glob("*.log"))
        data = first.read_bytes()
        whole = folder / "whole"
        whole.write_bytes(data * max(1, (32 << 20) // len(data)))
        count = size // whole.stat().st_size
        for number in range(count):
            (folder / f"{10**9 * (number + 1):020}.log").hardlink_to(whole)
        return receiver.start()


def _everything() -> Program:
    """Delivers each event, so that none can be missing for another reason."""
    import msgspec

    from audit_operator.render.program import WireRule

    program = _program()
    return msgspec.structs.replace(program, rule_lists=(RuleList(rules=(WireRule(level="Metadata"),)),))


class _Backlog(NamedTuple):
    grown: int
    drained: float
    journal: int
    start: float


def _backlog(events: int) -> _Backlog:
    with _running(_everything()) as (receiver, sink):
        _loaded(receiver, 400, 20_000, first=1 << 60)
        _drained(receiver)
        before = receiver.memory
        sink.stop()
        _loaded(receiver, 400, events)
        grown = receiver.memory - before
        journal = sum(path.stat().st_size for path in (receiver.folder / "journal").rglob("*.log"))
        receiver.kill()
        start = receiver.start()
        sink.start()
        begun = time.monotonic()
        _drained(receiver)
        return _Backlog(grown, events / (time.monotonic() - begun), journal, start)
