"""The journal: what the receiver answered 200 for, until the sinks have it. An append-only log per sink.

    JOURNAL/lock                                           held by the one receiver that may write here
    JOURNAL/sinks/NAMESPACE/NAME/00000000000000000001.log  segments, named by the number of their first event
    JOURNAL/sinks/NAMESPACE/NAME/cursor                    what has been delivered

A segment is a row of blocks: a header of 24 bytes (magic, length, CRC-32, first sequence number, events) and the events
as MessagePack. All POSTs that wait at the same moment are written together and synced once per log (group commit); only
then are they answered. Events are numbered without a gap, so that whatever is damaged is known by number.

Why not SQLite: with 400 events per commit, WAL and synchronous=FULL it cost 5 to 8 µs of processor time per event and
99 % of the commits took up to 37 … 82 ms, for it checkpoints; this log costs 2.5 µs and 9 ms (bench/journal.py).
Deleting what is delivered is an unlink per segment here: no compaction, hence no pauses. Preallocating segments gained
nothing. A log per sink, and not one for all, because a sink that is dead must not keep the others' events on the disk.

What holds, whatever stops the process or the machine:

* Only the last segment of a log can end in a torn block: a segment is synced before the next one begins. After that a
  new one begins.
* After a failed write or sync nothing is written to that segment any more: the kernel may have dropped the pages and
  forgotten the error. What failed is cut off, and blocks in it from the next segment's first number on do not count,
  whatever became of the cut: an empty segment stays where it is for that. Until one of both is on the disk, what was
  answered 503 may be delivered all the same if the power fails.
* What the start finds is on the disk, before any of it is delivered, or taken for what came again.
* No number is given twice, not even if the disk loses what the cursor is past.
* A block that is damaged is skipped, up to the next one that is whole; how many events are missing is counted and said.
* Losing the cursor costs repeated deliveries, never an event.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
from isal.isal_zlib import crc32

from audit_operator.receiver.files import PRIVATE, PRIVATE_FOLDER, make_folder, opened, settled, sync_folder
from audit_operator.receiver.threads import OwnThread

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class Entry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One event as it is kept: JSON in ``data``, and what tells it from others."""

    audit_id: str
    stage: str
    timestamp: str
    data: bytes


class _Block(msgspec.Struct, frozen=True, gc=False, array_like=True):
    server: str
    entries: list[Entry]


class Position(NamedTuple):
    """A place in a log: segment, offset of a block in it, and the number of the next event to read."""

    segment: int
    offset: int
    sequence: int


class Stored(msgspec.Struct, frozen=True, gc=False):
    """An event read back. ``begin``, ``end``: its block, and where that ends."""

    server: str
    entry: Entry
    sequence: int
    begin: Position
    end: Position

    @property
    def after(self) -> Position:
        """Where reading goes on after it."""
        following = self.sequence + 1
        return self.end if following == self.end.sequence else self.begin._replace(sequence=following)


class Damage(NamedTuple):
    """So many ``events`` of a log, from number ``first`` on, cannot be read."""

    first: int
    events: int


class AppendError(Exception):
    """Not everything could be made durable. ``failed``: log -> why; what was written to the other logs stays."""

    def __init__(self, failed: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {why}" for name, why in sorted(failed.items())))
        self.failed = dict(failed)


class LockedError(Exception):
    """Another receiver uses this journal."""


BLOCK_BYTES: Final = 1 << 18
"""A block ends with the event that passes this: whoever reads holds a block in memory, and a POST may have hundreds of
megabytes.
"""

_LARGEST_SEGMENT: Final = 32 << 20
_SMALLEST_SEGMENT: Final = 1 << 20
_SEGMENTS: Final = 16
"""A log's share of the disk is at least so many segments: space comes back in pieces of that size, and what must be
read at the start, the last segments of all logs, is at most this part of the journal.
"""

_HEADER: Final = struct.Struct("<4sIIQI")
_MAGIC: Final = b"AUD1"
_CHECKED: Final = struct.Struct("<IQI")  # length, first, count: covered by the CRC together with the payload
_CURSOR: Final = struct.Struct("<QQQQI")
_SLOT: Final = 64

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Block).decode


class Disk:
    """What the journal does to files. Apart, so that tests can put a failing disk in its place."""

    def write(self, file: int, pieces: Sequence[bytes], offset: int) -> None:
        """All of it, or OSError."""
        buffers: list[bytes | memoryview] = list(pieces)
        while buffers:
            written = os.pwritev(file, buffers[:_BUFFERS], offset)
            offset += written
            done = 0
            while done < len(buffers) and written >= len(buffers[done]):
                written -= len(buffers[done])
                done += 1
            del buffers[:done]
            if written:
                buffers[0] = memoryview(buffers[0])[written:]

    def sync(self, file: int) -> None:
        """So that what was written survives a power cut."""
        os.fdatasync(file)

    def sync_folder(self, folder: Path) -> None:
        """So that the names in it do."""
        sync_folder(folder)


_BUFFERS: Final = 1000  # IOV_MAX is 1024


class Blocks(NamedTuple):
    """Events of one POST for one log, encoded: (payload, events in it) each, and the bytes of all."""

    payloads: tuple[tuple[bytes, int], ...]
    size: int

    @property
    def events(self) -> int:
        """How many events."""
        return sum(count for _, count in self.payloads)


def blocks(server: str, entries: Sequence[Entry]) -> Blocks:
    """The events, in order, as an API server of this name sent them."""
    payloads, start, size, total = [], 0, 0, 0
    for index, entry in enumerate(entries, start=1):
        size += len(entry.data)
        if size >= BLOCK_BYTES or index == len(entries):
            payload = _encode(_Block(server, list(entries[start:index])))
            payloads.append((payload, index - start))
            total += _HEADER.size + len(payload)
            start, size = index, 0
    return Blocks(tuple(payloads), total)


class _Segment:
    """``size``: what may be read of it: written and synced."""

    __slots__ = ("first", "path", "size")

    def __init__(self, path: Path, first: int, size: int) -> None:
        self.path = path
        self.first = first
        self.size = size


class Log:
    """Events for one sink, in order. Written by the journal's thread, read and acknowledged by the sink's worker."""

    def __init__(self, folder: Path, disk: Disk, synced: set[Path] | None = None) -> None:
        self._folder = folder
        self._disk = disk
        self._synced = synced
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._segments: list[_Segment] = []
        self._file: int | None = None
        self._continuable = False
        self._settled = True
        self._cursor_file: int | None = None
        self._cursor_generation = 0
        self.limit: int | None = None
        """Bytes this log may take; None is no limit of its own."""
        self.next_sequence = 1
        """Number of the next event to be written."""
        self.position = Position(1, 0, 1)
        """What has been delivered: everything before."""
        self.torn = 0
        """Bytes at the end that a crash left incomplete, and so were never acknowledged."""
        self.damaged: list[Damage] = []
        """What the last start found unreadable among events that may have been acknowledged."""
        self.arrived = asyncio.Event()
        """Set whenever events are there to be read; the reader clears it."""

    # --- start ---

    def open(self) -> None:
        """Find out what is there. Raises OSError."""
        make_folder(self._folder, PRIVATE_FOLDER, self._synced)
        for path in sorted(self._folder.glob("*.log")):
            self._segments.append(_Segment(path, int(path.stem), path.stat().st_size))
        if self._segments:
            self._recover_last()
        self._open_cursor()
        self._disk.sync_folder(self._folder)
        self._drop_before_last()
        if self.backlog:
            self.arrived.set()

    def _recover_last(self) -> None:
        """The last segment may end in blocks that were being written when everything stopped."""
        last = self._segments[-1]
        file = os.open(last.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            try:
                settled(file)
            except OSError:
                # It can be delivered all the same; what comes again must be written again.
                self._settled = False
            end, sequence = 0, last.first
            for found in _whole_blocks(last.path, last.size, 0):
                if found.first > sequence:
                    self.damaged.append(Damage(sequence, found.first - sequence))
                end, sequence = found.end, found.first + found.events
            self.torn = last.size - end
            last.size = end
            self.next_sequence = sequence
            # What follows the last whole block must never be read, not even after further crashes: a new segment begins
            # then. Else this one goes on, so that `recent` is what it says over several starts. One without a whole
            # block stays: what the one before ends in may be what was given up, and this one says so.
            self._continuable = self._settled and not self.torn
            if self.torn:
                with contextlib.suppress(OSError):
                    os.ftruncate(file, end)
                    self._disk.sync(file)
        finally:
            os.close(file)

    def _open_cursor(self) -> None:
        file, _ = opened(self._folder / "cursor", os.O_RDWR, PRIVATE)
        self._cursor_file = file
        if (size := os.fstat(file).st_size) < 2 * _SLOT:
            # On a full disk there would be no block for it, and what is delivered could not be noted and deleted. If it
            # is full already, a receiver that does not start would not make it any emptier.
            with contextlib.suppress(OSError):
                os.pwrite(file, bytes(2 * _SLOT - size), size)
        oldest = self._segments[0].first if self._segments else self.next_sequence
        best: tuple[int, Position] | None = None
        for slot in (0, 1):
            data = os.pread(file, _CURSOR.size, slot * _SLOT)
            if len(data) == _CURSOR.size and crc32(data[:-4]) == _CURSOR.unpack(data)[4]:
                generation, segment, offset, sequence, _ = _CURSOR.unpack(data)
                if best is None or generation > best[0]:
                    best = (generation, Position(segment, offset, sequence))
        position = Position(oldest, 0, oldest)
        if best is not None:
            self._cursor_generation = best[0]
            position = best[1]
        if position.sequence > self.next_sequence:
            # Numbers never start again: what is named by them elsewhere stays unambiguous. Nor may any be below what is
            # noted as delivered.
            self.next_sequence = position.sequence
            self._continuable = False
        position = position._replace(sequence=min(max(position.sequence, oldest), self.next_sequence))
        if not any(segment.first == position.segment for segment in self._segments):
            position = self._place_of(position.sequence)
        self.position = position

    def _place_of(self, sequence: int) -> Position:
        first = max((segment.first for segment in self._segments if segment.first <= sequence), default=sequence)
        return Position(first, 0, sequence)

    # --- writing, in the journal's thread ---

    def append(self, many: Sequence[Blocks]) -> str:
        """Write and sync; why it failed, empty if it did not. After a failure nothing of it counts."""
        with self._writing:
            try:
                self.write(many)
                self.sync(many)
            except Exception as error:
                self.give_up()
                return _reason(error)
        return ""

    def write(self, many: Sequence[Blocks]) -> None:
        """Append, without sync. Raises OSError: then nothing of it counts, see `give_up`."""
        pieces: list[bytes] = []
        sequence = self.next_sequence
        for each in many:
            for payload, count in each.payloads:
                checked = _CHECKED.pack(len(payload), sequence, count)
                pieces.append(_HEADER.pack(_MAGIC, len(payload), crc32(payload, crc32(checked)), sequence, count))
                pieces.append(payload)
                sequence += count
        if self._file is None and self._continuable and self._segments:
            self._file = os.open(self._segments[-1].path, os.O_RDWR | os.O_CLOEXEC)
        if self._file is None or self._segments[-1].size >= self._segment_size():
            self._begin_segment()
        assert self._file is not None  # noqa: S101 - just begun
        self._disk.write(self._file, pieces, self._segments[-1].size)

    def sync(self, many: Sequence[Blocks]) -> None:
        """Make durable what `write` has written, and let it be read. Raises OSError as `write` does."""
        assert self._file is not None  # noqa: S101 - write opened it
        self._disk.sync(self._file)
        with self._lock:
            self._segments[-1].size += sum(each.size for each in many)
            self.next_sequence += sum(each.events for each in many)

    def give_up(self) -> None:
        """After a failure: leave the segment as it was before, and begin another with the next write."""
        self._continuable = False
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                os.ftruncate(file, self._segments[-1].size)
                self._disk.sync(file)  # else a power cut could bring it back
            with contextlib.suppress(OSError):
                os.close(file)

    def _segment_size(self) -> int:
        share = (self.limit or _LARGEST_SEGMENT * _SEGMENTS) // _SEGMENTS
        return min(max(share, _SMALLEST_SEGMENT), _LARGEST_SEGMENT)

    def _begin_segment(self) -> None:
        """Everything in the one before is synced: `sync` comes after every `write`."""
        path = self._folder / f"{self.next_sequence:020}.log"
        file, _ = opened(path, os.O_RDWR | os.O_TRUNC, PRIVATE)
        try:
            self._disk.sync_folder(self._folder)
        except BaseException:
            os.close(file)
            raise
        if self._file is not None:
            os.close(self._file)
        self._file = file
        with self._lock:
            if self._segments and self._segments[-1].first == self.next_sequence:
                self._segments.pop()  # given up, or found, without a block
            self._segments.append(_Segment(path, self.next_sequence, 0))

    # --- reading, by the worker ---

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self._segments)

    @property
    def backlog(self) -> int:
        """How many events wait to be delivered."""
        return self.next_sequence - self.position.sequence

    def read(self, position: Position) -> tuple[list[Stored], Position, list[Damage]]:
        """The rest of the block at ``position``, or the next one; where to go on; what is missing in between.

        No events: there are none yet. Blocking. Raises OSError.
        """
        missing: list[Damage] = []
        sequence = position.sequence
        while True:
            with self._lock:
                segments = [(each.path, each.first, each.size) for each in self._segments]
            index = next((i for i, (_, first, _) in enumerate(segments) if first == position.segment), None)
            if index is None:
                later = [first for _, first, _ in segments if first > position.segment]
                if not later:
                    return [], Position(position.segment, position.offset, sequence), missing
                position = Position(later[0], 0, max(sequence, later[0]))
                continue
            path, _, size = segments[index]
            successor = segments[index + 1][1] if index + 1 < len(segments) else None
            found = next(_whole_blocks(path, size, position.offset), None)
            if found is None or (successor is not None and found.first >= successor):
                if successor is None:
                    return [], Position(position.segment, position.offset, sequence), missing
                if successor > sequence:
                    missing.append(Damage(sequence, successor - sequence))
                    sequence = successor
                position = Position(successor, 0, sequence)
                continue
            if found.first > sequence:
                missing.append(Damage(sequence, found.first - sequence))
                sequence = found.first
            here = Position(position.segment, found.start, sequence)
            after = Position(position.segment, found.end, found.first + found.events)
            block = _decode(found.payload)
            entries = block.entries[max(0, sequence - found.first) :]
            events = [
                Stored(block.server, entry, number, here, after) for number, entry in enumerate(entries, start=sequence)
            ]
            if events:
                return events, after, missing
            position = Position(position.segment, found.end, sequence)

    def read_some(self, position: Position, enough: int) -> tuple[list[Stored], Position, list[Damage]]:
        """`read`, but blocks until together they have ``enough`` bytes: a thread is not woken for each small POST."""
        found, position, missing = self.read(position)
        size = sum(len(each.entry.data) for each in found)
        more = found
        while more and size < enough:
            more, position, damage = self.read(position)
            found += more
            missing += damage
            size += sum(len(each.entry.data) for each in more)
        return found, position, missing

    def acknowledge(self, position: Position) -> None:
        """Everything before ``position`` is delivered. Blocking: some µs, or a sync where a segment goes. Raises
        OSError.
        """
        if position.sequence < self.position.sequence:
            return  # what was on its way when `shed` went past it
        self.position = position
        assert self._cursor_file is not None  # noqa: S101 - opened with the log
        self._cursor_generation += 1
        data = _CURSOR.pack(self._cursor_generation, *position, 0)[:-4]
        os.pwrite(self._cursor_file, data + struct.pack("<I", crc32(data)), (self._cursor_generation % 2) * _SLOT)
        self._drop_delivered()

    def shed(self, limit: int) -> int:
        """Drop the oldest segments as long as ``limit`` bytes are left; how many events go that were not delivered.
        Blocking. Raises OSError.
        """
        with self._lock:
            while len(self._segments) > 1 and sum(segment.size for segment in self._segments[1:]) >= limit:
                self._segments[0].path.unlink(missing_ok=True)
                del self._segments[0]
            first = self._segments[0].first if self._segments else 0
        lost = max(0, first - self.position.sequence)
        if lost:
            self.acknowledge(Position(first, 0, first))
        return lost

    def _drop_before_last(self) -> None:
        with self._lock:
            passed = len(self._segments) > 1 and self._segments[1].first <= self.position.sequence
        if passed or self._last_may_go():
            # Once the segments are gone only the cursor knows how far the numbers have come.
            assert self._cursor_file is not None  # noqa: S101 - opened with the log
            self._disk.sync(self._cursor_file)
        with self._lock:
            while len(self._segments) > 1 and self._segments[1].first <= self.position.sequence:
                self._segments[0].path.unlink(missing_ok=True)
                del self._segments[0]

    def _drop_delivered(self) -> None:
        self._drop_before_last()
        # The last one goes, too, once all of it is delivered and it is large: at the high-water mark no write would end
        # it. A small one stays, for its events may not have been answered for (`recent`).
        if self._last_may_go() and self._writing.acquire(blocking=False):
            try:
                with self._lock:
                    if self._last_may_go():
                        if self._file is not None:
                            os.close(self._file)
                            self._file = None
                        self._segments[-1].path.unlink(missing_ok=True)
                        self._segments.pop()
            finally:
                self._writing.release()

    def _last_may_go(self) -> bool:
        segments = self._segments[-1:]
        return (
            bool(segments)
            and self.position.sequence >= self.next_sequence
            and segments[0].size >= self._segment_size() // 2
        )

    def recent(self, limit: int) -> Iterator[Stored]:
        """The last events, at most about ``limit`` bytes of them: those that a crash may have left unanswered. None, if
        nobody knows whether they are on the disk.
        """
        if not self._settled:
            return
        with self._lock:
            segments = [(each.path, each.first, each.size) for each in self._segments]
        size, successor = 0, self.next_sequence
        chosen: list[tuple[int, _Found]] = []
        for path, first, length in reversed(segments):
            if size >= limit:
                break
            blocks = [found for found in _whole_blocks(path, length, 0) if found.first < successor]
            successor = first
            while blocks and size < limit:
                chosen.append((first, blocks.pop()))
                size += chosen[-1][1].end - chosen[-1][1].start
        for first, each in reversed(chosen):
            block = _decode(each.payload)
            begin = Position(first, each.start, each.first)
            end = Position(first, each.end, each.first + each.events)
            for number, entry in enumerate(block.entries, start=each.first):
                yield Stored(block.server, entry, number, begin, end)

    def close(self) -> None:
        """Sync the cursor and close the files."""
        for file in (self._file, self._cursor_file):
            if file is not None:
                with contextlib.suppress(OSError):
                    os.fdatasync(file)
                with contextlib.suppress(OSError):
                    os.close(file)
        self._file = self._cursor_file = None


class _Found(NamedTuple):
    start: int
    end: int
    first: int
    events: int
    payload: bytes


def _whole_blocks(path: Path, size: int, offset: int) -> Iterator[_Found]:
    """The blocks from ``offset`` on that are whole; what lies between them is damaged."""
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        while offset + _HEADER.size <= size:
            found = _block_at(descriptor, size, offset)
            if found is None:
                offset = _next_magic(descriptor, size, offset + 1)
                continue
            yield found
            offset = found.end


def _block_at(file: int, size: int, offset: int) -> _Found | None:
    header = os.pread(file, _HEADER.size, offset)
    if len(header) < _HEADER.size:
        return None
    magic, length, crc, first, count = _HEADER.unpack(header)
    end = offset + _HEADER.size + length
    if magic != _MAGIC or end > size:
        return None
    payload = os.pread(file, length, offset + _HEADER.size)
    if len(payload) < length or crc32(payload, crc32(_CHECKED.pack(length, first, count))) != crc:
        return None
    return _Found(offset, end, first, count, payload)


_WINDOW: Final = 1 << 16


def _next_magic(file: int, size: int, offset: int) -> int:
    """Where the next block may begin; ``size`` if nowhere."""
    while offset < size:
        window = os.pread(file, _WINDOW, offset)
        at = window.find(_MAGIC)
        if at >= 0:
            return offset + at
        if len(window) < _WINDOW:
            return size
        offset += _WINDOW - len(_MAGIC) + 1
    return size


class Journal:
    """All logs, and the one who writes them.

    Args:
        folder: belongs to this receiver alone.
        disk: what writes.

    """

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        self._folder = folder
        self._disk = disk or Disk()
        self._lock_file: int | None = None
        self._synced: set[Path] = set()
        self._thread = OwnThread("journal")
        # Logs are synced side by side: the disk does several at once, and one sync takes milliseconds.
        self._syncers = ThreadPoolExecutor(8, "journal-sync")
        self._readers = ThreadPoolExecutor(4, "journal-read")
        self._waiting: list[tuple[Mapping[str, Blocks], asyncio.Future[None]]] = []
        self._wanted = asyncio.Event()
        self._committer: asyncio.Task[None] | None = None
        self._closing = False
        self.logs: dict[str, Log] = {}
        """By sink, ``namespace/name``."""
        self.failure = ""
        """Why the last attempt to write failed; empty: it did not."""

    async def open(self) -> None:
        """Take the folder, find out what is there. Raises OSError, LockedError."""
        await self._thread.run(self._open)
        self._committer = asyncio.create_task(self._commit_forever(), name="journal")

    def _open(self) -> None:
        make_folder(self._folder, PRIVATE_FOLDER)
        self._lock_file, _ = opened(self._folder / "lock", os.O_RDWR, PRIVATE)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{self._folder} is in use by another receiver; give each its own") from None
        for folder in sorted((self._folder / "sinks").glob("*/*/")):
            self._open_log(f"{folder.parent.name}/{folder.name}")

    def _open_log(self, name: str) -> Log:
        log = Log(self._folder / "sinks" / name, self._disk, self._synced)
        log.open()
        self.logs[name] = log
        return log

    async def log(self, name: str) -> Log:
        """The log of this sink, made if there is none. Raises OSError."""
        found = self.logs.get(name)
        return await self._thread.run(partial(self._open_log, name)) if found is None else found

    async def remove(self, name: str) -> None:
        """Delete a log with whatever is in it."""
        log = self.logs.pop(name, None)
        if log is not None:
            await self._thread.run(partial(self._remove, name, log))

    def _remove(self, name: str, log: Log) -> None:
        log.close()
        folder = self._folder / "sinks" / name
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        with contextlib.suppress(OSError):
            folder.parent.rmdir()

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(log.size for log in self.logs.values())

    async def append(self, parts: Mapping[str, Blocks]) -> None:
        """Back when everything is on the disk. ``parts``: by log, which must be there. Raises AppendError.

        What waits here is bounded by the bodies that the server reads at the same time.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((parts, future))
        self._wanted.set()
        await future

    async def probe(self) -> None:
        """Find out whether the disk works again, for nobody sends events to a receiver that is not ready. Sets
        `failure`.
        """
        await self._thread.run(self._probe)

    def _probe(self) -> None:
        path = self._folder / "probe"
        try:
            file, _ = opened(path, os.O_RDWR | os.O_TRUNC, PRIVATE)
            try:
                self._disk.write(file, [bytes(1 << 20)], 0)
                self._disk.sync(file)
            finally:
                os.close(file)
                path.unlink()
        except OSError as error:
            self.failure = _reason(error)
        else:
            self.failure = ""

    async def reading(self, work: Callable[[], _T]) -> _T:
        """Work on a log that reads or acknowledges, in one of the threads for that."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def close(self) -> None:
        """Write what waits, and let go of everything."""
        if self._committer is not None:
            self._closing = True
            self._wanted.set()
            await self._committer
            self._committer = None
        await self._thread.run(self._close)
        self._thread.stop()
        self._syncers.shutdown(wait=False)
        self._readers.shutdown(wait=False)

    def _close(self) -> None:
        for log in self.logs.values():
            log.close()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    async def _commit_forever(self) -> None:
        while self._waiting or not self._closing:
            await self._wanted.wait()
            # POSTs that are ready get their turn and come along: a sync takes a quarter of a millisecond of processor
            # time, as much as everything else about a small POST.
            await asyncio.sleep(0)
            self._wanted.clear()
            waiting, self._waiting = self._waiting, []
            by_log: dict[str, list[Blocks]] = {}
            for parts, _ in waiting:
                for name, each in parts.items():
                    by_log.setdefault(name, []).append(each)
            try:
                failed = await self._thread.run(partial(self._commit, by_log))
            except Exception as error:
                # Whoever waits must be answered, and who comes next be served.
                failed = dict.fromkeys(by_log, _reason(error))
            if by_log:
                self.failure = next(iter(failed.values()), "")
            for name in by_log:
                if name not in failed and name in self.logs:
                    self.logs[name].arrived.set()
            for parts, future in waiting:
                if future.done():
                    continue  # whoever waited is gone
                mine = {name: failed[name] for name in parts if name in failed}
                if mine:
                    future.set_exception(AppendError(mine))
                else:
                    future.set_result(None)

    def _commit(self, by_log: Mapping[str, list[Blocks]]) -> dict[str, str]:
        """Why what failed did."""
        if len(by_log) <= 1:
            outcomes = [self._commit_one(name, many) for name, many in by_log.items()]
        else:
            outcomes = list(self._syncers.map(self._commit_one, by_log, by_log.values()))
        return {name: why for name, why in zip(by_log, outcomes, strict=True) if why}

    def _commit_one(self, name: str, many: Sequence[Blocks]) -> str:
        log = self.logs.get(name)
        # Of a sink that has been removed meanwhile: whoever may delete one must not make POSTs fail.
        return "" if log is None else log.append(many)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return (error.strerror or type(error).__name__).lower()
    logger.error("a bug in the journal", exc_info=error)
    return f"this is a bug in audit-operator: {type(error).__name__}"
