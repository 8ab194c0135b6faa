"""Audit events come apart without loss, whatever clients put into the bodies they carry."""

import gzip
import json
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
        ),
        # Strings without an end, and a million quotation marks in them: one look must be enough.
        *(b'{"a":' + DEEP[:20_000] + b'"' + b'\\"' * 1_000_000 + end for end in (b"", b"\\")),
    ],
    ids=["event", "items", "list", "key", "bracket", "string", "backslash"],
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
