"""What rendering can say about every resource. Conditions carry no times: those are the live operator's.

Nothing is installed and nothing flows here, so what only a cluster can show is Unknown, reason NotObserved.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from audit_operator.policy.effective import Effective
from audit_operator.policy.union import Coverage
from audit_operator.render.tenants import Refusal, Sinks
from audit_operator.render.world import Identity, Invalid, identity_of
from audit_operator.resources.auditbackend import AuditBackend
from audit_operator.resources.auditpolicy import AuditPolicy
from audit_operator.resources.auditsink import AuditSink
from audit_operator.resources.load import Problem
from audit_operator.resources.meta import API_VERSION

NOT_OBSERVED: Final = "NotObserved"


class Condition(msgspec.Struct, frozen=True):
    """metav1.Condition without lastTransitionTime and observedGeneration."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str


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
        holding = (condition.message for condition in self.conditions if condition.status == "True")
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
                "conditions": [msgspec.structs.asdict(condition) | generation for condition in self.conditions],
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


def concluded(conditions: Sequence[Condition]) -> tuple[Condition, ...]:
    """The conditions with Ready, the last word, and Stalled if only a person can help.

    Ready is False for the first condition that is, else Unknown for the first that is, else True.
    """
    for status in ("False", "Unknown"):
        first = next((condition for condition in conditions if condition.status == status), None)
        if first is None:
            continue
        ready = Condition("Ready", first.status, first.reason, first.message)
        stalled = [true("Stalled", first.message, first.reason)] if status == "False" else []
        return (*conditions, *stalled, ready)
    return (*conditions, true("Ready", "all is as it should be"))


def refused_status(identity: Identity, refusal: Refusal, generation: int) -> ResourceStatus:
    """The status of a valid resource that does not count."""
    return ResourceStatus(
        identity=identity,
        generation=generation,
        conditions=concluded([false(_leading(identity.kind), refusal)]),
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
        conditions=concluded([*conditions, *observed]),
        fields=fields,
    )


def compiled(meaning: Effective, unreachable: int, warnings: int) -> Condition:
    """Compiled, of a policy that counts."""
    text = counted(len(meaning.policy.rules), "rule")
    if meaning.tenant is not None:
        text += f" for requests in namespace {meaning.tenant}"
    if unreachable:
        text += f", {unreachable} of them unreachable"
    if warnings:
        text += f"; {counted(warnings, 'warning')}, which `audit-operator lint` shows"
    return true("Compiled", "\n".join([text, *meaning.notices]))


def covered(coverage: Coverage | None, way_out: str) -> Condition:
    """Covered: whether API servers record all that a policy needs; None if nobody can tell what they record."""
    if coverage is None:
        return Condition("Covered", "Unknown", "BackendInvalid", "the AuditBackend is not valid; its status says why")
    if coverage.covered:
        return true("Covered", "API servers record what it needs")
    return false("Covered", Refusal("NotCovered", f"{coverage}: {way_out}"))


def sinks_resolved(sinks: Sinks, *, webhook: bool, log: bool) -> Condition:
    """SinksResolved: whether what is recorded for a policy has somewhere to go."""
    kind = "SinksResolved"
    if sinks.refused:
        return false(kind, Refusal(sinks.refused[0].reason, "\n".join(refusal.message for refusal in sinks.refused)))
    if not sinks.resolved:
        if log:
            return true(kind, "names no sink: its events are in the API servers' own log files only", "NoSinks")
        return false(kind, Refusal("NoSinks", "names no sink, and the AuditBackend has no log: add spec.sinks"))
    if not webhook:
        why = "no event reaches a sink, because spec.webhook.enabled of the AuditBackend is false: enable it"
        return false(kind, Refusal("WebhookDisabled", why))
    return true(kind, f"delivers to {', '.join(sinks.resolved)}")


def sink_status(sink: AuditSink, policies: int, hash_: str) -> ResourceStatus:
    """The status of an AuditSink that counts."""
    spec = sink.spec
    text = f"{spec.type}, for {counted(policies, 'AuditPolicy', 'AuditPolicies')}"
    if spec.plaintext:
        text += "; events leave the receiver unencrypted: use https, or transport TLS"
    return ResourceStatus(
        identity=identity_of(sink),
        generation=sink.metadata.generation,
        conditions=concluded(
            [
                true("Configured", text),
                not_observed("Delivering", "whether it takes events is for the operator to see"),
            ]
        ),
        fields={"type": spec.type, "policies": policies, "hash": hash_},
    )


def backend_status(
    backend: AuditBackend, blocked: Sequence[Problem], warnings: Sequence[Problem], fields: Mapping[str, Any]
) -> ResourceStatus:
    """The status of the AuditBackend. ``blocked``: why nothing is made for API servers and receivers."""
    if blocked:
        rendered = false("Rendered", Refusal("Conflict", lines(blocked)))
    else:
        made = (
            f"{counted(fields['serverRules'], 'rule')} for API servers, "
            f"{counted(fields['policies'], 'AuditPolicy', 'AuditPolicies')} and "
            f"{counted(fields['sinks'], 'AuditSink')} for receivers"
        )
        reason = "RenderedWithWarnings" if warnings else "Rendered"
        rendered = true("Rendered", "\n".join([made, *map(str, warnings)]), reason)
    return ResourceStatus(
        identity=identity_of(backend),
        generation=backend.metadata.generation,
        conditions=concluded(
            [
                rendered,
                not_observed("ReceiverReady", "whether receivers run is for the operator to see"),
                not_observed("Installed", "which policy API servers run is for the operator to see"),
                not_observed("EventsFlowing", "whether events arrive is for the operator to see"),
            ]
        ),
        fields={} if blocked else fields,
    )


def invalid_status(invalid: Invalid) -> ResourceStatus:
    """The status of a resource that is not valid: what is wrong, all at once."""
    refusal = Refusal("Invalid", lines(invalid.problems))
    return ResourceStatus(
        identity=invalid.identity,
        generation=invalid.generation,
        conditions=concluded([false(_leading(invalid.identity.kind), refusal)]),
    )


def lines(problems: Sequence[Problem]) -> str:
    """Problems as one message, a line each."""
    return "\n".join(map(str, problems))


def counted(number: int, one: str, several: str = "") -> str:
    """``1 rule``, ``2 rules``."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def _leading(kind: str) -> str:
    """The condition that says whether the operator can do anything with a resource of this kind."""
    return {"AuditSink": "Configured", "AuditBackend": "Rendered"}.get(kind, "Compiled")
