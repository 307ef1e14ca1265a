"""Mixture of experts in the shapes of Qwen3-30B-A3B: hidden 2048, 128 experts of 768, 8 of them a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton.language as tl

from palmette.kernels.gpu.expert_pairs import route_and_sort_kernel, route_kernel, sort_kernel
from palmette.kernels.gpu.moe import Tiles, choose_tiles, grouped_product_kernel, weighted_sum_kernel
from tests.kernels.gpu.aot import AotCase

_PROCESSORS = 132  # of an H200
_COUNTS = {"num_tokens": "i32", "num_experts": "i32"}
_SORTED = {"pairs": "*i32", "blocks": "*i32"}


def _product(name: str, tiles: Tiles, *, activation: str, dtype: str = "bf16") -> AotCase:
    block_n = tiles.width // 2 if activation != "none" else tiles.width
    types = {"x": f"*{dtype}", "weight": f"*{dtype}", "out": f"*{dtype}", **_SORTED}
    constants: Mapping[str, Any] = {
        "TOP_K": 8,
        "ACTIVATION": activation,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": tiles.block_k,
        "GROUP": 8,
        "EVEN_N": True,
        "EVEN_K": True,
        "DOT_DTYPE": tl.bfloat16 if dtype == "bf16" else tl.float32,
    }
    return AotCase(
        f"{name} {tiles.block_m}x{tiles.width}x{tiles.block_k} {dtype}",
        grouped_product_kernel,
        {**types, "most": "i32", "columns": "i32", "depth": "i32"},
        constants,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        wants=("HGMMA", "LDGSTS") if dtype == "bf16" else (),
        divisible=("columns", "depth"),
    )


def _tiles(num_tokens: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tiles, Tiles]:
    return choose_tiles(num_tokens * 8, 128, hidden=2048, inner=768, dtype=dtype, processors=_PROCESSORS)


def _routing(block_t: int, block_e: int) -> dict[str, Any]:
    return {"TOP_K": 8 if block_e > 8 else 2, "BLOCK_T": block_t, "BLOCK_E": block_e}


def _route_and_sort(block_t: int, block_e: int) -> AotCase:
    return AotCase(
        f"route and sort {block_t} tokens of {block_e} experts",
        route_and_sort_kernel,
        {"logits": "*bf16", "weights": "*fp32", **_SORTED, **_COUNTS},
        {**_routing(block_t, block_e), "NORMALISE": True, "BLOCK_M": 16},
        num_warps=max(1, min(16, block_t * block_e // 512)),
    )


CASES = [
    *[
        case
        for num_tokens in (1, 64, 16384)
        for first, second in [_tiles(num_tokens)]
        for case in (
            _product(f"gate and up, {num_tokens} tokens,", first, activation="silu"),
            _product(f"down, {num_tokens} tokens,", second, activation="none"),
        )
    ],
    _product("gate and up, 256 tokens,", _tiles(256)[0], activation="silu"),
    _product("gate and up, 512 tokens,", _tiles(512)[0], activation="gelu_tanh"),
    _product("gate and up, 512 tokens,", _tiles(512, torch.float32)[0], activation="silu", dtype="fp32"),
    _route_and_sort(1, 128),
    _route_and_sort(64, 128),
    _route_and_sort(1024, 8),
    AotCase(
        "route 32 tokens of 128 experts",
        route_kernel,
        {"logits": "*bf16", "weights": "*fp32", "ids": "*i32", "counts": "*i32", **_COUNTS},
        {**_routing(32, 128), "NORMALISE": False},
        num_warps=8,
    ),
    AotCase(
        "sort 32 tokens of 128 experts",
        sort_kernel,
        {"ids": "*i32", "counts": "*i32", **_SORTED, **_COUNTS, "num_chunks": "i32"},
        {**_routing(32, 128), "BLOCK_M": 128, "BLOCK_C": 16},
        num_warps=8,
    ),
    AotCase(
        "weighted sum of 8",
        weighted_sum_kernel,
        {"parts": "*bf16", "weights": "*fp32", "out": "*bf16", "columns": "i32"},
        {"TOP_K": 8, "BLOCK": 1024},
        num_warps=4,
        divisible=("columns",),
    ),
]
