"""What the operator may do in the cluster: all it ever asks of the API server, and so all that the chart grants it."""

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from audit_operator.resources.meta import GROUP

Scope = Literal["cluster", "root namespace", "tenants"]
"""Where: everywhere; in the operator's own namespace; everywhere, and only if tenants have sinks."""


class Permission(NamedTuple):
    """``verbs`` on one resource. ``resource`` may have a subresource; ``names``: only objects of these names."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    scope: Scope
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        """For a person: ``list, watch namespaces``."""
        what = f"{self.resource}.{self.group}" if self.group else self.resource
        where = " in the operator's namespace" if self.scope == "root namespace" else ""
        return f"{', '.join(self.verbs)} {what}{where}"


LEASE: Final = "audit-operator"
"""The Lease that the replicas of the operator share; the chart makes it, so that it goes with the chart."""

_CHILD: Final = ("get", "list", "watch", "create", "patch", "delete")

_CUSTOM: Final = ("auditbackends", "auditpolicies", "auditsinks")

PERMISSIONS: Final[tuple[Permission, ...]] = (
    # kopf: the resources, and what says that they exist.
    *(Permission(GROUP, kind, ("list", "watch"), "cluster") for kind in _CUSTOM),
    Permission("apiextensions.k8s.io", "customresourcedefinitions", ("list", "watch"), "cluster"),
    Permission("", "namespaces", ("list", "watch"), "cluster"),
    # What people see.
    *(Permission(GROUP, f"{kind}/status", ("patch",), "cluster") for kind in _CUSTOM),
    Permission("events.k8s.io", "events", ("create",), "cluster"),
    # Whether all of this is granted.
    Permission("authorization.k8s.io", "selfsubjectaccessreviews", ("create",), "cluster"),
    # What sinks refer to: in the operator's namespace the rows below suffice.
    Permission("", "configmaps", ("get",), "tenants"),
    Permission("", "secrets", ("get",), "tenants"),
    # What it makes. `create` too where it only ever applies: an apply of what does not exist is a create to RBAC.
    Permission("", "configmaps", _CHILD, "root namespace"),
    Permission("", "secrets", _CHILD, "root namespace"),
    Permission("", "serviceaccounts", _CHILD, "root namespace"),
    Permission("", "services", _CHILD, "root namespace"),
    Permission("apps", "deployments", _CHILD, "root namespace"),
    Permission("apps", "statefulsets", _CHILD, "root namespace"),
    Permission("cert-manager.io", "certificates", _CHILD, "root namespace"),
    Permission("monitoring.coreos.com", "prometheusrules", _CHILD, "root namespace"),
    Permission("monitoring.coreos.com", "servicemonitors", _CHILD, "root namespace"),
    Permission("networking.k8s.io", "networkpolicies", _CHILD, "root namespace"),
    Permission("policy", "poddisruptionbudgets", _CHILD, "root namespace"),
    # Receivers' addresses, to push programs to them and to ask how they fare.
    Permission("", "pods", ("get", "list", "watch"), "root namespace"),
    # Receivers' volumes: how large they are, and to let them grow. None is ever made or deleted.
    Permission("", "persistentvolumeclaims", ("get", "list", "watch", "patch"), "root namespace"),
    # Who writes. The chart makes the Lease; a deleted one must not be the end of it, and `create` knows no names.
    Permission("coordination.k8s.io", "leases", ("create",), "root namespace"),
    Permission("coordination.k8s.io", "leases", ("get", "update"), "root namespace", (LEASE,)),
)


def watched() -> Iterator[Permission]:
    """Those without which nothing can be known, and so nothing be done."""
    return (each for each in PERMISSIONS if each.scope == "cluster" and "watch" in each.verbs)
