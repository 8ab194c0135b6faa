"""Programs: swapped as a whole while events come in, the newest wins, a broken one changes nothing and is said."""

import asyncio
import gzip
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from receiving import (
    API_SERVERS,
    OPERATOR,
    Setup,
    event,
    event_list,
    eventually,
    name_clients,
    on_a_claim,
    policy,
    program,
    receiving,
    sink,
)

from audit_operator.receiver import running as running_module
from audit_operator.receiver.deciding import Deciding
from audit_operator.render.objects import text_hash
from audit_operator.render.program import (
    Program,
    RuleList,
    TenantProgram,
    WireRedaction,
    WireResources,
    WireRule,
    encode,
)
from audit_operator.render.report import ClientNames


def run(folder: Path, test: Callable[[Setup], Coroutine[Any, Any, None]], first: Program, pod: str = "") -> None:
    async def whole() -> None:
        async with receiving(folder, first, pod) as setup:
            await test(setup)

    uvloop.run(whole())


def at(level: str, **rest: Any) -> Program:
    return program(rules=[RuleList(rules=(WireRule(level=level),))], **rest)  # type: ignore[arg-type]


async def push(setup: Setup, what: Program | bytes) -> int:
    body = what if isinstance(what, bytes) else encode(what).encode()
    return (await setup.ask("PUT", "/program", body))[0]


async def in_force(setup: Setup) -> str:
    return str((await setup.status())["program"]["hash"])


async def looked(setup: Setup) -> None:
    """Until the receiver has looked at all its files again, those that are looked at last, too."""
    for marker in ("first-look", "second-look"):
        name_clients(setup.folder, ClientNames(api_servers=(*API_SERVERS, marker), operators=(OPERATOR,)))
        await eventually(lambda marker=marker: marker in setup.receiver.clients.names.api_servers)


def test_a_pushed_program_is_in_force_when_the_push_is_answered(tmp_path: Path) -> None:
    async def test(setup: Setup) -> None:
        assert await setup.post(event_list(event(1))) == 200
        assert await push(setup, at("Metadata")) == 200
        assert await in_force(setup) == text_hash(encode(at("Metadata")))
        assert await setup.post(event_list(event(2))) == 200
        assert await push(setup, gzip.compress(encode(at("Minimal")).encode())) == 200
        assert await setup.post(event_list(event(3))) == 200
        await eventually(lambda: len(setup.lines()) == 3)

    run(tmp_path, test, at("RequestResponse"))
    assert [line["level"] for line in Setup(tmp_path, None).lines()] == ["RequestResponse", "Metadata", "Minimal"]


def test_a_changed_file_is_taken_up(tmp_path: Path) -> None:
    async def test(setup: Setup) -> None:
        setup.mount(at("Minimal"))
        await eventually(lambda: in_force(setup), lambda found: found == text_hash(encode(at("Minimal"))))

    run(tmp_path, test, at("RequestResponse"))


def test_a_file_that_lags_behind_what_was_pushed_does_not_win(tmp_path: Path) -> None:
    steps = [at("RequestResponse"), at("Request"), at("Metadata")]
    last = text_hash(encode(steps[2]))

    async def first(setup: Setup) -> None:
        for each in steps[1:]:
            assert await push(setup, each) == 200
        setup.mount(steps[1])
        await looked(setup)
        assert await in_force(setup) == last

    async def second(setup: Setup) -> None:
        # Over a restart, too. But what was never pushed was written by somebody else.
        assert await in_force(setup) == last
        setup.mount(at("Minimal"))
        await eventually(lambda: in_force(setup), lambda found: found == text_hash(encode(at("Minimal"))))

    run(tmp_path, first, steps[0])
    run(tmp_path, second, steps[1])


def test_the_file_of_before_a_push_does_not_come_back(tmp_path: Path) -> None:
    old, new = at("RequestResponse"), at("Metadata")
    last = text_hash(encode(new))

    async def first(setup: Setup) -> None:
        assert await push(setup, new) == 200
        # What is refused makes the receiver look at the file again, which still shows what was before.
        assert await push(setup, b"{") == 422
        await looked(setup)
        assert await in_force(setup) == last

    async def second(setup: Setup) -> None:
        assert await in_force(setup) == last
        setup.mount(old)  # the same, written again
        await looked(setup)
        assert await in_force(setup) == last

    run(tmp_path, first, old)
    run(tmp_path, second, old)


def test_what_was_removed_while_a_receiver_was_away_does_not_come_back_in_its_next_pod(tmp_path: Path) -> None:
    """A policy came and went: the program is again what it was before, and a kubelet gives it to the new pod."""
    before, between = at("Metadata"), at("RequestResponse")
    wanted = text_hash(encode(before))

    async def first(setup: Setup) -> None:
        assert await push(setup, between) == 200

    async def of_the_same_pod(setup: Setup) -> None:
        assert await in_force(setup) == text_hash(encode(between))

    async def as_removed(setup: Setup) -> None:
        assert await in_force(setup) == wanted
        await looked(setup)
        assert await in_force(setup) == wanted

    async def late_again(setup: Setup) -> None:
        assert await push(setup, between) == 200
        setup.mount(before)
        await looked(setup)
        assert await in_force(setup) == text_hash(encode(between))

    run(tmp_path, first, before, "one")
    run(tmp_path, of_the_same_pod, before, "one")
    run(tmp_path, as_removed, before, "two")
    run(tmp_path, as_removed, before, "two")
    run(tmp_path, late_again, before, "two")
    run(tmp_path, of_the_same_pod, before, "two")


def test_a_file_that_cannot_run_leaves_a_new_pod_what_was_pushed_to_the_one_before(tmp_path: Path) -> None:
    before, pushed = at("Metadata"), at("RequestResponse")

    async def push_it(setup: Setup) -> None:
        assert await push(setup, pushed) == 200

    async def keep_it(setup: Setup) -> None:
        assert await in_force(setup) == text_hash(encode(pushed))

    async def until_it_can(setup: Setup) -> None:
        assert await in_force(setup) == text_hash(encode(before))

    run(tmp_path, push_it, before, "one")
    run(tmp_path, keep_it, program(policies=[policy(sinks=["a/b"])]), "two")
    run(tmp_path, until_it_can, before, "two")


BROKEN: dict[str, bytes] = {
    "no JSON": b"{",
    "another schema": encode(program()).replace("/v1", "/v9", 1).encode(),
    "a field of a newer version": encode(program()).replace('"cluster"', '"brandNew": 1, "cluster"').encode(),
    "gzip that is cut off": gzip.compress(encode(program()).encode())[:-9],
    "a rule list that is not there": encode(program(policies=[policy(rule_list=3)])).encode(),
    "a sink that is not there": encode(program(policies=[policy(sinks=["a/b"])])).encode(),
    "a network that is none": encode(
        program(
            tenants=TenantProgram(
                root_namespace="audit-system", journal_bytes=1, events_per_second=1, refused_networks=("10.0.0.0/33",)
            )
        )
    ).encode(),
    "a redaction that cannot work": encode(
        program(
            policies=[policy(redactions=(WireRedaction(resources=(WireResources(),), paths=("..",), action="Mask"),))]
        )
    ).encode(),
    "a hash without a key": encode(
        program(
            policies=[policy(redactions=(WireRedaction(resources=(WireResources(),), paths=("a",), action="Hash"),))]
        )
    ).encode(),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_program_that_cannot_run_changes_nothing_and_is_said(what: str, tmp_path: Path) -> None:
    good = at("Metadata")

    async def test(setup: Setup) -> None:
        status, body, _ = await setup.ask("PUT", "/program", BROKEN[what])
        assert status == 422
        assert body
        found = (await setup.status())["program"]
        assert (found["hash"], bool(found["refused"])) == (text_hash(encode(good)), True)
        assert await setup.post(event_list(event(1))) == 200
        assert await push(setup, at("Minimal")) == 200
        assert not (await setup.status())["program"]["refused"]

    run(tmp_path, test, good)
    assert [line["level"] for line in Setup(tmp_path, None).lines()] == ["Metadata"]


def test_a_swap_under_load_loses_no_event(tmp_path: Path) -> None:
    async def test(setup: Setup) -> None:
        async def load(first: int) -> None:
            for number in range(first, first + 1000, 10):
                assert await setup.post(event_list(*(event(n) for n in range(number, number + 10)))) == 200

        async def swaps() -> None:
            for number in range(6):
                changed = sink(timeout=5.0 + number)
                level = ("Metadata", "Request")[number % 2]
                assert await push(setup, at(level, sinks=[changed])) == 200
                await asyncio.sleep(0.05)

        await asyncio.gather(load(0), load(1000), swaps())
        await eventually(lambda: len(setup.lines()) == 2000)

    run(tmp_path, test, at("RequestResponse"))
    numbers = [line["auditID"] for line in Setup(tmp_path, None).lines()]
    assert len(set(numbers)) == 2000


def test_posts_are_answered_while_a_large_program_is_made_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(what: Program, key: bytes) -> Deciding:
        if what.rule_lists[0].rules[0].level == "Metadata":
            begun.set()
            go_on.wait(30)
        return Deciding(what, key)

    monkeypatch.setattr(running_module, "Deciding", slow)

    async def test(setup: Setup) -> None:
        first = asyncio.create_task(push(setup, at("Metadata")))
        await eventually(begun.is_set)
        second = asyncio.create_task(push(setup, at("Minimal")))
        assert await setup.post(event_list(event(1))) == 200
        assert not first.done()
        go_on.set()
        assert [await first, await second] == [200, 200]
        # What came last is in force, though it was the quicker one.
        assert await in_force(setup) == text_hash(encode(at("Minimal")))

    run(tmp_path, test, at("RequestResponse"))
    assert [line["level"] for line in Setup(tmp_path, None).lines()] == ["RequestResponse"]


def test_series_of_what_is_gone_do_not_pile_up(tmp_path: Path) -> None:
    async def test(setup: Setup) -> None:
        async def metrics() -> str:
            return (await setup.receiver.metrics.text()).decode()

        for number in range(3):
            name = f"audit-system/sink-{number}"
            now = program(policies=[policy(f"policy-{number}", sinks=[name])], sinks=[sink(f"sink-{number}")])
            assert await push(setup, now) == 200
            assert await setup.post(event_list(event(number, level="Metadata"))) == 200
            log = setup.receiver.journal.logs[name]
            await eventually(lambda log=log: log.backlog == 0)
        text = await metrics()
        assert 'audit_receiver_delivered_events_total{sink="audit-system/sink-2"} 1.0' in text
        assert "policy-2" in text
        for gone in ("policy-0", "policy-1", "sink-0", "sink-1"):
            assert gone not in text

        async def not_covered() -> Any:
            return (await setup.status())["notCovered"]

        await eventually(not_covered, lambda found: found == {"audit-system/policy-2": 1})

    run(tmp_path, test, program())


def test_that_less_was_recorded_than_a_policy_asked_for_is_forgotten_once_it_asks_for_less(tmp_path: Path) -> None:
    lists = [RuleList(rules=(WireRule(level=level),)) for level in ("RequestResponse", "Metadata")]  # type: ignore[arg-type]
    both = program(rules=lists, policies=[policy(), policy("other")])
    less = program(rules=lists, policies=[policy(rule_list=1), policy("other")])

    async def test(setup: Setup) -> None:
        async def not_covered() -> Any:
            return (await setup.status())["notCovered"]

        assert await setup.post(event_list(event(1, level="Metadata"))) == 200
        await eventually(not_covered, lambda found: found == {"audit-system/all": 1, "audit-system/other": 1})
        assert await push(setup, less) == 200
        assert await not_covered() == {"audit-system/other": 1}
        # It counts anew.
        assert await push(setup, both) == 200
        assert await setup.post(event_list(event(2, level="Metadata"))) == 200
        await eventually(not_covered, lambda found: found == {"audit-system/all": 1, "audit-system/other": 2})

    run(tmp_path, test, both)


def test_sinks_come_and_go(tmp_path: Path) -> None:
    both = program(sinks=[sink(), sink("other")], policies=[policy(sinks=["audit-system/siem", "audit-system/other"])])

    async def test(setup: Setup) -> None:
        assert await setup.post(event_list(event(1))) == 200
        assert await push(setup, both) == 200
        assert await setup.post(event_list(event(2))) == 200
        await eventually(lambda: len(setup.lines("other")) == 1)
        assert await push(setup, program()) == 200
        assert await setup.post(event_list(event(3))) == 200
        await eventually(lambda: len(setup.lines()) == 3)
        assert [each["name"] for each in (await setup.status())["sinks"]] == ["audit-system/siem"]
        assert not (setup.folder / "journal/sinks/audit-system/other").exists()

    run(tmp_path, test, program())
    assert len(Setup(tmp_path, None).lines("other")) == 1


def test_events_for_a_sink_that_is_gone_wait_for_it(tmp_path: Path) -> None:
    away = sink("other", type="http", settings={"url": "http://127.0.0.1:1/"})
    names = ["audit-system/siem", "audit-system/other"]

    async def test(setup: Setup) -> None:
        assert await setup.post(event_list(event(1))) == 200
        assert await push(setup, program()) == 200
        assert (await setup.status())["orphans"] == {"audit-system/other": 1}
        back = program(sinks=[sink(), sink("other")], policies=[policy(sinks=names)])
        assert await push(setup, back) == 200
        await eventually(lambda: len(setup.lines("other")) == 1)
        assert (await setup.status())["orphans"] == {}

    run(tmp_path, test, program(sinks=[sink(), away], policies=[policy(sinks=names)]))


def test_a_sink_that_this_version_does_not_know_costs_no_other(tmp_path: Path) -> None:
    newer = sink("other", type="carrierPigeon", settings={})

    async def test(setup: Setup) -> None:
        assert await setup.post(event_list(event(1))) == 200
        await eventually(lambda: len(setup.lines()) == 1)
        found = {each["name"]: each for each in (await setup.status())["sinks"]}["audit-system/other"]
        assert (found["state"], found["backlogEvents"]) == ("Misconfigured", 1)
        assert "carrierPigeon" in found["message"]

    both = ["audit-system/siem", "audit-system/other"]
    run(tmp_path, test, program(sinks=[sink(), newer], policies=[policy(sinks=both)]))


# --- room ------------------------------------------------------------------------------------------------------------


async def fill(setup: Setup, first: int, posts: int) -> list[int]:
    answers = []
    for number in range(first, first + posts):
        answers.append(await setup.post(event_list(event(number, requestURI="/" + "x" * 100_000))))
        setup.receiver.running._measured = 0.0
    return answers


def test_at_the_high_water_mark_api_servers_are_told_to_wait_and_nothing_is_lost(tmp_path: Path) -> None:
    away = sink(type="http", settings={"url": "http://127.0.0.1:1/"})

    async def test(setup: Setup) -> None:
        answers = await fill(setup, 0, 30)
        taken = answers.count(200)
        assert set(answers) == {200, 503}
        assert answers == [200] * taken + [503] * (30 - taken)
        _, _, headers = await setup.ask("POST", "/audit", event_list(event(99)), "kube-apiserver")
        assert headers["Retry-After"] == "5"
        assert not (await setup.status())["ready"]
        # It is back: everything is delivered, and events are taken again.
        assert await push(setup, program(sinks=[on_a_claim()], journal_limit=1 << 20)) == 200
        await eventually(lambda: len(setup.lines(root="claims/archive")) == taken)
        await eventually(lambda: not setup.receiver.running.refusal)
        assert await fill(setup, 100, 1) == [200]

    run(tmp_path, test, program(sinks=[away], journal_limit=1 << 20))


def test_a_dead_sink_fills_its_own_part_only(tmp_path: Path) -> None:
    away = sink("dead", type="http", settings={"url": "http://127.0.0.1:1/"})
    both = policy(sinks=["audit-system/siem", "audit-system/dead"])

    async def test(setup: Setup) -> None:
        assert await fill(setup, 0, 60) == [200] * 60
        await eventually(lambda: len(setup.lines(root="claims/archive")) == 60)
        found = {each["name"]: each for each in (await setup.status())["sinks"]}
        dead = found["audit-system/dead"]
        assert dead["dropping"]
        assert dead["dropped"] + dead["backlogEvents"] == 60
        assert dead["backlogBytes"] <= dead["shareBytes"] + 300_000
        assert found["audit-system/siem"]["dropped"] == 0

    run(tmp_path, test, program(sinks=[on_a_claim(), away], policies=[both], journal_limit=8 << 20))


def test_a_tenants_dead_sink_never_costs_the_platform_an_event(tmp_path: Path) -> None:
    away = sink("dead", "default", type="http", settings={"url": "http://127.0.0.1:1/"})
    policies = [policy(), policy("t", namespace="default", tenant="default", sinks=["default/dead"])]

    async def test(setup: Setup) -> None:
        answers = []
        for number in range(60):
            uri = "/api/v1/namespaces/default/pods/" + "x" * 100_000
            answers.append(await setup.post(event_list(event(number, requestURI=uri))))
            setup.receiver.running._measured = 0.0
        assert answers == [200] * 60
        await eventually(lambda: len(setup.lines(root="claims/archive")) == 60)

    run(tmp_path, test, program(sinks=[on_a_claim(), away], policies=policies, journal_limit=4 << 20))


def test_a_failing_disk_makes_it_unready_until_it_works_again(tmp_path: Path) -> None:
    async def test(setup: Setup) -> None:
        disk = setup.receiver.journal._disk
        whole = type(disk).sync

        def broken(self: Any, file: int) -> None:
            raise OSError(5, "Input/output error")

        type(disk).sync = broken  # type: ignore[method-assign]
        try:
            assert await setup.post(event_list(event(1))) == 503
            assert not (await setup.status())["ready"]
            assert await setup.post(event_list(event(1))) == 503
        finally:
            type(disk).sync = whole  # type: ignore[method-assign]
        await eventually(lambda: setup.receiver.running.failure == "")
        assert await setup.post(event_list(event(1))) == 200
        await eventually(lambda: len(setup.lines()) == 1)

    run(tmp_path, test, program())
    assert len(Setup(tmp_path, None).lines()) == 1


def test_files_of_sinks_count_as_the_journal_does(tmp_path: Path) -> None:
    async def test(setup: Setup) -> None:
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files/old.log").write_bytes(bytes(2 << 20))
        await eventually(lambda: setup.receiver.running.refusal.startswith("journal and files take"))
        assert await setup.post(event_list(event(1))) == 503
        (tmp_path / "files/old.log").unlink()
        await eventually(lambda: not setup.receiver.running.refusal)
        assert await setup.post(event_list(event(1))) == 200

    run(tmp_path, test, program(journal_limit=2 << 20))


def test_new_settings_of_a_dead_sink_are_in_force_at_once(tmp_path: Path) -> None:
    away = sink(type="http", settings={"url": "http://127.0.0.1:1/"}, initial_backoff=60.0, max_backoff=60.0)

    async def test(setup: Setup) -> None:
        assert await setup.post(event_list(event(1))) == 200
        await eventually(lambda: setup.receiver.running.workers["audit-system/siem"].condition.error)
        async with asyncio.timeout(3):
            assert await push(setup, program()) == 200
        await eventually(lambda: len(setup.lines()) == 1)

    run(tmp_path, test, program(sinks=[away]))
