"""Every model gets the runner that can compute it."""

from __future__ import annotations

import pytest
import torch

from palmette.errors import InvalidOption
from palmette.native import NotBuilt
from palmette.runtime.compiled_runner import CompiledRunner
from palmette.runtime.config import CacheConfig, ModelOptions, RuntimeConfig, SchedulerConfig
from palmette.runtime.device_ops import DeviceOps
from palmette.runtime.model_runner import ModelRunner
from palmette.runtime.models.open_model import open_model
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.paged_runner import PagedRunner
from palmette.runtime.runner import Runner
from palmette.runtime.runners import make_runner, settle, warm_up
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow


def runner(config: RuntimeConfig) -> Runner:
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


@pytest.mark.parametrize("sizes", [(64, 64, 4), (2000, 900, 40), (9, 8, 1)])
def test_warming_up_fits_into_any_pool(sizes: tuple[int, int, int]) -> None:
    """On a GPU it compiles; here it shows that the work is well formed, whatever the sizes."""
    kv_tokens, context_len, max_running = sizes
    loaded = tiny_model()
    config = RuntimeConfig(
        ModelOptions("tiny", context_len=context_len),
        CacheConfig(kv_tokens=kv_tokens),
        SchedulerConfig(max_running=max_running),
    )
    config = settle(config, loaded)
    runner = PagedRunner(
        loaded.decoder, num_slots=kv_tokens, max_running_rows=max_running + 1, context_len=context_len, graphs=True
    )
    runner.ops = DeviceOps(loaded.decoder.device)
    warm_up(runner, config)
    row = ScheduledRow(0, (1, 2), 0, (0, 1), logits_from=0)
    assert runner.forward(ScheduledBatch((row,))).isfinite().all()


@pytest.mark.parametrize(("kv_dtype", "held"), [("int8", torch.int8), ("fp8", torch.float8_e4m3fn)])
def test_8_bit_keys_and_values_are_tritons(kv_dtype: str, held: torch.dtype) -> None:
    cache = CacheConfig(kv_tokens=64, kv_dtype=kv_dtype)  # type: ignore[arg-type] # one of its names
    found = runner(RuntimeConfig(ModelOptions("tiny", device="cpu", gpu_kernels="triton", context_len=64), cache))
    assert found.kv_pool.layer(0).keys.dtype == held
    with pytest.raises(InvalidOption, match="kv_dtype"):
        runner(RuntimeConfig(ModelOptions("tiny", device="cpu", context_len=64), cache))
