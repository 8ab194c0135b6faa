"""The file sink: synced before it is taken, rotated, compressed, kept no longer than asked for, tidy after a crash."""

import asyncio
import gzip
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import zstandard
from sink_cases import batch, made, sink_program, surroundings

from audit_operator.receiver.sinks import MisconfiguredError, UnknownSinkError, UnreachableError, make
from audit_operator.receiver.sinks.file import File, Rules

ROOMY = Rules(max_size=1 << 20, max_age=3600.0, max_files=10, compression="None")


def deliver(
    path: Path, rules: Rules, *numbers: int, now: Callable[[], float] = lambda: 0.0, single: bool = True
) -> None:
    async def run() -> None:
        sink = File(path, rules, now)
        await sink.open()
        for each in [[number] for number in numbers] if single else [numbers]:
            await sink.deliver(batch(*each))
        await sink.close()

    asyncio.run(run())


def lines(*numbers: int) -> bytes:
    return b"".join(item.data + b"\n" for item in batch(*numbers).items)


def test_the_path_is_made_of_the_settings(tmp_path: Path) -> None:
    async def run() -> None:
        sink = made(tmp_path, file={"path": "{cluster}/{sink}-{receiver}.log"})
        await sink.open()
        await sink.deliver(batch(1, 2))
        await sink.close()

    asyncio.run(run())
    assert (tmp_path / "files/prod/siem-audit-receiver-0.log").read_bytes() == lines(1, 2)


def test_a_claim_has_its_own_folder(tmp_path: Path) -> None:
    async def run() -> None:
        sink = made(tmp_path, file={"path": "a.log", "claimName": "archive"})
        await sink.open()
        await sink.deliver(batch(1))
        await sink.close()

    asyncio.run(run())
    assert (tmp_path / "claims/archive/a.log").read_bytes() == lines(1)


def test_no_path_leads_out_of_the_folder(tmp_path: Path) -> None:
    program = sink_program(file={})
    for path in ("../a.log", "a/../../b.log", "/etc/passwd"):
        settings = program.settings | {"path": path}
        with pytest.raises(UnknownSinkError, match="leads out of its folder"):
            make(msgspec.structs.replace(program, settings=settings), surroundings(tmp_path))


def test_events_are_appended_over_restarts(tmp_path: Path) -> None:
    deliver(tmp_path / "a.log", ROOMY, 1, 2)
    deliver(tmp_path / "a.log", ROOMY, 3)
    assert (tmp_path / "a.log").read_bytes() == lines(1, 2, 3)


def test_a_line_torn_by_a_crash_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    for torn in range(1, len(lines(2)), 37):
        path.write_bytes(lines(1) + lines(2)[:torn])
        deliver(path, ROOMY, 2)
        assert path.read_bytes() == lines(1, 2)
    path.write_bytes(b"x" * 200_000)
    deliver(path, ROOMY, 1)
    assert path.read_bytes() == lines(1)


@pytest.mark.parametrize("compression", ["None", "gzip", "zstd"])
def test_files_are_closed_at_their_size_and_no_event_is_lost(compression: str, tmp_path: Path) -> None:
    clock = iter(range(1000))
    rules = msgspec.convert(
        {"max_size": len(lines(1, 2)), "max_age": 1e9, "max_files": 10, "compression": compression}, Rules
    )
    deliver(tmp_path / "a.log", rules, 1, 2, 3, 4, 5, now=lambda: float(next(clock)))
    closed = sorted(path for path in tmp_path.iterdir() if path.name.startswith("a-"))
    unpack = {
        "None": bytes,
        "gzip": gzip.decompress,
        "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
    }[compression]
    assert [unpack(path.read_bytes()) for path in closed] == [lines(1, 2), lines(3, 4)]
    assert (tmp_path / "a.log").read_bytes() == lines(5)
    assert {path.suffix for path in closed} == {{"None": ".log", "gzip": ".gz", "zstd": ".zst"}[compression]}


def test_a_file_is_closed_at_its_age_even_over_restarts(tmp_path: Path) -> None:
    rules = Rules(max_size=1 << 20, max_age=60.0, max_files=10, compression="None")
    deliver(tmp_path / "a.log", rules, 1, now=lambda: 1000.0)
    deliver(tmp_path / "a.log", rules, 2, now=lambda: 1059.0)
    deliver(tmp_path / "a.log", rules, 3, now=lambda: 1060.0)
    assert (tmp_path / "a-1970-01-01T00-17-40.000000.log").read_bytes() == lines(1, 2)
    assert (tmp_path / "a.log").read_bytes() == lines(3)


def test_the_oldest_closed_files_go(tmp_path: Path) -> None:
    clock = iter(range(1000))
    rules = Rules(max_size=1, max_age=1e9, max_files=2, compression="gzip")
    deliver(tmp_path / "a.log", rules, *range(6), now=lambda: float(next(clock)))
    closed = sorted(path for path in tmp_path.iterdir() if path.name.startswith("a-"))
    assert [gzip.decompress(path.read_bytes()) for path in closed] == [lines(3), lines(4)]


def test_what_a_crash_left_uncompressed_is_compressed_at_the_next_start(tmp_path: Path) -> None:
    rules = Rules(max_size=1 << 20, max_age=1e9, max_files=10, compression="gzip")
    left = tmp_path / "a-2026-11-23T04-33-04.343515.log"
    left.write_bytes(lines(1))
    (tmp_path / "a-2026-11-23T04-33-04.343515.log.gz.tmp").write_bytes(b"half of it")
    deliver(tmp_path / "a.log", rules, 2)
    assert not left.exists()
    assert gzip.decompress((tmp_path / "a-2026-11-23T04-33-04.343515.log.gz").read_bytes()) == lines(1)
    assert not list(tmp_path.glob("*.tmp"))


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    rules = Rules(max_size=1, max_age=1e9, max_files=1, compression="gzip")
    others = ["a-notes.log", "ab-2026-11-23T04-33-04.343515.log", "a.txt", "a-b-2026-11-23T04-33-04.343515.log"]
    for name in others:
        (tmp_path / name).write_text("mine\n")
    clock = iter(range(1000))
    deliver(tmp_path / "a.log", rules, 1, 2, 3, now=lambda: float(next(clock)))
    assert [(tmp_path / name).read_text() for name in others] == ["mine\n"] * 4


def test_events_that_come_again_after_a_crash_are_written_once(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    deliver(path, ROOMY, 1, 2, 3)
    path.write_bytes(path.read_bytes()[:-5])
    deliver(path, ROOMY, 2, 3, 4, single=False)
    deliver(path, ROOMY, 3, 4, 5, 6)
    assert path.read_bytes() == lines(1, 2, 3, 4, 5, 6)


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    async def run() -> None:
        first, second = (File(tmp_path / "a.log", ROOMY) for _ in range(2))
        await first.open()
        with pytest.raises(MisconfiguredError, match="another sink or receiver writes the same file"):
            await second.open()
        await first.close()
        await second.open()
        await second.close()

    asyncio.run(run())


def test_a_full_volume_takes_nothing_half_and_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.log"
    real = os.write

    def full(file: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(28, "No space left on device")
        return real(file, data[: len(data) - 50])

    async def run() -> None:
        sink = File(path, ROOMY)
        await sink.open()
        await sink.deliver(batch(1))
        with monkeypatch.context() as patch:
            patch.setattr("audit_operator.receiver.sinks.file.os.write", full)
            with pytest.raises(UnreachableError, match="no space left on device"):
                await sink.deliver(batch(2, 3))
            assert path.read_bytes() == lines(1)
        await sink.deliver(batch(2, 3))
        await sink.close()

    asyncio.run(run())
    assert path.read_bytes() == lines(1, 2, 3)
