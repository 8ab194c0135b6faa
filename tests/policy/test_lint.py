"""Every finding is made where it is true and only there, with the line and the way out."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_operator.policy import lint_rules
from audit_operator.policy.evaluate import Evaluator
from audit_operator.policy.findings import CODES, Severity, reference
from audit_operator.policy.kinds import KINDS, Kinds
from audit_operator.policy.lint import Finding, lint, lint_text
from audit_operator.policy.model import GroupResources, LabelSelector, Level, Policy, Request, Rule
from audit_operator.policy.presets import NAMES, preset
from audit_operator.policy.witness import MOST_RESOURCES, MOST_RULES

HEAD = "apiVersion: audit.k8s.io/v1\nkind: Policy\n"
SAFE = """\
- level: Metadata
  resources:
  - {group: "", resources: [secrets, configmaps, serviceaccounts/token]}
  - {group: authentication.k8s.io, resources: [tokenreviews]}
  - {group: certificates.k8s.io, resources: [certificatesigningrequests]}
"""


def rules(*lines: str) -> str:
    """A policy of these rules, one a line, then everything else at Metadata."""
    return HEAD + "rules:\n" + "".join(f"- {line}\n" for line in lines) + "- {level: Metadata}\n"


def resources(text: str, level: str = "Request") -> str:
    return rules(f"{{level: {level}, resources: [{text}]}}")


# Per finding: a text that has it, the path it is at, and a text next to it that does not have it.
CASES = [
    ("rejected", HEAD + "rules: [{level: metadata}]", "rules[0].level", rules()),
    ("rejected", HEAD, "rules", rules()),
    ("unknown-field", rules("{level: None, user: [a]}"), "rules[0].user", rules("{level: None, users: [a]}")),
    ("unknown-field", "note: x\n" + rules(), "note", rules()),
    ("duplicate-field", rules("{level: None, users: [a], users: [b]}"), "rules[0].users", rules()),
    (
        "merge-replaced",
        "x: &x {level: None}\n" + rules("{level: Request, users: [a], <<: *x}"),
        "rules[0].level",
        "x: &x {users: [a]}\n" + rules("{level: Request, <<: *x}"),
    ),
    ("extra-document", rules() + "---\n" + rules(), "", rules() + "---\n# nothing\n"),
    ("group-star", resources('{group: "*"}'), "rules[0].resources[0].group", resources("{group: apps}")),
    ("unknown-verb", rules("{level: None, verbs: [GET]}"), "rules[0].verbs[0]", rules("{level: None, verbs: [get]}")),
    ("unknown-verb", rules('{level: None, verbs: ["*"]}'), "rules[0].verbs[0]", rules("{level: None, verbs: [post]}")),
    ("unknown-verb", rules("{level: None, verbs: [impersonate]}"), "rules[0].verbs[0]", rules()),
    (
        "verb-out-of-scope",
        rules("{level: None, verbs: [post], namespaces: [a]}"),
        "rules[0].verbs[0]",
        rules("{level: None, verbs: [post]}"),
    ),
    (
        "verb-out-of-scope",
        rules("{level: None, verbs: [get, create], nonResourceURLs: [/a]}"),
        "rules[0].verbs[1]",
        rules("{level: None, verbs: [get, post], nonResourceURLs: [/a]}"),
    ),
    *(
        ("resource-pattern", resources(f'{{resources: [pods, "{item}"]}}'), "rules[0].resources[0].resources[1]", good)
        for item, good in {
            "pods*": resources('{resources: ["pods/*"]}'),
            "*/*": resources('{resources: ["*"]}'),
            "": resources("{resources: [pods]}"),
            "pods/log/x": resources("{resources: [pods/log]}"),
            "po*s/log": resources('{resources: ["*/log"]}'),
            "pods/": resources("{resources: []}"),
        }.items()
    ),
    (
        "resource-case",
        resources("{group: apps, resources: [Deployments]}"),
        "rules[0].resources[0].resources[0]",
        resources("{group: example.com, resources: [deployments]}"),
    ),
    (
        "resource-name",
        resources("{resources: [pod]}"),
        "rules[0].resources[0].resources[0]",
        resources("{resources: [pods]}"),
    ),
    ("resource-name", resources("{group: apps, resources: [deploy]}"), "rules[0].resources[0].resources[0]", rules()),
    (
        "wrong-group",
        resources("{resources: [deployments]}"),
        "rules[0].resources[0].resources[0]",
        resources("{group: apps, resources: [deployments]}"),
    ),
    (
        "unknown-resource",
        resources("{group: apps, resources: [gadgets]}"),
        "rules[0].resources[0].resources[0]",
        resources("{group: gadgets.example.com, resources: [gadgets]}"),
    ),
    (
        "unknown-subresource",
        resources("{resources: [pods/logs]}"),
        "rules[0].resources[0].resources[0]",
        resources("{resources: [pods/log]}"),
    ),
    (
        "unknown-subresource",
        resources("{resources: [nodes/metrics]}"),
        "rules[0].resources[0].resources[0]",
        resources("{resources: [nodes/proxy]}"),
    ),
    (
        "unknown-subresource",
        resources('{group: apps, resources: ["*/log"]}'),
        "rules[0].resources[0].resources[0]",
        resources('{group: apps, resources: ["*/scale"]}'),
    ),
    (
        "unknown-group",
        resources("{group: extensions, resources: [ingresses]}"),
        "rules[0].resources[0].group",
        resources("{group: networking.k8s.io, resources: [ingresses]}"),
    ),
    ("unknown-group", resources("{group: core}"), "rules[0].resources[0].group", resources("{group: policy}")),
    ("unknown-group", resources("{group: rbac}"), "rules[0].resources[0].group", resources("{group: my.example}")),
    (
        "other-version",
        resources("{group: resource.k8s.io, resources: [resourceclasses]}"),
        "rules[0].resources[0].resources[0]",
        resources("{group: resource.k8s.io, resources: [deviceclasses]}"),
    ),
    (
        "name-not-known",
        rules("{level: None, verbs: [create, get], resources: [{resources: [pods], resourceNames: [a]}]}"),
        "rules[0].resources[0].resourceNames",
        rules("{level: None, verbs: [get], resources: [{resources: [pods], resourceNames: [a]}]}"),
    ),
    (
        "name-not-known",
        rules("{level: None, verbs: [deletecollection], resources: [{resources: [pods], resourceNames: [a]}]}"),
        "rules[0].resources[0].resourceNames",
        rules("{level: None, verbs: [create], resources: [{resources: [serviceaccounts/token], resourceNames: [a]}]}"),
    ),
    (
        "user-wildcard",
        rules('{level: None, users: ["system:serviceaccount:kube-system:*"]}'),
        "rules[0].users[0]",
        rules('{level: None, users: ["system:serviceaccount:kube-system:a"]}'),
    ),
    ("user-wildcard", rules('{level: None, userGroups: ["*"]}'), "rules[0].userGroups[0]", rules()),
    (
        "group-as-user",
        rules('{level: None, users: ["system:nodes"]}'),
        "rules[0].users[0]",
        rules('{level: None, userGroups: ["system:nodes"]}'),
    ),
    (
        "group-as-user",
        rules('{level: None, userGroups: ["system:serviceaccount:a:b"]}'),
        "rules[0].userGroups[0]",
        rules('{level: None, userGroups: ["system:serviceaccounts:a"]}'),
    ),
    (
        "impossible-user",
        rules('{level: None, users: ["system:serviceaccount:a"]}'),
        "rules[0].users[0]",
        rules('{level: None, users: ["system:serviceaccount:a:b", Alice, "oidc:System"]}'),
    ),
    ("impossible-user", rules('{level: None, users: ["system:Kube-Proxy"]}'), "rules[0].users[0]", rules()),
    (
        "impossible-namespace",
        rules('{level: None, namespaces: ["kube-*"]}'),
        "rules[0].namespaces[0]",
        rules('{level: None, namespaces: ["", kube-system]}'),
    ),
    ("impossible-namespace", rules("{level: None, namespaces: [Prod]}"), "rules[0].namespaces[0]", rules()),
    (
        "namespace-objects",
        rules('{level: Request, namespaces: [""], resources: [{resources: [namespaces]}]}'),
        "rules[0].resources[0].resources[0]",
        rules('{level: Request, verbs: [create], namespaces: [""], resources: [{resources: [namespaces]}]}'),
    ),
    (
        "cluster-scoped",
        rules("{level: Request, namespaces: [a], resources: [{resources: [nodes]}]}"),
        "rules[0].resources[0].resources[0]",
        rules('{level: Request, namespaces: [""], resources: [{resources: [nodes]}]}'),
    ),
    (
        "resource-path",
        rules("{level: None, nonResourceURLs: [/api/v1/pods]}"),
        "rules[0].nonResourceURLs[0]",
        rules('{level: None, nonResourceURLs: ["/api*", /api/v1, "/apis/apps/v1", "/openapi/v3/apis/apps/v1"]}'),
    ),
    (
        "url-query",
        rules('{level: None, nonResourceURLs: ["/healthz?verbose"]}'),
        "rules[0].nonResourceURLs[0]",
        rules('{level: None, nonResourceURLs: ["/healthz*"]}'),
    ),
    (
        "unreachable-rule",
        rules("{level: None, users: [a]}", "{level: Request, users: [a], verbs: [get]}"),
        "rules[1]",
        rules("{level: None, users: [a], verbs: [get]}", "{level: None, users: [a]}"),
    ),
    (
        "no-effect",
        rules("{level: Metadata, users: [a]}"),
        "rules[0]",
        rules("{level: Metadata, users: [a], verbs: [get]}", "{level: None, users: [a]}"),
    ),
    ("no-catch-all", HEAD + "rules: [{level: Metadata, users: [a]}]", "rules", HEAD + "rules: [{level: Metadata}]"),
    (
        "no-catch-all",
        HEAD + "rules: [{level: Metadata, namespaces: [a]}]",
        "rules",
        HEAD + "rules: [{level: Metadata, namespaces: [a]}, {level: None}]",
    ),
    ("records-nothing", HEAD + "rules: [{level: None}]", "rules", rules()),
    (
        "subresources-include",
        rules(
            '{level: None, resources: [{resources: ["pods/*"]}]}', "{level: Request, resources: [{resources: [pods]}]}"
        ),
        "rules[0].resources[0].resources[0]",
        rules(
            "{level: None, resources: [{resources: [pods/status]}]}",
            "{level: Request, resources: [{resources: [pods]}]}",
        ),
    ),
    (
        "repeated-value",
        rules("{level: None, users: [a, b, a]}"),
        "rules[0].users[2]",
        rules("{level: None, users: [a]}"),
    ),
    (
        "repeated-value",
        resources('{resources: ["*", pods]}'),
        "rules[0].resources[0].resources[1]",
        resources('{resources: ["pods/*", pods]}'),
    ),
    *(
        (name, HEAD + f"rules:\n- level: {level}\n", "rules[0]", HEAD + "rules:\n" + SAFE + f"- level: {level}\n")
        for name, level in {
            "secret-bodies": "Request",
            "configmap-bodies": "RequestResponse",
            "tokenreview-bodies": "Request",
            "token-bodies": "RequestResponse",
            "csr-bodies": "Request",
        }.items()
    ),
    (
        "cis-not-recorded",
        rules("{level: None, verbs: [get]}"),
        "rules[0]",
        rules('{level: None, userGroups: ["system:nodes"], verbs: [get]}'),
    ),
    ("cis-not-recorded", HEAD + "rules: [{level: Metadata, users: [a]}]", "rules", HEAD + "rules: [{level: Metadata}]"),
    (
        "exec-by-get",
        rules("{level: Request, verbs: [create], resources: [{resources: [pods/exec]}]}"),
        "rules[0].resources[0]",
        rules("{level: Request, verbs: [create, get], resources: [{resources: [pods/exec]}]}"),
    ),
    ("blocking-strict-inert", "omitStages: [RequestReceived]\n" + rules(), "omitStages", rules()),
    (
        "all-stages-omitted",
        rules("{level: Request, omitStages: [RequestReceived, ResponseStarted, ResponseComplete, Panic]}"),
        "rules[0].omitStages",
        rules("{level: Request, omitStages: [RequestReceived, ResponseStarted]}"),
    ),
    (
        "outcome-omitted",
        "omitStages: [ResponseComplete]\n" + rules(),
        "omitStages",
        "omitStages: [RequestReceived]\n" + rules(),
    ),
    (
        "option-without-effect",
        rules("{level: None, users: [a], omitStages: [RequestReceived]}"),
        "rules[0].omitStages",
        rules("{level: Request, users: [a], omitStages: [RequestReceived]}"),
    ),
    (
        "option-without-effect",
        rules("{level: Metadata, users: [a], omitManagedFields: true}"),
        "rules[0].omitManagedFields",
        rules("{level: Request, users: [a], omitManagedFields: true}"),
    ),
]


def findings(text: str) -> list[Finding]:
    return lint_text(text)[1]


def named(name: str, text: str) -> list[Finding]:
    return [finding for finding in findings(text) if finding.name == name]


@pytest.mark.parametrize(("name", "bad", "path", "good"), CASES, ids=lambda value: str(value)[-40:])
def test_a_finding_is_made_where_it_is_true_and_not_next_to_it(name: str, bad: str, path: str, good: str) -> None:
    found = named(name, bad)
    assert path in [finding.path for finding in found], findings(bad)
    for finding in found:
        assert finding.code == CODES[name].code
        assert finding.message
        assert finding.fix
        assert finding.line > 0
    assert named(name, good) == []


def test_every_code_has_cases() -> None:
    # So many rules stand in no table: see "many rules" below.
    assert {name for name, *_ in CASES} == set(CODES) - {"not-compared"}


def test_codes_are_unique_and_the_page_of_findings_is_theirs() -> None:
    assert len({code.code for code in CODES.values()}) == len(CODES)
    page = Path(__file__).parents[2] / "docs/lint.md"
    assert page.read_text(encoding="utf-8") == reference(), "write docs/lint.md with findings.reference()"


def test_findings_name_the_line() -> None:
    text = HEAD + "rules:\n- level: None\n  verbs:\n  - get\n  - GET\n- level: Metadata\n"
    assert [(finding.line, finding.column) for finding in named("unknown-verb", text)] == [(7, 5)]


@pytest.mark.parametrize("name", NAMES)
def test_presets_have_nothing_to_warn_of(name: str) -> None:
    worth = [finding for finding in lint(preset(name)) if finding.severity is not Severity.INFO]
    if name == "Minimal":  # records changes only, and says so
        worth = [finding for finding in worth if finding.name not in {"no-catch-all", "cis-not-recorded"}]
    assert worth == []


@pytest.mark.parametrize(
    ("message", "fix"),
    [
        ("{level: metadata}", "write Metadata"),
        ("{level: Minimal}", "write Metadata: Minimal exists only in AuditPolicy resources"),
        ("{users: [a]}", "add level: None, Metadata, Request, RequestResponse"),
        ("{level: None, verbs: [on]}", "put it in quotes"),
        ("{level: None, users: alice}", "write a list, such as [a, b]"),
        ("{level: None, omitStages: [requestReceived]}", "write RequestReceived"),
        ("{level: None, resources: [{group: apps/v1}]}", "write the group without the version: apps"),
        ("{level: None, resources: [{group: Apps}]}", "write apps"),
        ("{level: None, resources: [{resourceNames: [a]}]}", "add resources"),
        ("{level: None, resources: [pods]}", "write {group: ..., resources: [...]}"),
        ("{level: None, nonResourceURLs: [healthz]}", "begin it with /"),
        ("{level: None, nonResourceURLs: ['/a*b']}", "keep one * at the end"),
        ("{level: None, nonResourceURLs: [/a], namespaces: [b]}", "make two rules"),
    ],
)
def test_a_refusal_comes_with_the_way_out(message: str, fix: str) -> None:
    assert fix in named("rejected", rules(message))[0].fix


def test_a_refusal_names_its_field_once() -> None:
    (found,) = named("rejected", rules("{level: None, resources: [{group: Apps}]}"))
    assert found.path == "rules[0].resources[0].group"
    assert found.message.startswith('Invalid value: "Apps": ')


def test_group_star_needs_no_word_where_the_version_is_known() -> None:
    text = resources('{group: "*"}')
    assert [finding.name for finding in lint_text(text, server=(1, 36))[1] if finding.name == "group-star"] == []
    loaded, found = lint_text(text, server=(1, 35))
    assert not loaded.accepted
    assert "only from Kubernetes 1.36 on" in found[0].fix


def test_an_unreachable_rule_is_told_with_what_covers_it() -> None:
    (alone,) = named(
        "unreachable-rule",
        rules("{level: None, verbs: [get]}", "{level: None, users: [b]}", "{level: Request, users: [b]}"),
    )
    assert "rules[1] (line 5) matches every request" in alone.message
    (together,) = named(
        "unreachable-rule",
        rules(
            "{level: None, users: [a]}",
            "{level: None, users: [b]}",
            "{level: None, users: [c]}",
            "{level: Request, users: [a, c], verbs: [get]}",
        ),
    )
    assert "rules[0] (line 4) and rules[2] (line 6) together match" in together.message


def test_a_trailing_rule_that_says_nothing_else_is_recorded_is_welcome() -> None:
    text = HEAD + "rules:\n- {level: Metadata, resources: [{group: apps}]}\n- {level: None}\n"
    assert not {"no-effect", "no-catch-all"} & {finding.name for finding in findings(text)}


def test_blocking_strict_is_a_warning_only_where_it_is_used() -> None:
    text = "omitStages: [RequestReceived]\n" + rules()
    severities = {}
    for modes in (None, ["batch"], ["batch", "blocking-strict"]):
        found = [finding for finding in lint_text(text, modes=modes)[1] if finding.name == "blocking-strict-inert"]
        severities[str(modes)] = [finding.severity for finding in found]
    assert list(severities.values()) == [[Severity.INFO], [], [Severity.WARNING]]


def test_discovery_of_a_cluster_knows_every_group() -> None:
    text = resources("{group: example.com, resources: [widgets]}")
    assert named("unknown-group", text) == []
    cluster = Kinds(KINDS, complete=True)
    assert [finding.path for finding in lint_text(text, kinds=cluster)[1] if finding.name == "unknown-group"] == [
        "rules[0].resources[0].group"
    ]


def test_an_auditpolicy_is_judged_by_its_own_rules() -> None:
    """Bodies are redacted, other policies record the rest, and what a preset adds is not the author's."""
    policy = Policy(rules=(Rule(level=Level.REQUEST_RESPONSE, users=("a",)), Rule(level=Level.NONE, users=("a",))))
    assert {finding.name for finding in lint(policy)} >= {"secret-bodies", "unreachable-rule", "no-catch-all"}
    assert lint(policy, written=1, whole=False, redacted=True) == []


def test_rules_with_a_namespace_selector_never_stand_in_the_way() -> None:
    selecting = Rule(level=Level.NONE, namespace_selector=LabelSelector(match_labels=(("a", "b"),)))
    policy = Policy(rules=(selecting, Rule(level=Level.REQUEST, namespaces=("x",)), Rule(level=Level.METADATA)))
    assert lint(policy, whole=False, redacted=True) == []
    below = Policy(rules=(Rule(level=Level.METADATA), selecting))
    assert [finding.name for finding in lint(below, whole=False)] == ["unreachable-rule"]


# -- what is claimed of rules is true ----------------------------------------------------------------------------------

USERS, VERBS, NAMESPACES = ("u", "v"), ("get", "create"), ("a", "b")
some_rules = st.builds(
    Rule,
    level=st.sampled_from([Level.NONE, Level.METADATA, Level.REQUEST]),
    users=st.lists(st.sampled_from(USERS), max_size=2, unique=True).map(tuple),
    verbs=st.lists(st.sampled_from(VERBS), max_size=2, unique=True).map(tuple),
    namespaces=st.lists(st.sampled_from(NAMESPACES), max_size=2, unique=True).map(tuple),
    resources=st.sampled_from([(), (GroupResources("apps", ("deployments",)),), (GroupResources("apps"),)]),
)
requests = [
    Request(user=user, verb=verb, namespace=namespace, api_group=group, resource=resource, is_resource=bool(resource))
    for user in (*USERS, "w")
    for verb in (*VERBS, "list")
    for namespace in (*NAMESPACES, "c")
    for group, resource in (("apps", "deployments"), ("apps", "x"), ("y", "z"), ("", ""))
]


@given(st.lists(some_rules, min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_unreachable_rules_and_rules_without_effect_are_those_that_no_request_needs(some: list[Rule]) -> None:
    policy = Policy(rules=tuple(some))
    found = {(finding.name, finding.path) for finding in lint(policy, redacted=True)}
    decide = Evaluator(policy).decide
    before = [decide(request) for request in requests]
    for index in range(len(some)):
        decides = any(decision.rule == index for decision in before)
        assert (("unreachable-rule", f"rules[{index}]") in found) != decides
        if not decides:
            continue
        without = Evaluator(Policy(rules=(*some[:index], *some[index + 1 :]))).decide
        same = all(without(request).level == decision.level for request, decision in zip(requests, before, strict=True))
        last_word = index == len(some) - 1 and some[index] == Rule(level=Level.NONE)
        assert (("no-effect", f"rules[{index}]") in found) == (same and not last_word)


# --- many rules ------------------------------------------------------------------------------------------------------


def not_compared(policy: Policy) -> list[Finding]:
    return [finding for finding in lint(policy) if finding.name == "not-compared"]


def test_more_rules_than_are_compared_are_not_passed_over_in_silence() -> None:
    rule = Rule(level=Level.NONE, users=("a",))
    assert not_compared(Policy(rules=(rule,) * 2)) == []
    (finding,) = not_compared(Policy(rules=(rule,) * (MOST_RULES + 1)))
    assert (finding.code, finding.severity, finding.path) == ("AP205", Severity.WARNING, "rules")
    assert f"{MOST_RULES:,}" in reference()
    names = tuple(map(str, range(MOST_RESOURCES + 1)))
    assert (
        len(not_compared(Policy(rules=(Rule(level=Level.NONE, resources=(GroupResources("", ("pods",), names),)),))))
        == 1
    )


def test_a_comparison_that_is_given_up_is_not_passed_over_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = preset("Forensic")
    assert not_compared(policy) == []
    monkeypatch.setattr(lint_rules, "_BUDGET", 50)
    assert len(not_compared(policy)) == 1
    claimed = {finding.name for finding in lint(policy)} - {"not-compared"}
    monkeypatch.undo()
    assert claimed <= {finding.name for finding in lint(policy)}, "what was not found out is not claimed"


def test_a_rule_of_a_preset_is_named_by_where_it_comes_from() -> None:
    own = Rule(level=Level.METADATA, resources=(GroupResources("", ("pods/*",)),), origin="spec.rules[0]")
    policy = Policy(rules=(own, *preset("CIS").rules))
    (finding,) = (each for each in lint(policy, written=1, whole=False) if each.name == "subresources-include")
    assert finding.message == "pods/* matches pods itself too, before preset CIS rules[3] can"
    assert finding.fix == "name the subresources, or write a rule for pods above this one"
