"""Gated activations under Triton against their definition in float32."""

from __future__ import annotations

import pytest
import torch

from palmette.kernels.gpu.activation import gated
from palmette.kernels.step_kernels import Activation, TorchKernels
from tests.kernels.gpu.close import DEVICE, assert_within_an_ulp, poisoned_empty


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "dim"), [(1, 3), (5, 96), (2, 1536)])
def test_it_is_its_definition(rows: int, dim: int, dtype: torch.dtype, activation: Activation) -> None:
    torch.manual_seed(dim)
    gate_up = (4.0 * torch.randn(rows, 2 * dim, device=DEVICE)).to(dtype)
    with poisoned_empty():
        got = gated(gate_up, activation)
    assert_within_an_ulp(got, TorchKernels().gated(gate_up.float(), activation).to(dtype), floor=4e-6)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_far_from_zero_it_is_the_identity_or_zero(activation: Activation) -> None:
    gate = torch.tensor([[-200.0, -60.0, 0.0, 60.0, 200.0]], device=DEVICE)
    got = gated(torch.cat((gate, torch.ones_like(gate)), dim=1), activation)
    torch.testing.assert_close(got, gate.clamp(min=0.0), rtol=0, atol=1e-6)


def test_no_rows_are_no_launch() -> None:
    assert gated(torch.empty(0, 16, device=DEVICE), "silu").shape == (0, 8)
