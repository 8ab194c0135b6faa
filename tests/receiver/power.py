"""A disk that may lose power at any moment. What is done to it is recorded; of that states are made that a power cut
may leave, and the code under test starts on each.

    with Recorder(folder) as recorder:
        ...                                     # the real code, on a real folder
        recorder.mark("taken", 1)               # what it has promised so far
    for state in recorder.states(chance):       # a cut after each operation, in several ways
        state.lay(elsewhere)
        ...                                     # the real code again; state.marks is what had been promised

What the model holds a disk to is no more than POSIX does:

* Content is durable once its file was synced, a name once its folder was, each alone. Until then any part of it may be
  there, in any order: pages old, new, half, or zeros; truncations, names and removals done, or not.
* After a sync that failed nobody knows: what it was to write may be on the disk or not, and a later sync that succeeds
  says nothing of it, for the kernel has forgotten. Only what is written anew counts again.
* A rename is done as a whole or not at all.

`Recorder.kill_after` ends a process instead: nothing is done any more, and nothing that was done is lost, until the
power fails in the life after it.
"""

import builtins
import contextlib
import errno
import io
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import pytest

PAGE: Final = 512
"""Bytes that a disk writes as one."""


class Killed(BaseException):
    """The process is no more."""


class _Write(NamedTuple):
    offset: int
    data: bytes
    doubtful: bool = False


class _Cut(NamedTuple):
    size: int


class _File:
    """``disk``: what is durable; ``changes``: what came after that, or is doubtful."""

    def __init__(self) -> None:
        self.disk = b""
        self.changes: list[_Write | _Cut] = []

    def synced(self) -> None:
        whole = bytearray(_applied(self.disk, self.changes))
        size = len(whole)
        before = self.disk[:size].ljust(size, b"\0")
        anew = {
            page
            for each in self.changes
            if isinstance(each, _Write) and not each.doubtful
            for page in range(each.offset // PAGE, (each.offset + len(each.data) - 1) // PAGE + 1)
        }
        left: list[_Write | _Cut] = []
        for each in self.changes:
            if not isinstance(each, _Write) or not each.doubtful:
                continue
            for start, piece in _pages(each):
                shown = bytes(whole[start : start + len(piece)])
                if start // PAGE not in anew and shown == piece:
                    left.append(_Write(start, piece, doubtful=True))
        for each in left:
            assert isinstance(each, _Write)
            whole[each.offset : each.offset + len(each.data)] = before[each.offset : each.offset + len(each.data)]
        self.disk, self.changes = bytes(whole), left

    def failed(self) -> None:
        self.changes = [each._replace(doubtful=True) if isinstance(each, _Write) else each for each in self.changes]

    def forgotten(self) -> list[_Write]:
        """What the page cache shows again once it has let go of what was never written."""
        lost = [each for each in self.changes if isinstance(each, _Write) and each.doubtful]
        self.changes = [each for each in self.changes if each not in lost]
        return [_Write(each.offset, self.disk[each.offset : each.offset + len(each.data)]) for each in lost]


def _pages(write: _Write) -> Iterator[tuple[int, bytes]]:
    start, end = write.offset, write.offset + len(write.data)
    while start < end:
        stop = min(end, (start // PAGE + 1) * PAGE)
        yield start, write.data[start - write.offset : stop - write.offset]
        start = stop


def _applied(content: bytes, changes: "list[_Write | _Cut]") -> bytes:
    found = bytearray(content)
    for each in changes:
        if isinstance(each, _Cut):
            del found[each.size :]
            found.extend(bytes(each.size - len(found)))
        else:
            found.extend(bytes(max(0, each.offset - len(found))))
            found[each.offset : each.offset + len(each.data)] = each.data
    return bytes(found)


def _some(file: _File, chance: random.Random) -> bytes:
    kept: list[_Write | _Cut] = []
    for each in file.changes:
        if isinstance(each, _Cut):
            if chance.random() < 0.5:
                kept.append(each)
            continue
        way = chance.choice(("whole", "nothing", "pages"))
        if way == "whole":
            kept.append(each)
        elif way == "pages":
            for start, piece in _pages(each):
                match chance.choice(("new", "old", "zeros", "half")):
                    case "new":
                        kept.append(_Write(start, piece))
                    case "zeros":
                        kept.append(_Write(start, bytes(len(piece))))
                    case "half":
                        kept.append(_Write(start, piece[: chance.randint(0, len(piece))]))
    return _applied(file.disk, kept)


class _Entry(NamedTuple):
    """A change of a folder: ``node`` is now called ``name``, and ``old`` is gone. None: nothing is called so."""

    name: str
    node: int | None
    old: str = ""


class _Folder:
    def __init__(self) -> None:
        self.disk: dict[str, int] = {}
        self.changes: list[_Entry] = []


def _named(names: dict[str, int], changes: list[_Entry]) -> dict[str, int]:
    found = dict(names)
    for each in changes:
        if each.old:
            found.pop(each.old, None)
        if each.node is None:
            found.pop(each.name, None)
        else:
            found[each.name] = each.node
    return found


@dataclass
class State:
    """What a power cut left. ``cut``: after how many operations; ``marks``: what had been said until then; ``how``: for
    messages.
    """

    cut: int
    marks: list[tuple[Any, ...]]
    how: str
    files: dict[str, bytes]
    folders: list[str]

    def lay(self, folder: Path) -> None:
        """Put it there."""
        folder.mkdir(parents=True)
        for name in self.folders:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)

    def said(self, what: str) -> list[Any]:
        """The marks of this kind."""
        return [mark[1] for mark in self.marks if mark[0] == what]


_Op = tuple[Any, ...]
Fault = Callable[[str, Path], int | None]
"""(operation, path) -> the errno that it fails with, None if it works. A write that fails has done half of it."""

_NOTHING: Final = -1


@dataclass
class Recorder:
    """See the module. ``root`` must be there and empty. Threads are recorded in the order in which they come.

    ``forgets``: whether the page cache lets go of what it is told to let go of; it may use it for something else.
    """

    root: Path
    fault: Fault | None = None
    kill_after: int | None = None
    forgets: bool = True
    operations: list[_Op] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.RLock)
    _patch: pytest.MonkeyPatch = field(default_factory=pytest.MonkeyPatch)
    _files: dict[int, tuple[int, Path, bool]] = field(default_factory=dict)
    _nodes: dict[Path, int] = field(default_factory=dict)
    _model: "_Model" = field(default_factory=lambda: _Model())  # noqa: PLW0108 - it is defined below
    _real: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.root = self.root.absolute()
        self._nodes.setdefault(self.root, 0)
        wrapped: dict[str, Callable[..., Any]] = {
            "open": self._open,
            "close": self._close,
            "write": self._write,
            "pwrite": self._pwrite,
            "pwritev": self._pwritev,
            "ftruncate": self._ftruncate,
            "truncate": self._truncate,
            "fsync": self._sync,
            "fdatasync": self._sync,
            "posix_fadvise": self._forget,
            "rename": self._rename,
            "replace": self._rename,
            "unlink": self._unlink,
            "remove": self._unlink,
            "mkdir": self._mkdir,
            "rmdir": self._unlink,
        }
        for name, wrapper in wrapped.items():
            self._real[name] = getattr(os, name)
            self._patch.setattr(os, name, wrapper)
        real = io.open

        def watched(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if set(mode) & set("wax+") and not isinstance(file, int):
                assert not self._inside(file), f"{file} is written past the recorder"
            return real(file, mode, *arguments, **options)

        self._patch.setattr(io, "open", watched)
        self._patch.setattr(builtins, "open", watched)
        return self

    def __exit__(self, *_: object) -> None:
        self.restart()
        self._patch.undo()

    def mark(self, *what: Any) -> None:
        """Remember what was said, in the order of things."""
        with self._lock:
            self._note("mark", what)

    def restart(self) -> None:
        """The process is gone, and whatever it had open; the next one begins."""
        for file in list(self._files):
            with contextlib.suppress(OSError):
                self._real["close"](file)
        self._files.clear()
        self.kill_after = None

    # --- what is recorded ---

    def _inside(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and Path(path).absolute().is_relative_to(self.root)

    def _note(self, *operation: Any) -> None:
        self.operations.append(operation)
        self._model.do(operation)

    def _may(self, what: str, path: Path) -> int | None:
        """Before anything is done. Raises Killed; the errno to fail with."""
        if self.kill_after is not None:
            if self.kill_after <= 0:
                raise Killed
            self.kill_after -= 1
        return self.fault(what, path) if self.fault else None

    def _check(self, what: str, path: Path) -> None:
        if number := self._may(what, path):
            raise OSError(number, os.strerror(number), str(path))

    def _open(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        if not self._inside(path):
            return int(self._real["open"](path, flags, mode, **options))
        with self._lock:
            place = Path(path).absolute()
            there = place.exists()
            writes = bool(flags & (os.O_CREAT | os.O_TRUNC)) and (not there or flags & os.O_TRUNC)
            if writes and not (there and flags & os.O_EXCL):
                self._check("create" if not there else "truncate", place)
            file = int(self._real["open"](path, flags, mode, **options))
            if not there:
                node = self._nodes[place] = self._model.new()
                self._note("name", self._nodes[place.parent], _Entry(place.name, node))
            elif flags & os.O_TRUNC:
                self._note("change", self._nodes[place], _Cut(0))
            self._files[file] = (self._nodes[place], place, bool(flags & os.O_APPEND))
            return file

    def _close(self, file: int) -> None:
        self._files.pop(file, None)
        self._real["close"](file)

    def _written(self, file: int, data: bytes, offset: int) -> int:
        node, path, _ = self._files[file]
        number = self._may("write", path)
        if number:
            half = data[: len(data) // 2]
            if not half or number == errno.EIO:
                raise OSError(number, os.strerror(number))
            data = half
        count = int(self._real["pwrite"](file, data, offset))
        self._note("change", node, _Write(offset, data[:count]))
        return count

    def _write(self, file: int, data: Any) -> int:
        if file not in self._files:
            return int(self._real["write"](file, data))
        with self._lock:
            append = self._files[file][2]
            offset = os.fstat(file).st_size if append else os.lseek(file, 0, os.SEEK_CUR)
            count = self._written(file, bytes(data), offset)
            os.lseek(file, offset + count, os.SEEK_SET)
            return count

    def _pwrite(self, file: int, data: Any, offset: int) -> int:
        if file not in self._files:
            return int(self._real["pwrite"](file, data, offset))
        with self._lock:
            return self._written(file, bytes(data), offset)

    def _pwritev(self, file: int, buffers: Any, offset: int, *more: Any) -> int:
        if file not in self._files:
            return int(self._real["pwritev"](file, buffers, offset, *more))
        with self._lock:
            return self._written(file, b"".join(buffers), offset)

    def _ftruncate(self, file: int, size: int) -> None:
        if file not in self._files:
            self._real["ftruncate"](file, size)
            return
        with self._lock:
            node, path, _ = self._files[file]
            self._check("truncate", path)
            self._real["ftruncate"](file, size)
            self._note("change", node, _Cut(size))

    def _truncate(self, path: Any, size: int) -> None:
        if not self._inside(path):
            self._real["truncate"](path, size)
            return
        with self._lock:
            place = Path(path).absolute()
            self._check("truncate", place)
            self._real["truncate"](path, size)
            self._note("change", self._nodes[place], _Cut(size))

    def _sync(self, file: int) -> None:
        if file not in self._files:
            self._real["fsync"](file)
            return
        with self._lock:
            node, path, _ = self._files[file]
            if number := self._may("sync", path):
                self._note("failed", node)
                raise OSError(number, os.strerror(number))
            self._note("sync", node)

    def _forget(self, file: int, offset: int, length: int, advice: int) -> None:
        if file not in self._files:
            self._real["posix_fadvise"](file, offset, length, advice)
            return
        with self._lock:
            node, path, _ = self._files[file]
            found = self._model.files.get(node)
            if self.forgets and advice == os.POSIX_FADV_DONTNEED and found is not None:
                # With a descriptor of its own: to one that appends, Linux appends whatever the offset.
                other = self._real["open"](path, os.O_WRONLY)
                for each in found.forgotten():
                    self._real["pwrite"](other, each.data, each.offset)
                self._real["close"](other)
                self.operations.append(("forget", node))

    def _rename(self, source: Any, target: Any, **options: Any) -> None:
        if not self._inside(source):
            self._real["replace"](source, target, **options)
            return
        with self._lock:
            old, new = Path(source).absolute(), Path(target).absolute()
            assert old.parent == new.parent, "the model knows renames within a folder only"
            self._check("rename", new)
            self._real["replace"](source, target, **options)
            node = self._nodes[new] = self._nodes.pop(old)
            self._note("name", self._nodes[new.parent], _Entry(new.name, node, old.name))

    def _unlink(self, path: Any, **options: Any) -> None:
        if not self._inside(path):
            self._real["unlink" if not Path(path).is_dir() else "rmdir"](path, **options)
            return
        with self._lock:
            place = Path(path).absolute()
            if not place.exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            self._check("unlink", place)
            self._real["rmdir" if place.is_dir() else "unlink"](path, **options)
            self._nodes.pop(place)
            self._note("name", self._nodes[place.parent], _Entry(place.name, None))

    def _mkdir(self, path: Any, mode: int = 0o777, **options: Any) -> None:
        if not self._inside(path):
            self._real["mkdir"](path, mode, **options)
            return
        with self._lock:
            place = Path(path).absolute()
            if place.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
            if not place.parent.exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            self._check("create", place)
            self._real["mkdir"](path, mode, **options)
            node = self._nodes[place] = self._model.new(folder=True)
            self._note("name", self._nodes[place.parent], _Entry(place.name, node))

    # --- what a power cut leaves ---

    def states(self, chance: random.Random, *, samples: int = 3, since: int = 0) -> Iterator[State]:
        """After each operation from ``since`` on: nothing of what was not synced, all of it, names without contents,
        contents without names, and so many mixtures. Each once.
        """
        model, marks = _Model(), []
        before: set[int] = set()
        for cut in range(len(self.operations) + 1):
            if cut:
                operation = self.operations[cut - 1]
                if operation[0] == "mark":
                    marks.append(operation[1])
                    before.clear()
                model.do(operation)
            if cut < since or (cut < len(self.operations) and self.operations[cut][0] == "mark"):
                continue
            seen: set[int] = set()
            for how in ("nothing", "all", "names", "contents", *["mixed"] * samples):
                files, folders = model.left(how, chance)
                name = hash((tuple(sorted(files.items())), tuple(sorted(folders))))
                seen.add(name)
                if name not in before:
                    before.add(name)
                    yield State(cut, list(marks), how, files, folders)
            before &= seen


class _Model:
    def __init__(self) -> None:
        self.files: dict[int, _File] = {}
        self.folders: dict[int, _Folder] = {0: _Folder()}
        self._next = 0

    def new(self, *, folder: bool = False) -> int:
        self._next += 1
        # Folders have odd numbers: so a recording says what is what.
        return 2 * self._next + folder

    def do(self, operation: _Op) -> None:
        what, *rest = operation
        match what:
            case "name":
                folder, entry = rest
                if entry.node is not None:
                    if entry.node % 2:
                        self.folders.setdefault(entry.node, _Folder())
                    else:
                        self.files.setdefault(entry.node, _File())
                self.folders[folder].changes.append(entry)
            case "change":
                self.files[rest[0]].changes.append(rest[1])
            case "sync":
                if rest[0] in self.folders:
                    one = self.folders[rest[0]]
                    one.disk, one.changes = _named(one.disk, one.changes), []
                else:
                    self.files[rest[0]].synced()
            case "failed":
                if rest[0] in self.files:
                    self.files[rest[0]].failed()
            case "forget":
                self.files[rest[0]].forgotten()

    def left(self, how: str, chance: random.Random) -> tuple[dict[str, bytes], list[str]]:
        files: dict[str, bytes] = {}
        folders: list[str] = []

        def walk(node: int, above: str) -> None:
            folder = self.folders[node]
            match how:
                case "nothing" | "contents":
                    names = folder.disk
                case "all" | "names":
                    names = _named(folder.disk, folder.changes)
                case _:
                    names = _named(folder.disk, [each for each in folder.changes if chance.random() < 0.5])
            for name, each in sorted(names.items()):
                path = f"{above}{name}"
                if each in self.folders:
                    folders.append(path)
                    walk(each, f"{path}/")
                    continue
                file = self.files[each]
                match how:
                    case "nothing" | "names":
                        files[path] = file.disk
                    case "all" | "contents":
                        files[path] = _applied(file.disk, file.changes)
                    case _:
                        files[path] = _some(file, chance)

        walk(0, "")
        return files, folders
