"""Small tensors between host and device, without waiting for either.

From and to ordinary memory a copy waits until the device has done what was queued; from and to pinned memory it is
queued like anything else. On a CPU nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from palmette.runtime.later import Deferred, Later, Now


def on_host(tensor: Tensor) -> Later[Tensor]:
    """The tensor's values as they are when the device comes to this copy."""
    if not tensor.is_cuda:
        return Now(tensor)
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.current_stream(tensor.device).record_event()

    def read() -> Tensor:
        copied.synchronize()
        return host

    return Deferred(read)


def take_rows(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """tensor[rows], in order; `tensor` itself, or a view, where these rows are adjacent."""
    if list(rows) == list(range(len(tensor))):
        return tensor
    if rows and list(rows) == list(range(rows[0], rows[0] + len(rows))):
        return tensor[rows[0] : rows[0] + len(rows)]
    index = torch.tensor(list(rows), dtype=torch.int64, pin_memory=tensor.is_cuda)
    return tensor.index_select(0, index.to(tensor.device, non_blocking=True))
