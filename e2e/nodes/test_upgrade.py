"""From the version before to this one, while an API server sends: nothing is lost."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from clusters import CRDS, backend
from nodes import images
from nodes.audited import CHART, IMAGE, SINKS, Audited, baseline, bodies, moment, statuses
from nodes.images import ROOT
from operators import NAMESPACE, wait_for

PREVIOUS = "a7fae89c86a1d8bfff3b192ed97f62318cb89e81"
"""The commit that people upgrade from."""

_A_NAME = "\nUSER root\nRUN echo audit-operator:x:65532:65532::/tmp:/bin/false >>/etc/passwd\nUSER 65532:65532\n"
"""Its operator ended at once where its user had no name."""


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the previous version."""
    folder = tmp_path_factory.mktemp("previous")
    archive = subprocess.run(["git", "archive", PREVIOUS], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"commit {PREVIOUS} is not here: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def audited(cluster: Audited, previous: Path) -> Audited:
    """The previous version, and an API server under audit."""
    try:
        image = images.project(f"{IMAGE}:previous", previous, more=_A_NAME)
    except LookupError as missing:
        pytest.skip(str(missing))
    cluster.cluster.load_image(image)
    cluster.wipe()
    package = cluster.package(previous / "charts" / "audit-operator")
    cluster.install(package, "--set", "image.tag=previous")
    cluster.wait_for_pods("operator")
    cluster.apply(*(cluster.sink(name) for name in SINKS), baseline(), bodies())
    cluster.wait_for_pods("receiver")
    cluster.wait(bodies(), "Delivering")
    cluster.follow_readme()
    cluster.wait(backend(), "EventsFlowing", seconds=120)
    return cluster


def images_of(cluster: Audited) -> set[str]:
    return {status["image"] for pod in cluster.pods() for status in statuses(pod)}


def test_an_upgrade_under_load_loses_nothing_and_every_status_is_true_afterwards(audited: Audited) -> None:
    assert images_of(audited) == {f"{IMAGE}:previous"}
    claims = audited.kubectl("get", "pvc", "-n", NAMESPACE, "-o", "name")
    since = moment()
    with audited.load():
        audited.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
        package = audited.package(CHART)
        audited.helm(
            *("upgrade", "audit-operator", package, "-n", NAMESPACE, "--reset-then-reuse-values"),
            *("--set", "image.tag=0.1.0"),
        )
        wait_for(lambda: images_of(audited) == {f"{IMAGE}:0.1.0"}, "every pod runs the new version", seconds=400)
        audited.wait_for_pods("operator")
        audited.wait_for_pods("receiver")
    assert audited.held_to_explain(since, exactly=False) > 300
    for document in (backend(), *(audited.sink(name) for name in SINKS), baseline(), bodies()):
        audited.wait(document, "Ready")
    assert audited.kubectl("get", "pvc", "-n", NAMESPACE, "-o", "name") == claims
