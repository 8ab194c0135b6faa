"""A policy file gets the verdict, the message and the meaning that an API server gives it.

data/policy-validation.jsonl was recorded from a running kube-apiserver, data/policy-loadings.jsonl from its
LoadPolicyFromBytes; both 1.36.2.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_operator.policy.load import PolicyError, load_policy, policy_of
from audit_operator.policy.model import GroupResources, Level, Policy, Rule, Stage

DATA = Path(__file__).parents[1] / "data"
VERDICTS = [json.loads(line) for line in (DATA / "policy-validation.jsonl").read_bytes().splitlines()]
LOADINGS = [json.loads(line) for line in (DATA / "policy-loadings.jsonl").read_bytes().splitlines()]
HEAD = "apiVersion: audit.k8s.io/v1\nkind: Policy\n"


def rule_object(rule: Rule) -> dict[str, Any]:
    """A rule as the recording has it: without empty fields."""
    fields = {
        "level": str(rule.level),
        "users": list(rule.users),
        "userGroups": list(rule.user_groups),
        "verbs": list(rule.verbs),
        "namespaces": list(rule.namespaces),
        "nonResourceURLs": list(rule.non_resource_urls),
        "omitStages": sorted(rule.omit_stages),
        "resources": [
            {"group": entry.group, "resources": list(entry.resources), "resourceNames": list(entry.resource_names)}
            for entry in rule.resources
        ],
    }
    kept: dict[str, Any] = {name: value for name, value in fields.items() if value}
    if rule.omit_managed_fields is not None:
        kept["omitManagedFields"] = rule.omit_managed_fields
    return kept


@pytest.mark.parametrize("case", VERDICTS, ids=lambda case: case["id"])
def test_verdict_and_message_are_those_of_the_api_server(case: dict[str, Any]) -> None:
    loaded = load_policy(case["policy"])
    assert (loaded.accepted, loaded.error) == (case["accepted"], case.get("error", ""))
    assert (loaded.policy is not None) == loaded.accepted
    assert bool(loaded.faults) != loaded.accepted


@pytest.mark.parametrize("case", LOADINGS, ids=lambda case: case["text"][:30])
def test_a_policy_means_what_the_api_server_would_use(case: dict[str, Any]) -> None:
    loaded = load_policy(case["text"])
    assert (loaded.accepted, loaded.error) == (case["accepted"], case.get("error", ""))
    if loaded.policy is None:
        return
    assert {
        "rules": [rule_object(rule) for rule in loaded.policy.rules],
        "omitStages": sorted(loaded.policy.omit_stages),
        "omitManagedFields": loaded.policy.omit_managed_fields,
    } == {**case["policy"], "rules": list(map(_sorted_stages, case["policy"]["rules"]))}
    assert bool(loaded.problems) == case["strict"]


def _sorted_stages(rule: dict[str, Any]) -> dict[str, Any]:
    return {**rule, "omitStages": sorted(set(rule["omitStages"]))} if "omitStages" in rule else rule


def test_every_field_arrives() -> None:
    loaded = load_policy(
        HEAD
        + """\
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: RequestResponse
  users: [alice]
  userGroups: [ops]
  verbs: [get]
  namespaces: [a, ""]
  resources: [{group: apps, resources: [deployments], resourceNames: [web]}]
  omitStages: [Panic]
  omitManagedFields: false
- level: None
  nonResourceURLs: ["/healthz*"]
"""
    )
    assert loaded.policy == Policy(
        rules=(
            Rule(
                level=Level.REQUEST_RESPONSE,
                users=("alice",),
                user_groups=("ops",),
                verbs=("get",),
                namespaces=("a", ""),
                resources=(GroupResources("apps", ("deployments",), ("web",)),),
                omit_stages=frozenset({Stage.PANIC}),
                omit_managed_fields=False,
                origin="rules[0]",
            ),
            Rule(level=Level.NONE, non_resource_urls=("/healthz*",), origin="rules[1]"),
        ),
        omit_stages=frozenset({Stage.REQUEST_RECEIVED}),
        omit_managed_fields=True,
    )


@pytest.mark.parametrize(("server", "accepted"), [((1, 28), False), ((1, 35), False), ((1, 36), True)])
def test_group_star_depends_on_the_version(server: tuple[int, int], accepted: bool) -> None:
    text = HEAD + 'rules: [{level: None, resources: [{group: "*"}]}]'
    loaded = load_policy(text, server=server)
    assert loaded.accepted == accepted
    if not accepted:
        assert 'rules[0].resources.group: Invalid value: "*": a lowercase RFC 1123 subdomain' in loaded.error


def test_every_fault_has_its_path_and_line() -> None:
    loaded = load_policy(
        HEAD
        + """\
rules:
- level: metadata
  resources:
  - group: apps
  - group: apps/v1
    resourceNames: [web]
- nonResourceURLs: [/a, b]
"""
    )
    assert [(fault.path, fault.line) for fault in loaded.faults] == [
        ("rules[0].level", 4),
        ("rules[0].resources[1].group", 7),
        ("rules[0].resources[1].resourceNames", 8),
        ("rules[1].level", 9),
        ("rules[1].nonResourceURLs[1]", 9),
    ]


def test_all_wrong_types_are_told_with_their_lines() -> None:
    loaded = load_policy(HEAD + "rules:\n- level: None\n  users: alice\n- level: None\n  verbs: [yes]\n")
    assert [(fault.path, fault.line) for fault in loaded.faults] == [("rules[0].users", 5), ("rules[1].verbs[0]", 7)]
    assert loaded.error == loaded.faults[0].message


def test_text_that_cannot_be_read_is_refused_with_its_line() -> None:
    loaded = load_policy(HEAD + "rules: [\n")
    assert not loaded.accepted
    assert loaded.faults[0].line == 4
    assert not load_policy("x" * 20_000_000).accepted
    assert not load_policy(b"\xff\xfe\x00").accepted


def test_ignored_fields_are_named_with_what_was_meant() -> None:
    loaded = load_policy(
        HEAD + "rulez: []\nrules:\n- level: None\n  userNames: [a]\n  resources: [{group: '', resource: [pods]}]\n"
    )
    assert loaded.accepted
    assert [(problem.kind, problem.path, problem.line, problem.suggestion) for problem in loaded.problems] == [
        ("unknown", "rulez", 3, "rules"),
        ("unknown", "rules[0].userNames", 6, "users"),
        ("unknown", "rules[0].resources[0].resource", 7, "resources"),
    ]


def test_doubled_fields_are_named_with_the_line_that_counts() -> None:
    loaded = load_policy(HEAD + "rules:\n- level: None\n  level: Metadata\n")
    assert loaded.policy is not None
    assert loaded.policy.rules[0].level is Level.METADATA
    (problem,) = loaded.problems
    assert (problem.kind, problem.path, problem.line, problem.winner_line) == ("duplicate", "rules[0].level", 4, 5)


def test_a_doubled_list_of_rules_in_json_is_decoded_into_the_first() -> None:
    loaded = load_policy(
        '{"apiVersion":"audit.k8s.io/v1","rules":[{"level":"None","users":["a"]}],"rules":[{"level":"Metadata"}]}'
    )
    assert loaded.policy is not None
    assert loaded.policy.rules[0].users == ("a",)


def test_further_documents_are_named() -> None:
    loaded = load_policy(HEAD + "rules: [{level: None}]\n---\n" + HEAD)
    assert loaded.accepted
    assert loaded.extra_documents == ((5, 1),)


def test_places_are_known_after_loading() -> None:
    loaded = load_policy(HEAD + "rules:\n- level: None\n  verbs:\n  - get\n")
    assert loaded.at(("rules", 0, "verbs", 0)) == (6, 5)
    assert load_policy("[").at(("rules",)) == (0, 0)


def test_a_parsed_document_is_a_policy_too() -> None:
    document = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "None", "users": ["a"]}]}
    assert policy_of(document).rules == (Rule(level=Level.NONE, users=("a",), origin="rules[0]"),)
    with pytest.raises(PolicyError, match=r"rules\[0\]\.level: Unsupported value"):
        policy_of({**document, "rules": [{"level": "Most"}]})
    with pytest.raises(PolicyError, match="must consist of lower case"):
        policy_of({**document, "rules": [{"level": "None", "resources": [{"group": "*"}]}]}, server=(1, 35))
    with pytest.raises(PolicyError, match="cannot be part of a document"):
        policy_of({"rules": object()})


names = st.sampled_from(["a", "b", "*", "", "pods", "pods/*"])
rules = st.builds(
    lambda level, omit, managed, lists: {"level": level, "omitStages": omit, "omitManagedFields": managed, **lists},
    st.sampled_from(["None", "Metadata", "Request", "RequestResponse"]),
    st.lists(st.sampled_from(list(Stage)), max_size=2),
    st.sampled_from([None, True, False]),
    st.fixed_dictionaries(
        {},
        optional={
            "users": st.lists(names, max_size=2),
            "verbs": st.lists(names, max_size=2),
            "resources": st.lists(st.fixed_dictionaries({"group": st.just("apps"), "resources": st.lists(names)})),
        },
    ),
)


@given(st.lists(rules, min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_text_and_parsed_document_mean_the_same(some: list[dict[str, Any]]) -> None:
    document = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": some}
    parsed = policy_of(document)
    for text in (json.dumps(document), "\ufeff" + json.dumps(document), msgspec.yaml.encode(document)):
        assert load_policy(text).policy == parsed


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60), st.text(max_size=30).map(lambda tail: HEAD + tail)))
@settings(max_examples=200, deadline=None)
def test_loading_never_raises(text: str | bytes) -> None:
    loaded = load_policy(text)
    assert loaded.accepted == (loaded.error == "")
