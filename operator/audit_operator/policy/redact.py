"""What must not leave: credentials in bodies, removed, masked or hashed before an event is delivered.

Which fields: those of `BUILT_IN`, always, and the user's rules on top, in every body of a request for the rule's
resources, whatever its form: the object, a list, a Table, a merge, strategic or apply patch, a JSON patch, and the
patches of webhooks in the event's annotations. What else may repeat a field goes by allow-lists, for nobody can list
the tools that keep a copy:

* of the objects' annotations all but `HARMLESS_ANNOTATIONS` are masked, of built-in kinds all labels but
  `_HARMLESS_LABELS`; managedFields keep who and when; a Table loses its cells, which print fields.
* of errors, in responseStatus too, what is left is what the API server says of names (`_SAYS`), and reasons that it has
  (`_REASONS`), whatever the code.
* of the event's own annotations those that the API server makes of names stay (`_HARMLESS_NOTES`).
* what was redacted in an event is hidden where it stands in metadata, keys, pointers of JSON patches and errors of the
  same event, plain or in base64; a term of a fieldSelector in the URL that demands a redacted field's value is masked.

Objects of the built-in kinds are found by their ``kind`` in any other body as well, such as a custom resource with a
Secret in it, and in JSON that a string holds, in base64 too.

What is out of reach: a credential in a field that no rule names (the value of an environment variable), in text that
is no JSON (YAML in a string, a compressed archive), in a patch of another resource that does not name the kind, or
moved by its author to another field; and objects of the *user's* rules inside bodies of other resources. Names,
namespaces and UIDs are what an event is about, and stay. So do the request's URL, the command of an exec included, and
what clients say of themselves (userAgent, user.extra): what was run is what an investigation is about.

It fails closed. A value of an unexpected type on the way to a field is replaced as a whole, keys match whatever their
case, an object that names two kinds counts as the one that has secrets, and what cannot be parsed, nests too deep or
breaks the code is replaced by `UNREDACTABLE`; the envelope stays.
"""

import base64
import binascii
import enum
import hmac
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote, unquote_plus

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

    ``fields`` replace the event's top-level fields of these names; any other field is to be written as it came, once.
    They must be used even where nothing was redacted: of a key given twice in a body its own bytes hold the first, too.
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

HARMLESS_ANNOTATIONS = frozenset(
    {
        *("deployment.kubernetes.io/revision", "deployment.kubernetes.io/desired-replicas"),
        *("deployment.kubernetes.io/max-replicas", "kubectl.kubernetes.io/restartedat"),
        *("kubectl.kubernetes.io/default-container", "rbac.authorization.kubernetes.io/autoupdate"),
        *("kubernetes.io/service-account.name", "kubernetes.io/service-account.uid", "kubernetes.io/config.source"),
        *("meta.helm.sh/release-name", "meta.helm.sh/release-namespace", "helm.sh/resource-policy", "helm.sh/hook"),
        *("cert-manager.io/certificate-name", "cert-manager.io/issuer-name", "cert-manager.io/issuer-kind"),
        *("cert-manager.io/issuer-group", "argocd.argoproj.io/sync-wave", "argocd.argoproj.io/tracking-id"),
        *("prometheus.io/scrape", "prometheus.io/port", "sidecar.istio.io/inject", "linkerd.io/inject"),
        "cluster-autoscaler.kubernetes.io/safe-to-evict",
    }
)
"""Case folded: names, numbers and switches that controllers keep. All other annotations of an object that is redacted
are masked, unless a rule of the user's names them: any tool may keep a copy of the object in its own."""

_HARMLESS_LABELS = frozenset(
    {
        *("app", "k8s-app", "component", "tier", "name", "owner", "status", "version", "helm.sh/chart"),
        *("app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/version"),
        *("app.kubernetes.io/component", "app.kubernetes.io/part-of", "app.kubernetes.io/managed-by"),
        *("argocd.argoproj.io/secret-type", "argocd.argoproj.io/instance", "controller.cert-manager.io/fao"),
        *("kubernetes.io/bootstrapping", "kubernetes.io/legacy-token-last-used", "modifiedat", "createdat"),
    }
)
"""The same for labels of the built-in kinds. The user's kinds keep theirs: they say which workload it is about."""

_MANAGED = frozenset({"manager", "operation", "apiversion", "time", "fieldstype", "subresource"})
"""What stays of an entry of managedFields: fieldsV1 holds keys and set members by value."""

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
``kubectl patch --record`` has the patch in it. On objects that are not redacted they go if a Secret is in the copy.
"""

PATCH_ANNOTATION = "patch.webhook.admission.k8s.io/"
"""Prefix of the event annotations that hold what mutating webhooks did to the object."""

FAILURE_ANNOTATION = "validation.policy.admission.k8s.io/validation_failure"
"""Event annotation of a ValidatingAdmissionPolicy, whose messages are made by expressions over the object."""


def _built_in(resource: str, *paths: str, action: Action = Action.MASK) -> RedactionRule:
    return RedactionRule(resources=(GroupResources("*", (resource,)),), paths=paths, action=action)


BUILT_IN: tuple[RedactionRule, ...] = (
    _built_in("secrets", "data.*", "stringData.*"),
    _built_in("configmaps", "data.*", "binaryData.*"),
    _built_in("serviceaccounts/token", "status.token"),
    _built_in("tokenreviews", "spec.token"),
    _built_in("tokenreviews", "status", action=Action.REMOVE),
    _built_in("certificatesigningrequests", "spec.request", "status.certificate"),
    _built_in(
        "podcertificaterequests",
        *("spec.proofOfPossession", "spec.stubPKCS10Request", "status.certificateChain"),
    ),
)
"""Always in force, in any group: whoever defined ``secrets``, what is in them is secret. Names of keys stay: which key
of a Secret was changed is worth knowing, and no secret."""

REPEATED = RedactionRule(
    resources=(), paths=("metadata.annotations.*", "metadata.managedFields[*].fieldsV1"), action=Action.MASK
)
"""Goes with every other rule: what repeats the object's fields elsewhere in it. For explanations; `_repeated` says what
stays."""

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
    """``secret``: what is there is hidden elsewhere in the event as well. ``closed``: what is of another type than the
    steps expect goes as a whole.
    """

    steps: tuple[_Step, ...]
    action: Action
    secret: bool = True
    closed: bool = True


class _Rules(NamedTuple):
    """What is redacted of an object. ``paths``: in it. ``kept``: of its annotations, of its labels, what stays; no
    entry: all. ``pointers``: both as paths, for what is no object. ``templates``: ``kept`` of what workloads make.
    """

    paths: tuple[_Redaction, ...] = ()
    kept: Mapping[str, frozenset[str]] = {}
    pointers: tuple[_Redaction, ...] = ()
    templates: Mapping[str, frozenset[str]] = {}

    def beside(self, other: "_Rules") -> "_Rules":
        """Both."""
        if not self.paths or not other.paths:
            return self if self.paths else other
        kept = {**self.kept, **other.kept}
        for name in self.kept.keys() & other.kept.keys():
            kept[name] = self.kept[name] & other.kept[name]
        paths = tuple(dict.fromkeys((*self.paths, *other.paths)))
        pointers = tuple(dict.fromkeys((*self.pointers, *other.pointers)))
        return _Rules(paths, kept, pointers, self.templates or other.templates)


_NO_RULES = _Rules()


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
            name: _compile([rule for rule in BUILT_IN if _covers(rule, request)])
            for kind, request in _KINDS.items()
            for name in (kind, f"{kind}List")
        }
        self._memo: Memo[tuple[str, str, str], _Rules] = Memo()

    def rules_for(self, request: Request) -> tuple[RedactionRule, ...]:
        """The rules that the bodies of this request fall under. None: they are only searched for built-in kinds."""
        if not request.is_resource:
            return ()
        found = [rule for rule in (*BUILT_IN, *self._rules) if _covers(rule, request)]
        return (*found, REPEATED) if found else ()

    def concerns(self, request: Request) -> bool:
        """Whether there are rules for this request. If not, only objects of the built-in kinds are looked for, and
        an event with nothing for `may_name_a_kind` in it may leave as it is.
        """
        return bool(self._compiled(request).paths)

    def redact(self, event: Event, request: Request) -> Redacted:
        """What to write of ``event`` in place of its bodies, status and annotations; `Redacted` says how. Never raises.

        Args:
            event: at any level and stage; it is not changed.
            request: `request_of(event)`.

        """
        parts = {
            "requestObject": event.request_object,
            "responseObject": event.response_object,
            "annotations": event.annotations,
            "responseStatus": event.response_status,
        }
        return self.redact_parts(request, parts, uri=event.request_uri)

    def redact_parts(
        self,
        request: Request,
        parts: Mapping[str, Raw],
        *,
        also: Request | None = None,
        hidden: Collection[Raw] = (),
        uri: str = "",
    ) -> Redacted:
        """`redact` for an event of which these parts are left.

        Args:
            request: `request_of` the event.
            parts: the event's fields by name, but for those that only say who asked for what, and when. Empty: there is
                none. Names that are not known are those of a later version, and count as bodies.
            also: what the event's objectRef names, if that is another resource: its rules count as well.
            hidden: bodies that do not leave, but may be quoted in what does.
            uri: the request's.

        """
        rules = self._compiled(request)
        if also is not None:
            rules = rules.beside(self._compiled(also))
        concerned = bool(rules.paths)
        run = _Run(self._kinds, self._hash_key, rules)
        if hidden:
            run.look_into(hidden, request)
        raws = {name: bytes(part) for name, part in parts.items()}
        values: dict[str, Any] = {}
        for name in (*(name for name in raws if name not in _ORDER), *_ORDER):
            raw = raws.get(name)
            if not raw or (name in _SAYING and _says_nothing(name, raw)):
                continue
            named = may_name_a_kind(raw)
            if not (named or run.suspicious):
                continue
            try:
                values[name] = run.rewrite(name, raw, request, named=named)
            except Exception:  # whatever went wrong, the value must not pass
                values[name] = UNREDACTABLE
                run.failed.append(name if name in _ORDER else _OTHER)
        fields: dict[str, Raw] = {}
        forms = _Forms(run.values) if run.values else None
        for name, value in values.items():
            try:
                written = _encode(value)
                if forms is not None and forms.found_in(written):
                    written = _encode(run.without(forms, name, value))
            except Exception:
                written = _encode(UNREDACTABLE)
                run.failed.append(name if name in _ORDER else _OTHER)
            if written != raws[name]:
                fields[name] = Raw(written)
        if concerned and "?" in uri and (asked := _without_values(uri, rules.paths)) != uri:
            run.count += 1
            fields["requestURI"] = Raw(_encode(asked))
        return Redacted(fields, run.count, tuple(dict.fromkeys(run.failed)))

    def _compiled(self, request: Request) -> _Rules:
        if not request.is_resource:
            return _NO_RULES
        key = (request.api_group, request.resource, request.subresource)
        if (known := self._memo.get(key)) is not None:
            return known
        rules = [rule for rule in self.rules_for(request) if rule is not REPEATED]
        return self._memo.remember(key, _compile(rules), sum(map(len, key)))


_SAYING = frozenset({"annotations", "responseStatus"})
_ORDER = ("requestObject", "responseObject", "annotations", "responseStatus")
"""In which an event's fields are gone through, those of later versions first: the last may quote any of the others."""

_OTHER = "other"
"""In place of a name that is no field of the API's: names are labels of metrics."""


class _Run:
    """One event being redacted. Values are replaced in copies; what is untouched is shared with the input."""

    __slots__ = (
        *("_hash_key", "_kinds", "_opened", "_quoted", "_rules", "_searched", "_secret", "_seen"),
        *("count", "failed", "values"),
    )

    def __init__(self, kinds: Mapping[str, _Rules], hash_key: bytes, rules: _Rules) -> None:
        self._kinds = kinds
        self._hash_key = hash_key
        self._rules = rules
        self._opened = _WITH_TEXT
        self._searched = True
        self._quoted = False
        self._secret = True
        self._seen = 0
        self.count = 0
        self.failed: list[str] = []
        self.values: list[Any] = []
        """What was redacted."""

    @property
    def suspicious(self) -> bool:
        """Whether there is something in this event, so that messages about it may quote it."""
        return bool(self._rules.paths) or self._quoted or self.count > 0 or bool(self.failed)

    def look_into(self, hidden: Collection[Raw], request: Request) -> None:
        """Bodies of which nothing leaves: what is in them is not counted, but makes suspicious."""
        for part in hidden:
            raw = bytes(part)
            if not (self._rules.paths or may_name_a_kind(raw)):
                continue
            try:
                self.rewrite("responseObject", raw, request, named=True)
            except Exception:
                self._quoted = True
            self._quoted |= self.count > 0
            self.count = 0

    def rewrite(self, field: str, raw: bytes, request: Request, *, named: bool) -> Any:
        """The value of one of the event's top-level fields, redacted. ``named``: `may_name_a_kind` of it."""
        # Most bodies have many strings and nothing in them.
        in_text = named and _may_name_a_kind_in_text(raw)
        self._opened = _WITH_TEXT if in_text else _CONTAINERS
        # Of one that names no kind nothing is left to look for but too many levels.
        self._searched = named or raw.count(b"{") + raw.count(b"[") > MAX_DEPTH
        may_quote = self.suspicious or in_text
        if not named or field in _SAYING:
            return self._rewritten(field, _decode(raw), request, may_quote=may_quote)
        return self._as_anybody_reads(raw, lambda value: self._rewritten(field, value, request, may_quote=may_quote))

    def _as_anybody_reads(self, raw: bytes, search: Callable[[Any], Any]) -> Any:
        """``search`` of what is in this JSON, again if some object in it has its kind twice or not plainly written:
        which one counts depends on who reads it.
        """
        count, values, self._seen = self.count, len(self.values), 0
        found = search(_decode(raw))
        if self._may_differ(raw):
            self.count = count
            del self.values[values:]
            found = search(_decode_all(raw))
        return found

    def _may_differ(self, raw: bytes) -> bool:
        """Whether it may have more kinds than were seen: given twice, in another case, or with escapes."""
        return _ESCAPED.search(raw) is not None or (
            self._seen != raw.lower().count(b'"kind"') and self._seen != len(_A_KIND.findall(raw))
        )

    def _rewritten(self, field: str, value: Any, request: Request, *, may_quote: bool) -> Any:
        if field == "annotations":
            return self._annotations(value, request)
        if field == "responseStatus":
            return self._status(value, request) if may_quote else value
        if field == "responseObject" and may_quote and _is_status(value):
            return self._status(value, request)
        if self._rules.paths:
            if field == "requestObject" and request.verb == "patch":
                value = self._patch(value, request)
            else:
                value = self._objects(value, self._rules, 0)
        return self._embedded(value, 0) if self._searched else value

    def _status(self, status: Any, request: Request) -> Any:
        """An error may quote the body: what did not parse, a value that is not allowed, what webhooks make of it. Left
        is what an API server says of names.
        """
        self._secret = False
        if not isinstance(status, dict):
            return self._replacement(status, Action.MASK)
        if status.keys() <= _PLAIN_STATUS and not status.get("metadata") and isinstance(status.get("code"), int):
            return status
        said = _said(status.get("message"))
        names = (request.name, *said.names)
        result = {}
        for key, value in status.items():
            if value in (None, "", {}):
                kept = True
            elif key == "details" and isinstance(value, dict):
                result[key] = self._details(value, names, request, server=said.server)
                continue
            elif key == "message" and said.kept:
                result[key] = said.kept
                self.count += said.kept != value
                continue
            else:
                allowed = _STATUS_VALUES.get(key)
                kept = isinstance(value, str) and allowed is not None and value in allowed
                kept = kept or (key == "code" and type(value) is int)
            result[key] = value if kept else self._replacement(value, Action.MASK)
        return result

    def _details(self, details: dict[str, Any], names: Collection[str], request: Request, *, server: bool) -> Any:
        """``{"name": ..., "kind": ..., "uid": ..., "causes": [...]}``; ``server``: no webhook made it."""
        result: dict[str, Any] = {}
        for key, value in details.items():
            match key:
                case "causes" if isinstance(value, list):
                    result[key] = [self._cause(cause, server=server) for cause in value]
                    continue
                case "name":
                    kept = value in names
                case "group":
                    kept = value == request.api_group or value in names
                case "kind":
                    kept = value == request.resource or value in names
                case "uid":
                    kept = server and isinstance(value, str) and _UID.fullmatch(value) is not None
                case "retryAfterSeconds":
                    kept = type(value) is int
                case _:
                    self.count += 1
                    continue
            result[key] = value if kept or value in (None, "", [], {}) else self._replacement(value, Action.MASK)
        return result

    def _cause(self, cause: Any, *, server: bool) -> Any:
        if not isinstance(cause, dict):
            return self._replacement(cause, Action.MASK)
        result = {}
        for key, value in cause.items():
            if key not in ("reason", "message", "field"):
                self.count += 1
                continue
            if key == "field" and isinstance(value, str):
                # spec.users[key="hunter2"].role, spec.users[hunter2].role: what is in brackets is a value.
                plain = _PLAIN_FIELD.match(value) if server else None
                kept = plain[0] if plain else ""
                self.count += kept != value
                result[key] = value if kept == value else kept + MASK
                continue
            kept_whole = isinstance(value, str) and (
                (key == "reason" and value in _CAUSES)
                or (key == "message" and _SAID_OF_NAMES.fullmatch(value) is not None)
            )
            result[key] = value if kept_whole or value in (None, "") else self._replacement(value, Action.MASK)
        return result

    def _annotations(self, annotations: Any, request: Request) -> Any:
        """The event's own annotations, of which those that mutating webhooks leave hold object content."""
        changed = dict(annotations)
        suspicious = self.suspicious
        self._secret = False
        for key, text in annotations.items():
            if key.startswith(PATCH_ANNOTATION):
                if self._rules.paths or may_name_a_kind(text.encode()):
                    changed[key] = self._patch_annotation(text, request)
            elif not suspicious:
                changed[key] = self._text(text, 0)
            elif key == FAILURE_ANNOTATION:
                changed[key] = self._failure_annotation(text)
            elif not isinstance(text, str) or not _HARMLESS_NOTES.fullmatch(key):
                # Webhooks and admission policies leave what they like.
                changed[key] = self._replacement(text, Action.MASK)
        return changed

    def _failure_annotation(self, text: str) -> str:
        """``[{"message": ..., "policy": ..., "binding": ..., "expressionIndex": 0, ...}]`` as JSON in a string."""
        try:
            return _encode(self._at(_decode_all(text), (None, _FAILURE_FIELDS), Action.MASK)).decode()
        except Exception:  # not what the API server leaves
            self.count += 1
            return MASK

    def _patch_annotation(self, text: str, request: Request) -> str:
        """``{"configuration": ..., "webhook": ..., "patch": [...], "patchType": "JSONPatch"}`` as JSON in a string."""
        try:
            content = _decode_all(text)
            patch, content["patch"] = content["patch"], None
            if self._rules.paths:
                patch = self._patch(patch, request)
                for key in content.keys() - _PATCH_ANNOTATION_FIELDS:
                    content[key] = self._replacement(content[key], Action.MASK)
            return _encode({**self._embedded(content, 0), "patch": self._embedded(patch, 0)}).decode()
        except Exception:  # not what webhooks leave, or too deep: no longer worth a look
            self.count += 1
            return MASK

    def _patch(self, patch: Any, request: Request) -> Any:
        """The body of a PATCH, as the client sent it: a JSON patch is a list, all others look like the object."""
        rules = self._rules
        if known := _FIELDS.get((request.api_group, request.resource)):
            slips = _Redaction((known,), Action.MASK), _Redaction((("metadata",), _METADATA), Action.MASK)
            rules = rules._replace(paths=(*rules.paths, *slips), pointers=(*rules.pointers, *slips))
            if isinstance(patch, dict) and patch.get("$patch", "merge") not in _DIRECTIVES:
                patch = patch | {"$patch": self._replacement(patch["$patch"], Action.MASK)}
        if isinstance(patch, list):
            return [self._operation(operation, rules) for operation in patch]
        return self._objects(patch, rules, 0)

    def _operation(self, operation: Any, rules: _Rules) -> Any:
        """One operation of a JSON patch. Whatever is not its name or a pointer is content, a misspelt ``Value`` too."""
        if not isinstance(operation, dict):
            return self._replacement(operation, Action.MASK)
        pointer = _pointer(operation.get("path"))
        result = {}
        for key, value in operation.items():
            content = value
            if key == "op" and value not in _OPERATIONS:
                content = self._replacement(value, Action.MASK)
            elif key not in ("op", "path", "from") or not isinstance(value, str):
                content = self._pointed_at(value, pointer, rules)
            if content is not _GONE:
                result[key] = content
        return result

    def _pointed_at(self, value: Any, pointer: tuple[str, ...] | None, rules: _Rules) -> Any:
        self._secret = True
        if pointer is None:
            return self._replacement(value, Action.MASK)
        if not pointer:
            return self._objects(value, rules, 0)
        for steps, action, secret, closed in rules.pointers:
            remaining = _below(steps, pointer)
            if not closed and not (all(map(_reaches, steps, pointer)) and _leads(steps[len(pointer) :], value)):
                continue
            if remaining is not None and value is not _GONE:
                self._secret = secret
                value = self._at(value, remaining, action)
        return value

    def _objects(self, value: Any, rules: _Rules, wrappers: int) -> Any:
        """The object in ``value``, or the objects: in a list's items, a Table's rows, an event of a watch."""
        if value is None:
            return None
        self._secret = True
        if not isinstance(value, dict):
            return self._replacement(value, Action.MASK)
        if wrappers > _MAX_WRAPPERS:
            raise _TooDeepError
        node = value
        for redaction in rules.paths:
            node = self._at(node, redaction.steps, redaction.action)
        opened: dict[str, Any] = {}
        for key, child in node.items():
            name = key if key in _OPENED else key.casefold()
            if name not in _OPENED or child is None:
                continue
            if name == "metadata":
                opened[key] = self._metadata(child, rules.kept)
            elif name == "spec" and isinstance(child, dict):
                if rules.templates:
                    opened[key] = self._templates(child, rules.templates)
            elif name == "items" and isinstance(child, list):
                # A custom resource may well have items of its own; in a list all of them are objects.
                a_list = str(node.get("kind", "List")).endswith("List")
                opened[key] = [
                    self._objects(item, rules, wrappers + 1) if a_list or isinstance(item, dict) else item
                    for item in child
                ]
            elif name == "rows" and isinstance(child, list):
                opened[key] = [self._row(row, rules, wrappers) for row in child]
            elif name == "object" and isinstance(child, dict):
                opened[key] = self._objects(child, rules, wrappers + 1)
        if not opened:
            return node
        node = node | opened
        if node.get("kind") == "Table":
            # Columns are made of fields, of whichever a custom resource likes to print.
            self._secret = False
            return self._at(node, _CELLS, Action.REMOVE)
        return node

    def _row(self, value: Any, rules: _Rules, wrappers: int) -> Any:
        """Of a Table, or an event of a watch."""
        if not isinstance(value, dict):
            return value
        return value | {
            key: self._objects(child, rules, wrappers + 1)
            for key, child in value.items()
            if isinstance(child, dict) and key.casefold() == "object"
        }

    def _templates(self, spec: dict[str, Any], allowed: Mapping[str, frozenset[str]]) -> dict[str, Any]:
        """A workload's spec: what it makes has metadata, too."""
        for key in ("template", "jobTemplate"):
            template = spec.get(key)
            if isinstance(template, dict):
                if template.get("metadata") is not None:
                    template = template | {"metadata": self._metadata(template["metadata"], allowed)}
                if isinstance(template.get("spec"), dict) and key == "jobTemplate":
                    template = template | {"spec": self._templates(template["spec"], allowed)}
                spec = spec | {key: template}
        return spec

    def _metadata(self, value: Any, allowed: Mapping[str, frozenset[str]]) -> Any:
        """An object's metadata, without what may repeat its fields."""
        self._secret = False
        if not isinstance(value, dict):
            return self._replacement(value, Action.MASK)
        result = {}
        for key, child in value.items():
            name = key if key in _REPEATING else key.casefold()
            if name not in _REPEATING or child is None:
                result[key] = child
            elif name == "managedfields":
                result[key] = self._at(child, (None, _MANAGED), Action.REMOVE)
            elif (kept := allowed.get(name)) is None:
                result[key] = child
            elif isinstance(child, dict):
                result[key] = {
                    inner: text
                    if text is None or inner in kept or inner.casefold() in kept
                    else self._replacement(text, Action.MASK)
                    for inner, text in child.items()
                }
            else:
                result[key] = self._replacement(child, Action.MASK)
        return result

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
            items = value
            for at, item in enumerate(value):
                if item.__class__ in opened and (after := self._embedded(item, depth + 1)) is not item:
                    if items is value:
                        items = value.copy()
                    items[at] = after
            return items
        kind = value.get("kind")
        node = value
        if kind is not None or "kind" in value:
            self._seen += 1
            if isinstance(kind, str) and (rules := self._kinds.get(kind)) is not None:
                # What the request's own rules did to it need not be done again.
                own = self._rules.paths if depth == 0 else ()
                node = value if own and all(each in own for each in rules.paths) else self._objects(value, rules, 0)
            elif kind.__class__ is _Kinds:
                return self._replacement(_plain(value), Action.MASK)
        before = self.count
        result = node
        for key, child in node.items():
            if child.__class__ not in opened:
                continue
            if child.__class__ is not str:
                after = self._embedded(child, depth + 1)
            elif key in REPEATING_ANNOTATIONS and self._repeats_one(child):
                self.count += 1
                after = _GONE
            else:
                after = self._text(child, depth + 1) if child[:1] in _BEGINNINGS else child
            if after is not child:
                if result is node:
                    result = node.copy()
                if after is _GONE:
                    del result[key]
                else:
                    result[key] = after
        if kind == "Table" and self.count > before:
            self._secret = False
            return self._at(result, _CELLS, Action.REMOVE)
        return result

    def _repeats_one(self, text: str) -> bool:
        """Whether something would have to be redacted in an object that is written as JSON in an annotation."""
        if not may_name_a_kind(text.encode()):
            return False
        run = _Run(self._kinds, self._hash_key, _NO_RULES)
        try:
            run._embedded(_decode_all(text), 0)
        except Exception:  # it cannot be told, so it may
            return True
        return run.count > 0

    def _text(self, text: str, depth: int) -> str:
        """A string, which may hold an object as JSON: annotations of many tools, configuration, patches of those."""
        packed = _BASE64_TEXT.match(text) is not None
        raw = text.encode(errors="surrogatepass")
        if not (packed or _JSON_TEXT.match(text)) or not may_name_a_kind(b'"' + raw):
            return text
        if depth >= MAX_DEPTH:
            raise _TooDeepError
        before, seen = self.count, self._seen
        try:
            if packed:
                inside = _unpacked(raw)
                changed = inside is not None and self._text(inside.decode(), depth + 1) != inside.decode()
                return self._replacement(text, Action.MASK) if changed else text
            value = self._as_anybody_reads(raw, lambda value: self._embedded(value, depth + 1))
        except Exception:  # it cannot be told what is in it
            self.count += 1
            return MASK
        finally:
            self._seen = seen
        return text if self.count == before else _encode(value).decode()

    def _at(self, value: Any, steps: tuple[_Step, ...], action: Action) -> Any:
        """``value`` with what the steps lead to replaced. Where they lead nowhere for its type, it goes itself."""
        if value is None:
            return None
        if not steps:
            return self._replacement(value, action)
        step, rest = steps[0], steps[1:]
        if isinstance(value, dict):
            if step is None:
                keys: Collection[str] = value
            elif isinstance(step, tuple):
                keys = [
                    key
                    for key in value
                    if key in step or key.casefold() in step or (key[:1] == "$" and _reaches(step, key))
                ]
            else:
                keys = [key for key in value if key.casefold() not in step]
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
        if self._secret:
            self.values.append(value)
        if action is Action.REMOVE:
            return _GONE
        if action is Action.HASH:
            return "hmac-sha256:" + hmac.digest(self._hash_key, _encode_sorted(value), "sha256").hex()
        return MASK

    def without(self, forms: "_Forms", field: str, value: Any) -> Any:
        """One of the event's top-level fields, redacted, without what was redacted elsewhere in the event: in metadata
        but for what identifies an object, in keys and pointers, in what errors and annotations tell.
        """
        if field == "annotations" and isinstance(value, dict):
            return {
                key: text if key.startswith(_AUTHORIZED) else self._hidden(text, forms) for key, text in value.items()
            }
        if isinstance(value, dict) and (field == "responseStatus" or _is_status(value)):
            return value | {key: self._hidden(value[key], forms) for key in ("message", "details") if key in value}
        return self._purged(value, forms)

    def _purged(self, value: Any, forms: "_Forms") -> Any:
        if isinstance(value, list):
            return [self._purged(item, forms) for item in value]
        if not isinstance(value, dict):
            return value
        pointer = _pointer(value["path"]) if "op" in value and "path" in value else None
        result: dict[str, Any] = {}
        for key, child in value.items():
            if key.casefold() == "metadata" and isinstance(child, dict):
                after: Any = {}
                for inner, text in child.items():
                    kept = inner.casefold() in _IDENTITY
                    after[self._key(inner, forms, after)] = text if kept else self._hidden(text, forms)
            elif pointer is not None and (key in ("path", "from") or pointer[:1] == ("metadata",)) and key != "op":
                after = self._hidden(child, forms)
            else:
                after = self._purged(child, forms)
            result[self._key(key, forms, result)] = after
        return result

    def _key(self, key: str, forms: "_Forms", others: Collection[str]) -> str:
        if not forms.in_key(key):
            return key
        self.count += 1
        return MASK if MASK not in others else f"{MASK} {len(others)}"

    def _hidden(self, value: Any, forms: "_Forms") -> Any:
        if isinstance(value, dict):
            hidden: dict[str, Any] = {}
            for key, child in value.items():
                hidden[self._key(key, forms, hidden)] = self._hidden(child, forms)
            return hidden
        if isinstance(value, list):
            return [self._hidden(item, forms) for item in value]
        if isinstance(value, str) and value != MASK and forms.held_by(value):
            self.count += 1
            return MASK
        return value


class _Forms:
    """How what was redacted may be written elsewhere in its event: as it was, decoded or encoded in base64."""

    __slots__ = ("_all", "_texts", "_written")

    def __init__(self, values: Iterable[Any]) -> None:
        texts: set[str] = set()
        for leaf in set(_leaves(values)):
            texts.add(leaf[:_LONGEST_FORM].rstrip("="))
            if (text := _decoded(leaf[:_LONGEST_FORM])) is not None:
                texts.add(text)
            else:
                # Whole groups: they are the same whatever comes behind.
                whole = leaf[:_LONGEST_FORM].encode(errors="replace")
                texts.add(base64.b64encode(whole[: len(whole) // 3 * 3]).decode())
        self._texts = frozenset(text for text in texts if len(text) >= _SHORTEST_FORM)
        self._written = [_encode(text)[1:-1] for text in self._texts]
        self._all = False

    def found_in(self, written: bytes) -> bool:
        """Whether one of them may be in this JSON."""
        # Looking for so many, or for some in each of many texts, would take too long: any text may be one.
        unsearched = len(self._written) * len(written) > _MOST_COMPARED
        if not unsearched and not any(text in written for text in self._written):
            return False
        self._all = self._all or unsearched or len(self._written) > _MOST_FORMS
        return True

    def held_by(self, text: str) -> bool:
        """Whether one of them is in this text."""
        return self._all or any(each in text for each in self._texts)

    def in_key(self, key: str) -> bool:
        """The same for a key, most of which are names of fields."""
        return key in self._texts if self._all else self.held_by(key)


_SHORTEST_FORM = 6
"""Characters. Shorter ones, true and 8080 and default, are found everywhere."""

_LONGEST_FORM = 192
"""Characters that are compared; a multiple of 3 and 4."""

_MOST_COMPARED = 4_000_000
"""Values times bytes, some ms."""
_MOST_FORMS = 32
"""Values that are looked for in each text of an event in which there is one."""

_IDENTITY = frozenset(
    {
        *("name", "generatename", "namespace", "uid", "resourceversion", "generation", "selflink"),
        *("creationtimestamp", "deletiontimestamp", "deletiongraceperiodseconds"),
    }
)
"""What in metadata says which object it is, as the event's objectRef and URL do."""


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if len(value) >= _SHORTEST_FORM:
            yield value
    elif isinstance(value, dict):
        for child in value.values():
            yield from _leaves(child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _leaves(child)
    elif isinstance(value, int | Decimal) and len(text := str(value)) >= _SHORTEST_FORM:
        yield text


_BASE64 = re.compile(r"[A-Za-z0-9+/]{4,}={0,2}")


def _decoded(text: str) -> str | None:
    """What a Secret's data says; None: it is no base64, or of nothing that can be read."""
    if len(text) % 4 or _BASE64.fullmatch(text) is None:
        return None
    try:
        return base64.b64decode(text).decode().rstrip("\n")
    except ValueError:
        return None


_CONTAINERS: frozenset[type] = frozenset({dict, list})
_WITH_TEXT: frozenset[type] = frozenset({dict, list, str})
_OPENED = frozenset({"metadata", "spec", "items", "rows", "object"})
_REPEATING = frozenset({"annotations", "labels", "managedfields"})
_GONE = object()
"""In place of a value: there is none any more."""


class _TooDeepError(Exception):
    """More levels than MAX_DEPTH, or more wrappers than _MAX_WRAPPERS."""


_PATCH_ANNOTATION_FIELDS = frozenset({"configuration", "webhook", "patch", "patchType"})
_FAILURE_FIELDS = frozenset({"policy", "binding", "expressionindex", "validationactions"})
_PLAIN_STATUS = frozenset({"metadata", "code"})
_AUTHORIZED = "authorization.k8s.io/"
_DIRECTIVES = ("merge", "replace", "delete")
_OPERATIONS = ("add", "remove", "replace", "move", "copy", "test")

_REASONS = frozenset(
    {
        *("Unknown", "Unauthorized", "Forbidden", "NotFound", "AlreadyExists", "Conflict", "Gone", "Invalid"),
        *("ServerTimeout", "StoreReadError", "Timeout", "TooManyRequests", "BadRequest", "MethodNotAllowed"),
        *("NotAcceptable", "RequestEntityTooLarge", "UnsupportedMediaType", "InternalError", "Expired"),
        "ServiceUnavailable",
    }
)
"""metav1.StatusReason. A webhook may write its explanation there."""

_CAUSES = frozenset(
    {
        *("FieldValueNotFound", "FieldValueRequired", "FieldValueDuplicate", "FieldValueInvalid"),
        *("FieldValueTypeInvalid", "FieldValueNotSupported", "FieldValueForbidden", "FieldValueTooLong"),
        *("FieldValueTooMany", "FieldValueTooFew", "InternalError", "UnexpectedServerResponse", "FieldManagerConflict"),
        *("ResourceVersionTooLarge", "NamespaceTerminating", "DisruptionBudget"),
    }
)
"""metav1.CauseType, and those of field.ErrorType."""

_STATUS_VALUES: dict[str, Collection[str]] = {
    "kind": ("Status",),
    "apiVersion": ("v1", "meta.k8s.io/v1"),
    "status": ("Success", "Failure"),
    "reason": _REASONS,
}

# What API servers say, as far as it is made of names: apimachinery, pkg/api/errors, and the authorizers.
_QUOTED_NAME = r'"[^"\\]{0,253}"'
_RESOURCE_NAME = r"[A-Za-z][-A-Za-z0-9./]{0,300}"
_OBJECT_NAME = rf"{_RESOURCE_NAME} {_QUOTED_NAME}"
_SAYS = re.compile(
    rf"{_OBJECT_NAME} (?:not found|already exists)"
    rf"|Operation cannot be fulfilled on {_OBJECT_NAME}: the object has been modified; "
    "please apply your changes to the latest version and try again"
    rf"|(?:{_RESOURCE_NAME} (?:{_QUOTED_NAME} )?is )?forbidden: User {_QUOTED_NAME} cannot [a-z]+ "
    rf"(?:path \"[^\"\\\\]*\"|resource {_QUOTED_NAME} in API group {_QUOTED_NAME}"
    rf"(?: in the namespace {_QUOTED_NAME}| at the cluster scope))"
    rf"|{_OBJECT_NAME} is forbidden: unable to create new content in namespace [-a-z0-9]+ "
    "because it is being terminated"
    "|Unauthorized|Too many requests, please try again later[.]|Request entity too large: limit is [0-9]+"
    "|the server could not find the requested resource|the server is currently unable to handle the request"
    "|the server does not allow this method on the requested resource"
    "|the server has asked for the client to provide credentials"
    "|Timeout: request did not complete within requested timeout - context deadline exceeded|context canceled"
    "|The provided continue parameter is too old[A-Za-z ,.-]{0,400}"
    "|The resourceVersion for the provided (?:watch|list) is too old[.]?|too old resource version: [0-9]+ [(][0-9]+[)]"
    "|Cannot evict pod as it would violate the pod's disruption budget[.]|etcdserver: [a-z ,]{0,100}"
)
_BEGINS = re.compile(
    rf"{_RESOURCE_NAME} (?:{_QUOTED_NAME} )?is (?:forbidden|invalid): (?:violates PodSecurity {_QUOTED_NAME}: |"
    r"ValidatingAdmissionPolicy '[^'\\]{0,253}' with binding '[^'\\]{0,253}' denied request: )?"
    rf"|Operation cannot be fulfilled on {_OBJECT_NAME}: |Apply failed with [0-9]+ conflicts?: "
    rf"|(admission webhook ){_QUOTED_NAME} denied the request: |Internal error occurred: "
)
"""How messages begin that go on with what may be a value. The group: it is a webhook that speaks."""
_NAMED = re.compile(rf'(?:Operation cannot be fulfilled on )?({_RESOURCE_NAME}) (?:"([^"\\]{{0,253}})"[ :])?')
_SAID_OF_NAMES = re.compile(
    rf"namespace [-a-z0-9]+ is being terminated|conflict with {_QUOTED_NAME}(?: with subresource {_QUOTED_NAME})?"
    "(?: using [-a-z0-9./]+)?(?: at [-0-9T:Z]+)?"
)
_PLAIN_FIELD = re.compile(r"[.]?[A-Za-z_$][-A-Za-z0-9_$]*+(?:[.][-A-Za-z0-9_]++|\[[0-9]{1,4}\])*+")
_UID = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_HARMLESS_NOTES = re.compile(
    r"authorization\.k8s\.io/(?:decision|reason)|authentication\.(?:k8s|kubernetes)\.io/[-a-z]+"
    r"|k8s\.io/(?:deprecated|removed-release)|audit\.k8s\.io/truncated|apiserver\.k8s\.io/startup"
    r"|apiserver\.latency\.k8s\.io/[-a-z]+|pod-security\.kubernetes\.io/(?:enforce-policy|exempt)"
    r"|(?:failed-open\.)?(?:mutation|validation)\.webhook\.admission\.k8s\.io/round_[0-9]+_index_[0-9]+"
    r"|[-a-z0-9]+\.invalid-cert\.kubernetes\.io/[-a-z0-9.]+|audit-operator\.dev/omitted"
)
"""The event's annotations that API servers make of names. Others quote the object, as webhooks and policies like."""


CODE_ONLY = 40
"""Bytes up to which a responseStatus says nothing: ``{"metadata":{},"code":200}``."""

_CODE = re.compile(rb'\{"metadata":\{\},"code":[0-9]{1,4}\}')
_notes: Memo[bytes, bool] = Memo()


def _says_nothing(field: str, raw: bytes) -> bool:
    """Whether nothing in it can be redacted: a code alone, or annotations made of names."""
    if field == "responseStatus":
        return _CODE.fullmatch(raw) is not None
    known = _notes.get(raw)
    return not (_notes.remember(raw, _quotes(raw), len(raw)) if known is None else known)


def may_quote(status: Raw, annotations: Raw) -> bool:
    """Whether there is more in them than a code and names, so that bodies, though they do not leave, must be searched
    for what may be quoted.
    """
    return len(status) > CODE_ONLY or (len(annotations) > 0 and not _says_nothing("annotations", bytes(annotations)))


def _quotes(annotations: bytes) -> bool:
    try:
        notes = _decode(annotations)
        return not (
            all(map(_HARMLESS_NOTES.fullmatch, notes)) and all(isinstance(text, str) for text in notes.values())
        )
    except Exception:  # these are none
        return True


class _Said(NamedTuple):
    """``kept``: of a message, empty: nothing. ``names``: which it names. ``server``: no webhook made it."""

    kept: str
    names: tuple[str, ...]
    server: bool


def _said(message: Any) -> _Said:
    if message in (None, ""):
        return _Said("", (), server=True)
    if not isinstance(message, str):
        return _Said("", (), server=False)
    if _SAYS.fullmatch(message):
        kept, server = message, True
    elif begins := _BEGINS.match(message):
        kept, server = begins[0] + MASK, begins[1] is None
    else:
        return _Said("", (), server=False)
    named = _NAMED.match(message) if server else None
    if named is None:
        return _Said(kept, (), server)
    resource, _, group = named[1].partition(".")
    return _Said(kept, (resource, group, named[2] or ""), server)


def _is_status(value: Any) -> bool:
    """An answer of the API server: no custom resource is of its version."""
    return (
        isinstance(value, dict)
        and value.get("kind") == "Status"
        and value.get("apiVersion") in ("v1", "meta.k8s.io/v1")
    )


_KINDS_PATTERN = rb'"(?:Secret|ConfigMap|TokenRe|CertificateSigningRequest|PodCertificateRequest)'
_KIND_HINT = re.compile(_KINDS_PATTERN)
_KIND_HINT_IN_TEXT = re.compile(rb"\\" + _KINDS_PATTERN)
_A_KIND = re.compile(rb'"[Kk][Ii][Nn][Dd]"\s*:')
_PACKED = rb"[eWZVCI][wy31XzHn][0AFIJNcdklos][A-Za-z0-9+/_-]"
"""How base64 begins of JSON that may have an object in it (eyJ, eyA, ewo, ew0, ewk, W3s, W1s, WyI, Wwo, Cns, IHs), and
base64 of that (ZXl, ZXd, ZXc, VzN, VzF, V3l, V3d, V3c): what else begins so is found to be none.
"""
_BASE64_TEXT = re.compile(rf"\s*{_PACKED.decode()}")
_BASE64_HINT = re.compile(rb'"(' + _PACKED + rb"(?:[A-Za-z0-9+/_-]|\\++[nr]|[\r\n])*+={0,2})")
_FIRST_HINT = re.compile(rb'"[SCTPeWZVI][eowy31XzHn][cnkrd0AFIJNlos]')
"""How all of them begin; it takes half the time to find that nothing does."""
_ESCAPED = re.compile(rb"\\u00(?:22|[4-7])")
"""A letter or a quotation mark that is written as an escape: in JSON within a string, the latter too."""

_JSON_TEXT = re.compile(r'\s*(?:\{\s*["}]|\[\s*[\[{]|"\s*[\\\[{])')
"""How text begins that is JSON and may have an object in it, which a template does not (``{{``)."""


_BEGINNINGS = frozenset('{["eWZVCI \n\r\t')
"""Of `_JSON_TEXT` and `_BASE64_TEXT`."""

_BACKSLASH = ord("\\")  # a number is looked for three times as fast as a byte string of one
_SHORT = 200
"""Bytes for which remembering an answer costs less than asking again."""
_asked: Memo[bytes, bool] = Memo()


def may_name_a_kind(raw: bytes) -> bool:
    """Whether one of the kinds may be somewhere in this JSON: all events are asked, few are parsed."""
    if len(raw) > _SHORT:
        return _names_a_kind(raw)
    # Annotations and statuses, which repeat themselves.
    found = _asked.get(raw)
    return _asked.remember(raw, _names_a_kind(raw), len(raw)) if found is None else found


def _names_a_kind(raw: bytes) -> bool:
    if _FIRST_HINT.search(raw) is not None and (_KIND_HINT.search(raw) is not None or _packs_a_kind(raw)):
        return True
    return _BACKSLASH in raw and _ESCAPED.search(raw) is not None


def _packs_a_kind(raw: bytes) -> bool:
    """Whether one may be in base64 in one of the strings in this JSON."""
    for text in _BASE64_HINT.finditer(raw):
        inside = _unpacked(text[1])
        if inside is not None and _names_a_kind(b'"' + inside):
            return True
    return False


_WRAPPED = re.compile(rb"(?<!\\)\\++[nrt]|\s++")


def _unpacked(text: bytes) -> bytes | None:
    """Base64 of either alphabet, in lines or not; None: it is none."""
    text = _WRAPPED.sub(b"", text).rstrip(b"=").translate(_STANDARD)
    try:
        return binascii.a2b_base64(text[: len(text) - (len(text) % 4 == 1)] + b"=" * (-len(text) % 4))
    except ValueError:
        return None


_STANDARD = bytes.maketrans(b"-_", b"+/")


def _may_name_a_kind_in_text(raw: bytes) -> bool:
    """The same for the strings in it, in which quotation marks are escaped."""
    return _KIND_HINT_IN_TEXT.search(raw) is not None or _ESCAPED.search(raw) is not None or _packs_a_kind(raw)


_TERM = re.compile(r"(?:[^\\,]++|\\.|\\\Z)++", re.DOTALL)


def _without_values(uri: str, redactions: Collection[_Redaction]) -> str:
    """The URL without the values of redacted fields that its fieldSelector demands: ``spec.password=hunter2``."""
    path, _, query = uri.partition("?")
    pairs = query.split("&")
    for at, pair in enumerate(pairs):
        key, _, value = pair.partition("=")
        if unquote_plus(key) != "fieldSelector":
            continue
        before = _TERM.findall(unquote_plus(value))
        after = [_without_value(term, redactions) for term in before]
        if after != before:
            pairs[at] = f"{key}={quote(','.join(after), safe='*=.,![]')}"
    return f"{path}?{'&'.join(pairs)}"


def _without_value(term: str, redactions: Collection[_Redaction]) -> str:
    field, equals, _ = term.partition("=")
    pointer = tuple(field.rstrip("!").split("."))
    if equals and all(_below(redaction.steps, pointer) is None for redaction in redactions):
        return term
    return f"{field}={MASK}" if equals else MASK


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


def _compile(rules: Sequence[RedactionRule]) -> _Rules:
    """The paths of the rules, and what repeats fields. Those that differ in their last name only become one: objects
    are gone through once.
    """
    if not rules:
        return _NO_RULES
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
    paths = tuple(_Redaction((*way, last), action) for (way, action), last in found.items())
    built_in = [rule in BUILT_IN for rule in rules]
    kept = _kept("metadata.annotations", paths, HARMLESS_ANNOTATIONS)
    if any(built_in):
        kept |= _kept("metadata.labels", paths, _HARMLESS_LABELS)
    pointers = [_Redaction((("metadata",), (name,), names), Action.MASK, secret=False) for name, names in kept.items()]
    pointers.append(_Redaction((("metadata",), ("managedfields",), None, _MANAGED), Action.REMOVE, secret=False))
    templates: dict[str, frozenset[str]] = {}
    if not all(built_in):
        named = [_kept(f"{place}.metadata.annotations", paths, HARMLESS_ANNOTATIONS) for place in _TEMPLATES]
        templates = {"annotations": HARMLESS_ANNOTATIONS.union(*(names for each in named for names in each.values()))}
        pointers += [
            _Redaction((*_steps(f"{place}.metadata.annotations"), names), Action.MASK, secret=False, closed=False)
            for place in _TEMPLATES
            for names in templates.values()
        ]
    return _Rules(paths, kept, (*paths, *pointers), templates)


_TEMPLATES = ("spec.template", "spec.jobTemplate", "spec.jobTemplate.spec.template")
"""Where workloads have metadata of what they make."""


def _kept(place: str, paths: Iterable[_Redaction], harmless: frozenset[str]) -> dict[str, frozenset[str]]:
    """Of the map at this place, by its name, what stays: what rules of the user's name is left to these."""
    *_, name = way = _steps(place)
    ends = [path.steps[-1] for path in paths if path.steps[:-1] == way]
    if name is None or None in ends:
        return {}
    return {name[0]: harmless.union(*(end for end in ends if end is not None))}


def _leads(steps: tuple[_Step, ...], value: Any) -> bool:
    """Whether the steps, by name, lead from object to object."""
    for step in steps[:-1]:
        if not isinstance(value, dict):
            return False
        value = next((child for key, child in value.items() if _reaches(step, key)), None)
    return isinstance(value, dict) or not steps


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


class _Kinds:
    """In place of the kind of an object that says it is of several with secrets in them."""


_NAMES = frozenset(name for kind in _KINDS for name in (kind, f"{kind}List"))


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Of equal keys the last counts, but a kind with secrets counts before any other: who reads what
    we write may take the first, or not care for the case of keys.
    """
    made = dict(pairs)
    kinds = [(key, value) for key, value in pairs if key.casefold() == "kind"]
    if kinds and (len(kinds) > 1 or kinds[0][0] != "kind"):
        secret = {value for _, value in kinds if isinstance(value, str) and value in _NAMES}
        if secret:
            for key, _ in kinds:
                made.pop(key, None)
            made["kind"] = secret.pop() if len(secret) == 1 else _Kinds()
    return made


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    return {key: child for key, child in value.items() if key != "kind"}


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


def _decode_all(document: bytes | str) -> Any:
    """`_decode` for what has keys twice, or in another case; ten times as slow."""
    text = document if isinstance(document, str) else document.decode()
    return json.loads(text, object_pairs_hook=_object_of, parse_float=_number, parse_constant=_no_number)
