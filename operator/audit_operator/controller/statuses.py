"""Conditions as they are written: with the times at which they changed. Pure: the clock is an argument."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from audit_operator.controller.recorder import News
from audit_operator.render.objects import Object
from audit_operator.render.status import ResourceStatus


def document(status: ResourceStatus, live: Mapping[str, Any], now: datetime) -> Object | None:
    """The resource with nothing but its status, to apply; None if ``live`` says the same already.

    A condition keeps its lastTransitionTime as long as its status stays: a new message or generation is no transition.
    """
    wanted = status.document()
    before = {entry.get("type"): entry for entry in live.get("conditions") or ()}
    for entry in wanted["status"]["conditions"]:
        known = before.get(entry["type"]) or {}
        stays = known.get("status") == entry["status"] and known.get("lastTransitionTime")
        entry["lastTransitionTime"] = known["lastTransitionTime"] if stays else timestamp(now)
    return None if _same(wanted["status"], live) else wanted


def _same(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    """Whether the live status is the wanted one; conditions are a map, whose order means nothing."""

    def plain(status: Mapping[str, Any]) -> dict[str, Any]:
        conditions = sorted(status.get("conditions") or (), key=lambda entry: str(entry.get("type")))
        return {**status, "conditions": conditions}

    return plain(wanted) == plain(live)


def timestamp(now: datetime) -> str:
    """metav1.Time: UTC, whole seconds."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def news(status: ResourceStatus, live: Mapping[str, Any]) -> News | None:
    """What a person should hear of as an Event: that somebody must act, and that it is over."""
    before = {str(entry.get("type")): entry for entry in live.get("conditions") or ()}
    stalled = next((each for each in status.conditions if each.type == "Stalled"), None)
    if stalled is not None:
        known = before.get("Stalled", {})
        if (known.get("status"), known.get("reason")) != ("True", stalled.reason):
            return News("Warning", stalled.reason, stalled.message)
    elif status.ready.status == "True" and before.get("Stalled", {}).get("status") == "True":
        return News("Normal", "Ready", status.ready.message)
    return None
