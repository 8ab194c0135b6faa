"""What docs/presets.md promises of each preset."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_operator.cli.replay import Replay, replay_file
from audit_operator.controller.permissions import LEASE
from audit_operator.policy.evaluate import Evaluator
from audit_operator.policy.explain import Source
from audit_operator.policy.lint import Severity, lint_text
from audit_operator.policy.model import Level, Policy, Request, Rule, Stage
from audit_operator.policy.presets import NAMES, preset, text
from audit_operator.resources.auditpolicy import Preset

TESTS = Path(__file__).parents[1]
EVALUATORS = {name: Evaluator(preset(name)) for name in NAMES}
WRITES = ("create", "update", "patch", "delete", "deletecollection")
READS = ("get", "list", "watch")


def level(name: str, request: Request) -> Level:
    return EVALUATORS[name].decide(request).level


# --- the table of requests -------------------------------------------------------------------------------------------


def _request(wire: dict[str, Any]) -> Request:
    return Request(
        user=wire.get("user"),
        groups=tuple(wire.get("groups", ())),
        verb=wire["verb"],
        is_resource="path" not in wire,
        namespace=wire.get("namespace", ""),
        api_group=wire.get("apiGroup", ""),
        resource=wire.get("resource", ""),
        subresource=wire.get("subresource", ""),
        name=wire.get("name", ""),
        path=wire.get("path", ""),
    )


TABLE = yaml.safe_load((TESTS / "data/presets/requests.yaml").read_text(encoding="utf-8"))
ROWS = [pytest.param(_request(row["request"]), row["levels"], id=row["name"]) for row in TABLE["rows"]]


@pytest.mark.parametrize(("request_", "levels"), ROWS)
def test_each_preset_records_a_request_at_the_level_the_table_says(request_: Request, levels: list[str]) -> None:
    columns = TABLE["columns"]
    assert {name: str(level(name, request_)) for name in columns} == dict(zip(columns, levels, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_decides_a_row_of_the_table(name: str) -> None:
    deciding = {EVALUATORS[name].decide(_request(row["request"])).rule for row in TABLE["rows"]}
    assert deciding == set(range(len(preset(name).rules)))


# --- as policies -----------------------------------------------------------------------------------------------------


def test_presets_are_those_that_a_resource_may_name() -> None:
    assert get_args(Preset) == NAMES
    with pytest.raises(KeyError, match="no preset 'cis'; there are Metadata, CIS"):
        preset("cis")


@pytest.mark.parametrize("name", NAMES)
def test_origins_lead_to_the_rule_in_the_file(name: str) -> None:
    for index, (rule, wire) in enumerate(zip(preset(name).rules, yaml.safe_load(text(name))["rules"], strict=True)):
        assert rule.origin == f"preset {name} rules[{index}]"
        assert str(rule.level) == wire["level"]


@pytest.mark.parametrize("name", NAMES)
def test_rules_mean_the_same_after_another_policys_rules(name: str) -> None:
    request = Request(
        user="alice", groups=("system:authenticated",), verb="patch", api_group="apps", resource="deployments"
    )
    own = Rule(level=Level.NONE, users=("somebody else",))
    appended = Evaluator(Policy(rules=(own, *preset(name).rules))).decide(request)
    alone = EVALUATORS[name].decide(request)
    assert appended.level == alone.level
    assert appended.omit_stages == alone.omit_stages == {Stage.REQUEST_RECEIVED}
    assert appended.omit_managed_fields is alone.omit_managed_fields is True


@pytest.mark.parametrize("name", NAMES)
def test_the_file_says_what_it_is_for_what_it_leaves_out_and_what_it_costs(name: str) -> None:
    header = text(name).split("apiVersion:")[0]
    assert header.startswith(f"# Preset {name}: ")
    for promise in ("# For: ", "# Not recorded: ", "# Cost: "):
        assert promise in header


@pytest.mark.parametrize("server", [(1, 28), (1, 36)])
@pytest.mark.parametrize("name", NAMES)
def test_an_api_server_would_load_the_file_and_lint_finds_nothing_but_what_minimal_leaves_out(
    name: str, server: tuple[int, int]
) -> None:
    # The one thing that no API server would take: level Minimal is ours.
    loaded, findings = lint_text(text(name).replace("level: Minimal", "level: Metadata"), server=server)
    assert loaded.accepted
    assert not loaded.problems
    told = {(finding.path, finding.name) for finding in findings if finding.severity is not Severity.INFO}
    left_out = {("rules[9]", "cis-not-recorded"), ("rules[11]", "cis-not-recorded")}  # TokenReviews, ConfigMaps
    assert told == (left_out if name == "Minimal" else set())


@pytest.mark.parametrize("name", NAMES)
def test_no_rule_needs_the_any_group_of_1_36(name: str) -> None:
    assert all(entry.group != "*" for rule in preset(name).rules for entry in rule.resources)


@pytest.mark.parametrize("name", NAMES)
def test_only_minimal_uses_level_minimal(name: str) -> None:
    assert any(rule.level is Level.MINIMAL for rule in preset(name).rules) == (name == "Minimal")


def _noise(name: str) -> list[tuple[Any, ...]]:
    return [
        (rule.users, rule.user_groups, rule.verbs, rule.namespaces, rule.resources, rule.non_resource_urls)
        for rule in preset(name).rules
        if rule.level is Level.NONE
    ]


def test_cis_and_forensic_drop_the_same_noise() -> None:
    assert _noise("CIS") == _noise("Forensic")


@pytest.mark.parametrize("name", ["CIS", "Forensic", "Minimal"])
def test_the_lease_that_is_noise_is_the_operators_own_where_the_operator_is(name: str) -> None:
    objects = yaml.safe_load_all((TESTS / "chart/cases/defaults/objects.yaml").read_text(encoding="utf-8"))
    names = {each["kind"]: each["metadata"]["name"] for each in objects if each["kind"] in ("ServiceAccount", "Lease")}
    assert names["Lease"] == LEASE
    evaluators = {where: Evaluator(preset(name, where)) for where in ("audit-system", "elsewhere")}
    for where, evaluator in evaluators.items():
        user = f"system:serviceaccount:{where}:{names['ServiceAccount']}"
        for verb in ("get", "update"):
            for namespace in evaluators:
                renewal = Request(
                    user=user,
                    groups=groups_of(user),
                    verb=verb,
                    namespace=namespace,
                    api_group="coordination.k8s.io",
                    resource="leases",
                    name=names["Lease"],
                )
                noise = namespace == where or (name == "Minimal" and verb == "get")
                assert (evaluator.decide(renewal).level is Level.NONE) == noise
    assert text(name).count(":audit-operator") == 1  # what is moved is all there is to move


def test_metadata_write_bodies_and_all_bodies_drop_nothing() -> None:
    assert not any(_noise(name) for name in ("Metadata", "WriteBodies", "AllBodies"))


# --- on any request --------------------------------------------------------------------------------------------------

COMPONENTS = (
    "system:apiserver",
    "system:kube-scheduler",
    "system:kube-controller-manager",
    "system:kube-proxy",
    "system:node:worker-1",
    "system:serviceaccount:kube-system:kube-proxy",
    "system:serviceaccount:kube-system:coredns",
    "system:serviceaccount:kube-system:endpointslice-controller",
    "system:serviceaccount:audit-system:audit-operator",
)
LEADERS = {
    ("system:kube-scheduler", "kube-system"): "kube-scheduler",
    ("system:kube-controller-manager", "kube-system"): "kube-scheduler",
    ("system:serviceaccount:audit-system:audit-operator", "audit-system"): "audit-operator",
}
RENEWERS = (("system:node:worker-1", "kube-node-lease"), ("system:apiserver", "kube-system"), *LEADERS)
PEOPLE = (
    "alice",
    "kubernetes-admin",
    "system:serviceaccount:team-a:deployer",
    "system:serviceaccount:audit-system:default",
    "system:serviceaccount:team-a:audit-operator",
)
CREDENTIALS = (
    ("", "secrets", ""),
    ("", "configmaps", ""),
    ("", "serviceaccounts", "token"),
    ("authentication.k8s.io", "tokenreviews", ""),
    ("certificates.k8s.io", "certificatesigningrequests", ""),
    ("certificates.k8s.io", "certificatesigningrequests", "approval"),
    ("certificates.k8s.io", "certificatesigningrequests", "status"),
)
NAMESPACES = ("", "team-a", "kube-system", "kube-node-lease", "audit-system")
OBJECTS = ("", "web", "kube-scheduler", "kube-root-ca.crt", "audit-operator")
WAYS_IN = (
    ("", "pods", "exec"),
    ("", "pods", "attach"),
    ("", "pods", "portforward"),
    ("", "pods", "proxy"),
    ("", "services", "proxy"),
    ("", "nodes", "proxy"),
)


def named(item: str) -> tuple[str, str]:
    """A resource and subresource that this item matches: ``pods`` for ``pods/*``, any for ``*/status``."""
    resource, _, subresource = item.partition("/")
    return ("anything" if resource == "*" else resource, "" if subresource == "*" else subresource)


KNOWN = sorted(
    {
        (entry.group, *named(item))
        for name in NAMES
        for rule in preset(name).rules
        for entry in rule.resources
        for item in entry.resources or ("anything",)
    }
    | {("example.com", "widgets", ""), ("example.com", "widgets", "status")}
    | {("", "pods", "log"), ("", "pods", "status"), ("", "nodes", "status")}
)


def groups_of(user: str) -> tuple[str, ...]:
    """The groups the API server gives this user."""
    if user == "system:anonymous":
        return ("system:unauthenticated",)
    if user.startswith("system:serviceaccount:"):
        namespace = user.split(":")[2]
        return ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
    if user.startswith("system:node:"):
        return ("system:nodes", "system:authenticated")
    masters = ("system:masters",) if user in ("system:apiserver", "kubernetes-admin") else ()
    return (*masters, "system:authenticated")


@st.composite
def requests(
    draw: st.DrawFn,
    users: tuple[str | None, ...] = (*COMPONENTS, *PEOPLE, "system:anonymous", None),
    verbs: tuple[str, ...] = (*READS, *WRITES, "proxy", "", "made-up"),
    resources: tuple[tuple[str, str, str], ...] = tuple(KNOWN),
) -> Request:
    user = draw(st.sampled_from(users))
    group, resource, subresource = draw(st.sampled_from(resources))
    return Request(
        user=user,
        groups=groups_of(user) if user is not None else (),
        verb=draw(st.sampled_from(verbs)),
        namespace=draw(st.sampled_from(NAMESPACES)),
        api_group=group,
        resource=resource,
        subresource=subresource,
        name=draw(st.sampled_from(OBJECTS)),
    )


PATHS = (
    "/",
    "/healthz",
    "/livez/ping",
    "/readyz",
    "/readyzzz",
    "/version",
    "/api",
    "/apis/apps",
    "/openapi/v3",
    "/logs/x",
)


@st.composite
def path_requests(
    draw: st.DrawFn, users: tuple[str | None, ...] = (*COMPONENTS, *PEOPLE, "system:anonymous", None)
) -> Request:
    user = draw(st.sampled_from(users))
    return Request(
        user=user,
        groups=groups_of(user) if user is not None else (),
        verb=draw(st.sampled_from(("get", "head", "post", "put", "delete", "options"))),
        is_resource=False,
        path=draw(st.sampled_from(PATHS)),
    )


@settings(max_examples=500)
@given(requests() | path_requests())
def test_more_is_recorded_from_minimal_over_metadata_and_write_bodies_to_all_bodies(request_: Request) -> None:
    levels = [level(name, request_) for name in ("Minimal", "Metadata", "WriteBodies", "AllBodies")]
    assert levels == sorted(levels)


@settings(max_examples=300)
@given(requests(resources=CREDENTIALS))
def test_credentials_are_never_recorded_with_bodies(request_: Request) -> None:
    assert all(level(name, request_) <= Level.METADATA for name in NAMES)


def dropped_writes(users: tuple[str | None, ...]) -> Iterator[tuple[str, Request]]:
    """Presets, and the writes that they drop: of all that differ for any rule, since what is dropped is narrow."""
    for user, verb, kind, namespace, object_name in product(users, WRITES, KNOWN, NAMESPACES, OBJECTS):
        request = Request(
            user=user,
            groups=groups_of(user) if user is not None else (),
            verb=verb,
            namespace=namespace,
            api_group=kind[0],
            resource=kind[1],
            subresource=kind[2],
            name=object_name,
        )
        yield from ((name, request) for name in NAMES if level(name, request) is Level.NONE)


def test_no_write_by_a_person_is_dropped_except_by_minimal_what_service_accounts_ask_about_others() -> None:
    dropped = {
        (name, request.user, request.verb, request.resource)
        for name, request in dropped_writes((*PEOPLE, "system:anonymous", None))
    }
    reviews = ("tokenreviews", "subjectaccessreviews", "localsubjectaccessreviews")
    accounts = (person for person in PEOPLE if person.startswith("system:serviceaccount:"))
    assert dropped == {("Minimal", account, "create", review) for account, review in product(accounts, reviews)}


def test_of_a_stolen_component_identity_only_renewals_events_and_reviews_go_unseen() -> None:
    for name, request in dropped_writes(COMPONENTS):
        renewal = (request.resource, request.verb) == ("leases", "update") and (
            (request.user, request.namespace) in RENEWERS
            and request.name == LEADERS.get((request.user or "", request.namespace), request.name)
        )
        event = request.resource == "events" and request.verb in ("create", "update", "patch")
        review = request.resource.endswith("reviews") and request.verb == "create"
        assert renewal or event or (name == "Minimal" and review), (name, request)


@settings(max_examples=200)
@given(requests(resources=WAYS_IN))
def test_every_way_into_a_pod_node_or_service_is_recorded_by_every_preset_whoever_takes_it(request_: Request) -> None:
    assert all(level(name, request_) >= Level.METADATA for name in NAMES)


@settings(max_examples=200)
@given(requests(resources=(("", "secrets", ""),)))
def test_every_access_to_a_secret_is_recorded_by_every_preset(request_: Request) -> None:
    assert all(level(name, request_) is not Level.NONE for name in NAMES)


@settings(max_examples=200)
@given(requests(users=("system:anonymous", None)) | path_requests(users=("system:anonymous", None)))
def test_failed_and_missing_logins_are_recorded_except_at_health_checks(request_: Request) -> None:
    health = request_.path.startswith(("/healthz", "/livez", "/readyz")) and request_.verb in ("get", "head")
    for name in NAMES:
        assert level(name, request_) is not Level.NONE or health
        # A failed login has one event, at this stage.
        assert Stage.RESPONSE_STARTED not in EVALUATORS[name].decide(request_).omit_stages


@settings(max_examples=300)
@given(requests() | path_requests())
def test_every_request_is_decided_by_a_rule_of_every_preset(request_: Request) -> None:
    assert all(EVALUATORS[name].decide(request_).rule is not None for name in NAMES)


# --- the benchmark ---------------------------------------------------------------------------------------------------

ALICE: dict[str, Any] = {"user": "alice", "groups": ("system:authenticated",), "namespace": "team-a"}
BENCHMARK = [
    *[
        pytest.param(
            "3.2.1", Request(user="alice", verb=verb, resource=resource), Level.METADATA, Level.REQUEST_RESPONSE
        )
        for verb in (*READS, *WRITES)
        for resource in ("services", "nodes", "roles", "serviceaccounts")
    ],
    pytest.param("3.2.1", Request(user=None, verb="list", resource="pods"), Level.METADATA, Level.REQUEST_RESPONSE),
    *[
        # "Access to Secrets managed by the cluster", with care "to only log Metadata".
        pytest.param(
            "3.2.2", Request(**ALICE, verb=verb, api_group=group, resource=resource), Level.METADATA, Level.METADATA
        )
        for verb in (*READS, *WRITES)
        for group, resource in (("", "secrets"), ("", "configmaps"), ("authentication.k8s.io", "tokenreviews"))
    ],
    *[
        # "Modification of pod and deployment objects."
        pytest.param(
            "3.2.2", Request(**ALICE, verb=verb, api_group=group, resource=resource), Level.REQUEST, Level.REQUEST
        )
        for verb in WRITES
        for group, resource in (("", "pods"), ("apps", "deployments"))
    ],
    *[
        # "Use of pods/exec, pods/portforward, pods/proxy and services/proxy."
        pytest.param(
            "3.2.2",
            Request(**ALICE, verb=verb, resource=resource, subresource=sub),
            Level.METADATA,
            Level.REQUEST_RESPONSE,
        )
        for verb in ("get", "create", "update", "patch", "delete")
        for resource, sub in (("pods", "exec"), ("pods", "portforward"), ("pods", "proxy"), ("services", "proxy"))
    ],
]


@pytest.mark.parametrize(("item", "request_", "least", "most"), BENCHMARK)
def test_cis_records_what_the_benchmark_asks_for(item: str, request_: Request, least: Level, most: Level) -> None:
    assert least <= level("CIS", request_) <= most, f"CIS Kubernetes Benchmark {item}"


# --- volume ----------------------------------------------------------------------------------------------------------


def test_the_volumes_in_the_docs_are_those_of_the_recorded_traffic() -> None:
    everything = Policy(rules=(Rule(level=Level.REQUEST_RESPONSE),))
    replay = Replay([Source(name, preset(name)) for name in NAMES], everything)
    replay_file(str(TESTS / "data/audit-eventlists.jsonl.gz"), replay)
    shares = replay.report().policies
    whole = next(share.kept.size for share in shares if share.name == "Metadata")
    rows = [
        f"| `{share.name}` | {len(preset(share.name).rules)} | {share.kept.events:,} "
        f"| {sum(volume.events for level, volume in share.levels.items() if level > Level.METADATA):,} "
        f"| {share.kept.size / 1000:,.0f} kB | {share.kept.size / whole:.0%} |"
        for share in sorted(shares, key=lambda share: share.kept.size)
    ]
    table = "\n".join(rows)
    assert table in (TESTS.parent / "docs/presets.md").read_text(encoding="utf-8"), f"measured:\n{table}"
