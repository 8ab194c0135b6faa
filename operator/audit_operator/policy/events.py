"""Audit events as they come over the wire: what a decision needs is decoded, what an event merely carries stays bytes.

`split` cuts what an API server sends or writes into events, `decode` reads one, `fields` takes one apart for writing it
on with some fields replaced. All three take what JSON libraries refuse and Go does not: the body of a PATCH is recorded
as the client sent it, with up to 10,000 levels and with halves of surrogate pairs, and must not take the events beside
it along.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from audit_operator.policy.memo import Memo

Fields = dict[str, Raw]
"""An event as its top-level fields, in order, undecoded: fields of a later API version pass through unchanged."""


class EventError(ValueError):
    """This is no audit event, nor a list of them; the message says what it is instead."""


class UserInfo(msgspec.Struct, frozen=True, gc=False):
    """Who sent the request, as authenticated. All empty when authentication failed."""

    username: str = ""
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: dict[str, tuple[str, ...]] = {}


class ObjectRef(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """The object a request is about. Name and namespace may have been filled from the body of a create."""

    resource: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    api_group: str = ""
    api_version: str = ""
    resource_version: str = ""
    subresource: str = ""


class Event(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """What decisions need of an event of audit.k8s.io/v1. For reading only: `fields` has all of it, for writing it on.

    Bodies, status, annotations and `recorded_user` are JSON bytes, empty where the event has none.
    """

    level: str = ""
    audit_id: str = msgspec.field(default="", name="auditID")
    stage: str = ""
    request_uri: str = msgspec.field(default="", name="requestURI")
    verb: str = ""
    recorded_user: Raw = msgspec.field(default=Raw(), name="user")
    object_ref: ObjectRef | None = None
    response_status: Raw = Raw()
    request_object: Raw = Raw()
    response_object: Raw = Raw()
    stage_timestamp: str = ""
    annotations: Raw = Raw()

    @property
    def user(self) -> UserInfo:
        """Who sent the request. The same few do all day, so that it is mostly decoded already."""
        recorded = bytes(self.recorded_user)
        found = _users.get(recorded)
        return _users.remember(recorded, _user(recorded), len(recorded)) if found is None else found


def _user(recorded: bytes) -> UserInfo:
    try:
        return _decoded_user(recorded) if recorded else UserInfo()
    except (RecursionError, ValueError):
        pass
    try:
        return _lenient(UserInfo, fields(recorded))
    except EventError:  # not even an object
        return UserInfo()


class _Document(msgspec.Struct, frozen=True, gc=False):
    items: list[Raw] | UnsetType | None = UNSET


_document = msgspec.json.Decoder(_Document)
_event = msgspec.json.Decoder(Event)
_decoded_user = msgspec.json.Decoder(UserInfo).decode
_users: Memo[bytes, UserInfo] = Memo()
_fields = msgspec.json.Decoder(Fields)


class TakesLongError(Exception):
    """The JSON library refuses it. What takes it is a hundred times slower: up to half a second per MB."""


def split(document: bytes, *, at_once: bool = False) -> list[Raw]:
    """The events in ``document``: of an EventList its items, otherwise the document itself, which is one event.

    Raises:
        EventError: it is not a JSON object, or its items are not a list.
        TakesLongError: it may be one, but not ``at_once``.

    """
    try:
        items = _document.decode(document).items
    except msgspec.ValidationError as error:
        raise EventError(f"not an audit event or EventList: {error}") from error
    except (RecursionError, ValueError) as error:
        if at_once:
            raise TakesLongError from error
        members = dict(_members_despite(error, document))
        if "items" not in members:
            return [Raw(document)]
        return [Raw(item) for _, item in _members(members["items"])]
    if items is UNSET:
        return [Raw(document)]
    return items or []


def decode(event: bytes | Raw) -> Event:
    """One event. A field of another type than the API's is read as if it were absent.

    Raises:
        EventError: it is not a JSON object.

    """
    try:
        return _event.decode(event)
    except (RecursionError, ValueError):
        return _lenient(Event, fields(event))


def fields(event: bytes | Raw) -> Fields:
    """The event's top-level fields, undecoded; `msgspec.json.encode` of the result is the event again.

    Raises:
        EventError: it is not a JSON object.

    """
    try:
        return _fields.decode(event)
    except msgspec.ValidationError as error:
        raise EventError(f"not an audit event: {error}") from error
    except (RecursionError, ValueError) as error:
        return {key: Raw(value) for key, value in _members_despite(error, bytes(event))}


def event_of(mapping: Mapping[str, object]) -> Event:
    """The event in a mapping with the API's field names, without bodies, status and annotations. Never raises: a field
    of another type than the API's is read as if it were absent.
    """
    try:
        user = Raw(msgspec.json.encode(mapping["user"])) if "user" in mapping else Raw()
    except (RecursionError, TypeError, ValueError):
        user = Raw()
    return _lenient(Event, {**mapping, "user": user})


_S = TypeVar("_S", bound=msgspec.Struct)
_NESTED: dict[str, type[msgspec.Struct]] = {"object_ref": ObjectRef}


def _lenient(kind: type[_S], members: Mapping[str, object]) -> _S:
    values: dict[str, object] = {}
    for field in msgspec.structs.fields(kind):
        value = members.get(field.encode_name, UNSET)
        if value is UNSET or (field.type is Raw and not isinstance(value, Raw)):
            continue
        try:
            if isinstance(value, Raw) and field.type is not Raw:
                value = msgspec.json.decode(value)
            values[field.name] = msgspec.convert(value, field.type)
        except (RecursionError, ValueError):
            if isinstance(value, Mapping) and field.name in _NESTED:
                values[field.name] = _lenient(_NESTED[field.name], value)
    return kind(**values)


# A string without an end is a token too: looking for the next one inside it, quote by quote, would take forever.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.|\\\Z)*+(?:"|\Z)|[][{},:]', re.DOTALL)
_CLOSING = {b"{": b"}", b"[": b"]"}
_SURROGATE = re.compile(rb"\\(?:(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL)


def _members_despite(error: Exception, document: bytes) -> Iterator[tuple[str, bytes]]:
    """The members of a JSON object that the JSON library refuses. Raises EventError if it is right to."""
    if not isinstance(error, RecursionError):
        try:
            msgspec.json.decode(
                _SURROGATE.sub(lambda escape: b"\\ufffd" if escape[1] else escape[0], document), type=Raw
            )
        except (RecursionError, ValueError):
            raise EventError(f"not an audit event or EventList: {error}") from error
    return _members(document)


def _members(container: bytes) -> Iterator[tuple[str, bytes]]:
    """The members of a JSON object, or the items of an array under the key ``""``, however deep their values nest.

    Raises:
        EventError: its brackets do not match up, or it is neither.

    """
    closing: list[bytes] = []
    key, start = "", 0
    for token in _TOKEN.finditer(container):
        mark = token.group()
        if mark in _CLOSING:
            closing.append(_CLOSING[mark])
            if len(closing) == 1:
                start = token.end()
        elif mark in (b"}", b"]"):
            if not closing or closing.pop() != mark:
                break
            if not closing and (value := container[start : token.start()].strip()):
                yield key, value
        elif len(closing) == 1 and mark == b",":
            yield key, container[start : token.start()].strip()
            key, start = "", token.end()
        elif len(closing) == 1 and mark == b":":
            key, start = _key(container[start : token.start()]), token.end()
    else:
        if not closing and container.lstrip().startswith((b"{", b"[")):
            return
    raise EventError("not an audit event or EventList: it is cut off, or not a JSON object")


def _key(text: bytes) -> str:
    try:
        return msgspec.json.decode(text, type=str)
    except ValueError as error:
        raise EventError(f"not an audit event or EventList: {error}") from error
