"""The elasticsearch sink: what the bulk API says of single documents, data streams, dated indexes, nodes in turn."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from elasticsearch_double import Elasticsearch
from faults import FaultyServer, Reply, Request
from sink_cases import batch, credential, made, sink_program

from audit_operator.receiver.formats import formatter
from audit_operator.receiver.sinks import (
    TAKEN,
    Batch,
    MisconfiguredError,
    Result,
    Sink,
    SinkError,
    UnauthorizedError,
    UnreachableError,
)


def against(double: Elasticsearch, folder: Path, test: Callable[[Sink], Awaitable[None]], **spec: Any) -> None:
    async def run() -> None:
        async with FaultyServer(double.answer) as server:
            given = double.spec(server.url, folder) | spec
            sink = made(folder, elasticsearch=given, tls={"caBundle": server.ca})
            await test(sink)
            await sink.close()

    asyncio.run(run())


def test_a_data_stream_gets_each_event_once_with_its_time(tmp_path: Path) -> None:
    double = Elasticsearch()

    async def test(sink: Sink) -> None:
        for _ in range(2):
            assert await sink.deliver(batch(1, 2)) == TAKEN

    against(double, tmp_path, test)
    names = batch(1, 2).ids()
    assert list(double.stored) == [("logs-kubernetes.audit-default", name) for name in names]
    first = double.stored["logs-kubernetes.audit-default", names[0]]
    assert first["@timestamp"] == first["stageTimestamp"]


def test_ecs_has_its_own_time(tmp_path: Path) -> None:
    double = Elasticsearch()
    event = batch(1).items[0]

    async def run() -> None:
        async with FaultyServer(double.answer) as server:
            spec = double.spec(server.url, tmp_path)
            sink = made(tmp_path, elasticsearch=spec, tls={"caBundle": server.ca}, format={"type": "ECS"})
            data = formatter(sink_program(stdout={}, format={"type": "ECS"}), "prod")(event.audit)
            await sink.deliver(Batch("prod", [msgspec.structs.replace(event, data=data)], len(data)))
            await sink.close()
            assert server.requests[0].body.count(b'"@timestamp"') == 1

    asyncio.run(run())
    (document,) = double.stored.values()
    assert document["@timestamp"] == event.timestamp


@pytest.mark.parametrize(
    ("spec", "index"),
    [
        ({"index": "audit-{cluster}-%Y.%m.%d"}, "audit-prod-2026.11.23"),
        ({"dataStream": {"dataset": "k8s", "namespace": "prod"}}, "logs-k8s-prod"),
    ],
)
def test_the_index_follows_the_settings_and_the_event(spec: dict[str, Any], index: str, tmp_path: Path) -> None:
    double = Elasticsearch()

    async def test(sink: Sink) -> None:
        await sink.deliver(batch(1))

    against(double, tmp_path, test, **spec, pipeline="geo ip&x")
    assert [place for place, _ in double.stored] == [index]
    assert double.pipelines == ["geo ip&x"]


def test_documents_fare_one_by_one(tmp_path: Path) -> None:
    verdicts = {
        "1": (400, "document_parsing_exception", "[1:9] failed to parse field [code] of type [long]: 's3cret'"),
        "2": (429, "es_rejected_execution_exception", "rejected execution of coordinating operation"),
        "3": (503, "unavailable_shards_exception", "primary shard is not active"),
        "4": (403, "cluster_block_exception", "index [x] blocked by: [FORBIDDEN/12/index read-only]"),
        "5": (400, "illegal_argument_exception", "pipeline with id [geo] does not exist"),
        "8": (400, "illegal_argument_exception", "no write index is defined for alias [x]. The write index may be"),
        "6": (400, "index_closed_exception", "closed"),
    }
    double = Elasticsearch(lambda document: verdicts.get(document["objectRef"]["name"]))
    results: list[Result] = []

    async def test(sink: Sink) -> None:
        results.append(await sink.deliver(batch(*range(9))))

    against(double, tmp_path, test)
    (result,) = results
    assert [(each.at, each.reason) for each in result.refused] == [
        (1, "status 400: document_parsing_exception, field code")
    ]
    assert list(result.retry) == [2, 3, 4, 5, 6, 8]
    assert result.reason == "status 429: es_rejected_execution_exception"
    assert double.taken == [batch(0, 7).items[at].audit_id for at in (0, 1)]


@pytest.mark.parametrize(
    ("verdict", "error"),
    [
        ((429, "es_rejected_execution_exception", ""), UnreachableError),
        ((403, "security_exception", "action [indices:data/write] is unauthorized"), UnauthorizedError),
        ((404, "index_not_found_exception", "no such index [x] and auto_create is false"), MisconfiguredError),
        ((400, "validation_exception", "this cluster currently has [1000]/[1000] maximum shards"), MisconfiguredError),
    ],
)
def test_what_is_wrong_with_all_documents_is_said_once(
    verdict: tuple[int, str, str], error: type[SinkError], tmp_path: Path
) -> None:
    async def test(sink: Sink) -> None:
        with pytest.raises(error):
            await sink.deliver(batch(1, 2))

    against(Elasticsearch(lambda _: verdict), tmp_path, test)


def test_an_answer_about_other_documents_takes_none(tmp_path: Path) -> None:
    double = Elasticsearch()

    def answer(_request: Request) -> Reply:
        return Reply(200, b'{"errors":false,"items":[{"create":{"status":201}}]}')

    async def run() -> None:
        async with FaultyServer(answer) as server:
            sink = made(tmp_path, elasticsearch=double.spec(server.url, tmp_path), tls={"caBundle": server.ca})
            with pytest.raises(UnreachableError, match="about 1 documents of 2"):
                await sink.deliver(batch(1, 2))
            await sink.close()

    asyncio.run(run())


def test_nodes_take_turns_so_that_one_that_is_away_only_delays(tmp_path: Path) -> None:
    double = Elasticsearch()

    async def run() -> None:
        async with FaultyServer(double.answer) as one, FaultyServer(double.answer) as other:
            spec = double.spec(one.url, tmp_path) | {"urls": [one.url, other.url]}
            sink = made(tmp_path, elasticsearch=spec, tls={"caBundle": one.ca})
            await sink.deliver(batch(1))
            await sink.deliver(batch(2))
            await one.stop()
            with pytest.raises(UnreachableError):
                await sink.deliver(batch(3))
            assert await sink.deliver(batch(3)) == TAKEN
            assert len(one.requests) == 1
            assert len(other.requests) == 2
            await sink.close()

    asyncio.run(run())


def test_requests_to_amazon_are_signed_with_the_keys_of_the_moment(tmp_path: Path) -> None:
    pytest.importorskip("awscrt")
    seen: list[Request] = []

    def answer(request: Request) -> Reply:
        seen.append(request)
        return Reply(200, b'{"errors":false,"items":[{"create":{"status":201}}]}')

    async def run() -> None:
        auth = {
            "region": "eu-central-1",
            "accessKeyID": {"name": "aws", "key": "id"},
            "secretAccessKey": {"name": "aws", "key": "secret"},
        }
        async with FaultyServer(answer) as server:
            sink = made(
                tmp_path, elasticsearch={"urls": [server.url], "auth": {"aws": auth}}, tls={"caBundle": server.ca}
            )
            with pytest.raises(UnauthorizedError, match="missing"):
                await sink.deliver(batch(1))
            credential(tmp_path, "aws", "id", "AKIDEXAMPLE1")
            credential(tmp_path, "aws", "secret", "s3cret")
            await sink.deliver(batch(1))
            credential(tmp_path, "aws", "id", "AKIDEXAMPLE2")
            await sink.deliver(batch(1))
            await sink.close()

    asyncio.run(run())
    for number, request in enumerate(seen, 1):
        authorization = request.headers["authorization"]
        assert f"Credential=AKIDEXAMPLE{number}/" in authorization
        assert "/eu-central-1/es/aws4_request" in authorization
        assert "s3cret" not in str(request.headers)
        assert request.headers["x-amz-content-sha256"]
