"""Tenants at their worst, against everything: what they write and what their servers answer costs them alone.

Each family of attacks meets one receiver, a process as in a cluster, with the program that is rendered from what
tenants wrote beside what the platform did. In every round a dozen tenants attack at once; then the platform's events
are sent, and have to be where the platform wants them within seconds, and of the platform nothing may be said that is
not so.
"""

import asyncio
import contextlib
import io
import itertools
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from attacks import FAMILIES, Attack, Json, attacks
from hostile_server import MARK

from audit_operator.cli.demo import laptop
from audit_operator.controller import accepted
from audit_operator.controller.reported import Answer, Conditions, reported
from audit_operator.controller.statuses import document
from audit_operator.render.objects import text_hash
from audit_operator.render.plan import Plan, render
from audit_operator.render.program import CREDENTIALS_DIRECTORY, HASH_KEY, Reference, credentials_secret
from audit_operator.render.report import OPERATOR_NAME, Status, decoded
from audit_operator.render.status import Condition
from audit_operator.render.world import Identity, Invalid, Resources, World
from audit_operator.resources.load import Resource, ResourceError, load_resource

ROOT = "audit-system"
AT_ONCE = 14
"""Tenants that attack in one round."""
EVENTS = 100
"""Of each tenant's namespace at first: the more there are in a batch, the longer an answer may be."""
WITHIN = 5.0
"""Seconds in which the platform's events are delivered, whatever tenants do."""
MEMORY = 1 << 30
"""Bytes; what `spec.receiver.resources` of the AuditBackend gives a receiver by default."""
LARGEST_OBJECT = 1 << 20
"""Bytes of data in one Secret or ConfigMap; etcd takes little more."""


def platform(collector: int) -> list[Json]:
    """What the platform wants, the sinks it wants it in, and that tenants may do as much as they can."""

    def named(kind: str, name: str, **spec: Any) -> Json:
        metadata = {"name": name} | ({} if kind == "AuditBackend" else {"namespace": ROOT})
        metadata["creationTimestamp"] = "2026-06-01T00:00:00Z"  # younger than what tenants have
        return {"apiVersion": "audit-operator.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}

    quick = {"batch": {"maxAge": "100ms"}, "retry": {"initialBackoff": "100ms", "maxBackoff": "1s"}}
    url = {"url": f"http://127.0.0.1:{collector}/events", "auth": {"bearerToken": {"name": "siem", "key": "token"}}}
    return [
        named("AuditBackend", "default", clusterName="c", tenants={"enabled": True, "networks": ["127.0.0.1/32"]}),
        named("AuditSink", "siem", http=url, **quick),
        named("AuditSink", "archive", file={"path": "{sink}.log"}, **quick),
        named("AuditSink", "shared", http=url, allowedNamespaces={"from": "All"}, **quick),
        named("AuditPolicy", "baseline", preset="Metadata", sinks=[{"name": "siem"}, {"name": "shared"}]),
        named("AuditPolicy", "kept", preset="Metadata", sinks=[{"name": "archive"}]),
    ]


SECRET = {Reference("Secret", ROOT, "siem"): {"token": b"the-platform's-token"}}


# --- rendering -------------------------------------------------------------------------------------------------------


def loaded(item: Json) -> Resource | Invalid:
    """As the operator sees it."""
    try:
        return load_resource(item)
    except ResourceError as error:
        metadata = item["metadata"]
        return Invalid(
            identity=Identity(item["kind"], metadata.get("namespace", ""), metadata["name"]), problems=error.problems
        )


def planned(documents: Iterable[Json], attackers: Sequence[Attack]) -> tuple[Resources, Plan]:
    """What follows, with the secrets that there are."""
    secrets = SECRET | {reference: keys for attack in attackers for reference, keys in attack.secrets.items()}
    world = World(
        namespaces={ROOT: {}, "kube-system": {}} | {attack.namespace: attack.labels for attack in attackers},
        references={reference: {key: len(value) for key, value in keys.items()} for reference, keys in secrets.items()},
    )
    resources = Resources.of(map(loaded, documents))
    return resources, render(resources, world)


def of_the_platform(plan: Plan) -> Any:
    """Everything in a plan that no tenant may change."""
    tenants_too = {item["metadata"]["name"] for item in plan.objects if "program" in item["metadata"]["name"]}
    program = plan.program
    return {
        "objects": [item for item in plan.objects if item["metadata"]["name"] not in tenants_too],
        "server": (plan.server_policy, plan.server_files, plan.flags, plan.blocked, plan.complete),
        "sinks": [sink for sink in program.sinks if sink.namespace == ROOT],
        "policies": [
            (each.name, program.rule_lists[each.rule_list], each.sinks, each.redactions)
            for each in program.policies
            if each.namespace == ROOT
        ],
        "statuses": [
            (status.identity, [(each.type, each.status, each.reason) for each in status.conditions])
            for status in plan.statuses
            if status.identity.namespace in ("", ROOT)
        ],
    }


def bytes_of(item: Json) -> int:
    """What the API server counts."""
    return sum(len(text.encode()) for text in item.get("data", {}).values()) + sum(
        len(text) * 3 // 4 for text in item.get("binaryData", {}).values()
    )


def check_plan(plan: Plan, resources: Resources, attackers: Sequence[Attack], quiet: Any) -> None:
    """Nothing is blocked, nothing of the platform's is another, all fits, and who is refused is told why."""
    assert plan.blocked == ()
    assert of_the_platform(plan) == quiet
    kept = accepted.written(accepted.accepted(resources, plan.refused), ROOT)
    for item in (*plan.objects, *kept):
        assert bytes_of(item) <= LARGEST_OBJECT, item["metadata"]["name"]
    values = secret_values(attackers)
    copies: dict[str, int] = {}
    for each in plan.credentials:
        name = credentials_secret(each.namespace, ROOT)
        copies[name] = copies.get(name, 0) + len(values.get(each.reference, {}).get(each.key, b""))
    assert all(size <= LARGEST_OBJECT for size in copies.values()), copies
    found = {status.identity: status for status in plan.statuses}
    for attack in attackers:
        for named, reason in attack.refused.items():
            kind, name = named.split("/")
            ready = found[Identity(kind, attack.namespace, name)].ready
            assert (ready.status, ready.reason) == ("False", reason), (attack.name, named, ready.message)
        for named in attack.counts:
            kind, name = named.split("/")
            status = found[Identity(kind, attack.namespace, name)]
            assert status.identity not in plan.refused, (attack.name, status.ready)
    for status in plan.statuses:
        written = document(status, {}, datetime.now(UTC))
        assert written is not None
        assert len(json.dumps(written)) < 50_000
        assert all(len(each["message"]) <= 32768 for each in written["status"]["conditions"])


def secret_values(attackers: Sequence[Attack]) -> Mapping[Reference, Mapping[str, bytes]]:
    return SECRET | {reference: keys for attack in attackers for reference, keys in attack.secrets.items()}


# --- a receiver and its surroundings ---------------------------------------------------------------------------------


class Collector:
    """The platform's: remembers which events came."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.port = 0

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["Collector"]:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/events", self._take)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer the-platform's-token"
        for line in (await request.read()).splitlines():
            self.seen.add(json.loads(line)["auditID"])
        return web.Response()


class Hostile:
    """The hostile server, a process of its own: what it costs is not the test's."""

    def __init__(self, ports: tuple[int, int], process: asyncio.subprocess.Process) -> None:
        self.ports = ports
        self._process = process

    async def reached(self) -> set[str]:
        """What it was asked for; it ends."""
        words, _ = await asyncio.wait_for(self._process.communicate(b""), 20)
        return set(words.decode().split())


@contextlib.asynccontextmanager
async def hostile() -> AsyncIterator[Hostile]:
    """It listens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("hostile_server.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    one, two = map(int, (await process.stdout.readline()).split())
    try:
        yield Hostile((one, two), process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class Arena:
    """A receiver under attack."""

    def __init__(self, folder: Path, collector: Collector) -> None:
        self.receiver = laptop.Receiver(folder)
        self.collector = collector
        self._numbers = itertools.count(1)
        self._certificates = laptop.certificates(("localhost",), ("kube-apiserver", OPERATOR_NAME))
        self._folder = folder
        self._archived: set[str] = set()
        self._read = 0

    async def start(self, plan: Plan) -> None:
        own = self._certificates
        files = {"tls.crt": own.receiver.certificate, "tls.key": own.receiver.key, "ca.crt": own.ca}
        laptop.write(self._folder / "certificates", files)
        self.mount(plan, ())
        laptop.write(self._folder, {"program.json": self.text(plan)})
        await self.receiver.start()

    def mount(self, plan: Plan, attackers: Sequence[Attack]) -> None:
        """As the kubelet mounts the Secrets that the operator copies."""
        folder = self._folder / "credentials"
        folder.mkdir(exist_ok=True)
        values = secret_values(attackers)
        (folder / HASH_KEY).write_bytes(b"k" * 64)
        for each in plan.credentials:
            if each.key in values.get(each.reference, {}):
                (folder / each.file).write_bytes(values[each.reference][each.key])

    def text(self, plan: Plan) -> str:
        """The program, with the folders of this machine."""
        return plan.program_text.replace(CREDENTIALS_DIRECTORY, str(self._folder / "credentials"))

    @contextlib.asynccontextmanager
    async def as_client(self, name: str) -> AsyncIterator[Callable[..., Any]]:
        """Requests with the certificate of this name: method, path and body -> status and body."""
        tls = laptop.client_tls(self._certificates.ca, self._certificates.api_servers[name], self._folder)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session:

            async def ask(method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
                url = f"https://localhost:{self.receiver.port}{path}"
                headers = {"Content-Type": "application/json"}
                async with session.request(method, url, data=io.BytesIO(body), headers=headers) as response:
                    return response.status, await response.read()

            yield ask

    def event(self, namespace: str) -> Json:
        """An event of a request there, like no other."""
        number = next(self._numbers)
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "level": "Metadata",
            "auditID": f"00000000-0000-4000-8000-{number:012}",
            "stage": "ResponseComplete",
            "requestURI": f"/api/v1/namespaces/{namespace}/pods/web",
            "verb": "get",
            "user": {"username": "alice", "groups": ["system:authenticated"]},
            "objectRef": {"resource": "pods", "namespace": namespace, "name": "web", "apiVersion": "v1"},
            "responseStatus": {"metadata": {}, "code": 200},
            "requestReceivedTimestamp": stamp,
            "stageTimestamp": stamp,
        }

    def archived(self) -> set[str]:
        """Events in the platform's file."""
        path = self._folder / "state" / "files" / "archive.log"
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read)
                lines = file.read()
            whole = lines[: lines.rfind(b"\n") + 1]
            self._read += len(whole)
            self._archived.update(json.loads(line)["auditID"] for line in whole.splitlines())
        return self._archived

    def peak_memory(self) -> int:
        """Bytes."""
        lines = Path(f"/proc/{self.receiver.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


async def within(seconds: float, what: str, holds: Callable[[], bool]) -> None:
    """Poll until it holds."""
    end = asyncio.get_running_loop().time() + seconds
    while not holds():
        assert asyncio.get_running_loop().time() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)


def said_of_the_platform(plan: Plan, status: Status) -> list[tuple[str, Condition]]:
    """Every condition of the platform's resources that follows from what a receiver reports."""
    answer = Answer(pod="audit-receiver-0", ready=True, status=status)
    found = reported([answer], plan.program, status.program.hash, ROOT, datetime.now(UTC))
    conditions = Conditions(found, plan.program, {})
    own = [(str(each.identity), each.identity) for each in plan.statuses if each.identity.namespace == ROOT]
    return [
        *(("AuditBackend default", each) for each in found.backend),
        *((name, each) for name, identity in own for each in conditions.of(identity)),
    ]


async def attack(arena: Arena, plan: Plan, attackers: Sequence[Attack]) -> None:
    """One round."""
    arena.mount(plan, attackers)
    text = arena.text(plan)
    async with arena.as_client(OPERATOR_NAME) as operator, arena.as_client("kube-apiserver") as api_server:
        answer = await operator("PUT", "/program", text.encode())
        assert answer[0] == 200, answer
        for turn in range(3):
            own = [arena.event("kube-system") for _ in range(20)]
            number = 5 if turn else EVENTS
            theirs = [arena.event(each.namespace) for each in attackers for _ in range(number)]
            body = json.dumps({"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "items": [*own, *theirs]})
            assert (await api_server("POST", "/audit", body.encode()))[0] == 200
            ids = {each["auditID"] for each in (*own, *theirs)}
            await within(WITHIN, f"the platform's events of turn {turn}", lambda ids=ids: ids <= arena.collector.seen)
            await within(WITHIN, "they are in the file", lambda ids=ids: ids <= arena.archived())
        code, answered = await operator("GET", "/status")
    assert code == 200
    assert MARK.encode() not in answered
    status = decoded(answered)
    assert (status.ready, status.program.hash, status.program.refused) == (True, text_hash(text), "")
    for name, condition in said_of_the_platform(plan, status):
        assert condition.status == "True", (name, condition)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_tenants_do_costs_the_platform_nothing(family: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with Collector().serving() as collector, hostile() as server:
            base = platform(collector.port)
            quiet = of_the_platform(planned(base, ())[1])
            arena = Arena(tmp_path, collector)
            await arena.start(planned(base, ())[1])
            try:
                everything = waiting = attacks(family, server.ports)
                assert len(waiting) >= 45
                while waiting:
                    attackers, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
                    documents = [*base, *(each for attack in attackers for each in attack.documents)]
                    resources, plan = planned(documents, attackers)
                    check_plan(plan, resources, attackers, quiet)
                    await attack(arena, plan, attackers)
                missing = {each.reaches for each in everything if each.reaches} - await server.reached()
                assert not missing, "these attacks never were any"
                assert arena.peak_memory() < MEMORY
                log = arena.receiver.log.read_text()
                assert "Traceback" not in log
                assert MARK not in log
            finally:
                await arena.receiver.kill()

    asyncio.run(test())
