"""One server policy that records at least what every policy needs: sound always, tight and small where it can be.

How it works, and where:

* `placing`: a server policy is a list of regions, each with the outcome that is enough for every request that can reach
  it. Any list of regions is sound; which there are, and in which order, decides how tight it is and how long.
* `simplify`: fewer rules that mean the same; `generalize`: fewer rules that ask for more.
* `folding`: many policies are united as a tree of small unions that are remembered, so that a change costs one path.
* `confined`: policies about some users, groups or namespaces, as few lists in sections.
* Here: few policies are united by the tree alone. Of many, the tree unites those that record for anyone anywhere; that
  union is the *base*. Confined lists stand before it, with only what they ask for on top of it: where the base has
  enough, requests fall through to it.

docs/architecture.md says why the result is sound.
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
        at least what each policy asks for. It has at most 1,000 rules, or as many as the largest of the policies.
        Without input, or if nobody wants anything: one rule of level None (an API server refuses an empty list).

    """
    return _policy(_combined({source_of(policy) for policy in policies}))


# An API server walks the list for every request. A rule costs it some 20 ns (0.13 µs for six), all of them 20 µs.
_LIMIT = 1000

# Policies with this many rules in all are united by the tree alone, whatever they are about.
_FEW = 400

# How many rules the lists of one kind may have (`confined.sections`). With the first of them a thousand policies are
# united anew in a tenth of a second after one has changed; the others are for sets whose result is too long with it.
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
