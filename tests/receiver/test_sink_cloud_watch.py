"""The cloudWatch sink: requests within the limits, what is missing is created, roles; against moto too."""

import asyncio
import json
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aws_doubles import CloudWatch, moto, write_keys
from faults import FaultyServer, status
from sink_cases import batch, item, made

from audit_operator.receiver.sinks import (
    TAKEN,
    Batch,
    Item,
    MisconfiguredError,
    Result,
    Sink,
    SinkError,
    ThrottledError,
    UnauthorizedError,
    nanoseconds,
)

pytest.importorskip("awscrt")


def against(
    double: CloudWatch, folder: Path, test: Callable[[FaultyServer, Sink], Awaitable[None]], **spec: Any
) -> None:
    async def run() -> None:
        async with FaultyServer(double.answer) as server:
            sink = made(folder, cloudWatch=double.spec(server.url, folder) | spec, tls={"caBundle": server.ca})
            await test(server, sink)
            await sink.close()

    asyncio.run(run())


def at(number: int, timestamp: str, size: int = 0) -> Item:
    return msgspec.structs.replace(item(number, size), timestamp=timestamp)


def test_a_missing_group_is_created_as_the_settings_say(tmp_path: Path) -> None:
    double = CloudWatch(groups=())

    async def test(_: FaultyServer, sink: Sink) -> None:
        assert await sink.deliver(batch(1)) == TAKEN
        assert await sink.deliver(batch(2)) == TAKEN

    against(double, tmp_path, test, createLogGroup=True, retentionDays=90, kmsKeyID="arn:aws:kms:eu:1:key/k")
    group, stream = {"logGroupName": "/kubernetes/prod/audit"}, {"logStreamName": "audit-receiver-0"}
    assert double.calls[1:] == [
        ("CreateLogStream", group | stream),
        ("CreateLogGroup", group | {"kmsKeyId": "arn:aws:kms:eu:1:key/k"}),
        ("PutRetentionPolicy", group | {"retentionInDays": 90}),
        ("CreateLogStream", group | stream),
        ("PutLogEvents", group | stream),
        ("PutLogEvents", group | stream),
    ]
    assert len(double.taken) == 2


def test_a_missing_group_that_is_not_ours_to_create_costs_no_event(tmp_path: Path) -> None:
    async def test(_: FaultyServer, sink: Sink) -> None:
        with pytest.raises(MisconfiguredError, match=r"CreateLogStream.*ResourceNotFound"):
            await sink.deliver(batch(1))

    against(CloudWatch(groups=()), tmp_path, test)


@pytest.mark.parametrize(
    ("items", "requests"),
    [
        ([item(number) for number in range(10_001)], 5),  # 4.2 MB
        ([item(number, size=300_000) for number in range(7)], 3),
        ([at(1, "2026-11-25T05:00:00.000000Z"), at(2, "2026-11-23T04:00:00.000000Z")], 2),
        ([at(1, "2026-11-23T04:00:01.000000Z"), at(2, "2026-11-23T04:00:00.000000Z")], 1),
    ],
)
def test_every_request_is_within_the_limits(items: list[Item], requests: int, tmp_path: Path) -> None:
    double = CloudWatch()

    async def test(_: FaultyServer, sink: Sink) -> None:
        assert await sink.deliver(Batch("prod", items, 1)) == TAKEN

    against(double, tmp_path, test)
    # The first one found the stream missing.
    assert sum(operation == "PutLogEvents" for operation, _ in double.calls) - 1 == requests
    assert sorted(double.taken) == sorted(each.audit_id for each in items)


def test_what_cloudwatch_drops_goes_to_quarantine(tmp_path: Path) -> None:
    events = batch(*range(0, 5000, 1000))
    double = CloudWatch()
    double.oldest, double.newest = (nanoseconds(events.items[place].timestamp) // 10**6 for place in (1, 3))
    large = item(9, size=1_100_000)

    async def test(_: FaultyServer, sink: Sink) -> None:
        result = await sink.deliver(Batch("prod", [*events.items, large], 1))
        assert [(each.at, each.reason.partition(",")[0]) for each in result.refused] == [
            (5, "is larger than 1 MiB"),
            (0, "is older than 14 days or the log group's retention"),
            (4, "is more than 2 hours in the future"),
        ]
        assert not result.retry

    against(double, tmp_path, test)
    assert len(double.taken) == 3


def test_after_half_of_the_requests_the_other_half_is_left(tmp_path: Path) -> None:
    results: list[Result] = []

    async def test(server: FaultyServer, sink: Sink) -> None:
        await sink.deliver(batch(99))
        ok = CloudWatch.answer
        double.answer = lambda request: (server.fail(status(500)), ok(double, request))[1]  # type: ignore[method-assign]
        server._answer = double.answer
        results.append(await sink.deliver(batch(*range(4), size=500_000)))

    double = CloudWatch()
    against(double, tmp_path, test)
    (result,) = results
    assert (list(result.retry), result.reason) == ([2, 3], "HTTP 500")


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("ThrottlingException", ThrottledError),
        ("ExpiredTokenException", UnauthorizedError),
        ("AccessDeniedException", UnauthorizedError),
    ],
)
def test_errors_are_told_apart_although_all_have_status_400(kind: str, error: type[SinkError], tmp_path: Path) -> None:
    async def test(server: FaultyServer, sink: Sink) -> None:
        server.fail(status(400, json.dumps({"__type": kind}).encode()))
        with pytest.raises(error) as caught:
            await sink.deliver(batch(1))
        assert type(caught.value) is error

    against(CloudWatch(), tmp_path, test)


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.mark.parametrize("role", [False, True])
def test_moto_has_every_event(role: bool, aws: str, tmp_path: Path) -> None:
    write_keys(tmp_path)
    auth: dict[str, Any] = {
        "accessKeyID": {"name": "aws", "key": "id"}, "secretAccessKey": {"name": "aws", "key": "secret"}
    }  # fmt: skip
    if role:
        auth["assumeRole"] = {"roleARN": "arn:aws:iam::123456789012:role/audit", "externalID": "e=1"}
    group = f"/kubernetes/{{cluster}}/{role}"
    spec = {"region": "eu-central-1", "endpoint": aws, "createLogGroup": True, "auth": auth, "logGroup": group}

    # moto, as CloudWatch, drops what is older than 14 days or in the future.
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    events = Batch("prod", [at(number, now) for number in range(3)], 1)

    async def run() -> None:
        sink = made(tmp_path, cloudWatch=spec)
        assert await sink.deliver(events) == TAKEN
        await sink.close()

    asyncio.run(run())
    asked = {"logGroupName": f"/kubernetes/prod/{role}", "logStreamName": "audit-receiver-0", "startFromHead": True}
    request = urllib.request.Request(
        aws,
        json.dumps(asked).encode(),
        {
            "X-Amz-Target": "Logs_20140328.GetLogEvents",
            "Content-Type": "application/x-amz-json-1.1",
            "Authorization": "AWS4-HMAC-SHA256 Credential=k/20261123/eu-central-1/logs/aws4_request, "
            "SignedHeaders=host, Signature=0",
        },
    )
    with urllib.request.urlopen(request) as answer:
        found = json.load(answer)["events"]
    assert [event["message"].encode() for event in found] == [each.data for each in events.items]
