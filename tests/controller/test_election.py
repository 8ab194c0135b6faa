"""Who leads: one at a time, handed over when it ends, and over before another may begin."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from fake_api import FakeApi, Request, serving
from kubernetes.aio.client import Configuration
from operating import NAMESPACE, until

from audit_operator.controller.cluster import KubernetesCluster
from audit_operator.controller.election import LEASE_SECONDS, Always, Election, NotLeadingError

LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/audit-operator"


class Replica:
    """Takes part in the election."""

    def __init__(self, election: Election, task: "asyncio.Task[None]") -> None:
        self.election = election
        self._task = task

    async def end(self) -> None:
        """As SIGTERM ends it."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


@contextlib.asynccontextmanager
async def replica(url: str, name: str) -> AsyncIterator[Replica]:
    configuration = Configuration()
    configuration.host = url
    async with KubernetesCluster(configuration, name) as cluster:
        election = Election(cluster.client, NAMESPACE, name, lambda: None)
        found = Replica(election, asyncio.create_task(election.run()))
        try:
            yield found
        finally:
            await found.end()


def holder(api: FakeApi) -> str | None:
    status, lease = api.request("GET", LEASE)
    found: str | None = (lease.get("spec") or {}).get("holderIdentity") if status == 200 else None
    return found


def test_one_leads_and_hands_over_at_once_when_it_ends() -> None:
    async def test() -> None:
        api = FakeApi()
        async with serving(api) as url, replica(url, "first") as first:
            await until(first.election.leading)
            async with replica(url, "second") as second:
                await until(lambda: len([each for each in api.requests if each.method == "GET"]) >= 3)
                assert not second.election.leading()
                with pytest.raises(NotLeadingError):
                    second.election.require()
                assert 0 < first.election.require() < LEASE_SECONDS
                await first.end()
                assert not first.election.leading()
                assert holder(api) != "first"
                await until(second.election.leading)
                assert holder(api) == "second"

    asyncio.run(test())


def test_a_leader_that_cannot_renew_leads_no_more_before_its_lease_is_over() -> None:
    async def test() -> None:
        api = FakeApi()
        renewed = [0.0]

        async def gate(request: Request) -> None:
            if request.method in ("PUT", "POST") and not broken:
                renewed[0] = time.monotonic()

        broken: list[bool] = []
        api.gate = gate
        async with serving(api) as url, replica(url, "first") as first:
            await until(first.election.leading)
            broken.append(True)
            api.answer = lambda _: (500, {"code": 500, "reason": "InternalError"}, {})
            await until(lambda: not first.election.leading(), seconds=LEASE_SECONDS + 5)
            # The others count from when they see a renewal, which is later.
            assert time.monotonic() - renewed[0] < LEASE_SECONDS
            api.answer = lambda _: None
            await until(first.election.leading)

    asyncio.run(test())


def test_what_hangs_in_the_election_is_given_up() -> None:
    async def test() -> None:
        api = FakeApi()
        hanging: list[bool] = [True]

        async def gate(request: Request) -> None:
            if hanging:
                hanging.clear()
                await asyncio.Event().wait()

        api.gate = gate
        async with serving(api) as url, replica(url, "first") as first:
            await until(first.election.leading, seconds=LEASE_SECONDS + 5)

    asyncio.run(test())


def test_a_lease_that_was_deleted_is_made_again() -> None:
    async def test() -> None:
        api = FakeApi()
        async with serving(api) as url, replica(url, "first") as first:
            await until(first.election.leading)
            assert api.request("DELETE", LEASE)[0] == 200
            await until(lambda: holder(api) == "first")
            assert first.election.leading()

    asyncio.run(test())


def test_a_lease_that_somebody_else_holds_is_not_taken_nor_released() -> None:
    async def test() -> None:
        api = FakeApi()
        async with serving(api) as url, replica(url, "first") as first:
            await until(lambda: any(each.method == "PUT" for each in api.requests), "a renewal")
            lease = api.request("GET", LEASE)[1]
            lease["spec"]["holderIdentity"] = "other"
            assert api.request("PUT", LEASE, lease)[0] == 200
            await first.end()
            assert holder(api) == "other"

    asyncio.run(test())


def test_without_an_election_it_always_leads() -> None:
    assert Always(lambda: None).leading()
    assert Always(lambda: None).require() > LEASE_SECONDS
