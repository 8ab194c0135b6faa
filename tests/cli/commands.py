"""Runs the command line: in this process for most tests, as the real console script where the process is the point.

UPDATE_GOLDEN=1 writes what is answered now; look at the difference before committing it.
"""

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from typer.testing import CliRunner

from audit_operator.cli.app import app

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DATA = ROOT / "tests/data"
SCRIPT = Path(sys.executable).parent / "audit-operator"
CLUSTER = DATA / "cli/cluster.yaml"
DEMO_SET = tuple(
    argument for name in ("namespaces.yaml", "platform", "tenants") for argument in ("-f", str(EXAMPLES / name))
)


class Result(NamedTuple):
    """What a person sees, and what a program sees."""

    code: int
    out: str
    err: str


def call(*arguments: str | Path, stdin: bytes | str = b"") -> Result:
    """A command in this process. What it does not catch itself, the test does not either."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin, catch_exceptions=False)
    return Result(result.exit_code, result.stdout, result.stderr)


def spawn(*arguments: str | Path, stdin: bytes = b"", **options: object) -> Result:
    """A command as its own process."""
    process = subprocess.run(
        [SCRIPT, *map(str, arguments)], input=stdin, capture_output=True, timeout=60, check=False, **options
    )
    return Result(process.returncode, process.stdout.decode(), process.stderr.decode())


def on_terminal(*arguments: str | Path, **environment: str) -> Result:
    """A command as its own process on a terminal, to which all it says goes."""
    main, terminal = pty.openpty()
    inherited = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    process = subprocess.Popen(
        [SCRIPT, *map(str, arguments)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=inherited | {"TERM": "xterm"} | environment,
    )
    os.close(terminal)
    said = b""
    # Linux ends the reading with an error when the process has closed its end.
    with contextlib.suppress(OSError):
        while data := os.read(main, 1 << 16):
            said += data
    os.close(main)
    return Result(process.wait(60), said.decode(), "")


def write(path: Path, text: str | bytes) -> Path:
    """The file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def assert_golden(name: str, text: str) -> None:
    """The text is that of tests/data/cli/``name``, but for blanks at the ends of lines."""
    path = DATA / "cli" / name
    lines = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(lines, encoding="utf-8")
    assert lines == path.read_text(encoding="utf-8"), "UPDATE_GOLDEN=1 accepts it"
