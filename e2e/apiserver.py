"""A real API server to test against: one that E2E_KUBECONFIG names, or kube-apiserver and etcd started here.

The binaries are looked for in KUBEBUILDER_ASSETS, then where `setup-envtest` puts them. Everything started here listens
on loopback, lives in a temporary folder, and ends with the context.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

Json = dict[str, Any]

HOW_TO_GET_ONE = (
    "no API server: set E2E_KUBECONFIG to a cluster that may be changed, or KUBEBUILDER_ASSETS to a folder with "
    "kube-apiserver and etcd (`setup-envtest use 1.36.x -p path` fetches one); or install kind where Docker runs"
)

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


@dataclass(frozen=True)
class Answer:
    """What the API server answered: HTTP status, JSON body, warnings."""

    status: int
    body: Json
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return self.status < 300

    @property
    def causes(self) -> tuple[tuple[str, str], ...]:
        """(field, message) of every cause of a refusal."""
        causes = self.body.get("details", {}).get("causes", ())
        return tuple((cause.get("field", ""), cause.get("message", "")) for cause in causes)


@dataclass(frozen=True)
class ApiServer:
    """Where an API server is and how to be let in; requests are JSON over HTTP, nothing more."""

    url: str
    token: str | None = None
    ca: Path | None = None

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content: str = "application/json",
        accept: str = "",
        headers: Mapping[str, str] = MappingProxyType({}),
        token: str = "",
    ) -> Answer:
        """``token``: another user's."""
        headers = {"Accept": accept or "application/json", "Content-Type": content, **headers}
        if self.token:
            headers["Authorization"] = f"Bearer {token or self.token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        context = ssl.create_default_context(cafile=self.ca) if self.ca else None
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as response:
                return _answer(response)
        except urllib.error.HTTPError as error:
            with error:
                return _answer(error)

    def stream(self, path: str, started: threading.Event) -> Iterator[Json]:
        """The events of a watch; ``started`` is set once it has begun."""
        request = urllib.request.Request(f"{self.url}{path}", headers={"Authorization": f"Bearer {self.token}"})
        context = ssl.create_default_context(cafile=self.ca) if self.ca else None
        with urllib.request.urlopen(request, timeout=60, context=context) as response:
            started.set()
            for line in response:
                yield json.loads(line)

    def apply(self, path: str, document: Json) -> Answer:
        """Server-side apply of the object at ``path``."""
        return self.request("PATCH", f"{path}?fieldManager=e2e", document, content=APPLY)

    def check(self, folder: str, document: Json) -> Answer:
        """What creating the object in ``folder`` would lead to; unknown fields are errors."""
        return self.request("POST", f"{folder}?dryRun=All&fieldValidation=Strict", document)


def _answer(response: Any) -> Answer:
    warnings = tuple(response.headers.get_all("Warning") or ())
    text = response.read().decode()
    try:
        body = json.loads(text)
    except ValueError:  # text, nothing, or the lines of a watch
        body = {"text": text}
    if not isinstance(body, dict):
        body = {"text": text}
    return Answer(response.status, body, warnings)


@contextlib.contextmanager
def running(flags: Sequence[str] = ()) -> Iterator[ApiServer]:
    """An API server; ``flags`` are added where it is started here. Raises LookupError saying how to get one."""
    if kubeconfig := os.environ.get("E2E_KUBECONFIG"):
        with _proxy(kubeconfig) as server:
            yield server
        return
    if find_binaries() is None and not flags and kind_works():
        with _kind() as server:
            yield server
        return
    with control_plane(flags) as plane:
        yield plane.api


_CONTROLLERS = ("garbage-collector-controller", "namespace-controller", "serviceaccount-controller")


class ControlPlane:
    """etcd and a kube-apiserver, which can be stopped and started again, at the same address and with new flags."""

    def __init__(self, binaries: Path, folder: Path, flags: Sequence[str]) -> None:
        self.binaries = binaries
        self.folder = folder
        self.flags = flags
        self.wrap: Callable[[list[str]], list[str]] = lambda command: command
        """How the API server's command is run."""
        self._stack = contextlib.ExitStack()
        self._server = contextlib.ExitStack()
        self._port = free_port()
        self._token = secrets.token_hex(16)
        self.api: ApiServer

    def __enter__(self) -> "ControlPlane":
        self._etcd = self._stack.enter_context(_etcd(self.binaries, self.folder))
        key = self.folder / "service-account.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        (self.folder / "tokens.csv").write_text(f"{self._token},admin,admin,system:masters\n")
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._stack.close()

    def start(self) -> None:
        """Start the API server and wait until it is ready."""
        command = _kube_apiserver(self.binaries, self.folder, self._etcd, self._port, self.flags)
        log = self.folder / "kube-apiserver.log"
        process = self._server.enter_context(_process(self.wrap(command), log))
        # It writes its own certificate before it listens.
        certificate = self.folder / "certificates" / "apiserver.crt"
        _wait(certificate.exists, process, log)
        self.api = ApiServer(f"https://127.0.0.1:{self._port}", self._token, certificate)
        _wait_until_ready(self.api, process, log)

    def stop(self) -> None:
        """Stop the API server; etcd stays."""
        self._server.close()

    def kubeconfig(self, token: str = "") -> Path:
        """A kubeconfig for this server, of the user with this token, else of the administrator."""
        token = token or self._token
        path = self.folder / f"kubeconfig-{hashlib.sha256(token.encode()).hexdigest()[:8]}"
        cluster = {"server": self.api.url, "certificate-authority": str(self.api.ca)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "e2e",
            "clusters": [{"name": "e2e", "cluster": cluster}],
            "users": [{"name": "e2e", "user": {"token": token}}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
        }
        path.write_text(json.dumps(config))  # JSON is YAML
        path.chmod(0o600)
        return path

    @contextlib.contextmanager
    def controller_manager(self, *controllers: str) -> Iterator[None]:
        """kube-controller-manager with its garbage collector, and with these. Raises LookupError without one."""
        binary = self.binaries / "kube-controller-manager"
        if not binary.exists():
            raise LookupError(f"no kube-controller-manager beside kube-apiserver in {self.binaries}")
        command = [
            str(binary),
            f"--kubeconfig={self.kubeconfig()}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={free_port()}",
            f"--cert-dir={self.folder / 'controller-manager'}",
            f"--controllers={','.join((*_CONTROLLERS, *controllers))}",
        ]
        with _process(command, self.folder / "kube-controller-manager.log"):
            yield


@contextlib.contextmanager
def control_plane(flags: Sequence[str] = ()) -> Iterator[ControlPlane]:
    """A control plane started here; ``flags`` are the API server's. Raises LookupError saying how to get one."""
    binaries = find_binaries()
    if binaries is None:
        raise LookupError(HOW_TO_GET_ONE)
    with (
        tempfile.TemporaryDirectory(prefix="audit-operator-e2e-") as folder,
        ControlPlane(binaries, Path(folder), flags) as plane,
    ):
        yield plane


def find_binaries() -> Path | None:
    """The folder with kube-apiserver and etcd; of several versions the newest."""
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        return Path(assets) if (Path(assets) / "kube-apiserver").exists() else None
    versions = Path.home().glob(".local/share/kubebuilder-envtest/k8s/*/kube-apiserver")
    found = sorted(versions, key=lambda path: [int(number) for number in re.findall(r"\d+", path.parent.name)[:3]])
    return found[-1].parent if found else None


def kind_works() -> bool:
    """Whether there can be clusters in Docker."""
    return bool(shutil.which("kind") and shutil.which("kubectl")) and docker_runs()


def docker_runs() -> bool:
    """Whether there is a Docker daemon to talk to."""
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def _kind() -> Iterator[ApiServer]:
    """A cluster in Docker, for as long as the tests run."""
    name = f"audit-operator-e2e-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory() as folder:
        kubeconfig = str(Path(folder) / "kubeconfig")
        create = ["kind", "create", "cluster", f"--name={name}", f"--kubeconfig={kubeconfig}", "--wait=120s"]
        subprocess.run(create, check=True, capture_output=True)
        try:
            with _proxy(kubeconfig) as server:
                yield server
        finally:
            subprocess.run(["kind", "delete", "cluster", f"--name={name}"], check=True, capture_output=True)


@contextlib.contextmanager
def _proxy(kubeconfig: str) -> Iterator[ApiServer]:
    """`kubectl proxy`, which knows every way to log in that a kubeconfig can ask for."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise LookupError("E2E_KUBECONFIG needs kubectl on the PATH")
    port = free_port()
    command = [kubectl, "proxy", f"--kubeconfig={kubeconfig}", f"--port={port}", "--reject-paths=^$"]
    with tempfile.TemporaryDirectory() as folder, _process(command, Path(folder) / "proxy.log") as process:
        server = ApiServer(f"http://127.0.0.1:{port}")
        _wait_until_ready(server, process, Path(folder) / "proxy.log")
        yield server


@contextlib.contextmanager
def _etcd(binaries: Path, folder: Path) -> Iterator[str]:
    url, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    command = [
        str(binaries / "etcd"),
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--listen-peer-urls={peer}",
        "--unsafe-no-fsync",
        "--log-level=error",
    ]
    with _process(command, folder / "etcd.log"):
        yield url


def _kube_apiserver(binaries: Path, folder: Path, etcd: str, port: int, flags: Sequence[str]) -> list[str]:
    key = folder / "service-account.key"
    return [
        str(binaries / "kube-apiserver"),
        f"--etcd-servers={etcd}",
        f"--cert-dir={folder / 'certificates'}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--disable-admission-plugins=ServiceAccount",
        *flags,
    ]


@contextlib.contextmanager
def _process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_environment())
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _environment() -> Mapping[str, str]:
    """Nothing on loopback goes through a proxy."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def _wait_until_ready(server: ApiServer, process: subprocess.Popen[bytes], log: Path) -> None:
    def ready() -> bool:
        try:
            return server.request("GET", "/readyz").ok
        except (OSError, urllib.error.URLError):
            return False

    _wait(ready, process, log)


def _wait(condition: Any, process: subprocess.Popen[bytes], log: Path, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"{process.args[0]} does not come up:\n{tail}")  # type: ignore[index]
        time.sleep(0.2)


def eventually(condition: Callable[[], object], seconds: float = 30) -> None:
    """Waits until ``condition`` holds; AssertionError if it never does."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
