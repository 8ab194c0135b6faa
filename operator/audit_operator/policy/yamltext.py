"""What the API server reads in a text: JSON when it starts with a brace, otherwise YAML 1.1 turned into JSON.

The API server reads YAML with sigs.k8s.io/yaml on top of go-yaml v2, which is not what most people (and PyYAML's own
loaders) expect: ``on`` and ``y`` are booleans, ``0755`` is a number, dates stay text, of duplicate keys the last one
counts, a merge key overrides what stands before it, and everything after the first document is ignored.

Nothing here recurses over the text, and every limit is checked while reading: a text that is huge, binary, nested
without end or that blows up through aliases is refused with a :class:`TextError` in bounded memory and time.
"""

import base64
import codecs
import math
import re
from collections.abc import Iterator
from typing import Any, Final, NoReturn

import msgspec
import yaml
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.scanner import Scanner, ScannerError

from audit_operator.policy.jsontext import JsonReader
from audit_operator.policy.nodes import LIMITS, Field, Limits, Node, Overridden, Scalar, TextError


class Document(msgspec.Struct, frozen=True):
    """The first document of a text, which is all the API server reads of it.

    ``extra`` holds line and column of every further document that is not empty. ``is_json``: the text was read as JSON.
    """

    root: Node
    extra: tuple[tuple[int, int], ...]
    is_json: bool


def read(text: str | bytes, *, limits: Limits = LIMITS) -> Document:
    """The first document of ``text``, as the API server reads it. An empty text is a document holding None.

    Raises TextError, never anything else, for a text that is no YAML or JSON, that cannot be turned into JSON, or that
    exceeds ``limits``.
    """
    text = _characters(text, limits)
    if _looks_like_json(text):
        return Document(root=JsonReader(text, limits).only_value(), extra=(), is_json=True)
    documents = _yaml_documents(text, limits)
    root = next(documents, None) or Node(1, 1, None)
    return Document(root=root, extra=tuple(_further(documents)), is_json=False)


def read_all(text: str | bytes, *, limits: Limits = LIMITS) -> list[Node]:
    """Every document of ``text`` that is not empty: YAML documents, or JSON values one after another.

    Raises TextError as :func:`read` does; one unreadable document makes the whole text unreadable.
    """
    text = _characters(text, limits)
    if not _looks_like_json(text):
        return [root for root in _yaml_documents(text, limits) if root.content is not None]
    try:
        return list(JsonReader(text, limits).values())
    except TextError as json_error:
        # JSON documents set apart by "---" are YAML. Anything else is most likely broken JSON, so say what is broken.
        try:
            return [root for root in _yaml_documents(text, limits) if root.content is not None]
        except TextError:
            raise json_error from None


def _further(documents: Iterator[Node]) -> Iterator[tuple[int, int]]:
    """Where further documents stand. No API server looks at them, so an error in one ends the search and no more."""
    try:
        for root in documents:
            if root.content is not None:
                yield root.line, root.column
    except TextError as error:
        if error.line:
            yield error.line, error.column


# -- characters ------------------------------------------------------------------------------------------------------

_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What a YAML 1.1 stream may not contain."""

_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_JSON_START = re.compile(r"\s*\{")


def _characters(text: str | bytes, limits: Limits) -> str:
    if len(text) > limits.size:
        unit = "bytes" if isinstance(text, bytes) else "characters"
        raise TextError(f"{len(text):,} {unit} long: at most {limits.size:,} are read")
    if isinstance(text, str):
        return text
    for mark, encoding in _BYTE_ORDER_MARKS:
        if text.startswith(mark):
            return "\ufeff" + _decoded(text[len(mark) :], encoding)
    if _looks_like_json(text[:1024].decode("utf-8", "replace")):
        return text.decode("utf-8", "replace")  # as Go's JSON decoder does
    return _decoded(text, "utf-8")


def _decoded(text: bytes, encoding: str) -> str:
    try:
        return text.decode(encoding)
    except UnicodeDecodeError as error:
        raise TextError(
            f"not text: byte {text[error.start]:#04x} is not {encoding.upper()}",
            line=text.count(b"\n", 0, error.start) + 1,
            column=error.start - text.rfind(b"\n", 0, error.start),
            server=f"yaml: invalid {encoding.upper()}",
        ) from None


def _looks_like_json(text: str) -> bool:
    return _JSON_START.match(text) is not None


# -- YAML documents --------------------------------------------------------------------------------------------------


_LINE_ENDS = "\0\r\n\x85\u2028\u2029"


class _PythonParser(Reader, Scanner, Parser):
    """PyYAML without libyaml: ten times slower, the same events."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)

    def scan_to_next_token(self) -> None:
        """Skip spaces, comments and line breaks; unlike PyYAML, and like libyaml, also tabs that are no indentation."""
        while True:
            while self.peek() == " " or (self.peek() == "\t" and (self.flow_level or not self.allow_simple_key)):
                self.forward()
            if self.peek() == "#":
                while self.peek() not in _LINE_ENDS:
                    self.forward()
            if not self.scan_line_break():  # type: ignore[no-untyped-call]
                return
            if not self.flow_level:
                self.allow_simple_key = True

    def scan_directive_name(self, start_mark: Any) -> Any:
        """PyYAML skips directives that it does not know; libyaml refuses them."""
        name = super().scan_directive_name(start_mark)  # type: ignore[no-untyped-call]
        if name not in {"YAML", "TAG"}:
            raise ScannerError(None, None, "found unknown directive name", start_mark)
        return name

    def scan_plain_spaces(self, indent: int, start_mark: Any) -> Any:
        """PyYAML ends a plain value at a tab; libyaml goes on. Refuse where that would read something else."""
        ahead = 0
        while self.peek(ahead) in " \t":
            ahead += 1
        following = self.prefix(ahead + 2)[ahead:]
        if following[:1] in _LINE_ENDS:
            self.forward(ahead)
        elif "\t" in self.prefix(ahead) and following[:1] != "#" and following not in {": ", ":\t", ":\n"}:
            raise ScannerError(None, None, "found a tab inside a plain value: quote the value", self.get_mark())
        return super().scan_plain_spaces(indent, start_mark)


_make_parser: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else _PythonParser


class _Anchor(msgspec.Struct, eq=False):
    """What an alias refers to. ``size`` and ``depth`` are the expanded subtree's, 0 while it is still being read."""

    node: Node
    size: int = 0
    depth: int = 0


class _Open(msgspec.Struct, eq=False):
    """A list or mapping being read; the children of a mapping are keys and values in turn."""

    node: Node
    is_mapping: bool
    is_flow: bool
    anchor: _Anchor
    size: int = 1
    depth: int = 1
    children: list[Node] = []
    aliases: set[int] = set()
    """Which of the children are aliases."""


_MERGE_KEY = Node(0, 0, "<<")


class _Budget:
    """Counts nodes as go-yaml counts them, aliases expanded, and refuses what go-yaml or the limits refuse."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.nodes = 1
        self.from_aliases = 0

    def spend(self, event: Any, depth: int) -> None:
        self.nodes += 1
        if depth > self.limits.depth:
            raise _refused(event, f"nested deeper than {self.limits.depth} levels")
        if self.nodes > self.limits.nodes:
            raise _refused(event, f"more than {self.limits.nodes:,} values")

    def expand(self, event: Any, anchor: _Anchor, depth: int) -> None:
        self.spend(event, depth + anchor.depth)
        self.nodes += anchor.size
        self.from_aliases += anchor.size
        if self.from_aliases > 100 and self.nodes > 1000 and self.from_aliases / self.nodes > self._allowed_ratio():
            raise _unreadable(event, "document contains excessive aliasing")

    def _allowed_ratio(self) -> float:
        """go-yaml's own bound: 99 % of a small document may come from aliases, 10 % of a large one."""
        small, large = 400_000, 4_000_000
        return 0.99 - 0.89 * (min(max(self.nodes, small), large) - small) / (large - small)


def _yaml_documents(text: str, limits: Limits) -> Iterator[Node]:
    text = text.removeprefix("\ufeff")
    if forbidden := _FORBIDDEN.search(text):
        start = forbidden.start()
        raise TextError(
            f"character {forbidden[0]!r} is not allowed: is this a binary file?",
            line=text.count("\n", 0, start) + 1,
            column=start - text.rfind("\n", 0, start),
            server="yaml: control characters are not allowed",
        )
    events = _events(text)
    budget = _Budget(limits)
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            if event.version not in {None, (1, 1)}:
                raise _unreadable(event, "found incompatible YAML document")
            yield _document(events, budget, text)


def _events(text: str) -> Iterator[Any]:
    try:
        parser = _make_parser(text)
        while (event := parser.get_event()) is not None:
            yield event
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        if isinstance(error, TextError):
            raise
        # The parser in Python trips over what it takes for a number or a code point, such as "\UFFFFFFFF".
        raise TextError(str(error), server=f"yaml: {error}") from None


def _document(events: Iterator[Any], budget: _Budget, text: str) -> Node:
    """The document of ``text`` whose start has just been read."""
    anchors: dict[str, _Anchor] = {}
    top = _Open(Node(0, 0, None), is_mapping=False, is_flow=False, anchor=_Anchor(Node(0, 0, None)))
    stack = [top]
    non_finite = False
    for event in events:
        frame = stack[-1]
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, yaml.ScalarEvent):
            budget.spend(event, len(stack) - 1)
            _refuse_newer_syntax(event, text, is_flow=frame.is_flow)
            is_key = frame.is_mapping and len(frame.children) % 2 == 0
            non_finite = non_finite or event.value in _NON_FINITE
            node = _MERGE_KEY if is_key and _is_merge(event) else Node(line, column, _scalar(event, is_key))
            if event.anchor is not None:
                anchors[event.anchor] = _Anchor(node, size=1)
            frame.children.append(node)
            frame.size += 1
        elif isinstance(event, yaml.AliasEvent):
            anchor = anchors.get(event.anchor or "")
            if anchor is None:
                raise _unreadable(event, f"unknown anchor '{event.anchor}' referenced")
            if not anchor.size:
                raise _unreadable(event, f"anchor '{event.anchor}' value contains itself")
            budget.expand(event, anchor, len(stack) - 1)
            frame.aliases.add(len(frame.children))
            frame.children.append(Node(line, column, anchor.node.content, anchor.node.overridden))
            frame.size += 1 + anchor.size
            frame.depth = max(frame.depth, 1 + anchor.depth)
        elif isinstance(event, yaml.CollectionStartEvent):
            budget.spend(event, len(stack))
            opened = _Open(
                node := Node(line, column, None),
                is_mapping=isinstance(event, yaml.MappingStartEvent),
                is_flow=bool(event.flow_style),
                anchor=_Anchor(node),
            )
            if event.anchor is not None:
                anchors[event.anchor] = opened.anchor
            stack.append(opened)
        elif isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
            frame.node.content = list(frame.children)
            if frame.is_mapping:
                frame.node.content, frame.node.overridden = _mapping(frame)
            frame.anchor.size, frame.anchor.depth = frame.size, frame.depth
            parent = stack[-1]
            parent.children.append(frame.node)
            parent.size += frame.size
            parent.depth = max(parent.depth, 1 + frame.depth)
        else:
            break
    root = top.children[0]
    if non_finite:
        _refuse_non_finite(root)
    return root


def _mapping(frame: _Open) -> tuple[dict[str, Field], tuple[Overridden, ...]]:
    """The keys and values of a complete mapping, and the values that later ones replaced."""
    fields: dict[str, Field] = {}
    overridden: list[Overridden] = []
    merged_keys: set[str] = set()

    def put(key: str, field: Field, *, merged: bool) -> None:
        if (earlier := fields.get(key)) is not None:
            overridden.append(
                Overridden(key, earlier.line, earlier.column, earlier.node, merged=merged or key in merged_keys)
            )
        fields[key] = field
        if merged:
            merged_keys.add(key)
        else:
            merged_keys.discard(key)

    children = frame.children
    for index in range(0, len(children), 2):
        key, value = children[index], children[index + 1]
        if key is not _MERGE_KEY:
            put(_key_text(key), Field(key.line, key.column, value), merged=False)
            continue
        # In go-yaml v2 a merge happens where it stands: it overrides what is before it and yields to what comes after.
        for mapping in _merge_sources(value, is_alias=index + 1 in frame.aliases):
            for name, field in mapping.items():
                put(name, Field(value.line, value.column, field.node), merged=True)
    return fields, tuple(overridden)


def _merge_sources(value: Node, *, is_alias: bool) -> list[dict[str, Field]]:
    """The mappings that ``<<`` brings in, in the order in which they apply: the first of a list last, so it wins."""
    candidates = value.content if isinstance(value.content, list) and not is_alias else [value]
    sources = [item.content for item in candidates if isinstance(item.content, dict)]
    if len(sources) < len(candidates):
        _fail(value, "map merge requires map or sequence of maps as the value")
    return sources[::-1]


def _key_text(key: Node) -> str:
    """How a key appears in JSON."""
    content = key.content
    if isinstance(content, list | dict):
        _fail(key, "invalid map key: a list or a mapping cannot be a key")
    if content is None or (isinstance(content, int) and content >= 2**63):
        _fail(key, f"unsupported map key: {'null' if content is None else content}")
    if isinstance(content, bool):
        return "true" if content else "false"
    if isinstance(content, float):
        return (
            f"{content:g}" if math.isfinite(content) else f"{content:g}".replace("inf", ".inf").replace("nan", ".nan")
        )
    return str(content)


# -- YAML scalars ----------------------------------------------------------------------------------------------------

_TAG = "tag:yaml.org,2002:"
_RESOLVED_TAGS: dict[str | None, str] = {_TAG + kind: kind for kind in ("bool", "int", "float", "null", "timestamp")}
_RESOLVED_TAGS[None] = ""
_WORDS: dict[str, tuple[str, Scalar]] = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), ("bool", True)),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), ("bool", False)),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), ("null", None)),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), ("float", math.nan)),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), ("float", math.inf)),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), ("float", -math.inf)),
}
_NON_FINITE = frozenset(word for word, (kind, _) in _WORDS.items() if kind == "float")
_INTEGER = re.compile(
    r"[-+]?(?:0[bB](?P<binary>[01]+)|0[xX](?P<hex>[0-9a-fA-F]+)|0[oO]?(?P<octal>[0-7]+)|(?P<decimal>0|[1-9][0-9]*))"
)
_BASES = {"binary": 2, "octal": 8, "decimal": 10, "hex": 16}
_LONGEST_INTEGER = 70
"""In characters; 64 binary digits, a sign and a prefix. Longer ones are floats or text and never reach ``int()``."""
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_TIMESTAMP = re.compile(
    r"\d{4}-\d\d?-\d\d?"
    r"(?:[Tt]\d\d?:\d\d?:\d\d?(?:\.\d+)?(?:Z|[-+]\d\d:\d\d)| +\d\d?:\d\d?:\d\d?(?:\.\d+)?)?"
)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _is_merge(event: yaml.ScalarEvent) -> bool:
    return event.value == "<<" and (event.implicit[0] or event.tag == _TAG + "merge")


def _scalar(event: yaml.ScalarEvent, is_key: bool) -> Scalar:
    """What go-yaml makes of a scalar, and JSON of that."""
    text, tag = event.value, event.tag
    if _LONE_SURROGATE.search(text):  # the parser in Python accepts "\ud800"
        raise _unreadable(event, "found invalid Unicode character escape code")
    if tag is None and not event.implicit[0]:
        return text
    if tag == _TAG + "binary":
        try:
            return base64.b64decode(re.sub("[\r\n]", "", text), validate=True).decode("utf-8", "replace")
        except ValueError:
            raise _unreadable(event, "!!binary value contains invalid base64 data") from None
    if tag not in _RESOLVED_TAGS:
        return text
    wanted = _RESOLVED_TAGS[tag]
    kind, value = _resolve(text, wanted)
    if wanted and kind != wanted and (kind, wanted) != ("int", "float"):
        raise _unreadable(event, f"cannot decode !!{kind} `{text}` as a !!{wanted}")
    if isinstance(value, float) and not is_key and value.is_integer() and abs(value) < 1e21:
        return int(value)  # Go writes such a float to JSON without a fraction
    return value


def _refuse_newer_syntax(event: yaml.ScalarEvent, text: str, *, is_flow: bool) -> None:
    """What libyaml reads and go-yaml v2 does not: ``[/a?b]`` without quotes, and the escape ``\\/``."""
    if is_flow and not event.style and "?" in event.value[1:]:
        raise _unreadable(event, "did not find expected ',' or ']'")
    if event.style == '"' and "/" in event.value:
        start, end = event.start_mark, event.end_mark
        raw = text[start.index : end.index] if start and end else ""
        if "/" in re.findall(r"\\(.)", raw):
            raise _unreadable(event, "found unknown escape character")


def _refuse_non_finite(root: Node) -> None:
    """JSON has no NaN and no infinity, so the API server cannot read a document that still holds one."""
    for _, node in root.walk():
        if isinstance(node.content, float) and not math.isfinite(node.content):
            name = "NaN" if math.isnan(node.content) else "+Inf" if node.content > 0 else "-Inf"
            problem = f"json: unsupported value: {name}"
            raise TextError(problem, line=node.line, column=node.column, server=problem)


def _resolve(text: str, wanted: str) -> tuple[str, Scalar]:
    """Kind and value of an untagged plain scalar, or of one tagged ``!!wanted``, in go-yaml v2."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in ".+-0123456789":
        return "str", text
    if wanted in {"", "timestamp"} and _TIMESTAMP.fullmatch(text):
        return "timestamp", text
    digits = text if text[0] == "." else text.replace("_", "")
    if len(digits) < _LONGEST_INTEGER and (match := _INTEGER.fullmatch(digits)) and match.lastgroup:
        number = int(match[match.lastgroup], _BASES[match.lastgroup])
        if digits[0] == "-" and number <= 2**63:
            return "int", -number
        if digits[0] != "-" and number < (2**63 if digits[0] == "+" else 2**64):
            return "int", number
    if _FLOAT.fullmatch(digits) and math.isfinite(value := float(digits)):
        return "float", value
    return "str", text


# -- errors ----------------------------------------------------------------------------------------------------------


def _unreadable(event: Any, problem: str) -> TextError:
    mark = event.start_mark
    return TextError(problem, line=mark.line + 1, column=mark.column + 1, server=f"yaml: {problem}")


def _refused(event: Any, problem: str) -> TextError:
    mark = event.start_mark
    return TextError(problem, line=mark.line + 1, column=mark.column + 1)


def _fail(node: Node, problem: str) -> NoReturn:
    raise TextError(problem, line=node.line, column=node.column, server=f"yaml: {problem}")


def _syntax_error(error: yaml.MarkedYAMLError) -> TextError:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "unknown problem parsing YAML content"
    if mark is None:
        return TextError(problem, server=f"yaml: {problem}")
    # go-yaml counts lines from 0 in what its parser says, from 1 in what its scanner says, and never names line 0.
    line = mark.line + 1 if mark.line and isinstance(error, ScannerError) else mark.line
    where = f"line {line}: " if line else ""
    return TextError(problem, line=mark.line + 1, column=mark.column + 1, server=f"yaml: {where}{problem}")
