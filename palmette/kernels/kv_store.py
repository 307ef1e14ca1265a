"""Writing new keys and values into their slots of a KV pool."""

from __future__ import annotations

from torch import Tensor


def kv_store(keys: Tensor, values: Tensor, key_pool: Tensor, value_pool: Tensor, slots: Tensor) -> None:
    """pool[slots[i]] = new[i], for keys and values; mutates the pools.

    Args:
        keys, values: (num_tokens, num_kv_heads, head_dim).
        key_pool, value_pool: (num_slots, num_kv_heads, head_dim).
        slots: (num_tokens,) int64, distinct.
    """
    key_pool.index_copy_(0, slots, keys.to(key_pool.dtype))
    value_pool.index_copy_(0, slots, values.to(value_pool.dtype))
