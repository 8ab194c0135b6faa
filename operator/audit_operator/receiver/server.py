"""What answers: API servers' POSTs over mTLS, the operator's PUT /program and GET /status; health and metrics in plain.

Whoever connects can cost us little: connections, handshakes, headers, bodies and time are bounded before anything is
decoded, and only a certificate of our CA gets as far as a request.
"""

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from typing import Final, NamedTuple

from audit_operator.net.http import (
    BodyCutOffError,
    HttpServer,
    Limits,
    Request,
    Response,
    network_of,
    text,
)
from audit_operator.net.throttling import ThrottledLog
from audit_operator.receiver.budget import BodyBudget
from audit_operator.receiver.certificates import Certificates
from audit_operator.receiver.clients import Client, Clients, Role
from audit_operator.receiver.deciding import Deciding
from audit_operator.receiver.intake import BodyError, BusyError, Intake
from audit_operator.receiver.metrics import Metrics
from audit_operator.receiver.programs import LARGEST, ProgramError, Programs
from audit_operator.receiver.running import Running
from audit_operator.render.report import PROGRAM_PATH, STATUS_PATH

logger = logging.getLogger(__name__)

AUDIT: Final = "/audit"

_SECURE: Final = Limits(trusted=736, strangers=64)
"""An API server holds some tens. Each costs about 50 kB. Strangers are those whose certificate is of our CA and has no
name that may do anything: they get an answer.
"""

_HANDSHAKES: Final = 200
"""At the same time, before anybody has shown a certificate; of the address with most of them the oldest gives way."""

_CONNECTIONS: Final = _SECURE.trusted + _SECURE.strangers + _HANDSHAKES
"""Together; more wait in the kernel's queue."""

_PLAIN: Final = Limits(trusted=0, strangers=64, keep_alive=False)
"""Probes and Prometheus, which anybody may pretend to be."""

_HANDSHAKE_SECONDS: Final = 10.0

_BODY_SECONDS: Final = 30.0
"""An API server gives up on a request after 30 s itself."""

_SMALLEST_BUDGET: Final = 64 << 20
"""Bytes of bodies at the same time, or twice the body limit if that is more: what waits for the disk is here, too."""

_RETRY_AFTER: Final = "5"
"""Seconds. 3 to 10 make API servers wait longest, about 230 s in all, before they drop a batch."""

_JSON: Final = "application/json"


class _Accepted:
    """A connection until it ends. ``owned``: by the loop, which closes it. ``served``: hands are shaken."""

    __slots__ = ("_slots", "network", "owned", "served", "socket")

    def __init__(self, connection: socket.socket, network: str, slots: asyncio.Semaphore) -> None:
        self.socket = connection
        self.network = network
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
    clients: Clients
    metrics: Metrics


class Server:
    """Listens. ``status``: makes the status, as JSON."""

    def __init__(self, parts: Parts, status: Callable[[], bytes]) -> None:
        self._certificates, self._metrics = parts.certificates, parts.metrics
        self._refusals = _Refusals(parts.metrics)
        self._application = _Secure(parts, status, self._refusals)
        self._plain_application = _Plain(parts, self._refusals)
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._handshakes: dict[_Accepted, asyncio.Task[None]] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self._secure: HttpServer | None = None
        self._plain: HttpServer | None = None
        self._listening: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._plain_listening: asyncio.Server | None = None

    async def start(self, listen: tuple[str, int], metrics: tuple[str, int]) -> tuple[int, int]:
        """The ports, which may be asked for as 0. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._plain = HttpServer(self._plain_application, _PLAIN)
        self._plain_listening = await loop.create_server(self._plain, *metrics)
        self._secure = HttpServer(self._application, _SECURE)
        family = socket.AF_INET6 if ":" in listen[0] else socket.AF_INET
        listening = socket.create_server(listen, family=family, backlog=1024)
        listening.setblocking(False)
        self._listening.append(listening)
        self._accepting.append(asyncio.create_task(self._accept(listening, self._secure), name="accept"))
        return listening.getsockname()[1], self._plain_listening.sockets[0].getsockname()[1]

    async def stop(self, grace: float) -> None:
        """Take no more, and answer what is there for at most so many seconds. Health and metrics go on."""
        self._application.stopping = self._plain_application.stopping = True
        ending = (*self._accepting, *self._connecting)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        for listening in self._listening:
            listening.close()
        if self._secure is not None:
            await self._secure.shutdown(grace)

    async def close(self) -> None:
        """Health and metrics end, too."""
        if self._plain_listening is not None and self._plain is not None:
            self._plain_listening.close()
            await self._plain.shutdown(1.0)

    # --- connections ---

    async def _accept(self, listening: socket.socket, server: HttpServer) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                connection, peer = await loop.sock_accept(listening)
            except OSError as error:
                # Out of file descriptors, or the client is gone already: both pass.
                self._slots.release()
                self._refusals.add("Accept", str(error.strerror), "")
                await asyncio.sleep(0.1)
                continue
            except asyncio.CancelledError:
                self._slots.release()
                raise
            if len(self._handshakes) >= _HANDSHAKES:
                self._end_a_handshake()
            accepted = _Accepted(connection, network_of(str(peer[0])), self._slots)
            task = asyncio.create_task(self._connect(accepted, server))
            self._handshakes[accepted] = task
            self._connecting.add(task)
            task.add_done_callback(partial(self._connected, accepted))

    def _end_a_handshake(self) -> None:
        ((heaviest, _),) = Counter(each.network for each in self._handshakes).most_common(1)
        victim = next(each for each in self._handshakes if each.network == heaviest)
        self._refusals.add("TooManyHandshakes", "there are too many connections without a certificate", heaviest)
        self._handshakes.pop(victim).cancel()

    def _connected(self, accepted: _Accepted, task: "asyncio.Task[None]") -> None:
        self._connecting.discard(task)
        self._handshakes.pop(accepted, None)
        accepted.abandon()

    async def _connect(self, accepted: _Accepted, server: HttpServer) -> None:
        """Shake hands. A wrong certificate, none at all, no TLS, or too slow: nobody we owe an answer."""
        context = self._certificates.context
        if context is None:
            return
        try:
            accepted.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            accepted.owned = True
            await asyncio.get_running_loop().connect_accepted_socket(
                partial(server, accepted.release),
                accepted.socket,
                ssl=context,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=2.0,
            )
            accepted.served = True
        except OSError as error:
            self._refusals.add("Handshake", error.strerror or type(error).__name__, accepted.network)


class _Refusals:
    """Whoever is refused is counted, and said once a minute for each reason."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log = ThrottledLog(logger)

    def add(self, reason: str, message: str, who: object) -> None:
        """One more."""
        self._metrics.refused.labels(reason).inc()
        self._log.report(reason, "refused (%s): %s, from %s", reason, message, who)


class _Secure:
    """What API servers and the operator are answered; see `net.http.Application`."""

    def __init__(self, parts: Parts, status: Callable[[], bytes], refusals: _Refusals) -> None:
        self._intake, self._running, self._programs = parts.intake, parts.running, parts.programs
        self._clients, self._metrics, self._status, self._refusals = parts.clients, parts.metrics, status, refusals
        self._bodies = BodyBudget(_SMALLEST_BUDGET)
        self._pushed = BodyBudget(LARGEST)
        self.stopping = False

    def opened(self, transport: asyncio.BaseTransport) -> Client:
        """By the certificate that it has shown; the TLS library has checked it."""
        peer = transport.get_extra_info("peername")
        address = network_of(str(peer[0])) if isinstance(peer, tuple) and peer else ""
        return Client.of(transport.get_extra_info("peercert"), address)

    def trusts(self, client: Client) -> bool:
        """Whether it may do anything."""
        return self._clients.role(client) is not None

    def refused(self, reason: str, message: str, client: Client) -> None:
        """Counted, and logged once a minute."""
        self._refusals.add(reason, message, client)

    async def answer(self, request: Request) -> Response:
        """See `net.http.Application`."""
        started = time.perf_counter()
        client: Client = request.client
        role = self._clients.role(client)
        if role is None:
            shown = client.shown or "no name"
            self.refused("ClientName", f"a certificate with {shown} is none of an API server", client)
            return text(
                403, f"a certificate with {shown} is none of an API server: see spec.certificates.clientNames"
            )._replace(close=True)
        try:
            response = await self._routed(request, client, role)
        except BodyCutOffError:
            self.refused("BodyCutOff", "the body was cut off", client)
            response = text(400, "the body was cut off")
        if request.head.path == AUDIT and role is Role.API_SERVER:
            self._metrics.posts.labels(self._metrics.server(client.name), str(response.status)).inc()
            self._metrics.post_seconds.observe(time.perf_counter() - started)
        # Of a body that is refused much may be unread.
        return response._replace(close=response.status != 200 or self.stopping)

    async def _routed(self, request: Request, client: Client, role: Role) -> Response:
        head = request.head
        wanted = {AUDIT: "POST", PROGRAM_PATH: "PUT", STATUS_PATH: "GET"}.get(head.path)
        if wanted is None:
            return text(404, f"there are {AUDIT}, {PROGRAM_PATH} and {STATUS_PATH}")
        if head.method != wanted:
            return text(405, f"{head.path} takes {wanted}", ("Allow", wanted))
        if (head.path == AUDIT) != (role is Role.API_SERVER):
            self.refused("Path", f"{head.path} is not for {role}", client)
            return text(403, f"{head.path} is not for a certificate of {client.name}")
        if head.path == STATUS_PATH:
            return Response(200, self._status(), _JSON)
        if head.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
            return text(415, "send application/json")
        # API servers do not compress, and small bodies could become huge.
        if head.headers.get("content-encoding", "identity") != "identity":
            return text(415, "send it uncompressed")
        if head.length is None:
            return text(411, "send a Content-Length")
        return await (self._program(request) if head.path == PROGRAM_PATH else self._events(request, client))

    async def _events(self, request: Request, client: Client) -> Response:
        running = self._running
        program, deciding = running.program, running.deciding
        if self.stopping or running.refusal or program is None or deciding is None:
            return _busy(running.refusal or "the receiver is stopping")
        limit = program.body_limit
        self._bodies.size = max(2 * limit, _SMALLEST_BUDGET)
        if (request.head.length or 0) > limit:
            self.refused("BodyTooLarge", f"a body may have {limit} bytes", client)
            return text(413, f"a body may have {limit} bytes")
        claim = self._bodies.open(client.key, request.more, request.fail)
        try:
            begun = time.perf_counter()
            async with asyncio.timeout(_BODY_SECONDS):
                body = await request.body(claim)
            self._metrics.spent("receive", time.perf_counter() - begun)
            target = _Target(deciding, running.full, running.crowded, running.admits, running.spend)
            events = await self._intake.take(client.name, body, target, lane=client.key)
        except TimeoutError:
            return self._slow(request, client)
        except BodyError as error:
            self.refused("NoEventList", str(error), client)
            return text(400, str(error))
        except BusyError as error:
            return _busy(str(error))
        finally:
            claim.close()
        label = self._metrics.server(client.name)
        self._metrics.received.labels(label).inc(events)
        self._metrics.received_bytes.labels(label).inc(len(body))
        return Response(200)

    async def _program(self, request: Request) -> Response:
        if (request.head.length or 0) > LARGEST:
            return text(413, f"a program may have {LARGEST} bytes")
        claim = self._pushed.open(request.client.key, request.more, request.fail)
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await request.body(claim)
            await self._programs.push(body)
        except TimeoutError:
            return self._slow(request, request.client)
        except ProgramError as error:
            return text(422, str(error))
        except BusyError as error:
            return _busy(str(error))
        except OSError as error:
            return _busy(f"the program is in force, but could not be written down: {error.strerror}")
        finally:
            claim.close()
        return Response(200, self._status(), _JSON)

    def _slow(self, request: Request, client: Client) -> Response:
        message = f"the body did not come within {_BODY_SECONDS:g} s"
        request.fail(TimeoutError(message))
        self.refused("SlowBody", message, client)
        return text(408, message)


class _Plain:
    """What anybody is answered; see `net.http.Application`."""

    def __init__(self, parts: Parts, refusals: _Refusals) -> None:
        self._running, self._certificates, self._metrics = parts.running, parts.certificates, parts.metrics
        self._refusals = refusals
        self.stopping = False

    def opened(self, transport: asyncio.BaseTransport) -> str:
        """The address."""
        peer = transport.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) and peer else ""

    def trusts(self, _client: str) -> bool:
        """Nobody."""
        return False

    def refused(self, reason: str, message: str, client: str) -> None:
        """Counted, and logged once a minute."""
        self._refusals.add(f"Plain{reason}", message, client)

    async def answer(self, request: Request) -> Response:
        """See `net.http.Application`."""
        if request.head.method not in {"GET", "HEAD"}:
            return text(405, "this port is asked with GET", ("Allow", "GET, HEAD"))
        match request.head.path:
            case "/livez":
                return text(200, "ok")
            case "/readyz":
                why = "the receiver is stopping" if self.stopping else self._running.failure or self._no_certificates()
                return text(503, why) if why else text(200, "ok")
            case "/metrics":
                return Response(200, await self._metrics.text(), "text/plain; version=0.0.4")
            case _:
                return text(404, "there are /livez, /readyz and /metrics")

    def _no_certificates(self) -> str:
        return "" if self._certificates.context else f"there are no certificates: {self._certificates.error}"


class _Target(NamedTuple):
    """The program in force when the POST came: one POST is decided by one program."""

    deciding: Deciding
    full: Callable[[], Collection[str]]
    crowded: Callable[[], Collection[str]]
    admits: Callable[[str], bool]
    spend: Callable[[str, float], None]


def _busy(message: str) -> Response:
    return text(503, message, ("Retry-After", _RETRY_AFTER))
