"""One pass over everything: what the resources ask for, against what the cluster has. Level-triggered, and repeated.

A pass may end anywhere, by any death; the next one starts from what is there. What is as it should be is not written.
"""

import asyncio
import base64
import contextlib
import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol

import msgspec
from msgspec.structs import replace

from audit_operator.controller import accepted, certificates, metrics, observed, statuses
from audit_operator.controller.children import CLAIMS, Children, Ref, Trouble, digest
from audit_operator.controller.cluster import OURS, ApiError, Cluster, Discovered, ResourceType
from audit_operator.controller.election import NotLeadingError
from audit_operator.controller.pace import Pace
from audit_operator.controller.receivers import Credentials, Receivers, Target
from audit_operator.controller.recorder import News, Recorder
from audit_operator.controller.references import References
from audit_operator.controller.reported import Conditions
from audit_operator.controller.revisions import kept
from audit_operator.controller.watching import Seen, Watching
from audit_operator.policy.load import load_policy
from audit_operator.policy.model import Policy
from audit_operator.render.apiserver import APISERVER
from audit_operator.render.exposure import RECEIVER, exposed
from audit_operator.render.objects import Object, encoded, new, owned, text_hash
from audit_operator.render.plan import Plan, render
from audit_operator.render.program import CREDENTIALS, HASH_KEY, Credential, credentials_secret, references
from audit_operator.render.report import OPERATOR_NAME, operator_uri
from audit_operator.render.status import Condition, ResourceStatus, not_observed, with_conditions
from audit_operator.render.tenants import followed
from audit_operator.render.tls import CLIENT_TLS, OPERATOR_TLS, RECEIVER_TLS
from audit_operator.render.volumes import to_grow
from audit_operator.render.workload import PROGRAM
from audit_operator.render.world import Identity, ReceiverAddress, Resources, Volume, World, identity_of
from audit_operator.resources.auditbackend import AuditBackend, Tenants
from audit_operator.resources.load import Resource

logger = logging.getLogger(__name__)

_QUIET: Final = 0.05  # seconds without a change before a pass begins …
_PATIENCE: Final = 0.5  # … but no longer than this after the first
_AT_ONCE: Final = 20  # passes, and then …
_PER_SECOND: Final = 1.0  # … who changes something all the time decides neither what etcd has to write nor our load
_RESYNC: Final = 600.0  # seconds between passes that nothing calls for
_LAST_RETRY: Final = 60.0
_WRITERS: Final = 16  # statuses written at the same time
_WORKLOADS: Final = frozenset({"Deployment", "StatefulSet"})
_CLIENT_LIFETIME: Final = timedelta(days=1)  # of the operator's own certificate


class Leadership(Protocol):
    """Whether this replica may write; `Election` or `Always`."""

    def leading(self) -> bool: ...

    def require(self) -> float: ...


class Settings(NamedTuple):
    """What the operator is told about itself."""

    namespace: str
    identity: str
    image: str
    cluster_domain: str


class Reconciler:
    """Brings the cluster to what the resources say, again and again."""

    def __init__(self, cluster: Cluster, settings: Settings, discovered: Discovered) -> None:
        self._cluster = cluster
        self._settings = settings
        self._discovered = discovered
        self._changed = asyncio.Event()
        self._pace = Pace(_AT_ONCE, _PER_SECOND)
        self.watching = Watching(self.wake)
        self.children = Children(cluster, settings.namespace, self.wake)
        self.references = References(cluster, self.wake, settings.namespace)
        self.receivers = Receivers(cluster, settings.namespace, self._require, self.wake)
        self._recorder = Recorder(cluster, settings.identity, settings.namespace)
        self._leadership: Leadership
        self._memory: _Memory | None = None
        self._next: datetime | None = None
        self.busy_since: float | None = None
        """When the pass that runs now began, on the monotonic clock; for the liveness probe."""

    def _require(self) -> float:
        return self._leadership.require()

    def wake(self) -> None:
        """Something changed: a pass is due."""
        self._changed.set()

    def discovered(self, found: Discovered) -> None:
        """What the cluster serves now."""
        if found != self._discovered:
            self._discovered = found
            self.wake()

    def is_served(self, of: ResourceType) -> bool:
        """Whether the cluster serves this kind of objects."""
        return (of.api_version, of.kind) in self._discovered.served

    async def run(self, leadership: Leadership) -> None:
        """Passes for ever: after changes, after failures with growing patience, and now and then."""
        self._leadership = leadership
        await self.watching.ready.wait()
        failures = 0
        while True:
            await self._settle(self._pause(failures))
            await asyncio.sleep(self._pace.delay(time.monotonic()))
            self._changed.clear()
            if not leadership.leading():
                self._memory = None  # whoever leads meanwhile may change what is remembered
                continue  # woken when elected
            started = self.busy_since = time.monotonic()
            result = "failure"
            try:
                result = "incomplete" if await self._pass() else "success"
            except NotLeadingError:
                logger.info("a pass ends: this replica does not lead any more")
                continue
            except ApiError as error:
                logger.error("a pass failed: %s", error)
            except Exception:
                # A bug must not end the operator: what runs keeps running, and the next change may not meet it.
                logger.exception("a pass failed")
            finally:
                self.busy_since = None
            failures = 0 if result == "success" else failures + 1
            metrics.PASSES.labels(result).inc()
            metrics.PASS_SECONDS.observe(time.monotonic() - started)
            if result == "success":
                metrics.LAST_SUCCESS.set_to_current_time()

    def _pause(self, failures: int) -> float:
        """Seconds until the next pass if nothing changes."""
        if failures:
            return min(2.0 ** min(failures - 1, 10), _LAST_RETRY) * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, guards nothing
        if self._next is None:
            return _RESYNC
        return min(_RESYNC, max((self._next - datetime.now(UTC)).total_seconds(), 1.0))

    async def _settle(self, pause: float) -> None:
        """Wait for a change, or as long as ``pause``; then for the end of a burst of changes, but not for long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._changed.wait()
        until = time.monotonic() + _PATIENCE
        while self._changed.is_set() and time.monotonic() < until:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_QUIET):
                    await self._changed.wait()
        self._changed.clear()

    async def _pass(self) -> Sequence[Trouble]:
        """One pass; what could not be done. Raises ApiError for what nothing can be done without, NotLeadingError."""
        self._leadership.require()
        await self.children.known()
        memory = self._memory = self._memory or await self._remember()
        if self.children.unseen("ConfigMap"):
            self._memory = None  # what earlier passes left is not known: what follows must not pass for it later
        seen = {each.identity: each for each in self.watching.resources()}
        resources = accepted.current(seen.values(), memory.last_good)
        backend = resources.backend
        world = World(
            server_version=self._discovered.version,
            namespaces=self.watching.namespaces(),
            kinds=self._discovered.kinds,
            served=self._discovered.served,
            root_namespace=self._settings.namespace,
            cluster_domain=self._settings.cluster_domain,
            image=self._settings.image,
            server_policy=memory.in_force,
        )
        await self.references.follow(followed(resources, backend.spec.tenants if backend else Tenants(), world))
        world = replace(world, references=self.references.known())
        if backend is None:
            plan = await asyncio.to_thread(render, resources, world)
            memory.last_good = accepted.accepted(resources, plan.refused)
            await self.receivers.bring(None)
            stranded = [observed.without_backend(status) for status in plan.statuses]
            return await self._write_statuses(stranded, seen)

        volumes, unseen = await self._volumes()
        unread: list[Trouble] = []
        world, renewal = await self._with_address_and_certificates(
            resources, backend, replace(world, volumes=volumes), unread
        )
        plan = await asyncio.to_thread(render, resources, world)
        in_force = accepted.accepted(resources, plan.refused)
        troubles, refused = unread, dict[str, str]()
        if not plan.blocked and not unread:
            troubles = await self._make(plan, backend, in_force, renewal, memory)
            refused = await self._grow(backend, volumes)
        memory.last_good = in_force
        if renewal is not None:
            self._next = renewal.next_due
            about = identity_of(backend)
            for change in renewal.changes:
                await self._recorder.record(about, seen[about].uid, News("Normal", "CertificatesRenewed", change))
        if plan.blocked or unread or any(trouble.ref == Ref("ConfigMap", PROGRAM) for trouble in troubles):
            found = self.receivers.report()
        else:
            found = await self.receivers.bring(await self._target(plan, backend, renewal, memory, troubles))
        state = replace(
            await self._observe(plan, backend, renewal, troubles, self._denied(resources)),
            storage=observed.storage_ready(backend.spec, volumes, unseen, refused, self._settings.namespace),
            receivers=found.backend,
            delivering=None if plan.blocked else Conditions(found, plan.program, self.receivers.earlier()),
        )
        judged = [with_conditions(status, *state.of(status.identity)) for status in plan.statuses]
        if unread:  # what was rendered without it is not what is there
            judged = [replace(each, fields={}) if each.identity == state.backend else each for each in judged]
        return [*troubles, *await self._write_statuses(judged, seen)]

    # --- what is remembered ------------------------------------------------------------------------------------------

    async def _remember(self) -> "_Memory":
        """What earlier passes, of whatever replica, left in the cluster."""
        if self.children.unseen("ConfigMap"):
            return _Memory({}, None)
        kept = [ref for ref in self.children.live() if ref.kind == "ConfigMap" and accepted.is_shard(ref.name)]
        shards = [found for ref in kept if (found := await self.children.get(ref)) is not None]
        published = await self.children.get(Ref("ConfigMap", APISERVER))
        in_force: Policy | None = None
        if published is not None:
            text = (published.get("data") or {}).get("policy.yaml", "")
            in_force = load_policy(text, server=self._discovered.version).policy
        return _Memory(accepted.read(shards), in_force)

    # --- what is made ------------------------------------------------------------------------------------------------

    async def _volumes(self) -> tuple[tuple[Volume, ...], str]:
        """Receivers' volumes, and why they are not known, empty if they are."""
        found, unseen = [], self.children.unseen(CLAIMS.kind)
        for ref in [ref for ref in self.children.live() if ref.kind == CLAIMS.kind]:
            try:
                claim = await self.children.get(ref)
            except ApiError as error:
                unseen = error
                continue
            if claim is not None and (volume := observed.volume(claim)) is not None:
                found.append(volume)
        return tuple(sorted(found, key=lambda volume: volume.ordinal)), str(unseen or "")

    async def _grow(self, backend: AuditBackend, volumes: Iterable[Volume]) -> dict[str, str]:
        """Ask for volumes of the size that is wanted; claims that the API server lets nobody grow, with its words."""
        refused: dict[str, str] = {}
        storage = backend.spec.receiver.storage.persistent_volume_claim
        for volume in to_grow(backend.spec, volumes):
            assert storage is not None  # noqa: S101 - there is none to grow without
            try:
                await self.children.grow(volume.name, volume.uid, storage.size)
            except ApiError as error:
                refused[volume.name] = str(error)
        return refused

    async def _read(self, ref: Ref, unread: list[Trouble]) -> Object | None:
        """The object, None if there is none, or it cannot be read: then ``unread`` grows."""
        try:
            return await self.children.get(ref)
        except ApiError as error:
            unread.append(Trouble(ref, "ReadFailed" if error.status != 403 else "Forbidden", str(error)))
            return None

    async def _address(self, unread: list[Trouble]) -> ReceiverAddress:
        """What the cluster gave the receivers' Service."""
        return observed.address(await self._read(Ref("Service", RECEIVER), unread))

    async def _with_address_and_certificates(
        self, resources: Resources, backend: AuditBackend, world: World, unread: list[Trouble]
    ) -> tuple[World, "certificates.Renewal | None"]:
        """The world with what only the cluster can give. The Service comes first: certificates name its address.

        What cannot be read, ``unread`` has then; nothing may be made of such a world.
        """
        world = replace(world, receiver_address=await self._address(unread))
        if not backend.spec.webhook.enabled or unread:
            return world, None
        if exposed(backend.spec.receiver, world).unknown is not None:
            plan = await asyncio.to_thread(render, resources, world)
            for item in plan.objects:
                if Ref(item["kind"], item["metadata"]["name"]) == Ref("Service", RECEIVER):
                    self._leadership.require()
                    await self.children.apply(item)
                    world = replace(world, receiver_address=await self._address(unread))
        if backend.spec.certificates.self_signed is None:
            own = await self._read(Ref("Secret", OPERATOR_TLS), unread)
            return replace(world, operator_by_common_name=certificates.lacks_uri(own, self._uri())), None
        found = {name: await self._read(Ref("Secret", name), unread) for name in certificates.SECRETS}
        if unread:
            return world, None  # a CA that is not known to be missing is not made anew
        renewal = certificates.renewal(found, exposed(backend.spec.receiver, world).names, datetime.now(UTC))
        return replace(world, certificates=renewal.certificates), renewal

    async def _make(
        self,
        plan: Plan,
        backend: AuditBackend,
        in_force: Mapping[Identity, Resource],
        renewal: "certificates.Renewal | None",
        memory: "_Memory",
    ) -> list[Trouble]:
        """Apply what the plan has, and delete what of ours is in it no more."""
        namespace = self._settings.namespace
        extra = accepted.written(in_force, namespace)
        if renewal is not None:
            extra.append(certificates.ca_secret(renewal, namespace))
        wanted = (*owned(extra, backend), *plan.objects)
        keep = {Ref(item["kind"], item["metadata"]["name"]) for item in wanted}
        troubles: list[Trouble] = []
        for item in wanted:
            self._leadership.require()
            if trouble := await self.children.apply(item):
                troubles.append(trouble)
        for secret, copied in _by_secret(plan, namespace).items():
            keep.add(Ref("Secret", secret))
            self._leadership.require()
            if trouble := await self._copy_credentials(secret, copied, backend, memory):
                troubles.append(trouble)
        if plan.cert_manager:
            # Were the operator's own until now: cert-manager takes them over, and nobody is without certificates.
            keep |= {Ref("Secret", RECEIVER_TLS), Ref("Secret", CLIENT_TLS)}
        published = Ref("ConfigMap", APISERVER)
        if published in keep and all(trouble.ref != published for trouble in troubles):
            memory.in_force = plan.server_policy
        if not plan.complete:
            return troubles
        self._leadership.require()
        live = self.children.live()
        if troubles:  # what runs stays until what replaces it is there
            keep |= {ref for ref in live if ref.kind in _WORKLOADS}
        return troubles + await self.children.prune(keep.union(kept(live)))

    async def _copy_credentials(
        self, secret: str, copied: Sequence[Credential], backend: AuditBackend, memory: "_Memory"
    ) -> Trouble | None:
        """Copy what sinks refer to into a Secret that receivers read; nothing if neither side has changed since.

        What a tenant's sink refers to may be what nobody can read: then what receivers have of it stays, and it is no
        trouble of anybody else's.
        """
        ref = Ref("Secret", secret)
        version = self.references.version({each.reference for each in copied})
        sources = digest([version, [each.file for each in copied]])
        live = self.children.live().get(ref)
        if live and memory.credentials.get(secret) == (sources, live["resourceVersion"]):
            return None
        contents = await self.references.contents(copied)
        values = contents.values
        try:
            if contents.unknown or secret == CREDENTIALS:
                known = ((await self.children.get(ref) or {}).get("data")) or {}
                values |= {name: base64.b64decode(known[name]) for name in contents.unknown if name in known}
                if secret == CREDENTIALS:
                    # Made before anybody asks for it: without it a receiver could not run a program that hashes.
                    hash_key = known.get(HASH_KEY)
                    values[HASH_KEY] = base64.b64decode(hash_key) if hash_key else secrets.token_hex(32).encode()
        except ApiError as error:
            return Trouble(ref, "ReadFailed", str(error))
        data = {name: encoded(value) for name, value in sorted(values.items())}
        item = new("v1", "Secret", secret, self._settings.namespace, "receiver", type="Opaque", data=data)
        if trouble := await self.children.apply(*owned([item], backend)):
            return trouble
        if contents.failure:
            logger.warning("%s; what receivers have of it stays", contents.failure)
            return Trouble(ref, "ReadFailed", contents.failure) if secret == CREDENTIALS else None
        memory.credentials[secret] = sources, self.children.live()[ref]["resourceVersion"]
        return None

    async def _target(
        self,
        plan: Plan,
        backend: AuditBackend,
        renewal: "certificates.Renewal | None",
        memory: "_Memory",
        troubles: list[Trouble],
    ) -> Target | None:
        """What receivers are to run now, without waiting for their volumes; None without receivers."""
        if not backend.spec.webhook.enabled:
            return None
        issued = self._issued(renewal, memory) if renewal is not None else None
        return Target(
            program=plan.program,
            text=plan.program_text,
            hash=text_hash(plan.program_text),
            port=backend.spec.receiver.port,
            server_name=plan.exposed.server_name,
            credentials=issued or _read(await self._read(Ref("Secret", OPERATOR_TLS), troubles)),
        )

    def _issued(self, renewal: "certificates.Renewal", memory: "_Memory") -> Credentials:
        """The operator's own certificate: in its memory only, for a day, replaced after half of it."""
        now, authority = datetime.now(UTC), digest([renewal.certificates.ca, *sorted(renewal.authority.items())])
        known = memory.client
        if known is None or known[0] != authority or now - known[1] > _CLIENT_LIFETIME / 2:
            certificate, key = certificates.issue_client(
                renewal.authority, OPERATOR_NAME, now, _CLIENT_LIFETIME, uri=self._uri()
            )
            known = memory.client = authority, now, Credentials(renewal.certificates.ca, certificate, key)
        return known[2]

    def _uri(self) -> str:
        """By which receivers know this operator."""
        return operator_uri(self._settings.cluster_domain, self._settings.namespace)

    # --- what is said ------------------------------------------------------------------------------------------------

    async def _observe(
        self,
        plan: Plan,
        backend: AuditBackend,
        renewal: "certificates.Renewal | None",
        troubles: Sequence[Trouble],
        denied: Mapping[Identity, str],
    ) -> observed.State:
        """What became of the plan."""
        spec = backend.spec
        workload: Condition | None = None
        issued: Condition | None = None
        if spec.webhook.enabled:
            kind = "StatefulSet" if spec.receiver.storage.persistent_volume_claim else "Deployment"
            unread: list[Trouble] = []
            found = await self._read(Ref(kind, RECEIVER), unread)
            workload = (
                not_observed("ReceiverReady", unread[0].message)
                if unread
                else observed.receiver_ready(found, spec.receiver.replicas)
            )
            if renewal is not None:
                issued = observed.certificates_valid(renewal.ends, datetime.now(UTC))
                for name, end in renewal.ends.items():
                    metrics.CERTIFICATE_EXPIRY.labels(name).set(end.timestamp())
            elif spec.certificates.cert_manager is not None:
                names, unread = (RECEIVER_TLS, CLIENT_TLS), []
                made = [(name, await self._read(Ref("Certificate", name), unread)) for name in names]
                issued = (
                    not_observed("CertificatesValid", unread[0].message)
                    if unread
                    else observed.certificates_issued(made)
                )
        return observed.State(
            backend=identity_of(backend),
            blocked=bool(plan.blocked),
            waiting=not plan.complete,
            troubles=tuple(troubles),
            objects=len(plan.objects),
            receiver_ready=workload,
            certificates=issued,
            denied=denied,
        )

    def _denied(self, resources: Resources) -> dict[Identity, str]:
        """Sinks that refer to what the operator may not read, with the API server's words."""
        return {
            identity_of(sink): said
            for sink in resources.sinks
            for reference, said in self.references.denied.items()
            if reference in references([sink])
        }

    async def _write_statuses(self, wanted: Iterable[ResourceStatus], seen: Mapping[Identity, Seen]) -> list[Trouble]:
        """Write the statuses that changed, and say as Events what is news."""
        slots = asyncio.Semaphore(_WRITERS)
        now = datetime.now(UTC)
        counts: Counter[tuple[str, str]] = Counter()

        async def write(status: ResourceStatus, there: Seen) -> Trouble | None:
            document = statuses.document(status, there.status, now)
            if document is None:
                return None
            # Not over what has changed since, nor of a namesake made meanwhile: then there is an event about it.
            document["metadata"]["resourceVersion"] = there.resource_version
            async with slots:
                self._leadership.require()
                try:
                    await self._cluster.apply_status(OURS[status.identity.kind], document)
                    ready = status.ready
                    about = {"resource": str(status.identity), "generation": status.generation}
                    logger.info("Ready is %s: %s", ready.status, ready.reason, extra=about)
                except ApiError as error:
                    if error.status in (404, 409):
                        return None
                    if _for_good(error) and status.identity.namespace not in ("", self._settings.namespace):
                        # Of a tenant's resource that has no room for a status. That is no trouble of anybody else's,
                        # and no pass would get further.
                        logger.warning("%s has no status: %s", status.identity, error)
                        return None
                    return Trouble(Ref(status.identity.kind, status.identity.name), "StatusNotWritten", str(error))
                if news := statuses.news(status, there.status):
                    await self._recorder.record(status.identity, there.uid, news)
            return None

        pairs = [(status, seen[status.identity]) for status in wanted if status.identity in seen]
        for status, _ in pairs:
            counts[status.identity.kind, status.ready.status] += 1
        results = await asyncio.gather(*(write(status, there) for status, there in pairs), return_exceptions=True)
        metrics.RESOURCES.clear()
        for (kind, ready), number in counts.items():
            metrics.RESOURCES.labels(kind, ready).set(number)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if isinstance(result, Trouble)]


class _Memory(msgspec.Struct):
    """What one pass hands to the next; read from the cluster again after somebody else led.

    ``credentials``: of each Secret its sources and its version when they were last found equal. ``client``: the
    operator's certificate, since when, and of which CA.
    """

    last_good: accepted.LastGood
    in_force: Policy | None
    credentials: dict[str, tuple[str, str]] = msgspec.field(default_factory=dict)
    client: tuple[str, datetime, Credentials] | None = None


def _for_good(error: ApiError) -> bool:
    """Whether the API server will not take the same the next time either."""
    # etcd's refusal of what is larger than 1.5 MiB comes as a 500.
    return error.status in (400, 413, 422) or "request is too large" in str(error)


def _by_secret(plan: Plan, root_namespace: str) -> dict[str, list[Credential]]:
    """What each Secret that receivers read holds; the platform's comes first, and always has the hash key."""
    found: dict[str, list[Credential]] = {}
    if plan.flags.body_limit is not None and not plan.blocked:
        found[CREDENTIALS] = []
    for each in plan.credentials:
        found.setdefault(credentials_secret(each.namespace, root_namespace), []).append(each)
    return found


def _read(secret: Mapping[str, Any] | None) -> Credentials | None:
    """The operator's certificate as cert-manager made it; None as long as it has not."""
    data = (secret or {}).get("data") or {}
    texts = [base64.b64decode(data.get(key) or "").decode() for key in ("ca.crt", "tls.crt", "tls.key")]
    return Credentials(*texts) if all(texts) else None
