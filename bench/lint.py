"""How long somebody waits for `audit-operator lint`: the whole process, on the examples."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.table import Row

EXAMPLES = Path(__file__).parent.parent / "examples" / "policy-files"
PROGRAM = Path(sys.executable).with_name("audit-operator")
RUNS = 7
LIMIT = 0.5


def run() -> Iterator[Row]:
    """All measurements, seconds on the clock; some seconds."""
    files = sorted(EXAMPLES.glob("*.yaml"))
    for what, names in (("one file", files[:1]), (f"{len(files)} files", files)):
        seconds = [_seconds(names) for _ in range(RUNS)]
        yield Row(f"lint of {what}, whole process, fastest of {RUNS}", min(seconds), "s", LIMIT)
        yield Row(f"lint of {what}, whole process, median of {RUNS}", statistics.median(seconds), "s", LIMIT)


def _seconds(files: list[Path]) -> float:
    start = time.perf_counter()
    done = subprocess.run([PROGRAM, "lint", *files], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode not in (0, 1):  # 1: the file has findings, as examples of mistakes have
        raise RuntimeError(f"audit-operator lint ended with {done.returncode}: {done.stderr}")
    return seconds
