"""Compilations of kernels/gpu/{activation,embedding,page_table}.py; run by tests.kernels.gpu.aot."""

from __future__ import annotations

from palmette.kernels.gpu.activation import gated_kernel
from palmette.kernels.gpu.embedding import embed_kernel
from palmette.kernels.gpu.page_table import update_kernel
from tests.kernels.gpu.aot import AotCase

_VECTORS = ("LDG.E.128", "STG.E.128")
_EMBED = {"ids": "*i64", "table": "*bf16", "drawn": "*i32", "rows": "*i32", "out": "*bf16"}

CASES = [
    *(
        AotCase(
            f"gated {'silu' if is_silu else 'gelu_tanh'} bf16",
            gated_kernel,
            {"gate_up": "*bf16", "out": "*bf16", "dim": "i32"},
            {"IS_SILU": is_silu, "BLOCK": 1024},
            divisible=("dim",),
            wants=_VECTORS,
        )
        for is_silu in (True, False)
    ),
    AotCase(
        "embed bf16, drawn",
        embed_kernel,
        {**_EMBED, "scale": "fp32", "dim": "i32"},
        {"HAS_DRAWN": True, "BLOCK": 1024},
        divisible=("dim",),
        wants=_VECTORS,
    ),
    AotCase(
        "page table update",
        update_kernel,
        {"page_table": "*i32", "updates": "*i32", "count": "*i32", "row_stride": "i32"},
        {"BLOCK": 128},
    ),
]
