"""A pool takes what is free and leaves what steps need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from palmette.errors import InvalidOption
from palmette.runtime.device_memory import slot_bytes, step_bytes, tokens_that_fit
from palmette.runtime.kv_pool import KVPool, kv_specs
from palmette.runtime.models.tiny import tiny_config

GB = 1 << 30


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_slots_bytes_are_the_pools(family: str, dtype: torch.dtype) -> None:
    config = tiny_config(family)
    pool = KVPool(kv_specs(config, dtype), num_slots=9)
    assert pool.num_bytes == 10 * slot_bytes(config, dtype)


def test_what_is_left_of_a_large_device_holds_the_pool_and_a_step() -> None:
    config = replace(tiny_config(), context_len=8192, vocab_size=128256)
    options: Any = {"dtype": torch.bfloat16, "kv_dtype": torch.bfloat16, "chunk_size": 8192, "context_len": 8192}
    tokens = tokens_that_fit(config, free=100 * GB, total=140 * GB, **options)
    step = step_bytes(config, torch.bfloat16, chunk_size=8192, context_len=8192)
    assert tokens * slot_bytes(config, torch.bfloat16) + step + 7 * GB <= 100 * GB
    assert tokens * slot_bytes(config, torch.bfloat16) > 80 * GB
    codes = tokens_that_fit(config, free=100 * GB, total=140 * GB, **{**options, "kv_dtype": torch.int8})
    assert 1.5 < codes / tokens < 2


def test_a_device_without_room_for_one_context_says_what_would_fit() -> None:
    config = replace(tiny_config(), context_len=8192, vocab_size=128256)
    with pytest.raises(InvalidOption, match=r"context_len.*at most 0.*smaller chunk_size"):
        tokens_that_fit(
            config,
            free=GB // 16,
            total=GB,
            dtype=torch.bfloat16,
            kv_dtype=torch.bfloat16,
            chunk_size=512,
            context_len=8192,
        )
