"""The image: what the Dockerfile's commands install runs, and what a builder makes of them is all that is promised."""

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from audit_operator import __version__

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "image"))
from containers import IMPORT_ALL
from dockerfile import ROOT, read

sys.path.pop(0)


# --- without a builder -----------------------------------------------------------------------------------------------


def test_what_the_dockerfile_installs_runs(tmp_path: Path) -> None:
    """The commands of the first stage in a folder, with this machine's Python."""
    _, (build, _) = read(ROOT / "operator" / "Dockerfile")
    source, target = tmp_path / "src", tmp_path / "opt"
    source.mkdir()
    target.mkdir()
    for step in build.steps:
        if step.instruction == "COPY":
            *names, into = step.words
            for name in names:
                destination = source / (into if into != "./" else Path(name).name)
                destination.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-r", ROOT / name, destination], check=True)
        elif step.instruction == "RUN":
            command = step.text.replace("/opt", str(target)).replace("/dist", str(tmp_path / "dist"))
            command = re.sub(r"(^|&& )python ", rf"\1{sys.executable} ", command)
            done = subprocess.run(["sh", "-ec", command], cwd=source, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-2000:]
    program = target / "audit-operator" / "bin" / "audit-operator"
    answer = subprocess.run([program, "run", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "--leader-election" in answer.stdout
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("{}")
    # With all that the operator imports, which --help does not.
    failed = subprocess.run(
        [program, "run", f"--kubeconfig={kubeconfig}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "no cluster" in failed.stderr
    assert failed.returncode == 2
    # And the receiver, whatever the sink.
    subprocess.run([program.with_name("python"), "-c", IMPORT_ALL], cwd=tmp_path, check=True)
    assert not (target / "audit-operator" / "bin" / "pip").exists()


# --- built -----------------------------------------------------------------------------------------------------------


class Built:
    """The image in a folder: its root file system, and how it says that it is to be run."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.root = folder / "root"
        self.root.mkdir()
        with tarfile.open(archive) as image:
            manifest = _blob(image, _json(image, "index.json")["manifests"][0])
            self.config: dict[str, Any] = _blob(image, manifest["config"])["config"]
            for layer in manifest["layers"]:
                self._add(_bytes(image, layer))

    def _add(self, layer: bytes) -> None:
        data = gzip.decompress(layer) if layer.startswith(b"\x1f\x8b") else layer
        with tarfile.open(fileobj=io.BytesIO(data)) as files:
            removed = [Path(each.name) for each in files if Path(each.name).name.startswith(".wh.")]
            for mark in removed:
                if mark.name == ".wh..wh..opq":
                    gone = list((self.root / mark.parent).iterdir())
                else:
                    gone = [self.root / mark.parent / mark.name.removeprefix(".wh.")]
                for path in gone:
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)
            marks = set(map(str, removed))
            wanted = [each for each in files if each.name not in marks and not each.isdev()]
            files.extractall(self.root, wanted, filter="fully_trusted")

    def files(self) -> list[Path]:
        """Every file, without links."""
        return [path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink()]


def _json(image: tarfile.TarFile, name: str) -> Any:
    content = image.extractfile(name)
    assert content is not None
    return json.load(content)


def _bytes(image: tarfile.TarFile, descriptor: dict[str, Any]) -> bytes:
    content = image.extractfile(f"blobs/{descriptor['digest'].replace(':', '/')}")
    assert content is not None
    return content.read()


def _blob(image: tarfile.TarFile, descriptor: dict[str, Any]) -> Any:
    return json.loads(_bytes(image, descriptor))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    images = pytest.importorskip("nodes.images")
    try:
        archive = images.project(f"{images.REPOSITORY}/audit-operator:test", ROOT)
    except LookupError as missing:
        pytest.skip(str(missing))
    return Built(archive, tmp_path_factory.mktemp("image"))


def test_it_says_who_runs_what_and_what_it_is(built: Built) -> None:
    uid, _, gid = built.config["User"].partition(":")
    # Kubelets read numbers only, and start nobody else where runAsNonRoot is asked for.
    assert int(uid) > 0
    assert int(gid) > 0
    (entrypoint,) = built.config["Entrypoint"]
    environment = dict(each.split("=", 1) for each in built.config["Env"])
    assert any((built.root / folder[1:] / entrypoint).exists() for folder in environment["PATH"].split(":"))
    assert "HOME" not in environment
    labels = built.config["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert {
        f"org.opencontainers.image.{name}" for name in ("title", "licenses", "revision", "base.name")
    } <= labels.keys()


def test_it_is_small_and_holds_nothing_to_build_or_install_with(built: Built) -> None:
    files = built.files()
    ours = [path for path in files if path.is_relative_to(built.root / "opt")]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    assert megabytes <= 300, f"{megabytes:.0f} MB, {sum(path.stat().st_size for path in ours) / 1e6:.0f} of them ours"
    installed = [*ours, *(path for path in files if path.is_relative_to(built.root / "usr/local"))]
    unwanted = {"pip", "setuptools", "wheel", "ensurepip", "tests"}
    assert not [path for path in installed if unwanted & set(path.relative_to(built.root).parts)]
    assert not [path for path in installed if path.suffix in {".pyi", ".pyx", ".c", ".h", ".a"}]
    assert not [path for path in files if path.parent.name == "bin" and path.name in {"pip", "gcc", "cc", "make", "ld"}]


def test_every_module_is_compiled_once_for_ever(built: Built) -> None:
    packages = next((built.root / "opt/audit-operator/lib").glob("python3*/site-packages"))
    modules = list(packages.rglob("*.py"))
    assert len(modules) > 1000
    compiled = set(packages.rglob("*.pyc"))
    for module in modules:
        (found,) = module.parent.glob(f"__pycache__/{module.stem}.cpython-3??.pyc")
        # The second word: 1 is "by hash", and not 2, "and look whether the source still has it".
        assert found.read_bytes()[4:8] == (1).to_bytes(4, "little"), found
        compiled.remove(found)
    assert not compiled, "what no longer has a source"


def test_any_user_runs_it(built: Built) -> None:
    """Every test of tests/image/test_any_user.py, in this image."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/image/test_any_user.py"]
    environment = os.environ | {"IMAGE_ROOT": str(built.root)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    passed, skipped = (re.search(rf"(\d+) {word}", done.stdout) for word in ("passed", "skipped"))
    if skipped and not passed:
        pytest.skip(done.stdout.splitlines()[-2])
