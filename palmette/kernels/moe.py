"""Mixture of experts: each token goes through the few MLPs that its router prefers (Shazeer et al. 2017, arXiv
1701.06538, section 2; as in Mixtral, Jiang et al. 2024, arXiv 2401.04088, section 2.1).

    z    = x R^T                                      router logits, R (num_experts, hidden)
    S    = the top_k experts with the largest z       equal ones: the lowest id first; NaN counts as the largest
    w    = softmax(z)[S],  over all experts           divided by its sum where the family normalises
    out  = sum over e in S, by rising e, of  w_e * down_e(activation(gate_e(x)) * up_e(x))

Mixtral's softmax over the top_k logits is the normalised softmax over all. Weights and sum are float32, what an expert
puts out has the dtype of x; a token's sum runs by expert id, whoever else is in the batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from palmette.kernels.activation import gelu_tanh_mul, silu_mul
from palmette.kernels.linear import linear


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
    """A whole layer of experts: `moe` under the router's logits.

    Args:
        x: (num_tokens, hidden), any float dtype.
        router: (num_experts, hidden), in x's dtype.
        gate_up: (num_experts, 2 * intermediate, hidden), in x's dtype; rows: gate, then up.
        down: (num_experts, hidden, intermediate), in x's dtype.

    Returns:
        (num_tokens, hidden) in x's dtype.
    """
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
) -> Tensor:
    """See `experts`; logits (num_tokens, num_experts), any float dtype."""
    weights, ids = route(logits, top_k=top_k, normalise=normalise)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in sorted(set(ids.flatten().tolist())):
        tokens, places = torch.where(ids == expert)
        inner = linear(x[tokens], gate_up[expert])
        inner = silu_mul(inner) if activation == "silu" else gelu_tanh_mul(inner)
        part = linear(inner, down[expert]).float() * weights[tokens, places, None]
        out.index_add_(0, tokens, part)  # a token is at an expert once, so nothing is added in any other order
    return out.to(x.dtype)


def route(logits: Tensor, *, top_k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """Where each token goes.

    Args:
        logits: (num_tokens, num_experts), any float dtype.
        normalise: a token's weights sum to 1.

    Returns:
        (weights (num_tokens, top_k) float32, ids (num_tokens, top_k) int64), each token's by rising id.
    """
    z = logits.float()
    # By logits rather than by probabilities, which underflow to equal ones.
    chosen = z.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    ids = chosen.sort(dim=-1).values
    weights = z.softmax(-1).gather(1, ids)
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, ids
