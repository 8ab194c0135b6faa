"""What a sink's server answers costs time that grows with its length and with nothing else, and hardly any of the loop:
a tenant's server may answer whatever it likes.
"""

import asyncio
import contextlib
import itertools
import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import FaultyServer, Reply
from google_double import account_key
from sink_cases import batch, credential, made

from audit_operator.receiver.sinks import Batch, Sink, SinkError, elasticsearch, google_cloud_logging, web

EVENTS = 200
AWS = {"accessKeyID": {"name": "own", "key": "id"}, "secretAccessKey": {"name": "own", "key": "secret"}}
TOKEN = {"name": "own", "key": "secret"}
ROLE = {**AWS, "assumeRole": {"roleARN": "arn:aws:iam::123456789012:role/audit"}}

SINKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "elasticsearch": lambda url: {"elasticsearch": {"urls": [url]}},
    "splunk": lambda url: {"splunk": {"url": url, "token": TOKEN}},
    "splunk with acknowledgement": lambda url: {"splunk": {"url": url, "token": TOKEN, "acknowledgement": True}},
    "loki": lambda url: {"loki": {"url": url}},
    "otlp": lambda url: {"otlp": {"url": url}},
    "otlp as JSON": lambda url: {"otlp": {"url": url, "encoding": "JSON"}},
    "http": lambda url: {"http": {"url": f"{url}/audit"}},
    "cloudWatch": lambda url: {"cloudWatch": {"region": "eu-central-1", "endpoint": url, "auth": AWS}},
    "cloudWatch as a role": lambda url: {"cloudWatch": {"region": "eu-central-1", "endpoint": url, "auth": ROLE}},
    "googleCloudLogging": lambda url: {
        "googleCloudLogging": {"parent": "projects/p", "endpoint": url, "credentials": {"name": "own", "key": "g"}}
    },
    "objectStore in Azure": lambda url: {
        "objectStore": {
            "azure": {
                "storageAccount": "audit",
                "container": "audit",
                "endpoint": url,
                "auth": {"accountKey": {"name": "own", "key": "base64"}},
            }
        }
    },
    "objectStore in S3": lambda url: {
        "objectStore": {"s3": {"bucket": "audit", "region": "x", "endpoint": url, "pathStyle": True, "auth": AWS}}
    },
}
"""Every sink that reads answers, but for Kafka, whose library does."""

LARGEST = {
    "elasticsearch": elasticsearch.largest_answer(EVENTS),
    "googleCloudLogging": google_cloud_logging.LARGEST,
}
"""Bytes that a sink reads of an answer, where that is not `web.LARGEST_ANSWER`."""

PIECES = [
    "pipeline with id [", "no write index is defined for ", "field [", "object mapping for [x",
    "[", "]", "{", ":", "@", "://", "?", " ", "\\", "/", "<", "<AccessKeyId>", "<Code>Expired", "status ", "code 4",
    "a", "9", "-", ".", "\u00e9", "entry too far ", "older than the ", "structured metadat", "json payloa",
    "payload siz", "timestamp too ", "Retry", "null", "tooOld",
]  # fmt: skip
"""Whatever an expression could begin to match over and over."""


def shapes(kind: str, text: str) -> Iterator[bytes]:
    """The places of an answer that a sink of this type looks at, with this text in them."""
    quoted = json.dumps(text, ensure_ascii=False)
    yield text.encode()
    match kind.split(maxsplit=1)[0]:
        case "elasticsearch":
            ok = ',{"create":{"status":201}}' * (EVENTS - 1)
            for error in (
                f'"type":"illegal_argument_exception","reason":{quoted}',
                f'"type":{quoted},"reason":"","caused_by":{{"type":{quoted}}}',
            ):
                yield f'{{"errors":true,"items":[{{"create":{{"status":400,"error":{{{error}}}}}}}{ok}]}}'.encode()
        case "splunk":
            yield f'{{"text":{quoted},"code":6,"invalid-event-number":0}}'.encode()
        case "otlp":
            yield f'{{"partialSuccess":{{"rejectedLogRecords":"1","errorMessage":{quoted}}}}}'.encode()
            inner = b"\x08\x01\x12" + _varint(len(text.encode())) + text.encode()
            yield b"\x0a" + _varint(len(inner)) + inner
        case "cloudWatch":
            yield f'{{"__type":{quoted},"message":{quoted}}}'.encode()
            yield f"<AssumeRoleResponse><AccessKeyId>{text}</AccessKeyI>{text}".encode()
        case "googleCloudLogging":
            yield f'{{"error":{{"code":400,"message":{quoted}}}}}'.encode()
            entries = f'{{"0":{{"code":3,"message":{quoted}}}}}'
            detail = f'{{"@type":"type/google.logging.v2.WriteLogEntriesPartialErrors","logEntryErrors":{entries}}}'
            yield f'{{"error":{{"details":[{detail}]}}}}'.encode()
        case "objectStore":
            yield f"<Error><Code>{text}</Code><Message>{text}</Message></Error>".encode()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def nested(size: int) -> Iterator[bytes]:
    """Answers of many small parts, or of parts in parts."""
    for head, part, tail in [
        (b"", b"[", b""),
        (b"", b'{"error":', b""),
        (b'{"errors":true,"items":[', b"{},", b"{}]}"),
        (b'{"errors":true,"items":[', b'{"create":{"status":1}},', b"{}]}"),
        (b'{"errors":true,"items":[{"create":{"status":1,"error":', b'{"caused_by":', b""),
        (b'{"error":{"details":[', b"{},", b"{}]}}"),
        (b'{"acks":{', b'"1":true,', b'"2":false}}'),
        (b'{"partialSuccess":{"rejectedLogRecords":', b"9", b"}}"),
        (b'{"code":', b"9", b"}"),
        (b'{"rejectedLogEventsInfo":', b'{"x":', b""),
        (b"", b"\x0a\x00", b""),
    ]:
        yield head + part * ((size - len(head) - len(tail)) // len(part)) + tail


def answers(kind: str, size: int) -> Iterator[bytes]:
    """The worst of at most so many bytes."""
    for piece in PIECES:
        none, one, two = ([len(each) for each in shapes(kind, piece * times)] for times in (0, 1, 2))
        for at, (empty, first, second) in enumerate(zip(none, one, two, strict=True)):
            times = (size - max(empty, 2 * first - second) - 16) // (second - first)
            yield next(itertools.islice(shapes(kind, piece * times), at, None))
    yield from nested(size)


async def cost(sink: Sink, events: Batch) -> tuple[float, float]:
    """Seconds of a processor for one delivery: in all, and in the loop's longest turn."""
    turns = [0.0]

    async def beat() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            turns.append(time.thread_time() - before)

    beating = asyncio.create_task(beat())
    before = time.process_time()
    with contextlib.suppress(SinkError, TimeoutError):
        async with asyncio.timeout(60):
            await sink.deliver(events)
    beating.cancel()
    return time.process_time() - before, max(turns)


@contextlib.asynccontextmanager
async def answering(kind: str, folder: Path) -> AsyncIterator[tuple[Sink, Callable[[int, bytes], None]]]:
    """A sink, and what sets what its server answers."""
    for key in ("id", "secret"):
        credential(folder, "own", key, "a-credential")
    credential(folder, "own", "g", account_key())
    credential(folder, "own", "base64", b64encode(bytes(64)).decode())
    said = [Reply()]
    async with FaultyServer(lambda _: said[0], tls=False) as server:
        sink = made(folder, **SINKS[kind](f"http://127.0.0.1:{server.port}"))

        def answer(status: int, body: bytes) -> None:
            said[0] = Reply(status, body)

        yield sink, answer
        await sink.close()


STATUSES = (200, 400, 403, 500)
ENOUGH = 0.2
"""Seconds of a processor: so little that it is of no interest how it grows."""


@pytest.mark.parametrize("kind", SINKS)
def test_an_answer_costs_what_its_length_costs_whatever_it_holds(kind: str, tmp_path: Path) -> None:
    largest, events = LARGEST.get(kind, web.LARGEST_ANSWER), batch(*range(EVENTS))

    async def test() -> None:
        async with answering(kind, tmp_path) as (sink, answer):
            halves = answers(kind, largest // 2)
            for number, (whole, half) in enumerate(zip(answers(kind, largest), halves, strict=True)):
                for status in STATUSES if number % len(STATUSES) == 0 else (200, 400):
                    answer(status, whole)
                    spent, _ = await cost(sink, events)
                    if spent > ENOUGH:
                        whole_cost = min([spent, *[(await cost(sink, events))[0] for _ in range(2)]])
                        answer(status, half)
                        half_cost = min([(await cost(sink, events))[0] for _ in range(3)])
                        assert whole_cost < max(3 * half_cost, ENOUGH), f"{status} {whole[:200]!r}"

    asyncio.run(test())


HARDLY = 0.05
"""Seconds of a processor; a busy machine's caches are cold."""


@pytest.mark.parametrize("kind", SINKS)
def test_no_answer_holds_up_the_loop(kind: str, tmp_path: Path) -> None:
    largest, events = LARGEST.get(kind, web.LARGEST_ANSWER), batch(*range(EVENTS))

    async def test() -> None:
        async with answering(kind, tmp_path) as (sink, answer):
            await cost(sink, events)
            for body in nested(largest):
                for status in STATUSES:
                    answer(status, body)
                    turns = [(await cost(sink, events))[1]]
                    if turns[0] > HARDLY:
                        turns += [(await cost(sink, events))[1] for _ in range(2)]
                    assert min(turns) < HARDLY, f"{status} {body[:200]!r}"

    asyncio.run(test())
