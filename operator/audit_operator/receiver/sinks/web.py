"""What sinks that speak HTTP share: TLS, proxy, authentication, bounded answers, and what a status code means."""

import asyncio
import email.utils
import io
import re
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from audit_operator import __version__
from audit_operator.receiver.compression import Compression, compress
from audit_operator.receiver.reach import Reach
from audit_operator.receiver.sinks import (
    MisconfiguredError,
    RefusedError,
    SecretFile,
    Settings,
    SinkError,
    Surroundings,
    ThrottledError,
    TooLargeError,
    UnauthorizedError,
    UnknownSinkError,
    UnreachableError,
    convert,
    filled,
    secret,
)
from audit_operator.receiver.threads import OwnThread
from audit_operator.render.program import SinkProgram
from audit_operator.resources.auditsink import OUR_HEADERS


class BasicAuth(Settings, frozen=True):
    """HTTP basic authentication."""

    username: str
    password: SecretFile


class HttpAuth(Settings, frozen=True):
    """One of these."""

    basic: BasicAuth | None = None
    bearer_token: SecretFile | None = None

    def header(self) -> str:
        """The value of Authorization as it is now. Raises UnauthorizedError."""
        if self.basic is not None:
            return basic(self.basic)
        assert self.bearer_token is not None  # noqa: S101 - a rule of the resource
        return f"Bearer {secret(self.bearer_token)}"


class Header(Settings, frozen=True):
    """A header with a value that may be read, in which placeholders are filled in, or a secret one."""

    name: str
    value: str | None = None
    secret: SecretFile | None = None


class ClientCertificate(Settings, frozen=True):
    """PEM files."""

    certificate_file: str
    key_file: str


class Tls(Settings, frozen=True):
    """Whom we trust and who we are."""

    ca_bundle: str | None = None
    ca_secret: SecretFile | None = None
    ca_config_map: SecretFile | None = None
    server_name: str | None = None
    client_certificate: ClientCertificate | None = None
    min_version: Literal["TLS12", "TLS13"] = "TLS12"

    def files(self) -> tuple[str, ...]:
        """The files it is made of."""
        own = self.client_certificate
        ca = self.ca_secret or self.ca_config_map
        return (*((ca.file,) if ca else ()), *((own.certificate_file, own.key_file) if own else ()))

    def versions(self) -> Sequence[object]:
        """Something that differs once one of the files has changed."""
        return [_version(file) for file in self.files()]

    def ca(self) -> str | None:
        """The CAs to trust, PEM; None: the system's. Raises UnauthorizedError."""
        reference = self.ca_secret or self.ca_config_map
        return secret(reference) if reference else self.ca_bundle

    def context(self) -> ssl.SSLContext:
        """For connections from now on. Raises UnauthorizedError if a file is missing or is not what it should be."""
        try:
            context = ssl.create_default_context(cadata=self.ca())
            if self.client_certificate:
                own = self.client_certificate
                context.load_cert_chain(own.certificate_file, own.key_file)
        except FileNotFoundError:
            raise UnauthorizedError(
                "the client certificate is missing; create the Secret that the sink names"
            ) from None
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise UnauthorizedError(f"the certificates cannot be used: {ssl_reason(error)}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_3 if self.min_version == "TLS13" else ssl.TLSVersion.TLSv1_2
        return context


class Proxy(Settings, frozen=True):
    """The HTTP proxy on the way."""

    url: str
    basic_auth: BasicAuth | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the server; ``body`` at most as long as asked for. ``quoted``: people may see what it says."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    quoted: bool = True


LARGEST_ANSWER: Final = 1 << 16
"""Bytes read of an answer unless a sink says otherwise: enough for an error. No server fills our memory, nor takes much
of our time: a chunk costs 1 µs, and may hold one byte.
"""

_LARGE: Final = 1 << 20
"""Bytes."""

_SMALL: Final = 1 << 16
"""Bytes that are compressed in less time than a thread takes to be woken, some 100 µs."""

_SHOWN: Final = 200
"""Characters of an answer in an error. Enough to see why."""

_LOOKED_AT: Final = 1 << 12
"""Bytes of an answer in which those are looked for: a megabyte of blanks is nothing to go through on the loop."""

_T = TypeVar("_T")


def decoded(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T | None:
    """An answer's JSON; None where it is not of that kind. Whoever runs the server chose every byte of it: the time it
    takes grows with its length and with nothing else, as long as the decoder's types hold no ``Any``.
    """
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


async def parsed(answer: "Answer", parse: "Callable[[bytes], _T]") -> _T:
    """``parse(answer.body)``, in a thread where the body is large. No time of the loop is up to a server."""
    if len(answer.body) <= LARGEST_ANSWER:
        return parse(answer.body)
    return await asyncio.to_thread(parse, answer.body)


def not_ours(program: SinkProgram, header: str) -> None:
    """Raises UnknownSinkError for a header that no AuditSink may name; earlier versions let it."""
    if re.search(OUR_HEADERS, header):
        raise UnknownSinkError(
            f"sink {program.namespace}/{program.name} ({program.type}): the receiver writes header {header} itself; "
            "leave it out"
        )


class Client:
    """Requests of one sink. Certificates and credentials are those of the moment of each request."""

    def __init__(
        self,
        program: SinkProgram,
        surroundings: Surroundings,
        *,
        auth: HttpAuth | None = None,
        headers: Sequence[Header] = (),
        compression: Compression = "None",
    ) -> None:
        self._concurrency = program.concurrency
        self._auth = auth
        for header in headers:
            not_ours(program, header.name)
        self._headers = tuple(headers)
        self._plain = {
            header.name: filled(header.value, program, surroundings) for header in headers if header.value is not None
        }
        self._compression = compression
        self._tls = convert(program, program.tls or {}, Tls)
        self._proxy = None if program.proxy is None else convert(program, program.proxy, Proxy)
        self._reach = surroundings.reach
        self._quoted = not surroundings.tenant
        self._names = Resolver(surroundings.reach)
        self._session: aiohttp.ClientSession | None = None
        self._context: ssl.SSLContext | None = None
        self._seen: object = None

    async def send(
        self,
        method: str,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        sign: Callable[[bytes], Mapping[str, str]] | None = None,
        compression: Compression | None = None,
        largest_answer: int = LARGEST_ANSWER,
    ) -> Answer:
        """Send a request with a body, which is compressed as the sink is set, and read the answer, whatever its status.

        ``sign``: further headers, made of the body as it is sent. ``compression``: another than the sink's. Nothing is
        followed: a redirect could lead credentials anywhere. Raises SinkError if there is no answer.
        """
        if self._proxy is not None and _is_address(host := URL(url).host or ""):
            checked(host, self._reach)  # the proxy connects, not we
        session = self._opened()
        kind = self._compression if compression is None else compression
        # The library lets others run meanwhile.
        packed = compress(body, kind) if len(body) < _SMALL else await asyncio.to_thread(compress, body, kind)
        sent = self._all_headers(headers if sign is None else {**headers, **sign(packed)}, kind)
        proxy = self._proxy
        try:
            async with session.request(
                method,
                # What is signed must not be written in another way.
                URL(url, encoded=sign is not None),
                # A large one piece by piece, so that the loop is not held up.
                data=packed if len(packed) < _LARGE else io.BytesIO(packed),
                headers=sent,
                ssl=self._current_context() if url.startswith("https://") else True,
                server_hostname=self._tls.server_name,
                proxy=None if proxy is None else proxy.url,
                proxy_headers=self._proxy_headers(),
                allow_redirects=False,
            ) as response:
                answer = await _bounded(response, largest_answer)
                if response.status >= 300:
                    answer = self._without_credentials(answer, sent)
                return Answer(response.status, response.headers, answer, self._quoted)
        except aiohttp.ClientConnectorCertificateError as error:
            raise UnreachableError(f"the server's certificate: {ssl_reason(error.certificate_error)}") from error
        except aiohttp.ClientSSLError as error:
            raise UnreachableError(f"TLS: {ssl_reason(error.os_error)}") from error
        except aiohttp.InvalidURL as error:
            raise MisconfiguredError("the host of the URL is no name and is no address") from error
        except aiohttp.ClientConnectorDNSError as error:
            raise UnreachableError(f"the name {error.host} cannot be resolved") from error
        except aiohttp.ClientHttpProxyError as error:
            if error.status == 407:
                raise UnauthorizedError("the proxy does not accept who we are (407)") from error
            raise UnreachableError(f"the proxy answered {error.status}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # Once there was a connection, the request was on its way.
            on_its_way = not isinstance(error, aiohttp.ClientConnectorError)
            raise UnreachableError(_connection_reason(error), sent=on_its_way) from error

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()
        await self._names.close()

    def _all_headers(self, headers: Mapping[str, str], compression: Compression) -> CIMultiDict[str]:
        """Each once, however it is written."""
        sent = CIMultiDict({"User-Agent": f"audit-operator/{__version__}", "Accept-Encoding": "identity"})
        for name, value in (*headers.items(), *self._plain.items()):
            sent[name] = value
        for header in self._headers:
            if header.secret is not None:
                sent[header.name] = secret(header.secret)
        if self._auth is not None:
            sent["Authorization"] = self._auth.header()
        if compression != "None":
            sent["Content-Encoding"] = compression
        for name, value in sent.items():
            if not value.isprintable() or not value.isascii():
                raise UnauthorizedError(f"the value for header {name} is not printable ASCII; correct the Secret")
        return sent

    def _without_credentials(self, answer: bytes, sent: Mapping[str, str]) -> bytes:
        """An error's text is shown to people, and there are servers that repeat in it what they were sent."""
        names = {"Authorization", *(header.name for header in self._headers if header.secret is not None)}
        for name in names:
            value = sent.get(name, "").encode()
            for shown in (value, value.partition(b" ")[2]):
                if shown:
                    answer = answer.replace(shown, b"***")
        return answer

    def _proxy_headers(self) -> dict[str, str] | None:
        if self._proxy is None or self._proxy.basic_auth is None:
            return None
        return {"Proxy-Authorization": basic(self._proxy.basic_auth)}

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=self._concurrency,
                socket_factory=self._socket,
                resolver=self._names,
                keepalive_timeout=30,
                ttl_dns_cache=10,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                # What is asked for: a few bytes could else unpack to gigabytes.
                auto_decompress=False,
                # The worker's timeout is the only one.
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            )
        return self._session

    def _current_context(self) -> ssl.SSLContext:
        """A new context makes new connections: the pool tells them apart by it."""
        seen = self._tls.versions()
        if self._context is None or seen != self._seen:
            self._context, self._seen = self._tls.context(), seen
        return self._context

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        """A socket for an address, after name resolution, at every connection: names can change what they mean."""
        family, kind, protocol, _, address = info
        checked(str(address[0]), self._reach)
        return socket.socket(family, kind, protocol)


class Resolver(AbstractResolver):
    """Names of one sink, in a thread of its own: where a tenant's name server hangs, no other sink waits for it.

    Of several addresses those count that the sink may connect to.
    """

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._thread = OwnThread("names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """See its base. Raises OSError, and MisconfiguredError where no address is left."""
        ask = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
        found: list[ResolveResult] = []
        refusal = ""
        for at, _, protocol, _, address in await self._thread.run(ask):
            number = str(address[0])
            if len(address) == 4 and address[3] and "%" not in number:
                number = f"{number}%{address[3]}"
            if why := self._reach.refusal(number):
                refusal = refusal or why
                continue
            found.append(
                ResolveResult(
                    hostname=host,
                    host=number,
                    port=port,
                    family=at,
                    proto=protocol,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        if not found and refusal:
            raise MisconfiguredError(refusal)
        return found

    async def close(self) -> None:
        """Let the thread end."""
        self._thread.stop()


def checked(address: str, reach: Reach) -> None:
    """Raises MisconfiguredError for an address that the sink may not connect to."""
    if why := reach.refusal(address):
        raise MisconfiguredError(why)


def basic(auth: BasicAuth) -> str:
    """The value of Authorization. Raises UnauthorizedError."""
    return "Basic " + b64encode(f"{auth.username}:{secret(auth.password)}".encode()).decode()


def error_of(answer: Answer) -> SinkError | None:
    """What the status of an answer means for the batch; None for 2xx."""
    status = answer.status
    if 200 <= status < 300:
        return None
    wait = retry_after(answer.headers)
    said = f"HTTP {status}{_said(answer.body) if answer.quoted else ''}"
    match status:
        case 401 | 407:
            return UnauthorizedError(said, retry_after=wait)
        case 403:
            # Also what a firewall for applications says to a body that looks like an attack to it.
            return UnauthorizedError(said, retry_after=wait, sent=True)
        case 413:
            return TooLargeError(said)
        case 429:
            return ThrottledError(said, retry_after=wait)
        case 503 if wait is not None:
            return ThrottledError(said, retry_after=wait)
        case 408 | 425:
            return UnreachableError(said, retry_after=wait)
        case 400 | 422:
            return RefusedError(said)
        case _ if status >= 500:
            return UnreachableError(said, retry_after=wait, sent=True)
        case _:
            return MisconfiguredError(said, sent=status in _OF_A_REQUEST)


_OF_A_REQUEST: Final = frozenset({406, 409, 414, 431, 451})
"""Statuses that may be about what was sent, where those beside them are about where it was sent."""

_LONGEST_WAIT: Final = 3600.0
"""Seconds. A sink that asks for more is asked again after an hour all the same."""
_LONGEST_DATE: Final = 64
"""Characters."""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, of a Retry-After in seconds or as a date; None if there is none that can be read."""
    text = headers.get("Retry-After", "").strip()
    if not text or len(text) > _LONGEST_DATE:
        return None
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), _LONGEST_WAIT)
    try:
        moment = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, moment - time.time()), _LONGEST_WAIT)


async def _bounded(response: aiohttp.ClientResponse, largest: int) -> bytes:
    """The body, of which no more than ``largest`` bytes are read; a connection with more to come is not used again."""
    pieces, size = [], 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > largest:
            response.close()
            break
    return b"".join(pieces)[:largest]


def _said(body: bytes) -> str:
    text = body[:_LOOKED_AT].decode(errors="replace")
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return f": {text[:_SHOWN]}" if text else ""


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _version(file: str) -> object:
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def ssl_reason(error: object) -> str:
    """Why TLS failed, for a person."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return str(error)[:_SHOWN]


def _connection_reason(error: BaseException) -> str:
    match error:
        case aiohttp.ClientConnectorError() | OSError() if getattr(error, "errno", None) or str(error):
            cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            return f"no connection: {(cause.strerror or str(cause) or type(cause).__name__).lower()}"
        case TimeoutError() | asyncio.TimeoutError():
            return "no answer in time"
        case aiohttp.ServerDisconnectedError():
            return "the server closed the connection without an answer"
        case _:
            return f"no valid answer: {type(error).__name__}"
