"""The union records at least what every policy needs, hardly more, and stays small."""

import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_space import (
    EVERY_REQUEST,
    confined_policies,
    policies,
    recorded_events,
    selecting_rules,
    server_decisions,
)

from audit_operator.policy import folding, presets
from audit_operator.policy import union as module
from audit_operator.policy.coverage import Coverage, covers
from audit_operator.policy.effective import resolve
from audit_operator.policy.evaluate import Evaluator
from audit_operator.policy.load import policy_of
from audit_operator.policy.model import STAGES, Decision, GroupResources, Level, Policy, Request, Rule, Stage
from audit_operator.policy.request import request_of
from audit_operator.policy.union import union


def is_enough(server: Decision, wanted: Decision) -> bool:
    level = wanted.level.server
    if level is Level.NONE:
        return True
    return (
        server.level.server >= level
        and server.omit_stages <= wanted.omit_stages
        and (level < Level.REQUEST or not server.omit_managed_fields or wanted.omit_managed_fields)
    )


@given(st.lists(policies, max_size=4))
@settings(max_examples=60, deadline=None)
def test_every_request_is_recorded_as_every_policy_needs(wanted: list[Policy]) -> None:
    server = Evaluator(union(wanted))
    evaluators = [Evaluator(policy) for policy in wanted]
    for request in EVERY_REQUEST[::3]:
        decision = server.decide(request)
        for evaluator in evaluators:
            assert is_enough(decision, evaluator.decide(request)), request


@given(st.lists(policies, max_size=2), selecting_rules, policies)
@settings(max_examples=40, deadline=None)
def test_whatever_labels_namespaces_get_the_union_still_covers(others: list[Policy], rule: Rule, rest: Policy) -> None:
    policy = Policy(rules=(*rest.rules[:1], rule, *rest.rules[1:]), omit_stages=rest.omit_stages)
    server = Evaluator(union([*others, policy]))
    for labels in ({}, {"n": {"tier": "prod"}}, {"n": {}, "o": {"tier": "prod"}}):
        resolved = Evaluator(resolve(policy, labels))
        for request in EVERY_REQUEST[::11]:
            assert is_enough(server.decide(request), resolved.decide(request)), request


@contextlib.contextmanager
def as_if_there_were_thousands(budget: int = 400, largest: int = 400, limit: int = 1000) -> Iterator[None]:
    """A union that treats the few policies of a test as it treats many, with room for few rules or many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FEW", -1)
        patch.setattr(module, "_BUDGETS", (budget,))
        patch.setattr(module, "_LIMIT", limit)
        patch.setattr(folding, "_LARGEST", largest)
        module.forget()
        yield
        module.forget()


@pytest.mark.parametrize(
    ("budget", "largest", "limit"), [(400, 400, 1000), (4, 400, 1000), (4, 3, 1000), (400, 400, 5), (4, 3, 1)]
)
@given(st.lists(st.one_of(policies, confined_policies, confined_policies), max_size=6), selecting_rules)
@settings(max_examples=80, deadline=None)
def test_however_little_room_there_is_nothing_is_lost_and_the_room_is_kept(
    budget: int, largest: int, limit: int, wanted: list[Policy], selecting: Rule
) -> None:
    if wanted:
        rules = wanted[0].rules
        wanted = [*wanted, msgspec.structs.replace(wanted[0], rules=(*rules[:1], selecting, *rules[1:]))]
    with as_if_there_were_thousands(budget, largest, limit):
        result = union(wanted)
    assert len(result.rules) <= max([limit, *(len(policy.rules) for policy in wanted)])
    server = Evaluator(result)
    for labels in ({}, {"n": {"tier": "prod"}}):
        evaluators = [Evaluator(resolve(policy, labels)) for policy in wanted]
        for request in EVERY_REQUEST[::11]:
            decision = server.decide(request)
            for evaluator in evaluators:
                assert is_enough(decision, evaluator.decide(request)), request


def test_a_user_of_one_group_may_be_in_another_as_well() -> None:
    received = frozenset({Stage.REQUEST_RECEIVED})
    wanted = [
        Policy(rules=(Rule(level=Level.METADATA, users=("u",)),)),
        Policy(rules=(Rule(level=Level.METADATA, users=("u",), user_groups=("h",)),), omit_stages=received),
        Policy(rules=(Rule(level=Level.REQUEST, user_groups=("g",)),)),
    ]
    with as_if_there_were_thousands():
        server = Evaluator(union(wanted))
    assert server.decide(Request(user="u", groups=("g", "h"), verb="get")).level is Level.REQUEST


def test_an_exception_for_one_group_is_none_for_all_users_of_another() -> None:
    wanted = [
        Policy(
            rules=(
                Rule(level=Level.METADATA, users=("u",), user_groups=("h",), namespaces=("n",)),
                Rule(level=Level.METADATA, users=("u",)),
            )
        ),
        Policy(
            rules=(
                Rule(level=Level.NONE, user_groups=("g",), namespaces=("n",)),
                Rule(level=Level.REQUEST_RESPONSE, namespaces=("n",)),
            )
        ),
    ]
    with as_if_there_were_thousands():
        result = union(wanted)
    for policy in wanted:
        assert covers(result, policy) == Coverage(covered=True)


def test_rules_about_objects_that_became_one_say_nothing_of_other_paths() -> None:
    received = frozenset({Stage.REQUEST_RECEIVED})
    wanted = [
        Policy(rules=(Rule(level=Level.METADATA, namespaces=("n",)),), omit_stages=received),
        Policy(rules=(Rule(level=Level.METADATA, resources=(GroupResources("", ("pods",)),)),), omit_stages=received),
        Policy(rules=(Rule(level=Level.METADATA, non_resource_urls=("/a",)),)),
    ]
    with as_if_there_were_thousands(limit=2):
        result = union(wanted)
    assert len(result.rules) <= 2
    for policy in wanted:
        assert covers(result, policy) == Coverage(covered=True)


@pytest.mark.parametrize("many", [False, True])
@given(st.lists(st.one_of(policies, confined_policies), min_size=2, max_size=5), st.randoms())
@settings(max_examples=30, deadline=None)
def test_the_order_of_policies_does_not_show(many: bool, wanted: list[Policy], rng: random.Random) -> None:
    shuffled = [*wanted, wanted[0]]
    rng.shuffle(shuffled)
    with as_if_there_were_thousands(budget=8) if many else contextlib.nullcontext():
        assert union(shuffled) == union(wanted)


def test_the_result_is_the_same_in_every_process() -> None:
    program = (
        "import json, gzip, msgspec\n"
        "from audit_operator.policy import union\n"
        "from audit_operator.policy.load import policy_of\n"
        "lines = list(gzip.open('tests/data/policy-match.jsonl.gz', 'rt'))[:30]\n"
        "policies = [policy_of(json.loads(line)['policy']) for line in lines]\n"
        "confined = [msgspec.structs.replace(policy, rules=tuple(\n"
        "    msgspec.structs.replace(rule, **{('users', 'namespaces')[n % 2]: (f'{n % 5}', f'{n % 7}')})\n"
        "    for rule in policy.rules if not rule.non_resource_urls)) for n, policy in enumerate(policies)]\n"
        "def show():\n"
        "    print(msgspec.json.encode(union.union(policies[:8] + confined), order='deterministic'))\n"
        "show()\n"
        "union._FEW, union._BUDGETS = -1, (60,)\n"
        "show()\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1


@pytest.mark.parametrize("nothing", [[], [Policy(rules=())], [Policy(rules=(Rule(level=Level.NONE),))]])
def test_if_nobody_wants_anything_the_file_still_starts_an_api_server(nothing: list[Policy]) -> None:
    assert union(nothing) == Policy(rules=(Rule(level=Level.NONE),))


def test_an_api_server_is_never_asked_for_minimal() -> None:
    assert union([Policy(rules=(Rule(level=Level.MINIMAL),))]).rules == (Rule(level=Level.METADATA),)


def test_on_recorded_traffic_the_presets_together_cost_no_event_more_than_needed() -> None:
    wanted = [presets.preset(name) for name in presets.NAMES if name != "AllBodies"]
    assert excess(wanted) == 0


def test_on_recorded_traffic_a_hundred_random_policies_cost_at_most_one_event_in_a_hundred_more() -> None:
    rng = random.Random(1)
    documents = server_decisions()
    for _ in range(6):
        wanted = [policy_of(record["policy"]) for record in rng.sample(documents, 6)]
        assert excess(wanted) <= 0.01 * len(EVENTS)


EVENTS = [(event.stage, request_of(event)) for event in recorded_events()]


def excess(wanted: list[Policy]) -> int:
    """Recorded events that the union keeps though no policy does, or keeps at a higher level than any needs."""
    server = Evaluator(union(wanted))
    evaluators = [Evaluator(policy) for policy in wanted]

    def level(decision: Decision, stage: str) -> Level:
        return Level.NONE if Stage(stage) in decision.omit_stages else decision.level.server

    too_much = 0
    for stage, request in EVENTS:
        needed = max(evaluator.decide(request).level.server for evaluator in evaluators)
        kept = any(level(evaluator.decide(request), stage) for evaluator in evaluators)
        recorded = level(server.decide(request), stage)
        assert recorded >= (needed if kept else Level.NONE)
        too_much += recorded > (needed if kept else Level.NONE)
    return too_much


def tenant(namespace: str) -> Policy:
    return Policy(
        rules=(
            Rule(level=Level.NONE, verbs=("watch",), namespaces=(namespace,)),
            Rule(level=Level.REQUEST, namespaces=(namespace,), resources=(GroupResources("apps"),)),
            Rule(level=Level.METADATA, namespaces=(namespace,)),
        )
    )


def test_tenants_of_one_shape_cost_what_one_does() -> None:
    one = union([tenant("team-0")])
    many = union([tenant(f"team-{number}") for number in range(300)])
    assert len(many.rules) == len(one.rules)
    assert set(many.rules[-1].namespaces) == {f"team-{number}" for number in range(300)}


def application(number: int) -> Policy:
    """Its service account wherever that goes, and whoever comes into its namespace; no two of them are alike."""
    kinds = [
        GroupResources("", (kind,)) for kind in ("pods", "services", "secrets", "configmaps", "endpoints", "events")
    ]
    verbs = ("get", "list", "watch", "create", "update", "patch", "delete")
    rng = random.Random(number)
    account, namespace = (f"system:serviceaccount:app-{number}:controller",), (f"app-{number}",)
    return Policy(
        rules=tuple(
            Rule(
                level=rng.choice(list(Level)),
                users=rng.choice(((), account)) if confined else account,
                namespaces=namespace if confined else (),
                verbs=tuple(rng.sample(verbs, 2)),
                resources=tuple(rng.sample(kinds, 2)),
            )
            for confined in rng.choices((True, False), k=12)
        )
    )


def test_users_and_namespaces_that_cross_everywhere_cost_what_an_api_server_can_walk() -> None:
    wanted = [
        Policy(rules=(Rule(level=Level.METADATA),)),
        *(tenant(f"team-{number}") for number in range(40)),
        *(application(number) for number in range(80)),
    ]
    assert len(union(wanted).rules) <= 1000


def test_what_many_confined_policies_have_generalized_is_not_recorded_of_others() -> None:
    wanted = [Policy(rules=(Rule(level=Level.METADATA),)), *(application(number) for number in range(80))]
    server = Evaluator(union(wanted))
    for request in EVERY_REQUEST:
        assert server.decide(request).level is Level.METADATA


@pytest.mark.parametrize("count", [60, 300])
def test_one_changed_policy_gives_what_a_cold_start_gives(count: int) -> None:
    before = [*(tenant(f"team-{number}") for number in range(count)), *(application(number) for number in range(20))]
    union(before)
    after = [*before[:30], Policy(rules=(Rule(level=Level.REQUEST_RESPONSE, users=("root",)),)), *before[31:]]
    warm = union(after)
    module.forget()
    assert union(after) == warm


@given(policies, policies)
@settings(max_examples=60, deadline=None)
def test_coverage_is_said_rightly_and_not_covered_with_proof(server: Policy, policy: Policy) -> None:
    coverage = covers(server, policy)
    decided, wanted = Evaluator(server), Evaluator(policy)
    if coverage.covered:
        for request in EVERY_REQUEST[::3]:
            assert is_enough(decided.decide(request), wanted.decide(request)), request
    else:
        assert coverage.request is not None
        assert not is_enough(decided.decide(coverage.request), wanted.decide(coverage.request))


@given(st.lists(policies, min_size=1, max_size=4), selecting_rules)
@settings(max_examples=40, deadline=None)
def test_a_union_covers_each_of_its_policies(wanted: list[Policy], selecting: Rule) -> None:
    wanted = [*wanted, Policy(rules=(*wanted[0].rules[:1], selecting, *wanted[0].rules[1:]))]
    server = union(wanted)
    for policy in wanted:
        assert covers(server, policy) == Coverage(covered=True)


def test_what_is_missing_is_said_in_words() -> None:
    policy = Policy(rules=(Rule(level=Level.REQUEST, verbs=("create",), origin="spec.rules[0]"),))
    server = Policy(rules=(Rule(level=Level.METADATA),))
    assert str(covers(server, policy)) == (
        "spec.rules[0] needs level Request for alice create pods in namespace default, API servers record Metadata"
    )


def test_requests_and_stages_are_what_the_tests_here_think() -> None:
    assert len(EVERY_REQUEST) == len({msgspec.json.encode(request) for request in EVERY_REQUEST})
    assert all(isinstance(request, Request) for request in EVERY_REQUEST)
    assert len(STAGES) == 4
