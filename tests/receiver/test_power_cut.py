"""Whatever was promised holds, wherever the power fails: the journal and its cursor. `power.py` says what disks may do.

The same of what sinks write is in test_power_cut_sinks.py.
"""

import errno
import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from power import Killed, Recorder, State
from test_journal import everything, group

from audit_operator.receiver.journal import Disk, Log

LOG = "journal/sinks/audit-system/siem"


def opened(root: Path) -> Log:
    log = Log(root / LOG, Disk())
    log.limit = 1  # the smallest segments there are
    log.open()
    return log


class Receiver:
    """What an API server, a sink and a log say to each other, marked as it is said."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.failing = ""
        recorder.fault = self._fault
        self.log = opened(recorder.root)
        self.number = 0
        self.given_up: list[str] = []

    def _fault(self, what: str, path: Path) -> int | None:
        if what in self.failing.split() and path.suffix == ".log":
            if "once" in self.failing:
                self.failing = "once"
            return errno.EIO if what == "sync" else errno.ENOSPC
        return None

    def post(self, events: int = 1, size: int = 30) -> None:
        """So many POSTs that wait at the same moment."""
        names = [f"id-{number}" for number in range(self.number + 1, self.number + 1 + events)]
        self.number += events
        self.recorder.mark("tried", (self.log.next_sequence, names))
        if self.log.append([group(int(name[3:]), size=size) for name in names]):
            self.given_up += names
            certain = "truncate" not in self.failing and "sync" not in self.failing.split()
        else:
            self.recorder.mark("taken", names)
            certain = True
        if certain:
            # On a disk that does not even cut off what failed, this is only so once there is something behind it.
            self.recorder.mark("refused", self.given_up)
            self.given_up = []

    def failing_post(self, what: str, events: int = 1, size: int = 30) -> None:
        self.failing = what
        self.post(events, size)
        self.failing = ""

    def deliver(self, events: int) -> None:
        found, _ = everything(self.log)
        if found[:events]:
            self.recorder.mark("delivered", [stored.entry.audit_id for stored in found[:events]])
            self.log.acknowledge(found[:events][-1].after)

    def shed(self) -> None:
        found, _ = everything(self.log)
        self.recorder.mark("delivered", [stored.entry.audit_id for stored in found])
        self.log.shed(1)

    def restart(self, failing: str = "") -> None:
        self.recorder.restart()
        self.failing = failing
        self.given_up = []  # the start may have found it, and kept it
        self.log = opened(self.recorder.root)
        self.failing = ""


def told(state: State, what: str) -> list[str]:
    return [name for each in state.said(what) for name in each]


def holds(state: State, root: Path) -> None:
    """Start on what is left, twice, and take something in between."""
    state.lay(root)
    log = opened(root)
    found, _ = everything(log)
    read = [stored.entry.audit_id for stored in found]
    delivered = set(told(state, "delivered"))
    assert [name for name in told(state, "taken") if name not in delivered and name not in read] == []
    assert not set(told(state, "refused")) & set(read)
    assert len(read) == len(set(read))
    order = [stored.sequence for stored in found]
    assert order == sorted(set(order))
    given = state.said("tried")
    taken = set(told(state, "taken"))
    assert all(log.next_sequence > first for first, names in given if set(names) & taken)
    # What comes next is taken behind it, and is there after the next start as well.
    assert not log.append([group(1001, 1002)])
    assert not log.append([group(1003)])
    log.close()
    again = opened(root)
    after, missing = everything(again)
    assert [stored.entry.audit_id for stored in after] == [*read, "id-1001", "id-1002", "id-1003"]
    assert all(damage.first + damage.events <= after[-3].sequence for damage in missing)
    again.close()


def survives(recorder: Recorder, elsewhere: Path, *, seed: int = 1, samples: int = 3, since: int = 0) -> int:
    count = 0
    for state in recorder.states(random.Random(seed), samples=samples, since=since):
        try:
            holds(state, elsewhere / str(count))
        except BaseException as error:
            last = recorder.operations[max(0, state.cut - 6) : state.cut]
            error.add_note(f"cut after operation {state.cut} ({state.how}), in {elsewhere / str(count)}; last: {last}")
            raise
        count += 1
    return count


def recorded(memory: Path, *steps: Callable[[Receiver], None]) -> Recorder:
    root = memory / "disk"
    root.mkdir()
    with Recorder(root) as recorder:
        receiver = Receiver(recorder)
        for step in steps:
            step(receiver)
    return recorder


def test_what_was_taken_survives_a_cut_after_any_operation(memory: Path) -> None:
    recorder = recorded(
        memory,
        lambda it: it.post(3),
        lambda it: it.post(2, size=900),
        lambda it: it.deliver(4),
        lambda it: it.post(1),
        lambda it: it.restart(),
        lambda it: it.deliver(1),
        lambda it: it.post(2),
    )
    assert survives(recorder, memory, samples=8) > 60


def test_segments_that_go_take_nothing_with_them(memory: Path) -> None:
    recorder = recorded(
        memory,
        *[lambda it: it.post(1, size=600_000)] * 5,
        lambda it: it.deliver(3),
        lambda it: it.post(1, size=600_000),
        lambda it: it.deliver(3),
        lambda it: it.post(2),
        lambda it: it.deliver(2),
        *[lambda it: it.post(1, size=600_000)] * 3,
        lambda it: it.shed(),
        lambda it: it.post(1),
    )
    survives(recorder, memory, samples=1)


@pytest.mark.parametrize("failing", ["sync once", "sync", "write", "sync truncate", "write truncate"])
@pytest.mark.parametrize("before", [0, 3])
def test_nothing_is_appended_behind_what_was_given_up(failing: str, before: int, memory: Path) -> None:
    recorder = recorded(
        memory,
        *[lambda it: it.post(before)] * bool(before),
        lambda it: it.failing_post(failing, 6, size=700),
        lambda it: it.post(2),
        lambda it: it.failing_post(failing, 1),
        lambda it: it.failing_post(failing, 2),
        lambda it: it.post(1),
        lambda it: it.restart(),
        lambda it: it.failing_post(failing, 3),
        lambda it: it.post(1),
        lambda it: it.restart(),
        lambda it: it.post(1),
    )
    survives(recorder, memory, samples=6)


def test_a_cut_after_a_cut_loses_nothing_either(memory: Path) -> None:
    first = recorded(
        memory, lambda it: it.post(3), lambda it: it.failing_post("sync truncate", 6), lambda it: it.post(2)
    )
    chance = random.Random(5)
    for number, state in enumerate(first.states(chance, samples=1)):
        if number % 3:
            continue
        folder = memory / f"second-{number}"
        (folder / "disk").mkdir(parents=True)
        with Recorder(folder / "disk") as recorder:
            for name in state.folders:
                os_folder = recorder.root / name
                os_folder.mkdir(parents=True, exist_ok=True)
            lay(recorder, state)
            start = len(recorder.operations)
            receiver = Receiver(recorder)
            receiver.number = 500
            for mark in state.marks:
                recorder.mark(*mark)
            receiver.post(2)
            receiver.post(1)
        survives(recorder, folder, seed=number, samples=2, since=start + len(state.marks))


def lay(recorder: Recorder, state: State) -> None:
    """As what a disk has for certain."""
    import os

    from audit_operator.receiver.files import sync_folder

    for name, data in state.files.items():
        file = os.open(recorder.root / name, os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(file, data)
        os.fsync(file)
        os.close(file)
    for folder in (recorder.root, *(recorder.root / name for name in state.folders)):
        sync_folder(folder)


def test_what_a_killed_receiver_left_is_on_the_disk_before_it_counts(memory: Path) -> None:
    """An API server that got no answer sends again; what the log has of that is answered for without being written."""
    for call in itertools.count():
        folder = memory / str(call)
        (folder / "disk").mkdir(parents=True)
        with Recorder(folder / "disk") as recorder:
            recorder.kill_after = call
            killed = False
            try:
                receiver = Receiver(recorder)
                receiver.post(2)
                receiver.failing_post("sync truncate", 3)
                receiver.post(2)
            except Killed:
                killed = True
            # What is torn may not be cut off.
            recorder.fault = lambda what, _: errno.EIO if what == "truncate" else None
            recorder.restart()
            start = len(recorder.operations)
            log = opened(recorder.root)
            there = [stored.entry.audit_id for stored in log.recent(1 << 20)]
            recorder.mark("taken", there)
            first = log.next_sequence
            assert not log.append([group(901)])
            recorder.mark("tried", (first, ["id-901"]))
            recorder.mark("taken", ["id-901"])
            log.close()
        # Of what failed nobody was told anything that had to be kept.
        survives(recorder, folder, seed=call, samples=4, since=start)
        if not killed:
            break
    assert call > 15


FAILURES = ("sync", "sync once", "write", "sync truncate")
SCRIPT: Sequence[Callable[[Receiver, random.Random], None]] = (
    lambda it, chance: it.post(chance.randint(1, 4), size=chance.choice((20, 300, 900))),
    lambda it, chance: it.post(chance.randint(1, 4), size=chance.choice((20, 300, 900))),
    lambda it, chance: it.failing_post(chance.choice(FAILURES), chance.randint(1, 3), 400),
    lambda it, chance: it.deliver(chance.randint(1, 5)),
    lambda it, _: it.restart(),
)


@pytest.mark.parametrize("seed", range(12))
def test_what_was_taken_survives_whatever_comes_together(seed: int, memory: Path) -> None:
    chance = random.Random(seed)
    steps = [chance.choice(SCRIPT) for _ in range(10)]
    recorder = recorded(memory, *(lambda it, step=step: step(it, chance) for step in steps))  # type: ignore[misc]
    survives(recorder, memory, seed=seed, samples=2)
