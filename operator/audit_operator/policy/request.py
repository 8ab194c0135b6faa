"""Which request caused this event: its attributes as the API server's audit policy saw them.

What is believed, and why (k8s.io/apiserver, pkg: endpoints/filters/audit.go, audit/request.go and
endpoints/request/requestinfo.go):

* ``verb`` and ``user`` as recorded: both are copied from the attributes that the policy was evaluated with, and the
  URL alone cannot tell get from head, or create from update. An impersonated user is in another field.
* ``requestURI`` for everything else. It is written once, before any handler runs, and everything the policy sees of
  the URL can be computed from it again: path and query are parsed below the way Go and the API server do.
* ``objectRef`` only where the URI says nothing. It starts out as the same attributes, but when a body has been decoded
  its empty fields are filled from the body: after a create it names an object that the policy did not know.

What an event cannot tell: a client that sends ``GET http://host`` has an empty path, recorded as ``/``.
"""

import re
from collections.abc import Mapping
from urllib.parse import unquote, unquote_plus

from audit_operator.policy.events import Event, ObjectRef, UserInfo, event_of
from audit_operator.policy.memo import Memo
from audit_operator.policy.model import Request


def request_of(event: Event | Mapping[str, object]) -> Request:
    """The request that the audit policy was asked about when ``event`` was recorded, at whatever stage.

    Takes any event, decoded or as a mapping with the API's field names, and never raises: what does not parse is taken
    from ``verb`` and ``objectRef`` as recorded, and what is not recorded either is empty.
    """
    if not isinstance(event, Event):
        event = event_of(event)
    written = (event.request_uri, event.verb, bytes(event.recorded_user))
    known = _known.get(written)
    if known is not None and (known.is_resource or event.object_ref is None):
        return known
    user, verb = event.user, event.verb
    path, _, query = event.request_uri.partition("?")
    selected = _selected_name(query) if query and verb in _SELECTING_VERBS else ""
    seen = (path, verb, user.username or _name(user), user.groups, selected)
    request = _remembered.get(seen)
    if request is None:
        request = _request(*seen)
        _remembered.remember(seen, request, len(path) + request.length)
    if event.object_ref is not None and not request.is_resource:
        return _as_recorded(event, event.object_ref)
    return _known.remember(written, request, len(event.request_uri) + len(written[2]))


# As it is written in events: nothing needs to be decoded for it, and most are there.
_known: Memo[tuple[str, str, bytes], Request] = Memo()

# The same object for the same request: whoever asks policies about it need not hash all its strings again.
_remembered: Memo[tuple[str, str, str | None, tuple[str, ...], str], Request] = Memo()


_SELECTING_VERBS = frozenset({"list", "watch"})
"""What a GET without a name becomes. Only then does the API server look for a name in the field selector."""


def _name(user: UserInfo) -> str | None:
    """None only where nobody was authenticated: an authenticator may well return groups without a name."""
    if user.username or user.groups or user.uid or user.extra:
        return user.username
    return None


def _as_recorded(event: Event, ref: ObjectRef) -> Request:
    """The request of an event whose URI is missing or no kube-apiserver's, as far as it can be told."""
    # Only the parent of a subresource has a name in the URL of a create; any other was filled from the body.
    named = event.verb != "deletecollection" and (event.verb != "create" or ref.subresource != "")
    return Request(
        user=_name(event.user),
        groups=event.user.groups,
        verb=event.verb,
        namespace=ref.namespace,
        api_group=ref.api_group,
        resource=ref.resource,
        subresource=ref.subresource,
        name=ref.name if named else "",
    )


def _request(raw_path: str, verb: str, user: str | None, groups: tuple[str, ...], selected: str) -> Request:
    """The request for what a URL's path names; ``selected`` is the name that its query demands, if any."""
    path = unquote(raw_path) if "%" in raw_path else raw_path
    if not path.startswith("/"):
        path = _path_of_other_forms(path)
    parts = path.strip("/").split("/")

    # /api/{version}/... and /apis/{group}/{version}/...; whatever is shorter, or begins otherwise, is no resource.
    if parts[0] == "api" and len(parts) > 2:
        group, parts = "", parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, parts = parts[1], parts[3:]
    else:
        return Request(user=user, groups=groups, verb=verb, is_resource=False, path=path)

    # The verb may stand in the path, as in /api/v1/watch/namespaces/default/pods. Field selectors are ignored then.
    special = parts[0] if parts[0] in _SPECIAL_VERBS else ""
    if special:
        parts = parts[1:]
        if not parts:
            return Request(user=user, groups=groups, verb=verb, is_resource=False, path=path)

    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 1:
        namespace = parts[1]
        if len(parts) > 2 and parts[2] not in _NAMESPACE_SUBRESOURCES:
            parts = parts[2:]

    depth = len(parts)
    name = parts[1] if depth > 1 else ""
    return Request(
        user=user,
        groups=groups,
        verb=verb,
        namespace=namespace,
        api_group=group,
        resource=parts[0],
        subresource=parts[2] if depth > 2 and special != "proxy" else "",
        name=name if name or special else selected,
    )


_SPECIAL_VERBS = frozenset({"proxy", "watch"})
_NAMESPACE_SUBRESOURCES = frozenset({"status", "finalize"})

_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*")


def _path_of_other_forms(path: str) -> str:
    """The path of a URI that does not start with one: OPTIONS ``*``, an absolute URI, an opaque one (``x:api/v1``)."""
    if path == "*":
        return path
    if absolute := _ABSOLUTE.match(path):
        return path[absolute.end() :]
    return ""


_ESCAPED_KEY = re.compile("(?:^|&)[^=&]*%")
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")


def _selected_name(query: str) -> str:
    """The name in ``fieldSelector=metadata.name=...``. None of the list options counts if one of them is invalid."""
    if "fieldSelector" not in query and ("%" not in query or not _ESCAPED_KEY.search(query)):
        return ""
    options = _first_values(query)
    if not all(_is_int64(options.get(option, "0")) for option in ("limit", "timeoutSeconds")):
        return ""
    if not _is_label_selector(options.get("labelSelector", "")):
        return ""
    name = _exact_match(options.get("fieldSelector", ""), "metadata.name")
    return "" if name is None or name in (".", "..") or "/" in name or "%" in name else name


def _first_values(query: str) -> dict[str, str]:
    """The first value of every parameter. As Go reads it: pairs with ``;`` or a broken escape are left out."""
    values: dict[str, str] = {}
    for pair in query.split("&"):
        if pair and ";" not in pair and not _BAD_ESCAPE.search(pair):
            key, _, value = pair.partition("=")
            values.setdefault(unquote_plus(key), unquote_plus(value))
    return values


_INTEGER = re.compile("([+-]?)0*([0-9]{1,19})")


def _is_int64(text: str) -> bool:
    integer = _INTEGER.fullmatch(text)
    return integer is not None and -(2**63) <= int(integer[1] + integer[2]) < 2**63


# The grammar of a label selector (labels.Parse). Every repetition is possessive: the text is a client's.
_WS = r"[ \t\r\n]*+"
_LABEL = r"(?![-A-Za-z0-9_.]{64})[A-Za-z0-9]++(?:[-_.]++[A-Za-z0-9]++)*+"
_DNS = r"[a-z0-9]++(?:-++[a-z0-9]++)*+"
_KEY = rf"(?:(?=[^/]{{1,253}}/){_DNS}(?:\.{_DNS})*+/)?{_LABEL}(?=[ \t\r\n=!<>,]|\Z){_WS}"
_VALUE = rf"(?:{_LABEL})?{_WS}"
_REQUIREMENT = (
    rf"(?:!{_WS}{_KEY}|{_KEY}(?:(?:==?|!=){_WS}{_VALUE}"
    rf"|(?:not)?in{_WS}\({_WS}{_VALUE}(?:,{_WS}{_VALUE})*+\){_WS}"
    rf"|[<>]{_WS}[0-9]{{1,63}}+{_WS})?)"
)
_LABEL_SELECTOR = re.compile(rf"{_WS}(?:{_REQUIREMENT}(?:,{_WS}{_REQUIREMENT})*+)?")
_COMPARED = re.compile(rf"[<>]{_WS}([0-9]++)")


def _is_label_selector(text: str) -> bool:
    return _LABEL_SELECTOR.fullmatch(text) is not None and all(map(_is_int64, _COMPARED.findall(text)))


_TERM = re.compile(r"(?:[^\\,]++|\\.|\\\Z)++", re.DOTALL)
_TERM_VALUE = re.compile(r"(?:[^\\=]++|\\[\\,=])*+")
_ESCAPED = re.compile(r"\\(.)")


def _exact_match(field_selector: str, field: str) -> str | None:
    """The value that the selector demands of ``field``; None: it demands none, or is not a field selector."""
    wanted = None
    for term in sorted(_TERM.findall(field_selector)):
        left, equals, right = term.partition("=")
        right = right.removeprefix("=") if not left.endswith("!") else right
        if not equals or not _TERM_VALUE.fullmatch(right):
            return None
        if wanted is None and left == field:
            wanted = _ESCAPED.sub(r"\1", right)
    return wanted
