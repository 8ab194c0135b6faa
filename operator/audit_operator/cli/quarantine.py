"""`audit-operator quarantine`: what a receiver keeps because it could not be delivered."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from audit_operator.cli.errors import CliError, reason
from audit_operator.cli.output import bytes_text, print_json, print_json_line, printable

if TYPE_CHECKING:
    from audit_operator.receiver.quarantine import Held, Quarantine


def list_(journal: str, *, as_json: bool) -> None:
    """One line per entry."""
    quarantine = _quarantine(journal)
    entries = [(name, entry) for name in quarantine.names() for entry in quarantine.entries(name)]
    if as_json:
        print_json([{"sink": name, **_without_event(entry)} for name, entry in entries])
        return
    if not entries:
        sys.stdout.write("Nothing is in quarantine.\n")
    for name, entry in entries:
        size = bytes_text(entry.size)
        sys.stdout.write(f"{entry.id}  {entry.time}  {name}  {size}  {printable(entry.reason)}\n")


def show(journal: str, id_: str) -> None:
    """The entry with its event, as JSON. Raises CliError."""
    quarantine = _quarantine(journal)
    for name in quarantine.names():
        for entry in quarantine.entries(name):
            if entry.id == id_:
                print_json_line({"sink": name, **_without_event(entry), "event": msgspec.json.decode(entry.event)})
                return
    raise CliError(f"nothing with id {id_} is in quarantine", way_out="`audit-operator quarantine list` shows what is")


def retry(journal: str, sink: str, ids: list[str]) -> int:
    """Ask the receiver to deliver them again; how many. Raises CliError."""
    from audit_operator.receiver.quarantine import MALFORMED

    if sink == MALFORMED:
        raise CliError(
            "items that are no events cannot be delivered again", way_out="look at them with `quarantine show`"
        )
    quarantine = _quarantine(journal)
    try:
        return quarantine.ask_again(sink, frozenset(ids) or None)
    except OSError as error:
        raise CliError(reason(error), file=str(quarantine.path(sink))) from None


def _quarantine(journal: str) -> "Quarantine":
    try:
        from audit_operator.receiver.quarantine import Quarantine
    except ModuleNotFoundError as error:
        raise CliError(
            f"needs {error.name}, which is not installed", way_out="pip install 'audit-operator[receiver]'"
        ) from None
    folder = Path(journal)
    if not folder.is_dir():
        raise CliError("is no folder", field="--journal", value=journal, way_out="name the receiver's journal")
    return Quarantine(folder / "quarantine")


def _without_event(entry: "Held") -> dict[str, Any]:
    return {key: value for key, value in msgspec.structs.asdict(entry).items() if key != "event"}
