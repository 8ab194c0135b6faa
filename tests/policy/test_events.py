"""Audit events come apart without loss, whatever clients put into the bodies they carry."""

import contextlib
import gzip
import json
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_operator.policy import events
from audit_operator.policy.events import EventError, ObjectRef, UserInfo

CORPUS = Path(__file__).parent.parent / "data" / "audit-eventlists.jsonl.gz"

# Go's JSON decoder takes 10,000 levels; ours gives up at about a thousand.
DEEP = b"[" * 9_000 + b"]" * 9_000


@pytest.fixture(scope="module")
def event_lists() -> list[bytes]:
    with gzip.open(CORPUS) as lines:
        return list(lines)


def test_the_fields_of_every_recorded_event_make_the_event_again(event_lists: list[bytes]) -> None:
    count = 0
    for event_list in event_lists:
        for raw, plain in zip(events.split(event_list), json.loads(event_list)["items"], strict=True):
            fields = events.fields(raw)
            assert list(fields) == list(plain)
            assert json.loads(msgspec.json.encode(fields)) == plain
            count += 1
    assert count == 2744


def test_a_decoded_event_says_what_was_recorded(event_lists: list[bytes]) -> None:
    for event_list in event_lists:
        for raw, plain in zip(events.split(event_list), json.loads(event_list)["items"], strict=True):
            event = events.decode(raw)
            assert (event.level, event.audit_id, event.stage) == (plain["level"], plain["auditID"], plain["stage"])
            assert (event.request_uri, event.verb) == (plain["requestURI"], plain["verb"])
            assert event.stage_timestamp == plain["stageTimestamp"]
            assert (event.user.username, list(event.user.groups)) == (
                plain["user"].get("username", ""),
                plain["user"].get("groups", []),
            )
            reference = {} if event.object_ref is None else msgspec.to_builtins(event.object_ref)
            assert {key: value for key, value in reference.items() if value} == plain.get("objectRef", {})
            for field, name in [
                (event.request_object, "requestObject"),
                (event.response_object, "responseObject"),
                (event.response_status, "responseStatus"),
                (event.annotations, "annotations"),
            ]:
                assert json.loads(bytes(field) or b"null") == plain.get(name)


def test_a_line_of_a_log_file_is_one_event() -> None:
    line = b'{"kind":"Event","apiVersion":"audit.k8s.io/v1","verb":"get"}\n'
    assert [events.decode(event).verb for event in events.split(line)] == ["get"]


@pytest.mark.parametrize("empty", [b'{"kind":"EventList","items":[]}', b'{"kind":"EventList","items":null}'])
def test_an_empty_list_has_no_events(empty: bytes) -> None:
    assert events.split(empty) == []


@pytest.mark.parametrize(
    "garbage", [b"", b"[]", b"7", b"null", b'{"items":{}}', b'{"items":[}', b"\xff", b"kind: Event"]
)
def test_what_is_no_event_is_refused_by_name(garbage: bytes) -> None:
    with pytest.raises(EventError, match="not an audit event"):
        events.split(garbage)


@pytest.mark.parametrize("garbage", [b"", b"[]", b"7", b"null", b'{"verb":'])
def test_what_is_no_object_cannot_be_decoded(garbage: bytes) -> None:
    with pytest.raises(EventError, match="not an audit event"):
        events.decode(garbage)
    with pytest.raises(EventError, match="not an audit event"):
        events.fields(garbage)


def test_a_body_nested_too_deep_for_json_libraries_takes_nothing_along() -> None:
    deep = b'{"verb":"patch","user":{"username":"eve"},"requestObject":' + DEEP + b',"stage":"Panic"}'
    plain = b'{"verb":"get", "annotations": {"a":"}]\\"{["}}'
    split = events.split(b'{"kind":"EventList","items":[' + plain + b", " + deep + b"," + plain + b"]}")
    assert [bytes(event) for event in split] == [plain, deep, plain]
    event = events.decode(split[1])
    assert (event.verb, event.user.username, event.stage) == ("patch", "eve", "Panic")
    assert bytes(event.request_object) == DEEP
    assert msgspec.json.encode(events.fields(split[1])) == deep
    assert [bytes(one) for one in events.split(deep)] == [deep]


@pytest.mark.parametrize(
    "cut_off",
    [
        *(
            b'{"requestObject":' + DEEP,
            b'{"items":' + DEEP[:-1] + b"}",
            DEEP[:-1],
            b"{7:" + DEEP,
            b'{"a":' + DEEP + b"]",
            b'x{"a":' + DEEP + b"}",
        ),
        # Strings without an end, and a million quotation marks in them: one look must be enough.
        *(b'{"a":' + DEEP[:20_000] + b'"' + b'\\"' * 1_000_000 + end for end in (b"", b"\\")),
    ],
    ids=["event", "items", "list", "key", "bracket", "before", "string", "backslash"],
)
def test_a_deep_document_that_is_no_event_is_refused(cut_off: bytes) -> None:
    with pytest.raises(EventError, match="not an audit event"):
        [events.decode(event) for event in events.split(cut_off)]


@pytest.mark.parametrize("body", [b'"\\ud800"', b'"\xff\xfe"', b"1e999", b"123456789012345678901234567890"])
def test_bodies_that_python_cannot_hold_are_carried_as_they_are(body: bytes) -> None:
    raw = b'{"verb":"patch","requestObject":' + body + b"}"
    assert bytes(events.decode(events.split(raw)[0]).request_object) == body
    assert msgspec.json.encode(events.fields(raw)) == raw


def test_a_field_of_another_type_is_as_good_as_absent() -> None:
    raw = b'{"verb":7,"requestURI":"/x","user":{"username":"a","groups":[1],"uid":null},"objectRef":"pods","stage":[]}'
    for event in (events.decode(raw), events.event_of(json.loads(raw))):
        assert (event.verb, event.request_uri, event.stage, event.object_ref) == ("", "/x", "", None)
        assert event.user == UserInfo(username="a")


def test_an_unknown_field_does_not_matter() -> None:
    event = events.decode(b'{"verb":"get","objectRef":{"resource":"pods","shard":3},"cluster":{"a":[]}}')
    assert event.object_ref == ObjectRef(resource="pods")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*events.Event.__struct_encode_fields__, "cluster"]), JSON, max_size=8))
def test_members_are_found_without_a_json_library_as_with_one(document: dict[str, object]) -> None:
    raw = json.dumps(document, ensure_ascii=False, indent=1).encode("utf-8", "replace")
    assert list(events._members(raw)) == [(key, bytes(value)) for key, value in events.fields(raw).items()]


SURROGATES = st.text(st.characters(exclude_categories=()) | st.sampled_from(["\ud800", "\udfff", "\\", '"', "\x7f"]))
ODD = st.recursive(
    st.none() | st.integers() | SURROGATES,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(SURROGATES, children, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.dictionaries(SURROGATES, ODD, max_size=5), max_size=5), st.integers(2, 40), st.booleans())
def test_what_go_takes_and_json_libraries_refuse_comes_apart_into_the_bytes_it_was_sent_as(
    items: list[dict[str, object]], piece: int, spaces: bool
) -> None:
    indent = 1 if spaces else None
    texts = [json.dumps(item, indent=indent).encode() for item in items]
    document = b'{ "kind": "EventList", "odd": "\\uD8FF", "items": [' + b" ,\n".join(texts) + b"] }\n"
    before, events._PIECE = events._PIECE, piece  # escapes are cut apart anywhere
    try:
        assert [bytes(each) for each in events.split(document)] == texts
        for text, item in zip(texts, items, strict=True):
            found = events.fields(text)
            assert {name: json.loads(bytes(value)) for name, value in found.items()} == {
                # As an API server reads names: half of a pair is U+FFFD.
                name.encode("utf-16", "surrogatepass").decode("utf-16", "replace"): value
                for name, value in json.loads(text).items()
            }
            assert len(found) <= len(item)
    finally:
        events._PIECE = before


@pytest.mark.parametrize(
    "wrong",
    [
        b'"\\ud800\\x"',
        b'"\\ud800\\u12"',
        b'"\\ud800\\u12G4"',
        b'"\\ud800\\',
        b'"\\ud800',
        b'"\\ud800" "',
        b'["\\ud800",]',
        b'["\\ud800"}',
        b'{"\\ud800"}',
        b'["\\ud800", 01]',
        b'["\\ud800", nul]',
        b'["\\ud800\x01"]',
    ],
)
def test_what_is_no_json_is_not_let_through_because_half_of_a_pair_is_in_it(wrong: bytes) -> None:
    event = b'{"verb":"patch","requestObject":' + wrong + b"}"
    for document in (event, b'{"items":[' + event + b"]}"):
        with pytest.raises(EventError, match="not an audit event"):
            [events.decode(each) for each in events.split(document)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(ODD, st.integers(0, 3)), max_size=8), st.integers(2, 200))
def test_a_large_list_comes_apart_in_pieces_as_it_does_in_one(items: list[tuple[object, int]], piece: int) -> None:
    texts = []
    for body, kind in items:
        text = json.dumps({"level": "Request", "requestObject": body}, separators=(",", ":"))
        if kind == 0:  # what looks like the next item, in a string and in a body
            text = text[:-1] + ',"x":",{\\"level\\":","y":[{"a":1},{"level":"Metadata"},{"level":{}}]}'
        elif kind == 1:
            text = text[:-1] + ',"x":",{"}'
        texts.append(text.encode())
    document = (
        b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[' + b",".join(texts) + b"]}\n"
    )
    before = events._PIECE
    whole = [bytes(each) for each in events.split(document)]
    events._PIECE = piece
    try:
        assert [bytes(each) for each in events.split(document)] == whole == texts
        for wrong in (document[:-3], document[:-3] + b",]}", document.replace(b"items", b"item"), document + b"}"):
            with contextlib.suppress(EventError):
                assert [bytes(each) for each in events.split(wrong)] == [wrong]
        twice = document.rstrip()[:-1] + b',"items":[' + b",".join(texts) + b"]}"
        with contextlib.suppress(EventError):
            assert [bytes(each) for each in events.split(twice)] == texts
    finally:
        events._PIECE = before


def test_a_field_that_is_there_twice_is_read_by_nobody_in_two_ways() -> None:
    for twice in (b'{"a":"\\ud800","a":1}', b'{"a":"\\ud800","b":[1],"a":{},"c":2}'):
        with pytest.raises(EventError, match="twice"):
            events.fields(twice)


BODIES = {
    "surrogates": b'{"a":"' + b"\\ud800" * 160_000 + b'"}',
    "numbers": b'{"s":"\\ud800","a":[' + b"1," * 480_000 + b"1]}",
    "strings": b'{"s":"\\ud800","a":[' + b'"",' * 320_000 + b"1]}",
    "objects": b'{"s":"\\ud800","a":[' + b"{}," * 320_000 + b"1]}",
    "backslashes": b'{"s":"\\ud800","a":"' + b"\\\\" * 480_000 + b'"}',
    "no UTF-8": b'{"s":"\\ud800","a":"' + b"\xff" * 960_000 + b'"}',
}


@pytest.mark.parametrize("kind", BODIES)
def test_nothing_is_read_value_by_value_however_many_there_are(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: how often Python goes round a loop for a megabyte. bench/events.py times it."""
    body = BODIES[kind]
    event = b'{"verb":"patch","requestObject":' + body + b',"stage":"Panic"}'
    document = b'{"items":[' + event + b"," + event + b"]}"
    monkeypatch.setattr(events, "_members", None)  # what goes through it token by token
    counted = 0

    def count(frame: object, what: str, _argument: object) -> object:
        nonlocal counted
        counted += what == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)  # type: ignore[arg-type]
    try:
        items = events.split(document)
        decoded, fields = events.decode(items[1]), events.fields(items[1])
    finally:
        sys.settrace(before)
    assert [bytes(each) for each in items] == [event, event]
    assert bytes(decoded.request_object) == bytes(fields["requestObject"]) == body
    assert counted < 1000


def test_too_many_brackets_with_too_many_levels_are_refused_instead_of_counted() -> None:
    many = b'{"a":[' + DEEP + b"," + b"[]," * 100_000 + b"1]}"
    with pytest.raises(EventError, match="too many brackets"):
        events.split(b'{"items":[' + many + b"]}")
    with pytest.raises(EventError, match="an object of more than 1000 fields"):
        events.fields(b'{"s":"\\ud800",' + b",".join(b'"%d":1' % number for number in range(1000)) + b"}")
