"""The syslog sink, against a server that fails, and against a real rsyslog where there is one (Debian: rsyslog and
rsyslog-gnutls)."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from receiving import eventually
from sink_cases import batch, item, made, sink_program, surroundings
from tls_certificates import authority, issued

from audit_operator.receiver.reach import Reach
from audit_operator.receiver.sinks import (
    TAKEN,
    Batch,
    MisconfiguredError,
    Result,
    Sink,
    UnauthorizedError,
    UnreachableError,
    make,
)

CA = authority().pem.decode()
HEAD = re.compile(rb"<(\d+)>1 (\S+) (\S+) (\S+) - (\S+) - (.*)\n", re.DOTALL)


class Server:
    """Takes whatever comes; ``closes``: after the first bytes of so many connections it resets them."""

    def __init__(self, folder: Path, *, tls: bool, name: str = "localhost", closes: int = 0) -> None:
        self.received: list[bytearray] = []
        self.port = 0
        self._closes = closes
        self._context = context(folder, name) if tls else None
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "Server":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        mine = bytearray()
        self.received.append(mine)
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65536):
                mine += piece
                if self._closes:
                    self._closes -= 1
                    break
        writer.transport.abort()

    async def has(self, number: int) -> None:
        """Come back once the newest connection brought so many messages."""
        for _ in range(1000):
            if self.received and self.received[-1].count(b">1 2026-") >= number:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{self.received!r}"[:1000])

    def messages(self) -> list[bytes]:
        """Complete messages of all connections."""
        return [message for each in self.received for message in counted(bytes(each))]


def context(folder: Path, name: str) -> Any:
    import ssl

    mine = issued("syslog", name)
    (folder / "crt").write_bytes(mine.certificate)
    (folder / "key").write_bytes(mine.key)
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.load_cert_chain(folder / "crt", folder / "key")
    return made


def counted(stream: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(stream):
        blank = stream.index(b" ", at)
        end = blank + 1 + int(stream[at:blank])
        if end > len(stream):
            return
        yield stream[blank + 1 : end]
        at = end


def syslog(folder: Path, port: int, tls: dict[str, Any] | None = None, **spec: Any) -> Sink:
    given = {"address": f"localhost:{port}", **spec}
    plain = given.get("transport") == "TCP"
    return made(folder, syslog=given, **({} if plain else {"tls": {"caBundle": CA, **(tls or {})}}))


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


@pytest.mark.parametrize("transport", ["TLS", "TCP"])
def test_a_message_is_the_event_in_the_form_of_rfc_5424(transport: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with Server(tmp_path, tls=transport == "TLS") as server:
            sink = syslog(tmp_path, server.port, transport=transport, facility="local3", severity="notice")
            assert await sink.deliver(batch(1, 2)) == TAKEN
            assert await sink.deliver(batch(3)) == TAKEN
            await server.has(3)
            await sink.close()
            assert len(server.received) == 1
            for message, event in zip(server.messages(), batch(1, 2, 3).items, strict=True):
                found = HEAD.fullmatch(message)
                assert found
                assert found.groups() == (
                    b"157", event.timestamp.encode(), b"prod", b"kube-apiserver", b"ResponseComplete", event.data
                )  # fmt: skip

    run(test)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("transport", ["TLS", "TCP"])
@pytest.mark.parametrize("events", [1, 100, 2000])
def test_a_connection_brings_one_delivery_after_the_other(
    factory: Callable[[], asyncio.AbstractEventLoop], transport: str, events: int, tmp_path: Path
) -> None:
    async def test() -> None:
        async with Server(tmp_path, tls=transport == "TLS") as server:
            sink = syslog(tmp_path, server.port, transport=transport)
            for number in range(12):
                async with asyncio.timeout(10):
                    assert await sink.deliver(batch(*range(number * events, (number + 1) * events))) == TAKEN
            # Taken is what the other side's kernel has; it may still be on its way through the server.
            await server.has(12 * events)
            await sink.close()
            assert len(server.received) == 1
            assert len(server.messages()) == 12 * events

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(test())


def test_newlines_separate_messages_where_the_server_counts_no_octets(tmp_path: Path) -> None:
    async def test() -> None:
        async with Server(tmp_path, tls=False) as server:
            sink = syslog(tmp_path, server.port, transport="TCP", framing="Newline")
            await sink.deliver(batch(1, 2))
            await server.has(2)
            await sink.close()
            lines = bytes(server.received[0]).split(b"\n")
            assert [line.partition(b" - ")[2].partition(b" - ")[2] for line in lines[:-1]] == [
                event.data for event in batch(1, 2).items
            ]
            assert lines[-1] == b""

    run(test)


def test_an_event_too_large_loses_its_bodies_and_says_so(tmp_path: Path) -> None:
    event = item(1)
    data = event.data[:-1] + b',"requestObject":{"data":"' + b"x" * 3000 + b'"}}'
    large = msgspec.structs.replace(event, data=data, audit=data)
    results: list[Result] = []

    async def test() -> None:
        async with Server(tmp_path, tls=False) as server:
            sink = syslog(tmp_path, server.port, transport="TCP", maxMessageBytes=2048)
            results.append(await sink.deliver(Batch("prod", [large, item(2, size=3000), item(3)], 1)))
            await server.has(2)
            await sink.close()
            first, second = (json.loads(HEAD.fullmatch(message)[6]) for message in server.messages())  # type: ignore[index]
            assert "requestObject" not in first
            assert first["annotations"] == {"audit-operator.dev/omitted": "requestObject: too large for the sink"}
            assert second == json.loads(item(3).data)

    run(test)
    (result,) = results
    assert [(each.at, each.reason) for each in result.refused] == [
        (1, "is larger than maxMessageBytes (2048) even without bodies")
    ]


@pytest.mark.parametrize("tls", [True, False])
def test_a_connection_that_breaks_takes_nothing(tls: bool, tmp_path: Path) -> None:
    large = batch(*range(2000), size=1000)

    async def test() -> None:
        async with Server(tmp_path, tls=tls, closes=1) as server:
            sink = syslog(tmp_path, server.port, transport="TLS" if tls else "TCP")
            with pytest.raises(UnreachableError):
                await sink.deliver(large)
            assert await sink.deliver(large) == TAKEN
            await server.has(2000)
            await sink.close()
            assert len(server.received) == 2
            assert len(list(counted(bytes(server.received[1])))) == 2000

    run(test)


def test_a_server_that_went_away_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    server = Server(tmp_path, tls=True)

    async def test() -> None:
        async with server:
            sink = syslog(tmp_path, server.port)
            await sink.deliver(batch(1))
            await server.has(1)
        with pytest.raises(UnreachableError, match="no connection"):
            await sink.deliver(batch(2))
        async with server:
            assert await sink.deliver(batch(2)) == TAKEN
            await server.has(1)
            await sink.close()

    run(test)
    assert len(server.messages()) == 2


def test_a_server_that_reads_nothing_takes_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            sink = syslog(tmp_path, listening.getsockname()[1], transport="TCP")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await sink.deliver(batch(*range(9000), size=2000))
            await sink.close()

    run(test)


def test_whom_not_to_trust_and_where_not_to_connect(tmp_path: Path) -> None:
    async def test() -> None:
        async with Server(tmp_path, tls=True, name="other.example") as server:
            sink = syslog(tmp_path, server.port)
            with pytest.raises(UnreachableError, match=r"(?i)hostname mismatch"):
                await sink.deliver(batch(1))
            right = syslog(tmp_path, server.port, tls={"serverName": "other.example"})
            assert await right.deliver(batch(1)) == TAKEN
            await right.close()
            own = syslog(tmp_path, server.port, tls={"clientCertificate": {"secretName": "own"}})
            with pytest.raises(UnauthorizedError, match="missing"):
                await own.deliver(batch(1))
            program = sink_program(syslog={"address": f"localhost:{server.port}", "transport": "TCP"})
            near = make(program, surroundings(tmp_path, reach=Reach(refused=("127.0.0.0/8", "::1/128"))))
            with pytest.raises(MisconfiguredError, match="may not connect"):
                await near.deliver(batch(1))

    run(test)


RSYSLOG = """
global(workDirectory="{folder}" maxMessageSize="256k"
  defaultNetstreamDriverCAFile="{folder}/ca.pem" defaultNetstreamDriverCertFile="{folder}/crt"
  defaultNetstreamDriverKeyFile="{folder}/key")
module(load="imtcp" streamDriver.name="{driver}" streamDriver.mode="{mode}" streamDriver.authMode="anon")
template(name="all" type="string"
  string="%syslogfacility-text%|%timestamp:::date-rfc3339%|%hostname%|%app-name%|%msgid%|%msg%\\n")
input(type="imtcp" port="{port}" address="127.0.0.1")
action(type="omfile" file="{folder}/out" template="all" asyncWriting="off" flushOnTXEnd="on")
"""


@contextlib.contextmanager
def rsyslog(folder: Path, *, tls: bool) -> Iterator[int]:
    kept = Path(__file__).resolve().parents[2] / ".tools" / "rsyslog" / "rsyslogd"
    installed = any(Path("/usr/lib").rglob("rsyslog/lmnsd_gtls.so")) and shutil.which("rsyslogd", path="/usr/sbin")
    binary = os.environ.get("RSYSLOGD") or installed or str(kept)
    if shutil.which(binary) is None:
        pytest.skip(
            "rsyslogd with GnuTLS is not installed: run scripts/get-rsyslog, or apt-get install rsyslog rsyslog-gnutls"
        )
    if binary == installed:
        # Ubuntu's AppArmor lets the one in /usr/sbin read nothing of ours.
        binary = shutil.copy(binary, folder / "rsyslogd")
    context(folder, "localhost")
    (folder / "ca.pem").write_text(CA)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = folder / "rsyslog.conf"
    config.write_text(RSYSLOG.format(folder=folder, port=port, driver="gtls" if tls else "ptcp", mode=int(tls)))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([binary, "-n", "-f", config, "-i", folder / "pid"], stdout=log, stderr=log)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        yield port
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(20)


@pytest.mark.parametrize("tls", [True, False])
def test_rsyslog_understands_every_message(tls: bool, tmp_path: Path) -> None:
    events = batch(*range(300), size=500)
    odd = item(301)
    data = odd.data.replace(b"alice", "zoë \\n\\u0000 <13>1 %s".encode())
    events = Batch("prod", [*events.items, msgspec.structs.replace(odd, data=data, audit=data)], 1)

    async def test(port: int) -> None:
        sink = syslog(tmp_path, port, transport="TLS" if tls else "TCP")
        for first in range(0, 301, 20):
            part = events.items[first : first + 20]
            assert await sink.deliver(Batch("prod", part, 1)) == TAKEN
        for _ in range(200):
            await asyncio.sleep(0.05)
            if (tmp_path / "out").exists() and (tmp_path / "out").read_bytes().count(b"\n") >= 301:
                break
        await sink.close()

    with rsyslog(tmp_path, tls=tls) as port:
        uvloop.run(test(port))  # as the receiver does
    lines = [line for line in (tmp_path / "out").read_bytes().splitlines() if b"|kube-apiserver|" in line]
    assert len(lines) == 301
    for line, event in zip(lines, events.items, strict=True):
        _facility, timestamp, host, app, stage, message = line.split(b"|", 5)
        assert (host, app, stage) == (b"prod", b"kube-apiserver", b"ResponseComplete")
        assert timestamp.decode() == event.timestamp
        assert message.strip() == event.data


@pytest.mark.parametrize("tls", [True, False])
def test_a_message_above_rsyslogs_frame_size_costs_no_other(tls: bool, tmp_path: Path) -> None:
    """imtcp takes messages of maxMessageSize, but counts octets no further than maxFrameSize, 200,000."""
    events = [item(number, size=210_000 if number == 3 else 300) for number in range(40)]

    async def test(port: int) -> None:
        sink = syslog(tmp_path, port, transport="TLS" if tls else "TCP", maxMessageBytes=262_144)
        for event in events:
            assert await sink.deliver(Batch("prod", [event], len(event.data))) == TAKEN
        await eventually(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_bytes().count(b"\n") >= 40)
        await sink.close()

    with rsyslog(tmp_path, tls=tls) as port:
        asyncio.run(test(port))
    lines = [line for line in (tmp_path / "out").read_bytes().splitlines() if b"kube-apiserver" in line]
    # The one above it is whole, too, with its length as a part of its head.
    assert [line[line.index(b"{") :].strip() for line in lines] == [event.data for event in events]
