"""What can be said of the image without building it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "operator" / "Dockerfile").read_text()
STEPS = re.findall(r"^([A-Z]+) ((?:.*\\\n)*.*)", TEXT, re.MULTILINE)


def test_everything_that_is_copied_exists_and_nothing_else_is_sent_to_the_builder() -> None:
    copied = {source for step, rest in STEPS if step == "COPY" and "--from" not in rest for source in rest.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sent == copied
    assert "\n*\n" in (ROOT / ".dockerignore").read_text()


def test_every_package_is_pinned_by_its_hash() -> None:
    installs = re.findall(r"pip install [^&\n\\]*", TEXT)
    assert installs
    for command in installs:
        assert "--require-hashes" in command or "--no-index" in command, command
    for name in ("requirements.lock", "requirements-build.lock"):
        pinned = [line for line in (ROOT / name).read_text().splitlines() if re.match(r"[a-z0-9].*==", line)]
        assert pinned
        assert all(line.endswith("\\") for line in pinned), "a hash follows each"


def test_it_runs_as_nobody_with_nothing_to_build_with() -> None:
    final = TEXT.rpartition("\nFROM ")[2]
    assert "USER 65532:65532" in final
    assert "pip install" not in final
    assert re.search(
        r"^RUN python -m pip uninstall -y pip setuptools wheel && rm -rf \S+/ensurepip$", final, re.MULTILINE
    )
    assert "apt" not in TEXT
    assert 'ENTRYPOINT ["audit-operator"]' in final
    assert TEXT.count("FROM ${BASE}") == 2  # one base, which can be pinned by digest


def test_its_version_is_the_packages() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"ARG VERSION={version[1]}" in TEXT
