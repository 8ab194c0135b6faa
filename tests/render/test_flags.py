"""Flags that let an API server start, do what the AuditBackend says, and fit the receiver."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_operator.policy.model import Level, Policy, Rule, Stage
from audit_operator.render.flags import UNTRUNCATED_BODY_LIMIT, Flags, flags, log_directory
from audit_operator.resources.auditbackend import AuditBackendSpec

POLICY = Policy(rules=(Rule(level=Level.METADATA),), omit_stages=frozenset({Stage.REQUEST_RECEIVED}))


def plan(server: tuple[int, int] = (1, 36), policy: Policy = POLICY, **spec: Any) -> Flags:
    return flags(AuditBackendSpec.model_validate({"clusterName": "c", **spec}), policy, server)


def given_flags(plan: Flags) -> dict[str, str]:
    return {flag.name: flag.value for flag in plan.flags}


def test_a_backend_with_defaults_sets_little_and_has_no_problem() -> None:
    result = plan()
    assert [str(flag) for flag in result.flags] == [
        "--audit-policy-file=/etc/kubernetes/audit/policy.yaml",
        "--audit-log-path=/var/log/kubernetes/audit/audit.log",
        "--audit-log-maxage=30",
        "--audit-log-maxbackup=10",
        "--audit-log-maxsize=100",
        "--audit-log-compress=true",
        "--audit-webhook-config-file=/etc/kubernetes/audit/webhook.kubeconfig",
        "--audit-webhook-batch-max-size=400",
        "--audit-webhook-truncate-enabled=true",
        "--audit-webhook-truncate-max-event-size=102400",
    ]
    assert (result.errors, result.warnings) == ((), ())
    assert result.events_per_second == 4000


@pytest.mark.parametrize(("server", "age", "backups"), [((1, 35), "0", "0"), ((1, 36), "366", "100")])
def test_rotation_is_always_given_because_its_defaults_changed(server: tuple[int, int], age: str, backups: str) -> None:
    by_name = {flag.name: flag for flag in plan(server).flags}
    assert (by_name["audit-log-maxage"].default, by_name["audit-log-maxbackup"].default) == (age, backups)
    assert plan(server, log={"maxAge": 366, "maxBackups": 100}).flags[2].value == "366"


def test_the_receiver_takes_the_largest_post_of_the_default_plan() -> None:
    limit = plan().body_limit
    assert limit == 40 * 2**20
    assert limit > 400 * 102400


@settings(max_examples=200)
@given(
    batch=st.integers(1, 10000),
    event=st.integers(1, 2**24),
    mode=st.sampled_from(["batch", "blocking", "blocking-strict"]),
)
def test_the_body_limit_is_never_below_what_truncation_lets_through(batch: int, event: int, mode: str) -> None:
    result = plan(
        webhook={
            "mode": mode,
            "batch": {"maxSize": batch, "bufferSize": 10000},
            "truncate": {"enabled": True, "maxEventSize": event, "maxBatchSize": 2**31 - 1},
        }
    )
    largest = len('{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[]}\n') + (
        (batch if mode == "batch" else 1) * (event + len(","))
    )
    assert result.body_limit is not None
    assert largest <= result.body_limit < largest + 2**21
    # What the limit is derived from is pinned, so that no other default of a later version can break it.
    assert given_flags(result)["audit-webhook-truncate-max-event-size"] == str(event)
    assert ("audit-webhook-batch-max-size" in given_flags(result)) == (mode == "batch")


def test_the_body_limit_has_room_for_what_stands_between_events() -> None:
    """10,000 commas are what makes this POST larger than 100 MiB."""
    largest = (100 * 2**20 - 128) // 10_000
    batch = {"maxSize": 10_000, "bufferSize": 10_000}
    truncate = {"enabled": True, "maxEventSize": largest, "maxBatchSize": 2**31 - 1}
    assert 10_000 * largest < 100 * 2**20
    assert plan(webhook={"batch": batch, "truncate": truncate}).body_limit == 101 * 2**20


@pytest.mark.parametrize(("memory", "enough"), [("159Mi", False), ("160Mi", True)])
def test_a_receiver_has_memory_for_four_of_the_largest_posts(memory: str, *, enough: bool) -> None:
    result = plan(receiver={"resources": {"limits": {"memory": memory}}})
    assert result.body_limit == 40 * 2**20
    fields = [problem.path for problem in result.warnings]
    assert fields == ([] if enough else ["spec.receiver.resources.limits.memory"])
    assert enough or "allow 160Mi" in result.warnings[0].way_out


def test_without_truncation_the_limit_is_a_choice_and_is_said() -> None:
    result = plan(webhook={"truncate": {"enabled": False}})
    assert result.body_limit == UNTRUNCATED_BODY_LIMIT
    assert not [name for name in given_flags(result) if "truncate" in name]
    assert "turn truncation on" in result.warnings[0].way_out


def test_no_flag_is_given_twice_or_equals_its_default_without_need() -> None:
    needed = {"audit-log-maxsize", "audit-webhook-batch-max-size", "audit-webhook-truncate-max-event-size"}
    specs: list[dict[str, Any]] = [
        {},
        {"log": {"maxAge": 5, "mode": "batch"}, "webhook": {"batch": {"maxWait": "30000ms"}}},
    ]
    for spec in specs:
        result = plan(**spec)
        names = [flag.name for flag in result.flags]
        assert len(names) == len(set(names))
        assert {flag.name for flag in result.flags if flag.value == flag.default} <= needed
        assert "audit-webhook-batch-max-wait" not in names


def test_every_setting_reaches_its_flag() -> None:
    truncate = {"enabled": True, "maxEventSize": 2000, "maxBatchSize": 5000}
    result = plan(
        log={
            "path": "/logs/a.log",
            "maxAge": 1,
            "maxBackups": 2,
            "maxSize": 3,
            "compress": False,
            "format": "legacy",
            "mode": "batch",
            "truncate": truncate,
        },
        webhook={
            "batch": {
                "bufferSize": 5,
                "maxSize": 4,
                "maxWait": "1m",
                "throttle": {"enabled": True, "qps": 200, "burst": 300},
            },
            "truncate": truncate,
            "initialBackoff": "2s",
        },
    )
    assert given_flags(result) == {
        "audit-policy-file": "/etc/kubernetes/audit/policy.yaml",
        "audit-log-path": "/logs/a.log",
        "audit-log-maxage": "1",
        "audit-log-maxbackup": "2",
        "audit-log-maxsize": "3",
        "audit-log-format": "legacy",
        "audit-log-mode": "batch",
        "audit-log-truncate-enabled": "true",
        "audit-log-truncate-max-event-size": "2000",
        "audit-log-truncate-max-batch-size": "5000",
        "audit-webhook-config-file": "/etc/kubernetes/audit/webhook.kubeconfig",
        "audit-webhook-batch-max-size": "4",
        "audit-webhook-batch-buffer-size": "5",
        "audit-webhook-batch-max-wait": "1m",
        "audit-webhook-batch-throttle-qps": "200",
        "audit-webhook-batch-throttle-burst": "300",
        "audit-webhook-initial-backoff": "2s",
        "audit-webhook-truncate-enabled": "true",
        "audit-webhook-truncate-max-event-size": "2000",
        "audit-webhook-truncate-max-batch-size": "5000",
    }
    unlimited = plan(webhook={"batch": {"throttle": {"enabled": False, "qps": 99}}})
    assert given_flags(unlimited)["audit-webhook-batch-throttle-enable"] == "false"
    assert "audit-webhook-batch-throttle-qps" not in given_flags(unlimited)
    assert unlimited.events_per_second is None


def test_a_backend_that_is_off_leaves_no_flag() -> None:
    assert not [name for name in given_flags(plan(webhook={"enabled": False})) if "webhook" in name]
    assert plan(webhook={"enabled": False}).body_limit is None
    assert not [name for name in given_flags(plan(log={"enabled": False})) if "log" in name]


def test_standard_output_needs_no_rotation_and_no_folder() -> None:
    assert set(given_flags(plan(log={"path": "-"}))) & {"audit-log-maxage", "audit-log-compress"} == set()
    assert log_directory("-") is None
    assert log_directory("/var/log/a/b.log") == "/var/log/a"


@pytest.mark.parametrize(
    ("path", "way_out"),
    [
        ("/audit.log", "give the file a folder of its own"),
        ("/etc/kubernetes/audit/audit.log", "write logs to another folder"),
    ],
)
def test_a_log_path_that_breaks_the_static_pod_is_an_error(path: str, way_out: str) -> None:
    (problem,) = plan(log={"path": path}).errors
    assert (problem.path, problem.value) == ("spec.log.path", repr(path))
    assert way_out in problem.way_out


STRICT: dict[str, Any] = {"webhook": {"mode": "blocking-strict"}}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (STRICT, "spec.webhook.mode"),
        ({"webhook": {"mode": "blocking", "batch": {"maxSize": 5}}}, "spec.webhook.mode"),
        ({"webhook": {"batch": {"maxSize": 5}}}, "spec.webhook.batch.throttle.qps"),
        ({"webhook": {"batch": {"maxSize": 4000}}}, "spec.receiver.resources.limits.memory"),
    ],
)
def test_what_works_against_itself_is_named(spec: dict[str, Any], field: str) -> None:
    (problem,) = plan(**spec).warnings
    assert problem.path == field
    assert problem.way_out


def test_blocking_strict_is_no_problem_where_request_received_is_recorded() -> None:
    rule = Rule(level=Level.METADATA, verbs=("delete",))
    assert plan(policy=Policy(rules=(rule,)), **STRICT).warnings == ()
    omitted = Rule(level=Level.METADATA, omit_stages=frozenset({Stage.REQUEST_RECEIVED}))
    unrecorded = Rule(level=Level.NONE)
    assert plan(policy=Policy(rules=(unrecorded, omitted)), **STRICT).warnings
    assert plan(policy=Policy(rules=(unrecorded, omitted, rule)), **STRICT).warnings == ()
