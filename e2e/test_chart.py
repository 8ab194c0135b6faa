"""The chart with a real Helm on a real API server: install, upgrade, uninstall. No pod runs, none is waited for."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import apiserver
import clusters
import operators

Json = dict[str, Any]
ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "audit-operator"
VALUES = {path.parent.name: path for path in (ROOT / "tests" / "chart" / "cases").glob("*/values.yaml")}
PREVIOUS = sorted((Path(__file__).parent / "charts").glob("*.tgz"))
"""Charts as they were, by version: what people upgrade from."""

NAMESPACE = "chart-e2e"
OURS = "/apis/audit-operator.dev/v1alpha1"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
KINDS = ("auditbackends", "auditpolicies", "auditsinks")

CORE = f"/api/v1/namespaces/{NAMESPACE}"
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/audit-operator"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/audit-operator"
PATHS = (
    f"{OURS}/auditbackends/default",
    DEPLOYMENT,
    LEASE,
    "/apis/rbac.authorization.k8s.io/v1/clusterroles/audit-operator",
)

# What API servers, and controllers where there are any, make by themselves. Leases are looked at in our namespace only.
NOT_OURS = {"endpoints", "endpointslices", "events", "leases", "apiservices", "customresourcedefinitions"}
BY_ITSELF = {("serviceaccounts", "default"), ("configmaps", "kube-root-ca.crt")}


@pytest.fixture(scope="module")
def plane() -> Iterator[apiserver.ControlPlane]:
    """A control plane of this module's own: the tests delete the CRDs that all others share."""
    if os.environ.get("E2E_KUBECONFIG"):
        pytest.skip("deletes CRDs, and with them every AuditPolicy: not in a cluster that is somebody's")
    if apiserver.find_binaries() is None:
        pytest.skip(apiserver.HOW_TO_GET_ONE)
    with apiserver.control_plane() as running:
        yield running


@pytest.fixture
def server(plane: apiserver.ControlPlane) -> apiserver.ApiServer:
    return plane.api


class Helm:
    """Helm and kubectl at one API server."""

    def __init__(self, helm: str, kubectl: str, folder: Path, api: apiserver.ApiServer) -> None:
        self.helm, self.kubectl_path, self.api = helm, kubectl, api
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "e2e", "cluster": {"server": api.url, "certificate-authority": str(api.ca)}}],
            "users": [{"name": "e2e", "user": {"token": api.token}}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
            "current-context": "e2e",
        }
        (folder / "kubeconfig").write_text(json.dumps(config))
        self.environment = {
            "HOME": str(folder),
            "KUBECONFIG": str(folder / "kubeconfig"),
            "NO_PROXY": "127.0.0.1",
            "PATH": os.environ["PATH"],
        }

    def run(self, *arguments: str | Path, ok: bool = True) -> str:
        command = [self.helm, *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout + done.stderr

    def install(self, chart: Path, *options: str, ok: bool = True, release: str = "audit-operator") -> str:
        return self.run("install", release, chart, "-n", NAMESPACE, "--create-namespace", *options, ok=ok)

    def upgrade(self, chart: Path, *options: str, ok: bool = True) -> str:
        return self.run("upgrade", "audit-operator", chart, "-n", NAMESPACE, *options, ok=ok)

    def uninstall(self) -> str:
        return self.run("uninstall", "audit-operator", "-n", NAMESPACE)

    def kubectl(self, *arguments: str, text: str = "") -> str:
        command = [self.kubectl_path, *arguments]
        done = subprocess.run(
            command, input=text, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def apply_crds(self, chart: Path) -> None:
        """As the chart's refusal says."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=self.run("show", "crds", chart))

    def kubectl_apply(self, document: Json, *options: str) -> Json:
        """As Argo CD does; what comes of it."""
        manager = ("--server-side", "--field-manager=argocd-controller", "--show-managed-fields", "-o", "json")
        applied: Json = json.loads(self.kubectl("apply", *manager, *options, "-f", "-", text=json.dumps(document)))
        return applied

    def kubectl_get(self, document: Json) -> Json:
        listed = json.loads(self.kubectl("get", "-f", "-", "-o", "json", text=json.dumps(document)))
        (found,) = listed["items"]
        live: Json = found
        return live


@pytest.fixture
def helm(server: apiserver.ApiServer, tmp_path: Path) -> Iterator[Helm]:
    """A cluster without us, and without us again afterwards."""
    finder = [sys.executable, ROOT / "scripts" / "get-helm", "--find"]
    found = subprocess.run(finder, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(found.stderr.strip())
    binaries = apiserver.find_binaries()
    kubectl = shutil.which("kubectl") or (binaries and shutil.which("kubectl", path=binaries))
    if not kubectl:
        pytest.skip("needs kubectl")
    helm = Helm(found.stdout.strip(), kubectl, tmp_path, server)
    yield helm
    helm.run("uninstall", "audit-operator", "-n", NAMESPACE, "--ignore-not-found")
    for kind in KINDS:
        server.request("DELETE", f"{DEFINITIONS}/{kind}.audit-operator.dev")
        apiserver.eventually(lambda kind=kind: server.request("GET", f"{OURS}/{kind}").status == 404)


def everything(api: apiserver.ApiServer) -> set[str]:
    """The path of every object in the cluster that can be listed, CRDs and what is made by itself aside."""
    groups = api.request("GET", "/apis").body["groups"]
    found = set()
    for folder in ["/api/v1", *(f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups)]:
        for resource in api.request("GET", folder).body["resources"]:
            name = resource["name"]
            if "/" in name or "list" not in resource["verbs"] or name in NOT_OURS:
                continue
            for item in api.request("GET", f"{folder}/{name}").body["items"]:
                metadata = item["metadata"]
                if (name, metadata["name"]) in BY_ITSELF:
                    continue
                found.add(f"{folder}/{name}/{metadata.get('namespace', '')}/{metadata['name']}")
    lease = api.request("GET", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases").body["items"]
    return found | {f"leases/{NAMESPACE}/{item['metadata']['name']}" for item in lease}


def definitions(api: apiserver.ApiServer) -> set[str]:
    return {
        item["metadata"]["name"]
        for item in api.request("GET", DEFINITIONS).body["items"]
        if item["spec"]["group"] == "audit-operator.dev"
    }


def older(folder: Path) -> Path:
    """This chart one version earlier: another CRD, one object less, one more."""
    chart = folder / "audit-operator"
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about | {"version": "0.0.9", "appVersion": "0.0.9"}))
    for path in chart.glob("crds/*.yaml"):
        crd = yaml.safe_load(path.read_text())
        crd["metadata"]["annotations"]["audit-operator.dev/hash"] = "older"
        crd["spec"]["versions"][0]["additionalPrinterColumns"].pop()
        path.write_text(yaml.safe_dump(crd))
    (chart / "templates" / "poddisruptionbudget.yaml").unlink()
    gone = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: gone, namespace: {{ .Release.Namespace }}}\n"
    (chart / "templates" / "gone.yaml").write_text(gone)
    return chart


def get(api: apiserver.ApiServer, path: str) -> Json:
    answer = api.request("GET", path)
    assert answer.ok, answer.body
    return answer.body


def test_one_command_installs_everything_and_one_leaves_nothing_behind_but_crds(helm: Helm) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    helm.api.apply(f"/api/v1/namespaces/{NAMESPACE}", namespace)
    before = everything(helm.api)

    notes = helm.install(CHART, "--set", "backend.spec.clusterName=prod-eu-1")

    assert get(helm.api, f"{OURS}/auditbackends/default")["spec"]["clusterName"] == "prod-eu-1"
    assert definitions(helm.api) == {f"{kind}.audit-operator.dev" for kind in KINDS}
    assert len(everything(helm.api) - before) > 12
    assert "kubectl get auditbackend default" in notes

    helm.uninstall()
    assert everything(helm.api) == before
    assert definitions(helm.api) == {f"{kind}.audit-operator.dev" for kind in KINDS}


@pytest.fixture
def garbage_collector(plane: apiserver.ControlPlane) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(plane.controller_manager())
        except LookupError as missing:
            pytest.skip(str(missing))
        yield


def as_a_pod_has_it(container: Json, name: str) -> dict[str, str]:
    """The environment that a kubelet would give the container."""
    fields = {"metadata.name": name, "metadata.namespace": NAMESPACE}
    return {
        entry["name"]: entry["value"] if "value" in entry else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in container["env"]
    }


@pytest.mark.usefixtures("garbage_collector")
def test_the_operator_works_with_what_the_chart_grants_and_goes_without_a_trace(
    helm: Helm, plane: apiserver.ControlPlane, tmp_path: Path
) -> None:
    """The process as the Deployment would start it: its service account, its arguments, its environment."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    helm.api.apply(f"/api/v1/namespaces/{NAMESPACE}", namespace)
    before = everything(helm.api)
    helm.install(CHART)
    pod = get(helm.api, DEPLOYMENT)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (folder,) = (each["mountPath"] for each in container["volumeMounts"] if each["name"] == "logging")
    (logging,) = (each["configMap"]["name"] for each in pod["volumes"] if each["name"] == "logging")

    def mount() -> None:
        """As a kubelet does."""
        for name, text in get(helm.api, f"{CORE}/configmaps/{logging}")["data"].items():
            (tmp_path / name).write_text(text)

    mount()
    arguments = [each.replace(folder, str(tmp_path)) for each in container["args"][1:]]
    environment = as_a_pod_has_it(container, "audit-operator-0")
    token = operators.token_of(helm.api, NAMESPACE)
    with operators.running(plane, token, "pod", *arguments, environment=environment) as operator:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert operator.get(container[probe]["httpGet"]["path"])[0] == 200, probe
        policy = {"apiVersion": "audit-operator.dev/v1alpha1", "kind": "AuditPolicy", "metadata": {"name": "first"}}
        path = f"{OURS}/namespaces/{NAMESPACE}/auditpolicies/first"
        assert helm.api.apply(path, policy | {"spec": {"preset": "CIS"}}).ok
        operators.wait_for(
            lambda: operators.condition(get(helm.api, path), "Ready").get("status") == "True", "Ready", operator
        )
        assert "secrets" in get(helm.api, f"{CORE}/configmaps/audit-apiserver")["data"]["policy.yaml"]
        receivers = get(helm.api, f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/audit-receiver")
        images = {each["image"] for each in receivers["spec"]["template"]["spec"]["containers"]}
        assert images == {container["image"]}
        assert get(helm.api, LEASE)["spec"]["holderIdentity"] == "audit-operator-0"

        helm.upgrade(CHART, "--set", "log.level=debug")
        mount()
        operators.wait_for(lambda: "log level is now debug" in operator.log.read_text(), "the new level", operator)
        assert get(helm.api, DEPLOYMENT)["metadata"]["generation"] == 1
        assert "forbidden" not in operator.log.read_text()

        # As with a real uninstall: the pod outlives its rights and the AuditBackend for a while.
        helm.uninstall()
        time.sleep(3)
    assert helm.api.request("DELETE", path).ok
    apiserver.eventually(lambda: everything(helm.api) == before, 60)


@pytest.mark.parametrize("case", ["defaults", "everything", "tenants"])
def test_what_the_chart_renders_is_what_the_cluster_then_has(helm: Helm, case: str) -> None:
    """No perpetual diff in Argo CD, which renders charts and applies what comes out."""
    options = ("-n", NAMESPACE, "--include-crds", "--values", VALUES[case])
    rendered = helm.run("template", "audit-operator", CHART, *options)
    found = filter(None, yaml.safe_load_all(rendered))
    documents = [each for each in found if each["apiVersion"] != "monitoring.coreos.com/v1"]
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    try:
        for document in (namespace, *documents):
            helm.kubectl_apply(document)
            if document["kind"] == "CustomResourceDefinition":
                helm.kubectl("wait", "--for=condition=Established", f"crd/{document['metadata']['name']}")
        for document in documents:
            live, synced = helm.kubectl_get(document), helm.kubectl_apply(document, "--dry-run=server")
            for each in (live, synced):
                each.pop("status", None)
                each["metadata"].pop("managedFields", None)
            assert synced == live, document["kind"]
            # Without ServerSideDiff. Argo CD knows how Kubernetes' own kinds are spelled, and nothing of ours.
            if document["kind"] == "AuditBackend":
                assert clusters.holds(live, document)
    finally:
        for document in documents:
            helm.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", text=json.dumps(document))


def test_an_uninstalled_release_comes_back_under_another_name_and_finds_the_policies(helm: Helm) -> None:
    helm.install(CHART)
    policy = {"apiVersion": "audit-operator.dev/v1alpha1", "kind": "AuditPolicy", "metadata": {"name": "kept"}}
    path = f"{OURS}/namespaces/{NAMESPACE}/auditpolicies/kept"
    assert helm.api.apply(path, policy | {"spec": {"preset": "CIS"}}).ok
    helm.uninstall()

    helm.install(CHART, release="other")

    assert get(helm.api, path)["spec"]["preset"] == "CIS"
    helm.run("uninstall", "other", "-n", NAMESPACE)


def test_installing_again_changes_nothing(helm: Helm) -> None:
    helm.install(CHART)
    before = {path: get(helm.api, path)["metadata"] for path in PATHS}
    helm.upgrade(CHART)
    after = {path: get(helm.api, path)["metadata"] for path in PATHS}
    assert {path: (each["uid"], each["resourceVersion"]) for path, each in after.items()} == {
        path: (each["uid"], each["resourceVersion"]) for path, each in before.items()
    }


def test_an_upgrade_keeps_the_lease_that_a_running_operator_holds(helm: Helm) -> None:
    helm.install(CHART)
    held = get(helm.api, LEASE) | {"spec": {"holderIdentity": "audit-operator-0", "leaseDurationSeconds": 15}}
    assert helm.api.request("PUT", LEASE, held).ok

    helm.upgrade(CHART, "--set", "labels.team=platform")

    lease = get(helm.api, LEASE)
    assert lease["spec"]["holderIdentity"] == "audit-operator-0"
    assert lease["metadata"]["labels"]["team"] == "platform"


def test_an_upgrade_waits_for_the_crds_and_then_goes_through(helm: Helm, tmp_path: Path) -> None:
    """Helm does not upgrade crds/, and an API server drops fields that its CRD does not know."""
    helm.install(older(tmp_path))
    before = get(helm.api, DEPLOYMENT)["metadata"]["resourceVersion"]
    backend = get(helm.api, f"{OURS}/auditbackends/default")["metadata"]["uid"]

    refusal = helm.upgrade(CHART, ok=False)
    assert "helm show crds" in refusal
    assert get(helm.api, DEPLOYMENT)["metadata"]["resourceVersion"] == before

    helm.apply_crds(CHART)
    helm.upgrade(CHART)

    assert get(helm.api, f"{OURS}/auditbackends/default")["metadata"]["uid"] == backend
    assert helm.api.request("GET", f"{CORE}/configmaps/gone").status == 404
    assert helm.api.request("GET", f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets/audit-operator").ok
    assert get(helm.api, DEPLOYMENT)["metadata"]["labels"]["helm.sh/chart"] != "audit-operator-0.0.9"


@pytest.mark.parametrize("package", PREVIOUS, ids=[path.stem for path in PREVIOUS])
def test_releases_of_earlier_charts_can_be_upgraded_and_rolled_back(helm: Helm, package: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(package, tmp_path / "earlier")
    earlier = tmp_path / "earlier" / "audit-operator"
    helm.install(earlier)
    policy = {"apiVersion": "audit-operator.dev/v1alpha1", "kind": "AuditPolicy", "metadata": {"name": "kept"}}
    path = f"{OURS}/namespaces/{NAMESPACE}/auditpolicies/kept"
    assert helm.api.apply(path, policy | {"spec": {"preset": "CIS"}}).ok
    uid = get(helm.api, f"{OURS}/auditbackends/default")["metadata"]["uid"]

    helm.apply_crds(CHART)
    helm.upgrade(CHART)
    helm.run("rollback", "audit-operator", "-n", NAMESPACE)
    helm.upgrade(CHART)

    assert get(helm.api, path)["spec"]["preset"] == "CIS"
    assert get(helm.api, f"{OURS}/auditbackends/default")["metadata"]["uid"] == uid


def test_a_second_operator_in_another_namespace_is_refused(helm: Helm) -> None:
    helm.install(CHART)
    options = ("-n", f"{NAMESPACE}-2", "--create-namespace", "--set", "backend.create=false")
    refusal = helm.run("install", "second", CHART, *options, ok=False)
    assert "cannot be imported into the current release" in refusal


def test_the_api_server_says_what_is_wrong_with_the_backend_and_nothing_is_installed_halfway(helm: Helm) -> None:
    helm.install(CHART, "--set", "backend.spec.receiver.replicas=2")
    backend = get(helm.api, f"{OURS}/auditbackends/default")
    refusal = helm.upgrade(CHART, "--set", "backend.spec.receiver.replicas=0", ok=False)
    assert "spec.receiver.replicas" in refusal
    assert get(helm.api, f"{OURS}/auditbackends/default")["spec"] == backend["spec"]


def test_the_operator_may_do_what_the_chart_grants_and_no_more(helm: Helm) -> None:
    """Asked of the API server's own authorizer."""
    helm.install(CHART)

    def may(verb: str, resource: str, group: str = "", namespace: str = "", name: str = "") -> bool:
        attributes = {"verb": verb, "group": group, "namespace": namespace, "name": name}
        attributes["resource"], _, attributes["subresource"] = resource.partition("/")
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{NAMESPACE}:audit-operator",
                "groups": ["system:authenticated"],
                "resourceAttributes": attributes,
            },
        }
        answer = helm.api.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        return bool(answer.body["status"]["allowed"])

    ours = "audit-operator.dev"
    assert may("watch", "auditpolicies", ours)
    assert may("patch", "auditbackends/status", ours)
    assert may("patch", "secrets", namespace=NAMESPACE)
    assert may("update", "leases", "coordination.k8s.io", NAMESPACE, "audit-operator")
    assert not may("update", "leases", "coordination.k8s.io", NAMESPACE, "another")
    assert may("create", "leases", "coordination.k8s.io", NAMESPACE)
    assert not may("create", "leases", "coordination.k8s.io", "default")
    assert not may("patch", "auditpolicies", ours, NAMESPACE)
    assert not may("delete", "auditsinks", ours, NAMESPACE)
    assert not may("get", "secrets", namespace="default")
    assert not may("create", "pods/exec", namespace=NAMESPACE)

    helm.upgrade(CHART, "--set", "backend.spec.tenants.enabled=true", "--set", "rbac.aggregate.policyAuthor={edit}")
    apiserver.eventually(lambda: may("get", "secrets", namespace="default"))
    assert not may("list", "secrets", namespace="default")
    role = get(helm.api, "/apis/rbac.authorization.k8s.io/v1/clusterroles/audit-operator-policy-author")
    assert role["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
