"""The operator against a real API server: what it makes, what it says, and what it survives."""

import base64
import contextlib
import itertools
import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import operators
from apiserver import Answer, ApiServer, ControlPlane, Json, control_plane
from audit_operator.controller.permissions import PERMISSIONS
from clusters import (
    CHILDREN,
    CORE,
    SETUP,
    Cluster,
    backend,
    install_crds,
    namespace,
    plain,
    policy,
    read_audit_log,
    secret,
    sink,
    writes,
)
from operators import NAMESPACE, Operator, condition, must, running, wait_for

# --- what it makes ---------------------------------------------------------------------------------------------------


def test_resources_become_outputs_and_ready_within_seconds(cluster: Cluster, operator: Operator) -> None:
    began = time.monotonic()
    cluster.apply(*SETUP)
    for document in SETUP[1:3]:
        wait_for(lambda document=document: cluster.reached(document), f"{document['kind']} is Ready", operator, 10)
    assert time.monotonic() - began < 10
    for type_ in ("Compiled", "Covered", "SinksResolved", "Published"):
        assert cluster.reached(SETUP[2], type_)
    assert "secrets" in cluster.policy_file()
    assert [each.name for each in cluster.program().policies] == ["base"]
    credentials = cluster.child("Secret", "audit-receiver-credentials")
    assert credentials is not None
    assert base64.b64decode(credentials["data"][f"secret_{NAMESPACE}_siem-token_token"]) == b"s3cret-value"
    for document in SETUP[:3]:
        found = cluster.get(document)
        assert found["status"]["observedGeneration"] == found["metadata"]["generation"]
        assert "finalizers" not in found["metadata"]
        assert not any("kopf" in name for name in found["metadata"].get("annotations", {}))


def test_the_live_operator_makes_what_render_makes(cluster: Cluster, operator: Operator) -> None:
    cluster.apply(*SETUP, policy("own", namespace="default", sinks=[]))
    wait_for(lambda: cluster.reached(SETUP[2]), "Ready", operator)
    live = cluster.children()
    for item in cluster.desired().objects:
        found = live[item["kind"], item["metadata"]["name"]]
        assert plain(found) == plain(item)
        owner = found["metadata"]["ownerReferences"]
        assert [each["kind"] for each in owner] == ["AuditBackend"]


def test_receivers_that_run_make_the_backend_ready(cluster: Cluster, operator: Operator) -> None:
    cluster.apply(backend())
    wait_for(lambda: cluster.reached(backend(), "ReceiverReady", "False"), "waits for receivers", operator)
    assert cluster.reached(backend(), "Reconciling", "True")
    assert not cluster.reached(backend(), "Stalled", "True")
    found = cluster.child("StatefulSet", "audit-receiver")
    assert found is not None
    found["status"] = {"replicas": 2, "readyReplicas": 2, "updatedReplicas": 2, "observedGeneration": 1}
    must(cluster.api.request("PUT", f"{cluster.path(found)}/status", found))
    wait_for(lambda: cluster.reached(backend()), "Ready", operator)


def test_resources_may_come_in_any_order_and_heal(cluster: Cluster, operator: Operator) -> None:
    orders = list(itertools.permutations(SETUP))
    random.Random(7).shuffle(orders)
    for order in orders[:6]:
        for document in order:
            cluster.apply(document)
            time.sleep(0.3)
        for document in SETUP[1:3]:
            wait_for(lambda document=document: cluster.reached(document), f"{document['kind']} is Ready", operator)
        cluster.delete(*SETUP)
        wait_for(lambda: not cluster.resources(), "all resources are gone")


def test_a_secret_that_changes_reaches_receivers_and_one_that_goes_is_said(
    cluster: Cluster, operator: Operator
) -> None:
    cluster.apply(*SETUP)
    wait_for(lambda: cluster.reached(SETUP[1]), "Ready", operator)
    key = f"secret_{NAMESPACE}_siem-token_token"

    def value() -> bytes:
        found = cluster.child("Secret", "audit-receiver-credentials") or {}
        return base64.b64decode(found.get("data", {}).get(key, ""))

    cluster.apply(secret("siem-token", token="rotated"))
    wait_for(lambda: value() == b"rotated", "the new value is there", operator)
    cluster.delete(secret("siem-token"))
    wait_for(lambda: cluster.reached(SETUP[1], "Configured", "False", "SecretNotFound"), "is said", operator)
    cluster.apply(secret("siem-token", other="x"))
    wait_for(lambda: cluster.reached(SETUP[1], "Configured", "False", "KeyNotFound"), "is said", operator)
    assert "rotated" not in operator.log.read_text()
    assert "s3cret-value" not in operator.log.read_text()


def test_namespace_selectors_follow_labels_live(cluster: Cluster, operator: Operator) -> None:
    rule = {"level": "Request", "namespaceSelector": {"matchLabels": {"tier": "prod"}}}
    cluster.apply(namespace("shop", tier="test"), *SETUP, policy("prod", "siem", rules=[rule]))
    wait_for(lambda: cluster.reached(SETUP[2]) and "prod" in str(cluster.program()), "Ready", operator)
    before = cluster.policy_file()
    assert "shop" not in str(cluster.program())
    cluster.apply(namespace("shop", tier="prod"))
    wait_for(lambda: "shop" in str(cluster.program()), "the rule holds in shop", operator)
    cluster.apply(namespace("shop", tier="test"))
    wait_for(lambda: "shop" not in str(cluster.program()), "the rule does not hold in shop", operator)
    assert cluster.policy_file() == before  # a label never restarts an API server


def test_what_is_no_longer_wanted_goes_and_what_is_not_ours_stays(cluster: Cluster, operator: Operator) -> None:
    cluster.apply(*SETUP)
    wait_for(lambda: cluster.reached(SETUP[2]), "Ready", operator)
    labels = cluster.children()["StatefulSet", "audit-receiver"]["metadata"]["labels"]
    stranger = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "stranger", "namespace": NAMESPACE, "labels": labels},
    }
    cluster.apply(stranger)
    ephemeral = {"storage": {"ephemeral": {"sizeLimit": "1Gi"}}}
    cluster.apply(backend(receiver=ephemeral))
    wait_for(lambda: cluster.child("StatefulSet", "audit-receiver") is None, "the StatefulSet is gone", operator)
    assert cluster.child("Deployment", "audit-receiver") is not None
    assert cluster.child("Service", "audit-receiver-pods") is None
    cluster.apply(backend(webhook={"enabled": False}))
    wait_for(lambda: cluster.child("Deployment", "audit-receiver") is None, "the receivers are gone", operator)
    wait_for(lambda: cluster.child("Secret", "audit-receiver-credentials") is None, "credentials are gone", operator)
    assert cluster.child("ConfigMap", "audit-apiserver") is not None
    assert cluster.child("ConfigMap", "stranger") is not None
    cluster.delete(stranger)


def test_the_last_ten_revisions_stay(cluster: Cluster, operator: Operator) -> None:
    cluster.apply(backend(), policy("base"))
    wait_for(lambda: cluster.reached(policy("base")), "Ready", operator)

    def revisions() -> list[str]:
        selector = "audit-operator.dev%2Frevision-of%3Dapiserver"
        found = must(cluster.api.request("GET", f"{CORE}/configmaps?labelSelector={selector}"))["items"]
        assert all(item["immutable"] for item in found)
        return [item["metadata"]["name"] for item in found]

    for number in range(14):
        rules = [{"level": "Metadata", "users": [f"user-{number}"]}]
        cluster.apply(policy("base", rules=rules))
        wait_for(lambda number=number: f"user-{number}" in cluster.policy_file(), f"{number} is published", operator)
    current = cluster.get(backend())["status"]["apiServerRevision"]
    wait_for(lambda: len(revisions()) == 10 and current in revisions(), "ten are kept", operator)


def test_a_volume_is_asked_to_grow_and_how_it_fares_is_said(cluster: Cluster, operator: Operator) -> None:
    """`test_volumes.py` has the rest, with controllers that make volumes."""
    growing = {"metadata": {"name": "growing"}, "provisioner": "example.com/none", "allowVolumeExpansion": True}
    growing |= {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass"}
    must(cluster.api.apply("/apis/storage.k8s.io/v1/storageclasses/growing", growing))
    cluster.apply(*SETUP)
    labels = wait_for(lambda: cluster.child("StatefulSet", "audit-receiver"), "StatefulSet", operator)["metadata"][
        "labels"
    ]
    path = f"{CORE}/persistentvolumeclaims/state-audit-receiver-0"
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}}
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "state-audit-receiver-0", "namespace": NAMESPACE, "labels": labels},
        "spec": spec | {"storageClassName": "growing"},
    }
    must(cluster.api.apply(path, claim))
    try:
        bound = {"status": {"phase": "Bound", "capacity": {"storage": "5Gi"}, "accessModes": ["ReadWriteOnce"]}}
        must(cluster.api.request("PATCH", f"{path}/status", bound, content="application/merge-patch+json"))
        wait_for(lambda: cluster.reached(backend(), "StorageReady", "False", "Resizing"), "it is said", operator)
        found = must(cluster.api.request("GET", path))
        assert found["spec"]["resources"]["requests"]["storage"] == "10Gi"
        assert cluster.program().journal_limit == int(0.8 * (5 << 30))
    finally:
        release = {"metadata": {"finalizers": None}}
        must(cluster.api.request("PATCH", path, release, content="application/merge-patch+json"))
        must(cluster.api.request("DELETE", path))


# --- what it repairs -------------------------------------------------------------------------------------------------


def test_drift_is_repaired_and_foreign_fields_survive(cluster: Cluster, operator: Operator) -> None:
    cluster.apply(*SETUP)
    wait_for(lambda: cluster.reached(SETUP[2]), "Ready", operator)
    before = {key: plain(item) for key, item in cluster.children().items()}

    def merge(kind: str, name: str, change: Json) -> None:
        path = f"{CHILDREN[kind]}/{name}?fieldManager=kubectl-edit"
        must(cluster.api.request("PATCH", path, change, content="application/merge-patch+json"))

    merge("ConfigMap", "audit-apiserver", {"data": {"policy.yaml": "rules: []"}})
    merge("StatefulSet", "audit-receiver", {"spec": {"replicas": 0}})
    merge("Service", "audit-receiver", {"metadata": {"annotations": {"example.com/mine": "stays"}}})
    merge("NetworkPolicy", "audit-receiver", {"metadata": {"labels": {"app.kubernetes.io/component": "x"}}})
    merge("Secret", "audit-receiver-credentials", {"data": {f"secret_{NAMESPACE}_siem-token_token": "AAAA"}})
    for kind, name in (("PodDisruptionBudget", "audit-receiver"), ("ConfigMap", "audit-receiver-program")):
        assert cluster.api.request("DELETE", f"{CHILDREN[kind]}/{name}").ok
    wait_for(
        lambda: {key: plain(item) for key, item in cluster.children().items()} == before, "all is repaired", operator
    )
    service = cluster.child("Service", "audit-receiver")
    assert service is not None
    assert service["metadata"]["annotations"]["example.com/mine"] == "stays"
    assert operator.metric("audit_operator_repairs_total") >= 4


def test_what_another_applier_owns_is_reported_and_not_fought_for(cluster: Cluster, operator: Operator) -> None:
    cluster.apply(*SETUP)
    wait_for(lambda: cluster.reached(SETUP[2]), "Ready", operator)
    scale = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "audit-receiver"}}
    path = f"{CHILDREN['StatefulSet']}/audit-receiver?fieldManager=argocd&force=true"
    must(cluster.api.request("PATCH", path, scale | {"spec": {"replicas": 5}}, content="application/apply-patch+yaml"))
    wait_for(lambda: cluster.reached(backend(), "Applied", "False", "Conflict"), "the conflict is said", operator)
    said = condition(cluster.get(backend()), "Applied")["message"]
    assert "argocd" in said
    assert "replicas" in said
    time.sleep(3)
    found = cluster.child("StatefulSet", "audit-receiver")
    assert found is not None
    assert found["spec"]["replicas"] == 5
    # The others go on.
    cluster.apply(policy("other", rules=[{"level": "Metadata", "users": ["somebody"]}]))
    wait_for(lambda: "somebody" in cluster.policy_file(), "the policy is published", operator)
    assert cluster.api.request("DELETE", f"{CHILDREN['StatefulSet']}/audit-receiver").ok
    wait_for(lambda: cluster.reached(backend(), "Applied", "True"), "healed", operator, 90)


def test_a_status_that_somebody_wrote_is_written_again(cluster: Cluster, operator: Operator) -> None:
    cluster.apply(*SETUP)
    wait_for(lambda: cluster.reached(SETUP[2]), "Ready", operator)
    times = {each["type"]: each["lastTransitionTime"] for each in cluster.get(SETUP[2])["status"]["conditions"]}
    path = f"{cluster.path(SETUP[2])}/status"
    must(cluster.api.request("PATCH", path, {"status": {"rules": 99}}, content="application/merge-patch+json"))
    wait_for(lambda: cluster.get(SETUP[2])["status"]["rules"] == 1, "written again", operator)
    after = {each["type"]: each["lastTransitionTime"] for each in cluster.get(SETUP[2])["status"]["conditions"]}
    assert after == times


# --- silence ---------------------------------------------------------------------------------------------------------


def test_in_steady_state_nothing_is_written(cluster: Cluster, operator: Operator, audit_log: Path) -> None:
    cluster.apply(*SETUP, *(policy(f"p{number}", "siem") for number in range(20)))
    wait_for(lambda: all(cluster.reached(policy(f"p{number}")) for number in range(20)), "Ready", operator)
    time.sleep(3)
    since = len(audit_log.read_text().splitlines())
    time.sleep(15)
    assert writes(read_audit_log(audit_log, since)) == []


def test_a_restart_changes_nothing(cluster: Cluster, plane: ControlPlane, token: str, audit_log: Path) -> None:
    with running(plane, token, "before") as operator:
        cluster.apply(*SETUP)
        wait_for(lambda: cluster.reached(SETUP[2]), "Ready", operator)
        time.sleep(2)
    versions = {key: item["metadata"]["resourceVersion"] for key, item in cluster.children().items()}
    statuses = [item["metadata"]["resourceVersion"] for item in cluster.resources()]
    since = len(audit_log.read_text().splitlines())
    with running(plane, token, "after") as operator:
        wait_for(lambda: operator.metric("audit_operator_reconciles_total") >= 1, "a pass", operator)
        time.sleep(2)
        assert writes(read_audit_log(audit_log, since)) == []
    assert {key: item["metadata"]["resourceVersion"] for key, item in cluster.children().items()} == versions
    assert [item["metadata"]["resourceVersion"] for item in cluster.resources()] == statuses


# --- bad resources ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def lenient(api: ApiServer, plural: str) -> Iterator[None]:
    """The CRD of an older time, which lets anything through."""
    url = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.audit-operator.dev"
    strict = must(api.request("GET", url))
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    loose = json.loads(json.dumps(strict))
    loose["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = anything
    must(api.request("PUT", url, loose))
    time.sleep(2)
    try:
        yield
    finally:
        strict["metadata"]["resourceVersion"] = must(api.request("GET", url))["metadata"]["resourceVersion"]
        must(api.request("PUT", url, strict))


def test_of_an_invalid_resource_the_last_good_version_stays_in_force(
    cluster: Cluster, plane: ControlPlane, token: str
) -> None:
    bad = policy("base", "siem", rules=[{"level": "Loud"}])
    with lenient(cluster.api, "auditpolicies"):
        with running(plane, token, "one") as operator:
            cluster.apply(*SETUP)
            wait_for(lambda: cluster.reached(SETUP[2]), "Ready", operator)
            before = cluster.program()
            cluster.apply(bad)
            wait_for(lambda: cluster.reached(bad, "Compiled", "False", "Invalid"), "is said", operator)
            said = condition(cluster.get(bad), "Compiled")["message"]
            assert "spec.rules[0].level" in said
            assert "generation 1 stays in force" in said
            assert cluster.program() == before
            cluster.apply(policy("other", "siem", rules=[{"level": "Metadata", "users": ["somebody"]}]))
            wait_for(lambda: "somebody" in cluster.policy_file(), "the others go on", operator)
        with running(plane, token, "two") as operator:
            time.sleep(5)
            assert {each.name for each in cluster.program().policies} == {"base", "other"}
            assert cluster.reached(bad, "Compiled", "False", "Invalid")
            cluster.apply(SETUP[2])
            wait_for(lambda: cluster.reached(SETUP[2]), "Ready again", operator)


def test_without_a_backend_everything_says_so_and_nothing_is_made(cluster: Cluster, operator: Operator) -> None:
    cluster.apply(sink(), policy("base", "siem"))
    wait_for(lambda: cluster.reached(policy("base"), "Ready", "False", "NoBackend"), "is said", operator)
    assert cluster.children() == {}
    assert cluster.reached(policy("base"), "Stalled", "True")


@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
def test_a_deleted_backend_takes_everything_along_and_nothing_comes_back(
    cluster: Cluster, operator: Operator, plane: ControlPlane, propagation: str
) -> None:
    """Foreground is how Argo CD deletes: what is owned goes first, while the AuditBackend is still there."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(plane.controller_manager())
        except LookupError as missing:
            pytest.skip(str(missing))
        cluster.apply(*SETUP)
        wait_for(lambda: cluster.reached(SETUP[2]), "Ready", operator)
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        must(cluster.api.request("DELETE", cluster.path(SETUP[0]), options))
        wait_for(lambda: not cluster.children(), "all are gone", operator)
        time.sleep(3)
        assert cluster.children() == {}
        assert cluster.reached(SETUP[2], "Ready", "False", "NoBackend")


# --- what it survives ------------------------------------------------------------------------------------------------


def converged(cluster: Cluster) -> bool:
    """Whether the cluster holds exactly what rendering makes of the resources, and every status is current."""
    plan = cluster.desired()
    live = cluster.children()
    for item in plan.objects:
        found = live.get((item["kind"], item["metadata"]["name"]))
        # A union may be wider than needed for a while; what is rendered here knows nothing of the one in force.
        if found is None or (plain(found) != plain(item) and "apiserver" not in item["metadata"]["name"]):
            return False
    return all(
        item.get("status", {}).get("observedGeneration") == item["metadata"]["generation"]
        for item in cluster.resources()
    )


def test_killed_at_random_moments_during_churn_it_converges_to_the_same_objects(
    cluster: Cluster, plane: ControlPlane, token: str
) -> None:
    chance = random.Random(20)
    cluster.apply(*SETUP)
    names = [f"p{number}" for number in range(12)]
    with running(plane, token, "survivor", "--no-leader-election") as operator:
        for _ in range(20):
            until = time.monotonic() + chance.uniform(0.05, 1.5)
            while time.monotonic() < until:
                name = chance.choice(names)
                if chance.random() < 0.3:
                    cluster.delete(policy(name))
                else:
                    users = [f"user-{chance.randrange(50)}"]
                    cluster.apply(policy(name, "siem", rules=[{"level": "Metadata", "users": users}]))
            operator.kill()
            operator.start()
        wait_for(lambda: converged(cluster), "converged", operator, 60)


def test_it_survives_an_api_server_that_goes_away(cluster: Cluster, operator: Operator, plane: ControlPlane) -> None:
    cluster.apply(*SETUP)
    wait_for(lambda: cluster.reached(SETUP[2]), "Ready", operator)
    plane.stop()
    time.sleep(4)
    plane.start()
    cluster.apply(policy("later", "siem", rules=[{"level": "Metadata", "users": ["late"]}]))
    wait_for(lambda: "late" in cluster.policy_file(), "the change is published", operator, 90)
    assert operator.process.poll() is None


def test_what_was_deleted_while_its_watch_was_expired_is_noticed(
    cluster: Cluster, operator: Operator, plane: ControlPlane
) -> None:
    cluster.apply(*SETUP, policy("gone", "siem", rules=[{"level": "Metadata", "users": ["ghost"]}]))
    wait_for(lambda: "ghost" in str(cluster.program()), "Ready", operator)
    operator.process.send_signal(signal.SIGSTOP)
    cluster.delete(policy("gone"))
    plane.stop()
    plane.start()  # its watch cache begins now: the operator's version is too old
    cluster.apply(policy("new", "siem", rules=[{"level": "Metadata", "users": ["fresh"]}]))
    operator.process.send_signal(signal.SIGCONT)
    wait_for(lambda: "fresh" in str(cluster.program()), "the new one is in force", operator, 90)
    wait_for(lambda: "ghost" not in str(cluster.program()), "the deleted one is not", operator, 90)


def test_a_missing_permission_is_named_and_heals(cluster: Cluster, plane: ControlPlane, token: str) -> None:
    without = tuple(each for each in PERMISSIONS if each.resource != "statefulsets")
    operators.grant(plane.api, without)
    try:
        with running(plane, token, "one") as operator:
            cluster.apply(*SETUP)
            wait_for(lambda: cluster.reached(backend(), "Applied", "False", "Forbidden"), "it is said", operator)
            said = condition(cluster.get(backend()), "Applied")["message"]
            assert 'cannot list resource "statefulsets" in API group "apps"' in said
            assert cluster.reached(SETUP[2], "Published", "False", "NotApplied")
            assert cluster.child("Service", "audit-receiver") is not None  # the others go on
            operators.grant(plane.api, PERMISSIONS)
            wait_for(lambda: cluster.reached(SETUP[2]), "Ready once it is granted", operator, 90)
    finally:
        operators.grant(plane.api, PERMISSIONS)


def test_without_the_right_to_see_resources_it_says_which_and_waits(
    cluster: Cluster, plane: ControlPlane, token: str
) -> None:
    operators.grant(plane.api, tuple(each for each in PERMISSIONS if each.resource != "auditsinks"))
    operator = Operator(plane, token, "blind")
    try:
        wait_for(lambda: "list, watch auditsinks" in operator.get("/readyz")[1], "it says what is missing", operator)
        assert operator.get("/livez")[0] == 200
        operators.grant(plane.api, PERMISSIONS)
        wait_for(lambda: operator.get("/readyz")[0] == 200, "it begins", operator)
    finally:
        operators.grant(plane.api, PERMISSIONS)
        operator.terminate()


# --- two of them -----------------------------------------------------------------------------------------------------


def test_it_is_ready_when_it_has_read_everything_and_stays_so(
    cluster: Cluster, plane: ControlPlane, token: str
) -> None:
    starting = Operator(plane, token, "starting")
    try:
        answers = []
        until = time.monotonic() + 30
        while answers.count(200) < 500 and time.monotonic() < until:
            answers.append(starting.get("/readyz")[0])
        assert 503 in answers
        assert answers.count(200) == 500
        assert set(answers[answers.index(200) :]) == {200}
    finally:
        starting.terminate()


def writer(event: Json) -> str:
    return str(event["userAgent"].partition("(")[2].rstrip(")"))


def test_a_killed_leader_is_replaced_within_twenty_seconds(cluster: Cluster, plane: ControlPlane, token: str) -> None:
    cluster.apply(*SETUP)
    with running(plane, token, "first") as first:
        wait_for(lambda: cluster.reached(SETUP[2]), "Ready", first)
        with running(plane, token, "second") as second:
            assert first.metric("audit_operator_leader") == 1
            first.kill()
            began = time.monotonic()
            cluster.apply(policy("next", "siem", rules=[{"level": "Metadata", "users": ["heir"]}]))
            wait_for(lambda: "heir" in cluster.policy_file(), "the second one writes", second, 25)
            assert time.monotonic() - began < 20


def test_a_leader_that_ends_hands_over_at_once(cluster: Cluster, plane: ControlPlane, token: str) -> None:
    cluster.apply(*SETUP)
    with running(plane, token, "first") as first:
        wait_for(lambda: cluster.reached(SETUP[2]), "Ready", first)
        with running(plane, token, "second") as second:
            assert first.terminate() == 0
            began = time.monotonic()
            cluster.apply(policy("next", "siem", rules=[{"level": "Metadata", "users": ["heir"]}]))
            wait_for(lambda: "heir" in cluster.policy_file(), "the second one writes", second, 25)
            assert time.monotonic() - began < 8


def test_a_leader_that_was_frozen_writes_nothing_after_another_took_over(
    cluster: Cluster, plane: ControlPlane, token: str, audit_log: Path
) -> None:
    cluster.apply(*SETUP)
    with running(plane, token, "frozen") as frozen:
        wait_for(lambda: cluster.reached(SETUP[2]), "Ready", frozen)
        with running(plane, token, "awake") as awake:
            since = len(audit_log.read_text().splitlines())
            frozen.process.send_signal(signal.SIGSTOP)
            wait_for(lambda: awake.metric("audit_operator_leader") == 1, "the other leads", awake)
            churn = iter(range(1000))

            def change() -> None:
                users = [f"user-{next(churn)}"]
                cluster.apply(policy("next", "siem", rules=[{"level": "Metadata", "users": users}]))

            change()
            frozen.process.send_signal(signal.SIGCONT)
            until = time.monotonic() + 8
            while time.monotonic() < until:
                change()
                time.sleep(0.2)
            who = {writer(event) for event in writes(read_audit_log(audit_log, since))}
            assert who == {"awake"}


def test_a_deleted_lease_is_made_again(cluster: Cluster, operator: Operator) -> None:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/audit-operator"
    wait_for(lambda: operator.metric("audit_operator_leader") == 1, "it leads", operator)
    assert cluster.api.request("DELETE", path).ok
    wait_for(lambda: cluster.api.request("GET", path).ok, "the Lease is back", operator)
    cluster.apply(*SETUP)
    wait_for(lambda: cluster.reached(SETUP[2]), "it writes", operator)


# --- permissions -----------------------------------------------------------------------------------------------------


def used(events: list[Json], *, refused: bool = False) -> set[tuple[str, str, str, str]]:
    """(verb, group, resource, scope) of every request that was allowed, or of those that were not."""
    found = set()
    for event in events:
        reference = event.get("objectRef")
        if reference is None or (event["responseStatus"]["code"] == 403) != refused:
            continue
        resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
        inside = reference.get("namespace") == NAMESPACE
        what = reference.get("apiGroup", ""), resource, "root" if inside else "cluster"
        found.add((event["verb"], *what))
        if event["verb"] == "patch" and event["responseStatus"]["code"] == 201:
            found.add(("create", *what))  # an apply of what did not exist: RBAC asks for both
    return found


def replicas(cluster: Cluster) -> int:
    found = cluster.child("Deployment", "audit-receiver") or {"spec": {}}
    return int(found["spec"].get("replicas", 0))


def test_every_permission_is_used_and_none_is_missing(
    cluster: Cluster, operator: Operator, audit_log: Path, request: pytest.FixtureRequest
) -> None:
    """Over all that the tests above made the operator do."""
    functions = {name for name in vars(request.module) if name.startswith("test_")}
    if functions - {item.originalname for item in request.session.items if isinstance(item, pytest.Function)}:
        pytest.skip("only after all the other tests of this file")
    tenants = {"enabled": True}
    own = sink("own", tls={"caConfigMap": {"name": "own-ca"}})
    own["metadata"]["namespace"] = "default"
    ephemeral = {"storage": {"ephemeral": {"sizeLimit": "1Gi"}}}
    cluster.apply(backend(tenants=tenants, receiver=ephemeral), sink(), own)
    wait_for(lambda: cluster.reached(own, "Configured", "False"), "it looked", operator)
    wait_for(lambda: cluster.child("Deployment", "audit-receiver"), "receivers by Deployment", operator)
    path = f"{CHILDREN['Deployment']}/audit-receiver"
    must(cluster.api.request("PATCH", path, {"spec": {"replicas": 0}}, content="application/merge-patch+json"))
    wait_for(lambda: replicas(cluster) == 2, "it is repaired", operator)
    labels = {"app.kubernetes.io/name": "audit-operator", "app.kubernetes.io/component": "receiver"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "receiver", "namespace": NAMESPACE, "labels": labels},
    }
    pod["spec"] = {"containers": [{"name": "receiver", "image": "registry.example/audit-operator:test"}]}
    must(cluster.api.apply(f"{CORE}/pods/receiver", pod))
    wait_for(
        lambda: any(
            "/pods/receiver" in each["requestURI"] and each["verb"] == "get" for each in read_audit_log(audit_log)
        ),
        "it looks where the receiver is",
        operator,
    )
    must(cluster.api.request("DELETE", f"{CORE}/pods/receiver", {"gracePeriodSeconds": 0}))
    events = read_audit_log(audit_log)
    asked = used(events)
    refused = used(events, refused=True)
    assert refused - asked == set()  # what two tests take away for a while is used at other times
    scopes = {"cluster": ("cluster", "root"), "tenants": ("cluster",), "root namespace": ("root",)}
    not_here = {"cert-manager.io", "monitoring.coreos.com"}
    unused = [
        (verb, str(each))
        for each in PERMISSIONS
        for verb in each.verbs
        if each.group not in not_here
        and not any((verb, each.group, each.resource, scope) in asked for scope in scopes[each.scope])
    ]
    assert unused == []


# --- an API server with no time --------------------------------------------------------------------------------------


def test_it_gets_through_an_api_server_that_turns_many_requests_away() -> None:
    flags = ["--enable-priority-and-fairness=false", "--max-requests-inflight=2", "--max-mutating-requests-inflight=1"]
    with contextlib.ExitStack() as stack:
        try:
            plane = stack.enter_context(control_plane(flags))
        except LookupError as missing:
            pytest.skip(str(missing))
        insisting = Insisting(plane)
        install_crds(insisting)
        token = operators.install(insisting)
        busy = Cluster(plane)
        stop = threading.Event()

        def crowd() -> None:
            while not stop.is_set():
                plane.api.request("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")

        threads = [threading.Thread(target=crowd, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            operator = stack.enter_context(running(plane, token, "patient", seconds=90))
            for document in SETUP:
                must(insisting.apply(busy.path(document), document))
            wait_for(lambda: ready(insisting, busy.path(SETUP[2])), "Ready", operator, 90)
            assert operator.process.poll() is None
            _, text = operator.get("/metrics")
            assert 'status="429"' in text or "TooManyRequests" in operator.log.read_text()
        finally:
            stop.set()
            for thread in threads:
                thread.join(10)


class Insisting(ApiServer):
    """Asks again where it is turned away."""

    def __init__(self, plane: ControlPlane) -> None:
        super().__init__(plane.api.url, plane.api.token, plane.api.ca)

    def request(self, *arguments: Any, **options: Any) -> Answer:
        for _ in range(200):
            answer = super().request(*arguments, **options)
            if answer.status != 429:
                return answer
            time.sleep(0.1)
        return answer


def ready(api: ApiServer, path: str) -> bool:
    return condition(must(api.request("GET", path)), "Ready").get("status") == "True"
