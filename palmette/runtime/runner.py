"""What computes steps: torch, the compiled core, a device whose kernels walk a page table, or several processes.

Knows steps as plain ints and results as tensors. Does not know requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from palmette.runtime.kv_pool import KVPool
from palmette.runtime.later import Later
from palmette.runtime.logit_ops import LogitOps
from palmette.runtime.scheduled import ScheduledBatch


class Runner(Protocol):
    """Computes steps, in the order of the calls. Used by one thread at a time."""

    @property
    def kv_pool(self) -> KVPool: ...
    @property
    def ops(self) -> LogitOps: ...
    @property
    def is_asynchronous(self) -> bool:
        """Are results on their way when a call returns? Whatever is queued is done in the order of the calls."""
        ...

    def forward(self, batch: ScheduledBatch, masks: Sequence[NDArray[np.uint32] | None] | None = None) -> Tensor:
        """The logits of a step; to be read, or reads of them queued, before the next forward pass is."""
        ...

    def embed(self, token_ids: tuple[int, ...], slots: tuple[int, ...], row: int) -> Tensor: ...

    def keep_drawn(self, rows: Sequence[int], tokens: Later[list[int]]) -> None:
        """tokens[i] was drawn for page-table row rows[i]: what DRAWN stands for in the next forward pass."""
        ...
