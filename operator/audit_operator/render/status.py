"""What rendering can say about every resource. Conditions carry no times: those are the live operator's.

Nothing is installed and nothing flows here, so what only a cluster can show is Unknown, reason NotObserved.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from audit_operator.policy.coverage import Coverage
from audit_operator.policy.effective import Effective
from audit_operator.render.remembered import Judged
from audit_operator.render.tenants import Refusal, Sinks
from audit_operator.render.world import Identity, Invalid, identity_of
from audit_operator.resources.auditbackend import AuditBackend
from audit_operator.resources.auditpolicy import AuditPolicy
from audit_operator.resources.auditsink import AuditSink
from audit_operator.resources.load import Problem
from audit_operator.resources.meta import API_VERSION

NOT_OBSERVED: Final = "NotObserved"

LONGEST_MESSAGE: Final = 4096
"""Characters of a condition's message. The CRDs take 32,768, but a status has up to ten conditions, may repeat one
message three times, and has to fit into the 1.5 MiB of an object beside a spec of which its author decides the size.
"""

_LONGEST_REASON: Final = 1024
_REASON: Final = re.compile(r"[A-Za-z](?:[A-Za-z0-9_,:]*[A-Za-z0-9_])?")
"""As the CRDs have it."""

_CONCLUSIONS: Final = frozenset({"Reconciling", "Stalled", "Ready"})
"""Conditions that follow from the others."""


class Condition(msgspec.Struct, frozen=True):
    """metav1.Condition without lastTransitionTime and observedGeneration.

    ``under_way``: what does not hold yet will without anybody's help; not on the wire.

    Whatever it is made of, a person's text or an API server's, it is one that the CRDs take: a status that is refused
    would never be written again, and nobody would learn why.
    """

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    under_way: bool = False

    def __post_init__(self) -> None:
        if len(self.reason) > _LONGEST_REASON or not _REASON.fullmatch(self.reason):
            msgspec.structs.force_setattr(self, "reason", "Unknown")
        if len(self.message) > LONGEST_MESSAGE:
            msgspec.structs.force_setattr(self, "message", _shortened(self.message, LONGEST_MESSAGE))


def _shortened(message: str, most: int) -> str:
    """The message within ``most`` characters: its beginning, of whole lines if there are some, and what is left out."""
    if len(message) <= most:
        return message
    begin = message[: most - 64]
    whole = begin.rpartition("\n")[0]
    if len(whole) > most // 2:
        return f"{whole}\n… and {counted(message.count(chr(10), len(whole)), 'more line')}"
    return f"{begin}… and {len(message) - len(begin)} more characters"


class ResourceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The status of one resource: ``fields`` are those beside the conditions, as on the wire."""

    identity: Identity
    generation: int
    conditions: tuple[Condition, ...]
    fields: Mapping[str, Any] = {}

    @property
    def ready(self) -> Condition:
        """The last word."""
        return next(condition for condition in self.conditions if condition.type == "Ready")

    @property
    def rendered(self) -> tuple[str, str]:
        """What rendering alone says: ``ok`` or the reason why not, and on one line what follows from the resource."""
        if self.ready.status == "False":
            return self.ready.reason, self.ready.message
        holding = (each.message for each in self.conditions if each.status == "True" and each.type not in _CONCLUSIONS)
        return "ok", "; ".join(message.partition("\n")[0] for message in holding)

    def document(self) -> dict[str, Any]:
        """The resource with nothing but its status, as `kubectl apply --subresource=status` takes it."""
        generation = {"observedGeneration": self.generation} if self.generation else {}
        metadata = {"name": self.identity.name}
        if self.identity.namespace:
            metadata["namespace"] = self.identity.namespace
        return {
            "apiVersion": API_VERSION,
            "kind": self.identity.kind,
            "metadata": metadata,
            "status": {
                **generation,
                **self.fields,
                "conditions": [
                    {"type": each.type, "status": each.status, "reason": each.reason, "message": each.message}
                    | generation
                    for each in self.conditions
                ],
            },
        }


def true(kind: str, message: str, reason: str = "") -> Condition:
    """A condition that holds; without ``reason`` its own name is the reason."""
    return Condition(kind, "True", reason or kind, message)


def false(kind: str, refusal: Refusal) -> Condition:
    """A condition that does not hold."""
    return Condition(kind, "False", refusal.reason, refusal.message)


def not_observed(kind: str, message: str) -> Condition:
    """A condition that only a running operator can tell."""
    return Condition(kind, "Unknown", NOT_OBSERVED, message)


def under_way(kind: str, reason: str, message: str) -> Condition:
    """A condition that does not hold yet, and will without anybody's help."""
    return Condition(kind, "False", reason, message, under_way=True)


def with_conditions(status: ResourceStatus, *conditions: Condition) -> ResourceStatus:
    """The status with these conditions, each instead of the one of its type, after the others that were observed.

    Ready, Reconciling and Stalled follow anew.
    """
    given = {each.type for each in conditions} | _CONCLUSIONS
    kept = [each for each in status.conditions if each.type not in given]
    observed = [each for each in kept if each.reason != NOT_OBSERVED]
    unseen = [each for each in kept if each.reason == NOT_OBSERVED]
    return msgspec.structs.replace(status, conditions=_concluded((*observed, *conditions, *unseen)))


def _concluded(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """The conditions, Stalled if only a person can help or Reconciling if something is under way, and Ready at last.

    Ready says what the first condition says that is False and needs a person, else the first that is under way, else
    the first that is Unknown, else it is True. What nobody has observed keeps nobody waiting: kubectl, Flux and
    Argo CD wait for Ready.
    """
    observed = [each for each in conditions if each.reason != NOT_OBSERVED]
    stalled = [each for each in observed if each.status == "False" and not each.under_way]
    moving = [each for each in observed if each.status != "True" and each.under_way]
    unknown = [each for each in observed if each.status == "Unknown" and not each.under_way]
    why = next(iter((*stalled, *moving, *unknown)), None)
    if why is None:
        open_ = [each.type for each in conditions if each.reason == NOT_OBSERVED]
        rest = f"; not observed: {', '.join(open_)}" if open_ else ""
        return (*conditions, true("Ready", f"all that is observed is as it should be{rest}"))
    extra = []
    if stalled:
        extra = [true("Stalled", why.message, why.reason)]
    elif moving:
        extra = [true("Reconciling", why.message, why.reason)]
    return (*conditions, *extra, Condition("Ready", why.status, why.reason, why.message))


def refused_status(identity: Identity, refusal: Refusal, generation: int) -> ResourceStatus:
    """The status of a valid resource that does not count."""
    return ResourceStatus(
        identity=identity,
        generation=generation,
        conditions=_concluded((false(_leading(identity.kind), refusal),)),
    )


def policy_status(policy: AuditPolicy, conditions: Sequence[Condition], fields: Mapping[str, Any]) -> ResourceStatus:
    """The status of an AuditPolicy that counts; ``conditions``: what rendering found out."""
    observed = (
        not_observed("Installed", "whether API servers run a policy that records it is for the operator to see"),
        not_observed("Delivering", "whether its events arrive is for the operator to see"),
    )
    return ResourceStatus(
        identity=identity_of(policy),
        generation=policy.metadata.generation,
        conditions=_concluded((*conditions, *observed)),
        fields=fields,
    )


def compiled(meaning: Effective, verdict: Judged | None) -> Condition:
    """Compiled, of a policy that counts. ``verdict``: what lint says; None if that would have taken too long."""
    text = counted(len(meaning.policy.rules), "rule")
    if meaning.tenant is not None:
        text += f" for requests in namespace {meaning.tenant}"
    if verdict is None:
        text += "; too many values to be judged here, `audit-operator lint` does it"
    elif verdict.unreachable:
        text += f", {verdict.unreachable} of them unreachable"
    if verdict is not None and verdict.warnings:
        text += f"; {counted(verdict.warnings, 'warning')}, which `audit-operator lint` shows"
    return true("Compiled", "\n".join([text, *meaning.notices]))


def covered(coverage: Coverage | None, way_out: str) -> Condition:
    """Covered: whether API servers record all that a policy needs; None if nobody can tell what they record."""
    if coverage is None:
        return Condition("Covered", "Unknown", "BackendInvalid", "the AuditBackend is not valid; its status says why")
    if coverage.covered:
        return true("Covered", "API servers record what it needs")
    return false("Covered", Refusal("NotCovered", f"{coverage}: {way_out}"))


def sinks_resolved(
    sinks: Sinks, waiting: Mapping[str, Refusal], namespace: str, *, webhook: bool, log: bool
) -> Condition:
    """SinksResolved: whether what is recorded for a policy of ``namespace`` has somewhere to go.

    ``waiting``: sinks, as ``namespace/name``, whose events wait for what they refer to.
    """
    kind = "SinksResolved"
    if sinks.refused:
        return false(kind, Refusal(sinks.refused[0].reason, "\n".join(refusal.message for refusal in sinks.refused)))
    if not sinks.resolved:
        if log:
            return true(kind, "names no sink: its events are in the API servers' own log files only", "NoSinks")
        return false(kind, Refusal("NoSinks", "names no sink, and the AuditBackend has no log: add spec.sinks"))
    if not webhook:
        # As somebody chose: without webhook the log is on. The AuditBackend's status warns of it.
        text = (
            f"names {', '.join(sinks.resolved)}, which nothing reaches while spec.webhook.enabled of the AuditBackend "
            "is false: its events are in the API servers' own log files only"
        )
        return true(kind, text, "WebhookDisabled")
    held = [
        f"AuditSink {name}: {waiting[name].message if whose(name) == namespace else see_sink(waiting[name].reason)}"
        for name in sinks.resolved
        if name in waiting
    ]
    return true(kind, "\n".join([f"delivers to {', '.join(sinks.resolved)}", *held]))


def whose(sink: str) -> str:
    """The namespace of a sink that is named as ``namespace/name``."""
    return sink.partition("/")[0]


def see_sink(reason: str) -> str:
    """What people of another namespace are told of a sink: no name of a Secret, no word of its server."""
    return f"{reason}; the sink's own status says why"


def sink_status(sink: AuditSink, policies: int, hash_: str, missing: Refusal | None) -> ResourceStatus:
    """The status of an AuditSink that counts. ``missing``: what it refers to and is not there."""
    spec = sink.spec
    text = f"{spec.type}, for {counted(policies, 'AuditPolicy', 'AuditPolicies')}"
    if spec.plaintext:
        text += "; events leave the receiver unencrypted: use https, or transport TLS"
    if spec.config.caution:
        text += f"; {spec.config.caution}"
    return ResourceStatus(
        identity=identity_of(sink),
        generation=sink.metadata.generation,
        conditions=_concluded(
            (
                false("Configured", missing) if missing else true("Configured", text),
                not_observed("Delivering", "whether it takes events is for the operator to see"),
            )
        ),
        fields={"type": spec.type, "policies": policies, "hash": hash_},
    )


def backend_status(
    backend: AuditBackend, blocked: Sequence[Problem], warnings: Sequence[Problem], fields: Mapping[str, Any]
) -> ResourceStatus:
    """The status of the AuditBackend. ``blocked``: why nothing is made for API servers and receivers."""
    if blocked:
        rendered = false("Rendered", Refusal("Blocked", lines(blocked)))
    else:
        made = f"{counted(fields['serverRules'], 'rule')} for API servers, " + (
            f"{counted(fields['policies'], 'AuditPolicy', 'AuditPolicies')} and "
            f"{counted(fields['sinks'], 'AuditSink')} for receivers"
            if backend.spec.webhook.enabled
            else "which write log files of their own; no receivers"
        )
        reason = "RenderedWithWarnings" if warnings else "Rendered"
        rendered = true("Rendered", "\n".join([made, *map(str, warnings)]), reason)
    return ResourceStatus(
        identity=identity_of(backend),
        generation=backend.metadata.generation,
        conditions=_concluded(
            (
                rendered,
                not_observed("ReceiverReady", "whether receivers run is for the operator to see"),
                not_observed("Installed", "which policy API servers run is for the operator to see"),
                not_observed("EventsFlowing", "whether events arrive is for the operator to see"),
            )
        ),
        fields={} if blocked else fields,
    )


def invalid_status(invalid: Invalid, in_force: ResourceStatus | None) -> ResourceStatus:
    """The status of a resource that is not valid: what is wrong, all at once.

    ``in_force``: the status of its last good version, whose fields stay true; None without one.
    """
    said = [lines(invalid.problems)]
    fields: Mapping[str, Any] = {}
    if in_force is not None:
        # What stays in force matters more than the last of many problems.
        said = [_shortened(said[0], LONGEST_MESSAGE * 3 // 4), _shortened(_kept(in_force), LONGEST_MESSAGE // 4)]
        fields = in_force.fields
    return ResourceStatus(
        identity=invalid.identity,
        generation=invalid.generation,
        conditions=_concluded((false(_leading(invalid.identity.kind), Refusal("Invalid", "\n".join(said))),)),
        fields=fields,
    )


def _kept(status: ResourceStatus) -> str:
    """What a person should know of the version that stays in force."""
    which = f"generation {status.generation}" if status.generation else "the last valid version"
    if status.ready.status == "False":
        return f"{which} is not ready either: {status.ready.message}"
    return f"until that is put right {which} stays in force"


def lines(problems: Sequence[Problem]) -> str:
    """Problems as one message, a line each."""
    return "\n".join(map(str, problems))


def counted(number: int, one: str, several: str = "") -> str:
    """``1 rule``, ``2 rules``."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def _leading(kind: str) -> str:
    """The condition that says whether the operator can do anything with a resource of this kind."""
    return {"AuditSink": "Configured", "AuditBackend": "Rendered"}.get(kind, "Compiled")
