"""Events that API servers send again because they did not get, or did not wait for, the answer."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

Key = int
"""128 bits: the `Moment`, then the event's bytes, which API servers repeat as they were. Hashes of str and bytes are
keyed per process, so that no client can look for two events with one key.
"""

Moment = int
"""64 bits of (API server, auditID, stage, stageTimestamp)."""

_GENERATION: Final = 1 << 18
"""Events, twice that many are remembered: three API servers at their ceiling send so many in 22 to 44 s, and the first
repetition comes after 10 s, or after 30 s without an answer and 10 more. 75 bytes each: at most 40 MB.
"""

_HALF_HELD: Final = 100_000
"""Events known to be in some sinks' logs only. They come from a crash or a failing disk, and are at most what the
receiver had not answered yet.
"""


_64_BITS: Final = 0xFFFFFFFFFFFFFFFF


def moment(server: str, audit_id: str, stage: str, timestamp: str) -> Moment:
    """What nearly tells an event from all others. auditID alone does not: clients choose it, and who sends enough pairs
    of requests with one auditID has two in one microsecond in the end.
    """
    return hash((server, audit_id, stage, timestamp)) & _64_BITS


def key(moment: Moment, event: bytes) -> Key:
    """What tells an event from all others."""
    return (moment << 64) | (hash(event) & _64_BITS)


class Duplicates:
    """What was taken lately, is being taken now, or is in some logs and not in others."""

    def __init__(self) -> None:
        self._young: set[Key] = set()
        self._old: set[Key] = set()
        # By moment: a log has what its sink gets of an event, and that is less than what came.
        self._held: dict[Moment, frozenset[str]] = {}
        self.pending: dict[Key, asyncio.Future[bool]] = {}
        """Being written: the future says whether it was."""

    def taken(self, key: Key) -> bool:
        """Whether all sinks' logs have it."""
        return key in self._young or key in self._old

    def held(self, moment: Moment) -> frozenset[str]:
        """The sinks whose logs have it, although it was not answered for."""
        return self._held.get(moment, frozenset()) if self._held else frozenset()

    def hold(self, moments: Iterable[Moment], sink: str) -> None:
        """They are in this sink's log, whatever became of the others."""
        for each in moments:
            if len(self._held) >= _HALF_HELD:
                self._held.clear()
            self._held[each] = self.held(each) | {sink}

    def take(self, keys: Collection[Key]) -> None:
        """All logs that want them have them."""
        if len(self._young) >= _GENERATION:
            self._young, self._old = set(), self._young
        self._young.update(keys)
        if self._held:
            for each in keys:
                self._held.pop(each >> 64, None)
