"""The API server as the operator talks to it: plain documents in and out, errors that say which verb on what.

Objects are dictionaries as on the wire. What is watched is watched as metadata: contents, above all those of Secrets,
come when somebody asks for them and are kept by nobody here.
"""

import asyncio
import contextlib
import json
import math
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.exceptions import DynamicApiError
from kubernetes.aio.dynamic.resource import Resource

from audit_operator import __version__
from audit_operator.controller import metrics
from audit_operator.controller.election import Fence, while_leading
from audit_operator.policy.kinds import Kind, Kinds, Version
from audit_operator.render.objects import Object
from audit_operator.resources.meta import GROUP, VERSION

FIELD_MANAGER: Final = "audit-operator"

_METADATA: Final = "application/json;as={};g=meta.k8s.io;v=v1"
_DISCOVERY: Final = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_TURNED_AWAY: Final = 10  # times that one request is sent again
_LONGEST_WAIT: Final = 5.0  # seconds; what takes longer is for the next pass
_TIMEOUT: Final = 30.0  # seconds; what the API server itself gives a request is 60
_WATCH_SECONDS: Final = 300  # of one watch; a connection that died silently is noticed after that
_QUIET: Final = 75.0  # seconds without a line, though API servers send a bookmark every 60


class ResourceType(NamedTuple):
    """A kind of objects and where it is served."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]


POLICIES: Final = ResourceType(f"{GROUP}/{VERSION}", "AuditPolicy", "auditpolicies")
SINKS: Final = ResourceType(f"{GROUP}/{VERSION}", "AuditSink", "auditsinks")
BACKENDS: Final = ResourceType(f"{GROUP}/{VERSION}", "AuditBackend", "auditbackends", namespaced=False)
NAMESPACES: Final = ResourceType("v1", "Namespace", "namespaces", namespaced=False)
EVENTS: Final = ResourceType("events.k8s.io/v1", "Event", "events")
REVIEWS: Final = ResourceType(
    "authorization.k8s.io/v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", namespaced=False
)

OURS: Final = {each.kind: each for each in (POLICIES, SINKS, BACKENDS)}
"""The custom resources, by kind."""


class ApiError(Exception):
    """What the API server answered instead: ``status`` is HTTP's, ``reason`` the API's word, ``causes`` its details.

    The message says which verb on what, in the API server's own words where it has some.
    """

    def __init__(self, what: str, status: int, reason: str, message: str, causes: Sequence[Mapping[str, str]]) -> None:
        super().__init__(f"{what}: {message}" if message else f"{what}: {status} {reason}")
        self.status = status
        self.reason = reason
        self.causes = tuple(causes)


class UnreachableError(ApiError):
    """No answer came."""

    def __init__(self, what: str, error: Exception) -> None:
        super().__init__(what, 0, "Unreachable", f"{type(error).__name__}: {error}".rstrip(": "), ())


class WatchEvent(NamedTuple):
    """``type``: ADDED, MODIFIED, DELETED, BOOKMARK. ``object``: the metadata."""

    type: str
    metadata: Mapping[str, Any]


class Discovered(NamedTuple):
    """What the cluster serves: ``kinds`` for rules, ``served`` (apiVersion, kind) for objects to apply."""

    version: Version
    kinds: Kinds
    served: frozenset[tuple[str, str]]


async def configuration(kubeconfig: str | None, context: str | None) -> Configuration:
    """Where the API server is and how to log in: ``kubeconfig``, else the pod's service account, else kubectl's.

    Raises kubernetes.aio.config.ConfigException if there is none of them.
    """
    found = Configuration()
    if kubeconfig is None and context is None:
        with contextlib.suppress(ConfigException):
            load_incluster_config(client_configuration=found)
            return found
    await load_kube_config(config_file=kubeconfig, context=context, client_configuration=found)
    return found


class Cluster(Protocol):
    """What the controller asks of an API server. Each call raises ApiError; writes raise NotLeadingError, too."""

    async def get(self, of: ResourceType, namespace: str, name: str) -> Object | None:
        """The object, None if there is none."""
        ...

    async def get_metadata(self, of: ResourceType, namespace: str, name: str) -> Mapping[str, Any] | None:
        """The object's metadata, None if there is no such object; contents are not transferred."""
        ...

    async def list_metadata(
        self, of: ResourceType, namespace: str = "", selector: str = ""
    ) -> tuple[list[Mapping[str, Any]], str]:
        """The metadata of all objects, as of now, and the version that a watch can go on from."""
        ...

    def watch_metadata(
        self, of: ResourceType, version: str, namespace: str = "", selector: str = ""
    ) -> AsyncIterator[WatchEvent]:
        """What happens from ``version`` on, until the API server ends the watch. Raises ApiError, 410 included."""
        ...

    async def apply(self, of: ResourceType, document: Object, *, force: bool = False, dry_run: bool = False) -> Object:
        """Server-side apply: what it is now. Raises ApiError 409 where other managers own what differs.

        ``dry_run``: what it would be; nothing is written.
        """
        ...

    async def apply_status(self, of: ResourceType, document: Object) -> Object:
        """Server-side apply of the status, which is ours alone."""
        ...

    async def create(self, of: ResourceType, document: Object) -> Object:
        """A new object."""
        ...

    async def delete(self, of: ResourceType, metadata: Mapping[str, Any], *, orphan: bool = False) -> None:
        """Delete exactly the object that was seen, as it was seen; gone already is as good.

        ``orphan``: what it owns stays, with no owner; else it goes as well.
        """
        ...


class KubernetesCluster:
    """Calls to one API server, by the replica ``identity``. Use as an asynchronous context manager.

    ``fence`` says whether this replica may write: it is asked before a write is sent, and before it is sent again.
    """

    def __init__(self, configuration: Configuration, identity: str) -> None:
        self._configuration = configuration
        self._identity = identity
        self.fence: Fence = lambda: math.inf
        self._tags: dict[str, tuple[str, Any]] = {}
        self._discovered: tuple[object, Discovered] | None = None

    async def __aenter__(self) -> "KubernetesCluster":
        self.client = ApiClient(self._configuration)
        # Whoever reads audit events can tell the replicas apart.
        self.client.user_agent = f"audit-operator/{__version__} ({self._identity})"
        self._dynamic = DynamicClient(self.client)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def get(self, of: ResourceType, namespace: str, name: str) -> Object | None:
        """The object, None if there is none."""
        return await self._found("get", of, namespace, name)

    async def get_metadata(self, of: ResourceType, namespace: str, name: str) -> Mapping[str, Any] | None:
        """The object's metadata, None if there is no such object; contents are not transferred."""
        accept = {"Accept": _METADATA.format("PartialObjectMetadata")}
        found = await self._found("get", of, namespace, name, header_params=accept)
        return None if found is None else found["metadata"]

    async def list_metadata(
        self, of: ResourceType, namespace: str = "", selector: str = ""
    ) -> tuple[list[Mapping[str, Any]], str]:
        """The metadata of all objects, as of now, and the version that a watch can go on from."""
        answer = await self._call(
            "list",
            of,
            namespace,
            label_selector=selector or None,
            header_params={"Accept": _METADATA.format("PartialObjectMetadataList")},
        )
        return [item["metadata"] for item in answer["items"] or ()], answer["metadata"]["resourceVersion"]

    async def watch_metadata(
        self, of: ResourceType, version: str, namespace: str = "", selector: str = ""
    ) -> AsyncIterator[WatchEvent]:
        """What happens from ``version`` on, until the API server ends the watch. Raises ApiError, 410 included."""
        response = await self._call(
            "watch",
            of,
            namespace,
            label_selector=selector or None,
            resource_version=version,
            timeout_seconds=_WATCH_SECONDS,
            query_params=[("watch", "true"), ("allowWatchBookmarks", "true")],
            header_params={"Accept": _METADATA.format("PartialObjectMetadata")},
            serialize=False,
            _request_timeout=_WATCH_SECONDS + _TIMEOUT,
        )
        what = f"watch {of.plural}"
        try:
            while line := await self._line(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise ApiError(what, status.get("code", 0), status.get("reason", ""), status.get("message", ""), ())
                yield WatchEvent(event["type"], event["object"]["metadata"])
        except (aiohttp.ClientError, OSError) as error:
            raise UnreachableError(what, error) from None
        finally:
            response.close()

    async def _line(self, response: aiohttp.ClientResponse) -> bytes:
        """The next line of a watch; none, if it is so quiet that nobody may be there."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_QUIET):
                return await response.content.readline()
        return b""

    async def apply(self, of: ResourceType, document: Object, *, force: bool = False, dry_run: bool = False) -> Object:
        """Server-side apply: what it is now. Raises ApiError 409 where other managers own what differs.

        ``dry_run``: what it would be; nothing is written.
        """
        answer: Object = await self._call(
            "patch",
            of,
            document["metadata"].get("namespace", ""),
            document["metadata"]["name"],
            body=document,
            content_type="application/apply-patch+yaml",
            field_manager=FIELD_MANAGER,
            force_conflicts="true" if force else None,
            dry_run="All" if dry_run else None,
        )
        return answer

    async def apply_status(self, of: ResourceType, document: Object) -> Object:
        """Server-side apply of the status, which is ours alone."""
        answer: Object = await self._call(
            "patch",
            of,
            document["metadata"].get("namespace", ""),
            document["metadata"]["name"],
            subresource="status",
            body=document,
            content_type="application/apply-patch+yaml",
            field_manager=FIELD_MANAGER,
            force_conflicts="true",
        )
        return answer

    async def create(self, of: ResourceType, document: Object) -> Object:
        """A new object."""
        answer: Object = await self._call("create", of, document["metadata"].get("namespace", ""), body=document)
        return answer

    async def delete(self, of: ResourceType, metadata: Mapping[str, Any], *, orphan: bool = False) -> None:
        """Delete exactly the object that was seen, as it was seen; gone already is as good.

        ``orphan``: what it owns stays, with no owner; else it goes as well.
        """
        preconditions = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": preconditions,
            "propagationPolicy": "Orphan" if orphan else "Background",
        }
        await self._found("delete", of, metadata["namespace"], metadata["name"], body=body)

    async def may(self, verb: str, group: str, resource: str, namespace: str = "", name: str = "") -> bool:
        """Whether RBAC lets the operator do it."""
        plural, _, subresource = resource.partition("/")
        attributes = {"verb": verb, "group": group, "resource": plural, "subresource": subresource}
        attributes |= {"namespace": namespace, "name": name}
        document = {
            "apiVersion": REVIEWS.api_version,
            "kind": REVIEWS.kind,
            "metadata": {},
            "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
        }
        answer = await self.create(REVIEWS, document)
        return bool(answer["status"]["allowed"])

    async def discover(self) -> Discovered:
        """The server's version and what it serves; the same value as before, if nothing changed."""
        version = await self._raw("/version", "application/json")
        groups = [item for path in ("/api", "/apis") for item in (await self._raw(path, _DISCOVERY)).get("items", ())]
        number = int(version["major"]), int("".join(filter(str.isdigit, version["minor"])))
        said = number, groups
        if self._discovered is None or self._discovered[0] != said:
            self._discovered = said, Discovered(number, _kinds(groups), _served(groups))
        return self._discovered[1]

    async def _patiently(self, method: str, path: str, fence: Fence | None = None, **rest: Any) -> Any:
        """A request; where the API server has no time for it, again when it says, as client-go does.

        ``fence``, of a write: asked each time. What was turned away while this replica led may be sent again long
        after another one took over.
        """
        queries = rest.pop("query_params", ())
        for wait in range(_TURNED_AWAY):
            if fence is not None:
                fence()
            try:
                return await self._dynamic.request(method, path, query_params=[*queries], **rest)  # it adds to the list
            except DynamicApiError as error:
                asked = _retry_after(error)
                if asked is None:
                    raise
                # Not all at the same moment: others were turned away with us.
                await asyncio.sleep(min(asked, _LONGEST_WAIT) * random.uniform(0.5, 1 + wait / 4))  # noqa: S311
        if fence is not None:
            fence()
        return await self._dynamic.request(method, path, query_params=[*queries], **rest)

    async def _raw(self, path: str, accept: str) -> Any:
        tag, known = self._tags.get(path, ("", None))
        headers = {"Accept": accept} | ({"If-None-Match": tag} if tag else {})
        what = f"get {path}"
        try:
            response = await self._patiently(
                "get", path, header_params=headers, serialize=False, _request_timeout=_TIMEOUT
            )
            answer = await response.json(content_type=None)
        except DynamicApiError as error:
            if error.status == 304:
                return known
            raise _api_error(what, error) from None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise UnreachableError(what, error) from None
        if new := response.headers.get("ETag"):
            self._tags[path] = new, answer
        return answer

    async def _found(self, verb: str, of: ResourceType, namespace: str, name: str, **rest: Any) -> Object | None:
        try:
            answer: Object = await self._call(verb, of, namespace, name, **rest)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return answer

    async def _call(
        self, verb: str, of: ResourceType, namespace: str, name: str = "", *, subresource: str = "", **rest: Any
    ) -> Any:
        """One request; ``verb`` is RBAC's. Whatever goes wrong is an ApiError."""
        group, _, version = of.api_version.rpartition("/")
        resource = Resource(
            prefix="apis" if group else "api",
            group=group,
            api_version=version,
            kind=of.kind,
            name=of.plural,
            namespaced=of.namespaced,
        )
        path = resource.path(name=name or None, namespace=namespace or None)
        if subresource:
            path += f"/{subresource}"
        where = f" {namespace}/{name}" if namespace and name else f" {namespace}{name}"
        what = f"{verb} {of.plural}{f'/{subresource}' if subresource else ''}{where}".rstrip()
        method = {"create": "post", "list": "get", "watch": "get"}.get(verb, verb)
        counted = metrics.REQUESTS.labels(verb, f"{of.plural}/{subresource}" if subresource else of.plural)
        rest.setdefault("_request_timeout", _TIMEOUT)
        try:
            if method == "get" or of is REVIEWS:  # a review is a question, and asked by every replica
                answer = await self._patiently(method, path, serializer=_as_it_is, **rest)
            else:
                sending = self._patiently(method, path, self.fence, serializer=_as_it_is, **rest)
                answer = await while_leading(self.fence, sending)
        except DynamicApiError as error:
            counted.inc()
            metrics.REQUEST_ERRORS.labels(verb, of.plural, str(error.status)).inc()
            raise _api_error(what, error) from None
        except ApiException as error:  # not an answer of HTTP
            raise UnreachableError(what, error) from None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            metrics.REQUEST_ERRORS.labels(verb, of.plural, "0").inc()
            raise UnreachableError(what, error) from None
        counted.inc()
        return answer


def _retry_after(error: DynamicApiError) -> float | None:
    """Seconds after which the API server wants to be asked again; None if that is of no use."""
    if error.status not in (429, 503):
        return None
    headers = {str(name).lower(): value for name, value in dict(error.headers or {}).items()}
    try:
        return float(headers["retry-after"])
    except (KeyError, ValueError):
        return 1.0 if error.status == 429 else None


def _as_it_is(_: object, answer: object) -> object:
    return answer


def _api_error(what: str, error: DynamicApiError) -> ApiError:
    reason, message, causes = str(error.reason or ""), "", ()
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        body = json.loads(error.body or "")
        reason, message = body.get("reason") or reason, body.get("message") or ""
        causes = (body.get("details") or {}).get("causes") or ()
    return ApiError(what, int(error.status), reason, message, causes)


def _kinds(groups: Sequence[Object]) -> Kinds:
    """All that rules can name in this cluster; subresources in the form of the built-in table."""
    found: dict[tuple[str, str], Kind] = {}
    for group in groups:
        name = group["metadata"].get("name", "")
        for version in group["versions"]:
            for resource in version.get("resources", ()):
                key = name, resource["resource"]
                subresources = frozenset(each["subresource"] for each in resource.get("subresources") or ())
                if known := found.get(key):
                    subresources |= known.subresources
                found[key] = Kind(
                    group=name,
                    resource=resource["resource"],
                    kind=resource.get("responseKind", {}).get("kind", ""),
                    namespaced=resource.get("scope") == "Namespaced",
                    subresources=subresources,
                    verbs=frozenset(resource.get("verbs") or ()),
                    short_names=tuple(resource.get("shortNames") or ()),
                )
    return Kinds(found.values(), complete=True)


def _served(groups: Sequence[Object]) -> frozenset[tuple[str, str]]:
    return frozenset(
        ("/".join(filter(None, (group["metadata"].get("name"), version["version"]))), resource["responseKind"]["kind"])
        for group in groups
        for version in group["versions"]
        for resource in version.get("resources", ())
        if resource.get("responseKind")
    )
