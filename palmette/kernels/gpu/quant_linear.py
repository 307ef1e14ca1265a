"""Linear layers for few rows, bound by reading the weight: 8-bit codes, defined by `kernels.quant_linear`, or floats.

    y = x W^T: a tile is BLOCK_M rows, all there are, by BLOCK_N outputs; a step of its walk is SLICES * SLICE_K inputs

Codes come from memory as they are and become x's dtype in registers (each code is a bfloat16, exactly), right before
the matrix unit; nothing wider is written back. A scale acts on the accumulator, behind the product: the whole sum's, or
with scales in blocks each block's (so a block is a multiple of SLICE_K).

    SLICES = 1   many rows: x is the left operand, and 64 rows are what a warpgroup's instruction takes at once
    SLICES > 1   few rows: the weight is the left operand, so that rows are padded to 8 and not to 64. A step is a batch
                 of SLICES products that different warps take: a narrow tile keeps as many warps busy as a wide one.
                 Their sums are added when the walk ends.
    SPLITS > 1   several programs walk one tile, each its range of inputs, and write float32 partials (SPLITS, rows,
                 outputs), which a second launch adds in order.

Nothing adds in an order that depends on timing. The order depends on the config, and that on the weight's shape and on
how many rows there are up to the next of 16, 32, 64: a row's result depends on nobody's data, and on the number of its
batch mates by rounding at most.

Every tile reads all of x, out of L2. So tiles are wide where rows are many, and narrow, hence more, where they are few.
Above 64 rows codes are widened, as many outputs at a time as L2 keeps, and torch multiplies.

Block assumptions: powers of two; inputs of a multiple of 16 bytes are read 16 bytes at a time, others still right.
Source of SPLITS: "fixed-split" of Osama et al. 2023 (Stream-K, arXiv 2301.03598, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from palmette.errors import InvalidOption
from palmette.kernels.gpu.launch import dot_dtype, num_processors, padded
from palmette.kernels.quant_linear import BLOCK

MOST_ROWS = 64  # of the kernel
_STEP_BYTES = 128  # that an unsliced step reads of each output, all adjacent
_SLICE_BYTES = 64  # that a slice reads of each output, next to the slices beside it
_SLICES = 8  # one for each warp: with fewer slices than warps, warps widen the same codes twice
_LEAST_STEPS = 4  # of a program's walk: fewer do not fill its pipeline
_WIDENED_BYTES = 24 << 20  # of a widened tile: half of an H200's L2
_REDUCE_BLOCK = 512


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """How a product is cut. All powers of two."""

    block_n: int  # outputs of a tile
    slice_k: int  # inputs of a slice; divides BLOCK where scales come in blocks
    slices: int  # of a step
    splits: int  # programs that share a tile's inputs
    num_warps: int
    num_stages: int


def choose_config(
    rows: int, outputs: int, inputs: int, *, x_bytes: int, code_bytes: int, processors: int
) -> QuantConfig:
    """A config for this product, the same for all numbers of rows that are padded alike.

    Args:
        rows: 1 to MOST_ROWS.
        x_bytes, code_bytes: of one element of x and of the weight.
        processors: streaming multiprocessors.
    """
    block_m = padded(rows)
    enough = processors * 7 // 8  # programs
    if x_bytes > 2:  # no matrix unit takes float32 as it is: right, and not fast
        config = QuantConfig(block_n=32, slice_k=32, slices=1, splits=1, num_warps=4, num_stages=2)
    elif block_m == MOST_ROWS:
        config = QuantConfig(128, _STEP_BYTES // code_bytes, 1, 1, num_warps=8, num_stages=4)
    else:
        # For each element of the weight a tile reads block_m / block_n of x: wide ones, if they are programs enough.
        wide = block_m > 8 * code_bytes and triton.cdiv(outputs, 64) >= enough
        slice_k = _SLICE_BYTES // code_bytes
        config = QuantConfig(64 if wide else 32, slice_k, _SLICES, 1, num_warps=_SLICES, num_stages=3 if wide else 4)
    tiles = triton.cdiv(outputs, config.block_n)
    steps = triton.cdiv(inputs, config.slice_k * config.slices)
    splits = 1
    while tiles * splits < enough and steps >= splits * 2 * _LEAST_STEPS:
        splits *= 2
    return replace(config, splits=splits)


def quant_linear(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None, *, config: QuantConfig | None = None
) -> Tensor:
    """See kernels.quant_linear.quant_linear; codes contiguous, x contiguous in its last dimension.

    Args:
        config: instead of the chosen one; only up to MOST_ROWS rows.
    """
    if x.shape[0] > MOST_ROWS:
        return _many_rows(x, codes, scales, bias)
    if config is not None and scales.dim() == 2 and BLOCK % config.slice_k:
        raise InvalidOption("slice_k", config.slice_k, f"a divisor of {BLOCK}, as scales come in blocks of {BLOCK}")
    return _few_rows(x, codes, scales, bias, config)


def skinny_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, config: QuantConfig | None = None
) -> Tensor:
    """y = x W^T + b for at most MOST_ROWS rows, with a weight of x's dtype; more rows are torch's."""
    if x.shape[0] > MOST_ROWS:
        return torch.nn.functional.linear(x, weight, bias)
    return _few_rows(x, weight, None, bias, config)


def _few_rows(
    x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None, config: QuantConfig | None
) -> Tensor:
    rows, inputs = x.shape
    outputs = weight.shape[0]
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    if rows == 0:
        return out
    c = config or choose_config(
        rows,
        outputs,
        inputs,
        x_bytes=x.element_size(),
        code_bytes=weight.element_size(),
        processors=num_processors(x.device),
    )
    by_block = scales is not None and scales.dim() == 2
    split = c.splits > 1
    target = torch.empty((c.splits, rows, outputs), dtype=torch.float32, device=x.device) if split else out
    quant_linear_kernel[(triton.cdiv(outputs, c.block_n), c.splits)](
        x,
        weight,
        out if scales is None else scales,  # pointers that are not read have to point somewhere
        out if bias is None else bias,
        target,
        rows,
        outputs,
        inputs,
        x.stride(0),
        BLOCK_M=padded(rows),
        BLOCK_N=c.block_n,
        SLICE_K=c.slice_k,
        SLICES=c.slices,
        SPLITS=c.splits,
        HAS_SCALES=scales is not None and not by_block,
        SCALE_BLOCK=BLOCK if by_block else 0,
        HAS_BIAS=bias is not None,
        EVEN_K=inputs % (c.slice_k * c.slices) == 0,
        DOT_DTYPE=dot_dtype(x.dtype),
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )
    if split:
        reduce_kernel[(rows, triton.cdiv(outputs, _REDUCE_BLOCK))](
            target,
            out if scales is None else scales,
            out if bias is None else bias,
            out,
            rows,
            outputs,
            SPLITS=c.splits,
            HAS_SCALES=scales is not None and not by_block,
            HAS_BIAS=bias is not None,
            BLOCK=_REDUCE_BLOCK,
        )
    return out


def _many_rows(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    outputs, inputs = codes.shape
    out = torch.empty((x.shape[0], outputs), dtype=x.dtype, device=x.device)
    tile = max(1, min(outputs, _WIDENED_BYTES // (inputs * x.element_size())))
    widened = torch.empty((tile, inputs), dtype=x.dtype, device=x.device)
    for first in range(0, outputs, tile):
        count = min(tile, outputs - first)
        wide = widened[:count]
        _widen(codes[first : first + count], scales[first : first + count], wide)
        torch.mm(x, wide.T, out=out[:, first : first + count])
    return out if bias is None else out.add_(bias)


def _widen(codes: Tensor, scales: Tensor, out: Tensor) -> None:
    rows, inputs = codes.shape
    block = min(2048, padded(inputs))
    widen_kernel[(rows, triton.cdiv(inputs, block))](
        codes, scales, out, inputs, SCALE_BLOCK=BLOCK if scales.dim() == 2 else 0, BLOCK=block, num_warps=4
    )


@triton.jit
def quant_linear_kernel(
    x,  # (rows, inputs)
    weight,  # (outputs, inputs)
    scales,  # (outputs,), or (outputs, inputs / SCALE_BLOCK)
    bias,  # (outputs,)
    out,  # (rows, outputs), or (SPLITS, rows, outputs) float32
    rows,
    outputs,
    inputs,
    x_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SLICE_K: tl.constexpr,
    SLICES: tl.constexpr,
    SPLITS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
):
    STEP: tl.constexpr = SLICES * SLICE_K
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    safe_n = tl.where(n < outputs, n, 0).to(tl.int64)  # outputs behind the last compute another's and are not stored
    real_m = m < rows
    steps = tl.cdiv(inputs, STEP)
    if SPLITS == 1:
        first = 0
        last = steps
    else:
        share = tl.cdiv(steps, SPLITS)
        first = tl.program_id(1) * share
        last = tl.minimum(first + share, steps)

    k = tl.arange(0, SLICE_K)
    if SLICES == 1:
        in_w = k[:, None]  # input of each element of the weight's tile, within a step
        in_x = k[None, :]
        at_w = weight + safe_n[None, :] * inputs + in_w
        at_x = x + m[:, None].to(tl.int64) * x_stride + in_x
        mask_x = real_m[:, None]
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if SCALE_BLOCK > 0:
            at_s = scales + safe_n[None, :] * (inputs // SCALE_BLOCK)
    else:
        first_of_slice = tl.arange(0, SLICES)[:, None, None] * SLICE_K
        in_w = first_of_slice + k[None, None, :]
        in_x = first_of_slice + k[None, :, None]
        at_w = weight + safe_n[None, :, None] * inputs + in_w
        at_x = x + m[None, None, :].to(tl.int64) * x_stride + in_x
        mask_x = real_m[None, None, :]
        total = tl.zeros((SLICES, BLOCK_N, BLOCK_M), tl.float32)
        if SCALE_BLOCK > 0:
            at_s = scales + safe_n[None, :, None] * (inputs // SCALE_BLOCK)

    for step in range(first, last):
        begin = step * STEP
        if EVEN_K:
            w = tl.load(at_w + begin)
            a = tl.load(at_x + begin, mask=mask_x, other=0.0).to(DOT_DTYPE)
        else:
            w = tl.load(at_w + begin, mask=begin + in_w < inputs, other=0.0)
            a = tl.load(at_x + begin, mask=mask_x & (begin + in_x < inputs), other=0.0).to(DOT_DTYPE)
        if w.dtype == tl.float8e4nv:
            b = w.to(tl.float32).to(DOT_DTYPE)  # on the way that takes full-rate instructions; the direct one does not
        else:
            b = w.to(DOT_DTYPE)
        if SCALE_BLOCK == 0:
            if SLICES == 1:
                total = tl.dot(a, b, total, input_precision="ieee")
            else:
                total = tl.dot(b, a, total, input_precision="ieee")
        else:
            if SLICES == 1:
                total += tl.dot(a, b, input_precision="ieee") * tl.load(at_s + begin // SCALE_BLOCK)
            else:
                at_block = begin + first_of_slice
                scale = tl.load(at_s + at_block // SCALE_BLOCK, mask=at_block < inputs, other=0.0)
                total += tl.dot(b, a, input_precision="ieee") * scale

    if SLICES > 1:
        total = tl.trans(tl.sum(total, 0))
    if SPLITS == 1:
        if HAS_SCALES:
            total *= tl.load(scales + safe_n)[None, :]
        if HAS_BIAS:
            total += tl.load(bias + safe_n).to(tl.float32)[None, :]
    row = m.to(tl.int64)
    if SPLITS > 1:
        row += tl.program_id(1) * rows
    at = out + row[:, None] * outputs + n[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=real_m[:, None] & (n < outputs)[None, :])


@triton.jit
def reduce_kernel(
    partials,
    scales,
    bias,
    out,
    rows,
    outputs,
    SPLITS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = n < outputs
    total = tl.load(partials + row * outputs + n, mask=real, other=0.0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(partials + (row + split * rows) * outputs + n, mask=real, other=0.0)
    if HAS_SCALES:
        total *= tl.load(scales + n, mask=real, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + n, mask=real, other=0.0).to(tl.float32)
    tl.store(out + row * outputs + n, total.to(out.dtype.element_ty), mask=real)


@triton.jit
def widen_kernel(codes, scales, out, inputs, SCALE_BLOCK: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = k < inputs
    code = tl.load(codes + row * inputs + k, mask=real, other=0.0).to(tl.float32)
    if SCALE_BLOCK == 0:
        scale = tl.load(scales + row)
    else:
        scale = tl.load(scales + row * (inputs // SCALE_BLOCK) + k // SCALE_BLOCK, mask=real, other=0.0)
    tl.store(out + row * inputs + k, (code * scale).to(out.dtype.element_ty), mask=real)
