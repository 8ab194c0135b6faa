"""Alerts on receivers, as rules for Prometheus: what loses evidence, or soon will."""

from collections.abc import Mapping
from typing import Any, Final

_CRITICAL: Final = "critical"
_WARNING: Final = "warning"

_BEHIND: Final = 1800
"""Seconds. A sink's batch may wait for ten minutes or more until it is full (objectStore: five by default)."""

_NEARLY_FULL: Final = 0.8
"""Of the journal's limit; at 0.95 receivers refuse events (`_HIGH_WATER` of receiver/running.py)."""


def receiver_alerts(journal_limit: int) -> list[Mapping[str, Any]]:
    """Groups of rules as a PrometheusRule has them. ``journal_limit``: bytes that a receiver's journal may take."""
    rules = [
        _alert(
            "AuditReceiverDown",
            "absent(audit_receiver_ready) or sum(audit_receiver_ready) == 0",
            _CRITICAL,
            "no receiver takes events",
            "API servers lose events after 80 to 230 seconds. Look at the pods with the label "
            "app.kubernetes.io/component=receiver; /readyz says why one is not ready.",
            minutes=1,
        ),
        _alert(
            "AuditReceiverNotReady",
            "audit_receiver_ready == 0",
            _WARNING,
            "receiver {{ $labels.pod }} takes no events",
            "Its /readyz says why: no program, a full volume, a journal that cannot be written.",
            minutes=10,
        ),
        _alert(
            "AuditEventsDropped",
            _new("audit_receiver_dropped_events_total", "10m"),
            _CRITICAL,
            "events for sink {{ $labels.sink }} are lost",
            "The sink's part of the journal in {{ $labels.pod }} is full. Make the sink take events, or raise "
            "spec.receiver.storage of the AuditBackend.",
        ),
        _alert(
            "AuditJournalDamaged",
            _new("audit_receiver_damaged_events_total", "1h"),
            _CRITICAL,
            "events for sink {{ $labels.sink }} cannot be read back",
            "The volume of {{ $labels.pod }} lost or changed what was synced. The log names the numbers of the events.",
        ),
        _alert(
            "AuditJournalNearlyFull",
            f"sum without (sink) (audit_receiver_journal_bytes) > {round(_NEARLY_FULL * journal_limit)}",
            _CRITICAL,
            "the journal of {{ $labels.pod }} is nearly full",
            "Soon the newest events are dropped, and then API servers are refused. "
            "audit_receiver_journal_bytes says which sinks do not take theirs.",
            minutes=5,
        ),
        _alert(
            "AuditSinkBehind",
            f"audit_receiver_oldest_undelivered_seconds > {_BEHIND}",
            _WARNING,
            "sink {{ $labels.sink }} does not take its events",
            "The oldest waits for {{ $value | humanizeDuration }} in {{ $labels.pod }}. "
            "audit_receiver_sink_errors_total says why; nothing is lost until the journal is full.",
            minutes=5,
        ),
        _alert(
            "AuditEventsDeadLettered",
            _new("audit_receiver_dead_lettered_events_total", "1h"),
            _WARNING,
            "sink {{ $labels.sink }} refuses events for good",
            "They are in quarantine: audit-operator quarantine list in {{ $labels.pod }} says why, and retry sends "
            "them again.",
        ),
        _alert(
            "AuditRedactionFailedClosed",
            _new("audit_receiver_failed_closed_fields_total", "1h"),
            _WARNING,
            "bodies were replaced because they could not be searched for secrets",
            "The events were delivered without them.",
        ),
        _alert(
            "AuditClientsRefused",
            _new('audit_receiver_refused_total{reason="ClientName"}', "10m"),
            _WARNING,
            "somebody with a certificate of the receivers' CA is refused by {{ $labels.pod }}",
            "Its log has the name. If that is an API server, its events are lost: add the name to "
            "spec.certificates.clientNames of the AuditBackend.",
        ),
        _alert(
            "AuditEventsNotCovered",
            _new("audit_receiver_not_covered_events_total", "1h"),
            _WARNING,
            "API servers record less than {{ $labels.policy }} asks for",
            "They run another policy file than the operator makes. See the AuditPolicy's status.",
            minutes=15,
        ),
    ]
    return [{"name": "audit-receiver", "rules": rules}]


def _new(counter: str, window: str) -> str:
    """Whether it counted anything lately. Its series begin with the first thing that is counted, which `increase` does
    not see.
    """
    return f"increase({counter}[{window}]) > 0 or ({counter} unless {counter} offset {window}) > 0"


def _alert(
    name: str, expression: str, severity: str, summary: str, description: str, *, minutes: int = 0
) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        **({"for": f"{minutes}m"} if minutes else {}),
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "description": description},
    }
