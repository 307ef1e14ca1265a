"""What a decoder asks of whoever computes: torch, which defines every operation, or Triton (`kernels.gpu`)."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

from torch import Tensor

from palmette.kernels import page_table as pages
from palmette.kernels.activation import gelu_tanh_mul, silu_mul
from palmette.kernels.attention import AttentionPlan, paged_attention
from palmette.kernels.embedding import embed
from palmette.kernels.kv_store import KVLayer
from palmette.kernels.moe import experts
from palmette.kernels.paged_attention import attend_by_definition
from palmette.kernels.paged_plan import PagedPlan
from palmette.kernels.rms_norm import add_rms_norm, rms_norm
from palmette.kernels.rotate_and_store import rotate_and_store

Activation = Literal["silu", "gelu_tanh"]
Plan: TypeAlias = AttentionPlan | PagedPlan


class StepKernels(Protocol):
    """The operations of a layer; see the functions of the same names for shapes and formulas."""

    @property
    def walks_pages(self) -> bool:
        """Does `attend` want a PagedPlan? Else an AttentionPlan."""
        ...

    def embed(self, ids: Tensor, table: Tensor, *, scale: float = 1.0) -> Tensor: ...
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...
    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]: ...
    def rotate_and_store(
        self,
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
    ) -> Tensor: ...
    def attend(self, q: Tensor, kv: KVLayer, plan: Plan, *, scale: float, soft_cap: float | None = None) -> Tensor:
        """(num_tokens, num_heads, head_dim) queries -> (num_tokens, num_heads * head_dim)."""
        ...

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """(num_tokens, 2 * dim), gate first -> (num_tokens, dim)."""
        ...

    def experts(
        self,
        x: Tensor,
        router: Tensor,
        gate_up: Tensor,
        down: Tensor,
        *,
        top_k: int,
        normalise: bool,
        activation: Activation = "silu",
    ) -> Tensor: ...
    def update_page_table(self, page_table: Tensor, updates: Tensor, count: Tensor) -> None:
        """Once a step, before its layers; see kernels.page_table.update."""
        ...


class TorchKernels:
    """The definitions, on any device."""

    walks_pages = False
    embed = staticmethod(embed)
    experts = staticmethod(experts)
    update_page_table = staticmethod(pages.update)
    rms_norm = staticmethod(rms_norm)
    add_rms_norm = staticmethod(add_rms_norm)
    rotate_and_store = staticmethod(rotate_and_store)

    def attend(self, q: Tensor, kv: KVLayer, plan: Plan, *, scale: float, soft_cap: float | None = None) -> Tensor:
        if isinstance(plan, PagedPlan):
            return attend_by_definition(q, kv, plan, scale=scale, soft_cap=soft_cap)
        return paged_attention(q, kv.keys, kv.values, plan, scale=scale, soft_cap=soft_cap)

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        return silu_mul(gate_up) if activation == "silu" else gelu_tanh_mul(gate_up)
