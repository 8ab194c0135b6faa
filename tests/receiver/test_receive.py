"""The whole way: what API servers send reaches each sink exactly as its policies say, once, and nothing is lost."""

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from faults import FAULTS, FaultyServer, Reply, Request, hang, status
from receiving import Setup, event, event_list, eventually, policy, program, receiving, recorded, sink

from audit_operator.policy.events import split
from audit_operator.receiver import intake as intake_module
from audit_operator.receiver.cutting import cut
from audit_operator.receiver.delivery import Worker
from audit_operator.receiver.sinks import Batch, Result, UnreachableError, stdout
from audit_operator.render.program import Program, RuleList, WireBatch, WireRedaction, WireResources, WireRule


def run(folder: Path, test: Callable[[Setup], Coroutine[Any, Any, None]], first: Program | None = None) -> None:
    async def whole() -> None:
        async with receiving(folder, first) as setup:
            await test(setup)

    uvloop.run(whole())


def ids(lines: list[Any]) -> list[str]:
    return [line["auditID"][-12:].lstrip("0") or "0" for line in lines]


def test_recorded_traffic_reaches_the_sink_byte_for_byte(tmp_path: Path) -> None:
    bodies = recorded()

    async def test(setup: Setup) -> None:
        for body in bodies:
            assert await setup.post(body) == 200

    run(tmp_path, test)
    delivered = (tmp_path / "files/audit-system/siem.log").read_bytes().splitlines()
    sent = [bytes(item) for body in bodies for item in split(body)]
    assert len(delivered) == len(sent)
    changed = [(a, b) for a, b in zip(sent, delivered, strict=True) if a != b]
    # What differs has something to redact in it.
    assert changed
    for before, after in changed:
        old, new = json.loads(before), json.loads(after)
        assert list(old) == list(new)
        assert any(
            name in old["requestURI"] or name in json.dumps(old)
            for name in ("secrets", "configmaps", "Secret", "ConfigMap", "token", "certificatesigningrequests")
        )


def test_values_that_json_libraries_bend_pass_as_they_are(tmp_path: Path) -> None:
    raw = (
        b'{"level":"RequestResponse","auditID":"a","stage":"ResponseComplete","requestURI":"/apis/x/v1/ys/z","verb":"get",'
        b'"user":{"username":"u"},"brandNew":{"z":1,"a":[1.0,1e400,18446744073709551615,-0.0]},'
        b'"responseObject":{"z":1.10,"a":18446744073709551615,"\\u00e9":"\\ud800"},"stageTimestamp":"2026-11-23T04:33:04.000001Z"}'
    )

    async def test(setup: Setup) -> None:
        assert await setup.post(event_list(raw)) == 200

    run(tmp_path, test)
    assert (tmp_path / "files/audit-system/siem.log").read_bytes() == raw + b"\n"


def test_one_bad_item_does_not_cost_the_others(tmp_path: Path) -> None:
    deep = json.dumps(event(2))[:-1].encode() + b',"requestObject":' + b"[" * 9_990 + b"]" * 9_990 + b"}"
    bad = [
        b"7",
        b"null",
        b'"x"',
        b"[]",
        json.dumps(event(9, level="Everything", requestObject={"p": "s3cret"})).encode(),
    ]

    async def test(setup: Setup) -> None:
        assert await setup.post(event_list(event(1), *bad, deep, event(3))) == 200
        await eventually(lambda: ids_of_raw(setup), lambda found: len(found) == 3)
        assert (await setup.status())["quarantine"]["malformed"] > 0

    def ids_of_raw(setup: Setup) -> list[bytes]:
        path = setup.folder / "files/audit-system/siem.log"
        return path.read_bytes().splitlines() if path.exists() else []

    run(tmp_path, test)
    first, second, third = (tmp_path / "files/audit-system/siem.log").read_bytes().splitlines()
    assert json.loads(first) == event(1)
    assert second == deep
    assert json.loads(third) == event(3)
    kept = (tmp_path / "journal/quarantine/malformed.jsonl").read_text()
    assert len(kept.splitlines()) == 5
    assert "s3cret" not in kept


def test_a_huge_event_holds_nobody_up_and_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {f"key{n}": "s3cret" * 100 for n in range(3000)}
    huge = event(
        1,
        verb="update",
        objectRef={"resource": "secrets", "namespace": "default", "name": "db", "apiVersion": "v1"},
        requestObject={"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "db"}, "data": data},
    )
    begun, go_on = threading.Event(), threading.Event()

    def slow(raw: bytes, *rest: Any) -> Any:
        if len(raw) > 1 << 20:
            begun.set()
            go_on.wait(30)
        return cut(raw, *rest)

    monkeypatch.setattr(intake_module, "cut", slow)

    async def test(setup: Setup) -> None:
        first = asyncio.create_task(setup.post(event_list(event(0), huge)))
        await eventually(begun.is_set)
        again = asyncio.create_task(setup.post(event_list(event(0), huge)))
        assert await setup.post(event_list(event(2)), "other") == 200
        assert (await setup.status())["ready"]
        assert not first.done()
        go_on.set()
        assert [await first, await again] == [200, 200]

    run(tmp_path, test)
    assert ids(Setup(tmp_path, None).lines()) == ["2", "0", "1"]
    assert b"s3cret" not in (tmp_path / "files/audit-system/siem.log").read_bytes()


RULES = RuleList(
    rules=(
        WireRule(level="None", verbs=("watch",)),
        WireRule(level="Minimal", verbs=("list",)),
        WireRule(level="Metadata", verbs=("get",)),
        WireRule(level="Request", verbs=("create",), omit_managed_fields=True),
        WireRule(level="RequestResponse"),
    ),
    omit_stages=("RequestReceived",),
)
BODY = {"metadata": {"name": "x", "managedFields": [{"manager": "m"}]}, "spec": {"z": 1, "a": 1.5}}


def body_event(number: int, verb: str, **rest: Any) -> dict[str, Any]:
    patch = {"patch.webhook.admission.k8s.io/round_0_index_0": '{"patch":[]}', "authorization.k8s.io/decision": "allow"}
    return event(number, verb=verb, requestObject=BODY, responseObject=BODY, annotations=patch, **rest)


def test_each_event_is_cut_to_what_its_rule_says(tmp_path: Path) -> None:
    events = [body_event(n, verb) for n, verb in enumerate(("watch", "list", "get", "create", "update"))]
    events.append(body_event(5, "update", stage="RequestReceived"))

    async def test(setup: Setup) -> None:
        assert await setup.post(event_list(*events)) == 200

    run(tmp_path, test, program(rules=[RULES]))
    minimal, metadata, request, everything = Setup(tmp_path, None).lines()
    assert minimal == {
        "level": "Minimal",
        "auditID": events[1]["auditID"],
        "stage": "ResponseComplete",
        "verb": "list",
        "user": {"username": "alice"},
        "objectRef": events[1]["objectRef"],
        "responseStatus": {"code": 200},
        "stageTimestamp": events[1]["stageTimestamp"],
    }
    expected = {k: v for k, v in events[2].items() if k not in ("requestObject", "responseObject")}
    assert metadata == expected | {"level": "Metadata", "annotations": {"authorization.k8s.io/decision": "allow"}}
    expected = {k: v for k, v in events[3].items() if k != "responseObject"}
    body = {"metadata": {"name": "x"}, "spec": {"z": 1, "a": 1.5}}
    assert request == expected | {"level": "Request", "requestObject": body}
    assert everything == events[4]


def test_nothing_is_raised_above_what_was_recorded_and_that_is_said(tmp_path: Path) -> None:
    async def test(setup: Setup) -> None:
        assert await setup.post(event_list(event(1, level="Metadata"))) == 200
        assert (await setup.status())["notCovered"] == {"audit-system/all": 1}

    run(tmp_path, test)
    assert [line["level"] for line in Setup(tmp_path, None).lines()] == ["Metadata"]


def test_secrets_never_reach_disk_or_sink(tmp_path: Path) -> None:
    secret = {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "db"}, "data": {"password": "aHVudGVyMg=="}}
    of_secret = event(
        1,
        verb="create",
        requestURI="/api/v1/namespaces/default/secrets",
        objectRef={"resource": "secrets", "namespace": "default", "name": "db", "apiVersion": "v1"},
        requestObject=secret,
        responseObject=secret,
    )
    embedded = event(2, verb="update", requestObject={"kind": "List", "items": [secret]})
    unreadable = event(3, verb="update", requestObject=None)
    raw = json.dumps(unreadable).replace(
        '"requestObject": null',
        '"requestObject": ' + '{"kind":"Secret","x":' + "[" * 5000 + '"hunter2"' + "]" * 5000 + "}",
    )

    async def test(setup: Setup) -> None:
        assert await setup.post(event_list(of_secret, embedded, raw.encode())) == 200
        await eventually(lambda: len(setup.lines()) == 3)

    run(tmp_path, test)
    found = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"aHVudGVyMg==" not in found
    assert b"hunter2" not in found
    lines = Setup(tmp_path, None).lines()
    assert lines[0]["requestObject"]["data"] == {"password": "***"}
    assert lines[2]["requestObject"] == {"redacted": "this could not be checked for secrets"}


def test_an_event_reaches_a_sink_once_however_many_policies_send_it(tmp_path: Path) -> None:
    rules = [
        RuleList(rules=(WireRule(level="Metadata"),)),
        RuleList(rules=(WireRule(level="Request"),)),
        RuleList(rules=(WireRule(level="RequestResponse", namespaces=("default",)),)),
    ]
    hide = (WireRedaction(resources=(WireResources(resources=("pods",)),), paths=("spec.z",), action="Mask"),)
    policies = [
        policy("a", sinks=["audit-system/siem", "audit-system/other"]),
        policy("b", rule_list=1, redactions=hide),
        policy("t", namespace="default", tenant="default", rule_list=2, sinks=["default/mine"]),
    ]
    sinks = [sink(), sink("other"), sink("mine", "default")]

    async def test(setup: Setup) -> None:
        assert await setup.post(event_list(body_event(1, "update"))) == 200

    run(tmp_path, test, program(policies=policies, sinks=sinks, rules=rules))
    after = Setup(tmp_path, None)
    (siem,), (other,), (mine,) = after.lines(), after.lines("other"), after.lines("mine", "default")
    assert (siem["level"], other["level"], mine["level"]) == ("Request", "Metadata", "RequestResponse")
    assert siem["requestObject"]["spec"] == {"z": "***", "a": 1.5}
    assert mine["requestObject"]["spec"] == {"z": 1, "a": 1.5}


@pytest.mark.parametrize("function", ["split", "decode"])
def test_what_json_libraries_refuse_is_read_where_it_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    odd = json.dumps(event(1, requestObject={"half": "HALF", "long": "x" * (1 << 17)}, verb="patch")).encode()
    odd = odd.replace(b"HALF", b"\\ud800")
    read = getattr(intake_module, function)
    begun, go_on = threading.Event(), threading.Event()

    def slow(document: bytes, **how: Any) -> Any:
        found = read(document, **how)
        if b"\\ud800" in bytes(document):
            begun.set()
            go_on.wait(30)
        return found

    monkeypatch.setattr(intake_module, function, slow)

    async def test(setup: Setup) -> None:
        first = asyncio.create_task(setup.post(event_list(event(0), odd)))
        await eventually(begun.is_set)
        assert await setup.post(event_list(event(2)), "other") == 200
        assert not first.done()
        go_on.set()
        assert await first == 200

    run(tmp_path, test)
    lines = (tmp_path / "files/audit-system/siem.log").read_bytes().splitlines()
    assert sorted(json.loads(line)["auditID"][-1] for line in lines) == ["0", "1", "2"]
    assert odd in lines


class _Failing:
    """A sink whose errors refer to themselves by way of their frames, as aiohttp's do."""

    def __init__(self) -> None:
        self.requests: list[weakref.ref[Any]] = []

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def deliver(self, _: Batch) -> Result:
        request = frozenset({"megabytes"})
        self.requests.append(weakref.ref(request))
        try:
            raise ConnectionError
        except ConnectionError as error:
            kept = error
            raise UnreachableError("refused") from kept


def test_a_sink_that_is_down_holds_no_memory_for_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = _Failing()
    monkeypatch.setattr(stdout, "make", lambda *_: failing)

    async def test(setup: Setup) -> None:
        gc.disable()
        try:
            assert await setup.post(event_list(event(1))) == 200
            await eventually(lambda: len(failing.requests) > 3)
            assert [each() for each in failing.requests[:3]] == [None, None, None]
        finally:
            gc.enable()

    run(tmp_path, test, program(sinks=[sink(type="stdout", settings={}, initial_backoff=0.01, max_backoff=0.01)]))


def test_a_tenant_can_neither_blind_a_shared_sink_nor_lay_it_bare(tmp_path: Path) -> None:
    def hide(path: str) -> tuple[WireRedaction, ...]:
        return (WireRedaction(resources=(WireResources(resources=("pods",)),), paths=(path,), action="Mask"),)

    rules = [RuleList(rules=(WireRule(level="RequestResponse"),)), RuleList(rules=(WireRule(level="Metadata"),))]
    tenant = policy("t", namespace="default", tenant="default", redactions=hide("spec"), sinks=["audit-system/siem"])
    same = program(policies=[policy("p", redactions=hide("spec.z")), tenant], rules=rules)
    higher = program(policies=[policy("p", rule_list=1, redactions=hide("spec.z")), tenant], rules=rules)
    for index, each in enumerate((same, higher)):
        folder = tmp_path / str(index)
        folder.mkdir()

        async def test(setup: Setup) -> None:
            assert await setup.post(event_list(body_event(1, "update"))) == 200

        run(folder, test, each)
    spec = [Setup(tmp_path / str(index), None).lines()[0]["requestObject"]["spec"] for index in (0, 1)]
    assert spec == [{"z": "***", "a": 1.5}, "***"]


def test_repeated_events_are_taken_once(tmp_path: Path) -> None:
    async def test(setup: Setup) -> None:
        body = event_list(*(event(number) for number in range(50)))
        assert [await setup.post(body) for _ in range(3)] == [200] * 3
        assert await asyncio.gather(*(setup.post(event_list(event(100), event(101))) for _ in range(8))) == [200] * 8
        # Another API server's events are others, and so are other stages and moments with the same auditID.
        assert await setup.post(event_list(event(0)), server="kube-apiserver-2") == 200
        assert await setup.post(event_list(event(0, stage="RequestReceived"))) == 200
        assert await setup.post(event_list(event(0, stageTimestamp="2026-11-23T04:33:05.000000Z"))) == 200
        # Who sends pairs of requests with one auditID hides none, even where both end in the same microsecond.
        assert await setup.post(event_list(event(0, requestURI="/api/v1/namespaces/default/pods/evil"))) == 200

    run(tmp_path, test)
    numbers = ids(Setup(tmp_path, None).lines())
    assert numbers == [*map(str, range(50)), "100", "101", "0", "0", "0", "0"]


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    nobody = program(sinks=[sink(type="http", settings={"url": "http://127.0.0.1:1/"})])

    async def first(setup: Setup) -> None:
        assert await setup.post(event_list(event(1), event(2))) == 200

    async def second(setup: Setup) -> None:
        # It was answered, but the answer may have been lost.
        assert await setup.post(event_list(event(1), event(2), event(3))) == 200
        await eventually(lambda: len(setup.lines()) == 3)

    run(tmp_path, first, nobody)
    run(tmp_path, second)
    assert ids(Setup(tmp_path, None).lines()) == ["1", "2", "3"]


# --- sinks that fail -------------------------------------------------------------------------------------------------


class Collector:
    """A strict server that keeps what it has answered 2xx for."""

    def __init__(self, refuses: Callable[[Any], bool] = lambda _: False, largest: int = 1 << 30) -> None:
        self.events: list[Any] = []
        self._refuses = refuses
        self._largest = largest
        self.server = FaultyServer(self._answer)

    def _answer(self, request: Request) -> Reply:
        if len(request.body) > self._largest:
            return Reply(413)
        events = [json.loads(line) for line in request.body.splitlines()]
        if any(self._refuses(each) for each in events):
            return Reply(400, b"unknown field")
        self.events += events
        return Reply()

    def sink(self, name: str = "siem", **rest: Any) -> Any:
        return sink(
            name,
            type="http",
            settings={"url": f"{self.server.url}/audit"},
            tls={"caBundle": self.server.ca},
            batch=WireBatch(max_events=10, max_bytes=5 << 20, max_age=0.02),
            **rest,
        )


def against(
    collector: Collector, folder: Path, test: Callable[[Setup], Coroutine[Any, Any, None]], **rest: Any
) -> None:
    """With a sink that is the collector, and another that gets the same."""

    async def whole() -> None:
        async with collector.server:
            both = policy(sinks=["audit-system/siem", "audit-system/other"])
            first = program(sinks=[collector.sink(**rest), sink("other")], policies=[both])
            async with receiving(folder, first) as setup:
                await test(setup)

    uvloop.run(whole())


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "400 once"])
def test_no_failure_of_a_sink_loses_or_reorders_events(name: str, tmp_path: Path) -> None:
    collector = Collector()
    collector.server.fail(*([FAULTS[name]] * 3))

    async def test(setup: Setup) -> None:
        for number in range(0, 100, 20):
            assert await setup.post(event_list(*(event(n) for n in range(number, number + 20)))) == 200
        await eventually(lambda: len({each["auditID"] for each in collector.events}) == 100)
        await eventually(lambda: len(setup.lines("other")) == 100)
        sinks = {each["name"]: each for each in (await setup.status())["sinks"]}
        assert sinks["audit-system/siem"]["state"] == "Delivering"

    against(collector, tmp_path, test)
    order = list(dict.fromkeys(ids(collector.events)))
    if name != "413":  # a batch is halved, and 413 for a single event is for good
        assert order == [str(number) for number in range(100)]


def test_a_sink_that_hangs_or_is_away_holds_up_no_other(tmp_path: Path) -> None:
    collector = Collector()
    collector.server.fail(hang(), hang())

    async def test(setup: Setup) -> None:
        await collector.server.stop()
        for number in range(50):
            assert await setup.post(event_list(event(number))) == 200
        await eventually(lambda: len(setup.lines("other")) == 50)
        sinks = {each["name"]: each for each in (await setup.status())["sinks"]}
        assert sinks["audit-system/siem"]["state"] == "Unreachable"
        assert sinks["audit-system/siem"]["backlogEvents"] == 50
        assert sinks["audit-system/siem"]["oldestSeconds"] > 0
        await collector.server.start()
        await eventually(lambda: len(collector.events) == 50, seconds=20)

    against(collector, tmp_path, test, timeout=0.3)
    assert ids(collector.events) == [str(number) for number in range(50)]


def test_what_a_sink_refuses_for_good_is_kept_and_the_rest_delivered_in_order(tmp_path: Path) -> None:
    bad = {"00000000-0000-4000-8000-000000000007", "00000000-0000-4000-8000-000000000013"}
    collector = Collector(refuses=lambda each: each["auditID"] in bad)

    async def test(setup: Setup) -> None:
        assert await setup.post(event_list(*(event(n) for n in range(20)))) == 200
        await eventually(lambda: len(collector.events) == 18)
        (status_,) = [each for each in (await setup.status())["sinks"] if each["name"] == "audit-system/siem"]
        assert (status_["deadLettered"], status_["backlogEvents"]) == (2, 0)
        quarantine = setup.receiver.quarantine
        held = list(quarantine.entries("audit-system/siem"))
        assert [json.loads(bytes(each.event)) for each in held] == [event(7), event(13)]
        assert {each.reason for each in held} == {"HTTP 400: unknown field"}
        # Mended, and asked for.
        bad.clear()
        assert quarantine.ask_again("audit-system/siem", frozenset({held[0].id})) == 1
        await eventually(lambda: len(collector.events) == 19)
        assert [each.id for each in quarantine.entries("audit-system/siem")] == [held[1].id]

    against(collector, tmp_path, test)
    assert ids(collector.events) == [str(n) for n in range(20) if n not in (7, 13)] + ["7"]


def test_a_batch_that_is_too_large_is_halved_until_it_fits(tmp_path: Path) -> None:
    collector = Collector(largest=1500)

    async def test(setup: Setup) -> None:
        assert await setup.post(event_list(*(event(n) for n in range(20)))) == 200
        await eventually(lambda: len(collector.events) == 20)

    against(collector, tmp_path, test)
    assert ids(collector.events) == [str(n) for n in range(20)]


def test_deliveries_side_by_side_lose_nothing(tmp_path: Path) -> None:
    collector = Collector()
    collector.server.fail(status(500), status(503), status(429, retry_after=0))

    async def test(setup: Setup) -> None:
        for number in range(0, 200, 10):
            assert await setup.post(event_list(*(event(n) for n in range(number, number + 10)))) == 200
        await eventually(lambda: len(collector.events) == 200)
        (status_,) = [each for each in (await setup.status())["sinks"] if each["name"] == "audit-system/siem"]
        await eventually(lambda: setup.receiver.journal.logs["audit-system/siem"].backlog == 0)
        assert status_["delivered"] == 200

    against(collector, tmp_path, test, concurrency=4)
    assert sorted(map(int, ids(collector.events))) == list(range(200))


def test_a_bug_in_one_delivery_of_several_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector()
    settle = Worker._settle
    bugs = [ValueError(), ValueError()]

    async def buggy(self: Worker, items: list[Any], result: Any) -> list[Any]:
        if bugs:
            raise bugs.pop()
        return await settle(self, items, result)

    monkeypatch.setattr(Worker, "_settle", buggy)

    async def test(setup: Setup) -> None:
        for number in range(0, 100, 10):
            assert await setup.post(event_list(*(event(n) for n in range(number, number + 10)))) == 200
        await eventually(lambda: setup.receiver.journal.logs["audit-system/siem"].backlog == 0)
        assert not bugs

    against(collector, tmp_path, test, concurrency=4)
    assert set(map(int, ids(collector.events))) == set(range(100))


def test_how_long_events_wait_is_known_although_the_sink_never_opened(tmp_path: Path) -> None:
    away = sink(type="http", settings={"url": "http://127.0.0.1:1/"})
    unknown = sink(type="fax", settings={})

    async def first(setup: Setup) -> None:
        assert await setup.post(event_list(event(1))) == 200

    async def after_a_restart(setup: Setup) -> None:
        async def oldest() -> float:
            return float((await setup.status())["sinks"][0]["oldestSeconds"])

        assert await eventually(oldest) > 0

    run(tmp_path, first, program(sinks=[away]))
    run(tmp_path, after_a_restart, program(sinks=[away]))
    run(tmp_path, after_a_restart, program(sinks=[unknown]))


def test_a_tenants_sink_cannot_be_pointed_at_the_receivers_own_machine(tmp_path: Path) -> None:
    collector = Collector()

    async def whole() -> None:
        async with collector.server:
            mine = collector.sink(namespace="default", name="mine")
            rules = [RuleList(rules=(WireRule(level="Metadata"),))]
            tenant = policy("t", namespace="default", tenant="default", sinks=["default/mine"])
            async with receiving(tmp_path, program(policies=[tenant], sinks=[mine], rules=rules)) as setup:
                assert await setup.post(event_list(event(1))) == 200

                async def state() -> Any:
                    return (await setup.status())["sinks"][0]

                found = await eventually(state, lambda each: each["state"] != "Idle")
                assert found["state"] == "Misconfigured"
                assert "where this sink may not connect to" in found["message"]

    uvloop.run(whole())
    assert not collector.server.requests
