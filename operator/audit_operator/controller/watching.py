"""What kopf sees: every AuditPolicy, AuditSink, AuditBackend and namespace, in indexes, and a wake-up when one changes.

No handler here patches anything, so kopf writes nothing: no finalizers, no annotations in users' resources.

kopf does not notice what was deleted while a watch was down. The roll call does: it compares the indexes with a list.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

import kopf
import msgspec
from kubernetes.aio.client import Configuration

from audit_operator.controller.cluster import BACKENDS, NAMESPACES, POLICIES, SINKS, ApiError, Cluster, ResourceType
from audit_operator.render.world import Identity
from audit_operator.resources.load import Problem, Resource, ResourceError, load_resource
from audit_operator.resources.meta import GROUP, VERSION

logger = logging.getLogger(__name__)

WATCHED: Final = (POLICIES, SINKS, BACKENDS, NAMESPACES)

_METADATA: Final = ("name", "namespace", "uid", "generation", "creationTimestamp")
"""What rendering reads; the rest changes without the resource changing."""

_ROLL_CALL: Final = 60.0  # seconds between two, where nothing calls for one earlier


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A custom resource as the API server has it: valid, or with problems; ``status`` as it stands there."""

    identity: Identity
    uid: str
    generation: int
    resource_version: str
    resource: Resource | None
    problems: tuple[Problem, ...]
    status: Mapping[str, Any]
    deleting: bool


class _Uids(msgspec.Struct):
    """Which objects of a kind are in the indexes, and which of them are gone for good: a uid never comes back."""

    gone: frozenset[str] = frozenset()
    listed: bool = False


class Watching:
    """The indexes. `watch` runs kopf until it is told to stop."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._registry = kopf.OperatorRegistry()
        self._seen: Mapping[Any, Any] = {}
        self._namespaces: Mapping[Any, Any] = {}
        self._uids = {of.plural: _Uids() for of in WATCHED}
        self._call_the_roll = asyncio.Event()
        self.ready = asyncio.Event()
        """Set once everything that exists is in the indexes."""
        self._register()

    def resources(self) -> list[Seen]:
        """Every custom resource there is."""
        gone = frozenset().union(*(uids.gone for uids in self._uids.values()))
        found = [seen for store in self._seen.values() for seen in store]
        return [seen for seen in found if seen.uid not in gone and not seen.deleting]

    def namespaces(self) -> dict[str, dict[str, str]]:
        """Every namespace, with its labels."""
        gone = self._uids[NAMESPACES.plural].gone
        found = [each for store in self._namespaces.values() for each in store]
        return {name: labels for uid, name, labels in found if uid not in gone}

    async def watch(self, configuration: Configuration, started: Callable[[], None]) -> None:
        """Run kopf until cancelled; what ends it earlier is raised.

        ``started`` is called once kopf has put its handlers of signals in the place of others'.
        """

        @kopf.on.login(registry=self._registry)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            return await _connection(configuration)

        others = asyncio.all_tasks()  # kopf ends every task that is not among these
        tasks = await kopf.spawn_tasks(registry=self._registry, settings=_settings(), clusterwide=True, standalone=True)
        started()
        await kopf.run_tasks(tasks, ignored=others)

    async def call_the_roll(self, cluster: Cluster) -> None:
        """Find out for ever what is gone, soon after a watch began anew and now and then."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ROLL_CALL):
                    await self._call_the_roll.wait()
            await asyncio.sleep(1)  # one roll call for all that is listed anew
            self._call_the_roll.clear()
            for of in WATCHED:
                try:
                    await self._roll_call(cluster, of)
                except ApiError as error:
                    logger.warning("cannot tell which %s are gone: %s", of.plural, error)

    async def _roll_call(self, cluster: Cluster, of: ResourceType) -> None:
        uids = self._uids[of.plural]
        # First the index, then the list: what is in the one and not in the other has been deleted in between or before.
        indexed = frozenset(self._indexed(of))
        if not indexed:
            return
        listed, _ = await cluster.list_metadata(of)
        gone = indexed - {metadata["uid"] for metadata in listed}
        if gone != uids.gone:
            logger.info("found deleted without a watch event: %d of %s", len(gone - uids.gone), of.plural)
            uids.gone = gone
            self._wake()

    def _indexed(self, of: ResourceType) -> Iterator[str]:
        if of is NAMESPACES:
            yield from (uid for store in self._namespaces.values() for uid, _, _ in store)
        else:
            yield from (seen.uid for store in self._seen.values() for seen in store if seen.identity.kind == of.kind)

    def _register(self) -> None:
        registry = self._registry
        ours = (GROUP, VERSION, kopf.EVERYTHING)

        @kopf.on.startup(registry=registry)
        async def keep_indexes(**indexes: Any) -> None:
            self._seen, self._namespaces = indexes["seen"], indexes["namespaces"]

        @kopf.index(*ours, registry=registry, id="seen")
        async def seen(body: Mapping[str, Any], **indexes: Any) -> dict[Identity, Seen]:
            identity, seen = identity_of(body), indexes["seen"]
            before = next(iter(seen[identity]), None) if identity in seen else None
            return {identity: see(body, before)}

        @kopf.index("", "v1", NAMESPACES.plural, registry=registry, id="namespaces")
        async def namespaces(body: Mapping[str, Any], **_: Any) -> dict[str, tuple[str, str, dict[str, str]]]:
            metadata = body["metadata"]
            name = metadata["name"]
            return {name: (metadata["uid"], name, dict(metadata.get("labels") or {}))}

        # kopf calls these only once all indexes hold all that was listed.
        @kopf.on.event(*ours, registry=registry)
        async def resource(type: str | None, **_: Any) -> None:  # noqa: A002 - kopf's name
            self._happened(type)

        @kopf.on.event("", "v1", NAMESPACES.plural, registry=registry)
        async def namespace(type: str | None, **_: Any) -> None:  # noqa: A002 - kopf's name
            self._happened(type)

    def _happened(self, type_: str | None) -> None:
        if type_ is None and self.ready.is_set():
            self._call_the_roll.set()  # listed again: the watch was down for a while
        self.ready.set()
        self._wake()


def identity_of(body: Mapping[str, Any]) -> Identity:
    """Which custom resource a document is."""
    return Identity(body["kind"], body["metadata"].get("namespace") or "", body["metadata"]["name"])


def see(body: Mapping[str, Any], before: Seen | None = None) -> Seen:
    """What a custom resource's document says, valid or not.

    The resource depends on uid and generation only, so with ``before`` of the same two it is the same value.
    """
    metadata = body["metadata"]
    uid, generation = metadata["uid"], metadata.get("generation") or 0
    resource: Resource | None = None
    problems: tuple[Problem, ...] = ()
    if before is not None and (before.uid, before.generation) == (uid, generation):
        resource, problems = before.resource, before.problems
    else:
        kept = {name: metadata[name] for name in _METADATA if metadata.get(name) is not None}
        try:
            resource = load_resource(
                {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": kept, "spec": body.get("spec")}
            )
        except ResourceError as error:
            problems = error.problems
    return Seen(
        identity=identity_of(body),
        uid=uid,
        generation=generation,
        resource_version=metadata["resourceVersion"],
        resource=resource,
        problems=problems,
        status=body.get("status") or {},
        deleting=metadata.get("deletionTimestamp") is not None,
    )


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # our Events are about what changed, not about handlers
    settings.persistence.finalizer = f"{GROUP}/finalizer"  # none is ever set; if one were, it would be ours
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    # A watch never gives up: an API server that is away for an hour is found again.
    settings.networking.error_backoffs = [1, 1, 2, 3, 5, 8, *([10] * 360)]
    settings.watching.reconnect_backoff = 1
    return settings


async def _connection(configuration: Configuration) -> kopf.ConnectionInfo:
    """The login of the client below, for kopf; called again when the API server refuses it."""
    if configuration.refresh_api_key_hook is not None:
        result = configuration.refresh_api_key_hook(configuration)
        if isinstance(result, Awaitable):
            await result
    token = (configuration.api_key or {}).get("BearerToken", "")
    scheme, _, credentials = token.rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme or None,
        token=credentials or None,
        username=configuration.username or None,
        password=configuration.password or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )
