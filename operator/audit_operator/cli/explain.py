"""`audit-operator explain`: what happens to a request, and why, for a person about one or for a program about many."""

from typing import Any, TextIO

from audit_operator.cli.output import printable, styled
from audit_operator.cli.policies import Setup
from audit_operator.cli.requests import as_text
from audit_operator.policy.explain import Explanation, Verdict, mismatch
from audit_operator.policy.model import STAGES, Decision, Level, Policy, Request
from audit_operator.policy.redact import REPEATED

_RULES_SHOWN = 12
"""Rules of one policy among several that do not match and are explained one by one."""

_RULES_OF_ONE_SHOWN = 100
"""The same if there is only that policy."""


def explanation(request: Request, setup: Setup) -> Explanation:
    """What becomes of the request."""
    return setup.explainer.explain(request)


def as_object(found: Explanation) -> dict[str, Any]:
    """One answer for a program. At its top is what API servers do: what a policy file says, if there is only one."""
    return {
        **_decision(found.server, found.server_origin),
        "policies": [
            {
                "policy": verdict.name,
                **_decision(verdict.decision, verdict.origin),
                "delivered": {
                    "level": str(verdict.level),
                    "stages": list(verdict.stages),
                    "sinks": list(verdict.sinks),
                    "redacted": list(verdict.redacted),
                },
                "why": verdict.why,
            }
            for verdict in found.policies
        ],
    }


def _decision(decision: Decision, origin: str) -> dict[str, Any]:
    return {
        "level": str(decision.level),
        "omitStages": sorted(decision.omit_stages),
        "omitManagedFields": decision.omit_managed_fields,
        "rule": decision.rule,
        "origin": None if decision.rule is None else origin,
    }


def show_line(found: Explanation, stream: TextIO) -> None:
    """One of many answers for a person: level, rule, request."""
    level = styled(f"{found.server.level!s:15}", stream, _COLOURS[found.server.level])
    stream.write(f"{level} {found.server_origin:10} {printable(as_text(found.request))}\n")


_COLOURS = {
    Level.NONE: "bright_black",
    Level.MINIMAL: "cyan",
    Level.METADATA: "blue",
    Level.REQUEST: "yellow",
    Level.REQUEST_RESPONSE: "red",
}


def show(found: Explanation, setup: Setup, stream: TextIO) -> None:
    """The answer for a person: what API servers record, what reaches which sink, and why not the others."""

    def line(text: str = "", *, indent: int = 0) -> None:
        stream.write(f"{' ' * indent}{printable(text)}\n" if text else "\n")

    request = found.request
    stream.write(f"{styled(printable(as_text(request)), stream, 'cyan', bold=True)}\n")
    line(f"groups: {', '.join(request.groups) or 'none'}", indent=2)
    if request.user is None:
        line("without a user, as when a login fails: rules with users or userGroups do not match", indent=2)
    line()
    if setup.plan is not None and not setup.sources and found.server.level is Level.NONE:
        # The file of API servers cannot be empty; the rule in it is nobody's.
        line("API servers: nothing is recorded; there is no policy that counts")
    else:
        line(f"API servers: {_recorded(found.server, found.server_origin)}")
    if setup.plan is None and len(setup.sources) == 1:
        for reason in _reasons(setup.server, found.server, request, _RULES_OF_ONE_SHOWN):
            line(reason, indent=2)
        return
    line()
    names = max(len(verdict.name) for verdict in found.policies) if found.policies else 0
    for verdict, source in zip(found.policies, setup.sources, strict=True):
        level = styled(f"{verdict.level!s:15}", stream, _COLOURS[verdict.level])
        to = f" → {', '.join(verdict.sinks)}" if verdict.sinks else ""
        stream.write(f"{printable(verdict.name):{names}}  {level}{printable(to)}\n")
        line(verdict.why, indent=4)
        if verdict.decision.rule is None:
            for reason in _reasons(source.policy, verdict.decision, request, _RULES_SHOWN):
                line(reason, indent=6)
        for detail in _details(verdict):
            line(detail, indent=4)
    reached = {sink: level for sink, level in setup.reached(request).items() if level}
    if reached:
        line()
        line("Sinks, at the highest level that a policy sends:")
        for sink, sent in sorted(reached.items()):
            line(f"{sink}: {sent}", indent=2)


def _recorded(decision: Decision, origin: str) -> str:
    if decision.rule is None:
        return "no rule matches, so nothing is recorded"
    if decision.level is Level.NONE:
        return f"nothing is recorded; {origin} decides"
    stages = [stage for stage in STAGES if stage not in decision.omit_stages]
    return f"{decision.level} at {', '.join(stages) or 'no stage'}; {origin} decides"


def _reasons(policy: Policy, decision: Decision, request: Request, most: int) -> list[str]:
    """Why no rule above the deciding one matches; of the first ``most``."""
    above = policy.rules[: decision.rule]
    names = [(rule.origin or f"rules[{index}]", rule) for index, rule in enumerate(above[:most])]
    reasons = [f"not {name}: {mismatch(rule, request)}" for name, rule in names]
    return reasons + ([f"… and {len(above) - most:,} more"] if len(above) > most else [])


def _details(verdict: Verdict) -> list[str]:
    if not verdict.stages:
        return []
    details = [f"stages: {', '.join(verdict.stages)}"]
    if verdict.redacted:
        own = [path for path in verdict.redacted if path not in REPEATED.paths]
        details.append(f"redacted: {', '.join([*own, 'and what repeats it in annotations and managedFields'])}")
    if verdict.level >= Level.REQUEST and verdict.decision.omit_managed_fields:
        details.append("without managedFields")
    return details
