"""What tests of sinks share: programs as render makes them, batches, and the surroundings of a receiver."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from audit_operator.receiver.sinks import Batch, Item, RefusedError, Result, Sink, SinkError, Surroundings, make
from audit_operator.render.program import CREDENTIALS_DIRECTORY, SinkProgram, program
from audit_operator.resources.auditsink import AuditSink


def sink_program(credentials: Path | None = None, **spec: Any) -> SinkProgram:
    """The program of an AuditSink ``audit-system/siem`` with this spec; its credentials are read in the folder."""
    sink = AuditSink.model_validate({"metadata": {"name": "siem", "namespace": "audit-system"}, "spec": spec})
    made = program((), [sink], cluster="prod", body_limit=1, journal_limit=1).sinks[0]
    if credentials is None:
        return made
    text = json.dumps({"settings": made.settings, "tls": made.tls, "proxy": made.proxy})
    moved = json.loads(text.replace(CREDENTIALS_DIRECTORY, str(credentials)))
    return SinkProgram(**{name: getattr(made, name) for name in SinkProgram.__struct_fields__} | moved)


def surroundings(folder: Path, **changes: Any) -> Surroundings:
    """Of the receiver ``audit-receiver-0`` of cluster ``prod``."""
    given = {"files": folder / "files", "claims": folder / "claims", "state": folder / "state", **changes}
    return Surroundings(cluster="prod", receiver="audit-receiver-0", **given)


def made(folder: Path, **spec: Any) -> Sink:
    """The sink with this spec."""
    return make(sink_program(folder / "credentials", **spec), surroundings(folder))


def credential(folder: Path, name: str, key: str, value: str) -> None:
    """What the Secret ``name`` of the sink's namespace holds."""
    (folder / "credentials").mkdir(exist_ok=True)
    (folder / "credentials" / f"secret_audit-system_{name}_{key}").write_text(value)


def item(number: int, size: int = 0) -> Item:
    """One event, different from all others; ``size`` bytes more."""
    audit_id = f"00000000-0000-4000-8000-{number:012}"
    timestamp = f"2026-11-23T04:33:04.{number:06}Z"
    data = json.dumps(
        {
            "level": "Metadata",
            "auditID": audit_id,
            "stage": "ResponseComplete",
            "requestURI": f"/api/v1/namespaces/default/pods/{number}{'x' * size}",
            "verb": "get",
            "user": {"username": "alice", "groups": ["system:authenticated"]},
            "objectRef": {"resource": "pods", "namespace": "default", "name": str(number), "apiVersion": "v1"},
            "responseStatus": {"metadata": {}, "code": 200},
            "requestReceivedTimestamp": timestamp,
            "stageTimestamp": timestamp,
        },
        separators=(",", ":"),
    ).encode()
    return Item("kube-apiserver", audit_id, "ResponseComplete", timestamp, number, data, data)


def batch(*numbers: int, size: int = 0) -> Batch:
    """A batch of these events."""
    items = [item(number, size) for number in numbers]
    return Batch("prod", items, sum(len(each.data) for each in items))


async def give_up(sink: Sink, events: Batch, reached: Callable[[], bool]) -> None:
    """A delivery that is cancelled, as the worker's timeout does, once ``reached``."""
    task = asyncio.create_task(sink.deliver(events))
    while not reached():
        assert not task.done()
        await asyncio.sleep(0.005)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def insist(sink: Sink, events: Batch, *, limit: float = 5.0) -> dict[int, str]:
    """Deliver as the worker does, without its waits: until each event is taken or refused. The refused, with reasons.

    ``limit``: seconds for one delivery. 20 failures in a row are too many.
    """
    refused: dict[int, str] = {}
    parts, failures = [list(events.items)], 0
    while parts:
        part = parts.pop(0)
        try:
            async with asyncio.timeout(limit):
                result = await sink.deliver(Batch(events.cluster, part, sum(len(each.data) for each in part)))
        except RefusedError as error:
            if len(part) == 1:
                refused[part[0].sequence] = str(error)
            else:
                parts[:0] = [part[: len(part) // 2], part[len(part) // 2 :]]
            continue
        except (SinkError, TimeoutError):
            result = Result(retry=range(len(part)))
        refused |= {part[at].sequence: reason for at, reason in result.refused}
        failures = failures + 1 if result.retry else 0
        assert failures < 20
        if result.retry:
            parts.insert(0, [part[at] for at in result.retry])
    return refused
