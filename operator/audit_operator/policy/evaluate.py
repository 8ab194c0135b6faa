"""What a policy says of a request: the one evaluator, used offline, by the operator and by the receiver.

The predicates in the first half read next to the API server's own checker (pkg/audit/policy/checker.go of
k8s.io/apiserver) and are the only place where matching is defined. ``Evaluator`` asks them about all rules at once:
per value of each field it keeps the set of rules that accept the value as the bits of an integer, and a decision is
the lowest bit of a handful of ANDs, whatever the number of rules.
"""

from collections.abc import Iterable

from audit_operator.policy.memo import Memo
from audit_operator.policy.model import Decision, GroupResources, Level, Policy, Request, Rule


def rule_matches(rule: Rule, request: Request) -> bool:
    """Whether the rule matches the request. Raises ValueError for a rule whose namespaceSelector is not resolved."""
    return (
        user_matches(rule, request.user)
        and groups_match(rule, request)
        and verb_matches(rule, request.verb)
        and (
            namespace_matches(rule, request.namespace) and resource_matches(rule, request)
            if request.is_resource
            else non_resource_matches(rule, request.path)
        )
    )


def user_matches(rule: Rule, user: str | None) -> bool:
    """``users``: exact. A request without a user matches no rule that names one."""
    return not rule.users or (user is not None and user in rule.users)


def groups_match(rule: Rule, request: Request) -> bool:
    """``userGroups``: any of the user's groups. A request without a user matches no rule that names one."""
    if not rule.user_groups:
        return True
    return request.user is not None and any(group in rule.user_groups for group in request.groups)


def verb_matches(rule: Rule, verb: str) -> bool:
    """``verbs``: exact and case sensitive."""
    return not rule.verbs or verb in rule.verbs


def namespace_matches(rule: Rule, namespace: str) -> bool:
    """``namespaces``: exact; ``""`` is a request without a namespace."""
    if rule.namespace_selector is not None:
        raise ValueError(f"{rule.origin or 'rule'}: resolve namespaceSelector to namespaces before evaluating")
    return not rule.namespaces or namespace in rule.namespaces


def resource_matches(rule: Rule, request: Request) -> bool:
    """``resources`` of a resource request, any of. A rule with nonResourceURLs only sees no resource request."""
    if not rule.resources:
        return bool(rule.namespaces) or not rule.non_resource_urls
    return any(
        group_resources_match(entry, request.api_group, request.resource, request.subresource)
        and (not entry.resource_names or request.name in entry.resource_names)
        for entry in rule.resources
    )


def group_resources_match(entry: GroupResources, group: str, resource: str, subresource: str) -> bool:
    """One entry of ``resources`` without its resourceNames. No ``resources`` in it: everything in the group."""
    if entry.group not in (group, "*"):
        return False
    return not entry.resources or any(item_matches(item, resource, subresource) for item in entry.resources)


def item_matches(item: str, resource: str, subresource: str) -> bool:
    """One string of ``resources[].resources``: ``*``, ``pods``, ``pods/log``, ``*/scale`` or ``pods/*``.

    ``pods/*`` matches the bare resource too. Any other use of ``*`` is a literal and matches nothing.
    """
    if item in ("*", f"{resource}/{subresource}" if subresource else resource):
        return True
    if subresource and item.startswith("*/") and item[2:] == subresource:
        return True
    return item.endswith("/*") and item[:-2] == resource


def non_resource_matches(rule: Rule, path: str) -> bool:
    """``nonResourceURLs`` of a non-resource request. Rules with namespaces or resources see none."""
    if rule.namespaces or rule.resources or rule.namespace_selector is not None:
        return False
    return not rule.non_resource_urls or any(path_matches(path, spec) for spec in rule.non_resource_urls)


def path_matches(path: str, spec: str) -> bool:
    """``*``, an exact path, or a prefix before a trailing ``*``."""
    return spec in ("*", path) or (spec.endswith("*") and path.startswith(spec.rstrip("*")))


def bits(flags: Iterable[bool]) -> int:
    """The integer whose bit i is the i-th flag."""
    return sum(1 << i for i, flag in enumerate(flags) if flag)


class Evaluator:
    """A policy made ready to decide many requests. Not safe for concurrent use from several threads.

    Args:
        policy: with every namespaceSelector resolved (ValueError otherwise).

    """

    __slots__ = ("_decisions", "_groups", "_namespaces", "_paths", "_resources", "_rules", "_users", "_verbs")

    def __init__(self, policy: Policy) -> None:
        rules = policy.rules
        self._rules = rules
        self._users = _exact(rule.users for rule in rules)
        self._groups = _exact(rule.user_groups for rule in rules)
        self._verbs = _exact(rule.verbs for rule in rules)
        self._namespaces = _exact(_namespaces(rule) for rule in rules)
        # (group, resource, subresource) -> (rules for any other name, name -> rules)
        self._resources: Memo[tuple[str, str, str], tuple[int, dict[str, int]]] = Memo()
        self._paths: Memo[str, int] = Memo()
        # Indexed by bit_length of the lowest matching bit: 0 is "no rule", i + 1 is rule i.
        self._decisions = [Decision(Level.NONE, policy.omit_stages, policy.omit_managed_fields, None)]
        self._decisions += [
            Decision(
                rule.level,
                policy.omit_stages | rule.omit_stages,
                policy.omit_managed_fields if rule.omit_managed_fields is None else rule.omit_managed_fields,
                index,
            )
            for index, rule in enumerate(rules)
        ]

    def decide(self, request: Request) -> Decision:
        """The first matching rule's level, stages and managedFields; level None when no rule matches."""
        matching = self.matching(request)
        return self._decisions[(matching & -matching).bit_length()]

    def outcome(self, rule: int) -> Decision:
        """The decision of rule ``rule``; one past the last rule is the decision when no rule matches."""
        return self._decisions[(rule + 1) % len(self._decisions)]

    def matching(self, request: Request) -> int:
        """All rules that match the request, rule i as bit i; the lowest one decides."""
        user = request.user
        by_user, any_user = self._users
        by_group, any_group = self._groups
        if user is None:
            matching = any_user & any_group
        else:
            groups = any_group
            for group in request.groups:
                if group in by_group:
                    groups |= by_group[group]
            matching = by_user.get(user, any_user) & groups
        by_verb, any_verb = self._verbs
        matching &= by_verb.get(request.verb, any_verb)
        if not request.is_resource:
            path = request.path
            return matching & (self._paths[path] if path in self._paths else self._path(path))
        by_namespace, any_namespace = self._namespaces
        matching &= by_namespace.get(request.namespace, any_namespace)
        key = (request.api_group, request.resource, request.subresource)
        unnamed, by_name = self._resources[key] if key in self._resources else self._resource(key)
        return matching & (by_name.get(request.name, unnamed) if by_name else unnamed)

    def _path(self, path: str) -> int:
        return self._paths.remember(path, bits(non_resource_matches(rule, path) for rule in self._rules), len(path))

    def _resource(self, key: tuple[str, str, str]) -> tuple[int, dict[str, int]]:
        """Asks `resource_matches` for a name that no rule gives to this resource; names only add rules to those."""
        group, resource, subresource = key
        named: dict[str, int] = {}
        for index, rule in enumerate(self._rules):
            for entry in rule.resources:
                if entry.resource_names and group_resources_match(entry, *key):
                    for name in entry.resource_names:
                        named[name] = named.get(name, 0) | 1 << index
        other = Request(
            user=None,
            verb="",
            api_group=group,
            resource=resource,
            subresource=subresource,
            name=max(named, key=len, default="") + "*",
        )
        unnamed = bits(resource_matches(rule, other) for rule in self._rules)
        answer = unnamed, {name: mask | unnamed for name, mask in named.items()}
        return self._resources.remember(key, answer, len(group) + len(resource) + len(subresource))


class Evaluators:
    """Several policies asked at once about traffic that repeats itself: a known request costs one look-up for all.

    Not safe for concurrent use from several threads.

    Args:
        policies: with every namespaceSelector resolved (ValueError otherwise).

    """

    __slots__ = ("_combinations", "_evaluators", "_known")

    def __init__(self, policies: Iterable[Policy]) -> None:
        self._evaluators = [Evaluator(policy) for policy in policies]
        self._known: Memo[Request, tuple[Decision, ...]] = Memo()
        # Thousands of requests share some dozens of answers, each as long as there are policies.
        self._combinations: Memo[tuple[Decision, ...], tuple[Decision, ...]] = Memo()

    def decide(self, request: Request) -> tuple[Decision, ...]:
        """Every policy's decision, in the order of the policies."""
        decisions = self._known.get(request)
        if decisions is None:
            decisions = tuple([evaluator.decide(request) for evaluator in self._evaluators])
            decisions = self._combinations.get(decisions) or self._combinations.remember(decisions, decisions, 0)
            self._known.remember(request, decisions, request.length)
        return decisions


def _namespaces(rule: Rule) -> tuple[str, ...]:
    namespace_matches(rule, "")  # refuses an unresolved namespaceSelector
    return rule.namespaces


def _exact(fields: Iterable[tuple[str, ...]]) -> tuple[dict[str, int], int]:
    """For a field of exact values: (value -> rules that accept it, rules that accept any)."""
    named: dict[str, int] = {}
    unrestricted = 0
    for index, values in enumerate(fields):
        if not values:
            unrestricted |= 1 << index
        for value in values:
            named[value] = named.get(value, 0) | 1 << index
    return {value: mask | unrestricted for value, mask in named.items()}, unrestricted
