"""A program made ready to run: of each event, what reaches which sink, at which level, redacted how.

An event that several policies send to one sink reaches it once: at the highest level that one of them asks for, at
every stage that one of them wants, with managedFields if one wants them. Redacted is what any of the platform's
policies among them redacts; a tenant's redactions count where its wish is what raises the level, so that no tenant can
blind a sink that it shares with the platform, nor lay bare what the platform's policies redact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from audit_operator.policy.evaluate import Evaluator
from audit_operator.policy.events import EventError
from audit_operator.policy.memo import LONGEST
from audit_operator.policy.model import STAGES, Decision, Level, Request, Stage
from audit_operator.policy.redact import RedactionRule, Redactor
from audit_operator.receiver.cutting import Redacting, Wanted
from audit_operator.render.program import PolicyProgram, Program, policy_of, redactions_of


class Decided(NamedTuple):
    """What one policy makes of an event, for the metrics. ``label``: the policy, its deciding rule, empty for none, and
    the level.
    """

    label: tuple[str, str, str]
    covered: bool


class Route(NamedTuple):
    """One form of an event, and the sinks that get it."""

    wanted: Wanted
    sinks: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What becomes of events that are alike to all policies. Each equals itself only, for they are counted.

    ``recorded``: the level that the events have. ``guests``: sinks that no policy of the platform asks this for, only
    those of a tenant.
    """

    recorded: Level
    routes: tuple[Route, ...]
    decided: tuple[Decided, ...]
    guests: frozenset[str] = frozenset()


class _Wish(NamedTuple):
    level: Level
    omit_managed_fields: bool
    redactions: tuple[RedactionRule, ...]
    tenant: bool


class _Policy:
    """A policy of the program, ready to decide."""

    __slots__ = ("evaluator", "name", "origins", "redactions", "sinks", "tenant")

    def __init__(self, program: Program, policy: PolicyProgram) -> None:
        meaning = policy_of(program, policy)
        self.name = f"{policy.namespace}/{policy.name}"
        self.tenant = policy.tenant
        self.sinks = policy.sinks
        self.redactions = redactions_of(policy)
        self.evaluator = Evaluator(meaning)
        self.origins = tuple(rule.origin for rule in meaning.rules)

    def decided(self, decision: Decision, stage: Stage, recorded: Level) -> tuple[Decided, Level]:
        """For the metrics, and the level to deliver: never more than was recorded."""
        wish = Level.NONE if stage in decision.omit_stages else decision.level
        level = min(wish, recorded)
        origin = "" if decision.rule is None else self.origins[decision.rule]
        return Decided((self.name, origin, str(level)), wish.server <= recorded), level


_LEVELS: Final = {str(level): level for level in Level if level is not Level.NONE}
_STAGES: Final = frozenset(map(str, STAGES))

_REMEMBERED: Final = 16384
"""Plans, of some 300 bytes. What clients ask for repeats all day; what they invent is forgotten when this fills up."""


class Deciding:
    """Decides for one program. Not safe for concurrent use from several threads.

    Raises RedactionError for redactions that cannot work, such as action Hash with a key that is too short.
    """

    def __init__(self, program: Program, hash_key: bytes = b"") -> None:
        self._hash_key = hash_key
        self._platform: list[_Policy] = []
        # Only its own namespace's requests concern a tenant: of a thousand tenants one is asked.
        self._tenants: dict[str, list[_Policy]] = {}
        for each in program.policies:
            policy = _Policy(program, each)
            group = self._platform if each.tenant is None else self._tenants.setdefault(each.tenant, [])
            group.append(policy)
        self._redactors: dict[tuple[tuple[RedactionRule, ...], bool], Redacting] = {}
        for policy in (*self._platform, *(policy for group in self._tenants.values() for policy in group)):
            self._redactor(policy.redactions, bounded=policy.tenant is not None and bool(policy.redactions))
        self._plans: dict[tuple[int, str, str], tuple[Request, Plan]] = {}

    def plan(self, request: Request, stage: str, recorded: str) -> Plan:
        """What becomes of an event of this request at this stage, recorded at this level.

        Raises EventError for a level or stage that no policy can be asked about.
        """
        # `request_of` returns the same object for the same request: its identity is cheaper than its hash, and strings'
        # are cheaper than enumerations'. It is kept beside the plan, so that no other object can have that identity.
        key = (id(request), stage, recorded)
        found = self._plans.get(key)
        if found is not None:
            return found[1]
        level = _LEVELS.get(recorded)
        if level is None:
            raise EventError("its level is none of Metadata, Request and RequestResponse")
        if stage not in _STAGES:
            raise EventError("its stage is none that API servers have")
        plan = self._plan(request, Stage(stage), level)
        if request.length <= LONGEST:
            if len(self._plans) >= _REMEMBERED:
                self._plans.clear()
            self._plans[key] = (request, plan)
        return plan

    def _plan(self, request: Request, stage: Stage, recorded: Level) -> Plan:
        decided = []
        wishes: dict[str, list[_Wish]] = {}
        policies = self._platform
        if request.namespace in self._tenants:
            policies = [*policies, *self._tenants[request.namespace]]
        for policy in policies:
            decision = policy.evaluator.decide(request)
            verdict, level = policy.decided(decision, stage, recorded)
            decided.append(verdict)
            if level is Level.NONE:
                continue
            wish = _Wish(level, decision.omit_managed_fields, policy.redactions, policy.tenant is not None)
            for sink in policy.sinks:
                wishes.setdefault(sink, []).append(wish)
        guests = frozenset(sink for sink, asked in wishes.items() if all(wish.tenant for wish in asked))
        return Plan(recorded, self._routes(wishes), tuple(decided), guests)

    def _routes(self, wishes: Mapping[str, list[_Wish]]) -> tuple[Route, ...]:
        routes: dict[Wanted, list[str]] = {}
        for sink, asked in wishes.items():
            routes.setdefault(self._together(asked), []).append(sink)
        return tuple(Route(wanted, tuple(sinks)) for wanted, sinks in routes.items())

    def _together(self, wishes: list[_Wish]) -> Wanted:
        level = max(wish.level for wish in wishes)
        platform = [wish for wish in wishes if not wish.tenant]
        counting = platform if any(wish.level == level for wish in platform) else wishes
        rules = tuple(dict.fromkeys(rule for wish in counting for rule in wish.redactions))
        with_bodies = [wish for wish in wishes if wish.level >= Level.REQUEST]
        omit = level >= Level.REQUEST and all(wish.omit_managed_fields for wish in with_bodies)
        theirs = any(wish.tenant and wish.redactions for wish in counting)
        return Wanted(level, omit, self._redactor(rules, bounded=theirs))

    def _redactor(self, rules: tuple[RedactionRule, ...], *, bounded: bool = False) -> Redacting:
        found = self._redactors.get((rules, bounded))
        if found is None:
            made = Redacting(Redactor(rules, hash_key=self._hash_key), bounded=bounded)
            found = self._redactors[(rules, bounded)] = made
        return found
