"""Helm over the chart of this checkout; tests that need it are skipped where it cannot be had."""

import subprocess
import sys
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
    """What `helm install` says at its end."""
    done = helm("install", "audit-operator", CHART, "--namespace", "audit-system", "--dry-run=client", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:\n")[2]


def values(case: str) -> tuple[str, Path]:
    return "--values", CASES / case / "values.yaml"


def one(objects: list[Json], kind: str, name: str = "audit-operator") -> Json:
    (found,) = (each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found
