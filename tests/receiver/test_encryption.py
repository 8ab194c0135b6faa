"""Encryption at rest of the file sink: nothing plain touches the disk, age decrypts it, a chain covers it as it is."""

import asyncio
import contextlib
import gzip
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from integrity_cases import Archive, changed, clock, numbered, verified
from sink_cases import batch, made, sink_program, surroundings

from audit_operator.receiver.sinks import MisconfiguredError, UnknownSinkError, UnreachableError, make
from audit_operator.receiver.verification import Kind

pyrage = pytest.importorskip("pyrage")

ALICE, BOB, EVE = (pyrage.x25519.Identity.generate() for _ in range(3))


def encrypt(data: bytes) -> bytes:
    """For Alice and Bob."""
    return bytes(pyrage.encrypt(data, [ALICE.to_public(), BOB.to_public()]))


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """An empty one."""
    (tmp_path / "archive").mkdir()
    return Archive(tmp_path / "archive", tmp_path / "state")


def parts(archive: Archive) -> list[Path]:
    """Encrypted files, the oldest first."""
    return sorted(archive.folder.glob("*.age"))


def decrypted(archive: Archive, unpack: Callable[[bytes], bytes] = gzip.decompress) -> bytes:
    """All of it, in order."""
    return b"".join(unpack(pyrage.decrypt(path.read_bytes(), [BOB])) for path in parts(archive))


def lines(*numbers: int) -> bytes:
    return b"".join(item.data + b"\n" for item in batch(*numbers).items)


@pytest.mark.parametrize("compression", ["None", "gzip", "zstd"])
def test_each_batch_is_an_age_file_and_nothing_plain_is_left(compression: str, archive: Archive) -> None:
    archive.write(batch(1, 2), batch(3), encrypt=encrypt, compression=compression, max_size=1 << 20)
    unpack: dict[str, Callable[[bytes], bytes]] = {
        "None": bytes,
        "gzip": gzip.decompress,
        "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
    }
    assert decrypted(archive, unpack[compression]) == lines(1, 2, 3)
    ending = {"None": ".log.age", "gzip": ".log.gz.age", "zstd": ".log.zst.age"}[compression]
    first, second = (path.name for path in parts(archive))
    assert first.removesuffix(f"-000001{ending}") == second.removesuffix(f"-000002{ending}")
    everything = b"".join(path.read_bytes() for path in archive.folder.parent.rglob("*") if path.is_file())
    assert b"auditID" not in everything
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(parts(archive)[0].read_bytes(), [EVE])


def test_the_age_program_decrypts_it(archive: Archive, tmp_path: Path) -> None:
    program = shutil.which("age")
    if program is None:
        pytest.skip("age is not installed")
    archive.write(batch(1, 2, 3), encrypt=encrypt)
    (tmp_path / "identity").write_text(f"{ALICE}\n")
    (path,) = parts(archive)
    command = [program, "--decrypt", "-i", str(tmp_path / "identity"), str(path)]
    assert gzip.decompress(subprocess.run(command, capture_output=True, check=True).stdout) == lines(1, 2, 3)


def test_retention_counts_what_would_have_been_files(archive: Archive) -> None:
    size = len(encrypt(gzip.compress(lines(1))))
    options: dict[str, Any] = {"encrypt": encrypt, "max_size": int(size * 2.5), "max_files": 2}
    archive.write(*numbered(5), **options)
    archive.write(*numbered(9)[5:], **options)
    groups = sorted({path.name[: len("a-2026-11-18T11-06-43.000000")] for path in parts(archive)})
    assert len(groups) == 3
    assert decrypted(archive) == lines(5, 6, 7, 8, 9)
    assert verified(archive.folder).findings == []


def test_encrypted_files_are_a_chain_as_they_lie_there(archive: Archive) -> None:
    archive.write(*numbered(4), encrypt=encrypt)
    found = verified(archive.folder)
    assert (found.findings, found.notes) == ([], [])
    assert (found.chains[0].last, found.chains[0].events) == (4, 4)
    with changed(parts(archive)[1]) as data:
        data[-1] ^= 1
    parts(archive)[3].with_name("a.log").write_text("{}\n")
    parts(archive)[2].unlink()
    names = [path.name for path in parts(archive)]
    said = verified(archive.folder).said
    assert (Kind.CHANGED, names[1]) in said
    assert (Kind.ADDED, "a.log") in said
    assert {kind for kind, _ in said} == {Kind.CHANGED, Kind.ADDED, Kind.REMOVED}


def test_the_settings_name_who_can_decrypt(tmp_path: Path) -> None:
    spec = {"path": "a.log", "encryption": {"recipients": [str(ALICE.to_public())]}}

    async def run() -> None:
        sink = made(tmp_path, file=spec)
        await sink.open()
        await sink.deliver(batch(1))
        await sink.close()

    asyncio.run(run())
    (path,) = (tmp_path / "files").glob("*.age")
    assert gzip.decompress(pyrage.decrypt(path.read_bytes(), [ALICE])) == lines(1)
    mistyped = str(ALICE.to_public())[:-1] + ("q" if str(ALICE.to_public())[-1] != "q" else "p")
    with pytest.raises(UnknownSinkError, match="is no recipient of age; `age-keygen -y` prints it"):
        make(sink_program(file={"encryption": {"recipients": [mistyped]}}), surroundings(tmp_path))


def test_batches_of_encrypted_files_are_large_unless_the_sink_says_otherwise() -> None:
    recipients = {"recipients": [str(ALICE.to_public())]}
    assert sink_program(file={"encryption": recipients}).batch.max_age == 300
    assert sink_program(file={}).batch.max_age == 1
    assert sink_program(file={"encryption": recipients}, batch={"maxAge": "10s"}).batch.max_age == 10


def test_two_writers_of_encrypted_files_do_not_mix(archive: Archive) -> None:
    now = clock(archive)

    async def run() -> None:
        first, second = (archive.sink(now, encrypt=encrypt) for _ in range(2))
        await first.open()
        with pytest.raises(MisconfiguredError, match="another sink or receiver writes the same file"):
            await second.open()
        await first.close()
        await second.open()
        await second.close()

    asyncio.run(run())


def test_a_batch_that_is_written_is_not_written_again_for_what_comes_after(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any step of a delivery the disk may be full: the batch comes again, and is there once."""
    now = clock(archive)
    real = os.replace

    async def run() -> None:
        sink = archive.sink(now, encrypt=encrypt)
        await sink.open()
        for number, failing in enumerate(range(8), start=1):
            calls = iter(range(100))

            def full(*arguments: Any, failing: int = failing, calls: Any = calls, **options: Any) -> None:
                if next(calls) >= failing:
                    raise OSError(28, "No space left on device")
                real(*arguments, **options)

            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", full)
                for _ in range(3):
                    with contextlib.suppress(UnreachableError):
                        await sink.deliver(batch(number))
                        break
                else:
                    patch.setattr(os, "replace", real)
                    await sink.deliver(batch(number))
        await sink.close()

    asyncio.run(run())
    assert decrypted(archive) == lines(*range(1, 9))
    found = verified(archive.folder)
    assert (found.findings, found.notes) == ([], [])
    assert found.chains[0].last == 8


def test_a_crash_at_any_step_leaves_nothing_that_looks_like_tampering(memory: Path) -> None:
    from test_integrity import dies

    left, call = numbered(1), 0
    while left:
        archive = Archive(memory / str(call) / "archive", memory / str(call) / "state")
        archive.folder.mkdir(parents=True)
        now = clock(archive)
        archive.write(*numbered(2), encrypt=encrypt, max_files=2, now=now)
        left = dies(archive.sink(now, encrypt=encrypt, max_files=2), call, batch(3), batch(4))
        assert verified(archive.folder).findings == [], call
        archive.write(*left, batch(5), encrypt=encrypt, max_files=2, now=now)
        after = verified(archive.folder)
        assert (after.findings, after.notes) == ([], []), call
        # What was written and not noted as taken is there twice, at most.
        assert decrypted(archive).endswith(lines(5))
        assert len(parts(archive)) == 3
        call += 1
    assert call > 30
