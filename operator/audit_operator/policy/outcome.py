"""What a server policy does with a request, and what a rule asks of it."""

import msgspec

from audit_operator.policy.model import STAGES, Level, Policy, Rule, Stage


class Outcome(msgspec.Struct, frozen=True):
    """What a server policy does with a request."""

    level: Level
    omit_stages: frozenset[Stage]
    omit_managed_fields: bool

    def enough_for(self, need: "Outcome") -> bool:
        """Whether whoever asks for ``need`` has all of it."""
        return (
            self.level >= need.level
            and self.omit_stages <= need.omit_stages
            and (need.omit_managed_fields or not self.omit_managed_fields)
        )

    def with_(self, other: "Outcome") -> "Outcome":
        """The least that is enough for both."""
        return Outcome(
            max(self.level, other.level),
            self.omit_stages & other.omit_stages,
            self.omit_managed_fields and other.omit_managed_fields,
        )


NOTHING = Outcome(Level.NONE, frozenset(STAGES), omit_managed_fields=True)
"""The outcome of a request that nobody wants; the least there is."""


def outcome_of(policy: Policy, rule: Rule) -> Outcome:
    """What the rule, when it decides, asks of a server."""
    level = rule.level.server
    if level is Level.NONE:
        return NOTHING
    omit = policy.omit_managed_fields if rule.omit_managed_fields is None else rule.omit_managed_fields
    return Outcome(level, policy.omit_stages | rule.omit_stages, omit or level < Level.REQUEST)
