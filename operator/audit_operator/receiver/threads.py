"""Blocking work that must not hold up anything but its own cause."""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
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


class FairThread:
    """One thread for work of many clients, who share its time: next is who has had least of it.

    One: several would only take the interpreter from each other. Whoever comes anew begins with as much as those who
    wait have had, so that nobody saves time up.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, name)
        self._waiting: dict[Hashable, deque[Callable[[], None]]] = {}
        self._used: dict[Hashable, float] = {}
        self._busy = False

    async def run(self, client: Hashable, work: Callable[[], _T]) -> _T:
        """The result of ``work()``, or what it raised. What a client asks for is done in the order of asking."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[_T] = loop.create_future()

        def begin() -> None:
            if outcome.cancelled():
                self._next()
                return
            started = time.perf_counter()
            working = loop.run_in_executor(self._executor, work)
            working.add_done_callback(lambda done: self._done(client, time.perf_counter() - started, done, outcome))

        if client not in self._waiting:
            least = min((self._used[each] for each in self._waiting), default=0.0)
            self._used[client] = max(self._used.get(client, 0.0), least)
            self._waiting[client] = deque()
        self._waiting[client].append(begin)
        if not self._busy:
            self._next()
        return await outcome

    def close(self) -> None:
        """Let the thread end after what it is doing."""
        self._executor.shutdown(wait=False)

    def _done(
        self, client: Hashable, seconds: float, done: "asyncio.Future[_T]", outcome: "asyncio.Future[_T]"
    ) -> None:
        self._used[client] = self._used.get(client, 0.0) + seconds
        if not outcome.cancelled():
            if done.cancelled():
                outcome.cancel()
            elif (error := done.exception()) is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(done.result())
        self._next()

    def _next(self) -> None:
        for client in [client for client, waiting in self._waiting.items() if not waiting]:
            del self._waiting[client]
        self._busy = bool(self._waiting)
        if not self._busy:
            self._used.clear()
            return
        client = min(self._waiting, key=self._used.__getitem__)
        self._waiting[client].popleft()()
