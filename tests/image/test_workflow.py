"""The workflow for a kind cluster: the files and targets it names are there, and what it renders can be installed."""

import re
from pathlib import Path

import yaml

from audit_operator.render.plan import render
from audit_operator.render.world import Resources, World
from audit_operator.resources.load import load_resource

ROOT = Path(__file__).parents[2]
WORKFLOW = (ROOT / ".github" / "workflows" / "e2e.yaml").read_text()


def test_what_the_workflow_names_exists() -> None:
    assert yaml.safe_load(WORKFLOW)["jobs"].keys() == {"envtest", "kind"}
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z0-9]+)", WORKFLOW)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in set(re.findall(r"(?:-f |install \S+ )([a-z][\w./-]+)", WORKFLOW)):
        assert (ROOT / path).exists(), path


def test_the_kind_cluster_runs_what_its_resources_ask_for() -> None:
    documents = yaml.safe_load_all((ROOT / "e2e/kind/audit.yaml").read_text())
    plan = render(Resources.of(map(load_resource, documents)), World(server_version=(1, 34)))
    assert not plan.blocked
    assert {status.ready.status for status in plan.statuses} == {"True"}
    cluster = yaml.safe_load(plan.files()["kind/cluster.yaml"])
    assert "audit-policy-file" in str(cluster)
