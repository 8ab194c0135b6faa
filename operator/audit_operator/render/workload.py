"""The receiver's objects: what runs, how it is reached, what it reads, and what it may not do."""

import hashlib
from typing import TYPE_CHECKING, Any, Final

from audit_operator import __version__
from audit_operator.render.exposure import RECEIVER
from audit_operator.render.program import CLAIMS_DIRECTORY, CREDENTIALS_DIRECTORY, PROGRAM_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from audit_operator.render.world import Certificates, World
    from audit_operator.resources.auditbackend import AuditBackendSpec, Exposure, Receiver

Object = dict[str, Any]
"""A Kubernetes object on the wire."""

PROGRAM: Final = f"{RECEIVER}-program"
TLS: Final = f"{RECEIVER}-tls"
CREDENTIALS: Final = f"{RECEIVER}-credentials"

_STATE: Final = "/var/lib/audit-operator"
_METRICS_PORT: Final = 9090
_USER: Final = 65532
_GROUP_MAY_READ: Final = 0o440

SELECTOR: Final = {"app.kubernetes.io/name": "audit-operator", "app.kubernetes.io/component": "receiver"}
"""What tells receivers' pods from others. Never changes: selectors of workloads are immutable."""

_LABELS: Final = SELECTOR | {
    "app.kubernetes.io/part-of": "audit-operator",
    "app.kubernetes.io/managed-by": "audit-operator",
}


def objects(spec: "AuditBackendSpec", world: "World", *, program: str, claims: "Iterable[str]") -> tuple[Object, ...]:
    """Everything the receiver needs in the root namespace, in the order to apply it.

    ``program``: the text receivers run; a new one reaches running pods through the volume and restarts none.
    ``claims``: PersistentVolumeClaims that file sinks write to. The Secret of credentials is not among the objects: its
    content is known to the cluster only.
    """
    receiver, namespace = spec.receiver, world.root_namespace
    stateful = receiver.storage.persistent_volume_claim is not None
    result = [
        _service_account(receiver, namespace),
        _program(program, namespace),
        *([_tls(world.certificates, namespace)] if world.certificates else []),
        *([_pod_names(namespace)] if stateful else []),
        _service(receiver, namespace),
        _network_policy(namespace),
        _disruption_budget(namespace),
        _stateful_set(receiver, world, claims) if stateful else _deployment(receiver, world, claims),
    ]
    return tuple(result)


def text_hash(text: str) -> str:
    """A short name for a text: equal texts, equal names."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _object(api_version: str, kind: str, name: str, namespace: str, **rest: Any) -> Object:
    metadata = {"name": name, "namespace": namespace, "labels": _LABELS | {"app.kubernetes.io/version": __version__}}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **rest}


def _annotated(item: Object, annotations: "dict[str, str]") -> Object:
    if annotations:
        item["metadata"]["annotations"] = dict(sorted(annotations.items()))
    return item


def _service_account(receiver: "Receiver", namespace: str) -> Object:
    # Receivers never talk to the API server; clouds hand out their identities by annotation and webhook.
    account = _object("v1", "ServiceAccount", RECEIVER, namespace, automountServiceAccountToken=False)
    return _annotated(account, receiver.service_account.annotations)


def _program(program: str, namespace: str) -> Object:
    item = _object("v1", "ConfigMap", PROGRAM, namespace, data={PROGRAM_FILE: program})
    return _annotated(item, {"audit-operator.dev/hash": text_hash(program)})


def _tls(certificates: "Certificates", namespace: str) -> Object:
    data = {"ca.crt": certificates.ca, "tls.crt": certificates.certificate, "tls.key": certificates.key}
    return _object("v1", "Secret", TLS, namespace, type="kubernetes.io/tls", stringData=data)


def _pod_names(namespace: str) -> Object:
    """The headless Service that a StatefulSet takes its pods' DNS names from."""
    spec = {"clusterIP": "None", "selector": SELECTOR, "ports": _service_ports(8443)}
    return _object("v1", "Service", f"{RECEIVER}-pods", namespace, spec=spec)


def _service_ports(port: int, node_port: int | None = None) -> list[Object]:
    entry: Object = {"name": "https", "port": port, "protocol": "TCP", "targetPort": "https", "appProtocol": "https"}
    return [entry | ({"nodePort": node_port} if node_port else {})]


def _service(receiver: "Receiver", namespace: str) -> Object:
    exposure = receiver.exposure
    node_port = exposure.node_port.port if exposure.node_port else None
    spec: Object = {
        "type": _service_type(exposure),
        "selector": SELECTOR,
        "ports": _service_ports(receiver.port, node_port),
    }
    annotations: dict[str, str] = {}
    if exposure.cluster_ip and exposure.cluster_ip.cluster_ip:
        spec["clusterIP"] = exposure.cluster_ip.cluster_ip
    if balancer := exposure.load_balancer:
        annotations = balancer.annotations
        if balancer.load_balancer_class:
            spec["loadBalancerClass"] = balancer.load_balancer_class
        if balancer.source_ranges:
            spec["loadBalancerSourceRanges"] = list(balancer.source_ranges)
    return _annotated(_object("v1", "Service", RECEIVER, namespace, spec=spec), annotations)


def _service_type(exposure: "Exposure") -> str:
    if exposure.node_port:
        return "NodePort"
    return "LoadBalancer" if exposure.load_balancer else "ClusterIP"


def _network_policy(namespace: str) -> Object:
    """Who may connect. API servers come from the host network, which no selector names; their certificate is the door.

    Sinks are reached by names, which a NetworkPolicy does not know, so egress stays open.
    """
    spec = {
        "podSelector": {"matchLabels": SELECTOR},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"ports": [{"port": "https", "protocol": "TCP"}]},
            {"ports": [{"port": "metrics", "protocol": "TCP"}], "from": [{"namespaceSelector": {}}]},
        ],
    }
    return _object("networking.k8s.io/v1", "NetworkPolicy", RECEIVER, namespace, spec=spec)


def _disruption_budget(namespace: str) -> Object:
    spec = {
        "maxUnavailable": 1,
        # A pod that is not ready takes no events anyway: it never keeps a node from being drained.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": SELECTOR},
    }
    return _object("policy/v1", "PodDisruptionBudget", RECEIVER, namespace, spec=spec)


def _deployment(receiver: "Receiver", world: "World", claims: "Iterable[str]") -> Object:
    ephemeral = receiver.storage.ephemeral
    limit = {"sizeLimit": ephemeral.size_limit} if ephemeral else {}
    spec = {
        "replicas": receiver.replicas,
        "selector": {"matchLabels": SELECTOR},
        # One more first, then one less: with maxUnavailable a single receiver would be gone for a while.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": _pod(receiver, world, claims, journal={"name": "state", "emptyDir": limit}),
    }
    return _object("apps/v1", "Deployment", RECEIVER, world.root_namespace, spec=spec)


def _stateful_set(receiver: "Receiver", world: "World", claims: "Iterable[str]") -> Object:
    claim = receiver.storage.persistent_volume_claim
    assert claim is not None  # noqa: S101 - the caller chose by it
    claim_spec: Object = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": claim.size}},
        "volumeMode": "Filesystem",
    }
    if claim.storage_class_name:
        claim_spec["storageClassName"] = claim.storage_class_name
    spec = {
        "replicas": receiver.replicas,
        "serviceName": f"{RECEIVER}-pods",
        "selector": {"matchLabels": SELECTOR},
        "podManagementPolicy": "Parallel",  # receivers do not wait for one another
        "updateStrategy": {"type": "RollingUpdate"},
        # A volume may hold events that are not delivered yet: it outlives its pod.
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
        "template": _pod(receiver, world, claims),
        "volumeClaimTemplates": [{"metadata": {"name": "state", "labels": dict(_LABELS)}, "spec": claim_spec}],
    }
    return _object("apps/v1", "StatefulSet", RECEIVER, world.root_namespace, spec=spec)


def _pod(receiver: "Receiver", world: "World", claims: "Iterable[str]", journal: Object | None = None) -> Object:
    mounted = sorted(set(claims))
    spec: Object = {
        "serviceAccountName": RECEIVER,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # Long enough to answer what is in flight, sync the journal and hand over what sinks take at once.
        "terminationGracePeriodSeconds": 60,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": _spread(receiver),
        "containers": [_container(receiver, world, mounted)],
        "volumes": [
            {"name": "program", "configMap": {"name": PROGRAM, "defaultMode": _GROUP_MAY_READ}},
            {"name": "tls", "secret": {"secretName": TLS, "defaultMode": _GROUP_MAY_READ}},
            # Optional: a receiver starts without it and says of which sinks the credentials are missing.
            {
                "name": "credentials",
                "secret": {"secretName": CREDENTIALS, "defaultMode": _GROUP_MAY_READ, "optional": True},
            },
            {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
            *([journal] if journal else []),
            *({"name": _claim_volume(claim), "persistentVolumeClaim": {"claimName": claim}} for claim in mounted),
        ],
    }
    if receiver.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": reference.name} for reference in receiver.image_pull_secrets]
    if receiver.node_selector:
        spec["nodeSelector"] = dict(sorted(receiver.node_selector.items()))
    if receiver.tolerations:
        spec["tolerations"] = [
            {key: value for key, value in toleration.model_dump(exclude_none=True).items() if value != ""}
            for toleration in receiver.tolerations
        ]
    if receiver.priority_class_name:
        spec["priorityClassName"] = receiver.priority_class_name
    # Own labels first: nothing may take a pod out of its selector.
    labels = dict(sorted((receiver.pod_labels | _LABELS).items()))
    template: Object = {"metadata": {"labels": labels}, "spec": spec}
    return _annotated(template, receiver.pod_annotations)


def _claim_volume(claim: str) -> str:
    """A volume name, which is shorter than a claim's may be and has no dots."""
    return f"claim-{text_hash(claim)}"


def _spread(receiver: "Receiver") -> list[Object]:
    chosen = [
        {
            "maxSkew": constraint.max_skew,
            "topologyKey": constraint.topology_key,
            "whenUnsatisfiable": constraint.when_unsatisfiable,
        }
        for constraint in receiver.topology_spread_constraints
    ] or [
        {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway"}
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]
    return [constraint | {"labelSelector": {"matchLabels": SELECTOR}} for constraint in chosen]


def _container(receiver: "Receiver", world: "World", claims: list[str]) -> Object:
    return {
        "name": "receiver",
        "image": receiver.image or world.image,
        "imagePullPolicy": receiver.image_pull_policy,
        "args": [
            "receive",
            f"--program=/etc/audit-operator/program/{PROGRAM_FILE}",
            f"--journal={_STATE}/journal",
            f"--listen=0.0.0.0:{receiver.port}",
            "--certificates=/etc/audit-operator/tls",
            f"--metrics=0.0.0.0:{_METRICS_PORT}",
        ],
        "ports": [
            {"name": "https", "containerPort": receiver.port, "protocol": "TCP"},
            {"name": "metrics", "containerPort": _METRICS_PORT, "protocol": "TCP"},
        ],
        # Opening a large journal after a crash takes its time; only then is a pod that does not answer a dead one.
        "startupProbe": _probe("/readyz", periodSeconds=5, failureThreshold=60),
        "livenessProbe": _probe("/livez", periodSeconds=10, failureThreshold=3),
        "readinessProbe": _probe("/readyz", periodSeconds=5, failureThreshold=2),
        "resources": {
            name: dict(sorted(amounts.items()))
            for name, amounts in (("requests", receiver.resources.requests), ("limits", receiver.resources.limits))
            if amounts
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "program", "mountPath": "/etc/audit-operator/program", "readOnly": True},
            {"name": "tls", "mountPath": "/etc/audit-operator/tls", "readOnly": True},
            {"name": "credentials", "mountPath": CREDENTIALS_DIRECTORY, "readOnly": True},
            {"name": "state", "mountPath": _STATE},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod's own
            *({"name": _claim_volume(claim), "mountPath": f"{CLAIMS_DIRECTORY}/{claim}"} for claim in claims),
        ],
    }


def _probe(path: str, **rest: int) -> Object:
    return {"httpGet": {"path": path, "port": "metrics"}, "timeoutSeconds": 2, **rest}
