"""The table that all benchmarks print into, and the one way they measure."""

import gc
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

_T = TypeVar("_T")
_HEADINGS = ("what", "measured", "target", "met")
_WIDTHS = (66, 14, 12, 3)


class Row(NamedTuple):
    """One line of the table. Without ``at_most`` and ``at_least`` the number is there to be known, not to be kept."""

    what: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def measured(self) -> str:
        """The number with its unit, in three digits."""
        return _text(self.value, self.unit)

    @property
    def target(self) -> str:
        """What the number must not exceed, or must reach, if anything."""
        if self.at_least is not None:
            return f"≥ {_text(self.at_least, self.unit)}"
        return "" if self.at_most is None else f"≤ {_text(self.at_most, self.unit)}"

    @property
    def met(self) -> str:
        """Whether it does not; empty without a target."""
        if self.at_least is not None:
            return "yes" if self.value >= self.at_least else "no"
        if self.at_most is None:
            return ""
        return "yes" if self.value <= self.at_most else "no"


def _text(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def show(rows: Iterable[Row]) -> None:
    """Print the rows as Markdown, each as soon as it is measured."""
    print(_line(_HEADINGS))
    print(_line("-" * width for width in _WIDTHS))
    for row in rows:
        print(_line((row.what, row.measured, row.target, row.met)), flush=True)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(f'{cell:<{width}}' for cell, width in zip(cells, _WIDTHS, strict=True))} |"


def best(function: Callable[[_T], object], inputs: Callable[[], _T], runs: int) -> float:
    """Seconds of processor time of ``function(inputs())``, the least of several runs; making inputs is not counted.

    Processor time and the least of it, because other programs may want the machine meanwhile. The garbage collector
    rests, as in timeit: what it would walk is the benchmark's own inputs.
    """
    least = float("inf")
    for _ in range(runs):
        value = inputs()
        gc.collect()
        gc.disable()
        try:
            start = time.process_time()
            function(value)
            least = min(least, time.process_time() - start)
        finally:
            gc.enable()
    return least
