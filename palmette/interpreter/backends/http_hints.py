"""A program's hints on their way to a server: in the background, in order within a program, never waited for.

Ends of programs that come while others are told go together. What is lost is lost: a hint changes how fast something
is, never what comes. Runs on the client's loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from palmette.errors import PalmetteError
from palmette.interpreter.backends.http_errors import TryAgain
from palmette.types import ProgramEnded, ProgramEvent

logger = logging.getLogger(__name__)

MAX_WAITING = 4096  # hints; more are not taken
_AT_ONCE = 8  # connections that carry hints
_ENDS_AT_ONCE = 256
_SECONDS = 10.0  # that a server may take over one

Write = Callable[[Sequence[ProgramEvent]], Awaitable[Sequence[tuple[str, dict[str, Any]]]]]
Spawn = Callable[[Coroutine[Any, Any, None]], object]
Send = Callable[[str, dict[str, Any], float], Awaitable[object]]


class Hints:
    """What waits to be sent."""

    def __init__(self, spawn: Spawn, write: Write, send: Send) -> None:
        """
        Args:
            spawn: makes a task of a coroutine, and keeps it.
            write: (path, body) of what tells one event, or the ends of several programs; nothing if nobody wants it.
            send: (path, body, seconds).
        """
        self._spawn, self._write, self._send = spawn, write, send
        self._waiting: dict[str, deque[ProgramEvent]] = {}  # by program, each with a task
        self._ended: list[ProgramEnded] = []  # with a task, if there are any
        self._num_waiting = 0
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def put(self, event: ProgramEvent) -> None:
        if self._num_waiting >= MAX_WAITING:
            return
        self._num_waiting += 1
        queue = self._waiting.get(event.program)
        if queue is not None:
            queue.append(event)
        elif isinstance(event, ProgramEnded):
            self._end(event)
        else:
            self._waiting[event.program] = deque([event])
            self._spawn(self._drain(event.program))

    def _end(self, event: ProgramEnded) -> None:
        self._ended.append(event)
        if len(self._ended) == 1:
            self._spawn(self._drain_ended())

    async def _drain(self, program: str) -> None:
        queue = self._waiting[program]
        try:
            while queue:
                event = queue.popleft()
                if isinstance(event, ProgramEnded):
                    self._end(event)
                    continue
                self._num_waiting -= 1
                await self._tell([event])
        finally:
            self._num_waiting -= len(queue)
            del self._waiting[program]

    async def _drain_ended(self) -> None:
        try:
            while self._ended:
                some = self._ended[:_ENDS_AT_ONCE]
                await self._tell(some)  # they stay listed, so that nobody else begins
                del self._ended[: len(some)]
                self._num_waiting -= len(some)
        finally:
            self._num_waiting -= len(self._ended)
            self._ended.clear()

    async def _tell(self, events: Sequence[ProgramEvent]) -> None:
        async with self._slots:
            try:
                for path, body in await self._write(events):
                    await self._send(path, body, _SECONDS)
            except (PalmetteError, TryAgain) as error:
                logger.debug("a hint was lost: %s", error)
