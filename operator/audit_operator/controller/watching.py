"""What kopf sees: every AuditPolicy, AuditSink, AuditBackend and namespace, and a wake-up when one changes.

No handler here patches anything, so kopf writes nothing: no finalizers, no annotations in users' resources.

kopf does not notice what was deleted while a watch was down. The roll call does: it compares what is known with a list.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
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
_ANSWERS: Final = 0.2  # seconds between looks whether all have answered the first one …
_PATIENCE: Final = 50  # … and looks before it is called again


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


class Watching:
    """What there is. `watch` runs kopf, `call_the_roll` notices what kopf does not."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._registry = kopf.OperatorRegistry()
        self._seen: dict[str, Seen] = {}
        self._namespaces: dict[str, tuple[str, dict[str, str]]] = {}
        self._gone: set[str] = set()
        self._call_the_roll = asyncio.Event()
        self.ready = asyncio.Event()
        """Set once everything that existed when the operator began is known."""
        self._register()

    def resources(self) -> list[Seen]:
        """Every custom resource there is."""
        return [seen for seen in self._seen.values() if not seen.deleting]

    def namespaces(self) -> dict[str, dict[str, str]]:
        """Every namespace, with its labels."""
        return dict(self._namespaces.values())

    async def watch(self, configuration: Configuration, identity: str, started: Callable[[], None]) -> None:
        """Run kopf until cancelled; what ends it earlier is raised.

        ``identity``: of this replica. ``started`` is called once kopf has put its handlers of signals in the place of
        others'.
        """

        @kopf.on.login(registry=self._registry)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            return await _connection(configuration)

        others = asyncio.all_tasks()  # kopf ends every task that is not among these
        tasks = await kopf.spawn_tasks(
            registry=self._registry,
            settings=_settings(),
            clusterwide=True,
            standalone=True,
            # Else kopf makes one of the user's name, and fails where the user has none. It exports no type for it.
            identity=identity,  # type: ignore[arg-type]
        )
        started()
        await kopf.run_tasks(tasks, ignored=others)

    async def call_the_roll(self, cluster: Cluster) -> None:
        """Find out for ever what is gone: soon after a watch began anew, and now and then."""
        await self._call_until_all_answer(cluster)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ROLL_CALL):
                    await self._call_the_roll.wait()
            await asyncio.sleep(1)  # one roll call for all that is listed anew
            self._call_the_roll.clear()
            for of in WATCHED:
                try:
                    await self._strike_out(cluster, of)
                except ApiError as error:
                    logger.warning("cannot tell which %s are gone: %s", of.plural, error)

    async def _call_until_all_answer(self, cluster: Cluster) -> None:
        """Set ``ready`` when kopf has shown all that a list has; what is deleted meanwhile is not in the next list."""
        while not self.ready.is_set():
            try:
                lists = await asyncio.gather(*(cluster.list_metadata(of) for of in WATCHED))
            except ApiError as error:
                logger.warning("cannot tell whether everything is known: %s", error)
                await asyncio.sleep(_ANSWERS)
                continue
            called = {metadata["uid"] for listed, _ in lists for metadata in listed}
            for _ in range(_PATIENCE):
                if called <= self._seen.keys() | self._namespaces.keys():
                    self.ready.set()
                    self._wake()
                    return
                await asyncio.sleep(_ANSWERS)

    async def _strike_out(self, cluster: Cluster, of: ResourceType) -> None:
        # First what is known, then the list: what is in the one and not in the other has been deleted meanwhile or
        # before, for good, as a uid never comes back.
        known = self._known(of)
        if not known:
            return
        listed, _ = await cluster.list_metadata(of)
        gone = known - {metadata["uid"] for metadata in listed}
        # What was deleted in between may have been noticed in between.
        missed = [uid for uid in gone if self._seen.pop(uid, None) or self._namespaces.pop(uid, None)]
        if missed:
            logger.info("found deleted without a watch event: %d of %s", len(missed), of.plural)
            self._gone.update(missed)
            self._wake()

    def _known(self, of: ResourceType) -> set[str]:
        if of is NAMESPACES:
            return set(self._namespaces)
        return {uid for uid, seen in self._seen.items() if seen.identity.kind == of.kind}

    def _register(self) -> None:
        registry = self._registry

        # Not kopf.index: until all indexes are filled it wakes every waiting object whenever one is done, which takes
        # 11 s of processor time for a thousand.
        @kopf.on.event(GROUP, VERSION, kopf.EVERYTHING, registry=registry)
        async def resource(type: str | None, body: Mapping[str, Any], **_: Any) -> None:  # noqa: A002 - kopf's name
            uid = body["metadata"]["uid"]
            if type == "DELETED":
                self._seen.pop(uid, None)
            elif uid not in self._gone:
                self._seen[uid] = see(body, self._seen.get(uid))
            self._happened(type)

        @kopf.on.event("", "v1", NAMESPACES.plural, registry=registry)
        async def namespace(type: str | None, body: Mapping[str, Any], **_: Any) -> None:  # noqa: A002 - kopf's name
            metadata = body["metadata"]
            if type == "DELETED":
                self._namespaces.pop(metadata["uid"], None)
            elif metadata["uid"] not in self._gone:
                self._namespaces[metadata["uid"]] = metadata["name"], dict(metadata.get("labels") or {})
            self._happened(type)

    def _happened(self, type_: str | None) -> None:
        if type_ is None and self.ready.is_set():
            self._call_the_roll.set()  # listed again: the watch was down for a while
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


class _NoDifferences(kopf.DiffBaseStorage):
    """kopf keeps no copy of what it handled last: not in annotations, and not in the making, which takes its time."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass


class _NoProgress(kopf.ProgressStorage):
    """kopf keeps no account of handlers: ours have nothing to go on with."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass

    def purge(self, **_: Any) -> None:
        pass

    def touch(self, **_: Any) -> None:
        pass

    def clear(self, *, essence: Any) -> Any:
        return essence


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # our Events are about what changed, not about handlers
    settings.persistence.finalizer = f"{GROUP}/finalizer"  # none is ever set; if one were, it would be ours
    settings.persistence.progress_storage = _NoProgress()
    settings.persistence.diffbase_storage = _NoDifferences()
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
