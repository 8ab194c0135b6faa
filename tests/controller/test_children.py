"""When an object counts as being as it should, and whose it is."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_operator.controller.children import digest, holds, made_by_us

SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=12,
)


@given(JSON)
def test_what_is_there_exactly_holds(wanted: Any) -> None:
    assert holds(wanted, wanted)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=2), JSON, max_size=4), st.dictionaries(st.text(min_size=3, max_size=4), JSON))
def test_fields_of_others_do_not_disturb(wanted: dict[str, Any], others: dict[str, Any]) -> None:
    assert holds(wanted | others, wanted)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=2), JSON, min_size=1, max_size=4), st.data())
def test_a_missing_or_different_field_does_not_hold(wanted: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(wanted)))
    without = {key: value for key, value in wanted.items() if key != name}
    assert holds(without, wanted) == (wanted[name] in ({}, []))  # the API server leaves out what is empty
    other = data.draw(SCALARS.filter(lambda value: (type(value), value) != (type(wanted[name]), wanted[name])))
    assert not holds(wanted | {name: other}, wanted)


@pytest.mark.parametrize(
    ("live", "wanted"), [([1, 2], [1]), ([1], [1, 2]), ("ab", ["a", "b"]), ({}, []), (1, "1"), (None, {})]
)
def test_lists_and_types_are_compared_whole(live: Any, wanted: Any) -> None:
    assert not holds(live, wanted)


def test_equal_documents_have_equal_digests_whatever_the_order_of_their_fields() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})


@pytest.mark.parametrize(
    ("entries", "ours"),
    [
        ([{"manager": "audit-operator", "operation": "Apply"}], True),
        ([{"manager": "audit-operator", "operation": "Update"}], False),
        ([{"manager": "kubectl", "operation": "Apply"}], False),
        ([], False),
        (None, False),
    ],
)
def test_only_what_the_operator_applied_is_ours_whatever_its_labels(entries: Any, ours: bool) -> None:
    labels = {"app.kubernetes.io/managed-by": "audit-operator"}
    assert made_by_us({"name": "x", "labels": labels, "managedFields": entries}) is ours
