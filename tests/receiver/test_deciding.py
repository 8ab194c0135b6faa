"""Of many policies that want one event for one sink: nobody gets less than its policy asks, nothing is laid bare."""

import msgspec
import pytest
from receiving import policy, program, sink

from audit_operator.policy.events import EventError
from audit_operator.policy.model import Level, Request
from audit_operator.policy.redact import Action
from audit_operator.receiver.deciding import Deciding, Plan
from audit_operator.render.program import PolicyProgram, RuleList, WireRedaction, WireResources, WireRule

REQUEST = Request(user="alice", verb="get", resource="logins", api_group="example.com", namespace="team-a")
KEEPS, OMITS, METADATA, NOT_RECEIVED, NOTHING = range(5)
RULES = (
    RuleList(rules=(WireRule(level="RequestResponse", omit_managed_fields=False),)),
    RuleList(rules=(WireRule(level="RequestResponse", omit_managed_fields=True),)),
    RuleList(rules=(WireRule(level="Metadata"),)),
    RuleList(rules=(WireRule(level="Metadata", omit_stages=("RequestReceived",)),)),
    RuleList(rules=(WireRule(level="None"),)),
)
LOGINS = WireResources(group="example.com", resources=("logins",))
REDACTED = WireRedaction(resources=(LOGINS,), paths=("spec.password",), action=Action.REMOVE)


def tenants(name: str, namespace: str = "team-a", **rest: object) -> PolicyProgram:
    return msgspec.structs.replace(policy(name, **rest), namespace=namespace, tenant=namespace)  # type: ignore[arg-type]


def plan(*policies: PolicyProgram, request: Request = REQUEST, recorded: str = "RequestResponse") -> Plan:
    sinks = sorted({name for each in policies for name in each.sinks})
    named = tuple(sink(name.partition("/")[2], name.partition("/")[0]) for name in sinks)
    deciding = Deciding(program(policies=policies, sinks=named, rules=RULES))
    return deciding.plan(request, "ResponseComplete", recorded)


@pytest.mark.parametrize("order", [1, -1])
def test_managed_fields_stay_if_one_policy_wants_them(order: int) -> None:
    both = (policy("keeps", rule_list=KEEPS), policy("omits", rule_list=OMITS))[::order]
    (route,) = plan(*both).routes
    assert not route.wanted.omit_managed_fields
    (route,) = plan(policy("omits", rule_list=OMITS)).routes
    assert route.wanted.omit_managed_fields


def test_who_asks_for_no_bodies_has_no_say_about_what_is_in_them() -> None:
    (route,) = plan(policy("omits", rule_list=OMITS), policy("metadata", rule_list=METADATA)).routes
    assert (route.wanted.level, route.wanted.omit_managed_fields) == (Level.REQUEST_RESPONSE, True)


def test_an_event_reaches_a_sink_once_at_the_highest_level() -> None:
    found = plan(policy("metadata", rule_list=METADATA), policy("bodies", rule_list=KEEPS))
    assert [(route.wanted.level, route.sinks) for route in found.routes] == [
        (Level.REQUEST_RESPONSE, ("audit-system/siem",))
    ]


def test_sinks_that_want_the_same_form_share_it_and_others_have_their_own() -> None:
    found = plan(
        policy("a", rule_list=METADATA, sinks=("audit-system/a", "audit-system/b")),
        policy("b", rule_list=KEEPS, sinks=("audit-system/b",)),
        policy("c", rule_list=METADATA, sinks=("audit-system/c",)),
    )
    assert {route.sinks: route.wanted.level for route in found.routes} == {
        ("audit-system/a", "audit-system/c"): Level.METADATA,
        ("audit-system/b",): Level.REQUEST_RESPONSE,
    }


def test_a_stage_that_a_policy_omits_is_not_delivered_for_it() -> None:
    deciding = Deciding(program(policies=[policy(rule_list=NOT_RECEIVED)], rules=RULES))
    assert not deciding.plan(REQUEST, "RequestReceived", "Metadata").routes
    assert deciding.plan(REQUEST, "ResponseComplete", "Metadata").routes


def test_what_was_recorded_is_never_raised_and_the_shortfall_is_told() -> None:
    found = plan(policy("bodies", rule_list=KEEPS), recorded="Metadata")
    assert [route.wanted.level for route in found.routes] == [Level.METADATA]
    assert [decided.covered for decided in found.decided] == [False]
    assert [decided.covered for decided in plan(policy("metadata", rule_list=METADATA)).decided] == [True]


def test_only_sinks_that_nobody_but_a_tenant_fills_count_as_the_tenants() -> None:
    found = plan(
        policy("platform", sinks=("audit-system/shared",)),
        policy("silent", rule_list=NOTHING, sinks=("team-a/own",)),
        tenants("guest", sinks=("audit-system/shared", "team-a/own")),
    )
    assert found.guests == {"team-a/own"}


def test_a_tenant_is_asked_about_its_own_namespace_only() -> None:
    both = (
        policy("platform"),
        tenants("guest", sinks=("team-a/own",)),
        tenants("other", "team-b", sinks=("team-b/own",)),
    )
    assert {name for route in plan(*both).routes for name in route.sinks} == {"audit-system/siem", "team-a/own"}


@pytest.mark.parametrize(
    ("platforms", "platform_redacts", "tenant_redacts", "redacted"),
    [
        (KEEPS, True, False, True),  # what the platform redacts stays redacted
        (KEEPS, False, True, False),  # a tenant blinds no sink that it shares
        (METADATA, False, True, True),  # the tenant's wish is what brings the bodies
        (METADATA, True, False, True),
    ],
)
def test_redactions_that_count(*, platforms: int, platform_redacts: bool, tenant_redacts: bool, redacted: bool) -> None:
    (route,) = plan(
        policy("platform", rule_list=platforms, redactions=(REDACTED,) if platform_redacts else ()),
        tenants("guest", rule_list=KEEPS, redactions=(REDACTED,) if tenant_redacts else ()),
    ).routes
    raw = msgspec.Raw(b'{"kind":"Login","apiVersion":"example.com/v1","spec":{"password":"hunter2"}}')
    result = route.wanted.redacting.redact(REQUEST, None, {"requestObject": raw}, "")
    assert ("requestObject" in result.fields) == redacted
    assert b"hunter2" not in bytes(result.fields.get("requestObject") or b"")


def test_a_tenants_redactions_cannot_take_long_where_the_platforms_may() -> None:
    """Many paths over a large body: what would take too long goes as a whole, by whomever it is the tenant's."""
    paths = tuple(f"spec.a{number}" for number in range(100))
    many = msgspec.structs.replace(REDACTED, paths=paths)
    raw = msgspec.Raw(b'{"kind":"Login","apiVersion":"example.com/v1","spec":{"x":"' + b"x" * 300_000 + b'"}}')
    for policies, whole in (
        ((tenants("guest", redactions=(many,)),), False),
        ((policy("platform"), tenants("guest", redactions=(many,))), True),
        ((policy("platform", rule_list=METADATA), tenants("guest", redactions=(many,))), False),
    ):
        (route,) = plan(*policies).routes
        result = route.wanted.redacting.redact(REQUEST, None, {"requestObject": raw}, "")
        assert (result.failed == ()) == whole


@pytest.mark.parametrize(
    ("stage", "level"), [("ResponseComplete", "None"), ("ResponseComplete", "x"), ("x", "Metadata")]
)
def test_no_policy_is_asked_about_what_no_api_server_records(stage: str, level: str) -> None:
    with pytest.raises(EventError):
        Deciding(program()).plan(REQUEST, stage, level)
