"""The workflows: the files and targets they name are there, and what the kind cluster starts with can be installed."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from audit_operator.render.plan import render
from audit_operator.render.world import Resources, World
from audit_operator.resources.load import load_resource

ROOT = Path(__file__).parents[2]
WORKFLOWS: dict[str, Any] = {
    path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").iterdir()
}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command that a job runs, word by word, with the workflow's name."""
    for name, workflow in WORKFLOWS.items():
        for job in workflow["jobs"].values():
            for step in job["steps"]:
                lexer = shlex.shlex(step.get("run", "").replace("\n", " ; "), posix=True, punctuation_chars=True)
                lexer.whitespace_split = True
                command: list[str] = []
                for word in [*lexer, ";"]:
                    if not set(word) <= set(";&|"):
                        command.append(word)
                    elif command:
                        yield name, command
                        command = []


def test_workflows_run_targets_that_make_knows() -> None:
    targets = {
        (name, words[at + 1]) for name, words in commands() for at, word in enumerate(words[:-1]) if word == "make"
    }
    assert targets >= {("check", "check"), ("check", "generate"), ("e2e", "e2e"), ("e2e", "setup")}
    for _, target in targets:
        # All that it would do, were nothing done yet: a target that is only declared does nothing, and make is content.
        done = subprocess.run(["make", "-nB", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Nothing to be done" not in done.stdout


def test_workflows_name_files_that_exist() -> None:
    named = set()
    for _, (program, *words) in commands():
        previous = ["", *words]
        for before, word in zip(previous, words, strict=False):
            # What is read: a file or folder of the project. `out` and what is in it is made by the workflow itself.
            if before in {"-f", "--filename"} or (program == "helm" and "/" in word):
                named.add(word)
    assert named >= {"e2e/kind/audit.yaml", "operator/Dockerfile", "charts/audit-operator"}
    for path in named:
        assert (ROOT / path).exists(), path


def test_a_skipped_test_is_named_with_its_reason(tmp_path: Path) -> None:
    """Where Helm, say, cannot be had: pytest prints the reasons at the end, also when told to be quiet."""
    (tmp_path / "test_it.py").write_text("import pytest\ndef test_it(): pytest.skip('no helm: get it there')\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "test_it.py:2: no helm: get it there" in done.stdout


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
