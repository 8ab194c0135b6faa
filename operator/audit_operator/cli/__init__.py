"""The command line. Reads files, calls the pure core, prints; the only layer that talks to a person.

`app` declares commands and options; every command lives in the module of its name. `inputs` reads, `output` writes,
`errors` says what went wrong. Imports of what takes long stand inside functions: start-up time is a promise.
"""

import os
import sys
from typing import Final

_NO_HOME: Final = "/nonexistent"  # where Debian's nobody is at home


def main() -> None:
    """Console script ``audit-operator``: exits with the command's code."""
    from audit_operator.cli.app import app
    from audit_operator.cli.errors import BROKEN_PIPE

    _settle_home()
    for stream in (sys.stdout, sys.stderr):
        # Names of files and users may hold what the terminal's encoding does not know.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # API servers record bodies of 10,000 levels; the JSON library takes as many as Python allows.
    sys.setrecursionlimit(20_000)
    code: object = 0
    try:
        app(prog_name="audit-operator")
    except SystemExit as end:
        code = end.code
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = BROKEN_PIPE
    if code == BROKEN_PIPE:
        # Python flushes once more when it ends, and would complain that nobody listens.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)  # type: ignore[arg-type]


def _settle_home() -> None:
    """Set HOME where nothing tells it, neither the environment nor /etc/passwd, which is so in many a container.

    Libraries look there for configuration that may be missing, and some do not even load without: importing
    kubernetes.aio.config raises RuntimeError.
    """
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - Path.home() raises what this asks
        os.environ["HOME"] = _NO_HOME
