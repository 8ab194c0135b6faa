"""As much of an API server as a pod of the operator needs to begin, lead and make objects. It asks nobody who they are.

Objects are what is applied last: no fields are merged, no schemas checked. The real one is in e2e/.
"""

import contextlib
import http.server
import itertools
import json
import re
import ssl
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

Json = dict[str, Any]


class Kind(NamedTuple):
    """What is served."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True


OURS = "audit-operator.dev/v1alpha1"
KINDS = (
    Kind("v1", "ConfigMap", "configmaps"),
    Kind("v1", "Namespace", "namespaces", namespaced=False),
    Kind("v1", "Pod", "pods"),
    Kind("v1", "Secret", "secrets"),
    Kind("v1", "Service", "services"),
    Kind("v1", "ServiceAccount", "serviceaccounts"),
    Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False),
    Kind("apps/v1", "Deployment", "deployments"),
    Kind("apps/v1", "StatefulSet", "statefulsets"),
    Kind("coordination.k8s.io/v1", "Lease", "leases"),
    Kind("events.k8s.io/v1", "Event", "events"),
    Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Kind(OURS, "AuditBackend", "auditbackends", namespaced=False),
    Kind(OURS, "AuditPolicy", "auditpolicies"),
    Kind(OURS, "AuditSink", "auditsinks"),
)
CONSTRAINTS = Kind(
    "security.openshift.io/v1", "SecurityContextConstraints", "securitycontextconstraints", namespaced=False
)
"""What OpenShift serves beside."""
_VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
_REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_PATH = re.compile(
    r"(?P<api>/api/v1|/apis/[^/]+/[^/]+)(?:/namespaces/(?P<namespace>[^/]+)(?=/[^/]+))?"
    r"/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<subresource>status))?"
)


class ApiDouble:
    """The objects there are, by path, and who watches them."""

    def __init__(self, kinds: tuple[Kind, ...] = KINDS) -> None:
        self.kinds = kinds
        self._objects: dict[str, Json] = {}
        self._changes: list[tuple[int, str, str, Json]] = []
        self._versions = itertools.count(1)
        self._changed = threading.Condition()
        self._ended = False

    def put(self, path: str, document: Json) -> Json:
        """Create or replace."""
        with self._changed:
            version = next(self._versions)
            known = self._objects.get(path)
            stamp = {"resourceVersion": str(version), "creationTimestamp": "2026-11-23T04:00:00Z", "generation": 1}
            stamp |= {"uid": known["metadata"]["uid"] if known else f"00000000-0000-4000-8000-{version:012}"}
            kind = next(each for each in self.kinds if each.plural == path.rsplit("/", 2)[1])
            said = {"apiVersion": kind.api_version, "kind": kind.kind}  # typed clients leave them out
            document = said | document | {"metadata": document["metadata"] | stamp}
            if document["kind"] == "Service":
                document["spec"] = {"clusterIP": "10.96.0.10"} | document["spec"]
            self._objects[path] = document
            self._note(version, "MODIFIED" if known else "ADDED", path, document)
            return document

    def put_status(self, path: str, status: Json) -> Json:
        """Of what there is."""
        return self.put(path, self._objects[path] | {"status": status})

    def get(self, path: str) -> Json | None:
        with self._changed:
            return self._objects.get(path)

    def delete(self, path: str) -> None:
        with self._changed:
            document = self._objects.pop(path)
            self._note(next(self._versions), "DELETED", path, document)

    def _note(self, version: int, type_: str, path: str, document: Json) -> None:
        self._changes.append((version, type_, path, document))
        self._changed.notify_all()

    def list(self, pattern: re.Pattern[str], selector: str) -> tuple[int, list[Json]]:
        """The version of now, and the objects there are."""
        with self._changed:
            version = self._changes[-1][0] if self._changes else 0
            found = [each for path, each in self._objects.items() if pattern.fullmatch(path)]
        return version, [each for each in found if _selected(each, selector)]

    def watch(self, pattern: re.Pattern[str], selector: str, version: int) -> Iterator[tuple[str, Json]]:
        """What happens after ``version``, for ever."""
        position = 0
        while True:
            with self._changed:
                while not self._ended and len(self._changes) == position:
                    self._changed.wait()
                if self._ended:
                    return
                news, position = self._changes[position:], len(self._changes)
            for number, type_, path, document in news:
                if number > version and pattern.fullmatch(path) and _selected(document, selector):
                    yield type_, document

    def objects(self) -> dict[tuple[str, str], Json]:
        """By kind and name."""
        with self._changed:
            return {(each["kind"], each["metadata"]["name"]): each for each in self._objects.values()}

    @contextlib.contextmanager
    def serving(self, address: str, certificate: Path) -> Iterator[int]:
        """The port, by HTTPS. ``certificate``: a folder with tls.crt and tls.key."""
        handler = type("Handler", (_Handler,), {"api": self})
        server = http.server.ThreadingHTTPServer((address, 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
        # Hands are shaken by the thread of the connection, at its first read.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            server.shutdown()
            server.server_close()
            thread.join()


def _selected(document: Json, selector: str) -> bool:
    labels = document["metadata"].get("labels") or {}
    return all(
        labels.get(key) == value for key, _, value in (each.partition("=") for each in selector.split(",") if each)
    )


class _Handler(http.server.BaseHTTPRequestHandler):
    api: ClassVar[ApiDouble]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client went away
            super().handle()

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if (discovery := self._discovery(url.path)) is not None:
            return self._answer(discovery)
        match = _PATH.fullmatch(url.path)
        if match is None:
            return self._answer(_status(404), 404)
        if match["name"]:
            found = self.api.get(url.path)
            return self._answer(found or _status(404), 200 if found else 404)
        where = match["namespace"] or "[^/]+"
        pattern = re.compile(rf"{re.escape(match['api'])}(?:/namespaces/{where})?/{match['plural']}/[^/]+")
        selector = query.get("labelSelector", "")
        if query.get("watch") == "true":
            return self._watch(pattern, selector, int(query.get("resourceVersion") or 0))
        version, items = self.api.list(pattern, selector)
        return self._answer({"kind": "List", "metadata": {"resourceVersion": str(version)}, "items": items})

    def do_POST(self) -> None:
        document = self._body()
        if self.path == _REVIEW:
            return self._answer(document | {"status": {"allowed": True}}, 201)
        name = document["metadata"].get("name") or f"{document['metadata'].get('generateName', 'x')}1"
        document["metadata"]["name"] = name
        return self._answer(self.api.put(f"{self.path}/{name}", document), 201)

    def do_PUT(self) -> None:
        self._answer(self.api.put(urllib.parse.urlsplit(self.path).path, self._body()))

    def do_PATCH(self) -> None:
        path, document = urllib.parse.urlsplit(self.path).path, self._body()
        if path.endswith("/status"):
            return self._answer(self.api.put_status(path.removesuffix("/status"), document["status"]))
        return self._answer(self.api.put(path, document))

    def do_DELETE(self) -> None:
        self._body()
        self.api.delete(urllib.parse.urlsplit(self.path).path)
        self._answer(_status(200))

    def _discovery(self, path: str) -> Json | None:
        kinds = self.api.kinds
        if path == "/version":
            return {"major": "1", "minor": "36", "gitVersion": "v1.36.2"}
        groups = {kind.api_version.rpartition("/")[0] for kind in kinds}
        if path in {"/api", "/apis"} and "APIGroupDiscoveryList" in self.headers.get("Accept", ""):
            return {
                "items": [_discovered(group, kinds) for group in sorted(groups) if bool(group) == (path == "/apis")]
            }
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            return {
                "kind": "APIGroupList",
                "groups": [_group(each) for each in sorted(kinds) if "/" in each.api_version],
            }
        version = path.removeprefix("/apis/").removeprefix("/api/")
        resources = [
            {"name": each.plural, "kind": each.kind, "singularName": "", "namespaced": each.namespaced, "verbs": _VERBS}
            for each in kinds
            if each.api_version == version
        ]
        return {"kind": "APIResourceList", "groupVersion": version, "resources": resources} if resources else None

    def _watch(self, pattern: re.Pattern[str], selector: str, version: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for type_, document in self.api.watch(pattern, selector, version):
            line = json.dumps({"type": type_, "object": document}).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.close_connection = True

    def _body(self) -> Json:
        found: Json = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        return found

    def _answer(self, document: Json, status: int = 200) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _status(code: int) -> Json:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "code": code,
        "reason": "NotFound" if code == 404 else "",
        "message": "",
    }


def _group(kind: Kind) -> Json:
    group, _, version = kind.api_version.rpartition("/")
    served = {"groupVersion": kind.api_version, "version": version}
    return {"name": group, "versions": [served], "preferredVersion": served}


def _discovered(group: str, kinds: tuple[Kind, ...]) -> Json:
    found = [each for each in kinds if each.api_version.rpartition("/")[0] == group]
    version = found[0].api_version.rpartition("/")[2]
    resources = [
        {
            "resource": each.plural,
            "responseKind": {"group": group, "version": version, "kind": each.kind},
            "scope": "Namespaced" if each.namespaced else "Cluster",
            "verbs": _VERBS,
        }
        for each in found
    ]
    return {"metadata": {"name": group}, "versions": [{"version": version, "resources": resources}]}
