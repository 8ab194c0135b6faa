"""Programs reach real receivers by push, and what those report wakes a pass; whoever hangs or lies holds nobody up."""

import asyncio
import contextlib
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from audit_operator.controller import receivers as receivers_module
from audit_operator.controller.cluster import ApiError, WatchEvent
from audit_operator.controller.election import NotLeadingError
from audit_operator.controller.receivers import Credentials, Receivers, Target
from audit_operator.render.objects import text_hash
from audit_operator.render.program import Program, encode
from audit_operator.render.status import Condition

sys.path.insert(0, str(Path(__file__).parents[1] / "receiver"))
from receiving import Setup, client_certificate, event, event_list, eventually, policy, program, receiving, sink
from tls_certificates import authority


class Pods:
    """The API server, as far as pods go."""

    def __init__(self, **addresses: str) -> None:
        self.pods = {
            name: {
                "metadata": {"name": name},
                "status": {
                    "phase": "Running",
                    "podIP": address,
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            }
            for name, address in addresses.items()
        }
        self.denied = False
        self.events: asyncio.Queue[Any] = asyncio.Queue()

    async def list_metadata(self, *_: object) -> tuple[list[Any], str]:
        if self.denied:
            raise ApiError("list pods audit-system", 403, "Forbidden", "no such right", ())
        return [pod["metadata"] for pod in self.pods.values()], "1"

    async def watch_metadata(self, *_: object) -> AsyncIterator[Any]:
        while True:
            yield await self.events.get()

    async def get(self, _of: object, _namespace: str, name: str) -> Any:
        return self.pods.get(name)


class Operator:
    """What a pass and its surroundings are to `Receivers`."""

    def __init__(self, port: int, pods: Pods, ca: str) -> None:
        self.leads = True
        self.lease = 60.0
        self.pods = pods
        self.wakes = 0
        self._port = port
        made = client_certificate("audit-operator", ca)
        self._credentials = Credentials(authority().pem.decode(), made.certificate.decode(), made.key.decode())
        self.receivers = Receivers(pods, "audit-system", self._require, self._wake)  # type: ignore[arg-type]

    def _require(self) -> float:
        if not self.leads:
            raise NotLeadingError
        return self.lease

    def _wake(self) -> None:
        self.wakes += 1

    def target(self, wanted: Program) -> Target:
        text = encode(wanted)
        return Target(wanted, text, text_hash(text), self._port, "localhost", self._credentials)

    async def bring(self, wanted: Program) -> dict[str, Condition]:
        """The AuditBackend's conditions."""
        found = await self.receivers.bring(self.target(wanted))
        return {each.type: each for each in found.backend}

    def now(self) -> dict[str, Condition]:
        return {each.type: each for each in self.receivers.report().backend}


def run(
    tmp_path: Path,
    test: Callable[[Setup, Operator], Awaitable[None]],
    *,
    silent: bool = False,
    ca: str = "test CA",
) -> None:
    """``silent``: there is a second pod that takes connections and says nothing."""

    async def all_of_it(setup: Setup) -> None:
        port = setup.receiver.ports[0]
        async with contextlib.AsyncExitStack() as stack:
            pods = Pods(a="127.0.0.1")
            if silent:
                pods = Pods(a="127.0.0.1", b="127.0.0.2")
                taken = []
                server = await asyncio.start_server(lambda *pair: taken.append(pair), "127.0.0.2", port)
                stack.push_async_callback(server.wait_closed)
                stack.callback(server.close)
                stack.callback(lambda: [writer.close() for _, writer in taken])
            operator = Operator(port, pods, ca)
            task = asyncio.create_task(operator.receivers.run())
            try:
                await test(setup, operator)
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def whole() -> None:
        async with receiving(tmp_path, program(policies=[policy("first")])) as setup:
            await all_of_it(setup)

    uvloop.run(whole())


def test_a_program_is_in_force_when_a_pass_has_brought_it(tmp_path: Path) -> None:
    async def test(setup: Setup, operator: Operator) -> None:
        wanted = program(policies=[policy("second")])
        found = await operator.bring(wanted)
        assert (found["ProgramInForce"].status, found["EventsFlowing"].reason) == ("True", "NotObserved")
        assert (await setup.status())["program"]["hash"] == text_hash(encode(wanted))
        assert (await setup.status())["program"]["source"] == "pushed"

    run(tmp_path, test)


def test_a_thousand_sinks_are_reported(tmp_path: Path) -> None:
    """In an answer of many pieces."""

    async def test(setup: Setup, operator: Operator) -> None:
        nobody = {"type": "http", "settings": {"url": "http://127.0.0.1:1/"}}
        sinks = [sink(f"sink-{number}", **nobody) for number in range(1000)]
        wanted = program(policies=[policy(sinks=["audit-system/sink-999"])], sinks=sinks)
        await operator.bring(wanted)
        await eventually(lambda: operator.now()["ProgramInForce"].status == "True", seconds=60)
        assert len(operator.receivers.report().sinks) == 1000
        assert len((await setup.ask("GET", "/status"))[1]) > 200_000

    run(tmp_path, test)


def test_one_receiver_that_hangs_holds_up_neither_the_others_nor_a_pass(tmp_path: Path) -> None:
    async def test(setup: Setup, operator: Operator) -> None:
        async with asyncio.timeout(20):
            await operator.bring(program(policies=[policy("second")]))
            await eventually(lambda: operator.now()["ProgramInForce"].reason == "ReceiverSilent")
            for name in ("third", "fourth", "fifth"):
                wanted = program(policies=[policy(name)])
                await operator.bring(wanted)
                assert (await setup.status())["program"]["hash"] == text_hash(encode(wanted))
        assert "b does not answer: no answer within 5 s" in operator.now()["ProgramInForce"].message

    run(tmp_path, test, silent=True)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", "answered 200 with more than 4194304 bytes"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 99999999999\r\n\r\n", "answered 500 with more than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\n", "Got more than"),
    ],
)
def test_whoever_answers_without_end_is_not_listened_to_for_long(answer: bytes, said: str, tmp_path: Path) -> None:
    sent = 0

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            for _ in range(2000):
                writer.write(b"x" * 65536)
                sent += 65536
                await writer.drain()
                await asyncio.sleep(0)

    async def test(setup: Setup, operator: Operator) -> None:
        operator.pods.pods |= Pods(liar="127.0.0.2").pods
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(setup.certificates / "tls.crt", setup.certificates / "tls.key")
        server = await asyncio.start_server(lie, "127.0.0.2", setup.receiver.ports[0], ssl=context)
        await operator.bring(program())
        await eventually(lambda: said in operator.now()["ProgramInForce"].message)
        assert sent < 2000 * 65536
        server.close()

    run(tmp_path, test)


def test_a_program_that_a_receiver_refuses_is_said_and_is_not_waited_for(tmp_path: Path) -> None:
    async def test(setup: Setup, operator: Operator) -> None:
        before = (await setup.status())["program"]["hash"]
        bad = program(policies=[policy("second", sinks=["audit-system/gone"])])
        found = await operator.bring(bad)
        assert found["ProgramInForce"].reason == "ProgramRefused"
        assert "there is no sink audit-system/gone" in found["ProgramInForce"].message
        assert (await setup.status())["program"]["hash"] == before
        found = await operator.bring(program(policies=[policy("third")]))
        assert found["ProgramInForce"].status == "True"

    run(tmp_path, test)


LOOKS = 0.5
"""Seconds in which receivers are asked several times, where they are every `soon`."""


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receivers_module, "_PERIOD", 0.05)


@pytest.mark.usefixtures("soon")
def test_what_a_receiver_reports_wakes_a_pass_once(tmp_path: Path) -> None:
    async def test(setup: Setup, operator: Operator) -> None:
        await operator.bring(program())
        before = operator.wakes
        await asyncio.sleep(LOOKS)
        assert operator.wakes == before
        assert await setup.post(event_list(event(1))) == 200
        await eventually(lambda: operator.wakes > before)
        await eventually(lambda: operator.receivers.report().sinks["audit-system/siem"].reason == "Delivering")
        before = operator.wakes
        assert await setup.post(event_list(event(2))) == 200
        await asyncio.sleep(LOOKS)
        assert operator.wakes == before

    run(tmp_path, test)


def test_a_replica_that_does_not_lead_pushes_nothing(tmp_path: Path) -> None:
    async def test(setup: Setup, operator: Operator) -> None:
        await operator.bring(program())
        operator.leads = False
        before = (await setup.status())["program"]["hash"]
        await operator.bring(program(policies=[policy("second")]))
        assert (await setup.status())["program"]["hash"] == before
        operator.leads = True
        assert (await operator.bring(program(policies=[policy("third")])))["ProgramInForce"].status == "True"
        assert (await setup.status())["program"]["hash"] != before

    run(tmp_path, test)


class Slow:
    """The network between operator and receiver; while it is ``full``, nothing large gets through to the receiver."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.full = False
        self.waiting = 0
        self.writers: list[asyncio.StreamWriter] = []

    def end(self) -> None:
        for writer in self.writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, out = await asyncio.open_connection("127.0.0.1", self._port)
        self.writers += [writer, out]

        async def back() -> None:
            while piece := await onward.read(65536):
                writer.write(piece)

        task = asyncio.create_task(back())
        try:
            while piece := await reader.read(65536):
                if self.full and len(piece) > 10_000:
                    self.waiting += 1
                    while await reader.read(65536):  # whoever sends it waits for the answer
                        pass
                    return
                out.write(piece)
        except ConnectionError:
            pass
        finally:
            task.cancel()
            out.close()
            writer.close()


def test_a_push_under_way_ends_with_the_lease_and_is_in_nobodys_way(tmp_path: Path) -> None:
    async def test(setup: Setup, operator: Operator) -> None:
        slow = Slow(setup.receiver.ports[0])
        server = await asyncio.start_server(slow.serve, "127.0.0.3", setup.receiver.ports[0])
        try:
            operator.pods.pods["a"]["status"]["podIP"] = "127.0.0.3"
            operator.pods.events.put_nowait(WatchEvent("MODIFIED", operator.pods.pods["a"]["metadata"]))
            await operator.bring(program(policies=[policy("first")]))
            await eventually(lambda: operator.now()["ProgramInForce"].status == "True")
            before = (await setup.status())["program"]["hash"]
            slow.full, operator.lease = True, 0.2
            many = [policy(f"policy-{number}") for number in range(500)]
            await operator.bring(program(policies=many))  # longer than the Lease, which is renewed
            assert slow.waiting
            assert (await setup.status())["program"]["hash"] == before
            operator.leads = False
            await asyncio.sleep(0.5)
            slow.full, operator.leads = False, True
            wanted = program(policies=[policy("next")])
            await operator.bring(wanted)  # a push that went on would be in its way for half a minute
            assert (await setup.status())["program"]["hash"] == text_hash(encode(wanted))
        finally:
            server.close()
            slow.end()

    run(tmp_path, test)


@pytest.mark.usefixtures("soon")
def test_a_replica_that_leads_again_does_not_push_what_it_wanted_before(tmp_path: Path) -> None:
    async def test(setup: Setup, operator: Operator) -> None:
        await operator.bring(program(policies=[policy("mine")]))
        operator.leads = False
        await asyncio.sleep(LOOKS)
        newer = encode(program(policies=[policy("the-other-leaders")]))
        assert (await setup.ask("PUT", "/program", newer.encode()))[0] == 200
        operator.leads = True
        await asyncio.sleep(LOOKS)
        assert (await setup.status())["program"]["hash"] == text_hash(newer)

    run(tmp_path, test)


def test_a_receiver_that_fell_back_gets_the_newest_program_again(tmp_path: Path) -> None:
    async def test(setup: Setup, operator: Operator) -> None:
        wanted = program(policies=[policy("second")])
        await operator.bring(wanted)
        setup.mount(program(policies=[policy("by-hand")]))

        async def in_force() -> str:
            found: str = (await setup.status())["program"]["hash"]
            return found

        await eventually(in_force, lambda found: found != text_hash(encode(wanted)))
        await eventually(in_force, lambda found: found == text_hash(encode(wanted)))

    run(tmp_path, test)


def test_a_stranger_is_not_let_in_and_it_is_said_why(tmp_path: Path) -> None:
    async def test(setup: Setup, operator: Operator) -> None:
        found = await operator.bring(program(policies=[policy("second")]))
        assert (await setup.status())["program"]["source"] == "file"
        assert found["ProgramInForce"].reason == "ReceiverSilent"

    run(tmp_path, test, ca="another CA")


def test_without_the_right_to_see_pods_it_is_said_which_is_missing(tmp_path: Path) -> None:
    async def test(_: Setup, operator: Operator) -> None:
        operator.pods.denied = True
        found = (await operator.bring(program()))["ProgramInForce"]
        assert (found.status, found.reason) == ("False", "Forbidden")
        assert "list pods audit-system" in found.message
        operator.pods.denied = False
        await eventually(lambda: operator.now()["ProgramInForce"].status == "True")

    run(tmp_path, test)


def test_the_last_report_holds_for_a_while_when_the_only_receiver_restarts(tmp_path: Path) -> None:
    async def test(_: Setup, operator: Operator) -> None:
        await operator.bring(program())
        operator.receivers._end("a")
        assert operator.receivers.report().sinks.keys() == {"audit-system/siem"}
        assert operator.receivers.report().answering == 1
        # What was changed meanwhile is not said to be in force.
        late = await operator.receivers.bring(operator.target(program(sinks=[sink("siem"), sink("new")])))
        assert late.behind.keys() == {"a"}

    run(tmp_path, test)


@pytest.mark.parametrize("certificate", [True, False])
def test_keys_stay_out_of_representations(certificate: bool) -> None:
    credentials = Credentials("ca", "certificate", "key") if certificate else None
    text = repr(Target(program(), "text", "hash", 8443, "name", credentials))
    assert "key" not in text.replace("hash_key_file", "")
