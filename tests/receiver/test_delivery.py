"""Which event a sink cannot take, which sink takes no event, and what that costs the others."""

import asyncio
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aws_doubles import S3
from elasticsearch_double import Elasticsearch
from faults import Fault, FaultyServer, Reply, Request, closed, hang, no_client_certificate, reset, status
from receiving import Setup, event, event_list, eventually, program, receiving, sink
from sink_cases import credential, sink_program

from audit_operator.render.program import SinkProgram, WireBatch

SIEM = "audit-system/siem"


class Collector:
    """Takes lines of JSON, unless ``what`` has something else to say of one of them."""

    def __init__(self, what: Callable[[dict[str, Any]], Reply | Fault | None] = lambda _: None) -> None:
        self.what = what
        self.events: list[dict[str, Any]] = []
        self.server = FaultyServer(self.answer, tls=False)

    def answer(self, request: Request) -> Reply | Fault:
        events = [json.loads(line) for line in request.body.splitlines()]
        for each in events:
            if (said := self.what(each)) is not None:
                return said
        self.events += events
        return Reply()

    def sink(self, **rest: Any) -> SinkProgram:
        return sink(**{"type": "http", "settings": {"url": f"{self.server.url}/audit"}, "batch": batch(10), **rest})

    @property
    def numbers(self) -> list[int]:
        return [number(each) for each in self.events]


def batch(events: int) -> WireBatch:
    return WireBatch(max_events=events, max_bytes=5 << 20, max_age=0.02)


def number(event_: dict[str, Any]) -> int:
    return int(event_["auditID"][-12:])


def run(
    server: FaultyServer,
    program_: Callable[[], SinkProgram],
    folder: Path,
    test: Callable[[Setup], Coroutine[Any, Any, None]],
) -> None:
    async def whole() -> None:
        async with server, receiving(folder, program(sinks=[program_()])) as setup:
            await test(setup)

    uvloop.run(whole())


async def post(setup: Setup, *numbers: int, **changes: Any) -> None:
    assert await setup.post(event_list(*(event(each, **changes) for each in numbers))) == 200


async def delivered(setup: Setup, seconds: float = 30.0) -> None:
    await eventually(lambda: setup.receiver.journal.logs[SIEM].backlog == 0, seconds=seconds)


async def state(setup: Setup) -> Any:
    (found,) = (await setup.status())["sinks"]
    return found


def quarantined(setup: Setup) -> list[int]:
    return [number(json.loads(bytes(each.event))) for each in setup.receiver.quarantine.entries(SIEM)]


POISONED: dict[str, Fault] = {
    "connection reset": reset(),
    "connection closed": closed(),
    "no answer in time": hang(),
    "500": status(500, b"oops"),
    "502 of a proxy": status(502),
    "403 of a firewall": status(403, b"blocked"),
}


@pytest.mark.parametrize("fault", POISONED)
@pytest.mark.parametrize("concurrency", [1, 3])
def test_an_event_that_a_server_cannot_stand_costs_no_other(fault: str, concurrency: int, tmp_path: Path) -> None:
    poison = {0, 13, 14, 57, 99}
    collector = Collector(lambda each: POISONED[fault] if number(each) in poison else None)

    async def test(setup: Setup) -> None:
        for first in range(0, 100, 20):
            await post(setup, *range(first, first + 20))
        # The last event has nothing behind it that could tell whether it is the event or the sink.
        following = itertools.count(100)
        while setup.receiver.journal.logs[SIEM].backlog:
            await post(setup, next(following))
            await asyncio.sleep(0.05)
        assert sorted(quarantined(setup)) == sorted(poison)
        reasons = {each.reason for each in setup.receiver.quarantine.entries(SIEM)}
        assert all("that is so for this event alone, others are taken" in reason for reason in reasons)
        assert (await state(setup))["state"] == "Delivering"

    run(collector.server, lambda: collector.sink(concurrency=concurrency, timeout=0.3), tmp_path, test)
    good = [each for each in range(max(collector.numbers) + 1) if each not in poison]
    assert sorted(collector.numbers) == good
    if concurrency == 1:
        assert collector.numbers == good


def test_a_server_that_is_down_for_long_costs_no_event_and_no_order(tmp_path: Path) -> None:
    failures = [status(500), reset(), status(502), closed(), status(503)] * 20
    collector = Collector(lambda _: failures.pop() if failures else None)

    async def test(setup: Setup) -> None:
        await post(setup, *range(100))
        await eventually(lambda: len(collector.events) == 100, seconds=30)
        await delivered(setup)
        assert not quarantined(setup)

    run(collector.server, collector.sink, tmp_path, test)
    assert collector.numbers == list(range(100))


def test_a_failure_or_two_do_not_take_a_batch_apart(tmp_path: Path) -> None:
    """Whole, it is the same batch by the same name, which many servers drop if they have it."""
    failures = [reset(), status(500)]
    collector = Collector(lambda _: failures.pop() if failures else None)

    async def test(setup: Setup) -> None:
        await post(setup, *range(10))
        await delivered(setup)

    run(collector.server, collector.sink, tmp_path, test)
    assert len({request.headers["idempotency-key"] for request in collector.server.requests}) == 1
    assert len(collector.server.requests) == 3


NESTED = {"spec": {"deep": [[[1]]]}}


@pytest.mark.parametrize(
    ("stands", "arrives"),
    [
        (
            lambda each: isinstance(each.get("requestObject"), str | None),
            {"requestObject": '{"spec":{"deep":[[[1]]]}}'},
        ),
        (
            lambda each: "requestObject" not in each,
            {"annotations": {"audit-operator.dev/omitted": "requestObject: the sink does not take it"}},
        ),
    ],
    ids=["strings", "none"],
)
def test_what_a_server_cannot_stand_for_its_bodies_arrives_in_another_form(
    stands: Callable[[dict[str, Any]], bool], arrives: dict[str, Any], tmp_path: Path
) -> None:
    collector = Collector(lambda each: None if stands(each) else closed())

    async def test(setup: Setup) -> None:
        await post(setup, *range(5))
        await post(setup, 5, requestObject=NESTED)
        await post(setup, *range(6, 20))
        await delivered(setup)
        assert not quarantined(setup)

    run(collector.server, collector.sink, tmp_path, test)
    assert sorted(collector.numbers) == list(range(20))
    (poison,) = [each for each in collector.events if number(each) == 5]
    assert poison.items() >= arrives.items()


def test_an_answer_of_nothing_is_searched_for_the_event_behind_it(tmp_path: Path) -> None:
    """VictoriaLogs stores what comes before a document that is nested too deep, and answers 200 with nothing."""
    stored: Counter[int] = Counter()
    double = Elasticsearch()

    def answer(request: Request) -> Reply:
        lines = request.body.splitlines()
        for at, line in enumerate(lines[1::2]):
            if b"[[[" in line and b'"[[[' not in line:
                return Reply(200, b"")
            stored[number(json.loads(line))] += 1
            del at
        return double.answer(request)

    server = FaultyServer(answer, tls=False)

    def program_() -> SinkProgram:
        credential(tmp_path, "es", "apiKey", "x")
        return sink(type="elasticsearch", settings={"urls": [server.url]}, batch=batch(50))

    double.answer = lambda request: Reply(  # type: ignore[method-assign]
        200,
        json.dumps({"errors": False, "items": [{"create": {"status": 201}}] * request.body.count(b'"_id"')}).encode(),
    )

    async def test(setup: Setup) -> None:
        await post(setup, *range(30))
        await post(setup, 30, requestObject=[[[[1]]]])
        for each in range(31, 60):
            await post(setup, each)
        await delivered(setup)
        assert not quarantined(setup)

    run(server, program_, tmp_path, test)
    assert set(stored) == set(range(60))
    # Three times as a whole, then once for each time it is halved.
    assert max(stored.values()) <= 3 + 6


# --- a refusal that is not about the event ---------------------------------------------------------------------------


@pytest.mark.parametrize("events", [1, 3, 16, 100])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_sink_that_refuses_every_event_alike_keeps_them(
    events: int, concurrency: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    collector = Collector(lambda _: no_client_certificate())

    async def test(setup: Setup) -> None:
        for each in range(events):
            await post(setup, each)
        found = await eventually(lambda: state(setup), lambda found: found["state"] == "Misconfigured")
        assert "No required SSL certificate was sent" in found["message"]
        asked = len(collector.server.requests)
        await eventually(lambda: len(collector.server.requests) > asked + 50)
        found = await state(setup)
        assert (found["state"], found["lastDelivery"], found["deadLettered"]) == ("Misconfigured", None, 0)
        assert found["backlogEvents"] == events
        assert not quarantined(setup)
        assert sum(line.name == "audit_operator.receiver.delivery" for line in caplog.records) <= 2
        collector.what = lambda _: None  # corrected
        await delivered(setup)
        assert not quarantined(setup)
        assert (await state(setup))["state"] == "Delivering"

    with caplog.at_level(logging.INFO):
        run(collector.server, lambda: collector.sink(concurrency=concurrency), tmp_path, test)
    assert sorted(collector.numbers) == list(range(events))
    if concurrency == 1:
        assert collector.numbers == list(range(events))


def test_documents_that_are_all_refused_alike_are_kept(tmp_path: Path) -> None:
    verdicts = [(400, "illegal_argument_exception", "Limit of total fields [1000] has been exceeded")]
    double = Elasticsearch(lambda _: verdicts[0] if verdicts else None)
    server = FaultyServer(double.answer, tls=False)

    def program_() -> SinkProgram:
        credential(tmp_path, "es", "apiKey", "x")
        headers = {"apiKey": {"file": str(tmp_path / "credentials/secret_audit-system_es_apiKey")}}
        double.spec(server.url, tmp_path)
        return sink(type="elasticsearch", settings={"urls": [server.url], "auth": headers}, batch=batch(10))

    async def test(setup: Setup) -> None:
        await post(setup, *range(40))
        await eventually(lambda: state(setup), lambda found: found["state"] == "Misconfigured")
        assert not quarantined(setup)
        verdicts.clear()
        await delivered(setup)
        assert not quarantined(setup)

    run(server, program_, tmp_path, test)
    assert len(double.taken) == 40


def test_a_run_of_bad_events_blocks_no_good_ones(tmp_path: Path) -> None:
    """Who may write many events that a sink refuses could else stop it, with nothing taken before them."""
    collector = Collector(lambda each: status(400, b"cannot parse") if number(each) < 60 else None)

    async def test(setup: Setup) -> None:
        await post(setup, *range(65))
        await post(setup, *range(65, 100))
        await delivered(setup)
        assert sorted(quarantined(setup)) == list(range(60))

    run(collector.server, lambda: collector.sink(batch=batch(20)), tmp_path, test)
    assert sorted(collector.numbers) == list(range(60, 100))


def test_an_event_in_doubt_is_not_lost_when_the_sink_has_no_time_for_the_question(tmp_path: Path) -> None:
    answers = [*[status(400, b"no")] * 5, status(429, retry_after=0)]
    collector = Collector(
        lambda each: (answers.pop(0) if answers else status(400, b"no")) if number(each) == 3 else None
    )

    async def test(setup: Setup) -> None:
        await post(setup, *range(10))
        await eventually(lambda: len(collector.events) == 9)
        await post(setup, 10)
        await delivered(setup)
        assert not answers
        assert quarantined(setup) == [3]

    run(collector.server, collector.sink, tmp_path, test)


def test_a_refusal_waits_for_another_event_to_be_taken(tmp_path: Path) -> None:
    collector = Collector(lambda each: status(422, b"no") if number(each) == 0 else None)

    async def test(setup: Setup) -> None:
        await post(setup, 0)
        await eventually(lambda: state(setup), lambda found: found["state"] == "Misconfigured")
        assert not quarantined(setup)
        await post(setup, 1)
        await delivered(setup)
        assert quarantined(setup) == [0]
        assert (await state(setup))["state"] == "Delivering"

    run(collector.server, collector.sink, tmp_path, test)
    assert collector.numbers == [1]


def test_a_sink_that_says_something_else_of_each_event_is_believed(tmp_path: Path) -> None:
    words = ["".join(chr(97 + (each * 7 + at) % 26) for at in range(6)) for each in range(40)]
    collector = Collector(lambda each: status(400, f"no field {words[number(each)]}".encode()))

    async def test(setup: Setup) -> None:
        await post(setup, *range(40))
        await eventually(lambda: len(quarantined(setup)) >= 16)

    run(collector.server, collector.sink, tmp_path, test)


def test_log_lines_are_bounded_by_reasons_and_not_by_events(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    refusing = Collector(
        lambda each: status(400, f"event {number(each)} is bad".encode()) if number(each) % 2 else None
    )

    async def test(setup: Setup) -> None:
        await post(setup, *range(200))
        await post(setup, 200)
        await delivered(setup)
        assert len(quarantined(setup)) == 100

    with caplog.at_level(logging.INFO):
        run(refusing.server, refusing.sink, tmp_path, test)
    lines = [line.getMessage() for line in caplog.records if line.name == "audit_operator.receiver.delivery"]
    assert len([line for line in lines if "in quarantine" in line]) == 1
    assert len(lines) < 10


def test_a_sink_is_idle_until_it_has_taken_something(tmp_path: Path) -> None:
    collector = Collector()

    async def test(setup: Setup) -> None:
        assert (await state(setup))["state"] == "Idle"
        await post(setup, 0)
        await delivered(setup)
        assert (await state(setup))["state"] == "Delivering"

    run(collector.server, collector.sink, tmp_path, test)


def test_a_store_that_never_looks_into_an_event_gets_whole_batches_after_an_outage(tmp_path: Path) -> None:
    """Each part of a batch would be an object, and in a chain a promise of one."""
    double = S3()
    failures = [status(500), status(503), hang()] * 3
    server = FaultyServer(lambda request: failures.pop() if failures else double.answer(request), tls=False)

    def program_() -> SinkProgram:
        made = sink_program(tmp_path / "credentials", objectStore=double.spec(server.url, tmp_path))
        return sink(type="objectStore", settings=made.settings, batch=batch(50), timeout=0.3)

    async def test(setup: Setup) -> None:
        await post(setup, *range(50))
        await delivered(setup)

    run(server, program_, tmp_path, test)
    assert len(double.objects) == 2  # events and their manifest
    assert len(double.taken) == 50


# --- the cursor ------------------------------------------------------------------------------------------------------


def test_the_cursor_never_passes_a_batch_that_is_under_way(tmp_path: Path) -> None:
    """With deliveries side by side the second may be done long before the first; a crash then costs neither."""
    collector = Collector(lambda each: hang() if number(each) < 10 else None)

    async def first(setup: Setup) -> None:
        await post(setup, *range(10))
        await eventually(lambda: len(collector.server.requests) == 1)
        await post(setup, *range(10, 20))
        await eventually(lambda: collector.numbers == list(range(10, 20)))
        log = setup.receiver.journal.logs[SIEM]
        await eventually(lambda: setup.receiver.running.workers[SIEM].condition.delivered == 10)
        assert log.backlog == 20

    async def second(setup: Setup) -> None:
        await delivered(setup)

    run(collector.server, lambda: collector.sink(concurrency=2, timeout=60.0), tmp_path, first)
    collector.what = lambda _: None
    run(collector.server, lambda: collector.sink(concurrency=2), tmp_path, second)
    assert set(collector.numbers) == set(range(20))


def test_the_cursor_stays_at_an_event_that_nothing_is_known_of_and_goes_past_what_is(tmp_path: Path) -> None:
    bad = {7, 19}
    collector = Collector(lambda each: status(400, b"no") if number(each) in bad else None)

    async def first(setup: Setup) -> None:
        await post(setup, *range(10))
        await eventually(lambda: len(collector.events) == 9)
        await delivered(setup)
        await post(setup, *range(10, 20))
        await eventually(lambda: len(collector.events) == 18)
        await post(setup, 20, 21)
        await delivered(setup)
        assert quarantined(setup) == [7, 19]
        bad.update({22, 23})
        await post(setup, 22)
        await eventually(lambda: state(setup), lambda found: found["state"] == "Misconfigured")
        await post(setup, 23)
        await eventually(lambda: sum(b"23" in request.body for request in collector.server.requests) >= 2)
        # Neither is taken, and neither is lost if it ends here.
        assert setup.receiver.journal.logs[SIEM].backlog == 2

    async def second(setup: Setup) -> None:
        await delivered(setup)

    run(collector.server, collector.sink, tmp_path, first)
    bad.clear()
    run(collector.server, collector.sink, tmp_path, second)
    assert collector.numbers == [each for each in range(24) if each not in (7, 19)]


def test_what_was_taken_behind_an_event_in_doubt_is_not_sent_again_for_ever(tmp_path: Path) -> None:
    """An event that fails otherwise than by a refusal stays in doubt until others were taken twice."""
    collector = Collector(lambda each: closed() if number(each) == 9 else None)

    async def test(setup: Setup) -> None:
        await post(setup, *range(10))
        await eventually(lambda: len(collector.events) == 9)
        log = setup.receiver.journal.logs[SIEM]
        assert log.backlog == 10
        await post(setup, 10)
        await eventually(lambda: 10 in collector.numbers)
        await post(setup, 11)
        await delivered(setup)

    run(collector.server, collector.sink, tmp_path, test)
    assert collector.numbers == [*range(9), 10, 11]


def test_the_cursor_goes_past_a_batch_of_which_all_is_known_while_another_is_in_doubt(tmp_path: Path) -> None:
    collector = Collector(lambda each: status(400, b"no") if number(each) in (9, 19) else None)

    async def test(setup: Setup) -> None:
        await post(setup, *range(10))
        await eventually(lambda: len(collector.events) == 9)
        await post(setup, *range(10, 20))
        await eventually(lambda: setup.receiver.journal.logs[SIEM].backlog == 10)
        assert quarantined(setup) == [9]
        await post(setup, 20)
        await delivered(setup)
        assert quarantined(setup) == [9, 19]

    run(collector.server, collector.sink, tmp_path, test)
    assert collector.numbers == [*range(9), *range(10, 19), 20]
