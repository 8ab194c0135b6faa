"""Where API servers find the receiver, and which names its certificate needs."""

from typing import TYPE_CHECKING, Final, NamedTuple

from audit_operator.resources.load import Problem

if TYPE_CHECKING:
    from audit_operator.render.world import World
    from audit_operator.resources.auditbackend import Receiver

RECEIVER: Final = "audit-receiver"
"""Name of the receiver's workload, Service and whatever else belongs to it."""

AUDIT_PATH: Final = "/audit"


class Exposed(NamedTuple):
    """``url``: for the kubeconfig. ``server_name``: the name that API servers look for in the certificate.

    ``names``: every DNS name and IP address that belongs into it. ``unknown``: why ``url`` has a placeholder for the
    address; None if it has none. With the placeholder, which no URL may hold, an API server refuses to start: better
    than one that starts and loses every event.
    """

    url: str
    server_name: str
    names: tuple[str, ...]
    unknown: Problem | None


def exposed(receiver: "Receiver", world: "World") -> Exposed:
    """How API servers, which on the host network cannot resolve cluster DNS, reach the receiver."""
    exposure, given = receiver.exposure, world.receiver_address
    host: str | None = None
    port: int | None = receiver.port
    others: tuple[str, ...] = ()
    field = ""
    if exposure.cluster_ip:
        host = exposure.cluster_ip.cluster_ip or given.cluster_ip
        field = "clusterIP.clusterIP"
    elif exposure.node_port:
        host, *rest = exposure.node_port.addresses
        others = tuple(rest)
        port = exposure.node_port.port or given.node_port
        field = "nodePort.port"
    elif exposure.load_balancer:
        host = exposure.load_balancer.address or given.load_balancer
        field = "loadBalancer.address"
    elif exposure.external:
        host, port = exposure.external.host, exposure.external.port
    service = f"{RECEIVER}.{world.root_namespace}.svc"
    unknown = None
    if host is None or port is None:
        unknown = _unknown(f"spec.receiver.exposure.{field}", world)
    return Exposed(
        url=f"https://{_bracketed(host) if host else '{ADDRESS}'}:{port or '{PORT}'}{AUDIT_PATH}",
        server_name=service,
        names=(service, f"{service}.{world.cluster_domain}", *((host,) if host else ()), *others),
        unknown=unknown,
    )


def _unknown(field: str, world: "World") -> Problem:
    shows = f"`kubectl -n {world.root_namespace} get service {RECEIVER}` shows"
    if world.served is None:
        return Problem(
            field,
            "is left to the cluster, which is not asked here: webhook.kubeconfig holds a placeholder that API servers "
            "refuse to start with",
            way_out=f"give it here, or replace the placeholder by what {shows}",
        )
    return Problem(
        field,
        "is left to the cluster, which has not given any yet: API servers get nothing to run until it has",
        way_out=f"wait for it, as {shows}, or give it here",
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
