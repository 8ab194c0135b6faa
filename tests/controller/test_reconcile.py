"""A pass over everything: what it makes, repairs, removes, says and leaves alone, whatever happens in between.

A whole operator runs, against the API server of `fake_api.py`, which a real one vouches for (`contract.py`).
"""

import asyncio
import base64
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from fake_api import APPLY, FakeApi, Json, Request
from operating import (
    FOLDERS,
    NAMESPACE,
    RECEIVER_LABELS,
    SETUP,
    Leadership,
    Operator,
    World,
    backend,
    operating,
    policy,
    run,
    secret,
    until,
)

BACKEND, SINK, POLICY, SECRET = SETUP
CREATES = ("POST", "PATCH", "PUT", "DELETE")


async def ready(operator: Operator) -> None:
    await until(lambda: operator.said(POLICY)[0] == "True", "Ready")
    await operator.quiet()


def failing(verb: str, *parts: str, status: int = 500, reason: str = "InternalError") -> Callable[[Request], Any]:
    """Answers with an error what has ``verb`` and all ``parts`` in its path."""

    def answer(request: Request) -> tuple[int, Json, dict[str, str]] | None:
        if request.method != verb or not all(part in request.path for part in parts):
            return None
        body = {"kind": "Status", "status": "Failure", "reason": reason, "message": "no luck", "code": status}
        return status, body, {}

    return answer


# --- level-triggered -------------------------------------------------------------------------------------------------


def test_resources_become_objects_and_statuses() -> None:
    async def test(operator: Operator) -> None:
        await ready(operator)
        assert "alice" in operator.policy_file()
        assert '"siem"' in operator.program()
        assert operator.names("StatefulSet") == {"audit-receiver"}
        assert operator.said(BACKEND, "Applied") == ("True", "Applied")
        assert [operator.said(each)[0] for each in (SINK, POLICY)] == ["True", "True"]
        for document in (BACKEND, SINK, POLICY):
            assert "finalizers" not in operator.get(document)["metadata"]
        owners = (operator.child("StatefulSet", "audit-receiver") or {})["metadata"]["ownerReferences"]
        assert [each["kind"] for each in owners] == ["AuditBackend"]

    run(test, *SETUP)


def test_where_nothing_changed_nothing_is_written_and_next_to_nothing_is_read() -> None:
    async def test(operator: Operator) -> None:
        await ready(operator)
        before = len(operator.api.requests)
        for _ in range(3):
            await operator.passed()
        since = operator.api.requests[before:]
        assert operator.writes(before) == []
        # But for the operator's own keys, which are kept nowhere, and the metadata of what a sink refers to.
        own = ("audit-receiver-ca", "audit-receiver-tls", "audit-apiserver-client", "siem-token")
        assert {each.path for each in since} <= {f"{FOLDERS['Secret']}/{name}" for name in own}

    run(test, *SETUP)


def test_an_operator_that_starts_again_writes_nothing() -> None:
    async def test() -> None:
        api = FakeApi()
        World(api).apply(*SETUP)
        async with operating(api) as operator:
            await ready(operator)
        before = len(api.requests)
        async with operating(api) as operator:
            await operator.passed()
            assert operator.writes(before) == []

    asyncio.run(test())


def test_dying_at_any_write_it_converges_to_the_same() -> None:
    def outcome(world: World) -> tuple[Any, ...]:
        names = {kind: world.names(kind) for kind in FOLDERS}
        # Revisions of what API servers are to run are named by their content, and that has a CA of its own.
        names["ConfigMap"] = {name for name in names["ConfigMap"] if not name.startswith("audit-apiserver-")}
        return names, world.policy_file(), world.program(), [world.said(each) for each in SETUP[:3]]

    async def undisturbed() -> tuple[tuple[Any, ...], int]:
        api = FakeApi()
        World(api).apply(*SETUP)
        async with operating(api) as operator:
            await ready(operator)
            return outcome(operator), len(operator.writes())

    async def dying(at: int) -> tuple[Any, ...]:
        api = FakeApi()
        World(api).apply(*SETUP)
        writes = itertools.count(1)
        dead = asyncio.Event()

        async def gate(request: Request) -> None:
            if request.writes and (dead.is_set() or next(writes) > at):
                dead.set()
                await asyncio.Event().wait()  # it never comes back from this one

        async with operating(api) as operator:
            api.gate = gate
            await until(dead.is_set)
        api.gate = None
        async with operating(api) as operator:
            await ready(operator)
            return outcome(operator)

    wanted, writes = asyncio.run(undisturbed())
    for at in range(0, writes, 4):
        assert asyncio.run(dying(at)) == wanted, at


def test_many_changes_at_once_are_few_passes() -> None:
    async def test(operator: Operator) -> None:
        await ready(operator)
        before = len(operator.api.requests)
        operator.apply(*(policy(f"p{number}") for number in range(60)))
        await until(lambda: all(operator.said(policy(f"p{number}"))[0] == "True" for number in range(60)))
        program = f"{FOLDERS['ConfigMap']}/audit-receiver-program"
        accepted = [each for each in operator.writes(before) if "audit-operator-accepted" in each.path]
        assert len(accepted) <= 10
        assert len([each for each in operator.writes(before) if each.path == program]) <= 10

    run(test, *SETUP)


def test_namespace_labels_are_followed_and_never_change_what_api_servers_run() -> None:
    rule = {"level": "Request", "namespaceSelector": {"matchLabels": {"tier": "prod"}}}
    chosen = policy("prod", rules=[rule], sinks=[{"name": "siem"}])

    def shop(tier: str) -> Json:
        return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"tier": tier}}}

    async def test(operator: Operator) -> None:
        await ready(operator)
        before = operator.policy_file()
        operator.apply(shop("prod"))
        await until(lambda: '"shop"' in operator.program())
        operator.apply(shop("test"))
        await until(lambda: '"shop"' not in operator.program())
        assert operator.policy_file() == before

    run(test, *SETUP, shop("test"), chosen)


# --- drift, and whose objects they are -------------------------------------------------------------------------------


def test_drift_is_repaired_and_fields_of_others_stay() -> None:
    async def test(operator: Operator) -> None:
        await ready(operator)
        operator.edit("StatefulSet", "audit-receiver", {"spec": {"replicas": 0}})
        operator.edit("ConfigMap", "audit-apiserver", {"data": {"policy.yaml": "rules: []"}})
        operator.edit("Service", "audit-receiver", {"metadata": {"annotations": {"example.com/mine": "stays"}}})
        assert operator.api.request("DELETE", f"{FOLDERS['PodDisruptionBudget']}/audit-receiver")[0] == 200
        await until(lambda: "alice" in operator.policy_file())
        await until(lambda: operator.names("PodDisruptionBudget"))
        await until(lambda: (operator.child("StatefulSet", "audit-receiver") or {})["spec"]["replicas"] == 2)
        await operator.quiet()
        service = operator.child("Service", "audit-receiver") or {}
        assert service["metadata"]["annotations"]["example.com/mine"] == "stays"

    run(test, *SETUP)


@pytest.mark.parametrize("kind", ["ConfigMap", "StatefulSet", "NetworkPolicy"])
def test_an_object_that_somebody_deleted_comes_back_at_once(kind: str) -> None:
    name = "audit-apiserver" if kind == "ConfigMap" else "audit-receiver"

    async def test(operator: Operator) -> None:
        await ready(operator)
        await asyncio.sleep(0.3)  # nothing else is under way that would call for a pass
        assert operator.api.request("DELETE", f"{FOLDERS[kind]}/{name}")[0] == 200
        await until(lambda: name in operator.names(kind))

    run(test, *SETUP)


def test_drift_that_happened_while_nobody_looked_is_repaired() -> None:
    async def test() -> None:
        api = FakeApi()
        world = World(api)
        world.apply(*SETUP)
        async with operating(api) as operator:
            await ready(operator)
        world.edit("ConfigMap", "audit-apiserver", {"data": {"policy.yaml": "rules: []"}})
        async with operating(api) as operator:
            await until(lambda: "alice" in operator.policy_file())

    asyncio.run(test())


def test_a_service_whose_address_is_to_be_another_is_made_anew() -> None:
    """API servers are sent to the address that is written: one that the Service has not would lose their events."""

    async def test(operator: Operator) -> None:
        await ready(operator)
        assert (operator.child("Service", "audit-receiver") or {})["spec"]["clusterIP"] != "10.0.0.251"
        operator.apply(backend(receiver={"exposure": {"clusterIP": {"clusterIP": "10.0.0.251"}}}))
        await until(lambda: operator.said(BACKEND, "Applied")[0] == "True")
        assert (operator.child("Service", "audit-receiver") or {})["spec"]["clusterIP"] == "10.0.0.251"
        await operator.quiet()
        assert "10.0.0.251" in str((operator.child("ConfigMap", "audit-apiserver") or {})["data"])

    run(test, *SETUP)


def test_what_another_applier_owns_is_named_and_not_fought_for_and_the_rest_goes_on() -> None:
    async def test(operator: Operator) -> None:
        await ready(operator)
        scale = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "audit-receiver"}}
        path = f"{FOLDERS['StatefulSet']}/audit-receiver?fieldManager=argocd&force=true"
        assert operator.api.request("PATCH", path, scale | {"spec": {"replicas": 5}}, content=APPLY)[0] == 200
        await until(lambda: operator.said(BACKEND, "Applied") == ("False", "Conflict"))
        assert "argocd applies .spec.replicas too" in operator.message(BACKEND, "Applied")
        operator.apply(policy("other", "bob"))
        await until(lambda: "bob" in operator.policy_file())
        assert (operator.child("StatefulSet", "audit-receiver") or {})["spec"]["replicas"] == 5

    run(test, *SETUP)


def test_only_what_the_operator_made_is_pruned() -> None:
    stranger = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "stranger", "labels": RECEIVER_LABELS}}

    async def test(operator: Operator) -> None:
        await ready(operator)
        assert operator.api.request("POST", FOLDERS["ConfigMap"], stranger)[0] == 201
        operator.apply(backend(receiver={"storage": {"ephemeral": {"sizeLimit": "1Gi"}}}))
        await until(lambda: not operator.names("StatefulSet"))
        assert operator.names("Deployment") == {"audit-receiver"}
        assert "audit-receiver-pods" not in operator.names("Service")
        operator.apply(backend(webhook={"enabled": False}))
        await until(lambda: not operator.names("Deployment"))
        await operator.quiet()
        assert {"stranger", "audit-apiserver"} <= operator.names("ConfigMap")
        assert "audit-receiver-program" not in operator.names("ConfigMap")
        assert "siem-token" in operator.names("Secret")

    run(test, *SETUP)


def test_nothing_is_pruned_while_it_is_not_known_what_there_is_to_be() -> None:
    """Until a load balancer has an address nothing is published for API servers, and what they run stays."""

    async def test(operator: Operator) -> None:
        await ready(operator)
        before = operator.names("ConfigMap")
        operator.apply(backend(receiver={"exposure": {"loadBalancer": {}}}))
        await until(lambda: operator.said(BACKEND, "Applied") == ("False", "WaitingForAddress"))
        await operator.quiet()
        assert operator.names("ConfigMap") >= before
        address = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}}
        operator.edit("Service", "audit-receiver", address, "status")
        await until(lambda: operator.said(BACKEND, "Applied")[0] == "True")
        assert "192.0.2.7" in str((operator.child("ConfigMap", "audit-apiserver") or {})["data"])

    run(test, *SETUP)


def test_a_revision_that_somebody_else_made_is_made_right_and_an_own_one_is_left_as_it_is() -> None:
    """Its name follows from its content, but for the compressor: the next one may write the same in other bytes."""

    async def test() -> None:
        first = FakeApi()
        World(first).apply(*SETUP)
        async with operating(first) as operator:
            await ready(operator)
            (name,) = (each for each in operator.names("ConfigMap") if each.startswith("audit-receiver-program-"))
            wanted = operator.child("ConfigMap", name) or {}
        for manager, immutable in (("mallory", False), ("audit-operator", True)):
            api = FakeApi()
            World(api).apply(*SETUP)
            labels = wanted["metadata"]["labels"]
            other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}}
            other |= {"binaryData": {"program.json": "b3RoZXI="}, "immutable": immutable}
            path = f"{FOLDERS['ConfigMap']}/{name}"
            if manager == "mallory":
                assert api.request("POST", FOLDERS["ConfigMap"], other)[0] == 201
            else:
                assert api.request("PATCH", path, other, content=APPLY, fieldManager=manager)[0] == 200
            async with operating(api) as operator:
                await ready(operator)
                found = operator.child("ConfigMap", name) or {}
                assert (found["binaryData"] == wanted["binaryData"]) == (manager == "mallory")
                assert operator.said(BACKEND, "Applied")[0] == "True"

    asyncio.run(test())


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_one_object_that_cannot_be_made_stops_neither_the_others_nor_any_status() -> None:
    async def test(operator: Operator) -> None:
        operator.api.answer = failing("PATCH", "networkpolicies")
        operator.apply(*SETUP)
        await until(lambda: operator.said(BACKEND, "Applied") == ("False", "InternalError"))
        assert "NetworkPolicy audit-receiver: patch networkpolicies" in operator.message(BACKEND, "Applied")
        assert operator.said(POLICY)[0] == "True"  # it is in force without
        assert operator.said(SINK)[0] == "True"
        assert operator.names("StatefulSet") == {"audit-receiver"}
        operator.apply(policy("other", "bob"))
        await until(lambda: "bob" in operator.policy_file())
        await operator.passed("incomplete")
        await operator.passed("incomplete")
        operator.api.answer = lambda _: None  # it is tried again by itself
        await until(lambda: operator.said(BACKEND, "Applied")[0] == "True", "healed")
        assert operator.names("NetworkPolicy") == {"audit-receiver"}

    run(test)


def test_a_policy_is_not_said_to_be_published_where_what_has_it_could_not_be_made() -> None:
    async def test(operator: Operator) -> None:
        await ready(operator)
        operator.api.answer = failing("PATCH", "/configmaps/audit-receiver-program", status=403, reason="Forbidden")
        operator.apply(policy("other", "bob", sinks=[{"name": "siem"}]))
        await until(lambda: operator.said(policy("other"), "Published") == ("False", "NotApplied"))
        assert "bob" not in operator.program()
        assert "bob" in operator.policy_file()
        operator.api.answer = lambda _: None
        await until(lambda: operator.said(policy("other"))[0] == "True")

    run(test, *SETUP)


def test_one_status_that_cannot_be_written_stops_no_other() -> None:
    async def test(operator: Operator) -> None:
        operator.api.answer = failing("PATCH", "auditpolicies/bad/status", status=422, reason="Invalid")
        operator.apply(*SETUP, policy("bad"))
        await until(lambda: operator.said(POLICY)[0] == "True" and operator.said(SINK)[0] == "True")
        await operator.passed("incomplete")
        operator.apply(policy("later", "bob"))
        await until(lambda: operator.said(policy("later"))[0] == "True")
        assert "status" not in operator.get(policy("bad"))

    run(test)


@pytest.mark.parametrize("kind", ["secrets/audit-receiver-ca", "secrets/audit-receiver-tls", "services/audit-receiver"])
def test_one_object_that_cannot_be_read_is_named_in_every_status_and_nothing_is_made_anew_for_it(kind: str) -> None:
    """An API server that lost a key of its encryption answers like this for ever."""

    async def test() -> None:
        api = FakeApi()
        World(api).apply(*SETUP)
        async with operating(api) as operator:
            await ready(operator)
            ca = (operator.child("Secret", "audit-receiver-ca") or {})["data"]
        api.answer = failing("GET", kind)
        async with operating(api) as operator:
            operator.apply(policy("other", "bob"))
            await until(lambda: operator.said(BACKEND, "Applied") == ("False", "ReadFailed"))
            assert f"get {kind.replace('/', f' {NAMESPACE}/')}" in operator.message(BACKEND, "Applied")
            await until(lambda: operator.said(policy("other"), "Published") == ("False", "NotApplied"))
            assert (operator.child("Secret", "audit-receiver-ca") or {})["data"] == ca
            assert operator.names("StatefulSet") == {"audit-receiver"}
            api.answer = lambda _: None
            await until(lambda: "bob" in operator.policy_file() and operator.said(BACKEND, "Applied")[0] == "True")
            assert (operator.child("Secret", "audit-receiver-ca") or {})["data"] == ca

    asyncio.run(test())


def test_keys_that_may_not_be_seen_are_not_taken_to_be_missing() -> None:
    """A CA that is made anew in every pass lets nobody in, and is news each time."""

    def renewals(world: World) -> int:
        found = world.api.request("GET", "/apis/events.k8s.io/v1/namespaces/default/events")[1]["items"]
        return sum(each["reason"] == "CertificatesRenewed" for each in found)

    async def test() -> None:
        api = FakeApi()
        World(api).apply(*SETUP)
        async with operating(api) as operator:
            await ready(operator)
            published = operator.child("ConfigMap", "audit-apiserver")
            ca = operator.child("Secret", "audit-receiver-ca")
            before = renewals(operator)
        api.denied |= {("list", "secrets"), ("watch", "secrets")}
        async with operating(api) as operator:
            await until(lambda: operator.said(BACKEND, "Applied") == ("False", "Forbidden"))
            assert 'cannot list resource "secrets"' in operator.message(BACKEND, "Applied")
            await operator.passed()
            assert renewals(operator) == before > 0
            api.denied.clear()
            await until(lambda: operator.said(BACKEND, "Applied")[0] == "True", seconds=30)
            assert operator.child("Secret", "audit-receiver-ca") == ca
            assert operator.child("ConfigMap", "audit-apiserver") == published

    asyncio.run(test())


def test_a_kind_that_cannot_be_listed_keeps_no_pass_from_beginning() -> None:
    async def test() -> None:
        api = FakeApi()
        World(api).apply(*SETUP)
        api.answer = lambda request: (
            None if "watch" in request.query else failing("GET", "/poddisruptionbudgets")(request)
        )
        async with operating(api) as operator:
            await until(lambda: operator.said(BACKEND, "Applied")[0] == "False", seconds=30)
            assert "PodDisruptionBudget audit-receiver: list poddisruptionbudgets" in operator.message(
                BACKEND, "Applied"
            )
            assert "alice" in operator.policy_file()
            api.answer = lambda _: None
            await until(lambda: operator.said(BACKEND, "Applied")[0] == "True", seconds=30)

    asyncio.run(test())


def test_what_may_not_be_seen_for_a_while_is_not_forgotten() -> None:
    """The last good version of a resource is in a ConfigMap; so is the policy that API servers run."""
    bad = policy("broken", rules=[{"level": "Loud"}])

    async def test() -> None:
        api = FakeApi()
        World(api).apply(*SETUP, policy("broken", "carol"), policy("wide", "dora"))
        async with operating(api) as operator:
            await until(lambda: "carol" in operator.policy_file() and "dora" in operator.policy_file())
            operator.apply(bad)
            await until(lambda: operator.said(bad, "Compiled") == ("False", "Invalid"))
            operator.delete(policy("wide"))
            await operator.quiet()
            assert "dora" in operator.policy_file()  # a union does not narrow by itself
        api.denied |= {("list", "configmaps"), ("watch", "configmaps")}
        async with operating(api) as operator:
            await until(lambda: operator.said(BACKEND, "Applied") == ("False", "Forbidden"))
            api.denied.clear()
            await until(lambda: operator.said(BACKEND, "Applied")[0] == "True", seconds=30)
            await operator.quiet()
            assert "carol" in operator.policy_file()
            assert "dora" in operator.policy_file()
            assert "stays in force" in operator.message(bad, "Compiled")

    asyncio.run(test())


def test_receivers_stay_until_those_that_replace_them_are_made() -> None:
    async def test(operator: Operator) -> None:
        await ready(operator)
        operator.api.answer = failing("PATCH", "/statefulsets/", status=403, reason="Forbidden")
        operator.apply(backend())
        await until(lambda: operator.said(BACKEND, "Applied") == ("False", "Forbidden"))
        assert operator.names("Deployment") == {"audit-receiver"}
        operator.api.answer = lambda _: None
        await until(lambda: not operator.names("Deployment") and operator.names("StatefulSet"))

    run(test, backend(receiver={"storage": {"ephemeral": {"sizeLimit": "1Gi"}}}), *SETUP[1:])


def test_of_an_invalid_resource_the_last_good_version_stays_also_when_the_operator_starts_again() -> None:
    bad = policy(rules=[{"level": "Loud"}])

    async def test() -> None:
        api = FakeApi()
        World(api).apply(*SETUP)
        async with operating(api) as operator:
            await ready(operator)
            operator.apply(bad)
            await until(lambda: operator.said(bad, "Compiled") == ("False", "Invalid"))
            assert "generation 1 stays in force" in operator.message(bad, "Compiled")
        async with operating(api) as operator:
            operator.apply(policy("other", "bob"))
            await until(lambda: "bob" in operator.policy_file())
            assert "alice" in operator.policy_file()
            assert "generation 1 stays in force" in operator.message(bad, "Compiled")

    asyncio.run(test())


def test_without_a_backend_nothing_is_made_and_every_status_says_so() -> None:
    async def test(operator: Operator) -> None:
        await until(lambda: operator.said(POLICY) == ("False", "NoBackend"))
        assert operator.names("ConfigMap") == set()
        operator.apply(BACKEND)
        await ready(operator)
        operator.delete(BACKEND)
        operator.api.collect_garbage()
        await until(lambda: operator.said(POLICY) == ("False", "NoBackend"))
        await operator.quiet()
        assert operator.names("ConfigMap") == set()
        assert operator.names("StatefulSet") == set()

    run(test, SINK, POLICY, SECRET)


# --- statuses and Events ---------------------------------------------------------------------------------------------


def test_a_status_that_somebody_wrote_is_written_again() -> None:
    async def test(operator: Operator) -> None:
        await ready(operator)
        path = f"/apis/audit-operator.dev/v1alpha1/namespaces/{NAMESPACE}/auditpolicies/base/status"
        change = {"status": {"rules": 99}}
        status, _ = operator.api.request("PATCH", path, change, content="application/merge-patch+json")
        assert status == 200
        await until(lambda: operator.get(POLICY)["status"]["rules"] == 1)

    run(test, *SETUP)


def test_a_status_is_not_written_over_a_change_that_was_not_seen() -> None:
    """Nor upon a namesake of what was deleted: what is made anew has a version of its own."""

    async def test(operator: Operator) -> None:
        await ready(operator)
        path = "auditpolicies/base/status"
        namesakes: list[Json] = []

        async def gate(request: Request) -> None:
            if len(namesakes) == 1:
                namesakes.append(operator.get(POLICY))  # as it is once the write has been answered
            if request.method == "PATCH" and path in request.path and not namesakes:
                operator.delete(POLICY)
                operator.apply(policy(user="mallory"))
                namesakes.append(operator.get(POLICY))

        operator.api.gate = gate
        operator.apply(policy(user="bob", sinks=[{"name": "siem"}], omitStages=["RequestReceived"]), policy("second"))
        await until(lambda: len(namesakes) == 2)
        made, then = namesakes
        assert then["metadata"]["uid"] == made["metadata"]["uid"]
        assert "status" not in then
        await until(lambda: "mallory" in operator.policy_file() and operator.said(POLICY)[0] == "True")

    run(test, *SETUP)


def test_people_hear_when_they_must_act_and_when_that_is_over() -> None:
    def events(operator: Operator) -> list[tuple[str, str]]:
        _, found = operator.api.request("GET", f"/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events")
        return [(each["type"], each["reason"]) for each in found["items"] if each["regarding"]["name"] == "siem"]

    async def test(operator: Operator) -> None:
        await until(lambda: operator.said(SINK) == ("False", "SecretNotFound"))
        await until(lambda: events(operator) == [("Warning", "SecretNotFound")])
        operator.apply(SECRET)
        await until(lambda: sorted(events(operator)) == [("Normal", "Ready"), ("Warning", "SecretNotFound")])
        await operator.quiet()
        assert len(events(operator)) == 2

    run(test, *SETUP[:3])


def test_an_event_that_cannot_be_written_stops_nothing() -> None:
    async def test(operator: Operator) -> None:
        operator.api.denied.add(("create", "events"))
        operator.apply(*SETUP[:3])
        await until(lambda: operator.said(SINK) == ("False", "SecretNotFound"))
        await until(lambda: "alice" in operator.policy_file())
        await operator.passed("success")

    run(test)


def test_secrets_that_sinks_refer_to_are_followed() -> None:
    def copied(operator: Operator) -> set[bytes]:
        names = {name for name in operator.names("Secret") if name.startswith("audit-receiver-credentials")}
        found = [(operator.child("Secret", name) or {}).get("data", {}) for name in names]
        return {base64.b64decode(value) for data in found for value in data.values()}

    async def test(operator: Operator) -> None:
        await ready(operator)
        assert b"s3cret" in copied(operator)
        operator.apply(secret(token="rotated"))
        await until(lambda: b"rotated" in copied(operator))
        assert b"s3cret" not in copied(operator)
        operator.delete(SECRET)
        await until(lambda: operator.said(SINK, "Configured") == ("False", "SecretNotFound"))
        operator.apply(secret(other="x"))
        await until(lambda: operator.said(SINK, "Configured") == ("False", "KeyNotFound"))

    run(test, *SETUP)


# --- who writes ------------------------------------------------------------------------------------------------------


def test_a_replica_that_does_not_lead_writes_nothing_and_takes_over_what_it_has_seen() -> None:
    leadership = Leadership()
    leadership.leads = False

    async def test(operator: Operator) -> None:
        operator.apply(*SETUP)
        await until(lambda: len(operator.reconciler.watching.resources()) == 3)
        operator.reconciler.wake()
        await until(lambda: operator.reconciler.children.live() is not None)
        assert operator.writes() == []
        leadership.leads = True
        operator.reconciler.wake()
        await ready(operator)

    run(test, leadership=leadership)


@pytest.mark.parametrize("at", [1, 5, 15, 20])
def test_losing_the_lease_in_the_middle_of_a_pass_is_its_end(at: int) -> None:
    async def test(operator: Operator) -> None:
        writes = itertools.count(1)

        async def gate(request: Request) -> None:
            if request.writes and next(writes) == at:
                operator.leadership.leads = False

        operator.api.gate = gate
        operator.apply(*SETUP)
        await until(lambda: not operator.leadership.leads)
        await until(lambda: operator.reconciler.busy_since is None)
        # Statuses are written side by side: those on their way when it was lost may arrive.
        assert len(operator.writes()) <= at + 3
        before = len(operator.writes())
        operator.apply(policy("other", "bob"))
        operator.reconciler.wake()
        await until(lambda: len(operator.reconciler.watching.resources()) == 4)
        assert len(operator.writes()) == before
        operator.leadership.leads = True
        operator.reconciler.wake()
        await until(lambda: "bob" in operator.policy_file() and operator.said(POLICY)[0] == "True")

    run(test)


def test_what_the_other_leader_changed_meanwhile_is_seen_by_a_replica_that_leads_again() -> None:
    async def test() -> None:
        api = FakeApi()
        World(api).apply(*SETUP)
        async with operating(api) as one:
            await ready(one)
            one.leadership.leads = False
            one.reconciler.wake()
            async with operating(api) as two:
                two.apply(policy("wide", "dora"))
                await until(lambda: "dora" in two.policy_file())
                two.delete(policy("wide"))
                await two.quiet()
            one.leadership.leads = True
            await one.passed()
            await one.quiet()
            assert "dora" in one.policy_file()  # a union does not narrow by itself, whoever leads
            one.apply(policy("other", "bob"))
            await until(lambda: "bob" in one.policy_file())
            assert one.said(BACKEND, "Applied")[0] == "True"

    asyncio.run(test())
