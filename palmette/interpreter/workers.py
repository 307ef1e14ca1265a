"""A bounded pool of daemon threads for program bodies that are plain functions.

The standard pool joins its threads at interpreter exit, which would wait for bodies that wait for a model. These do
not hold the interpreter: at exit the executor fails every hole, and the bodies end with that error.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar, copy_context
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")

_works: ContextVar[bool] = ContextVar("palmette_works", default=False)


def on_worker() -> bool:
    """Whether this body runs on a pool's thread: a batch inside it must not start as many threads again."""
    return _works.get()


class WorkerPool:
    """At most `size` threads, started when there is work for them; `close` lets them finish."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)

    def submit(self, function: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        context = copy_context()  # options(...) of the caller hold in the body
        if self._size > 1:
            context.run(_works.set, True)

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return  # nobody wants it any more
            try:
                future.set_result(context.run(function))
            except BaseException as error:  # noqa: BLE001 - it is raised again where the result is read
                future.set_exception(error)

        self._queue.put(work)
        if not self._idle.acquire(blocking=False) and len(self._threads) < self._size:
            thread = threading.Thread(target=self._main, name=f"palmette-body-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def close(self) -> None:
        for _ in self._threads:
            self._queue.put(None)

    def _main(self) -> None:
        while True:
            try:
                work = self._queue.get_nowait()
            except Empty:
                self._idle.release()
                work = self._queue.get()
            if work is None:
                return
            work()


def in_thread(function: Callable[[], T]) -> Future[T]:
    """Run one function on a daemon thread of its own."""
    pool = WorkerPool(1)
    future = pool.submit(function)
    pool.close()
    return future
