"""The request an event came from is the one the API server's audit policy saw, however the URL was written.

Three witnesses that know nothing of the parser under test: RequestReceived events of recorded traffic (written before
any body could fill objectRef), the verdicts of the API server's own parser (``requestinfo.jsonl.gz``: the
RequestInfoFactory of k8s.io/apiserver 1.36.2, compiled and asked about 3,000 odd URLs), and cases written by hand.
"""

import gzip
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_operator.policy import events
from audit_operator.policy.memo import LIMIT, LONGEST
from audit_operator.policy.model import Request
from audit_operator.policy.request import _remembered, request_of

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def recorded() -> list[dict[str, Any]]:
    with gzip.open(DATA / "audit-eventlists.jsonl.gz") as lines:
        return [event for line in lines for event in json.loads(line)["items"]]


def seen(verb: str, uri: str, **event: Any) -> Request:
    return request_of({"verb": verb, "requestURI": uri, **event})


def test_later_stages_name_the_object_that_was_named_at_request_received(recorded: list[dict[str, Any]]) -> None:
    received = {event["auditID"]: event for event in recorded if event["stage"] == "RequestReceived"}
    checked = filled_later = 0
    for event in recorded:
        if event["auditID"] not in received:
            continue  # a failed authentication has one event only
        reference = received[event["auditID"]].get("objectRef", {})
        request = request_of(events.decode(json.dumps(event).encode()))
        assert request == request_of(event)
        assert request.is_resource == bool(reference)
        assert [request.api_group, request.resource, request.subresource, request.namespace, request.name] == [
            reference.get(key, "") for key in ("apiGroup", "resource", "subresource", "namespace", "name")
        ]
        assert request.verb == event["verb"]
        assert (request.user, list(request.groups)) == (event["user"]["username"], event["user"].get("groups", []))
        checked += 1
        filled_later += event.get("objectRef", {}).get("name", "") != request.name
    assert checked == 2743
    assert filled_later > 200  # or the trap was not there


def test_the_event_of_a_failed_authentication_has_no_user(recorded: list[dict[str, Any]]) -> None:
    (event,) = [event for event in recorded if event.get("responseStatus", {}).get("code") == 401]
    assert request_of(event) == Request(user=None, verb="list", resource="namespaces")


def test_urls_mean_what_they_mean_to_the_api_server() -> None:
    with gzip.open(DATA / "requestinfo.jsonl.gz") as lines:
        verdicts = [json.loads(line) for line in lines]
    for verdict in verdicts:
        request = seen(verdict["verb"], verdict["requestURI"])
        expected = Request(
            user=None,
            verb=verdict["verb"],
            is_resource=verdict["isResource"],
            namespace=verdict.get("namespace", ""),
            api_group=verdict.get("apiGroup", ""),
            resource=verdict.get("resource", ""),
            subresource=verdict.get("subresource", ""),
            name=verdict.get("name", ""),
            path=verdict.get("path", ""),
        )
        assert request == expected, verdict
    assert len(verdicts) == 3000
    assert sum(verdict["verb"] in ("list", "watch") and "name" in verdict for verdict in verdicts) > 100


# verb, requestURI, then group, resource, subresource, namespace, name
RESOURCES = [
    ("get", "/api/v1/namespaces/team-a/pods/web", "", "pods", "", "team-a", "web"),
    ("get", "/apis/apps/v1/namespaces/team-a/deployments/web/scale", "apps", "deployments", "scale", "team-a", "web"),
    ("list", "/api/v1/pods", "", "pods", "", "", ""),
    ("list", "/api/v1/namespaces/team-a/pods?limit=500", "", "pods", "", "team-a", ""),
    # A create has no name in the URL, unless it is a create of a subresource.
    ("create", "/api/v1/namespaces/team-a/pods", "", "pods", "", "team-a", ""),
    ("create", "/api/v1/namespaces/team-a/pods/web/exec?command=sh", "", "pods", "exec", "team-a", "web"),
    ("create", "/api/v1/namespaces/team-a/pods/web/binding", "", "pods", "binding", "team-a", "web"),
    ("create", "/api/v1/namespaces/team-a/serviceaccounts/ci/token", "", "serviceaccounts", "token", "team-a", "ci"),
    # Deleting a collection has no name either; a field selector only picks what is deleted.
    ("deletecollection", "/api/v1/namespaces/team-a/pods", "", "pods", "", "team-a", ""),
    ("deletecollection", "/api/v1/pods?fieldSelector=metadata.name%3Dweb", "", "pods", "", "", ""),
    # A Namespace is an object in itself: it has a name and is in the namespace of that name.
    ("list", "/api/v1/namespaces", "", "namespaces", "", "", ""),
    ("create", "/api/v1/namespaces", "", "namespaces", "", "", ""),
    ("get", "/api/v1/namespaces/team-a", "", "namespaces", "", "team-a", "team-a"),
    ("update", "/api/v1/namespaces/team-a/finalize", "", "namespaces", "finalize", "team-a", "team-a"),
    ("patch", "/api/v1/namespaces/team-a/status", "", "namespaces", "status", "team-a", "team-a"),
    ("get", "/api/v1/namespaces/team-a/finalizers/x", "", "finalizers", "", "team-a", "x"),
    # A list or watch of one object by its name.
    ("list", "/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%3Ddb", "", "secrets", "", "a", "db"),
    ("watch", "/api/v1/secrets?watch=1&fieldSelector=metadata.name=db", "", "secrets", "", "", "db"),
    ("list", "/api/v1/secrets?fieldSelector=metadata.name==db", "", "secrets", "", "", "db"),
    ("list", "/api/v1/secrets?fieldSelector=type%3Dx%2Cmetadata.name%3Ddb", "", "secrets", "", "", "db"),
    ("list", "/api/v1/secrets?fieldSelector=metadata.name%3Db,metadata.name%3Da", "", "secrets", "", "", "a"),
    ("list", "/api/v1/secrets?%66ieldSelector=metadata.name%3Ddb", "", "secrets", "", "", "db"),
    ("list", "/api/v1/secrets?fieldSelector=metadata.name%3Da%5C%2Cb", "", "secrets", "", "", "a,b"),
    ("list", "/api/v1/secrets?fieldSelector=metadata.name!%3Ddb", "", "secrets", "", "", ""),
    ("list", "/api/v1/secrets?fieldSelector=metadata.name", "", "secrets", "", "", ""),
    ("list", "/api/v1/secrets?fieldSelector=metadata.name%3Da%2Fb", "", "secrets", "", "", ""),
    ("list", "/api/v1/secrets?fieldSelector=metadata.name%3D..", "", "secrets", "", "", ""),
    ("list", "/api/v1/secrets?fieldselector=metadata.name%3Ddb", "", "secrets", "", "", ""),
    ("list", "/api/v1/secrets?fieldSelector=a%3Db&fieldSelector=metadata.name%3Ddb", "", "secrets", "", "", ""),
    ("list", "/api/v1/secrets?x=;fieldSelector=metadata.name%3Ddb", "", "secrets", "", "", ""),
    ("list", "/api/v1/secrets?fieldSelector=metadata.name%3Ddb%2", "", "secrets", "", "", ""),
    # One list option that does not parse takes the others with it.
    ("list", "/api/v1/secrets?fieldSelector=metadata.name%3Ddb&limit=many", "", "secrets", "", "", ""),
    ("list", "/api/v1/secrets?fieldSelector=metadata.name%3Ddb&limit=", "", "secrets", "", "", ""),
    ("watch", "/api/v1/secrets?watch&fieldSelector=metadata.name%3Ddb&timeoutSeconds=1e3", "", "secrets", "", "", ""),
    ("list", "/api/v1/secrets?fieldSelector=metadata.name%3Ddb&labelSelector=a%3D%3D%3Db", "", "secrets", "", "", ""),
    ("list", "/api/v1/secrets?fieldSelector=metadata.name%3Ddb&limit=9223372036854775808", "", "secrets", "", "", ""),
    ("list", "/api/v1/secrets?fieldSelector=metadata.name%3Ddb&limit=%2", "", "secrets", "", "", "db"),
    ("list", f"/api/v1/secrets?fieldSelector=metadata.name%3Ddb&labelSelector={'a' * 64}", "", "secrets", "", "", ""),
    ("list", f"/api/v1/secrets?fieldSelector=metadata.name%3Ddb&labelSelector={'a' * 63}", "", "secrets", "", "", "db"),
    ("list", "/api/v1/secrets?fieldSelector=metadata.name%3Ddb&labelSelector=a+in+(b,)", "", "secrets", "", "", "db"),
    ("list", f"/api/v1/secrets?fieldSelector=metadata.name%3Ddb&limit={'0' * 5000}7", "", "secrets", "", "", "db"),
    # The verb in the path, the way it was before watch=true. No field selector is looked at.
    ("watch", "/api/v1/watch/namespaces/team-a/pods/web", "", "pods", "", "team-a", "web"),
    ("watch", "/api/v1/watch/secrets?fieldSelector=metadata.name%3Ddb", "", "secrets", "", "", ""),
    ("watch", "/apis/apps/v1/watch/deployments", "apps", "deployments", "", "", ""),
    ("proxy", "/api/v1/proxy/namespaces/team-a/pods/web/metrics/x", "", "pods", "", "team-a", "web"),
    ("proxy", "/api/v1/proxy/nodes/node-1", "", "nodes", "", "", "node-1"),
    # The proxy of today is a subresource; what follows it is the business of whoever is behind it.
    ("get", "/api/v1/namespaces/a/services/https:web:443/proxy/x/y", "", "services", "proxy", "a", "https:web:443"),
    ("get", "/api/v1/nodes/node-1/proxy/pods", "", "nodes", "proxy", "", "node-1"),
    # Go splits the path after decoding it, so an escaped slash separates like any other.
    ("get", "/api/v1/namespaces/team-a/pods/we%62", "", "pods", "", "team-a", "web"),
    ("get", "/api/v1/namespaces/team-a/pods%2Fweb", "", "pods", "", "team-a", "web"),
    ("get", "/api/v1/namespaces/team-a/pods/a+b%20c", "", "pods", "", "team-a", "a+b c"),
    ("get", "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode", "rbac.authorization.k8s.io",
     "clusterroles", "", "", "system:node"),
    ("get", "/api/v1/nodes/%E2%82%AC", "", "nodes", "", "", "€"),
    # Slashes at the ends do not count, those between do.
    ("list", "//api/v1/pods//", "", "pods", "", "", ""),
    ("get", "/api/v1/pods//log", "", "pods", "log", "", ""),
    ("list", "/api/v1/namespaces//pods", "", "pods", "", "", ""),
    ("get", "/api//nodes/a", "", "nodes", "", "", "a"),
    ("get", "/apis//v1/nodes/a", "", "nodes", "", "", "a"),
    # A method the API knows no verb for.
    ("", "/api/v1/pods", "", "pods", "", "", ""),
    ("", "/api/v1/secrets?fieldSelector=metadata.name%3Ddb", "", "secrets", "", "", ""),
]  # fmt: skip


@pytest.mark.parametrize("case", RESOURCES, ids=lambda case: f"{case[0]} {case[1][:90]}")
def test_a_resource_request_is_told_from_its_url(case: tuple[str, ...]) -> None:
    verb, uri, group, resource, subresource, namespace, name = case
    assert seen(verb, uri) == Request(
        user=None,
        verb=verb,
        api_group=group,
        resource=resource,
        subresource=subresource,
        namespace=namespace,
        name=name,
    )


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/", "/"),
        ("/healthz?verbose", "/healthz"),
        ("/api", "/api"),
        ("/api/v1", "/api/v1"),
        ("/api/v1/", "/api/v1/"),
        ("/apis/apps/v1", "/apis/apps/v1"),
        ("/openapi/v3/apis/apps/v1", "/openapi/v3/apis/apps/v1"),
        ("/oapi/v1/projects", "/oapi/v1/projects"),
        ("/API/v1/pods", "/API/v1/pods"),
        ("/logs/%2e%2e/kube-apiserver.log", "/logs/../kube-apiserver.log"),
        ("/healthz%3Fx", "/healthz?x"),
        ("/a%zz", "/a%zz"),
        ("*", "*"),
        ("", ""),
        ("opaque/api/v1/pods", ""),
        ("http://host/version", "/version"),
    ],
)
def test_everything_else_is_a_path(uri: str, path: str) -> None:
    assert seen("get", uri) == Request(user=None, verb="get", is_resource=False, path=path)


def test_a_create_is_not_named_after_its_body() -> None:
    body_filled = {"resource": "secrets", "namespace": "team-a", "name": "db", "apiVersion": "v1"}
    assert seen("create", "/api/v1/namespaces/team-a/secrets", objectRef=body_filled).name == ""
    assert seen("create", "", objectRef=body_filled).name == ""
    assert seen("deletecollection", "", objectRef=body_filled).name == ""


def test_without_a_usable_uri_the_object_reference_counts() -> None:
    reference = {"resource": "pods", "subresource": "exec", "apiGroup": "", "namespace": "team-a", "name": "web"}
    for uri in ("", "pods", "/k8s/clusters/c-1/api/v1/namespaces/team-a/pods/web/exec", "/api/v1/watch"):
        assert seen("create", uri, objectRef=reference) == Request(
            user=None, verb="create", resource="pods", subresource="exec", namespace="team-a", name="web"
        )


@pytest.mark.parametrize(
    ("user", "name"),
    [
        ({}, None),
        ({"username": ""}, None),
        ({"username": "system:anonymous"}, "system:anonymous"),
        ({"groups": ["system:authenticated"]}, ""),
        ({"uid": "7"}, ""),
        ({"extra": {"scopes": ["a"]}}, ""),
        ("alice", None),
        ({"username": 7, "groups": ["a"]}, ""),
    ],
)
def test_only_an_empty_user_is_nobody(user: object, name: str | None) -> None:
    assert seen("get", "/version", user=user).user == name
    assert request_of(events.decode(json.dumps({"user": user}).encode())).user == name


def test_an_impersonated_user_is_not_the_one_the_policy_saw() -> None:
    event = {
        "user": {"username": "alice", "groups": ["dev"]},
        "impersonatedUser": {"username": "root", "groups": ["x"]},
    }
    assert (request_of(event).user, request_of(event).groups) == ("alice", ("dev",))


SEGMENT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12)
PLAIN = SEGMENT.filter(lambda text: text not in ("namespaces", "watch", "proxy", "status", "finalize"))


@settings(max_examples=300, deadline=None)
@given(
    st.builds(
        Request,
        user=st.none(),
        verb=st.sampled_from(["get", "update", "patch", "delete", "create"]),
        api_group=st.just("") | PLAIN,
        namespace=st.just("") | PLAIN,
        resource=PLAIN,
        name=SEGMENT,
        subresource=st.just("") | SEGMENT,
    ),
    st.sampled_from(["", "?", "?timeout=5s", "?fieldSelector=metadata.name%3Dother"]),
)
def test_any_object_is_found_again_in_its_url(request_sent: Request, query: str) -> None:
    segments = ["apis", request_sent.api_group, "v1"] if request_sent.api_group else ["api", "v1"]
    if request_sent.namespace:
        segments += ["namespaces", request_sent.namespace]
    segments += [request_sent.resource, request_sent.name]
    if request_sent.subresource:
        segments += [request_sent.subresource]
    uri = "".join("/" + quote(segment, safe="") for segment in segments) + query
    assert seen(request_sent.verb, uri) == request_sent


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=[]), max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)
PIECES = st.sampled_from(
    [
        *("/", "api", "apis", "v1", "watch", "namespaces", "http://", "?", "&", "=", "%", "%2", "%00", "\ud800", "²"),
        *("fieldSelector", "metadata.name", "labelSelector", "limit", "\\", ",", "(", "in", "0" * 30),
    ]
)
URI = st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=30)


@settings(max_examples=400, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "verb": st.sampled_from(["list", "watch", "get"]) | ANYTHING,
            "requestURI": URI | ANYTHING,
            "user": st.dictionaries(st.sampled_from(["username", "groups", "uid", "extra"]), ANYTHING) | ANYTHING,
            "objectRef": st.dictionaries(st.sampled_from(["resource", "name", "apiGroup"]), ANYTHING) | ANYTHING,
        },
    )
)
def test_no_event_is_too_odd_to_be_read(event: dict[str, Any]) -> None:
    request = request_of(event)
    assert isinstance(request.verb, str)
    assert request.user is None or isinstance(request.user, str)
    assert not request.path or not request.is_resource


def test_deeply_nested_fields_are_no_obstacle() -> None:
    nested: Any = []
    for _ in range(10_000):
        nested = [nested]
    assert seen("get", "/version", user=nested, objectRef=nested).path == "/version"


def test_long_urls_are_parsed_like_short_ones() -> None:
    name = "n" * 5000
    assert seen("get", f"/api/v1/nodes/{name}").name == name


SIMILAR = st.fixed_dictionaries(
    {
        "verb": st.sampled_from(["list", "watch", "get", "create"]),
        "requestURI": st.builds(
            str.__add__,
            st.sampled_from(["/api/v1/pods", "/api/v1/watch/pods", "/api/v1/namespaces/a/pods/a", "/version", ""]),
            st.sampled_from(["", "?watch=1", "?fieldSelector=metadata.name%3Da", "?fieldSelector=metadata.name%3Db"]),
        ),
        "user": st.fixed_dictionaries(
            {}, optional={"username": st.sampled_from(["", "a"]), "uid": st.just("7"), "groups": st.just(["a"])}
        ),
    },
    optional={"objectRef": st.fixed_dictionaries({"resource": st.sampled_from(["pods", "nodes"])})},
)


@settings(max_examples=60, deadline=None)
@given(st.lists(SIMILAR, min_size=2, max_size=30))
def test_no_request_is_taken_for_a_similar_one_that_came_before(similar: list[dict[str, Any]]) -> None:
    alone = []
    for event in similar:
        _remembered.clear()
        alone.append(request_of(event))
    assert [request_of(event) for event in similar] == alone
    assert [request_of(event) for event in similar] == alone


def test_a_request_that_comes_again_is_the_same_object() -> None:
    event = json.dumps({"verb": "list", "requestURI": "/api/v1/pods?limit=1", "user": {"username": "a"}}).encode()
    again = event.replace(b"limit=1", b"limit=2&continue=x")
    assert request_of(events.decode(event)) is request_of(events.decode(again))


def test_requests_that_clients_invent_do_not_stay_without_end() -> None:
    for number in range(2 * LIMIT):
        seen("get", f"/api/v1/nodes/{number}")
        seen("list", f"/api/v1/nodes?fieldSelector=metadata.name%3D{number}")
    assert len(_remembered) <= LIMIT
    _remembered.clear()
    endless = "n" * (LONGEST + 1)
    for event in [
        {"verb": "get", "requestURI": f"/api/v1/nodes/{endless}"},
        {"verb": "get", "requestURI": f"/{'%2e' * LONGEST}"},
        {"verb": "list", "requestURI": f"/api/v1/nodes?fieldSelector=metadata.name%3D{endless}"},
        {"verb": endless, "requestURI": "/version"},
        {"verb": "get", "requestURI": "/version", "user": {"username": endless}},
        {"verb": "get", "requestURI": "/version", "user": {"groups": [""] * (LONGEST + 1)}},
    ]:
        assert request_of(event) == request_of(event)
    assert not _remembered
