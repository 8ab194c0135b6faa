"""Splunk's HTTP Event Collector as its documentation describes it, with indexer acknowledgement.

https://help.splunk.com/en/splunk-enterprise/get-data-in/collect-http-event-data ("Format events for HTTP Event
Collector", "About HTTP Event Collector Indexer Acknowledgment", "Troubleshoot": the codes)
"""

import json
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

from faults import Reply, Request
from sink_cases import credential

TOKEN = "6f1d8a6e-5f5c-4d60-b1a8-0f2c3f6f9a51"

_SAID = {
    0: (200, "Success"),
    2: (401, "Token is required"),
    4: (403, "Invalid token"),
    5: (400, "No data"),
    6: (400, "Invalid data format"),
    7: (400, "Incorrect index"),
    9: (503, "Server is busy"),
    10: (400, "Data channel is missing"),
    11: (400, "Invalid data channel"),
    12: (400, "Event field is required"),
    14: (400, "ACK is disabled"),
}


class Splunk:
    """What the token may: ``indexes``; ``acknowledging``: acknowledgement is on. ``indexed_after``: how often must be
    asked before an indexer has it. ``numbers``: whether it gives a number to ask for.
    """

    kind = "splunk"
    exactly_once = False
    acknowledging = False

    def __init__(self, indexes: tuple[str, ...] = ("main",), indexed_after: int = 2, *, numbers: bool = True) -> None:
        self.indexes = indexes
        self.indexed_after = indexed_after
        self.numbers = numbers
        self.events: list[dict[str, Any]] = []
        self.asked: defaultdict[str, list[int]] = defaultdict(list)

    @property
    def taken(self) -> list[str]:
        """auditIDs in the order of arrival."""
        return [event["event"]["auditID"] for event in self.events]

    def spec(self, url: str, folder: Path) -> dict[str, Any]:
        """The AuditSink's settings."""
        credential(folder, "splunk", "token", TOKEN)
        return {"url": url, "token": {"name": "splunk", "key": "token"}, "acknowledgement": self.acknowledging}

    def answer(self, request: Request) -> Reply:
        """One request."""
        authorization = request.headers.get("authorization")
        if authorization is None:
            return _said(2)
        if authorization != f"Splunk {TOKEN}":
            return _said(4)
        channel = request.headers.get("x-splunk-request-channel")
        if self.acknowledging:
            if channel is None:
                return _said(10)
            try:
                uuid.UUID(channel)
            except ValueError:
                return _said(11)
        match request.method, request.path:
            case "POST", "/services/collector/event":
                return self._events(request.body, channel or "")
            case "POST", "/services/collector/ack":
                return self._acks(request.body, channel or "")
            case _:
                return Reply(404, b'{"text":"The requested URL was not found on this server.","code":404}')

    def _events(self, body: bytes, channel: str) -> Reply:
        text, at, events = body.decode(), 0, []
        decoder = json.JSONDecoder()
        while at < len(text):
            try:
                event, at = decoder.raw_decode(text, at)
            except ValueError:
                return _said(6, **{"invalid-event-number": len(events)})
            at += len(text[at:]) - len(text[at:].lstrip())
            if "event" not in event:
                return _said(12, **{"invalid-event-number": len(events)})
            assert event.keys() <= {"time", "host", "source", "sourcetype", "index", "event", "fields"}
            float(event["time"])
            if event.get("index", self.indexes[0]) not in self.indexes:
                return _said(7, **{"invalid-event-number": len(events)})
            events.append(event)
        if not events:
            return _said(5)
        self.events += events
        if not (self.acknowledging and self.numbers):
            return _said(0)
        self.asked[channel].append(0)
        return _said(0, ackId=len(self.asked[channel]) - 1)

    def _acks(self, body: bytes, channel: str) -> Reply:
        if not self.acknowledging:
            return _said(14)
        answers = {}
        for number in json.loads(body)["acks"]:
            known = number < len(self.asked[channel])
            if known:
                self.asked[channel][number] += 1
            answers[str(number)] = known and self.asked[channel][number] >= self.indexed_after
        return Reply(200, json.dumps({"acks": answers}).encode())


class Acknowledging(Splunk):
    """With a token that has acknowledgement on."""

    acknowledging = True


def _said(code: int, **more: Any) -> Reply:
    status, text = _SAID[code]
    return Reply(status, json.dumps({"text": text, "code": code, **more}).encode())
