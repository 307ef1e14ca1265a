"""A token's partial results, put together in position order.

    m = max_i lse_i,   w_i = 2^(lse_i - m),   out = sum_i w_i partial_i / sum_i w_i

Partials and their base-2 logarithms are those of `split_attention`; a token's lie side by side, in the order of their
cuts, and are added in that order one by one, in float32, however many there are (Dao et al. 2023, "Flash-Decoding").
A token without partials, or whose partials saw nothing, gives zeros.

One program for each token and head: partials (num_partials, num_heads, head_dim) float32, out (num_tokens, num_heads,
head_dim) in any float dtype. AHEAD partials are loaded before the first of them is added.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from palmette.kernels.gpu.launch import padded
from palmette.kernels.paged_plan import MergeWork

AHEAD = 8  # partials


def merge_partials(partials: Tensor, lse: Tensor, merge: MergeWork, out: Tensor) -> None:
    """Write the rows of `out` that merge.tokens names; others stay as they are.

    Args:
        partials: (num_partials, num_heads, head_dim) float32, contiguous.
        lse: (num_partials, num_heads) float32, base 2; -inf has weight 0, and its partial must be finite.
        out: (num_tokens, num_heads, head_dim), contiguous.
    """
    _, num_heads, head_dim = out.shape
    num_tokens = merge.tokens.shape[0]
    if num_tokens:
        merge_partials_kernel[(num_heads, num_tokens)](
            partials,
            lse,
            merge.tokens,
            merge.firsts,
            out,
            num_heads,
            HEAD_DIM=head_dim,
            BLOCK_D=padded(head_dim),
            AHEAD=AHEAD,
            num_warps=1,
        )


@triton.jit
def merge_partials_kernel(
    partials, lse, tokens, firsts, out, num_heads, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, AHEAD: tl.constexpr
):
    head = tl.program_id(0)
    place = tl.program_id(1)
    token = tl.load(tokens + place).to(tl.int64)
    first = tl.load(firsts + place)
    count = tl.load(firsts + place + 1) - first
    lse += first.to(tl.int64) * num_heads + head
    partials += (first.to(tl.int64) * num_heads + head) * HEAD_DIM
    d = tl.arange(0, BLOCK_D)
    real_d = d < HEAD_DIM

    ahead = tl.arange(0, AHEAD)
    highest = tl.full((AHEAD,), float("-inf"), tl.float32)
    for start in range(0, count, AHEAD):
        some = tl.load(lse + (start + ahead) * num_heads, mask=start + ahead < count, other=float("-inf"))
        highest = tl.maximum(highest, some)
    top = tl.max(highest, 0)
    top = tl.where(top == float("-inf"), 0.0, top)

    total = 0.0
    acc = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, count, AHEAD):
        for i in tl.static_range(AHEAD):
            there = start + i < count
            at = (start + i) * num_heads
            weight = tl.exp2(tl.load(lse + at, mask=there, other=float("-inf")) - top)
            total += weight
            acc += weight * tl.load(partials + at * HEAD_DIM + d, mask=d < tl.where(there, HEAD_DIM, 0), other=0.0)
    result = acc / tl.where(total == 0.0, 1.0, total)
    tl.store(out + (token * num_heads + head) * HEAD_DIM + d, result.to(out.dtype.element_ty), mask=real_d)
