"""No regular expression of ours goes back and forth over a text: whoever chose that could keep us busy for minutes."""

import importlib
import inspect
import pkgutil
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

import audit_operator
from audit_operator.resources.meta import GRAMMARS

PIECES = [
    "a",
    "A",
    "0",
    " ",
    "-",
    ".",
    "/",
    ":",
    "@",
    "?",
    "*",
    "\\",
    '"',
    "[",
    "]",
    "{",
    "}",
    "<",
    "=",
    "%",
    "a.",
    "a-",
    "\n",
]
LENGTH = 8_000
ENOUGH = 0.03
"""Seconds of a processor: so little that it is of no interest how it grows."""


def patterns() -> dict[str, tuple[re.Pattern[str] | re.Pattern[bytes], bool]]:
    """All that modules keep, and whether it is searched for anywhere in a text, or matched at one place only."""
    found: dict[str, tuple[re.Pattern[str] | re.Pattern[bytes], bool]] = {}
    modules = [
        importlib.import_module(info.name)
        for info in pkgutil.walk_packages(audit_operator.__path__, "audit_operator.")
        if "__main__" not in info.name and ".demo" not in info.name
    ]
    sources = "".join(map(inspect.getsource, modules))
    for module in modules:
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern):
                key = value.pattern if isinstance(value.pattern, str) else value.pattern.decode("latin-1")
                searched = re.search(rf"\b{name}\.(search|subn?|finditer|findall|split)\(", sources)
                found.setdefault(key, (value, searched is not None))
    return found | {pattern: (re.compile(pattern), False) for pattern in GRAMMARS}


PATTERNS = patterns()


def literals(pattern: str) -> list[str]:
    """What stands in it as it is: what a text must have for the expression to begin to match."""
    plain = re.sub(r"\\[AbBdDsSwWZ]|\(\?[a-zA-Z:=!<]*|[()|^$?*+{}\[\]]", "\0", pattern)
    return sorted({part.replace("\\", "") for part in plain.split("\0") if part.replace("\\", "")}, key=len)[-6:]


def texts(pattern: str, length: int) -> Iterator[str]:
    """The worst of this length: repetitions, behind something that matches, and before something that does not."""
    known = literals(pattern)
    for piece in (word + sign for word in known[-2:] for sign in PIECES):
        yield piece * (length // len(piece))
    for piece in dict.fromkeys([*PIECES, *known]):
        body = piece * (length // len(piece))
        for before in ["", *known[-2:]]:
            yield before + body
            yield before + body + "\0"


def cost(pattern: re.Pattern[Any], text: str, *, searched: bool) -> float:
    """Seconds of a processor for whatever is done with it."""
    given = text.encode() if isinstance(pattern.pattern, bytes) else text
    before = time.process_time()
    pattern.fullmatch(given)
    pattern.match(given)
    if searched:
        sum(1 for _ in pattern.finditer(given))
    return time.process_time() - before


@pytest.mark.parametrize("name", PATTERNS, ids=lambda name: name[:40])
def test_an_expression_takes_as_long_as_its_text(name: str) -> None:
    pattern, searched = PATTERNS[name]
    for whole, half in zip(texts(name, LENGTH), texts(name, LENGTH // 2), strict=True):
        if cost(pattern, whole, searched=searched) > ENOUGH:
            halves = min(cost(pattern, half, searched=searched) for _ in range(3))
            wholes = min(cost(pattern, whole, searched=searched) for _ in range(3))
            assert wholes < max(3 * halves, ENOUGH), repr(whole[:60])


@pytest.mark.parametrize(
    ("bad", "length"),
    [(r"pipeline with id \[[^]]*\] does not exist", 24_000), (r"(://)?[^/]*:[^/]*@", 400), (r"\s*\n\s*", 4_000)],
)
def test_an_expression_that_goes_back_and_forth_is_found(bad: str, length: int) -> None:
    """These were in this project."""
    pattern = re.compile(bad)
    for whole, half in zip(texts(bad, length), texts(bad, length // 2), strict=True):
        if (halves := min(cost(pattern, half, searched=True) for _ in range(2))) > 0.001:
            assert cost(pattern, whole, searched=True) > 2.5 * halves
            return
    raise AssertionError("nothing takes long")
