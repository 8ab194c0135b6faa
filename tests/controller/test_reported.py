"""What receivers report becomes conditions: the right reason, a way out, and no word that changes without need."""

from datetime import UTC, datetime
from typing import Any

import pytest

from audit_operator.controller.reported import Answer, Conditions, Reported, reported
from audit_operator.render.program import PolicyProgram, Program, RuleList, SinkProgram, WireBatch, WireRule
from audit_operator.render.report import SCHEMA, ProgramStatus, SinkStatus, Status
from audit_operator.render.status import Condition
from audit_operator.render.world import Identity

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LONG_AGO = NOW.timestamp() - 3600
JUST_NOW = NOW.timestamp() - 5
WANTED = "aaaa"


def sink(name: str = "siem", namespace: str = "audit-system", url: str = "https://siem") -> SinkProgram:
    return SinkProgram(
        namespace=namespace, name=name, type="http", settings={"url": url}, format={},
        batch=WireBatch(max_events=1, max_bytes=1, max_age=1),
        initial_backoff=1, max_backoff=1, timeout=1, concurrency=1,
    )  # fmt: skip


def policy(name: str = "all", rule_list: int = 0, *sinks: str) -> PolicyProgram:
    return PolicyProgram(
        namespace="audit-system", name=name, rule_list=rule_list, sinks=sinks or ("audit-system/siem",)
    )


def program(*policies: PolicyProgram, sinks: tuple[SinkProgram, ...] = (sink(),), levels: str = "Metadata") -> Program:
    lists = tuple(RuleList(rules=(WireRule(level=level),)) for level in levels.split())  # type: ignore[arg-type]
    return Program(
        schema="receiver.audit-operator.dev/v1", cluster="prod", body_limit=1, journal_limit=1,
        rule_lists=lists, policies=policies or (policy(),), sinks=sinks,
    )  # fmt: skip


def state(name: str = "audit-system/siem", **rest: Any) -> SinkStatus:
    given = {"type": "http", "state": "Delivering", "last_delivery": JUST_NOW, "share_bytes": 100, **rest}
    return SinkStatus(name=name, **given)


def answer(pod: str, *sinks: SinkStatus, hash_: str = WANTED, ready: bool = True, **rest: Any) -> Answer:
    """``rest``: of the receiver's status, or of the answer."""
    own = {key: rest.pop(key) for key in ("dropped", "refused_events", "not_covered") if key in rest}
    found = {"program": ProgramStatus(hash=hash_), "ready": True, "sinks": [*sinks] or [state()], **rest}
    return Answer(pod=pod, ready=ready, status=Status(schema=SCHEMA, **found), **own)


def silent(pod: str, *, ready: bool) -> Answer:
    return Answer(pod=pod, ready=ready, error="no answer within 5 s")


def said(*answers: Answer, wanted: Program | None = None) -> Reported:
    return reported(answers, wanted or program(), WANTED, "audit-system", NOW)


def of_sink(*answers: Answer) -> Condition:
    return said(*answers).sinks["audit-system/siem"]


def of_backend(kind: str, *answers: Answer) -> Condition:
    return next(each for each in said(*answers).backend if each.type == kind)


# --- a sink ----------------------------------------------------------------------------------------------------------


def test_a_sink_that_takes_events_delivers() -> None:
    found = of_sink(answer("a"), answer("b"))
    assert (found.status, found.reason, found.message) == ("True", "Delivering", "it takes events")


def test_before_the_first_event_a_sink_is_well_too() -> None:
    found = of_sink(answer("a", state(last_delivery=None)), answer("b", state(last_delivery=None)))
    assert (found.status, found.reason) == ("True", "NothingToDeliver")
    newer = of_sink(answer("a", state(state="Idle", last_delivery=None)))
    assert (newer.status, newer.reason) == ("True", "NothingToDeliver")
    # One receiver has delivered, the other was started a moment ago.
    mixed = of_sink(answer("a"), answer("b", state(state="Idle", last_delivery=None)))
    assert (mixed.status, mixed.reason) == ("True", "Delivering")


@pytest.mark.parametrize("kind", ["Misconfigured", "Unauthorized", "QuarantineFull", "JournalError", "Unreachable"])
def test_what_fails_for_long_needs_a_person(kind: str) -> None:
    failing = state(state=kind, message="they say no", since=LONG_AGO)
    found = of_sink(answer("a", failing), answer("b"))
    assert (found.status, found.reason, found.under_way) == ("False", kind, False)
    assert found.message == "1 of 2 receivers: they say no (since 2026-03-01 11:00 UTC)"


def test_what_has_just_failed_may_come_right_by_itself() -> None:
    assert of_sink(answer("a", state(state="Unauthorized", since=JUST_NOW))).under_way
    assert of_sink(answer("a", state(state="Throttled", since=LONG_AGO))).under_way


def test_of_several_failures_the_worst_is_said() -> None:
    found = of_sink(
        answer("a", state(state="Unreachable", message="refused", since=LONG_AGO)),
        answer("b", state(state="Unauthorized", message="401", since=LONG_AGO)),
    )
    assert found.reason == "Unauthorized"
    assert found.message.startswith("2 of 2 receivers: 401")


def test_lost_events_come_before_everything_else() -> None:
    down = state(state="Unreachable", message="refused", since=LONG_AGO, dropping=True, backlog_bytes=100)
    assert of_sink(answer("a", down), answer("b", down)).reason == "AllDataDropped"
    found = of_sink(answer("a", down), answer("b"))
    assert (found.status, found.reason, found.under_way) == ("False", "SomeDataDropped", False)
    assert "refused" in found.message


def test_what_tenants_ask_for_too_much_of_is_said_apart_from_a_journal_that_is_full() -> None:
    loud = state(
        limiting=True, limited=7, dropped=7, why_dropping="tenants' policies ask for more than 5 events a second"
    )
    found = of_sink(answer("a", loud), answer("b"))
    assert (found.status, found.reason) == ("False", "SomeDataDropped")
    assert found.message == (
        "1 of 2 receivers: tenants' policies ask for more than 5 events a second; what is above is dropped"
    )
    later = of_sink(answer("a", state(limited=7, dropped=7)))
    assert "asked for too many" in later.message
    assert "journal" not in later.message


def test_a_loss_stays_for_a_while_and_is_never_quite_forgotten() -> None:
    name = frozenset({"audit-system/siem"})
    lately = of_sink(answer("a", state(dropped=7), dropped=name))
    assert (lately.status, lately.reason) == ("False", "SomeDataDropped")
    later = of_sink(answer("a", state(dropped=7)))
    assert later.status == "True"
    assert "lost" in later.message
    refused = of_sink(answer("a", state(dead_lettered=7), refused_events=name))
    assert (refused.status, refused.reason) == ("False", "SomeDataRefused")
    assert "quarantine" in of_sink(answer("a", state(dead_lettered=7))).message


def test_a_journal_that_fills_is_said_before_anything_is_lost() -> None:
    found = of_sink(answer("a", state(backlog_bytes=51)), answer("b"))
    assert (found.reason, found.under_way) == ("BufferFillingUp", True)
    down = of_sink(answer("a", state(state="Unreachable", message="refused", since=LONG_AGO, backlog_bytes=51)))
    assert down.reason == "Unreachable"
    assert "over half" in down.message


def test_messages_hold_no_number_that_grows() -> None:
    for one, other in (
        (state(delivered=1, last_delivery=JUST_NOW), state(delivered=9, last_delivery=JUST_NOW + 1)),
        (state(dropped=1), state(dropped=9)),
        (state(backlog_bytes=60, backlog_events=1), state(backlog_bytes=90, backlog_events=9)),
        (state(dropping=True, dropped=1), state(dropping=True, dropped=9)),
    ):
        assert said(answer("a", one, journal_bytes=1)) == said(answer("a", other, journal_bytes=2))


# --- the AuditBackend ------------------------------------------------------------------------------------------------


def test_a_program_is_in_force_when_every_receiver_that_runs_has_it() -> None:
    assert of_backend("ProgramInForce", answer("a"), answer("b")).status == "True"
    # One that is not up takes no events, and will have it when it is.
    assert of_backend("ProgramInForce", answer("a"), silent("b", ready=False)).status == "True"
    late = of_backend("ProgramInForce", answer("a"), answer("b", hash_="old"))
    assert (late.status, late.reason, late.under_way) == ("False", "RollingOut", True)
    hidden = of_backend("ProgramInForce", answer("a"), silent("b", ready=True))
    assert (hidden.status, hidden.reason) == ("Unknown", "ReceiverSilent")
    assert "b does not answer: no answer within 5 s" in hidden.message


def test_a_refused_program_is_said_with_the_receivers_words() -> None:
    refusing = answer("b", program=ProgramStatus(hash="old", refused="there is no sink x", refused_hash=WANTED))
    found = of_backend("ProgramInForce", answer("a"), refusing)
    assert (found.status, found.reason, found.under_way) == ("False", "ProgramRefused", False)
    assert "b refuses it: there is no sink x" in found.message


def test_nobody_waits_for_receivers_or_events_that_nobody_has_seen() -> None:
    for found in (said(), said(silent("a", ready=False))):
        assert {each.reason for each in found.backend} == {"NotObserved"}
    assert of_backend("EventsFlowing", answer("a")).reason == "NotObserved"


def test_events_flow_while_some_api_server_sends_some() -> None:
    fresh, old = "2026-03-01T11:59:00.000000Z", "2026-03-01T11:00:00.000000Z"
    found = of_backend("EventsFlowing", answer("a", servers={"one": fresh}), answer("b", servers={"two": old}))
    assert (found.status, found.message) == ("True", "events of one arrive")
    quiet = of_backend("EventsFlowing", answer("a", servers={"one": old}))
    assert (quiet.status, quiet.reason) == ("Unknown", "NotObserved")


def test_a_tenants_sink_is_not_the_backends_affair() -> None:
    tenants = state("team-a/own", state="Unreachable", since=LONG_AGO)
    wanted = program(sinks=(sink(), sink("own", "team-a")))
    found = said(answer("a", state(), tenants), wanted=wanted)
    assert next(each for each in found.backend if each.type == "Delivering").status == "True"
    assert found.sinks["team-a/own"].status == "False"
    platform = said(answer("a", state(state="Unreachable", since=LONG_AGO), tenants), wanted=wanted)
    assert next(each for each in platform.backend if each.type == "Delivering").reason == "Unreachable"


def test_receivers_that_take_nothing_or_hold_old_certificates_say_why() -> None:
    found = said(Answer(pod="a", ready=True, status=Status(
        schema=SCHEMA, ready=False, why="the volume is full", program=ProgramStatus(hash=WANTED), certificates="no key",
    )))  # fmt: skip
    by_type = {each.type: each for each in found.backend}
    assert by_type["ReceiverReady"].message == "a: the volume is full"
    assert by_type["CertificatesValid"].message == "a: no key"


# --- policies and sinks of one pass ----------------------------------------------------------------------------------

SINK = Identity("AuditSink", "audit-system", "siem")


def a_policy(name: str = "all") -> Identity:
    return Identity("AuditPolicy", "audit-system", name)


def delivering(conditions: Conditions, identity: Identity) -> Condition:
    return next(each for each in conditions.of(identity) if each.type == "Delivering")


def test_a_policy_is_in_force_although_a_receiver_runs_an_older_program_that_has_it_too() -> None:
    old = program(policy("all", 0), policy("changed", 1), levels="Metadata None")
    new = program(policy("changed", 0), policy("all", 1), levels="Request Metadata")
    conditions = Conditions(said(answer("a"), answer("b", hash_="old"), wanted=new), new, {"old": old})
    assert delivering(conditions, a_policy("all")).status == "True"
    changed = delivering(conditions, a_policy("changed"))
    assert (changed.reason, changed.under_way) == ("RollingOut", True)
    assert "in b;" in changed.message
    # Nobody knows what a program was that was wanted before the operator started.
    unknown = Conditions(said(answer("a", hash_="older"), wanted=new), new, {})
    assert delivering(unknown, a_policy("all")).reason == "RollingOut"


def test_a_changed_sink_is_not_in_force_before_its_receivers_have_it() -> None:
    old, new = program(), program(sinks=(sink(url="https://new"),))
    conditions = Conditions(said(answer("a", hash_="old"), wanted=new), new, {"old": old})
    assert delivering(conditions, SINK).reason == "RollingOut"
    assert delivering(conditions, a_policy()).reason == "RollingOut"


def test_a_policy_fares_as_the_worst_of_its_sinks() -> None:
    failing = state(state="Unreachable", message="refused", since=LONG_AGO)
    wanted = program()
    found = delivering(Conditions(said(answer("a", failing)), wanted, {}), a_policy())
    assert (found.status, found.reason) == ("False", "Unreachable")
    assert found.message.startswith("AuditSink audit-system/siem: 1 of 1 receiver: refused")


def test_a_policy_of_another_namespace_learns_why_but_no_word_of_the_sinks_server() -> None:
    words = "HTTP 403: index prod-pci-audit is blocked for key id 7Hq at 10.1.2.3"
    theirs = PolicyProgram(namespace="team-a", name="p", rule_list=0, tenant="team-a", sinks=("audit-system/siem",))
    wanted = program(policy(), theirs)
    for rest in ({}, {"dropping": True}, {"limiting": True, "why_dropping": words}):
        failing = state(state="Unauthorized", message=words, since=LONG_AGO, **rest)
        conditions = Conditions(said(answer("a", failing), wanted=wanted), wanted, {})
        found = delivering(conditions, Identity("AuditPolicy", "team-a", "p"))
        own = delivering(conditions, a_policy())
        assert (found.status, found.reason) == (own.status, own.reason)
        assert found.reason in found.message
        assert not any(word in found.message for word in ("403", "prod-pci-audit", "7Hq", "10.1.2.3"))
        assert words in own.message


def test_what_was_recorded_too_low_is_said_to_the_policy() -> None:
    found = said(answer("a", not_covered=frozenset({"audit-system/all"})))
    kinds = {each.type: each for each in Conditions(found, program(), {}).of(a_policy())}
    assert (kinds["Covered"].status, kinds["Covered"].reason) == ("False", "NotCovered")


def test_without_receivers_policies_and_sinks_say_that_nobody_knows() -> None:
    conditions = Conditions(said(silent("a", ready=False)), program(), {})
    assert [each.reason for identity in (SINK, a_policy()) for each in conditions.of(identity)] == ["NotObserved"] * 2
    assert [*Conditions(Reported(asked=False), program(), {}).of(SINK)] == []
    assert [*conditions.of(a_policy("of-no-receiver"))] == []
