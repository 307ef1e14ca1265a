"""Where tokens go, as the grouped products of `moe` read it: pairs sorted by expert, and cut into blocks.

A pair is a token at one of its experts: pair t * top_k + j is token t at its j-th expert, by rising id. Everything that
depends on the routing stays on the device:

    route   (num_tokens, num_experts) logits -> weights and ids (num_tokens, top_k); defined by `kernels.moe.route`
    sort    pairs     |  expert 0  |  expert 2     |3|  ..    pair numbers; by token within an expert
            blocks    | b0 | b1    | b2 | b3 | b4  |b5|       (expert, begin, end) of each: no block has two experts

A chunk of tokens is a program's: a tile of its tokens by all experts, in registers. Where all tokens are one chunk, the
program that routes them also sorts; else it leaves how many of its tokens each expert got, and a second launch sorts, a
chunk a program again, each adding up what the chunks before it have. No atomics, so the order is always the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from palmette.kernels.gpu.launch import padded

CHUNK = 8192  # logits, tokens times experts, up to which one program does all of the routing


def route(logits: Tensor, *, top_k: int, normalise: bool, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """See kernels.moe.route; ids are int32."""
    shape = _Chunks.of(logits, chunk)
    weights, ids, _ = _route(logits, shape, top_k=top_k, normalise=normalise)
    return weights, ids


def max_blocks(num_pairs: int, num_experts: int, block_m: int) -> int:
    """Blocks that the worst routing makes: every expert has a block that is hardly begun."""
    hit = min(num_pairs, num_experts)
    return (num_pairs - hit) // block_m + hit


@dataclass(frozen=True, slots=True)
class _Chunks:
    """How tokens are shared out among the programs that route."""

    num_tokens: int
    num_experts: int
    block_t: int
    block_e: int

    @classmethod
    def of(cls, logits: Tensor, chunk: int) -> _Chunks:
        """One chunk where `chunk` logits suffice; else smaller ones, for many programs."""
        num_tokens, num_experts = logits.shape
        block_e = padded(num_experts, least=2)
        block_t = padded(num_tokens, least=1)
        if block_t * block_e > chunk:
            block_t = max(1, min(64, 1 << max(0, (chunk // 2 // block_e).bit_length() - 1)))
        return cls(num_tokens, num_experts, block_t, block_e)

    @property
    def count(self) -> int:
        return int(triton.cdiv(self.num_tokens, self.block_t))

    @property
    def num_warps(self) -> int:
        return max(1, min(16, self.block_t * self.block_e // 512))


def _route(logits: Tensor, chunks: _Chunks, *, top_k: int, normalise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(weights, ids, counts (num_chunks, num_experts) int32: a chunk's tokens at each expert)."""
    weights = torch.empty((chunks.num_tokens, top_k), dtype=torch.float32, device=logits.device)
    ids = torch.empty((chunks.num_tokens, top_k), dtype=torch.int32, device=logits.device)
    counts = torch.empty((chunks.count, chunks.num_experts), dtype=torch.int32, device=logits.device)
    if chunks.num_tokens:
        route_kernel[(chunks.count,)](
            logits,
            weights,
            ids,
            counts,
            chunks.num_tokens,
            chunks.num_experts,
            TOP_K=top_k,
            NORMALISE=normalise,
            BLOCK_T=chunks.block_t,
            BLOCK_E=chunks.block_e,
            num_warps=chunks.num_warps,
        )
    return weights, ids, counts


def route_and_sort(
    logits: Tensor, *, top_k: int, normalise: bool, block_m: int, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(weights, pairs (num_pairs,) int32, blocks (1 + most, 3) int32). blocks[0, 0] is how many there are; block b is
    in row 1 + b: its expert, and where in `pairs` it begins and ends."""
    chunks = _Chunks.of(logits, chunk)
    num_pairs = chunks.num_tokens * top_k
    pairs = torch.empty(num_pairs, dtype=torch.int32, device=logits.device)
    blocks = torch.empty(
        (1 + max_blocks(num_pairs, chunks.num_experts, block_m), 3), dtype=torch.int32, device=logits.device
    )
    constants: dict[str, Any] = {
        "TOP_K": top_k,
        "BLOCK_M": block_m,
        "BLOCK_T": chunks.block_t,
        "BLOCK_E": chunks.block_e,
        "num_warps": chunks.num_warps,
    }
    if chunks.count == 1:
        weights = torch.empty((chunks.num_tokens, top_k), dtype=torch.float32, device=logits.device)
        route_and_sort_kernel[(1,)](
            logits, weights, pairs, blocks, chunks.num_tokens, chunks.num_experts, NORMALISE=normalise, **constants
        )
    else:
        weights, ids, counts = _route(logits, chunks, top_k=top_k, normalise=normalise)
        sort_kernel[(chunks.count,)](
            ids,
            counts,
            pairs,
            blocks,
            chunks.num_tokens,
            chunks.num_experts,
            chunks.count,
            BLOCK_C=max(1, min(16, 2048 // chunks.block_e)),
            **constants,
        )
    return weights, pairs, blocks


@triton.jit
def _choose(z, real, TOP_K: tl.constexpr, BLOCK_E: tl.constexpr):
    """(BLOCK_T, BLOCK_E) of 1 at each token's experts and 0 elsewhere: always TOP_K of the real ones."""
    experts = tl.arange(0, BLOCK_E)[None, :]
    z = tl.where(z == z, z, float("inf"))
    chosen = tl.zeros(z.shape, dtype=tl.int32)
    for _ in tl.static_range(TOP_K):
        free = real & (chosen == 0)
        best = tl.max(tl.where(free, z, float("-inf")), 1)
        at = tl.min(tl.where(free & (z == best[:, None]), experts, BLOCK_E), 1)
        chosen = tl.where(experts == at[:, None], 1, chosen)
    return chosen


@triton.jit
def _route_tokens(
    logits,
    weights,
    tokens,
    num_tokens,
    num_experts,
    TOP_K: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """(chosen, the pair of each one that is); stores weights. Tokens behind the last choose nobody."""
    experts = tl.arange(0, BLOCK_E)
    there, real = (tokens < num_tokens)[:, None], (experts < num_experts)[None, :]
    at = tokens.to(tl.int64)[:, None] * num_experts + experts[None, :]
    z = tl.load(logits + at, mask=there & real, other=0.0).to(tl.float32)
    chosen = tl.where(there, _choose(z, real, TOP_K, BLOCK_E), 0)
    exps = tl.where(real, tl.exp(z - tl.max(tl.where(real, z, float("-inf")), 1)[:, None]), 0.0)
    if NORMALISE:
        total = tl.sum(tl.where(chosen != 0, exps, 0.0), 1)
    else:
        total = tl.sum(exps, 1)
    total = tl.where(tokens < num_tokens, total, 1.0)
    numbers = tokens[:, None] * TOP_K + tl.cumsum(chosen, 1) - chosen
    tl.store(weights + numbers, exps / total[:, None], mask=chosen != 0)
    return chosen, numbers


@triton.jit
def _sort_tokens(pairs, chosen, numbers, first):
    """Store the pairs of some tokens; `first` (BLOCK_E,) is where those of each expert begin."""
    places = first[None, :] + tl.cumsum(chosen, 0) - chosen
    tl.store(pairs + places, numbers, mask=chosen != 0)


@triton.jit
def _cut_blocks(blocks, totals, first, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr):
    """Store the blocks of all experts; `totals` and `first` (BLOCK_E,)."""
    experts = tl.arange(0, BLOCK_E)
    num = (totals + BLOCK_M - 1) // BLOCK_M
    row = 1 + tl.cumsum(num, 0) - num
    tl.store(blocks, tl.sum(num, 0))
    for i in range(tl.max(num, 0)):
        at = blocks + (row + i) * 3
        begin = first + i * BLOCK_M
        tl.store(at, experts, mask=i < num)
        tl.store(at + 1, begin, mask=i < num)
        tl.store(at + 2, tl.minimum(begin + BLOCK_M, first + totals), mask=i < num)


@triton.jit
def route_kernel(
    logits,
    weights,
    ids,
    counts,
    num_tokens,
    num_experts,
    TOP_K: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """A chunk of tokens a program."""
    chunk = tl.program_id(0)
    tokens = chunk * BLOCK_T + tl.arange(0, BLOCK_T)
    experts = tl.arange(0, BLOCK_E)
    chosen, numbers = _route_tokens(logits, weights, tokens, num_tokens, num_experts, TOP_K, NORMALISE, BLOCK_E)
    tl.store(ids + numbers, tl.broadcast_to(experts[None, :], (BLOCK_T, BLOCK_E)), mask=chosen != 0)
    tl.store(counts + chunk * num_experts + experts, tl.sum(chosen, 0), mask=experts < num_experts)


@triton.jit
def sort_kernel(
    ids,
    counts,
    pairs,
    blocks,
    num_tokens,
    num_experts,
    num_chunks,
    TOP_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A chunk of tokens a program; each adds up for itself what the chunks before it have."""
    chunk = tl.program_id(0)
    tokens = chunk * BLOCK_T + tl.arange(0, BLOCK_T)
    experts = tl.arange(0, BLOCK_E)
    totals = tl.zeros((BLOCK_E,), dtype=tl.int32)
    before = tl.zeros((BLOCK_E,), dtype=tl.int32)
    for c in range(0, num_chunks, BLOCK_C):
        others = c + tl.arange(0, BLOCK_C)
        read = (others < num_chunks)[:, None] & (experts < num_experts)[None, :]
        found = tl.load(counts + others[:, None] * num_experts + experts[None, :], mask=read, other=0)
        totals += tl.sum(found, 0)
        before += tl.sum(tl.where((others < chunk)[:, None], found, 0), 0)
    first = tl.cumsum(totals, 0) - totals
    numbers = tl.full((BLOCK_T, BLOCK_E), -1, dtype=tl.int32)
    for j in tl.static_range(TOP_K):
        mine = tl.load(ids + tokens * TOP_K + j, mask=tokens < num_tokens, other=-1)
        numbers = tl.where(experts[None, :] == mine[:, None], tokens[:, None] * TOP_K + j, numbers)
    _sort_tokens(pairs, (numbers >= 0).to(tl.int32), numbers, first + before)
    if chunk == 0:
        _cut_blocks(blocks, totals, first, BLOCK_M, BLOCK_E)


@triton.jit
def route_and_sort_kernel(
    logits,
    weights,
    pairs,
    blocks,
    num_tokens,
    num_experts,
    TOP_K: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """All tokens in one program."""
    tokens = tl.arange(0, BLOCK_T)
    chosen, numbers = _route_tokens(logits, weights, tokens, num_tokens, num_experts, TOP_K, NORMALISE, BLOCK_E)
    totals = tl.sum(chosen, 0)
    first = tl.cumsum(totals, 0) - totals
    _sort_tokens(pairs, chosen, numbers, first)
    _cut_blocks(blocks, totals, first, BLOCK_M, BLOCK_E)
