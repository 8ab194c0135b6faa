"""Replayed events are counted as the policies decide, whatever files they come in."""

import gzip
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from commands import CLUSTER, DATA, DEMO_SET, EXAMPLES, assert_golden, call, write

from audit_operator.cli import replay as command
from audit_operator.cli.policies import Source
from audit_operator.cli.replay import Replay, Report, Volume, replay_file
from audit_operator.policy.evaluate import rule_matches
from audit_operator.policy.events import decode, fields, split
from audit_operator.policy.model import Level, Policy, Rule, Stage
from audit_operator.policy.presets import NAMES, preset
from audit_operator.policy.request import request_of
from audit_operator.policy.union import union

TRAFFIC = EXAMPLES / "traffic/sample.jsonl.gz"
RECORDED = DATA / "audit-eventlists.jsonl.gz"
EVENTS = [bytes(event) for line in gzip.decompress(RECORDED.read_bytes()).splitlines() for event in split(line)]
BODIES = {Level.METADATA: ("requestObject", "responseObject"), Level.REQUEST: ("responseObject",)}


def replayed(sources: Iterable[Source], *files: Path, server: Policy | None = None) -> Report:
    members = tuple(sources)
    replay = Replay(members, server or union(source.policy for source in members))
    for file in files:
        replay_file(str(file), replay)
    return replay.report()


def sources(*names: str) -> list[Source]:
    return [Source(name, preset(name), sinks=(f"x/{name}", "x/all")) for name in names]


def volume(event: bytes, level: Level) -> Volume:
    """An event that is written anew without its bodies."""
    kept = {key: value for key, value in fields(event).items() if key not in BODIES.get(level, ())}
    return Volume(1, len(msgspec.json.encode(kept)))


def event(**members: object) -> bytes:
    base = {"level": "RequestResponse", "auditID": "1", "stage": "ResponseComplete", "requestURI": "/api/v1/nodes",
            "verb": "list", "user": {"username": "alice"}}  # fmt: skip
    return json.dumps(base | members, separators=(",", ":")).encode()


ALL = Policy(rules=(Rule(level=Level.REQUEST_RESPONSE),))


# --- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Minimal"])
def test_counts_are_those_of_asking_rule_by_rule_for_every_event(name: str) -> None:
    policy = preset(name)
    matched: Counter[str | None] = Counter()
    kept: dict[Level, Volume] = {}
    for raw in EVENTS:
        found = decode(raw)
        rule = next((rule for rule in policy.rules if rule_matches(rule, request_of(found))), None)
        matched[rule.origin if rule else None] += 1
        if rule and rule.level and found.stage not in policy.omit_stages | rule.omit_stages:
            kept[rule.level] = kept.get(rule.level, Volume()).plus(volume(raw, rule.level))
    (share,) = replayed(sources(name), RECORDED).policies
    assert {rule.origin: rule.matched for rule in share.rules if rule.matched} == matched
    assert share.levels == kept


def test_minimal_events_are_about_as_large_as_receivers_write_them() -> None:
    policy = Policy(rules=(Rule(level=Level.MINIMAL),))
    (share,) = replayed([Source("m", policy)], RECORDED).policies
    size = 0
    for raw in EVENTS:
        found = msgspec.json.decode(raw)
        minimal = {key: found[key] for key in ("auditID", "stage", "stageTimestamp", "verb")}
        minimal |= {"level": "Minimal", "user": {"username": found["user"].get("username", "")}}
        minimal |= {"responseStatus": {"code": found.get("responseStatus", {}).get("code", 200)}}
        minimal |= {"objectRef": found["objectRef"]} if "objectRef" in found else {"requestURI": found["requestURI"]}
        size += len(msgspec.json.encode(minimal))
    assert share.kept.events == len(EVENTS)
    assert abs(share.kept.size - size) < 0.03 * size


def test_a_sink_gets_an_event_once_at_the_highest_level_that_is_sent() -> None:
    report = replayed(sources("Metadata", "WriteBodies"), RECORDED)
    sinks = {sink.name: sink.kept for sink in report.sinks}
    shares = {share.name: share.kept for share in report.policies}
    assert sinks["x/Metadata"] == shares["Metadata"]
    assert sinks["x/all"] == shares["WriteBodies"]


def test_api_servers_write_at_least_what_is_needed_and_the_difference_is_the_price_of_the_union() -> None:
    report = replayed(sources(*NAMES), RECORDED)
    assert report.needed.events <= report.server.kept.events
    assert report.needed.size <= report.server.kept.size
    alone = replayed(sources("CIS"), RECORDED)
    assert alone.needed == alone.server.kept == alone.policies[0].kept


def test_nobody_gets_more_than_api_servers_record_or_than_was_recorded(tmp_path: Path) -> None:
    metadata = Policy(rules=(Rule(level=Level.METADATA),), omit_stages=frozenset({Stage.PANIC}))
    bodies = {"requestObject": {"a": "b" * 99}, "responseObject": {"c": "d" * 99}}
    path = write(tmp_path / "e.jsonl", event(**bodies) + b"\n" + event(**bodies, stage="Panic"))
    (share,) = replayed([Source("all", ALL)], path, server=metadata).policies
    assert (share.kept, share.not_covered, share.recorded_less) == (volume(event(**bodies), Level.METADATA), 2, 0)
    path = write(tmp_path / "m.jsonl", event(level="Metadata"))
    (share,) = replayed([Source("all", ALL)], path).policies
    assert share.levels == {Level.METADATA: Volume(1, len(event(level="Metadata")))}
    assert (share.not_covered, share.recorded_less) == (0, 1)


def test_a_request_is_decided_once_however_often_it_comes_and_memory_stays_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = b"\n".join(event(requestURI=f"/api/v1/pods/{number}") for number in range(50))
    path = write(tmp_path / "e.jsonl", lines)
    expected = replayed(sources("CIS"), path)
    monkeypatch.setattr(command, "_REMEMBERED", 3)
    assert replayed(sources("CIS"), path) == expected
    assert expected.read.events == 50


# --- files -----------------------------------------------------------------------------------------------------------


def test_lists_and_log_lines_plain_or_gzip_are_the_same_events(tmp_path: Path) -> None:
    lists = gzip.decompress(RECORDED.read_bytes())
    files = [
        write(tmp_path / "lists.jsonl", lists),
        write(tmp_path / "log", b"\n".join(EVENTS)),
        write(tmp_path / "log.1", gzip.compress(b"\r\n\n".join(EVENTS))),
        write(tmp_path / "members.gz", b"".join(gzip.compress(line + b"\n") for line in lists.splitlines())),
    ]
    reports = [replayed(sources("CIS", "Minimal"), file) for file in (RECORDED, *files)]
    assert reports[0].read.events == 2744
    assert all(report == reports[0] for report in reports)


def test_a_single_indented_document_is_read(tmp_path: Path) -> None:
    indented = json.dumps(
        {"kind": "EventList", "items": [json.loads(event()), json.loads(event(verb="get"))]}, indent=2
    )
    report = replayed([Source("all", ALL)], write(tmp_path / "e.json", indented))
    assert (report.read.events, report.malformed) == (2, 0)


def test_lines_that_are_no_events_are_counted_named_and_skipped(tmp_path: Path) -> None:
    lines = [
        b"{",
        event(),
        b'{"kind":"EventList","items":[1, ' + event() + b', "x"]}',
        b'{"a": 1}',
        b"2026-01-01 AUDIT: id=...",
        b"\xff\xfe",
        b'{"kind":"EventList","items":7}',
        event()[:-9],
        event(),
    ]
    path = write(tmp_path / "e.jsonl", b"\n".join(lines))
    report = replayed([Source("all", ALL)], path)
    assert report.read.events == 3
    assert report.malformed == 8
    assert [complaint.line for complaint in report.complaints] == [1, 3, 3, 4, 5, 6, 7, 8]
    assert all(complaint.file == str(path) and complaint.message for complaint in report.complaints)


def test_bodies_that_nest_without_end_take_no_event_along(tmp_path: Path) -> None:
    deep = event(requestObject=0)[:-2] + b"[" * 9000 + b"]" * 9000 + b"}"
    report = replayed([Source("all", ALL)], write(tmp_path / "e.jsonl", deep + b"\n" + event()))
    assert (report.read.events, report.malformed) == (2, 0)


def test_a_line_that_is_too_long_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "LINE_LIMIT", 1000)
    path = write(tmp_path / "e.jsonl", event() + b"\n" + event(requestObject="x" * 5000) + b"\n" + event())
    report = replayed([Source("all", ALL)], path)
    assert report.read.events == 2
    assert [complaint.line for complaint in report.complaints] == [2]


def test_a_gzip_file_that_is_cut_off_gives_what_it_holds(tmp_path: Path) -> None:
    whole = RECORDED.read_bytes()
    report = replayed([Source("all", ALL)], write(tmp_path / "e.gz", whole[: len(whole) // 2]))
    assert 0 < report.read.events < 2744
    assert report.complaints[-1].message.startswith("the gzip data is damaged: ")


@pytest.mark.parametrize("damage", ["a bad block", "a wrong checksum", "a wrong length", "something behind it"])
def test_a_damaged_gzip_file_says_so(tmp_path: Path, damage: str) -> None:
    whole = gzip.compress(b"\n".join(EVENTS[:20]))
    damaged = {
        "a bad block": whole[:20] + b"\xff\xff\xff\xff" + whole[24:],
        "a wrong checksum": whole[:-8] + b"abcd" + whole[-4:],
        "a wrong length": whole[:-4] + b"abcd",
        "something behind it": whole + b"something behind it",
    }
    report = replayed([Source("all", ALL)], write(tmp_path / "e.gz", damaged[damage]))
    assert report.read.events <= 20
    assert report.complaints[-1].message.startswith("the gzip data is damaged: ")


@pytest.mark.parametrize("damage", [b"", b"junk", b"\x1f\x8b\x08 nonsense"])
def test_what_stands_before_the_damage_counts_however_little_it_is(tmp_path: Path, damage: bytes) -> None:
    whole = gzip.compress((event() + b"\n") * 500)
    report = replayed([Source("all", ALL)], write(tmp_path / "e.gz", whole[:-8] if not damage else whole + damage))
    assert (report.read.events, report.malformed) == (500, 1)


def test_a_damaged_file_does_not_stop_the_next(tmp_path: Path) -> None:
    files = [write(tmp_path / "bad.gz", b"\x1f\x8b\x08 nonsense"), write(tmp_path / "good.jsonl", event())]
    report = replayed([Source("all", ALL)], *files)
    assert (report.read.events, report.malformed) == (1, 1)


# --- answers ---------------------------------------------------------------------------------------------------------


def test_the_answer_for_programs_adds_up() -> None:
    answer = json.loads(call("replay", *DEMO_SET, "--events", TRAFFIC, "-o", "json").out)
    assert answer["read"]["events"] == 801
    assert answer["malformed"] == {"lines": 0, "first": []}
    for share in answer["policies"]:
        assert sum(rule["matched"] for rule in share["rules"]) == 801
        assert sum(rule["events"] for rule in share["rules"]) == share["events"]
        assert sum(level["bytes"] for level in share["levels"].values()) == share["bytes"]
    servers = answer["apiServers"]
    assert servers["events"] == servers["needed"]["events"] + servers["excess"]["events"]
    assert {sink["sink"] for sink in answer["sinks"]} == {
        sink for share in answer["policies"] for sink in share["sinks"]
    }


def test_the_answer_for_people_is_the_golden_one() -> None:
    result = call("replay", "-f", CLUSTER, "--events", TRAFFIC)
    assert result.code == 0
    assert_golden("replay.txt", result.out)


def test_events_may_come_on_standard_input(tmp_path: Path) -> None:
    policy = write(tmp_path / "p.yaml", "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n")
    for stdin in (event(), gzip.compress(event())):
        answer = json.loads(call("replay", "-f", policy, "--events", "-", "-o", "json", stdin=stdin).out)
        assert answer["read"]["events"] == 1


def test_a_file_without_any_event_is_bad_input(tmp_path: Path) -> None:
    result = call("replay", "-f", CLUSTER, "--events", write(tmp_path / "e.jsonl", "nonsense\n"))
    assert result.code == 2
    assert result.err.endswith("error: no line of this is an audit event\n")
    assert f"{tmp_path}/e.jsonl:1: not an audit event" in result.out
    empty = call("replay", "-f", CLUSTER, "--events", write(tmp_path / "empty", ""))
    assert empty.code == 1
    assert "warning: there is no event in this" in empty.err


def test_namespaces_without_known_labels_are_named() -> None:
    result = call("replay", "-f", EXAMPLES / "platform", "--events", TRAFFIC)
    assert "No labels are known of " in result.out
    assert "team-a" in result.out.splitlines()[-1]
