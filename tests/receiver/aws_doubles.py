"""S3's PutObject and CloudWatch Logs' PutLogEvents as their references describe them, signatures verified by a second
hand; and where moto, which knows much more of AWS, is found.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html,
https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_PutLogEvents.html and
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html
"""

import contextlib
import gzip
import hashlib
import hmac
import json
import os
import re
import shutil
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard
from faults import Reply, Request
from sink_cases import credential

KEY_ID, KEY = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
AUTH = {"accessKeyID": {"name": "aws", "key": "id"}, "secretAccessKey": {"name": "aws", "key": "secret"}}

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, "
    r"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})"
)


def write_keys(folder: Path) -> None:
    """Credentials of the Secret that AUTH names."""
    credential(folder, "aws", "id", KEY_ID)
    credential(folder, "aws", "secret", KEY)


def signed(request: Request, service: str) -> bool:
    """Whether the signature is that of KEY over all that was sent."""
    found = _AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
    if not found or found[1] != KEY_ID or found[4] != service:
        return False
    names = found[5].split(";")
    # S3 takes no x-amz-* header that is not signed.
    assert {name for name in request.headers if name.startswith("x-amz-")} <= set(names)
    assert request.headers["x-amz-content-sha256"] == hashlib.sha256(request.sent).hexdigest()
    path, _, query = request.path.partition("?")
    lines = [request.method, path, query, *(f"{name}:{request.headers[name]}" for name in names), ""]
    lines += [found[5], request.headers["x-amz-content-sha256"]]
    scope = f"{found[2]}/{found[3]}/{service}/aws4_request"
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    text = "\n".join(("AWS4-HMAC-SHA256", request.headers["x-amz-date"], scope, digest))
    key = f"AWS4{KEY}".encode()
    for part in (found[2], found[3], service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), found[6])


class S3:
    """Objects of one bucket, by key."""

    kind = "objectStore"
    exactly_once = True

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}

    @property
    def taken(self) -> list[str]:
        """auditIDs in the order of names; those with a manifest."""
        ids = []
        for key in sorted(self.objects):
            folder, _, name = key.rpartition("/")
            if not name.startswith("_") and f"{folder}/_{name}.manifest.json" in self.objects:
                body = self.objects[key]
                lines = (zstandard.decompress(body) if name.endswith(".zst") else gzip.decompress(body)).splitlines()
                ids += [json.loads(line)["auditID"] for line in lines]
        # An object that a halved batch wrote again has another name.
        return list(dict.fromkeys(ids))

    def spec(self, url: str, folder: Path) -> dict[str, Any]:
        """The AuditSink's settings."""
        write_keys(folder)
        return {
            "s3": {"bucket": "audit", "region": "eu-central-1", "endpoint": url, "pathStyle": True, "auth": AUTH},
            "prefix": "k8s audit".replace(" ", "=+") + "/{cluster}/%Y/%m/%d/%H",
        }

    def answer(self, request: Request) -> Reply:
        """One request."""
        if not signed(request, "s3"):
            return Reply(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        if request.method != "PUT" or not request.path.startswith("/audit/"):
            return Reply(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        digest = b64encode(hashlib.sha256(request.sent).digest()).decode()
        if request.headers.get("x-amz-checksum-sha256") != digest:
            return Reply(400, b"<Error><Code>BadDigest</Code></Error>")
        assert "content-encoding" not in request.headers
        key = request.path.removeprefix("/audit/")
        self.objects[key] = request.sent
        self.headers[key] = request.headers
        return Reply(200, b"", {"ETag": f'"{hashlib.md5(request.sent).hexdigest()}"'})


class CloudWatch:
    """Log streams of the groups there are. ``oldest``, ``newest``: events beyond these moments (ms) are dropped."""

    kind = "cloudWatch"
    exactly_once = False

    def __init__(self, groups: tuple[str, ...] = ("/kubernetes/prod/audit",)) -> None:
        self.streams: dict[str, dict[str, list[dict[str, Any]]]] = {group: {} for group in groups}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.oldest, self.newest = 0, 1 << 62

    @property
    def taken(self) -> list[str]:
        """auditIDs in the order of arrival."""
        streams = (events for group in self.streams.values() for events in group.values())
        return [json.loads(event["message"])["auditID"] for events in streams for event in events]

    def spec(self, url: str, folder: Path) -> dict[str, Any]:
        """The AuditSink's settings."""
        write_keys(folder)
        return {"region": "eu-central-1", "endpoint": url, "auth": AUTH}

    def answer(self, request: Request) -> Reply:
        """One request."""
        if not signed(request, "logs"):
            return _error(400, "InvalidSignatureException")
        assert (request.method, request.path) == ("POST", "/")
        assert request.headers["content-type"] == "application/x-amz-json-1.1"
        operation = request.headers["x-amz-target"].removeprefix("Logs_20140328.")
        asked = json.loads(request.body)
        self.calls.append((operation, {name: value for name, value in asked.items() if name != "logEvents"}))
        group = asked["logGroupName"]
        if operation == "CreateLogGroup":
            self.streams.setdefault(group, {})
            return Reply(200, b"")
        if group not in self.streams:
            return _error(400, "ResourceNotFoundException")
        if operation == "CreateLogStream":
            if asked["logStreamName"] in self.streams[group]:
                return _error(400, "ResourceAlreadyExistsException")
            self.streams[group][asked["logStreamName"]] = []
            return Reply(200, b"")
        if operation == "PutRetentionPolicy":
            return Reply(200, b"")
        assert operation == "PutLogEvents"
        if asked["logStreamName"] not in self.streams[group]:
            return _error(400, "ResourceNotFoundException")
        return self._put(self.streams[group][asked["logStreamName"]], asked["logEvents"])

    def _put(self, stream: list[dict[str, Any]], events: list[dict[str, Any]]) -> Reply:
        times = [event["timestamp"] for event in events]
        if (
            not 1 <= len(events) <= 10_000
            or sum(len(event["message"].encode()) + 26 for event in events) > 1_048_576
            or times != sorted(times)
            or times[-1] - times[0] >= 24 * 3600 * 1000
        ):
            return _error(400, "InvalidParameterException")
        old = sum(time < self.oldest for time in times)
        new = next((at for at, time in enumerate(times) if time > self.newest), None)
        info = {**({"tooOldLogEventEndIndex": old} if old else {})}
        info |= {} if new is None else {"tooNewLogEventStartIndex": new}
        stream += [event for event in events if self.oldest <= event["timestamp"] <= self.newest]
        return Reply(
            200, json.dumps({"nextSequenceToken": "1", **({"rejectedLogEventsInfo": info} if info else {})}).encode()
        )


def _error(status: int, kind: str) -> Reply:
    return Reply(status, json.dumps({"__type": f"com.amazonaws.logs#{kind}", "message": kind}).encode())


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """The URL of a moto server of one's own; skips where there is none (scripts/get-moto)."""
    kept = Path(__file__).resolve().parents[2] / ".tools" / "moto" / "bin" / "moto_server"
    binary = os.environ.get("MOTO_SERVER") or str(kept)
    if shutil.which(binary) is None:
        pytest.skip("moto_server is not installed: run scripts/get-moto, or set MOTO_SERVER to its path")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with listening([binary, "-H", "127.0.0.1", "-p", str(port)], port):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def listening(command: Sequence[str], port: int) -> Iterator[None]:
    """A server of somebody else's, from when it listens on 127.0.0.1."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(20)
