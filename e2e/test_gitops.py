"""GitOps: what is in Git and what is in the cluster stay the same, however often they are compared."""

import copy
import time
from pathlib import Path

import pytest
import yaml

from apiserver import Json
from clusters import Cluster, secret
from operators import Operator, must, wait_for

ROOT = Path(__file__).parents[1]
MANIFESTS = [
    document
    for path in ("examples/argocd/resources/audit.yaml", "examples/platform/strangers.yaml")
    for document in yaml.safe_load_all((ROOT / path).read_text())
]
MANAGER = "argocd-controller"
APPLY = "application/apply-patch+yaml"


def compared(document: Json) -> Json:
    """What Argo CD compares: all but what the API server and the operator write."""
    found = copy.deepcopy(document)
    found.pop("status", None)
    for name in ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp"):
        found["metadata"].pop(name, None)
    return found


def synced(cluster: Cluster, document: Json) -> None:
    must(
        cluster.api.request(
            "PATCH", f"{cluster.path(document)}?fieldManager={MANAGER}&force=true", document, content=APPLY
        )
    )


def difference(cluster: Cluster, document: Json) -> tuple[Json, Json]:
    """Live, and as it would be after a sync: Argo CD's ServerSideDiff."""
    path = f"{cluster.path(document)}?fieldManager={MANAGER}&force=true&dryRun=All"
    wanted = must(cluster.api.request("PATCH", path, document, content=APPLY))
    return compared(cluster.get(document)), compared(wanted)


@pytest.mark.parametrize("order", ["as written", "backwards"])
def test_what_is_in_git_is_in_the_cluster_for_ever(cluster: Cluster, operator: Operator, order: str) -> None:
    documents = MANIFESTS if order == "as written" else MANIFESTS[::-1]
    for document in documents:
        synced(cluster, document)
    cluster.apply(secret("siem", token="t"))
    ready = [document for document in documents if document["metadata"]["name"] == "baseline"]
    wait_for(lambda: all(cluster.reached(document) for document in ready), "Ready", operator)
    versions = [cluster.get(document)["metadata"]["resourceVersion"] for document in documents]
    for _ in range(3):
        for document in documents:
            live, wanted = difference(cluster, document)
            assert live == wanted
            # Without ServerSideDiff: everything that Git says is there as Git says it.
            assert holds(live["spec"], document["spec"])
            synced(cluster, document)
        time.sleep(1)
    assert [cluster.get(document)["metadata"]["resourceVersion"] for document in documents] == versions


def holds(live: object, wanted: object) -> bool:
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(key in live and holds(live[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return isinstance(live, list) and len(live) == len(wanted) and all(map(holds, live, wanted))
    return live == wanted


def test_a_sync_that_takes_a_resource_out_of_git_takes_it_out_of_force(cluster: Cluster, operator: Operator) -> None:
    for document in MANIFESTS:
        synced(cluster, document)
    baseline = next(document for document in MANIFESTS if document["metadata"]["name"] == "baseline")
    wait_for(lambda: "baseline" in str(cluster.program()), "in force", operator)
    cluster.delete(baseline)
    wait_for(lambda: "baseline" not in str(cluster.program()), "out of force", operator)
