"""elasticsearch: Elasticsearch or OpenSearch, by the bulk API.

Every document is written with ``create`` and an id that is the same however often the event comes: "exists already"
(409) means that an earlier delivery arrived. A bulk request answers 200 with a status per document.
"""

import asyncio
import itertools
import re
from collections.abc import Sequence
from functools import partial
from typing import Final, Literal
from urllib.parse import quote

import msgspec

from audit_operator.receiver.compression import Compression
from audit_operator.receiver.sinks import (
    TAKEN,
    Batch,
    MisconfiguredError,
    Refusal,
    Result,
    SecretFile,
    Settings,
    SinkError,
    Surroundings,
    UnauthorizedError,
    UnreachableError,
    dated,
    filled,
    need_own_identity,
    secret,
    settings,
)
from audit_operator.receiver.sinks.aws import AwsAuth, Signer
from audit_operator.receiver.sinks.web import BasicAuth, Client, basic, decoded, error_of, parsed
from audit_operator.render.program import SinkProgram


class _DataStream(Settings, frozen=True):
    type: str
    dataset: str
    namespace: str


class _AwsAuth(AwsAuth, frozen=True, kw_only=True):
    region: str
    service: Literal["es", "aoss"] = "es"


class _Auth(Settings, frozen=True):
    basic: BasicAuth | None = None
    api_key: SecretFile | None = None
    bearer_token: SecretFile | None = None
    aws: _AwsAuth | None = None


class _Elasticsearch(Settings, frozen=True):
    urls: tuple[str, ...]
    index: str | None = None
    data_stream: _DataStream = _DataStream(type="logs", dataset="kubernetes.audit", namespace="default")
    pipeline: str | None = None
    auth: _Auth = _Auth()
    compression: Compression = "gzip"


def make(program: SinkProgram, surroundings: Surroundings) -> "Elasticsearch":
    """See `Sink`."""
    given = settings(program, _Elasticsearch)
    stream = given.data_stream
    target = given.index or f"{stream.type}-{stream.dataset}-{stream.namespace}"
    aws = given.auth.aws
    if aws is not None:
        need_own_identity(program, surroundings, given=aws.access_key_id is not None)
    client = Client(program, surroundings, compression=given.compression)
    return Elasticsearch(
        given,
        filled(target, program, surroundings),
        client,
        None if aws is None else Signer(aws, aws.region, aws.service, client),
        stamped=program.format.get("type") != "ECS",
    )


class Elasticsearch:
    """Bulk requests to nodes in turn. ``stamped``: the format lacks ``@timestamp``, which data streams ask for."""

    def __init__(
        self, given: _Elasticsearch, target: str, client: Client, signer: Signer | None, *, stamped: bool
    ) -> None:
        self._given = given
        self._target = target
        self._index = None if "%" in target else _encoded(target)
        self._client = client
        self._signer = signer
        self._stamped = stamped
        self._turn = itertools.count()

    async def open(self) -> None:
        """Nothing to do: the first delivery connects."""

    async def deliver(self, batch: Batch) -> Result:
        """One bulk request to the next node. Raises SinkError."""
        urls = self._given.urls
        url = f"{urls[next(self._turn) % len(urls)].rstrip('/')}/_bulk?filter_path={_FILTER}"
        if self._given.pipeline is not None:
            url += f"&pipeline={quote(self._given.pipeline, safe='')}"
        headers = {"Content-Type": "application/x-ndjson", "Accept": "application/json", **self._authorization()}
        signer = self._signer
        sign = None if signer is None else await signer.prepared("POST", url)
        # Some milliseconds for a thousand events, in which nobody else would be answered.
        body = await asyncio.to_thread(self._body, batch)
        count = len(batch.items)
        answer = await self._client.send("POST", url, body, headers, sign=sign, largest_answer=largest_answer(count))
        if error := error_of(answer):
            raise error
        return await parsed(answer, partial(_result, count=count))

    async def close(self) -> None:
        """Close all connections."""
        if self._signer is not None:
            self._signer.stop()
        await self._client.close()

    def _body(self, batch: Batch) -> bytes:
        lines = []
        for item, name in zip(batch.items, batch.ids(), strict=True):
            index = self._index or _encoded(dated(self._target, item.timestamp))
            action = b'{"create":{"_index":%b,"_id":"%b"}}' % (index, name.encode())
            # A client cannot write top-level fields of an event: it has none of that name yet.
            lines.append(
                b'%b\n{"@timestamp":%b,%b' % (action, _encoded(item.timestamp), item.data[1:])
                if self._stamped
                else b"%b\n%b" % (action, item.data)
            )
        return b"\n".join(lines) + b"\n"

    def _authorization(self) -> dict[str, str]:
        auth = self._given.auth
        if auth.basic is not None:
            return {"Authorization": basic(auth.basic)}
        if auth.api_key is not None:
            return {"Authorization": f"ApiKey {secret(auth.api_key)}"}
        if auth.bearer_token is not None:
            return {"Authorization": f"Bearer {secret(auth.bearer_token)}"}
        return {}


_FILTER: Final = "errors,items.*.status,items.*.error.type,items.*.error.reason,items.*.error.caused_by.type"
_LARGEST_HEAD: Final = 1 << 16
_LARGEST_ITEM: Final = 1 << 12
"""Bytes of an answer, and of it per document."""
_LARGEST: Final = 1 << 20
"""Bytes of an answer in all, or as many as it takes to say yes to each. A megabyte is read in 20 ms, whatever it
holds. If that is too little for what a thousand documents are refused for, fewer come next.
"""
_YES: Final = 64
"""Bytes that a document takes if all is well, with room to spare."""
_LONGEST_REASON: Final = 1 << 11
"""Bytes of a reason that are looked at. Some quote the whole document."""


def largest_answer(count: int) -> int:
    """Bytes that are read of the answer about so many documents."""
    return min(_LARGEST_HEAD + _LARGEST_ITEM * count, max(_LARGEST, _YES * count))


class _CausedBy(msgspec.Struct):
    type: str | None = None


class _Cause(msgspec.Struct):
    type: str | None = None
    reason: msgspec.Raw = msgspec.Raw(b'""')
    caused_by: _CausedBy | None = None

    @property
    def said(self) -> str:
        """The reason's beginning, as JSON."""
        return bytes(memoryview(self.reason)[:_LONGEST_REASON]).decode(errors="replace")


class _Outcome(msgspec.Struct):
    status: int
    error: _Cause | None = None


class _Created(msgspec.Struct):
    outcome: _Outcome = msgspec.field(name="create")


class _Indexed(msgspec.Struct):
    outcome: _Outcome = msgspec.field(name="index")


class _Answer(msgspec.Struct):
    errors: bool
    items: list[_Created]


class _OtherAnswer(msgspec.Struct):
    """Of servers that know one operation only."""

    errors: bool
    items: list[_Indexed]


_encoded = msgspec.json.encode
# An item without an outcome ends the reading: a megabyte of {} would be objects by the hundred thousand.
_answer = msgspec.json.Decoder(_Answer)
_other_answer = msgspec.json.Decoder(_OtherAnswer)

_PASSES: Final = frozenset(
    {
        "index_closed_exception",
        "invalid_index_name_exception",
        "validation_exception",  # the cluster has as many shards as it may
    }
)
"""Errors with status 400 that are not about the document: somebody can correct them, and it costs no event."""

_SETTINGS: Final = {
    "no such pipeline": ("pipeline with id [", "] does not exist"),
    "the alias has no write index": ("no write index is defined for alias",),
}
"""What is said of settings, in these words in this order -> where it is an illegal_argument_exception, which is
otherwise about the document.
"""
_FIELD: Final = re.compile(r"(?:field|object mapping for) \[([A-Za-z0-9_@./-]{1,200}+)\]")
"""Where a reason names the field; the rest of it may quote the event."""


def _result(body: bytes, count: int) -> Result:
    """What became of the documents. Raises SinkError where it is the same for all and passes."""
    answer = decoded(_answer, body) or decoded(_other_answer, body)
    if answer is None:
        raise UnreachableError("HTTP 200, but no answer of a bulk request; is this Elasticsearch?", sent=True)
    outcomes = [item.outcome for item in answer.items]
    if len(outcomes) != count:
        raise UnreachableError(f"the answer is about {len(outcomes)} documents of {count}", sent=True)
    if not answer.errors:
        return TAKEN
    retry: dict[int, SinkError] = {}
    refused = []
    for at, outcome in enumerate(outcomes):
        if outcome.status < 300 or outcome.status == 409:
            continue
        error = _passing(outcome)
        if error is None:
            refused.append(Refusal(at, _told(outcome)))
        else:
            retry[at] = error
    if not retry:
        return Result(refused=refused) if refused else TAKEN
    first = next(iter(retry.values()))
    if len(retry) == count and all(type(error) is type(first) for error in retry.values()):
        raise first
    return Result(
        retry=list(retry), refused=refused, reason=str(first), sent=any(error.sent for error in retry.values())
    )


def _passing(outcome: _Outcome) -> SinkError | None:
    """What keeps a document out for now; None: it is the document itself."""
    status, cause = outcome.status, outcome.error or _Cause()
    if status == 429 or status >= 500:
        return UnreachableError(_told(outcome), sent=status >= 500)
    if status in (401, 403):
        # 403 is also a cluster_block_exception: an index is read-only, as on a full disk.
        return UnauthorizedError(_told(outcome))
    if status == 404 or cause.type in _PASSES or _setting(cause):
        return MisconfiguredError(_told(outcome))
    return None


def _setting(cause: _Cause) -> str:
    said = cause.said
    return next((told for told, words in _SETTINGS.items() if _has(said, words)), "")


def _has(text: str, words: Sequence[str]) -> bool:
    """Whether all of them are in it, in this order. No expression: one that backtracks costs the square of the text."""
    at = 0
    for word in words:
        at = text.find(word, at)
        if at < 0:
            return False
        at += len(word)
    return True


def _told(outcome: _Outcome) -> str:
    """A line for a person, without what the reason quotes of the event."""
    cause = outcome.error or _Cause()
    kinds = [kind for kind in (cause.type, cause.caused_by and cause.caused_by.type) if kind and _WORD.fullmatch(kind)]
    field = _FIELD.search(cause.said)
    about = _setting(cause) or (f"field {field[1]}" if field else "")
    about = about and f", {about}"
    return f"status {outcome.status}: {', '.join(kinds) or 'no reason given'}{about}"


_WORD: Final = re.compile(r"[a-z0-9_]{1,100}")
