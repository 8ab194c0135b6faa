"""The configuration that turns audit on by hand: for kubeadm, and for a kind cluster to try it in."""

from collections.abc import Sequence
from typing import Any, Final

from audit_operator.policy.kinds import Version
from audit_operator.render.flags import NODE_DIRECTORY, Flag
from audit_operator.resources.yamlwriter import write

_EXTRA_ARGS_AS_LIST: Final = (1, 31)
"""kubeadm reads v1beta4, in which extraArgs is a list, since 1.31."""


def kubeadm(flags: Sequence[Flag], log_directory: str | None, server: Version, *, header: str = "") -> str:
    """The ClusterConfiguration, or what to add to the one there is, for kubeadm of version ``server``.

    ``log_directory``: the node's folder for the log backend's files, None if it writes none.
    """
    api = "v1beta4" if server >= _EXTRA_ARGS_AS_LIST else "v1beta3"
    return write(_cluster_configuration(flags, log_directory, api), header=header)


def kind(flags: Sequence[Flag], log_directory: str | None, *, header: str = "") -> str:
    """A kind cluster with audit on; the folder ``apiserver`` beside the working directory becomes the node's.

    Which kubeadm API kind patches depends on its own release and the node image, so both forms are there: a patch
    whose apiVersion is another one is left alone.
    """
    node: dict[str, Any] = {
        "role": "control-plane",
        "extraMounts": [{"hostPath": "./apiserver", "containerPath": NODE_DIRECTORY, "readOnly": True}],
        "kubeadmConfigPatches": [
            write(_cluster_configuration(flags, log_directory, api)) for api in ("v1beta4", "v1beta3")
        ],
    }
    return write({"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": [node]}, header=header)


def _cluster_configuration(flags: Sequence[Flag], log_directory: str | None, api: str) -> dict[str, Any]:
    volumes = [_volume("audit-config", NODE_DIRECTORY, read_only=True, path_type="Directory")]
    if log_directory is not None:
        volumes.append(_volume("audit-log", log_directory, read_only=False, path_type="DirectoryOrCreate"))
    return {
        "apiVersion": f"kubeadm.k8s.io/{api}",
        "kind": "ClusterConfiguration",
        "apiServer": {
            "extraArgs": [{"name": flag.name, "value": flag.value} for flag in flags]
            if api == "v1beta4"
            else {flag.name: flag.value for flag in flags},
            "extraVolumes": volumes,
        },
    }


def _volume(name: str, path: str, *, read_only: bool, path_type: str) -> dict[str, Any]:
    return {"name": name, "hostPath": path, "mountPath": path, "readOnly": read_only, "pathType": path_type}
