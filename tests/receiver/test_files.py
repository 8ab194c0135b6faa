"""Files: their modes, how many bytes they take, and a volume that is full for a while."""

import asyncio
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from integrity_cases import KEY, pem
from receiving import event, event_list, eventually, program, receiving
from sink_cases import batch

from audit_operator.receiver.files import Account
from audit_operator.receiver.quarantine import malformed
from audit_operator.receiver.sinks import SecretFile
from audit_operator.receiver.sinks.chain import Chain, Integrity, Names
from audit_operator.receiver.sinks.file import File, Rules
from audit_operator.render.program import encode

KINDS = [
    {"compression": "None"},
    {"compression": "gzip"},
    {"compression": "zstd", "signed": True},
    {"compression": "gzip", "encrypted": True},
    {"compression": "gzip", "encrypted": True, "signed": True},
]


def file_sink(
    folder: Path,
    account: Account | None = None,
    *,
    compression: str,
    signed: bool = False,
    encrypted: bool = False,
    max_files: int = 3,
) -> File:
    """A new file every two events."""
    chain = None
    if signed:
        key = folder / "key.pem"
        key.write_text(pem(KEY))
        integrity = Integrity(signing_key=SecretFile(file=str(key)))
        chain = Chain(folder / "state/ns/a/1.json", Names("prod", "ns/a", "r-0"), integrity)
    rules = Rules(max_size=1000, max_age=1e9, max_files=max_files, compression=compression)  # type: ignore[arg-type]
    encrypt = (lambda data: b"AGE" + data) if encrypted else None
    return File(folder / "files/prod/a.log", rules, chain=chain, encrypt=encrypt, account=account)


def deliver(made: File, numbers: range) -> None:
    async def run() -> None:
        await made.open()
        for number in numbers:
            await made.deliver(batch(number))
        await made.close()

    asyncio.run(run())


@pytest.fixture(params=[0o000, 0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> tuple[set[int], set[int]]:
    """Of files, and of folders, this one included."""
    everything = [folder, *folder.rglob("*")]
    return (
        {stat.S_IMODE(path.stat().st_mode) for path in everything if path.is_file()},
        {stat.S_IMODE(path.stat().st_mode) for path in everything if path.is_dir()},
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_file_of_a_sink_has_the_mode_of_the_live_one(kind: dict[str, Any], umask: int, tmp_path: Path) -> None:
    deliver(file_sink(tmp_path, **kind), range(1, 8))
    assert len(list((tmp_path / "files/prod").iterdir())) > 3
    assert modes(tmp_path / "files") == ({0o640}, {0o750})
    if kind.get("signed"):
        assert modes(tmp_path / "state") == ({0o600}, {0o700})


def test_what_only_the_receiver_reads_is_nobody_elses(umask: int, tmp_path: Path) -> None:
    async def whole() -> None:
        async with receiving(tmp_path, program()) as setup:
            assert await setup.post(event_list(event(1))) == 200
            assert (await setup.ask("PUT", "/program", encode(program()).encode()))[0] == 200
            setup.receiver.quarantine.put("audit-system/siem", [malformed("kube-apiserver", b"{", "no", "now")])
            setup.receiver.quarantine.ask_again("audit-system/siem", None)
            await setup.receiver.journal.probe()
            await eventually(lambda: len(setup.lines()) == 1)

    uvloop.run(whole())
    assert modes(tmp_path / "journal") == ({0o600}, {0o700})


def test_the_mode_of_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    """Kubernetes gives volumes to a group (fsGroup), and the next pod's user may be another."""
    deliver(file_sink(tmp_path, compression="None"), range(1, 2))
    live = tmp_path / "files/prod/a.log"
    live.chmod(0o660)
    deliver(file_sink(tmp_path, compression="None"), range(2, 3))
    assert stat.S_IMODE(live.stat().st_mode) == 0o660


# --- how much there is -----------------------------------------------------------------------------------------------


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_account_is_right_without_counting(kind: dict[str, Any], tmp_path: Path) -> None:
    account = Account(tmp_path / "files")
    deliver(file_sink(tmp_path, account, **kind), range(1, 12))
    assert account.bytes == bytes_of(tmp_path / "files") > 0
    deliver(file_sink(tmp_path, account, **kind), range(12, 15))
    assert account.bytes == bytes_of(tmp_path / "files")
    again = Account(tmp_path / "files")
    again.count()
    assert again.bytes == account.bytes


def test_what_others_do_is_found_sooner_if_somebody_waits_for_room(tmp_path: Path) -> None:
    now = [0.0]
    account = Account(tmp_path, lambda: now[0])
    assert account.due(full=False)
    account.count()
    (tmp_path / "other").write_bytes(b"x" * 1000)
    now[0] = 20.0
    assert not account.due(full=False)
    assert account.due(full=True)
    account.count()
    assert account.bytes == 1000
    account.add(tmp_path / "a.log", 10)
    account.add(tmp_path.parent / "on a claim", 10)
    assert account.bytes == 1010
    now[0] = 1000.0
    assert account.due(full=False)


_LISTED: list[str] = []


def _listing(event_name: str, arguments: tuple[object, ...]) -> None:
    if event_name in ("os.scandir", "os.listdir"):
        _LISTED.append(str(arguments[0]))


def test_looking_for_room_lists_no_files(tmp_path: Path) -> None:
    async def whole() -> None:
        async with receiving(tmp_path, program()) as setup:
            assert await setup.post(event_list(event(1))) == 200
            await eventually(lambda: len(setup.lines()) == 1)
            await setup.receiver.running.make_room()
            sys.addaudithook(_listing)
            _LISTED.clear()
            for _ in range(100):
                await setup.receiver.running.make_room()
            assert not [path for path in _LISTED if path.startswith(str(tmp_path / "files"))]

    uvloop.run(whole())


# --- a full volume ---------------------------------------------------------------------------------------------------

FULL = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from sink_cases import batch
from test_files import file_sink
from test_journal import SINK, group, ids
from audit_operator.receiver.journal import AppendError, Journal
from audit_operator.receiver.quarantine import Quarantine, refused
from audit_operator.receiver.sinks import UnreachableError

volume = Path({volume!r})
ballast = volume / "ballast"


def held(number):
    return refused("server", b'{{"auditID":"%d","requestURI":"%s"}}' % (number, b"x" * 3000), "no", "now")


async def until_full(act, errors):
    done = []
    for number in range(1, 10_000):
        try:
            await act(number)
        except errors as error:
            return done, str(error)
        done.append(number)


async def main():
    ballast.write_bytes(bytes(3 << 20))
    journal, quarantine = Journal(volume / "journal"), Quarantine(volume / "journal/quarantine")
    sink = file_sink(volume, compression={compression!r}, signed={signed!r}, encrypted={encrypted!r}, max_files=10_000)
    await journal.open()
    await journal.log(SINK)
    await sink.open()

    async def post(number):
        await journal.append({{SINK: group(number, size=9000)}})

    async def deliver(number):
        await sink.deliver(batch(number, size=5000))

    async def keep(number):
        quarantine.put(SINK, [held(number)])

    taken, why = await until_full(post, AppendError)
    assert "no space left" in why, why
    (journal_room := volume / "room").write_bytes(b"")
    delivered, why = await until_full(deliver, UnreachableError)
    assert "no space left" in why, why
    kept, why = await until_full(keep, OSError)
    for _ in range(3):  # and again
        for act, errors in ((post, AppendError), (deliver, UnreachableError), (keep, OSError)):
            try:
                await act(20_000)
            except errors:
                pass
    ballast.unlink()
    await journal.probe()
    assert not journal.failure
    for number in (30_001, 30_002):
        await post(number)
        await deliver(number)
        await keep(number)
        taken.append(number), delivered.append(number), kept.append(number)
    found = ids(journal.logs[SINK])
    assert [name for name in found if name != "id-20000"] == [f"id-{{number}}" for number in taken]
    await sink.close()
    await journal.close()
    journal = Journal(volume / "journal")
    await journal.open()
    assert ids(journal.logs[SINK]) == found
    await journal.close()
    text = [entry.id for entry in quarantine.entries(SINK)]
    assert [held(number).id for number in kept] == [each for each in text if each != held(20_000).id]
    print(len(taken), len(delivered), len(kept), max(delivered))


asyncio.run(main())
"""


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_full_volume_loses_nothing_and_is_used_again_without_a_restart(kind: dict[str, Any], tmp_path: Path) -> None:
    mounted = tmp_path / "volume"
    mounted.mkdir()
    options = {"signed": False, "encrypted": False, **kind}
    code = FULL.format(tests=str(Path(__file__).parent), volume=str(mounted), **options)
    enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f'mount -t tmpfs -o size=6m tmpfs "{mounted}"'
    if shutil.which("unshare") is None or subprocess.run([*enter, mount], capture_output=True, check=False).returncode:
        pytest.skip("no mounts in a user namespace here (kernel.unprivileged_userns_clone, AppArmor)")
    done = subprocess.run(
        [*enter, f'{mount} && exec "$0" "$@"', sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    taken, delivered, kept, last = map(int, done.stdout.split())
    assert taken > 100
    assert last == 30_002
    assert delivered >= 2
    assert kept >= 2
