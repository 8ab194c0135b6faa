"""The workflows: the files and targets they name are there, and what the kind cluster starts with can be installed."""

import json
import re
import tomllib
from pathlib import Path

import yaml

from audit_operator.render.plan import render
from audit_operator.render.world import Resources, World
from audit_operator.resources.load import load_resource

ROOT = Path(__file__).parents[2]
WORKFLOWS = {path.stem: path.read_text() for path in (ROOT / ".github" / "workflows").iterdir()}


def test_what_the_workflows_name_exists() -> None:
    jobs = {name: list(yaml.safe_load(text)["jobs"]) for name, text in WORKFLOWS.items()}
    assert jobs == {"check": ["check"], "e2e": ["envtest", "kind"]}
    makefile = (ROOT / "Makefile").read_text()
    for text in WORKFLOWS.values():
        for target in set(re.findall(r"make ([a-z0-9]+)", text)):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        for path in set(re.findall(r"(?:-f |helm install \S+ )([a-z][\w./-]+)", text)):
            assert (ROOT / path).exists(), path


def test_a_skipped_test_is_named_with_its_reason() -> None:
    """Where Helm, say, cannot be had: pytest prints the reasons at the end, also when told to be quiet."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    assert "-ra" in options.split()


def test_what_tests_fetch_is_pinned_by_hash_and_names_no_registry() -> None:
    lock = json.loads((ROOT / "scripts/azurite/package-lock.json").read_text())
    packages = [each for path, each in lock["packages"].items() if path]
    assert len(packages) > 100
    assert all(each["integrity"].startswith("sha512-") and "resolved" not in each for each in packages)
    for path in ROOT.glob("requirements*.lock"):
        text = path.read_text()
        assert "://" not in text, path
        requirements = re.findall(r"^[a-z0-9].*(?:\n    .*)*", text, re.MULTILINE)
        assert requirements
        assert all("--hash=sha256:" in each for each in requirements)


def test_the_kind_cluster_runs_what_its_resources_ask_for() -> None:
    documents = yaml.safe_load_all((ROOT / "e2e/kind/audit.yaml").read_text())
    plan = render(Resources.of(map(load_resource, documents)), World(server_version=(1, 34)))
    assert not plan.blocked
    assert {status.ready.status for status in plan.statuses} == {"True"}
    cluster = yaml.safe_load(plan.files()["kind/cluster.yaml"])
    assert "audit-policy-file" in str(cluster)
