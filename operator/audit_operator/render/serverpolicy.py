"""The one policy that API servers run. Every change of it restarts every API server, so it changes rarely."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from audit_operator.policy.effective import rules_of
from audit_operator.policy.kinds import GROUPS
from audit_operator.policy.model import Level, Policy, Rule, Stage
from audit_operator.policy.presets import preset
from audit_operator.policy.union import union
from audit_operator.render.policyfile import lower, policy_file
from audit_operator.render.remembered import recording

if TYPE_CHECKING:
    from audit_operator.render.world import World
    from audit_operator.resources.auditbackend import FixedPolicy, ServerPolicy, Tenants


class Chosen(NamedTuple):
    """``policy``: what API servers are to run, in their version's words; ``notices``: what that cannot say exactly.

    ``kept``: they run it already, and it records more than is needed.
    """

    policy: Policy
    notices: tuple[str, ...]
    kept: bool


def server_policy(policies: Iterable[Policy], spec: "ServerPolicy", tenants: "Tenants", world: "World") -> Chosen:
    """What API servers are to run for the ``policies`` of the root namespace.

    A union widens at once, and narrows only together with a widening or where ``spec.narrowing`` says so: as long as
    the policy in force records all that is needed, it stays. Of tenants only ``tenants.level`` enters.
    """

    def in_server_words(policy: Policy) -> Chosen:
        groups = world.kinds.groups if world.kinds.complete else GROUPS
        return Chosen(*lower(policy, world.server_version, groups), kept=False)

    if spec.fixed is not None:
        return in_server_words(_fixed(spec.fixed, world.root_namespace))
    needed = list(policies)
    if tenants.enabled:
        needed.append(tenants_policy(tenants))
    wanted = in_server_words(union(needed))
    if world.server_policy is None or spec.narrowing == "Immediately":
        return wanted
    in_force = in_server_words(world.server_policy)
    # The text is what API servers have: with the same one they need no restart.
    if policy_file(in_force.policy) == policy_file(wanted.policy):
        return wanted
    recorded = recording(in_force.policy)
    kept = all(recorded.covers(policy).covered for policy in needed)
    return in_force._replace(kept=True) if kept else wanted


def _fixed(fixed: "FixedPolicy", root_namespace: str) -> Policy:
    base = preset(fixed.preset, root_namespace).rules if fixed.preset else ()
    return Policy(
        rules=(*rules_of(fixed.rules, "spec.serverPolicy.fixed.rules"), *base),
        omit_stages=frozenset(map(Stage, fixed.omit_stages)),
        omit_managed_fields=fixed.omit_managed_fields,
    )


def tenants_policy(tenants: "Tenants") -> Policy:
    """What is recorded for tenants, whatever their policies say: every answered request in their namespaces.

    Tenants chosen by a selector count as every namespace, because labels must not restart API servers.
    """
    chosen = tenants.namespaces.names if tenants.namespaces.from_ == "Names" else ()
    level = Level.parse(tenants.level)
    return Policy(
        rules=(
            Rule(level=Level.NONE, non_resource_urls=("*",), origin="not in a namespace"),
            Rule(level=Level.NONE, namespaces=("",), origin="not in a namespace"),
            Rule(level=level, namespaces=chosen, origin="spec.tenants.level"),
        ),
        omit_stages=frozenset({Stage.REQUEST_RECEIVED}),
    )
