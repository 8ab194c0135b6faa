"""An event cut to a level, without managedFields, redacted. What is not touched stays as it was sent, byte for byte."""

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from audit_operator.policy.events import Event, EventError, Fields, fields
from audit_operator.policy.memo import LIMIT, LONGEST, Memo
from audit_operator.policy.model import Level, Request
from audit_operator.policy.redact import (
    CODE_ONLY,
    PATCH_ANNOTATION,
    UNREDACTABLE,
    Redacted,
    Redactor,
    may_name_a_kind,
    may_quote,
)


class Cut(msgspec.Struct, frozen=True, gc=False):
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
        return _minimal(raw, event, request, wanted.redacting)
    redacting = wanted.redacting
    also = _also(event, request)
    concerned = redacting.concerns(request) or (also is not None and redacting.concerns(also))
    if level is recorded and not concerned and _is_bare(raw, event) == _QUIET:
        return Cut(_one_line(raw))  # most are
    changed: dict[str, Raw | None] = {}
    hidden: tuple[Raw, ...] = ()
    request_object, response_object, annotations = event.request_object, event.response_object, event.annotations
    # What is there counts, not only what the recorded level promises.
    if level < _RESPONSE and (recorded >= _RESPONSE or len(response_object)):
        changed["responseObject"] = None
        hidden = (response_object,)
    if level < _REQUEST and (recorded >= _REQUEST or len(request_object)):
        changed["requestObject"] = None
        hidden = (request_object, *hidden)
        if _PATCH_HINT in bytes(annotations):
            changed["annotations"] = _without_patches(annotations)
    elif wanted.omit_managed_fields:
        # The API server keeps them in the body of a PATCH: it records what was sent (LogRequestPatch).
        if request.verb != "patch":
            _strip(changed, "requestObject", request_object)
        if level >= _RESPONSE:
            _strip(changed, "responseObject", response_object)
    members = None
    if changed or level is not recorded:
        members = _changed(raw, changed, recorded, level)
        bare = _BARE.issuperset(members)
    else:
        bare = _is_bare(raw, event) != _NOT_BARE
    if concerned and bare:
        annotations = event.annotations if members is None else members.get("annotations", _EMPTY)
        redacted = redacting.redact_small(request, also, event.response_status, annotations, event.request_uri)
        if not redacted.fields and members is None:
            return Cut(_one_line(raw), redacted.count, redacted.failed)
        members = fields(raw) if members is None else members
    elif concerned:
        members = fields(raw) if members is None else members
        # What is left of a body may repeat what was in the other.
        redacted = redacting.redact(request, also, members, event.request_uri, hidden)
    else:
        # What leaves is searched, whatever the names of its fields are and how often they are given.
        data = raw if members is None else msgspec.json.encode(members)
        told = _told(event)
        quiet = not (told.named if bare else may_name_a_kind(data))
        if quiet and not (hidden and told.quoting and any(map(may_name_a_kind, map(bytes, hidden)))):
            return Cut(_one_line(data))
        members = fields(raw) if members is None else members
        redacted = redacting.redact(request, also, members, event.request_uri, hidden)
    members.update(redacted.fields)
    return Cut(_one_line(msgspec.json.encode(members)), redacted.count, redacted.failed)


def _changed(raw: bytes, changed: Mapping[str, Raw | None], recorded: Level, level: Level) -> Fields:
    """The event's fields, each once."""
    members = fields(raw)
    for name, value in changed.items():
        if value is None:
            members.pop(name, None)
        else:
            members[name] = value
    if level is not recorded:
        members["level"] = _LEVELS[level]
    return members


def _also(event: Event, request: Request) -> Request | None:
    """What the event's objectRef names, if it is not what its URL does: what either has secrets in it counts."""
    ref = event.object_ref
    if ref is None or (
        ref.resource == request.resource
        and ref.api_group == request.api_group
        and ref.subresource == request.subresource
    ):
        return None
    return Request(
        user=None, verb=request.verb, api_group=ref.api_group, resource=ref.resource, subresource=ref.subresource
    )


_NOT_BARE, _BARE_BUT_NAMED, _QUIET = range(3)


def _is_bare(raw: bytes, event: Event) -> int:
    """Whether an event has no bodies, nor objects under another name, nor one twice. `_QUIET`: and no kind with secrets
    in it is named.
    """
    if len(event.request_object) or len(event.response_object):
        return _NOT_BARE
    told = _told(event)
    known = told.objects + bytes(event.recorded_user).count(b"{")
    if raw.count(b"{") != (known if event.object_ref is None else known + 1):
        return _NOT_BARE
    return _BARE_BUT_NAMED if told.named else _QUIET


class _Told(NamedTuple):
    """Of an event's status and annotations: how many objects they and the event are, whether they name a kind with
    secrets in it, and whether they may quote a body.
    """

    objects: int
    named: bool
    quoting: bool


def _told(event: Event) -> _Told:
    """There are few of both: some hundred bytes that say which rule allowed the request."""
    question = (bytes(event.response_status), bytes(event.annotations))
    found = _tellings.get(question)
    if found is None:
        objects = 1 + sum(part.count(b"{") for part in question)
        named = any(map(may_name_a_kind, question))
        found = _Told(objects, named, may_quote(event.response_status, event.annotations))
        _tellings.remember(question, found, sum(map(len, question)))
    return found


class Redacting:
    """A redactor that remembers what it made of events without bodies, of which there are few different ones."""

    __slots__ = ("_bounded", "_concerned", "_memo", "_paths", "_redactor")

    def __init__(self, redactor: Redactor, *, bounded: bool = False) -> None:
        """``bounded``: some of the rules are a tenant's. A body that would take too long to search goes as a whole."""
        self._redactor = redactor
        self._bounded = bounded
        self._concerned: dict[int, tuple[Request, bool]] = {}
        self._paths: Memo[tuple[str, str, str], int] = Memo()
        self._memo: Memo[tuple[object, ...], Redacted] = Memo()

    def concerns(self, request: Request) -> bool:
        """See `Redactor.concerns`."""
        # `request_of` returns the same object for the same request, whose identity is cheaper than its hash. It is kept
        # beside the answer, so that no other object can have that identity.
        found = self._concerned.get(id(request))
        if found is not None:
            return found[1]
        concerned = self._redactor.concerns(request)
        if request.length <= LONGEST:
            if len(self._concerned) >= LIMIT:
                self._concerned.clear()
            self._concerned[id(request)] = (request, concerned)
        return concerned

    def redact(
        self, request: Request, also: Request | None, members: Fields, uri: str, hidden: Collection[Raw] = ()
    ) -> Redacted:
        """See `Redactor.redact_parts`; ``members``: all of the event that leaves."""
        parts = {name: members[name] for name in members if name not in _ENVELOPE}
        return self._redact(request, also, parts, hidden, uri)

    def redact_small(
        self, request: Request, also: Request | None, response_status: Raw, annotations: Raw, uri: str
    ) -> Redacted:
        """`redact` for an event that has no more than these, of which there are few different ones."""
        # All that a redactor looks at: it is a pure function of these.
        status, notes = bytes(response_status), bytes(annotations)
        question = (
            *(request.is_resource, request.api_group, request.resource, request.subresource, request.verb),
            *(status, notes, request.name if len(status) > CODE_ONLY else "", uri if "?" in uri else "", also),
        )
        found = self._memo.get(question)
        if found is None:
            parts = {"responseStatus": response_status, "annotations": annotations}
            length = len(status) + len(notes) + request.length + len(uri)
            found = self._memo.remember(question, self._redact(request, also, parts, (), uri), length)
        return found

    def _redact(
        self, request: Request, also: Request | None, parts: Fields, hidden: Collection[Raw], uri: str
    ) -> Redacted:
        if self._bounded and (costly := self._costly(request, parts)):
            kept = {name: raw for name, raw in parts.items() if name not in costly}
            rest = self._redactor.redact_parts(request, kept, also=also, hidden=hidden, uri=uri)
            gone = dict.fromkeys(costly, _UNREDACTABLE)
            return Redacted({**rest.fields, **gone}, rest.count, (*rest.failed, *costly))
        return self._redactor.redact_parts(request, parts, also=also, hidden=hidden, uri=uri)

    def _costly(self, request: Request, parts: Fields) -> Collection[str]:
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
_UNREDACTABLE: Final = Raw(msgspec.json.encode(UNREDACTABLE))
_ENVELOPE: Final = frozenset(
    {
        *("kind", "apiVersion", "level", "auditID", "stage", "requestURI", "verb", "user", "impersonatedUser"),
        *(
            "authenticationMetadata",
            "sourceIPs",
            "userAgent",
            "objectRef",
            "requestReceivedTimestamp",
            "stageTimestamp",
        ),
    }
)
"""Who asked for what, and when. All other fields, those of later versions too, may hold an object."""
_BARE: Final = _ENVELOPE | {"annotations", "responseStatus"}
_EMPTY: Final = Raw()
_tellings: Final[Memo[tuple[bytes, bytes], _Told]] = Memo()
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


def _strip(changed: dict[str, Raw | None], name: str, body: Raw) -> None:
    """The body without managedFields into ``changed``, if it has any."""
    if len(body) and b"managedFields" in bytes(body):
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


def _minimal(raw: bytes, event: Event, request: Request, redacting: "Redacting") -> Cut:
    """Who did what to which object, when, and with which result; in the order API servers write it."""
    result: dict[str, object] = {"level": "Minimal", "auditID": event.audit_id, "stage": event.stage}
    redacted = 0
    if event.object_ref is None:
        result["requestURI"] = uri = event.request_uri
        if "?" in uri:
            asked = redacting.redact_small(request, None, _EMPTY, _EMPTY, uri)
            result.update(asked.fields)
            redacted = asked.count
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
    return Cut(_one_line(msgspec.json.encode(result)), redacted)
