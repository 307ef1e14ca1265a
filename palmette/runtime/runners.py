"""Which runner a model gets, and how large its pool is: what an engine leaves to whoever computes."""

from __future__ import annotations

import gc
import logging
import time
from functools import partial
from typing import Final, Protocol, runtime_checkable

import torch
from torch import Tensor

from palmette.errors import InvalidOption
from palmette.runtime.compiled_runner import CompiledRunner
from palmette.runtime.config import DEVICE_CHUNK, RuntimeConfig, resolve
from palmette.runtime.device_memory import tokens_that_fit
from palmette.runtime.models.compiled import CompiledDecoder
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.parallel.model import ParallelModel
from palmette.runtime.parallel.rank_runner import make_rank_runner
from palmette.runtime.parallel.runner import ParallelRunner
from palmette.runtime.runner import Runner
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow, TreeRow

_KV_DTYPES: Final = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}

logger = logging.getLogger(__name__)


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


def make_runner(loaded: LoadedModel, config: RuntimeConfig, *, num_rows: int) -> Runner:
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
    if not isinstance(model, CompiledDecoder):
        return make_rank_runner(
            model, num_slots=num_slots, max_running_rows=num_rows, context_len=context_len, kv_dtype=kv_dtype
        )
    if kv_dtype != "auto":
        raise InvalidOption("kv_dtype", kv_dtype, "'auto' where Triton's kernels do not compute (device='cuda')")
    assert context_len is not None, "settle leaves nothing open"
    return CompiledRunner(model, num_slots=num_slots, max_running_rows=num_rows, context_len=context_len)


def warm_up(runner: Runner, config: RuntimeConfig) -> None:
    """Have a device compile what steps launch, before a request waits for it. What the pool holds is lost.

    Long prompts, shorter ones, rows behind one prefix, nodes of a trie, and every way to draw: kernels are compiled for
    kinds of work, not for numbers. Graphs are captured later, the first ones in milliseconds each.

    Args:
        config: settled.
    """
    num_slots, context_len = config.cache.kv_tokens, config.model.context_len
    assert num_slots is not None, "settle leaves nothing open"
    assert context_len is not None, "settle leaves nothing open"
    rows = min(config.scheduler.max_running, 24)
    longest = min(context_len - 8, num_slots - 8 * rows, config.scheduler.chunk_size or DEVICE_CHUNK, 600)
    if longest < 1:
        return
    began = time.perf_counter()
    prompt = tuple(range(longest))
    shared = prompt[: longest - 1]
    runner.forward(_one(ScheduledRow(0, _tokens(longest), 0, prompt, logits_from=longest - 1)))
    some = min(20, longest)
    runner.forward(_one(ScheduledRow(0, _tokens(some), 0, prompt[:some], logits_from=some - 1)))
    after = [tuple(range(longest + 8 * row, longest + 8 * row + 8)) for row in range(rows)]
    tree = TreeRow(len(shared), (-1, 0, 0), 0)
    runner.forward(_one(ScheduledRow(0, _tokens(3), len(shared), after[0][:3], (0, shared), 0, tree)))
    for num in {1, rows}:
        found = [ScheduledRow(i, (0,), len(shared), after[i][:1], (0, shared), 0) for i in range(num)]
        logits = runner.forward(ScheduledBatch(tuple(found)))
    if isinstance(runner.ops, Warmable):
        runner.ops.warm_up(logits)
    logger.info("kernels were compiled in %.1f s", time.perf_counter() - began)


@runtime_checkable
class Warmable(Protocol):
    """Operations that compile at first use; see device_ops.DeviceOps."""

    def warm_up(self, logits: Tensor) -> None: ...


def _one(row: ScheduledRow) -> ScheduledBatch:
    return ScheduledBatch((row,))


def _tokens(num: int) -> tuple[int, ...]:
    return (0,) * num
