"""The receiver's program: everything it does, in one JSON document with a versioned schema.

The receiver decodes it with the structs below and refuses what it does not know. Lists of rules are written once:
tenants whose policies differ only in their namespace share one, so the program grows with shapes, not with tenants.
"""

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

import msgspec
from msgspec import structs
from pydantic import BaseModel

from audit_operator.policy.memo import Same
from audit_operator.policy.model import STAGES, GroupResources, Level, Policy, Rule, Stage
from audit_operator.policy.redact import Action, RedactionRule
from audit_operator.resources.auditsink import AuditSink, ClientCertificate, ConfigMapKeyReference
from audit_operator.resources.meta import SecretKeyReference, seconds

SCHEMA: Final = "receiver.audit-operator.dev/v1"

PROGRAM_FILE: Final = "program.json"
CREDENTIALS_DIRECTORY: Final = "/etc/audit-operator/credentials"
HASH_KEY: Final = "hash-key"
"""The key in the Secret of credentials under which the secret of action Hash stands."""
CREDENTIALS: Final = "audit-receiver-credentials"
"""The Secret of what the platform's sinks refer to, and of the hash key."""
TENANTS_SECRETS: Final = 16
"""Secrets of what tenants' sinks refer to. Each tenant always has the same one, by its name; a Secret for each would
have to be named in the receivers' pods, and restart all of them whenever a tenant comes or goes.
"""
SECRET_LIMIT: Final = 900_000
"""Bytes that we put into one Secret; the API server takes 1 MiB."""
CLAIMS_DIRECTORY: Final = "/var/lib/audit-operator/claims"
"""Where the claims that file sinks name are mounted, each below its own name."""

_LONGEST_KEY: Final = 253  # of a Secret's data
_MANY: Final = 8192
"""AuditPolicies and AuditSinks whose part of the program is remembered, by who they are (see `remembered`)."""
_GZIP: Final = b"\x1f\x8b"
_LARGEST_UNPACKED: Final = 256 * 2**20
"""Bytes; a ConfigMap of 1 MiB could unpack to a thousand times its size."""


class _Wire(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """camelCase, and nothing unknown: a receiver never runs half of a newer program."""


class WireResources(_Wire, frozen=True):
    """One entry of a rule's ``resources``."""

    group: str = ""
    resources: tuple[str, ...] = ()
    resource_names: tuple[str, ...] = ()


class WireRule(_Wire, frozen=True):
    """A PolicyRule without namespaceSelector, in the fields of audit.k8s.io/v1, and where a person finds it."""

    level: Literal["None", "Minimal", "Metadata", "Request", "RequestResponse"]
    users: tuple[str, ...] = ()
    user_groups: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    resources: tuple[WireResources, ...] = ()
    namespaces: tuple[str, ...] = ()
    non_resource_urls: tuple[str, ...] = msgspec.field(default=(), name="nonResourceURLs")
    omit_stages: tuple[Stage, ...] = ()
    omit_managed_fields: bool | None = None
    origin: str = ""


class RuleList(_Wire, frozen=True, cache_hash=True):
    """The rules of one or more policies."""

    rules: tuple[WireRule, ...] = ()
    omit_stages: tuple[Stage, ...] = ()
    omit_managed_fields: bool = False


class WireRedaction(_Wire, frozen=True):
    """What leaves no body of these resources, beside what is built into the receiver."""

    resources: tuple[WireResources, ...]
    paths: tuple[str, ...]
    action: Action


class PolicyProgram(_Wire, frozen=True):
    """One AuditPolicy: ``rule_list`` decides, for requests in namespace ``tenant`` only if there is one.

    ``sinks``: what gets the events, as ``namespace/name``.
    """

    namespace: str
    name: str
    rule_list: int
    tenant: str | None = None
    redactions: tuple[WireRedaction, ...] = ()
    sinks: tuple[str, ...] = ()


class WireBatch(_Wire, frozen=True):
    """When a batch is sent; ``max_age`` in seconds."""

    max_events: int
    max_bytes: int
    max_age: float


class SinkProgram(_Wire, frozen=True):
    """One AuditSink; times in seconds.

    ``settings`` are those of its ``type``, as in the resource; a reference to a Secret has become ``{"file": path}``.
    """

    namespace: str
    name: str
    type: str
    settings: dict[str, Any]
    batch: WireBatch
    initial_backoff: float
    max_backoff: float
    timeout: float
    concurrency: int
    format: dict[str, Any]
    tls: dict[str, Any] | None = None
    proxy: dict[str, Any] | None = None


class TenantProgram(_Wire, frozen=True):
    """What sinks and policies of all namespaces but ``root_namespace`` may do.

    ``networks``: where their sinks may connect to (CIDRs), empty for everywhere but ``refused_networks`` and what is
    always refused. ``journal_bytes``: of one namespace's sinks together. ``events_per_second``: for one namespace's
    policies.
    """

    root_namespace: str
    journal_bytes: int
    events_per_second: int
    networks: tuple[str, ...] = ()
    refused_networks: tuple[str, ...] = ()


class Program(_Wire, frozen=True):
    """What a receiver does.

    ``body_limit``: bytes it takes in one POST. ``journal_limit``: bytes its journal and its files may take together
    before it answers 503. ``hash_key_file``: the secret that action Hash needs, None if no policy hashes. ``tenants``:
    None if there are none.
    """

    schema: Literal["receiver.audit-operator.dev/v1"]
    cluster: str
    body_limit: int
    journal_limit: int
    rule_lists: tuple[RuleList, ...]
    policies: tuple[PolicyProgram, ...]
    sinks: tuple[SinkProgram, ...]
    hash_key_file: str | None = None
    tenants: TenantProgram | None = None


def policies_of(program: Program) -> dict[str, tuple[RuleList, PolicyProgram]]:
    """``namespace/name`` -> what of a program is one policy's; equal for two programs in which it means the same."""
    # The number of a list of rules says nothing: others come and go.
    return {
        f"{each.namespace}/{each.name}": (
            program.rule_lists[each.rule_list],
            msgspec.structs.replace(each, rule_list=0),
        )
        for each in program.policies
    }


class PolicyInput(NamedTuple):
    """An AuditPolicy ready to run: selectors resolved, a tenant's rules confined, sinks known and willing."""

    namespace: str
    name: str
    policy: Policy
    tenant: str | None
    redactions: tuple[RedactionRule, ...]
    sinks: tuple[str, ...]


class Reference(msgspec.Struct, frozen=True, order=True):
    """A Secret or ConfigMap that a sink refers to."""

    kind: Literal["Secret", "ConfigMap"]
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class Credential(NamedTuple):
    """A key of a Secret or ConfigMap that receivers read as the file ``file`` of the Secret of credentials."""

    kind: Literal["Secret", "ConfigMap"]
    namespace: str
    name: str
    key: str

    @property
    def file(self) -> str:
        """A key of its own in the Secret of credentials: neither kinds, namespaces nor names contain an underscore.

        It always begins with kind and namespace: by that a receiver sees whose it is (`belongs`).
        """
        begin = f"{self.kind.lower()}_{self.namespace}_"
        text = f"{begin}{self.name}_{self.key}"
        return text if len(text) <= _LONGEST_KEY else begin + hashlib.sha256(text.encode()).hexdigest()

    @property
    def reference(self) -> Reference:
        """The Secret or ConfigMap."""
        return Reference(self.kind, self.namespace, self.name)


def belongs(file: str, namespace: str) -> bool:
    """Whether ``file`` (`Credential.file` in some folder) is a credential of this namespace."""
    *folders, name = file.split("/")
    named = name.startswith((f"secret_{namespace}_", f"configmap_{namespace}_"))
    return named and file.startswith("/") and ".." not in folders


def program(
    policies: Iterable[PolicyInput],
    sinks: Iterable[AuditSink],
    *,
    cluster: str,
    body_limit: int,
    journal_limit: int,
    tenants: TenantProgram | None = None,
) -> Program:
    """The program that runs ``policies`` and delivers to ``sinks``, both in the order they are given."""
    numbers: dict[RuleList, int] = {}
    entries = []
    hashes = False
    for each in policies:
        hashes = hashes or any(redaction.action is Action.HASH for redaction in each.redactions)
        rules = _rule_list(Same(each.policy), each.tenant)
        entries.append(
            PolicyProgram(
                namespace=each.namespace,
                name=each.name,
                rule_list=numbers.setdefault(rules, len(numbers)),
                tenant=each.tenant,
                redactions=tuple(map(_wire_redaction, each.redactions)),
                sinks=each.sinks,
            )
        )
    return Program(
        schema=SCHEMA,
        cluster=cluster,
        body_limit=body_limit,
        journal_limit=journal_limit,
        hash_key_file=f"{CREDENTIALS_DIRECTORY}/{HASH_KEY}" if hashes else None,
        rule_lists=tuple(numbers),
        policies=tuple(entries),
        sinks=tuple(_sink(Same(sink)) for sink in sinks),
        tenants=tenants,
    )


def encode(program: Program) -> str:
    """The program as JSON text, an entry of a list on a line of its own: small, and readable where it changed."""
    lines = []
    for field in structs.fields(program):
        value = getattr(program, field.name)
        if value is None and field.name == "tenants":
            continue  # receivers of the version before there was the field go on reading programs without tenants
        if isinstance(value, tuple) and value:
            entries = ",\n".join(f"  {_json(entry)}" for entry in value)
            lines.append(f' "{field.encode_name}": [\n{entries}\n ]')
        else:
            lines.append(f' "{field.encode_name}": {_json(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def decode(text: str | bytes) -> Program:
    """The program of a JSON text, or of its gzip, which a ConfigMap holds when the text is large.

    Raises msgspec.DecodeError for what is neither, msgspec.ValidationError, which is one, for anything that this
    version does not know.
    """
    return msgspec.json.decode(unpacked(text) if isinstance(text, bytes) else text, type=Program)


def unpacked(data: bytes) -> bytes:
    """The text of a program, which may be gzip, as ConfigMaps hold it. Raises msgspec.DecodeError."""
    if not data.startswith(_GZIP):
        return data
    stream = zlib.decompressobj(wbits=31)
    try:
        text = stream.decompress(data, _LARGEST_UNPACKED)
    except zlib.error as error:
        raise msgspec.DecodeError(f"is no gzip, although it begins like one: {error}") from None
    if not stream.eof:
        raise msgspec.DecodeError("is cut off, or unpacks to more than a program can be")
    return text


def policy_of(program: Program, policy: PolicyProgram) -> Policy:
    """The policy to decide with, a tenant's confined to its namespace."""
    rules = program.rule_lists[policy.rule_list]
    return Policy(
        rules=tuple(_rule(rule, policy.tenant) for rule in rules.rules),
        omit_stages=frozenset(rules.omit_stages),
        omit_managed_fields=rules.omit_managed_fields,
    )


def redactions_of(policy: PolicyProgram) -> tuple[RedactionRule, ...]:
    """The policy's own redactions, for `Redactor`."""
    return tuple(
        RedactionRule(
            resources=tuple(GroupResources(**structs.asdict(entry)) for entry in redaction.resources),
            paths=redaction.paths,
            action=redaction.action,
        )
        for redaction in policy.redactions
    )


def credentials(sinks: Iterable[AuditSink]) -> tuple[Credential, ...]:
    """What the sinks refer to in Secrets and ConfigMaps of their namespaces, sorted, each once."""
    return tuple(sorted(set().union(*(_credentials_of(Same(sink)) for sink in sinks))))


def credentials_secret(namespace: str, root_namespace: str) -> str:
    """The Secret in which receivers find what sinks of this namespace refer to."""
    if namespace == root_namespace:
        return CREDENTIALS
    return tenants_secret(zlib.crc32(namespace.encode()) % TENANTS_SECRETS)


def tenants_secret(number: int) -> str:
    """The name of one of the Secrets of tenants' credentials."""
    return f"{CREDENTIALS}-{number:02}"


def references(sinks: Iterable[AuditSink]) -> frozenset[Reference]:
    """The Secrets and ConfigMaps that the sinks refer to, for `World.references`."""
    return frozenset(each.reference for each in credentials(sinks))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


@lru_cache(maxsize=_MANY)
def _rule_list(same: Same[Policy], tenant: str | None) -> RuleList:
    policy = same.value
    return _one(
        RuleList(
            rules=tuple(_wire_rule(rule, tenant) for rule in policy.rules),
            omit_stages=_stages(policy.omit_stages),
            omit_managed_fields=policy.omit_managed_fields,
        )
    )


@lru_cache(maxsize=_MANY)
def _one(rules: RuleList) -> RuleList:
    """Of equal lists one, which is quickly compared with itself."""
    return rules


@lru_cache(maxsize=_MANY)
def _credentials_of(same: Same[AuditSink]) -> frozenset[Credential]:
    found: set[Credential] = set()
    _settings(same.value.spec, same.value.metadata.namespace, found)
    return frozenset(found)


def _wire_rule(rule: Rule, tenant: str | None) -> WireRule:
    if tenant is not None and rule.namespaces != (tenant,):
        raise ValueError(f"{rule.origin}: a rule of tenant {tenant} must be confined to its namespace")
    return WireRule(
        level=str(rule.level),  # type: ignore[arg-type]
        users=rule.users,
        user_groups=rule.user_groups,
        verbs=rule.verbs,
        resources=tuple(WireResources(**structs.asdict(entry)) for entry in rule.resources),
        namespaces=() if tenant is not None else rule.namespaces,
        non_resource_urls=rule.non_resource_urls,
        omit_stages=_stages(rule.omit_stages),
        omit_managed_fields=rule.omit_managed_fields,
        origin=rule.origin,
    )


def _rule(wire: WireRule, tenant: str | None) -> Rule:
    return Rule(
        level=Level.parse(wire.level),
        users=wire.users,
        user_groups=wire.user_groups,
        verbs=wire.verbs,
        namespaces=wire.namespaces if tenant is None else (tenant,),
        resources=tuple(GroupResources(**structs.asdict(entry)) for entry in wire.resources),
        non_resource_urls=wire.non_resource_urls,
        omit_stages=frozenset(wire.omit_stages),
        omit_managed_fields=wire.omit_managed_fields,
        origin=wire.origin,
    )


def _stages(stages: frozenset[Stage]) -> tuple[Stage, ...]:
    return tuple(stage for stage in STAGES if stage in stages)


def _wire_redaction(redaction: RedactionRule) -> WireRedaction:
    return WireRedaction(
        resources=tuple(WireResources(**structs.asdict(entry)) for entry in redaction.resources),
        paths=redaction.paths,
        action=redaction.action,
    )


@lru_cache(maxsize=_MANY)
def _sink(same: Same[AuditSink]) -> SinkProgram:
    sink = same.value
    spec, namespace = sink.spec, sink.metadata.namespace
    limits = spec.batch_limits
    found: set[Credential] = set()

    def settings(model: BaseModel | None) -> dict[str, Any] | None:
        return None if model is None else _settings(model, namespace, found)

    return SinkProgram(
        namespace=namespace,
        name=sink.metadata.name,
        type=spec.type,
        settings=_settings(spec.config, namespace, found),
        batch=WireBatch(max_events=limits.max_events, max_bytes=limits.max_bytes, max_age=float(limits.max_age)),
        initial_backoff=seconds(spec.retry.initial_backoff),
        max_backoff=seconds(spec.retry.max_backoff),
        timeout=seconds(spec.timeout),
        concurrency=spec.concurrency,
        format=_settings(spec.format, namespace, found),
        tls=settings(spec.tls),
        proxy=settings(spec.proxy),
    )


def _settings(model: BaseModel, namespace: str, found: set[Credential]) -> dict[str, Any]:
    """The model on the wire, with files for references; what is referred to is added to ``found``."""
    values = {}
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if value is not None:
            values[str(field.alias)] = _value(value, namespace, found)
    return values


def _value(value: object, namespace: str, found: set[Credential]) -> Any:
    def file(kind: Literal["Secret", "ConfigMap"], name: str, key: str) -> str:
        credential = Credential(kind, namespace, name, key)
        found.add(credential)
        return f"{CREDENTIALS_DIRECTORY}/{credential.file}"

    match value:
        case SecretKeyReference():
            return {"file": file("Secret", value.name, value.key)}
        case ConfigMapKeyReference():
            return {"file": file("ConfigMap", value.name, value.key)}
        case ClientCertificate():
            return {
                "certificateFile": file("Secret", value.certificate.name, value.certificate.key),
                "keyFile": file("Secret", value.private_key.name, value.private_key.key),
            }
        case BaseModel():
            return _settings(value, namespace, found)
        case dict():
            return {key: _value(item, namespace, found) for key, item in sorted(value.items())}
        case str():
            return value
        case Sequence():
            return [_value(item, namespace, found) for item in value]
        case _:
            return value
