"""A cluster as the tests see it: resources to apply, calls as the tests' user, and what the operator asked of it."""

import base64
import json
from pathlib import Path
from typing import Any

import yaml

import operators
from apiserver import ApiServer, ControlPlane, Json
from audit_operator.render.plan import Plan, render
from audit_operator.render.program import decode
from audit_operator.render.world import Resources, World
from audit_operator.resources.load import load_resource
from operators import GROUP, NAMESPACE, condition, must, wait_for

CRDS = Path(__file__).parents[1] / "crds"
CORE = f"/api/v1/namespaces/{NAMESPACE}"
PLURALS = {"AuditPolicy": "auditpolicies", "AuditSink": "auditsinks", "AuditBackend": "auditbackends"}
CHILDREN = {
    "ConfigMap": f"{CORE}/configmaps",
    "Secret": f"{CORE}/secrets",
    "Service": f"{CORE}/services",
    "ServiceAccount": f"{CORE}/serviceaccounts",
    "StatefulSet": f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets",
    "Deployment": f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments",
    "NetworkPolicy": f"/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies",
    "PodDisruptionBudget": f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets",
}
OURS = "app.kubernetes.io%2Fmanaged-by%3Daudit-operator"


# --- resources -------------------------------------------------------------------------------------------------------


def resource(kind: str, name: str, spec: Json, namespace: str = NAMESPACE) -> Json:
    metadata = {"name": name} | ({} if kind == "AuditBackend" else {"namespace": namespace})
    return {"apiVersion": "audit-operator.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def backend(**spec: Any) -> Json:
    return resource("AuditBackend", "default", {"clusterName": "e2e"} | spec)


def sink(name: str = "siem", **spec: Any) -> Json:
    token = {"name": f"{name}-token", "key": "token"}
    return resource("AuditSink", name, {"splunk": {"url": "https://splunk.example", "token": token}} | spec)


def policy(name: str = "base", *sinks: str, namespace: str = NAMESPACE, **spec: Any) -> Json:
    rules = [{"level": "Metadata", "resources": [{"group": "", "resources": ["secrets"]}]}]
    wanted = {"rules": rules, "sinks": [{"name": each} for each in sinks]} | spec
    return resource("AuditPolicy", name, wanted, namespace)


def secret(name: str, **values: str) -> Json:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE}, "data": data}


def namespace(name: str, **labels: str) -> Json:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def holds(live: object, wanted: object) -> bool:
    """Whether everything that is ``wanted`` is there as it is wanted, whatever else is."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(key in live and holds(live[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return isinstance(live, list) and len(live) == len(wanted) and all(map(holds, live, wanted))
    return live == wanted


class Cluster:
    """Calls to the API server as the tests' user."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane

    @property
    def api(self) -> ApiServer:
        return self.plane.api

    def path(self, document: Json) -> str:
        kind, metadata = document["kind"], document["metadata"]
        if kind == "AuditBackend":
            return f"{GROUP}/auditbackends/{metadata['name']}"
        if kind in PLURALS:
            return f"{GROUP}/namespaces/{metadata['namespace']}/{PLURALS[kind]}/{metadata['name']}"
        if kind == "Namespace":
            return f"/api/v1/namespaces/{metadata['name']}"
        return f"{CHILDREN[kind]}/{metadata['name']}"

    def apply(self, *documents: Json) -> None:
        for document in documents:
            must(self.api.apply(self.path(document), document))

    def get(self, document: Json) -> Json:
        return must(self.api.request("GET", self.path(document)))

    def delete(self, *documents: Json) -> None:
        for document in documents:
            assert self.api.request("DELETE", self.path(document)).status in (200, 202, 404)

    def child(self, kind: str, name: str) -> Json | None:
        answer = self.api.request("GET", f"{CHILDREN[kind]}/{name}")
        return answer.body if answer.ok else None

    def children(self) -> dict[tuple[str, str], Json]:
        """All that the operator made, by kind and name."""
        found = {}
        for kind, folder in CHILDREN.items():
            for item in must(self.api.request("GET", f"{folder}?labelSelector={OURS}"))["items"]:
                found[kind, item["metadata"]["name"]] = {"kind": kind} | item  # lists leave it out
        return found

    def program(self) -> Any:
        found = self.child("ConfigMap", "audit-receiver-program")
        return decode(found["data"]["program.json"]) if found else None

    def policy_file(self) -> str:
        found = self.child("ConfigMap", "audit-apiserver")
        return found["data"]["policy.yaml"] if found else ""

    def reached(self, document: Json, type_: str = "Ready", status: str = "True", reason: str = "") -> bool:
        found = condition(self.get(document), type_)
        return found.get("status") == status and reason in ("", found.get("reason"))

    def resources(self) -> list[Json]:
        return [item for kind in PLURALS.values() for item in must(self.api.request("GET", f"{GROUP}/{kind}"))["items"]]

    def clean(self) -> None:
        """Nothing of ours, nor of the tests'."""
        for item in self.resources():
            self.delete(item)
        for folder in CHILDREN.values():
            if "services" not in folder:
                must(self.api.request("DELETE", f"{folder}?labelSelector={OURS}"))
        for (_, name), item in self.children().items():
            assert self.api.request("DELETE", self.path(item)).ok, name

    def desired(self) -> Plan:
        """What rendering makes of the resources as they are now, in the world as it is now."""
        resources = []
        for item in self.resources():
            plain = {key: item[key] for key in ("apiVersion", "kind", "metadata", "spec")}
            plain["metadata"] = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
            resources.append(load_resource(plain))
        namespaces = must(self.api.request("GET", "/api/v1/namespaces"))["items"]
        service = self.child("Service", "audit-receiver")
        world = World(
            namespaces={each["metadata"]["name"]: each["metadata"].get("labels", {}) for each in namespaces},
            receiver_address=operators.address(service),
            root_namespace=NAMESPACE,
            image="registry.example/audit-operator:test",
        )
        return render(Resources.of(resources), world)


def plain(item: Json) -> Json:
    """What of an object the operator decides on."""
    content = {key: value for key, value in item.items() if key in ("data", "binaryData", "immutable", "type")}
    spec = item.get("spec", {})
    kept = {key: spec[key] for key in ("replicas", "ports", "podSelector", "maxUnavailable") if key in spec}
    return {"labels": item["metadata"]["labels"], "content": content, "spec": kept}


def install_crds(api: ApiServer) -> None:
    for path in sorted(CRDS.glob("*.yaml")):
        document = yaml.safe_load(path.read_text())
        url = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{document['metadata']['name']}"
        must(api.apply(f"{url}", document))
    for plural in PLURALS.values():
        wait_for(lambda plural=plural: api.request("GET", f"{GROUP}/{plural}").ok, f"{plural} are served")


def read_audit_log(path: Path, since: int = 0) -> list[Json]:
    return [json.loads(line) for line in path.read_text().splitlines()[since:]]


WRITES = {"create", "update", "patch", "delete", "deletecollection"}


def writes(events: list[Json]) -> list[Json]:
    """The writes among audit events; renewing the Lease and asking for permissions are none."""
    return [
        event
        for event in events
        if event["verb"] in WRITES and event["objectRef"]["resource"] not in ("leases", "selfsubjectaccessreviews")
    ]


SETUP = (backend(), sink(), policy("base", "siem"), secret("siem-token", token="s3cret-value"))
