"""Conditions as they are written: times that do not flap, and silence where nothing changed."""

from datetime import UTC, datetime, timedelta
from typing import Any

from audit_operator.controller import statuses
from audit_operator.render.status import ResourceStatus, false, not_observed, true, under_way, with_conditions
from audit_operator.render.tenants import Refusal
from audit_operator.render.world import Identity

NOW = datetime(2026, 3, 1, 12, 0, 0, 987654, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def status(*conditions: Any, generation: int = 3) -> ResourceStatus:
    empty = ResourceStatus(
        identity=Identity("AuditPolicy", "team-a", "own"), generation=generation, conditions=(), fields={"rules": 2}
    )
    return with_conditions(empty, *conditions)


def written(wanted: ResourceStatus, live: dict[str, Any], now: datetime = NOW) -> dict[str, Any]:
    document = statuses.document(wanted, live, now)
    assert document is not None
    found: dict[str, Any] = document["status"]
    return found


def times(found: dict[str, Any]) -> dict[str, str]:
    return {entry["type"]: entry["lastTransitionTime"] for entry in found["conditions"]}


def test_an_unchanged_status_is_not_written() -> None:
    wanted = status(true("Compiled", "2 rules"), not_observed("Installed", "later"))
    live = written(wanted, {})
    assert statuses.document(wanted, live, LATER) is None


def test_the_order_of_live_conditions_is_no_change() -> None:
    wanted = status(true("Compiled", "2 rules"), not_observed("Installed", "later"))
    live = written(wanted, {})
    live["conditions"].reverse()
    assert statuses.document(wanted, live, LATER) is None


def test_a_new_message_or_generation_is_no_transition() -> None:
    live = written(status(true("Compiled", "2 rules")), {})
    for wanted in (status(true("Compiled", "3 rules")), status(true("Compiled", "2 rules"), generation=4)):
        found = written(wanted, live, LATER)
        assert times(found) == times(live)


def test_a_condition_that_turns_carries_the_time_at_which_it_did() -> None:
    live = written(status(true("Compiled", "2 rules")), {})
    found = written(status(false("Compiled", Refusal("Invalid", "no"))), live, LATER)
    assert times(found) == dict.fromkeys(("Compiled", "Stalled", "Ready"), "2026-03-01T13:00:00Z")
    assert times(live) == dict.fromkeys(("Compiled", "Ready"), "2026-03-01T12:00:00Z")


def test_conditions_that_do_not_apply_any_more_are_gone_from_what_is_applied() -> None:
    live = written(status(false("Compiled", Refusal("Invalid", "no"))), {})
    found = written(status(true("Compiled", "2 rules")), live, LATER)
    assert set(times(found)) == {"Compiled", "Ready"}


def test_a_tampered_status_is_written_again() -> None:
    wanted = status(true("Compiled", "2 rules"))
    for tampered in ({"rules": 7}, {"unknown": 1}, {"conditions": []}):
        live = written(wanted, {}) | tampered
        assert written(wanted, live, LATER)["rules"] == 2


def test_people_hear_of_failures_and_recoveries_and_of_nothing_else() -> None:
    good, bad = status(true("Compiled", "2 rules")), status(false("Compiled", Refusal("Invalid", "no such level")))
    waiting = status(under_way("Published", "Waiting", "soon"))
    of_good, of_bad, of_waiting = (written(each, {}) for each in (good, bad, waiting))
    assert statuses.news(good, {}) is None
    assert statuses.news(good, of_good) is None
    assert statuses.news(waiting, of_good) is None
    assert statuses.news(good, of_waiting) is None
    assert statuses.news(bad, of_good) == ("Warning", "Invalid", "no such level")
    assert statuses.news(bad, {}) == ("Warning", "Invalid", "no such level")
    assert statuses.news(bad, of_bad) is None
    recovered = statuses.news(good, of_bad)
    assert recovered is not None
    assert recovered[:2] == ("Normal", "Ready")
