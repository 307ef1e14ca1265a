"""What the steps of `sampling` compute of an id, alike to the last bit: its score, its weight, and whether it stays.

    x = the adjusted logit, minus infinity where masked or bad        z = x/T - max/T        weight = floor(exp(z) 2^39)

Called by kernels; see `sampling` for why these make a row's token exact and its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from palmette.kernels.gpu.logprobs import without_bad

_UNIT = tl.constexpr(float(2**39))  # what the best token weighs


@triton.jit
def scores_of(
    row,
    ids,
    logits,
    stride,
    copies,
    copy_of,
    masks,
    mask_row,
    words,
    vocab,
    HAS_COPIES: tl.constexpr,
    HAS_MASKS: tl.constexpr,
):
    """x of some ids of a row: adjusted, minus infinity where masked or bad."""
    real = ids < vocab
    if HAS_COPIES:
        copy = tl.load(copy_of + row).to(tl.int64)
        if copy >= 0:
            x = tl.load(copies + copy * vocab + ids, mask=real, other=-float("inf"))
        else:
            x = tl.load(logits + row * stride + ids, mask=real, other=-float("inf")).to(tl.float32)
    else:
        x = tl.load(logits + row * stride + ids, mask=real, other=-float("inf")).to(tl.float32)
    x = without_bad(x)
    if HAS_MASKS:
        mask = tl.load(mask_row + row).to(tl.int64)
        if mask >= 0:
            word = tl.load(masks + mask * words + ids // 32, mask=real & (ids // 32 < words), other=0)
            x = tl.where(((word >> (ids % 32)) & 1) != 0, x, -float("inf"))
    return x


@triton.jit
def scaled_score(x, best, temperature):
    """z <= 0; minus infinity where x is, or where no number is left of it."""
    base = tl.where(best > -float("inf"), best, 0.0)
    if temperature == 1.0:  # a tenth of what a program does to an id is this division
        z = x - base
    else:
        z = tl.div_rn(x, temperature) - tl.div_rn(base, temperature)
    return tl.where(z <= 0.0, z, -float("inf"))


@triton.jit
def weight_of(z):
    return (tl.exp(z) * _UNIT).to(tl.int64)


@triton.jit
def is_kept(z, cut, min_p):
    """Whether z stays: at least as likely as the threshold, to the last bit of its weight, and as min_p."""
    w = tl.exp(z)
    return ((z >= cut) | (w >= tl.exp(cut))) & (w >= min_p)


@triton.jit
def depth_of(z):
    """Integers in the opposite order of z <= 0."""
    return tl.abs(z).to(tl.int32, bitcast=True)


@triton.jit
def best_of_row(found, row, num_chunks, CHUNKS: tl.constexpr):
    c = tl.arange(0, CHUNKS)
    return tl.max(tl.load(found + (row * 4 + 2) * num_chunks + c, mask=c < num_chunks, other=-float("inf")), 0)


@triton.jit
def element_at(vector, places, place):
    return tl.sum(tl.where(places == place, vector, 0), 0)
