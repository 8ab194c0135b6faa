"""Secrets stay out: whatever form a body takes, what a rule names does not leave, and everything else does."""

import base64
import gzip
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from audit_operator.policy import events
from audit_operator.policy.events import Event
from audit_operator.policy.model import GroupResources, Request
from audit_operator.policy.redact import (
    BUILT_IN,
    MASK,
    MAX_DEPTH,
    REPEATED,
    REPEATING_ANNOTATIONS,
    UNREDACTABLE,
    Action,
    Redacted,
    RedactionError,
    RedactionRule,
    Redactor,
)
from audit_operator.policy.request import request_of
from audit_operator.resources.auditpolicy import RedactionPath

CORPUS = Path(__file__).parent.parent / "data" / "audit-eventlists.jsonl.gz"
DEEP = b"[" * 9_000 + b"]" * 9_000
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
KEY = bytes(range(32))


def a_request(verb: str, resource: str, group: str = "", subresource: str = "") -> Request:
    return Request(user="u", verb=verb, api_group=group, resource=resource, subresource=subresource)


def logins(*paths: str, action: Action = Action.REMOVE, resource: str = "logins") -> RedactionRule:
    return RedactionRule(resources=(GroupResources("example.com", (resource,)),), paths=paths, action=action)


LOGINS = a_request("create", "logins", "example.com")
SECRETS = a_request("create", "secrets")
PATCH_SECRETS = a_request("patch", "secrets")
BUILT_IN_ONLY = Redactor()


def redact(
    request: Request, *, redactor: Redactor = BUILT_IN_ONLY, raw: dict[str, bytes] | None = None, **fields: Any
) -> Any:
    """The fields after redaction, as the receiver would write them; given one field, that one's value."""
    event = {name: json.dumps(value).encode() for name, value in fields.items()} | (raw or {})
    document = b"{" + b",".join(json.dumps(name).encode() + b":" + value for name, value in event.items()) + b"}"
    written = events.fields(document) | redactor.redact(events.decode(document), request).fields
    result = {name: json.loads(bytes(value)) for name, value in written.items()}
    return next(iter(result.values())) if len(result) == 1 else result


def body_after(*rules: RedactionRule, body: Any, request: Request = LOGINS, hash_key: bytes = b"") -> Any:
    return redact(request, redactor=Redactor(rules, hash_key=hash_key), requestObject=body)


# --- recorded traffic


@pytest.fixture(scope="module")
def recorded() -> list[tuple[dict[str, Any], Event, Redacted]]:
    with gzip.open(CORPUS) as lines:
        raws = [raw for line in lines for raw in events.split(line)]
    result = []
    for raw in raws:
        event = events.decode(raw)
        result.append((json.loads(bytes(raw)), event, BUILT_IN_ONLY.redact(event, request_of(event))))
    return result


CREDENTIALS = {
    ("secrets", ""): [("data",), ("stringData",)],
    ("configmaps", ""): [("data",), ("binaryData",)],
    ("serviceaccounts", "token"): [("status", "token")],
    ("tokenreviews", ""): [("spec", "token"), ("status",)],
    ("certificatesigningrequests", ""): [("spec", "request"), ("status", "certificate")],
    ("certificatesigningrequests", "approval"): [("spec", "request"), ("status", "certificate")],
}


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for child in value.values() for leaf in leaves(child)]
    if isinstance(value, list):
        return [leaf for child in value for leaf in leaves(child)]
    return [value]


def credentials_in(body: Any, paths: list[tuple[str, ...]]) -> list[Any]:
    found = []
    for item in [body, *(body.get("items") or []), *(row["object"] for row in body.get("rows") or [])]:
        for path in paths if item.get("kind") != "Status" else []:
            value = item
            for key in path:
                value = (value or {}).get(key)
            found += [leaf for leaf in leaves(value) if leaf not in (None, "")]
    return found


def test_no_recorded_credential_gets_out(recorded: list[tuple[dict[str, Any], Event, Redacted]]) -> None:
    before = []
    for plain, event, redacted in recorded:
        reference = plain.get("objectRef", {})
        paths = CREDENTIALS.get((reference.get("resource", ""), reference.get("subresource", "")))
        if paths is None:
            continue
        written = {**plain, **{name: json.loads(bytes(value)) for name, value in redacted.fields.items()}}
        for field in ("requestObject", "responseObject"):
            if isinstance(plain.get(field), dict):
                there = credentials_in(plain[field], paths)
                before += there
                assert set(credentials_in(written[field], paths)) <= {MASK}
                text = json.dumps(written)
                assert not [value for value in there if isinstance(value, str) and len(value) > 20 and value in text]
        assert not redacted.failed
        assert event.verb == written["verb"]
    assert len(before) == 92
    assert sum(redacted.count for *_, redacted in recorded) > 100


def test_recorded_bodies_without_credentials_are_left_alone(
    recorded: list[tuple[dict[str, Any], Event, Redacted]],
) -> None:
    others = 0
    for plain, _, redacted in recorded:
        reference = plain.get("objectRef", {})
        if (reference.get("resource", ""), reference.get("subresource", "")) in CREDENTIALS:
            continue
        others += 1
        assert redacted.count == 0
        assert {name: json.loads(bytes(value)) for name, value in redacted.fields.items()}.items() <= plain.items()
    assert others > 2000


def test_a_recorded_error_that_quotes_the_body_is_masked(
    recorded: list[tuple[dict[str, Any], Event, Redacted]],
) -> None:
    (case,) = [case for case in recorded if "bad json" in case[0].get("responseStatus", {}).get("message", "")]
    plain, _, redacted = case
    assert "({bad json)" in plain["responseObject"]["message"]
    for field in ("responseStatus", "responseObject"):
        assert json.loads(bytes(redacted.fields[field])) == plain[field] | {"message": MASK}


# --- built-in rules, forms


def test_a_secret_keeps_the_names_of_its_keys() -> None:
    secret = {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "db"}, "type": "Opaque"}
    data = {"data": {"user": "YQ==", "password": "Yg=="}, "stringData": {"pin": "1234"}, "immutable": True}
    masked = {"data": {"user": MASK, "password": MASK}, "stringData": {"pin": MASK}, "immutable": True}
    assert redact(SECRETS, requestObject=secret | data) == secret | masked


@pytest.mark.parametrize(
    ("request_", "body", "after"),
    [
        (
            a_request("create", "configmaps"),
            {"data": {"a": "x"}, "binaryData": {"b": "x"}},
            {"data": {"a": MASK}, "binaryData": {"b": MASK}},
        ),
        (
            a_request("create", "serviceaccounts", "", "token"),
            {"spec": {"audiences": ["a"]}, "status": {"token": "x", "expirationTimestamp": "t"}},
            {"spec": {"audiences": ["a"]}, "status": {"token": MASK, "expirationTimestamp": "t"}},
        ),
        (
            a_request("create", "tokenreviews", "authentication.k8s.io"),
            {"spec": {"token": "x", "audiences": ["a"]}, "status": {"authenticated": True, "user": {"uid": "7"}}},
            {"spec": {"token": MASK, "audiences": ["a"]}},
        ),
        (
            a_request("update", "certificatesigningrequests", "certificates.k8s.io", "status"),
            {"spec": {"request": "x", "signerName": "s"}, "status": {"certificate": "x", "conditions": []}},
            {"spec": {"request": MASK, "signerName": "s"}, "status": {"certificate": MASK, "conditions": []}},
        ),
        (
            a_request("update", "podcertificaterequests", "certificates.k8s.io", "status"),
            {"spec": {"proofOfPossession": "x", "stubPKCS10Request": "x"}, "status": {"certificateChain": "x"}},
            {"spec": {"proofOfPossession": MASK, "stubPKCS10Request": MASK}, "status": {"certificateChain": MASK}},
        ),
    ],
    ids=lambda value: value.resource if isinstance(value, Request) else "",
)
def test_every_built_in_credential_is_covered(request_: Request, body: Any, after: Any) -> None:
    assert redact(request_, requestObject=body) == after
    assert redact(request_, responseObject={"kind": "List", "items": [body]})["items"] == [after]


COPIES = (
    *("kubectl.kubernetes.io/last-applied-configuration", "kopf.zalando.org/last-handled-configuration"),
    *("fluxcd.io/last-applied", "my.tool/last-applied", "pulumi.com/last-applied", "meta.helm.sh/values"),
    *("reconcile.example.com/previous", "kapp.k14s.io/original", "kubernetes.io/change-cause", "note", ""),
)


@pytest.mark.parametrize("request_", [SECRETS, PATCH_SECRETS, LOGINS], ids=["Secret", "patch", "own rule"])
def test_whatever_tool_repeats_the_object_in_an_annotation_its_copy_is_masked(request_: Request) -> None:
    metadata = {
        "name": "db",
        "annotations": {"deployment.kubernetes.io/revision": "1", "gone": None, **dict.fromkeys(COPIES, "x")},
        "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:data": {"f:password": {}}}, "other": "x"}],
    }
    after = {
        "name": "db",
        "annotations": {"deployment.kubernetes.io/revision": "1", "gone": None, **dict.fromkeys(COPIES, MASK)},
        "managedFields": [{"manager": "kubectl"}],
    }
    redactor = Redactor([logins("spec.password")])
    assert redact(request_, redactor=redactor, requestObject={"metadata": metadata}) == {"metadata": after}
    listed = {"kind": "List", "items": [{"metadata": metadata}]}
    assert redact(request_, redactor=redactor, responseObject=listed)["items"] == [{"metadata": after}]
    for odd in ("x", ["x"], 7):
        body = {"metadata": {"annotations": odd, "managedFields": odd}}
        assert "x" not in json.dumps(redact(request_, redactor=redactor, requestObject=body))
        assert "x" not in json.dumps(redact(request_, redactor=redactor, requestObject={"metadata": odd}))


def test_annotations_of_what_a_workload_makes_are_masked_too() -> None:
    annotated = {"metadata": {"annotations": {"note": "x", "prometheus.io/scrape": "true"}}}
    after = {"metadata": {"annotations": {"note": MASK, "prometheus.io/scrape": "true"}}}
    body = {"spec": {"template": annotated, "jobTemplate": {**annotated, "spec": {"template": annotated}}}}
    masked = {"spec": {"template": after, "jobTemplate": {**after, "spec": {"template": after}}}}
    rule = logins("status.password")
    assert body_after(rule, body=body) == masked
    for odd in ({"spec": ["a"]}, {"spec": {"template": "a", "jobTemplate": 7}}, {"spec": {"template": {"a": 1}}}):
        assert body_after(rule, body=odd) == odd
    patch = [
        {"op": "add", "path": "/spec/template/metadata/annotations/note", "value": "x"},
        {"op": "add", "path": "/spec/template/metadata", "value": annotated["metadata"]},
        {"op": "add", "path": "/spec/0", "value": "kept"},
        {"op": "add", "path": "/spec", "value": ["kept"]},
    ]
    values = [
        each["value"] for each in body_after(rule, body=patch, request=a_request("patch", "logins", "example.com"))
    ]
    assert values == [MASK, after["metadata"], "kept", ["kept"]]


def test_an_annotation_that_an_own_rule_names_is_left_to_it() -> None:
    rule = logins('metadata.annotations["example.com/token"]', action=Action.HASH)
    after = body_after(rule, body={"metadata": {"annotations": {"example.com/token": "x", "a": "x"}}}, hash_key=KEY)
    assert after["metadata"]["annotations"]["example.com/token"].startswith("hmac-sha256:")
    assert after["metadata"]["annotations"]["a"] == MASK
    every = body_after(
        logins("metadata.annotations.*", action=Action.HASH),
        body={"metadata": {"annotations": {"a": "x"}}},
        hash_key=KEY,
    )
    assert every["metadata"]["annotations"]["a"].startswith("hmac-sha256:")


def test_labels_of_built_in_kinds_are_masked_unless_they_are_known_to_be_names() -> None:
    labels = {"app.kubernetes.io/name": "db", "password": "x", "owner": "helm"}
    body = {"metadata": {"name": "db", "labels": labels}}
    after = {"metadata": {"name": "db", "labels": labels | {"password": MASK}}}
    assert redact(SECRETS, responseObject=body) == after
    assert redact(a_request("get", "secrets", "vault.example.com"), responseObject=body) == after
    own = RedactionRule(resources=(GroupResources("", ("secrets",)),), paths=("spec.a",))
    assert body_after(own, body=body, request=SECRETS) == after
    assert body_after(logins("spec.password"), body=body) == body


def test_a_redacted_value_is_hidden_in_metadata_keys_and_pointers_of_the_same_event() -> None:
    value, packed = "hunter2-MARKER", base64.b64encode(b"hunter2-MARKER").decode()
    labels = {"app": value, "owner": f"v-{value}", "name": packed, "version": "1"}
    hidden = {"app": MASK, "owner": MASK, "name": MASK, "version": "1"}
    metadata = {"labels": labels, "finalizers": [f"{value}/x", "kept"], "name": value}
    after = {"labels": hidden, "finalizers": [MASK, "kept"], "name": value}
    for data in ({"stringData": {"a": value}}, {"data": {"a": packed}}):
        assert redact(SECRETS, requestObject={"metadata": metadata, **data})["metadata"] == after
    # What a merge patch labels is known from the answer.
    both = redact(PATCH_SECRETS, requestObject={"metadata": metadata}, responseObject={"data": {"a": packed}})
    assert both["requestObject"]["metadata"] == after
    assert redact(SECRETS, requestObject={"data": {value: value, "b": "y"}}) == {"data": {MASK: MASK, "b": MASK}}
    own = body_after(
        logins("spec.password", action=Action.MASK), body={"metadata": metadata, "spec": {"password": value}}
    )
    assert own["metadata"] == after
    patch = [
        {"op": "add", "path": f"/metadata/labels/{value}", "value": "1"},
        {"op": "add", "path": "/metadata/labels/app", "value": value},
        {"op": "add", "path": f"/stringData/{value}", "value": value},
    ]
    assert value not in json.dumps(redact(PATCH_SECRETS, requestObject=patch))
    status = {"code": 404, "message": f'secrets "{value}" not found', "details": {"name": value}}
    failed = redact(SECRETS, requestObject={"stringData": {"a": value}}, responseStatus=status)
    assert failed["responseStatus"] == {"code": 404, "message": MASK, "details": {"name": MASK}}


def test_what_is_short_or_not_redacted_is_hidden_nowhere() -> None:
    body = {"metadata": {"labels": {"app": "true", "owner": "backend-team"}}, "data": {"a": "true"}}
    after = {**body, "data": {"a": MASK}}
    assert (
        redact(SECRETS, requestObject=body, responseObject={"metadata": {"labels": {"x": "backend-team"}}})[
            "requestObject"
        ]
        == after
    )


def test_where_many_values_are_and_one_is_found_none_is_searched_for_in_each_text() -> None:
    data = {f"key-{number}": f"value-{number:06}" for number in range(100)}
    labels = {"app": "value-000007", "owner": "anything"}
    after = redact(SECRETS, requestObject={"metadata": {"labels": labels}, "data": data})
    assert after["metadata"] == {"labels": dict.fromkeys(labels, MASK)}
    labels["app"] = "another"
    assert redact(SECRETS, requestObject={"metadata": {"labels": labels}, "data": data})["metadata"]["labels"] == labels


def test_too_many_values_to_compare_hide_all_that_could_be_one() -> None:
    data = {f"key-{number}": f"value-{number:06}" for number in range(20_000)}
    body = {"metadata": {"labels": {"app": "value-000007", "owner": "anything", "version": "1"}}, "data": data}
    after = redact(SECRETS, requestObject=body)
    assert after["metadata"] == {"labels": dict.fromkeys(("app", "owner", "version"), MASK)}
    assert set(after["data"].values()) == {MASK}


def test_lists_tables_and_watch_events_are_opened() -> None:
    secret, after = {"data": {"a": "x"}}, {"data": {"a": MASK}}
    table = {"kind": "Table", "rows": [{"conditions": [], "object": secret}, {"object": None}]}
    assert redact(SECRETS, responseObject=table)["rows"] == [{"conditions": [], "object": after}, {"object": None}]
    assert redact(SECRETS, responseObject={"type": "ADDED", "object": secret}) == {"type": "ADDED", "object": after}
    assert redact(SECRETS, responseObject={"kind": "SecretList", "items": None}) == {
        "kind": "SecretList",
        "items": None,
    }


def test_a_secret_inside_another_object_is_found_by_its_kind() -> None:
    secret = {"kind": "Secret", "metadata": {"annotations": {LAST_APPLIED: "x"}}, "data": {"a": "x"}}
    after = {"kind": "Secret", "metadata": {"annotations": {LAST_APPLIED: MASK}}, "data": {"a": MASK}}
    manifest = a_request("create", "manifestworks", "work.open-cluster-management.io")
    body = {"spec": {"manifests": [secret, {"kind": "Deployment", "data": {"a": "x"}}]}}
    assert redact(manifest, requestObject=body)["spec"]["manifests"] == [after, body["spec"]["manifests"][1]]
    listed = {"object": {"kind": "SecretList", "items": [{"data": {"a": "x"}}]}}
    assert redact(manifest, requestObject=listed)["object"]["items"] == [{"data": {"a": MASK}}]


def test_a_kind_counts_beside_own_rules() -> None:
    body = {"kind": "Secret", "data": {"a": "x"}, "spec": {"password": "x", "other": "y"}}
    after = {"kind": "Secret", "data": {"a": MASK}, "spec": {"other": "y"}}
    assert body_after(logins("spec.password"), body=body) == after


def test_a_repeating_annotation_goes_if_a_secret_is_in_what_it_repeats() -> None:
    inside = json.dumps({"spec": {"manifest": {"kind": "Secret", "data": {"a": "x"}}}})
    reference = json.dumps({"spec": {"ref": {"kind": "Secret", "name": "x"}}})
    for text, kept in [(inside, False), (reference, True), ('{"kind":"Secret', False), ("no object", True)]:
        body = {"kind": "Widget", "metadata": {"annotations": {LAST_APPLIED: text}}}
        after = redact(a_request("update", "widgets", "example.com"), requestObject=body)
        assert after["metadata"]["annotations"] == ({LAST_APPLIED: text} if kept else {})


SECRET_TEXT = json.dumps({"kind": "Secret", "data": {"a": "x"}})
MASKED_TEXT = json.dumps({"kind": "Secret", "data": {"a": MASK}}, separators=(",", ":"))


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ({"spec": {"raw": SECRET_TEXT}}, {"spec": {"raw": MASKED_TEXT}}),
        ({"spec": {"raws": ["-", f"\n {SECRET_TEXT}"]}}, {"spec": {"raws": ["-", MASKED_TEXT]}}),
        ({"a": json.dumps([{"b": SECRET_TEXT}])}, {"a": json.dumps([{"b": MASKED_TEXT}], separators=(",", ":"))}),
        ({"a": SECRET_TEXT.replace("S", "\\u0053")}, {"a": MASKED_TEXT}),
        ({"a": SECRET_TEXT[:-1]}, {"a": MASK}),
        ({"a": '{{ "Secret" }}'}, {"a": '{{ "Secret" }}'}),
        ({"a": '[a "Secret"]'}, {"a": '[a "Secret"]'}),
        ({"a": '{"kind": "Secret", "name": "x"}'}, {"a": '{"kind": "Secret", "name": "x"}'}),
        (
            [{"op": "add", "path": f"/metadata/annotations/{LAST_APPLIED.replace('/', '~1')}", "value": SECRET_TEXT}],
            [{"op": "add", "path": f"/metadata/annotations/{LAST_APPLIED.replace('/', '~1')}", "value": MASKED_TEXT}],
        ),
    ],
    ids=["field", "items", "twice", "escaped", "cut off", "template", "log", "reference", "JSON patch"],
)
def test_a_secret_in_json_in_a_string_is_found(body: Any, after: Any) -> None:
    assert redact(a_request("patch", "widgets", "example.com"), requestObject=body) == after


def test_quotation_marks_written_as_escapes_hide_nothing() -> None:
    hidden = json.dumps({"a": SECRET_TEXT}).replace('\\"', "\\u0022").encode()
    assert redact(a_request("patch", "widgets", "example.com"), raw={"requestObject": hidden})["a"] == MASKED_TEXT


def test_a_kind_cannot_hide_behind_an_escape() -> None:
    hidden = b'{"spec":{"kind":"\\u0053ecret","data":{"a":"x"}}}'
    assert redact(LOGINS, raw={"requestObject": hidden})["spec"]["data"] == {"a": MASK}


@pytest.mark.parametrize(
    "body",
    [
        b'{"kind":"Secret","kind":"Widget","data":{"a":"x"}}',
        b'{"kind":"Widget","kind":"Secret","data":{"a":"x"}}',
        b'{"Kind":"Secret","data":{"a":"x"}}',
        b'{"kind":"Widget","KIND":"Secret","data":{"a":"x"}}',
        b'{"k\\u0069nd":"Secret","kind":"Widget","data":{"a":"x"}}',
    ],
)
def test_of_two_kinds_the_one_with_secrets_counts(body: bytes) -> None:
    widget = a_request("patch", "widgets", "example.com")
    after = redact(widget, raw={"requestObject": b'{"spec":' + body + b',"n":1.10}'})
    assert after == {"spec": {"kind": "Secret", "data": {"a": MASK}}, "n": 1.10}
    assert redact(widget, requestObject={"a": body.decode()})["a"] == MASKED_TEXT.replace(
        '"kind":"Secret","data":{"a":"***"}', '"data":{"a":"***"},"kind":"Secret"'
    )


def test_an_object_of_two_kinds_with_secrets_goes_as_a_whole() -> None:
    body = b'{"a":{"kind":"Secret","kind":"ConfigMap","stringData":"x","binaryData":"x"}}'
    assert redact(a_request("patch", "widgets", "example.com"), raw={"requestObject": body}) == {"a": MASK}
    same = b'{"a":{"kind":"Secret","kind":"Secret","stringData":"x"}}'
    after = redact(a_request("patch", "widgets", "example.com"), raw={"requestObject": same})
    assert after == {"a": {"kind": "Secret", "stringData": MASK}}


def test_kinds_without_secrets_may_be_given_twice() -> None:
    body = b'{"a":{"kind":"Pod","Kind":"Widget"},"b":{"kind":"Secret","data":{}},"c":{"kind":null}}'
    after = redact(a_request("patch", "widgets", "example.com"), raw={"requestObject": body})
    assert after == {"a": {"kind": "Pod", "Kind": "Widget"}, "b": {"kind": "Secret", "data": {}}, "c": {"kind": None}}


def test_a_reference_to_a_secret_is_no_secret() -> None:
    body = {"spec": {"secretRef": {"kind": "Secret", "name": "db", "namespace": "team-a"}}}
    assert redact(a_request("create", "widgets", "example.com"), requestObject=body) == body


def test_nothing_is_parsed_that_holds_nothing() -> None:
    event = Event(request_object=msgspec.Raw(b'{"spec" : {}}'), annotations=msgspec.Raw(b'{"a":"b"}'))
    assert BUILT_IN_ONLY.redact(event, a_request("create", "pods")) == Redacted({}, 0, ())
    assert BUILT_IN_ONLY.redact(Event(), SECRETS) == Redacted({}, 0, ())


# --- patches


@pytest.mark.parametrize(
    ("operation", "after"),
    [
        ({"op": "add", "path": "/data/password", "value": "x"}, {"value": MASK}),
        ({"op": "replace", "path": "/data", "value": {"a": "x", "b": None}}, {"value": {"a": MASK, "b": None}}),
        ({"op": "replace", "path": "/data", "value": "x"}, {"value": MASK}),
        ({"op": "replace", "path": "", "value": {"data": {"a": "x"}, "type": "T"}}, None),
        ({"op": "test", "path": "/stringData/a~1b", "value": ["x"]}, {"value": MASK}),
        ({"op": "add", "path": "/data/a/b/c", "value": "x"}, {"value": MASK}),
        ({"op": "add", "path": "/DATA/a", "value": "x"}, {"value": MASK}),
        ({"op": "add", "path": "data/a", "value": "x"}, {"value": MASK}),
        ({"op": "add", "path": 7, "value": "x"}, {"path": MASK, "value": MASK}),
        ({"op": "add", "value": "x"}, {"value": MASK}),
        ({"op": "add", "path": "/data/a", "Value": "x"}, {"Value": MASK}),
        ({"op": "add", "path": "/0", "value": "x"}, "gone"),
        ({"op": "add", "path": "//data/a", "value": "x"}, {"value": MASK}),
        ({"op": "add", "path": "/dta/a", "value": "x"}, {"value": MASK}),
        ({"op": "add", "path": "/password", "value": "x"}, {"value": MASK}),
        ({"op": "add", "path": "/metadata/annotations", "value": {LAST_APPLIED: "x"}}, {"value": {LAST_APPLIED: MASK}}),
        (
            {"op": "add", "path": f"/metadata/annotations/{LAST_APPLIED.replace('/', '~1')}", "value": "x"},
            {"value": MASK},
        ),
        ({"op": "add", "path": "/metadata/annotations/helm.sh~1hook", "value": "x"}, {}),
        ({"op": "add", "path": "/metadata/managedFields", "value": [{"fieldsV1": "x"}]}, {"value": [{}]}),
        ({"op": "x", "path": "/metadata/labels/app", "value": "a"}, {"op": MASK}),
        ({"op": "copy", "from": "/data/a", "path": "/data/b"}, {}),
        ({"op": "remove", "path": "/data/a"}, {}),
        ({"op": "add", "path": "/metadata/labels/app", "value": "b"}, {}),
        ({"op": "add", "path": "/metadata/labels/a", "value": "x"}, {"value": MASK}),
        ({"op": "replace", "path": "/type", "value": "b"}, {}),
    ],
    ids=lambda value: str(value.get("path", "-")) if isinstance(value, dict) and "op" in value else "",
)  # fmt: skip
def test_json_patches_are_followed(operation: dict[str, Any], after: Any) -> None:
    (result,) = redact(PATCH_SECRETS, requestObject=[operation])
    if after is None:
        assert result["value"] == {"data": {"a": MASK}, "type": "T"}
    elif after == "gone":
        assert result == {key: operation[key] for key in ("op", "path")}
    else:
        assert result == operation | after


def test_what_is_no_operation_does_not_pass() -> None:
    assert redact(PATCH_SECRETS, requestObject=["x", {"x": "x"}, [["x"]], None]) == [MASK, {"x": MASK}, MASK, MASK]


def test_a_patch_value_in_the_wrong_place_does_not_pass() -> None:
    patch = {"metadata": {"labels": {"app": "b"}}, "dta": {"password": "x"}, "password": "x", "$patch": "merge"}
    assert redact(PATCH_SECRETS, requestObject=patch) == patch | {"dta": MASK, "password": MASK}
    indented = {"metadata": {"name": "db", "labels": {"app": "b"}, "data": {"password": "x"}}}
    after = {"metadata": {"name": "db", "labels": {"app": "b"}, "data": MASK}}
    assert redact(PATCH_SECRETS, requestObject=indented) == after
    operation = {"op": "add", "path": "/metadata/data/password", "value": "x"}
    assert redact(PATCH_SECRETS, requestObject=[operation]) == [operation | {"value": MASK}]


def test_a_directive_of_a_patch_is_one_or_nothing() -> None:
    for directive, after in (("replace", "replace"), ("merge", "merge"), ("x", MASK), ({"a": "x"}, MASK)):
        patch = {"$patch": directive, "data": {"a": "y"}}
        assert redact(PATCH_SECRETS, requestObject=patch) == {"$patch": after, "data": {"a": MASK}}


@pytest.mark.parametrize("body", ["x", ["x"], 7, True])
def test_a_body_that_is_no_object_does_not_pass(body: Any) -> None:
    assert redact(SECRETS, requestObject=body) == MASK


def test_strategic_merge_directives_are_values_of_their_field() -> None:
    rule = logins("spec.tokens[*]", "spec.users[*].key")
    patch = {
        "spec": {
            "$deleteFromPrimitiveList/tokens": ["x", "x"],
            "$setElementOrder/users": [{"key": "x"}, {"name": "a"}],
            "users": [{"$patch": "delete", "key": "x"}],
        }
    }
    assert body_after(rule, body=patch, request=a_request("patch", "logins", "example.com")) == {
        "spec": {
            "$deleteFromPrimitiveList/tokens": [],
            "$setElementOrder/users": [{}, {"name": "a"}],
            "users": [{"$patch": "delete"}],
        }
    }


def test_the_first_of_two_equal_keys_does_not_survive_in_the_bytes() -> None:
    twice = b'{"data":{"a":"aHVudGVyMg=="},"data":null}'
    event = Event(request_object=msgspec.Raw(twice))
    redacted = BUILT_IN_ONLY.redact(event, PATCH_SECRETS)
    assert bytes(redacted.fields["requestObject"]) == b'{"data":null}'


# --- annotations and status


def test_what_webhooks_changed_is_a_patch_too() -> None:
    left = {"configuration": "c", "webhook": "w", "patchType": "JSONPatch"}
    patch = [{"op": "add", "path": "/data/a", "value": "x"}, {"op": "add", "path": "/metadata/labels", "value": {}}]
    annotations = {
        "patch.webhook.admission.k8s.io/round_0_index_0": json.dumps(left | {"patch": patch}),
        "patch.webhook.admission.k8s.io/round_0_index_3": json.dumps(
            {"webhook": "w", "patch": [], "other": {"data": "x"}}
        ),
        "patch.webhook.admission.k8s.io/round_0_index_1": "x",
        "patch.webhook.admission.k8s.io/round_0_index_2": ["x"],
        "mutation.webhook.admission.k8s.io/round_0_index_0": json.dumps(left | {"mutated": True}),
        "authorization.k8s.io/decision": "allow",
    }
    after = redact(SECRETS, annotations=annotations)
    first = json.loads(after.pop("patch.webhook.admission.k8s.io/round_0_index_0"))
    assert first == left | {"patch": [patch[0] | {"value": MASK}, patch[1]]}
    other = json.loads(after.pop("patch.webhook.admission.k8s.io/round_0_index_3"))
    assert other == {"webhook": "w", "patch": [], "other": MASK}
    assert after.pop("patch.webhook.admission.k8s.io/round_0_index_1") == MASK
    assert after.pop("patch.webhook.admission.k8s.io/round_0_index_2") == MASK
    assert after.items() <= annotations.items()
    assert len(after) == 2


def test_a_webhook_that_puts_a_secret_into_another_object_is_seen() -> None:
    patch = [{"op": "add", "path": "/spec/manifest", "value": {"kind": "Secret", "data": {"a": "x"}}}]
    key = "patch.webhook.admission.k8s.io/round_0_index_0"
    after = redact(a_request("create", "widgets", "example.com"), annotations={key: json.dumps({"patch": patch})})
    assert json.loads(after[key])["patch"][0]["value"]["data"] == {"a": MASK}


def test_event_annotations_with_a_secret_in_them_are_opened_too() -> None:
    annotations = {"webhook.example.com/object": SECRET_TEXT, "authorization.k8s.io/reason": 'Role "Secret"'}
    after = redact(a_request("create", "widgets", "example.com"), annotations=annotations)
    assert after == annotations | {"webhook.example.com/object": MASKED_TEXT}


def test_annotations_of_an_event_are_masked_unless_api_servers_make_them_of_names() -> None:
    kept = {
        "authorization.k8s.io/decision": "allow",
        "authorization.k8s.io/reason": "RBAC: allowed by ClusterRoleBinding",
        "authentication.kubernetes.io/issued-credential-id": "JTI=1",
        "pod-security.kubernetes.io/enforce-policy": "restricted:latest",
        "mutation.webhook.admission.k8s.io/round_0_index_0": "{}",
        "apiserver.latency.k8s.io/total": "1ms",
    }
    masked = {
        "policy.example.com/key": "x",
        "w.example.com/object": "x",
        "pod-security.kubernetes.io/audit-violations": "x",
        "authorization.k8s.io/other": "x",
        "x-authorization.k8s.io/reason": "x",
        "authorization.k8s.io/reason/more": "x",
        "": "x",
    }
    assert redact(SECRETS, annotations=kept | masked) == kept | dict.fromkeys(masked, MASK)
    assert BUILT_IN_ONLY.redact(Event(annotations=msgspec.Raw(json.dumps(kept).encode())), SECRETS).count == 0
    assert redact(a_request("create", "pods"), annotations=kept | masked) == kept | masked
    # What is in a body that does not leave is quoted as well.
    quoted = msgspec.Raw(json.dumps({"a": {"kind": "Secret", "data": {"a": "x"}}}).encode())
    parts = {"annotations": msgspec.Raw(json.dumps(kept | masked).encode())}
    seen = BUILT_IN_ONLY.redact_parts(a_request("create", "pods"), parts, hidden=(quoted,))
    assert json.loads(bytes(seen.fields["annotations"])) == kept | dict.fromkeys(masked, MASK)
    assert seen.count == len(masked)
    harmless = msgspec.Raw(b'{"a":{"kind":"Secret"}}')
    assert BUILT_IN_ONLY.redact_parts(a_request("create", "pods"), parts, hidden=(harmless,)) == Redacted({}, 0, ())


def test_what_an_object_ref_names_counts_as_well_as_what_the_url_names() -> None:
    body = {"requestObject": msgspec.Raw(b'{"data":{"a":"x"},"spec":{"password":"x"},"metadata":{"labels":{"b":"x"}}}')}
    redactor = Redactor([logins("spec.password")])
    for request, also in ((SECRETS, LOGINS), (LOGINS, SECRETS)):
        after = json.loads(bytes(redactor.redact_parts(request, body, also=also).fields["requestObject"]))
        assert after == {"data": {"a": MASK}, "spec": {}, "metadata": {"labels": {"b": MASK}}}


def test_fields_of_later_versions_are_bodies() -> None:
    parts = {"oldObject": msgspec.Raw(b'{"data":{"a":"x"}}'), "note": msgspec.Raw(b'"x"'), "deep": msgspec.Raw(DEEP)}
    redacted = BUILT_IN_ONLY.redact_parts(SECRETS, parts)
    after = {name: json.loads(bytes(value)) for name, value in redacted.fields.items()}
    assert after == {"oldObject": {"data": {"a": MASK}}, "note": MASK, "deep": UNREDACTABLE}
    assert redacted.failed == ("other",)


def test_messages_of_admission_policies_do_not_quote_the_object() -> None:
    key = "validation.policy.admission.k8s.io/validation_failure"
    failure = {"message": "x", "policy": "p", "binding": "b", "expressionIndex": 0, "validationActions": ["Audit"]}
    masked = {**failure, "message": MASK}
    assert json.loads(redact(SECRETS, annotations={key: json.dumps([failure])})[key]) == [masked]
    assert redact(SECRETS, annotations={key: "x"}) == {key: MASK}
    assert redact(a_request("create", "pods"), annotations={key: json.dumps([failure])}) == {key: json.dumps([failure])}


@pytest.mark.parametrize(
    "message",
    [
        'admission webhook "w.example.com" denied the request: x',
        "secrets \"db\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: x",
        "Apply failed with 1 conflict: x",
        'Secret "db" is invalid: x',
        'pods "db" is forbidden: violates PodSecurity "restricted:latest": x',
        'Operation cannot be fulfilled on secrets "db": x',
    ],
)
@pytest.mark.parametrize("code", [200, 400, 403, 409, 422, 0, None])
def test_what_may_quote_the_object_is_masked_at_any_code_and_who_says_it_stays(message: str, code: int | None) -> None:
    status = {"status": "Failure", "message": message, "code": code}
    assert redact(SECRETS, responseStatus=status) == status | {"message": message[:-1] + MASK}
    status["message"] = f"x {message}"
    assert redact(SECRETS, responseStatus=status) == status | {"message": MASK}


def test_an_explanation_in_place_of_a_reason_is_masked() -> None:
    status = {"status": "Failure", "message": "x", "reason": "the password x is too short", "code": 403}
    assert redact(SECRETS, responseStatus=status) == status | {"message": MASK, "reason": MASK}


def test_what_a_status_does_not_have_is_masked() -> None:
    status = {"kind": "Status", "apiVersion": "v1", "code": 200, "data": {"a": "x"}}
    assert redact(SECRETS, responseObject=status) == status | {"data": MASK}


def test_only_an_answer_of_the_api_server_is_a_status() -> None:
    rule = RedactionRule(
        resources=(GroupResources("v1.example.com", ("statuses",)),), paths=("status.token", "details.token")
    )
    for version in ("v1.example.com/v1", "v1beta1", "example.com/v1", None):
        body = {"kind": "Status", "apiVersion": version, "status": {"token": "x"}, "details": {"token": "x", "a": "b"}}
        after = redact(a_request("get", "statuses", "v1.example.com"), redactor=Redactor([rule]), responseObject=body)
        assert after == body | {"status": {}, "details": {"a": "b"}}


@pytest.mark.parametrize("version", ["v1", "meta.k8s.io/v1"])
def test_an_error_about_a_secret_in_another_object_is_masked(version: str) -> None:
    widget = a_request("create", "widgets", "example.com")
    kind = {"kind": "Status", "apiVersion": version}
    status = {"status": "Failure", "message": 'spec.manifest.data.a: Invalid value: "x"', "code": 422}
    secret = {"spec": {"manifest": {"kind": "Secret", "data": {"a": "x"}}}}
    after = redact(widget, requestObject=secret, responseObject=kind | status, responseStatus=status)
    assert after["responseStatus"] == status | {"message": MASK}
    assert after["responseObject"] == kind | status | {"message": MASK}
    unread = b'{"kind":"Secret","a":' + DEEP + b"}"
    after = redact(widget, raw={"requestObject": unread}, responseStatus=status)
    assert after == {"requestObject": UNREDACTABLE, "responseStatus": status | {"message": MASK}}


def test_an_error_that_quotes_a_whole_object_does_not_quote_a_secret_in_it() -> None:
    # Measured with 1.36.2: a JSON patch whose result is not valid, at whatever level it is recorded.
    quoted = json.dumps({"kind": "Widget", "spec": {"kind": "Secret", "data": {"a": "x"}}})
    message = f'"" is invalid: patch: Invalid value: {json.dumps(quoted)}: illegal base64 data at input byte 3'
    status = {"status": "Failure", "message": message, "code": 422}
    widget = a_request("patch", "widgets", "example.com")
    assert redact(widget, responseStatus=status) == status | {"message": MASK}
    kind = {"kind": "Status", "apiVersion": "v1"}
    assert redact(widget, responseObject=kind | status) == kind | status | {"message": MASK}
    status["message"] = 'widgets "Secret" not found'
    assert redact(widget, responseStatus=status | {"code": 404}) == status | {"code": 404}


def test_an_error_about_a_token_review_still_says_that_it_failed() -> None:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403}
    review = a_request("create", "tokenreviews", "authentication.k8s.io")
    assert redact(review, responseObject=status) == status


@pytest.mark.parametrize("code", [200, 409, 400, 422, 500, 503, 0, None])
def test_errors_that_may_quote_the_body_say_only_what_is_of_names(code: int | None) -> None:
    status = {"status": "Failure", "message": "x", "reason": "Invalid", "code": code}
    cause = {"reason": "FieldValueInvalid", "message": "x", "field": "data[a]"}
    after = {"message": MASK, "details": {"name": MASK, "causes": [cause | {"message": MASK, "field": MASK}]}}
    details = {"name": "db", "causes": [cause]}
    assert redact(SECRETS, responseStatus=status | {"details": details}) == status | after
    kind = {"kind": "Status", "apiVersion": "v1"}
    assert redact(SECRETS, responseObject=kind | status | {"details": details}) == kind | status | after
    said = status | {"message": 'Secret "db" is invalid: x'}
    after = {"message": f'Secret "db" is invalid: {MASK}', "details": {"name": "db", "causes": [cause]}}
    after["details"]["causes"] = [cause | {"message": MASK, "field": f"data{MASK}"}]  # type: ignore[index]
    assert redact(SECRETS, responseStatus=said | {"details": details}) == said | after


CONFLICT = 'Apply failed with 1 conflict: conflict with "kubectl" using example.com/v1: '


@pytest.mark.parametrize("code", [409, 422, 500, 200])
def test_conflicts_of_server_side_apply_do_not_quote_the_keys_of_lists(code: int) -> None:
    field = '.spec.users[key="hunter2-MARKER"].role'
    cause = {
        "reason": "FieldManagerConflict",
        "message": 'conflict with "kubectl" using example.com/v1',
        "field": field,
    }
    status = {
        "status": "Failure",
        "message": f"{CONFLICT}{field}",
        "reason": "Conflict",
        "details": {"causes": [cause, cause | {"field": ".spec.role"}, cause | {"field": "spec.users[0].role"}]},
        "code": code,
    }
    redactor = Redactor([logins("spec.users[*].key")])
    request = a_request("patch", "logins", "example.com")
    after = redact(request, redactor=redactor, responseStatus=status)
    assert after["message"] == f"Apply failed with 1 conflict: {MASK}"
    fields = [each["field"] for each in after["details"]["causes"]]
    assert fields == [f".spec.users{MASK}", ".spec.role", "spec.users[0].role"]
    assert {each["message"] for each in after["details"]["causes"]} == {cause["message"]}
    kind = {"kind": "Status", "apiVersion": "v1"}
    assert redact(request, redactor=redactor, responseObject=kind | status) == kind | after


def test_what_a_webhook_puts_into_a_status_does_not_pass() -> None:
    status = {
        "metadata": {"selfLink": "x"},
        "status": "x",
        "message": 'admission webhook "w.example.com" denied the request: x',
        "reason": "x",
        "details": {
            "name": "x",
            "group": "x",
            "kind": "x",
            "uid": "6cda80ee-4a29-4373-8c4c-febb6f78ba28",
            "causes": [{"reason": "x", "message": "x", "field": "spec.x"}, "x"],
            "retryAfterSeconds": "x",
            "x": "x",
        },
        "code": "x",
        "x": "x",
    }
    assert redact(SECRETS, responseStatus=status) == {
        **dict.fromkeys(("metadata", "status", "reason", "code", "x"), MASK),
        "message": 'admission webhook "w.example.com" denied the request: ***',
        "details": {
            **dict.fromkeys(("name", "group", "kind", "uid", "retryAfterSeconds"), MASK),
            "causes": [dict.fromkeys(("reason", "message", "field"), MASK), MASK],
        },
    }


MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"
IN_NAMESPACE = 'in API group "" in the namespace "team-a"'
SAID = [
    'secrets "db" not found',
    'deployments.apps "db" already exists',
    f'Operation cannot be fulfilled on secrets "db": {MODIFIED}',
    f'secrets "db" is forbidden: User "system:serviceaccount:team-a:web" cannot get resource "secrets" {IN_NAMESPACE}',
    'secrets is forbidden: User "bob" cannot list resource "secrets" in API group "" at the cluster scope',
    'configmaps "db" is forbidden: unable to create new content in namespace team-b because it is being terminated',
    "Unauthorized",
    "the server does not allow this method on the requested resource",
    "too old resource version: 1 (25)",
]


@pytest.mark.parametrize("code", [200, 401, 403, 404, 409, 422])
@pytest.mark.parametrize("message", SAID)
def test_errors_about_names_are_kept_at_any_code(message: str, code: int) -> None:
    status = {"metadata": {}, "status": "Failure", "message": message, "reason": "NotFound", "code": code}
    if '"db"' in message:
        resource = message.removeprefix("Operation cannot be fulfilled on ").partition(" ")[0]
        status["details"] = {"name": "db", "kind": resource.partition(".")[0]}
    assert redact(SECRETS, responseStatus=status) == status
    after = redact(SECRETS, responseStatus=status | {"message": f"{message}: x"})
    assert "x" not in after["message"].split(": ")[-1]


def test_what_was_deleted_is_named() -> None:
    details = {"name": "db", "kind": "secrets", "uid": "6cda80ee-4a29-4373-8c4c-febb6f78ba28"}
    status = {"metadata": {}, "status": "Success", "details": details, "code": 200}
    request = Request(user="u", verb="delete", resource="secrets", name="db")
    assert redact(request, responseStatus=status) == status
    assert redact(SECRETS, responseStatus=status) == status | {"details": details | {"name": MASK}}


def test_errors_of_other_resources_are_kept() -> None:
    status = {"status": "Failure", "message": "spec.nodeName: Invalid value", "code": 422}
    assert redact(a_request("create", "pods"), responseStatus=status) == status


def test_a_status_of_a_client_is_a_body_like_any_other() -> None:
    body = {"kind": "Status", "apiVersion": "v1", "code": 200, "data": {"a": "x"}}
    assert redact(PATCH_SECRETS, requestObject=body) == body | {"code": MASK, "data": {"a": MASK}}


# --- own rules


def test_paths_lead_through_names_lists_and_keys() -> None:
    body = {
        "spec": {"password": "x", "users": [{"key": "x", "name": "a"}, {"name": "b"}], "weird.key": "x", "n": 1},
        "metadata": {"annotations": {"example.com/token": "x", "keep": "y"}},
        "tokens": {"a": {"value": "x", "id": 1}, "b": {"id": 2}},
    }
    rule = logins(
        *("spec.password", "spec.users[*].key", 'spec["weird.key"]', "tokens.*.value"),
        'metadata.annotations["example.com/token"]',
    )
    assert body_after(rule, body=body) == {
        "spec": {"users": [{"name": "a"}, {"name": "b"}], "n": 1},
        "metadata": {"annotations": {"keep": MASK}},
        "tokens": {"a": {"id": 1}, "b": {"id": 2}},
    }


@pytest.mark.parametrize("value", ["x", 7, True, ["x"], {"password": "x"}, [{"password": ["x"]}], {"PassWord": "x"}])
def test_a_value_of_another_type_than_expected_does_not_pass(value: Any) -> None:
    assert "x" not in json.dumps(body_after(logins("spec.password", action=Action.MASK), body={"spec": value}))


def test_a_name_that_looks_like_a_directive_is_a_name_first() -> None:
    patch = [{"op": "add", "path": "/spec/$a~1b", "value": "x"}, {"op": "add", "path": "/spec/$a~1c", "value": "y"}]
    after = body_after(logins('spec["$a/b"]'), body=patch, request=a_request("patch", "logins", "example.com"))
    assert ["value" in operation for operation in after] == [False, True]


def test_pointers_are_read_as_their_standard_says() -> None:
    # RFC 6901: ~01 is ~1, and not a slash.
    patch = [
        {"op": "add", "path": "/spec/a~01b", "value": "x"},
        {"op": "add", "path": "/spec/a~1b", "value": "y"},
        {"op": "add", "path": "/spec/a~0b", "value": "z"},
    ]
    request = a_request("patch", "logins", "example.com")
    for key, hidden in (("a~1b", "x"), ("a/b", "y"), ("a~b", "z")):
        after = body_after(logins(f'spec["{key}"]'), body=patch, request=request)
        assert [each.get("value", hidden) for each in after] == ["x", "y", "z"]
        assert [("value" in each) for each in after].count(False) == 1


@pytest.mark.parametrize(
    ("query", "after"),
    [
        ("?fieldSelector=spec.password%3Dx", "?fieldSelector=spec.password=***"),
        ("?fieldSelector=spec.password!=x&limit=5", "?fieldSelector=spec.password!=***&limit=5"),
        ("?a=1&fieldSelector=metadata.name=a,SPEC.Password==x", "?a=1&fieldSelector=metadata.name=a,SPEC.Password=***"),
        ("?fieldSelector=spec=x", "?fieldSelector=spec=***"),
        ("?field%53elector=spec.password.a%3Dx", "?field%53elector=spec.password.a=***"),
        ("?fieldSelector=x", "?fieldSelector=***"),
        ("?fieldSelector=spec.user%3Dx%26y", None),
        ("?fieldSelector=metadata.name=a&labelSelector=x%3Dy", None),
        ("?command=x&command=spec.password=x", None),
        ("", None),
    ],
)
def test_a_url_demands_no_value_of_a_redacted_field(query: str, after: str | None) -> None:
    event = Event(request_uri=f"/apis/example.com/v1/logins{query}")
    redacted = Redactor([logins("spec.password")]).redact(event, a_request("list", "logins", "example.com"))
    assert redacted.count == (after is not None)
    if after is None:
        assert redacted.fields == {}
    else:
        assert json.loads(bytes(redacted.fields["requestURI"])) == f"/apis/example.com/v1/logins{after}"
    assert BUILT_IN_ONLY.redact(event, LOGINS) == Redacted({}, 0, ())


def test_null_stays_where_it_says_that_a_field_is_deleted() -> None:
    patch = {"spec": {"password": None}, "metadata": None}
    assert body_after(logins("spec.password"), body=patch, request=a_request("patch", "logins", "example.com")) == patch


def test_a_rule_for_a_resource_holds_for_its_subresources() -> None:
    status = a_request("update", "logins", "example.com", "status")
    assert body_after(logins("spec.password"), body={"spec": {"password": "x"}}, request=status) == {"spec": {}}
    body = {"spec": {"password": "x"}}
    assert body_after(logins("spec.password", resource="logins/status"), body=body) == body
    assert body_after(logins("spec.password", resource="logins/status"), body=body, request=status) == {"spec": {}}
    assert body_after(logins("spec.password"), body=body, request=a_request("create", "logins", "other.com")) == body


@pytest.mark.parametrize("group", ["*", "example.com"])
@pytest.mark.parametrize("resources", [(), ("*",), ("logins",), ("logins/*",)])
def test_resources_are_named_as_in_a_policy(group: str, resources: tuple[str, ...]) -> None:
    rule = RedactionRule(resources=(GroupResources(group, resources),), paths=("a",))
    assert body_after(rule, body={"a": 1, "b": 2}) == {"b": 2}


def test_own_rules_do_not_weaken_built_in_ones() -> None:
    rule = RedactionRule(resources=(GroupResources("", ("secrets",)),), paths=("data.*",), action=Action.HASH)
    assert body_after(rule, body={"data": {"a": "x"}}, request=SECRETS, hash_key=KEY) == {"data": {"a": MASK}}


def test_columns_go_as_they_may_print_the_field() -> None:
    redactor = Redactor([logins("spec.password")])
    table = {"kind": "Table", "rows": [{"cells": ["a", "hunter2"], "object": {"metadata": {"name": "a"}}}]}
    assert redact(LOGINS, redactor=redactor, responseObject=table)["rows"] == [{"object": {"metadata": {"name": "a"}}}]


def test_own_resources_with_items_of_their_own_keep_them() -> None:
    body = {"kind": "Login", "items": ["a", "b"], "rows": [1], "type": "t", "object": "o", "spec": {"password": "x"}}
    assert body_after(logins("spec.password"), body=body) == body | {"spec": {}}


def test_hashes_tell_equal_values_and_nothing_else() -> None:
    rule = logins("a", "b", "c", "d", action=Action.HASH)
    body = {"a": {"u": 1, "v": [1.0]}, "b": {"v": [1.0], "u": 1}, "c": "x", "d": "y"}
    one = body_after(rule, body=body, hash_key=KEY)
    assert one["a"] == one["b"]
    assert len({one["a"], one["c"], one["d"]}) == 3
    assert one["c"] == "hmac-sha256:" + hmac.new(KEY, b'"x"', "sha256").hexdigest()
    assert body_after(rule, body=body, hash_key=KEY[::-1])["c"] != one["c"]


def test_explanations_can_name_the_rules() -> None:
    own = logins("spec.password")
    redactor = Redactor([own])
    assert redactor.rules_for(SECRETS) == (BUILT_IN[0], REPEATED)
    assert redactor.rules_for(LOGINS)[0] == own
    assert redactor.rules_for(a_request("get", "pods")) == ()
    assert redactor.rules_for(Request(user=None, verb="get", is_resource=False, path="/")) == ()


# --- rules that cannot be


@pytest.mark.parametrize(
    ("path", "place", "words"),
    [
        *(
            (path, 1, "starts with the name of a field")
            for path in ("", ".spec", "$.spec", "{.spec}", "/a", "*", "[*].a")
        ),
        ("spec..a", 5, "a name is missing after the dot"),
        ("spec.", 5, "a name is missing after the dot"),
        ("spec.a b", 7, "' ' is not part of a plain name"),
        ("spec.users[0].key", 11, r"write \[\*\] for all of them"),
        ("spec[name]", 5, r'\[ starts neither \[\*\] nor \["name"\]'),
        ('spec["a', 5, r"\[ starts neither"),
        ("spec.ünder", 5, "plain name"),
        ("spec*", 5, "'\\*' is not part of a plain name"),
    ],
)
def test_a_path_that_does_not_parse_is_refused_with_its_place(path: str, place: int, words: str) -> None:
    with pytest.raises(RedactionError, match=rf"redactions\[1\]\.paths\[2\]: .* at character {place}: .*{words}"):
        Redactor([logins("a"), logins("a", "b", path)])


@pytest.mark.parametrize("resource", ["Logins", "pods*", "*/*", "a/b/c", "", "pods/"])
def test_a_resource_that_matches_nothing_is_refused(resource: str) -> None:
    with pytest.raises(RedactionError, match=r"redactions\[0\]\.resources\[0\]\.resources: .* matches no resource"):
        Redactor([logins("a", resource=resource)])


def test_rules_that_could_not_do_what_they_say_are_refused() -> None:
    with pytest.raises(RedactionError, match=r"redactions\[0\]\.action: Hash needs a secret key"):
        Redactor([logins("a", action=Action.HASH)], hash_key=b"short")
    with pytest.raises(RedactionError, match=r"resources\[0\]\.group: 'apps/v1' is no API group"):
        Redactor([RedactionRule(resources=(GroupResources("apps/v1"),), paths=("a",))])
    with pytest.raises(RedactionError, match="resourceNames"):
        Redactor([RedactionRule(resources=(GroupResources("", ("pods",), ("a",)),), paths=("a",))])
    for rule in (logins(), RedactionRule(resources=(), paths=("a",))):
        with pytest.raises(RedactionError, match="nothing to redact"):
            Redactor([rule])


ACCEPTED_PATH = TypeAdapter(RedactionPath)
PATH_PIECES = st.lists(
    st.sampled_from(["a", "B-1", "$x_", ".", "*", ".*", "[*]", "[0]", '["a.b/c"]', '"', "]", " ", "ü"])
)


@settings(max_examples=500, deadline=None)
@given(PATH_PIECES.map("".join))
def test_the_paths_of_the_custom_resource_are_those_that_compile(path: str) -> None:
    def refused(by: Callable[[], object]) -> bool:
        try:
            by()
        except (RedactionError, ValidationError):
            return True
        return False

    assert refused(lambda: Redactor([logins(path)])) == refused(lambda: ACCEPTED_PATH.validate_python(path))


# --- failing closed


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":' + DEEP + b"}",
        b'{"a":"\\ud800"}',
        b'{"a":"\xff"}',
        b'{"a":1e99999999999999999999}',
        b"9" * 5000,
        b"kind: x",
    ],
    ids=["deep", "surrogate", "utf-8", "number", "digits", "yaml"],
)
def test_what_cannot_be_parsed_is_replaced_and_the_envelope_stays(body: bytes) -> None:
    event = Event(verb="patch", request_object=msgspec.Raw(body), response_status=msgspec.Raw(b'{"code":400}'))
    redacted = BUILT_IN_ONLY.redact(event, PATCH_SECRETS)
    assert redacted.failed == ("requestObject",)
    assert json.loads(bytes(redacted.fields["requestObject"])) == UNREDACTABLE
    assert "responseStatus" not in redacted.fields, "as it was"


@pytest.mark.parametrize(
    "fields",
    [
        {"annotations": ["x"]},
        {"annotations": "x"},
    ],
)
def test_what_breaks_the_code_is_replaced(fields: dict[str, Any]) -> None:
    assert redact(SECRETS, **fields) == UNREDACTABLE


def nested(levels: int) -> Any:
    value: Any = {"data": "x"}
    for _ in range(levels):
        value = {"a": value}
    return value


def test_depth_has_one_limit_whoever_calls() -> None:
    assert redact(SECRETS, requestObject=nested(MAX_DEPTH - 1)) == nested(MAX_DEPTH - 1)
    assert redact(SECRETS, requestObject=nested(MAX_DEPTH)) == UNREDACTABLE

    def from_below(frames: int) -> Any:
        return from_below(frames - 1) if frames else redact(SECRETS, requestObject=nested(MAX_DEPTH - 1))

    assert from_below(200) == nested(MAX_DEPTH - 1)


def test_lists_in_lists_are_followed_some_levels_and_then_refused() -> None:
    def lists(levels: int) -> Any:
        return {"kind": "SecretList", "items": [lists(levels - 1)]} if levels else {"data": {"a": "x"}}

    assert MASK in json.dumps(redact(SECRETS, responseObject=lists(3)))
    assert redact(SECRETS, responseObject=lists(60)) == UNREDACTABLE


@pytest.mark.parametrize("number", [b"1.10", b"1E400", b"123456789012345678901234567890", b"-0.0", b"1e-7"])
def test_numbers_stay_what_they_were(number: bytes) -> None:
    event = Event(request_object=msgspec.Raw(b'{"data":1,"n":' + number + b"}"))
    after = bytes(BUILT_IN_ONLY.redact(event, SECRETS).fields["requestObject"])
    assert json.loads(after, parse_float=str, parse_int=str)["n"].lower().replace("+", "") == number.decode().lower()


# --- any object

MARKER = "hunter2-MARKER"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(TEXT, children, max_size=3),
    max_leaves=6,
)
SECRET_VALUE = st.recursive(
    st.just(MARKER) | st.just(MARKER + "="),
    lambda children: (
        st.lists(children, min_size=1, max_size=2) | st.dictionaries(TEXT, children, min_size=1, max_size=2)
    ),
    max_leaves=3,
)
SECRET_FIELD = st.sampled_from(["data", "stringData", "Data", "STRINGDATA"])
POINTER_KEY = TEXT.map(lambda text: text.replace("~", "~0").replace("/", "~1"))


@st.composite
def secrets(draw: st.DrawFn) -> dict[str, Any]:
    secret = draw(st.dictionaries(st.sampled_from(["type", "immutable", "spec", "kind", "apiVersion"]), JSON))
    secret[draw(SECRET_FIELD)] = draw(SECRET_VALUE)
    if draw(st.booleans()):
        secret["metadata"] = {
            "annotations": {draw(st.sampled_from(REPEATING_ANNOTATIONS) | TEXT): json.dumps(secret)},
            "managedFields": [{"fieldsV1": {f'v:"{MARKER}"': {}}}],
        }
    return secret


@st.composite
def wrapped(draw: st.DrawFn) -> Any:
    body: Any = draw(secrets())
    for _ in range(draw(st.integers(0, 2))):
        around = draw(st.dictionaries(st.sampled_from(["metadata", "apiVersion", "columnDefinitions"]), JSON))
        body = draw(
            st.sampled_from(
                [
                    {**around, "kind": "SecretList", "items": [body, {}]},
                    {**around, "kind": "Table", "rows": [{"cells": [1], "object": body}]},
                    {**around, "type": "MODIFIED", "object": body},
                    {**around, "items": [body]},
                ]
            )
        )
    return body


@st.composite
def json_patches(draw: st.DrawFn) -> Any:
    operations = []
    for _ in range(draw(st.integers(1, 3))):
        field = draw(SECRET_FIELD)
        path, value = draw(
            st.one_of(
                st.tuples(st.just(""), secrets()),
                st.tuples(st.just(f"/{field}"), SECRET_VALUE),
                st.tuples(POINTER_KEY.map(lambda key, field=field: f"/{field}/{key}"), SECRET_VALUE),
                st.tuples(
                    st.sampled_from([f"{field}/a", f"//{field}", "/dta", "/-", "/0/data", None, 7]), SECRET_VALUE
                ),
            )
        )
        operation = {"op": draw(st.sampled_from(["add", "replace", "test"])), "path": path}
        operation[draw(st.sampled_from(["value", "Value", "from "]))] = value
        operations.append(operation)
    return operations


@st.composite
def cases(draw: st.DrawFn) -> tuple[Request, dict[str, Any]]:
    """A request and fields of its event with the marker somewhere it must not stay."""
    form = draw(st.sampled_from(["object", "merge patch", "JSON patch", "webhook", "inside", "text", "error"]))
    if form == "object":
        field = draw(st.sampled_from(["requestObject", "responseObject"]))
        return a_request(draw(st.sampled_from(["create", "update", "get", "list"])), "secrets"), {
            field: draw(wrapped())
        }
    if form == "merge patch":
        return PATCH_SECRETS, {"requestObject": draw(secrets())}
    if form == "JSON patch":
        return PATCH_SECRETS, {"requestObject": draw(json_patches())}
    if form == "webhook":
        patch = json.dumps({"webhook": "w", "patch": draw(json_patches())})
        return SECRETS, {"annotations": {"patch.webhook.admission.k8s.io/round_0_index_0": patch}}
    inside: Any = {**draw(secrets()), "kind": "Secret"}
    other = a_request(draw(st.sampled_from(["update", "patch"])), "widgets", "example.com")
    if form == "text":
        for _ in range(draw(st.integers(1, 3))):
            inside = draw(st.sampled_from([json.dumps(inside), f" {json.dumps([{'a': inside}], indent=1)}"]))
    fields = {"requestObject": {"spec": [draw(JSON), {"a": inside}]}}
    if form == "error":
        status = {"code": draw(st.sampled_from([400, 422, 500])), "message": f"Invalid value: {MARKER}"}
        fields |= {"responseStatus": status, "responseObject": {"kind": "Status", "apiVersion": "v1", **status}}
    return other, fields


@settings(max_examples=600, deadline=None)
@given(cases())
def test_a_planted_secret_is_never_found_again(case: tuple[Request, dict[str, Any]]) -> None:
    request, fields = case
    assert MARKER in json.dumps(fields)
    document = json.dumps({"verb": request.verb, **fields}).encode()
    redacted = BUILT_IN_ONLY.redact(events.decode(document), request)
    written = msgspec.json.encode(events.fields(document) | redacted.fields)
    assert MARKER.encode() not in written
    assert redacted.count > 0
    assert not redacted.failed


PODS_LIKE = st.sampled_from(["metadata", "spec", "status", "kind", "items", "a", "env"])
BODIES = st.dictionaries(
    PODS_LIKE,
    st.recursive(
        st.sampled_from(["Pod", "Secret", "SecretList", '{"kind":"Secret","data":{"a":"b"}}', "\u0001Secret", 1.5]),
        lambda children: st.lists(children, max_size=3) | st.dictionaries(PODS_LIKE, children, max_size=3),
        max_leaves=8,
    ),
)


@settings(max_examples=100, deadline=None)
@given(BODIES, st.sampled_from(["create", "patch"]))
def test_a_body_that_is_not_searched_would_have_been_left_as_it_is(body: Any, verb: str) -> None:
    redactor = Redactor([logins("spec.env", "spec.items[*].a", action=Action.MASK)])
    request = a_request(verb, "logins", "example.com")
    # So many brackets might be levels, so that this one is searched.
    long = {**body, "long": "[" * (MAX_DEPTH + 1)}
    after = redact(request, redactor=redactor, requestObject=body)
    assert redact(request, redactor=redactor, requestObject=long) == {**after, "long": long["long"]}


HARMLESS = TEXT.filter(lambda key: key.casefold() not in ("data", "stringdata", "kind", "items", "rows", "object"))


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(HARMLESS.filter(lambda key: key[:1] != "$" and key != "metadata"), JSON, max_size=4),
    st.dictionaries(HARMLESS, TEXT, max_size=3),
    st.dictionaries(TEXT, TEXT, max_size=3),
)
def test_what_is_not_named_is_not_touched(rest: dict[str, Any], labels: dict[str, str], data: dict[str, str]) -> None:
    body = {**rest, "metadata": {"name": "db", "ownerReferences": [labels]}}
    after = redact(SECRETS, requestObject={**body, "data": dict.fromkeys(data, "a")})
    assert after == {**body, "data": dict.fromkeys(data, MASK)}
    login = {**body, "metadata": {"labels": labels}, "data": data}
    assert body_after(logins("spec.password"), body=login | {"spec": {"password": "a"}}) == login | {"spec": {}}


KEYS = st.sampled_from(["a", "b", "A", "x.y", "ß", "items"])
TREE = st.recursive(
    st.just(MARKER) | st.none(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(KEYS, children, max_size=3),
    max_leaves=10,
)
STEP = st.sampled_from([".a", ".b", '["x.y"]', '["ß"]', ".*", "[*]"])


@settings(max_examples=400, deadline=None)
@given(TREE, st.lists(STEP, max_size=3), st.sampled_from([Action.REMOVE, Action.MASK, Action.HASH]))
def test_nothing_is_left_at_the_end_of_an_own_path(tree: Any, steps: list[str], action: Action) -> None:
    rule = logins("spec" + "".join(steps), action=action)
    after = body_after(rule, body={"spec": tree}, hash_key=KEY)

    def reachable(value: Any, rest: list[str]) -> list[Any]:
        """What stands at the end of the path, or on the way where it cannot go on. Written apart from the code."""
        if not rest or not isinstance(value, dict | list):
            return leaves(value)
        wanted = rest[0].strip('.[]"')
        if isinstance(value, list):
            return [
                leaf for child in value for leaf in (reachable(child, rest[1:]) if wanted == "*" else leaves(child))
            ]
        return [
            leaf
            for key, child in value.items()
            if wanted == "*" or key.lower() == wanted or key == wanted
            for leaf in reachable(child, rest[1:])
        ]

    assert MARKER not in reachable(after.get("spec"), steps)
    hidden = reachable(tree, steps).count(MARKER)
    assert leaves(after).count(MARKER) == leaves(tree).count(MARKER) - hidden
