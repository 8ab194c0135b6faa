"""Memory for bodies: what was announced costs nothing, what came is bounded, and no client starves another."""

import asyncio
from collections.abc import Awaitable, Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from audit_operator.receiver.budget import BodyBudget, BodyClaim

CHUNK = 10
SIZE = 400


class Body:
    """One that sends ``size`` bytes, of which it keeps the last ``withheld`` to itself."""

    def __init__(self, budget: BodyBudget, client: str, size: int, withheld: int = 0) -> None:
        self.left, self.withheld = size, withheld
        self.paused = False
        self.failure: Exception | None = None
        self.claim: BodyClaim = budget.open(client, self._proceed, self._give_way)

    def _proceed(self) -> None:
        self.paused = False

    def _give_way(self, why: Exception) -> None:
        self.failure = why

    @property
    def complete(self) -> bool:
        return self.left == 0 and self.failure is None

    @property
    def sends(self) -> bool:
        return self.failure is None and not self.paused and self.left > self.withheld

    def send(self) -> None:
        size = min(CHUNK, self.left - self.withheld)
        self.left -= size
        self.paused = not self.claim.add(size, last=self.left == 0)


def run(test: Callable[[BodyBudget], Awaitable[None]]) -> None:
    asyncio.run(test(BodyBudget(SIZE)))  # type: ignore[arg-type]


def send_all(bodies: list[Body]) -> None:
    """In turns, until nobody can send any more; what is complete is answered a turn later."""
    while any(each.sends for each in bodies):
        for each in bodies:
            if each.sends:
                each.send()


def test_what_is_announced_costs_nothing() -> None:
    async def test(budget: BodyBudget) -> None:
        silent = [Body(budget, "silent", SIZE) for _ in range(100)]
        honest = Body(budget, "honest", SIZE // 2)
        send_all([honest])
        assert honest.complete
        assert not any(each.failure for each in silent)

    run(test)


def test_a_client_that_does_not_finish_leaves_half_of_it_to_others() -> None:
    async def test(budget: BodyBudget) -> None:
        slow = [Body(budget, "slow", SIZE // 2, withheld=1) for _ in range(10)]
        send_all(slow)
        assert budget.held_by("slow") <= SIZE // 2 + CHUNK
        honest = [Body(budget, f"honest-{number}", SIZE // 8) for number in range(4)]
        send_all(honest)
        assert all(each.complete for each in honest)

    run(test)


def test_of_two_clients_the_one_that_holds_more_gives_way() -> None:
    async def test(budget: BodyBudget) -> None:
        slow = [Body(budget, f"slow-{number}", SIZE // 2, withheld=1) for number in range(2)]
        send_all(slow)
        honest = Body(budget, "honest", SIZE // 4)
        send_all([honest])
        assert honest.complete
        assert sum(each.failure is not None for each in slow) == 1

    run(test)


def test_bodies_of_one_client_that_wait_for_one_another_all_come_in_the_end() -> None:
    async def test(budget: BodyBudget) -> None:
        bodies = [Body(budget, "one", SIZE // 4) for _ in range(8)]
        answered = []
        for _ in range(1000):
            for number, each in enumerate(bodies):
                if each.sends:
                    each.send()
                elif each.complete and number not in answered:
                    each.claim.close()
                    answered.append(number)
        # Some had to give way, or nobody could have gone on; the oldest did not.
        assert all(each.failure is not None or number in answered for number, each in enumerate(bodies))
        assert {0, 1} <= set(answered)
        assert budget.held == 0

    run(test)


def test_what_is_larger_than_all_of_it_goes_alone() -> None:
    async def test(budget: BodyBudget) -> None:
        large = Body(budget, "one", 2 * SIZE)
        send_all([large])
        assert large.complete

    run(test)


def test_whoever_waits_goes_on_when_there_is_room_whoever_holds_least_first() -> None:
    async def test(budget: BodyBudget) -> None:
        done = [Body(budget, client, SIZE // 2 - CHUNK // 2) for client in ("a", "b")]
        send_all(done)
        waiting = [Body(budget, "a", 50), Body(budget, "c", 50), Body(budget, "d", 50)]
        send_all(waiting)
        assert all(each.paused and each.failure is None for each in waiting)
        done[1].claim.close()
        send_all(waiting)
        assert [each.complete for each in waiting] == [False, True, True]
        done[0].claim.close()
        send_all(waiting)
        assert waiting[0].complete

    run(test)


def test_a_client_that_always_has_something_under_way_does_not_outwait_others() -> None:
    async def test(budget: BodyBudget) -> None:
        for client in ("slow", "slower"):
            Body(budget, client, 1).send()  # has come, and is not answered
            send_all([Body(budget, client, SIZE // 2 - CHUNK, withheld=1)])
        honest = Body(budget, "honest", SIZE // 4)
        async with asyncio.timeout(20):
            while not honest.complete:
                send_all([honest])
                assert honest.failure is None
                await asyncio.sleep(0.01)

    run(test)


STEPS = st.lists(st.tuples(st.integers(0, 11), st.sampled_from(["send", "send", "send", "close"])), max_size=400)
BODIES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, SIZE // 2), st.booleans()), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(BODIES, STEPS)
def test_whatever_comes_what_is_held_is_bounded_and_somebody_can_go_on(
    kinds: list[tuple[str, int, bool]], steps: list[tuple[int, str]]
) -> None:
    async def test(budget: BodyBudget) -> None:
        bodies = [Body(budget, client, size, withheld=int(slow)) for client, size, slow in kinds]
        closed: set[int] = set()
        for number, what in steps:
            index = number % len(bodies)
            each = bodies[index]
            if index in closed:
                continue
            if what == "send" and each.sends:
                each.send()
            elif what == "close" and (each.complete or each.failure):
                each.claim.close()
                closed.add(index)
            held = [each.claim.held for each in bodies]
            assert budget.held == sum(held)
            # One piece more than there is room for, of each that has not been told to wait yet.
            assert budget.held <= SIZE + CHUNK * len(bodies)
            for client in "abc":
                assert budget.held_by(client) <= SIZE // 2 + CHUNK * len(bodies) or len(kinds) == 1
        coming = [each for each in bodies if each.left and each.failure is None]
        if coming and not any(each.complete and index not in closed for index, each in enumerate(bodies)):
            assert any(not each.paused for each in coming)
        for index, each in enumerate(bodies):
            if index not in closed:
                each.claim.close()
        assert budget.held == 0

    run(test)
