"""Integrity of the file sink: whatever is done to a chain of files is named, exactly; and nothing that a receiver does,
its sudden death included, is taken for tampering."""

import asyncio
import base64
import contextlib
import gzip
import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integrity_cases import (
    KEY,
    OTHER_KEY,
    Archive,
    changed,
    clock,
    numbered,
    pem,
    public_pem,
    verified,
)
from receiving import client, policy, program, sink
from sink_cases import batch, credential, made
from test_process import Process

from audit_operator.receiver import integrity
from audit_operator.receiver.integrity import SignatureError, document, fingerprint, measure
from audit_operator.receiver.sinks import Batch, UnauthorizedError
from audit_operator.receiver.sinks.file import File
from audit_operator.receiver.verification import CannotCheckError, Kind, Known

FILES = 6


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """An empty one."""
    (tmp_path / "archive").mkdir()
    return Archive(tmp_path / "archive", tmp_path / "state")


@pytest.fixture(scope="module")
def written() -> Iterator[Archive]:
    """Of which nothing was changed yet: FILES closed files, their digests, the head, and the file being written."""
    with tempfile.TemporaryDirectory() as folder:
        found = Archive(Path(folder) / "archive", Path(folder) / "state")
        found.folder.mkdir()
        found.write(*numbered(FILES + 1))
        yield found


def closed(archive: Archive) -> list[str]:
    """Names of closed files without compression, the oldest first."""
    return sorted(path.name.removesuffix(".gz") for path in archive.folder.glob("a-*.log.gz"))


def test_what_a_receiver_wrote_is_intact(written: Archive) -> None:
    found = verified(written.folder)
    assert found.findings == []
    assert [(note.kind, note.file) for note in found.notes] == [(Kind.NOT_SEALED, "a.log")]
    (chain,) = found.chains
    assert (chain.first, chain.last, chain.files, chain.events) == (1, FILES, FILES, FILES)
    assert (chain.sink, chain.receiver, chain.cluster) == ("audit-system/archive", "a", "prod")


# --- tampering -------------------------------------------------------------------------------------------------------


def kind_of_change(name: str) -> Kind:
    return Kind.SIGNATURE if name.endswith(".json") else Kind.CHANGED


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_done_to_one_file_is_named_exactly(data: st.DataObject, written: Archive) -> None:
    with tempfile.TemporaryDirectory() as copy:
        folder = Path(copy) / "archive"
        shutil.copytree(written.folder, folder)
        names = written.files()
        name = data.draw(st.sampled_from(names), "file")
        path = folder / name
        size = path.stat().st_size
        match data.draw(st.sampled_from(["flip", "remove", "truncate", "append", "empty", "rename", "add"]), "what"):
            case "flip":
                with changed(path) as content:
                    content[data.draw(st.integers(0, size - 1), "at")] ^= data.draw(st.integers(1, 255), "by")
                expected = {(kind_of_change(name), name)}
            case "remove":
                path.unlink()
                expected = {(Kind.REMOVED, name)}
            case "truncate":
                os.truncate(path, data.draw(st.integers(0, size - 1), "to"))
                expected = {(kind_of_change(name), name)}
            case "append":
                path.write_bytes(path.read_bytes() + data.draw(st.binary(min_size=1, max_size=50), "more"))
                expected = {(kind_of_change(name), name)}
            case "empty":
                path.write_bytes(b"")
                expected = {(kind_of_change(name), name)}
            case "rename":
                path.rename(folder / "elsewhere.log.gz")
                expected = {(Kind.REMOVED, name), (Kind.ADDED, "elsewhere.log.gz")}
            case _:
                new = data.draw(st.from_regex(r"\A[a-z.-]{1,20}(\.log\.gz|\.digest\.json)?\Z"), "name")
                if new in (".", "..", "a.log", ".a.log.begun"):
                    return
                (folder / new).write_bytes(data.draw(st.binary(max_size=50), "content"))
                expected = {(Kind.SIGNATURE if new.endswith(".digest.json") else Kind.ADDED, new)}
        assert verified(folder).said == expected


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_files_that_changed_places_are_told(data: st.DataObject, written: Archive) -> None:
    """And what was copied over another one."""
    with tempfile.TemporaryDirectory() as copy:
        folder = Path(copy) / "archive"
        shutil.copytree(written.folder, folder)
        ending = data.draw(st.sampled_from([".gz", ".digest.json"]))
        first, second = data.draw(st.permutations(closed(written)))[:2]
        one, other = folder / f"{first}{ending}", folder / f"{second}{ending}"
        if data.draw(st.booleans(), "swap"):
            content = one.read_bytes()
            one.write_bytes(other.read_bytes())
            other.write_bytes(content)
            assert verified(folder).said == {(Kind.REORDERED, one.name), (Kind.REORDERED, other.name)}
        else:
            shutil.copy(other, one)
            assert verified(folder).said == {(Kind.REORDERED, one.name)}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.sets(st.integers(0, FILES - 1), min_size=1))
def test_files_removed_with_their_digests_are_missed(chosen: set[int], written: Archive) -> None:
    with tempfile.TemporaryDirectory() as copy:
        folder = Path(copy) / "archive"
        shutil.copytree(written.folder, folder)
        names = closed(written)
        for at in chosen:
            (folder / f"{names[at]}.gz").unlink()
            (folder / f"{names[at]}.digest.json").unlink()
        found = verified(folder)
        # Of several in a row the last is named, with how many there were before it.
        ends = {at for at in chosen if at + 1 not in chosen}
        assert found.said == {(Kind.REMOVED, f"{names[at]}{end}") for at in ends for end in (".gz", ".digest.json")}
        told = sum(1 + int(each.message.partition(", and ")[2].partition(" ")[0] or 0) for each in found.findings
                   if each.file.endswith(".json"))  # fmt: skip
        assert told == len(chosen)


def test_the_file_being_written_is_missed_and_the_end_of_a_chain(written: Archive, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(written.folder, folder)
    (folder / "a.log").unlink()
    assert verified(folder).said == {(Kind.REMOVED, "a.log")}


def test_nobody_without_the_key_signs(written: Archive, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(written.folder, folder)
    digest = folder / f"{closed(written)[2]}.digest.json"
    plain = document(digest.read_bytes(), {fingerprint(KEY.public_key()): KEY.public_key()})
    forged = plain.replace(b'"events":1', b'"events":9')
    signature = base64.b64encode(OTHER_KEY.sign(forged))
    digest.write_bytes(forged[:-1] + b',"signature":"' + signature + b'"}')
    assert verified(folder).said == {(Kind.SIGNATURE, digest.name)}
    own = forged.replace(fingerprint(KEY.public_key()).encode(), fingerprint(OTHER_KEY.public_key()).encode())
    digest.write_bytes(own[:-1] + b',"signature":"' + base64.b64encode(OTHER_KEY.sign(own)) + b'"}')
    (finding,) = verified(folder).findings
    assert finding.kind is Kind.SIGNATURE
    assert "is none of those given" in finding.message


def test_a_signature_has_one_spelling(written: Archive) -> None:
    keys = {fingerprint(KEY.public_key()): KEY.public_key()}
    text = next(written.folder.glob("*.head.json")).read_bytes()
    document(text, keys)
    # The last character before == holds four bits that nobody decodes.
    for letter in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/":
        other = text[:-5] + bytes([letter]) + text[-4:]
        if other != text:
            with pytest.raises(SignatureError):
                document(other, keys)
    for other in (text + b"\n", text.replace(b'"version":1', b'"version": 1'), b"", b"}", text[::-1]):
        with pytest.raises(SignatureError):
            document(other, keys)


@pytest.mark.parametrize("compression", ["None", "gzip", "zstd"])
def test_the_lines_that_were_changed_are_told(compression: str, archive: Archive) -> None:
    archive.write(batch(*range(1, 3501)), batch(3501), compression=compression)
    (path,) = [each for each in archive.folder.glob("a-*") if not each.name.endswith(".json")]
    if compression == "None":
        with changed(path) as data:
            at = data.index(b'"name":"1500"')
            data[at : at + 13] = b'"name":"1400"'
        (finding,) = verified(archive.folder).findings
        assert (finding.kind, finding.message) == (Kind.CHANGED, "within lines 1,001 to 2,000 of 3,500")
        with changed(path) as data:
            end = data.index(b"\n", at)
            del data[data.rindex(b"\n", 0, at) + 1 : end + 1]
        (finding,) = verified(archive.folder).findings
        assert "bytes less than signed; from line 1,001 on" in finding.message
    else:
        with changed(path) as data:
            data[-20] ^= 1
        (finding,) = verified(archive.folder).findings
        assert finding.kind is Kind.CHANGED
        assert "line" in finding.message


def test_earlier_reports_tell_when_ends_or_whole_chains_are_gone(archive: Archive) -> None:
    archive.write(*numbered(4))
    old = Path(shutil.copytree(archive.folder, archive.folder.parent / "old"))
    archive.write(batch(5), batch(6))
    report = verified(archive.folder).chains[0]
    known = Known(report.id, report.last, report.sha256, report.sink, report.receiver)
    assert verified(archive.folder, known=[known]).findings == []
    # All put back to how it was some time ago: only who knows more can tell.
    assert verified(old).findings == []
    assert [each.kind for each in verified(old, known=[known]).findings] == [Kind.REMOVED]
    other = Known("0" * 32, 7, "", "audit-system/archive", "b")
    (finding,) = verified(archive.folder, known=[other]).findings
    assert "a whole chain of audit-system/archive and b is gone" in finding.message


def test_what_is_planted_hides_nothing(written: Archive, tmp_path: Path) -> None:
    """Digests of other chains under the same key, old heads, names that are newer by their ending only."""
    folder, other = tmp_path / "copy", Archive(tmp_path / "other", tmp_path / "state")
    shutil.copytree(written.folder, folder)
    other.folder.mkdir()
    other.write(*numbered(3), name="b.log")
    (folder / "x.digest.json").write_bytes(next(other.folder.glob("*.digest.json")).read_bytes())
    head = next(folder.glob("*.head.json"))
    (folder / "0").mkdir()
    shutil.copy(head, folder / "0")
    newest = closed(written)[-1]
    (folder / f"{newest}.zst").write_bytes(b"")
    path = folder / f"{closed(written)[2]}.gz"
    path.write_bytes(b"")
    said = verified(folder).said
    assert (Kind.CHANGED, path.name) in said
    assert {(Kind.ADDED, "x.digest.json"), (Kind.ADDED, f"{newest}.zst")} < said
    assert len([file for _, file in said if file.endswith("head.json")]) == 1


def test_nothing_to_check_is_no_answer(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("{}\n")
    with pytest.raises(CannotCheckError, match="there is no digest here"):
        verified(tmp_path)


# --- a receiver's life -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_files", [1, 3])
def test_what_retention_removed_is_no_finding_and_what_others_removed_is(max_files: int, archive: Archive) -> None:
    archive.write(*numbered(9), max_files=max_files)
    assert len(closed(archive)) == max_files
    found = verified(archive.folder)
    assert found.findings == []
    assert (found.chains[0].first, found.chains[0].last) == (9 - max_files, 8)
    removed = closed(archive)[-1]
    for ending in (".gz", ".digest.json"):
        (archive.folder / f"{removed}{ending}").unlink()
    assert {kind for kind, _ in verified(archive.folder).said} == {Kind.REMOVED}
    # Less files than may stay: nothing of what somebody removed becomes retention's.
    archive.write(batch(10), max_files=max_files)
    if max_files > 1:
        assert {kind for kind, _ in verified(archive.folder).said} == {Kind.REMOVED}


def test_what_somebody_adds_neither_gets_a_digest_nor_makes_files_go(archive: Archive) -> None:
    archive.write(*numbered(4), max_files=3)
    mine = {path.name: path.read_bytes() for path in archive.folder.glob("a-*")}
    between = closed(archive)[0].replace(".000000.", ".000001.")
    later = ["a-2099-01-01T00-00-00.000000.log", "a-2098-01-01T00-00-00.000000.log.gz"]
    for name in (between, *later):
        (archive.folder / name).write_bytes(b"{}\n")
    archive.write(batch(5), max_files=4)
    assert {name: (archive.folder / name).read_bytes() for name in mine} == mine
    found = verified(archive.folder)
    assert found.said == {(Kind.ADDED, between)}
    # What is newer than all that is signed may be the receiver's own, of which a crash kept it from saying so.
    assert {note.file for note in found.notes} == {"a.log", *later}


def test_keys_are_rotated(archive: Archive) -> None:
    archive.write(*numbered(3))
    archive.write(batch(4), batch(5), key=OTHER_KEY)
    assert verified(archive.folder, KEY, OTHER_KEY).findings == []
    only_new = verified(archive.folder, OTHER_KEY)
    assert {kind for kind, _ in only_new.said} == {Kind.SIGNATURE}
    assert all("none of those given" in finding.message for finding in only_new.findings)


def test_two_receivers_side_by_side_have_a_chain_each(archive: Archive) -> None:
    now = clock(archive)
    archive.write(*numbered(4), now=now)
    archive.write(*numbered(3), now=now, name="b.log")
    archive.write(batch(5), now=now)
    found = verified(archive.folder)
    assert found.findings == []
    assert [(chain.receiver, chain.last) for chain in found.chains] == [("a", 4), ("b", 2)]
    # Chains of two folders, and of one that was moved.
    shutil.copytree(archive.folder, archive.folder.parent / "all" / "moved")
    assert verified(archive.folder.parent / "all").findings == []


def test_a_chain_that_is_forgotten_begins_anew_and_says_so(archive: Archive) -> None:
    archive.write(*numbered(4), max_files=3)
    (archive.state / "a.log.json").unlink()
    archive.write(batch(5), batch(6), max_files=3)
    found = verified(archive.folder)
    assert found.findings == []
    assert [note.kind for note in found.notes].count(Kind.ANEW) == 1
    assert len(found.chains) == 2
    # Retention goes on over both.
    archive.write(*(batch(number) for number in range(7, 12)), max_files=3)
    assert len(closed(archive)) == 3
    assert verified(archive.folder).findings == []


def test_files_from_before_the_chain_belong_to_it_as_they_are(archive: Archive) -> None:
    old = archive.folder / "a-2026-11-01T00-00-00.000000.log"
    old.write_bytes(b'{"auditID":"old"}\n')
    archive.write(*numbered(2))
    found = verified(archive.folder)
    assert found.findings == []
    assert found.chains[0].files == 2
    with changed(archive.folder / f"{old.name}.gz") as data:
        data[5] ^= 1
    assert verified(archive.folder).said == {(Kind.CHANGED, f"{old.name}.gz")}


def test_without_a_key_nothing_is_written_and_no_event_is_lost(archive: Archive) -> None:
    now = clock(archive)
    sink = archive.sink(now)

    async def run() -> None:
        for wrong in ("", "no key", pem(KEY).replace("MC4", "AAA"), public_pem(KEY).decode()):
            (archive.state / "key.pem").write_text(wrong)
            with pytest.raises(UnauthorizedError) as caught:
                await sink.open()
            assert "PRIVATE" not in str(caught.value)
        assert not [path for path in archive.folder.iterdir() if path.name.startswith("a-")]
        (archive.state / "key.pem").write_text(pem(KEY))
        await sink.open()
        await sink.deliver(batch(1))
        (archive.state / "key.pem").unlink()
        for _ in range(3):
            with pytest.raises(UnauthorizedError):
                await sink.deliver(batch(2))
        (archive.state / "key.pem").write_text(pem(KEY))
        await sink.deliver(batch(2))
        await sink.deliver(batch(3))
        await sink.close()

    asyncio.run(run())
    assert verified(archive.folder).findings == []
    assert lines(archive) == [1, 2, 3]


def lines(archive: Archive) -> list[int]:
    """The numbers of the events, as they are in the files."""
    found = []
    for path in [*sorted(archive.folder.glob("a-*.log*")), archive.folder / "a.log"]:
        if path.exists() and not path.name.endswith((".json", ".tmp")):
            unpack = gzip.decompress if path.suffix == ".gz" else bytes
            found += [
                int(msgspec.json.decode(line)["auditID"][-12:]) for line in unpack(path.read_bytes()).splitlines()
            ]
    return found


class _CrashError(BaseException):
    """The process is no more."""


@contextlib.contextmanager
def crash_at(call: int) -> Iterator[list[str]]:
    """All that changes the disk works so many times; whatever comes after that never happens."""
    done: list[str] = []
    real = {
        name: getattr(os, name) for name in ("rename", "replace", "unlink", "fsync", "fdatasync", "write", "ftruncate")
    }

    def failing(name: str) -> Callable[..., Any]:
        def act(*arguments: Any, **options: Any) -> Any:
            if len(done) >= call:
                raise _CrashError
            done.append(name)
            return real[name](*arguments, **options)

        return act

    with pytest.MonkeyPatch.context() as patch:
        for name in real:
            patch.setattr(os, name, failing(name))
        yield done


def dies(sink: File, call: int, *batches: Batch) -> list[Batch]:
    """Delivers until the crash; what was not taken. Locks go with the process."""
    left = list(batches)

    async def run() -> None:
        with contextlib.suppress(_CrashError):
            await sink.open()
            while left:
                await sink.deliver(left[0])
                del left[0]

    with crash_at(call):
        asyncio.run(run())
    sink._log.close()
    return left


def test_a_crash_at_any_step_leaves_nothing_that_looks_like_tampering(memory: Path) -> None:
    left = numbered(1)
    call = 0
    while left:
        archive = Archive(memory / str(call) / "archive", memory / str(call) / "state")
        archive.folder.mkdir(parents=True)
        now = clock(archive)
        archive.write(*numbered(3), max_files=2, now=now)
        left = dies(archive.sink(now, max_files=2), call, batch(4), batch(5))
        assert verified(archive.folder).findings == [], call
        archive.write(*left, batch(6), max_files=2, now=now)
        after = verified(archive.folder)
        assert after.findings == [], call
        assert [note.file for note in after.notes] == ["a.log"], call
        assert after.chains[0].last == 5, call
        assert lines(archive) == [4, 5, 6], call
        assert len(closed(archive)) == 2, call
        call += 1
    assert call > 60


def test_a_crash_while_a_chain_begins_leaves_nothing_that_looks_like_tampering(memory: Path) -> None:
    """With files of before, which are compressed already, or not yet, or half."""
    left, call = numbered(1), 0
    while left:
        archive = Archive(memory / str(call) / "archive", memory / str(call) / "state")
        archive.folder.mkdir(parents=True)
        (archive.folder / "a-2026-11-01T00-00-00.000000.log").write_bytes(batch(1).items[0].data + b"\n")
        (archive.folder / "a-2026-11-01T00-00-00.000000.log.gz.tmp").write_bytes(b"half")
        (archive.folder / "a-2026-10-01T00-00-00.000000.log.gz").write_bytes(gzip.compress(b"{}\n"))
        now = clock(archive)
        left = dies(archive.sink(now), call, batch(2))
        if list(archive.folder.glob("*.json")):
            assert verified(archive.folder).findings == [], call
        archive.write(*left, batch(3), now=now)
        after = verified(archive.folder)
        assert after.findings == [], call
        assert {note.kind for note in after.notes} == {Kind.NOT_SEALED, Kind.ANEW}, call
        assert (after.chains[0].first, after.chains[0].last) == (1, 3), call
        call += 1
    assert call > 20


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_power_cut_leaves_no_half_of_a_file(
    encrypted: bool, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What gets its name by a rename is on the disk before, all of it: digests, heads, what is packed, and states."""
    synced: set[tuple[int, int]] = set()
    real = {name: getattr(os, name) for name in ("fsync", "fdatasync", "rename", "replace")}
    renamed: list[str] = []

    def sync(name: str) -> Callable[[int], None]:
        def act(file: int) -> None:
            real[name](file)
            synced.add((os.fstat(file).st_ino, os.fstat(file).st_size))

        return act

    def move(name: str) -> Callable[[Path, Path], None]:
        def act(source: Path, target: Path) -> None:
            found = Path(source).stat()
            assert (found.st_ino, found.st_size) in synced, source
            renamed.append(Path(target).name)
            real[name](source, target)

        return act

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, sync(name))
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, move(name))
    archive.write(*numbered(4), encrypt=(lambda data: data) if encrypted else None)
    endings = {".digest.json", ".head.json", "a.log.json", ".gz.age" if encrypted else ".gz"}
    assert all(any(name.endswith(ending) for name in renamed) for ending in endings)


WRITER = """
import asyncio, itertools, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from integrity_cases import Archive, batch
archive, first = Archive(Path(sys.argv[2]) / "archive", Path(sys.argv[2]) / "state"), int(sys.argv[3])
import time
async def run():
    sink = archive.sink(time.time, max_files=1000, max_size=3000)
    await sink.open()
    for number in itertools.count(first):
        await sink.deliver(batch(number))
        print(number, flush=True)
asyncio.run(run())
"""


def test_a_receiver_killed_again_and_again_leaves_a_chain_without_a_gap(archive: Archive) -> None:
    taken, generator = 0, random.Random(4)
    for _ in range(8):
        arguments = [
            sys.executable,
            "-c",
            WRITER,
            str(Path(__file__).parent),
            str(archive.folder.parent),
            str(taken + 1),
        ]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(generator.randrange(1, 40)):
                taken = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split()
            taken = int(rest[-1]) if rest else taken
        assert verified(archive.folder).findings == []
    archive.write(batch(taken + 1))
    found = verified(archive.folder)
    assert found.findings == []
    assert found.chains[0].files == found.chains[0].last > 5
    # The event that was on its way when it was killed may be there.
    assert sorted(set(lines(archive)) - {taken + 1}) == list(range(1, taken + 1))


def test_what_is_verified_may_be_written_meanwhile(archive: Archive) -> None:
    """Files are closed, compressed, sealed and removed by retention while they are looked at."""
    writer = WRITER.replace("max_files=1000, max_size=3000", "max_files=3, max_size=1000")
    arguments = [sys.executable, "-c", writer, str(Path(__file__).parent), str(archive.folder.parent), "1"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 5:
            pass
        try:
            for _ in range(40):
                assert verified(archive.folder).findings == []
                os.read(process.stdout.fileno(), 1 << 16)
            assert process.poll() is None
        finally:
            process.kill()


def test_turned_on_by_the_resource(tmp_path: Path) -> None:
    credential(tmp_path, "signing", "key.pem", pem(KEY))
    spec = {
        "path": "{receiver}.log",
        "rotation": {"maxSize": "1"},
        "integrity": {"signingKey": {"name": "signing", "key": "key.pem"}},
    }

    async def run() -> None:
        for number in (1, 2, 3):
            sink = made(tmp_path, file=spec)
            await sink.open()
            await sink.deliver(batch(number))
            await sink.close()

    asyncio.run(run())
    found = verified(tmp_path / "files")
    assert found.findings == []
    assert (found.chains[0].last, found.chains[0].receiver) == (2, "audit-receiver-0")
    (state,) = (tmp_path / "state/audit-system/siem").iterdir()
    assert b"PRIVATE" not in state.read_bytes()


# --- what is measured ------------------------------------------------------------------------------------------------


@given(
    data=st.binary(max_size=4000).map(lambda data: data.replace(b"\x00", b"\n")), sizes=st.lists(st.integers(1, 300))
)
def test_a_file_is_measured_the_same_however_it_comes(data: bytes, sizes: list[int]) -> None:
    pieces, rest = [], data
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    found = measure([*filter(None, pieces), *([rest] if rest else [])], "a.log")
    assert (found.bytes, found.sha256, found.events) == (len(data), hashlib.sha256(data).hexdigest(), data.count(b"\n"))
    assert found.uncompressed_sha256 == found.sha256


def test_lines_are_hashed_by_the_thousand() -> None:
    each = [f"{number}\n".encode() * 3 for number in range(2500)]
    text = b"".join(each)
    ends = [at + 1 for at, byte in enumerate(text) if byte == 10]
    cuts = [0, *ends[integrity.LINES - 1 :: integrity.LINES], len(text)]
    wanted = [hashlib.sha256(text[a:b]).hexdigest() for a, b in itertools.pairwise(cuts) if a < b]
    assert list(measure([text], "a.log").blocks) == wanted
    assert list(measure([text[at : at + 7] for at in range(0, len(text), 7)], "a.log").blocks) == wanted


def test_an_unknown_later_member_is_signed_like_the_rest(archive: Archive) -> None:
    archive.write(*numbered(3))
    head = next(archive.folder.glob("*.head.json"))
    plain = document(head.read_bytes(), {fingerprint(KEY.public_key()): KEY.public_key()})
    later = plain[:-1] + b',"fromLater":[1]}'
    head.write_bytes(later[:-1] + b',"signature":"' + base64.b64encode(KEY.sign(later)) + b'"}')
    assert verified(archive.folder, now=datetime.now(UTC)).findings == []


# --- the whole receiver ----------------------------------------------------------------------------------------------


def test_a_receiver_killed_under_load_loses_nothing_and_breaks_no_chain(tmp_path: Path) -> None:
    """The process itself, with a plain and an encrypted sink, killed while it takes events, delivers and seals."""
    pyrage = pytest.importorskip("pyrage")
    identity = pyrage.x25519.Identity.generate()
    key = tmp_path / "secret_audit-system_signing_key.pem"
    key.write_text(pem(KEY))
    settings = {
        "path": "{sink}/{receiver}.log",
        "rotation": {"maxSize": "20Ki", "maxAge": "24h", "maxFiles": 1000},
        "compression": "gzip",
        "integrity": {"signingKey": {"file": str(key)}},
    }
    encrypted = settings | {"encryption": {"recipients": [str(identity.to_public())]}}
    sinks = [sink("plain", settings=settings), sink("secret", settings=encrypted)]
    sent = policy(sinks=("audit-system/plain", "audit-system/secret"))
    receiver = Process(tmp_path, program(policies=[sent], sinks=sinks))
    generator, acknowledged = random.Random(7), set[int]()

    async def until_killed(first: int, posts: int) -> None:
        async with client() as session:
            for number in range(first, first + 100_000, 20):
                if not await receiver.post(session, *range(number, number + 20)):
                    return
                acknowledged.update(range(number, number + 20))
                posts -= 1
                if posts == 0:
                    # It goes on delivering and sealing while the next ones are on their way.
                    os.kill(receiver.pid, signal.SIGKILL)

    for round_ in range(5):
        receiver.start()
        asyncio.run(until_killed(round_ * 100_000, generator.randrange(10, 40)))
        receiver.end(signal.SIGKILL)
        for name in ("plain", "secret"):
            folder = tmp_path / "state/files" / name
            assert not list(folder.glob("*.json")) or verified(folder).findings == []
    receiver.start()
    assert receiver.end(signal.SIGTERM) == 0
    assert len(acknowledged) > 100
    for name in ("plain", "secret"):
        folder = tmp_path / "state/files" / name
        found = verified(folder)
        assert found.findings == []
        assert found.chains[0].last > 3
        there: set[int] = set()
        for path in folder.glob("*.log*"):
            body = path.read_bytes()
            if path.name.endswith(".json"):
                continue
            if path.suffix == ".age":
                body = gzip.decompress(pyrage.decrypt(body, [identity]))
            elif path.suffix == ".gz":
                body = gzip.decompress(body)
            there |= {int(msgspec.json.decode(line)["auditID"][-12:]) for line in body.splitlines()}
        assert acknowledged <= there
