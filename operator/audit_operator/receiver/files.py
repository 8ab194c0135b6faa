"""Files and folders that survive a power cut, with the modes they are given whatever the umask. Blocking.

A file's content is durable once the file is synced, its name once its folder is, and that of a folder once the folder
above is. Whoever syncs the content alone has written to a file that may be gone with the next power cut.
"""

import contextlib
import errno
import io
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

TEMPORARY: Final = ".tmp"
"""The end of the name of a file that becomes another one once it is whole."""

PRIVATE: Final = 0o600
"""Of what only the receiver reads."""
ARCHIVE: Final = 0o640
"""Of what file sinks write: whoever ships it from there is in the group of the volume (fsGroup)."""
PRIVATE_FOLDER: Final = 0o700
ARCHIVE_FOLDER: Final = 0o750


def opened(path: Path, flags: int, mode: int) -> tuple[int, bool]:
    """A descriptor of a file, and whether it was made for that: then it has this mode. That of a file which is there
    stays as it is: Kubernetes widens it where a volume comes to a pod with another user (fsGroup). Raises OSError.
    """
    flags |= os.O_CLOEXEC
    try:
        file = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        return os.open(path, flags | os.O_CREAT, mode), False
    # The umask has only taken something from it. Some network file systems know no modes.
    with contextlib.suppress(OSError):
        if stat.S_IMODE(os.fstat(file).st_mode) != mode:
            os.fchmod(file, mode)
    return file, True


def make_folder(folder: Path, mode: int, synced: set[Path] | None = None) -> None:
    """Make it, and those above it, with this mode, and make all of their names durable. Raises OSError.

    Also if it is there: whoever made it may have been killed before its name was durable. ``synced``: folders that were
    synced since this process began, to which those of now are added; what is made by others meanwhile is theirs.
    """
    missing = []
    above = folder.absolute()
    while not above.is_dir():
        missing.append(above)
        above = above.parent
    for each in reversed(missing):
        try:
            os.mkdir(each, mode)  # noqa: PTH102 - one mode for all of them, which Path.mkdir does not do
        except FileExistsError:
            continue
        if synced is not None:
            synced.discard(each.parent)
        with contextlib.suppress(OSError):
            found = stat.S_IMODE(each.stat().st_mode)
            if found & 0o777 != mode:
                each.chmod(mode | found & stat.S_ISGID)
    below = folder.absolute()
    while not below.is_mount():
        if synced is not None and below.parent in synced:
            below = below.parent
            continue
        try:
            sync_folder(below.parent)
            if synced is not None:
                synced.add(below.parent)
        except OSError as error:
            # What is above the volume is not ours: it need not be readable, nor of a kind that can be synced.
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS):
                raise
        below = below.parent


def sync_folder(folder: Path) -> None:
    """So that the names in it survive a power cut. Raises OSError."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def replace(path: Path, data: bytes, mode: int) -> None:
    """The data as this file, whole or not at all, on the disk. Raises OSError."""
    temporary = path.with_name(f"{path.name}{TEMPORARY}")
    with writing(temporary, mode) as target:
        target.write(data)
    temporary.replace(path)
    sync_folder(path.parent)


class Target(io.RawIOBase):
    """What is written goes to a descriptor, all of it or OSError."""

    def __init__(self, file: int) -> None:
        self._file = file

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """See the class."""
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            written += os.write(self._file, view[written:])
        return written


@contextlib.contextmanager
def writing(path: Path, mode: int) -> Iterator[Target]:
    """A new file, in place of whatever is there; its content is synced at the end. Raises OSError."""
    path.unlink(missing_ok=True)
    file, _ = opened(path, os.O_WRONLY, mode)
    try:
        yield Target(file)
        os.fsync(file)
    finally:
        os.close(file)


def settled(file: int) -> None:
    """What is in a file is what is on the disk, from now on. Raises OSError.

    Whoever wrote to it last may have been killed before it was synced. Or syncing failed: the kernel says that once,
    and then takes what it could not write for written until it forgets it.
    """
    os.fsync(file)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


_COUNTED_EVERY: Final = 300.0
_COUNTED_EVERY_WHEN_FULL: Final = 5.0
_SHARE_OF_TIME: Final = 0.01
"""Seconds between counts, and of the time that counting may take at most: a folder may hold millions of files."""


class Account:
    """Bytes of the files below a folder. Whoever writes there says so; what others do is found by counting anew, now
    and then. Safe for use by several threads. ``clock``: seconds, monotonic.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._bytes = 0
        self._changed = 0
        self._counted: float | None = None
        self._took = 0.0

    @property
    def bytes(self) -> int:
        """As far as it is known."""
        return self._bytes

    def add(self, path: Path, change: int) -> None:
        """So many bytes more, or less, in this file. Of others than those below the folder nothing is kept."""
        if path.is_relative_to(self._folder):
            with self._lock:
                self._bytes = max(0, self._bytes + change)
                self._changed += change

    def due(self, *, full: bool) -> bool:
        """Whether to count. ``full``: somebody waits for room, who may be making it by hand."""
        if self._counted is None:
            return True
        every = max(_COUNTED_EVERY_WHEN_FULL if full else _COUNTED_EVERY, self._took / _SHARE_OF_TIME)
        return self._clock() - self._counted >= every

    def count(self) -> None:
        """Look at every file, which may go meanwhile. Blocking."""
        begun = self._clock()
        with self._lock:
            self._changed = 0
        found = _bytes_below(self._folder)
        with self._lock:
            # What was written meanwhile is counted or not: the next time says it.
            self._bytes = max(0, found + self._changed)
        self._counted = self._clock()
        self._took = self._counted - begun


def _bytes_below(folder: Path) -> int:
    size, folders = 0, [str(folder)]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        size += entry.stat(follow_symlinks=False).st_size
    return size
