"""Would an API server start with this audit policy file, and what would it really use of it?

The way of a file: text → document (``yamltext``) → Go struct (decoding: types, unknown fields) → validation. The API
server decodes strictly first; on unknown or duplicate fields alone it logs a warning and uses the lenient result. Any
other error stops it. The facts are those of ``LoadPolicyFromBytes`` and ``ValidatePolicy`` in k8s.io/apiserver.
"""

import datetime as dt
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

from audit_operator.policy.kinds import Version
from audit_operator.policy.model import STAGES, GroupResources, Level, Policy, Rule, Stage
from audit_operator.policy.nodes import LIMITS, Field, Limits, Node, Path, TextError, node_of, path_text
from audit_operator.policy.yamltext import read

__all__ = [
    "API_VERSION",
    "GROUP_STAR_SINCE",
    "LEVELS",
    "NEWEST",
    "Fault",
    "Loaded",
    "PolicyError",
    "StrictProblem",
    "Version",
    "load_policy",
    "policy_of",
    "suggest",
]

NEWEST: Final[Version] = (1, 36)
"""The newest version this module knows; also the default everywhere."""

GROUP_STAR_SINCE: Final[Version] = (1, 36)
"""The first version that accepts ``*`` as a group. Nothing else differs from 1.28 to 1.36 in what is accepted."""

API_VERSION: Final = "audit.k8s.io/v1"
LEVELS: Final = ("None", "Metadata", "Request", "RequestResponse")


class Fault(msgspec.Struct, frozen=True):
    """One reason to refuse a file. ``message`` is the API server's; line and column are 0 if there is no such place."""

    path: str
    line: int
    column: int
    message: str


class StrictProblem(msgspec.Struct, frozen=True):
    """A field the API server ignores (``unknown``) or reads twice (``duplicate``, ``merged`` through ``<<``).

    It warns in its log and goes on. ``suggestion`` is the known field an unknown one was probably meant to be; ``line``
    is where the field stands that is ignored or replaced, ``winner_line`` where the value stands that counts.
    """

    kind: Literal["unknown", "duplicate", "merged"]
    path: str
    field: str
    line: int
    column: int
    suggestion: str = ""
    winner_line: int = 0


class Loaded(msgspec.Struct, frozen=True):
    """What an API server makes of a policy file.

    ``policy`` is what it would use, None if it refuses to start; ``error`` is then its message, ``faults`` hold the
    places. ``problems`` and ``extra_documents`` (line, column) are what it swallows. ``document``: the text's tree.
    """

    accepted: bool
    error: str = ""
    policy: Policy | None = None
    faults: tuple[Fault, ...] = ()
    problems: tuple[StrictProblem, ...] = ()
    extra_documents: tuple[tuple[int, int], ...] = ()
    document: Node | None = None

    def at(self, path: Path) -> tuple[int, int]:
        """Line and column of a path such as ``("rules", 3, "verbs", 0)``; 0, 0 without a text."""
        return self.document.at(path) if self.document is not None else (0, 0)


class PolicyError(ValueError):
    """A document that no API server would accept as an audit policy."""


def load_policy(text: str | bytes, *, server: Version = NEWEST, limits: Limits = LIMITS) -> Loaded:
    """What an API server of version ``server`` makes of the policy file ``text``. Raises nothing."""
    try:
        document = read(text, limits=limits)
    except TextError as error:
        return _unreadable(error)
    loaded = _load(document.root, json_order=document.is_json, server=server)
    return msgspec.structs.replace(loaded, extra_documents=document.extra, document=document.root)


def policy_of(document: Mapping[str, object], *, server: Version = NEWEST) -> Policy:
    """The Policy of an already parsed audit.k8s.io/v1 Policy. Raises PolicyError with the API server's message."""
    try:
        root = node_of(document)
    except TextError as error:
        raise PolicyError(error.message) from None
    loaded = _load(root, json_order=False, server=server)
    if loaded.policy is None:
        raise PolicyError(loaded.error)
    return loaded.policy


def _unreadable(error: TextError) -> Loaded:
    message = f"failed decoding: {error.server}" if error.server else f"not read: {error.message}"
    if error.server.startswith(("invalid character", "unexpected end")):
        message = f"failed decoding: couldn't get version/kind; json parse error: {error.server}"
    return Loaded(accepted=False, error=message, faults=(Fault("", error.line, error.column, message),))


def _load(root: Node, *, json_order: bool, server: Version) -> Loaded:
    wrong_kind = _wrong_kind(root, json_order=json_order)
    if wrong_kind is not None:
        return Loaded(accepted=False, error=wrong_kind.message, faults=(wrong_kind,))
    decoder = _Decoder(root, json_order=json_order)
    decoded = decoder.decoded()
    problems = tuple(sorted(decoder.problems, key=lambda problem: (problem.line, problem.column)))
    if decoder.faults:
        # Go reports the first only; a person wants them all.
        return Loaded(accepted=False, error=decoder.faults[0].message, faults=tuple(decoder.faults), problems=problems)
    faults = tuple(_validate(decoded, root, server))
    if not faults and not decoded["rules"]:
        faults = (_fault(root, ("rules",), "loaded illegal policy with 0 rules"),)
    if faults:
        messages = list(dict.fromkeys(fault.message for fault in faults))
        error = messages[0] if len(messages) == 1 else f"[{', '.join(messages)}]"
        return Loaded(accepted=False, error=error, faults=faults, problems=problems)
    return Loaded(accepted=True, policy=_policy(decoded), problems=problems)


# -- version and kind ------------------------------------------------------------------------------------------------

_KINDS_NOT_POLICY = frozenset({"Event", "EventList", "PolicyList"})
_SCHEME = 'in scheme "k8s.io/apiserver/pkg/audit/scheme.go:30"'


def _wrong_kind(root: Node, *, json_order: bool) -> Fault | None:
    """Why the document is no audit.k8s.io/v1 Policy, None if it says it is one.

    The API server looks for apiVersion and kind with Go's own JSON decoder, which ignores the case of keys.
    """
    content = root.content
    if content is not None and not isinstance(content, dict):
        target = r'struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }'
        return _no_kind(root, (), f"json: cannot unmarshal {_json_name(content)} into Go value of type {target}")
    found = {"apiVersion": "", "kind": ""}
    places: dict[str, Path] = {"apiVersion": ("apiVersion",), "kind": ("kind",)}
    for key, field in _entries(root, json_order=json_order):
        name = {"apiversion": "apiVersion", "kind": "kind"}.get(key.lower())
        value = field.node.content
        if name is None or value is None:
            continue
        if not isinstance(value, str):
            problem = f"json: cannot unmarshal {_json_name(value)} into Go struct field .{name} of type string"
            return _no_kind(root, (key,), problem)
        found[name], places[name] = value, (key,)
    version, kind = found["apiVersion"], found["kind"] or "Policy"
    if version.count("/") > 1:
        return _fault(root, places["apiVersion"], f"failed decoding: unexpected GroupVersion string: {version}")
    if version in {"", "audit.k8s.io/", "audit.k8s.io/__internal"} and kind == "Policy":
        message = "unknown group version field audit.k8s.io/__internal, Kind=Policy in policy"
        return _fault(root, places["apiVersion"], message)
    if version == API_VERSION and kind in _KINDS_NOT_POLICY:
        message = f"failed decoding: converting (v1.{kind}) to (audit.Policy): unknown conversion"
        return _fault(root, places["kind"], message)
    if version != API_VERSION or kind != "Policy":
        place = places["apiVersion"] if version != API_VERSION else places["kind"]
        message = f'failed decoding: no kind "{kind}" is registered for version "{version}" {_SCHEME}'
        return _fault(root, place, message)
    return None


def _no_kind(root: Node, path: Path, problem: str) -> Fault:
    return _fault(root, path, f"failed decoding: couldn't get version/kind; json parse error: {problem}")


def _entries(node: Node, *, json_order: bool) -> list[tuple[str, Field]]:
    """The keys and values of a mapping as Go's JSON decoder meets them.

    JSON text keeps its order and every value of a duplicate key; YAML text has become sorted, unique keys on its way.
    """
    if not isinstance(node.content, dict):
        return []
    if not json_order:
        return sorted(node.content.items())
    replaced = [(entry.key, Field(entry.line, entry.column, entry.node)) for entry in node.overridden]
    return sorted([*node.content.items(), *replaced], key=lambda entry: (entry[1].line, entry[1].column))


def _fault(root: Node, path: Path, message: str) -> Fault:
    line, column = root.at(path)
    return Fault(path_text(path), line, column, message)


def _json_name(content: object) -> str:
    """What Go calls a JSON value in an error."""
    if isinstance(content, bool):
        return "bool"
    if isinstance(content, str):
        return "string"
    if isinstance(content, list):
        return "array"
    return "object" if isinstance(content, dict) else "number"


# -- decoding --------------------------------------------------------------------------------------------------------


class _Type(msgspec.Struct, frozen=True):
    """A Go type: its name in messages, what it is made of, and for structs its fields."""

    name: str
    shape: Literal["string", "bool", "int", "time", "any", "list", "map", "struct"]
    element: "_Type | None" = None
    fields: dict[str, "_Type"] = {}
    pointer: bool = False

    def zero(self) -> Any:
        """What a value of this type is before anything is decoded into it."""
        if self.shape == "list":
            return []
        if self.shape in {"map", "struct"}:
            return {name: field.zero() for name, field in self.fields.items()}
        return "" if self.shape == "string" else None


def _list(element: _Type) -> _Type:
    return _Type(f"[]{element.name}", "list", element)


def _struct(name: str, /, **fields: _Type) -> _Type:
    return _Type(f"v1.{name}", "struct", fields=fields)


_STRING = _Type("string", "string")
_UID = _Type("types.UID", "string")
_BOOL = _Type("bool", "bool")
_BOOL_POINTER = _Type("bool", "bool", pointer=True)
_TIME = _Type("string", "time")
_STRINGS = _list(_STRING)
_STAGES = _list(_Type("v1.Stage", "string"))
_STRING_MAP = _Type("map[string]string", "map", _STRING)
_OBJECT_META = _struct(
    "ObjectMeta",
    name=_STRING,
    generateName=_STRING,
    namespace=_STRING,
    selfLink=_STRING,
    uid=_UID,
    resourceVersion=_STRING,
    generation=_Type("int64", "int"),
    creationTimestamp=_TIME,
    deletionTimestamp=_TIME,
    deletionGracePeriodSeconds=_Type("int64", "int", pointer=True),
    labels=_STRING_MAP,
    annotations=_STRING_MAP,
    ownerReferences=_list(
        _struct(
            "OwnerReference",
            apiVersion=_STRING,
            kind=_STRING,
            name=_STRING,
            uid=_UID,
            controller=_BOOL_POINTER,
            blockOwnerDeletion=_BOOL_POINTER,
        )
    ),
    finalizers=_STRINGS,
    managedFields=_list(
        _struct(
            "ManagedFieldsEntry",
            manager=_STRING,
            operation=_Type("v1.ManagedFieldsOperationType", "string"),
            apiVersion=_STRING,
            time=_TIME,
            fieldsType=_STRING,
            fieldsV1=_Type("v1.FieldsV1", "any"),
            subresource=_STRING,
        )
    ),
)
_POLICY = _struct(
    "Policy",
    kind=_STRING,
    apiVersion=_STRING,
    metadata=_OBJECT_META,
    rules=_list(
        _struct(
            "PolicyRule",
            level=_Type("v1.Level", "string"),
            users=_STRINGS,
            userGroups=_STRINGS,
            verbs=_STRINGS,
            resources=_list(_struct("GroupResources", group=_STRING, resources=_STRINGS, resourceNames=_STRINGS)),
            namespaces=_STRINGS,
            nonResourceURLs=_STRINGS,
            omitStages=_STAGES,
            omitManagedFields=_BOOL_POINTER,
        )
    ),
    omitStages=_STAGES,
    omitManagedFields=_BOOL,
)
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d?:\d\d:\d\d(?:[.,]\d+)?(?:Z|[-+]\d\d:\d\d)")


class _Decoder:
    """Go's JSON decoder over a node tree, case sensitive as sigs.k8s.io/json is. Collects faults and strict problems.

    In JSON text (``json_order``) the values of a duplicate key are decoded one into what the other left behind: the
    second ``rules`` inherits the users of the first.
    """

    def __init__(self, root: Node, *, json_order: bool) -> None:
        self.faults: list[Fault] = []
        self.problems: list[StrictProblem] = []
        self._root = root
        self._json_order = json_order

    def decoded(self) -> dict[str, Any]:
        """The policy with every field of its struct present."""
        self._find_duplicates()
        policy: dict[str, Any] = self._value(self._root, _POLICY, _POLICY.zero(), (), ("", ()))
        return policy

    def _value(self, node: Node, go_type: _Type, into: Any, path: Path, names: tuple[str, tuple[str, ...]]) -> Any:
        """``node`` decoded over ``into``. ``names``: the struct and the field names that Go's errors speak of."""
        content = node.content
        match go_type.shape:
            case _ if content is None:
                return go_type.zero() if go_type.pointer or go_type.shape in {"list", "map", "time", "any"} else into
            case "any":
                return content
            case "list" if isinstance(content, list):
                return self._items(content, go_type, into, path, names)
            case "map" | "struct" if isinstance(content, dict):
                return self._fields(node, go_type, into, path, names)
            case "string" if isinstance(content, str):
                return content
            case "bool" if isinstance(content, bool):
                return content
            case "int" if isinstance(content, int) and not isinstance(content, bool) and -(2**63) <= content < 2**63:
                return content
            case "time" if isinstance(content, str) and _is_time(content):
                return content
            case "time" if isinstance(content, str):
                self._fail(path, f"parsing time {_quoted(content)}: not of the form 2006-01-02T15:04:05Z")
                return into
        value = _json_name(content)
        if go_type.shape == "int" and value == "number":
            value = f"number {content}"
        struct, fields = names
        where = f"Go struct field {struct}.{'.'.join(fields)}"
        self._fail(path, f"json: cannot unmarshal {value} into {where} of type {go_type.name}")
        return into

    def _items(
        self, items: list[Node], go_type: _Type, into: Any, path: Path, names: tuple[str, tuple[str, ...]]
    ) -> list[Any]:
        element = go_type.element or _STRING
        decoded = []
        for index, item in enumerate(items):
            earlier = into[index] if index < len(into) else element.zero()
            decoded.append(self._value(item, element, earlier, (*path, index), names))
        return decoded

    def _fields(
        self, node: Node, go_type: _Type, into: Any, path: Path, names: tuple[str, tuple[str, ...]]
    ) -> dict[str, Any]:
        decoded = dict(into)
        for key, field in _entries(node, json_order=self._json_order):
            if go_type.element is not None:
                decoded[key] = self._value(field.node, go_type.element, go_type.element.zero(), (*path, key), names)
            elif (inner := go_type.fields.get(key)) is not None:
                inner_names = go_type.name.removeprefix("v1."), (*names[1], key)
                decoded[key] = self._value(field.node, inner, decoded[key], (*path, key), inner_names)
            else:
                self.problems.append(
                    StrictProblem(
                        kind="unknown",
                        path=path_text((*path, key)),
                        field=key,
                        line=field.line,
                        column=field.column,
                        suggestion=suggest(key, go_type.fields),
                    )
                )
        return decoded

    def _fail(self, path: Path, problem: str) -> None:
        self.faults.append(_fault(self._root, path, f"failed decoding: {problem}"))

    def _find_duplicates(self) -> None:
        for path, node in self._root.walk():
            for earlier in node.overridden:
                winner = node.content[earlier.key] if isinstance(node.content, dict) else None
                self.problems.append(
                    StrictProblem(
                        kind="merged" if earlier.merged else "duplicate",
                        path=path_text((*path, earlier.key)),
                        field=earlier.key,
                        line=earlier.line,
                        column=earlier.column,
                        winner_line=winner.line if winner else 0,
                    )
                )


def _is_time(text: str) -> bool:
    if not _RFC3339.fullmatch(text):
        return False
    try:
        dt.datetime.fromisoformat(text[:10])
    except ValueError:
        return False
    return True


_HABITS = {"urls": "nonResourceURLs", "groups": "userGroups", "stages": "omitStages", "names": "resourceNames"}


def suggest(word: str, known: Iterable[str]) -> str:
    """The known word that ``word`` was probably meant to be; empty if none is near."""
    import difflib  # noqa: PLC0415 - only a text with mistakes pays for it

    by_lower = {name.lower(): name for name in known}
    lower = word.lower()
    if lower in by_lower:
        return by_lower[lower]
    if (habit := _HABITS.get(lower, "")).lower() in by_lower:
        return habit
    near = difflib.get_close_matches(lower, by_lower, n=1, cutoff=0.7)
    return by_lower[near[0]] if near else ""


# -- validation ------------------------------------------------------------------------------------------------------

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NOT_SUBDOMAIN = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)


def _validate(decoded: Mapping[str, Any], root: Node, server: Version) -> Iterator[Fault]:
    """What ValidatePolicy finds, in its order."""
    yield from _validate_stages(decoded["omitStages"], root, ("omitStages",))
    for index, rule in enumerate(decoded["rules"]):
        path: Path = ("rules", index)
        yield from _validate_level(rule["level"], root, (*path, "level"))
        yield from _validate_urls(rule["nonResourceURLs"], root, (*path, "nonResourceURLs"))
        for position, group in enumerate(rule["resources"]):
            yield from _validate_group(group, root, (*path, "resources", position), server)
        yield from _validate_stages(rule["omitStages"], root, (*path, "omitStages"))
        if rule["nonResourceURLs"] and (rule["resources"] or rule["namespaces"]):
            problem = "rules cannot apply to both regular resources and non-resource URLs"
            yield _invalid(root, (*path, "nonResourceURLs"), rule["nonResourceURLs"], problem)


def _validate_level(level: str, root: Node, path: Path) -> Iterator[Fault]:
    if not level:
        yield _fault(root, path, f"{path_text(path)}: Required value")
    elif level not in LEVELS:
        supported = ", ".join(_quoted(known) for known in LEVELS)
        problem = f"{path_text(path)}: Unsupported value: {_quoted(level)}: supported values: {supported}"
        yield _fault(root, path, problem)


def _validate_urls(urls: list[str], root: Node, path: Path) -> Iterator[Fault]:
    for index, url in enumerate(urls):
        if url == "*":
            continue
        if not url.startswith("/"):
            yield _invalid(root, (*path, index), url, "non-resource URL rules must begin with a '/' character")
        if "*" in url[:-1]:
            problem = "non-resource URL wildcards '*' must be the final character of the rule"
            yield _invalid(root, (*path, index), url, problem)


def _validate_group(entry: Mapping[str, Any], root: Node, path: Path, server: Version) -> Iterator[Fault]:
    group = entry["group"]
    name = f"{path_text(path[:-1])}.group"  # the API server leaves the index out
    if group and not (group == "*" and server >= GROUP_STAR_SINCE):
        problems = ["must be no more than 253 characters"] if len(group.encode()) > 253 else []
        if not _SUBDOMAIN.fullmatch(group):
            problems.append(_NOT_SUBDOMAIN)
        if problems:
            yield _invalid(root, (*path, "group"), group, ",".join(problems), name=name)
    if entry["resourceNames"] and not entry["resources"]:
        problem = "using resourceNames requires at least one resource"
        name = f"{path_text(path[:-1])}.resourceNames"
        yield _invalid(root, (*path, "resourceNames"), entry["resourceNames"], problem, name=name)


def _validate_stages(stages: list[str], root: Node, path: Path) -> Iterator[Fault]:
    for index, stage in enumerate(stages):
        if stage not in STAGES:
            yield _invalid(root, (*path, index), stage, f"allowed stages are {','.join(STAGES)}")


def _invalid(root: Node, path: Path, value: object, problem: str, *, name: str = "") -> Fault:
    return _fault(root, path, f"{name or path_text(path)}: Invalid value: {_quoted(value)}: {problem}")


def _quoted(value: object) -> str:
    """As Go prints strings and lists of strings in errors."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# -- policy ----------------------------------------------------------------------------------------------------------


def _policy(decoded: Mapping[str, Any]) -> Policy:
    return Policy(
        rules=tuple(_rule(rule, f"rules[{index}]") for index, rule in enumerate(decoded["rules"])),
        omit_stages=frozenset(Stage(stage) for stage in decoded["omitStages"]),
        omit_managed_fields=bool(decoded["omitManagedFields"]),
    )


def _rule(rule: Mapping[str, Any], origin: str) -> Rule:
    return Rule(
        level=Level.parse(rule["level"]),
        users=tuple(rule["users"]),
        user_groups=tuple(rule["userGroups"]),
        verbs=tuple(rule["verbs"]),
        namespaces=tuple(rule["namespaces"]),
        resources=tuple(
            GroupResources(
                group=entry["group"],
                resources=tuple(entry["resources"]),
                resource_names=tuple(entry["resourceNames"]),
            )
            for entry in rule["resources"]
        ),
        non_resource_urls=tuple(rule["nonResourceURLs"]),
        omit_stages=frozenset(Stage(stage) for stage in rule["omitStages"]),
        omit_managed_fields=rule["omitManagedFields"],
        origin=origin,
    )
