"""A set of resources is the same set whatever the order it came in."""

import itertools
from typing import Any

from audit_operator.render.world import Identity, Invalid, Resources
from audit_operator.resources.auditbackend import AuditBackend
from audit_operator.resources.auditpolicy import AuditPolicy
from audit_operator.resources.auditsink import AuditSink
from audit_operator.resources.load import Problem


def policy(name: str, namespace: str = "", preset: str = "CIS") -> AuditPolicy:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return AuditPolicy.model_validate({"metadata": metadata, "spec": {"preset": preset}})


SINK = AuditSink.model_validate({"metadata": {"name": "s", "namespace": "n"}, "spec": {"stdout": {}}})
BACKEND = AuditBackend.model_validate({"metadata": {"name": "default"}, "spec": {"clusterName": "c"}})


def same_in_every_order(*items: Any) -> Resources:
    found = [Resources.of(order) for order in itertools.permutations(items)]
    assert all(each == found[0] for each in found)
    return found[0]


def test_order_changes_nothing() -> None:
    found = same_in_every_order(policy("b", "x"), policy("a", "x"), policy("z", "a"), SINK, BACKEND)
    assert [(each.metadata.namespace, each.metadata.name) for each in found.policies] == [
        ("a", "z"),
        ("x", "a"),
        ("x", "b"),
    ]
    assert (found.sinks, found.backend, found.invalid) == ((SINK,), BACKEND, ())


def test_the_same_document_twice_is_one_resource() -> None:
    assert same_in_every_order(policy("a", "x"), policy("a", "x")).policies == (policy("a", "x"),)


def test_of_two_that_differ_and_share_a_name_neither_counts() -> None:
    found = same_in_every_order(policy("a", "x"), policy("a", "x", "Metadata"), policy("b", "x"))
    assert found.policies == (policy("b", "x"),)
    (invalid,) = found.invalid
    assert invalid.identity == Identity("AuditPolicy", "x", "a")
    assert str(invalid.problems[0]) == "metadata.name: a is given 2 times with different content; keep one"


def test_an_invalid_document_takes_its_namesake_with_it() -> None:
    def broken(message: str, source: str) -> Invalid:
        identity = Identity("AuditPolicy", "x", "a")
        return Invalid(identity=identity, problems=(Problem("spec", message),), generation=1, source=source)

    found = same_in_every_order(policy("a", "x"), broken("one", "f.yaml:1"), broken("two", "g.yaml:1"))
    assert found.policies == ()
    (invalid,) = found.invalid
    assert [problem.message for problem in invalid.problems] == ["one", "two"]
    assert invalid.source == "f.yaml:1, g.yaml:1"


def test_a_resource_without_namespace_is_in_the_one_that_kubectl_would_choose() -> None:
    assert Resources.of([policy("a")]).policies[0].metadata.namespace == "default"
    assert Resources.of([policy("a")], namespace="x").policies == (policy("a", "x"),)
    assert Resources.of([BACKEND], namespace="x").backend == BACKEND
