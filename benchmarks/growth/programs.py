"""Live programs: a few KB each, and no thread each.

Programs are `async def` bodies that wait for a hole which nobody fills until all of them wait. What a waiting request
costs the engine is measured on the scheduler.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import palmette as pm
from benchmarks.growth.law import Row, geometric
from benchmarks.growth.measure import both, cpu_micros, sized, traced_memory
from benchmarks.growth.stand_ins import BareScheduler
from palmette.lang.session import shared_executor
from palmette.runtime.config import SchedulerConfig
from palmette.testing import ScriptedBackend

LAW = "live programs"
WAITING = 256  # what the policy looks at: fewer waiting requests than these cost less


def rows(*, quick: bool = False) -> list[Row]:
    return [
        *programs(geometric(64, 256 if quick else 2048)),
        *streams(geometric(64, 256 if quick else 2048)),
        *waiting(geometric(2 * WAITING, 2048 if quick else 16_384)),
    ]


@pm.function
async def one_hole(s: pm.State, number: int) -> str:
    s += f"Program {number} asks:" + pm.gen("answer")
    return str(await s.get("answer"))


@pm.function
def many_branches(s: pm.State, size: int, threads: list[int], script: ScriptedBackend) -> None:
    s += "All branches begin here."
    group = s.fork(size)
    group += pm.gen("answer")
    script.wait_for(size, 60.0)
    threads.append(threading.active_count())
    script.release()
    group.join()


def programs(sizes: Sequence[int]) -> list[Row]:
    """Bytes and threads while all of them are in flight, and processor time of starting and ending them."""
    held: list[int] = []
    threads: list[int] = []
    left = 0
    for size in sizes:
        backend = ScriptedBackend(_answer, manual=True)
        with traced_memory() as bytes_held:
            states = _start(backend, size)
            held.append(bytes_held())
            threads.append(threading.active_count())
            _finish(backend, states)
            states.clear()
            backend.requests.clear()
            backend.program_events.clear()
            left = bytes_held()

    def run(size: int) -> float:
        backend = ScriptedBackend(_answer, manual=True)
        return cpu_micros(lambda: _finish(backend, _start(backend, size)))

    micros = sized(sizes, run, 3)
    each = f"{held[-1] / sizes[-1]:,.0f} bytes each, claimed: a few KB; {left / sizes[-1]:,.0f} when ended"
    return [
        Row(LAW, "memory of all programs in flight", "programs", "bytes", 1.0, tuple(sizes), tuple(held), extra=each),
        Row(LAW, "threads", "programs", "threads", 0.0, tuple(sizes), tuple(threads)),
        Row(LAW, "starting and ending them all", "programs", "CPU us", 1.0, tuple(sizes), micros),
    ]


def streams(sizes: Sequence[int]) -> list[Row]:
    """Threads while every branch of one program waits."""
    threads: list[int] = []
    for size in sizes:
        backend = ScriptedBackend(_answer, manual=True)
        many_branches.run(size=size, threads=threads, script=backend, backend=backend, seed=0)
    return [Row(LAW, "threads", "branches of one program", "threads", 0.0, tuple(sizes), tuple(threads))]


def waiting(sizes: Sequence[int]) -> list[Row]:
    """A step that admits some of those that wait."""
    cases: dict[int, BareScheduler] = {}
    for size in sizes:
        case = cases[size] = BareScheduler(1 << 16, SchedulerConfig(chunk_size=64))
        for _ in range(size):
            case.add(case.tokens(16), 1)
    return both(LAW, "a step that admits 4", "requests waiting", 0.0, cases, BareScheduler.step, 9)


def _start(backend: ScriptedBackend, size: int) -> list[pm.State]:
    states = [one_hole.run(number=i, backend=backend, seed=i, stream=True) for i in range(size)]
    backend.wait_for(size, 60.0)
    return states


def _finish(backend: ScriptedBackend, states: list[pm.State]) -> None:
    backend.release()
    for state in states:
        state.sync()
    for _ in range(4):  # what the loop still has to do behind the last of them
        shared_executor().start(_nothing()).result()


async def _nothing() -> None:
    """A turn of the loop."""


def _answer(prompt: str) -> str:
    return " yes"
