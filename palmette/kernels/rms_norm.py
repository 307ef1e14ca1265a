"""RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4), plain and fused with the residual addition.

    rms_norm(x)_i = x_i / sqrt(mean(x^2) + eps) * w_i

Reference: `LlamaRMSNorm` of transformers. Gemma's variant multiplies by (1 + w); its loader stores 1 + w, so here
there is one formula. Statistics are taken in float32 whatever the dtype of x.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension.

    Args:
        x: (..., dim), any float dtype.
        weight: (dim,) float32.

    Returns:
        (..., dim) in the dtype of x.
    """
    f = x.float()
    scale = f.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (f * scale).mul_(weight).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`residual + x`, and its rms_norm: the two things every layer boundary needs.

    Args:
        x, residual: (num_tokens, dim).

    Returns:
        (normed, summed), each (num_tokens, dim); nothing is mutated.
    """
    summed = torch.add(residual, x)
    return rms_norm(summed, weight, eps), summed
