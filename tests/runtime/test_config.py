"""The configuration: every bad value is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from palmette.errors import InvalidOption
from palmette.runtime.config import (
    DEFAULT_CHUNK,
    DEVICE_CHUNK,
    CacheConfig,
    ModelOptions,
    RuntimeConfig,
    SchedulerConfig,
    resolve,
)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        (ModelOptions, "model_path", ""),
        (ModelOptions, "dtype", "float8"),
        (ModelOptions, "device", ""),
        (ModelOptions, "gpu_kernels", "cuda"),
        (ModelOptions, "context_len", 1),
        (CacheConfig, "page_size", 0),
        (CacheConfig, "page_size", True),
        (CacheConfig, "kv_tokens", 1),
        (CacheConfig, "kv_dtype", "float16"),
        (CacheConfig, "enabled", "yes"),
        (SchedulerConfig, "max_running", 0),
        (SchedulerConfig, "chunk_size", -1),
        (SchedulerConfig, "chunk_size", 2.5),
        (SchedulerConfig, "policy", "fastest"),
        (SchedulerConfig, "overlap", True),
        (SchedulerConfig, "window", 0),
        (SchedulerConfig, "seed", -1),
    ],
)
def test_a_bad_value_is_refused_by_name(part: Any, field: str, value: object) -> None:
    with pytest.raises(InvalidOption) as caught:
        part(**{field: value})
    assert caught.value.field == field


def test_a_chunk_must_hold_a_page() -> None:
    with pytest.raises(InvalidOption, match="page size"):
        RuntimeConfig(cache=CacheConfig(page_size=16), scheduler=SchedulerConfig(chunk_size=8))


def test_what_is_left_open_is_settled_by_the_model() -> None:
    settled = resolve(RuntimeConfig(cache=CacheConfig(kv_tokens=1000, page_size=16)), model_context_len=512)
    assert settled.model.context_len == 512
    assert settled.cache.kv_tokens == 992
    assert resolve(RuntimeConfig(), model_context_len=1 << 15).cache.kv_tokens == 1 << 15
    assert settled.scheduler.chunk_size == DEFAULT_CHUNK
    asked = RuntimeConfig(scheduler=SchedulerConfig(chunk_size=64))
    assert resolve(asked, model_context_len=512, default_chunk=DEVICE_CHUNK).scheduler.chunk_size == 64
    assert (
        resolve(RuntimeConfig(), model_context_len=512, default_chunk=DEVICE_CHUNK).scheduler.chunk_size == DEVICE_CHUNK
    )


def test_a_pool_on_a_device_takes_what_fits() -> None:
    def fits(*, context_len: int) -> int:
        return 10 * context_len

    assert resolve(RuntimeConfig(), model_context_len=512, tokens_that_fit=fits).cache.kv_tokens == 5120
    asked = RuntimeConfig(cache=CacheConfig(kv_tokens=600))
    assert resolve(asked, model_context_len=512, tokens_that_fit=fits).cache.kv_tokens == 600


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(InvalidOption, match="context_len"):
        resolve(RuntimeConfig(model=ModelOptions(context_len=1024)), model_context_len=512)
