"""One API server for all tests of a run, with the CRDs applied."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import apiserver

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
