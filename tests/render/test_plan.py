"""What follows from a set of resources: the same for the same set, and for each resource whatever the others are."""

import base64
import random
import re
import subprocess
import sys
from collections.abc import Callable
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
from audit_operator.render.program import Reference, decode, policy_of
from audit_operator.render.report import decoded_clients
from audit_operator.render.status import Condition, ResourceStatus, true, under_way, with_conditions
from audit_operator.render.tls import CERTIFICATE_KIND
from audit_operator.render.world import (
    Certificates,
    Identity,
    Invalid,
    ReceiverAddress,
    Resources,
    World,
    identity_of,
)
from audit_operator.resources.load import Problem

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
    somewhere = reason in ("SinksResolved", "WebhookDisabled") or (log and reason == "NoSinks")
    assert found.status == ("True" if somewhere else "False")


def test_without_webhook_there_is_no_receiver() -> None:
    plan = planned(policy(), backend(webhook={"enabled": False}))
    assert {item["metadata"]["labels"]["app.kubernetes.io/component"] for item in plan.objects} == {"apiserver"}
    manifests = [name for name in plan.files() if name.startswith(("manifests", "receiver", "certificates"))]
    assert manifests == ["manifests/configmap.audit-apiserver.yaml"]
    assert "apiserver/webhook.kubeconfig" not in plan.files()


def test_a_policy_that_names_sinks_while_the_webhook_is_off_is_in_order_and_a_warning_says_where_events_stay() -> None:
    plan = planned(policy(sinks=("out",)), SINK, backend(webhook={"enabled": False}))
    found = status(plan, "AuditPolicy", "p")
    assert found.ready.status != "False"
    assert "AuditBackend is false: its events are in the API servers' own log files only" in found.rendered[1]
    rendered = condition(plan, "AuditBackend", "default", "Rendered")
    assert (rendered.status, rendered.reason) == ("True", "RenderedWithWarnings")
    assert "no receivers" in rendered.message
    (notice,) = plan.notices
    assert notice.startswith("AuditBackend: spec.webhook.enabled: false lets nothing reach a sink, and 1 AuditPolicy ")
    assert planned(policy(), backend(webhook={"enabled": False})).notices == ()


def test_a_policy_whose_sink_is_missing_is_no_better_while_the_webhook_is_off() -> None:
    plan = planned(policy(sinks=("gone",)), backend(webhook={"enabled": False}))
    assert condition(plan, "AuditPolicy", "p", "SinksResolved").reason == "SinkNotFound"


GIVEN_ADDRESS = {"exposure": {"clusterIP": {"clusterIP": "10.96.0.77"}}}


@pytest.mark.parametrize(
    ("items", "there", "not_there"),
    [
        ((policy(sinks=("out",)), SINK, backend(webhook={"enabled": False})), ["kind create"], ["receiver/", "image"]),
        ((policy(sinks=("out",)), SINK), ["program.json", "--receiver-address"], ["kind create"]),
        ((policy(sinks=("out",)), SINK, backend(receiver=GIVEN_ADDRESS)), ["kind create"], ["--receiver-address"]),
        ((policy(),), ["pass none on"], ["program.json"]),
        ((backend(),), ["no AuditPolicy asks for anything"], ["all that AuditPolicies need"]),
        ((policy(sinks=("out",)), SINK, backend(log={"path": "/audit.log"})), ["Nothing is here"], ["By hand"]),
        ((policy(), backend(clusterName=3)), ["Nothing is here"], ["By hand"]),
    ],
)
def test_the_guide_names_what_is_there_and_nothing_else(
    items: tuple[dict[str, Any], ...], there: list[str], not_there: list[str]
) -> None:
    files = planned(*items).files()
    guide = files["README.md"]
    for name in re.findall(r"(?<![\w/])(?:(?:apiserver|kubeadm|kind|manifests|receiver)/[\w.-]*|\w+\.sh)", guide):
        assert name in files or (name.endswith("/") and any(path.startswith(name) for path in files)), name
    assert [text for text in there if text not in guide] == []
    assert [text for text in not_there if text in guide] == []


def test_the_guide_asks_nobody_to_run_an_image_that_is_not_published() -> None:
    guide = planned(policy(sinks=("out",)), SINK).files()["README.md"]
    assert guide.index("none is published yet") < guide.index("kubectl apply")
    own = planned(policy(sinks=("out",)), SINK, world=World(image="registry.example.com/ao:1")).files()["README.md"]
    assert "published" not in own
    assert "kubectl apply" in own


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


def test_a_policy_in_force_goes_as_soon_as_one_policy_needs_more() -> None:
    """Whichever one it is: that it is enough for all the others does not help."""
    audit_deletes = policy("a", **rules("RequestResponse"))
    audit_creates = policy("b", **rules("None", "RequestResponse"))
    old = planned(audit_deletes, backend()).server_policy
    for items in ((audit_deletes, audit_creates), (audit_creates, audit_deletes)):
        plan = planned(*items, backend(), world=World(server_policy=old))
        assert not plan.kept
        decide = Evaluator(plan.server_policy).decide
        for verb in ("create", "delete"):
            assert decide(Request(user="a", verb=verb, resource="pods")).level is Level.REQUEST_RESPONSE


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


def test_presets_leave_out_the_operators_own_lease_in_its_namespace_wherever_that_is() -> None:
    world = World(root_namespace="security")
    wanted = policy(namespace="security", preset="CIS")
    fixed = backend(serverPolicy={"mode": "Fixed", "fixed": {"preset": "CIS"}})
    renewal = Request(
        user="system:serviceaccount:security:audit-operator",
        groups=("system:serviceaccounts", "system:serviceaccounts:security", "system:authenticated"),
        verb="update",
        namespace="security",
        api_group="coordination.k8s.io",
        resource="leases",
        name="audit-operator",
    )
    for resources in ([wanted], [fixed]):
        decide = Evaluator(planned(*resources, world=world).server_policy).decide
        assert decide(renewal).level is Level.NONE
        assert decide(structs.replace(renewal, user="mallory")).level is Level.METADATA


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


def test_for_tenants_by_name_no_other_namespace_is_recorded() -> None:
    """Selectors cannot be said to API servers; names can, and what nobody asked for need not be recorded."""
    named = backend(tenants={"enabled": True, "namespaces": {"from": "Names", "names": ["team"]}})
    decide = Evaluator(planned(policy(**rules("None")), named).server_policy).decide
    request = Request(user="a", verb="get", resource="pods", namespace="team")
    assert decide(request).level is Level.METADATA
    assert decide(structs.replace(request, namespace="other")).level is Level.NONE
    everywhere = planned(policy(**rules("None")), backend(tenants={"enabled": True})).server_policy
    assert Evaluator(everywhere).decide(structs.replace(request, namespace="other")).level is Level.METADATA


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
    changed = {old["metadata"]["name"] for old, new in zip(prod.objects, dev.objects, strict=True) if old != new}
    assert {name[: len("audit-receiver-program")] for name in changed} == {"audit-receiver-program"}


def test_the_names_of_policies_do_not_reach_the_api_servers() -> None:
    one, two = planned(policy("one")), planned(policy("two"), policy("three"))
    assert one.files()["apiserver/policy.yaml"] == two.files()["apiserver/policy.yaml"]


# --- scripts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_scripts_are_valid_shell(case: str) -> None:
    for name, text in render(resources_of(case), world_of(case)).files().items():
        if name.endswith(".sh"):
            subprocess.run(["sh", "-n"], input=text.encode(), check=True)


def test_a_policy_too_large_for_the_program_is_refused_alone() -> None:
    noise = random.Random(7)
    large = policy("large", sinks=("out",), rules=long_rules(lambda: base64.b64encode(noise.randbytes(180)).decode()))
    others = (policy("one", sinks=("out",)), policy("zero", sinks=("out",), preset="Metadata"), SINK, FIXED)
    plan = planned(large, *others)
    assert plan.blocked == ()
    assert plan.objects == planned(*others).objects
    assert condition(plan, "AuditPolicy", "large", "Ready").reason == "TooLarge"
    assert condition(plan, "AuditPolicy", "one", "SinksResolved").status == "True"


def long_rules(user: Callable[[], str]) -> list[dict[str, Any]]:
    """Rules of 2 MB."""
    return [
        {"level": "Metadata", "users": [f"{user()[:230]}{number}-{each}" for each in range(200)]}
        for number in range(40)
    ]


FIXED = backend(serverPolicy={"mode": "Fixed", "fixed": {"preset": "Metadata"}})


def test_a_program_that_fits_a_config_map_only_as_gzip_is_there_as_gzip_under_the_same_key() -> None:
    plan = planned(policy(sinks=("out",), rules=long_rules(lambda: "u" * 240)), SINK, FIXED)
    (stored,) = (item for item in plan.objects if item["metadata"]["name"] == "audit-receiver-program")
    assert stored["data"].keys() == {"clients.json"}
    data = base64.b64decode(stored["binaryData"]["program.json"])
    assert len(data) < 100_000
    assert decode(data) == plan.program


def test_a_policy_too_large_for_the_policy_file_is_refused_alone() -> None:
    large = policy("large", sinks=("out",), rules=long_rules(lambda: "u" * 240))
    others = (policy("one", sinks=("out",)), SINK, backend())
    plan = planned(large, *others)
    assert plan.blocked == ()
    assert plan.server_files == planned(*others).server_files
    found = condition(plan, "AuditPolicy", "large", "Compiled")
    assert (found.status, found.reason) == ("False", "TooLarge")
    assert "spec.serverPolicy.fixed" in found.message


def test_a_fixed_policy_too_large_for_a_config_map_blocks_and_says_so() -> None:
    rules = long_rules(lambda: "u" * 240)
    plan = planned(SINK, backend(serverPolicy={"mode": "Fixed", "fixed": {"rules": rules}}))
    assert str(plan.blocked[0]).startswith("apiserver/policy.yaml: and what belongs to it have ")
    assert plan.server_files == {}


# --- a live cluster --------------------------------------------------------------------------------------------------


CERTIFICATES = Certificates(
    ca="CA", server_certificate="SERVER", server_key="KEY-S", client_certificate="CLIENT", client_key="KEY-C"
)
SERVED = frozenset(
    {
        ("v1", "ConfigMap"),
        ("v1", "Secret"),
        ("v1", "Service"),
        ("v1", "ServiceAccount"),
        ("apps/v1", "StatefulSet"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
        ("policy/v1", "PodDisruptionBudget"),
    }
)
LIVE = World(served=SERVED, certificates=CERTIFICATES, receiver_address=ReceiverAddress(cluster_ip="10.0.0.9"))
SPLUNK = {
    "kind": "AuditSink",
    "metadata": {"name": "splunk", "namespace": "audit-system"},
    "spec": {"splunk": {"url": "https://splunk", "token": {"name": "siem", "key": "token"}}},
}


def with_references(**keys: set[str]) -> World:
    found = {Reference("Secret", "audit-system", name): dict.fromkeys(each, 32) for name, each in keys.items()}
    return structs.replace(LIVE, references=found)


@pytest.mark.parametrize(
    ("world", "status_", "reason", "words"),
    [
        (World(), "True", "Configured", "splunk, for 1 AuditPolicy"),
        (with_references(siem={"token", "other"}), "True", "Configured", "splunk, for 1 AuditPolicy"),
        (with_references(siem={"other"}), "False", "KeyNotFound", "Secret audit-system/siem has no key token: add it"),
        (with_references(), "False", "SecretNotFound", "Secret audit-system/siem does not exist: create it"),
    ],
)
def test_a_sink_without_its_credentials_says_which_and_keeps_its_place_in_the_program(
    world: World, status_: str, reason: str, words: str
) -> None:
    plan = planned(policy(sinks=("splunk", "out")), SPLUNK, SINK, world=world)
    found = condition(plan, "AuditSink", "splunk", "Configured")
    assert (found.status, found.reason) == (status_, reason)
    assert found.message.startswith(words)
    assert "other" not in found.message  # which keys a Secret has is not for everybody who reads a status
    assert [sink.name for sink in plan.program.sinks] == ["out", "splunk"]
    resolved = condition(plan, "AuditPolicy", "p", "SinksResolved")
    assert resolved.status == "True"
    assert (words in resolved.message) == (status_ == "False")
    assert condition(plan, "AuditSink", "out", "Configured").status == "True"


def test_a_tenants_policy_is_not_told_which_secret_a_sink_of_the_platform_lacks() -> None:
    allowing = SPLUNK | {"spec": SPLUNK["spec"] | {"allowedNamespaces": {"from": "All"}}}
    theirs = policy("p", "team-a", preset="CIS")
    theirs["spec"]["sinks"] = [{"name": "splunk", "namespace": "audit-system"}]
    plan = planned(
        theirs, policy(sinks=("splunk",)), allowing, backend(tenants={"enabled": True}), world=with_references()
    )
    found = condition(plan, "AuditPolicy", "p", "SinksResolved", "team-a")
    assert "SecretNotFound" in found.message
    assert "siem" not in found.message
    assert "Secret audit-system/siem" in condition(plan, "AuditPolicy", "p", "SinksResolved").message


def kept(good: dict[str, Any], *others: dict[str, Any], world: World | None = None) -> Plan:
    """With ``good`` in force, whose newest version is broken."""
    last = item_of({"apiVersion": "audit-operator.dev/v1alpha1"} | good)
    assert not isinstance(last, Invalid)
    broken = Invalid(identity=identity_of(last), problems=(Problem("spec", "is odd"),), generation=5, last_good=last)
    rest = [item_of({"apiVersion": "audit-operator.dev/v1alpha1"} | other) for other in others]
    return render(Resources.of([broken, *rest], namespace="audit-system"), world or World())


@pytest.mark.parametrize("number", range(3))
def test_the_last_good_version_stays_in_force_while_the_newest_is_not_valid(number: int) -> None:
    items = [policy(sinks=("out",)), SINK, backend(log={"enabled": False})]
    items[number] = items[number] | {"metadata": items[number]["metadata"] | {"generation": 4}}
    sound = planned(*items)
    good = items.pop(number)
    plan = kept(good, *items)
    assert (plan.program, plan.objects, plan.server_files) == (sound.program, sound.objects, sound.server_files)
    assert plan.blocked == ()
    found = status(plan, good["kind"], good["metadata"]["name"])
    assert (found.generation, found.ready.status, found.ready.reason) == (5, "False", "Invalid")
    assert found.ready.message == "spec: is odd\nuntil that is put right generation 4 stays in force"
    assert found.fields == status(sound, good["kind"], good["metadata"]["name"]).fields
    others = {each.identity: each for each in sound.statuses if each.identity != found.identity}
    assert {each.identity: each for each in plan.statuses if each.identity != found.identity} == others


def test_a_last_good_version_that_does_not_count_is_not_said_to_be_in_force() -> None:
    plan = kept(policy("t", "team"))
    message = status(plan, "AuditPolicy", "t", "team").ready.message
    assert "stays in force" not in message
    assert "the last valid version is not ready either: resources of namespace team do not count" in message


def test_without_a_cluster_to_own_them_objects_have_no_owner_and_with_it_all_have() -> None:
    owner = backend()
    assert not any("ownerReferences" in item["metadata"] for item in planned(owner, world=LIVE).objects)
    owner["metadata"]["uid"] = "u-1"
    for item in planned(owner, world=LIVE).objects:
        (reference,) = item["metadata"]["ownerReferences"]
        assert reference == {
            "apiVersion": "audit-operator.dev/v1alpha1",
            "kind": "AuditBackend",
            "name": "default",
            "uid": "u-1",
            "controller": True,
        }


def test_an_operator_whose_certificate_has_no_uri_yet_keeps_working_and_it_is_said() -> None:
    source = {"certManager": {"issuerRef": {"name": "ca"}}}
    served = SERVED | {("cert-manager.io/v1", "Certificate")}
    for without, world in (
        (by, structs.replace(LIVE, served=served, operator_by_common_name=by)) for by in (False, True)
    ):
        plan = planned(policy(), backend(certificates=source), world=world)
        clients = decoded_clients(plan.clients_text.encode())
        assert clients.operators == ("spiffe://cluster.local/ns/audit-system/sa/audit-operator",)
        assert clients.operator_by_common_name is without
        found = named(plan)
        assert found["ConfigMap", "audit-receiver-program"]["data"]["clients.json"] == plan.clients_text
        assert found["Certificate", "audit-operator-client"]["spec"]["uris"] == list(clients.operators)
        said = [each for each in plan.notices if "anybody with the common name audit-operator" in each]
        assert bool(said) is without


def test_api_servers_are_known_by_the_names_that_the_backend_lists() -> None:
    names = ["cp-1.example.com", "spiffe://prod/kube-apiserver"]
    own = planned(policy(), backend(), world=LIVE)
    others = planned(policy(), backend(certificates={"selfSigned": {}, "clientNames": names}), world=LIVE)
    assert decoded_clients(own.clients_text.encode()).api_servers == ("kube-apiserver",)
    assert decoded_clients(others.clients_text.encode()).api_servers == tuple(names)
    # It is no part of the program, which older receivers would refuse, and which whoever may push could change.
    assert own.program_text == others.program_text


def named(plan: Plan) -> dict[tuple[str, str], dict[str, Any]]:
    return {(item["kind"], item["metadata"]["name"]): item for item in plan.objects}


def test_private_keys_are_only_in_the_secrets_they_are_given_for() -> None:
    found = named(planned(policy(), backend(), world=LIVE))
    keys = {"audit-receiver-tls": "KEY-S", "audit-apiserver-client": "KEY-C"}
    for name, key in keys.items():
        secret = found.pop(("Secret", name))
        assert base64.b64decode(secret["data"]["tls.key"]).decode() == key
        assert base64.b64decode(secret["data"]["ca.crt"]).decode() == "CA"
    for secret_ in (*keys.values(), *(base64.b64encode(key.encode()).decode() for key in keys.values())):
        assert secret_ not in str(found)
    assert "KEY" not in repr(CERTIFICATES)
    assert not [name for kind, name in named(planned(policy(), backend())) if kind == "Secret"]


def test_cert_manager_fills_the_secrets_with_the_names_that_api_servers_look_for() -> None:
    asked = backend(certificates={"certManager": {"issuerRef": {"name": "ca"}}})
    world = structs.replace(LIVE, served=SERVED | {CERTIFICATE_KIND})
    plan = planned(policy(), asked, world=world)
    found = named(plan)
    assert not [name for kind, name in found if kind == "Secret"]
    server = found["Certificate", "audit-receiver-tls"]["spec"]
    assert {*server["dnsNames"], *server["ipAddresses"]} == set(plan.exposed.names)
    assert server["ipAddresses"] == ["10.0.0.9"]
    assert server["usages"] == ["digital signature", "server auth"]
    client = found["Certificate", "audit-apiserver-client"]["spec"]
    assert (client["usages"], client["commonName"]) == (["digital signature", "client auth"], "kube-apiserver")
    assert "certificates.sh" not in plan.files()


def test_without_cert_manager_in_the_cluster_nothing_is_installed_and_the_way_out_is_said() -> None:
    asked = backend(certificates={"certManager": {"issuerRef": {"name": "ca"}}})
    plan = planned(policy(), asked, world=LIVE)
    assert plan.objects == ()
    message = status(plan, "AuditBackend", "default").ready.message
    assert message.startswith("spec.certificates.certManager: asks for Certificate of cert-manager.io/v1, which this ")
    assert message.endswith("install cert-manager, or leave certificates out for the operator's own CA")
    off = planned(policy(), asked | {"spec": asked["spec"] | {"webhook": {"enabled": False}}}, world=LIVE)
    assert off.blocked == ()  # no receiver, no certificates


def test_kinds_that_the_cluster_does_not_serve_are_left_out_and_said() -> None:
    asked = backend(receiver={"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}})
    plan = planned(policy(), asked, world=structs.replace(LIVE, served=SERVED - {("policy/v1", "PodDisruptionBudget")}))
    assert not {"PrometheusRule", "ServiceMonitor", "PodDisruptionBudget"} & {kind for kind, _ in named(plan)}
    rendered = condition(plan, "AuditBackend", "default", "Rendered")
    assert (rendered.status, rendered.reason) == ("True", "RenderedWithWarnings")
    assert "ServiceMonitor of monitoring.coreos.com/v1, which this cluster does not serve" in rendered.message
    assert "spec.receiver.prometheusRule.enabled: true asks for PrometheusRule of monitoring" in rendered.message
    assert "PodDisruptionBudget of policy/v1" in rendered.message
    assert {kind for kind, _ in named(planned(policy(), asked))} >= {"PrometheusRule", "ServiceMonitor"}


def test_until_the_address_is_known_api_servers_get_nothing_and_nothing_is_pruned() -> None:
    waiting = planned(policy(), backend(), world=structs.replace(LIVE, receiver_address=ReceiverAddress()))
    assert ("Service", "audit-receiver") in named(waiting)
    assert not [item for item in waiting.objects if item["metadata"]["name"].startswith("audit-apiserver-")
                and item["kind"] == "ConfigMap"]  # fmt: skip
    assert not waiting.complete
    assert "has not given any yet" in condition(waiting, "AuditBackend", "default", "Rendered").message
    known = planned(policy(), backend(), world=LIVE)
    assert known.complete
    assert named(known)["Service", "audit-receiver"]["spec"]["clusterIP"] == "10.0.0.9"


# --- revisions -------------------------------------------------------------------------------------------------------


def revisions(plan: Plan) -> dict[str, dict[str, Any]]:
    """What of -> its immutable ConfigMap."""
    label = "audit-operator.dev/revision-of"
    found = [item for item in plan.objects if label in item["metadata"]["labels"]]
    assert all(item["immutable"] is True and item["kind"] == "ConfigMap" for item in found)
    return {item["metadata"]["labels"][label]: item for item in found}


def test_revisions_hold_what_the_status_and_the_newest_objects_name() -> None:
    plan = planned(policy(sinks=("out",)), SINK, backend(), world=LIVE)
    found, all_ = revisions(plan), named(plan)
    fields = status(plan, "AuditBackend", "default").fields
    for of, newest, field in (
        ("apiserver", "audit-apiserver", "apiServerRevision"),
        ("receiver-program", "audit-receiver-program", "receiverRevision"),
    ):
        name = found[of]["metadata"]["name"]
        revision = all_["ConfigMap", newest]["metadata"]["annotations"]["audit-operator.dev/revision"]
        assert name == fields[field] == f"{newest}-{revision}"
    content = found["apiserver"]["data"]
    assert load_policy(content["policy.yaml"]).policy == load_policy(plan.server_files["apiserver/policy.yaml"]).policy
    assert content["flags.txt"].splitlines() == [str(flag) for flag in plan.flags.flags]
    assert yaml.safe_load(content["webhook.kubeconfig"])["current-context"]
    program = found["receiver-program"]["binaryData"]["program.json"]
    assert decode(base64.b64decode(program)) == plan.program


def test_a_revision_of_api_servers_changes_with_what_restarts_them_and_with_nothing_else() -> None:
    def name(*items: dict[str, Any], world: World = LIVE) -> str:
        found: str = revisions(planned(*items, world=world))["apiserver"]["metadata"]["name"]
        return found

    first = name(policy("a"), backend())
    assert name(policy("a"), policy("b"), SINK, backend(receiver={"replicas": 5})) == first
    assert name(policy("a", rules=[{"level": "Request"}]), backend()) != first
    assert name(policy("a"), backend(log={"maxAge": 1})) != first
    moved = structs.replace(LIVE, receiver_address=ReceiverAddress(cluster_ip="10.0.0.10"))
    assert name(policy("a"), backend(), world=moved) != first
    assert "#" not in revisions(planned(policy("a"), backend(), world=LIVE))["apiserver"]["data"]["policy.yaml"]


# --- the last word ---------------------------------------------------------------------------------------------------


def types(found: ResourceStatus) -> list[str]:
    return [each.type for each in found.conditions]


def test_what_nobody_observes_keeps_nobody_waiting_for_ready() -> None:
    found = status(planned(policy(sinks=("out",)), SINK), "AuditPolicy", "p")
    assert (found.ready.status, found.ready.reason) == ("True", "Ready")
    assert found.ready.message == "all that is observed is as it should be; not observed: Installed, Delivering"
    assert types(found) == ["Compiled", "Covered", "SinksResolved", "Installed", "Delivering", "Ready"]


def test_observed_conditions_take_their_place_and_the_last_word_follows() -> None:
    rendered = status(planned(policy(), backend()), "AuditBackend", "default")
    waiting = with_conditions(rendered, under_way("ReceiverReady", "PodsStarting", "1 of 2 pods is ready"))
    assert types(waiting) == ["Rendered", "ReceiverReady", "Installed", "EventsFlowing", "Reconciling", "Ready"]
    assert (waiting.ready.status, waiting.ready.reason) == ("False", "PodsStarting")
    assert all(
        set(each) == {"type", "status", "reason", "message"} for each in waiting.document()["status"]["conditions"]
    )
    refused = Condition("Applied", "False", "Forbidden", "may not patch services")
    stuck = with_conditions(waiting, refused)
    assert types(stuck) == ["Rendered", "ReceiverReady", "Applied", "Installed", "EventsFlowing", "Stalled", "Ready"]
    assert stuck.ready.reason == "Forbidden"
    good = with_conditions(stuck, true("Applied", "is"), true("ReceiverReady", "2 of 2"))
    assert good.ready.status == "True"
    assert types(good) == ["Rendered", "Applied", "ReceiverReady", "Installed", "EventsFlowing", "Ready"]
    assert with_conditions(good) == good


CONDITIONS = st.builds(
    Condition,
    st.sampled_from(["A", "B", "C", "D"]),
    st.sampled_from(["True", "False", "Unknown"]),
    st.sampled_from(["NotObserved", "Reason"]),
    st.just("why"),
    st.booleans(),
)


@given(found=st.lists(CONDITIONS, max_size=5, unique_by=lambda each: each.type))
def test_people_and_programs_wait_for_what_is_under_way_and_for_nothing_else(found: list[Condition]) -> None:
    empty = ResourceStatus(identity=Identity("AuditSink", "a", "b"), generation=1, conditions=())
    status_ = with_conditions(empty, *found)
    observed = [each for each in found if each.reason != "NotObserved"]
    bad = [each for each in observed if each.status != "True"]
    stalled = any(each.status == "False" and not each.under_way for each in bad)
    assert (status_.ready.status == "True") == (not bad)
    assert ("Stalled" in types(status_)) == stalled
    assert ("Reconciling" in types(status_)) == (not stalled and any(each.under_way for each in bad))
    assert types(status_)[-1] == "Ready"
    assert with_conditions(status_, *found) == status_


def test_chains_of_digests_that_end_with_each_pod_are_warned_of() -> None:
    spec = {"file": {"integrity": {"signingKey": {"name": "k", "key": "k"}}}}
    sink = {"kind": "AuditSink", "metadata": {"name": "archive", "namespace": "audit-system"}, "spec": spec}
    for storage, warned in (({"ephemeral": {}}, True), ({"persistentVolumeClaim": {}}, False)):
        plan = planned(sink, backend(receiver={"storage": storage, "exposure": {"external": {"host": "a.example"}}}))
        rendered = next(each for each in status(plan, "AuditBackend", "default").conditions if each.type == "Rendered")
        assert ("audit-system/archive" in rendered.message) is warned
        assert rendered.status == "True"
