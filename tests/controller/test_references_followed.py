"""What sinks refer to: whether it is there and changes, by metadata alone, one object at a time."""

import asyncio
from collections.abc import Awaitable, Callable

from fake_api import FakeApi, serving
from kubernetes.aio.client import Configuration
from operating import NAMESPACE, World, secret, until

from audit_operator.controller.cluster import Discovered, KubernetesCluster
from audit_operator.controller.reconcile import Reconciler, Settings
from audit_operator.render.program import Reference

TOKEN = Reference("Secret", NAMESPACE, "siem-token")
CA = Reference("ConfigMap", NAMESPACE, "ca")


class Followed(Reconciler):
    """References of a test, looked at all the time; no pass is made."""

    wakes = 0

    def __init__(self, api: FakeApi, cluster: KubernetesCluster, discovered: Discovered) -> None:
        super().__init__(cluster, Settings(NAMESPACE, "one", "image", "cluster.local"), discovered)
        self.api = api
        self.world = World(api)
        self.references.period = 0.05

    def wake(self) -> None:
        self.wakes += 1

    def keys(self) -> dict[Reference, set[str]]:
        """Of what exists."""
        return {reference: set(keys) for reference, keys in self.references.known().items()}

    def asked(self, name: str) -> int:
        """Requests about one object."""
        return sum(each.path.endswith(f"/{name}") for each in self.api.requests)


def run(test: Callable[[Followed], Awaitable[None]]) -> None:
    async def whole() -> None:
        api = FakeApi()
        async with serving(api) as url:
            configuration = Configuration()
            configuration.host = url
            async with KubernetesCluster(configuration, "one") as cluster:
                followed = Followed(api, cluster, await cluster.discover())
                task = asyncio.create_task(followed.references.poll())
                try:
                    await test(followed)
                finally:
                    task.cancel()

    asyncio.run(whole())


def config_map(**data: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca", "namespace": NAMESPACE}, "data": data}


def test_keys_of_what_exists_are_known_at_once() -> None:
    async def test(followed: Followed) -> None:
        followed.world.apply(secret(token="s3cret", other="x"), config_map(pem="…"))
        await followed.references.follow([TOKEN, CA, Reference("Secret", NAMESPACE, "gone")])
        assert followed.keys() == {TOKEN: {"token", "other"}, CA: {"pem"}}

    run(test)


def test_what_appears_changes_or_goes_wakes_a_pass() -> None:
    async def test(followed: Followed) -> None:
        await followed.references.follow([TOKEN])
        assert followed.keys() == {}
        versions = {followed.references.version([TOKEN])}
        for step in (
            lambda: followed.world.apply(secret(token="s3cret")),
            lambda: followed.world.apply(secret(token="other")),
            lambda: followed.world.delete(secret()),
        ):
            before = followed.wakes
            step()
            await until(lambda before=before: followed.wakes > before)  # type: ignore[misc]
            versions.add(followed.references.version([TOKEN]))
        assert followed.keys() == {}
        assert len(versions) == 3  # that it is not there again is where it began

    run(test)


def test_what_does_not_change_wakes_nobody_and_its_content_is_not_asked_for_again() -> None:
    async def test(followed: Followed) -> None:
        followed.world.apply(secret(token="s3cret"))
        await followed.references.follow([TOKEN])
        asked = followed.asked("siem-token")
        assert asked == 2  # metadata, and once the keys
        state = followed.references.version([TOKEN])
        await until(lambda: followed.asked("siem-token") > asked + 5)
        assert all("PartialObjectMetadata" in each.accept for each in followed.api.requests[-5:])
        assert followed.wakes == 0
        assert followed.references.version([TOKEN]) == state
        assert not any("watch" in each.query or each.path.endswith("/secrets") for each in followed.api.requests)

    run(test)


def test_what_may_not_be_read_is_told_in_the_api_servers_words_and_heals() -> None:
    async def test(followed: Followed) -> None:
        followed.world.apply(secret(token="s3cret"))
        followed.api.denied.add(("get", "secrets"))
        await followed.references.follow([TOKEN])
        assert 'cannot get resource "secrets"' in followed.references.denied[TOKEN]
        assert followed.keys() == {}
        followed.api.denied.clear()
        await until(lambda: followed.wakes)
        assert followed.references.denied == {}
        assert followed.keys() == {TOKEN: {"token"}}

    run(test)


def test_an_api_server_in_trouble_makes_nothing_forgotten() -> None:
    async def test(followed: Followed) -> None:
        followed.world.apply(secret(token="s3cret"))
        await followed.references.follow([TOKEN])
        followed.api.answer = lambda _: (500, {"code": 500, "message": "no luck"}, {})
        asked = followed.asked("siem-token")
        await until(lambda: followed.asked("siem-token") > asked + 2)
        assert followed.keys() == {TOKEN: {"token"}}
        assert followed.wakes == 0
        assert followed.references.denied == {}

    run(test)


def test_what_nobody_refers_to_any_more_is_not_looked_at() -> None:
    async def test(followed: Followed) -> None:
        followed.world.apply(secret(token="s3cret"), config_map(pem="…"))
        await followed.references.follow([TOKEN, CA])
        await followed.references.follow([CA])
        assert followed.keys().keys() == {CA}
        asked = followed.asked("siem-token")
        others = followed.asked("ca")
        await until(lambda: followed.asked("ca") > others + 5)
        assert followed.asked("siem-token") <= asked + 1  # one look may have been on its way
        assert followed.keys().keys() == {CA}

    run(test)
