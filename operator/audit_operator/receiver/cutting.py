"""An event cut to a level, without managedFields, redacted. What is not touched stays as it was sent, byte for byte."""

from collections.abc import Collection, Mapping
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
    request_object, response_object, annotations = event.request_object, event.response_object, event.annotations
    # What is there counts, not only what the recorded level promises.
    if level < _RESPONSE and (recorded >= _RESPONSE or len(response_object)):
        changed["responseObject"] = None
        response_object = _EMPTY
    if level < _REQUEST and (recorded >= _REQUEST or len(request_object)):
        changed["requestObject"] = None
        request_object = _EMPTY
        if _PATCH_HINT in bytes(annotations):
            changed["annotations"] = left = _without_patches(annotations)
            annotations = _EMPTY if left is None else left
    elif wanted.omit_managed_fields:
        # The API server keeps them in the body of a PATCH: it records what was sent (LogRequestPatch).
        if request.verb != "patch":
            request_object = _strip(changed, "requestObject", request_object)
        response_object = _strip(changed, "responseObject", response_object)
    redacted = wanted.redacting.redact(request, request_object, response_object, annotations, event.response_status)
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

    def redact(
        self, request: Request, request_object: Raw, response_object: Raw, annotations: Raw, response_status: Raw
    ) -> Redacted:
        """See `Redactor.redact_parts`."""
        parts = (request_object, response_object, annotations, response_status)
        if len(request_object) or len(response_object):
            return self._redact(request, *parts)
        # All that a redactor looks at: it is a pure function of these.
        kind = (request.is_resource, request.api_group, request.resource, request.subresource, request.verb)
        status, notes = bytes(response_status), bytes(annotations)
        question = (kind, status, notes)
        found = self._memo.get(question)
        if found is None:
            length = len(status) + len(notes) + sum(map(len, kind[1:]))
            found = self._memo.remember(question, self._redact(request, *parts), length)
        return found

    def _redact(
        self, request: Request, request_object: Raw, response_object: Raw, annotations: Raw, response_status: Raw
    ) -> Redacted:
        if self._bounded:
            parts = {"requestObject": request_object, "responseObject": response_object, "annotations": annotations}
            if costly := self._costly(request, parts):
                kept = [_EMPTY if name in costly else raw for name, raw in parts.items()]
                rest = self._redactor.redact_parts(request, kept[0], kept[1], kept[2], response_status)
                gone = dict.fromkeys(costly, _UNREDACTABLE)
                return Redacted({**rest.fields, **gone}, rest.count, (*rest.failed, *costly))
        return self._redactor.redact_parts(request, request_object, response_object, annotations, response_status)

    def _costly(self, request: Request, parts: Mapping[str, Raw]) -> Collection[str]:
        """Those of the event's fields that would take too long."""
        if sum(map(len, parts.values())) <= _CHEAP:
            return ()
        kind = (request.api_group, request.resource, request.subresource)
        paths = self._paths.get(kind)
        if paths is None:
            number = sum(len(rule.paths) for rule in self._redactor.rules_for(request))
            paths = self._paths.remember(kind, number, sum(map(len, kind)))
        return [name for name, raw in parts.items() if len(raw) * paths > _MOST_WORK]


_REQUEST, _RESPONSE = Level.REQUEST, Level.REQUEST_RESPONSE


class Wanted(NamedTuple):
    """How an event is to leave."""

    level: Level
    omit_managed_fields: bool
    redacting: Redacting


_LEVELS: Final = tuple(Raw(f'"{level}"'.encode()) for level in Level)
_PATCH_HINT: Final = PATCH_ANNOTATION.encode()
_EMPTY: Final = Raw()
_UNREDACTABLE: Final = Raw(msgspec.json.encode(UNREDACTABLE))
_CHEAP: Final = 2048
_MOST_WORK: Final = 20_000_000
"""Paths times bytes, of which each takes up to 2.5 ns: 50 ms. That is 200 kB for 100 paths."""


def _one_line(data: bytes) -> bytes:
    """Outside of strings a line break is a space; inside of one it would be no JSON."""
    # A number is looked for three times as fast as a byte string of one.
    return data.replace(b"\n", b" ").replace(b"\r", b" ") if _LF in data or _CR in data else data


_LF, _CR = b"\n\r"


def _without_patches(annotations: Raw) -> Raw | None:
    """What mutating webhooks did to the object is content of the body: API servers write it from level Request up."""
    try:
        kept = {key: value for key, value in fields(annotations).items() if not key.startswith(PATCH_ANNOTATION)}
    except EventError:
        return None
    return Raw(msgspec.json.encode(kept)) if kept else None


def _strip(changed: dict[str, Raw | None], name: str, body: Raw) -> Raw:
    """The body without managedFields, which is in ``changed`` then."""
    if len(body) and b"managedFields" in bytes(body):
        stripped = _without_managed_fields(body)
        if stripped is not None:
            changed[name] = stripped
            return stripped
    return body


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
