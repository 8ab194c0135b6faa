"""A whole operator in this event loop, but for its own ports, against the fake API server."""

import asyncio
import base64
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from fake_api import APPLY, MERGE, FakeApi, Json, Request, serving
from kubernetes.aio.client import Configuration
from prometheus_client import REGISTRY

from audit_operator.controller.cluster import KubernetesCluster
from audit_operator.controller.election import NotLeadingError
from audit_operator.controller.reconcile import Reconciler, Settings

T = TypeVar("T")

NAMESPACE = "audit-system"
_GROUP = "/apis/audit-operator.dev/v1alpha1"
_CORE = f"/api/v1/namespaces/{NAMESPACE}"
_PLURALS = {"AuditPolicy": "auditpolicies", "AuditSink": "auditsinks"}
FOLDERS = {
    "ConfigMap": f"{_CORE}/configmaps",
    "Secret": f"{_CORE}/secrets",
    "Service": f"{_CORE}/services",
    "ServiceAccount": f"{_CORE}/serviceaccounts",
    "PersistentVolumeClaim": f"{_CORE}/persistentvolumeclaims",
    "Pod": f"{_CORE}/pods",
    "StatefulSet": f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets",
    "Deployment": f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments",
    "NetworkPolicy": f"/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies",
    "PodDisruptionBudget": f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets",
}
RECEIVER_LABELS = {
    "app.kubernetes.io/name": "audit-operator",
    "app.kubernetes.io/component": "receiver",
    "app.kubernetes.io/part-of": "audit-operator",
    "app.kubernetes.io/managed-by": "audit-operator",
}


class Leadership:
    """Leads as long as the test says so."""

    def __init__(self) -> None:
        self.leads = True

    def leading(self) -> bool:
        return self.leads

    def require(self) -> float:
        if not self.leads:
            raise NotLeadingError
        return math.inf


# --- resources -------------------------------------------------------------------------------------------------------


def resource(kind: str, name: str, spec: Json, namespace: str = NAMESPACE) -> Json:
    metadata = {"name": name} | ({} if kind == "AuditBackend" else {"namespace": namespace})
    return {"apiVersion": "audit-operator.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def backend(**spec: Any) -> Json:
    return resource("AuditBackend", "default", {"clusterName": "prod"} | spec)


def stored(size: str, replicas: int = 2, **claim: str) -> Json:
    storage = {"persistentVolumeClaim": {"size": size, **claim}}
    return backend(receiver={"replicas": replicas, "storage": storage})


def sink(name: str = "siem", namespace: str = NAMESPACE, **spec: Any) -> Json:
    token = {"name": f"{name}-token", "key": "token"}
    return resource("AuditSink", name, {"splunk": {"url": "https://splunk.example", "token": token}} | spec, namespace)


def policy(name: str = "base", user: str = "alice", namespace: str = NAMESPACE, **spec: Any) -> Json:
    return resource("AuditPolicy", name, {"rules": [{"level": "Metadata", "users": [user]}]} | spec, namespace)


def secret(name: str = "siem-token", **values: str) -> Json:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE}, "data": data}


def claim(ordinal: int, size: str = "10Gi", class_: str = "standard", capacity: str = "") -> Json:
    """A receiver's, as a StatefulSet makes it."""
    metadata = {"name": f"state-audit-receiver-{ordinal}", "namespace": NAMESPACE, "labels": RECEIVER_LABELS}
    spec = {"resources": {"requests": {"storage": size}}, "storageClassName": class_}
    status = {"status": {"phase": "Bound", "capacity": {"storage": capacity or size}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec} | status


SETUP = (backend(), sink(), policy(sinks=[{"name": "siem"}]), secret(token="s3cret"))


def path_of(document: Json) -> str:
    kind, metadata = document["kind"], document["metadata"]
    if kind == "AuditBackend":
        return f"{_GROUP}/auditbackends/{metadata['name']}"
    if kind in _PLURALS:
        return f"{_GROUP}/namespaces/{metadata['namespace']}/{_PLURALS[kind]}/{metadata['name']}"
    if kind == "Namespace":
        return f"/api/v1/namespaces/{metadata['name']}"
    return f"{FOLDERS[kind]}/{metadata['name']}"


def condition(document: Json, type_: str) -> Json:
    """One condition; empty if there is none of this generation."""
    found: Json = next((each for each in document.get("status", {}).get("conditions", ()) if each["type"] == type_), {})
    return found if found.get("observedGeneration") == document["metadata"]["generation"] else {}


async def until(holds: Callable[[], T], what: str = "it", seconds: float = 30) -> T:
    """The first true result. Fails when it never comes."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)
    return found


# --- what runs -------------------------------------------------------------------------------------------------------


class World:
    """The cluster as a test sees it."""

    def __init__(self, api: FakeApi) -> None:
        self.api = api

    def apply(self, *documents: Json) -> None:
        for document in documents:
            plain = {key: value for key, value in document.items() if key != "status"}
            status, answer = self.api.request("PATCH", path_of(document), plain, content=APPLY, force="true")
            assert status == 200, answer
            if "status" in document:
                self.edit(document["kind"], document["metadata"]["name"], {"status": document["status"]}, "status")

    def delete(self, *documents: Json) -> None:
        for document in documents:
            assert self.api.request("DELETE", path_of(document))[0] == 200

    def edit(self, kind: str, name: str, change: Json, subresource: str = "") -> None:
        path = f"{FOLDERS[kind]}/{name}" + (f"/{subresource}" if subresource else "")
        status, answer = self.api.request("PATCH", path, change, content=MERGE, fieldManager="kubectl-edit")
        assert status == 200, answer

    def get(self, document: Json) -> Json:
        status, answer = self.api.request("GET", path_of(document))
        assert status == 200, answer
        return answer

    def child(self, kind: str, name: str) -> Json | None:
        status, answer = self.api.request("GET", f"{FOLDERS[kind]}/{name}")
        return answer if status == 200 else None

    def names(self, kind: str) -> set[str]:
        return {each["metadata"]["name"] for each in self.api.request("GET", FOLDERS[kind])[1]["items"]}

    def said(self, document: Json, type_: str = "Ready") -> tuple[str, str]:
        """Status and reason of a condition."""
        found = condition(self.get(document), type_)
        return found.get("status", ""), found.get("reason", "")

    def message(self, document: Json, type_: str = "Ready") -> str:
        return str(condition(self.get(document), type_).get("message", ""))

    def policy_file(self) -> str:
        found = self.child("ConfigMap", "audit-apiserver") or {"data": {}}
        return str(found["data"].get("policy.yaml", ""))

    def program(self) -> str:
        found = self.child("ConfigMap", "audit-receiver-program") or {"data": {}}
        return str(found["data"].get("program.json", ""))

    def writes(self, since: int = 0) -> list[Request]:
        return [each for each in self.api.requests[since:] if each.writes]


class Operator(World):
    """With an operator that runs."""

    def __init__(self, api: FakeApi, reconciler: Reconciler, leadership: Leadership) -> None:
        super().__init__(api)
        self.reconciler = reconciler
        self.leadership = leadership

    async def passed(self, result: str = "") -> None:
        """Have one pass more, from its beginning to its end; it may be several."""

        def passes() -> float:
            results = (result,) if result else ("success", "incomplete", "failure")
            name = "audit_operator_reconciles_total"
            return sum(REGISTRY.get_sample_value(name, {"result": each}) or 0 for each in results)

        await until(lambda: self.reconciler.busy_since is None)
        before = passes()
        self.reconciler.wake()
        await until(lambda: passes() > before and self.reconciler.busy_since is None, "a pass")

    async def quiet(self) -> None:
        """Until a pass writes nothing."""
        for _ in range(50):
            before = len(self.api.requests)
            await self.passed()
            if not self.writes(before):
                return
        raise AssertionError("it writes for ever")


@contextlib.asynccontextmanager
async def operating(api: FakeApi, leadership: Leadership | None = None) -> AsyncIterator[Operator]:
    """An operator that has read everything."""
    leadership = leadership or Leadership()
    async with contextlib.AsyncExitStack() as stack:
        configuration = Configuration()
        configuration.host = await stack.enter_async_context(serving(api))
        cluster = await stack.enter_async_context(KubernetesCluster(configuration, "one"))
        cluster.fence = leadership.require
        settings = Settings(NAMESPACE, "one", "registry.example/audit-operator:test", "cluster.local")
        reconciler = Reconciler(cluster, settings, await cluster.discover())
        reconciler.references.period = 0.2
        works = (
            reconciler.watching.watch(configuration, "one", lambda: None),
            reconciler.watching.call_the_roll(cluster),
            reconciler.children.watch(reconciler.is_served),
            reconciler.references.poll(),
            reconciler.receivers.run(),
            reconciler.run(leadership),
        )
        tasks = [asyncio.create_task(work) for work in works]
        try:
            async with asyncio.timeout(30):
                await reconciler.watching.ready.wait()
            yield Operator(api, reconciler, leadership)
        finally:
            for task in reversed(tasks):
                while not task.done():
                    task.cancel()
                    await asyncio.wait((task,), timeout=1)


def run(test: Callable[[Operator], Awaitable[None]], *documents: Json, leadership: Leadership | None = None) -> None:
    """A test with an operator; ``documents`` are there when it starts."""

    async def whole() -> None:
        api = FakeApi()
        World(api).apply(*documents)
        async with operating(api, leadership) as operator:
            await test(operator)

    asyncio.run(whole())
