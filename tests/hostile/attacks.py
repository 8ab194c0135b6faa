"""What a tenant may write, at its worst: each attack in a namespace of its own, the same for the same seed."""

import base64
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hostile_server import BODIES, MARK, RAW, SLOW

from audit_operator.render.program import Reference

Json = dict[str, Any]

_API = "audit-operator.dev/v1alpha1"


@dataclass
class Attack:
    """``documents``: what the tenant applies, the oldest first. ``secrets``: what its Secrets hold. ``labels``: of its
    namespace. ``refused``: reasons of those that must not count, by ``kind/name``; ``counts``: names that must.
    ``reaches``: what the hostile server must have been asked for.
    """

    name: str
    namespace: str
    documents: list[Json] = field(default_factory=list)
    secrets: dict[Reference, dict[str, bytes]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    counts: set[str] = field(default_factory=set)
    reaches: str = ""

    def add(self, kind: str, name: str, **spec: Any) -> "Attack":
        """One more resource; younger than those before it."""
        metadata: Json = {"name": name, "namespace": self.namespace}
        seconds = len(self.documents)
        metadata["creationTimestamp"] = f"2026-01-01T{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}Z"
        self.documents.append({"apiVersion": _API, "kind": kind, "metadata": metadata, "spec": spec})
        return self

    def policy(self, name: str = "p", refused: str = "", sinks: Sequence[Any] = ("s",), **spec: Any) -> "Attack":
        """An AuditPolicy that is refused for this reason, or counts."""
        self._expect("AuditPolicy", name, refused)
        named = [{"name": sink} if isinstance(sink, str) else sink for sink in sinks]
        return self.add("AuditPolicy", name, **{"preset": "Metadata"} | spec, sinks=named)

    def sink(self, name: str = "s", refused: str = "", **spec: Any) -> "Attack":
        """Likewise an AuditSink."""
        self._expect("AuditSink", name, refused)
        return self.add("AuditSink", name, **spec or {"http": {"url": "https://collector.invalid/"}})

    def secret(self, name: str, **values: bytes) -> "Attack":
        self.secrets[Reference("Secret", self.namespace, name)] = values
        return self

    def config_map(self, name: str, **values: bytes) -> "Attack":
        self.secrets[Reference("ConfigMap", self.namespace, name)] = values
        return self

    def _expect(self, kind: str, name: str, refused: str) -> None:
        if refused:
            self.refused[f"{kind}/{name}"] = refused
        else:
            self.counts.add(f"{kind}/{name}")


Maker = Callable[[Attack, random.Random], object]


def attacks(family: str, ports: tuple[int, int]) -> list[Attack]:
    """All of a family. ``ports``: of the hostile server."""
    made = []
    for number, (name, make) in enumerate(FAMILIES[family](ports)):
        attack = Attack(name, f"{family}-{number}")
        make(attack, random.Random(f"{family}/{name}"))
        made.append(attack)
    return made


# --- AuditPolicies ---------------------------------------------------------------------------------------------------


def _words(noise: random.Random, count: int, size: int) -> list[str]:
    """Of which gzip makes hardly less."""
    return [base64.b85encode(noise.randbytes(size)).decode()[:512] for _ in range(count)]


def _strange(noise: random.Random) -> str:
    """Text that is written with care nowhere."""
    pieces = [
        "\u0000",
        "\n",
        "\r",
        '"',
        "\\",
        "'",
        "{",
        "}",
        "%",
        "\u202e",
        "\ufeff",
        "\U0001f600",
        "\x1b[2J",
        "*",
        "/",
        ":",
    ]
    return "".join(noise.choices([*pieces, "a", "b", "\u0130", "\u00df"], k=noise.randint(1, 100)))


def _rule(noise: random.Random, **rest: Any) -> Json:
    return {"level": noise.choice(["None", "Minimal", "Metadata", "Request", "RequestResponse"]), **rest}


def _one_large(attack: Attack, noise: random.Random) -> None:
    rules = [_rule(noise, users=_words(noise, 60, 380)) for _ in range(noise.randint(20, 50))]
    attack.sink().policy("large", "TooLarge", rules=rules).policy("small")


def _several_large(attack: Attack, noise: random.Random) -> None:
    attack.sink()
    size = noise.randint(12, 20)  # kB; 64 KiB is what there is room for
    for number in range(5):
        rules = [_rule(noise, users=_words(noise, size * 4, 200))]
        attack.policy(f"p{number}", "" if (number + 1) * size < 60 else "TooLarge", rules=rules)
        if (number + 1) * size * 1024 * 1.0 > 50_000:
            break
    attack.counts -= {"AuditPolicy/p2", "AuditPolicy/p3", "AuditPolicy/p4"}  # near the limit either is right
    for late in ("p2", "p3", "p4"):
        attack.refused.pop(f"AuditPolicy/{late}", None)


def _many(attack: Attack, noise: random.Random) -> None:
    attack.sink()
    for number in range(300):
        attack.policy(f"p{number}", "" if number < 5 else "TooManyPolicies", preset=noise.choice(["CIS", "Metadata"]))


def _many_rules(attack: Attack, noise: random.Random) -> None:
    attack.sink().policy(refused="TooManyRules", rules=[_rule(noise) for _ in range(noise.randint(51, 200))])


def _elsewhere(attack: Attack, noise: random.Random) -> None:
    names = [f"{number:0300d}" for number in range(noise.randint(150, 200))]
    attack.sink().policy(rules=[{"level": "Metadata", "namespaces": names}])


def _strange_words(attack: Attack, noise: random.Random) -> None:
    def words() -> list[str]:
        return [_strange(noise) for _ in range(noise.randint(1, 8))]

    rules = [
        _rule(noise, users=words(), userGroups=words(), verbs=words(), resources=[{"group": "", "resources": words()}])
        for _ in range(noise.randint(1, 8))
    ]
    attack.sink().policy(rules=rules)


def _urls(attack: Attack, noise: random.Random) -> None:
    urls = ["/" + "a" * noise.randint(1, 100) + noise.choice(["", "*"]) for _ in range(64)]
    attack.sink().policy(rules=[{"level": "Metadata", "nonResourceURLs": urls}] * noise.randint(1, 5))


def _selectors(attack: Attack, noise: random.Random) -> None:
    expressions = [
        {"key": f"k{number}", "operator": noise.choice(["In", "NotIn"]), "values": [f"v{each}" for each in range(64)]}
        for number in range(16)
    ]
    rules = [{"level": "Metadata", "namespaceSelector": {"matchExpressions": expressions}}] * noise.randint(1, 5)
    attack.labels = {f"k{number}": f"v{number}" for number in range(300)}
    attack.sink().policy(rules=rules)


def _names(attack: Attack, noise: random.Random) -> None:
    entries = [
        {"group": noise.choice(["", "apps", "*"]), "resources": ["pods"], "resourceNames": _words(noise, 20, 20)}
        for _ in range(8)
    ]
    attack.sink().policy(rules=[_rule(noise, resources=entries) for _ in range(noise.randint(2, 10))])


def _redactions(attack: Attack, noise: random.Random) -> None:
    paths = ["spec" + ".a" * 200, "spec" + "[*]" * 150, '["' + "x" * 500 + '"]', "data.*", *["*"][:0]]
    paths += [f'metadata.annotations["{noise.randrange(10**6)}\u0130\u00df\n"]' for _ in range(40)]
    redaction = {"resources": [{"group": "*", "resources": ["*"]}], "paths": paths, "action": "Hash"}
    attack.sink().policy(preset="AllBodies", redactions=[redaction] * noise.randint(1, 12))


def _too_many_redactions(attack: Attack, noise: random.Random) -> None:
    redaction = {"resources": [{"group": "", "resources": ["pods"]}], "paths": ["spec"]}
    attack.sink().policy(refused="TooManyRedactions", redactions=[redaction] * noise.randint(17, 64))


def _others_sinks(attack: Attack, noise: random.Random) -> None:
    others = [{"name": name, "namespace": "audit-system"} for name in ("siem", "archive", "nowhere")]
    attack.policy(sinks=[*others, {"name": "s", "namespace": "kube-system"}, {"name": "s", "namespace": "policies-0"}])


def _shared_sink(attack: Attack, noise: random.Random) -> None:
    for number in range(5):
        rules = [_rule(noise, users=_words(noise, 10, 300)), {"level": "RequestResponse"}]
        attack.policy(f"p{number}", sinks=[{"name": "shared", "namespace": "audit-system"}], rules=rules)


def _long_names(attack: Attack, noise: random.Random) -> None:
    name = ".".join(["x" * 63] * 3 + ["y" * 61])
    attack.sink(name).policy(name, sinks=[name]).policy("a.b", sinks=[name])


def _invalid(attack: Attack, noise: random.Random) -> None:
    wrong = noise.choice(
        [
            {"rules": [{"level": "x" * 1_000_000}]},
            {"rules": [{"level": "Metadata", "users": [1] * 256}] * 200},
            {"rules": [{"level": "Metadata", **{f"f{number}": MARK for number in range(2000)}}]},
            {"rules": [{":" * 990: {":" * 990: {":" * 990: 1}}}]},
            {"preset": "CIS", "redactions": [{"resources": [{"resources": ["p!"] * 128}], "paths": ["a b"] * 64}] * 64},
        ]
    )
    attack.sink().policy("bad", "Invalid", **wrong).policy("good")


def _nothing(attack: Attack, noise: random.Random) -> None:
    every = ["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"]
    attack.sink().policy(rules=[_rule(noise)], omitStages=every).policy("none", sinks=())


def _policies(_: tuple[int, int]) -> Iterator[tuple[str, Maker]]:
    makers = (
        _one_large, _several_large, _many_rules, _elsewhere, _strange_words, _urls, _selectors, _names, _redactions,
        _too_many_redactions, _others_sinks, _shared_sink, _long_names, _nothing, _invalid,
    )  # fmt: skip
    yield "many", _many
    for turn in range(4):
        for maker in makers:
            yield f"{maker.__name__}-{turn}", maker


# --- AuditSinks and Secrets ------------------------------------------------------------------------------------------


def _bearer(secret: str, key: str = "k") -> Json:
    return {"http": {"url": "https://collector.invalid/", "auth": {"bearerToken": {"name": secret, "key": key}}}}


def _large_secrets(attack: Attack, noise: random.Random) -> None:
    size = noise.choice([300_000, 700_000, 1_000_000])
    attack.secret("one", k=b"a" * size).secret("two", k=noise.randbytes(size)).secret("small", k=b"t")
    attack.sink("small", **_bearer("small")).sink("one", "TooLarge", **_bearer("one"))
    attack.sink("two", "TooLarge", **_bearer("two")).policy(sinks=["small"])


def _just_within(attack: Attack, noise: random.Random) -> None:
    attack.secret("one", k=noise.randbytes(200_000)).secret("two", k=noise.randbytes(200_000))
    attack.sink("one", **_bearer("one")).sink("two", "TooLarge", **_bearer("two")).policy(sinks=["one"])


def _many_keys(attack: Attack, noise: random.Random) -> None:
    keys = {f"{number:03}-{'k' * 240}": b"x" for number in range(48)}
    attack.secret("s", **keys)
    for name in "abc":
        headers = [
            {"name": f"X-{number}", "secret": {"name": "s", "key": key}} for number, key in enumerate(list(keys)[:16])
        ]
        attack.sink(name, http={"url": "https://collector.invalid/", "headers": headers})
    attack.policy(sinks=["a", "b", "c"])


def _bad_values(attack: Attack, noise: random.Random) -> None:
    value = noise.choice([b"", b"\n\r\nX-Injected: 1", b"\0\xff\xfe", "\u202e\ud7ff".encode(), b"t" * 60_000, b"\x80"])
    attack.secret("t", k=value).sink(**_bearer("t")).policy()


def _bad_certificates(attack: Attack, noise: random.Random) -> None:
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(noise.randbytes(3000)) + b"\n-----END CERTIFICATE-----\n"
    attack.secret("t", crt=pem * noise.randint(1, 20), key=pem).config_map("ca", crt=pem * noise.randint(1, 20))
    certificate = {"secretName": "t", "certificateKey": "crt", "privateKeyKey": "key"}
    tls = {"caConfigMap": {"name": "ca", "key": "crt"}, "clientCertificate": certificate}
    attack.sink(http={"url": "https://127.0.0.1:1/"}, tls=tls).policy()


def _bad_google_key(attack: Attack, noise: random.Random) -> None:
    key = b'{"type":"service_account","private_key":"x","token_uri":"file:///etc/passwd","client_email":"' + b"e" * 9000
    attack.secret("g", k=key + b'"}')
    attack.sink(googleCloudLogging={"parent": "projects/p", "credentials": {"name": "g", "key": "k"}}).policy()


def _missing(attack: Attack, noise: random.Random) -> None:
    attack.sink(**_bearer("nowhere")).policy()


def _many_sinks(attack: Attack, noise: random.Random) -> None:
    for number in range(150):
        attack.sink(f"s{number}", "" if number < 3 else "TooManySinks")
    attack.policy(sinks=[f"s{number}" for number in range(3)])


def _large_sinks(attack: Attack, noise: random.Random) -> None:
    urls = [f"https://collector.invalid/{'p' * 900}{number}" for number in range(16)]
    for number in range(3):
        spec: Json = {"elasticsearch": {"urls": urls}}
        attack.sink(f"s{number}", "" if number < 2 else "TooLarge", **spec)
    attack.policy(sinks=["s0"])


def _types(attack: Attack, noise: random.Random) -> None:
    spec: Json = noise.choice(
        [{"stdout": {}}, {"file": {"path": "{namespace}/x.log"}}, {"kafka": {"brokers": ["b:9092"], "topic": "t"}}]
    )
    attack.sink(refused="SinkTypeNotAllowed", **spec).policy()


def _identity(attack: Attack, noise: random.Random) -> None:
    spec: Json = noise.choice(
        [
            {"cloudWatch": {"region": "eu-central-1", "logGroup": "x"}},
            {"objectStore": {"s3": {"bucket": "audit", "region": "x"}}},
        ]
    )
    attack.sink(refused="IdentityNotAllowed", **spec).policy()


def _targets(attack: Attack, noise: random.Random) -> None:
    host = noise.choice(
        ["169.254.169.254", "127.0.0.2", "[::1]", "0.0.0.0", "2130706434", "localhost.", "[::ffff:7f00:2]"]
    )
    attack.sink(http={"url": f"http://{host}:{noise.choice([80, 9090, 8443])}/{MARK}"}).policy()


def _extremes(attack: Attack, noise: random.Random) -> None:
    batch = noise.choice(
        [{"maxEvents": 1, "maxAge": "100ms"}, {"maxEvents": 10_000, "maxBytes": "16Mi", "maxAge": "1h"}]
    )
    retry = {"initialBackoff": "100ms", "maxBackoff": "1s"}
    attack.sink(http={"url": "http://127.0.0.1:1/"}, batch=batch, retry=retry, timeout="1s", concurrency=16).policy()


def _sinks(_: tuple[int, int]) -> Iterator[tuple[str, Maker]]:
    makers = (
        _large_secrets, _just_within, _many_keys, _bad_values, _bad_certificates, _bad_google_key, _missing,
        _large_sinks, _types, _identity, _targets, _extremes,
    )  # fmt: skip
    yield "many", _many_sinks
    for turn in range(4):
        for maker in makers:
            yield f"{maker.__name__}-{turn}", maker


# --- answers ---------------------------------------------------------------------------------------------------------


def _kinds(url: str) -> dict[str, Json]:
    """Every type that answers in words of its own."""
    token = {"name": "t", "key": "k"}
    return {
        "elasticsearch": {"elasticsearch": {"urls": [url], "compression": "None"}},
        "splunk": {"splunk": {"url": url, "token": token}},
        "loki": {"loki": {"url": url}},
        "otlp": {"otlp": {"url": url, "encoding": "JSON"}},
        "http": {"http": {"url": f"{url}/audit"}},
    }


def _clouds(url: str) -> dict[str, Json]:
    """Those that speak for a cloud: its names, keys and XML."""
    keys = {"accessKeyID": {"name": "t", "key": "k"}, "secretAccessKey": {"name": "t", "key": "k"}}
    bucket = {"bucket": "audit", "region": "x", "endpoint": url, "pathStyle": True, "auth": keys}
    return {
        "cloudWatch": {"cloudWatch": {"region": "eu-central-1", "endpoint": url, "auth": keys}},
        "objectStore": {"objectStore": {"s3": bucket}},
        "googleCloudLogging": {
            "googleCloudLogging": {
                "parent": "projects/p",
                "endpoint": url,
                "credentials": {"name": "t", "key": "google"},
            }
        },
    }


@cache
def _account_key() -> bytes:
    """Of a service account, that can sign."""
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return json.dumps(
        {
            "type": "service_account",
            "private_key_id": "k1",
            "private_key": pem.decode(),
            "client_email": "audit@my-project.iam.gserviceaccount.com",
            "token_uri": "https://127.0.0.1:1/token",
        }
    ).encode()


def _answering(kind: str, way: str, port: int) -> Maker:
    def make(attack: Attack, _: random.Random) -> None:
        attack.secret("t", k=b"token", google=_account_key() if kind == "googleCloudLogging" else b"")
        attack.reaches = f"{way}/{kind}"
        rest = {"batch": {"maxEvents": 1000, "maxAge": "200ms"}, "retry": {"initialBackoff": "100ms"}, "timeout": "2s"}
        url = f"http://127.0.0.1:{port}/{way}/{kind}"
        attack.sink(**(_kinds(url) | _clouds(url))[kind], **rest).policy()

    return make


def _answers(part: int) -> Callable[[tuple[int, int]], Iterator[tuple[str, Maker]]]:
    def made(ports: tuple[int, int]) -> Iterator[tuple[str, Maker]]:
        kinds = sorted(_kinds(""))
        for number, way in enumerate((*BODIES, *SLOW, *RAW)):
            port = ports[1] if way in RAW else ports[0]
            # Elasticsearch's and http's say the most and the least; the others take turns.
            others = ("elasticsearch", kinds[2 + number % 3]) if way in BODIES else (kinds[number % 5],)
            for kind in others:
                if number % 2 == part:
                    yield f"{kind}-{way}", _answering(kind, way, port)

    return made


def _cloud_answers(ports: tuple[int, int]) -> Iterator[tuple[str, Maker]]:
    ways = (
        "words", "huge", "huge-error", "deep", "types", "bomb-error", "xml-bomb", "xml-deep", "xml-file", "redirect",
        "later-never", "endless", "silent", "raw-half", "raw-continue",
    )  # fmt: skip
    for way in ways:
        for kind in sorted(_clouds("")):
            yield f"{kind}-{way}", _answering(kind, way, ports[1] if way in RAW else ports[0])


FAMILIES: Mapping[str, Callable[[tuple[int, int]], Iterator[tuple[str, Maker]]]] = {
    "policies": _policies,
    "sinks": _sinks,
    "answers-even": _answers(0),
    "answers-odd": _answers(1),
    "answers-clouds": _cloud_answers,
}
