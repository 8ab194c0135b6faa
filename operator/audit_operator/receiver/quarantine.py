"""What could not be delivered as it should: kept, counted, and to be had again.

Two kinds, a file each: *malformed* items of a POST, which no policy could be asked about, and *refused* events, which a
sink will never take. A line is one of them, as JSON. Malformed items are kept without their bodies and annotations:
nothing could tell what in them is secret, and what is not redacted never touches the disk. Refused events are as they
stood in the journal, redacted.

    JOURNAL/quarantine/malformed.jsonl
    JOURNAL/quarantine/NAMESPACE/NAME.jsonl
"""

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw

from audit_operator.policy.events import EventError, fields
from audit_operator.policy.redact import UNREDACTABLE
from audit_operator.receiver.files import PRIVATE, PRIVATE_FOLDER, Target, make_folder, opened, replace, sync_folder
from audit_operator.receiver.threads import OwnThread

_T = TypeVar("_T")

MALFORMED: Final = "malformed"
"""In place of a sink's name."""

LARGEST: Final = 64 << 20
"""Bytes of one file. For malformed items the newest are dropped then, and counted all the same; a sink waits with what
it refuses, as it does when it is down, until somebody has looked (`audit-operator quarantine`).
"""

_BODIES: Final = ("requestObject", "responseObject", "annotations", "responseStatus")
_WORD: Final = rb'"([A-Za-z]{0,64})"'
_TIME: Final = rb'"([-0-9T:.Z+]{0,40})"'
_SIMPLE: Final = {
    "level": re.compile(_WORD),
    "auditID": re.compile(rb'"([-A-Za-z0-9_.:]{0,128})"'),
    "stage": re.compile(_WORD),
    # Whatever a URL demands, such as a field's value, comes after the question mark.
    "requestURI": re.compile(rb'"([-A-Za-z0-9/._~:]{0,2000})(?:[?].*)?"', re.DOTALL),
    "verb": re.compile(rb'"([a-z]{0,16})"'),
    "requestReceivedTimestamp": re.compile(_TIME),
    "stageTimestamp": re.compile(_TIME),
}
"""What these look like in events; whoever writes other things there may have written anything."""


class Held(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One entry. ``id``: for commands. ``time``: RFC 3339, when it came here. ``size``: bytes of the original."""

    id: str
    time: str
    server: str
    reason: str
    size: int
    event: Raw


class FullError(Exception):
    """The file has reached `LARGEST`."""


def malformed(server: str, item: bytes, reason: str, time: str) -> Held:
    """An entry for an item that is no event, or that nobody can decide on."""
    return Held(
        id=hashlib.sha256(item).hexdigest()[:16],
        time=time,
        server=server,
        reason=reason,
        size=len(item),
        event=Raw(msgspec.json.encode(_envelope(item))),
    )


def refused(server: str, event: bytes, reason: str, time: str) -> Held:
    """An entry for an event that a sink refused; ``event`` as in the journal."""
    return Held(
        id=hashlib.sha256(server.encode() + event).hexdigest()[:16],
        time=time,
        server=server,
        reason=reason,
        size=len(event),
        event=Raw(event),
    )


def _envelope(item: bytes) -> Any:
    """What can be kept of it without a secret in it."""
    try:
        members = fields(item)
    except EventError:
        return UNREDACTABLE
    kept: dict[str, Any] = {}
    for name, value in members.items():
        if name in _SIMPLE:
            simple = _SIMPLE[name].fullmatch(bytes(value))
            kept[name] = UNREDACTABLE if simple is None else Raw(b'"%b"' % simple[1])
        elif name in ("user", "objectRef", *_BODIES):
            kept[name] = UNREDACTABLE
    return kept


_ASKED: Final = ".retry"
_TAKEN: Final = ".retrying"


def _lines(entries: Sequence[Held]) -> bytes:
    return b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)


def _read(path: Path) -> Iterator[Held]:
    with path.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(msgspec.DecodeError):
                yield msgspec.json.decode(line, type=Held)


def _append(path: Path, lines: bytes, *, known: bool = False) -> None:
    """All of it, synced, or OSError. ``known``: its name is on the disk, if it is there."""
    file, made = opened(path, os.O_WRONLY | os.O_APPEND, PRIVATE)
    try:
        before = os.fstat(file).st_size
        try:
            # On a line of its own, whatever the one before ends in: a crash may have cut it off, and after a sync that
            # failed its end need not be on the disk even if it seems so.
            Target(file).write(b"\n" + lines if before else lines)
            os.fsync(file)
            if made or not known:
                sync_folder(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, before)
                os.fsync(file)
            raise
    finally:
        os.close(file)


class Quarantine:
    """The files. Blocking; safe for use by several threads and processes, as the command line beside the receiver."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Whose files' names are on the disk: whoever made them may have been killed before.
        self._named: set[str] = set()
        self._thread = OwnThread("quarantine")

    async def aside(self, work: Callable[[], _T]) -> _T:
        """Work on it in a thread of its own: a server that refuses all it gets, one by one, costs a sync each, for
        which nothing that reads the journal must wait.
        """
        return await self._thread.run(work)

    def path(self, of: str) -> Path:
        """The file of a sink (``namespace/name``), or of `MALFORMED`."""
        return self._folder / f"{of}.jsonl"

    def put(self, of: str, entries: Sequence[Held], largest: int = LARGEST) -> None:
        """Keep them, synced, as long as the file has no more than so many bytes. Raises FullError, OSError: then none
        is kept.
        """
        lines = _lines(entries)
        path = self.path(of)
        if of not in self._named or not path.parent.is_dir():
            make_folder(path.parent, PRIVATE_FOLDER)
        with self._locked():
            if self.size(of) + 1 + len(lines) > largest:
                raise FullError(f"the quarantine of {of} is full: look at it with `audit-operator quarantine list`")
            _append(path, lines, known=of in self._named)
            self._named.add(of)

    def names(self) -> list[str]:
        """Whose files there are."""
        if not self._folder.is_dir():
            return []
        found = [path.relative_to(self._folder).with_suffix("") for path in self._folder.rglob("*.jsonl")]
        return sorted(str(path) for path in found)

    def entries(self, of: str) -> Iterator[Held]:
        """What is kept, the oldest first. A line that a crash left incomplete is skipped."""
        with contextlib.suppress(FileNotFoundError):
            yield from _read(self.path(of))

    def size(self, of: str) -> int:
        """Bytes."""
        try:
            return self.path(of).stat().st_size
        except OSError:
            return 0

    def sizes(self) -> dict[str, int]:
        """Bytes by sink (``namespace/name``), with what is about to be delivered again. Blocking."""
        found: dict[str, int] = {}
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(OSError):
                name = f"{path.parent.name}/{path.stem}"
                found[name] = found.get(name, 0) + path.stat().st_size
        return found

    def remove(self, of: str) -> None:
        """Drop what is kept of a sink. Raises OSError."""
        with self._locked():
            for suffix in (".jsonl", _ASKED, _TAKEN):
                self.path(of).with_suffix(suffix).unlink(missing_ok=True)

    def ask_again(self, of: str, ids: frozenset[str] | None) -> int:
        """Take out those with these ids, or all, for the receiver to deliver again; how many. Raises OSError."""
        with self._locked():
            taken: list[Held] = []
            left: list[Held] = []
            for entry in self.entries(of):
                (taken if ids is None or entry.id in ids else left).append(entry)
            if taken:
                # First the copy: what ends this in between makes an event come twice, not never.
                _append(self.path(of).with_suffix(_ASKED), _lines(taken))
                replace(self.path(of), _lines(left), PRIVATE)
                if not left:
                    self.path(of).unlink()
        return len(taken)

    def asked(self) -> list[tuple[str, list[Held]]]:
        """What is to be delivered again, by sink; it stays until `done`."""
        if not self._folder.is_dir():
            return []
        with self._locked():
            for path in self._folder.rglob(f"*{_ASKED}"):
                if not path.with_suffix(_TAKEN).exists():
                    path.replace(path.with_suffix(_TAKEN))
        return [
            (str(path.relative_to(self._folder).with_suffix("")), list(_read(path)))
            for path in sorted(self._folder.rglob(f"*{_TAKEN}"))
        ]

    def done(self, of: str) -> None:
        """What was asked for is in the journal."""
        self.path(of).with_suffix(_TAKEN).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._folder.is_dir():
            make_folder(self._folder, PRIVATE_FOLDER)
        file, _ = opened(self._folder / ".lock", os.O_RDWR, PRIVATE)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)
