"""What sinks refer to: of one namespace nothing keeps what another's sinks need from receivers."""

import asyncio
import base64
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

from audit_operator.controller.cluster import ApiError, Cluster, ResourceType
from audit_operator.controller.references import References
from audit_operator.render.program import Credential, Reference

ROOT = "audit-system"


class Secrets:
    """An API server that has Secrets and nothing else; ``denied``: namespaces whose it does not show."""

    def __init__(self, **names: Mapping[str, bytes]) -> None:
        self.denied: set[str] = set()
        self.asked: Counter[str] = Counter()
        self._objects: dict[tuple[str, str], dict[str, Any]] = {}
        self._version = 0
        self._news = asyncio.Condition()
        for name, data in names.items():
            self.put(*name.split("__"), **data)

    def put(self, namespace: str, name: str, **data: bytes) -> None:
        self._version += 1
        self._objects[namespace.replace("_", "-"), name] = {
            "kind": "Secret",
            "metadata": {"resourceVersion": str(self._version)},
            "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
        }

    async def seen(self, names: set[str]) -> None:
        """Until somebody has asked for all of them."""
        async with self._news:
            await self._news.wait_for(lambda: names <= self.asked.keys())

    async def get_metadata(self, of: ResourceType, namespace: str, name: str) -> Any:
        found = await self.get(of, namespace, name)
        return None if found is None else found["metadata"]

    async def get(self, of: ResourceType, namespace: str, name: str) -> Any:
        self.asked[f"{namespace}/{name}"] += 1
        async with self._news:
            self._news.notify_all()
        if namespace in self.denied:
            raise ApiError(f"get secrets {namespace}/{name}", 403, "Forbidden", "no", ())
        return self._objects.get((namespace, name))


def references(secrets: Secrets, wake: Callable[[], None] = lambda: None) -> References:
    return References(cast("Cluster", secrets), wake, ROOT)


def credential(namespace: str, name: str) -> Credential:
    return Credential("Secret", namespace, name, "k")


def test_a_namespace_that_shows_nothing_any_more_costs_the_others_nothing() -> None:
    async def test() -> None:
        secrets = Secrets(team_a__t={"k": b"theirs"}, audit_system__siem={"k": b"ours"})
        found = references(secrets)
        wanted = [credential("team-a", "t"), credential(ROOT, "siem")]
        await found.follow(each.reference for each in wanted)
        secrets.denied.add("team-a")
        secrets.put(ROOT, "siem", k=b"new")
        contents = await found.contents(wanted)
        assert contents.values == {wanted[1].file: b"new"}
        assert contents.unknown == {wanted[0].file}
        assert "Forbidden" in contents.failure or "no" in contents.failure

    asyncio.run(test())


def test_a_secret_that_grew_since_its_size_was_judged_is_judged_again_first() -> None:
    async def test() -> None:
        woken: list[str] = []
        secrets = Secrets(team_a__t={"k": b"small", "other": b""})
        found = references(secrets, lambda: woken.append("woken"))
        wanted = [credential("team-a", "t")]
        await found.follow(each.reference for each in wanted)
        secrets.put("team-a", "t", k=b"small", other=b"x" * 1000)
        assert (await found.contents(wanted)).values == {wanted[0].file: b"small"}  # what nobody refers to is no matter
        secrets.put("team-a", "t", k=b"x" * 1000)
        contents = await found.contents(wanted)
        assert (contents.values, contents.unknown) == ({}, {wanted[0].file})
        assert woken
        assert found.known() == {wanted[0].reference: {"k": 1000}}
        assert len((await found.contents(wanted)).values[wanted[0].file]) == 1000

    asyncio.run(test())


def test_a_value_that_could_not_be_read_is_asked_for_again() -> None:
    async def test() -> None:
        woken = asyncio.Event()
        secrets = Secrets(team_a__t={"k": b"x"})
        found = references(secrets, woken.set)
        wanted = [credential("team-a", "t")]
        await found.follow(each.reference for each in wanted)
        secrets.denied.add("team-a")
        assert (await found.contents(wanted)).unknown
        secrets.denied.clear()
        polling = asyncio.create_task(found.poll())
        await asyncio.wait_for(woken.wait(), 10)
        polling.cancel()
        assert (await found.contents(wanted)).values == {wanted[0].file: b"x"}

    asyncio.run(test())


def test_however_many_tenants_there_are_the_platforms_are_looked_at_apart() -> None:
    async def test() -> None:
        secrets = Secrets(zz__siem={"k": b"x"}, **{f"team{number}__t": {"k": b"x"} for number in range(300)})
        found = References(cast("Cluster", secrets), lambda: None, "zz")
        tenants = {Reference("Secret", f"team{number}", "t") for number in range(300)}
        await found.follow({Reference("Secret", "zz", "siem")} | tenants)
        secrets.asked.clear()
        polling = asyncio.create_task(found.poll())
        await asyncio.wait_for(secrets.seen({"zz/siem"}), 10)
        polling.cancel()
        assert len(secrets.asked) < 20

    asyncio.run(test())


def test_however_many_a_tenant_refers_to_the_platforms_and_others_are_looked_at_as_often() -> None:
    async def test() -> None:
        woken = asyncio.Event()
        many = {f"greedy__s{number}": {"k": b"x"} for number in range(300)}
        secrets = Secrets(audit_system__siem={"k": b"x"}, modest__t={"k": b"x"}, **many)
        found = references(secrets, woken.set)
        wanted = {Reference("Secret", ROOT, "siem"), Reference("Secret", "modest", "t")}
        wanted |= {Reference("Secret", "greedy", f"s{number}") for number in range(300)}
        await found.follow(wanted)
        secrets.asked.clear()
        polling = asyncio.create_task(found.poll())
        await asyncio.wait_for(secrets.seen({f"{ROOT}/siem", "modest/t"}), 10)
        polling.cancel()
        # Both had their turn before a handful of the other's had: a round of all takes 15 s.
        assert sum(count for name, count in secrets.asked.items() if name.startswith("greedy")) < 20

    asyncio.run(test())
