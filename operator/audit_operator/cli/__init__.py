"""The command line. Reads files, calls the pure core, prints; the only layer that talks to a person.

`app` declares commands and options; every command lives in the module of its name. `inputs` reads, `output` writes,
`errors` says what went wrong. Imports of what takes long stand inside functions: start-up time is a promise.
"""

import os
import sys


def main() -> None:
    """Console script ``audit-operator``: exits with the command's code."""
    from audit_operator.cli.app import app
    from audit_operator.cli.errors import BROKEN_PIPE

    for stream in (sys.stdout, sys.stderr):
        # Names of files and users may hold what the terminal's encoding does not know.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
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
