"""The command line as a process: exit codes, pipes, signals, and never a traceback."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import CLUSTER, DEMO_SET, EXAMPLES, ROOT, SCRIPT, call, on_terminal, spawn, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit_operator import __version__
from audit_operator.cli import policies
from audit_operator.cli.app import NEWEST_TEXT, app
from audit_operator.cli.manual import manual
from audit_operator.policy.load import NEWEST

POLICY = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n"
TRAFFIC = EXAMPLES / "traffic/sample.jsonl.gz"


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (0, ("--help",)),
        (0, ("lint", "--help")),
        (0, ("lint", EXAMPLES / "policy-files/tomorrow.yaml")),
        (1, ("lint", EXAMPLES / "policy-files/mistakes.yaml")),
        (1, ("diff", EXAMPLES / "policy-files/today.yaml", EXAMPLES / "policy-files/tomorrow.yaml")),
        (2, ("lint", "/nonexistent.yaml")),
        (2, ("lint", "--nonsense")),
        (2, ("nonsense",)),
        (2, ()),
    ],
)
def test_exit_codes_are_those_that_help_documents(code: int, arguments: tuple[str | Path, ...]) -> None:
    result = spawn(*arguments)
    assert result.code == code
    assert "Traceback" not in result.out + result.err


def test_version_and_module_are_the_same_program() -> None:
    module = [sys.executable, "-m", "audit_operator", "--version"]
    assert spawn("--version").out == f"audit-operator {__version__}\n"
    assert subprocess.run(module, capture_output=True, check=True).stdout.decode() == spawn("--version").out


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    arguments = [str(SCRIPT), "render", *DEMO_SET]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait(30) == 141
    assert [line for line in errors.splitlines() if not line.startswith("warning: ")] == []


def test_ctrl_c_ends_it_with_130_and_no_traceback(tmp_path: Path) -> None:
    policy = write(tmp_path / "policy.yaml", POLICY)
    arguments = [str(SCRIPT), "replay", "-f", str(policy), "--events", "-"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=30)
    assert (process.returncode, out, errors) == (130, b"", b"")


def test_a_policy_file_is_linted_without_what_takes_long_to_load(tmp_path: Path) -> None:
    policy = write(tmp_path / "policy.yaml", POLICY)
    program = (
        "import sys\nfrom audit_operator.cli import main\n"
        f"sys.argv = ['audit-operator', 'lint', {str(policy)!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "slow = {'rich', 'ruamel', 'audit_operator.resources', 'audit_operator.render'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_what_needs_no_command_loads_no_more_than_the_command_line(option: str) -> None:
    """So it takes a tenth of a second, also where a probe or a script asks often."""
    program = (
        "import sys\nbefore = set(sys.modules)\nfrom audit_operator.cli import main\n"
        f"sys.argv = ['audit-operator', {option!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "loaded = set(sys.modules) - before\n"
        "others = {name.split('.')[0] for name in loaded} - set(sys.stdlib_module_names)\n"
        "assert others <= {'audit_operator', 'typer', 'annotated_doc', 'shellingham'}, others\n"
        "ours = {name for name in loaded if name.startswith('audit_operator.')}\n"
        "assert ours == {f'audit_operator.cli{name}' for name in ('', '.app', '.errors')}, ours\n"
        "assert not {'asyncio', 'ssl', 'http.client', 'email.parser'} & loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_colours_only_on_a_terminal_and_not_if_somebody_minds(tmp_path: Path) -> None:
    policy = write(tmp_path / "policy.yaml", POLICY + "  verbs: [POST]\n")
    for arguments in (("lint", policy), ("replay", "-f", CLUSTER, "--events", TRAFFIC)):
        assert "\x1b[" not in spawn(*arguments).out
        assert "\x1b[" in on_terminal(*arguments).out
    assert "\x1b[" not in on_terminal("lint", policy, NO_COLOR="1").out
    assert "\x1b[" not in on_terminal("lint", policy, TERM="dumb").out


def test_a_person_sees_how_far_it_is_and_a_program_does_not() -> None:
    arguments = ("replay", "-f", CLUSTER, "--events", TRAFFIC)
    shown = on_terminal(*arguments)
    assert shown.code == 0
    assert str(TRAFFIC.name) in shown.out
    assert TRAFFIC.name not in "".join(spawn(*arguments)[1:])


def test_a_terminal_that_knows_only_ascii_is_no_reason_to_fail() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    result = spawn("replay", "-f", CLUSTER, "--events", TRAFFIC, env=environment)
    assert result.code == 0
    assert "audit-system/security \\u2192 audit-system/siem" in result.out


def test_a_bug_is_a_line_and_with_debug_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("one\ntwo")

    monkeypatch.setattr(policies, "read_inputs", broken)
    result = call("explain", "-f", CLUSTER, "--verb", "get", "--path", "/x")
    assert result == (
        2,
        "",
        "error: this is a bug in audit-operator: RuntimeError: one two; `audit-operator --debug …` shows where\n",
    )
    with pytest.raises(RuntimeError):
        call("--debug", "explain", "-f", CLUSTER, "--verb", "get", "--path", "/x")


def test_the_page_about_the_command_line_is_current() -> None:
    assert (ROOT / "docs/cli.md").read_text(encoding="utf-8") == manual(), "make generate writes it"


def test_the_version_that_help_shows_is_the_newest_known() -> None:
    assert ".".join(map(str, NEWEST)) == NEWEST_TEXT


def test_every_command_has_help_with_examples() -> None:
    for command in app.registered_commands:
        name = command.name or getattr(command.callback, "__name__", "")
        text = call(name, "--help").out
        examples = text.split("Examples:\n")[1].replace("\\\n", "").splitlines()
        assert examples
        for example in examples:
            # What can be copied runs: the program's name is on every line, behind a pipe too.
            assert f"audit-operator {name}" in example.removeprefix("    ").replace("git show main:policy.yaml | ", "")


def test_help_fits_a_terminal_of_80_columns() -> None:
    names = [command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands]
    for arguments in ([], *([name] for name in names)):
        text = on_terminal(*arguments, "--help", COLUMNS="80").out
        assert [line for line in text.splitlines() if len(line) > 80 or "list[" in line] == []
        assert not re.search(r"\.\.\.$", text.split("Commands:")[-1] if not arguments else "", re.MULTILINE)


# --- anything at all as input ----------------------------------------------------------------------------------------

SNIPPETS = (
    b"apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n",
    b"apiVersion: audit-operator.dev/v1alpha1\nkind: AuditPolicy\nmetadata: {name: a}\nspec: {preset: CIS}\n",
    b"apiVersion: audit-operator.dev/v1alpha1\nkind: AuditSink\nmetadata: {name: a}\nspec: {stdout: {}}\n",
    b"apiVersion: audit-operator.dev/v1alpha1\nkind: AuditBackend\nmetadata: {name: default}\nspec: {clusterName: x}\n",
    b"apiVersion: v1\nkind: Namespace\nmetadata: {name: x, labels: {a: b}}\n",
    b"apiVersion: v1\nkind: List\nitems: [{kind: List, items: [1]}]\n",
    b"tests:\n- request: {verb: get, path: /x}\n  expect: {level: None}\n",
    b"policy: a\npolicies: [nope]\n",
    b'{"verb":"get","user":null,"path":"/x"}\n',
    b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[{"stage":"Panic","verb":"get","user":{}}]}\n',
    b"---\n", b"spec: *a\n", b"<<: {a: 1}\n", b"? [x]\n", b"metadata: 7\n", b"  rules: x\n",
    b"\x00", b"\xff\xfe", b"\x1f\x8b\x08",
)  # fmt: skip
ANYTHING = st.one_of(
    st.binary(max_size=200),
    st.lists(st.one_of(st.sampled_from(SNIPPETS), st.binary(max_size=20)), max_size=5).map(b"".join),
    st.tuples(st.sampled_from(SNIPPETS), st.integers(0, 200), st.binary(max_size=3)).map(
        lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]
    ),
)
COMMANDS = (
    ("lint", "-"),
    ("lint", "-", "-o", "json"),
    ("render", "-f", "-"),
    ("explain", "-f", "-", "--verb", "get", "--resource", "pods"),
    ("explain", "-f", "POLICY", "--requests", "-", "-o", "json"),
    ("diff", "-", "POLICY"),
    ("test", "-f", "-", "TESTS"),
    ("test", "-f", "POLICY", "-"),
    ("import", "-"),
    ("replay", "-f", "-", "--events", str(TRAFFIC)),
    ("replay", "-f", "POLICY", "--events", "-"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_whatever_the_input_there_is_an_answer_and_no_traceback(command: tuple[str, ...], tmp_path: Path) -> None:
    files = {"POLICY": write(tmp_path / "p.yaml", POLICY), "TESTS": write(tmp_path / "t.yaml", SNIPPETS[6])}
    arguments = [files.get(argument, argument) for argument in command]

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(ANYTHING)
    def holds(data: bytes) -> None:
        result = call(*arguments, stdin=data)
        assert result.code in (0, 1, 2)
        assert "bug in audit-operator" not in result.err

    holds()
