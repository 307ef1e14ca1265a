"""asyncio without a clock, a selector or threads: where the loop would sleep, its time jumps to what is due next.

Runs the same callbacks in the same order every time, and an hour of waiting costs nothing. Whoever waits for something
that nothing will bring is told so: `Stuck`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")
_MOMENT = 1e-6  # seconds in which all that is ready runs


class Stuck(AssertionError):
    """Somebody waits, and nothing is due: he would wait for ever."""


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module. Time is in seconds from 0."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = _Jump(self)  # what BaseEventLoop sleeps in

    def time(self) -> float:
        return self._now

    def jump(self, seconds: float) -> None:
        self._now += seconds

    def run(self, work: Awaitable[T]) -> T:
        """Run until `work` is done."""
        return self.run_until_complete(work)

    def settle(self, seconds: float = 0.0) -> None:
        """Let time pass, and whatever is ready then run."""
        self.run_until_complete(asyncio.sleep(seconds + _MOMENT))

    def abandon(self) -> None:
        """End every task that is left, and the loop."""
        self.set_exception_handler(lambda loop, context: None)
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task.cancel()
        if tasks:
            with contextlib.suppress(Exception):
                self.run(asyncio.gather(*tasks, return_exceptions=True))
        self.close()

    def _process_events(self, events: object) -> None:
        """There are no files."""

    def __del__(self, *args: object) -> None:
        """It holds nothing that must be closed."""

    def _write_to_self(self) -> None:
        """There is no other thread that could wake it, and it never sleeps."""


class _Jump:
    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> tuple[Any, ...]:
        if timeout is None:
            raise Stuck("nothing is due any more")
        self._loop.jump(timeout)
        return ()
