"""Requests as people and programs write them: objects in JSON lines and test files, options on the command line."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from audit_operator.cli.errors import CliError
from audit_operator.cli.inputs import STDIN, open_file, shown
from audit_operator.policy.kinds import BUILT_IN
from audit_operator.policy.model import Request

_LINE_LIMIT: Final = 1 << 20
"""Bytes of one request object."""


class _Wire(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """A request object. Left out is empty; without user nobody was authenticated."""

    verb: str
    user: str | None = None
    groups: tuple[str, ...] = ()
    is_resource: bool | None = None
    namespace: str = ""
    api_group: str = ""
    resource: str = ""
    subresource: str = ""
    name: str = ""
    path: str = ""


FIELDS: Final = tuple(field.encode_name for field in msgspec.structs.fields(_Wire))


def request_of(value: object, *, file: str = "", line: int = 0, field: str = "") -> Request:
    """The request that a parsed object stands for. Raises CliError that points at ``field`` of ``file``."""
    try:
        return _request(msgspec.convert(value, _Wire))
    except msgspec.ValidationError as error:
        raise _refused(str(error), file, line, field) from None
    except ValueError as error:
        raise CliError(str(error), file=file, line=line, field=field) from None


def request_lines(name: str) -> Iterator[Request]:
    """The requests of a file of JSON lines, one object a line; ``-`` is standard input. Raises CliError."""
    import sys

    decoder = msgspec.json.Decoder(_Wire)
    with sys.stdin.buffer if name == STDIN else open_file(name) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(_LINE_LIMIT + 1), b""), start=1):
            if len(line) > _LINE_LIMIT:
                raise CliError("is longer than a request can be", file=shown(name), line=number)
            if not line.strip():
                continue
            try:
                yield _request(decoder.decode(line))
            except msgspec.ValidationError as error:
                raise _refused(str(error), shown(name), number, "") from None
            except (RecursionError, ValueError) as error:  # no JSON, no UTF-8, nested without end
                raise CliError(
                    f"is no request object: {error}",
                    file=shown(name),
                    line=number,
                    way_out='write one a line, such as {"user":"alice","verb":"get","resource":"pods"}',
                ) from None


def _request(wire: _Wire) -> Request:
    if wire.is_resource is None:
        if wire.path and wire.resource:
            raise ValueError("has resource and path; a request has one of them")
        if not wire.path and not wire.resource:
            raise ValueError("has neither resource nor path; write one of them")
        if "/" in wire.resource:
            resource, _, subresource = wire.resource.partition("/")
            raise ValueError(
                f"resource: {wire.resource!r} is two; write resource: {resource}, subresource: {subresource}"
            )
    return Request(
        user=wire.user,
        groups=wire.groups,
        verb=wire.verb,
        is_resource=not wire.path if wire.is_resource is None else wire.is_resource,
        namespace=wire.namespace,
        api_group=wire.api_group,
        resource=wire.resource,
        subresource=wire.subresource,
        name=wire.name,
        path=wire.path,
    )


def as_object(request: Request) -> dict[str, Any]:
    """The request as an object: what is empty is left out, and isResource where resource or path says it."""
    members: dict[str, Any] = {} if request.user is None else {"user": request.user}
    for field in msgspec.structs.fields(_Wire):
        value = getattr(request, field.name)
        if value and field.name not in ("user", "is_resource"):
            members[field.encode_name] = list(value) if isinstance(value, tuple) else value
    return members


def as_text(request: Request) -> str:
    """The request in a line: ``alice (developers) get pods/exec web-0 in team-a``."""
    who = "a failed login" if request.user is None else request.user or '""'
    own = [group for group in request.groups if group not in implied_groups(request.user or "")]
    who += f" ({', '.join(own)})" if own else ""
    if not request.is_resource:
        return f"{who} {request.verb} {request.path}"
    resource = request.resource + (f".{request.api_group}" if request.api_group else "")
    what = f"{resource}/{request.subresource}" if request.subresource else resource
    named = f" {request.name}" if request.name else ""
    where = f" in {request.namespace}" if request.namespace else ""
    return f"{who} {request.verb} {what}{named}{where}"


def request_from_options(
    *,
    user: str | None,
    groups: Sequence[str],
    verb: str,
    resource: str | None,
    namespace: str,
    name: str,
    path: str | None,
) -> Request:
    """The request of ``explain``'s options. ``resource``: ``pods``, ``pods/exec``, ``deployments.apps/scale``.

    Without a group, and for short and singular names, it is the resource that Kubernetes has. The user has the groups
    that an API server gives every user of its kind.
    """
    if (resource is None) == (path is None):
        raise CliError("a request is about a resource or a path", way_out="give --resource or --path, and not both")
    everybody = tuple(dict.fromkeys((*groups, *implied_groups(user)))) if user is not None else ()
    if path is not None:
        if namespace or name:
            raise CliError("a path is in no namespace and has no name", field="--path", value=repr(path))
        return Request(user=user, groups=everybody, verb=verb.lower(), is_resource=False, path=path)
    qualified, _, subresource = (resource or "").partition("/")
    plural, dot, group = qualified.partition(".")
    if not dot:
        group, plural = _known(plural)
    if not plural:
        raise CliError("names no resource", field="--resource", value=repr(resource), way_out="write for example pods")
    return Request(
        user=user,
        groups=everybody,
        verb=verb,
        namespace=namespace,
        api_group=group,
        resource=plural,
        subresource=subresource,
        name=name,
    )


def implied_groups(user: str) -> tuple[str, ...]:
    """The groups that an API server itself gives to a user of this name."""
    if user == "system:anonymous":
        return ("system:unauthenticated",)
    match re.fullmatch(r"system:serviceaccount:([^:]+):[^:]+", user):
        case None:
            return ("system:authenticated",)
        case account:
            return ("system:serviceaccounts", f"system:serviceaccounts:{account[1]}", "system:authenticated")


def _known(word: str) -> tuple[str, str]:
    """Group and plural of the resource that a person means, as kubectl guesses it. A made-up one: the core group."""
    kinds = BUILT_IN.named(word) or BUILT_IN.meant_by(word)
    return (kinds[0].group, kinds[0].resource) if kinds else ("", word)


def _refused(message: str, file: str, line: int, field: str) -> CliError:
    """msgspec's message as one of ours."""
    where = re.search(r" - at `\$\.?([^`]*)`", message)
    inner = ".".join(part for part in (field, where[1] if where else "") if part)
    what = message[: where.start()] if where else message
    if unknown := re.search(r"unknown field `([^`]*)`", message):
        close = difflib.get_close_matches(unknown[1], FIELDS, n=1)
        way_out = f"did you mean {close[0]}?" if close else f"known are {', '.join(FIELDS)}"
        return CliError(
            "is no field of a request", file=file, line=line, field=field, value=repr(unknown[1]), way_out=way_out
        )
    if missing := re.search(r"missing required field `([^`]*)`", message):
        return CliError(f"{missing[1]} is required", file=file, line=line, field=field, way_out="for example get")
    for word, words in _TYPES.items():
        what = re.sub(rf"`{word}( \| null)?`", words, what)
    return CliError(what.replace("Expected", "must be", 1), file=file, line=line, field=inner)


_TYPES: Final = {
    "str": "a string",
    "array": "a list",
    "object": "an object",
    "bool": "true or false",
    "int": "a number",
    "float": "a number",
    "null": "null",
}
