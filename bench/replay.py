"""How long a recorded event takes in `audit-operator replay`, reading included: 10 µs is 100,000 events a second."""

import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path

from audit_operator.cli.policies import Setting, Setup, load_setup
from audit_operator.cli.replay import Replay, replay_file
from audit_operator.policy.events import split
from bench.table import Row, best

ROOT = Path(__file__).parent.parent
RECORDED = ROOT / "tests/data/audit-eventlists.jsonl.gz"
EXAMPLES = [str(ROOT / "examples" / name) for name in ("namespaces.yaml", "platform", "tenants")]
POLICY_FILE = [str(ROOT / "examples/policy-files/today.yaml")]
TIMES = 10
"""How often the recording is repeated, so that what is done once does not count."""
RUNS = 5
LIMIT = 10.0


def run() -> Iterator[Row]:
    """All measurements, microseconds of processor time per event; about ten seconds."""
    lists = gzip.decompress(RECORDED.read_bytes())
    events = [bytes(event) for line in lists.splitlines() for event in split(line)]
    lines = b"".join(event + b"\n" for event in events)
    number = len(events) * TIMES
    contents = {
        "log lines": lines * TIMES,
        "log lines, gzip": gzip.compress(lines * TIMES),
        "EventLists": lists * TIMES,
        "EventLists, gzip": gzip.compress(lists * TIMES),
    }
    setups = {"a policy file": load_setup(POLICY_FILE, Setting()), "the examples": load_setup(EXAMPLES, Setting())}
    with tempfile.TemporaryDirectory() as folder:
        for what, content in contents.items():
            file = Path(folder, "events")
            file.write_bytes(content)
            for name, setup in setups.items():
                yield Row(
                    f"replay of an event: {what}, {name}", _seconds(setup, file, number) / number * 1e6, "µs", LIMIT
                )


def _seconds(setup: Setup, file: Path, number: int) -> float:
    def replay(counters: Replay) -> None:
        replay_file(str(file), counters)
        report = counters.report()
        if (report.read.events, report.malformed) != (number, 0):
            raise RuntimeError(f"{number} events were written, and {report.read.events} read")

    return best(replay, lambda: Replay(setup.sources, setup.server), RUNS)
