"""`audit-operator test` holds policies to what their tests say, and says what is wrong with either."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from commands import CLUSTER, EXAMPLES, assert_golden, call, write

POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  users: [alice]
"""
PASSING = """\
tests:
- name: alice is seen
  request: {user: alice, verb: get, resource: pods}
  expect: {level: Metadata, omitStages: [RequestReceived], omitManagedFields: false, rule: "rules[0]"}
- request: {user: bob, verb: get, path: /x}
  expect: {rule: null}
- name: by its number
  request: {user: alice, verb: get, path: /x}
  expect: {rule: 0}
"""
FAILING = """\
tests:
- name: bob is seen
  request: {user: bob, groups: [developers], verb: get, resource: pods, namespace: prod}
  expect: {level: Metadata, omitStages: [], omitManagedFields: true, rule: 0}
"""


def test_tests_that_hold_end_with_0_and_are_listed(tmp_path: Path) -> None:
    policy, tests = write(tmp_path / "policy.yaml", POLICY), write(tmp_path / "tests.yaml", PASSING)
    assert call("test", "-f", policy, tests) == (
        0,
        "ok   alice is seen\nok   bob get /x\nok   by its number\n3 tests, 0 failed\n",
        "",
    )


def test_a_failed_test_shows_request_expectation_answer_and_rule(tmp_path: Path) -> None:
    policy, tests = write(tmp_path / "policy.yaml", POLICY), write(tmp_path / "tests.yaml", FAILING)
    result = call("test", "-f", policy, tests)
    assert result.code == 1
    assert_golden("test-failed.txt", result.out.replace(f"{tmp_path}/", ""))


def test_the_answer_for_programs_and_for_ci_say_the_same(tmp_path: Path) -> None:
    policy = write(tmp_path / "policy.yaml", POLICY)
    tests = [write(tmp_path / "a.yaml", PASSING), write(tmp_path / "b.yaml", FAILING)]
    junit = tmp_path / "out/results.xml"
    result = call("test", "-f", policy, *tests, "-o", "json", "--junit", junit)
    outcomes = json.loads(result.out)
    assert [outcome["passed"] for outcome in outcomes] == [True, True, True, False]
    assert outcomes[3]["failures"][0] == {"what": "level", "expected": "Metadata", "got": "None"}
    suites = ET.parse(junit).getroot()
    assert [(suite.get("name"), suite.get("tests"), suite.get("failures")) for suite in suites] == [
        (str(tests[0]), "3", "0"),
        (str(tests[1]), "1", "1"),
    ]
    failure = suites.find("testsuite/testcase/failure")
    assert failure is not None
    assert "level: expected Metadata, got None" in str(failure.get("message"))


def test_names_from_tests_cannot_break_the_xml(tmp_path: Path) -> None:
    policy = write(tmp_path / "policy.yaml", POLICY)
    tests = write(tmp_path / "t.yaml", FAILING.replace("bob is seen", '"<&\\x1b\\x85]]>"'))
    call("test", "-f", policy, tests, "--junit", tmp_path / "r.xml")
    case = ET.parse(tmp_path / "r.xml").getroot().find("testsuite/testcase")
    assert case is not None
    assert case.get("name") == "<&\\x1b\\x85]]>"


def test_sinks_are_asked_across_all_policies(tmp_path: Path) -> None:
    tests = write(
        tmp_path / "tests.yaml",
        f"""\
policies: [{CLUSTER}]
tests:
- policy: security
  request: {{user: alice, verb: update, apiGroup: apps, resource: deployments, namespace: team-a}}
  expect: {{level: RequestResponse, sinks: {{siem: RequestResponse, audit-system/archive: Minimal}}}}
- request: {{user: alice, verb: list, resource: pods}}
  expect: {{level: Metadata, sinks: {{archive: None}}}}
""",
    )
    result = call("test", tests)
    assert result.code == 0
    assert result.out.endswith("2 tests, 0 failed\n")


def test_every_file_of_tests_may_bring_its_own_policies(tmp_path: Path) -> None:
    for name, level in (("a", "Metadata"), ("b", "Request")):
        write(tmp_path / name / "policy.yaml", POLICY.replace("Metadata", level))
        tests = "policies: [policy.yaml]\n" + PASSING.replace("level: Metadata", f"level: {level}")
        write(tmp_path / name / "tests/tests.yaml", tests.replace("[policy.yaml]", "[../policy.yaml]"))
    assert call("test", tmp_path / "a/tests", tmp_path / "b/tests").code == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tests: 3\n", ":1: tests: must be a list"),
        ("tests: [3]\n", ":1: tests[0]: must be an object"),
        ("tests: []\n", ": holds no tests; examples/tests shows how they are written"),
        ("kind: x\n", ":1: holds no tests; write them below `tests:`"),
        ("policies: x\ntests: []\n", ":1: policies: must be a list of paths"),
        ("tests:\n- nam: x\n", ":2: tests[0].nam: is no field; did you mean name?"),
        ("tests:\n- {}\n", ":2: tests[0]: needs a request; such as {verb: get, resource: pods}"),
        (
            "tests:\n- request: {verb: get, path: /x}\n",
            ":2: tests[0].expect: expects nothing; for example {level: Metadata}",
        ),
        (
            "tests:\n- request: {verb: get, path: /x}\n  expect: {level: Metdata}\n",
            ":3: tests[0].expect: unknown level 'Metdata'; known: None, Minimal, Metadata, Request, RequestResponse",
        ),
        (
            "tests:\n- request: {verb: get, path: /x}\n  expect:\n    lvl: x\n",
            ":4: tests[0].expect.lvl: is no field; did you mean level?",
        ),
        ("tests:\n- request:\n    verb: [get]\n", ":3: tests[0].request.verb: must be a string, got a list"),
        (
            "policy: nope\ntests:\n- request: {verb: get, path: /x}\n  expect: {level: None}\n",
            ":3: policy: 'nope' is none of the policies; there are {policy}",
        ),
        (
            "tests:\n- request: {verb: get, path: /x}\n  expect: {sinks: {siem: None}}\n",
            ":2: expect.sinks: 'siem' is no sink of these policies; there are none",
        ),
    ],
)
def test_errors_of_tests_name_file_line_and_the_way_out(tmp_path: Path, text: str, message: str) -> None:
    policy, tests = write(tmp_path / "policy.yaml", POLICY), write(tmp_path / "tests.yaml", text)
    result = call("test", "-f", policy, tests)
    assert result == (2, "", f"error: {tests}{message.replace('{policy}', str(policy))}\n")


def test_tests_without_policies_are_bad_usage(tmp_path: Path) -> None:
    tests = write(tmp_path / "tests.yaml", PASSING)
    assert call("test", tests).err == (
        f"error: {tests}: names no policies; give them with -f, or as `policies: [path]`\n"
    )


def test_the_examples_hold() -> None:
    assert call("test", EXAMPLES / "tests").code == 0
