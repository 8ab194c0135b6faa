"""What stands in for a cluster: certificates, the receiver's process, and a collector for the http sink."""

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import ssl
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from aiohttp import web

from audit_operator.cli.demo.findings import Arrived
from audit_operator.cli.errors import CliError
from audit_operator.controller.certificates import issue_client, renewal
from audit_operator.render.program import CLAIMS_DIRECTORY, CREDENTIALS_DIRECTORY, HASH_KEY, Credential
from audit_operator.render.report import CLIENTS_FILE, ClientNames, encoded_clients

COLLECTOR_PORT: Final = 8444
"""In the sinks of examples/demo; the collector takes whichever is free."""

_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 60.0
_LISTENING: Final = re.compile(r"listening on port (\d+)")


class Pem(NamedTuple):
    """Certificate and key."""

    certificate: str
    key: str


class Certificates(NamedTuple):
    """PEM texts: the CA that receivers and API servers know each other by, the receiver's, and the API servers'."""

    ca: str
    receiver: Pem
    api_servers: dict[str, Pem]


def certificates(names: tuple[str, ...], api_servers: tuple[str, ...]) -> Certificates:
    """By the operator's own CA, as in a cluster; to each API server a certificate of its own."""
    now = datetime.now(UTC)
    made = renewal({}, names, now)
    day = timedelta(days=1)
    return Certificates(
        made.certificates.ca,
        Pem(made.certificates.server_certificate, made.certificates.server_key),
        {name: Pem(*issue_client(made.authority, name, now, day)) for name in api_servers},
    )


def client_tls(ca: str, pem: Pem, folder: Path) -> ssl.SSLContext:
    """For a client that has this certificate and trusts this CA."""
    context = ssl.create_default_context(cadata=ca)
    _load(context, pem, folder)
    return context


def _load(context: ssl.SSLContext, pem: Pem, folder: Path) -> None:
    # Python reads them from files only.
    path = folder / "pair.pem"
    with _private(path) as file:
        file.write((pem.certificate + pem.key).encode())
    context.load_cert_chain(path)
    path.unlink()


@contextlib.contextmanager
def _private(path: Path) -> Iterator[BinaryIO]:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        yield file


def write(folder: Path, files: dict[str, str]) -> None:
    """Texts that nobody else may read."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        with _private(folder / name) as file:
            file.write(text.encode())


class Receiver:
    """`audit-operator receive` in a folder, with everything that a pod would mount."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "receiver.log"
        self.console = folder / "console.log"
        self._process: asyncio.subprocess.Process | None = None
        self.port = 0

    def mount(self, program: str, own: Certificates, given: tuple[Credential, ...], collector: "Collector") -> None:
        """Program, certificates and credentials; folders and the collector's port are what they are on this machine."""
        for there, here in (
            (CREDENTIALS_DIRECTORY, str(self.folder / "credentials")),
            (CLAIMS_DIRECTORY, str(self.folder / "claims")),
            (f"https://localhost:{COLLECTOR_PORT}/", f"https://localhost:{collector.port}/"),
        ):
            program = program.replace(there, here)
        clients = ClientNames(api_servers=tuple(own.api_servers))
        write(self.folder, {"program.json": program, CLIENTS_FILE: encoded_clients(clients)})
        write(
            self.folder / "certificates",
            {"tls.crt": own.receiver.certificate, "tls.key": own.receiver.key, "ca.crt": own.ca},
        )
        values = {each.file: collector.ca if each.kind == "ConfigMap" else collector.token for each in given}
        write(self.folder / "credentials", values | {HASH_KEY: secrets.token_hex(32)})

    async def start(self) -> None:
        """Until it listens, at the same port each time. Raises CliError if it does not."""
        seen = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log, self.console.open("ab") as console:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "audit_operator", "receive",
                f"--program={self.folder / 'program.json'}",
                f"--journal={self.folder / 'state' / 'journal'}",
                f"--certificates={self.folder / 'certificates'}",
                f"--listen=127.0.0.1:{self.port}",
                "--metrics=127.0.0.1:0",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=console,
                stderr=log,
                env=os.environ | {"HOSTNAME": "audit-receiver-0"},
                # Ctrl-C is for the demo, which then ends the receiver.
                process_group=0,
            )  # fmt: skip
        end = asyncio.get_running_loop().time() + _START_SECONDS
        while not (found := _LISTENING.search(self._said(seen))) or "is in force" not in self._said(seen):
            if self._process.returncode is not None or asyncio.get_running_loop().time() > end:
                raise CliError(f"the receiver does not start; it says: {self._said(seen).strip()[-300:] or 'nothing'}")
            await asyncio.sleep(0.02)
        self.port = int(found[1])

    def _said(self, since: int) -> str:
        return self.log.read_bytes()[since:].decode(errors="replace")

    @property
    def pid(self) -> int:
        """Of the process that runs now, or ran last."""
        return self._process.pid if self._process else 0

    async def kill(self) -> None:
        """SIGKILL, and wait; nothing if it does not run."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            await self._process.wait()

    async def stop(self) -> bool:
        """SIGTERM: it delivers what waits. Whether it ended well."""
        if self._process is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        return await asyncio.wait_for(self._process.wait(), _STOP_SECONDS) == 0

    def waiting(self) -> int:
        """Events that its last words say are left in the journal."""
        found = re.findall(r"stopped; (\d+) events wait", self._said(0))
        return int(found[-1]) if found else 0


class Collector:
    """An HTTPS server that takes events, and can be away. Whoever has not its token is refused."""

    def __init__(self, folder: Path) -> None:
        self.received = folder / "collector.ndjson"
        self.token = secrets.token_urlsafe(24)
        made = renewal({}, ("localhost",), datetime.now(UTC)).certificates
        self.ca = made.ca
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        _load(self._tls, Pem(made.server_certificate, made.server_key), folder)
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen, at the same port each time."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/events", self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls)
        await site.start()
        if not self.port:
            self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Be away; nothing if it is."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401)
        body = await request.read()
        with self.received.open("ab") as file:
            file.write(body)
        return web.Response()


def arrived(path: Path) -> Arrived:
    """The audit events in a file of JSON lines, those in ECS taken out of it."""
    found: list[dict[str, Any]] = []
    broken = 0
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            event = json.loads(line)
            found.append(event if "auditID" in event else event["kubernetes"]["audit"])
        except (ValueError, KeyError, TypeError):
            broken += 1
    return Arrived(found, broken)
