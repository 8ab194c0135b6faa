"""What `audit-operator lint` can find: every code with its meaning, and findings themselves.

Codes never change their meaning. AP0 is about the file, AP1 about what can never match, AP2 about rules among one
another, AP3 about what must not be in a log, AP4 about what should be in it, AP5 about stages and options.
"""

import enum
from typing import Final

import msgspec

from audit_operator.policy.nodes import Node, Path, path_text


class Severity(enum.StrEnum):
    """``error``: the policy does not do what it says. ``warning``: probably not meant. ``info``: good to know."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Code(msgspec.Struct, frozen=True):
    """One kind of finding. ``severity`` is the usual one; a finding may be milder."""

    code: str
    name: str
    severity: Severity
    meaning: str


class Finding(msgspec.Struct, frozen=True):
    """Something in a policy that will surprise its author. ``fix`` is the way out; line and column 0: no text."""

    code: str
    name: str
    severity: Severity
    path: str
    line: int
    column: int
    message: str
    fix: str


_E, _W, _I = Severity.ERROR, Severity.WARNING, Severity.INFO

CODES: Final = {
    code.name: code
    for code in (
        Code("AP001", "rejected", _E, "An API server refuses the file and does not start."),
        Code("AP002", "unknown-field", _E, "A field is ignored, so the rule matches more, or does less, than it says."),
        Code("AP003", "duplicate-field", _E, "A field stands twice; only one of the two values counts."),
        Code("AP004", "merge-replaced", _W, "A merge key (`<<`) replaces a value, or is replaced by one."),
        Code("AP005", "extra-document", _E, "An API server reads only the first document of a file."),
        Code(
            "AP006", "group-star", _W, "Group `*` exists only from Kubernetes 1.36 on; older API servers do not start."
        ),
        Code("AP101", "unknown-verb", _E, "No request has this verb."),
        Code("AP102", "verb-out-of-scope", _E, "The verb exists, but not for the requests that the rule is about."),
        Code("AP111", "resource-pattern", _E, "A pattern of resources that matches nothing: `pods*`, `*/*`, `a/b/c`."),
        Code("AP112", "resource-case", _E, "Resources are lower case; comparison is exact."),
        Code("AP113", "resource-name", _E, "A singular, a kind or a short name; rules take the plural."),
        Code("AP114", "wrong-group", _E, "The resource is in another group."),
        Code("AP115", "unknown-resource", _W, "The group has no such resource."),
        Code("AP116", "unknown-subresource", _W, "The resource has no such subresource."),
        Code("AP117", "unknown-group", _W, "No API server, or not this one, serves the group."),
        Code("AP118", "other-version", _I, "The resource exists, but not in this version of Kubernetes."),
        Code("AP121", "name-not-known", _E, "create and deletecollection have no name yet when the policy is asked."),
        Code("AP122", "user-wildcard", _E, "Users and groups are compared exactly; `*` is no wildcard in them."),
        Code("AP123", "group-as-user", _E, "A group stands in `users`, or a user in `userGroups`."),
        Code("AP124", "impossible-user", _E, "No user or group has this name."),
        Code("AP125", "impossible-namespace", _E, "No namespace has this name; `*` is no wildcard in it."),
        Code("AP126", "namespace-objects", _W, "Requests to a Namespace object carry its name as their namespace."),
        Code("AP127", "cluster-scoped", _E, "Cluster-scoped resources are in no namespace, so the two never meet."),
        Code("AP128", "resource-path", _E, "A nonResourceURL that is the path of a resource matches nothing."),
        Code("AP129", "url-query", _E, "Paths are compared without their query."),
        Code("AP201", "unreachable-rule", _E, "Rules above match every request that this one could."),
        Code("AP202", "no-effect", _I, "Without the rule, every request would be treated just the same."),
        Code(
            "AP203", "no-catch-all", _W, "Requests that no rule matches are not recorded, and nothing says it is meant."
        ),
        Code("AP204", "records-nothing", _W, "No rule records anything."),
        Code("AP205", "not-compared", _W, "More than 20,000 rules, or too tangled ones: AP2 to AP4 are incomplete."),
        Code(
            "AP211",
            "subresources-include",
            _I,
            "`pods/*` matches `pods` itself too, before a later rule for `pods` can.",
        ),
        Code("AP212", "repeated-value", _I, "A value stands twice in a list, or another one in it includes it."),
        Code("AP301", "secret-bodies", _E, "Bodies of Secrets are recorded: what is in them is in the log."),
        Code("AP302", "configmap-bodies", _W, "Bodies of ConfigMaps are recorded; people keep credentials there."),
        Code("AP303", "tokenreview-bodies", _E, "Bodies of TokenReviews are recorded: they hold bearer tokens."),
        Code("AP304", "token-bodies", _E, "Answers to token requests are recorded: they hold bearer tokens."),
        Code("AP305", "csr-bodies", _W, "Bodies of certificate requests are recorded."),
        Code("AP401", "cis-not-recorded", _W, "Something is dropped that CIS Kubernetes Benchmark 3.2.2 asks for."),
        Code("AP402", "exec-by-get", _W, "exec, attach and portforward over WebSocket come with verb get, not create."),
        Code("AP501", "blocking-strict-inert", _W, "blocking-strict acts at RequestReceived, which the policy omits."),
        Code("AP502", "all-stages-omitted", _E, "All stages are omitted, so nothing is recorded."),
        Code("AP503", "outcome-omitted", _W, "ResponseComplete is omitted: no status, and no bodies of most requests."),
        Code(
            "AP504",
            "option-without-effect",
            _I,
            "The option cannot do anything at this level, or repeats the policy's.",
        ),
    )
}
"""Every kind of finding by its name."""


class Place(msgspec.Struct, frozen=True):
    """A place in a document, such as ``("spec", "rules", 3)``; ``document`` None: there is no text."""

    document: Node | None = None
    path: Path = ()

    def at(self, *steps: str | int) -> "Place":
        """The place below this one."""
        return Place(self.document, (*self.path, *steps))

    def finding(self, name: str, message: str, fix: str, *, severity: Severity | None = None) -> Finding:
        """A finding of the kind ``name`` here."""
        code = CODES[name]
        line, column = self.document.at(self.path) if self.document is not None else (0, 0)
        return Finding(code.code, name, severity or code.severity, path_text(self.path), line, column, message, fix)


def reference() -> str:
    """docs/lint.md: all codes as a table."""
    rows = "\n".join(f"| {code.code} | `{code.name}` | {code.severity} | {code.meaning} |" for code in CODES.values())
    return _REFERENCE_HEAD + rows + "\n"


_REFERENCE_HEAD = """\
# Findings of `audit-operator lint`

An API server starts with many policies that do not do what they say, and says nothing. Every finding names the rule and
the line, what happens, and the way out. `error`: the policy does not do what it says. `warning`: probably not meant.
`info`: good to know. Codes never change their meaning.

| code | name | severity | what it means |
|---|---|---|---|
"""
