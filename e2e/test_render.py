"""What is rendered, in a real API server: it starts, records, delivers over mutual TLS, and takes every object."""

import base64
import contextlib
import http.server
import json
import os
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import apiserver
from audit_operator.render.plan import Plan, render
from audit_operator.render.world import Certificates, Resources, World
from audit_operator.resources.load import load_resource

Json = dict[str, Any]
Event = dict[str, Any]

NAMESPACE = "audit-system"
FOLDERS = {
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "Secret": "/api/v1/namespaces/{}/secrets",
    "Service": "/api/v1/namespaces/{}/services",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "StatefulSet": "/apis/apps/v1/namespaces/{}/statefulsets",
}
SINK = {"kind": "AuditSink", "metadata": {"name": "out"}, "spec": {"stdout": {}}}
POLICY = {
    "kind": "AuditPolicy",
    "metadata": {"name": "changes"},
    "spec": {
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "users": ["system:apiserver"]},
            {"level": "Request", "resources": [{"group": "", "resources": ["configmaps"]}], "namespaces": ["default"]},
            {"level": "Minimal", "nonResourceURLs": ["/version"]},
            {"level": "Metadata", "verbs": ["no"], "users": ["1e3", "0755", "null"]},
        ],
        "sinks": [{"name": "out"}],
    },
}


def plan(*documents: Json, world: World | None = None, **backend: Any) -> Plan:
    backend_document = {
        "kind": "AuditBackend",
        "metadata": {"name": "default"},
        "spec": {"clusterName": "e2e"} | backend,
    }
    resources = [
        load_resource({"apiVersion": "audit-operator.dev/v1alpha1"} | document)
        for document in (backend_document, SINK, *documents)
    ]
    return render(Resources.of(resources, namespace=NAMESPACE), world or World())


# --- objects ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def namespace(api: apiserver.ApiServer) -> None:
    """The root namespace, under the strictest Pod Security Standard; objects are checked in it, not created."""
    document = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/warn": "restricted"}},
    }
    assert api.apply(f"/api/v1/namespaces/{NAMESPACE}", document).ok


CERTIFICATES = Certificates(
    ca="ca", server_certificate="server", server_key="key", client_certificate="client", client_key="key"
)


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize(
    "receiver",
    [
        {},
        {"storage": {"ephemeral": {"sizeLimit": "1Gi"}}, "exposure": {"clusterIP": {"clusterIP": "10.0.0.77"}}},
        {"exposure": {"nodePort": {"addresses": ["10.0.0.1"], "port": 30443}}},
        {"exposure": {"loadBalancer": {"sourceRanges": ["10.0.0.0/8"], "loadBalancerClass": "example.com/lb"}}},
        {
            "replicas": 3,
            "resources": {"limits": {"memory": "2Gi", "cpu": 2}},
            "tolerations": [{"operator": "Exists"}, {"key": "k", "effect": "NoExecute", "tolerationSeconds": 5}],
            "topologySpreadConstraints": [{"topologyKey": "rack"}],
            "imagePullSecrets": [{"name": "pull"}],
            "podLabels": {"team": "platform"},
        },
    ],
)
def test_a_real_api_server_takes_every_object_without_a_warning(api: apiserver.ApiServer, receiver: Json) -> None:
    claim = {"kind": "AuditSink", "metadata": {"name": "file"}, "spec": {"file": {"claimName": "archive.one"}}}
    for item in plan(POLICY, claim, receiver=receiver, world=World(certificates=CERTIFICATES)).objects:
        if item["kind"] == "Secret":
            continue  # these are not PEM, which is what a kubernetes.io/tls Secret is checked for
        answer = api.check(FOLDERS[item["kind"]].format(NAMESPACE), item)
        assert answer.ok, (item["kind"], answer.body.get("message"))
        assert answer.warnings == ()


@pytest.fixture
def kubectl(api: apiserver.ApiServer, tmp_path: Path) -> dict[str, str]:
    """The environment in which kubectl reaches the API server."""
    found = shutil.which("kubectl")
    if found is None or api.token is None or api.ca is None:
        pytest.skip("needs kubectl and an API server started here")
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "e2e", "cluster": {"server": api.url, "certificate-authority": str(api.ca)}}],
        "users": [{"name": "e2e", "user": {"token": api.token}}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
        "current-context": "e2e",
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    return {"KUBECONFIG": str(path), "PATH": os.environ["PATH"], "HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}


@pytest.mark.usefixtures("namespace")
def test_the_script_for_credentials_copies_them_and_keeps_the_hash_key(
    api: apiserver.ApiServer, kubectl: dict[str, str], tmp_path: Path
) -> None:
    token, ca = b"s3cret with a newline\n", "-----BEGIN CERTIFICATE-----\n"
    data = {"data": {"api.token": base64.b64encode(token).decode()}}
    for folder, item in (
        ("secrets", {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "siem"}} | data),
        ("configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": {"ca.crt": ca}}),
    ):
        assert api.request("POST", f"/api/v1/namespaces/{NAMESPACE}/{folder}", item).ok
    sink = {
        "kind": "AuditSink",
        "metadata": {"name": "siem"},
        "spec": {
            "splunk": {"url": "https://splunk", "token": {"name": "siem", "key": "api.token"}},
            "tls": {"caConfigMap": {"name": "ca"}},
        },
    }
    redaction = {
        "resources": [{"group": "example.com", "resources": ["logins"]}],
        "paths": ["spec.x"],
        "action": "Hash",
    }
    hashing = {"kind": "AuditPolicy", "metadata": {"name": "h"}, "spec": {"preset": "CIS", "redactions": [redaction]}}
    hashing["spec"]["sinks"] = [{"name": "siem"}]  # type: ignore[index]
    script = tmp_path / "credentials.sh"
    script.write_text(plan(sink, hashing).files()["credentials.sh"])

    def credentials() -> dict[str, bytes]:
        subprocess.run(["sh", script], env=kubectl, check=True, capture_output=True)
        answer = api.request("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/audit-receiver-credentials")
        return {key: base64.b64decode(value) for key, value in answer.body["data"].items()}

    first = credentials()
    key = first.pop("hash-key")
    assert len(key.strip()) == 64
    assert first == {
        f"secret_{NAMESPACE}_siem_api.token": token,
        f"configmap_{NAMESPACE}_ca_ca.crt": ca.encode(),
    }
    assert credentials() == first | {"hash-key": key}


# --- an API server with it -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _own_api_server() -> None:
    """These tests start API servers with flags of their own."""
    if os.environ.get("E2E_KUBECONFIG") or apiserver.find_binaries() is None:
        pytest.skip(apiserver.HOW_TO_GET_ONE)


def install(made: Plan, folder: Path) -> list[str]:
    """The rendered files in a folder, certificates made by the rendered script; the flags that point there."""
    for name, text in made.files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run(["sh", folder / "certificates.sh"], check=True, capture_output=True)
    node = folder / "apiserver"
    kubeconfig = node / "webhook.kubeconfig"
    kubeconfig.write_text(kubeconfig.read_text().replace("/etc/kubernetes/audit", str(node)))
    moved = {"/etc/kubernetes/audit": str(node), "/var/log/kubernetes/audit": str(folder / "log")}
    flags = [line for line in (node / "flags.txt").read_text().splitlines() if line.startswith("--")]
    for old, new in moved.items():
        flags = [flag.replace(old, new) for flag in flags]
    return flags


class Receiver(http.server.ThreadingHTTPServer):
    """Takes EventLists over mutual TLS and keeps their events."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.events: list[Event] = []
        self.paths: set[str] = set()
        self.largest = 0
        self.most = 0

    def secure(self, certificates: Path) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.crt")
        context.load_cert_chain(certificates / "receiver.crt", certificates / "receiver.key")
        context.verify_mode = ssl.CERT_REQUIRED
        self.socket = context.wrap_socket(self.socket, server_side=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.largest = max(self.server.largest, len(body))
        self.server.paths.add(self.path.partition("?")[0])
        items = json.loads(body)["items"]
        self.server.most = max(self.server.most, len(items))
        self.server.events += items
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        """Says nothing."""


@contextlib.contextmanager
def receiving(server: Receiver) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def wait(condition: Callable[[], object], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.1)


def external(port: int) -> Mapping[str, Any]:
    return {"exposure": {"external": {"host": "127.0.0.1", "port": port}}}


@pytest.mark.usefixtures("_own_api_server")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_api_server_with_the_rendered_files_records_and_delivers_what_was_asked_for(tmp_path: Path) -> None:
    receiver = Receiver()
    webhook = {"batch": {"maxWait": "200ms"}, "truncate": {"enabled": True, "maxEventSize": 5000}}
    made = plan(POLICY, receiver=external(receiver.server_port), webhook=webhook)
    flags = install(made, tmp_path)
    receiver.secure(tmp_path / "certificates")
    with receiving(receiver), apiserver.running(flags) as api:
        document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "seen"}, "data": {"k": "v"}}
        assert api.request("POST", "/api/v1/namespaces/default/configmaps", document).ok
        large = document | {"metadata": {"name": "large"}, "data": {"k": "v" * 10000}}
        assert api.request("POST", "/api/v1/namespaces/default/configmaps", large).ok
        assert api.request("GET", "/version").ok
        assert api.request("GET", "/api/v1/namespaces/default/secrets").ok

        def by_uri(path: str) -> list[Event]:
            return [event for event in receiver.events if event["requestURI"].partition("?")[0] == path]

        wait(lambda: by_uri("/version") and len(by_uri("/api/v1/namespaces/default/configmaps")) == 2)
        created, cut = by_uri("/api/v1/namespaces/default/configmaps")
        assert (created["level"], created["stage"]) == ("Request", "ResponseComplete")
        assert created["requestObject"]["data"] == {"k": "v"}
        assert "responseObject" not in created
        assert "requestObject" not in cut  # above maxEventSize: the envelope stays
        assert cut["annotations"]["audit.k8s.io/truncated"] == "true"
        assert {event["level"] for event in by_uri("/version")} == {"Metadata"}
        assert not by_uri("/api/v1/namespaces/default/secrets")
        assert receiver.paths == {"/audit"}
        assert made.flags.body_limit is not None
        assert receiver.largest <= made.flags.body_limit
        log = (tmp_path / "log" / "audit.log").read_text()
        assert '"requestURI":"/version"' in log


@pytest.mark.usefixtures("_own_api_server")
def test_in_the_blocking_modes_an_event_travels_alone(tmp_path: Path) -> None:
    receiver = Receiver()
    made = plan(POLICY, receiver=external(receiver.server_port), webhook={"mode": "blocking"})
    flags = install(made, tmp_path)
    receiver.secure(tmp_path / "certificates")
    with receiving(receiver), apiserver.running(flags) as api:
        threads = [threading.Thread(target=api.request, args=("GET", "/version")) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait(lambda: len(receiver.events) >= 8)
        assert receiver.most == 1


@pytest.mark.usefixtures("_own_api_server")
def test_an_api_server_takes_every_flag_that_can_be_rendered(tmp_path: Path) -> None:
    truncate = {"enabled": True, "maxEventSize": 50000, "maxBatchSize": 60000}
    made = plan(
        POLICY,
        receiver=external(1),
        log={
            "maxAge": 1,
            "maxBackups": 2,
            "maxSize": 3,
            "compress": True,
            "format": "legacy",
            "mode": "batch",
            "truncate": truncate,
        },
        webhook={
            "mode": "batch",
            "batch": {
                "bufferSize": 100,
                "maxSize": 50,
                "maxWait": "1s",
                "throttle": {"enabled": True, "qps": 5, "burst": 6},
            },
            "truncate": truncate,
            "initialBackoff": "1s",
        },
    )
    flags = install(made, tmp_path)
    assert len(flags) > 18
    with apiserver.running(flags) as api:
        assert api.request("GET", "/version").ok
    blocking = plan(POLICY, receiver=external(1), webhook={"mode": "blocking-strict"})
    with apiserver.running(install(blocking, tmp_path)) as api:
        assert api.request("GET", "/readyz").ok


@pytest.mark.usefixtures("_own_api_server")
def test_an_api_server_starts_when_nothing_is_asked_for(tmp_path: Path) -> None:
    with apiserver.running(install(plan(receiver=external(1)), tmp_path)) as api:
        assert api.request("GET", "/version").ok


@pytest.mark.usefixtures("_own_api_server")
@pytest.mark.parametrize(
    ("exposure", "placeholder"),
    [({"clusterIP": {}}, "ADDRESS"), ({"nodePort": {"addresses": ["127.0.0.1"]}}, "PORT")],
)
def test_an_api_server_refuses_to_start_with_a_placeholder_for_the_address(
    tmp_path: Path, exposure: Json, placeholder: str
) -> None:
    made = plan(POLICY, receiver={"exposure": exposure})
    assert made.exposed.unknown is not None
    with pytest.raises(RuntimeError, match=placeholder), apiserver.running(install(made, tmp_path)):
        pass
