"""An imported policy means what API servers made of the file, and keeps what people wrote beside it."""

import gzip
import json
from pathlib import Path

import pytest
from commands import DATA, EXAMPLES, call, write
from msgspec import structs

from audit_operator.cli.importing import audit_policy, import_policy, name_of
from audit_operator.cli.inputs import PolicyFile
from audit_operator.policy.effective import rules_of
from audit_operator.policy.load import load_policy
from audit_operator.policy.model import Policy, Stage
from audit_operator.policy.yamltext import read_all
from audit_operator.resources.auditpolicy import AuditPolicy
from audit_operator.resources.load import load_resource

ACCEPTED = [
    case["policy"]
    for case in map(json.loads, (DATA / "policy-validation.jsonl").read_text(encoding="utf-8").splitlines())
    if case["accepted"] and case["id"] != "long-users"  # 2,000 users; an AuditPolicy's rule has at most 256
]
RANDOM = [
    json.loads(line)["policy"]
    for line in gzip.decompress((DATA / "cli/policy-match.jsonl.gz").read_bytes()).splitlines()
]


def meaning(text: str) -> Policy:
    (node,) = read_all(text)
    resource = load_resource(node.value)
    assert isinstance(resource, AuditPolicy)
    return Policy(
        rules=rules_of(resource.spec.rules),
        omit_stages=frozenset(map(Stage, resource.spec.omit_stages)),
        omit_managed_fields=resource.spec.omit_managed_fields,
    )


def without_origins(policy: Policy) -> Policy:
    return structs.replace(policy, rules=tuple(structs.replace(rule, origin="") for rule in policy.rules))


@pytest.mark.parametrize("text", ACCEPTED)
def test_what_api_servers_accept_is_imported_with_the_same_meaning(text: str) -> None:
    loaded = load_policy(text)
    assert loaded.policy is not None
    _, imported = import_policy(PolicyFile("policy.yaml", loaded, text.encode()), name="", namespace="x", sinks=())
    assert without_origins(meaning(imported)) == without_origins(loaded.policy)


def test_policies_of_any_shape_are_imported_with_the_same_meaning() -> None:
    for document in RANDOM:
        text = json.dumps(document)
        loaded = load_policy(text)
        assert loaded.policy is not None
        _, imported = import_policy(PolicyFile("p.json", loaded, text.encode()), name="", namespace="x", sinks=())
        assert without_origins(meaning(imported)) == without_origins(loaded.policy)


@pytest.mark.parametrize("name", ["today", "tomorrow"])
def test_every_line_of_the_file_stays_as_it_was_written(name: str) -> None:
    path = EXAMPLES / f"policy-files/{name}.yaml"
    lines = call("import", path).out.splitlines()
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith(("apiVersion:", "kind:")):
            assert line in lines or f"  {line}" in lines
    assert lines.index(f"  name: {name}") < lines.index("spec:") < lines.index("  rules:")


def test_what_api_servers_ignore_is_left_out_and_said_and_comments_above_rules_stay() -> None:
    path = EXAMPLES / "policy-files/mistakes.yaml"
    result = call("import", path)
    assert result.code == 0
    assert result.err == (
        f"warning: {path}:13: rules[0].resources[0].resource: left out, because API servers ignore it\n"
        f"warning: {path}:56: left out, because API servers read only the first document of a file\n"
    )
    assert "  # Never record what is in a Secret.\n  - level: Metadata\n" in result.out
    assert "resource:" not in result.out.replace("resources:", "")


def test_what_api_servers_refuse_is_refused_with_the_same_words(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.yaml", "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Everything\n")
    result = call("import", path)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(
        f'{path}:4:3: error AP001 rules[0].level: Unsupported value: "Everything": supported values: '
    )
    assert result.err.splitlines()[0] == call("lint", path).out.splitlines()[0]


def test_name_namespace_and_sinks_are_what_is_asked_for() -> None:
    path = EXAMPLES / "policy-files/today.yaml"
    result = call(
        "import", path, "--name", "base", "-n", "audit", "--sink", "siem", "--sink", "other/archive", "-o", "json"
    )
    document = json.loads(result.out)
    assert document["metadata"] == {"name": "base", "namespace": "audit"}
    assert document["spec"]["sinks"] == [{"name": "siem"}, {"name": "archive", "namespace": "other"}]
    refused = call("import", path, "--name", "Base")
    assert refused.code == 2
    assert refused.err.startswith(f"error: {path}: an AuditPolicy cannot say this: metadata.name: 'Base' must be ")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/etc/kubernetes/Audit_Policy.yaml", "audit-policy"),
        ("standard input", "standard-input"),
        ("---.yaml", "imported"),
        ("ünïcode.yml", "n-code"),
    ],
)
def test_the_name_of_a_file_becomes_a_name_of_kubernetes(file: str, name: str) -> None:
    assert name_of(file) == name


def test_more_rules_than_an_audit_policy_holds_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path / "p.yaml", "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n" + "- level: None\n" * 201)
    result = call("import", path)
    assert result.code == 2
    assert result.err.startswith(f"error: {path}:3: an AuditPolicy cannot say this: spec.rules: ")
    assert "at most 200" in result.err


def test_a_document_without_a_text_is_imported_too() -> None:
    loaded = load_policy("apiVersion: audit.k8s.io/v1\nrules: [{level: Metadata}]\n")
    document = audit_policy(PolicyFile("p", loaded, b""), name="p", namespace="n")
    assert document["spec"] == {"rules": [{"level": "Metadata"}]}
