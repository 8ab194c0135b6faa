"""The splunk sink: the collector's codes, and acknowledgement by the indexer."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from faults import FaultyServer, Reply, Request, status
from sink_cases import batch, give_up, made
from splunk_double import Acknowledging, Splunk

from audit_operator.receiver.sinks import (
    TAKEN,
    MisconfiguredError,
    RefusedError,
    Sink,
    SinkError,
    ThrottledError,
    UnauthorizedError,
    UnreachableError,
    splunk,
)


def against(
    double: Splunk, folder: Path, test: Callable[[FaultyServer, Sink], Awaitable[None]], **spec: Any
) -> FaultyServer:
    async def run() -> FaultyServer:
        async with FaultyServer(double.answer) as server:
            sink = made(folder, splunk=double.spec(server.url, folder) | spec, tls={"caBundle": server.ca})
            await test(server, sink)
            await sink.close()
            return server

    return asyncio.run(run())


def test_an_event_carries_its_time_and_where_it_is_from(tmp_path: Path) -> None:
    double = Splunk(indexes=("k8s",))

    async def test(_: FaultyServer, sink: Sink) -> None:
        assert await sink.deliver(batch(7)) == TAKEN

    against(double, tmp_path, test, index="k8s", source="audit:{cluster}:{sink}", host="{receiver}")
    (event,) = double.events
    assert event == {
        "time": "1795408384.000007",
        "host": "audit-receiver-0",
        "source": "audit:prod:siem",
        "sourcetype": "kube:apiserver:audit",
        "index": "k8s",
        "fields": {"audit_operator_id": batch(7).ids()[0]},
        "event": json.loads(batch(7).items[0].data),
    }


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((400, 7), MisconfiguredError, "may not write to this index"),
        ((400, 10), MisconfiguredError, "acknowledgement: true"),
        ((400, 6), RefusedError, "HTTP 400"),
        ((503, 9), ThrottledError, "HTTP 503"),
        ((503, 23), ThrottledError, "HTTP 503"),
        ((500, 8), UnreachableError, "HTTP 500"),
        ((403, 1), UnauthorizedError, "HTTP 403"),
    ],
)
def test_codes_say_whose_fault_it_is(
    answer: tuple[int, int], error: type[SinkError], message: str, tmp_path: Path
) -> None:
    async def test(server: FaultyServer, sink: Sink) -> None:
        server.fail(status(answer[0], json.dumps({"text": "said", "code": answer[1]}).encode()))
        with pytest.raises(error, match=message) as caught:
            await sink.deliver(batch(1))
        assert type(caught.value) is error

    against(Splunk(), tmp_path, test)


def test_taken_means_that_an_indexer_has_it(tmp_path: Path) -> None:
    double = Acknowledging(indexed_after=3)

    async def test(_: FaultyServer, sink: Sink) -> None:
        await sink.deliver(batch(1, 2))
        await sink.deliver(batch(3))

    server = against(double, tmp_path, test)
    paths = [request.path.rpartition("/")[2] for request in server.requests]
    # Before the first it is asked whether there will be an answer at all.
    assert paths == ["ack", *["event", "ack", "ack", "ack"] * 2]
    assert [asked for asked in double.asked.values() if asked] == [[3], [3]]


def test_after_a_timeout_the_events_are_asked_about_and_not_sent_again(tmp_path: Path) -> None:
    double = Acknowledging(indexed_after=1000)

    async def test(_: FaultyServer, sink: Sink) -> None:
        await give_up(sink, batch(1), lambda: any(max(asked, default=0) > 0 for asked in double.asked.values()))
        double.indexed_after = 1
        await sink.deliver(batch(1))

    against(double, tmp_path, test)
    assert len(double.events) == 1


def test_what_is_not_acknowledged_for_too_long_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splunk, "_PATIENCE", 0.0)
    double = Acknowledging(indexed_after=2)

    async def test(_: FaultyServer, sink: Sink) -> None:
        with pytest.raises(UnreachableError, match="no indexer"):
            await sink.deliver(batch(1))
        double.indexed_after = 1
        await sink.deliver(batch(1))

    against(double, tmp_path, test)
    assert len(double.events) == 2


def test_a_restarted_collector_never_acknowledges_what_it_does_not_know(tmp_path: Path) -> None:
    double = Acknowledging(indexed_after=1000)

    async def test(server: FaultyServer, sink: Sink) -> None:
        await give_up(sink, batch(1), lambda: any(max(asked, default=0) > 0 for asked in double.asked.values()))
        await server.stop()
        with pytest.raises(UnreachableError):
            await sink.deliver(batch(1))
        double.events.clear()
        double.asked.clear()
        double.indexed_after = 1
        await server.start()
        await sink.deliver(batch(1))

    against(double, tmp_path, test)
    assert double.taken == [batch(1).items[0].audit_id]


def test_nothing_is_sent_to_a_collector_that_acknowledges_nothing(tmp_path: Path) -> None:
    double = Splunk()

    async def test(_: FaultyServer, sink: Sink) -> None:
        for _attempt in range(3):
            with pytest.raises(MisconfiguredError, match="turn acknowledgement on"):
                await sink.deliver(batch(1))
        assert not double.events
        double.acknowledging = True
        await sink.deliver(batch(1))

    against(double, tmp_path, test, acknowledgement=True)
    assert len(double.events) == 1


def test_a_collector_without_the_question_gets_nothing(tmp_path: Path) -> None:
    """As Fluent Bit's, which takes events and knows no acknowledgement."""
    seen: list[str] = []

    def answer(request: Request) -> Reply:
        seen.append(request.path)
        if request.path.endswith("/ack"):
            return Reply(400, b"")
        return Reply(200, b'{"text":"Success","code":0}')

    async def run() -> None:
        async with FaultyServer(answer) as server:
            given = Splunk().spec(server.url, tmp_path) | {"acknowledgement": True}
            sink = made(tmp_path, splunk=given, tls={"caBundle": server.ca})
            for _ in range(3):
                with pytest.raises(MisconfiguredError, match="HTTP 400"):
                    await sink.deliver(batch(1))
            await sink.close()

    asyncio.run(run())
    assert set(seen) == {"/services/collector/ack"}


def test_what_was_taken_without_a_number_is_sent_once(tmp_path: Path) -> None:
    double = Acknowledging(numbers=False)

    async def test(_: FaultyServer, sink: Sink) -> None:
        for _attempt in range(5):
            with pytest.raises(MisconfiguredError, match="acknowledges nothing"):
                await sink.deliver(batch(1))

    against(double, tmp_path, test)
    assert len(double.events) == 1


def test_an_indexer_that_is_slow_is_asked_again_and_no_event_suspected(tmp_path: Path) -> None:
    double = Acknowledging(indexed_after=1000)

    async def run() -> None:
        async with FaultyServer(double.answer) as server:
            sink = made(
                tmp_path,
                splunk=double.spec(server.url, tmp_path),
                tls={"caBundle": server.ca},
                timeout="1s",
            )
            for _ in range(2):
                async with asyncio.timeout(1):
                    with pytest.raises(UnreachableError, match="yet") as caught:
                        await sink.deliver(batch(1))
                assert not caught.value.sent
            double.indexed_after = 1
            await sink.deliver(batch(1))
            await sink.close()

    asyncio.run(run())
    assert len(double.events) == 1
