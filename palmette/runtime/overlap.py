"""The overlapped loop: while a device computes a step, the CPU takes in the one before it and plans the one behind it.

    device   | forward t      | evaluate t | forward t+1      | evaluate t+1 | forward t+2 ...
    CPU        start t  schedule t+1         finish t, apply t  start t+1  schedule t+2
                 |         |                     |
                 |         |                     `- waits; events go out, and t+1 keeps the device busy
                 |         `- who draws in t goes on in t+1 with the token that t draws, unknown here
                 `- masks and penalties, made while forward t runs; draws queued behind it

Masks need the tokens before them, and have them: when t is started, all before t is applied. So nothing is guessed but
which rows are in t+1. One whose job ends with token t is computed in vain, and dropped (step.Part.is_live); what is
forced behind token t goes in with t+2.

Knows the order of things. Does not know tensors, devices or jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from palmette.runtime.scheduler import Scheduler
from palmette.runtime.step import ScheduledStep, StepResults
from palmette.types import Event


class Started(Protocol):
    """A step whose draws are queued."""

    def finish(self) -> StepResults:
        """Wait for its results."""
        ...


class Queued(Protocol):
    """A step whose forward pass is queued."""

    @property
    def step(self) -> ScheduledStep: ...

    def start(self) -> Started:
        """Queue its draws. All steps before it are applied, and none behind it is queued."""
        ...


class OverlappedLoop:
    """At most two steps in flight, one between two calls. Gives what the plain loop gives, grouped otherwise."""

    def __init__(self, scheduler: Scheduler, queue: Callable[[ScheduledStep], Queued]) -> None:
        """
        Args:
            queue: queues a step's forward pass behind all that was queued before.
        """
        self._scheduler = scheduler
        self._queue = queue
        self._queued: Queued | None = None

    @property
    def is_busy(self) -> bool:
        """Is a step in flight?"""
        return self._queued is not None

    def step(self, now: float) -> list[Event]:
        """Take in one step, and have the next one queued by then. Returns at once if there is none.

        If anything raises, nothing is in flight any more, and the jobs of all that was are queued again.
        """
        try:
            current = self._queued or self._next()
            if current is None:
                return []
            started = current.start()
            self._queued = self._next()
            results = started.finish()
        except BaseException:
            self.drop()
            raise
        return self._scheduler.apply(current.step, results, now)

    def drop(self) -> None:
        """Forget what is in flight. The device may still compute it; nobody looks."""
        self._queued = None
        self._scheduler.abort()

    def _next(self) -> Queued | None:
        step = self._scheduler.schedule()
        return None if step is None else self._queue(step)
