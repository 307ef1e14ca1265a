"""Logit soft-capping (Gemma 2, arXiv 2408.00118, section 2): soft_cap(x) = cap * tanh(x / cap)."""

from __future__ import annotations

from torch import Tensor


def soft_cap_(x: Tensor, cap: float) -> Tensor:
    """Squash x of any shape into (-cap, cap), in place; returns x."""
    return x.div_(cap).tanh_().mul_(cap)
