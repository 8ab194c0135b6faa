"""The loki sink: few streams whatever clients send, and no event lost for its age."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from faults import FaultyServer, status
from loki_double import Loki
from sink_cases import batch, insist, item, made

from audit_operator.receiver.sinks import Batch, MisconfiguredError, RefusedError, Sink, nanoseconds


def against(
    double: Loki, folder: Path, test: Callable[[FaultyServer, Sink], Awaitable[None]], **spec: Any
) -> FaultyServer:
    async def run() -> FaultyServer:
        async with FaultyServer(double.answer) as server:
            sink = made(folder, loki=double.spec(server.url, folder) | spec, tls={"caBundle": server.ca})
            await test(server, sink)
            await sink.close()
            return server

    return asyncio.run(run())


def test_labels_and_metadata_are_those_of_the_settings(tmp_path: Path) -> None:
    double = Loki()

    async def test(_: FaultyServer, sink: Sink) -> None:
        await sink.deliver(batch(1, 2))

    against(
        double,
        tmp_path,
        test,
        labels={"team": "sec", "k8s.io/env": "prod"},
        eventLabels=["verb", "code", "apiGroup"],
        structuredMetadata=["user", "auditID", "subresource"],
    )
    ((labels, entries),) = double.streams.items()
    assert dict(labels) == {
        "job": "kubernetes-audit", "cluster": "prod", "team": "sec", "k8s_io_env": "prod", "verb": "get", "code": "200"
    }  # fmt: skip
    assert [line.encode() for _, line in entries] == [each.data for each in batch(1, 2).items]
    assert next(iter(entries.values())) == {"user": "alice", "audit_id": batch(1).items[0].audit_id}
    assert [when for when, _ in entries] == [1795408384000001000, 1795408384000002000]


def test_clients_cannot_make_more_than_so_many_streams(tmp_path: Path) -> None:
    double = Loki()
    items = []
    for number in range(700):
        each = item(number)
        data = each.data.replace(b'"verb":"get"', b'"verb":"v%d"' % number)
        items.append(msgspec.structs.replace(each, data=data, audit=data))

    async def test(_: FaultyServer, sink: Sink) -> None:
        await sink.deliver(Batch("prod", items, 1))

    against(double, tmp_path, test)
    assert len(double.streams) == 501
    others = [entries for labels, entries in double.streams.items() if ("verb", "other") in labels]
    assert [len(entries) for entries in others] == [200]


def test_an_event_too_old_for_loki_is_stored_with_the_time_of_delivery(tmp_path: Path) -> None:
    events = batch(1, 2, 3)
    double = Loki(too_old=nanoseconds(events.items[2].timestamp))
    before = time.time_ns()

    async def test(_: FaultyServer, sink: Sink) -> None:
        double.too_old = max(double.too_old or 0, 0)
        assert await insist(sink, events) == {}

    against(double, tmp_path, test)
    assert sorted(double.taken) == [each.audit_id for each in events.items]
    ((_, entries),) = double.streams.items()
    assert sum(when >= before for when, _ in entries) == 2


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"Max entry size '262144' bytes exceeded for stream '{job=\"x\"}'", RefusedError),
        (b"stream '{a=\"b\"}' has 16 label names; limit 15", MisconfiguredError),
        (b"stream '{a=\"b\"}' includes structured metadata, but this feature is disallowed", MisconfiguredError),
    ],
)
def test_what_a_setting_causes_costs_no_event(said: bytes, error: type[Exception], tmp_path: Path) -> None:
    async def test(server: FaultyServer, sink: Sink) -> None:
        server.fail(status(400, said))
        with pytest.raises(error) as caught:
            await sink.deliver(batch(1))
        assert type(caught.value) is error

    against(Loki(), tmp_path, test)
