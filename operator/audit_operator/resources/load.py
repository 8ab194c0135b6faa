"""Is this document a valid resource? One answer for the command line and the operator, in sentences."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from audit_operator.resources.auditbackend import AuditBackend
from audit_operator.resources.auditpolicy import AuditPolicy
from audit_operator.resources.auditsink import AuditSink
from audit_operator.resources.meta import API_VERSION, GROUP
from audit_operator.resources.sentences import Problem, guess, kind_of, one_of, problems_of, shown

__all__ = ["KINDS", "Problem", "Resource", "ResourceError", "is_resource", "load_resource", "to_document"]

Resource = AuditPolicy | AuditSink | AuditBackend

KINDS: Final = MappingProxyType({kind.__name__: kind for kind in (AuditPolicy, AuditSink, AuditBackend)})
"""Kind -> model."""


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
        raise ResourceError((Problem("", f"is {kind_of(document)}, not an object with apiVersion, kind and spec"),))
    model = _model(document)
    try:
        return model.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ResourceError(problems_of(model, error)) from None


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
        way_out = guess(kind, KINDS, one_of(KINDS))
        raise ResourceError((Problem("kind", f"is no kind of {GROUP}", shown(kind), way_out),))
    return model


def _wrong_version(version: object) -> Problem:
    if version is None:
        return Problem("apiVersion", "is required", way_out=f"write {API_VERSION}")
    if str(version).startswith("audit.k8s.io/"):
        way_out = "this is an API server's policy file; `audit-operator import` makes an AuditPolicy of it"
        return Problem("apiVersion", f"is not {API_VERSION}", shown(version), way_out)
    return Problem("apiVersion", "is not known", shown(version), f"write {API_VERSION}")
