"""An AuditPolicy as a Policy: the preset appended, a tenant confined to its namespace, selectors resolved to names."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from msgspec import structs

from audit_operator.policy.model import (
    GroupResources,
    LabelSelector,
    Level,
    Policy,
    Rule,
    SelectorRequirement,
    Stage,
)
from audit_operator.policy.presets import preset
from audit_operator.policy.redact import Action, RedactionRule

if TYPE_CHECKING:
    # For annotations only: pydantic takes longer to import than `audit-operator lint` may run.
    from audit_operator.resources.auditpolicy import AuditPolicy, PolicyRule, ServerRule
    from audit_operator.resources.meta import LabelSelector as LabelSelectorModel

NAME_LABEL = "kubernetes.io/metadata.name"
"""The label that the API server puts on every namespace."""

Namespaces = Mapping[str, Mapping[str, str]]
"""Namespaces by name with their labels."""


class Effective(NamedTuple):
    """What an AuditPolicy asks for.

    ``policy`` keeps its namespaceSelectors: `union` treats such rules as if labels could change at any time, and
    `resolve` turns them into names for decisions. ``tenant`` is the only namespace the policy sees, None: the cluster.
    ``notices`` name the rules that were left out, and why.
    """

    policy: Policy
    tenant: str | None
    notices: tuple[str, ...]


def effective(audit_policy: "AuditPolicy", *, root_namespace: str) -> Effective:
    """The policy that ``audit_policy`` means: its rules, then its preset's; outside the root namespace confined.

    The rules of a preset keep the preset's own omitStages and omitManagedFields, which do not touch the spec's rules;
    the spec's omitStages touch all of them.
    """
    spec, namespace = audit_policy.spec, audit_policy.metadata.namespace
    own = rules_of(spec.rules)
    base = preset(spec.preset, root_namespace).rules if spec.preset else ()
    tenant = None if namespace == root_namespace else namespace
    notices: tuple[str, ...] = ()
    if tenant is not None:
        reasons = ((rule, _unseen(rule, tenant)) for rule in own)
        notices = tuple(f"{rule.origin} is left out: {reason}" for rule, reason in reasons if reason)
        own, base = _confine(own, tenant), _confine(base, tenant)
    return Effective(
        policy=Policy(
            rules=(*own, *base),
            omit_stages=frozenset(map(Stage, spec.omit_stages)),
            omit_managed_fields=spec.omit_managed_fields,
        ),
        tenant=tenant,
        notices=notices,
    )


def redactions_of(audit_policy: "AuditPolicy") -> tuple[RedactionRule, ...]:
    """Its redactions as values; `Redactor` adds the built-in ones, and says whether they can work."""
    return tuple(
        RedactionRule(
            resources=tuple(GroupResources(entry.group, entry.resources) for entry in redaction.resources),
            paths=redaction.paths,
            action=Action(redaction.action),
        )
        for redaction in audit_policy.spec.redactions
    )


def rules_of(models: "Iterable[PolicyRule | ServerRule]", origin: str = "spec.rules") -> tuple[Rule, ...]:
    """The rules of a resource as values; each one's origin is ``origin`` and its index."""
    return tuple(_rule(model, f"{origin}[{index}]") for index, model in enumerate(models))


def resolve(policy: Policy, namespaces: Namespaces) -> Policy:
    """The policy without namespaceSelectors: each becomes the names of the namespaces that it selects now.

    A rule with ``namespaces`` too needs both. A selector never selects requests without a namespace. A rule whose
    selector selects nothing goes: an empty list of namespaces would mean any. A namespace that only a rule names has
    no label but its name.
    """
    return Selections(namespaces).resolve(policy)


class Selections:
    """Namespaces, for many policies to be resolved by: each selector is asked about all of them once."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces
        self._selected: dict[LabelSelector, tuple[str, ...]] = {}

    def resolve(self, policy: Policy) -> Policy:
        """As the function of this name."""
        rules = (self._resolved(rule) for rule in policy.rules)
        return structs.replace(policy, rules=tuple(rule for rule in rules if rule is not None))

    def _resolved(self, rule: Rule) -> Rule | None:
        selector = rule.namespace_selector
        if selector is None:
            return rule
        selected = self._among(selector, rule.namespaces) if rule.namespaces else self._among_all(selector)
        return structs.replace(rule, namespaces=selected, namespace_selector=None) if selected else None

    def _among_all(self, selector: LabelSelector) -> tuple[str, ...]:
        if selector not in self._selected:
            self._selected[selector] = self._among(selector, sorted(self._namespaces))
        return self._selected[selector]

    def _among(self, selector: LabelSelector, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name and selects(selector, name, self._namespaces))


def selects(selector: LabelSelector, namespace: str, namespaces: Namespaces) -> bool:
    """Whether the selector selects the namespace, by the labels it has in ``namespaces`` and its name."""
    labels = {**namespaces.get(namespace, {}), NAME_LABEL: namespace}
    return all(labels.get(key) == value for key, value in selector.match_labels) and all(
        _requirement_holds(requirement, labels) for requirement in selector.match_expressions
    )


def _requirement_holds(requirement: SelectorRequirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value is not None and value in requirement.values
        case "NotIn":  # holds without the label too, as everywhere in Kubernetes
            return value is None or value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None


def _confine(rules: Iterable[Rule], tenant: str) -> tuple[Rule, ...]:
    return tuple(structs.replace(rule, namespaces=(tenant,)) for rule in rules if not _unseen(rule, tenant))


def _unseen(rule: Rule, tenant: str) -> str:
    """Why the rule can match nothing in the tenant's namespace; empty if it can."""
    if rule.non_resource_urls:
        return f"nonResourceURLs are in no namespace, and a policy in namespace {tenant} sees only requests there"
    if rule.namespaces and tenant not in rule.namespaces:
        elsewhere = ", ".join(_quoted(name) for name in rule.namespaces[:_SHOWN])
        more = f" and {len(rule.namespaces) - _SHOWN} more" if len(rule.namespaces) > _SHOWN else ""
        return f"a policy in namespace {tenant} sees only requests there, not in {elsewhere}{more}"
    return ""


_SHOWN = 3
"""Namespaces that a notice names."""
_LONGEST_SHOWN = 63
"""Characters of one; no namespace's name has more."""


def _quoted(name: str) -> str:
    return repr(name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}…")


def _rule(model: "PolicyRule | ServerRule", origin: str) -> Rule:
    selector = getattr(model, "namespace_selector", None)
    return Rule(
        level=Level.parse(model.level),
        users=model.users,
        user_groups=model.user_groups,
        verbs=model.verbs,
        namespaces=model.namespaces,
        resources=tuple(
            GroupResources(entry.group, entry.resources, entry.resource_names) for entry in model.resources
        ),
        non_resource_urls=model.non_resource_urls,
        omit_stages=frozenset(map(Stage, model.omit_stages)),
        omit_managed_fields=model.omit_managed_fields,
        namespace_selector=None if selector is None else selector_of(selector),
        origin=origin,
    )


def selector_of(model: "LabelSelectorModel") -> LabelSelector:
    """The selector of a resource as a value."""
    return LabelSelector(
        match_labels=tuple(sorted(model.match_labels.items())),
        match_expressions=tuple(
            SelectorRequirement(requirement.key, requirement.operator, requirement.values)
            for requirement in model.match_expressions
        ),
    )
