"""A cluster with the chart in it and an API server under audit, as the tests see it."""

import contextlib
import http.server
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from apiserver import Json
from audit_operator.cli.policies import Setting, Setup, load_setup
from audit_operator.render.objects import REVISION
from clusters import Cluster, backend, policy, resource
from nodes.images import REPOSITORY, ROOT
from nodes.machine import Machine
from nodes.node import VOLUMES
from nodes.real import RealCluster
from operators import NAMESPACE, condition, must, wait_for
from test_receiver import expected, name_of, traffic

CHART = ROOT / "charts" / "audit-operator"
IMAGE = f"{REPOSITORY}/audit-operator"
SINKS = ("siem", "changes")
SECRET = "hunter2"
"""What `traffic` puts into Secrets and ConfigMaps."""

_CORE = f"/api/v1/namespaces/{NAMESPACE}"
_LOG = "/var/log/kubernetes/audit/audit.log"
"""Rotated at 100 MB, which no test reaches."""


class Collector:
    """A server for the http sink, on the nodes' network and outside of the cluster."""

    def __init__(self, cluster: RealCluster, port: int) -> None:
        self.events: list[Json] = []
        self.token = ""
        """What it wants to be shown; with anything else it answers 401."""
        self.url = f"http://{cluster.gateway}:{port}/audit"
        self._address = (cluster.gateway, port)
        self._cluster = cluster
        self._server: http.server.ThreadingHTTPServer | None = None
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                known = not collector.token or self.headers["Authorization"] == f"Bearer {collector.token}"
                if known:
                    collector.events += map(json.loads, body.splitlines())
                self.send_response(200 if known else 401)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._handler = Handler

    def start(self) -> None:
        self._server = self._cluster.within(lambda: http.server.ThreadingHTTPServer(self._address, self._handler))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """From now on nobody listens."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class Audited(Cluster):
    """The cluster, its nodes, what is installed in it, and the sinks outside of it."""

    def __init__(self, cluster: RealCluster, helm: str) -> None:
        super().__init__(cluster)  # type: ignore[arg-type]  # of a control plane it uses the API server only
        self.cluster = cluster
        self.nodes = cluster.nodes
        self._helm = helm
        self.collectors = {name: Collector(cluster, 9001 + number) for number, name in enumerate(SINKS)}

    # --- programs ----------------------------------------------------------------------------------------------------

    def _run(self, program: str | Path, *arguments: str | Path, text: str | None = None, ok: bool | None = True) -> str:
        environment = {
            "HOME": str(self.cluster.folder),
            "KUBECONFIG": str(self.cluster.kubeconfig()),
            "NO_PROXY": "127.0.0.1",
            "PATH": os.environ["PATH"],
        }
        command = [program, *arguments]
        done = subprocess.run(
            command, env=environment, input=text, capture_output=True, text=True, timeout=300, check=False
        )
        assert ok in (None, done.returncode == 0), f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def helm(self, *arguments: str | Path) -> str:
        return self._run(self._helm, *arguments)

    def kubectl(self, *arguments: str, text: str | None = None, ok: bool | None = True) -> str:
        """What it says. AssertionError unless it goes well, or fails for ``ok=False``; None takes either."""
        return self._run(self.cluster.kubectl, *arguments, text=text, ok=ok)

    # --- the chart ---------------------------------------------------------------------------------------------------

    def package(self, chart: Path = CHART) -> Path:
        """The chart as it is published."""
        said = self.helm("package", chart, "--destination", self.cluster.folder)
        return Path(said.strip().rpartition(": ")[2])

    def install(self, package: Path, *options: str) -> str:
        """As README says; `webhook.batch.maxWait`, so that tests need not wait for 30 s."""
        return self.helm(
            *("install", "audit-operator", package, "-n", NAMESPACE, "--create-namespace"),
            *("--set", f"image.repository={IMAGE}", "--set", "backend.spec.clusterName=e2e"),
            *("--set", "backend.spec.webhook.batch.maxWait=1s"),
            *options,
        )

    def uninstall(self) -> None:
        """And see that it is gone: pods, and what the operator made."""
        self.helm("uninstall", "audit-operator", "-n", NAMESPACE, "--ignore-not-found")
        wait_for(lambda: not self.pods(), "no pod is left", seconds=120)
        wait_for(lambda: not self.children(), "nothing is left of what the operator made", seconds=120)

    def wipe(self) -> None:
        """Nothing of ours, as if it had never been here; the API server may still run with audit."""
        self.uninstall()
        for kind in ("auditpolicies", "auditsinks", "auditbackends"):
            self.kubectl("delete", "crd", f"{kind}.audit-operator.dev", "--ignore-not-found")
        self.kubectl("delete", "pvc", "--all", "-n", NAMESPACE)

    def pods(self, component: str = "") -> list[Json]:
        """The pods of operator or receivers, or all of them."""
        selector = f"?labelSelector=app.kubernetes.io%2Fcomponent%3D{component}" if component else ""
        items: list[Json] = must(self.api.request("GET", f"{_CORE}/pods{selector}"))["items"]
        return items

    def ready(self, component: str) -> list[Json]:
        with contextlib.suppress(OSError):  # a connection that was cut with its node
            return [pod for pod in self.pods(component) if is_ready(pod)]
        return []

    def restarts(self, component: str) -> int:
        return sum(each["restartCount"] for pod in self.pods(component) for each in statuses(pod))

    def wait_for_pods(self, component: str, count: int = 2, seconds: float = 180) -> list[Json]:
        """Until so many are ready; they."""
        try:
            return wait_for(
                lambda: found if len(found := self.ready(component)) == count else [],
                f"{count} pods of {component} are ready",
                seconds=seconds,
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.kubectl('describe', 'pods', '-n', NAMESPACE)[-6000:]}") from None

    def log(self, pod: Json) -> str:
        return self.kubectl("logs", "-n", NAMESPACE, pod["metadata"]["name"])

    # --- resources ---------------------------------------------------------------------------------------------------

    def wait(self, document: Json, type_: str, status: str = "True", reason: str = "", seconds: float = 60) -> Json:
        """Until a condition is reached; the condition."""
        what = f"{document['kind']} {document['metadata']['name']}: {type_} is {status} {reason}"
        try:
            wait_for(lambda: self.reached(document, type_, status, reason), what, seconds=seconds)
        except AssertionError as error:
            found = self.get(document).get("status", {}).get("conditions")
            logs = "\n".join(f"{pod['metadata']['name']}:\n{self.log(pod)[-2000:]}" for pod in self.pods())
            raise AssertionError(f"{error}\n{yaml.safe_dump(found)}\n{logs}") from None
        return condition(self.get(document), type_)

    def remove(self, document: Json) -> None:
        """Delete a policy, and wait until no receiver knows it."""
        self.delete(document)
        name = document["metadata"]["name"]

        def gone() -> bool:
            program, found = self.program(), condition(self.get(backend()), "ProgramInForce")
            hash_ = self.child("ConfigMap", "audit-receiver-program")["metadata"]["annotations"][REVISION]  # type: ignore[index]
            return (
                all(each.name != name for each in program.policies)
                and found.get("status") == "True"
                and hash_ in found["message"]
            )

        wait_for(gone, f"receivers run a program without {name}")

    def sink(self, name: str, **http: Any) -> Json:
        retry = {"initialBackoff": "200ms", "maxBackoff": "2s"}
        target = {"url": self.collectors[name].url} | http
        return resource("AuditSink", name, {"http": target, "batch": {"maxAge": "200ms"}, "retry": retry})

    # --- loss --------------------------------------------------------------------------------------------------------

    def witness(self, since: str, until: str, nodes: Sequence[Machine] = ()) -> list[bytes]:
        """The lines of the API servers' own logs between two moments; of all of them, or of those of ``nodes``."""
        lines = [line for node in nodes or self.nodes for line in node.read(_LOG).encode().splitlines(keepends=True)]
        return [line for line in lines if line.endswith(b"\n") and since <= json.loads(line)["stageTimestamp"] < until]

    def planned(self) -> Setup:
        """The resources of the cluster, as `explain` is given them."""
        path = self.cluster.folder / "resources.yaml"
        documents = [
            {"apiVersion": item["apiVersion"], "kind": item["kind"], "spec": item["spec"]}
            | {"metadata": {key: item["metadata"][key] for key in ("name", "namespace") if key in item["metadata"]}}
            for item in self.resources()
        ]
        path.write_text(yaml.safe_dump_all(documents))
        setup = load_setup([str(path)], Setting())
        assert not setup.problems
        return setup

    def held_to_explain(
        self, since: str, *, exactly: bool = True, nodes: Sequence[Machine] = (), seconds: float = 120
    ) -> int:
        """Wait until every sink has what `explain` says of what the API server wrote down; how many events that was.

        At least once: what is there twice is no error. ``exactly``: what does not belong there is one.
        """
        until = moment()
        time.sleep(0.9)  # what was before `until` may not be written down yet
        lines = self.witness(since, until, nodes)
        for sink, wanted in expected(self.planned(), lines).items():
            collector = self.collectors[sink]

            def missing(wanted: Any = wanted, collector: Collector = collector) -> list[Any]:
                return sorted(wanted.keys() - {*map(name_of, list(collector.events))})

            with contextlib.suppress(AssertionError):
                wait_for(lambda: not missing(), "all is there", seconds=seconds)
            assert missing() == [], f"{sink} lacks {len(missing())} of {len(wanted)}"
            known = {name_of(event): event for event in map(json.loads, lines)}
            more = {name_of(event) for event in collector.events} & known.keys() - wanted.keys()
            assert not exactly or not more, f"{sink} has {len(more)} that are not its: {known[min(more)]}"
        return len(lines)

    @contextlib.contextmanager
    def load(self) -> Iterator[None]:
        """Requests of many kinds, one after the other, until the end of the block."""
        stop = threading.Event()

        def requests() -> None:
            number = 0
            while not stop.is_set() and number < 20_000:
                with contextlib.suppress(OSError):
                    traffic(self.api, number)
                number += 20

        thread = threading.Thread(target=requests, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    # --- things that happen ------------------------------------------------------------------------------------------

    def processes(self, words: str) -> list[tuple[Machine, str]]:
        """Processes with these words in their command line, each with its node."""
        return [(node, pid) for node in self.nodes for pid in node.processes(words)]

    def kill(self, words: str) -> int:
        """SIGKILL to all of these; how many there were."""
        processes = self.processes(words)
        for node, pid in processes:
            node.run("kill", "-KILL", pid)
        return len(processes)

    def node_of(self, pod: Json) -> Machine:
        return next(node for node in self.nodes if node.name == pod["spec"]["nodeName"])

    def volume(self, pod: Json) -> str:
        """Where a receiver's volume is, on its node."""
        claim = must(self.api.request("GET", f"{_CORE}/persistentvolumeclaims/state-{pod['metadata']['name']}"))
        return f"{VOLUMES}/{claim['spec']['volumeName']}"

    # --- README ------------------------------------------------------------------------------------------------------

    def follow_readme(self) -> list[str]:
        """Put API servers under audit by "On API servers, by hand", node by node; the lines that ``diff`` shows."""
        shown: list[str] = []
        for node in self.nodes:
            with node.shell() as shell:
                for block in readme("From the cluster, with kubeadm"):
                    output, failed = shell.run(block)
                    if "diff manifests/" in block:  # which is to show something, and then fails
                        shown += [line for line in output.splitlines() if line.startswith(("<", ">"))]
                        failed = [command for command in failed if not command.startswith("diff ")]
                    assert not failed, output
                    if ">kubeadm-config.yaml" in block:
                        _edit(node)
        if not shown:
            self.install_policy()
        return shown

    def install_policy(self) -> None:
        """What README says "When a policy changes"."""
        for node in self.nodes:
            with node.shell() as shell:
                for block in readme("When a policy changes"):
                    output, failed = shell.run(block)
                    assert not failed, output


def _edit(node: Machine) -> None:
    """What a person does to kubeadm-config.yaml with an editor: entries of the same name are replaced."""
    path = "/etc/kubernetes/kubeadm-config.yaml"
    config, ours = (yaml.safe_load(node.read(each)) for each in (path, "/etc/kubernetes/audit-kubeadm.yaml"))
    server = config["apiServer"]
    for key in ("extraArgs", "extraVolumes"):
        added = ours["apiServer"][key]
        names = {each["name"] for each in added}
        server[key] = [each for each in server.get(key) or () if each["name"] not in names] + added
    node.write(path, yaml.safe_dump(config))


def readme(section: str) -> list[str]:
    """The commands of a section of README, block by block, as they stand there."""
    text = (ROOT / "README.md").read_text().partition(f"### {section}\n")[2].partition("\n##")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks, section
    return blocks


def is_ready(pod: Json) -> bool:
    conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def statuses(pod: Json) -> list[Json]:
    found: list[Json] = pod["status"].get("containerStatuses", [])
    return found


def moment() -> str:
    """Now, as a stageTimestamp."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def baseline() -> Json:
    """What README begins with."""
    return policy("baseline", "siem", rules=[], preset="CIS")


def bodies() -> Json:
    """Bodies of Secrets and ConfigMaps, to be redacted on the way; and the rest of what is done in a namespace."""
    kept = [{"group": "", "resources": ["secrets", "configmaps"]}]
    rules = [
        {"level": "RequestResponse", "resources": kept, "namespaces": ["default"]},
        {"level": "Request", "verbs": ["create"], "namespaces": ["default"]},
        {"level": "Metadata", "namespaces": ["default"]},
    ]
    return policy("bodies", "changes", rules=rules, omitManagedFields=True)
