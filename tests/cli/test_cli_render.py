"""What `audit-operator render` and `crds` write, where, and what they leave alone."""

import json
import stat
from pathlib import Path

import pytest
import yaml
from commands import CLUSTER, DEMO_SET, call, write

from audit_operator.cli.output import MANIFEST, bytes_text, printable
from audit_operator.resources.crd import crds, reference

POLICY = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_folder_the_json_and_standard_output_hold_the_same_texts(tmp_path: Path) -> None:
    result = call("render", *DEMO_SET, "-o", tmp_path / "out")
    assert result.code == 0
    files = json.loads(call("render", *DEMO_SET, "-o", "json").out)["files"]
    assert result.out == f"{len(files)} files in {tmp_path}/out; start with {tmp_path}/out/README.md\n"
    written = tree(tmp_path / "out")
    assert {name: data.decode() for name, data in written.items() if name != MANIFEST} == files
    assert call("render", *DEMO_SET).out == "".join(f"==> {name} <==\n{text}\n" for name, text in files.items())


def test_what_is_there_already_and_was_not_rendered_is_left_alone(tmp_path: Path) -> None:
    own = write(tmp_path / "out/README.md", "mine\n")
    write(tmp_path / "out/notes.txt", "mine\n")
    result = call("render", "-f", CLUSTER, "-o", tmp_path / "out")
    assert result.code == 2
    assert result.err.startswith(f"error: {own}: is there already, and `audit-operator render` did not write it; move ")
    assert tree(tmp_path / "out") == {"README.md": b"mine\n", "notes.txt": b"mine\n"}


def test_a_second_call_updates_removes_what_is_gone_and_touches_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("render", "-f", CLUSTER, "-o", out)
    write(out / "notes.txt", "mine\n")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    unchanged = call("render", "-f", CLUSTER, "-o", out)
    assert unchanged.out.startswith(f"{len(before) - 2} files in {out}; ")
    rewritten = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert rewritten == set()
    fewer = write(
        tmp_path / "fewer.yaml", CLUSTER.read_text(encoding="utf-8").split("---\napiVersion: audit-op")[0] + POLICY_DOC
    )
    result = call("render", "-f", fewer, "-o", out)
    assert "old files removed" in result.out
    assert not (out / "status/team-b").exists()
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine\n"
    fresh = tmp_path / "fresh"
    call("render", "-f", fewer, "-o", fresh)
    assert tree(out) == {**tree(fresh), "notes.txt": b"mine\n"}


POLICY_DOC = """\
---
apiVersion: audit-operator.dev/v1alpha1
kind: AuditPolicy
metadata: {name: one, namespace: audit-system}
spec: {preset: CIS}
"""


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        '{"files": ["../victim"]}',
        '{"files": ["/etc/passwd"]}',
        '{"files": ["a//b"]}',
        '{"files": [1]}',
        "[" * 9999,
    ],
)
def test_a_manifest_that_render_did_not_write_removes_nothing(tmp_path: Path, manifest: str) -> None:
    victim = write(tmp_path / "victim", "mine\n")
    write(tmp_path / "out" / MANIFEST, manifest)
    result = call("render", "-f", CLUSTER, "-o", tmp_path / "out")
    assert result.code == 2
    assert result.err == (
        f"error: {tmp_path}/out/{MANIFEST}: is not what `audit-operator render` writes; remove it, and look why\n"
    )
    assert victim.exists()


def test_links_inside_the_folder_lead_nothing_out_of_it(tmp_path: Path) -> None:
    """Such as a pull request can bring: neither written through nor removed behind."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.yaml").write_text("mine")
    for links, listed in (({"manifests": outside}, "manifests/precious.yaml"), ({}, "manifests/precious.yaml")):
        folder = tmp_path / f"out{len(links)}"
        folder.mkdir()
        (folder / "manifests").symlink_to(outside)
        (folder / ".audit-operator-render.json").write_text(json.dumps({"files": [listed] if links else []}))
        result = call("render", *DEMO_SET, "-o", folder)
        assert result.code == 2
        assert f"{folder}/manifests: is a symbolic link" in result.err
        assert [path.name for path in outside.iterdir()] == ["precious.yaml"]
        assert sorted(path.name for path in folder.iterdir()) == [".audit-operator-render.json", "manifests"]
    manifest = tmp_path / "out/.audit-operator-render.json"
    manifest.parent.mkdir()
    (tmp_path / "secret").write_text('{"files": []}')
    manifest.symlink_to(tmp_path / "secret")
    assert call("render", *DEMO_SET, "-o", manifest.parent).code == 2
    definitions = tmp_path / "crds"
    definitions.mkdir()
    (definitions / "audit-operator.dev_auditpolicies.yaml").symlink_to(outside / "precious.yaml")
    result = call("crds", "-o", definitions)
    assert (result.code, (outside / "precious.yaml").read_text()) == (2, "mine")


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    assert call("render", "-f", CLUSTER, "-o", tmp_path / "out").code in (0, 1)
    assert (tmp_path / "real/README.md").is_file()


def test_scripts_can_be_run_and_nothing_else(tmp_path: Path) -> None:
    call("render", *DEMO_SET, "-o", tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert bool(path.stat().st_mode & stat.S_IXUSR) == (path.suffix == ".sh"), path


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "file", "")
    result = call("render", "-f", CLUSTER, "-o", file / "out")
    assert result.code == 2
    assert result.err.startswith(f"error: {file}")


def test_one_bad_resource_is_reported_with_its_line_and_the_others_render(tmp_path: Path) -> None:
    good = json.loads(call("render", "-f", CLUSTER, "-o", "json").out)["files"]
    text = CLUSTER.read_text(encoding="utf-8").replace(
        "kind: AuditPolicy\nmetadata: {name: own", "kind: AuditPolicy\nmetadata: {name: own, nam: x"
    )
    path = write(
        tmp_path / "cluster.yaml", text.replace("level: Request\n    resources: [{group: apps}]", "level: Reqest")
    )
    result = call("render", "-f", path, "-o", "json")
    answer = json.loads(result.out)
    line = next(
        number for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if "Reqest" in line
    )
    assert result.code == 1
    assert answer["problems"] == [
        f"{path}:{line}: AuditPolicy team-b/own: spec.rules[0].level: 'Reqest' is not known; did you mean Request?"
    ]
    assert answer["files"]["apiserver/policy.yaml"] == good["apiserver/policy.yaml"]
    statuses = {status["metadata"]["name"]: status["status"]["conditions"] for status in answer["statuses"]}
    ready = next(condition for condition in statuses["own"] if condition["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "Invalid")
    assert "did you mean Request?" in ready["message"]


def test_a_policy_file_counts_as_a_policy_of_the_platform(tmp_path: Path) -> None:
    path = write(tmp_path / "Today_Policy.yaml", POLICY)
    answer = json.loads(call("render", "-f", path, "-o", "json").out)
    assert [status["metadata"] for status in answer["statuses"]] == [
        {"name": "today-policy", "namespace": "audit-system"}
    ]
    rules = yaml.safe_load(answer["files"]["apiserver/policy.yaml"])["rules"]
    assert rules == [{"level": "Metadata"}]


def test_version_root_namespace_and_image_reach_the_result() -> None:
    files = json.loads(
        call("render", "-f", CLUSTER, "-o", "json", "--kubernetes-version", "1.30", "--root-namespace", "audit",
             "--image", "registry.example.com/ao:1").out
    )["files"]  # fmt: skip
    assert "For Kubernetes 1.30." in files["apiserver/policy.yaml"]
    assert any("registry.example.com/ao:1" in text for text in files.values())
    assert call("render", "-f", CLUSTER, "--server-version", "1.30").code in (0, 1)


BACKEND = """\
---
apiVersion: audit-operator.dev/v1alpha1
kind: AuditBackend
metadata: {name: default}
spec: {clusterName: c, receiver: {exposure: EXPOSURE}}
"""


@pytest.mark.parametrize(
    ("exposure", "address", "url"),
    [
        ("{clusterIP: {}}", "10.96.0.5", "https://10.96.0.5:8443/audit"),
        ("{clusterIP: {}}", "fd00::5", "https://[fd00::5]:8443/audit"),
        ("{nodePort: {addresses: [10.0.0.1]}}", "31443", "https://10.0.0.1:31443/audit"),
        ("{loadBalancer: {}}", "lb.example.com", "https://lb.example.com:8443/audit"),
        ("{clusterIP: {}}", "8443", ""),
        ("{clusterIP: {}}", "lb.example.com", ""),
        ("{clusterIP: {clusterIP: 10.96.0.4}}", "10.96.0.5", ""),
        ("{nodePort: {addresses: [10.0.0.1], port: 31444}}", "31443", ""),
        ("{loadBalancer: {address: lb.example.com}}", "10.0.0.1", ""),
        ("{external: {host: audit.example.com}}", "10.0.0.1", ""),
    ],
)
def test_the_address_that_the_cluster_gave_is_used_or_refused(
    tmp_path: Path, exposure: str, address: str, url: str
) -> None:
    path = write(tmp_path / "all.yaml", POLICY_DOC + BACKEND.replace("EXPOSURE", exposure))
    result = call("render", "-f", path, "--receiver-address", address, "-o", "json")
    if url:
        kubeconfig = yaml.safe_load(json.loads(result.out)["files"]["apiserver/webhook.kubeconfig"])
        assert kubeconfig["clusters"][0]["cluster"]["server"] == url
    else:
        assert result.code == 2
        assert result.err.startswith(f"error: --receiver-address: {address} is not used: spec.receiver.exposure of ")


@pytest.mark.parametrize(
    "option",
    ["--root-namespace=../x", "--root-namespace=a;id", "--root-namespace=", "--image=a b", "--image=a\n\x1b[31m"],
)
def test_what_would_stand_in_scripts_and_manifests_is_checked(option: str) -> None:
    result = call("render", "-f", CLUSTER, option)
    assert (result.code, result.out) == (2, "")
    assert "\x1b" not in result.err


@pytest.mark.parametrize("address", ["0", "65536", "a b", "https://10.0.0.1", "10.0.0.1/24", "-x", "a\nb"])
def test_what_is_no_address_is_bad_usage(address: str) -> None:
    assert call("render", "-f", CLUSTER, f"--receiver-address={address}").code == 2


def test_the_policy_in_force_stays_until_more_is_needed(tmp_path: Path) -> None:
    wide, narrow, other = (
        write(tmp_path / f"{name}.yaml", POLICY_DOC.replace("{preset: CIS}", spec))
        for name, spec in (("w", "{preset: AllBodies}"), ("n", "{preset: Metadata}"), ("o", "{preset: Minimal}"))
    )
    call("render", "-f", wide, "-o", tmp_path / "out")
    in_force = tmp_path / "out/apiserver/policy.yaml"
    text = in_force.read_text(encoding="utf-8")
    kept = call("render", "-f", narrow, "--policy-in-force", in_force, "-o", "json")
    answer = json.loads(kept.out)
    assert answer["files"]["apiserver/policy.yaml"] == text
    assert any("keep the policy they run" in notice for notice in answer["notices"])
    assert json.loads(call("render", "-f", narrow, "-o", "json").out)["files"]["apiserver/policy.yaml"] != text
    call("render", "-f", other, "-o", tmp_path / "less")
    widened = call("render", "-f", wide, "--policy-in-force", tmp_path / "less/apiserver/policy.yaml", "-o", "json")
    assert json.loads(widened.out)["files"]["apiserver/policy.yaml"] == text


def test_a_policy_in_force_that_is_no_policy_file_is_refused(tmp_path: Path) -> None:
    rejected = write(tmp_path / "rejected.yaml", POLICY.replace("Metadata", "metadata"))
    for file in (CLUSTER, rejected, tmp_path / "missing.yaml"):
        result = call("render", "-f", CLUSTER, "--policy-in-force", file)
        assert result.code == 2
        assert str(file) in result.err


def test_policies_that_name_sinks_render_while_the_webhook_is_off(tmp_path: Path) -> None:
    text = CLUSTER.read_text(encoding="utf-8").replace("webhook:\n", "webhook:\n    enabled: false\n")
    wish = "rules:\n  - level: Request\n    resources: [{group: apps}]\n"
    path = write(tmp_path / "cluster.yaml", text.replace(wish, "preset: Metadata\n"))
    result = call("render", "-f", path, "-o", tmp_path / "out")
    assert result.code == 0
    assert result.err.startswith("warning: AuditBackend: spec.webhook.enabled: false lets nothing reach a sink")
    assert not (tmp_path / "out/receiver").exists()
    explained = call("explain", "-f", path, "--user", "alice", "--verb", "get", "--resource", "secrets")
    assert explained.err == (
        "warning: spec.webhook.enabled of the AuditBackend is false: sinks are named as if it were true\n"
    )


# --- crds ------------------------------------------------------------------------------------------------------------


def test_the_definitions_go_to_a_folder_a_stream_or_json(tmp_path: Path) -> None:
    assert call("crds", "-o", tmp_path / "crds") == (0, "", "")
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "crds").iterdir()} == crds()
    documents = list(yaml.safe_load_all(call("crds").out))
    assert documents == json.loads(call("crds", "-o", "json").out)
    assert len(documents) == 3


def test_the_reference_goes_to_a_file_or_a_stream(tmp_path: Path) -> None:
    assert call("crds", "--reference", "-o", tmp_path / "docs/reference.md").code == 0
    assert (
        (tmp_path / "docs/reference.md").read_text(encoding="utf-8") == reference() == call("crds", "--reference").out
    )
    assert call("crds", "--reference", "-o", "json").code == 2


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    assert call("crds", "--reference", "-o", "/dev/null").code == 0
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    link = tmp_path / "link.md"
    link.symlink_to(write(tmp_path / "page.md", ""))
    assert call("crds", "--reference", "-o", link).code == 0
    assert link.is_symlink()
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == reference()
    assert call("crds", "--reference", "-o", tmp_path).err.startswith(f"error: {tmp_path}: is a folder; ")


# --- small things ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_400, "99.4 kB"), (99_600, "100 kB"), (999_499, "999 kB"),
     (999_500, "1.0 MB"), (10**12, "1.0 TB"), (10**16, "10000 TB")],
)  # fmt: skip
def test_bytes_are_shown_with_three_digits(number: int, text: str) -> None:
    assert bytes_text(number) == text


def test_nothing_that_moves_a_cursor_is_printable() -> None:
    assert printable("a\x1b[31m\r\n\u202e\ud800é") == "a\\x1b[31m\\r\\n\\u202e\\ud800é"
