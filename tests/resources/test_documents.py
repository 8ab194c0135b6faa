"""Documents as people write them: taken, or refused with every problem, its place and the way out."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structural
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_operator.policy.model import GroupResources
from audit_operator.policy.redact import RedactionError, RedactionRule, Redactor
from audit_operator.render.status import sink_status
from audit_operator.resources.auditsink import SINK_TYPES, AuditSink
from audit_operator.resources.crd import reference, schemas
from audit_operator.resources.load import ResourceError, is_resource, load_resource, to_document
from audit_operator.resources.meta import GRAMMARS, quantity, seconds
from audit_operator.resources.sentences import shown
from audit_operator.resources.yamlwriter import write

Json = dict[str, Any]
DATA = Path(__file__).parents[1] / "data" / "resources"
GOLDEN = DATA / "errors.txt"
SCHEMAS = schemas()
VALID = [
    pytest.param(document, id=f"{document['kind']}-{document['metadata']['name']}-{number}")
    for file in sorted((DATA / "valid").glob("*.yaml"))
    for number, document in enumerate(yaml.safe_load_all(file.read_text()))
]
DOCUMENTS: list[Json] = [parameter.values[0] for parameter in VALID]
SINKS = [document for document in DOCUMENTS if document["kind"] == "AuditSink"]


def refusals() -> str:
    """What is said about every document in invalid/."""
    return "\n".join(_refusal(file) for file in sorted((DATA / "invalid").glob("*.yaml")))


def _refusal(file: Path) -> str:
    try:
        load_resource(yaml.safe_load(file.read_text()))
    except ResourceError as error:
        return f"# {file.name}\n{error}\n"
    raise AssertionError(f"{file} is accepted")


def paths(value: Any, path: str = "") -> Iterator[str]:
    """Every field of a document, list items as []."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield f"{path}.{name}"
            yield from paths(item, f"{path}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from paths(item, f"{path}[]")


def fields(schema: Json, path: str = "") -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from fields(field, f"{path}.{name}")
    if "items" in schema:
        yield from fields(schema["items"], f"{path}[]")


# --- taken -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", VALID)
def test_valid_documents_are_taken_by_models_and_schema(document: Json) -> None:
    load_resource(document)

    assert structural.judge(SCHEMAS[document["kind"]], document).accepted


@pytest.mark.parametrize("document", VALID)
def test_defaults_of_models_and_schema_are_the_same(document: Json) -> None:
    stored = structural.defaulted(SCHEMAS[document["kind"]], document)

    assert load_resource(stored) == load_resource(document)


@pytest.mark.parametrize("document", VALID)
def test_a_resource_survives_being_written_and_read(document: Json) -> None:
    resource = load_resource(document)

    written = to_document(resource)

    assert load_resource(yaml.safe_load(write(written))) == resource
    assert load_resource(json.loads(json.dumps(written))) == resource
    assert list(written)[:3] == ["apiVersion", "kind", "metadata"]


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_valid_documents_show_every_field(kind: str) -> None:
    shown = {path for document in DOCUMENTS if document["kind"] == kind for path in paths(document["spec"])}

    assert set(fields(SCHEMAS[kind]["properties"]["spec"])) - shown == set()


def test_what_kubernetes_puts_into_metadata_is_kept() -> None:
    document = {
        "apiVersion": "audit-operator.dev/v1alpha1",
        "kind": "AuditSink",
        "metadata": {
            "name": "a",
            "creationTimestamp": None,
            "finalizers": ["a/b"],
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
            "ownerReferences": [{"uid": "1"}],
            "generation": 7,
        },
        "spec": {"stdout": {}},
        "status": {"observedGeneration": 6, "conditions": []},
    }

    written = to_document(load_resource(document))

    assert written["metadata"]["finalizers"] == ["a/b"]
    assert written["metadata"]["managedFields"] == document["metadata"]["managedFields"]  # type: ignore[index]
    assert written["status"] == {"observedGeneration": 6}


# --- refused ---------------------------------------------------------------------------------------------------------


def test_refusals_name_the_field_the_value_and_the_way_out() -> None:
    """`python tests/resources/test_documents.py` writes the file anew."""
    assert refusals() == GOLDEN.read_text()


def test_refusals_never_repeat_a_credential() -> None:
    text = (DATA / "invalid" / "secrets-in-plain-text.yaml").read_text()
    assert text.count("hunter2") == 7

    assert "hunter2" not in refusals()


def test_every_pattern_is_put_into_words() -> None:
    def patterns(schema: Json) -> Iterator[str]:
        if "pattern" in schema:
            yield schema["pattern"]
        for part in (*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")):
            if isinstance(part, dict):
                yield from patterns(part)

    assert {pattern for schema in SCHEMAS.values() for pattern in patterns(schema)} <= GRAMMARS.keys()


def test_snake_case_is_not_taken_for_camel_case() -> None:
    document = {
        "apiVersion": "audit-operator.dev/v1alpha1",
        "kind": "AuditPolicy",
        "metadata": {"name": "a"},
        "spec": {"preset": "CIS", "omit_stages": ["Panic"]},
    }
    with pytest.raises(ResourceError, match=r"spec\.omit_stages: is no field; did you mean omitStages\?"):
        load_resource(document)


@pytest.mark.parametrize("value", [None, [], "text", 1, True, {}, {"apiVersion": [], "kind": {}}, {1: 2}])
def test_anything_at_all_is_refused_with_a_problem(value: object) -> None:
    with pytest.raises(ResourceError) as refusal:
        load_resource(value)

    assert refusal.value.problems
    assert not is_resource(value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"rules": [{"level": "None"}] * 100_000}, "spec.rules: must have at most 200 entries"),
        ({"rules": [{"level": "x"}] * 20_000}, "document: has 19,900 more problems; put these right first"),
        (
            {"preset": "CIS", "rules": [{"level": "None", "users": ["a" * 1_000_000]}]},
            "at most 512 characters",
        ),
        ({"preset": "https://" + "a" * 1_000_000 + ":hunter2@b"}, "spec.preset: is not known"),
        ({"preset": "CIS"} | {f"field{number}": 1 for number in range(20_000)}, "more problems"),
    ],
    ids=["entries", "bad-entries", "long", "long-secret", "fields"],
)
def test_what_is_huge_is_refused_in_few_words(spec: Json, message: str) -> None:
    document = {"apiVersion": "audit-operator.dev/v1alpha1", "kind": "AuditPolicy", "metadata": {"name": "a"}}

    with pytest.raises(ResourceError) as refusal:
        load_resource(document | {"spec": spec})

    assert message in str(refusal.value)
    assert len(str(refusal.value)) < 50_000
    assert "hunter2" not in str(refusal.value)


def texts(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where a document has text."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from texts(item, (*path, key))


def put(document: Any, path: tuple[str | int, ...], value: object) -> Any:
    """The document with another value there."""
    if not path:
        return value
    changed = document.copy()
    changed[path[0]] = put(document[path[0]], path[1:], value)
    return changed


def cost(document: object) -> float:
    """Seconds of a processor until it is taken or refused, with all that is said about it."""
    before = time.process_time()
    with contextlib.suppress(ResourceError):
        load_resource(document)
    return time.process_time() - before


PIECES = [
    ":",
    "@",
    "://",
    "?",
    ":@",
    "/",
    "a",
    "a.",
    "-",
    ".",
    "1",
    "1:",
    "[",
    '["a"]',
    "{cluster}",
    "{",
    "*",
    "*/",
    " ",
    "\n",
]
ENOUGH = 0.15
"""Seconds of a processor: so little that it is of no interest how it grows."""


@pytest.mark.parametrize("document", VALID)
def test_no_text_in_a_resource_costs_more_than_its_length(document: Json) -> None:
    for path in texts(document):
        for piece in PIECES:
            # What is quoted in messages is shorter than a thousand characters.
            for length in (990, 100_000):
                hostile = put(document, path, piece * (length // len(piece)))
                if cost(hostile) > ENOUGH:
                    shorter = put(document, path, piece * (length // 2 // len(piece)))
                    half = min(cost(shorter) for _ in range(3))
                    assert min(cost(hostile) for _ in range(3)) < max(3 * half, ENOUGH), f"{path}: {piece!r}"


@pytest.mark.parametrize("piece", PIECES)
def test_a_hundred_values_that_are_wrong_cost_no_more_than_one_a_hundred_times(piece: str) -> None:
    value = piece * (990 // len(piece))
    spec = {"preset": "CIS", "rules": [{"level": value}] * 100}
    document = {"apiVersion": "audit-operator.dev/v1alpha1", "kind": "AuditPolicy", "metadata": {"name": "a"}}

    assert min(cost(document | {"spec": spec}) for _ in range(3)) < 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("https://alice:hunter2@siem/x?token=hunter2", "'https://***@siem/x?***'"),
        ("alice:hunter2@siem", "'***@siem'"),
        ("a:hunter2@b:hunter2@siem/c:hunter2@d", "'***@siem/***@d'"),
        ("//alice:hunter2@siem", "'//***@siem'"),
        ("https://siem:9200/a@b", "'https://siem:9200/a@b'"),
        ("what?is=this", "'what?is=this'"),
        pytest.param(10**5000, "", id="long"),
        (12, "12"),
    ],
)
def test_a_value_is_shown_without_what_could_be_a_password(value: object, said: str) -> None:
    assert shown(value) == said


# A redaction that is taken here and refused later would be one that a user believes in.
REDACTIONS = st.fixed_dictionaries(
    {
        "resources": st.lists(
            st.fixed_dictionaries(
                {
                    "group": st.sampled_from(["", "*", "apps", "Apps", "a.b", "apps/v1"]),
                    "resources": st.lists(st.text("ab*/.-A", max_size=6), max_size=2),
                }
            ),
            min_size=1,
            max_size=2,
        ),
        "paths": st.lists(st.text('a.*[]"0- $\\\\', max_size=8), min_size=1, max_size=2),
    }
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(REDACTIONS)
def test_a_redaction_that_models_take_can_be_compiled_and_the_other_way_round(redaction: Json) -> None:
    spec = {"preset": "CIS", "redactions": [redaction]}
    document = {"apiVersion": "audit-operator.dev/v1alpha1", "kind": "AuditPolicy", "metadata": {"name": "a"}}
    rule = RedactionRule(
        resources=tuple(GroupResources(entry["group"], tuple(entry["resources"])) for entry in redaction["resources"]),
        paths=tuple(redaction["paths"]),
    )

    assert _raises(ResourceError, load_resource, document | {"spec": spec}) == _raises(
        RedactionError, Redactor, (rule,)
    )


def _raises(kind: type[Exception], call: Callable[[Any], object], argument: Any) -> bool:
    try:
        call(argument)
    except kind:
        return True
    return False


# --- sinks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SINK_TYPES)
def test_a_sink_type_in_the_table_is_everywhere(name: str) -> None:
    shown = [document for document in SINKS if name in document["spec"]]
    sinks = [load_resource(document) for document in shown]
    schema, backend = SCHEMAS["AuditSink"], SCHEMAS["AuditBackend"]

    assert sinks
    for sink in sinks:
        assert isinstance(sink, AuditSink)
        assert sink.spec.type == name
        assert type(sink.spec.config) is SINK_TYPES[name]
        assert sink.spec.batch_limits.max_events >= 1
    assert f"has(self.{name})" in schema["properties"]["spec"]["x-kubernetes-validations"][0]["rule"]
    tenants = backend["properties"]["spec"]["properties"]["tenants"]["properties"]
    assert name in tenants["sinkTypes"]["items"]["enum"]
    assert (name in tenants["sinkTypes"]["default"]) == SINK_TYPES[name].guarded
    assert f"### {SINK_TYPES[name].__name__}\n" in reference()


@pytest.mark.parametrize("document", SINKS, ids=[document["metadata"]["name"] for document in SINKS])
def test_every_host_and_every_secret_of_a_sink_is_known(document: Json) -> None:
    """Tenants' limits and the receiver's mounts stand on these two lists."""
    spec = document["spec"]
    sink = load_resource(document)
    assert isinstance(sink, AuditSink)

    text = json.dumps(spec)
    addresses = re.findall(r'"(?:https?://([^/"]+)[^"]*|([^" /]+:[0-9]+))"', text)
    hosts = {re.sub(r":[0-9]+$", "", url or address).strip("[]") for url, address in addresses}
    assert set(sink.spec.hosts) == hosts

    references = set(re.findall(r'(?<!"caConfigMap": )\{"name": "([^"]+)", "key": "([^"]+)"\}', text))
    certificate = spec.get("tls", {}).get("clientCertificate")
    if certificate:
        references |= {(certificate["secretName"], certificate[key]) for key in ("certificateKey", "privateKeyKey")}
    assert {(reference.name, reference.key) for reference in sink.spec.secrets} == references


@pytest.mark.parametrize(
    ("spec", "plaintext"),
    [
        ({"http": {"url": "http://a"}}, True),
        ({"http": {"url": "https://a"}}, False),
        ({"kafka": {"brokers": ["a:1"], "topic": "a", "transport": "Plaintext"}}, True),
        ({"syslog": {"address": "a:1"}}, False),
        ({"objectStore": {"s3": {"bucket": "abc", "region": "a", "endpoint": "http://minio"}}}, True),
        ({"cloudWatch": {"region": "a"}}, False),
        ({"stdout": {}}, False),
    ],
)
def test_a_sink_says_whether_events_travel_in_the_clear(spec: Json, plaintext: bool) -> None:
    sink = load_resource(
        {"apiVersion": "audit-operator.dev/v1alpha1", "kind": "AuditSink", "metadata": {"name": "a"}, "spec": spec}
    )
    assert isinstance(sink, AuditSink)

    assert sink.spec.plaintext is plaintext


def test_durations_and_quantities_are_numbers() -> None:
    assert [seconds(text) for text in ("500ms", "1m30s", "24h", "2s500ms", "0s")] == [0.5, 90, 86400, 2.5, 0]
    assert [quantity(text) for text in ("500m", "2", "1.5", "1k", "1Ki", "10Gi", "1E")] == [
        *(0.5, 2, 1.5, 1000, 1024),
        *(10 * 2**30, 1e18),
    ]


if __name__ == "__main__":
    GOLDEN.write_text(refusals())


@pytest.mark.parametrize(
    ("spec", "cautious"),
    [
        ({"address": "a:1"}, False),
        ({"address": "a:1", "maxMessageBytes": 199_000}, False),
        ({"address": "a:1", "maxMessageBytes": 262_144}, True),
        ({"address": "a:1", "maxMessageBytes": 262_144, "framing": "Newline"}, False),
    ],
)
def test_a_message_that_exceeds_rsyslogs_frame_is_warned_of_in_the_status(spec: Json, cautious: bool) -> None:
    sink = load_resource(
        {
            "apiVersion": "audit-operator.dev/v1alpha1",
            "kind": "AuditSink",
            "metadata": {"name": "a", "namespace": "b"},
            "spec": {"syslog": spec},
        }
    )
    assert isinstance(sink, AuditSink)

    configured = next(c for c in sink_status(sink, 1, "", None).conditions if c.type == "Configured")
    assert configured.status == "True"
    assert ("maxFrameSize" in configured.message) is cautious
