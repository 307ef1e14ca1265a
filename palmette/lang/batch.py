"""Many instances of a program at once: a bounded number in flight, results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Literal

from palmette.errors import Cancelled, InvalidOption
from palmette.interpreter.workers import WorkerPool
from palmette.lang.execution import Call, Execution, Outcome
from palmette.lang.session import shared_executor

WINDOW = 16_384  # async instances in flight at once
MAX_THREADS = 256


def async_outcomes(calls: Iterator[Call]) -> Iterator[Outcome]:
    """Run `async def` bodies on the executor's loop."""
    executor = shared_executor()
    return _in_window(calls, WINDOW, lambda call: executor.start(_start(call)))


def plain_outcomes(calls: Iterator[Call], threads: int) -> Iterator[Outcome]:
    """Run plain bodies on `threads` workers; one is the caller's own thread."""
    if threads == 1:
        yield from (Execution(call).outcome() for call in calls)
        return
    bodies = Bodies(threads)
    try:
        yield from _in_window(calls, 4 * threads, bodies.submit)
    finally:
        bodies.close()


def thread_count(num_threads: int | Literal["auto"], size: int | None) -> int:
    """Workers for a batch of `size` items.

    Raises:
        InvalidOption: no "auto" and no integer >= 1.
    """
    if num_threads == "auto":
        wanted = min(MAX_THREADS, max(96, 16 * (os.cpu_count() or 1)))
    elif isinstance(num_threads, bool) or not isinstance(num_threads, int) or num_threads < 1:
        raise InvalidOption("num_threads", num_threads, "'auto' or an integer >= 1")
    else:
        wanted = num_threads
    return max(1, wanted if size is None else min(wanted, size))


class Bodies:
    """Plain bodies on a bounded pool; `close` aborts those that still run."""

    def __init__(self, threads: int) -> None:
        self._pool = WorkerPool(threads)
        self._running: set[Execution] = set()
        self._closed = False

    def submit(self, call: Call) -> Future[Outcome]:
        return self._pool.submit(lambda: self._outcome(call))

    def close(self) -> None:
        self._closed = True
        self._pool.close()
        for execution in list(self._running):
            execution.cancel()

    def _outcome(self, call: Call) -> Outcome:
        if self._closed:
            raise Cancelled("the batch that it belongs to was left")
        execution = Execution(call)
        self._running.add(execution)
        try:
            if self._closed:  # meanwhile
                execution.cancel()
            return execution.outcome()
        finally:
            self._running.discard(execution)


async def _start(call: Call) -> Outcome:
    return await Execution(call).aoutcome()


def _in_window(calls: Iterator[Call], window: int, submit: Callable[[Call], Future[Outcome]]) -> Iterator[Outcome]:
    """Keep at most `window` calls submitted and unread; yields in order."""
    running: deque[Future[Outcome]] = deque()
    try:
        for call in calls:
            running.append(submit(call))
            if len(running) >= window:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:  # the reader stopped early, or was interrupted
            future.cancel()
