"""What there is: everything before the first pass, every change, and what went while nobody watched."""

import asyncio

from fake_api import FakeApi, Request
from operating import NAMESPACE, SETUP, Operator, World, operating, policy, run, until

POLICIES = "/apis/audit-operator.dev/v1alpha1/auditpolicies"


def known(operator: Operator) -> set[str]:
    return {each.identity.name for each in operator.reconciler.watching.resources()}


def namespace(name: str, **labels: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def test_no_pass_begins_before_everything_is_known() -> None:
    """One that begins earlier prunes what belongs to resources that it has not seen."""

    async def test() -> None:
        api = FakeApi()
        World(api).apply(*SETUP)
        held = asyncio.Event()

        async def gate(request: Request) -> None:
            # kopf's own list; the roll call asks for metadata.
            if request.path == POLICIES and request.method == "GET":
                await held.wait()

        api.gate = gate

        async def later() -> None:
            await until(lambda: any(each.path.endswith("/auditsinks") for each in api.requests))
            for _ in range(20):
                await asyncio.sleep(0.01)
            assert not any(each.writes for each in api.requests)
            held.set()

        task = asyncio.create_task(later())
        async with operating(api) as operator:
            await task
            assert known(operator) == {"default", "siem", "base"}
            await until(lambda: operator.said(SETUP[2])[0] == "True")

    asyncio.run(test())


def test_changes_deletions_and_labels_are_seen() -> None:
    async def test(operator: Operator) -> None:
        watching = operator.reconciler.watching
        operator.apply(policy("new"), namespace("shop", tier="prod"))
        await until(lambda: "new" in known(operator))
        await until(lambda: watching.namespaces().get("shop", {}).get("tier") == "prod")
        operator.apply(namespace("shop", tier="test"))
        await until(lambda: watching.namespaces()["shop"]["tier"] == "test")
        operator.delete(policy("new"), namespace("shop"))
        await until(lambda: "new" not in known(operator) and "shop" not in watching.namespaces())

    run(test, *SETUP)


def test_what_is_being_deleted_counts_no_more() -> None:
    async def test(operator: Operator) -> None:
        document = policy("going", "ghost")
        document["metadata"]["finalizers"] = ["example.com/waits"]
        operator.apply(document)
        await until(lambda: "ghost" in operator.policy_file())
        operator.delete(document)
        await until(lambda: "going" not in known(operator))
        assert operator.get(document)["metadata"]["deletionTimestamp"]

    run(test, *SETUP)


def test_what_was_deleted_while_its_watch_was_broken_is_noticed() -> None:
    async def test(operator: Operator) -> None:
        operator.apply(policy("gone", "ghost"), namespace("shop"))
        await until(lambda: "gone" in known(operator) and "shop" in operator.reconciler.watching.namespaces())
        operator.api.answer = lambda request: (503, {"code": 503}, {}) if request.query.get("watch") else None
        operator.api.break_watches()
        operator.delete(policy("gone"), namespace("shop"))
        operator.apply(policy("other", "bob"))
        operator.api.compact()  # so what happened meanwhile is never told
        operator.api.answer = lambda _: None
        await until(lambda: "other" in known(operator) and "gone" not in known(operator), seconds=30)
        await until(lambda: "shop" not in operator.reconciler.watching.namespaces(), seconds=30)
        await until(lambda: "ghost" not in operator.program())

    run(test, *SETUP)


def test_a_namesake_made_while_nobody_watched_is_another_resource() -> None:
    async def test(operator: Operator) -> None:
        await until(lambda: operator.said(SETUP[2])[0] == "True")
        (before,) = (each for each in operator.reconciler.watching.resources() if each.identity.name == "base")
        operator.api.answer = lambda request: (503, {"code": 503}, {}) if request.query.get("watch") else None
        operator.api.break_watches()
        operator.delete(SETUP[2])
        operator.apply(policy(user="bob", sinks=[{"name": "siem"}]))
        operator.api.compact()
        operator.api.answer = lambda _: None
        uid = operator.get(SETUP[2])["metadata"]["uid"]
        assert uid != before.uid

        def now() -> set[str]:
            return {each.uid for each in operator.reconciler.watching.resources() if each.identity.name == "base"}

        await until(lambda: now() == {uid}, seconds=30)
        await until(lambda: '"bob"' in operator.program() and '"alice"' not in operator.program())

    run(test, *SETUP)


def test_kopf_writes_nothing_into_resources() -> None:
    async def test(operator: Operator) -> None:
        await until(lambda: operator.said(SETUP[2])[0] == "True")
        await operator.quiet()
        for document in SETUP[:3]:
            metadata = operator.get(document)["metadata"]
            assert "finalizers" not in metadata
            assert not any("kopf" in name for name in metadata.get("annotations", {}))
        main = f"{POLICIES.replace('auditpolicies', f'namespaces/{NAMESPACE}/auditpolicies')}/base"
        assert not any(each.writes and each.path == main for each in operator.api.requests)

    run(test, *SETUP)
