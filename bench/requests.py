"""How long it takes to tell from an event which request the policy saw, and to redact the event. Recorded traffic."""

import gzip
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from audit_operator.policy import events
from audit_operator.policy.events import Event
from audit_operator.policy.model import Request
from audit_operator.policy.redact import Redactor
from audit_operator.policy.request import request_of
from bench.table import Row, best

CORPUS = Path(__file__).parent.parent / "tests" / "data" / "audit-eventlists.jsonl.gz"
RUNS = 20
LIMIT = 2.0

_T = TypeVar("_T")


def run() -> Iterator[Row]:
    """All measurements, µs per event; some seconds."""
    with gzip.open(CORPUS) as lines:
        raws = [raw for line in lines for raw in events.split(line)]
    recorded = _decoded(raws)
    requests = [request_of(event) for event in recorded]
    redactor = Redactor()
    runs = itertools.count()

    def redact(pair: tuple[Event, Request]) -> None:
        redactor.redact(*pair)

    bodies = [
        pair
        for pair in zip(recorded, requests, strict=True)
        if len(pair[0].request_object) + len(pair[0].response_object)
    ]
    concerned = [pair for pair in bodies if redactor.rules_for(pair[1])]
    others = [pair for pair in bodies if not redactor.rules_for(pair[1])]
    yield _row("request out of an event, recorded traffic", request_of, lambda: _decoded(raws), LIMIT)
    yield _row("request out of an event, first sight", request_of, lambda: _elsewhere(recorded, next(runs)), LIMIT)
    yield _row("event out of JSON", events.decode, lambda: raws)
    yield _row("redaction, nothing to redact", redact, lambda: others)
    yield _row("redaction, credentials in the bodies", redact, lambda: concerned)


def _decoded(raws: Iterable[msgspec.Raw]) -> list[Event]:
    return [events.decode(raw) for raw in raws]


def _elsewhere(recorded: Iterable[Event], run: int) -> list[Event]:
    """The same events at paths never seen before."""
    return [
        msgspec.structs.replace(event, request_uri="?".join((f"{path}-{run}-{number}", *query)))
        for number, event in enumerate(recorded)
        for path, *query in [event.request_uri.split("?", 1)]
    ]


def _row(
    what: str, function: Callable[[_T], object], inputs: Callable[[], list[_T]], at_most: float | None = None
) -> Row:
    def all_of(values: list[_T]) -> None:
        for value in values:
            function(value)

    return Row(what, best(all_of, inputs, RUNS) / len(inputs()) * 1e6, "µs", at_most)
