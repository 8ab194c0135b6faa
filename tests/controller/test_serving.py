"""The operator's own port: probes and metrics for anybody, at a cost that nobody can raise."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from audit_operator.controller.serving import LONGEST_PASS, Health, serve


def run(test: Callable[[int, Health], Awaitable[None]], health: Health) -> None:
    async def whole() -> None:
        serving = asyncio.Event()
        sockets: list[int] = []
        loop = asyncio.get_running_loop()
        create = loop.create_server

        async def listen(*arguments: object) -> asyncio.Server:
            made = await create(*arguments)  # type: ignore[arg-type]
            sockets.append(made.sockets[0].getsockname()[1])
            return made

        loop.create_server = listen  # type: ignore[assignment]
        task = asyncio.create_task(serve("127.0.0.1", 0, health, serving))
        await serving.wait()
        try:
            await test(sockets[0], health)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(whole())


async def ask(port: int, path: str, method: str = "GET", headers: bytes = b"") -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n".encode() + headers + b"\r\n")
    answer = await reader.read()
    writer.transport.abort()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_probes_say_how_the_operator_is() -> None:
    async def test(port: int, health: Health) -> None:
        assert await ask(port, "/livez") == (200, b"ok\n")
        assert await ask(port, "/readyz") == (503, b"starting\n")
        health.problems = ()
        assert await ask(port, "/readyz?verbose") == (200, b"ok\n")
        health.busy_since = lambda: time.monotonic() - LONGEST_PASS - 1
        assert (await ask(port, "/livez"))[0] == 500
        assert (await ask(port, "/"))[0] == 404
        assert (await ask(port, "/metrics", "POST"))[0] == 405
        status, body = await ask(port, "/metrics")
        assert status == 200
        assert b"audit_operator_reconciles_total" in body
        assert await ask(port, "/metrics") == (200, body)
        assert await ask(port, "/metrics", "HEAD") == (200, b"")

    run(test, Health())


def test_a_stranger_with_many_headers_or_many_connections_keeps_no_probe_out() -> None:
    async def test(port: int, _: Health) -> None:
        assert (await ask(port, "/livez", headers=b"X: " + b"x" * 9000 + b"\r\n"))[0] == 431
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
        assert (await ask(port, "/livez"))[0] == 200
        for _, writer in held:
            writer.transport.abort()

    run(test, Health())
