"""Receivers' volumes with Kubernetes' own controllers: a StatefulSet is replaced, its pods and claims are not."""

import contextlib
from collections.abc import Iterator

import pytest

from apiserver import MERGE, ControlPlane, Json
from clusters import CORE, SETUP, Cluster, backend
from operators import Operator, condition, must, wait_for

CLAIMS = f"{CORE}/persistentvolumeclaims"
PODS = f"{CORE}/pods"
GI = 1 << 30


def stored(size: str, replicas: int = 2) -> Json:
    claim = {"size": size, "storageClassName": "growing"}
    return backend(receiver={"replicas": replicas, "storage": {"persistentVolumeClaim": claim}})


@pytest.fixture
def controllers(plane: ControlPlane) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(plane.controller_manager("statefulset-controller"))
        except LookupError as missing:
            pytest.skip(str(missing))
        yield


def storage_class(cluster: Cluster, *, grows: bool = True) -> None:
    document = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "growing"},
        "provisioner": "example.com/none",
        "allowVolumeExpansion": grows,
    }
    must(cluster.api.apply("/apis/storage.k8s.io/v1/storageclasses/growing", document))


def items(cluster: Cluster, folder: str) -> dict[str, Json]:
    selector = "app.kubernetes.io%2Fcomponent%3Dreceiver"
    found = must(cluster.api.request("GET", f"{folder}?labelSelector={selector}"))["items"]
    return {each["metadata"]["name"]: each for each in found}


def bound(cluster: Cluster, name: str, size: str) -> None:
    """What a provisioner and a kubelet would have done."""
    status = {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": size}}
    must(cluster.api.request("PATCH", f"{CLAIMS}/{name}/status", {"status": status}, content=MERGE))


def requested(claim: Json) -> str:
    return str(claim["spec"]["resources"]["requests"]["storage"])


@pytest.fixture
def empty(cluster: Cluster) -> Iterator[Cluster]:
    """Without what Kubernetes made for a StatefulSet of another test."""

    def clear() -> None:
        for folder in (PODS, CLAIMS):
            for name in items(cluster, folder):
                path = f"{folder}/{name}"
                cluster.api.request("PATCH", path, {"metadata": {"finalizers": None}}, content=MERGE)
                cluster.api.request("DELETE", path, {"gracePeriodSeconds": 0})

    clear()
    yield cluster
    cluster.clean()
    clear()


def test_more_storage_reaches_the_volumes_of_pods_that_run_on(
    empty: Cluster, operator: Operator, controllers: None
) -> None:
    cluster = empty
    storage_class(cluster)
    cluster.apply(stored("10Gi"), *SETUP[1:])
    wait_for(lambda: len(items(cluster, PODS)) == len(items(cluster, CLAIMS)) == 2, "pods and claims", operator)
    for name in items(cluster, CLAIMS):
        bound(cluster, name, "10Gi")
    wait_for(lambda: cluster.reached(SETUP[0], "StorageReady"), "volumes are as they should be", operator)
    before = {name: each["metadata"]["uid"] for name, each in items(cluster, PODS).items()}
    old = (cluster.child("StatefulSet", "audit-receiver") or {})["metadata"]["uid"]
    revisions = {each["metadata"]["labels"]["controller-revision-hash"] for each in items(cluster, PODS).values()}

    cluster.apply(stored("20Gi"))
    wait_for(lambda: {requested(each) for each in items(cluster, CLAIMS).values()} == {"20Gi"}, "they grow", operator)
    wait_for(lambda: cluster.reached(SETUP[0], "Applied"), "the StatefulSet is made anew", operator)
    new = cluster.child("StatefulSet", "audit-receiver") or {}
    assert new["metadata"]["uid"] != old
    assert requested(new["spec"]["volumeClaimTemplates"][0]) == "20Gi"
    wait_for(
        lambda: (
            all(
                each["metadata"]["ownerReferences"][0]["uid"] == new["metadata"]["uid"]
                for each in items(cluster, PODS).values()
                if each["metadata"].get("ownerReferences")
            )
            and all(each["metadata"].get("ownerReferences") for each in items(cluster, PODS).values())
        ),
        "it has adopted the pods",
        operator,
    )
    assert {name: each["metadata"]["uid"] for name, each in items(cluster, PODS).items()} == before
    after = {each["metadata"]["labels"]["controller-revision-hash"] for each in items(cluster, PODS).values()}
    assert after == revisions  # so nothing rolls
    assert cluster.program().journal_limit == int(0.8 * 10 * GI)
    assert cluster.reached(SETUP[0], "StorageReady", "False", "Resizing")
    for name in items(cluster, CLAIMS):
        bound(cluster, name, "20Gi")
    wait_for(lambda: cluster.program().journal_limit == int(0.8 * 20 * GI), "journals may take more", operator)
    wait_for(lambda: cluster.reached(SETUP[0], "StorageReady"), "it is over", operator)
    assert operator.metric("audit_operator_reconciles_total") > 0

    # Fewer receivers: their volumes stay, and that is said.
    cluster.apply(stored("20Gi", replicas=1))
    wait_for(lambda: cluster.reached(SETUP[0], "StorageReady", "False", "VolumesLeftBehind"), "it is said", operator)
    assert "state-audit-receiver-1" in condition(cluster.get(SETUP[0]), "StorageReady")["message"]
    assert set(items(cluster, CLAIMS)) == {"state-audit-receiver-0", "state-audit-receiver-1"}
    cluster.apply(stored("20Gi", replicas=2))
    wait_for(lambda: cluster.reached(SETUP[0], "StorageReady"), "the volume is in use again", operator)


def test_volumes_that_cannot_grow_are_said_and_stay_as_they_are(
    empty: Cluster, operator: Operator, controllers: None
) -> None:
    cluster = empty
    storage_class(cluster, grows=False)
    cluster.apply(stored("10Gi"), *SETUP[1:])
    wait_for(lambda: len(items(cluster, CLAIMS)) == 2, "claims", operator)
    for name in items(cluster, CLAIMS):
        bound(cluster, name, "10Gi")
    cluster.apply(stored("20Gi"))
    wait_for(lambda: cluster.reached(SETUP[0], "StorageReady", "False", "CannotExpand"), "it is said", operator)
    said = condition(cluster.get(SETUP[0]), "StorageReady")["message"]
    assert "the storageclass that provisions the pvc must support resize" in said
    assert cluster.program().journal_limit == int(0.8 * 10 * GI)
    wait_for(lambda: cluster.reached(SETUP[2], "Published"), "policies are in force all the same", operator)

    storage_class(cluster)
    cluster.apply(stored("21Gi"))
    wait_for(lambda: {requested(each) for each in items(cluster, CLAIMS).values()} == {"21Gi"}, "they grow", operator)
    cluster.apply(stored("5Gi"))
    wait_for(lambda: cluster.reached(SETUP[0], "StorageReady", "False", "CannotShrink"), "it is said", operator)
    assert "write size: 21Gi" in condition(cluster.get(SETUP[0]), "StorageReady")["message"]
