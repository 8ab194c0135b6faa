"""Whoever causes log lines does not fill the log, nor write it."""

import logging

import pytest

from audit_operator.net import throttling
from audit_operator.net.throttling import ThrottledLog


def test_a_reason_is_logged_once_a_minute_with_how_often_it_was_not(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(throttling.time, "monotonic", lambda: now)
    log = ThrottledLog(logging.getLogger("test"))
    for _ in range(1000):
        log.report("one", "refused: %s", "this")
    log.report("another", "refused: %s", "that")
    now += 61
    log.report("one", "refused: %s", "this")
    assert caplog.messages == [
        "refused: this",
        "refused: that",
        "refused: this (999 more since the last line about this)",
    ]


def test_a_stranger_writes_no_lines_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    ThrottledLog(logging.getLogger("test")).report("one", "refused: %s", "x\nERROR all is lost %s" + "y" * 1000)
    (message,) = caplog.messages
    assert "\n" not in message
    assert len(message) < 300
