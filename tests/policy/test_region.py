"""Regions never lose a request, and never claim one they do not have."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_space import EVERY_REQUEST, rules

from audit_operator.policy.evaluate import bits, path_matches, rule_matches
from audit_operator.policy.model import GroupResources, Level, Request, Rule
from audit_operator.policy.region import Region, RegionIndex, entries, path_covers


def as_rule(region: Region) -> Rule:
    return Rule(
        level=Level.METADATA,
        users=tuple(region.users or ()),
        user_groups=tuple(region.user_groups or ()),
        verbs=tuple(region.verbs or ()),
        namespaces=tuple(region.namespaces or ()),
        resources=entries(region.atoms) if region.atoms is not None else (),
        non_resource_urls=tuple(region.paths or ("*",)) if region.scope == 2 else (),
    )


def holds(region: Region, request: Request) -> bool:
    return rule_matches(as_rule(region), request)


@given(rules)
@settings(max_examples=60, deadline=None)
def test_a_region_is_its_rule_without_the_outcome(rule: Rule) -> None:
    region = Region.of(rule)
    for request in EVERY_REQUEST[::5]:
        assert holds(region, request) == rule_matches(rule, request)


@given(rules, rules)
@settings(max_examples=120, deadline=None)
def test_an_intersection_holds_all_that_both_match_and_stays_inside_the_first(one: Rule, other: Rule) -> None:
    both = Region.of(one) & Region.of(other)
    for request in EVERY_REQUEST[::5]:
        inside = both is not None and holds(both, request)
        if rule_matches(one, request) and rule_matches(other, request):
            assert inside
        if inside:
            assert rule_matches(one, request)


@given(rules, rules)
@settings(max_examples=200, deadline=None)
def test_covering_is_never_claimed_wrongly(one: Rule, other: Rule) -> None:
    if Region.of(one).covers(Region.of(other)):
        for request in EVERY_REQUEST[::3]:
            assert rule_matches(one, request) or not rule_matches(other, request)


@given(st.lists(rules, min_size=1, max_size=8), rules)
@settings(max_examples=120, deadline=None)
def test_the_index_answers_for_every_region_what_the_regions_say(indexed: list[Rule], asked: Rule) -> None:
    regions = [Region.of(rule) for rule in indexed]
    region = Region.of(asked)
    meets, covers = RegionIndex(regions).relations(region)
    for i, other in enumerate(regions):
        shared = msgspec.structs.replace(region, user_groups=None) & msgspec.structs.replace(other, user_groups=None)
        assert bool(meets >> i & 1) == (shared is not None)
        assert bool(covers >> i & 1) == other.covers(region)


@given(st.lists(rules, min_size=1, max_size=8), st.sampled_from(EVERY_REQUEST))
@settings(max_examples=300, deadline=None)
def test_the_regions_that_hold_every_field_of_a_request_are_the_rules_that_match_it(
    indexed: list[Rule], request: Request
) -> None:
    index = RegionIndex([Region.of(rule) for rule in indexed])
    held = (
        index.with_user(request.user)
        & index.with_groups(request.groups if request.user is not None else ())
        & index.with_verb(request.verb)
    )
    if request.is_resource:
        held &= index.with_namespace(request.namespace)
        held &= index.with_resource(request.api_group, request.resource, request.subresource, request.name)
    else:
        held &= index.with_path(request.path)
    assert held == bits(rule_matches(rule, request) for rule in indexed)


@given(
    st.lists(st.text("/ab", max_size=4).map("/".__add__), max_size=6), st.lists(st.booleans(), min_size=6, max_size=6)
)
@settings(max_examples=300, deadline=None)
def test_paths_are_reduced_without_losing_one(stems: list[str], stars: list[bool]) -> None:
    urls = tuple(stem + "*" * star for stem, star in zip(stems, stars, strict=False))
    region = Region.of(Rule(level=Level.NONE, non_resource_urls=urls or ("/",)))
    assert region.paths is not None
    for path in (*stems, *(stem + "/x" for stem in stems), "/other"):
        matches = any(path_matches(path, url) for url in urls)
        assert matches == (bool(urls) and any(path_matches(path, kept) for kept in region.paths))
    assert not any(one != other and path_covers(one, other) for one in region.paths for other in region.paths)


def test_a_gap_in_the_index_is_in_no_answer() -> None:
    assert RegionIndex([None, Region(), None]).relations(Region()) == (0b10, 0b10)


def test_resources_come_back_as_they_are_written() -> None:
    written = (GroupResources("", ("*/scale", "pods", "pods/log")), GroupResources("apps", ("*",), ("a", "b")))
    region = Region.of(Rule(level=Level.NONE, resources=written))
    assert region.atoms is not None
    assert entries(region.atoms) == written
