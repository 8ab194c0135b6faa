"""What rules mean together: which never decide, what they record that should stay out, and what they drop.

Every claim is proven by looking for a request (``witness``) that says otherwise; where the search gives up, nothing is
claimed. Rules with a namespaceSelector count as matching every namespace when they are judged and none when they stand
in the way of others, because labels come and go.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from typing import Final

import msgspec

from audit_operator.policy.bitsets import positions
from audit_operator.policy.evaluate import bits
from audit_operator.policy.findings import Finding, Place, Severity
from audit_operator.policy.kinds import READS, WRITES
from audit_operator.policy.model import STAGES, GroupResources, Level, Policy, Request, Rule, Stage
from audit_operator.policy.region import Region, RegionIndex
from audit_operator.policy.witness import Finder, Unknown

ANYTHING = Rule(level=Level.NONE)
"""A rule that matches every request."""


_BUDGET: Final = 1_500_000
"""Combinations tried for all findings on one policy: some seconds."""


class Rules:
    """The rules of a policy, asked who decides what. Sets of rules are the bits of an integer."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.rules = policy.rules
        self.every = (1 << len(policy.rules)) - 1
        self.broad = tuple(_without_selector(rule) for rule in policy.rules)
        """The rules as they match when every namespace is selected."""
        self.outcomes = [_outcome(policy, rule) for rule in policy.rules]
        """What happens to a request that the rule decides."""
        self._regions = [Region.of(rule) for rule in self.broad]
        # A rule with a selector stands in nobody's way, so it is a gap there; but it may meet others.
        self._finder = Finder(policy.rules, budget=_BUDGET)
        self._meeting = RegionIndex(self._regions) if self.broad != policy.rules else None
        self._alike: dict[Outcome, int] = {}
        for outcome in dict.fromkeys(self.outcomes):
            self._alike[outcome] = bits(other == outcome for other in self.outcomes)

    @property
    def given_up(self) -> bool:
        """Whether comparing took too long, and what was not found out by then counts as unknown."""
        return self._finder.exhausted

    def decided_by(self, index: int, *also: Rule) -> Request | None:
        """A request that rule ``index`` decides and that every rule of ``also`` matches; None if there is none."""
        return self.example(self.broad[index], *also, avoid=(1 << index) - 1)

    def example(self, *must: Rule, avoid: int = 0) -> Request | None:
        """A request that all ``must`` match and none of the rules ``avoid`` does; None if there is none.

        Where the search gives up, UNKNOWN: callers take it as "there may be some".
        """
        try:
            return self._finder.find(must, avoid)
        except Unknown:
            return UNKNOWN

    def possible(self, *must: Rule, avoid: int = 0) -> bool:
        """Whether there may be such a request."""
        try:
            return self._finder.find(must, avoid, familiar=False) is not None
        except Unknown:
            return True

    def standing(self, index: int) -> int:
        """The rules that may match something that rule ``index`` could, itself among them."""
        return self._finder.relations(self._regions[index])[0]

    def covering(self, index: int) -> int:
        """The rules that match everything that rule ``index`` could."""
        return self._finder.relations(self._regions[index])[1]

    def differing(self, index: int) -> Iterator[int]:
        """The rules below ``index`` that may match a request of it and would treat it differently."""
        meets = (self._meeting or self._finder).relations(self._regions[index])[0]
        return positions(meets & ~self._alike[self.outcomes[index]] & -(2 << index))


def _outcome(policy: Policy, rule: Rule) -> "Outcome":
    omitted = policy.omit_stages | rule.omit_stages
    if rule.level is Level.NONE or len(omitted) == len(STAGES):
        return NOTHING
    managed = policy.omit_managed_fields if rule.omit_managed_fields is None else rule.omit_managed_fields
    return Outcome(rule.level, omitted, managed and rule.level >= Level.REQUEST)


class Outcome(msgspec.Struct, frozen=True):
    """How a request is recorded; equal outcomes give equal events."""

    level: Level
    omit_stages: frozenset[Stage] = frozenset()
    omit_managed_fields: bool = False


NOTHING = Outcome(Level.NONE)
UNKNOWN = Request(user=None, verb="")
"""Stands for a request that the search could not rule out."""


def _without_selector(rule: Rule) -> Rule:
    """A rule that matches at least what ``rule`` does, whatever labels namespaces have."""
    if rule.namespace_selector is None:
        return rule
    resources = rule.resources or (GroupResources(group="*"),)
    return msgspec.structs.replace(rule, namespace_selector=None, resources=resources)


def incomplete(rules: int, place: Place) -> Finding:
    """What is said where not all rules could be compared: silence would pass for "nothing found"."""
    message = (
        f"{rules:,} rules are too many, or too tangled, to compare all of them with one another: rules that never "
        "decide, credentials that are recorded and what is not recorded may go unnoticed"
    )
    fix = "say the same in fewer rules: one can list many users, namespaces and resources"
    return place.at("rules").finding("not-compared", message, fix)


# -- rules that never decide, or might as well not -------------------------------------------------------------------


def order_findings(rules: Rules, place: Place, written: int, *, whole: bool) -> Iterator[Finding]:
    """Unreachable rules, rules without effect, and what falls through; only the first ``written`` rules are judged."""
    for index in range(written):
        at = place.at("rules", index)
        if not rules.possible(rules.broad[index], avoid=(1 << index) - 1):
            if rules.possible(rules.broad[index]):
                yield _unreachable(rules, index, place, written)
        elif not _is_last_word(rules, index) and _has_no_effect(rules, index):
            yield at.finding("no-effect", "without this rule, every request would be treated alike", "remove it")
    if not whole:
        return
    if all(outcome == NOTHING for outcome in rules.outcomes):
        yield place.at("rules").finding(
            "records-nothing", "no rule records anything", "add rules of level Metadata or more, or turn auditing off"
        )
    elif (request := rules.example(ANYTHING, avoid=rules.every)) is not None:
        yield place.at("rules").finding(
            "no-catch-all",
            f"requests that no rule matches are not recorded, such as {describe(request)}",
            "end with a rule without conditions: - level: Metadata, or - level: None to show that it is meant",
        )


def subresource_findings(rules: Rules, place: Place, written: int) -> Iterator[Finding]:
    """``pods/*`` above a rule for ``pods``: it took the bare resource too, which the author did not expect."""
    naming: dict[tuple[str, str], list[int]] = {}
    for index, rule in enumerate(rules.rules):
        for entry in rule.resources:
            for item in entry.resources:
                naming.setdefault((entry.group, item), []).append(index)
    for index in range(written):
        for position, entry in enumerate(rules.rules[index].resources):
            for number, item in enumerate(entry.resources):
                name = item.removesuffix("/*")
                if name in {item, "*"} or name in entry.resources:
                    continue
                named = naming.get((entry.group, name), [])
                later = bisect_right(named, index)
                if later < len(named):
                    other = _rule_name(rules, place, named[later], written)
                    message = f"{item} matches {name} itself too, before {other} can"
                    fix = f"name the subresources, or move {other} above this rule"
                    if named[later] >= written:
                        fix = f"name the subresources, or write a rule for {name} above this one"
                    at = place.at("rules", index, "resources", position, "resources", number)
                    yield at.finding("subresources-include", message, fix)


def _is_last_word(rules: Rules, index: int) -> bool:
    """Whether the rule ends the policy with "and nothing else", which says what would happen anyway, but on purpose."""
    rule = rules.rules[index]
    return index == len(rules.rules) - 1 and rule.level is Level.NONE and Region.of(rule) == Region()


def _unreachable(rules: Rules, index: int, place: Place, written: int) -> Finding:
    at = place.at("rules", index)
    covering = _covering(rules, index)
    names = _joined([_rule_name(rules, place, number, written) for number in covering])
    one = len(covering) == 1
    message = f"never decides: {names} {'matches' if one else 'together match'} every request that it could match"
    return at.finding(
        "unreachable-rule", message, f"move it above {_rule_name(rules, place, covering[0], written)}, or remove it"
    )


_NAMED: Final = 5
"""Rules that one finding names."""


def _joined(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (", ".join(names[:_NAMED]) if more else " and ".join(names)) + more


def _rule_name(rules: Rules, place: Place, index: int, written: int) -> str:
    """The author's rule by its place in the text; a preset's, which stands in no text, by where it comes from."""
    if index >= written:
        return rules.rules[index].origin
    found = place.at("rules", index).finding("unreachable-rule", "", "")
    return f"{found.path} (line {found.line})" if found.line else found.path


def _covering(rules: Rules, index: int) -> list[int]:
    """The first rule that covers it alone; otherwise as few as it takes."""
    above = (1 << index) - 1
    if alone := rules.covering(index) & above:
        return [next(positions(alone))]
    needed = rules.standing(index) & above
    for number in positions(needed):
        fewer = needed & ~(1 << number)
        if not rules.possible(rules.broad[index], avoid=fewer):
            needed = fewer
    return list(positions(needed))


def _has_no_effect(rules: Rules, index: int) -> bool:
    """Whether every request that the rule decides would come to the same outcome below it."""
    mine = rules.outcomes[index]
    for other in rules.differing(index):
        before = ((1 << other) - 1) & ~(1 << index)
        if rules.possible(rules.broad[index], rules.broad[other], avoid=before):
            return False
    return mine == NOTHING or not rules.possible(rules.broad[index], avoid=rules.every & ~(1 << index))


# -- bodies that hold credentials ------------------------------------------------------------------------------------


class Sensitive(msgspec.Struct, frozen=True):
    """Objects that must not be in a log with their bodies.

    ``sent``: verbs whose request body gives it away (level Request); ``answered``: whose response does.
    """

    name: str
    what: str
    entry: GroupResources
    sent: tuple[str, ...]
    answered: tuple[str, ...]
    namespaces: tuple[str, ...] = ()


_IN_NO_NAMESPACE = ("",)
_CHANGES = ("create", "update", "patch")
_ANSWERED = ("get", "list", *_CHANGES)
SENSITIVE = (
    Sensitive("secret-bodies", "Secrets", GroupResources("", ("secrets",)), _CHANGES, _ANSWERED),
    Sensitive("configmap-bodies", "ConfigMaps", GroupResources("", ("configmaps",)), _CHANGES, _ANSWERED),
    Sensitive(
        "tokenreview-bodies",
        "TokenReviews",
        GroupResources("authentication.k8s.io", ("tokenreviews",)),
        ("create",),
        ("create",),
        _IN_NO_NAMESPACE,
    ),
    Sensitive("token-bodies", "serviceaccounts/token", GroupResources("", ("serviceaccounts/token",)), (), ("create",)),
    Sensitive(
        "csr-bodies",
        "CertificateSigningRequests",
        GroupResources("certificates.k8s.io", ("certificatesigningrequests",)),
        _CHANGES,
        _ANSWERED,
        _IN_NO_NAMESPACE,
    ),
)


def body_findings(rules: Rules, place: Place, written: int) -> Iterator[Finding]:
    """Which rules write bodies to the log that must not be there, one finding per kind: the first rule that does."""
    for sensitive in SENSITIVE:
        for index in range(written):
            level = rules.outcomes[index].level
            if level < Level.REQUEST:
                continue
            verbs = sensitive.sent if level is Level.REQUEST else sensitive.answered
            if not verbs:
                continue
            probe = Rule(level=Level.NONE, verbs=verbs, resources=(sensitive.entry,), namespaces=sensitive.namespaces)
            request = rules.decided_by(index, probe)
            if request is None or request is UNKNOWN:
                continue
            (item,) = sensitive.entry.resources
            group = sensitive.entry.group or '""'
            yield place.at("rules", index).finding(
                sensitive.name,
                f"level {level} records bodies of {sensitive.what}, such as {describe(request)}",
                f"put above it: - level: Metadata with resources group: {group}, resources: [{item}]",
            )
            break


# -- what the CIS benchmark asks for ---------------------------------------------------------------------------------

_CIS_ITEMS = (
    ("access to Secrets", GroupResources("", ("secrets",)), (*READS, *WRITES)),
    ("access to ConfigMaps", GroupResources("", ("configmaps",)), (*READS, *WRITES)),
    ("TokenReviews", GroupResources("authentication.k8s.io", ("tokenreviews",)), ("create",)),
    ("changes of Pods", GroupResources("", ("pods",)), WRITES),
    ("changes of Deployments", GroupResources("apps", ("deployments",)), WRITES),
    ("pods/exec", GroupResources("", ("pods/exec",)), ("create", "get")),
    ("pods/portforward", GroupResources("", ("pods/portforward",)), ("create", "get")),
    ("pods/proxy", GroupResources("", ("pods/proxy",)), ("create", "get", "update", "patch", "delete")),
    ("services/proxy", GroupResources("", ("services/proxy",)), ("create", "get", "update", "patch", "delete")),
)
"""CIS Kubernetes Benchmark 3.2.2: what at least the metadata of must be recorded."""

_CIS_FIX = "put rules of level Metadata for it first; preset CIS has them"


def cis_findings(rules: Rules, place: Place) -> Iterator[Finding]:
    """Items of the benchmark that are not recorded, for anybody but components of the cluster, whose noise may go."""
    for index in range(len(rules.rules)):
        if rules.outcomes[index] != NOTHING or _only_components(rules.rules[index]):
            continue
        dropped = [
            item
            for item, entry, verbs in _CIS_ITEMS
            if _real(rules.decided_by(index, Rule(level=Level.NONE, verbs=verbs, resources=(entry,))))
        ]
        if dropped:
            message = f"drops what CIS benchmark 3.2.2 asks for: {', '.join(dropped)}"
            yield place.at("rules", index).finding("cis-not-recorded", message, _CIS_FIX)
    missed = [
        item
        for item, entry, verbs in _CIS_ITEMS
        if _real(rules.example(Rule(level=Level.NONE, verbs=verbs, resources=(entry,)), avoid=rules.every))
    ]
    if missed:
        message = f"no rule is about what CIS benchmark 3.2.2 asks for: {', '.join(missed)}"
        yield place.at("rules").finding("cis-not-recorded", message, "add rules of level Metadata; preset CIS has them")


def _real(request: Request | None) -> bool:
    return request is not None and request is not UNKNOWN


_COMPONENT_GROUPS = frozenset({"system:nodes", "system:serviceaccounts:kube-system"})


def _only_components(rule: Rule) -> bool:
    """Whether only components of the cluster can be meant: no person, no workload."""
    if rule.user_groups and set(rule.user_groups) <= _COMPONENT_GROUPS:
        return True
    return bool(rule.users) and all(_is_component(user) for user in rule.users)


def _is_component(user: str) -> bool:
    if user.startswith("system:serviceaccount:"):
        return user.startswith("system:serviceaccount:kube-system:")
    return user.startswith("system:") and user != "system:anonymous"


# -- stages and options ----------------------------------------------------------------------------------------------

_BLOCKING_STRICT = "blocking-strict"


def stage_findings(policy: Policy, place: Place, written: int, modes: Collection[str] | None) -> Iterator[Finding]:
    """Findings on omitStages and omitManagedFields. ``modes``: of the API servers' backends, None if nobody said."""
    yield from _omitted(policy.omit_stages, place.at("omitStages"))
    for index, rule in enumerate(policy.rules[:written]):
        at = place.at("rules", index)
        if rule.level is not Level.NONE and policy.omit_stages < (omitted := policy.omit_stages | rule.omit_stages):
            yield from _omitted(omitted, at.at("omitStages"))
        yield from _idle_options(rule, policy, at)
    recording = [rule for rule in policy.rules if rule.level is not Level.NONE]
    inert = recording and all(Stage.REQUEST_RECEIVED in policy.omit_stages | rule.omit_stages for rule in recording)
    if inert and (modes is None or _BLOCKING_STRICT in modes):
        known = modes is not None
        yield place.at("omitStages").finding(
            "blocking-strict-inert",
            "mode blocking-strict refuses requests that cannot be recorded at RequestReceived, which is omitted: with "
            "this policy it is no stricter than blocking",
            "record RequestReceived, or use mode blocking"
            + ("" if known else "; in other modes there is nothing to do"),
            severity=None if known else Severity.INFO,
        )


def _omitted(omitted: frozenset[Stage], at: Place) -> Iterator[Finding]:
    if len(omitted) == len(STAGES):
        fix = "keep ResponseComplete, or write level: None if nothing is meant to be recorded"
        yield at.finding("all-stages-omitted", "every stage is omitted, so nothing is recorded", fix)
    elif Stage.RESPONSE_COMPLETE in omitted:
        message = "ResponseComplete is omitted: of most requests nobody learns how they ended, nor their bodies"
        yield at.finding("outcome-omitted", message, "keep ResponseComplete and omit RequestReceived instead")


def _idle_options(rule: Rule, policy: Policy, at: Place) -> Iterator[Finding]:
    if rule.omit_stages and rule.level is Level.NONE:
        message = "nothing is recorded at level None, so there are no stages to omit"
        yield at.at("omitStages").finding("option-without-effect", message, "remove omitStages")
    elif repeated := sorted(rule.omit_stages & policy.omit_stages):
        message = (
            f"the whole policy omits {', '.join(repeated)} already; stages can only be omitted, never brought back"
        )
        yield at.at("omitStages").finding("option-without-effect", message, f"remove {', '.join(repeated)}")
    if rule.omit_managed_fields is None:
        return
    where = at.at("omitManagedFields")
    if rule.level < Level.REQUEST:
        message = f"no bodies are recorded at level {rule.level}, so there are no managedFields"
        yield where.finding("option-without-effect", message, "remove omitManagedFields")
    elif rule.omit_managed_fields == policy.omit_managed_fields:
        yield where.finding("option-without-effect", "repeats what the whole policy says", "remove omitManagedFields")


# -- words -----------------------------------------------------------------------------------------------------------


def describe(request: Request) -> str:
    """A request in a few words."""
    if request is UNKNOWN:
        return "some that could not be named"
    who = f" by {request.user}" if request.user else ""
    if not request.is_resource:
        return f"{request.verb} {request.path}{who}"
    what = request.resource + (f"/{request.subresource}" if request.subresource else "")
    group = f".{request.api_group}" if request.api_group else ""
    where = f" in namespace {request.namespace}" if request.namespace else ""
    return f"{request.verb} {what}{group}{where}{who}"
