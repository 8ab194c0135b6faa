"""The http sink, against a TLS server that fails in every way: what is taken was answered, what failed says why."""

import asyncio
import contextlib
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from faults import FAULTS, FaultyServer, Reply, Request, answer_lost, endless, garbage, partial, reset, status
from sink_cases import batch, credential, made, sink_program, surroundings
from tls_certificates import issued

from audit_operator.receiver.reach import Reach
from audit_operator.receiver.sinks import (
    TAKEN,
    MisconfiguredError,
    RefusedError,
    Sink,
    SinkError,
    ThrottledError,
    TooLargeError,
    UnauthorizedError,
    UnknownSinkError,
    UnreachableError,
    make,
)


def accept(_request: Request) -> Reply:
    return Reply()


def against(server: FaultyServer, test: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with server:
            await test()

    asyncio.run(run())


def http_sink(folder: Path, server: FaultyServer, tls: dict[str, Any] | None = None, **http: Any) -> Sink:
    return made(folder, http={"url": f"{server.url}/audit", **http}, tls={"caBundle": server.ca, **(tls or {})})


@pytest.mark.parametrize(
    ("encoding", "read"),
    [
        ("NDJSON", lambda body: [json.loads(line) for line in body.splitlines()]),
        ("JSONArray", json.loads),
        ("EventList", lambda body: json.loads(body)["items"]),
    ],
)
@pytest.mark.parametrize("compression", ["None", "gzip", "zstd"])
def test_events_arrive_in_every_encoding(
    encoding: str, read: Callable[[bytes], Any], compression: str, tmp_path: Path
) -> None:
    server = FaultyServer(accept)

    async def test() -> None:
        sink = http_sink(tmp_path, server, encoding=encoding, compression=compression)
        assert await sink.deliver(batch(1, 2)) == TAKEN
        await sink.close()

    against(server, test)
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/audit")
    assert read(request.body) == [json.loads(item.data) for item in batch(1, 2).items]
    assert request.headers.get("content-encoding") == (None if compression == "None" else compression)


def test_headers_are_filled_in_and_a_repeated_request_says_so(tmp_path: Path) -> None:
    server = FaultyServer(accept)
    credential(tmp_path, "key", "token", "s3cret")
    credential(tmp_path, "login", "password", "pässword")

    async def test() -> None:
        headers = [
            {"name": "X-From", "value": "{cluster}/{namespace}/{sink}/{receiver}"},
            {"name": "X-Key", "secret": {"name": "key", "key": "token"}},
        ]
        auth = {"basic": {"username": "alice", "password": {"name": "login", "key": "password"}}}
        sink = http_sink(tmp_path, server, headers=headers, auth=auth)
        for numbers in ((1, 2), (1, 2), (3,)):
            await sink.deliver(batch(*numbers))
        await sink.close()

    against(server, test)
    assert {request.headers["x-from"] for request in server.requests} == {"prod/audit-system/siem/audit-receiver-0"}
    assert server.requests[0].headers["x-key"] == "s3cret"
    assert server.requests[0].headers["authorization"] == "Basic YWxpY2U6cMOkc3N3b3Jk"
    first, again, other = (request.headers["idempotency-key"] for request in server.requests)
    assert first == again != other


def test_a_signature_proves_the_body_as_it_was_sent(tmp_path: Path) -> None:
    server = FaultyServer(accept)
    credential(tmp_path, "hmac", "key", "k3y")

    async def test() -> None:
        sink = http_sink(
            tmp_path,
            server,
            compression="gzip",
            signature={"secret": {"name": "hmac", "key": "key"}, "header": "X-Sig"},
        )
        await sink.deliver(batch(1))
        await sink.close()

    against(server, test)
    (request,) = server.requests
    time, _, digest = request.headers["x-sig"].partition(",")
    expected = hmac.new(b"k3y", time.removeprefix("t=").encode() + b"." + request.sent, hashlib.sha256).hexdigest()
    assert digest == f"v1={expected}"


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (reset(), UnreachableError, "no connection|closed the connection"),
        (garbage(), UnreachableError, "no valid answer"),
        (partial(), UnreachableError, "no valid answer"),
        (answer_lost(), UnreachableError, "closed the connection|no connection"),
        (endless(), UnreachableError, "HTTP 500: xxx"),
        (status(500, b"oops\x1b[31m"), UnreachableError, "HTTP 500: oops"),
        (status(503), UnreachableError, "HTTP 503"),
        (status(503, retry_after=7), ThrottledError, "HTTP 503"),
        (status(429), ThrottledError, "HTTP 429"),
        (status(401), UnauthorizedError, "HTTP 401"),
        (status(403, b"expired"), UnauthorizedError, "HTTP 403: expired"),
        (status(404), MisconfiguredError, "HTTP 404"),
        (status(301), MisconfiguredError, "HTTP 301"),
        (status(413), TooLargeError, "HTTP 413"),
        (status(400, b"bad field"), RefusedError, "HTTP 400: bad field"),
    ],
)
def test_every_failure_is_told_apart_and_passes(
    fault: Any, error: type[SinkError], message: str, tmp_path: Path
) -> None:
    server = FaultyServer(accept)

    async def test() -> None:
        sink = http_sink(tmp_path, server)
        server.fail(fault)
        with pytest.raises(error, match=message) as caught:
            await sink.deliver(batch(1))
        assert type(caught.value) is error
        assert caught.value.retry_after == (7 if error is ThrottledError and fault.reply.headers else None)
        assert await sink.deliver(batch(1)) == TAKEN
        await sink.close()

    against(server, test)


@pytest.mark.parametrize("name", FAULTS)
def test_no_failure_raises_anything_else(name: str, tmp_path: Path) -> None:
    server = FaultyServer(accept)

    async def test() -> None:
        sink = http_sink(tmp_path, server)
        server.fail(FAULTS[name])
        with contextlib.suppress(SinkError):
            await sink.deliver(batch(1))
        await sink.close()

    against(server, test)


def test_a_server_that_is_away_is_unreachable_until_it_is_back(tmp_path: Path) -> None:
    server = FaultyServer(accept)

    async def test() -> None:
        sink = http_sink(tmp_path, server)
        await sink.deliver(batch(1))
        await server.stop()
        for _ in range(2):
            with pytest.raises(UnreachableError):
                await sink.deliver(batch(2))
        await server.start()
        assert await sink.deliver(batch(2)) == TAKEN
        await sink.close()

    against(server, test)


def test_a_certificate_for_another_name_is_refused_unless_the_settings_name_it(tmp_path: Path) -> None:
    server = FaultyServer(accept, names=("other.example",))

    async def test() -> None:
        wrong = http_sink(tmp_path, server)
        with pytest.raises(UnreachableError, match=r"(?i)hostname mismatch"):
            await wrong.deliver(batch(1))
        right = http_sink(tmp_path, server, tls={"serverName": "other.example"})
        assert await right.deliver(batch(1)) == TAKEN
        await wrong.close()
        await right.close()

    against(server, test)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("certificate", "message"),
    [
        (issued("server", "localhost", ca="somebody else"), "unable to get local issuer|self-signed"),
        (issued("server", "localhost", expired=True), "expired"),
    ],
)
def test_a_server_that_cannot_prove_who_it_is_gets_nothing(certificate: Any, message: str, tmp_path: Path) -> None:
    server = FaultyServer(accept, certificate=certificate)

    async def test() -> None:
        sink = http_sink(tmp_path, server)
        with pytest.raises(UnreachableError, match=message):
            await sink.deliver(batch(1))
        await sink.close()

    against(server, test)
    assert not server.requests


def test_a_client_certificate_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    server = FaultyServer(accept, client_ca="test CA")

    def write(ca: str) -> None:
        mine = issued("me", ca=ca)
        credential(tmp_path, "own", "tls.crt", mine.certificate.decode())
        credential(tmp_path, "own", "tls.key", mine.key.decode())

    async def test() -> None:
        sink = http_sink(tmp_path, server, tls={"clientCertificate": {"secretName": "own"}})
        with pytest.raises(UnauthorizedError, match="missing"):
            await sink.deliver(batch(1))
        write("somebody else")
        with pytest.raises(UnreachableError):
            await sink.deliver(batch(1))
        write("test CA")
        assert await sink.deliver(batch(1)) == TAKEN
        await sink.close()

    against(server, test)


@pytest.mark.parametrize("network", ["127.0.0.0/8", "0.0.0.0/0"])
def test_no_connection_is_made_to_a_refused_network(network: str, tmp_path: Path) -> None:
    server = FaultyServer(accept)

    async def test() -> None:
        program = sink_program(http={"url": f"{server.url}/audit"}, tls={"caBundle": server.ca})
        sink = make(program, surroundings(tmp_path, reach=Reach(refused=(network, "::1/128"))))
        with pytest.raises(MisconfiguredError, match="may not connect"):
            await sink.deliver(batch(1))
        await sink.close()

    against(server, test)
    assert not server.requests


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "Host", "Connection", "Idempotency-Key"])
@pytest.mark.parametrize("place", ["headers", "signature"])
def test_a_header_that_frames_requests_is_refused_in_a_program_of_an_earlier_version(
    name: str, place: str, tmp_path: Path
) -> None:
    program = sink_program(http={"url": "http://localhost:1/"})
    more = {
        "headers": [{"name": name, "value": "3"}],
        "signature": {"header": name, "secret": {"file": "/etc/audit-operator/credentials/secret_audit-system_a_b"}},
    }[place]
    older = msgspec.structs.replace(program, settings=program.settings | {place: more})
    with pytest.raises(UnknownSinkError, match=f"writes header {name} itself"):
        make(older, surroundings(tmp_path))


def test_a_header_is_sent_once_however_it_is_written(tmp_path: Path) -> None:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async def test() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            headers = [
                {"name": "content-type", "value": "application/json"},
                {"name": "USER-AGENT", "value": "ours"},
                {"name": "authorization", "secret": {"name": "a", "key": "b"}},
            ]
            credential(tmp_path, "a", "b", "Splunk x")
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            sink = made(tmp_path, http={"url": url, "headers": headers})
            await sink.deliver(batch(1))
            await sink.close()

    asyncio.run(test())
    names = [line.partition(b":")[0].lower() for line in heads[0].splitlines()[1:] if line]
    assert len(names) == len(set(names))
    assert b"application/json" in heads[0]
    assert b"ours" in heads[0]
