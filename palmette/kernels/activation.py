"""Gated activations on a fused gate-and-up projection (Shazeer 2020, arXiv 2002.05202, section 2).

silu_mul(g, u)      = g * sigmoid(g) * u
gelu_tanh_mul(g, u) = 0.5 g (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3))) * u
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_mul(gate_up: Tensor) -> Tensor:
    """(num_tokens, 2 * dim), gate first -> (num_tokens, dim). Llama, Mistral, Qwen."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    """(num_tokens, 2 * dim), gate first -> (num_tokens, dim). Gemma."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)
