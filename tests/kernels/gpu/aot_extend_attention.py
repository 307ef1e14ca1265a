"""Compilations of kernels/gpu/extend_attention.py and gather_rows.py; run by tests.kernels.gpu.aot."""

from __future__ import annotations

from typing import Any

import triton.language as tl

from palmette.kernels.gpu.extend_attention import (
    CODE_CONFIGS,
    CONFIGS,
    ExtendConfig,
    extend_attention_kernel,
    masked_tile,
)
from palmette.kernels.gpu.gather_rows import gather_rows_kernel
from palmette.kernels.gpu.launch import padded
from tests.kernels.gpu.aot import AotCase

_STRIDES = ("q_stride", "out_stride", "row_stride", "head_stride", "table_stride")
_TYPES = {
    **dict.fromkeys(("page_table", "last_keys", "positions", "trees", "tree_words", "tiles"), "*i32"),
    **dict.fromkeys(("key_scales", "value_scales"), "*fp32"),
    **dict.fromkeys(("score_scale", "cap_scale"), "fp32"),
    **dict.fromkeys(("window", "num_tiles", *_STRIDES), "i32"),
}
_DTYPES = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}


def extend_case(
    name: str,
    *,
    head_dim: int = 128,
    config: ExtendConfig | None = None,
    dtype: str = "bf16",
    pool: str = "*bf16",
    gathered: bool = False,
    windowed: bool = False,
    capped: bool = False,
    trees: bool = False,
    may_spill: int = 0,
    wants: tuple[str, ...] = ("HGMMA", "LDGSTS.E.BYPASS.128"),
) -> AotCase:
    """A tile of 128 rows, four heads to a KV head, as the wrapper launches it."""
    block_d = padded(head_dim)
    codes = pool in ("*i8", "*fp8e4nv")
    config = config or (CODE_CONFIGS if codes else CONFIGS)[block_d][0]
    types = {**_TYPES, "q": f"*{dtype}", "out": f"*{dtype}", "keys": pool, "values": pool}
    constants: dict[str, Any] = {
        "R": 4,
        "HEAD_DIM": head_dim,
        "BLOCK_M": 128,
        "BLOCK_N": config.block_n,
        "MASKED_N": masked_tile(config.block_n, block_d),
        "BLOCK_D": block_d,
        "GATHERED": gathered,
        "WINDOWED": windowed,
        "CAPPED": capped,
        "TREES": trees,
        "DOT_DTYPE": _DTYPES[dtype],
        "VALUE_DTYPE": _DTYPES[dtype],
        "PRECISION": "ieee" if dtype == "fp32" else "tf32",
    }
    for block in ("key_blocks", "value_blocks"):
        if config.bulk_copy:
            types[block] = f"tensordesc<{dtype}[{config.block_n}, {block_d}]>"
        else:
            constants[block] = None
    if config.bulk_copy:
        wants += ("UTMALDG",)
    if not codes:
        constants |= dict.fromkeys(("key_scales", "value_scales"))
    if not trees:
        constants |= dict.fromkeys(("trees", "tree_words"))
    return AotCase(
        name,
        extend_attention_kernel,
        {n: t for n, t in types.items() if n not in constants},
        constants,
        num_warps=config.warps_of(128),
        num_stages=config.stages_of(paged=not gathered),
        may_spill=may_spill,
        wants=wants,
        divisible=_STRIDES,
    )


def gather_case(name: str, *, head_dim: int = 128, pool: str = "*bf16") -> AotCase:
    types = dict.fromkeys(("page_table", "spans"), "*i32")
    types |= dict.fromkeys(("keys", "values"), pool) | dict.fromkeys(("scratch_keys", "scratch_values"), "*bf16")
    types |= dict.fromkeys(("num_spans", "slot_stride", "head_stride", "table_stride"), "i32")
    constants: dict[str, Any] = {"HEAD_DIM": head_dim, "BLOCK": 64, "BLOCK_D": padded(head_dim), "SPANS": 16}
    scales = ("key_scales", "value_scales")
    if pool == "*bf16":
        constants |= dict.fromkeys(scales)
    else:
        types |= dict.fromkeys(scales, "*fp32")
    strides = ("slot_stride", "head_stride", "table_stride")
    wants = ("LDG.E.128", "STG.E.128")
    return AotCase(name, gather_rows_kernel, types, constants, num_warps=4, wants=wants, divisible=strides)


CASES = [
    extend_case("extend paged 128"),
    extend_case("extend paged 128 window, cap, tree", windowed=True, capped=True, trees=True),
    extend_case("extend paged 128 fp8", pool="*fp8e4nv"),
    extend_case("extend paged 80 cap", head_dim=80, capped=True),
    extend_case("extend paged 256", head_dim=256, may_spill=16),  # stored before the loops and loaded behind them
    extend_case("extend gathered 64 window", head_dim=64, windowed=True, gathered=True),
    extend_case("extend gathered 128", gathered=True),
    extend_case("extend gathered 128 tma", gathered=True, config=ExtendConfig(128, 8, 3, bulk_copy=True)),
    gather_case("gather 128"),
    gather_case("gather 80 fp8", head_dim=80, pool="*fp8e4nv"),
]
