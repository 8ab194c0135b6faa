"""otlp: an OpenTelemetry collector or backend, by OTLP over HTTP; one log record per event, whose body is its text."""

import re
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs, SeverityNumber
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from audit_operator import __version__
from audit_operator.receiver.compression import Compression
from audit_operator.receiver.sinks import (
    TAKEN,
    Batch,
    Item,
    RefusedError,
    Result,
    Settings,
    Surroundings,
    UnreachableError,
    code,
    nanoseconds,
    settings,
)
from audit_operator.receiver.sinks.web import Answer, Client, Header, HttpAuth, decoded, error_of
from audit_operator.render.program import SinkProgram


class _Otlp(Settings, frozen=True):
    url: str
    encoding: Literal["Protobuf", "JSON"]
    resource_attributes: dict[str, str]
    headers: tuple[Header, ...] = ()
    auth: HttpAuth | None = None
    compression: Compression = "gzip"


def make(program: SinkProgram, surroundings: Surroundings) -> "Otlp":
    """See `Sink`."""
    given = settings(program, _Otlp)
    client = Client(program, surroundings, auth=given.auth, headers=given.headers, compression=given.compression)
    return Otlp(given, surroundings.cluster, client)


class Otlp:
    """Requests to one server."""

    def __init__(self, given: _Otlp, cluster: str, client: Client) -> None:
        self._json = given.encoding == "JSON"
        self._url = given.url if urlsplit(given.url).path.strip("/") else f"{given.url.rstrip('/')}/v1/logs"
        self._client = client
        attributes = {"service.name": "kube-apiserver", "k8s.cluster.name": cluster} | given.resource_attributes
        self._resource = Resource(attributes=_attributes(attributes))
        self._scope = InstrumentationScope(name="audit-operator", version=__version__)

    async def open(self) -> None:
        """Nothing to do: the first delivery connects."""

    async def deliver(self, batch: Batch) -> Result:
        """One request. Raises SinkError."""
        records = [_record(item, name) for item, name in zip(batch.items, batch.ids(), strict=True)]
        request = ExportLogsServiceRequest(
            resource_logs=[
                ResourceLogs(resource=self._resource, scope_logs=[ScopeLogs(scope=self._scope, log_records=records)])
            ]
        )
        if self._json:
            # OTLP's JSON writes enums as numbers, and leaves out what is not set.
            body = json_format.MessageToJson(request, use_integers_for_enums=True, indent=None).encode()
            kind = "application/json"
        else:
            body, kind = request.SerializeToString(), "application/x-protobuf"
        answer = await self._client.send("POST", self._url, body, {"Content-Type": kind})
        if error := error_of(answer):
            raise error
        rejected, reason = self._rejected(answer)
        if rejected > 0:
            # It does not say which. One by one it does: halved, until the rejected ones are alone.
            raise RefusedError(
                f"{rejected} of {len(batch.items)} log records are rejected: "
                f"{_printable(reason) if answer.quoted else 'its reason is not shown'}"
            )
        return TAKEN

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def _rejected(self, answer: Answer) -> tuple[int, str]:
        """How many records, and why."""
        if not answer.body:
            # Nothing was rejected, or nothing is ever said: Loki answers 204, Fluent Bit 201.
            return 0, ""
        if answer.body.lstrip()[:1] == b"{":  # some answer so whatever they were asked in; no protobuf begins like that
            if (said := decoded(_response, answer.body)) is not None:
                partial = said.partial_success or _Partial()
                return int(partial.rejected_log_records or 0), partial.error_message or ""
        elif not self._json:
            try:
                response = ExportLogsServiceResponse.FromString(answer.body)
            except (DecodeError, UnicodeDecodeError):
                pass
            else:
                return response.partial_success.rejected_log_records, response.partial_success.error_message
        raise UnreachableError(f"HTTP {answer.status}, but no answer of OTLP; is this its address?", sent=True)


class _Partial(msgspec.Struct, rename="camel"):
    # protobuf's JSON writes 64 bits as text, and takes both.
    rejected_log_records: int | Annotated[str, msgspec.Meta(pattern="^[0-9]{1,19}$")] | None = None
    error_message: str | None = None


class _Response(msgspec.Struct, rename="camel"):
    partial_success: _Partial | None = None


_response = msgspec.json.Decoder(_Response)


def _record(item: Item, name: str) -> LogRecord:
    event = item.event
    status = code(event)
    time = nanoseconds(item.timestamp)
    texts = {
        "log.record.uid": name,
        "audit.id": item.audit_id,
        "audit.level": event.level,
        "audit.stage": item.stage,
        "audit.verb": event.verb,
        "audit.server": item.server,
        "user.name": event.user.username,
        "k8s.namespace.name": event.object_ref.namespace if event.object_ref else "",
        "k8s.resource.name": event.object_ref.resource if event.object_ref else "",
    }
    attributes = _attributes({key: text for key, text in texts.items() if text})
    if status is not None:
        attributes.append(KeyValue(key="http.response.status_code", value=AnyValue(int_value=status)))
    return LogRecord(
        time_unix_nano=time,
        observed_time_unix_nano=time,
        severity_number=SeverityNumber.SEVERITY_NUMBER_INFO,
        severity_text="INFO",
        event_name="kubernetes.audit",
        body=AnyValue(string_value=item.data.decode(errors="replace")),
        attributes=attributes,
    )


def _attributes(values: dict[str, str]) -> list[KeyValue]:
    return [KeyValue(key=key, value=AnyValue(string_value=_clean(value))) for key, value in values.items()]


_HALVES: Final = re.compile("[\ud800-\udfff]")


def _clean(text: str) -> str:
    """Text that UTF-8 can hold: protobuf refuses halves of surrogate pairs."""
    return _HALVES.sub("\ufffd", text)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:200])
