"""What the operator makes in its own namespace: watched as metadata, applied where it differs, pruned where it is ours.

An object is left alone when it is known to be as wanted: it carries the hash of what was applied, and nobody has
written it since (its resourceVersion is the one at which that was found). So steady state is silence, and no content,
above all no Secret's, is kept.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from audit_operator.controller import metrics
from audit_operator.controller.cluster import FIELD_MANAGER, ApiError, Cluster, ResourceType
from audit_operator.render.objects import REVISION, Object, is_revision

logger = logging.getLogger(__name__)

TYPES: Final = {
    each.kind: each
    for each in (
        ResourceType("v1", "ConfigMap", "configmaps"),
        ResourceType("v1", "Secret", "secrets"),
        ResourceType("v1", "Service", "services"),
        ResourceType("v1", "ServiceAccount", "serviceaccounts"),
        ResourceType("apps/v1", "Deployment", "deployments"),
        ResourceType("apps/v1", "StatefulSet", "statefulsets"),
        ResourceType("cert-manager.io/v1", "Certificate", "certificates"),
        ResourceType("monitoring.coreos.com/v1", "PrometheusRule", "prometheusrules"),
        ResourceType("monitoring.coreos.com/v1", "ServiceMonitor", "servicemonitors"),
        ResourceType("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
        ResourceType("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    )
}
"""Every kind of object that is ever made."""

CLAIMS: Final = ResourceType("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
"""Made by Kubernetes for the StatefulSet, with its labels; they hold events, so nothing here ever deletes one."""

_FOLLOWED: Final = {**TYPES, CLAIMS.kind: CLAIMS}

_IMMUTABLE: Final[Mapping[str, frozenset[tuple[str | None, str | None]]]] = {
    # Of a StatefulSet the API server names what may change, and only `spec` as what did. The new one takes over what
    # the old one left: its pods, which run on, and their volumes.
    "StatefulSet": frozenset({("FieldValueForbidden", "spec")}),
    # Somebody asked for another address, or for another kind of load balancer.
    "Service": frozenset(
        {("FieldValueInvalid", "spec.clusterIPs[0]"), ("FieldValueInvalid", "spec.loadBalancerClass")}
    ),
}
"""Kinds that are made anew where they cannot be changed -> causes by which the API server says so."""

_REPLACING: Final = (
    "Replacing",
    "it is made anew, because what changed in it is immutable; pods run on meanwhile, with their volumes",
)
_ORPHANS: Final = "orphan"
"""Finalizer of what the garbage collector takes its dependents from before it goes."""

SELECTOR: Final = "app.kubernetes.io/managed-by=audit-operator,app.kubernetes.io/part-of=audit-operator"
APPLIED: Final = "audit-operator.dev/applied"
"""Annotation: hash of what was applied. Without it, what is no longer wanted in an object would not be noticed."""


_UNSERVED: Final = 10.0  # seconds between looks whether a kind is served by now
_HOPELESS: Final = 3  # lists of a kind that failed, after which nothing waits for it any more


class Ref(NamedTuple):
    """One of our objects in the root namespace."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Trouble(NamedTuple):
    """An object that could not be made as wanted; ``reason`` for a condition, ``message`` for a person.

    ``under_way``: it will be, without anybody's help.
    """

    ref: Ref
    reason: str
    message: str
    under_way: bool = False


class _Verified(NamedTuple):
    resource_version: str
    applied: str


class Children:
    """Our objects in one namespace. ``wake`` is called when somebody else changes one."""

    def __init__(self, cluster: Cluster, namespace: str, wake: Callable[[], None]) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._wake = wake
        self._live: dict[Ref, Mapping[str, Any]] = {}
        self._verified: dict[Ref, _Verified] = {}
        self._objects: dict[Ref, Object] = {}
        self._known = {kind: asyncio.Event() for kind in _FOLLOWED}
        self._refused: dict[str, ApiError] = {}

    # --- what there is -----------------------------------------------------------------------------------------------

    async def watch(self, served: Callable[[ResourceType], bool]) -> None:
        """Follow every kind that the cluster serves, for ever."""
        await asyncio.gather(*(self._watch(of, served) for of in _FOLLOWED.values()))

    async def _watch(self, of: ResourceType, served: Callable[[ResourceType], bool]) -> None:
        delay, failures = 1.0, 0
        while True:
            if not served(of):
                self._known[of.kind].set()
                await asyncio.sleep(_UNSERVED)
                continue
            try:
                version = await self._list(of)
                if self._refused.pop(of.kind, None):
                    self._wake()
                self._known[of.kind].set()
                delay, failures = 1.0, 0
                async for event in self._cluster.watch_metadata(of, version, self._namespace, SELECTOR):
                    if event.type != "BOOKMARK":
                        self._happened(of.kind, event.type, event.metadata)
            except ApiError as error:
                if error.status == 410:
                    continue  # the version is too old: list anew, at once
                failures += 1
                if error.status == 403 or (failures >= _HOPELESS and not self._known[of.kind].is_set()):
                    # A kind that cannot be listed (a webhook that converts it, say) keeps nothing else from being made.
                    self._refused[of.kind] = error
                    self._known[of.kind].set()
                logger.warning("%s; again in %.0f s", error, delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, 30.0)

    async def known(self) -> None:
        """Wait until every kind has been listed, is not served, or cannot be seen."""
        for event in self._known.values():
            await event.wait()

    def live(self) -> Mapping[Ref, Mapping[str, Any]]:
        """The metadata of every object of ours."""
        return self._live

    async def get(self, ref: Ref) -> Object | None:
        """The whole object, None if there is none. Remembered as long as it does not change, unless it is a Secret.

        Raises ApiError, also of a kind that may not be listed: that there is none must be known.
        """
        live = self._live.get(ref)
        known = self._objects.get(ref)
        if live and known and known["metadata"]["resourceVersion"] == live["resourceVersion"]:
            return known
        if refused := self._refused.get(ref.kind):
            raise refused
        found = await self._cluster.get(_FOLLOWED[ref.kind], self._namespace, ref.name)
        if found is not None and ref.kind in _REMEMBERED:
            self._objects[ref] = found
        return found

    def unseen(self, kind: str) -> ApiError | None:
        """Why the objects of a kind are not known; None: they are."""
        return self._refused.get(kind)

    async def _list(self, of: ResourceType) -> str:
        items, version = await self._cluster.list_metadata(of, self._namespace, SELECTOR)
        before = {ref: metadata for ref, metadata in self._live.items() if ref.kind == of.kind}
        now = {Ref(of.kind, metadata["name"]): metadata for metadata in items}
        for ref in before.keys() - now.keys():
            self._happened(of.kind, "DELETED", before[ref])
        for metadata in now.values():
            self._happened(of.kind, "MODIFIED", metadata)
        return version

    def _happened(self, kind: str, type_: str, metadata: Mapping[str, Any]) -> None:
        ref = Ref(kind, metadata["name"])
        verified = self._verified.get(ref)
        if type_ == "DELETED":
            there = self._live.pop(ref, None)
            self._objects.pop(ref, None)
            self._verified.pop(ref, None)
            if there is not None:  # what was pruned is gone from here before
                self._wake()
            return
        self._live[ref] = metadata
        if verified is None or verified.resource_version != metadata["resourceVersion"]:
            self._wake()

    # --- what there should be ----------------------------------------------------------------------------------------

    async def apply(self, wanted: Object) -> Trouble | None:
        """Make the object as wanted, if it is not. Foreign fields stay; what another applier owns is not fought for."""
        of, ref = TYPES[wanted["kind"]], Ref(wanted["kind"], wanted["metadata"]["name"])
        if refused := self._refused.get(ref.kind):
            return Trouble(ref, _reason(refused), str(refused))
        applied = digest(wanted)
        live, verified = self._live.get(ref), self._verified.get(ref)
        if live and verified == (live["resourceVersion"], applied):
            return None
        if live and live.get("deletionTimestamp"):
            if _ORPHANS in live.get("finalizers", ()):
                return Trouble(ref, *_REPLACING, under_way=True)
            return Trouble(ref, "Terminating", "it is being deleted, and made anew when it is gone", under_way=True)
        if live and is_revision(wanted) and made_by_us(live):
            return None  # immutable, and of the same name: another compressor may write the same in other bytes
        try:
            if live and _annotation(live, APPLIED) == applied:
                found = await self.get(ref)
                if found is not None and holds(found, wanted):
                    self._verified[ref] = _Verified(found["metadata"]["resourceVersion"], applied)
                    return None
            if (verified and verified.applied == applied) or (live and _annotation(live, APPLIED) == applied):
                logger.warning("not as it was applied: repairing it", extra={"resource": str(ref)})
                metrics.REPAIRS.labels(ref.kind).inc()
            after = await self._apply(of, _marked(wanted, applied))
        except ApiError as error:
            if _immutable(ref.kind, error):
                return await self._replace(of, wanted, error)
            return Trouble(ref, _reason(error), str(error))
        if live is None or after["metadata"]["resourceVersion"] != live["resourceVersion"]:
            about = {"resource": str(ref), "revision": _annotation(wanted["metadata"], REVISION) or applied}
            logger.info("applied", extra=about)
        self._live[ref] = after["metadata"]
        if ref.kind in _REMEMBERED:
            self._objects[ref] = after
        self._verified[ref] = _Verified(after["metadata"]["resourceVersion"], applied)
        return None

    async def _apply(self, of: ResourceType, document: Object) -> Object:
        try:
            return await self._cluster.apply(of, document)
        except ApiError as error:
            if not _owned_by_others(error):
                raise
            # Somebody's edit is drift and is repaired. Somebody who applies will apply again: not ours to decide.
            found = await self._cluster.get(of, self._namespace, document["metadata"]["name"])
            appliers = _appliers(found or {}, error)
            if appliers:
                fields = ", ".join(sorted({cause.get("field", "") for cause in error.causes}))
                raise ApiError(
                    f"apply {of.kind} {document['metadata']['name']}",
                    error.status,
                    "Conflict",
                    f"{', '.join(appliers)} applies {fields} too: take these fields out of what it applies, or let it "
                    "make the whole object",
                    error.causes,
                ) from None
            return await self._cluster.apply(of, document, force=True)

    async def _replace(self, of: ResourceType, wanted: Object, refused: ApiError) -> Trouble:
        """Make way for an object that the API server lets nobody change into what is wanted.

        What it owns stays and runs on. When it is gone, which takes Kubernetes' garbage collector, the next pass makes
        the new one, and that takes over what the old one left.
        """
        ref = Ref(of.kind, wanted["metadata"]["name"])
        try:
            live = await self._cluster.get_metadata(of, self._namespace, ref.name)
            if live is not None and not made_by_us(live):
                return Trouble(ref, _reason(refused), str(refused))
            if live is not None and not live.get("deletionTimestamp"):
                # Only what can be made again is deleted: quotas and webhooks have their say before, not after.
                trial = {**wanted, "metadata": {**wanted["metadata"], "name": f"{ref.name}-{digest(wanted)[:8]}"}}
                await self._cluster.apply(of, trial, dry_run=True)
                await self._cluster.delete(of, live, orphan=of.kind == "StatefulSet")
                logger.info("cannot be changed into what is wanted: replacing it", extra={"resource": str(ref)})
        except ApiError as error:
            return Trouble(ref, _reason(error), f"it has to be made anew, because it cannot be changed: {error}")
        return Trouble(ref, *_REPLACING, under_way=True)

    async def grow(self, name: str, uid: str, size: str) -> None:
        """Ask for a claim of this size. Raises ApiError with the API server's reason why not."""
        document = {
            "apiVersion": CLAIMS.api_version,
            "kind": CLAIMS.kind,
            "metadata": {"name": name, "namespace": self._namespace, "uid": uid},  # an apply would make a missing one
            "spec": {"resources": {"requests": {"storage": size}}},
        }
        after = await self._cluster.apply(CLAIMS, document, force=True)
        ref = Ref(CLAIMS.kind, name)
        self._live[ref], self._objects[ref] = after["metadata"], after
        logger.info("asked for %s", size, extra={"resource": str(ref)})

    async def prune(self, wanted: Iterable[Ref]) -> list[Trouble]:
        """Delete what is ours and not among ``wanted``."""
        keep, troubles = set(wanted), []
        for ref, metadata in list(self._live.items()):
            if ref in keep or ref.kind not in TYPES or metadata.get("deletionTimestamp") or not made_by_us(metadata):
                continue
            try:
                await self._cluster.delete(TYPES[ref.kind], metadata)
                logger.info("no longer wanted: deleted", extra={"resource": str(ref)})
            except ApiError as error:
                if error.status != 409:  # changed since: the next pass looks again
                    troubles.append(Trouble(ref, _reason(error), str(error)))
                continue
            self._live.pop(ref, None)
            self._verified.pop(ref, None)
            self._objects.pop(ref, None)
        return troubles


_REMEMBERED: Final = frozenset({"Service", "Deployment", "StatefulSet", "Certificate", CLAIMS.kind})
"""Kinds whose status or assigned fields are read in every pass. Never Secrets."""


def digest(document: Any) -> str:
    """A short name for what is wanted: equal documents, equal names."""
    return hashlib.sha256(msgspec.json.encode(document, order="deterministic")).hexdigest()[:32]


def holds(live: Any, wanted: Any) -> bool:
    """Whether all that is wanted is there; more may be. What is empty need not be: the API server leaves it out.

    Equality is of texts: where the API server writes a value in another way (``0.1`` as ``100m``), a server-side
    apply that changes nothing decides.
    """
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(
            holds(live[key], value) if key in live else value in ({}, []) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(live, list)
            and len(live) == len(wanted)
            and all(holds(one, other) for one, other in zip(live, wanted, strict=True))
        )
    return type(live) is type(wanted) and bool(live == wanted)  # True is no 1


def made_by_us(metadata: Mapping[str, Any]) -> bool:
    """Whether the operator applied the object: labels can be copied, this cannot be by accident."""
    return any(
        entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply"
        for entry in metadata.get("managedFields") or ()
    )


def _marked(wanted: Object, applied: str) -> Object:
    metadata = wanted["metadata"]
    annotations = dict(sorted({**metadata.get("annotations", {}), APPLIED: applied}.items()))
    return {**wanted, "metadata": {**metadata, "annotations": annotations}}


def _annotation(metadata: Mapping[str, Any], name: str) -> str | None:
    return (metadata.get("annotations") or {}).get(name)


def _owned_by_others(error: ApiError) -> bool:
    return error.status == 409 and any(cause.get("reason") == "FieldManagerConflict" for cause in error.causes)


def _immutable(kind: str, error: ApiError) -> bool:
    """Whether nothing but immutable fields is in the way: what is invalid would not be taken anew, either."""
    causes = {(cause.get("reason"), cause.get("field")) for cause in error.causes}
    return error.status == 422 and bool(causes) and causes <= _IMMUTABLE.get(kind, frozenset())


def _appliers(found: Object, error: ApiError) -> list[str]:
    """The managers among those that the conflict names which apply, rather than edit."""
    messages = [cause.get("message", "") for cause in error.causes]
    return sorted(
        {
            entry["manager"]
            for entry in found.get("metadata", {}).get("managedFields") or ()
            if entry.get("operation") == "Apply"
            and entry.get("manager") != FIELD_MANAGER
            and any(f'conflict with "{entry["manager"]}"' in message for message in messages)
        }
    )


def _reason(error: ApiError) -> str:
    """A reason for a condition."""
    return error.reason if error.reason.isalnum() else "ApplyFailed"
