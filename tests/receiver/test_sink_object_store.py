"""The objectStore sink: what is in an object and its manifest, locks, roles; against moto (S3) and azurite (Azure)
where they are installed, and for GCS against a double that verifies tokens."""

import asyncio
import contextlib
import gzip
import hashlib
import hmac
import json
import socket
import time
import urllib.error
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
import pytest
import zstandard
from aws_doubles import AUTH, S3, listening, moto, write_keys
from faults import FaultyServer, Reply, Request, status
from google_double import account_key, key
from sink_cases import batch, credential, item, made, sink_program, surroundings

from audit_operator.receiver.reach import Reach
from audit_operator.receiver.sinks import (
    TAKEN,
    Batch,
    MisconfiguredError,
    Result,
    Sink,
    UnauthorizedError,
    UnknownSinkError,
    UnreachableError,
    make,
)

pytest.importorskip("obstore")
pytest.importorskip("awscrt")

NAME = "20261123T043304.000001Z_audit-receiver-0_000000000001-000000000003.jsonl"
FOLDER = "prod/audit-system/siem/2026/11/23/04"


async def one(sink: Sink, *batches: Batch) -> list[Result]:
    try:
        return [await sink.deliver(each) for each in batches]
    finally:
        await sink.close()


def in_s3(double: S3, folder: Path, *batches: Batch, prefix: str | None = None, **spec: Any) -> list[Result]:
    async def run() -> list[Result]:
        async with FaultyServer(double.answer) as server:
            given = double.spec(server.url, folder)
            given["s3"] |= spec.pop("s3", {})
            given |= {"prefix": prefix or "{cluster}/{namespace}/{sink}/%Y/%m/%d/%H"} | spec
            return await one(made(folder, objectStore=given, tls={"caBundle": server.ca}), *batches)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("compression", "suffix", "unpacked"),
    [
        ("None", "", lambda body: body),
        ("gzip", ".gz", gzip.decompress),
        ("zstd", ".zst", lambda body: zstandard.ZstdDecompressor().decompress(body, max_output_size=1 << 20)),
    ],
)
def test_an_object_is_the_events_and_its_manifest_proves_it(
    compression: str, suffix: str, unpacked: Any, tmp_path: Path
) -> None:
    double, events = S3(), batch(1, 2, 3)
    assert in_s3(double, tmp_path, events, events, compression=compression) == [TAKEN, TAKEN]
    assert sorted(double.objects) == [f"{FOLDER}/{NAME}{suffix}", f"{FOLDER}/_{NAME}{suffix}.manifest.json"]
    body, manifest = (double.objects[key] for key in sorted(double.objects))
    assert unpacked(body) == b"".join(each.data + b"\n" for each in events.items)
    assert json.loads(manifest) == {
        "version": 1,
        "object": f"{FOLDER}/{NAME}{suffix}",
        "cluster": "prod",
        "sink": "audit-system/siem",
        "receiver": "audit-receiver-0",
        "events": 3,
        "firstSequence": 1,
        "lastSequence": 3,
        "firstTimestamp": events.items[0].timestamp,
        "lastTimestamp": events.items[2].timestamp,
        "bytes": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "uncompressedBytes": len(unpacked(body)),
        "uncompressedSHA256": hashlib.sha256(unpacked(body)).hexdigest(),
    }


def test_events_of_two_hours_are_two_objects_and_fare_apart(tmp_path: Path) -> None:
    double = S3()
    items = [item(1), msgspec.structs.replace(item(2), timestamp="2026-11-23T05:00:00.000000Z"), item(3)]
    ok = double.answer

    def answer(request: Request) -> Reply:
        return Reply(503, b"<Error><Code>SlowDown</Code></Error>") if "/05/" in request.path else ok(request)

    double.answer = answer  # type: ignore[method-assign]
    (result,) = in_s3(double, tmp_path, Batch("prod", items, 1))
    assert list(result.retry) == [1]
    assert len(double.objects) == 2
    double.answer = ok  # type: ignore[method-assign]
    in_s3(double, tmp_path, Batch("prod", items[1:2], 1))
    assert len(double.taken) == 3


def test_objects_are_locked_and_encrypted_as_the_settings_say(tmp_path: Path) -> None:
    double = S3()
    s3 = {
        "storageClass": "GLACIER_IR",
        "encryption": {"algorithm": "aws:kms", "kmsKeyID": "arn:aws:kms:eu:1:key/k"},
        "objectLock": {"mode": "Compliance", "retentionDays": 365},
    }
    in_s3(double, tmp_path, batch(1), s3=s3)
    assert len(double.headers) == 2
    for headers in double.headers.values():
        assert headers["x-amz-storage-class"] == "GLACIER_IR"
        assert headers["x-amz-server-side-encryption"] == "aws:kms"
        assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "arn:aws:kms:eu:1:key/k"
        assert headers["x-amz-object-lock-mode"] == "COMPLIANCE"
        until = time.strptime(headers["x-amz-object-lock-retain-until-date"], "%Y-%m-%dT%H:%M:%SZ")
        assert 364 < (time.mktime(until) - time.mktime(time.gmtime())) / 86400 < 366


def test_an_expired_token_and_a_wrong_bucket_cost_no_event(tmp_path: Path) -> None:
    double = S3()

    async def run() -> None:
        async with FaultyServer(double.answer) as server:
            sink = made(tmp_path, objectStore=double.spec(server.url, tmp_path), tls={"caBundle": server.ca})
            for body, error in (
                (b"<Error><Code>ExpiredToken</Code></Error>", UnauthorizedError),
                (b"<Error><Code>InvalidRequest</Code></Error>", MisconfiguredError),
            ):
                server.fail(status(400, body))
                with pytest.raises(error):
                    await sink.deliver(batch(1))
            await sink.close()

    asyncio.run(run())


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.mark.parametrize("role", [False, True])
def test_moto_has_every_object(role: bool, aws: str, tmp_path: Path) -> None:
    write_keys(tmp_path)
    bucket, authorization = f"audit-{role}".lower(), "AWS4-HMAC-SHA256 Credential=k/20261123/us-east-1/s3/aws4_request"
    headers = {"Authorization": f"{authorization}, SignedHeaders=host, Signature=0"}
    urllib.request.urlopen(urllib.request.Request(f"{aws}/{bucket}", b"", headers, method="PUT")).close()
    auth = AUTH | ({"assumeRole": {"roleARN": "arn:aws:iam::123456789012:role/audit"}} if role else {})
    s3 = {"bucket": bucket, "region": "us-east-1", "endpoint": aws, "pathStyle": True, "auth": auth}
    assert asyncio.run(one(made(tmp_path, objectStore={"s3": s3}), batch(1, 2, 3))) == [TAKEN]
    with urllib.request.urlopen(urllib.request.Request(f"{aws}/{bucket}/{FOLDER}/{NAME}.gz", headers=headers)) as found:
        assert gzip.decompress(found.read()) == b"".join(each.data + b"\n" for each in batch(1, 2, 3).items)
    missing = made(tmp_path, objectStore={"s3": s3 | {"bucket": "nobody-has-it"}})
    with pytest.raises(MisconfiguredError, match="NoSuchBucket"):
        asyncio.run(one(missing, batch(1)))


# --- Google ----------------------------------------------------------------------------------------------------------


class Gcs:
    """The XML API's PUT Object, with tokens verified as Google does."""

    def __init__(self) -> None:
        self.objects: dict[str, Request] = {}

    def answer(self, request: Request) -> Reply:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or not _authentic(token):
            return Reply(401, b"<Error><Code>AuthenticationRequired</Code></Error>")
        if request.method != "PUT" or not request.path.startswith("/audit/"):
            return Reply(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        self.objects[unquote(request.path.removeprefix("/audit/"))] = request
        return Reply(200, b"", {"ETag": '"1"'})


def _authentic(token: str) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding
    from google_double import _plain

    head, _, signature = token.rpartition(".")
    try:
        key().public_key().verify(_plain(signature), head.encode(), padding.PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, ValueError):
        return False
    return True


def test_google_has_every_object_under_a_token_of_ours(tmp_path: Path) -> None:
    double = Gcs()

    async def run() -> None:
        async with FaultyServer(double.answer) as server:
            gcs = {
                "bucket": "audit",
                "endpoint": server.url,
                "storageClass": "COLDLINE",
                "kmsKeyName": "projects/p/locations/eu/keyRings/r/cryptoKeys/k",
                "credentials": {"name": "google", "key": "key.json"},
            }
            sink = made(tmp_path, objectStore={"gcs": gcs}, tls={"caBundle": server.ca})
            with pytest.raises(UnauthorizedError, match="missing"):
                await sink.deliver(batch(1))
            credential(tmp_path, "google", "key.json", json.dumps({"type": "external_account", "x": "s3cret"}))
            with pytest.raises(UnauthorizedError, match="no key of a service account"):
                await sink.deliver(batch(1))
            # Addresses in a key lead nowhere.
            credential(tmp_path, "google", "key.json", account_key(gcs_base_url="https://localhost:1"))
            server.fail(status(500))
            with pytest.raises(UnreachableError):
                await sink.deliver(batch(1, 2, 3))
            server.fail(status(403))
            with pytest.raises(UnauthorizedError):
                await sink.deliver(batch(1, 2, 3))
            assert await sink.deliver(batch(1, 2, 3)) == TAKEN
            await server.stop()
            with pytest.raises(UnreachableError):
                await sink.deliver(batch(4))
            await sink.close()

    asyncio.run(run())
    assert sorted(double.objects) == [f"{FOLDER}/{NAME}.gz", f"{FOLDER}/_{NAME}.gz.manifest.json"]
    for request in double.objects.values():
        assert request.headers["x-goog-storage-class"] == "COLDLINE"
        assert request.headers["x-goog-encryption-kms-key-name"].endswith("/k")


def test_a_certificate_for_another_name_gets_nothing(tmp_path: Path) -> None:
    double = Gcs()

    async def run() -> None:
        async with FaultyServer(double.answer, names=("other.example",)) as server:
            credential(tmp_path, "google", "key.json", account_key())
            gcs = {"bucket": "audit", "endpoint": server.url, "credentials": {"name": "google", "key": "key.json"}}
            sink = made(tmp_path, objectStore={"gcs": gcs}, tls={"caBundle": server.ca})
            with pytest.raises(UnreachableError):
                await sink.deliver(batch(1))
            await sink.close()
            assert not server.requests

    asyncio.run(run())


# --- Azure -----------------------------------------------------------------------------------------------------------

ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Those that azurite's documentation names."""


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[str]:
    kept = Path(__file__).resolve().parents[2] / ".tools" / "azurite" / "azurite-blob"
    if not kept.exists():
        pytest.skip("azurite-blob is not installed: run scripts/get-azurite")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(kept), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder), "--silent"]
    with listening([*command, "--skipApiVersionCheck"], port):
        yield f"http://127.0.0.1:{port}/{ACCOUNT}"


def ask_azure(method: str, url: str, query: dict[str, str]) -> bytes:
    """A request signed with the account's key."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
    path = url.split("/", 3)[3]
    lines = [method, *[""] * 11, *(f"{name}:{headers[name]}" for name in sorted(headers)), f"/{ACCOUNT}/{path}"]
    text = "\n".join([*lines, *(f"{name}:{query[name]}" for name in sorted(query))])
    digest = b64encode(hmac.digest(b64decode(ACCOUNT_KEY), text.encode(), "sha256")).decode()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{digest}"
    asked = "&".join(f"{name}={value}" for name, value in query.items())
    request = urllib.request.Request(f"{url}?{asked}" if asked else url, headers=headers, method=method)
    with urllib.request.urlopen(request) as answer:
        return bytes(answer.read())


def test_azurite_has_every_object(tmp_path: Path) -> None:
    with azurite(tmp_path) as url:
        ask_azure("PUT", f"{url}/audit", {"restype": "container"})
        auth = {"accountKey": {"name": "azure", "key": "key"}}
        azure = {"storageAccount": ACCOUNT, "container": "audit", "endpoint": url, "accessTier": "Cool", "auth": auth}
        credential(tmp_path, "azure", "key", b64encode(b"wrong").decode())
        with pytest.raises(UnauthorizedError) as refused:
            asyncio.run(one(made(tmp_path, objectStore={"azure": azure}), batch(1)))
        assert b64encode(b"wrong").decode() not in str(refused.value)
        credential(tmp_path, "azure", "key", ACCOUNT_KEY)
        assert asyncio.run(one(made(tmp_path, objectStore={"azure": azure}), batch(1, 2, 3))) == [TAKEN]
        body = ask_azure("GET", f"{url}/audit/{FOLDER}/{NAME}.gz", {})
        assert gzip.decompress(body) == b"".join(each.data + b"\n" for each in batch(1, 2, 3).items)
        assert json.loads(ask_azure("GET", f"{url}/audit/{FOLDER}/_{NAME}.gz.manifest.json", {}))["events"] == 3
        with pytest.raises(MisconfiguredError):
            asyncio.run(one(made(tmp_path, objectStore={"azure": azure | {"container": "nobody"}}), batch(1)))


def test_a_shared_access_signature_is_used_whatever_the_environment_offers_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("CLIENT_ID", "c"), ("TENANT_ID", "t"), ("FEDERATED_TOKEN_FILE", str(tmp_path / "token"))):
        monkeypatch.setenv(f"AZURE_{name}", value)

    async def run() -> None:
        async with FaultyServer(lambda _: Reply(500, b"")) as server:
            credential(tmp_path, "azure", "sas", "sv=2022-11-02&ss=b&sig=s3cretSignature%3D")
            auth = {"sasToken": {"name": "azure", "key": "sas"}}
            azure = {"storageAccount": "audit", "container": "audit", "endpoint": server.url, "auth": auth}
            for fault in (status(500), status(403), status(404), status(400)):
                server.fail(fault)
                with pytest.raises(Exception, match=r".") as caught:
                    await one(made(tmp_path, objectStore={"azure": azure}, tls={"caBundle": server.ca}), batch(1))
                assert "s3cretSignature" in server.requests[-1].path
                assert "s3cretSignature" not in str(caught.value)

    asyncio.run(run())


@pytest.mark.parametrize("store", ["s3", "azure"])
def test_no_connection_is_made_to_a_refused_network(store: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with FaultyServer(lambda _: Reply(500, b"")) as server:
            write_keys(tmp_path)
            credential(tmp_path, "azure", "sas", "sig=x")
            given: dict[str, Any] = {
                "s3": {"bucket": "audit", "region": "x", "endpoint": server.url, "pathStyle": True, "auth": AUTH},
                "azure": {
                    "storageAccount": "audit",
                    "container": "audit",
                    "endpoint": server.url,
                    "auth": {"sasToken": {"name": "azure", "key": "sas"}},
                },
            }
            program = sink_program(tmp_path / "credentials", objectStore={store: given[store]})
            sink = make(program, surroundings(tmp_path, reach=Reach(refused=("127.0.0.0/8", "::1/128"))))
            with pytest.raises(MisconfiguredError, match="may not connect"):
                await sink.deliver(batch(1))
            await sink.close()
            assert not server.requests

    asyncio.run(run())


@pytest.mark.parametrize(
    "spec",
    [{"tls": {"serverName": "x"}}, {"tls": {"minVersion": "TLS13"}}, {"proxy": {"url": "http://proxy:3128"}}],
)
def test_what_the_library_cannot_do_is_refused_at_once(spec: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnknownSinkError, match="cannot be used with gcs and azure"):
        made(tmp_path, objectStore={"gcs": {"bucket": "audit"}}, **spec)
