"""Blocking work that must not hold up anything but its own cause."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

_T = TypeVar("_T")
_Job = Callable[[], None]


class OwnThread:
    """A thread of one's own for work on a file or pipe that may hang: never more than one call at a time.

    The default executor is shared and has few threads: one hanging volume would stop every sink. The thread is a
    daemon: a call that hangs in the kernel does not keep the process from ending.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy: asyncio.Future[None] | None = None

    async def run(self, work: Callable[[], _T]) -> _T:
        """The result of ``work()``, or what it raised. After a cancelled call the next one waits until that has ended:
        nothing piles up behind a volume that hangs.
        """
        while self._busy is not None:
            await asyncio.shield(self._busy)
        loop = asyncio.get_running_loop()
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        outcome: asyncio.Future[_T] = loop.create_future()
        busy = self._busy = loop.create_future()

        def done(result: "_T | None", error: BaseException | None) -> None:
            self._busy = None
            busy.set_result(None)
            if outcome.cancelled():
                return
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(result)  # type: ignore[arg-type]

        def job() -> None:
            result, error = None, None
            try:
                result = work()
            except BaseException as caught:
                error = caught
            # The loop may be gone when something that hung comes back at the very end.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(done, result, error)

        self._jobs.put(job)
        return await outcome

    def stop(self) -> None:
        """Let the thread end after what it is doing."""
        self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
