"""stdout: one event per line on standard output, for a log collector on the node."""

import sys
from functools import partial

from audit_operator.receiver.sinks import TAKEN, Batch, Result, Settings, Surroundings, UnreachableError, settings
from audit_operator.receiver.threads import OwnThread
from audit_operator.render.program import SinkProgram


class _Stdout(Settings, frozen=True):
    """There is nothing to set."""


def make(program: SinkProgram, _surroundings: Surroundings) -> "Stdout":
    """See `Sink`."""
    settings(program, _Stdout)
    return Stdout()


class Stdout:
    """Standard output. Whoever reads the pipe may be slow, so that is a thread's business."""

    def __init__(self) -> None:
        self._thread = OwnThread("stdout")

    async def open(self) -> None:
        """Nothing to do."""

    async def deliver(self, batch: Batch) -> Result:
        """Write one line per event, all in one piece: several stdout sinks share the stream."""
        lines = b"".join([item.data + b"\n" for item in batch.items])
        try:
            await self._thread.run(partial(_write, lines))
        except OSError as error:
            raise UnreachableError(f"standard output: {error.strerror}") from error
        return TAKEN

    async def close(self) -> None:
        """The stream is not ours."""
        self._thread.stop()


def _write(lines: bytes) -> None:
    sys.stdout.buffer.write(lines)
    sys.stdout.buffer.flush()
