"""Events that API servers send again because they did not get, or did not wait for, the answer."""

import itertools
from array import array
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import asyncio

Moment = int
"""64 bits of (API server, auditID, stage, stageTimestamp)."""

Key = tuple[Moment, int]
"""128 bits: the `Moment`, then the event's bytes, which API servers repeat as they were. Hashes of str and bytes are
keyed per process, so that no client can look for two events with one key.
"""

_GENERATION: Final = 1 << 18
"""Events, twice that many are remembered: three API servers at their ceiling send so many in 22 to 44 s, and the first
repetition comes after 10 s, or after 30 s without an answer and 10 more.
"""

_SLOTS: Final = 4 * _GENERATION
"""A quarter of them is taken at most, so that the first one that is looked at is mostly free. With 16 bytes per event
that is 16 MB for both generations, from the start: sets of integers took 40 MB, and grew into them while sinks were
down.
"""

_LAST: Final = _SLOTS - 1

_HALF_HELD: Final = 100_000
"""Events known to be in some sinks' logs only. They come from a crash or a failing disk, and are at most what the
receiver had not answered yet.
"""


def moment(server: str, audit_id: str, stage: str, timestamp: str) -> Moment:
    """What nearly tells an event from all others. auditID alone does not: clients choose it, and who sends enough pairs
    of requests with one auditID has two in one microsecond in the end.
    """
    return hash((server, audit_id, stage, timestamp))


def key(moment: Moment, event: bytes) -> Key:
    """What tells an event from all others."""
    return moment, hash(event)


class _Generation(NamedTuple):
    """A set of keys in a fixed amount of memory: a hash table with open addressing. A key's place follows from the
    event's bytes: who repeats one auditID does not make others search for long.

    ``slots``: numbers of keys, from 1 on, 0 where there is none; ``moments``, ``events``: keys by number.
    """

    slots: "array[int]"
    moments: "array[int]"
    events: "array[int]"


def _generation() -> _Generation:
    events = array("q", (0,)) * (_GENERATION + 1)
    return _Generation(array("I", (0,)) * _SLOTS, events[:], events)


class Duplicates:
    """What was taken lately, is being taken now, or is in some logs and not in others."""

    def __init__(self) -> None:
        # The young one, of so many keys, then the old one.
        self._generations = (_generation(), _generation())
        self._size = 0
        # By moment: a log has what its sink gets of an event, and that is less than what came.
        self._held: dict[Moment, frozenset[str]] = {}
        self.pending: dict[Key, asyncio.Future[bool]] = {}
        """Being written: the future says whether it was."""

    def taken(self, key: Key) -> bool:
        """Whether all sinks' logs have it."""
        moment, event = key
        young, old = self._generations
        first = event & _LAST
        if not (young[0][first] or old[0][first]):
            return False  # nearly always
        for slots, moments, events in (young, old):
            at = first
            while number := slots[at]:
                if events[number] == event and moments[number] == moment:
                    return True
                at = (at + 1) & _LAST
        return False

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
        """All logs that want them have them. None of them was taken before."""
        left = iter(keys)
        while some := tuple(itertools.islice(left, _GENERATION - self._size)):
            slots, moments, events = self._generations[0]
            for number, (moment, event) in enumerate(some, start=self._size + 1):
                at = event & _LAST
                while slots[at]:
                    at = (at + 1) & _LAST
                slots[at] = number
                moments[number] = moment
                events[number] = event
            self._size += len(some)
            if self._size == _GENERATION:
                young, old = self._generations
                # What has no slot is not in it.
                self._generations = (old._replace(slots=array("I", (0,)) * _SLOTS), young)
                self._size = 0
        if self._held:
            for moment, _ in keys:
                self._held.pop(moment, None)
