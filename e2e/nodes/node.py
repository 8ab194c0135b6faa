"""One machine: containerd, kubelet and kube-proxy in a `Space`, with files of its own where they look for them."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from nodes.images import REPOSITORY
from nodes.machine import Machine
from nodes.namespaces import Process, Space

POD_NETWORK = "10.244"
PAUSE = f"{REPOSITORY}/pause:1"
VOLUMES = "/var/lib/volumes"
_CGROUPS = Path("/sys/fs/cgroup")

_MACHINE = """
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/disk /run/bin
mount --rbind "$disk" /run/disk
mount --bind "$binaries" /run/bin
# What is written below /etc and /var stays on this disk, and what this machine has there is hidden where it matters.
for top in etc var; do
  mkdir -p /run/disk/$top /run/disk/$top.work
  mount -t overlay overlay -o lowerdir=/$top,upperdir=/run/disk/$top,workdir=/run/disk/$top.work /$top
done
for path in /etc/kubernetes /etc/cni/net.d /etc/containerd /var/lib/containerd /var/lib/kubelet /var/lib/cni \\
    /var/log/pods /var/log/containers /var/log/kubernetes "$volumes" /root /tmp; do
  mkdir -p "/run/disk/own$path" "$path"
  mount --rbind "/run/disk/own$path" "$path"
done
mount --make-rshared /
"""
_NETWORK = """
ip link set lo up
ip link set "$link" name eth0
ip addr add "$address/24" dev eth0
ip link set eth0 up
ip route add default via "$gateway"
sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.route_localnet=1
"""
_CONTAINERD = f"""
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  # Without CAP_SYS_RESOURCE, as in a container, nobody may be made less likely to be killed.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""
_ENVIRONMENT = ("PATH=/run/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root")
_KUBELET_FLAGS = "/var/lib/kubelet/kubeadm-flags.env"


class Node(Machine):
    """A machine of a cluster; ``number`` from 1. Its disk is in ``folder`` and outlives its processes."""

    small_volumes = True

    def __init__(self, world: Space, number: int, cluster: Path, gateway: str, binaries: Path) -> None:
        self.name = f"cp{number}"
        self.number = number
        self.address = f"{gateway.rpartition('.')[0]}.{10 + number}"
        self.cgroup = f"/{cluster.name}/{self.name}"
        self.folder = cluster / self.name
        self.logs = self.folder / "logs"
        self.logs.mkdir(parents=True)
        self.volumes = [f"{self.name}-{letter}" for letter in "abcd"]
        self._world, self._gateway, self._binaries = world, gateway, binaries
        self._processes: dict[str, Process] = {}
        self.space: Space
        # In the world's mounts, so that what is on them outlives the node's. Small: a test can fill one.
        self._world.script(
            'for name in $names; do mkdir -p "$top/$name"; mount -t tmpfs -o size=256m tmpfs "$top/$name"; done',
            top=self.files / VOLUMES[1:],
            names=" ".join(self.volumes),
        )

    @property
    def files(self) -> Path:
        """What the node has mounted as a disk of its own, by path, as this process sees it."""
        return self.folder / "disk" / "own"

    def boot(self) -> None:
        """Its namespaces, its network, containerd; and kubelet and kube-proxy, if the node is in a cluster."""
        self.space = Space(self.name, self._world)
        self.space.script(_MACHINE, disk=self.folder / "disk", binaries=self._binaries, volumes=VOLUMES)
        link = f"veth{self.number}"
        self._world.script(
            'ip link add "$link" type veth peer name "$link" netns "$pid"; ip link set "$link" master nodes up',
            link=link,
            # As the world's processes see it, not as this one does.
            pid=Path(f"/proc/{self.space.pid}/status").read_text().partition("NSpid:")[2].split()[1],
        )
        self.space.script(_NETWORK, link=link, address=self.address, gateway=self._gateway)
        self._world.run("ip", "route", "replace", f"{self.pods}.0/24", "via", self.address)
        for peer in {*range(1, 10)} - {self.number}:  # the way to others' pods
            via = f"{self._gateway.rpartition('.')[0]}.{10 + peer}"
            self.space.run("ip", "route", "replace", f"{POD_NETWORK}.{peer}.0/24", "via", via)
        make_cgroup(self.cgroup)
        (self.files / "etc/containerd/config.toml").write_text(_CONTAINERD)
        (self.files / "etc/cni/net.d/10-bridge.conflist").write_text(json.dumps(self._cni()))
        self.start_containerd()
        if (self.files / _KUBELET_FLAGS[1:]).exists():
            self.start_kubelet()
            self.start_kube_proxy()

    @property
    def pods(self) -> str:
        """How its pods' addresses begin."""
        return f"{POD_NETWORK}.{self.number}"

    def _cni(self) -> dict[str, object]:
        subnet = [{"subnet": f"{self.pods}.0/24"}]
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True}
        ipam = {"type": "host-local", "ranges": [subnet], "routes": [{"dst": "0.0.0.0/0"}]}
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge | {"ipam": ipam}, ports]}

    def entered(self, command: Sequence[str]) -> list[str]:
        return self.space.entered(["env", *_ENVIRONMENT, *command])

    # --- what runs on it ---------------------------------------------------------------------------------------------

    def _start(self, *command: str) -> Process:
        name = command[0]
        process = self.space.start(["env", *_ENVIRONMENT, *command], self.logs / f"{name}.log", name)
        self._processes[name] = process
        return process

    def start_containerd(self) -> None:
        process = self._start("containerd")
        process.wait_until(lambda: self.run("ctr", "version", check=False).code == 0, "containerd answers", 60)

    def start_kubelet(self) -> None:
        """As kubeadm's systemd unit does."""
        text = (self.files / _KUBELET_FLAGS[1:]).read_text()
        flags = text.partition('"')[2].rpartition('"')[0].split()
        configuration = ("--kubeconfig=/etc/kubernetes/kubelet.conf", "--config=/var/lib/kubelet/config.yaml")
        bootstrap = "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf"
        self._start("kubelet", bootstrap, *configuration, *flags)

    def start_kube_proxy(self) -> None:
        """As a process: kubeadm's DaemonSet is an addon with an image of its own."""
        conntrack = ("max-per-core", "tcp-timeout-established", "tcp-timeout-close-wait")
        self._start(
            "kube-proxy",
            "--kubeconfig=/etc/kubernetes/admin.conf",
            "--proxy-mode=nftables",
            f"--hostname-override={self.name}",
            f"--cluster-cidr={POD_NETWORK}.0.0/16",
            *(f"--conntrack-{name}=0" for name in conntrack),  # those are the whole machine's, and not to be set here
        )

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End kubelet, containerd or kube-proxy."""
        self._processes.pop(name).kill(number)

    def restart_kubelet(self) -> None:
        self.stop("kubelet")
        self.start_kubelet()

    def shut_down(self) -> None:
        """As if its power were cut: every process and every mount is gone; the disk stays."""
        self.space.close()
        self._processes.clear()
        remove_cgroup(self.cgroup)

    def kubeadm(self, *arguments: str) -> Process:
        """kubeadm, which makes kubelet's files first and then waits for it, as systemd would start it meanwhile."""
        process = self._start("kubeadm", *arguments)
        flags = self.files / _KUBELET_FLAGS[1:]
        process.wait_until(lambda: flags.exists() or not process.running, "kubelet's flags are there")
        if flags.exists():
            self.start_kubelet()
        return process


# --- cgroups ---------------------------------------------------------------------------------------------------------


def _hierarchies() -> list[Path]:
    if (_CGROUPS / "cgroup.controllers").exists():  # v2
        return [_CGROUPS]
    return [path for path in _CGROUPS.iterdir() if (path / "cgroup.procs").exists()]


def make_cgroup(name: str) -> None:
    """For one node: a kubelet removes every pod's cgroup below its own that it does not know."""
    for top in _hierarchies():
        path = top
        for part in Path(name).parts[1:]:
            parent, path = path, path / part
            path.mkdir(exist_ok=True)
            for setting in ("cpuset.cpus", "cpuset.mems"):  # v1: empty, and then nothing may run there
                if (path / setting).exists() and top.name == "cpuset":
                    (path / setting).write_text((parent / setting).read_text())
            if (parent / "cgroup.subtree_control").exists():  # v2
                for controller in (parent / "cgroup.controllers").read_text().split():
                    with contextlib.suppress(OSError):
                        (parent / "cgroup.subtree_control").write_text(f"+{controller}")


def remove_cgroup(name: str) -> None:
    """With all that is below it, once its processes are gone."""
    for top in _hierarchies():
        path = top / name.lstrip("/")
        for _ in range(50):
            for folder, _, _ in os.walk(path, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
            if not path.exists():
                break
            time.sleep(0.1)  # processes that were killed are not gone yet
