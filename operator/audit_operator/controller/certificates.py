"""The operator's own CA, and the two certificates it signs: the receivers' and the API servers'.

Decides from what the Secrets hold and what time it is; asks neither cluster nor clock. What need not change comes out
as it went in, byte for byte.

Control-plane nodes get their files by hand or by an agent, and not at once. So nothing is ever presented that is signed
by a CA which the other side may not know yet: a new CA is first only trusted (`OVERLAP` long), then signs, and the old
one stays trusted until it ends. If the CA's Secret is lost, the certificates that are out there stay in force, and
their CA stays trusted, while a new one is introduced in the same way.
"""

import base64
import binascii
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from audit_operator.render.exposure import RECEIVER
from audit_operator.render.objects import Object, encoded, new
from audit_operator.render.tls import CLIENT_NAME, CLIENT_TLS, RECEIVER_TLS, is_address
from audit_operator.render.world import Certificates

CA: Final = f"{RECEIVER}-ca"
"""The Secret with the CA: ``issuer``, what signs now; ``next``, what will; ``previous.crt``, what did; ``ca.crt``, all
that is trusted."""
SECRETS: Final = (CA, RECEIVER_TLS, CLIENT_TLS)

CA_LIFETIME: Final = timedelta(days=3650)
SUCCESSION: Final = timedelta(days=730)
"""Before its end a CA gets a successor."""
OVERLAP: Final = timedelta(days=180)
"""How long a successor is trusted before it signs."""
LIFETIME: Final = timedelta(days=365)
"""Of a certificate; it is renewed after two thirds of it."""
_BY_VOLUME: Final = timedelta(days=1)
"""How long a successor is trusted before it signs for API servers while the issuer is lost: receivers learn of it by
volume, within minutes, so that nobody need wait for copies."""
_LAST_MOMENT: Final = timedelta(days=2)
"""Before its end a certificate is renewed by whoever can sign; only those who have not copied the files since that one
is trusted are then worse off than by letting it end."""

_BACKDATED: Final = timedelta(hours=1)
"""Clocks differ: what is new must be valid for who is behind."""

_AT_LEAST: Final = timedelta(hours=1)
"""Until the next look, where what is due cannot be done yet."""


@dataclass(frozen=True)
class _Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


@dataclass(frozen=True)
class _Authority:
    """Who signs, who will, and who did. ``issuer`` None: lost; what it signed may still be out there."""

    issuer: _Pair | None
    successor: _Pair | None
    previous: tuple[x509.Certificate, ...]

    @property
    def trusted(self) -> tuple[x509.Certificate, ...]:
        """Every CA that anybody may present a certificate of, each once."""
        pairs = [pair.certificate for pair in (self.issuer, self.successor) if pair is not None]
        return tuple(dict.fromkeys((*pairs, *self.previous)))


class Renewal(NamedTuple):
    """``certificates``: for rendering. ``authority``: the data of Secret `CA`. ``changes``: what is new and why, for
    people. ``next_due``: when to ask again. ``ends``: what ends when.
    """

    certificates: Certificates
    authority: Mapping[str, bytes]
    changes: tuple[str, ...]
    next_due: datetime
    ends: Mapping[str, datetime]

    def __repr__(self) -> str:
        return f"Renewal({self.changes}, {self.next_due})"  # keys stay out of logs


class _Wanted(NamedTuple):
    """What a certificate is for."""

    title: str
    secret: str
    common_name: str
    names: tuple[str, ...]
    usage: ObjectIdentifier


def renewal(found: Mapping[str, Object | None], names: Iterable[str], now: datetime) -> Renewal:
    """What the Secrets are to hold now.

    ``found``: the Secrets as they are, by name, None if there is none; anything may be in them. ``names``: DNS names
    and addresses of the receivers. Raises nothing: what is unusable is made anew, and said.
    """
    data = {name: _data(found.get(name)) for name in SECRETS}
    changes: list[str] = []
    wanted = (
        _Wanted("receivers' certificate", RECEIVER_TLS, RECEIVER, tuple(names), ExtendedKeyUsageOID.SERVER_AUTH),
        _Wanted("API servers' certificate", CLIENT_TLS, CLIENT_NAME, (CLIENT_NAME,), ExtendedKeyUsageOID.CLIENT_AUTH),
    )
    authority = _succeeded(_authority(data, wanted, now, changes), now, changes)
    pairs = []
    for each in wanted:
        pair = _read_pair(data[each.secret].get("tls.crt"), data[each.secret].get("tls.key"))
        why = _why_not(pair, each, authority.trusted, now)
        if why is None and pair is not None and now < _renewed_at(pair.certificate, each, authority):
            pairs.append(pair)
            continue
        # Without an issuer the successor must do: nobody may know it yet, but nothing else works either.
        signer = authority.issuer or authority.successor
        assert signer is not None  # noqa: S101 - there is always one of the two
        made = _issued(each, signer, now)
        changes.append(f"{each.title}: {why or 'renewed in time'}; the new one ends {_day(made.certificate)}")
        pairs.append(made)
    server, client = pairs
    bundle = _pem(*authority.trusted)
    moments = [_renewed_at(pair.certificate, each, authority) for each, pair in zip(wanted, pairs, strict=True)]
    if authority.successor is not None:
        moments.append(_signs_from(authority.successor.certificate))
    elif authority.issuer is not None:
        moments.append(authority.issuer.certificate.not_valid_after_utc - SUCCESSION)
    return Renewal(
        certificates=Certificates(
            ca=bundle.decode(),
            server_certificate=_pem(server.certificate).decode(),
            server_key=_key_pem(server.key).decode(),
            client_certificate=_pem(client.certificate).decode(),
            client_key=_key_pem(client.key).decode(),
        ),
        authority=_written(authority, bundle),
        changes=tuple(changes),
        next_due=max(min(moments), now + _AT_LEAST),
        ends={
            "ca": max(each.not_valid_after_utc for each in authority.trusted),
            "receiver": server.certificate.not_valid_after_utc,
            "apiserver-client": client.certificate.not_valid_after_utc,
        },
    )


def ca_secret(made: Renewal, namespace: str) -> Object:
    """The Secret with the CA."""
    data = {key: encoded(value) for key, value in made.authority.items()}
    return new("v1", "Secret", CA, namespace, "operator", type="Opaque", data=data)


def issue_client(
    authority: Mapping[str, bytes], common_name: str, now: datetime, lifetime: timedelta, *, uri: str | None = None
) -> tuple[str, str]:
    """A certificate for a client of the receivers and its key as PEM, signed by the CA; for the operator itself.

    ``authority``: `Renewal.authority`. ``uri``: by which receivers know the operator; its common name stays, for
    receivers of the version before there were URIs. Raises ValueError if it cannot sign.
    """
    # Receivers trust a successor as soon as the operator does: their files come by volume, not by hand.
    pairs = (_read_pair(authority.get(f"{name}.crt"), authority.get(f"{name}.key")) for name in ("issuer", "next"))
    signer = next((pair for pair in pairs if pair is not None), None)
    if signer is None:
        raise ValueError(f"Secret {CA} holds no CA that can sign")
    names = (common_name,) if uri is None else (common_name, uri)
    wanted = _Wanted(common_name, "", common_name, names, ExtendedKeyUsageOID.CLIENT_AUTH)
    made = _issued(wanted, signer, now, lifetime)
    return _pem(made.certificate).decode(), _key_pem(made.key).decode()


def lacks_uri(secret: Object | None, uri: str) -> bool:
    """Whether there is a certificate in the Secret, which somebody else makes, and this URI is not in it."""
    certificates = _read_certificates(_data(secret).get("tls.crt"))
    if not certificates:
        return False
    try:
        names = certificates[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return True
    return uri not in names.get_values_for_type(x509.UniformResourceIdentifier)


# --- the CA ----------------------------------------------------------------------------------------------------------


def _authority(
    data: Mapping[str, Mapping[str, bytes]], wanted: Sequence[_Wanted], now: datetime, changes: list[str]
) -> _Authority:
    """What the Secret of the CA holds; what is missing there is made, or found where it was used."""
    secret = data[CA]
    issuer, successor = (
        pair if pair is not None and _is_ca(pair.certificate, now) else None
        for pair in (_read_pair(secret.get(f"{name}.crt"), secret.get(f"{name}.key")) for name in ("issuer", "next"))
    )
    previous = tuple(each for each in _read_certificates(secret.get("previous.crt")) if _is_ca(each, now))
    if issuer is not None:
        return _Authority(issuer, successor, previous)
    # Lost. What API servers and receivers trusted so far stays trusted: of what is out there, some may be older.
    bundles = tuple(ca for each in wanted for ca in _bundle(data[each.secret], each, now))
    own = {successor.certificate} if successor is not None else set()
    known = tuple(each for each in dict.fromkeys((*previous, *bundles)) if each not in own)
    if successor is not None and known:
        return _Authority(None, successor, known)
    if successor is not None:
        changes.append("the CA that signs was lost; its successor takes over at once")
        return _Authority(successor, None, ())
    made = _new_ca(now)
    changes.append(f"a new CA: there was no usable one in Secret {CA}")
    return _Authority(None, made, known) if known else _Authority(made, None, ())


def _bundle(data: Mapping[str, bytes], wanted: _Wanted, now: datetime) -> list[x509.Certificate]:
    """The CAs beside a certificate, if one of them did sign it and it can be used; else none of them."""
    pair = _read_pair(data.get("tls.crt"), data.get("tls.key"))
    found = [each for each in _read_certificates(data.get("ca.crt")) if _is_ca(each, now)]
    return found if _why_not(pair, wanted._replace(names=()), found, now) is None else []


def _succeeded(authority: _Authority, now: datetime, changes: list[str]) -> _Authority:
    """The authority a step further on, if it is time: a successor is made, or takes over."""
    issuer, successor, previous = authority.issuer, authority.successor, authority.previous
    if issuer is not None and successor is None and issuer.certificate.not_valid_after_utc - now < SUCCESSION:
        successor = _new_ca(now)
        changes.append(f"a new CA: trusted from now on, it signs from {_signs_from(successor.certificate):%Y-%m-%d}")
    if successor is not None and now >= _signs_from(successor.certificate):
        changes.append("the new CA signs from now on")
        previous = (*((issuer.certificate,) if issuer is not None else ()), *previous)
        issuer, successor = successor, None
    return _Authority(issuer, successor, previous)


def _signs_from(successor: x509.Certificate) -> datetime:
    return successor.not_valid_before_utc + _BACKDATED + OVERLAP


def _new_ca(now: datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    # A name of its own for each: with one name, a verifier may try the wrong key.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"audit-operator {serial:040x}"[:31])])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _Pair(certificate, key)


def _is_ca(certificate: x509.Certificate, now: datetime) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    # Not before its time is no reason: the clock may have been set back, and a CA is not lightly thrown away.
    return constraints.ca and now < certificate.not_valid_after_utc and _signed(certificate, certificate)


# --- certificates ----------------------------------------------------------------------------------------------------


def _issued(wanted: _Wanted, signer: _Pair, now: datetime, lifetime: timedelta = LIFETIME) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    ca = signer.certificate
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    names = list(map(_general_name, dict.fromkeys(wanted.names)))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, wanted.common_name)]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(min(now + lifetime, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([wanted.usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(signer.key, hashes.SHA256())
    )
    return _Pair(certificate, key)


def _general_name(name: str) -> x509.GeneralName:
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    return x509.IPAddress(ipaddress.ip_address(name)) if is_address(name) else x509.DNSName(name)


def _why_not(pair: _Pair | None, wanted: _Wanted, trusted: Iterable[x509.Certificate], now: datetime) -> str | None:
    """Why a certificate cannot be used, None if it can."""
    if pair is None:
        return "there was no usable one"
    certificate = pair.certificate
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        return "it was not valid at this time"
    if not any(_signed(certificate, each) for each in trusted):
        return "it was signed by somebody else"
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return "it was made for something else"
    common_names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if wanted.usage not in usages or [each.value for each in common_names] != [wanted.common_name]:
        return "it was made for something else"
    has = {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}
    if missing := sorted({_spelled(name) for name in wanted.names} - has):
        return f"it lacked {', '.join(missing)}"
    return None


def _spelled(name: str) -> str:
    """An address as the library spells it."""
    return str(ipaddress.ip_address(name)) if is_address(name) else name


def _renewed_at(certificate: x509.Certificate, wanted: _Wanted, authority: _Authority) -> datetime:
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    due = certificate.not_valid_before_utc + life * 2 / 3
    if authority.issuer is not None or authority.successor is None:
        return due
    for_receivers = wanted.usage == ExtendedKeyUsageOID.SERVER_AUTH
    known = authority.successor.certificate.not_valid_before_utc + (OVERLAP if for_receivers else _BY_VOLUME)
    return min(max(due, known), certificate.not_valid_after_utc - _LAST_MOMENT)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


# --- bytes -----------------------------------------------------------------------------------------------------------


def _data(secret: Object | None) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for key, value in ((secret or {}).get("data") or {}).items():
        try:
            found[key] = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError, TypeError):
            continue
    return found


def _written(authority: _Authority, bundle: bytes) -> dict[str, bytes]:
    found = {"ca.crt": bundle}
    for name, pair in (("issuer", authority.issuer), ("next", authority.successor)):
        if pair is not None:
            found |= {f"{name}.crt": _pem(pair.certificate), f"{name}.key": _key_pem(pair.key)}
    if authority.previous:
        found["previous.crt"] = _pem(*authority.previous)
    return dict(sorted(found.items()))


def _read_pair(certificate: bytes | None, key: bytes | None) -> _Pair | None:
    """A certificate and the key that belongs to it; None for anything else."""
    certificates = _read_certificates(certificate)
    if len(certificates) != 1 or key is None:
        return None
    try:
        loaded = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        return None
    return _Pair(certificates[0], loaded) if certificates[0].public_key() == loaded.public_key() else None


def _read_certificates(text: bytes | None) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(text) if text else []
        for each in found:
            each.public_key()  # a certificate can be readable and its key not
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return []
    return found


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _day(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc.astimezone(UTC):%Y-%m-%d}"
