"""What a real API server writes about objects with secrets, errors that quote them included: no secret of it leaves.

`tests/receiver/planted.py` imagines such events; here the API server makes them.
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from apiserver import APPLY, MERGE, ApiServer, Json, control_plane, eventually
from audit_operator.policy.events import decode
from audit_operator.policy.model import GroupResources, Level
from audit_operator.policy.redact import Action, RedactionRule, Redactor
from audit_operator.policy.request import request_of
from audit_operator.receiver.cutting import Redacting, Wanted, cut

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "receiver"))
from planted import MARK, revealed

POLICY: Json = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "RequestResponse", "resources": [{"group": "", "resources": ["secrets", "configmaps"]}]},
        {"level": "RequestResponse", "resources": [{"group": "example.com"}, {"group": "authentication.k8s.io"}]},
        {"level": "RequestResponse", "resources": [{"group": "", "resources": ["serviceaccounts/token"]}]},
    ],
}
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
ENCODED = base64.b64encode(MARK.encode()).decode()
SECRETS = "/api/v1/namespaces/default/secrets"
LOGINS = "/apis/example.com/v1/namespaces/default/logins"


def crd() -> Json:
    key = {"type": "object", "required": ["key"], "properties": {"key": {"type": "string"}, "role": {"type": "string"}}}
    users = {"type": "array", "items": key, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["key"]}
    password = {"type": "string", "maxLength": 40}
    spec = {"type": "object", "properties": {"password": password, "users": users, "pin": {"type": "integer"}}}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}},
        "selectableFields": [{"jsonPath": ".spec.password"}],
        "additionalPrinterColumns": [{"name": "Password", "type": "string", "jsonPath": ".spec.password"}],
    }
    names = {"plural": "logins", "singular": "login", "kind": "Login", "listKind": "LoginList"}
    spec = {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [version]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "logins.example.com"},
        "spec": spec,
    }


def login(**spec: Any) -> Json:
    return {"apiVersion": "example.com/v1", "kind": "Login", "metadata": {"name": "a"}, "spec": spec}


def secret(**fields: Any) -> Json:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a", "annotations": {"copy": MARK}}, **fields}


def traffic(api: ApiServer) -> None:
    """By every way in, and by every way to be refused that there is without a webhook."""
    denied = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "quotes"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": ["example.com"],
                        "apiVersions": ["v1"],
                        "operations": ["UPDATE"],
                        "resources": ["logins"],
                    }
                ]
            },
            "validations": [
                {
                    "expression": "!has(object.spec.pin) || object.spec.pin != 7",
                    "messageExpression": "'the password ' + object.spec.password + ' is known'",
                }
            ],
            "auditAnnotations": [{"key": "seen", "valueExpression": "'saw ' + object.spec.password"}],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "quotes"},
        "spec": {"policyName": "quotes", "validationActions": ["Deny"]},
    }
    policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
    assert api.request("POST", policies, denied).ok
    assert api.request("POST", f"{policies.removesuffix('policies')}policybindings", binding).ok

    assert api.request("POST", SECRETS, secret(data={"password": ENCODED}, stringData={"pin": MARK})).ok
    for path in (SECRETS, f"{SECRETS}/a", f"{SECRETS}?limit=1"):
        for accept in ("", TABLE):
            assert api.request("GET", path, accept=accept).ok
    noted = {"metadata": {"annotations": {"kopf.zalando.org/last-handled-configuration": json.dumps(secret())}}}
    assert api.request("PATCH", f"{SECRETS}/a", noted, content=MERGE).ok
    assert api.request("PATCH", f"{SECRETS}/a", {"data": {"b": ENCODED}}, content=STRATEGIC).ok
    assert api.request(
        "PATCH", f"{SECRETS}/a", [{"op": "add", "path": "/data/c", "value": ENCODED}], content=JSON_PATCH
    ).ok
    # What is no base64 is quoted, the whole Secret after a JSON patch.
    assert not api.request("POST", SECRETS, secret(data={"password": MARK})).ok
    assert not api.request(
        "PATCH", f"{SECRETS}/a", [{"op": "add", "path": "/data/d", "value": MARK}], content=JSON_PATCH
    ).ok
    assert not api.request("PATCH", f"{SECRETS}/a", {"data": {"d": MARK}}, content=MERGE).ok
    assert not api.request("PATCH", f"{SECRETS}/a", {"type": "other", "data": {"a": ENCODED}}, content=MERGE).ok
    assert not api.request("PATCH", f"{SECRETS}/a", {"metadata": {"labels": {"a": f"{MARK} !"}}}, content=MERGE).ok
    for manager, force in (("one", "true"), ("two", "false")):
        role = {"password": ENCODED if manager == "one" else "YQ=="}
        api.request(
            "PATCH", f"{SECRETS}/b?fieldManager={manager}&force={force}", _named(secret(data=role)), content=APPLY
        )

    made = login(password=MARK, users=[{"key": MARK, "role": "a"}])
    for manager in ("one", "two"):
        made["spec"]["users"][0]["role"] = manager
        answer = api.request("PATCH", f"{LOGINS}/a?fieldManager={manager}", made, content=APPLY)
    assert answer.status == 409
    assert MARK in answer.body["message"]
    twice = login(users=[{"key": MARK}, {"key": MARK}])
    assert MARK in json.dumps(api.request("PATCH", f"{LOGINS}/a?fieldManager=one", twice, content=APPLY).body)
    for spec in ({"password": f"{MARK}-{MARK}"}, {"users": [{"key": MARK}, {"key": MARK}]}, {"pin": MARK}):
        answer = api.request("POST", LOGINS, login(**spec) | {"metadata": {"name": "c"}})
        assert not answer.ok
    assert api.request("GET", LOGINS, accept=TABLE).ok
    assert api.request("GET", f"{LOGINS}?fieldSelector=spec.password%3D{MARK}").ok

    def denies() -> bool:
        return not api.request("PATCH", f"{LOGINS}/a", {"spec": {"pin": 7}}, content=MERGE).ok

    eventually(denies)
    assert api.request("PATCH", f"{LOGINS}/a", {"spec": {"pin": 8}}, content=MERGE).ok
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": MARK}}
    assert api.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review).ok
    assert api.request("DELETE", f"{LOGINS}/a").ok
    assert api.request("DELETE", f"{SECRETS}/a").ok


def _named(body: Json) -> Json:
    return body | {"metadata": {"name": "b"}}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """What the API server wrote into its own log."""
    folder = tmp_path_factory.mktemp("redaction")
    (folder / "policy.yaml").write_text(json.dumps(POLICY))
    log = folder / "audit.log"
    flags = [f"--audit-policy-file={folder / 'policy.yaml'}", f"--audit-log-path={log}", "--audit-log-mode=blocking"]
    with control_plane(flags) as plane:
        assert plane.api.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd()).ok
        eventually(lambda: plane.api.request("GET", LOGINS).ok)
        traffic(plane.api)
    return log.read_bytes().splitlines()


RULES = (
    RedactionRule(
        resources=(GroupResources("example.com", ("logins",)),),
        paths=("spec.password", "spec.users[*].key", "spec.pin"),
        action=Action.MASK,
    ),
)


def test_no_secret_of_what_an_api_server_writes_leaves_at_any_level(recorded: list[bytes]) -> None:
    redacting = Redacting(Redactor(RULES))
    quoting = [raw for raw in recorded if revealed(raw)]
    assert len(quoting) > 25
    codes = set()
    for raw in quoting:
        event = decode(raw)
        request = request_of(event)
        codes.add(json.loads(raw)["responseStatus"]["code"])
        for level in (Level.MINIMAL, Level.METADATA, Level.REQUEST, Level.REQUEST_RESPONSE):
            done = cut(raw, event, request, Level.parse(event.level), Wanted(level, False, redacting))
            assert not revealed(done.data), done.data
            assert done.failed == ()
    assert codes >= {200, 201, 409, 422, 500}


def test_what_an_api_server_says_of_names_is_still_told(recorded: list[bytes]) -> None:
    redacting = Redacting(Redactor(RULES))
    messages = set()
    for raw in recorded:
        event = decode(raw)
        done = cut(raw, event, request_of(event), Level.parse(event.level), Wanted(Level.METADATA, False, redacting))
        messages.add(json.loads(done.data)["responseStatus"].get("message"))
    assert "Apply failed with 1 conflict: ***" in messages
    assert any(str(each).startswith('Login.example.com "c" is invalid: ***') for each in messages)
    assert any(
        "ValidatingAdmissionPolicy 'quotes' with binding 'quotes' denied request: ***" in str(each) for each in messages
    )
