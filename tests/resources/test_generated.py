"""crds/ and docs/reference.md are what the models say, in the form API servers and server-side apply ask for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structural
import yaml

from audit_operator.resources.crd import crds, reference, schemas

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
SCHEMAS = schemas()

WORDS = {
    "description", "type", "format", "enum", "default", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "minItems", "maxItems", "maxProperties", "items", "properties", "required", "additionalProperties", "anyOf",
    "x-kubernetes-int-or-string", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type",
    "x-kubernetes-validations",
}  # fmt: skip


class Node(NamedTuple):
    path: str
    schema: Json


def nodes(schema: Json, path: str = "") -> Iterator[Node]:
    yield Node(path, schema)
    for name, field in schema.get("properties", {}).items():
        yield from nodes(field, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}.*")


ALL = [Node(kind + node.path, node.schema) for kind, schema in SCHEMAS.items() for node in nodes(schema)]
SPECS = [node for node in ALL if node.path.partition(".")[2].startswith("spec")]


def test_what_is_in_crds_is_what_the_models_generate() -> None:
    written = {path.name: path.read_text() for path in (ROOT / "crds").glob("*.yaml")}

    assert written == crds(), "run `make generate`"


def test_what_is_in_the_reference_is_what_the_models_generate() -> None:
    assert (ROOT / "docs" / "reference.md").read_text() == reference(), "run `make generate`"


def test_generating_twice_gives_the_same_bytes() -> None:
    assert crds() == crds()


@pytest.mark.parametrize("text", crds().values(), ids=crds())
def test_a_crd_fits_into_the_annotation_of_kubectl_apply(text: str) -> None:
    assert len(text) < 200_000
    assert yaml.safe_load(text)["kind"] == "CustomResourceDefinition"


def test_schemas_are_structural() -> None:
    for path, schema in ALL:
        assert schema.keys() <= WORDS, path
        if schema.get("x-kubernetes-int-or-string"):
            assert schema["anyOf"] == [{"type": "integer"}, {"type": "string"}], path
            assert "type" not in schema, path
        else:
            assert schema["type"] in {"object", "array", "string", "integer", "boolean"}, path
            assert "anyOf" not in schema, path
        assert not ("properties" in schema and "additionalProperties" in schema), path
        assert ("items" in schema) == (schema.get("type") == "array"), path
        assert set(schema.get("required", ())) <= schema.get("properties", {}).keys(), path


def test_lists_say_how_server_side_apply_merges_them() -> None:
    for path, schema in ALL:
        if schema.get("type") != "array":
            continue
        assert schema["x-kubernetes-list-type"] in {"atomic", "map"}, path
        items = schema["items"]
        for key in schema.get("x-kubernetes-list-map-keys", ()):
            assert items["properties"][key]["type"] == "string", path
            assert key in items.get("required", ()) or "default" in items["properties"][key], path


def test_everything_is_bounded_so_that_rules_have_a_cost() -> None:
    for path, schema in SPECS:
        match schema.get("type", "string"):
            case "array":
                assert "maxItems" in schema, path
            case "string":
                assert "maxLength" in schema or "enum" in schema, path
            case "object" if "additionalProperties" in schema:
                assert "maxProperties" in schema, path


def test_defaults_obey_the_schema_and_its_rules_as_they_are_written() -> None:
    """API servers check a default before they fill in the defaults of its fields."""
    for path, schema in SPECS:
        if "default" in schema:
            verdict = structural.judge(_without_defaults(schema), schema["default"])
            assert verdict.accepted, (path, verdict)


def _without_defaults(schema: Json) -> Json:
    plain = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in plain:
        plain["properties"] = {name: _without_defaults(field) for name, field in plain["properties"].items()}
    return plain


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_field_is_described(kind: str) -> None:
    for path, schema in nodes(SCHEMAS[kind]):
        for name, field in schema.get("properties", {}).items():
            if not path.startswith(".metadata") and name != "metadata":
                assert field.get("description", "").endswith("."), f"{path}.{name}"


@pytest.mark.parametrize("kind", SCHEMAS)
def test_api_servers_write_no_default_into_a_status(kind: str) -> None:
    assert [node.path for node in nodes(SCHEMAS[kind]["properties"]["status"]) if "default" in node.schema] == []


@pytest.mark.parametrize("kind", SCHEMAS)
def test_conditions_are_kubernetes_own(kind: str) -> None:
    conditions = SCHEMAS[kind]["properties"]["status"]["properties"]["conditions"]

    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert conditions["items"]["required"] == ["type", "status", "reason", "message", "lastTransitionTime"]


def test_names_are_what_people_type() -> None:
    definitions = [yaml.safe_load(text)["spec"] for text in crds().values()]

    assert [(spec["names"]["kind"], spec["names"]["shortNames"], spec["scope"]) for spec in definitions] == [
        ("AuditPolicy", ["auditpol"], "Namespaced"),
        ("AuditSink", ["auditsink"], "Namespaced"),
        ("AuditBackend", ["auditbackend"], "Cluster"),
    ]
    assert all(spec["names"]["categories"] == ["audit"] for spec in definitions)
    assert all(spec["versions"][0]["subresources"] == {"status": {}} for spec in definitions)


def test_the_reference_names_every_field_once_per_object() -> None:
    text = reference()
    anchors = {f"(#{line.split()[-1].lower()})" for line in text.splitlines() if line.startswith("#")}
    links = {f"(#{part.partition(')')[0]})" for part in text.split("(#")[1:]}

    assert links <= anchors
    for kind, schema in SCHEMAS.items():
        for path, part in nodes(schema["properties"]["spec"]):
            for name in part.get("properties", {}):
                assert f"| `{name}` |" in text, f"{kind}.spec{path}.{name}"
