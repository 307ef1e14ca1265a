"""Small random models of every shape that is cut in its own way, and the runners and engines that hold them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Literal

import torch

from palmette.runtime.admission import Limits
from palmette.runtime.config import CacheConfig, RuntimeConfig, SchedulerConfig, resolve
from palmette.runtime.engine import EngineCore
from palmette.runtime.memory import KVMemory
from palmette.runtime.model_runner import ModelRunner
from palmette.runtime.models.config import ALL_FAMILIES, ModelConfig
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.tiny import RandomSource, tiny_config
from palmette.runtime.models.weights import assemble
from palmette.runtime.parallel.open_shard import open_whole
from palmette.runtime.parallel.orders import RandomModel
from palmette.runtime.runner import Runner
from palmette.runtime.scheduler import Scheduler

SEED = 1
NUM_SLOTS = 1024
NUM_ROWS = 8


def shapes() -> dict[str, ModelConfig]:
    """By name: every family, every bias, and heads that four ranks can share."""
    llama = tiny_config("llama")
    biases = replace(llama, qkv_bias=True, out_bias=True, mlp_bias=True)
    return {
        **{family: tiny_config(family) for family in ALL_FAMILIES},
        "biases": biases,
        "no groups": replace(biases, num_kv_heads=4, vocab_size=263),  # which neither two nor four divide
        "8 over 4 heads": replace(tiny_config("gemma3"), num_heads=8, num_kv_heads=4),
    }


def random_model(shape: str, dtype: str = "float32", gpu_kernels: str = "torch") -> RandomModel:
    return RandomModel(shapes()[shape], SEED, dtype, gpu_kernels)


@cache
def whole_decoder(shape: str, dtype: str = "float32") -> Decoder:
    """The same model in one piece."""
    config = shapes()[shape]
    return Decoder(config, assemble(config, RandomSource(SEED), dtype=getattr(torch, dtype), device="cpu"))


def whole_runner(shape: str, dtype: str = "float32") -> ModelRunner:
    return ModelRunner(whole_decoder(shape, dtype), num_slots=NUM_SLOTS, max_running_rows=NUM_ROWS)


def engine_on(runner: Runner, shape: str, *, overlap: Literal["auto", "on"] = "auto") -> EngineCore:
    """An engine on a runner of `whole_runner`'s sizes."""
    whole = open_whole(random_model(shape))
    config = RuntimeConfig(
        cache=CacheConfig(kv_tokens=NUM_SLOTS),
        scheduler=SchedulerConfig(max_running=NUM_ROWS - 2, overlap=overlap),
    )
    config = resolve(config, model_context_len=whole.config.context_len)
    assert Scheduler.num_rows(config.scheduler) <= NUM_ROWS
    limits = Limits(whole.config.vocab_size, whole.config.context_len, NUM_SLOTS, 1)
    scheduler = Scheduler(KVMemory(NUM_SLOTS, 1), config.scheduler)
    return EngineCore(runner, scheduler, limits, config=config, tokenizer=whole.read_tokenizer())
