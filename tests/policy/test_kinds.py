"""The table of Kubernetes' own resources is what a kube-apiserver 1.36.2 serves, and says what came and went."""

import json
from pathlib import Path

import pytest

from audit_operator.policy.kinds import BUILT_IN, GROUPS, KINDS, Kinds

DISCOVERY = [
    json.loads(line) for line in (Path(__file__).parents[1] / "data/discovery-1.36.jsonl").read_bytes().splitlines()
]


def test_the_table_is_what_an_api_server_discovers() -> None:
    """Discovery of every API with every feature on; metrics.k8s.io is an aggregated API server's."""
    table = {
        (kind.group, kind.resource): (kind.kind, kind.namespaced, kind.verbs, kind.subresources, set(kind.short_names))
        for kind in KINDS
        if kind.served_by((1, 36)) and kind.group != "metrics.k8s.io"
    }
    served = {
        (each["group"], each["resource"]): (
            each["kind"],
            each["namespaced"],
            frozenset(each["verbs"]),
            frozenset(each["subresources"]),
            set(each["shortNames"]),
        )
        for each in DISCOVERY
    }
    assert table == served


@pytest.mark.parametrize(
    ("group", "resource", "first", "last"),
    [
        ("networking.k8s.io", "servicecidrs", 29, 36),
        ("networking.k8s.io", "clustercidrs", 28, 28),
        ("resource.k8s.io", "resourceclasses", 28, 30),
        ("resource.k8s.io", "resourceclaimparameters", 30, 30),
        ("resource.k8s.io", "podschedulingcontexts", 28, 31),
        ("admissionregistration.k8s.io", "mutatingadmissionpolicies", 32, 36),
        ("", "pods", 28, 36),
    ],
)
def test_resources_come_and_go(group: str, resource: str, first: int, last: int) -> None:
    kind = BUILT_IN.get(group, resource)
    assert kind is not None
    assert [minor for minor in range(28, 37) if kind.served_by((1, minor))] == list(range(first, last + 1))


def test_what_a_person_calls_a_resource_is_understood() -> None:
    assert {kind.resource for word in ("pod", "Pod", "po", "pods") for kind in BUILT_IN.meant_by(word)} == {"pods"}
    assert [kind.group for kind in BUILT_IN.named("events")] == ["", "events.k8s.io"]


def test_groups_begin_with_core_and_hold_the_metrics_adapters() -> None:
    assert GROUPS[0] == ""
    assert {"apps", "metrics.k8s.io", "custom.metrics.k8s.io"} <= set(GROUPS)
    assert list(GROUPS) == sorted(GROUPS)


def test_a_table_of_a_cluster_is_complete() -> None:
    assert Kinds(KINDS[:2], complete=True).complete
    assert not BUILT_IN.complete
