"""What is written is what every reader reads: PyYAML (YAML 1.1) and ruamel (YAML 1.2)."""

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from audit_operator.resources.yamlwriter import Commented, write, write_all

WORDS = r"""
~ null Null y Y n yes Yes no NO on On off true False TRUE = << - ? : # --- ... * */scale &a !a | > %a @a `a`
0 1 -1 +1 0755 0o7 0x1F 0b11 1_000 1:30 190:20:30 1e3 1.5e3 1. .5 6.8523015e+5 .inf -.INF .nan NaN 12e03
Infinity 2024-01-02 2024-01-02T03:04:05Z a#b #a a: [ {} ' " "a" 'a' a'b \ a\nb é Zürich 用户 😀 a😀b
/api* system:kube-proxy a::b user@example.com a,b
"""
WITH_BLANKS = [
    "",
    " ",
    "- a",
    "? a",
    "a: b",
    "a :b",
    ": a",
    "a #b",
    "--- a",
    "!!str 1",
    "a, b",
    " a",
    "a ",
    "a\t",
    "\ta",
]
WITH_LINES = [
    "\n",
    "a\n",
    "\na",
    "a\nb",
    "a\n\nb\n",
    "a\n b\n",
    " a\nb",
    "a\nb\n\n",
    "a\n  \nb",
    "a\r\nb",
    "---\na",
    "#\n",
]
WITH_CONTROLS = list("\x00\x07\x1b\x7f\x85\xa0\u2028\u2029\ufeff\ufffe\U0010ffff\u202e\u200b\r")
TRAPS = [*WORDS.split(), *WITH_BLANKS, *WITH_LINES, *WITH_CONTROLS]


def read_by_1_1(text: str) -> Any:
    return yaml.safe_load(text)


def read_by_1_2(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


readers = pytest.mark.parametrize("read", [read_by_1_1, read_by_1_2])


@readers
@pytest.mark.parametrize("text", TRAPS)
def test_every_trap_is_read_back_as_the_string_it_was(text: str, read: Any) -> None:
    for value in (text, [text], {"key": text}, [{"key": text, "other": [text]}], {text: text}):
        assert read(write(value)) == value


@readers
@settings(max_examples=150)
@given(text=st.text())
def test_every_string_is_read_back(text: str, read: Any) -> None:
    assert read(write({"a": [text, {text[:50]: text}]})) == {"a": [text, {text[:50]: text}]}


LINES = st.lists(st.sampled_from(["", " ", "a", "  a", "a: b", "- a", "# a", "a\t", "---", "é"]), max_size=5).map(
    "\n".join
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(TRAPS),
    LINES,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=6) | st.sampled_from(TRAPS), inner, max_size=3),
    ),
    max_leaves=12,
)


@readers
@settings(max_examples=200)
@given(value=VALUES)
def test_every_structure_is_read_back(value: Any, read: Any) -> None:
    assert read(write(value)) == value


def commented(value: Any) -> Any:
    """The same value with a comment at every place that can have one."""
    if isinstance(value, dict):
        return Commented({key: commented(item) for key, item in value.items()}, "a: b\n# - c\u2028d")
    if isinstance(value, list):
        return Commented([commented(item) for item in value], "list\x00")
    return Commented(value, "scalar\r\n\n")


@readers
@settings(max_examples=150)
@given(value=VALUES)
def test_comments_change_nothing(value: Any, read: Any) -> None:
    assert read(write(commented(value), header="head: er\n\ttab")) == value


def test_strings_stay_readable_where_every_reader_agrees() -> None:
    assert write(
        {
            "users": ["system:kube-proxy", "o'neil", "no", "10"],
            "nonResourceURLs": ["/healthz*", "*"],
            "note": "a sentence, as people write it",
            "script": "set -e\nexec true\n",
            "empty": {"list": [], "map": {}, "none": None},
            "nested": [[1, 2], {"a": 1, "b": [{"c": 1.0e16}]}],
        },
        header="what this is",
    ) == (
        "# what this is\n"
        "users:\n- system:kube-proxy\n- o'neil\n"
        '- "no"\n- "10"\n'
        "nonResourceURLs:\n- /healthz*\n"
        '- "*"\n'
        "note: a sentence, as people write it\n"
        "script: |\n  set -e\n  exec true\n"
        "empty:\n  list: []\n  map: {}\n  none: null\n"
        "nested:\n- - 1\n  - 2\n- a: 1\n  b:\n  - c: 1.0e+16\n"
    )


def test_comments_stand_above_what_they_explain() -> None:
    text = write({"rules": [Commented({"level": "None"}, "spec.rules[0]"), Commented(1, "two\nlines")]})
    assert text == "rules:\n# spec.rules[0]\n- level: None\n# two\n# lines\n- 1\n"


def test_a_stream_is_read_back_document_by_document() -> None:
    documents: list[Any] = [{"a": 1}, ["---"], "a\n---\nb\n"]
    assert list(yaml.safe_load_all(write_all(documents, header="stream"))) == documents


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": ["\ud800"]}, r"a\[0\]: a lone surrogate U\+D800"),
        ({"a": {"\udfff": 1}}, "a.*: a lone surrogate"),
        ({"a": float("nan")}, "a: nan has no YAML number"),
        ({"k" * 1200: 1}, "too long for YAML"),
    ],
)
def test_what_no_yaml_can_carry_is_refused_with_its_path(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write(value)


def test_bytes_are_not_mistaken_for_a_list() -> None:
    with pytest.raises(TypeError, match="a: bytes cannot be written"):
        write({"a": b"x"})
