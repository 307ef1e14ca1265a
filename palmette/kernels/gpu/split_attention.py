"""Attention of few queries over one cut of keys: decode, siblings of a fork, short extends and nodes of a choice trie.

    partial = softmax(s) V,   lse = log2(sum_k 2^s_k)        s = log2(e) * cap(scale * q K^T), over the item's keys

The definition of a whole step is `kernels.paged_attention`; this is one item of it after the other, as
`kernels.paged_plan` lists them, and `merge_partials` puts the items of a token together. The cases differ in the list
alone: an item of one query is split-KV decoding (Dao et al. 2023, "Flash-Decoding"), an item whose queries belong to
siblings reads their common keys once (Juravsky et al. 2024, arXiv 2402.05099, section 3).

    page table   [ ......first ========== end ..... ]        one item: keys first .. end, within one cut
                          |  tile | tile | tile |             tiles of BLOCK_N at multiples of it
    rows of a tile:  pair 0, heads h*r .. h*r + r-1 | pair 1, the same heads | ... | nothing, up to BLOCK_M

Queries of the r heads that share a KV head stand below each other, so a tile has pairs * r real rows, and one product
for the matrix units. Softmax is online (Milakov & Gimelshein 2018, arXiv 1805.02867) in base 2, in float32. Tiles that
somebody does not see wholly are computed with masks, all others without, by the same operations: what a row computes
depends on BLOCK_M and on the keys that it sees, never on the other rows. What no row sees is not read.

A fixed number of programs shares items x KV heads, KV head innermost as in the pool; the number of items is read on the
device. The next tile's keys and values are on their way while a tile is computed, slots a tile further ahead.

Shapes: q (num_tokens, num_heads, head_dim), pools (num_slots, num_kv_heads, head_dim), any head_dim, padded to a power
of two. Pools of codes: scores times the key's scale, weights times the value's. Offsets into pools are 64 bits wide.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from palmette.kernels.gpu.launch import LOG2_E, dot_dtype, num_processors, padded
from palmette.kernels.kv_store import KVLayer
from palmette.kernels.paged_plan import PagedPlan, SplitWork


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """How the kernel is launched; moves speed and, but for `programs`, the rounding."""

    block_n: int  # keys of a tile: a power of two, >= 16, that divides the plan's cut
    num_warps: int
    num_stages: int  # of the pipeline: 1 + 2 for each tile on its way, as slots come before keys
    programs: int  # for each processor: no more than it holds at once, as all get the same share
    registers: int | None = None  # of a thread at most; None: as many as the compiler likes


def split_config(*, head_dim: int, block_m: int, cut: int, q_size: int, pool_size: int) -> SplitConfig:
    """What is launched when nobody chooses: of shapes alone, so that the same token always takes the same way.

    In each program two tiles of 32 KB are on their way, three of codes. Programs that hold 16 rows share a processor in
    threes, which 168 registers a thread allow; nothing spills within a loop then. Wide tiles keep their sums in the
    registers of 8 warps where 4 would spill. Products of float32 do not use the matrix units: small tiles, and wide
    blocks spill (plans for float32 want a block_m of 16).

    Args:
        q_size, pool_size: bytes of an element.
    """
    wide = padded(head_dim)
    block_n = max(16, min(128, 2**14 // (wide * max(q_size, pool_size)) // (2 if q_size == 4 else 1)))
    while cut % block_n and block_n > 16:
        block_n //= 2
    heavy = wide >= 128 if q_size == 4 else block_m >= 64 and (wide >= 256 or pool_size == 1)
    warps = 8 if block_m >= 128 or heavy else 4
    programs = 1 if warps == 8 else 2 if block_m > 16 else 3
    return SplitConfig(
        block_n=block_n,
        num_warps=warps,
        num_stages=7 if pool_size == 1 else 5,
        programs=programs,
        registers=168 if programs == 3 else None,
    )


def split_attention(
    q: Tensor,
    kv: KVLayer,
    plan: PagedPlan,
    work: SplitWork,
    partials: Tensor,
    lse: Tensor,
    *,
    scale: float,
    soft_cap: float | None = None,
    config: SplitConfig | None = None,
) -> None:
    """Fill the partials that the items' pairs name; others stay as they are.

    Args:
        q: (num_tokens, num_heads, head_dim), contiguous: bfloat16, float16 or float32.
        kv: pools with contiguous heads; slots may lie at any distance.
        partials: (num_partials, num_heads, head_dim) float32, contiguous: result of the item's keys alone, zero where
            a query sees none of them.
        lse: (num_partials, num_heads) float32: base-2 logarithm of the softmax's denominator; -inf for no key.
        scale: factor on the scores, > 0.
        soft_cap: scores become soft_cap * tanh(scores / soft_cap).
    """
    _, num_heads, head_dim = q.shape
    num_kv_heads = kv.keys.shape[1]
    r = num_heads // num_kv_heads
    config = config or split_config(
        head_dim=head_dim,
        block_m=work.block_m,
        cut=plan.cut,
        q_size=q.element_size(),
        pool_size=kv.keys.element_size(),
    )
    assert r * num_kv_heads == num_heads, f"{num_heads} heads over {num_kv_heads} KV heads"
    assert r <= work.block_m, f"block_m {work.block_m} holds no pair of {r} heads"
    assert plan.cut % config.block_n == 0, f"cut {plan.cut} is no multiple of the tile, {config.block_n} keys"
    assert scale > 0, f"scale {scale}"
    assert max(q.numel(), partials.numel()) < 2**31, "offsets into queries and partials are 32 bits wide"
    assert kv.keys.stride() == kv.values.stride() == (kv.keys.stride(0), head_dim, 1), (
        "heads of a slot lie side by side"
    )
    most = work.items.shape[0] * num_kv_heads
    if not most:
        return
    product = dot_dtype(q.dtype)
    split_attention_kernel[(min(most, config.programs * num_processors(q.device)),)](
        q,
        kv.keys,
        kv.values,
        kv.key_scales,
        kv.value_scales,
        plan.page_table,
        plan.last_keys,
        plan.positions,
        plan.trees,
        plan.tree_words,
        work.items,
        work.num_items,
        work.pairs,
        partials,
        lse,
        2.0 * LOG2_E * scale / soft_cap if soft_cap else 0.0,
        (soft_cap if soft_cap else scale) * LOG2_E,
        plan.window or 0,
        kv.keys.stride(0),
        plan.page_table.stride(0),
        num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_D=padded(head_dim),
        R=r,
        BLOCK_M=work.block_m,
        BLOCK_N=config.block_n,
        CAP=soft_cap is not None,
        WINDOW=plan.window is not None,
        TREES=plan.trees is not None and plan.tree_words is not None,
        SCALES=kv.key_scales is not None,
        DOT_DTYPE=product,
        # weights times value scales leave the range of fp16
        VALUE_DTYPE=tl.bfloat16 if kv.value_scales is not None and product == tl.float16 else product,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        maxnreg=config.registers,
    )


@triton.jit
def split_attention_kernel(
    q,
    keys,
    values,
    key_scales,
    value_scales,
    page_table,
    last_keys,
    positions,
    trees,
    tree_words,
    items,
    num_items,
    pairs,
    partials,
    lse,
    inner,  # with CAP: scores times this are twice the argument of tanh, in base 2
    outer,  # what scores, or tanh of them, are multiplied by: the units of 2^x
    window,
    slot_stride,
    table_stride,
    num_kv_heads,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    TREES: tl.constexpr,
    SCALES: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    VALUE_DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    num_heads = num_kv_heads * R
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    real_d = d < HEAD_DIM
    for task in range(tl.program_id(0), tl.load(num_items) * num_kv_heads, tl.num_programs(0)):
        kv_head = task % num_kv_heads
        item = items + task // num_kv_heads * 6
        table = page_table + tl.load(item).to(tl.int64) * table_stride
        begin = tl.load(item + 1)
        end = tl.load(item + 2)
        first_row = tl.load(item + 3) * R
        end_row = first_row + tl.load(item + 4) * R
        masked = tl.load(item + 5)

        row = first_row + m
        real = row < end_row
        pair = pairs + row // R * 2
        token = tl.load(pair, mask=real, other=0)
        head = kv_head * R + row % R
        q_at = (token * num_heads + head)[:, None] * HEAD_DIM + d[None, :]
        queries = tl.load(q + q_at, mask=real[:, None] & real_d[None, :], other=0.0).to(DOT_DTYPE)

        top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        key_base = keys + kv_head * HEAD_DIM
        value_base = values + kv_head * HEAD_DIM

        # Whole tiles that every row sees. None if somebody misses something; none that begins before `begin`.
        tiles_begin = begin // BLOCK_N * BLOCK_N
        free_end = tl.where((masked != 0) | (tiles_begin != begin), tiles_begin, end // BLOCK_N * BLOCK_N)
        for k in range(tiles_begin, free_end, BLOCK_N):
            slot = tl.load(table + k + n).to(tl.int64)
            at = (slot * slot_stride)[:, None] + d[None, :]
            if HEAD_DIM == BLOCK_D:
                kt = tl.load(key_base + at)
                vt = tl.load(value_base + at)
            else:
                kt = tl.load(key_base + at, mask=real_d[None, :], other=0.0)
                vt = tl.load(value_base + at, mask=real_d[None, :], other=0.0)
            s = tl.dot(queries, tl.trans(kt.to(DOT_DTYPE)), input_precision=PRECISION)
            if SCALES:
                s = s * tl.load(key_scales + slot * num_kv_heads + kv_head)[None, :]
            if CAP:
                s = 1.0 - 2.0 / (tl.exp2(s * inner) + 1.0)
            new_top = tl.maximum(top, tl.max(s, 1) * outer)
            p = tl.exp2(s * outer - new_top[:, None])
            fade = tl.exp2(top - new_top)
            total = total * fade + tl.sum(p, 1)
            if SCALES:
                p = p * tl.load(value_scales + slot * num_kv_heads + kv_head)[None, :]
            acc = tl.dot(p.to(VALUE_DTYPE), vt.to(VALUE_DTYPE), acc * fade[:, None], input_precision=PRECISION)
            top = new_top

        if free_end < end:
            # What lies before and behind all that the rows see may be anybody's: it is not read.
            last = tl.load(last_keys + token, mask=real, other=-1)
            row_begin, row_end = tl.zeros((BLOCK_M,), tl.int32), last + 1
            if WINDOW:
                after = tl.load(positions + token, mask=real, other=0) - window
                row_begin = tl.minimum(after, last) + 1  # nodes that a row sees begin behind its last key
            if TREES:
                first_word = tl.load(trees + token * 2, mask=real, other=0)
                num_bits = tl.load(trees + token * 2 + 1, mask=real, other=0)
                row_end += num_bits
            wanted_begin = tl.maximum(begin, tl.min(tl.where(row_end > 0, row_begin, end), 0))
            wanted_end = tl.minimum(end, tl.max(row_end, 0))
            for k in tl.range(free_end, end, BLOCK_N, num_stages=1):
                index = k + n
                wanted = (index >= wanted_begin) & (index < wanted_end)
                seen = index[None, :] <= last[:, None]
                if WINDOW:
                    seen = seen & (index[None, :] > after[:, None])
                if TREES:
                    # The tile's bits, row by row: 32 of them straddle two words.
                    bit = k - last - 1
                    shift = (bit & 31).to(tl.uint32)
                    low = _word_of_tree(tree_words, first_word, num_bits, bit >> 5)
                    bits = tl.zeros((BLOCK_M, BLOCK_N), tl.uint32)
                    for i in tl.static_range((BLOCK_N + 31) // 32):
                        high = _word_of_tree(tree_words, first_word, num_bits, (bit >> 5) + (i + 1))
                        aligned = (low >> shift) | ((high << 1) << (31 - shift))
                        bits = tl.where((n // 32 == i)[None, :], aligned[:, None], bits)
                        low = high
                    seen = seen | (((bits >> (n % 32).to(tl.uint32)[None, :]) & 1) != 0)
                seen = seen & wanted[None, :]
                slot = tl.load(table + index, mask=wanted, other=0).to(tl.int64)
                at = (slot * slot_stride)[:, None] + d[None, :]
                kt = tl.load(key_base + at, mask=wanted[:, None] & real_d[None, :], other=0.0)
                vt = tl.load(value_base + at, mask=wanted[:, None] & real_d[None, :], other=0.0)
                s = tl.dot(queries, tl.trans(kt.to(DOT_DTYPE)), input_precision=PRECISION)
                if SCALES:
                    s = s * tl.load(key_scales + slot * num_kv_heads + kv_head, mask=wanted, other=0.0)[None, :]
                if CAP:
                    s = 1.0 - 2.0 / (tl.exp2(s * inner) + 1.0)
                s = tl.where(seen, s, float("-inf"))
                new_top = tl.maximum(top, tl.max(s, 1) * outer)
                base = tl.where(new_top == float("-inf"), 0.0, new_top)  # nothing seen yet: 2^-inf, not 2^NaN
                p = tl.exp2(s * outer - base[:, None])
                fade = tl.exp2(top - base)
                total = total * fade + tl.sum(p, 1)
                if SCALES:
                    p = p * tl.load(value_scales + slot * num_kv_heads + kv_head, mask=wanted, other=0.0)[None, :]
                acc = tl.dot(p.to(VALUE_DTYPE), vt.to(VALUE_DTYPE), acc * fade[:, None], input_precision=PRECISION)
                top = new_top

        nothing = total == 0.0
        result = acc / tl.where(nothing, 1.0, total)[:, None]
        partial = tl.load(pair + 1, mask=real, other=0)
        result_at = (partial * num_heads + head)[:, None] * HEAD_DIM + d[None, :]
        tl.store(partials + result_at, result, mask=real[:, None] & real_d[None, :])
        # 2^(top - top) is in the total, so that its logarithm is at least 0 but for rows that see nothing
        log_total = tl.where(nothing, float("-inf"), top + tl.log2(tl.where(nothing, 1.0, total)))
        tl.store(lse + partial * num_heads + head, log_total, mask=real)


@triton.jit
def _word_of_tree(tree_words, first_word, num_bits, i):
    """Word i of each row's tree, with 0 for bits that it does not have."""
    left = num_bits - i * 32
    word = tl.load(tree_words + first_word + i, mask=(i >= 0) & (left > 0), other=0).to(tl.uint32, bitcast=True)
    kept = (tl.full(i.shape, 1, tl.uint32) << (left & 31).to(tl.uint32)) - 1
    return tl.where(left < 32, word & kept, word)
