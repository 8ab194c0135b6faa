"""An event as a sink wants it: audit.k8s.io/v1 as it came, Elastic Common Schema or OCSF, bodies as objects or strings.

Whatever the format, the whole event is in it: in ECS under ``kubernetes.audit``, in OCSF under ``unmapped``.
"""

import ipaddress
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import Raw

from audit_operator.policy.events import Event, Fields, UserInfo, decode, fields
from audit_operator.receiver.sinks import convert
from audit_operator.render.program import SinkProgram

Formatter = Callable[[bytes], bytes]
"""An event of the journal -> one JSON object without a line break. Does not raise for what the journal holds."""


class _Format(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    type: Literal["audit", "ECS", "OCSF"] = "audit"
    bodies: Literal["Object", "String"] = "Object"


def formatter(program: SinkProgram, cluster: str) -> Formatter:
    """What makes the sink's events; ``cluster``: the name that ECS and OCSF events carry. Raises UnknownSinkError for a
    format that this version does not have.
    """
    wanted = convert(program, program.format, _Format)
    bodies = bodies_as_strings if wanted.bodies == "String" else as_recorded
    match wanted.type:
        case "ECS":
            return partial(_ecs, cluster, bodies)
        case "OCSF":
            return partial(_ocsf, cluster, bodies)
        case _:
            return bodies


# --- audit -----------------------------------------------------------------------------------------------------------


def as_recorded(event: bytes) -> bytes:
    """The event itself."""
    return event


_BODIES: Final = ("requestObject", "responseObject")


def bodies_as_strings(event: bytes) -> bytes:
    """Bodies as JSON in strings: an index needs no field for whatever objects have."""
    if b'"requestObject"' not in event and b'"responseObject"' not in event:
        return event
    members = fields(event)
    for name in _BODIES:
        if name in members:
            members[name] = Raw(msgspec.json.encode(bytes(members[name]).decode(errors="replace")))
    return msgspec.json.encode(members)


OMITTED: Final = "audit-operator.dev/omitted"
"""The annotation of an event whose bodies were left out."""


def without_bodies(event: bytes, why: str = "too large for the sink") -> bytes:
    """An event of the journal without its bodies, and with an annotation that says so: for sinks with a limit."""
    members = fields(event)
    found = [name for name in _BODIES if members.pop(name, None) is not None]
    if not found:
        return event
    annotations = _value(members, "annotations", dict[str, Raw], {})
    annotations[OMITTED] = Raw(msgspec.json.encode(f"{', '.join(found)}: {why}"))
    members["annotations"] = Raw(msgspec.json.encode(annotations))
    return msgspec.json.encode(members)


# --- what the schemas share ------------------------------------------------------------------------------------------

_T = TypeVar("_T")


def _value(members: Fields, name: str, kind: type[_T], missing: _T) -> _T:
    """A member as ``kind``; ``missing`` if there is none, or one of another type."""
    if name not in members:
        return missing
    try:
        return msgspec.json.decode(members[name], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return missing


class _Answered(msgspec.Struct):
    code: int = 0
    message: str = ""
    reason: str = ""


_DECISION: Final = "authorization.k8s.io/decision"

_METHODS: Final = {
    "get": "GET", "list": "GET", "watch": "GET", "create": "POST", "update": "PUT", "patch": "PATCH",
    "delete": "DELETE", "deletecollection": "DELETE", "head": "HEAD", "options": "OPTIONS", "post": "POST",
    "put": "PUT",
}  # fmt: skip
"""Verb -> HTTP method; for requests that are not for resources the verb is the method in lower case."""


class _Facts:
    """What both schemas ask an event."""

    def __init__(self, raw: bytes) -> None:
        self.members = fields(raw)
        self.event: Event = decode(raw)
        self.answered = _value(self.members, "responseStatus", _Answered, _Answered())
        self.impersonated = _value(self.members, "impersonatedUser", UserInfo, UserInfo())
        self.decision = _value(self.members, "annotations", dict[str, str], {}).get(_DECISION, "")
        self.agent = _value(self.members, "userAgent", str, "")
        self.received = _value(self.members, "requestReceivedTimestamp", str, "")
        self.path, _, self.query = self.event.request_uri.partition("?")
        addresses = _value(self.members, "sourceIPs", list[str], [])
        self.addresses = [address for address in addresses if _is_address(address)]

    @property
    def peer(self) -> str:
        """Who connected to the API server. All addresses before that one can be forged by the client."""
        return self.addresses[-1] if self.addresses else ""

    @property
    def failed(self) -> bool | None:
        """Whether the request failed; None as long as nobody knows."""
        code = self.answered.code
        return None if code == 0 else code >= 400

    @property
    def nanoseconds(self) -> int | None:
        """From the request's arrival to this stage."""
        begun, now = _moment(self.received), _moment(self.event.stage_timestamp)
        if begun is None or now is None or now < begun:
            return None
        return (now - begun) // _MICROSECOND * 1000

    @property
    def resource(self) -> str:
        """``pods`` or ``pods/exec``; empty for requests that are not for resources."""
        ref = self.event.object_ref
        if ref is None:
            return ""
        return f"{ref.resource}/{ref.subresource}" if ref.subresource else ref.resource

    @property
    def api_version(self) -> str:
        """``apps/v1`` or ``v1``."""
        ref = self.event.object_ref
        return "/".join(filter(None, (ref.api_group, ref.api_version))) if ref else ""


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_MILLISECOND: Final = timedelta(milliseconds=1)


def _moment(timestamp: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is empty; 0 is not."""
    return {name: value for name, value in values.items() if value not in ("", None, {}, [])}


# --- Elastic Common Schema -------------------------------------------------------------------------------------------

ECS_VERSION: Final = "8.17.0"

_ECS_TYPES: Final = {
    "get": "access", "list": "access", "watch": "access", "head": "access",
    "create": "creation", "post": "creation", "update": "change", "patch": "change", "put": "change",
    "delete": "deletion", "deletecollection": "deletion",
}  # fmt: skip
_ECS_DECISIONS: Final = {"allow": "allowed", "forbid": "denied"}
_ECS_OUTCOMES: Final = {True: "failure", False: "success", None: "unknown"}


def _ecs(cluster: str, bodies: Formatter, raw: bytes) -> bytes:
    """https://www.elastic.co/docs/reference/ecs, and kubernetes.audit as Elastic's own integration names it."""
    facts = _Facts(raw)
    event, ref = facts.event, facts.event.object_ref
    kinds = [_ECS_TYPES.get(event.verb, "info")]
    if facts.decision in _ECS_DECISIONS:
        kinds.append(_ECS_DECISIONS[facts.decision])
    user, other = event.user, facts.impersonated
    document = {
        "@timestamp": event.stage_timestamp,
        "ecs": {"version": ECS_VERSION},
        "event": _given(
            {
                "kind": "event",
                "module": "kubernetes",
                "dataset": "kubernetes.audit",
                "category": ["api"],
                "type": kinds,
                "action": event.verb,
                "outcome": _ECS_OUTCOMES[facts.failed],
                "id": event.audit_id,
                "start": facts.received,
                "duration": facts.nanoseconds,
                "reason": facts.answered.message if facts.failed else "",
            }
        ),
        "user": _given(
            {
                "name": user.username,
                "id": user.uid,
                "roles": list(user.groups),
                "effective": _given({"name": other.username, "id": other.uid, "roles": list(other.groups)}),
            }
        ),
        "source": _given({"ip": facts.peer, "address": facts.peer}),
        "user_agent": _given({"original": facts.agent}),
        "url": _given({"original": event.request_uri, "path": facts.path, "query": facts.query}),
        "http": _given(
            {
                "request": _given({"method": _METHODS.get(event.verb, "")}),
                "response": _given({"status_code": facts.answered.code or None}),
            }
        ),
        "orchestrator": _given(
            {
                "type": "kubernetes",
                "cluster": _given({"name": cluster}),
                "api_version": facts.api_version,
                "namespace": ref.namespace if ref else "",
                "resource": _given(
                    {"type": facts.resource, "name": ref.name if ref else "", "id": ref.uid if ref else ""}
                ),
            }
        ),
        "related": _given(
            {
                "ip": list(dict.fromkeys(facts.addresses)),
                "user": list(dict.fromkeys(filter(None, (user.username, other.username)))),
            }
        ),
        "kubernetes": {"audit": Raw(bodies(raw))},
    }
    return msgspec.json.encode(_given(document))


# --- Open Cybersecurity Schema Framework -----------------------------------------------------------------------------

OCSF_VERSION: Final = "1.3.0"

_CLASS: Final = 6003
_ACTIVITIES: Final = {0: "Unknown", 1: "Create", 2: "Read", 3: "Update", 4: "Delete", 99: "Other"}
_OCSF_ACTIVITIES: Final = {
    "create": 1, "post": 1, "get": 2, "list": 2, "watch": 2, "head": 2, "update": 3, "patch": 3, "put": 3,
    "delete": 4, "deletecollection": 4,
}  # fmt: skip
_STATUSES: Final = {True: (2, "Failure"), False: (1, "Success"), None: (0, "Unknown")}


def _ocsf(cluster: str, bodies: Formatter, raw: bytes) -> bytes:
    """API Activity, https://schema.ocsf.io/1.3.0/classes/api_activity: what it requires is always there."""
    facts = _Facts(raw)
    event, ref = facts.event, facts.event.object_ref
    activity = _OCSF_ACTIVITIES.get(event.verb, 99 if event.verb else 0)
    status, status_name = _STATUSES[facts.failed]
    code = facts.answered.code
    nanoseconds = facts.nanoseconds
    document = {
        "category_uid": 6,
        "category_name": "Application Activity",
        "class_uid": _CLASS,
        "class_name": "API Activity",
        "activity_id": activity,
        "activity_name": _ACTIVITIES[activity],
        "type_uid": _CLASS * 100 + activity,
        "type_name": f"API Activity: {_ACTIVITIES[activity]}",
        "severity_id": 1,
        "severity": "Informational",
        "status_id": status,
        "status": status_name,
        "status_code": str(code) if code else "",
        "status_detail": facts.answered.message or facts.answered.reason if facts.failed else "",
        "time": _milliseconds(event.stage_timestamp),
        "start_time": _milliseconds(facts.received) if facts.received else None,
        "duration": None if nanoseconds is None else nanoseconds // 10**6,
        "metadata": _given(
            {
                "version": OCSF_VERSION,
                "product": {"name": "Kubernetes", "vendor_name": "Kubernetes", "feature": {"name": "Audit"}},
                "correlation_uid": event.audit_id,
                "event_code": event.stage,
                "log_name": "audit.k8s.io/v1",
                "log_level": event.level,
                "original_time": event.stage_timestamp,
            }
        ),
        "actor": {"user": _ocsf_user(event.user)},
        "api": _given(
            {
                "operation": event.verb or "unknown",
                "version": facts.api_version,
                "group": _given({"name": ref.api_group if ref else ""}),
                "service": {"name": "kube-apiserver"},
                "request": _given({"uid": event.audit_id}),
                "response": _given(
                    {"code": code or None, "message": facts.answered.message, "error": facts.answered.reason}
                ),
            }
        ),
        "dst_endpoint": _given({"name": cluster}),
        "src_endpoint": {"ip": facts.peer} if facts.peer else {"name": "unknown"},
        "http_request": _given(
            {
                "http_method": _METHODS.get(event.verb, ""),
                "user_agent": facts.agent,
                "url": _given({"path": facts.path, "query_string": facts.query}),
                "x_forwarded_for": facts.addresses[:-1],
            }
        ),
        "http_response": _given({"code": code or None}),
        "resources": [_given({"type": facts.resource, "name": ref.name, "namespace": ref.namespace, "uid": ref.uid})]
        if ref
        else [],
        "unmapped": Raw(bodies(raw)),
    }
    return msgspec.json.encode(_given(document))


def _ocsf_user(user: UserInfo) -> dict[str, Any]:
    """A user needs a name; a request whose authentication failed has none."""
    if not user.username:
        return {"name": "unknown", "type_id": 0, "type": "Unknown"}
    # An account of Kubernetes itself or of a workload, or of a person or machine outside.
    system = user.username.startswith("system:")
    return _given(
        {
            "name": user.username,
            "uid": user.uid,
            "type_id": 3 if system else 1,
            "type": "System" if system else "User",
            "groups": [{"name": group} for group in user.groups],
        }
    )


def _milliseconds(timestamp: str) -> int:
    """Since the epoch; 0 for what cannot be read: a format reads no clock."""
    moment = _moment(timestamp)
    return 0 if moment is None else (moment - _EPOCH) // _MILLISECOND
