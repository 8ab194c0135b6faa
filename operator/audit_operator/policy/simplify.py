"""Lists of rules made shorter without any change of meaning.

Covered rules go, rules that change nothing go, rules of one shape merge, so that a thousand tenants who differ only in
their namespace cost what one does.
"""

from collections.abc import Hashable, Sequence

import msgspec

from audit_operator.policy.bitsets import mask
from audit_operator.policy.outcome import NOTHING, Outcome
from audit_operator.policy.placing import Placed
from audit_operator.policy.region import Region, RegionIndex, normal

Rules = list[tuple[Region, Outcome]]
"""First match first; a request that none matches is not recorded."""


def simplified(rules: Rules, rounds: int) -> Rules:
    """Fewer rules with the same outcome for every request. Ends when a round is no longer worth its time."""
    for _ in range(rounds):
        size = len(rules)
        rules = _merged(_needed(rules))
        if len(rules) > 0.98 * size:
            break
    return rules


def above(placed: Sequence[Placed]) -> Rules:
    """The placed regions without those whose requests fare the same in the base that stands behind them."""
    falls = mask(i for i, one in enumerate(placed) if one.falls)
    return _merged(_needed([(region, outcome) for region, outcome, _ in placed], falls))


def _by_outcome(rules: Rules) -> dict[Outcome, int]:
    groups: dict[Outcome, list[int]] = {}
    for i, (_, outcome) in enumerate(rules):
        groups.setdefault(outcome, []).append(i)
    return {outcome: mask(numbers) for outcome, numbers in groups.items()}


def _needed(rules: Rules, falls: int = 0) -> Rules:
    """Without rules that an earlier one covers, and without those whose requests fare the same without them.

    ``falls``: the rules whose requests fare the same behind the end of the list.
    """
    index = RegionIndex([region for region, _ in rules])
    same = _by_outcome(rules)
    kept = (1 << len(rules)) - 1
    relations = [index.relations(region) for region, _ in rules]
    for i, (_, covers) in enumerate(relations):
        if covers & kept & ((1 << i) - 1):
            kept &= ~(1 << i)
    for i in range(len(rules) - 1, -1, -1):
        if not kept >> i & 1:
            continue
        meets, covers = relations[i]
        later = kept & -(2 << i)
        covering = covers & later
        reach = later & ((covering ^ (covering - 1)) if covering else -1)
        outcome = rules[i][1]
        ends_alike = covering or outcome == NOTHING or falls >> i & 1
        if ends_alike and not meets & reach & ~same[outcome]:
            kept &= ~(1 << i)
    return [rule for i, rule in enumerate(rules) if kept >> i & 1]


_MERGEABLE = ("namespaces", "atoms", "verbs", "users", "user_groups", "paths")


def _merged(rules: Rules) -> Rules:
    """Rules of one outcome that differ in one field become one, where moving the later one up changes nothing."""
    for field in _MERGEABLE:
        shapes = _shapes(field, rules)
        if len(set(shapes)) < len(shapes):
            rules = _merged_in(field, shapes, rules)
    return rules


def _shapes(field: str, rules: Rules) -> list[Hashable]:
    """Per rule what two rules must share to be merged in this field; unique where the field is open."""
    others = [other for other in _MERGEABLE if other != field]
    return [
        i if getattr(region, field) is None else (outcome, region.scope, *[getattr(region, other) for other in others])
        for i, (region, outcome) in enumerate(rules)
    ]


def _merged_in(field: str, shapes: Sequence[Hashable], rules: Rules) -> Rules:
    index = RegionIndex([region for region, _ in rules])
    same = _by_outcome(rules)
    heads: dict[Hashable, int] = {}
    members: dict[int, list[int]] = {}
    for i, (region, outcome) in enumerate(rules):
        head = heads.get(shapes[i])
        if head is not None:
            meets, _ = index.relations(region)
            if not meets & ((1 << i) - (2 << head)) & ~same[outcome]:
                members[head].append(i)
                continue
        heads[shapes[i]] = i
        members[i] = [i]
    result = []
    for head, group in sorted(members.items()):
        region, outcome = rules[head]
        if len(group) > 1:
            values = frozenset().union(*(getattr(rules[i][0], field) for i in group))
            region = normal(msgspec.structs.replace(region, **{field: values}))
        result.append((region, outcome))
    return result
