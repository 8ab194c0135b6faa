"""Is this document a valid resource? One answer for the command line and the operator, in sentences."""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from audit_operator.resources.auditbackend import AuditBackend
from audit_operator.resources.auditpolicy import AuditPolicy
from audit_operator.resources.auditsink import AuditSink
from audit_operator.resources.meta import API_VERSION, GRAMMARS, GROUP, SecretKeyReference

Resource = AuditPolicy | AuditSink | AuditBackend

KINDS: Final = MappingProxyType({kind.__name__: kind for kind in (AuditPolicy, AuditSink, AuditBackend)})
"""Kind -> model."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at ``path`` (``spec.rules[3].level``), with the value if it helps, and what to do instead."""

    path: str
    message: str
    value: str = ""
    way_out: str = ""

    def __str__(self) -> str:
        value = f" {self.value}" if self.value else ""
        way_out = f"; {self.way_out}" if self.way_out else ""
        return f"{self.path or 'document'}:{value} {self.message}{way_out}"


class ResourceError(ValueError):
    """A document is no valid resource; ``problems`` says why, all at once."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def is_resource(document: object) -> bool:
    """Whether the document claims to be one of ours, valid or not."""
    return isinstance(document, Mapping) and str(document.get("apiVersion", "")).split("/")[0] == GROUP


def load_resource(document: object) -> Resource:
    """The resource that a parsed YAML or JSON document stands for. Raises ResourceError with every problem."""
    if not isinstance(document, Mapping):
        raise ResourceError((Problem("", f"is {_kind_of(document)}, not an object with apiVersion, kind and spec"),))
    model = _model(document)
    try:
        return model.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        problems = [problem for entry in error.errors(include_url=False) for problem in _problems(model, entry)]
        raise ResourceError(tuple(problems)) from None


def to_document(resource: Resource) -> dict[str, Any]:
    """The resource as it is written: camelCase, without what is only a default; ``load_resource`` reads it back."""
    document = resource.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    return {"apiVersion": resource.api_version, "kind": resource.kind} | document


def _model(document: Mapping[Any, Any]) -> type[Resource]:
    version, kind = document.get("apiVersion"), document.get("kind")
    if version != API_VERSION:
        raise ResourceError((_wrong_version(version),))
    model = KINDS.get(str(kind))
    if model is None:
        way_out = _guess(kind, KINDS, f"write one of {', '.join(KINDS)}")
        raise ResourceError((Problem("kind", f"is no kind of {GROUP}", _show(kind), way_out),))
    return model


def _wrong_version(version: object) -> Problem:
    if version is None:
        return Problem("apiVersion", "is required", way_out=f"write {API_VERSION}")
    if str(version).startswith("audit.k8s.io/"):
        way_out = "this is an API server's policy file; `audit-operator import` makes an AuditPolicy of it"
        return Problem("apiVersion", f"is not {API_VERSION}", _show(version), way_out)
    return Problem("apiVersion", "is not known", _show(version), f"write {API_VERSION}")


# --- pydantic's errors as sentences ----------------------------------------------------------------------------------

_VERIFIED: Final = "trust the server's own certificate with caBundle; for another name in it use serverName"
_ELSEWHERE: Final = MappingProxyType(
    {
        "insecureSkipVerify": _VERIFIED,
        "insecureSkipTLSVerify": _VERIFIED,
        "password": "credentials are Secrets; refer to one with auth",
        "token": "credentials are Secrets; refer to one with auth",
        "ca": "write caBundle, caSecret or caConfigMap",
    }
)
"""Fields that people know from elsewhere -> how it is said here."""


def _problems(model: type[BaseModel], entry: Mapping[str, Any]) -> Iterator[Problem]:
    path, kind, context = _path(entry["loc"]), entry["type"], entry.get("ctx", {})
    if kind == "rule":
        for violation in context["violations"]:
            yield Problem(path + (violation.field if path else violation.field.lstrip(".")), violation.message)
        return
    value = entry["input"]
    if kind == "missing":
        yield Problem(path, "is required", way_out=_described(model, entry["loc"]))
    elif kind == "extra_forbidden":
        yield _unknown_field(model, entry["loc"])
    elif kind == "invalid_key":
        yield Problem(path, "is not a string; field names are, so quote it", _show(entry["loc"][-1]))
    elif kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"]]
        choice = f"write one of {', '.join(name or repr(name) for name in known)}"
        yield Problem(path, "is not known", _show(value), _guess(value, known, choice))
    elif kind == "string_pattern_mismatch":
        yield Problem(path, f"must be {GRAMMARS[context['pattern']]}", _show(value))
    elif kind in {"model_type", "dict_type"}:
        # Never the value: a password in the place of a reference to it looks like this.
        yield Problem(path, f"is {_kind_of(value)}, but must be an object", way_out=_shape(model, entry["loc"]))
    else:
        yield Problem(path, _sentence(kind, context, entry["msg"]), _show(value))


def _sentence(kind: str, context: Mapping[str, Any], message: str) -> str:
    match kind:
        case "string_type":
            return "must be a string; put it in quotes"
        case "int_type":
            return "must be a whole number, without quotes"
        case "bool_type":
            return "must be true or false, without quotes"
        case "tuple_type":
            return "must be a list"
        case "string_too_short":
            return "must not be empty" if context["min_length"] == 1 else f"is shorter than {context['min_length']}"
        case "string_too_long":
            return f"is longer than {context['max_length']} characters"
        case "too_short":
            return f"needs at least {context['min_length']} entry"
        case "too_long":
            return f"has {context['actual_length'] or 'more'} entries; at most {context['max_length']} are possible"
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case "less_than_equal":
            return f"must be at most {context['le']}"
        case _:
            return message.removeprefix("Value error, ")


def _path(loc: tuple[str | int, ...]) -> str:
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def _unknown_field(model: type[BaseModel], loc: tuple[str | int, ...]) -> Problem:
    name = str(loc[-1])
    parent = _at(model, loc[:-1])
    known = [str(field.alias) for field in parent.model_fields.values()] if parent else []
    listed = f"known are {', '.join(known)}"
    way_out = _ELSEWHERE.get(name) or _guess(name, known, listed)
    return Problem(_path(loc), "is no field", way_out=way_out)


def _described(model: type[BaseModel], loc: tuple[str | int, ...]) -> str:
    parent = _at(model, loc[:-1])
    for field in parent.model_fields.values() if parent else ():
        if field.alias == loc[-1] and field.description:
            return f"it says: {field.description[0].lower()}{field.description[1:].rstrip('.')}"
    return ""


def _shape(model: type[BaseModel], loc: tuple[str | int, ...]) -> str:
    """What the object at loc looks like: its required fields, else all of them."""
    expected = _at(model, loc)
    if expected is None:
        return "write {name: value}"
    fields = expected.model_fields.values()
    names = [str(field.alias) for field in fields if field.is_required()] or [str(field.alias) for field in fields]
    secret = "credentials are Secrets: " if expected is SecretKeyReference else ""
    return f"{secret}write {{{', '.join(f'{name}: …' for name in names[:4])}}}"


def _at(model: type[BaseModel], loc: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The model of the object at loc, None where there is none."""
    current: type[BaseModel] | None = model
    for part in loc:
        if current is None or isinstance(part, int):
            continue
        field = next((field for field in current.model_fields.values() if field.alias == part), None)
        current = _model_in(field.annotation) if field else None
    return current


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)


def _guess(value: object, known: Any, otherwise: str) -> str:
    """Did you mean: a known word that is spelled nearly like the value."""
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(value).lower(), folded, n=1, cutoff=0.7)
    return f"did you mean {folded[close[0]]}?" if close else otherwise


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "empty"
        case Mapping():
            return "an object"
        case list() | tuple():
            return "a list"
        case str():
            return "text"
        case _:
            return "a single value"


def _show(value: object) -> str:
    """The value, short enough for a line and without what could be a password in it."""
    if isinstance(value, Mapping | list | tuple):
        return _kind_of(value)
    text = re.sub(r"(://)?[^/]*:[^/]*@", r"\1***@", str(value))
    text = re.sub(r"(://[^?]*\?).*", r"\1***", text, flags=re.DOTALL)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return repr(text) if isinstance(value, str) else text
