"""Writes YAML that every reader understands alike: YAML 1.1 (PyYAML, Go's yaml.v2 behind kube-apiserver) and 1.2.

A plain ``no``, ``1e3``, ``0755`` or ``1:30`` is a boolean or a number to some of them. Therefore a string is written
plain only when none of them could read it as anything else, and in double quotes otherwise. Keys keep the order they
are given in; nothing is folded, so a text is a function of its value alone.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

Value: TypeAlias = "Mapping[str, Value] | Sequence[Value] | Commented | str | int | float | bool | None"
"""What can be written. Mappings are written in their own order; sequences are lists or tuples; floats are finite."""


class Commented(NamedTuple):
    """A value, written below one comment line per line of ``comment``."""

    value: "Value"
    comment: str


def write(value: Value, *, header: str = "") -> str:
    """The YAML text of one document, in block style, ending in a newline.

    ``header``: comment lines put before it. Raises ValueError naming the path of what no YAML text can carry: lone
    surrogates, infinities, NaN, keys above 1,000 characters.
    """
    return _comment(header, "") + "".join(f"{line}\n" for line in _document(value))


def write_all(values: Iterable[Value], *, header: str = "") -> str:
    """The text of a stream of documents divided by ``---``."""
    return _comment(header, "") + "---\n".join(write(value) for value in values)


def _document(value: Value) -> Iterator[str]:
    if isinstance(value, Commented):
        yield from _comment(value.comment, "").splitlines()
        value = value.value
    inline = _inline(value, "  ", "")
    if inline is not None:
        yield inline
        return
    yield from _block(value, "", "")


def _block(value: Value, indent: str, path: str) -> Iterator[str]:
    """The lines of a mapping or list that is not empty."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            here = f"{path}.{key}" if path else str(key)
            yield from _entry(f"{_key(key, here)}:", item, indent, here)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _entry("-", item, indent, f"{path}[{index}]")


def _entry(lead: str, item: Value, indent: str, path: str) -> Iterator[str]:
    """The lines of one entry: ``lead`` is ``key:`` or ``-``."""
    if isinstance(item, Commented):
        yield from _comment(item.comment, indent).splitlines()
        item = item.value
    inline = _inline(item, f"{indent}  ", path)
    if inline is not None:
        yield f"{indent}{lead} {inline}"
        return
    if lead == "-":
        # The first line of a nested block stands on the line of its dash: the two characters of "- " are its indent.
        # A comment cannot stand there: it moves above the dash.
        lines = list(_block(item, f"{indent}  ", path))
        first = next(number for number, line in enumerate(lines) if not line.lstrip().startswith("#"))
        yield from (f"{indent}{line.lstrip()}" for line in lines[:first])
        yield f"{indent}- {lines[first][len(indent) + 2 :]}"
        yield from lines[first + 1 :]
        return
    yield f"{indent}{lead}"
    # Lists stand at their key's own indent, as kubectl writes them.
    yield from _block(item, indent if isinstance(item, list | tuple) else f"{indent}  ", path)


def _inline(value: Value, indent: str, path: str) -> str | None:
    """The text of a value that starts on the line of its key; None for a mapping or list that has entries."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return _float(value, path)
    if isinstance(value, str):
        return _string(str(value), indent, path)
    if isinstance(value, Mapping):
        return None if value else "{}"
    if isinstance(value, list | tuple) and not isinstance(value, Commented):
        return None if value else "[]"
    raise TypeError(f"{path or 'the document'}: {type(value).__name__} cannot be written as YAML")


def _float(value: float, path: str) -> str:
    if not math.isfinite(value):
        raise ValueError(f"{path}: {value} has no YAML number that every reader knows; give a finite number")
    text = repr(value)
    mantissa, mark, exponent = text.partition("e")
    # YAML 1.1 reads 1e+16 as a string: its floats need a point.
    return f"{mantissa}.0{mark}{exponent}" if mark and "." not in mantissa else text


# Text that no reader takes for anything but itself: it starts with an ASCII letter or slash (so it is no number, date,
# sexagesimal, indicator, anchor, document marker), has no ": ", no " #", and nothing that ends or folds a plain scalar.
_PLAIN = re.compile(r"[A-Za-z/](?:[A-Za-z0-9_./@*+=,()'-]|:(?=[^ ])|[ ](?=[^ #]))*(?<![: ])", re.ASCII)
_RESERVED = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf", "infinity"})


def _key(key: str, path: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{path}: a key must be a string, not {type(key).__name__}")
    text = _plain_or_quoted(str(key), path)
    if len(text) > 1000:  # YAML readers look for the colon of a key within 1,024 characters
        raise ValueError(f"{path[:60]}…: a key of {len(text)} characters is too long for YAML; keep it below 1,000")
    return text


def _string(text: str, indent: str, path: str) -> str:
    if _fits_literal(text):
        lines = text.removesuffix("\n").split("\n")
        chomp = "|" if text.endswith("\n") else "|-"
        return "\n".join([chomp, *(f"{indent}{line}" if line else "" for line in lines)])
    return _plain_or_quoted(text, path)


def _plain_or_quoted(text: str, path: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED:
        return text
    return f'"{_ESCAPED.sub(lambda match: _escape(match[0], path), text)}"'


def _fits_literal(text: str) -> bool:
    """Several lines that a literal block carries unchanged: no characters to escape, no lines of blanks, at most one
    newline at the end, and a first line from which readers can take the indent."""
    body = text.removesuffix("\n")
    return (
        "\n" in body
        and not body.startswith((" ", "\n"))
        and all(line == "" or line.strip() for line in body.split("\n"))
        and not body.endswith("\n")
        and not _UNPRINTABLE.search(body)
    )


# Fixed ranges instead of str.isprintable: that one follows the Unicode version of the running Python.
# Escaped: controls, NEL, NBSP, soft hyphen, zero-width and direction marks, U+2028 and U+2029 (YAML 1.1 breaks lines
# there), BOM, surrogates, private use, specials and non-characters, tags.
_CONTROLS = (
    r"\x00-\x09\x0b-\x1f\x7f-\xa0\xad\u061c\u115f\u1160\u180b-\u180f\u200b-\u200f\u2028-\u202f\u2060-\u206f\u3164"
    r"\ud800-\uf8ff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff\U000e0000-\U0010ffff"
    + "".join(rf"\U{plane:04x}fffe\U{plane:04x}ffff" for plane in range(1, 0xE))
)
_UNPRINTABLE = re.compile(f"[{_CONTROLS}]")
_ESCAPED = re.compile(rf'["\\\n{_CONTROLS}]')
_SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _escape(char: str, path: str) -> str:
    code = ord(char)
    if 0xD800 <= code <= 0xDFFF:
        raise ValueError(f"{path}: a lone surrogate U+{code:04X} is no character; remove it")
    if code <= 0xFF:
        return _SHORT.get(char, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _comment(text: str, indent: str) -> str:
    """``text`` as comment lines; what could end a comment in some reader is replaced by ``?``."""
    lines = text.removesuffix("\n").split("\n") if text else []
    return "".join(f"{indent}# {_UNPRINTABLE.sub('?', line)}".rstrip(" ") + "\n" for line in lines)
