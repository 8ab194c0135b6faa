"""GitOps: what is in Git and what is in the cluster stay the same, however often they are compared."""

import copy
import time
from pathlib import Path

import pytest
import yaml

from apiserver import Json
from clusters import Cluster, holds, secret
from operators import Operator, must, wait_for

EXAMPLES = Path(__file__).parents[1] / "examples"
MANAGER = "argocd-controller"
APPLY = "application/apply-patch+yaml"


def read(folder: str) -> list[Json]:
    """The manifests of an example, with an address that this API server can give."""
    texts = (path.read_text().replace("10.96.0.", "10.0.0.") for path in sorted((EXAMPLES / folder).glob("*.yaml")))
    return [document for text in texts for document in yaml.safe_load_all(text)]


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


def settled(cluster: Cluster, documents: list[Json], operator: Operator) -> None:
    """Wait until nobody has written any of the documents for two seconds."""

    def versions() -> list[str]:
        return [cluster.get(each)["metadata"]["resourceVersion"] for each in documents]

    def unchanged() -> bool:
        before = versions()
        time.sleep(2)
        return versions() == before

    wait_for(unchanged, "settled", operator)


@pytest.mark.parametrize("order", ["as written", "backwards"])
@pytest.mark.parametrize("folder", ["argocd/resources", "platform"])
def test_what_is_in_git_is_in_the_cluster_for_ever(
    cluster: Cluster, operator: Operator, folder: str, order: str
) -> None:
    documents = read(folder) if order == "as written" else read(folder)[::-1]
    cluster.apply(secret("siem", token="t"))
    for document in documents:
        synced(cluster, document)
    policies = [document for document in documents if document["kind"] == "AuditPolicy"]
    wait_for(lambda: all(cluster.reached(each, "Published") for each in policies), "published", operator)
    settled(cluster, documents, operator)
    rounds = []
    for _ in range(4):
        for document in documents:
            live, wanted = difference(cluster, document)
            assert live == wanted
            # Without ServerSideDiff: everything that Git says is there as Git says it.
            assert holds(live["spec"], document["spec"])
            synced(cluster, document)
        time.sleep(1.1)
        rounds.append([cluster.get(document)["metadata"]["resourceVersion"] for document in documents])
    # The first sync after a status was written may reorder managedFields: the API server sorts them by time, and takes
    # an apply for a change where a default stands within an atomic map. Nothing else changes, and never again.
    assert rounds[1:] == rounds[:1] * 3


def test_a_sync_that_takes_a_resource_out_of_git_takes_it_out_of_force(cluster: Cluster, operator: Operator) -> None:
    manifests = read("argocd/resources")
    for document in manifests:
        synced(cluster, document)
    baseline = next(document for document in manifests if document["metadata"]["name"] == "baseline")
    wait_for(lambda: "baseline" in str(cluster.program()), "in force", operator)
    cluster.delete(baseline)
    wait_for(lambda: "baseline" not in str(cluster.program()), "out of force", operator)
