"""syslog: RFC 5424 over TLS or TCP, framed as RFC 6587 says.

The protocol has no acknowledgement. "Taken" means that the server's machine has acknowledged every byte of the batch
over TCP, and has not closed the connection: what a server loses out of its memory afterwards nobody learns.
"""

import asyncio
import contextlib
import fcntl
import socket
import ssl
import struct
import sys
import termios
from typing import Final, Literal

from audit_operator.receiver.formats import Formatter, formatter, without_bodies
from audit_operator.receiver.sinks import (
    TAKEN,
    Batch,
    Item,
    Refusal,
    Result,
    Settings,
    Surroundings,
    UnreachableError,
    convert,
    filled,
    settings,
)
from audit_operator.receiver.sinks.web import Resolver, Tls, checked, ssl_reason
from audit_operator.render.program import SinkProgram


class _Syslog(Settings, frozen=True):
    address: str
    transport: Literal["TLS", "TCP"]
    framing: Literal["OctetCounting", "Newline"]
    facility: str
    severity: str
    hostname: str
    app_name: str
    max_message_bytes: int


_FACILITIES: Final = {
    "user": 1, "daemon": 3, "auth": 4, "authpriv": 10, "audit": 13,
    "local0": 16, "local1": 17, "local2": 18, "local3": 19, "local4": 20, "local5": 21, "local6": 22, "local7": 23,
}  # fmt: skip
_SEVERITIES: Final = {"notice": 5, "info": 6, "debug": 7}
_LONGEST_HOSTNAME: Final = 255


def make(program: SinkProgram, surroundings: Surroundings) -> "Syslog":
    """See `Sink`."""
    given = settings(program, _Syslog)
    hostname = filled(given.hostname, program, surroundings)[:_LONGEST_HOSTNAME]
    form = _Form(given, hostname, formatter(program, surroundings.cluster))
    tls = convert(program, program.tls or {}, Tls) if given.transport == "TLS" else None
    host, _, port = given.address.rpartition(":")
    return Syslog(form, _Way(host.strip("[]"), int(port), tls, surroundings))


class Syslog:
    """One connection, kept open."""

    def __init__(self, form: "_Form", way: "_Way") -> None:
        self._form = form
        self._way = way
        self._one_at_a_time = asyncio.Lock()

    async def open(self) -> None:
        """Nothing to do: the first delivery connects."""

    async def deliver(self, batch: Batch) -> Result:
        """Messages, one after the other. Raises SinkError."""
        messages, refused = [], []
        for at, item in enumerate(batch.items):
            message = self._form.message(item)
            if message is None:
                refused.append(Refusal(at, f"is larger than maxMessageBytes ({self._form.limit}) even without bodies"))
            else:
                messages.append(message)
        async with self._one_at_a_time:
            if messages:
                await self._way.send(b"".join(messages))
        return Result(refused=refused) if refused else TAKEN

    async def close(self) -> None:
        """Close the connection."""
        await self._way.stop()


class _Form:
    """What a message looks like. ``limit``: bytes of one, without its frame."""

    def __init__(self, given: _Syslog, hostname: str, formatted: Formatter) -> None:
        self.limit = given.max_message_bytes
        self._priority = _FACILITIES[given.facility] * 8 + _SEVERITIES[given.severity]
        self._after = f" {hostname or '-'} {given.app_name} - "
        self._counted = given.framing == "OctetCounting"
        self._formatted = formatted

    def message(self, item: Item) -> bytes | None:
        """One event in its frame; without bodies where it is too large with them; None if it still is."""
        # No structured data: it needs an enterprise number, and all of it is in the event. No byte order mark either,
        # which would come before the JSON.
        head = f"<{self._priority}>1 {item.timestamp or '-'}{self._after}{item.stage[:32] or '-'} - ".encode()
        data = item.data
        if len(head) + len(data) > self.limit:
            data = self._formatted(without_bodies(item.audit))
            if len(head) + len(data) > self.limit:
                return None
        message = head + data
        return b"%d %b" % (len(message), message) if self._counted else message + b"\n"


_UNSENT: Final = termios.TIOCOUTQ
_POLL: Final = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
"""Seconds between looks at what the other side has not acknowledged; then the last one."""


class _Way:
    """The connection."""

    def __init__(self, host: str, port: int, tls: Tls | None, surroundings: Surroundings) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._reach = surroundings.reach
        self._names = Resolver(surroundings.reach)
        self._seen: object = None
        self._context: ssl.SSLContext | None = None
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, data: bytes) -> None:
        """Write, and come back once the other side has acknowledged all of it. Raises SinkError."""
        try:
            reader, writer = await self._connected()
            writer.write(data)
            await writer.drain()
            await self._acknowledged(writer)
            if reader.at_eof() or writer.is_closing():
                raise UnreachableError("the server closed the connection")
        except BaseException as error:
            # Half a message may have been written: what follows would be taken for its rest.
            await self.close()
            if isinstance(error, ssl.SSLCertVerificationError):
                raise UnreachableError(f"the server's certificate: {ssl_reason(error)}") from error
            if isinstance(error, ssl.SSLError):
                raise UnreachableError(f"TLS: {ssl_reason(error)}") from error
            if isinstance(error, OSError):
                raise UnreachableError(f"no connection: {(error.strerror or str(error)).lower()}") from error
            raise

    async def close(self) -> None:
        """Close the connection at once."""
        if self._open is not None:
            (_, writer), self._open = self._open, None
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def stop(self) -> None:
        """Close it for good."""
        await self.close()
        await self._names.close()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        seen = None if self._tls is None else self._tls.versions()
        if self._open is not None:
            reader, writer = self._open
            if not reader.at_eof() and not writer.is_closing() and seen == self._seen:
                return self._open
            await self.close()
        if self._tls is not None and (self._context is None or seen != self._seen):
            self._context, self._seen = self._tls.context(), seen  # it reads all the CAs of the system: not at each try
        context = self._context
        connection = await self._socket()
        try:
            name = None if self._tls is None else self._tls.server_name or self._host
            reader, writer = await asyncio.open_connection(sock=connection, ssl=context, server_hostname=name)
        except BaseException:
            connection.close()
            raise
        # So that drain waits until the kernel has all of it.
        writer.transport.set_write_buffer_limits(0)
        self._open = (reader, writer)
        return reader, writer

    async def _socket(self) -> socket.socket:
        """A connection to the first address that takes one. Addresses are looked at after name resolution."""
        loop = asyncio.get_running_loop()
        try:
            found = await self._names.resolve(self._host, self._port)
        except socket.gaierror:
            raise UnreachableError(f"the name {self._host} cannot be resolved") from None
        failure: OSError = OSError("no address")
        for each in found:
            checked(each["host"], self._reach)
            connection = socket.socket(each["family"], socket.SOCK_STREAM, each["proto"])
            connection.setblocking(False)
            try:
                await loop.sock_connect(connection, (each["host"], each["port"]))
            except OSError as error:
                connection.close()
                failure = error
            except BaseException:
                connection.close()
                raise
            else:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                return connection
        raise failure

    async def _acknowledged(self, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        for poll in range(sys.maxsize):
            if writer.is_closing():
                raise UnreachableError("the server closed the connection")
            with contextlib.suppress(OSError):
                (unsent,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), _UNSENT, b"\0\0\0\0"))
                if unsent == 0:
                    return
            await asyncio.sleep(_POLL[min(poll, len(_POLL) - 1)])
