"""What turns audit on by hand, in the forms kubeadm and kind read."""

from typing import Any

import pytest
import yaml

from audit_operator.policy.model import Level, Policy, Rule
from audit_operator.render.flags import Flag, flags, log_directory
from audit_operator.render.kubeadm import kind, kubeadm
from audit_operator.resources.auditbackend import AuditBackendSpec

SPEC = AuditBackendSpec.model_validate({"clusterName": "c"})
FLAGS: tuple[Flag, ...] = flags(SPEC, Policy(rules=(Rule(level=Level.METADATA),)), (1, 36)).flags
ARGUMENTS = {flag.name: flag.value for flag in FLAGS}


def arguments(configuration: dict[str, Any]) -> dict[str, str]:
    given = configuration["apiServer"]["extraArgs"]
    return given if isinstance(given, dict) else {entry["name"]: entry["value"] for entry in given}


@pytest.mark.parametrize(("server", "api", "form"), [((1, 30), "v1beta3", dict), ((1, 31), "v1beta4", list)])
def test_kubeadm_gets_the_form_its_version_reads(server: tuple[int, int], api: str, form: type) -> None:
    document = yaml.safe_load(kubeadm(FLAGS, "/var/log/audit", server, header="h"))
    assert document["apiVersion"] == f"kubeadm.k8s.io/{api}"
    assert document["kind"] == "ClusterConfiguration"
    assert isinstance(document["apiServer"]["extraArgs"], form)
    assert arguments(document) == ARGUMENTS
    assert all(isinstance(value, str) for value in arguments(document).values())


@pytest.mark.parametrize("path", ["/var/log/kubernetes/audit/audit.log", "-"])
def test_every_file_that_a_flag_names_is_in_a_mounted_folder(path: str) -> None:
    document = yaml.safe_load(kubeadm(FLAGS, log_directory(path), (1, 36)))
    volumes = document["apiServer"]["extraVolumes"]
    assert [volume["mountPath"] for volume in volumes] == [volume["hostPath"] for volume in volumes]
    folders = {volume["mountPath"]: volume for volume in volumes}
    assert folders["/etc/kubernetes/audit"]["readOnly"] is True
    assert ("/var/log/kubernetes/audit" in folders) == (path != "-")
    for name in ("audit-policy-file", "audit-webhook-config-file"):
        assert ARGUMENTS[name].rpartition("/")[0] in folders


def test_kind_gets_both_forms_because_it_takes_the_one_of_its_release() -> None:
    document = yaml.safe_load(kind(FLAGS, "/var/log/audit"))
    (node,) = document["nodes"]
    assert node["extraMounts"] == [
        {"hostPath": "./apiserver", "containerPath": "/etc/kubernetes/audit", "readOnly": True}
    ]
    patches = [yaml.safe_load(patch) for patch in node["kubeadmConfigPatches"]]
    assert [patch["apiVersion"] for patch in patches] == ["kubeadm.k8s.io/v1beta4", "kubeadm.k8s.io/v1beta3"]
    assert all(arguments(patch) == ARGUMENTS for patch in patches)
