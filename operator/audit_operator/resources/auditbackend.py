"""AuditBackend: how API servers emit audit events, the receiver they emit to, and what tenants may do."""

import ipaddress
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from audit_operator.resources.auditpolicy import MAX_RULES, OmitStages, Preset, ServerLevel, ServerRule
from audit_operator.resources.auditsink import SINK_TYPES
from audit_operator.resources.meta import (
    API_VERSION,
    Annotations,
    Boolean,
    CelRule,
    Cidr,
    Duration,
    Host,
    Integer,
    IpAddress,
    LabelKey,
    Labels,
    ListMap,
    Model,
    Name,
    NamespaceChoice,
    NamespaceName,
    ObjectMeta,
    Port,
    Quantity,
    ResourceRequirements,
    Status,
    Text,
    exactly_one_of,
    grammar,
)

# --- API servers -----------------------------------------------------------------------------------------------------


class Truncate(Model):
    """Cutting of large events: an event above maxEventSize loses its bodies, a batch above maxBatchSize is split.

    The API server checks the sizes even when truncation is off.
    """

    enabled: Boolean = Field(False, description="Whether large events are cut (--audit-*-truncate-enabled).")
    max_batch_size: Integer = Field(
        10485760, ge=1, le=2**31 - 1, description="Bytes of a batch (--audit-*-truncate-max-batch-size)."
    )
    max_event_size: Integer = Field(
        102400, ge=1, le=2**31 - 1, description="Bytes of an event (--audit-*-truncate-max-event-size)."
    )

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="self.maxBatchSize >= self.maxEventSize",
            message="maxBatchSize must not be below maxEventSize: the API server refuses to start",
            holds=lambda self: self.max_batch_size >= self.max_event_size,
            field=".maxBatchSize",
        ),
    )


class WebhookTruncate(Truncate):
    """The same, on by default: it bounds what the receiver must take in one POST."""

    enabled: Boolean = Field(True, description="Whether large events are cut (--audit-*-truncate-enabled).")


Mode = Literal["batch", "blocking", "blocking-strict"]


class Log(Model):
    """The log backend: files on the control-plane node."""

    enabled: Boolean = Field(True, description="Whether API servers write log files.")
    path: str = Field(
        "/var/log/kubernetes/audit/audit.log",
        max_length=1024,
        pattern=grammar(
            r"^(-|(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+)$", 'an absolute path of letters, digits, -, _ and .; or "-"'
        ),
        description='The file on the node, or "-" for standard output (--audit-log-path).',
    )
    max_age: Integer = Field(30, ge=0, le=36500, description="Days old files stay; 0: any age (--audit-log-maxage).")
    max_backups: Integer = Field(
        10, ge=0, le=10000, description="How many old files stay; 0: any number (--audit-log-maxbackup)."
    )
    max_size: Integer = Field(
        100, ge=1, le=102400, description="Megabytes at which a file is closed (--audit-log-maxsize)."
    )
    compress: Boolean = Field(True, description="Compress old files with gzip (--audit-log-compress).")
    format: Literal["json", "legacy"] = Field(
        "json", description="Form of a line; legacy has no bodies (--audit-log-format)."
    )
    mode: Mode = Field("blocking", description="Whether requests wait for the line to be written (--audit-log-mode).")
    truncate: Truncate = Field(Truncate(), description="Cutting of large events.")


class Throttle(Model):
    """How many batches an API server sends."""

    enabled: Boolean = Field(True, description="Whether it is limited (--audit-webhook-batch-throttle-enable).")
    qps: Integer = Field(10, ge=1, le=10000, description="Batches a second (--audit-webhook-batch-throttle-qps).")
    burst: Integer = Field(
        15, ge=1, le=10000, description="Batches at once after a quiet time (--audit-webhook-batch-throttle-burst)."
    )


class WebhookBatch(Model):
    """How an API server collects events for the receiver."""

    buffer_size: Integer = Field(
        10000,
        ge=1,
        le=1_000_000,
        description="Events kept in the API server's memory; when full the newest are lost "
        "(--audit-webhook-batch-buffer-size).",
    )
    max_size: Integer = Field(400, ge=1, le=10000, description="Events in a batch (--audit-webhook-batch-max-size).")
    max_wait: Duration = Field("30s", description="Age at which a batch is sent (--audit-webhook-batch-max-wait).")
    throttle: Throttle = Field(Throttle(), description="How many batches are sent.")


class Webhook(Model):
    """The webhook backend: every event an API server records goes to the receiver."""

    enabled: Boolean = Field(True, description="Whether API servers send to the receiver.")
    mode: Mode = Field(
        "batch",
        description="batch: requests never wait. blocking: they wait for the receiver, about twice the CPU of a GET. "
        "blocking-strict: and fail without it, at stage RequestReceived (--audit-webhook-mode).",
    )
    batch: WebhookBatch = Field(WebhookBatch(), description="How events are collected in mode batch.")
    truncate: WebhookTruncate = Field(WebhookTruncate(), description="Cutting of large events.")
    initial_backoff: Duration = Field(
        "10s", description="Wait after the first of five attempts (--audit-webhook-initial-backoff)."
    )


# --- receiver --------------------------------------------------------------------------------------------------------


class Ephemeral(Model):
    """The node's disk: gone with the pod, and with it what was not delivered yet."""

    size_limit: Quantity = Field("10Gi", description="The most it takes.")


class PersistentVolumeClaim(Model):
    """A volume of its own for every receiver."""

    size: Quantity = Field("10Gi", description="Size of each volume.")
    storage_class_name: Name | None = Field(None, description="StorageClass; omitted: the cluster's default.")


class Storage(Model):
    """Where a receiver keeps what is not delivered yet: one of these."""

    ephemeral: Ephemeral | None = Field(None, description="The node's disk: survives restarts, not the pod's removal.")
    persistent_volume_claim: PersistentVolumeClaim | None = Field(None, description="A volume for every receiver.")

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        exactly_one_of("ephemeral", "persistentVolumeClaim", what="kind of storage"),
    )


class ClusterIpExposure(Model):
    """A Service address. Works wherever kube-proxy or its like runs on control-plane nodes."""

    cluster_ip: IpAddress | None = Field(
        None, alias="clusterIP", description="A fixed address out of the service range; omitted: the cluster picks one."
    )


class NodePortExposure(Model):
    """A port on every node."""

    port: Integer | None = Field(
        None, ge=1, le=65535, description="A fixed port out of the node-port range; omitted: the cluster picks one."
    )
    addresses: tuple[Host, ...] = Field(
        min_length=1,
        max_length=16,
        description="Nodes, or what leads to them. API servers use the first; all are in the certificate.",
        examples=[["10.0.0.10"]],
    )


class LoadBalancerExposure(Model):
    """A load balancer in front of the receivers."""

    address: Host | None = Field(
        None, description="Where API servers find it; omitted: what the Service's status says."
    )
    load_balancer_class: Text | None = Field(None, description="Implementation, if not the cluster's default.")
    source_ranges: tuple[Cidr, ...] = Field(
        (), max_length=64, description="Who may connect; empty: anybody, although only API servers' certificates pass."
    )
    annotations: Annotations = Field(default_factory=dict, description="Annotations of the Service.")


class ExternalExposure(Model):
    """An address that something of yours leads to the receivers' Service, by TCP and without ending TLS."""

    host: Host = Field(description="Where API servers find it.")
    port: Port = Field(443, description="Port there.")


class Exposure(Model):
    """How API servers, which cannot resolve cluster names, reach the receiver: one of these."""

    cluster_ip: ClusterIpExposure | None = Field(None, alias="clusterIP", description="A Service address.")
    node_port: NodePortExposure | None = Field(None, description="A port on every node.")
    load_balancer: LoadBalancerExposure | None = Field(None, description="A load balancer.")
    external: ExternalExposure | None = Field(None, description="An address you provide.")

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        exactly_one_of("clusterIP", "nodePort", "loadBalancer", "external", what="way to reach the receiver"),
    )


class Toleration(Model):
    """A taint that receivers tolerate, as in a pod."""

    key: str = Field("", max_length=317, description="Taint key; empty with operator Exists: every taint.")
    operator: Literal["Exists", "Equal"] = Field("Equal", description="How key and value relate.")
    value: str = Field("", max_length=63, description="Taint value, for Equal.")
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        "", description="Taint effect; empty: every effect."
    )
    toleration_seconds: Integer | None = Field(None, description="How long NoExecute is tolerated; omitted: for ever.")

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="(has(self.key) && self.key != '') || self.operator == 'Exists'",
            message="a toleration without key tolerates every taint: add operator: Exists, or a key",
            holds=lambda self: self.key != "" or self.operator == "Exists",
            field=".operator",
        ),
        CelRule(
            rule="self.operator == 'Equal' || !has(self.value) || self.value == ''",
            message="operator Exists takes no value: leave value out",
            holds=lambda self: self.operator == "Equal" or self.value == "",
            field=".value",
        ),
        CelRule(
            rule="!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            message="tolerationSeconds is for effect NoExecute only",
            holds=lambda self: self.toleration_seconds is None or self.effect == "NoExecute",
            field=".effect",
        ),
    )


class TopologySpreadConstraint(Model):
    """How receivers are spread, as in a pod; the operator adds the receivers' labels."""

    max_skew: Integer = Field(1, ge=1, description="How uneven it may be.")
    topology_key: LabelKey = Field(description="Node label whose values are the places.")
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = Field(
        "ScheduleAnyway", description="What happens when it cannot be kept."
    )


class LocalObjectReference(Model):
    """An object in the operator's namespace."""

    name: Name = Field(description="Its name.")


class ReceiverServiceAccount(Model):
    """The receivers' service account; cloud providers recognize it by annotations."""

    annotations: Annotations = Field(
        default_factory=dict,
        description="Annotations of the service account.",
        examples=[{"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/audit-writer"}],
    )


class ServiceMonitor(Model):
    """A ServiceMonitor, by which the Prometheus operator finds the receivers' metrics."""

    enabled: Boolean = Field(False, description="Whether there is one.")
    labels: Labels = Field(
        default_factory=dict,
        description="More labels of it; a Prometheus chooses its ServiceMonitors by label.",
        examples=[{"release": "prometheus"}],
    )
    interval: Duration | None = Field(None, description="Time between two scrapes; omitted: Prometheus' default.")


class PrometheusRule(Model):
    """A PrometheusRule: alerts on what loses events, or soon will (docs/operations.md lists them)."""

    enabled: Boolean = Field(False, description="Whether there is one.")
    labels: Labels = Field(
        default_factory=dict,
        description="More labels of it; a Prometheus chooses its rules by label.",
        examples=[{"release": "prometheus"}],
    )


class MetricsNamespaces(NamespaceChoice):
    """Which namespaces may read receivers' metrics, which are plain and know no password."""

    from_: Literal["All", "Names", "Selector"] = Field(
        "Names", alias="from", description="All; Names: those in names; Selector: those selector selects."
    )


class Receiver(Model):
    """The pods that take events from API servers, apply every AuditPolicy and deliver to the sinks."""

    replicas: Integer = Field(2, ge=1, le=32, description="Number of pods.")
    image: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        pattern=grammar("^[a-zA-Z0-9][a-zA-Z0-9._:/@-]*$", "an image reference"),
        description="Image; omitted: the operator's own.",
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="When the image is pulled."
    )
    image_pull_secrets: Annotated[tuple[LocalObjectReference, ...], Field(max_length=8), ListMap("name")] = Field(
        (), description="Secrets to pull the image with."
    )
    storage: Storage = Field(
        Storage(persistent_volume_claim=PersistentVolumeClaim()),
        description="Where a receiver keeps what is not delivered yet.",
    )
    port: Port = Field(8443, description="Port of the Service and of the pods.")
    exposure: Exposure = Field(
        Exposure(cluster_ip=ClusterIpExposure()), description="How API servers reach the receiver."
    )
    resources: ResourceRequirements = Field(
        ResourceRequirements(requests={"cpu": "100m", "memory": "256Mi"}, limits={"memory": "1Gi"}),
        description="CPU and memory of a pod.",
    )
    node_selector: Labels = Field(default_factory=dict, description="Labels of the nodes pods run on.")
    tolerations: tuple[Toleration, ...] = Field((), max_length=32, description="Taints of nodes that pods tolerate.")
    topology_spread_constraints: Annotated[
        tuple[TopologySpreadConstraint, ...], Field(max_length=8), ListMap("topologyKey", "whenUnsatisfiable")
    ] = Field((), description="How pods are spread; empty: over zones and nodes, as well as it goes.")
    priority_class_name: str | None = Field(
        None, max_length=253, description="Priority; system-cluster-critical keeps receivers when nodes run full."
    )
    service_account: ReceiverServiceAccount = Field(ReceiverServiceAccount(), description="Who pods are.")
    pod_labels: Labels = Field(default_factory=dict, description="More labels of the pods.")
    pod_annotations: Annotations = Field(default_factory=dict, description="More annotations of the pods.")
    service_monitor: ServiceMonitor = Field(ServiceMonitor(), description="How Prometheus finds their metrics.")
    prometheus_rule: PrometheusRule = Field(PrometheusRule(), description="When Prometheus is to call somebody.")
    metrics_from: MetricsNamespaces = Field(
        MetricsNamespaces(names=("monitoring",)),
        description="Namespaces whose pods the receivers' NetworkPolicy lets read metrics: where Prometheus is.",
    )


# --- certificates ----------------------------------------------------------------------------------------------------


class SelfSigned(Model):
    """The operator's own CA, which it makes, renews and replaces itself."""


class IssuerReference(Model):
    """An issuer of cert-manager that signs for names inside the cluster and hands out its CA, as CA and Vault do."""

    name: Name = Field(description="Name of the issuer; an Issuer is in the operator's namespace.")
    kind: str = Field(
        "Issuer",
        max_length=63,
        pattern=grammar("^[A-Z][A-Za-z0-9]*$", "a kind such as Issuer or ClusterIssuer"),
        description="Issuer or ClusterIssuer; in another group the kind it has there.",
    )
    group: Name = Field("cert-manager.io", description="API group; external issuers have their own.")


class CertManager(Model):
    """cert-manager makes and renews the certificates."""

    issuer_ref: IssuerReference = Field(description="Who signs all certificates, so that each side trusts the other.")


ClientName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=grammar("^[!-~]([ -~]*[!-~])?$", "a name of printable ASCII characters"),
        examples=["kube-apiserver", "spiffe://prod.example.com/kube-apiserver"],
    ),
]


class CertificateSource(Model):
    """Where receivers and API servers have their certificates from, one of selfSigned and certManager; and which
    certificates are API servers'.
    """

    client_names: tuple[ClientName, ...] = Field(
        ("kube-apiserver",),
        min_length=1,
        max_length=64,
        description="Whose events receivers take: of a client's certificate the common name, a DNS name or a URI is "
        "one of these. The certificate that the operator makes has kube-apiserver; name others where API servers have "
        "certificates of their own. A certificate of the same CA with another name is refused.",
    )
    self_signed: SelfSigned | None = Field(None, description="The operator's own CA.")
    cert_manager: CertManager | None = Field(None, description="cert-manager, which must be installed.")

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        exactly_one_of("selfSigned", "certManager", what="source of certificates"),
    )


# --- tenants ---------------------------------------------------------------------------------------------------------


def _known_sink_type(name: str) -> str:
    if name not in SINK_TYPES:
        raise ValueError(f"must be one of {', '.join(SINK_TYPES)}")
    return name


SinkTypeName = Annotated[str, AfterValidator(_known_sink_type), Field(json_schema_extra={"enum": list(SINK_TYPES)})]


class TenantNamespaces(NamespaceChoice):
    """Which namespaces are tenants."""

    from_: Literal["All", "Names", "Selector"] = Field(
        "All", alias="from", description="All; Names: those in names; Selector: those selector selects."
    )


def _known_network(text: str) -> str:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("must be a range of addresses such as 10.0.0.0/8 or fd00::/8") from None
    return text


Network = Annotated[Cidr, AfterValidator(_known_network)]


class TenantLimits(Model):
    """The most a tenant's namespace may have; of too many resources, or too large ones, the oldest are in force, the
    others' status says why not. What is scarce for all tenants together is divided in equal parts.
    """

    max_policies: Integer = Field(5, ge=0, le=1000, description="AuditPolicies in one namespace.")
    max_rules_per_policy: Integer = Field(50, ge=1, le=MAX_RULES, description="Rules of one AuditPolicy.")
    max_redactions_per_policy: Integer = Field(16, ge=0, le=64, description="Redactions of one AuditPolicy.")
    max_sinks: Integer = Field(3, ge=0, le=1000, description="AuditSinks in one namespace.")
    policy_bytes: Quantity = Field(
        "64Ki", description="Specs of a namespace's AuditPolicies together, as compact JSON without defaults."
    )
    sink_bytes: Quantity = Field(
        "32Ki", description="Specs of a namespace's AuditSinks together, as compact JSON without defaults."
    )
    credential_bytes: Quantity = Field(
        "256Ki",
        description="What a namespace's AuditSinks refer to in Secrets and ConfigMaps, together: values, and twice "
        "the names under which receivers find them.",
    )
    journal_bytes: Quantity = Field(
        "256Mi",
        description="What waits in one receiver for all sinks of a namespace together, events that a sink refused "
        "included. All namespaces together never get more than 40 % of a receiver's journal, in equal parts.",
    )
    events_per_second: Integer = Field(
        500,
        ge=1,
        le=1_000_000,
        description="Events that one receiver takes for the policies of a namespace, averaged over a minute. What is "
        "above reaches none of the sinks that only these policies deliver it to.",
    )


HostPattern = Annotated[
    str,
    Field(
        max_length=253,
        pattern=grammar(
            r"^((\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?|[0-9a-f]{0,4}:[0-9a-f:.]*)$",
            "a host in lower case, or *. and a suffix",
        ),
        examples=["siem.example.com", "*.logs.example.com"],
    ),
]


class Tenants(Model):
    """What namespaces other than the operator's own may do."""

    enabled: Boolean = Field(
        False, description="Whether AuditPolicies and AuditSinks of other namespaces count at all."
    )
    namespaces: TenantNamespaces = Field(TenantNamespaces(), description="Which namespaces.")
    level: ServerLevel = Field(
        "Metadata",
        description="What API servers record of every request in a tenant's namespace. A tenant's wish above it is "
        "not covered, as its status says: tenants never change the API servers' policy.",
    )
    limits: TenantLimits = Field(TenantLimits(), description="The most a namespace may have.")
    sink_types: tuple[SinkTypeName, ...] = Field(
        tuple(name for name, kind in SINK_TYPES.items() if kind.guarded),
        max_length=32,
        description="Sink types tenants may use. Not by default: kafka, whose connections receivers cannot check one "
        "by one, file and stdout.",
    )
    hosts: tuple[HostPattern, ...] = Field(
        (),
        max_length=256,
        description="Hosts that tenants' sinks may name: exact, or *.suffix; empty: any. Proxies only if named here.",
    )
    networks: tuple[Network, ...] = Field(
        (),
        max_length=64,
        description="Networks that tenants' sinks may connect to, looked at after name resolution, at every "
        "connection; empty: all but those refused. Of networks that hold an address the narrowest decides.",
        examples=[["10.20.0.0/16", "203.0.113.0/24"]],
    )
    refused_networks: tuple[Network, ...] = Field(
        (),
        max_length=64,
        description="Networks that they may not connect to, such as those of nodes and control plane, beside what "
        "is always refused: loopback, link-local, metadata services, multicast, the receiver itself, the API server's "
        "Service.",
        examples=[["192.168.0.0/24", "10.96.0.0/12"]],
    )


# --- server policy ---------------------------------------------------------------------------------------------------


class FixedPolicy(Model):
    """Rules that API servers run whatever AuditPolicies say: a ceiling."""

    preset: Preset | None = Field(None, description="Base policy whose rules come after `rules`.")
    rules: tuple[ServerRule, ...] = Field(
        (), max_length=MAX_RULES, description="The first rule that matches a request decides; none: level None."
    )
    omit_stages: OmitStages = Field((), description="Stages of which no event is written.")
    omit_managed_fields: Boolean = Field(False, description="Leave metadata.managedFields out of bodies.")

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="has(self.preset) || (has(self.rules) && size(self.rules) > 0)",
            message="a fixed policy without rules records nothing: write rules, or a preset such as Metadata",
            holds=lambda self: self.preset is not None or bool(self.rules),
            field=".rules",
            reason="FieldValueRequired",
        ),
    )


class ServerPolicy(Model):
    """The one policy that API servers run. Every change of it restarts every API server."""

    mode: Literal["Union", "Fixed"] = Field(
        "Union", description="Union: what all AuditPolicies need together. Fixed: what `fixed` says, never changed."
    )
    narrowing: Literal["WithNextWidening", "Immediately"] = Field(
        "WithNextWidening", description="When Union drops what no AuditPolicy needs any more; it widens at once."
    )
    fixed: FixedPolicy | None = Field(None, description="The policy of mode Fixed.")

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="(self.mode == 'Fixed') == has(self.fixed)",
            message="fixed and `mode: Fixed` belong together: write both or neither",
            holds=lambda self: (self.mode == "Fixed") == (self.fixed is not None),
            field=".fixed",
        ),
    )


# --- the resource ----------------------------------------------------------------------------------------------------


class AuditBackendSpec(Model):
    """How API servers emit audit events, and the receiver they emit to."""

    cluster_name: NamespaceName = Field(
        description="Name of this cluster in sinks that hold several: {cluster} in templates.", examples=["prod-eu-1"]
    )
    log: Log = Field(Log(), description="The log backend.")
    webhook: Webhook = Field(Webhook(), description="The webhook backend.")
    receiver: Receiver = Field(Receiver(), description="The pods that take and deliver events.")
    certificates: CertificateSource = Field(
        CertificateSource(self_signed=SelfSigned()),
        description="Where receivers and API servers have the certificates from with which they know each other.",
    )
    tenants: Tenants = Field(Tenants(), description="What namespaces other than the operator's own may do.")
    server_policy: ServerPolicy = Field(ServerPolicy(), description="The policy that API servers run.")

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="self.log.enabled || self.webhook.enabled",
            message="without log and webhook no event leaves an API server: enable one of them",
            holds=lambda self: self.log.enabled or self.webhook.enabled,
            field=".webhook.enabled",
        ),
    )


class AuditBackendStatus(Status):
    """Conditions: Rendered, ReceiverReady, Installed, EventsFlowing, Ready; Reconciling and Stalled when they apply."""

    policies: Integer | None = Field(None, ge=0, description="How many AuditPolicies are in force.")
    sinks: Integer | None = Field(None, ge=0, description="How many AuditSinks are in force.")
    server_rules: Integer | None = Field(None, ge=0, description="How many rules the API servers' policy has.")
    server_policy_hash: str = Field("", max_length=64, description="Hash of the API servers' policy.")
    api_server_revision: str = Field(
        "", max_length=253, description="The ConfigMap that holds what API servers are to run, for ever as it is now."
    )
    receiver_revision: str = Field(
        "", max_length=253, description="The ConfigMap that holds what receivers are to run, for ever as it is now."
    )


class AuditBackend(Model):
    """How API servers emit audit events. There is one, named default."""

    api_version: Literal["audit-operator.dev/v1alpha1"] = API_VERSION
    kind: Literal["AuditBackend"] = "AuditBackend"
    metadata: ObjectMeta
    spec: AuditBackendSpec
    status: AuditBackendStatus = AuditBackendStatus()

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="self.metadata.name == 'default'",
            message="there is one AuditBackend in a cluster; name it default",
            holds=lambda self: self.metadata.name == "default",
            field=".metadata.name",
        ),
    )
