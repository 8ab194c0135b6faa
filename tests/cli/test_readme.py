"""What README.md shows is what the commands answer."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from commands import EXAMPLES, ROOT, call

README = (ROOT / "README.md").read_text(encoding="utf-8")


class Shown(NamedTuple):
    """A command of a console block, and the lines of its answer that are shown; ``…`` stands for some left out."""

    command: str
    answer: tuple[str, ...]


def shown() -> Iterator[Shown]:
    for block in re.findall(r"^```console\n(.*?)^```$", README, re.DOTALL | re.MULTILINE):
        for command, answer in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            yield Shown(command, tuple(answer.splitlines()))


def commands(text: str) -> list[str]:
    return re.findall(r"^audit-operator .*$", text, re.MULTILINE)


def run(command: str) -> tuple[int, list[str]]:
    """Exit code and lines of the answer, which goes to a file where the command says so."""
    line, _, file = command.partition(" > ")
    program, *arguments = shlex.split(line)
    assert program == "audit-operator"
    result = call(*arguments)
    if file:
        Path(file).write_text(result.out, encoding="utf-8")
    return result.code, [] if file else [text.rstrip() for text in result.out.splitlines()]


@pytest.fixture(autouse=True)
def beside_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(EXAMPLES)


@pytest.mark.parametrize("example", list(shown()), ids=lambda example: example.command[:60])
def test_an_answer_that_is_shown_is_the_answer(example: Shown) -> None:
    code, lines = run(example.command)
    assert code in (0, 1)
    rest = iter(lines)
    for line in example.answer:
        # Lines are left out with and without a mark, but what is shown is there, and in this order.
        assert line == "…" or line.rstrip() in rest, f"{line!r} is not, or not there, in:\n" + "\n".join(lines)


def test_every_command_of_the_quickstart_is_shown_with_its_answer() -> None:
    names = {example.command.split()[1] for example in shown() if example.answer or " > " in example.command}
    assert names == {"demo", "render", "lint", "explain", "diff", "replay", "import", "test"}


def test_what_is_imported_is_what_is_tested_next() -> None:
    run("audit-operator import examples/policy-files/today.yaml > auditpolicy.yaml")
    assert run("audit-operator diff examples/policy-files/today.yaml auditpolicy.yaml")[0] in (0, 1)
    assert run("audit-operator lint auditpolicy.yaml")[0] in (0, 1)


@pytest.mark.parametrize("command", commands((EXAMPLES / "README.md").read_text(encoding="utf-8")))
def test_what_the_examples_ask_to_try_runs(command: str) -> None:
    assert run(command)[0] in (0, 1)
