"""What the Dockerfile does that can be tried without building it; e2e/test_image.py builds it."""

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from dockerfile import ROOT, read, sent

from audit_operator import __version__

ARGUMENTS, STAGES = read(ROOT / "operator" / "Dockerfile")
BUILD, FINAL = STAGES


def test_the_builder_gets_what_is_copied_and_nothing_else() -> None:
    copied: set[str] = set()
    for step in BUILD.of("COPY"):
        assert not step.options
        *sources, _ = step.words
        for source in sources:
            path = ROOT / source
            assert path.exists(), source
            found = path.rglob("*") if path.is_dir() else [path]
            copied |= {file.relative_to(ROOT).as_posix() for file in found if file.is_file()}
    without_bytecode = {file for file in copied if "__pycache__" not in file}
    assert sent(ROOT, ROOT / ".dockerignore") == without_bytecode


def test_all_there_is_comes_from_one_base_and_what_was_built_on_it() -> None:
    assert {stage.base for stage in STAGES} == {ARGUMENTS["BASE"]}
    assert [(step.options, step.words) for step in FINAL.of("COPY")] == [
        ({"from": BUILD.name}, ["/opt/audit-operator", "/opt/audit-operator"])
    ]


def test_its_version_is_the_packages() -> None:
    assert ("ARG", f"VERSION={__version__}") in FINAL.steps


# --- pip, as the Dockerfile calls it ---------------------------------------------------------------------------------


def installs() -> list[tuple[str, str]]:
    """Options of each call of pip that installs from a lock, and the lock."""
    calls = [call for step in BUILD.of("RUN") for call in step.text.split("&&") if re.search(r"pip\b.* install ", call)]
    found = [re.fullmatch(r".* install (.*)-r (\S+)", call.strip()) for call in calls]
    return [(each[1], each[2]) for each in found if each]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package for pip to find."""
    folder = tmp_path_factory.mktemp("shelf")
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.mark.parametrize(("options", "lock"), installs())
def test_a_package_is_installed_by_its_hash_or_not_at_all(options: str, lock: str, shelf: Path, tmp_path: Path) -> None:
    right = hashlib.sha256((shelf / "tiny-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    for requirement, installed in (
        ("tiny==1.0", False),
        (f"tiny==1.0 --hash=sha256:{'0' * 64}", False),
        (f"tiny==1.0 --hash=sha256:{right}", True),
    ):
        (tmp_path / lock).write_text(f"{requirement}\n")
        command = [sys.executable, "-m", "pip", "install", "-q", *options.split(), "-r", lock]
        where = ["--target", str(tmp_path / "target"), "--no-index", "--find-links", str(shelf)]
        done = subprocess.run([*command, *where], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == installed, done.stderr
        assert (tmp_path / "target" / "tiny.py").exists() == installed


def test_both_locks_are_installed() -> None:
    assert {lock for _, lock in installs()} == {"requirements.lock", "requirements-build.lock"}
