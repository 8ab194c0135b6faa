"""What is scarce: the platform first, tenants in equal parts, and of one that asks for too much its own newest go."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit_operator.render.budgets import Demand, divided, equal_part, excess, spec_bytes
from audit_operator.render.plan import Plan, render
from audit_operator.render.program import CREDENTIALS, SECRET_LIMIT, Reference, credentials_secret
from audit_operator.render.tenants import followed
from audit_operator.render.world import Identity, Resources, World
from audit_operator.resources.auditbackend import Tenants
from audit_operator.resources.load import Resource, load_resource

ROOT = "audit-system"
SIZES = st.lists(st.integers(0, 1000), max_size=12)


def demand(name: str, size: int, age: str = "") -> Demand:
    return Demand(Identity("AuditPolicy", "team-a", name), (age,), {name: size})


@given(SIZES, st.integers(0, 3000))
def test_what_is_left_fits_and_whoever_is_left_out_would_not_have(sizes: list[int], most: int) -> None:
    demands = [(demand(f"p{number:02}", size), size) for number, size in enumerate(sizes)]
    out = excess([each for each, _ in demands], most)
    assert sum(size for each, size in demands if each.identity not in out) <= most
    for each, size in demands:
        if each.identity in out:
            older = [its for one, its in demands if one.identity < each.identity and one.identity not in out]
            assert out[each.identity] == size + sum(older) > most


def test_the_oldest_count_and_of_equally_old_ones_the_first_by_name() -> None:
    demands = [demand("b", 4, "2026"), demand("a", 4, "2026"), demand("old", 4, "2025"), demand("small", 1, "2027")]
    assert {identity.name for identity in excess(demands, 9)} == {"b"}
    assert excess(demands, 9) == excess(demands[::-1], 9)


@given(SIZES, st.integers(0, 3000))
def test_equal_parts_fill_the_room_and_nobody_has_more_than_who_is_cut(sizes: list[int], most: int) -> None:
    part = equal_part(sizes, most)
    had = [min(size, part) for size in sizes]
    assert sum(had) <= most
    if any(size > part for size in sizes):
        # What is left over is less than one byte for each that is cut.
        assert most - sum(had) < sum(size > part for size in sizes)


@given(st.lists(SIZES, max_size=6), st.integers(0, 3000))
def test_who_asks_for_no_more_than_an_equal_part_has_it_and_no_room_is_wasted(
    groups: list[list[int]], most: int
) -> None:
    demands = [
        [
            Demand(Identity("AuditPolicy", f"n{at}", f"p{number}"), ("",), {number: size})
            for number, size in enumerate(group)
        ]
        for at, group in enumerate(groups)
    ]
    out = divided(demands, most)
    sizes = {each.identity: sum(each.parts.values()) for group in demands for each in group}
    held = sum(size for identity, size in sizes.items() if identity not in out)
    assert held <= most
    assert all(held + sizes[identity] > most for identity in out)
    for group in demands:
        if sum(sizes[each.identity] for each in group) * len(groups) <= most:
            assert not any(each.identity in out for each in group)


# --- with resources --------------------------------------------------------------------------------------------------


def resource(kind: str, name: str, namespace: str, created: int = 0, **spec: Any) -> Resource:
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": f"2026-01-01T00:00:{created:02}Z"}
    document = {"apiVersion": "audit-operator.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
    return load_resource(document)


def backend(serverPolicy: Any = None, **limits: Any) -> Resource:  # noqa: N803 - as in the resource
    spec = {"clusterName": "c", "tenants": {"enabled": True, "limits": limits}}
    spec |= {"serverPolicy": serverPolicy} if serverPolicy else {}
    api = "audit-operator.dev/v1alpha1"
    return load_resource({"apiVersion": api, "kind": "AuditBackend", "metadata": {"name": "default"}, "spec": spec})


def http(namespace: str, name: str = "s", **rest: Any) -> Resource:
    return resource("AuditSink", name, namespace, http={"url": "https://x/"}, **rest)


def noisy(name: str, namespace: str, size: int, created: int = 0, seed: int = 0) -> Resource:
    """A policy of about so many bytes, of which gzip makes hardly less than three fifths."""
    noise = random.Random(f"{namespace}/{name}/{seed}")
    users = [noise.randbytes(250).hex() for _ in range(max(size // 503, 1))]
    rules = [{"level": "Metadata", "users": users[start : start + 200]} for start in range(0, len(users), 200)]
    return resource("AuditPolicy", name, namespace, created, rules=rules, sinks=[{"name": "s"}])


def planned(*items: Resource, **world: Any) -> Plan:
    namespaces = {item.metadata.namespace: {} for item in items if item.metadata.namespace}
    return render(Resources.of(items), World(namespaces=namespaces, **world))


def reasons(plan: Plan) -> dict[str, str]:
    """Of what does not count."""
    return {
        f"{each.identity.namespace}/{each.identity.name}": each.ready.reason
        for each in plan.statuses
        if each.identity in plan.refused
    }


def programmed(plan: Plan) -> list[str]:
    return [f"{each.namespace}/{each.name}" for each in plan.program.policies]


PLATFORM = (http(ROOT), resource("AuditPolicy", "base", ROOT, 59, preset="CIS", sinks=[{"name": "s"}]))


@pytest.mark.parametrize("sizes", [(1_400_000,), (620_000, 620_000, 620_000, 620_000), (60_000, 60_000)])
def test_a_tenants_large_policies_never_block_and_its_newest_are_refused_by_name(sizes: Sequence[int]) -> None:
    large = [noisy(f"p{number}", "team-a", size, number) for number, size in enumerate(sizes)]
    quiet = planned(backend(), *PLATFORM, http("team-a"))
    plan = planned(backend(), *PLATFORM, http("team-a"), *large)
    assert plan.blocked == ()
    late = large[sum(sizes[0:1]) < 65_536 :]
    assert reasons(plan) == {f"team-a/{each.metadata.name}": "TooLarge" for each in late}
    assert [item for item in plan.objects if "program" not in str(item["metadata"]["name"])] == [
        item for item in quiet.objects if "program" not in str(item["metadata"]["name"])
    ]
    assert f"{ROOT}/base" in programmed(plan)


def test_the_refusal_names_the_bytes_the_room_and_the_limit() -> None:
    plan = planned(backend(policyBytes="1Ki"), *PLATFORM, noisy("p", "team-a", 3000))
    (status,) = (each for each in plan.statuses if each.identity.name == "p")
    assert status.ready.message == (
        f"the specs of this and older AuditPolicies of namespace team-a have {spec_bytes(noisy('p', 'team-a', 3000))} "  # type: ignore[arg-type]
        "bytes; there is room for 1024, and older ones come first: shorten one, remove one, or raise "
        "spec.tenants.limits.policyBytes of the AuditBackend"
    )


def test_sinks_have_bytes_of_their_own() -> None:
    urls = [f"https://x/{'p' * 900}{number}" for number in range(16)]
    sinks = [resource("AuditSink", f"s{number}", "team-a", number, elasticsearch={"urls": urls}) for number in range(3)]
    plan = planned(backend(), *PLATFORM, *sinks)
    assert reasons(plan) == {"team-a/s2": "TooLarge"}


def test_all_tenants_within_their_budgets_never_need_more_than_a_program_holds() -> None:
    tenants = [f"team-{number:02}" for number in range(40)]
    items = [each for name in tenants for each in (http(name), noisy("p", name, 60_000))]
    small = [http("small"), noisy("p", "small", 5_000)]
    plan = planned(backend(), *PLATFORM, *items, *small)
    assert plan.blocked == ()
    assert {f"{ROOT}/base", "small/p"} <= set(programmed(plan))
    refused = reasons(plan)
    assert set(refused.values()) == {"TooLarge"}
    assert {name.partition("/")[2] for name in refused} == {"p"}  # sinks have room, and come first
    assert len(programmed(plan)) > 20


def test_a_tenant_that_asks_for_less_than_an_equal_part_loses_nothing_to_those_that_ask_for_more() -> None:
    greedy = [
        each
        for number in range(8)
        for name in [f"greedy-{number}"]
        for each in (http(name), *(noisy(f"p{count}", name, 190_000, count) for count in range(3)))
    ]
    modest = [
        each for number in range(5) for each in (http(f"modest-{number}"), noisy("p", f"modest-{number}", 40_000))
    ]
    plan = planned(backend(policyBytes="1Mi"), *PLATFORM, *greedy, *modest)
    assert plan.blocked == ()
    assert not [name for name in reasons(plan) if name.startswith("modest")]
    assert {f"modest-{number}/p" for number in range(5)} <= set(programmed(plan))
    assert "greedy-0/p2" in reasons(plan)


def test_policies_that_share_their_rules_cost_tenants_together_what_one_costs() -> None:
    noise = random.Random(3)
    rules = [{"level": "Metadata", "users": [noise.randbytes(250).hex() for _ in range(100)]}]
    items = [
        each
        for number in range(60)
        for name in [f"team-{number}"]
        for each in (http(name), resource("AuditPolicy", "p", name, rules=rules, sinks=[{"name": "s"}]))
    ]
    assert reasons(planned(backend(), *PLATFORM, *items)) == {}


def test_rules_that_tenants_share_count_for_each_in_part_when_room_is_scarce() -> None:
    noise = random.Random(3)
    rules = [{"level": "Metadata", "users": [noise.randbytes(250).hex() for _ in range(100)]}]
    sharing = [
        each
        for number in range(30)
        for name in [f"team-{number}"]
        for each in (http(name), resource("AuditPolicy", "p", name, 50, rules=rules, sinks=[{"name": "s"}]))
    ]
    greedy = [each for number in range(4) for each in (http(f"g{number}"), noisy("p", f"g{number}", 500_000))]
    plan = planned(backend(policyBytes="1Mi"), *PLATFORM, *sharing, *greedy)
    refused = reasons(plan)
    assert refused
    assert not [name for name in refused if name.startswith("team")]


def test_the_platform_comes_first() -> None:
    platform = [noisy(f"own-{number}", ROOT, 500_000, number) for number in range(3)]
    tenant = [each for number in range(9) for each in (http(f"t{number}"), noisy("p", f"t{number}", 60_000))]
    fixed = {"mode": "Fixed", "fixed": {"preset": "Metadata"}}
    plan = planned(backend(serverPolicy=fixed), *PLATFORM, *platform, *tenant)
    assert plan.blocked == ()
    assert {f"{ROOT}/own-{number}" for number in range(2)} <= set(programmed(plan))
    assert not any(name.startswith(ROOT) for name in reasons(plan) if name != f"{ROOT}/own-2")


# --- credentials -----------------------------------------------------------------------------------------------------


def bearer(namespace: str, name: str, created: int = 0) -> Resource:
    auth = {"bearerToken": {"name": name, "key": "k"}}
    return resource("AuditSink", name, namespace, created, http={"url": "https://x/", "auth": auth})


def sizes(**names: int) -> dict[Reference, dict[str, int]]:
    """``namespace__name`` -> bytes of its key."""
    return {
        Reference("Secret", *each.replace("_", "-").split("--")): {"k": size}  # type: ignore[arg-type]
        for each, size in names.items()
    }


def test_a_tenants_large_secrets_cost_its_newest_sinks_and_nothing_else() -> None:
    sinks = [bearer("team-a", "one", 1), bearer("team-a", "two", 2), bearer("team-a", "small", 3), bearer(ROOT, "siem")]
    known = sizes(team_a__one=200_000, team_a__two=200_000, team_a__small=20, audit_system__siem=20)
    plan = planned(backend(), *sinks, references=known)
    assert reasons(plan) == {"team-a/two": "TooLarge"}
    assert {each.name for each in plan.credentials} == {"siem", "one", "small"}


def test_a_sink_that_is_refused_leaves_what_it_refers_to_to_be_counted_for_the_next() -> None:
    auth = {"bearerToken": {"name": "large", "key": "k"}}
    same = resource("AuditSink", "same", "team-a", 2, http={"url": "https://y/", "auth": auth})
    known = sizes(team_a__large=300_000)
    found = reasons(planned(backend(), bearer("team-a", "large", 1), same, references=known))
    assert found == {"team-a/large": "TooLarge", "team-a/same": "TooLarge"}


def test_a_secret_that_two_sinks_of_a_tenant_share_counts_once() -> None:
    auth = {"bearerToken": {"name": "one", "key": "k"}}
    again = resource("AuditSink", "again", "team-a", 2, http={"url": "https://y/", "auth": auth})
    known = sizes(team_a__one=200_000)
    assert reasons(planned(backend(), bearer("team-a", "one", 1), again, references=known)) == {}


def test_of_tenants_that_share_a_secret_each_has_its_part() -> None:
    first = "team-0"
    together = [
        name
        for number in range(400)
        if credentials_secret(name := f"team-{number}", ROOT) == credentials_secret(first, ROOT)
    ][:8]
    known = {Reference("Secret", name, "one"): {"k": 250_000 if name != together[-1] else 20_000} for name in together}
    plan = planned(backend(), *(bearer(name, "one") for name in together), references=known)
    refused = reasons(plan)
    assert f"{together[-1]}/one" not in refused
    assert set(refused.values()) == {"TooLarge"}
    held = sum(known[each.reference]["k"] for each in plan.credentials)
    assert held <= SECRET_LIMIT


def test_the_platforms_own_secret_is_bounded_too_and_no_tenants_limit_is_its() -> None:
    sinks = [bearer(ROOT, "one", 1), bearer(ROOT, "two", 2), bearer(ROOT, "three", 3)]
    known = sizes(audit_system__one=500_000, audit_system__two=500_000, audit_system__three=300_000)
    plan = planned(backend(), *sinks, references=known)
    assert reasons(plan) == {f"{ROOT}/two": "TooLarge"}


def test_whatever_tenants_have_the_platforms_credentials_lie_apart_from_theirs() -> None:
    assert credentials_secret(ROOT, ROOT) == CREDENTIALS
    assert all(credentials_secret(f"team-{number}", ROOT) != CREDENTIALS for number in range(300))


def test_secrets_are_looked_at_only_for_sinks_that_count() -> None:
    sinks = [bearer("team-a", f"s{number:02}", number) for number in range(9)] + [bearer("stranger", "x")]
    resources = Resources.of(sinks)
    spec = {"enabled": True, "namespaces": {"from": "Names", "names": ["team-a"]}}
    found = followed(resources, Tenants.model_validate(spec), World(namespaces={"team-a": {}, "stranger": {}}))
    assert {str(each) for each in found} == {f"Secret team-a/s{number:02}" for number in range(3)}
    assert followed(resources, Tenants(), World()) == frozenset()


def test_a_sink_whose_secret_shrinks_counts_again() -> None:
    sink = bearer("team-a", "one")
    assert reasons(planned(backend(), sink, references=sizes(team_a__one=300_000))) == {"team-a/one": "TooLarge"}
    assert reasons(planned(backend(), sink, references=sizes(team_a__one=300))) == {}
    assert reasons(planned(backend(), sink)) == {}  # offline nobody knows
