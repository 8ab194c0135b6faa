"""Does what API servers run record all that a policy needs? Asked anew, whatever way the server policy came about."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import msgspec
from msgspec import structs

from audit_operator.policy import witness
from audit_operator.policy.bitsets import positions
from audit_operator.policy.memo import Same
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
        regions = _regions(Same(policy))
        for number, rule in enumerate(policy.rules):
            need = outcome_of(policy, rule)
            if need == NOTHING:
                continue
            meets, covering = self._index.relations(regions[number])
            reached = meets & (covering ^ (covering - 1))
            lacking = [position for position in positions(reached) if not self._outcomes[position].enough_for(need)]
            if not lacking:
                continue
            before = [
                (other, region)
                for other, region in zip(policy.rules[:number], regions, strict=False)
                if other.namespace_selector is None
            ]
            if rule.namespace_selector is not None:
                before.append((_NOWHERE, Region.of(_NOWHERE)))  # no selector selects it
            name = rule.origin or f"rules[{number}]"
            for position in lacking:
                recorded = self._outcomes[position]
                try:
                    found = self._decided(rule, regions[number], position, before)
                except witness.Unknown:
                    return Coverage(False, name, None, need.level, recorded.level)
                if found is not None:
                    return Coverage(False, name, found, need.level, recorded.level)
        return Coverage(True)

    def _decided(
        self, rule: Rule, region: Region, position: int, before: Sequence[tuple[Rule, Region]]
    ) -> Request | None:
        """A request that ``rule`` decides, behind the rules ``before`` of its policy, and here the one at ``position``.

        None if there is none. Raises witness.Unknown. Most answers are one look at the index; a search is made ready
        only with the rules that the two share requests with.
        """
        both = region & self._regions[position]
        if both is None:
            return None
        # Two lists of groups that only overlap have no region: any groups, which is more.
        both = structs.replace(both, user_groups=None)
        meets, covering = self._index.relations(both)
        earlier = (1 << position) - 1
        if covering & earlier:
            return None
        if any(its.covers(both) for _, its in before):
            return None
        near = [other for other, its in before if its & both is not None]
        standing = [self._rules[each] for each in positions(meets & earlier)]
        return witness.find([rule, self._rules[position]], [*near, *standing])


_NOWHERE: Final = Rule(level=Level.NONE, namespaces=("",))


@lru_cache(maxsize=8192)  # policies stay, servers change
def _regions(same: Same[Policy]) -> tuple[Region, ...]:
    return tuple(map(Region.of, same.value.rules))


def covers(server: Policy, policy: Policy) -> Coverage:
    """Whether ``server`` records at least what ``policy`` needs; of many policies ask one `Recording`."""
    return Recording(server).covers(policy)
