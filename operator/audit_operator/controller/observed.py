"""Conditions that only a running operator can see: what was applied, and what became of it. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from audit_operator.controller.children import Trouble
from audit_operator.controller.reported import Conditions
from audit_operator.render.exposure import RECEIVER
from audit_operator.render.objects import Object
from audit_operator.render.status import Condition, ResourceStatus, false, true, under_way, with_conditions
from audit_operator.render.tenants import Refusal
from audit_operator.render.volumes import left_behind, mounted, ordinal_of
from audit_operator.render.world import Identity, ReceiverAddress, Volume
from audit_operator.resources.auditbackend import AuditBackendSpec
from audit_operator.resources.meta import quantity

_BESIDE: Final = frozenset({"NetworkPolicy", "PodDisruptionBudget", "PrometheusRule", "ServiceMonitor"})
"""Kinds without which policies and sinks are in force all the same; the AuditBackend's status is for these."""


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
    storage: Condition | None = None
    receivers: tuple[Condition, ...] = ()
    delivering: Conditions | None = None

    def of(self, identity: Identity) -> Iterator[Condition]:
        """The conditions of one resource."""
        if identity == self.backend:
            if not self.blocked:
                yield self._applied()
            seen = (self.storage, self.certificates, self.receiver_ready)
            found = {each.type: each for each in seen if each is not None}
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
            if not self._stuck:
                return under_way("Applied", self.troubles[0].reason, said)
            return false("Applied", Refusal(self._stuck[0].reason, said))
        if self.waiting:
            return under_way(
                "Applied",
                "WaitingForAddress",
                f"Service {RECEIVER} has no address yet, so nothing is published for API servers; if it stays like "
                "this, give the address in spec.receiver.exposure",
            )
        return true("Applied", f"{self.objects} objects are in the operator's namespace as they should be")

    @property
    def _stuck(self) -> list[Trouble]:
        """Those that need somebody's help."""
        return [trouble for trouble in self.troubles if not trouble.under_way]

    def _published(self) -> Condition:
        """Published: whether what follows from a policy or sink is in what API servers and receivers are to run."""
        if self.blocked:
            why = "AuditBackend default keeps everything from being made; its status says why"
            return false("Published", Refusal("BackendBlocked", why))
        if any(trouble.ref.kind not in _BESIDE for trouble in self._stuck):
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


def volume(claim: Object) -> Volume | None:
    """A receiver's volume, as its claim tells; None of another one's claim."""
    metadata, spec, status = claim["metadata"], claim.get("spec") or {}, claim.get("status") or {}
    ordinal = ordinal_of(metadata["name"])
    requested: str = ((spec.get("resources") or {}).get("requests") or {}).get("storage") or ""
    capacity = (status.get("capacity") or {}).get("storage") or ""
    try:
        quantity(requested), quantity(capacity or "0")
    except (KeyError, ValueError):
        return None
    if ordinal is None or metadata.get("deletionTimestamp"):
        return None
    conditions = {each.get("type"): each.get("message") or "" for each in status.get("conditions") or ()}
    stages = (status.get("allocatedResourceStatuses") or {}).get("storage") or ""
    errors = [conditions[each] for each in ("ControllerResizeError", "NodeResizeError") if each in conditions]
    failed = stages if stages.endswith("Infeasible") else ""
    return Volume(
        name=metadata["name"],
        uid=metadata["uid"],
        ordinal=ordinal,
        requested=requested,
        capacity=capacity if status.get("phase") == "Bound" else "",
        storage_class=spec.get("storageClassName") or "",
        resizing=next((conditions[each] for each in ("FileSystemResizePending", "Resizing") if each in conditions), ""),
        failed=": ".join(filter(None, (failed, *errors))),
    )


def storage_ready(
    spec: AuditBackendSpec, volumes: Sequence[Volume], unseen: str, refused: Mapping[str, str], namespace: str
) -> Condition | None:
    """StorageReady: whether receivers' volumes are as the AuditBackend has them, and none is left behind with events.

    ``unseen``: why they are not known, empty if they are. ``refused``: claims that the API server lets nobody grow ->
    its words. None: there are no volumes, nor shall be.
    """
    kind, claim, known = "StorageReady", spec.receiver.storage.persistent_volume_claim, mounted(spec, volumes)
    if claim is None or not spec.webhook.enabled:
        return _left_behind(spec, volumes, namespace)
    where, size = "spec.receiver.storage.persistentVolumeClaim", quantity(claim.size)
    if unseen:
        said = f"how large receivers' volumes are is not known, so journals may take most of {claim.size}: {unseen}"
        return false(kind, Refusal("VolumesUnknown", said))
    larger = [each for each in known if quantity(each.requested) > size]
    if larger:
        most = max((each.requested for each in larger), key=quantity)
        said = (
            f"{where}.size is {claim.size}, and a volume cannot shrink: {_sizes(larger)}. They stay as they are, and "
            f"new ones are as large: write size: {most}"
        )
        return false(kind, Refusal("CannotShrink", said))
    if refused:
        words = "\n".join(f"{name}: {message}" for name, message in sorted(refused.items()))
        said = (
            f"{where}.size is {claim.size}, and not all volumes can grow: let their StorageClass do it "
            f"(allowVolumeExpansion: true), or write the size that they have. {_sizes(known)}\n{words}"
        )
        return false(kind, Refusal("CannotExpand", said))
    failed = [f"{each.name}: {each.failed}" for each in known if each.failed and _short(each)]
    if failed:
        said = f"volumes could not grow to {claim.size}; `kubectl -n {namespace} describe pvc` says more"
        return false(kind, Refusal("ResizeFailed", "\n".join((said, *failed))))
    other = [each for each in known if claim.storage_class_name and each.storage_class != claim.storage_class_name]
    if other:
        classes = ", ".join(f"{each.name} has {each.storage_class or 'none'}" for each in other)
        move = f"kubectl -n {namespace} delete pvc/{other[0].name} pod/{_pod(other[0])} --wait=false"
        said = (
            f"{where}.storageClassName is {claim.storage_class_name}, and a volume keeps its class: "
            f"{classes}. Only new ones get it. To move one, wait until condition Delivering is True, so that nothing "
            f"waits in it, then delete claim and pod, one after the other: `{move}`"
        )
        return false(kind, Refusal("StorageClassDiffers", said))
    if behind := _left_behind(spec, volumes, namespace):
        return behind
    growing = [each for each in known if each.capacity and _short(each)]
    if growing:
        waiting = [f"{each.name}: {each.resizing}" for each in growing if each.resizing]
        said = f"volumes grow to {claim.size}, and journals with them when it is done: {_sizes(growing)}"
        return under_way(kind, "Resizing", "\n".join((said, *waiting)))
    unbound = [each.name for each in known if not each.capacity]
    if unbound:
        return under_way(kind, "WaitingForVolumes", f"not bound to a volume yet: {', '.join(unbound)}")
    return true(kind, f"volumes: {_sizes(known)}" if known else "volumes are made with the receivers' pods")


def _left_behind(spec: AuditBackendSpec, volumes: Sequence[Volume], namespace: str) -> Condition | None:
    """StorageReady where there are volumes that no receiver has any more. One that was never bound holds nothing."""
    behind = [each for each in left_behind(spec, volumes) if each.capacity]
    if not behind:
        return None
    names = ", ".join(each.name for each in behind)
    most = max(each.ordinal for each in behind) + 1
    back = [
        *(["spec.webhook.enabled: true"] if not spec.webhook.enabled else []),
        *(["spec.receiver.storage.persistentVolumeClaim"] if spec.receiver.storage.ephemeral else []),
        *([f"spec.receiver.replicas: {most}"] if spec.receiver.replicas < most else []),
    ]
    said = (
        f"no receiver has {names} any more, and what was acknowledged and not delivered, if anything, waits there. To "
        f"deliver it, write {', '.join(back)} until audit_receiver_backlog_events of {_pod(behind[0])}"
        f"{' and the others' if len(behind) > 1 else ''} is 0 for every sink, and change it back. Then, or if its "
        f"events may be lost: `kubectl -n {namespace} delete pvc {' '.join(each.name for each in behind)}`"
    )
    return false("StorageReady", Refusal("VolumesLeftBehind", said))


def _short(each: Volume) -> bool:
    return quantity(each.capacity or "0") < quantity(each.requested)


def _sizes(volumes: Iterable[Volume]) -> str:
    return ", ".join(f"{each.name} has {each.capacity or each.requested}" for each in volumes)


def _pod(of: Volume) -> str:
    return f"{RECEIVER}-{of.ordinal}"
