"""Attention of many new tokens to all that came before them; defined by `kernels.paged_attention`.

    o_t = sum over k of softmax_k(cap(scale * q_t k_k)) v_k          over the keys k that token t sees

The keys go by in tiles; a row of queries keeps m, the largest score so far, l = sum of 2^(s - m) and acc = sum of
2^(s - m) v, scores s in base 2, and rescales l and acc by 2^(m - m') where a tile raises m to m' (online softmax and
the query-outer loop of FlashAttention-2, Dao, arXiv 2307.08691, section 3.1). Query heads that read one KV head stand
in one tile with it, so keys and values are read once for all of them (packing as in FlashAttention-3's "pack GQA",
Shah et al., arXiv 2407.08608):

    row m of a tile:   token first_token + m // R,  query head kv_head * R + m % R,     R = num_heads // num_kv_heads
    rows num_tokens * R .. BLOCK_M:  nothing; they are computed and not stored

A tile walks its keys in up to three loops, cut at whole key tiles:

    begin          free_begin                      free_end        end
      | window edge | every query sees every key      | causal, tree |
      `-- masked ---+---------- no mask --------------+--- masked ---'

In the masked loops keys outside what the tile may read (behind `end`, before every window) are loaded as zeros: a
hidden key has the weight 0, but 0 * NaN is NaN.

Layouts: q, out (num_tokens, num_heads, head_dim), heads contiguous. Paged keys and values (num_slots, num_kv_heads,
head_dim), of q's dtype or 8-bit codes with scales (num_slots, num_kv_heads), through page_table[row, k]; gathered ones
(num_kv_heads, scratch_len, head_dim) at row offset + k, by pointers or by the bulk copy engine (TMA), whose
descriptors are made on the host. One program a tile and KV head; programs of one KV head are neighbours, so that those
that run at once share its keys in L2, and the plan's order, longest first, is kept within a head.

Products take bf16/fp16 operands and add in float32; float32 queries multiply in float32. Key scales multiply scores,
value scales multiply weights behind the sum l, so codes enter the products as they are.

Blocks, all powers of two >= 16: BLOCK_M holds a tile's rows; BLOCK_N keys a step without a mask, a divisor of the
plan's cut, and MASKED_N <= 64 with one; BLOCK_D = head_dim rounded up, what is behind head_dim zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from palmette.errors import InvalidOption
from palmette.kernels.gpu.launch import LOG2_E, dot_dtype, padded
from palmette.kernels.kv_store import KVLayer
from palmette.kernels.paged_plan import ExtendWork, PagedPlan


@dataclass(frozen=True, slots=True)
class ExtendConfig:
    """How a tile is computed. Changes speed; block_n also the rounding of results."""

    block_n: int  # keys of one step of the loop: a power of two, >= 16
    num_warps: int  # at most; a warp has 16 rows of a tile at least, so that four of them fill the matrix units
    num_stages: int  # key tiles in shared memory: the one in use and those on their way
    bulk_copy: bool = False  # gathered keys come by TMA in the loop without masks

    def warps_of(self, block_m: int) -> int:
        return min(self.num_warps, max(4, block_m // 16))

    def stages_of(self, *, paged: bool) -> int:
        """What the compiler is told: it counts the loads of slots, on which those of keys wait, as stages too."""
        return 2 * self.num_stages - 1 if paged else self.num_stages


# For half precision, by head_dim rounded up to a power of two; the first is taken where nobody asks for another. One
# multiprocessor holds one program of the large ones, and two of ExtendConfig(64, 8, 3) with head_dim 64.
CONFIGS: dict[int, tuple[ExtendConfig, ...]] = {
    16: (ExtendConfig(64, 8, 3),),
    32: (ExtendConfig(64, 8, 3),),
    64: (ExtendConfig(64, 8, 3), ExtendConfig(128, 8, 3), ExtendConfig(64, 8, 3, True), ExtendConfig(128, 8, 3, True)),
    128: (
        ExtendConfig(128, 8, 3),
        ExtendConfig(128, 8, 2),
        ExtendConfig(64, 8, 3),
        ExtendConfig(64, 8, 4),
        ExtendConfig(128, 8, 3, True),
        ExtendConfig(64, 8, 4, True),
    ),
    256: (ExtendConfig(64, 8, 2), ExtendConfig(32, 8, 3), ExtendConfig(64, 8, 2, True)),
}
# The same where keys are read as 8-bit codes, whose conversion takes registers.
CODE_CONFIGS: dict[int, tuple[ExtendConfig, ...]] = {
    **{block_d: (ExtendConfig(64, 8, 3), ExtendConfig(64, 8, 2)) for block_d in (16, 32, 64, 128)},
    256: (ExtendConfig(32, 8, 3), ExtendConfig(32, 8, 2)),
}
_FULL_PRECISION = ExtendConfig(32, 8, 1)  # float32 has no matrix units to feed, and needs twice the registers


def extend_attention(
    q: Tensor,
    kv: KVLayer,
    plan: PagedPlan,
    work: ExtendWork,
    out: Tensor,
    *,
    scale: float,
    soft_cap: float | None = None,
    scratch: tuple[Tensor, Tensor] | None = None,
    config: ExtendConfig | None = None,
) -> None:
    """Write the results of the work's tokens to `out`; other tokens' are left as they are.

    Args:
        q: (num_tokens, num_heads, head_dim), any float dtype; the last two dimensions contiguous.
        kv: values laid out as keys are, head_dim contiguous.
        out: like q.
        scale: factor on the scores, > 0.
        soft_cap: scores become soft_cap * tanh(scores / soft_cap).
        scratch: keys and values (num_kv_heads, scratch_len, head_dim) in q's dtype, as gather_rows left them; needed
            where `work.gathered` is given, and not used otherwise.
        config: one of CONFIGS, CODE_CONFIGS, or another; None takes the first that is listed for the head dimension.
    """
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = kv.keys.shape[1]
    r = num_heads // num_kv_heads
    num_tiles = work.tiles.shape[0]
    if not num_tiles:
        return
    block_m, block_d = padded(work.tile_tokens * r), padded(head_dim)
    if block_d not in CONFIGS:
        raise InvalidOption("head_dim", head_dim, "at most 256")
    if work.gathered is None:
        keys, values, key_scales, value_scales = kv
        row_stride, head_stride = keys.stride(0), keys.stride(1)
    elif scratch is None:
        raise InvalidOption("scratch", None, "work with gathered keys needs the scratch that gather_rows filled")
    else:
        (keys, values), key_scales, value_scales = scratch, None, None
        row_stride, head_stride = keys.stride(1), keys.stride(0)
    scaled = key_scales is not None
    if config is None:
        config = _FULL_PRECISION if q.dtype == torch.float32 else (CODE_CONFIGS if scaled else CONFIGS)[block_d][0]
    block_n = min(config.block_n, plan.cut & -plan.cut)
    if block_n < 16:
        raise InvalidOption("cut", plan.cut, "a multiple of 16, the smallest key tile")
    key_blocks = value_blocks = None
    if config.bulk_copy and work.gathered is not None:
        key_blocks, value_blocks = (_blocks(x, block_n, block_d) for x in (keys, values))
    product = dot_dtype(q.dtype)
    extend_attention_kernel[(num_tiles * num_kv_heads,)](
        q,
        keys,
        values,
        key_scales,
        value_scales,
        key_blocks,
        value_blocks,
        plan.page_table,
        plan.last_keys,
        plan.positions,
        plan.trees,
        plan.tree_words,
        work.tiles,
        out,
        scale * LOG2_E if soft_cap is None else 2.0 * LOG2_E * scale / soft_cap,
        1.0 if soft_cap is None else LOG2_E * soft_cap,
        plan.window or 0,
        num_tiles,
        q.stride(0),
        out.stride(0),
        row_stride,
        head_stride,
        plan.page_table.stride(0),
        R=r,
        HEAD_DIM=head_dim,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        MASKED_N=masked_tile(block_n, block_d),
        BLOCK_D=block_d,
        GATHERED=work.gathered is not None,
        WINDOWED=plan.window is not None,
        CAPPED=soft_cap is not None,
        TREES=plan.trees is not None and plan.tree_words is not None,
        DOT_DTYPE=product,
        # weights times value scales leave the range of fp16
        VALUE_DTYPE=tl.bfloat16 if scaled and product == tl.float16 else product,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=config.warps_of(block_m),
        num_stages=config.stages_of(paged=work.gathered is None),
    )


def masked_tile(block_n: int, block_d: int) -> int:
    """Keys of one step of a masked loop: fewer, for masks take registers, and the edges are short."""
    return min(block_n, 32 if block_d > 128 else 64)


@triton.jit(do_not_specialize=["num_tiles"])  # any number of tiles is the same kernel
def extend_attention_kernel(
    q,
    keys,
    values,
    key_scales,
    value_scales,
    key_blocks,
    value_blocks,
    page_table,
    last_keys,
    positions,
    trees,
    tree_words,
    tiles,
    out,
    score_scale,
    cap_scale,
    window,
    num_tiles,
    q_stride,
    out_stride,
    row_stride,
    head_stride,
    table_stride,
    R: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GATHERED: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    TREES: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    VALUE_DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    kv_head = tl.program_id(0) // num_tiles
    tile = tiles + (tl.program_id(0) % num_tiles) * 8
    table_row, first_token, num_tokens = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    begin, free_begin, free_end = tl.load(tile + 3), tl.load(tile + 4), tl.load(tile + 5)
    end, offset = tl.load(tile + 6), tl.load(tile + 7)

    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    real = m < num_tokens * R
    tokens = first_token + m // R
    heads = kv_head * R + m % R
    at = (heads * HEAD_DIM)[:, None] + d[None, :]
    stored = real[:, None] & (d < HEAD_DIM)[None, :]
    q_tile = tl.load(q + tokens.to(tl.int64)[:, None] * q_stride + at, mask=stored, other=0.0).to(DOT_DTYPE)

    last = tl.load(last_keys + tokens, mask=real, other=-1)
    first_word = tl.zeros_like(last)
    num_bits = tl.zeros_like(last)
    if TREES:
        first_word = tl.load(trees + tokens * 2, mask=real, other=0)
        num_bits = tl.load(trees + tokens * 2 + 1, mask=real, other=0)
    oldest = tl.full([BLOCK_M], -1, tl.int32)  # a token sees the keys behind it, up to `last`
    first_seen = begin  # by some query
    if WINDOWED:
        oldest = tl.load(positions + tokens, mask=real, other=0) - window
        first_seen = tl.maximum(begin, tl.min(tl.where(real, tl.minimum(oldest, last), end) + 1))

    # low .. high: whole key tiles that every query sees
    low = begin + tl.cdiv(tl.maximum(tl.minimum(free_begin, end) - begin, 0), MASKED_N) * MASKED_N
    high = low + tl.maximum(free_end - low, 0) // BLOCK_N * BLOCK_N

    head_at = kv_head.to(tl.int64) * head_stride
    table = page_table + table_row.to(tl.int64) * table_stride
    first_block = kv_head * (head_stride // HEAD_DIM) + offset  # scratch row of key 0, of all heads' rows
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for part in tl.static_range(0 if WINDOWED else 1, 3):
        acc, largest, total = _walk(
            acc,
            largest,
            total,
            begin if part == 0 else (low if part == 1 else high),
            low if part == 0 else (high if part == 1 else tl.maximum(high, end)),
            q_tile,
            keys + head_at,
            values + head_at,
            key_scales,
            value_scales,
            key_blocks,
            value_blocks,
            table,
            tree_words,
            last,
            oldest,
            first_word,
            num_bits,
            first_seen,
            end,
            offset,
            first_block,
            kv_head,
            tl.num_programs(0) // num_tiles,
            score_scale,
            cap_scale,
            row_stride,
            HEAD_DIM,
            BLOCK_N if part == 1 else MASKED_N,
            BLOCK_D,
            part != 1,
            GATHERED,
            WINDOWED,
            CAPPED,
            TREES,
            DOT_DTYPE,
            VALUE_DTYPE,
            PRECISION,
        )

    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + tokens.to(tl.int64)[:, None] * out_stride + at, result.to(out.dtype.element_ty), mask=stored)


@triton.jit
def _walk(
    acc,
    largest,
    total,
    start,
    stop,
    q_tile,
    keys,
    values,
    key_scales,
    value_scales,
    key_blocks,
    value_blocks,
    table,
    tree_words,
    last,
    oldest,
    first_word,
    num_bits,
    first_seen,
    end,
    offset,
    first_block,
    kv_head,
    num_kv_heads,
    score_scale,
    cap_scale,
    row_stride,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
    GATHERED: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    TREES: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    VALUE_DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fold the keys start .. stop in tiles of BLOCK_N into acc, largest and total; returns them."""
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    blocks: tl.constexpr = key_blocks is not None and not MASKED
    for first in tl.range(start, stop, BLOCK_N, num_stages=2 if MASKED else None):
        k = first + n
        some = (k >= first_seen) & (k < end)
        if GATHERED:  # neighbours: one address, and distances that are known
            moved = (offset + first).to(tl.int64) * HEAD_DIM
            at = n[:, None] * HEAD_DIM + d[None, :]
        else:
            if MASKED:
                rows = tl.load(table + k, mask=some, other=0).to(tl.int64)
            else:
                rows = tl.load(table + k).to(tl.int64)
            moved = 0
            at = rows[:, None] * row_stride + d[None, :]
        if MASKED:
            wanted = some[:, None] & (d < HEAD_DIM)[None, :]
        else:
            wanted = tl.broadcast_to((d < HEAD_DIM)[None, :], [BLOCK_N, BLOCK_D])

        # scores in base 2, or what becomes them by a factor
        if blocks:
            key_tile = key_blocks.load([first_block + first, 0])
        elif MASKED or HEAD_DIM != BLOCK_D:
            key_tile = tl.load(keys + moved + at, mask=wanted, other=0.0)
        else:
            key_tile = tl.load(keys + moved + at)
        scores = tl.dot(q_tile, tl.trans(key_tile.to(DOT_DTYPE)), input_precision=PRECISION)
        if key_scales is not None:
            scale_at = rows * num_kv_heads + kv_head
            if MASKED:
                scores *= tl.load(key_scales + scale_at, mask=some, other=0.0)[None, :]
            else:
                scores *= tl.load(key_scales + scale_at)[None, :]
        if CAPPED:  # tanh(x) = 1 - 2 / (e^(2 x) + 1), which holds at both ends
            scores = cap_scale - 2.0 * cap_scale / (tl.exp2(scores * score_scale) + 1.0)
        if MASKED:
            seen = k[None, :] <= last[:, None]
            if WINDOWED:
                seen &= k[None, :] > oldest[:, None]
            if TREES:
                node = first - last - 1  # that the tile's first key is
                bits = _bits(tree_words, first_word, num_bits, node)[:, None]
                if BLOCK_N > 32:
                    tl.static_assert(BLOCK_N == 64)
                    bits = tl.where(
                        (n < 32)[None, :], bits, _bits(tree_words, first_word, num_bits, node + 32)[:, None]
                    )
                seen |= ((bits >> (n & 31)[None, :]) & 1) != 0
            scores = tl.where(seen, scores, float("-inf"))

        factor = 1.0 if CAPPED else score_scale
        raised = tl.maximum(largest, tl.max(scores, 1) * factor)
        if MASKED:  # a query that has seen nothing yet
            shift = tl.where(raised == float("-inf"), 0.0, raised)
        else:
            shift = raised
        weights = tl.exp2(scores * factor - shift[:, None])
        shrink = tl.exp2(largest - shift)
        total = total * shrink + tl.sum(weights, 1)
        largest = raised
        if value_scales is not None:
            if MASKED:
                weights *= tl.load(value_scales + scale_at, mask=some, other=0.0)[None, :]
            else:
                weights *= tl.load(value_scales + scale_at)[None, :]

        acc = acc * shrink[:, None]
        if blocks:
            value_tile = value_blocks.load([first_block + first, 0])
        elif MASKED or HEAD_DIM != BLOCK_D:
            value_tile = tl.load(values + moved + at, mask=wanted, other=0.0)
        else:
            value_tile = tl.load(values + moved + at)
        acc = tl.dot(weights.to(VALUE_DTYPE), value_tile.to(VALUE_DTYPE), acc, input_precision=PRECISION)
    return acc, largest, total


@triton.jit
def _bits(tree_words, first_word, num_bits, node):
    """Bits node .. node + 31 of each query's words, zeros outside 0 .. num_bits. A load for each key instead would cost
    an address for each."""
    word = node >> 5
    low = _word(tree_words, first_word, num_bits, word)
    high = _word(tree_words, first_word, num_bits, word + 1)
    shift = (node & 31).to(tl.uint32)
    return (low >> shift) | ((high << 1) << (31 - shift))


@triton.jit
def _word(tree_words, first_word, num_bits, word):
    left = num_bits - word * 32  # bits of this word and those behind it
    value = tl.load(tree_words + first_word + word, mask=(word >= 0) & (left > 0), other=0).to(tl.uint32, bitcast=True)
    kept = tl.full(value.shape, 0xFFFFFFFF, tl.uint32) >> tl.minimum(tl.maximum(32 - left, 0), 31).to(tl.uint32)
    return value & kept


def _blocks(x: Tensor, block_n: int, block_d: int) -> Any:
    """Rows of all heads, as the bulk copy engine fetches them."""
    head_dim = x.shape[-1]
    return TensorDescriptor(x, [x.shape[0] * x.shape[1], head_dim], [head_dim, 1], [block_n, block_d])
