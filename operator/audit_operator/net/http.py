"""A small HTTP/1.1 server whose memory and time are bounded by what it has received.

It serves few paths to few clients, and anybody may connect. So it takes less than HTTP has: one request at a time and
connection, bodies with a Content-Length, heads of a few kB. Everything a client can be slow at has a deadline; what it
announces costs nothing until it comes; and when there are too many connections, whoever holds most of them gives way.
"""

import asyncio
import contextlib
import ipaddress
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple, Protocol, cast

logger = logging.getLogger(__name__)

_HEAD_BYTES: Final = 8192
_HEAD_FIELDS: Final = 64
_HEAD_SECONDS: Final = 10.0
"""From the first byte of a head, or from the connection for the first one, to its last."""

_IDLE_SECONDS: Final = 120.0
"""Longer than the 90 s after which Go's client closes an idle connection: so it is never us, just when it sends."""

_WRITE_SECONDS: Final = 30.0
"""For an answer to be taken by whoever asked for it."""

_WRITE_BYTES: Final = 1 << 16
"""Of an answer handed to the connection at a time: what a client does not read is not copied for it."""

_LINGER_SECONDS: Final = 2.0
"""For which what still comes of a refused body is thrown away: a connection that is closed at once may take the answer
with it.
"""

_ABORT_SECONDS: Final = 5.0
"""For a connection to end after it was closed."""


class Limits(NamedTuple):
    """Connections at the same time: of those whom the application trusts, and of all others. ``keep_alive``: whether a
    connection serves more than one request.
    """

    trusted: int
    strangers: int
    keep_alive: bool = True


class Response(NamedTuple):
    """An answer. ``close``: the connection ends with it."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    close: bool = False


def text(status: int, message: str, *headers: tuple[str, str]) -> Response:
    """An answer for a person to read."""
    return Response(status, f"{message}\n".encode(), headers=headers)


class BadRequestError(Exception):
    """What came is no request that can be answered otherwise. ``reason``: one word, for counting."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class BodyCutOffError(Exception):
    """The connection ended before the body did."""


class Claim(Protocol):
    """What a body that comes is charged to."""

    def add(self, size: int, *, last: bool) -> bool:
        """So many bytes have come; whether more may come now. If not, `Request.more` is called when they may."""


class Head(NamedTuple):
    """Of a request. Names of headers are in lower case; ``length`` is None where none was given."""

    method: str
    path: str
    headers: Mapping[str, str]
    length: int | None
    keep_alive: bool


_REQUEST_LINE = re.compile(r"([A-Z]{1,16}) ([!-~]{1,4096}) HTTP/1\.([01])")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_LENGTH = re.compile(r"[0-9]{1,15}")
_ONCE = frozenset({"content-length", "content-type", "content-encoding", "transfer-encoding", "host"})


def parse_head(data: bytes) -> Head:
    """The head without the empty line at its end. Raises BadRequestError; what two programs might read in two ways is
    none.
    """
    line, *fields = data.decode("latin-1").split("\r\n")
    request = _REQUEST_LINE.fullmatch(line)
    if request is None:
        raise BadRequestError(400, "BadRequest", "this is no request of HTTP/1.1")
    if len(fields) > _HEAD_FIELDS:
        raise BadRequestError(431, "HeadTooLarge", f"a request may have {_HEAD_FIELDS} headers")
    headers: dict[str, str] = {}
    for each in fields:
        field = _FIELD.fullmatch(each)
        if field is None:
            raise BadRequestError(400, "BadRequest", "a header is malformed")
        name, value = field[1].lower(), field[2].rstrip(" \t")
        if name in headers:
            if name in _ONCE:
                raise BadRequestError(400, "BadRequest", f"there are two headers {name}")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    if "transfer-encoding" in headers:
        raise BadRequestError(411, "NoLength", "send a Content-Length; Transfer-Encoding is not taken")
    length = headers.get("content-length")
    if length is not None and not _LENGTH.fullmatch(length):
        raise BadRequestError(400, "BadRequest", "Content-Length is no number")
    wishes = headers.get("connection", "").lower()
    keep_alive = "keep-alive" in wishes if request[3] == "0" else "close" not in wishes
    path = request[2].partition("?")[0]
    return Head(request[1], path, headers, None if length is None else int(length), keep_alive)


class Request:
    """One request, and the way to its body."""

    __slots__ = ("_connection", "head")

    def __init__(self, head: Head, connection: "Connection") -> None:
        self.head = head
        self._connection = connection

    @property
    def client(self) -> Any:
        """What `Application.opened` made of the connection."""
        return self._connection.client

    async def body(self, claim: "Claim | None" = None) -> bytes:
        """All of it, as long as the head says; it is the caller who knows how much that may be, and how long it may
        take. Raises BodyCutOffError, and what `fail` was given.
        """
        return await self._connection.receive(claim)

    def more(self) -> None:
        """More may come, after `Claim.add` said no."""
        self._connection.resume()

    def fail(self, error: Exception) -> None:
        """The body is not wanted any more."""
        self._connection.fail_body(error)


class Application(Protocol):
    """What is served."""

    def opened(self, transport: asyncio.BaseTransport) -> Any:
        """Whoever has connected, for `Request.client`."""

    def trusts(self, client: Any) -> bool:
        """Whether strangers, however many there are, take no connection from this client."""

    async def answer(self, request: Request) -> Response:
        """Raises nothing but what `Request.body` does."""

    def refused(self, reason: str, message: str, client: Any) -> None:
        """Something came that is no request, or there was no place for it."""


class HttpServer:
    """Makes the connections of one port; as a factory of protocols."""

    def __init__(self, application: Application, limits: Limits) -> None:
        self.application = application
        self.limits = limits
        self.stopping = False
        self._trusted: dict[Connection, None] = {}
        self._strangers: dict[Connection, None] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __call__(self, on_end: Callable[[], None] | None = None) -> "Connection":
        return Connection(self, on_end)

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._trusted) + len(self._strangers)

    def add(self, connection: "Connection") -> None:
        """It is open from now on; another one may have to go for it."""
        if self.application.trusts(connection.client):
            pool, most = self._trusted, self.limits.trusted
        else:
            pool, most = self._strangers, self.limits.strangers
        if len(pool) >= most:
            self._evict(pool)
        pool[connection] = None
        self._empty.clear()

    def remove(self, connection: "Connection") -> None:
        """It has ended."""
        self._trusted.pop(connection, None)
        self._strangers.pop(connection, None)
        if not self.connections:
            self._empty.set()

    def _evict(self, pool: "dict[Connection, None]") -> None:
        """Whoever has most connections loses the oldest that waits for a request; if all are busy, the oldest."""
        ((heaviest, _),) = Counter(each.address for each in pool).most_common(1)
        of_address = [each for each in pool if each.address == heaviest]
        victim = next((each for each in of_address if each.waiting), of_address[0])
        self.application.refused("TooManyConnections", "there are too many connections", victim.client)
        self.remove(victim)
        victim.abort()

    async def shutdown(self, grace: float) -> None:
        """Answer what is being answered, for at most so many seconds; then all connections end."""
        self.stopping = True
        for each in [*self._trusted, *self._strangers]:
            if each.waiting:
                each.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._empty.wait()
        ending = [each.kill() for each in [*self._trusted, *self._strangers]]
        await asyncio.gather(*(each for each in ending if each is not None), return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._empty.wait()


class Connection(asyncio.Protocol):
    """One connection: a head, its body, the answer, and so on. ``waiting``: for a request; nothing of it came yet."""

    def __init__(self, server: HttpServer, on_end: Callable[[], None] | None) -> None:
        self.client: Any = None
        self.address = ""
        self.waiting = True
        self._on_end = on_end
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        # The body that comes: of ``_missing`` bytes more, once somebody wants it; ``_failure``: why nobody does.
        self._pieces: list[bytes] = []
        self._missing = 0
        self._wanted = False
        self._claim: Claim | None = None
        self._complete: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._must_continue = False
        self._writable: asyncio.Future[None] | None = None
        self._deaf = False
        self._half_closed = False

    # --- what the transport says ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by type
        peer = transport.get_extra_info("peername")
        self.address = network_of(str(peer[0])) if isinstance(peer, tuple) and peer else ""
        self.client = self._server.application.opened(transport)
        self._server.add(self)
        self._deadline(_HEAD_SECONDS, self._slow_head)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._cancel_deadline()
        self._transport = None
        self._server.remove(self)
        self.fail_body(BodyCutOffError())
        self.resume_writing()
        self._buffer = bytearray()
        if self._on_end is not None:
            self._on_end()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._missing:
            self._take(data)
        elif self._task is not None:
            # A second request before the first is answered: nobody needs that, and it could be a thousand.
            self._deaf = True
            self._pause()
        else:
            self._take_head(data)

    def eof_received(self) -> bool | None:
        self._half_closed = True
        self.fail_body(BodyCutOffError())
        tls = self._transport is not None and self._transport.get_extra_info("ssl_object") is not None
        # It may say nothing more and still wait for its answer.
        return self._task is not None and not tls

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    # --- a head ---

    def _take_head(self, data: bytes) -> None:
        buffer = self._buffer
        seen = len(buffer)
        buffer += data
        end = buffer.find(b"\r\n\r\n", max(0, seen - 3))
        if end < 0 and len(buffer) <= _HEAD_BYTES:
            if self.waiting:
                self.waiting = False
                self._deadline(_HEAD_SECONDS, self._slow_head)
            return
        self.waiting = False
        self._cancel_deadline()
        try:
            if end < 0 or end > _HEAD_BYTES:
                raise BadRequestError(431, "HeadTooLarge", f"a request's head may have {_HEAD_BYTES} bytes")
            head = parse_head(bytes(buffer[:end]))
        except BadRequestError as error:
            self._refuse(error)
            return
        rest = bytes(buffer[end + 4 :])
        self._buffer = bytearray()  # an idle connection holds nothing
        self._missing = head.length or 0
        self._pieces, self._wanted, self._claim, self._complete, self._failure = [], False, None, None, None
        self._must_continue = head.headers.get("expect", "").lower() == "100-continue"
        self._task = self._loop.create_task(self._respond(Request(head, self)))
        if rest:
            self.data_received(rest)

    def _slow_head(self) -> None:
        if self.waiting:
            self.abort()
        else:
            self._refuse(BadRequestError(408, "SlowHead", "the request's head did not come in time"))

    def _refuse(self, error: BadRequestError) -> None:
        self._server.application.refused(error.reason, str(error), self.client)
        self._buffer = bytearray()
        self._deaf = True
        answer = text(error.status, str(error))._replace(close=True)
        self._task = self._loop.create_task(self._write(answer, with_body=True))

    # --- a body ---

    def _take(self, data: bytes) -> None:
        if len(data) > self._missing:
            self._deaf = True  # see `data_received`
            data = data[: self._missing]
        self._missing -= len(data)
        if self._failure is not None:
            return
        self._pieces.append(data)
        more = self._wanted and (self._claim is None or self._claim.add(len(data), last=not self._missing))
        if not self._missing:
            self._completed()
        elif not more and self._failure is None:
            self._pause()

    def _completed(self) -> None:
        if self._complete is not None and not self._complete.done():
            self._complete.set_result(None)

    async def receive(self, claim: "Claim | None") -> bytes:
        """See `Request.body`."""
        self._wanted, self._claim = True, claim
        there = sum(map(len, self._pieces))
        more = claim is None or not there or claim.add(there, last=not self._missing)
        if self._missing and self._failure is None:
            if self._transport is None or self._half_closed:
                raise BodyCutOffError
            if self._must_continue and not there:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._complete = self._loop.create_future()
            if more:
                self.resume()
            await self._complete
        if self._failure is not None:
            raise self._failure
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def fail_body(self, error: Exception) -> None:
        """See `Request.fail`. What has come of it is let go of at once."""
        if self._missing and self._failure is None:
            self._failure = error
            self._pieces = []
            self._completed()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    # --- an answer ---

    async def _respond(self, request: Request) -> None:
        server = self._server
        try:
            response = await server.application.answer(request)
        except BodyCutOffError:
            response = text(400, "the body was cut off")
        except Exception:
            logger.exception("a bug: a request is answered 500")
            response = text(500, "this is a bug; the log has more")
        self._pieces = []
        close = (
            response.close
            or self._missing > 0
            or self._deaf
            or self._half_closed
            or server.stopping
            or not (server.limits.keep_alive and request.head.keep_alive)
        )
        await self._write(response._replace(close=close), with_body=request.head.method != "HEAD")

    async def _write(self, response: Response, *, with_body: bool) -> None:
        status, body = response.status, response.body
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Length: {len(body)}\r\n"
        if body:
            head += f"Content-Type: {response.content_type}\r\n"
        for name, value in response.headers:
            head += f"{name}: {value}\r\n"
        head += "Connection: close\r\n\r\n" if response.close else "\r\n"
        data = head.encode("latin-1", "replace") + (body if with_body else b"")
        if len(data) <= _WRITE_BYTES and self._transport is not None:
            self._transport.write(data)
        elif self._transport is not None:
            self._deadline(_WRITE_SECONDS, self.abort)
            for start in range(0, len(data), _WRITE_BYTES):
                if self._writable is not None:
                    await self._writable
                if self._transport is None:
                    return
                self._transport.write(data[start : start + _WRITE_BYTES])
        self._task = None
        if self._transport is None:
            return
        if response.close:
            self._end()
            return
        self.waiting = True
        self._deadline(_IDLE_SECONDS, self.abort)

    def _end(self) -> None:
        """What still comes is read for a moment and thrown away, then the connection is closed."""
        if not (self._missing or self._deaf):
            self.close()
            return
        self._deaf = True
        self.resume()
        self._deadline(_LINGER_SECONDS, self.close)

    def close(self) -> None:
        """After what has been written."""
        if self._transport is not None:
            self._transport.close()
            self._deadline(_ABORT_SECONDS, self.abort)

    def abort(self) -> None:
        """Now."""
        if self._transport is not None:
            self._transport.abort()

    def kill(self) -> "asyncio.Task[None] | None":
        """Now, and what was to be answered is not. The task that ends."""
        self.abort()
        if self._task is not None:
            self._task.cancel()
        return self._task

    def _deadline(self, seconds: float, miss: Callable[[], None]) -> None:
        self._cancel_deadline()
        self._timer = self._loop.call_later(seconds, miss)

    def _cancel_deadline(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


def network_of(address: str) -> str:
    """Whose an address is: of an IPv6 address its /64, which one machine may have all of."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.IPv6Network((found, 64), strict=False))
    return str(found)
