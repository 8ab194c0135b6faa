"""How long one decision takes. A cluster-wide policy of 20 rules, asked about recorded traffic."""

import gzip
import random
from collections.abc import Callable, Iterator

import msgspec

from audit_operator.policy import events
from audit_operator.policy.evaluate import Evaluator
from audit_operator.policy.model import Request
from audit_operator.policy.request import request_of
from bench.policies import platform
from bench.requests import CORPUS
from bench.table import Row, best

RUNS = 25
FIRST_SIGHT = 1.0
REPEATED = 0.3


def recorded_requests() -> list[Request]:
    """The requests of all recorded events, in the order of the recording."""
    with gzip.open(CORPUS) as lines:
        return [request_of(events.decode(raw)) for line in lines for raw in events.split(line)]


def run() -> Iterator[Row]:
    """All measurements, µs per decision; some seconds."""
    policy = platform(random.Random(1))
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
        what: str, function: Callable[[Request], object], inputs: Callable[[], list[Request]], at_most: float
    ) -> Row:
        seconds = best(ask, lambda: (function, inputs()), RUNS)
        return Row(f"decision, {what}", seconds / len(recorded) * 1e6, "µs", at_most)

    yield row("first sight: new strings", evaluator.matching, fresh, FIRST_SIGHT)
    yield row("first sight: hashed strings", evaluator.matching, known, FIRST_SIGHT)
    seconds = best(ask, unseen, RUNS)
    count = len(decoder.decode(distinct))
    yield Row("decision, first sight: by an evaluator that has seen nothing", seconds / count * 1e6, "µs")
    evaluator = Evaluator(policy)
    yield row("repeated: the same request objects", evaluator.decide, known, REPEATED)
    yield row("repeated: equal requests, new strings", evaluator.decide, fresh, REPEATED)
