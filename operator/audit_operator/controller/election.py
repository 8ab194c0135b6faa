"""Who writes: one replica at a time, by a Lease. The client's own election, plus what it does not do.

The client neither hands the Lease over when it ends nor survives a connection that breaks, and a leader that was
stopped for a while (SIGSTOP, a frozen machine) would go on writing before it noticed. Here it hands over, starts anew,
and every write runs inside `while_leading`, which knows how long the Lease can still be ours.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import aiohttp
from kubernetes.aio.client import ApiClient, V1Lease, V1ObjectMeta
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from audit_operator.controller import metrics
from audit_operator.controller.permissions import LEASE

logger = logging.getLogger(__name__)

T = TypeVar("T")

LEASE_SECONDS: Final = 10
"""How long others wait for a leader that is silent; with one retry on top, who takes over does so within 14 s."""
_RENEW_DEADLINE: Final = 7.0
_RETRY: Final = 2.0


class NotLeadingError(Exception):
    """A write was about to happen on a replica that may not."""


Fence = Callable[[], float]
"""Seconds for which this replica may still write, unless it renews its Lease meanwhile. Raises NotLeadingError."""


async def while_leading(fence: Fence, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which writes: it is cancelled when this replica may not write any more.

    So a write that is under way when the Lease cannot be renewed is given up, and never sent again. What the network
    has taken by then may still arrive: that is what the Lease's margin is for. Raises NotLeadingError.
    """
    task = asyncio.ensure_future(work)
    try:
        while True:
            left = fence()
            done, _ = await asyncio.wait((task,), timeout=None if math.isinf(left) else left)
            if done:
                return task.result()
    finally:
        task.cancel()


class _Lock(LeaseLock):
    """The client's lock, which remembers when it was last surely ours."""

    held_until = 0.0

    async def get(self, name: str, namespace: str) -> Any:
        # A request that hangs must not keep this replica out of the election for the client's five minutes.
        async with asyncio.timeout(_RENEW_DEADLINE):
            return await super().get(name, namespace)

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        # Not the client's own: that asks for pretty=True, which its models refuse.
        since = time.monotonic()
        lease = V1Lease(metadata=V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        try:
            async with asyncio.timeout(_RENEW_DEADLINE):
                await self.api_instance.create_namespaced_lease(namespace, lease)
        except ApiException as error:
            logger.error("cannot create Lease %s/%s: %s %s", namespace, name, error.status, error.reason)
            return False
        return self._remember(True, since)

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        since = time.monotonic()  # before the request: the others count from when they see it
        async with asyncio.timeout(_RENEW_DEADLINE):
            return self._remember(await super().update(name, namespace, updated_record), since)

    def _remember(self, succeeded: bool, since: float) -> bool:
        if succeeded:
            self.held_until = since + LEASE_SECONDS
        return succeeded

    async def release(self) -> None:
        """Let the others take over at once. Only what is still ours: an older version is refused."""
        lease: V1Lease | None = self.lease_reference
        if lease is None or lease.spec is None or lease.spec.holder_identity != self.identity:
            return
        fresh = await self.api_instance.read_namespaced_lease(self.name, self.namespace)
        if fresh.spec is not None and fresh.spec.holder_identity == self.identity:
            fresh.spec.holder_identity = None
            await self.api_instance.replace_namespaced_lease(self.name, self.namespace, fresh)


class Election:
    """Takes part in the election for ever; calls ``elected`` each time this replica begins to lead."""

    def __init__(self, client: ApiClient, namespace: str, identity: str, elected: Callable[[], None]) -> None:
        self._lock = _Lock(LEASE, namespace, identity, client)
        self._elected = elected
        self._ended = False

    def leading(self) -> bool:
        """Whether this replica may write, now."""
        return self._left() > 0

    def require(self) -> float:
        """Seconds for which this replica may still write, if it does not renew. Raises NotLeadingError."""
        left = self._left()
        if left <= 0:
            raise NotLeadingError
        return left

    def _left(self) -> float:
        """The margin is for a request that the API server already works on when its connection is cut."""
        return 0.0 if self._ended else self._lock.held_until - _RETRY - time.monotonic()

    async def run(self) -> None:
        """Take part until cancelled, then hand over."""

        async def started() -> None:
            logger.info("leading: this replica writes")
            metrics.LEADER.set(1)
            self._elected()

        async def stopped() -> None:
            logger.warning("no longer leading: the Lease could not be renewed in time")
            metrics.LEADER.set(0)

        try:
            while True:
                config = Config(self._lock, LEASE_SECONDS, _RENEW_DEADLINE, _RETRY, started, stopped)
                try:
                    await LeaderElection(config).run()
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    # Until a renewal succeeds `leading` ends by itself; the Lease may well be ours again.
                    metrics.LEADER.set(0)
                    logger.warning("the election was interrupted: %s: %s", type(error).__name__, error)
                    await asyncio.sleep(1)
        finally:
            self._ended = True
            with contextlib.suppress(aiohttp.ClientError, ApiException, TimeoutError, OSError):
                async with asyncio.timeout(3):
                    await self._lock.release()


class Always:
    """The election of an operator that runs alone."""

    def __init__(self, elected: Callable[[], None]) -> None:
        self._elected = elected

    def leading(self) -> bool:
        return True

    def require(self) -> float:
        return math.inf

    async def run(self) -> None:
        metrics.LEADER.set(1)
        self._elected()
        await asyncio.Event().wait()
