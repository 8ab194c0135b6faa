"""`audit-operator run` as a process of its own, as a service account that may do what the chart grants and no more."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from apiserver import ApiServer, ControlPlane, Json, free_port
from audit_operator.controller.permissions import LEASE, PERMISSIONS, Permission
from audit_operator.render.world import ReceiverAddress

T = TypeVar("T")

NAMESPACE = "audit-system"
USER = f"system:serviceaccount:{NAMESPACE}:audit-operator"
GROUP = "/apis/audit-operator.dev/v1alpha1"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


def install(api: ApiServer, permissions: tuple[Permission, ...] = PERMISSIONS) -> str:
    """What the chart makes around the operator; a token of its service account."""
    must(api.apply(f"/api/v1/namespaces/{NAMESPACE}", _object("v1", "Namespace", NAMESPACE)))
    folder = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
    must(api.apply(f"{folder}/audit-operator", _object("v1", "ServiceAccount", "audit-operator", NAMESPACE)))
    grant(api, permissions)
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{LEASE}"
    must(api.apply(lease, _object("coordination.k8s.io/v1", "Lease", LEASE, NAMESPACE)))
    return token_of(api, NAMESPACE)


def token_of(api: ApiServer, namespace: str) -> str:
    """A token of the operator's service account, as its pod gets one."""
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 86400}}
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/audit-operator/token"
    token: str = must(api.request("POST", path, request))["status"]["token"]
    return token


def grant(api: ApiServer, permissions: tuple[Permission, ...]) -> None:
    """Let the operator do this, and nothing else."""
    subject = [{"kind": "ServiceAccount", "name": "audit-operator", "namespace": NAMESPACE}]
    for kind, namespace in (("ClusterRole", ""), ("Role", NAMESPACE)):
        rules = [
            {"apiGroups": [each.group], "resources": [each.resource], "verbs": list(each.verbs)}
            | ({"resourceNames": list(each.names)} if each.names else {})
            for each in permissions
            if (each.scope == "root namespace") == bool(namespace)
        ]
        where = f"{RBAC}/namespaces/{namespace}" if namespace else RBAC
        role = _object(RBAC[6:], kind, "audit-operator", namespace) | {"rules": rules}
        must(api.apply(f"{where}/{kind.lower()}s/audit-operator", role))
        binding = _object(RBAC[6:], f"{kind}Binding", "audit-operator", namespace) | {
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "audit-operator"},
            "subjects": subject,
        }
        must(api.apply(f"{where}/{kind.lower()}bindings/audit-operator", binding))


def _object(api_version: str, kind: str, name: str, namespace: str = "") -> Json:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


def must(answer: Any) -> Json:
    """The body of an answer that is no refusal."""
    assert answer.ok, (answer.status, answer.body.get("message", answer.body))
    body: Json = answer.body
    return body


class Operator:
    """A running operator. ``environment``: as its pod has it."""

    def __init__(
        self, plane: ControlPlane, token: str, name: str, *options: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.port = free_port()
        self.log = plane.folder / f"{name}.log"
        self._command = [
            str(Path(sys.executable).with_name("audit-operator")),
            "run",
            f"--kubeconfig={plane.kubeconfig(token)}",
            *options,
            f"--listen=127.0.0.1:{self.port}",
        ]
        self._environment = environment or {
            "POD_NAME": name,
            "POD_NAMESPACE": NAMESPACE,
            "AUDIT_OPERATOR_IMAGE": "registry.example/audit-operator:test",
        }
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as output:
            around = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
            environment = around | self._environment
            self.process = subprocess.Popen(self._command, stdout=output, stderr=output, env=environment)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; the exit code. One that does not end in time is killed, and fails the test."""
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of one of its own endpoints; 0 if it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """The sum of all series of a metric."""
        _, text = self.get("/metrics")
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name
        )

    def entries(self) -> list[Json]:
        """What it logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


@contextlib.contextmanager
def running(
    plane: ControlPlane,
    token: str,
    name: str = "one",
    *options: str,
    environment: Mapping[str, str] | None = None,
    seconds: float = 30,
) -> Iterator[Operator]:
    """An operator that is ready."""
    operator = Operator(plane, token, name, *options, environment=environment)
    try:
        wait_for(lambda: operator.get("/readyz")[0] == 200, f"{name} is ready", operator, seconds)
        yield operator
    finally:
        if operator.process.poll() is None:
            operator.terminate()


def wait_for(condition: Callable[[], T], what: str, operator: Operator | None = None, seconds: float = 30) -> T:
    """The first true result of ``condition``. Fails with the end of the operator's log."""
    until = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        if time.monotonic() > until:
            tail = "\n".join(operator.log.read_text().splitlines()[-25:]) if operator else ""
            raise AssertionError(f"not within {seconds} s: {what}\n{tail}")
        time.sleep(0.1)


def condition(document: Json, type_: str) -> Json:
    """One condition of a resource; empty if it has none of the type, or none of its generation."""
    found = next((each for each in document.get("status", {}).get("conditions", ()) if each["type"] == type_), {})
    return found if found.get("observedGeneration") == document["metadata"]["generation"] else {}


def address(service: Json | None) -> ReceiverAddress:
    """Where the cluster put the receivers' Service."""
    return ReceiverAddress(cluster_ip=service["spec"]["clusterIP"]) if service else ReceiverAddress()
