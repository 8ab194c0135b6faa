"""syslog: RFC 5424 over TLS or TCP, framed as RFC 6587 says.

The protocol has no acknowledgement. "Taken" means that the server's machine has acknowledged every byte of the batch
over TCP, and has not closed the connection: what a server loses out of its memory afterwards nobody learns.
"""

import asyncio
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
                refused.append(
                    Refusal(
                        at, f"is larger than maxMessageBytes ({self._form.limit}) even without bodies", certain=True
                    )
                )
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
        if len(head) + len(data) + 1 > self.limit:
            data = self._formatted(without_bodies(item.audit))
            if len(head) + len(data) + 1 > self.limit:
                return None
        # Counted or not, a line feed is the last byte. Where a message exceeds the server's frame size, rsyslog goes on
        # to the next line feed: without one it would take all that follows for the rest of that message.
        message = b"%b%b\n" % (head, data)
        return b"%d %b" % (len(message), message) if self._counted else message


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
        self._open: _Connection | None = None

    async def send(self, data: bytes) -> None:
        """Write, and come back once the other side has acknowledged all of it. Raises SinkError."""
        try:
            connection = await self._connected()
            connection.write(data)
            for poll in range(sys.maxsize):
                if connection.ended:
                    raise UnreachableError("the server closed the connection", sent=True)
                if not connection.unsent:
                    return
                await asyncio.sleep(_POLL[min(poll, len(_POLL) - 1)])
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
            connection, self._open = self._open, None
            await connection.close()

    async def stop(self) -> None:
        """Close it for good."""
        await self.close()
        await self._names.close()

    async def _connected(self) -> "_Connection":
        seen = None if self._tls is None else self._tls.versions()
        if self._open is not None:
            if not self._open.ended and seen == self._seen:
                return self._open
            await self.close()
        if self._tls is not None and (self._context is None or seen != self._seen):
            self._context, self._seen = self._tls.context(), seen  # it reads all the CAs of the system: not at each try
        context = self._context
        to_server = await self._socket()
        connection = _Connection(to_server)
        try:
            await connection.open(context, None if self._tls is None else self._tls.server_name or self._host)
        except BaseException:
            await connection.close()
            raise
        self._open = connection
        return connection

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


class _Connection(asyncio.Protocol):
    """A TCP connection, with or without TLS, that tells what of it is still on the way.

    No flow control: whether a transport of TLS calls ``resume_writing`` once its buffer is empty depends on the loop's
    library and its limits. What is in the buffers can be asked.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._transports: list[asyncio.Transport] = []
        """The socket's, then that of TLS: each has a buffer of its own."""
        self._closed = asyncio.Event()
        self._established = False
        self.ended = False
        """Whether either side has closed it."""

    async def open(self, context: ssl.SSLContext | None, name: str | None) -> None:
        """Take the socket, and encrypt. Raises OSError."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: self, sock=self._socket)
        self._transports.append(transport)
        if context is not None:
            encrypted = await loop.start_tls(transport, self, context, server_hostname=name)
            if encrypted is None:
                raise ConnectionResetError("the server closed the connection")
            self._transports.append(encrypted)
        self._established = True

    def write(self, data: bytes) -> None:
        """Into the buffers."""
        self._transports[-1].write(data)

    @property
    def unsent(self) -> bool:
        """Whether there is anything in our buffers or in the kernel's that the other side has not acknowledged."""
        if any(transport.get_write_buffer_size() for transport in self._transports):
            return True
        try:
            (waiting,) = struct.unpack("i", fcntl.ioctl(self._socket.fileno(), _UNSENT, b"\0\0\0\0"))
        except (OSError, ValueError):
            return True  # it is being closed
        return bool(waiting)

    async def close(self) -> None:
        """At once."""
        self.ended = True
        if not self._transports:
            self._socket.close()
            return
        for transport in reversed(self._transports):
            transport.abort()
        if self._established:  # else nobody tells us
            await self._closed.wait()

    def data_received(self, data: bytes) -> None:
        """No server of syslog has anything to say."""

    def eof_received(self) -> None:
        self.ended = True

    def connection_lost(self, _: Exception | None) -> None:
        self.ended = True
        self._closed.set()
