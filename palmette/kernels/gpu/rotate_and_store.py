"""q/k norm, rotary embedding and the KV store in one launch; defined by `kernels.rotate_and_store`.

    q = rope(norm(q)),  k = rope(norm(k)),  pool[slots] = k, v     as they are, or codes round(x / s) and s = max|x| / M

A program takes one token and GROUP heads of one part of qkv (query, key or value heads). A head is read as three tiles:
the first and the second element of each rotating pair, which lie half a rotation apart, and what does not rotate. So a
thread holds both elements of its pairs, and each tile is read and written once, along head_dim. HALF_BLOCK and
REST_BLOCK are the tiles' lengths rounded up to powers of two (head dims 80 and 96); what stands behind counts as zero.

Everything between the load and the store is float32: one rounding, where the definition also rounds between its steps.
Sources: RMSNorm as in `kernels.rms_norm`, rotation as in `kernels.rope`, 8-bit codes as in `kernels.kv_store`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from palmette.kernels.gpu.launch import INTERPRETED, padded
from palmette.kernels.kv_store import LARGEST, KVLayer

_ELEMENTS = 1024  # of a program: heads * head_dim


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
    """See kernels.rotate_and_store.rotate_and_store; contiguous tensors, but for the pools, whose slots may lie at any
    distance. A token whose slot is negative is padding: nothing of it is stored."""
    _, num_kv_heads, head_dim = kv.keys.shape
    tokens, half = qkv.shape[0], cos.shape[-1]
    q = torch.empty((tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    if tokens == 0:
        return q
    group = heads_of_a_program(head_dim, max(num_heads, num_kv_heads))
    has_norm = q_norm is not None and k_norm is not None
    scaled = kv.key_scales is not None
    grid = (tokens, triton.cdiv(num_heads, group) + 2 * triton.cdiv(num_kv_heads, group))
    rotate_and_store_kernel[grid](
        qkv,
        cos,
        sin,
        slots,
        q_norm if has_norm else cos,  # pointers that are not read have to point somewhere
        k_norm if has_norm else cos,
        q,
        kv.keys,
        kv.values,
        kv.key_scales if scaled else cos,
        kv.value_scales if scaled else cos,
        eps,
        kv.keys.stride(0),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        HALF=half,
        HALF_BLOCK=padded(half, least=1),
        REST_BLOCK=padded(head_dim - 2 * half, least=1) if head_dim > 2 * half else 0,
        GROUP=group,
        HAS_NORM=has_norm,
        LARGEST=LARGEST[kv.keys.dtype] if scaled else 0.0,
        EXACT_CAST=not INTERPRETED,
        num_warps=2,
    )
    return q


def heads_of_a_program(head_dim: int, num_heads: int) -> int:
    """GROUP: a power of two."""
    return max(1, min(_ELEMENTS // padded(head_dim), padded(num_heads, least=1)))


@triton.jit
def rotate_and_store_kernel(
    qkv,
    cos,
    sin,
    slots,
    q_norm,
    k_norm,
    q_out,
    keys,
    values,
    key_scales,
    value_scales,
    eps,
    slot_stride,  # elements from one slot of a pool to the next
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,  # 0: every dimension rotates
    GROUP: tl.constexpr,
    HAS_NORM: tl.constexpr,
    LARGEST: tl.constexpr,  # code of an 8-bit pool; 0: the pool keeps floats
    EXACT_CAST: tl.constexpr,  # the cast to float8 rounds to the nearest, as hardware does and the interpreter does not
):
    Q_GROUPS: tl.constexpr = (NUM_HEADS + GROUP - 1) // GROUP
    KV_GROUPS: tl.constexpr = (NUM_KV_HEADS + GROUP - 1) // GROUP
    token = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    is_q = program < Q_GROUPS
    is_v = program >= Q_GROUPS + KV_GROUPS
    first_group = tl.where(is_q, 0, tl.where(is_v, Q_GROUPS + KV_GROUPS, Q_GROUPS))
    first_head = tl.where(is_q, 0, tl.where(is_v, NUM_HEADS + NUM_KV_HEADS, NUM_HEADS))
    num_heads = tl.where(is_q, NUM_HEADS, NUM_KV_HEADS)

    head = (program - first_group) * GROUP + tl.arange(0, GROUP)  # within its part
    real_head = (head < num_heads)[:, None]
    pair = tl.arange(0, HALF_BLOCK)
    real_pair = (pair < HALF)[None, :]
    mask = real_head & real_pair
    row = qkv + token * ((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM)
    at = (first_head + head)[:, None] * HEAD_DIM + pair[None, :]
    first = tl.load(row + at, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(row + at + HALF, mask=mask, other=0.0).to(tl.float32)
    if REST_BLOCK > 0:
        beside = tl.arange(0, REST_BLOCK)
        real_rest = (beside < HEAD_DIM - 2 * HALF)[None, :]
        rest_mask = real_head & real_rest
        rest_at = (first_head + head)[:, None] * HEAD_DIM + 2 * HALF + beside[None, :]
        rest = tl.load(row + rest_at, mask=rest_mask, other=0.0).to(tl.float32)
    else:
        rest_mask = mask
        rest = first

    if not is_v:
        if HAS_NORM:
            squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
            if REST_BLOCK > 0:
                squares += tl.sum(rest * rest, 1)
            scale = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
            weight = k_norm
            if is_q:
                weight = q_norm
            real = pair < HALF
            first *= scale * tl.load(weight + pair, mask=real, other=0.0)[None, :]
            second *= scale * tl.load(weight + HALF + pair, mask=real, other=0.0)[None, :]
            if REST_BLOCK > 0:
                still = beside < HEAD_DIM - 2 * HALF
                rest *= scale * tl.load(weight + 2 * HALF + beside, mask=still, other=0.0)[None, :]
        c = tl.load(cos + token * HALF + pair, mask=pair < HALF, other=0.0)[None, :]
        s = tl.load(sin + token * HALF + pair, mask=pair < HALF, other=0.0)[None, :]
        turned = first * c - second * s
        second = second * c + first * s
        first = turned

    if is_q:
        out = q_out + token * (NUM_HEADS * HEAD_DIM) + head[:, None] * HEAD_DIM
        _store(out, first, second, rest, mask, rest_mask, HEAD_DIM, HALF, HALF_BLOCK, REST_BLOCK)
    else:
        slot = tl.load(slots + token).to(tl.int64)
        stored = head < tl.where(slot < 0, 0, num_heads)
        mask = stored[:, None] & real_pair
        if REST_BLOCK > 0:
            rest_mask = stored[:, None] & real_rest
        pool = keys
        if is_v:
            pool = values
        pool += slot * slot_stride + head[:, None] * HEAD_DIM
        if LARGEST > 0:
            largest = tl.maximum(tl.max(tl.abs(first), 1), tl.max(tl.abs(second), 1))
            if REST_BLOCK > 0:
                largest = tl.maximum(largest, tl.max(tl.abs(rest), 1))
            scale = tl.div_rn(largest, LARGEST)
            scales = key_scales
            if is_v:
                scales = value_scales
            tl.store(scales + slot * NUM_KV_HEADS + head, scale, mask=stored)
            by = tl.where(scale > 0, scale, 1.0)[:, None]
            first = _codes(first, by, LARGEST, EXACT_CAST)
            second = _codes(second, by, LARGEST, EXACT_CAST)
            if REST_BLOCK > 0:
                rest = _codes(rest, by, LARGEST, EXACT_CAST)
        _store(pool, first, second, rest, mask, rest_mask, HEAD_DIM, HALF, HALF_BLOCK, REST_BLOCK)


@triton.jit
def _store(
    out,  # (GROUP, 1): each head's first element
    first,
    second,
    rest,
    mask,
    rest_mask,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
):
    pair = tl.arange(0, HALF_BLOCK)[None, :]
    dtype: tl.constexpr = out.dtype.element_ty
    tl.store(out + pair, first.to(dtype), mask=mask)
    tl.store(out + HALF + pair, second.to(dtype), mask=mask)
    if REST_BLOCK > 0:
        tl.store(out + 2 * HALF + tl.arange(0, REST_BLOCK)[None, :], rest.to(dtype), mask=rest_mask)


@triton.jit
def _codes(x, by, LARGEST: tl.constexpr, EXACT_CAST: tl.constexpr):
    """x / by, such that a cast to the pool's dtype rounds to the nearest code, ties to the even one."""
    codes = tl.div_rn(x, tl.broadcast_to(by, x.shape))
    if LARGEST == 127.0:
        codes = (codes + 12582912.0) - 12582912.0  # 1.5 * 2^23: beyond it float32 has integers only
    elif not EXACT_CAST:
        # float8 e4m3 keeps three bits behind the leading one, and steps of 2^-9 below 2^-6.
        bits = codes.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
        small = (codes + 24576.0) - 24576.0  # 1.5 * 2^14
        codes = tl.where(tl.abs(codes) < 0.015625, small, bits.to(tl.float32, bitcast=True))
    return codes
