"""The fused projection's way to attention under Triton, against its definition in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from palmette.kernels import rotate_and_store as definition
from palmette.kernels.gpu.rotate_and_store import rotate_and_store
from palmette.kernels.kv_store import KVLayer, quantize_rows
from palmette.kernels.rope import RopeSpec, rope_cos_sin, rope_frequencies
from tests.kernels.gpu.close import DEVICE, assert_within_an_ulp, poisoned_empty

NUM_SLOTS = 11
EIGHT_BITS = (torch.int8, torch.float8_e4m3fn)


def filled(dtype: torch.dtype, num_kv_heads: int, head_dim: int, device: torch.device = DEVICE) -> KVLayer:
    """A pool whose every slot holds something that shows."""
    shape = (NUM_SLOTS, num_kv_heads, head_dim)
    if dtype not in EIGHT_BITS:
        return KVLayer(*(torch.full(shape, 7.0, device=device, dtype=dtype) for _ in range(2)))
    keys, values = (torch.full(shape, 0x11, device=device, dtype=torch.uint8).view(dtype) for _ in range(2))
    return KVLayer(keys, values, *(torch.full(shape[:2], 7.0, device=device) for _ in range(2)))


def floats(layer: KVLayer) -> list[Tensor]:
    tensors = [layer.keys.float(), layer.values.float(), *(s for s in layer[2:] if s is not None)]
    return [tensor.cpu() for tensor in tensors]


def case(
    *, heads: int, kv_heads: int, head_dim: int, rotated: int, tokens: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """qkv, cos, sin and slots."""
    qkv = (3.0 * torch.randn(tokens, (heads + 2 * kv_heads) * head_dim, device=DEVICE)).to(dtype)
    positions = torch.randint(0, 4000, (tokens,))
    cos, sin = (x.to(DEVICE) for x in rope_cos_sin(rope_frequencies(RopeSpec(dim=rotated)), positions))
    return qkv, cos, sin, torch.randperm(NUM_SLOTS)[:tokens].to(DEVICE)


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rotated"),
    [
        (4, 2, 16, 16),
        (1, 1, 64, 64),
        (15, 5, 80, 80),
        (7, 1, 96, 96),
        (9, 3, 128, 32),
        (4, 4, 256, 256),
        (3, 1, 80, 20),
    ],
)
def test_it_is_its_definition(
    heads: int, kv_heads: int, head_dim: int, rotated: int, dtype: torch.dtype, has_norm: bool
) -> None:
    torch.manual_seed(heads + head_dim)
    qkv, cos, sin, slots = case(
        heads=heads, kv_heads=kv_heads, head_dim=head_dim, rotated=rotated, tokens=3, dtype=dtype
    )
    norms = {name: torch.rand(head_dim, device=DEVICE) + 0.5 for name in ("q_norm", "k_norm")} if has_norm else {}
    pool, wanted_pool = filled(dtype, kv_heads, head_dim), filled(torch.float32, kv_heads, head_dim)
    with poisoned_empty():
        q = rotate_and_store(qkv, cos, sin, pool, slots, num_heads=heads, eps=1e-5, **norms)
    wanted = definition.rotate_and_store(qkv.float(), cos, sin, wanted_pool, slots, num_heads=heads, eps=1e-5, **norms)
    assert q.is_contiguous()
    for got, exact in ((q, wanted), (pool.keys, wanted_pool.keys), (pool.values, wanted_pool.values)):
        assert_within_an_ulp(got, exact.to(dtype), floor=1e-5)


@pytest.mark.parametrize("pool_dtype", EIGHT_BITS)
@pytest.mark.parametrize(("head_dim", "rotated"), [(64, 64), (96, 96), (80, 20)])
def test_eight_bit_codes_are_those_of_the_definition(pool_dtype: torch.dtype, head_dim: int, rotated: int) -> None:
    torch.manual_seed(head_dim)
    qkv, cos, sin, slots = case(heads=5, kv_heads=3, head_dim=head_dim, rotated=rotated, tokens=4, dtype=torch.bfloat16)
    qkv.view(4, 11, head_dim)[1, 8:] = 0.0  # values of zeros only have the scale zero
    pool, wanted = filled(pool_dtype, 3, head_dim), filled(pool_dtype, 3, head_dim, torch.device("cpu"))
    rotate_and_store(qkv, cos, sin, pool, slots, num_heads=5)
    on_cpu = qkv.float().cpu(), cos.cpu(), sin.cpu(), wanted, slots.cpu()  # torch divides by a number there, exactly
    definition.rotate_and_store(*on_cpu, num_heads=5)
    keys, values, key_scales, value_scales = floats(pool)
    wanted_keys, wanted_values, wanted_key_scales, wanted_value_scales = floats(wanted)
    assert torch.equal(values, wanted_values)
    assert torch.equal(value_scales, wanted_value_scales)
    torch.testing.assert_close(key_scales, wanted_key_scales, rtol=1e-6, atol=0)
    differ = keys != wanted_keys  # a fused multiply-add may move what lies between two codes
    assert differ.float().mean() < 0.01
    step = torch.where(wanted_keys.abs() > 16, wanted_keys.abs() / 8, 1.0) if pool_dtype != torch.int8 else 1.0
    assert ((keys - wanted_keys).abs() <= step).all()


@pytest.mark.parametrize("pool_dtype", EIGHT_BITS)
def test_codes_round_to_the_nearest_and_ties_to_the_even_one(pool_dtype: torch.dtype) -> None:
    """Values that lie on codes, halfway between two, and in the steps near zero; the largest makes the scale 1."""
    largest = 127.0 if pool_dtype == torch.int8 else 448.0
    values = torch.cat((torch.arange(-8, 8) * 0.5, torch.arange(-24, 24) * 2.0**-10, torch.arange(0, 62) + 17.0))
    values = torch.cat((values, torch.tensor([largest, -0.7])))
    head_dim = len(values)
    assert head_dim == 128
    qkv = torch.cat((torch.zeros(2 * head_dim), values)).reshape(1, -1).to(DEVICE)
    ones, zeros = torch.ones(1, 1, 64, device=DEVICE), torch.zeros(1, 1, 64, device=DEVICE)
    pool = filled(pool_dtype, 1, head_dim)
    rotate_and_store(qkv, ones, zeros, pool, torch.tensor([4], device=DEVICE), num_heads=1)
    codes, scale = quantize_rows(values, pool_dtype)
    assert float(scale) == 1.0
    assert torch.equal(floats(pool)[1][4, 0], codes.float())


def test_only_the_slots_of_real_tokens_are_written() -> None:
    qkv, cos, sin, slots = case(heads=2, kv_heads=1, head_dim=16, rotated=16, tokens=4, dtype=torch.float32)
    slots[2] = -1
    for dtype, padding in ((torch.float32, float("nan")), (torch.int8, 1e30)):
        qkv[2] = padding
        pool, before = filled(dtype, 1, 16), filled(dtype, 1, 16)
        q = rotate_and_store(qkv, cos, sin, pool, slots, num_heads=2)
        real = torch.tensor([0, 1, 3], device=DEVICE)
        untouched = torch.ones(NUM_SLOTS, dtype=torch.bool)
        untouched[slots[real].cpu()] = False
        for got, old in zip(floats(pool), floats(before), strict=True):
            assert torch.equal(got[untouched], old[untouched])
            assert (got < 1e20).all()
            assert (got[~untouched] != old[~untouched]).any()
        assert torch.isfinite(q[real]).all()


def test_pools_may_be_cut_out_of_something_larger() -> None:
    qkv, cos, sin, slots = case(heads=2, kv_heads=2, head_dim=16, rotated=16, tokens=3, dtype=torch.float32)
    both = torch.zeros(NUM_SLOTS, 2, 2, 16, device=DEVICE)
    alone = KVLayer(*(torch.zeros(NUM_SLOTS, 2, 16, device=DEVICE) for _ in range(2)))
    rotate_and_store(qkv, cos, sin, KVLayer(both[:, 0], both[:, 1]), slots, num_heads=2)
    rotate_and_store(qkv, cos, sin, alone, slots, num_heads=2)
    assert torch.equal(both[:, 0], alone.keys)
    assert torch.equal(both[:, 1], alone.values)


def test_no_tokens_are_no_launch() -> None:
    qkv, cos, sin, slots = case(heads=2, kv_heads=1, head_dim=16, rotated=16, tokens=0, dtype=torch.float32)
    assert rotate_and_store(qkv, cos, sin, filled(torch.float32, 1, 16), slots, num_heads=2).shape == (0, 2, 16)
