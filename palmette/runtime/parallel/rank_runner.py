"""The runner of one rank: the same on all, so that their collective calls meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palmette.errors import InvalidOption
from palmette.runtime.config import KVDType
from palmette.runtime.kv_pool import KVPool
from palmette.runtime.later import Later
from palmette.runtime.logit_ops import LogitOps
from palmette.runtime.model_runner import ModelRunner
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.paged_runner import PagedRunner
from palmette.runtime.scheduled import ScheduledBatch

_KV_DTYPES: Final = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


class RankRunner(Protocol):
    """What the engine asks of a runner (`runtime.engine.Runner`)."""

    @property
    def kv_pool(self) -> KVPool: ...
    @property
    def ops(self) -> LogitOps: ...
    @property
    def is_asynchronous(self) -> bool: ...
    def forward(self, batch: ScheduledBatch, masks: Sequence[NDArray[np.uint32] | None] | None = None) -> Tensor: ...
    def embed(self, token_ids: tuple[int, ...], slots: tuple[int, ...], row: int) -> Tensor: ...
    def keep_drawn(self, rows: Sequence[int], tokens: Later[list[int]]) -> None: ...


def make_rank_runner(
    decoder: Decoder, *, num_slots: int, max_running_rows: int, context_len: int | None, kv_dtype: KVDType = "auto"
) -> RankRunner:
    """
    Raises:
        InvalidOption: a size that does not go with the model; 8-bit keys and values where the runner has none.
    """
    if decoder.kernels.walks_pages:
        return PagedRunner(
            decoder,
            num_slots=num_slots,
            max_running_rows=max_running_rows,
            context_len=context_len,
            kv_dtype=_KV_DTYPES.get(kv_dtype),
        )
    if kv_dtype != "auto":
        raise InvalidOption("kv_dtype", kv_dtype, "'auto' where Triton's kernels do not compute (device='cuda')")
    return ModelRunner(decoder, num_slots=num_slots, max_running_rows=max_running_rows, context_len=context_len)
