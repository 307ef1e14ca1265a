"""Who goes to the engine next, and who is told to come back later.

    enter --> queue of its client --> [ at most max_in_engine ] --> leave
         `--> Overloaded, with the seconds after which it may be worth trying

The queue is bounded in requests and in tokens. Clients take turns by start-time fair queueing (Goyal et al. 1996): each
has a virtual time that grows by the tokens it was let in with, and whose is least goes next, so a client that floods
waits for itself. Within a client higher priority goes first, then arrival. Used by one event loop; the clock is given.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from palmette.errors import HoleTimeout, Overloaded
from palmette.runtime.server.config import ServerLimits

_RATE_WINDOW = 64  # ended requests whose times tell the rate
MAX_RETRY_AFTER = 60  # seconds


@dataclass(order=True, slots=True)
class _Waiting:
    rank: tuple[int, int]  # (-priority, number)
    tokens: int = field(compare=False)
    admitted: asyncio.Future[None] = field(compare=False)


@dataclass(slots=True)
class _Lane:
    """A client's queue."""

    virtual_time: float = 0.0
    waiting: list[_Waiting] = field(default_factory=list)  # a heap; those that gave up are in it until somebody looks
    num_waiting: int = 0  # less those that gave up, once their task has run

    def sweep(self) -> None:
        """Forget those that gave up when most have, so that who comes and goes leaves nothing behind."""
        if len(self.waiting) > 2 * self.num_waiting + 64:
            self.waiting = [waiting for waiting in self.waiting if not waiting.admitted.done()]
            heapq.heapify(self.waiting)


class Gate:
    """Bounds and order in front of the engine."""

    def __init__(self, limits: ServerLimits, clock: Callable[[], float], *, shares: bool = False) -> None:
        """
        Args:
            shares: there are several clients: none may fill more than half of the queue.
        """
        self._limits, self._clock = limits, clock
        self._lane_limit = max(1, limits.max_waiting // 2) if shares else limits.max_waiting
        self._lanes: dict[str, _Lane] = {}
        self._numbers = itertools.count()
        self._virtual_time = 0.0
        self._ends: deque[float] = deque(maxlen=_RATE_WINDOW)  # times at which requests left
        self.num_inside = 0
        self.num_waiting = 0
        self.waiting_tokens = 0
        self.num_refused = 0

    async def enter(self, client: str, tokens: int, *, priority: int = 0, timeout: float) -> None:
        """Wait for a turn; whoever was let in must `leave`.

        Args:
            tokens: prompt tokens and tokens to generate: what the turn costs its client.
            timeout: seconds to wait at most.

        Raises:
            Overloaded: the queue is full.
            HoleTimeout: no turn came in time.
        """
        if self.num_inside < self._limits.max_in_engine and not self.num_waiting:
            self._advance(self._lanes.setdefault(client, _Lane()), tokens)
            self.num_inside += 1
            return
        lane = self._lanes.setdefault(client, _Lane())
        if (
            lane.num_waiting >= self._lane_limit
            or self.num_waiting >= self._limits.max_waiting
            or (self.num_waiting and self.waiting_tokens + tokens > self._limits.max_waiting_tokens)
        ):
            self.num_refused += 1
            raise Overloaded(self.retry_after())
        await self._wait(lane, tokens, priority, timeout)

    def waiting_by_client(self) -> dict[str, int]:
        """Lengths of the clients' queues."""
        return {name: lane.num_waiting for name, lane in self._lanes.items() if lane.num_waiting}

    def leave(self) -> None:
        """A request that was let in has ended."""
        self.num_inside -= 1
        self._ends.append(self._clock())
        self._admit()

    def retry_after(self) -> int:
        """Seconds in which about the whole queue should have gone, by the rate at which requests ended lately."""
        if len(self._ends) < 2 or self._ends[-1] <= self._ends[0]:
            return 1
        rate = (len(self._ends) - 1) / max(self._clock() - self._ends[0], 1e-3)
        return max(1, min(MAX_RETRY_AFTER, math.ceil(self.num_waiting / rate)))

    async def _wait(self, lane: _Lane, tokens: int, priority: int, timeout: float) -> None:
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(lane.waiting, _Waiting((-priority, next(self._numbers)), tokens, admitted))
        lane.num_waiting += 1
        self.num_waiting += 1
        self.waiting_tokens += tokens
        try:
            async with asyncio.timeout(timeout):
                await admitted
        except BaseException as error:
            if admitted.done() and not admitted.cancelled():  # let in while it gave up
                self.leave()
            else:
                self._drop(lane, tokens)
                lane.sweep()
            if isinstance(error, TimeoutError):
                raise HoleTimeout(f"no turn came within {timeout:.0f} s: the server is busy") from None
            raise

    def _admit(self) -> None:
        while self.num_inside < self._limits.max_in_engine:
            # By who is in the heap: who gave up a moment ago is still counted until his task runs.
            lanes = (lane for lane in self._lanes.values() if lane.waiting)
            lane = min(lanes, key=lambda lane: lane.virtual_time, default=None)
            if lane is None:
                break
            waiting = heapq.heappop(lane.waiting)
            if waiting.admitted.done():
                continue  # it gave up
            self._drop(lane, waiting.tokens)
            self._advance(lane, waiting.tokens)
            self.num_inside += 1
            waiting.admitted.set_result(None)
        if len(self._lanes) > 1024:  # clients that are up to date need no lane
            self._lanes = {
                name: lane
                for name, lane in self._lanes.items()
                if lane.waiting or lane.virtual_time > self._virtual_time
            }

    def _advance(self, lane: _Lane, tokens: int) -> None:
        """A turn starts where the client's last one ended, or at the present: who was idle saved nothing up."""
        self._virtual_time = max(self._virtual_time, lane.virtual_time)
        lane.virtual_time = self._virtual_time + tokens

    def _drop(self, lane: _Lane, tokens: int) -> None:
        lane.num_waiting -= 1
        self.num_waiting -= 1
        self.waiting_tokens -= tokens
