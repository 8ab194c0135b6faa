"""What answers: API servers' POSTs over mTLS, the operator's PUT /program and GET /status; health and metrics in plain.

Whoever connects can cost us little: connections, handshakes, headers, bodies and time are bounded before anything is
decoded, and only a certificate of our CA gets as far as a request.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, Final, NamedTuple

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from audit_operator.receiver.certificates import Certificates
from audit_operator.receiver.deciding import Deciding
from audit_operator.receiver.intake import BodyError, BusyError, Intake
from audit_operator.receiver.metrics import Metrics
from audit_operator.receiver.programs import LARGEST, ProgramError, Programs
from audit_operator.receiver.running import Running
from audit_operator.render.report import OPERATOR_NAME, PROGRAM_PATH, STATUS_PATH

logger = logging.getLogger(__name__)

AUDIT: Final = "/audit"

_CONNECTIONS: Final = 1000
"""Together; an API server holds some tens. Each costs about 50 kB. More wait in the kernel's queue."""

_HANDSHAKES: Final = 200
"""At the same time, before anybody has shown a certificate; the one that has taken longest gives way."""

_HANDSHAKE_SECONDS: Final = 10.0
_HEADER_SECONDS: Final = 10.0
"""Until the first request's headers are there. Without it an open connection would be free."""

_BODY_SECONDS: Final = 30.0
"""An API server gives up on a request after 30 s itself."""

_IDLE_SECONDS: Final = 120.0
"""Longer than the 90 s after which Go's client closes an idle connection: so it is never us, just when it sends."""

_SMALLEST_ROOM: Final = 64 << 20
"""Bytes of bodies at the same time, or twice the body limit if that is more: what waits for the disk is here, too."""

_ROOM_SECONDS: Final = 10.0
_RETRY_AFTER: Final = "5"
"""Seconds. 3 to 10 make API servers wait longest, about 230 s in all, before they drop a batch."""


class Room:
    """Bytes that may be in the memory; whoever comes first gets them first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._taken = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def enter(self, size: int) -> None:
        """Wait for that much room; what is larger than all of it waits until it is alone. Raises TimeoutError."""
        if self._waiting or not self._fits(size):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((size, future))
            try:
                async with asyncio.timeout(_ROOM_SECONDS):
                    await future
            except BaseException:
                if future.done() and not future.cancelled():
                    self.leave(size)
                else:
                    self._waiting = deque(each for each in self._waiting if each[1] is not future)
                    self._admit()
                raise
        else:
            self._taken += size

    def leave(self, size: int) -> None:
        """Give it back."""
        self._taken -= size
        self._admit()

    def _fits(self, size: int) -> bool:
        return self._taken == 0 or self._taken + size <= self.size

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, future = self._waiting.popleft()
            if not future.done():
                self._taken += size
                future.set_result(None)


class _Handler(web.RequestHandler):
    """aiohttp's, with a deadline for the first request's headers, and somebody to tell when the connection ends."""

    __slots__ = ("_deadline", "on_end")

    def __init__(self, manager: web.Server, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self.on_end: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._deadline = asyncio.get_running_loop().call_later(_HEADER_SECONDS, self.force_close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._deadline is not None and self._messages:
            self._deadline.cancel()
            self._deadline = None

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self.on_end is not None:
            self.on_end()
        super().connection_lost(exc)


_Answering = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _Protocols(web.Server):
    """Makes one protocol per connection."""

    def __init__(self, handle: _Answering) -> None:
        # Content-Encoding is refused, not undone: API servers do not compress, and small bodies could become huge.
        super().__init__(
            handle, access_log=None, auto_decompress=False, keepalive_timeout=_IDLE_SECONDS, lingering_time=2.0
        )
        self._loop = asyncio.get_running_loop()

    def __call__(self) -> _Handler:
        return _Handler(self, loop=self._loop, **self._kwargs)


class _Caller:
    """A connection until it ends. ``owned``: by the loop, which closes it. ``served``: hands are shaken."""

    __slots__ = ("_slots", "owned", "served", "socket")

    def __init__(self, connection: socket.socket, slots: asyncio.Semaphore) -> None:
        self.socket = connection
        self.owned = False
        self.served = False
        self._slots: asyncio.Semaphore | None = slots

    def release(self) -> None:
        """Give its slot back, once."""
        if self._slots is not None:
            slots, self._slots = self._slots, None
            slots.release()

    def abandon(self) -> None:
        """Unless it is served by now, it never will be."""
        if not self.owned:
            self.socket.close()
        if not self.served:
            self.release()


class Parts(NamedTuple):
    """What answers are made by."""

    intake: Intake
    running: Running
    programs: Programs
    certificates: Certificates
    metrics: Metrics


class Server:
    """Listens. ``status``: makes the status, as JSON."""

    def __init__(self, parts: Parts, status: Callable[[], bytes]) -> None:
        self._intake, self._running, self._programs, self._certificates, self._metrics = parts
        self._status = status
        self._room = Room(_SMALLEST_ROOM)
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._handshakes: dict[_Caller, asyncio.Task[None]] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self._protocols: list[_Protocols] = []
        self._listening: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._plain: asyncio.Server | None = None
        self.stopping = False

    async def start(self, listen: tuple[str, int], metrics: tuple[str, int]) -> tuple[int, int]:
        """The ports, which may be asked for as 0. Raises OSError."""
        loop = asyncio.get_running_loop()
        plain = _Protocols(self._answer_plain)
        self._plain = await loop.create_server(plain, *metrics)
        secure = _Protocols(self._answer)
        self._protocols = [plain, secure]
        family = socket.AF_INET6 if ":" in listen[0] else socket.AF_INET
        listening = socket.create_server(listen, family=family, backlog=1024)
        listening.setblocking(False)
        self._listening.append(listening)
        self._accepting.append(asyncio.create_task(self._accept(listening, secure), name="accept"))
        return listening.getsockname()[1], self._plain.sockets[0].getsockname()[1]

    async def stop(self, grace: float) -> None:
        """Take no more, and answer what is there for at most so many seconds. Health and metrics go on."""
        self.stopping = True
        ending = (*self._accepting, *self._connecting)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        for listening in self._listening:
            listening.close()
        if self._protocols:
            await self._protocols[1].shutdown(grace)

    async def close(self) -> None:
        """Health and metrics end, too."""
        if self._plain is not None:
            self._plain.close()
            await self._protocols[0].shutdown(1.0)

    # --- connections ---

    async def _accept(self, listening: socket.socket, protocols: _Protocols) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:
                # Out of file descriptors, or the client is gone already: both pass.
                self._slots.release()
                logger.warning("a connection could not be accepted: %s", error.strerror)
                await asyncio.sleep(0.1)
                continue
            except asyncio.CancelledError:
                self._slots.release()
                raise
            if len(self._handshakes) >= _HANDSHAKES:
                self._handshakes.pop(next(iter(self._handshakes))).cancel()
            caller = _Caller(connection, self._slots)
            task = asyncio.create_task(self._connect(caller, protocols))
            self._handshakes[caller] = task
            self._connecting.add(task)
            task.add_done_callback(partial(self._connected, caller))

    def _connected(self, caller: "_Caller", task: "asyncio.Task[None]") -> None:
        self._connecting.discard(task)
        self._handshakes.pop(caller, None)
        caller.abandon()

    async def _connect(self, caller: "_Caller", protocols: _Protocols) -> None:
        """Shake hands. A wrong certificate, none at all, no TLS, or too slow: nobody we owe an answer."""
        context = self._certificates.context
        if context is None:
            return

        def protocol() -> _Handler:
            handler = protocols()
            handler.on_end = caller.release
            return handler

        with contextlib.suppress(OSError):
            caller.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            caller.owned = True
            await asyncio.get_running_loop().connect_accepted_socket(
                protocol, caller.socket, ssl=context, ssl_handshake_timeout=_HANDSHAKE_SECONDS, ssl_shutdown_timeout=2.0
            )
            caller.served = True

    # --- answers ---

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        started = time.perf_counter()
        name = _common_name(request)
        try:
            response = await self._routed(request, name)
        except (ConnectionError, BadHttpMessage, web.PayloadAccessError):
            response = _text(400, "the body was cut off")
        if request.path == AUDIT:
            self._metrics.posts.labels(self._metrics.server(name), str(response.status)).inc()
            self._metrics.post_seconds.observe(time.perf_counter() - started)
        if response.status != 200 or self.stopping:
            # Much of the body may be unread.
            response.force_close()
        return response

    async def _routed(self, request: web.BaseRequest, name: str) -> web.Response:
        if not name:
            return _text(403, "the certificate has no common name, by which API servers are told apart")
        wanted = {AUDIT: "POST", PROGRAM_PATH: "PUT", STATUS_PATH: "GET"}.get(request.path)
        if wanted is None:
            return _text(404, f"there are {AUDIT}, {PROGRAM_PATH} and {STATUS_PATH}")
        if request.method != wanted:
            return _text(405, f"{request.path} takes {wanted}", Allow=wanted)
        if (request.path == AUDIT) == (name == OPERATOR_NAME):
            return _text(403, f"{request.path} is not for a certificate of {name}")
        if request.path == STATUS_PATH:
            return web.Response(body=self._status(), content_type="application/json")
        if request.content_type != "application/json":
            return _text(415, "send application/json")
        if request.headers.get("Content-Encoding", "identity") != "identity":
            return _text(415, "send it uncompressed")
        return await (self._program(request) if request.path == PROGRAM_PATH else self._events(request, name))

    async def _events(self, request: web.BaseRequest, server: str) -> web.Response:
        running = self._running
        program, deciding = running.program, running.deciding
        if self.stopping or running.refusal or program is None or deciding is None:
            return _busy(running.refusal or "the receiver is stopping")
        limit = program.body_limit
        self._room.size = max(2 * limit, _SMALLEST_ROOM)
        length = limit if request.content_length is None else request.content_length
        if length > limit:
            return _text(413, f"a body may have {limit} bytes")
        try:
            await self._room.enter(length)
        except TimeoutError:
            return _busy("too many requests at the same time")
        try:
            begun = time.perf_counter()
            body = await _body(request, limit)
            if body is None:
                return _text(413, f"a body may have {limit} bytes")
            self._metrics.spent("receive", time.perf_counter() - begun)
            target = _Target(deciding, running.full, running.crowded, running.admits, running.spend)
            events = await self._intake.take(server, body, target)
        except TimeoutError:
            return _text(408, f"the body did not come within {_BODY_SECONDS:g} s")
        except BodyError as error:
            logger.warning("a POST of %s is refused: %s", server, error)
            return _text(400, str(error))
        except BusyError as error:
            return _busy(str(error))
        finally:
            self._room.leave(length)
        label = self._metrics.server(server)
        self._metrics.received.labels(label).inc(events)
        self._metrics.received_bytes.labels(label).inc(len(body))
        return web.Response()

    async def _program(self, request: web.BaseRequest) -> web.Response:
        length = LARGEST if request.content_length is None else request.content_length
        if length > LARGEST:
            return _text(413, f"a program may have {LARGEST} bytes")
        try:
            body = await _body(request, LARGEST)
            if body is None:
                return _text(413, f"a program may have {LARGEST} bytes")
            await self._programs.push(body)
        except TimeoutError:
            return _text(408, f"the body did not come within {_BODY_SECONDS:g} s")
        except ProgramError as error:
            return _text(422, str(error))
        except OSError as error:
            return _busy(f"the program is in force, but could not be written down: {error.strerror}")
        return web.Response(body=self._status(), content_type="application/json")

    async def _answer_plain(self, request: web.BaseRequest) -> web.StreamResponse:
        match request.path:
            case "/livez":
                return _text(200, "ok")
            case "/readyz":
                why = "the receiver is stopping" if self.stopping else self._running.failure or self._no_certificates()
                return _text(503, why) if why else _text(200, "ok")
            case "/metrics":
                return web.Response(
                    body=await self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"}
                )
            case _:
                return _text(404, "there are /livez, /readyz and /metrics")

    def _no_certificates(self) -> str:
        return "" if self._certificates.context else f"there are no certificates: {self._certificates.error}"


class _Target(NamedTuple):
    """The program in force when the POST came: one POST is decided by one program."""

    deciding: Deciding
    full: Callable[[], Collection[str]]
    crowded: Callable[[], Collection[str]]
    admits: Callable[[str], bool]
    spend: Callable[[str, float], None]


async def _body(request: web.BaseRequest, limit: int) -> bytes | None:
    """The body; None if it is longer than ``limit``. Raises TimeoutError."""
    pieces, size = [], 0
    async with asyncio.timeout(_BODY_SECONDS):
        async for piece in request.content.iter_any():
            size += len(piece)
            if size > limit:
                return None
            pieces.append(piece)
    return b"".join(pieces)


def _common_name(request: web.BaseRequest) -> str:
    """Of the certificate that the client has shown; the TLS library has checked it."""
    certificate = request.get_extra_info("peercert") or {}
    for relative in certificate.get("subject", ()):
        for name, value in relative:
            if name == "commonName":
                return str(value)
    return ""


def _text(status: int, text: str, **headers: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n", headers=headers)


def _busy(text: str) -> web.Response:
    return web.Response(status=503, text=f"{text}\n", headers={"Retry-After": _RETRY_AFTER})
