"""Compilations of kernels/gpu/rotate_and_store.py; run by tests.kernels.gpu.aot."""

from __future__ import annotations

from typing import Any

import torch

from palmette.kernels.gpu.launch import padded
from palmette.kernels.gpu.rotate_and_store import heads_of_a_program, rotate_and_store_kernel
from palmette.kernels.kv_store import LARGEST
from tests.kernels.gpu.aot import AotCase

_POOL = {torch.bfloat16: "*bf16", torch.int8: "*i8", torch.float8_e4m3fn: "*fp8e4nv"}


def _case(
    name: str,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rotated: int | None = None,
    has_norm: bool = False,
    pool: torch.dtype = torch.bfloat16,
    wants: tuple[str, ...] = (),
) -> AotCase:
    half = (rotated or head_dim) // 2
    rest = head_dim - 2 * half
    fp32 = dict.fromkeys(("cos", "sin", "q_norm", "k_norm", "key_scales", "value_scales"), "*fp32")
    pools = dict.fromkeys(("keys", "values"), _POOL[pool])
    types = {**fp32, **pools, "qkv": "*bf16", "slots": "*i64", "q_out": "*bf16", "eps": "fp32", "slot_stride": "i32"}
    constants: dict[str, Any] = {
        "NUM_HEADS": heads,
        "NUM_KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "HALF": half,
        "HALF_BLOCK": padded(half, least=1),
        "REST_BLOCK": padded(rest, least=1) if rest else 0,
        "GROUP": heads_of_a_program(head_dim, heads),
        "HAS_NORM": has_norm,
        "LARGEST": LARGEST.get(pool, 0.0),
        "EXACT_CAST": True,
    }
    return AotCase(
        f"rotate_and_store {name}",
        rotate_and_store_kernel,
        types,
        constants,
        num_warps=2,
        divisible=("slot_stride",),
        wants=wants,
    )


_VECTORS = ("LDG.E.128", "STG.E.128")
_FP8 = torch.float8_e4m3fn

CASES = [
    _case("128 bf16, norms", heads=32, kv_heads=8, head_dim=128, has_norm=True, wants=_VECTORS),
    _case("128 bf16 into int8", heads=32, kv_heads=8, head_dim=128, pool=torch.int8, wants=("LDG.E.128",)),
    _case("128 bf16 into fp8, norms", heads=32, kv_heads=8, head_dim=128, has_norm=True, pool=_FP8, wants=("F2FP",)),
    _case("80 bf16, 32 of them rotate", heads=32, kv_heads=32, head_dim=80, rotated=32, wants=_VECTORS),
    _case("96 bf16", heads=24, kv_heads=8, head_dim=96, wants=_VECTORS),
    _case("256 bf16, norms", heads=8, kv_heads=4, head_dim=256, has_norm=True, wants=_VECTORS),
]
