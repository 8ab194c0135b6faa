"""Text is read as the API server's decoder reads it, within limits, and every value knows where it stands.

data/yaml-readings.jsonl was recorded from sigs.k8s.io/yaml and Go's JSON decoder as a kube-apiserver 1.36.2 uses them.
"""

import json
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_operator.policy import yamltext
from audit_operator.policy.nodes import Limits, Node, TextError, node_of, path_text
from audit_operator.policy.yamltext import read, read_all

READINGS = [
    json.loads(line) for line in (Path(__file__).parents[1] / "data/yaml-readings.jsonl").read_bytes().splitlines()
]


def reading(text: str) -> Any:
    """The value of the first document with all numbers as floats, "error" if it cannot be read."""
    try:
        value = read(text).root.value
    except TextError:
        return "error"
    return json.loads(json.dumps(value), parse_int=float)


@pytest.fixture(params=["libyaml", "python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(yamltext, "_make_parser", yamltext._PythonParser)
    return str(request.param)


@pytest.mark.parametrize("case", READINGS, ids=lambda case: repr(case["text"])[:40])
def test_reads_what_the_api_server_reads(case: dict[str, Any], parser: str) -> None:
    expected = "error" if "error" in case else json.loads(json.dumps(case["json"]), parse_int=float)
    assert reading(case["text"]) == expected


def test_says_of_bad_yaml_what_the_api_server_says() -> None:
    said = {}
    for case in READINGS:
        if "error" not in case:
            continue
        with pytest.raises(TextError) as caught:
            read(case["text"])
        said[case["text"]] = (caught.value.server.replace("'", ""), case["error"].replace("'", ""))
    same = [text for text, (ours, theirs) in said.items() if ours == theirs]
    assert len(same) > 0.85 * len(said), [pair for pair in said.values() if pair[0] != pair[1]]


@given(st.one_of(st.binary(max_size=80), st.text(max_size=80)))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    for reader in (read, read_all):
        try:
            reader(text)
        except TextError as error:
            assert error.message  # noqa: PT017 - the error is one of two good endings


SNIPPETS = [
    *("a", "- ", ": ", "\n", "\n  ", "{", "}", "[", "]", ", ", "&x ", "*x", "<<: ", "? ", "!!int ", "|\n", '"', "'"),
    *("---\n", "%", "#", "\t", "1", "yes", "~", ".nan", "\\", "é", "!<"),
]


@given(st.lists(st.sampled_from(SNIPPETS), max_size=14).map("".join))
@settings(max_examples=300, deadline=None)
def test_both_parsers_read_the_same_or_refuse(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yamltext, "_make_parser", yamltext._PythonParser)
        in_python = reading(text)
    if in_python != "error":
        assert in_python == reading(text)


# -- positions --------------------------------------------------------------------------------------------------------

documents = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-1000, 1000), st.text("ab:#- é\n'\"", max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("kxz", min_size=1), inner, max_size=3)
    ),
    max_leaves=12,
)


def scalars(node: Node) -> Iterator[tuple[tuple[str | int, ...], Node]]:
    return ((path, below) for path, below in node.walk() if not isinstance(below.content, list | dict))


@given(st.dictionaries(st.text("kxz", min_size=1), documents, max_size=4), st.sampled_from([True, False]))
@settings(max_examples=200, deadline=None)
def test_every_value_and_key_stands_where_its_node_says(value: dict[str, Any], flow: bool) -> None:
    text = "# head\n" + yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True, sort_keys=False)
    root = read(text).root
    assert root.value == value
    lines = text.split("\n")
    for path, node in scalars(root):
        there = lines[node.line - 1][node.column - 1 :]
        assert there, (path, text)
        if isinstance(node.content, int | bool):
            assert there.startswith(str(node.content).lower())
        line, column = root.at(path)
        if isinstance(path[-1], str):
            key = path[-1]
            assert lines[line - 1][column - 1 :].lstrip("?'\" ").startswith(key)
        else:
            assert (line, column) == (node.line, node.column)


@given(st.dictionaries(st.text("kxz", min_size=1), documents, max_size=4), st.sampled_from([None, 2]))
@settings(max_examples=200, deadline=None)
def test_json_is_read_with_the_same_positions(value: dict[str, Any], indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    document = read(text)
    assert document.is_json
    assert document.root.value == value
    lines = text.split("\n")
    for path, node in scalars(document.root):
        assert lines[node.line - 1][node.column - 1 :].startswith(json.dumps(node.content))
        line, column = document.root.at(path)
        if isinstance(path[-1], str):
            assert lines[line - 1][column - 1 :].startswith(json.dumps(path[-1]))


def test_a_path_that_is_not_there_is_at_the_nearest_above_it() -> None:
    root = read("spec:\n  rules:\n  - level: None\n").root
    assert root.at(("spec", "rules", 0, "level")) == (3, 5)
    assert root.at(("spec", "rules", 0)) == (3, 5)
    assert root.at(("spec", "rules", 7, "verbs", 0)) == (2, 3)
    assert root.at(("status",)) == (1, 1)
    level = root.find(("spec", "rules", 0, "level"))
    assert level is not None
    assert level.value == "None"
    assert root.find(("spec", "rules", 7)) is None


def test_an_alias_stands_where_it_is_used() -> None:
    root = read("x: &a [alice]\nrules:\n- users: *a\n").root
    assert root.value["rules"] == [{"users": ["alice"]}]
    assert root.at(("rules", 0, "users")) == (3, 3)


def test_replaced_values_are_kept_apart() -> None:
    replaced = read("a: 1\na: 2\nb: {a: 3, <<: {a: 4}}\n").root
    assert [(earlier.key, earlier.line, earlier.node.value) for earlier in replaced.overridden] == [("a", 1, 1)]
    merged = replaced.find(("b",))
    assert merged is not None
    assert [earlier.merged for earlier in merged.overridden] == [True]
    assert read('{"a": 1, "a": 2}').root.overridden[0].node.value == 1


def test_a_value_can_be_changed_without_changing_the_document() -> None:
    root = read("a: &x [1]\nb: *x\n").root
    value = root.value
    value["a"].append(2)
    assert value["b"] == [1]
    assert root.value == {"a": [1], "b": [1]}


@pytest.mark.parametrize(("path", "text"), [((), ""), (("spec", "rules", 3, "verbs", 0), "spec.rules[3].verbs[0]")])
def test_paths_are_written_as_people_write_them(path: tuple[str | int, ...], text: str) -> None:
    assert path_text(path) == text


# -- documents --------------------------------------------------------------------------------------------------------


def test_only_the_first_document_counts_and_the_others_are_named() -> None:
    document = read("a: 1\n---\n# nothing\n---\nb: 2\n---\n- [\n")
    assert document.root.value == {"a": 1}
    assert [line for line, _ in document.extra] == [5, 8]


def test_every_document_is_read_where_all_are_wanted() -> None:
    assert [node.value for node in read_all("---\na: 1\n---\n---\nb: 2\n")] == [{"a": 1}, {"b": 2}]
    assert [node.value for node in read_all('{"a": 1}\n{"b": 2}')] == [{"a": 1}, {"b": 2}]
    assert [node.value for node in read_all('{"a": 1}\n---\n{"b": 2}')] == [{"a": 1}, {"b": 2}]
    assert [node.line for node in read_all("a: 1\n---\nb: 2\n")] == [1, 3]


def test_broken_json_is_told_as_json() -> None:
    with pytest.raises(TextError, match=re.escape("read as JSON because it starts with {: invalid character '}'")):
        read_all('{"a": 1,}\n---\n[')


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_bytes_are_decoded_by_their_byte_order_mark(encoding: str) -> None:
    assert read("a: é\n".encode(encoding)).root.value == {"a": "é"}


def test_bytes_that_are_no_text_are_refused_with_their_place() -> None:
    with pytest.raises(TextError, match="line 2, column 4: not text: byte 0xff is not UTF-8"):
        read(b"a: b\nc: \xff")


# -- limits -----------------------------------------------------------------------------------------------------------


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x" * 100_000_000, "100,000,000 characters long: at most 16,777,216 are read"),
        (b"x" * 100_000_000, "100,000,000 bytes long: at most 16,777,216 are read"),
        ("[" * 100_000, "nested deeper than 100 levels"),
        ("- " * 100_000, "nested deeper than 100 levels"),
        ("? " * 100_000, "nested deeper than 100 levels"),
        ('{"a":' * 100_000, "nested deeper than 100 levels"),
        ('{"a":' + "[" * 100_000, "nested deeper than 100 levels"),
        ("\n".join(" " * depth + "a:" for depth in range(3000)), "nested deeper than 100 levels"),
        (laughs(9), "document contains excessive aliasing"),
        (laughs(1000), "document contains excessive aliasing"),
        (bytes(range(256)) * 1000, "not text"),
        ("\0" * 1000, "is this a binary file"),
        ("&a [*a]", "contains itself"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_monstrous_text_is_refused_at_once_in_little_memory(text: str | bytes, message: str, parser: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TextError, match=message):
            read(text)
        assert tracemalloc.get_traced_memory()[1] < 32 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_aliases_that_nest_deeper_than_the_limit_are_refused() -> None:
    deep = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 200))
    with pytest.raises(TextError, match="nested deeper than 100 levels"):
        read(deep)


def test_the_number_of_values_is_limited() -> None:
    limits = Limits(nodes=1000)
    assert len(read("[" + "1," * 990 + "]", limits=limits).root.value) == 990
    with pytest.raises(TextError, match="more than 1,000 values"):
        read("[" + "1," * 1010 + "]", limits=limits)
    with pytest.raises(TextError, match="more than 1000 values"):
        read('{"a": [' + "1," * 1010 + "1]}", limits=limits)


def test_many_duplicate_keys_take_no_longer_than_many_keys() -> None:
    assert read("{" + '"a": 1,' * 20_000 + '"a": 2}').root.value == {"a": 2}
    assert read("a: 1\n" * 20_000 + "a: 2").root.value == {"a": 2}


# -- values that are parsed already -----------------------------------------------------------------------------------


@given(documents)
@settings(max_examples=50, deadline=None)
def test_parsed_values_become_nodes_and_values_again(value: Any) -> None:
    assert node_of(value).value == value


@pytest.mark.parametrize("value", [{1: "a"}, {"a": object()}, {"a": {"b": {1, 2}}}, b"bytes"])
def test_what_is_no_document_is_refused(value: object) -> None:
    with pytest.raises(TextError):
        node_of(value)


def test_parsed_values_that_nest_too_deep_are_refused() -> None:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(TextError, match="nested deeper"):
        node_of(value)
