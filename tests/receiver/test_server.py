"""Whatever connects: the right answer, bounded memory, and everything else goes on."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from receiving import Setup, client, event, event_list, eventually, program, receiving, tls_of
from tls_certificates import issued, written

from audit_operator.net import http
from audit_operator.receiver import server as server_module


def run(folder: Path, test: Callable[[Setup], Coroutine[Any, Any, None]], **rest: Any) -> None:
    async def whole() -> None:
        async with receiving(folder, program(**rest)) as setup:
            await test(setup)

    uvloop.run(whole())


ONE = event_list(event(1))


def test_who_may_do_what_is_in_the_certificate(tmp_path: Path) -> None:
    async def test(setup: Setup) -> None:
        for name, method, path, expected in [
            ("kube-apiserver", "POST", "/audit", 200),
            ("audit-operator", "POST", "/audit", 403),
            ("kube-apiserver", "GET", "/status", 403),
            ("kube-apiserver", "PUT", "/program", 403),
            ("audit-operator", "GET", "/status", 200),
            ("kube-apiserver", "GET", "/audit", 405),
            ("kube-apiserver", "POST", "/", 404),
            ("kube-apiserver", "POST", "/audit/status", 404),
        ]:
            status, body, _ = await setup.ask(method, path, ONE if method == "POST" else b"", name)
            assert (status, bool(body)) == (expected, expected != 200 or method == "GET"), (name, method, path)

    run(tmp_path, test)


@pytest.mark.parametrize(("name", "ca"), [("", "test CA"), ("kube-apiserver", "somebody else")])
def test_without_a_certificate_of_our_ca_there_is_no_answer(name: str, ca: str, tmp_path: Path) -> None:
    async def test(setup: Setup) -> None:
        import aiohttp

        async with client(name, ca) as session:
            with pytest.raises(aiohttp.ClientError):
                await session.post(f"{setup.url}/audit", data=ONE)
        assert await setup.post(ONE) == 200

    run(tmp_path, test)


async def said(setup: Setup, context: ssl.SSLContext | None) -> bytes:
    """What a client that connects like this is answered."""
    with contextlib.suppress(ssl.SSLError, OSError):
        reader, writer = await asyncio.open_connection("localhost", setup.receiver.ports[0], ssl=context)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await reader.read(100)
        writer.transport.abort()
        return answer
    return b""


def test_old_tls_and_no_tls_are_refused(tmp_path: Path) -> None:
    async def test(setup: Setup) -> None:
        old = tls_of("kube-apiserver")
        old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        old.set_ciphers("ALL:@SECLEVEL=0")
        with contextlib.suppress(ValueError), pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        for context in (old, None):
            assert not await said(setup, context)
        assert await setup.post(ONE) == 200

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (ONE, {"Content-Type": "application/json; charset=utf-8"}, 200),
        (ONE, {"Content-Type": "text/plain"}, 415),
        (ONE, {"Content-Encoding": "gzip"}, 415),
        (b"", {}, 400),
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b'{"items":{}}', {}, 400),
        (b"\xff\xfe", {}, 400),
        (b'{"kind":"EventList","items":[]}', {}, 200),
        (b'{"kind":"EventList","items":null}', {}, 200),
        (ONE[:-5], {}, 400),
    ],
)
def test_a_body_that_is_no_event_list_is_refused_whole(
    body: bytes, headers: dict[str, str], expected: int, tmp_path: Path
) -> None:
    async def test(setup: Setup) -> None:
        assert await setup.post(body, **headers) == expected
        assert await setup.post(event_list(event(99))) == 200
        await eventually(lambda: setup.lines()[-1:] == [event(99)])
        assert len(setup.lines()) == (2 if body == ONE and expected == 200 else 1)

    run(tmp_path, test)


def test_a_body_above_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    big = event_list(event(1, requestURI="/" + "x" * 100_000))

    async def test(setup: Setup) -> None:
        assert await setup.post(big) == 413
        assert await setup.post(ONE) == 200

    run(tmp_path, test, body_limit=50_000)


async def _raw(setup: Setup, head: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(
        "localhost", setup.receiver.ports[0], ssl=tls_of("kube-apiserver"), limit=1 << 20
    )
    writer.write(head)
    await writer.drain()
    return reader, writer


HEAD = b"POST /audit HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_a_body_shorter_than_it_says_takes_nothing(tmp_path: Path) -> None:
    async def test(setup: Setup) -> None:
        _, writer = await _raw(setup, HEAD + b"Content-Length: %d\r\n\r\n" % (len(ONE) + 10) + ONE)
        writer.close()
        await asyncio.sleep(0.1)
        assert not setup.lines()
        assert await setup.post(ONE) == 200

    run(tmp_path, test)


def test_slow_clients_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_HEAD_SECONDS", 0.3)
    for name in ("_HANDSHAKE_SECONDS", "_BODY_SECONDS"):
        monkeypatch.setattr(server_module, name, 0.3)

    async def test(setup: Setup) -> None:
        port = setup.receiver.ports[0]
        silent = await asyncio.open_connection("localhost", port)  # no handshake
        nothing = await _raw(setup, b"")
        headers = await _raw(setup, HEAD)  # no end of headers
        body = await _raw(setup, HEAD + b"Content-Length: 1000\r\n\r\n{")
        trickle = await _raw(setup, HEAD + b"X-Slow: ")
        for _ in range(10):
            with contextlib.suppress(ConnectionError):
                trickle[1].write(b"x")
            await asyncio.sleep(0.05)
        assert await silent[0].read() == b""
        assert await nothing[0].read() == b""
        for reader, _ in (headers, trickle):
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                assert (await reader.read())[:12] in (b"", b"HTTP/1.1 408")
        assert (await body[0].readline()).startswith(b"HTTP/1.1 408")
        assert await setup.post(ONE) == 200
        for _, writer in (silent, nothing, headers, body, trickle):
            writer.transport.abort()

    run(tmp_path, test)


async def _closed(reader: asyncio.StreamReader) -> bool:
    """Whether the other side has ended the connection, at least in a moment."""
    with contextlib.suppress(TimeoutError, ConnectionError, ssl.SSLError):
        async with asyncio.timeout(0.1):
            return await reader.read(1) == b""
    return reader.at_eof() or reader.exception() is not None


def test_a_thousand_idle_connections_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_HANDSHAKES", 20)

    async def test(setup: Setup) -> None:
        idle = [await asyncio.open_connection("127.0.0.1", setup.receiver.ports[0]) for _ in range(400)]
        assert await setup.post(ONE) == 200
        # The oldest gave way: of those that show no certificate, no more are kept than may shake hands.
        closed = await asyncio.gather(*(_closed(reader) for reader, _ in idle))
        assert closed.count(False) <= 20
        assert all(closed[:300])
        for _, writer in idle:
            writer.transport.abort()

    run(tmp_path, test)


def test_connections_give_their_slot_back_however_they_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_CONNECTIONS", 3)

    async def test(setup: Setup) -> None:
        # With so few slots, one that is lost each time would let nobody in at the fourth time.
        for number in range(10):
            assert await setup.post(event_list(event(number))) == 200
            _, writer = await _raw(setup, HEAD)
            writer.transport.abort()
            plain = await asyncio.open_connection("localhost", setup.receiver.ports[0])
            plain[1].write(b"nonsense that is no handshake\r\n\r\n")
            plain[1].close()

    run(tmp_path, test)


def test_many_posts_at_once_are_all_answered(tmp_path: Path) -> None:
    async def test(setup: Setup) -> None:
        async with client() as session:

            async def post(number: int) -> int:
                body = event_list(*(event(number * 10 + n) for n in range(10)))
                async with session.post(
                    f"{setup.url}/audit", data=body, headers={"Content-Type": "application/json"}
                ) as response:
                    return response.status

            assert set(await asyncio.gather(*map(post, range(100)))) == {200}
        await eventually(lambda: len(setup.lines()) == 1000)

    run(tmp_path, test)


def test_health_and_metrics_are_plain(tmp_path: Path) -> None:
    async def test(setup: Setup) -> None:
        import aiohttp

        await setup.post(ONE)
        await setup.post(b"7")
        await eventually(lambda: len(setup.lines()) == 1)
        await eventually(lambda: setup.receiver.journal.logs["audit-system/siem"].backlog == 0)
        async with aiohttp.ClientSession() as session:
            for path, expected in (("/livez", 200), ("/readyz", 200), ("/audit", 404)):
                async with session.get(setup.plain + path) as response:
                    assert response.status == expected
            async with session.get(setup.plain + "/metrics") as response:
                text = await response.text()
        for line in (
            'audit_receiver_posts_total{code="200",server="kube-apiserver"} 1.0',
            'audit_receiver_posts_total{code="400",server="kube-apiserver"} 1.0',
            'audit_receiver_received_events_total{server="kube-apiserver"} 1.0',
            'audit_receiver_decided_events_total{level="RequestResponse",policy="audit-system/all",rule=""} 1.0',
            'audit_receiver_journaled_events_total{sink="audit-system/siem"} 1.0',
            'audit_receiver_delivered_events_total{sink="audit-system/siem"} 1.0',
            'audit_receiver_backlog_events{sink="audit-system/siem"} 0.0',
            'audit_receiver_delivery_latency_seconds_count{sink="audit-system/siem"} 1.0',
            "audit_receiver_ready 1.0",
        ):
            assert line in text

    run(tmp_path, test)


def test_new_certificates_are_taken_up_and_broken_ones_are_not(tmp_path: Path) -> None:
    async def test(setup: Setup) -> None:
        folder = setup.certificates
        async with client() as session:

            async def post() -> int:
                async with session.post(
                    f"{setup.url}/audit", data=ONE, headers={"Content-Type": "application/json"}
                ) as response:
                    return response.status

            assert await post() == 200
            (folder / "tls.crt").write_text("nonsense")
            await eventually(lambda: setup.receiver.certificates.error)
            assert await setup.post(ONE) == 200
            written(folder, issued("audit-receiver-new", "localhost"))
            await eventually(lambda: not setup.receiver.certificates.error)
            assert await post() == 200  # the open connection goes on
        reader, writer = await asyncio.open_connection(
            "localhost", setup.receiver.ports[0], ssl=tls_of("kube-apiserver")
        )
        subject = writer.get_extra_info("peercert")["subject"]
        assert subject == ((("commonName", "audit-receiver-new"),),)
        writer.close()
        assert reader

    run(tmp_path, test)


def test_a_receiver_without_certificates_or_program_is_not_ready_and_waits_for_them(tmp_path: Path) -> None:
    async def whole() -> None:
        import aiohttp

        setup = Setup(tmp_path, None)
        (setup.certificates / "tls.key").rename(tmp_path / "key")
        await setup.receiver.start()
        try:
            async with aiohttp.ClientSession() as session:

                async def ready() -> tuple[int, str]:
                    async with session.get(setup.plain + "/readyz") as response:
                        return response.status, await response.text()

                assert await ready() == (503, "there is no program yet\n")
                setup.mount(program())
                await eventually(ready, lambda found: "certificates" in found[1])
                (tmp_path / "key").rename(setup.certificates / "tls.key")
                await eventually(ready, lambda found: found[0] == 200)
                assert await setup.post(ONE) == 200
        finally:
            await setup.receiver.stop(delivery_grace=1.0)

    uvloop.run(whole())


def test_what_is_being_answered_when_it_stops_is_answered(tmp_path: Path) -> None:
    answers = []

    async def whole() -> None:
        async with receiving(tmp_path, program()) as setup:

            async def post(number: int) -> None:
                answers.append(await setup.post(event_list(event(number))))

            tasks = [asyncio.create_task(post(number)) for number in range(5)]
            await eventually(lambda: answers)
        await asyncio.gather(*tasks, return_exceptions=True)

    uvloop.run(whole())
    delivered = Setup(tmp_path, None).lines()
    assert len(delivered) >= answers.count(200) >= 1


def test_the_status_has_a_versioned_schema(tmp_path: Path) -> None:
    async def test(setup: Setup) -> None:
        await setup.post(ONE)
        await eventually(lambda: len(setup.lines()) == 1)
        found = await setup.status()
        assert found["schema"] == "status.receiver.audit-operator.dev/v1"
        assert found["receiver"] == "audit-receiver-0"
        assert found["ready"] is True
        assert found["servers"] == {"kube-apiserver": json.loads(ONE)["items"][0]["stageTimestamp"]}
        (sink,) = found["sinks"]
        assert (sink["name"], sink["type"], sink["state"]) == ("audit-system/siem", "file", "Delivering")
        assert (sink["backlogEvents"], sink["dropped"], sink["dropping"]) == (0, 0, False)

    run(tmp_path, test)
