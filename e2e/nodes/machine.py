"""What tests do to a machine of a cluster, whatever it is made of: files, processes, a shell of root."""

import contextlib
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Output(NamedTuple):
    """What a command did."""

    code: int
    stdout: str
    stderr: str


class Machine:
    """A node. ``small_volumes``: whether a test may fill one of its volumes: they are a few hundred megabytes."""

    name: str
    small_volumes: bool

    def entered(self, command: Sequence[str]) -> list[str]:
        """``command`` as this process runs it on the node."""
        raise NotImplementedError

    def restart_kubelet(self) -> None:
        raise NotImplementedError

    def run(self, *command: str, text: str | None = None, check: bool = True, seconds: float = 300) -> Output:
        """A command of root. AssertionError with what it said if ``check`` and it fails."""
        done = subprocess.run(
            self.entered(command),
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert not check or done.returncode == 0, f"{self.name}: {command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return Output(done.returncode, done.stdout, done.stderr)

    @contextlib.contextmanager
    def shell(self) -> "Iterator[Shell]":
        """In which one command follows another."""
        shell = Shell(self.entered(["bash"]))
        try:
            yield shell
        finally:
            shell.close()

    def read(self, path: str) -> str:
        return self.run("cat", path).stdout

    def write(self, path: str, text: str) -> None:
        self.run("tee", path, text=text)

    def processes(self, words: str) -> list[str]:
        """Processes, those in containers too, whose command line has these words."""
        return self.run("pgrep", "-f", "--", words, check=False).stdout.split()

    def kill(self, words: str) -> int:
        """SIGKILL to all of these; how many there were. Nothing but what runs on the node is seen."""
        pids = self.processes(words)
        self.run("kill", "-KILL", *pids)
        return len(pids)

    def load_image(self, archive: Path) -> None:
        """So that pods of this node can run it."""
        command = self.entered(["ctr", "--namespace=k8s.io", "images", "import", "-"])
        with archive.open("rb") as file:
            done = subprocess.run(command, stdin=file, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr


class Shell:
    """An interactive shell, but for what it says of itself."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._write("trap 'echo \"==failed $BASH_COMMAND\"' ERR")

    def _write(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()

    def run(self, commands: str, seconds: float = 300) -> tuple[str, list[str]]:
        """What the commands print, and those of them that failed. AssertionError if they take too long."""
        timer = threading.Timer(seconds, self._process.kill)
        timer.start()
        self._write(f"{commands}\necho; echo ==done")
        assert self._process.stdout is not None
        lines: list[str] = []
        failed: list[str] = []
        try:
            for line in self._process.stdout:
                if line == "==done\n":
                    return "".join(lines), failed
                if line.startswith("==failed "):
                    failed.append(line[9:].strip())
                lines.append(line)
        finally:
            timer.cancel()
        raise AssertionError(f"the shell ended in:\n{commands}\n{''.join(lines)}")

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()
