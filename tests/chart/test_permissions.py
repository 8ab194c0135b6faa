"""The chart grants the operator what it calls, and nothing else."""

import itertools

from helm import Json, one, template

from audit_operator.controller.permissions import PERMISSIONS

Grant = tuple[str, str, str, str, tuple[str, ...]]
"""scope, API group, resource, verb, the only names (none: all)"""


def granted(*arguments: str) -> set[Grant]:
    """What the operator's service account may do."""
    objects = template(*arguments)
    grants: set[Grant] = set()
    for binding in objects:
        if binding["kind"] not in {"RoleBinding", "ClusterRoleBinding"}:
            continue
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": "audit-operator", "namespace": "audit-system"}
        ]
        scope = "cluster" if binding["kind"] == "ClusterRoleBinding" else "root namespace"
        role = one(objects, binding["roleRef"]["kind"], binding["roleRef"]["name"])
        grants |= {grant for rule in role["rules"] for grant in _of(rule, scope)}
    return grants


def _of(rule: Json, scope: str) -> set[Grant]:
    assert rule.keys() <= {"apiGroups", "resources", "verbs", "resourceNames"}
    names = tuple(rule.get("resourceNames", ()))
    return set(itertools.product([scope], rule["apiGroups"], rule["resources"], rule["verbs"], [names]))


def called() -> set[Grant]:
    return {
        ("root namespace" if each.scope == "root namespace" else "cluster", each.group, each.resource, verb, each.names)
        for each in PERMISSIONS
        for verb in each.verbs
    }


def test_everything_the_operator_calls_is_granted_and_nothing_else() -> None:
    assert granted("--set", "rbac.tenantCredentials=true") == called()


def test_without_tenants_only_their_credentials_are_missing() -> None:
    missing = {("cluster", "", resource, "get", ()) for resource in ("secrets", "configmaps")}
    assert granted() == called() - missing
