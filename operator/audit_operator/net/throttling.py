"""Log lines that somebody else causes: one a minute for each reason, however often it happens."""

import logging
import time
from typing import Final

_SECONDS: Final = 60.0
_REASONS: Final = 64
"""Remembered at the same time; the reasons are ours, so there are not that many."""


class ThrottledLog:
    """Warnings that strangers may cause as often as they like."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._last: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def report(self, reason: str, message: str, *details: object) -> None:
        """Log ``message``, of which ``details`` are shortened, unless this ``reason`` was logged within a minute."""
        now = time.monotonic()
        if now - self._last.get(reason, -_SECONDS) < _SECONDS:
            self._suppressed[reason] = self._suppressed.get(reason, 0) + 1
            return
        if len(self._last) >= _REASONS:
            self._last.clear()
        self._last[reason] = now
        more = self._suppressed.pop(reason, 0)
        again = f" ({more} more since the last line about this)" if more else ""
        self._logger.warning(f"{message}%s", *(_shortened(each) for each in details), again)


def _shortened(detail: object) -> str:
    text = str(detail)
    # No line of a log begins or ends where a stranger wants it to.
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 200 else f"{text[:200]}…"
