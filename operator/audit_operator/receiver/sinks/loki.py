"""loki: Grafana Loki, by the push API.

An event of the same stream, time and text is stored once, however often it comes. Loki takes events up to an hour
behind the newest of their stream, and as old as its limits allow; a later one is sent with the time of delivery.
"""

import re
import time
from typing import Final

import msgspec

from audit_operator.receiver.compression import Compression
from audit_operator.receiver.sinks import (
    TAKEN,
    Batch,
    Item,
    MisconfiguredError,
    RefusedError,
    Result,
    Settings,
    SinkError,
    Surroundings,
    UnreachableError,
    nanoseconds,
    settings,
    value_of,
)
from audit_operator.receiver.sinks.web import Answer, Client, HttpAuth, error_of
from audit_operator.render.program import SinkProgram


class _Loki(Settings, frozen=True):
    url: str
    tenant_id: str | None = msgspec.field(default=None, name="tenantID")
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    event_labels: tuple[str, ...] = ("level", "verb")
    structured_metadata: tuple[str, ...] = ()
    auth: HttpAuth | None = None
    compression: Compression = "gzip"


def make(program: SinkProgram, surroundings: Surroundings) -> "Loki":
    """See `Sink`."""
    given = settings(program, _Loki)
    constants = {"job": "kubernetes-audit", "cluster": surroundings.cluster}
    constants |= {_label(name): value for name, value in given.labels.items()}
    client = Client(program, surroundings, auth=given.auth, compression=given.compression)
    return Loki(given, constants, client)


_MOST_STREAMS: Final = 500
"""Combinations of event labels, after which further ones share a stream. Clients choose names, even verbs (any HTTP
method), and Loki falls over many streams; its default limit is 5,000 for a tenant.
"""
_OTHER: Final = "other"
_LONGEST_VALUE: Final = 1024
"""Characters of a label's value; Loki's default limit is 2,048."""


class Loki:
    """Pushes to one tenant. ``constants``: labels of all streams."""

    def __init__(self, given: _Loki, constants: dict[str, str], client: Client) -> None:
        self._given = given
        self._constants = constants
        self._client = client
        self._url = f"{given.url.rstrip('/')}/loki/api/v1/push"
        self._known: set[tuple[str, ...]] = set()

    async def open(self) -> None:
        """Nothing to do: the first delivery connects."""

    async def deliver(self, batch: Batch) -> Result:
        """One push. Raises SinkError."""
        answer = await self._push(batch)
        error = _error(answer)
        if error is not None and len(batch.items) == 1 and isinstance(error, RefusedError) and _late(answer):
            # Refused for its time alone: the event has that in it, and must not be lost for it.
            error = _error(await self._push(batch, at=time.time_ns()))
        if error is not None:
            raise error
        return TAKEN

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def _push(self, batch: Batch, *, at: int | None = None) -> Answer:
        headers = {"Content-Type": "application/json"}
        if self._given.tenant_id is not None:
            headers["X-Scope-OrgID"] = self._given.tenant_id
        return await self._client.send("POST", self._url, self._body(batch, at), headers)

    def _body(self, batch: Batch, at: int | None) -> bytes:
        """Streams with their entries; ``at``: another time than the events'."""
        streams: dict[tuple[str, ...], list[object]] = {}
        for item in batch.items:
            streams.setdefault(self._stream(item), []).append(self._entry(item, at))
        names = [_label(name) for name in self._given.event_labels]
        return msgspec.json.encode(
            {
                "streams": [
                    {
                        "stream": self._constants
                        | {name: value for name, value in zip(names, values, strict=True) if value},
                        "values": entries,
                    }
                    for values, entries in streams.items()
                ]
            }
        )

    def _stream(self, item: Item) -> tuple[str, ...]:
        wanted = self._given.event_labels
        if not wanted:
            return ()
        event = item.event
        values = tuple(value_of(event, name)[:_LONGEST_VALUE] for name in wanted)
        if values not in self._known:
            if len(self._known) >= _MOST_STREAMS:
                return (_OTHER,) * len(wanted)
            self._known.add(values)
        return values

    def _entry(self, item: Item, at: int | None) -> list[object]:
        entry: list[object] = [
            str(nanoseconds(item.timestamp) if at is None else at),
            item.data.decode(errors="replace"),
        ]
        if self._given.structured_metadata:
            event = item.event
            values = {_label(name): value_of(event, name) for name in self._given.structured_metadata}
            entry.append({name: value for name, value in values.items() if value})
        return entry


_LATE: Final = re.compile(
    rb"too far behind|out of order|timestamp too (?:old|new)|(?:older|newer) than (?:the )?(?:oldest|newest)|ahead of",
    re.IGNORECASE,
)


def _late(answer: Answer) -> bool:
    return _LATE.search(answer.body) is not None


_LIMITS: Final = re.compile(rb"no org id|label names?|structured metadata|max_label", re.IGNORECASE)
"""Errors with status 400 that are about the settings of the sink or of Loki."""


def _error(answer: Answer) -> SinkError | None:
    error = error_of(answer)
    if error is None and answer.body:
        return UnreachableError(f"HTTP {answer.status} with a text, but Loki answers 204; is this Loki?", sent=True)
    if answer.status == 400:
        # The text quotes labels and times, and no event.
        if _LIMITS.search(answer.body) and not _late(answer):
            return MisconfiguredError(str(error))
        return error
    return error


def _label(name: str) -> str:
    """A name in the form of Loki's labels: ``apiGroup`` -> ``api_group``."""
    snake = re.sub(r"(?<=[a-z0-9])([A-Z]+)", lambda found: f"_{found[0].lower()}", name)
    clean = re.sub(r"[^A-Za-z0-9_]", "_", snake)
    return f"_{clean}" if clean[:1].isdigit() else clean
