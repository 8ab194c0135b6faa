"""The operator beside a real API server, 1,000 AuditPolicies of 20 rules in it: how fast, how silent, how large.

Needs what e2e/ needs. The load is that of the tests' user, from this process; the figures are the operator's.
"""

import json
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import policies
from bench.table import Row

_E2E = Path(__file__).parents[1] / "e2e"
_ROOT = "audit-system"
_PLATFORM = 20
_TENANTS = 196  # namespaces, with five policies each
_SAMPLES = 60


def run() -> Iterator[Row]:
    """Rows of the table; none, and a line that says why, where there is no API server."""
    sys.path.insert(0, str(_E2E))
    import apiserver
    import clusters as tests
    import operators

    documents = _documents(tests)
    audit = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived", "ResponseStarted"]}
    audit["rules"] = [{"level": "Metadata", "users": [operators.USER]}]  # type: ignore[list-item]
    try:
        context = apiserver.control_plane()
        with context as plane:
            log = plane.folder / "audit.log"
            (plane.folder / "audit.json").write_text(json.dumps(audit))
            plane.stop()
            plane.flags = [f"--audit-policy-file={plane.folder / 'audit.json'}", f"--audit-log-path={log}"]
            plane.start()
            tests.install_crds(plane.api)
            token = operators.install(plane.api)
            yield from _measure(tests.Cluster(plane), token, log, documents)
    except LookupError as missing:
        print(f"skipped: {missing}", file=sys.stderr)


def _documents(tests: Any) -> list[dict[str, Any]]:
    """1,000 AuditPolicies: a platform team's, and those of tenants in 25 shapes."""
    rng = random.Random(1)
    found = [_policy(tests, f"platform-{number}", _ROOT, policies.platform(rng)) for number in range(_PLATFORM)]
    for number in range(1000 - _PLATFORM):
        namespace = f"team-{number % _TENANTS}"
        made = policies.tenant(random.Random(number % 25), namespace)
        found.append(_policy(tests, f"own-{number}", namespace, made))
    return found


def _policy(tests: Any, name: str, namespace: str, policy: Any) -> dict[str, Any]:
    rules = []
    for rule in policy.rules:
        entry: dict[str, Any] = {"level": str(rule.level)}
        for field, value in (
            ("users", rule.users),
            ("userGroups", rule.user_groups),
            ("verbs", rule.verbs),
            ("namespaces", rule.namespaces),
            ("nonResourceURLs", rule.non_resource_urls),
        ):
            if value:
                entry[field] = list(value)
        if rule.resources:
            entry["resources"] = [{"group": each.group, "resources": list(each.resources)} for each in rule.resources]
        rules.append(entry)
    document: dict[str, Any] = tests.policy(
        name, namespace=namespace, rules=rules, sinks=[], omitStages=["RequestReceived"]
    )
    return document


def _measure(cluster: Any, token: str, log: Path, documents: list[dict[str, Any]]) -> Iterator[Row]:
    import clusters as tests
    import operators

    tenants = {"enabled": True, "level": "RequestResponse"}
    cluster.apply(tests.backend(tenants=tenants))
    for number in range(_TENANTS):
        cluster.apply(tests.namespace(f"team-{number}"))
    with operators.running(cluster.plane, token, "bench") as operator:
        _until(lambda: tests.condition(cluster.get(tests.backend()), "Rendered"))
        time.sleep(5)
        yield Row("operator: RSS without AuditPolicies", _rss(operator), "MB", 120)

        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(cluster.apply, documents))
        applied = time.monotonic() - began
        _until(lambda: _current(cluster) == len(documents), 300)
        yield Row(
            "operator: 1,000 AuditPolicies applied at once, all statuses current", time.monotonic() - began, "s", 60
        )
        yield Row("… of which the applying took", applied, "s")

        time.sleep(10)
        latencies = sorted(_latency(cluster, documents[_PLATFORM + number], number) for number in range(_SAMPLES))
        yield Row(
            "operator: apply of one AuditPolicy to its status, 1,000 present, p50",
            statistics.median(latencies),
            "s",
            0.5,
        )
        yield Row("… p99", latencies[int(len(latencies) * 0.99)], "s", 2)
        wide = sorted(_latency(cluster, documents[number], number) for number in range(_PLATFORM))
        yield Row("… the same of a cluster-wide one, median", statistics.median(wide), "s")

        time.sleep(10)
        since, cpu = len(log.read_text().splitlines()), _cpu(operator)
        time.sleep(60)
        written = len(tests.writes(tests.read_audit_log(log, since)))
        yield Row("operator: writes in a minute of steady state", written, "", 0)
        yield Row("operator: processor in steady state, 1,000 AuditPolicies", 100 * (_cpu(operator) - cpu) / 60, "%", 2)
        yield Row("operator: RSS with 1,000 AuditPolicies", _rss(operator), "MB", 250)

        operator.terminate()
        began = time.monotonic()
        operator.start()
        _until(lambda: operator.metric("audit_operator_reconcile_seconds_count") >= 1)
        yield Row("operator: start to the end of the first pass, 1,000 AuditPolicies", time.monotonic() - began, "s", 5)


def _latency(cluster: Any, document: dict[str, Any], number: int) -> float:
    """Seconds from sending a change of a policy to the watch event with its new status."""
    document["spec"]["rules"][0]["users"] = [f"user-{number}-{time.monotonic_ns()}"]
    before = cluster.get(document)["metadata"]
    generation = before["generation"] + 1
    seen = threading.Event()
    end: list[float] = []

    def follow() -> None:
        path = f"{cluster.path(document).rpartition('/')[0]}?watch=true&timeoutSeconds=30"
        path += f"&resourceVersion={before['resourceVersion']}"
        path += f"&fieldSelector=metadata.name%3D{document['metadata']['name']}"
        for event in cluster.api.stream(path, started):
            if event["type"] == "ERROR":
                raise RuntimeError(event["object"]["message"])
            if event["object"].get("status", {}).get("observedGeneration") == generation:
                end.append(time.monotonic())
                seen.set()
                return

    started = threading.Event()
    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    started.wait(10)
    began = time.monotonic()
    cluster.apply(document)
    if not seen.wait(30):
        return 30.0
    thread.join()
    return end[0] - began


def _current(cluster: Any) -> int:
    items = cluster.api.request("GET", "/apis/audit-operator.dev/v1alpha1/auditpolicies").body["items"]
    return sum(item.get("status", {}).get("observedGeneration") == item["metadata"]["generation"] for item in items)


def _until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the operator did not get there")
        time.sleep(0.2)


def _rss(operator: Any) -> float:
    """Resident memory now, MB."""
    lines = Path(f"/proc/{operator.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def _cpu(operator: Any) -> float:
    """Processor seconds so far."""
    fields = Path(f"/proc/{operator.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
