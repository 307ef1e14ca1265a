"""Every model gets the runner that can compute it."""

from __future__ import annotations

import pytest
import torch

from palmette.errors import InvalidOption
from palmette.native import NotBuilt
from palmette.runtime.compiled_runner import CompiledRunner
from palmette.runtime.config import CacheConfig, ModelOptions, RuntimeConfig
from palmette.runtime.device_ops import DeviceOps
from palmette.runtime.model_runner import ModelRunner
from palmette.runtime.models.open_model import open_model
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.paged_runner import PagedRunner
from palmette.runtime.runners import AnyRunner, make_runner, settle


def runner(config: RuntimeConfig) -> AnyRunner:
    loaded = open_model(config.model)
    return make_runner(loaded, settle(config, loaded), num_rows=4)


def test_torch_is_the_plain_one_and_triton_walks_pages() -> None:
    plain = runner(RuntimeConfig(model=ModelOptions("tiny", device="cpu", gpu_kernels="torch")))
    assert isinstance(plain, ModelRunner)
    assert not plain.is_asynchronous
    paged = runner(RuntimeConfig(model=ModelOptions("tiny", device="cpu", gpu_kernels="triton")))
    assert isinstance(paged, PagedRunner)
    assert paged.is_asynchronous
    assert isinstance(paged.ops, DeviceOps)


def test_a_compiled_model_is_the_cores() -> None:
    try:
        loaded = tiny_model(cpu_kernels="auto")
    except NotBuilt as error:
        pytest.skip(str(error))
    assert isinstance(make_runner(loaded, settle(RuntimeConfig(), loaded), num_rows=2), CompiledRunner)


@pytest.mark.parametrize(("kv_dtype", "held"), [("int8", torch.int8), ("fp8", torch.float8_e4m3fn)])
def test_8_bit_keys_and_values_are_tritons(kv_dtype: str, held: torch.dtype) -> None:
    cache = CacheConfig(kv_tokens=64, kv_dtype=kv_dtype)  # type: ignore[arg-type] # one of its names
    found = runner(RuntimeConfig(ModelOptions("tiny", device="cpu", gpu_kernels="triton", context_len=64), cache))
    assert found.kv_pool.layer(0).keys.dtype == held
    with pytest.raises(InvalidOption, match="kv_dtype"):
        runner(RuntimeConfig(ModelOptions("tiny", device="cpu", context_len=64), cache))
