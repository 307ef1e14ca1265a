"""A few at a time: how many requests are begun between two looks at the sockets.

A thousand requests that arrive at once would each take their millisecond in one turn of the event loop, and whoever
only asks how the server is doing would wait for all of them. In line they wait, in the order in which they came.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

PER_TURN = 2  # of the loop


class Turnstile:
    """Calls `per_turn` functions in each turn of the event loop."""

    def __init__(self, per_turn: int = PER_TURN) -> None:
        self._per_turn = per_turn
        self._left = per_turn
        self._line: deque[Callable[[], object]] = deque()
        self._is_turning = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._line)

    def call(self, function: Callable[[], object]) -> None:
        """Call it now if there is no line, else when its turn comes."""
        if not self._is_turning:
            self._is_turning = True
            asyncio.get_running_loop().call_soon(self._next)
        if self._left and not self._line:
            self._left -= 1
            function()
        else:
            self._line.append(function)

    def _next(self) -> None:
        self._left = self._per_turn
        if not self._line:
            self._is_turning = False
            return
        asyncio.get_running_loop().call_soon(self._next)
        while self._left and self._line:
            self._left -= 1
            self._line.popleft()()
