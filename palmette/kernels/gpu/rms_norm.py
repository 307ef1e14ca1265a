"""RMSNorm, plain and fused with the residual addition; defined by `kernels.rms_norm`.

One program a row. The row stays in registers between its statistics and its output, so x is read once and out written
once; `BLOCK` is the row's length rounded up to a power of two, and what stands behind the row counts as zero. The sum
of squares is taken in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from palmette.kernels.gpu.launch import padded


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See kernels.rms_norm.rms_norm; x contiguous in its last dimension, rows anywhere at one distance."""
    out = torch.empty_like(x)
    rows = x.reshape(-1, x.shape[-1])
    block = padded(x.shape[-1])
    if rows.shape[0]:
        rms_norm_kernel[(rows.shape[0],)](rows, weight, out, eps, x.shape[-1], BLOCK=block, num_warps=_num_warps(block))
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See kernels.rms_norm.add_rms_norm; contiguous tensors."""
    out, summed = torch.empty_like(x), torch.empty_like(x)
    block = padded(x.shape[-1])
    if x.shape[0]:
        add_rms_norm_kernel[(x.shape[0],)](
            x, residual, weight, out, summed, eps, x.shape[-1], BLOCK=block, num_warps=_num_warps(block)
        )
    return out, summed


@triton.jit
def rms_norm_kernel(x, weight, out, eps, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    real = columns < dim
    f = tl.load(x + row * dim + columns, mask=real, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(f * f, 0) / dim + eps)
    normed = f * scale * tl.load(weight + columns, mask=real, other=0.0)
    tl.store(out + row * dim + columns, normed.to(out.dtype.element_ty), mask=real)


@triton.jit
def add_rms_norm_kernel(x, residual, weight, out, summed, eps, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    real = columns < dim
    at = row * dim + columns
    a = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
    b = tl.load(residual + at, mask=real, other=0.0).to(tl.float32)
    total = (a + b).to(summed.dtype.element_ty)  # rounded as the residual stream is, then normed
    tl.store(summed + at, total, mask=real)
    f = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(f * f, 0) / dim + eps)
    normed = f * scale * tl.load(weight + columns, mask=real, other=0.0)
    tl.store(out + at, normed.to(out.dtype.element_ty), mask=real)


def _num_warps(block: int) -> int:
    return min(16, max(1, block // 512))
