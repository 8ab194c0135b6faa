"""The kafka sink, against librdkafka's own mock cluster of three brokers."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from faults import FaultyServer, Reply
from sink_cases import batch, credential, item, made, sink_program, surroundings

from audit_operator.receiver.reach import Reach
from audit_operator.receiver.sinks import (
    TAKEN,
    Batch,
    MisconfiguredError,
    Result,
    SinkError,
    UnauthorizedError,
    UnknownSinkError,
    UnreachableError,
    make,
)

kafka = pytest.importorskip("confluent_kafka")


@contextlib.contextmanager
def cluster() -> Iterator[list[str]]:
    """Addresses of the brokers, which live as long as the client that makes them."""
    keeper = kafka.Producer({"bootstrap.servers": "ignored", "test.mock.num.brokers": 3, "log_level": 0})
    brokers = keeper.list_topics(timeout=20).brokers.values()
    try:
        yield [f"{broker.host}:{broker.port}" for broker in brokers]
    finally:
        del keeper


def read(brokers: list[str], number: int) -> list[Any]:
    """So many messages, by partition and in its order."""
    consumer = kafka.Consumer(
        {"bootstrap.servers": ",".join(brokers), "group.id": "test", "auto.offset.reset": "earliest"}
    )
    partitions = consumer.list_topics("audit", timeout=20).topics["audit"].partitions
    consumer.assign([kafka.TopicPartition("audit", each, 0) for each in partitions])
    found: list[Any] = []
    until = time.monotonic() + 30
    while len(found) < number and time.monotonic() < until:
        found += [message for message in consumer.consume(number, 1.0) if message.error() is None]
    found += [message for message in consumer.consume(1, 0.2) if message.error() is None]
    consumer.close()
    return sorted(found, key=lambda message: (message.partition(), message.offset()))


def deliver(folder: Path, brokers: list[str], *batches: Batch, **spec: Any) -> list[Result]:
    async def run() -> list[Result]:
        sink = made(folder, kafka={"brokers": brokers, "topic": "audit", "transport": "Plaintext", **spec})
        await sink.open()
        try:
            return [await sink.deliver(each) for each in batches]
        finally:
            await sink.close()

    return asyncio.run(run())


def failing(folder: Path, spec: dict[str, Any], **more: Any) -> SinkError:
    """What a delivery raises; its timeout is 3 s."""

    async def run() -> SinkError:
        sink = made(folder, kafka={"topic": "audit", **spec}, timeout="3s", **more)
        with pytest.raises(SinkError) as caught:
            await sink.deliver(batch(1))
        await sink.close()
        return caught.value

    return asyncio.run(run())


@pytest.mark.parametrize("compression", ["None", "gzip", "snappy", "lz4", "zstd"])
def test_every_event_is_one_message_with_its_time_and_identity(compression: str, tmp_path: Path) -> None:
    events = batch(*range(20))
    with cluster() as brokers:
        assert deliver(tmp_path, brokers, events, compression=compression) == [TAKEN]
        messages = read(brokers, 20)
    assert sorted(message.value() for message in messages) == sorted(each.data for each in events.items)
    names = dict(zip((each.data for each in events.items), events.ids(), strict=True))
    for message in messages:
        assert dict(message.headers()) == {"audit-operator-id": names[message.value()].encode()}
        assert message.timestamp()[1] == 1795408384000


def test_events_of_a_key_stay_in_order(tmp_path: Path) -> None:
    with cluster() as brokers:
        deliver(tmp_path, brokers, batch(*range(50)), batch(*range(50, 100)), key="namespace")
        messages = read(brokers, 100)
    assert {message.partition() for message in messages} == {messages[0].partition()}
    assert {message.key() for message in messages} == {b"default"}
    assert [message.value() for message in messages] == [each.data for each in batch(*range(100)).items]


def test_an_event_too_large_loses_its_bodies_or_is_refused_alone(tmp_path: Path) -> None:
    event = item(1)
    data = event.data[:-1] + b',"responseObject":{"data":"' + b"x" * 5000 + b'"}}'
    large = msgspec.structs.replace(event, data=data, audit=data)
    events = Batch("prod", [large, item(2, size=5000), item(3)], 1)
    with cluster() as brokers:
        (result,) = deliver(tmp_path, brokers, events, maxMessageBytes=4096)
        messages = read(brokers, 2)
    assert [each.at for each in result.refused] == [1]
    assert not result.retry
    values = [message.value() for message in messages]
    assert item(3).data in values
    assert any(b'"audit-operator.dev/omitted":"responseObject' in value for value in values)


def test_brokers_that_are_away_cost_no_event(tmp_path: Path) -> None:
    with cluster() as brokers:
        pass
    error = failing(tmp_path, {"brokers": brokers, "transport": "Plaintext"})
    assert type(error) is UnreachableError


def test_a_password_is_read_anew_and_never_shown(tmp_path: Path) -> None:
    sasl = {"username": "audit", "password": {"name": "kafka", "key": "password"}}
    with cluster() as brokers:
        spec = {"brokers": brokers, "transport": "Plaintext", "sasl": sasl}
        assert type(failing(tmp_path, spec)) is UnauthorizedError
        credential(tmp_path, "kafka", "password", "k4fka-s3cret")
        # The mock cluster knows no SASL.
        error = failing(tmp_path, spec)
    assert "k4fka-s3cret" not in str(error)


def test_a_certificate_for_another_name_gets_nothing(tmp_path: Path) -> None:
    def answer(_: object) -> Reply:
        raise AssertionError

    async def run() -> None:
        async with FaultyServer(answer, names=("other.example",)) as server:
            spec = {"brokers": [f"localhost:{server.port}"]}
            error = await asyncio.to_thread(failing, tmp_path, spec, tls={"caBundle": server.ca})
            assert type(error) is UnreachableError
            assert "certificate verify failed" in str(error)
            assert not server.requests

    asyncio.run(run())


def test_no_message_is_sent_to_a_refused_network(tmp_path: Path) -> None:
    async def run(brokers: list[str]) -> None:
        program = sink_program(kafka={"brokers": brokers, "topic": "audit", "transport": "Plaintext"})
        sink = make(program, surroundings(tmp_path, reach=Reach(refused=("127.0.0.0/8",))))
        with pytest.raises(MisconfiguredError, match="may not connect"):
            await sink.deliver(batch(1))
        await sink.close()

    with cluster() as brokers:
        asyncio.run(run(brokers))


@pytest.mark.parametrize("tls", [{"serverName": "kafka.example"}, {"minVersion": "TLS13"}])
def test_what_the_library_cannot_do_is_refused_at_once(tls: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UnknownSinkError, match=r"audit-system/siem .kafka.: tls\..* cannot be used"):
        made(tmp_path, kafka={"brokers": ["localhost:1"], "topic": "audit"}, tls=tls)
