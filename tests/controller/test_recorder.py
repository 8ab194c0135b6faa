"""Events say what is news; whoever makes news all day fills no etcd with it."""

import asyncio
from typing import Any, cast

from audit_operator.controller.cluster import Cluster, ResourceType
from audit_operator.controller.recorder import News, Recorder
from audit_operator.render.world import Identity


class Api:
    """Takes what is created."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []

    async def create(self, of: ResourceType, document: dict[str, Any]) -> dict[str, Any]:
        self.created.append(document)
        return document


def recorded(count: int, *namespaces: str, name: str = "p", note: str = "why") -> list[dict[str, Any]]:
    async def test() -> list[dict[str, Any]]:
        api = Api()
        recorder = Recorder(cast("Cluster", api), "one", "audit-system")
        for _ in range(count):
            for namespace in namespaces:
                await recorder.record(Identity("AuditPolicy", namespace, name), "uid", News("Warning", "Bad", note))
        return api.created

    return asyncio.run(test())


def test_a_tenant_that_makes_news_all_day_gets_some_events_and_the_platform_all() -> None:
    found = [event["metadata"]["namespace"] for event in recorded(500, "team-a", "team-b", "audit-system", "")]
    assert found.count("audit-system") == found.count("default") == 500
    assert 10 <= found.count("team-a") < 50
    assert found.count("team-b") == found.count("team-a")


def test_an_event_is_one_that_the_api_server_takes_whatever_it_is_about() -> None:
    name = ".".join(["x" * 63] * 3) + ".abcdefg." + "y" * 40
    assert name[199] == "."
    (event,) = recorded(1, "team-a", name=name, note="\u00e4" * 5000)
    assert ".." not in event["metadata"]["name"]
    assert len(event["metadata"]["name"]) <= 253
    assert len(event["note"].encode()) <= 1024
