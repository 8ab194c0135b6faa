"""How receivers, API servers and the operator know each other: Secrets, or cert-manager's Certificates that fill them.

Where the operator has the CA it needs no Secret for itself. All have the keys of type kubernetes.io/tls, and in
``ca.crt`` the CAs to trust the other side by.
"""

import ipaddress
from typing import TYPE_CHECKING, Final

from audit_operator.render.exposure import RECEIVER, Exposed
from audit_operator.render.objects import Object, encoded, new
from audit_operator.render.report import API_SERVER_NAME, OPERATOR_NAME, operator_uri

if TYPE_CHECKING:
    from collections.abc import Iterable

    from audit_operator.render.world import World
    from audit_operator.resources.auditbackend import CertificateSource, IssuerReference

RECEIVER_TLS: Final = f"{RECEIVER}-tls"
"""The Secret with the certificate that receivers present."""
CLIENT_TLS: Final = "audit-apiserver-client"
"""The Secret with the certificate that API servers present; a control-plane node gets copies of its keys."""

OPERATOR_TLS: Final = "audit-operator-client"
"""The Secret with the certificate that the operator presents to receivers, where cert-manager makes it."""

CLIENT_NAME: Final = API_SERVER_NAME
"""Common name of API servers' certificates."""

CERTIFICATE_KIND: Final = ("cert-manager.io/v1", "Certificate")


def tls_objects(source: "CertificateSource", exposed: Exposed, world: "World") -> tuple[Object, ...]:
    """What gives receivers and API servers their certificates; nothing where somebody else will make them by hand."""
    namespace, given = world.root_namespace, world.certificates
    if source.cert_manager:
        issuer = source.cert_manager.issuer_ref
        server = new(*CERTIFICATE_KIND, RECEIVER_TLS, namespace, "receiver")
        server["spec"] = _certificate(RECEIVER_TLS, "server auth", exposed.names, issuer)
        client = new(*CERTIFICATE_KIND, CLIENT_TLS, namespace, "apiserver")
        client["spec"] = {"commonName": CLIENT_NAME, **_certificate(CLIENT_TLS, "client auth", (CLIENT_NAME,), issuer)}
        operator = new(*CERTIFICATE_KIND, OPERATOR_TLS, namespace, "operator")
        operator["spec"] = {
            "commonName": OPERATOR_NAME,
            "uris": [operator_uri(world.cluster_domain, namespace)],
            **_certificate(OPERATOR_TLS, "client auth", (OPERATOR_NAME,), issuer),
        }
        return server, client, operator
    if given is None:
        return ()
    return (
        _secret(RECEIVER_TLS, "receiver", world, (given.ca, given.server_certificate, given.server_key)),
        _secret(CLIENT_TLS, "apiserver", world, (given.ca, given.client_certificate, given.client_key)),
    )


def is_address(name: str) -> bool:
    """Whether a name in a certificate is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _secret(name: str, component: str, world: "World", texts: tuple[str, str, str]) -> Object:
    # data, never stringData: that is write-only, so nobody could tell what differs.
    data = dict(zip(("ca.crt", "tls.crt", "tls.key"), map(encoded, texts), strict=True))
    return new("v1", "Secret", name, world.root_namespace, component, type="kubernetes.io/tls", data=data)


def _certificate(secret: str, usage: str, names: "Iterable[str]", issuer: "IssuerReference") -> Object:
    """What cert-manager is to keep in the Secret; with no labels of ours on that, because it is not ours."""
    found = tuple(dict.fromkeys(names))
    addresses = [each for each in found if is_address(each)]
    return {
        "secretName": secret,
        "dnsNames": [each for each in found if not is_address(each)],
        **({"ipAddresses": addresses} if addresses else {}),
        "usages": ["digital signature", usage],
        "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
        "issuerRef": {"name": issuer.name, "kind": issuer.kind, "group": issuer.group},
    }
