"""cloudWatch: Amazon CloudWatch Logs, by PutLogEvents.

A request takes 10,000 events, 1 MiB in which each event counts 26 bytes more, and 24 hours, in the order of time.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from audit_operator.receiver.formats import Formatter, formatter, without_bodies
from audit_operator.receiver.sinks import (
    TAKEN,
    Batch,
    MisconfiguredError,
    Refusal,
    RefusedError,
    Result,
    Settings,
    SinkError,
    Surroundings,
    ThrottledError,
    UnauthorizedError,
    UnreachableError,
    dated,
    filled,
    nanoseconds,
    need_own_identity,
    settings,
)
from audit_operator.receiver.sinks.aws import AwsAuth, Signer, domain
from audit_operator.receiver.sinks.web import Answer, Client, decoded, error_of
from audit_operator.render.program import SinkProgram


class _CloudWatch(Settings, frozen=True):
    region: str
    log_group: str
    log_stream: str
    create_log_group: bool
    auth: AwsAuth
    retention_days: int | None = None
    kms_key_id: str | None = msgspec.field(default=None, name="kmsKeyID")
    endpoint: str | None = None


def make(program: SinkProgram, surroundings: Surroundings) -> "CloudWatch":
    """See `Sink`."""
    given = settings(program, _CloudWatch)
    need_own_identity(program, surroundings, given=given.auth.access_key_id is not None)
    client = Client(program, surroundings)
    group = filled(given.log_group, program, surroundings)
    stream = filled(given.log_stream, program, surroundings)
    signer = Signer(given.auth, given.region, "logs", client, endpoint=given.endpoint)
    return CloudWatch(given, (group, stream), client, signer, formatter(program, surroundings.cluster))


_MOST_EVENTS: Final = 10_000
_MOST_BYTES: Final = 1_048_576
_OVERHEAD: Final = 26
_LONGEST_SPAN: Final = 24 * 3600 * 1000 - 1
"""Milliseconds."""


class _Entry(msgspec.Struct, gc=False):
    at: int
    milliseconds: int
    text: str
    size: int


class _Dropped(msgspec.Struct, rename="camel"):
    too_old_log_event_end_index: int | None = None
    expired_log_event_end_index: int | None = None
    too_new_log_event_start_index: int | None = None


class _Said(msgspec.Struct):
    kind: str | None = msgspec.field(default=None, name="__type")
    dropped: _Dropped | None = msgspec.field(default=None, name="rejectedLogEventsInfo")


_said = msgspec.json.Decoder(_Said)


class CloudWatch:
    """Requests to log streams of one group. ``names``: group and stream; the latter may hold %Y %m %d %H."""

    def __init__(
        self, given: _CloudWatch, names: tuple[str, str], client: Client, signer: Signer, formatted: Formatter
    ) -> None:
        self._given = given
        self._group, self._stream = names
        self._client = client
        self._signer = signer
        self._formatted = formatted
        self._url = f"{(given.endpoint or f'https://logs.{given.region}.{domain(given.region)}').rstrip('/')}/"

    async def open(self) -> None:
        """Nothing to do: what is missing is created when the first delivery finds out."""

    async def deliver(self, batch: Batch) -> Result:
        """As many requests as the limits ask for. Raises SinkError if the first one fails."""
        entries, refused = self._entries(batch)
        done: set[int] = {each.at for each in refused}
        for stream, part in self._parts(batch, entries):
            try:
                refused += await self._put(stream, part)
            except SinkError as error:
                if not done:
                    raise
                left = [entry.at for entry in entries if entry.at not in done]
                return Result(retry=left, refused=refused, retry_after=error.retry_after, reason=str(error))
            done |= {entry.at for entry in part}
        return Result(refused=refused) if refused else TAKEN

    async def close(self) -> None:
        """Close all connections."""
        self._signer.stop()
        await self._client.close()

    def _entries(self, batch: Batch) -> tuple[list[_Entry], list[Refusal]]:
        """In the order of time, which is stable: events of one moment stay as they came."""
        entries, refused = [], []
        for at, item in enumerate(batch.items):
            data = item.data
            if len(data) + _OVERHEAD > _MOST_BYTES:
                data = self._formatted(without_bodies(item.audit))
            if len(data) + _OVERHEAD > _MOST_BYTES:
                refused.append(
                    Refusal(
                        at, "is larger than 1 MiB, which is what CloudWatch takes, even without bodies", certain=True
                    )
                )
                continue
            text = data.decode(errors="replace")
            entries.append(_Entry(at, nanoseconds(item.timestamp) // 10**6, text, len(data) + _OVERHEAD))
        entries.sort(key=lambda entry: entry.milliseconds)
        return entries, refused

    def _parts(self, batch: Batch, entries: Sequence[_Entry]) -> Iterator[tuple[str, list[_Entry]]]:
        """Requests within the limits, each for one stream."""
        streams: dict[str, list[_Entry]] = {}
        for entry in entries:
            streams.setdefault(dated(self._stream, batch.items[entry.at].timestamp), []).append(entry)
        for stream, all_of_it in streams.items():
            part: list[_Entry] = []
            size = 0
            for entry in all_of_it:
                if part and (
                    len(part) == _MOST_EVENTS
                    or size + entry.size > _MOST_BYTES
                    or entry.milliseconds - part[0].milliseconds > _LONGEST_SPAN
                ):
                    yield stream, part
                    part, size = [], 0
                part.append(entry)
                size += entry.size
            if part:
                yield stream, part

    async def _put(self, stream: str, part: Sequence[_Entry]) -> list[Refusal]:
        """One request; what is missing for it is created. What it refuses for good. Raises SinkError."""
        asked = {
            "logGroupName": self._group,
            "logStreamName": stream,
            "logEvents": [{"timestamp": entry.milliseconds, "message": entry.text} for entry in part],
        }
        try:
            said = await self._call("PutLogEvents", asked)
        except _MissingError:
            await self._create(stream)
            said = await self._call("PutLogEvents", asked)
        return _rejected(said, part)

    async def _create(self, stream: str) -> None:
        where = {"logGroupName": self._group, "logStreamName": stream}
        try:
            await self._call("CreateLogStream", where)
        except _MissingError:
            if not self._given.create_log_group:
                raise
            key = self._given.kms_key_id
            await self._call("CreateLogGroup", {"logGroupName": self._group, **({"kmsKeyId": key} if key else {})})
            if self._given.retention_days is not None:
                await self._call(
                    "PutRetentionPolicy",
                    {"logGroupName": self._group, "retentionInDays": self._given.retention_days},
                )
            await self._call("CreateLogStream", where)

    async def _call(self, operation: str, asked: dict[str, Any]) -> _Said:
        headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": f"Logs_20140328.{operation}"}
        body = msgspec.json.encode(asked)
        sign = await self._signer.prepared("POST", self._url, headers)
        answer = await self._client.send("POST", self._url, body, headers, sign=sign)
        return _checked(answer, operation)


class _MissingError(MisconfiguredError):
    """A log group or stream is not there."""


_TAKEN_BEFORE: Final = frozenset({"DataAlreadyAcceptedException", "ResourceAlreadyExistsException"})
_THROTTLED: Final = frozenset({"ThrottlingException", "LimitExceededException", "RequestLimitExceeded"})
_UNAUTHORIZED: Final = frozenset(
    {
        "AccessDeniedException", "ExpiredTokenException", "IncompleteSignatureException", "InvalidClientTokenId",
        "InvalidSignatureException", "MissingAuthenticationTokenException", "OptInRequired",
        "UnrecognizedClientException",
    }
)  # fmt: skip
"""Errors of AWS' JSON protocol, which come with status 400."""


def _checked(answer: Answer, operation: str) -> _Said:
    """The answer's body. Raises SinkError."""
    said = decoded(_said, answer.body or b"{}")
    error = error_of(answer)
    if error is None:
        if said is None:
            raise UnreachableError(f"HTTP {answer.status}, but no answer of CloudWatch Logs", sent=True)
        return said
    kind = ((said.kind if said else None) or "").rpartition("#")[2]
    if kind in _TAKEN_BEFORE:
        return _Said()
    if kind == "ResourceNotFoundException":
        raise _MissingError(f"{operation}: {error}")
    if kind in _THROTTLED:
        raise ThrottledError(str(error), retry_after=error.retry_after)
    if kind in _UNAUTHORIZED:
        raise UnauthorizedError(str(error))
    if isinstance(error, RefusedError) and operation != "PutLogEvents":
        raise MisconfiguredError(f"{operation}: {error}")
    raise error


def _rejected(said: _Said, part: Sequence[_Entry]) -> list[Refusal]:
    """Events at the start that are too old, and at the end that are too new, are dropped with status 200."""
    info = said.dropped or _Dropped()
    refused = []
    old = max(info.too_old_log_event_end_index or 0, info.expired_log_event_end_index or 0)
    new = len(part) if info.too_new_log_event_start_index is None else info.too_new_log_event_start_index
    for place, entry in enumerate(part):
        if place < old:
            refused.append(Refusal(entry.at, "is older than 14 days or the log group's retention", certain=True))
        elif place >= new:
            refused.append(Refusal(entry.at, "is more than 2 hours in the future", certain=True))
    return refused
