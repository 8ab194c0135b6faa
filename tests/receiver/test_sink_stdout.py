"""The stdout sink: one event per line, whole lines."""

import asyncio
import os
import subprocess
import sys

import pytest
from sink_cases import batch

from audit_operator.receiver.sinks import TAKEN
from audit_operator.receiver.sinks.stdout import Stdout
from audit_operator.receiver.threads import OwnThread


def test_every_event_is_a_line_on_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    async def run() -> None:
        sink = Stdout()
        await sink.open()
        assert await sink.deliver(batch(1, 2)) == TAKEN
        await sink.close()

    with open(1, "wb", closefd=False) as stream:
        real, sys.stdout = sys.stdout, open(1, "w", closefd=False)  # noqa: SIM115
        try:
            asyncio.run(run())
        finally:
            sys.stdout.close()
            sys.stdout = real
        stream.flush()
    assert capfdbinary.readouterr().out == b"".join(item.data + b"\n" for item in batch(1, 2).items)


def test_a_reader_that_hangs_holds_up_its_own_sink_only() -> None:
    async def run() -> None:
        read, write = os.pipe()
        slow, other = OwnThread("slow"), OwnThread("other")
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await slow.run(lambda: os.read(read, 1))
        assert await other.run(lambda: 7) == 7
        os.write(write, b"x")
        assert await slow.run(lambda: 8) == 8
        assert os.get_blocking(read)
        os.close(read)
        os.close(write)
        slow.stop()
        other.stop()

    asyncio.run(run())


def test_a_closed_pipe_is_unreachable() -> None:
    code = (
        "import asyncio, sys\n"
        "sys.path.insert(0, 'tests/receiver')\n"
        "from sink_cases import batch\n"
        "from audit_operator.receiver.sinks import UnreachableError\n"
        "from audit_operator.receiver.sinks.stdout import Stdout\n"
        "async def run():\n"
        "    sys.stdin.read(1)\n"
        "    try:\n"
        "        await Stdout().deliver(batch(1))\n"
        "    except UnreachableError as error:\n"
        "        print(error, file=sys.stderr, flush=True)\n"
        "asyncio.run(run())\n"
        "import os; os._exit(0)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, said = process.communicate(b"x")
    assert b"standard output: Broken pipe" in said
