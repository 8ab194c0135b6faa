"""What the operator publishes, in a second API server: it comes up, and records what `explain` says it records."""

import base64
import contextlib
import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apiserver import ApiServer, Json, control_plane
from audit_operator.policy.explain import Explainer
from audit_operator.policy.load import load_policy
from audit_operator.policy.model import STAGES, Level, Stage
from audit_operator.policy.request import request_of
from clusters import Cluster, backend, policy, sink
from operators import Operator, wait_for

EVERYTHING = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]}

RULES = [
    {"level": "None", "users": ["system:apiserver"]},
    {"level": "None", "nonResourceURLs": ["/livez*", "/healthz"]},
    {"level": "Metadata", "resources": [{"group": "", "resources": ["secrets", "serviceaccounts/token"]}]},
    {"level": "RequestResponse", "resources": [{"group": "", "resources": ["configmaps"]}], "namespaces": ["blue"]},
    {
        "level": "Request",
        "verbs": ["create", "update", "patch"],
        "resources": [{"group": "", "resources": ["configmaps"]}],
    },
    {"level": "Request", "resources": [{"group": "", "resources": ["configmaps"], "resourceNames": ["named"]}]},
    {"level": "RequestResponse", "userGroups": ["painters"], "verbs": ["list", "watch", "deletecollection"]},
    {"level": "Metadata", "verbs": ["delete"], "omitStages": ["ResponseComplete"]},
    {"level": "Metadata", "resources": [{"group": "", "resources": ["pods/*"]}, {"group": "apps"}]},
    {"level": "Metadata", "nonResourceURLs": ["/version", "/api*"]},
    {"level": "Minimal", "namespaceSelector": {"matchLabels": {"tier": "prod"}}},
]


@contextlib.contextmanager
def server(folder: Path, flags: list[str]) -> Iterator[ApiServer]:
    """An API server with two more users than the administrator."""
    with control_plane(flags) as plane:
        tokens = plane.folder / "tokens.csv"
        tokens.write_text(tokens.read_text() + 'painter,painter,painter,"painters"\nnobody,nobody,nobody\n')
        plane.stop()
        for log in folder.glob("**/audit.log"):
            log.write_text("")
        plane.start()
        yield plane.api


def requests() -> Iterator[tuple[str, str, str, Any, str]]:
    """(token, method, path, body, content type); an empty token is the administrator's."""
    json_, merge, apply = "application/json", "application/merge-patch+json", "application/apply-patch+yaml"
    for name in ("blue", "red"):
        yield "", "POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": {"tier": "prod"}}}, json_
    for namespace in ("blue", "red", "default"):
        folder = f"/api/v1/namespaces/{namespace}"
        for token in ("", "painter", "nobody", "not-a-token"):
            for name in ("named", "other"):
                item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": "value"}}
                yield token, "POST", f"{folder}/configmaps", item, json_
                yield token, "GET", f"{folder}/configmaps/{name}", None, json_
                yield token, "PUT", f"{folder}/configmaps/{name}", item | {"data": {"key": "other"}}, json_
                yield token, "PATCH", f"{folder}/configmaps/{name}", {"data": {"key": "third"}}, merge
                yield token, "PATCH", f"{folder}/configmaps/{name}?fieldManager=e2e&force=true", item, apply
                yield token, "DELETE", f"{folder}/configmaps/{name}", None, json_
            yield token, "GET", f"{folder}/configmaps?fieldSelector=metadata.name%3Dnamed", None, json_
            yield token, "GET", f"{folder}/configmaps?watch=true&timeoutSeconds=1", None, json_
            yield token, "DELETE", f"{folder}/configmaps", None, json_
            yield token, "GET", f"{folder}/secrets", None, json_
            yield (
                token,
                "POST",
                f"{folder}/secrets",
                {"metadata": {"name": "s"}, "stringData": {"password": "p"}},
                json_,
            )
            yield token, "GET", f"{folder}/secrets/s", None, json_
            yield token, "GET", f"{folder}/pods/none/log", None, json_
            yield token, "POST", f"{folder}/pods/none/exec?command=id&stdout=true", None, json_
            yield token, "GET", f"/apis/apps/v1/namespaces/{namespace}/deployments", None, json_
            token_request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
            yield token, "POST", f"{folder}/serviceaccounts/default/token", token_request, json_
            yield token, "GET", f"{folder}/widgets/x/y/z", None, json_
    for token in ("", "painter", "nobody", "not-a-token"):
        for path in (
            "/version",
            "/livez/ping",
            "/healthz",
            "/api",
            "/apis/apps",
            "/metrics",
            "/nothing/here",
            "/openapi/v2",
        ):
            yield token, "GET", path, None, json_
        yield token, "GET", "/api/v1/namespaces", None, json_
        yield token, "GET", "/api/v1/configmaps", None, json_
        yield token, "GET", "/api/v1/nodes/none/proxy/metrics", None, json_
        yield token, "GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/view", None, json_


def send(api: ApiServer) -> list[str]:
    """Send them all; the Audit-IDs, which clients may choose."""
    sent = []
    for number, (token, method, path, body, content) in enumerate(requests()):
        sent.append(f"e2e-{number:04}")
        api.request(method, path, body, content=content, headers={"Audit-ID": sent[-1]}, token=token)
    return sent


def events(log: Path) -> dict[str, list[Json]]:
    """Recorded events by Audit-ID."""
    found: dict[str, list[Json]] = {}
    for line in log.read_text().splitlines():
        event = json.loads(line)
        found.setdefault(event["auditID"], []).append(event)
    return found


def test_an_api_server_with_what_is_published_records_what_explain_says(
    cluster: Cluster, operator: Operator, tmp_path: Path
) -> None:
    spec = {"receiver": {"exposure": {"external": {"host": "127.0.0.1", "port": 1}}}, "log": {"mode": "blocking"}}
    cluster.apply(backend(**spec), sink(), policy("first", "siem", rules=RULES[:6]), policy("second", rules=RULES[6:]))
    wait_for(lambda: cluster.reached(policy("second")) and "painters" in cluster.policy_file(), "published", operator)

    # As a person or an agent would: the files of the ConfigMap and of the Secret, where the flags look for them.
    node, logs = tmp_path / "audit", tmp_path / "log"
    node.mkdir()
    published = cluster.child("ConfigMap", "audit-apiserver")
    client = cluster.child("Secret", "audit-apiserver-client")
    assert published is not None
    assert client is not None
    moved = {"/etc/kubernetes/audit": str(node), "/var/log/kubernetes/audit": str(logs)}
    files = published["data"] | {
        name: base64.b64decode(client["data"][key]).decode()
        for name, key in (("ca.crt", "ca.crt"), ("client.crt", "tls.crt"), ("client.key", "tls.key"))
    }
    for name, text in files.items():
        (node / name).write_text(functools.reduce(lambda done, pair: done.replace(*pair), moved.items(), text))
    flags = [line for line in (node / "flags.txt").read_text().splitlines() if line.startswith("--")]
    assert any("--audit-webhook-config-file" in flag for flag in flags)

    witness = tmp_path / "witness"
    witness.mkdir()
    (witness / "policy.yaml").write_text(json.dumps(EVERYTHING))
    all_flags = [f"--audit-policy-file={witness / 'policy.yaml'}", f"--audit-log-path={witness / 'audit.log'}"]
    with server(witness, all_flags) as api:
        sent = send(api)
        time.sleep(2)
        happened = events(witness / "audit.log")
    with server(logs, flags) as api:
        assert send(api) == sent
        time.sleep(2)
        recorded = events(logs / "audit.log")

    loaded = load_policy(files["policy.yaml"])
    assert loaded.accepted
    assert loaded.policy is not None
    explainer = Explainer(loaded.policy, ())
    assert len(sent) > 300
    levels = set()
    for audit_id in sent:
        seen = {event["stage"]: event for event in happened[audit_id]}
        said = explainer.explain(request_of(happened[audit_id][0])).server
        wanted = {stage for stage in seen if said.level and Stage(stage) not in said.omit_stages}
        found = {event["stage"]: event for event in recorded.get(audit_id, ())}
        assert found.keys() == wanted, (audit_id, happened[audit_id][0]["requestURI"])
        assert {event["level"] for event in found.values()} <= {str(said.level)}
        levels.add(said.level)
        for stage, event in found.items():
            body = "requestObject" in event
            assert body <= (said.level >= Level.REQUEST), audit_id
            assert ("responseObject" in event) <= (said.level >= Level.REQUEST_RESPONSE), audit_id
            assert Stage(stage) in STAGES
    assert levels == {Level.NONE, Level.METADATA, Level.REQUEST, Level.REQUEST_RESPONSE}
