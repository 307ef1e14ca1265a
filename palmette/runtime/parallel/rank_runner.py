"""The runner of one rank: the same on all, so that their collective calls meet."""

from __future__ import annotations

from typing import Final

import torch

from palmette.errors import InvalidOption
from palmette.runtime.config import KVDType
from palmette.runtime.model_runner import ModelRunner
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.paged_runner import PagedRunner
from palmette.runtime.runner import Runner

_KV_DTYPES: Final = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


def make_rank_runner(
    decoder: Decoder, *, num_slots: int, max_running_rows: int, context_len: int | None, kv_dtype: KVDType = "auto"
) -> Runner:
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
