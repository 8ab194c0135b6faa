"""Where programs come from: a mounted file, and the operator, which pushes them because a kubelet takes a minute.

The newest wins. The file follows a push with a delay, and in between may show a program that is older than the one in
force; so what was pushed, and what was in force or in the file then, is remembered by its hash. A file that shows one
of these is late; one that shows something else was changed by somebody else, and counts.

In a new pod the file is late for nobody: a kubelet fetches it anew, after all that was pushed to the pod before. That
may be what was in force long ago, as after a policy came and went while the receiver was away.
"""

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from audit_operator.policy.redact import RedactionError
from audit_operator.receiver.files import PRIVATE, replace
from audit_operator.receiver.reach import Reach
from audit_operator.receiver.running import Running
from audit_operator.render.objects import text_hash
from audit_operator.render.program import Program, decode, unpacked

logger = logging.getLogger(__name__)

LARGEST: Final = 64 << 20
"""Bytes of a program. A ConfigMap holds 1 MiB, packed."""

_REMEMBERED: Final = 256
"""Hashes of what was pushed; a kubelet lags by a few."""


class ProgramError(ValueError):
    """A program that cannot run; the message says why, and that the one before stays."""


@dataclass
class InForce:
    """For the status. ``hash``: `text_hash` of the program's text. ``refused``: why a newer one does not run."""

    hash: str = ""
    source: str = ""
    refused: str = ""
    refused_hash: str = ""


class Programs:
    """Chooses, checks and applies programs.

    Args:
        file: mounted; may be missing for a while.
        folder: of the journal: what was pushed is kept there.
        pod: the UID of this receiver's; empty where there is none.

    """

    def __init__(self, file: Path, folder: Path, running: Running, pod: str = "") -> None:
        self._file = file
        self._pushed = folder / "program.json"
        self._history = folder / "programs.pushed"
        self._known_pod = folder / "programs.pod"
        self._pod = pod
        self._in_new_pod = bool(pod) and _text(self._known_pod) != pod
        self._running = running
        self._seen: object = None
        # One after the other: what came last must be in force last.
        self._choosing = asyncio.Lock()
        self.state = InForce()

    async def start(self) -> None:
        """What was pushed last, unless the file shows something else that was never pushed. Raises nothing: without a
        program the receiver is not ready.
        """
        with contextlib.suppress(OSError, ProgramError):
            await self._apply(self._pushed.read_bytes(), "pushed")
        await self.look()

    async def look(self) -> None:
        """Take up the file if it has changed; a file that could not run is tried again, for its credentials may have
        arrived. Raises nothing.
        """
        async with self._choosing:
            await self._look()

    async def _look(self) -> None:
        try:
            found = self._file.stat()
            version = (found.st_mtime_ns, found.st_size, found.st_ino)
            if version == self._seen and not self.state.refused:
                return
            text = self._file.read_bytes()
        except OSError as error:
            if not self.state.hash:
                self.state.refused = f"{self._file}: {(error.strerror or '').lower()}"
            return
        self._seen = version
        with contextlib.suppress(ProgramError):
            hash_ = self._hash(text)
            late = hash_ in self._hashes() and not self._in_new_pod
            if hash_ != self.state.hash and not (late and self.state.hash):
                await self._apply(text, "file")
            if self._in_new_pod:
                self._in_new_pod = False
                with contextlib.suppress(OSError):  # the next start says it again
                    replace(self._pushed, text, PRIVATE)
                    replace(self._history, b"", PRIVATE)
                    self._know_pod()

    async def push(self, text: bytes) -> None:
        """What the operator sends. In force, and on disk, when this comes back. Raises ProgramError, OSError."""
        async with self._choosing:
            before = [self.state.hash]
            with contextlib.suppress(OSError, ProgramError):
                before.append(_hash(self._file.read_bytes()))
            await self._apply(text, "pushed")
            self._keep(text, before)
            if self._in_new_pod:
                self._in_new_pod = False  # what was pushed now is newer than the file, whatever the disk says
                self._know_pod()

    async def _apply(self, text: bytes, source: str) -> None:
        hash_ = self._hash(text)
        try:
            # A thousand policies take half a second, in which POSTs must be answered.
            program = await asyncio.to_thread(_decoded, text)
            await self._running.apply(program, _hash_key(program))
        except (ProgramError, RedactionError) as error:
            self._refuse(hash_, source, str(error))
        except OSError as error:
            self._refuse(hash_, source, f"{error.filename or 'the journal'}: {(error.strerror or '').lower()}")
        else:
            self.state = InForce(hash_, source)
            logger.info("program %s (%s) is in force", hash_, source)

    def _refuse(self, hash_: str, source: str, why: str) -> None:
        if self.state.refused_hash != hash_ or self.state.refused != why:
            logger.error("program %s (%s) is refused, %s stays: %s", hash_, source, self.state.hash or "none", why)
        self.state.refused, self.state.refused_hash = why, hash_
        raise ProgramError(why)

    def _know_pod(self) -> None:
        """Last: what ends before this begins again as a new pod."""
        replace(self._known_pod, self._pod.encode(), PRIVATE)

    def _hashes(self) -> list[str]:
        return _text(self._history).split()

    def _hash(self, text: bytes) -> str:
        """Raises ProgramError, and says it."""
        try:
            return _hash(text)
        except ProgramError as error:
            self.state.refused, self.state.refused_hash = str(error), ""
            raise

    def _keep(self, text: bytes, before: list[str]) -> None:
        """That older ones are late comes first: after a crash the file must not bring them back. That this one was
        pushed comes last: if the text were not there yet, nothing would ever put it in force.
        """
        self._remember(before)
        replace(self._pushed, text, PRIVATE)
        self._remember([self.state.hash])

    def _remember(self, hashes: list[str]) -> None:
        history = [each for each in self._hashes() if each not in hashes] + [each for each in hashes if each]
        replace(self._history, "\n".join(history[-_REMEMBERED:]).encode(), PRIVATE)


def _text(path: Path) -> str:
    """Empty if it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _hash(text: bytes) -> str:
    """Raises ProgramError."""
    try:
        return text_hash(unpacked(text).decode())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProgramError(f"the program {error}") from None


def _decoded(text: bytes) -> Program:
    try:
        program = decode(text)
    except msgspec.ValidationError as error:
        raise ProgramError(f"the program is not one of this version: {error}") from None
    except msgspec.DecodeError as error:
        raise ProgramError(f"the program is no JSON: {error}") from None
    try:
        Reach.of_tenants(program.tenants)
    except ValueError as error:
        raise ProgramError(f"tenants: {error}") from None
    sinks = {f"{sink.namespace}/{sink.name}" for sink in program.sinks}
    for policy in program.policies:
        name = f"policy {policy.namespace}/{policy.name}"
        if not 0 <= policy.rule_list < len(program.rule_lists):
            raise ProgramError(f"{name}: there is no rule list {policy.rule_list}")
        if unknown := set(policy.sinks) - sinks:
            raise ProgramError(f"{name}: there is no sink {min(unknown)}")
    return program


def _hash_key(program: Program) -> bytes:
    if program.hash_key_file is None:
        return b""
    try:
        return Path(program.hash_key_file).read_bytes().rstrip(b"\n")
    except OSError as error:
        raise ProgramError(
            f"{program.hash_key_file}, the key for action Hash: {(error.strerror or '').lower()}"
        ) from None
