"""The pool's tensors follow from its specs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from palmette.errors import UnsupportedFeature
from palmette.runtime.kv_pool import KVKind, KVPool, LayerKVSpec

FULL = LayerKVSpec(KVKind.FULL, num_kv_heads=2, head_dim=4)


def test_every_layer_has_the_shape_of_its_spec() -> None:
    wide = LayerKVSpec(KVKind.WINDOW, num_kv_heads=3, head_dim=8, window=16, dtype=torch.bfloat16)
    pool = KVPool([FULL, wide], num_slots=10)
    assert [t.shape for t in pool.layer(0)[:2]] == [(11, 2, 4)] * 2
    assert [t.shape for t in pool.layer(1)[:2]] == [(11, 3, 8)] * 2
    assert pool.layer(1)[0].dtype == torch.bfloat16


def test_keys_and_values_of_different_layers_share_no_memory() -> None:
    pool = KVPool([FULL, FULL], num_slots=3)
    tensors = [*pool.layer(0)[:2], *pool.layer(1)[:2]]
    for i, tensor in enumerate(tensors):
        tensor.fill_(i + 1)
    assert [{*t.view(-1).tolist()} for t in tensors] == [{1}, {2}, {3}, {4}]


def test_the_pad_slot_is_zero_and_belongs_to_nobody() -> None:
    pool = KVPool([FULL], num_slots=10)
    assert pool.pad_slot == 10
    assert not pool.layer(0)[0][pool.pad_slot].any()


def test_num_bytes_counts_keys_and_values() -> None:
    assert KVPool([FULL, FULL], num_slots=9).num_bytes == 2 * 2 * 10 * 2 * 4 * 4


@pytest.mark.parametrize("kind", [KVKind.LATENT, KVKind.RECURRENT, KVKind.SHARED])
def test_a_kind_without_implementation_is_refused(kind: KVKind) -> None:
    with pytest.raises(UnsupportedFeature, match=kind.value):
        KVPool([FULL, replace(FULL, kind=kind)], num_slots=3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_pool_is_zero_where_another_was(dtype: torch.dtype) -> None:
    spec = replace(FULL, dtype=dtype)
    before = KVPool([spec] * 3, num_slots=50_000)
    for i in range(3):
        for tensor in before.layer(i)[:2]:
            tensor.fill_(7)
    del before, tensor
    pool = KVPool([spec] * 3, num_slots=50_000)
    assert not any(tensor.any() for i in range(3) for tensor in pool.layer(i)[:2])
