"""One thread for many clients: none waits for more than one piece of another's work."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from audit_operator.receiver.threads import FairThread


def test_who_comes_later_and_has_had_less_is_next() -> None:
    order: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def work(name: str) -> Callable[[], str]:
        def done() -> str:
            if not order:
                begun.set()
                go_on.wait(10)
            order.append(name)
            time.sleep(0.002)
            return name

        return done

    async def test() -> None:
        thread = FairThread("test")
        evil = [asyncio.create_task(thread.run("evil", work(f"evil {number}"))) for number in range(20)]
        await asyncio.to_thread(begun.wait)
        honest = [asyncio.create_task(thread.run("honest", work(f"honest {number}"))) for number in range(3)]
        await asyncio.sleep(0)
        go_on.set()
        assert await asyncio.gather(*honest) == ["honest 0", "honest 1", "honest 2"]
        assert len(order) < 15  # the other one's are not all done
        assert await asyncio.gather(*evil) == [f"evil {number}" for number in range(20)]
        thread.close()

    asyncio.run(test())
    assert order[1] == "honest 0"
    assert [name for name in order if name.startswith("evil")] == [f"evil {number}" for number in range(20)]


def test_what_fails_or_is_not_wanted_any_more_keeps_nobody_waiting() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        go_on.wait(10)

    def fail() -> None:
        raise ValueError("this one")

    async def test() -> None:
        thread = FairThread("test")
        hanging = asyncio.create_task(thread.run("a", hang))
        await asyncio.to_thread(begun.wait)
        failing, other = asyncio.create_task(thread.run("a", fail)), asyncio.create_task(thread.run("b", lambda: 1))
        unwanted = [asyncio.create_task(thread.run(client, fail)) for client in "abc"]
        await asyncio.sleep(0)
        hanging.cancel()
        for each in unwanted:
            each.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(ValueError, match="this one"):
            await failing
        assert await other == 1
        assert await thread.run("d", lambda: 2) == 2  # it is not busy for ever
        thread.close()

    asyncio.run(test())
