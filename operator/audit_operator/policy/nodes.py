"""Documents as trees of nodes that know where they stand in their text, and the errors and limits of reading them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

Scalar: TypeAlias = str | int | float | bool | None
Path: TypeAlias = tuple[str | int, ...]
"""Where a value stands in a document: keys and list indexes, such as ``("spec", "rules", 3, "verbs", 0)``."""


class Limits(msgspec.Struct, frozen=True):
    """How much is read of a text before it is refused.

    ``size`` in characters (bytes, if the text is bytes); ``nodes`` counts every value, aliases expanded.
    """

    size: int = 16 * 1024 * 1024
    depth: int = 100
    nodes: int = 1_000_000


LIMITS: Final = Limits()


class TextError(ValueError):
    """A text that cannot be read.

    ``line`` and ``column`` count from 1 and are 0 when the whole text is meant. ``server`` is what the API server would
    say of it; empty when the refusal is ours alone (a limit).
    """

    def __init__(self, message: str, *, line: int = 0, column: int = 0, server: str = "") -> None:
        super().__init__(f"line {line}, column {column}: {message}" if line else message)
        self.message = message
        self.line = line
        self.column = column
        self.server = server


class Field(msgspec.Struct, frozen=True, gc=False):
    """A key's value, and where the key stands."""

    line: int
    column: int
    node: "Node"


class Overridden(msgspec.Struct, frozen=True, gc=False):
    """An earlier value of a key that a later one replaced. ``merged``: one of the two came through ``<<``."""

    key: str
    line: int
    column: int
    node: "Node"
    merged: bool


class Node(msgspec.Struct, eq=False, gc=False):
    """A value and where it stands (from 1; 0 when it was never in a text). Aliases share what they refer to."""

    line: int
    column: int
    content: Scalar | list["Node"] | dict[str, Field]
    overridden: tuple[Overridden, ...] = ()

    @property
    def value(self) -> Any:
        """The value as plain dict, list, str, int, float, bool and None: fresh containers, safe to change."""
        content = self.content
        if isinstance(content, dict):
            return {key: field.node.value for key, field in content.items()}
        if isinstance(content, list):
            return [item.value for item in content]
        return content

    def find(self, path: Path) -> "Node | None":
        """The node at ``path``, None where there is none."""
        node: Node = self
        for step in path:
            field = node._step(step)
            if field is None:
                return None
            node = field.node
        return node

    def at(self, path: Path) -> tuple[int, int]:
        """Line and column of ``path``: its key's, or the list item's. Where nothing is there: of the nearest above."""
        line, column, node = self.line, self.column, self
        for step in path:
            field = node._step(step)
            if field is None:
                break
            line, column, node = field.line, field.column, field.node
        return line, column

    def walk(self) -> Iterator[tuple[Path, "Node"]]:
        """Every node with its path, this one first, in the order of the text."""
        stack: list[tuple[Path, Node]] = [((), self)]
        while stack:
            path, node = stack.pop()
            yield path, node
            if isinstance(node.content, dict):
                stack.extend(reversed([((*path, key), field.node) for key, field in node.content.items()]))
            elif isinstance(node.content, list):
                stack.extend(reversed([((*path, index), item) for index, item in enumerate(node.content)]))

    def _step(self, step: str | int) -> Field | None:
        content = self.content
        if isinstance(content, dict):
            return content.get(step) if isinstance(step, str) else None
        if isinstance(content, list) and isinstance(step, int) and 0 <= step < len(content):
            item = content[step]
            return Field(item.line, item.column, item)
        return None


def path_text(path: Path) -> str:
    """A path as people write it: ``spec.rules[3].verbs[0]``."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def node_of(value: object, *, depth: int = LIMITS.depth) -> Node:
    """A node tree without positions of a value that is already parsed: mappings, sequences and scalars.

    Raises TextError for other types, keys that are no strings and nesting deeper than ``depth``.
    """
    if depth < 0:
        raise TextError(f"nested deeper than {LIMITS.depth} levels")
    if isinstance(value, Mapping):
        fields: dict[str, Field] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise TextError(f"key {key!r} is of type {type(key).__name__}: keys are strings")
            fields[key] = Field(0, 0, node_of(item, depth=depth - 1))
        return Node(0, 0, fields)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return Node(0, 0, [node_of(item, depth=depth - 1) for item in value])
    if value is None or isinstance(value, str | bool | int | float):
        return Node(0, 0, value)
    raise TextError(f"a value of type {type(value).__name__} cannot be part of a document")
