"""Requests as people write them."""

import gzip
import json
from pathlib import Path

import pytest
from commands import DATA, write
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from audit_operator.cli.errors import CliError
from audit_operator.cli.requests import (
    FIELDS,
    as_object,
    as_text,
    implied_groups,
    request_from_options,
    request_lines,
    request_of,
)
from audit_operator.policy.model import Request

ALICE = ("system:authenticated",)


def options(
    resource: str | None = None, *, user: str | None = "alice", path: str | None = None, **rest: str
) -> Request:
    values = {"verb": "get", "namespace": "", "name": "", **rest}
    return request_from_options(user=user, groups=(), resource=resource, path=path, **values)  # type: ignore[arg-type]


def refusal(**options_: object) -> str:
    with pytest.raises(CliError) as caught:
        options(**options_)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize(
    ("resource", "group", "plural", "subresource"),
    [
        ("pods", "", "pods", ""),
        ("pods/exec", "", "pods", "exec"),
        ("deployments", "apps", "deployments", ""),
        ("deploy/scale", "apps", "deployments", "scale"),
        ("Role", "rbac.authorization.k8s.io", "roles", ""),
        ("deployments.extensions", "extensions", "deployments", ""),
        ("widgets.example.com/status", "example.com", "widgets", "status"),
        ("pods.", "", "pods", ""),
        ("widgets", "", "widgets", ""),
        ("events", "", "events", ""),
    ],
)
def test_a_resource_is_written_as_for_kubectl(resource: str, group: str, plural: str, subresource: str) -> None:
    request = options(resource)
    assert (request.api_group, request.resource, request.subresource) == (group, plural, subresource)


def test_a_user_has_the_groups_that_api_servers_give() -> None:
    assert implied_groups("alice") == ALICE
    assert implied_groups("system:anonymous") == ("system:unauthenticated",)
    assert implied_groups("system:serviceaccount:ci:deployer") == (
        "system:serviceaccounts",
        "system:serviceaccounts:ci",
        *ALICE,
    )
    assert options("pods", user=None).groups == ()


def test_a_path_is_no_resource_and_verbs_of_paths_are_lower_case() -> None:
    request = options(path="/healthz", verb="GET")
    assert (request.is_resource, request.path, request.verb) == (False, "/healthz", "get")


def test_what_is_no_request_is_refused_with_the_way_out() -> None:
    assert refusal() == "a request is about a resource or a path; give --resource or --path, and not both"
    assert refusal(resource="pods", path="/x") == refusal()
    assert refusal(path="/x", namespace="prod") == "--path: '/x' a path is in no namespace and has no name"
    assert refusal(resource="/exec") == "--resource: '/exec' names no resource; write for example pods"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"resource": "pods"}, "verb is required; for example get"),
        ({"verb": "get"}, "has neither resource nor path; write one of them"),
        ({"verb": "get", "resource": "pods", "path": "/x"}, "has resource and path; a request has one of them"),
        (
            {"verb": "get", "resource": "pods/exec"},
            "resource: 'pods/exec' is two; write resource: pods, subresource: exec",
        ),
        ({"verb": "get", "namspace": "x"}, "'namspace' is no field of a request; did you mean namespace?"),
        ({"verb": "get", "qqqq": "x"}, f"'qqqq' is no field of a request; known are {', '.join(FIELDS)}"),
        ("get pods", "must be an object, got a string"),
    ],
)
def test_errors_say_what_is_wrong_and_the_way_out(value: object, message: str) -> None:
    with pytest.raises(CliError) as caught:
        request_of(value, file="f", line=7, field="request")
    assert str(caught.value) == f"f:7: request: {message}"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"verb": 1, "resource": "pods"}, "request.verb: must be a string, got a number"),
        ({"verb": "get", "resource": "pods", "groups": "a"}, "request.groups: must be a list, got a string"),
        ({"verb": "get", "resource": "pods", "groups": [None]}, "request.groups[0]: must be a string, got null"),
        ({"verb": "get", "resource": "pods", "user": True}, "request.user: must be a string, got true or false"),
    ],
)
def test_errors_name_the_field(value: object, message: str) -> None:
    with pytest.raises(CliError) as caught:
        request_of(value, file="f", line=7, field="request")
    assert str(caught.value) == f"f:7: {message}"


def test_recorded_requests_are_read_as_they_are(tmp_path: Path) -> None:
    cases = [
        case["request"]
        for line in gzip.decompress((DATA / "cli/policy-match.jsonl.gz").read_bytes()).splitlines()
        for case in json.loads(line)["cases"]
    ]
    path = write(tmp_path / "requests.jsonl", "\n".join(map(json.dumps, cases)))
    requests = list(request_lines(str(path)))
    assert len(requests) == 5000
    for wire, request in zip(cases, requests, strict=True):
        assert wire == {
            "user": request.user,
            "groups": list(request.groups),
            "verb": request.verb,
            "isResource": request.is_resource,
            "namespace": request.namespace,
            "apiGroup": request.api_group,
            "resource": request.resource,
            "subresource": request.subresource,
            "name": request.name,
            "path": request.path,
        }


@pytest.mark.parametrize("line", [b"{", b"[]", b"\xff", b'{"verb": 1}', b"null", b'{"a":' * 20000, b"x" * (2 << 20)])
def test_a_line_that_is_no_request_is_named_with_its_number(tmp_path: Path, line: bytes) -> None:
    path = write(tmp_path / "requests.jsonl", b'{"verb":"get","path":"/x"}\n\n' + line + b"\n")
    found = request_lines(str(path))
    assert next(found).path == "/x"
    with pytest.raises(CliError, match=rf"^{path}:3: "):
        next(found)


NAMES = st.text(st.characters(codec="utf-8"), max_size=8)
REQUESTS = st.one_of(
    st.builds(
        Request,
        user=st.none() | NAMES,
        groups=st.lists(NAMES, max_size=3).map(tuple),
        verb=NAMES,
        namespace=NAMES,
        api_group=NAMES,
        resource=NAMES.filter(lambda name: name and "/" not in name),
        subresource=NAMES,
        name=NAMES,
    ),
    st.builds(Request, user=st.none() | NAMES, verb=NAMES, is_resource=st.just(False), path=NAMES.filter(bool)),
)


@settings(max_examples=200)
@given(REQUESTS)
def test_a_request_that_is_shown_as_an_object_can_be_read_back(request_: Request) -> None:
    assert request_of({"verb": "", **as_object(request_)}) == request_


def test_a_request_fits_in_a_line() -> None:
    groups = ("devs", *ALICE)
    shell = Request(user="alice", groups=groups, verb="get", resource="pods", subresource="exec", name="web-0")
    assert as_text(structs.replace(shell, namespace="prod")) == "alice (devs) get pods/exec web-0 in prod"
    assert as_text(Request(user=None, verb="list", api_group="apps", resource="deployments")) == (
        "a failed login list deployments.apps"
    )
    assert as_text(Request(user="", verb="get", is_resource=False, path="/x")) == '"" get /x'
