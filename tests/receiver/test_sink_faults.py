"""What every sink that speaks HTTP promises, against a strict double of its vendor's API that fails in every way."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from aws_doubles import S3, CloudWatch
from elasticsearch_double import Elasticsearch
from faults import FAULTS, FaultyServer, Reply, Request, hang, status
from google_double import GoogleCloudLogging
from loki_double import Loki
from otlp_double import Otlp
from sink_cases import batch, give_up, insist, made
from splunk_double import Acknowledging, Splunk

from audit_operator.receiver.sinks import (
    TAKEN,
    MisconfiguredError,
    Sink,
    SinkError,
    ThrottledError,
    TooLargeError,
    UnauthorizedError,
    UnreachableError,
)


class Double(Protocol):
    """A vendor's API. ``exactly_once``: a repeated event is not stored again."""

    kind: str
    exactly_once: bool

    @property
    def taken(self) -> list[str]:
        """auditIDs in the order of arrival."""

    def spec(self, url: str, folder: Path) -> dict[str, Any]:
        """The AuditSink's settings for this server; writes the credentials into the folder."""

    def answer(self, request: Request) -> Reply:
        """One request."""


DOUBLES: dict[str, Callable[[], Double]] = {
    "elasticsearch": Elasticsearch,
    "splunk": Splunk,
    "splunk with acknowledgement": Acknowledging,
    "loki": Loki,
    "googleCloudLogging": GoogleCloudLogging,
    "otlp": Otlp,
    "objectStore in S3": S3,
    "cloudWatch": CloudWatch,
}

Test = Callable[[FaultyServer, Sink, Double], Awaitable[None]]


def against(kind: str, folder: Path, test: Test, **server: Any) -> None:
    async def run() -> None:
        double = DOUBLES[kind]()
        async with FaultyServer(double.answer, **server) as listening:
            sink = made(folder, **{double.kind: double.spec(listening.url, folder)}, tls={"caBundle": listening.ca})
            await sink.open()
            await test(listening, sink, double)
            await sink.close()

    asyncio.run(run())


def audit_ids(*numbers: int) -> list[str]:
    return [item.audit_id for item in batch(*numbers).items]


each_double = pytest.mark.parametrize("kind", DOUBLES)


@each_double
def test_events_arrive_in_order(kind: str, tmp_path: Path) -> None:
    async def test(_: FaultyServer, sink: Sink, double: Double) -> None:
        for numbers in ((1, 2), (3,), (4, 5)):
            assert await sink.deliver(batch(*numbers)) == TAKEN
        assert double.taken == audit_ids(1, 2, 3, 4, 5)

    against(kind, tmp_path, test)


@each_double
@pytest.mark.parametrize("fault", FAULTS)
def test_no_failure_costs_an_event(kind: str, fault: str, tmp_path: Path) -> None:
    async def test(server: FaultyServer, sink: Sink, double: Double) -> None:
        server.fail(FAULTS[fault])
        refused = await insist(sink, batch(1, 2))
        assert refused == {}
        server.fail(FAULTS[fault], FAULTS[fault])
        refused = await insist(sink, batch(3, 4, 5, 6))
        # One answer of 400 or 413 to a single event is the end of it.
        assert set(double.taken) | set(audit_ids(*refused)) == set(audit_ids(1, 2, 3, 4, 5, 6))
        assert not refused or fault in ("400 once", "413")
        if double.exactly_once:
            assert len(double.taken) == len(set(double.taken))

    against(kind, tmp_path, test)


@each_double
def test_a_server_that_hangs_or_is_away_gets_everything_in_the_end(kind: str, tmp_path: Path) -> None:
    async def test(server: FaultyServer, sink: Sink, double: Double) -> None:
        server.fail(hang())
        await give_up(sink, batch(1), lambda: bool(server.requests))
        await server.stop()
        with pytest.raises(UnreachableError):
            await sink.deliver(batch(1))
        await server.start()
        assert await sink.deliver(batch(1)) == TAKEN
        assert double.taken == audit_ids(1)

    against(kind, tmp_path, test)


@each_double
@pytest.mark.parametrize(
    ("answered", "error"),
    [
        (status(401), UnauthorizedError),
        (status(403), UnauthorizedError),
        (status(404), MisconfiguredError),
        (status(413), TooLargeError),
        (status(429, retry_after=7), ThrottledError),
        (status(503, retry_after=7), ThrottledError),
        (status(500), UnreachableError),
        (status(200, b"<html>Welcome!</html>"), UnreachableError),
    ],
)
def test_every_failure_is_told_apart(kind: str, answered: Any, error: type[SinkError], tmp_path: Path) -> None:
    async def test(server: FaultyServer, sink: Sink, _: Double) -> None:
        server.fail(answered)
        with pytest.raises(error) as caught:
            await sink.deliver(batch(1))
        assert type(caught.value) is error
        assert caught.value.retry_after == (7 if error is ThrottledError else None)

    against(kind, tmp_path, test)


@each_double
def test_a_changed_credential_is_used_at_once_and_never_shown(kind: str, tmp_path: Path) -> None:
    async def test(server: FaultyServer, sink: Sink, double: Double) -> None:
        files = list((tmp_path / "credentials").iterdir())
        contents = {file: file.read_text() for file in files}
        for file in files:
            file.write_text("wr0ng-s3cret")
        with pytest.raises(UnauthorizedError) as refused:
            await sink.deliver(batch(1))
        assert "wr0ng-s3cret" not in str(refused.value)
        for file, content in contents.items():
            file.write_text(content)
        assert await sink.deliver(batch(1)) == TAKEN
        echo = " ".join(f"{name}: {value}" for name, value in server.requests[-1].headers.items())
        server.fail(status(403, echo.encode()))
        with pytest.raises(UnauthorizedError) as echoed:
            await sink.deliver(batch(2))
        assert server.requests[-1].headers["authorization"].split()[-1] not in str(echoed.value)

    against(kind, tmp_path, test)


@each_double
def test_a_certificate_for_another_name_gets_nothing(kind: str, tmp_path: Path) -> None:
    async def test(server: FaultyServer, sink: Sink, _: Double) -> None:
        with pytest.raises(UnreachableError, match=r"(?i)hostname mismatch"):
            await sink.deliver(batch(1))
        assert not server.requests

    against(kind, tmp_path, test, names=("other.example",))


WITHOUT_A_WORD = {
    "elasticsearch": False,  # each document has an outcome
    "splunk": True,
    "splunk with acknowledgement": False,
    "loki": True,
    "googleCloudLogging": True,
    "otlp": True,
    "objectStore in S3": False,  # an object has an ETag
    "cloudWatch": True,
}
"""Whether a server may take events and answer nothing, as the protocol has it."""


@each_double
@pytest.mark.parametrize("code", [200, 201, 202, 204])
def test_an_answer_of_nothing_is_taken_for_what_the_protocol_makes_of_it(kind: str, code: int, tmp_path: Path) -> None:
    async def test(server: FaultyServer, sink: Sink, _: Double) -> None:
        server.fail(status(code), status(code))
        if WITHOUT_A_WORD[kind]:
            assert await sink.deliver(batch(1)) == TAKEN
        else:
            with pytest.raises((UnreachableError, MisconfiguredError)):
                await sink.deliver(batch(1))

    against(kind, tmp_path, test)
