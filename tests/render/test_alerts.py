"""Alerts fire when evidence is lost or soon will be, and are silent otherwise: by Prometheus' own promtool."""

import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from audit_operator.controller import metrics as operator_metrics
from audit_operator.receiver.metrics import Metrics
from audit_operator.render.alerts import receiver_alerts

ROOT = Path(__file__).parents[2]
OPERATOR = yaml.safe_load((ROOT / "charts/audit-operator/alerts.yaml").read_text())
RECEIVER = {"groups": receiver_alerts(1000)}
RULES = [rule for groups in (OPERATOR, RECEIVER) for group in groups["groups"] for rule in group["rules"]]


def promtool(*arguments: str | Path) -> str:
    kept = ROOT / ".tools" / "prometheus" / "root" / "usr" / "bin" / "promtool"
    binary = os.environ.get("PROMTOOL") or shutil.which("promtool") or str(kept)
    if shutil.which(binary) is None:
        pytest.skip("promtool is not installed: run scripts/get-promtool, or set PROMTOOL to its path")
    done = subprocess.run([binary, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def written(folder: Path) -> list[Path]:
    files = []
    for name, groups in (("operator", OPERATOR), ("receiver", RECEIVER)):
        files.append(folder / f"{name}.yaml")
        files[-1].write_text(yaml.safe_dump(groups))
    return files


def test_promtool_takes_every_rule(tmp_path: Path) -> None:
    assert promtool("check", "rules", *written(tmp_path)).count("SUCCESS") == 2


def test_every_metric_that_an_alert_asks_for_exists() -> None:
    receiver = Metrics()
    for counter in (receiver.dropped, receiver.damaged, receiver.dead_lettered, receiver.failed_closed):
        counter.labels("x")
    assert operator_metrics.LEADER is not None
    known = set(re.findall(r"^# TYPE (\S+)", asyncio.run(receiver.text()).decode(), re.MULTILINE))
    known |= {f"{each.name}_total" if each.type == "counter" else each.name for each in REGISTRY.collect()}
    asked = {name for rule in RULES for name in re.findall(r"\baudit_(?:operator|receiver)_\w+", rule["expr"])}
    assert len(asked) > 8
    assert asked <= known


def test_every_alert_says_what_is_wrong_and_is_in_the_documentation() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names)) == 15
    for rule in RULES:
        assert f"`{rule['alert']}`" in page
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")


HEALTHY = {
    'audit_receiver_ready{pod="audit-receiver-0"}': "1x120",
    'audit_receiver_ready{pod="audit-receiver-1"}': "1x120",
    'audit_receiver_oldest_undelivered_seconds{pod="audit-receiver-0",sink="a/b"}': "610x120",
    'audit_receiver_journal_bytes{pod="audit-receiver-0",sink="a/b"}': "390x120",
    'audit_receiver_journal_bytes{pod="audit-receiver-0",sink="c/d"}': "390x120",
    'audit_receiver_dropped_events_total{pod="audit-receiver-0",sink="a/b"}': "0x120",
    'audit_operator_leader{pod="a"}': "1x120",
    'audit_operator_leader{pod="b"}': "0x120",
    'audit_operator_last_successful_reconcile_timestamp_seconds{pod="a"}': "0+60x120",
    'audit_operator_last_successful_reconcile_timestamp_seconds{pod="b"}': "0x120",
    'audit_operator_resources{kind="AuditBackend",ready="True"}': "1x120",
    'audit_operator_resources{kind="AuditSink",ready="False"}': "_x30 1x5 _x85",
    'audit_operator_certificate_expiry_timestamp_seconds{certificate="ca"}': f"{31 * 86400 + 7200}x120",
}
POD = 'pod="audit-receiver-0"'


@pytest.mark.parametrize(
    ("series", "minutes", "firing"),
    [
        ({}, 100, set()),
        ({'audit_receiver_ready{pod="audit-receiver-0"}': "0x120"}, 9, set()),
        ({'audit_receiver_ready{pod="audit-receiver-0"}': "0x120"}, 11, {"AuditReceiverNotReady"}),
        (
            {f'audit_receiver_ready{{pod="audit-receiver-{number}"}}': "0x120" for number in (0, 1)},
            2,
            {"AuditReceiverDown"},
        ),
        (
            {f'audit_receiver_ready{{pod="audit-receiver-{number}"}}': "_x120" for number in (0, 1)},
            2,
            {"AuditReceiverDown"},
        ),
        # A series that begins with what it counts, one that goes on, and one that has been quiet since.
        ({f'audit_receiver_dropped_events_total{{{POD},sink="x/y"}}': "_x60 3x60"}, 61, {"AuditEventsDropped"}),
        ({f'audit_receiver_dropped_events_total{{{POD},sink="x/y"}}': "_x60 3x60"}, 80, set()),
        ({f'audit_receiver_dropped_events_total{{{POD},sink="a/b"}}': "7x60 8x60"}, 65, {"AuditEventsDropped"}),
        ({f'audit_receiver_damaged_events_total{{{POD},sink="a/b"}}': "_x60 1x60"}, 65, {"AuditJournalDamaged"}),
        (
            {f'audit_receiver_dead_lettered_events_total{{{POD},sink="a/b"}}': "_x60 1x60"},
            65,
            {"AuditEventsDeadLettered"},
        ),
        (
            {f'audit_receiver_failed_closed_fields_total{{{POD},field="responseObject"}}': "_x60 1x60"},
            65,
            {"AuditRedactionFailedClosed"},
        ),
        ({f'audit_receiver_not_covered_events_total{{{POD},policy="a/b"}}': "0+5x120"}, 80, {"AuditEventsNotCovered"}),
        ({f'audit_receiver_refused_total{{{POD},reason="ClientName"}}': "0+1x120"}, 80, {"AuditClientsRefused"}),
        ({f'audit_receiver_refused_total{{{POD},reason="Handshake"}}': "0+1x120"}, 80, set()),
        ({f'audit_receiver_journal_bytes{{{POD},sink="a/b"}}': "420x120"}, 4, set()),
        ({f'audit_receiver_journal_bytes{{{POD},sink="a/b"}}': "420x120"}, 6, {"AuditJournalNearlyFull"}),
        ({f'audit_receiver_oldest_undelivered_seconds{{{POD},sink="a/b"}}': "0+60x120"}, 40, {"AuditSinkBehind"}),
        ({'audit_operator_leader{pod="a"}': "0x120"}, 6, {"AuditOperatorWithoutLeader"}),
        ({'audit_operator_leader{pod="b"}': "1x120"}, 6, {"AuditOperatorWithoutLeader"}),
        (
            {'audit_operator_leader{pod="a"}': "_x120", 'audit_operator_leader{pod="b"}': "_x120"},
            6,
            {"AuditOperatorWithoutLeader"},
        ),
        (
            {'audit_operator_last_successful_reconcile_timestamp_seconds{pod="a"}': "0+60x20 1200x100"},
            60,
            {"AuditOperatorNotPassing"},
        ),
        ({'audit_operator_resources{kind="AuditPolicy",ready="Unknown"}': "2x120"}, 16, {"AuditResourceNotReady"}),
        (
            {'audit_operator_certificate_expiry_timestamp_seconds{certificate="receiver"}': f"{29 * 86400}x120"},
            61,
            {"AuditCertificateEnds"},
        ),
        (
            {'audit_operator_certificate_expiry_timestamp_seconds{certificate="receiver"}': f"{2 * 86400}x120"},
            1,
            {"AuditCertificateEndsSoon"},
        ),
    ],
)
def test_alerts_fire_when_they_should(series: dict[str, str], minutes: int, firing: set[str], tmp_path: Path) -> None:
    given = [{"series": name, "values": values} for name, values in (HEALTHY | series).items()]
    expected = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(firing)]
    asked: dict[str, Any] = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"}) > bool 0',
        "eval_time": f"{minutes}m",
        "exp_samples": expected,
    }
    test = {
        "rule_files": [str(path) for path in written(tmp_path)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": given, "promql_expr_test": [asked]}],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    promtool("test", "rules", tmp_path / "test.yaml")
