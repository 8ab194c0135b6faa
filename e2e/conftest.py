"""API servers to test against: one for all tests of a run, CRDs applied, and one with an operator beside it."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import apiserver
import operators
from apiserver import ControlPlane, control_plane
from clusters import Cluster, install_crds
from operators import USER, Operator, running

CRDS = Path(__file__).parents[1] / "crds"


@pytest.fixture(scope="session")
def api() -> Iterator[apiserver.ApiServer]:
    """An API server; without one the tests are skipped, saying how to get it."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(apiserver.running())
        except LookupError as missing:
            pytest.skip(str(missing))
        yield server


@pytest.fixture(scope="session")
def crds(api: apiserver.ApiServer) -> dict[str, dict[str, Any]]:
    """The CRDs as the API server has them, established and served: kind -> CustomResourceDefinition."""
    definitions = {}
    for path in sorted(CRDS.glob("*.yaml")):
        document = yaml.safe_load(path.read_text())
        url = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{document['metadata']['name']}"
        answer = api.apply(url, document)
        assert answer.ok, answer.body["message"]
        assert answer.warnings == ()
        kind = document["spec"]["names"]["kind"]
        definitions[kind] = _established(api, url)
        _wait_until_served(api, document["spec"]["names"]["plural"])
    return definitions


def _established(api: apiserver.ApiServer, url: str) -> dict[str, Any]:
    for _ in range(100):
        found = api.request("GET", url).body
        conditions = {entry["type"]: entry["status"] for entry in found.get("status", {}).get("conditions") or ()}
        if conditions.get("Established") == "True":
            return found
        time.sleep(0.1)
    raise AssertionError(f"{url} is not established: {found['status']}")


def _wait_until_served(api: apiserver.ApiServer, plural: str) -> None:
    for _ in range(100):
        if api.request("GET", f"/apis/audit-operator.dev/v1alpha1/{plural}").ok:
            return
        time.sleep(0.1)
    raise AssertionError(f"{plural} are not served")


# --- with an operator ------------------------------------------------------------------------------------------------

AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [{"level": "Metadata", "users": [USER]}],
}


@pytest.fixture(scope="module")
def audit_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the API server writes down what the operator asks of it."""
    return tmp_path_factory.mktemp("audit") / "audit.log"


@pytest.fixture(scope="module")
def plane(audit_log: Path) -> Iterator[ControlPlane]:
    policy_file = audit_log.with_name("policy.yaml")
    policy_file.write_text(json.dumps(AUDIT))
    flags = [f"--audit-policy-file={policy_file}", f"--audit-log-path={audit_log}"]
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(control_plane(flags))
        except LookupError as missing:
            pytest.skip(str(missing))
        install_crds(found.api)
        yield found


@pytest.fixture(scope="module")
def token(plane: ControlPlane) -> str:
    return operators.install(plane.api)


@pytest.fixture
def cluster(plane: ControlPlane, token: str) -> Iterator[Cluster]:
    """The cluster with nothing of ours in it."""
    found = Cluster(plane)
    found.clean()
    yield found
    found.clean()


@pytest.fixture
def operator(plane: ControlPlane, token: str, cluster: Cluster) -> Iterator[Operator]:
    with running(plane, token) as found:
        yield found
