"""Everything that follows from a set of resources, as one value.

`audit-operator render` writes its files, the operator applies its objects and statuses: the same value for both.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple, TypeVar

import msgspec

from audit_operator.policy.effective import Effective, Selections
from audit_operator.policy.model import Policy
from audit_operator.render.apiserver import server_objects, server_revision
from audit_operator.render.budgets import Demand, excess, program_excess, spec_bytes
from audit_operator.render.exposure import Exposed, exposed
from audit_operator.render.files import credentials_file, guide, manifest_files, server_files, status_files
from audit_operator.render.flags import Flags, flags, log_directory
from audit_operator.render.objects import CONFIG_MAP_LIMIT, Object, is_served, owned, text_hash
from audit_operator.render.program import Credential, PolicyInput, Program, credentials, encode, program
from audit_operator.render.remembered import (
    bodies_recorded,
    input_hash,
    judged,
    meaning_of,
    recording,
    redactions,
    resolved,
)
from audit_operator.render.report import CLIENTS_FILE, OPERATOR_NAME, operator_uri
from audit_operator.render.serverpolicy import Chosen, server_policy
from audit_operator.render.status import (
    ResourceStatus,
    backend_status,
    compiled,
    counted,
    covered,
    invalid_status,
    lines,
    policy_status,
    refused_status,
    sink_status,
    sinks_resolved,
)
from audit_operator.render.tenants import (
    Refusal,
    Sinks,
    age,
    missing,
    refusals,
    sinks_of,
    tenant_program,
    too_large,
)
from audit_operator.render.tls import CERTIFICATE_KIND, OPERATOR_TLS, tls_objects
from audit_operator.render.volumes import journal_limit
from audit_operator.render.workload import StoredProgram, clients, objects, stored
from audit_operator.render.world import Identity, Resources, World, identity_of
from audit_operator.resources.auditbackend import AuditBackend, AuditBackendSpec
from audit_operator.resources.auditpolicy import AuditPolicy
from audit_operator.resources.auditsink import AuditSink
from audit_operator.resources.load import Problem

Item = TypeVar("Item", AuditPolicy, AuditSink)

DEFAULT_CLUSTER_NAME: Final = "kubernetes"
"""The cluster's name without an AuditBackend to give one; kubeadm's own default."""

_PARTS: Final = (0.9, 0.7, 0.5, 0.3, 0.1, 0.0)
"""Of a ConfigMap, what its content is estimated to take, until it fits: parts pack worse, or better, than the whole."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All that follows from resources and world.

    ``policies``: every AuditPolicy that counts, as receivers decide with it, whether or not it has sinks.
    ``server_policy``: what API servers are to run; ``kept``: they run it already, although less would do.
    ``objects``: what to apply in the root namespace, in this order. ``credentials``: what to copy into the Secrets that
    receivers read. ``blocked``: why there is nothing to install; what is running keeps running, and ``objects`` and
    ``server_files`` (what a control-plane node gets) are empty. ``complete``: ``objects`` are all there are to be, so
    that what is not among them may be pruned; revisions aside, of which the newest are kept. ``notices``: what a person
    should know beside the statuses. ``refused``: valid resources that do not count.
    """

    world: World
    policies: tuple[PolicyInput, ...]
    server_policy: Policy
    kept: bool
    flags: Flags
    exposed: Exposed
    program: Program
    program_text: str
    clients_text: str
    objects: tuple[Object, ...]
    credentials: tuple[Credential, ...]
    statuses: tuple[ResourceStatus, ...]
    blocked: tuple[Problem, ...]
    complete: bool
    notices: tuple[str, ...]
    server_files: Mapping[str, str]
    cert_manager: bool
    refused: frozenset[Identity]

    def files(self) -> dict[str, str]:
        """The texts of `audit-operator render -o` by path, sorted."""
        hashes = self.program.hash_key_file is not None
        receives = self.flags.body_limit is not None and not self.blocked
        scripts = credentials_file(self.credentials, hashes, self.world) if receives else {}
        files = {
            **self.server_files,
            **manifest_files(self.objects),
            **({"receiver/program.json": self.program_text} if receives else {}),
            **({f"receiver/{CLIENTS_FILE}": self.clients_text} if receives else {}),
            **scripts,
            **status_files(self.statuses),
            "README.md": guide(
                statuses=self.statuses,
                notices=self.notices,
                flags=None if self.blocked else self.flags,
                rules=len(self.server_policy.rules),
                delivering=bool(self.program.policies),
                credentials=bool(scripts),
                cert_manager=self.cert_manager,
                exposed=self.exposed,
                world=self.world,
            ),
        }
        return dict(sorted(files.items()))


def render(resources: Resources, world: World) -> Plan:
    """What API servers, receivers and people get for ``resources``: for the same input the same, byte for byte.

    A resource that is not valid, or does not count, changes nothing for the others; its status says why.
    """
    spec = resources.backend.spec if resources.backend else AuditBackendSpec(cluster_name=DEFAULT_CLUSTER_NAME)
    webhook = spec.webhook.enabled
    reached = exposed(spec.receiver, world)
    backend_problems = _backend_problems(resources)
    refused = refusals(resources, spec.tenants, world)
    draft = _drafted(resources, refused, spec, world, reached)
    for part in _PARTS:
        too_many = _excess(draft, resources, spec, world, part)
        if not too_many:
            break
        refused |= too_many
        draft = _drafted(resources, refused, spec, world, reached)
    policies, sinks, chosen, flag_plan, receiver_program, program_text, kept_program, files = draft
    blocked = (*backend_problems, *flag_plan.errors)
    if blocked:
        files = {}
    else:
        blocked = tuple(_size_problems(files, kept_program, program_text))
    if webhook:
        blocked = (*blocked, *_certificate_problems(spec, world))
    if blocked:
        files = {}
    server = server_revision(files)
    known_address = not webhook or reached.unknown is None

    wanted: list[Object] = []
    if files and known_address:
        wanted += server_objects(files, server, world.root_namespace)
    if files and webhook:
        claims = (sink.spec.file.claim_name for sink in sinks if sink.spec.file)
        wanted += tls_objects(spec.certificates, reached, world)
        wanted += objects(
            spec,
            world,
            program=kept_program,
            claims=[claim for claim in claims if claim],
            journal_limit=receiver_program.journal_limit,
        )
    manifests = owned((item for item in wanted if is_served(item, world.served)), resources.backend)
    warnings = (
        *flag_plan.warnings,
        *([reached.unknown] if reached.unknown and webhook else []),
        *([] if webhook else _undelivered(policies)),
        *(_bodies_in_log(chosen.policy) if spec.log.enabled else ()),
        *(_short_chains(sinks, spec) if webhook else ()),
        *(_unnamed_operator(world) if webhook else ()),
        *(_unserved(item) for item in wanted if not is_served(item, world.served)),
    )
    waiting = {
        f"{sink.metadata.namespace}/{sink.metadata.name}": refusal
        for sink in sinks
        if (refusal := missing(sink, world.references))
    }

    generations = {identity_of(item): item.metadata.generation for item in resources.policies + resources.sinks}
    statuses = [
        *(refused_status(identity, refusal, generations[identity]) for identity, refusal in refused.items()),
        *_policy_statuses(policies, None if backend_problems else chosen.policy, waiting, spec, world),
        *_sink_statuses(sinks, policies, receiver_program, waiting),
    ]
    if resources.backend:
        fields = {
            "policies": len(policies),
            "sinks": len(sinks),
            "serverRules": len(chosen.policy.rules),
            "serverPolicyHash": text_hash(server.content.get("policy.yaml", "")),
            **({"apiServerRevision": server.name} if known_address else {}),
            **({"receiverRevision": kept_program.revision} if webhook else {}),
        }
        statuses.append(backend_status(resources.backend, blocked, warnings, fields))
    in_force = {status.identity: status for status in statuses}
    in_force |= {each.identity: invalid_status(each, in_force.get(each.identity)) for each in resources.invalid}
    statuses = list(in_force.values())
    statuses.sort(key=lambda status: status.identity)
    notices = (
        *_notices(resources, kept=chosen.kept),
        *(f"AuditBackend: {problem}" for problem in (*blocked, *warnings)),
        *chosen.notices,
    )
    return Plan(
        world=world,
        policies=tuple(planned.input for planned in policies),
        server_policy=chosen.policy,
        kept=chosen.kept,
        flags=flag_plan,
        exposed=reached,
        program=receiver_program,
        program_text=program_text,
        clients_text=clients(spec, world),
        objects=manifests,
        credentials=credentials(sinks) if webhook else (),
        statuses=tuple(statuses),
        blocked=blocked,
        complete=not blocked and known_address,
        notices=notices,
        server_files=files,
        cert_manager=spec.certificates.cert_manager is not None,
        refused=frozenset(refused),
    )


class _Planned(NamedTuple):
    """An AuditPolicy that counts, what it means, and where it goes."""

    resource: AuditPolicy
    meaning: Effective
    sinks: Sinks
    input: PolicyInput


class _Draft(NamedTuple):
    """What follows for API servers and receivers if these policies and sinks count."""

    policies: list[_Planned]
    sinks: list[AuditSink]
    chosen: Chosen
    flags: Flags
    program: Program
    text: str
    stored: StoredProgram
    files: Mapping[str, str]


def _drafted(
    resources: Resources,
    refused: Mapping[Identity, Refusal],
    spec: AuditBackendSpec,
    world: World,
    reached: Exposed,
) -> _Draft:
    """``refused``: what does not count."""
    known = {(sink.metadata.namespace, sink.metadata.name): sink for sink in resources.sinks}
    selections = Selections(world.namespaces)
    policies = []
    for policy in _accepted(resources.policies, refused):
        found = sinks_of(policy, known, refused, resources.broken, world.namespaces)
        policies.append(_planned(policy, found, selections, world))
    sinks = _accepted(resources.sinks, refused)
    chosen = server_policy(
        (planned.meaning.policy for planned in policies if planned.meaning.tenant is None),
        spec.server_policy,
        spec.tenants,
        world,
    )
    flag_plan = flags(spec, chosen.policy, world.server_version)
    receiver_program = program(
        (planned.input for planned in policies if planned.input.sinks),
        sinks,
        cluster=spec.cluster_name,
        body_limit=flag_plan.body_limit or 0,
        journal_limit=journal_limit(spec, world.volumes),
        tenants=tenant_program(spec.tenants, world.root_namespace),
    )
    text = encode(receiver_program)
    files = server_files(
        chosen.policy,
        flag_plan,
        reached,
        log_directory(spec.log.path) if spec.log.enabled else None,
        world,
        by_hand=spec.certificates.cert_manager is None,
    )
    return _Draft(policies, sinks, chosen, flag_plan, receiver_program, text, stored(text), files)


def _excess(
    draft: _Draft, resources: Resources, spec: AuditBackendSpec, world: World, part: float
) -> dict[Identity, Refusal]:
    """What does not count, so that ConfigMaps can hold the rest: nobody's resource keeps all others out of force.

    ``part``: of a ConfigMap, what is estimated to be in it.
    """
    room = int(CONFIG_MAP_LIMIT * part)
    ages = {identity_of(policy): age(policy) for policy in resources.policies}
    ages |= {identity_of(sink): age(sink) for sink in resources.sinks}
    out: dict[Identity, Refusal] = {}
    if not draft.stored.fits:
        for identity, most in program_excess(draft.program, ages, world.root_namespace, room).items():
            whose = "the platform" if identity.namespace == world.root_namespace else f"namespace {identity.namespace}"
            out[identity] = too_large(
                f"the receivers' program, as gzip, would have more than the {CONFIG_MAP_LIMIT} bytes that a ConfigMap "
                f"takes with this one and all of {whose}",
                most,
                "make it smaller, or share rules: equal lists of rules are written once",
            )
    if _bytes(draft.files) > CONFIG_MAP_LIMIT and spec.server_policy.fixed is None:
        platform = (planned.resource for planned in draft.policies if planned.meaning.tenant is None)
        demands = [Demand(identity_of(each), age(each), {identity_of(each): spec_bytes(each)}) for each in platform]
        for identity, needed in excess(demands, room).items():
            out[identity] = too_large(
                f"the API servers' policy file would have more than the {CONFIG_MAP_LIMIT} bytes that a ConfigMap "
                f"takes; this and older AuditPolicies have {needed}",
                room,
                "make it smaller, or let API servers record more than is needed with spec.serverPolicy.fixed of the "
                "AuditBackend",
            )
    return out


def _bytes(files: Mapping[str, str]) -> int:
    return sum(len(text.encode()) for text in files.values())


def _planned(policy: AuditPolicy, sinks: Sinks, selections: Selections, world: World) -> _Planned:
    meaning = meaning_of(policy, world.root_namespace)
    return _Planned(
        policy,
        meaning,
        sinks,
        PolicyInput(
            namespace=policy.metadata.namespace,
            name=policy.metadata.name,
            policy=resolved(meaning.policy, selections),
            tenant=meaning.tenant,
            redactions=redactions(policy),
            sinks=sinks.resolved,
        ),
    )


def _accepted(items: Iterable[Item], refused: Mapping[Identity, Refusal]) -> list[Item]:
    return [item for item in items if identity_of(item) not in refused]


def _policy_statuses(
    policies: Iterable[_Planned],
    server: Policy | None,
    waiting: Mapping[str, Refusal],
    spec: AuditBackendSpec,
    world: World,
) -> Iterator[ResourceStatus]:
    """``server``: what API servers are to run, None if nobody can tell. ``waiting``: sinks that lack what they name."""

    recorded = recording(server) if server is not None else None
    for planned in policies:
        resource, meaning = planned.resource, planned.meaning
        verdict = judged(resource, world.kinds, world.server_version, bounded=meaning.tenant is not None)
        coverage = recorded.covers(planned.input.policy) if recorded is not None else None
        yield policy_status(
            resource,
            [
                compiled(meaning, verdict),
                covered(coverage, _way_out(meaning, spec)),
                sinks_resolved(
                    planned.sinks,
                    waiting,
                    resource.metadata.namespace,
                    webhook=spec.webhook.enabled,
                    log=spec.log.enabled,
                ),
            ],
            {
                "rules": len(meaning.policy.rules),
                **({"unreachableRules": verdict.unreachable, "warnings": verdict.warnings} if verdict else {}),
                "hash": input_hash(planned.input),
            },
        )


def _way_out(meaning: Effective, spec: AuditBackendSpec) -> str:
    """What to do where API servers record less than a policy needs."""
    if meaning.tenant is not None:
        return "ask for what spec.tenants.level of the AuditBackend records, without stage RequestReceived"
    if spec.server_policy.fixed is not None:
        return "ask for less, or widen spec.serverPolicy.fixed of the AuditBackend"
    # A union records all that is needed, but for groups that a server before 1.36 cannot be told.
    return "name the API groups, because this version of Kubernetes has no group *"


def _sink_statuses(
    sinks: Iterable[AuditSink],
    policies: Iterable[_Planned],
    receiver_program: Program,
    waiting: Mapping[str, Refusal],
) -> Iterator[ResourceStatus]:
    used = Counter(name for planned in policies for name in planned.input.sinks)
    for sink, entry in zip(sinks, receiver_program.sinks, strict=True):
        name = f"{entry.namespace}/{entry.name}"
        hash_ = text_hash(msgspec.json.encode(entry).decode())
        yield sink_status(sink, used[name], hash_, waiting.get(name))


def _short_chains(sinks: Iterable[AuditSink], spec: AuditBackendSpec) -> Iterator[Problem]:
    """Sinks whose chains of digests end with each pod."""
    chained = [
        f"{sink.metadata.namespace}/{sink.metadata.name}"
        for sink in sinks
        for kind in (sink.spec.file, sink.spec.object_store)
        if kind is not None and kind.integrity is not None
    ]
    if chained and spec.receiver.storage.ephemeral is not None:
        yield Problem(
            "spec.receiver.storage.ephemeral",
            f"ends the chains of digests of {', '.join(chained)} with every pod: each new one begins chains of its "
            "own, and what the old one wrote last is never sealed",
            way_out="use persistentVolumeClaim",
        )


def _undelivered(policies: Iterable[_Planned]) -> list[Problem]:
    """Sinks that somebody named and nothing reaches, because the webhook is off."""
    number = sum(bool(planned.input.sinks) for planned in policies)
    if not number:
        return []
    names = counted(number, "AuditPolicy names", "AuditPolicies name")
    return [
        Problem(
            "spec.webhook.enabled",
            f"lets nothing reach a sink, and {names} some: API servers only write log files of their own",
            "false",
            "turn it on when there is a receiver",
        )
    ]


def _backend_problems(resources: Resources) -> list[Problem]:
    """An AuditBackend that is not valid says nothing about what was meant; defaults could be far from it."""
    return [
        Problem(
            str(invalid.identity),
            "is not valid, so nothing is made for API servers and receivers",
            way_out="correct it",
        )
        for invalid in resources.invalid
        if invalid.identity.kind == AuditBackend.__name__ and invalid.last_good is None
    ]


def _bodies_in_log(server: Policy) -> list[Problem]:
    """What receivers redact stands in the API servers' own log files as it came."""
    found = bodies_recorded(server)
    if not found:
        return []
    return [
        Problem(
            "spec.log.enabled",
            f"writes bodies into the API servers' own log files, where nothing is redacted: {', '.join(found)}",
            "true",
            "record these resources at level Metadata in every AuditPolicy, or turn the log off",
        )
    ]


def _size_problems(files: Mapping[str, str], kept_program: StoredProgram, program_text: str) -> Iterator[Problem]:
    if not kept_program.fits:
        yield Problem(
            "receiver/program.json",
            f"has {len(program_text.encode())} bytes, {kept_program.size} of them compressed, and a ConfigMap takes "
            f"{CONFIG_MAP_LIMIT}",
            way_out="make policies share presets and rules: equal lists of rules are written once",
        )
    size = _bytes(files)
    if size > CONFIG_MAP_LIMIT:
        yield Problem(
            "apiserver/policy.yaml",
            f"and what belongs to it have {size} bytes, and a ConfigMap takes {CONFIG_MAP_LIMIT}",
            way_out="make policies share rules, or let API servers record more than is needed with "
            "spec.serverPolicy.fixed of the AuditBackend",
        )


def _unnamed_operator(world: World) -> Iterator[Problem]:
    if world.operator_by_common_name:
        uri = operator_uri(world.cluster_domain, world.root_namespace)
        yield Problem(
            "spec.certificates.certManager",
            f"has made a certificate for the operator (Secret {OPERATOR_TLS}) without the URI {uri}: receivers take "
            f"anybody with the common name {OPERATOR_NAME} for the operator until there is one with it",
            way_out="wait for cert-manager, and if that does not help, let the issuer sign URIs (Vault: "
            "allowed_uri_sans)",
        )


def _certificate_problems(spec: AuditBackendSpec, world: World) -> Iterator[Problem]:
    """Without certificates nothing can be installed."""
    if spec.certificates.cert_manager and world.served is not None and CERTIFICATE_KIND not in world.served:
        api_version, kind = CERTIFICATE_KIND
        yield Problem(
            "spec.certificates.certManager",
            f"asks for {kind} of {api_version}, which this cluster does not serve",
            way_out="install cert-manager, or leave certificates out for the operator's own CA",
        )


def _unserved(item: Object) -> Problem:
    """What is left out because the cluster does not know it."""
    what = f"{item['kind']} of {item['apiVersion']}"
    if item["apiVersion"] == "monitoring.coreos.com/v1":
        return Problem(
            f"spec.receiver.{item['kind'][0].lower()}{item['kind'][1:]}.enabled",
            f"asks for {what}, which this cluster does not serve, so there is none",
            "true",
            "install the Prometheus operator, or leave it out",
        )
    return Problem(
        "spec.receiver",
        f"asks for {what}, which this cluster does not serve, so there is none",
        way_out="use a version of Kubernetes that serves it",
    )


def _notices(resources: Resources, *, kept: bool) -> Iterator[str]:
    if resources.backend is None and not any(each.identity.kind == "AuditBackend" for each in resources.invalid):
        yield (
            f"There is no AuditBackend: its defaults are used, and clusterName {DEFAULT_CLUSTER_NAME}. Write one named "
            "default to choose."
        )
    if kept:
        yield (
            "API servers keep the policy they run: it records all that is needed, and more. It narrows with the next "
            "widening, or with spec.serverPolicy.narrowing: Immediately."
        )
    for each in resources.invalid:
        if not each.identity.name:
            where = f" ({each.source})" if each.source else ""
            yield f"{each.identity.kind} without a name{where}: {lines(each.problems)}"
