"""A hole: a value that a stream will have, and the text that arrives meanwhile.

Filled on the executor's loop, read from any thread or loop. Nothing here knows how it is filled.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

from palmette.interpreter.promise import Promise
from palmette.types import FinishReason, Usage

T = TypeVar("T")
_END = object()


@dataclass(frozen=True, slots=True)
class Filled:
    """What filled a hole. With n > 1, `value` is a list and text and tokens are those of the first sample."""

    value: Any
    text: str = ""
    token_ids: tuple[int, ...] = ()
    reason: FinishReason = FinishReason.STOP
    usage: Usage = Usage()
    meta: dict[str, Any] = field(default_factory=dict)


class Hole:
    """A named value to come. `future` resolves once: to a Filled, or with the error that every read raises."""

    __slots__ = ("_lock", "_pieces", "_subscribers", "future", "index", "name", "node")

    def __init__(self, name: str | None, node: Any, index: int) -> None:
        self.name = name
        self.node = node  # the IR node, for its source position
        self.index = index  # counts the holes of its stream; part of the key of every draw
        self.future: Promise[Filled] = Promise()
        self._lock = threading.Lock()
        self._pieces: list[str] = []
        self._subscribers: list[Callable[[object], None]] = []

    # -- the filling side --

    def push(self, text: str) -> None:
        """Text that arrived; the pieces of a hole concatenate to its text."""
        if not text:
            return
        with self._lock:
            self._pieces.append(text)
            subscribers = list(self._subscribers)
        for notify in subscribers:
            notify(text)

    def fill(self, filled: Filled) -> None:
        if not self.future.done():
            self.future.set_result(filled)
        self._close()

    def fail(self, error: BaseException) -> None:
        """End the hole with an error. A hole that already ended keeps its end."""
        if not self.future.done():
            self.future.set_exception(error)
        self._close()

    def _close(self) -> None:
        with self._lock:
            subscribers, self._subscribers = self._subscribers, []
        for notify in subscribers:
            notify(_END)

    # -- the reading side --

    @property
    def is_done(self) -> bool:
        return self.future.done()

    def subscribe(self, notify: Callable[[object], None]) -> None:
        """Call `notify` with every piece, those that already came included, then with the end marker."""
        with self._lock:
            for piece in self._pieces:
                notify(piece)
            if not self.future.done():
                self._subscribers.append(notify)
                return
        notify(_END)

    def unsubscribe(self, notify: Callable[[object], None]) -> None:
        with self._lock:
            if notify in self._subscribers:
                self._subscribers.remove(notify)

    def pieces(self) -> Iterator[str]:
        """Pieces of text as they come; blocks between them. Raises the hole's error at its end."""
        queue: SimpleQueue[object] = SimpleQueue()
        notify = queue.put
        self.subscribe(notify)
        try:
            while (piece := queue.get()) is not _END:
                yield str(piece)
        finally:
            self.unsubscribe(notify)
        self.future.result()

    async def apieces(self) -> AsyncIterator[str]:
        """The same for a coroutine on any loop."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[object] = asyncio.Queue()

        def put(piece: object) -> None:
            with suppress(RuntimeError):  # the reader's loop is closed: nobody reads any more
                loop.call_soon_threadsafe(queue.put_nowait, piece)

        self.subscribe(put)
        try:
            while (piece := await queue.get()) is not _END:
                yield str(piece)
        finally:
            self.unsubscribe(put)
        self.future.result()


async def awaited(future: Future[T]) -> T:
    """Await a thread-safe future on this loop; cancelling the waiter leaves the future alone."""
    if not future.done():
        loop = asyncio.get_running_loop()
        woken = loop.create_future()

        def wake(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the waiter's loop is closed
                loop.call_soon_threadsafe(_wake, woken)

        future.add_done_callback(wake)
        await woken
    return future.result()


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():  # else the waiter was cancelled
        woken.set_result(None)


def filled_hole(name: str, value: Any) -> Hole:
    """A hole that is born filled: a variable the author set."""
    hole = Hole(name, None, -1)
    hole.fill(Filled(value=value, text=value if isinstance(value, str) else ""))
    return hole
