"""Forks: O(1) each, however long the parent and however many there are.

The parent is what programs make of it: constants and filled holes in turn. Work is counted and timed on the author's
thread and on the executor's, from the call of `fork` until every branch has begun.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import palmette as pm
from benchmarks.growth.law import Row, geometric
from benchmarks.growth.measure import Lines, cpu_micros, sized, traced_memory
from benchmarks.growth.stand_ins import PromptBackend
from palmette.ir import JoinMode
from palmette.lang.session import shared_executor

LAW = "forks"
TEXT = "What comes next?"
BRANCHES = 32
ROUNDS = 25  # of a fork behind a long text: some ten microseconds apart is all that noise may bring


def rows(*, quick: bool = False) -> list[Row]:
    return [
        *parents(geometric(16, 64 if quick else 512)),
        *texts(geometric(1000, 16_000 if quick else 256_000, 4)),
        *branches(geometric(16, 64 if quick else 2048)),
    ]


@pm.function
def grown(s: pm.State, holes: int, then: Callable[[pm.State], None]) -> None:
    """A parent of `holes` holes, and what is to be measured on it."""
    for i in range(holes):
        s += TEXT + pm.gen(f"answer {i}")
    s.sync()
    then(s)


@pm.function
def written(s: pm.State, text: str, then: Callable[[pm.State], None]) -> None:
    s += text
    s.checkpoint()  # tokenizes it
    s.sync()
    then(s)


@pm.function
def asking(s: pm.State, size: int, mode: JoinMode = "gather_variable") -> None:
    s += TEXT
    group = s.fork(size)
    group += pm.gen("answer")
    group.join(mode)


def parents(sizes: Sequence[int]) -> list[Row]:
    """A fork and a further branch of it, against the parent's holes."""

    def measured(size: int, measure: Callable[[pm.State], float]) -> float:
        found: list[float] = []
        grown.run(holes=size, then=lambda s: found.append(measure(s)), backend=PromptBackend(), seed=0)
        return found[0]

    def counted(count: int) -> tuple[float, ...]:
        # The most of several: the loop may take the fork and the barrier behind it in one turn, or in two.
        return tuple(max(measured(n, lambda s: _fork_lines(s, count)) for _ in range(9)) for n in sizes)

    def timed(count: int) -> tuple[float, ...]:
        return sized(sizes, lambda n: measured(n, lambda s: _fork_micros(s, count)), 5)

    one, many = counted(1), counted(1 + BRANCHES)
    further = tuple((b - a) / BRANCHES for a, b in zip(one, many, strict=True))
    memory = tuple(measured(n, _branch_bytes) for n in sizes)
    handed = [_handed(n) for n in sizes]
    row = partial(Row, LAW, over="holes of the parent", claimed=0.0, sizes=tuple(sizes))
    return [
        row(what="a fork of one branch", unit="lines", costs=one),
        row(what="a fork of one branch", unit="CPU us", costs=timed(1)),
        row(what="a further branch", unit="lines", costs=further),
        row(what=f"a fork of {BRANCHES} branches", unit="CPU us", costs=timed(BRANCHES)),
        row(what="a further branch", unit="bytes", costs=memory),
        row(what="a branch's first prompt, handed over", unit="tokens", costs=tuple(handed)),
    ]


def texts(sizes: Sequence[int]) -> list[Row]:
    """A fork against the parent's text, where that was one constant."""

    def micros(size: int) -> float:
        found: list[float] = []
        text = "x" * size
        written.run(text=text, then=lambda s: found.append(_fork_micros(s, 1)), backend=PromptBackend(), seed=0)
        return found[0]

    what, over = "a fork of one branch", "characters of the parent"
    return [Row(LAW, what, over, "CPU us", 0.0, tuple(sizes), sized(sizes, micros, ROUNDS))]


def branches(sizes: Sequence[int]) -> list[Row]:
    """Branches that ask for something and are joined."""
    handed: list[int] = []
    for size in sizes:
        backend = PromptBackend()
        asking.run(size=size, backend=backend, seed=0)
        handed.append(backend.encoded)

    def micros(mode: JoinMode) -> tuple[float, ...]:
        def run(size: int) -> object:
            return asking.run(size=size, mode=mode, backend=PromptBackend(), seed=0)

        return sized(sizes, lambda size: cpu_micros(lambda: run(size)), 3)

    row = partial(Row, LAW, over="branches", sizes=tuple(sizes))
    return [
        row(what="text tokenized, in total", unit="tokens", claimed=0.0, costs=tuple(handed)),
        row(what="forking, asking and joining", unit="CPU us", claimed=1.0, costs=micros("gather_variable")),
        row(what="the same, branches concatenated", unit="CPU us", claimed=1.0, costs=micros("concate_and_append")),
    ]


def _begin(s: pm.State, count: int) -> None:
    """A fork, until all of its branches have begun."""
    s.fork(count)
    s.sync()


def _fork_lines(s: pm.State, count: int) -> float:
    counter = Lines()
    with counter.on(shared_executor()):
        _begin(s, count)
    return counter.count


def _fork_micros(s: pm.State, count: int) -> float:
    """Behind text that no fork has seen yet, once the threads are done with all that came before.

    A small stream is forked just before: making a long parent empties the processor's caches of all that a fork runs
    through, which would be charged to the fork, and the more the longer the parent is.
    """
    time.sleep(0.01)
    written.run(text=TEXT, then=lambda small: _begin(small, count), backend=PromptBackend(), seed=0)
    time.sleep(0.002)
    return cpu_micros(lambda: _begin(s, count))


def _branch_bytes(s: pm.State) -> float:
    """What a branch holds that another has not."""
    _begin(s, 1)
    with traced_memory() as held:
        group = s.fork(BRANCHES)
        s.sync()
        size = held()
        assert len(group) == BRANCHES
    return size / BRANCHES


def _handed(holes: int) -> int:
    backend = PromptBackend()

    def ask(s: pm.State) -> None:
        before = backend.handed
        with s.fork(1) as group:
            group += "Then?" + pm.gen("branch")
        s.sync()
        found.append(backend.handed - before)

    found: list[int] = []
    grown.run(holes=holes, then=ask, backend=backend, seed=0)
    return found[0]
