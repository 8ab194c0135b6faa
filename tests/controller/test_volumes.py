"""Receivers' volumes: they grow as the AuditBackend says, nothing on them is lost, and what is in the way is said."""

import asyncio
import json
from typing import Any

import pytest
from fake_api import FakeApi, Json
from operating import FOLDERS, SETUP, Operator, World, backend, claim, operating, stored, until

from audit_operator.controller import observed
from audit_operator.render.plan import render
from audit_operator.render.volumes import claim_name, journal_limit, ordinal_of
from audit_operator.render.world import Resources, Volume
from audit_operator.render.world import World as Surroundings
from audit_operator.resources.auditbackend import AuditBackend
from audit_operator.resources.load import load_resource

BACKEND = SETUP[0]
GI = 1 << 30


def storage_class(name: str = "standard", *, grows: bool = True) -> Json:
    return {"metadata": {"name": name}, "provisioner": "example.com/x", "allowVolumeExpansion": grows}


def cluster(*documents: Json, grows: bool = True) -> FakeApi:
    api = FakeApi()
    api.request("POST", "/apis/storage.k8s.io/v1/storageclasses", storage_class(grows=grows))
    World(api).apply(*documents, *SETUP[1:])
    return api


def with_operator(test: Any, *documents: Json, grows: bool = True) -> None:
    async def whole() -> None:
        async with operating(cluster(*documents, grows=grows)) as operator:
            await until(lambda: operator.said(BACKEND, "Applied")[0] == "True")
            await operator.quiet()
            await test(operator)

    asyncio.run(whole())


def limit(operator: Operator) -> int:
    return int(json.loads(operator.program() or "{}").get("journalLimit", 0))


def template(operator: Operator) -> str:
    found = operator.child("StatefulSet", "audit-receiver")
    if found is None:
        return ""
    (only,) = found["spec"]["volumeClaimTemplates"]
    return str(only["spec"]["resources"]["requests"]["storage"])


def requested(operator: Operator, ordinal: int) -> str:
    found = operator.child("PersistentVolumeClaim", claim_name(ordinal)) or {}
    return str(found["spec"]["resources"]["requests"]["storage"])


async def resized(operator: Operator, document: Json) -> None:
    """Until it is in force."""
    operator.apply(document)
    await until(lambda: operator.said(BACKEND, "Applied") == ("False", "Replacing"))
    operator.api.collect_garbage()
    await until(lambda: operator.said(BACKEND, "Applied")[0] == "True")


def pod(operator: Operator, ordinal: int) -> None:
    """As the StatefulSet's controller makes it."""
    owner = operator.child("StatefulSet", "audit-receiver") or {}
    reference = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "audit-receiver"}
    metadata = {"name": f"audit-receiver-{ordinal}", "ownerReferences": [reference | {"uid": owner["metadata"]["uid"]}]}
    assert operator.api.request("POST", FOLDERS["Pod"], {"metadata": metadata})[0] == 201


# --- more room -------------------------------------------------------------------------------------------------------


def test_a_larger_size_reaches_volumes_and_template_and_no_pod_ends() -> None:
    async def test(operator: Operator) -> None:
        pod(operator, 0)
        pod(operator, 1)
        operator.apply(stored("20Gi"))
        await until(lambda: operator.said(BACKEND, "Applied") == ("False", "Replacing"))
        assert operator.said(BACKEND, "Reconciling") == ("True", "Replacing")
        assert operator.said(BACKEND, "Stalled") == ("", "")
        assert operator.said(SETUP[2], "Published")[0] == "True"  # nobody else is kept waiting
        operator.api.collect_garbage()
        await until(lambda: template(operator) == "20Gi")
        await until(lambda: operator.said(BACKEND, "Applied")[0] == "True")
        assert operator.names("Pod") == {"audit-receiver-0", "audit-receiver-1"}
        assert [requested(operator, each) for each in (0, 1)] == ["20Gi", "20Gi"]
        assert operator.said(BACKEND, "StorageReady") == ("False", "Resizing")
        await operator.quiet()

    with_operator(test, stored("10Gi"), claim(0), claim(1))


def test_the_journal_may_take_more_only_when_the_smallest_volume_is_larger() -> None:
    async def test(operator: Operator) -> None:
        assert limit(operator) == int(0.8 * 10 * GI)
        await resized(operator, stored("20Gi"))
        await until(lambda: requested(operator, 1) == "20Gi")
        await operator.quiet()
        assert limit(operator) == int(0.8 * 10 * GI)
        for ordinal in (0, 1):
            assert limit(operator) == int(0.8 * 10 * GI)
            path = f"{FOLDERS['PersistentVolumeClaim']}/{claim_name(ordinal)}/status"
            change = {"status": {"capacity": {"storage": "20Gi"}}}
            assert operator.api.request("PATCH", path, change, content="application/merge-patch+json")[0] == 200
            await operator.quiet()
        await until(lambda: limit(operator) == int(0.8 * 20 * GI))
        await until(lambda: operator.said(BACKEND, "StorageReady")[0] == "True")

    with_operator(test, stored("10Gi"), claim(0), claim(1))


def test_where_the_class_does_not_let_volumes_grow_it_is_said_and_the_journal_stays_within_them() -> None:
    async def test(operator: Operator) -> None:
        await resized(operator, stored("20Gi"))
        await until(lambda: operator.said(BACKEND, "StorageReady") == ("False", "CannotExpand"))
        said = operator.message(BACKEND, "StorageReady")
        assert "allowVolumeExpansion: true" in said
        assert "state-audit-receiver-0 has 10Gi" in said
        assert template(operator) == "20Gi"
        await operator.passed("success")  # nothing is left to do, so no pass is incomplete for ever
        assert limit(operator) == int(0.8 * 10 * GI)
        assert operator.said(SETUP[2], "Published")[0] == "True"
        path = "/apis/storage.k8s.io/v1/storageclasses/standard"
        operator.api.request("PATCH", path, {"allowVolumeExpansion": True}, content="application/merge-patch+json")
        await operator.passed()
        assert requested(operator, 0) == "20Gi"

    with_operator(test, stored("10Gi"), claim(0), claim(1), grows=False)


def test_a_volume_that_is_large_enough_is_not_asked_to_grow() -> None:
    """A disk that somebody made by hand is as large as it is, and cannot grow."""

    async def test(operator: Operator) -> None:
        await resized(operator, stored("20Gi"))
        await until(lambda: operator.said(BACKEND, "StorageReady")[0] == "True")
        assert requested(operator, 0) == "10Gi"
        assert limit(operator) == int(0.8 * 100 * GI)

    with_operator(test, stored("10Gi"), claim(0, capacity="100Gi"), claim(1, capacity="100Gi"), grows=False)


def test_volumes_do_not_shrink_and_the_size_to_write_is_said() -> None:
    async def test(operator: Operator) -> None:
        before = (operator.child("StatefulSet", "audit-receiver") or {})["metadata"]["uid"]
        operator.apply(stored("10Gi"))
        await until(lambda: operator.said(BACKEND, "StorageReady") == ("False", "CannotShrink"))
        assert "write size: 20Gi" in operator.message(BACKEND, "StorageReady")
        await operator.quiet()
        assert (operator.child("StatefulSet", "audit-receiver") or {})["metadata"]["uid"] == before
        assert (template(operator), limit(operator)) == ("20Gi", int(0.8 * 20 * GI))
        assert [requested(operator, each) for each in (0, 1)] == ["20Gi", "20Gi"]

    with_operator(test, stored("20Gi"), claim(0, "20Gi"), claim(1, "20Gi"))


def test_another_class_is_for_new_volumes_and_how_to_move_the_others_is_said() -> None:
    async def test(operator: Operator) -> None:
        await resized(operator, stored("10Gi", storageClassName="fast"))
        await until(lambda: operator.said(BACKEND, "StorageReady") == ("False", "StorageClassDiffers"))
        (only,) = (operator.child("StatefulSet", "audit-receiver") or {})["spec"]["volumeClaimTemplates"]
        assert only["spec"]["storageClassName"] == "fast"
        said = operator.message(BACKEND, "StorageReady")
        assert "state-audit-receiver-0 has standard" in said
        assert "delete pvc/state-audit-receiver-0 pod/audit-receiver-0" in said

    with_operator(test, stored("10Gi"), claim(0), claim(1))


def test_a_volume_that_is_not_bound_is_waited_for_and_not_asked_to_grow() -> None:
    async def test(operator: Operator) -> None:
        await resized(operator, stored("20Gi"))
        await until(lambda: operator.said(BACKEND, "StorageReady") == ("False", "WaitingForVolumes"))
        assert requested(operator, 1) == "10Gi"
        assert operator.said(BACKEND, "Stalled") == ("", "")

    waiting = claim(1)
    waiting["status"] = {"phase": "Pending", "capacity": None}
    with_operator(test, stored("10Gi"), claim(0, "10Gi", capacity="20Gi"), waiting)


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        ({"allocatedResourceStatuses": {"storage": "NodeResizeInfeasible"}}, "ResizeFailed", "NodeResizeInfeasible"),
        (
            {"conditions": [{"type": "ControllerResizeError", "status": "True", "message": "quota exceeded"}]},
            "ResizeFailed",
            "quota exceeded",
        ),
        (
            {"conditions": [{"type": "FileSystemResizePending", "status": "True", "message": "waiting for a pod"}]},
            "Resizing",
            "waiting for a pod",
        ),
    ],
)
def test_what_becomes_of_growing_is_said_in_the_clusters_words(status: Json, reason: str, words: str) -> None:
    found = observed.volume(growing(0, **status))
    assert found is not None
    condition = observed.storage_ready(spec("20Gi", 1), [found], "", {}, "audit-system")
    assert condition is not None
    assert condition.reason == reason
    assert words in condition.message
    # Once it is over, it is over.
    done = observed.volume(growing(0, capacity={"storage": "20Gi"}))
    assert done is not None
    condition = observed.storage_ready(spec("20Gi", 1), [done], "", {}, "audit-system")
    assert condition is not None
    assert condition.status == "True"


def growing(ordinal: int, **status: Any) -> Json:
    document = claim(ordinal, "20Gi", capacity="10Gi")
    document["metadata"]["uid"] = "uid"
    document["status"] |= status
    return document


# --- what is replaced ------------------------------------------------------------------------------------------------


def test_nothing_is_deleted_that_could_not_be_made_again() -> None:
    """A quota or a webhook has its say before: the receivers that run are worth more than a larger template."""

    async def test(operator: Operator) -> None:
        before = (operator.child("StatefulSet", "audit-receiver") or {})["metadata"]["uid"]

        def quota(request: Any) -> Any:
            trial = request.method == "PATCH" and "dryRun" in request.query and "/statefulsets/" in request.path
            body = {"kind": "Status", "code": 403, "reason": "Forbidden", "message": "exceeded quota"}
            return (403, body, {}) if trial else None

        operator.api.answer = quota
        operator.apply(stored("20Gi"))
        await until(lambda: operator.said(BACKEND, "Applied") == ("False", "Forbidden"))
        assert "exceeded quota" in operator.message(BACKEND, "Applied")
        assert (operator.child("StatefulSet", "audit-receiver") or {})["metadata"]["uid"] == before
        assert not any(each.method == "DELETE" for each in operator.api.requests)

    with_operator(test, stored("10Gi"), claim(0), claim(1))


def test_a_stateful_set_that_is_not_ours_is_never_deleted() -> None:
    async def test() -> None:
        api = cluster(stored("10Gi"))
        theirs = {
            "metadata": {"name": "audit-receiver"},
            "spec": {"replicas": 1, "serviceName": "theirs", "selector": {"matchLabels": {"app": "theirs"}}},
        }
        assert api.request("POST", FOLDERS["StatefulSet"], theirs)[0] == 201
        async with operating(api) as operator:
            await until(lambda: operator.said(BACKEND, "Applied") == ("False", "Invalid"))
            assert "updates to statefulset spec" in operator.message(BACKEND, "Applied")
            assert not any(each.method == "DELETE" for each in api.requests)

    asyncio.run(test())


def test_what_is_invalid_besides_is_said_and_nothing_is_replaced() -> None:
    async def test(operator: Operator) -> None:
        def invalid(request: Any) -> Any:
            if request.method != "PATCH" or not request.path.endswith("/statefulsets/audit-receiver"):
                return None
            causes = [
                {"reason": "FieldValueForbidden", "field": "spec", "message": "Forbidden: updates to …"},
                {"reason": "FieldValueInvalid", "field": "spec.template.spec.tolerations[0]", "message": "no"},
            ]
            body = {"kind": "Status", "code": 422, "reason": "Invalid", "message": "no", "details": {"causes": causes}}
            return 422, body, {}

        operator.api.answer = invalid
        operator.apply(stored("20Gi"))
        await until(lambda: operator.said(BACKEND, "Applied") == ("False", "Invalid"))
        assert not any(each.method == "DELETE" for each in operator.api.requests)

    with_operator(test, stored("10Gi"), claim(0), claim(1))


def test_an_operator_that_dies_while_a_stateful_set_is_replaced_goes_on_where_it_was() -> None:
    async def test() -> None:
        api = cluster(stored("10Gi"), claim(0), claim(1))
        async with operating(api) as operator:
            await until(lambda: template(operator) == "10Gi")
            operator.apply(stored("20Gi"))
            await until(lambda: operator.said(BACKEND, "Applied") == ("False", "Replacing"))
        async with operating(api) as operator:
            await operator.quiet()  # it waits, and writes nothing meanwhile
            assert operator.said(BACKEND, "Applied") == ("False", "Replacing")
            api.collect_garbage()
            await until(lambda: template(operator) == "20Gi")
            await until(lambda: operator.said(BACKEND, "Applied")[0] == "True")

    asyncio.run(test())


# --- what no receiver has any more -----------------------------------------------------------------------------------


def test_volumes_beyond_the_replicas_are_named_with_the_way_to_empty_them() -> None:
    async def test(operator: Operator) -> None:
        await until(lambda: operator.said(BACKEND, "StorageReady")[0] == "True")
        operator.apply(stored("10Gi", replicas=1))
        await until(lambda: operator.said(BACKEND, "StorageReady") == ("False", "VolumesLeftBehind"))
        said = operator.message(BACKEND, "StorageReady")
        assert "state-audit-receiver-1, state-audit-receiver-2" in said
        assert "spec.receiver.replicas: 3" in said
        assert "delete pvc state-audit-receiver-1 state-audit-receiver-2" in said
        assert operator.said(BACKEND)[0] == "False"
        operator.apply(stored("10Gi", replicas=3))
        await until(lambda: operator.said(BACKEND, "StorageReady")[0] == "True")
        operator.apply(stored("10Gi", replicas=1))
        await until(lambda: operator.said(BACKEND, "StorageReady") == ("False", "VolumesLeftBehind"))
        await operator.quiet()
        operator.delete(claim(1), claim(2))
        await until(lambda: operator.said(BACKEND, "StorageReady")[0] == "True")

    with_operator(test, stored("10Gi", replicas=3), claim(0), claim(1), claim(2))


@pytest.mark.parametrize(
    ("now", "back"),
    [
        ({"receiver": {"storage": {"ephemeral": {"sizeLimit": "1Gi"}}}}, "spec.receiver.storage.persistentVolumeClaim"),
        ({"webhook": {"enabled": False}}, "spec.webhook.enabled: true"),
    ],
)
def test_volumes_that_are_not_used_at_all_any_more_are_named_too(now: Json, back: str) -> None:
    async def test(operator: Operator) -> None:
        operator.apply(backend(**now))
        await until(lambda: operator.said(BACKEND, "StorageReady") == ("False", "VolumesLeftBehind"))
        assert back in operator.message(BACKEND, "StorageReady")
        assert operator.names("PersistentVolumeClaim") == {claim_name(0), claim_name(1)}

    with_operator(test, stored("10Gi"), claim(0), claim(1))


def test_claims_are_never_pruned_whoever_wrote_them_last() -> None:
    async def test(operator: Operator) -> None:
        await resized(operator, stored("20Gi"))
        await until(lambda: requested(operator, 1) == "20Gi")
        operator.apply(backend(webhook={"enabled": False}))
        await until(lambda: not operator.names("StatefulSet"))
        await operator.quiet()
        assert operator.names("PersistentVolumeClaim") == {claim_name(0), claim_name(1)}

    with_operator(test, stored("10Gi"), claim(0), claim(1))


def test_without_the_right_to_see_volumes_that_is_said_and_the_rest_goes_on() -> None:
    async def test() -> None:
        api = cluster(stored("10Gi"), claim(0))
        api.denied |= {("list", "persistentvolumeclaims"), ("watch", "persistentvolumeclaims")}
        async with operating(api) as operator:
            await until(lambda: operator.said(BACKEND, "StorageReady") == ("False", "VolumesUnknown"))
            assert "cannot list resource" in operator.message(BACKEND, "StorageReady")
            assert operator.said(BACKEND, "Applied")[0] == "True"
            api.denied.clear()
            await until(lambda: operator.said(BACKEND, "StorageReady")[1] != "VolumesUnknown")

    asyncio.run(test())


# --- how much a journal may take -------------------------------------------------------------------------------------


def spec(size: str, replicas: int = 2) -> Any:
    found = load_resource(stored(size, replicas))
    assert isinstance(found, AuditBackend)
    return found.spec


def volume(ordinal: int, requested: str, capacity: str = "") -> Volume:
    return Volume(name=claim_name(ordinal), uid="u", ordinal=ordinal, requested=requested, capacity=capacity)


@pytest.mark.parametrize(
    ("volumes", "least"),
    [
        ([], 10),  # offline, and before there are any
        ([volume(0, "10Gi", "10Gi"), volume(1, "10Gi", "10Gi")], 10),
        ([volume(0, "20Gi", "10Gi"), volume(1, "20Gi", "20Gi")], 10),
        ([volume(0, "10Gi", "100Gi"), volume(1, "10Gi", "50Gi")], 50),  # disks come in sizes of their own
        ([volume(0, "5Gi", "5Gi"), volume(1, "10Gi", "10Gi")], 5),
        ([volume(0, "20Gi", "20Gi")], 20),  # the other one will be as large as this one
        ([volume(0, "20Gi", "20Gi"), volume(1, "4Gi")], 4),
        ([volume(0, "10Gi", "10Gi"), volume(1, "10Gi", "10Gi"), volume(2, "1Gi", "1Gi")], 10),  # nobody's any more
        ([volume(0, "10Gi", "10737418240"), volume(1, "10Gi", "10Gi")], 10),
    ],
)
def test_a_journal_takes_no_more_than_its_part_of_the_smallest_volume(volumes: list[Volume], least: int) -> None:
    assert journal_limit(spec("10Gi"), volumes) == int(least * GI * 0.8)


def test_the_alert_that_a_journal_is_nearly_full_knows_the_real_size() -> None:
    document = stored("20Gi")
    document["spec"]["receiver"]["prometheusRule"] = {"enabled": True}
    found = load_resource(document)
    volumes = (volume(0, "20Gi", "10Gi"), volume(1, "20Gi", "10Gi"))
    plan = render(Resources.of([found]), Surroundings(volumes=volumes))
    (rule,) = (item for item in plan.objects if item["kind"] == "PrometheusRule")
    assert f"> {round(0.8 * int(0.8 * 10 * GI))}" in str(rule)


@pytest.mark.parametrize(
    ("name", "ordinal"),
    [
        ("state-audit-receiver-0", 0),
        ("state-audit-receiver-31", 31),
        ("state-audit-receiver-01", None),
        ("state-audit-receiver-", None),
        ("state-audit-receiver-x", None),
        ("other-audit-receiver-0", None),
        ("archive", None),
    ],
)
def test_only_receivers_journals_are_receivers_volumes(name: str, ordinal: int | None) -> None:
    assert ordinal_of(name) == ordinal


@pytest.mark.parametrize("change", [{"spec": {}}, {"spec": {"resources": {"requests": {"storage": "a lot"}}}}])
def test_a_claim_that_makes_no_sense_ends_no_pass(change: Json) -> None:
    document = claim(0) | change
    document["metadata"]["uid"] = "u"
    assert observed.volume(document) is None
