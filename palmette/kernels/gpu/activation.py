"""Gated activations on a fused gate-and-up projection; defined by `kernels.activation`.

    silu       g * sigmoid(g) * u
    gelu_tanh  0.5 g (1 + tanh(z)) * u = g * sigmoid(2 z) * u        z = sqrt(2/pi) (g + 0.044715 g^3)

A program takes BLOCK columns of one row. Float32 inside and rounded once; the definition also rounds the activation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from palmette.kernels.gpu.launch import LOG2_E, padded
from palmette.kernels.step_kernels import Activation

_BLOCK = 1024
_MINUS_LOG2_E = tl.constexpr(-LOG2_E)
_GELU = tl.constexpr(-2.0 * 0.7978845608028654 * LOG2_E)


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """(num_tokens, 2 * dim), gate first, contiguous -> (num_tokens, dim)."""
    rows, dim = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, dim), dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        block = min(_BLOCK, padded(dim))
        gated_kernel[(rows, triton.cdiv(dim, block))](
            gate_up, out, dim, IS_SILU=activation == "silu", BLOCK=block, num_warps=max(1, block // 256)
        )
    return out


@triton.jit
def gated_kernel(gate_up, out, dim, IS_SILU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = columns < dim
    gate = tl.load(gate_up + row * 2 * dim + columns, mask=real, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (row * 2 + 1) * dim + columns, mask=real, other=0.0).to(tl.float32)
    if IS_SILU:
        exponent = gate * _MINUS_LOG2_E
    else:
        exponent = (gate + 0.044715 * gate * gate * gate) * _GELU
    result = gate / (1.0 + tl.exp2(tl.minimum(exponent, 126.0))) * up  # beyond, the sigmoid is zero for every dtype
    tl.store(out + row * dim + columns, result.to(out.dtype.element_ty), mask=real)
