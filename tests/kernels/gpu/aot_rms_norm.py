"""Compilations of kernels/gpu/rms_norm.py; run by tests.kernels.gpu.aot."""

from __future__ import annotations

from palmette.kernels.gpu.rms_norm import add_rms_norm_kernel, rms_norm_kernel
from tests.kernels.gpu.aot import AotCase

_POINTERS = {"x": "*bf16", "weight": "*fp32", "out": "*bf16", "eps": "fp32", "dim": "i32"}

CASES = [
    AotCase("rms_norm 4096 bf16", rms_norm_kernel, _POINTERS, {"BLOCK": 4096}, num_warps=8, divisible=("dim",)),
    AotCase(
        "add_rms_norm 4096 bf16",
        add_rms_norm_kernel,
        {**_POINTERS, "residual": "*bf16", "summed": "*bf16"},
        {"BLOCK": 4096},
        num_warps=8,
        divisible=("dim",),
    ),
]
