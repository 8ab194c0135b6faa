"""`audit-operator run`: everything that runs side by side in the operator, started, and ended in order."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

from audit_operator import __version__
from audit_operator.controller import logs, metrics
from audit_operator.controller.cluster import ApiError, Discovered, KubernetesCluster, configuration
from audit_operator.controller.election import Always, Election
from audit_operator.controller.permissions import Permission, watched
from audit_operator.controller.reconcile import Reconciler, Settings
from audit_operator.controller.serving import Health, serve

logger = logging.getLogger(__name__)

T = TypeVar("T")

_DISCOVERY: Final = 60.0  # seconds between looks at what the cluster serves
_RETRY: Final = 5.0  # seconds between tries of what nothing can begin without
_READING: Final = ("reading all resources",)


class Options(NamedTuple):
    """The command line's."""

    settings: Settings
    kubeconfig: str | None
    context: str | None
    host: str
    port: int
    leader_election: bool
    log_format: Literal["json", "text"]
    log_level: str
    log_level_file: Path | None


async def run(options: Options) -> int:
    """Run until SIGTERM or SIGINT; the exit code. Raises ConfigException without a cluster, OSError without a port."""
    logs.configure(options.log_format, options.log_level)
    metrics.BUILD.info({"version": __version__})
    settings, health = options.settings, Health()
    api = await configuration(options.kubeconfig, options.context)
    stop = asyncio.Event()

    def take_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)

    take_signals()
    async with KubernetesCluster(api, settings.identity) as cluster:
        tasks = _Tasks(stop)
        try:
            serving = asyncio.Event()
            tasks.start(serve(options.host, options.port, health, serving))
            if options.log_level_file is not None:
                tasks.start(logs.follow(options.log_level_file))
            await tasks.unless_stopped(serving.wait())
            found = await tasks.unless_stopped(_begin(cluster, health))
            if found is not None:
                reconciler = Reconciler(cluster, settings, found)
                health.busy_since = lambda: reconciler.busy_since
                leadership = (
                    Election(cluster.client, settings.namespace, settings.identity, reconciler.wake)
                    if options.leader_election
                    else Always(reconciler.wake)
                )
                cluster.fence = leadership.require
                tasks.start(reconciler.watching.watch(api, settings.identity, take_signals))
                tasks.start(_discover(cluster, reconciler, health))
                tasks.start(reconciler.watching.call_the_roll(cluster))
                tasks.start(reconciler.children.watch(reconciler.is_served))
                tasks.start(reconciler.references.poll())
                tasks.start(reconciler.receivers.run())
                tasks.start(leadership.run())
                tasks.start(reconciler.run(leadership))
                await stop.wait()
        finally:
            await tasks.end()
        if isinstance(tasks.error, OSError) and not serving.is_set():
            raise tasks.error
        if tasks.error is not None:
            logger.error("ending: %s: %s", type(tasks.error).__name__, tasks.error, exc_info=tasks.error)
            with contextlib.suppress(ApiError):
                for missing in await _missing(cluster):
                    logger.error("the operator may not %s: grant it", missing)
            return 1
    logger.info("ended as told")
    return 0


class _Tasks:
    """Tasks that run for ever. If one of them ends, something broke, and so must the operator: ``stop`` is set."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self._running: list[asyncio.Task[None]] = []
        self.error: BaseException | None = None
        """What broke first."""

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` until the end."""
        task = asyncio.create_task(work)
        self._running.append(task)
        task.add_done_callback(self._ended)

    async def unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of ``work``, None if the operator is to stop before that."""
        task, stopped = asyncio.create_task(work), asyncio.create_task(self._stop.wait())
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if task.done():
            return task.result()
        task.cancel()
        return None

    async def end(self) -> None:
        """Cancel all, the last to start first, and wait until each has cleaned up.

        So the leader hands over before kopf ends, which takes along whatever else runs.
        """
        for task in reversed(self._running):
            task.remove_done_callback(self._ended)
            while not task.done():  # a library may swallow one cancellation
                task.cancel()
                await asyncio.wait((task,), timeout=1)
            if not task.cancelled() and task.exception() is not None:
                logger.warning("a part of it did not end well", exc_info=task.exception())

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.remove(task)
        error = None if task.cancelled() else task.exception()
        self.error = self.error or error or (None if self._stop.is_set() else RuntimeError("a part of it ended"))
        self._stop.set()


async def _begin(cluster: KubernetesCluster, health: Health) -> Discovered:
    """Wait until the API server answers and lets the operator see what it must."""
    while True:
        try:
            found = await cluster.discover()
            denied = await _missing(cluster)
            # Not ready for a moment in between: a rolling update would take the old pod away on it.
            health.problems = tuple(f"the operator may not {each}: grant it" for each in denied) or _READING
            if not denied:
                return found
        except ApiError as error:
            health.problems = (str(error),)
        for problem in health.problems:
            logger.error("cannot begin: %s", problem)
        await asyncio.sleep(_RETRY)


async def _missing(cluster: KubernetesCluster) -> list[Permission]:
    """What the operator must see and may not. Raises ApiError if it cannot be found out."""
    return [each for each in watched() if not await _granted(cluster, each)]


async def _granted(cluster: KubernetesCluster, permission: Permission) -> bool:
    for verb in permission.verbs:
        if not await cluster.may(verb, permission.group, permission.resource):
            return False
    return True


async def _discover(cluster: KubernetesCluster, reconciler: Reconciler, health: Health) -> None:
    """Follow what the cluster serves, and say whether it answers."""
    while True:
        try:
            reconciler.discovered(await cluster.discover())
            health.problems = () if reconciler.watching.ready.is_set() else _READING
        except ApiError as error:
            # Not a reason to be taken out of a Service: nobody calls the operator. It is only said.
            logger.warning("%s", error)
        await asyncio.sleep(_DISCOVERY if not health.problems else 1.0)
