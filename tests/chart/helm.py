"""Helm over the chart of this checkout; tests that need it are skipped where it cannot be had."""

import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "audit-operator"
CASES = Path(__file__).parent / "cases"


@cache
def _helm() -> tuple[str, str]:
    """(path, why there is none)"""
    finder = [sys.executable, ROOT / "scripts" / "get-helm", "--find"]
    done = subprocess.run(finder, capture_output=True, text=True, check=False)
    return done.stdout.strip(), done.stderr.strip()


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    path, reason = _helm()
    if not path:
        pytest.skip(reason)
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=False, timeout=60)


@cache
def template(*arguments: str | Path) -> list[Json]:
    """The objects that `helm template` makes, CRDs aside, by kind and name; not to be changed."""
    done = helm("template", "audit-operator", CHART, "--namespace", "audit-system", *arguments)
    assert done.returncode == 0, done.stderr
    return ordered(done.stdout)


def ordered(text: str) -> list[Json]:
    """Versions of Helm differ in the order of what they print."""
    documents = [document for document in yaml.safe_load_all(text) if document]
    return sorted(documents, key=lambda document: (document["kind"], document["metadata"]["name"]))


@cache
def notes(*arguments: str | Path) -> str:
    """What `helm install` says at its end. Asked of `helm template`: `install --dry-run` of Helm 3 wants a cluster."""
    with tempfile.TemporaryDirectory() as folder:
        chart = Path(folder) / CHART.name
        shutil.copytree(CHART, chart)
        included = '{{ include (print $.Template.BasePath "/NOTES.txt") . | toJson }}'
        said = f"kind: Notes\nmetadata: {{name: notes}}\ntext: {included}\n"
        (chart / "templates" / "notes.yaml").write_text(said)
        done = helm("template", "audit-operator", chart, "--namespace", "audit-system", *arguments)
        assert done.returncode == 0, done.stderr
    text: str = one(ordered(done.stdout), "Notes", "notes")["text"]
    return text


def values(case: str) -> tuple[str, Path]:
    return "--values", CASES / case / "values.yaml"


def one(objects: list[Json], kind: str, name: str = "audit-operator") -> Json:
    (found,) = (each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found
