"""Receivers' volumes: how large they are to be, and what a journal on them may take."""

from collections.abc import Iterable, Sequence
from typing import Final

from audit_operator.render.exposure import RECEIVER
from audit_operator.render.world import Volume
from audit_operator.resources.auditbackend import AuditBackendSpec, Receiver
from audit_operator.resources.meta import quantity

VOLUME: Final = "state"
"""The volume with the journal, in the pod and in the StatefulSet's template."""

_JOURNAL_SHARE: Final = 0.8
"""Of the volume. The rest takes what is under way while API servers are already told to wait."""


def claim_name(ordinal: int) -> str:
    """What a StatefulSet calls the claim of its pod ``ordinal``."""
    return f"{VOLUME}-{RECEIVER}-{ordinal}"


def ordinal_of(claim: str) -> int | None:
    """The pod's number; None of a claim that is no receiver's journal."""
    number = claim.removeprefix(f"{VOLUME}-{RECEIVER}-")
    return int(number) if number.isdecimal() and claim_name(int(number)) == claim else None


def mounted(spec: AuditBackendSpec, volumes: Iterable[Volume]) -> list[Volume]:
    """Those that receivers have, or will when they start."""
    stateful = spec.webhook.enabled and spec.receiver.storage.persistent_volume_claim is not None
    return [volume for volume in volumes if stateful and volume.ordinal < spec.receiver.replicas]


def left_behind(spec: AuditBackendSpec, volumes: Iterable[Volume]) -> list[Volume]:
    """Those that no receiver has any more, and may hold events."""
    known = mounted(spec, volumes)
    return [volume for volume in volumes if volume not in known]


def template_size(receiver: Receiver, volumes: Iterable[Volume]) -> str:
    """The size of volumes to come: as is written, unless those that are there are larger, for none can shrink."""
    claim = receiver.storage.persistent_volume_claim
    assert claim is not None  # noqa: S101 - the caller chose by it
    sizes = [claim.size, *(volume.requested for volume in volumes if volume.ordinal < receiver.replicas)]
    return max(sizes, key=quantity)  # the first of equals, so that 1Gi stays 1Gi where a claim says 1024Mi


def to_grow(spec: AuditBackendSpec, volumes: Iterable[Volume]) -> list[Volume]:
    """Those that are smaller than is written, and not asked to be larger. Only a bound claim can be."""
    claim = spec.receiver.storage.persistent_volume_claim
    if claim is None:
        return []
    size = quantity(claim.size)
    bound = [each for each in mounted(spec, volumes) if each.capacity]
    return [each for each in bound if max(quantity(each.requested), quantity(each.capacity)) < size]


def journal_limit(spec: AuditBackendSpec, volumes: Sequence[Volume]) -> int:
    """Bytes that a receiver's journal and files may take: receivers have one program, so the smallest volume counts.

    What a volume really has, for it may be larger than was asked for, and grows long after it was. Offline, and
    before there are volumes, what is written.
    """
    storage = spec.receiver.storage
    if storage.persistent_volume_claim is None:
        assert storage.ephemeral is not None  # noqa: S101 - one of the two is there, says the model
        return int(quantity(storage.ephemeral.size_limit) * _JOURNAL_SHARE)
    known = mounted(spec, volumes)
    sizes = [quantity(volume.capacity or volume.requested) for volume in known]
    if len(known) < spec.receiver.replicas:
        sizes.append(quantity(template_size(spec.receiver, known)))
    return int(min(sizes, default=quantity(storage.persistent_volume_claim.size)) * _JOURNAL_SHARE)
