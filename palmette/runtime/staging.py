"""One step's integers on their way to a device: laid side by side in pinned memory, copied at once, never waited for.

    begin -> put, put, ...  -> send           put returns the place on the device; it holds the numbers after send

Pinned buffers take turns: one is filled while the device may still read others. The buffer on the device is one: who
reads it was queued before the copy that overwrites it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGN = 4  # ints: sections begin at multiples of 16 bytes, as vector loads want it


class Staging:
    """Used by one thread, on one stream."""

    def __init__(self, device: torch.device, capacity: int = 1 << 12, *, turns: int = 2) -> None:
        """
        Args:
            capacity: ints sent at once; grows where `fit` needs more, and then what `put` returned before is stale.
            turns: pinned buffers: what is sent n times between two waits for the device needs n + 1.
        """
        self._device, self._turns = device, turns
        self._is_cuda = device.type == "cuda"
        self._turn = 0
        self._allocate(capacity)

    def begin(self) -> None:
        """Start over. Waits if the device has not read what was sent `turns` times ago."""
        self._turn = (self._turn + 1) % self._turns
        self._used = 0
        if self._is_cuda:
            self._read[self._turn].synchronize()

    def fit(self, num_ints: int, num_sections: int) -> None:
        """Make room before the first `put` of a step."""
        needed = num_ints + _ALIGN * num_sections
        if needed > len(self._on_device):
            self._allocate(2 * needed)

    def put(self, array: NDArray[np.int32], *, reserve: int | None = None) -> Tensor:
        """
        Args:
            array: (n, ...) int32.
            reserve: rows of the place; n when None. What stands behind n is whatever was there.

        Returns:
            (reserve, ...) int32 on the device.
        """
        rows = len(array) if reserve is None else reserve
        assert len(array) <= rows, "more rows than were reserved"
        size = rows * int(np.prod(array.shape[1:], dtype=np.int64))
        first, self._used = self._used, self._used + -(-size // _ALIGN) * _ALIGN
        assert self._used <= len(self._on_device), "no room: call fit first"
        self._host[self._turn].numpy()[first : first + array.size] = array.reshape(-1)
        return self._on_device[first : first + size].view(rows, *array.shape[1:])

    def send(self) -> None:
        """Queue the copy."""
        host = self._host[self._turn]
        self._on_device[: self._used].copy_(host[: self._used], non_blocking=self._is_cuda)
        if self._is_cuda:
            self._read[self._turn].record()

    def _allocate(self, capacity: int) -> None:
        self._host = [torch.zeros(capacity, dtype=torch.int32, pin_memory=self._is_cuda) for _ in range(self._turns)]
        self._on_device = torch.zeros(capacity, dtype=torch.int32, device=self._device)
        self._read = [torch.Event(device=self._device) for _ in range(self._turns)] if self._is_cuda else []
        self._used = 0
