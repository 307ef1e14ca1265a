"""What the device can do at best, measured in the same run, and how anything is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Machine:
    """A device and its two ceilings; zero where nothing is measured."""

    device: torch.device
    name: str
    copy_bandwidth: float  # bytes a second, read and written ones together
    matrix_rate: float  # bf16 operations a second, a multiply-add counted as two

    @property
    def measures(self) -> bool:
        return self.device.type == "cuda"


def this_machine() -> Machine:
    """Measure the ceilings; half a minute of warm GPU at most."""
    if not torch.cuda.is_available():
        return Machine(torch.device("cpu"), "CPU, Triton's interpreter", 0.0, 0.0)
    device = torch.device("cuda")
    source = torch.empty(1 << 31, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copy = seconds(device, [partial(target.copy_, source)])
    left, right = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    multiply = seconds(device, [partial(torch.matmul, left, right), partial(torch.matmul, right, left)])
    return Machine(device, torch.cuda.get_device_name(device), 2 * source.numel() / copy, 2 * 8192**3 / multiply)


def seconds(device: torch.device, calls: Sequence[Callable[[], Any]], *, budget: float = 0.4) -> float:
    """Median time of one call, the calls in turn (rotate over several inputs so that no cache holds them all).

    Args:
        budget: seconds of measuring.
    """
    if device.type != "cuda":
        for call in calls:
            call()
        return 0.0
    for call in (*calls, *calls):
        call()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for call in calls:
        call()
    torch.cuda.synchronize()
    once = (time.perf_counter() - began) / len(calls)
    repeats = max(5, min(200, int(budget / max(once, 1e-6))))
    marks = [torch.Event(device=device, enable_timing=True) for _ in range(2 * repeats)]
    for i in range(repeats):
        marks[2 * i].record()
        calls[i % len(calls)]()
        marks[2 * i + 1].record()
    torch.cuda.synchronize()
    times: list[float] = [marks[2 * i].elapsed_time(marks[2 * i + 1]) for i in range(repeats)]  # milliseconds
    return statistics.median(times) / 1e3


def graph_seconds(device: torch.device, calls: Sequence[Callable[[], Any]], *, budget: float = 0.4) -> float:
    """The same with the calls captured in one CUDA graph: the device's time, without the gaps of launching."""
    if device.type != "cuda":
        return seconds(device, calls)
    for call in (*calls, *calls):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return seconds(device, [graph.replay], budget=budget) / len(calls)


def error(got: Tensor, wanted: Tensor) -> float:
    """Relative, of norms; infinity where something is not finite."""
    got, wanted = got.double(), wanted.double()
    found = float((got - wanted).norm() / wanted.norm())
    return found if torch.isfinite(got).all() else float("inf")
