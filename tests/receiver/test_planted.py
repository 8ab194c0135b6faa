"""A secret never comes out: not at any level, in any format, at any sink, nor from what the receiver keeps or says."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import uvloop
from faults import FaultyServer, Reply, choosy
from planted import HASH_KEY, MARK, RULES, events, revealed
from receiving import Setup, event_list, eventually, policy, program, receiving, sink, until_refused_for_good
from sink_cases import made, sink_program
from test_sink_faults import DOUBLES
from test_sink_syslog import Server

from audit_operator.policy.events import decode
from audit_operator.policy.model import Level
from audit_operator.policy.redact import Action, Redactor
from audit_operator.policy.request import request_of
from audit_operator.receiver.cutting import Cut, Redacting, Wanted, cut
from audit_operator.receiver.formats import Formatter, formatter, without_bodies
from audit_operator.receiver.journal import Log
from audit_operator.receiver.sinks import Batch, Item, Sink, SinkError
from audit_operator.render.program import WireRedaction, WireResources

LEVELS = (Level.MINIMAL, Level.METADATA, Level.REQUEST, Level.REQUEST_RESPONSE)
FORMATS = [(kind, bodies) for kind in ("audit", "ECS", "OCSF") for bodies in ("Object", "String")]
PLANTED = cache(events)
PARTS = 16


def part(number: int) -> dict[str, bytes]:
    """One of `PARTS` of the events, from everywhere."""
    return dict(list(PLANTED().items())[number::PARTS])


def redacting() -> Redacting:
    return Redacting(Redactor(RULES, hash_key=HASH_KEY))


def cut_to(raw: bytes, level: Level, using: Redacting, *, omit: bool = False) -> Cut:
    event = decode(raw)
    return cut(raw, event, request_of(event), Level.parse(event.level), Wanted(level, omit, using))


def formatters() -> list[Formatter]:
    made = [
        formatter(sink_program(stdout={}, format={"type": kind, "bodies": bodies}), "prod") for kind, bodies in FORMATS
    ]
    return [*made, without_bodies]


@pytest.mark.parametrize("number", range(PARTS))
def test_no_secret_leaves_at_any_level_in_any_format(number: int) -> None:
    using, formats = redacting(), formatters()
    for at, (name, raw) in enumerate(part(number).items()):
        seen: set[bytes] = set()
        for level in LEVELS:
            for omit in (False, True):
                done = cut_to(raw, level, using, omit=omit)
                # All of these can be redacted: none of it hides behind a field that was replaced as a whole.
                assert done.failed == (), name
                left = json.loads(done.data)
                assert (left["level"], left["auditID"]) == (str(level), json.loads(raw)["auditID"]), name
                assert left["user"]["username"] == "alice", name
                # The whole of it in all formats, what is less in one after the other.
                whole = level is Level.REQUEST_RESPONSE and not omit
                for form in formats if whole else formats[at % len(formats) :][:1]:
                    written = form(done.data)
                    assert written in seen or not revealed(written), (name, written)
                    seen.add(written)


def test_what_was_redacted_is_counted() -> None:
    using = redacting()
    uncounted = {name for name, raw in PLANTED().items() if not cut_to(raw, Level.REQUEST_RESPONSE, using).redacted}
    # Only of what was written twice nothing has to be redacted: one of both does not leave.
    assert all("twice" in name or ", then " in name or " before" in name for name in uncounted), uncounted


def test_a_kind_that_has_no_secrets_keeps_all_it_has() -> None:
    using = redacting()
    for name, raw in list(PLANTED().items())[::40]:
        other = raw
        for resource in ("secrets", "configmaps", "logins", "tokenreviews", "serviceaccounts", "statuses"):
            other = other.replace(resource.encode(), b"gadgets")
        for resource in ("certificatesigningrequests", "podcertificaterequests"):
            other = other.replace(resource.encode(), b"gadgets")
        for kind in ("Secret", "ConfigMap", "TokenRe", "CertificateSigningRequest", "PodCertificateRequest"):
            other = other.replace(kind.encode(), b"Gadget")
        if b"\\u00" in raw or "base64" in name or " in text, " in name:
            continue  # it has to be opened before anybody can tell
        done = cut_to(other, Level.REQUEST_RESPONSE, using)
        assert done == Cut(other), name


# --- sinks ------------------------------------------------------------------------------------------------------------


def batches(format_spec: dict[str, str], step: int) -> Iterator[Batch]:
    """Some of the events from everywhere, as a worker hands them on."""
    using = redacting()
    form = formatter(sink_program(stdout={}, format=format_spec), "prod")
    items = []
    for number, raw in enumerate(list(PLANTED().values())[step % 7 :: step]):
        data = cut_to(raw, Level.REQUEST_RESPONSE, using).data
        event = decode(data)
        items.append(
            Item("kube-apiserver", event.audit_id, event.stage, event.stage_timestamp, number, form(data), data)
        )
    for at in range(0, len(items), 100):
        some = items[at : at + 100]
        yield Batch("prod", some, sum(len(item.data) for item in some))


SOME = 24
SINK_FORMATS = ({"type": "audit", "bodies": "Object"}, {"type": "ECS", "bodies": "String"}, {"type": "OCSF"})


async def delivered(sink: Sink, format_spec: dict[str, str]) -> int:
    """How many events."""
    await sink.open()
    number = 0
    try:
        for each in batches(format_spec, SOME):
            try:
                await sink.deliver(each)
            except SinkError:
                # What of it the server did not want, it has seen.
                continue
            finally:
                number += len(each.items)
    finally:
        await sink.close()
    return number


@pytest.mark.parametrize("kind", DOUBLES)
@pytest.mark.parametrize("format_spec", SINK_FORMATS, ids=lambda spec: spec["type"])
def test_no_secret_reaches_a_server(kind: str, format_spec: dict[str, str], tmp_path: Path) -> None:
    async def run() -> None:
        double = DOUBLES[kind]()
        async with FaultyServer(double.answer) as server:
            settings = {double.kind: double.spec(server.url, tmp_path)}
            using = made(tmp_path, **settings, tls={"caBundle": server.ca})
            assert await delivered(using, format_spec) > 200
            bodies = [request.body for request in server.requests]
            assert sum(map(len, bodies)) > 5_000
            for request in server.requests:
                assert not revealed(request.body), request.body
                assert not revealed(request.path.encode() + json.dumps(request.headers).encode())

    asyncio.run(run())


@pytest.mark.parametrize("encoding", ["NDJSON", "JSONArray", "EventList"])
def test_no_secret_reaches_a_webhook(encoding: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with FaultyServer(lambda _: Reply(200)) as server:
            using = made(tmp_path, http={"url": server.url, "encoding": encoding}, tls={"caBundle": server.ca})
            assert await delivered(using, {"type": "audit"}) > 200
            assert server.requests
            assert not [request for request in server.requests if revealed(request.body)]

    asyncio.run(run())


def test_no_secret_reaches_a_syslog_server(tmp_path: Path) -> None:
    async def run() -> None:
        async with Server(tmp_path, tls=False) as server:
            using = made(tmp_path, syslog={"address": f"localhost:{server.port}", "transport": "TCP"})
            number = await delivered(using, {"type": "audit"})
            await eventually(lambda: b"".join(map(bytes, server.received)).count(b'"auditID"') >= number)
            assert not revealed(b"".join(map(bytes, server.received)))

    asyncio.run(run())


@pytest.mark.parametrize("compression", ["None", "gzip", "zstd"])
def test_no_secret_reaches_a_file(compression: str, tmp_path: Path) -> None:
    rotation = {"maxSize": "100Ki", "maxAge": "24h", "maxFiles": 1000}
    using = made(tmp_path, file={"compression": compression, "rotation": rotation})
    asyncio.run(delivered(using, {"type": "audit"}))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) > 5_000
    assert not [path for path in files if revealed(path.read_bytes())]


def test_no_secret_reaches_standard_output(tmp_path: Path) -> None:
    written = tmp_path / "stdout"
    with written.open("w") as stream, contextlib.redirect_stdout(stream):
        assert asyncio.run(delivered(made(tmp_path, stdout={}), {"type": "audit"})) > 200
    assert written.read_bytes().count(b"\n") > 200
    assert not revealed(written.read_bytes())


def test_no_secret_reaches_kafka(tmp_path: Path) -> None:
    pytest.importorskip("confluent_kafka")
    from test_sink_kafka import cluster, read

    with cluster() as brokers:
        using = made(tmp_path, kafka={"brokers": brokers, "topic": "audit", "transport": "Plaintext"})
        number = asyncio.run(delivered(using, {"type": "audit"}))
        messages = read(brokers, number)
    assert len(messages) == number
    assert not [message for message in messages if revealed(message.value() + (message.key() or b""))]


# --- the whole receiver -----------------------------------------------------------------------------------------------


def _wire() -> tuple[WireRedaction, ...]:
    return tuple(
        WireRedaction(
            resources=tuple(WireResources(group=each.group, resources=each.resources) for each in rule.resources),
            paths=rule.paths,
            action=Action.MASK if rule.action is Action.HASH else rule.action,
        )
        for rule in RULES
    )


def _drained(log: Log) -> bool:
    return log.backlog == 0


def _spoilt(raws: Sequence[bytes]) -> list[bytes]:
    """What no policy can be asked about, or nobody can read."""
    spoilt = []
    for number, raw in enumerate(raws):
        spoilt.append(
            [
                raw.replace(b'"level":"RequestResponse"', b'"level":"Everything"'),
                raw.replace(b'"stage":"ResponseComplete"', b'"stage":7'),
                raw.replace(b'"auditID"', b'"auditId"').replace(b'"verb":"', b'"verb":"%b' % MARK.encode()),
                json.dumps(raw.decode()).encode(),
                raw.replace(b'"verb":', b'"level":"","requestURI":"/a?token=%b","verb":' % MARK.encode(), 1),
                raw[:-1] + b',"stage":{"a":"%b"}}' % MARK.encode(),
            ][number % 6]
        )
    return spoilt


def test_no_secret_is_kept_or_told_by_a_receiver(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    raws = list(PLANTED().values())[::8]

    async def run() -> None:
        async with FaultyServer(choosy, tls=False) as refusing:
            url = f"http://127.0.0.1:{refusing.port}"
            names = ["siem", "ecs", "refusing", "away"]
            first = program(
                policies=[policy(sinks=[f"audit-system/{name}" for name in names], redactions=_wire())],
                sinks=[
                    sink(),
                    sink("ecs", format={"type": "ECS", "bodies": "String"}),
                    sink("refusing", type="http", settings={"url": url}),
                    sink("away", type="http", settings={"url": "http://127.0.0.1:1"}),
                ],
            )
            setup = Setup(tmp_path, first)
            await setup.receiver.start()
            for at in range(0, len(raws), 200):
                some = raws[at : at + 200]
                assert await setup.post(event_list(*some)) == 200
                assert await setup.post(event_list(*_spoilt(some[:30]))) == 200
                assert await setup.post(event_list(*some)[:-40]) == 400
            logs = setup.receiver.journal.logs
            for name in ("siem", "ecs"):
                await eventually(partial(_drained, logs[f"audit-system/{name}"]), seconds=60)
            await until_refused_for_good(setup, "audit-system/refusing")
            told = json.dumps(await setup.status()).encode()
            told += (await setup.ask("GET", "/metrics", name="kube-apiserver"))[1]
            assert not revealed(told)
            await setup.receiver.stop(delivery_grace=0.0)

    uvloop.run(asyncio.wait_for(run(), 300))
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".key"]
    sizes = {path.relative_to(tmp_path).parts[:2]: path.stat().st_size for path in files}
    assert {("files", "audit-system"), ("journal", "quarantine"), ("journal", "sinks")} <= sizes.keys()
    assert (tmp_path / "journal" / "quarantine" / "malformed.jsonl").stat().st_size > 10_000
    for path in files:
        data = path.read_bytes()
        for at in range(0, len(data), 1 << 20):
            assert not revealed(data[at : at + (1 << 20) + 200]), path
    assert "items that are no events" in caplog.text
    assert not revealed(caplog.text.encode())


class _Broken:
    """A program in force with a bug, which shows what it stumbled over."""

    @property
    def deciding(self) -> Any:
        return self

    def plan(self, *_: object) -> None:
        raise KeyError(MARK)

    def full(self) -> tuple[str, ...]:
        return ()

    crowded = full

    def admits(self, _: str) -> bool:
        return True

    def spend(self, *_: object) -> None:
        pass


def test_a_bug_is_logged_with_its_place_and_without_what_it_stumbled_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with receiving(tmp_path) as setup:
            body = event_list(next(iter(PLANTED().values())))
            assert await setup.receiver.intake.take("kube-apiserver", body, _Broken()) == 1

    uvloop.run(run())
    assert "this is a bug: KeyError" in caplog.text
    assert "in plan" in caplog.text
    assert not revealed(caplog.text.encode())
    kept = (tmp_path / "journal" / "quarantine" / "malformed.jsonl").read_bytes()
    assert b"this is a bug: KeyError" in kept
    assert not revealed(kept)
