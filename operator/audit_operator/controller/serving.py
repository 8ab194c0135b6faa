"""What is asked of the operator over plain HTTP: is it alive, is it ready, and its metrics. Anybody may ask."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from audit_operator.net.http import HttpServer, Limits, Request, Response, text
from audit_operator.net.throttling import ThrottledLog

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

LONGEST_PASS: Final = 600.0  # seconds; a pass that takes longer hangs

_LIMITS: Final = Limits(trusted=0, strangers=64, keep_alive=False)
_FRESH: Final = 1.0
"""Seconds for which metrics that were written once are the answer for everybody."""


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
    server = HttpServer(_Answers(health), _LIMITS)
    listening = await asyncio.get_running_loop().create_server(server, host, port)
    try:
        serving.set()
        await asyncio.Event().wait()
    finally:
        listening.close()
        await server.shutdown(1.0)


class _Answers:
    """See `net.http.Application`."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._log = ThrottledLog(logger)
        self._metrics = b""
        self._written = float("-inf")

    def opened(self, transport: asyncio.BaseTransport) -> str:
        """The address."""
        peer = transport.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) and peer else ""

    def trusts(self, _client: str) -> bool:
        """Nobody."""
        return False

    def refused(self, reason: str, message: str, client: str) -> None:
        """Logged once a minute."""
        self._log.report(reason, "refused (%s): %s, from %s", reason, message, client)

    async def answer(self, request: Request) -> Response:
        """See `net.http.Application`."""
        if request.head.method not in {"GET", "HEAD"}:
            return text(405, "this port is asked with GET", ("Allow", "GET, HEAD"))
        health = self._health
        match request.head.path:
            case "/livez":
                return text(200, "ok") if health.alive() else text(500, "a pass hangs")
            case "/readyz":
                return text(503, "\n".join(health.problems)) if health.problems else text(200, "ok")
            case "/metrics":
                if time.monotonic() - self._written >= _FRESH:
                    self._metrics, self._written = generate_latest(), time.monotonic()
                return Response(200, self._metrics, CONTENT_TYPE_LATEST)
            case _:
                return text(404, "there are /livez, /readyz and /metrics")
