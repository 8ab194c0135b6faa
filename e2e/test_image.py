"""The commands of operator/Dockerfile in a folder: what they install runs the operator. No Docker is needed."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORT_ALL = """
import importlib, pkgutil, audit_operator
for module in pkgutil.walk_packages(audit_operator.__path__, "audit_operator."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
DOCKERFILE = (ROOT / "operator" / "Dockerfile").read_text()


def test_what_the_dockerfile_installs_runs(tmp_path: Path) -> None:
    build = DOCKERFILE.partition(" AS build\n")[2].partition("\nFROM ")[0]
    steps = re.findall(r"^(RUN|COPY) ((?:.*\\\n)*.*)", build, re.MULTILINE)
    source, target = tmp_path / "src", tmp_path / "opt"
    source.mkdir()
    target.mkdir()
    for step, rest in steps:
        if step == "COPY":
            *names, into = rest.split()
            for name in names:
                destination = source / (into if into != "./" else Path(name).name)
                destination.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-r", ROOT / name, destination], check=True)
            continue
        command = rest.replace("\\\n", " ").replace("/opt", str(target)).replace("/dist", str(tmp_path / "dist"))
        command = re.sub(r"^python ", f"{sys.executable} ", command)
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
