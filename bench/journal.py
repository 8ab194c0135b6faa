"""What making a POST's events durable costs: the journal's own log, and SQLite in its place."""

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from audit_operator.receiver.journal import Disk, Entry, Log, blocks
from bench.table import Row

_EVENTS = 400
_COMMITS = 300
_ENTRIES = [
    Entry(
        f"c8df45f7-cec2-4b4a-a728-{n:012}",
        "ResponseComplete",
        "2026-11-23T04:33:04.343515Z",
        os.urandom(925).hex().encode(),
    )
    for n in range(_EVENTS)
]


def run() -> Iterator[Row]:
    """Some seconds, on the disk of the folder for temporary files."""
    for name, make in (("own log", _own), ("SQLite, a row per event", _rows), ("SQLite, a row per POST", _row)):
        folder = Path(tempfile.mkdtemp(prefix="bench-journal-"))
        try:
            commit = make(folder)
            commit()
            seconds, begun = [], time.process_time()
            for _ in range(_COMMITS):
                start = time.perf_counter()
                commit()
                seconds.append(time.perf_counter() - start)
            spent = time.process_time() - begun
        finally:
            shutil.rmtree(folder)
        seconds.sort()
        yield Row(f"journal: an event of 1.85 kB, {name}", spent / _COMMITS / _EVENTS * 1e6, "µs")
        yield Row(f"journal: a commit of 400, 99 % within, {name}", seconds[int(_COMMITS * 0.99)] * 1000, "ms")


def _own(folder: Path) -> Callable[[], object]:
    log = Log(folder, Disk())
    log.open()

    def commit() -> None:
        assert not log.append([blocks("kube-apiserver", _ENTRIES)])

    return commit


def _database(folder: Path) -> sqlite3.Connection:
    database = sqlite3.connect(folder / "journal.db", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE events (sequence INTEGER PRIMARY KEY, sink INTEGER, event BLOB)")
    return database


def _rows(folder: Path) -> Callable[[], object]:
    return _inserting(_database(folder), lambda: [(msgspec.msgpack.encode(entry),) for entry in _ENTRIES])


def _row(folder: Path) -> Callable[[], object]:
    return _inserting(_database(folder), lambda: [(msgspec.msgpack.encode(_ENTRIES),)])


def _inserting(database: sqlite3.Connection, rows: Callable[[], list[tuple[bytes]]]) -> Callable[[], object]:
    def commit() -> None:
        database.execute("BEGIN")
        database.executemany("INSERT INTO events (sink, event) VALUES (1, ?)", rows())
        database.execute("COMMIT")

    return commit
