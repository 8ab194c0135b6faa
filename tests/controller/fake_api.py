"""An API server in memory, over HTTP: as much of Kubernetes' API as the operator uses, and as strict.

What it has: resourceVersions and optimistic concurrency, server-side apply with field managers, managedFields and
conflicts, the status subresource, generations, namespaces, labels, finalizers and propagation of deletions, immutable
fields, lists in pages, watches with bookmarks and 410, PartialObjectMetadata, both forms of discovery, RBAC by verb.
`contract.py` holds it to a real API server: what a test here relies on belongs there.

What it has not: defaulting beyond a Service's address, admission, schemas, quotas, and other patch types than merge.
"""

import asyncio
import contextlib
import copy
import json
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from aiohttp import web

Json = dict[str, Any]
Path = tuple[str, ...]

APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
GROUP: Final = "audit-operator.dev"


class Type(NamedTuple):
    """A kind that is served."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    status: bool = False
    """Whether there is a status subresource."""
    generations: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


TYPES: Final = (
    Type("", "v1", "ConfigMap", "configmaps", generations=False),
    Type("", "v1", "Secret", "secrets", generations=False),
    Type("", "v1", "Service", "services", status=True, generations=False),
    Type("", "v1", "ServiceAccount", "serviceaccounts", generations=False),
    Type("", "v1", "Pod", "pods", status=True),
    Type("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", status=True, generations=False),
    Type("", "v1", "Namespace", "namespaces", namespaced=False, status=True, generations=False),
    Type("apps", "v1", "Deployment", "deployments", status=True),
    Type("apps", "v1", "StatefulSet", "statefulsets", status=True),
    Type("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", status=True),
    Type("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
    Type("coordination.k8s.io", "v1", "Lease", "leases", generations=False),
    Type("events.k8s.io", "v1", "Event", "events", generations=False),
    Type("storage.k8s.io", "v1", "StorageClass", "storageclasses", namespaced=False, generations=False),
    Type("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False),
    Type("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", namespaced=False),
    Type(GROUP, "v1alpha1", "AuditPolicy", "auditpolicies", status=True),
    Type(GROUP, "v1alpha1", "AuditSink", "auditsinks", status=True),
    Type(GROUP, "v1alpha1", "AuditBackend", "auditbackends", namespaced=False, status=True),
)

_LIST_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "containers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "volumeMounts": ("mountPath",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "ownerReferences": ("uid",),
}
"""Lists that are maps to a server-side apply; ``ports`` depends on where they are. All others are replaced whole."""

_STATEFUL_SET_MAY_CHANGE: Final = (
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
)
_NOT_APPLIED: Final = frozenset({"apiVersion", "kind"})
_SYSTEM_METADATA: Final = frozenset(
    {"name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"}
    | {"deletionTimestamp", "deletionGracePeriodSeconds"}
)


class Refused(Exception):  # noqa: N818 - what an API server answers is no error of the fake
    """An answer that is not 2xx."""

    def __init__(self, status: int, reason: str, message: str, causes: Sequence[Mapping[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.body: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": status,
            **({"details": {"causes": list(causes)}} if causes else {}),
        }


class Request(NamedTuple):
    """What was asked; ``body`` as it came."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    accept: str = ""

    @property
    def writes(self) -> bool:
        """Whether it asks for a change."""
        asks = self.path.endswith("selfsubjectaccessreviews")
        return self.method != "GET" and not asks and "dryRun" not in self.query


class _Where(NamedTuple):
    of: Type
    namespace: str
    name: str
    subresource: str


class _Happened(NamedTuple):
    version: int
    type: str
    of: Type
    object: Json
    before: Json | None


class FakeApi:
    """The state, and what becomes of a request. Everything is called in one event loop."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        """Everything that was asked, refused or not."""
        self.denied: set[tuple[str, str]] = set()
        """(RBAC's verb, plural) that are forbidden."""
        self.unserved: set[str] = set()
        """Plurals that the cluster does not serve."""
        self.answer: Callable[[Request], tuple[int, Json, Mapping[str, str]] | None] = lambda _: None
        """Status, body and headers to answer instead: for what goes wrong."""
        self.gate: Callable[[Request], Any] | None = None
        """Awaited before a request is worked on: for what is late."""
        self._objects: dict[tuple[Type, str, str], Json] = {}
        self._owners: dict[str, dict[tuple[str, str, str], frozenset[Path]]] = {}
        self._version = 100
        self._compacted = self._version
        self._history: list[_Happened] = []
        self._changed = asyncio.Event()
        self._broken = asyncio.Event()
        self._addresses = iter(range(10, 250))
        for name in ("default", "kube-system", "audit-system"):
            self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        for each in TYPES:
            if each.group == GROUP:
                crd = {"metadata": {"name": f"{each.plural}.{GROUP}"}, "spec": {"group": GROUP}}
                self.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        self.requests.clear()

    # --- for tests ---------------------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content: str = "application/json",
        accept: str = "",
        **query: str,
    ) -> tuple[int, Json]:
        """What an administrator's request is answered: status and body."""
        path, _, rest = path.partition("?")
        query |= dict(pair.split("=", 1) for pair in rest.split("&") if pair)
        try:
            return 200 if method != "POST" else 201, self.respond(Request(method, path, query, body, accept), content)
        except Refused as refused:
            return refused.status, refused.body

    def break_watches(self) -> None:
        """End every watch, as an API server does that goes away."""
        self._broken.set()
        self._broken = asyncio.Event()
        self._happens()

    def compact(self) -> None:
        """Forget what happened until now: watches from earlier versions are answered with 410."""
        self._compacted = self._version
        self._history.clear()

    def collect_garbage(self) -> None:
        """What the garbage collector of a cluster does, until nothing is left to do."""
        while self._collected():
            pass

    def _collected(self) -> bool:
        alive = {item["metadata"]["uid"] for item in self._objects.values()}
        for (of, _, _), item in list(self._objects.items()):
            metadata = item["metadata"]
            owners = metadata.get("ownerReferences") or []
            if "orphan" in metadata.get("finalizers", ()):
                for (other_type, _, _), other in list(self._objects.items()):
                    left = [
                        each for each in other["metadata"].get("ownerReferences", ()) if each["uid"] != metadata["uid"]
                    ]
                    if len(left) != len(other["metadata"].get("ownerReferences", ())):
                        changed = copy.deepcopy(other)
                        changed["metadata"]["ownerReferences"] = left
                        self._store(other_type, changed, other)
                self._remove(of, item)
                return True
            if owners and not any(each["uid"] in alive for each in owners):
                self._remove(of, item)
                return True
        return False

    # --- one request -------------------------------------------------------------------------------------------------

    def respond(self, asked: Request, content: str) -> Json:
        """The body of the answer. Raises Refused."""
        method, path, query, body, accept = asked
        parts = path.strip("/").split("/")
        group, version, rest = ("", parts[1], parts[2:]) if parts[0] == "api" else (parts[1], parts[2], parts[3:])
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        plural, name, sub = (*rest, "", "")[:3]
        of = next((each for each in TYPES if (each.group, each.version, each.plural) == (group, version, plural)), None)
        if of is None or plural in self.unserved:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(method, "")
        verb = verb or ("get" if name else "list")
        self._authorize(verb, of, namespace, name, sub)
        dry = query.get("dryRun") == "All"
        if verb == "list":
            return _shaped(self._list(of, namespace, query), accept)
        if verb == "get":
            return _shaped(self._found(of, namespace, name), accept)
        if verb == "create":
            if of.kind == "SelfSubjectAccessReview":
                wanted = body["spec"]["resourceAttributes"]
                allowed = (wanted["verb"], wanted["resource"]) not in self.denied
                return body | {"status": {"allowed": allowed}}
            return self._create(of, namespace, body, query.get("fieldManager", "kubectl"), dry=dry)
        if verb == "delete":
            return self._delete(of, namespace, name, body or {}, dry=dry)
        manager = query.get("fieldManager", "kubectl")
        if content == APPLY:
            where = _Where(of, namespace, name, sub)
            return self._apply(where, body, manager, force=query.get("force") == "true", dry=dry)
        before = self._found(of, namespace, name)
        after = _merged(before, body) if content == MERGE else copy.deepcopy(body)
        return self._update(of, before, after, sub, manager, dry=dry)

    def _authorize(self, verb: str, of: Type, namespace: str, name: str, sub: str) -> None:
        resource = f"{of.plural}/{sub}" if sub else of.plural
        if (verb, resource) not in self.denied:
            return
        quoted = f' "{name}"' if name else ""
        where = f'in API group "{of.group}" ' + (
            f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
        )
        raise Refused(
            403,
            "Forbidden",
            f'{of.plural}{f".{of.group}" if of.group else ""}{quoted} is forbidden: User "operator" cannot {verb} '
            f'resource "{resource}" {where}',
        )

    def _found(self, of: Type, namespace: str, name: str) -> Json:
        try:
            return self._objects[of, namespace, name]
        except KeyError:
            what = f"{of.plural}.{of.group}" if of.group else of.plural
            raise Refused(404, "NotFound", f'{what} "{name}" not found') from None

    def _list(self, of: Type, namespace: str, query: Mapping[str, str]) -> Json:
        items = [
            item
            for (each, where, _), item in sorted(self._objects.items(), key=lambda pair: pair[0][1:])
            if each == of and namespace in ("", where) and _selected(item, query.get("labelSelector", ""))
        ]
        version = str(self._version)
        metadata: Json = {"resourceVersion": version}
        if token := query.get("continue"):
            version, _, start = token.partition(".")
            if int(version) < self._compacted:
                raise Refused(410, "Expired", "The provided continue parameter is too old to display a consistent list")
            metadata["resourceVersion"] = version
            items = items[int(start) :]
        limit = int(query.get("limit") or 0)
        if limit and len(items) > limit:
            begun = int(token.partition(".")[2]) if token else 0
            metadata["continue"] = f"{version}.{begun + limit}"
            metadata["remainingItemCount"] = len(items) - limit
            items = items[:limit]
        return {"kind": f"{of.kind}List", "apiVersion": of.api_version, "metadata": metadata, "items": items}

    # --- writing -----------------------------------------------------------------------------------------------------

    def _create(self, of: Type, namespace: str, body: Json, manager: str, *, dry: bool) -> Json:
        name = body["metadata"]["name"]
        if (of, namespace, name) in self._objects:
            raise Refused(409, "AlreadyExists", f'{of.plural} "{name}" already exists')
        item = copy.deepcopy(body)
        if of.status:
            item.pop("status", None)
        self._complete(of, namespace, name, item)
        owners = {(manager, "Update", ""): frozenset(_leaves(item))}
        self._check(of, None, item)
        return item if dry else self._store(of, item, None, owners)

    def _complete(self, of: Type, namespace: str, name: str, item: Json) -> None:
        """What an API server puts into every new object."""
        if of.namespaced and not any(key[0].kind == "Namespace" and key[2] == namespace for key in self._objects):
            raise Refused(404, "NotFound", f'namespaces "{namespace}" not found')
        metadata = item["metadata"]
        metadata |= {
            "name": name,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": _now(),
            **({"namespace": namespace} if of.namespaced else {}),
            **({"generation": 1} if of.generations else {}),
        }
        metadata.pop("resourceVersion", None)
        item |= {"apiVersion": of.api_version, "kind": of.kind}
        if of.kind == "Service":
            spec = item.setdefault("spec", {})
            spec.setdefault("clusterIP", f"10.0.0.{next(self._addresses)}")
        if of.kind == "PersistentVolumeClaim":
            item["status"] = {"phase": "Pending"}
        if of.kind == "Namespace":
            labels = metadata.setdefault("labels", {})
            labels["kubernetes.io/metadata.name"] = name

    def _update(self, of: Type, before: Json, after: Json, sub: str, manager: str, *, dry: bool) -> Json:
        metadata = after.setdefault("metadata", {})
        self._precondition(before, metadata)
        after = _as_subresource(of, before, after, sub)
        if after == before:
            return before
        self._check(of, before, after)
        old, new = _values(before), _values(after)
        changed = frozenset(path for path, value in new.items() if old.get(path, ...) != value)
        gone = frozenset(old.keys() - new.keys())
        owners = dict(self._owners[before["metadata"]["uid"]])
        owners = {key: paths - changed - gone for key, paths in owners.items()}
        key = (manager, "Update", sub)
        owners[key] = (owners.get(key, frozenset()) | changed) - gone
        return after if dry else self._store(of, after, before, owners)

    def _precondition(self, before: Json, metadata: Json) -> None:
        live = before["metadata"]
        for field, what in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
            if metadata.get(field) not in (None, live[field]):
                said = (
                    "the object has been modified; please apply your changes to the latest version and try again"
                    if field == "resourceVersion"
                    else f"Precondition failed: {what} in precondition: {metadata[field]}, "
                    f"{what} in object meta: {live[field]}"
                )
                raise Refused(409, "Conflict", f'Operation cannot be fulfilled on "{live["name"]}": {said}')

    def _apply(self, where: "_Where", body: Json, manager: str, *, force: bool, dry: bool) -> Json:
        of, namespace, name, sub = where
        before = self._objects.get((of, namespace, name))
        if body["metadata"].get("name", name) != name:
            raise Refused(400, "BadRequest", "the name of the object does not match the name on the URL")
        document = copy.deepcopy(body)
        if sub or of.status:
            document = {
                key: value
                for key, value in document.items()
                if (key == "status") == bool(sub) or key in _NOT_APPLIED | {"metadata"}
            }
        if sub:
            document["metadata"] = {
                key: value for key, value in document["metadata"].items() if key in _SYSTEM_METADATA
            }
        key = (manager, "Apply", sub)
        applied = frozenset(_leaves(document))
        if before is None:
            if sub:
                self._found(of, namespace, name)
            if uid := body["metadata"].get("uid"):
                raise Refused(
                    409,
                    "Conflict",
                    f'Operation cannot be fulfilled on {of.plural} "{name}": uid mismatch: the provided object '
                    f"specified uid {uid}, and no existing object was found",
                )
            self._authorize("create", of, namespace, name, "")
            self._complete(of, namespace, name, document)
            self._check(of, None, document)
            return document if dry else self._store(of, document, None, {key: applied})
        if not sub and body["metadata"].get("uid") not in (None, before["metadata"]["uid"]):
            said = f'Invalid value: "{body["metadata"]["uid"]}": field is immutable'
            cause = {"reason": "FieldValueInvalid", "field": "metadata.uid", "message": said}
            raise Refused(422, "Invalid", f'{of.kind} "{name}" is invalid: metadata.uid: {said}', [cause])
        self._precondition(before, {"resourceVersion": body["metadata"].get("resourceVersion")})
        owners = dict(self._owners[before["metadata"]["uid"]])
        live, wanted = _values(before), _values(document)
        conflicts: dict[tuple[str, str, str], list[Path]] = {}
        for other, paths in owners.items():
            differing = [
                path
                for path in sorted(paths)
                for mine in sorted(applied)
                if other != key and _overlap(path, mine) and live.get(path, ...) != wanted.get(path, ...)
            ]
            if differing:
                conflicts[other] = sorted(set(differing))
        if conflicts and not force:
            raise _conflict(conflicts, of)
        for other, lost in conflicts.items():
            owners[other] -= frozenset(lost)
        after = _overlaid(copy.deepcopy(before), document, ())
        for path in owners.get(key, frozenset()) - applied:
            mine_alone = not any(
                _overlap(path, each) for other, paths in owners.items() if other != key for each in paths
            )
            if mine_alone and not any(_below(each, path) for each in applied):
                _removed(after, path)
        owners[key] = applied
        after["metadata"] = after["metadata"] | {
            field: before["metadata"][field] for field in _SYSTEM_METADATA if field in before["metadata"]
        }
        self._check(of, before, after)
        return after if dry else self._store(of, after, before, owners)

    def _store(
        self,
        of: Type,
        item: Json,
        before: Json | None,
        owners: Mapping[tuple[str, str, str], frozenset[Path]] | None = None,
    ) -> Json:
        """Keep it, as something that happened if it is not as before."""
        metadata = item["metadata"]
        if owners is not None:
            self._owners[metadata["uid"]] = {key: paths for key, paths in owners.items() if paths or key[1] == "Apply"}
            metadata["managedFields"] = _managed(self._owners[metadata["uid"]], of)
        if before is not None and of.generations and _content(before) != _content(item):
            metadata["generation"] = before["metadata"]["generation"] + 1
        if before is not None and _same(item, before):
            return before
        self._version += 1
        metadata["resourceVersion"] = str(self._version)
        self._objects[of, metadata.get("namespace", ""), metadata["name"]] = item
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            self._remove(of, item)
            return item
        self._happened(_Happened(self._version, "MODIFIED" if before else "ADDED", of, copy.deepcopy(item), before))
        return item

    def _remove(self, of: Type, item: Json) -> None:
        metadata = item["metadata"]
        del self._objects[of, metadata.get("namespace", ""), metadata["name"]]
        self._version += 1
        gone = copy.deepcopy(item)
        gone["metadata"]["resourceVersion"] = str(self._version)
        self._happened(_Happened(self._version, "DELETED", of, gone, item))

    def _happened(self, what: _Happened) -> None:
        self._history.append(what)
        self._happens()

    def _happens(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _delete(self, of: Type, namespace: str, name: str, options: Json, *, dry: bool) -> Json:
        item = self._found(of, namespace, name)
        self._precondition(item, options.get("preconditions") or {})
        if dry:
            return item
        after = copy.deepcopy(item)
        finalizer = {"Orphan": "orphan", "Foreground": "foregroundDeletion"}.get(options.get("propagationPolicy", ""))
        finalizers = [*after["metadata"].get("finalizers", ()), *([finalizer] if finalizer else [])]
        if not finalizers:
            self._remove(of, item)
            return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        after["metadata"] |= {"finalizers": finalizers, "deletionTimestamp": _now(), "deletionGracePeriodSeconds": 0}
        return self._store(of, after, item)

    def _check(self, of: Type, before: Json | None, after: Json) -> None:
        """What an API server refuses, as far as the operator meets it."""
        causes = list(_invalid(of, before, after))
        if causes:
            said = ", ".join(f"{cause['field']}: {cause['message']}" for cause in causes)
            kind = f"{of.kind}.{of.group}" if of.group else of.kind
            raise Refused(422, "Invalid", f'{kind} "{after["metadata"]["name"]}" is invalid: {said}', causes)
        if of.kind == "PersistentVolumeClaim" and before is not None and _size(after) > _size(before):
            name = after["spec"].get("storageClassName", "")
            chosen = next(
                (each for key, each in self._objects.items() if key[0].kind == "StorageClass" and key[2] == name), {}
            )
            if not chosen.get("allowVolumeExpansion"):
                raise Refused(
                    403,
                    "Forbidden",
                    f'persistentvolumeclaims "{after["metadata"]["name"]}" is forbidden: only dynamically provisioned '
                    "pvc can be resized and the storageclass that provisions the pvc must support resize",
                )

    # --- watching ----------------------------------------------------------------------------------------------------

    async def watch(self, of: Type, namespace: str, query: Mapping[str, str], accept: str) -> AsyncIterator[Json]:
        """Events from the version asked for on, until ``timeoutSeconds``."""
        selector = query.get("labelSelector", "")
        asked = query.get("resourceVersion", "")
        async with contextlib.AsyncExitStack() as stack:
            if "timeoutSeconds" in query:
                stack.enter_context(contextlib.suppress(TimeoutError))
                await stack.enter_async_context(asyncio.timeout(float(query["timeoutSeconds"])))
            if asked in ("", "0"):
                for item in self._list(of, namespace, query)["items"]:
                    yield {"type": "ADDED", "object": _shaped(item, accept)}
                asked = str(self._version)
            if int(asked) < self._compacted:
                message = f"too old resource version: {asked} ({self._version})"
                yield {"type": "ERROR", "object": Refused(410, "Expired", message).body}
                return
            version, broken = int(asked), self._broken
            while not broken.is_set():
                changed = self._changed
                for each in [each for each in self._history if each.version > version]:
                    version = each.version
                    there = each.of == of and namespace in ("", each.object["metadata"].get("namespace", ""))
                    if there and (type_ := _seen_as(each, selector)):
                        yield {"type": type_, "object": _shaped(each.object, accept)}
                if query.get("allowWatchBookmarks") == "true" and not changed.is_set():
                    mark = {"kind": of.kind, "apiVersion": of.api_version}
                    yield {"type": "BOOKMARK", "object": mark | {"metadata": {"resourceVersion": str(version)}}}
                await changed.wait()


# --- documents -------------------------------------------------------------------------------------------------------


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _shaped(answer: Json, accept: str) -> Json:
    """The answer in the form that was asked for."""
    if "PartialObjectMetadata" not in accept:
        return copy.deepcopy(answer)
    about = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
    if "items" in answer:
        items = [about | {"metadata": item["metadata"]} for item in answer["items"]]
        return copy.deepcopy(
            {**about, "kind": "PartialObjectMetadataList", "metadata": answer["metadata"], "items": items}
        )
    return copy.deepcopy(about | {"metadata": answer["metadata"]})


def _selected(item: Json, selector: str) -> bool:
    labels = item["metadata"].get("labels") or {}
    return all(
        labels.get(key) == value for key, _, value in (each.partition("=") for each in selector.split(",") if each)
    )


def _seen_as(event: _Happened, selector: str) -> str:
    """What a watch with a selector shows: what leaves the selection is deleted to it."""
    now = event.type != "DELETED" and _selected(event.object, selector)
    then = event.before is not None and _selected(event.before, selector)
    if now:
        return "MODIFIED" if then else "ADDED"
    return "DELETED" if then else ""


def _content(item: Json) -> Json:
    return {key: value for key, value in item.items() if key not in ("metadata", "status")}


def _same(one: Json, other: Json) -> bool:
    def plain(item: Json) -> Json:
        metadata = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
        managed = [{**each, "time": ""} for each in item["metadata"].get("managedFields") or ()]
        return {**item, "metadata": {**metadata, "managedFields": managed}}

    return plain(one) == plain(other)


def _merged(live: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(copy.deepcopy(live)) if isinstance(live, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def _as_subresource(of: Type, before: Json, after: Json, sub: str) -> Json:
    """A write to an object leaves its status alone, and a write to the status everything else."""
    kept = {field: before["metadata"][field] for field in _SYSTEM_METADATA if field in before["metadata"]}
    if sub == "status":
        return copy.deepcopy(before) | ({"status": after["status"]} if "status" in after else {})
    result = {**after, "metadata": {**after["metadata"], **kept}}
    if of.status:
        result.pop("status", None)
        result |= {"status": copy.deepcopy(before["status"])} if "status" in before else {}
    return result


def _keys(path: Path, value: list[Any]) -> tuple[str, ...] | None:
    """By which fields a list is a map; None: it is one value."""
    name = path[-1][2:] if path else ""
    if name == "ports" and all(isinstance(each, dict) for each in value):
        return ("containerPort", "protocol") if any(each.startswith("k:") for each in path) else ("port", "protocol")
    keys = _LIST_KEYS.get(name)
    return keys if keys and all(isinstance(each, dict) for each in value) else None


def _entry(keys: tuple[str, ...], item: Json) -> str:
    return "k:" + json.dumps({key: item[key] for key in keys if key in item}, separators=(",", ":"))


def _walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict) and (value or not path):
        for key, each in value.items():
            if not path and key in _NOT_APPLIED:
                continue
            if path == ("f:metadata",) and key in _SYSTEM_METADATA:
                continue
            yield from _walk(each, (*path, f"f:{key}"))
    elif isinstance(value, list) and value and (keys := _keys(path, value)):
        for each in value:
            yield from _walk(each, (*path, _entry(keys, each)))
    elif path != ("f:metadata",):
        yield path, value


def _leaves(document: Json) -> Iterator[Path]:
    return (path for path, _ in _walk(document))


def _values(document: Json) -> dict[Path, Any]:
    return dict(_walk(document))


def _below(path: Path, other: Path) -> bool:
    return path[: len(other)] == other


def _overlap(one: Path, other: Path) -> bool:
    return _below(one, other) or _below(other, one)


def _overlaid(live: Any, wanted: Any, path: Path) -> Any:
    """Server-side apply's merge."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        for key, value in wanted.items():
            live[key] = _overlaid(live[key], value, (*path, f"f:{key}")) if key in live else copy.deepcopy(value)
        return live
    if isinstance(wanted, list) and isinstance(live, list) and (keys := _keys(path, wanted)):
        by_entry = {_entry(keys, each): each for each in live}
        for each in wanted:
            name = _entry(keys, each)
            known = by_entry.get(name)
            by_entry[name] = copy.deepcopy(each) if known is None else _overlaid(known, each, (*path, name))
        return list(by_entry.values())
    return copy.deepcopy(wanted)


def _removed(value: Any, path: Path) -> None:
    """Without what is at ``path``, and what is empty then."""
    step, rest = path[0], path[1:]
    if step.startswith("f:"):
        key = step[2:]
        if not isinstance(value, dict) or key not in value:
            return
        if not rest:
            del value[key]
            return
        _removed(value[key], rest)
        if value[key] in ({}, []):
            del value[key]
        return
    wanted = json.loads(step[2:])
    for item in list(value):
        if all(item.get(key) == each for key, each in wanted.items()):
            if rest:
                _removed(item, rest)
            if not rest or item == wanted or all(key in wanted for key in item):
                value.remove(item)


def _managed(owners: Mapping[tuple[str, str, str], frozenset[Path]], of: Type) -> list[Json]:
    result = []
    for (manager, operation, sub), paths in sorted(owners.items()):
        fields: Json = {}
        for path in sorted(paths):
            at = fields
            for step in path:
                at = at.setdefault(step, {})
        entry = {"manager": manager, "operation": operation, "apiVersion": of.api_version, "time": _now()}
        entry |= {"fieldsType": "FieldsV1", "fieldsV1": fields}
        result.append(entry | ({"subresource": sub} if sub else {}))
    return result


def _conflict(conflicts: Mapping[tuple[str, str, str], Sequence[Path]], of: Type) -> Refused:
    causes = []
    for (manager, operation, sub), paths in conflicts.items():
        how = f" with subresource {json.dumps(sub)}" if sub else ""
        using = f" using {of.api_version}" if operation == "Update" or sub else ""
        causes += [
            {
                "reason": "FieldManagerConflict",
                "message": f'conflict with "{manager}"{how}{using}',
                "field": _dotted(path),
            }
            for path in paths
        ]
    number = len(causes)
    what = f"{number} conflict{'' if number == 1 else 's'}"
    return Refused(409, "Conflict", f"Apply failed with {what}: {causes[0]['message']}: {causes[0]['field']}", causes)


def _dotted(path: Path) -> str:
    return "".join(f".{step[2:]}" if step.startswith("f:") else _bracket(step) for step in path)


def _bracket(step: str) -> str:
    return "[" + ",".join(f"{key}={json.dumps(value)}" for key, value in json.loads(step[2:]).items()) + "]"


def _invalid(of: Type, before: Json | None, after: Json) -> Iterator[Json]:
    def cause(reason: str, field: str, message: str) -> Json:
        return {"reason": reason, "field": field, "message": message}

    spec = after.get("spec") or {}
    if of.kind == "StatefulSet":
        if spec.get("replicas", 0) < 0:
            said = f"Invalid value: {spec['replicas']}: must be greater than or equal to 0"
            yield cause("FieldValueInvalid", "spec.replicas", said)
        if before is not None:
            fixed = (
                {k: v for k, v in each.items() if k not in _STATEFUL_SET_MAY_CHANGE} for each in (before["spec"], spec)
            )
            if next(fixed) != next(fixed):
                allowed = ", ".join(f"'{each}'" for each in _STATEFUL_SET_MAY_CHANGE[:-1])
                said = (
                    f"Forbidden: updates to statefulset spec for fields other than {allowed} and 'minReadySeconds' are "
                    "forbidden"
                )
                yield cause("FieldValueForbidden", "spec", said)
    if of.kind in ("ConfigMap", "Secret") and before is not None and before.get("immutable"):
        for field in ("data", "binaryData"):
            if before.get(field) != after.get(field):
                yield cause("FieldValueForbidden", field, "Forbidden: field is immutable when `immutable` is set")
    if of.kind == "Service" and before is not None and before["spec"]["clusterIP"] != spec.get("clusterIP"):
        yield cause(
            "FieldValueInvalid",
            "spec.clusterIPs[0]",
            f'Invalid value: ["{spec.get("clusterIP")}"]: may not change once set',
        )
    if of.kind == "PersistentVolumeClaim" and before is not None:
        fixed = ({k: v for k, v in each.items() if k != "resources"} for each in (before["spec"], spec))
        bound = before.get("status", {}).get("phase") == "Bound"
        if next(fixed) != next(fixed) or (not bound and before["spec"] != spec):
            said = (
                "Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName "
                "for bound claims"
            )
            yield cause("FieldValueForbidden", "spec", said)
        elif _size(after) < _size(before):
            yield cause(
                "FieldValueForbidden",
                "spec.resources.requests.storage",
                "Forbidden: field can not be less than status.capacity",
            )
    if of.kind == "Event" and len(after.get("note", "").encode()) > 1024:
        yield cause("FieldValueInvalid", "note", "Invalid value: can have at most 1024 characters")


def _size(claim: Json) -> int:
    text = claim["spec"]["resources"]["requests"]["storage"]
    return int(text.removesuffix("Gi"))


# --- HTTP ------------------------------------------------------------------------------------------------------------


class _Served:
    """Answers over HTTP for a FakeApi."""

    def __init__(self, api: FakeApi) -> None:
        self._api = api

    async def answer(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text) if text else None
        accept = request.headers.get("Accept", "")
        asked = Request(request.method, request.path, dict(request.query), body, accept)
        self._api.requests.append(asked)
        if self._api.gate is not None:
            await self._api.gate(asked)
        if (instead := self._api.answer(asked)) is not None:
            status, document, headers = instead
            return web.json_response(document, status=status, headers=dict(headers))
        if (found := self._about(request)) is not None:
            return web.json_response(found)
        try:
            if request.query.get("watch") == "true":
                return await self._stream(request, accept)
            content = request.headers.get("Content-Type", "").partition(";")[0]
            created = request.method == "POST"
            document = self._api.respond(asked, content)
        except Refused as refused:
            return web.json_response(refused.body, status=refused.status)
        return web.json_response(document, status=201 if created else 200)

    async def _stream(self, request: web.Request, accept: str) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        group, version = ("", parts[1]) if parts[0] == "api" else (parts[1], parts[2])
        namespace, plural = (rest[1], rest[2]) if rest[0] == "namespaces" and len(rest) > 1 else ("", rest[0])
        of = next(each for each in TYPES if (each.group, each.version, each.plural) == (group, version, plural))
        self._api._authorize("watch", of, namespace, "", "")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            async for event in self._api.watch(of, namespace, dict(request.query), accept):
                await response.write(json.dumps(event).encode() + b"\n")
        return response

    def _about(self, request: web.Request) -> Json | None:
        """What is served."""
        path, served = request.path, [each for each in TYPES if each.plural not in self._api.unserved]
        groups = sorted({(each.group, each.version) for each in served if each.group})
        if path == "/version":
            return {"major": "1", "minor": "36", "gitVersion": "v1.36.2"}
        if path in ("/api", "/apis") and "APIGroupDiscoveryList" in request.headers.get("Accept", ""):
            names = [("", "v1")] if path == "/api" else groups
            return {"kind": "APIGroupDiscoveryList", "items": [_discovered(name, served) for name in names]}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            return {"kind": "APIGroupList", "groups": [_group(*each) for each in groups]}
        parts = tuple(path.strip("/").split("/"))
        if parts in (("api", "v1"), *(("apis", *each) for each in groups)):
            group = ("", "v1") if len(parts) == 2 else (parts[1], parts[2])
            return {"kind": "APIResourceList", "resources": _resources(group, served)}
        return None


def _group(name: str, version: str) -> Json:
    one = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [one], "preferredVersion": one}


_VERBS: Final = ["create", "delete", "get", "list", "patch", "update", "watch"]


def _resources(group: tuple[str, str], served: Sequence[Type]) -> list[Json]:
    return [
        {
            "name": each.plural,
            "singularName": each.kind.lower(),
            "kind": each.kind,
            "namespaced": each.namespaced,
            "verbs": _VERBS,
        }
        for each in served
        if (each.group, each.version) == group
    ]


def _discovered(group: tuple[str, str], served: Sequence[Type]) -> Json:
    resources = [
        {
            "resource": each.plural,
            "responseKind": {"group": each.group, "version": each.version, "kind": each.kind},
            "scope": "Namespaced" if each.namespaced else "Cluster",
            "verbs": _VERBS,
        }
        for each in served
        if (each.group, each.version) == group
    ]
    return {
        "metadata": {"name": group[0]} if group[0] else {},
        "versions": [{"version": group[1], "resources": resources}],
    }


@contextlib.asynccontextmanager
async def serving(api: FakeApi) -> AsyncIterator[str]:
    """Its URL, while it is served in this event loop."""
    app = web.Application(client_max_size=16 << 20)
    app.router.add_route("*", "/{path:.*}", _Served(api).answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def in_a_thread() -> Iterator[tuple[FakeApi, str]]:
    """One for callers without an event loop, and its URL."""
    loop, started, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    found: list[tuple[FakeApi, str]] = []

    async def run() -> None:
        api = FakeApi()
        async with serving(api) as url:
            found.append((api, url))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
