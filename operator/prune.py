"""Removes from an environment what audit-operator never loads. For the image: operator/Dockerfile runs it.

    python prune.py SITE-PACKAGES

tests/image runs the operator, a receiver and every command on what is left, and imports all of ours.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

API: Final = "coordination_v1_api"
"""The one generated API of Kubernetes' client that is used: elections, by Lease. All else goes through its
DynamicClient, as plain documents. The client loads APIs and models when somebody names them; each API names its
models."""

_CLIENTS: Final = ("kubernetes/client", "kubernetes/aio/client")
_IMPORT: Final = re.compile(r"^\s*from (kubernetes[\w.]*\.client)\.models\.(\w+) import", re.MULTILINE)

_UNUSED: Final = (
    "**/tests",
    "**/*_test.py",
    "**/_testcapi*.so",
    # For type checkers and compilers.
    "**/*.pyi",
    "**/*.pyx",
    "**/*.pxd",
    "**/*.c",
    "**/*.h",
    "aiohttp/.hash",
    # Of languages that nobody prints here; rich brings them.
    "pygments/lexers/[!_]*.py",
    "pygments/lexers/_*_builtins.py",
    # Confluent's registry: sinks send JSON.
    "confluent_kafka/schema_registry",
    # The other implementation of what zstandard has in backend_c; CPython never takes it.
    "zstandard/_cffi*.so",
    "zstandard/backend_cffi.py",
)


def prune(site: Path) -> int:
    """The bytes removed."""
    before = _size(site)
    for path in [*_generated(site), *(found for pattern in _UNUSED for found in site.glob(pattern))]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # in a folder that is gone already
    return before - _size(site)


def _generated(site: Path) -> Iterator[Path]:
    """APIs and models of Kubernetes' clients that nobody names."""
    folders = [site / client / part for client in _CLIENTS for part in ("api", "models")]
    generated = {path for folder in folders for path in folder.glob("*.py") if path.name != "__init__.py"}
    kept = {path for path in generated if path.stem == API}
    lists = {folder / "__init__.py" for folder in (*folders, *(folder.parent for folder in folders))}
    scan = [*kept, *(path for path in (site / "kubernetes").rglob("*.py") if path not in generated | lists)]
    while scan:
        imported = _IMPORT.findall(scan.pop().read_text(encoding="utf-8"))
        named = {site / package.replace(".", "/") / "models" / f"{model}.py" for package, model in imported}
        scan += named - kept
        kept |= named
    return iter(generated - kept)


def _size(site: Path) -> int:
    return sum(path.stat().st_size for path in site.rglob("*") if path.is_file())


if __name__ == "__main__":
    print(f"removed {prune(Path(sys.argv[1])) / 1e6:.0f} MB of what is never loaded")
