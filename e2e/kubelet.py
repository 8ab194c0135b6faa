"""A stand-in for kubelet, scheduler and network of one node: runs receivers' pods as their workload says.

Each container is a process in a mount namespace of its own: command, arguments, environment and mounts are the pod's,
volumes are filled from the cluster's ConfigMaps and Secrets and follow them late, as a kubelet's do. What is not
imitated: images (the process is this environment's ``audit-operator``), users, limits, a /tmp of its own (TMPDIR says
where it is: what runs may be below /tmp), and a network of its own; each pod gets an address of 127.0.0.0/8, and
listens there instead of on 0.0.0.0.
"""

import asyncio
import base64
import contextlib
import itertools
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from apiserver import ApiServer, Json
from operators import NAMESPACE, must

_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
_ENTRYPOINT = [str(Path(sys.executable).with_name("audit-operator"))]
_PERIOD = 0.2


def require_mounts() -> None:
    """Skip the test where this user may not make mount namespaces."""
    trial = inside({}, ["true"], Path("/nonexistent"))
    if subprocess.run(trial, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs mount namespaces: run as root, or allow user namespaces (kernel.unprivileged_userns_clone)")


def inside(mounts: Mapping[str, Path], command: Sequence[str], layer: Path) -> list[str]:
    """``command`` as it runs with ``mounts`` (where -> folder) in a mount namespace of its own.

    ``layer``: an empty folder. The tops of the paths are overlaid, so that mount points can be made there.
    """
    tops = sorted({str(Path(*Path(where).parts[:2])) for where in mounts if not Path(where).is_dir()})
    lines = ["set -e", f"mkdir -p {layer}", f"mount -t tmpfs tmpfs {layer}"] if tops else ["set -e"]
    for number, top in enumerate(tops):
        upper, work = f"{layer}/{number}u", f"{layer}/{number}w"
        lines += [
            f"mkdir {upper} {work}",
            f"mount -t overlay overlay -o lowerdir={top},upperdir={upper},workdir={work} {top}",
        ]
    for where, source in sorted(mounts.items()):
        lines += [f"mkdir -p {where}", f"mount --bind {shlex.quote(str(source))} {where}"]
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    script = "\n".join([*lines, 'exec "$@"'])
    return ["unshare", *user, "--mount", "--propagation=private", "sh", "-c", script, "sh", *command]


class Pod:
    """One container, started again whenever it ends, until the pod is deleted."""

    def __init__(self, node: "Node", document: Json, address: str) -> None:
        self.name: str = document["metadata"]["name"]
        self.uid: str = document["metadata"]["uid"]
        self.address = address
        self._node = node
        self._spec = document["spec"]
        (self.container,) = document["spec"]["containers"]
        self.folder = node.folder / f"{self.name}-{self.uid[:8]}"
        self.folder.mkdir()
        self.starts = 0
        self.ready = False
        self.process: subprocess.Popen[bytes] | None = None
        self._volumes = {volume["name"]: self._volume(volume) for volume in self._spec["volumes"]}
        self.sync()

    def _volume(self, volume: Json) -> Path:
        if claim := volume.get("persistentVolumeClaim"):
            path = self._node.folder / "claims" / claim["claimName"]
        else:
            path = self.folder / volume["name"]
        path.mkdir(parents=True, exist_ok=True)
        return path

    def sync(self) -> None:
        """Bring volumes up to date: a new folder, and one rename, as kubelets do."""
        for volume in self._spec["volumes"]:
            if source := volume.get("configMap"):
                found = self._node.get("configmaps", source["name"])
            elif source := volume.get("secret"):
                found = self._node.get("secrets", source["secretName"])
            else:
                continue
            if found is None:
                assert source.get("optional"), f"{self.name}: {source} does not exist"
                continue
            _write(self._volumes[volume["name"]], _contents(found), found["metadata"]["resourceVersion"])

    def start(self) -> None:
        """Its container, once more."""
        self.starts += 1
        arguments = [each.replace("0.0.0.0", self.address) for each in self.container.get("args", ())]
        mounts = {mount["mountPath"]: self._volumes[mount["name"]] for mount in self.container["volumeMounts"]}
        temporary = str(mounts.pop("/tmp"))
        command = inside(mounts, [*self.container.get("command", _ENTRYPOINT), *arguments], self.folder / "layer")
        given = {each["name"]: each.get("value", self.uid) for each in self.container.get("env", ())}
        environment = {"PATH": os.environ["PATH"], "HOSTNAME": self.name, "TMPDIR": temporary} | given
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """The container; the pod stays."""
        assert self.process is not None
        self.process.send_signal(number)  # unshare and sh have become the receiver itself
        self.process.wait()

    def probe(self) -> bool:
        """Its readiness probe."""
        get = self.container["readinessProbe"]["httpGet"]
        ports = {each["name"]: each["containerPort"] for each in self.container["ports"]}
        url = f"http://{self.address}:{ports[get['port']]}{get['path']}"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
        return False

    @property
    def port(self) -> int:
        return next(each["containerPort"] for each in self.container["ports"] if each["name"] == "https")

    def log(self) -> str:
        return (self.folder / "log").read_text()


class Node:
    """Runs the pods of the operator's namespace. ``sync_seconds``: how late volumes follow; a kubelet's up to 90 s."""

    def __init__(self, api: ApiServer, folder: Path, sync_seconds: float = 60) -> None:
        self.api = api
        self.folder = folder
        self.pods: dict[str, Pod] = {}
        self.frozen = False
        """While set, nothing is started again."""
        self._sync_seconds = sync_seconds
        self._numbers = itertools.count(2)
        self._stop = threading.Event()
        self._error: BaseException | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator["Node"]:
        """Until the end of the block."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()
            for pod in self.pods.values():
                if pod.process is not None and pod.process.poll() is None:
                    pod.kill()
        if self._error is not None:
            raise self._error

    def get(self, plural: str, name: str) -> Json | None:
        """An object of the operator's namespace."""
        answer = self.api.request("GET", f"/api/v1/namespaces/{NAMESPACE}/{plural}/{name}")
        return answer.body if answer.ok else None

    def ready(self) -> list[Pod]:
        """Pods that a Service would lead to."""
        return [pod for pod in list(self.pods.values()) if pod.ready]

    def _run(self) -> None:
        synced = time.monotonic()
        try:
            while not self._stop.wait(_PERIOD):
                due = time.monotonic() - synced > self._sync_seconds
                if due:
                    synced = time.monotonic()
                with contextlib.suppress(OSError):  # the API server restarts
                    self._pass(due)
        except BaseException as error:
            self._error = error

    def _pass(self, due: bool) -> None:
        answer = self.api.request("GET", _PODS)
        if not answer.ok:
            return
        found = {item["metadata"]["name"]: item for item in answer.body["items"]}
        for name, pod in list(self.pods.items()):
            document = found.get(name)
            known = document["metadata"] if document else {}
            if known.get("uid") != pod.uid or known.get("deletionTimestamp"):
                self._end(pod, document)
        for name, document in found.items():
            if document["metadata"].get("deletionTimestamp"):
                continue
            if name not in self.pods:
                self.pods[name] = Pod(self, document, f"127.0.0.{next(self._numbers)}")
                self.pods[name].start()
            pod = self.pods[name]
            if pod.process is not None and pod.process.poll() is not None and not self.frozen:
                pod.start()
            if due:
                pod.sync()
            pod.ready = pod.process is not None and pod.process.poll() is None and pod.probe()
            self._say(document, pod)

    def _end(self, pod: Pod, document: Json | None) -> None:
        pod.ready = False
        if pod.process is not None and pod.process.poll() is None:
            pod.kill(signal.SIGTERM)
        del self.pods[pod.name]
        if document is not None and document["metadata"]["uid"] == pod.uid:
            self.api.request("DELETE", f"{_PODS}/{pod.name}", {"gracePeriodSeconds": 0})

    def _say(self, document: Json, pod: Pod) -> None:
        ready = "True" if pod.ready else "False"
        status = {
            "phase": "Running",
            "podIP": pod.address,
            "podIPs": [{"ip": pod.address}],
            "conditions": [{"type": "Ready", "status": ready}],
        }
        known = document.get("status", {})
        conditions = {each["type"]: each["status"] for each in known.get("conditions", ())}
        if known.get("podIP") != pod.address or conditions.get("Ready") != ready:
            self.api.request(
                "PATCH", f"{_PODS}/{pod.name}/status", {"status": status}, content="application/merge-patch+json"
            )


def _contents(found: Json) -> dict[str, bytes]:
    if found["kind"] == "Secret":
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    binary = {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}
    return binary | {key: value.encode() for key, value in (found.get("data") or {}).items()}


def _write(folder: Path, files: Mapping[str, bytes], version: str) -> None:
    data = folder / f"..{version}"
    if data.exists():
        return
    data.mkdir()
    for name, content in files.items():
        (data / name).write_bytes(content)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "..new").symlink_to(data.name)
    (folder / "..new").rename(folder / "..data")


@contextlib.contextmanager
def balancer(node: Node, port: int) -> Iterator[None]:
    """What leads API servers to receivers that are ready, by TCP and without ending TLS: a Service's job."""
    turn = itertools.count()
    loop = asyncio.new_event_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        if not writer.is_closing():
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pods = node.ready()
        try:
            pod = pods[next(turn) % len(pods)]
            there = await asyncio.open_connection(pod.address, pod.port)
        except (OSError, ZeroDivisionError):
            writer.close()
            return
        try:
            await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
        except asyncio.CancelledError:
            pass
        finally:
            for each in (writer, there[1]):
                each.close()

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", port) as server:
            with contextlib.suppress(asyncio.CancelledError):
                await server.serve_forever()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    task = loop.create_task(run())
    thread = threading.Thread(target=loop.run_until_complete, args=(task,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


def installed(api: ApiServer, folder: Path) -> tuple[list[str], dict[str, Path]]:
    """What a control-plane node gets from the operator: flags for the API server, and folders where it will look."""
    content = must(api.request("GET", f"/api/v1/namespaces/{NAMESPACE}/configmaps/audit-apiserver"))["data"]
    secret = _contents(must(api.request("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/audit-apiserver-client")))
    folder.mkdir(exist_ok=True)
    for name in ("policy.yaml", "webhook.kubeconfig"):
        (folder / name).write_text(content[name])
    for key, name in (("ca.crt", "ca.crt"), ("tls.crt", "client.crt"), ("tls.key", "client.key")):
        (folder / name).write_bytes(secret[key])
    flags = [line for line in content["flags.txt"].splitlines() if line.startswith("--")]
    return flags, {"/etc/kubernetes/audit": folder}
