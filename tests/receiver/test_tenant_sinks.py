"""Sinks that tenants write: nothing in their settings, in DNS or in an answer leads where tenants may not go."""

import asyncio
import contextlib
import gzip
import importlib
import inspect
import re
import socket
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import yaml
from faults import FaultyServer, Reply
from google_double import account_key
from receiving import eventually
from sink_cases import batch, credential, sink_program, surroundings

from audit_operator.receiver.reach import Reach
from audit_operator.receiver.sinks import MODULES, MisconfiguredError, Sink, SinkError, UnknownSinkError, make
from audit_operator.render.tenants import refusals
from audit_operator.render.world import Resources, World
from audit_operator.resources.auditbackend import Tenants
from audit_operator.resources.auditsink import SINK_TYPES, AuditSink

TENANT = Reach(tenant=True)
LOOPBACK = Reach(("127.0.0.1/32",), tenant=True)
"""What only administrators can write: 127.0.0.1 stands for the internet here, 127.0.0.2 for what is refused."""

NAME = "siem.example"
AWS = {"accessKeyID": {"name": "own", "key": "id"}, "secretAccessKey": {"name": "own", "key": "secret"}}
TOKEN = {"name": "own", "key": "secret"}


def specs(url: str) -> dict[str, dict[str, Any]]:
    """Every sink type whose connections are ours, and the ways it has, to this URL."""
    host = url.partition("://")[2]
    return {
        "elasticsearch": {"elasticsearch": {"urls": [url]}},
        "splunk": {"splunk": {"url": url, "token": TOKEN}},
        "loki": {"loki": {"url": url}},
        "otlp": {"otlp": {"url": url}},
        "http": {"http": {"url": f"{url}/audit"}},
        "syslog": {"syslog": {"address": host, "transport": "TCP"}},
        "cloudWatch": {"cloudWatch": {"region": "eu-central-1", "endpoint": url, "auth": AWS}},
        "googleCloudLogging": {
            "googleCloudLogging": {"parent": "projects/p", "endpoint": url, "credentials": {"name": "own", "key": "g"}}
        },
        "objectStore": {
            "objectStore": {"s3": {"bucket": "audit", "region": "x", "endpoint": url, "pathStyle": True, "auth": AWS}}
        },
    }


KINDS = sorted(specs(""))


def test_every_sink_type_that_tenants_may_use_by_default_is_tried_here() -> None:
    assert set(KINDS) == set(Tenants().sink_types)
    assert set(SINK_TYPES) - set(KINDS) == {"kafka", "file", "stdout"}


def tenants_sink(folder: Path, reach: Reach, **spec: Any) -> Sink:
    for key in ("id", "secret"):
        credential(folder, "own", key, "a-credential")
    credential(folder, "own", "g", account_key())
    return make(sink_program(folder / "credentials", **spec), surroundings(folder, reach=reach))


async def outcome(sink: Sink) -> str:
    """What a person is told of one delivery."""
    try:
        result = await sink.deliver(batch(1))
    except SinkError as error:
        return f"{type(error).__name__}: {error}"
    return " ".join([result.reason, *(each.reason for each in result.refused)])


@contextlib.asynccontextmanager
async def listening(address: str, port: int = 0) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that answers nothing; its port, and what connections brought."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(b"")
        with contextlib.suppress(ConnectionError):
            seen[-1] = await reader.read(65536)
        writer.transport.abort()

    server = await asyncio.start_server(serve, address, port)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()


class Names:
    """A name server: of each name one answer after the other, the last for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
        self.asked = 0
        self._answers = answers
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)
        monkeypatch.setattr(aiohttp.connector._DNSCacheTable, "expired", lambda *_: True)

    def __call__(self, host: str, port: int, *rest: Any, **more: Any) -> list[Any]:
        if host != NAME:
            return self._real(host, port, *rest, **more)
        answer = self._answers[min(self.asked, len(self._answers) - 1)]
        self.asked += 1
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in answer
        ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_changes_what_it_means_leads_nowhere_else(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])

    async def test() -> None:
        async with listening("127.0.0.1") as (port, first), listening("127.0.0.2", port) as (_, second):
            sink = tenants_sink(tmp_path, LOOPBACK, **specs(f"http://{NAME}:{port}")[kind])
            # The library asks a second time where a connection breaks; syslog goes on until it sees that one has.
            await eventually(lambda: outcome(sink), lambda told: "may not connect" in told)
            await sink.close()
            assert first
            assert names.asked >= 2
            assert not second

    asyncio.run(test())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", [["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"], ["::1", "127.0.0.1"]])
def test_of_several_addresses_only_those_are_tried_that_may_be(
    kind: str, answer: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Names(monkeypatch, answer)

    async def test() -> None:
        async with listening("127.0.0.1") as (port, first), listening("127.0.0.2", port) as (_, second):
            sink = tenants_sink(tmp_path, LOOPBACK, **specs(f"http://{NAME}:{port}")[kind])
            for _ in range(3):
                await outcome(sink)
            await sink.close()
            assert first
            assert not second

    asyncio.run(test())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "localhost", "[::ffff:127.0.0.1]"]
)
def test_no_way_to_write_this_machine_reaches_it(kind: str, host: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with listening("127.0.0.1") as (port, seen):
            sink = tenants_sink(tmp_path, TENANT, **specs(f"http://{host}:{port}")[kind])
            told = await outcome(sink)
            await sink.close()
            assert re.search("may not connect|cannot be resolved|is no address", told), told
            assert not seen

    asyncio.run(test())


HTTP = [kind for kind in KINDS if kind != "syslog"]


@pytest.mark.parametrize("kind", HTTP)
def test_a_redirect_is_not_followed(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with listening("127.0.0.2") as (port, seen):
            for code in (301, 302, 303, 307, 308):
                elsewhere = {"Location": f"http://127.0.0.2:{port}/"}
                async with FaultyServer(lambda _, c=code, e=elsewhere: Reply(c, b"", e), tls=False) as server:
                    reach = Reach(("127.0.0.1/32", "127.0.0.2/32"), tenant=True)
                    sink = tenants_sink(tmp_path, reach, **specs(f"http://127.0.0.1:{server.port}")[kind])
                    assert "Error" in await outcome(sink)
                    await sink.close()
                    assert server.requests
            assert not seen

    asyncio.run(test())


@pytest.mark.parametrize("kind", HTTP)
def test_a_proxy_is_a_connection_too_and_no_way_around(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with listening("127.0.0.1") as (port, seen):
            proxy = {"proxy": {"url": f"http://127.0.0.1:{port}"}}
            for reach, target in ((TENANT, "203.0.113.1"), (LOOPBACK, "169.254.169.254"), (LOOPBACK, "2852039166")):
                sink = tenants_sink(tmp_path, reach, **specs(f"http://{target}:80")[kind], **proxy)
                assert re.search("may not connect|none of the networks", await outcome(sink))
                await sink.close()
            assert not seen

    asyncio.run(test())


def test_a_name_server_that_hangs_holds_up_its_own_sink_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, go_on, waiting = socket.getaddrinfo, threading.Event(), threading.Semaphore(0)

    def hanging(host: str, *rest: Any, **more: Any) -> list[Any]:
        if host == NAME:
            waiting.release()
            go_on.wait(30)
            raise socket.gaierror
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", hanging)

    async def test() -> None:
        many = [
            tenants_sink(tmp_path, TENANT, **specs(f"http://{NAME}:1")[kind]) for kind in ("http", "syslog") * 30
        ]  # more than threads that are shared
        tasks = [asyncio.create_task(outcome(sink)) for sink in many]
        await eventually(lambda: waiting._value >= len(many))
        async with FaultyServer(lambda _: Reply(), tls=False) as server:
            ours = make(sink_program(http={"url": f"http://localhost:{server.port}"}), surroundings(tmp_path))
            await ours.deliver(batch(1))
            await ours.close()
            assert server.requests
        assert not any(task.done() for task in tasks)
        go_on.set()
        assert {told.partition(":")[0] for told in await asyncio.gather(*tasks)} == {"UnreachableError"}
        for sink in many:
            await sink.close()

    asyncio.run(test())


# --- answers ---------------------------------------------------------------------------------------------------------

INTERNAL = b"root:x:0:0:only-the-receiver-could-read-this"


@pytest.mark.parametrize("kind", HTTP)
@pytest.mark.parametrize("body", [INTERNAL, b'{"error":{"type":"x","reason":"%b"},"text":"%b"}' % (INTERNAL, INTERNAL)])
def test_what_a_server_answers_never_comes_back_in_a_message(kind: str, body: bytes, tmp_path: Path) -> None:
    async def test() -> None:
        for code in (200, 204, 301, 400, 401, 403, 404, 409, 413, 422, 429, 500, 503):
            headers = {"Location": INTERNAL.decode(), "X-Internal": INTERNAL.decode()}
            async with FaultyServer(lambda _, c=code, h=headers: Reply(c, body, h), tls=False) as server:
                sink = tenants_sink(tmp_path, LOOPBACK, **specs(f"http://127.0.0.1:{server.port}")[kind])
                told = await outcome(sink)
                await sink.close()
            assert "only-the-receiver" not in told
            if code >= 400:
                assert str(code) in told or "Error" in told

    asyncio.run(test())


def test_administrators_read_what_their_servers_say(tmp_path: Path) -> None:
    async def test() -> None:
        async with FaultyServer(lambda _: Reply(404, b"no such collector"), tls=False) as server:
            program = sink_program(http={"url": f"http://127.0.0.1:{server.port}"})
            sink = make(program, surroundings(tmp_path))
            assert "no such collector" in await outcome(sink)
            await sink.close()

    asyncio.run(test())


def _endless_headers() -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %b\r\n" % (n, b"y" * 4000) for n in range(20_000))


ANSWERS: dict[str, Callable[[], bytes]] = {
    "a gigabyte in a megabyte": lambda: (
        b"HTTP/1.1 500 Oops\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n" + gzip.compress(bytes(1 << 28))
    ),
    "headers without end": _endless_headers,
    "a line without end": lambda: b"HTTP/1.1 200 " + b"x" * (64 << 20),
    "a body without end": lambda: b"HTTP/1.1 500 Oops\r\n\r\n" + b"x" * (64 << 20),
    "chunks without end": lambda: (
        b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1_000_000
    ),
    "trailers without end": lambda: (
        b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X-T: y\r\n" * 1_000_000
    ),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_no_answer_fills_the_memory(what: str, tmp_path: Path) -> None:
    answer = ANSWERS[what]()

    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                for start in range(0, len(answer), 1 << 16):
                    writer.write(answer[start : start + (1 << 16)])
                    await writer.drain()
            writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        sink = tenants_sink(tmp_path, LOOPBACK, http={"url": f"http://127.0.0.1:{port}/"})
        tracemalloc.start()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(10):
                    assert "Error" in await outcome(sink)
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()
            await sink.close()
            server.close()

    asyncio.run(test())


# --- who we are ------------------------------------------------------------------------------------------------------

ROLE = {"assumeRole": {"roleARN": "arn:aws:iam::123456789012:role/admin"}}
AMBIENT: dict[str, list[dict[str, Any]]] = {
    "elasticsearch": [
        {"urls": ["https://es.example.com"], "auth": {"aws": {"region": "eu-central-1", **more}}} for more in ({}, ROLE)
    ],
    "cloudWatch": [{"region": "eu-central-1"}, {"region": "eu-central-1", "auth": ROLE}],
    "googleCloudLogging": [{"parent": "projects/p"}],
    "objectStore": [
        {"s3": {"bucket": "audit", "region": "eu-central-1"}},
        {"s3": {"bucket": "audit", "region": "eu-central-1", "auth": ROLE}},
        {"gcs": {"bucket": "audit"}},
        {"azure": {"storageAccount": "audit", "container": "audit", "auth": {"workloadIdentity": {}}}},
        {
            "azure": {
                "storageAccount": "audit",
                "container": "audit",
                "auth": {"workloadIdentity": {"clientID": "c", "tenantID": "t"}},
            }
        },
    ],
}
"""Sink type -> settings by which it would be whoever the receiver is."""

NAMED_ONLY = {"splunk", "loki", "kafka", "otlp", "syslog", "http", "file", "stdout"}
"""Sink types that are nobody but who their settings say. A new type belongs here or above."""

_LIBRARIES = re.compile(r"awscrt|Signer|google\.auth|google\.oauth2|obstore|azure|environ|metadata\.google")


def test_every_sink_type_is_known_to_have_an_identity_in_the_environment_or_not() -> None:
    assert AMBIENT.keys() | NAMED_ONLY == SINK_TYPES.keys()
    for kind, module in MODULES.items():
        source = inspect.getsource(importlib.import_module(f"audit_operator.receiver.sinks.{module}"))
        assert bool(_LIBRARIES.search(source)) == (kind in AMBIENT), f"{kind}: is it who the receiver is?"
        assert ("need_own_identity(" in source) == (kind in AMBIENT)


@pytest.mark.parametrize(("kind", "given"), [(kind, given) for kind in AMBIENT for given in AMBIENT[kind]])
def test_no_tenants_sink_is_ever_the_receiver(kind: str, given: dict[str, Any], tmp_path: Path) -> None:
    sink = AuditSink.model_validate({"metadata": {"name": "s", "namespace": "team-a"}, "spec": {kind: given}})
    (refusal,) = refusals(Resources.of([sink]), Tenants(enabled=True), World()).values()
    assert refusal.reason == "IdentityNotAllowed"
    # A receiver does not take render's word for it.
    program = sink_program(**{kind: given})
    with pytest.raises(UnknownSinkError, match="own identity is not for tenants"):
        make(program, surroundings(tmp_path, reach=TENANT))
    make(program, surroundings(tmp_path))


@pytest.mark.parametrize("store", ["gcs", "azure"])
def test_stores_that_connect_by_themselves_connect_to_their_vendor_only(store: str, tmp_path: Path) -> None:
    credentials = {"credentials": TOKEN} if store == "gcs" else {"auth": {"accountKey": TOKEN}}
    names = {"bucket": "audit"} if store == "gcs" else {"storageAccount": "audit", "container": "audit"}
    given = {"objectStore": {store: {**names, **credentials}}}
    tenants_sink(tmp_path, TENANT, **given)
    given["objectStore"][store]["endpoint"] = "https://127.0.0.1"  # type: ignore[assignment]
    with pytest.raises(UnknownSinkError, match="endpoint is not for tenants"):
        tenants_sink(tmp_path, TENANT, **given)


VALID = Path(__file__).parents[1] / "data" / "resources" / "valid" / "auditsink.yaml"
DOCUMENTS = list(yaml.safe_load_all(VALID.read_text()))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["metadata"]["name"])
def test_a_credential_of_another_namespace_is_never_read(document: dict[str, Any], tmp_path: Path) -> None:
    program = sink_program(**document["spec"])
    # As if render had been made to write the paths of audit-system into the sink of a tenant.
    stolen = msgspec.structs.replace(program, namespace="team-a")
    if b"/etc/audit-operator/credentials/" in msgspec.json.encode(program):
        with pytest.raises(UnknownSinkError, match="is no credential of namespace team-a"):
            make(stolen, surroundings(tmp_path))


@pytest.mark.parametrize(
    "file",
    [
        "/etc/passwd",
        "/etc/audit-operator/credentials/hash-key",
        "/etc/audit-operator/credentials/secret_audit_siem_token",
        "/etc/audit-operator/credentials/secret_audit-system-2_siem_token",
        "/etc/audit-operator/credentials/secret_audit-system_x/../secret_team-a_siem_token",
        "credentials/secret_audit-system_siem_token",
    ],
)
def test_a_file_that_is_no_credential_of_the_namespace_is_never_read(file: str, tmp_path: Path) -> None:
    program = sink_program(splunk={"url": "https://splunk", "token": TOKEN})
    stolen = msgspec.structs.replace(program, settings=program.settings | {"token": {"file": file}})
    with pytest.raises(UnknownSinkError, match="is no credential of namespace audit-system"):
        make(stolen, surroundings(tmp_path))


def test_words_of_tenants_that_look_like_files_are_words(tmp_path: Path) -> None:
    """They arrive as they were written, and nothing of what is in a file of that name."""
    secret = tmp_path / "secret"
    secret.write_text("only-the-receiver-could-read-this")

    async def test() -> None:
        async with FaultyServer(lambda _: Reply(204, b""), tls=False) as server:
            for spec in (
                {"loki": {"url": server.url, "labels": {"file": str(secret)}, "compression": "None"}},
                {"otlp": {"url": server.url, "resourceAttributes": {"caFile": str(secret)}, "compression": "None"}},
                {"http": {"url": server.url, "headers": [{"name": "File", "value": str(secret)}]}},
            ):
                sink = tenants_sink(tmp_path, LOOPBACK, **spec)
                assert await outcome(sink) == ""
                await sink.close()
        for request in server.requests:
            sent = request.body + str(request.headers).encode()
            assert str(secret).encode() in sent
            assert b"only-the-receiver" not in sent
        assert len(server.requests) == 3

    asyncio.run(test())


def test_a_platforms_sink_goes_where_its_administrators_say(tmp_path: Path) -> None:
    async def test() -> None:
        async with listening("127.0.0.1") as (port, seen):
            sink = make(sink_program(http={"url": f"http://127.0.0.1:{port}/"}), surroundings(tmp_path))
            with pytest.raises(SinkError) as caught:
                await sink.deliver(batch(1))
            assert not isinstance(caught.value, MisconfiguredError)
            assert seen
            await sink.close()

    asyncio.run(test())
