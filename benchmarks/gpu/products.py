"""Products whose floor is reading weights: 8-bit linear layers, skinny bf16 ones, and experts, at decode's few rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.machine import Machine, error, graph_seconds
from benchmarks.gpu.rows import Row
from palmette.kernels.gpu import moe
from palmette.kernels.gpu.quant_linear import quant_linear, skinny_linear
from palmette.kernels.moe import moe as define_moe
from palmette.kernels.quant_linear import dequantize_weight, quantize_weight

_ERROR = 1e-2
_SETS = 8  # weights that take turns, so that no cache holds them


def product_rows(machine: Machine) -> list[Row]:
    """Rates of reading weights, as shares of copy bandwidth."""
    return [*_linears(machine), *_experts(machine)]


def _linears(machine: Machine) -> list[Row]:
    outputs, inputs = (28672, 4096) if machine.measures else (48, 64)
    dtype = torch.bfloat16 if machine.measures else torch.float32
    found: list[Row] = []
    weights = [torch.randn(outputs, inputs, device=machine.device, dtype=dtype) * 0.02 for _ in range(_SETS)]
    for rows in (1, 16, 64) if machine.measures else (1, 3):
        x = torch.randn(rows, inputs, device=machine.device, dtype=dtype)
        for kind in (torch.int8, torch.float8_e4m3fn):
            coded = [quantize_weight(w, kind) for w in weights]
            wanted = F.linear(x.double(), dequantize_weight(*coded[0]).double())
            wrong = error(quant_linear(x, *coded[0]), wanted)
            took = graph_seconds(machine.device, [partial(quant_linear, x, *pair) for pair in coded])
            found.append(_row(machine, f"linear {kind}", rows, outputs * inputs, took, wrong))
        wrong = error(skinny_linear(x, weights[0]), F.linear(x.double(), weights[0].double()))
        took = graph_seconds(machine.device, [partial(skinny_linear, x, w) for w in weights])
        torch_took = graph_seconds(machine.device, [partial(F.linear, x, w) for w in weights])
        detail = {"torch's microseconds": torch_took * 1e6} if machine.measures else {}
        num_bytes = outputs * inputs * x.element_size()
        found.append(_row(machine, f"linear {dtype}", rows, num_bytes, took, wrong, detail))
    return found


def _experts(machine: Machine) -> list[Row]:
    """Shapes of Qwen3-30B-A3B: 128 experts, of which 8 a token."""
    num, hidden, inner, top_k = (128, 2048, 768, 8) if machine.measures else (8, 32, 16, 2)
    dtype = torch.bfloat16 if machine.measures else torch.float32
    device = machine.device
    sets = [
        tuple(
            torch.randn(*shape, device=device, dtype=dtype) * 0.02
            for shape in ((num, hidden), (num, 2 * inner, hidden), (num, hidden, inner))
        )
        for _ in range(4)
    ]
    found: list[Row] = []
    for rows in (1, 16, 64, 4096) if machine.measures else (1, 5):
        x = torch.randn(rows, hidden, device=device, dtype=dtype)
        options: dict[str, Any] = {"top_k": top_k, "normalise": True}
        router, gate_up, down = sets[0]
        exact = define_moe(x.float(), F.linear(x, router), gate_up.float(), down.float(), **options)
        wrong = error(moe.experts(x, *sets[0], **options), exact)
        took = graph_seconds(device, [partial(moe.experts, x, *weights, **options) for weights in sets])
        hit = [len(_chosen(x, weights[0], top_k)) for weights in sets]
        num_bytes = sum(hit) / len(hit) * 3 * hidden * inner * x.element_size()
        operations = rows * top_k * 3 * 2 * hidden * inner
        detail: dict[str, Any] = {"experts hit": sum(hit) / len(hit)}
        if machine.measures:
            detail["TFLOP/s"] = operations / took / 1e12
        found.append(_row(machine, f"experts {num}, {top_k} a token,", rows, num_bytes, took, wrong, detail))
    return found


def _chosen(x: torch.Tensor, router: torch.Tensor, top_k: int) -> set[int]:
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
