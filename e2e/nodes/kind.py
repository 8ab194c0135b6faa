"""A cluster of kind's nodes, where Docker runs: as real, but on an image of theirs."""

import contextlib
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import yaml

from nodes.machine import Machine
from nodes.real import RealCluster

T = TypeVar("T")


class _Container(Machine):
    small_volumes = False

    def __init__(self, name: str) -> None:
        self.name = name

    def entered(self, command: Sequence[str]) -> list[str]:
        return ["docker", "exec", "--interactive", self.name, *command]

    def restart_kubelet(self) -> None:
        self.run("systemctl", "restart", "kubelet")


class _KindCluster(RealCluster):
    def __init__(self, name: str, folder: Path, kubectl: Path) -> None:
        self.name, self.folder, self.kubectl = name, folder, kubectl
        self.nodes = [_Container(each) for each in _output("kind", "get", "nodes", f"--name={name}").split()]
        config = yaml.safe_load(_output("docker", "network", "inspect", "kind"))
        addresses = [each["Gateway"] for each in config[0]["IPAM"]["Config"] if "Gateway" in each]
        self.gateway = next(address for address in addresses if ":" not in address)
        server = yaml.safe_load(_output("kind", "get", "kubeconfig", f"--name={name}"))["clusters"][0]["cluster"]
        self.api = self.administrator(server["server"])
        self.wait_for_nodes()

    def within(self, function: Callable[[], T]) -> T:
        return function()

    def keep_logs(self, target: Path) -> None:
        _output("kind", "export", "logs", f"--name={self.name}", str(target))


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def kind_cluster() -> Iterator[RealCluster]:
    """One node, which ends with the block."""
    name = f"audit-operator-e2e-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            _output("kind", "create", "cluster", f"--name={name}", f"--kubeconfig={folder}/kind", "--wait=180s")
            yield _KindCluster(name, Path(folder), Path("kubectl"))
        finally:
            _output("kind", "delete", "cluster", f"--name={name}")
