"""docs/cli.md, as the commands describe themselves: ``python -m audit_operator.cli.manual``."""

import inspect
import sys
from collections.abc import Iterator
from typing import Any, Final

import typer

from audit_operator.cli.app import app

_HEAD: Final = """\
<!-- Generated from operator/audit_operator/cli/app.py by `make generate`; do not edit. -->
# Command line

Everything but `run`, `receive` and `verify` of a bucket works without a cluster and without a network. Answers go to
standard output, everything else to standard error. `-o json` gives every answer to programs.

| exit code | means |
|---|---|
| 0 | all is well |
| 1 | it ran and found something: findings, differences, failed tests, resources that are not valid or do not count |
| 2 | bad usage, or input that cannot be read; the message names file, line, field, value and the way out |
| 130, 141 | interrupted; nobody reads the answer any more |

`-f` takes AuditPolicies, AuditSinks, AuditBackends and API servers' policy files alike: files, folders with all below
them (`*.yaml`, `*.yml`, `*.json`), `-` for standard input; several documents in a file, `kind: List`, JSON. Namespaces
among them say which labels namespaces have; everything else is left aside. No file above 16 MiB is read.
`audit-operator --debug …` shows where a bug is.
"""


def manual() -> str:
    """The page."""
    group: Any = typer.main.get_command(app)
    lines = [_HEAD]
    for name, command in _commands(group):
        lines += [f"## {name}", ""]
        for paragraph in _description(command):
            lines += [paragraph, ""]
        lines += ["| argument | means |", "|---|---|", *map(_row, command.params), ""]
        lines += ["```sh", *_examples(command), "```", ""]
    return "\n".join(lines)


def _commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command by its full name; those of a group one after the other."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def _description(command: Any) -> Iterator[str]:
    """The help, with what must keep its lines as code."""
    for paragraph in inspect.cleandoc(command.help).split("\n\n"):
        _, kept, block = paragraph.partition("\b\n")
        yield f"```yaml\n{block}\n```" if kept else paragraph


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"`{parameter.metavar}{'...' if parameter.nargs != 1 else ''}`"
    else:
        name = ", ".join(f"`{option}`" for option in sorted(parameter.opts, key=len))
        name += f" `{parameter.metavar}`" if parameter.metavar else ""
    default = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    ending = f" Default: `{default}`." if default else ""
    return f"| {_cell(name)} | {_cell(parameter.help + ending)} |"


def _cell(text: str) -> str:
    """Markdown takes a bar for the next cell, in code too."""
    return text.replace("|", "\\|")


def _examples(command: Any) -> list[str]:
    return [line.removeprefix("  ") for line in command.epilog.splitlines()[2:]]


if __name__ == "__main__":
    sys.stdout.write(manual())
