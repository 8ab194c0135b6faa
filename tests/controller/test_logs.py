"""Logs: lines that programs read, and a level that changes while running."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit_operator.controller import logs


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_is_one_json_object_with_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")
    logging.getLogger("x").info("applied\nit", extra={"resource": "ConfigMap a", "revision": "1234"})
    logging.getLogger("x").debug("not said")
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert (found["level"], found["message"]) == ("INFO", "applied\nit")
    assert (found["resource"], found["revision"]) == ("ConfigMap a", "1234")


def test_a_terminal_is_told_what_it_is_about_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("text", "info")
    logging.getLogger("x").info("applied", extra={"resource": "ConfigMap a"})
    assert capsys.readouterr().err.endswith("ConfigMap a: applied\n")


def test_the_level_follows_its_file_and_nonsense_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "level"
    logs.configure("json", "info")

    async def through() -> list[int]:
        task = asyncio.create_task(logs.follow(file, period=0.01))
        seen = []
        for text in (None, "debug\n", "loud", "ERROR", "\xff", "warning"):
            if text is not None:
                file.write_text(text, encoding="latin-1")
            await asyncio.sleep(0.2)
            seen.append(logging.getLogger().level)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return seen

    info, debug, error, warning = logging.INFO, logging.DEBUG, logging.ERROR, logging.WARNING
    assert asyncio.run(through()) == [info, debug, debug, error, error, warning]
