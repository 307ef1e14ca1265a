"""A few at a time: how many requests are read and tokenized between two looks at the sockets.

A thousand requests that arrive at once would each take their millisecond in one turn of the event loop, and whoever
only asks how the server is doing would wait for all of them. In line they wait, in the order in which they came.
"""

from __future__ import annotations

import asyncio
from collections import deque

PER_TURN = 2  # of the loop


class Turnstile:
    """Lets `per_turn` callers pass in each turn of the event loop."""

    def __init__(self, per_turn: int = PER_TURN) -> None:
        self._per_turn = per_turn
        self._left = per_turn
        self._line: deque[asyncio.Future[None]] = deque()
        self._is_turning = False

    def __len__(self) -> int:
        """How many wait; those that gave up are counted until their turn."""
        return len(self._line)

    async def turn(self) -> None:
        """Wait for one's turn; at once if there is no line. What follows up to the next `await` is the turn."""
        self._start()
        if self._left and not self._line:
            self._left -= 1
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(mine)
        await mine

    def _start(self) -> None:
        if not self._is_turning:
            self._is_turning = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._left = self._per_turn
        while self._left and self._line:
            waiting = self._line.popleft()
            if not waiting.done():  # else it gave up
                waiting.set_result(None)
                self._left -= 1
        self._is_turning = False
        if self._left < self._per_turn:
            self._start()
