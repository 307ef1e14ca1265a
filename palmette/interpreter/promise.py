"""A future of 100 bytes: a live program has a few, and a hole one each.

The standard one brings a condition with a lock and two queues, 1.6 KB, for waiting that most never do: here whoever
blocks brings the lock it waits for. Otherwise it is the same, by its interface and by its type, but for the module
functions of `concurrent.futures` (`wait`, `as_completed`), which look inside.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Promise(Future[T]):
    """A value or an error to come, set once, on any thread."""

    __slots__ = ("_callbacks", "_error", "_is_done", "_on_cancel", "_value")

    def __init__(self, on_cancel: Callable[[], object] | None = None) -> None:
        """
        Args:
            on_cancel: called by `cancel`, on its thread: stop what would have produced the value.
        """
        # Not the standard __init__: it is what this class does without.
        self._callbacks: list[Callable[[Future[T]], object]] | None = None
        self._value: T | None = None
        self._error: BaseException | None = None
        self._is_done = False
        self._on_cancel = on_cancel

    def done(self) -> bool:
        return self._is_done

    def running(self) -> bool:
        return not self._is_done

    def cancelled(self) -> bool:
        return isinstance(self._error, CancelledError)

    def cancel(self) -> bool:
        """End it with CancelledError; False if it ended already."""
        if not self._end(None, CancelledError()):
            return False
        if self._on_cancel is not None:
            self._on_cancel()
        return True

    def set_running_or_notify_cancel(self) -> bool:
        return not self.cancelled()

    def result(self, timeout: float | None = None) -> T:
        """
        Raises:
            TimeoutError: not within `timeout` seconds.
        """
        self._wait(timeout)
        if self._error is not None:
            try:
                raise self._error
            finally:
                self = None  # type: ignore[assignment]  # the traceback would hold what holds the traceback
        return self._value  # type: ignore[return-value]  # it is done

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._wait(timeout)
        if self.cancelled():
            raise CancelledError
        return self._error

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call `fn` with this on the thread that ends it; at once if it is done."""
        with _gate:
            if not self._is_done:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(fn)
                return
        self._call(fn)

    def set_result(self, result: T) -> None:
        if not self._end(result, None):
            raise InvalidStateError("it has a result or an error already")

    def set_exception(self, exception: BaseException | None) -> None:
        if not self._end(None, exception):
            raise InvalidStateError("it has a result or an error already")

    def _end(self, value: T | None, error: BaseException | None) -> bool:
        with _gate:
            if self._is_done:
                return False
            self._value, self._error, self._is_done = value, error, True
            callbacks, self._callbacks = self._callbacks, None
        for fn in callbacks or ():
            self._call(fn)
        return True

    def _call(self, fn: Callable[[Future[T]], object]) -> None:
        try:
            fn(self)
        except Exception:
            logger.exception("a callback of a future failed")

    def _wait(self, timeout: float | None) -> None:
        if self._is_done:
            return
        until_done = threading.Lock()
        until_done.acquire()
        self.add_done_callback(lambda _: until_done.release())
        if not until_done.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            raise TimeoutError


_gate = threading.Lock()  # of all promises: held for a few instructions, and 72 bytes for each would be as much again
