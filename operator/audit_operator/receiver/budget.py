"""The memory for bodies of POSTs: charged as bytes arrive, and shared so that no client starves another.

What a client announces costs nothing. What it has sent is held until its POST is answered, or until somebody who holds
less needs the memory, and nothing is given back by itself: then the newest body that is still coming gives way, of
whoever holds most.
"""

import asyncio
from collections.abc import Callable, Hashable
from typing import Final

from audit_operator.receiver.intake import BusyError

_TURN: Final = 1.0
"""Seconds that a body waits for those that have come to be answered; then somebody who holds more gives way to it."""

_TURNS: Final = 10
"""So often, if nobody holds more; then it gives way itself."""

_READ: Final = 1 << 18
"""Bytes that may come of a body that was told to go on, before it can be told to wait again."""


class BodyBudget:
    """``size``: bytes of all bodies together; a client may have half of it, and one body whatever that takes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held = 0
        self._bodies: dict[BodyClaim, None] = {}
        self._waiting: dict[BodyClaim, None] = {}
        self._by_client: dict[Hashable, int] = {}

    def held_by(self, client: Hashable) -> int:
        """Bytes of all bodies of this client."""
        return self._by_client.get(client, 0)

    def open(self, client: Hashable, proceed: Callable[[], None], give_way: Callable[[Exception], None]) -> "BodyClaim":
        """For a body that comes now. ``proceed`` is called when it may go on, ``give_way`` when it must end."""
        claim = BodyClaim(self, client, proceed, give_way)
        self._bodies[claim] = None
        return claim

    # --- for claims ---

    def charge(self, claim: "BodyClaim", size: int) -> bool:
        """It holds so much more; whether more may come."""
        claim.held += size
        self.held += size
        self._by_client[claim.client] = self.held_by(claim.client) + size
        return claim.complete or self._is_well(claim) or self._made_room(claim)

    def release(self, claim: "BodyClaim") -> None:
        """It holds nothing any more."""
        self._bodies.pop(claim, None)
        self._waiting.pop(claim, None)
        self._let_go(claim)
        self.wake()

    def wake(self) -> None:
        """Whoever waits goes on as far as there is room: who holds least first."""
        room = self.size - self.held
        for claim in sorted(self._waiting, key=lambda claim: self.held_by(claim.client)):
            if room <= 0:
                break
            if self._is_well(claim):
                self._go_on(claim)
                room -= _READ
        # If nothing that is held will be given back by itself, somebody must give way.
        for claim in list(self._waiting):
            if claim in self._waiting and not self._will_be_freed(claim) and self._made_room(claim):
                self._go_on(claim)

    def waited(self, claim: "BodyClaim", turns: int) -> None:
        """It has waited so many turns."""
        if claim not in self._waiting:
            return
        if self._made_room(claim, patient=False):
            self._go_on(claim)
        elif claim in self._waiting:
            if turns >= _TURNS:
                self._end(claim)
            else:
                claim.wait(turns + 1)

    # --- who gives way ---

    def _quota(self) -> int:
        return self.size // 2

    def _is_well(self, claim: "BodyClaim") -> bool:
        mine = self.held_by(claim.client)
        if self.held <= self.size and (mine <= self._quota() or mine == claim.held):
            return True
        return claim.held == self.held  # what is larger than all there is goes alone

    def _made_room(self, claim: "BodyClaim", *, patient: bool = True) -> bool:
        while not self._is_well(claim) and claim in self._bodies:
            own, client = self.held_by(claim.client), claim.client
            if self.held > self.size and (own <= self._quota() or own == claim.held):
                heaviest = max(self._by_client, key=self.held_by)
                if self.held_by(heaviest) > own:
                    client = heaviest
            victim = self._newest(client)
            if victim is None or (self._will_be_freed(claim) and (patient or client == claim.client)):
                self._wait(claim)
                return False
            self._end(victim)
        return claim in self._bodies

    def _will_be_freed(self, claim: "BodyClaim") -> bool:
        """Whether what it waits for comes by itself: bodies that have come are answered sooner or later."""
        own = self.held <= self.size
        return any(each.complete for each in self._bodies if not own or each.client == claim.client)

    def _newest(self, client: Hashable) -> "BodyClaim | None":
        coming = (each for each in reversed(self._bodies) if each.client == client and not each.complete)
        return next(coming, None)

    def _end(self, claim: "BodyClaim") -> None:
        self._bodies.pop(claim, None)
        self._waiting.pop(claim, None)
        self._let_go(claim)
        claim.end(BusyError("too many requests at the same time"))

    def _let_go(self, claim: "BodyClaim") -> None:
        self.held -= claim.held
        left = self.held_by(claim.client) - claim.held
        claim.held = 0
        if left > 0:
            self._by_client[claim.client] = left
        else:
            self._by_client.pop(claim.client, None)

    def _wait(self, claim: "BodyClaim") -> None:
        if claim not in self._waiting:
            self._waiting[claim] = None
            claim.wait(1)

    def _go_on(self, claim: "BodyClaim") -> None:
        self._waiting.pop(claim, None)
        claim.go_on()


class BodyClaim:
    """What one body holds. ``complete``: all of it has come; it is given back when its POST is answered."""

    def __init__(
        self,
        budget: BodyBudget,
        client: Hashable,
        proceed: Callable[[], None],
        give_way: Callable[[Exception], None],
    ) -> None:
        self.client = client
        self.held = 0
        self.complete = False
        self._budget = budget
        self._proceed = proceed
        self._give_way = give_way
        self._timer: asyncio.TimerHandle | None = None

    def add(self, size: int, *, last: bool) -> bool:
        """See `net.http.Claim`."""
        self.complete = last
        return self._budget.charge(self, size)

    def close(self) -> None:
        """The POST is answered."""
        self._cancel()
        self._budget.release(self)

    def wait(self, turns: int) -> None:
        """Until the end of this turn, unless it goes on before."""
        self._timer = asyncio.get_running_loop().call_later(_TURN, self._budget.waited, self, turns)

    def go_on(self) -> None:
        """More may come."""
        self._cancel()
        self._proceed()

    def end(self, why: Exception) -> None:
        """What has come is thrown away."""
        self._cancel()
        self._give_way(why)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
