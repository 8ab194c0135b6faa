"""What one tenant does costs no other and not the platform an event: parts of the journal, and events a second."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from faults import FaultyServer, Reply, Request
from hypothesis import given, settings
from hypothesis import strategies as st
from receiving import Setup, event, event_list, eventually, on_a_claim, policy, program, receiving, sink

from audit_operator.receiver.rates import BURST_SECONDS, WORK, WORK_BURST_SECONDS, WORK_TOGETHER, Rates
from audit_operator.receiver.shares import memory, name_of, shares
from audit_operator.render.program import PolicyProgram, Program, RuleList, SinkProgram, TenantProgram, WireRule, encode

LOOPBACK = ("127.0.0.1/32",)


def tenants(**rest: Any) -> TenantProgram:
    """Who may send to this machine, which stands for the internet here."""
    given: dict[str, Any] = {"journal_bytes": 1 << 30, "events_per_second": 1000, "networks": LOOPBACK}
    return TenantProgram(root_namespace="audit-system", **(given | rest))


def tenant(namespace: str, *sinks: str) -> PolicyProgram:
    return policy("own", namespace=namespace, tenant=namespace, sinks=sinks or [f"{namespace}/own"])


def http(url: str, namespace: str, name: str = "own", **rest: Any) -> SinkProgram:
    return sink(name, namespace, type="http", settings={"url": url}, **rest)


def of(namespace: str, number: int, **rest: Any) -> dict[str, Any]:
    """An event of a request in this namespace."""
    what = {"resource": "pods", "namespace": namespace, "name": "web", "apiVersion": "v1"}
    uri = f"/api/v1/namespaces/{namespace}/pods/web"
    return event(number, requestURI=uri, objectRef=what, **rest)


def run(folder: Path, test: Callable[[Setup], Coroutine[Any, Any, None]], first: Program) -> None:
    async def whole() -> None:
        async with receiving(folder, first) as setup:
            await test(setup)

    uvloop.run(whole())


async def push(setup: Setup, what: Program) -> None:
    assert (await setup.ask("PUT", "/program", encode(what).encode()))[0] == 200


async def sinks_of(setup: Setup) -> dict[str, Any]:
    return {each["name"]: each for each in (await setup.status())["sinks"]}


class Collector:
    """Takes events; hangs for ever with those whose path it was told to."""

    def __init__(self) -> None:
        self.taken: dict[str, list[Any]] = {}

    async def answer(self, request: Request) -> Reply:
        if request.path == "/hang":
            await asyncio.sleep(3600)
        self.taken.setdefault(request.path, []).extend(map(json.loads, request.body.splitlines()))
        return Reply()

    def ids(self, path: str) -> set[str]:
        return {each["auditID"] for each in self.taken.get(path, [])}


@contextlib.asynccontextmanager
async def collecting() -> AsyncIterator[tuple[Collector, str]]:
    collector = Collector()
    async with FaultyServer(collector.answer, tls=False) as server:
        yield collector, f"http://127.0.0.1:{server.port}"


def test_a_flood_for_a_sink_that_hangs_costs_nobody_else_an_event(tmp_path: Path) -> None:
    async def whole() -> None:
        async with collecting() as (collector, url):
            first = program(
                policies=[policy(), tenant("loud"), tenant("quiet")],
                sinks=[
                    on_a_claim(),
                    http(f"{url}/hang", "loud", concurrency=64, initial_backoff=0.0, max_backoff=0.0),
                    http(f"{url}/quiet", "quiet"),
                ],
                journal_limit=8 << 20,
                tenants=tenants(journal_bytes=2 << 20, events_per_second=100_000),
            )
            async with receiving(tmp_path, first) as setup:

                async def flood(server: str, numbers: range) -> set[int]:
                    answers = set()
                    for number in numbers:
                        body = event_list(*(of("loud", number * 20 + n, userAgent="x" * 8000) for n in range(20)))
                        answers.add(await setup.post(body, server))
                    return answers

                async def others() -> set[int]:
                    answers = set()
                    for number in range(100_000, 100_100):
                        body = event_list(of("quiet", number), of("default", number + 1000))
                        answers.add(await setup.post(body, "kube-apiserver-3"))
                    return answers

                answers = await asyncio.gather(
                    flood("kube-apiserver-1", range(60)), flood("kube-apiserver-2", range(100, 160)), others()
                )
                assert answers == [{200}, {200}, {200}]
                await eventually(lambda: len(collector.ids("/quiet")) == 100)
                everything = 2 * 60 * 20 + 200
                await eventually(lambda: len(setup.lines(root="claims/archive")) == everything)
                found = await sinks_of(setup)
                loud = found["loud/own"]
                assert loud["dropping"]
                assert "the part of the journal that namespace loud may have" in loud["whyDropping"]
                assert loud["dropped"] + loud["backlogEvents"] == 2 * 60 * 20
                assert loud["backlogBytes"] <= 4 << 20  # with what came between two looks
                assert found["audit-system/siem"]["dropped"] == found["quiet/own"]["dropped"] == 0
                assert (await setup.status())["ready"]

    uvloop.run(whole())


def test_more_events_than_a_namespace_may_have_are_dropped_for_its_own_sinks_alone(tmp_path: Path) -> None:
    async def whole() -> None:
        async with collecting() as (collector, url):
            most = 10
            burst = int(most * BURST_SECONDS)
            first = program(
                policies=[
                    policy(sinks=["audit-system/siem", "loud/shared"]),
                    tenant("loud", "loud/own", "loud/shared", "audit-system/archive"),
                    tenant("quiet"),
                ],
                sinks=[
                    on_a_claim(),
                    http(f"{url}/archive", "audit-system", "archive"),
                    http(f"{url}/loud", "loud"),
                    http(f"{url}/shared", "loud", "shared"),
                    http(f"{url}/quiet", "quiet"),
                ],
                tenants=tenants(events_per_second=most),
            )
            async with receiving(tmp_path, first) as setup:
                for start in range(0, 2 * burst, 100):
                    body = event_list(*(of("loud", start + n) for n in range(100)), of("quiet", 50_000 + start))
                    assert await setup.post(body) == 200
                # What the platform asks for is not the tenant's, wherever it goes.
                everything = 2 * burst + 2 * burst // 100
                await eventually(lambda: len(collector.ids("/quiet")) == 2 * burst // 100)
                await eventually(lambda: len(setup.lines(root="claims/archive")) == everything)
                await eventually(lambda: len(collector.ids("/shared")) == everything)
                found = await sinks_of(setup)
                for name, path in (("loud/own", "/loud"), ("audit-system/archive", "/archive")):
                    await eventually(lambda path=path: collector.ids(path))
                    assert found[name]["limited"] == found[name]["dropped"]
                    assert burst <= 2 * burst - found[name]["limited"] < 1.5 * burst
                    assert (found[name]["limiting"], found[name]["dropping"]) == (True, False)
                    assert "more than 10 events a second" in found[name]["whyDropping"]
                for name in ("audit-system/siem", "loud/shared", "quiet/own"):
                    assert (found[name]["limited"], found[name]["limiting"], found[name]["dropping"]) == (
                        0,
                        False,
                        False,
                    )
                # A limit that is raised is in force with the next POST.
                await push(setup, msgspec.structs.replace(first, tenants=tenants(events_per_second=10**6)))
                before = (await sinks_of(setup))["loud/own"]["limited"]
                assert await setup.post(event_list(*(of("loud", 90_000 + n) for n in range(500)))) == 200
                assert (await sinks_of(setup))["loud/own"]["limited"] == before

    uvloop.run(whole())


def test_tenants_fill_no_more_than_half_of_a_sink_that_the_platform_lets_them_use(tmp_path: Path) -> None:
    away = sink("archive", type="http", settings={"url": "http://127.0.0.1:1/"})
    of_default = RuleList(rules=(WireRule(level="Metadata", namespaces=("default",)),))
    everything = RuleList(rules=(WireRule(level="Metadata"),))

    async def test(setup: Setup) -> None:
        for number in range(60):
            assert await setup.post(event_list(of("team-a", number, userAgent="x" * 100_000))) == 200
            await setup.receiver.running.make_room()
        found = (await sinks_of(setup))["audit-system/archive"]
        assert found["dropped"] > 0
        assert not found["dropping"]
        for number in range(1000, 1005):
            assert await setup.post(event_list(of("default", number, userAgent="x" * 100_000))) == 200
        assert (await sinks_of(setup))["audit-system/archive"]["dropped"] == found["dropped"]

    policies = [
        policy(sinks=["audit-system/siem", "audit-system/archive"]),
        msgspec.structs.replace(tenant("team-a", "audit-system/archive"), rule_list=1),
    ]
    run(
        tmp_path,
        test,
        program(
            policies=policies,
            sinks=[on_a_claim(), away],
            rules=[of_default, everything],
            journal_limit=8 << 20,
            tenants=tenants(),
        ),
    )


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_sinks_that_come_and_go_take_no_more_than_the_part_of_their_namespace(tmp_path: Path) -> None:
    def with_sink(number: int) -> Program:
        return program(
            policies=[policy(), tenant("team-a", f"team-a/sink-{number}")],
            sinks=[on_a_claim(), http("http://127.0.0.1:1/", "team-a", f"sink-{number}")],
            journal_limit=64 << 20,
            tenants=tenants(journal_bytes=2 << 20),
        )

    async def test(setup: Setup) -> None:
        for round_ in range(6):
            await push(setup, with_sink(round_))
            for number in range(12):
                body = event_list(of("team-a", round_ * 100 + number, userAgent="x" * 100_000))
                assert await setup.post(body) == 200
            await setup.receiver.running.make_room()
        assert bytes_of(tmp_path / "journal/sinks/team-a") < 4 << 20
        await eventually(lambda: len(setup.lines(root="claims/archive")) == 72)
        found = (await sinks_of(setup))["team-a/sink-5"]
        assert found["backlogEvents"] > 0

    run(tmp_path, test, with_sink(0))


def test_what_a_tenants_sink_refuses_is_part_of_its_part(tmp_path: Path) -> None:
    async def whole() -> None:
        # It takes some: of a sink that refuses everything nothing goes to quarantine.
        async with FaultyServer(lambda request: Reply(400 if b"xxx" in request.body else 200), tls=False) as server:
            first = program(
                policies=[policy(), tenant("team-a")],
                sinks=[on_a_claim(), http(f"http://127.0.0.1:{server.port}", "team-a")],
                journal_limit=64 << 20,
                tenants=tenants(journal_bytes=1 << 20),
            )
            async with receiving(tmp_path, first) as setup:
                for number in range(40):
                    bad = of("team-a", number, userAgent="x" * 20_000)
                    assert await setup.post(event_list(bad, of("team-a", 100 + number))) == 200
                worker = setup.receiver.running.workers["team-a/own"]
                await eventually(lambda: worker.condition.error == "QuarantineFull", seconds=30)
                assert (await sinks_of(setup))["team-a/own"]["state"] == "QuarantineFull"
                kept = (tmp_path / "journal/quarantine/team-a/own.jsonl").stat().st_size
                assert 0 < kept <= (1 << 20) // 5 + 1
                # Of a sink that is gone it goes, too, once its namespace needs the room.
                await push(setup, program(policies=[policy()], sinks=[on_a_claim()], tenants=tenants()))
                await setup.receiver.running.make_room()
                assert (tmp_path / "journal/quarantine/team-a/own.jsonl").exists()
                small = program(policies=[policy()], sinks=[on_a_claim()], journal_limit=1 << 18, tenants=tenants())
                await push(setup, small)
                await setup.receiver.running.make_room()
                assert not (tmp_path / "journal/quarantine/team-a/own.jsonl").exists()

    uvloop.run(whole())


def test_who_comes_later_has_an_equal_part(tmp_path: Path) -> None:
    def with_tenants(number: int) -> Program:
        names = [f"team-{n}" for n in range(number)]
        return program(
            policies=[policy(), *(tenant(name) for name in names)],
            sinks=[on_a_claim(), *(http("http://127.0.0.1:1/", name) for name in names)],
            journal_limit=16 << 20,
            tenants=tenants(),
        )

    async def fill(setup: Setup, number: int, first: int, posts: int) -> None:
        for each in range(posts):
            body = event_list(of(f"team-{number}", first + each, userAgent="x" * 100_000))
            assert await setup.post(body) == 200
            await setup.receiver.running.make_room()

    async def test(setup: Setup) -> None:
        await fill(setup, 0, 0, 70)
        before = (await sinks_of(setup))["team-0/own"]
        await push(setup, with_tenants(4))
        await setup.receiver.running.make_room()
        assert (await sinks_of(setup))["team-0/own"]["backlogEvents"] == before["backlogEvents"], "nobody needs it yet"
        for number in (1, 2, 3):
            await fill(setup, number, number * 1000, 25)
            await setup.receiver.running.make_room()
        found = await sinks_of(setup)
        logs = [setup.receiver.journal.logs[f"team-{number}/own"].size for number in range(4)]
        assert sum(logs) <= 0.5 * (16 << 20)
        assert max(logs) <= 2 * min(logs)
        first = found["team-0/own"]
        assert first["dropped"] + first["backlogEvents"] == 70
        assert (await setup.status())["ready"]

    run(tmp_path, test, with_tenants(1))


def test_where_tenants_may_connect_to_is_in_force_at_once(tmp_path: Path) -> None:
    async def whole() -> None:
        async with collecting() as (collector, url):
            there = http(f"{url}/there", "team-a")

            def at(allowed: TenantProgram) -> Program:
                # No policy of the tenant's own: whose a sink is, its namespace says.
                return program(policies=[policy(sinks=["team-a/own"])], sinks=[there, sink()], tenants=allowed)

            async with receiving(tmp_path, at(tenants())) as setup:
                assert await setup.post(event_list(event(1))) == 200
                await eventually(lambda: len(collector.ids("/there")) == 1)
                await push(setup, at(tenants(networks=())))
                assert await setup.post(event_list(event(2))) == 200

                async def told() -> str:
                    return str((await sinks_of(setup))["team-a/own"]["message"])

                await eventually(told, lambda found: "may not connect" in found)
                assert len(collector.ids("/there")) == 1
                await push(setup, at(tenants()))
                await eventually(lambda: len(collector.ids("/there")) == 2)

    uvloop.run(whole())


# --- the parts themselves --------------------------------------------------------------------------------------------

SINKS = st.dictionaries(
    st.sampled_from(["audit-system", "a", "b", "c", "d"]), st.integers(1, 5), min_size=1, max_size=5
)


def divided(counts: dict[str, int], limit: int, concurrency: int = 1) -> Program:
    sinks = [
        sink(f"s{number}", namespace, concurrency=concurrency if namespace == "a" else 1)
        for namespace, count in counts.items()
        for number in range(count)
    ]
    mine = [policy(sinks=[name_of(each) for each in sinks])]
    return program(policies=mine, sinks=sinks, journal_limit=limit, tenants=tenants(journal_bytes=limit // 4))


@settings(deadline=None)
@given(counts=SINKS, limit=st.integers(1 << 20, 1 << 40))
def test_all_parts_together_stay_below_the_mark_at_which_api_servers_wait(counts: dict[str, int], limit: int) -> None:
    found = shares(divided(counts, limit))
    together = sum(found.logs.values()) + sum(found.quarantines.values())
    theirs = {namespace for namespace in counts if namespace != "audit-system"}
    assert together <= (0.9 * limit if theirs else limit)
    assert set(found.namespaces) == theirs
    for namespace in theirs:
        parts = (*found.logs.items(), *found.quarantines.items())
        assert sum(part for name, part in parts if name.startswith(f"{namespace}/")) <= found.namespaces[namespace]
    assert sum(found.namespaces.values()) <= found.tenants <= 0.4 * limit
    assert all(part <= limit // 4 for part in found.namespaces.values())


@settings(deadline=None)
@given(counts=SINKS, more=st.integers(1, 50), concurrency=st.integers(1, 64))
def test_what_one_namespace_writes_changes_no_others_part(counts: dict[str, int], more: int, concurrency: int) -> None:
    greedy = {**counts, "a": counts.get("a", 0) + more}
    modest = {**counts, "a": 1}
    for parts in (
        lambda what: shares(what).logs,
        lambda what: memory(what, 64 << 20),
    ):
        one, other = parts(divided(modest, 1 << 30)), parts(divided(greedy, 1 << 30, concurrency))
        assert {name: part for name, part in one.items() if not name.startswith("a/")} == {
            name: part for name, part in other.items() if not name.startswith("a/")
        }


@settings(deadline=None)
@given(waits=st.lists(st.floats(0, 5), max_size=300), rate=st.integers(1, 20))
def test_a_namespace_never_has_more_than_its_rate_and_always_as_much(waits: list[float], rate: int) -> None:
    now = 0.0
    rates = Rates(lambda: now)
    rates.allow(rate, ["loud", "quiet"])
    admitted = 0
    for wait in waits:
        now += wait
        admitted += sum(rates.admits("loud") for _ in range(50))
        assert admitted <= rate * (BURST_SECONDS + now) + 1e-6
    assert admitted >= min(50 * len(waits), int(rate * BURST_SECONDS))
    # Whoever keeps to it never waits, whatever others do.
    for _ in range(100):
        now += 1 / rate
        assert rates.admits("quiet")


def test_who_has_long_been_quiet_may_send_no_more_at_once_than_others() -> None:
    now = 0.0
    rates = Rates(lambda: now)
    rates.allow(10, ["quiet"])
    assert rates.admits("quiet")
    for pause in (1.0, 3600.0, 365 * 86400.0):
        now += pause
        assert sum(rates.admits("quiet") for _ in range(10_000)) <= 10 * BURST_SECONDS
    # Nor may what its events cost.
    now += 3600.0
    spent = 0.0
    while rates.admits("quiet"):
        rates.spend("quiet", 0.1)
        spent += 0.1
    assert spent <= WORK * WORK_BURST_SECONDS + 0.1


@settings(deadline=None)
@given(
    costs=st.lists(st.floats(0.0001, 0.05), min_size=1, max_size=300),
    greedy=st.integers(1, 20),
)
def test_work_for_tenants_is_bounded_and_each_has_its_part(costs: list[float], greedy: int) -> None:
    now = 0.0
    names = [f"greedy-{number}" for number in range(greedy)]
    rates = Rates(lambda: now)
    rates.allow(10**6, [*names, "modest"])
    worked = dict.fromkeys(names, 0.0)
    for cost in costs:
        now += 0.05
        for name in names:
            for _ in range(20):
                if rates.admits(name):
                    rates.spend(name, cost)
                    worked[name] += cost
    for work in worked.values():
        assert work <= WORK * (WORK_BURST_SECONDS + now) + max(costs)
    together = (now + WORK_BURST_SECONDS) * 2 * WORK_TOGETHER + (greedy + 1) * max(costs)
    assert sum(worked.values()) <= together + 1e-6
    # Whoever asks for little has it, whatever others do.
    for _ in range(50):
        now += 1.0
        for name in names:
            while rates.admits(name):
                rates.spend(name, 0.05)
        assert rates.admits("modest")
        rates.spend("modest", 0.5 * WORK_TOGETHER / (greedy + 1))


def test_without_a_limit_everything_is_admitted() -> None:
    rates = Rates()
    rates.allow(None, [])
    assert all(rates.admits("a") for _ in range(100_000))
