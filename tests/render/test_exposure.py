"""API servers, which cannot resolve cluster names, get an address; and the certificate gets every name."""

from typing import Any

import pytest

from audit_operator.render.exposure import exposed
from audit_operator.render.world import ReceiverAddress, World
from audit_operator.resources.auditbackend import Receiver

NODE, LB = "10.0.0.1", "lb.example.com"
SERVICE = ("audit-receiver.audit-system.svc", "audit-receiver.audit-system.svc.cluster.local")


def receiver(**exposure: Any) -> Receiver:
    return Receiver.model_validate({"exposure": exposure} if exposure else {})


@pytest.mark.parametrize(
    ("exposure", "address", "url", "names"),
    [
        ({"clusterIP": {"clusterIP": "10.96.0.9"}}, {}, "https://10.96.0.9:8443/audit", ("10.96.0.9",)),
        ({}, {"cluster_ip": "fd00::9"}, "https://[fd00::9]:8443/audit", ("fd00::9",)),
        (
            {"nodePort": {"addresses": ["10.0.0.1", "node.example.com"], "port": 30001}},
            {"node_port": 31000},
            "https://10.0.0.1:30001/audit",
            ("10.0.0.1", "node.example.com"),
        ),
        ({"nodePort": {"addresses": [NODE]}}, {"node_port": 31000}, "https://10.0.0.1:31000/audit", (NODE,)),
        ({"loadBalancer": {}}, {"load_balancer": LB}, f"https://{LB}:8443/audit", (LB,)),
        ({"external": {"host": LB}}, {}, f"https://{LB}:443/audit", (LB,)),
    ],
)  # fmt: skip
def test_the_address_is_what_the_backend_says_or_the_cluster_gave(
    exposure: dict[str, Any], address: dict[str, Any], url: str, names: tuple[str, ...]
) -> None:
    found = exposed(receiver(**exposure), World(receiver_address=ReceiverAddress(**address)))
    assert found.url == url
    assert found.names == (*SERVICE, *names)
    assert found.server_name == SERVICE[0]
    assert found.unknown is None


@pytest.mark.parametrize(
    ("exposure", "url", "field"),
    [
        ({}, "https://{ADDRESS}:8443/audit", "clusterIP.clusterIP"),
        ({"nodePort": {"addresses": [NODE]}}, "https://10.0.0.1:{PORT}/audit", "nodePort.port"),
        ({"loadBalancer": {}}, "https://{ADDRESS}:8443/audit", "loadBalancer.address"),
    ],
)  # fmt: skip
def test_an_address_that_only_the_cluster_knows_is_a_placeholder_and_said(
    exposure: dict[str, Any], url: str, field: str
) -> None:
    found = exposed(receiver(**exposure), World())
    assert found.url == url
    assert found.unknown is not None
    assert found.unknown.path == f"spec.receiver.exposure.{field}"
    assert "kubectl -n audit-system get service audit-receiver" in found.unknown.way_out


def test_the_root_namespace_and_the_cluster_domain_are_in_the_names() -> None:
    found = exposed(receiver(), World(root_namespace="ops", cluster_domain="k8s.example"))
    assert found.names == ("audit-receiver.ops.svc", "audit-receiver.ops.svc.k8s.example")
