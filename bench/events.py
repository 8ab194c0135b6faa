"""What bodies cost that JSON libraries refuse and Go does not: whoever may PATCH an object can have them recorded.

Per kB of processor time, for taking a POST apart, reading its events and writing them on; and as a ratio to a body of
the same size that nothing is wrong with, which survives a slow machine.
"""

import time
from collections.abc import Iterator
from typing import Final

from audit_operator.policy.events import decode, fields, split
from bench.table import Row

_SIZE: Final = 95_000
"""Of a body: with API servers' default flags an event may have 100 kB."""

_EVENTS: Final = 100
_RUNS: Final = 3

BODIES: Final = {
    "halves of surrogate pairs": b'{"a":"' + b"\\ud800" * (_SIZE // 6) + b'"}',
    "numbers, and one of these": b'{"s":"\\ud800","a":[' + b"1," * (_SIZE // 2) + b"1]}",
    "strings, and one of these": b'{"s":"\\ud800","a":[' + b'"",' * (_SIZE // 3) + b"1]}",
    "objects, and one of these": b'{"s":"\\ud800","a":[' + b"{}," * (_SIZE // 3) + b"1]}",
    "backslashes, and one of these": b'{"s":"\\ud800","a":"' + b"\\\\" * (_SIZE // 2) + b'"}',
}


def run() -> Iterator[Row]:
    """All measurements, µs of processor time per kB; some seconds."""
    plain = _cost(b'{"a":[' + b"1," * (_SIZE // 2) + b"1]}")
    yield Row("events: 95 kB of numbers that nothing is wrong with", plain, "µs/kB", 50)
    for name, body in BODIES.items():
        found = _cost(body)
        yield Row(f"events: 95 kB of {name}", found, "µs/kB", 50)
        yield Row("events: the same, times the plain one", found / plain, "times")
        double = _cost(body + b" " * len(body), _EVENTS // 2)
        yield Row("events: the same, twice as long, per kB", double / found, "times", 2)


def _cost(body: bytes, number: int = _EVENTS) -> float:
    item = b'{"level":"Request","auditID":"a","stage":"ResponseComplete","verb":"patch","requestObject":%b}' % body
    document = b'{"kind":"EventList","items":[' + b",".join([item] * number) + b"]}"
    best = float("inf")
    for _ in range(_RUNS):
        begun = time.process_time()
        for each in split(document):
            decode(each)
            fields(each)
        best = min(best, time.process_time() - begun)
    return best * 1e6 / (len(document) / 1e3)
