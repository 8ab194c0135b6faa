"""The chain of digests of one receiver and sink: what it ends with is remembered on the receiver's volume.

A digest is signed once, and what was signed is on the disk before anybody sees it: however often its writing is
repeated, after failures and crashes, it is the same. No sequence number is used twice, and none is left out.
"""

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import structs

from audit_operator.receiver.files import PRIVATE, PRIVATE_FOLDER, make_folder, replace
from audit_operator.receiver.integrity import (
    HEAD,
    Head,
    KeyFileError,
    Link,
    Manifest,
    Previous,
    fingerprint,
    private_key,
    signed,
)
from audit_operator.receiver.sinks import SecretFile, Settings, UnauthorizedError, secret

logger = logging.getLogger(__name__)

_RECENT: Final = 512
"""Files whose deliveries may come again after a crash; those of one batch, as a rule one."""
_REMEMBERED: Final = 256
"""Names that were let go, for a clock that turns out to have been ahead. Of more than those verify says `removed`."""
_REMEMBERED_JUMPS: Final = 16


class Integrity(Settings, frozen=True):
    """``spec.file.integrity`` and ``spec.objectStore.integrity``."""

    signing_key: SecretFile
    retention_days: int | None = None


class Names(NamedTuple):
    """Whose chain it is."""

    cluster: str
    sink: str
    receiver: str


class Found(NamedTuple):
    """What a chain begins with. ``anything``: there was something before. ``pending``: what of it has no digest, and
    gets one as it is now; ``kept``: what retention counts.
    """

    anything: bool
    pending: Collection[str] = ()
    kept: Collection[str] = ()


class Signed(msgspec.Struct, frozen=True):
    """A digest that may not be where it belongs yet. ``name``: where that is; ``file``: what it is of; ``told``: what
    was announced and is told of in it.
    """

    name: str
    file: str
    told: tuple[str, ...]
    text: str


class _State(msgspec.Struct, frozen=True):
    """``pending``: files that are there, or may be, and have no digest yet. ``recent``: those that got theirs last.
    ``kept``: what retention counts, in the order in which it came; ``oldest``: names that sort before it are let go.
    ``gone``: those that were let go last; ``ahead``: names between two of these are let go, too, see `Chain.let_go`.
    ``first_sequence``: of the events that the last digest is about.
    """

    id: str
    start: Literal["New", "Anew"]
    last: Previous | None = None
    pending: tuple[str, ...] = ()
    signed: Signed | None = None
    recent: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    oldest: str = ""
    gone: tuple[str, ...] = ()
    ahead: tuple[tuple[str, str], ...] = ()
    first_sequence: int = 0


class Chain:
    """See the module. Blocking; calls must not overlap. ``now``: seconds since the epoch."""

    def __init__(self, path: Path, names: Names, settings: Integrity, now: Callable[[], float] = time.time) -> None:
        self.names = names
        self._path = path
        self._settings = settings
        self._now = now
        self._state: _State | None = None

    def open(self, look: Callable[[], Found]) -> None:
        """Go on with what is remembered, or begin with what ``look`` finds. Raises OSError, and UnauthorizedError
        without a key: nothing is to be written that could not be signed.
        """
        self._key()
        if self._state is not None:
            return
        try:
            self._state = msgspec.json.decode(self._path.read_bytes(), type=_State)
        except FileNotFoundError:
            pass
        except msgspec.DecodeError:
            logger.error("%s: what is known of its chain of digests is damaged; a new one begins", self.names.sink)
        else:
            return
        make_folder(self._path.parent, PRIVATE_FOLDER)
        found = look()
        start: Literal["New", "Anew"] = "Anew" if found.anything else "New"
        self._keep(_State(secrets.token_hex(16), start, pending=tuple(found.pending), kept=tuple(found.kept)))

    @property
    def id(self) -> str:
        """32 hex digits."""
        return self._now_state.id

    @property
    def sequence(self) -> int:
        """Of the last digest that is where it belongs; 0: there is none."""
        last = self._now_state.last
        return last.sequence if last else 0

    @property
    def pending(self) -> Collection[str]:
        """Files that were announced and have no digest."""
        return self._now_state.pending

    @property
    def outstanding(self) -> Signed | None:
        """To be written where it belongs, before anything else; then `advance`."""
        return self._now_state.signed

    @property
    def first_sequence(self) -> int:
        """The first event that the last digest is about; 0: there is none."""
        return self._now_state.first_sequence

    def sealed(self, file: str) -> bool:
        """Whether the file got its digest lately."""
        return file in self._now_state.recent

    def announce(self, files: Collection[str]) -> None:
        """They are about to be there: after a crash it is known that it was us."""
        new = [file for file in files if file not in self._now_state.pending]
        if new:
            self._change(pending=(*self._now_state.pending, *new))

    def forget(self, files: Collection[str]) -> None:
        """They never were, or others tell of them."""
        if left := set(files) & set(self._now_state.pending):
            self._change(pending=tuple(file for file in self._now_state.pending if file not in left))

    @property
    def kept(self) -> tuple[str, ...]:
        """What `keep` was told and `let_go` did not let go."""
        return self._now_state.kept

    @property
    def oldest(self) -> str:
        """What sorts before it may go, or is gone."""
        return self._now_state.oldest

    @property
    def ahead(self) -> tuple[tuple[str, str], ...]:
        """Names between these may go or are gone, too."""
        return self._now_state.ahead

    def keep(self, names: Collection[str]) -> None:
        """They are ours, and in this order. What others put into the folder makes nothing of ours go."""
        if new := tuple(name for name in names if name not in self._now_state.kept):
            self._change(kept=(*self._now_state.kept, *new))

    def let_go(self, stay: int, horizon: str = "") -> None:
        """All but so many of the newest. ``horizon``: what sorts after it has its name from a clock that was ahead. It
        stays until that time has come, and does not count: nobody knows where it belongs. Empty: nothing does.
        """
        state = self._now_state
        counted = sorted(name for name in state.kept if not horizon or name <= horizon)
        gone = counted[:-stay]
        oldest, ahead = state.oldest, state.ahead
        if horizon and oldest > horizon:
            # Files were let go while the clock was ahead. Those that come now sort before them, and are not.
            if not counted:
                return
            if beyond := [name for name in state.gone if name > horizon]:
                ahead = (*ahead, (min(beyond), oldest))[-_REMEMBERED_JUMPS:]
            oldest = counted[0]
        if gone:
            oldest = counted[-stay]
        if gone or oldest != state.oldest:
            self._change(
                kept=tuple(name for name in state.kept if name not in gone),
                gone=(*state.gone, *gone)[-_REMEMBERED:],
                oldest=oldest,
                ahead=ahead,
            )

    def sign(
        self, manifest: Manifest, digest: str, file: str, *, announced: str = "", unfinished: Collection[str] = ()
    ) -> Signed:
        """The next digest, of this file; it is `outstanding` from now on. Raises UnauthorizedError, OSError.

        ``announced``: as what the file was announced, if by another name. ``unfinished``: announced and left alone.
        """
        state = self._now_state
        if state.signed is not None:
            raise AssertionError("a digest is outstanding")
        key = self._key()
        link = Link(
            id=state.id,
            sequence=self.sequence + 1,
            digest=digest,
            file=file,
            time=self._time(),
            previous=state.last,
            start=None if state.last else state.start,
            retention_days=self._settings.retention_days,
            unfinished=tuple(unfinished),
        )
        done = structs.replace(manifest, chain=link, public_key=fingerprint(key.public_key()))
        made = Signed(digest, file, (announced or file, *unfinished), signed(done, key).decode())
        self._change(signed=made)
        return made

    def discard(self) -> None:
        """What is outstanding was seen by nobody, and its file is not there."""
        self._change(signed=None)

    def advance(self) -> None:
        """What was outstanding is where it belongs."""
        state = self._now_state
        if state.signed is None:
            return
        text = state.signed.text.encode()
        manifest = msgspec.json.decode(text, type=Manifest)
        link = manifest.chain
        assert link is not None  # noqa: S101 - `sign` made it
        last = Previous(
            sequence=link.sequence, digest=link.digest, file=link.file, sha256=_sha256(text), time=link.time
        )
        self._change(
            last=last,
            signed=None,
            pending=tuple(file for file in state.pending if file not in state.signed.told),
            recent=(*state.recent, link.file)[-_RECENT:],
            first_sequence=manifest.first_sequence or 0,
        )

    def head(self, name: str, *, writing: str = "") -> bytes:
        """What tells where the chain ends. ``name``: `head_name`. Raises UnauthorizedError."""
        key, state = self._key(), self._now_state
        head = Head(
            version=1,
            head_of=state.id,
            name=name,
            cluster=self.names.cluster,
            sink=self.names.sink,
            receiver=self.names.receiver,
            sequence=self.sequence,
            time=self._time(),
            last=state.last,
            writing=writing,
            oldest=state.oldest,
            ahead=state.ahead,
            pending=state.pending,
            retention_days=self._settings.retention_days,
            public_key=fingerprint(key.public_key()),
        )
        return signed(head, key)

    def head_name(self, before: str) -> str:
        """The name of this chain's head."""
        return f"{before}.{self.id[:8]}{HEAD}"

    @property
    def _now_state(self) -> _State:
        assert self._state is not None, "open comes first"  # noqa: S101
        return self._state

    def _change(self, **changes: object) -> None:
        self._keep(structs.replace(self._now_state, **changes))

    def _keep(self, state: _State) -> None:
        replace(self._path, msgspec.json.encode(state), PRIVATE)
        self._state = state

    def _key(self) -> Ed25519PrivateKey:
        reference = self._settings.signing_key
        try:
            return private_key(secret(reference))
        except KeyFileError as error:
            raise UnauthorizedError(f"the signing key {Path(reference.file).name} {error}") from None

    def _time(self) -> str:
        moment = datetime.fromtimestamp(self._now(), UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def state_path(state: Path, sink: str, place: Mapping[str, str]) -> Path:
    """Where the end of a chain is remembered: by the sink (``namespace/name``) and where it writes, so that a sink that
    moves begins a chain there.
    """
    identity = _sha256(msgspec.json.encode(place, order="sorted"))[:16]
    return state / sink / f"{identity}.json"
