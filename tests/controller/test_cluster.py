"""Calls to an API server: what is asked again and for how long, errors that say what they are about, watches."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_api import FakeApi, Json, Request, serving
from kubernetes.aio.client import Configuration
from operating import NAMESPACE, World, policy, until

from audit_operator.controller.cluster import (
    EVENTS,
    NAMESPACES,
    POLICIES,
    ApiError,
    KubernetesCluster,
    ResourceType,
    UnreachableError,
)
from audit_operator.controller.election import NotLeadingError, while_leading
from audit_operator.controller.recorder import News, Recorder
from audit_operator.render.world import Identity

CONFIG_MAPS = ResourceType("v1", "ConfigMap", "configmaps")
DOCUMENT = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": NAMESPACE}, "data": {}}
STATUS = {
    "apiVersion": POLICIES.api_version,
    "kind": "AuditPolicy",
    "metadata": {"name": "base", "namespace": NAMESPACE},
    "status": {"rules": 1},
}


class Lease:
    """Of this replica, until a test ends it."""

    def __init__(self, left: float = math.inf) -> None:
        self.left = left

    def require(self) -> float:
        if self.left <= 0:
            raise NotLeadingError
        return self.left


def run(test: Callable[[FakeApi, KubernetesCluster, Lease], Awaitable[None]]) -> None:
    async def whole() -> None:
        api, lease = FakeApi(), Lease()
        async with serving(api) as url:
            configuration = Configuration()
            configuration.host = url
            async with KubernetesCluster(configuration, "one") as cluster:
                cluster.fence = lease.require
                await test(api, cluster, lease)

    asyncio.run(whole())


def turned_away(status: int = 429, after: str | None = "0.05") -> Callable[[Request], Any]:
    body = {"kind": "Status", "code": status, "reason": "TooManyRequests", "message": "please try again later"}
    headers = {} if after is None else {"Retry-After": after}
    return lambda request: (status, body, headers) if request.writes else None


async def writes_events(cluster: KubernetesCluster) -> None:
    await Recorder(cluster, "one").record(Identity("AuditPolicy", NAMESPACE, "base"), "uid", News("Normal", "R", "n"))


WRITES: dict[str, Callable[[KubernetesCluster], Awaitable[Any]]] = {
    "apply": lambda cluster: cluster.apply(CONFIG_MAPS, DOCUMENT),
    "status": lambda cluster: cluster.apply_status(POLICIES, STATUS),
    "create": lambda cluster: cluster.create(CONFIG_MAPS, DOCUMENT),
    "delete": lambda cluster: cluster.delete(
        CONFIG_MAPS, {"name": "x", "namespace": NAMESPACE, "uid": "u", "resourceVersion": "1"}
    ),
    "event": writes_events,
}


# --- who writes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [turned_away(429), turned_away(503)])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_write_that_was_turned_away_is_not_sent_again_by_a_replica_that_leads_no_more(
    write: Callable[[KubernetesCluster], Awaitable[Any]], answer: Callable[[Request], Any]
) -> None:
    async def test(api: FakeApi, cluster: KubernetesCluster, lease: Lease) -> None:
        api.answer = answer
        task = asyncio.ensure_future(write(cluster))
        await until(lambda: len(api.requests) >= 2, "it is sent again while it leads")
        lease.left = 0
        sent = len(api.requests)
        with pytest.raises(NotLeadingError):
            await task
        assert len(api.requests) <= sent + 1  # one may have been on its way

    run(test)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_replica_that_does_not_lead_sends_no_write(write: Callable[[KubernetesCluster], Awaitable[Any]]) -> None:
    async def test(api: FakeApi, cluster: KubernetesCluster, lease: Lease) -> None:
        lease.left = 0
        with pytest.raises(NotLeadingError):
            await write(cluster)
        assert api.requests == []

    run(test)


@pytest.mark.parametrize("hangs", [True, False])
def test_a_write_does_not_outlive_the_lease(hangs: bool) -> None:
    """Neither one that the API server does not answer, nor one that waits to be sent again."""

    async def test(api: FakeApi, cluster: KubernetesCluster, lease: Lease) -> None:
        lease.left = 0.2
        if hangs:

            async def gate(_: Request) -> None:
                await asyncio.Event().wait()

            api.gate = gate
        else:
            api.answer = turned_away(after="5")
        task = asyncio.ensure_future(cluster.apply(CONFIG_MAPS, DOCUMENT))
        await until(lambda: api.requests)
        lease.left = 0
        with pytest.raises(NotLeadingError):
            async with asyncio.timeout(4):  # far less than a request, or waiting for the next one, takes
                await task
        assert len(api.requests) == 1

    run(test)


def test_a_replica_that_renews_its_lease_may_take_longer_than_one() -> None:
    async def test() -> None:
        renewals = iter([0.01] * 5)

        async def work() -> str:
            await until(lambda: next(renewals, None) is None)
            return "done"

        asked: list[float] = []

        def fence() -> float:
            asked.append(0.01)
            return 0.01

        assert await while_leading(fence, work()) == "done"
        assert len(asked) > 1

    asyncio.run(test())


def test_work_ends_with_the_lease() -> None:
    async def test() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()
        lease = Lease(0.05)

        async def work() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        task = asyncio.ensure_future(while_leading(lease.require, work()))
        await begun.wait()
        lease.left = 0
        with pytest.raises(NotLeadingError):
            await task
        async with asyncio.timeout(10):
            await ended.wait()

    asyncio.run(test())


def test_what_work_raises_while_leading_is_raised() -> None:
    async def work() -> None:
        raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        asyncio.run(while_leading(lambda: math.inf, work()))


def test_questions_are_asked_by_every_replica() -> None:
    async def test(api: FakeApi, cluster: KubernetesCluster, lease: Lease) -> None:
        lease.left = 0
        World(api).apply(policy())
        assert await cluster.get(POLICIES, NAMESPACE, "base") is not None
        assert len((await cluster.list_metadata(NAMESPACES))[0]) == 3
        api.denied.add(("get", "secrets"))
        assert [await cluster.may("get", "", each) for each in ("configmaps", "secrets")] == [True, False]
        assert ("audit-operator.dev/v1alpha1", "AuditPolicy") in (await cluster.discover()).served

    run(test)


# --- an API server with no time --------------------------------------------------------------------------------------


def test_what_is_turned_away_is_sent_again_until_it_is_taken() -> None:
    async def test(api: FakeApi, cluster: KubernetesCluster, _: Lease) -> None:
        away = turned_away()
        api.answer = lambda request: away(request) if len(api.requests) < 4 else None
        await cluster.apply(CONFIG_MAPS, DOCUMENT)
        assert len(api.requests) == 4
        # Each time the same, and nothing is added to what is asked.
        assert all(each.query == api.requests[0].query for each in api.requests)

    run(test)


def test_it_gives_up_in_the_end_and_says_why() -> None:
    async def test(api: FakeApi, cluster: KubernetesCluster, _: Lease) -> None:
        api.answer = turned_away(after="0.001")
        with pytest.raises(ApiError, match=f"patch configmaps {NAMESPACE}/x: please try again later") as raised:
            await cluster.apply(CONFIG_MAPS, DOCUMENT)
        assert (raised.value.status, raised.value.reason) == (429, "TooManyRequests")
        assert 2 < len(api.requests) < 20

    run(test)


@pytest.mark.parametrize("status", [500, 503, 403, 409, 422])
def test_what_asks_for_no_patience_gets_none(status: int) -> None:
    async def test(api: FakeApi, cluster: KubernetesCluster, _: Lease) -> None:
        api.answer = turned_away(status, after=None)
        with pytest.raises(ApiError) as raised:
            await cluster.apply(CONFIG_MAPS, DOCUMENT)
        assert raised.value.status == status
        assert len(api.requests) == 1

    run(test)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_says_which_verb_on_what_in_the_api_servers_words() -> None:
    async def test(api: FakeApi, cluster: KubernetesCluster, _: Lease) -> None:
        api.denied.add(("patch", "auditpolicies/status"))
        World(api).apply(policy())
        with pytest.raises(
            ApiError, match=r"patch auditpolicies/status audit-system/base: auditpolicies.*cannot patch"
        ):
            await cluster.apply_status(POLICIES, STATUS)
        text = {"kind": "whatever"}
        api.answer = lambda _: (502, text, {})
        with pytest.raises(ApiError, match=r"get configmaps audit-system/x: 502"):
            await cluster.get(CONFIG_MAPS, NAMESPACE, "x")

    run(test)


def test_a_conflict_has_its_causes() -> None:
    async def test(api: FakeApi, cluster: KubernetesCluster, _: Lease) -> None:
        await cluster.apply(CONFIG_MAPS, DOCUMENT | {"data": {"a": "1"}})
        World(api).edit("ConfigMap", "x", {"data": {"a": "theirs"}})
        with pytest.raises(ApiError) as raised:
            await cluster.apply(CONFIG_MAPS, DOCUMENT | {"data": {"a": "1"}})
        assert [cause["field"] for cause in raised.value.causes] == [".data.a"]
        after = await cluster.apply(CONFIG_MAPS, DOCUMENT | {"data": {"a": "1"}}, force=True)
        assert after["data"] == {"a": "1"}

    run(test)


def test_an_api_server_that_is_not_there_is_unreachable() -> None:
    async def test() -> None:
        configuration = Configuration()
        configuration.host = "http://127.0.0.1:1"
        async with KubernetesCluster(configuration, "one") as cluster:
            with pytest.raises(UnreachableError, match="get configmaps"):
                await cluster.get(CONFIG_MAPS, NAMESPACE, "x")
            with pytest.raises(UnreachableError):
                await cluster.discover()

    asyncio.run(test())


def test_what_is_gone_is_none_and_deleted_already() -> None:
    async def test(api: FakeApi, cluster: KubernetesCluster, _: Lease) -> None:
        assert await cluster.get(CONFIG_MAPS, NAMESPACE, "x") is None
        assert await cluster.get_metadata(CONFIG_MAPS, NAMESPACE, "x") is None
        await WRITES["delete"](cluster)
        assert len(api.requests) == 3

    run(test)


def test_only_what_was_seen_is_deleted() -> None:
    async def test(api: FakeApi, cluster: KubernetesCluster, _: Lease) -> None:
        seen = (await cluster.apply(CONFIG_MAPS, DOCUMENT))["metadata"]
        World(api).edit("ConfigMap", "x", {"data": {"a": "theirs"}})
        with pytest.raises(ApiError) as raised:
            await cluster.delete(CONFIG_MAPS, seen)
        assert raised.value.status == 409
        await cluster.delete(CONFIG_MAPS, (await cluster.get(CONFIG_MAPS, NAMESPACE, "x") or {})["metadata"])
        assert World(api).child("ConfigMap", "x") is None

    run(test)


# --- lists and watches -----------------------------------------------------------------------------------------------


def test_a_watch_goes_on_from_a_list_and_shows_metadata_alone() -> None:
    async def test(api: FakeApi, cluster: KubernetesCluster, _: Lease) -> None:
        await cluster.apply(CONFIG_MAPS, DOCUMENT | {"data": {"a": "secret"}})
        items, version = await cluster.list_metadata(CONFIG_MAPS, NAMESPACE)
        assert [item["name"] for item in items] == ["x"]
        World(api).edit("ConfigMap", "x", {"data": {"a": "other"}})
        World(api).delete(DOCUMENT)
        seen = []
        async for event in cluster.watch_metadata(CONFIG_MAPS, version, NAMESPACE):
            if event.type != "BOOKMARK":
                seen.append((event.type, event.metadata["name"]))
                assert "data" not in event.metadata
            if len(seen) == 2:
                break
        assert seen == [("MODIFIED", "x"), ("DELETED", "x")]

    run(test)


def test_a_version_that_is_too_old_is_told_as_410_and_a_watch_that_breaks_just_ends() -> None:
    async def test(api: FakeApi, cluster: KubernetesCluster, _: Lease) -> None:
        _, version = await cluster.list_metadata(CONFIG_MAPS, NAMESPACE)
        await cluster.apply(CONFIG_MAPS, DOCUMENT)
        api.compact()
        with pytest.raises(ApiError) as raised:
            async for _event in cluster.watch_metadata(CONFIG_MAPS, version, NAMESPACE):
                pass
        assert raised.value.status == 410
        _, version = await cluster.list_metadata(CONFIG_MAPS, NAMESPACE)

        async def watch() -> list[str]:
            return [event.type async for event in cluster.watch_metadata(CONFIG_MAPS, version, NAMESPACE)]

        task = asyncio.ensure_future(watch())
        await until(lambda: any(each.query.get("resourceVersion") == version for each in api.requests))
        api.break_watches()
        assert set(await task) <= {"BOOKMARK"}

    run(test)


def test_what_the_cluster_serves_is_the_same_value_as_long_as_it_serves_the_same() -> None:
    async def test(api: FakeApi, cluster: KubernetesCluster, _: Lease) -> None:
        first = await cluster.discover()
        assert first.version == (1, 36)
        assert await cluster.discover() is first
        api.unserved.add("poddisruptionbudgets")
        second = await cluster.discover()
        assert first.served - second.served == {("policy/v1", "PodDisruptionBudget")}

    run(test)


# --- Events ----------------------------------------------------------------------------------------------------------


def events(api: FakeApi, namespace: str) -> list[Json]:
    found: list[Json] = api.request("GET", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")[1]["items"]
    return found


def test_an_event_is_where_people_look_and_fits() -> None:
    async def test(api: FakeApi, cluster: KubernetesCluster, _: Lease) -> None:
        recorder = Recorder(cluster, "x" * 200)
        await recorder.record(Identity("AuditBackend", "", "default"), "u", News("Normal", "Because", "short"))
        (event,) = events(api, "default")  # where Events of cluster-scoped objects live
        assert event["regarding"] == {
            "apiVersion": "audit-operator.dev/v1alpha1",
            "kind": "AuditBackend",
            "name": "default",
            "uid": "u",
        }
        note = "ü" * 1000  # two bytes each, and 1024 is the middle of none
        await recorder.record(
            Identity("AuditPolicy", NAMESPACE, "p" * 253), "u", News("Warning", "R" * 300, "a" + note)
        )
        (event,) = events(api, NAMESPACE)
        assert event["note"] == "a" + "ü" * 511
        assert len(event["reason"]) == 128
        assert len(event["metadata"]["name"]) <= 253
        assert event["regarding"]["namespace"] == NAMESPACE

    run(test)


def test_an_event_that_cannot_be_written_is_forgotten() -> None:
    async def test(api: FakeApi, cluster: KubernetesCluster, _: Lease) -> None:
        api.denied.add(("create", EVENTS.plural))
        await writes_events(cluster)
        api.answer = lambda _: (500, {"code": 500}, {})
        await writes_events(cluster)
        assert events(api, NAMESPACE) == []

    run(test)
