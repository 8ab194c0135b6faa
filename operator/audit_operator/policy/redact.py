"""What must not leave: credentials in bodies, removed, masked or hashed before an event is delivered.

Which fields: those of `BUILT_IN`, always, and the user's rules on top, in every body of a request for the rule's
resources, whatever its form: the object, a list, a Table, a merge, strategic or apply patch, a JSON patch, and the
patches of webhooks in the event's annotations. From the same bodies go the annotations that repeat the object
(last-applied-configuration and its like), managedFields' fieldsV1, which holds keys and set members by value, and the
cells of a Table, which print fields. Messages that may quote the body are masked: of errors, in responseStatus too, and
of admission policies. Objects of the built-in kinds are found by their ``kind`` in any other body as well, such as a
custom resource with a Secret in it, and in JSON that a string holds.

What is out of reach: a credential in a field that no rule names (the value of an environment variable), in text that
is no JSON (YAML in a string), in a patch of another resource that does not name the kind, or moved by its author to
another field; and objects of the *user's* rules inside bodies of other resources. The request's URL stays as it is, the
command of an exec included: what was run is what an investigation is about.

It fails closed. A value of an unexpected type on the way to a field is replaced as a whole, keys match whatever their
case, and what cannot be parsed, nests too deep or breaks the code is replaced by `UNREDACTABLE`; the envelope stays.
"""

import enum
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from audit_operator.policy.evaluate import group_resources_match
from audit_operator.policy.events import Event
from audit_operator.policy.memo import Memo
from audit_operator.policy.model import GroupResources, Request


class Action(enum.StrEnum):
    """What becomes of a value. Hash: an HMAC, so that equal values stay recognizable to whoever reads the events."""

    REMOVE = "Remove"
    MASK = "Mask"
    HASH = "Hash"


class RedactionRule(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of the objects of some resources. A rule for ``pods`` holds for ``pods/status`` and all the others too.

    Paths are names joined by dots; ``.*`` is every key, ``[*]`` every list item, ``["a.b/c"]`` a key that is not a
    plain name: ``spec.password``, ``spec.users[*].key``, ``metadata.annotations["example.com/token"]``.
    """

    resources: tuple[GroupResources, ...]
    paths: tuple[str, ...]
    action: Action = Action.REMOVE


class RedactionError(ValueError):
    """A redaction rule that cannot do what it says; the message names the place, the value and the way out."""


class Redacted(msgspec.Struct, frozen=True):
    """What to write instead.

    ``fields`` replace the event's top-level fields of these names; any other field is to be written as it came. They
    must be used even where nothing was redacted: of a key given twice the event's own bytes still hold the first value.
    ``count`` is how many values were redacted, ``failed`` names the fields that had to be replaced as a whole.
    """

    fields: dict[str, Raw]
    count: int
    failed: tuple[str, ...]


_NOTHING = Redacted({}, 0, ())

MASK = "***"
UNREDACTABLE = {"redacted": "this could not be checked for secrets"}

MAX_DEPTH = 200
"""Levels of a body. Kubernetes' deepest objects, schemas in CustomResourceDefinitions, have some dozens."""

_MAX_WRAPPERS = 4
"""Lists in lists. Every one found by its kind is gone through again, so their number is a factor of the work."""

REPEATING_ANNOTATIONS = (
    "kubectl.kubernetes.io/last-applied-configuration",
    "banzaicloud.com/last-applied",
    "kapp.k14s.io/original",
    "kapp.k14s.io/original-diff",
    "kapp.k14s.io/original-diff-full",
    "kubernetes.io/change-cause",
    "objectset.rio.cattle.io/applied",
)
"""Annotations in which tools keep a copy of the object they are on, or the command line that changed it: that of
``kubectl patch --record`` has the patch in it.
"""

PATCH_ANNOTATION = "patch.webhook.admission.k8s.io/"
"""Prefix of the event annotations that hold what mutating webhooks did to the object."""

FAILURE_ANNOTATION = "validation.policy.admission.k8s.io/validation_failure"
"""Event annotation of a ValidatingAdmissionPolicy, whose messages are made by expressions over the object."""


def _built_in(group: str, resource: str, *paths: str, action: Action = Action.MASK) -> RedactionRule:
    return RedactionRule(resources=(GroupResources(group, (resource,)),), paths=paths, action=action)


BUILT_IN: tuple[RedactionRule, ...] = (
    _built_in("", "secrets", "data.*", "stringData.*"),
    _built_in("", "configmaps", "data.*", "binaryData.*"),
    _built_in("", "serviceaccounts/token", "status.token"),
    _built_in("authentication.k8s.io", "tokenreviews", "spec.token"),
    _built_in("authentication.k8s.io", "tokenreviews", "status", action=Action.REMOVE),
    _built_in("certificates.k8s.io", "certificatesigningrequests", "spec.request", "status.certificate"),
    _built_in(
        "certificates.k8s.io",
        "podcertificaterequests",
        *("spec.proofOfPossession", "spec.stubPKCS10Request", "status.certificateChain"),
    ),
)
"""Always in force. Names of keys stay: which key of a Secret was changed is worth knowing, and no secret."""

REPEATED = RedactionRule(
    resources=(),
    paths=(
        *(f'metadata.annotations["{annotation}"]' for annotation in REPEATING_ANNOTATIONS),
        "metadata.managedFields[*].fieldsV1",
    ),
)
"""Goes with every other rule: what repeats the object's fields elsewhere in it."""

_KINDS: dict[str, Request] = {
    "Secret": Request(user=None, verb="", resource="secrets"),
    "ConfigMap": Request(user=None, verb="", resource="configmaps"),
    "TokenRequest": Request(user=None, verb="", resource="serviceaccounts", subresource="token"),
    "TokenReview": Request(user=None, verb="", api_group="authentication.k8s.io", resource="tokenreviews"),
    "CertificateSigningRequest": Request(
        user=None, verb="", api_group="certificates.k8s.io", resource="certificatesigningrequests"
    ),
    "PodCertificateRequest": Request(
        user=None, verb="", api_group="certificates.k8s.io", resource="podcertificaterequests"
    ),
}
"""The kinds of `BUILT_IN`, looked for in any group: whoever defined a ``Secret``, what is in it is one."""

_OBJECT_META = frozenset({"apiversion", "kind", "metadata", "$patch", "$retainkeys"})
_FIELDS: dict[tuple[str, str], frozenset[str]] = {
    ("", "secrets"): _OBJECT_META | {"data", "stringdata", "type", "immutable"},
    ("", "configmaps"): _OBJECT_META | {"data", "binarydata", "immutable"},
}
"""All there is in these objects, case folded. A patch is recorded as sent: anything beside these is a slip of whoever
wrote it, and may well be what belonged into ``data``."""

_METADATA = frozenset(
    {
        *("name", "generatename", "namespace", "labels", "annotations", "finalizers", "ownerreferences", "uid"),
        *("resourceversion", "generation", "creationtimestamp", "deletiontimestamp", "deletiongraceperiodseconds"),
        *("managedfields", "selflink", "$patch", "$retainkeys"),
    }
)
"""All there is in their metadata: two spaces too many and the data is in there."""

# One step of a path: one of these keys, case folded; any child; or any key but these.
_Step = tuple[str, ...] | frozenset[str] | None


class _Redaction(NamedTuple):
    steps: tuple[_Step, ...]
    action: Action


class Redactor:
    """Redaction rules made ready for many events. May be shared by threads.

    Args:
        rules: the user's, on top of `BUILT_IN`.
        hash_key: for action Hash, at least 16 random bytes, the same wherever hashes are to be compared. Without a
            secret key the hash of a weak password would be as good as the password.

    Raises:
        RedactionError: a path or a resource cannot match anything, or a rule hashes and there is no key.

    """

    __slots__ = ("_hash_key", "_kinds", "_memo", "_rules")

    def __init__(self, rules: Sequence[RedactionRule] = (), *, hash_key: bytes = b"") -> None:
        for index, rule in enumerate(rules):
            _check(rule, f"redactions[{index}]", hash_key)
        self._rules = tuple(rules)
        self._hash_key = hash_key
        self._kinds = {
            name: _compile([*(rule for rule in BUILT_IN if _covers(rule, request)), REPEATED])
            for kind, request in _KINDS.items()
            for name in (kind, f"{kind}List")
        }
        self._memo: Memo[tuple[str, str, str], tuple[_Redaction, ...]] = Memo()

    def rules_for(self, request: Request) -> tuple[RedactionRule, ...]:
        """The rules that the bodies of this request fall under. None: they are only searched for built-in kinds."""
        if not request.is_resource:
            return ()
        found = [rule for rule in (*BUILT_IN, *self._rules) if _covers(rule, request)]
        return (*found, REPEATED) if found else ()

    def redact(self, event: Event, request: Request) -> Redacted:
        """What to write of ``event`` in place of its bodies, status and annotations; `Redacted` says how. Never raises.

        Args:
            event: at any level and stage; it is not changed.
            request: `request_of(event)`.

        """
        return self.redact_parts(
            request, event.request_object, event.response_object, event.annotations, event.response_status
        )

    def redact_parts(
        self, request: Request, request_object: Raw, response_object: Raw, annotations: Raw, response_status: Raw
    ) -> Redacted:
        """`redact` for an event of which these parts are left; empty: it has none."""
        redactions = self._redactions(request)
        parts = [
            (name, raw, _may_name_a_kind(raw))
            for name, raw in (
                ("requestObject", bytes(request_object)),
                ("responseObject", bytes(response_object)),
                ("annotations", bytes(annotations)),
                # Last: it may quote any of the others.
                ("responseStatus", bytes(response_status)),
            )
            if raw
        ]
        if not redactions and not any(named for _, _, named in parts):
            return _NOTHING
        run = _Run(self._kinds, self._hash_key, redactions)
        fields: dict[str, Raw] = {}
        for name, raw, named in parts:
            if not (run.suspicious or named):
                continue
            try:
                fields[name] = Raw(_encode(run.rewrite(name, raw, request, named=named)))
            except Exception:  # whatever went wrong, the value must not pass
                fields[name] = Raw(_encode(UNREDACTABLE))
                run.failed.append(name)
        return Redacted(fields, run.count, tuple(run.failed))

    def _redactions(self, request: Request) -> tuple[_Redaction, ...]:
        key = (request.api_group, request.resource, request.subresource)
        if not request.is_resource:
            return ()
        if (known := self._memo.get(key)) is not None:
            return known
        return self._memo.remember(key, _compile(self.rules_for(request)), sum(map(len, key)))


class _Run:
    """One event being redacted. Values are replaced in copies; what is untouched is shared with the input."""

    __slots__ = ("_hash_key", "_kinds", "_opened", "_redactions", "_searched", "count", "failed")

    def __init__(
        self, kinds: Mapping[str, tuple[_Redaction, ...]], hash_key: bytes, redactions: tuple[_Redaction, ...]
    ) -> None:
        self._kinds = kinds
        self._hash_key = hash_key
        self._redactions = redactions
        self._opened: tuple[type, ...] = (dict, list, str)
        self._searched = True
        self.count = 0
        self.failed: list[str] = []

    @property
    def suspicious(self) -> bool:
        """Whether there is something in this event, so that messages about it may quote it."""
        return bool(self._redactions) or self.count > 0 or bool(self.failed)

    def rewrite(self, field: str, raw: bytes, request: Request, *, named: bool) -> Any:
        """The value of one of the event's top-level fields, redacted. ``named``: `_may_name_a_kind` of it."""
        value = _decode(raw)
        # Most bodies have many strings and nothing in them.
        in_text = named and _may_name_a_kind_in_text(raw)
        self._opened = (dict, list, str) if in_text else (dict, list)
        # Of one that names no kind nothing is left to look for but too many levels.
        self._searched = named or raw.count(b"{") + raw.count(b"[") > MAX_DEPTH
        if field == "annotations":
            return self._annotations(value, request)
        may_quote = self.suspicious or in_text
        if field == "responseStatus":
            return self._status(value) if may_quote else value
        if field == "responseObject" and may_quote and _is_status(value):
            value = self._status(value)
            if value.keys() <= _STATUS_FIELDS:
                return self._embedded(value, 0)
        if self._redactions:
            if field == "requestObject" and request.verb == "patch":
                value = self._patch(value, request)
            else:
                value = self._objects(value, self._redactions, 0)
        return self._embedded(value, 0)

    def _status(self, status: Any) -> Any:
        """An error may quote the body: what did not parse, or a value that is not allowed."""
        if isinstance(status, dict) and _names_only(status):
            return status
        for steps in _MESSAGES:
            status = self._at(status, steps, Action.MASK)
        if isinstance(status, dict) and not _is_word(status.get("reason")):
            status = self._at(status, _steps("reason"), Action.MASK)
        return status

    def _annotations(self, annotations: Any, request: Request) -> Any:
        """The event's own annotations, of which those that mutating webhooks leave hold object content."""
        changed = dict(annotations)
        for key, text in annotations.items():
            if key.startswith(PATCH_ANNOTATION):
                if self._redactions or _may_name_a_kind(text.encode()):
                    changed[key] = self._patch_annotation(text, request)
            elif key == FAILURE_ANNOTATION and self.suspicious:
                changed[key] = self._failure_annotation(text)
            else:
                changed[key] = self._text(text, 0)
        return changed

    def _failure_annotation(self, text: str) -> str:
        """``[{"message": ..., "policy": ..., "binding": ..., "expressionIndex": 0, ...}]`` as JSON in a string."""
        try:
            return _encode(self._at(_decode(text), (None, ("message",)), Action.MASK)).decode()
        except Exception:  # not what the API server leaves
            self.count += 1
            return MASK

    def _patch_annotation(self, text: str, request: Request) -> str:
        """``{"configuration": ..., "webhook": ..., "patch": [...], "patchType": "JSONPatch"}`` as JSON in a string."""
        try:
            content = _decode(text)
            patch, content["patch"] = content["patch"], None
            if self._redactions:
                patch = self._patch(patch, request)
                for key in content.keys() - _PATCH_ANNOTATION_FIELDS:
                    content[key] = self._replacement(content[key], Action.MASK)
            return _encode({**self._embedded(content, 0), "patch": self._embedded(patch, 0)}).decode()
        except Exception:  # not what webhooks leave, or too deep: no longer worth a look
            self.count += 1
            return MASK

    def _patch(self, patch: Any, request: Request) -> Any:
        """The body of a PATCH, as the client sent it: a JSON patch is a list, all others look like the object."""
        redactions = self._redactions
        if known := _FIELDS.get((request.api_group, request.resource)):
            slips = _Redaction((known,), Action.MASK), _Redaction((("metadata",), _METADATA), Action.MASK)
            redactions = (*redactions, *slips)
        if isinstance(patch, list):
            return [self._operation(operation, redactions) for operation in patch]
        return self._objects(patch, redactions, 0)

    def _operation(self, operation: Any, redactions: tuple[_Redaction, ...]) -> Any:
        """One operation of a JSON patch. Whatever is not its name or a pointer is content, a misspelt ``Value`` too."""
        if not isinstance(operation, dict):
            return self._replacement(operation, Action.MASK)
        pointer = _pointer(operation.get("path"))
        result = {}
        for key, value in operation.items():
            content = value
            if key not in ("op", "path", "from") or not isinstance(value, str):
                content = self._pointed_at(value, pointer, redactions)
            if content is not _GONE:
                result[key] = content
        return result

    def _pointed_at(self, value: Any, pointer: tuple[str, ...] | None, redactions: tuple[_Redaction, ...]) -> Any:
        if pointer is None:
            return self._replacement(value, Action.MASK)
        if not pointer:
            return self._objects(value, redactions, 0)
        for steps, action in redactions:
            remaining = _below(steps, pointer)
            if remaining is not None and value is not _GONE:
                value = self._at(value, remaining, action)
        return value

    def _objects(self, value: Any, redactions: tuple[_Redaction, ...], wrappers: int) -> Any:
        """The object in ``value``, or the objects: in a list's items, a Table's rows, an event of a watch."""
        if value is None:
            return None
        if not isinstance(value, dict):
            return self._replacement(value, Action.MASK)
        if wrappers > _MAX_WRAPPERS:
            raise _TooDeepError
        node = value
        for steps, action in redactions:
            node = self._at(node, steps, action)

        items = node.get("items")
        if isinstance(items, list):
            # A custom resource may well have items of its own; in a list all of them are objects.
            a_list = str(node.get("kind", "List")).endswith("List")
            node = node | {
                "items": [
                    self._objects(item, redactions, wrappers + 1) if a_list or isinstance(item, dict) else item
                    for item in items
                ]
            }
        rows = node.get("rows")
        if isinstance(rows, list):
            node = node | {"rows": [self._wrapped(row, redactions, wrappers) for row in rows]}
            if node.get("kind") == "Table":
                # Columns are made of fields, of whichever a custom resource likes to print.
                node = self._at(node, _CELLS, Action.REMOVE)
        if "type" in node:
            node = self._wrapped(node, redactions, wrappers)
        return node

    def _wrapped(self, value: Any, redactions: tuple[_Redaction, ...], wrappers: int) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("object"), dict):
            return value
        return value | {"object": self._objects(value["object"], redactions, wrappers + 1)}

    def _embedded(self, value: Any, depth: int) -> Any:
        """Objects of the built-in kinds wherever they are, and annotations that repeat an object with one in it."""
        if not self._searched:
            return value
        if isinstance(value, str):
            return self._text(value, depth)
        if not isinstance(value, dict | list):
            return value
        if depth >= MAX_DEPTH:
            raise _TooDeepError
        opened = self._opened
        if isinstance(value, list):
            return [self._embedded(item, depth + 1) if isinstance(item, opened) else item for item in value]
        kind = value.get("kind")
        node = value
        if isinstance(kind, str) and (redactions := self._kinds.get(kind)):
            done = depth == 0 and all(redaction in self._redactions for redaction in redactions)
            node = value if done else self._objects(value, redactions, 0)
        result = {}
        for key, child in node.items():
            if not isinstance(child, opened):
                result[key] = child
            elif isinstance(child, str) and key in REPEATING_ANNOTATIONS and self._repeats_one(child):
                self.count += 1
            else:
                result[key] = self._embedded(child, depth + 1)
        return result

    def _repeats_one(self, text: str) -> bool:
        """Whether something would have to be redacted in an object that is written as JSON in an annotation."""
        if not _may_name_a_kind(text.encode()):
            return False
        run = _Run(self._kinds, self._hash_key, ())
        try:
            run._embedded(_decode(text), 0)
        except Exception:  # it cannot be told, so it may
            return True
        return run.count > 0

    def _text(self, text: str, depth: int) -> str:
        """A string, which may hold an object as JSON: annotations of many tools, configuration, patches of those."""
        if not _JSON_TEXT.match(text) or not _may_name_a_kind(text.encode()):
            return text
        before = self.count
        try:
            value = self._embedded(_decode(text), depth + 1)
        except Exception:  # it cannot be told what is in it
            self.count += 1
            return MASK
        return text if self.count == before else _encode(value).decode()

    def _at(self, value: Any, steps: tuple[_Step, ...], action: Action) -> Any:
        """``value`` with what the steps lead to replaced. Where they lead nowhere for its type, it goes itself."""
        if value is None:
            return None
        if not steps:
            return self._replacement(value, action)
        step, rest = steps[0], steps[1:]
        if isinstance(value, dict):
            keys = [key for key in value if _reaches(step, key)]
            if not keys:
                return value
            replaced = value | {key: self._at(value[key], rest, action) for key in keys}
            return {key: child for key, child in replaced.items() if child is not _GONE}
        if isinstance(value, list) and step is None:
            children = [self._at(child, rest, action) for child in value]
            return [child for child in children if child is not _GONE]
        return self._replacement(value, action)

    def _replacement(self, value: Any, action: Action) -> Any:
        if value == MASK and action is not Action.REMOVE:
            return MASK  # by an earlier rule
        self.count += 1
        if action is Action.REMOVE:
            return _GONE
        if action is Action.HASH:
            return "hmac-sha256:" + hmac.digest(self._hash_key, _encode_sorted(value), "sha256").hex()
        return MASK


_GONE = object()
"""In place of a value: there is none any more."""


class _TooDeepError(Exception):
    """More levels than MAX_DEPTH, or more wrappers than _MAX_WRAPPERS."""


_CODES_WITHOUT_QUOTES = frozenset({*range(100, 400), 401, 403, 404, 405, 406, 408, 409, 410, 413, 415, 429})
"""Success, and errors whose message the API server makes of names. The others (400, 422, 500, 0) quote the body that
did not parse, or the value that is not allowed."""

_DENIED = re.compile("admission webhook|AdmissionPolicy|denied (?:the )?request")
"""What webhooks and admission policies say, at a code of their choice, may quote the object that they judge."""


_STATUS_FIELDS = frozenset({"kind", "apiVersion", "metadata", "status", "message", "reason", "details", "code"})
_PATCH_ANNOTATION_FIELDS = frozenset({"configuration", "webhook", "patch", "patchType"})


def _names_only(status: Mapping[str, Any]) -> bool:
    return (
        status.get("code") in _CODES_WITHOUT_QUOTES
        and _is_word(status.get("reason"))
        and not _DENIED.search(status.get("message", ""))
    )


def _is_word(reason: Any) -> bool:
    """What a reason is, unless a webhook gave its explanation there."""
    return reason is None or (isinstance(reason, str) and re.fullmatch("[A-Za-z]*", reason) is not None)


def _is_status(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("kind") == "Status"
        and str(value.get("apiVersion")).removeprefix("meta.k8s.io/").startswith("v1")
    )


_KINDS_PATTERN = rb'"(?:Secret|ConfigMap|TokenRe|CertificateSigningRequest|PodCertificateRequest)'
_KIND_HINT = re.compile(_KINDS_PATTERN)
_KIND_HINT_IN_TEXT = re.compile(rb"\\" + _KINDS_PATTERN)
_FIRST_HINT = re.compile(rb'"[SCTP][eo][cnkrd]')
"""How all of them begin; it takes half the time to find that nothing does."""
_ESCAPED = re.compile(rb"\\u00(?:22|[4-7])")
"""A letter or a quotation mark that is written as an escape: in JSON within a string, the latter too."""

_JSON_TEXT = re.compile(r'\s*(?:\{\s*["}]|\[\s*[\[{]|"\s*[\\\[{])')
"""How text begins that is JSON and may have an object in it, which a template does not (``{{``)."""


_BACKSLASH = ord("\\")  # a number is looked for three times as fast as a byte string of one
_SHORT = 200
"""Bytes for which remembering an answer costs less than asking again."""
_asked: Memo[bytes, bool] = Memo()


def _may_name_a_kind(raw: bytes) -> bool:
    """Whether one of the kinds may be somewhere in this JSON: all bodies are asked, few are parsed."""
    if len(raw) > _SHORT:
        return _names_a_kind(raw)
    # Annotations and statuses, which repeat themselves.
    found = _asked.get(raw)
    return _asked.remember(raw, _names_a_kind(raw), len(raw)) if found is None else found


def _names_a_kind(raw: bytes) -> bool:
    if _FIRST_HINT.search(raw) is not None and _KIND_HINT.search(raw) is not None:
        return True
    return _BACKSLASH in raw and b"\\u00" in raw and _ESCAPED.search(raw) is not None


def _may_name_a_kind_in_text(raw: bytes) -> bool:
    """The same for the strings in it, in which quotation marks are escaped."""
    return _KIND_HINT_IN_TEXT.search(raw) is not None or (b"\\u00" in raw and _ESCAPED.search(raw) is not None)


def _reaches(step: _Step, key: str) -> bool:
    """Whether a path goes on under this key. Directives of strategic merge patches hold values of the field they are
    about: ``$deleteFromPrimitiveList/tokens``.
    """
    if step is None:
        return True
    if isinstance(step, tuple):
        return key in step or (key := key.casefold()) in step or (key[:1] == "$" and key.partition("/")[2] in step)
    return key.casefold() not in step


def _below(steps: tuple[_Step, ...], pointer: tuple[str, ...]) -> tuple[_Step, ...] | None:
    """The steps that are left at the place a JSON pointer leads to, none if it is at their end or below. None: they
    lead elsewhere.
    """
    for step, part in zip(steps, pointer, strict=False):
        if not _reaches(step, part):
            # A place in a list where the path expects a field: what is there is of another type than it should be.
            return () if part == "-" or part.isdecimal() else None
    return steps[len(pointer) :]


def _pointer(text: Any) -> tuple[str, ...] | None:
    """A JSON pointer (RFC 6901) as its parts; None: it is none."""
    if text == "":
        return ()
    if not isinstance(text, str) or not text.startswith("/"):
        return None
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in text[1:].split("/"))


def _covers(rule: RedactionRule, request: Request) -> bool:
    """A subresource is mostly another way to the same object: a rule for ``pods`` is one for ``pods/status``."""
    return any(
        group_resources_match(entry, request.api_group, request.resource, subresource)
        for entry in rule.resources
        for subresource in {request.subresource, ""}
    )


def _compile(rules: Iterable[RedactionRule]) -> tuple[_Redaction, ...]:
    """The paths of the rules. Those that differ in their last name only become one: objects are gone through once."""
    found: dict[tuple[tuple[_Step, ...], Action], _Step] = {}
    for rule in rules:
        for path in rule.paths:
            *way, last = _steps(path)
            where = tuple(way), rule.action
            if isinstance(last, tuple):
                known = found.get(where, ())
                found[where] = (*known, *last) if isinstance(known, tuple) else None
            else:
                found[where] = None
    return tuple(_Redaction((*way, last), action) for (way, action), last in found.items())


_FIRST_NAME = re.compile(r"([A-Za-z0-9_-]+)")
_DOT_NAME = re.compile(r"\.([A-Za-z0-9_-]+)")
_QUOTED = re.compile(r'\["([^"\\]+)"\]')


def _steps(path: str) -> tuple[tuple[str] | None, ...]:
    """The path as case-folded keys, None for any child. Raises RedactionError with the place in the path only."""
    steps: list[tuple[str] | None] = []
    at = 0
    while at < len(path) or not steps:
        if steps and path.startswith("[*]", at):
            steps.append(None)
            at += 3
        elif quoted := _QUOTED.match(path, at):
            steps.append((quoted[1].casefold(),))
            at = quoted.end()
        elif steps and path.startswith(".*", at):
            steps.append(None)
            at += 2
        elif (name := (_DOT_NAME if steps else _FIRST_NAME).match(path, at)) is not None:
            steps.append((name[1].casefold(),))
            at = name.end()
        else:
            raise RedactionError(f"at character {at + 1}: {_problem(path[at:], first=not steps)}")
    return tuple(steps)


def _problem(rest: str, *, first: bool) -> str:
    if first:
        return 'a path starts with the name of a field, as in spec.password or ["odd name"].key'
    if re.match(r"\[[0-9]+\]", rest):
        return "items have no fixed place in a patch; write [*] for all of them"
    if rest.startswith("["):
        return '[ starts neither [*] nor ["name"]'
    if rest == "." or rest.startswith(".."):
        return "a name is missing after the dot"
    return f'{rest[0]!r} is not part of a plain name; write such a name as ["odd name"]'


_RESOURCE = re.compile(r"\*|(?:\*/)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?|[a-z0-9]([-a-z0-9.]*[a-z0-9])?/(?:\*|[a-z0-9-]+)")
_GROUP = re.compile(r"\*|(?:[a-z0-9]([-a-z0-9.]*[a-z0-9])?)?")
_SHORTEST_KEY = 16


def _check(rule: RedactionRule, place: str, hash_key: bytes) -> None:
    for index, entry in enumerate(rule.resources):
        if not _GROUP.fullmatch(entry.group):
            raise RedactionError(
                f"{place}.resources[{index}].group: {entry.group!r} is no API group; "
                'write it without version, such as "apps", or "" for the core group'
            )
        for item in entry.resources:
            if not _RESOURCE.fullmatch(item):
                raise RedactionError(
                    f"{place}.resources[{index}].resources: {item!r} matches no resource; "
                    'write a plural name in lower case, such as "logins", "logins/status", or "*"'
                )
        if entry.resource_names:
            raise RedactionError(
                f"{place}.resources[{index}].resourceNames: {list(entry.resource_names)} cannot be relied on, "
                "a create has no name yet; leave resourceNames out"
            )
    if not rule.resources or not rule.paths:
        raise RedactionError(f"{place}: nothing to redact; name at least one of resources and one of paths")
    for index, path in enumerate(rule.paths):
        try:
            _steps(path)
        except RedactionError as error:
            raise RedactionError(f"{place}.paths[{index}]: {path!r} is not a path: {error}") from None
    if rule.action is Action.HASH and len(hash_key) < _SHORTEST_KEY:
        raise RedactionError(
            f"{place}.action: Hash needs a secret key of at least {_SHORTEST_KEY} bytes, got {len(hash_key)}; "
            "give one or write Remove"
        )


_MESSAGES = _steps("message"), _steps("details.causes[*].message")
_CELLS = _steps("rows[*].cells")


def _number(text: str) -> Decimal:
    """A fraction as it is written: 1.10 stays 1.10."""
    number = Decimal(text)
    if not number.is_finite():
        raise ValueError("number out of range")
    return number


_decode = msgspec.json.Decoder(float_hook=_number).decode
_encode = msgspec.json.Encoder(decimal_format="number").encode
_encode_sorted = msgspec.json.Encoder(decimal_format="number", order="sorted").encode
