"""A whole receiver for tests, and API servers that send to it. Everything is real but the cluster."""

import asyncio
import contextlib
import gzip
import io
import itertools
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from tls_certificates import Issued, authority, issued, written

from audit_operator.receiver.receive import Options, Receiver
from audit_operator.render.program import PolicyProgram, Program, RuleList, SinkProgram, WireBatch, WireRule, encode
from audit_operator.render.report import CLIENTS_FILE, ClientNames, encoded_clients, operator_uri

CORPUS = Path(__file__).parent.parent / "data" / "audit-eventlists.jsonl.gz"
SCHEMA = "receiver.audit-operator.dev/v1"
OPERATOR = operator_uri("cluster.local", "audit-system")
API_SERVERS = ("kube-apiserver", "other", *(f"kube-apiserver-{number}" for number in range(8)))


def recorded() -> list[bytes]:
    """EventLists that a real API server sent."""
    with gzip.open(CORPUS) as lines:
        return [line.rstrip(b"\n") for line in lines]


def event(number: int, **changes: Any) -> dict[str, Any]:
    """An event like no other."""
    stamp = f"2026-11-23T04:{number // 3600000 % 60:02}:{number // 60000 % 60:02}.{number % 60000:06}Z"
    return {
        "level": "RequestResponse",
        "auditID": f"00000000-0000-4000-8000-{number:012}",
        "stage": "ResponseComplete",
        "requestURI": "/api/v1/namespaces/default/pods/web",
        "verb": "get",
        "user": {"username": "alice", "groups": ["system:authenticated"]},
        "sourceIPs": ["127.0.0.1"],
        "objectRef": {"resource": "pods", "namespace": "default", "name": "web", "apiVersion": "v1"},
        "responseStatus": {"metadata": {}, "code": 200},
        "requestReceivedTimestamp": stamp,
        "stageTimestamp": stamp,
        **changes,
    }


def event_list(*items: dict[str, Any] | bytes) -> bytes:
    """As API servers send them."""
    parts = [item if isinstance(item, bytes) else json.dumps(item, separators=(",", ":")).encode() for item in items]
    return b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[' + b",".join(parts) + b"]}"


def policy(name: str = "all", *, sinks: Sequence[str] = ("audit-system/siem",), **rest: Any) -> PolicyProgram:
    """A policy with the first list of rules."""
    return PolicyProgram(**{"namespace": "audit-system", "name": name, "rule_list": 0, "sinks": tuple(sinks), **rest})


def sink(name: str = "siem", namespace: str = "audit-system", **rest: Any) -> SinkProgram:
    """A file sink, quick about everything."""
    given: dict[str, Any] = {
        "type": "file",
        "settings": {
            "path": "{namespace}/{sink}.log",
            "rotation": {"maxSize": "1Gi", "maxAge": "24h", "maxFiles": 10},
            "compression": "None",
        },
        "batch": WireBatch(max_events=1000, max_bytes=5 << 20, max_age=0.02),
        "initial_backoff": 0.01,
        "max_backoff": 0.05,
        "timeout": 5.0,
        "concurrency": 1,
        "format": {},
    }
    return SinkProgram(namespace=namespace, name=name, **(given | rest))


def on_a_claim() -> SinkProgram:
    """A file sink whose files do not count: ``lines(root="claims/archive")``."""
    return sink(settings=sink().settings | {"claimName": "archive"})


def program(
    *,
    policies: Sequence[PolicyProgram] = (),
    sinks: Sequence[SinkProgram] = (),
    rules: Sequence[RuleList] = (),
    **rest: Any,
) -> Program:
    """Everything to the one sink, unless said otherwise."""
    given = {"cluster": "prod", "body_limit": 8 << 20, "journal_limit": 1 << 30, **rest}
    return Program(
        schema="receiver.audit-operator.dev/v1",
        policies=tuple(policies) or (policy(),),
        sinks=tuple(sinks) or (sink(),),
        rule_lists=tuple(rules) or (RuleList(rules=(WireRule(level="RequestResponse"),)),),
        **given,
    )


class Setup:
    """A receiver and its surroundings in one folder."""

    def __init__(self, folder: Path, first: Program | None, pod: str = "") -> None:
        self.folder = folder
        self.pod = pod
        self.program_file = folder / "program.json"
        self.certificates = written(folder / "tls", issued("audit-receiver", "localhost"))
        name_clients(folder)
        if first is not None:
            self.mount(first)
        self.receiver = Receiver(self.options())

    def options(self) -> Options:
        """Ports of its own choice."""
        return Options(
            program=self.program_file,
            journal=self.folder / "journal",
            listen=("127.0.0.1", 0),
            certificates=self.certificates,
            metrics=("127.0.0.1", 0),
            receiver="audit-receiver-0",
            files=self.folder / "files",
            claims=self.folder / "claims",
            pod=self.pod,
        )

    def mount(self, program: Program) -> None:
        """As a kubelet does: the name changes what it means."""
        temporary = self.folder / ".program"
        temporary.write_text(encode(program))
        temporary.rename(self.program_file)

    def lines(self, name: str = "siem", namespace: str = "audit-system", root: str = "files") -> list[Any]:
        """What a file sink has."""
        path = self.folder / root / namespace / f"{name}.log"
        return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    @property
    def url(self) -> str:
        """For API servers and the operator."""
        return f"https://localhost:{self.receiver.ports[0]}"

    @property
    def plain(self) -> str:
        """For probes."""
        return f"http://127.0.0.1:{self.receiver.ports[1]}"

    async def post(self, body: bytes, server: str = "kube-apiserver", **headers: str) -> int:
        """The status that an API server sees."""
        return (await self.ask("POST", "/audit?timeout=30s", body, server, **headers))[0]

    async def ask(
        self, method: str, path: str, body: bytes = b"", name: str = "audit-operator", **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """The answer to somebody with a certificate of this name."""
        async with (
            client(name) as session,
            session.request(
                method,
                f"{self.url}{path}",
                data=io.BytesIO(body),
                headers={"Content-Type": "application/json", **headers},
            ) as response,
        ):
            return response.status, await response.read(), dict(response.headers)

    async def status(self) -> Any:
        """What the operator sees."""
        status, body, _ = await self.ask("GET", "/status")
        assert status == 200
        return json.loads(body)


def name_clients(folder: Path, names: ClientNames | None = None) -> None:
    """Who may do what, beside the program in ``folder``; as a kubelet does."""
    names = names or ClientNames(api_servers=API_SERVERS, operators=(OPERATOR,))
    temporary = folder / ".clients"
    temporary.write_text(encoded_clients(names))
    temporary.rename(folder / CLIENTS_FILE)


def client_certificate(name: str, ca: str = "test CA") -> Issued:
    """Of an API server, of the operator, or of a stranger."""
    return issued(name, OPERATOR, ca=ca) if name == "audit-operator" else issued(name, ca=ca)


def tls_of(name: str, ca: str = "test CA") -> ssl.SSLContext:
    """Of a client with a certificate of this name; empty: with none."""
    context = ssl.create_default_context(cadata=authority().pem.decode())
    if name:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            written(Path(folder), client_certificate(name, ca))
            context.load_cert_chain(Path(folder, "tls.crt"), Path(folder, "tls.key"))
    return context


def client(name: str = "kube-apiserver", ca: str = "test CA") -> aiohttp.ClientSession:
    """See `tls_of`."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls_of(name, ca)))


@contextlib.asynccontextmanager
async def receiving(folder: Path, first: Program | None = None, pod: str = "") -> AsyncIterator[Setup]:
    """A receiver that listens."""
    setup = Setup(folder, first if first is not None else program(), pod)
    await setup.receiver.start()
    try:
        yield setup
    finally:
        await setup.receiver.stop(delivery_grace=2.0)


async def eventually(what: Callable[[], Any], wanted: Callable[[Any], bool] = bool, seconds: float = 10.0) -> Any:
    """``what()`` once it is as wanted. It may be a coroutine function."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        found = what()
        if isinstance(found, Awaitable):
            found = await found
        if wanted(found):
            return found
        assert asyncio.get_running_loop().time() < end, f"still {found!r}"
        await asyncio.sleep(0.02)


TAKEN = "taken by whoever is choosy"
"""User agent of the only events that a choosy server takes."""


async def until_refused_for_good(setup: Setup, sink: str, **like: Any) -> None:
    """Until a sink's choosy server has taken or refused for good all that there is: it must take events now and then,
    or what it refuses is not known to be about them. ``like``: of events that reach the sink.
    """
    log = setup.receiver.journal.logs[sink]
    async with asyncio.timeout(60):
        for number in itertools.count(7_000_000):
            assert await setup.post(event_list(event(number, userAgent=TAKEN, **like))) == 200
            await asyncio.sleep(0.05)
            if not log.backlog:
                return
