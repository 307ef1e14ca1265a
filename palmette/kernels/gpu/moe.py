"""Mixture of experts, from the router's logits to the weighted sum; defined by `kernels.moe`.

    sort    `expert_pairs`: pairs (token, expert) by expert, cut into blocks of BLOCK_M, none with two experts
    gemm 1  inner[i] = activation(gate_e(x[token])) * up_e(x[token])    i a place in `pairs`: rows gathered, not copied
    gemm 2  parts[pair] = down_e(inner[i])                              rows written where their token will look
    sum     out[t] = sum over j of weights[t, j] * parts[t * top_k + j], in float32, by rising expert

    x, out (num_tokens, hidden); gate_up (num_experts, 2 * intermediate, hidden), gate first; down (num_experts, hidden,
    intermediate); all of one dtype and contiguous. inner and parts are rounded to it, sums are float32.

The host knows how many pairs there are and not where they go: the grid is as large as the worst routing needs, and
programs without a block return. A block's product is one matrix of `width` weight rows by BLOCK_M tokens. For gemm 1
these rows are width / 2 of gate's and the same of up's, so that one pass makes both halves of what is multiplied. Few
tokens: the weights are the left operand, which Hopper's matrix units take from shared memory, 64 rows and more at a
time, and the tokens need be no more than 16; experts that nobody chose are not read. Many tokens: the tokens are the
left operand.

A row of a product depends on its own token alone: dead rows of a block, and what a last tile has behind the end of the
columns or the depth, are read as zeros. No atomics. Idea of grouping the products by expert: Gale et al. 2023,
MegaBlocks, arXiv 2211.15841, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from palmette.kernels.gpu.expert_pairs import CHUNK, max_blocks, route_and_sort
from palmette.kernels.gpu.launch import dot_dtype, num_processors, padded
from palmette.kernels.linear import linear

_GROUP = 8  # blocks that follow each other for the same columns, so that they find each other's weights in the L2 cache
_SUM_BLOCK = 1024  # columns of a program of `sum`


@dataclass(frozen=True, slots=True)
class Tiles:
    """What one program of a grouped product computes."""

    block_m: int  # pairs
    width: int  # weight rows; of the first product half are gate's and half up's
    block_k: int
    num_warps: int
    num_stages: int


def experts(
    x: Tensor,
    router: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    top_k: int,
    normalise: bool,
    activation: Literal["silu", "gelu_tanh"] = "silu",
) -> Tensor:
    """See kernels.moe.experts; contiguous tensors."""
    logits = linear(x, router)
    return moe(x, logits, gate_up, down, top_k=top_k, normalise=normalise, activation=activation)


def moe(
    x: Tensor,
    logits: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    top_k: int,
    normalise: bool,
    activation: Literal["silu", "gelu_tanh"] = "silu",
    tiles: tuple[Tiles, Tiles] | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """See kernels.moe.moe; contiguous tensors.

    Args:
        tiles: of the two products; chosen by shape when None.
        chunk: see expert_pairs.CHUNK.
    """
    (num_tokens, hidden), (num_experts, _, inner_size) = x.shape, down.shape
    out = torch.empty_like(x)
    if num_tokens == 0:
        return out
    assert all(t.is_contiguous() for t in (x, logits, gate_up, down)), "rows lie one behind the other"
    num_pairs = num_tokens * top_k
    first, second = tiles or choose_tiles(
        num_pairs, num_experts, hidden=hidden, inner=inner_size, dtype=x.dtype, processors=num_processors(x.device)
    )
    weights, pairs, blocks = route_and_sort(
        logits, top_k=top_k, normalise=normalise, block_m=first.block_m, chunk=chunk
    )
    inner = torch.empty((num_pairs, inner_size), dtype=x.dtype, device=x.device)
    parts = torch.empty((num_pairs, hidden), dtype=x.dtype, device=x.device)
    _product(x, gate_up, inner, pairs, blocks, first, top_k=top_k, activation=activation)
    _product(inner, down, parts, pairs, blocks, second, top_k=top_k, activation=None)
    block = min(_SUM_BLOCK, padded(hidden))
    weighted_sum_kernel[(num_tokens, triton.cdiv(hidden, block))](
        parts, weights, out, hidden, TOP_K=top_k, BLOCK=block, num_warps=max(1, block // 256)
    )
    return out


def choose_tiles(
    num_pairs: int, num_experts: int, *, hidden: int, inner: int, dtype: torch.dtype, processors: int
) -> tuple[Tiles, Tiles]:
    """Tiles of the two products, from what the host knows: how many pairs there are, not where they go."""
    block_m = 16 if num_pairs <= 8 * num_experts else 32 if num_pairs <= 16 * num_experts else 64
    if num_pairs > 48 * num_experts:
        block_m = 128
    if dtype == torch.float32:  # no matrix units: small tiles, or registers run out
        block_m = min(block_m, 32)
    blocks = max_blocks(num_pairs, num_experts, block_m)

    def tiles(rows: int, depth: int) -> Tiles:
        # Enough programs for every multiprocessor to have several, as each waits for memory most of the time.
        many = blocks * triton.cdiv(rows, 128) >= 4 * processors
        if dtype == torch.float32:
            width, block_k, num_warps, num_stages = 64, 32, 4, 2
        elif block_m == 128:
            width, block_k, num_warps, num_stages = 256, 64, 8, 3
        else:
            width, block_k, num_warps, num_stages = (128, 64, 4, 4) if many else (64, 128, 4, 4)
        return Tiles(block_m, min(width, padded(rows, least=32)), min(block_k, padded(depth)), num_warps, num_stages)

    return tiles(2 * inner, hidden), tiles(hidden, inner)


# -- products ----------------------------------------------------------------------------------------------------------


def _product(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    pairs: Tensor,
    blocks: Tensor,
    tiles: Tiles,
    *,
    top_k: int,
    activation: Literal["silu", "gelu_tanh"] | None,
) -> None:
    """With an activation, the first product: rows of x by token, rows of out by place; without one, the second."""
    columns, depth = out.shape[1], x.shape[1]
    block_n = tiles.width // 2 if activation else tiles.width
    most = blocks.shape[0] - 1
    grouped_product_kernel[(most * triton.cdiv(columns, block_n),)](
        x,
        weight,
        out,
        pairs,
        blocks,
        most,
        columns,
        depth,
        TOP_K=top_k,
        ACTIVATION=activation or "none",
        BLOCK_M=tiles.block_m,
        BLOCK_N=block_n,
        BLOCK_K=tiles.block_k,
        GROUP=_GROUP,
        EVEN_N=columns % block_n == 0,
        EVEN_K=depth % tiles.block_k == 0,
        DOT_DTYPE=dot_dtype(x.dtype),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )


@triton.jit
def grouped_product_kernel(
    x,
    weight,
    out,
    pairs,
    blocks,
    most,
    columns,
    depth,
    TOP_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
):
    """A block by BLOCK_N columns a program; GROUP blocks after each other have the same columns."""
    GATED: tl.constexpr = ACTIVATION != "none"
    WIDTH: tl.constexpr = 2 * BLOCK_N if GATED else BLOCK_N
    WEIGHT_LEFT: tl.constexpr = BLOCK_M < 64  # see the module

    group_size = GROUP * tl.cdiv(columns, BLOCK_N)
    group = tl.program_id(0) // group_size
    size = tl.minimum(most - group * GROUP, GROUP)
    block = group * GROUP + tl.program_id(0) % group_size % size
    first_column = tl.program_id(0) % group_size // size * BLOCK_N
    expert = tl.load(blocks + 3 + block * 3)
    begin = tl.load(blocks + 4 + block * 3)
    end = tl.load(blocks + 5 + block * 3)
    if block >= tl.load(blocks):
        return

    places = begin + tl.arange(0, BLOCK_M)
    live = places < end
    numbers = tl.load(pairs + places, mask=live, other=0)
    x_rows = numbers // TOP_K if GATED else places
    wide = tl.arange(0, WIDTH)
    if GATED:
        wide_columns = first_column + wide % BLOCK_N
        weight_rows = wide_columns + wide // BLOCK_N * columns  # up's stand behind all of gate's
        num_weight_rows = columns * 2
    else:
        wide_columns = first_column + wide
        weight_rows = wide_columns
        num_weight_rows = columns
    steps = tl.arange(0, BLOCK_K)
    x_at = x + x_rows.to(tl.int64)[:, None] * depth + steps[None, :]
    weight_at = weight + expert.to(tl.int64) * num_weight_rows * depth
    weight_at += weight_rows.to(tl.int64)[:, None] * depth + steps[None, :]

    if WEIGHT_LEFT:
        total = tl.zeros((WIDTH, BLOCK_M), dtype=tl.float32)
    else:
        total = tl.zeros((BLOCK_M, WIDTH), dtype=tl.float32)
    for k in range(0, depth, BLOCK_K):
        if EVEN_N and EVEN_K:  # weights first: their place is known before the tokens' is
            w = tl.load(weight_at)
        else:
            w = tl.load(weight_at, mask=(wide_columns < columns)[:, None] & (steps < depth - k)[None, :], other=0.0)
        x_read = live[:, None]
        if not EVEN_K:
            x_read = x_read & (steps < depth - k)[None, :]
        a = tl.load(x_at, mask=x_read, other=0.0)
        if WEIGHT_LEFT:
            total = tl.dot(w.to(DOT_DTYPE), tl.trans(a.to(DOT_DTYPE)), total, input_precision="ieee")
        else:
            total = tl.dot(a.to(DOT_DTYPE), tl.trans(w.to(DOT_DTYPE)), total, input_precision="ieee")
        x_at += BLOCK_K
        weight_at += BLOCK_K

    if GATED:
        if WEIGHT_LEFT:
            gate, up = tl.split(tl.permute(tl.reshape(total, (2, BLOCK_N, BLOCK_M)), (1, 2, 0)))
        else:
            gate, up = tl.split(tl.permute(tl.reshape(total, (BLOCK_M, 2, BLOCK_N)), (0, 2, 1)))
        if ACTIVATION == "silu":
            total = gate / (1.0 + tl.exp(-gate)) * up
        else:  # tanh(a) = 1 - 2 / (exp(2 a) + 1)
            a = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
            total = gate * (1.0 - 1.0 / (tl.exp(2.0 * a) + 1.0)) * up
    out_rows = (places if GATED else numbers).to(tl.int64) * columns
    out_columns = first_column + tl.arange(0, BLOCK_N)
    if WEIGHT_LEFT:
        total = tl.trans(total)
    written = live[:, None] & (out_columns < columns)[None, :]
    tl.store(out + out_rows[:, None] + out_columns[None, :], total.to(out.dtype.element_ty), mask=written)


# -- sum ---------------------------------------------------------------------------------------------------------------


@triton.jit
def weighted_sum_kernel(parts, weights, out, columns, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """A token by BLOCK columns a program."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for j in tl.static_range(TOP_K):
        part = tl.load(parts + (token * TOP_K + j) * columns + at, mask=at < columns, other=0.0)
        total += tl.load(weights + token * TOP_K + j) * part.to(tl.float32)
    tl.store(out + token * columns + at, total.to(out.dtype.element_ty), mask=at < columns)
