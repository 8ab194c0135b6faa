"""Logs: one JSON object a line, or text for a terminal; the level can be changed while running."""

import asyncio
import logging
import sys
from pathlib import Path
from typing import Final, Literal

from pythonjsonlogger.json import JsonFormatter

LEVELS: Final = ("debug", "info", "warning", "error")

logger = logging.getLogger(__name__)

_PERIOD: Final = 5.0  # seconds between looks at the file with the level

# What these say at info is about handlers, not about resources.
_TALKATIVE: Final = ("kopf", "aiohttp.access", "asyncio")


def configure(form: Literal["json", "text"], level: str) -> None:
    """Log to standard error from now on."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(
            JsonFormatter(
                "%(asctime)s %(levelname)s %(name)s %(message)s",
                rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
                datefmt="%Y-%m-%dT%H:%M:%S%z",
            )
        )
    else:
        handler.setFormatter(_Text("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    logging.getLogger().handlers[:] = [handler]
    set_level(level)


class _Text(logging.Formatter):
    """For a terminal: what the message is about comes first, as JSON has it in a field."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        resource = getattr(record, "resource", "")
        if resource:
            record.message = f"{resource}: {record.message}"
        return super().formatMessage(record)


def set_level(level: str) -> None:
    """The level of the operator's own messages; libraries are heard at info only when debugging."""
    wanted = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger().setLevel(wanted)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(wanted, logging.WARNING) if wanted > logging.DEBUG else wanted)


async def follow(file: Path, period: float = _PERIOD) -> None:
    """Keep the level that the file says, for ever; a file that says no level, or is not there, changes nothing."""
    current = ""
    while True:
        try:
            said = (await asyncio.to_thread(file.read_text)).strip().lower()
        except (OSError, UnicodeDecodeError):
            said = current
        if said != current and said in LEVELS:
            set_level(said)
            logger.warning("log level is now %s", said)
        elif said != current:
            logger.warning("%s says %r, which is no log level; write one of %s", file, said[:20], ", ".join(LEVELS))
        current = said
        await asyncio.sleep(period)
