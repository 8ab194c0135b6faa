"""Audit events as they come over the wire: what a decision needs is decoded, what an event merely carries stays bytes.

`split` cuts what an API server sends or writes into events, `decode` reads one, `fields` takes one apart for writing it
on with some fields replaced. All three take what JSON libraries refuse and Go does not: the body of a PATCH is recorded
as the client sent it, with up to 10,000 levels and with halves of surrogate pairs, and must not take the events beside
it along. It costs no more than what they take.
"""

import json
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
    """The JSON library refuses it. What takes it needs 10 to 25 µs per kB, ten times as long (bench/events.py)."""


def split(document: bytes, *, at_once: bool = False) -> list[Raw]:
    """The events in ``document``: of an EventList its items, otherwise the document itself, which is one event.

    Raises:
        EventError: it is not a JSON object, or its items are not a list.
        TakesLongError: it may be one, but not ``at_once``.

    """
    if len(document) > 2 * _PIECE and (pieces := _split_in_pieces(document)) is not None:
        return pieces
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
        return [Raw(item) for item in _items_despite(error, members["items"])]
    if items is UNSET:
        return [Raw(document)]
    return items or []


_HEAD_FIELD = rb"""~"(?:kind|apiVersion|metadata)"~:~(?:"[^"\\\x00-\x1f]{0,100}"|\{~\})~,"""
_BEGIN = re.compile(rb"""~\{(?:%b)*~"items"~:~\[""".replace(b"%b", _HEAD_FIELD).replace(b"~", rb"[ \t\r\n]*"))
_END = re.compile(rb"\][ \t\r\n]*\}[ \t\r\n]*\Z")
_NEXT = b',{"level":'
"""How API servers go on after an item. In a body it may stand as well; then what comes before it is no JSON."""


def _split_in_pieces(document: bytes) -> list[Raw] | None:
    """The items of an EventList as API servers write it, by some megabytes at a time: while the library is at work no
    other thread is. None: it must be looked at as a whole.
    """
    begin, end = _BEGIN.match(document), _END.search(document, max(0, len(document) - 16))
    if begin is None or end is None:
        return None
    items: list[Raw] = []
    at, last, size = begin.end(), end.start(), _PIECE
    while at < last:
        to = document.find(_NEXT, at + size, last) if last - at > size else last
        to = last if to < 0 else to
        piece = b"[%b]" % document[at:to]
        try:
            found = _items.decode(piece)
        except (RecursionError, ValueError) as error:
            try:
                found = [Raw(item) for item in _items_despite(error, piece)]
            except EventError:
                if to == last:
                    return None
                size *= 2
                continue
        items += found
        at, size = to + 1, _PIECE
    return items


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


# What follows takes what the JSON library refuses, without reading it value by value in Python, which takes seconds per
# MB. Halves of surrogate pairs: from a copy in which no string has an escape, and nothing has moved, the library tells
# how long each value is; the values are then cut out of the original. A few µs per kB. Too many levels: bracket by
# bracket, which takes longer; so at most `_MOST_BRACKETS` of them, which is twice what an API server records.

_MOST_MEMBERS = 1000
"""Of an object that the JSON library refuses; an event has some twenty."""
_MOST_BRACKETS = 1 << 16
"""Looked at one by one, in 0.2 µs each."""
_PIECE = 1 << 20
"""Bytes that are searched at a time: a search lets no other thread go on."""

_HEX = bytes(ord("0") if chr(byte) in "0123456789abcdefABCDEF" else byte for byte in range(256))
_ASCII = bytes(byte if byte < 0x80 else 0x7F for byte in range(256))
_BACKSLASH = ord("\\")
_MEMBER = re.compile(rb'[{,]?[ \t\n\r]*("(?:[^"\\]++|\\.)*+")[ \t\n\r]*:[ \t\n\r]*', re.DOTALL)
_SPACE = re.compile(rb"[ \t\n\r]*")
_BETWEEN = re.compile(rb"[ \t\n\r,]*")
_items = msgspec.json.Decoder(list[Raw])


def _members_despite(error: Exception, document: bytes) -> Iterator[tuple[str, bytes]]:
    """The members of a JSON object that the JSON library refuses. Raises EventError if it is right to."""
    if not isinstance(error, RecursionError):
        flat = _flat(error, document)
        try:
            return _cut_out(document, flat, _fields.decode(flat))
        except RecursionError:
            pass
        except ValueError:
            raise _refused(error) from error
    return _members(document)


def _items_despite(error: Exception, array: bytes) -> Iterator[bytes]:
    """The same for the items of an array."""
    if not isinstance(error, RecursionError):
        flat = _flat(error, array)
        try:
            return _laid_out(array, flat, _items.decode(flat))
        except RecursionError:
            pass
        except ValueError:
            raise _refused(error) from error
    return (item for _, item in _members(array))


def _refused(error: Exception) -> EventError:
    return EventError(f"not an audit event or EventList: {error}")


def _flat(error: Exception, document: bytes) -> bytes:
    """As long as ``document``, of the same structure, all ASCII, and without escapes but for one-letter ones; no JSON
    if that was none. Raises EventError for an escape that is none.
    """
    pieces, start = [], 0
    while start < len(document):
        piece = document[start : start + _PIECE]
        if piece[-1] == _BACKSLASH and (len(piece) - len(piece.rstrip(b"\\"))) % 2 and len(piece) > 1:
            piece = piece[:-1]  # the other half of this escape is in the next one
        pieces.append(piece.replace(b"\\\\", b"\x7f\x7f").translate(_ASCII))
        start += len(piece)
    # Backslashes that are escaped themselves are gone: what is left begins an escape, and most often is none.
    plain, escapes, whole = b"".join(pieces), 0, 0
    for index, piece in enumerate(pieces):
        escapes += piece.count(b"\\u")
        whole += piece.translate(_HEX).count(b"\\u0000")
        pieces[index] = piece.replace(b"\\u", b"\x7f\x7f")
    if escapes != whole and len(pieces) > 1:  # some may have been cut apart
        whole = plain.translate(_HEX).count(b"\\u0000")
    if escapes != whole:
        raise _refused(error) from error
    return b"".join(pieces)


def _cut_out(document: bytes, flat: bytes, values: Fields) -> Iterator[tuple[str, bytes]]:
    """The members of ``document`` at the places that ``values`` have in ``flat``."""
    if len(values) > _MOST_MEMBERS:
        raise EventError(f"not an audit event or EventList: an object of more than {_MOST_MEMBERS} fields")
    spaces = _SPACE.match(flat)
    at = spaces.end() if spaces else 0
    for name, value in values.items():
        found = _MEMBER.match(flat, at)
        # The library keeps the last of two with one name: then nobody knows where the others end.
        if found is None or _key(found[1]) != name:
            break
        end = found.end() + len(value)
        yield _key(document[found.start(1) : found.end(1)]), document[found.end() : end]
        after = _SPACE.match(flat, end)
        at = after.end() if after else end
    else:
        if not values or flat[at:].strip() == b"}":
            return
    raise EventError("not an audit event or EventList: a field is there twice")


def _laid_out(array: bytes, flat: bytes, values: list[Raw]) -> Iterator[bytes]:
    at = flat.index(b"[") + 1
    for value in values:
        between = _BETWEEN.match(flat, at)
        start = between.end() if between else at
        at = start + len(value)
        yield array[start:at]


# A string without an end is a token too: looking for the next one inside it, quote by quote, would take forever.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.|\\\Z)*+(?:"|\Z)|[][{},:]', re.DOTALL)
_BRACKET = re.compile(rb'(?:[^][{}"]++|"(?:[^"\\]++|\\.)*+")*+([][{}])', re.DOTALL)
_CLOSING = {b"{": b"}", b"[": b"]"}


def _members(container: bytes) -> Iterator[tuple[str, bytes]]:
    """The members of a JSON object, or the items of an array under the key ``""``, however deep their values nest.

    Raises:
        EventError: its brackets do not match up, there are too many of them, or it is neither.

    """
    outer, key, start, at, brackets = b"", "", 0, 0, 0
    while (token := _TOKEN.search(container, at)) is not None:
        mark, at, brackets = token.group(), token.end(), brackets + 1
        if brackets > _MOST_BRACKETS:
            break
        if not outer:
            if mark not in _CLOSING or container[: token.start()].strip():
                break
            outer, start = _CLOSING[mark], at
        elif mark in _CLOSING:
            at, brackets = _behind(container, token.start(), brackets)
        elif mark in (b"}", b"]"):
            if mark != outer or container[at:].strip():
                break
            if value := container[start : token.start()].strip():
                yield key, value
            return
        elif mark == b",":
            yield key, container[start : token.start()].strip()
            key, start = "", at
        elif mark == b":":
            key, start = _key(container[start : token.start()]), at
    raise EventError("not an audit event or EventList: it is cut off, or not a JSON object")


def _behind(container: bytes, start: int, brackets: int) -> tuple[int, int]:
    """Where what begins with a bracket at ``start`` ends, and how many brackets were looked at by then."""
    closing: list[bytes] = []
    # One after the other: a search would begin anew at every byte of a string without an end.
    while (found := _BRACKET.match(container, start)) is not None:
        mark, start = found[1], found.end()
        brackets += 1
        if brackets > _MOST_BRACKETS:
            raise EventError("not an audit event or EventList: too many levels in too many brackets")
        if mark in _CLOSING:
            closing.append(_CLOSING[mark])
        elif closing.pop() != mark:
            break
        elif not closing:
            return start, brackets
    raise EventError("not an audit event or EventList: it is cut off, or not a JSON object")


def _key(text: bytes) -> str:
    try:
        return msgspec.json.decode(text, type=str)
    except ValueError:
        pass
    try:
        # As an API server reads it: half of a surrogate pair, or a byte that is no UTF-8, is U+FFFD.
        name = json.loads(text.decode(errors="replace"))
    except ValueError as error:
        raise EventError(f"not an audit event or EventList: {error}") from error
    if not isinstance(name, str):
        raise EventError("not an audit event or EventList: a field's name is no string")
    return name.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
