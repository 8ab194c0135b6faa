"""How many events tenants' policies may ask for, and what these may cost: buckets of tokens for each namespace."""

import time
from collections.abc import Callable, Collection
from typing import Final

BURST_SECONDS: Final = 60.0
"""API servers hold events back for up to webhook.batch.maxWait (30 s) and send them together: an even flow must fit,
from several of them.
"""

WORK: Final = 0.1
WORK_TOGETHER: Final = 0.3
"""Seconds of the processor in a second, for one namespace and for all: for cutting and redacting what only they ask
for. An event takes 10 to 100 µs, one with many redactions and large bodies up to 50 ms.
"""
WORK_BURST_SECONDS: Final = 10.0
"""So that API servers wait for no answer longer than some seconds."""


class Rates:
    """``clock``: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._events: float | None = None
        self._fair = WORK_TOGETHER
        self._together = _Bucket(WORK_TOGETHER * WORK_BURST_SECONDS, clock())
        self._buckets: dict[str, tuple[_Bucket, _Bucket, _Bucket]] = {}

    def allow(self, per_second: int | None, namespaces: Collection[str]) -> None:
        """From now on so many for each of these namespaces; None: any number. What they have used stays used."""
        self._events = per_second
        self._fair = WORK_TOGETHER / max(1, len(namespaces))
        self._buckets = {name: buckets for name, buckets in self._buckets.items() if name in namespaces}

    def admits(self, namespace: str) -> bool:
        """Whether one more event of this namespace is within what it may have; it counts then.

        When all together have used up what is for all, each still has an equal part of it.
        """
        if self._events is None:
            return True
        now = self._clock()
        events, work, fair = self._of(namespace, now)
        if events.fill(now, self._events, BURST_SECONDS) < 1.0 or work.fill(now, WORK, WORK_BURST_SECONDS) <= 0.0:
            return False
        together = self._together.fill(now, WORK_TOGETHER, WORK_BURST_SECONDS)
        if together <= 0.0 and fair.fill(now, self._fair, WORK_BURST_SECONDS) <= 0.0:
            return False
        events.tokens -= 1.0
        return True

    def spend(self, namespace: str, seconds: float) -> None:
        """What an event of this namespace has cost."""
        _, work, fair = self._of(namespace, self._clock())
        for bucket in (work, fair, self._together):
            bucket.tokens -= seconds

    def _of(self, namespace: str, now: float) -> "tuple[_Bucket, _Bucket, _Bucket]":
        found = self._buckets.get(namespace)
        if found is None:
            full = ((self._events or 0.0) * BURST_SECONDS, WORK * WORK_BURST_SECONDS, self._fair * WORK_BURST_SECONDS)
            events, work, fair = (_Bucket(tokens, now) for tokens in full)
            found = self._buckets[namespace] = (events, work, fair)
        return found


class _Bucket:
    __slots__ = ("_since", "tokens")

    def __init__(self, tokens: float, since: float) -> None:
        self.tokens = tokens
        self._since = since

    def fill(self, now: float, rate: float, burst: float) -> float:
        """What is in it now."""
        self.tokens = min(rate * burst, self.tokens + (now - self._since) * rate)
        self._since = now
        return self.tokens
