"""What a person gave that cannot be worked with, said in one line: file, line, field, value, way out."""

from typing import Final

OK: Final = 0
FINDINGS: Final = 1
"""It ran, and found something: findings, failed tests, differences, resources that are not valid."""
TROUBLE: Final = 2
"""It did not run: bad usage, or input that cannot be read."""
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
"""As of a program that a signal ended: 128 and SIGINT or SIGPIPE."""


class CliError(Exception):
    """Ends the command with exit code 2. ``line`` counts from 1; 0 and empty texts are left out."""

    def __init__(
        self, message: str, *, file: str = "", line: int = 0, field: str = "", value: str = "", way_out: str = ""
    ) -> None:
        self.file, self.line, self.field = file, line, field
        where = f"{file}:{line}: " if file and line else f"{file}: " if file else f"line {line}: " if line else ""
        subject = f"{field}: " if field else ""
        given = f"{value} " if value else ""
        ending = f"; {way_out}" if way_out else ""
        self.detail = f"{subject}{given}{message}{ending}"
        super().__init__(f"{where}{self.detail}")


def reason(error: OSError) -> str:
    """Why the operating system refused, and what to do about it."""
    match error:
        case FileNotFoundError():
            return "does not exist; check the path"
        case PermissionError():
            return "may not be read or written by you; check its permissions"
        case IsADirectoryError():
            return "is a folder; name a file in it"
        case NotADirectoryError():
            return "leads through something that is no folder; check the path"
        case _:
            return (error.strerror or type(error).__name__).lower()
