"""Attention over a page table, by its definition: the specification of the kernels in `kernels.gpu`.

    o_t = softmax(cap(scale * q_t K_t^T)) V_t        K_t, V_t: the keys and values that token t sees (`paged_plan`)

One token at a time, nothing shared, nothing split.
"""

from __future__ import annotations

import torch
from torch import Tensor

from palmette.kernels.kv_store import KVLayer, dequantize
from palmette.kernels.paged_plan import PagedPlan
from palmette.kernels.soft_cap import soft_cap_


def attend_by_definition(
    q: Tensor, kv: KVLayer, plan: PagedPlan, *, scale: float, soft_cap: float | None = None
) -> Tensor:
    """
    Args:
        q: (num_tokens, num_heads, head_dim); tokens behind the plan's are padding and give zeros.
        scale: factor on the scores.
        soft_cap: scores become soft_cap * tanh(scores / soft_cap).

    Returns:
        (num_tokens, num_heads * head_dim) in q's dtype. A token that sees nothing gives zeros.
    """
    num_tokens, num_heads, head_dim = q.shape
    r = num_heads // kv.keys.shape[1]
    out = torch.zeros((num_tokens, num_heads, head_dim), dtype=torch.float32, device=q.device)
    for t in range(num_tokens):
        slots = plan.page_table[int(plan.rows[t])][visible_keys(plan, t)].long()
        if not len(slots):
            continue
        keys = dequantize(kv.keys, kv.key_scales, slots).repeat_interleave(r, dim=1)
        values = dequantize(kv.values, kv.value_scales, slots).repeat_interleave(r, dim=1)
        scores = torch.einsum("hd,khd->hk", q[t].float(), keys) * scale
        if soft_cap is not None:
            soft_cap_(scores, soft_cap)
        out[t] = torch.einsum("hk,khd->hd", scores.softmax(-1), values)
    return out.view(num_tokens, -1).to(q.dtype)


def visible_keys(plan: PagedPlan, token: int) -> Tensor:
    """(n,) int64: the page-table indices that a token sees, ascending."""
    last, position = int(plan.last_keys[token]), int(plan.positions[token])
    first = 0 if plan.window is None else max(0, position - plan.window + 1)
    keys = torch.arange(min(first, last + 1), last + 1)
    if plan.trees is None or plan.tree_words is None or not int(plan.trees[token, 1]):
        return keys
    first_word, num_bits = plan.trees[token].tolist()
    nodes = torch.arange(num_bits)
    seen = (plan.tree_words.cpu()[first_word + nodes // 32] >> (nodes % 32)) & 1
    return torch.cat((keys, last + 1 + nodes[seen.bool()]))
