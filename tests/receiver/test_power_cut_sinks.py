"""Whatever was promised holds, wherever the power fails: the file sink, its chain of digests, quarantine, programs, and
events on their way from the journal to a sink. `power.py` says what disks may do.
"""

import asyncio
import contextlib
import errno
import gzip
import itertools
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import msgspec
import pytest
import zstandard
from integrity_cases import KEY, pem, verified
from power import Killed, Recorder, State
from receiving import program
from sink_cases import batch
from test_integrity_objects import Memory as Bucket
from test_integrity_objects import delivered, hours
from test_integrity_objects import verified as objects_verified
from test_journal import everything, group

from audit_operator.receiver.files import sync_folder
from audit_operator.receiver.integrity import DIGEST, HEAD
from audit_operator.receiver.journal import Disk, Log
from audit_operator.receiver.programs import Programs
from audit_operator.receiver.quarantine import Held, Quarantine, refused
from audit_operator.receiver.sinks import SecretFile, UnreachableError
from audit_operator.receiver.sinks.chain import Chain, Integrity, Names
from audit_operator.receiver.sinks.file import File, Rules
from audit_operator.receiver.sinks.object_store import ObjectStore
from audit_operator.receiver.verification import CannotCheckError
from audit_operator.receiver.verification import Kind as Kinds
from audit_operator.render.program import Program, encode

if TYPE_CHECKING:
    from audit_operator.receiver.running import Running

FILES = "files/prod/audit"


class Kind(NamedTuple):
    """What a file sink is asked for."""

    compression: str = "None"
    signed: bool = False
    encrypted: bool = False
    max_files: int = 100
    max_size: int = 1000


class Volume(NamedTuple):
    """A receiver's volume, and the key beside it."""

    root: Path
    key: Path
    kind: Kind
    clock: Iterator[int]

    @property
    def folder(self) -> Path:
        return self.root / FILES

    def sink(self) -> File:
        def now() -> float:
            return float(next(self.clock))

        chain = None
        if self.kind.signed:
            integrity = Integrity(signing_key=SecretFile(file=str(self.key)))
            chain = Chain(self.root / "state/ns/archive/1.json", Names("prod", "ns/archive", "r-0"), integrity, now)
        rules = Rules(self.kind.max_size, 1e9, self.kind.max_files, self.kind.compression)  # type: ignore[arg-type]
        encrypt = (lambda data: b"AGE" + data) if self.kind.encrypted else None
        return File(self.folder / "a.log", rules, now, chain=chain, encrypt=encrypt)

    def deliver(self, *numbers: int, taken: Callable[[int], None] = lambda _: None) -> None:
        """A batch for each, as often as it takes: that is what a worker does."""

        async def insist(call: Callable[[], Awaitable[object]]) -> None:
            for _ in range(30):
                with contextlib.suppress(UnreachableError):
                    await call()
                    return
            raise AssertionError("it never works again")

        async def run() -> None:
            sink = self.sink()
            await insist(sink.open)
            for number in numbers:
                await insist(partial(sink.deliver, batch(number)))
                taken(number)
            await sink.close()

        asyncio.run(run())

    def events(self) -> Counter[int]:
        """How often each is in the files; every line is a whole one."""
        found: Counter[int] = Counter()
        for path in self.folder.iterdir() if self.folder.exists() else ():
            if path.name.startswith(".") or path.name.endswith((DIGEST, HEAD, ".tmp")):
                continue
            data = path.read_bytes()
            if path.name.endswith(".age"):
                data = data[3:]
            if ".gz" in path.name:
                data = gzip.decompress(data)
            if ".zst" in path.name:
                data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
            here = Counter(int(msgspec.json.decode(line)["auditID"][-12:]) for line in data.splitlines())
            # Packed, and what it was packed of not gone yet.
            found |= here
        return found


KINDS = {
    "plain": Kind(),
    "gzip": Kind("gzip"),
    "zstd, signed": Kind("zstd", signed=True),
    "signed": Kind(signed=True),
    "encrypted": Kind("gzip", encrypted=True),
    "encrypted, signed": Kind("gzip", signed=True, encrypted=True),
}
BATCHES = 4


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    path.write_text(pem(KEY))
    return path


def each_state(
    recorder: Recorder, elsewhere: Path, holds: Callable[[State, Path], None], *, samples: int = 2, since: int = 0
) -> None:
    count = 0
    for count, state in enumerate(recorder.states(random.Random(7), samples=samples, since=since)):
        where = elsewhere / str(count)
        try:
            state.lay(where)
            holds(state, where)
        except BaseException as error:
            last = recorder.operations[max(0, state.cut - 6) : state.cut]
            error.add_note(f"cut after operation {state.cut} ({state.how}), in {where}; last: {last}")
            raise
    assert count > 5


def intact(volume: Volume) -> bool:
    """Whether there was anything that could be verified."""
    try:
        assert verified(volume.folder).findings == []
    except (CannotCheckError, FileNotFoundError):
        return False
    return True


FAILURES = ("nothing", "sync truncate", "sync truncate stays", "sync", "write", "rename", "create")


@pytest.mark.parametrize(
    ("kind", "failing"),
    [
        *itertools.product(("plain", "gzip"), FAILURES),
        *itertools.product(("zstd, signed", "signed", "encrypted", "encrypted, signed"), FAILURES[:2]),
    ],
)
def test_what_a_file_sink_took_is_in_its_files(kind: str, failing: str, key: Path, memory: Path) -> None:
    (memory / "disk").mkdir()
    clock = itertools.count(1_795_000_000)
    broken: set[str] = set()
    with Recorder(memory / "disk", forgets="stays" not in failing) as recorder:

        def fault(what: str, path: Path) -> int | None:
            # The third event meets it, in whatever the sink does for it, each thing once.
            if what == "sync" and path.is_file() and not path.stat().st_size:
                return None
            name = f"{what} {re.sub('[0-9]', '', path.name)}"
            if what not in failing.split() or 2 not in recorder_taken or name in broken:
                return None
            broken.add(name)
            return errno.EIO if what == "sync" else errno.ENOSPC

        recorder_taken: list[int] = []

        def taken(number: int) -> None:
            recorder_taken.append(number)
            recorder.mark("taken", number)

        recorder.fault = fault
        Volume(recorder.root, key, KINDS[kind], clock).deliver(*range(1, BATCHES + 1), taken=taken)
    assert bool(broken) == (failing != "nothing")

    def holds(state: State, root: Path) -> None:
        volume = Volume(root, key, KINDS[kind], clock)
        intact(volume)
        taken = set(state.said("taken"))
        # What was not noted as delivered comes again, be it taken or not.
        noted = len(taken) - (state.how == "mixed")
        volume.deliver(*range(max(1, noted + 1), BATCHES + 2))
        found = volume.events()
        assert set(found) == set(range(1, BATCHES + 2))
        # Twice, if its file was closed before that was noted.
        assert max(found.values()) <= 2
        assert sum(found.values()) <= BATCHES + 2 or failing != "nothing"
        if KINDS[kind].signed:
            assert intact(volume)

    each_state(recorder, memory, holds, samples=1)


def test_what_a_killed_receiver_wrote_is_on_the_disk_before_it_counts(key: Path, memory: Path) -> None:
    """Lines that are there already are not written again when their events come again."""
    clock, failing = itertools.count(1_795_000_000), ("sync a.log", "truncate a.log")
    for call in itertools.count():
        folder = memory / str(call)
        (folder / "disk").mkdir(parents=True)
        with Recorder(folder / "disk") as recorder:
            recorder.fault = lambda what, path: (
                errno.EIO if f"{what} {path.name}" in failing and path.stat().st_size > 500 else None
            )
            recorder.kill_after = call
            volume = Volume(recorder.root, key, Kind(), clock)

            async def life(volume: Volume = volume) -> bool:
                sink = volume.sink()
                try:
                    await sink.open()
                    for number in (1, 2):
                        for _ in range(2):
                            with contextlib.suppress(UnreachableError):
                                await sink.deliver(batch(number))
                except Killed:
                    return True
                return False

            killed = asyncio.run(life())
            recorder.fault = None
            recorder.restart()
            start = len(recorder.operations)
            volume.deliver(1, 2, 3, taken=lambda number, recorder=recorder: recorder.mark("taken", number))  # type: ignore[misc]

        def holds(state: State, root: Path) -> None:
            volume = Volume(root, key, Kind(), clock)
            volume.deliver(4)
            assert set(volume.events()) >= {4, *state.said("taken")}

        each_state(recorder, folder, holds, samples=1, since=start)
        if not killed:
            break
    assert call > 10


def test_what_retention_removes_is_never_what_was_tampered_with(key: Path, memory: Path) -> None:
    (memory / "disk").mkdir()
    kind, clock = Kind("gzip", signed=True, max_files=1), itertools.count(1_795_000_000)
    with Recorder(memory / "disk") as recorder:
        Volume(recorder.root, key, kind, clock).deliver(
            *range(1, BATCHES + 3), taken=lambda number: recorder.mark("taken", number)
        )

    def holds(state: State, root: Path) -> None:
        volume = Volume(root, key, kind, clock)
        intact(volume)
        volume.deliver(*range(max(1, len(state.said("taken"))), BATCHES + 4))
        assert intact(volume)
        assert set(volume.events()) >= {BATCHES + 2, BATCHES + 3}

    each_state(recorder, memory, holds, samples=1)


def test_an_archive_of_objects_is_one_chain_after_any_cut(key: Path, memory: Path) -> None:
    """What the receiver remembers of it is on its volume; the bucket is elsewhere, and loses nothing."""
    (memory / "disk").mkdir()

    class Marking(Bucket):
        async def put(self, key: str, body: bytes, kind: str) -> None:
            await super().put(key, body, kind)
            recorder.mark("object", (key, body))

    def archive(root: Path, bucket: Bucket) -> ObjectStore:
        names = Names("prod", "audit-system/archive", "r-0")
        chain = Chain(root / "state/ns/a/1.json", names, Integrity(signing_key=SecretFile(file=str(key))))
        return ObjectStore("prod/archive/%H", "gzip", names, bucket, chain)

    async def deliver(store: ObjectStore, *batches: tuple[int, ...], taken: Callable[[int], None]) -> None:
        for numbers in batches:
            assert not (await store.deliver(hours(*numbers))).retry
            taken(numbers[-1])
        await store.close()

    with Recorder(memory / "disk") as recorder:
        store = archive(recorder.root, Marking())
        asyncio.run(deliver(store, (1, 2), (3,), (4, 5), taken=lambda number: recorder.mark("taken", number)))

    def holds(state: State, root: Path) -> None:
        root.mkdir(exist_ok=True)
        bucket = Bucket()
        bucket.objects |= dict(state.said("object"))
        taken = max(state.said("taken"), default=0)
        again = tuple(range(taken + 1, 7))
        asyncio.run(deliver(archive(root, bucket), again, (7,), taken=lambda _: None))
        after = objects_verified(bucket)
        assert after.findings == []
        assert {note.kind for note in after.notes} <= {Kinds.UNFINISHED}
        assert set(delivered(bucket)) == set(range(1, 8))

    each_state(recorder, memory, holds)


# --- on the way from the journal to a sink ---------------------------------------------------------------------------


def test_an_event_is_in_the_journal_until_it_is_in_the_sink(key: Path, memory: Path) -> None:
    (memory / "disk").mkdir()
    clock = itertools.count(1_795_000_000)

    def way(root: Path) -> tuple[Log, Volume]:
        log = Log(root / "journal/sinks/ns/archive", Disk())
        log.limit = 1
        log.open()
        return log, Volume(root, key, Kind("gzip"), clock)

    def deliver(log: Log, volume: Volume) -> None:
        for stored in everything(log)[0]:
            volume.deliver(int(stored.entry.audit_id[3:]))
            log.acknowledge(stored.after)

    with Recorder(memory / "disk") as recorder:
        log, volume = way(recorder.root)
        for number in range(1, 7):
            # Large enough for segments to go.
            assert not log.append([group(number, size=300_000)])
            recorder.mark("taken", number)
            if number % 3 == 0:
                deliver(log, volume)

    def holds(state: State, root: Path) -> None:
        log, volume = way(root)
        deliver(log, volume)
        log.close()
        assert set(volume.events()) >= set(state.said("taken"))

    each_state(recorder, memory, holds, samples=0)


# --- quarantine ------------------------------------------------------------------------------------------------------


def held(number: int) -> Held:
    return refused("kube-apiserver", b'{"auditID":"%d"}' % number, "no", "2026-11-23T04:33:04Z")


def numbers(entries: Iterator[Held] | list[Held]) -> list[int]:
    return [int(msgspec.json.decode(each.event)["auditID"]) for each in entries]


@pytest.mark.parametrize("failing", ["nothing", "sync", "write", "sync truncate", "write truncate"])
def test_what_is_in_quarantine_stays_until_it_is_in_the_journal_again(failing: str, memory: Path) -> None:
    (memory / "disk").mkdir()
    sink = "audit-system/siem"
    with Recorder(memory / "disk") as recorder:
        quarantine = Quarantine(recorder.root / "journal/quarantine")

        def put(*which: int) -> None:
            for number in which:
                quarantine.put(sink, [held(number)])
                recorder.mark("kept", number)

        put(1, 2)
        recorder.fault = lambda what, path: errno.EIO if what in failing.split() and path.is_file() else None
        for number in (101, 102):
            with contextlib.suppress(OSError):
                quarantine.put(sink, [held(number)])
        recorder.fault = None
        put(3, 4)
        quarantine.ask_again(sink, frozenset({held(2).id, held(3).id}))
        put(5)
        for name, entries in quarantine.asked():
            assert name == sink
            for number in numbers(entries):
                recorder.mark("again", number)
        quarantine.done(sink)
        put(6)
        quarantine.ask_again(sink, None)

    def holds(state: State, root: Path) -> None:
        quarantine = Quarantine(root / "journal/quarantine")
        kept, again = set(state.said("kept")), set(state.said("again"))

        def there() -> set[int]:
            waiting = {number for _, entries in quarantine.asked() for number in numbers(entries)}
            return set(numbers(quarantine.entries(sink))) | waiting

        found = there()
        assert found >= kept - again
        quarantine.put(sink, [held(7)])
        assert 7 in numbers(quarantine.entries(sink))
        assert there() >= kept - again | {7}

    each_state(recorder, memory, holds, samples=6)


# --- programs --------------------------------------------------------------------------------------------------------


class Runs:
    """Takes any program."""

    async def apply(self, program: Program, hash_key: bytes) -> None:
        self.cluster = program.cluster


def test_a_program_that_was_pushed_is_in_force_after_any_start(memory: Path) -> None:
    """Although the file that is mounted still shows one from before."""
    (memory / "disk").mkdir()

    def text(number: int) -> bytes:
        return encode(msgspec.structs.replace(program(), cluster=f"c{number}")).encode()

    mounted = memory / "program.json"

    async def push(root: Path, mark: Callable[[int], None]) -> None:
        (root / "journal").mkdir()
        sync_folder(root)
        programs = Programs(mounted, root / "journal", cast("Running", Runs()))
        await programs.start()
        for number in (2, 3):
            await programs.push(text(number))
            mark(number)

    mounted.write_bytes(text(1))
    with Recorder(memory / "disk") as recorder:
        asyncio.run(push(recorder.root, lambda number: recorder.mark("pushed", number)))

    def holds(state: State, root: Path) -> None:
        (root / "journal").mkdir(exist_ok=True)
        runs = Runs()
        asyncio.run(Programs(mounted, root / "journal", cast("Running", runs)).start())
        assert int(runs.cluster[1:]) >= max(state.said("pushed"), default=1)

    each_state(recorder, memory, holds, samples=4)
