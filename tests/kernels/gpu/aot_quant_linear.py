"""Compilations of kernels/gpu/quant_linear.py for products of an 8B model, with bfloat16 activations; run by
tests.kernels.gpu.aot."""

from __future__ import annotations

import triton.language as tl

from palmette.kernels.gpu.launch import padded
from palmette.kernels.gpu.quant_linear import choose_config, quant_linear_kernel, reduce_kernel, widen_kernel
from palmette.kernels.quant_linear import BLOCK
from tests.kernels.gpu.aot import AotCase

_BYTES = {"*i8": 1, "*fp8e4nv": 1, "*bf16": 2}
_INTS = dict.fromkeys(("rows", "outputs", "inputs", "x_stride"), "i32")
_ALIGNED = ("outputs", "inputs", "x_stride")


def _case(
    weight: str,
    rows: int,
    outputs: int,
    inputs: int,
    *,
    blocks: bool = False,
    wants: tuple[str, ...] = ("LDGSTS.E.BYPASS.128",),
) -> AotCase:
    config = choose_config(rows, outputs, inputs, x_bytes=2, code_bytes=_BYTES[weight], processors=132)
    coded = weight in ("*i8", "*fp8e4nv")
    out = "*fp32" if config.splits > 1 else "*bf16"
    return AotCase(
        f"{weight[1:]} weight{', blocks' if blocks else ''}, {rows} x {outputs} x {inputs}",
        quant_linear_kernel,
        {"x": "*bf16", "weight": weight, "scales": "*fp32", "bias": "*bf16", "out": out, **_INTS},
        {
            "BLOCK_M": padded(rows),
            "BLOCK_N": config.block_n,
            "SLICE_K": config.slice_k,
            "SLICES": config.slices,
            "SPLITS": config.splits,
            "HAS_SCALES": coded and not blocks,
            "SCALE_BLOCK": BLOCK if blocks else 0,
            "HAS_BIAS": False,
            "EVEN_K": inputs % (config.slice_k * config.slices) == 0,
            "DOT_DTYPE": tl.bfloat16,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        divisible=_ALIGNED,
        wants=wants,
    )


_FEW = ("LDGSTS.E.BYPASS.128", "HMMA")
_MOST = ("LDGSTS.E.BYPASS.128", "HGMMA")

CASES = [
    _case("*i8", 1, 4096, 4096, wants=_FEW),
    _case("*i8", 1, 4096, 4096, blocks=True, wants=_FEW),
    _case("*i8", 16, 28672, 4096, wants=_FEW),
    _case("*i8", 32, 4096, 14336, wants=_FEW),
    _case("*i8", 64, 4096, 4096, wants=_MOST),
    _case("*i8", 1, 576, 1552),  # the last step is not full, and programs share tiles
    _case("*fp8e4nv", 1, 4096, 4096, wants=(*_FEW, "F2FP.F16.E4M3")),
    _case("*fp8e4nv", 64, 28672, 4096, blocks=True, wants=_MOST),
    _case("*bf16", 1, 4096, 4096, wants=_FEW),
    _case("*bf16", 64, 28672, 4096, wants=_MOST),
    AotCase(
        "sum of partials",
        reduce_kernel,
        {"partials": "*fp32", "scales": "*fp32", "bias": "*bf16", "out": "*bf16", "rows": "i32", "outputs": "i32"},
        {"SPLITS": 4, "HAS_SCALES": True, "HAS_BIAS": True, "BLOCK": 512},
        divisible=("outputs",),
        wants=("LDG.E.128",),
    ),
    AotCase(
        "widening",
        widen_kernel,
        {"codes": "*i8", "scales": "*fp32", "out": "*bf16", "inputs": "i32"},
        {"SCALE_BLOCK": 0, "BLOCK": 2048},
        divisible=("inputs",),
        wants=("LDG.E.128", "STG.E.128"),
    ),
]
