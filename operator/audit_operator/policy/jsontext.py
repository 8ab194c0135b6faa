"""JSON with positions and with duplicate keys kept apart; errors say what Go's JSON decoder says."""

import bisect
import json
import re
from collections.abc import Iterator
from typing import NoReturn

import msgspec

from audit_operator.policy.nodes import Field, Limits, Node, Overridden, Scalar, TextError

_NOT_SPACE = re.compile(r"[^ \t\r\n]|\Z")
_STRING_START = r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*'
_STRING = re.compile(_STRING_START + '"')
_UNFINISHED_STRING = re.compile(_STRING_START)
_NUMBER_OR_WORD = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
_WORDS: dict[str, Scalar] = {"true": True, "false": False, "null": None}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_INTEGER = 400
"""In digits. Anything longer is a float (infinite, in fact) as in Go, and never becomes a quadratic ``int()``."""


class _Open(msgspec.Struct, eq=False):
    """An array or object being read. ``key`` is the key, and where it stands, that waits for its value."""

    node: Node
    key: tuple[str, int, int] | None
    overridden: list[Overridden] = []

    def add(self, value: Node) -> None:
        content = self.node.content
        if isinstance(content, list):
            content.append(value)
        elif isinstance(content, dict) and self.key is not None:
            name, line, column = self.key
            if (earlier := content.get(name)) is not None:
                self.overridden.append(Overridden(name, earlier.line, earlier.column, earlier.node, merged=False))
            content[name] = Field(line, column, value)

    def closed(self) -> Node:
        self.node.overridden = tuple(self.overridden)
        return self.node


class JsonReader:
    """Reads JSON values out of ``text``, one after another, without recursion. Raises TextError only."""

    def __init__(self, text: str, limits: Limits) -> None:
        self._text = text
        self._limits = limits
        self._offset = 0
        self._nodes = 0
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]

    def only_value(self) -> Node:
        """The one value that the text holds."""
        node = self._value()
        if self._peek():
            self._unexpected("after top-level value")
        return node

    def values(self) -> Iterator[Node]:
        """Every value of the text."""
        while self._peek():
            yield self._value()

    def _value(self) -> Node:
        stack: list[_Open] = []
        while True:
            node = self._begin(len(stack))
            if isinstance(node.content, dict) and not self._take("}"):
                stack.append(_Open(node, self._key()))
                continue
            if isinstance(node.content, list) and not self._take("]"):
                stack.append(_Open(node, None))
                continue
            while stack:
                top = stack[-1]
                top.add(node)
                if self._take(","):
                    top.key = self._key() if top.key else None
                    break
                if not self._take("}" if top.key else "]"):
                    self._unexpected("after object key:value pair" if top.key else "after array element")
                node = stack.pop().closed()
            else:
                return node

    def _begin(self, depth: int) -> Node:
        """The value that begins here: complete if it is a scalar, still empty if it is an array or object."""
        first = self._peek()
        line, column = self._position(self._offset)
        self._nodes += 1
        if self._nodes > self._limits.nodes:
            raise TextError(f"more than {self._limits.nodes} values", line=line, column=column)
        if first in {"{", "["}:
            if depth >= self._limits.depth:
                raise TextError(f"nested deeper than {self._limits.depth} levels", line=line, column=column)
            self._offset += 1
            return Node(line, column, {} if first == "{" else [])
        if first == '"':
            return Node(line, column, self._string())
        match = _NUMBER_OR_WORD.match(self._text, self._offset)
        if match is None:
            self._unexpected("looking for beginning of value")
        self._offset = match.end()
        word = match[0]
        if word in _WORDS:
            return Node(line, column, _WORDS[word])
        if word.lstrip("-").isdigit() and len(word) < _LONGEST_INTEGER:
            return Node(line, column, int(word))
        return Node(line, column, float(word))

    def _key(self) -> tuple[str, int, int]:
        if self._peek() != '"':
            self._unexpected("looking for beginning of object key string")
        line, column = self._position(self._offset)
        key = self._string()
        if not self._take(":"):
            self._unexpected("after object key")
        return key, line, column

    def _string(self) -> str:
        match = _STRING.match(self._text, self._offset)
        if match is None:
            begun = _UNFINISHED_STRING.match(self._text, self._offset)
            self._offset = begun.end() if begun else self._offset
            self._unexpected("in string literal")
        self._offset = match.end()
        if "\\" not in match[0]:
            return match[0][1:-1]
        unescaped: str = json.loads(match[0])
        return _LONE_SURROGATE.sub("\ufffd", unescaped)

    def _peek(self) -> str:
        """The next character that is no space, empty at the end."""
        match = _NOT_SPACE.search(self._text, self._offset)
        if match is None:
            return ""
        self._offset = match.start()
        return match[0]

    def _take(self, character: str) -> bool:
        if self._peek() != character:
            return False
        self._offset += 1
        return True

    def _position(self, offset: int) -> tuple[int, int]:
        line = bisect.bisect_right(self._lines, offset)
        return line, offset - self._lines[line - 1] + 1

    def _unexpected(self, where: str) -> NoReturn:
        line, column = self._position(self._offset)
        character = self._text[self._offset : self._offset + 1]
        problem = f"invalid character {character!r} {where}" if character else "unexpected end of JSON input"
        raise TextError(f"read as JSON because it starts with {{: {problem}", line=line, column=column, server=problem)
