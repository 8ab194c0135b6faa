"""A clock that was wrong for a while, ahead or behind, leaves names that tell a wrong time, and nothing else: files are
closed at their age, the oldest go, what is new stays, and verify finds nothing.
"""

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from integrity_cases import KEY, pem, verified
from sink_cases import batch

from audit_operator.receiver.sinks import SecretFile
from audit_operator.receiver.sinks.chain import Chain, Integrity, Names
from audit_operator.receiver.sinks.file import File, Rules
from audit_operator.receiver.verification import Kind

DAY = 86400.0
TODAY = 1_795_000_000.0  # 2026-11-18
AHEAD = 40 * 365 * DAY
AT_BOOT = -TODAY + 30.0
A_WEEK_BACK = -7 * DAY
HALF_AN_HOUR_BACK = -1800.0

FORMS = ["plain", "plain, signed", "encrypted", "encrypted, signed"]


class Sink:
    """A file sink whose clock is set; files are closed after a day."""

    def __init__(self, folder: Path, form: str, max_files: int = 4) -> None:
        self.folder = folder / "archive"
        self._state = folder / "state"
        self._state.mkdir(exist_ok=True)
        (self._state / "key.pem").write_text(pem(KEY))
        self._rules = Rules(max_size=1 << 20, max_age=DAY, max_files=max_files, compression="None")
        self._form = form
        self.now = TODAY
        self.number = 0

    @property
    def signed(self) -> bool:
        return "signed" in self._form

    def receive(self, *clock: float) -> list[str]:
        """An event at each of these times, then a restart; the names of the closed files."""

        async def run() -> None:
            sink = self._made()
            await sink.open()
            for now in clock:
                self.now = now
                self.number += 1
                await sink.deliver(batch(self.number))
            await sink.close()

        asyncio.run(run())
        if self.signed:
            assert verified(self.folder).findings == []
        return self.closed()

    def closed(self) -> list[str]:
        return sorted({path.name[2:21] for path in self.folder.glob("a-*") if not path.name.endswith(".json")})

    def numbers(self) -> set[int]:
        text = b"".join(path.read_bytes() for path in self.folder.glob("a*") if not path.name.endswith(".json"))
        return {number for number in range(1, self.number + 1) if f"-{number:012}".encode() in text}

    def _made(self) -> File:
        chain = None
        if self.signed:
            integrity = Integrity(signing_key=SecretFile(file=str(self._state / "key.pem")))
            chain = Chain(self._state / "chain.json", Names("prod", "ns/a", "r-0"), integrity, lambda: self.now)
        encrypt = (lambda data: b"AGE" + data) if self._form.startswith("encrypted") else None
        return File(self.folder / "a.log", self._rules, lambda: self.now, chain=chain, encrypt=encrypt)


def days(start: float, count: int) -> Iterator[float]:
    """Every two days."""
    return (TODAY + (start + 2 * number) * DAY for number in range(count))


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_files_are_closed_and_named_as_ever_after_a_clock_was_ahead(form: str, restarts: bool, tmp_path: Path) -> None:
    sink = Sink(tmp_path, form, max_files=100)
    clock = [*days(0, 3), TODAY + 5 * DAY + AHEAD, *days(6, 6)]
    for some in [[now] for now in clock] if restarts else [clock]:
        closed = sink.receive(*some)
    this_year = [name for name in closed if name.startswith(("2026", "2027"))]
    assert len(closed) - len(this_year) == 1
    assert len(this_year) >= 7
    assert sink.numbers() == set(range(1, 11))


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("glitch", [AHEAD, AT_BOOT, A_WEEK_BACK, HALF_AN_HOUR_BACK])
@pytest.mark.parametrize("wrong", [1, 7])
@pytest.mark.parametrize("form", FORMS)
def test_only_the_oldest_files_go_whatever_the_clock_was(
    form: str, wrong: int, glitch: float, restarts: bool, tmp_path: Path
) -> None:
    sink = Sink(tmp_path, form)
    before, while_wrong, after = days(0, 6), days(12, wrong), days(12 + 2 * wrong, 8)
    sink.receive(*before)
    for some in (while_wrong, after):
        add = glitch if some is while_wrong else 0.0
        for now in [[each + add] for each in some] if restarts else [[each + add for each in some]]:
            # What a machine says before it has asked for the time is no time.
            assert not [name for name in sink.receive(*now) if name.startswith("1970")]
    # Of each time no more than were asked for; and the newest are there, in files of their own.
    assert set(range(sink.number - 3, sink.number + 1)) <= sink.numbers()
    right = [name for name in sink.closed() if name.startswith("2026")]
    assert 4 <= len(right) <= 5
    assert len(sink.closed()) <= 2 * 5


@pytest.mark.parametrize("form", [form for form in FORMS if "signed" in form])
def test_what_is_removed_after_the_clock_was_ahead_is_named(form: str, tmp_path: Path) -> None:
    sink = Sink(tmp_path, form)
    sink.receive(*days(0, 6))
    sink.receive(*(each + AHEAD for each in days(12, 7)))
    sink.receive(*days(26, 3))
    digests = [path for path in sink.folder.glob("a-2026*") if not path.name.endswith(".json")]
    assert digests
    for path in digests:
        content = path.read_bytes()
        path.unlink()
        assert [finding.kind for finding in verified(sink.folder).findings] == [Kind.REMOVED]
        path.write_bytes(content)
    assert verified(sink.folder).findings == []


@pytest.mark.parametrize("form", FORMS)
def test_a_clock_that_is_set_back_a_little_keeps_the_order_of_names(form: str, tmp_path: Path) -> None:
    sink = Sink(tmp_path, form, max_files=100)
    clock = (TODAY, TODAY + 2 * DAY, TODAY + 2 * DAY - 60, TODAY + 4 * DAY, TODAY + 6 * DAY)
    seen = [sink.receive(now) for now in clock]
    assert all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(seen))
