"""What examples/ shows is true: it is valid, it says what it does, and nothing in it is a credential."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from audit_operator.cli.policies import Setting, load_setup
from audit_operator.cli.policytests import read_tests, run_files
from audit_operator.policy.effective import Effective, effective, resolve
from audit_operator.policy.evaluate import Evaluator
from audit_operator.policy.events import split
from audit_operator.policy.lint import Severity, lint_text
from audit_operator.policy.model import Level
from audit_operator.policy.request import request_of
from audit_operator.policy.union import union
from audit_operator.resources.auditpolicy import AuditPolicy
from audit_operator.resources.auditsink import AuditSink
from audit_operator.resources.load import load_resource

EXAMPLES = Path(__file__).parents[2] / "examples"
MANIFESTS = sorted([*EXAMPLES.glob("platform/*.yaml"), *EXAMPLES.glob("tenants/*/*.yaml")])
ROOT_NAMESPACE = "audit-system"


def documents(path: Path) -> Iterator[Any]:
    yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


RESOURCES = [load_resource(document) for path in MANIFESTS for document in documents(path)]
POLICIES = {
    f"{item.metadata.namespace}/{item.metadata.name}": item for item in RESOURCES if isinstance(item, AuditPolicy)
}
SINKS = {(item.metadata.namespace, item.metadata.name): item for item in RESOURCES if isinstance(item, AuditSink)}
NAMESPACES = {
    document["metadata"]["name"]: document["metadata"].get("labels", {})
    for document in documents(EXAMPLES / "namespaces.yaml")
}
EFFECTIVE: dict[str, Effective] = {
    name: effective(policy, root_namespace=ROOT_NAMESPACE) for name, policy in POLICIES.items()
}
EVALUATORS = {name: Evaluator(resolve(item.policy, NAMESPACES)) for name, item in EFFECTIVE.items()}
EVENTS = [
    msgspec.json.decode(event)
    for line in gzip.decompress((EXAMPLES / "traffic/sample.jsonl.gz").read_bytes()).splitlines()
    for event in split(line)
]


def test_a_platform_team_and_two_tenants_use_several_sinks() -> None:
    assert {policy.metadata.namespace for policy in POLICIES.values()} == {ROOT_NAMESPACE, "team-a", "team-b"}
    assert {sink.spec.type for sink in SINKS.values()} == {"elasticsearch", "objectStore", "stdout", "loki", "http"}


def test_every_namespace_that_is_used_is_described() -> None:
    assert {item.metadata.namespace for item in RESOURCES} - {""} <= set(NAMESPACES)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=list(POLICIES))
def test_every_policy_delivers_to_sinks_that_exist_and_allow_it(policy: AuditPolicy) -> None:
    assert policy.spec.sinks
    for reference in policy.spec.sinks:
        namespace = reference.namespace or policy.metadata.namespace
        allowed = SINKS[namespace, reference.name].spec.allowed_namespaces
        if namespace != policy.metadata.namespace:
            assert allowed.selector is not None
            assert allowed.selector.match_labels.items() <= NAMESPACES[policy.metadata.namespace].items()


@pytest.mark.parametrize("path", [path for path in MANIFESTS if "kind: AuditSink" in path.read_text(encoding="utf-8")])
def test_credentials_are_secrets_that_a_comment_says_how_to_create(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for document in documents(path):
        for name in _secrets(document["spec"]):
            created = f"#   kubectl -n {document['metadata']['namespace']} create secret generic {name} "
            assert created in text


def _secrets(value: Any) -> Iterator[str]:
    """Names in Secret key references: objects of exactly a name and a key."""
    if isinstance(value, dict):
        if value.keys() == {"name", "key"}:
            yield value["name"]
        for item in value.values():
            yield from _secrets(item)


def test_no_file_holds_a_secret() -> None:
    for path in EXAMPLES.rglob("*.yaml"):
        assert all(document["kind"] != "Secret" for document in documents(path) if "kind" in document)
        assert not re.search(r"(?i)(password|token|key):[ ]*[\"']?[a-z0-9+/=]{12,}", path.read_text(encoding="utf-8"))


# --- traffic ---------------------------------------------------------------------------------------------------------


def test_the_traffic_sample_is_small_and_holds_no_usable_token() -> None:
    packed = (EXAMPLES / "traffic/sample.jsonl.gz").read_bytes()
    assert len(packed) <= 150_000
    assert not re.search(rb"eyJ[\w-]+\.eyJ[\w-]+\.|PRIVATE KEY", gzip.decompress(packed))


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_has_something_to_say_about_the_traffic_sample(name: str) -> None:
    levels = {EVALUATORS[name].decide(request_of(event)).level for event in EVENTS}
    assert levels > {Level.NONE}, "some events it wants, some it does not"


def test_tenants_see_their_own_namespace_only() -> None:
    for name, item in EFFECTIVE.items():
        seen = {
            request.namespace
            for request in map(request_of, EVENTS)
            if EVALUATORS[name].decide(request).level is not Level.NONE
        }
        assert item.tenant is None or seen == {item.tenant}


def test_the_platforms_policies_record_what_the_tenants_want() -> None:
    platform = union(item.policy for item in EFFECTIVE.values() if item.tenant is None)
    everything = Evaluator(platform)
    for name, item in EFFECTIVE.items():
        if item.tenant is None:
            continue
        for request in map(request_of, EVENTS):
            assert everything.decide(request).level >= EVALUATORS[name].decide(request).level.server


# --- what the command line makes of it -------------------------------------------------------------------------------


def test_all_resources_render_and_none_is_refused() -> None:
    setup = load_setup([str(EXAMPLES / name) for name in ("namespaces.yaml", "platform", "tenants")], Setting())
    assert setup.problems == ()
    assert setup.plan is not None
    assert setup.plan.blocked == ()
    assert setup.plan.notices == ()
    assert {status.identity.name for status in setup.plan.statuses} == {item.metadata.name for item in RESOURCES}


def test_policies_pass_their_unit_tests() -> None:
    outcomes, messages = run_files(read_tests([str(EXAMPLES / "tests")]), (), Setting())
    assert messages == ()
    assert len(outcomes) >= 15
    assert [(outcome.test.name, outcome.failures) for outcome in outcomes if outcome.failures] == []


# --- policy files ----------------------------------------------------------------------------------------------------


def names_of_findings(file: str) -> list[tuple[str, str]]:
    loaded, findings = lint_text((EXAMPLES / "policy-files" / file).read_bytes())
    assert loaded.accepted, "every API server starts with it"
    return [(finding.path, finding.name) for finding in findings if finding.severity is not Severity.INFO]


def test_lint_finds_what_is_wrong_with_each_rule_of_the_file_of_mistakes() -> None:
    assert names_of_findings("mistakes.yaml") == [
        ("rules[0].resources[0].resource", "unknown-field"),
        ("rules[1]", "unreachable-rule"),
        ("rules[1].verbs[0]", "unknown-verb"),
        ("rules[1].verbs[1]", "unknown-verb"),
        ("rules[1].verbs[2]", "unknown-verb"),
        ("rules[1].resources[0].resources[0]", "wrong-group"),
        ("rules[2]", "unreachable-rule"),
        ("rules[2].resources[0].resources[0]", "resource-pattern"),
        ("rules[3]", "unreachable-rule"),
        ("rules[3].resources[0].resources[0]", "resource-pattern"),
        ("rules[4].resources[0].resourceNames", "name-not-known"),
        ("rules[5].users[0]", "user-wildcard"),
        ("rules[6]", "tokenreview-bodies"),
        ("rules[6]", "csr-bodies"),
        ("rules[7]", "unreachable-rule"),
        ("", "extra-document"),
    ]


def test_lint_finds_the_forgotten_credentials_in_todays_file_and_nothing_in_tomorrows() -> None:
    assert {name for _, name in names_of_findings("today.yaml")} == {"token-bodies"}
    assert names_of_findings("tomorrow.yaml") == []
