"""Who writes: one replica at a time, by a Lease. The client's own election, plus what it does not do.

The client neither hands the Lease over when it ends nor survives a connection that breaks, and a leader that was
stopped for a while (SIGSTOP, a frozen machine) would go on writing before it noticed. Here it hands over, starts anew,
and every write asks `Election.leading` first, which knows how long the Lease can still be ours.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

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

LEASE_SECONDS: Final = 10
"""How long others wait for a leader that is silent; with one retry on top, who takes over does so within 14 s."""
_RENEW_DEADLINE: Final = 7.0
_RETRY: Final = 2.0


class NotLeadingError(Exception):
    """A write was about to happen on a replica that may not."""


class _Lock(LeaseLock):
    """The client's lock, which remembers when it was last surely ours."""

    held_until = 0.0

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        # Not the client's own: that asks for pretty=True, which its models refuse.
        since = time.monotonic()
        lease = V1Lease(metadata=V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        try:
            await self.api_instance.create_namespaced_lease(namespace, lease)
        except ApiException as error:
            logger.error("cannot create Lease %s/%s: %s %s", namespace, name, error.status, error.reason)
            return False
        return self._remember(True, since)

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        since = time.monotonic()  # before the request: the others count from when they see it
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
        """Whether this replica may write, now: the margin is for a request that is under way."""
        return time.monotonic() < self._lock.held_until - _RETRY and not self._ended

    def require(self) -> None:
        """Raise NotLeadingError unless this replica may write."""
        if not self.leading():
            raise NotLeadingError

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

    def require(self) -> None:
        pass

    async def run(self) -> None:
        metrics.LEADER.set(1)
        self._elected()
        await asyncio.Event().wait()
