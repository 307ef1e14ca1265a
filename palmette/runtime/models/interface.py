"""What a model reads of a step, and what a runtime reads of a model: the seam between `runtime.models` and `runtime`.

The models package imports nothing of the runtime's batch or pool; these protocols say what it needs of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from palmette.kernels.kv_store import KVLayer
from palmette.kernels.step_kernels import Plan


class StepTensors(Protocol):
    """One forward pass; see `runtime.batch.ForwardBatch`."""

    @property
    def input_ids(self) -> Tensor: ...
    @property
    def positions(self) -> Tensor: ...
    @property
    def slots(self) -> Tensor: ...
    @property
    def plans(self) -> Mapping[int | None, Plan]: ...


class LayerKV(Protocol):
    """Keys and values by layer; see `runtime.kv_pool.KVPool`."""

    def layer(self, index: int) -> KVLayer: ...
