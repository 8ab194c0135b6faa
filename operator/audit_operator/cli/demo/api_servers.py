"""API servers, as far as a webhook sees them: batches over mTLS, repeated with the same bytes until they are taken."""

import asyncio
import io
import random
import ssl
from dataclasses import dataclass, field
from typing import Final

import aiohttp

INITIAL_BACKOFF: Final = 1.5
"""Seconds; kube-apiserver's --audit-webhook-initial-backoff is 10 by default."""
_FACTOR: Final = 1.5
_JITTER: Final = 0.2
_ATTEMPTS: Final = 5
"""After that kube-apiserver loses the batch (k8s.io/apiserver, pkg/util/webhook)."""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=30)


@dataclass
class ApiServer:
    """One, with a client certificate of its own. ``acknowledged``: bodies that were answered 200; ``lost``: those that
    it gave up. ``repeated``: attempts after the first.
    """

    name: str
    tls: ssl.SSLContext
    server_name: str
    acknowledged: list[bytes] = field(default_factory=list)
    lost: list[bytes] = field(default_factory=list)
    repeated: int = 0

    async def send(self, body: bytes, url: str, session: aiohttp.ClientSession) -> bool:
        """Whether it was taken, after at most five attempts."""
        wait = INITIAL_BACKOFF
        for attempt in range(_ATTEMPTS):
            if attempt:
                self.repeated += 1
                await asyncio.sleep(wait * (1 + random.random() * _JITTER))  # noqa: S311 - jitter
                wait *= _FACTOR
            status = await self._post(body, url, session)
            if status == 200:
                self.acknowledged.append(body)
                return True
            if status not in (0, 429) and status < 500:
                break  # what is refused is not repeated
        self.lost.append(body)
        return False

    async def _post(self, body: bytes, url: str, session: aiohttp.ClientSession) -> int:
        """The status; 0: there was no answer."""
        try:
            async with session.post(
                url,
                data=io.BytesIO(body),
                headers={"Content-Type": "application/json"},
                ssl=self.tls,
                server_hostname=self.server_name,
                timeout=_TIMEOUT,
            ) as answer:
                await answer.read()
                if answer.status in (429, 503):
                    await asyncio.sleep(float(answer.headers.get("Retry-After", "0")))
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0
