"""What counts and what does not: limits of tenants, and which sinks a policy may deliver to."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple, TypeVar

from audit_operator.policy.effective import Namespaces, selector_of, selects
from audit_operator.render.budgets import Demand, divided, excess, spec_bytes
from audit_operator.render.program import (
    SECRET_LIMIT,
    Credential,
    Reference,
    TenantProgram,
    credentials,
    credentials_secret,
    references,
)
from audit_operator.render.world import Identity, Resources, World, identity_of
from audit_operator.resources.auditbackend import Tenants
from audit_operator.resources.auditpolicy import AuditPolicy
from audit_operator.resources.auditsink import (
    AuditSink,
    AuditSinkSpec,
    AwsAuth,
    Azure,
    AzureWorkloadIdentity,
    File,
    Gcs,
    GoogleCloudLogging,
    host_of,
)
from audit_operator.resources.meta import NamespaceChoice, quantity, walk

Item = TypeVar("Item", AuditPolicy, AuditSink)


class Refusal(NamedTuple):
    """Why a valid resource does not count: the reason of a condition, and a sentence with the way out."""

    reason: str
    message: str


def refusals(resources: Resources, tenants: Tenants, world: World) -> dict[Identity, Refusal]:
    """The valid AuditPolicies and AuditSinks that do not count, and why.

    Of too many in one namespace, or of too large ones, the oldest count, by creationTimestamp and name, so that a new
    one never puts an older one out of force. What is in the root namespace counts, as far as anything can hold it.
    """
    refused = _small(resources, tenants, world)
    return refused | _without_room_for_credentials(resources.sinks, refused, tenants, world)


def followed(resources: Resources, tenants: Tenants, world: World) -> frozenset[Reference]:
    """The Secrets and ConfigMaps to look at, for `World.references`: those of sinks that count, as far as they matter.

    A sink does not lead anybody to Secrets because it exists: of a namespace that is no tenant nothing is read.
    """
    refused = _small(resources, tenants, world)
    return references(sink for sink in resources.sinks if identity_of(sink) not in refused)


def age(item: AuditPolicy | AuditSink) -> tuple[str, str]:
    """The smaller, the older; one whose creation nobody knows is the newest."""
    created = (item.metadata.model_extra or {}).get("creationTimestamp")
    return str(created or "9999"), item.metadata.name


def too_large(what: str, most: int, way_out: str) -> Refusal:
    """A resource for which there is no room, by its own size or beside older ones."""
    return Refusal("TooLarge", f"{what}; there is room for {most}, and older ones come first: {way_out}")


def _small(resources: Resources, tenants: Tenants, world: World) -> dict[Identity, Refusal]:
    """As `refusals`, whatever the size of credentials."""
    limits = tenants.limits
    return {
        **_refused(
            resources.policies,
            tenants,
            world,
            _policy_refusal,
            most=limits.max_policies,
            too_many="TooManyPolicies",
            room=_Room(int(quantity(limits.policy_bytes)), "AuditPolicies", "policyBytes"),
        ),
        **_refused(
            resources.sinks,
            tenants,
            world,
            _sink_refusal,
            most=limits.max_sinks,
            too_many="TooManySinks",
            room=_Room(int(quantity(limits.sink_bytes)), "AuditSinks", "sinkBytes"),
        ),
    }


def _refused(
    items: Sequence[Item],
    tenants: Tenants,
    world: World,
    refusal_of: Callable[[Item, Tenants], Refusal | None],
    *,
    most: int,
    too_many: str,
    room: "_Room",
) -> dict[Identity, Refusal]:
    """``items`` of one kind, in the order of namespaces."""
    refused: dict[Identity, Refusal] = {}
    for namespace, group in groupby(items, key=lambda item: item.metadata.namespace):
        if namespace == world.root_namespace:
            continue
        members = list(group)
        outside = _outside(namespace, tenants, world.namespaces)
        late = {identity_of(item) for item in sorted(members, key=age)[most:]}
        for item in members:
            identity = identity_of(item)
            refusal = outside or refusal_of(item, tenants)
            if refusal is None and identity in late:
                refusal = Refusal(
                    too_many,
                    f"namespace {namespace} has {len(members)} of its kind and may have {most}; the oldest are in "
                    "force: remove one, or raise the limit in spec.tenants.limits of the AuditBackend",
                )
            if refusal is not None:
                refused[identity] = refusal
        refused |= _without_room(
            namespace, [item for item in members if identity_of(item) not in refused], tenants, room
        )
    return refused


class _Room(NamedTuple):
    """Bytes of ``kind`` together, as ``spec.tenants.limits`` has them under this name."""

    most: int
    kind: str
    limit: str


def _without_room(
    namespace: str, items: Sequence[AuditPolicy | AuditSink], tenants: Tenants, room: _Room
) -> dict[Identity, Refusal]:
    """Those of a namespace that are too large together with older ones."""
    files = [
        Demand(identity_of(item), age(item), {identity_of(item): _file_bytes(item.spec.file)})
        for item in items
        if isinstance(item, AuditSink) and item.spec.file is not None
    ]
    refused = dict.fromkeys(
        excess(files, int(quantity(tenants.limits.journal_bytes))),
        Refusal(
            "FilesTooLarge",
            "rotation.maxSize times maxFiles, and the file being written, of this and older AuditSinks of namespace "
            f"{namespace} come to more than tenants' limits.journalBytes, {tenants.limits.journal_bytes}: keep fewer "
            "or smaller files",
        ),
    )
    specs = [
        Demand(identity_of(item), age(item), {identity_of(item): spec_bytes(item)})
        for item in items
        if identity_of(item) not in refused
    ]
    for identity, needed in excess(specs, room.most).items():
        refused[identity] = too_large(
            f"the specs of this and older {room.kind} of namespace {namespace} have {needed} bytes",
            room.most,
            f"shorten one, remove one, or raise spec.tenants.limits.{room.limit} of the AuditBackend",
        )
    return refused


def _without_room_for_credentials(
    sinks: Sequence[AuditSink], refused: Mapping[Identity, Refusal], tenants: Tenants, world: World
) -> dict[Identity, Refusal]:
    """Sinks whose credentials the Secret has no room for that receivers read them from.

    Several tenants share one Secret; as `budgets` says, each has its part. Nobody knows sizes offline.
    """
    if world.references is None:
        return {}
    own = int(quantity(tenants.limits.credential_bytes))
    found: dict[Identity, Refusal] = {}
    by_secret: dict[str, list[list[Demand]]] = {}
    for namespace, group in groupby(sinks, key=lambda sink: sink.metadata.namespace):
        demands = [_demand(sink, world.references) for sink in group if identity_of(sink) not in refused]
        if namespace != world.root_namespace:
            for identity, needed in excess(demands, own).items():
                found[identity] = too_large(
                    f"what this and older AuditSinks of namespace {namespace} refer to in Secrets and ConfigMaps has "
                    f"{needed} bytes",
                    own,
                    "refer to less, remove a sink, or raise spec.tenants.limits.credentialBytes of the AuditBackend",
                )
        by_secret.setdefault(credentials_secret(namespace, world.root_namespace), []).append(
            [demand for demand in demands if demand.identity not in found]
        )
    for groups in by_secret.values():
        for identity, part in divided(groups, SECRET_LIMIT).items():
            found[identity] = too_large(
                f"what AuditSinks of namespace {identity.namespace} refer to in Secrets and ConfigMaps is too much for "
                "the Secret that receivers read it from",
                part,
                "refer to less, or remove a sink",
            )
    return found


def _demand(sink: AuditSink, known: Mapping[Reference, Mapping[str, int]]) -> Demand:
    parts: dict[Hashable, int] = {each: _size(each, known.get(each.reference, {})) for each in credentials([sink])}
    return Demand(identity_of(sink), age(sink), parts)


def _size(credential: Credential, keys: Mapping[str, int]) -> int:
    """Bytes in a Secret; its key stands in managedFields, too."""
    return keys[credential.key] + 2 * len(credential.file) if credential.key in keys else 0


class Sinks(NamedTuple):
    """What a policy's sinks resolve to: ``namespace/name`` of those it delivers to, and why it does not to others."""

    resolved: tuple[str, ...]
    refused: tuple[Refusal, ...]


def sinks_of(
    policy: AuditPolicy,
    known: Mapping[tuple[str, str], AuditSink],
    refused: Mapping[Identity, Refusal],
    broken: Collection[Identity],
    namespaces: Namespaces,
) -> Sinks:
    """Which sinks the policy delivers to.

    ``known``: the valid sinks by namespace and name. ``refused``: those that do not count. ``broken``: the invalid.
    """
    own = policy.metadata.namespace
    resolved: list[str] = []
    problems: list[Refusal] = []
    for index, reference in enumerate(policy.spec.sinks):
        namespace = reference.namespace or own
        identity = Identity("AuditSink", namespace, reference.name)
        sink = known.get((namespace, reference.name))
        where = f"spec.sinks[{index}]: {identity}"
        if namespace != own and (sink is None or not _chosen(sink.spec.allowed_namespaces, own, namespaces)):
            # One answer: who may not use a sink learns neither that it exists nor what is wrong with it.
            why = (
                f"{where} does not exist or does not allow policies of namespace {own}: correct the name, or add the "
                "namespace to the sink's spec.allowedNamespaces"
            )
            problems.append(Refusal("SinkNotAllowed", why))
        elif identity in broken:
            problems.append(Refusal("SinkInvalid", f"{where} is not valid; its status says why"))
        elif sink is None:
            problems.append(Refusal("SinkNotFound", f"{where} does not exist: create it, or correct the name"))
        elif identity in refused:
            said = refused[identity].message if namespace == own else "its status says why"
            problems.append(Refusal("SinkNotAccepted", f"{where} does not count: {said}"))
        else:
            resolved.append(f"{namespace}/{reference.name}")
    return Sinks(tuple(sorted(set(resolved))), tuple(problems))


def missing(sink: AuditSink, found: Mapping[Reference, Mapping[str, int]] | None) -> Refusal | None:
    """What the sink refers to and is not there: a Secret or ConfigMap, or a key of one. ``found`` None: nobody looked.

    Such a sink counts: its events wait for the credentials, in the receivers' journals.
    """
    if found is None:
        return None
    problems: dict[str, str] = {}  # message -> reason
    for each in credentials([sink]):
        keys = found.get(each.reference)
        if keys is None:
            problems.setdefault(
                f"{each.reference} does not exist: create it, or correct the name", f"{each.kind}NotFound"
            )
        elif each.key not in keys:
            problems.setdefault(f"{each.reference} has no key {each.key}: add it, or correct the key", "KeyNotFound")
    if not problems:
        return None
    reason = next(iter(problems.values()))
    return Refusal(reason, "\n".join([*problems, "until then its events wait in the receivers' journals"]))


def _outside(namespace: str, tenants: Tenants, namespaces: Namespaces) -> Refusal | None:
    if not tenants.enabled:
        return Refusal(
            "TenantsDisabled",
            f"resources of namespace {namespace} do not count, only those of the operator's own: move this one there, "
            "or set spec.tenants.enabled of the AuditBackend",
        )
    if not _chosen(tenants.namespaces, namespace, namespaces):
        return Refusal(
            "NotATenant",
            f"namespace {namespace} is none of the tenants that spec.tenants.namespaces of the AuditBackend chooses: "
            "add it there, or give it the label",
        )
    return None


def _chosen(choice: NamespaceChoice, namespace: str, namespaces: Namespaces) -> bool:
    match choice.from_:
        case "All":
            return True
        case "Names":
            return namespace in choice.names
        case "Selector" if choice.selector is not None:
            return selects(selector_of(choice.selector), namespace, namespaces)
        case _:
            return False


def _policy_refusal(policy: AuditPolicy, tenants: Tenants) -> Refusal | None:
    limits, spec = tenants.limits, policy.spec
    for reason, field, have, most in (
        ("TooManyRules", "spec.rules", len(spec.rules), limits.max_rules_per_policy),
        ("TooManyRedactions", "spec.redactions", len(spec.redactions), limits.max_redactions_per_policy),
    ):
        if have > most:
            return Refusal(reason, f"{field} has {have} entries; a tenant's policy may have {most}")
    return None


def tenant_program(tenants: Tenants, root_namespace: str) -> TenantProgram | None:
    """What receivers hold tenants to; None if there are none."""
    if not tenants.enabled:
        return None
    return TenantProgram(
        root_namespace=root_namespace,
        journal_bytes=int(quantity(tenants.limits.journal_bytes)),
        events_per_second=tenants.limits.events_per_second,
        networks=tenants.networks,
        refused_networks=tenants.refused_networks,
    )


def _sink_refusal(sink: AuditSink, tenants: Tenants) -> Refusal | None:
    spec = sink.spec
    if spec.type not in tenants.sink_types:
        allowed = ", ".join(tenants.sink_types) or "none"
        return Refusal("SinkTypeNotAllowed", f"tenants may not use sink type {spec.type}; they may use {allowed}")
    if _as_receiver(spec):
        return Refusal(
            "IdentityNotAllowed",
            "without credentials of its own this sink would write with the receivers' identity, which is the "
            "platform's: refer to a Secret with credentials",
        )
    return _host_refusal(spec, tenants) or (_file_refusal(spec.file) if spec.file is not None else None)


def _host_refusal(spec: AuditSinkSpec, tenants: Tenants) -> Refusal | None:
    server_names = [spec.tls.server_name.lower()] if spec.tls and spec.tls.server_name else []
    for host in (*spec.hosts, *server_names):
        if tenants.hosts and not _may_name(host, tenants):
            allowed = ", ".join(tenants.hosts)
            return Refusal("HostNotAllowed", f"tenants may not send to {host}; they may send to {allowed}")
    # What a proxy connects to, no receiver sees; and the platform's proxy reaches more than tenants do.
    if spec.proxy is not None and not (tenants.hosts and _may_name(host_of(spec.proxy.url), tenants)):
        return Refusal(
            "ProxyNotAllowed",
            "tenants may use a proxy only if spec.tenants.hosts of the AuditBackend names it: leave proxy out, or ask "
            "for that",
        )
    for path, value in walk(spec, "spec"):
        if isinstance(value, Gcs | Azure) and value.endpoint is not None:
            return Refusal(
                "EndpointNotAllowed",
                f"{path}.endpoint is for sinks in the operator's namespace, because receivers cannot check the "
                "connections to it: leave it out",
            )
    return None


def _file_bytes(file: File) -> int:
    """The most that its files have."""
    return int(quantity(file.rotation.max_size)) * (file.rotation.max_files + 1)


def _file_refusal(file: File) -> Refusal | None:
    if file.claim_name is not None:
        return Refusal("ClaimNotAllowed", "claimName is for sinks in the operator's namespace: leave it out")
    if not file.path.startswith("{namespace}/"):
        return Refusal("PathNotAllowed", "a tenant's path begins with {namespace}/, so that its files stay apart")
    return None


def _may_name(host: str, tenants: Tenants) -> bool:
    return any(_host_matches(pattern, host) for pattern in tenants.hosts)


def _host_matches(pattern: str, host: str) -> bool:
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _as_receiver(spec: AuditSinkSpec) -> bool:
    """Whether the sink uses what the receiver's environment offers."""
    return any(
        (isinstance(value, AwsAuth) and value.access_key_id is None)
        or (isinstance(value, Gcs | GoogleCloudLogging) and value.credentials is None)
        or isinstance(value, AzureWorkloadIdentity)
        for _, value in walk(spec, "spec")
    )
