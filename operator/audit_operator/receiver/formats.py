"""An event as a sink wants it: audit.k8s.io/v1 as it came, with bodies as objects or as JSON in a string."""

from collections.abc import Callable
from typing import Final, Literal

import msgspec
from msgspec import Raw

from audit_operator.policy.events import fields
from audit_operator.receiver.sinks import UnknownSinkError, convert
from audit_operator.render.program import SinkProgram

Formatter = Callable[[bytes], bytes]
"""An event of the journal -> one JSON object without a line break. Does not raise for what the journal holds."""


class _Format(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    type: Literal["audit", "ECS", "OCSF"] = "audit"
    bodies: Literal["Object", "String"] = "Object"


def formatter(program: SinkProgram) -> Formatter:
    """What makes the sink's events. Raises UnknownSinkError for a format that this version does not have."""
    wanted = convert(program, program.format, _Format)
    make = FORMATS.get((wanted.type, wanted.bodies))
    if make is None:
        raise UnknownSinkError(f"sink {program.namespace}/{program.name}: format {wanted.type} is not built yet")
    return make


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


def without_bodies(event: bytes) -> bytes:
    """An event of the journal without its bodies, and with an annotation that says so: for sinks with a limit."""
    members = fields(event)
    found = [name for name in _BODIES if members.pop(name, None) is not None]
    if not found:
        return event
    try:
        annotations = msgspec.json.decode(members.get("annotations", Raw(b"{}")), type=dict[str, Raw])
    except msgspec.DecodeError:
        annotations = {}
    annotations[OMITTED] = Raw(msgspec.json.encode(f"{', '.join(found)}: too large for the sink"))
    members["annotations"] = Raw(msgspec.json.encode(annotations))
    return msgspec.json.encode(members)


OMITTED: Final = "audit-operator.dev/omitted"
"""The annotation of an event whose bodies were left out."""

FORMATS: Final[dict[tuple[str, str], Formatter]] = {
    ("audit", "Object"): as_recorded,
    ("audit", "String"): bodies_as_strings,
}
"""(type, bodies) -> what makes it."""
