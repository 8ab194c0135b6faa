"""The CRDs on a real API server: taken without a word, and refusing exactly what the models refuse."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import apiserver
from audit_operator.resources.load import ResourceError, load_resource

Json = dict[str, Any]
DATA = Path(__file__).parents[1] / "tests" / "data" / "resources"
GROUPS = yaml.safe_load((DATA / "rules.yaml").read_text())
API = "/apis/audit-operator.dev/v1alpha1"
PLURALS = {"AuditPolicy": "auditpolicies", "AuditSink": "auditsinks", "AuditBackend": "auditbackends"}


def folder(kind: str) -> str:
    """Where objects of a kind are."""
    return f"{API if kind == 'AuditBackend' else f'{API}/namespaces/default'}/{PLURALS[kind]}"


def document(kind: str, spec: Json, name: str = "default") -> Json:
    return {"apiVersion": "audit-operator.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


READY = {
    "type": "Ready",
    "status": "True",
    "reason": "Delivering",
    "message": "Every event reaches every sink.",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
    "observedGeneration": 1,
}
CASES = [
    pytest.param(group, spec, group.get("name", "default"), id=f"{group['message'][:40]}-{number}")
    for group in GROUPS
    for number, spec in enumerate(group["rejected"])
]
ACCEPTED = [
    pytest.param(document(group["kind"], spec), id=f"{group['message'][:40]}-{number}")
    for group in GROUPS
    for number, spec in enumerate(group["accepted"])
]
VALID = [
    pytest.param(found, id=f"{file.stem}-{found['kind']}-{found['metadata']['name']}")
    for file in sorted((DATA / "valid").glob("*.yaml"))
    for found in yaml.safe_load_all(file.read_text())
]
INVALID = [
    pytest.param(json.loads(json.dumps(found, default=str)), id=file.stem)
    for file in sorted((DATA / "invalid").glob("*.yaml"))
    if isinstance(found := yaml.safe_load(file.read_text()), dict) and found["kind"] in PLURALS
]


def test_the_crds_are_structural_and_within_the_cost_budget(crds: dict[str, Json]) -> None:
    assert set(crds) == set(PLURALS)
    for definition in crds.values():
        conditions = {entry["type"]: entry["status"] for entry in definition["status"]["conditions"]}
        assert conditions == {"NamesAccepted": "True", "Established": "True"}


def test_names_categories_and_scopes_are_what_people_type(api: apiserver.ApiServer, crds: dict[str, Json]) -> None:
    found = {entry["name"]: entry for entry in api.request("GET", API).body["resources"]}

    assert [found[plural]["shortNames"] for plural in PLURALS.values()] == [
        ["auditpol"],
        ["auditsink"],
        ["auditbackend"],
    ]
    assert all(found[plural]["categories"] == ["audit"] for plural in PLURALS.values())
    assert [found[plural]["namespaced"] for plural in PLURALS.values()] == [True, True, False]
    assert {f"{plural}/status" for plural in PLURALS.values()} <= set(found)


@pytest.mark.parametrize("found", [*ACCEPTED, *VALID])
def test_what_the_models_accept_the_api_server_accepts(
    api: apiserver.ApiServer, crds: dict[str, Json], found: Json
) -> None:
    ours = load_resource(found)

    answer = api.check(folder(found["kind"]), {**found, "metadata": {"name": found["metadata"]["name"]}})

    assert answer.ok, answer.body["message"]
    assert answer.warnings == ()
    assert load_resource(answer.body).spec == ours.spec, "defaults differ"


# "Invalid value: <message>"; of a text, the text comes first. An error of the whole object has the field <nil>.
_INVALID = re.compile(r'\A[A-Za-z ]+: ("(\\.|[^"\\])*": )?')


@pytest.mark.parametrize(("group", "spec", "name"), CASES)
def test_a_broken_rule_is_refused_at_the_same_field_in_the_same_words(
    api: apiserver.ApiServer, crds: dict[str, Json], group: Json, spec: Json, name: str
) -> None:
    found = document(group["kind"], spec, name)
    with pytest.raises(ResourceError) as refusal:
        load_resource(found)
    ours = {(problem.path, problem.message) for problem in refusal.value.problems}

    answer = api.check(folder(group["kind"]), found)

    assert answer.status == 422, answer.body
    assert {(field.removeprefix("<nil>"), _INVALID.sub("", message)) for field, message in answer.causes} == ours


@pytest.mark.parametrize("found", INVALID)
def test_what_the_models_refuse_the_api_server_refuses(
    api: apiserver.ApiServer, crds: dict[str, Json], found: Json
) -> None:
    with pytest.raises(ResourceError):
        load_resource(found)

    assert not api.check(folder(found["kind"]), found).ok


def test_credentials_in_the_wrong_place_are_not_repeated(api: apiserver.ApiServer, crds: dict[str, Json]) -> None:
    for spec in (
        {"http": {"url": "https://me:hunter2@siem"}},
        {"http": {"url": "https://siem", "headers": [{"name": "Authorization", "value": "hunter2"}]}},
        {"http": {"url": "https://siem"}, "tls": {"caBundle": "-----BEGIN PRIVATE KEY-----\nhunter2"}},
    ):
        answer = api.check(folder("AuditSink"), document("AuditSink", spec))

        assert answer.status == 422
        assert "hunter2" not in str(answer.body)


@pytest.mark.parametrize("content", [apiserver.APPLY, apiserver.MERGE])
def test_another_sink_type_takes_the_place_of_the_first(
    api: apiserver.ApiServer, crds: dict[str, Json], content: str
) -> None:
    """Defaults that the API server wrote into the first do not stay behind and make two."""
    url = f"{folder('AuditSink')}/{content.partition('/')[2].partition('-')[0]}"
    name = url.rpartition("/")[2]
    first = document("AuditSink", {"elasticsearch": {"urls": ["https://a"]}}, name)
    second = document("AuditSink", {"loki": {"url": "https://b"}}, name)
    assert api.apply(url, first).ok

    if content == apiserver.MERGE:  # what `kubectl apply` on the client's side makes of the two
        second["spec"]["elasticsearch"] = None
        answer = api.request("PATCH", url, second, content=content)
    else:
        answer = api.apply(url, second)

    assert answer.ok, answer.body["message"]
    assert set(answer.body["spec"]) & {"elasticsearch", "loki"} == {"loki"}


def test_a_default_is_not_in_the_way_of_another_exposure_and_storage(
    api: apiserver.ApiServer, crds: dict[str, Json]
) -> None:
    url = f"{folder('AuditBackend')}/default"
    assert api.apply(url, document("AuditBackend", {"clusterName": "prod"})).ok
    receiver = {"storage": {"ephemeral": {}}, "exposure": {"external": {"host": "audit.example.com"}}}

    answer = api.request(
        "PATCH", url, document("AuditBackend", {"clusterName": "prod", "receiver": receiver}), content=apiserver.MERGE
    )

    assert answer.ok, answer.body["message"]
    assert answer.body["spec"]["receiver"]["storage"] == {"ephemeral": {"sizeLimit": "10Gi"}}


def test_the_status_is_a_subresource(api: apiserver.ApiServer, crds: dict[str, Json]) -> None:
    url = f"{folder('AuditPolicy')}/with-status"
    found = document("AuditPolicy", {"preset": "CIS"}, "with-status")
    status = {"rules": 3, "conditions": [READY]}
    assert "status" not in api.apply(url, {**found, "status": status}).body

    answer = api.request("PATCH", f"{url}/status", {"status": status}, content=apiserver.MERGE)

    assert answer.body["status"] == status
    load_resource(answer.body)


def test_kubectl_get_shows_columns_worth_reading(api: apiserver.ApiServer, crds: dict[str, Json]) -> None:
    found = document("AuditPolicy", {"preset": "CIS"}, "columns")
    url = f"{folder('AuditPolicy')}/columns"
    api.apply(url, found)
    api.request("PATCH", f"{url}/status", {"status": {"rules": 3, "conditions": [READY]}}, content=apiserver.MERGE)

    table = api.request("GET", url, accept="application/json;as=Table;v=v1;g=meta.k8s.io").body

    shown = [column["name"] for column in table["columnDefinitions"] if column.get("priority", 0) == 0]
    assert shown == ["Name", "Preset", "Rules", "Warnings", "Ready", "Reason", "Age"]
    row = dict(zip((column["name"] for column in table["columnDefinitions"]), table["rows"][0]["cells"], strict=True))
    assert (row["Preset"], row["Rules"], row["Ready"], row["Reason"]) == ("CIS", 3, "True", "Delivering")
