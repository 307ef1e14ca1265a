"""Three ways to cost something: lines of this package that ran, processor time, bytes held.

Lines are counted by the interpreter's trace hook: the same work gives the same number on any machine, but for the few
per cent that follow from which of two threads is first. What happens inside one call of C (the copy of a slice, a
compiled automaton) is one line: such work is counted where it is asked for, or timed.

Times are processor seconds, which leave out who else runs on the machine, with the garbage collector off, as `timeit`
has it. Every size is measured once a round, so that a machine that slows down slows them all; a cost is the median
over the rounds.
"""

from __future__ import annotations

import gc
import statistics
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import palmette
from benchmarks.growth.law import Row
from palmette.interpreter.executor import Executor

Case = TypeVar("Case")

_PACKAGE = str(Path(palmette.__file__).parent)


class Lines:
    """Counts the package's lines while it is on, on the threads that it was put on."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}  # by thread: no two write one entry

    @property
    def count(self) -> int:
        return sum(self._counts.values())

    @contextmanager
    def on(self, executor: Executor | None = None) -> Iterator[Lines]:
        """Count on this thread, and on the executor's if it is given."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        if executor is not None:
            executor.start(_set_trace(self._enter)).result()
        try:
            yield self
        finally:
            sys.settrace(before)
            if executor is not None:
                executor.start(_set_trace(None)).result()

    def _enter(self, frame: FrameType, event: str, arg: object) -> Any:
        return self._line if frame.f_code.co_filename.startswith(_PACKAGE) else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line":
            me = threading.get_ident()
            self._counts[me] = self._counts.get(me, 0) + 1
        return self._line


async def _set_trace(function: Any) -> None:
    sys.settrace(function)


def lines(operation: Callable[[], object]) -> int:
    """Lines of the package that one call runs on this thread."""
    counter = Lines()
    with counter.on():
        operation()
    return counter.count


def cpu_micros(operation: Callable[[], object], calls: int = 1) -> float:
    """Processor microseconds of one call, over all threads of the process; of several, the mean."""
    with no_collector():
        start = time.process_time()
        for _ in range(calls):
            operation()
        return (time.process_time() - start) * 1e6 / calls


def medians(cases: Mapping[int, Case], cost: Callable[[Case], float], rounds: int) -> tuple[float, ...]:
    """The median cost of each case, in the order of the cases, sizes taking turns.

    Each round begins with the first case once more than counts: it would pay for cold caches that the others find warm.
    """
    costs: dict[int, list[float]] = {size: [] for size in cases}
    for _ in range(rounds):
        gc.collect()
        cost(next(iter(cases.values())))
        for size, case in cases.items():
            costs[size].append(cost(case))
    return tuple(statistics.median(costs[size]) for size in cases)


def sized(sizes: Sequence[int], cost: Callable[[int], float], rounds: int) -> tuple[float, ...]:
    """The same where a case is nothing but its size."""
    return medians({size: size for size in sizes}, cost, rounds)


def both(
    law: str,
    what: str,
    over: str,
    claimed: float,
    cases: Mapping[int, Case],
    operation: Callable[[Case], object],
    rounds: int,
    calls: int = 1,
) -> list[Row]:
    """A row of lines and a row of time of an operation that runs on this thread."""
    sizes = tuple(cases)
    counted = medians(cases, lambda case: lines(lambda: operation(case)), min(rounds, 3))
    timed = medians(cases, lambda case: cpu_micros(lambda: operation(case), calls), rounds)
    return [
        Row(law, what, over, "lines", claimed, sizes, counted),
        Row(law, what, over, "CPU us", claimed, sizes, timed),
    ]


@contextmanager
def no_collector() -> Iterator[None]:
    """Without the garbage collector, whose runs would fall on whoever is measured then."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def traced_memory() -> Iterator[Callable[[], int]]:
    """Gives a function that tells the bytes of Python objects allocated since and still held."""
    tracemalloc.start(1)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]

    def held() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    try:
        yield held
    finally:
        tracemalloc.stop()
