"""One cluster of real nodes for all tests of a run; without one they are skipped, saying how to get it."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apiserver import kind_works
from nodes import images
from nodes.audited import IMAGE, Audited
from nodes.cluster import node_cluster
from nodes.kind import kind_cluster
from nodes.real import RealCluster

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "e2e-nodes"
"""Where logs stay when a test fails."""


@pytest.fixture(scope="session")
def helm() -> str:
    found = subprocess.run(
        [sys.executable, ROOT / "scripts" / "get-helm", "--find"], capture_output=True, text=True, check=False
    )
    if found.returncode:
        pytest.skip(found.stderr.strip())
    return found.stdout.strip()


@pytest.fixture(scope="session")
def image() -> Path:
    """The project's image, of the code as it is now."""
    try:
        return images.project(f"{IMAGE}:0.1.0")
    except LookupError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def nodes(request: pytest.FixtureRequest, image: Path) -> Iterator[RealCluster]:
    """A cluster that has the image: of one node, or of E2E_NODES."""
    with contextlib.ExitStack() as stack:
        try:
            cluster: RealCluster = stack.enter_context(node_cluster(int(os.environ.get("E2E_NODES", "1"))))
        except LookupError as missing:
            if not kind_works():
                pytest.skip(str(missing))
            cluster = stack.enter_context(kind_cluster())
        cluster.load_image(image)
        yield cluster
        if request.session.testsfailed:
            folder = KEPT / time.strftime("%Y%m%d-%H%M%S")
            cluster.keep_logs(folder)
            print(f"\nlogs of nodes and pods: {folder}")


@pytest.fixture(scope="session")
def cluster(nodes: RealCluster, helm: str) -> Iterator[Audited]:
    """The cluster, and sinks outside of it; the chart is not installed."""
    found = Audited(nodes, helm)
    for collector in found.collectors.values():
        collector.start()
    yield found
    for collector in found.collectors.values():
        collector.stop()
