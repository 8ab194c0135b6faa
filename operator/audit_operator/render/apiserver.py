"""What API servers are to run, as ConfigMaps: one that always holds the newest, and one for every revision."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from audit_operator.render.objects import REVISION, Object, annotated, new, revision, text_hash

APISERVER: Final = "audit-apiserver"

_KEYS: Final = {
    "apiserver/policy.yaml": "policy.yaml",
    "apiserver/flags.txt": "flags.txt",
    "apiserver/webhook.kubeconfig": "webhook.kubeconfig",
    "kubeadm/cluster-configuration.yaml": "kubeadm-cluster-configuration.yaml",
    "kind/cluster.yaml": "kind-cluster.yaml",
}
"""File in the rendered folder -> key, which cannot hold a slash."""


class ServerRevision(NamedTuple):
    """What makes API servers restart or read again: policy.yaml, flags.txt (a flag a line), and webhook.kubeconfig.

    All without comments, so that a better comment restarts nobody.
    """

    content: Mapping[str, str]
    hash: str

    @property
    def name(self) -> str:
        """The name of the immutable ConfigMap."""
        return f"{APISERVER}-{self.hash}"


def server_revision(server_files: Mapping[str, str]) -> ServerRevision:
    """The revision of the files that API servers read, by their path in the rendered folder."""
    content = {
        _KEYS[path]: _without_comments(text) for path, text in server_files.items() if path.startswith("apiserver/")
    }
    return ServerRevision(content, text_hash("".join(f"{key}\n{text}\0" for key, text in sorted(content.items()))))


def _without_comments(text: str) -> str:
    """Comments stand on lines of their own, and no value of ours has a line that begins like one."""
    return "".join(line for line in text.splitlines(keepends=True) if line.strip() and not line.startswith("#"))


def server_objects(server_files: Mapping[str, str], current: ServerRevision, namespace: str) -> tuple[Object, ...]:
    """The ConfigMaps: the revision first, for the other one names it."""
    data = {_KEYS[name]: text for name, text in server_files.items() if name in _KEYS}
    newest = new("v1", "ConfigMap", APISERVER, namespace, "apiserver", data=data)
    return (
        revision(APISERVER, namespace, "apiserver", of="apiserver", hash_=current.hash, data=dict(current.content)),
        annotated(newest, {REVISION: current.hash}),
    )
