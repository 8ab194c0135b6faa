"""What is not redacted never touches the disk: not the journal, not quarantine, no temporary file, whatever came."""

import asyncio
import json
import os
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from faults import FaultyServer, choosy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from receiving import Setup, event, event_list, eventually, policy, program, recorded, sink, until_refused_for_good

from audit_operator.receiver.quarantine import malformed
from audit_operator.render.program import TenantProgram, WireRedaction, WireResources

PLANTED = "pl4nted-s3cret"
FORMS = [form.encode() for form in (PLANTED, b64encode(PLANTED.encode()).decode().rstrip("="), PLANTED[::-1])]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Everything that this process writes to files, those that are gone again included."""
    seen: list[bytes] = []

    def watched(name: str, pieces: Callable[..., list[Any]]) -> None:
        real = getattr(os, name)

        def write(file: int, data: Any, *rest: Any) -> Any:
            seen.extend(bytes(piece) for piece in pieces(data))
            return real(file, data, *rest)

        monkeypatch.setattr(os, name, write)

    watched("write", lambda data: [data])
    watched("pwrite", lambda data: [data])
    watched("writev", list)
    watched("pwritev", list)
    return seen


def found_in(data: bytes) -> list[bytes]:
    return [form for form in FORMS if form in data]


SECRET = {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "db", "namespace": "team-a"}}
DATA: list[Any] = [
    {"data": {"password": b64encode(PLANTED.encode()).decode()}},
    {"stringData": {"password": PLANTED}},
    {"DATA": {"password": PLANTED}},
    {"data": PLANTED},
    {"data": [[PLANTED]]},
    {"data": {"a": {"b": PLANTED}}},
    {"metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": json.dumps({"data": PLANTED})}}},
]
OBJECTS = st.sampled_from([SECRET | more for more in DATA])


def _wrapped(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        inner.map(lambda one: {"kind": "List", "apiVersion": "v1", "items": [one]}),
        inner.map(lambda one: {"kind": "SecretList", "apiVersion": "v1", "metadata": {}, "items": [one]}),
        inner.map(lambda one: {"spec": {"template": one}}),
        inner.map(lambda one: {"spec": {"manifest": json.dumps(one)}}),
        inner.map(lambda one: [{"op": "add", "path": "/spec/x", "value": one}]),
    )


BODIES = st.recursive(OBJECTS, _wrapped, max_leaves=3)

OF_SECRETS = {"resource": "secrets", "namespace": "team-a", "name": "db", "apiVersion": "v1"}
OF_CONFIGMAPS = {"resource": "configmaps", "namespace": "team-a", "name": "db", "apiVersion": "v1"}
OF_LOGINS = {
    "resource": "logins", "namespace": "team-a", "name": "x", "apiGroup": "example.com", "apiVersion": "v1"
}  # fmt: skip
OF_PODS = {"resource": "pods", "namespace": "team-a", "name": "web", "apiVersion": "v1"}


def uri(reference: dict[str, str]) -> str:
    group = f"apis/{reference['apiGroup']}/v1" if "apiGroup" in reference else "api/v1"
    return f"/{group}/namespaces/team-a/{reference['resource']}/{reference['name']}"


def of(reference: dict[str, str], **rest: Any) -> dict[str, Any]:
    return event(0, objectRef=reference, requestURI=uri(reference), verb="update", **rest)


LOGIN = {"kind": "Login", "apiVersion": "example.com/v1", "spec": {"password": PLANTED, "users": [{"key": PLANTED}]}}

EVENTS = st.one_of(
    st.builds(
        lambda reference, request, response: of(reference, requestObject=request, responseObject=response),
        st.sampled_from([OF_SECRETS, OF_PODS]),
        BODIES,
        st.one_of(BODIES, st.none()),
    ),
    st.sampled_from([{**LOGIN}, {"spec": {"password": {"x": [PLANTED]}}}, [LOGIN]]).map(
        lambda body: of(OF_LOGINS, requestObject=body)
    ),
    st.sampled_from([{"data": {"a": PLANTED}}, {"binaryData": {"a": PLANTED}}, PLANTED, [PLANTED]]).map(
        lambda body: of(OF_CONFIGMAPS, requestObject=body, responseObject=body)
    ),
    st.just(
        of(
            OF_SECRETS,
            responseStatus={"code": 422, "message": f"invalid value {PLANTED}", "details": {"causes": [PLANTED]}},
            requestObject={"data": {"a": PLANTED}},
        )
    ),
    st.just(
        of(
            OF_SECRETS,
            annotations={
                "patch.webhook.admission.k8s.io/round_0_index_0": json.dumps(
                    {"patch": [{"op": "add", "path": "/data/a", "value": PLANTED}], "patchType": "JSONPatch"}
                )
            },
        )
    ),
)


def _member(name: str, value: bytes) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:-1] + b',"%b":%b}' % (name.encode(), value)


DEEP = b'{"kind":"Secret","x":' + b"[" * 9000 + b'"' + PLANTED.encode() + b'"' + b"]" * 9000 + b"}"
QUOTED = json.dumps(PLANTED).encode()

MANGLED: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda raw: raw,
    "a body twice": _member("requestObject", b'{"kind":"Secret","data":{"a":%b}}' % QUOTED),
    "a body with an escaped name": _member("requestO\\u0062ject", b'{"kind":"Secret","data":{"a":%b}}' % QUOTED),
    "escaped names inside": lambda raw: raw.replace(b'"data"', b'"d\\u0061ta"').replace(b'"kind"', b'"\\u006bind"'),
    "another depth": _member("requestObject", DEEP),
    "no level": lambda raw: raw.replace(b'"level":"RequestResponse"', b'"level":"Everything"'),
    "no stage": lambda raw: raw.replace(b'"stage":"ResponseComplete"', b'"stage":7'),
    "no identity": lambda raw: raw.replace(b'"auditID"', b'"auditId"'),
    "a user that is none": lambda raw: raw.replace(b'"user":{', b'"user":[{').replace(b"},", b"}],", 1),
    "a reference that is none": lambda raw: raw.replace(b'"objectRef":{', b'"objectRef":{"resource":{"a":1},'),
    "a huge number": _member("responseObject", b'{"kind":"Secret","data":{"a":%b,"n":1e999}}' % QUOTED),
    "half a character": _member("requestObject", b'{"kind":"Secret","data":{"a":%b,"b":"\\ud800"}}' % QUOTED),
    "no text": _member("requestObject", b'{"kind":"Secret","data":{"a":%b,"b":"\xff"}}' % QUOTED),
    "a list instead": lambda raw: b"[" + raw + b"]",
    "text instead": lambda raw: json.dumps(raw.decode(errors="replace")[::-1]).encode(),
}


@st.composite
def items(draw: st.DrawFn) -> bytes:
    raw = json.dumps(draw(EVENTS), separators=(",", ":")).encode()
    return MANGLED[draw(st.sampled_from(sorted(MANGLED)))](raw)


HIDE = (
    WireRedaction(
        resources=(WireResources(group="example.com", resources=("logins",)),),
        paths=("spec.password", "spec.users[*].key"),
        action="Mask",
    ),
)


async def sent(folder: Path, bodies: list[bytes]) -> None:
    """To sinks of the platform and of a tenant: one that takes, one that is away, one that refuses."""
    async with FaultyServer(choosy, tls=False) as refusing:
        url = f"http://127.0.0.1:{refusing.port}"
        names = ["team-a/away", "team-a/refusing"]
        own = {"namespace": "team-a", "tenant": "team-a", "redactions": HIDE}
        first = program(
            policies=[
                policy(sinks=["audit-system/siem", "audit-system/away"], redactions=HIDE),
                policy("own", sinks=[*names, "audit-system/siem"], **own),
            ],
            sinks=[
                sink(),
                sink("away", type="http", settings={"url": "http://127.0.0.1:1"}),
                sink("away", "team-a", type="http", settings={"url": "http://127.0.0.1:1"}),
                sink("refusing", "team-a", type="http", settings={"url": url}),
            ],
            tenants=TenantProgram(
                root_namespace="audit-system",
                journal_bytes=1 << 30,
                events_per_second=9999,
                networks=("127.0.0.1/32",),
            ),
        )
        setup = Setup(folder, first)
        await setup.receiver.start()
        try:
            for body in bodies:
                assert await setup.post(body) in (200, 400)
            siem = setup.receiver.journal.logs["audit-system/siem"]
            await eventually(lambda: siem.backlog == 0)
            if len(bodies) <= 3:  # of thousands that are refused, one after the other, it would take long
                await until_refused_for_good(setup, "team-a/refusing", objectRef=OF_PODS, requestURI=uri(OF_PODS))
        finally:
            await setup.receiver.stop(delivery_grace=0.0)


def check(folder: Path, written: list[bytes]) -> int:
    """Nothing in any file; how many files there were with something in them."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    for path in files:
        assert not found_in(path.read_bytes()), path
    for data in written:
        assert not found_in(data)
    return len(files)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.lists(items(), min_size=1, max_size=25))
def test_no_secret_touches_the_disk_whatever_an_api_server_sends(
    chosen: list[bytes], tmp_path_factory: pytest.TempPathFactory, written: list[bytes]
) -> None:
    written.clear()
    folder = tmp_path_factory.mktemp("receiver")
    numbered = [
        raw.replace(b"00000000-0000-4000-8000-000000000000", b"00000000-0000-4000-8000-%012d" % number)
        for number, raw in enumerate(chosen)
    ]
    whole = event_list(*numbered)
    uvloop.run(sent(folder, [whole, whole[: len(whole) // 2], b"[" + whole]))
    check(folder, written)


def test_the_search_finds_what_is_there_and_every_place_is_used(tmp_path: Path, written: list[bytes]) -> None:
    plain = of(OF_PODS, requestObject={"spec": {"note": "in the clear"}})
    malformed = of(OF_PODS, level="Everything", requestObject={"a": PLANTED})
    uvloop.run(sent(tmp_path, [event_list(plain, malformed)]))
    check(tmp_path, written)
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and b"in the clear" in path.read_bytes()]
    places = {str(path.relative_to(tmp_path)).rpartition("/")[0] for path in holding}
    assert places >= {"files/audit-system", "journal/sinks/team-a/away", "journal/sinks/audit-system/away"}
    assert "journal/quarantine/team-a" in places
    assert (tmp_path / "journal/quarantine/malformed.jsonl").stat().st_size
    assert any(b"in the clear" in data for data in written)


def test_of_an_item_that_is_no_event_no_value_is_kept() -> None:
    envelope = {
        "level": "Everything",
        "auditID": "00000000-0000-4000-8000-000000000000",
        "stage": "ResponseComplete",
        "requestURI": f"/api/v1/secrets?fieldSelector=data.a%3D{PLANTED}",
        "verb": "list",
        "stageTimestamp": "2026-11-23T04:00:00.000000Z",
    }

    def kept(item: dict[str, Any]) -> Any:
        return json.loads(bytes(malformed("kube-apiserver", json.dumps(item).encode(), "odd", "now").event))

    assert kept(envelope) == envelope | {"requestURI": "/api/v1/secrets"}
    assert kept({"requestURI": "", "verb": ""}) == {"requestURI": "", "verb": ""}
    for name in envelope:
        for odd in (f"{PLANTED} x", {"a": PLANTED}, [PLANTED], f"{PLANTED}\n"):
            assert PLANTED not in json.dumps(kept({name: odd}))
    for name in ("user", "objectRef", "requestObject", "annotations", "responseStatus", "other", "Level"):
        assert PLANTED not in json.dumps(kept({name: PLANTED}))


def test_recorded_traffic_leaves_no_content_of_secrets_on_the_disk(tmp_path: Path, written: list[bytes]) -> None:
    values = set()
    for body in recorded():
        for item in json.loads(body)["items"]:
            for name in ("requestObject", "responseObject"):
                values |= set(_data(item.get(name)))
    hidden = [value.encode() for value in values if len(value) >= 12]
    assert hidden
    uvloop.run(sent(tmp_path, recorded()))
    everything = b"".join(written)
    for value in hidden:
        assert value not in everything


def _data(value: Any) -> Iterator[str]:
    """The values of all Secrets in a body."""
    if isinstance(value, list):
        for each in value:
            yield from _data(each)
    elif isinstance(value, dict):
        if value.get("kind") == "Secret":
            yield from (each for each in (value.get("data") or {}).values() if isinstance(each, str))
        for each in value.values():
            yield from _data(each)


def test_a_thread_that_cuts_what_is_huge_writes_nothing_either(tmp_path: Path, written: list[bytes]) -> None:
    data = {f"key-{number}": PLANTED + "x" * 2000 for number in range(1000)}
    huge = of(OF_SECRETS, requestObject=SECRET | {"stringData": data})
    uvloop.run(asyncio.wait_for(sent(tmp_path, [event_list(huge)]), 60))
    assert check(tmp_path, written)
