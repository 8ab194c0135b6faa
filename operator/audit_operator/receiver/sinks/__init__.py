"""Sinks: where events are delivered. A sink type is one module here and one line in `MODULES`.

A module has ``make(program: SinkProgram, surroundings: Surroundings) -> Sink``. It reads ``program.settings`` with a
struct of its own (`settings`), which refuses what it does not know. A library of a vendor is imported inside ``make``'s
module and nowhere else; where it is missing `make` says which extra to install.

What the worker promises a sink (`delivery.py`):

* ``open`` is awaited before the first ``deliver``; if it raises, it is repeated like a delivery. ``close`` is awaited
  once at the end and must not raise.
* At most ``program.concurrency`` calls of ``deliver`` at a time. With 1 (the default) events come in the order in which
  the receiver took them, which is each API server's own order: a batch is repeated until none of its events is left
  before the next one begins. Above 1, batches may overtake each other.
* An event is delivered at least once. It comes again after a crash, after `Result.retry`, and when an exception left
  open what the sink took, with the same `Batch.ids`, by which a sink that can drops it.
* ``deliver`` is cancelled after ``program.timeout`` seconds; that counts as `UnreachableError`.
* ``batch.items`` is never empty, ``batch.size`` at most ``program.batch.max_bytes`` unless a single event is larger.

What a sink promises the worker: to raise nothing but `SinkError` for what can be foreseen (anything else counts as
`UnreachableError` and is logged as a bug), to keep no events between calls, and to bound what it reads of answers. It
must not sleep or repeat on its own: waits are the worker's. To wait for an acknowledgement that comes later is part
of a delivery.

Credentials are files that change under the receiver's feet: read them with `secret` at each use, keep no copy. A file
that is missing or empty raises `UnauthorizedError`, which passes as soon as it is there.
"""

import hashlib
import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar, cast

import msgspec

from audit_operator.policy.events import Event, decode
from audit_operator.receiver.files import Account
from audit_operator.receiver.reach import ANYWHERE, Reach
from audit_operator.render.program import SinkProgram, belongs

MODULES: Final[Mapping[str, str]] = {
    "elasticsearch": "elasticsearch",
    "splunk": "splunk",
    "loki": "loki",
    "googleCloudLogging": "google_cloud_logging",
    "otlp": "otlp",
    "kafka": "kafka",
    "objectStore": "object_store",
    "cloudWatch": "cloud_watch",
    "syslog": "syslog",
    "http": "http",
    "file": "file",
    "stdout": "stdout",
}
"""Sink type, as in the program -> module in this folder."""

BLIND: Final = frozenset({"objectStore", "file", "stdout"})
"""Sink types that store bytes, whatever they are: no failure is about one event among others."""

EXTRAS: Final[Mapping[str, str]] = {
    "elasticsearch": "elasticsearch",
    "file": "age",
    "googleCloudLogging": "googlecloudlogging",
    "kafka": "kafka",
    "objectStore": "objectstore",
    "cloudWatch": "cloudwatch",
    "otlp": "otlp",
}
"""Sink type -> the extra of audit-operator that brings the library it needs."""


# --- what is delivered -----------------------------------------------------------------------------------------------


class Item(msgspec.Struct, frozen=True, gc=False):
    """One event.

    ``data``: in the sink's format (`SinkProgram.format`), one JSON object without a line break in it. ``audit``: the
    same event as in the journal, in the words of audit.k8s.io/v1, already cut and redacted; the same bytes where the
    format is audit. ``timestamp``: stageTimestamp as the API server wrote it (RFC 3339, microseconds, UTC); a client
    cannot choose it. ``sequence``: grows by one per event of this sink and receiver.
    """

    server: str
    audit_id: str
    stage: str
    timestamp: str
    sequence: int
    data: bytes
    audit: bytes

    @property
    def event(self) -> Event:
        """The event decoded, for sinks that need its fields; decoded anew at each use."""
        return decode(self.audit)


@dataclass(frozen=True, slots=True)
class Batch:
    """Events to deliver together. ``size``: the sum of ``len(item.data)``, before compression."""

    cluster: str
    items: Sequence[Item]
    size: int

    def ids(self) -> list[str]:
        """For each item a name that is the same however often it is delivered: 32 hex digits.

        Of the cluster, API server and the event's own bytes. auditID, which clients choose, could make a sink take two
        events for one, with stage and stageTimestamp, too: two requests may end in one microsecond.
        """
        begun: dict[str, hashlib.blake2b] = {}
        ids = []
        for item in self.items:
            if (beginning := begun.get(item.server)) is None:
                beginning = hashlib.blake2b(f"{self.cluster}\0{item.server}\0".encode(), digest_size=16)
                begun[item.server] = beginning
            digest = beginning.copy()
            digest.update(item.audit)
            ids.append(digest.hexdigest())
        return ids


class Refusal(NamedTuple):
    """Why the sink will never take the event at this index: a line for a person, without the event's content.

    ``certain``: it is about the event, whatever becomes of others. If not, and all are refused alike, it may be about
    the sink.
    """

    at: int
    reason: str
    certain: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a batch: items named neither in ``retry`` nor in ``refused`` are taken, for good.

    ``retry``: indices to deliver again, no earlier than ``retry_after`` seconds from now if that is given.
    ``refused``: never to be delivered again; they go to quarantine. ``reason``: why ``retry`` is not empty. ``sent``:
    as for SinkError.
    """

    retry: Sequence[int] = ()
    refused: Sequence[Refusal] = ()
    retry_after: float | None = None
    reason: str = ""
    sent: bool = False


TAKEN: Final = Result()
"""Every item is taken."""


class Sink(Protocol):
    """What delivers batches to one AuditSink."""

    async def open(self) -> None:
        """Make ready what all deliveries share. Raises SinkError."""

    async def deliver(self, batch: Batch) -> Result:
        """Deliver, and come back once the sink has the events in the sense that its protocol offers. Raises SinkError:
        then no item is taken, as far as is known.
        """

    async def close(self) -> None:
        """Let go of everything."""


# --- what goes wrong -------------------------------------------------------------------------------------------------


class SinkError(Exception):
    """A batch as a whole was not taken. The message is for a person and never holds a credential or an event.

    ``retry_after``: seconds that the sink asked to be left alone. ``sent``: the sink was sent the events and answered
    this, or nothing; one of them may be why. False where that cannot be, as for a name that cannot be resolved.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, sent: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.sent = sent


class UnreachableError(SinkError):
    """No answer, or one that says "not now": name resolution, connection, TLS, timeout, HTTP 5xx. Repeated."""


class UnauthorizedError(SinkError):
    """The sink does not accept who we are: HTTP 401, 403, 407, an expired or missing credential. Repeated."""


class ThrottledError(SinkError):
    """The sink asks to slow down: HTTP 429, or 503 with Retry-After. Repeated."""


class MisconfiguredError(SinkError):
    """What was addressed is not there or not what we take it for: HTTP 404, no such topic, index or bucket. Repeated:
    it passes when the sink or its settings are corrected, and costs no event until then.
    """


class RefusedError(SinkError):
    """The sink will not take this batch: HTTP 400, 422. Halved until the events that cause it are found, and only
    those go to quarantine; none if it takes no other either.
    """


class TooLargeError(RefusedError):
    """It is too much at once: HTTP 413. Halved; a single event that is too large goes to quarantine."""


class UnknownSinkError(ValueError):
    """The program names a sink that cannot be made: its type, its settings, or a library that is missing."""


# --- what a sink is given --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a sink may know of where it runs.

    ``receiver``: the receiver's own name, the same after a restart. ``files``: the folder for file sinks on the
    receiver's volume. ``claims``: the folder with claims mounted by name. ``state``: where sinks remember what must
    outlive the process; nothing in it is an event. ``reach``: no connection is made to an address outside of it,
    whatever name led there. ``platform``: addresses (CIDRs) that are never in a tenant's. ``account``: of what is below
    ``files``.
    """

    cluster: str
    receiver: str
    files: Path
    claims: Path
    state: Path
    reach: Reach = ANYWHERE
    platform: tuple[str, ...] = ()
    account: Account | None = field(default=None, compare=False)

    @property
    def tenant(self) -> bool:
        """Whether whoever wrote the sink is no administrator: the receiver's own identity is not for it, nor is any
        text that a server answers, for it may be one that only we can reach.
        """
        return self.reach.tenant


_T = TypeVar("_T")


def settings(program: SinkProgram, kind: type[_T]) -> _T:
    """``program.settings`` as a struct of the sink's own. Raises UnknownSinkError with the field that is wrong."""
    return convert(program, program.settings, kind)


def convert(program: SinkProgram, value: object, kind: type[_T]) -> _T:
    """Some part of the program as ``kind``. Raises UnknownSinkError with the field that is wrong, or for a credential
    of another namespace: render never writes one, and whoever could make it do so would get no further.
    """
    name = f"sink {program.namespace}/{program.name} ({program.type})"
    try:
        converted = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise UnknownSinkError(f"{name}: {error}") from None
    for file in _files(converted):
        if not belongs(file, program.namespace):
            raise UnknownSinkError(f"{name}: {Path(file).name} is no credential of namespace {program.namespace}")
    return converted


def _files(value: object) -> Iterator[str]:
    """Of all credentials in settings."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from _files(each)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            inner = getattr(value, name)
            if isinstance(inner, str) and (isinstance(value, SecretFile) or name.endswith("_file")):
                yield inner
            yield from _files(inner)


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Base of sinks' settings: camelCase as in AuditSink, and nothing unknown."""


class SecretFile(Settings, frozen=True):
    """What a reference to a Secret or ConfigMap has become."""

    file: str


_LARGEST_SECRET: Final = 1 << 20
"""Bytes; that is the most a Secret can hold."""


def secret(reference: SecretFile) -> str:
    """The credential as it is now, without the line break at its end that editors leave. Blocking, some µs.

    Raises UnauthorizedError, without the value, if it is missing, empty or no text.
    """
    path = Path(reference.file)
    try:
        with path.open("rb") as stream:
            text = stream.read(_LARGEST_SECRET + 1).decode().rstrip("\r\n")
    except FileNotFoundError:
        raise UnauthorizedError(
            f"the credential {path.name} is missing; create the Secret that the sink names"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UnauthorizedError(f"the credential {path.name} cannot be read: {type(error).__name__}") from None
    if not text or len(text) > _LARGEST_SECRET:
        raise UnauthorizedError(f"the credential {path.name} is empty or too large")
    return text


def need_own_identity(program: SinkProgram, surroundings: Surroundings, *, given: bool) -> None:
    """Raises UnknownSinkError for a tenant's sink that would use the identity of the receiver's environment."""
    if surroundings.tenant and not given:
        raise UnknownSinkError(
            f"sink {program.namespace}/{program.name} ({program.type}): the receiver's own identity is not for "
            "tenants; refer to a Secret with credentials"
        )


def make(program: SinkProgram, surroundings: Surroundings) -> Sink:
    """The sink that the program describes; does no I/O. Raises UnknownSinkError."""
    name = f"sink {program.namespace}/{program.name}"
    module = MODULES.get(program.type)
    if module is None:
        raise UnknownSinkError(f"{name}: {program.type!r} is no sink type; there are {', '.join(MODULES)}")
    try:
        maker: Any = importlib.import_module(f"{__name__}.{module}")
        return cast("Sink", maker.make(program, surroundings))
    except ImportError as error:
        extra = EXTRAS.get(program.type)
        if extra is None:
            raise
        raise UnknownSinkError(
            f"{name}: {program.type} needs {error.name}, which is not installed; "
            f"install audit-operator[{extra}], or use the image, which has it"
        ) from None


def filled(template: str, program: SinkProgram, surroundings: Surroundings) -> str:
    """``template`` with {cluster} {namespace} {sink} {receiver} replaced; %Y %m %d %H stay."""
    for key, value in (
        ("cluster", surroundings.cluster),
        ("namespace", program.namespace),
        ("sink", program.name),
        ("receiver", surroundings.receiver),
    ):
        template = template.replace(f"{{{key}}}", value)
    return template


def dated(template: str, timestamp: str) -> str:
    """``template`` with %Y %m %d %H of an item's ``timestamp``, which is UTC."""
    if "%" not in template:
        return template
    year, month, day, hour = timestamp[:4], timestamp[5:7], timestamp[8:10], timestamp[11:13]
    for key, value in (("%Y", year), ("%m", month), ("%d", day), ("%H", hour)):
        template = template.replace(key, value)
    return template


_SECOND: Final = 10**9
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def nanoseconds(timestamp: str) -> int:
    """An item's ``timestamp`` since the epoch. Now, if the API server wrote none that can be read."""
    try:
        since = datetime.fromisoformat(timestamp) - _EPOCH
    except (TypeError, ValueError):
        return time.time_ns()
    return (since.days * 86400 + since.seconds) * _SECOND + since.microseconds * 1000


_VALUES: Final[Mapping[str, Callable[[Event], str]]] = {
    "level": lambda event: event.level,
    "stage": lambda event: event.stage,
    "verb": lambda event: event.verb,
    "code": lambda event: str(code(event) or ""),
    "user": lambda event: event.user.username,
    "namespace": lambda event: event.object_ref.namespace if event.object_ref else "",
    "apiGroup": lambda event: event.object_ref.api_group if event.object_ref else "",
    "resource": lambda event: event.object_ref.resource if event.object_ref else "",
    "subresource": lambda event: event.object_ref.subresource if event.object_ref else "",
    "name": lambda event: event.object_ref.name if event.object_ref else "",
    "auditID": lambda event: event.audit_id,
}


def value_of(event: Event, name: str) -> str:
    """The value of a field that settings name (EventField of AuditSink); empty if the event has none."""
    return _VALUES[name](event)


class _Status(msgspec.Struct):
    code: int = 0


_status: Final = msgspec.json.Decoder(_Status)


def code(event: Event) -> int | None:
    """The HTTP status of the answer to the client; None before there is one."""
    try:
        return _status.decode(event.response_status).code or None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
