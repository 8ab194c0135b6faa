"""Who may do what is a list of names: not whoever has a certificate of the same CA."""

import ssl
from pathlib import Path
from typing import Any

import pytest
from receiving import OPERATOR, name_clients
from tls_certificates import authority, written

from audit_operator.receiver.clients import Client, Clients, Role
from audit_operator.render.report import CLIENTS_FILE, ClientNames, encoded_clients, operator_uri

API_SERVER, OPERATOR_ROLE = Role.API_SERVER, Role.OPERATOR
NAMES = ClientNames(api_servers=("kube-apiserver", "cp-1.example.com", "spiffe://prod/api"), operators=(OPERATOR,))


def shown(folder: Path, common_name: str, *names: str) -> Client:
    """As the TLS library tells it of a certificate, which a real client shows to a real server."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    written(folder / "tls", authority().issue(common_name, *names))
    for context in (server, client):
        context.load_cert_chain(folder / "tls/tls.crt", folder / "tls/tls.key")
        context.load_verify_locations(folder / "tls/ca.crt")
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = server.wrap_bio(to_server, to_client, server_side=True)
    other = client.wrap_bio(to_client, to_server)
    for _ in range(4):
        for side in (other, one):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return Client.of(one.getpeercert(), "192.0.2.1")


@pytest.mark.parametrize(
    ("common_name", "names", "expected"),
    [
        ("kube-apiserver", (), API_SERVER),
        ("kube-apiserver", ("kube-apiserver",), API_SERVER),
        ("anything", ("cp-1.example.com",), API_SERVER),
        ("anything", ("spiffe://prod/api",), API_SERVER),
        ("some-web-shop", (), None),
        ("some-web-shop", ("shop.example.com", "spiffe://prod/shop"), None),
        ("KUBE-APISERVER", (), None),
        ("kube-apiserver.example.com", (), None),
        ("x", ("192.0.2.1",), None),
        ("audit-operator", (), None),
        ("audit-operator", ("audit-operator",), None),
        ("audit-operator", ("spiffe://elsewhere/ns/audit-system/sa/audit-operator",), None),
        ("anything", (OPERATOR,), OPERATOR_ROLE),
        ("audit-operator", ("audit-operator", OPERATOR), OPERATOR_ROLE),
        # Whoever may decide what receivers do may not make up events.
        ("kube-apiserver", (OPERATOR,), OPERATOR_ROLE),
    ],
)
def test_names_decide(common_name: str, names: tuple[str, ...], expected: Role | None, tmp_path: Path) -> None:
    name_clients(tmp_path, NAMES)
    clients = Clients(tmp_path / CLIENTS_FILE)
    clients.look()
    assert clients.role(shown(tmp_path, common_name, *names)) is expected


@pytest.mark.parametrize(
    ("names", "allowed"),
    [
        # A new receiver with the ConfigMap of an older operator, whose certificate has a common name only.
        (None, True),
        # A new operator, to which cert-manager has not given a certificate with a URI yet.
        (ClientNames(operators=(OPERATOR,), operator_by_common_name=True), True),
        (ClientNames(operators=(OPERATOR,)), False),
    ],
)
def test_an_older_operators_certificate_works_until_there_is_a_newer_one(
    names: ClientNames | None, allowed: bool, tmp_path: Path
) -> None:
    if names is not None:
        name_clients(tmp_path, names)
    clients = Clients(tmp_path / CLIENTS_FILE)
    clients.look()
    assert clients.role(shown(tmp_path, "audit-operator", "audit-operator")) is (OPERATOR_ROLE if allowed else None)
    assert clients.role(shown(tmp_path, "kube-apiserver", "kube-apiserver")) is API_SERVER
    assert clients.role(shown(tmp_path, "some-web-shop")) is None
    # With a URI it is somebody whom the issuer has told apart from the operator.
    assert clients.role(shown(tmp_path, "audit-operator", "spiffe://cluster.local/ns/shop/sa/shop")) is None


def test_the_file_is_taken_up_when_it_changes_and_a_broken_one_is_not(tmp_path: Path) -> None:
    clients = Clients(tmp_path / CLIENTS_FILE)
    shop = shown(tmp_path, "some-web-shop")
    name_clients(tmp_path, ClientNames(api_servers=("some-web-shop",)))
    clients.look()
    assert clients.role(shop) is API_SERVER
    broken: list[Any] = ["", "[]", "{}", '{"schema": "clients.receiver.audit-operator.dev/v9"}', '{"schema": 1}']
    for text in broken:
        (tmp_path / CLIENTS_FILE).write_text(text)
        clients.look()
        assert clients.role(shop) is API_SERVER, text
    # A newer operator may say more than this version knows.
    text = encoded_clients(ClientNames(api_servers=("another",))).replace("{", '{"more": 1,', 1)
    (tmp_path / CLIENTS_FILE).write_text(text)
    clients.look()
    assert clients.role(shop) is None


def test_a_broken_file_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clients = Clients(tmp_path / CLIENTS_FILE)
    (tmp_path / CLIENTS_FILE).write_text("{")
    for _ in range(5):
        clients.look()
    (line,) = (each.message for each in caplog.records if each.levelname == "ERROR")
    assert CLIENTS_FILE in line
    assert "the names before stay" in line


def test_who_has_no_common_name_is_called_by_the_first_of_its_names() -> None:
    found = Client.of({"subjectAltName": (("DNS", "b"), ("URI", "spiffe://x"), ("DNS", "a"))}, "192.0.2.1")
    assert found.name == "a"
    assert Client.of(None, "").name == ""


def test_a_name_is_shown_without_what_its_owner_wanted_it_to_do(tmp_path: Path) -> None:
    found = shown(tmp_path, "x\ny")
    assert "\n" not in str(found)
    assert operator_uri("cluster.local", "audit-system") == OPERATOR
