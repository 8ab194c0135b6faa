"""`audit-operator verify`: whether files or objects are what receivers wrote."""

import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from audit_operator.cli.errors import CliError, reason
from audit_operator.cli.output import counted, printable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from audit_operator.receiver.verification import ChainReport, Finding, Known, Store, Verification

_PIECE: Final = 1 << 20
_URL: Final = re.compile(r"(s3|s3a|gs|az|azure|abfss?)://")
_WORDS: Final = {"notSealed": "not sealed yet", "anew": "begins anew"}


class Outcome(msgspec.Struct, rename="camel"):
    """What all of it comes to. ``found``: findings. ``files``, ``events``, ``until``: what digests protect, and the
    time of the newest one. ``unprotected``: files that no digest protects yet.
    """

    found: int = 0
    files: int = 0
    events: int = 0
    until: str = ""
    unprotected: int = 0

    @property
    def sealed(self) -> bool:
        """Whether there is anything whose being intact could be said."""
        return bool(self.until)

    @property
    def intact(self) -> bool:
        """Whether all that is protected is as it was written, and something is."""
        return self.sealed and not self.found

    def sentence(self) -> str:
        """For a person."""
        if self.found:
            return counted(self.found, "finding")
        events = f", {counted(self.events, 'event')}" if self.events else ""
        unprotected = f"; {counted(self.unprotected, 'file')} NOT protected yet" if self.unprotected else ""
        return f"{counted(self.files, 'file')}{events} until {self.until} intact{unprotected}"


def verify(place: str, *, public_keys: list[str], endpoint: str, known: str, as_json: bool) -> bool:
    """Print what is found, file by file. Whether all is intact. Raises CliError; if nothing is sealed yet, too."""
    try:
        from audit_operator.receiver.verification import NOTES, UNPROTECTED, CannotCheckError, Verification
    except ModuleNotFoundError as error:
        raise CliError(
            f"needs {error.name}, which is not installed", way_out="pip install 'audit-operator[receiver]'"
        ) from None
    keys = dict(map(_public_key, public_keys))
    store = _bucket(place, endpoint) if _URL.match(place) else _folder(place)
    verification = Verification(store, keys, datetime.now(UTC), _known(known) if known else ())
    show = _Json() if as_json else _Text()
    outcome = Outcome()
    try:
        for finding in verification.findings():
            outcome.found += finding.kind not in NOTES
            outcome.unprotected += finding.kind is UNPROTECTED
            show.finding(finding, is_note=finding.kind in NOTES)
    except CannotCheckError as error:
        raise CliError(str(error), file=place) from None
    except OSError as error:
        raise CliError(reason(error), file=str(error.filename or place)) from None
    for report in verification.reports():
        outcome.files += report.files
        outcome.events += report.events
        outcome.until = max(outcome.until, report.ended)
    show.end(verification, outcome)
    if not outcome.found and not outcome.sealed:
        raise CliError(
            f"nothing is sealed yet: {counted(outcome.unprotected, 'file')} NOT protected",
            file=place,
            way_out="verify again after the sink closed a file (spec.file.rotation) or wrote an object",
        )
    return outcome.intact


class _Text:
    def finding(self, finding: "Finding", *, is_note: bool) -> None:  # noqa: ARG002 - the word tells
        word = _WORDS.get(finding.kind, finding.kind)
        sys.stdout.write(f"{word}: {printable(finding.file)}: {printable(finding.message)}\n")

    def end(self, verification: "Verification", outcome: Outcome) -> None:
        for report in verification.reports():
            sys.stdout.write(f"{printable(_described(report))}\n")
        if outcome.found or outcome.sealed:
            sys.stdout.write(f"{outcome.sentence()}\n")


class _Json:
    """One document, written as it comes: there may be millions of findings."""

    def __init__(self) -> None:
        self._begun = False

    def finding(self, finding: "Finding", *, is_note: bool) -> None:
        entry: dict[str, Any] = {"kind": finding.kind.value, "file": finding.file, "message": finding.message}
        entry |= {"chain": finding.chain} if finding.chain else {}
        entry |= {"note": True} if is_note else {}
        sys.stdout.write(f"{',' if self._begun else self._head()}\n  {json.dumps(entry)}")

    def end(self, verification: "Verification", outcome: Outcome) -> None:
        head = "" if self._begun else self._head()
        chains = ",\n".join(f"  {msgspec.json.encode(report).decode()}" for report in verification.reports())
        totals = "".join(f',\n "{key}": {json.dumps(value)}' for key, value in msgspec.to_builtins(outcome).items())
        intact = json.dumps(outcome.intact)
        sys.stdout.write(f'{head}\n ],\n "chains": [\n{chains}\n ]{totals},\n "intact": {intact}\n}}\n')

    def _head(self) -> str:
        self._begun = True
        return '{\n "findings": ['


def _described(report: "ChainReport") -> str:
    about = f"chain {report.id[:8]} of {report.sink}, {report.receiver}, cluster {report.cluster}"
    if not report.digests:
        return f"{about}: nothing is sealed yet"
    span = f"digests {report.first} to {report.last}, signed {report.begun} to {report.ended}"
    return f"{about}: {span}, {counted(report.files, 'file')}, {counted(report.events, 'event')}"


def _public_key(name: str) -> "tuple[str, Ed25519PublicKey]":
    from audit_operator.receiver.integrity import KeyFileError, fingerprint, public_key

    try:
        key = public_key(Path(name).read_bytes())
    except OSError as error:
        raise CliError(reason(error), file=name, field="--public-key") from None
    except KeyFileError as error:
        way_out = "openssl pkey -in key.pem -pubout -out key.pub makes one of the signing key"
        raise CliError(str(error), file=name, field="--public-key", way_out=way_out) from None
    return fingerprint(key), key


def _known(name: str) -> "tuple[Known, ...]":
    from audit_operator.receiver.verification import Known

    class Report(msgspec.Struct):
        chains: tuple[Known, ...]

    try:
        return msgspec.json.decode(Path(name).read_bytes(), type=Report).chains
    except OSError as error:
        raise CliError(reason(error), file=name, field="--known") from None
    except msgspec.DecodeError:
        raise CliError(
            "is no report", file=name, field="--known", way_out="`audit-operator verify -o json` writes one"
        ) from None


# --- where files are -------------------------------------------------------------------------------------------------


def _folder(place: str) -> "Store":
    path = Path(place)
    if not path.is_dir():
        raise CliError("is no folder", file=place, way_out="name the folder that a sink with integrity writes to")
    return _Folder(path)


class _Folder:
    """A folder with all below it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> Iterator[str]:
        folders = [""]
        while folders:
            before = folders.pop()
            with os.scandir(self._path / before) as entries:
                for entry in entries:
                    name = f"{before}{entry.name}"
                    if not entry.is_dir(follow_symlinks=False):
                        # Nothing of ours has a name that is no text; others can be told all the same.
                        yield os.fsencode(name).decode("utf-8", "backslashreplace")
                    elif entry.name != "lost+found":
                        folders.append(f"{name}/")

    def pieces(self, name: str) -> Iterator[bytes]:
        """Of links that lead nowhere, pipes and the like there are none: they are there, but nothing of ours."""
        path = os.fsencode(self._path / name)
        if not os.path.lexists(path):
            path = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), path)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            if os.path.islink(path):  # noqa: PTH114 - bytes
                return
            raise
        try:
            while stat.S_ISREG(os.fstat(file).st_mode) and (piece := os.read(file, _PIECE)):
                yield piece
        finally:
            os.close(file)


_ESCAPED: Final = re.compile(rb"\\x([0-9a-f]{2})")


def _bucket(url: str, endpoint: str) -> "Store":
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ModuleNotFoundError as error:
        raise CliError(
            f"needs {error.name}, which is not installed", way_out="pip install 'audit-operator[objectstore]'"
        ) from None
    config = {"base_url" if url.startswith("gs:") else "endpoint": endpoint} if endpoint else {}
    options: Any = {"allow_http": True} if endpoint.startswith("http://") else {}
    make: Any = from_url
    try:
        return Bucket(make(url, config=config, client_options=options), url)
    except (BaseError, ValueError) as error:
        raise CliError(_told(error), file=url) from None


class Bucket:
    """Objects, through obstore. ``url``: how the place is called."""

    def __init__(self, store: Any, url: str) -> None:
        self._store = store
        self._url = url

    def names(self) -> Iterator[str]:
        """See `Store`."""
        from obstore.exceptions import BaseError

        try:
            for some in self._store.list():
                for entry in some:
                    yield str(entry["path"])
        except (BaseError, OSError) as error:
            raise CliError(_told(error), file=self._url) from None

    def pieces(self, name: str) -> Iterator[bytes]:
        """See `Store`."""
        from obstore.exceptions import BaseError, NotFoundError

        try:
            for piece in self._store.get(name).stream(min_chunk_size=_PIECE):
                yield bytes(piece)
        except (FileNotFoundError, NotFoundError):
            raise FileNotFoundError(name) from None
        except (BaseError, OSError, ValueError) as error:
            raise CliError(_told(error), file=f"{self._url}: {name}") from None


def _told(error: Exception) -> str:
    """A line, without the query of a URL, which may hold a signature."""
    text = re.sub(r"\?[^\s\"')]*", "", str(error).split("Debug source:", maxsplit=1)[0])
    return " ".join(text.split())[:300] or type(error).__name__
