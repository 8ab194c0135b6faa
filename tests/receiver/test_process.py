"""`audit-operator receive` as a process of its own: killed, told to stop, and asked what it keeps."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import aiohttp
from receiving import client, event, event_list, program
from tls_certificates import issued, written

from audit_operator.receiver.quarantine import MALFORMED, Quarantine, malformed, refused
from audit_operator.render.program import Program, encode


class Process:
    """A receiver in a folder."""

    def __init__(self, folder: Path, what: Program) -> None:
        self.folder = folder
        (folder / "program.json").write_text(encode(what))
        written(folder / "tls", issued("audit-receiver", "localhost"))
        self.process: subprocess.Popen[str] | None = None
        self.port = 0
        self.log: list[str] = []

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
            if found := re.search(r"listening on port (\d+)", line):
                self.port = int(found[1])
                break
        threading.Thread(target=self.log.extend, args=(self.process.stderr,), daemon=True).start()

    def end(self, number: signal.Signals) -> int:
        """The exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait()
        if self.process.stderr is not None:
            threads = [each for each in threading.enumerate() if each is not threading.main_thread()]
            for each in threads:
                each.join(5)
            self.process.stderr.close()
        return code

    async def post(self, session: aiohttp.ClientSession, *numbers: int) -> bool:
        """Whether they were taken."""
        try:
            async with session.post(
                f"https://localhost:{self.port}/audit?timeout=30s",
                data=event_list(*map(event, numbers)),
                headers={"Content-Type": "application/json"},
            ) as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

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
