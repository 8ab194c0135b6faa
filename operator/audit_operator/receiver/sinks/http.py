"""http: any HTTP server. Any 2xx means that it has the events.

A repeated request carries the same ``Idempotency-Key``. With a signature the receiver of the request can tell that it
is ours, unchanged and new: ``t=<seconds>,v1=<hex>``, the HMAC-SHA256 of ``<seconds>.`` and the body as sent.
"""

import hashlib
import hmac
import time
from typing import Literal

from audit_operator.receiver.compression import Compression
from audit_operator.receiver.sinks import TAKEN, Batch, Result, SecretFile, Settings, Surroundings, secret, settings
from audit_operator.receiver.sinks.web import Client, Header, HttpAuth, error_of, not_ours
from audit_operator.render.program import SinkProgram

_Encoding = Literal["NDJSON", "JSONArray", "EventList"]


class _Signature(Settings, frozen=True):
    secret: SecretFile
    header: str


class _Http(Settings, frozen=True):
    url: str
    method: Literal["POST", "PUT"] = "POST"
    encoding: _Encoding = "NDJSON"
    headers: tuple[Header, ...] = ()
    auth: HttpAuth | None = None
    signature: _Signature | None = None
    compression: Compression = "None"


def make(program: SinkProgram, surroundings: Surroundings) -> "Http":
    """See `Sink`."""
    given = settings(program, _Http)
    if given.signature is not None:
        not_ours(program, given.signature.header)
    client = Client(program, surroundings, auth=given.auth, headers=given.headers, compression=given.compression)
    return Http(given, client)


class Http:
    """Requests with events to one URL."""

    def __init__(self, given: _Http, client: Client) -> None:
        self._given = given
        self._client = client

    async def open(self) -> None:
        """Nothing to do: the first delivery connects."""

    async def deliver(self, batch: Batch) -> Result:
        """One request. Raises SinkError."""
        given = self._given
        body = encoded(batch, given.encoding)
        headers = {
            "Content-Type": "application/x-ndjson" if given.encoding == "NDJSON" else "application/json",
            "Idempotency-Key": hashlib.sha256("".join(batch.ids()).encode()).hexdigest()[:32],
        }
        answer = await self._client.send(given.method, given.url, body, headers, sign=self._sign)
        if error := error_of(answer):
            raise error
        return TAKEN

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def _sign(self, sent: bytes) -> dict[str, str]:
        wanted = self._given.signature
        if wanted is None:
            return {}
        return {wanted.header: signature(secret(wanted.secret).encode(), int(time.time()), sent)}


def encoded(batch: Batch, encoding: _Encoding) -> bytes:
    """The events of a batch as one body."""
    events = [item.data for item in batch.items]
    match encoding:
        case "NDJSON":
            return b"\n".join(events) + b"\n"
        case "JSONArray":
            return b"[" + b",".join(events) + b"]"
        case "EventList":
            head = b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":['
            return head + b",".join(events) + b"]}"


def signature(key: bytes, seconds: int, body: bytes) -> str:
    """The value of the signature's header. The time is signed too, so that a recorded request is soon worth nothing."""
    digest = hmac.new(key, b"%d." % seconds + body, "sha256").hexdigest()
    return f"t={seconds},v1={digest}"
