"""Which runner a model gets, and how large its pool is: what an engine leaves to whoever computes."""

from __future__ import annotations

import gc
from functools import partial
from typing import Final

import torch

from palmette.errors import InvalidOption
from palmette.runtime.compiled_runner import CompiledRunner
from palmette.runtime.config import DEVICE_CHUNK, RuntimeConfig, resolve
from palmette.runtime.device_memory import tokens_that_fit
from palmette.runtime.model_runner import ModelRunner
from palmette.runtime.models.compiled import CompiledDecoder
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.paged_runner import PagedRunner
from palmette.runtime.parallel.model import ParallelModel
from palmette.runtime.parallel.runner import ParallelRunner

_KV_DTYPES: Final = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}

AnyRunner = ModelRunner | CompiledRunner | PagedRunner | ParallelRunner


def settle(config: RuntimeConfig, loaded: LoadedModel) -> RuntimeConfig:
    """The config with nothing left open.

    Raises:
        InvalidOption: an option that the model, or the memory of its device, does not allow.
    """
    # Of a split model, rank 0's part: no rank has a larger one, and each has its part of the pool.
    model = loaded.model.decoder if isinstance(loaded.model, ParallelModel) else loaded.model
    if not isinstance(model, Decoder) or model.device.type != "cuda":
        return resolve(config, model_context_len=loaded.config.context_len)
    gc.collect()  # an engine that ended may be part of a cycle, and its pool with it
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(model.device)
    fits = partial(
        tokens_that_fit,
        model.config,
        free=free,
        total=total,
        dtype=model.dtype,
        kv_dtype=_KV_DTYPES.get(config.cache.kv_dtype, model.dtype),
        chunk_size=config.scheduler.chunk_size or DEVICE_CHUNK,
    )
    return resolve(
        config, model_context_len=loaded.config.context_len, tokens_that_fit=fits, default_chunk=DEVICE_CHUNK
    )


def make_runner(loaded: LoadedModel, config: RuntimeConfig, *, num_rows: int) -> AnyRunner:
    """A runner with its pool and page table.

    Args:
        config: settled.
        num_rows: of the page table.

    Raises:
        InvalidOption: 8-bit keys and values where the runner has none.
    """
    num_slots, context_len, kv_dtype = config.cache.kv_tokens, config.model.context_len, config.cache.kv_dtype
    assert num_slots is not None, "settle leaves nothing open"
    model = loaded.model
    if isinstance(model, ParallelModel):
        return ParallelRunner(
            model, num_slots=num_slots, max_running_rows=num_rows, context_len=context_len, kv_dtype=kv_dtype
        )
    if isinstance(model, Decoder) and model.kernels.walks_pages:
        return PagedRunner(
            model,
            num_slots=num_slots,
            max_running_rows=num_rows,
            context_len=context_len,
            kv_dtype=_KV_DTYPES.get(kv_dtype),
        )
    if kv_dtype != "auto":
        raise InvalidOption("kv_dtype", kv_dtype, "'auto' where Triton's kernels do not compute (device='cuda')")
    if isinstance(model, CompiledDecoder):
        assert context_len is not None, "settle leaves nothing open"
        return CompiledRunner(model, num_slots=num_slots, max_running_rows=num_rows, context_len=context_len)
    return ModelRunner(model, num_slots=num_slots, max_running_rows=num_rows, context_len=context_len)
