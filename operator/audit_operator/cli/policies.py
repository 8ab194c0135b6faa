"""The policies that `-f` gives, to be asked: AuditPolicies as the operator runs them, policy files as they are."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from audit_operator.cli.errors import CliError
from audit_operator.cli.inputs import Document, Inputs, PolicyFile, read_inputs
from audit_operator.policy.explain import Explainer, Source
from audit_operator.policy.load import NEWEST, Version
from audit_operator.policy.model import Level, Policy, Request
from audit_operator.policy.union import union

if TYPE_CHECKING:
    # Imported where they are used: they stand on pydantic, and policy files do without.
    from audit_operator.render.plan import Plan
    from audit_operator.render.world import Identity, Invalid, ReceiverAddress, Resources
    from audit_operator.resources.auditbackend import AuditBackend
    from audit_operator.resources.load import Resource


MOST_UNITED: Final = 500
"""Rules of policy files of which a union is made: an AuditPolicy has 200 at most, and a file as many as it likes."""


class Setting(NamedTuple):
    """What the command line says of the cluster.

    ``image``: of the receiver, empty for the default. ``receiver_address``: IP address, name or port that the cluster
    gave the receiver's Service. ``in_force``: the policy that API servers run now. Empty and None: not known.
    """

    server: Version = NEWEST
    root_namespace: str = "audit-system"
    image: str = ""
    receiver_address: str = ""
    in_force: Policy | None = None


@dataclass(frozen=True)
class Setup:
    """The policies, and what API servers run for them: ``server``.

    ``sources`` are named ``namespace/name`` of an AuditPolicy, or by their file; their sinks ``namespace/name``.
    ``plan`` is None if there are policy files only. ``problems`` name resources that are not as they should be, and
    why; ``left_out`` those of them that the answer is without: not valid, or not counting; ``notices`` what else a
    person should know. ``namespaces``: those whose labels are known. ``settings``: the spec of the AuditBackend and of
    every AuditSink, defaults filled in, by kind and name.
    """

    sources: tuple[Source, ...]
    server: Policy
    plan: "Plan | None"
    problems: tuple[str, ...]
    notices: tuple[str, ...]
    namespaces: frozenset[str]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @cached_property
    def explainer(self) -> Explainer:
        """Asked what happens to a request."""
        return Explainer(self.server, self.sources)

    def reached(self, request: Request) -> dict[str, Level]:
        """At which level the request's events reach each sink: the highest that a policy gives it."""
        levels = {sink: Level.NONE for source in self.sources for sink in source.sinks}
        for verdict in self.explainer.explain(request).policies:
            for sink in verdict.sinks:
                levels[sink] = max(levels[sink], verdict.level)
        return levels


def load_setup(arguments: Sequence[str], setting: Setting) -> Setup:
    """What ``-f`` gives. One policy file alone is what API servers run; else they run the union. Raises CliError."""
    inputs = read_inputs(arguments, setting.server)
    files = [Source(file.file, policy_in(file)) for file in inputs.policy_files]
    rules = sum(len(source.policy.rules) for source in files)
    if (len(files) > 1 or inputs.resources) and rules > MOST_UNITED:
        raise CliError(
            f"with other policies: has {rules:,} rules, and a union is made of at most {MOST_UNITED} of policy files",
            file=", ".join(file.file for file in inputs.policy_files),
            way_out="name one policy file and nothing else, or write fewer rules: one can list many users",
        )
    if not inputs.resources:
        server = files[0].policy if len(files) == 1 else union(source.policy for source in files)
        return Setup(tuple(files), server, None, (), inputs.notices, frozenset(inputs.namespaces))
    plan, problems, resources = _plan(inputs, setting)
    ours = [Source(f"{each.namespace}/{each.name}", each.policy, each.redactions, each.sinks) for each in plan.policies]
    server = union([plan.server_policy, *(source.policy for source in files)]) if files else plan.server_policy
    namespaces = {*inputs.namespaces, *(each.namespace for each in plan.policies)}
    notices = inputs.notices
    if plan.flags.body_limit is None and any(source.sinks for source in ours):
        notices += ("spec.webhook.enabled of the AuditBackend is false: sinks are named as if it were true",)
    return Setup(
        (*ours, *files),
        server,
        plan,
        problems,
        notices,
        frozenset(namespaces),
        _settings(resources),
        _left_out(plan, resources),
    )


def _left_out(plan: "Plan", resources: "Resources") -> tuple[str, ...]:
    """The resources that the plan is without."""
    from audit_operator.render.world import Identity, identity_of

    there = {Identity("AuditPolicy", each.namespace, each.name) for each in plan.policies}
    there |= {Identity("AuditSink", each.namespace, each.name) for each in plan.program.sinks}
    given = {identity_of(policy) for policy in resources.policies} | {identity_of(sink) for sink in resources.sinks}
    absent = {*(given - there), *(each.identity for each in resources.invalid)}
    return tuple(map(str, sorted(absent)))


def _settings(resources: "Resources") -> dict[str, dict[str, Any]]:
    from audit_operator.render.world import identity_of

    found: list[Resource] = [*resources.sinks, *((resources.backend,) if resources.backend else ())]
    return {
        str(identity_of(resource)): resource.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
        for resource in found
    }


def load_plan(inputs: Inputs, setting: Setting) -> "tuple[Plan, tuple[str, ...]]":
    """All that follows from the resources, and a sentence on each one that is not valid or does not count."""
    plan, problems, _ = _plan(inputs, setting)
    return plan, problems


def _plan(inputs: Inputs, setting: Setting) -> "tuple[Plan, tuple[str, ...], Resources]":
    from audit_operator.render.plan import render
    from audit_operator.render.world import IMAGE, Invalid, Resources, World

    items = [_item(document) for document in inputs.resources]
    resources = Resources.of(items)
    homes: dict[str, dict[str, str]] = {policy.metadata.namespace: {} for policy in resources.policies}
    world = World(
        server_version=setting.server,
        namespaces=homes | inputs.namespaces,
        root_namespace=setting.root_namespace,
        image=setting.image or IMAGE,
        receiver_address=_receiver_address(setting.receiver_address),
        server_policy=setting.in_force,
    )
    plan = render(resources, world)
    _check_used(setting.receiver_address, resources.backend, plan)
    problems = [
        f"{_where(document, problem.path)}: {item.identity}: {problem}"
        for document, item in zip(inputs.resources, items, strict=True)
        if isinstance(item, Invalid)
        for problem in item.problems
    ]
    said = {invalid.identity for invalid in resources.invalid if invalid.source}
    problems += [
        f"{status.identity}: {status.ready.message}"
        for status in plan.statuses
        if status.ready.status == "False" and status.identity not in said
    ]
    return plan, tuple(problems), resources


def _receiver_address(text: str) -> "ReceiverAddress":
    from audit_operator.render.world import ReceiverAddress

    if text.isdecimal():
        return ReceiverAddress(node_port=int(text))
    return ReceiverAddress(cluster_ip=text if _is_ip_address(text) else None, load_balancer=text or None)


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


_TAKES: Final = {
    "clusterIP": "an IP address, unless clusterIP gives one",
    "nodePort": "a port, unless nodePort gives one",
    "loadBalancer": "an IP address or a name, unless loadBalancer gives one",
    "external": "nothing, because it says all itself",
}


def _check_used(text: str, backend: "AuditBackend | None", plan: "Plan") -> None:
    """An address that changes nothing would be thought to be in the kubeconfig. Raises CliError."""
    if not text:
        return
    exposure = backend.spec.receiver.exposure.model_dump(by_alias=True, exclude_none=True) if backend else {}
    kind = next(iter(exposure), "clusterIP")
    url = urlsplit(plan.exposed.url.replace("{PORT}", "0"))
    if text == str(url.port) if kind == "nodePort" else text.lower() == url.hostname:
        return
    raise CliError(
        f"is not used: spec.receiver.exposure of the AuditBackend is {kind}, which takes {_TAKES[kind]}",
        field="--receiver-address",
        value=text,
    )


def policy_in(file: PolicyFile) -> Policy:
    """What an API server uses of the file."""
    policy = file.loaded.policy
    assert policy is not None  # noqa: S101 - read_inputs refuses files that no server takes
    return policy


def _item(document: Document) -> "Resource | Invalid":
    from audit_operator.render.world import Invalid
    from audit_operator.resources.load import ResourceError, load_resource

    try:
        return load_resource(document.node.value)
    except ResourceError as error:
        return Invalid(identity=identity(document), problems=error.problems, source=f"{document.file}:{document.line}")


def _where(document: Document, path: str) -> str:
    """File and line; a policy file that became an AuditPolicy has no lines any more."""
    line = document.line_of(path)
    return f"{document.file}:{line}" if line else document.file


def identity(document: Document) -> "Identity":
    """Which resource a document claims to be, as far as it says."""
    from audit_operator.render.world import Identity

    metadata = document.node.find(("metadata", "namespace"))
    namespace = metadata.content if metadata is not None and isinstance(metadata.content, str) else ""
    return Identity(document.text("kind"), namespace, document.name)
