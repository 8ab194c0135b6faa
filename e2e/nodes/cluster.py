"""A cluster of real nodes: its network, etcd, the API servers' address, and kubeadm on each node.

Everything is in one `Space` and in one temporary folder, and ends with the block; what a crashed run left (folders and
cgroups: the kernel has ended all else) the next one removes.
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import yaml

from apiserver import Json, find_binaries
from nodes import images
from nodes.images import REPOSITORY
from nodes.namespaces import Process, Space
from nodes.node import PAUSE, POD_NETWORK, VOLUMES, Node, remove_cgroup
from nodes.real import RealCluster

T = TypeVar("T")

GATEWAY = "10.99.0.1"
"""Of the nodes' network: etcd, the load balancer, and whatever a test lets listen there."""

_PREFIX = "audit-operator-nodes-"
_PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubeadm")
_TOKEN = "abcdef.0123456789abcdef"
_KEY = "0123456789abcdef" * 4
_SYSTEM = ("containerd", "ctr", "runc", "ip", "nft", "conntrack", "nsenter", "unshare", "setpriv")
_HOW_TO_GET_THEM = "apt-get install containerd runc containernetworking-plugins iproute2 nftables conntrack"


def missing(nodes: int = 1) -> str:
    """Why no real nodes can be had here, and how to get them; empty if they can."""
    if os.geteuid() != 0:
        return "real nodes need root, for namespaces, mounts and cgroups; or kind where Docker runs"
    binaries = find_binaries()
    lacking = [name for name in (*_PROGRAMS, "kubectl") if not (binaries and (binaries / name).exists())]
    if lacking:
        where = binaries or "KUBEBUILDER_ASSETS or ~/.local/share/kubebuilder-envtest/k8s/VERSION"
        return (
            f"real nodes need {', '.join(lacking)} in {where}: dl.k8s.io/release/VERSION/bin/linux/ARCH/ has them; "
            "or kind where Docker runs"
        )
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    programs = [*_SYSTEM, *(["haproxy"] if nodes > 1 else [])]
    lacking = [name for name in programs if not shutil.which(name, path=path)]
    if not Path("/usr/lib/cni/bridge").exists():
        lacking.append("/usr/lib/cni")
    return f"real nodes need {', '.join(lacking)}: {_HOW_TO_GET_THEM}" if lacking else ""


class NodeCluster(RealCluster):
    """In namespaces of this machine; all nodes are control-plane nodes."""

    gateway = GATEWAY

    def __init__(self, folder: Path, count: int, binaries: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.kubectl = binaries / "kubectl"
        self.binaries = binaries
        self.nodes: list[Node] = []
        self._stack = contextlib.ExitStack()
        self._count = count
        self.world: Space

    def within(self, function: Callable[[], T]) -> T:
        return self.world.call(function)

    def keep_logs(self, target: Path) -> None:
        for path in (*self.folder.glob("*.log"), *self.folder.glob("*/logs/*.log")):
            (target / path.relative_to(self.folder).parent).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / path.relative_to(self.folder))
        for node in self.nodes:
            pods = node.files / "var/log/pods"
            if pods.exists():
                shutil.copytree(pods, target / node.name / "pods", dirs_exist_ok=True, ignore_dangling_symlinks=True)

    # --- starting ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._stack.callback(remove_cgroup, f"/{self.name}")  # once the processes are gone
        self.world = self._stack.enter_context(Space("world"))
        self.world.script(
            "ip link set lo up; ip link add nodes type bridge; ip addr add $address/24 dev nodes; ip link set nodes up",
            address=GATEWAY,
        )
        self._etcd()
        self.nodes = [
            Node(self.world, number, self.folder, GATEWAY, self.binaries) for number in range(1, self._count + 1)
        ]
        endpoint = GATEWAY if self._count > 1 else self.nodes[0].address
        if self._count > 1:
            self._haproxy()
        archives = self._images()
        for node in self.nodes:
            node.boot()
            for archive in archives:
                node.load_image(archive)
        for archive in archives:
            archive.unlink()
        self._init(self.nodes[0], endpoint)
        port = self._stack.enter_context(self.world.forwarded(endpoint, 6443))
        self.api = self.administrator(f"https://127.0.0.1:{port}")
        for node in self.nodes[1:]:
            self._join(node, endpoint)
        for node in self.nodes:
            node.start_kube_proxy()
        self.wait_for_nodes()
        self._volumes()

    def close(self) -> None:
        self._stack.close()

    def _etcd(self) -> None:
        url = f"http://{GATEWAY}:2379"
        process = self._started(
            self.binaries / "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--unsafe-no-fsync",
            "--log-level=error",
        )

        def answers() -> bool:
            with contextlib.suppress(OSError):
                return bool(urllib.request.urlopen(f"{url}/health", timeout=5).status == 200)
            return False

        process.wait_until(lambda: self.within(answers), "etcd answers", 60)

    def _haproxy(self) -> None:
        servers = "\n".join(
            f"  server {node.name} {node.address}:6443 check check-ssl verify none inter 1s" for node in self.nodes
        )
        path = self.folder / "haproxy.cfg"
        path.write_text(
            "defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 1h\n  timeout server 1h\n"
            f"listen api\n  bind {GATEWAY}:6443\n  option httpchk GET /readyz\n{servers}\n"
        )
        self._started("haproxy", "-f", path)

    def _started(self, *command: str | Path) -> Process:
        program = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or command[0]
        return self.world.start([program, *command[1:]], self.folder / f"{Path(command[0]).name}.log")

    def _images(self) -> list[Path]:
        version = self._version()
        archives = [images.sleeper(PAUSE, self.folder / "pause.tar")]
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
            files = {f"/usr/local/bin/{name}": self.binaries / name}
            archives.append(images.of_files(f"{REPOSITORY}/{name}:{version}", [], files, self.folder / f"{name}.tar"))
        return archives

    def _version(self) -> str:
        kubeadm = str(self.binaries / "kubeadm")
        command = [kubeadm, "version", "-o", "short"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def _registration(self, node: Node) -> Json:
        # Nodes are small and share one machine: nothing of theirs is checked, and everything may run on all of them.
        return {"name": node.name, "ignorePreflightErrors": ["all"], "imagePullPolicy": "Never", "taints": []}

    def _configure(self, node: Node, documents: Sequence[Json]) -> str:
        """Write a kubeadm configuration to the node; its path there."""
        patches = node.files / "etc/kubernetes/patches"
        patches.mkdir(parents=True, exist_ok=True)
        (patches / "kubeletconfiguration0+merge.json").write_text(json.dumps({"cgroupRoot": node.cgroup}))
        (node.files / "etc/kubernetes/kubeadm.yaml").write_text(yaml.safe_dump_all(documents))
        return "/etc/kubernetes/kubeadm.yaml"

    def _init(self, node: Node, endpoint: str) -> None:
        v1beta4, kubelet = "kubeadm.k8s.io/v1beta4", "kubelet.config.k8s.io/v1beta1"
        local = {"advertiseAddress": node.address, "bindPort": 6443}
        init = {
            "apiVersion": v1beta4,
            "kind": "InitConfiguration",
            "localAPIEndpoint": local,
            "nodeRegistration": self._registration(node),
            "bootstrapTokens": [{"token": _TOKEN}],
            "certificateKey": _KEY,
            "patches": {"directory": "/etc/kubernetes/patches"},
            "skipPhases": ["addon"],  # CoreDNS and kube-proxy would be pulled
        }
        cluster = {
            "apiVersion": v1beta4,
            "kind": "ClusterConfiguration",
            "kubernetesVersion": self._version(),
            "imageRepository": REPOSITORY,
            "controlPlaneEndpoint": f"{endpoint}:6443",
            "apiServer": {"certSANs": ["127.0.0.1"]},
            "etcd": {"external": {"endpoints": [f"http://{GATEWAY}:2379"]}},
            "networking": {"podSubnet": f"{POD_NETWORK}.0.0/16", "serviceSubnet": "10.96.0.0/16"},
        }
        never = {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"}
        settings = {
            "apiVersion": kubelet,
            "kind": "KubeletConfiguration",
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,
            "failSwapOn": False,
            "resolvConf": "/etc/resolv.conf",
            "evictionHard": never,
            "imageGCHighThresholdPercent": 100,
        }
        path = self._configure(node, [init, cluster, settings])
        process = node.kubeadm("init", f"--config={path}", "--upload-certs", "--v=1")
        assert process.wait(400) == 0, process.tail()

    def _join(self, node: Node, endpoint: str) -> None:
        join = {
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "JoinConfiguration",
            "discovery": {
                "bootstrapToken": {
                    "token": _TOKEN,
                    "apiServerEndpoint": f"{endpoint}:6443",
                    "unsafeSkipCAVerification": True,
                }
            },
            "controlPlane": {
                "localAPIEndpoint": {"advertiseAddress": node.address, "bindPort": 6443},
                "certificateKey": _KEY,
            },
            "nodeRegistration": self._registration(node),
            "patches": {"directory": "/etc/kubernetes/patches"},
        }
        process = node.kubeadm("join", f"--config={self._configure(node, [join])}", "--v=1")
        assert process.wait(400) == 0, process.tail()

    def _volumes(self) -> None:
        """A default StorageClass, and the nodes' volumes, each for one claim: nobody empties them for the next."""
        name = "local"
        annotations = {"storageclass.kubernetes.io/is-default-class": "true"}
        self.apply(
            "/apis/storage.k8s.io/v1/storageclasses",
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": {"name": name, "annotations": annotations},
                "provisioner": "kubernetes.io/no-provisioner",
                "volumeBindingMode": "WaitForFirstConsumer",
            },
        )
        for where, volume in [(node.name, volume) for node in self.nodes for volume in node.volumes]:
            hostname = {"key": "kubernetes.io/hostname", "operator": "In", "values": [where]}
            self.apply(
                "/api/v1/persistentvolumes",
                {
                    "apiVersion": "v1",
                    "kind": "PersistentVolume",
                    "metadata": {"name": volume},
                    "spec": {
                        "capacity": {"storage": "100Gi"},
                        "accessModes": ["ReadWriteOnce"],
                        "persistentVolumeReclaimPolicy": "Retain",
                        "storageClassName": name,
                        "local": {"path": f"{VOLUMES}/{volume}"},
                        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [hostname]}]}},
                    },
                },
            )


@contextlib.contextmanager
def node_cluster(count: int = 1) -> Iterator[NodeCluster]:
    """A cluster of so many control-plane nodes. LookupError saying what is missing."""
    binaries = find_binaries()
    reason = missing(count)
    if binaries is None or reason:
        raise LookupError(reason)
    _sweep()
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            cluster = NodeCluster(folder, count, binaries)
            try:
                cluster.start()
                yield cluster
            finally:
                cluster.close()


def _sweep() -> None:
    """Remove what runs left that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_cgroup(f"/{folder.name}")
            shutil.rmtree(folder, ignore_errors=True)
