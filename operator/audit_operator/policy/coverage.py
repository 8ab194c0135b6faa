"""Does what API servers run record all that a policy needs? Asked anew, whatever way the server policy came about."""

from collections.abc import Sequence

import msgspec
from msgspec import structs

from audit_operator.policy import witness
from audit_operator.policy.bitsets import positions
from audit_operator.policy.model import Level, Policy, Request, Rule
from audit_operator.policy.outcome import NOTHING, outcome_of
from audit_operator.policy.region import Region, RegionIndex


class Coverage(msgspec.Struct, frozen=True):
    """Whether a server records all that a policy needs, and a request for which it does not, where one was found."""

    covered: bool
    rule: str = ""
    request: Request | None = None
    wanted: Level = Level.NONE
    recorded: Level = Level.NONE

    def __str__(self) -> str:
        if self.covered:
            return "everything this policy needs is recorded"
        if self.request is None:
            return f"{self.rule} may need more than API servers record"
        what = "stages or managedFields" if self.wanted == self.recorded else f"level {self.wanted}"
        return f"{self.rule} needs {what} for {self.request}, API servers record {self.recorded}"


class Recording:
    """A server policy, to be asked about many policies: what it records is indexed once."""

    def __init__(self, server: Policy) -> None:
        self._rules = (*server.rules, Rule(level=Level.NONE))
        self._regions = [Region.of(rule) for rule in self._rules]
        self._index = RegionIndex(self._regions)
        self._outcomes = [*(outcome_of(server, rule) for rule in server.rules), NOTHING]

    def covers(self, policy: Policy) -> Coverage:
        """Whether the server records, for every request, at least what ``policy`` needs of it.

        A rule of the policy with a namespaceSelector counts as matching wherever it could. Not covered is said with a
        request as proof; where the search for one gives up, not covered is assumed.
        """
        for number, rule in enumerate(policy.rules):
            need = outcome_of(policy, rule)
            if need == NOTHING:
                continue
            region = Region.of(rule)
            meets, covering = self._index.relations(region)
            reached = meets & (covering ^ (covering - 1))
            lacking = [position for position in positions(reached) if not self._outcomes[position].enough_for(need)]
            if not lacking:
                continue
            before = [other for other in policy.rules[:number] if other.namespace_selector is None]
            if rule.namespace_selector is not None:
                before.append(Rule(level=Level.NONE, namespaces=("",)))  # no selector selects it
            name = rule.origin or f"rules[{number}]"
            for position in lacking:
                recorded = self._outcomes[position]
                try:
                    found = self._decided(rule, position, before)
                except witness.Unknown:
                    return Coverage(False, name, None, need.level, recorded.level)
                if found is not None:
                    return Coverage(False, name, found, need.level, recorded.level)
        return Coverage(True)

    def _decided(self, rule: Rule, position: int, before: Sequence[Rule]) -> Request | None:
        """A request that ``rule`` decides, behind the rules ``before`` of its policy, and here the one at ``position``.

        None if there is none. Raises witness.Unknown. Most answers are one look at the index; a search is made ready
        only with the rules that the two share requests with.
        """
        both = Region.of(rule) & self._regions[position]
        if both is None:
            return None
        # Two lists of groups that only overlap have no region: any groups, which is more.
        both = structs.replace(both, user_groups=None)
        meets, covering = self._index.relations(both)
        earlier = (1 << position) - 1
        if covering & earlier:
            return None
        near = [(other, region) for other in before if (region := Region.of(other)) & both is not None]
        if any(region.covers(both) for _, region in near):
            return None
        standing = [self._rules[each] for each in positions(meets & earlier)]
        return witness.find([rule, self._rules[position]], [*(other for other, _ in near), *standing])


def covers(server: Policy, policy: Policy) -> Coverage:
    """Whether ``server`` records at least what ``policy`` needs; of many policies ask one `Recording`."""
    return Recording(server).covers(policy)
