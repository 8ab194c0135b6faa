"""What tests of integrity share: keys, file sinks with a chain, and what verify finds."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from sink_cases import Batch, batch

from audit_operator.cli.verify import _Folder
from audit_operator.receiver.integrity import fingerprint
from audit_operator.receiver.sinks import SecretFile
from audit_operator.receiver.sinks.chain import Chain, Integrity, Names
from audit_operator.receiver.sinks.file import Encrypt, File, Rules
from audit_operator.receiver.verification import NOTES, ChainReport, Finding, Kind, Known, Verification

KEY, OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32), Ed25519PrivateKey.from_private_bytes(b"o" * 32)


def pem(key: Ed25519PrivateKey) -> str:
    """As `openssl genpkey -algorithm ed25519` writes it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def public_pem(key: Ed25519PrivateKey) -> bytes:
    """As `openssl pkey -pubout` writes it."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class Archive(NamedTuple):
    """A folder that receivers write to, and what they remember elsewhere."""

    folder: Path
    state: Path

    def sink(
        self,
        now: Callable[[], float],
        *,
        name: str = "a.log",
        key: Ed25519PrivateKey = KEY,
        max_files: int = 100,
        compression: str = "gzip",
        encrypt: Encrypt | None = None,
        max_size: int = 1,
    ) -> File:
        """Its key is at hand; each batch begins a new file unless ``max_size`` says otherwise."""
        self.state.mkdir(exist_ok=True)
        secret = self.state / "key.pem"
        secret.write_text(pem(key))
        rules = Rules(max_size, 1e9, max_files, compression)  # type: ignore[arg-type]
        names = Names("prod", "audit-system/archive", name.removesuffix(".log"))
        chain = Chain(self.state / f"{name}.json", names, Integrity(signing_key=SecretFile(file=str(secret))), now)
        return File(self.folder / name, rules, now, chain=chain, encrypt=encrypt)

    def write(self, *batches: Batch, now: Callable[[], float] | None = None, **options: object) -> None:
        """A receiver's life: opened, written to, closed."""
        sink = self.sink(now or clock(self), **options)  # type: ignore[arg-type]

        async def run() -> None:
            await sink.open()
            for each in batches:
                await sink.deliver(each)
            await sink.close()

        asyncio.run(run())

    def files(self) -> list[str]:
        """All but what is written at the moment."""
        return sorted(path.name for path in self.folder.iterdir() if path.name not in ("a.log", ".a.log.begun"))


def clock(archive: Archive) -> Callable[[], float]:
    """Seconds that go on where they ended."""
    beside = archive.state / "clock"

    def now() -> float:
        archive.state.mkdir(exist_ok=True)
        moment = int(beside.read_text()) + 1 if beside.exists() else 1_795_000_000
        beside.write_text(str(moment))
        return float(moment)

    return now


class Verified(NamedTuple):
    """What verify says."""

    findings: list[Finding]
    notes: list[Finding]
    chains: Sequence[ChainReport]

    @property
    def said(self) -> set[tuple[Kind, str]]:
        """What of which file."""
        return {(finding.kind, finding.file) for finding in self.findings}


def verified(
    folder: Path, *keys: Ed25519PrivateKey, known: Sequence[Known] = (), now: datetime | None = None
) -> Verified:
    """Verify the folder with these keys."""
    public = {fingerprint(key.public_key()): key.public_key() for key in keys or (KEY,)}
    verification = Verification(_Folder(folder), public, now or datetime.now(UTC), known)
    found = list(verification.findings())
    return Verified(
        [each for each in found if each.kind not in NOTES],
        [each for each in found if each.kind in NOTES],
        verification.reports(),
    )


def numbered(count: int) -> list[Batch]:
    """So many batches of one event each, different from all others."""
    return [batch(number) for number in range(1, count + 1)]


@contextlib.contextmanager
def changed(path: Path) -> Iterator[bytearray]:
    """The file's bytes, to be changed in place."""
    data = bytearray(path.read_bytes())
    yield data
    path.write_bytes(bytes(data))


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """An empty one."""
    (tmp_path / "archive").mkdir()
    return Archive(tmp_path / "archive", tmp_path / "state")
