"""RMSNorm under Triton against its torch definition."""

from __future__ import annotations

import pytest
import torch

from palmette.kernels import rms_norm as definition
from palmette.kernels.gpu.rms_norm import add_rms_norm, rms_norm
from tests.kernels.gpu.close import DEVICE, assert_within_an_ulp, poisoned_empty


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "dim"), [(1, 16), (3, 80), (5, 576), (2, 4100)])
def test_it_is_its_definition(rows: int, dim: int, dtype: torch.dtype) -> None:
    x, residual = (torch.randn((rows, dim), device=DEVICE).to(dtype) for _ in range(2))
    weight = torch.randn(dim, device=DEVICE)
    with poisoned_empty():
        plain, (normed, summed) = rms_norm(x, weight, 1e-5), add_rms_norm(x, residual, weight, 1e-5)
    assert_within_an_ulp(plain, definition.rms_norm(x, weight, 1e-5))
    wanted_summed = definition.add_rms_norm(x, residual, weight, 1e-5)[1]
    assert_within_an_ulp(summed, wanted_summed)
    assert_within_an_ulp(normed, definition.rms_norm(summed, weight, 1e-5))


def test_no_rows_are_no_launch() -> None:
    assert rms_norm(torch.empty(0, 16, device=DEVICE), torch.ones(16, device=DEVICE), 1e-5).shape == (0, 16)
