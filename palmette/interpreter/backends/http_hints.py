"""A program's hints on their way to a server: in the background, in order within a program, never waited for.

What is lost is lost: a hint changes how fast something is, never what comes. Runs on the client's loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from palmette.errors import PalmetteError
from palmette.interpreter.backends.http_errors import TryAgain
from palmette.types import ProgramEvent

logger = logging.getLogger(__name__)

MAX_WAITING = 4096  # hints; more are not taken
_AT_ONCE = 8  # connections that carry hints
_SECONDS = 10.0  # that a server may take over one

Write = Callable[[ProgramEvent], Awaitable[tuple[str, dict[str, Any]] | None]]
Spawn = Callable[[Coroutine[Any, Any, None]], object]
Send = Callable[[str, dict[str, Any], float], Awaitable[object]]


class Hints:
    """What waits to be sent."""

    def __init__(self, spawn: Spawn, write: Write, send: Send) -> None:
        """
        Args:
            spawn: makes a task of a coroutine, and keeps it.
            write: (path, body) of an event; None if nobody wants it.
            send: (path, body, seconds).
        """
        self._spawn, self._write, self._send = spawn, write, send
        self._waiting: dict[str, deque[ProgramEvent]] = {}  # by program, each with a task
        self._num_waiting = 0
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def put(self, event: ProgramEvent) -> None:
        if self._num_waiting >= MAX_WAITING:
            return
        self._num_waiting += 1
        queue = self._waiting.get(event.program)
        if queue is not None:
            queue.append(event)
            return
        self._waiting[event.program] = deque([event])
        self._spawn(self._drain(event.program))

    async def _drain(self, program: str) -> None:
        queue = self._waiting[program]
        try:
            while queue:
                event = queue.popleft()
                self._num_waiting -= 1
                async with self._slots:
                    await self._tell(event)
        finally:
            self._num_waiting -= len(queue)
            del self._waiting[program]

    async def _tell(self, event: ProgramEvent) -> None:
        try:
            written = await self._write(event)
            if written is not None:
                await self._send(*written, _SECONDS)
        except (PalmetteError, TryAgain) as error:
            logger.debug("a hint was lost: %s", error)
