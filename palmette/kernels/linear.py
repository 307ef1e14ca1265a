"""Linear layer: y = x W^T + b.

    x (rows, in), W (out, in), b (out,)  ->  y (rows, out)

On CPU torch hands a product of few rows to a kernel that reads W at half the memory's speed or less; the same product
written as W x^T is read at full speed. One row is computed as two equal ones: matrix-vector products are the slowest
of all. Measured in docs/benchmarks.md.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

FEW_ROWS = 64  # from here on both ways take the same time


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The layer's output, contiguous. All of one dtype; x has two dimensions."""
    rows = x.shape[0]
    if rows > FEW_ROWS or rows == 0 or x.device.type != "cpu":
        return F.linear(x, weight, bias)
    y = (weight @ (x.repeat(2, 1) if rows == 1 else x).T)[:, :rows].T.contiguous()
    return y if bias is None else y.add_(bias)
