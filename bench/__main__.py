"""`python -m bench [name…]`: measure what the names say, or everything, and print one table."""

import sys
from collections.abc import Callable, Iterable

from bench import controller, evaluate, events, integrity, journal, lint, receiver, render, replay, requests, union
from bench.table import Row, show

BENCHMARKS: dict[str, Callable[[], Iterable[Row]]] = {
    "evaluate": evaluate.run,
    "requests": requests.run,
    "events": events.run,
    "replay": replay.run,
    "lint": lint.run,
    "union": union.run,
    "render": render.run,
    "operator": controller.run,
    "journal": journal.run,
    "receiver": receiver.run,
    "integrity": integrity.run,
}


def main(names: list[str]) -> int:
    """Exit status: 0 also where a target is missed (numbers differ between machines), 2 for an unknown name."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    show(row for name in names or BENCHMARKS for row in BENCHMARKS[name]())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
