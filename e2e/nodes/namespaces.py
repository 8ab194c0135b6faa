"""Machines in one: namespaces that live and die with a process of ours.

A `Space` has its own network, mounts, host name and processes. Its first process is ours; when that ends, however it
ends, the kernel kills all others, and network and mounts are gone with them. That first process is killed when this
one ends. So nothing has to be cleaned up, also after a crash.
"""

import asyncio
import contextlib
import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_INIT = """
import os, signal
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, reap)
print("ready", flush=True)
while True:
    reap()
    signal.pause()
"""
"""Process 1: collects what its children leave behind."""

_KINDS = ("net", "mount", "pid", "uts", "ipc")


class Space:
    """Network, mounts, processes and host name of their own, within those of ``parent`` or of this machine."""

    def __init__(self, name: str, parent: "Space | None" = None) -> None:
        self.name = name
        self._within: list[Space | Process] = []
        unshare = ["unshare", *(f"--{kind}" for kind in _KINDS), "--fork", "--kill-child=KILL", "--mount-proc"]
        command = [*unshare, sys.executable, "-Sc", _INIT]
        self._outer = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", *(parent.entered(command) if parent else command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        assert self._outer.stdout is not None
        assert self._outer.stderr is not None
        if self._outer.stdout.readline() != b"ready\n":
            said = self._outer.stderr.read().decode().strip()
            self._outer.wait()
            raise LookupError(f"cannot make namespaces (be root, with CAP_SYS_ADMIN): {said}")
        self.pid = _innermost(self._outer.pid)
        """Of its first process, as this process sees it."""
        if parent:
            parent._within.append(self)
        self.run("hostname", name)

    def close(self) -> None:
        """End every process in it."""
        if self._outer.returncode is not None:
            return
        for each in self._within:
            if isinstance(each, Space):
                each.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._outer.wait()
        for pipe in (self._outer.stdout, self._outer.stderr):
            if pipe:
                pipe.close()
        for each in self._within:
            if isinstance(each, Process):
                each.wait(20)

    def __enter__(self) -> "Space":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def entered(self, command: Sequence[str | Path]) -> list[str]:
        """``command`` as it runs in here."""
        enter = ["nsenter", f"--target={self.pid}", *(f"--{kind}" for kind in _KINDS), "--"]
        return [*enter, *map(str, command)]

    def run(
        self, *command: str | Path, text: str | None = None, check: bool = True, seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """The command's result. AssertionError with what it said if ``check`` and it fails."""
        done = subprocess.run(
            self.entered(command),
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        said = (done.stdout + done.stderr)[-4000:]
        assert not check or done.returncode == 0, f"{self.name}: {shlex.join(map(str, command))}\n{said}"
        return done

    def script(self, text: str, **values: str | Path) -> None:
        """Run these lines of shell with ``values`` as variables, up to the first that fails."""
        variables = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in values.items())
        self.run("sh", "-eu", text=variables + text)

    def start(self, command: Sequence[str | Path], log: Path, name: str = "") -> "Process":
        """A process in here, which logs to the end of ``log``."""
        process = Process(self, command, log, name or Path(command[0]).name)
        self._within.append(process)
        return process

    def call(self, function: Callable[[], T]) -> T:
        """What ``function`` returns, in a thread within this network: sockets that it makes stay there."""
        result: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                self._join_network()
                result.append(function())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return result[0]

    def _join_network(self) -> None:
        """Move this thread into the network. Before Python 3.12 the standard library cannot."""
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        try:
            if libc.setns(descriptor, 0x40000000) != 0:  # CLONE_NEWNET
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def forwarded(self, host: str, port: int) -> Iterator[int]:
        """A port of this machine's loopback that leads to an address in here; nothing else of it is visible outside."""
        listener = socket.create_server(("127.0.0.1", 0))
        loop = asyncio.new_event_loop()
        stop: asyncio.Future[None] = loop.create_future()

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
            writer.close()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                there = await asyncio.wait_for(asyncio.open_connection(host, port), 5)
            except OSError:
                writer.close()
                return
            try:
                await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
            except asyncio.CancelledError:  # the end of the block: connections end with it
                writer.close()
                there[1].close()

        async def forward() -> None:
            server = await asyncio.start_server(serve, sock=listener)
            await stop
            server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        def run() -> None:
            self._join_network()
            loop.run_until_complete(forward())
            loop.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            loop.call_soon_threadsafe(stop.set_result, None)
            thread.join()


class Process:
    """A process in a `Space`."""

    def __init__(self, space: Space, command: Sequence[str | Path], log: Path, name: str) -> None:
        self.name = name
        self.log = log
        around = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        with log.open("ab") as output:
            self._outer = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *space.entered(command)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=around,
            )

    @property
    def running(self) -> bool:
        return self._outer.poll() is None

    def wait(self, seconds: float) -> int:
        """Until it ends by itself; its exit code."""
        return self._outer.wait(timeout=seconds)

    def kill(self, number: signal.Signals = signal.SIGTERM, seconds: float = 20) -> None:
        """End it, with SIGKILL if it does not in time."""
        # nsenter waits for the process that it made, and passes no signals on.
        for each in (number, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(_innermost(self._outer.pid, depth=1), each)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._outer.wait(timeout=seconds)
                return
        raise AssertionError(f"{self.name} does not end")

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = 120) -> None:
        """Until ``condition`` holds. AssertionError with the end of the log if it does not, or the process ends."""
        until = time.monotonic() + seconds
        while not condition():
            assert self.running, f"{self.name} ended; {what} is not to be\n{self.tail()}"
            assert time.monotonic() < until, f"not within {seconds} s: {what}\n{self.tail()}"
            time.sleep(0.2)


def _innermost(pid: int, depth: int = 100) -> int:
    """The child of the child … of a process; itself if it has none."""
    for _ in range(depth):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            break
        pid = int(children[0])
    return pid
