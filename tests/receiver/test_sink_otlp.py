"""The otlp sink: records as OpenTelemetry understands them, and what a partial success leaves."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from faults import TAKEN_WITHOUT_A_WORD, FaultyServer, Reply
from otlp_double import Otlp
from sink_cases import batch, insist, made

from audit_operator.receiver.sinks import TAKEN, Batch, RefusedError, Sink


def against(double: Otlp, folder: Path, test: Callable[[Sink], Awaitable[None]], path: str = "", **spec: Any) -> None:
    async def run() -> None:
        async with FaultyServer(double.answer) as server:
            given = double.spec(server.url + path, folder) | spec
            sink = made(folder, otlp=given, tls={"caBundle": server.ca})
            await test(sink)
            await sink.close()

    asyncio.run(run())


@pytest.mark.parametrize("encoding", ["Protobuf", "JSON"])
@pytest.mark.parametrize("path", ["", "/", "/v1/logs"])
def test_a_record_is_the_event_with_what_one_searches_by(encoding: str, path: str, tmp_path: Path) -> None:
    double = Otlp()

    async def test(sink: Sink) -> None:
        assert await sink.deliver(batch(1)) == TAKEN

    against(double, tmp_path, test, path, encoding=encoding, resourceAttributes={"deployment.environment": "prod"})
    (record,) = double.records
    event = batch(1).items[0]
    assert record.body.string_value.encode() == event.data
    assert record.time_unix_nano == 1795408384000001000
    attributes = {each.key: each.value.string_value or each.value.int_value for each in record.attributes}
    assert attributes == {
        "log.record.uid": batch(1).ids()[0],
        "audit.id": event.audit_id,
        "audit.level": "Metadata",
        "audit.stage": "ResponseComplete",
        "audit.verb": "get",
        "audit.server": "kube-apiserver",
        "user.name": "alice",
        "k8s.namespace.name": "default",
        "k8s.resource.name": "pods",
        "http.response.status_code": 200,
    }
    resource = double.requests[0].resource_logs[0].resource.attributes
    assert {each.key: each.value.string_value for each in resource} == {
        "service.name": "kube-apiserver",
        "k8s.cluster.name": "prod",
        "deployment.environment": "prod",
    }


def test_a_partial_success_is_searched_for_what_was_rejected(tmp_path: Path) -> None:
    events = batch(1, 2, 3, 4, 5)
    double = Otlp(rejects=lambda record: events.items[2].audit_id in record.body.string_value)

    async def test(sink: Sink) -> None:
        refused = await insist(sink, events)
        assert refused == {3: "1 of 1 log records are rejected: too large"}

    against(double, tmp_path, test)
    assert set(double.taken) == {each.audit_id for each in events.items} - {events.items[2].audit_id}


def test_text_that_is_no_unicode_arrives_all_the_same(tmp_path: Path) -> None:
    double = Otlp()
    event = batch(1).items[0]
    data = event.data.replace(b'"alice"', b'"\\ud800alice"')

    async def test(sink: Sink) -> None:
        assert await sink.deliver(Batch("prod", [msgspec.structs.replace(event, data=data, audit=data)], 1)) == TAKEN

    against(double, tmp_path, test)
    assert double.records[0].body.string_value.encode() == data


@pytest.mark.parametrize("encoding", ["Protobuf", "JSON"])
@pytest.mark.parametrize(
    ("code", "body"),
    [
        *((reply.status, reply.body) for reply in TAKEN_WITHOUT_A_WORD.values()),
        (202, b""),
        (200, b"{}"),
        (200, b'{"partialSuccess":{}}'),
        (200, b'{"partialSuccess":{"rejectedLogRecords":"0","errorMessage":"a warning"}}'),
    ],
)
def test_taken_is_whatever_a_server_of_otlp_may_say_for_it(
    code: int, body: bytes, encoding: str, tmp_path: Path
) -> None:
    async def run() -> None:
        async with FaultyServer(lambda _: Reply(code, body)) as server:
            given = Otlp().spec(server.url, tmp_path) | {"encoding": encoding}
            sink = made(tmp_path, otlp=given, tls={"caBundle": server.ca})
            assert await sink.deliver(batch(1, 2)) == TAKEN
            await sink.close()

    asyncio.run(run())


@pytest.mark.parametrize("rejected", [b"2", b'"2"'])
def test_a_number_of_64_bits_is_text_or_not(rejected: bytes, tmp_path: Path) -> None:
    answer = b'{"partialSuccess":{"rejectedLogRecords":%b,"errorMessage":"too old"}}' % rejected

    async def run() -> None:
        async with FaultyServer(lambda _: Reply(200, answer)) as server:
            given = Otlp().spec(server.url, tmp_path) | {"encoding": "JSON"}
            sink = made(tmp_path, otlp=given, tls={"caBundle": server.ca})
            with pytest.raises(RefusedError, match="2 of 2 log records are rejected: too old"):
                await sink.deliver(batch(1, 2))
            await sink.close()

    asyncio.run(run())
