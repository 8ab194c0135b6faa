"""Where users run it: the packaged chart in real pods, an API server put under audit by hand, and what befalls nodes.

One story, in the order of the file: each test finds the cluster as the one before left it.
"""

import json
import time
from collections.abc import Iterator

import pytest

from clusters import backend, policy, secret
from nodes.audited import SECRET, SINKS, Audited, baseline, bodies, is_ready, moment, statuses
from nodes.node import Node
from operators import NAMESPACE, must, wait_for

OPERATOR = f"system:serviceaccount:{NAMESPACE}:audit-operator"


@pytest.fixture(scope="module")
def installed(cluster: Audited) -> Audited:
    """The chart as it is published, and nothing else: no policy, no sink."""
    cluster.install(cluster.package())
    cluster.wait_for_pods("operator")
    return cluster


@pytest.fixture(scope="module")
def shown(installed: Audited) -> list[str]:
    """What README's diff shows before the API server is put under audit; afterwards it is."""
    installed.apply(*(installed.sink(name) for name in SINKS), baseline(), bodies())
    installed.wait_for_pods("receiver")
    installed.wait(bodies(), "Delivering")
    lines = installed.follow_readme()
    installed.wait(backend(), "EventsFlowing", seconds=120)
    return lines


@pytest.fixture
def audited(installed: Audited, shown: list[str]) -> Iterator[Audited]:
    """An API server under audit, and everything well, before the test and after it."""
    installed.wait(backend(), "Ready")
    yield installed
    installed.wait_for_pods("operator")
    installed.wait_for_pods("receiver")
    for document in (backend(), *(installed.sink(name) for name in SINKS), baseline(), bodies()):
        installed.wait(document, "Ready")


def test_the_packaged_chart_runs_in_real_pods_and_the_first_policy_is_ready_within_seconds(installed: Audited) -> None:
    pods = installed.wait_for_pods("receiver")
    installed.wait(backend(), "Ready")
    first = baseline()
    first["spec"].pop("sinks")
    installed.apply(first)
    installed.wait(first, "Ready", seconds=5)
    for pod in (*pods, *installed.pods("operator")):
        assert [each["restartCount"] for each in statuses(pod)] == [0], installed.log(pod)
    # As its own user, which has no name in the image, without a root file system to write to, and no rights.
    processes = [
        each for words in ("audit-operator receive", "audit-operator run") for each in installed.processes(words)
    ]
    assert len(processes) == 4
    for node, pid in processes:
        lines = node.read(f"/proc/{pid}/status").splitlines()
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert set(fields["Uid"].split()) == {"65532"}
        assert int(fields["CapEff"], 16) == 0
        assert fields["NoNewPrivs"] == "1"
        assert fields["Seccomp"] == "2"
        assert "Read-only file system" in node.run("touch", f"/proc/{pid}/root/here", check=False).stderr
    # The volume became the receivers' own by fsGroup, which does not concern kind's.
    node = installed.node_of(pods[0])
    if node.small_volumes:
        assert node.run("stat", "-c", "%g", installed.volume(pods[0])).stdout.strip() == "65532"


def test_readmes_steps_put_the_api_server_under_audit_and_change_nothing_else(
    installed: Audited, shown: list[str]
) -> None:
    assert any("--audit-webhook-config-file=" in line for line in shown)
    for line in shown:
        ours = ("audit", "hostPath:", "path:", "type: Directory", "readOnly: true")
        assert line.startswith("> "), line
        assert any(word in line for word in ours), line
    since = moment()
    with installed.load():
        time.sleep(0.9)
    assert installed.held_to_explain(since) > 100
    config = must(installed.api.request("GET", "/api/v1/namespaces/kube-system/configmaps/kubeadm-config"))
    assert "audit-policy-file" in config["data"]["ClusterConfiguration"]


def test_no_value_of_a_secret_leaves_the_cluster(audited: Audited) -> None:
    since = moment()
    with audited.load():
        time.sleep(0.9)
    audited.held_to_explain(since)
    texts = {name: json.dumps(audited.collectors[name].events) for name in SINKS}
    assert all(len(text) > 10_000 for text in texts.values())
    for text in texts.values():
        assert SECRET not in text
        assert "aHVudGVyMg" not in text
    # Without redaction it would have: the API server's own file has bodies.
    assert any(SECRET.encode() in line or b"aHVudGVyMg" in line for line in audited.witness(since, moment()))


def test_what_the_operator_does_to_its_own_lease_is_not_recorded(audited: Audited) -> None:
    """Twice every few seconds, for ever."""
    time.sleep(0.9)
    leases = [
        event
        for event in audited.collectors["siem"].events
        if event.get("objectRef", {}).get("resource") == "leases" and event["user"]["username"] == OPERATOR
    ]
    assert leases == []


def test_receivers_that_are_killed_lose_nothing_that_they_acknowledged(audited: Audited) -> None:
    since, before = moment(), audited.restarts("receiver")
    with audited.load():
        for more in (2, 4):
            assert audited.kill("audit-operator receive") == 2
            wait_for(
                lambda more=more: audited.restarts("receiver") == before + more, "both are started again", seconds=120
            )
            audited.wait_for_pods("receiver")
    assert audited.held_to_explain(since) > 100


def test_an_operator_that_is_killed_or_deleted_is_replaced_and_tells_the_truth(audited: Audited) -> None:
    since = moment()
    with audited.load():
        before = audited.restarts("operator")
        assert audited.kill("audit-operator run") == 2
        wait_for(lambda: audited.restarts("operator") == before + 2, "both are started again", seconds=120)
        audited.wait_for_pods("operator")
        audited.kubectl("delete", "pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=operator")
        audited.wait_for_pods("operator")
        sink = audited.sink("changes")
        audited.collectors["changes"].stop()
        audited.wait(sink, "Delivering", "False", "Unreachable")
        audited.wait(bodies(), "Delivering", "False", "Unreachable")
        audited.collectors["changes"].start()
        audited.wait(sink, "Delivering")
    assert audited.held_to_explain(since) > 100


def test_a_restarted_kubelet_disturbs_nothing(audited: Audited) -> None:
    since, before = moment(), audited.restarts("receiver") + audited.restarts("operator")
    with audited.load():
        for node in audited.nodes:
            node.restart_kubelet()
        time.sleep(0.9)
        audited.wait_for_pods("receiver")
    assert audited.restarts("receiver") + audited.restarts("operator") == before
    assert audited.held_to_explain(since) > 100


def test_a_receiver_that_hangs_gets_no_events_and_is_started_again(audited: Audited) -> None:
    """By its probes: kubelet's own."""
    since, before = moment(), audited.restarts("receiver")
    with audited.load():
        node, hanging = audited.processes("audit-operator receive")[0]
        node.run("kill", "-STOP", hanging)
        wait_for(lambda: len(audited.ready("receiver")) == 1, "it is not ready", seconds=60)
        wait_for(lambda: audited.restarts("receiver") > before, "it is started again", seconds=180)
        audited.wait_for_pods("receiver")
    assert audited.held_to_explain(since) > 100


def test_new_credentials_reach_receivers_through_their_volume(audited: Audited) -> None:
    """Which a kubelet fills again, by exchanging a symlink, up to a minute and a half later."""
    since = moment()
    sink = audited.sink("changes", auth={"bearerToken": {"name": "changes", "key": "token"}})
    audited.apply(secret("changes", token="first"), sink)
    audited.collectors["changes"].token = "first"
    with audited.load():
        audited.wait(sink, "Delivering", seconds=150)
        audited.collectors["changes"].token = "second"
        audited.wait(sink, "Delivering", "False", "Unauthorized")
        audited.apply(secret("changes", token="second"))
        audited.wait(sink, "Delivering", seconds=150)
    assert audited.held_to_explain(since) > 100
    node, pid = audited.processes("audit-operator receive")[0]
    listed = node.run("ls", "-lan", f"/proc/{pid}/root/etc/audit-operator/credentials/").stdout
    assert "..data -> ..20" in listed
    audited.collectors["changes"].token = ""
    audited.apply(audited.sink("changes"))


def test_a_new_log_level_reaches_running_operators(audited: Audited) -> None:
    before = [pod["metadata"]["uid"] for pod in audited.pods("operator")]
    audited.helm(
        *("upgrade", "audit-operator", audited.package(), "-n", NAMESPACE, "--reset-then-reuse-values"),
        *("--set", "log.level=debug"),
    )
    pods = audited.pods("operator")
    wait_for(lambda: all("log level is now debug" in audited.log(pod) for pod in pods), "the new level", seconds=150)
    assert [pod["metadata"]["uid"] for pod in audited.pods("operator")] == before


def test_a_policy_that_asks_for_more_is_in_force_once_readmes_steps_are_followed(audited: Audited) -> None:
    rules = [{"level": "RequestResponse", "verbs": ["list"], "resources": [{"group": "", "resources": ["nodes"]}]}]
    wider = policy("wider", "changes", rules=rules)
    audited.apply(wider)
    audited.wait(wider, "Delivering")
    must(audited.api.request("GET", "/api/v1/nodes"))
    audited.wait(wider, "Covered", "False", "NotCovered")
    audited.install_policy()
    since = moment()
    must(audited.api.request("GET", "/api/v1/nodes"))
    assert audited.held_to_explain(since) > 1
    levels = {
        event["level"]
        for event in audited.collectors["changes"].events
        if event["stageTimestamp"] >= since and event["requestURI"] == "/api/v1/nodes"
    }
    assert levels == {"RequestResponse"}
    audited.remove(wider)


def test_a_policy_that_was_removed_gets_nothing_more(audited: Audited) -> None:
    since = moment()
    with audited.load():
        time.sleep(0.9)
        must(audited.api.request("GET", "/api/v1/nodes"))
    assert audited.held_to_explain(since) > 100


def test_draining_nodes_never_takes_the_last_receiver(audited: Audited) -> None:
    """As their volumes are the nodes' own, they wait for theirs to come back."""
    since = moment()
    names = sorted({pod["spec"]["nodeName"] for pod in audited.pods("receiver")})
    with audited.load():
        said = ""
        for name in names:
            options = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=40s")
            said += audited.kubectl("drain", name, *options, ok=None)
        assert "would violate the pod's disruption budget" in said
        assert len(audited.ready("receiver")) == 1
        for name in names:
            audited.kubectl("uncordon", name)
        audited.wait_for_pods("receiver")
    assert audited.held_to_explain(since) > 100


def test_a_node_whose_power_is_cut_takes_no_event_along(audited: Audited) -> None:
    if len(audited.nodes) < 3:
        pytest.skip("needs three nodes: E2E_NODES=3")
    cut = audited.node_of(audited.ready("receiver")[0])
    assert isinstance(cut, Node)
    others = [node for node in audited.nodes if node is not cut]
    since = moment()
    with audited.load():
        cut.shut_down()
        wait_for(lambda: len(audited.ready("receiver")) < 2, "its receiver is missed", seconds=120)
        cut.boot()
        audited.wait_for_pods("receiver")
        audited.wait(backend(), "Ready")
    # What its own API server had not sent yet is gone with it; what others sent to its receiver is not.
    assert audited.held_to_explain(since, nodes=others) > 100


def test_a_receiver_whose_volume_is_full_says_so_and_the_other_takes_over(audited: Audited) -> None:
    pod = audited.ready("receiver")[0]
    node = audited.node_of(pod)
    if not node.small_volumes:
        pytest.skip("needs a volume that can be filled")
    name, ballast = pod["metadata"]["name"], f"{audited.volume(pod)}/ballast"
    since = moment()
    with audited.load():
        node.run("dd", "if=/dev/zero", f"of={ballast}", "bs=1M", check=False)
        found = audited.wait(backend(), "ReceiverReady", "False", "NotTakingEvents", seconds=120)
        assert name in found["message"]
        assert len(audited.ready("receiver")) >= 1
        node.run("rm", ballast)
        audited.wait(backend(), "ReceiverReady")
    assert audited.held_to_explain(since) > 100


def test_uninstalling_leaves_nothing_running_and_the_api_server_serving(installed: Audited, shown: list[str]) -> None:
    assert is_ready(installed.pods("receiver")[0])
    before = must(installed.api.request("GET", "/api/v1/namespaces/kube-system/pods"))["items"]
    installed.uninstall()
    since = moment()
    with installed.load():
        time.sleep(0.9)
    assert len(installed.witness(since, moment())) > 100
    assert installed.api.request("GET", "/readyz").ok
    after = must(installed.api.request("GET", "/api/v1/namespaces/kube-system/pods"))["items"]
    assert [pod["metadata"]["uid"] for pod in before] == [pod["metadata"]["uid"] for pod in after]
