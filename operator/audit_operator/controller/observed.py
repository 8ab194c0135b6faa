"""Conditions that only a running operator can see: what was applied, and what became of it. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from audit_operator.controller.children import Trouble
from audit_operator.controller.reported import Conditions
from audit_operator.render.exposure import RECEIVER
from audit_operator.render.objects import Object
from audit_operator.render.status import Condition, ResourceStatus, false, true, under_way, with_conditions
from audit_operator.render.tenants import Refusal
from audit_operator.render.world import Identity, ReceiverAddress


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a plan.

    ``blocked``: nothing was made, and the AuditBackend's status says why. ``waiting``: for the address of the
    receivers' Service. ``troubles``: what could not be made. ``denied``: sinks that refer to what the operator may not
    read, with the API server's words. ``receivers``: what receivers report of themselves; ``delivering``: of policies
    and sinks.
    """

    backend: Identity
    blocked: bool
    waiting: bool
    troubles: tuple[Trouble, ...]
    objects: int
    receiver_ready: Condition | None
    certificates: Condition | None
    denied: Mapping[Identity, str]
    receivers: tuple[Condition, ...] = ()
    delivering: Conditions | None = None

    def of(self, identity: Identity) -> Iterator[Condition]:
        """The conditions of one resource."""
        if identity == self.backend:
            if not self.blocked:
                yield self._applied()
            found = {each.type: each for each in (self.certificates, self.receiver_ready) if each is not None}
            for each in self.receivers:
                # What the cluster says of certificates and workload comes first, unless there is nothing wrong.
                if each.type not in found or found[each.type].status == "True":
                    found[each.type] = each
            yield from found.values()
            return
        if identity in self.denied:
            said = f"the operator may not read what it refers to; grant it: {self.denied[identity]}"
            yield false("Configured", Refusal("Forbidden", said))
        yield self._published()
        if self.delivering is not None:
            yield from self.delivering.of(identity)

    def _applied(self) -> Condition:
        if self.troubles:
            said = "\n".join(f"{trouble.ref}: {trouble.message}" for trouble in self.troubles)
            return false("Applied", Refusal(self.troubles[0].reason, said))
        if self.waiting:
            return under_way(
                "Applied",
                "WaitingForAddress",
                f"Service {RECEIVER} has no address yet, so nothing is published for API servers; if it stays like "
                "this, give the address in spec.receiver.exposure",
            )
        return true("Applied", f"{self.objects} objects are in the operator's namespace as they should be")

    def _published(self) -> Condition:
        """Published: whether what follows from a policy or sink is in what API servers and receivers are to run."""
        if self.blocked:
            why = "AuditBackend default keeps everything from being made; its status says why"
            return false("Published", Refusal("BackendBlocked", why))
        if self.troubles:
            why = "not all objects could be made; condition Applied of AuditBackend default says why"
            return false("Published", Refusal("NotApplied", why))
        if self.waiting:
            return under_way(
                "Published",
                "WaitingForAddress",
                "nothing is published before the receivers' Service has an address; see AuditBackend default",
            )
        return true("Published", "what API servers and receivers are to run has it")


def without_backend(status: ResourceStatus) -> ResourceStatus:
    """The status of a policy or sink while there is no AuditBackend."""
    why = "there is no AuditBackend, so nothing is made for API servers and receivers: create one named default"
    return with_conditions(status, false("Published", Refusal("NoBackend", why)))


def address(service: Object | None) -> ReceiverAddress:
    """What the cluster gave the receivers' Service."""
    if service is None:
        return ReceiverAddress()
    spec = service.get("spec") or {}
    ports: Sequence[Mapping[str, Any]] = spec.get("ports") or ({},)
    balancers = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    first: Mapping[str, Any] = balancers[0] if balancers else {}
    cluster_ip = spec.get("clusterIP")
    return ReceiverAddress(
        cluster_ip=cluster_ip if cluster_ip != "None" else None,
        node_port=ports[0].get("nodePort"),
        load_balancer=first.get("ip") or first.get("hostname"),
    )


def receiver_ready(workload: Object | None, replicas: int) -> Condition:
    """ReceiverReady: whether receivers run, and the newest ones."""
    if workload is None:
        return under_way("ReceiverReady", "NotCreated", "the receivers' workload is not there yet")
    status: Mapping[str, Any] = workload.get("status") or {}
    ready = int(status.get("readyReplicas") or 0)
    updated = int(status.get("updatedReplicas") or 0)
    said = f"{ready} of {replicas} receivers are ready"
    if ready == 0:
        return under_way("ReceiverReady", "NoReceiverReady", f"{said}: `kubectl describe` their pods to see why")
    if status.get("observedGeneration") != workload["metadata"].get("generation") or updated < replicas:
        return true("ReceiverReady", f"{said}, {updated} of the newest version", "RollingOut")
    return true("ReceiverReady", said, "ReceiverReady" if ready >= replicas else "SomeReceiversReady")


def certificates_valid(ends: Mapping[str, datetime], now: datetime) -> Condition:
    """CertificatesValid, of the operator's own CA. ``ends``: name of a certificate -> when it ends."""
    said = ", ".join(f"{name} until {end:%Y-%m-%d}" for name, end in sorted(ends.items()))
    over = sorted(name for name, end in ends.items() if end <= now)
    if over:
        return false("CertificatesValid", Refusal("Expired", f"{', '.join(over)}: expired; valid: {said}"))
    return true("CertificatesValid", said)


def certificates_issued(certificates: Iterable[tuple[str, Object | None]]) -> Condition:
    """CertificatesValid, where cert-manager makes them."""
    for name, found in certificates:
        conditions = ((found or {}).get("status") or {}).get("conditions") or ()
        ready: Mapping[str, Any] = next((each for each in conditions if each.get("type") == "Ready"), {})
        if ready.get("status") != "True":
            why = ready.get("message") or "cert-manager has not issued it yet"
            return under_way("CertificatesValid", "WaitingForCertManager", f"Certificate {name}: {why}")
    return true("CertificatesValid", "cert-manager has issued them")
