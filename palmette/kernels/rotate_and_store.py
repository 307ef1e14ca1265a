"""From the fused projection to attention's input: q/k norm, rotary embedding, and the KV store, as one operation.

    q, k, v = split(qkv)
    q = rope(norm(q)),  k = rope(norm(k))        norm: RMSNorm of each head, where the family has it
    pool[slots] = k, v

One read of qkv and one write of each part, where its steps one by one would read and write it three times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from palmette.kernels.kv_store import KVLayer, kv_store
from palmette.kernels.rms_norm import rms_norm
from palmette.kernels.rope import apply_rope


def rotate_and_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    kv: KVLayer,
    slots: Tensor,
    *,
    num_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Rotate queries and keys, and store keys and values; mutates `kv`.

    Args:
        qkv: (num_tokens, (num_heads + 2 * num_kv_heads) * head_dim): all query heads, all key heads, all value heads.
        cos, sin: (num_tokens, 1, dim / 2) float32, from rope_cos_sin; the leading dim dimensions rotate.
        kv: its keys give num_kv_heads and head_dim.
        slots: (num_tokens,) int64, distinct.
        q_norm, k_norm: (head_dim,) float32, both or none.
        eps: of the norms.

    Returns:
        (num_tokens, num_heads, head_dim) queries in qkv's dtype, contiguous.
    """
    _, num_kv_heads, head_dim = kv.keys.shape
    parts = qkv.view(-1, num_heads + 2 * num_kv_heads, head_dim)
    qk, values = parts[:, : num_heads + num_kv_heads], parts[:, num_heads + num_kv_heads :]
    if q_norm is not None and k_norm is not None:
        qk = torch.cat((rms_norm(qk[:, :num_heads], q_norm, eps), rms_norm(qk[:, num_heads:], k_norm, eps)), dim=1)
    qk = apply_rope(qk, cos, sin)
    kv_store(qk[:, num_heads:], values, kv, slots)
    return qk[:, :num_heads].contiguous()
