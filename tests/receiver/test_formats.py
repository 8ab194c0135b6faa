"""Formats: golden files that people can read, and what holds for every event that an API server ever wrote."""

import gzip
import ipaddress
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sink_cases import sink_program

from audit_operator.receiver.formats import formatter, without_bodies
from audit_operator.receiver.sinks import UnknownSinkError

DATA = Path(__file__).resolve().parents[1] / "data"
CASES = sorted((DATA / "formats").glob("*.json"))


def formatted(event: bytes, kind: str, bodies: str = "Object") -> Any:
    made = formatter(sink_program(stdout={}, format={"type": kind, "bodies": bodies}), "prod")(event)
    assert b"\n" not in made
    return json.loads(made)


@pytest.fixture(scope="module")
def recorded() -> list[bytes]:
    with gzip.open(DATA / "audit-eventlists.jsonl.gz") as lines:
        return [json.dumps(event).encode() for line in lines for event in json.loads(line)["items"]]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", ["ECS", "OCSF"])
def test_events_look_like_the_golden_files(path: Path, kind: str) -> None:
    case = json.loads(path.read_text())
    whole = {"ECS": {"kubernetes": {"audit": case["audit"]}}, "OCSF": {"unmapped": case["audit"]}}
    assert formatted(json.dumps(case["audit"]).encode(), kind) == case[kind] | whole[kind]


def test_there_are_golden_files() -> None:
    assert len(CASES) >= 6


def test_audit_passes_byte_for_byte(recorded: list[bytes]) -> None:
    as_recorded = formatter(sink_program(stdout={}), "prod")
    assert all(as_recorded(event) == event for event in recorded)


@pytest.mark.parametrize("kind", ["audit", "ECS", "OCSF"])
@pytest.mark.parametrize("bodies", ["Object", "String"])
def test_every_recorded_event_is_in_it_as_a_whole(kind: str, bodies: str, recorded: list[bytes]) -> None:
    for event in recorded[::7]:
        made = formatted(event, kind, bodies)
        found = made["kubernetes"]["audit"] if kind == "ECS" else made["unmapped"] if kind == "OCSF" else made
        for name in ("requestObject", "responseObject"):
            if bodies == "String" and name in found:
                assert isinstance(found[name], str)
                found[name] = json.loads(found[name])
        assert found == json.loads(event)


def test_ecs_fits_the_types_that_elasticsearch_has_for_it(recorded: list[bytes]) -> None:
    kinds = {"access", "creation", "change", "deletion", "info", "allowed", "denied"}
    for event in recorded:
        made = formatted(event, "ECS")
        original = json.loads(event)
        assert made["@timestamp"] == original["stageTimestamp"]
        assert made["event"]["category"] == ["api"]
        assert set(made["event"]["type"]) <= kinds
        assert made["event"]["outcome"] in ("success", "failure", "unknown")
        assert made["event"]["duration"] >= 0
        for address in (made["source"]["ip"], *made["related"]["ip"]):
            ipaddress.ip_address(address)
        assert made["orchestrator"]["cluster"]["name"] == "prod"


def test_ocsf_has_what_api_activity_requires(recorded: list[bytes]) -> None:
    required = {
        "activity_id", "actor", "api", "category_uid", "class_uid", "metadata", "severity_id", "src_endpoint", "time",
        "type_uid",
    }  # fmt: skip
    for event in recorded:
        made = formatted(event, "OCSF")
        assert made.keys() >= required
        assert made["type_uid"] == made["class_uid"] * 100 + made["activity_id"]
        assert made["activity_id"] in (0, 1, 2, 3, 4, 99)
        assert made["api"]["operation"]
        assert made["metadata"].keys() >= {"product", "version"}
        assert made["src_endpoint"].keys() & {"ip", "name"}
        assert made["actor"]["user"]["name"]
        assert isinstance(made["time"], int)
        assert made["time"] > 1_700_000_000_000


TEXTS = st.text('a/?"\\é\x00\n', max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        "level", "auditID", "stage", "requestURI", "verb", "user", "impersonatedUser", "sourceIPs", "userAgent",
        "objectRef", "responseStatus", "requestObject", "responseObject", "requestReceivedTimestamp", "stageTimestamp",
        "annotations", "future",
    ]
)  # fmt: skip


@given(event=st.dictionaries(NAMES, VALUES), kind=st.sampled_from(["audit", "ECS", "OCSF"]))
def test_no_event_whatever_its_types_is_lost(event: dict[str, Any], kind: str) -> None:
    made = formatted(json.dumps(event).encode(), kind)
    assert {"audit": made, "ECS": made.get("kubernetes", {}).get("audit"), "OCSF": made.get("unmapped")}[kind] == event


@pytest.mark.parametrize("kind", ["ECS", "OCSF"])
@pytest.mark.parametrize("body", [b"[" * 9000 + b"]" * 9000, b'{"a":"\\ud800"}', b"1e400", b"12345678901234567890123"])
def test_bodies_that_json_libraries_refuse_pass(kind: str, body: bytes) -> None:
    event = b'{"verb":"patch","stageTimestamp":"2026-11-23T04:33:04.000001Z","requestObject":' + body + b"}"
    made = formatter(sink_program(stdout={}, format={"type": kind}), "prod")(event)
    assert event in made


def test_a_client_does_not_choose_the_address_it_comes_from() -> None:
    event = json.dumps({"verb": "get", "sourceIPs": ["203.0.113.9", "10.0.0.7"]}).encode()
    assert formatted(event, "ECS")["source"] == {"ip": "10.0.0.7", "address": "10.0.0.7"}
    assert formatted(event, "OCSF")["src_endpoint"] == {"ip": "10.0.0.7"}
    assert formatted(event, "OCSF")["http_request"]["x_forwarded_for"] == ["203.0.113.9"]


def test_an_event_without_bodies_says_so() -> None:
    event = b'{"verb":"get","responseObject":{"x":1},"annotations":{"a":"b"}}'
    assert json.loads(without_bodies(event)) == {
        "verb": "get",
        "annotations": {"a": "b", "audit-operator.dev/omitted": "responseObject: too large for the sink"},
    }
    assert without_bodies(b'{"verb":"get"}') == b'{"verb":"get"}'


def test_a_format_of_a_newer_version_is_refused() -> None:
    newer = msgspec.structs.replace(sink_program(stdout={}), format={"type": "CEF"})
    with pytest.raises(UnknownSinkError, match=r"audit-system/siem .stdout.: .*CEF"):
        formatter(newer, "prod")
