"""AuditSink: where audit events go.

A sink type is one class here and one field of SinkTypes; the CRD, its rules, the reference page and the tests follow.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, get_args

from pydantic import Field

from audit_operator.resources.meta import (
    API_VERSION,
    ATOMIC,
    Boolean,
    CelRule,
    Constants,
    DataKey,
    Duration,
    Host,
    HostPort,
    Integer,
    ListMap,
    Model,
    Name,
    NamespaceChoice,
    ObjectMeta,
    Quantity,
    SecretKeyReference,
    Status,
    Text,
    Url,
    at_most_one_of,
    exactly_one_of,
    grammar,
    quantity,
    seconds,
    walk,
)

# --- what several sink types share -----------------------------------------------------------------------------------

Template = Annotated[
    str,
    Field(
        min_length=1,
        max_length=512,
        pattern=grammar(
            r"^([!-$&-z|~]|%[YmdH]|\{(cluster|namespace|sink|receiver)\})+$",
            "text without blanks; %Y %m %d %H and {cluster} {namespace} {sink} {receiver} are the placeholders",
        ),
        examples=["{cluster}/%Y/%m/%d"],
    ),
]
"""Text with %Y %m %d %H of the event's time (UTC) and {cluster} {namespace} {sink} {receiver}, the sink's own."""

EventField = Literal[
    "level", "stage", "verb", "code", "user", "namespace", "apiGroup", "resource", "subresource", "name", "auditID"
]
"""One value of an event, by its name in the event or in its objectRef."""


class BasicAuth(Model):
    """HTTP basic authentication."""

    username: Text = Field(description="User name.", examples=["elastic"])
    password: SecretKeyReference = Field(description="Password.")


class HttpAuth(Model):
    """Who we are to an HTTP server: one of these."""

    basic: BasicAuth | None = Field(None, description="User name and password.")
    bearer_token: SecretKeyReference | None = Field(None, description="Token sent as `Authorization: Bearer`.")

    cel_rules: ClassVar[tuple[CelRule, ...]] = (exactly_one_of("basic", "bearerToken", what="way to authenticate"),)


class AwsRole(Model):
    """An IAM role."""

    role_arn: str = Field(
        alias="roleARN",
        max_length=2048,
        pattern=grammar("^arn:aws[a-z-]*:iam::[0-9]{12}:role/[!-~]+$", "the ARN of an IAM role"),
        description="The role's ARN.",
        examples=["arn:aws:iam::123456789012:role/audit-writer"],
    )
    external_id: str | None = Field(
        None, alias="externalID", min_length=2, max_length=1224, description="External ID the role's trust asks for."
    )


class AwsAuth(Model):
    """Who we are to AWS. Empty: what the receiver's environment offers (IRSA, EKS Pod Identity, instance profile)."""

    access_key_id: SecretKeyReference | None = Field(None, alias="accessKeyID", description="Access key ID.")
    secret_access_key: SecretKeyReference | None = Field(None, description="Secret access key.")
    session_token: SecretKeyReference | None = Field(None, description="Session token of temporary credentials.")
    assume_role: AwsRole | None = Field(None, description="Role to assume with these credentials.")

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="has(self.accessKeyID) == has(self.secretAccessKey)",
            message="accessKeyID and secretAccessKey belong together: write both or neither",
            holds=lambda self: (self.access_key_id is None) == (self.secret_access_key is None),
            field=".secretAccessKey",
        ),
        CelRule(
            rule="!has(self.sessionToken) || has(self.accessKeyID)",
            message="sessionToken is part of static credentials: add accessKeyID and secretAccessKey",
            holds=lambda self: self.session_token is None or self.access_key_id is not None,
            field=".sessionToken",
        ),
    )


Region = Annotated[
    str,
    Field(
        max_length=64,
        pattern=grammar("^[a-z0-9-]+$", "a region: lower-case letters, digits and -"),
        examples=["eu-central-1"],
    ),
]


class ClientCertificate(Model):
    """A certificate that proves who we are, with its key; PEM, as in a Secret of type kubernetes.io/tls."""

    secret_name: Name = Field(description="Name of the Secret, in the sink's namespace.")
    certificate_key: DataKey = Field("tls.crt", description="Key of the certificate chain.")
    private_key_key: DataKey = Field("tls.key", description="Key of the private key.")

    @property
    def certificate(self) -> SecretKeyReference:
        """The certificate chain."""
        return SecretKeyReference(name=self.secret_name, key=self.certificate_key)

    @property
    def private_key(self) -> SecretKeyReference:
        """Its private key."""
        return SecretKeyReference(name=self.secret_name, key=self.private_key_key)


class ConfigMapKeyReference(Model):
    """One key of a ConfigMap in the resource's own namespace."""

    model_config = ATOMIC

    name: Name = Field(description="Name of the ConfigMap, in the same namespace as this resource.")
    key: DataKey = Field("ca.crt", description="Key in its data.")


# A rule and not a pattern: a broken pattern repeats the value, and the value may be a private key.
_CERTIFICATES: Final = CelRule(
    rule="self.contains('-----BEGIN CERTIFICATE-----') && !self.contains('PRIVATE KEY')",
    message="must be PEM certificates and nothing secret; the key of a client certificate belongs into a Secret",
    holds=lambda text: "-----BEGIN CERTIFICATE-----" in text and "PRIVATE KEY" not in text,
    reason="FieldValueForbidden",
)


class Tls(Model):
    """How the connection is encrypted and whom we trust. Verification cannot be turned off.

    A private or self-signed certificate: name its CA. Another name in it than the one we connect to: serverName.
    """

    ca_bundle: Annotated[str, Field(max_length=65536), _CERTIFICATES] | None = Field(
        None, description="PEM certificates of the CAs to trust, in place of the system's."
    )
    ca_secret: SecretKeyReference | None = Field(None, description="The same in a Secret.")
    ca_config_map: ConfigMapKeyReference | None = Field(None, description="The same in a ConfigMap.")
    server_name: Host | None = Field(
        None, description="Name the server's certificate must carry, if not the one connected to."
    )
    client_certificate: ClientCertificate | None = Field(None, description="Our own certificate, for mutual TLS.")
    min_version: Literal["TLS12", "TLS13"] = Field("TLS12", description="Lowest version of TLS.")

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        at_most_one_of("caBundle", "caSecret", "caConfigMap", what="source of CA certificates"),
    )


_CREDENTIAL_HEADERS: Final = "(?i)^((proxy-)?authorization|cookie|(x-)?(api-key|auth-token))$"


OUR_HEADERS: Final = (
    "(?i)^(accept-encoding|connection|content-encoding|content-length|expect|host|http2-settings|idempotency-key"
    "|keep-alive|proxy-authenticate|proxy-authorization|proxy-connection|te|trailer|transfer-encoding|upgrade)$"
)
"""What tells where a request ends, how its body is packed, what a repetition is, and what belongs to one connection."""

HeaderName = Annotated[
    str,
    Field(min_length=1, max_length=128, pattern=grammar("^[A-Za-z0-9-]+$", "a header name: letters, digits and -")),
    CelRule(
        rule=f"!self.matches('{OUR_HEADERS}')",
        message="the receiver writes this header itself, since the end of a request, its connection or its "
        "repetition depend on it; leave it out",
        holds=lambda name: re.search(OUR_HEADERS, name) is None,
    ),
]
"""A header that users may set."""


class Header(Model):
    """An HTTP header, with a value that anybody may read or one that is a credential."""

    name: HeaderName = Field(description="Header name.", examples=["X-API-Key"])
    value: str | None = Field(
        None,
        max_length=1024,
        pattern=grammar("^[ -~]*$", "text of printable ASCII"),
        description="Header value that is no secret; {cluster} {namespace} {sink} {receiver} are filled in.",
    )
    secret: SecretKeyReference | None = Field(None, description="Header value that is one.")

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        exactly_one_of("value", "secret", what="header value"),
        CelRule(
            rule=f"!has(self.value) || !self.name.matches('{_CREDENTIAL_HEADERS}')",
            message="this header is a credential: put it into a Secret and refer to it with secret, or use auth",
            holds=lambda self: self.value is None or re.search(_CREDENTIAL_HEADERS, self.name) is None,
            field=".value",
            reason="FieldValueForbidden",
        ),
    )


Headers = Annotated[tuple[Header, ...], Field(max_length=16), ListMap("name")]

_AUTHORIZATION: Final = "(?i)^authorization$"
_ONE_AUTHORIZATION: Final = CelRule(
    rule=f"!has(self.auth) || !has(self.headers) || self.headers.all(h, !h.name.matches('{_AUTHORIZATION}'))",
    message="auth and a header Authorization exclude each other: keep one of them",
    holds=lambda self: self.auth is None or all(re.search(_AUTHORIZATION, h.name) is None for h in self.headers),
    field=".headers",
)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """When a batch is sent: at so many events, so many bytes before compression, so many seconds after its first."""

    max_events: int
    max_bytes: int
    max_age: float


class Encryption(NamedTuple):
    """Whether a sink type's settings mean TLS: as CEL over ``{}``, and the same over the model."""

    rule: str
    holds: Callable[[Any], bool]


def _https(url: str | None) -> bool:
    return url is None or url.startswith("https://")


BY_URL: Final = Encryption("{}.url.startsWith('https://')", lambda config: _https(config.url))
BY_ENDPOINT: Final = Encryption(
    "(!has({0}.endpoint) || {0}.endpoint.startsWith('https://'))", lambda config: _https(config.endpoint)
)
BY_TRANSPORT: Final = Encryption("{}.transport == 'TLS'", lambda config: config.transport == "TLS")
NEVER: Final = Encryption("false", lambda _: False)


class SinkType(Model):
    """A protocol events are delivered by."""

    batch_limits: ClassVar[BatchLimits] = BatchLimits(max_events=1000, max_bytes=5 * 2**20, max_age=1)
    """What spec.batch leaves open, as a rule."""

    @property
    def usual_batch(self) -> BatchLimits:
        """The same with these settings."""
        return self.batch_limits

    @property
    def caution(self) -> str:
        """What these settings ask of the server, for the status: half a sentence, empty as a rule."""
        return ""

    network: ClassVar[bool] = True
    """Events leave the receiver's machine."""

    proxied: ClassVar[bool] = True
    """Speaks HTTP, so that spec.proxy applies."""

    guarded: ClassVar[bool] = True
    """Receivers see the address of every connection before it is made."""

    encrypted: ClassVar[Encryption] = BY_URL
    """When spec.tls applies."""


# --- sink types ------------------------------------------------------------------------------------------------------


_DATA_STREAM_PART: Final = grammar("^[a-z0-9_.]+$", "lower-case letters, digits, _ and .")


class DataStream(Model):
    """An Elasticsearch data stream: type-dataset-namespace."""

    type: str = Field("logs", max_length=64, pattern=_DATA_STREAM_PART, description="First part.")
    dataset: str = Field("kubernetes.audit", max_length=100, pattern=_DATA_STREAM_PART, description="Second part.")
    namespace: str = Field("default", max_length=100, pattern=_DATA_STREAM_PART, description="Third part.")


class ElasticsearchAwsAuth(AwsAuth):
    """AWS credentials and what the signature is made for."""

    region: Region = Field(description="Region of the domain.")
    service: Literal["es", "aoss"] = Field("es", description="es: a domain; aoss: OpenSearch Serverless.")


class ElasticsearchAuth(Model):
    """Who we are to Elasticsearch or OpenSearch: one of these."""

    basic: BasicAuth | None = Field(None, description="User name and password.")
    api_key: SecretKeyReference | None = Field(None, description="API key, in the encoded form.")
    bearer_token: SecretKeyReference | None = Field(None, description="Token sent as `Authorization: Bearer`.")
    aws: ElasticsearchAwsAuth | None = Field(None, description="AWS signature, for Amazon OpenSearch Service.")

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        exactly_one_of("basic", "apiKey", "bearerToken", "aws", what="way to authenticate"),
    )


class Elasticsearch(SinkType):
    """Elasticsearch or OpenSearch, by the bulk API; the document id makes repeated deliveries harmless."""

    urls: tuple[Url, ...] = Field(
        min_length=1, max_length=16, description="Nodes or load balancer, used in turn.", examples=[["https://es:9200"]]
    )
    index: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        pattern=grammar(
            r"^([a-z0-9._-]|%[YmdH]|\{(cluster|namespace|sink)\})+$",
            "lower-case letters, digits, ., _ and -, with %Y %m %d %H and {cluster} {namespace} {sink} as placeholders",
        ),
        description="Index to write to; may hold %Y %m %d %H of the event's time, {cluster} and the sink's {namespace} "
        "and {sink}.",
        examples=["kubernetes-audit-%Y.%m.%d"],
    )
    data_stream: DataStream | None = Field(
        None, description="Data stream to write to. Neither index nor dataStream: logs-kubernetes.audit-default."
    )
    pipeline: Text | None = Field(None, description="Ingest pipeline.")
    auth: ElasticsearchAuth | None = Field(None, description="Who we are.")
    compression: Literal["None", "gzip"] = Field("gzip", description="Compression of requests.")

    encrypted: ClassVar[Encryption] = Encryption(
        "{}.urls.all(url, url.startsWith('https://'))", lambda config: all(map(_https, config.urls))
    )

    cel_rules: ClassVar[tuple[CelRule, ...]] = (at_most_one_of("index", "dataStream", what="target"),)


class Splunk(SinkType):
    """Splunk's HTTP Event Collector, one Splunk event per audit event."""

    url: Url = Field(description="The collector.", examples=["https://splunk:8088"])
    token: SecretKeyReference = Field(description="HEC token.")
    index: Text | None = Field(None, description="Index; omitted: the token's.")
    source: Template = Field("kubernetes:{cluster}", description="Splunk's source of the events.")
    sourcetype: Text = Field("kube:apiserver:audit", description="Splunk's sourcetype of the events.")
    host: Template = Field("{cluster}", description="Splunk's host of the events.")
    acknowledgement: Boolean = Field(
        False, description="Wait until the indexer has the events; the token must have acknowledgement on."
    )
    compression: Literal["None", "gzip"] = Field("gzip", description="Compression of requests.")


class Loki(SinkType):
    """Grafana Loki, by the push API."""

    url: Url = Field(description="Loki without /loki/api/v1/push.", examples=["http://loki-gateway"])
    tenant_id: Text | None = Field(None, alias="tenantID", description="X-Scope-OrgID.")
    labels: Constants = Field(
        default_factory=dict, description="Constant labels of the streams, beside job and cluster."
    )
    event_labels: tuple[EventField, ...] = Field(
        ("level", "verb"),
        max_length=8,
        description="Event fields that become labels; each value is a stream of its own.",
    )
    structured_metadata: tuple[EventField, ...] = Field(
        (), max_length=11, description="Event fields that become structured metadata; needs Loki 3.0."
    )
    auth: HttpAuth | None = Field(None, description="Who we are.")
    compression: Literal["None", "gzip"] = Field("gzip", description="Compression of requests.")


class Sasl(Model):
    """Who we are to Kafka."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="How the password is shown."
    )
    username: Text = Field(description="User name.")
    password: SecretKeyReference = Field(description="Password.")


class Kafka(SinkType):
    """Apache Kafka, or what speaks its protocol; one message per event, all in-sync replicas acknowledge."""

    brokers: tuple[HostPort, ...] = Field(
        min_length=1, max_length=32, description="Brokers to start from.", examples=[["kafka-0:9093"]]
    )
    topic: str = Field(
        min_length=1,
        max_length=249,
        pattern=grammar("^[A-Za-z0-9._-]+$", "a topic: letters, digits, ., _ and -"),
        description="Topic.",
        examples=["kubernetes-audit"],
    )
    key: EventField | None = Field(
        None, description="Event field whose value is the message key; equal keys stay in order. None: spread evenly."
    )
    transport: Literal["TLS", "Plaintext"] = Field("TLS", description="How brokers are spoken to.")
    sasl: Sasl | None = Field(None, description="Who we are.")
    client_id: Text = Field("audit-operator", alias="clientID", description="Name for the brokers' logs and quotas.")
    max_message_bytes: Integer = Field(
        1000000, ge=1024, le=104857600, description="Largest message the topic takes; larger events lose their bodies."
    )
    compression: Literal["None", "gzip", "snappy", "lz4", "zstd"] = Field("zstd", description="Compression of batches.")

    proxied: ClassVar[bool] = False
    # Brokers name further ones, to which the library connects by itself; Python cannot set its connect callback.
    guarded: ClassVar[bool] = False
    encrypted: ClassVar[Encryption] = BY_TRANSPORT


class S3Encryption(Model):
    """Encryption at rest by S3."""

    algorithm: Literal["AES256", "aws:kms"] = Field(description="AES256: keys S3 manages; aws:kms: a key in KMS.")
    kms_key_id: str | None = Field(
        None, alias="kmsKeyID", max_length=2048, description="KMS key; omitted: the account's default key."
    )

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="!has(self.kmsKeyID) || self.algorithm == 'aws:kms'",
            message="kmsKeyID needs algorithm aws:kms",
            holds=lambda self: self.kms_key_id is None or self.algorithm == "aws:kms",
            field=".kmsKeyID",
        ),
    )


class S3ObjectLock(Model):
    """Objects that nobody overwrites or deletes; the bucket must have object lock on."""

    mode: Literal["Governance", "Compliance"] = Field(
        description="Governance: those with the permission may still delete; Compliance: nobody."
    )
    retention_days: Integer = Field(ge=1, le=36500, description="For how many days.")


class S3(Model):
    """Amazon S3, or what speaks its protocol (MinIO, Ceph, Cloudflare R2)."""

    bucket: str = Field(
        min_length=3,
        max_length=63,
        pattern=grammar("^[a-z0-9][a-z0-9.-]+[a-z0-9]$", "a bucket: lower-case letters, digits, . and -"),
        description="Bucket.",
    )
    region: Region = Field(description="Region; for what is not AWS whatever it expects, often us-east-1.")
    endpoint: Url | None = Field(None, description="Where S3 is, if not AWS.", examples=["https://minio:9000"])
    path_style: Boolean = Field(False, description="Bucket in the path, not in the host name; MinIO wants it.")
    storage_class: Text | None = Field(None, description="Storage class of the objects.", examples=["GLACIER_IR"])
    encryption: S3Encryption | None = Field(None, description="Encryption at rest; omitted: the bucket's default.")
    object_lock: S3ObjectLock | None = Field(None, description="Protection against deletion.")
    auth: AwsAuth = Field(AwsAuth(), description="Who we are; empty: what the receiver's environment offers.")


class Gcs(Model):
    """Google Cloud Storage."""

    bucket: str = Field(
        min_length=3,
        max_length=222,
        pattern=grammar("^[a-z0-9][a-z0-9._-]+[a-z0-9]$", "a bucket: lower-case letters, digits, ., _ and -"),
        description="Bucket.",
    )
    endpoint: Url | None = Field(None, description="Where the storage API is, if not storage.googleapis.com.")
    storage_class: Text | None = Field(None, description="Storage class of the objects.", examples=["COLDLINE"])
    kms_key_name: str | None = Field(None, max_length=1024, description="Cloud KMS key; omitted: the bucket's.")
    credentials: SecretKeyReference | None = Field(
        None, description="Service account key (JSON); omitted: what the receiver's environment offers."
    )


class AzureWorkloadIdentity(Model):
    """Microsoft Entra Workload ID. Both omitted: what its webhook put into the receiver's environment."""

    client_id: Text | None = Field(None, alias="clientID", description="Application (client) ID.")
    tenant_id: Text | None = Field(None, alias="tenantID", description="Directory (tenant) ID.")


class AzureAuth(Model):
    """Who we are to Azure: one of these."""

    account_key: SecretKeyReference | None = Field(None, description="Storage account key.")
    sas_token: SecretKeyReference | None = Field(None, description="Shared access signature.")
    workload_identity: AzureWorkloadIdentity | None = Field(
        None, description="The receiver's service account as an Entra application."
    )

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        exactly_one_of("accountKey", "sasToken", "workloadIdentity", what="way to authenticate"),
    )


class Azure(Model):
    """Azure Blob Storage."""

    storage_account: str = Field(
        min_length=3,
        max_length=24,
        pattern=grammar("^[a-z0-9]+$", "lower-case letters and digits"),
        description="Storage account.",
    )
    container: str = Field(
        min_length=3,
        max_length=63,
        pattern=grammar("^[a-z0-9]([a-z0-9-]*[a-z0-9])$", "a container: lower-case letters, digits and -"),
        description="Container.",
    )
    endpoint: Url | None = Field(None, description="Where Blob Storage is, if not ACCOUNT.blob.core.windows.net.")
    access_tier: Literal["Hot", "Cool", "Cold", "Archive"] | None = Field(
        None, description="Access tier of the blobs; omitted: the account's default."
    )
    auth: AzureAuth = Field(description="Who we are.")


_STORES: Final = ("s3", "gcs", "azure")


class Integrity(Model):
    """Digests of what is written, chained and signed: `audit-operator verify` says what was changed or removed."""

    signing_key: SecretKeyReference = Field(description="Ed25519 private key (PEM, PKCS#8).")


class ObjectStoreIntegrity(Integrity):
    """The same, and what the bucket's lifecycle may remove."""

    retention_days: Integer | None = Field(
        None,
        ge=1,
        le=36500,
        description="Days after which the bucket's lifecycle removes objects; what is missing sooner was removed by "
        "somebody else. Omitted: nothing may be missing.",
    )


class ObjectStore(SinkType):
    """A bucket: one compressed object of JSON lines per batch."""

    s3: S3 | None = Field(None, description="Amazon S3 or what speaks its protocol.")
    gcs: Gcs | None = Field(None, description="Google Cloud Storage.")
    azure: Azure | None = Field(None, description="Azure Blob Storage.")
    prefix: Template = Field(
        "{cluster}/{namespace}/{sink}/%Y/%m/%d/%H",
        description="Folder of an object; its name (time, receiver, number, suffix) follows after a slash.",
    )
    compression: Literal["None", "gzip", "zstd"] = Field("gzip", description="Compression of objects.")
    integrity: ObjectStoreIntegrity | None = Field(None, description="Make manifests signed digests, and chain them.")

    encrypted: ClassVar[Encryption] = Encryption(
        " && ".join(f"(!has({{0}}.{store}) || {BY_ENDPOINT.rule.format(f'{{0}}.{store}')})" for store in _STORES),
        lambda config: all(
            BY_ENDPOINT.holds(store) for store in (config.s3, config.gcs, config.azure) if store is not None
        ),
    )

    batch_limits: ClassVar[BatchLimits] = BatchLimits(max_events=100_000, max_bytes=64 * 2**20, max_age=300)

    cel_rules: ClassVar[tuple[CelRule, ...]] = (exactly_one_of(*_STORES, what="store"),)


class CloudWatch(SinkType):
    """Amazon CloudWatch Logs."""

    region: Region = Field(description="Region.")
    log_group: str = Field(
        "/kubernetes/{cluster}/audit",
        min_length=1,
        max_length=512,
        pattern=grammar(
            r"^([A-Za-z0-9_/.#-]|\{cluster\})+$", "letters, digits, _, /, ., # and -, with {cluster} as a placeholder"
        ),
        description="Log group; may hold {cluster}.",
    )
    log_stream: Template = Field("{receiver}", description="Log stream; created when it is missing.")
    create_log_group: Boolean = Field(False, description="Create the log group when it is missing.")
    retention_days: (
        Literal[1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653]
        | None
    ) = Field(None, description="Retention of a log group created here, in days; omitted: for ever.")
    kms_key_id: str | None = Field(
        None, alias="kmsKeyID", max_length=2048, description="KMS key of a log group created here."
    )
    endpoint: Url | None = Field(None, description="Where CloudWatch Logs is, if not at its public address.")
    auth: AwsAuth = Field(AwsAuth(), description="Who we are; empty: what the receiver's environment offers.")

    encrypted: ClassVar[Encryption] = BY_ENDPOINT

    # PutLogEvents takes 10,000 events and 1 MiB, counting 26 bytes on top of each event.
    batch_limits: ClassVar[BatchLimits] = BatchLimits(max_events=10_000, max_bytes=1_000_000, max_age=2)

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="self.createLogGroup || !(has(self.retentionDays) || has(self.kmsKeyID))",
            message="retentionDays and kmsKeyID are for a log group created here: add createLogGroup: true",
            holds=lambda self: self.create_log_group or (self.retention_days is None and self.kms_key_id is None),
            field=".createLogGroup",
        ),
    )


class MonitoredResource(Model):
    """What Google Cloud Logging shows the entries under."""

    type: Text = Field("k8s_cluster", description="Monitored resource type.")
    labels: Constants = Field(
        default_factory=dict, description="Its labels, such as project_id and location; cluster_name is set here."
    )


class GoogleCloudLogging(SinkType):
    """Google Cloud Logging; insertId makes repeated deliveries harmless."""

    parent: str = Field(
        max_length=256,
        pattern=grammar(
            "^(projects|folders|organizations|billingAccounts)/[A-Za-z0-9:._-]+$",
            "projects/…, folders/…, organizations/… or billingAccounts/…",
        ),
        description="Where the log lives.",
        examples=["projects/my-project"],
    )
    log_id: str = Field(
        "kubernetes-audit",
        min_length=1,
        max_length=511,
        pattern=grammar("^[A-Za-z0-9/_.-]+$", "letters, digits, /, _, . and -"),
        alias="logID",
        description="Name of the log.",
    )
    resource: MonitoredResource = Field(MonitoredResource(), description="What the entries are shown under.")
    labels: Constants = Field(default_factory=dict, description="Constant labels of the entries.")
    endpoint: Url | None = Field(None, description="Where the logging API is, if not logging.googleapis.com.")
    credentials: SecretKeyReference | None = Field(
        None, description="Service account key (JSON); omitted: what the receiver's environment offers."
    )

    encrypted: ClassVar[Encryption] = BY_ENDPOINT

    # entries.write takes 10 MB.
    batch_limits: ClassVar[BatchLimits] = BatchLimits(max_events=1000, max_bytes=8_000_000, max_age=2)


class Otlp(SinkType):
    """An OpenTelemetry collector or backend, by OTLP over HTTP; one log record per event."""

    url: Url = Field(
        description="The server; /v1/logs is added when the URL has no path.", examples=["https://otel-collector:4318"]
    )
    encoding: Literal["Protobuf", "JSON"] = Field("Protobuf", description="Form of the requests.")
    headers: Headers = Field((), description="Headers to add.")
    resource_attributes: Constants = Field(
        default_factory=dict, description="Resource attributes beside service.name and k8s.cluster.name."
    )
    auth: HttpAuth | None = Field(None, description="Who we are.")
    compression: Literal["None", "gzip"] = Field("gzip", description="Compression of requests.")

    cel_rules: ClassVar[tuple[CelRule, ...]] = (_ONE_AUTHORIZATION,)


_RSYSLOGS_FRAME: Final = 199_000
"""Bytes of a message that fit into a frame of rsyslog's, as it is set."""


class Syslog(SinkType):
    """Syslog (RFC 5424) over TLS or TCP.

    Not over UDP: nothing would tell a loss, and most events do not fit into a datagram.
    """

    address: HostPort = Field(description="The server.", examples=["syslog:6514"])
    transport: Literal["TLS", "TCP"] = Field("TLS", description="How it is spoken to.")
    framing: Literal["OctetCounting", "Newline"] = Field(
        "OctetCounting", description="How messages are told apart (RFC 6587)."
    )
    facility: Literal[
        "auth", "authpriv", "audit", "daemon", "user",
        "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
    ] = Field("audit", description="Facility.")  # fmt: skip
    severity: Literal["notice", "info", "debug"] = Field("info", description="Severity.")
    hostname: Template = Field("{cluster}", description="HOSTNAME of the messages.")
    app_name: str = Field(
        "kube-apiserver",
        min_length=1,
        max_length=48,
        pattern=grammar("^[!-~]+$", "printable ASCII without blanks"),
        description="APP-NAME of the messages.",
    )
    max_message_bytes: Integer = Field(
        65536, ge=480, le=16777216, description="Largest message the server takes; larger events lose their bodies."
    )

    @property
    def caution(self) -> str:
        if self.framing != "OctetCounting" or self.max_message_bytes <= _RSYSLOGS_FRAME:
            return ""
        return (
            f"rsyslog takes messages of maxMessageBytes {self.max_message_bytes} only if maxFrameSize of its imtcp, "
            "200000 by default, is as large"
        )

    proxied: ClassVar[bool] = False
    encrypted: ClassVar[Encryption] = BY_TRANSPORT


_TAKEN_HEADERS: Final = "(?i)^(authorization|content-type|user-agent)$"


class Signature(Model):
    """Proof that a request is ours, unchanged and new.

    `t=<seconds>,v1=<hex>`: the HMAC-SHA256 of `<seconds>.` and the body as sent.
    """

    secret: SecretKeyReference = Field(description="The key of the HMAC.")
    header: Annotated[
        HeaderName,
        CelRule(
            rule=f"!self.matches('{_TAKEN_HEADERS}')",
            message="this header has another meaning; name one of your own",
            holds=lambda name: re.search(_TAKEN_HEADERS, name) is None,
        ),
    ] = Field("X-Audit-Signature", description="Header that carries it.")


class Http(SinkType):
    """Any HTTP server."""

    url: Url = Field(description="Where events are sent.", examples=["https://collector/audit"])
    method: Literal["POST", "PUT"] = Field("POST", description="HTTP method.")
    encoding: Literal["NDJSON", "JSONArray", "EventList"] = Field(
        "NDJSON",
        description="One event per line; an array; or an audit.k8s.io/v1 EventList, as API servers send it (Falco).",
    )
    headers: Headers = Field((), description="Headers to add.")
    auth: HttpAuth | None = Field(None, description="Who we are.")
    signature: Signature | None = Field(None, description="Sign requests.")
    compression: Literal["None", "gzip", "zstd"] = Field("None", description="Compression of requests.")

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        _ONE_AUTHORIZATION,
        CelRule(
            rule="!has(self.signature) || !has(self.headers) || "
            "self.headers.all(h, !h.name.matches('(?i)^' + self.signature.header + '$'))",
            message="a header is named as that of the signature; name one of them otherwise",
            holds=lambda self: (
                self.signature is None
                or all(header.name.lower() != self.signature.header.lower() for header in self.headers)
            ),
            field=".headers",
        ),
    )


class FileRotation(Model):
    """When a new file is begun, and how many old ones stay."""

    max_size: Quantity = Field("100Mi", description="Size at which a file is closed.")
    max_age: Duration = Field("24h", description="Age at which a file is closed.")
    max_files: Integer = Field(10, ge=1, le=10000, description="Closed files that stay; the oldest goes first.")


_RECIPIENT: Final = "^age1[02-9ac-hj-np-z]{58}$"

# A rule and not a pattern, which would repeat the value: it may be the secret key.
Recipient = Annotated[
    str,
    Field(max_length=255, examples=["age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"]),
    CelRule(
        rule=f"self.matches('{_RECIPIENT}')",
        message="must be a recipient of age, age1 and 58 characters, as `age-keygen -y` prints it; "
        "the secret key stays with those who decrypt",
        holds=lambda text: re.fullmatch(_RECIPIENT.rstrip("$"), text) is not None,
        reason="FieldValueForbidden",
    ),
]


class FileEncryption(Model):
    """Encryption at rest in the age format: each batch is an age file of its own, nothing plain touches the disk."""

    recipients: tuple[Recipient, ...] = Field(
        min_length=1, max_length=16, description="Who can decrypt: public keys of age (X25519)."
    )


_PLACEHOLDER: Final = r"\{(cluster|namespace|sink|receiver)\}"
_FILE_PART: Final = rf"([A-Za-z0-9_-]|{_PLACEHOLDER})([A-Za-z0-9_.-]|{_PLACEHOLDER})*"


class File(SinkType):
    """Files on the receiver's own volume, or on a claim of yours; each receiver writes its own."""

    path: str = Field(
        "{namespace}/{sink}/{receiver}.log",
        min_length=1,
        max_length=255,
        pattern=grammar(
            rf"^({_FILE_PART})(/({_FILE_PART}))*$",
            "a relative path of letters, digits, -, _, . and {cluster} {namespace} {sink} {receiver}; "
            "no part begins with a dot",
        ),
        description="Path below the folder for files on the volume.",
    )
    claim_name: Name | None = Field(
        None,
        description="PersistentVolumeClaim in the operator's namespace (ReadWriteMany with several receivers); "
        "only for sinks of that namespace.",
    )
    rotation: FileRotation = Field(FileRotation(), description="When a new file is begun.")
    compression: Literal["None", "gzip", "zstd"] = Field("gzip", description="Compression of closed files.")
    integrity: Integrity | None = Field(None, description="Give closed files signed digests, and chain them.")
    encryption: FileEncryption | None = Field(None, description="Encrypt; omitted: files are plain.")

    @property
    def usual_batch(self) -> BatchLimits:
        """Encrypted, each batch is a file of its own: as large as objects."""
        return ObjectStore.batch_limits if self.encryption else self.batch_limits

    network: ClassVar[bool] = False
    proxied: ClassVar[bool] = False
    guarded: ClassVar[bool] = False
    encrypted: ClassVar[Encryption] = NEVER


class Stdout(SinkType):
    """The receiver's standard output, one event per line, for a log collector on the node."""

    network: ClassVar[bool] = False
    proxied: ClassVar[bool] = False
    guarded: ClassVar[bool] = False
    encrypted: ClassVar[Encryption] = NEVER


class SinkTypes(Model):
    """The table of sink types: everything else is derived from it."""

    elasticsearch: Elasticsearch | None = Field(None, description="Elasticsearch or OpenSearch.")
    splunk: Splunk | None = Field(None, description="Splunk HTTP Event Collector.")
    loki: Loki | None = Field(None, description="Grafana Loki.")
    kafka: Kafka | None = Field(None, description="Apache Kafka.")
    object_store: ObjectStore | None = Field(None, description="S3, Google Cloud Storage, Azure Blob Storage.")
    cloud_watch: CloudWatch | None = Field(None, description="Amazon CloudWatch Logs.")
    google_cloud_logging: GoogleCloudLogging | None = Field(None, description="Google Cloud Logging.")
    otlp: Otlp | None = Field(None, description="OpenTelemetry, OTLP over HTTP.")
    syslog: Syslog | None = Field(None, description="Syslog over TLS or TCP.")
    http: Http | None = Field(None, description="Any HTTP server.")
    file: File | None = Field(None, description="Files on the receiver.")
    stdout: Stdout | None = Field(None, description="The receiver's standard output.")


def _sink_types() -> dict[str, type[SinkType]]:
    types: dict[str, type[SinkType]] = {}
    for field in SinkTypes.model_fields.values():
        (kind,) = (arg for arg in get_args(field.annotation) if arg is not type(None))
        types[str(field.alias)] = kind
    return types


SINK_TYPES: Final = MappingProxyType(_sink_types())
"""Name of a sink type as on the wire -> its model."""

_ATTRIBUTES: Final = MappingProxyType({name: str(field.alias) for name, field in SinkTypes.model_fields.items()})
"""Attribute -> name of a sink type."""

# --- the resource ----------------------------------------------------------------------------------------------------


class Proxy(Model):
    """HTTP proxy on the way to the sink."""

    url: Url = Field(description="The proxy.", examples=["http://proxy:3128"])
    basic_auth: BasicAuth | None = Field(None, description="User name and password.")


class Batch(Model):
    """When a batch is sent: at whichever comes first. What is omitted depends on the sink type."""

    max_events: Integer | None = Field(None, ge=1, le=1_000_000, description="Number of events.")
    max_bytes: Quantity | None = Field(None, description="Size before compression.", examples=["5Mi"])
    max_age: Duration | None = Field(None, description="Age of its first event.")


class Retry(Model):
    """Deliveries are repeated without end, with jitter; these are the waits."""

    initial_backoff: Duration = Field("1s", description="Wait after the first failure; doubled after each other one.")
    max_backoff: Duration = Field("1m", description="Longest wait.")

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="duration(self.initialBackoff) <= duration(self.maxBackoff)",
            message="initialBackoff must not be longer than maxBackoff",
            holds=lambda self: seconds(self.initial_backoff) <= seconds(self.max_backoff),
            field=".initialBackoff",
        ),
    )


class Format(Model):
    """What an event looks like in the sink."""

    type: Literal["audit", "ECS", "OCSF"] = Field(
        "audit",
        description="audit: audit.k8s.io/v1 as it came; ECS: Elastic Common Schema; OCSF: API Activity of the Open "
        "Cybersecurity Schema Framework.",
    )
    bodies: Literal["Object", "String"] = Field(
        "Object",
        description="Request and response bodies as objects, or as JSON in a string (no mapping explosion in indexes).",
    )


class AllowedNamespaces(NamespaceChoice):
    """Which namespaces' AuditPolicies may name this sink."""

    from_: Literal["Same", "All", "Names", "Selector"] = Field(
        "Same",
        alias="from",
        description="Same: only the sink's own; All; Names: those in names and the own; "
        "Selector: those selector selects and the own.",
    )


class AuditSinkSpec(SinkTypes):
    """Exactly one sink type, and what is common to all."""

    tls: Tls | None = Field(None, description="Whom we trust and who we are, on an encrypted connection.")
    proxy: Proxy | None = Field(None, description="HTTP proxy on the way.")
    timeout: Duration = Field("30s", description="How long one delivery may take.")
    concurrency: Integer = Field(
        1,
        ge=1,
        le=64,
        description="Deliveries at the same time, per receiver; above 1 batches may overtake each other.",
    )
    batch: Batch = Field(Batch(), description="When a batch is sent.")
    retry: Retry = Field(Retry(), description="Waits between repeated deliveries.")
    format: Format = Field(Format(), description="What an event looks like.")
    allowed_namespaces: AllowedNamespaces = Field(
        AllowedNamespaces(), description="Which namespaces' AuditPolicies may name this sink."
    )

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        exactly_one_of(*SINK_TYPES, what="sink type"),
        CelRule(
            rule="!has(self.tls) || "
            + " || ".join(
                f"(has(self.{name}) && {kind.encrypted.rule.format(f'self.{name}')})"
                for name, kind in SINK_TYPES.items()
                if kind.encrypted is not NEVER
            ),
            message="tls needs an encrypted connection: https:// in the URL, transport TLS; file and stdout have none",
            holds=lambda self: (
                self.tls is None or any(config.encrypted.holds(config) for config in self._given.values())
            ),
            field=".tls",
        ),
        CelRule(
            rule="!has(self.proxy) || "
            + " || ".join(f"has(self.{name})" for name, kind in SINK_TYPES.items() if kind.proxied),
            message="proxy is for sinks that speak HTTP: leave it out",
            holds=lambda self: self.proxy is None or any(config.proxied for config in self._given.values()),
            field=".proxy",
        ),
    )

    @property
    def type(self) -> str:
        """The sink type's name: ``elasticsearch``."""
        return next(iter(self._given))

    @property
    def config(self) -> SinkType:
        """The sink type's settings."""
        return next(iter(self._given.values()))

    @property
    def batch_limits(self) -> BatchLimits:
        """spec.batch, completed by what suits the sink type."""
        default = self.config.usual_batch
        return BatchLimits(
            max_events=self.batch.max_events or default.max_events,
            max_bytes=int(quantity(self.batch.max_bytes)) if self.batch.max_bytes else default.max_bytes,
            max_age=seconds(self.batch.max_age) if self.batch.max_age else default.max_age,
        )

    @property
    def plaintext(self) -> bool:
        """Whether events leave the receiver's machine unencrypted."""
        return self.config.network and not self.config.encrypted.holds(self.config)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts that the settings name, in lower case without port; the cloud providers' own are not among them."""
        named = (host_of(str(value)) for path, value in walk(self, "spec") if _ENDPOINT.search(path))
        return tuple(dict.fromkeys(named))

    @property
    def secrets(self) -> tuple[SecretKeyReference, ...]:
        """Every key of a Secret that is needed."""
        return tuple(dict.fromkeys(_secrets(self)))

    @property
    def _given(self) -> dict[str, SinkType]:
        """By name; of a valid sink exactly one."""
        given = ((name, getattr(self, attribute)) for attribute, name in _ATTRIBUTES.items())
        return {name: config for name, config in given if config is not None}


_ENDPOINT: Final = re.compile(r"\.(url|endpoint|address|(urls|brokers)\[[0-9]+\])$")


def host_of(address: str) -> str:
    """The host in a URL or in host:port, in lower case."""
    authority = re.split("[/?#]", address.partition("://")[2] or address)[0].lower()
    return authority[1:].partition("]")[0] if authority.startswith("[") else authority.partition(":")[0]


def _secrets(spec: AuditSinkSpec) -> Iterator[SecretKeyReference]:
    for _, value in walk(spec, "spec"):
        if isinstance(value, SecretKeyReference):
            yield value
        elif isinstance(value, ClientCertificate):
            yield value.certificate
            yield value.private_key


class AuditSinkStatus(Status):
    """Conditions: Configured, Delivering, Ready; Reconciling and Stalled when they apply."""

    type: str = Field("", max_length=64, description="The sink type.")
    policies: Integer | None = Field(None, ge=0, description="How many AuditPolicies deliver to it.")
    hash: str = Field("", max_length=64, description="Hash of what is in force.")


class AuditSink(Model):
    """Where audit events go. Credentials are Secrets in its own namespace."""

    api_version: Literal["audit-operator.dev/v1alpha1"] = API_VERSION
    kind: Literal["AuditSink"] = "AuditSink"
    metadata: ObjectMeta
    spec: AuditSinkSpec
    status: AuditSinkStatus = AuditSinkStatus()
