"""What sinks at AWS share: credentials and signatures (Signature Version 4), made by AWS' own library."""

import importlib
import io
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit

import msgspec

from audit_operator.receiver.sinks import MisconfiguredError, SecretFile, Settings, UnauthorizedError, secret
from audit_operator.receiver.sinks.web import Client, error_of
from audit_operator.receiver.threads import OwnThread


class AwsRole(Settings, frozen=True):
    """An IAM role."""

    role_arn: str = msgspec.field(name="roleARN")
    external_id: str | None = msgspec.field(default=None, name="externalID")


class AwsAuth(Settings, frozen=True):
    """Who we are to AWS; without any: what the receiver's environment offers."""

    access_key_id: SecretFile | None = msgspec.field(default=None, name="accessKeyID")
    secret_access_key: SecretFile | None = None
    session_token: SecretFile | None = None
    assume_role: AwsRole | None = None


Sign = Callable[[bytes], Mapping[str, str]]
"""The body as it is sent -> the headers that sign it."""

_EARLY: Final = 300.0
"""Seconds before the end of a role's credentials at which they are renewed."""
_ROLE_SECONDS: Final = 3600
"""How long a role's credentials are good; more than that a role reached through another one does not get."""


class _Keys(NamedTuple):
    key_id: str
    secret: str
    token: str | None

    def __repr__(self) -> str:
        return f"_Keys({self.key_id!r})"


@dataclass(frozen=True, slots=True)
class _Assumed:
    by: str
    keys: _Keys
    until: float


class Signer:
    """Signs requests of one sink. Credentials are those of the moment; a role's are kept until shortly before they end.

    ``endpoint``: where the service is; roles are assumed there too, unless it is AWS'. Raises ImportError without the
    library.
    """

    def __init__(
        self, auth: AwsAuth, region: str, service: str, client: Client, *, endpoint: str | None = None
    ) -> None:
        self._library = _Library()
        self._auth = auth
        self._region = region
        self._service = service
        self._client = client
        amazon = endpoint is None or (urlsplit(endpoint).hostname or "").endswith(domain(region))
        self._sts = f"https://sts.{region}.{domain(region)}/" if amazon else f"{(endpoint or '').rstrip('/')}/"
        self._assumed: _Assumed | None = None
        self._thread = OwnThread("AWS credentials")

    async def prepared(self, method: str, url: str, headers: Mapping[str, str] | None = None) -> Sign:
        """What signs one request, ``headers`` too. Raises SinkError."""
        keys = await self._keys()
        return lambda body: self._library.signed(
            method, url, headers or {}, body, keys=keys, region=self._region, service=self._service
        )

    def stop(self) -> None:
        """Let go of the thread."""
        self._thread.stop()

    async def _keys(self) -> _Keys:
        auth = self._auth
        if auth.access_key_id is not None and auth.secret_access_key is not None:
            token = None if auth.session_token is None else secret(auth.session_token)
            own = _Keys(secret(auth.access_key_id), secret(auth.secret_access_key), token)
        else:
            own = await self._thread.run(self._library.of_environment)
        return own if auth.assume_role is None else await self._as_role(auth.assume_role, own)

    async def _as_role(self, role: AwsRole, own: _Keys) -> _Keys:
        kept = self._assumed
        # Those of the environment change by themselves, and what they assumed stays good.
        changed = kept is not None and self._auth.access_key_id is not None and kept.by != own.key_id
        if kept is None or changed or time.monotonic() > kept.until - _EARLY:
            kept = self._assumed = await self._assume(role, own)
        return kept.keys

    async def _assume(self, role: AwsRole, own: _Keys) -> _Assumed:
        """Ask STS. Raises SinkError."""
        asked = {
            "Action": "AssumeRole",
            "Version": "2011-06-15",
            "RoleArn": role.role_arn,
            "RoleSessionName": "audit-operator",
            "DurationSeconds": str(_ROLE_SECONDS),
        }
        if role.external_id is not None:
            asked["ExternalId"] = role.external_id
        body = urlencode(asked).encode()
        sent = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
        signature = self._library.signed("POST", self._sts, sent, body, keys=own, region=self._region, service="sts")
        answer = await self._client.send("POST", self._sts, body, {**sent, **signature}, compression="None")
        if error := error_of(answer):
            if answer.status < 500:  # a 400 is about the role or who asks, not about a batch
                raise UnauthorizedError(f"the role cannot be assumed: {error}")
            raise error
        text = answer.body.decode(errors="replace")
        keys = [_element(text, name) for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")]
        if not all(keys):
            raise MisconfiguredError("the role cannot be assumed: the answer is not that of STS")
        return _Assumed(own.key_id, _Keys(*keys), time.monotonic() + _ROLE_SECONDS)


def domain(region: str) -> str:
    """Where AWS' services of a region are."""
    return "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"


def _element(xml: str, name: str) -> str:
    """The text of an element without markup in it; empty if there is none."""
    found = re.search(f"<{name}>([^<&]++)</{name}>", xml)
    return found[1].strip() if found else ""


class _Library:
    """AWS' library; blocking. It is imported here: only who needs it must have it."""

    def __init__(self) -> None:
        self._auth: Any = importlib.import_module("awscrt.auth")
        self._http: Any = importlib.import_module("awscrt.http")
        self._io: Any = importlib.import_module("awscrt.io")
        self._chain: Any = None

    def of_environment(self) -> _Keys:
        """What the environment offers; the library renews it. Raises UnauthorizedError."""
        try:
            if self._chain is None:
                self._chain = self._auth.AwsCredentialsProvider.new_default_chain()
            found = self._chain.get_credentials().result(timeout=20)
        except Exception as error:  # the library's own, or a timeout
            raise UnauthorizedError(
                "the environment offers no AWS credentials; name some in auth, or give the receiver's service account "
                "a role (IRSA, EKS Pod Identity)"
            ) from error
        return _Keys(found.access_key_id, found.secret_access_key, found.session_token)

    def signed(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, *, keys: _Keys, region: str, service: str
    ) -> dict[str, str]:
        """The headers that sign a request."""
        auth, parts = self._auth, urlsplit(url)
        given = {"Host": parts.netloc, **headers}
        path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        request = self._http.HttpRequest(
            method, path, self._http.HttpHeaders(list(given.items())), self._io.InputStream(io.BytesIO(body))
        )
        config = auth.AwsSigningConfig(
            algorithm=auth.AwsSigningAlgorithm.V4,
            signature_type=auth.AwsSignatureType.HTTP_REQUEST_HEADERS,
            credentials_provider=auth.AwsCredentialsProvider.new_static(*keys),
            region=region,
            service=service,
            signed_body_header_type=auth.AwsSignedBodyHeaderType.X_AMZ_CONTENT_SHA_256,
            # S3 takes paths as they are written.
            use_double_uri_encode=service != "s3",
            should_normalize_uri_path=service != "s3",
        )
        signed = auth.aws_sign_request(request, config).result(timeout=5).headers
        return {name: value for name, value in signed if name not in given}
