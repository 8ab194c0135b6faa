"""What follows from a set of resources: the same for the same set, and for each resource whatever the others are."""

import random
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from render_cases import CASES, assert_golden, documents, item_of, resources_of, world_of

from audit_operator.policy.evaluate import Evaluator
from audit_operator.policy.load import load_policy
from audit_operator.policy.model import Level, Policy, Request, Rule, Stage
from audit_operator.render.plan import Plan, render
from audit_operator.render.program import decode, policy_of
from audit_operator.render.status import Condition, ResourceStatus
from audit_operator.render.world import Identity, Resources, World

PRIVATE = re.compile(r"^(status/|README\.md)")


def planned(*items: dict[str, Any], world: World | None = None) -> Plan:
    resources = [item_of({"apiVersion": "audit-operator.dev/v1alpha1"} | item) for item in items]
    return render(Resources.of(resources, namespace="audit-system"), world or World())


def policy(
    name: str = "p", namespace: str = "audit-system", sinks: tuple[str, ...] = (), **spec: Any
) -> dict[str, Any]:
    spec = spec or {"preset": "CIS"}
    spec["sinks"] = [{"name": sink} for sink in sinks]
    return {"kind": "AuditPolicy", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def backend(**spec: Any) -> dict[str, Any]:
    return {"kind": "AuditBackend", "metadata": {"name": "default"}, "spec": {"clusterName": "c"} | spec}


SINK = {"kind": "AuditSink", "metadata": {"name": "out", "namespace": "audit-system"}, "spec": {"stdout": {}}}


def status(plan: Plan, kind: str, name: str, namespace: str = "audit-system") -> ResourceStatus:
    identity = Identity(kind, "" if kind == "AuditBackend" else namespace, name)
    return next(each for each in plan.statuses if each.identity == identity)


def condition(plan: Plan, kind: str, name: str, type_: str, namespace: str = "audit-system") -> Condition:
    return next(each for each in status(plan, kind, name, namespace).conditions if each.type == type_)


# --- the same for the same input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_files_are_the_golden_ones(case: str) -> None:
    assert_golden(case, render(resources_of(case), world_of(case)).files())


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_order_of_the_input_changes_not_a_byte(case: str, seed: int) -> None:
    items = [item_of(document) for document in documents(case)]
    shuffled = random.Random(seed).sample(items, len(items))
    world = world_of(case)
    turned = structs.replace(world, namespaces=dict(sorted(world.namespaces.items(), reverse=True)))
    assert render(Resources.of(shuffled), turned).files() == render(resources_of(case), world).files()


def test_another_process_with_another_hash_seed_renders_the_same_bytes() -> None:
    code = (
        "import hashlib, sys; sys.path.insert(0, 'tests/render')\n"
        "from render_cases import CASES, resources_of, world_of\n"
        "from audit_operator.render.plan import render\n"
        "texts = [sorted(render(resources_of(case), world_of(case)).files().items()) for case in CASES]\n"
        "print(hashlib.sha256(repr(texts).encode()).hexdigest())"
    )
    root = str(__file__).rsplit("/", 3)[0]
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, cwd=root, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


# --- what everything has in common -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_every_file_is_what_its_reader_reads(case: str) -> None:
    world, plan = world_of(case), render(resources_of(case), world_of(case))
    for name, text in plan.files().items():
        if name.endswith((".yaml", ".kubeconfig")):
            assert yaml.safe_load(text), name
        assert text.endswith("\n"), name
        assert "\r" not in text, name
    loaded = load_policy(plan.files()["apiserver/policy.yaml"], server=world.server_version)
    assert (loaded.accepted, loaded.problems) == (True, ())
    program = decode(plan.files()["receiver/program.json"])
    assert program == plan.program
    decided = {(each.namespace, each.name): each.policy for each in plan.policies}
    for entry in program.policies:
        assert policy_of(program, entry) == decided[entry.namespace, entry.name]


@pytest.mark.parametrize("case", CASES)
def test_every_resource_has_one_status_and_it_says_all_that_kubernetes_asks(case: str) -> None:
    resources, plan = resources_of(case), render(resources_of(case), world_of(case))
    expected = len(resources.policies) + len(resources.sinks) + len(resources.invalid) + bool(resources.backend)
    assert len(plan.statuses) == len({each.identity for each in plan.statuses}) == expected
    for each in plan.statuses:
        types = [condition.type for condition in each.conditions]
        assert len(types) == len(set(types))
        assert types[-1] == "Ready"
        for found in each.conditions:
            assert re.fullmatch("[A-Z][A-Za-z]*", found.reason)
            assert found.message
        written = each.document()["status"]
        if each.generation:
            assert written["observedGeneration"] == each.generation
            assert all(found["observedGeneration"] == each.generation for found in written["conditions"])
        assert not any("lastTransitionTime" in found for found in written["conditions"])


def test_receivers_never_want_more_than_api_servers_record_unless_the_status_says_so() -> None:
    for case in CASES:
        plan = render(resources_of(case), world_of(case))
        server = Evaluator(plan.server_policy)
        for each in plan.policies:
            if condition(plan, "AuditPolicy", each.name, "Covered", each.namespace).status != "True":
                continue
            wanted = Evaluator(each.policy)
            for request in REQUESTS:
                assert server.decide(request).level >= wanted.decide(request).level.server, (each.name, request)


RBAC = "rbac.authorization.k8s.io"
REQUESTS = [
    Request(user=user, groups=groups, verb=verb, namespace=namespace, api_group=group, resource=resource)
    for user, groups in (("alice", ("system:authenticated",)), ("no", ()), (None, ()))
    for verb in ("get", "create", "delete")
    for namespace in ("", "shop", "blog", "lab")
    for group, resource in (("", "secrets"), ("", "pods"), ("apps", "deployments"), (RBAC, "roles"))
] + [Request(user="alice", verb="get", is_resource=False, path=path) for path in ("/healthz", "/version")]  # fmt: skip


# --- one resource among others ---------------------------------------------------------------------------------------


def test_a_broken_resource_changes_nothing_for_the_others() -> None:
    sound = planned(policy("a", sinks=("out",)), SINK, backend())
    broken_policy = policy("b", rules=[{"level": "metadata"}])
    broken_sink = {"kind": "AuditSink", "metadata": {"name": "x", "namespace": "audit-system"}, "spec": {}}
    mixed = planned(policy("a", sinks=("out",)), SINK, backend(), broken_policy, broken_sink)
    public = {name: text for name, text in sound.files().items() if not PRIVATE.match(name)}
    assert public == {name: text for name, text in mixed.files().items() if not PRIVATE.match(name)}
    assert status(mixed, "AuditPolicy", "a") == status(sound, "AuditPolicy", "a")
    found = status(mixed, "AuditPolicy", "b")
    assert (found.ready.status, found.ready.reason) == ("False", "Invalid")
    assert "spec.rules[0].level" in found.ready.message
    assert "Stalled" in [each.type for each in found.conditions]
    assert status(mixed, "AuditSink", "x").ready.reason == "Invalid"


def test_with_a_broken_backend_nothing_is_made_for_api_servers_and_receivers() -> None:
    plan = planned(policy("a", sinks=("out",)), SINK, backend(webhook={"mode": "sometimes"}))
    assert plan.blocked
    assert plan.objects == ()
    assert {name for name in plan.files() if not name.startswith("status/")} == {"README.md"}
    assert condition(plan, "AuditPolicy", "a", "Compiled").status == "True"
    assert condition(plan, "AuditPolicy", "a", "Covered").status == "Unknown"
    assert status(plan, "AuditBackend", "default").ready.reason == "Invalid"


def test_conflicting_flags_block_and_say_why() -> None:
    plan = planned(backend(log={"path": "/audit.log"}))
    assert "spec.log.path" in status(plan, "AuditBackend", "default").ready.message
    assert "apiserver/flags.txt" not in plan.files()


def test_without_a_backend_defaults_are_used_and_it_is_said() -> None:
    plan = planned(policy())
    assert plan.program.cluster == "kubernetes"
    assert "There is no AuditBackend" in plan.notices[0]
    assert plan.objects


def test_names_that_are_paths_write_no_file() -> None:
    document = policy("../../etc/passwd", rules=[])
    assert not [name for name in planned(document).files() if "passwd" in name]
    assert "../../etc/passwd" in planned(document).files()["README.md"]


# --- where events go -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "webhook", "sinks", "reason"),
    [
        (True, True, ("out",), "SinksResolved"),
        (True, True, (), "NoSinks"),
        (False, True, (), "NoSinks"),
        (True, False, ("out",), "WebhookDisabled"),
        (True, True, ("out", "gone"), "SinkNotFound"),
    ],
)
def test_the_status_says_whether_events_have_somewhere_to_go(
    log: bool, webhook: bool, sinks: tuple[str, ...], reason: str
) -> None:
    plan = planned(policy(sinks=sinks), SINK, backend(log={"enabled": log}, webhook={"enabled": webhook}))
    found = condition(plan, "AuditPolicy", "p", "SinksResolved")
    assert found.reason == reason
    somewhere = reason == "SinksResolved" or (log and reason == "NoSinks")
    assert found.status == ("True" if somewhere else "False")


def test_without_webhook_there_is_no_receiver() -> None:
    plan = planned(policy(), backend(webhook={"enabled": False}))
    assert plan.objects == ()
    assert not [name for name in plan.files() if name.startswith(("manifests", "receiver", "certificates"))]
    assert "apiserver/webhook.kubeconfig" not in plan.files()


def test_a_sink_that_is_missing_keeps_the_policy_from_being_ready_but_not_from_the_others() -> None:
    plan = planned(policy(sinks=("out", "gone")), SINK)
    assert status(plan, "AuditPolicy", "p").ready.status == "False"
    assert plan.program.policies[0].sinks == ("audit-system/out",)


# --- the API servers' policy -----------------------------------------------------------------------------------------


def rules(*levels: str) -> dict[str, Any]:
    verbs = ("delete", "create", "get")
    return {
        "omitStages": ["RequestReceived"],
        "rules": [{"level": level, "verbs": [verb]} for level, verb in zip(levels, verbs, strict=False)],
    }


WIDE = Policy(rules=(Rule(level=Level.REQUEST_RESPONSE),), omit_stages=frozenset({Stage.REQUEST_RECEIVED}))


def test_a_policy_in_force_that_records_enough_stays() -> None:
    plan = planned(policy(**rules("Metadata")), backend(), world=World(server_policy=WIDE))
    assert plan.kept
    assert plan.server_policy == WIDE
    assert any("keep the policy they run" in notice for notice in plan.notices)


def test_a_policy_in_force_is_judged_by_what_labels_could_ask_for() -> None:
    rule = {"level": "Request", "namespaceSelector": {"matchLabels": {"tier": "prod"}}, "verbs": ["delete"]}
    selecting = policy(omitStages=["RequestReceived"], rules=[rule])
    assert planned(selecting, world=World(server_policy=WIDE)).kept
    narrow = Policy(rules=(Rule(level=Level.METADATA),), omit_stages=WIDE.omit_stages)
    assert not planned(selecting, world=World(server_policy=narrow)).kept


def test_it_narrows_when_the_backend_says_so() -> None:
    narrow = backend(serverPolicy={"narrowing": "Immediately"})
    plan = planned(policy(**rules("Metadata")), narrow, world=World(server_policy=WIDE))
    assert not plan.kept
    assert Evaluator(plan.server_policy).decide(Request(user="a", verb="get", resource="pods")).level is Level.NONE


def test_it_widens_at_once_and_drops_what_is_not_needed_with_it() -> None:
    old = planned(policy(**rules("Metadata", "Request"))).server_policy
    plan = planned(policy(**rules("Metadata", "None", "Request")), world=World(server_policy=old))
    assert not plan.kept
    decide = Evaluator(plan.server_policy).decide
    assert decide(Request(user="a", verb="get", resource="pods")).level is Level.REQUEST
    assert decide(Request(user="a", verb="create", resource="pods")).level is Level.NONE


def test_rendering_again_with_the_result_in_force_changes_nothing() -> None:
    for case in CASES:
        world = world_of(case)
        first = render(resources_of(case), world)
        again = render(resources_of(case), structs.replace(world, server_policy=first.server_policy))
        assert again.files() == first.files()
        assert not again.kept


def test_a_fixed_policy_never_changes_and_what_is_above_it_is_not_covered() -> None:
    fixed = backend(serverPolicy={"mode": "Fixed", "fixed": {"rules": [{"level": "Metadata"}]}})
    plan = planned(policy("a", **rules("Metadata")), policy("b", **rules("Request")), fixed)
    assert [rule.level for rule in plan.server_policy.rules] == [Level.METADATA]
    assert condition(plan, "AuditPolicy", "a", "Covered").status == "True"
    found = condition(plan, "AuditPolicy", "b", "Covered")
    assert (found.status, found.reason) == ("False", "NotCovered")
    assert "delete" in found.message  # a request that shows it
    assert status(plan, "AuditPolicy", "b").ready.reason == "NotCovered"


def test_before_1_36_an_unknown_group_is_not_covered_and_the_way_out_is_said() -> None:
    star: dict[str, Any] = {"rules": [{"level": "Metadata", "resources": [{"group": "*", "resources": ["*/status"]}]}]}
    old = condition(planned(policy(**star), world=World(server_version=(1, 35))), "AuditPolicy", "p", "Covered")
    assert (old.status, old.reason) == ("False", "NotCovered")
    assert "name the API groups" in old.message
    assert condition(planned(policy(**star)), "AuditPolicy", "p", "Covered").status == "True"


def test_tenants_never_change_the_api_servers_policy() -> None:
    tenants = backend(tenants={"enabled": True})
    without = planned(policy(), tenants)
    plan = planned(policy(), tenants, policy("t", "team", **rules("RequestResponse")), policy("u", "other"))
    assert plan.files()["apiserver/policy.yaml"] == without.files()["apiserver/policy.yaml"]
    decide = Evaluator(plan.server_policy).decide
    assert decide(Request(user="a", verb="get", namespace="team", resource="widgets")).level is Level.METADATA
    assert condition(plan, "AuditPolicy", "t", "Covered", "team").status == "False"
    assert condition(plan, "AuditPolicy", "u", "Covered", "other").status == "True"


def test_a_label_changes_the_receiver_and_never_the_api_servers() -> None:
    selecting = policy(
        sinks=("out",), rules=[{"level": "Request", "namespaceSelector": {"matchLabels": {"tier": "prod"}}}]
    )
    worlds = [World(namespaces={"a": {"tier": tier}}) for tier in ("prod", "dev")]
    prod, dev = (planned(selecting, SINK, world=world) for world in worlds)
    assert prod.files()["apiserver/policy.yaml"] == dev.files()["apiserver/policy.yaml"]
    assert prod.program != dev.program
    changed = [old["kind"] for old, new in zip(prod.objects, dev.objects, strict=True) if old != new]
    assert changed == ["ConfigMap"]


def test_the_names_of_policies_do_not_reach_the_api_servers() -> None:
    one, two = planned(policy("one")), planned(policy("two"), policy("three"))
    assert one.files()["apiserver/policy.yaml"] == two.files()["apiserver/policy.yaml"]


# --- scripts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_scripts_are_valid_shell(case: str) -> None:
    for name, text in render(resources_of(case), world_of(case)).files().items():
        if name.endswith(".sh"):
            subprocess.run(["sh", "-n"], input=text.encode(), check=True)


def test_a_program_too_large_for_a_config_map_blocks_and_says_so() -> None:
    long_rules = [
        {"level": "Metadata", "users": [f"{'u' * 240}{number}-{n}" for n in range(200)]} for number in range(30)
    ]
    plan = planned(policy(sinks=("out",), rules=long_rules), SINK, backend())
    assert "a ConfigMap takes" in str(plan.blocked[0])
    assert plan.objects == ()
