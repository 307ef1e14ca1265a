"""Compilations of kernels/gpu/split_attention.py and merge_partials.py; run by tests.kernels.gpu.aot."""

from __future__ import annotations

from typing import Any

import triton.language as tl

from palmette.kernels.gpu.launch import padded
from palmette.kernels.gpu.merge_partials import AHEAD, merge_partials_kernel
from palmette.kernels.gpu.split_attention import split_attention_kernel, split_config
from tests.kernels.gpu.aot import AotCase

_POINTERS = dict.fromkeys(("page_table", "last_keys", "positions", "items", "num_items", "pairs"), "*i32")
_INTS = dict.fromkeys(("window", "slot_stride", "table_stride", "num_kv_heads"), "i32")
_FLOATS = {"inner": "fp32", "outer": "fp32"}


def _case(
    name: str,
    *,
    block_m: int,
    head_dim: int = 128,
    r: int = 4,
    dtype: str = "bf16",
    pool: str | None = None,
    cap: bool = False,
    window: bool = False,
    trees: bool = False,
    one_kv_head: bool = False,
    may_spill: int = 0,
    wants: tuple[str, ...] = (),
) -> AotCase:
    size = 4 if dtype == "fp32" else 2
    config = split_config(head_dim=head_dim, block_m=block_m, cut=512, q_size=size, pool_size=1 if pool else size)
    types: dict[str, str] = {"q": f"*{dtype}", "partials": "*fp32", "lse": "*fp32", **_POINTERS, **_INTS, **_FLOATS}
    types |= {"keys": f"*{pool or dtype}", "values": f"*{pool or dtype}"}
    constants: dict[str, Any] = {
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded(head_dim),
        "R": r,
        "BLOCK_M": block_m,
        "BLOCK_N": config.block_n,
        "CAP": cap,
        "WINDOW": window,
        "TREES": trees,
        "SCALES": pool is not None,
        "DOT_DTYPE": {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}[dtype],
        "VALUE_DTYPE": {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}[dtype],
        "PRECISION": "ieee" if dtype == "fp32" else "tf32",
    }
    if one_kv_head:  # a 1 is compiled in
        types.pop("num_kv_heads")
        constants["num_kv_heads"] = 1
    for names, there, kind in (
        (("key_scales", "value_scales"), pool is not None, "*fp32"),
        (("trees", "tree_words"), trees, "*i32"),
    ):
        if there:
            types |= dict.fromkeys(names, kind)
        else:
            constants |= dict.fromkeys(names)
    return AotCase(
        f"split_attention {name}",
        split_attention_kernel,
        types,
        constants,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        may_spill=may_spill,
        wants=wants,
        divisible=("slot_stride", "table_stride"),
    )


CASES = [
    _case("decode", block_m=16, wants=("HMMA", "LDGSTS.E.BYPASS.128")),
    _case("cascade 64", block_m=64, wants=("HGMMA", "LDGSTS.E.BYPASS.128")),
    _case("cascade 128", block_m=128, wants=("HGMMA", "LDGSTS.E.BYPASS.128")),
    _case("decode 64 wide", block_m=16, head_dim=64, r=3, wants=("HMMA",)),
    _case("decode 80 wide", block_m=16, head_dim=80, r=1, one_kv_head=True, wants=("HMMA",)),
    _case("decode 256 wide, fp16", block_m=16, head_dim=256, r=2, dtype="fp16", wants=("HMMA",)),
    # What spills here is indices that stay the same from item to item; nothing does within the loops over keys.
    _case("cascade 256 wide", block_m=64, head_dim=256, r=2, wants=("HGMMA",), may_spill=64),
    _case("decode of float8", block_m=16, pool="fp8e4nv", wants=("HMMA",)),
    _case("decode of int8", block_m=16, pool="i8", wants=("HMMA",)),
    _case("cascade of float8", block_m=64, pool="fp8e4nv", wants=("HGMMA",)),
    _case("tries, window and cap", block_m=64, cap=True, window=True, trees=True, wants=("HGMMA",)),
    _case("tries, window and cap, narrow", block_m=16, cap=True, window=True, trees=True, wants=("HMMA",)),
    _case("float32", block_m=16, dtype="fp32"),
    AotCase(
        "merge_partials",
        merge_partials_kernel,
        {
            "partials": "*fp32",
            "lse": "*fp32",
            "tokens": "*i32",
            "firsts": "*i32",
            "out": "*bf16",
            "num_heads": "i32",
        },
        {"HEAD_DIM": 128, "BLOCK_D": 128, "AHEAD": AHEAD},
        num_warps=1,
    ),
]
