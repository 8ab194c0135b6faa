"""One server policy that records at least what every policy needs: sound always, tight and small where it can be.

How it works. A server policy is built as a list of regions; each gets the outcome that is enough for every request
that can reach it. For a region and a policy, that outcome is bounded by the policy's rules that meet the region, up to
the first that covers it, without those that are *placed*: a rule is placed once its region has been emitted, because a
request that still comes by did not match it. So any list of regions in any order is sound; order and choice of regions
only make it tight.

* Rules are placed policy by policy in order (interleaved), so a rule's own outcome is exact when its turn comes.
* Where the others make a region's outcome uncertain (some of its requests need less), the region is first split by the
  rules that do (this is the product of the policies, built only where it pays), within a budget.

Then the list is simplified: covered rules go, rules that change nothing go, rules of one shape merge, so that a
thousand tenants who differ only in their namespace cost what one does.

All policies' rules are bits of one integer, a segment per policy, so a question to a thousand policies is a handful
of integer operations.
"""

from collections.abc import Iterable
from functools import lru_cache

from audit_operator.policy.confined import Confined, confined, sections
from audit_operator.policy.folding import Source, fold, roughly_united, rules_of, source_of, united
from audit_operator.policy.generalize import generalized
from audit_operator.policy.model import Level, Policy, Rule, Stage
from audit_operator.policy.outcome import NOTHING, Outcome
from audit_operator.policy.placing import place
from audit_operator.policy.region import NON_RESOURCE, Region, entries
from audit_operator.policy.simplify import Rules, above, simplified


def union(policies: Iterable[Policy]) -> Policy:
    """The server policy that records at least what each policy needs.

    Minimal counts as Metadata (an API server has no Minimal). A rule with a namespaceSelector may match in any
    namespace or in none, so that a label never changes the result. The order of the policies does not matter.

    Args:
        policies: any number, with any rules.

    Returns:
        a policy without Minimal and namespaceSelector, in which for every request level, stages and managedFields are
        at least what each policy asks for. Without input, or if nobody wants anything: one rule of level None (an API
        server refuses an empty list).

    """
    return _policy(_combined({source_of(policy) for policy in policies}))


# What an API server walks for every request: a rule costs it some 20 ns.
_LIMIT = 1000

# Up to this many rules in all policies together, whatever they are, have the union that the tree gives.
_FEW = 400

# How many rules a kind of confined policies may have. The first is what a thousand policies can be united with again
# in a tenth of a second; the others are for sets of which the result is still too long.
_BUDGETS = (330, 160, 80, 40)


def _combined(sources: set[Source]) -> Rules:
    """The union of all, of at most `_LIMIT` rules or as many as the largest policy has."""
    limit = max([_LIMIT, *(len(one.entries) for one in sources)])
    if sum(len(one.entries) for one in sources) <= _FEW:
        rules = simplified(rules_of(fold(sources)), rounds=8)
        if len(rules) <= limit:
            return rules
    lists = {one: confined(one) for one in sources}
    base = fold(one for one, parts in lists.items() if not parts)
    for budget in _BUDGETS:
        found = sections((part for parts in lists.values() for part in parts), budget)
        rules = [*(rule for section in found for rule in _above(base, tuple(section))), *rules_of(base)]
        if len(rules) <= limit:
            return rules
    return generalized(rules, limit)


@lru_cache(maxsize=64)
def _above(base: Source, lists: tuple[Confined, ...]) -> Rules:
    """What to put before the base so that it is enough for these lists as well."""
    return above(place([one.entries() for one in lists], base.entries))


def forget() -> None:
    """Lose all memory of earlier unions: what a new process does, for tests and benchmarks."""
    for remembered in (source_of, united, roughly_united, confined, _above):
        remembered.cache_clear()


def _policy(rules: Rules) -> Policy:
    """The list as a policy, with what all its rules share said once, for the whole policy."""
    recorded = [outcome for _, outcome in rules if outcome != NOTHING]
    if not recorded:
        return Policy(rules=(Rule(level=Level.NONE),))
    stages = frozenset.intersection(*(outcome.omit_stages for outcome in recorded))
    bodies = [outcome for outcome in recorded if outcome.level >= Level.REQUEST]
    managed_fields = bool(bodies) and all(outcome.omit_managed_fields for outcome in bodies)
    return Policy(
        rules=tuple(_rule(region, outcome, stages, managed_fields) for region, outcome in rules),
        omit_stages=stages,
        omit_managed_fields=managed_fields,
    )


@lru_cache(maxsize=4096)
def _rule(region: Region, outcome: Outcome, stages: frozenset[Stage], managed_fields: bool) -> Rule:
    nothing = outcome == NOTHING
    own_choice = outcome.level >= Level.REQUEST and outcome.omit_managed_fields != managed_fields
    return Rule(
        level=outcome.level,
        users=_listed(region.users),
        user_groups=_listed(region.user_groups),
        verbs=_listed(region.verbs),
        namespaces=_listed(region.namespaces),
        resources=entries(region.atoms) if region.atoms is not None else (),
        non_resource_urls=_listed(frozenset("*") if region.paths is None else region.paths)
        if region.scope == NON_RESOURCE
        else (),
        omit_stages=frozenset() if nothing else outcome.omit_stages - stages,
        omit_managed_fields=outcome.omit_managed_fields if own_choice else None,
    )


def _listed(values: frozenset[str] | None) -> tuple[str, ...]:
    return tuple(sorted(values or ()))
