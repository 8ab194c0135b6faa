"""The receiver's objects: what Kubernetes accepts, runs safely, and keeps running while programs change."""

from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from audit_operator.render.program import credentials_secret
from audit_operator.render.workload import SELECTOR, objects, stored
from audit_operator.render.world import World
from audit_operator.resources.auditbackend import AuditBackendSpec

NAME = "kubernetes.io/metadata.name"
WORLD = World(image="registry.example/audit-operator:1")
EPHEMERAL: dict[str, Any] = {"storage": {"ephemeral": {"sizeLimit": "5Gi"}}}
EVERYTHING: dict[str, Any] = {
    "replicas": 3,
    "image": "other:2",
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "pull"}],
    "storage": {"persistentVolumeClaim": {"size": "50Gi", "storageClassName": "fast"}},
    "port": 9443,
    "resources": {"requests": {"memory": "1Gi", "cpu": 1}, "limits": {"memory": "2Gi"}},
    "nodeSelector": {"b": "2", "a": "1"},
    "tolerations": [
        {"operator": "Exists"},
        {"key": "k", "value": "v", "effect": "NoExecute", "tolerationSeconds": 60},
    ],
    "topologySpreadConstraints": [{"topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}],
    "priorityClassName": "system-cluster-critical",
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/r"}},
    "podLabels": {"team": "platform", "app.kubernetes.io/component": "stolen"},
    "podAnnotations": {"z": "1", "a": "2"},
}
EXPOSURES: dict[str, dict[str, Any]] = {
    "clusterIP": {"clusterIP": {"clusterIP": "10.96.0.50"}},
    "nodePort": {"nodePort": {"addresses": ["10.0.0.10"], "port": 30443}},
    "loadBalancer": {
        "loadBalancer": {
            "address": "10.1.1.1",
            "loadBalancerClass": "example.com/lb",
            "sourceRanges": ["10.0.0.0/8"],
            "annotations": {"x": "y"},
        }
    },
    "external": {"external": {"host": "audit.example.com"}},
}


def made(claims: tuple[str, ...] = (), world: World = WORLD, **receiver: Any) -> dict[tuple[str, str], dict[str, Any]]:
    spec = AuditBackendSpec.model_validate({"clusterName": "c", "receiver": receiver})
    found = objects(spec, world, program=stored("{}\n"), claims=claims, journal_limit=10 << 30)
    return {(item["kind"], item["metadata"]["name"]): item for item in found}


def workload(**receiver: Any) -> dict[str, Any]:
    (item,) = (item for (kind, _), item in made(**receiver).items() if kind in {"Deployment", "StatefulSet"})
    return item


def pod(**receiver: Any) -> dict[str, Any]:
    spec: dict[str, Any] = workload(**receiver)["spec"]["template"]["spec"]
    return spec


CASES: list[dict[str, Any]] = [
    {},
    EPHEMERAL,
    {
        **EVERYTHING,
        "claims": ("a.b", "archive"),
        "serviceMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
    },
    *({"exposure": exposure} for exposure in EXPOSURES.values()),
]


@pytest.mark.parametrize("version", ["1.28", "1.36"])
@pytest.mark.parametrize("receiver", CASES)
def test_every_object_fits_the_schema_of_kubernetes(receiver: dict[str, Any], version: str) -> None:
    for item in made(**receiver).values():
        if item["apiVersion"] != "monitoring.coreos.com/v1":  # not Kubernetes' own
            kubernetes_validate.validate(item, version, strict=True)
        assert item["metadata"]["namespace"] == "audit-system"
        assert item["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "audit-operator"


def test_storage_decides_between_deployment_and_stateful_set() -> None:
    assert ("StatefulSet", "audit-receiver") in made()
    assert ("Service", "audit-receiver-pods") in made()
    ephemeral = made(**EPHEMERAL)
    assert ("Deployment", "audit-receiver") in ephemeral
    assert ("Service", "audit-receiver-pods") not in ephemeral
    volumes = {volume["name"]: volume for volume in pod(**EPHEMERAL)["volumes"]}
    assert volumes["state"] == {"name": "state", "emptyDir": {"sizeLimit": "5Gi"}}
    (claim,) = workload(**EVERYTHING)["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "fast"
    assert claim["spec"]["resources"]["requests"]["storage"] == "50Gi"


@pytest.mark.parametrize("receiver", [{}, EPHEMERAL, EVERYTHING])
def test_pods_pass_the_restricted_pod_security_standard(receiver: dict[str, Any]) -> None:
    spec = pod(**receiver)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    allowed = {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected"}
    assert all(set(volume) - {"name"} <= allowed for volume in spec["volumes"])
    assert spec["automountServiceAccountToken"] is False


def test_the_image_or_the_platform_says_which_user_runs() -> None:
    kubernetes = frozenset({("apps/v1", "StatefulSet")})
    openshift = kubernetes | {("security.openshift.io/v1", "SecurityContextConstraints")}
    for served, fs_group in ((None, 65532), (kubernetes, 65532), (openshift, None)):
        world = World(served=served)
        for receiver in ({}, EPHEMERAL):
            (context,) = (
                each["spec"]["template"]["spec"]["securityContext"]
                for (kind, _), each in made(world=world, **receiver).items()
                if kind in {"Deployment", "StatefulSet"}
            )
            assert not {"runAsUser", "runAsGroup", "supplementalGroups"} & set(context)
            assert context.get("fsGroup") == fs_group


def test_every_mount_has_its_volume_and_every_argument_its_mount() -> None:
    for receiver in ({}, EPHEMERAL, {"claims": ("archive",)}):
        item = workload(**receiver)
        spec = item["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) == volumes
        files = [argument.split("=", 1)[1] for argument in container["args"] if "=/" in argument]
        assert files
        assert all(any(file.startswith(mount) for mount in mounts.values()) for file in files)


def test_probes_and_services_point_at_ports_that_are_there() -> None:
    found = made(**EVERYTHING)
    (container,) = pod(**EVERYTHING)["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"https": 9443, "metrics": 9090}
    assert f"--listen=0.0.0.0:{ports['https']}" in container["args"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] in ports
    (service_port,) = found["Service", "audit-receiver"]["spec"]["ports"]
    assert service_port["targetPort"] in ports
    assert service_port["port"] == 9443
    policy = found["NetworkPolicy", "audit-receiver"]["spec"]
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == set(ports)


@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_only_readiness_depends_on_whether_a_receiver_takes_events(options: dict[str, Any]) -> None:
    """One whose volume is full delivers; killed every few minutes, it would begin from its cursors again and again."""
    (container,) = workload(**options)["spec"]["template"]["spec"]["containers"]
    asked = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert asked == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 300  # a large journal takes its time to be opened


@pytest.mark.parametrize(
    ("chosen", "selector"),
    [
        (None, {"matchExpressions": [{"key": NAME, "operator": "In", "values": ["monitoring"]}]}),
        ({"names": ["b", "a"]}, {"matchExpressions": [{"key": NAME, "operator": "In", "values": ["a", "b"]}]}),
        ({"from": "All"}, {}),
        (
            {"from": "Selector", "selector": {"matchLabels": {"a": "b"}}},
            {"matchLabels": {"a": "b"}},
        ),
        (
            {"from": "Selector", "selector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}},
            {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
        ),
    ],
)
def test_metrics_are_for_prometheus_namespace_unless_others_are_named(chosen: Any, selector: Any) -> None:
    found = made(**({"metricsFrom": chosen} if chosen else {}))
    policy = found["NetworkPolicy", "audit-receiver"]
    kubernetes_validate.validate(policy, "1.28", strict=True)
    (rule,) = (rule for rule in policy["spec"]["ingress"] if rule["ports"][0]["port"] == "metrics")
    assert rule["from"] == [{"namespaceSelector": selector}]


def test_all_selectors_select_the_pods_and_nothing_takes_a_pod_out_of_them() -> None:
    found = made(**EVERYTHING)
    labels = workload(**EVERYTHING)["spec"]["template"]["metadata"]["labels"]
    assert SELECTOR.items() <= labels.items()
    assert labels["team"] == "platform"
    assert workload()["spec"]["selector"]["matchLabels"] == SELECTOR
    assert found["PodDisruptionBudget", "audit-receiver"]["spec"]["selector"]["matchLabels"] == SELECTOR
    assert found["NetworkPolicy", "audit-receiver"]["spec"]["podSelector"]["matchLabels"] == SELECTOR
    for (kind, _), item in found.items():
        if kind == "Service":
            assert item["spec"]["selector"] == SELECTOR
    (constraint,) = pod(**EVERYTHING)["topologySpreadConstraints"]
    assert (constraint["topologyKey"], constraint["labelSelector"]) == ("rack", {"matchLabels": SELECTOR})
    assert [entry["topologyKey"] for entry in pod()["topologySpreadConstraints"]] == [
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    ]


@pytest.mark.parametrize(
    ("exposure", "expected"),
    [
        ("clusterIP", {"type": "ClusterIP", "clusterIP": "10.96.0.50"}),
        ("nodePort", {"type": "NodePort"}),
        (
            "loadBalancer",
            {
                "type": "LoadBalancer",
                "loadBalancerClass": "example.com/lb",
                "loadBalancerSourceRanges": ["10.0.0.0/8"],
            },
        ),
        ("external", {"type": "ClusterIP"}),
    ],
)
def test_exposure_decides_the_service(exposure: str, expected: dict[str, Any]) -> None:
    service = made(exposure=EXPOSURES[exposure])["Service", "audit-receiver"]
    spec = dict(service["spec"])
    (port,) = spec.pop("ports")
    assert spec == {"selector": SELECTOR, **expected}
    assert port.get("nodePort") == (30443 if exposure == "nodePort" else None)
    assert service["metadata"].get("annotations") == ({"x": "y"} if exposure == "loadBalancer" else None)


def test_a_new_program_restarts_no_pod() -> None:
    spec = AuditBackendSpec.model_validate({"clusterName": "c"})
    programs = map(stored, ("{}", '{"a":1}'))
    one, two = (objects(spec, WORLD, program=each, claims=(), journal_limit=1) for each in programs)
    changed = {old["kind"] for old, new in zip(one, two, strict=True) if old != new}
    assert changed == {"ConfigMap"}


def test_claims_of_file_sinks_are_mounted_under_their_names() -> None:
    spec = pod(claims=("b.c", "a", "a"))
    (container,) = spec["containers"]
    mounted = [mount["mountPath"] for mount in container["volumeMounts"] if "claims" in mount["mountPath"]]
    assert mounted == ["/var/lib/audit-operator/claims/a", "/var/lib/audit-operator/claims/b.c"]


def test_a_program_that_packs_well_is_bounded_by_what_receivers_take() -> None:
    assert stored("x" * (32 << 20)).fits
    assert not stored("x" * (33 << 20)).fits


def credentials_of(**tenants: Any) -> list[str]:
    spec = AuditBackendSpec.model_validate({"clusterName": "c", "tenants": tenants})
    found = objects(spec, WORLD, program=stored("{}\n"), claims=(), journal_limit=10 << 30)
    (item,) = (item for item in found if item["kind"] == "StatefulSet")
    (volume,) = (each for each in item["spec"]["template"]["spec"]["volumes"] if each["name"] == "credentials")
    assert all(source["secret"]["optional"] for source in volume["projected"]["sources"])
    return [source["secret"]["name"] for source in volume["projected"]["sources"]]


def test_pods_mount_every_secret_that_can_hold_credentials_so_that_no_tenant_restarts_them() -> None:
    assert credentials_of() == ["audit-receiver-credentials"]
    mounted = credentials_of(enabled=True)
    wanted = {credentials_secret(f"team-{number}", "audit-system") for number in range(1000)}
    assert wanted | {"audit-receiver-credentials"} == set(mounted)
