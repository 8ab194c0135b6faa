"""What `audit-operator lint` says and how it ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import DATA, EXAMPLES, call, write

RECORDED = [json.loads(line) for line in (DATA / "policy-validation.jsonl").read_text(encoding="utf-8").splitlines()]
POLICY = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n"
GROUP_STAR = POLICY + '  resources: [{group: "*"}]\n- level: Metadata\n'
AUDIT_POLICY = """\
apiVersion: audit-operator.dev/v1alpha1
kind: AuditPolicy
metadata: {name: baseline, namespace: audit-system}
spec:
  rules:
  - level: Metdata
    verbs: [get]
  - level: Request
    verbs: [POST]
    verbs: [GET]
"""


def verdicts(*arguments: str | Path) -> list[dict[str, Any]]:
    result = call("lint", "-o", "json", *arguments)
    assert result.err == ""
    found: list[dict[str, Any]] = json.loads(result.out)
    return found


def test_the_verdicts_are_those_of_a_real_api_server(tmp_path: Path) -> None:
    for case in RECORDED:
        write(tmp_path / f"{case['id']}.yaml", case["policy"])
    found = verdicts(*(tmp_path / f"{case['id']}.yaml" for case in RECORDED))
    assert {Path(verdict["file"]).stem: verdict["accepted"] for verdict in found} == {
        case["id"]: case["accepted"] for case in RECORDED
    }
    assert all(
        any(finding["code"] == "AP001" for finding in each["findings"]) for each in found if not each["accepted"]
    )


def test_a_finding_names_file_line_column_code_path_and_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.yaml", POLICY + "  verbs: [POST]\n")
    result = call("lint", path)
    assert (
        f"{path}:5:11: error AP101 rules[0].verbs[0]: no request has the verb 'POST': verbs are compared exactly, and "
        "are lower case\n    write create\n"
    ) in result.out
    assert result.code == 1


def test_the_exit_code_follows_fail_on(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.yaml", GROUP_STAR)
    assert {finding["severity"] for finding in verdicts(path)[0]["findings"]} >= {"warning"}
    assert call("lint", path, "--fail-on", "error").code == 0
    assert call("lint", path, "--fail-on", "warning").code == 1
    refused = write(tmp_path / "refused.yaml", "kind: Policy\n")
    assert call("lint", refused, "--fail-on", "never").code == 1


def test_the_version_of_the_server_decides_where_versions_differ(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.yaml", GROUP_STAR)
    for version, accepted in (("1.35", False), ("v1.35.4", False), ("1.36", True)):
        assert (
            json.loads(call("lint", "-o", "json", path, "--kubernetes-version", version).out)[0]["accepted"] is accepted
        )
    assert call("lint", path, "--kubernetes-version", "1.36", "--fail-on", "warning").code == 0


@pytest.mark.parametrize("version", ["", "one", "1", "1.2.3.4x y", "1.27", "-1.30"])
def test_a_version_that_is_none_is_bad_usage(version: str) -> None:
    result = call("lint", "-", f"--kubernetes-version={version}", stdin=POLICY)
    assert result.code == 2
    assert f"Error: Invalid value for '--kubernetes-version' / '--server-version': {version!r} is" in result.err


def test_a_resource_is_judged_with_its_lines_and_everything_that_is_wrong(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.yaml", AUDIT_POLICY)
    (verdict,) = verdicts(path)
    assert not verdict["accepted"]
    assert [(finding["line"], finding["name"], finding["path"]) for finding in verdict["findings"]] == [
        (6, "rejected", "spec.rules[0].level"),
        (10, "duplicate-field", "spec.rules[1].verbs"),
    ]
    assert verdict["findings"][0]["fix"] == "did you mean Metadata?"


def test_rules_of_a_resource_are_judged_like_those_of_a_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "policy.yaml", AUDIT_POLICY.replace("Metdata", "Metadata").replace("    verbs: [GET]\n", "")
    )
    (verdict,) = verdicts(path)
    assert verdict["accepted"]
    assert [(finding["line"], finding["name"]) for finding in verdict["findings"]] == [(9, "unknown-verb")]


def test_a_folder_is_judged_without_what_is_not_about_audit(tmp_path: Path) -> None:
    write(tmp_path / "web.yaml", "apiVersion: apps/v1\nkind: Deployment\n")
    write(tmp_path / "policy.yaml", POLICY)
    assert [Path(verdict["file"]).name for verdict in verdicts(tmp_path)] == ["policy.yaml"]
    assert call("lint", write(tmp_path / "alone/web.yaml", "kind: Deployment\n").parent).code == 2


def test_one_file_that_cannot_be_read_does_not_hide_what_is_said_of_the_others(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.yaml", POLICY)
    result = call("lint", "-o", "json", tmp_path / "nope.yaml", path)
    assert [(verdict["file"], verdict["accepted"]) for verdict in json.loads(result.out)] == [
        (f"{tmp_path}/nope.yaml", False),
        (str(path), True),
    ]
    assert result.err == f"error: {tmp_path}/nope.yaml: does not exist; check the path\n"
    assert result.code == 2


def test_standard_input_and_f_are_files_like_others() -> None:
    assert call("lint", "-f", "-", stdin=POLICY).out.endswith("1 file: 0 errors, 0 warnings, 0 info\n")


def test_nothing_to_lint_is_bad_usage() -> None:
    assert call("lint").code == 2


def test_the_examples_have_no_errors_but_where_they_show_some() -> None:
    result = call(
        "lint", "-o", "json", EXAMPLES / "platform", EXAMPLES / "tenants", EXAMPLES / "policy-files/tomorrow.yaml"
    )
    assert result.code == 0
    assert call("lint", EXAMPLES / "policy-files/mistakes.yaml").code == 1


def test_control_characters_of_a_file_never_reach_the_terminal(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.yaml", POLICY + '  verbs: ["\\x1b[2J\\u202e"]\n')
    out = call("lint", path).out
    assert "\x1b" not in out
    assert "\u202e" not in out
