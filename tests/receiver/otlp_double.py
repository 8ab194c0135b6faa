"""An OTLP server as the specification describes it, with partial success.

https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults import Reply, Request
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from sink_cases import credential


class Otlp:
    """Log records. ``rejects``: whether it drops one, of which it tells no more than the number."""

    kind = "otlp"
    exactly_once = False

    def __init__(self, rejects: Callable[[LogRecord], bool] = lambda _: False) -> None:
        self.rejects = rejects
        self.records: list[LogRecord] = []
        self.requests: list[ExportLogsServiceRequest] = []

    @property
    def taken(self) -> list[str]:
        """auditIDs in the order of arrival."""
        return [json.loads(record.body.string_value)["auditID"] for record in self.records]

    def spec(self, url: str, folder: Path) -> dict[str, Any]:
        """The AuditSink's settings."""
        credential(folder, "otlp", "token", "0tlp-s3cret")
        return {"url": url, "auth": {"bearerToken": {"name": "otlp", "key": "token"}}}

    def answer(self, request: Request) -> Reply:
        """One request."""
        if request.headers.get("authorization") != "Bearer 0tlp-s3cret":
            return Reply(401, b"")
        if (request.method, request.path) != ("POST", "/v1/logs"):
            return Reply(404, b"404 page not found")
        kind = request.headers.get("content-type", "")
        sent = ExportLogsServiceRequest()
        if kind == "application/x-protobuf":
            sent.ParseFromString(request.body)
        elif kind == "application/json":
            json_format.Parse(request.body, sent)
            (record, *_) = json.loads(request.body)["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
            assert record["severityNumber"] == 9, "enums are numbers"
        else:
            return Reply(415, b"unsupported media type")
        self.requests.append(sent)
        rejected = 0
        for resource in sent.resource_logs:
            for scope in resource.scope_logs:
                for record in scope.log_records:
                    if self.rejects(record):
                        rejected += 1
                    else:
                        self.records.append(record)
        answer = ExportLogsServiceResponse()
        if rejected:
            answer.partial_success.CopyFrom(
                ExportLogsPartialSuccess(rejected_log_records=rejected, error_message="too large")
            )
        if kind == "application/json":
            return Reply(200, json_format.MessageToJson(answer).encode(), {"Content-Type": kind})
        return Reply(200, answer.SerializeToString(), {"Content-Type": kind})
