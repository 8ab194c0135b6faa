"""Elasticsearch's bulk API as its reference describes it: strict in what it takes, with errors per document.

https://www.elastic.co/docs/api/doc/elasticsearch/operation/operation-bulk
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from faults import Reply, Request
from sink_cases import credential

KEY = "VnVhQ2ZHY0JDZGJrUW0tZTVhT3g6dWkybHAyYXhUTm1zeWFrdzl0dk5udw=="

Verdict = Callable[[dict[str, Any]], tuple[int, str, str] | None]
"""A document -> status, type and reason of what is wrong with it, None if nothing."""


class Elasticsearch:
    """Documents by index and id. ``verdict``: what it says of a document before it stores it."""

    kind = "elasticsearch"
    exactly_once = True

    def __init__(self, verdict: Verdict = lambda _: None) -> None:
        self.verdict = verdict
        self.stored: dict[tuple[str, str], dict[str, Any]] = {}
        self.pipelines: list[str] = []

    @property
    def taken(self) -> list[str]:
        """auditIDs in the order of arrival."""
        return [document["auditID"] for document in self.stored.values()]

    def spec(self, url: str, folder: Path) -> dict[str, Any]:
        """The AuditSink's settings."""
        credential(folder, "es", "apiKey", KEY)
        return {"urls": [url], "auth": {"apiKey": {"name": "es", "key": "apiKey"}}}

    def answer(self, request: Request) -> Reply:
        """One request."""
        if request.headers.get("authorization") != f"ApiKey {KEY}":
            return _error(401, "security_exception", "unable to authenticate")
        parts = urlsplit(request.path)
        if (request.method, parts.path) != ("POST", "/_bulk"):
            return _error(405, "method_not_allowed", f"Incorrect HTTP method for uri [{parts.path}]")
        if request.headers.get("content-type") not in ("application/x-ndjson", "application/json"):
            return _error(406, "media_type_header_exception", "Content-Type header is not supported")
        if not request.body.endswith(b"\n"):
            return _error(400, "illegal_argument_exception", "The bulk request must be terminated by a newline [\\n]")
        query = parse_qs(parts.query, strict_parsing=True)
        assert query.keys() <= {"filter_path", "pipeline"}
        self.pipelines += query.get("pipeline", [])
        lines = request.body[:-1].split(b"\n")
        if len(lines) % 2:
            return _error(400, "illegal_argument_exception", "Malformed action/metadata line")
        items = [
            self._one(json.loads(action), document) for action, document in zip(lines[::2], lines[1::2], strict=True)
        ]
        errors = any("error" in item["create"] for item in items)
        return Reply(200, json.dumps({"errors": errors, "items": items}).encode())

    def _one(self, action: dict[str, Any], source: bytes) -> dict[str, Any]:
        ((operation, meta),) = action.items()
        assert operation == "create", "data streams take nothing else"
        assert meta.keys() == {"_index", "_id"}
        assert len(meta["_id"]) <= 512
        try:
            document = json.loads(source)
        except ValueError:
            return _failed(400, "document_parsing_exception", "failed to parse")
        if meta["_index"].startswith("logs-") and "@timestamp" not in document:
            return _failed(400, "document_parsing_exception", "data stream timestamp field [@timestamp] is missing")
        if found := self.verdict(document):
            return _failed(*found)
        place = (meta["_index"], meta["_id"])
        if place in self.stored:
            return _failed(409, "version_conflict_engine_exception", "document already exists (current version [1])")
        self.stored[place] = document
        return {"create": {"status": 201}}


def _failed(status: int, kind: str, reason: str) -> dict[str, Any]:
    return {"create": {"status": status, "error": {"type": kind, "reason": reason}}}


def _error(status: int, kind: str, reason: str) -> Reply:
    return Reply(status, json.dumps({"error": {"type": kind, "reason": reason}, "status": status}).encode())
