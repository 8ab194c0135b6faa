"""An event cut to a level, without managedFields, redacted. What is not touched stays as it was sent, byte for byte."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from audit_operator.policy.events import Event, EventError, Fields, fields
from audit_operator.policy.memo import Memo
from audit_operator.policy.model import Level, Request
from audit_operator.policy.redact import PATCH_ANNOTATION, UNREDACTABLE, Redacted, Redactor


class Cut(NamedTuple):
    """``data``: the event as JSON, without a line break. ``redacted``: values. ``failed``: fields replaced whole."""

    data: bytes
    redacted: int = 0
    failed: tuple[str, ...] = ()


def cut(raw: bytes, event: Event, request: Request, recorded: Level, wanted: "Wanted") -> Cut:
    """The event as it may leave.

    Args:
        raw: as the API server sent it.
        event: `decode(raw)`.
        request: `request_of(event)`.
        recorded: the event's own level.
        wanted: ``wanted.level`` is at most ``recorded``, and not None.

    """
    level = wanted.level
    if level is Level.MINIMAL:
        return Cut(_minimal(raw, event))
    changed: dict[str, Raw | None] = {}
    # What is there counts, not only what the recorded level promises.
    if level < Level.REQUEST_RESPONSE and (recorded >= Level.REQUEST_RESPONSE or len(event.response_object)):
        changed["responseObject"] = None
    if level < Level.REQUEST and (recorded >= Level.REQUEST or len(event.request_object)):
        changed["requestObject"] = None
        if _PATCH_HINT in bytes(event.annotations):
            changed["annotations"] = _without_patches(event.annotations)
    elif wanted.omit_managed_fields and b"managedFields" in raw:
        # The API server keeps them in the body of a PATCH: it records what was sent (LogRequestPatch).
        if request.verb != "patch":
            _strip(changed, "requestObject", event.request_object)
        if "responseObject" not in changed:
            _strip(changed, "responseObject", event.response_object)
    redacted = wanted.redacting.redact(event, request, changed)
    if redacted.fields:
        changed.update(redacted.fields)
    if not changed and level is recorded:
        return Cut(_one_line(raw))
    if level is not recorded:
        changed["level"] = _LEVELS[level]
    members = fields(raw)
    for name, value in changed.items():
        if value is None:
            members.pop(name, None)
        else:
            members[name] = value
    return Cut(_one_line(msgspec.json.encode(members)), redacted.count, redacted.failed)


class Redacting:
    """A redactor that remembers what it made of events without bodies.

    Most events have none, and of what is left, responseStatus and annotations, there are few: some hundred bytes that
    say which rule allowed the request.
    """

    __slots__ = ("_bounded", "_memo", "_paths", "_redactor")

    def __init__(self, redactor: Redactor, *, bounded: bool = False) -> None:
        """``bounded``: some of the rules are a tenant's. A body that would take too long to search goes as a whole."""
        self._redactor = redactor
        self._bounded = bounded
        self._paths: Memo[tuple[str, str, str], int] = Memo()
        self._memo: Memo[tuple[object, ...], Redacted] = Memo()

    def redact(self, event: Event, request: Request, changed: Mapping[str, Raw | None]) -> Redacted:
        """What to write in place of the event's fields once ``changed`` is done."""
        if not (
            (len(event.request_object) and "requestObject" not in changed)
            or (len(event.response_object) and "responseObject" not in changed)
            or changed.get("requestObject")
            or changed.get("responseObject")
        ):
            status, annotations = bytes(event.response_status), bytes(changed.get("annotations") or event.annotations)
            if "annotations" in changed and changed["annotations"] is None:
                annotations = b""
            # All that a redactor looks at: it is a pure function of these.
            kind = (request.is_resource, request.api_group, request.resource, request.subresource, request.verb)
            question = (kind, status, annotations)
            found = self._memo.get(question)
            if found is None:
                length = len(status) + len(annotations) + sum(map(len, kind[1:]))
                found = self._memo.remember(question, self._redact(event, request, changed), length)
            return found
        return self._redact(event, request, changed)

    def _redact(self, event: Event, request: Request, changed: Mapping[str, Raw | None]) -> Redacted:
        if changed:
            event = _changed(event, changed)
        if self._bounded and (costly := self._costly(event, request)):
            rest = self._redactor.redact(
                msgspec.structs.replace(event, **dict.fromkeys(costly.values(), _EMPTY)), request
            )
            gone = dict.fromkeys(costly, _UNREDACTABLE)
            return Redacted({**rest.fields, **gone}, rest.count, (*rest.failed, *costly))
        return self._redactor.redact(event, request)

    def _costly(self, event: Event, request: Request) -> Mapping[str, str]:
        """What would take too long, as names of an event's fields on the wire and here."""
        sizes = {name: len(getattr(event, attribute)) for name, attribute in _ATTRIBUTES.items()}
        if sum(sizes.values()) <= _CHEAP:
            return {}
        kind = (request.api_group, request.resource, request.subresource)
        paths = self._paths.get(kind)
        if paths is None:
            number = sum(len(rule.paths) for rule in self._redactor.rules_for(request))
            paths = self._paths.remember(kind, number, sum(map(len, kind)))
        return {name: _ATTRIBUTES[name] for name, size in sizes.items() if size * paths > _MOST_WORK}


class Wanted(NamedTuple):
    """How an event is to leave."""

    level: Level
    omit_managed_fields: bool
    redacting: Redacting


_LEVELS: Final = {level: Raw(f'"{level}"'.encode()) for level in Level}
_PATCH_HINT: Final = PATCH_ANNOTATION.encode()
_EMPTY: Final = Raw()
_UNREDACTABLE: Final = Raw(msgspec.json.encode(UNREDACTABLE))
_CHEAP: Final = 2048
_MOST_WORK: Final = 20_000_000
"""Paths times bytes, of which each takes up to 2.5 ns: 50 ms. That is 200 kB for 100 paths."""
_ATTRIBUTES: Final = {
    "requestObject": "request_object",
    "responseObject": "response_object",
    "annotations": "annotations",
}


def _changed(event: Event, changed: Mapping[str, Raw | None]) -> Event:
    """For the redactor, which looks at what is left only."""
    values = {_ATTRIBUTES[name]: _EMPTY if value is None else value for name, value in changed.items()}
    return msgspec.structs.replace(event, **values)


def _one_line(data: bytes) -> bytes:
    """Outside of strings a line break is a space; inside of one it would be no JSON."""
    return data.replace(b"\n", b" ").replace(b"\r", b" ") if b"\n" in data or b"\r" in data else data


def _without_patches(annotations: Raw) -> Raw | None:
    """What mutating webhooks did to the object is content of the body: API servers write it from level Request up."""
    try:
        kept = {key: value for key, value in fields(annotations).items() if not key.startswith(PATCH_ANNOTATION)}
    except EventError:
        return None
    return Raw(msgspec.json.encode(kept)) if kept else None


def _strip(changed: dict[str, Raw | None], name: str, body: Raw) -> None:
    if b"managedFields" in bytes(body):
        stripped = _without_managed_fields(body)
        if stripped is not None:
            changed[name] = stripped


def _without_managed_fields(body: Raw) -> Raw | None:
    """The object, or the objects in a list or Table, without metadata.managedFields, as the API server would have
    written it; None: there is nothing to take out.
    """
    try:
        members = fields(body)
        changed = _strip_object(members)
        items = members.get("items")
        if items is not None and b"managedFields" in bytes(items):
            members["items"] = _each(items, "")
            changed = True
        rows = members.get("rows")
        if rows is not None and b"managedFields" in bytes(rows):
            members["rows"] = _each(rows, "object")
            changed = True
    except (EventError, RecursionError, ValueError):
        return None  # not an object, or none that API servers would look into
    return Raw(msgspec.json.encode(members)) if changed else None


def _strip_object(members: Fields) -> bool:
    metadata = members.get("metadata")
    if metadata is None or b"managedFields" not in bytes(metadata):
        return False
    inner = fields(metadata)
    if inner.pop("managedFields", None) is None:
        return False
    members["metadata"] = Raw(msgspec.json.encode(inner))
    return True


_list = msgspec.json.Decoder(list[Raw])


def _each(items: Raw, below: str) -> Raw:
    result = []
    for item in _list.decode(items):
        stripped = item
        if b"managedFields" in bytes(item):
            members = fields(item)
            target = members.get(below) if below else None
            if below and target is not None:
                inner = fields(target)
                if _strip_object(inner):
                    members[below] = Raw(msgspec.json.encode(inner))
                    stripped = Raw(msgspec.json.encode(members))
            elif not below and _strip_object(members):
                stripped = Raw(msgspec.json.encode(members))
        result.append(stripped)
    return Raw(msgspec.json.encode(result))


class _Code(msgspec.Struct, frozen=True, gc=False):
    code: int = 0


_code = msgspec.json.Decoder(_Code)


def _minimal(raw: bytes, event: Event) -> bytes:
    """Who did what to which object, when, and with which result; in the order API servers write it."""
    result: dict[str, object] = {"level": "Minimal", "auditID": event.audit_id, "stage": event.stage}
    if event.object_ref is None:
        result["requestURI"] = event.request_uri
    result["verb"] = event.verb
    result["user"] = {"username": event.user.username} if event.user.username else {}
    if event.object_ref is not None:
        result["objectRef"] = fields(raw)["objectRef"]
    if len(event.response_status):
        try:
            result["responseStatus"] = {"code": _code.decode(event.response_status).code}
        except (RecursionError, ValueError):
            result["responseStatus"] = {}
    result["stageTimestamp"] = event.stage_timestamp
    return _one_line(msgspec.json.encode(result))
