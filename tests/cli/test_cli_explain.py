"""What `audit-operator explain` answers is what API servers do, and a person sees why."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from commands import CLUSTER, DATA, DEMO_SET, EXAMPLES, assert_golden, call, spawn, write

RECORDED = [
    json.loads(line) for line in gzip.decompress((DATA / "cli/policy-match.jsonl.gz").read_bytes()).splitlines()
]


def question(folder: Path, recorded: dict[str, Any]) -> tuple[str, ...]:
    """The arguments that ask a recorded policy about its recorded requests."""
    policy = write(folder / "policy.yaml", json.dumps(recorded["policy"]))
    lines = "\n".join(json.dumps(case["request"]) for case in recorded["cases"])
    requests = write(folder / "requests.jsonl", lines)
    return ("explain", "-f", str(policy), "--requests", str(requests), "-o", "json")


def verdicts(out: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in out.splitlines()]
    return [{key: answer[key] for key in ("level", "omitStages", "omitManagedFields")} for answer in found]


def test_all_recorded_verdicts_of_a_real_api_server_are_given(tmp_path: Path) -> None:
    answered = 0
    for recorded in RECORDED:
        result = call(*question(tmp_path, recorded))
        assert verdicts(result.out) == [case["expect"] for case in recorded["cases"]], recorded["id"]
        answered += len(recorded["cases"])
    assert answered == 5000


def test_the_console_script_gives_them_too(tmp_path: Path) -> None:
    for recorded in RECORDED[::80]:
        result = spawn(*question(tmp_path, recorded))
        assert (result.code, result.err) == (0, "")
        assert verdicts(result.out) == [case["expect"] for case in recorded["cases"]]


def test_the_rule_is_the_number_of_the_first_that_matches(tmp_path: Path) -> None:
    policy = write(
        tmp_path / "policy.yaml",
        "apiVersion: audit.k8s.io/v1\nrules:\n- {level: None, users: [bob]}\n- {level: Request, verbs: [get]}\n",
    )
    requests = '{"user":"bob","verb":"get","resource":"pods"}\n{"verb":"get","path":"/x"}\n{"verb":"put","path":"/x"}\n'
    result = call("explain", "-f", policy, "--requests", "-", "-o", "json", stdin=requests)
    answers = [json.loads(line) for line in result.out.splitlines()]
    assert [(answer["rule"], answer["origin"]) for answer in answers] == [
        (0, "rules[0]"),
        (1, "rules[1]"),
        (None, None),
    ]
    lines = call("explain", "-f", policy, "--requests", "-", stdin=requests).out.splitlines()
    assert lines == [
        "None            rules[0]   bob get pods",
        "Request         rules[1]   a failed login get /x",
        "None            no rule    a failed login put /x",
    ]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (
            "explain-change.txt",
            ("--user", "alice", "--verb", "update", "--resource", "deploy", "-n", "team-a", "--name", "w"),
        ),
        (
            "explain-tenant.txt",
            ("--user", "bob", "--verb", "patch", "--resource", "deployments.apps/scale", "-n", "team-b"),
        ),
        ("explain-login.txt", ("--verb", "get", "--resource", "secrets", "-n", "team-a", "--name", "db")),
        ("explain-health.txt", ("--user", "system:anonymous", "--verb", "GET", "--path", "/healthz")),
    ],
)
def test_the_answer_for_people_is_the_golden_one(name: str, arguments: tuple[str, ...]) -> None:
    result = call("explain", "-f", CLUSTER, *arguments)
    assert result.code == 0
    # Where a rule stands in the union is the union's business.
    assert_golden(name, re.sub(r"; rules\[\d+\] decides", "; rules[N] decides", result.out))


def test_a_policy_file_is_explained_rule_by_rule() -> None:
    result = call(
        "explain", "-f", EXAMPLES / "policy-files/today.yaml", "--user", "system:node:n1", "--group", "system:nodes",
        "--verb", "list", "--resource", "nodes",
    )  # fmt: skip
    assert_golden("explain-file.txt", result.out)


def test_the_answer_for_programs_says_what_reaches_which_sink() -> None:
    result = call(
        "explain", "-f", CLUSTER, "--user", "alice", "--verb", "update", "--resource", "deployments", "-n", "team-a",
        "-o", "json",
    )  # fmt: skip
    answer = json.loads(result.out)
    assert answer["request"]["apiGroup"] == "apps"
    assert answer["level"] == "RequestResponse"
    policies = {policy["policy"]: policy for policy in answer["policies"]}
    assert policies["audit-system/security"]["origin"] == "spec.rules[1]"
    assert policies["audit-system/security"]["delivered"]["sinks"] == ["audit-system/siem"]
    assert "spec.template.spec.containers[*].env" in policies["audit-system/security"]["delivered"]["redacted"]
    assert policies["audit-system/changes"]["delivered"]["level"] == "Minimal"
    assert policies["team-b/own"]["delivered"] == {"level": "None", "stages": [], "sinks": [], "redacted": []}


def test_a_resource_that_is_not_valid_is_reported_and_the_others_answer(tmp_path: Path) -> None:
    bad = CLUSTER.read_text(encoding="utf-8").replace("level: Minimal", "level: Minimum")
    path = write(tmp_path / "cluster.yaml", bad)
    result = call("explain", "-f", path, "--user", "alice", "--verb", "get", "--resource", "pods")
    assert result.code == 1
    requests = write(tmp_path / "requests.jsonl", '{"user": "alice", "verb": "get", "resource": "pods"}\n')
    assert call("explain", "-f", path, "--requests", requests).code == 1
    line = bad.splitlines().index("  - level: Minimum") + 1
    assert result.err.startswith(
        f"warning: {path}:{line}: AuditPolicy audit-system/changes: spec.rules[0].level: 'Minimum' is not known; "
    )
    assert "audit-system/security" in result.out
    assert "audit-system/changes" not in result.out


def test_nobodys_rule_is_not_said_to_decide(tmp_path: Path) -> None:
    """API servers need a rule in their file; where no policy counts it is the renderer's."""
    head = "apiVersion: audit-operator.dev/v1alpha1\nkind: AuditPolicy\nmetadata: {name: a, namespace: audit-system}\n"
    path = write(tmp_path / "p.yaml", f"{head}spec: {{rules: [{{level: Everything}}]}}\n")
    result = call("explain", "-f", path, "--user", "alice", "--verb", "get", "--resource", "pods")
    assert result.code == 1
    assert "API servers: nothing is recorded; there is no policy that counts" in result.out
    assert "rules[" not in result.out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--verb", "get"),
        ("--verb", "get", "--resource", "pods", "--path", "/x"),
        ("--verb", "get", "--resource", "pods", "--requests", "-"),
        ("--verb", "get", "--path", "/x", "-n", "team-a"),
    ],
)
def test_half_a_request_is_bad_usage(arguments: tuple[str, ...]) -> None:
    result = call("explain", "-f", CLUSTER, *arguments)
    assert (result.code, result.out) == (2, "")
    assert "rror: " in result.err


def test_what_an_example_keeps_from_a_sink_no_other_example_sends_there() -> None:
    request = ("--user", "alice", "--verb", "create", "--resource", "pods", "--namespace", "team-a")
    policies = json.loads(call("explain", *DEMO_SET, *request, "-o", "json").out)["policies"]
    bodies = [each["delivered"] for each in policies if each["delivered"]["level"].startswith("Request")]
    assert len([each for each in bodies if each["sinks"] == ["audit-system/siem"]]) == 2
    assert len({tuple(each["redacted"]) for each in bodies}) == 1
