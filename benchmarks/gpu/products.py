"""Products whose floor is reading weights: 8-bit linear layers, skinny bf16 ones, and experts, at decode's few rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.machine import Call, Machine, error, graph_seconds
from benchmarks.gpu.rows import Row
from benchmarks.gpu.tasks import Task
from palmette.kernels.gpu import moe
from palmette.kernels.gpu.quant_linear import quant_linear, skinny_linear
from palmette.kernels.moe import moe as define_moe
from palmette.kernels.quant_linear import dequantize_weight, quantize_weight

_ERROR = 1e-2
_SETS = 8  # weights that take turns, so that no cache holds them


def tasks(machine: Machine) -> Sequence[Task]:
    """Rates of reading weights, as shares of copy bandwidth."""
    dtype = torch.bfloat16 if machine.measures else torch.float32
    found = []
    for rows in (1, 16, 64) if machine.measures else (1, 3):
        for kind in (torch.int8, torch.float8_e4m3fn, dtype):
            found.append(Task(f"linear {kind} {rows} rows", partial(_linear, machine, rows, kind)))
    for rows in (1, 16, 64, 4096) if machine.measures else (1, 5):
        found.append(Task(f"experts {rows} rows", partial(_experts, machine, rows)))
    return found


def _linear(machine: Machine, rows: int, kind: torch.dtype) -> Iterable[Row]:
    """The gate and up of an 8B model."""
    outputs, inputs = (28672, 4096) if machine.measures else (48, 64)
    dtype = torch.bfloat16 if machine.measures else torch.float32
    weights = [torch.randn(outputs, inputs, device=machine.device, dtype=dtype) * 0.02 for _ in range(_SETS)]
    x = torch.randn(rows, inputs, device=machine.device, dtype=dtype)
    detail = {}
    if kind == dtype:
        calls: list[Call] = [partial(skinny_linear, x, w) for w in weights]
        exactly = weights[0].double()
        if machine.measures:
            theirs = graph_seconds(machine, [partial(F.linear, x, w) for w in weights])
            detail = {"torch's microseconds": theirs * 1e6}
    else:
        coded = [quantize_weight(w, kind) for w in weights]
        calls = [partial(quant_linear, x, *pair) for pair in coded]
        exactly = dequantize_weight(*coded[0]).double()
        del coded
    wrong = error(calls[0](), x.double() @ exactly.T)
    took = graph_seconds(machine, calls)
    yield _row(machine, f"linear {kind}", rows, outputs * inputs * kind.itemsize, took, wrong, detail)


def expert_weights(machine: Machine) -> tuple[Tensor, Tensor, Tensor]:
    """Router, gate and up, and down of Qwen3-30B-A3B: 128 experts, of which 8 a token."""
    num, hidden, inner = (128, 2048, 768) if machine.measures else (8, 32, 16)
    dtype = torch.bfloat16 if machine.measures else torch.float32
    shapes = ((num, hidden), (num, 2 * inner, hidden), (num, hidden, inner))
    router, gate_up, down = (torch.randn(*shape, device=machine.device, dtype=dtype) * 0.02 for shape in shapes)
    return router, gate_up, down


def _experts(machine: Machine, rows: int) -> Iterable[Row]:
    sets = [expert_weights(machine) for _ in range(4)]
    router, gate_up, down = sets[0]
    num, hidden, inner = down.shape
    top_k = 8 if machine.measures else 2
    x = torch.randn(rows, hidden, device=machine.device, dtype=down.dtype)
    options: dict[str, Any] = {"top_k": top_k, "normalise": True}
    exact = define_moe(x.float(), F.linear(x, router), gate_up.float(), down.float(), **options)
    wrong = error(moe.experts(x, *sets[0], **options), exact)
    took = graph_seconds(machine, [partial(moe.experts, x, *weights, **options) for weights in sets])
    hit = [len(_chosen(x, weights[0], top_k)) for weights in sets]
    num_bytes = sum(hit) / len(hit) * 3 * hidden * inner * x.element_size()
    operations = rows * top_k * 3 * 2 * hidden * inner
    detail: dict[str, Any] = {"experts hit": sum(hit) / len(hit)}
    if machine.measures:
        detail["TFLOP/s"] = operations / took / 1e12
    yield _row(machine, f"experts {num}, {top_k} a token,", rows, num_bytes, took, wrong, detail)


def _chosen(x: Tensor, router: Tensor, top_k: int) -> set[int]:
    ids: list[int] = F.linear(x, router).topk(top_k).indices.flatten().tolist()
    return set(ids)


def _row(
    machine: Machine,
    what: str,
    rows: int,
    num_bytes: float,
    took: float,
    wrong: float,
    detail: dict[str, Any] | None = None,
) -> Row:
    value = num_bytes / took / machine.copy_bandwidth if machine.measures else None
    timed = {"microseconds": took * 1e6} if machine.measures else {}
    name = f"{what} {rows} rows: weights read, share of copy bandwidth"
    return Row(name, "", value, None, wrong, _ERROR, {**timed, **(detail or {})})
