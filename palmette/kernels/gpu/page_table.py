"""New slots into the page table; defined by `kernels.page_table`.

A program takes BLOCK updates. The grid follows from the buffer's capacity and the count is read on the device, so one
captured launch serves every step.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 128


def update(page_table: Tensor, updates: Tensor, count: Tensor) -> None:
    """See kernels.page_table.update; updates contiguous, page_table contiguous in its last dimension."""
    capacity = updates.shape[0]
    if capacity:
        update_kernel[(triton.cdiv(capacity, _BLOCK),)](
            page_table, updates, count, page_table.stride(0), BLOCK=_BLOCK, num_warps=_BLOCK // 32
        )


@triton.jit
def update_kernel(page_table, updates, count, row_stride, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = i < tl.load(count)
    row = tl.load(updates + 3 * i, mask=real, other=0).to(tl.int64)
    index = tl.load(updates + 3 * i + 1, mask=real, other=0)
    slot = tl.load(updates + 3 * i + 2, mask=real, other=0)
    tl.store(page_table + row * row_stride + index, slot, mask=real)
