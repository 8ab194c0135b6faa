"""The receivers that run: which there are, the program pushed to each, and what each reports, every few seconds.

A kubelet takes up to a minute to bring a new program to a volume; a push takes none. The volume is for receivers that
start while nobody pushes, and for those the operator cannot reach.
"""

import asyncio
import contextlib
import logging
import ssl
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import msgspec

from audit_operator.controller import metrics
from audit_operator.controller.cluster import ApiError, Cluster, ResourceType
from audit_operator.controller.election import Fence, NotLeadingError, while_leading
from audit_operator.controller.reported import LATELY, NOBODY, Answer, Reported, reported
from audit_operator.render.objects import Object
from audit_operator.render.program import Program
from audit_operator.render.report import PROGRAM_PATH, STATUS_PATH, Status, decoded
from audit_operator.render.status import false
from audit_operator.render.tenants import Refusal
from audit_operator.render.workload import SELECTOR

logger = logging.getLogger(__name__)

PODS: Final = ResourceType("v1", "Pod", "pods")

_SELECTOR: Final = ",".join(f"{key}={value}" for key, value in sorted(SELECTOR.items()))
_PERIOD: Final = 2.0
"""Seconds between two looks at a receiver."""
_TIMEOUT: Final = 5.0
"""Seconds a receiver has for an answer; one that is alive takes milliseconds."""
_PUSH_TIMEOUT: Final = 30.0
"""Seconds for a program, which may have thousands of policies to be made ready."""
_PATIENCE: Final = 3.0
"""Seconds a pass waits until receivers that answered lately have the program."""
_LARGEST: Final = 4 << 20
"""Bytes of a status: a thousand sinks have some hundred kilobytes."""
_LARGEST_ERROR: Final = 1 << 16
"""Bytes of an answer that is none; the beginning is said."""
_GRACE: Final = 60.0
"""Seconds for which the last report holds when no receiver answers: a single one is gone for a while when it restarts,
and a thousand statuses would change twice."""
_REMEMBERED: Final = 8
"""Programs wanted before; a receiver that runs one of them runs all that has not changed since."""


class Credentials(NamedTuple):
    """How the operator shows who it is, and by which CAs it knows receivers; PEM."""

    ca: str
    certificate: str
    key: str

    def __repr__(self) -> str:
        return "Credentials(…)"  # keys stay out of logs


class Target(NamedTuple):
    """What receivers are to run, and how they are reached. ``hash``: of ``text``, which is ``program`` encoded."""

    program: Program
    text: str
    hash: str
    port: int
    server_name: str
    credentials: Credentials | None


class Receivers:
    """Pushes and asks; ``wake`` is called when what they report calls for another word in a status.

    ``fence``: only a replica that leads may push.
    """

    def __init__(self, cluster: Cluster, namespace: str, fence: Fence, wake: Callable[[], None]) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._fence = fence
        self._wake = wake
        self._target: Target | None = None
        self._earlier: dict[str, Program] = {}
        self._lines: dict[str, _Line] = {}
        self._progress = asyncio.Event()
        self._session: tuple[Credentials, aiohttp.ClientSession] | None = None
        self._listed = asyncio.Event()
        self._denied = ""
        self._said: Reported = NOBODY
        self._heard: Reported = NOBODY
        self._heard_at = -_GRACE
        self._ran: dict[str, str] = {}

    # --- for a pass --------------------------------------------------------------------------------------------------

    async def bring(self, target: Target | None) -> Reported:
        """From now on this is to run, None: nothing; what receivers report, once those that are alive run it.

        Receivers that do not answer are not waited for: they get it as soon as they do.
        """
        if self._target is not None and (target is None or target.hash != self._target.hash):
            self._earlier.pop(self._target.hash, None)
            self._earlier[self._target.hash] = self._target.program
            for hash_ in list(self._earlier)[:-_REMEMBERED]:
                del self._earlier[hash_]
        await self._log_in(target.credentials if target is not None else None)
        self._target = target
        for line in self._lines.values():
            line.kick.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._listed.wait()
                while any(line.owes(target) for line in self._lines.values()):
                    self._progress.clear()
                    await self._progress.wait()
        return self.report()

    def report(self) -> Reported:
        """What receivers report now; until that changes nobody is woken."""
        self._said = self._now()
        return self._said

    def earlier(self) -> Mapping[str, Program]:
        """What was to run before, by hash."""
        return self._earlier

    def _now(self) -> Reported:
        target = self._target
        if target is None:
            return NOBODY
        answers = [line.answer for line in self._lines.values()]
        if self._denied:
            said = f"the operator may not see receivers' pods; grant it: {self._denied}"
            return Reported(asked=True, backend=(false("ProgramInForce", Refusal("Forbidden", said)),))
        found = reported(answers, target.program, target.hash, self._namespace, datetime.now(UTC))
        if found.answering:
            self._heard, self._heard_at = found, time.monotonic()
            self._ran = {each.pod: each.status.program.hash for each in answers if each.status is not None}
        elif time.monotonic() - self._heard_at < _GRACE:
            behind = {pod: hash_ for pod, hash_ in self._ran.items() if hash_ != target.hash}
            return msgspec.structs.replace(self._heard, backend=found.backend, behind=behind)
        return found

    def _leads(self) -> bool:
        """Whether this replica may push. What it wanted when it led before is forgotten: the one that led meanwhile may
        have pushed something newer, which must stay until a pass has seen everything.
        """
        try:
            self._fence()
        except NotLeadingError:
            self._target = None
            return False
        return True

    def _happened(self) -> None:
        self._progress.set()
        if self._leads() and self._target is not None and self._now() != self._said:
            self._wake()

    # --- connections -------------------------------------------------------------------------------------------------

    async def _log_in(self, credentials: Credentials | None) -> None:
        before = self._session
        if (before[0] if before is not None else None) == credentials:
            return
        self._session = None
        if credentials is not None:
            context = await asyncio.to_thread(_context, credentials)
            connector = aiohttp.TCPConnector(ssl=context, limit=0)
            self._session = credentials, aiohttp.ClientSession(connector=connector, auto_decompress=False)
        if before is not None:
            await before[1].close()

    async def _request(self, address: str, method: str, path: str, seconds: float, data: bytes | None = None) -> bytes:
        """The body of an answer. Raises `_SilentError`, and `_RefusedError` for a program that cannot run."""
        target, session = self._target, self._session
        if target is None or session is None:
            raise _SilentError("the operator has no certificate to show yet")
        host = f"[{address}]" if ":" in address else address
        try:
            async with session[1].request(
                method,
                f"https://{host}:{target.port}{path}",
                data=data,
                headers={"Content-Type": "application/json"} if data is not None else {},
                server_hostname=target.server_name,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, _TIMEOUT)),
            ) as response:
                pieces, size = [], 0
                async for piece in response.content.iter_any():
                    pieces.append(piece)
                    size += len(piece)
                    if size > (most := _LARGEST if response.status == 200 else _LARGEST_ERROR):
                        raise _SilentError(f"answered {response.status} with more than {most} bytes")
        except TimeoutError:
            raise _SilentError(f"no answer within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _SilentError(str(error) or type(error).__name__) from None
        body = b"".join(pieces)
        if response.status != 200:
            text = body[:1000].decode(errors="replace").strip()
            if response.status == 422:
                raise _RefusedError(text)
            raise _SilentError(f"answered {response.status}: {text}")
        return body

    async def close(self) -> None:
        """End all connections."""
        for line in self._lines.values():
            line.task.cancel()
        await self._log_in(None)

    # --- which there are ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the receivers' pods, and what becomes of them, for ever."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch())
                while True:
                    await asyncio.sleep(_PERIOD)
                    self._happened()
        finally:
            await self.close()

    async def _watch(self) -> None:
        delay = 1.0
        while True:
            try:
                items, version = await self._cluster.list_metadata(PODS, self._namespace, _SELECTOR)
                for name in self._lines.keys() - {item["name"] for item in items}:
                    self._end(name)
                for item in items:
                    await self._look(item["name"])
                self._listed.set()
                self._denied = ""
                delay = 1.0
                async for event in self._cluster.watch_metadata(PODS, version, self._namespace, _SELECTOR):
                    if event.type == "DELETED":
                        self._end(event.metadata["name"])
                    elif event.type != "BOOKMARK":
                        await self._look(event.metadata["name"])
            except ApiError as error:
                if error.status == 410:
                    continue  # the version is too old: list anew, at once
                self._listed.set()  # nobody waits for what may not be seen
                self._denied = str(error) if error.status == 403 else self._denied
                logger.warning("%s; again in %.0f s", error, delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, 30.0)

    async def _look(self, name: str) -> None:
        pod = await self._cluster.get(PODS, self._namespace, name)
        address = _address(pod) if pod is not None else None
        line = self._lines.get(name)
        if line is not None and line.address != address:
            self._end(name)
            line = None
        if pod is None or address is None:
            return
        if line is None:
            line = self._lines[name] = _Line(name, address)
            line.task = asyncio.create_task(self._follow(line))
        if line.ready != (ready := _is_ready(pod)):
            line.ready = ready
            line.kick.set()

    def _end(self, name: str) -> None:
        if line := self._lines.pop(name, None):
            line.task.cancel()
            self._happened()

    # --- one of them -------------------------------------------------------------------------------------------------

    async def _follow(self, line: "_Line") -> None:
        """Ask again and again. One request at a time, so what was wanted last is pushed last."""
        while True:
            line.kick.clear()
            if self._leads() and self._target is not None:
                try:
                    await self._ask(line)
                except Exception:
                    logger.exception("a bug: receiver %s is not asked for a while", line.pod)
                    await asyncio.sleep(_PERIOD)
                line.asked = True
                self._happened()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PERIOD):
                    await line.kick.wait()

    async def _ask(self, line: "_Line") -> None:
        try:
            status = decoded(await self._request(line.address, "GET", STATUS_PATH, _TIMEOUT))
            if (target := self._target) is not None and status.program.hash != target.hash:
                status = await self._push(line, target, status)
        except (_SilentError, ValueError) as error:
            if line.answer.status is not None or not line.answer.error:
                logger.warning("receiver %s does not answer the operator: %s", line.pod, error)
            line.answer = Answer(pod=line.pod, ready=line.ready, error=str(error))
        else:
            line.heard(status)
        metrics.RECEIVERS.labels("answering").set(sum(each.answer.status is not None for each in self._lines.values()))
        metrics.RECEIVERS.labels("silent").set(sum(each.answer.status is None for each in self._lines.values()))

    async def _push(self, line: "_Line", target: Target, before: Status) -> Status:
        started = time.monotonic()
        try:
            sending = self._request(line.address, "PUT", PROGRAM_PATH, _PUSH_TIMEOUT, target.text.encode())
            answer = await while_leading(self._fence, sending)
        except NotLeadingError:
            return before
        except _RefusedError as error:
            if before.program.refused != str(error):
                logger.error("receiver %s refuses program %s: %s", line.pod, target.hash, error)
            metrics.PUSHES.labels("refused").inc()
            return _not_taken(before, str(error), target.hash)
        except _SilentError as error:
            logger.warning("receiver %s did not take program %s: %s", line.pod, target.hash, error)
            metrics.PUSHES.labels("failed").inc()
            return _not_taken(before, str(error), "")
        metrics.PUSHES.labels("taken").inc()
        logger.info("receiver %s runs program %s after %.2f s", line.pod, target.hash, time.monotonic() - started)
        return decoded(answer)


class _SilentError(Exception):
    """No answer that could be used; the message says why."""


class _RefusedError(Exception):
    """A receiver keeps the program it has; the message is its own."""


def _not_taken(before: Status, why: str, refused_hash: str) -> Status:
    """What the receiver would report, had it told anybody."""
    program = msgspec.structs.replace(before.program, refused=why, refused_hash=refused_hash)
    return msgspec.structs.replace(before, program=program)


class _Line:
    """What is known of one receiver."""

    def __init__(self, pod: str, address: str) -> None:
        self.pod = pod
        self.address = address
        self.ready = False
        self.asked = False
        self.kick = asyncio.Event()
        self.task: asyncio.Task[None]
        self.answer = Answer(pod=pod, ready=False, error="has not been asked yet")
        self._counted: dict[tuple[str, str], tuple[int, float]] = {}
        self._words: dict[str, tuple[object, str]] = {}
        self._delivered: dict[str, float] = {}

    def owes(self, target: Target | None) -> bool:
        """Whether it may run the program in a moment."""
        status = self.answer.status
        if target is None:
            return False
        if status is None:
            return not self.asked
        return target.hash not in {status.program.hash, status.program.refused_hash}

    def heard(self, status: Status) -> None:
        """A new report: with the words of the last one where they mean the same."""
        for each in status.sinks:
            if each.last_delivery is not None:
                self._delivered[each.name] = each.last_delivery
        sinks = [
            msgspec.structs.replace(
                each,
                message=self._steady(each.name, (each.state, each.since), each.message),
                # A receiver that starts anew knows nothing of what it delivered.
                last_delivery=self._delivered.get(each.name),
            )
            for each in status.sinks
        ]
        why = self._steady("", status.ready, status.why)
        self.answer = Answer(
            pod=self.pod,
            ready=self.ready,
            status=msgspec.structs.replace(status, sinks=sinks, why=why),
            dropped=self._growing("dropped", {each.name: each.dropped for each in status.sinks}),
            refused_events=self._growing("refused", {each.name: each.dead_lettered for each in status.sinks}),
            not_covered=self._growing("not covered", status.not_covered),
        )
        known = {"", *(each.name for each in sinks)}
        self._words = {name: words for name, words in self._words.items() if name in known}
        self._delivered = {name: at for name, at in self._delivered.items() if name in known}

    def _steady(self, name: str, state: object, words: str) -> str:
        """The first words for a state: errors hold numbers and times that change with each try."""
        known = self._words.get(name)
        if known is not None and known[0] == state:
            return known[1]
        self._words[name] = state, words
        return words

    def _growing(self, counter: str, counts: Mapping[str, int]) -> frozenset[str]:
        """Of whom the counter has grown lately. What it was before the first look says nothing about when."""
        now = time.monotonic()
        for name, count in counts.items():
            before = self._counted.get((counter, name))
            if before is None and self.answer.status is None:
                self._counted[counter, name] = count, -LATELY
            elif before is None or count != before[0]:
                grown = count > (before[0] if before is not None else 0)
                self._counted[counter, name] = count, now if grown else -LATELY
        for key in [key for key in self._counted if key[0] == counter and key[1] not in counts]:
            del self._counted[key]
        lately = (key for key, (_, at) in self._counted.items() if now - at < LATELY)
        return frozenset(name for kind, name in lately if kind == counter)


def _address(pod: Object) -> str | None:
    """Where a running pod is reached; None for one that does not run yet, or is going."""
    status: Mapping[str, Any] = pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp") or status.get("phase") != "Running":
        return None
    return status.get("podIP")


def _is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


def _context(credentials: Credentials) -> ssl.SSLContext:
    """Receivers are known by the CA and their Service's name, whatever address they have. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=credentials.ca)
    # The library takes files only. Short-lived, as is what they hold.
    with tempfile.TemporaryDirectory(prefix="audit-operator-") as folder:
        certificate, key = Path(folder, "tls.crt"), Path(folder, "tls.key")
        certificate.write_text(credentials.certificate)
        key.touch(0o600)
        key.write_text(credentials.key)
        context.load_cert_chain(certificate, key)
    return context
