"""Everything runs as any user that a cluster makes it: without name, home, capabilities, or a disk to write to."""

import base64
import json
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import pytest
import yaml
from api_double import CONSTRAINTS, KINDS, OURS, ApiDouble
from containers import IMPORT_ALL, OPENSHIFTS, ROOT, USERS, Image, Json, Mount, Pod, User, inside
from typer.core import TyperGroup
from typer.main import get_command

from audit_operator.cli.app import app

sys.path.insert(0, str(ROOT / "tests/receiver"))
from integrity_cases import KEY, Archive, numbered, public_pem
from receiving import event, event_list
from tls_certificates import authority, issued, written

sys.path.pop(0)

T = TypeVar("T")

EXAMPLES = ROOT / "examples"
INPUT = {"/in": Mount(EXAMPLES)}
FILES = "/in/policy-files"


@pytest.fixture(params=USERS.values(), ids=USERS)
def user(request: pytest.FixtureRequest) -> User:
    found: User = request.param
    return found


def eventually(condition: Callable[[], T], pod: Pod, seconds: float = 60) -> T:
    """The first true result; fails with the pod's log."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert pod.process.poll() is None, pod.log()[-5000:]
        assert time.monotonic() < until, pod.log()[-5000:]
        time.sleep(0.05)
    return found


def run(
    image: Image, folder: Path, *command: str, user: User = OPENSHIFTS, mounts: Mapping[str, Mount] = INPUT
) -> subprocess.CompletedProcess[str]:
    inner = inside(image, folder, user, mounts, command)
    return subprocess.run(inner, capture_output=True, text=True, check=False, timeout=120)


# --- what a container leaves -----------------------------------------------------------------------------------------

LOOK = """
import json, os, pwd
def tried(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return os.strerror(error.errno)
def named():
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return None
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "ids": [os.getuid(), os.getgid()],
    "name": named(),
    "environment": sorted(os.environ.keys() - {"LC_CTYPE"}),
    "capabilities": [int(status[f"Cap{each}"], 16) for each in ("Inh", "Prm", "Eff", "Amb")],
    "confined": int(status["NoNewPrivs"]),
    "writable": {path: tried(path) for path in PATHS},
}))
"""


def test_a_container_is_what_the_tests_below_take_it_for(image: Image, user: User, tmp_path: Path) -> None:
    paths = [f"{place}/new" for place in ("", "/usr", "/etc", "/dev", "/in", str(Path(image.python).parent))]
    done = run(image, tmp_path, image.python, "-c", LOOK.replace("PATHS", repr(paths)), user=user)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "ids": [user.uid, user.gid],
        "name": None,
        "environment": sorted(image.environment),
        "capabilities": [0, 0, 0, 0],
        "confined": 1,
        "writable": dict.fromkeys(paths, "Read-only file system"),
    }


def test_every_module_finds_what_it_imports(image: Image, tmp_path: Path) -> None:
    # With the home that the command gives itself.
    done = run(image, tmp_path, "/usr/bin/env", "HOME=/nonexistent", image.python, "-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


# --- commands --------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, ...]]:
    """All there are, with subcommands."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    for name, command in group.commands.items():
        yield (name,)
        if isinstance(command, TyperGroup):
            yield from ((name, each) for each in command.commands)


JOBS: dict[str, tuple[int, tuple[str, ...], str]] = {
    "version": (0, ("--version",), "audit-operator "),
    "render": (0, ("render", "-f", "/in/namespaces.yaml", "-f", "/in/platform"), "audit-policy-file"),
    "lint": (1, ("lint", f"{FILES}/mistakes.yaml"), "error"),
    "explain": (
        0,
        ("explain", "-f", "/in/platform", "--user", "alice", "--verb", "get", "-n", "shop", "--resource", "secrets"),
        "Metadata",
    ),
    "diff": (1, ("diff", f"{FILES}/today.yaml", f"{FILES}/tomorrow.yaml"), ""),
    "test": (0, ("test", "/in/tests/baseline.yaml"), ""),
    "import": (0, ("import", f"{FILES}/today.yaml"), "kind: AuditPolicy"),
    "replay": (0, ("replay", "-f", "/in/platform", "--events", "/in/traffic/sample.jsonl.gz"), ""),
    "crds": (0, ("crds",), "CustomResourceDefinition"),
    "run": (2, ("run",), "no cluster"),
    "quarantine": (0, ("quarantine", "list", "--journal", "/in"), ""),
}
"""Exit code, arguments, and a word of the answer. `receive`, `demo` and `verify` have tests of their own below."""


def test_every_command_has_help(image: Image, tmp_path: Path) -> None:
    # One container for all: Python starts once for each.
    script = "; ".join(f"'{image.command}' {' '.join(each)} --help || exit 1" for each in commands())
    done = run(image, tmp_path, "/bin/sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == len(list(commands()))


@pytest.mark.parametrize("job", JOBS)
def test_every_command_does_its_job(job: str, image: Image, tmp_path: Path) -> None:
    code, arguments, word = JOBS[job]
    done = run(image, tmp_path, image.command, *arguments)
    assert done.returncode == code, done.stderr[-3000:]
    assert word in done.stdout + done.stderr
    assert "bug in audit-operator" not in done.stderr


def test_every_command_is_tried() -> None:
    tried = {arguments[0] for _, arguments, _ in JOBS.values()} | {"receive", "demo", "verify"}
    assert tried >= {each[0] for each in commands()}


def test_an_archive_is_verified(image: Image, tmp_path: Path) -> None:
    archive = Archive(tmp_path / "archive", tmp_path / "state")
    archive.folder.mkdir()
    archive.write(*numbered(2))
    (tmp_path / "audit.pub").write_bytes(public_pem(KEY))
    for path in (archive.folder, *archive.folder.iterdir()):
        path.chmod(0o755)  # what files allow is not the point here
    mounts = {"/archive": Mount(archive.folder), "/audit.pub": Mount(tmp_path / "audit.pub")}
    done = run(
        image,
        tmp_path / "container",
        image.command,
        "verify",
        "--public-key=/audit.pub",
        "/archive",
        mounts=mounts,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ", 1 file, 1 event\n" in done.stdout
    assert " intact" in done.stdout


def test_the_demo_needs_a_place_for_temporary_files_and_no_more(image: Image, tmp_path: Path) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    place.chmod(0o1777)
    mounts = INPUT | {"/tmp": Mount(place, writable=True)}
    done = run(image, tmp_path / "container", image.command, "demo", "/in", "-o", "json", mounts=mounts)
    assert done.returncode == 0, done.stderr[-3000:]


# --- pods ------------------------------------------------------------------------------------------------------------

CHARTS = ROOT / "tests/chart/cases/defaults/objects.yaml"
"""What `helm install` makes; a test of the chart says that it does."""
APPS = "/apis/apps/v1/namespaces/audit-system"
SINK = {
    "apiVersion": OURS,
    "kind": "AuditSink",
    "metadata": {"name": "archive", "namespace": "audit-system"},
    "spec": {"file": {"path": "audit.log", "claimName": "archive", "compression": "None"}},
}
POLICY = {
    "apiVersion": OURS,
    "kind": "AuditPolicy",
    "metadata": {"name": "all", "namespace": "audit-system"},
    "spec": {"rules": [{"level": "Metadata"}], "sinks": [{"name": "archive"}]},
}


def chart() -> dict[tuple[str, str], Json]:
    """By kind and name."""
    documents = [each for each in yaml.safe_load_all(CHARTS.read_text()) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in documents}


def asked(pod: Pod, path: str) -> tuple[int, str]:
    """What a probe gets; 0: no answer."""
    port = pod.ports.get("http") or pod.ports["metrics"]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def send(pod: Pod, made: Mapping[tuple[str, str], Json], folder: Path, body: bytes) -> int:
    """As an API server does, with the address and the certificate that the operator made for it; the status."""
    folder.mkdir()
    secret, published = made["Secret", "audit-apiserver-client"], made["ConfigMap", "audit-apiserver"]
    url = urllib.parse.urlsplit(
        yaml.safe_load(published["data"]["webhook.kubeconfig"])["clusters"][0]["cluster"]["server"]
    )
    for key, text in secret["data"].items():
        (folder / key).write_bytes(base64.b64decode(text))
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    with (
        socket.create_connection(("127.0.0.1", pod.ports["https"]), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="audit-receiver.audit-system.svc") as connection,
    ):
        head = (
            f"POST {url.path}?{url.query} HTTP/1.1",
            "Host: receiver",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        )
        connection.sendall("\r\n".join((*head, "", "")).encode() + body)
        return int(connection.recv(4096).split(b" ")[1])


def text_of(folder: Path) -> str:
    """Of all files in it."""
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def test_the_operators_pod_leads_and_the_receivers_pod_that_it_makes_delivers(
    image: Image, user: User, tmp_path: Path
) -> None:
    made = chart()
    openshift = user.volumes is not None
    double = ApiDouble((*KINDS, CONSTRAINTS) if openshift else KINDS)
    double.put("/api/v1/namespaces/audit-system", {"kind": "Namespace", "metadata": {"name": "audit-system"}})
    for plural, document in (
        ("auditbackends", made["AuditBackend", "default"]),
        ("namespaces/audit-system/auditsinks", SINK),
        ("namespaces/audit-system/auditpolicies", POLICY),
    ):
        double.put(f"/apis/{OURS}/{plural}/{document['metadata']['name']}", document)
    double.put(
        "/apis/coordination.k8s.io/v1/namespaces/audit-system/leases/audit-operator", made["Lease", "audit-operator"]
    )
    address = "127.0.0.1"
    certificate = written(tmp_path / "api", issued("kube-apiserver", address))
    token = {"token": "t0ken", "ca.crt": authority().pem.decode(), "namespace": "audit-system"}
    operator = Pod(
        made["Deployment", "audit-operator"]["spec"]["template"]["spec"],
        image,
        user,
        tmp_path / "operator",
        objects=made,
        service_account=token,
    )
    with double.serving(address, certificate) as port:
        service = {"KUBERNETES_SERVICE_HOST": address, "KUBERNETES_SERVICE_PORT": str(port)}
        with operator.running(service):
            eventually(lambda: asked(operator, "/readyz")[0] == 200, operator)
            workload = eventually(lambda: double.get(f"{APPS}/statefulsets/audit-receiver"), operator)
            assert "audit_operator_leader 1.0" in asked(operator, "/metrics")[1]
            # What the API server makes of the StatefulSet's claims.
            spec = workload["spec"]["template"]["spec"]
            (template,) = workload["spec"]["volumeClaimTemplates"]
            state = {"name": template["metadata"]["name"], "persistentVolumeClaim": {"claimName": "state-0"}}
            spec = spec | {"volumes": [*spec["volumes"], state]}
            published = "/api/v1/namespaces/audit-system/configmaps/audit-apiserver"
            eventually(lambda: double.get(published), operator)
            receiver = Pod(spec, image, user, tmp_path / "receiver", objects=double.objects())
            with receiver.running({}):
                eventually(lambda: asked(receiver, "/readyz")[0] == 200, receiver)
                assert send(receiver, double.objects(), tmp_path / "client", event_list(event(1))) == 200
                archive = receiver.mounts["/var/lib/audit-operator/claims/archive"].source
                eventually(lambda: "00000000-0000-4000-8000-000000000001" in text_of(archive), receiver)
                # As `kubectl exec` in the pod would.
                quarantine = run(
                    image, tmp_path / "exec", image.command, "quarantine", "list", user=user, mounts=receiver.mounts
                )
                assert quarantine.stdout == "Nothing is in quarantine.\n", quarantine.stderr
            assert receiver.code == 0, receiver.log()[-3000:]
        assert operator.code == 0, operator.log()[-3000:]
    assert '"level": "ERROR"' not in operator.log()
    assert "Traceback" not in operator.log() + receiver.log()
