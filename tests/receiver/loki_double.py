"""Loki's push API as its documentation describes it: limits on labels, time windows, and what is stored once.

https://grafana.com/docs/loki/latest/reference/loki-http-api/#ingest-logs and
https://grafana.com/docs/loki/latest/operations/request-validation-rate-limits/
"""

import json
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

from faults import Reply, Request
from sink_cases import credential

_HOUR = 3600 * 10**9


class Loki:
    """Entries by stream. ``too_old``: an entry before this moment (ns) is refused; None: none is."""

    kind = "loki"
    exactly_once = True

    def __init__(self, too_old: int | None = None) -> None:
        self.too_old = too_old
        self.streams: dict[tuple[tuple[str, str], ...], dict[tuple[int, str], dict[str, str]]] = {}
        self._order: list[str] = []

    @property
    def taken(self) -> list[str]:
        """auditIDs in the order of arrival."""
        return [json.loads(line)["auditID"] for line in self._order]

    def spec(self, url: str, folder: Path) -> dict[str, Any]:
        """The AuditSink's settings."""
        credential(folder, "loki", "password", "l0ki-s3cret")
        auth = {"basic": {"username": "tenant", "password": {"name": "loki", "key": "password"}}}
        return {"url": url, "tenantID": "team-a", "auth": auth}

    def answer(self, request: Request) -> Reply:
        """One request."""
        if request.headers.get("authorization") != "Basic " + b64encode(b"tenant:l0ki-s3cret").decode():
            return Reply(401, b"Unauthorized")
        if request.headers.get("x-scope-orgid") != "team-a":
            return Reply(401, b"no org id")
        if (request.method, request.path) != ("POST", "/loki/api/v1/push"):
            return Reply(404, b"404 page not found")
        if request.headers.get("content-type") != "application/json":
            return Reply(415, b"unsupported content type")
        late = []
        for stream in json.loads(request.body)["streams"]:
            labels = stream["stream"]
            if len(labels) > 15:
                return Reply(400, b"stream has 16 label names; limit 15")
            for name, value in labels.items():
                assert re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", name)
                assert isinstance(value, str)
                assert 0 < len(value) <= 2048
            late += self._store(tuple(sorted(labels.items())), stream["values"])
        if late:
            return Reply(400, f"entry {'; '.join(late)}, total ignored: {len(late)}".encode())
        return Reply(204, b"")

    def _store(self, labels: tuple[tuple[str, str], ...], values: list[list[Any]]) -> list[str]:
        entries, late = self.streams.setdefault(labels, {}), []
        for value in values:
            assert isinstance(value[0], str), "nanoseconds as a string"
            when, line = int(value[0]), value[1]
            metadata = value[2] if len(value) > 2 else {}
            assert all(isinstance(each, str) for each in metadata.values())
            if self.too_old is not None and when < self.too_old:
                late.append(f"with timestamp {when} ignored, reason: 'entry too far behind'")
            elif (when, line) not in entries:
                entries[when, line] = metadata
                self._order.append(line)
        return late
