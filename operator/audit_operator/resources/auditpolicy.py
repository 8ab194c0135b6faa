"""AuditPolicy: what must be audited, and which sinks get it."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from audit_operator.resources.meta import (
    API_VERSION,
    Boolean,
    CelRule,
    Integer,
    LabelSelector,
    ListMap,
    Model,
    Name,
    ObjectMeta,
    OptionalNamespace,
    Status,
    grammar,
)

ServerLevel = Literal["None", "Metadata", "Request", "RequestResponse"]
Level = Literal["None", "Minimal", "Metadata", "Request", "RequestResponse"]
Stage = Literal["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"]
Preset = Literal["Metadata", "CIS", "WriteBodies", "AllBodies", "Minimal", "Forensic"]

MAX_RULES: Final = 200

Term = Annotated[str, Field(max_length=512)]
"""A user, group, verb, resource or name as it stands in a request; the API server compares it literally."""

OmitStages = Annotated[tuple[Stage, ...], Field(max_length=4)]


class GroupResources(Model):
    """Resources of one API group, as in audit.k8s.io/v1."""

    group: str = Field(
        "",
        max_length=253,
        pattern=grammar(
            r"^(\*|([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)?)$",
            'an API group without version, such as apps or rbac.authorization.k8s.io; "" for core, "*" for all',
        ),
        description='API group; "" is the core group, "*" every group.',
        examples=["apps"],
    )
    resources: tuple[Term, ...] = Field(
        (),
        max_length=128,
        description=(
            "Plural resource names. `pods` is pods alone, `pods/log` that subresource, `pods/*` pods with all their "
            "subresources, `*/scale` that subresource of everything, `*` everything. Empty: all of the group."
        ),
        examples=[["secrets", "configmaps"]],
    )


class NamedGroupResources(GroupResources):
    """Resources of one API group, of all names or of some."""

    resource_names: tuple[Term, ...] = Field(
        (),
        max_length=128,
        description="Names as they stand in the URL; requests without one (create, deletecollection) never match.",
    )

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="!has(self.resourceNames) || size(self.resourceNames) == 0 "
            "|| (has(self.resources) && size(self.resources) > 0)",
            message='resourceNames need resources: name the resources that are meant, or write resources: ["*"]',
            holds=lambda self: not self.resource_names or bool(self.resources),
            field=".resourceNames",
        ),
    )


NonResourceUrl = Annotated[
    str,
    Field(
        min_length=1,
        max_length=512,
        pattern=grammar(r"^(\*|/[^*]*\*?)$", 'a path that begins with /, with * at most at its end; or "*"'),
        examples=["/healthz*", "/version"],
    ),
]


class _Rule(Model):
    """What both kinds of rules have: every field given must match, an empty or omitted one matches anything."""

    level: Level = Field(description="How much of a matching request is recorded.")
    users: tuple[Term, ...] = Field(
        (), max_length=256, description="User names as authenticated, before impersonation.", examples=[["alice"]]
    )
    user_groups: tuple[Term, ...] = Field(
        (), max_length=256, description="Groups, one of which the user is in.", examples=[["system:masters"]]
    )
    verbs: tuple[Term, ...] = Field(
        (),
        max_length=32,
        description="get, list, watch, create, update, patch, delete, deletecollection, proxy; "
        "for nonResourceURLs the HTTP method in lower case.",
        examples=[["create", "update"]],
    )
    namespaces: tuple[Term, ...] = Field(
        (), max_length=256, description='Namespaces; "" is a request without one (cluster-scoped, all namespaces).'
    )
    resources: tuple[NamedGroupResources, ...] = Field(
        (), max_length=64, description="Resources, one entry of which matches."
    )
    non_resource_urls: tuple[NonResourceUrl, ...] = Field(
        (),
        max_length=64,
        alias="nonResourceURLs",
        description='Paths that are not resources: exact, with a trailing "*" for what follows, or "*" for all.',
    )
    omit_stages: OmitStages = Field((), description="Stages of which no event is written, beside those of the policy.")
    omit_managed_fields: Boolean | None = Field(
        None, description="Leave metadata.managedFields out of bodies. Omitted: what the policy says."
    )

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="!has(self.nonResourceURLs) || size(self.nonResourceURLs) == 0 || "
            "((!has(self.resources) || size(self.resources) == 0) && "
            "(!has(self.namespaces) || size(self.namespaces) == 0))",
            message="a rule is about resources or about nonResourceURLs, never both: "
            "move nonResourceURLs to a rule of their own",
            holds=lambda self: not self.non_resource_urls or not (self.resources or self.namespaces),
            field=".nonResourceURLs",
        ),
    )


class ServerRule(_Rule):
    """A PolicyRule as an API server takes it (audit.k8s.io/v1)."""

    level: ServerLevel = Field(description="How much of a matching request is recorded.")


class PolicyRule(_Rule):
    """A PolicyRule of audit.k8s.io/v1, copy and paste, plus level Minimal and namespaceSelector."""

    level: Level = Field(
        description="How much of a matching request is recorded. Minimal, ours: verb, object reference, user name, "
        "status code; less than Metadata."
    )
    namespace_selector: LabelSelector | None = Field(
        None, description="Only requests in namespaces with these labels; follows the labels live."
    )

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="!has(self.namespaceSelector) || !has(self.nonResourceURLs) || size(self.nonResourceURLs) == 0",
            message="namespaceSelector cannot match nonResourceURLs, which are in no namespace: "
            "move them to a rule of their own",
            holds=lambda self: self.namespace_selector is None or not self.non_resource_urls,
            field=".namespaceSelector",
        ),
    )


_PATH_NAME: Final = r"[A-Za-z0-9_-]+"
_PATH_KEY: Final = r'\["[^"\\]+"\]'

RedactionPath = Annotated[
    str,
    Field(
        max_length=512,
        pattern=grammar(
            rf"^({_PATH_NAME}|{_PATH_KEY})(\.{_PATH_NAME}|\.\*|{_PATH_KEY}|\[\*\])*$",
            'a path such as spec.password, spec.users[*].key, data.* or metadata.annotations["example.com/token"]',
        ),
        examples=["spec.password", "spec.users[*].key"],
    ),
]


_PLURAL: Final = "[a-z0-9]([-a-z0-9.]*[a-z0-9])?"

RedactedResource = Annotated[
    str,
    Field(
        max_length=512,
        pattern=grammar(
            rf"^(\*|(\*/)?{_PLURAL}|{_PLURAL}/(\*|[a-z0-9-]+))$",
            "a plural name in lower case, such as logins, logins/status, logins/* or *",
        ),
    ),
]
"""Stricter than in a rule: a rule that matches nothing is noise, a redaction that matches nothing is a leak."""


class RedactedResources(GroupResources):
    """Resources of one API group whose bodies are redacted."""

    resources: tuple[RedactedResource, ...] = Field(
        (),
        max_length=128,
        description="Plural resource names, as in a rule. Empty: all of the group.",
        examples=[["logins", "logins/status"]],
    )


class Redaction(Model):
    """Parts of bodies that must not leave, on top of the built-in ones."""

    resources: tuple[RedactedResources, ...] = Field(
        min_length=1, max_length=64, description="Resources whose bodies are redacted."
    )
    paths: tuple[RedactionPath, ...] = Field(
        min_length=1,
        max_length=64,
        description="Where in the object: names joined by dots, `[*]` for every list item, `.*` for every key, "
        '`["a.b/c"]` for a key that is not a plain name.',
        examples=[["spec.password", "spec.users[*].key"]],
    )
    action: Literal["Remove", "Mask", "Hash"] = Field(
        "Remove",
        description="Remove the field, put *** in its place, or its keyed hash (equal values stay recognizable).",
    )


class SinkReference(Model):
    """An AuditSink that gets what the policy records."""

    name: Name = Field(description="Name of the AuditSink.")
    namespace: OptionalNamespace = Field(
        "",
        description="Its namespace, if not the policy's own; the sink must allow it with allowedNamespaces.",
    )


class AuditPolicySpec(Model):
    """Rules in order, the first match decides; then the preset's."""

    preset: Preset | None = Field(None, description="Base policy whose rules come after `rules`.", examples=["CIS"])
    rules: tuple[PolicyRule, ...] = Field(
        (), max_length=MAX_RULES, description="The first rule that matches a request decides; none: level None."
    )
    omit_stages: OmitStages = Field(
        (), description="Stages of which no event is written.", examples=[["RequestReceived"]]
    )
    omit_managed_fields: Boolean = Field(
        False, description="Leave metadata.managedFields out of bodies, unless a rule says otherwise."
    )
    redactions: tuple[Redaction, ...] = Field(
        (),
        max_length=64,
        description="Fields that must not leave, beside the built-in ones: Secrets, ConfigMaps' data, tokens, CSRs, "
        "last-applied-configuration. An event that several policies send to one sink is redacted by the rules of all "
        "of them; a tenant's count only where its own wish raises the level.",
    )
    sinks: Annotated[tuple[SinkReference, ...], Field(max_length=16), ListMap("name", "namespace")] = Field(
        (), description="Where it goes. None: only into the API servers' own log file, if there is one."
    )

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="has(self.preset) || (has(self.rules) && size(self.rules) > 0)",
            message="a policy without rules records nothing: write rules, or a preset such as CIS",
            holds=lambda self: self.preset is not None or bool(self.rules),
            field=".rules",
            reason="FieldValueRequired",
        ),
    )


class AuditPolicyStatus(Status):
    """Conditions: Compiled, Installed, Delivering, Ready; Reconciling and Stalled when they apply."""

    rules: Integer | None = Field(None, ge=0, description="How many rules are in force, the preset's included.")
    unreachable_rules: Integer | None = Field(
        None, ge=0, description="How many of them never match, because earlier rules cover them."
    )
    warnings: Integer | None = Field(None, ge=0, description="How many findings `audit-operator lint` has on it.")
    hash: str = Field("", max_length=64, description="Hash of what is in force.")


class AuditPolicy(Model):
    """What must be audited, and where it goes.

    In the operator's own namespace it covers the cluster; anywhere else it sees requests in that namespace only.
    """

    api_version: Literal["audit-operator.dev/v1alpha1"] = API_VERSION
    kind: Literal["AuditPolicy"] = "AuditPolicy"
    metadata: ObjectMeta
    spec: AuditPolicySpec
    status: AuditPolicyStatus = AuditPolicyStatus()
