"""What an API server does with an object of a CRD: prune nulls, write defaults, check the schema, evaluate CEL.

Independent of the models on purpose: it reads the generated schemas only, and evaluates their rules with cel-cpp.
"""

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from cel_expr_python import cel
from jsonschema import Draft202012Validator

Json = dict[str, Any]


class Refusal(NamedTuple):
    """One error: the field and, of a rule, its message; of a schema what jsonschema says."""

    path: str
    message: str


class Verdict(NamedTuple):
    schema: tuple[Refusal, ...]
    rules: tuple[Refusal, ...]

    @property
    def accepted(self) -> bool:
        return not self.schema and not self.rules


def judge(schema: Json, document: Json) -> Verdict:
    """Errors of the schema; rules are looked at only if there are none, as an API server does."""
    found = defaulted(schema, document)
    problems = tuple(_schema_problems(schema, found))
    return Verdict(problems, () if problems else tuple(_broken_rules(schema, found, "")))


def defaulted(schema: Json, document: Json) -> Json:
    """The document without nulls and with defaults, as it is stored."""
    found = copy.deepcopy(document)
    _default(schema, found)
    return found


def _default(schema: Json, value: Any) -> None:
    if isinstance(value, dict):
        fields = schema.get("properties", {})
        for name in [name for name, item in value.items() if item is None]:
            del value[name]
        for name, field in fields.items():
            if name not in value and "default" in field:
                value[name] = copy.deepcopy(field["default"])
            if name in value:
                _default(field, value[name])
        for name in value.keys() - fields.keys():
            _default(schema.get("additionalProperties", {}), value[name])
    elif isinstance(value, list):
        for item in value:
            _default(schema.get("items", {}), item)


def _schema_problems(schema: Json, document: Json) -> Iterator[Refusal]:
    for error in Draft202012Validator(_strict(schema)).iter_errors(document):
        yield Refusal(_join(error.absolute_path), error.message)
    yield from _duplicates(schema, document, "")


def _strict(schema: Json) -> Json:
    """The schema with unknown fields refused, as fieldValidation=Strict does; metadata is Kubernetes' own."""
    found = dict(schema)
    if "properties" in found:
        found["properties"] = {
            name: field if name == "metadata" else _strict(field) for name, field in found["properties"].items()
        }
        found["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(found.get(key), dict):
            found[key] = _strict(found[key])
    return found


def _duplicates(schema: Json, value: Any, path: str) -> Iterator[Refusal]:
    if isinstance(value, dict):
        for name, item in value.items():
            field = schema.get("properties", {}).get(name) or schema.get("additionalProperties") or {}
            yield from _duplicates(field, item, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        keys = schema.get("x-kubernetes-list-map-keys", ())
        seen: list[Any] = []
        for index, item in enumerate(value):
            yield from _duplicates(schema.get("items", {}), item, f"{path}[{index}]")
            if keys and isinstance(item, dict):
                key = [item.get(name) for name in keys]
                if key in seen:
                    yield Refusal(f"{path}[{index}]", "duplicate")
                seen.append(key)


def _broken_rules(schema: Json, value: Any, path: str) -> Iterator[Refusal]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if not holds(rule["rule"], value):
            yield Refusal((path + rule.get("fieldPath", "")).lstrip("."), rule["message"])
    if isinstance(value, dict):
        for name, item in value.items():
            field = schema.get("properties", {}).get(name) or schema.get("additionalProperties") or {}
            yield from _broken_rules(field, item, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _broken_rules(schema.get("items", {}), item, f"{path}[{index}]")


def holds(rule: str, value: Any) -> bool:
    """Whether the rule evaluates to true; an error while evaluating it refuses the object, as in an API server."""
    return _compiled(rule).eval(data={"self": value}).value() is True


@cache
def _compiled(rule: str) -> cel.Expression:
    return cel.NewEnv(variables={"self": cel.Type.DYN}).compile(rule)


def _join(path: Any) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
