"""A cluster as tests use it, whatever its nodes are made of."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from apiserver import ApiServer, Json
from nodes.machine import Machine

T = TypeVar("T")


class RealCluster:
    """``api``: as its administrator. ``kubectl``: a program of this machine. ``folder``: for files of tests.

    ``gateway``: an address that pods reach; what `within` makes can listen there.
    """

    api: ApiServer
    folder: Path
    gateway: str
    kubectl: Path
    nodes: Sequence[Machine]

    def within(self, function: Callable[[], T]) -> T:
        """What ``function`` returns where ``gateway`` is an address of this machine."""
        raise NotImplementedError

    def keep_logs(self, target: Path) -> None:
        """Copy what says why something failed."""
        raise NotImplementedError

    def apply(self, collection: str, document: Json) -> Json:
        """Server-side apply, as the administrator; what comes of it."""
        answer = self.api.apply(f"{collection}/{document['metadata']['name']}", document)
        assert answer.ok, answer.body
        return answer.body

    def load_image(self, archive: Path) -> None:
        """So that pods of every node can run it."""
        for node in self.nodes:
            node.load_image(archive)

    def kubeconfig(self) -> Path:
        """The administrator's, for programs of this machine."""
        path = self.folder / "kubeconfig"
        cluster = {"server": self.api.url, "certificate-authority": str(self.api.ca)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "e2e",
            "clusters": [{"name": "e2e", "cluster": cluster}],
            "users": [{"name": "e2e", "user": {"token": self.api.token}}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
        }
        path.write_text(json.dumps(config))  # JSON is YAML
        path.chmod(0o600)
        return path

    def administrator(self, url: str) -> ApiServer:
        """The API server at ``url``, and Kubernetes' own way to be somebody with a token."""
        node = self.nodes[0]
        kubectl = ("kubectl", "--kubeconfig=/etc/kubernetes/admin.conf", "--namespace=kube-system")
        node.run(*kubectl, "create", "serviceaccount", "e2e")
        account = "--serviceaccount=kube-system:e2e"
        node.run(*kubectl, "create", "clusterrolebinding", "e2e", "--clusterrole=cluster-admin", account)
        token = node.run(*kubectl, "create", "token", "e2e", "--duration=24h").stdout.strip()
        authority = self.folder / "ca.crt"
        authority.write_text(node.read("/etc/kubernetes/pki/ca.crt"))
        return ApiServer(url, token, authority)

    def wait_for_nodes(self, seconds: float = 180) -> None:
        until = time.monotonic() + seconds
        while True:
            items = self.api.request("GET", "/api/v1/nodes").body.get("items", ())
            ready = [
                item["metadata"]["name"]
                for item in items
                if {"type": "Ready", "status": "True"}.items()
                <= next((each for each in item["status"].get("conditions", ()) if each["type"] == "Ready"), {}).items()
            ]
            if len(ready) == len(self.nodes):
                return
            assert time.monotonic() < until, f"ready within {seconds} s: {ready}"
            time.sleep(0.5)
