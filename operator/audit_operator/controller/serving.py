"""What is asked of the operator over plain HTTP: is it alive, is it ready, and its metrics."""

import asyncio
import time
from typing import TYPE_CHECKING, Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_PASS: Final = 600.0  # seconds; a pass that takes longer hangs


class Health:
    """What the probes say. ``problems``: why the operator is not ready, in sentences; empty: it is."""

    def __init__(self) -> None:
        self.problems: tuple[str, ...] = ("starting",)
        self.busy_since: Callable[[], float | None] = lambda: None

    def alive(self) -> bool:
        """Whether a restart would not help: no pass hangs."""
        since = self.busy_since()
        return since is None or time.monotonic() - since < LONGEST_PASS


async def serve(host: str, port: int, health: Health, serving: asyncio.Event) -> None:
    """Answer for ever; ``serving`` is set once it listens. Raises OSError if the port is taken."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n") if health.alive() else web.Response(status=500, text="a pass hangs\n")

    async def readyz(_: web.Request) -> web.Response:
        if health.problems:
            return web.Response(status=503, text="\n".join(health.problems) + "\n")
        return web.Response(text="ok\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        serving.set()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
