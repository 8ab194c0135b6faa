"""file: one event per line in files on the receiver's volume; taken means synced.

The file being written has the name from the settings. A closed one is named like the API server's own (lumberjack):
``audit-2026-11-23T04-33-04.343515.log``, then compressed; the oldest closed files go.
"""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from audit_operator.receiver.compression import SUFFIX, Compression, compressed_copy
from audit_operator.receiver.sinks import (
    TAKEN,
    Batch,
    MisconfiguredError,
    Result,
    Settings,
    SinkError,
    Surroundings,
    UnknownSinkError,
    UnreachableError,
    filled,
    settings,
)
from audit_operator.receiver.threads import OwnThread
from audit_operator.render.program import SinkProgram
from audit_operator.resources.meta import quantity, seconds


class _Rotation(Settings, frozen=True):
    max_size: str
    max_age: str
    max_files: int


class _File(Settings, frozen=True):
    path: str
    rotation: _Rotation
    claim_name: str | None = None
    compression: Compression = "gzip"


@dataclass(frozen=True, slots=True)
class Rules:
    """When a file is closed (bytes, seconds), how many closed ones stay, and how they are compressed."""

    max_size: int
    max_age: float
    max_files: int
    compression: Compression


def make(program: SinkProgram, surroundings: Surroundings) -> "File":
    """See `Sink`."""
    given = settings(program, _File)
    folder = surroundings.claims / given.claim_name if given.claim_name else surroundings.files
    path = folder / filled(given.path, program, surroundings)
    if ".." in path.parts or not path.is_relative_to(folder):
        raise UnknownSinkError(f"sink {program.namespace}/{program.name}: path {given.path!r} leads out of its folder")
    rules = Rules(
        max_size=int(quantity(given.rotation.max_size)),
        max_age=seconds(given.rotation.max_age),
        max_files=given.rotation.max_files,
        compression=given.compression,
    )
    return File(path, rules)


class File:
    """A file, and its closed predecessors. ``now``: seconds since the epoch."""

    def __init__(self, path: Path, rules: Rules, now: Callable[[], float] = time.time) -> None:
        self._log = _Log(path, rules, now)
        self._thread = OwnThread(f"file {path.name}")

    async def open(self) -> None:
        """Open the file; what a crash left behind is tidied up. Raises SinkError."""
        await self._thread.run(partial(_explained, self._log.open))

    async def deliver(self, batch: Batch) -> Result:
        """Append and sync. What could not be written whole is taken back."""
        lines = [item.data + b"\n" for item in batch.items]
        await self._thread.run(partial(_explained, partial(self._log.append, lines)))
        return TAKEN

    async def close(self) -> None:
        """Close the file; it is continued at the next start."""
        with contextlib.suppress(SinkError):
            await self._thread.run(partial(_explained, self._log.close))
        self._thread.stop()


def _explained(work: Callable[[], None]) -> None:
    """``work()``, its errors as a sink's."""
    try:
        work()
    except BlockingIOError:
        raise MisconfiguredError(
            "another sink or receiver writes the same file; put {sink} and {receiver} into the path"
        ) from None
    except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise MisconfiguredError(f"{error.filename or 'the file'}: {(error.strerror or '').lower()}") from error
    except OSError as error:
        raise UnreachableError(f"the volume: {(error.strerror or type(error).__name__).lower()}") from error


_TEMPORARY: Final = ".tmp"
_PACKED: Final = (".gz", ".zst")
_LAST_LINE: Final = 1 << 16
_LAST_BATCH: Final = 16 << 20
"""Bytes, read once at the start; a batch has 5 MiB unless the sink says otherwise."""


class _Log:
    """The files themselves; blocking."""

    def __init__(self, path: Path, rules: Rules, now: Callable[[], float]) -> None:
        self._path = path
        self._rules = rules
        self._now = now
        self._file: int | None = None
        self._size = 0
        # Lines at the end of the file when it was opened: what a crash kept from being noted as delivered comes again.
        # It is all in this file, for a new one is begun before a batch, never within.
        self._written: set[int] = set()
        self._closed_name = re.compile(
            rf"{re.escape(path.stem)}-\d{{4}}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{{6}}{re.escape(path.suffix)}"
            rf"((\.gz|\.zst)({re.escape(_TEMPORARY)})?)?"
        )
        # The file's own times do not tell when it was begun; this one's does, over restarts.
        self._begun = path.with_name(f".{path.name}.begun")

    def open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._size = _without_torn_line(file)
            self._written = _last_lines(file, self._size)
            os.fsync(file)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        if self._size == 0 or not self._begun.exists():
            self._begun.touch()
            os.utime(self._begun, (self._now(), self._now()))
        _sync_folder(self._path.parent)
        self._tidy()

    def append(self, events: list[bytes]) -> None:
        if self._file is None:
            self.open()
        if self._written:
            new = [event for event in events if hash(event) not in self._written]
            if len(new) == len(events):
                self._written.clear()
            events = new
        lines = b"".join(events)
        if not lines:
            return
        if self._size and (self._size + len(lines) > self._rules.max_size or self._age() >= self._rules.max_age):
            self._rotate()
        file = self._file
        assert file is not None  # noqa: S101 - both branches above opened it
        try:
            written = 0
            while written < len(lines):
                written += os.write(file, memoryview(lines)[written:])
            os.fdatasync(file)
        except OSError:
            # After a failed sync nobody knows what of the file is on disk: it is read again before the next write.
            self.close()
            with contextlib.suppress(OSError):
                os.truncate(self._path, self._size)
            raise
        self._size += len(lines)

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)

    def _age(self) -> float:
        return self._now() - self._begun.stat().st_mtime

    def _rotate(self) -> None:
        moment = datetime.fromtimestamp(self._now(), UTC)
        closed = self._closed_path(moment)
        self._path.rename(closed)
        self.close()
        self.open()

    def _closed_path(self, moment: datetime) -> Path:
        name = f"{self._path.stem}-{moment:%Y-%m-%dT%H-%M-%S.%f}{self._path.suffix}"
        return self._path.with_name(name)

    def _closed(self) -> list[Path]:
        """Closed files, the oldest first: their names sort by time. Nobody else's files are touched."""
        return sorted(path for path in self._path.parent.iterdir() if self._closed_name.fullmatch(path.name))

    def _tidy(self) -> None:
        """Compress what is closed and not compressed yet, drop what is too old."""
        for path in self._closed():
            if path.name.endswith(_TEMPORARY):
                path.unlink()
        suffix = SUFFIX[self._rules.compression]
        for path in self._closed():
            if suffix and path.name.endswith(self._path.suffix) and path.suffix not in _PACKED:
                _pack(path, suffix, self._rules.compression)
        closed = self._closed()
        for path in closed[: max(0, len(closed) - self._rules.max_files)]:
            path.unlink()


def _pack(path: Path, suffix: str, compression: Compression) -> None:
    packed = path.with_name(path.name + suffix)
    temporary = path.with_name(packed.name + _TEMPORARY)
    with path.open("rb") as source, temporary.open("wb") as target:
        compressed_copy(source, target, compression)
        target.flush()
        os.fsync(target.fileno())
    temporary.rename(packed)
    _sync_folder(path.parent)
    path.unlink()


def _without_torn_line(file: int) -> int:
    """Cuts off a last line that a crash left incomplete: its event was not taken and comes again. The size then."""
    size = end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - _LAST_LINE)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(file, end)
    return end


def _last_lines(file: int, size: int) -> set[int]:
    """Hashes of the lines at the end, of the most that can have been written at once."""
    start = max(0, size - _LAST_BATCH)
    return {hash(line) for line in os.pread(file, size - start, start).splitlines(keepends=True)}


def _sync_folder(folder: Path) -> None:
    """So that names survive a power cut as their files do."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
