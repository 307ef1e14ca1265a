"""The element-wise operations against their formulas, in float64."""

from __future__ import annotations

import torch

from palmette.kernels.activation import gelu_tanh_mul, silu_mul
from palmette.kernels.kv_store import KVLayer, kv_store
from palmette.kernels.rms_norm import add_rms_norm, rms_norm
from palmette.kernels.soft_cap import soft_cap_


def test_rms_norm_is_its_formula() -> None:
    x, weight = torch.randn(5, 24), torch.randn(24)
    wanted = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(rms_norm(x, weight, 1e-5).double(), wanted, rtol=1e-6, atol=1e-6)


def test_rms_norm_keeps_its_statistics_in_float32_for_half_precision() -> None:
    x, weight = torch.full((1, 512), 300.0, dtype=torch.float16), torch.ones(512)  # 300^2 overflows float16
    out = rms_norm(x, weight, 1e-5)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), torch.ones(1, 512))


def test_rms_norm_mutates_nothing() -> None:
    x, weight = torch.randn(3, 8), torch.randn(8)
    kept = (x.clone(), weight.clone())
    rms_norm(x, weight, 1e-5)
    add_rms_norm(x, x, weight, 1e-5)
    assert torch.equal(x, kept[0])
    assert torch.equal(weight, kept[1])


def test_add_rms_norm_is_the_sum_and_its_norm() -> None:
    x, residual, weight = torch.randn(3, 8), torch.randn(3, 8), torch.randn(8)
    normed, summed = add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(summed, x + residual)
    assert torch.equal(normed, rms_norm(x + residual, weight, 1e-5))


def test_silu_mul_is_its_formula() -> None:
    gate_up = torch.randn(4, 12)
    g, u = gate_up.double().chunk(2, -1)
    torch.testing.assert_close(silu_mul(gate_up).double(), g / (1 + (-g).exp()) * u, rtol=1e-6, atol=1e-6)


def test_gelu_tanh_mul_is_its_formula() -> None:
    gate_up = torch.randn(4, 12)
    g, u = gate_up.double().chunk(2, -1)
    wanted = 0.5 * g * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (g + 0.044715 * g**3))) * u
    torch.testing.assert_close(gelu_tanh_mul(gate_up).double(), wanted, rtol=1e-5, atol=1e-6)


def test_soft_cap_stays_below_its_cap_and_hardly_moves_small_values() -> None:
    capped = soft_cap_(torch.tensor([-1e4, -0.1, 0.0, 0.1, 1e4]), 30.0)
    torch.testing.assert_close(capped, torch.tensor([-30.0, -0.1, 0.0, 0.1, 30.0]), rtol=1e-4, atol=1e-6)


def test_kv_store_writes_exactly_its_slots() -> None:
    key_pool, value_pool = torch.zeros(9, 2, 4), torch.zeros(9, 2, 4)
    keys, values = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    kv_store(keys, values, KVLayer(key_pool, value_pool), torch.tensor([7, 0, 3]))
    assert torch.equal(key_pool[[7, 0, 3]], keys)
    assert torch.equal(value_pool[[7, 0, 3]], values)
    assert not key_pool[[1, 2, 4, 5, 6, 8]].any()
