"""How many events tenants' policies may ask for: a bucket of tokens for each namespace."""

import time
from collections.abc import Callable, Collection
from typing import Final

BURST_SECONDS: Final = 60.0
"""API servers hold events back for up to webhook.batch.maxWait (30 s) and send them together: an even flow must fit,
from several of them.
"""


class Rates:
    """Not safe for concurrent use from several threads. ``clock``: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rate: float | None = None
        self._buckets: dict[str, tuple[float, float]] = {}

    def allow(self, per_second: int | None, namespaces: Collection[str]) -> None:
        """From now on so many for each of these namespaces; None: any number. What they have used stays used."""
        self._rate = per_second
        self._buckets = {name: bucket for name, bucket in self._buckets.items() if name in namespaces}

    def admits(self, namespace: str) -> bool:
        """Whether one more event of this namespace is within what it may have; it counts then."""
        if self._rate is None:
            return True
        now, most = self._clock(), self._rate * BURST_SECONDS
        tokens, since = self._buckets.get(namespace, (most, now))
        tokens = min(most, tokens + (now - since) * self._rate)
        admitted = tokens >= 1.0
        self._buckets[namespace] = (tokens - admitted, now)
        return admitted
