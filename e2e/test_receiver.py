"""A real API server sends to a real receiver that is killed again and again: each sink holds what `explain` says.

The API server's own log is the witness: it writes the same events by the same policy.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apiserver import ApiServer, control_plane, eventually, free_port
from audit_operator.cli.policies import Setting, Setup, load_setup
from audit_operator.policy.events import decode
from audit_operator.policy.model import Level, Stage
from audit_operator.policy.request import request_of
from audit_operator.render.kubeconfig import CertificateFiles, kubeconfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "receiver"))
from tls_certificates import issued, written

RESOURCES = """
apiVersion: audit-operator.dev/v1alpha1
kind: AuditSink
metadata: {name: archive, namespace: audit-system}
spec: {file: {path: archive.log, compression: None}, batch: {maxAge: 100ms}}
---
apiVersion: audit-operator.dev/v1alpha1
kind: AuditSink
metadata: {name: changes, namespace: audit-system}
spec: {file: {path: changes.log, compression: None}, batch: {maxAge: 100ms}}
---
apiVersion: audit-operator.dev/v1alpha1
kind: AuditPolicy
metadata: {name: archive, namespace: audit-system}
spec:
  omitManagedFields: true
  rules:
  - {level: None, nonResourceURLs: ["/livez*", "/readyz*"]}
  - {level: RequestResponse, resources: [{group: "", resources: [secrets, configmaps]}]}
  - {level: Request, verbs: [create], namespaces: [default]}
  - {level: Minimal, verbs: [list, watch]}
  - {level: Metadata}
  sinks: [{name: archive}]
---
apiVersion: audit-operator.dev/v1alpha1
kind: AuditPolicy
metadata: {name: changes, namespace: audit-system}
spec:
  omitStages: [RequestReceived]
  rules:
  - {level: RequestResponse, verbs: [create, update, patch, delete, deletecollection], users: [admin]}
  sinks: [{name: changes}, {name: archive}]
"""


class Receiver:
    """`audit-operator receive`, on one port however often it is started."""

    def __init__(self, folder: Path, program: str) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"https://127.0.0.1:{self._port}/audit"
        (folder / "program.json").write_text(program)
        written(folder / "tls", issued("audit-receiver", "audit-receiver.audit-system.svc"))
        written(folder / "client", issued("kube-apiserver"))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it listens."""
        with (self._folder / "receiver.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "audit_operator", "receive",
                    f"--program={self._folder}/program.json",
                    f"--journal={self._folder}/state/journal",
                    f"--certificates={self._folder}/tls",
                    f"--listen=127.0.0.1:{self._port}",
                    "--metrics=127.0.0.1:0",
                ],
                stderr=log,
            )  # fmt: skip
        eventually(self._listens)

    def _listens(self) -> bool:
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self._port)) == 0

    def end(self, number: signal.Signals) -> None:
        """And wait."""
        assert self._process is not None
        os.kill(self._process.pid, number)
        self._process.wait()

    def settle(self, setup: Setup, witness: list[bytes]) -> None:
        """Wait until every sink has what it must have of these."""
        for sink, events in expected(setup, witness).items():
            eventually(lambda sink=sink, events=events: events.keys() <= {*map(name_of, self.sink(sink))}, 60)  # type: ignore[misc]

    def sink(self, name: str) -> list[dict[str, Any]]:
        """What the file has, but for a line that is being written."""
        path = self._folder / "state" / "files" / f"{name}.log"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]


def complete(log: Path) -> list[bytes]:
    """The lines that are written to the end."""
    return log.read_bytes().splitlines(keepends=True)[:-1]


def traffic(api: ApiServer, start: int) -> None:
    """Requests of many kinds; some fail, and are audited all the same."""
    for number in range(start, start + 20):
        for kind, body in (
            ("secrets", {"stringData": {"password": "hunter2"}}),
            ("configmaps", {"data": {"key": "hunter2", "text": "é 1.0"}}),
        ):
            folder = f"/api/v1/namespaces/default/{kind}"
            name = f"{kind}-{number}"
            api.request("POST", folder, {"metadata": {"name": name}, **body})
            api.request("GET", f"{folder}/{name}")
            patch = {"metadata": {"labels": {"a": str(number)}}}
            api.request("PATCH", f"{folder}/{name}", patch, content="application/merge-patch+json")
            api.request("GET", f"{folder}?labelSelector=a")
            api.request("DELETE", f"{folder}/{name}")
            api.request("GET", f"{folder}/gone")
        api.request("GET", "/version")
        api.request("GET", "/api/v1/pods", token="nobody we know")


def name_of(event: dict[str, Any]) -> tuple[str, str, str]:
    return event["auditID"], event["stage"], event["stageTimestamp"]


def expected(setup: Setup, witness: list[bytes]) -> dict[str, dict[tuple[str, str, str], Level]]:
    """What each sink must have, by `explain`."""
    wanted: dict[str, dict[tuple[str, str, str], Level]] = defaultdict(dict)
    for line in witness:
        event = decode(line)
        for verdict in setup.explainer.explain(request_of(event)).policies:
            if Stage(event.stage) in verdict.stages:
                for sink in verdict.sinks:
                    key = (event.audit_id, event.stage, event.stage_timestamp)
                    short = sink.partition("/")[2]
                    wanted[short][key] = max(wanted[short].get(key, Level.NONE), verdict.level)
    return wanted


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Setup, Receiver, list[bytes], str]]:
    """Everything, and when it is over: what was planned, the sinks, the witness's lines, the server's metrics."""
    folder = tmp_path_factory.mktemp("receiver")
    (folder / "resources.yaml").write_text(RESOURCES)
    setup = load_setup([str(folder / "resources.yaml")], Setting())
    assert setup.plan is not None
    assert not setup.problems
    files = setup.plan.files()
    receiver = Receiver(folder, files["receiver/program.json"])
    (folder / "policy.yaml").write_text(files["apiserver/policy.yaml"])
    client = folder / "client"
    certificates = CertificateFiles(*(str(client / name) for name in ("ca.crt", "tls.crt", "tls.key")))
    (folder / "webhook.kubeconfig").write_text(
        kubeconfig(url=receiver.url, server_name="audit-receiver.audit-system.svc", files=certificates)
    )
    log = folder / "audit.log"
    flags = [
        f"--audit-policy-file={folder / 'policy.yaml'}",
        f"--audit-log-path={log}",
        f"--audit-webhook-config-file={folder / 'webhook.kubeconfig'}",
        "--audit-webhook-batch-max-wait=200ms",
        "--audit-webhook-batch-throttle-enable=false",
        "--audit-webhook-initial-backoff=3s",
    ]
    receiver.start()
    try:
        with control_plane(flags) as plane:
            load = threading.Thread(target=lambda: [traffic(plane.api, start) for start in range(0, 120, 20)])
            load.start()
            while load.is_alive():
                load.join(1.0)
                receiver.end(signal.SIGKILL)
                time.sleep(0.3)
                receiver.start()
            load.join()
            receiver.settle(setup, complete(log))
            metrics = str(plane.api.request("GET", "/metrics").body["text"])
            before = complete(log)
            receiver.settle(setup, before)
        # While it stops, an API server logs the end of its own watches and no longer sends it.
        yield setup, receiver, before, metrics
    finally:
        receiver.end(signal.SIGTERM)


def test_every_sink_has_exactly_what_explain_says_although_the_receiver_was_killed(
    run: tuple[Setup, Receiver, list[bytes], str],
) -> None:
    setup, receiver, witness, _ = run
    wanted = expected(setup, witness)
    assert len(witness) > 2000
    last = decode(witness[-1]).stage_timestamp
    for sink in ("archive", "changes"):
        # A little more may have come since the witness was asked.
        found = [event for event in receiver.sink(sink) if event["stageTimestamp"] <= last]
        names = [name_of(event) for event in found]
        assert len(names) == len(set(names))
        levels = {name_of(event): Level.parse(event["level"]) for event in found}
        assert levels.items() >= wanted[sink].items()
        assert len(levels) - len(wanted[sink]) < 20


def test_bodies_arrive_redacted_and_otherwise_as_recorded(run: tuple[Setup, Receiver, list[bytes], str]) -> None:
    _, receiver, witness, _ = run
    recorded = {name_of(event): event for event in map(json.loads, witness)}
    text = json.dumps(receiver.sink("archive")) + json.dumps(receiver.sink("changes"))
    assert "hunter2" not in text
    assert "aHVudGVyMg" not in text
    assert "hunter2" in json.dumps([*recorded.values()])
    whole = [
        event for event in receiver.sink("changes") if event["objectRef"]["resource"] not in ("secrets", "configmaps")
    ]
    for event in whole:
        line = recorded.get(name_of(event), event)
        assert event == {name: value for name, value in line.items() if name not in ("kind", "apiVersion")}


def test_the_api_server_lost_nothing(run: tuple[Setup, Receiver, list[bytes], str]) -> None:
    *_, metrics = run
    assert re.search(r"apiserver_audit_event_total \d+", metrics)
    assert "apiserver_audit_error_total{" not in metrics
