"""Attention of a mixed batch over paged keys and values, as partial results that merge.

    o_t = softmax(scale * q_t K_t^T) V_t        K_t, V_t: the keys and values that token t may see

The keys of each request are cut into segments. A segment is gathered once for all queries that see it, whichever
requests they belong to; it yields for every query a normalised output o_s and the log of its softmax denominator
lse_s (the (m, l, o) of Milakov & Gimelshein 2018, arXiv 1805.02867, with l folded into m). A token's partials merge in
position order (Dao et al. 2023, "Flash-Decoding"; Juravsky et al. 2024, arXiv 2402.05099, section 3):

    o_t = sum_s softmax(lse)_s o_s

So prefill, chunked extend, decode, tree rows, sliding windows and shared prefixes are one operation whose cases differ
in the plan alone. This file executes a plan; `runtime.attention_plan` makes it, once per step for all layers.

Grouped-query attention: query head h reads KV head h // r, r = num_heads / num_kv_heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from palmette.kernels.soft_cap import soft_cap_

_HIDDEN_SCORE = -1e30  # finite: a query that sees nothing of a segment gets weight 0 in the merge, not NaN


@dataclass(frozen=True, slots=True)
class SegmentGroup:
    """Segments with alike numbers of queries and keys, padded and computed as one batched product.

    G segments, Q queries and K keys each, in B = G * num_kv_heads products of (Q * r, head_dim) x (head_dim, K).
    """

    num_queries: int  # Q
    num_keys: int  # K
    query_rows: Tensor  # (G * num_kv_heads * Q,) int64, rows of q as (num_tokens * num_kv_heads, r * head_dim)
    key_rows: Tensor  # (G * num_kv_heads * K,) int64, rows of a pool as (num_slots * num_kv_heads, head_dim)
    hidden: Tensor | None  # (G, 1, Q, 1, K) bool, True = may not see; None = every query sees every key
    first_partial: int  # the group writes partial rows first_partial .. + G * num_kv_heads * Q


@dataclass(frozen=True, slots=True)
class MergeGroup:
    """Tokens with alike numbers of partials."""

    num_partials: int  # N, position order; missing ones point to the empty partial
    partial_rows: Tensor  # (num_tokens_here * num_kv_heads * N,) int64
    tokens: Tensor | None  # (num_tokens_here,) int64; None = all tokens of the step, in order


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What every layer of one step executes. Partial row `num_partials` is the empty one."""

    segments: tuple[SegmentGroup, ...]
    merges: tuple[MergeGroup, ...]
    num_partials: int  # over all groups
    num_kv_heads: int


def paged_attention(
    q: Tensor, key_pool: Tensor, value_pool: Tensor, plan: AttentionPlan, *, scale: float, soft_cap: float | None = None
) -> Tensor:
    """Attend with every token of a step to what the plan lets it see. The step's own keys must be in the pool already.

    Args:
        q: (num_tokens, num_heads, head_dim), contiguous.
        key_pool, value_pool: (num_slots, num_kv_heads, head_dim), contiguous.
        scale: factor on the scores.
        soft_cap: scores become soft_cap * tanh(scores / soft_cap).

    Returns:
        (num_tokens, num_heads * head_dim) in q's dtype. Scores and partials are float32.
    """
    num_tokens, num_heads, head_dim = q.shape
    r = num_heads // plan.num_kv_heads
    q_rows = q.view(num_tokens * plan.num_kv_heads, r * head_dim)
    keys, values = key_pool.view(-1, head_dim), value_pool.view(-1, head_dim)
    must_merge = any(m.num_partials > 1 for m in plan.merges)

    # One row more than there are partials: the empty partial, with weight 0.
    partials = torch.empty((plan.num_partials + 1, r * head_dim), dtype=torch.float32, device=q.device)
    lse = torch.empty((plan.num_partials + 1 if must_merge else 0, r), dtype=torch.float32, device=q.device)
    if must_merge:
        partials[-1], lse[-1] = 0.0, _HIDDEN_SCORE
    for group in plan.segments:
        _attend(group, q_rows, keys, values, r, scale, soft_cap, partials, lse if must_merge else None)

    whole = len(plan.merges) == 1 and plan.merges[0].tokens is None
    merged = [_merge(group, partials, lse, plan.num_kv_heads, r) for group in plan.merges]
    if whole:
        return merged[0].view(num_tokens, num_heads * head_dim).to(q.dtype)
    out = torch.empty((num_tokens, num_heads * head_dim), dtype=torch.float32, device=q.device)
    for merge, rows in zip(plan.merges, merged, strict=True):
        assert merge.tokens is not None, "a merge group of all tokens must be the only one"
        out.index_copy_(0, merge.tokens, rows)
    return out.to(q.dtype)


def _attend(
    group: SegmentGroup,
    q_rows: Tensor,
    keys: Tensor,
    values: Tensor,
    r: int,
    scale: float,
    soft_cap: float | None,
    partials: Tensor,
    lse: Tensor | None,
) -> None:
    """Fill the group's rows of `partials`, and of `lse` where one is wanted."""
    head_dim, num_queries, num_keys = keys.shape[-1], group.num_queries, group.num_keys
    batch = group.key_rows.shape[0] // num_keys
    rows = slice(group.first_partial, group.first_partial + batch * num_queries)

    q = q_rows.index_select(0, group.query_rows).view(batch, num_queries * r, head_dim).float().mul_(scale)
    k = keys.index_select(0, group.key_rows).view(batch, num_keys, head_dim)
    v = values.index_select(0, group.key_rows).view(batch, num_keys, head_dim)
    scores = torch.bmm(q, k.float().transpose(1, 2))
    if soft_cap is not None:
        soft_cap_(scores, soft_cap)
    if group.hidden is not None:
        num_segments = group.hidden.shape[0]
        scores.view(num_segments, -1, num_queries, r, num_keys).masked_fill_(group.hidden, _HIDDEN_SCORE)
    weights = scores.softmax(-1)
    torch.bmm(weights, v.float(), out=partials[rows].view(batch, num_queries * r, head_dim))
    if lse is not None:
        # The largest weight is exp(max score - lse), and at least 1 / num_keys: its logarithm is well conditioned.
        lse[rows] = (scores.amax(-1) - weights.amax(-1).log_()).view(-1, r)


def _merge(group: MergeGroup, partials: Tensor, lse: Tensor, num_kv_heads: int, r: int) -> Tensor:
    """(num_tokens_here, num_heads * head_dim) float32."""
    width = partials.shape[-1]
    parts = partials.index_select(0, group.partial_rows)
    if group.num_partials == 1:
        return parts.view(-1, num_kv_heads * width)
    weights = lse.index_select(0, group.partial_rows).view(-1, num_kv_heads, group.num_partials, r, 1).softmax(2)
    parts = parts.view(-1, num_kv_heads, group.num_partials, r, width // r)
    return (parts * weights).sum(2).view(-1, num_kv_heads * width)
