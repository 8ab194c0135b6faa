"""Integrity of the objectStore sink: a chain over objects that survives what happens between two requests, a bucket's
lifecycle, and receivers that begin again; against a bucket in memory, obstore's own, and moto."""

import asyncio
import contextlib
import gzip
import itertools
import json
import random
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aws_doubles import AUTH, KEY_ID, moto, write_keys
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integrity_cases import KEY, Verified, pem, public_pem
from sink_cases import credential, item, made

from audit_operator.cli.verify import Bucket
from audit_operator.receiver.integrity import fingerprint
from audit_operator.receiver.sinks import Batch, SecretFile, UnreachableError
from audit_operator.receiver.sinks.chain import Chain, Integrity, Names
from audit_operator.receiver.verification import NOTES, CannotCheckError, Kind, Verification

pytest.importorskip("obstore")
pytest.importorskip("awscrt")

from audit_operator.receiver.sinks.object_store import ObjectStore, base_of

PREFIX = "prod/audit-system/archive/%Y/%m/%d/%H"
BASE = "prod/audit-system/archive/"


class Memory:
    """A bucket. ``fail``: the put that fails, and whether the object is there all the same."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts = 0
        self.fail: tuple[int, bool] = (-1, False)

    async def put(self, key: str, body: bytes, kind: str) -> None:
        at, self.puts = self.puts, self.puts + 1
        if at != self.fail[0] or self.fail[1]:
            self.objects[key] = body
        if at == self.fail[0]:
            raise UnreachableError("cut off")

    async def close(self) -> None:
        """Nothing to do."""

    def names(self) -> Iterator[str]:
        yield from sorted(self.objects)

    def pieces(self, name: str) -> Iterator[bytes]:
        if name not in self.objects:
            raise FileNotFoundError(name)
        body = self.objects[name]
        yield from (body[at : at + 100] for at in range(0, len(body), 100))


def hours(*numbers: int) -> Batch:
    """Events of two hours in turn."""
    items = [
        msgspec.structs.replace(item(number), timestamp=f"2026-11-23T0{4 + number % 2}:00:00.{number:06}Z")
        for number in numbers
    ]
    return Batch("prod", items, sum(len(each.data) for each in items))


def sink(store: Memory, folder: Path, receiver: str = "r-0", retention_days: int | None = None) -> ObjectStore:
    """A receiver that has just begun; what it remembers is in the folder."""
    (folder / "key.pem").write_text(pem(KEY))
    reference = SecretFile(file=str(folder / "key.pem"))
    names = Names("prod", "audit-system/archive", receiver)
    chain = Chain(folder / f"{receiver}.json", names, Integrity(signing_key=reference, retention_days=retention_days))
    return ObjectStore(PREFIX, "gzip", names, store, chain)


def write(store: Memory, folder: Path, *batches: Batch, **options: Any) -> None:
    """A receiver's life."""

    async def run() -> None:
        one = sink(store, folder, **options)
        await one.open()
        for each in batches:
            assert not (await one.deliver(each)).retry
        await one.close()

    asyncio.run(run())


def verified(store: Any, now: datetime | None = None) -> Verified:
    verification = Verification(store, {fingerprint(KEY.public_key()): KEY.public_key()}, now or datetime.now(UTC))
    found = list(verification.findings())
    return Verified(
        [each for each in found if each.kind not in NOTES],
        [each for each in found if each.kind in NOTES],
        verification.reports(),
    )


def written(folder: Path) -> Memory:
    store = Memory()
    write(store, folder, hours(1, 2, 3), hours(4), hours(5, 6))
    return store


def test_objects_of_a_receiver_are_one_chain(tmp_path: Path) -> None:
    store = written(tmp_path)
    found = verified(store)
    assert (found.findings, found.notes) == ([], [])
    (chain,) = found.chains
    assert (chain.first, chain.last, chain.files, chain.events) == (1, 5, 5, 6)
    digests = [json.loads(body) for key, body in store.objects.items() if key.endswith(".manifest.json")]
    digests.sort(key=lambda digest: digest["chain"]["sequence"])
    assert digests[0]["chain"]["start"] == "New"
    assert [digest["chain"].get("previous", {}).get("sequence") for digest in digests] == [None, 1, 2, 3, 4]
    assert digests[0]["object"] == BASE + digests[0]["chain"]["file"]


def test_the_folder_of_a_chain_is_what_times_do_not_change() -> None:
    cases = {PREFIX: BASE, "%Y/a": "", "a/b": "a/b/", "/a/x-%d/b/": "a/", "a": "a/"}
    assert {prefix: base_of(prefix) for prefix in cases} == cases


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_done_to_one_object_is_named_exactly(data: st.DataObject, tmp_path_factory: Any) -> None:
    store = Memory()
    store.objects = dict(_whole(tmp_path_factory).objects)
    key = data.draw(st.sampled_from(sorted(store.objects)), "object")
    body = store.objects[key]
    changed = Kind.SIGNATURE if key.endswith(".json") else Kind.CHANGED
    match data.draw(st.sampled_from(["flip", "remove", "cut", "move", "add"]), "what"):
        case "flip":
            at = data.draw(st.integers(0, len(body) - 1), "at")
            store.objects[key] = body[:at] + bytes([body[at] ^ data.draw(st.integers(1, 255))]) + body[at + 1 :]
            expected = {(changed, key)}
        case "remove":
            del store.objects[key]
            expected = {(Kind.REMOVED, key)}
        case "cut":
            store.objects[key] = body[: data.draw(st.integers(0, len(body) - 1), "to")]
            expected = {(changed, key)}
        case "move" if not key.endswith(".json"):
            store.objects["prod/elsewhere.gz"] = store.objects.pop(key)
            expected = {(Kind.REMOVED, key), (Kind.ADDED, "prod/elsewhere.gz")}
        case _:
            new = f"{BASE}2026/11/23/04/20261123T040000.000001Z_r-0_000000000001-000000000002.jsonl.gz"
            store.objects[new] = body
            expected = {(Kind.ADDED, new)}
    assert verified(store).said == expected


_kept: list[Memory] = []


def _whole(factory: Any) -> Memory:
    if not _kept:
        _kept.append(written(factory.mktemp("whole")))
    return _kept[0]


def delivered(store: Memory) -> list[int]:
    """Numbers of the events in objects that have a digest."""
    found = []
    for key, body in store.objects.items():
        if key.endswith(".gz") and f"{key.rpartition('/')[0]}/_{key.rpartition('/')[2]}.manifest.json" in store.objects:
            found += [json.loads(line)["auditID"] for line in gzip.decompress(body).splitlines()]
    return sorted(int(each[-12:]) for each in found)


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("recut", [False, True])
def test_a_receiver_that_dies_at_any_request_breaks_no_chain(is_there: bool, recut: bool, memory: Path) -> None:
    """Whether the bucket got the object or not, and whether the next one cuts the batch as the dead one did."""
    events = [hours(1, 2), hours(3, 4, 5), hours(6)]
    for call in itertools.count():
        folder, store = memory / str(call), Memory()
        folder.mkdir()
        store.fail = (call, is_there)

        async def run(store: Memory = store, folder: Path = folder) -> list[Batch]:
            one = sink(store, folder)
            left = list(events)
            with contextlib.suppress(UnreachableError):
                while left and not (await one.deliver(left[0])).retry:
                    del left[0]
            return left

        left = asyncio.run(run())
        failed, store.fail = store.puts > call, (-1, False)
        assert not failed or verified_or_nothing(store) == []
        numbers = [each.sequence for batch in left for each in batch.items]
        again = [hours(number) for number in numbers] if recut else left
        write(store, folder, *again, hours(7))
        after = verified(store)
        assert after.findings == [], call
        assert {note.kind for note in after.notes} <= {Kind.UNFINISHED}
        assert set(delivered(store)) == set(range(1, 8))
        if not recut:
            assert (after.notes, delivered(store)) == ([], list(range(1, 8)))
        if not failed:
            break
    assert call > 12


def verified_or_nothing(store: Memory) -> Sequence[Any]:
    """Before the first digest or head there is nothing to be said."""
    try:
        return verified(store).findings
    except CannotCheckError:
        return []


def test_receivers_that_die_again_and_again_break_no_chain(memory: Path) -> None:
    """With batches cut anew each time, and what was taken not always noted as taken."""
    generator = random.Random(11)
    for round_ in range(15):
        store, folder = Memory(), memory / str(round_)
        folder.mkdir()
        taken = 0
        while taken < 30:
            store.fail = (store.puts + generator.randrange(12), generator.random() < 0.5)
            before = max(0, taken - generator.randrange(3))
            cuts = [before]
            while cuts[-1] < 30:
                cuts.append(min(30, cuts[-1] + generator.randrange(1, 6)))
            taken = max(taken, asyncio.run(_until_it_dies(store, folder, cuts)))
            assert verified_or_nothing(store) == [], round_
        store.fail = (-1, False)
        write(store, folder, hours(31))
        after = verified(store)
        assert after.findings == []
        assert {note.kind for note in after.notes} <= {Kind.UNFINISHED}
        assert set(delivered(store)) == set(range(1, 32))


async def _until_it_dies(store: Memory, folder: Path, cuts: list[int]) -> int:
    one = sink(store, folder)
    for start, end in itertools.pairwise(cuts):
        try:
            if (await one.deliver(hours(*range(start + 1, end + 1)))).retry:
                return start
        except UnreachableError:
            return start
    return cuts[-1]


def test_deliveries_side_by_side_are_one_chain_whatever_fails(memory: Path) -> None:
    """Batches overtake each other (concurrency above 1), some fail, some are given up half way, the process ends."""
    generator = random.Random(3)
    for round_ in range(10):
        store, folder = Memory(), memory / str(round_)
        folder.mkdir()
        left = [hours(*range(first, first + 3)) for first in range(1, 31, 3)]

        async def run(left: list[Batch], store: Memory = store, folder: Path = folder) -> list[Batch]:
            one = sink(store, folder)
            generator.shuffle(left)
            tasks = {asyncio.create_task(one.deliver(each)): each for each in left}
            given_up = generator.choice(list(tasks))
            asyncio.get_running_loop().call_later(generator.uniform(0, 0.02), given_up.cancel)
            await asyncio.wait(tasks)
            return [each for task, each in tasks.items() if task.cancelled() or task.exception() or task.result().retry]

        while left:
            store.fail = (store.puts + generator.randrange(20), generator.random() < 0.5)
            left = asyncio.run(run(left))
            assert verified_or_nothing(store) == [], round_
        store.fail = (-1, False)
        write(store, folder, hours(31))
        after = verified(store)
        assert after.findings == []
        # Where another batch came before the receiver's very first event, nobody can tell that it was the first.
        assert {note.kind for note in after.notes} <= {Kind.ANEW}
        assert delivered(store) == list(range(1, 32))


def test_what_a_lifecycle_removed_is_no_finding_and_what_went_sooner_is(tmp_path: Path) -> None:
    store = Memory()
    write(store, tmp_path, hours(1), hours(2), hours(3), hours(4), retention_days=30)
    names = sorted(
        (json.loads(body)["chain"]["sequence"], key)
        for key, body in store.objects.items()
        if key.endswith(".manifest.json")
    )
    for _, key in names[:2]:
        del store.objects[key]
        del store.objects[key.replace("/_", "/").removesuffix(".manifest.json")]
    now = datetime.now(UTC)
    assert verified(store, now + timedelta(days=31)).findings == []
    found = verified(store, now + timedelta(days=29))
    assert (Kind.REMOVED, names[1][1]) in found.said
    assert {kind for kind, _ in found.said} == {Kind.REMOVED}


def test_two_receivers_and_one_that_forgot_are_chains_of_their_own(tmp_path: Path) -> None:
    store = Memory()
    write(store, tmp_path, hours(1, 2), hours(3))
    write(store, tmp_path, hours(1, 2), hours(3), receiver="r-1")
    (tmp_path / "r-0.json").unlink()
    write(store, tmp_path, hours(4))
    found = verified(store)
    assert found.findings == []
    assert [note.kind for note in found.notes] == [Kind.ANEW]
    assert sorted((chain.receiver, chain.last) for chain in found.chains) == [("r-0", 1), ("r-0", 3), ("r-1", 3)]


def test_a_bucket_that_lets_nobody_overwrite_is_no_obstacle(tmp_path: Path) -> None:
    class Locked(Memory):
        async def put(self, key: str, body: bytes, kind: str) -> None:
            if key in self.objects:
                raise UnreachableError("it is locked")
            await super().put(key, body, kind)

    store = Locked()
    write(store, tmp_path, hours(1, 2, 3), hours(4), hours(5))
    assert verified(store).findings == []
    assert verified(store).chains[0].last == 4


def test_a_part_of_a_chain_is_no_chain(tmp_path: Path) -> None:
    store, part = written(tmp_path), Memory()
    part.objects = {key.removeprefix(f"{BASE}2026/"): body for key, body in store.objects.items() if "/2026/" in key}
    with pytest.raises(CannotCheckError, match="name a folder above"):
        verified(part)
    moved = Memory()
    moved.objects = {f"copy/{key.removeprefix('prod/')}": body for key, body in store.objects.items()}
    assert verified(moved).findings == []


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_obstore_lists_and_reads_what_is_verified(kind: str, tmp_path: Path) -> None:
    from obstore.store import LocalStore, MemoryStore

    written_ = written(tmp_path)
    store: Any = MemoryStore() if kind == "memory" else LocalStore(str(tmp_path / "bucket"), mkdir=True)
    for key, body in written_.objects.items():
        store.put(key, body)
    assert verified(Bucket(store, "memory://")).findings == []
    gone = next(key for key in written_.objects if key.endswith(".jsonl.gz"))
    store.delete(gone)
    assert verified(Bucket(store, "memory://")).said == {(Kind.REMOVED, gone)}


def test_moto_is_verified_by_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from audit_operator.cli.app import app

    with moto() as url:
        write_keys(tmp_path)
        credential(tmp_path, "signing", "key.pem", pem(KEY))
        authorization = (
            "AWS4-HMAC-SHA256 Credential=k/20261123/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
        )
        headers = {"Authorization": authorization}
        urllib.request.urlopen(urllib.request.Request(f"{url}/audit", b"", headers, method="PUT")).close()
        s3 = {"bucket": "audit", "region": "us-east-1", "endpoint": url, "pathStyle": True, "auth": AUTH}
        spec = {"s3": s3, "integrity": {"signingKey": {"name": "signing", "key": "key.pem"}, "retentionDays": 365}}

        async def run() -> None:
            for numbers in ((1, 2, 3), (4, 5)):
                one = made(tmp_path, objectStore=spec)
                await one.deliver(hours(*numbers))
                await one.close()

        asyncio.run(run())
        (tmp_path / "audit.pub").write_bytes(public_pem(KEY))
        for name, value in (("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", "k"), ("AWS_REGION", "us-east-1")):
            monkeypatch.setenv(name, value)
        arguments = ["verify", "--public-key", str(tmp_path / "audit.pub"), "--endpoint", url, "-o", "json"]
        result = CliRunner().invoke(app, [*arguments, "s3://audit/prod/audit-system"], catch_exceptions=False)
        report = json.loads(result.output)
        assert (result.exit_code, report["intact"], report["found"]) == (0, True, 0)
        assert (report["chains"][0]["last"], report["chains"][0]["events"]) == (4, 5)
        key = json.loads(result.output)["chains"][0]["digest"]
        gone = f"{url}/audit/prod/audit-system/{key}"
        urllib.request.urlopen(urllib.request.Request(gone, headers=headers, method="DELETE")).close()
        result = CliRunner().invoke(app, [*arguments, "s3://audit/prod"], catch_exceptions=False)
        findings = [each for each in json.loads(result.output)["findings"] if "note" not in each]
        assert (result.exit_code, [each["kind"] for each in findings]) == (1, ["removed"])
        assert findings[0]["file"] == f"audit-system/{key}"
        for place in ("s3://nobody-has-it/x", "s3://audit/nothing"):
            assert CliRunner().invoke(app, [*arguments, place]).exit_code == 2
