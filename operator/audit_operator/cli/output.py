"""What a person or a program sees: JSON, colours only on a terminal, files that replace others whole or not at all."""

import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from audit_operator.cli.errors import CliError, reason

if TYPE_CHECKING:
    # Imported where it is used: `audit-operator lint` is done before rich is loaded.
    from rich.console import Console

JSON: Final = "json"
"""What `-o` says for JSON, where it could also name a file or folder."""

_UNFOLDED: Final = 10_000
"""Columns. Where nobody looks at a terminal, lines stay whole for grep and for comparing."""

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")

MANIFEST: Final = ".audit-operator-render.json"
"""Lists what `render -o` wrote into a folder, so that the next one removes what is no more, and nothing else."""


def print_json(value: Any) -> None:
    """The value as indented JSON. ASCII, so that no terminal and no locale stands in its way."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_json_line(value: Any) -> None:
    """The value as JSON on one line."""
    sys.stdout.write(json.dumps(value, separators=(",", ":")) + "\n")


def console(stream: TextIO | None = None) -> "Console":
    """Where readable answers go: as wide as the terminal, unfolded and without colours where there is none."""
    from rich.console import Console

    file = stream or sys.stdout
    width = None if file.isatty() else _UNFOLDED
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False, soft_wrap=not file.isatty())


def coloured(stream: TextIO) -> bool:
    """Whether the stream takes colours: a terminal, and nobody said no (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, stream: TextIO, colour: str, *, bold: bool = False) -> str:
    """The text in a colour, where the stream takes colours."""
    if not coloured(stream):
        return text
    import typer

    return typer.style(text, fg=colour, bold=bold)


def printable(text: str) -> str:
    """The text without what could move the cursor, hide or reorder what stands beside it: users write audit events."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def bytes_text(number: int) -> str:
    """``1.2 MB``: thousands, as disks and invoices are counted."""
    if number < 1000:
        return f"{number} B"
    size = float(number)
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.1f} {unit}" if size < 99.5 else f"{size:.0f} {unit}"
    return f"{size:.0f} TB"


def counted(number: int, one: str, several: str = "") -> str:
    """``1 rule``, ``2 rules``, ``12,345 events``."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def write_file(name: str, text: str) -> None:
    """The text as the file ``name``, whole or not at all; into a device or pipe as it comes. Raises CliError."""
    with _errors(name):
        path = Path(name).resolve()
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")  # a rename would put a file in the place of /dev/null
        else:
            _update(path, text)


def write_folder(name: str, files: Mapping[str, str]) -> list[str]:
    """``files`` (path -> text) below the folder ``name``, and its manifest. Returns the paths that were removed.

    A file that is there already and that no former call wrote is left alone: CliError, and nothing is written. What a
    former call wrote and ``files`` no longer holds is removed. Nothing outside the folder is written or removed: a
    symbolic link to a folder inside it is refused.
    """
    folder = Path(name)
    with _errors(name):
        folder.mkdir(parents=True, exist_ok=True)
        known = _manifest(folder)
        for path in sorted(known | files.keys() | {MANIFEST}):
            _refuse_links(folder, path)
        for path, text in files.items():
            target = folder / path
            if path not in known and target.exists() and not _holds(target, text):
                raise CliError(
                    "is there already, and `audit-operator render` did not write it",
                    file=str(target),
                    way_out="move it away, or name another folder with -o",
                )
        stale = sorted(path for path in known - files.keys() if (folder / path).is_file())
        # The manifest first: after a crash it lists too much, which the next call sets right; never too little.
        _update(folder / MANIFEST, _manifest_text(known | files.keys()))
        for path, text in files.items():
            _update(folder / path, text)
        for path in stale:
            _remove(folder, path)
        _update(folder / MANIFEST, _manifest_text(files.keys()))
    return stale


def write_files(name: str, files: Mapping[str, str]) -> None:
    """``files`` (file name -> text) into the folder ``name``, each whole or not at all, and through no link."""
    with _errors(name):
        for path in files:
            _refuse_links(Path(name), path)
        for path, text in files.items():
            _update(Path(name, path), text)


def _refuse_links(folder: Path, path: str) -> None:
    """Whoever may change what is in the folder, as by a pull request, must not choose what is written outside of it."""
    for part in Path(path).parts:
        folder /= part
        if folder.is_symlink():
            raise CliError(
                "is a symbolic link, and those inside of the folder are not followed",
                file=str(folder),
                way_out="remove it, or name another folder with -o",
            )


def _manifest_text(paths: Any) -> str:
    what = "What audit-operator render wrote here. It removes what it no longer writes, and touches nothing else."
    return json.dumps({"about": what, "files": sorted(paths)}, indent=2) + "\n"


def _manifest(folder: Path) -> set[str]:
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        paths = document["files"]
    except FileNotFoundError:
        return set()
    except (ValueError, KeyError, TypeError, RecursionError):
        paths = None
    if not isinstance(paths, list) or not all(isinstance(path, str) and _is_below(path) for path in paths):
        raise CliError(
            "is not what `audit-operator render` writes", file=str(folder / MANIFEST), way_out="remove it, and look why"
        )
    return set(paths)


def _is_below(path: str) -> bool:
    """Whether it stays in the folder: a manifest is a file like any other, and says what is removed."""
    parts = path.split("/")
    return bool(path) and not Path(path).is_absolute() and "\0" not in path and not {"", ".", ".."} & set(parts)


def _holds(path: Path, text: str) -> bool:
    data = text.encode()
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except FileNotFoundError:
        return False


def _remove(folder: Path, path: str) -> None:
    target = folder / path
    target.unlink(missing_ok=True)
    for parent in target.relative_to(folder).parents:
        if parent != Path():
            with contextlib.suppress(OSError):  # not empty
                (folder / parent).rmdir()


def _update(path: Path, text: str) -> None:
    """Write the text unless it is there already: beside the file first, then renamed, so that nobody reads half of it.

    Modes follow the umask; those of a file that is there stay. Scripts can be run.
    """
    if _holds(path, text):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else (0o777 if path.suffix == ".sh" else 0o666) & ~_umask()
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        Path(beside).chmod(mode)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CliError(reason(error), file=str(error.filename or name)) from None
    except ValueError:
        raise CliError("is no file name", value=repr(name)) from None
