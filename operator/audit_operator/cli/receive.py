"""`audit-operator receive`: from options to the running receiver."""

import logging
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from audit_operator.cli.errors import CliError


def receive(*, program: str, journal: str, listen: str, certificates: str, metrics: str) -> None:
    """Run until told to end. Raises CliError for what cannot be begun with."""
    try:
        from audit_operator.receiver.receive import Options, StartError, receiver_name
        from audit_operator.receiver.receive import receive as run
    except ModuleNotFoundError as error:
        raise CliError(
            f"needs {error.name}, which is not installed", way_out="pip install 'audit-operator[receiver]'"
        ) from None

    _log()
    options = Options(
        program=Path(program),
        journal=Path(journal),
        listen=_address("--listen", listen),
        certificates=Path(certificates),
        metrics=_address("--metrics", metrics),
        receiver=receiver_name(),
        # Beside the journal, on the same volume: the program's limit counts both.
        files=Path(journal).parent / "files",
        pod=os.environ.get("POD_UID", ""),
    )
    try:
        run(options)
    except StartError as error:
        raise CliError(str(error)) from None


_ADDRESS = re.compile(r"\[?([^\[\]]+)\]?:(\d{1,5})")


def _address(option: str, text: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        raise CliError("is no address", field=option, value=repr(text), way_out="write for example 0.0.0.0:8443")
    return match[1], int(match[2])


class _JsonLines(logging.Formatter):
    """One JSON object a line, with the keys that the operator's own log has."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def _log() -> None:
    handler = logging.StreamHandler(sys.stderr)
    if sys.stderr.isatty():
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    else:
        handler.setFormatter(_JsonLines())
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger("audit_operator").setLevel(logging.INFO)
