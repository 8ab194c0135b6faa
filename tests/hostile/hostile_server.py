"""A collector that wishes receivers ill: each path is another way to answer. `python hostile_server.py` prints ports.

Two servers: one speaks HTTP as aiohttp does, the other writes what no HTTP server would.
"""

import asyncio
import contextlib
import gzip
import json
import os
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

MARK = "h0stile-words"
"""In every answer that has words: they must be nowhere that people read."""

_BIG = 4 << 20
_BOMB = gzip.compress(b"\0" * (64 << 20))
_SECONDS = 120.0
"""Of patience; no test lasts as long."""


def _items(count: int, **each: object) -> bytes:
    """As Elasticsearch answers a bulk request."""
    return json.dumps({"took": 1, "errors": True, "items": [{"create": each}] * count}).encode()


def _error(reason: str, status: object = 400) -> bytes:
    return _items(1, _index="x", status=status, error={"type": "illegal_argument_exception", "reason": reason})


def _bait(piece: str, size: int) -> str:
    """What an expression with a loop in a loop would never come back from."""
    return MARK + piece * (size // len(piece))


def _refused(piece: str) -> Callable[[int], bytes]:
    """Of so many documents the first, at all the length that there may be; the others are taken."""

    def body(documents: int) -> bytes:
        reason = _bait(piece, 50_000 + 3_500 * documents)
        error = {"type": "illegal_argument_exception", "reason": reason}
        items: list[object] = [{"create": {"status": 400, "error": error}}]
        items += [{"create": {"status": 201}}] * (documents - 1)
        return json.dumps({"errors": True, "items": items}).encode()

    return body


_XML_BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b0 "h0stile-words">'
    + b"".join(b'<!ENTITY b%d "%s">' % (number, b"&b%d;" % (number - 1) * 10) for number in range(1, 10))
    + b"]><Error><Code>&b9;</Code><Message>&b9;</Message></Error>"
)

Body = bytes | Callable[[int], bytes]
"""Of an answer; one that depends on how many documents the request has."""

BODIES: Mapping[str, tuple[int, Body, Mapping[str, str]]] = {
    "nothing": (200, b"", {}),
    "no-content": (204, b"", {}),
    "words": (200, MARK.encode(), {}),
    "huge": (200, b"x" * _BIG, {}),
    "huge-error": (400, (MARK * 100_000).encode(), {}),
    "huge-json": (200, json.dumps({"text": MARK, "items": [{}] * 500_000}).encode(), {}),
    "deep": (200, b"[" * 500_000, {}),
    "deep-objects": (400, b'{"a":' * 200_000, {}),
    "digits": (200, b'{"took":' + b"9" * 500_000 + b"}", {}),
    "exponent": (200, b'{"took":1e400,"items":[{"create":{"status":1e400}}]}', {}),
    "not-a-number": (200, b'{"errors":NaN,"items":[{"create":{"status":-Infinity}}]}', {}),
    "surrogates": (400, b'{"error":{"reason":"\\ud800\\udfff\\ud800"},"text":"\\ud800"}', {}),
    "no-utf8": (400, b'{"error":"\xff\xfe\xc0\x80"}', {}),
    "nul": (400, b"\0" * 60_000, {}),
    "types": (200, b'{"items":{"create":[1,2]},"errors":"yes","text":[],"code":{},"partialSuccess":[]}', {}),
    "none": (200, b'{"items":null,"errors":null,"text":null,"code":null,"partialSuccess":null}', {}),
    "too-few": (200, _items(0, status=201), {}),
    "too-many": (200, _items(20_000, status=201), {}),
    "strange-status": (200, _error(MARK, status="x" * 1000), {}),
    "negative-status": (200, _error(MARK, status=-(2**63)), {}),
    "regex-brackets": (200, _refused("pipeline with id ["), {}),
    "regex-colons": (200, _refused(":"), {}),
    "regex-quotes": (200, _refused("'[\""), {}),
    "regex-parsing": (200, _refused("failed to parse field [a] of type ["), {}),
    "regex-error": (400, json.dumps({"error": {"reason": _bait("[[[]", 60_000)}}).encode(), {}),
    "regex-text": (
        400,
        json.dumps({"text": _bait("event:", 60_000), "code": 6, "invalid-event-number": 2**70}).encode(),
        {},
    ),
    "rejected": (
        200,
        b'{"partialSuccess":{"rejectedLogRecords":"9223372036854775808","errorMessage":"h0stile-words"}}',
        {},
    ),
    "rejected-some": (200, b'{"partialSuccess":{"rejectedLogRecords":"-5"}}', {}),
    "protobuf": (200, b"\x0a\xff\xff\xff\xff\x0f" + b"\x08" * 100, {"Content-Type": "application/x-protobuf"}),
    "acknowledged": (200, b'{"text":"Success","code":0,"ackId":-1,"acks":{"-1":false}}', {}),
    "bomb": (200, _BOMB, {"Content-Encoding": "gzip"}),
    "bomb-error": (400, _BOMB, {"Content-Encoding": "gzip"}),
    "bomb-deflate": (500, zlib.compress(b"\0" * (64 << 20)), {"Content-Encoding": "deflate"}),
    "encodings": (200, _BOMB, {"Content-Encoding": ", ".join(["gzip"] * 400)}),
    "xml-bomb": (400, _XML_BOMB, {"Content-Type": "application/xml"}),
    "xml-deep": (400, b"<Error>" + b"<a>" * 20_000, {"Content-Type": "application/xml"}),
    "xml-file": (
        403,
        b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><Error><Code>&b;</Code></Error>',
        {"Content-Type": "application/xml"},
    ),
    "redirect": (307, b"", {"Location": "http://169.254.169.254/latest/meta-data"}),
    "redirect-self": (308, b"", {"Location": "/redirect-self"}),
    "redirect-file": (302, b"", {"Location": "file:///etc/passwd"}),
    "later": (429, MARK.encode(), {"Retry-After": "99999999999999999999"}),
    "later-date": (503, b"", {"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}),
    "later-never": (503, b"", {"Retry-After": "-" + "9" * 4000}),
    "unauthorized": (401, MARK.encode(), {"WWW-Authenticate": "Digest " + 'a="b",' * 1000}),
    "too-large": (413, b"", {}),
    "teapot": (418, MARK.encode(), {}),
    "cookies": (200, b"{}", {f"Set-Cookie-{number}": "a=b; Domain=.; Path=/" for number in range(100)}),
    "long-header": (200, b"{}", {"X-Long": "x" * 7000}),
}


async def _fixed(request: web.Request) -> web.StreamResponse:
    status, body, headers = BODIES[request.match_info["way"]]
    received = await request.read()
    if callable(body):
        body = body(max(received.count(b'{"create"'), 1))
    response = web.Response(status=status, headers={"Content-Type": "application/json", **headers})
    # Compressed already, or not at all: aiohttp is to send what is there.
    response.body = body
    return response


async def _drip(request: web.Request, piece: bytes, pause: float) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(_SECONDS):
            while True:
                await response.write(piece)
                await asyncio.sleep(pause)
    return response


async def _silent(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(_SECONDS)
    return web.Response()


async def _deaf(request: web.Request) -> web.StreamResponse:
    """Takes a byte of the request now and then."""
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(_SECONDS):
            async for _ in request.content.iter_chunked(1):
                await asyncio.sleep(0.5)
    return web.Response()


SLOW: Mapping[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
    "endless": lambda request: _drip(request, b"x" * 65536, 0.0),
    "endless-json": lambda request: _drip(request, b'{"items":[' + b'{"create":{"status":400}},' * 1000, 0.01),
    "drip": lambda request: _drip(request, b" ", 0.2),
    "silent": _silent,
    "deaf": _deaf,
}

_END = b"\r\n\r\n"
RAW: Mapping[str, bytes] = {
    "raw-garbage": b"\x16\x03\x01" + b"\xff" * 5000,
    "raw-close": b"",
    "raw-half": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000" + _END + b"{",
    "raw-more": b"HTTP/1.1 200 OK\r\nContent-Length: 2" + _END + b"{}" + b"HTTP/1.1 200 OK" + _END * 1000,
    "raw-two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 200" + _END + b"{}",
    "raw-chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked" + _END + b"ffffffffffffffff\r\nx",
    "raw-headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000,
    "raw-header": b"HTTP/1.1 200 OK\r\nA: " + b"b" * 1_000_000,
    "raw-continue": b"HTTP/1.1 100 Continue\r\n\r\n" * 50_000,
    "raw-upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade" + _END + b"\0" * 1000,
    "raw-status": b"HTTP/1.1 99999999999 " + MARK.encode() + _END,
    "raw-nul": b"HTTP/1.1 200 O\0K\r\nContent-Length: 0" + _END,
}

WAYS = (*BODIES, *SLOW, *RAW)


@contextlib.asynccontextmanager
async def serving(reached: set[str]) -> AsyncIterator[tuple[int, int]]:
    """The ports of both; ``reached``: ``way/sink type`` of those who came."""

    @web.middleware
    async def noting(request: web.Request, handler: Any) -> web.StreamResponse:
        reached.add("/".join(request.path.split("/")[1:3]))
        answer: web.StreamResponse = await handler(request)
        return answer

    app = web.Application(client_max_size=64 << 20, middlewares=[noting])
    for way, answer in SLOW.items():
        app.router.add_route("*", f"/{way}{{rest:.*}}", answer)
    app.router.add_route("*", "/{way}{rest:(/.*)?}", _fixed)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()

    async def raw(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, KeyError):
            line = await reader.readuntil(b"\r\n")
            _, way, kind, *_ = line.split()[1].decode().partition("?")[0].split("/")
            reached.add(f"{way}/{kind}")
            writer.write(RAW[way])
            await writer.drain()
            await reader.read(1 << 20)
        writer.transport.abort()

    server = await asyncio.start_server(raw, "127.0.0.1", 0)
    try:
        yield runner.addresses[0][1], server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await runner.cleanup()


async def _main() -> None:
    reached: set[str] = set()
    async with serving(reached) as ports:
        print(*ports, flush=True)
        await asyncio.to_thread(sys.stdin.read)  # until the test closes it
        print(*sorted(reached), flush=True)
        os._exit(0)  # answers that take for ever are not waited for


if __name__ == "__main__":
    asyncio.run(_main())
