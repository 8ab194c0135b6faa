"""`audit-operator receive` as a process of its own: killed, told to stop, and asked what it keeps."""

import asyncio
import contextlib
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from faults import FaultyServer, Reply, Request
from receiving import client, event, event_list, eventually, name_clients, policy, program, sink, tls_of
from tls_certificates import issued, written

from audit_operator.receiver.quarantine import MALFORMED, Quarantine, malformed, refused
from audit_operator.render.program import Program, RuleList, WireRule, encode


class Process:
    """A receiver in a folder."""

    def __init__(self, folder: Path, what: Program) -> None:
        self.folder = folder
        (folder / "program.json").write_text(encode(what))
        written(folder / "tls", issued("audit-receiver", "localhost"))
        name_clients(folder)
        self.process: subprocess.Popen[str] | None = None
        self.port = self.plain = 0
        self.log: list[str] = []
        self._rest = threading.Thread()

    def start(self) -> None:
        """Until it listens."""
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "audit_operator", "receive",
                f"--program={self.folder}/program.json",
                f"--journal={self.folder}/state/journal",
                f"--certificates={self.folder}/tls",
                "--listen=127.0.0.1:0",
                "--metrics=127.0.0.1:0",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"listening on port (\d+), health and metrics on port (\d+)", line):
                self.port, self.plain = int(found[1]), int(found[2])
                break
        self._rest = threading.Thread(target=self.log.extend, args=(self.process.stderr,), daemon=True)
        self._rest.start()

    def end(self, number: signal.Signals) -> int:
        """The exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait()
        self._rest.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    async def post(self, session: aiohttp.ClientSession, *numbers: int) -> bool:
        """Whether they were taken."""
        return await self.send(session, event_list(*map(event, numbers))) == 200

    async def send(self, session: aiohttp.ClientSession, body: bytes, **headers: str) -> int:
        """The status; 0: there was no answer."""
        try:
            async with session.post(
                f"https://localhost:{self.port}/audit?timeout=30s",
                data=io.BytesIO(body),
                headers={"Content-Type": "application/json", **headers},
            ) as response:
                return response.status
        except aiohttp.ClientError:
            return 0

    def ready(self) -> bool:
        """What the kubelet sees."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.plain}/readyz", timeout=30) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            return False

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def peak_memory(self) -> int:
        """Bytes resident at most, so far."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1]) << 10

    async def ready_async(self) -> bool:
        """`ready`, without holding up the loop."""
        return await asyncio.to_thread(self.ready)

    def delivered(self) -> list[int]:
        """Numbers of the events that the sink has, in order."""
        path = self.folder / "state/files/audit-system/siem.log"
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [int(json.loads(line)["auditID"][-12:]) for line in lines]


def test_acknowledged_events_reach_the_sink_although_the_receiver_is_killed_again_and_again(tmp_path: Path) -> None:
    receiver = Process(tmp_path, program())
    acknowledged: set[int] = set()

    async def round_(first: int, posts: int) -> None:
        async with client() as session:

            async def one(start: int) -> None:
                for number in range(start, start + 10_000, 5):
                    numbers = range(number, number + 5)
                    if not await receiver.post(session, *numbers):
                        return
                    acknowledged.update(numbers)
                    if len(acknowledged) >= posts:
                        assert receiver.process is not None
                        os.kill(receiver.process.pid, signal.SIGKILL)

            await asyncio.gather(*(one(first + 10_000 * n) for n in range(4)))

    for number in range(3):
        receiver.start()
        asyncio.run(round_(number * 100_000, len(acknowledged) + 150))
        receiver.end(signal.SIGKILL)
    receiver.start()
    assert receiver.end(signal.SIGTERM) == 0
    delivered = receiver.delivered()
    assert len(acknowledged) >= 450
    assert acknowledged <= set(delivered)


def test_sigterm_delivers_what_is_there_and_ends_well(tmp_path: Path) -> None:
    receiver = Process(tmp_path, program())
    receiver.start()

    async def send() -> None:
        async with client() as session:
            assert await receiver.post(session, *range(100))

    asyncio.run(send())
    assert receiver.end(signal.SIGTERM) == 0
    assert receiver.delivered() == list(range(100))
    lines = [json.loads(line) for line in receiver.log]
    assert lines[-1]["message"] == "stopped; 0 events wait in the journal for the next start"
    assert {line["level"] for line in lines} == {"INFO"}


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Process]:
    """One that runs, and ends as it should."""
    process = Process(tmp_path, program())
    process.start()
    yield process
    assert process.end(signal.SIGTERM) == 0


def test_a_sink_that_was_down_has_everything_in_order_once_it_is_up(tmp_path: Path) -> None:
    delivered: list[int] = []

    def take(request: Request) -> Reply:
        delivered.extend(int(json.loads(line)["auditID"][-12:]) for line in request.body.splitlines())
        return Reply()

    async def test() -> None:
        async with FaultyServer(take) as server, client() as session:
            settings = {"url": f"{server.url}/audit"}
            receiver = Process(
                tmp_path, program(sinks=[sink(type="http", settings=settings, tls={"caBundle": server.ca})])
            )
            await server.stop()
            for number in range(0, 300, 100):
                await asyncio.to_thread(receiver.start)
                for first in range(number, number + 100, 20):
                    assert await receiver.post(session, *range(first, first + 20))
                receiver.end(signal.SIGKILL)
            await asyncio.to_thread(receiver.start)
            await server.start()
            await eventually(lambda: len(delivered) == 300, seconds=30)
            assert await asyncio.to_thread(receiver.end, signal.SIGTERM) == 0

    asyncio.run(test())
    assert delivered == list(range(300))


def test_a_disk_that_takes_nothing_costs_nothing_that_was_acknowledged(receiver: Process) -> None:
    acknowledged: set[int] = set()

    async def test() -> None:
        async with client() as session:
            assert await receiver.post(session, *range(50))
            acknowledged.update(range(50))
            unlimited = resource.prlimit(receiver.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(receiver.pid, resource.RLIMIT_FSIZE, (4096, unlimited[1]))
            for number in range(50, 100):
                if await receiver.post(session, number):
                    acknowledged.add(number)
            assert len(acknowledged) < 100
            await eventually(receiver.ready_async, lambda ready: not ready)
            assert await receiver.send(session, event_list(event(99))) == 503
            resource.prlimit(receiver.pid, resource.RLIMIT_FSIZE, unlimited)
            await eventually(receiver.ready_async)
            assert await receiver.post(session, *range(50, 150))
            acknowledged.update(range(50, 150))

    asyncio.run(test())
    assert receiver.end(signal.SIGTERM) == 0
    assert acknowledged == set(range(150))
    assert sorted(receiver.delivered()) == list(range(150))
    receiver.start()


def test_a_sink_that_had_an_event_when_another_log_failed_does_not_get_it_twice(tmp_path: Path) -> None:
    rules = [RuleList(rules=(WireRule(level=level),)) for level in ("Metadata", "RequestResponse")]
    policies = [policy("small"), policy("large", rule_list=1, sinks=["audit-system/archive"])]
    receiver = Process(tmp_path, program(policies=policies, sinks=[sink(), sink("archive")], rules=rules))
    receiver.start()
    body = event_list(*(event(number, requestObject={"spec": "x" * 30_000}) for number in range(10)))

    async def test() -> None:
        async with client() as session:
            unlimited = resource.prlimit(receiver.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(receiver.pid, resource.RLIMIT_FSIZE, (100_000, unlimited[1]))
            assert await receiver.send(session, body) == 503
            await eventually(lambda: receiver.delivered() == list(range(10)))
            resource.prlimit(receiver.pid, resource.RLIMIT_FSIZE, unlimited)
            await eventually(receiver.ready_async)
            assert await receiver.send(session, body) == 200

    asyncio.run(test())
    assert receiver.end(signal.SIGTERM) == 0
    assert receiver.delivered() == list(range(10))
    archive = (tmp_path / "state/files/audit-system/archive.log").read_bytes().splitlines()
    assert [json.loads(line)["auditID"][-1] for line in archive] == [str(number) for number in range(10)]


def test_certificates_change_without_an_event_being_refused(receiver: Process) -> None:
    names = ["audit-receiver-2", "audit-receiver-3"]
    stop = asyncio.Event()
    answers: list[int] = []

    async def on_one_connection(first: int) -> None:
        async with client() as session:
            while not stop.is_set():
                answers.append(await receiver.send(session, event_list(event(first + len(answers)))))

    async def on_new_connections(first: int) -> None:
        while not stop.is_set():
            async with client() as session:
                answers.append(await receiver.send(session, event_list(event(first + len(answers)))))

    async def shown() -> str:
        _, writer = await asyncio.open_connection("localhost", receiver.port, ssl=tls_of("kube-apiserver"))
        subject = writer.get_extra_info("peercert")["subject"]
        writer.close()
        return str(subject[0][0][1])

    async def swap() -> None:
        for name in names:
            written(receiver.folder / "tls", issued(name, "localhost"))
            await eventually(shown, lambda found, name=name: found == name)
        stop.set()

    async def test() -> None:
        await asyncio.gather(on_one_connection(1_000_000), on_new_connections(2_000_000), swap())

    asyncio.run(test())
    assert len(answers) > 10
    assert set(answers) == {200}


def test_a_thousand_connections_leave_room_for_an_api_server(receiver: Process) -> None:
    async def test() -> None:
        idle = [await asyncio.open_connection("127.0.0.1", receiver.port) for _ in range(1000)]
        async with client() as session:
            assert await receiver.post(session, *range(10))
        assert await asyncio.to_thread(receiver.ready)
        for _, writer in idle:
            writer.transport.abort()

    asyncio.run(test())


def test_bodies_that_are_deep_or_huge_get_the_right_answer(receiver: Process) -> None:
    raw = json.dumps(event(1, verb="patch", requestObject="HERE"), separators=(",", ":"))
    raw = raw.replace('"resource":"pods"', '"resource":"secrets"').replace("/pods/web", "/secrets/web")
    deep = raw.replace('"HERE"', '{"data":' * 9_990 + '{"password":"s3cret"}' + "}" * 9_990).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(1 << 20)

    async def test() -> None:
        async with client() as session:
            assert await receiver.send(session, event_list(deep, event(2))) == 200
            assert await receiver.send(session, b"{}", **{"Content-Type": "text/plain"}) == 415
            before = receiver.peak_memory()
            assert await receiver.send(session, bytes(100 << 20)) in (413, 0)
            # Whoever does not say how much it is gets none of it in.
            with contextlib.suppress(aiohttp.ClientError):
                async with session.post(
                    f"https://localhost:{receiver.port}/audit",
                    data=pieces(),
                    headers={"Content-Type": "application/json"},
                ) as response:
                    assert response.status == 411
            assert await receiver.post(session, 3)
            assert receiver.peak_memory() - before < 40 << 20  # the limit is 8 MiB here
        await asyncio.sleep(0.1)  # connections that were cut off end a moment after their session

    asyncio.run(test())
    assert receiver.end(signal.SIGTERM) == 0
    lines = (receiver.folder / "state/files/audit-system/siem.log").read_bytes().splitlines()
    assert len(lines) == 3
    assert b"s3cret" not in lines[0]
    # It was looked into, not given up.
    assert b'"requestObject":{"data":{"data":"***"}}' in lines[0]
    receiver.start()


def call(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "audit_operator", *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    written(tmp_path / "tls", issued("audit-receiver", "localhost"))
    common = ("receive", f"--program={tmp_path}/p", f"--certificates={tmp_path}/tls")
    (tmp_path / "file").write_text("")
    code, _, said = call(*common, f"--journal={tmp_path}/file/journal")
    assert (code, "Traceback" in said) == (2, False)
    assert "--journal" in said
    code, _, said = call(*common, f"--journal={tmp_path}/j", "--listen=nowhere")
    assert code == 2
    assert "--listen: 'nowhere' is no address; write for example 0.0.0.0:8443" in said


def test_quarantine_is_listed_shown_and_sent_again(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    quarantine = Quarantine(journal / "quarantine")
    event_ = json.dumps(event(1)).encode()
    quarantine.put(
        "audit-system/siem", [refused("kube-apiserver", event_, "HTTP 400: no such field", "2026-11-23T04:33:04Z")]
    )
    quarantine.put(
        MALFORMED,
        [malformed("kube-apiserver", b'{"level":"x","verb":"get","requestObject":{"p":"s3cret"}}', "no level", "t")],
    )
    code, out, _ = call("quarantine", "list", f"--journal={journal}", "-o", "json")
    assert code == 0
    listed: list[dict[str, Any]] = json.loads(out)
    assert [(each["sink"], each["reason"]) for each in listed] == [
        ("audit-system/siem", "HTTP 400: no such field"),
        ("malformed", "no level"),
    ]
    code, out, _ = call("quarantine", "show", listed[0]["id"], f"--journal={journal}")
    assert json.loads(out)["event"] == event(1)
    code, out, _ = call("quarantine", "show", listed[1]["id"], f"--journal={journal}")
    assert "s3cret" not in out
    assert json.loads(out)["event"]["verb"] == "get"
    assert call("quarantine", "show", "nothing", f"--journal={journal}")[0] == 2
    assert call("quarantine", "retry", "malformed", f"--journal={journal}")[0] == 2
    assert call("quarantine", "retry", "audit-system/siem", f"--journal={journal}")[1] == "1 to be delivered again\n"
    assert [len(entries) for _, entries in quarantine.asked()] == [1]
    assert not list(quarantine.entries("audit-system/siem"))
    assert call("quarantine", "list", f"--journal={tmp_path}/nowhere")[0] == 2
