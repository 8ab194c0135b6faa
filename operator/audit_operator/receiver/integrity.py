"""Digests of what sinks wrote: their form, their signatures, and what is measured of a file. docs/integrity.md says
what they promise; `sinks/chain.py` makes them, `verification.py` checks them.

A digest is a JSON document whose last member is the signature (Ed25519) of the same document without it. Each digest
of a chain names the one before by its hash, as those of AWS CloudTrail do. A head, which is signed likewise and written
anew after each digest, names the newest one: otherwise nobody would miss the end of a chain.
"""

import hashlib
import io
import re
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
import zstandard
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from isal import igzip
from isal.igzip_lib import IsalError

DIGEST: Final = ".digest.json"
"""The end of the name of a digest of the file sink; what is before it is the file's name without compression."""
MANIFEST: Final = ".manifest.json"
"""The same of objectStore, after an underscore and the object's name."""
HEAD: Final = ".head.json"

LINES: Final = 1000
"""Lines that are hashed together, so that a change can be told where it is."""

LARGEST_DIGEST: Final = 16 << 20
"""Bytes; a million events make 70 kB."""


class _Wire(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """camelCase. What a later version adds is signed with the rest, so it need not be known."""


class Previous(_Wire, frozen=True, kw_only=True):
    """The digest before: its name and that of its file, the hash of all its bytes, when it was signed."""

    sequence: int
    digest: str
    file: str
    sha256: str
    time: str


class Link(_Wire, frozen=True, kw_only=True):
    """A digest's place in its chain. Names are paths below the chain's folder.

    ``start``: of the first digest; Anew if there was something before that no chain is known of. ``retention_days``:
    after so many days others may remove files and digests. ``unfinished``: objects of deliveries that a crash ended;
    their events are in other objects as well.
    """

    id: str
    sequence: int
    digest: str
    file: str
    time: str
    previous: Previous | None = None
    start: Literal["New", "Anew"] | None = None
    retention_days: int | None = None
    unfinished: tuple[str, ...] = ()


class Blocks(_Wire, frozen=True, kw_only=True):
    """SHA-256 of each ``each`` lines, line breaks included."""

    each: int
    sha256: tuple[str, ...]


class Manifest(_Wire, frozen=True, kw_only=True):
    """What is in a file or object; a digest if it has a place in a chain. Sequences and timestamps: of its events."""

    version: int
    object: str
    cluster: str
    sink: str
    receiver: str
    events: int | None = None
    first_sequence: int | None = None
    last_sequence: int | None = None
    first_timestamp: str | None = None
    last_timestamp: str | None = None
    bytes: int
    sha256: str
    uncompressed_bytes: int | None = None
    uncompressed_sha256: str | None = msgspec.field(default=None, name="uncompressedSHA256")
    lines: Blocks | None = None
    chain: Link | None = None
    public_key: str | None = None


class Head(_Wire, frozen=True, kw_only=True):
    """Where a chain ends. ``name``: its own. ``writing``: the file that is being written. ``oldest``: of files in this
    folder those whose names sort before it may be gone: the sink removed them, as its rotation says; so may those that
    sort between two of ``ahead``, named and removed when the receiver's clock was ahead. ``pending``: files that may be
    there without a digest.
    """

    version: int
    head_of: str
    name: str
    cluster: str
    sink: str
    receiver: str
    sequence: int
    time: str
    last: Previous | None = None
    writing: str = ""
    oldest: str = ""
    ahead: tuple[tuple[str, str], ...] = ()
    pending: tuple[str, ...] = ()
    retention_days: int | None = None
    public_key: str


# --- signatures ------------------------------------------------------------------------------------------------------


class KeyFileError(ValueError):
    """It is no key that can be used; the message never holds it."""


class SignatureError(Exception):
    """Nobody who has one of the keys signed this; the message says what is wrong."""


class UnknownKeyError(SignatureError):
    """It is signed with a key that is none of those given."""


_SIGNATURE: Final = re.compile(rb',"signature":"([A-Za-z0-9+/]{86}==)"}\Z')
_LENGTH: Final = len(',"signature":""}') + 88


def private_key(text: str) -> Ed25519PrivateKey:
    """Of PEM (PKCS#8). Raises KeyFileError."""
    try:
        key = load_pem_private_key(text.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError("is no Ed25519 private key in PEM (PKCS#8), unencrypted")
    return key


def public_key(data: bytes) -> Ed25519PublicKey:
    """Of PEM. Raises KeyFileError."""
    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError("is no Ed25519 public key in PEM")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key's DER form, as `openssl pkey -pubin -outform DER | sha256sum` has it."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def signed(document: Manifest | Head, key: Ed25519PrivateKey) -> bytes:
    """The text of a digest or head."""
    text = msgspec.json.encode(document)
    signature = b64encode(key.sign(text))
    return text[:-1] + b',"signature":"' + signature + b'"}'


class _Signer(msgspec.Struct, rename="camel"):
    public_key: str = ""


def document(text: bytes, keys: Mapping[str, Ed25519PublicKey]) -> bytes:
    """The document that the signature is of. ``keys``: by fingerprint. Raises SignatureError.

    Exactly these bytes: another spelling of the same JSON or of the same signature counts as changed.
    """
    found = _SIGNATURE.search(text, max(0, len(text) - _LENGTH))
    if found is None:
        raise SignatureError("has no signature at its end")
    plain = text[: found.start()] + b"}"
    try:
        signer = msgspec.json.decode(plain, type=_Signer).public_key
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SignatureError("is no JSON") from None
    signature = b64decode(found[1])
    if b64encode(signature) != found[1]:
        raise SignatureError("does not fit its signature")
    key = keys.get(signer)
    if key is None:
        # Whoever changes the fingerprint must not be told apart as somebody with a key of his own.
        if any(_verifies(each, signature, plain) for each in keys.values()):
            raise SignatureError("names a key that did not sign it")
        raise UnknownKeyError(f"is signed with the key {signer[:64] or 'of nobody'}, which is none of those given")
    if not _verifies(key, signature, plain):
        raise SignatureError("does not fit its signature")
    return plain


def _verifies(key: Ed25519PublicKey, signature: bytes, data: bytes) -> bool:
    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


# --- what is in a file -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """Of a file as it lies there, and of the lines in it. ``events``: None if it cannot be unpacked by us, since it is
    encrypted. ``damage``: why it unpacks no further than that; empty: all of it did.
    """

    bytes: int
    sha256: str
    events: int | None = None
    uncompressed_bytes: int | None = None
    uncompressed_sha256: str | None = None
    blocks: tuple[str, ...] = ()
    damage: str = ""


class _Source(io.RawIOBase):
    """Pieces as a file to read; counts and hashes what goes through."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._left = memoryview(b"")
        self._hash = hashlib.sha256()
        self.size = 0
        self.failure: BaseException | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            try:
                piece = next(self._pieces)
            except StopIteration:
                return 0
            except BaseException as error:
                self.failure = error
                raise
            self._hash.update(piece)
            self.size += len(piece)
            self._left = memoryview(piece)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def rest(self) -> str:
        """Reads to the end. The hash of everything."""
        for piece in self._pieces:
            self._hash.update(piece)
            self.size += len(piece)
        return self._hash.hexdigest()


class _Lines:
    def __init__(self) -> None:
        self.size = self.count = 0
        self.blocks: list[str] = []
        self._all = hashlib.sha256()
        self._block = hashlib.sha256()
        self._in_block = 0
        self._open = False

    def add(self, data: bytes) -> None:
        self.size += len(data)
        self._all.update(data)
        start = 0
        while start < len(data):
            room = LINES - self._in_block
            found = data.count(b"\n", start)
            end = len(data)
            if found >= room:
                end, found = start, room
                for _ in range(room):
                    end = data.index(b"\n", end) + 1
            self._block.update(data[start:end])
            self._open = True
            self.count += found
            self._in_block += found
            if self._in_block == LINES:
                self._close()
            start = end

    def _close(self) -> None:
        self.blocks.append(self._block.hexdigest())
        self._block, self._in_block, self._open = hashlib.sha256(), 0, False

    def ended(self) -> str:
        if self._open:
            self._close()
        return self._all.hexdigest()


_PIECE: Final = 1 << 20
_CORRUPT: Final[Any] = (OSError, EOFError, zlib.error, IsalError, zstandard.ZstdError)


def measure(pieces: Iterable[bytes], name: str) -> Measured:
    """What is in a file of this name, in a constant amount of memory. Raises whatever ``pieces`` does."""
    source = _Source(pieces)
    if name.endswith(".age"):
        digest = source.rest()
        return Measured(source.size, digest)
    lines, damage = _Lines(), ""
    try:
        for data in _unpacked(source, name):
            lines.add(data)
    except _CORRUPT as error:
        if source.failure is not None:
            raise source.failure from None
        damage = " ".join(str(error).split())[:100] or type(error).__name__
    digest = source.rest()
    return Measured(source.size, digest, lines.count, lines.size, lines.ended(), tuple(lines.blocks), damage)


def _unpacked(source: _Source, name: str) -> Iterator[bytes]:
    stream: Any = source
    if name.endswith(".gz"):
        stream = igzip.IGzipFile(fileobj=io.BufferedReader(source, _PIECE), mode="rb")  # type: ignore[no-untyped-call]
    elif name.endswith(".zst"):
        stream = zstandard.ZstdDecompressor().stream_reader(io.BufferedReader(source, _PIECE))
    while data := stream.read(_PIECE):
        yield data
