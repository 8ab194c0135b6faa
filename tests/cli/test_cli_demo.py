"""`audit-operator demo` says what is so: its claims are checked here by other means than its own."""

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import web
from commands import EXAMPLES, SCRIPT, call, on_terminal
from hypothesis import given
from hypothesis import strategies as st

from audit_operator.cli.demo import command
from audit_operator.cli.demo.findings import Arrived, Expected, Findings, Search, Sent, sink_row
from audit_operator.cli.demo.laptop import Collector
from audit_operator.cli.demo.run import Demo
from audit_operator.cli.demo.traffic import needles, occurrences
from audit_operator.policy.evaluate import rule_matches
from audit_operator.policy.events import event_of
from audit_operator.policy.model import Level
from audit_operator.policy.request import request_of
from audit_operator.render.plan import Plan

Key = tuple[str, str]


class Silent:
    """Nobody looks."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def said(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, done: int, total: int) -> None:
        assert done <= total


class Done(NamedTuple):
    """A run, its folder, and what it says of itself."""

    demo: Demo
    plan: Plan
    folder: Path
    findings: Findings
    lines: list[str]


def run(folder: Path) -> Done:
    plan = command.plan_of(EXAMPLES)
    show = Silent()
    demo = Demo(plan, command.recorded_in(EXAMPLES), folder, show)
    findings = asyncio.run(demo.run())
    return Done(demo, plan, folder, findings, show.lines)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return run(tmp_path_factory.mktemp("demo"))


SINKS = {
    "audit-system/siem": "collector.ndjson",
    "audit-system/console": "console.log",
    **{
        sink: f"state/files/{sink}/audit-receiver-0.log"
        for sink in ("audit-system/archive", "audit-system/credentials", "team-a/loki", "team-b/collector")
    },
}


def lines(done: Done, sink: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (done.folder / SINKS[sink]).read_bytes().splitlines()]
    return [event["kubernetes"]["audit"] if sink == "audit-system/siem" else event for event in found]


def asked_for(plan: Plan, bodies: list[bytes]) -> dict[str, dict[Key, Level]]:
    """By each rule in turn, as the API server's own checker does."""
    found: dict[str, dict[Key, Level]] = defaultdict(dict)
    for item in (item for body in bodies for item in json.loads(body)["items"]):
        request = request_of(event_of(item))
        for each in plan.policies:
            rule = next((rule for rule in each.policy.rules if rule_matches(rule, request)), None)
            if rule is None or item["stage"] in each.policy.omit_stages | rule.omit_stages:
                continue
            for sink in each.sinks if rule.level is not Level.NONE else ():
                key = item["auditID"], item["stage"]
                found[sink][key] = max(rule.level, found[sink].get(key, Level.NONE))
    return found


def test_every_sink_has_each_acknowledged_event_that_its_policies_ask_for_and_no_other(done: Done) -> None:
    bodies = [body for load in done.demo.loads for body in load.server.acknowledged]
    assert len(bodies) == sum(len(load.posts) for load in done.demo.loads)
    wanted = asked_for(done.plan, bodies)
    assert wanted.keys() == SINKS.keys()
    for sink, events in wanted.items():
        there = {(event["auditID"], event["stage"]): Level.parse(event["level"]) for event in lines(done, sink)}
        assert there == events
        row = next(row for row in done.findings.sinks if row.sink == sink)
        assert (row.events, row.twice) == (len(there), len(lines(done, sink)) - len(there))
        assert (row.lost, row.unasked, row.otherwise, row.broken) == (0, 0, 0, 0)
    assert done.findings.failures() == []
    assert done.findings.sent.events == sum(len(json.loads(body)["items"]) for body in bodies) > 3000


def test_three_api_servers_sent_and_the_receiver_was_killed_between(done: Done) -> None:
    said = [json.loads(line) for line in (done.folder / "receiver.log").read_text().splitlines()]
    starts = [index for index, line in enumerate(said) if line["message"].startswith("listening on port")]
    assert len(starts) == 2
    assert not any("stopping" in line["message"] for line in said[: starts[1]])
    assert said[-1]["message"] == "stopped; 0 events wait in the journal for the next start"
    assert all(load.server.acknowledged and not load.server.lost for load in done.demo.loads)
    assert done.findings.sent.repeated > 0
    assert any("killed (SIGKILL)" in line for line in done.lines)


def test_what_was_sent_as_secret_is_nowhere(done: Done) -> None:
    sent = b"".join(body for load in done.demo.loads for body in load.server.acknowledged).decode()
    strings = set(re.findall(r'"([^"\\]{20,})"', sent))
    values = set(re.findall(r"planted-[0-9a-f]{16}-[0-9]{5}", sent))
    encoded = {text for text in strings if base64.b64encode(b"planted-").decode()[:10] in text}
    assert min(len(values), len(encoded)) > 50
    assert re.search(r'"kind":"Secret".{0,300}"data":\{"password":"cGxhbnRlZC', sent)
    common = {value[:24] for value in values} | {"cGxhbnRlZC", "bnRlZC0", "YW50ZWQt", "GFudGVkL"}
    assert len(common) == 5
    kept = b"".join(path.read_bytes() for path in done.folder.rglob("*") if path.is_file())
    assert len(kept) > 10_000_000
    assert not any(text.encode() in kept for text in common)
    # Bodies are there, without them.
    created = [
        event["requestObject"]
        for event in lines(done, "audit-system/credentials")
        if event["verb"] == "create" and event["objectRef"]["resource"] == "secrets"
    ]
    assert len(created) == 9
    assert all(body["data"] == {"password": "***", "token": "***"} for body in created)
    journal = next(search for search in done.findings.searches if search.place == "journal after SIGKILL")
    assert journal.size > 100_000


@given(st.binary(max_size=5), st.binary(max_size=5))
def test_a_marker_is_found_in_plain_and_wherever_base64_has_it(before: bytes, after: bytes) -> None:
    marker = "planted-0123456789abcdef"
    data = before + marker.encode() + after
    assert occurrences(needles(marker), data) == 1
    assert occurrences(needles(marker), base64.b64encode(data)) == 1
    assert occurrences(needles(marker), base64.b64encode(data.replace(b"e", b"x"))) == 0


def test_a_sink_that_swallows_events_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0
    take = Collector._take

    async def swallow(self: Collector, request: web.Request) -> web.Response:
        nonlocal taken
        taken += 1
        return web.Response() if taken == 2 else await take(self, request)

    monkeypatch.setattr(Collector, "_take", swallow)
    findings = run(tmp_path).findings
    siem = next(row for row in findings.sinks if row.sink == "audit-system/siem")
    assert siem.lost > 0
    assert findings.lost == siem.lost
    assert findings.failures() == [f"audit-system/siem: {siem.lost:,} events that were acknowledged are missing"]


EVENTS = [{"auditID": str(number), "stage": "Panic", "stageTimestamp": "t", "level": "Metadata"} for number in range(3)]
WANTED = Expected({}, {"a/b": {(str(number), "Panic", "t"): Level.METADATA for number in range(3)}})
NONE = Expected({}, {})


def findings(arrived: list[dict[str, str]], **changes: Any) -> Findings:
    row = sink_row("a/b", "file", changes.pop("must", WANTED), changes.pop("may", WANTED), Arrived(arrived, 0))
    whole = Findings(Sent(1, 3, 0, 0), (), (row,), 5, (Search("journal", 10, 0),), 0, ended_well=True)
    return whole._replace(**changes)


@pytest.mark.parametrize(
    ("what", "failure"),
    [
        (findings(EVENTS), None),
        (findings([*EVENTS, EVENTS[0]]), None),
        (findings(EVENTS[:2], must=NONE), None),
        (findings(EVENTS[1:]), "a/b: 1 events that were acknowledged are missing"),
        (findings(EVENTS, must=NONE, may=NONE), "a/b: 3 events that no policy asks for are there"),
        (
            findings([*EVENTS[:2], EVENTS[2] | {"level": "Request"}]),
            "a/b: 1 events are there at another level than explained",
        ),
        (findings(EVENTS, searches=(Search("journal", 10, 2),)), "journal: 2 planted values"),
        (findings(EVENTS, planted=0), "no secret was sent, so that none could leak"),
        (findings(EVENTS, left=4), "4 events still wait in the receiver's journal"),
        (findings(EVENTS, sent=Sent(1, 3, 9, 1)), "API servers gave up 1 POSTs: the receiver was away for too long"),
    ],
)
def test_whatever_does_not_hold_is_said_and_ends_with_1(
    what: Findings, failure: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit_operator.cli.demo.run.run", lambda *_: what)
    result = call("demo", EXAMPLES)
    assert result.code == (0 if failure is None else 1)
    assert ("FAILED" in result.out or "!" in result.out) is (failure is not None)
    assert failure is None or f" ! {failure}\n" in result.out
    answer = json.loads(call("demo", EXAMPLES, "-o", "json").out)
    assert answer["failures"] == ([] if failure is None else [failure])
    assert answer["ok"] is (failure is None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_ends_it_ends_the_receiver_too(number: signal.Signals) -> None:
    with subprocess.Popen([SCRIPT, "demo", EXAMPLES], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        receiver = 0
        for line in process.stdout:
            if found := re.search(r"receiver started \(process (\d+)\)", line):
                receiver = int(found[1])
                break
        os.kill(receiver, 0)
        process.send_signal(number)
        process.stdout.read()
        assert process.wait(30) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(receiver, 0)


def test_a_person_sees_how_far_it_is() -> None:
    result = on_terminal("demo", EXAMPLES)
    assert result.code == 0
    assert re.search(r"\r          [\d,]+ of 3,519 events acknowledged", result.out)
    assert "\x1b[" in result.out


def test_a_demo_without_examples_says_where_they_are(tmp_path: Path) -> None:
    result = call("demo", tmp_path)
    assert result.code == 2
    assert "run it in a checkout of the project" in result.err
