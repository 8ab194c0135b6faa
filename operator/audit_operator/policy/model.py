"""The words of audit.k8s.io/v1 as immutable values, plus the two that are ours: level Minimal and namespaceSelector.

Field names are the API's own in snake case. Every list field follows the API: empty means "any".
"""

import enum
from typing import Literal, Self

import msgspec


class Level(enum.IntEnum):
    """How much of a request is recorded; ordered. ``Minimal`` exists only in AuditPolicy, never in a policy file."""

    NONE = 0
    MINIMAL = 1
    METADATA = 2
    REQUEST = 3
    REQUEST_RESPONSE = 4

    def __str__(self) -> str:
        return _LEVEL_TEXT[self]

    @classmethod
    def parse(cls, text: str) -> Self:
        """The level of its API text, such as ``RequestResponse``. Raises ValueError naming the known ones."""
        for level, known in _LEVEL_TEXT.items():
            if known == text:
                return cls(level)
        raise ValueError(f"unknown level {text!r}; known: {', '.join(_LEVEL_TEXT.values())}")

    @property
    def server(self) -> "Level":
        """The level an API server must record so that this one can be delivered: Minimal is cut out of Metadata."""
        return Level.METADATA if self is Level.MINIMAL else self


_LEVEL_TEXT: dict[int, str] = {0: "None", 1: "Minimal", 2: "Metadata", 3: "Request", 4: "RequestResponse"}


class Stage(enum.StrEnum):
    """When in a request's life an event is written; in that order."""

    REQUEST_RECEIVED = "RequestReceived"
    RESPONSE_STARTED = "ResponseStarted"
    RESPONSE_COMPLETE = "ResponseComplete"
    PANIC = "Panic"


STAGES: tuple[Stage, ...] = tuple(Stage)
"""All stages in the order they happen; every list of stages we write is in this order."""


class SelectorRequirement(msgspec.Struct, frozen=True):
    """One ``matchExpressions`` entry of a label selector."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()


class LabelSelector(msgspec.Struct, frozen=True):
    """A Kubernetes label selector; empty selects everything."""

    match_labels: tuple[tuple[str, str], ...] = ()
    match_expressions: tuple[SelectorRequirement, ...] = ()


class GroupResources(msgspec.Struct, frozen=True):
    """One entry of a rule's ``resources``. No ``resources``: all of the group. Group ``""`` is core, ``*`` any."""

    group: str = ""
    resources: tuple[str, ...] = ()
    resource_names: tuple[str, ...] = ()


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One PolicyRule. ``omit_managed_fields`` None inherits the policy's.

    ``namespace_selector`` is ours: the rule matches only where it selects the request's namespace (and ``namespaces``,
    if given, holds too). ``origin`` says where a person finds the rule (``spec.rules[3]``, ``preset CIS rules[0]``);
    it carries no meaning.
    """

    level: Level
    users: tuple[str, ...] = ()
    user_groups: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    resources: tuple[GroupResources, ...] = ()
    non_resource_urls: tuple[str, ...] = ()
    omit_stages: frozenset[Stage] = frozenset()
    omit_managed_fields: bool | None = None
    namespace_selector: LabelSelector | None = None
    origin: str = ""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """An ordered list of rules: the first that matches decides. No match: level None."""

    rules: tuple[Rule, ...]
    omit_stages: frozenset[Stage] = frozenset()
    omit_managed_fields: bool = False


class Request(msgspec.Struct, frozen=True, kw_only=True, gc=False, cache_hash=True):
    """A request as the API server's audit policy sees it: after authentication, before impersonation and authorization.

    ``user`` None: authentication failed, no rule with users or userGroups matches. ``name`` is the one in the URL (or
    in fieldSelector metadata.name), so it is empty on create and deletecollection. ``path``: non-resource requests.
    """

    user: str | None
    groups: tuple[str, ...] = ()
    verb: str
    is_resource: bool = True
    namespace: str = ""
    api_group: str = ""
    resource: str = ""
    subresource: str = ""
    name: str = ""
    path: str = ""

    @property
    def length(self) -> int:
        """Characters of all its strings, one more for each group: the client's choice, for the most part."""
        who = len(self.user or "") + sum(map(len, self.groups)) + len(self.groups)
        where = len(self.namespace) + len(self.name) + len(self.path)
        return who + where + len(self.verb) + len(self.api_group) + len(self.resource) + len(self.subresource)

    def __str__(self) -> str:
        """For a person: ``alice create deployments.apps/scale x in namespace default``."""
        who = "a request without a user" if self.user is None else self.user or '""'
        if self.groups:
            who += f" ({', '.join(self.groups)})"
        if not self.is_resource:
            return f"{who} {self.verb} {self.path}"
        what = f"{self.resource}.{self.api_group}" if self.api_group else self.resource
        what += f"/{self.subresource}" if self.subresource else ""
        where = f"in namespace {self.namespace}" if self.namespace else "without a namespace"
        return " ".join(part for part in (who, self.verb, what, self.name, where) if part)


class Decision(msgspec.Struct, frozen=True, cache_hash=True):
    """What a policy says of a request. ``rule`` is the index of the deciding rule, None when none matched."""

    level: Level
    omit_stages: frozenset[Stage]
    omit_managed_fields: bool
    rule: int | None
