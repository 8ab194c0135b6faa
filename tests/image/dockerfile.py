"""A Dockerfile as its builder reads it: stages and their steps, and which files .dockerignore sends along."""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Step(NamedTuple):
    """An instruction and what stands after it, on one line."""

    instruction: str
    text: str

    @property
    def options(self) -> dict[str, str]:
        """Such as ``--from=build`` of a COPY."""
        found = (word.removeprefix("--").partition("=") for word in self.text.split() if word.startswith("--"))
        return {name: value for name, _, value in found}

    @property
    def words(self) -> list[str]:
        """What is no option."""
        return [word for word in self.text.split() if not word.startswith("--")]


class Stage(NamedTuple):
    """What a FROM begins; ``name``: empty for one that no other may copy from."""

    base: str
    name: str
    steps: list[Step]

    def of(self, instruction: str) -> list[Step]:
        """Its steps of this kind."""
        return [step for step in self.steps if step.instruction == instruction]


def read(path: Path) -> tuple[dict[str, str], list[Stage]]:
    """The ARGs before the first stage, with which its bases are filled in, and the stages."""
    # Comments are gone before lines are joined, as with Docker.
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in joined.splitlines():
        instruction, _, text = line.strip().partition(" ")
        step = Step(instruction.upper(), text.strip())
        if step.instruction == "FROM":
            base, _, name = step.text.partition(" AS ")
            stages.append(Stage(re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], base), name, []))
        elif stages:
            stages[-1].steps.append(step)
        else:
            assert step.instruction == "ARG", step
            name, _, value = step.text.partition("=")
            arguments[name] = value
    return arguments, stages


def sent(root: Path, ignore: Path) -> set[str]:
    """The files below ``root`` that its builder gets: what is not ignored, the last pattern that matches decides."""
    lines = [line.strip() for line in ignore.read_text().splitlines()]
    patterns = [line for line in lines if line and not line.startswith("#")]
    opened = {pattern[1:].split("/")[0] for pattern in patterns if pattern.startswith("!")}
    tops = [path for path in root.iterdir() if path.name in opened or not _ignored(path.name, patterns)]
    files = (each for top in tops for each in (top.rglob("*") if top.is_dir() else [top]) if each.is_file())
    names = (file.relative_to(root).as_posix() for file in files)
    return {name for name in names if not _ignored(name, patterns)}


def _ignored(name: str, patterns: Iterable[str]) -> bool:
    result = False
    for pattern in patterns:
        if any(_compiled(pattern.removeprefix("!")).fullmatch(part) for part in _with_parents(name)):
            result = not pattern.startswith("!")
    return result


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts) + 1))


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        re.sub(r"\*\*/|\*\*|\*|\?|[^*?]+", lambda found: words.get(found[0], re.escape(found[0])), pattern)
    )
