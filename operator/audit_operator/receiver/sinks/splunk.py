"""splunk: the HTTP Event Collector.

Without acknowledgement "taken" means that the collector has the events in memory. With it, that an indexer has written
them: each request has a number in a channel, about which the collector is asked until it says yes.
"""

import asyncio
import hashlib
import itertools
import time
import uuid
from dataclasses import dataclass
from typing import Final

import msgspec

from audit_operator.receiver.compression import Compression
from audit_operator.receiver.sinks import (
    TAKEN,
    Batch,
    MisconfiguredError,
    RefusedError,
    Result,
    SecretFile,
    Settings,
    Surroundings,
    ThrottledError,
    TooLargeError,
    UnreachableError,
    filled,
    nanoseconds,
    secret,
    settings,
)
from audit_operator.receiver.sinks.web import Answer, Client, decoded, error_of
from audit_operator.render.program import SinkProgram


class _Splunk(Settings, frozen=True):
    url: str
    token: SecretFile
    source: str
    sourcetype: str
    host: str
    index: str | None = None
    acknowledgement: bool = False
    compression: Compression = "gzip"


def make(program: SinkProgram, surroundings: Surroundings) -> "Splunk":
    """See `Sink`."""
    given = settings(program, _Splunk)
    constants = {
        "host": filled(given.host, program, surroundings),
        "source": filled(given.source, program, surroundings),
        "sourcetype": given.sourcetype,
        **({} if given.index is None else {"index": given.index}),
    }
    client = Client(program, surroundings, compression=given.compression)
    return Splunk(given, constants, client, program.timeout * _OF_THE_TIMEOUT)


_POLLS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds between questions about an acknowledgement; then the last one over and over, for most of the timeout."""
_OF_THE_TIMEOUT: Final = 0.9
"""After which it is said that no indexer has the events yet. That is no failure that an event may be the cause of."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """Where to ask about a request, and since when (`time.monotonic`); nothing of the events themselves.

    Each request has a channel of its own: a collector that was restarted counts from 0 again, and a number of before
    could otherwise be that of another request.
    """

    channel: str
    number: int
    since: float


class Splunk:
    """Requests to one collector. ``constants``: metadata that all events share. ``patience``: seconds in which a
    delivery asks for an acknowledgement.
    """

    def __init__(self, given: _Splunk, constants: dict[str, str], client: Client, patience: float) -> None:
        self._given = given
        self._constants = constants
        self._client = client
        self._base = f"{given.url.rstrip('/')}/services/collector"
        self._patience = patience
        self._waiting: dict[bytes, _Sent] = {}
        self._acknowledges = False
        """Whether the collector has said so, and nothing else since."""
        self._unanswered: set[bytes] = set()
        """What it took without a number. That is never sent again, unless acknowledgement was off and is on now."""

    async def open(self) -> None:
        """Nothing to do: the first delivery connects."""

    async def deliver(self, batch: Batch) -> Result:
        """One request, and with acknowledgement as many questions as it takes. Raises SinkError."""
        if self._given.acknowledgement:
            await self._acknowledged(batch)
        else:
            _checked(await self._send("/event", self._body(batch)))
        return TAKEN

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def _acknowledged(self, batch: Batch) -> None:
        """After a timeout the same events are asked about, not sent, again; after too long they are sent again."""
        begun = time.monotonic()
        events = hashlib.blake2b("".join(batch.ids()).encode(), digest_size=16).digest()
        sent = self._waiting.pop(events, None)
        if sent is None or time.monotonic() - sent.since > _PATIENCE:
            await self._can_acknowledge()
            if events in self._unanswered:
                raise MisconfiguredError(_NO_NUMBER)
            channel = str(uuid.uuid4())
            said = _checked(await self._send("/event", self._body(batch), channel))
            if said.ack_id is None:
                self._acknowledges = False
                self._unanswered.add(events)
                raise MisconfiguredError(_NO_NUMBER)
            sent = _Sent(channel, said.ack_id, time.monotonic())
        try:
            acknowledged = await self._answered(sent, begun + self._patience)
        except asyncio.CancelledError:
            self._remember(events, sent)
            raise
        if not acknowledged:
            self._remember(events, sent)
            raise UnreachableError("no indexer has acknowledged the events yet")

    async def _can_acknowledge(self) -> None:
        """Ask before anything is sent: what a collector takes without acknowledging it would be sent over and over.
        Raises SinkError.
        """
        if self._acknowledges:
            return
        try:
            said = _checked(await self._send("/ack", b'{"acks":[0]}', str(uuid.uuid4())))
        except TooLargeError:
            raise  # of a proxy, and not about this question
        except (MisconfiguredError, RefusedError) as error:
            self._unanswered.clear()  # it is off; what was taken without a number will have one once it is on
            raise MisconfiguredError(f"{_NO_NUMBER} ({error})") from None
        if said.acks is None:
            raise MisconfiguredError(_NO_NUMBER)
        self._acknowledges = True

    async def _answered(self, sent: _Sent, until: float) -> bool:
        """Ask until an indexer has the events, or the time has come. Raises SinkError: the collector may know nothing
        of them any more.
        """
        question = msgspec.json.encode({"acks": [sent.number]})
        for wait in itertools.chain(_POLLS, itertools.repeat(_POLLS[-1])):
            acks = _checked(await self._send("/ack", question, sent.channel)).acks
            if acks is not None and acks.get(str(sent.number)):
                return True
            if time.monotonic() - sent.since > _PATIENCE:
                raise UnreachableError("no indexer has acknowledged the events")
            if time.monotonic() + wait > until:
                return False
            await asyncio.sleep(wait)
        raise AssertionError

    def _remember(self, events: bytes, sent: _Sent) -> None:
        while len(self._waiting) >= _MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]
        self._waiting[events] = sent

    async def _send(self, path: str, body: bytes, channel: str | None = None) -> Answer:
        headers = {"Authorization": f"Splunk {secret(self._given.token)}", "Content-Type": "application/json"}
        if channel is not None:
            headers["X-Splunk-Request-Channel"] = channel
        return await self._client.send("POST", f"{self._base}{path}", body, headers)

    def _body(self, batch: Batch) -> bytes:
        """Events one after the other, without an array around them."""
        events = []
        for item, name in zip(batch.items, batch.ids(), strict=True):
            seconds, rest = divmod(nanoseconds(item.timestamp), 10**9)
            metadata = {
                "time": f"{seconds}.{rest // 1000:06}",
                **self._constants,
                "fields": {"audit_operator_id": name},
            }
            events.append(msgspec.json.encode({**metadata, "event": msgspec.Raw(item.data)}))
        return b"\n".join(events)


_NO_NUMBER: Final = (
    "the collector acknowledges nothing; turn acknowledgement on for the token, or leave acknowledgement out"
)
_PATIENCE: Final = 300.0
"""Seconds that Splunk advises to wait before sending again."""
_MOST_WAITING: Final = 64

_BUSY: Final = frozenset({9, 18, 19, 20, 23, 26, 27})
"""Codes for "not now": busy, queues or acknowledgements full, shutting down."""
_SETTINGS: Final = {
    7: "the token may not write to this index; correct index, or the token's list of indexes",
    10: "the token has acknowledgement on; write acknowledgement: true",
    11: "the collector refuses the channel",
    14: "the token has acknowledgement off; turn it on, or leave acknowledgement out",
    15: "the collector refuses indexed fields",
}
"""Codes that come with status 400 and are not about the events."""


class _Said(msgspec.Struct, rename="camel"):
    code: int | None = None
    ack_id: int | None = None
    acks: dict[str, bool] | None = None


_said = msgspec.json.Decoder(_Said)


def _checked(answer: Answer) -> _Said:
    """The answer's body. Raises SinkError."""
    if not answer.body and 200 <= answer.status < 300:
        return _Said(code=0)  # some that speak this protocol take events without a word
    said = decoded(_said, answer.body) or _Said()
    if error := error_of(answer):
        code = said.code
        if code in _BUSY and answer.status not in (401, 403):
            raise ThrottledError(str(error), retry_after=error.retry_after)
        if answer.status == 400 and code in _SETTINGS:
            raise MisconfiguredError(f"{_SETTINGS[code]} ({error})")
        raise error
    if said.code != 0 and said.acks is None:
        raise UnreachableError(f"HTTP {answer.status}, but no answer of a collector; is this Splunk?", sent=True)
    return said
