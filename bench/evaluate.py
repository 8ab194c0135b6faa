"""How long one decision takes, and an event's way to it. Cluster-wide policies of 20 rules, recorded traffic."""

import gzip
import random
from collections.abc import Callable, Iterator

import msgspec

from audit_operator.policy import events
from audit_operator.policy.evaluate import Evaluator, Evaluators
from audit_operator.policy.model import Request
from audit_operator.policy.request import request_of
from bench.policies import platform
from bench.requests import CORPUS
from bench.table import Row, best

RUNS = 25
FIRST_SIGHT = 1.0
REPEATED = 0.3


def recorded_lists() -> list[bytes]:
    """The EventLists of the recording, as they came."""
    with gzip.open(CORPUS) as lines:
        return list(lines)


def recorded_requests() -> list[Request]:
    """The requests of all recorded events, in the order of the recording; the events are decoded anew."""
    return [request_of(events.decode(raw)) for document in recorded_lists() for raw in events.split(document)]


def run() -> Iterator[Row]:
    """All measurements, µs per decision; some seconds."""
    policy = platform(random.Random(1))
    lists = recorded_lists()
    recorded = recorded_requests()
    encoded = msgspec.json.encode(recorded)
    decoder = msgspec.json.Decoder(list[Request])
    distinct = msgspec.json.encode(list(dict.fromkeys(recorded)))
    evaluator = Evaluator(policy)

    def fresh() -> list[Request]:
        """Equal requests with strings that nobody has hashed yet, as they come from the wire."""
        return decoder.decode(encoded)

    def known() -> list[Request]:
        return recorded

    def unseen() -> tuple[Callable[[Request], object], list[Request]]:
        return Evaluator(policy).decide, decoder.decode(distinct)

    def ask(pair: tuple[Callable[[Request], object], list[Request]]) -> None:
        function, requests = pair
        for request in requests:
            function(request)

    def row(
        what: str, function: Callable[[Request], object], inputs: Callable[[], list[Request]], at_most: float | None
    ) -> Row:
        seconds = best(ask, lambda: (function, inputs()), RUNS)
        return Row(f"decision, {what}", seconds / len(recorded) * 1e6, "µs", at_most)

    yield row("first sight: new strings", evaluator.matching, fresh, FIRST_SIGHT)
    yield row("first sight: hashed strings", evaluator.matching, known, FIRST_SIGHT)
    seconds = best(ask, unseen, RUNS)
    count = len(decoder.decode(distinct))
    yield Row("decision, first sight: by an evaluator that has seen nothing", seconds / count * 1e6, "µs")
    decide = Evaluators([policy]).decide
    yield row("repeated: newly decoded events", decide, recorded_requests, REPEATED)
    yield row("repeated: equal requests, new strings", decide, fresh, None)

    ten = Evaluators(platform(random.Random(number)) for number in range(10))

    def receive(documents: list[bytes]) -> None:
        for document in documents:
            for raw in events.split(document):
                ten.decide(request_of(events.decode(raw)))

    seconds = best(receive, lambda: lists, RUNS)
    yield Row("an EventList's bytes to the decisions of ten policies", seconds / len(recorded) * 1e6, "µs")
