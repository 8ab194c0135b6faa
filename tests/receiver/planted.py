"""Events with a marked secret in every place where their JSON can hold one, and a search that finds it however written.

`events` makes the same ones each time: kinds with secrets in them, by verb, subresource and form of the body; what
repeats a secret in annotations, labels, managedFields, messages, causes, field paths, keys and other fields; JSON in
strings, base64, both twice; keys given twice, in another case or with escapes; and kinds that look like others.
"""

import gzip
import json
import re
from base64 import b64encode, encodebytes, urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import zstandard
from receiving import event

from audit_operator.policy.model import GroupResources
from audit_operator.policy.redact import Action, RedactionRule

MARK = "pl4nted-s3cret-m4rk-7f3a9c"
"""Could be a label, a name, a token."""

RULES = (
    RedactionRule(
        resources=(GroupResources("example.com", ("logins",)), GroupResources("v1.example.com", ("statuses",))),
        paths=("spec.password", "spec.users[*].key", "spec.tokens", "spec.byName.*", "status.token", "details.token"),
        action=Action.MASK,
    ),
    RedactionRule(resources=(GroupResources("example.com", ("logins",)),), paths=("spec.pin",), action=Action.HASH),
    RedactionRule(resources=(GroupResources("example.com", ("logins",)),), paths=("spec.old[*]",)),
)
"""The user's."""

HASH_KEY = bytes(range(32))


# --- the search ------------------------------------------------------------------------------------------------------


def _packed(text: bytes) -> Iterator[bytes]:
    """What is in base64 of anything that holds the text: it begins at one of three places of a group."""
    for before in range(3):
        whole = b64encode(bytes(before) + text)
        first = (before * 8 + 5) // 6
        yield whole[first : (before + len(text)) * 8 // 6]


def _needles() -> frozenset[bytes]:
    found = {MARK.encode(), MARK[::-1].encode(), MARK.encode().hex().encode()}
    level = {MARK.encode()}
    for _ in range(2):
        level = {each for text in level for each in _packed(text)}
        found |= level
    return frozenset(found)


NEEDLES = _needles()


def revealed(data: bytes) -> list[bytes]:
    """In which forms the mark is in there: plain, in base64 once or twice, in lines, escaped, quoted or compressed."""
    seen = [data]
    for magic, unpack in _COMPRESSED.items():
        if data.startswith(magic):
            seen.append(unpack(data))
    if b"%" in data:
        seen.append(unquote_to_bytes(data))
    if b"\\" in data:
        seen.append(data.replace(b"\\n", b"").replace(b"\\", b""))
        seen.append(_ESCAPE.sub(lambda escape: bytes([int(escape[1], 16)]), data).replace(b"\\", b""))
    text = b"\0".join(seen)
    text += text.translate(_STANDARD)
    return [needle for needle in NEEDLES if needle in text]


_ESCAPE = re.compile(rb"\\+u00([0-7][0-9a-fA-F])")
_COMPRESSED: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"\x28\xb5\x2f\xfd": lambda data: zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 28),
}
_STANDARD = bytes.maketrans(b"-_", b"+/")


# --- how a text is written --------------------------------------------------------------------------------------------


def _b64(text: str) -> str:
    return b64encode(text.encode()).decode()


def texts(value: Any) -> dict[str, str]:
    """An object as text, in ways that tools have."""
    plain = json.dumps(value)
    return {
        "JSON": plain,
        "compact JSON": json.dumps(value, separators=(",", ":")),
        "indented JSON": json.dumps(value, indent=2),
        "a list": json.dumps([value]),
        "JSON in a string of JSON": json.dumps({"manifest": plain}),
        "JSON twice in strings": json.dumps({"a": json.dumps({"b": plain})}),
        "a JSON string": json.dumps(plain),
        "base64": _b64(plain),
        "base64 of indented JSON": _b64(json.dumps(value, indent=2)),
        "base64 without padding": _b64(plain).rstrip("="),
        "base64 in lines": encodebytes(plain.encode()).decode(),
        "base64 for URLs": urlsafe_b64encode(json.dumps({"a": "~~~???>>>", "b": value}).encode()).decode(),
        "base64 twice": _b64(_b64(plain)),
        "base64 in JSON": json.dumps({"manifest": _b64(plain)}),
        "base64 in JSON in base64": _b64(json.dumps({"manifest": _b64(plain)})),
        "JSON in JSON in base64": _b64(json.dumps({"manifest": plain})),
        "a list in base64": _b64(json.dumps([value])),
        "escapes": plain.replace("S", "\\u0053").replace("C", "\\u0043").replace("kind", "k\\u0069nd"),
    }


VALUES = {
    "plain": MARK,
    "in text": f"the password is {MARK}!",
    "in a URL": f"https://admin:{MARK}@example.com/",
    "base64": _b64(MARK),
    "base64 twice": _b64(_b64(MARK)),
    "JSON": json.dumps({"password": MARK}),
    "base64 of JSON": _b64(json.dumps({"password": MARK})),
    "JSON in JSON": json.dumps({"a": json.dumps({"b": MARK})}),
    "YAML": f"data:\n  password: {MARK}\n",
}


# --- kinds with secrets -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """``secret``: the object's fields with the mark in them, one variant each; in ``whole`` it is all of a value.
    ``pointers``: into them, for patches.
    """

    kind: str
    group: str
    resource: str
    secret: tuple[Mapping[str, Any], ...]
    pointers: tuple[str, ...]
    subresource: str = ""
    built_in: bool = True
    whole: int | None = 0

    @property
    def version(self) -> str:
        return f"{self.group}/v1" if self.group else "v1"

    def object(self, fields: Mapping[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
        """One, with the first of its secrets unless told otherwise."""
        meta = {"name": "db", "namespace": "team-a", **metadata}
        return {"kind": self.kind, "apiVersion": self.version, "metadata": meta, **(fields or self.secret[0])}

    def event(self, verb: str, *, query: str = "", **changes: Any) -> dict[str, Any]:
        """Of a request for one."""
        base = f"/apis/{self.group}/v1" if self.group else "/api/v1"
        named = "" if verb in ("list", "watch", "create", "deletecollection") and not self.subresource else "/db"
        sub = f"/{self.subresource}" if self.subresource else ""
        ref = {"resource": self.resource, "namespace": "team-a", "name": "db", "apiVersion": "v1"}
        if self.group:
            ref["apiGroup"] = self.group
        if self.subresource:
            ref["subresource"] = self.subresource
        uri = f"{base}/namespaces/team-a/{self.resource}{named}{sub}{query}"
        return event(0, verb=verb, requestURI=uri, objectRef=ref, **changes)


ENCODED = _b64(MARK)

SECRET = Kind(
    "Secret", "", "secrets",
    (
        {"data": {"password": ENCODED}, "type": "Opaque"},
        {"stringData": {"password": MARK}},
        {"stringData": {"config.json": json.dumps({"auth": {"token": MARK}})}},
        {"data": {".dockerconfigjson": _b64(json.dumps({"auths": {"r": {"auth": _b64(f"u:{MARK}")}}}))}},
        {"data": {MARK: ENCODED}},
        {"data": MARK},
        {"data": [MARK, {"a": MARK}]},
        {"data": {"a": {"b": [MARK]}}},
        {"DATA": {"password": MARK}},
        {"StringData": {"password": MARK}},
    ),
    ("/data/password", "/data", "/stringData/password", "/DATA/password", "", "/data/a/b", "/metadata/data", "/dta"),
)  # fmt: skip
LOGIN = Kind(
    "Login", "example.com", "logins",
    (
        {"spec": {"password": MARK}},
        {"spec": {"password": {"value": [MARK]}}},
        {"spec": {"users": [{"key": MARK, "role": "admin"}, {"key": MARK}]}},
        {"spec": {"users": MARK}},
        {"spec": {"tokens": {MARK: {"scopes": []}}}},
        {"spec": {"byName": {"a": MARK, "b": {"c": MARK}}}},
        {"spec": {"pin": MARK, "old": [MARK, MARK]}},
        {"spec": {"PassWord": MARK}, "status": {"token": MARK}},
    ),
    ("/spec/password", "/spec", "/spec/users/0/key", "/spec/users/-", "/spec/tokens", "/spec/byName/x", ""),
    built_in=False,
)  # fmt: skip
KINDS = (
    SECRET,
    LOGIN,
    Kind(
        "ConfigMap", "", "configmaps",
        ({"data": {"config.yaml": f"password: {MARK}"}}, {"binaryData": {"key": ENCODED}}, {"data": {MARK: MARK}}),
        ("/data/a", "/binaryData", ""),
        whole=2,
    ),
    Kind(
        "TokenRequest", "authentication.k8s.io", "serviceaccounts",
        ({"spec": {"audiences": ["a"]}, "status": {"token": f"eyJhbGciOiJSUzI1NiJ9.{_b64(MARK)}.{MARK}"}},),
        ("/status/token", "/status"),
        "token",
        whole=None,
    ),
    Kind(
        "TokenReview", "authentication.k8s.io", "tokenreviews",
        (
            {"spec": {"token": MARK}},
            {"spec": {"token": MARK}, "status": {"user": {"username": "a", "extra": {"jti": [MARK]}}, "error": MARK}},
        ),
        ("/spec/token", "/status/error"),
    ),
    Kind(
        "CertificateSigningRequest", "certificates.k8s.io", "certificatesigningrequests",
        ({"spec": {"request": ENCODED, "signerName": "s"}}, {"status": {"certificate": ENCODED}}),
        ("/spec/request", "/status/certificate"),
        "approval",
    ),
    Kind(
        "PodCertificateRequest", "certificates.k8s.io", "podcertificaterequests",
        (
            {"spec": {"proofOfPossession": ENCODED, "stubPKCS10Request": ENCODED}},
            {"status": {"certificateChain": MARK}},
        ),
        ("/spec/proofOfPossession", "/status"),
    ),
    Kind("Secret", "vault.example.com", "secrets", ({"data": {"a": MARK}}, {"stringData": {"a": MARK}}), ("/data/a",)),
    Kind(
        "Status", "v1.example.com", "statuses",
        ({"status": {"token": MARK}, "details": {"token": MARK}}, {"details": {"token": MARK}, "code": 200}),
        ("/status/token", "/details/token"),
        built_in=False,
    ),
)  # fmt: skip
"""The built-in ones, the user's, and two that look like others."""

WIDGET = Kind("Widget", "example.com", "widgets", ({"spec": {}},), ("/spec",), built_in=False)
"""Nothing is redacted of it."""


# --- bodies -----------------------------------------------------------------------------------------------------------


def _table(kind: Kind, obj: Any) -> dict[str, Any]:
    columns = [{"name": "Name", "type": "string"}, {"name": "Password", "type": "string"}]
    rows = [{"cells": ["db", MARK], "object": obj}]
    return {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": columns, "rows": rows}


def _bodies(kind: Kind, obj: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The object by every verb, in every form that a body has."""
    bare = {key: value for key, value in obj.items() if key not in ("kind", "apiVersion")}
    items = {"apiVersion": kind.version, "metadata": {"resourceVersion": "1"}, "items": [bare, bare]}
    for verb in ("create", "update", "patch", "get", "delete"):
        changes: dict[str, Any] = {} if verb in ("get", "delete") else {"requestObject": obj}
        yield verb, kind.event(verb, responseObject=obj, **changes)
    yield "without a kind", kind.event("update", requestObject=bare, responseObject=bare)
    yield "a list", kind.event("list", responseObject={"kind": f"{kind.kind}List", **items})
    yield "a List", kind.event("list", responseObject={"kind": "List", **items, "items": [obj]})
    yield "a list in a list", kind.event("list", responseObject={"kind": "List", "items": [{"kind": "List", **items}]})
    yield "deletecollection", kind.event("deletecollection", responseObject={"kind": f"{kind.kind}List", **items})
    yield "a Table", kind.event("list", responseObject=_table(kind, obj))
    yield "a Table of metadata", kind.event("get", responseObject=_table(kind, _metadata_of(obj)))
    yield "metadata only", kind.event("list", responseObject={"kind": "PartialObjectMetadataList", **items})
    yield "a watch", kind.event("watch", responseObject={"type": "MODIFIED", "object": obj})
    yield "a strategic patch", kind.event("patch", requestObject=_strategic(bare), responseObject=obj)
    yield "status", kind.event("update", responseObject=obj) | {"requestURI": _sub(kind, "status")}


def _metadata_of(obj: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj.get("metadata", {})}


def _sub(kind: Kind, name: str) -> str:
    return str(kind.event("get")["requestURI"]).removesuffix(f"/{kind.subresource}") + (f"/{kind.subresource or name}")


def _strategic(obj: dict[str, Any]) -> dict[str, Any]:
    spec = obj.get("spec")
    if isinstance(spec, dict) and isinstance(spec.get("users"), list):
        spec = spec | {"$setElementOrder/users": [{"key": MARK}], "$deleteFromPrimitiveList/old": [MARK]}
        return {**obj, "spec": spec, "$retainKeys": ["spec"]}
    return {**obj, "$patch": "replace"}


def _json_patches(kind: Kind) -> Iterator[tuple[str, dict[str, Any]]]:
    for pointer in kind.pointers:
        value = kind.object() if pointer == "" else kind.secret[0].get(pointer[1:], MARK)
        for key in ("value", "Value"):
            for op in ("add", "replace", "test"):
                yield (
                    f"{op} {pointer} {key}",
                    kind.event("patch", requestObject=[{"op": op, "path": pointer, key: value}]),
                )
    whole = [{"op": "replace", "path": "", "value": kind.object()}, {"op": MARK, "path": "/metadata/labels/app"}]
    yield "JSON patch of all", kind.event("patch", requestObject=whole)
    for form, text in VALUES.items():
        notes = [
            {"op": "add", "path": "/metadata/annotations/tool.example.com~1copy", "value": text},
            {"op": "add", "path": "/metadata/annotations", "value": {"copy": text}},
            {"op": "add", "path": "/metadata", "value": {"annotations": {"copy": text}}},
            {"op": "add", "path": "/metadata/managedFields/0/fieldsV1", "value": {f'k:{{"key":"{text}"}}': {}}},
        ]
        yield f"JSON patch of annotations, {form}", kind.event("patch", requestObject=notes)
    pointed = [
        {"op": "add", "path": f"/metadata/labels/{MARK}", "value": MARK},
        {"op": "copy", "from": f"/metadata/annotations/{MARK}", "path": "/metadata/labels/app"},
    ]
    if kind.whole is not None:
        answer = kind.object(kind.secret[kind.whole])
        yield (
            "JSON patch with the value in a pointer",
            kind.event("patch", requestObject=pointed, responseObject=answer),
        )


# --- what repeats a secret --------------------------------------------------------------------------------------------

ANNOTATIONS = (
    *("kubectl.kubernetes.io/last-applied-configuration", "kopf.zalando.org/last-handled-configuration"),
    *("my.tool/last-applied", "kubernetes.io/change-cause", "note", "meta.helm.sh/values"),
)


def _annotated(kind: Kind) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects with a copy in their metadata."""
    # Without the value beside it: a merge patch, or metadata only.
    without: dict[str, Any] = {"kind": kind.kind, "apiVersion": kind.version}
    for number, (form, text) in enumerate({**texts(kind.object()), **VALUES}.items()):
        key = ANNOTATIONS[number % len(ANNOTATIONS)]
        annotated = {"name": "db", "annotations": {key: text, "meta.helm.sh/release-name": "db"}}
        yield f"{key}, {form}", kind.object() | {"metadata": annotated}
        yield f"{key} alone, {form}", without | {"metadata": annotated}
    if not kind.built_in:
        template = {"metadata": {"annotations": {"copy": json.dumps(kind.object())}}}
        spec = {"template": template, "jobTemplate": {**template, "spec": {"template": template}}}
        yield "annotations of a template", without | {"spec": spec}
    field_sets = [
        {"f:spec": {"f:users": {f'k:{{"key":"{MARK}"}}': {"f:role": {}}}}},
        {"f:spec": {"f:old": {f'v:"{MARK}"': {}}}},
        {"f:data": {f"f:{MARK}": {}}},
    ]
    for fields in field_sets:
        managed = [{"manager": "kubectl", "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": fields}]
        yield "managedFields", kind.object(managedFields=[{**managed[0], "fieldsV2": fields, "copy": MARK}])
        yield "managedFields alone", without | {"metadata": {"name": "db", "managedFields": managed}}
    if kind.built_in:
        yield "a label alone", without | {"metadata": {"name": "db", "labels": {"password": MARK, "app": "db"}}}
    if kind.whole is None:
        return
    for form, text in (("plain", MARK), ("longer", f"x-{MARK}-y"), ("base64", ENCODED.rstrip("="))):
        for place in (
            {"labels": {"app": text}},
            {"labels": {text: "1"}},
            {"annotations": {"meta.helm.sh/release-name": text}},
            {"annotations": {f"example.com/{text}": "1"}},
            {"finalizers": [f"example.com/{text}"]},
            {"ownerReferences": [{"kind": "Login", "name": text, "uid": "1"}]},
            {"managedFields": [{"manager": text}]},
        ):
            yield f"{form} in {next(iter(place))}", kind.object(kind.secret[kind.whole], **place)


def _statuses(kind: Kind) -> Iterator[tuple[str, dict[str, Any]]]:
    """Errors that quote."""
    quoted = json.dumps(json.dumps(kind.object()))
    messages = [
        f'Apply failed with 1 conflict: conflict with "kubectl" using example.com/v1: .spec.users[key="{MARK}"].role',
        f'{kind.kind}.{kind.group} "db" is invalid: spec.password: Invalid value: "{MARK}": too short',
        f'{kind.kind} "" is invalid: patch: Invalid value: {quoted}: illegal base64 data at input byte 3',
        f'admission webhook "w.example.com" denied the request: {MARK} is too short',
        f"{kind.resource} \"db\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: {MARK}",
        f"json: cannot unmarshal string into Go struct field {MARK}",
        f'the object provided is unrecognized: invalid character ({{"data":{{"a":"{MARK}"}}}})',
        f'Operation cannot be fulfilled on {kind.resource} "db": {MARK}',
        f"Internal error occurred: failed calling webhook: {MARK}",
        f"failed to create typed patch object: .spec.users: duplicate entries for key [key={json.dumps(MARK)}]",
        f'strict decoding error: unknown field "spec.{MARK}"',
        f"conversion webhook failed: {_b64(MARK)}",
        MARK,
        f'{kind.resource} "db" not found: {MARK}',
    ]
    cause = {"reason": "FieldValueInvalid", "message": f'Invalid value: "{MARK}"', "field": f"spec.users[{MARK}].role"}
    causes = [
        cause,
        {"reason": "FieldManagerConflict", "message": f"conflict with {MARK}", "field": f'.spec.users[key="{MARK}"].x'},
        {"reason": "FieldValueDuplicate", "message": f'Duplicate value: {{"key":"{MARK}"}}', "field": "spec.users[0]"},
        {"reason": MARK, "message": _b64(MARK), "field": f'data["{MARK}"]'},
    ]
    codes = (200, 400, 403, 404, 409, 413, 422, 429, 500, 503, 0)
    for number, message in enumerate(messages):
        for code in (409, codes[number % len(codes)], codes[-1 - number % len(codes)]):
            details = {"name": "db", "group": kind.group, "kind": kind.resource, "causes": causes}
            status = {"metadata": {}, "status": "Failure", "message": message, "reason": "Invalid", "details": details}
            answer = {"kind": "Status", "apiVersion": "v1", **status, "code": code}
            yield (
                f"{code} {message[:40]}",
                kind.event("patch", responseStatus={**status, "code": code}, responseObject=answer),
            )
    denied = {"message": f'admission webhook "w.example.com" denied the request: {MARK}', "code": 400}
    odd: list[dict[str, Any]] = [
        {"reason": MARK, "code": 403},
        {"reason": f"the password {MARK} is too short", "message": "Unauthorized", "code": 403},
        {"status": MARK, "code": 409},
        {"metadata": {"selfLink": MARK, "continue": MARK}, "code": 200},
        {**denied, "details": {"name": MARK, "uid": MARK, "kind": MARK, "group": MARK, "causes": MARK}},
        {**denied, "details": {"name": "db", "causes": [{"field": MARK}, MARK, {MARK: MARK}], "secret": MARK}},
        {**denied, "details": MARK},
        {"code": MARK},
        {"code": 200, "secret": MARK},
        {"message": {"a": MARK}, "code": 200},
    ]
    for status in odd:
        yield (
            f"odd {sorted(status)}",
            kind.event(
                "update", responseStatus=status, responseObject={"kind": "Status", "apiVersion": "v1", **status}
            ),
        )
    yield "no object", kind.event("update", responseStatus=MARK)


def _noted(kind: Kind) -> Iterator[tuple[str, dict[str, Any]]]:
    """The event's own annotations."""
    operations: list[list[dict[str, Any]]] = [
        [{"op": "add", "path": pointer, "value": MARK}] for pointer in kind.pointers if pointer
    ]
    operations.append([{"op": "add", "path": "", "value": kind.object()}])
    for patch in operations:
        left: dict[str, Any] = {"configuration": "c", "webhook": "w", "patch": patch, "patchType": "JSONPatch"}
        yield (
            "a webhook's patch",
            kind.event("create", annotations={"patch.webhook.admission.k8s.io/round_0_index_0": json.dumps(left)}),
        )
        odd = {"patch": [], "other": kind.object()}
        yield (
            "a webhook's patch with more",
            kind.event("create", annotations={"patch.webhook.admission.k8s.io/round_0_index_1": json.dumps(odd)}),
        )
    for form, text in {**texts(kind.object()), **VALUES}.items():
        failure = [{"message": text, "policy": "p", "binding": "b", "expressionIndex": 0, "other": text}]
        notes: dict[str, Any] = {
            "validation.policy.admission.k8s.io/validation_failure": json.dumps(failure),
            "policy.example.com/key": text,
            "w.example.com/object": text,
            "patch.webhook.admission.k8s.io/round_0_index_0": text,
            "authorization.k8s.io/decision": "allow",
        }
        yield f"annotations, {form}", kind.event("create", annotations=notes)


def _selected(kind: Kind) -> Iterator[tuple[str, dict[str, Any]]]:
    """URLs that demand a value."""
    if kind.resource != "logins":
        return
    for query in (
        f"?fieldSelector=spec.password%3D{MARK}",
        f"?limit=500&fieldSelector=metadata.name%3Ddb%2Cspec.password!%3D{MARK}&watch=true",
        f"?fieldSelector=spec.password=={MARK}",
        f"?%66ieldSelector=spec.password={quote(quote(MARK))}",
        f"?fieldSelector=spec.users.key={MARK},spec.tokens.a={MARK}",
        f"?fieldSelector={MARK}",
    ):
        for verb in ("list", "watch", "deletecollection"):
            yield query, kind.event(verb, query=query)
            yield f"{query} without an objectRef", kind.event(verb, query=query) | {"objectRef": None}


# --- bytes that no API server should write ----------------------------------------------------------------------------


def _dumped(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _twice(kind: Kind) -> Iterator[tuple[str, bytes]]:
    """Names given twice, in another case, with escapes; fields of later versions."""
    secret, harmless = _dumped(kind.object()), _dumped({"kind": kind.kind, "metadata": {"name": "db"}})
    plain = _dumped(kind.event("update"))[:-1]
    for name in ("requestObject", "responseObject"):
        for label, written in (
            ("", name.encode()),
            (" in capitals", name.upper().encode()),
            (" with a capital", name.title().encode()),
            (" escaped", b"\\u%04x" % ord(name[0]) + name[1:].encode()),
        ):
            body = b',"%b":' % written
            yield f"{name}{label}", plain + body + secret + b"}"
            yield f"{name}{label}, then another", plain + body + secret + b',"%b":' % name.encode() + harmless + b"}"
            yield f"{name}{label}, then null", plain + body + secret + b',"%b":null}' % name.encode()
            yield f"another, then {name}{label}", plain + b',"%b":' % name.encode() + harmless + body + secret + b"}"
    for name in ("oldObject", "object", "secret"):
        yield f"{name}, of a later version", plain + b',"%b":' % name.encode() + secret + b"}"
        yield f"{name}, in a list", plain + b',"%b":[' % name.encode() + secret + b"]}"
    note = _dumped(
        {"patch.webhook.admission.k8s.io/round_0_index_0": json.dumps({"patch": [{"value": kind.object()}]})}
    )
    message = _dumped({"code": 422, "message": f'{kind.kind} "db" is invalid: {_dumped(kind.object()).decode()}'})
    for name, first in (("annotations", note), ("responseStatus", message)):
        yield f"{name} twice", plain + b',"%b":' % name.encode() + first + b',"%b":{}}' % name.encode()
        yield f"{name} before", b'{"%b":' % name.encode() + first + b"," + plain[1:] + b',"%b":{}}' % name.encode()
    for name, variants in _inside(kind).items():
        for body in variants:
            for verb in ("update", "patch", "get"):
                where = "responseObject" if verb == "get" else "requestObject"
                yield f"{verb} with {name}", _dumped(kind.event(verb))[:-1] + b',"%b":' % where.encode() + body + b"}"


def _inside(kind: Kind) -> dict[str, list[bytes]]:
    """The same within a body."""
    body = _dumped(kind.object())
    members = [(key, value) for key, value in kind.object().items() if key not in ("kind", "apiVersion", "metadata")]
    found: dict[str, list[bytes]] = {"all twice": [body[:-1] + b"," + body[1:]], "escapes": []}
    for key, value in members:
        member = _dumped({key: value})[1:-1]
        found[f"{key} twice"] = [
            body[:-1] + b',"%b":null}' % key.encode(),
            b"{" + member + b"," + body[1:],
            b"{" + member.replace(key.encode(), key.upper().encode(), 1) + b"," + body[1:],
        ]
        escaped = b"".join(b"\\u%04x" % letter for letter in key.encode())
        found["escapes"].append(body.replace(b'"%b"' % key.encode(), b'"%b"' % escaped))
    noted = _dumped({"annotations": {"copy": MARK}, "labels": {"password": MARK} if kind.built_in else {}})
    empty = _dumped({key: None for key, _ in members} | {"kind": kind.kind})[:-1]
    found["metadata twice"] = [
        empty + b',"metadata":' + noted + b',"metadata":{}}',
        empty + b',"metadata":{},"metadata":' + noted + b"}",
        empty + b',"Metadata":' + noted + b"}",
        empty + b',"m\\u0065tadata":' + noted + b"}",
        empty + b',"metadata":{"annotations":{"copy":"%b"},"annotations":{}}}' % MARK.encode(),
        empty + b',"metadata":{"annotations":{"copy":"%b","copy":"x"}}}' % MARK.encode(),
    ]
    return found


# --- secrets in other things ------------------------------------------------------------------------------------------


def _elsewhere() -> Iterator[tuple[str, bytes]]:
    """Objects of the built-in kinds in bodies of other resources, and in other events' fields."""
    for kind in KINDS:
        if kind.kind not in ("Secret", "ConfigMap", "TokenReview", "CertificateSigningRequest", "TokenRequest"):
            continue
        # What another encoding makes of a body that is no base64 is not to be seen beside it.
        obj = kind.object(annotations={"copy": MARK}, labels={"password": MARK})
        wrapped: dict[str, Any] = {
            "an object": obj,
            "a list of them": {"kind": f"{kind.kind}List", "items": [{**kind.secret[0]}]},
            "a List": {"kind": "List", "apiVersion": "v1", "items": [obj]},
            "an array": [obj],
            "a Table": _table(kind, obj),
            "a map": {"a": {"b": obj}},
            "a watch": {"type": "ADDED", "object": obj},
            **{f"text, {form}": text for form, text in texts(obj).items()},
        }
        for form, value in wrapped.items():
            name = f"{kind.kind} as {form}"
            body = {"kind": "Widget", "apiVersion": "example.com/v1", "spec": {"manifest": value, "list": [value]}}
            for verb in ("create", "update", "patch"):
                yield f"{name} by {verb}", _dumped(WIDGET.event(verb, requestObject=body, responseObject=body))
            patch = [{"op": "add", "path": "/spec/manifest", "value": value}]
            yield f"{name} in a JSON patch", _dumped(WIDGET.event("patch", requestObject=patch))
            noted = {
                "kind": "Widget",
                "metadata": {"annotations": {ANNOTATIONS[0]: _dumped(body).decode(), "a": value}},
            }
            if isinstance(value, str):
                yield f"{name} in an annotation", _dumped(WIDGET.event("update", requestObject=noted))
                notes = {"w.example.com/object": value, "authorization.k8s.io/decision": "allow"}
                yield f"{name} in an event's annotation", _dumped(WIDGET.event("create", annotations=notes))
            webhook = {"patch.webhook.admission.k8s.io/round_0_index_0": json.dumps({"webhook": "w", "patch": patch})}
            yield f"{name} by a webhook", _dumped(WIDGET.event("create", annotations=webhook))
            # What says no to a body quotes it, at whatever level it is to leave.
            status = {"code": 422, "message": f'Widget "db" is invalid: spec.manifest: Invalid value: "{MARK}"'}
            notes = {"policy.example.com/key": MARK}
            answer = {"kind": "Status", "apiVersion": "v1", **status}
            quoted = WIDGET.event("create", requestObject=body, responseObject=answer, responseStatus=status)
            yield f"{name} in an error about it", _dumped(quoted | {"annotations": notes})
            plain = _dumped(WIDGET.event("update"))[:-1]
            for field_name in ("requestObject", "oldObject", "RequestObject"):
                yield f"{name} in {field_name}", plain + b',"%b":%b}' % (field_name.encode(), _dumped({"a": value}))
        whole = _dumped(obj)
        for label, written in (
            ("kind twice", whole[:-1] + b',"kind":"Widget"}'),
            ("kind twice, first another", b'{"kind":"Widget",' + whole[1:]),
            ("kind with a capital", whole.replace(b'"kind"', b'"Kind"')),
            ("kind in capitals, and another", b'{"kind":"Widget",' + whole[1:].replace(b'"kind"', b'"KIND"')),
            ("kind escaped", whole.replace(b'"kind"', b'"k\\u0069nd"')),
            (
                "its kind escaped",
                whole.replace(kind.kind.encode(), b"\\u%04x" % ord(kind.kind[0]) + kind.kind[1:].encode()),
            ),
            ("two kinds", whole[:-1] + b',"kind":"Secret","kind":"ConfigMap"}'),
            ("spaces", whole.replace(b":", b" : ", 1)),
        ):
            text = written.replace(b'"kind" :', b'\t"kind"\t:')
            plain = _dumped(WIDGET.event("patch"))[:-1]
            yield f"{kind.kind}, {label}", plain + b',"requestObject":{"spec":{"a":' + text + b"}}}"
            yield f"{kind.kind} alone, {label}", plain + b',"requestObject":' + text + b"}"
            again = _dumped({"spec": {"a": text.decode(), "b": _b64(text.decode())}})
            yield f"{kind.kind} in text, {label}", plain + b',"requestObject":' + again + b"}"
    yield from _in_disguise()


def _in_disguise() -> Iterator[tuple[str, bytes]]:
    """Where the URL, the objectRef and the body do not say the same."""
    pods = {"resource": "pods", "namespace": "team-a", "name": "db", "apiVersion": "v1"}
    uri = "/api/v1/namespaces/team-a/pods/db"
    for kind in KINDS:
        fields = dict(kind.secret[0])
        other = {"kind": "Pod", "apiVersion": "v1", "metadata": {"annotations": {"copy": MARK}}, **fields}
        told = kind.event("update", requestObject=other, responseObject=other)
        yield f"{kind.kind} that calls itself a Pod", _dumped(told)
        yield f"{kind.kind} under a Pod's URL", _dumped(told | {"requestURI": uri})
        if kind.built_in and not kind.subresource:
            named = kind.object(annotations={"copy": MARK})
            hidden = told | {"requestURI": uri, "objectRef": pods, "requestObject": named, "responseObject": named}
            yield f"{kind.kind} as a Pod", _dumped(hidden)
        yield f"{kind.kind} without a URL", _dumped({**told, "requestURI": ""})
        yield f"{kind.kind} without an objectRef", _dumped({**told, "objectRef": None})
        for subresource in ("status", "proxy", "unheard-of"):
            sub = told | {"requestURI": _sub(kind, subresource)}
            yield f"{kind.kind}/{subresource}", _dumped(sub)


def events() -> dict[str, bytes]:
    """All of them by name."""
    found: dict[str, bytes] = {}

    def add(name: str, raw: bytes) -> None:
        assert revealed(raw), name
        number = len(found)
        raw = raw.replace(b"00000000-0000-4000-8000-000000000000", b"00000000-0000-4000-8000-%012d" % number, 1)
        found[f"{number} {name}"] = raw

    for kind in KINDS:
        of = f"{kind.resource}.{kind.group}"
        for at, fields in enumerate(kind.secret):
            for name, each in _bodies(kind, kind.object(fields)):
                if "metadata" not in name:
                    add(f"{of} {at} {name}", _dumped(each))
        for makes in (_json_patches, _statuses, _noted, _selected):
            for name, each in makes(kind):
                if MARK.encode() in _dumped(each) or revealed(_dumped(each)):
                    add(f"{of} {name}", _dumped(each))
        for at, (name, obj) in enumerate(_annotated(kind)):
            # Each of them in some of the forms, all of the forms with some of them.
            forms = [form for form in _bodies(kind, obj) if revealed(_dumped(form[1]["responseObject"]))]
            for number in (at, at + 1, at + len(forms) // 2):
                form, each = forms[number % len(forms)]
                if form != "a Table of metadata" or "alone" in name:
                    add(f"{of} {name}, {form}", _dumped(each))
        for name, raw in _twice(kind):
            add(f"{of} {name}", raw)
    for name, raw in _elsewhere():
        add(name, raw)
    return found
