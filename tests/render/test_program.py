"""The receiver's program: complete, exact, without secrets, and small."""

import base64
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_operator.policy.effective import effective, redactions_of, resolve
from audit_operator.policy.model import Policy, Rule
from audit_operator.render.objects import compressed
from audit_operator.render.program import (
    CREDENTIALS_DIRECTORY,
    Credential,
    PolicyInput,
    Program,
    belongs,
    credentials,
    decode,
    encode,
    policy_of,
    program,
)
from audit_operator.render.program import redactions_of as wire_redactions_of
from audit_operator.resources.auditpolicy import AuditPolicy
from audit_operator.resources.auditsink import AuditSink

SELECTOR = {"matchLabels": {"tier": "prod"}}
SPECS: list[dict[str, Any]] = [
    {"preset": "CIS"},
    {"preset": "Minimal", "omitStages": ["Panic"], "omitManagedFields": True},
    {"rules": [{"level": "RequestResponse", "resources": [{"group": "apps", "resources": ["*"]}], "users": ["ü\n"]}]},
    {"rules": [{"level": "Metadata", "namespaceSelector": SELECTOR, "omitStages": ["RequestReceived", "Panic"]}]},
    {"rules": [{"level": "Minimal", "omitManagedFields": False}, {"level": "None", "nonResourceURLs": ["/x*"]}]},
]


def policy_input(name: str, namespace: str, spec: dict[str, Any]) -> PolicyInput:
    resource = AuditPolicy.model_validate({"metadata": {"name": name, "namespace": namespace}, "spec": spec})
    meant = effective(resource, root_namespace="audit-system")
    policy = resolve(meant.policy, {"prod": {"tier": "prod"}, "team-1": {"tier": "prod"}})
    return PolicyInput(namespace, name, policy, meant.tenant, redactions_of(resource), ("audit-system/siem",))


def sink(name: str = "siem", namespace: str = "audit-system", **spec: Any) -> AuditSink:
    return AuditSink.model_validate({"metadata": {"name": name, "namespace": namespace}, "spec": spec})


def program_of(policies: list[PolicyInput], sinks: list[AuditSink]) -> Program:
    return program(policies, sinks, cluster="c", body_limit=1, journal_limit=2)


ELASTIC = sink(
    elasticsearch={
        "urls": ["https://es:9200"],
        "auth": {"basic": {"username": "audit", "password": {"name": "es", "key": "password"}}},
    },
    tls={
        "caConfigMap": {"name": "ca"},
        "clientCertificate": {"secretName": "es-client"},
    },
    batch={"maxBytes": "1Mi"},
    retry={"initialBackoff": "500ms"},
)


@settings(max_examples=60, deadline=None)
@given(
    chosen=st.lists(
        st.tuples(st.sampled_from(SPECS), st.sampled_from(["audit-system", "team-1", "team-2"])), max_size=6
    )
)
def test_every_policy_comes_out_as_it_went_in(chosen: list[tuple[dict[str, Any], str]]) -> None:
    inputs = [policy_input(f"p{number}", namespace, spec) for number, (spec, namespace) in enumerate(chosen)]
    read = decode(encode(program_of(inputs, [])))
    assert [policy_of(read, entry) for entry in read.policies] == [each.policy for each in inputs]
    assert [(entry.namespace, entry.name, entry.tenant, entry.sinks) for entry in read.policies] == [
        (each.namespace, each.name, each.tenant, each.sinks) for each in inputs
    ]


def test_redactions_come_out_as_they_went_in_and_name_the_key_they_need() -> None:
    secret = {"resources": [{"group": "example.com", "resources": ["logins"]}], "paths": ["spec.password"]}
    plain, hashed = (
        policy_input("p", "audit-system", {"preset": "CIS", "redactions": [secret | {"action": action}]})
        for action in ("Mask", "Hash")
    )
    read = decode(encode(program_of([plain, hashed], [])))
    assert [wire_redactions_of(entry) for entry in read.policies] == [plain.redactions, hashed.redactions]
    assert read.hash_key_file == f"{CREDENTIALS_DIRECTORY}/hash-key"
    assert program_of([plain], []).hash_key_file is None


def test_the_text_is_read_back_whole() -> None:
    made = program_of([policy_input("p", "audit-system", SPECS[2])], [ELASTIC])
    assert decode(encode(made)) == made


def test_tenants_of_one_shape_share_one_list_of_rules() -> None:
    inputs = [policy_input("p", f"team-{number}", {"preset": "CIS"}) for number in range(1000)]
    made = program_of(inputs, [])
    assert len(made.rule_lists) == 1
    assert len(encode(made)) < 200_000


def test_a_program_of_a_newer_schema_is_refused_whole() -> None:
    text = encode(program_of([], []))
    with pytest.raises(msgspec.ValidationError, match="schema"):
        decode(text.replace("receiver.audit-operator.dev/v1", "receiver.audit-operator.dev/v2"))
    with pytest.raises(msgspec.ValidationError, match="unknown field `sampling`"):
        decode(text.replace('"cluster"', '"sampling": 1, "cluster"'))


def test_references_to_secrets_become_files_and_nothing_else_changes() -> None:
    (made,) = program_of([], [ELASTIC]).sinks
    place = f"{CREDENTIALS_DIRECTORY}/secret_audit-system_"
    assert made.type == "elasticsearch"
    assert made.settings["urls"] == ["https://es:9200"]
    assert made.settings["auth"] == {"basic": {"username": "audit", "password": {"file": f"{place}es_password"}}}
    assert made.tls == {
        "caConfigMap": {"file": f"{CREDENTIALS_DIRECTORY}/configmap_audit-system_ca_ca.crt"},
        "clientCertificate": {
            "certificateFile": f"{place}es-client_tls.crt",
            "keyFile": f"{place}es-client_tls.key",
        },
        "minVersion": "TLS12",
    }
    assert made.batch.max_bytes == 2**20
    assert made.initial_backoff == 0.5


def test_every_credential_is_named_once_and_found_in_the_program() -> None:
    other = sink("other", "team-1", splunk={"url": "https://s", "token": {"name": "t", "key": "a_b"}})
    found = credentials([other, ELASTIC, ELASTIC])
    assert found == (
        Credential("ConfigMap", "audit-system", "ca", "ca.crt"),
        Credential("Secret", "audit-system", "es", "password"),
        Credential("Secret", "audit-system", "es-client", "tls.crt"),
        Credential("Secret", "audit-system", "es-client", "tls.key"),
        Credential("Secret", "team-1", "t", "a_b"),
    )
    text = encode(program_of([], [other, ELASTIC]))
    assert all(credential.file in text for credential in found)


NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?", fullmatch=True)
KEYS = st.from_regex(r"[-._a-zA-Z0-9]{1,253}", fullmatch=True)
CREDENTIALS = st.builds(
    Credential,
    st.sampled_from(["Secret", "ConfigMap"]),
    st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True),
    NAMES,
    KEYS,
)


@settings(max_examples=150)
@given(one=CREDENTIALS, other=CREDENTIALS)
def test_no_two_credentials_share_a_file_and_every_file_is_a_key_of_a_secret(
    one: Credential, other: Credential
) -> None:
    assert (one.file == other.file) == (one == other)
    assert len(one.file) <= 253
    assert set(one.file) <= set("-._abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


@settings(max_examples=150, deadline=None)
@given(one=CREDENTIALS, namespace=st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True))
def test_a_file_tells_whose_credential_it_is(one: Credential, namespace: str) -> None:
    path = f"{CREDENTIALS_DIRECTORY}/{one.file}"
    assert belongs(path, one.namespace)
    assert belongs(path, namespace) == (namespace == one.namespace)
    # The beginning of a name is not the name.
    assert not belongs(path, one.namespace[:-1])
    assert not belongs(path, f"{one.namespace}-2")


def test_tricky_names_do_not_share_a_file() -> None:
    tricky = [("Secret", "a", "b.c", "d"), ("Secret", "a", "b", "c.d"), ("Secret", "configmap", "a", "b_c"),
              ("ConfigMap", "a", "b", "c"), ("Secret", "a-b", "c", "d"), ("Secret", "a", "b-c", "d")]  # fmt: skip
    files = {Credential(*each).file for each in tricky}  # type: ignore[arg-type]
    assert len(files) == len(tricky)


def test_a_rule_that_would_escape_its_tenant_is_refused() -> None:
    escaping = Policy(rules=(Rule(level=3, namespaces=("team-2",)),))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be confined"):
        program_of([PolicyInput("team-1", "p", escaping, "team-1", (), ())], [])


def test_a_program_is_read_from_its_gzip_and_damage_is_said() -> None:
    made = program_of([policy_input("p", "audit-system", SPECS[0])], [ELASTIC])
    packed = base64.b64decode(compressed(encode(made)))
    assert decode(packed) == made
    for damaged, words in ((packed[:-9], "cut off"), (packed[:10] + b"\xff" * 40, "no gzip")):
        with pytest.raises(msgspec.DecodeError, match=words):
            decode(damaged)


def test_an_entry_that_changes_changes_its_line_alone() -> None:
    before = [policy_input(f"p{number}", "audit-system", SPECS[number]) for number in range(5)]
    after = [*before[:2], before[2]._replace(sinks=("audit-system/other",)), *before[3:]]
    old, new = (encode(program_of(each, [ELASTIC])).splitlines() for each in (before, after))
    assert len([1 for one, two in zip(old, new, strict=True) if one != two]) == 1
