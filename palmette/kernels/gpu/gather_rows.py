"""Copies the keys and values of a page table's rows to contiguous scratch, before many queries read them.

    for each span (row, first, end, at) and key k in first .. end:
        scratch_keys[h, at + k - first] = dequantize(keys)[page_table[row, k], h]         and values likewise

    pool      (num_slots, num_kv_heads, head_dim)          slots in any order
    scratch   (num_kv_heads, scratch_len, head_dim)        [ span 0 | span 2 | - | span 1 | ... ]

A pool is read once, where tiles of queries would chase its slots again and again; of scratch they can fetch whole
tiles with the bulk copy engine. 8-bit codes become codes * scale, rounded to scratch's dtype.

One program for BLOCK rows of scratch and one KV head: it looks for the span that holds each of its rows among all
spans, SPANS at a time, so long and short spans spread over the device alike, nobody asks the device how long they are,
and their order is free. Rows of scratch that are in no span are left as they are. head_dim is padded to BLOCK_D, a
power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from palmette.errors import InvalidOption
from palmette.kernels.gpu.launch import INTERPRETED, padded
from palmette.kernels.kv_store import KVLayer
from palmette.kernels.paged_plan import ExtendWork, PagedPlan

_SPANS = 16  # looked at together


def gather_rows(kv: KVLayer, plan: PagedPlan, work: ExtendWork, scratch_keys: Tensor, scratch_values: Tensor) -> None:
    """Fill scratch with the spans of `work.gathered`.

    Args:
        kv: the layer after this step's keys and values were stored.
        work: with `gathered`; its spans do not overlap in scratch.
        scratch_keys, scratch_values: (num_kv_heads, at least work.scratch_len, head_dim), any float dtype, contiguous.
    """
    if work.gathered is None:
        raise InvalidOption("work.gathered", None, "gather_rows copies spans; work without them reads the page table")
    num_kv_heads, head_dim = kv.keys.shape[1:]
    if not work.scratch_len or not work.gathered.shape[0]:
        return
    block = 64 if not INTERPRETED else 16
    gather_rows_kernel[(triton.cdiv(work.scratch_len, block), num_kv_heads)](
        kv.keys,
        kv.values,
        kv.key_scales,
        kv.value_scales,
        plan.page_table,
        work.gathered,
        scratch_keys,
        scratch_values,
        work.gathered.shape[0],
        kv.keys.stride(0),
        scratch_keys.stride(0),
        plan.page_table.stride(0),
        HEAD_DIM=head_dim,
        BLOCK=block,
        BLOCK_D=padded(head_dim),
        SPANS=_SPANS,
        num_warps=4,
    )


@triton.jit(do_not_specialize=["num_spans"])  # any number of spans is the same kernel
def gather_rows_kernel(
    keys,
    values,
    key_scales,
    value_scales,
    page_table,
    spans,
    scratch_keys,
    scratch_values,
    num_spans,
    slot_stride,
    head_stride,
    table_stride,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPANS: tl.constexpr,
):
    head = tl.program_id(1)
    mine = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # rows of scratch
    table_row = tl.zeros([BLOCK], tl.int32)
    k = tl.full([BLOCK], -1, tl.int32)  # page-table index; -1 where no span has the row
    for first_span in range(0, num_spans, SPANS):
        s = first_span + tl.arange(0, SPANS)
        real = s < num_spans
        first = tl.load(spans + s * 4 + 1, mask=real, other=0)
        end = tl.load(spans + s * 4 + 2, mask=real, other=0)
        at = tl.load(spans + s * 4 + 3, mask=real, other=0)
        holds = (mine[:, None] >= at[None, :]) & (mine[:, None] < (at + end - first)[None, :])
        table_row += tl.sum(tl.where(holds, tl.load(spans + s * 4, mask=real, other=0)[None, :], 0), 1)
        k += tl.sum(tl.where(holds, mine[:, None] + (first - at + 1)[None, :], 0), 1)
    held = k >= 0
    slots = tl.load(page_table + table_row.to(tl.int64) * table_stride + k, mask=held, other=0).to(tl.int64)

    d = tl.arange(0, BLOCK_D)
    copied = held[:, None] & (d < HEAD_DIM)[None, :]
    source = slots[:, None] * slot_stride + head * HEAD_DIM + d[None, :]
    target = head.to(tl.int64) * head_stride + mine[:, None] * HEAD_DIM + d[None, :]
    key_tile = tl.load(keys + source, mask=copied, other=0.0)
    value_tile = tl.load(values + source, mask=copied, other=0.0)
    if key_scales is not None:
        scale_at = slots * tl.num_programs(1) + head
        key_tile = key_tile.to(tl.float32) * tl.load(key_scales + scale_at, mask=held, other=0.0)[:, None]
        value_tile = value_tile.to(tl.float32) * tl.load(value_scales + scale_at, mask=held, other=0.0)[:, None]
    tl.store(scratch_keys + target, key_tile.to(scratch_keys.dtype.element_ty), mask=copied)
    tl.store(scratch_values + target, value_tile.to(scratch_values.dtype.element_ty), mask=copied)
