"""The search for a request finds one wherever there is one, and only such a one."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_operator.policy.evaluate import rule_matches
from audit_operator.policy.model import GroupResources, LabelSelector, Level, Request, Rule
from audit_operator.policy.witness import Finder, Unknown, find

# Few values, so that drawn rules meet; every request over them and one fresh value per field can be tried.
USERS, GROUPS, VERBS, NAMESPACES = ("u", "v"), ("g", "h"), ("get", "create"), ("", "n")
ITEMS = ("*", "pods", "pods/log", "pods/*", "*/log", "jobs")
PATHS = ("*", "/a", "/a*", "/ab", "/b*")


def lists(values: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.one_of(
        st.just(()), st.lists(st.sampled_from(values), max_size=min(2, len(values)), unique=True).map(tuple)
    )


entries = st.builds(
    GroupResources,
    group=st.sampled_from(["", "apps", "*"]),
    resources=st.lists(st.sampled_from(ITEMS), min_size=1, max_size=2, unique=True).map(tuple),
    resource_names=lists(("x",)),
)
common = {"level": st.just(Level.NONE), "users": lists(USERS), "user_groups": lists(GROUPS), "verbs": lists(VERBS)}
rules = st.one_of(
    st.builds(Rule, **common, namespaces=lists(NAMESPACES), resources=st.lists(entries, max_size=2).map(tuple)),
    st.builds(Rule, **common, non_resource_urls=lists(PATHS)),
)

EVERY_REQUEST = [
    Request(user=user, groups=groups, verb=verb, **rest)  # type: ignore[arg-type]
    for user, groups, verb in product((*USERS, "other"), ((), ("g",), ("h",), ("g", "h")), (*VERBS, "other"))
    for rest in (
        *(
            {"namespace": ns, "api_group": group, "resource": res, "subresource": sub, "name": name}
            for ns, group, res, sub, name in product(
                (*NAMESPACES, "o"), ("", "apps", "o"), ("pods", "jobs", "o"), ("", "log", "o"), ("x", "o")
            )
        ),
        *({"is_resource": False, "path": path} for path in ("/a", "/ab", "/aa", "/b", "/bb", "/o")),
    )
]


@given(st.lists(rules, min_size=1, max_size=2), st.lists(rules, max_size=4))
@settings(max_examples=120, deadline=None)
def test_a_request_is_found_if_and_only_if_there_is_one(must: list[Rule], avoid: list[Rule]) -> None:
    found = find(must, avoid)
    if found is not None:
        assert all(rule_matches(rule, found) for rule in must)
        assert not any(rule_matches(rule, found) for rule in avoid)
        return
    there = (
        request
        for request in EVERY_REQUEST
        if all(rule_matches(rule, request) for rule in must) and not any(rule_matches(rule, request) for rule in avoid)
    )
    assert next(there, None) is None


@given(st.lists(rules, min_size=1, max_size=2), st.lists(rules, max_size=4), st.integers(0, 15))
@settings(max_examples=100, deadline=None)
def test_a_finder_avoids_those_rules_and_no_others(must: list[Rule], avoid: list[Rule], chosen: int) -> None:
    found = Finder(avoid).find(must, chosen)
    assert found == find(must, [rule if chosen >> i & 1 else NEVER for i, rule in enumerate(avoid)])


NEVER = Rule(level=Level.NONE, verbs=("no verb",), users=("nobody",), namespaces=("nowhere",))


def test_a_finder_with_a_spent_budget_knows_nothing_more() -> None:
    finder = Finder([Rule(level=Level.NONE, users=USERS)], budget=10)
    assert not finder.exhausted
    assert finder.find([Rule(level=Level.NONE)], 1) is not None
    assert finder.exhausted
    with pytest.raises(Unknown):
        finder.find([Rule(level=Level.NONE)], 1)


def test_rules_that_name_very_much_are_not_compared_name_by_name() -> None:
    named = [
        Rule(level=Level.NONE, resources=(GroupResources("", ("pods",), tuple(f"{letter}{i}" for i in range(5000))),))
        for letter in "ab"
    ]
    with pytest.raises(Unknown):
        find(named, [])


def test_requests_look_like_those_of_a_cluster() -> None:
    request = find([Rule(level=Level.NONE, resources=(GroupResources("", ("secrets",)),))], [])
    assert request is not None
    assert request.user == "alice"
    assert request.verb in {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}


def test_a_created_object_has_no_name_yet() -> None:
    request = find([Rule(level=Level.NONE, verbs=("create",), resources=(GroupResources("", ("pods",)),))], [])
    assert request is not None
    assert request.name == ""


def test_everything_can_be_avoided_only_by_nothing() -> None:
    assert find([], []) is not None
    assert find([], [Rule(level=Level.NONE)]) is None
    halves = [
        Rule(level=Level.NONE, resources=(GroupResources("*"),)),
        Rule(level=Level.NONE, non_resource_urls=("*",)),
    ]
    assert find([], halves) is None
    assert find([], halves[:1]) is not None


def test_a_search_that_takes_too_long_is_given_up() -> None:
    must = [Rule(level=Level.NONE, users=USERS, verbs=VERBS)]
    avoid = [Rule(level=Level.NONE, users=(user,), verbs=(verb,)) for user, verb in product(USERS, VERBS)]
    assert find(must, avoid) is None
    with pytest.raises(Unknown):
        find(must, avoid, limit=1)


def test_selectors_must_be_resolved() -> None:
    rule = Rule(level=Level.NONE, namespace_selector=LabelSelector())
    with pytest.raises(ValueError, match="resolve namespaceSelector"):
        find([], [rule])
