"""The CustomResourceDefinitions and the reference page: texts that follow from the models alone."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

from pydantic.json_schema import models_json_schema

from audit_operator.resources.auditbackend import AuditBackend
from audit_operator.resources.auditpolicy import AuditPolicy
from audit_operator.resources.auditsink import SINK_TYPES, AuditSink, BatchLimits
from audit_operator.resources.load import Resource
from audit_operator.resources.meta import GROUP, VERSION, Json
from audit_operator.resources.yamlwriter import write

# --- the three kinds -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of `kubectl get`; the ones with ``wide`` only with `-o wide`."""

    name: str
    type: Literal["string", "integer", "date"]
    path: str
    description: str
    wide: bool = False

    def wire(self) -> Json:
        column = {"name": self.name, "type": self.type, "description": self.description, "jsonPath": self.path}
        return column | ({"priority": 1} if self.wide else {})


@dataclass(frozen=True, slots=True)
class _Kind:
    model: type[Resource]
    plural: str
    short: str
    scope: Literal["Namespaced", "Cluster"]
    columns: tuple[_Column, ...]


def _ready(field: str) -> str:
    return f'.status.conditions[?(@.type=="Ready")].{field}'


_READY: Final = _Column("Ready", "string", _ready("status"), "Whether it does what it says.")
_REASON: Final = _Column("Reason", "string", _ready("reason"), "Why it is ready, or is not.")
_MESSAGE: Final = _Column("Message", "string", _ready("message"), "What to do about it.", wide=True)
_AGE: Final = _Column("Age", "date", ".metadata.creationTimestamp", "Time since it was created.")
_HASH: Final = _Column("Hash", "string", ".status.hash", "Hash of what is in force.", wide=True)

_KINDS: Final = (
    _Kind(
        AuditPolicy,
        plural="auditpolicies",
        short="auditpol",
        scope="Namespaced",
        columns=(
            _Column("Preset", "string", ".spec.preset", "Base policy whose rules come last."),
            _Column("Rules", "integer", ".status.rules", "Rules in force, the preset's included."),
            _Column("Warnings", "integer", ".status.warnings", "Findings of audit-operator lint."),
            _READY,
            _REASON,
            _AGE,
            _Column("Unreachable", "integer", ".status.unreachableRules", "Rules that never match.", wide=True),
            _HASH,
            _MESSAGE,
        ),
    ),
    _Kind(
        AuditSink,
        plural="auditsinks",
        short="auditsink",
        scope="Namespaced",
        columns=(
            _Column("Type", "string", ".status.type", "The sink type."),
            _Column("Policies", "integer", ".status.policies", "AuditPolicies that deliver to it."),
            _READY,
            _REASON,
            _AGE,
            _HASH,
            _MESSAGE,
        ),
    ),
    _Kind(
        AuditBackend,
        plural="auditbackends",
        short="auditbackend",
        scope="Cluster",
        columns=(
            _Column("Cluster", "string", ".spec.clusterName", "Name of this cluster in sinks."),
            _Column("Policies", "integer", ".status.policies", "AuditPolicies in force."),
            _Column("Sinks", "integer", ".status.sinks", "AuditSinks in force."),
            _READY,
            _REASON,
            _AGE,
            _Column("Server Rules", "integer", ".status.serverRules", "Rules of the API servers' policy.", wide=True),
            _Column("Server Policy", "string", ".status.serverPolicyHash", "Hash of it.", wide=True),
            _MESSAGE,
        ),
    ),
)

_GENERATED: Final = "Generated from operator/audit_operator/resources by `make generate`; do not edit."


def crds() -> dict[str, str]:
    """The CustomResourceDefinitions: file name -> YAML text, one after the other a stream of documents.

    Each begins with ``---``: `helm show crds` of Helm 3 puts nothing between them.
    """
    return {f"{GROUP}_{kind.plural}.yaml": f"---\n{write(_definition(kind), header=_GENERATED)}" for kind in _KINDS}


def schemas() -> dict[str, Json]:
    """Kind -> structural schema (openAPIV3Schema), which editors and `kubeconform` take too."""
    return {kind.model.__name__: _root(kind.model) for kind in _KINDS}


def _definition(kind: _Kind) -> Json:
    name = kind.model.__name__
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [column.wire() for column in kind.columns],
        "schema": {"openAPIV3Schema": _root(kind.model)},
        "subresources": {"status": {}},
    }
    spec = {
        "group": GROUP,
        "names": {
            "kind": name,
            "listKind": f"{name}List",
            "plural": kind.plural,
            "singular": name.lower(),
            "shortNames": [kind.short],
            "categories": ["audit"],
        },
        "scope": kind.scope,
        "versions": [version],
    }
    # API servers fill in defaults, so a CRD in a cluster is told from another by its hash: the chart's check.yaml does.
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}", "annotations": {f"{GROUP}/hash": digest}},
        "spec": spec,
    }


# --- structural schemas ----------------------------------------------------------------------------------------------
# https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema


@cache
def _models() -> tuple[dict[str, Json], dict[str, Json]]:
    """JSON schemas as pydantic makes them: of the three kinds, and of every model by name."""
    references, document = models_json_schema([(kind.model, "validation") for kind in _KINDS])
    models: dict[str, Json] = document["$defs"]
    return {model.__name__: models[_target(schema)] for (model, _), schema in references.items()}, models


def _target(reference: Mapping[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _root(model: type[Resource]) -> Json:
    kinds, _ = _models()
    described = kinds[model.__name__]
    fields = described["properties"]
    schema: Json = {
        "description": _one_line(described["description"]),
        "type": "object",
        "properties": {
            "apiVersion": {"description": "Version of this schema.", "type": "string"},
            "kind": {"description": "Kind of this resource.", "type": "string"},
            # API servers bring the schema of metadata and take nothing here but what is about the name.
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": _structural(fields["spec"]),
            # A default in a status would be written by the API server where the operator has not measured anything.
            "status": _without_defaults(_structural(fields["status"])),
        },
        "required": ["spec"],
    }
    return schema | {key: value for key, value in described.items() if key.startswith("x-kubernetes-")}


_KEPT: Final = (
    "description",
    "type",
    "format",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "maxProperties",
    "required",
)
"""What is the same in a JSON schema and in a structural schema. `title` and `examples` are no words of the latter, and
`propertyNames` and `additionalProperties: false` are forbidden (API servers prune or refuse unknown fields anyway)."""


def _structural(schema: Json, *, is_key: bool = False) -> Json:
    """The structural schema: references inlined, null dropped (API servers prune it), defaults that are safe.

    ``is_key``: of a list's map key, which needs its default even if that is the empty string.
    """
    schema = _resolved(schema)
    result: Json = {key: schema[key] for key in _KEPT if key in schema}
    if "description" in result:
        result["description"] = _one_line(result["description"])
    if "const" in schema:
        result |= {"type": "string", "enum": [schema["const"]]}
    if "anyOf" in schema:  # the one union a structural schema knows: x-kubernetes-int-or-string
        result["anyOf"] = schema["anyOf"]
    if "items" in schema:
        keys = schema.get("x-kubernetes-list-map-keys", ())
        result["items"] = _structural(schema["items"] | {"keys": keys})
        result["x-kubernetes-list-type"] = "atomic"
    if "properties" in schema:
        keys = schema.get("keys", ())
        result["properties"] = {
            name: _structural(field, is_key=name in keys) for name, field in schema["properties"].items()
        }
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = _structural(schema["additionalProperties"])
    result |= {key: value for key, value in schema.items() if key.startswith("x-kubernetes-")}
    if "default" in schema and (is_key or _worth_writing(schema["default"], schema, result)):
        result["default"] = _written(result) if isinstance(schema["default"], dict) else schema["default"]
    return result


def _resolved(schema: Json) -> Json:
    """The schema with its reference followed and its null taken away; what stands beside them wins."""
    _, models = _models()
    if "$ref" in schema:
        return _resolved(models[_target(schema)] | {key: value for key, value in schema.items() if key != "$ref"})
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        return _resolved(choices[0] | {key: value for key, value in schema.items() if key != "anyOf"})
    return schema


def _written(structural: Json) -> Json:
    """The default of an object whose fields have defaults: {}, unless it has rules of its own.

    API servers hold a default to the rules as it is written, before they fill in the defaults of its fields.
    """
    if "x-kubernetes-validations" not in structural:
        return {}
    return {name: field["default"] for name, field in structural["properties"].items() if "default" in field}


def _worth_writing(default: Any, schema: Json, structural: Json) -> bool:
    """Whether the API server should write this default into objects.

    Not what is empty: it would be noise in every object. Of an object only what the defaults of its own fields make of
    {}: the default of a union, say, would stay behind when a user chooses another member, and make two.
    """
    if not isinstance(default, dict):
        return default not in (None, "", [])
    return default == _from_nothing(schema) and any("default" in field for field in structural["properties"].values())


def _from_nothing(schema: Json) -> Json:
    """What the models make of {}."""
    fields: Json = schema.get("properties", {})
    return {name: field.get("default", {}) for name, field in fields.items()}


def _without_defaults(schema: Json) -> Json:
    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items() if key != "default"}
        return [without(item) for item in value] if isinstance(value, list) else value

    result: Json = without(schema)
    return result


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


# --- the reference page ----------------------------------------------------------------------------------------------


def reference() -> str:
    """Every field of every kind as Markdown: docs/reference.md."""
    kinds, models = _models()
    pages = {name: list(dict.fromkeys(_reachable(kind))) for name, kind in kinds.items()}
    seen = [name for page in pages.values() for name in page]
    common = sorted({name for name in seen if seen.count(name) > 1})
    lines = [
        f"<!-- {_GENERATED} -->",
        "# Reference",
        "",
        f"The resources of `{GROUP}/{VERSION}`. A field without a default is optional unless it says *required*.",
        "",
        *(f"* [{name}](#{name.lower()})" for name in kinds),
        "* [Common](#common)",
    ]
    for kind in _KINDS:
        name = kind.model.__name__
        scope = "in a namespace" if kind.scope == "Namespaced" else "in the cluster"
        lines += ["", f"## {name}", "", _paragraphs(kinds[name]["description"]), ""]
        lines += [f"Lives {scope}. Short name `{kind.short}`, category `audit`: `kubectl get {kind.short}`."]
        lines += _rules(kinds[name])
        for part in pages[name]:
            if part not in common:
                lines += _section(part, models[part])
    lines += ["", "## Common"]
    for part in common:
        lines += _section(part, models[part])
    return "\n".join(lines) + "\n"


def _reachable(schema: Json) -> Iterator[str]:
    """Names of the models below a schema, in the order of its fields; metadata is Kubernetes' own."""
    _, models = _models()
    for name, field in schema.get("properties", {}).items():
        for target in _targets(field) if name != "metadata" else ():
            yield target
            yield from _reachable(models[target])


def _targets(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield _target(schema)
        for key in ("anyOf", "items", "additionalProperties"):
            yield from _targets(schema.get(key))
    elif isinstance(schema, list):
        for item in schema:
            yield from _targets(item)


def _section(name: str, schema: Json) -> list[str]:
    lines = ["", f"### {name}", "", _paragraphs(schema["description"])]
    if name in _BATCHES:
        lines += ["", _batches(_BATCHES[name])]
    if fields := schema.get("properties"):
        lines += ["", "| field | type | default | |", "|---|---|---|---|"]
        required = schema.get("required", ())
        lines += [_row(field, value, required=field in required) for field, value in fields.items()]
    return lines + _rules(schema)


_BATCHES: Final = {kind.__name__: kind.batch_limits for kind in SINK_TYPES.values()}


def _batches(limits: BatchLimits) -> str:
    most = f"{limits.max_events:,} events, {limits.max_bytes:,} bytes or {limits.max_age:g} s"
    return f"Batches of {most}, if spec.batch does not say otherwise."


def _row(name: str, schema: Json, *, required: bool) -> str:
    resolved = _resolved(schema)
    default = "*required*" if required else _default(resolved)
    said = [_one_line(resolved.get("description", "")), *_bounds(resolved)]
    if examples := schema.get("examples"):
        said.append(f"Example: {', '.join(f'`{_flow(example)}`' for example in examples)}.")
    text = " ".join(filter(None, said)).replace("|", "\\|")
    return f"| `{name}` | {_type(schema)} | {default} | {text} |"


def _default(schema: Json) -> str:
    """The default; of an object only what the defaults of its fields do not say."""
    default = schema.get("default")
    if isinstance(default, dict):
        default = {} if default == _from_nothing(schema) else _not_empty(default)
    return "" if default in (None, "", [], {}) else f"`{_flow(default)}`"


def _rules(schema: Json) -> list[str]:
    rules = schema.get("x-kubernetes-validations", ())
    return ["", *(f"* {rule['message']}" for rule in rules)] if rules else []


def _type(schema: Json) -> str:
    targets = tuple(_targets({key: schema[key] for key in ("$ref", "anyOf") if key in schema}))
    if targets:
        return f"[{targets[0]}](#{targets[0].lower()})"
    schema = _resolved(schema)
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "enum" in schema:
        return " \\| ".join(f"`{value}`" if value != "" else '`""`' for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "items" in schema:
        return f"list of {_type(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"map of {_type(schema['additionalProperties'])}"
    return str(schema["type"])


def _bounds(schema: Json) -> Iterator[str]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        yield f"{low} to {high}."
    elif low is not None:
        yield f"At least {low}."
    if "maxItems" in schema:
        least = f"{schema['minItems']} to " if schema.get("minItems") else "At most "
        yield f"{least}{schema['maxItems']} entries."


def _not_empty(value: Json) -> Json:
    return {
        key: _not_empty(item) if isinstance(item, dict) else item
        for key, item in value.items()
        if item not in (None, "", [])
    }


def _flow(value: Any) -> str:
    """A value as one writes it in YAML, in one line."""
    match value:
        case bool():
            return str(value).lower()
        case list():
            return f"[{', '.join(map(_flow, value))}]"
        case dict():
            return f"{{{', '.join(f'{key}: {_flow(item)}' for key, item in value.items())}}}"
        case _:
            return str(value)


def _paragraphs(text: str) -> str:
    return "\n\n".join(_one_line(paragraph) for paragraph in text.split("\n\n"))
