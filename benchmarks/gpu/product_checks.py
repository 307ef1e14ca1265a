"""Checks of 8-bit and skinny linear layers, and of experts from their routing on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch

from benchmarks.gpu import exact
from benchmarks.gpu.machine import Machine, worst_error
from benchmarks.gpu.poison import poisoned
from benchmarks.gpu.rows import Row
from benchmarks.gpu.tasks import Task
from palmette.kernels.gpu import expert_pairs, moe
from palmette.kernels.gpu.quant_linear import quant_linear, skinny_linear
from palmette.kernels.quant_linear import dequantize_weight, quantize_weight

_ROUNDED = 4.2e-3
_EXPERTS_ERROR = 8e-3  # rounded after the activation, after each expert, and at the end


def tasks(machine: Machine) -> Sequence[Task]:
    found = []
    for kind in (torch.int8, torch.float8_e4m3fn):
        for blocks in (False, True):
            what = f"quant_linear {kind}, " + ("a scale for 128 inputs" if blocks else "a scale for an output")
            found.append(Task(what, partial(_quantised, machine, what, kind, blocks)))
    found.append(Task("skinny_linear", partial(_skinny, machine)))
    for rows in (1, 7, 64, 1000) if machine.measures else (1, 9):
        found.append(Task(f"experts, {rows} tokens", partial(_experts, machine, rows)))
    return found


def _quantised(machine: Machine, what: str, kind: torch.dtype, blocks: bool) -> Iterable[Row]:
    outputs, inputs = (6144, 4096) if machine.measures else (40, 128)
    weight = torch.randn(outputs, inputs, device=machine.device) * 0.02
    codes, scales = quantize_weight(weight, kind, blocks=blocks)
    bias = torch.randn(outputs, device=machine.device, dtype=torch.bfloat16)
    exactly = dequantize_weight(codes, scales).double()
    for rows in (1, 5, 16, 33, 64, 100) if machine.measures else (1, 3):
        x = torch.randn(rows, inputs, device=machine.device).bfloat16()
        with poisoned():
            got = quant_linear(x, codes, scales, bias)
        wanted = x.double() @ exactly.T + bias.double()
        yield _checked(machine, f"{what}, {rows} rows", worst_error(got, wanted), _ROUNDED)


def _skinny(machine: Machine) -> Iterable[Row]:
    for outputs, inputs in ((6144, 4096), (4096, 14336), (1000, 4095)) if machine.measures else ((40, 64), (33, 50)):
        weight = (torch.randn(outputs, inputs, device=machine.device) * 0.02).bfloat16()
        for rows in (1, 16, 64) if machine.measures else (3,):
            x = torch.randn(rows, inputs, device=machine.device).bfloat16()
            with poisoned():
                got = skinny_linear(x, weight)
            found = worst_error(got, x.double() @ weight.double().T)
            yield _checked(machine, f"skinny_linear {outputs} x {inputs}, {rows} rows", found, _ROUNDED)


def _experts(machine: Machine, rows: int) -> Iterable[Row]:
    """Shapes of Qwen3-30B-A3B and of Mixtral's routing, the weights in bfloat16."""
    for num, hidden, inner, top_k, normalise in (
        ((128, 2048, 768, 8, True), (8, 1024, 3584, 2, False)) if machine.measures else ((8, 32, 16, 2, True),)
    ):
        x = torch.randn(rows, hidden, device=machine.device).bfloat16()
        logits = torch.randn(rows, num, device=machine.device).bfloat16()
        gate_up = torch.randn(num, 2 * inner, hidden, device=machine.device).mul_(0.02).bfloat16()
        down = torch.randn(num, hidden, inner, device=machine.device).mul_(0.02).bfloat16()
        with poisoned():
            weights, ids = expert_pairs.route(logits, top_k=top_k, normalise=normalise)
            got = moe.moe(x, logits, gate_up, down, top_k=top_k, normalise=normalise)
        wanted, exact_ids = exact.experts(x, logits, gate_up, down, top_k=top_k, normalise=normalise)
        name = f"{rows} tokens to {top_k} of {num}"
        wrong = float((ids.long() != exact_ids).double().mean())
        yield _checked(machine, f"expert_pairs.route, {name}: ids", wrong, 0.0)
        chances = logits.double().softmax(-1).gather(1, exact_ids)
        if normalise:
            chances = chances / chances.sum(-1, keepdim=True)
        yield _checked(machine, f"expert_pairs.route, {name}: weights", worst_error(weights, chances), 1e-5)
        yield _checked(machine, f"moe, {name}", worst_error(got, wanted), _EXPERTS_ERROR)


def _checked(machine: Machine, what: str, found: float, allowed: float) -> Row:
    return Row(f"check {what}", "", None, error=found, allowed_error=allowed * machine.rounding)
