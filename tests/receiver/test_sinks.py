"""What holds for every sink: settings as render writes them, credentials read anew, names that do not change."""

import asyncio
import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from aws_doubles import S3, CloudWatch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from elasticsearch_double import Elasticsearch
from faults import FaultyServer, Reply
from google_double import GoogleCloudLogging
from loki_double import Loki
from otlp_double import Otlp
from sink_cases import batch, credential, sink_program, surroundings
from splunk_double import Acknowledging
from test_sink_kafka import cluster as kafka_cluster
from test_sink_syslog import Server as SyslogServer
from tls_certificates import authority

from audit_operator.receiver.sinks import (
    EXTRAS,
    MODULES,
    TAKEN,
    SecretFile,
    UnauthorizedError,
    UnknownSinkError,
    dated,
    filled,
    make,
    secret,
)
from audit_operator.resources.auditsink import SINK_TYPES

ROOT = Path(__file__).resolve().parents[2]

MINIMAL = {
    "elasticsearch": {"urls": ["https://localhost:1"]},
    "splunk": {"url": "https://localhost:1", "token": {"name": "splunk", "key": "token"}},
    "loki": {"url": "https://localhost:1"},
    "googleCloudLogging": {"parent": "projects/my-project"},
    "otlp": {"url": "https://localhost:1"},
    "kafka": {"brokers": ["localhost:1"], "topic": "audit"},
    "objectStore": {"s3": {"bucket": "audit", "region": "eu-central-1"}},
    "cloudWatch": {"region": "eu-central-1"},
    "syslog": {"address": "localhost:6514"},
    "http": {"url": "https://localhost:1/audit"},
    "file": {},
    "stdout": {},
}


@pytest.mark.parametrize("kind", MODULES)
def test_every_sink_takes_the_settings_that_render_writes(kind: str, tmp_path: Path) -> None:
    assert kind in SINK_TYPES
    make(sink_program(**{kind: MINIMAL[kind]}), surroundings(tmp_path))


@pytest.mark.parametrize("kind", MODULES)
def test_every_sink_refuses_a_setting_it_does_not_know(kind: str, tmp_path: Path) -> None:
    program = sink_program(**{kind: MINIMAL[kind]})
    newer = msgspec.structs.replace(program, settings=program.settings | {"brandNew": 1})
    with pytest.raises(UnknownSinkError, match=f"sink audit-system/siem .{kind}.: .*brandNew"):
        make(newer, surroundings(tmp_path))


def test_a_type_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    newer = msgspec.structs.replace(sink_program(stdout={}), type="carrierPigeon")
    with pytest.raises(UnknownSinkError, match="'carrierPigeon' is no sink type; there are"):
        make(newer, surroundings(tmp_path))


def test_a_credential_is_read_at_each_use(tmp_path: Path) -> None:
    credential(tmp_path, "es", "token", "old")
    reference = SecretFile(file=str(tmp_path / "credentials" / "secret_audit-system_es_token"))
    assert secret(reference) == "old"
    credential(tmp_path, "es", "token", "new\n")
    assert secret(reference) == "new"


@pytest.mark.parametrize("content", [None, "", "\n", "caf\udce9"])
def test_a_missing_or_unusable_credential_is_an_error_that_passes(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UnauthorizedError, match="the credential token"):
        secret(SecretFile(file=str(path)))


def test_ids_are_stable_and_tell_apart_what_clients_name_alike() -> None:
    one = batch(1, 2)
    assert one.ids() == batch(1, 2).ids()
    assert all(len(each) == 32 for each in one.ids())
    item = one.items[0]
    others = [
        msgspec.structs.replace(item, server="kube-apiserver-2"),
        # Even with auditID, stage and stageTimestamp in common, which a client that tries often enough can have.
        msgspec.structs.replace(item, audit=item.audit.replace(b"alice", b"mallory")),
    ]
    names = type(one)("prod", [item, *others], 0).ids()
    assert len(set(names)) == 3
    assert names[0] != type(one)("staging", [item], 0).ids()[0]


def test_templates_are_filled_by_sink_and_by_event(tmp_path: Path) -> None:
    program = sink_program(stdout={})
    text = filled("{cluster}/{namespace}/{sink}/{receiver}/%Y/%m/%d/%H", program, surroundings(tmp_path))
    assert text == "prod/audit-system/siem/audit-receiver-0/%Y/%m/%d/%H"
    assert dated(text, "2026-11-23T04:33:04.000001Z").endswith("/2026/11/23/04")


LIBRARIES = {
    "googleCloudLogging": "google.auth",
    "kafka": "confluent_kafka",
    "objectStore": "obstore",
    "otlp": "opentelemetry.proto",
    "cloudWatch": "awscrt.auth",
    "elasticsearch": "awscrt.auth",
    "file": "pyrage",
}
"""Sink type -> a library that only it needs."""


@pytest.mark.parametrize("kind", EXTRAS)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(LIBRARIES[kind])]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, f"audit_operator.receiver.sinks.{MODULES[kind]}", raising=False)
    monkeypatch.setitem(sys.modules, LIBRARIES[kind], None)  # type: ignore[arg-type]
    needed = {
        "elasticsearch": {"auth": {"aws": {"region": "eu-central-1"}}},
        "file": {"encryption": {"recipients": [f"age1{'q' * 58}"]}},
    }
    spec = MINIMAL[kind] | needed.get(kind, {})
    with pytest.raises(UnknownSinkError, match=rf"siem: {kind} needs .*; install audit-operator\[{EXTRAS[kind]}\]"):
        make(sink_program(**{kind: spec}), surroundings(tmp_path))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert EXTRAS[kind] in extras


def test_every_sink_type_is_built() -> None:
    assert set(MODULES) == set(SINK_TYPES)


DOCUMENTATION = (ROOT / "docs" / "sinks.md").read_text()
EXAMPLES = [yaml.safe_load(text)["spec"] for text in re.findall(r"```yaml\n(.*?)```", DOCUMENTATION, re.DOTALL)]


DOUBLES: dict[str, Callable[[], Any]] = {
    "elasticsearch": Elasticsearch,
    "splunk": lambda: Acknowledging(indexes=("kubernetes",)),
    "loki": Loki,
    "googleCloudLogging": GoogleCloudLogging,
    "otlp": Otlp,
    "objectStore": S3,
    "cloudWatch": CloudWatch,
}


def merged(example: Any, ours: Any) -> Any:
    """The example with what leads to our server in it."""
    if isinstance(example, dict) and isinstance(ours, dict):
        return example | {key: merged(example.get(key), value) for key, value in ours.items()}
    return ours


async def deliver(folder: Path, spec: dict[str, Any]) -> None:
    """Make the sink, and deliver two events by it."""
    sink = make(sink_program(folder / "credentials", **spec), surroundings(folder))
    await sink.open()
    assert await sink.deliver(batch(1, 2)) == TAKEN
    await sink.close()


@pytest.mark.parametrize("spec", EXAMPLES, ids=lambda spec: next(iter(spec)))
def test_the_examples_in_the_documentation_deliver(
    spec: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = [item.audit_id for item in batch(1, 2).items]
    (kind,) = spec.keys() & MODULES.keys()

    async def by_http() -> None:
        double = DOUBLES[kind]()
        async with FaultyServer(double.answer) as server:
            ours = {kind: double.spec(server.url, tmp_path), "tls": {"caBundle": server.ca}}
            await deliver(tmp_path, merged(spec, ours))
        assert double.taken == wanted

    async def http() -> None:
        async with FaultyServer(lambda _: Reply()) as server:
            credential(tmp_path, "collector", "hmac", "k")
            await deliver(tmp_path, merged(spec, {"http": {"url": server.url}, "tls": {"caBundle": server.ca}}))
        assert [json.loads(line)["auditID"] for line in server.requests[0].body.splitlines()] == wanted

    async def syslog() -> None:
        async with SyslogServer(tmp_path, tls=True) as server:
            ours = {"syslog": {"address": f"localhost:{server.port}"}, "tls": {"caBundle": authority().pem.decode()}}
            await deliver(tmp_path, merged(spec, ours))
            await server.has(2)
        assert [json.loads(line[line.index(b"{") :])["auditID"] for line in server.messages()] == wanted

    async def kafka(brokers: list[str]) -> None:
        plain = {**spec, "kafka": {key: value for key, value in spec["kafka"].items() if key != "sasl"}}
        await deliver(tmp_path, merged(plain, {"kafka": {"brokers": brokers, "transport": "Plaintext"}}))

    async def local() -> None:
        credential(tmp_path, "audit-signing", "key.pem", signing_key())
        await deliver(tmp_path, spec)

    match kind:
        case "http":
            asyncio.run(http())
        case "syslog":
            asyncio.run(syslog())
        case "kafka":
            with kafka_cluster() as brokers:
                asyncio.run(kafka(brokers))
        case "file" | "stdout":
            asyncio.run(local())
            files = [path.read_bytes() for path in (tmp_path / "files").rglob("*.log*") if path.is_file()]
            written = b"".join([*files, capfd.readouterr().out.encode()])
            if "encryption" not in spec.get("file", {}):
                assert [json.loads(line)["auditID"] for line in written.splitlines()] == wanted
            else:
                assert any(file.startswith(b"age-encryption.org/v1") for file in files)
                assert not any(name.encode() in written for name in wanted)
        case _:
            asyncio.run(by_http())


def signing_key() -> str:
    """An Ed25519 key, as openssl writes it."""
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def test_every_sink_has_an_example_and_a_section() -> None:
    assert {kind for spec in EXAMPLES for kind in spec} >= set(MODULES)
    assert {line.removeprefix("## ") for line in DOCUMENTATION.splitlines() if line.startswith("## ")} >= set(MODULES)
