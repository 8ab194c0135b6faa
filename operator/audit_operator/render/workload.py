"""The receiver's objects: what runs, how it is reached, what it reads, and what it may not do."""

from typing import TYPE_CHECKING, Final, NamedTuple

from audit_operator.render.alerts import receiver_alerts
from audit_operator.render.exposure import RECEIVER
from audit_operator.render.objects import (
    COMPONENT,
    CONFIG_MAP_LIMIT,
    REVISION,
    Object,
    annotated,
    compressed,
    labels_of,
    new,
    revision,
    text_hash,
)
from audit_operator.render.program import (
    CLAIMS_DIRECTORY,
    CREDENTIALS,
    CREDENTIALS_DIRECTORY,
    PROGRAM_FILE,
    TENANTS_SECRETS,
    tenants_secret,
)
from audit_operator.render.report import CLIENTS_FILE, ClientNames, encoded_clients, operator_uri
from audit_operator.render.tls import RECEIVER_TLS
from audit_operator.render.volumes import VOLUME, template_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from audit_operator.render.world import World
    from audit_operator.resources.auditbackend import AuditBackendSpec, Exposure, Receiver

PROGRAM: Final = f"{RECEIVER}-program"

_STATE: Final = "/var/lib/audit-operator"
_METRICS_PORT: Final = 9090
_GROUP: Final = 65532  # the image's
_GROUP_MAY_READ: Final = 0o440

_ASSIGNS_GROUPS: Final = ("security.openshift.io/v1", "SecurityContextConstraints")
"""Where this is served, OpenShift assigns users and groups of volumes, and refuses pods that ask for another's."""

SELECTOR: Final = {"app.kubernetes.io/name": "audit-operator", COMPONENT: "receiver"}
"""What tells receivers' pods from others. Never changes: selectors of workloads are immutable."""

_LABELS: Final = labels_of("receiver")

LARGEST_PROGRAM: Final = 32 << 20
"""Bytes of a program's text, half of what receivers take."""

_PLAIN_PROGRAM: Final = 900_000
"""Bytes up to which a program stays readable in its ConfigMap."""


class StoredProgram(NamedTuple):
    """A receiver's program as ConfigMaps hold it.

    ``content``: ``data`` or ``binaryData`` of the one that receivers mount, under the same key in both: a receiver
    tells gzip by its first bytes. ``archive``: the same for the revision, always gzip.
    ``size``: bytes that the larger of them takes. ``unpacked``: bytes of the text.
    """

    hash: str
    content: dict[str, dict[str, str]]
    archive: dict[str, dict[str, str]]
    size: int
    unpacked: int

    @property
    def revision(self) -> str:
        """The name of the immutable ConfigMap."""
        return f"{PROGRAM}-{self.hash}"

    @property
    def fits(self) -> bool:
        """Whether a ConfigMap can hold it, and a receiver takes it."""
        return self.size <= CONFIG_MAP_LIMIT and self.unpacked <= LARGEST_PROGRAM


def stored(program: str) -> StoredProgram:
    """How to keep the text of a program: as it is if it is small enough, else as gzip."""
    plain = len(program.encode())
    packed = compressed(program)
    archive = {"binaryData": {PROGRAM_FILE: packed}}
    content = {"data": {PROGRAM_FILE: program}} if plain <= _PLAIN_PROGRAM else archive
    bytes_packed = len(packed) * 3 // 4
    return StoredProgram(
        text_hash(program), content, archive, max(plain if plain <= _PLAIN_PROGRAM else 0, bytes_packed), plain
    )


def clients(spec: "AuditBackendSpec", world: "World") -> str:
    """Who may do what at receivers, as the text of `CLIENTS_FILE`."""
    names = ClientNames(
        api_servers=spec.certificates.client_names,
        operators=(operator_uri(world.cluster_domain, world.root_namespace),),
        operator_by_common_name=world.operator_by_common_name,
    )
    return encoded_clients(names)


def objects(
    spec: "AuditBackendSpec", world: "World", *, program: StoredProgram, claims: "Iterable[str]", journal_limit: int
) -> tuple[Object, ...]:
    """Everything that receivers are, in the root namespace, in the order to apply it.

    ``program``: what receivers run; a new one reaches running pods through the volume and restarts none.
    ``claims``: PersistentVolumeClaims that file sinks write to. ``journal_limit``: the program's, in bytes.
    The Secrets of credentials are not among the objects: their content is known to the cluster only.
    """
    receiver, namespace = spec.receiver, world.root_namespace
    stateful = receiver.storage.persistent_volume_claim is not None
    workload = _stateful_set(receiver, world, claims) if stateful else _deployment(receiver, world, claims)
    if spec.tenants.enabled:
        _add_credentials(workload, map(tenants_secret, range(TENANTS_SECRETS)))
    result = [
        _service_account(receiver, namespace),
        revision(PROGRAM, namespace, "receiver", of="receiver-program", hash_=program.hash, **program.archive),
        annotated(
            _object("v1", "ConfigMap", PROGRAM, namespace, **_with_clients(program.content, clients(spec, world))),
            {REVISION: program.hash},
        ),
        *([_pod_names(namespace)] if stateful else []),
        _service(receiver, world),
        *(_monitoring(receiver, namespace) if receiver.service_monitor.enabled else []),
        *([_alerts(receiver, namespace, journal_limit)] if receiver.prometheus_rule.enabled else []),
        _network_policy(receiver, namespace),
        _disruption_budget(namespace),
        workload,
    ]
    return tuple(result)


def _add_credentials(workload: Object, secrets: "Iterable[str]") -> None:
    """Files of more Secrets in the folder of credentials. Whoever has none of them yet, the pods need not change."""
    volumes = workload["spec"]["template"]["spec"]["volumes"]
    (volume,) = (volume for volume in volumes if volume["name"] == "credentials")
    volume["projected"]["sources"] += map(_optional, secrets)


def _optional(secret: str) -> Object:
    # A receiver starts without it and says of which sinks the credentials are missing.
    return {"secret": {"name": secret, "optional": True}}


def _object(api_version: str, kind: str, name: str, namespace: str, **rest: object) -> Object:
    return new(api_version, kind, name, namespace, "receiver", **rest)


def _with_clients(content: dict[str, dict[str, str]], clients: str) -> dict[str, dict[str, str]]:
    return content | {"data": content.get("data", {}) | {CLIENTS_FILE: clients}}


def _service_account(receiver: "Receiver", namespace: str) -> Object:
    # Receivers never talk to the API server; clouds hand out their identities by annotation and webhook.
    account = _object("v1", "ServiceAccount", RECEIVER, namespace, automountServiceAccountToken=False)
    return annotated(account, receiver.service_account.annotations)


def _pod_names(namespace: str) -> Object:
    """The headless Service that a StatefulSet takes its pods' DNS names from."""
    spec = {"clusterIP": "None", "selector": SELECTOR, "ports": _service_ports(8443)}
    return _object("v1", "Service", f"{RECEIVER}-pods", namespace, spec=spec)


def _service_ports(port: int, node_port: int | None = None) -> list[Object]:
    entry: Object = {"name": "https", "port": port, "protocol": "TCP", "targetPort": "https", "appProtocol": "https"}
    return [entry | ({"nodePort": node_port} if node_port else {})]


def _service(receiver: "Receiver", world: "World") -> Object:
    exposure, given = receiver.exposure, world.receiver_address
    # What the cluster picked once stays: API servers read their kubeconfig at the start only, and a Service that
    # somebody deleted must come back where they look for it.
    node_port = exposure.node_port.port or given.node_port if exposure.node_port else None
    spec: Object = {
        "type": _service_type(exposure),
        "selector": SELECTOR,
        "ports": _service_ports(receiver.port, node_port),
    }
    annotations: dict[str, str] = {}
    if exposure.cluster_ip and (address := exposure.cluster_ip.cluster_ip or given.cluster_ip):
        spec["clusterIP"] = address
    if balancer := exposure.load_balancer:
        annotations = balancer.annotations
        if balancer.load_balancer_class:
            spec["loadBalancerClass"] = balancer.load_balancer_class
        if balancer.source_ranges:
            spec["loadBalancerSourceRanges"] = list(balancer.source_ranges)
    return annotated(_object("v1", "Service", RECEIVER, world.root_namespace, spec=spec), annotations)


def _monitoring(receiver: "Receiver", namespace: str) -> list[Object]:
    """A Service of its own for metrics, because the other one may lead to the world; pods that are not ready, too."""
    wanted = receiver.service_monitor
    name = f"{RECEIVER}-metrics"
    port = {"name": "metrics", "port": _METRICS_PORT, "protocol": "TCP", "targetPort": "metrics"}
    service = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": SELECTOR, "ports": [port]}
    endpoint = {"port": "metrics"} | ({"interval": wanted.interval} if wanted.interval else {})
    # Of all Services with these labels only this one has a port of that name.
    spec = {"endpoints": [endpoint], "selector": {"matchLabels": SELECTOR}}
    monitor = _object("monitoring.coreos.com/v1", "ServiceMonitor", RECEIVER, namespace, spec=spec)
    return [_object("v1", "Service", name, namespace, spec=service), _labelled(monitor, wanted.labels)]


def _alerts(receiver: "Receiver", namespace: str, journal_limit: int) -> Object:
    spec = {"groups": receiver_alerts(journal_limit)}
    rule = _object("monitoring.coreos.com/v1", "PrometheusRule", RECEIVER, namespace, spec=spec)
    return _labelled(rule, receiver.prometheus_rule.labels)


def _labelled(item: Object, labels: "Mapping[str, str]") -> Object:
    """With more labels, by which a Prometheus chooses."""
    item["metadata"]["labels"] = dict(sorted(labels.items())) | item["metadata"]["labels"]
    return item


def _service_type(exposure: "Exposure") -> str:
    if exposure.node_port:
        return "NodePort"
    return "LoadBalancer" if exposure.load_balancer else "ClusterIP"


def _network_policy(receiver: "Receiver", namespace: str) -> Object:
    """Who may connect. API servers come from the host network, which no selector names; their certificate is the door.
    So does the kubelet, whose probes no NetworkPolicy keeps out.

    Sinks are reached by names, which a NetworkPolicy does not know, so egress stays open.
    """
    spec = {
        "podSelector": {"matchLabels": SELECTOR},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"ports": [{"port": "https", "protocol": "TCP"}]},
            {"ports": [{"port": "metrics", "protocol": "TCP"}], "from": [_readers(receiver)]},
        ],
    }
    return _object("networking.k8s.io/v1", "NetworkPolicy", RECEIVER, namespace, spec=spec)


def _readers(receiver: "Receiver") -> Object:
    """Whose pods may read metrics."""
    chosen = receiver.metrics_from
    if chosen.from_ == "All":
        return {"namespaceSelector": {}}
    if chosen.selector is not None:
        return {"namespaceSelector": chosen.selector.model_dump(mode="json", by_alias=True, exclude_defaults=True)}
    named = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": sorted(set(chosen.names))}
    return {"namespaceSelector": {"matchExpressions": [named]}}


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
        "template": _pod(receiver, world, claims, journal={"name": VOLUME, "emptyDir": limit}),
    }
    return _object("apps/v1", "Deployment", RECEIVER, world.root_namespace, spec=spec)


def _stateful_set(receiver: "Receiver", world: "World", claims: "Iterable[str]") -> Object:
    claim = receiver.storage.persistent_volume_claim
    assert claim is not None  # noqa: S101 - the caller chose by it
    claim_spec: Object = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": template_size(receiver, world.volumes)}},
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
        "volumeClaimTemplates": [{"metadata": {"name": VOLUME, "labels": dict(_LABELS)}, "spec": claim_spec}],
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
        "securityContext": _security(world),
        "topologySpreadConstraints": _spread(receiver),
        "containers": [_container(receiver, world, mounted)],
        "volumes": [
            {"name": "program", "configMap": {"name": PROGRAM, "defaultMode": _GROUP_MAY_READ}},
            {"name": "tls", "secret": {"secretName": RECEIVER_TLS, "defaultMode": _GROUP_MAY_READ}},
            {
                "name": "credentials",
                "projected": {"defaultMode": _GROUP_MAY_READ, "sources": [_optional(CREDENTIALS)]},
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
    return annotated(template, receiver.pod_annotations)


def _security(world: "World") -> Object:
    """Whom the pod runs as: the image says it, or the platform, which may assign any user."""
    own: Object = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if world.served is not None and _ASSIGNS_GROUPS in world.served:
        return own
    # Else volumes belong to root, and a user that is not could neither write to them nor read the Secrets in them.
    return own | {"fsGroup": _GROUP, "fsGroupChangePolicy": "OnRootMismatch"}


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
        "env": [{"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}],
        "ports": [
            {"name": "https", "containerPort": receiver.port, "protocol": "TCP"},
            {"name": "metrics", "containerPort": _METRICS_PORT, "protocol": "TCP"},
        ],
        # Nobody listens before the journal is open, and opening a large one after a crash takes its time. Whether it
        # takes events is for /readyz alone: to restart a receiver whose volume is full only keeps it from delivering.
        "startupProbe": _probe("/livez", periodSeconds=5, failureThreshold=60),
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
            {"name": VOLUME, "mountPath": _STATE},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod's own
            *({"name": _claim_volume(claim), "mountPath": f"{CLAIMS_DIRECTORY}/{claim}"} for claim in claims),
        ],
    }


def _probe(path: str, **rest: int) -> Object:
    return {"httpGet": {"path": path, "port": "metrics"}, "timeoutSeconds": 2, **rest}
