"""googleCloudLogging: entries:write over REST.

An entry of the same log, time and insertId is stored once. With partialSuccess each entry fares alone; those that do
not are named by their place in the request.
"""

import re
from typing import Any, Final
from urllib.parse import quote

import google.auth
import msgspec
import urllib3
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.urllib3 import Request as Transport
from google.oauth2.service_account import Credentials as ServiceAccount

from audit_operator.receiver.sinks import (
    TAKEN,
    Batch,
    MisconfiguredError,
    Refusal,
    RefusedError,
    Result,
    SecretFile,
    Settings,
    SinkError,
    Surroundings,
    TooLargeError,
    UnauthorizedError,
    UnreachableError,
    need_own_identity,
    secret,
    settings,
)
from audit_operator.receiver.sinks.web import LARGEST_ANSWER, Answer, Client, decoded, error_of, parsed
from audit_operator.receiver.threads import OwnThread
from audit_operator.render.program import SinkProgram


class _Resource(Settings, frozen=True):
    type: str
    labels: dict[str, str]


class _GoogleCloudLogging(Settings, frozen=True):
    parent: str
    log_id: str = msgspec.field(name="logID")
    resource: _Resource
    labels: dict[str, str]
    endpoint: str | None = None
    credentials: SecretFile | None = None


def make(program: SinkProgram, surroundings: Surroundings) -> "GoogleCloudLogging":
    """See `Sink`."""
    given = settings(program, _GoogleCloudLogging)
    need_own_identity(program, surroundings, given=given.credentials is not None)
    client = Client(program, surroundings, compression="gzip")
    return GoogleCloudLogging(given, surroundings.cluster, client)


LARGEST: Final = 1 << 20
"""Bytes: an error for each entry, and each quotes what it is about."""
_SCOPE: Final = "https://www.googleapis.com/auth/logging.write"


class GoogleCloudLogging:
    """Requests to one log."""

    def __init__(self, given: _GoogleCloudLogging, cluster: str, client: Client) -> None:
        endpoint = given.endpoint or "https://logging.googleapis.com"
        self._url = f"{endpoint.rstrip('/')}/v2/entries:write"
        self._client = client
        self._tokens = _Tokens(given.credentials)
        labels = given.resource.labels
        if given.resource.type == "k8s_cluster":
            labels = {"cluster_name": cluster} | labels
        self._common = {
            "logName": f"{given.parent}/logs/{quote(given.log_id, safe='')}",
            "resource": {"type": given.resource.type, "labels": labels},
            "labels": given.labels,
            "partialSuccess": True,
        }

    async def open(self) -> None:
        """Nothing to do: the first delivery connects."""

    async def deliver(self, batch: Batch) -> Result:
        """One request. Raises SinkError."""
        entries = [
            {
                "insertId": name,
                "severity": "INFO",
                **({"timestamp": item.timestamp} if item.timestamp else {}),
                "jsonPayload": msgspec.Raw(item.data),
            }
            for item, name in zip(batch.items, batch.ids(), strict=True)
        ]
        body = msgspec.json.encode({**self._common, "entries": entries})
        headers = {"Authorization": f"Bearer {await self._tokens.current()}", "Content-Type": "application/json"}
        answer = await self._client.send("POST", self._url, body, headers, largest_answer=LARGEST)
        if answer.status >= 400 and (partial := await parsed(answer, _partial)) is not None:
            return _result(partial, len(entries))
        if error := error_of(answer):
            if isinstance(error, RefusedError):
                raise _of_request(error, answer)
            raise error
        if answer.body.lstrip()[:1] not in (b"", b"{"):
            raise UnreachableError(f"HTTP {answer.status}, but no answer of the logging API", sent=True)
        return TAKEN

    async def close(self) -> None:
        """Close all connections."""
        self._tokens.stop()
        await self._client.close()


class _Tokens:
    """Access tokens of a service account's key, or of the environment."""

    def __init__(self, key: SecretFile | None) -> None:
        self._key = key
        self._thread = OwnThread("Google credentials")
        self._text = ""
        self._credentials: Any = None

    async def current(self) -> str:
        """A token that is valid now. Raises UnauthorizedError."""
        if self._key is None:
            return await self._thread.run(self._of_environment)
        text = secret(self._key)
        if self._credentials is None or text != self._text:
            self._credentials, self._text = _service_account(text), text
        if not self._credentials.valid:
            # Signed by us: Google asks for no token of its token server, whose address the key could choose.
            self._credentials.refresh(None)
        return str(self._credentials.token)

    def stop(self) -> None:
        """Let go of the thread."""
        self._thread.stop()

    def _of_environment(self) -> str:
        """Blocking: GKE's metadata server, or what GOOGLE_APPLICATION_CREDENTIALS names."""
        try:
            if self._credentials is None:
                self._credentials, _ = google.auth.default(scopes=[_SCOPE])
            if not self._credentials.valid:
                self._credentials.refresh(Transport(urllib3.PoolManager()))
        except GoogleAuthError as error:
            raise UnauthorizedError(
                "the environment offers no Google credentials; name a key in credentials, or give the receiver's "
                "service account an identity (Workload Identity Federation for GKE)"
            ) from error
        return str(self._credentials.token)


def _service_account(text: str) -> Any:
    """Nothing but a service account: other kinds name files and addresses to fetch tokens from."""
    try:
        info = msgspec.json.decode(text, type=dict[str, Any])
        if info.get("type") != "service_account":
            raise UnauthorizedError("the credentials must be the key of a service account (JSON)")
        made = ServiceAccount.from_service_account_info(info, scopes=[_SCOPE])
    except (msgspec.DecodeError, ValueError, GoogleAuthError):
        raise UnauthorizedError("the credentials are no key of a service account (JSON)") from None
    return made.with_always_use_jwt_access(True)


_NAMES: Final = {
    1: "CANCELLED", 2: "UNKNOWN", 3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 5: "NOT_FOUND", 6: "ALREADY_EXISTS",
    7: "PERMISSION_DENIED", 8: "RESOURCE_EXHAUSTED", 9: "FAILED_PRECONDITION", 10: "ABORTED", 11: "OUT_OF_RANGE",
    12: "UNIMPLEMENTED", 13: "INTERNAL", 14: "UNAVAILABLE", 15: "DATA_LOSS", 16: "UNAUTHENTICATED",
}  # fmt: skip
"""google.rpc.Code."""
_TAKEN: Final = frozenset({0, 6})
_REFUSED: Final = frozenset({3, 11})
"""Codes that are about the entry itself; all others pass."""
_LONGEST_MESSAGE: Final = 1 << 11
_SIZE: Final = re.compile(r"(?i)size|too large|exceeds|timestamp|too old|future")


class _EntryError(msgspec.Struct):
    code: int = 2
    message: str = ""


class _Detail(msgspec.Struct, rename="camel"):
    kind: str = msgspec.field(name="@type", default="")
    log_entry_errors: dict[str, _EntryError] | None = None


class _Error(msgspec.Struct):
    details: list[_Detail] = []


class _Said(msgspec.Struct):
    error: _Error


_said = msgspec.json.Decoder(_Said)


def _partial(body: bytes) -> dict[int, tuple[int, str]] | None:
    """Place of an entry -> code and message, of an answer that names some; None of any other."""
    said = decoded(_said, body)
    for detail in said.error.details if said else ():
        if detail.kind.endswith("google.logging.v2.WriteLogEntriesPartialErrors") and detail.log_entry_errors:
            errors = detail.log_entry_errors
            return {int(at): (each.code, each.message) for at, each in errors.items() if _PLACE.fullmatch(at)} or None
    return None


_PLACE: Final = re.compile("[0-9]{1,9}")


_TOO_LARGE: Final = re.compile(rb"(?i)payload size|too large")
_ENTRIES: Final = re.compile(rb"(?i)entries|json payload|recursion|too deep|nest")


def _of_request(error: RefusedError, answer: Answer) -> SinkError:
    """What a refusal of the request as a whole is about: an entry that cannot even be read, or the sink's settings."""
    said = answer.body[:LARGEST_ANSWER]
    if isinstance(error, TooLargeError) or _TOO_LARGE.search(said):
        return TooLargeError(str(error))
    return error if _ENTRIES.search(said) else MisconfiguredError(str(error))


def _result(partial: dict[int, tuple[int, str]], count: int) -> Result:
    refused, retry, reason = [], [], ""
    for at, (code, message) in sorted(partial.items()):
        if not 0 <= at < count or code in _TAKEN:
            continue
        name = _NAMES.get(code, str(code))
        if code in _REFUSED:
            # A message may quote the entry; of its size or time it says nothing but that.
            about = ", for its size or time" if _SIZE.search(message[:_LONGEST_MESSAGE]) else ""
            refused.append(Refusal(at, name + about))
        else:
            retry.append(at)
            reason = reason or name
    return Result(retry=retry, refused=refused, reason=reason)
