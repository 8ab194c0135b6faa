"""objectStore: objects of JSON lines in S3, Google Cloud Storage or Azure Blob Storage, each with a manifest.

The same events make the same object: a repeated delivery writes it anew. An object's name tells its first event's time,
the receiver, and which of the receiver's events it holds. The manifest's name begins with an underscore, so that
Athena, Spark and their like do not take it for events.

With `integrity` the manifest is a signed digest, and objects are signed one after the other: a digest once its object
is there, and the next one once that digest is there, too.
"""

import asyncio
import hashlib
import logging
import re
import socket
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Literal, Protocol
from urllib.parse import quote, urlsplit

import msgspec
from obstore.exceptions import (
    BaseError,
    GenericError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)
from obstore.store import AzureStore, GCSStore

from audit_operator.receiver.compression import SUFFIX, Compression, compress
from audit_operator.receiver.integrity import LINES, MANIFEST, Blocks, Manifest, measure
from audit_operator.receiver.sinks import (
    TAKEN,
    Batch,
    Item,
    MisconfiguredError,
    RefusedError,
    Result,
    SecretFile,
    Settings,
    SinkError,
    Surroundings,
    TooLargeError,
    UnauthorizedError,
    UnknownSinkError,
    UnreachableError,
    convert,
    dated,
    filled,
    need_own_identity,
    secret,
    settings,
)
from audit_operator.receiver.sinks.aws import AwsAuth, Signer, domain
from audit_operator.receiver.sinks.chain import Chain, Found, Integrity, Names, state_path
from audit_operator.receiver.sinks.web import Client, Tls, checked, error_of
from audit_operator.receiver.threads import OwnThread
from audit_operator.render.program import SinkProgram

logger = logging.getLogger(__name__)


class _S3Encryption(Settings, frozen=True):
    algorithm: str
    kms_key_id: str | None = msgspec.field(default=None, name="kmsKeyID")


class _S3ObjectLock(Settings, frozen=True):
    mode: Literal["Governance", "Compliance"]
    retention_days: int


class _S3(Settings, frozen=True):
    bucket: str
    region: str
    path_style: bool
    auth: AwsAuth
    endpoint: str | None = None
    storage_class: str | None = None
    encryption: _S3Encryption | None = None
    object_lock: _S3ObjectLock | None = None


class _Gcs(Settings, frozen=True):
    bucket: str
    endpoint: str | None = None
    storage_class: str | None = None
    kms_key_name: str | None = None
    credentials: SecretFile | None = None


class _WorkloadIdentity(Settings, frozen=True):
    client_id: str | None = msgspec.field(default=None, name="clientID")
    tenant_id: str | None = msgspec.field(default=None, name="tenantID")


class _AzureAuth(Settings, frozen=True):
    account_key: SecretFile | None = None
    sas_token: SecretFile | None = None
    workload_identity: _WorkloadIdentity | None = None


class _Azure(Settings, frozen=True):
    storage_account: str
    container: str
    auth: _AzureAuth
    endpoint: str | None = None
    access_tier: str | None = None


class _ObjectStore(Settings, frozen=True):
    prefix: str
    compression: Compression
    s3: _S3 | None = None
    gcs: _Gcs | None = None
    azure: _Azure | None = None
    integrity: Integrity | None = None


class _Store(Protocol):
    """Where objects are put."""

    async def put(self, key: str, body: bytes, kind: str) -> None:
        """Write an object of this media type, whole or not at all. Raises SinkError."""

    async def close(self) -> None:
        """Let go of everything."""


def make(program: SinkProgram, surroundings: Surroundings) -> "ObjectStore":
    """See `Sink`."""
    given = settings(program, _ObjectStore)
    store: _Store
    if given.s3 is not None:
        need_own_identity(program, surroundings, given=given.s3.auth.access_key_id is not None)
        store = _S3Store(given.s3, Client(program, surroundings))
    else:
        store = _other_store(given, program, surroundings)
    names = Names(surroundings.cluster, f"{program.namespace}/{program.name}", surroundings.receiver)
    prefix = filled(given.prefix, program, surroundings)
    chain = None
    if given.integrity is not None:
        path = state_path(surroundings.state, names.sink, {**_place(given), "folder": base_of(prefix)})
        chain = Chain(path, names, given.integrity)
    return ObjectStore(prefix, given.compression, names, store, chain)


def _place(given: _ObjectStore) -> dict[str, str]:
    """Which bucket it is."""
    if given.s3 is not None:
        return {"kind": "s3", "endpoint": given.s3.endpoint or "", "bucket": given.s3.bucket}
    if given.gcs is not None:
        return {"kind": "gcs", "endpoint": given.gcs.endpoint or "", "bucket": given.gcs.bucket}
    assert given.azure is not None  # noqa: S101 - a rule of the resource
    return {"kind": "azure", "account": given.azure.storage_account, "bucket": given.azure.container}


def base_of(prefix: str) -> str:
    """The folder that all objects are below, whatever their time: empty or with a slash at its end."""
    parts = prefix.strip("/").split("/")
    fixed = next((at for at, part in enumerate(parts) if "%" in part), len(parts))
    return "".join(f"{part}/" for part in parts[:fixed])


@dataclass(frozen=True, slots=True)
class _Object:
    """An object and what its manifest says; ``indices``: which of the batch's events it holds."""

    indices: Sequence[int]
    folder: str
    name: str
    body: bytes
    manifest: Manifest

    @property
    def key(self) -> str:
        return f"{self.folder}/{self.name}"

    @property
    def manifest_key(self) -> str:
        return f"{self.folder}/_{self.name}{MANIFEST}"


class ObjectStore:
    """A bucket. ``names``: what manifests say of where events come from."""

    def __init__(
        self, prefix: str, compression: Compression, names: Names, store: _Store, chain: Chain | None = None
    ) -> None:
        self._prefix = prefix.strip("/")
        self._compression = compression
        self._names = names
        self._store = store
        self._thread = OwnThread("objects")
        self._seals = None if chain is None else _Seals(chain, base_of(prefix), store, self._thread)

    async def open(self) -> None:
        """Nothing to do: the first delivery connects."""

    async def deliver(self, batch: Batch) -> Result:
        """An object for each folder that the events' times lead to. Raises SinkError if the first one fails."""
        folders: dict[str, list[int]] = {}
        for at, item in enumerate(batch.items):
            folders.setdefault(dated(self._prefix, item.timestamp), []).append(at)
        done: set[int] = set()
        for folder, indices in folders.items():
            # Compressing 64 MiB takes a good part of a second.
            made = await self._thread.run(partial(self._object, folder, indices, batch))
            try:
                await self._put(made)
            except SinkError as error:
                if not done:
                    raise
                left = [at for at in range(len(batch.items)) if at not in done]
                return Result(retry=left, retry_after=error.retry_after, reason=str(error))
            done.update(indices)
        return TAKEN

    async def close(self) -> None:
        """Close all connections."""
        self._thread.stop()
        await self._store.close()

    async def _put(self, made: _Object) -> None:
        put = partial(self._store.put, made.key, made.body, _MEDIA_TYPE[self._compression])
        if self._seals is not None:
            await self._seals.put(made, put)
            return
        await put()
        await self._store.put(made.manifest_key, msgspec.json.encode(made.manifest), _JSON)

    def _object(self, folder: str, indices: Sequence[int], batch: Batch) -> _Object:
        items = [batch.items[at] for at in indices]
        lines = b"".join([item.data + b"\n" for item in items])
        body = compress(lines, self._compression)
        name = self._name(items)
        manifest = Manifest(
            version=1,
            object=f"{folder}/{name}",
            **self._names._asdict(),
            events=len(items),
            first_sequence=items[0].sequence,
            last_sequence=items[-1].sequence,
            first_timestamp=min(item.timestamp for item in items),
            last_timestamp=max(item.timestamp for item in items),
            bytes=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
            uncompressed_bytes=len(lines),
            uncompressed_sha256=hashlib.sha256(lines).hexdigest(),
            lines=Blocks(each=LINES, sha256=measure([lines], "").blocks) if self._seals is not None else None,
        )
        return _Object(indices, folder, name, body, manifest)

    def _name(self, items: Sequence[Item]) -> str:
        moment = re.sub("[^0-9TZ.]", "", items[0].timestamp)
        numbers = f"{items[0].sequence:012}-{items[-1].sequence:012}"
        return f"{moment}_{self._names.receiver}_{numbers}.jsonl{SUFFIX[self._compression]}"


class _Seals:
    """Puts objects and their digests, one after the other."""

    def __init__(self, chain: Chain, base: str, store: _Store, thread: OwnThread) -> None:
        self._chain = chain
        self._base = base
        self._store = store
        self._thread = thread
        self._one = asyncio.Lock()
        self._opened = False
        self._refused = ""

    async def put(self, made: _Object, put: Callable[[], Awaitable[None]]) -> None:
        """``put`` puts the object. Raises SinkError."""
        async with self._one:
            try:
                await self._put(made, put)
            except OSError as error:
                reason = (error.strerror or type(error).__name__).lower()
                raise UnreachableError(f"the chain of digests: the receiver's volume: {reason}") from error

    async def _put(self, made: _Object, put: Callable[[], Awaitable[None]]) -> None:
        chain, run = self._chain, self._thread.run
        key, first = made.key.removeprefix(self._base), made.manifest.first_sequence or 0
        if not self._opened:
            # The receiver's first event ever has the number 1.
            await run(partial(chain.open, lambda: Found(first > 1)))
            self._opened = True
        await self._finish()
        if chain.sealed(key):
            return  # it comes again after a crash; nothing overwrites what is signed
        await run(partial(chain.announce, [key]))
        if chain.sequence == 0 or (made.manifest.last_sequence or 0) < chain.first_sequence:
            # The chain's beginning; or a name by which nobody could tell that this is newer than what is signed.
            await self._put_head()
        await put()
        unfinished = [file for file in chain.pending if file != key]
        digest = made.manifest_key.removeprefix(self._base)
        await run(partial(chain.sign, made.manifest, digest, key, unfinished=unfinished))
        await self._finish()
        await self._try_head()

    async def _finish(self) -> None:
        """The digest that is signed is where it belongs."""
        if signed := self._chain.outstanding:
            await self._store.put(f"{self._base}{signed.name}", signed.text.encode(), _JSON)
            await self._thread.run(self._chain.advance)

    async def _put_head(self) -> None:
        sink = self._chain.names.sink.replace("/", ".")
        name = self._chain.head_name(f"_{sink}.{self._chain.names.receiver}")
        head = await self._thread.run(partial(self._chain.head, name))
        await self._store.put(f"{self._base}{name}", head, _JSON)

    async def _try_head(self) -> None:
        """An older head is right as well; some buckets let nobody overwrite anything."""
        try:
            await self._put_head()
        except SinkError as error:
            if str(error) != self._refused:
                logger.warning("%s: the end of the chain cannot be written: %s", self._chain.names.sink, error)
            self._refused = str(error)
        else:
            self._refused = ""


_JSON: Final = "application/json"
_MEDIA_TYPE: Final[Mapping[Compression, str]] = {
    "None": "application/x-ndjson",
    "gzip": "application/gzip",
    "zstd": "application/zstd",
}
"""No Content-Encoding: downloads would arrive unpacked, and no digest would fit."""

# --- S3 --------------------------------------------------------------------------------------------------------------

_EXPIRED: Final = re.compile(
    rb"<Code>(ExpiredToken|InvalidToken|TokenRefreshRequired|AuthorizationHeaderMalformed|InvalidAccessKeyId)</Code>"
)
_DAY: Final = 24 * 3600


class _S3Store:
    """S3 and what speaks its protocol, with our own requests: they can lock objects and assume roles."""

    def __init__(self, given: _S3, client: Client) -> None:
        self._given = given
        self._client = client
        host = given.endpoint or f"https://s3.{given.region}.{domain(given.region)}"
        scheme, _, rest = host.rstrip("/").partition("://")
        self._base = f"{scheme}://{rest}/{given.bucket}" if given.path_style else f"{scheme}://{given.bucket}.{rest}"
        self._signer = Signer(given.auth, given.region, "s3", client, endpoint=given.endpoint)

    async def put(self, key: str, body: bytes, kind: str) -> None:
        url = f"{self._base}/{quote(key, safe='/-_.~')}"
        headers = {"Content-Type": kind, **self._headers(body)}
        sign = await self._signer.prepared("PUT", url, headers)
        answer = await self._client.send("PUT", url, body, headers, sign=sign)
        if error := error_of(answer):
            if _EXPIRED.search(answer.body):
                raise UnauthorizedError(str(error))
            if isinstance(error, RefusedError) and not isinstance(error, TooLargeError):
                # It is about the bucket or the request, never about the events in it.
                raise MisconfiguredError(str(error))
            raise error
        if "ETag" not in answer.headers:
            raise UnreachableError(f"HTTP {answer.status}, but no answer of S3", sent=True)

    async def close(self) -> None:
        self._signer.stop()
        await self._client.close()

    def _headers(self, body: bytes) -> dict[str, str]:
        given = self._given
        headers = {"x-amz-checksum-sha256": b64encode(hashlib.sha256(body).digest()).decode()}
        if given.storage_class is not None:
            headers["x-amz-storage-class"] = given.storage_class
        if given.encryption is not None:
            headers["x-amz-server-side-encryption"] = given.encryption.algorithm
            if given.encryption.kms_key_id is not None:
                headers["x-amz-server-side-encryption-aws-kms-key-id"] = given.encryption.kms_key_id
        if given.object_lock is not None:
            until = datetime.fromtimestamp(time.time() + given.object_lock.retention_days * _DAY, UTC)
            headers["x-amz-object-lock-mode"] = given.object_lock.mode.upper()
            headers["x-amz-object-lock-retain-until-date"] = until.strftime("%Y-%m-%dT%H:%M:%SZ")
        return headers


# --- the others, by object_store of Apache Arrow ---------------------------------------------------------------------


def _other_store(given: _ObjectStore, program: SinkProgram, surroundings: Surroundings) -> "_OtherStore":
    tls = convert(program, program.tls or {}, Tls)
    name = f"sink {program.namespace}/{program.name} (objectStore)"
    for field, wanted in (
        ("tls.serverName", tls.server_name is not None),
        ("tls.clientCertificate", tls.client_certificate is not None),
        ("tls.minVersion TLS13", tls.min_version == "TLS13"),
        ("proxy", program.proxy is not None),
    ):
        if wanted:
            raise UnknownSinkError(f"{name}: {field} cannot be used with gcs and azure; leave it out")
    gcs, azure = given.gcs, given.azure
    own = gcs.credentials is not None if gcs else azure is not None and azure.auth.workload_identity is None
    need_own_identity(program, surroundings, given=own)
    if surroundings.tenant and (gcs or azure).endpoint is not None:  # type: ignore[union-attr]
        # The library connects by itself: only to where nobody can lead it elsewhere.
        raise UnknownSinkError(f"{name}: endpoint is not for tenants; leave it out")
    return _OtherStore(given, tls, surroundings, program.timeout)


class _OtherStore:
    """GCS or Azure. The library's client is made anew when a credential has changed."""

    def __init__(self, given: _ObjectStore, tls: Tls, surroundings: Surroundings, timeout: float) -> None:
        self._gcs = given.gcs
        self._azure = given.azure
        self._tls = tls
        self._reach = surroundings.reach
        self._timeout = timeout
        self._store: Any = None
        self._made_of: object = None
        self._thread = OwnThread("object store addresses")

    async def put(self, key: str, body: bytes, kind: str) -> None:
        if self._reach.limited:
            await self._thread.run(self._look)
        attributes = {"Content-Type": kind}
        tier = self._gcs.storage_class if self._gcs else self._azure.access_tier if self._azure else None
        if tier is not None:
            attributes["Storage-Class"] = tier
        try:
            await self._current().put_async(key, body, attributes=attributes, use_multipart=False)
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise UnauthorizedError(_told(error)) from None
        except (FileNotFoundError, NotFoundError) as error:
            raise MisconfiguredError(_told(error)) from None
        except (BaseError, OSError) as error:
            raise _meaning(error) from None

    async def close(self) -> None:
        self._store = None
        self._thread.stop()

    def _look(self) -> None:
        """Blocking. Raises SinkError for an address that no connection may be made to."""
        host = urlsplit(self._endpoint()).hostname or ""
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except socket.gaierror:
            raise UnreachableError(f"the name {host} cannot be resolved") from None
        for *_, address in found:
            checked(str(address[0]), self._reach)

    def _endpoint(self) -> str:
        if self._gcs is not None:
            return self._gcs.endpoint or "https://storage.googleapis.com"
        assert self._azure is not None  # noqa: S101 - a rule of the resource
        return self._azure.endpoint or f"https://{self._azure.storage_account}.blob.core.windows.net"

    def _current(self) -> Any:
        """Raises SinkError."""
        config = self._gcs_config(self._gcs) if self._gcs else self._azure_config(self._azure) if self._azure else {}
        ca = self._tls.ca()
        if self._store is None or (config, ca) != self._made_of:
            options: dict[str, Any] = {"timeout": f"{self._timeout:g}s", "user_agent": "audit-operator"}
            if self._endpoint().startswith("http://"):
                options["allow_http"] = True
            if ca is not None:
                options["root_certificate"] = ca.encode()
            if self._gcs and self._gcs.kms_key_name:
                options["default_headers"] = {"x-goog-encryption-kms-key-name": self._gcs.kms_key_name}
            kind: Any = GCSStore if self._gcs else AzureStore
            plain = {name: value for name, value in config.items() if name not in _AZURE_CREDENTIALS}
            own = {_AZURE_CREDENTIALS[name]: value for name, value in config.items() if name in _AZURE_CREDENTIALS}
            # As configuration it would give way to what the receiver's environment holds.
            provider = {"credential_provider": lambda: {**own, "expires_at": None}} if own else {}
            try:
                # Waits between repetitions are the worker's.
                self._store = kind(config=plain, client_options=options, retry_config={"max_retries": 0}, **provider)
            except UnknownConfigurationKeyError:
                raise
            except (BaseError, ValueError):
                raise UnauthorizedError("the credentials cannot be used; correct the Secret") from None
            self._made_of = (config, ca)
        return self._store

    def _gcs_config(self, given: _Gcs) -> dict[str, Any]:
        config: dict[str, Any] = {"bucket": given.bucket}
        if given.endpoint is not None:
            config["base_url"] = given.endpoint
        if given.credentials is not None:
            config["service_account_key"] = _service_account(secret(given.credentials))
        return config

    def _azure_config(self, given: _Azure) -> dict[str, Any]:
        auth = given.auth
        config: dict[str, Any] = {"account_name": given.storage_account, "container_name": given.container}
        if given.endpoint is not None:
            config["endpoint"] = given.endpoint
        if auth.account_key is not None:
            config["account_key"] = secret(auth.account_key)
        elif auth.sas_token is not None:
            config["sas_key"] = secret(auth.sas_token)
        elif auth.workload_identity is not None:
            if auth.workload_identity.client_id is not None:
                config["client_id"] = auth.workload_identity.client_id
            if auth.workload_identity.tenant_id is not None:
                config["tenant_id"] = auth.workload_identity.tenant_id
        return config


_AZURE_CREDENTIALS: Final = {"account_key": "access_key", "sas_key": "sas_token"}
"""Configuration -> what the library calls it when it asks for credentials."""


def _service_account(text: str) -> str:
    """The key with nothing in it but who we are: further members name addresses to go to."""
    try:
        info = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        info = {}
    wanted = ("type", "private_key", "private_key_id", "client_email")
    if info.get("type") != "service_account" or not all(isinstance(info.get(name), str) for name in wanted):
        raise UnauthorizedError("the credentials are no key of a service account (JSON)")
    return msgspec.json.encode({name: info[name] for name in wanted}).decode()


_LOOKED_AT: Final = 1 << 13
"""Characters of the library's error, which may hold all that a server answered."""
_STATUS: Final = re.compile(r"\b(?:status|code)\D{0,20}([45]\d\d)\b", re.IGNORECASE)
_QUERY: Final = re.compile(r"\?[^\s\"')]*")


def _meaning(error: Exception) -> SinkError:
    text = _told(error)
    found = _STATUS.search(str(error)[:_LOOKED_AT])
    status = int(found[1]) if found else 0
    if status in (401, 403):
        return UnauthorizedError(text)
    if status == 413:
        return TooLargeError(text)
    if isinstance(error, GenericError) and (status >= 500 or status in (0, 408, 429)):
        return UnreachableError(text)
    return MisconfiguredError(text) if status else UnreachableError(text)


def _told(error: Exception) -> str:
    """A line without the query of a URL, which may be a shared access signature."""
    text = _QUERY.sub("", str(error)[:_LOOKED_AT].split("Debug source:", maxsplit=1)[0])
    return " ".join(text.split())[:300]
