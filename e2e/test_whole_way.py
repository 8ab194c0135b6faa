"""The whole way: resources are applied, and every sink holds what `explain` says of what an API server recorded.

Everything is made by the operator: the API server runs with the files and flags that it published, receivers run as
their StatefulSet says. Only what a kubelet, a Service and a person on a control-plane node do is stood in for.
"""

import contextlib
import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

import operators
from apiserver import ApiServer, ControlPlane, Json, control_plane, eventually, free_port
from audit_operator.cli.policies import Setting, Setup, load_setup
from clusters import Cluster, backend, install_crds, policy, resource
from kubelet import Node, balancer, inside, installed, require_mounts
from operators import Operator, condition, running, wait_for
from test_receiver import expected, name_of, traffic

ADMIN = {"users": ["admin"]}


class Collector:
    """A server for the http sink; ``answers`` says with what: 200, 401, or nothing at all for 0."""

    def __init__(self) -> None:
        self.events: list[Json] = []
        self.answers = 200
        self._server: http.server.ThreadingHTTPServer | None = None
        self.port = free_port()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if collector.answers == 200:
                    collector.events += map(json.loads, body.splitlines())
                self.send_response(collector.answers)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._handler = Handler

    def start(self) -> None:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), self._handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """From now on nobody listens."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()


class World(Cluster):
    """The cluster, its one node, and what is outside of it."""

    def __init__(self, plane: ControlPlane, operator: Operator, node: Node, collector: Collector) -> None:
        super().__init__(plane)
        self.operator = operator
        self.node = node
        self.collector = collector

    def wait(self, document: Json, type_: str, status: str = "True", reason: str = "", seconds: float = 30) -> Json:
        """Until a condition is reached; the condition."""
        what = f"{document['kind']} {document['metadata']['name']}: {type_} is {status} {reason}"
        try:
            wait_for(lambda: self.reached(document, type_, status, reason), what, self.operator, seconds)
        except AssertionError as error:
            found = self.get(document).get("status", {}).get("conditions")
            logs = "\n".join(f"{pod.name}: {pod.log()[-3000:]}" for pod in self.node.pods.values())
            raise AssertionError(f"{error}\n{yaml.safe_dump(found)}\n{logs}") from None
        return condition(self.get(document), type_)

    def files(self, sink: str) -> list[Json]:
        """What the file sink has, of all receivers."""
        paths = sorted((self.node.folder / "claims").glob(f"*/files/{sink}.log"))
        return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]

    def has(self, sink: str) -> list[Json]:
        return self.collector.events if sink == "changes" else self.files(sink)


def archive() -> Json:
    return resource(
        "AuditSink", "archive", {"file": {"path": "archive.log", "compression": "None"}, "batch": {"maxAge": "100ms"}}
    )


def changes(port: int) -> Json:
    url = f"http://127.0.0.1:{port}/audit"
    retry = {"initialBackoff": "200ms", "maxBackoff": "2s"}
    return resource("AuditSink", "changes", {"http": {"url": url}, "batch": {"maxAge": "100ms"}, "retry": retry})


def everything(*extra: Json) -> Json:
    rules = [
        {"level": "None", "nonResourceURLs": ["/livez*", "/readyz*"]},
        {"level": "RequestResponse", "resources": [{"group": "", "resources": ["secrets", "configmaps"]}], **ADMIN},
        {"level": "Request", "verbs": ["create"], "namespaces": ["default"]},
        {"level": "Minimal", "verbs": ["list", "watch"]},
        {"level": "Metadata"},
    ]
    return policy("everything", "archive", rules=[*extra, *rules], omitManagedFields=True)


def writes() -> Json:
    verbs = ["create", "update", "patch", "delete", "deletecollection"]
    rules = [{"level": "RequestResponse", "verbs": verbs, "namespaces": ["default"], **ADMIN}]
    return policy("writes", "changes", "archive", rules=rules, omitStages=["RequestReceived"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A cluster in which audit is set up by the operator alone, and runs."""
    require_mounts()
    folder = tmp_path_factory.mktemp("world")
    with contextlib.ExitStack() as stack:
        try:
            plane = stack.enter_context(control_plane())
        except LookupError as missing:
            pytest.skip(str(missing))
        install_crds(plane.api)
        token = operators.install(plane.api)
        try:
            stack.enter_context(plane.controller_manager("statefulset-controller"))
        except LookupError as missing:
            pytest.skip(str(missing))
        operator = stack.enter_context(running(plane, token))
        node = stack.enter_context(Node(plane.api, folder, sync_seconds=45).running())
        collector = Collector()
        collector.start()
        stack.callback(collector.stop)
        found = World(plane, operator, node, collector)

        port = free_port()
        stack.enter_context(balancer(node, port))
        main = backend(
            webhook={"batch": {"maxWait": "1s"}, "initialBackoff": "3s"},
            receiver={"port": free_port(), "exposure": {"external": {"host": "127.0.0.1", "port": port}}},
        )
        found.apply(main, archive(), changes(collector.port), everything(), writes())
        found.wait(main, "ProgramInForce")
        assert condition(found.get(main), "EventsFlowing")["reason"] == "NotObserved"
        found.wait(changes(collector.port), "Delivering", reason="NothingToDeliver")

        flags, mounts = installed(plane.api, folder / "kubernetes")
        mounts["/var/log/kubernetes/audit"] = folder / "log"
        (folder / "log").mkdir()
        plane.stop()
        plane.flags = flags
        plane.wrap = lambda command: inside(mounts, command, folder / "layer")
        plane.start()
        node.api = plane.api
        yield found


def witness(world: World) -> list[bytes]:
    """The lines of the API server's own log, by the same policy, as far as they are written to the end."""
    folder = world.node.folder / "log"
    return [line for path in sorted(folder.glob("*.log")) for line in path.read_bytes().splitlines(keepends=True)[:-1]]


def planned(world: World) -> Setup:
    """The resources of the cluster, as `explain` is given them."""
    path = world.node.folder / "resources.yaml"
    documents = [
        {"apiVersion": item["apiVersion"], "kind": item["kind"], "spec": item["spec"]}
        | {"metadata": {key: item["metadata"][key] for key in ("name", "namespace") if key in item["metadata"]}}
        for item in world.resources()
    ]
    path.write_text(yaml.safe_dump_all(documents))
    setup = load_setup([str(path)], Setting())
    assert not setup.problems
    return setup


def load(api: ApiServer, start: int) -> threading.Thread:
    """Several hundred requests, beside whatever else happens."""
    thread = threading.Thread(target=lambda: [traffic(api, each) for each in range(start, start + 80, 20)])
    thread.start()
    return thread


def moment() -> str:
    """Now, as a stageTimestamp."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def settled(world: World, since: str = "") -> tuple[list[bytes], str]:
    """The witness's lines from a moment up to another, and that one, once every sink has what it must have of them."""
    until = moment()
    time.sleep(1.5)
    lines = [line for line in witness(world) if since <= json.loads(line)["stageTimestamp"] < until]
    for sink, events in expected(planned(world), lines).items():

        def missing(sink: str = sink, events: Any = events) -> list[Any]:
            return sorted(events.keys() - {*map(name_of, world.has(sink))})

        with contextlib.suppress(AssertionError):
            eventually(lambda: not missing(), 60)
        assert missing() == [], f"{sink} lacks {len(missing())} of {len(events)}"
    return lines, until


def held_to_explain(world: World) -> int:
    """Compare; how many events there were."""
    lines, until = settled(world)
    wanted = expected(planned(world), lines)
    for sink in ("archive", "changes"):
        found = [event for event in world.has(sink) if event["stageTimestamp"] < until]
        names = [name_of(event) for event in found]
        assert set(names) == wanted[sink].keys()
        assert {name_of(event): event["level"] for event in found} == {
            name: str(level) for name, level in wanted[sink].items()
        }
    return len(lines)


def test_every_sink_has_what_explain_says_although_receivers_are_killed_and_the_api_server_lost_nothing(
    world: World,
) -> None:
    thread = load(world.api, 0)
    kills = 0
    while thread.is_alive():
        time.sleep(1.0)
        pods = world.node.ready()
        if len(pods) == 2:
            pods[kills % 2].kill()
            kills += 1
    thread.join()
    assert kills >= 2
    assert held_to_explain(world) > 1000
    text = json.dumps(world.files("archive")) + json.dumps(world.collector.events)
    assert "hunter2" not in text
    assert "aHVudGVyMg" not in text
    assert b"hunter2" in b"".join(witness(world))
    metrics = str(world.api.request("GET", "/metrics").body["text"])
    assert re.search(r"apiserver_audit_event_total \d+", metrics)
    assert 'apiserver_audit_error_total{plugin="webhook"' not in metrics
    assert world.reached(backend(), "EventsFlowing")
    assert world.reached(backend(), "Delivering")
    for each in (archive(), changes(world.collector.port), everything(), writes()):
        assert world.reached(each, "Delivering", reason="Delivering")


def test_a_sink_that_is_away_longer_than_api_servers_wait_gets_everything_and_its_status_says_so(world: World) -> None:
    sink = changes(world.collector.port)
    world.collector.stop()
    started = time.monotonic()
    thread = load(world.api, 200)
    said = world.wait(sink, "Delivering", "False", "Unreachable", 20)
    assert "no connection" in said["message"]
    world.wait(writes(), "Delivering", "False", "Unreachable", 5)
    world.wait(backend(), "Delivering", "False", "Unreachable", 5)
    assert world.reached(everything(), "Delivering")  # its sink is another
    thread.join()
    # Longer than the five attempts of an API server; and somebody has to see to it by now.
    time.sleep(max(0.0, 125 - (time.monotonic() - started)))
    world.wait(sink, "Stalled", "True", "Unreachable", 10)
    world.collector.start()
    world.wait(sink, "Delivering", seconds=20)
    world.wait(backend(), "Delivering", seconds=5)
    assert held_to_explain(world) > 2000


def test_a_sink_that_refuses_the_credentials_says_so(world: World) -> None:
    sink = changes(world.collector.port)
    world.collector.answers = 401
    traffic(world.api, 300)
    world.wait(sink, "Delivering", "False", "Unauthorized", 20)
    world.collector.answers = 200
    world.wait(sink, "Delivering", seconds=20)
    held_to_explain(world)


def test_a_changed_policy_is_in_force_in_every_receiver_within_seconds(world: World) -> None:
    quiet = everything({"level": "None", "resources": [{"group": "", "resources": ["configmaps"]}]})
    started = time.monotonic()
    world.apply(quiet)
    world.wait(quiet, "Delivering", seconds=5)
    assert time.monotonic() - started < 5
    since = moment()
    folder = "/api/v1/namespaces/default/configmaps"
    marks = [f"mark-{number}" for number in range(20)]
    for name in marks:
        world.api.request("GET", f"{folder}/{name}")
        world.api.request("GET", f"/api/v1/namespaces/default/secrets/{name}")
    settled(world, since)
    found = [event for event in world.files("archive") if event.get("objectRef", {}).get("name") in marks]
    assert {event["objectRef"]["resource"] for event in found} == {"secrets"}
    assert len({event["objectRef"]["name"] for event in found}) == len(marks)
    world.apply(everything())
    world.wait(everything(), "Delivering", seconds=5)


def test_a_receiver_that_starts_anew_gets_the_newest_program_although_its_volume_is_old(world: World) -> None:
    world.apply(everything({"level": "None", "verbs": ["get"], "namespaces": ["kube-public"]}))
    world.wait(everything(), "Delivering", seconds=5)
    for pod in list(world.node.pods.values()):
        pod.kill()
    world.wait(backend(), "ProgramInForce", seconds=20)
    since = moment()
    for _ in range(10):
        world.api.request("GET", "/api/v1/namespaces/kube-public/configmaps/after-the-restart")
    settled(world, since)
    found = [event for event in world.files("archive") if "after-the-restart" in event.get("requestURI", "")]
    assert found == []


def test_events_that_are_recorded_at_a_lower_level_than_asked_for_are_reported(world: World) -> None:
    wish = policy(
        "bodies", "archive", rules=[{"level": "RequestResponse", "resources": [{"group": "", "resources": ["pods"]}]}]
    )
    world.apply(wish)
    world.wait(wish, "Delivering", seconds=5)
    # The API server still runs what it was started with: nobody has installed the new file.
    world.api.request("GET", "/api/v1/namespaces/default/pods/none")
    said = world.wait(wish, "Covered", "False", "NotCovered", 20)
    assert "audit-apiserver" in said["message"]
    world.delete(wish)


def test_what_receivers_say_costs_no_writes_while_nothing_changes(world: World) -> None:
    world.wait(backend(), "ProgramInForce")
    since = moment()
    traffic(world.api, 400)
    settled(world, since)
    time.sleep(3)
    before = len(witness(world))
    time.sleep(10)
    lines = [json.loads(line) for line in witness(world)[before:]]
    ours = [event for event in lines if event["user"]["username"] == operators.USER]
    assert [event["requestURI"] for event in ours if event["verb"] in ("patch", "create", "update", "delete")
            and "leases" not in event["requestURI"]] == []  # fmt: skip
