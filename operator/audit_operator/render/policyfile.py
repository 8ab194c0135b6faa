"""The file behind ``--audit-policy-file``: what one API server version reads as exactly the policy it is made from."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from msgspec import structs

from audit_operator.policy.kinds import Version
from audit_operator.policy.load import API_VERSION, GROUP_STAR_SINCE
from audit_operator.policy.model import STAGES, GroupResources, Level, Policy, Rule, Stage
from audit_operator.resources.yamlwriter import Commented, Value, write


class Lowered(NamedTuple):
    """A policy that one server version accepts, and what it could not carry over exactly."""

    policy: Policy
    notices: tuple[str, ...]


def lower(policy: Policy, server: Version, api_groups: Iterable[str]) -> Lowered:
    """``policy`` in words that ``server`` (such as ``(1, 35)``) knows.

    Minimal becomes Metadata. No rules become one of level None: a server stops at an empty list. For servers before
    1.36 a rule for everything in every group loses its ``resources`` (rules for non-resource requests are pulled to the
    front so that it still sees resource requests only), which is exact; any other group ``*`` is expanded to
    ``api_groups``, and a notice says so. Raises ValueError for a namespaceSelector: it is resolved or widened before.
    """
    rules = [_in_server_words(rule) for rule in policy.rules]
    notices: list[str] = []
    if server < GROUP_STAR_SINCE:
        if any(_everything_in_every_group(rule) for rule in rules):
            rules = _without_resources_of_everything(rules)
        groups = sorted({"", *api_groups})
        for index, rule in enumerate(rules):
            if any(entry.group == "*" for entry in rule.resources):
                rules[index] = _expand(rule, groups)
                where = rule.origin or f"server policy rules[{index}]"
                notices.append(
                    f"{where}: group * needs Kubernetes 1.36; for {server[0]}.{server[1]} it is written as the "
                    f"{len(groups)} API groups known now, and a later one is not recorded until the next rendering"
                )
    if not rules:
        rules = [Rule(level=Level.NONE, origin="nothing is asked for")]
    return Lowered(
        Policy(rules=tuple(rules), omit_stages=policy.omit_stages, omit_managed_fields=policy.omit_managed_fields),
        tuple(notices),
    )


def policy_file(policy: Policy, *, header: str = "", origins: bool = False) -> str:
    """The YAML text of a lowered policy. ``origins``: a comment above each rule names where it comes from."""
    document: dict[str, Value] = {"apiVersion": API_VERSION, "kind": "Policy"}
    if policy.omit_stages:
        document["omitStages"] = _stages(policy.omit_stages)
    if policy.omit_managed_fields:
        document["omitManagedFields"] = True
    document["rules"] = [
        Commented(rule_value(rule), rule.origin) if origins and rule.origin else rule_value(rule)
        for rule in policy.rules
    ]
    return write(document, header=header)


def rule_value(rule: Rule) -> dict[str, Any]:
    """The wire form of a PolicyRule, fields in the API's order, empty ones left out."""
    fields: Mapping[str, Any] = {
        "level": str(rule.level),
        "users": list(rule.users),
        "userGroups": list(rule.user_groups),
        "verbs": list(rule.verbs),
        "resources": [_entry(entry) for entry in rule.resources],
        "namespaces": list(rule.namespaces),
        "nonResourceURLs": list(rule.non_resource_urls),
        "omitStages": _stages(rule.omit_stages),
    }
    value = {name: field for name, field in fields.items() if field}
    if rule.omit_managed_fields is not None:
        value["omitManagedFields"] = rule.omit_managed_fields
    return value


def _entry(entry: GroupResources) -> dict[str, Any]:
    value: dict[str, Any] = {"group": entry.group}
    if entry.resources:
        value["resources"] = list(entry.resources)
    if entry.resource_names:
        value["resourceNames"] = list(entry.resource_names)
    return value


def _stages(stages: frozenset[Stage]) -> list[str]:
    return [str(stage) for stage in STAGES if stage in stages]


def _in_server_words(rule: Rule) -> Rule:
    if rule.namespace_selector is not None:
        raise ValueError(f"{rule.origin or 'a rule'}: a policy file knows no namespaceSelector; resolve it first")
    return structs.replace(rule, level=rule.level.server)


def _everything_in_every_group(rule: Rule) -> bool:
    """One entry says it all: the other entries of the rule add nothing."""
    return any(
        entry.group == "*" and (not entry.resources or "*" in entry.resources) and not entry.resource_names
        for entry in rule.resources
    )


def _without_resources_of_everything(rules: list[Rule]) -> list[Rule]:
    """The same decisions without ``resources`` on rules for everything in every group.

    Without ``resources`` (and namespaces) a rule sees non-resource requests too, so these are decided first: every rule
    that can see them, in order, for URLs only, then level None for the rest, which is what no match means.
    """
    urls = [
        structs.replace(rule, non_resource_urls=rule.non_resource_urls or ("*",))
        for rule in rules
        if not rule.resources and not rule.namespaces
    ]
    if not urls or not _sees_every_url(urls[-1]):
        urls.append(Rule(level=Level.NONE, non_resource_urls=("*",), origin="non-resource requests no rule matches"))
    others = [
        structs.replace(rule, resources=()) if _everything_in_every_group(rule) else rule
        for rule in rules
        if rule.resources or rule.namespaces or not rule.non_resource_urls
    ]
    return [*urls, *others]


def _sees_every_url(rule: Rule) -> bool:
    return "*" in rule.non_resource_urls and not (rule.users or rule.user_groups or rule.verbs)


def _expand(rule: Rule, groups: list[str]) -> Rule:
    entries: list[GroupResources] = []
    for entry in rule.resources:
        if entry.group == "*":
            entries += [GroupResources(group, entry.resources, entry.resource_names) for group in groups]
        else:
            entries.append(entry)
    return structs.replace(rule, resources=tuple(dict.fromkeys(entries)))
