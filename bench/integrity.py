"""What sealing a file costs, and what verifying takes: time by files and by bytes, memory for little and for much."""

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from audit_operator.receiver.integrity import DIGEST, Head, Link, Manifest, Previous, fingerprint, measure, signed
from bench.table import Row

_KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
_CHAIN = "0123456789abcdef" * 2
_TIME = "2026-11-23T04:33:04.343Z"
_LINE = b'{"kind":"Event","auditID":"%08d","user":"' + os.urandom(400).hex().encode() + b'"}\n'

_VERIFY = """
import sys
from audit_operator.cli.verify import verify
place, key = sys.argv[1:]
assert verify(place, public_keys=[key], endpoint="", known="", as_json=False)
# Not getrusage: it counts what the process was before it became Python.
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""


def run() -> Iterator[Row]:
    """A minute or two, on the disk of the folder for temporary files."""
    folder = Path(tempfile.mkdtemp(prefix="bench-integrity-"))
    try:
        key = folder / "audit.pub"
        key.write_bytes(_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        for count in (1_000, 100_000):
            archive = folder / str(count)
            _chain(archive, [b"{}\n"] * count)
            seconds, memory = _verified(archive, key)
            yield Row(f"verify: a digest and its small file, {count:,} of them", seconds / count * 1e6, "µs")
            yield Row(f"verify: largest RSS, {count:,} digests", memory / 1000, "MB")
        lines = b"".join(_LINE % number for number in range(120_000))
        body = gzip.compress(lines, 1)
        start = time.perf_counter()
        measure([body], "a.gz")
        yield Row("seal: a file of 100 MB, gzip, when it is closed", (time.perf_counter() - start) * 1000, "ms")
        _chain(folder / "large", [lines] * 10)
        seconds, memory = _verified(folder / "large", key)
        yield Row("verify: files of 100 MB", 10 * len(lines) / 1e6 / seconds, "MB/s")
        yield Row("verify: largest RSS, files of 100 MB", memory / 1000, "MB")
    finally:
        shutil.rmtree(folder)


def _chain(folder: Path, bodies: list[bytes]) -> None:
    folder.mkdir()
    names = {"cluster": "prod", "sink": "audit-system/archive", "receiver": "a"}
    public_key = fingerprint(_KEY.public_key())
    previous: Previous | None = None
    for sequence, body in enumerate(bodies, start=1):
        plain = f"a-2026-11-23T{sequence // 3600:02}-{sequence // 60 % 60:02}-{sequence % 60:02}.000000.log"
        digest = f"{plain}{DIGEST}"
        link = Link(id=_CHAIN, sequence=sequence, digest=digest, file=plain, time=_TIME, previous=previous)
        sha = hashlib.sha256(body).hexdigest()
        manifest = Manifest(
            version=1, object=plain, **names, bytes=len(body), sha256=sha, chain=link, public_key=public_key
        )
        text = signed(manifest, _KEY)
        (folder / plain).write_bytes(body)
        (folder / digest).write_bytes(text)
        own = hashlib.sha256(text).hexdigest()
        previous = Previous(sequence=sequence, digest=digest, file=plain, sha256=own, time=_TIME)
    name = f"a.log.{_CHAIN[:8]}.head.json"
    head = Head(
        version=1, head_of=_CHAIN, name=name, **names, sequence=len(bodies), time=_TIME, last=previous,
        writing="a.log", public_key=public_key,
    )  # fmt: skip
    (folder / name).write_bytes(signed(head, _KEY))
    (folder / "a.log").touch()


def _verified(folder: Path, key: Path) -> tuple[float, float]:
    """Seconds, and the process's largest resident set in kB."""
    start = time.perf_counter()
    answer = subprocess.run(
        [sys.executable, "-c", _VERIFY, str(folder), str(key)], check=True, capture_output=True, text=True
    )
    return time.perf_counter() - start, float(answer.stdout.split()[-1])
