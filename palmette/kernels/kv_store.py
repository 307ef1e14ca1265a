"""Writing new keys and values into their slots of a KV pool, as they are or in 8 bits.

    as they are    pool[slots[i]] = x[i]
    in 8 bits      s = max|x[i, h]| / M        M = 127 (int8) or 448 (float8 e4m3), one s for each token and KV head
                   pool[slots[i], h] = round(x[i, h] / s),  scales[slots[i], h] = s

A scale that depends on one token alone keeps batch mates out of it. Zeros have the scale 0 and stay zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # by dtype of a scaled pool: the largest code


class KVLayer(NamedTuple):
    """What one layer keeps of every slot."""

    keys: Tensor  # (num_slots, num_kv_heads, head_dim)
    values: Tensor  # like keys
    key_scales: Tensor | None = None  # (num_slots, num_kv_heads) float32, where the pool holds 8-bit codes
    value_scales: Tensor | None = None


def kv_store(keys: Tensor, values: Tensor, layer: KVLayer, slots: Tensor) -> None:
    """Store keys and values of new tokens; mutates the layer.

    Args:
        keys, values: (num_tokens, num_kv_heads, head_dim), any float dtype.
        slots: (num_tokens,) int64, distinct.
    """
    for new, pool, scales in ((keys, layer.keys, layer.key_scales), (values, layer.values, layer.value_scales)):
        if scales is None:
            pool.index_copy_(0, slots, new.to(pool.dtype))
        else:
            codes, new_scales = quantize_rows(new, pool.dtype)
            pool.view(torch.uint8).index_copy_(0, slots, codes.view(torch.uint8))  # torch copies no float8 by index
            scales.index_copy_(0, slots, new_scales)


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes of the last dimension under a scale of their own.

    Args:
        x: (..., dim), any float dtype.
        dtype: torch.int8 or torch.float8_e4m3fn.

    Returns:
        (codes (..., dim) of dtype, scales (...) float32) with codes * scale ~ x.
    """
    f = x.float()
    scales = f.abs().amax(-1) / LARGEST[dtype]
    codes = f / torch.where(scales > 0, scales, 1.0)[..., None]
    return (codes.round() if dtype == torch.int8 else codes).to(dtype), scales


def dequantize(pool: Tensor, scales: Tensor | None, slots: Tensor) -> Tensor:
    """(len(slots), num_kv_heads, head_dim) float32: what attention reads."""
    if scales is None:
        return pool[slots].float()
    return pool.view(torch.uint8)[slots].view(pool.dtype).float() * scales[slots][..., None]
