"""8-bit weights by their definition: what rounding costs, and what the layer computes with the codes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from palmette.errors import InvalidOption
from palmette.kernels.quant_linear import BLOCK, dequantize_weight, quant_linear, quantize_weight

EIGHT_BITS = (torch.int8, torch.float8_e4m3fn)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_a_weight_is_off_by_half_a_step_at_most(dtype: torch.dtype, blocks: bool) -> None:
    weight = torch.randn(20, 2 * BLOCK) * torch.rand(20, 1)
    codes, scales = quantize_weight(weight, dtype, blocks=blocks)
    assert codes.dtype == dtype
    assert scales.shape == ((20, 2) if blocks else (20,))
    held = dequantize_weight(codes, scales)
    steps = scales.repeat_interleave(BLOCK, 1) if blocks else scales[:, None].expand(20, 2 * BLOCK)
    if dtype != torch.int8:  # a step is an eighth of the power of two below, and 2^-9 of the scale near zero
        steps = (
            torch.maximum(torch.exp2(torch.floor(torch.log2(weight.abs() / steps))) / 8, torch.tensor(2.0**-9)) * steps
        )
    assert ((held - weight).abs() <= 0.5001 * steps).all()
    assert (held - weight).abs().max() > 0


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_blocks_keep_an_outlier_from_its_neighbours(dtype: torch.dtype) -> None:
    weight = torch.randn(4, 2 * BLOCK, generator=torch.Generator().manual_seed(0))
    weight[:, 3] = 1e5  # beside it float8 too has few numbers left for the others
    errors = []
    for blocks in (False, True):
        held = dequantize_weight(*quantize_weight(weight, dtype, blocks=blocks))
        errors.append(float((held - weight)[:, BLOCK:].abs().mean()))
    assert errors[1] < errors[0] / (4 if dtype == torch.int8 else 1)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_it_is_a_linear_layer_of_the_weight_that_is_held(
    dtype: torch.dtype, blocks: bool, x_dtype: torch.dtype
) -> None:
    codes, scales = quantize_weight(torch.randn(33, BLOCK), dtype, blocks=blocks)
    x, bias = torch.randn(5, BLOCK).to(x_dtype), torch.randn(33).to(x_dtype)
    held = dequantize_weight(codes, scales).double()
    for b in (None, bias):
        wanted = F.linear(x.double(), held, None if b is None else b.double())
        got = quant_linear(x, codes, scales, b)
        assert got.dtype == x_dtype
        tolerance = 1e-5 if x_dtype == torch.float32 else 2.0**-8
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=1e-4)


def test_a_row_of_zeros_stays_zero() -> None:
    weight = torch.randn(3, 8)
    weight[1] = 0.0
    for dtype in EIGHT_BITS:
        assert not dequantize_weight(*quantize_weight(weight, dtype))[1].any()


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(InvalidOption, match="multiple of 128 inputs, not 100"):
        quantize_weight(torch.ones(2, 100), torch.int8, blocks=True)
    with pytest.raises(InvalidOption, match=r"dtype=torch\.int16"):
        quantize_weight(torch.ones(2, 100), torch.int16)
