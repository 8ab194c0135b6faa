"""The HTTP server: what is no plain request is refused, and nobody gets it to hold more than they have sent."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit_operator.net import http
from audit_operator.net.http import BadRequestError, HttpServer, Limits, Request, Response, network_of, parse_head, text

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"


LIMITS = Limits(trusted=8, strangers=8)


class Echo:
    """Answers with what was sent; strangers are all, unless ``trusted``."""

    def __init__(self, *, trusted: Callable[[str], bool] = lambda _: False) -> None:
        self.reasons: list[str] = []
        self.answered = 0
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()
        self._trusted = trusted

    def opened(self, transport: asyncio.BaseTransport) -> str:
        return str(transport.get_extra_info("peername")[0])

    def trusts(self, client: str) -> bool:
        return self._trusted(client)

    def refused(self, reason: str, message: str, client: str) -> None:
        assert message
        assert client
        self.reasons.append(reason)

    async def answer(self, request: Request) -> Response:
        if request.head.path == "/large":
            return Response(200, b"x" * (32 << 20))
        if request.head.path == "/bug":
            raise RuntimeError("a bug")
        if request.head.path == "/unread":
            return text(413, "too large")
        self.begun.set()
        await self.go.wait()
        body = await request.body()
        self.answered += 1
        return Response(200, body or b"empty")


@contextlib.asynccontextmanager
async def serving(application: Echo, limits: Limits = LIMITS) -> AsyncIterator[int]:
    """The port."""
    server = HttpServer(application, limits)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await server.shutdown(0.1)
        assert server.connections == 0


def run(test: Callable[[Echo, int], Awaitable[None]], limits: Limits = LIMITS) -> None:
    async def whole() -> None:
        application = Echo()
        async with serving(application, limits) as port:
            await test(application, port)

    asyncio.run(whole())


async def said(port: int, *pieces: bytes, half_close: bool = False) -> bytes:
    """All that is answered until the other side ends the connection, or has nothing more to say for a moment."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        if half_close:
            writer.write_eof()
        found = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while piece := await asyncio.wait_for(reader.read(1 << 16), 0.5):
                found += piece
        return found
    finally:
        writer.transport.abort()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (GET, 200),
        (GET + b"Content-Length: 0\r\n", 200),
        (b"GET / HTTP/1.0\r\n", 200),
        (b"get / HTTP/1.1\r\n", 400),
        (b"GET /\r\n", 400),
        (b"GET  / HTTP/1.1\r\n", 400),
        (b"GET / HTTP/2.0\r\n", 400),
        (b"PRI * HTTP/2.0\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400),
        (GET + b" folded: x\r\n", 400),
        (GET + b"A : x\r\n", 400),
        (GET + b"A\r\n", 400),
        (GET + b"A: \x00\r\n", 400),
        (GET + b"A: x\nB: y\r\n", 400),
        (GET + b"Content-Length: 1\r\nContent-Length: 1\r\n", 400),
        (GET + b"Content-Length: 1, 1\r\n", 400),
        (GET + b"Content-Length: -1\r\n", 400),
        (GET + b"Content-Length: +1\r\n", 400),
        (GET + b"Content-Length: 0x1\r\n", 400),
        (GET + b"Content-Length: 1_0\r\n", 400),
        (GET + b"Content-Length: " + "１".encode() + b"\r\n", 400),
        (GET + b"Content-Length: 99999999999999999999\r\n", 400),
        (GET + b"Transfer-Encoding: chunked\r\n", 411),
        (GET + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", 411),
        (GET + b"Transfer-Encoding: identity\r\n", 411),
        (GET + b"X: " + b"x" * 9000 + b"\r\n", 431),
        (GET + b"X: 1\r\n" * 100, 431),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n", 431),
    ],
)
def test_what_two_programs_might_read_in_two_ways_is_refused(head: bytes, expected: int) -> None:
    async def test(application: Echo, port: int) -> None:
        answer = await said(port, head + b"\r\n")
        assert status(answer) == expected
        assert bool(application.reasons) == (expected != 200)
        if expected != 200:
            assert b"Connection: close" in answer

    run(test)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_a_head_is_it_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(BadRequestError):
        assert parse_head(b"POST /x HTTP/1.1\r\n" + data).method == "POST"
    with contextlib.suppress(BadRequestError):
        parse_head(data)


def test_a_body_may_come_in_pieces_and_the_connection_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_WRITE_BYTES", 5)
    post = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n"

    async def test(_: Echo, port: int) -> None:
        answer = await said(port, post[:20], post[20:] + b"\r\nhel", b"lo wor", b"ld", post + b"\r\nhello again")
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert answer.index(b"hello world") < answer.index(b"hello again")
        assert b"Connection: close" not in answer

    run(test)


def test_a_client_that_wants_to_be_told_to_continue_is() -> None:
    async def test(_: Echo, port: int) -> None:
        head = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        answer = await said(port, head, b"ok")
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")
        assert b"100 Continue" not in await said(port, head.replace(b"/x", b"/unread"))

    run(test)


def test_a_second_request_before_the_first_is_answered_is_not_kept() -> None:
    async def test(application: Echo, port: int) -> None:
        application.go.clear()
        asyncio.get_running_loop().call_later(0.2, application.go.set)
        answer = await said(port, (GET + b"\r\n") * 1000)
        assert answer.count(b"HTTP/1.1 200") == 1
        assert b"Connection: close" in answer
        assert application.answered == 1

    run(test)


def test_whoever_has_closed_its_side_still_gets_the_answer() -> None:
    async def test(application: Echo, port: int) -> None:
        application.go.clear()
        asyncio.get_running_loop().call_later(0.1, application.go.set)
        assert status(await said(port, GET + b"\r\n", half_close=True)) == 200
        # A body that is not there any more does not come.
        head = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
        assert status(await said(port, head + b"123", half_close=True)) in {0, 400}
        assert await said(port, GET, half_close=True) == b""

    run(test)


def test_old_and_odd_clients_are_answered() -> None:
    async def test(_: Echo, port: int) -> None:
        assert b"Connection: close" in await said(port, b"GET / HTTP/1.0\r\n\r\n")
        assert b"Connection: close" not in await said(port, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert b"Connection: close" in await said(port, GET + b"Connection: close\r\n\r\n")
        answer = await said(port, GET.replace(b"GET", b"HEAD") + b"\r\n")
        assert b"Content-Length: 5" in answer
        assert answer.endswith(b"\r\n\r\n")

    run(test)


def test_a_bug_costs_one_answer() -> None:
    async def test(_: Echo, port: int) -> None:
        assert status(await said(port, GET.replace(b"/livez", b"/bug") + b"\r\n")) == 500
        assert status(await said(port, GET + b"\r\n")) == 200

    run(test)


def test_an_answer_reaches_a_client_that_is_still_sending_what_is_refused() -> None:
    async def test(_: Echo, port: int) -> None:
        head = b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError):
            for piece in (head, *[b"x" * 100_000] * 20):
                writer.write(piece)
                await writer.drain()
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        writer.transport.abort()

    run(test)


def test_an_answer_that_nobody_reads_is_not_copied_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_WRITE_SECONDS", 0.5)

    async def whole() -> None:
        application = Echo()
        server = HttpServer(application, Limits(trusted=0, strangers=8))
        listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        buffered = []
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, listening.sockets[0].getsockname())
            await asyncio.get_running_loop().sock_sendall(client, GET.replace(b"/livez", b"/large") + b"\r\n")
            while not buffered or server.connections:
                buffered += [each._transport.get_write_buffer_size() for each in server._strangers if each._transport]
                await asyncio.sleep(0.02)
        assert max(buffered) <= 3 * (1 << 16)
        listening.close()
        await server.shutdown(0.1)

    asyncio.run(whole())


async def _alive(writers: list[asyncio.StreamWriter], readers: list[asyncio.StreamReader]) -> list[bool]:
    async def one(reader: asyncio.StreamReader) -> bool:
        with contextlib.suppress(TimeoutError, ConnectionError):
            return await asyncio.wait_for(reader.read(1), 0.2) != b""
        return reader.exception() is None

    assert len(writers) == len(readers)
    return list(await asyncio.gather(*map(one, readers)))


def test_of_too_many_connections_the_oldest_of_whoever_has_most_give_way() -> None:
    async def test(application: Echo, port: int) -> None:
        pairs = [await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0)) for _ in range(2)]
        pairs += [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
        alive = await _alive([writer for _, writer in pairs], [reader for reader, _ in pairs])
        assert alive == [True, True, *[False] * 44, *[True] * 6]
        assert application.reasons == ["TooManyConnections"] * 44
        for _, writer in pairs:
            writer.transport.abort()

    run(test)


def test_strangers_take_no_connection_from_whom_is_trusted() -> None:
    async def whole() -> None:
        application = Echo(trusted=lambda client: client == "127.0.0.2")
        async with serving(application) as port:
            pairs = [await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0)) for _ in range(8)]
            pairs += [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
            alive = await _alive([writer for _, writer in pairs], [reader for reader, _ in pairs])
            assert alive == [*[True] * 8, *[False] * 42, *[True] * 8]
            for _, writer in pairs:
                writer.transport.abort()

    asyncio.run(whole())


def test_what_is_being_answered_when_it_stops_is_answered_and_whoever_waits_is_let_go() -> None:
    async def whole() -> None:
        application = Echo()
        server = HttpServer(application, LIMITS)
        listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        idle, asking = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        application.go.clear()
        asking[1].write(GET + b"\r\n")
        await asyncio.wait_for(application.begun.wait(), 10)
        stopping = asyncio.create_task(server.shutdown(30))
        assert await asyncio.wait_for(idle[0].read(), 10) == b""
        assert not stopping.done()
        application.go.set()
        answer = await asyncio.wait_for(asking[0].read(), 10)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Connection: close\r\n" in answer
        assert b"Content-Type: text/plain" in answer
        await asyncio.wait_for(stopping, 10)  # long before the 30 s are over
        listening.close()
        for _, writer in (idle, asking):
            writer.transport.abort()

    asyncio.run(whole())


def test_slow_heads_and_silence_have_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_HEAD_SECONDS", 0.3)
    monkeypatch.setattr(http, "_IDLE_SECONDS", 0.3)

    async def test(application: Echo, port: int) -> None:
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for (_, writer), first in zip(pairs, (b"", GET, GET + b"\r\n"), strict=True):
            writer.write(first)
        slow, writer = await asyncio.open_connection("127.0.0.1", port)
        for byte in GET:  # each byte in time, the head not
            with contextlib.suppress(ConnectionError):
                writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
        assert (await slow.read(20))[:12] in (b"", b"HTTP/1.1 408")
        answers = await asyncio.gather(*(reader.read() for reader, _ in pairs))
        assert [status(answer) for answer in answers] == [0, 408, 200]
        assert application.reasons == ["SlowHead", "SlowHead"]
        for _, each in (*pairs, (slow, writer)):
            each.transport.abort()

    run(test)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("what", "what"),
    ],
)
def test_one_machine_counts_once_however_many_addresses_it_has(address: str, expected: str) -> None:
    assert network_of(address) == expected
