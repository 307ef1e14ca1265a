"""How many KV slots a device has room for: what is free once the weights are there, less what steps need.

A step's largest tensors beside the pool: the gate and up of its MLP, the fused projection and attention's output, the
keys and values that an extend gathers, partial results of captured steps, and logits with the sampler's copy of them.
"""

from __future__ import annotations

import torch

from palmette.errors import InvalidOption
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.paged_plan import DEFAULT_PAGED_LIMITS

SPARE = 0.05  # of the device's memory: for the allocator's fragments, cuBLAS and captured graphs
LOGIT_ROWS = 1024  # of a step's draws: as computed, as captured steps write them, and as the sampler copies them
MAX_ROWS = 512  # of the page table


def slot_bytes(config: ModelConfig, kv_dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in all layers, scales of 8-bit pools included."""
    per_head = config.head_dim * kv_dtype.itemsize + (4 if kv_dtype.itemsize == 1 else 0)
    return config.num_layers * 2 * config.num_kv_heads * per_head


def step_bytes(config: ModelConfig, dtype: torch.dtype, *, chunk_size: int, context_len: int) -> int:
    """An upper bound of what one step holds beside weights and pool."""
    heads = config.num_heads + 2 * config.num_kv_heads
    widest = max(3 * config.intermediate_size, (heads + config.num_heads) * config.head_dim) + 4 * config.hidden_size
    limits = DEFAULT_PAGED_LIMITS
    gathered = 2 * limits.max_gathered * config.num_kv_heads * config.head_dim * dtype.itemsize
    logits = max(LOGIT_ROWS, chunk_size) * config.vocab_size * (4 + dtype.itemsize)  # all of a prompt's where asked for
    partials = limits.max_partials * config.num_heads * (config.head_dim + 1) * 4
    page_table = MAX_ROWS * context_len * 4
    return chunk_size * widest * dtype.itemsize + gathered + logits + partials + page_table


def tokens_that_fit(
    config: ModelConfig,
    *,
    free: int,
    total: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    chunk_size: int,
    context_len: int,
) -> int:
    """KV slots for a pool, at least one context's.

    Args:
        free, total: bytes of the device, with the weights loaded.

    Raises:
        InvalidOption: not even one context fits.
    """
    room = free - int(total * SPARE) - step_bytes(config, dtype, chunk_size=chunk_size, context_len=context_len)
    tokens = room // slot_bytes(config, kv_dtype)
    if tokens < context_len:
        raise InvalidOption(
            "context_len",
            context_len,
            f"at most {max(0, tokens)}: the device has {free / 1e9:.1f} GB free beside the weights, and a token's keys "
            f"and values take {slot_bytes(config, kv_dtype)} bytes (a smaller chunk_size or kv_dtype leaves more)",
        )
    return int(tokens)
