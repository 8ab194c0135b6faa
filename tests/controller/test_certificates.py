"""Certificates: trusted by whoever got its files at any time, and silent while nothing has to change."""

import base64
import contextlib
import itertools
import socket
import ssl
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_operator.controller.certificates import (
    CA,
    CA_LIFETIME,
    LIFETIME,
    OVERLAP,
    SECRETS,
    SUCCESSION,
    Renewal,
    ca_secret,
    issue_client,
    lacks_uri,
    renewal,
)
from audit_operator.render.tls import CLIENT_TLS, RECEIVER_TLS

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
NAMES = ("audit-receiver.audit-system.svc", "10.0.0.40", "fd00::1")

Secrets = Mapping[str, dict[str, Any] | None]


def secrets(made: Renewal) -> dict[str, dict[str, Any] | None]:
    """The Secrets as the cluster has them after ``made`` was applied."""

    def tls(certificate: str, key: str) -> dict[str, Any]:
        values = {"ca.crt": made.certificates.ca, "tls.crt": certificate, "tls.key": key}
        return {"data": {name: base64.b64encode(value.encode()).decode() for name, value in values.items()}}

    given = made.certificates
    return {
        CA: ca_secret(made, "audit-system"),
        RECEIVER_TLS: tls(given.server_certificate, given.server_key),
        CLIENT_TLS: tls(given.client_certificate, given.client_key),
    }


def first(now: datetime = NOW) -> Renewal:
    return renewal(dict.fromkeys(SECRETS), NAMES, now)


def contents(made: Renewal) -> tuple[Any, ...]:
    given = made.certificates
    return made.authority, given.ca, given.server_certificate, given.server_key, given.client_certificate


def trusts(bundle: str, certificate: str, now: datetime) -> bool:
    """Whether who has this bundle of CAs accepts the certificate at this time."""
    leaf = x509.load_pem_x509_certificate(certificate.encode())
    if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
        return False
    for ca in x509.load_pem_x509_certificates(bundle.encode()):
        with contextlib.suppress(Exception):
            leaf.verify_directly_issued_by(ca)
            return ca.not_valid_before_utc <= now < ca.not_valid_after_utc
    return False


def test_what_need_not_change_comes_out_byte_for_byte() -> None:
    made = first()
    assert made.changes
    for later in (timedelta(), timedelta(minutes=5), 100 * DAY, LIFETIME * 2 / 3 - DAY):
        again = renewal(secrets(made), NAMES, NOW + later)
        assert contents(again) == contents(made)
        assert again.changes == ()


def test_a_certificate_is_renewed_well_before_its_end_and_its_ca_is_not() -> None:
    made = first()
    due = made.next_due
    assert NOW + LIFETIME / 2 < due < NOW + LIFETIME - 60 * DAY
    again = renewal(secrets(made), NAMES, due)
    assert again.certificates.server_certificate != made.certificates.server_certificate
    assert again.certificates.client_certificate != made.certificates.client_certificate
    assert again.certificates.ca == made.certificates.ca
    assert len(again.changes) == 2


def test_every_name_and_address_is_in_the_receivers_certificate_and_a_new_one_gets_in_at_once() -> None:
    made = first()
    more = (*NAMES, "10.0.0.99")
    again = renewal(secrets(made), more, NOW + DAY)
    assert "it lacked 10.0.0.99" in again.changes[0]
    assert len(again.changes) == 1
    names = x509.load_pem_x509_certificate(again.certificates.server_certificate.encode()).extensions
    found = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in found.get_values_for_type(x509.IPAddress)] == ["10.0.0.40", "fd00::1", "10.0.0.99"]
    # One name fewer is no reason to make a new one.
    assert renewal(secrets(again), NAMES, NOW + 2 * DAY).changes == ()


def test_a_new_ca_is_trusted_long_before_it_signs_and_the_old_one_until_it_ends() -> None:
    made, now, history = first(), NOW, []
    while now < NOW + 2 * CA_LIFETIME:
        made = renewal(secrets(made), NAMES, now)
        history.append((now, made))
        now += 30 * DAY
    generations = {each.certificates.ca for _, each in history}
    assert len(generations) > 2
    for (_, held), (at, current) in itertools.product(history, history):
        since = at - next(when for when, each in history if each is held)
        if timedelta() <= since <= OVERLAP - 31 * DAY:
            # Files that were copied up to OVERLAP ago still work, on both sides.
            assert trusts(held.certificates.ca, current.certificates.server_certificate, at)
            assert trusts(held.certificates.ca, current.certificates.client_certificate, at)
    assert max(len(each.certificates.ca) for _, each in history) < 4000  # the bundle does not grow for ever


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 120), min_size=5, max_size=60), st.data())
def test_whenever_the_operator_looks_files_of_the_last_months_work(pauses: list[int], data: st.DataObject) -> None:
    """A control-plane node copies the files at some look, and not again for up to 60 days."""
    made, now = first(), NOW + CA_LIFETIME - SUCCESSION - 300 * DAY
    made = renewal(secrets(made), NAMES, now)
    held, copied = made, now
    for pause in pauses:
        now += pause * DAY
        made = renewal(secrets(made), NAMES, now)
        if now - copied <= 60 * DAY and pause <= 60:
            assert trusts(held.certificates.ca, made.certificates.server_certificate, now)
            assert trusts(made.certificates.ca, held.certificates.client_certificate, now)
        if data.draw(st.booleans()) or now - copied > 30 * DAY:
            held, copied = made, now


@pytest.mark.parametrize("lost", [CA, RECEIVER_TLS, CLIENT_TLS])
def test_a_lost_secret_heals_and_whoever_has_the_files_notices_nothing(lost: str) -> None:
    made = first()
    again = renewal(secrets(made) | {lost: None}, NAMES, NOW + 10 * DAY)
    now = NOW + 11 * DAY
    for ours, theirs in itertools.product((made, again), (made, again)):
        assert trusts(ours.certificates.ca, theirs.certificates.server_certificate, now)
        assert trusts(ours.certificates.ca, theirs.certificates.client_certificate, now)
    if lost == CA:
        assert again.certificates.server_certificate == made.certificates.server_certificate
    # And it stays healed.
    assert renewal(secrets(again), NAMES, now).changes == ()


def test_after_the_ca_was_lost_the_next_one_takes_over_as_any_other() -> None:
    made, now = first(), NOW
    made = renewal(secrets(made) | {CA: None}, NAMES, NOW + DAY)
    held = made
    while now < NOW + LIFETIME:
        now += 10 * DAY
        before, made = made, renewal(secrets(made), NAMES, now)
        assert trusts(before.certificates.ca, made.certificates.server_certificate, now)
    assert trusts(held.certificates.ca, made.certificates.server_certificate, now)


def test_a_ca_lost_right_after_the_next_one_began_to_sign_takes_no_trust_in_older_files_with_it() -> None:
    made, now = first(), NOW
    before = made
    while _issuer(made) == _issuer(before):
        before, now = made, now + 30 * DAY
        made = renewal(secrets(made), NAMES, now)
    again = renewal(secrets(made) | {CA: None}, NAMES, now + DAY)
    assert trusts(again.certificates.ca, before.certificates.client_certificate, now + DAY)
    assert trusts(before.certificates.ca, again.certificates.server_certificate, now + DAY)


def _issuer(made: Renewal) -> x509.Name:
    return x509.load_pem_x509_certificate(made.certificates.client_certificate.encode()).issuer


@pytest.mark.parametrize("age", [10, 200, 300, 362])
def test_after_the_ca_was_lost_no_certificate_comes_near_its_end(age: int) -> None:
    made, now = first(), NOW + age * DAY
    made = renewal(secrets(made) | {CA: None}, NAMES, now)
    while now < NOW + 3 * LIFETIME:
        left = min(made.ends["receiver"], made.ends["apiserver-client"]) - now
        assert left > DAY
        now = min(made.next_due, now + 30 * DAY)
        made = renewal(secrets(made), NAMES, now)


@pytest.mark.parametrize("age", [10, 200, 300])
def test_after_the_ca_was_lost_receivers_present_what_old_files_know_for_as_long_as_it_lasts(age: int) -> None:
    held, now = first(), NOW + age * DAY
    if age > 200:
        held = renewal(secrets(held), NAMES, NOW + 250 * DAY)
    made = renewal(secrets(held) | {CA: None}, NAMES, now)
    lost, ends = now, held.ends["receiver"]
    while now < min(ends - 3 * DAY, lost + OVERLAP - DAY):
        assert trusts(held.certificates.ca, made.certificates.server_certificate, now)
        assert trusts(made.certificates.ca, held.certificates.client_certificate, now)
        now += 5 * DAY
        made = renewal(secrets(made), NAMES, now)


def test_the_operator_can_ask_receivers_while_the_ca_that_signs_is_lost() -> None:
    lost = renewal(secrets(first()) | {CA: None}, NAMES, NOW + DAY)
    certificate, _ = issue_client(lost.authority, "audit-operator", NOW + DAY, timedelta(hours=1))
    assert trusts(lost.certificates.ca, certificate, NOW + DAY)
    with pytest.raises(ValueError, match="holds no CA that can sign"):
        issue_client({}, "audit-operator", NOW, timedelta(hours=1))


def test_the_operators_certificate_has_its_uri_and_the_common_name_that_older_receivers_know() -> None:
    uri = "spiffe://cluster.local/ns/audit-system/sa/audit-operator"
    text, _ = issue_client(first().authority, "audit-operator", NOW, timedelta(hours=1), uri=uri)
    certificate = x509.load_pem_x509_certificate(text.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [uri]
    assert [each.value for each in certificate.subject] == ["audit-operator"]


def test_a_certificate_that_somebody_else_made_without_the_uri_is_noticed() -> None:
    uri = "spiffe://cluster.local/ns/audit-system/sa/audit-operator"

    def secret(text: str) -> dict[str, Any]:
        return {"data": {"tls.crt": base64.b64encode(text.encode()).decode()}}

    made = {
        each: issue_client(first().authority, "audit-operator", NOW, timedelta(hours=1), uri=each)[0]
        for each in (None, uri, f"{uri}-2")
    }
    assert lacks_uri(secret(made[None]), uri)
    assert lacks_uri(secret(made[f"{uri}-2"]), uri)
    assert not lacks_uri(secret(made[uri]), uri)
    # Nothing was made yet: then nobody is let in by an older name.
    assert not lacks_uri(None, uri)
    assert not lacks_uri(secret("garbage"), uri)
    assert not lacks_uri({"data": None}, uri)


def _garbage(value: str, how: int) -> str:
    raw = base64.b64decode(value)
    forms = [b"", b"not PEM", raw[: len(raw) // 2], raw[:-40] + b"\n", raw.replace(b"A", b"B"), b"\xff" * 40, raw * 2]
    return base64.b64encode(forms[how % len(forms)]).decode()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SECRETS), st.integers(0, 9), st.integers(0, 6)), min_size=1, max_size=4))
def test_whatever_is_in_the_secrets_the_result_works(tampering: list[tuple[str, int, int]]) -> None:
    found = secrets(first())
    for name, which, how in tampering:
        entry = found[name]
        assert entry is not None
        data = dict(entry["data"])
        key = sorted(data)[which % len(data)]
        data[key] = "%%%" if how == 6 and which % 2 else _garbage(data[key], how)
        found[name] = entry | {"data": data}
    now = NOW + DAY
    made = renewal(found, NAMES, now)
    assert trusts(made.certificates.ca, made.certificates.server_certificate, now)
    assert trusts(made.certificates.ca, made.certificates.client_certificate, now)
    assert renewal(secrets(made), NAMES, now).changes == ()


def test_a_foreign_ca_in_a_certificates_secret_is_not_trusted() -> None:
    ours, foreign = first(), first()
    found = secrets(ours) | {RECEIVER_TLS: secrets(foreign)[RECEIVER_TLS]}
    again = renewal(found, NAMES, NOW + DAY)
    assert again.certificates.ca == ours.certificates.ca
    assert not trusts(again.certificates.ca, foreign.certificates.server_certificate, NOW + DAY)
    assert trusts(ours.certificates.ca, again.certificates.server_certificate, NOW + DAY)


@pytest.mark.parametrize("jump", [-400 * DAY, 3 * LIFETIME, 2 * CA_LIFETIME])
def test_a_clock_that_jumps_and_comes_back_leaves_something_that_works(jump: timedelta) -> None:
    made = first()
    elsewhere = renewal(secrets(made), NAMES, NOW + jump)
    back = renewal(secrets(elsewhere), NAMES, NOW + DAY)
    assert trusts(back.certificates.ca, back.certificates.server_certificate, NOW + DAY) or jump > CA_LIFETIME
    healed = renewal(secrets(back), NAMES, NOW + 2 * DAY)
    assert healed.certificates.server_certificate


def test_keys_are_in_no_text_that_could_be_logged() -> None:
    made = first()
    for text in (repr(made), str(made), repr(made.certificates), f"{made!r}"):
        assert "PRIVATE" not in text


def _context(purpose: ssl.Purpose, folder: Path, certificate: str, key: str, ca: str) -> ssl.SSLContext:
    for name, text in (("tls.crt", certificate), ("tls.key", key), ("ca.crt", ca)):
        folder.joinpath(name).write_text(text)
    context = ssl.create_default_context(purpose, cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python 3.13 and Go ask for
    return context


def handshake(folder: Path, server: Renewal, client: Renewal, client_pair: tuple[str, str] | None = None) -> str:
    """The common name of the client, as the server sees it after a real handshake. Raises ssl.SSLError."""
    folders = folder / "server", folder / "client"
    for each in folders:
        each.mkdir(parents=True, exist_ok=True)
    given, other = server.certificates, client.certificates
    certificate, key = client_pair or (other.client_certificate, other.client_key)
    accepting = _context(ssl.Purpose.CLIENT_AUTH, folders[0], given.server_certificate, given.server_key, given.ca)
    connecting = _context(ssl.Purpose.SERVER_AUTH, folders[1], certificate, key, other.ca)
    mine, theirs = socket.socketpair()
    seen: list[Any] = []

    def accept() -> None:
        try:
            with accepting.wrap_socket(theirs, server_side=True) as secured:
                seen.append(secured.getpeercert())
                secured.sendall(b"k")
        except ssl.SSLError as error:
            seen.append(error)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        with connecting.wrap_socket(mine, server_hostname=NAMES[0]) as secured:
            secured.recv(1)
    finally:
        thread.join(10)
        mine.close()
        theirs.close()
    if isinstance(seen[0], ssl.SSLError):
        raise seen[0]
    return str(dict(part[0] for part in seen[0]["subject"])["commonName"])


def test_a_real_handshake_passes_strict_verification_on_both_sides(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    made = first(now)
    assert handshake(tmp_path / "a", made, made) == "kube-apiserver"
    own = issue_client(made.authority, "audit-operator", now, timedelta(hours=1))
    assert handshake(tmp_path / "b", made, made, own) == "audit-operator"
    with pytest.raises(ssl.SSLError):
        handshake(tmp_path / "c", made, first(now))


def test_old_and_new_files_shake_hands_while_a_ca_is_replaced(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    began = now - CA_LIFETIME + SUCCESSION - DAY
    old = first(began)
    with_next = renewal(secrets(old), NAMES, began + 2 * DAY)  # the successor is trusted
    while began + 60 * DAY < now:
        began += 60 * DAY
        with_next = renewal(secrets(with_next), NAMES, began)
    current = renewal(secrets(with_next), NAMES, now)
    assert handshake(tmp_path / "a", current, with_next) == "kube-apiserver"
    assert handshake(tmp_path / "b", with_next, current) == "kube-apiserver"
