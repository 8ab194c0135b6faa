"""What tenants write, at its worst, against a real API server: it costs them, and nobody else."""

import base64
import json
import random
from typing import Any

from apiserver import Json
from clusters import SETUP, Cluster, backend, namespace, resource, secret
from operators import NAMESPACE, Operator, condition, must, wait_for

TENANT = "team-a"
KEY = f"secret_{NAMESPACE}_siem-token_token"


def tenants_sink(name: str) -> Json:
    return resource(
        "AuditSink", name, {"http": {"url": "https://x/", "auth": {"bearerToken": {"name": name, "key": "k"}}}}, TENANT
    )


def large_secret(cluster: Cluster, name: str, size: int) -> None:
    value = base64.b64encode(b"x" * size).decode()
    document = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": {"k": value}}
    must(cluster.api.apply(f"/api/v1/namespaces/{TENANT}/secrets/{name}", document))


def value(cluster: Cluster, name: str, key: str) -> bytes:
    found = cluster.child("Secret", name) or {}
    return base64.b64decode(found.get("data", {}).get(key, ""))


def test_large_secrets_of_a_tenant_keep_nobody_elses_credentials_from_receivers(
    cluster: Cluster, operator: Operator
) -> None:
    limits = {"credentialBytes": "800Ki"}
    cluster.apply(namespace(TENANT), *SETUP[1:], backend(tenants={"enabled": True, "limits": limits}))
    wait_for(lambda: cluster.reached(SETUP[2]), "the platform is Ready", operator)
    for name in ("one", "two"):
        large_secret(cluster, name, 700_000)
        cluster.apply(tenants_sink(name))
        wait_for(lambda name=name: cluster.get(tenants_sink(name)).get("status"), "it has a status", operator)
    wait_for(lambda: cluster.reached(tenants_sink("two"), "Configured", "False", "TooLarge"), "it is said", operator)
    wait_for(lambda: cluster.reached(tenants_sink("one"), "Configured"), "the older one counts", operator)

    copies = [name for kind, name in cluster.children() if kind == "Secret" and name.startswith("audit-receiver-cred")]
    assert len(copies) == 2
    (theirs,) = (name for name in copies if name != "audit-receiver-credentials")
    assert len(value(cluster, theirs, f"secret_{TENANT}_one_k")) == 700_000

    cluster.apply(secret("siem-token", token="rotated"))
    wait_for(lambda: value(cluster, "audit-receiver-credentials", KEY) == b"rotated", "it is rotated", operator, 10)
    # Sizes change behind the back of who judged them.
    large_secret(cluster, "one", 1_000_000)
    wait_for(lambda: cluster.reached(tenants_sink("one"), "Configured", "False", "TooLarge"), "it is said", operator)
    for document in SETUP[1:3]:
        assert cluster.reached(document)
    assert cluster.reached(SETUP[0], "Applied")


def test_a_namespace_that_takes_its_credentials_away_costs_nobody_else_theirs(
    cluster: Cluster, operator: Operator
) -> None:
    cluster.apply(namespace(TENANT), *SETUP[1:], backend(tenants={"enabled": True}))
    large_secret(cluster, "one", 20)
    cluster.apply(tenants_sink("one"))
    wait_for(lambda: cluster.reached(tenants_sink("one"), "Configured"), "it counts", operator)
    assert cluster.api.request("DELETE", f"/api/v1/namespaces/{TENANT}/secrets/one").ok
    cluster.apply(secret("siem-token", token="rotated"))
    wait_for(lambda: value(cluster, "audit-receiver-credentials", KEY) == b"rotated", "it is rotated", operator, 10)
    wait_for(lambda: cluster.reached(tenants_sink("one"), "Configured", "False", "SecretNotFound"), "is said", operator)
    assert cluster.reached(SETUP[2])


def long_policy(name: str, noise: random.Random, rules: int, **rest: Any) -> Json:
    each = {"level": "Metadata", "users": [noise.randbytes(200).hex() for _ in range(54)]}
    return resource("AuditPolicy", name, {"rules": [each] * rules, **rest}, TENANT)


def test_policies_of_any_size_have_a_status_and_passes_go_on(cluster: Cluster, operator: Operator) -> None:
    noise = random.Random(5)
    cluster.apply(namespace(TENANT), *SETUP[1:], backend(tenants={"enabled": True}))
    wait_for(lambda: cluster.reached(SETUP[2]), "the platform is Ready", operator)
    before = cluster.program()
    elsewhere = [f"{number:0300d}" for number in range(200)]
    wordy = resource("AuditPolicy", "wordy", {"rules": [{"level": "Metadata", "namespaces": elsewhere}]}, TENANT)
    large = [long_policy(f"large-{number}", noise, 25) for number in range(3)]
    huge = long_policy("huge", noise, 50)
    assert 1_000_000 < len(json.dumps(huge)) < 1_500_000
    cluster.apply(wordy, *large, huge)
    for document in (*large, huge):
        wait_for(
            lambda document=document: cluster.reached(document, "Compiled", "False", "TooLarge"), "it is said", operator
        )
    wait_for(lambda: condition(cluster.get(wordy), "Compiled"), "the wordy one has a status", operator)
    assert cluster.program() == before or [each.name for each in cluster.program().policies] == ["base"]
    assert cluster.reached(SETUP[0], "Applied")


def test_a_policy_that_leaves_no_room_for_a_status_is_nobody_elses_trouble(
    cluster: Cluster, operator: Operator
) -> None:
    cluster.apply(namespace(TENANT), *SETUP[1:], backend(tenants={"enabled": True}))
    wait_for(lambda: cluster.reached(SETUP[2]), "the platform is Ready", operator)
    users = ["x" * 512] * 256
    full = resource("AuditPolicy", "full", {"rules": [{"level": "Metadata", "users": users}] * 10}, TENANT)
    folder = cluster.path(full).rpartition("/")[0]
    # As large as etcd takes, to the byte or nearly.
    fits, too_much = 0, 260_000
    while too_much - fits > 20:
        middle = (fits + too_much) // 2
        full["metadata"]["annotations"] = {"example.com/much": "x" * middle}
        if cluster.api.request("POST", folder, full).ok:
            fits = middle
            cluster.delete(full)
        else:
            too_much = middle
    assert 0 < fits < 259_000
    full["metadata"]["annotations"] = {"example.com/much": "x" * fits}
    must(cluster.api.request("POST", folder, full))
    wait_for(lambda: "full has no status" in operator.log.read_text(), "it is logged", operator)
    cluster.apply(secret("siem-token", token="rotated"))
    wait_for(lambda: value(cluster, "audit-receiver-credentials", KEY) == b"rotated", "it is rotated", operator, 10)
    incomplete = 'audit_operator_reconciles_total{result="incomplete"}'
    assert incomplete not in operator.get("/metrics")[1]
    assert cluster.reached(SETUP[2])
