"""What was answered 200 for survives: SIGKILL, power cuts, torn and missing writes, full and failing disks."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from audit_operator.receiver import journal as journal_module
from audit_operator.receiver.journal import (
    AppendError,
    Blocks,
    Damage,
    Disk,
    Entry,
    Journal,
    LockedError,
    Log,
    Position,
    blocks,
)

SINK = "audit-system/siem"


def entries(*numbers: int, size: int = 30) -> list[Entry]:
    return [Entry(f"id-{number}", "ResponseComplete", "t", b"%d" % number + b"x" * size) for number in numbers]


def group(*numbers: int, size: int = 30) -> Blocks:
    return blocks("server", entries(*numbers, size=size))


def ids(log: Log, position: Position | None = None) -> list[str]:
    """What can be read, from the cursor on."""
    return [stored.entry.audit_id for stored in everything(log, position)[0]]


def everything(log: Log, position: Position | None = None) -> tuple[list[Any], list[Damage]]:
    position = position or log.position
    found, missing = [], []
    while True:
        events, position, damage = log.read(position)
        missing += damage
        if not events:
            return found, missing
        found += events


def run(folder: Path, test: Callable[[Journal], Coroutine[Any, Any, Any]], disk: Disk | None = None) -> Any:
    async def whole() -> Any:
        journal = Journal(folder, disk)
        await journal.open()
        try:
            await journal.log(SINK)
            return await test(journal)
        finally:
            await journal.close()

    return asyncio.run(whole())


def names(*numbers: int) -> list[str]:
    return [f"id-{number}" for number in numbers]


def segment_files(folder: Path) -> list[Path]:
    return sorted((folder / "sinks" / SINK).glob("*.log"))


def test_what_was_appended_is_read_in_order_after_a_restart(tmp_path: Path) -> None:
    async def first(journal: Journal) -> None:
        await asyncio.gather(*(journal.append({SINK: group(number, number + 1)}) for number in range(0, 20, 2)))

    async def second(journal: Journal) -> None:
        assert ids(journal.logs[SINK]) == names(*range(20))
        assert [event.sequence for event in everything(journal.logs[SINK])[0]] == list(range(1, 21))
        assert journal.logs[SINK].backlog == 20

    run(tmp_path, first)
    run(tmp_path, second)


def test_many_posts_share_one_sync(tmp_path: Path) -> None:
    class Counting(Disk):
        syncs = 0

        def sync(self, file: int) -> None:
            self.syncs += 1
            super().sync(file)

    disk = Counting()

    async def test(journal: Journal) -> None:
        await asyncio.gather(*(journal.append({SINK: group(number)}) for number in range(200)))

    run(tmp_path, test, disk)
    assert disk.syncs <= 3


def test_delivery_goes_on_where_it_was_even_inside_a_block(tmp_path: Path) -> None:
    async def first(journal: Journal) -> None:
        log = journal.logs[SINK]
        await journal.append({SINK: group(1, 2, 3)})
        await journal.append({SINK: group(4)})
        log.acknowledge(everything(log)[0][1].after)

    async def second(journal: Journal) -> None:
        log = journal.logs[SINK]
        assert ids(log) == names(3, 4)
        log.acknowledge(everything(log)[0][-1].after)
        assert log.backlog == 0

    async def third(journal: Journal) -> None:
        log = journal.logs[SINK]
        assert ids(log) == []
        await journal.append({SINK: group(5)})
        assert [(event.entry.audit_id, event.sequence) for event in everything(log)[0]] == [("id-5", 5)]

    for each in (first, second, third):
        run(tmp_path, each)


def test_delivered_segments_are_deleted_and_numbers_go_on(tmp_path: Path) -> None:
    async def first(journal: Journal) -> None:
        log = journal.logs[SINK]
        log.limit = 1
        for number in range(6):
            await journal.append({SINK: group(number, size=600_000)})
        assert len(segment_files(tmp_path)) == 3
        log.acknowledge(everything(log)[0][3].after)
        assert len(segment_files(tmp_path)) == 1
        log.acknowledge(everything(log)[0][-1].after)

    async def second(journal: Journal) -> None:
        log = journal.logs[SINK]
        assert not ids(log)
        await journal.append({SINK: group(6)})
        assert [event.sequence for event in everything(log)[0]] == [7]
        log.acknowledge(everything(log)[0][-1].after)
        assert len(segment_files(tmp_path)) == 1

    run(tmp_path, first)
    run(tmp_path, second)


def test_a_post_of_any_size_is_cut_into_blocks_that_fit_into_memory() -> None:
    made = group(*range(10), size=400_000)
    assert len(made.payloads) > 2
    assert all(len(payload) < 2 * journal_module.BLOCK_BYTES for payload, _ in made.payloads)
    assert made.events == 10


def test_a_lost_or_damaged_cursor_repeats_and_loses_nothing(tmp_path: Path) -> None:
    async def first(journal: Journal) -> None:
        log = journal.logs[SINK]
        await journal.append({SINK: group(1, 2, 3)})
        for at in (0, 1):
            log.acknowledge(everything(log, Position(1, 0, 1))[0][at].after)

    run(tmp_path, first)
    cursor = tmp_path / "sinks" / SINK / "cursor"
    whole = cursor.read_bytes()
    seen = set()

    async def second(journal: Journal) -> None:
        seen.add(tuple(ids(journal.logs[SINK])))

    for at in range(len(whole)):
        cursor.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        run(tmp_path, second)
    assert seen == {tuple(names(3)), tuple(names(2, 3))}
    for content in (b"", b"x" * 200):
        cursor.write_bytes(content)
        run(tmp_path, second)
    assert tuple(names(1, 2, 3)) in seen


def test_another_receiver_cannot_use_the_same_journal(tmp_path: Path) -> None:
    async def test(_: Journal) -> None:
        with pytest.raises(LockedError, match="is in use by another receiver"):
            await Journal(tmp_path).open()

    run(tmp_path, test)


# --- crashes ---------------------------------------------------------------------------------------------------------


def opened(folder: Path) -> Log:
    log = Log(folder / "sinks" / SINK, Disk())
    log.open()
    return log


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int]]:
    """A segment of three blocks, and where each ends."""
    folder = tmp_path_factory.mktemp("journal")
    ends = []

    async def test(journal: Journal) -> None:
        for numbers in ((1, 2), (3,), (4, 5, 6)):
            await journal.append({SINK: group(*numbers)})
            ends.append(segment_files(folder)[0].stat().st_size)

    run(folder, test)
    return segment_files(folder)[0].read_bytes(), ends


def expected(ends: Sequence[int], length: int) -> list[str]:
    whole = sum(end <= length for end in ends)
    return names(*[1, 2, 3, 4, 5, 6][: (0, 2, 3, 6)[whole]])


def test_every_prefix_of_a_segment_gives_its_whole_blocks(tmp_path: Path, written: tuple[bytes, list[int]]) -> None:
    data, ends = written
    path = tmp_path / "sinks" / SINK / "00000000000000000001.log"
    path.parent.mkdir(parents=True)
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        log = opened(tmp_path)
        assert ids(log) == expected(ends, length)
        assert log.torn == length - max(end for end in (0, *ends) if end <= length)
        # And what is written from now on is read behind it.
        log.write([group(7)])
        log.sync([group(7)])
        assert ids(log) == [*expected(ends, length), "id-7"]
        log.close()
        again = opened(tmp_path)
        assert ids(again) == [*expected(ends, length), "id-7"]
        again.close()
        for each in path.parent.iterdir():
            each.unlink()


def test_every_flipped_bit_costs_one_block_and_is_said(tmp_path: Path, written: tuple[bytes, list[int]]) -> None:
    data, ends = written
    path = tmp_path / "sinks" / SINK / "00000000000000000001.log"
    path.parent.mkdir(parents=True)
    of_block = [names(1, 2), names(3), names(4, 5, 6)]
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        log = opened(tmp_path)
        hit = sum(end <= at for end in ends)
        found, missing = everything(log)
        assert [event.entry.audit_id for event in found] == [
            name for block in of_block if block is not of_block[hit] for name in block
        ]
        if hit == 2:
            assert log.torn == ends[2] - ends[1]
        else:
            assert log.damaged == missing == [Damage((1, 3)[hit], (2, 1)[hit])]
        log.close()
        (path.parent / "cursor").unlink()


def test_numbers_never_start_again_although_a_power_cut_takes_the_cursor(tmp_path: Path) -> None:
    # Sinks may name what they write by them: a number that comes twice would overwrite evidence.
    synced: dict[str, bytes] = {}

    class CursorInMemory(Disk):
        def sync(self, file: int) -> None:
            super().sync(file)
            path = Path(f"/proc/self/fd/{file}").readlink()
            if path.name == "cursor":
                synced[path.name] = path.read_bytes()

    log = Log(tmp_path / "sinks" / SINK, CursorInMemory())
    log.limit = 1
    log.open()
    number = 0
    while number < 60 or segment_files(tmp_path):
        assert not log.append([group(number, size=100_000)])
        number += 1
        _, position, _ = log.read(log.position)
        log.acknowledge(position)
        assert number < 1000
    (tmp_path / "sinks" / SINK / "cursor").write_bytes(synced.get("cursor", b""))
    after = Log(tmp_path / "sinks" / SINK, Disk())
    after.open()
    assert after.next_sequence == number + 1
    after.close()
    log.close()


def test_no_number_is_given_twice_although_the_disk_loses_what_is_delivered(tmp_path: Path) -> None:
    """And what comes next is not below what the cursor has passed."""
    log = opened(tmp_path)
    assert not log.append([group(1)])
    assert not log.append([group(2, 3, 4)])
    log.acknowledge(everything(log)[0][-1].after)
    log.close()
    path = segment_files(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-10])
    after = opened(tmp_path)
    assert ids(after) == []
    assert not after.append([group(5)])
    after.close()
    again = opened(tmp_path)
    assert [(event.entry.audit_id, event.sequence) for event in everything(again)[0]] == [("id-5", 5)]
    again.close()


def test_the_last_events_are_known_although_a_segment_has_just_begun(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.limit = 1
    for number in range(4):
        assert not log.append([group(number, size=600_000)])
    log.close()
    path = segment_files(tmp_path)[-1]
    path.write_bytes(b"")  # the receiver was killed when it had begun it
    for limit, last in ((600_000, (1,)), (1 << 20, (0, 1)), (4 << 20, (0, 1))):
        after = opened(tmp_path)
        assert [event.entry.audit_id for event in after.recent(limit)] == names(*last)
        after.close()
    after = opened(tmp_path)
    assert not after.append([group(9)])
    assert [event.entry.audit_id for event in after.recent(1 << 10)] == names(1, 9)
    after.close()


def test_a_bug_while_writing_is_answered_and_does_not_stop_the_journal(tmp_path: Path) -> None:
    class Broken(Disk):
        broken = True

        def write(self, file: int, pieces: Sequence[bytes], offset: int) -> None:
            if self.broken:
                raise MemoryError
            super().write(file, pieces, offset)

    disk = Broken()

    async def test(journal: Journal) -> None:
        async with asyncio.timeout(10):
            with pytest.raises(AppendError, match="MemoryError"):
                await journal.append({SINK: group(1)})
            disk.broken = False
            await journal.append({SINK: group(2)})
        assert not journal.failure

    run(tmp_path, test, disk)
    after = opened(tmp_path)
    assert ids(after) == names(2)
    after.close()


CHILD = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_journal import SINK, group
from audit_operator.receiver.journal import Journal

async def main():
    journal = Journal(Path({folder!r}))
    await journal.open()
    log = await journal.log(SINK)
    log.limit = 1
    number = int(sys.argv[1])
    async def client(first):
        for number in range(first, first + 100_000, 10):
            await journal.append({{SINK: group(number, size=5000)}})
            print(number, flush=True)
    await asyncio.gather(*(client(number + n) for n in range(10)))

asyncio.run(main())
"""


def test_acknowledged_events_survive_sigkill(tmp_path: Path) -> None:
    acknowledged: set[str] = set()
    code = CHILD.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    for round_ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(round_ * 1_000_000)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(150 + 37 * round_):
            acknowledged.add(f"id-{child.stdout.readline().strip()}")
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate()
        acknowledged |= {f"id-{line}" for line in rest.split("\n")[:-1]}
    log = opened(tmp_path)
    found = ids(log)
    log.close()
    assert acknowledged <= set(found)
    assert len(found) == len(set(found))


# --- disks that fail -------------------------------------------------------------------------------------------------


class Failing(Disk):
    """Fails as told: ``broken`` is "", "write", "half a write" or "sync"; for files whose path holds ``where``."""

    def __init__(self) -> None:
        self.broken = ""
        self.where = ""

    def write(self, file: int, pieces: Sequence[bytes], offset: int) -> None:
        concerned = self.where in str(Path(f"/proc/self/fd/{file}").readlink())
        if concerned and self.broken == "write":
            raise OSError(28, "No space left on device")
        if concerned and self.broken == "half a write":
            data = b"".join(pieces)
            os.pwrite(file, data[: len(data) - 7], offset)
            raise OSError(28, "No space left on device")
        super().write(file, pieces, offset)

    def sync(self, file: int) -> None:
        if self.broken == "sync" and self.where in str(Path(f"/proc/self/fd/{file}").readlink()):
            raise OSError(5, "Input/output error")
        super().sync(file)


@pytest.mark.parametrize("broken", ["write", "half a write", "sync"])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_failing_disk_acknowledges_nothing_and_recovers_by_itself(broken: str, before: int, tmp_path: Path) -> None:
    disk = Failing()

    async def test(journal: Journal) -> None:
        kept = []
        for number in range(before):
            await journal.append({SINK: group(number)})
            kept += names(number)
        disk.broken = broken
        for number in (100, 101):
            with pytest.raises(AppendError, match=r"no space left on device|input/output error"):
                await journal.append({SINK: group(number)})
            assert journal.failure
            await journal.probe()
            assert journal.failure
        assert ids(journal.logs[SINK]) == kept
        disk.broken = ""
        await journal.probe()
        assert not journal.failure
        for number in (200, 201):
            await journal.append({SINK: group(number)})
        assert ids(journal.logs[SINK]) == [*kept, *names(200, 201)]
        assert [event.sequence for event in everything(journal.logs[SINK])[0]] == list(range(1, before + 3))

    run(tmp_path, test, disk)
    after = opened(tmp_path)
    assert ids(after) == names(*range(before), 200, 201)
    assert not after.damaged
    after.close()


def test_one_log_that_fails_leaves_the_others_their_events(tmp_path: Path) -> None:
    disk = Failing()
    disk.where = "/other/"

    async def test(journal: Journal) -> None:
        await journal.log("team/other")
        disk.broken = "sync"
        with pytest.raises(AppendError) as caught:
            await journal.append({SINK: group(1), "team/other": group(1)})
        assert list(caught.value.failed) == ["team/other"]
        assert ids(journal.logs[SINK]) == names(1)
        assert ids(journal.logs["team/other"]) == []

    run(tmp_path, test, disk)


def test_a_file_that_may_not_grow_loses_nothing(tmp_path: Path) -> None:
    code = (
        "import asyncio, resource, signal, sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_journal import SINK, group, ids\n"
        "from audit_operator.receiver.journal import AppendError, Journal\n"
        "async def main():\n"
        f"    journal = Journal(Path({str(tmp_path)!r}))\n"
        "    await journal.open()\n"
        "    await journal.log(SINK)\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    await journal.append({SINK: group(1)})\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "    try:\n"
        "        await journal.append({SINK: group(2, size=2000)})\n"
        "    except AppendError as error:\n"
        "        print(error)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "    await journal.append({SINK: group(3)})\n"
        "    print(ids(journal.logs[SINK]))\n"
        "    await journal.close()\n"
        "asyncio.run(main())\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == f"{SINK}: file too large\n['id-1', 'id-3']\n"


def test_a_removed_log_is_gone(tmp_path: Path) -> None:
    async def test(journal: Journal) -> None:
        await journal.append({SINK: group(1)})
        await journal.remove(SINK)
        assert not (tmp_path / "sinks" / SINK).exists()
        # A POST that was decided before is not refused for it, nor is the receiver unready.
        await journal.log("audit-system/other")
        await journal.append({SINK: group(2), "audit-system/other": group(3)})
        assert ids(journal.logs["audit-system/other"]) == ["id-3"]
        assert not journal.failure

    run(tmp_path, test)


def test_the_last_events_are_known_after_a_restart(tmp_path: Path) -> None:
    async def test(journal: Journal) -> None:
        for number in range(5):
            await journal.append({SINK: group(number, size=1000)})

    run(tmp_path, test)
    log = opened(tmp_path)
    assert [event.entry.audit_id for event in log.recent(2500)] == names(2, 3, 4)
    # Delivered or not: an API server may not have been told that it was taken.
    log.acknowledge(everything(log)[0][-1].after)
    log.close()
    for last in (4, 5, 6):
        log = opened(tmp_path)
        assert [event.entry.audit_id for event in log.recent(2500)] == names(last - 2, last - 1, last)
        assert not log.append([group(last + 1, size=1000)])
        log.acknowledge(everything(log)[0][-1].after)
        log.close()


def test_what_is_shed_is_the_oldest_and_a_reader_goes_on_behind_it(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", Disk())
    log.open()
    log.limit = 1
    for number in range(8):
        assert log.append([group(number, size=1 << 20)]) == ""
    events, reached, _ = log.read(log.position)
    assert log.shed(log.size) == 0
    lost = log.shed(3 << 20)
    assert lost == log.position.sequence - 1 == 5
    assert ids(log) == ["id-5", "id-6", "id-7"]
    # What was under way when it happened is acknowledged late, and takes nothing back.
    log.acknowledge(events[-1].after)
    assert log.position.sequence == lost + 1
    assert ids(log, reached) == ["id-5", "id-6", "id-7"]
    log.close()
    again = Log(tmp_path / "log", Disk())
    again.open()
    assert ids(again) == ["id-5", "id-6", "id-7"]
    assert again.backlog == 3
    again.close()
