"""Whether what lies in a folder or bucket is what receivers wrote there: the chains of digests, checked.

Nothing is kept in memory but one digest and a piece of one file: what was listed and read is in a temporary database
on the disk. What is missing is looked for once more before it is said, since receivers go on writing meanwhile.
"""

import contextlib
import enum
import hashlib
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Final, Protocol, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from audit_operator.receiver.files import TEMPORARY
from audit_operator.receiver.integrity import (
    DIGEST,
    HEAD,
    LARGEST_DIGEST,
    LINES,
    MANIFEST,
    Head,
    Link,
    Manifest,
    Previous,
    SignatureError,
    UnknownKeyError,
    document,
    measure,
)
from audit_operator.receiver.sinks.file import begun_path, closed_pattern

_T = TypeVar("_T")


class Kind(enum.StrEnum):
    """What is said of a file, a digest or a chain."""

    CHANGED = "changed"
    REMOVED = "removed"
    ADDED = "added"
    REORDERED = "reordered"
    SIGNATURE = "signature"
    BROKEN = "broken"
    NOT_SEALED = "notSealed"
    UNFINISHED = "unfinished"
    ANEW = "anew"


UNPROTECTED: Final = Kind.NOT_SEALED
"""What nobody could tell if it was changed, emptied or removed."""

NOTES: Final = frozenset({Kind.NOT_SEALED, Kind.UNFINISHED, Kind.ANEW})
"""What a receiver may leave behind, or cannot know. Everything else is what only somebody else can have done."""


@dataclass(frozen=True, slots=True)
class Finding:
    """``file``: path below what is verified. ``chain``: its id, where that is known."""

    kind: Kind
    file: str
    message: str
    chain: str = ""


@dataclass(slots=True)
class ChainReport:
    """What is known of one chain. ``first``, ``last``: sequence numbers of the digests that are there. ``retention``:
    days after which a bucket's lifecycle removes what it is of.
    """

    id: str
    cluster: str
    sink: str
    receiver: str
    retention: int | None = None
    first: int = 0
    last: int = 0
    digests: int = 0
    files: int = 0
    events: int = 0
    begun: str = ""
    ended: str = ""
    digest: str = ""
    sha256: str = ""
    findings: int = 0


class Known(msgspec.Struct, frozen=True):
    """A chain as an earlier report has it, as far as it matters."""

    id: str
    last: int
    sha256: str = ""
    sink: str = ""
    receiver: str = ""
    retention: int | None = None
    ended: str = ""


class CannotCheckError(Exception):
    """Nothing can be said; the message says why, and what to do."""


class Store(Protocol):
    """Files by their paths, with slashes."""

    def names(self) -> Iterator[str]:
        """All of them, in any order. Raises OSError."""

    def pieces(self, name: str) -> Iterator[bytes]:
        """One of them. Raises OSError; FileNotFoundError, at the first piece, if it is not there."""


_TABLES: Final = """
CREATE TABLE files (path TEXT PRIMARY KEY, kind TEXT, told INTEGER DEFAULT 0) WITHOUT ROWID;
CREATE TABLE digests (
  path TEXT PRIMARY KEY, chain TEXT, sequence INTEGER, digest TEXT, file TEXT, sha TEXT, time TEXT,
  size INTEGER, file_sha TEXT, events INTEGER, first_sequence INTEGER, retention INTEGER,
  previous TEXT, copy INTEGER DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX by_chain ON digests (chain, sequence);
CREATE INDEX by_content ON digests (file_sha);
CREATE TABLE unfinished (path TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE foreign_signatures (path TEXT PRIMARY KEY, message TEXT) WITHOUT ROWID;
"""

_CLOSED: Final = re.compile(rf"(.*)-\d{{4}}-\d\d-\d\dT[\d.-]{{15}}(?:-\d{{6}})?(.*){re.escape(DIGEST)}")
_OBJECT: Final = re.compile(r"_(?P<receiver>[^/_]+)_(?P<first>\d{12,})-(?P<last>\d{12,})\.jsonl(\.gz|\.zst)?")


class _Row(msgspec.Struct, frozen=True, array_like=True):
    path: str
    chain: str
    sequence: int
    digest: str
    file: str
    sha: str
    time: str
    size: int
    file_sha: str
    events: int | None
    first_sequence: int | None
    retention: int | None
    previous: str


_COLUMNS: Final = ", ".join(_Row.__struct_fields__)


@dataclass(slots=True)
class _Chain:
    """A chain while it is looked at. ``base``: the folder that its names are below, empty or with a slash. ``prefix``:
    what the name of its head begins with; of the file sink the name of the file that is written.
    """

    report: ChainReport
    base: str
    prefix: str = ""
    head: Head | None = None
    head_path: str = ""
    newest: _Row | None = None
    oldest: str = ""
    ahead: frozenset[tuple[str, str]] = frozenset()


@dataclass(slots=True)
class Verification:
    """See the module. ``keys``: by fingerprint. ``known``: chains of earlier reports, which must still be there."""

    store: Store
    keys: Mapping[str, Ed25519PublicKey]
    now: datetime
    known: Sequence[Known] = ()
    _data: sqlite3.Connection = field(init=False)
    _chains: dict[str, _Chain] = field(init=False, default_factory=dict)

    def findings(self) -> Iterator[Finding]:
        """All there is to say, file by file; then `reports` knows the chains. Raises CannotCheckError, OSError."""
        # An empty name: a database of its own on the disk, which is gone at the end.
        with contextlib.closing(sqlite3.connect("")) as self._data:
            self._data.executescript(_TABLES)
            self._list()
            for finding in self._all():
                if finding.chain in self._chains and finding.kind not in NOTES:
                    self._chains[finding.chain].report.findings += 1
                yield finding

    def _all(self) -> Iterator[Finding]:
        yield from self._read_heads()
        yield from self._read_digests()
        yield from self._foreign_signatures()
        yield from self._find_bases()
        yield from self._misplaced()
        for chain in self._chains.values():
            yield from self._walk(chain)
        for chain in self._chains.values():
            yield from self._files(chain)
        yield from self._others()
        yield from self._known()

    # --- reading ---

    def _list(self) -> None:
        rows = ((name, _kind(name)) for name in self.store.names())
        self._data.executemany("INSERT OR IGNORE INTO files (path, kind) VALUES (?, ?)", rows)
        digests = self._data.execute("SELECT 1 FROM files WHERE kind IN ('digest', 'head')").fetchone()
        if not digests and not self.known:
            raise CannotCheckError("there is no digest here; name the folder that a sink with integrity writes to")

    def _names(self, kind: str) -> Iterator[str]:
        """By path; what is written to the database meanwhile is no matter."""
        after = ""
        while names := self._data.execute(
            "SELECT path FROM files WHERE kind = ? AND path > ? ORDER BY path LIMIT 1000", (kind, after)
        ).fetchall():
            for (name,) in names:
                yield name
            after = names[-1][0]

    def _read(self, name: str) -> bytes | None:
        """A digest or head. None: it is not there any more, or too large to be one."""
        text = b""
        try:
            for piece in self.store.pieces(name):
                text += piece
                if len(text) > LARGEST_DIGEST:
                    return b""
        except FileNotFoundError:
            return None
        return text

    def _read_heads(self) -> Iterator[Finding]:
        for name in self._names("head"):
            text = self._read(name)
            if text is None:
                continue
            self._tell(name)
            try:
                head = _decoded(document(text, self.keys), Head)
            except UnknownKeyError as error:
                self._note_foreign(name, f"the end of a chain {error}")
                continue
            except SignatureError as error:
                yield Finding(Kind.SIGNATURE, name, f"the end of a chain {error}")
                continue
            base, other = _base(name, head.name), self._chains.get(head.head_of)
            if base is None or (
                other and other.head and self._trust(other.base, other.head) >= self._trust(base, head)
            ):
                yield Finding(Kind.ADDED, name, f"is a copy of {head.name}", head.head_of)
                continue
            if other:
                yield Finding(Kind.ADDED, other.head_path, f"is a copy of {name}", head.head_of)
            report = ChainReport(head.head_of, head.cluster, head.sink, head.receiver, head.retention_days)
            prefix = head.name.removesuffix(f".{head.head_of[:8]}{HEAD}")
            self._chains[head.head_of] = _Chain(report, base, prefix, head, name)

    def _trust(self, base: str, head: Head) -> tuple[bool, int]:
        """Which of a chain's heads to believe: the one that is where the chain is, then the newest."""
        return head.last is not None and self._listed(f"{base}{head.last.digest}"), head.sequence

    def _read_digests(self) -> Iterator[Finding]:
        for name in self._names("digest"):
            text = self._read(name)
            if text is None:
                continue
            self._tell(name)
            try:
                found = _decoded(document(text, self.keys), Manifest)
                link = found.chain
                if link is None:
                    raise SignatureError("has no place in a chain")
            except UnknownKeyError as error:
                self._note_foreign(name, str(error))
                continue
            except SignatureError as error:
                yield Finding(Kind.SIGNATURE, name, str(error))
                # Nothing can be said of what it is of, and nothing else is to be said of it.
                self._tell_of(name)
                continue
            self._insert(name, text, found, link)
            if link.id not in self._chains:
                report = ChainReport(link.id, found.cluster, found.sink, found.receiver)
                self._chains[link.id] = _Chain(report, "")

    def _note_foreign(self, name: str, message: str) -> None:
        self._data.execute("INSERT OR IGNORE INTO foreign_signatures VALUES (?, ?)", (name, message))

    def _foreign_signatures(self) -> Iterator[Finding]:
        """What is signed with none of the keys. If that is all there is, the keys are wrong, or all of it is forged."""
        (foreign,) = self._data.execute("SELECT count(*) FROM foreign_signatures").fetchone()
        (others,) = self._data.execute(
            "SELECT count(*) FROM files WHERE kind IN ('digest', 'head') "
            "AND path NOT IN (SELECT path FROM foreign_signatures)"
        ).fetchone()
        if foreign and not others:
            raise CannotCheckError(
                f"{'the only signature is' if foreign == 1 else f'none of {foreign:,} signatures is'} "
                f"{'not ' if foreign == 1 else ''}of a public key that was given; is it the right one?"
            )
        for name, message in self._data.execute("SELECT path, message FROM foreign_signatures ORDER BY path"):
            yield Finding(Kind.SIGNATURE, name, message)
            self._tell_of(name)

    def _insert(self, name: str, text: bytes, found: Manifest, link: Link) -> None:
        previous = msgspec.json.encode(link.previous).decode() if link.previous else link.start or "New"
        row = _Row(
            name, link.id, link.sequence, link.digest, link.file, hashlib.sha256(text).hexdigest(), link.time,
            found.bytes, found.sha256, found.events, found.first_sequence, link.retention_days, previous,
        )  # fmt: skip
        marks = ", ".join("?" * len(_Row.__struct_fields__))
        self._data.execute(
            f"INSERT INTO digests ({_COLUMNS}) VALUES ({marks})",  # noqa: S608 - our own names
            msgspec.structs.astuple(row),
        )
        base = _base(name, link.digest)
        if base is not None:
            paths = [(f"{base}{file}",) for file in link.unfinished]
            self._data.executemany("INSERT OR IGNORE INTO unfinished VALUES (?)", paths)

    def _rows(self, chain: str) -> Iterator[_Row]:
        """In the order of the chain, without copies."""
        after, path = -1, ""
        while found := self._data.execute(
            f"SELECT {_COLUMNS} FROM digests WHERE chain = ? AND copy = 0 AND (sequence, path) > (?, ?) "  # noqa: S608
            "ORDER BY sequence, path LIMIT 500",
            (chain, after, path),
        ).fetchall():
            for values in found:
                yield _Row(*values)
            after, path = found[-1][2], found[-1][0]

    # --- where chains are ---

    def _find_bases(self) -> Iterator[Finding]:
        nowhere = []
        for id_, chain in self._chains.items():
            if chain.head is None:
                bases = (_base(row.path, row.digest) for row in self._rows(id_))
                base = min(
                    (base for base in bases if base is not None), key=lambda each: (len(each), each), default=None
                )
                if base is None:
                    nowhere.append(id_)
                    continue
                chain.base = base
                chain.prefix, chain.report.retention = self._of_newest(chain)
        if nowhere and len(nowhere) == len(self._chains):
            raise CannotCheckError(
                "no digest is where it says that it is; name a folder above, which whole chains are in"
            )
        for id_ in nowhere:
            for row in self._rows(id_):
                yield Finding(Kind.ADDED, row.path, f"is the digest {row.digest} of a chain that is not here", id_)
                self._tell_of(row.path)
            del self._chains[id_]
        for chain in self._chains.values():
            place = (chain.base, chain.prefix)
            chain.oldest = max(
                (each.head.oldest for each in self._chains.values() if each.head and (each.base, each.prefix) == place),
                default="",
            )
            chain.ahead = frozenset(
                between
                for each in self._chains.values()
                if each.head and (each.base, each.prefix) == place
                for between in each.head.ahead
            )

    def _of_newest(self, chain: _Chain) -> tuple[str, int | None]:
        """What the head would tell."""
        digest, retention = self._data.execute(
            "SELECT digest, retention FROM digests WHERE chain = ? ORDER BY sequence DESC LIMIT 1", (chain.report.id,)
        ).fetchone()
        found = _CLOSED.fullmatch(digest)
        return f"{found[1]}{found[2]}" if found else _objects(chain.report), retention

    def _misplaced(self) -> Iterator[Finding]:
        for id_, chain in self._chains.items():
            for row in self._rows(id_):
                proper = f"{chain.base}{row.digest}"
                if row.path == proper:
                    continue
                there = self._data.execute(
                    "SELECT 1 FROM digests WHERE path = ? AND sha = ?", (proper, row.sha)
                ).fetchone()
                if there and not self._expected(id_, chain, row.path):
                    yield Finding(Kind.ADDED, row.path, f"is a copy of the digest {proper}", id_)
                else:
                    yield Finding(Kind.REORDERED, row.path, f"holds the digest {proper}", id_)
                    self._tell_of(row.path)
                if there:
                    self._data.execute("UPDATE digests SET copy = 1 WHERE path = ?", (row.path,))

    def _expected(self, id_: str, chain: _Chain, path: str) -> bool:
        """Whether the chain names a digest of this path, or a file is there whose digest it would be."""
        name = path.removeprefix(chain.base)
        of = _of(path)
        return bool(
            self._data.execute(
                "SELECT 1 FROM digests WHERE chain = ? AND json_valid(previous) "
                "AND json_extract(previous, '$.digest') = ?",
                (id_, name),
            ).fetchone()
            or self._data.execute(
                "SELECT 1 FROM files WHERE path >= ? AND path < ? AND kind = 'file'", (of, f"{of}\x7f")
            ).fetchone()
        )

    # --- the chain itself ---

    def _walk(self, chain: _Chain) -> Iterator[Finding]:
        report = chain.report
        last: _Row | None = None
        for row in self._rows(report.id):
            report.digests += 1
            report.first = report.first or row.sequence
            report.begun = report.begun or row.time
            report.events += row.events or 0
            if last is not None and row.sequence == last.sequence:
                yield Finding(Kind.BROKEN, row.path, f"and {last.path} have the same place in the chain", report.id)
                continue
            previous = _previous(row)
            if previous is None:
                if row.previous == "Anew":
                    yield Finding(
                        Kind.ANEW, row.path,
                        "starts a chain anew: there was something before that this chain does not cover", report.id,
                    )  # fmt: skip
            elif last is None or last.sequence < previous.sequence:
                yield from self._gap(chain, last, previous, row.path)
            elif last.sha != previous.sha256:
                yield Finding(
                    Kind.BROKEN, row.path,
                    f"names another digest before it than {last.path}, which took its place", report.id,
                )  # fmt: skip
            last = row
        chain.newest = last
        if last is not None:
            report.last, report.ended, report.digest, report.sha256 = last.sequence, last.time, last.path, last.sha
        yield from self._end(chain, last)

    def _end(self, chain: _Chain, last: _Row | None) -> Iterator[Finding]:
        head = chain.head
        if head is None:
            if last is None or not self._expired(chain, last.file, last.time):
                name = f"{chain.base}{chain.prefix}.{chain.report.id[:8]}{HEAD}"
                if not self._listed(name):
                    yield Finding(
                        Kind.REMOVED, name, "tells where the chain ends; nobody knows what came after", chain.report.id
                    )
            return
        if head.last is None:
            return
        if last is None or last.sequence < head.last.sequence:
            yield from self._gap(chain, last, head.last, chain.head_path)
        elif last.sequence == head.last.sequence and last.sha != head.last.sha256:
            yield Finding(Kind.BROKEN, last.path, "took the place of the digest that the chain ends with", head.head_of)

    def _gap(self, chain: _Chain, last: _Row | None, previous: Previous, named_by: str) -> Iterator[Finding]:
        """Digests are not there: ``previous``, and those between it and ``last``."""
        id_ = chain.report.id
        path, file = f"{chain.base}{previous.digest}", f"{chain.base}{previous.file}"
        if self._listed(path):
            self._tell(file)  # something else is in its place, which was said
        elif self._is_there(path):
            yield from self._late(chain, last, path)
        elif not self._may_be_gone(chain, previous.file, previous.time):
            before = previous.sequence - (last.sequence if last else 0) - 1
            more = f", and {before} before it" if before and (last or not self._retains(chain)) else ""
            listed = self._listed(file)
            unproven = f"; {file} cannot be checked without it" if listed else ""
            message = f"digest {previous.sequence} of the chain{more}; {named_by} names it{unproven}"
            yield Finding(Kind.REMOVED, path, message, id_)
            self._tell(file)
            if not listed:
                yield Finding(Kind.REMOVED, file, f"{named_by} names it", id_)

    def _late(self, chain: _Chain, last: _Row | None, path: str) -> Iterator[Finding]:
        """A digest that has come since files were listed."""
        try:
            text = self._read(path) or b""
            found = _decoded(document(text, self.keys), Manifest)
        except SignatureError as error:
            yield Finding(Kind.SIGNATURE, path, str(error), chain.report.id)
            self._tell_of(path)
            return
        link = found.chain
        if link is None or link.id != chain.report.id or f"{chain.base}{link.digest}" != path:
            yield Finding(Kind.REORDERED, path, "holds another digest", chain.report.id)
            return
        self._insert(path, text, found, link)
        if link.previous and (last is None or last.sequence < link.previous.sequence):
            yield from self._gap(chain, last, link.previous, path)

    def _retains(self, chain: _Chain) -> bool:
        return bool(chain.oldest) or chain.report.retention is not None

    def _expired(self, chain: _Chain, file: str, time: str) -> bool:
        """Whether retention may have removed it: the sink's, which the head tells, or the bucket's."""
        if file < chain.oldest or any(first < file < last for first, last in chain.ahead):
            return True
        return chain.report.retention is not None and _age(time, self.now) >= chain.report.retention

    def _may_be_gone(self, chain: _Chain, file: str, time: str) -> bool:
        """The same, with what the head says now: retention goes on while we look."""
        if self._expired(chain, file, time):
            return True
        for other in self._chains.values():
            if other.head is None or (other.base, other.prefix) != (chain.base, chain.prefix):
                continue
            with contextlib.suppress(SignatureError):
                head = _decoded(document(self._read(other.head_path) or b"", self.keys), Head)
                if head.name == other.head.name:
                    chain.oldest = max(chain.oldest, head.oldest)
                    chain.ahead |= set(head.ahead)
        return self._expired(chain, file, time)

    # --- what is chained ---

    def _files(self, chain: _Chain) -> Iterator[Finding]:
        for row in self._rows(chain.report.id):
            path = f"{chain.base}{row.file}"
            self._tell(path)
            size, digest = 0, hashlib.sha256()
            try:
                for piece in self.store.pieces(path):
                    size += len(piece)
                    digest.update(piece)
            except FileNotFoundError:
                if not self._may_be_gone(chain, row.file, row.time):
                    yield Finding(Kind.REMOVED, path, f"{row.path} names it", row.chain)
                continue
            chain.report.files += 1
            if digest.hexdigest() != row.file_sha:
                yield self._changed(row, path, size, digest.hexdigest())

    def _changed(self, row: _Row, path: str, size: int, sha: str) -> Finding:
        other = self._data.execute(
            "SELECT chain, file FROM digests WHERE file_sha = ? AND path != ?", (sha, row.path)
        ).fetchone()
        if other and other[0] in self._chains:
            theirs = f"{self._chains[other[0]].base}{other[1]}"
            return Finding(Kind.REORDERED, path, f"holds what {theirs} held", row.chain)
        difference = size - row.size
        how = f"{abs(difference):,} bytes {'more' if difference > 0 else 'less'} than signed" if difference else ""
        where = self._where(row, path)
        return Finding(Kind.CHANGED, path, "; ".join(filter(None, (how, where))) or "is not what was signed", row.chain)

    def _where(self, row: _Row, path: str) -> str:
        """Which lines differ, if that can be told."""
        text = self._read(row.path)
        blocks = _decoded(document(text, self.keys), Manifest).lines if text else None
        if blocks is None or blocks.each != LINES:
            return ""
        try:
            found = measure(self.store.pieces(path), path)
        except FileNotFoundError:
            return ""
        wanted = blocks.sha256
        if found.damage or found.events != row.events:
            same = next(
                (at for at, pair in enumerate(zip(wanted, found.blocks, strict=False)) if pair[0] != pair[1]),
                min(len(wanted), len(found.blocks)),
            )
            damage = f" ({found.damage})" if found.damage else ""
            return f"from line {same * LINES + 1:,} on{damage}"
        differ = [at for at, pair in enumerate(zip(wanted, found.blocks, strict=True)) if pair[0] != pair[1]]
        if not differ:
            return "the lines are those that were signed, their packing is not"
        shown = ", ".join(f"{at * LINES + 1:,} to {min((at + 1) * LINES, row.events or 0):,}" for at in differ[:_SHOWN])
        more = f" and {len(differ) - _SHOWN} more thousands" if len(differ) > _SHOWN else ""
        return f"within lines {shown}{more} of {row.events or 0:,}"

    # --- what no digest names ---

    def _others(self) -> Iterator[Finding]:
        for chain in self._chains.values():
            yield from self._being_written(chain)
        for kind in ("temporary", "file"):
            after = ""
            while found := self._data.execute(
                "SELECT path FROM files WHERE kind = ? AND told = 0 AND path > ? ORDER BY path LIMIT 1000",
                (kind, after),
            ).fetchall():
                for (path,) in found:
                    if finding := self._other(path):
                        yield finding
                after = found[-1][0]

    def _being_written(self, chain: _Chain) -> Iterator[Finding]:
        path = f"{chain.base}{chain.prefix}"
        objects = chain.prefix == _objects(chain.report)
        self._tell(str(begun_path(PurePosixPath(path))))
        if objects or self._told(path) or (chain.head is not None and not chain.head.writing):
            return
        self._tell(path)
        if self._is_there(path):
            yield Finding(
                Kind.NOT_SEALED, path, "is being written; it gets its digest when it is closed", chain.report.id
            )
        elif (
            chain.head is not None
            # It was closed this moment and the next one is not begun, or a crash came in between: then the closed one
            # is there. Files are listed anew, for it is newer than the list.
            and not any(self._pending(chain, name) for name in self.store.names())
            and not self._is_there(path)
        ):
            yield Finding(Kind.REMOVED, path, "was being written", chain.report.id)

    def _other(self, path: str) -> Finding | None:
        plain = path.removesuffix(TEMPORARY)
        for chain in self._chains.values():
            if not path.startswith(chain.base):
                continue
            mine = self._pending(chain, plain) or plain == f"{chain.base}{chain.prefix}" or _kind(plain) != "file"
            if plain != path and mine:
                return Finding(Kind.UNFINISHED, path, "was left by a crash, and is overwritten", chain.report.id)
            if self._pending(chain, path):
                if not self._is_there(path):
                    return None
                message = "has no digest yet; the receiver's next one is of it"
                return Finding(Kind.NOT_SEALED, path, message, chain.report.id)
        if self._data.execute("SELECT 1 FROM unfinished WHERE path = ?", (path,)).fetchone():
            return Finding(Kind.UNFINISHED, path, "a crash ended its delivery; its events are in other objects, too")
        if not self._is_there(path):
            return None  # retention removed it, and its digest, meanwhile
        return Finding(Kind.ADDED, path, f"no digest names it{self._held(path)}")

    def _held(self, path: str) -> str:
        """Whose content it has, if that is missing elsewhere."""
        try:
            measured = hashlib.sha256()
            for piece in self.store.pieces(path):
                measured.update(piece)
        except FileNotFoundError:
            return ""
        found = self._data.execute(
            "SELECT chain, file FROM digests WHERE file_sha = ?", (measured.hexdigest(),)
        ).fetchone()
        if not found or found[0] not in self._chains:
            return ""
        return f"; holds what {self._chains[found[0]].base}{found[1]} held"

    def _pending(self, chain: _Chain, path: str) -> bool:
        """Whether the receiver may have written it and not signed it yet: it is newer than all that is signed."""
        name = path.removeprefix(chain.base)
        head = chain.head
        if head is None:
            return False
        if name in head.pending:
            return True
        newest = chain.newest
        pattern = closed_pattern(chain.prefix)
        if closed := pattern.fullmatch(name):
            signed = (newest.file if newest else "", head.last.file if head.last else "")
            known = [found["plain"] for file in signed if (found := pattern.fullmatch(file))]
            return closed["plain"] > max(known, default="") and closed["group"] >= head.oldest
        found = _OBJECT.search(PurePosixPath(name).name)
        return bool(
            found
            and found["receiver"] == chain.report.receiver
            and int(found["last"]) >= ((newest.first_sequence or 0) if newest else 0)
            and (newest is None or newest.first_sequence is not None)
            and (head.last is None or newest is not None)
        )

    # --- earlier reports ---

    def _known(self) -> Iterator[Finding]:
        for known in self.known:
            chain = self._chains.get(known.id)
            who = f"of {known.sink} and {known.receiver}" if known.sink else ""
            if chain is None and known.retention is not None and _age(known.ended, self.now) >= known.retention:
                continue
            if chain is None:
                yield Finding(
                    Kind.REMOVED, known.id,
                    f"a whole chain {who} is gone; an earlier report knows digests up to {known.last}", known.id,
                )  # fmt: skip
                continue
            if chain.report.last < known.last:
                yield Finding(
                    Kind.REMOVED, chain.base or ".",
                    f"the chain {who} ends with digest {chain.report.last}; an earlier report knows {known.last}",
                    known.id,
                )  # fmt: skip
                continue
            there = self._data.execute(
                "SELECT path, sha FROM digests WHERE chain = ? AND sequence = ? AND copy = 0", (known.id, known.last)
            ).fetchone()
            if there and known.sha256 and there[1] != known.sha256:
                yield Finding(Kind.BROKEN, there[0], "is not the digest that an earlier report knows", known.id)

    # --- small questions ---

    def _tell(self, path: str) -> None:
        self._data.execute("UPDATE files SET told = 1 WHERE path = ?", (path,))

    def _tell_of(self, digest: str) -> None:
        """Nothing more of what the digest of this name is of."""
        of = _of(digest)
        self._data.execute(
            "UPDATE files SET told = 1 WHERE kind = 'file' AND path IN (?, ?, ?, ?, ?, ?)",
            [of + end for end in ("", ".gz", ".zst", ".age", ".gz.age", ".zst.age")],
        )

    def _told(self, path: str) -> bool:
        row = self._data.execute("SELECT told FROM files WHERE path = ?", (path,)).fetchone()
        return bool(row and row[0])

    def _listed(self, path: str) -> bool:
        return self._data.execute("SELECT 1 FROM files WHERE path = ?", (path,)).fetchone() is not None

    def _is_there(self, path: str) -> bool:
        try:
            for _ in self.store.pieces(path):
                break
        except FileNotFoundError:
            return False
        return True

    def reports(self) -> Sequence[ChainReport]:
        """The chains, by sink and receiver."""
        reports: Iterable[ChainReport] = (chain.report for chain in self._chains.values())
        return sorted(reports, key=lambda report: (report.sink, report.receiver, report.begun, report.id))


_SHOWN: Final = 5


def _kind(name: str) -> str:
    last = name.rpartition("/")[2]
    if last.endswith(TEMPORARY):
        return "temporary"
    if last.endswith(HEAD):
        return "head"
    if last.endswith(DIGEST) or (last.startswith("_") and last.endswith(MANIFEST)):
        return "digest"
    return "file"


def _of(digest: str) -> str:
    """The file that a digest of this name is of, without compression where it does not say."""
    folder, slash, last = digest.rpartition("/")
    plain = last.removesuffix(DIGEST) if last.endswith(DIGEST) else last.removesuffix(MANIFEST).removeprefix("_")
    return f"{folder}{slash}{plain}"


def _base(path: str, name: str) -> str | None:
    """What ``path`` has before ``name``."""
    if path == name:
        return ""
    return path.removesuffix(name) if path.endswith(f"/{name}") else None


def _objects(report: ChainReport) -> str:
    """What the name of the head of a chain of objects begins with."""
    return f"_{report.sink.replace('/', '.')}.{report.receiver}"


def _previous(row: _Row) -> Previous | None:
    return msgspec.json.decode(row.previous, type=Previous) if row.previous.startswith("{") else None


def _age(time: str, now: datetime) -> float:
    """In days."""
    return (now - datetime.fromisoformat(time)) / timedelta(days=1)


def _decoded(text: bytes, kind: type[_T]) -> _T:
    """What is signed and yet not what it should be comes from a version that is not known here."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise SignatureError(f"is signed, but of another kind or version: {error}") from None
