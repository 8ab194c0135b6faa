"""What rendering is told: the resources, and the world around them. Both are values; rendering asks nobody."""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from audit_operator.policy.kinds import BUILT_IN, Kinds, Version
from audit_operator.policy.load import NEWEST
from audit_operator.policy.model import Policy
from audit_operator.render.program import Reference
from audit_operator.resources.auditbackend import AuditBackend
from audit_operator.resources.auditpolicy import AuditPolicy
from audit_operator.resources.auditsink import AuditSink
from audit_operator.resources.load import Problem, Resource

IMAGE: Final = "audit-operator:0.1.0"


class Certificates(msgspec.Struct, frozen=True, kw_only=True):
    """PEM texts, made elsewhere: rendering makes no keys.

    ``ca``: every CA that receivers and API servers trust each other by, one after the other. ``server_``: what
    receivers present, ``client_``: what API servers do.
    """

    ca: str
    server_certificate: str
    server_key: str
    client_certificate: str
    client_key: str

    def __repr__(self) -> str:
        return "Certificates(...)"  # keys stay out of logs and of tests' output


class ReceiverAddress(msgspec.Struct, frozen=True, kw_only=True):
    """What the cluster gave the receiver's Service, as far as the AuditBackend leaves it open."""

    cluster_ip: str | None = None
    node_port: int | None = None
    load_balancer: str | None = None


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """The PersistentVolumeClaim of the receiver ``ordinal``. ``requested``, ``capacity``: as quantities.

    ``capacity``: what it really has; empty: it is not bound, and holds nothing. ``storage_class``: empty for none.
    ``resizing``: what of growing is not done yet, ``failed``: why it cannot grow; in the cluster's words.
    """

    name: str
    uid: str
    ordinal: int
    requested: str
    capacity: str = ""
    storage_class: str = ""
    resizing: str = ""
    failed: str = ""


class World(msgspec.Struct, frozen=True, kw_only=True):
    """Everything outside the resources that the result depends on.

    ``server_version``: Kubernetes' major and minor. ``namespaces``: all that are known, by name, with their labels.
    ``kinds``: what discovery found; offline Kubernetes' own. ``server_policy``: the policy that API servers run now,
    None before the first installation; a union that became smaller does not replace it. ``certificates``: None offline;
    objects and files then name Secrets and paths that somebody fills. ``served``: every (apiVersion, kind) that the
    cluster serves, None offline: it is taken to serve all. ``references``: the keys of every Secret and ConfigMap that
    sinks refer to (`tenants.followed` says which these are), with the bytes of their values; one that is not among them
    does not exist; None offline: nobody looked. ``volumes``: receivers' volumes by number, those that none has any more
    among them. ``operator_by_common_name``: the operator's certificate, which somebody else makes, has no URI yet.
    """

    server_version: Version = NEWEST
    namespaces: Mapping[str, Mapping[str, str]] = {}
    kinds: Kinds = BUILT_IN
    root_namespace: str = "audit-system"
    cluster_domain: str = "cluster.local"
    image: str = IMAGE
    certificates: Certificates | None = None
    receiver_address: ReceiverAddress = ReceiverAddress()
    server_policy: Policy | None = None
    served: frozenset[tuple[str, str]] | None = None
    references: Mapping[Reference, Mapping[str, int]] | None = None
    volumes: tuple[Volume, ...] = ()
    operator_by_common_name: bool = False


class Identity(msgspec.Struct, frozen=True, order=True):
    """Which resource; ``namespace`` is empty for an AuditBackend."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class Invalid(msgspec.Struct, frozen=True, kw_only=True):
    """A document that claims to be one of ours and is not valid; its status says why.

    ``source`` says where a person finds it, such as ``tenants.yaml:12``. ``last_good``: the last version of the same
    resource that was valid; it stays in force. None if there was none.
    """

    identity: Identity
    problems: tuple[Problem, ...]
    generation: int = 0
    source: str = ""
    last_good: Resource | None = None


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """A set of resources in the order of namespace and name; made by `Resources.of`. ``backend`` None: defaults.

    ``policies``, ``sinks`` and ``backend`` are what is in force: the valid ones, and of the ``invalid`` ones the last
    good versions.
    """

    policies: tuple[AuditPolicy, ...] = ()
    sinks: tuple[AuditSink, ...] = ()
    backend: AuditBackend | None = None
    invalid: tuple[Invalid, ...] = ()

    @classmethod
    def of(cls, items: Iterable[Resource | Invalid], *, namespace: str = "default") -> "Resources":
        """The set of ``items``, whatever their order.

        ``namespace`` is that of resources which name none, as kubectl's current one. Of resources with one identity and
        different content none counts: which of them is meant would depend on their order.
        """
        valid: dict[Identity, list[Resource]] = {}
        invalid: dict[Identity, list[Invalid]] = {}
        for item in items:
            if isinstance(item, Invalid):
                invalid.setdefault(item.identity, []).append(item)
                continue
            found = _in_namespace(item, namespace)
            versions = valid.setdefault(identity_of(found), [])
            if found not in versions:
                versions.append(found)
        for identity, versions in valid.items():
            if len(versions) > 1:
                generation = max(version.metadata.generation for version in versions)
                problem = Problem(
                    "metadata.name", f"is given {len(versions)} times with different content", identity.name, "keep one"
                )
                clash = Invalid(identity=identity, problems=(problem,), generation=generation)
                invalid.setdefault(identity, []).append(clash)
        merged = {identity: _merged(same) for identity, same in sorted(invalid.items())}
        in_force = {identity: versions[0] for identity, versions in valid.items() if identity not in merged}
        in_force |= {identity: each.last_good for identity, each in merged.items() if each.last_good is not None}
        sound = [resource for _, resource in sorted(in_force.items(), key=lambda item: item[0])]
        return cls(
            policies=tuple(item for item in sound if isinstance(item, AuditPolicy)),
            sinks=tuple(item for item in sound if isinstance(item, AuditSink)),
            backend=next((item for item in sound if isinstance(item, AuditBackend)), None),
            invalid=tuple(merged.values()),
        )

    @property
    def broken(self) -> frozenset[Identity]:
        """The invalid ones of which no version is in force."""
        return frozenset(each.identity for each in self.invalid if each.last_good is None)


def identity_of(resource: Resource) -> Identity:
    """Which resource it is."""
    return Identity(resource.kind, resource.metadata.namespace, resource.metadata.name)


def _in_namespace(resource: Resource, namespace: str) -> Resource:
    if resource.metadata.namespace or isinstance(resource, AuditBackend):
        return resource
    metadata = resource.metadata.model_copy(update={"namespace": namespace})
    return resource.model_copy(update={"metadata": metadata})


def _merged(same: list[Invalid]) -> Invalid:
    """All that is wrong with one identity, whatever the order in which it was found."""
    problems = {problem for item in same for problem in item.problems}
    good = [item.last_good for item in same if item.last_good is not None]
    return Invalid(
        identity=same[0].identity,
        problems=tuple(sorted(problems, key=str)) if len(same) > 1 else same[0].problems,
        generation=max(item.generation for item in same),
        source=", ".join(sorted({item.source for item in same if item.source})),
        # Which of several is meant would depend on their order.
        last_good=good[0] if all(each == good[0] for each in good[1:]) and len(good) == len(same) else None,
    )
