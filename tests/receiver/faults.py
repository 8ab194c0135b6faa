"""A TLS HTTP server that can fail in every way a sink's server does. A double of a vendor's API answers through it.

    async with FaultyServer(answer) as server:      # answer: Request -> Reply or a fault, strict about what it is sent
        server.fail(refuse(), hang(), status(503, retry_after=3), partial())
        ... each request meets one fault, in this order, then `answer` again ...

What a server took is what ``answer`` was asked and answered with 2xx: a request that met a fault is not among them,
unless the fault comes after the answer (`answer_lost`), as a connection that breaks at the worst moment.
"""

import asyncio
import contextlib
import gzip
import ssl
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import zstandard
from receiving import TAKEN
from tls_certificates import Issued, authority, issued


@dataclass(frozen=True)
class Request:
    """What was sent. ``body`` is decompressed, ``sent`` are the bytes on the wire; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    sent: bytes


@dataclass(frozen=True)
class Reply:
    """What is answered."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """One failure. ``kind``: what happens to the connection; ``reply``: what is said before, if anything."""

    kind: str
    reply: Reply = field(default_factory=Reply)
    seconds: float = 0.0


Answer = Callable[[Request], Reply | Fault | Awaitable[Reply]]


def reset() -> Fault:
    """The connection is reset once the request has been read."""
    return Fault("reset")


def closed() -> Fault:
    """The connection is closed in good order once the request has been read, without an answer."""
    return Fault("closed")


def reset_early() -> Fault:
    """The connection is reset after the request's headers, with most of the body unread."""
    return Fault("reset early")


def hang() -> Fault:
    """The request is read and never answered."""
    return Fault("hang")


def slow(seconds: float) -> Fault:
    """The right answer, but late, and byte by byte."""
    return Fault("slow", seconds=seconds)


def status(code: int, body: bytes = b"", *, retry_after: float | str | None = None) -> Fault:
    """An answer with this status; nothing is taken."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Fault("status", Reply(code, body, headers))


def partial() -> Fault:
    """An answer whose body ends before its Content-Length. The events were taken."""
    return Fault("partial")


def answer_lost() -> Fault:
    """The events are taken, and the connection is reset before the answer."""
    return Fault("answer lost")


def garbage() -> Fault:
    """An answer that is no HTTP."""
    return Fault("garbage")


def endless() -> Fault:
    """A 500 whose body never ends."""
    return Fault("endless")


def choosy(request: Request) -> Reply:
    """Takes nothing but events of one user agent, and refuses every request that holds others."""
    taken = TAKEN.encode()
    return Reply() if all(taken in line for line in request.body.splitlines()) else Reply(400)


def no_client_certificate() -> Fault:
    """What nginx says to whoever shows no client certificate, or a wrong one: 400, as if it were about the request."""
    return status(400, b"<html><center>No required SSL certificate was sent</center><hr>nginx</html>")


TAKEN_WITHOUT_A_WORD = {"Loki": Reply(204, b""), "Fluent Bit": Reply(201, b""), "VictoriaLogs": Reply(200, b"")}
"""How servers of others say by OTLP, in either encoding, that they have taken everything."""

FAULTS = {
    "reset": reset(),
    "closed": closed(),
    "reset early": reset_early(),
    "slow": slow(0.05),
    "400 once": status(400),
    "401": status(401),
    "403 expired credentials": status(403, b"credentials expired"),
    "404": status(404),
    "408": status(408),
    "413": status(413),
    "429": status(429),
    "429 with Retry-After": status(429, retry_after=0),
    "500": status(500, b"oops"),
    "502": status(502),
    "503 with Retry-After as a date": status(503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
    "partial": partial(),
    "answer lost": answer_lost(),
    "garbage": garbage(),
    "endless": endless(),
}
"""Every failure that a delivery must survive without a loss. ``hang`` and refusing are apart: they take a timeout, or
the whole server.
"""


class FaultyServer:
    """See the module. Listens on 127.0.0.1, whose certificate is for ``names``.

    ``client_ca``: if given, clients must show a certificate of that CA.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        tls: bool = True,
        names: tuple[str, ...] = ("localhost", "127.0.0.1"),
        certificate: Issued | None = None,
        client_ca: str | None = None,
    ) -> None:
        self._answer = answer
        self._tls = tls
        self._certificate = certificate or issued("server", *names)
        self._client_ca = client_ca
        self._faults: deque[Fault] = deque()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0
        self.requests: list[Request] = []
        """Whatever was read completely, faults included."""

    @property
    def url(self) -> str:
        """Without a path."""
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}"

    @property
    def ca(self) -> str:
        """PEM, for ``tls.caBundle``."""
        return authority().pem.decode()

    def fail(self, *faults: Fault) -> None:
        """The next requests meet these, one each."""
        self._faults.extend(faults)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; after `stop` on the same port again."""
        context = self._context() if self._tls else None
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections from now on, and reset those that are open."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = Path(folder, "crt"), Path(folder, "key")
            certificate.write_bytes(self._certificate.certificate)
            key.write_bytes(self._certificate.key)
            context.load_cert_chain(certificate, key)
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=authority(self._client_ca).pem.decode())
        return context

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                while await self._one(reader, writer):
                    pass
        except asyncio.CancelledError:
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        fault = self._faults.popleft() if self._faults else Fault("none")
        if fault.kind == "reset early":
            return False
        sent = await _body(reader, headers)
        request = Request(method, path, headers, _unpacked(sent, headers), sent)
        self.requests.append(request)
        reply: Reply | Fault | Awaitable[Reply] = Reply()
        if fault.kind in _AFTER_AN_ANSWER:
            reply = self._answer(request)
            if isinstance(reply, Fault):
                fault, reply = reply, Reply()
        match fault.kind:
            case "reset":
                return False
            case "closed":
                writer.close()
                await writer.wait_closed()
                return False
            case "hang":
                await asyncio.sleep(3600)
            case "garbage":
                writer.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
                await writer.drain()
                return False
            case "endless":
                writer.write(b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n")
                for _ in range(64):
                    writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                    await writer.drain()
                return False
            case "status":
                return await _reply(writer, fault.reply)
        if isinstance(reply, Awaitable):
            reply = await reply
        assert isinstance(reply, Reply)
        match fault.kind:
            case "answer lost":
                return False
            case "partial":
                writer.write(_head(reply, len(reply.body) + 10) + reply.body)
                await writer.drain()
                return False
            case "slow":
                await asyncio.sleep(fault.seconds)
                for byte in _head(reply, len(reply.body)) + reply.body:
                    writer.write(bytes([byte]))
                    await writer.drain()
                return True
            case _:
                return await _reply(writer, reply)


_AFTER_AN_ANSWER = frozenset({"none", "answer lost", "partial", "slow"})


def _head(reply: Reply, length: int) -> bytes:
    lines = [f"HTTP/1.1 {reply.status} Status", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _reply(writer: asyncio.StreamWriter, reply: Reply) -> bool:
    writer.write(_head(reply, len(reply.body)) + reply.body)
    await writer.drain()
    return True


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") == "chunked":
        pieces = []
        while size := int(await reader.readline(), 16):
            pieces.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readline()
        return b"".join(pieces)
    return await reader.readexactly(int(headers.get("content-length", "0")))


def _unpacked(body: bytes, headers: dict[str, str]) -> bytes:
    match headers.get("content-encoding"):
        case "gzip":
            return gzip.decompress(body)
        case "zstd":
            return zstandard.ZstdDecompressor().decompress(body, max_output_size=1 << 28)
        case _:
            return body
