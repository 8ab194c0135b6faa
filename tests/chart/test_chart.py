"""The Helm chart: what it makes of values, which values it refuses, and what its notes lead to.

Golden files are in cases/: values.yaml in, objects.yaml and notes.txt out. `python tests/chart/test_chart.py` writes
them anew; read the difference before you commit it.
"""

import hashlib
import json
import os
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from helm import CASES, CHART, ROOT, Json, helm, notes, one, ordered, template, values
from typer.core import TyperGroup
from typer.main import get_command

from audit_operator import __version__
from audit_operator.cli.app import app
from audit_operator.resources.crd import crds, schemas
from audit_operator.resources.load import load_resource
from audit_operator.resources.yamlwriter import write_all

NAMES = sorted(path.name for path in CASES.iterdir())
VERSIONS = ["1.28", "1.31", "1.34", "1.36"]
SCHEMA: Json = json.loads((CHART / "values.schema.json").read_text())
VALUES: Json = yaml.safe_load((CHART / "values.yaml").read_text())


def refusal(*settings: str) -> str:
    done = helm("template", "audit-operator", CHART, *(part for each in settings for part in ("--set", each)))
    assert done.returncode != 0, done.stdout
    return done.stderr


# --- objects ---------------------------------------------------------------------------------------------------------


def test_the_chart_passes_helms_strict_lint() -> None:
    for name in NAMES:
        done = helm("lint", "--strict", CHART, *values(name))
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_objects_are_those_of_the_golden_file(name: str) -> None:
    golden = CASES / name / "objects.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(write_all(template(*values(name))))
    assert template(*values(name)) == ordered(golden.read_text()), "UPDATE_GOLDEN=1 accepts it"


@pytest.mark.parametrize("name", NAMES)
def test_notes_are_those_of_the_golden_file(name: str) -> None:
    assert notes(*values(name)).strip() == (CASES / name / "notes.txt").read_text().strip()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_object_is_valid_in_every_version_of_kubernetes(name: str, version: str) -> None:
    for item in template(*values(name), "--kube-version", version):
        if item["kind"] in {"AuditBackend", "PrometheusRule", "ServiceMonitor"}:
            continue
        kubernetes_validate.validate(item, version, strict=True)


def test_an_older_kubernetes_is_refused() -> None:
    done = helm("template", "audit-operator", CHART, "--kube-version", "1.27")
    assert done.returncode != 0
    assert "incompatible" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_namespaced_objects_say_their_namespace_and_others_have_none(name: str) -> None:
    cluster = {"AuditBackend", "ClusterRole", "ClusterRoleBinding"}
    for item in template(*values(name)):
        expected = None if item["kind"] in cluster else "audit-system"
        assert item["metadata"].get("namespace") == expected, item["kind"]


def test_names_do_not_depend_on_the_release() -> None:
    done = helm("template", "something-else", CHART, "--namespace", "audit-system")
    names = {(item["kind"], item["metadata"]["name"]) for item in ordered(done.stdout)}
    assert names == {(item["kind"], item["metadata"]["name"]) for item in template()}


def test_no_value_takes_a_pod_out_of_its_selectors() -> None:
    objects = template(*values("everything"))
    labels = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        one(objects, "Deployment")["spec"]["selector"]["matchLabels"],
        one(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        one(objects, "Service", "audit-operator-metrics")["spec"]["selector"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
    monitored = one(objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= one(objects, "Service", "audit-operator-metrics")["metadata"]["labels"].items()


@pytest.mark.parametrize("name", NAMES)
def test_pods_meet_the_restricted_pod_security_standard(name: str) -> None:
    pod = one(template(*values(name)), "Deployment")["spec"]["template"]["spec"]
    # OpenShift's restricted-v2 refuses users and groups that are asked for; the image says which it is elsewhere.
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"livenessProbe", "readinessProbe", "startupProbe", "resources"} <= container.keys()
    assert not any("hostPath" in volume for volume in pod["volumes"])
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()


def test_a_digest_decides_over_a_tag_and_receivers_run_the_same_image() -> None:
    for name in NAMES:
        (container,) = one(template(*values(name)), "Deployment")["spec"]["template"]["spec"]["containers"]
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert environment["AUDIT_OPERATOR_IMAGE"] == container["image"]
        assert ("@sha256:" in container["image"]) == (name == "everything")


def test_the_log_level_changes_without_a_restart() -> None:
    quiet, loud = template(), template("--set", "log.level=debug")
    assert one(quiet, "Deployment") == one(loud, "Deployment")
    assert one(loud, "ConfigMap", "audit-operator-logging")["data"] == {"level": "debug"}


@pytest.mark.parametrize("name", NAMES)
def test_the_operator_knows_every_argument_and_variable_it_is_started_with(name: str) -> None:
    (container,) = one(template(*values(name)), "Deployment")["spec"]["template"]["spec"]["containers"]
    command, *arguments = container["args"]
    program = get_command(app)
    assert isinstance(program, TyperGroup)
    options = program.commands[command]
    context = options.make_context(command, [*arguments], resilient_parsing=True)
    assert context.args == []
    names = {option for parameter in options.params for option in parameter.opts}
    assert {argument.partition("=")[0] for argument in arguments} <= names
    variables = {str(parameter.envvar) for parameter in options.params if parameter.envvar}
    assert {entry["name"] for entry in container["env"]} <= variables
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert Path(context.params["log_level_file"]).parent.as_posix() in mounted


def test_nobody_gets_our_roles_by_default() -> None:
    for item in template():
        assert not any("aggregate-to" in label for label in item["metadata"]["labels"]), item["metadata"]["name"]


def test_whoever_may_read_sinks_and_policies_may_not_write_them() -> None:
    roles = {item["metadata"]["name"]: item["rules"] for item in template() if item["kind"] == "ClusterRole"}
    written = {
        name: {resource for rule in rules for resource in rule["resources"] if "create" in rule["verbs"]}
        for name, rules in roles.items()
    }
    assert written["audit-operator-policy-author"] == {"auditpolicies"}
    assert written["audit-operator-sink-admin"] == {"auditsinks"}
    assert written["audit-operator-viewer"] == set()


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ((), False),
        (("backend.spec.tenants.enabled=true",), True),
        (("backend.spec.tenants.enabled=true", "backend.create=false"), False),
        (("backend.spec.tenants.enabled=true", "rbac.tenantCredentials=false"), False),
        (("rbac.tenantCredentials=true",), True),
    ],
)
def test_secrets_of_all_namespaces_are_read_only_where_tenants_are_wanted(
    settings: tuple[str, ...], bound: bool
) -> None:
    objects = template(*(part for each in settings for part in ("--set", each)))
    bindings = {item["roleRef"]["name"] for item in objects if item["kind"] == "ClusterRoleBinding"}
    assert ("audit-operator-tenant-credentials" in bindings) is bound
    cluster_wide = [
        rule
        for item in objects
        if item["kind"] == "ClusterRole" and item["metadata"]["name"] in bindings
        for rule in item["rules"]
    ]
    assert any("secrets" in rule["resources"] for rule in cluster_wide) is bound


# --- CRDs and the AuditBackend ---------------------------------------------------------------------------------------


def test_crds_of_the_chart_are_the_ones_of_this_version() -> None:
    written = {path.name: path.read_text() for path in (CHART / "crds").iterdir()}
    assert written == crds(), "run `make generate`"


def test_a_crd_that_changes_has_another_hash() -> None:
    """The chart tells CRDs in a cluster from its own by this."""
    for text in crds().values():
        crd = yaml.safe_load(text)
        digest = hashlib.sha256(json.dumps(crd["spec"], sort_keys=True).encode()).hexdigest()
        assert crd["metadata"]["annotations"]["audit-operator.dev/hash"] == digest[:16]


def test_helm_prints_crds_as_a_stream_that_kubectl_can_apply() -> None:
    printed = ordered(helm("show", "crds", CHART).stdout)
    assert [item["kind"] for item in printed] == ["CustomResourceDefinition"] * 3


@pytest.mark.parametrize("name", NAMES)
def test_the_backend_is_one_that_the_operator_takes(name: str) -> None:
    backends = [item for item in template(*values(name)) if item["kind"] == "AuditBackend"]
    assert len(backends) == (0 if name == "gitops" else 1)
    for backend in backends:
        load_resource(backend)


def test_versions_are_those_of_the_package() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["appVersion"] == __version__


# --- values ----------------------------------------------------------------------------------------------------------


def test_defaults_are_documented_and_obey_the_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(VALUES, SCHEMA)
    lines = (CHART / "values.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        match = re.match(r"^(\s*)[A-Za-z]+: ?(.*)$", line)
        if match and match[2]:
            above = next(text for text in reversed(lines[:number]) if not re.match(r"^\s*# (?!--)", text))
            in_list = "-" in match[1] or lines[number - 1].strip().startswith(("cpu", "requests", "limits"))
            assert above.strip().startswith("# --") or in_list, f"values.yaml:{number + 1} is not documented"


def test_every_value_is_in_the_schema_and_every_object_there_is_closed() -> None:
    def walk(schema: Json, found: Any, path: str) -> None:
        if path.startswith(".backend.spec") or schema.get("type") != "object" or "properties" not in schema:
            return
        assert schema["additionalProperties"] is False, path
        assert set(found) == schema["properties"].keys() - {"global"}, path
        for name, field in schema["properties"].items():
            if name not in {"global", "affinity"}:
                walk(field, found[name], f"{path}.{name}")

    walk(SCHEMA, VALUES, "")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("imge.tag=1", "imge"),
        ("image.tagg=1", "tagg"),
        ("image.digest=abc", "/image/digest"),
        ("image.repository=", "/image/repository"),
        ("replicas=0", "/replicas"),
        ("replicas=two", "/replicas"),
        ("log.level=verbose", "/log/level"),
        ("backend.spec.clusterName=null", "clusterName"),
        ("backend.spec.tenants.enabled=yes", "/backend/spec/tenants/enabled"),
        ("rbac.aggregate.viewer={everybody}", "/rbac/aggregate/viewer/0"),
        ("rbac.aggregate.sinkAdmin={view}", "/rbac/aggregate/sinkAdmin/0"),
        ("rbac.tenantCredentials=maybe", "/rbac/tenantCredentials"),
        ("networkPolicy.apiServerPorts={0}", "/networkPolicy/apiServerPorts/0"),
        ("resources.requests.cpu=lots", "/resources/requests/cpu"),
        ("tolerations[0].effect=Sometimes", "/tolerations/0/effect"),
        ("labels.a=1", "/labels/a"),
        ("metrics.serviceMonitor.interval=often", "/metrics/serviceMonitor/interval"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_by_its_name(setting: str, said: str) -> None:
    message = refusal(setting)
    assert said.rpartition("/")[2] in message
    if "/" in said:
        assert said in message or said.strip("/").replace("/", ".") in message  # Helm 4; Helm 3


def test_the_readme_names_only_values_that_there_are_and_what_it_sets_is_accepted() -> None:
    readme = (CHART / "README.md").read_text()
    for row in re.findall(r"^\| (`.*?) \|", readme, re.MULTILINE):
        for name in re.findall(r"`([\w.]+)`", row):
            found: Any = VALUES
            for part in name.split("."):
                found = found[part]
    (install,) = re.findall(r"^helm install (?:.*\\\n)*.*$", readme, re.MULTILINE)
    command = install.replace("\\\n", " ").replace("charts/audit-operator", str(CHART)).split()
    done = helm("template", *(part for part in command[2:] if part != "--create-namespace"))
    assert done.returncode == 0, done.stderr


def test_the_chart_works_as_part_of_another(tmp_path: Path) -> None:
    """A parent chart hands `global` down."""
    parent = tmp_path / "parent"
    shutil.copytree(CHART, parent / "charts" / "audit-operator")
    (parent / "Chart.yaml").write_text("apiVersion: v2\nname: parent\nversion: 1.0.0\n")
    (parent / "values.yaml").write_text("global: {region: eu}\naudit-operator: {replicas: 1}\n")
    done = helm("template", "all", parent, "--namespace", "audit-system")
    assert done.returncode == 0, done.stderr
    assert one(ordered(done.stdout), "Deployment")["spec"]["replicas"] == 1


# --- notes -----------------------------------------------------------------------------------------------------------


def first_policy(text: str) -> list[Json]:
    match = re.search(r"<<'EOF'\n(.*?)\n +EOF\n", text, re.DOTALL)
    assert match
    return list(yaml.safe_load_all(textwrap.dedent(match[1])))


@pytest.mark.parametrize("name", NAMES)
def test_the_notes_lead_to_a_first_policy_that_is_accepted(name: str) -> None:
    documents = first_policy(notes(*values(name)))
    assert documents[-1]["kind"] == "AuditPolicy"
    for document in documents:
        load_resource(document)
        jsonschema.validate(document["spec"], schemas()[document["kind"]]["properties"]["spec"])
        assert document["metadata"]["namespace"] == "audit-system"


def test_the_notes_promise_nothing_that_these_values_do_not_give() -> None:
    everything = notes(*values("everything"))
    assert [each["kind"] for each in first_policy(everything)] == ["AuditPolicy"]
    assert "there are no receivers" in everything
    assert "mode is Fixed" in everything
    assert "holds no AuditBackend" in notes(*values("gitops"))
    assert "kubectl get auditbackend default" not in notes(*values("gitops"))
    assert "create rolebinding" in notes(*values("tenants"))
    assert "create rolebinding" not in notes("--set", "backend.spec.tenants.enabled=true")
    assert "Tenants" not in notes()
    assert "Before `helm uninstall`" in notes()
    assert "Before `helm uninstall`" not in notes("--set", "backend.spec.webhook.enabled=false")
    assert "refuse every request" in notes("--set", "backend.spec.webhook.mode=blocking-strict")
    assert "refuse every request" not in notes()


@pytest.mark.parametrize("name", NAMES)
def test_the_notes_name_only_what_the_release_holds(name: str) -> None:
    text = notes(*values(name))
    objects = {(item["kind"], item["metadata"]["name"]) for item in template(*values(name))}
    assert ("Deployment", re.search(r"deployment/(\S+)", text)[1]) in objects  # type: ignore[index]
    for role in re.findall(r"--clusterrole=(\S+)", text):
        assert ("ClusterRole", role) in objects
    assert (ROOT / "docs" / "rbac.md").exists()
    assert "docs/rbac.md" in text


if __name__ == "__main__":
    for case in NAMES:
        (CASES / case / "objects.yaml").write_text(write_all(template(*values(case))))
        (CASES / case / "notes.txt").write_text(notes(*values(case)))
