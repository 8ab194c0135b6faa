"""What `-f` reads, and what it says of what it cannot read."""

import io
import os
import resource
from pathlib import Path

import pytest
from commands import call, write

from audit_operator.cli import inputs
from audit_operator.cli.errors import CliError
from audit_operator.cli.inputs import Inputs, read_inputs
from audit_operator.cli.policies import MOST_UNITED

POLICY = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n"
AUDIT_POLICY = """\
apiVersion: audit-operator.dev/v1alpha1
kind: AuditPolicy
metadata:
  name: NAME
  namespace: audit-system
spec:
  preset: CIS
"""
NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: prod\n  labels: {tier: prod}\n"
DEPLOYMENT = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n"


def audit_policy(name: str) -> str:
    return AUDIT_POLICY.replace("NAME", name)


def names(found: Inputs) -> list[str]:
    return [document.name for document in found.resources]


def refusal(*arguments: str | Path) -> str:
    with pytest.raises(CliError) as caught:
        read_inputs([str(argument) for argument in arguments])
    return str(caught.value)


def test_a_folder_is_read_with_all_below_it_in_the_order_of_paths(tmp_path: Path) -> None:
    for path in ("b.yml", "a/z.yaml", "a/x.json", "c.txt", ".git/x.yaml", "a/kustomization.yaml"):
        write(tmp_path / path, audit_policy(Path(path).stem))
    assert names(read_inputs([str(tmp_path)])) == ["b", "x", "z"]


def test_what_is_not_about_audit_is_left_aside_in_a_folder_but_not_where_it_is_named(tmp_path: Path) -> None:
    web = write(tmp_path / "web.yaml", DEPLOYMENT)
    write(tmp_path / "values.yaml", "replicas: 3\n")
    write(tmp_path / "list.yaml", "- one\n- two\n")
    write(tmp_path / "empty.yaml", "# nothing\n")
    write(tmp_path / "audit.yaml", audit_policy("audit"))
    assert names(read_inputs([str(tmp_path)])) == ["audit"]
    assert refusal(web) == (
        f"{web}: holds Deployment: nothing about audit; name AuditPolicies or an API server's policy file"
    )


def test_streams_and_lists_are_read_item_by_item(tmp_path: Path) -> None:
    indented = "".join(f"  {line}" for line in audit_policy("in-list").splitlines(keepends=True))[2:]
    stream = (
        f"{audit_policy('first')}---\n{NAMESPACE}---\napiVersion: v1\nkind: List\nitems:\n- {indented}---\n{POLICY}"
    )
    found = read_inputs([str(write(tmp_path / "stream.yaml", stream))])
    assert names(found) == ["first", "in-list"]
    assert found.namespaces == {"prod": {"tier": "prod"}}
    assert [str(rule.level) for file in found.policy_files for rule in file.loaded.policy.rules] == ["Metadata"]


def test_json_is_read_like_yaml(tmp_path: Path) -> None:
    text = '{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "None"}]}'
    assert len(read_inputs([str(write(tmp_path / "policy.json", text))]).policy_files) == 1


def test_standard_input_is_read_once_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"kind: [")))
    assert refusal("-").startswith("standard input:")


def test_the_second_policy_of_a_file_is_not_used_as_by_api_servers_and_that_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "two.yaml", f"{POLICY}---\n{POLICY.replace('Metadata', 'Request')}")
    found = read_inputs([str(path)])
    assert [str(rule.level) for file in found.policy_files for rule in file.loaded.policy.rules] == ["Metadata"]
    assert found.notices == (f"{path}:6: not used: API servers read one policy of a file, the first",)


def test_a_policy_file_that_no_server_accepts_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.yaml", POLICY.replace("Metadata", "Metdata"))
    assert refusal(path) == (
        f'{path}:4: no API server 1.36 starts with this file: rules[0].level: Unsupported value: "Metdata": '
        'supported values: "None", "Metadata", "Request", "RequestResponse"; '
        f"`audit-operator lint {path}` says all that is wrong"
    )


def test_events_in_place_of_policies_are_recognized(tmp_path: Path) -> None:
    path = write(tmp_path / "events.json", '{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[]}')
    assert refusal(path) == f"{path}: holds audit events, no policies; give events with --events"


# --- what cannot be read ---------------------------------------------------------------------------------------------


def test_a_missing_file_an_empty_folder_and_an_impossible_name_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "nope.yaml") == f"{tmp_path}/nope.yaml: does not exist; check the path"
    assert refusal(tmp_path / "empty") == f"{tmp_path}/empty: holds no file that ends in .yaml, .yml, .json"
    assert refusal("a\0b") == "'a\\x00b' is no file name"
    file = write(tmp_path / "file.yaml", POLICY)
    assert refusal(file / "x") == f"{file}/x: leads through something that is no folder; check the path"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_and_folders_without_permission_are_named(tmp_path: Path) -> None:
    file = write(tmp_path / "folder/secret.yaml", POLICY)
    file.chmod(0)
    assert refusal(file) == f"{file}: may not be read or written by you; check its permissions"
    file.parent.chmod(0)
    try:
        assert refusal(file.parent) == f"{file.parent}: may not be read or written by you; check its permissions"
    finally:
        file.parent.chmod(0o700)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x7fELF\x02\x01\x00", ":1: column 1: character '\\x7f' is not allowed: is this a binary file?"),
        (POLICY.encode() + b"# caf\xe9\n", ":5: column 6: not text: byte 0xe9 is not UTF-8"),
        (b"kind: Policy\n  rules: [\n", ":2: column 8: mapping values are not allowed in this context"),
        (b"a: " + b"[" * 5000, ":1: column 103: nested deeper than 100 levels"),
        (b"{" + b'"a":{' * 5000, ":1: column 501: nested deeper than 100 levels"),
    ],
)
def test_texts_that_cannot_be_read_are_refused_with_line_and_column(tmp_path: Path, data: bytes, message: str) -> None:
    path = write(tmp_path / "bad.yaml", data)
    assert refusal(path) == f"{path}{message}"


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    path = write(tmp_path / "bomb.yaml", "\n".join(lines))
    assert "document contains excessive aliasing" in refusal(path)


def test_of_a_huge_file_no_more_is_read_than_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(100 << 30)  # sparse: takes no room
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(path) == f"{path}: is larger than 16 MiB, so it is not read; is it the right file?"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_many_files_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "TOTAL_LIMIT", 2 * len(POLICY))
    for name in "abc":
        write(tmp_path / f"{name}.yaml", POLICY)
    assert refusal(tmp_path).startswith(f"{tmp_path}/c.yaml: with the files before it is more than")


def test_a_device_is_read_no_further_than_a_file() -> None:
    assert refusal("/dev/zero") == "/dev/zero: is larger than 16 MiB, so it is not read; is it the right file?"


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    write(tmp_path / "policy.yaml", POLICY)
    assert len(read_inputs([str(tmp_path)]).policy_files) == 1


def test_errors_go_to_standard_error_with_exit_code_2(tmp_path: Path) -> None:
    result = call("render", "-f", tmp_path / "nope.yaml")
    assert result == (2, "", f"error: {tmp_path}/nope.yaml: does not exist; check the path\n")


def test_a_union_of_more_rules_than_can_be_united_in_time_is_refused(tmp_path: Path) -> None:
    head = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n"
    for name in ("a", "b"):
        write(tmp_path / f"{name}.yaml", head + f"- {{level: Metadata, users: [{name}]}}\n" * (MOST_UNITED // 2 + 1))
    request = ("--user", "a", "--verb", "get", "--resource", "pods")
    refused = call("explain", "-f", tmp_path, *request)
    assert refused.code == 2
    assert f"at most {MOST_UNITED} of policy files; name one policy file and nothing else" in refused.err
    one = call("explain", "-f", tmp_path / "a.yaml", *request)
    assert one.code == 0
    other = call("explain", "-f", tmp_path / "b.yaml", *request)
    assert f"… and {MOST_UNITED // 2 + 1 - 100:,} more" in other.out
