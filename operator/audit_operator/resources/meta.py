"""What every resource has in common: the base model, bounded strings and lists, Kubernetes' little types, CEL rules.

A rule is declared once, here or beside the model it guards: as CEL for the API server and as a Python predicate for
everything else (a CEL runtime takes longer to import than `audit-operator lint` may run). Tests hold both equal.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

GROUP: Final = "audit-operator.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = "audit-operator.dev/v1alpha1"

Json = dict[str, Any]


class Violation(NamedTuple):
    """A broken rule: the field it points at, relative to where the rule stands (``.resources`` or empty), and why."""

    field: str
    message: str


@dataclass(frozen=True, slots=True)
class CelRule:
    """One entry of ``x-kubernetes-validations`` and its equal in Python.

    ``rule`` is CEL as the API server evaluates it on the wire form, after defaulting; ``holds`` is the same on the
    validated value. ``message`` is for the person who wrote the resource: what is wrong and what to write instead.
    ``field`` is the JSON path, below where the rule stands, that the error points at. Only CEL of Kubernetes 1.28.
    ``reason`` FieldValueForbidden keeps an API server from repeating the value, which may be a secret.
    """

    rule: str
    message: str
    holds: Callable[[Any], bool]
    field: str = ""
    reason: Literal["FieldValueInvalid", "FieldValueRequired", "FieldValueForbidden"] = "FieldValueInvalid"

    def wire(self) -> Json:
        """The rule as a CRD spells it."""
        entry = {"rule": self.rule, "message": self.message, "reason": self.reason}
        return entry | ({"fieldPath": self.field} if self.field else {})

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: Any) -> Any:
            enforce((self,), value)
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler(schema)
        rules = described.get("x-kubernetes-validations", [])
        return described | {"x-kubernetes-validations": [*rules, self.wire()]}


def enforce(rules: tuple[CelRule, ...], value: Any) -> None:
    """Raise one PydanticCustomError of type ``rule`` that carries every Violation of ``rules`` by ``value``."""
    violations = tuple(Violation(rule.field, rule.message) for rule in rules if not rule.holds(value))
    if violations:
        text = "; ".join(violation.message for violation in violations)
        raise PydanticCustomError("rule", "{text}", {"text": text, "violations": violations})


class ListMap:
    """Marks a list as a map for server-side apply: one owner per item, items told apart by ``keys``, no duplicates.

    Every key is required or has a default, as the API server demands.
    """

    def __init__(self, *keys: str) -> None:
        self.keys = keys

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def unique(items: tuple[BaseModel, ...]) -> tuple[BaseModel, ...]:
            seen: set[tuple[Any, ...]] = set()
            for index, item in enumerate(items):
                wire = item.model_dump(by_alias=True)
                key = tuple(wire[name] for name in self.keys)
                if key in seen:
                    said = ", ".join(f"{name} {value!r}" for name, value in zip(self.keys, key, strict=True) if value)
                    text = f"is a second entry with {said}; keep one of them"
                    violation = Violation(f"[{index}]", text)
                    raise PydanticCustomError("rule", "{text}", {"text": text, "violations": (violation,)})
                seen.add(key)
            return items

        return core_schema.no_info_after_validator_function(unique, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(self.keys)}


class Model(BaseModel):
    """Frozen, camelCase on the wire, unknown fields refused. ``rules`` are the CEL rules of this object.

    A null is what the API server makes of it: as if the field were not there.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        defer_build=True,  # a command that reads AuditPolicies only need not wait for AuditSinks
    )

    cel_rules: ClassVar[tuple[CelRule, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            return {key: value for key, value in data.items() if value is not None}
        return data

    @model_validator(mode="after")
    def _obey_rules(self) -> Self:
        enforce(type(self).all_rules(), self)
        return self

    @classmethod
    def all_rules(cls) -> tuple[CelRule, ...]:
        """The rules of this model, those of its bases first."""
        return tuple(rule for base in reversed(cls.__mro__) for rule in vars(base).get("cel_rules", ()))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler.resolve_ref_schema(handler(schema))
        if rules := cls.all_rules():
            described["x-kubernetes-validations"] = [rule.wire() for rule in rules]
        return described


def exactly_one_of(*names: str, what: str) -> CelRule:
    """Of the members ``names`` (as on the wire), exactly one is set. ``what`` names the choice: "a sink type"."""
    fields = tuple(_snake(name) for name in names)
    given = ", ".join(f"has(self.{name})" for name in names)
    return CelRule(
        rule=f"[{given}].exists_one(given, given)",
        message=f"exactly one {what} is needed: write one of {', '.join(names)}",
        holds=lambda value: sum(getattr(value, field) is not None for field in fields) == 1,
    )


def at_most_one_of(*names: str, what: str) -> CelRule:
    """Of the members ``names`` (as on the wire), none or one is set."""
    fields = tuple(_snake(name) for name in names)
    given = ", ".join(f"has(self.{name})" for name in names)
    return CelRule(
        rule=f"[{given}].filter(given, given).size() <= 1",
        message=f"at most one {what} is possible: keep one of {', '.join(names)}",
        holds=lambda value: sum(getattr(value, field) is not None for field in fields) <= 1,
    )


def walk(model: BaseModel, path: str) -> Iterator[tuple[str, object]]:
    """Every value below ``model`` that is not None, models included, with its path on the wire below ``path``."""
    fields = type(model).model_fields
    for attribute, field in fields.items():
        value = getattr(model, attribute)
        yield from _walk(value, f"{path}.{field.alias}")


def _walk(value: object, path: str) -> Iterator[tuple[str, object]]:
    if value is None:
        return
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _walk(item, f"{path}[{index}]")
        return
    yield path, value
    if isinstance(value, BaseModel):
        yield from walk(value, path)


def _snake(name: str) -> str:
    """clusterIP -> cluster_ip: the attribute of a wire name."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


GRAMMARS: Final[dict[str, str]] = {}
"""Pattern -> what it asks for, in words for an error message; ``grammar`` fills it."""


def grammar(pattern: str, words: str) -> str:
    """The pattern, remembered with what it asks for: "must be <words>"."""
    GRAMMARS[pattern] = words
    return pattern


# --- scalars ---------------------------------------------------------------------------------------------------------
# No coercion: the API server refuses "3" for 3 and "yes" for true, so we do. Patterns mean the same to Go and to Rust
# (pydantic's): no look-around, no \\s or \\d, which differ outside ASCII.

Boolean = Annotated[bool, Strict()]
Integer = Annotated[int, Strict()]
Port = Annotated[int, Strict(), Field(ge=1, le=65535)]

_LABEL: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"

Text = Annotated[str, Field(min_length=1, max_length=253)]
"""A short string without a grammar of ours."""

Name = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=grammar(
            rf"^{_LABEL}(\.{_LABEL})*$",
            "an object's name: lower-case letters, digits, - and ., with a letter or digit at both ends",
        ),
    ),
]
"""RFC 1123 subdomain: the name of an object."""

NamespaceName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=63,
        pattern=grammar(
            f"^{_LABEL}$", "a namespace: lower-case letters, digits and -, with a letter or digit at both ends"
        ),
    ),
]
"""RFC 1123 label: the name of a namespace."""

OptionalNamespace = Annotated[
    str,
    Field(
        max_length=63,
        pattern=grammar(
            f"^({_LABEL})?$",
            "a namespace: lower-case letters, digits and -, with a letter or digit at both ends; or empty",
        ),
    ),
]

DataKey = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=grammar("^[-._a-zA-Z0-9]+$", "a key of a Secret or ConfigMap: letters, digits, -, _ and ."),
    ),
]

LabelKey = Annotated[str, Field(min_length=1, max_length=317)]
LabelValue = Annotated[
    str,
    Field(
        max_length=63,
        pattern=grammar(
            "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$",
            "a label value: letters, digits, -, _ and ., with a letter or digit at both ends; or empty",
        ),
    ),
]
# A CRD cannot bound the keys of a map, so neither do we: both sides take the same documents.
Labels = Annotated[dict[str, LabelValue], Field(max_length=64)]
Annotations = Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=64)]
Constants = Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=32)]
"""Names and values that go with every event, whatever the sink calls them."""

Duration = Annotated[
    str,
    Field(
        max_length=32,
        pattern=grammar("^([0-9]{1,5}(h|m|s|ms)){1,4}$", "a duration such as 500ms, 10s, 1m30s or 24h"),
        examples=["10s", "1m30s"],
    ),
]
"""A Go duration in the subset that Gateway API settled on (GEP-2257): whole numbers of h, m, s, ms."""


def seconds(duration: str) -> float:
    """Seconds in a Duration: ``1m30s`` is 90.0."""
    parts = re.findall(r"([0-9]+)(ms|h|m|s)", duration)
    unit = {"h": "hours", "m": "minutes", "s": "seconds", "ms": "milliseconds"}
    return sum((timedelta(**{unit[name]: int(number)}) for number, name in parts), timedelta()).total_seconds()


_QUANTITY: Final = grammar(
    r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$", "a quantity such as 500m, 2, 256Mi or 10Gi"
)
_SUFFIXES: Final = {"": 1.0, "m": 1e-3} | {
    name + suffix: float(base**power)
    for suffix, base in (("", 1000), ("i", 1024))
    for power, name in enumerate(("k" if base == 1000 else "K", "M", "G", "T", "P", "E"), start=1)
}


def _plain_number(value: Any) -> Any:
    """``cpu: 1`` is as good as ``cpu: "1"``, as everywhere in Kubernetes."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Quantity = Annotated[
    str,
    Field(max_length=32, pattern=_QUANTITY),
    BeforeValidator(_plain_number),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "maxLength": 32,
            "pattern": _QUANTITY,
        }
    ),
]
"""A Kubernetes quantity: 500m, 10Gi, 4."""


def quantity(text: str) -> float:
    """The number a Quantity stands for: bytes of ``10Gi``, cores of ``500m``."""
    digits = text.rstrip("mkMGTPEKi")
    return float(digits) * _SUFFIXES[text[len(digits) :]]


_USERINFO: Final = "^[a-z]+://[^/?#]*@"
_NO_USERINFO: Final = CelRule(
    rule=f"!self.matches('{_USERINFO}')",
    message="holds a user or password; take them out of the URL and refer to a Secret with auth",
    holds=lambda url: re.search(_USERINFO, url) is None,
    reason="FieldValueForbidden",
)

_OCTET: Final = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4: Final = rf"{_OCTET}(\.{_OCTET}){{3}}"
_IPV6: Final = "[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]*"
_DNS: Final = "[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?"

_URL: Final = rf"^https?://([!-.0->@-~]*@)?({_DNS}|\[{_IPV6}\])(:[0-9]{{1,5}})?([/?#][!-~]*)?$"

Url = Annotated[
    str,
    Field(
        max_length=1024,
        pattern=grammar(_URL, "a URL such as https://siem.example.com:9200"),
        examples=["https://siem.example.com:9200"],
    ),
    _NO_USERINFO,
]
"""Where HTTP goes. The pattern lets a user name through: a broken pattern repeats the value, the rule does not."""

IpAddress = Annotated[str, Field(max_length=45, pattern=grammar(f"^({_IPV4}|{_IPV6})$", "an IP address"))]

Cidr = Annotated[
    str,
    Field(
        max_length=49,
        pattern=grammar(f"^({_IPV4}/[0-9]{{1,2}}|{_IPV6}/[0-9]{{1,3}})$", "a range of addresses such as 10.0.0.0/8"),
    ),
]

Host = Annotated[
    str, Field(min_length=1, max_length=253, pattern=grammar(f"^({_DNS}|{_IPV6})$", "a host name or an IP address"))
]

HostPort = Annotated[
    str,
    Field(
        max_length=260,
        pattern=grammar(rf"^({_DNS}|\[{_IPV6}\]):[0-9]{{1,5}}$", "host:port, with an IPv6 address in brackets"),
        examples=["kafka-0.kafka:9093"],
    ),
]


# --- objects ---------------------------------------------------------------------------------------------------------


ATOMIC: Final = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})
"""For objects whose fields make sense together only: server-side apply gives them one owner."""


class ObjectMeta(Model):
    """The part of Kubernetes' ObjectMeta that is read here; everything else in it is kept as it is."""

    model_config = ConfigDict(extra="allow")

    name: Name = Field(description="Name of the object.")
    namespace: OptionalNamespace = Field("", description="Namespace of the object.")
    uid: str = Field("", description="Identity over time, given by the API server.")
    generation: Integer = Field(0, ge=0, description="Number of the spec's version, given by the API server.")
    resource_version: str = Field("", description="Version of the object, given by the API server.")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations.")


class Condition(Model):
    """metav1.Condition: one observation of the resource, when it last changed, and what to do about it."""

    type: str = Field(
        max_length=316,
        pattern=grammar(
            rf"^({_LABEL}(\.{_LABEL})*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$", "a condition type in CamelCase"
        ),
        description="What was observed, in CamelCase.",
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(
        min_length=1,
        max_length=1024,
        pattern=grammar("^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", "a reason in CamelCase"),
        description="The cause in one CamelCase word, for programs.",
    )
    message: str = Field(max_length=32768, description="The cause and the way out in a sentence, for people.")
    last_transition_time: str = Field(
        description="When status last changed.", json_schema_extra={"format": "date-time"}
    )
    observed_generation: Integer | None = Field(
        None, ge=0, description="metadata.generation that this was observed of."
    )


Conditions = Annotated[tuple[Condition, ...], Field(max_length=32), ListMap("type")]


class Status(Model):
    """What every status holds."""

    observed_generation: Integer | None = Field(
        None, ge=0, description="metadata.generation that this status was made from."
    )
    conditions: Conditions = Field((), description="What was observed, one entry per type; Ready is the last word.")


class SecretKeyReference(Model):
    """One key of a Secret in the resource's own namespace."""

    model_config = ATOMIC

    name: Name = Field(description="Name of the Secret, in the same namespace as this resource.")
    key: DataKey = Field(description="Key in the Secret's data.")


class SelectorRequirement(Model):
    """One entry of a label selector's ``matchExpressions``."""

    key: LabelKey = Field(description="Label key.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(description="How key and values relate.")
    values: tuple[LabelValue, ...] = Field(
        (), max_length=64, description="Values for In and NotIn; none for Exists and DoesNotExist."
    )

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
            message="values belong to In and NotIn, which need at least one; Exists and DoesNotExist take none",
            holds=lambda self: (self.operator in {"In", "NotIn"}) == bool(self.values),
            field=".values",
        ),
    )


class LabelSelector(Model):
    """A Kubernetes label selector: every requirement must hold; empty selects everything."""

    model_config = ATOMIC

    match_labels: Labels = Field(default_factory=dict, description="Labels that must have exactly these values.")
    match_expressions: tuple[SelectorRequirement, ...] = Field(
        (), max_length=16, description="Requirements, all of which must hold."
    )


class NamespaceChoice(Model):
    """Which namespaces: by name or by label. Subclasses narrow ``from`` where there is no namespace to be the same."""

    from_: Literal["Same", "All", "Names", "Selector"] = Field(alias="from", description="How they are chosen.")
    names: tuple[NamespaceName, ...] = Field((), max_length=256, description="The namespaces, for `from: Names`.")
    selector: LabelSelector | None = Field(None, description="Labels of the namespaces, for `from: Selector`.")

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="(self.from == 'Names') == (has(self.names) && size(self.names) > 0)",
            message="names and `from: Names` belong together: write both or neither",
            holds=lambda self: (self.from_ == "Names") == bool(self.names),
            field=".names",
        ),
        CelRule(
            rule="(self.from == 'Selector') == has(self.selector)",
            message="selector and `from: Selector` belong together: write both or neither",
            holds=lambda self: (self.from_ == "Selector") == (self.selector is not None),
            field=".selector",
        ),
    )


class ResourceRequirements(Model):
    """CPU, memory and ephemeral storage of a container, as in a pod."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] = Field(
        default_factory=dict, description="What is reserved.", examples=[{"cpu": "100m", "memory": "256Mi"}]
    )
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] = Field(
        default_factory=dict, description="What is the most.", examples=[{"memory": "1Gi"}]
    )
