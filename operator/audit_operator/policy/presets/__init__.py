"""Named base policies: one readable audit.k8s.io/v1 file each, beside this module, documented in docs/presets.md.

A preset is complete on its own, and is appended after the rules of whoever names it.
"""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Final

import msgspec
import yaml

from audit_operator.policy.model import GroupResources, Level, Policy, Rule, Stage

NAMES: Final = ("Metadata", "CIS", "WriteBodies", "AllBodies", "Minimal", "Forensic")
"""What ``spec.preset`` can be."""


def text(name: str) -> str:
    """The preset's YAML, comments and all. Raises KeyError for a name not in NAMES."""
    if name not in NAMES:
        raise KeyError(f"no preset {name!r}; there are {', '.join(NAMES)}")
    return resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


@cache
def preset(name: str) -> Policy:
    """The preset as a policy. Raises KeyError for a name not in NAMES.

    Stages and managedFields stand on every rule as well as on the policy, so that the rules mean the same after
    another policy's rules.
    """
    document = yaml.safe_load(text(name))
    stages = frozenset(Stage(stage) for stage in document["omitStages"])
    rules = (_rule(rule, f"preset {name} rules[{index}]") for index, rule in enumerate(document["rules"]))
    return Policy(
        rules=tuple(msgspec.structs.replace(rule, omit_stages=stages, omit_managed_fields=True) for rule in rules),
        omit_stages=stages,
        omit_managed_fields=True,
    )


def _rule(wire: Mapping[str, Any], origin: str) -> Rule:
    return Rule(
        level=Level.parse(wire["level"]),
        users=tuple(wire.get("users", ())),
        user_groups=tuple(wire.get("userGroups", ())),
        verbs=tuple(wire.get("verbs", ())),
        namespaces=tuple(wire.get("namespaces", ())),
        resources=tuple(
            GroupResources(entry["group"], tuple(entry.get("resources", ())), tuple(entry.get("resourceNames", ())))
            for entry in wire.get("resources", ())
        ),
        non_resource_urls=tuple(wire.get("nonResourceURLs", ())),
        origin=origin,
    )
