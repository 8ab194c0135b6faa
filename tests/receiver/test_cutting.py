"""An event cut to a level: what must go is gone however it is written, what stays is as it was sent."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from receiving import event, recorded

from audit_operator.policy.events import decode, split
from audit_operator.policy.model import GroupResources, Level
from audit_operator.policy.redact import UNREDACTABLE, RedactionRule, Redactor
from audit_operator.policy.request import request_of
from audit_operator.receiver.cutting import Cut, Redacting, Wanted, cut

PLAIN = Redacting(Redactor())
LEVELS = [Level.METADATA, Level.REQUEST, Level.REQUEST_RESPONSE]


def cut_to(raw: bytes, level: Level, *, omit: bool = False) -> dict[str, Any]:
    parsed = decode(raw)
    done = cut(raw, parsed, request_of(parsed), Level.parse(parsed.level), Wanted(level, omit, PLAIN))
    assert b"\n" not in done.data
    return json.loads(done.data)  # type: ignore[no-any-return]


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def expected(raw: bytes, level: Level) -> dict[str, Any]:
    value = json.loads(raw)
    if level < Level.REQUEST_RESPONSE:
        value.pop("responseObject", None)
    if level < Level.REQUEST:
        value.pop("requestObject", None)
    return value | {"level": str(level)}


@pytest.mark.parametrize("level", LEVELS)
def test_recorded_events_are_cut_alike_in_whatever_order_their_fields_are(level: Level) -> None:
    for body in recorded():
        for item in split(body):
            raw = bytes(item)
            parsed = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
            other = msgspec.json.encode(dict(reversed(parsed.items())))
            assert cut_to(raw, level) == cut_to(other, level)


HIDDEN = {"secret": "hunter2"}


@pytest.mark.parametrize(
    "raw",
    [
        compact(event(1, requestObject=HIDDEN, responseObject=HIDDEN)),
        json.dumps(event(1, requestObject=HIDDEN, responseObject=HIDDEN), indent=1).encode(),
        compact(event(1, requestObject=HIDDEN, extra={"requestObject": HIDDEN}))[:-1]
        + b',"responseObject":{"secret":"hunter2"}}',
        # The same text earlier, where it is something else's.
        compact({"level": "RequestResponse", "user": {"username": "a", "requestObject": HIDDEN}} | event(1)).replace(
            b'"user":{"username":"alice"', b'"user":{"username":"alice","requestObject":{"secret":"x"}'
        )[:-1]
        + b',"requestObject":{"secret":"hunter2"}}',
        # Given twice, or with an escape in its name.
        compact(event(1, requestObject=HIDDEN))[:-1] + b',"requestObject":{"secret":"hunter2"}}',
        compact(event(1, requestObject=HIDDEN)).replace(b'"requestObject"', b'"request\\u004fbject"'),
    ],
)
def test_a_body_is_gone_however_the_event_is_written(raw: bytes) -> None:
    found = cut_to(raw, Level.METADATA)
    assert "requestObject" not in found
    assert "responseObject" not in found
    assert found["level"] == "Metadata"


@pytest.mark.parametrize("level", [Level.METADATA, Level.REQUEST])
def test_a_body_that_the_recorded_level_does_not_allow_goes_too(level: Level) -> None:
    found = cut_to(compact(event(1, level=str(level), requestObject=HIDDEN, responseObject=HIDDEN)), level)
    assert "responseObject" not in found
    assert ("requestObject" in found) == (level is Level.REQUEST)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["requestObject", "responseObject", "level", "a"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(JSON.filter(lambda v: v is not None), JSON.filter(lambda v: v is not None), JSON, st.sampled_from(LEVELS))
@settings(max_examples=200, deadline=None)
def test_any_event_is_cut_to_what_remains_at_its_level(request: Any, response: Any, extra: Any, level: Level) -> None:
    raw = compact(event(1, other=extra, requestObject=request, responseObject=response, z=extra))
    assert cut_to(raw, level) == expected(raw, level)


MANAGED = {"metadata": {"name": "x", "managedFields": [{"manager": "m"}]}, "spec": {"managedFields": 1, "f": 1.50}}
BARE = {"metadata": {"name": "x"}, "spec": {"managedFields": 1, "f": 1.50}}


@pytest.mark.parametrize(
    ("body", "stripped"),
    [
        (MANAGED, BARE),
        ({"kind": "PodList", "items": [MANAGED, 7, MANAGED]}, {"kind": "PodList", "items": [BARE, 7, BARE]}),
        ({"kind": "PodList", "items": [MANAGED, MANAGED]}, {"kind": "PodList", "items": [BARE, BARE]}),
        (
            {"kind": "Table", "rows": [{"cells": [], "object": MANAGED}]},
            {"kind": "Table", "rows": [{"cells": [], "object": BARE}]},
        ),
        ([MANAGED], [MANAGED]),
        ("managedFields", "managedFields"),
        ({"metadata": "managedFields"}, {"metadata": "managedFields"}),
    ],
)
def test_managed_fields_go_where_the_api_server_takes_them_out(body: Any, stripped: Any) -> None:
    raw = compact(event(1, verb="update", requestObject=body, responseObject=body))
    found = cut_to(raw, Level.REQUEST_RESPONSE, omit=True)
    assert found["responseObject"] == stripped
    assert found["requestObject"] == stripped
    # A PATCH is recorded as it was sent.
    patch = compact(event(1, verb="patch", requestObject=body, responseObject=body))
    found = cut_to(patch, Level.REQUEST_RESPONSE, omit=True)
    assert (found["requestObject"], found["responseObject"]) == (body, stripped)


def test_what_redaction_made_of_an_event_without_bodies_is_remembered_per_resource_and_content() -> None:
    def status(resource: str, message: str) -> Any:
        raw = compact(
            event(
                1,
                verb="create",
                requestURI=f"/api/v1/namespaces/default/{resource}",
                objectRef={"resource": resource, "namespace": "default", "apiVersion": "v1"},
                responseStatus={"metadata": {}, "status": "Failure", "message": message, "code": 422},
            )
        )
        return cut_to(raw, Level.METADATA)["responseStatus"]["message"]

    for _ in range(2):
        assert status("secrets", "invalid value: hunter2") == "***"
        assert status("pods", "invalid value: hunter2") == "invalid value: hunter2"
        assert status("secrets", "invalid value: hunter3") == "***"


SECRET = b'{"kind":"Secret","apiVersion":"v1","data":{"a":"hunter2"}}'


@pytest.mark.parametrize(
    "name", [b"requestObject", b"RequestObject", b"REQUESTOBJECT", b"r\\u0065questObject", b"later"]
)
@pytest.mark.parametrize("resource", ["pods", "secrets"])
def test_no_body_is_overlooked_whatever_it_is_called_and_how_often(name: bytes, resource: str) -> None:
    ref = {"resource": resource, "namespace": "default", "name": "web", "apiVersion": "v1"}
    plain = compact(event(1, verb="update", objectRef=ref, requestURI=f"/api/v1/namespaces/default/{resource}/web"))
    for more in (
        b',"%b":%b' % (name, SECRET),
        b',"%b":%b,"requestObject":{"kind":"Pod"}' % (name, SECRET),
        b',"%b":%b,"requestObject":null' % (name, SECRET),
        b',"requestObject":{"kind":"Pod"},"%b":%b' % (name, SECRET),
        b',"%b":[%b]' % (name, SECRET),
    ):
        for level in LEVELS:
            raw = plain[:-1] + more + b"}"
            parsed = decode(raw)
            done = cut(raw, parsed, request_of(parsed), Level.REQUEST_RESPONSE, Wanted(level, False, PLAIN))
            assert b"hunter2" not in done.data
            assert json.loads(done.data)["auditID"] == event(1)["auditID"]


@pytest.mark.parametrize("name", ["annotations", "responseStatus"])
@pytest.mark.parametrize("level", LEVELS)
def test_what_is_given_twice_leaves_once(name: str, level: Level) -> None:
    first = compact({"message": "of a Secret", "a": json.dumps({"kind": "Secret", "data": {"a": "hunter2"}})})
    raw = compact(event(1, level=str(level)))[:-1] + b',"%b":%b,"%b":{}}' % (name.encode(), first, name.encode())
    assert b"hunter2" not in compact(cut_to(raw, level))


def test_an_event_about_what_has_no_secrets_is_not_touched() -> None:
    harmless = {
        "kind": "Pod",
        "metadata": {"annotations": {"requestObject": "x", "note": "Secret"}},
        "requestObject": {},
    }
    raw = compact(event(1, requestObject=harmless, annotations={"authorization.k8s.io/reason": "{"}, later=[{"a": 1}]))
    parsed = decode(raw)
    done = cut(raw, parsed, request_of(parsed), Level.REQUEST_RESPONSE, Wanted(Level.REQUEST_RESPONSE, False, PLAIN))
    assert done == Cut(raw)
    bare = compact(event(1, level="Metadata", user={"username": "a{", "extra": {"a": ["b"]}}, annotations={"a": "{}{"}))
    assert cut_to(bare, Level.METADATA) == json.loads(bare)


@pytest.mark.parametrize("level", LEVELS)
def test_an_error_quotes_no_secret_of_a_body_that_does_not_leave(level: Level) -> None:
    secret = {"spec": {"manifest": {"kind": "Secret", "data": {"a": "hunter2"}}}}
    status = {
        "status": "Failure",
        "message": 'Widget "a" is invalid: spec.manifest: Invalid value: "hunter2"',
        "code": 422,
    }
    raw = compact(event(1, verb="create", requestObject=secret, responseStatus=status, annotations={"w/o": "hunter2"}))
    left = cut_to(raw, level)
    assert left["responseStatus"] == status | {"message": 'Widget "a" is invalid: ***'}
    assert left["annotations"] == {"w/o": "***"}
    other = compact(event(1, verb="create", requestObject={"spec": {}}, responseStatus=status))
    assert cut_to(other, level)["responseStatus"] == status


def test_what_is_remembered_of_a_status_that_names_an_object_holds_for_that_object_only() -> None:
    def name(asked: str) -> Any:
        details = {"name": "hunter2", "kind": "secrets", "uid": "6cda80ee-4a29-4373-8c4c-febb6f78ba28"}
        ref = {"resource": "secrets", "namespace": "default", "name": asked, "apiVersion": "v1"}
        uri = f"/api/v1/namespaces/default/secrets/{asked}"
        status = {"metadata": {}, "status": "Success", "details": details, "code": 200}
        raw = compact(event(1, level="Metadata", verb="delete", requestURI=uri, objectRef=ref, responseStatus=status))
        return cut_to(raw, Level.METADATA)["responseStatus"]["details"]["name"]

    assert [name("hunter2"), name("other"), name("hunter2")] == ["hunter2", "***", "hunter2"]


def test_minimal_is_who_did_what_when() -> None:
    raw = compact(event(1, objectRef=None, user={}, responseStatus={"code": "odd"}, requestURI="/healthz"))
    assert cut_to(raw, Level.MINIMAL) == {
        "level": "Minimal",
        "auditID": json.loads(raw)["auditID"],
        "stage": "ResponseComplete",
        "requestURI": "/healthz",
        "verb": "get",
        "user": {},
        "responseStatus": {},
        "stageTimestamp": json.loads(raw)["stageTimestamp"],
    }


MANY = RedactionRule(
    resources=(GroupResources("", ("pods",)),), paths=tuple(f"spec.*.*.field{number}" for number in range(300))
)


@pytest.mark.parametrize("bounded", [False, True])
def test_a_body_that_a_tenants_redactions_would_search_for_long_goes_as_a_whole(bounded: bool) -> None:
    body = {"spec": {f"a{n}": {f"b{m}": {"field1": "hunter2"} for m in range(10)} for n in range(400)}}
    status = {"code": 422, "message": "hunter2 is no value"}
    raw = compact(event(1, verb="update", requestObject=body, responseObject={"spec": {}}, responseStatus=status))
    parsed = decode(raw)
    wanted = Wanted(Level.REQUEST_RESPONSE, False, Redacting(Redactor((MANY,)), bounded=bounded))
    done = cut(raw, parsed, request_of(parsed), Level.REQUEST_RESPONSE, wanted)
    assert b"hunter2" not in done.data
    said = json.loads(done.data)
    # The platform's rules take the time they need.
    assert (said["requestObject"] == UNREDACTABLE) == bounded
    assert done.failed == (("requestObject",) if bounded else ())
    assert said["responseObject"] == {"spec": {}}
    assert said["user"] == event(1)["user"]
    nodes = {"resource": "nodes", "name": "a", "apiVersion": "v1"}
    other = compact(event(1, requestURI="/api/v1/nodes/a", objectRef=nodes, requestObject=body))
    parsed = decode(other)
    kept = cut(other, parsed, request_of(parsed), Level.REQUEST_RESPONSE, wanted)
    assert kept.data == other, "a rule costs nothing where it does not apply"
