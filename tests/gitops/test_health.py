"""What Argo CD says of every state a resource can be in: its Lua over statuses as the operator writes them."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from audit_operator.controller import observed, statuses
from audit_operator.controller.children import Ref, Trouble
from audit_operator.render.plan import Plan, render
from audit_operator.render.status import ResourceStatus, with_conditions
from audit_operator.render.world import Identity, Invalid, ReceiverAddress, Resources, World
from audit_operator.resources.crd import schemas
from audit_operator.resources.load import Problem, load_resource

lupa = pytest.importorskip("lupa.lua51", reason="lupa, a Lua for Python, is not installed")

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
SCRIPT = (ROOT / "examples/argocd/health/health.lua").read_text()
NOW = datetime(2026, 1, 1, tzinfo=UTC)

BACKEND = Identity("AuditBackend", "", "default")
SINK = Identity("AuditSink", "audit-system", "siem")
POLICY = Identity("AuditPolicy", "audit-system", "baseline")


def health(resource: Json) -> tuple[str, str]:
    """(status, message) as Argo CD computes them: plain tables in, a table out."""
    lua = lupa.LuaRuntime(unpack_returned_tuples=True)
    table = lua.table_from(resource, recursive=True)
    function = lua.eval(f"function(obj)\n{SCRIPT}\nend")
    answer = function(table)
    return str(answer["status"]), str(answer["message"])


def documents(*changes: Json) -> list[Json]:
    """The example for Argo CD, with ``changes`` in the place of its documents of the same kind."""
    replaced = {change["kind"]: change for change in changes}
    read = yaml.safe_load_all((ROOT / "examples/argocd/resources/audit.yaml").read_text())
    found = [replaced.get(document["kind"], document) for document in read]
    for document in found:
        document["metadata"]["generation"] = 2
    return found


def plan(*changes: Json, references: Any = None) -> Plan:
    """What that amounts to."""
    world = World(receiver_address=ReceiverAddress(cluster_ip="10.0.0.1"), references=references)
    return render(Resources.of(map(load_resource, documents(*changes))), world)


def state(**changes: Any) -> observed.State:
    ready = {
        "metadata": {"generation": 1},
        "status": {"readyReplicas": 2, "updatedReplicas": 2, "observedGeneration": 1},
    }
    return observed.State(
        **{
            "backend": BACKEND,
            "blocked": False,
            "waiting": False,
            "troubles": (),
            "objects": 10,
            "receiver_ready": observed.receiver_ready(ready, 2),
            "certificates": observed.certificates_valid({"ca": datetime(2036, 1, 1, tzinfo=UTC)}, NOW),
            "denied": {},
        }
        | changes
    )


def live(found: Plan, identity: Identity, seen: observed.State | None = None) -> Json:
    """The resource as the cluster has it after a pass."""
    status = next(each for each in found.statuses if each.identity == identity)
    seen = seen or state()
    return written(with_conditions(status, *seen.of(identity)))


def written(status: ResourceStatus) -> Json:
    document = statuses.document(status, {}, NOW)
    assert document is not None
    document["metadata"]["generation"] = 2
    return document


@pytest.mark.parametrize("identity", [BACKEND, SINK, POLICY])
def test_what_is_as_it_should_be_is_healthy(identity: Identity) -> None:
    status, message = health(live(plan(), identity))
    assert status == "Healthy"
    assert message


@pytest.mark.parametrize("identity", [BACKEND, SINK, POLICY])
def test_what_nobody_has_looked_at_yet_is_progressing(identity: Identity) -> None:
    resource = live(plan(), identity)
    assert health(resource | {"status": None})[0] == "Progressing"
    assert health({key: value for key, value in resource.items() if key != "status"})[0] == "Progressing"
    assert health(resource | {"status": {"policies": 1}})[0] == "Progressing"
    resource["metadata"]["generation"] = 3
    status, message = health(resource)
    assert (status, "generation" in message) == ("Progressing", True)


def test_what_is_under_way_is_progressing_and_says_what_it_waits_for() -> None:
    waiting = state(waiting=True, receiver_ready=observed.receiver_ready(None, 2))
    for identity in (BACKEND, SINK, POLICY):
        status, message = health(live(plan(), identity, waiting))
        assert status == "Progressing"
        assert "address" in message
    starting = state(receiver_ready=observed.receiver_ready({"metadata": {}, "status": {}}, 2))
    assert health(live(plan(), BACKEND, starting))[0] == "Progressing"
    assert health(live(plan(), POLICY, starting))[0] == "Healthy"
    issuing = state(certificates=observed.certificates_issued([("audit-receiver-tls", None)]))
    assert health(live(plan(), BACKEND, issuing))[0] == "Progressing"


def test_what_needs_a_person_is_degraded_and_says_what_to_do() -> None:
    conflict = Trouble(Ref("StatefulSet", "audit-receiver"), "Conflict", "argocd applies .spec.replicas too")
    for identity in (BACKEND, SINK, POLICY):
        status, message = health(live(plan(), identity, state(troubles=(conflict,))))
        assert status == "Degraded"
        assert "Applied" in message or "replicas" in message
    status, message = health(live(plan(references={}), SINK))
    assert (status, "Secret audit-system/siem does not exist" in message) == ("Degraded", True)
    expired = observed.certificates_valid({"ca": datetime(2025, 1, 1, tzinfo=UTC)}, NOW)
    assert health(live(plan(), BACKEND, state(certificates=expired)))[0] == "Degraded"
    unresolved = {
        "apiVersion": "audit-operator.dev/v1alpha1",
        "kind": "AuditPolicy",
        "metadata": {"name": "baseline", "namespace": "audit-system"},
        "spec": {"preset": "CIS", "sinks": [{"name": "nowhere"}]},
    }
    assert health(live(plan(unresolved), POLICY))[0] == "Degraded"


@pytest.mark.parametrize("identity", [BACKEND, SINK, POLICY])
def test_what_is_not_valid_is_degraded(identity: Identity) -> None:
    problem = Problem("spec", "is not valid", "x", "correct it")
    resources = Resources.of([Invalid(identity=identity, problems=(problem,), generation=2)])
    status = next(each for each in render(resources, World()).statuses if each.identity == identity)
    assert health(written(status))[0] == "Degraded"


def test_what_nobody_can_tell_yet_is_progressing_and_says_why() -> None:
    """Ready is Unknown: what is recorded depends on an AuditBackend that is not valid."""
    problem = Problem("spec", "is not valid", "x", "correct it")
    resources = [each for each in documents() if each["kind"] != "AuditBackend"]
    invalid = Invalid(identity=BACKEND, problems=(problem,), generation=2)
    found = render(Resources.of([invalid, *map(load_resource, resources)]), World())
    policy = written(next(each for each in found.statuses if each.identity == POLICY))
    ready = next(each for each in policy["status"]["conditions"] if each["type"] == "Ready")
    assert ready["status"] == "Unknown"
    assert health(policy) == ("Progressing", ready["message"])


def test_without_a_backend_policies_are_degraded() -> None:
    stranded = [observed.without_backend(each) for each in plan().statuses if each.identity == POLICY]
    assert health(written(stranded[0]))[0] == "Degraded"


def test_what_is_being_deleted_is_progressing() -> None:
    resource = live(plan(), POLICY)
    resource["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert health(resource)[0] == "Progressing"


def test_the_configmap_for_argo_cd_holds_the_script_for_all_three_kinds() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "argocd-health", "--check"], check=True)
    data = yaml.safe_load((ROOT / "examples/argocd/argocd-cm.yaml").read_text())["data"]
    assert set(data.values()) == {SCRIPT}
    assert len(data) == 3


def test_argo_cd_compares_on_the_server_because_defaults_are_written_into_lists() -> None:
    """Its older ways to compare call what a CRD fills in a difference (docs/gitops.md)."""
    policy = schemas()["AuditPolicy"]["properties"]["spec"]["properties"]
    assert policy["sinks"]["items"]["properties"]["namespace"]["default"] == ""
    assert policy["redactions"]["items"]["properties"]["action"]["default"] == "Remove"
    for application in yaml.safe_load_all((ROOT / "examples/argocd/application.yaml").read_text()):
        options = application["metadata"]["annotations"]["argocd.argoproj.io/compare-options"]
        assert options == "ServerSideDiff=true"


def test_the_examples_are_valid_yaml_and_their_resources_valid_resources() -> None:
    for path in (ROOT / "examples").glob("argocd/*.yaml"):
        assert all(document["kind"] for document in yaml.safe_load_all(path.read_text()))
    assert [item["kind"] for item in yaml.safe_load_all((ROOT / "examples/flux/audit-operator.yaml").read_text())] == [
        "GitRepository",
        "HelmRelease",
        "GitRepository",
        "Kustomization",
    ]
    assert not plan().blocked
