"""Strangers at the ports of a real receiver: whatever they send, announce or leave out, memory stays in proportion to
what came, and API servers are answered meanwhile.
"""

import asyncio
import contextlib
import json
import re
import resource
import signal
import ssl
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from receiving import client, event, event_list, eventually, program, tls_of
from test_process import Process

MIB = 1 << 20
BODY_LIMIT = 40 * MIB

CONNECTION = 400 << 10
"""Bytes that one connection may cost: TLS, and what one read of it returns."""

SLACK = 40 * MIB
"""Of an interpreter that works: garbage, arenas that are not given back."""

PLAIN_CONNECTIONS, STRANGERS, HANDSHAKES = 64, 64, 200


@pytest.fixture(autouse=True)
def _many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path, program(body_limit=BODY_LIMIT))
    made.start()
    try:
        yield made
    finally:
        made.end(signal.SIGKILL)


Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Strangers:
    """Connections that are there until the end."""

    def __init__(self, receiver: Process) -> None:
        self._receiver = receiver
        self.opened: list[Opened] = []

    async def plain(self, *data: bytes) -> Opened:
        """To the port of health and metrics."""
        return await self._open(self._receiver.plain, data, None)

    async def secure(self, name: str, *data: bytes, at: str = "127.0.0.1") -> Opened:
        """With a certificate of this name; empty: without any handshake."""
        return await self._open(self._receiver.port, data, _tls(name) if name else None, at)

    async def _open(
        self, port: int, data: tuple[bytes, ...], tls: ssl.SSLContext | None, at: str = "127.0.0.1"
    ) -> Opened:
        hosted = {"server_hostname": "localhost"} if tls is not None else {}
        opened = await asyncio.open_connection("127.0.0.1", port, ssl=tls, local_addr=(at, 0), **hosted)  # type: ignore[arg-type]
        self.opened.append(opened)
        with contextlib.suppress(ConnectionError):
            for piece in data:
                opened[1].write(piece)
                await opened[1].drain()
        return opened

    async def end(self) -> None:
        for _, writer in self.opened:
            writer.transport.abort()
        await asyncio.sleep(0.05)


_contexts: dict[str, ssl.SSLContext] = {}


def _tls(name: str) -> ssl.SSLContext:
    if name not in _contexts:
        _contexts[name] = tls_of(name)
    return _contexts[name]


@contextlib.asynccontextmanager
async def strangers(receiver: Process) -> AsyncIterator[Strangers]:
    found = Strangers(receiver)
    try:
        yield found
    finally:
        await found.end()


def run(receiver: Process, test: Callable[[Strangers], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with strangers(receiver) as found:
            await test(found)

    uvloop.run(whole())


def resident(receiver: Process) -> int:
    """Bytes."""
    return int(Path(f"/proc/{receiver.pid}/statm").read_text().split()[1]) * resource.getpagesize()


async def post(receiver: Process, *numbers: int, name: str = "kube-apiserver") -> int:
    """The status that an API server sees."""
    async with client(name) as session:
        return await receiver.send(session, event_list(*map(event, numbers)))


def refused(receiver: Process) -> dict[str, int]:
    """How often, by reason."""
    with urllib.request.urlopen(f"http://127.0.0.1:{receiver.plain}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = re.findall(r'audit_receiver_refused_total\{reason="(\w+)"\} ([\d.e+]+)', text)
    return {reason: int(float(number)) for reason, number in found}


async def refused_async(receiver: Process) -> dict[str, int]:
    return await asyncio.to_thread(refused, receiver)


def warnings(receiver: Process) -> list[str]:
    """What it has logged about strangers, and anything that looks like a bug."""
    found = [json.loads(line) for line in list(receiver.log) if line.startswith("{")]
    assert not [each for each in found if "exc_info" in each], found
    return [each["message"] for each in found if each["level"] != "INFO"]


# --- health and metrics -----------------------------------------------------------------------------------------------


HEAD = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
HEADERS = b"".join(b"X-%d: " % number + b"a" * 8000 + b"\r\n" for number in range(120))


@pytest.mark.parametrize("what", [HEAD + HEADERS, HEAD, b"", b"\x16\x03\x01" * 100], ids=["huge", "cut", "none", "TLS"])
def test_whoever_finds_the_plain_port_takes_no_memory_and_keeps_no_probe_out(receiver: Process, what: bytes) -> None:
    async def test(found: Strangers) -> None:
        before = resident(receiver)
        for _ in range(12):
            await asyncio.gather(*(found.plain(what) for _ in range(50)))
            assert await receiver.ready_async()
        assert resident(receiver) - before < PLAIN_CONNECTIONS * CONNECTION + SLACK
        assert await post(receiver, 1) == 200
        reasons = await refused_async(receiver)
        assert reasons.keys() <= {"PlainTooManyConnections", "PlainHeadTooLarge", "PlainBadRequest"}
        assert len(warnings(receiver)) <= len(reasons)

    run(receiver, test)


def test_bad_requests_write_one_line_however_many_there_are(receiver: Process) -> None:
    async def test(found: Strangers) -> None:
        for _ in range(300):
            reader, writer = await found.plain(b"BAD\x00\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 400")
            writer.transport.abort()
        assert (await refused_async(receiver))["PlainBadRequest"] == 300
        assert [each.partition(":")[0] for each in warnings(receiver)] == ["refused (PlainBadRequest)"]

    run(receiver, test)


def test_metrics_are_written_once_for_all_who_ask_within_a_second(receiver: Process) -> None:
    async def test(found: Strangers) -> None:
        async def ask() -> bytes:
            reader, _ = await found.plain(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            return await reader.read()

        assert await post(receiver, 1) == 200
        answers = []
        for _ in range(20):
            answers += await asyncio.gather(*(ask() for _ in range(20)))
        answers = [each for each in answers if each]
        assert all(each.startswith(b"HTTP/1.1 200") for each in answers)
        # The receiver's own processor time is in there: it differs each time that they are written anew.
        assert len(answers) > 300
        assert len(set(answers)) < 40

    run(receiver, test)


# --- the port of API servers ------------------------------------------------------------------------------------------

POST = b"POST /audit HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_bodies_that_are_announced_and_do_not_come_keep_nobody_waiting(receiver: Process) -> None:
    async def test(found: Strangers) -> None:
        head = POST + b"Content-Length: %d\r\n\r\n" % BODY_LIMIT
        before = resident(receiver)
        for _ in range(50):
            await found.secure("kube-apiserver", head)
            await found.secure("some-web-shop", head)
        assert [await post(receiver, number, name="other") for number in range(5)] == [200] * 5
        assert resident(receiver) - before < 100 * CONNECTION + SLACK

    run(receiver, test)


def test_a_client_that_sends_all_but_the_last_byte_starves_no_other(receiver: Process) -> None:
    async def test(found: Strangers) -> None:
        before = resident(receiver)
        head = POST + b"Content-Length: %d\r\n\r\n" % BODY_LIMIT
        piece = b" " * MIB
        # Eight times 39 MiB, in turns; whom the receiver does not read any more is left alone.
        slow = [await found.secure("kube-apiserver", head, at="127.0.0.2") for _ in range(8)]
        sent = 0
        for _ in range(39):
            for _, writer in slow:
                if writer.transport.get_write_buffer_size() == 0 and not writer.transport.is_closing():
                    writer.write(piece)
                    sent += MIB
            await asyncio.sleep(0.01)
        assert sent > BODY_LIMIT
        assert [await post(receiver, number, name="other") for number in range(5)] == [200] * 5
        # A body of many megabytes, too.
        many = event_list(*(event(number, requestURI="/" + "x" * 10_000) for number in range(100, 2100)))
        async with client("other") as session:
            assert await receiver.send(session, many) == 200
        # Of bodies, half is one client's, the other is that of whoever comes; what is taken apart is there twice.
        assert receiver.peak_memory() - before < 2 * BODY_LIMIT + 3 * len(many) + 10 * CONNECTION + SLACK

    run(receiver, test)


@pytest.mark.parametrize("name", ["kube-apiserver", "some-web-shop", ""])
def test_many_connections_keep_no_api_server_out(receiver: Process, name: str) -> None:
    """With an API server's certificate, with another one of the same CA, and without any."""

    async def test(found: Strangers) -> None:
        before = resident(receiver)
        for number in range(10):
            for _ in range(10):
                opening = (found.secure(name, HEAD + HEADERS if name else b"", at="127.0.0.2") for _ in range(12))
                await asyncio.gather(*opening, return_exceptions=True)
            assert await post(receiver, number) == 200
        # 1,200 connections, each with a megabyte of headers.
        most = {"kube-apiserver": 736, "some-web-shop": STRANGERS, "": 0}[name] + HANDSHAKES
        assert resident(receiver) - before < most * CONNECTION + SLACK
        warned = warnings(receiver)
        assert len(warned) == len({each.partition(":")[0] for each in warned})

    run(receiver, test)


def test_a_certificate_of_our_ca_with_another_name_is_refused_counted_and_logged_once(receiver: Process) -> None:
    async def test(found: Strangers) -> None:
        statuses = [await post(receiver, number, name="some-web-shop") for number in range(20)]
        assert statuses == [403] * 20
        assert (await refused_async(receiver))["ClientName"] == 20
        (line,) = warnings(receiver)
        assert "some-web-shop" in line
        assert found.opened == []
        assert await post(receiver, 1) == 200

    run(receiver, test)
    assert receiver.end(signal.SIGTERM) == 0
    assert receiver.delivered() == [1]
    receiver.start()


def test_whoever_only_reads_slowly_is_let_go_with_what_it_would_have_got(receiver: Process) -> None:
    async def test(found: Strangers) -> None:
        before = resident(receiver)
        for _ in range(100):
            _, writer = await found.secure("kube-apiserver")
            for _ in range(20):
                writer.write(b"GET /audit HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        assert await post(receiver, 1) == 200
        assert resident(receiver) - before < 100 * CONNECTION + SLACK

    run(receiver, test)


# --- bodies that take long --------------------------------------------------------------------------------------------


def patches(first: int, number: int, body: bytes) -> bytes:
    """As API servers record what a client may PATCH."""
    about = {
        "verb": "patch",
        "requestURI": "/apis/apps/v1/namespaces/default/deployments/d",
        "objectRef": {
            "resource": "deployments",
            "namespace": "default",
            "name": "d",
            "apiGroup": "apps",
            "apiVersion": "v1",
        },
        "requestObject": "BODY",
    }
    items = [json.dumps(event(first + index, **about)).encode().replace(b'"BODY"', body) for index in range(number)]
    return event_list(*items)


TANGLED = {
    "surrogates": b'{"a":"' + b"\\ud800" * 15_800 + b'"}',
    "tokens": b'{"s":"\\ud800","a":[' + b"1," * 47_500 + b"1]}",
    "brackets": b'{"s":"\\ud800","a":[' + b"{}," * 31_600 + b"1]}",
    "deep": b'{"a":' + b"[" * 9_900 + b'"\\ud800"' + b"]" * 9_900 + b"}",
}


@pytest.mark.parametrize("kind", TANGLED)
def test_who_may_patch_an_object_holds_up_no_other_api_server(receiver: Process, kind: str) -> None:
    body = TANGLED[kind]

    async def test(_: Strangers) -> None:
        order = []

        async def send(name: str, what: bytes) -> int:
            async with client(name) as session:
                status = await receiver.send(session, what)
            order.append(name)
            return status

        evil = asyncio.create_task(send("kube-apiserver", patches(0, 400, body)))
        await asyncio.sleep(0.1)
        honest = event_list(*(event(10_000 + number, requestObject={"spec": "x" * 2600}) for number in range(500)))
        assert len(honest) > MIB
        assert await send("other", honest) == 200
        assert await evil == 200
        if len(body) > 50_000:
            assert order == ["other", "kube-apiserver"]
        files = receiver.folder / "state/files/audit-system/siem.log"
        await eventually(lambda: len(files.read_bytes().splitlines()) == 900, seconds=60)
        # As it was sent, byte for byte.
        assert sum(body in line for line in files.read_bytes().splitlines()) == 400

    run(receiver, test)
