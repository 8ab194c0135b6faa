"""How long it takes to tell from an event which request the policy saw, and to redact the event. Recorded traffic."""

import gzip
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from audit_operator.policy import events
from audit_operator.policy.events import Event
from audit_operator.policy.model import Request
from audit_operator.policy.redact import Redactor
from audit_operator.policy.request import request_of

CORPUS = Path(__file__).parent.parent / "tests" / "data" / "audit-eventlists.jsonl.gz"
RUNS = 20

_T = TypeVar("_T")


class Row(NamedTuple):
    """One line of the table: µs per event, the best of several runs over all of them."""

    what: str
    microseconds: float
    target: str = ""


def run() -> list[Row]:
    """All measurements; some seconds."""
    with gzip.open(CORPUS) as lines:
        raws = [raw for line in lines for raw in events.split(line)]
    recorded = _decoded(raws)
    requests = [request_of(event) for event in recorded]
    redactor = Redactor()

    def redact(pair: tuple[Event, Request]) -> None:
        redactor.redact(*pair)

    bodies = [
        pair
        for pair in zip(recorded, requests, strict=True)
        if len(pair[0].request_object) + len(pair[0].response_object)
    ]
    concerned = [pair for pair in bodies if redactor.rules_for(pair[1])]
    others = [pair for pair in bodies if not redactor.rules_for(pair[1])]
    return [
        Row("request out of an event, recorded traffic", _best(request_of, lambda _: _decoded(raws)), "≤ 2"),
        Row("request out of an event, first sight", _best(request_of, lambda run: _elsewhere(recorded, run)), "≤ 2"),
        Row("event out of JSON", _best(events.decode, lambda _: raws)),
        Row("redaction, nothing to redact", _best(redact, lambda _: others)),
        Row("redaction, credentials in the bodies", _best(redact, lambda _: concerned)),
    ]


def _decoded(raws: Iterable[msgspec.Raw]) -> list[Event]:
    return [events.decode(raw) for raw in raws]


def _elsewhere(recorded: Iterable[Event], run: int) -> list[Event]:
    """The same events at paths never seen before."""
    return [
        msgspec.structs.replace(event, request_uri="?".join((f"{path}-{run}-{number}", *query)))
        for number, event in enumerate(recorded)
        for path, *query in [event.request_uri.split("?", 1)]
    ]


def _best(function: Callable[[_T], object], inputs: Callable[[int], list[_T]]) -> float:
    best = float("inf")
    for run in range(RUNS):
        values = inputs(run)
        start = time.perf_counter()
        for value in values:
            function(value)
        best = min(best, (time.perf_counter() - start) / len(values))
    return best * 1e6


def main() -> None:
    """Print the table."""
    for row in run():
        print(f"{row.what:<45} {row.microseconds:8.2f} µs  {row.target}")


if __name__ == "__main__":
    main()
