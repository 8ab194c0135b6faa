"""`audit-operator diff`: what is recorded differently, with a request to prove each difference."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TextIO

from audit_operator.cli.output import counted, printable, styled
from audit_operator.cli.policies import Setup
from audit_operator.cli.requests import as_object as request_object
from audit_operator.cli.requests import as_text
from audit_operator.policy.diff import Change, diff
from audit_operator.policy.explain import Source
from audit_operator.policy.model import STAGES, Decision, Level, Policy

_SHOWN: Final = 40
"""Changes of one policy that people are shown; programs get all."""


class Difference(NamedTuple):
    """What became of one policy, sink or backend. ``before`` or ``after`` is empty where it is not there at all.

    ``delivery`` says in words what changed about where its events go, and redacted how; ``settings`` which fields of a
    sink or backend have other values. ``complete`` False: there may be more changes, which took too long to look for.
    """

    before: str
    after: str
    rules: tuple[Policy, Policy]
    changes: tuple[Change, ...]
    delivery: tuple[str, ...] = ()
    complete: bool = True
    settings: tuple["Setting", ...] = ()


class Setting(NamedTuple):
    """One field, such as ``spec.webhook.enabled``, and its values; None where it is not set."""

    path: str
    before: Any
    after: Any


def differences(a: Setup, b: Setup) -> list[Difference]:
    """What differs from ``a`` to ``b``, policy by policy and in what API servers record; empty if nothing does.

    If both have one policy, these are compared, whatever they are called; otherwise those of the same name are.
    """
    if len(a.sources) == len(b.sources) == 1:
        pairs = [(a.sources[0], b.sources[0])]
    else:
        before, after = ({source.name: source for source in setup.sources} for setup in (a, b))
        nothing = Source("", Policy(rules=()))
        pairs = [(before.get(name, nothing), after.get(name, nothing)) for name in {**before, **after}]
    found = [_difference(*pair) for pair in pairs]
    servers = "API servers"
    if len(pairs) > 1 or a.plan or b.plan:
        changes, complete = diff(a.server, b.server)
        found.append(Difference(servers, servers, (a.server, b.server), changes, complete=complete))
    changed = [
        each for each in found if each.changes or each.delivery or not each.complete or not (each.before and each.after)
    ]
    return changed + list(_settings(a.settings, b.settings))


def _settings(a: Mapping[str, Mapping[str, Any]], b: Mapping[str, Mapping[str, Any]]) -> Iterator[Difference]:
    """Sinks and the backend, by name. What one of them says more than the other is a difference as well."""
    empty = Policy(rules=())
    for name in sorted({*a, *b}):
        before, after = (dict(_fields("spec", spec.get(name, {}))) for spec in (a, b))
        paths = [path for path in {**before, **after} if before.get(path) != after.get(path)]
        settings = tuple(Setting(path, before.get(path), after.get(path)) for path in paths)
        if name not in a or name not in b:
            yield Difference(name if name in a else "", name if name in b else "", (empty, empty), ())
        elif settings:
            yield Difference(name, name, (empty, empty), (), settings=settings)


def _fields(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves below ``path``; lists are leaves, since their order may matter. A null is as good as nothing."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _fields(f"{path}.{key}", item)
    elif value is not None:
        yield path, value


def _difference(before: Source, after: Source) -> Difference:
    changes, complete = diff(before.policy, after.policy)
    delivery = _delivery(before, after) if before.name and after.name else ()
    return Difference(before.name, after.name, (before.policy, after.policy), changes, tuple(delivery), complete)


def _delivery(before: Source, after: Source) -> Iterator[str]:
    for sink in sorted({*before.sinks, *after.sinks}):
        if sink not in after.sinks:
            yield f"no longer to sink {sink}"
        elif sink not in before.sinks:
            yield f"now to sink {sink}"
    if before.redactions != after.redactions:
        gone = [rule for rule in before.redactions if rule not in after.redactions]
        new = [rule for rule in after.redactions if rule not in before.redactions]
        yield f"redactions: {len(new)} new, {len(gone)} gone"


# --- answering -------------------------------------------------------------------------------------------------------


def as_objects(found: Sequence[Difference]) -> list[dict[str, Any]]:
    """The differences for `-o json`."""
    return [
        {
            "before": each.before or None,
            "after": each.after or None,
            "complete": each.complete,
            "delivery": list(each.delivery),
            "settings": [setting._asdict() for setting in each.settings],
            "changes": [
                {
                    "request": None if change.request is None else request_object(change.request),
                    "before": _decision(change.before, each.rules[0]),
                    "after": _decision(change.after, each.rules[1]),
                }
                for change in each.changes
            ],
        }
        for each in found
    ]


def _decision(decision: Decision, policy: Policy) -> dict[str, Any]:
    return {
        "level": str(decision.level),
        "omitStages": sorted(decision.omit_stages),
        "omitManagedFields": decision.omit_managed_fields,
        "rule": rule_name(decision, policy),
    }


def rule_name(decision: Decision, policy: Policy) -> str | None:
    """How a person finds the deciding rule; None if none matched."""
    return None if decision.rule is None else policy.rules[decision.rule].origin or f"rules[{decision.rule}]"


def show(found: Sequence[Difference], stream: TextIO) -> None:
    """The differences for people: a request per line, ``+`` where more is recorded of it, ``-`` where less is."""
    for each in found:
        stream.write(f"{styled(printable(_title(each)), stream, 'cyan', bold=True)}\n")
        stream.writelines(f"  {printable(line)}\n" for line in each.delivery)
        stream.writelines(
            f"  {printable(f'{setting.path}: {_value(setting.before)} → {_value(setting.after)}')}\n"
            for setting in each.settings
        )
        for change in each.changes[:_SHOWN]:
            mark, colour = _direction(change)
            request = (
                "some request, which the search did not find" if change.request is None else as_text(change.request)
            )
            rules = [rule_name(change.before, each.rules[0]), rule_name(change.after, each.rules[1])]
            by = " → ".join(printable(rule or "no rule") for rule in rules)
            stream.write(f"{styled(f'{mark} {_what(change)}', stream, colour)}: {printable(request)}\n      {by}\n")
        if len(each.changes) > _SHOWN:
            stream.write(f"  … and {len(each.changes) - _SHOWN:,} more, which -o json has\n")
        if not each.complete:
            stream.write("  These policies are too large to compare all of their rules: there may be more changes.\n")
        stream.write("\n")
    changes = sum(_counted(each) for each in found)
    if not found:
        stream.write("No request is recorded differently.\n")
    elif changes or all(each.complete for each in found):
        stream.write(f"{'' if all(each.complete for each in found) else 'At least '}{counted(changes, 'change')}\n")
    else:
        stream.write("Whether there are changes is not known.\n")


def _counted(each: Difference) -> int:
    """A policy, sink or backend that is new or gone is a change by itself."""
    parts = len(each.changes) + len(each.delivery) + len(each.settings)
    return parts or int(not (each.before and each.after))


def _value(value: Any) -> str:
    text = "not set" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


_LONGEST_VALUE: Final = 100


def _title(each: Difference) -> str:
    if not each.before:
        return f"{each.after}: new"
    if not each.after:
        return f"{each.before}: gone"
    return each.before if each.before == each.after else f"{each.before} → {each.after}"


def _direction(change: Change) -> tuple[str, str]:
    if change.before.level != change.after.level:
        return ("+", "green") if change.after.level > change.before.level else ("-", "red")
    return "~", "yellow"


def _what(change: Change) -> str:
    before, after = change.before, change.after
    if before.level != after.level:
        return f"{before.level} → {after.level}"
    said = [f"{'without' if stage in after.omit_stages else 'with'} {stage}" for stage in STAGES
            if (stage in before.omit_stages) != (stage in after.omit_stages)]  # fmt: skip
    if after.level >= Level.REQUEST and before.omit_managed_fields != after.omit_managed_fields:
        said.append(f"{'without' if after.omit_managed_fields else 'with'} managedFields")
    return f"{after.level}, now {', '.join(said)}"
