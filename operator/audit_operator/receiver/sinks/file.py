"""file: one event per line in files on the receiver's volume; taken means synced.

The file being written has the name from the settings. A closed one is named like the API server's own (lumberjack):
``audit-2026-11-23T04-33-04.343515.log``, then compressed, then, with `integrity`, gets its digest; the oldest go.

With `encryption` nothing plain touches the disk. An age file cannot be appended to, so each batch is one, closed at
once; those that would have been one file have its time in common and a number: ``audit-2026-…-000001.log.gz.age``.

Names tell when files were begun, and which is older. A clock that was wrong by more than an hour leaves names that lie
ahead: their files stay until that time comes, and nothing else waits for it.
"""

import contextlib
import dataclasses
import fcntl
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path, PurePath
from typing import Any, Final, TypeVar

from audit_operator.receiver.compression import SUFFIX, Compression, compress, compressed_copy
from audit_operator.receiver.files import (
    ARCHIVE,
    ARCHIVE_FOLDER,
    TEMPORARY,
    Account,
    make_folder,
    opened,
    replace,
    settled,
    sync_folder,
    writing,
)
from audit_operator.receiver.integrity import DIGEST, HEAD, LINES, Blocks, Manifest, Measured, measure
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
from audit_operator.receiver.sinks.chain import Chain, Found, Integrity, Names, state_path
from audit_operator.receiver.threads import OwnThread
from audit_operator.render.program import SinkProgram
from audit_operator.resources.meta import quantity, seconds

logger = logging.getLogger(__name__)


class _Rotation(Settings, frozen=True):
    max_size: str
    max_age: str
    max_files: int


class _Encryption(Settings, frozen=True):
    recipients: tuple[str, ...]


class _File(Settings, frozen=True):
    path: str
    rotation: _Rotation
    claim_name: str | None = None
    compression: Compression = "gzip"
    integrity: Integrity | None = None
    encryption: _Encryption | None = None


Encrypt = Callable[[bytes], bytes]


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
    name = f"{program.namespace}/{program.name}"
    if ".." in path.parts or not path.is_relative_to(folder):
        raise UnknownSinkError(f"sink {name}: path {given.path!r} leads out of its folder")
    rules = Rules(
        max_size=int(quantity(given.rotation.max_size)),
        max_age=seconds(given.rotation.max_age),
        max_files=given.rotation.max_files,
        compression=given.compression,
    )
    chain = None
    if given.integrity is not None:
        state = state_path(surroundings.state, name, {"claim": given.claim_name or "", "path": str(path)})
        chain = Chain(state, Names(surroundings.cluster, name, surroundings.receiver), given.integrity)
    return File(path, rules, chain=chain, encrypt=_encrypting(name, given.encryption), account=surroundings.account)


def _encrypting(name: str, given: _Encryption | None) -> Encrypt | None:
    """Raises ImportError without the extra, UnknownSinkError for what is no recipient."""
    if given is None:
        return None
    import pyrage  # type: ignore[import-untyped]  # noqa: PLC0415 - an extra that sinks without encryption do not need

    recipients: list[Any] = []
    for each in given.recipients:
        try:
            recipients.append(pyrage.x25519.Recipient.from_str(each))
        except pyrage.RecipientError:
            raise UnknownSinkError(
                f"sink {name}: encryption.recipients: {each!r} is no recipient of age; `age-keygen -y` prints it"
            ) from None
    return lambda data: bytes(pyrage.encrypt(data, recipients))


class File:
    """A file, and its closed predecessors. ``now``: seconds since the epoch. ``account``: is told of all that is
    written and removed.
    """

    def __init__(
        self,
        path: Path,
        rules: Rules,
        now: Callable[[], float] = time.time,
        *,
        chain: Chain | None = None,
        encrypt: Encrypt | None = None,
        account: Account | None = None,
    ) -> None:
        kept = _Files(path, account)
        closed = _Closed(kept, rules, chain, now, encrypted=encrypt is not None)
        self._log = _Log(closed, now) if encrypt is None else _EncryptedLog(closed, encrypt, now)
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


_LAST_LINE: Final = 1 << 16
_LAST_BATCH: Final = 16 << 20
"""Bytes, read once at the start; a batch has 5 MiB unless the sink says otherwise."""
_PIECE: Final = 1 << 20


def closed_pattern(name: str) -> re.Pattern[str]:
    """The names of closed files of the file ``name``. ``group``: what those have in common that would be one file,
    were they not encrypted; sorts by time. ``plain``: the name without compression and encryption.
    """
    stem, suffix = re.escape(Path(name).stem), re.escape(Path(name).suffix)
    moment = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{6}"
    return re.compile(
        rf"(?P<plain>(?P<group>{stem}-{moment})(-(?P<number>\d{{6}}))?{suffix})(?P<packed>\.gz|\.zst)?(?P<age>\.age)?"
    )


_MOMENT: Final = "%Y-%m-%dT%H-%M-%S.%f"


_WRONG: Final = timedelta(hours=1)
"""By more than that a clock was wrong. By less it may have been set back a little: names go on after the newest one."""
_FIRST: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""No clock that is right is before that: machines start with such a time until they have asked for it."""


class _Files:
    """What a sink does to the files beside its own one, ``path``. Blocking; raises OSError."""

    def __init__(self, path: Path, account: Account | None) -> None:
        self.path = path
        self._account = account

    def names(self) -> list[str]:
        """What may be ours, in no order: a thousand sinks may have their files in one folder."""
        stem = self.path.stem
        return [name for name in os.listdir(self.path.parent) if name.startswith(stem)]  # noqa: PTH208 - ten times faster

    def replace(self, name: str, data: bytes) -> None:
        """This file has these contents from now on, on the disk."""
        path = self.path.with_name(name)
        before = _size(path)
        replace(path, data, ARCHIVE)
        self.grew(len(data) - before)

    def remove(self, name: str) -> None:
        """If it is there."""
        path = self.path.with_name(name)
        size = _size(path)
        path.unlink(missing_ok=True)
        self.grew(-size)

    def grew(self, size: int) -> None:
        """So many bytes more are there."""
        if self._account is not None:
            self._account.add(self.path, size)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class _Closed:
    """The files that are closed: their names, compression, digests, and which of them go. Blocking."""

    def __init__(
        self, files: _Files, rules: Rules, chain: Chain | None, now: Callable[[], float], *, encrypted: bool
    ) -> None:
        self.files = files
        self.path = path = files.path
        self.rules = rules
        self.chain = chain
        self._now = now
        self._encrypted = encrypted
        self._pattern = closed_pattern(path.name)
        self._head = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{8}}{re.escape(HEAD)}")
        self._temporary = re.compile(
            f"({self._pattern.pattern}({re.escape(DIGEST)})?|{self._head.pattern}|{re.escape(path.name)})"
            f"{re.escape(TEMPORARY)}"
        )
        self._head_of: tuple[object, ...] = ()
        self._said = False

    def open(self) -> None:
        """Begin the chain, or go on with it."""
        self._said = False
        if self.chain is None:
            return
        # What was there before belongs to the chain, as it is now; what is there later did not come from us.
        self.chain.open(self._found)
        signed = self.chain.outstanding
        if signed and not self.path.with_name(signed.file).exists():
            self.chain.discard()
        self._head_of = ()
        self._write_head()

    def newest(self) -> str:
        """The newest group; empty: there is none."""
        groups = self.chain.kept if self.chain is not None else [name["group"] for name in self._names()]
        return max((group for group in groups if not self.ahead(group)), default="")

    def ahead(self, group: str) -> bool:
        """Whether the clock was wrong when it was named."""
        horizon = self._horizon()
        return bool(horizon) and group > horizon

    def _horizon(self) -> str:
        """Groups that sort after it have names from a clock that was ahead. Empty: this clock is wrong itself."""
        now = datetime.fromtimestamp(self._now(), UTC)
        return "" if now < _FIRST else f"{self.path.stem}-{(now + _WRONG).strftime(_MOMENT)}"

    def parts(self, group: str) -> list[tuple[int, int]]:
        """Number and size of its files."""
        names = [name for name in self._names() if name["group"] == group and name["age"]]
        return [(int(name["number"] or 0), self.path.with_name(name[0]).stat().st_size) for name in names]

    def next_group(self) -> str:
        """A name after all others but those that are ahead, whatever the clock says."""
        moment = datetime.fromtimestamp(self._now(), UTC)
        if newest := self.newest():
            moment = max(moment, self._moment(newest) + timedelta(microseconds=1))
        return f"{self.path.stem}-{moment.strftime(_MOMENT)}"

    def began(self, group: str) -> float:
        """Seconds since the epoch."""
        return self._moment(group).timestamp()

    def tidy(self) -> None:
        """Compress and seal what is closed, drop what is too old."""
        for found in self.files.names():
            if self._temporary.fullmatch(found):
                self.files.remove(found)
        suffix = SUFFIX[self.rules.compression]
        announced = {self._plain(file) for file in self.chain.pending} if self.chain else set()
        for name in self._names():
            # What has a digest stays as it is.
            mine = name["plain"] in announced if self.chain else not self._digest(name).exists()
            if suffix and mine and not name["packed"] and not name["age"]:
                self._pack(name[0], name[0] + suffix)
        self._seal()
        # The group of encrypted files that is being written is not closed.
        stay = self.rules.max_files + self._encrypted
        horizon, names = self._horizon(), self._names()
        ahead = [name[0] for name in names if horizon and name["group"] > horizon]
        if ahead and not self._said:
            self._said = True
            logger.warning(
                "%s: %d files are named for a time that has not come, as %s: the clock was wrong; they stay until then",
                self.path, len(ahead), ahead[0],
            )  # fmt: skip
        if self.chain is not None:
            self.chain.let_go(stay, horizon)
            oldest = self.chain.oldest
        else:
            groups = sorted({name["group"] for name in names if not horizon or name["group"] <= horizon})
            oldest = groups[-stay] if len(groups) > stay else ""
        self._write_head()
        if horizon and oldest > horizon:
            return  # until there is one whose name is right
        gone = [name for name in names if name["group"] < oldest]
        for name in gone:
            self.files.remove(name[0])
        if gone and self.chain is not None:
            # A digest without its file is explained by the head, a file without its digest by nothing.
            sync_folder(self.path.parent)
        for name in gone:
            self.files.remove(self.digest_name(name["plain"]))

    def _pack(self, name: str, packed: str) -> None:
        path, done = self.path.with_name(name), self.path.with_name(packed)
        temporary = self.path.with_name(packed + TEMPORARY)
        before = _size(done)
        with path.open("rb") as source, writing(temporary, ARCHIVE) as target:
            compressed_copy(source, target, self.rules.compression)
        temporary.replace(done)
        self.files.grew(_size(done) - before)
        sync_folder(path.parent)
        self.files.remove(name)

    def manifest(self, name: str, measured: Measured) -> Manifest:
        """What is said of a file."""
        assert self.chain is not None  # noqa: S101 - nobody else asks
        return Manifest(
            version=1,
            object=name,
            **self.chain.names._asdict(),
            events=measured.events,
            bytes=measured.bytes,
            sha256=measured.sha256,
            uncompressed_bytes=measured.uncompressed_bytes,
            uncompressed_sha256=measured.uncompressed_sha256,
            lines=Blocks(each=LINES, sha256=measured.blocks) if measured.blocks else None,
        )

    def digest_name(self, plain: str) -> str:
        """Of the digest of the file with this name without compression."""
        return f"{plain}{DIGEST}"

    def publish(self) -> None:
        """Write the digest that is signed and not there yet."""
        if self.chain is not None and (signed := self.chain.outstanding):
            self.files.replace(signed.name, signed.text.encode())
            # Not before it is there: what never was must not count among those that stay.
            if name := self._pattern.fullmatch(signed.file):
                self.chain.keep([name["group"]])
            self.chain.advance()

    def _seal(self) -> None:
        chain = self.chain
        if chain is None:
            return
        self.publish()
        announced = {self._plain(file): file for file in chain.pending}
        for name in self._names():
            if file := announced.get(name["plain"]):
                measured = measure(_pieces(self.path.with_name(name[0])), name[0])
                digest = self.digest_name(name["plain"])
                chain.sign(self.manifest(name[0], measured), digest, name[0], announced=file)
                self.publish()
        chain.forget(chain.pending)

    def _write_head(self) -> None:
        if self.chain is None:
            return
        says = (self.chain.sequence, self.chain.oldest, self.chain.ahead, self.chain.pending)
        if says != self._head_of:
            name = self.chain.head_name(self.path.name)
            head = self.chain.head(name, writing="" if self._encrypted else self.path.name)
            self.files.replace(name, head)
            self._head_of = says

    def _names(self) -> list[re.Match[str]]:
        """The oldest first: their names sort by time. Nobody else's files are among them."""
        found = (self._pattern.fullmatch(name) for name in self.files.names())
        return sorted((match for match in found if match), key=lambda match: match[0])

    def _moment(self, group: str) -> datetime:
        return datetime.strptime(group[len(self.path.stem) + 1 :], _MOMENT).replace(tzinfo=UTC)

    def _digest(self, name: re.Match[str]) -> Path:
        return self.path.with_name(self.digest_name(name["plain"]))

    def _plain(self, file: str) -> str:
        name = self._pattern.fullmatch(file)
        return name["plain"] if name else file

    def _found(self) -> Found:
        """What is there of a time before the chain."""
        ours = re.compile(f"{self._pattern.pattern}({re.escape(DIGEST)})?|{self._head.pattern}")
        there = any(ours.fullmatch(name) for name in self.files.names())
        return Found(
            there or (self.path.exists() and self.path.stat().st_size > 0),
            [name[0] for name in self._names() if not self._digest(name).exists()],
            list(dict.fromkeys(name["group"] for name in self._names())),
        )


class _Log:
    """The file that is written; blocking."""

    def __init__(self, closed: _Closed, now: Callable[[], float]) -> None:
        self._closed = closed
        self._path = closed.path
        self._rules = closed.rules
        self._now = now
        self._file: int | None = None
        self._size = 0
        # After a failure: what is behind that may only look as if it were there.
        self._certain: int | None = None
        # Lines at the end of the file when it was opened: what a crash kept from being noted as delivered comes again.
        # It is all in this file, for a new one is begun before a batch, never within.
        self._written: set[int] = set()
        # The file's own times do not tell when it was begun; this one's does, over restarts.
        self._begun = begun_path(self._path)

    def open(self) -> None:
        make_folder(self._path.parent, ARCHIVE_FOLDER)
        # First the new name of the one before: else this one may be all that a power cut leaves.
        sync_folder(self._path.parent)
        file, _ = opened(self._path, os.O_RDWR | os.O_APPEND, ARCHIVE)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._closed.open()
            before = os.fstat(file).st_size
            if self._certain is not None and before > self._certain:
                before = self._certain
                os.ftruncate(file, before)
            settled(file)
            _cut_torn_line(file)
            if holes := _holes(file):
                file = self._without(file, holes)
            self._size = os.fstat(file).st_size
            self._written = _last_lines(file, self._size)
            os.fsync(file)
            self._certain = None
        except BaseException:
            os.close(file)
            raise
        self._file = file
        self._closed.files.grew(self._size - before)
        if self._size == 0 or not self._begun.exists():
            self._begin()
        sync_folder(self._path.parent)
        self._closed.tidy()

    def _without(self, file: int, holes: "list[tuple[int, int]]") -> int:
        """The same file without these pieces, in place of this one, whole or not at all."""
        size = os.fstat(file).st_size
        if holes == [(holes[0][0], size)]:
            os.ftruncate(file, holes[0][0])
            return file
        temporary = self._path.with_name(self._path.name + TEMPORARY)
        with writing(temporary, ARCHIVE) as target, self._path.open("rb") as source:
            for start, end in zip((0, *(end for _, end in holes)), (*(start for start, _ in holes), size), strict=True):
                source.seek(start)
                left = end - start
                while left and (piece := source.read(min(left, _PIECE))):
                    target.write(piece)
                    left -= len(piece)
        other, _ = opened(temporary, os.O_RDWR | os.O_APPEND, ARCHIVE)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.replace(self._path)
            sync_folder(self._path.parent)
        except BaseException:
            os.close(other)
            raise
        os.close(file)
        return other

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
            # Nobody knows what of it is on the disk: it is taken back, and the file read again before the next write.
            self._certain = self._size
            self.close()
            with contextlib.suppress(OSError):
                os.truncate(self._path, self._size)
            raise
        self._size += len(lines)
        self._closed.files.grew(len(lines))

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)

    def _begin(self) -> None:
        file, _ = opened(self._begun, os.O_WRONLY, ARCHIVE)
        os.close(file)
        os.utime(self._begun, (self._now(), self._now()))

    def _age(self) -> float:
        age = self._now() - self._begun.stat().st_mtime
        if age < 0:
            # The clock was wrong then, or is now.
            self._begin()
        return age

    def _rotate(self) -> None:
        name = f"{self._closed.next_group()}{self._path.suffix}"
        if self._closed.chain is not None:
            self._closed.chain.announce([name])
        self._path.rename(self._path.with_name(name))
        self.close()
        self.open()


class _EncryptedLog:
    """Each batch a file of its own; blocking."""

    def __init__(self, closed: _Closed, encrypt: Encrypt, now: Callable[[], float]) -> None:
        self._closed = closed
        self._path = closed.path
        self._rules = closed.rules
        self._encrypt = encrypt
        self._now = now
        self._lock: int | None = None
        self._group = ""
        self._number = 0
        self._size = 0
        self._last = 0
        """Hash of the last batch that was written: when only what follows on that failed, it is not written again."""

    def open(self) -> None:
        make_folder(self._path.parent, ARCHIVE_FOLDER)
        lock, _ = opened(begun_path(self._path), os.O_RDWR, ARCHIVE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._closed.open()
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock
        self._closed.tidy()
        self._group = self._closed.newest()
        parts = self._closed.parts(self._group)
        self._number = max((number for number, _ in parts), default=0)
        self._size = sum(size for _, size in parts)

    def append(self, events: list[bytes]) -> None:
        if self._lock is None:
            self.open()
        lines = b"".join(events)
        if hash(lines) != self._last:
            self._write(lines, len(events))
            self._last = hash(lines)
        self._closed.publish()
        self._closed.tidy()
        self._last = 0

    def close(self) -> None:
        if self._lock is not None:
            lock, self._lock = self._lock, None
            os.close(lock)

    def _write(self, lines: bytes, events: int) -> None:
        body = self._encrypt(compress(lines, self._rules.compression))
        if (
            not self._group
            or (self._size and self._size + len(body) > self._rules.max_size)
            or self._now() - self._closed.began(self._group) >= self._rules.max_age
            or self._closed.ahead(self._group)
            or self._number == _LAST_NUMBER
        ):
            self._group, self._number, self._size = self._closed.next_group(), 0, 0
        plain = f"{self._group}-{self._number + 1:06}{self._path.suffix}"
        name = f"{plain}{SUFFIX[self._rules.compression]}.age"
        if chain := self._closed.chain:
            if signed := chain.outstanding:
                # Its file was not written for certain; these are its events again.
                self._closed.files.remove(signed.file)
                chain.discard()
            measured = dataclasses.replace(measure([body], name), events=events)
            chain.sign(self._closed.manifest(name, measured), self._closed.digest_name(plain), name)
        self._closed.files.replace(name, body)
        self._number += 1
        self._size += len(body)


_P = TypeVar("_P", bound=PurePath)
_LAST_NUMBER: Final = 999_999


def begun_path(path: _P) -> _P:
    """A file whose time says when ``path`` was begun."""
    return path.with_name(f".{path.name}.begun")


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            yield piece


def _cut_torn_line(file: int) -> None:
    """The last line, if a crash left it incomplete: its event was not taken and comes again."""
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


def _holes(file: int) -> list[tuple[int, int]]:
    """Lines with zeros in them, of the most that can have been written at once: from where to where. Of what was not
    synced a power cut may leave the length and not the content, in any part of it.
    """
    size = os.fstat(file).st_size
    at = max(0, size - _LAST_BATCH)
    data = os.pread(file, size - at, at)
    if b"\0" not in data:
        return []
    if at:
        whole = data.find(b"\n") + 1
        at, data = at + whole, data[whole:]
    found: list[tuple[int, int]] = []
    for line in data.splitlines(keepends=True):
        if b"\0" in line:
            if found and found[-1][1] == at:
                found[-1] = (found[-1][0], at + len(line))
            else:
                found.append((at, at + len(line)))
        at += len(line)
    return found


def _last_lines(file: int, size: int) -> set[int]:
    """Hashes of the lines at the end, of the most that can have been written at once."""
    start = max(0, size - _LAST_BATCH)
    return {hash(line) for line in os.pread(file, size - start, start).splitlines(keepends=True)}
