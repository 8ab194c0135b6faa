"""Named base policies: one readable audit.k8s.io/v1 file each, beside this module, documented in docs/presets.md.

A preset is complete on its own, and is appended after the rules of whoever names it.
"""

from functools import cache
from importlib import resources
from typing import Final

from msgspec import structs

from audit_operator.policy.load import policy_of
from audit_operator.policy.model import Level, Policy, Rule
from audit_operator.policy.yamltext import read

NAMES: Final = ("Metadata", "CIS", "WriteBodies", "AllBodies", "Minimal", "Forensic")
"""What ``spec.preset`` can be."""

ROOT_NAMESPACE: Final = "audit-system"
"""Where the files have the operator, whose own Lease is noise."""

_OLDEST_SERVER: Final = (1, 28)
_OPERATOR: Final = "system:serviceaccount:{}:audit-operator"


def text(name: str) -> str:
    """The preset's YAML, comments and all. Raises KeyError for a name not in NAMES."""
    if name not in NAMES:
        raise KeyError(f"no preset {name!r}; there are {', '.join(NAMES)}")
    return resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


@cache
def preset(name: str, root_namespace: str = ROOT_NAMESPACE) -> Policy:
    """The preset as a policy, for an operator in ``root_namespace``. Raises KeyError for a name not in NAMES.

    Stages and managedFields stand on every rule as well as on the policy, so that the rules mean the same after
    another policy's rules.
    """
    document = read(text(name)).root.value
    # The loader knows what API servers know, and level Minimal is ours.
    levels = [Level.parse(rule["level"]) for rule in document["rules"]]
    for rule, level in zip(document["rules"], levels, strict=True):
        rule["level"] = str(level.server)
    policy = policy_of(document, server=_OLDEST_SERVER)
    rules = (
        structs.replace(
            _moved(rule, root_namespace),
            level=level,
            omit_stages=policy.omit_stages,
            omit_managed_fields=policy.omit_managed_fields,
            origin=f"preset {name} rules[{index}]",
        )
        for index, (rule, level) in enumerate(zip(policy.rules, levels, strict=True))
    )
    return structs.replace(policy, rules=tuple(rules))


def _moved(rule: Rule, root_namespace: str) -> Rule:
    """The rule about the operator itself, where that is; any other as it is."""
    if rule.users != (_OPERATOR.format(ROOT_NAMESPACE),):
        return rule
    return structs.replace(rule, users=(_OPERATOR.format(root_namespace),), namespaces=(root_namespace,))
