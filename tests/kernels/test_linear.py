"""The linear layer against torch's own, around every number of rows at which it changes its way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from palmette.kernels.linear import FEW_ROWS, linear


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 8, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_is_x_w_transposed_plus_b(rows: int, has_bias: bool) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, 48, dtype=torch.float64), torch.randn(80, 48, dtype=torch.float64)
    bias = torch.randn(80, dtype=torch.float64) if has_bias else None
    kept = x.clone()
    y = linear(x, weight, bias)
    torch.testing.assert_close(y, F.linear(x, weight, bias))
    assert y.shape == (rows, 80)
    assert y.is_contiguous()
    assert torch.equal(x, kept)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_row_gives_the_same_alone_as_beside_itself(rows: int) -> None:
    """One row is computed as two equal ones, so a request that decodes alone agrees with one that has company."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 64), torch.randn(96, 64)
    assert torch.equal(linear(x.repeat(rows, 1), weight)[:1], linear(x.repeat(2, 1), weight)[:1])
