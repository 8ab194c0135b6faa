"""Google Cloud Logging's entries.write as its reference describes it; tokens are verified as Google does (AIP-4111).

https://cloud.google.com/logging/docs/reference/v2/rest/v2/entries/write
"""

import json
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from faults import Reply, Request
from sink_cases import credential

ACCOUNT = "audit@my-project.iam.gserviceaccount.com"


@cache
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def account_key(**changes: str) -> str:
    """What Google gives out for a service account; the token server is not to be asked."""
    private = key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "my-project",
            "private_key_id": "k1",
            "private_key": private.decode(),
            "client_email": ACCOUNT,
            "client_id": "1",
            "token_uri": "https://localhost:1/token",
            **changes,
        }
    )


class GoogleCloudLogging:
    """Entries by insertId. ``verdict``: code and message of what is wrong with an entry, None if nothing."""

    kind = "googleCloudLogging"
    exactly_once = True

    def __init__(self, verdict: Callable[[dict[str, Any]], tuple[int, str] | None] = lambda _: None) -> None:
        self.verdict = verdict
        self.requests: list[dict[str, Any]] = []
        self.entries: dict[tuple[str, str], dict[str, Any]] = {}

    @property
    def taken(self) -> list[str]:
        """auditIDs in the order of arrival."""
        return [entry["jsonPayload"]["auditID"] for entry in self.entries.values()]

    def spec(self, url: str, folder: Path) -> dict[str, Any]:
        """The AuditSink's settings."""
        credential(folder, "google", "key.json", account_key())
        return {
            "parent": "projects/my-project",
            "endpoint": url,
            "credentials": {"name": "google", "key": "key.json"},
        }

    def answer(self, request: Request) -> Reply:
        """One request."""
        if not _authentic(request.headers.get("authorization", "")):
            return _error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        if (request.method, request.path) != ("POST", "/v2/entries:write"):
            return Reply(404, b"<html>404</html>")
        if len(request.body) > 10 * 10**6:
            return _error(400, "INVALID_ARGUMENT", "Request payload size exceeds the limit")
        body = json.loads(request.body)
        assert body.keys() == {"logName", "resource", "labels", "partialSuccess", "entries"}
        assert body["partialSuccess"] is True
        assert body["logName"].startswith("projects/my-project/logs/")
        assert "/" not in body["logName"].removeprefix("projects/my-project/logs/")
        self.requests.append(body)
        errors = {}
        for at, entry in enumerate(body["entries"]):
            assert entry.keys() <= {"insertId", "timestamp", "severity", "jsonPayload"}
            assert isinstance(entry["jsonPayload"], dict)
            if found := self.verdict(entry):
                errors[str(at)] = {"code": found[0], "message": found[1]}
            elif len(json.dumps(entry)) > 256 * 1024:
                errors[str(at)] = {"code": 3, "message": "Log entry with size 300.0K exceeds maximum size of 256.0K"}
            else:
                self.entries.setdefault((entry["timestamp"], entry["insertId"]), entry)
        if not errors:
            return Reply(200, b"{}")
        kind = "type.googleapis.com/google.logging.v2.WriteLogEntriesPartialErrors"
        return _error(400, "INVALID_ARGUMENT", "some", [{"@type": kind, "logEntryErrors": errors}])


def _authentic(authorization: str) -> bool:
    scheme, _, token = authorization.partition(" ")
    if scheme != "Bearer" or token.count(".") != 2:
        return False
    head, claims, signature = token.split(".")
    try:
        key().public_key().verify(_plain(signature), f"{head}.{claims}".encode(), padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    said = json.loads(_plain(claims))
    return (
        said["iss"] == said["sub"] == ACCOUNT
        and said["scope"] == "https://www.googleapis.com/auth/logging.write"
        and said["iat"] - 60 <= time.time() < said["exp"] <= said["iat"] + 3600
    )


def _plain(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _error(status: int, name: str, message: str, details: list[dict[str, Any]] | None = None) -> Reply:
    error = {"code": status, "message": message, "status": name, "details": details or []}
    return Reply(status, json.dumps({"error": error}).encode())
