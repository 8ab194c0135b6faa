"""What was made of one AuditPolicy, for as long as the same one comes again: a change among a thousand costs one.

Rendering is pure, so remembering changes nothing but the time. Resources are known by who they are, not by what they
hold: whoever renders again and again (the operator) gives the same objects for what has not changed, and comparing
contents would take as long as the work saved.
"""

from functools import lru_cache
from typing import Final, NamedTuple

from msgspec import structs

from audit_operator.policy.coverage import Coverage, Recording
from audit_operator.policy.effective import Effective, Selections, effective, redactions_of
from audit_operator.policy.kinds import Kinds, Version
from audit_operator.policy.lint import Severity, body_lint, lint
from audit_operator.policy.memo import Same
from audit_operator.policy.model import Policy, Rule
from audit_operator.policy.redact import RedactionRule
from audit_operator.render.objects import text_hash
from audit_operator.render.program import PolicyInput, encode, program
from audit_operator.resources.auditpolicy import AuditPolicy

_MANY: Final = 8192
"""AuditPolicies that are remembered; with more, those that were asked for longest ago are made again."""


_SOMEWHERE: Final = "somewhere"

_MOST_COMPARISONS: Final = 20_000
"""Rules times the values in all of them: 50 rules of 8 values each. They are judged in some 50 ms."""


class Judged(NamedTuple):
    """What lint says of a policy: numbers of findings."""

    warnings: int
    unreachable: int


def meaning_of(policy: AuditPolicy, root_namespace: str) -> Effective:
    """What the AuditPolicy asks for."""
    return _meaning(Same(policy), root_namespace)


def redactions(policy: AuditPolicy) -> tuple[RedactionRule, ...]:
    """Its own redactions."""
    return _redactions(Same(policy))


def resolved(policy: Policy, selections: Selections) -> Policy:
    """The policy without namespaceSelectors; equal ones are one value."""
    if all(rule.namespace_selector is None for rule in policy.rules):
        return policy
    return _one(selections.resolve(policy))


def judged(policy: AuditPolicy, kinds: Kinds, server: Version, *, bounded: bool = False) -> Judged | None:
    """What lint says of it as it is written: a tenant's rules keep their numbers.

    ``bounded``: None for one that takes long. Lint compares each rule with all others; a tenant that writes hundreds of
    values into each of them must not hold up what becomes of everybody's resources.
    """
    namespace = policy.metadata.namespace
    written = meaning_of(policy, namespace).policy
    if bounded and _comparisons(Same(written)) > _MOST_COMPARISONS:
        return None
    return _judged(_somewhere(written, namespace), len(policy.spec.rules), kinds, server)


@lru_cache(maxsize=2)  # as below
def bodies_recorded(server: Policy) -> tuple[str, ...]:
    """Names of the findings about bodies with credentials that API servers write."""
    return tuple(sorted({finding.name for finding in body_lint(server)}))


def recording(server: Policy) -> "Remembering":
    """The server policy, to be asked whether it records what policies need."""
    return _recording(server)


def input_hash(given: PolicyInput) -> str:
    """A short name for what receivers do for one policy."""
    return _hash(
        _Input(given.namespace, given.name, given.tenant, given.sinks, Same(given.redactions), Same(given.policy))
    )


class Remembering:
    """A `Recording` that remembers its answers."""

    def __init__(self, server: Policy) -> None:
        self._covers = lru_cache(maxsize=_MANY)(lambda same: recorded.covers(same.value))
        recorded = Recording(server)

    def covers(self, policy: Policy) -> Coverage:
        """Whether it records all that ``policy`` needs."""
        found: Coverage = self._covers(Same(policy))
        return found


@lru_cache(maxsize=2 * _MANY)  # as it is written, and confined
def _meaning(same: Same[AuditPolicy], root_namespace: str) -> Effective:
    return effective(same.value, root_namespace=root_namespace)


@lru_cache(maxsize=_MANY)
def _redactions(same: Same[AuditPolicy]) -> tuple[RedactionRule, ...]:
    return redactions_of(same.value)


@lru_cache(maxsize=_MANY)
def _comparisons(same: Same[Policy]) -> int:
    rules = same.value.rules
    return len(rules) * sum(map(_values, rules))


def _values(rule: Rule) -> int:
    """How many names stand in a rule."""
    named = sum(1 + len(entry.resources) * max(1, len(entry.resource_names)) for entry in rule.resources)
    return named + sum(map(len, (rule.users, rule.user_groups, rule.verbs, rule.namespaces, rule.non_resource_urls)))


@lru_cache(maxsize=_MANY)
def _one(policy: Policy) -> Policy:
    return policy


def _somewhere(policy: Policy, namespace: str) -> Policy:
    """The policy with another name for its own namespace, the same for all: no finding depends on what it is called."""
    named = {name for rule in policy.rules for name in rule.namespaces}
    if namespace not in named or _SOMEWHERE in named:
        return policy
    rules = (
        structs.replace(rule, namespaces=tuple(_SOMEWHERE if name == namespace else name for name in rule.namespaces))
        if namespace in rule.namespaces
        else rule
        for rule in policy.rules
    )
    return structs.replace(policy, rules=tuple(rules))


@lru_cache(maxsize=_MANY)  # by content: tenants' policies of one shape are judged once
def _judged(policy: Policy, own_rules: int, kinds: Kinds, server: Version) -> Judged:
    findings = lint(
        policy,
        written=own_rules,
        whole=False,
        redacted=True,
        kinds=kinds,
        server=server,
        modes=(),  # what a mode makes of the stages of all policies together is said by the AuditBackend
    )
    warnings = [finding for finding in findings if finding.severity is not Severity.INFO]
    return Judged(len(warnings), sum(finding.name == "unreachable-rule" for finding in warnings))


@lru_cache(maxsize=2)  # the one in force and the next one
def _recording(server: Policy) -> Remembering:
    return Remembering(server)


@lru_cache(maxsize=_MANY)
def _hash(given: "_Input") -> str:
    policy = PolicyInput(
        namespace=given.namespace,
        name=given.name,
        policy=given.policy.value,
        tenant=given.tenant,
        redactions=given.redactions.value,
        sinks=given.sinks,
    )
    return text_hash(encode(program((policy,), (), cluster="", body_limit=0, journal_limit=0)))


class _Input(NamedTuple):
    """A `PolicyInput` that is quickly compared."""

    namespace: str
    name: str
    tenant: str | None
    sinks: tuple[str, ...]
    redactions: Same[tuple[RedactionRule, ...]]
    policy: Same[Policy]
