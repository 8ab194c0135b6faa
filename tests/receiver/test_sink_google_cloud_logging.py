"""The googleCloudLogging sink: entries fare one by one, tokens are ours, and a key of another kind leads nowhere."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from faults import FaultyServer, status
from google_double import GoogleCloudLogging, account_key
from sink_cases import batch, credential, made

from audit_operator.receiver.sinks import (
    TAKEN,
    MisconfiguredError,
    RefusedError,
    Result,
    Sink,
    SinkError,
    TooLargeError,
    UnauthorizedError,
)


def against(
    double: GoogleCloudLogging, folder: Path, test: Callable[[Sink], Awaitable[None]], **spec: Any
) -> FaultyServer:
    async def run() -> FaultyServer:
        async with FaultyServer(double.answer) as server:
            given = double.spec(server.url, folder) | spec
            sink = made(folder, googleCloudLogging=given, tls={"caBundle": server.ca})
            await test(sink)
            await sink.close()
            return server

    return asyncio.run(run())


def test_entries_are_events_under_their_cluster_each_once(tmp_path: Path) -> None:
    double = GoogleCloudLogging()

    async def test(sink: Sink) -> None:
        for _ in range(2):
            assert await sink.deliver(batch(1)) == TAKEN

    resource = {"type": "k8s_cluster", "labels": {"project_id": "my-project", "location": "eu"}}
    against(double, tmp_path, test, logID="k8s/audit", resource=resource, labels={"team": "sec"})
    assert double.requests[0]["logName"] == "projects/my-project/logs/k8s%2Faudit"
    assert double.requests[0]["resource"]["labels"] == {
        "cluster_name": "prod", "project_id": "my-project", "location": "eu"
    }  # fmt: skip
    assert double.requests[0]["labels"] == {"team": "sec"}
    (entry,) = double.entries.values()
    event = batch(1).items[0]
    assert entry["jsonPayload"] == json.loads(event.data)
    assert entry["timestamp"] == event.timestamp


def test_entries_fare_one_by_one(tmp_path: Path) -> None:
    verdicts = {
        "1": (3, "Log entry with size 300.0K exceeds maximum size of 256.0K"),
        "2": (3, "bad value: s3cret"),
        "3": (7, "denied"),
        "4": (14, "unavailable"),
        "5": (6, "already there"),
    }
    double = GoogleCloudLogging(lambda entry: verdicts.get(entry["jsonPayload"]["objectRef"]["name"]))
    results: list[Result] = []

    async def test(sink: Sink) -> None:
        results.append(await sink.deliver(batch(*range(7))))

    against(double, tmp_path, test)
    (result,) = results
    assert [(each.at, each.reason) for each in result.refused] == [
        (1, "INVALID_ARGUMENT, for its size or time"),
        (2, "INVALID_ARGUMENT"),
    ]
    assert (list(result.retry), result.reason) == ([3, 4], "PERMISSION_DENIED")
    assert len(double.taken) == 2


def test_an_entry_too_large_for_google_is_refused_alone(tmp_path: Path) -> None:
    async def test(sink: Sink) -> None:
        large, small = batch(1, size=300_000), batch(2)
        result = await sink.deliver(type(small)("prod", [*large.items, *small.items], 1))
        assert [each.at for each in result.refused] == [0]
        assert not result.retry

    against(GoogleCloudLogging(), tmp_path, test)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("Invalid resource name; projects/nope/logs/x", MisconfiguredError),
        ("Request payload size exceeds the limit: 10485760 bytes.", TooLargeError),
        ("Invalid JSON payload received. Message too deep. Max recursion depth reached", RefusedError),
    ],
)
def test_a_wrong_setting_costs_no_event(message: str, error: type[SinkError], tmp_path: Path) -> None:
    async def run() -> None:
        double = GoogleCloudLogging()
        async with FaultyServer(double.answer) as server:
            sink = made(tmp_path, googleCloudLogging=double.spec(server.url, tmp_path), tls={"caBundle": server.ca})
            server.fail(status(400, json.dumps({"error": {"code": 400, "message": message}}).encode()))
            with pytest.raises(error) as caught:
                await sink.deliver(batch(1, 2))
            assert type(caught.value) is error
            await sink.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        json.dumps({"type": "external_account", "credential_source": {"file": "/etc/passwd"}}),
        json.dumps({"type": "authorized_user", "refresh_token": "r3fresh"}),
        account_key(private_key="s3cret"),
    ],
)
def test_only_the_key_of_a_service_account_is_taken_and_never_shown(text: str, tmp_path: Path) -> None:
    async def test(sink: Sink) -> None:
        credential(tmp_path, "google", "key.json", text)
        with pytest.raises(UnauthorizedError, match="service account") as caught:
            await sink.deliver(batch(1))
        assert "s3cret" not in str(caught.value)

    server = against(GoogleCloudLogging(), tmp_path, test)
    assert not server.requests
