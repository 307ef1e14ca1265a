"""A decoder's operations under Triton; see `kernels.step_kernels` for the seam and the definitions."""

from __future__ import annotations

import torch
from torch import Tensor

from palmette.kernels.gpu import page_table
from palmette.kernels.gpu.activation import gated
from palmette.kernels.gpu.embedding import embed
from palmette.kernels.gpu.extend_attention import extend_attention
from palmette.kernels.gpu.gather_rows import gather_rows
from palmette.kernels.gpu.merge_partials import merge_partials
from palmette.kernels.gpu.moe import experts
from palmette.kernels.gpu.rms_norm import add_rms_norm, rms_norm
from palmette.kernels.gpu.rotate_and_store import rotate_and_store
from palmette.kernels.gpu.split_attention import split_attention
from palmette.kernels.kv_store import KVLayer
from palmette.kernels.paged_plan import ExtendWork, PagedPlan
from palmette.kernels.step_kernels import Plan


class TritonKernels:
    """On a CUDA device, or on the CPU under Triton's interpreter. Nothing here waits for the device."""

    walks_pages = True
    embed = staticmethod(embed)
    experts = staticmethod(experts)
    update_page_table = staticmethod(page_table.update)
    rms_norm = staticmethod(rms_norm)
    add_rms_norm = staticmethod(add_rms_norm)
    rotate_and_store = staticmethod(rotate_and_store)
    gated = staticmethod(gated)

    def attend(self, q: Tensor, kv: KVLayer, plan: Plan, *, scale: float, soft_cap: float | None = None) -> Tensor:
        """(num_tokens, num_heads, head_dim) queries -> (num_tokens, num_heads * head_dim)."""
        assert isinstance(plan, PagedPlan), "these kernels walk a page table"
        num_tokens, num_heads, head_dim = q.shape
        out = torch.empty_like(q)
        if plan.merge is not None:
            shape = (plan.merge.num_partials, num_heads)
            partials = torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device)
            lse = torch.empty(shape, dtype=torch.float32, device=q.device)
            for split in plan.splits:
                split_attention(q, kv, plan, split, partials, lse, scale=scale, soft_cap=soft_cap)
            merge_partials(partials, lse, plan.merge, out)
        for extend in plan.extends:
            scratch = _gather(kv, plan, extend, q.dtype)
            extend_attention(q, kv, plan, extend, out, scale=scale, soft_cap=soft_cap, scratch=scratch)
        return out.view(num_tokens, num_heads * head_dim)


def _gather(kv: KVLayer, plan: PagedPlan, work: ExtendWork, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    if work.gathered is None:
        return None
    _, num_kv_heads, head_dim = kv.keys.shape
    shape = (num_kv_heads, work.scratch_len, head_dim)
    keys, values = (torch.empty(shape, dtype=dtype, device=kv.keys.device) for _ in range(2))
    gather_rows(kv, plan, work, keys, values)
    return keys, values
