"""How often something may happen: some times at once, then at a rate. Pure: the clock is an argument."""


class Pace:
    """A token bucket; ``burst`` at once, then ``per_second``. ``now`` is of a monotonic clock, in seconds."""

    def __init__(self, burst: int, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._left = float(burst)
        self._since: float | None = None

    def allows(self, now: float) -> bool:
        """Whether it may happen once more; it counts then."""
        self._refill(now)
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def delay(self, now: float) -> float:
        """Seconds to wait before it happens once more, which it will."""
        self._refill(now)
        self._left -= 1
        return max(-self._left / self._per_second, 0.0)

    def _refill(self, now: float) -> None:
        if self._since is not None:
            self._left = min(self._burst, self._left + (now - self._since) * self._per_second)
        self._since = now
