"""What the device can do at best, measured in the same run, and how anything is timed.

Work on a device is asynchronous, so every time is between two events on its stream. What lies between them besides the
work differs, and so do the functions: `seconds` for calls that keep the device longer than they keep the host,
`graph_seconds` for kernels without their launches, `held_seconds` for a call with much to do on the host,
`pace_seconds` for a call among its like, and `host_seconds` for the host's part alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], Any]
_HOLD_CYCLES = 40_000_000  # that the device sleeps while the host queues: 20 ms at 2 GHz


@dataclass(frozen=True, slots=True)
class Machine:
    """A device and its two ceilings; zero where nothing is measured."""

    device: torch.device
    name: str
    copy_bandwidth: float  # bytes a second, read and written ones together
    matrix_rate: float  # bf16 operations a second, a multiply-add counted as two
    seed: int = 0  # of this run's inputs
    rehearses: bool = False  # everything is called once and no time is taken, so that all is compiled

    @property
    def measures(self) -> bool:
        return self.device.type == "cuda"

    @property
    def rounding(self) -> float:
        """What errors of rounding may be multiplied by: the interpreter truncates where it stores bfloat16."""
        return 1.0 if self.measures else 2.0


def this_machine(seed: int, *, ceilings: tuple[float, float] | None = None, rehearses: bool = False) -> Machine:
    """Measure the ceilings, where they are not given; a few seconds of warm GPU."""
    if not torch.cuda.is_available():
        return Machine(torch.device("cpu"), "CPU, Triton's interpreter", 0.0, 0.0, seed)
    device = torch.device("cuda")
    machine = Machine(device, torch.cuda.get_device_name(device), *(ceilings or (1.0, 1.0)), seed, rehearses)
    if ceilings is not None:
        return machine
    source = torch.empty(1 << 31, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copy = seconds(machine, [partial(target.copy_, source)])
    left, right = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    multiply = seconds(machine, [partial(torch.matmul, left, right), partial(torch.matmul, right, left)])
    return Machine(device, machine.name, 2 * source.numel() / copy, 2 * 8192**3 / multiply, seed)


def seconds(machine: Machine, calls: Sequence[Call], *, budget: float = 0.4) -> float:
    """Median time of one call, the calls in turn (rotate over several inputs so that no cache holds them all).

    Args:
        budget: seconds of measuring.
    """
    if _only_call(machine, calls):
        return 1.0
    repeats = max(5, min(200, int(budget / _once(calls))))
    marks = [(_event(), _event()) for _ in range(repeats)]
    for i, (begin, end) in enumerate(marks):
        begin.record()
        calls[i % len(calls)]()
        end.record()
    torch.cuda.synchronize()
    return _median(marks)


def graph_seconds(machine: Machine, calls: Sequence[Call], *, budget: float = 0.4) -> float:
    """The same with the calls captured in one CUDA graph: the device's time, without the gaps of launching."""
    if _only_call(machine, calls):
        return 1.0
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return seconds(machine, [graph.replay], budget=budget) / len(calls)


def held_seconds(machine: Machine, call: Call, *, repeats: int = 20) -> float:
    """Time that the device needs for a call, copies included, with all of it queued before the device may begin."""
    if _only_call(machine, [call]):
        return 1.0
    call()
    marks = [(_event(), _event()) for _ in range(repeats)]
    for begin, end in marks:
        torch.cuda._sleep(_HOLD_CYCLES)  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
    return _median(marks)


def pace_seconds(machine: Machine, call: Call, *, budget: float = 1.0, rounds: int = 5) -> float:
    """Time from one call's end to the next one's, queued one behind the other: the device's, or the host's if that is
    the slower."""
    if _only_call(machine, [call]):
        return 1.0
    repeats = max(5, min(200, int(budget / rounds / _once([call]))))
    marks = [(_event(), _event()) for _ in range(rounds)]
    for begin, end in marks:
        call()  # whose end is the first call's beginning
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize()
    return _median(marks) / repeats


def host_seconds(machine: Machine, call: Call, *, repeats: int = 20) -> float:
    """Time until a call returns that finds the device idle."""
    if _only_call(machine, [call]):
        return 1.0
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    torch.cuda.synchronize()
    return statistics.median(times[1:])


def error(got: Tensor, wanted: Tensor) -> float:
    """Relative, of norms; infinity where something is not finite."""
    got, wanted = got.double(), wanted.double()
    found = float((got - wanted).norm() / wanted.norm())
    return found if bool(torch.isfinite(got).all()) else float("inf")


def worst_error(got: Tensor, wanted: Tensor) -> float:
    """The same of the last dimension, the largest there is: one wrong row among thousands shows."""
    got, wanted = got.double(), wanted.double()
    away = (got - wanted).norm(dim=-1)
    size = wanted.norm(dim=-1)
    found = float((away / torch.where(size > 0, size, 1.0)).amax())
    return found if bool(torch.isfinite(got).all()) else float("inf")


def _only_call(machine: Machine, calls: Sequence[Call]) -> bool:
    """Call each once where no time is to be taken, and say so."""
    for call in calls:  # the first call compiles
        call()
    if machine.measures:
        torch.cuda.synchronize()
    return not machine.measures or machine.rehearses


def _once(calls: Sequence[Call]) -> float:
    """About how long a call takes, host and device together, once everything is warm."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for call in calls:
        call()
    torch.cuda.synchronize()
    return max((time.perf_counter() - began) / len(calls), 1e-6)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _median(marks: Sequence[tuple[torch.cuda.Event, torch.cuda.Event]]) -> float:
    """Seconds."""
    times: list[float] = [begin.elapsed_time(end) for begin, end in marks]  # milliseconds
    return statistics.median(times) / 1e3
