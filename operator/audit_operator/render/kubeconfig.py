"""The kubeconfig behind ``--audit-webhook-config-file``: how an API server reaches the receiver."""

from typing import NamedTuple

from audit_operator.resources.yamlwriter import write

_NAME = "audit-receiver"


class CertificateFiles(NamedTuple):
    """Where the API server finds its certificates. By path, because files are reloaded and inline data is not."""

    ca: str
    client_certificate: str
    client_key: str


def kubeconfig(*, url: str, server_name: str, files: CertificateFiles, header: str = "") -> str:
    """The text of the kubeconfig.

    ``url``: where the API server connects, by IP address, since on the host network it cannot resolve cluster DNS.
    ``server_name``: the DNS name in the receiver's certificate. Without current-context the API server stops.
    """
    return write(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": _NAME,
                    "cluster": {"server": url, "tls-server-name": server_name, "certificate-authority": files.ca},
                }
            ],
            "users": [
                {
                    "name": "kube-apiserver",
                    "user": {"client-certificate": files.client_certificate, "client-key": files.client_key},
                }
            ],
            "contexts": [{"name": _NAME, "context": {"cluster": _NAME, "user": "kube-apiserver"}}],
            "current-context": _NAME,
        },
        header=header,
    )
