"""Linear layers for few rows under Triton against their definitions."""

from __future__ import annotations

from dataclasses import astuple
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from palmette.errors import InvalidOption
from palmette.kernels import quant_linear as definition
from palmette.kernels.gpu.quant_linear import MOST_ROWS, QuantConfig, choose_config, quant_linear, skinny_linear
from palmette.kernels.quant_linear import BLOCK, dequantize_weight, quantize_weight
from tests.kernels.gpu.close import DEVICE, assert_within_an_ulp, poisoned_empty

CONFIGS = (
    None,
    QuantConfig(32, 64, slices=1, splits=1, num_warps=4, num_stages=2),
    QuantConfig(32, 64, slices=2, splits=1, num_warps=4, num_stages=2),
    QuantConfig(64, 32, slices=1, splits=3, num_warps=4, num_stages=2),
    QuantConfig(32, 32, slices=4, splits=2, num_warps=4, num_stages=2),
)


def close(got: Tensor, wanted: Tensor) -> None:
    assert_within_an_ulp(got, wanted, floor=2e-4)  # sums of hundreds of products that cancel


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("codes_dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize(("rows", "outputs", "inputs", "blocks"), [(1, 40, 200, False), (33, 70, 256, True)])
def test_it_is_its_definition(
    rows: int,
    outputs: int,
    inputs: int,
    blocks: bool,
    codes_dtype: torch.dtype,
    dtype: torch.dtype,
    config: QuantConfig | None,
) -> None:
    torch.manual_seed(rows)
    x = torch.randn(rows, inputs, device=DEVICE).to(dtype)
    codes, scales = quantize_weight(torch.randn(outputs, inputs, device=DEVICE), codes_dtype, blocks=blocks)
    bias = torch.randn(outputs, device=DEVICE).to(dtype) if blocks else None
    with poisoned_empty():
        got = quant_linear(x, codes, scales, bias, config=config)
    close(got, definition.quant_linear(x, codes, scales, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 16, 17, MOST_ROWS])
def test_a_weight_of_floats_takes_the_same_way(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    x, weight, bias = (torch.randn(shape, device=DEVICE).to(dtype) for shape in ((rows, 72), (50, 72), (50,)))
    for b in (None, bias):
        with poisoned_empty():
            got = skinny_linear(x, weight, b)
        close(got, F.linear(x.float(), weight.float(), None if b is None else b.float()).to(dtype))


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("codes_dtype", [torch.int8, torch.float8_e4m3fn])
def test_many_rows_multiply_with_widened_tiles(
    codes_dtype: torch.dtype, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("palmette.kernels.gpu.quant_linear._WIDENED_BYTES", 2 * BLOCK * 4 * 30)  # 30 outputs a tile
    x, bias = torch.randn(MOST_ROWS + 1, 2 * BLOCK, device=DEVICE), torch.randn(70, device=DEVICE)
    codes, scales = quantize_weight(torch.randn(70, 2 * BLOCK, device=DEVICE), codes_dtype, blocks=blocks)
    with poisoned_empty():
        got = quant_linear(x, codes, scales, bias)
        halves = quant_linear(x.bfloat16(), codes, scales)
    close(got, definition.quant_linear(x, codes, scales, bias))
    held = dequantize_weight(codes, scales)
    wanted = F.linear(x.bfloat16().float(), held)
    assert halves.dtype == torch.bfloat16
    allowed = 2.0**-7 * (F.linear(x.abs(), held.abs()) + wanted.abs())  # each weight rounded, and each result
    assert ((halves.float() - wanted).abs() <= allowed).all()


def test_many_rows_of_floats_are_torchs() -> None:
    x, weight = torch.randn(MOST_ROWS + 1, 24, device=DEVICE), torch.randn(10, 24, device=DEVICE)
    assert torch.equal(skinny_linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_knows_nothing_of_its_batch_mates(dtype: torch.dtype) -> None:
    x = torch.randn(16, 160, device=DEVICE).to(dtype)
    codes, scales = quantize_weight(torch.randn(40, 160, device=DEVICE), torch.int8)
    alone = quant_linear(x[3:4], codes, scales)
    x[:3] = float("nan")
    x[4:] = 1e30
    together = quant_linear(x, codes, scales)
    assert torch.equal(together[3:4], alone)
    assert torch.isnan(together[:3]).all()


def test_rows_may_lie_apart() -> None:
    wide = torch.randn(5, 96, device=DEVICE)
    codes, scales = quantize_weight(torch.randn(20, 64, device=DEVICE), torch.int8)
    assert torch.equal(quant_linear(wide[:, 32:], codes, scales), quant_linear(wide[:, 32:].clone(), codes, scales))


def test_scales_in_blocks_want_slices_that_divide_them() -> None:
    codes, scales = quantize_weight(torch.randn(8, 2 * BLOCK, device=DEVICE), torch.int8, blocks=True)
    config = QuantConfig(32, 2 * BLOCK, slices=1, splits=1, num_warps=4, num_stages=2)
    with pytest.raises(InvalidOption, match="slice_k=256"):
        quant_linear(torch.ones(1, 2 * BLOCK, device=DEVICE), codes, scales, config=config)


@pytest.mark.parametrize("code_bytes", [1, 2])
@pytest.mark.parametrize(("outputs", "inputs"), [(4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (576, 576)])
def test_configs_fill_the_machine_and_depend_on_padded_rows_alone(outputs: int, inputs: int, code_bytes: int) -> None:
    for processors, few in product((1, 132), ((1, 16), (17, 32), (33, MOST_ROWS))):
        configs = [
            choose_config(rows, outputs, inputs, x_bytes=2, code_bytes=code_bytes, processors=processors)
            for rows in range(few[0], few[1] + 1)
        ]
        assert len(set(configs)) == 1
        config = configs[0]
        assert all(n & (n - 1) == 0 for n in astuple(config) if n != config.num_stages)
        assert BLOCK % config.slice_k == 0
        tiles = -(-outputs // config.block_n)
        steps = -(-inputs // (config.slice_k * config.slices))
        assert tiles * config.splits >= processors * 7 // 8 or steps // config.splits < 8
        assert config.splits == 1 or tiles < processors
