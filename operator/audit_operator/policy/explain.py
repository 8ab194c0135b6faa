"""What happens to one request, and why: what API servers record, what each policy wants, what reaches which sink."""

from collections.abc import Sequence

import msgspec

from audit_operator.policy.evaluate import (
    Evaluator,
    group_resources_match,
    groups_match,
    namespace_matches,
    non_resource_matches,
    user_matches,
    verb_matches,
)
from audit_operator.policy.model import STAGES, Decision, Level, Policy, Request, Rule, Stage
from audit_operator.policy.redact import RedactionRule, Redactor


class Source(msgspec.Struct, frozen=True):
    """One policy to explain: resolved, with its own redactions and the sinks it names."""

    name: str
    policy: Policy
    redactions: tuple[RedactionRule, ...] = ()
    sinks: tuple[str, ...] = ()


class Verdict(msgspec.Struct, frozen=True):
    """What one policy makes of the request.

    ``decision`` is the policy's wish; ``level`` what is delivered of it: never more than API servers record. ``stages``
    are those of which events reach ``sinks``. ``redacted``: the paths cut out of bodies, where there are bodies.
    """

    name: str
    decision: Decision
    origin: str
    level: Level
    stages: tuple[Stage, ...]
    sinks: tuple[str, ...]
    redacted: tuple[str, ...]
    why: str


class Explanation(msgspec.Struct, frozen=True):
    """``server`` is what API servers record, by the rule at ``server_origin``."""

    request: Request
    server: Decision
    server_origin: str
    policies: tuple[Verdict, ...]


class Explainer:
    """Says of many requests who records what, and why not where nothing is.

    Args:
        server: what API servers run; its rules are named by their position.
        sources: policies in the order to report them, namespaceSelectors resolved.

    """

    def __init__(self, server: Policy, sources: Sequence[Source]) -> None:
        self._server = Evaluator(server)
        # The key only has to be there: which paths are redacted does not depend on it.
        self._sources = [
            (source, Evaluator(source.policy), Redactor(source.redactions, hash_key=bytes(16))) for source in sources
        ]

    def explain(self, request: Request) -> Explanation:
        """What becomes of the request, as the API server's policy sees it."""
        recorded = self._server.decide(request)
        return Explanation(
            request,
            recorded,
            "no rule" if recorded.rule is None else f"rules[{recorded.rule}]",
            tuple(
                _verdict(request, recorded, source, evaluator.decide(request), redactor)
                for source, evaluator, redactor in self._sources
            ),
        )


def _verdict(request: Request, recorded: Decision, source: Source, wish: Decision, redactor: Redactor) -> Verdict:
    origin = _origin(source.policy, wish.rule)
    level = min(wish.level, recorded.level)
    omitted = wish.omit_stages | recorded.omit_stages
    stages = tuple(stage for stage in STAGES if stage not in omitted) if level else ()
    redacted: tuple[str, ...] = ()
    if level >= Level.REQUEST and stages:
        redacted = tuple(sorted({path for rule in redactor.rules_for(request) for path in rule.paths}))
    return Verdict(
        name=source.name,
        decision=wish,
        origin=origin,
        level=level if stages else Level.NONE,
        stages=stages,
        sinks=source.sinks if stages else (),
        redacted=redacted,
        why=_why(wish, recorded, origin, stages, source.sinks),
    )


def _origin(policy: Policy, rule: int | None) -> str:
    if rule is None:
        return "no rule"
    return policy.rules[rule].origin or f"rules[{rule}]"


def _why(wish: Decision, recorded: Decision, origin: str, stages: Sequence[Stage], sinks: Sequence[str]) -> str:
    if wish.rule is None:
        return "no rule matches, so nothing is recorded"
    if wish.level is Level.NONE:
        return f"{origin} matches first and says None"
    if recorded.level is Level.NONE:
        return f"{origin} asks for {wish.level}, but API servers record nothing of this request"
    if not stages:
        return f"{origin} asks for {wish.level}, but every stage is omitted"
    if not sinks:
        return f"{origin} asks for {wish.level}, but the policy names no sink"
    if wish.level > recorded.level:
        return f"{origin} asks for {wish.level}, but API servers record {recorded.level}"
    return f"{origin} matches first"


def mismatch(rule: Rule, request: Request) -> str:
    """Why the rule does not match the request, for a person; empty if it does."""
    if not user_matches(rule, request.user):
        return f"users: {request.user or 'no user'} is not one of {', '.join(rule.users)}"
    if not groups_match(rule, request):
        return f"userGroups: none of the user's groups is one of {', '.join(rule.user_groups)}"
    if not verb_matches(rule, request.verb):
        return f"verbs: {request.verb} is not one of {', '.join(rule.verbs)}"
    if not request.is_resource:
        if rule.namespaces or rule.resources:
            return "the rule sees requests for resources only"
        return "" if non_resource_matches(rule, request.path) else f"nonResourceURLs: none matches {request.path}"
    if not namespace_matches(rule, request.namespace):
        return f'namespaces: "{request.namespace}" is not one of {", ".join(map(repr, rule.namespaces))}'
    if not rule.resources:
        only_urls = bool(rule.non_resource_urls) and not rule.namespaces
        return "the rule sees non-resource requests only" if only_urls else ""
    wanted = f"{request.resource}/{request.subresource}" if request.subresource else request.resource
    matching = [
        entry
        for entry in rule.resources
        if group_resources_match(entry, request.api_group, request.resource, request.subresource)
    ]
    if not matching:
        return f'resources: none matches {wanted} of group "{request.api_group}"'
    if any(not entry.resource_names or request.name in entry.resource_names for entry in matching):
        return ""
    return f'resourceNames: the request names "{request.name}"'
