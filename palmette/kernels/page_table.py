"""Telling the page table of a step's new slots: page_table[row, index] = slot.

One small copy to the device and one scatter there, in place of copying the whole table.
"""

from __future__ import annotations

from torch import Tensor


def update(page_table: Tensor, updates: Tensor, count: Tensor) -> None:
    """Write the first `count` updates; mutates page_table.

    Args:
        page_table: (max_rows, context_len) int32.
        updates: (capacity, 3) int32: row, index, slot; no (row, index) twice. Behind the count anything may stand.
        count: (1,) int32.
    """
    rows, indices, slots = updates[: int(count)].unbind(1)
    page_table[rows.long(), indices.long()] = slots
