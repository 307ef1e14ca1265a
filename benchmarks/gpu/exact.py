"""Float64 references of what kernels compute, from the numbers that they are given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from palmette.kernels.kv_store import KVLayer, dequantize
from palmette.kernels.paged_attention import visible_keys
from palmette.kernels.paged_plan import PagedPlan


def attention(
    q: Tensor, kv: KVLayer, plan: PagedPlan, tokens: Sequence[int], *, scale: float, soft_cap: float | None = None
) -> Tensor:
    """(len(tokens), num_heads, head_dim): `kernels.paged_attention` of some tokens."""
    return torch.stack([_token(q[t], kv, plan, t, scale, soft_cap) for t in tokens])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()


def gated(gate_up: Tensor, activation: str) -> Tensor:
    gate, up = gate_up.double().chunk(2, dim=-1)
    if activation == "silu":
        return gate * gate.sigmoid() * up
    return 0.5 * gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3))) * up


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads (num_tokens, heads, head_dim) whose first elements rotate: twice as many as cos and sin have."""
    x, cos, sin = x.double(), cos.double(), sin.double()
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)


def experts(
    x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, *, top_k: int, normalise: bool
) -> tuple[Tensor, Tensor]:
    """(result, ids (num_tokens, top_k) by rising id) of `kernels.moe.moe` with SiLU."""
    ids = logits.float().sort(dim=-1, descending=True, stable=True).indices[:, :top_k].sort(-1).values
    weights = logits.double().softmax(-1).gather(1, ids)
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for expert in sorted(set(ids.flatten().tolist())):
        tokens, places = torch.where(ids == expert)
        inner = gated(x[tokens].double() @ gate_up[expert].double().T, "silu")
        out[tokens] += (inner @ down[expert].double().T) * weights[tokens, places, None]
    return out, ids


def _token(q: Tensor, kv: KVLayer, plan: PagedPlan, token: int, scale: float, soft_cap: float | None) -> Tensor:
    slots = plan.page_table[int(plan.rows[token])].cpu()[visible_keys(plan, token)].long().to(q.device)
    if not len(slots):
        return torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    keys, values = dequantize(kv.keys, kv.key_scales, slots), dequantize(kv.values, kv.value_scales, slots)
    grouped = q.double().view(keys.shape[1], -1, q.shape[-1])
    scores = torch.einsum("grd,kgd->grk", grouped, keys.double()) * scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    return torch.einsum("grk,kgd->grd", scores.softmax(-1), values.double()).reshape(q.shape)
