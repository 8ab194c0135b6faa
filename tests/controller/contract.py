"""What the operator relies on in an API server. The same list holds the fake (here) and a real one (in e2e)."""

import json
import secrets
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, Final

from fake_api import APPLY, MERGE

Json = dict[str, Any]

PARTIAL: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


class Client:
    """Requests of an administrator; ``namespace`` is there, and empty."""

    def __init__(
        self, url: str, forget: Callable[[], None], *, token: str = "", context: ssl.SSLContext | None = None
    ) -> None:
        """``forget`` makes the API server forget what happened until now."""
        self._url = url
        self.forget = forget
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._context = context
        self.namespace = f"contract-{secrets.token_hex(4)}"
        self.must("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})

    def request(
        self, method: str, path: str, body: Any = None, *, content: str = "application/json", accept: str = ""
    ) -> tuple[int, Json]:
        """Status and body."""
        headers = {"Content-Type": content, "Accept": accept or "application/json", **self._headers}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self._context) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def must(self, method: str, path: str, body: Any = None, **rest: str) -> Json:
        """The body of an answer that is no refusal."""
        status, answer = self.request(method, path, body, **rest)
        assert status < 300, (status, answer)
        return answer

    def apply(self, path: str, body: Json, manager: str = "us", *, force: bool = False) -> tuple[int, Json]:
        """Server-side apply."""
        query = f"fieldManager={manager}" + ("&force=true" if force else "")
        return self.request("PATCH", f"{path}{'&' if '?' in path else '?'}{query}", body, content=APPLY)

    def edit(self, path: str, change: Json, manager: str = "kubectl-edit") -> Json:
        """What a person's edit amounts to."""
        return self.must("PATCH", f"{path}?fieldManager={manager}", change, content=MERGE)

    def watch(self, path: str) -> Iterator[Json]:
        """Events of a watch but for bookmarks."""
        request = urllib.request.Request(f"{self._url}{path}", headers=self._headers)
        with urllib.request.urlopen(request, timeout=30, context=self._context) as answer:
            for line in answer:
                event = json.loads(line)
                if event["type"] != "BOOKMARK":
                    yield event

    def folder(self, plural: str, group: str = "") -> str:
        """Where objects of the namespace are."""
        return f"/{f'apis/{group}' if group else 'api/v1'}/namespaces/{self.namespace}/{plural}"


def config_map(name: str = "one", labels: Json | None = None, **data: str) -> Json:
    metadata = {"name": name} | ({"labels": labels} if labels else {})
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def stateful_set(size: str = "1Gi", replicas: int = 1, image: str = "registry.example/x:1") -> Json:
    labels = {"app": "x"}
    claim = {
        "metadata": {"name": "state"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
    }
    spec = {
        "replicas": replicas,
        "serviceName": "x",
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "x", "image": image}]}},
        "volumeClaimTemplates": [claim],
    }
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "x"}, "spec": spec}


def audit_policy(namespace: str, user: str = "alice") -> Json:
    spec = {"rules": [{"level": "Metadata", "users": [user]}]}
    metadata = {"name": "base", "namespace": namespace}
    return {"apiVersion": "audit-operator.dev/v1alpha1", "kind": "AuditPolicy", "metadata": metadata, "spec": spec}


def managers(item: Json) -> set[tuple[str, str]]:
    return {(each["manager"], each["operation"]) for each in item["metadata"]["managedFields"]}


# --- what holds ------------------------------------------------------------------------------------------------------


def objects_are_created_once_and_gone_when_deleted(api: Client) -> None:
    folder = api.folder("configmaps")
    made = api.must("POST", folder, config_map(x="1"))
    status, answer = api.request("POST", folder, config_map(x="2"))
    assert (status, answer["reason"]) == (409, "AlreadyExists")
    assert api.must("GET", f"{folder}/one")["metadata"]["uid"] == made["metadata"]["uid"]
    api.must("DELETE", f"{folder}/one")
    for method in ("GET", "DELETE"):
        status, answer = api.request(method, f"{folder}/one")
        assert (status, answer["reason"]) == (404, "NotFound")


def nothing_is_made_in_a_namespace_that_is_not_there(api: Client) -> None:
    status, answer = api.request("POST", "/api/v1/namespaces/nowhere/configmaps", config_map())
    assert (status, answer["reason"]) == (404, "NotFound")
    status, _ = api.apply("/api/v1/namespaces/nowhere/configmaps/one", config_map())
    assert status == 404


def an_apply_that_changes_nothing_is_no_write(api: Client) -> None:
    path = f"{api.folder('configmaps')}/one"
    _, first = api.apply(path, config_map(x="1"))
    _, second = api.apply(path, config_map(x="1"))
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    _, third = api.apply(path, config_map(x="2"))
    assert int(third["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
    assert managers(third) == {("us", "Apply")}


def an_edit_takes_a_field_over_and_an_apply_of_it_is_a_conflict(api: Client) -> None:
    path = f"{api.folder('configmaps')}/one"
    api.apply(path, config_map(x="1", y="1"))
    api.edit(path, {"data": {"x": "theirs", "z": "theirs"}})
    status, answer = api.apply(path, config_map(x="1", y="1"))
    assert (status, answer["reason"]) == (409, "Conflict")
    (cause,) = answer["details"]["causes"]
    assert (cause["reason"], cause["field"]) == ("FieldManagerConflict", ".data.x")
    assert cause["message"].startswith('conflict with "kubectl-edit"')
    status, after = api.apply(path, config_map(x="1", y="1"), force=True)
    assert status == 200
    assert after["data"] == {"x": "1", "y": "1", "z": "theirs"}
    assert managers(after) == {("us", "Apply"), ("kubectl-edit", "Update")}


def the_same_value_is_no_conflict_and_stays_as_long_as_anybody_applies_it(api: Client) -> None:
    path = f"{api.folder('configmaps')}/one"
    api.apply(path, config_map(x="1", y="1"))
    status, _ = api.apply(path, config_map(x="1"), "them")
    assert status == 200
    _, after = api.apply(path, config_map(y="1"))
    assert after["data"] == {"x": "1", "y": "1"}
    _, after = api.apply(path, config_map(y="1", z="1"), "them")
    assert after["data"] == {"y": "1", "z": "1"}


def what_another_applier_owns_is_a_conflict_by_its_name(api: Client) -> None:
    path = f"{api.folder('statefulsets', 'apps/v1')}/x"
    assert api.apply(path, stateful_set())[0] in (200, 201)
    scale = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "x"}, "spec": {"replicas": 5}}
    assert api.apply(path, scale, "argocd", force=True)[0] == 200
    status, answer = api.apply(path, stateful_set())
    assert status == 409
    assert [cause["field"] for cause in answer["details"]["causes"]] == [".spec.replicas"]
    assert 'conflict with "argocd"' in answer["details"]["causes"][0]["message"]
    assert ("argocd", "Apply") in managers(api.must("GET", path))


def entries_of_a_list_that_is_a_map_belong_to_whoever_applies_them(api: Client) -> None:
    path = f"{api.folder('statefulsets', 'apps/v1')}/x"
    api.apply(path, stateful_set())
    more = {"containers": [{"name": "y", "image": "registry.example/y:1"}]}
    body = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "x"}}
    assert api.apply(path, body | {"spec": {"template": {"spec": more}}}, "injector")[0] == 200
    status, after = api.apply(path, stateful_set(image="registry.example/x:2"))
    assert status == 200
    images = {each["name"]: each["image"] for each in after["spec"]["template"]["spec"]["containers"]}
    assert images == {"x": "registry.example/x:2", "y": "registry.example/y:1"}


def a_stale_version_is_a_conflict_and_what_has_another_uid_is_not_written(api: Client) -> None:
    path = f"{api.folder('configmaps')}/one"
    _, old = api.apply(path, config_map(x="1"))
    api.apply(path, config_map(x="2"))
    status, answer = api.request("PUT", path, old | {"data": {"x": "3"}})
    assert (status, answer["reason"]) == (409, "Conflict")
    for preconditions in ({"resourceVersion": old["metadata"]["resourceVersion"]}, {"uid": "another"}):
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": preconditions}
        status, answer = api.request("DELETE", path, options)
        assert (status, answer["reason"]) == (409, "Conflict")
    body = config_map(x="4")
    body["metadata"]["uid"] = "another"
    assert api.apply(path, body)[0] == 422
    assert api.apply(path.replace("one", "two"), body | {"metadata": {"name": "two", "uid": "another"}})[0] == 409


def a_dry_run_says_what_would_be_and_writes_nothing(api: Client) -> None:
    path = f"{api.folder('configmaps')}/one"
    status, answer = api.apply(f"{path}?dryRun=All", config_map(x="1"))
    assert status in (200, 201)
    assert answer["data"] == {"x": "1"}
    assert api.request("GET", path)[0] == 404
    _, made = api.apply(path, config_map(x="1"))
    _, answer = api.apply(f"{path}?dryRun=All", config_map(x="2"))
    assert answer["data"] == {"x": "2"}
    assert api.must("GET", path)["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


def a_status_is_written_apart_and_is_no_new_generation(api: Client) -> None:
    path = f"{api.folder('auditpolicies', 'audit-operator.dev/v1alpha1')}/base"
    _, made = api.apply(path, audit_policy(api.namespace) | {"status": {"rules": 9}}, "author")
    assert made["metadata"]["generation"] == 1
    assert "status" not in made

    def status(**fields: Any) -> tuple[int, Json]:
        document = audit_policy(api.namespace) | {"status": fields}
        del document["spec"]
        return api.apply(f"{path}/status", document, force=True)

    def condition(kind: str) -> Json:
        times = {"lastTransitionTime": "2026-03-01T12:00:00Z", "observedGeneration": 1}
        return {"type": kind, "status": "True", "reason": "Ok", "message": ""} | times

    code, after = status(rules=1, warnings=0, conditions=[condition("Compiled"), condition("Ready")])
    assert (code, after["metadata"]["generation"], after["status"]["rules"]) == (200, 1, 1)
    assert after["spec"] == made["spec"]
    _, after = status(rules=1, conditions=[condition("Ready")])
    assert [each["type"] for each in after["status"]["conditions"]] == ["Ready"]
    assert "warnings" not in after["status"]
    _, again = status(rules=1, conditions=[condition("Ready")])
    assert again["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]
    stale = audit_policy(api.namespace) | {"status": {"rules": 7}}
    del stale["spec"]
    stale["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"]
    code, answer = api.apply(f"{path}/status", stale, force=True)
    assert (code, answer["reason"]) == (409, "Conflict")
    # A uid is no precondition here: it is simply ignored.
    stale["metadata"] = audit_policy(api.namespace)["metadata"] | {"uid": "another"}
    assert api.apply(f"{path}/status", stale, force=True)[0] == 200
    _, after = status(rules=1, conditions=[condition("Ready")])
    _, changed = api.apply(path, audit_policy(api.namespace, "bob"), "author")
    assert changed["metadata"]["generation"] == 2
    assert changed["status"] == after["status"]


def a_status_of_what_is_not_there_is_not_made(api: Client) -> None:
    path = f"{api.folder('auditpolicies', 'audit-operator.dev/v1alpha1')}/base"
    document = audit_policy(api.namespace) | {"status": {"rules": 1}}
    del document["spec"]
    assert api.apply(f"{path}/status", document)[0] == 404


def an_immutable_config_map_stays(api: Client) -> None:
    path = f"{api.folder('configmaps')}/one"
    api.apply(path, config_map(x="1") | {"immutable": True})
    status, answer = api.apply(path, config_map(x="2") | {"immutable": True})
    assert (status, answer["reason"]) == (422, "Invalid")
    (cause,) = answer["details"]["causes"]
    assert (cause["reason"], cause["field"]) == ("FieldValueForbidden", "data")


def most_of_a_stateful_set_is_immutable(api: Client) -> None:
    path = f"{api.folder('statefulsets', 'apps/v1')}/x"
    api.apply(path, stateful_set())
    assert api.apply(path, stateful_set(replicas=2))[0] == 200
    status, answer = api.apply(path, stateful_set("2Gi", replicas=2))
    assert (status, answer["reason"]) == (422, "Invalid")
    (cause,) = answer["details"]["causes"]
    assert (cause["reason"], cause["field"]) == ("FieldValueForbidden", "spec")
    assert "updates to statefulset spec for fields other than" in cause["message"]
    # What is wrong besides is said as well: so nobody replaces what could not be made again.
    status, answer = api.apply(path, stateful_set("2Gi", replicas=-1))
    assert status == 422
    assert {cause["field"] for cause in answer["details"]["causes"]} == {"spec", "spec.replicas"}


def the_address_of_a_service_is_immutable(api: Client) -> None:
    path = f"{api.folder('services')}/x"

    def service(**spec: Any) -> Json:
        ports = [{"port": 443, "protocol": "TCP"}]
        return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"ports": ports} | spec}

    _, made = api.apply(path, service())
    assert made["spec"]["clusterIP"].startswith("10.0.0.")
    status, answer = api.apply(path, service(clusterIP="10.0.0.251"))
    assert (status, answer["reason"]) in ((422, "Invalid"), (409, "Conflict"))
    status, answer = api.apply(path, service(clusterIP="10.0.0.251"), force=True)
    assert (status, answer["reason"]) == (422, "Invalid")
    causes = {(cause["reason"], cause["field"]) for cause in answer["details"]["causes"]}
    assert causes == {("FieldValueInvalid", "spec.clusterIPs[0]")}


def an_orphaning_deletion_waits_for_the_garbage_collector(api: Client) -> None:
    path = f"{api.folder('statefulsets', 'apps/v1')}/x"
    api.apply(path, stateful_set())
    options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Orphan"}
    api.must("DELETE", path, options)
    found = api.must("GET", path)
    assert found["metadata"]["finalizers"] == ["orphan"]
    assert found["metadata"]["deletionTimestamp"]
    api.edit(path, {"metadata": {"finalizers": None}})
    assert api.request("GET", path)[0] == 404


def a_claim_grows_where_its_class_lets_it_once_it_is_bound_and_never_shrinks(api: Client) -> None:
    for name, grows in (("fixed", False), ("growing", True)):
        chosen = f"{name}-{api.namespace}"
        about = {"metadata": {"name": chosen}, "provisioner": "example.com/x", "allowVolumeExpansion": grows}
        api.must("POST", "/apis/storage.k8s.io/v1/storageclasses", about)
        path = f"{api.folder('persistentvolumeclaims')}/{name}"

        def sized(size: str, name: str = name, path: str = path) -> tuple[int, Json]:
            spec = {"resources": {"requests": {"storage": size}}}
            body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}
            return api.apply(path, body, force=True)

        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}
        claim = {"metadata": {"name": name}, "spec": spec | {"storageClassName": chosen}}
        made = api.must("POST", api.folder("persistentvolumeclaims"), claim)
        assert made["status"]["phase"] == "Pending"
        status, answer = sized("20Gi")
        assert status == 422
        assert "for bound claims" in answer["message"]
        bound = {"phase": "Bound", "capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteOnce"]}
        api.must("PATCH", f"{path}/status", {"status": bound}, content=MERGE)
        status, answer = sized("20Gi")
        if not grows:
            assert (status, answer["reason"]) == (403, "Forbidden")
            assert "the storageclass that provisions the pvc must support resize" in answer["message"]
            continue
        assert status == 200
        assert answer["spec"]["resources"]["requests"]["storage"] == "20Gi"
        assert answer["status"]["capacity"]["storage"] == "10Gi"
        status, answer = sized("5Gi")
        assert (status, answer["details"]["causes"][0]["reason"]) == (422, "FieldValueForbidden")


def an_event_has_a_short_note(api: Client) -> None:
    def event(length: int) -> Json:
        return {
            "metadata": {"name": f"e{length}", "namespace": api.namespace},
            "eventTime": "2026-03-01T12:00:00.000000Z",
            "reportingController": "example.com/x",
            "reportingInstance": "x",
            "type": "Normal",
            "reason": "Because",
            "action": "Reconcile",
            "note": "x" * length,
            "regarding": {"kind": "Pod", "name": "x", "namespace": api.namespace},
        }

    folder = api.folder("events", "events.k8s.io/v1")
    assert api.request("POST", folder, event(1024))[0] == 201
    assert api.request("POST", folder, event(1025))[0] == 422


def a_list_comes_in_pages_and_as_metadata(api: Client) -> None:
    folder = api.folder("configmaps")
    for number in range(5):
        api.must("POST", folder, config_map(f"c{number}", {"app": "x"}, x="1"))
    names, query = [], "limit=2&labelSelector=app%3Dx"
    token = ""
    for _ in range(3):
        page = api.must("GET", f"{folder}?{query}{token}", accept=PARTIAL)
        assert page["kind"] == "PartialObjectMetadataList"
        assert all("data" not in item for item in page["items"])
        names += [item["metadata"]["name"] for item in page["items"]]
        token = f"&continue={page['metadata'].get('continue', '')}"
    assert names == [f"c{number}" for number in range(5)]
    assert token == "&continue="
    assert api.must("GET", f"{folder}?labelSelector=app%3Dy")["items"] == []


def a_watch_goes_on_from_a_list_and_follows_labels(api: Client) -> None:
    folder, mine = api.folder("configmaps"), {"app": "x"}
    api.must("POST", folder, config_map("before", mine, x="1"))
    version = api.must("GET", f"{folder}?labelSelector=app%3Dx")["metadata"]["resourceVersion"]
    api.must("POST", folder, config_map("other", {"app": "y"}, x="1"))
    query = f"?watch=true&resourceVersion={version}&labelSelector=app%3Dx&allowWatchBookmarks=true&timeoutSeconds=20"
    events = api.watch(f"{folder}{query}")
    api.must("POST", folder, config_map("new", mine, x="1"))

    def later() -> None:
        api.edit(f"{folder}/new", {"data": {"x": "2"}})
        api.edit(f"{folder}/new", {"metadata": {"labels": {"app": "y"}}})
        api.edit(f"{folder}/new", {"metadata": {"labels": {"app": "x"}}})
        api.must("DELETE", f"{folder}/before")

    thread = threading.Thread(target=later)
    thread.start()
    seen = [next(events) for _ in range(5)]
    thread.join()
    what = [(event["type"], event["object"]["metadata"]["name"]) for event in seen]
    assert what == [
        ("ADDED", "new"),
        ("MODIFIED", "new"),
        ("DELETED", "new"),
        ("ADDED", "new"),
        ("DELETED", "before"),
    ]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in seen]
    assert versions == sorted(versions)
    assert versions[0] > int(version)


def a_watch_from_a_version_that_is_forgotten_is_told_so(api: Client) -> None:
    folder = api.folder("configmaps")
    version = api.must("GET", folder)["metadata"]["resourceVersion"]
    api.must("POST", folder, config_map(x="1"))
    api.forget()
    event = next(api.watch(f"{folder}?watch=true&resourceVersion={version}"))
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)


CONTRACT: Final[tuple[Callable[[Client], None], ...]] = (
    objects_are_created_once_and_gone_when_deleted,
    nothing_is_made_in_a_namespace_that_is_not_there,
    an_apply_that_changes_nothing_is_no_write,
    an_edit_takes_a_field_over_and_an_apply_of_it_is_a_conflict,
    the_same_value_is_no_conflict_and_stays_as_long_as_anybody_applies_it,
    what_another_applier_owns_is_a_conflict_by_its_name,
    entries_of_a_list_that_is_a_map_belong_to_whoever_applies_them,
    a_stale_version_is_a_conflict_and_what_has_another_uid_is_not_written,
    a_dry_run_says_what_would_be_and_writes_nothing,
    a_status_is_written_apart_and_is_no_new_generation,
    a_status_of_what_is_not_there_is_not_made,
    an_immutable_config_map_stays,
    most_of_a_stateful_set_is_immutable,
    the_address_of_a_service_is_immutable,
    an_orphaning_deletion_waits_for_the_garbage_collector,
    a_claim_grows_where_its_class_lets_it_once_it_is_bound_and_never_shrinks,
    an_event_has_a_short_note,
    a_list_comes_in_pages_and_as_metadata,
    a_watch_goes_on_from_a_list_and_follows_labels,
    a_watch_from_a_version_that_is_forgotten_is_told_so,
)
