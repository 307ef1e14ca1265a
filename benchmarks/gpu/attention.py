"""Attention rows: decode, siblings behind one prefix, extend; against the bytes and operations they cannot avoid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.machine import Machine, error, graph_seconds, seconds
from benchmarks.gpu.rows import Row, reached
from palmette.kernels.gpu.step_kernels import TritonKernels
from palmette.kernels.kv_store import KVLayer
from palmette.kernels.paged_plan import PagedPlan
from palmette.runtime.paged_batch import HostBatch, PagedShape, StepInputs
from palmette.runtime.paged_plan import PagedLimits, PagedRow, plan_attention

BF16_ERROR = 1e-2


@dataclass(frozen=True, slots=True)
class Heads:
    """Of one attention layer."""

    num: int
    num_kv: int
    dim: int

    @property
    def slot_bytes(self) -> int:
        """Keys and values of one token in bf16."""
        return 2 * 2 * self.num_kv * self.dim


@dataclass(frozen=True, slots=True)
class Case:
    """One step's attention, on the device."""

    heads: Heads
    q: Tensor
    kv: KVLayer
    plan: PagedPlan

    def run(self) -> Tensor:
        return TritonKernels().attend(self.q, self.kv, self.plan, scale=self.heads.dim**-0.5)

    def error(self, num_tokens: int = 8) -> float:
        """Against float64, of tokens spread over the step."""
        got = self.run().view(self.q.shape)
        picked = torch.linspace(0, len(self.q) - 1, min(num_tokens, len(self.q))).long().tolist()
        wanted = torch.stack([self._exactly(t) for t in picked])
        return error(got[picked], wanted)

    def _exactly(self, token: int) -> Tensor:
        last = int(self.plan.last_keys[token])
        slots = self.plan.page_table[int(self.plan.rows[token]), : last + 1].long()
        r = self.heads.num // self.heads.num_kv
        keys, values = (t[slots].double().repeat_interleave(r, 1) for t in (self.kv.keys, self.kv.values))
        scores = torch.einsum("hd,khd->hk", self.q[token].double(), keys) * self.heads.dim**-0.5
        return torch.einsum("hk,khd->hd", scores.softmax(-1), values)


def make_case(
    machine: Machine,
    heads: Heads,
    *,
    rows: int,
    shared: int,
    own: int,
    new: int,
    limits: PagedLimits,
    finds_sharing: bool = True,
) -> Case:
    """`rows` rows behind `shared` tokens in common, with `own` cached tokens each, that compute `new` tokens each.

    Args:
        finds_sharing: False plans every row as if its prefix were its own, though the slots are the same.
    """
    num_slots = shared + rows * (own + new)
    length = shared + own + new
    order = np.random.default_rng(0).permutation(num_slots).astype(np.int32)
    table = np.empty((rows, length), np.int32)
    table[:, :shared] = order[:shared]
    table[:, shared:] = order[shared:].reshape(rows, -1)
    dtype = torch.bfloat16
    keys, values = (
        torch.randn(num_slots + 1, heads.num_kv, heads.dim, device=machine.device, dtype=dtype) for _ in range(2)
    )
    q = torch.randn(rows * new, heads.num, heads.dim, device=machine.device, dtype=dtype)
    planned = [PagedRow(i, i * new, length - new, np.arange(length - new, length)) for i in range(rows)]
    seen = table if finds_sharing else np.arange(table.size, dtype=np.int32).reshape(table.shape)
    arrays = plan_attention(planned, seen, num_heads=heads.num, num_kv_heads=heads.num_kv, limits=limits)
    host = HostBatch(np.zeros(len(q), np.int32), np.zeros(len(q), np.int32), np.zeros(1, np.int32), {None: arrays})
    page_table = torch.from_numpy(table).to(machine.device)
    shape = PagedShape(heads.num, heads.num_kv, frozenset({None}), num_slots, limits)
    plan = StepInputs(page_table, shape).send(host).plans[None]
    return Case(heads, q, KVLayer(keys, values), plan)


def attention_rows(machine: Machine, limits: PagedLimits) -> list[Row]:
    """The attention rows of docs/kernels.md."""
    return [*_decode(machine, limits), *_cascade(machine, limits), *_extend(machine, limits)]


def _decode(machine: Machine, limits: PagedLimits) -> list[Row]:
    heads = Heads(32, 8, 128) if machine.measures else Heads(4, 2, 16)
    rows, length = (64, 8192) if machine.measures else (3, 150)
    case = make_case(machine, heads, rows=rows, shared=0, own=length - 1, new=1, limits=limits)
    wrong = case.error()
    took = graph_seconds(machine.device, [case.run])
    num_bytes = rows * length * heads.slot_bytes
    value = num_bytes / took / machine.copy_bandwidth if machine.measures else None
    detail: dict[str, Any] = {"microseconds": took * 1e6} if machine.measures else {}
    detail |= _flashinfer_decode(machine, case, rows, length)
    return [
        Row(
            f"decode attention, {rows} x {length} context, {heads.num_kv} KV heads, GQA {heads.num // heads.num_kv}",
            ">= 0.85 of copy bandwidth",
            value,
            reached(value, least=0.85),
            wrong,
            BF16_ERROR,
            detail,
        )
    ]


def _cascade(machine: Machine, limits: PagedLimits) -> list[Row]:
    heads = Heads(32, 8, 128) if machine.measures else Heads(4, 2, 16)
    rows, shared, own = (64, 8192, 256) if machine.measures else (4, 128, 20)
    sizes: dict[str, Any] = {"rows": rows, "shared": shared, "own": own - 1, "new": 1, "limits": limits}
    case = make_case(machine, heads, **sizes)
    plain = make_case(machine, heads, **sizes, finds_sharing=False)
    wrong = max(case.error(), plain.error())
    what = f"cascade decode, {rows} siblings, {shared} shared + {own} private"
    if not machine.measures:
        return [
            Row(f"{what}, times plain decode", ">= 12", None, None, wrong, BF16_ERROR),
            Row(f"{what}, floor / measured", ">= 0.55", None),
        ]
    took, plainly = graph_seconds(machine.device, [case.run]), graph_seconds(machine.device, [plain.run])
    floor = _floor(
        machine,
        num_bytes=(shared + rows * own) * heads.slot_bytes,
        operations=4 * rows * heads.num * heads.dim * (shared + own),
    )
    detail = {"microseconds": took * 1e6, "plain": plainly * 1e6, "floor": floor * 1e6}
    gain, share = plainly / took, floor / took
    return [
        Row(f"{what}, times plain decode", ">= 12", gain, reached(gain, least=12), wrong, BF16_ERROR, detail),
        Row(f"{what}, floor / measured", ">= 0.55", share, reached(share, least=0.55)),
    ]


def _extend(machine: Machine, limits: PagedLimits) -> list[Row]:
    heads = Heads(32, 8, 128) if machine.measures else Heads(4, 2, 16)
    cached, new = (8192, 8192) if machine.measures else (70, 40)
    found: list[Row] = []
    pairs = new * cached + new * (new + 1) // 2
    operations = 4 * heads.num * heads.dim * pairs
    for name, gather_from, least in (("prefix gathered first", 17, 0.60), ("page-1 gather", 1 << 30, 0.45)):
        here = PagedLimits(
            **{field: getattr(limits, field) for field in PagedLimits.__slots__ if field != "gather_from"},
            gather_from=gather_from,
        )
        case = make_case(machine, heads, rows=1, shared=0, own=cached, new=new, limits=here)
        wrong = case.error()
        took = seconds(machine.device, [case.run])
        value = operations / took / machine.matrix_rate if machine.measures else None
        detail: dict[str, Any] = {"ms": took * 1e3} if machine.measures else {}
        found.append(
            Row(
                f"extend attention, {new} new on {cached} cached, {name}",
                f">= {least} of matrix rate",
                value,
                reached(value, least=least),
                wrong,
                BF16_ERROR,
                detail,
            )
        )
        if gather_from < new:
            ratio = _sdpa(machine, case, cached, new, heads) / took if machine.measures else None
            found.append(Row("extend attention, times torch's flash SDPA", ">= 1", ratio, reached(ratio, least=1.0)))
    return found


def _floor(machine: Machine, *, num_bytes: int, operations: int) -> float:
    return max(num_bytes / machine.copy_bandwidth, operations / machine.matrix_rate)


def _sdpa(machine: Machine, case: Case, cached: int, new: int, heads: Heads) -> float:
    """torch's flash attention on the same numbers, dense and contiguous."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.bias import causal_lower_right

    slots = case.plan.page_table[0].long()
    q = case.q.transpose(0, 1)[None].contiguous()
    r = heads.num // heads.num_kv
    keys, values = (
        t[slots].transpose(0, 1)[None].repeat_interleave(r, 1).contiguous() for t in case.kv[:2] if t is not None
    )
    mask = causal_lower_right(new, cached + new)

    def run() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

    return seconds(machine.device, [run])


def _flashinfer_decode(machine: Machine, case: Case, rows: int, length: int) -> dict[str, Any]:
    """FlashInfer's paged decode on the same numbers, where it is installed."""
    if not machine.measures:
        return {}
    try:
        import flashinfer
    except ImportError:
        return {"flashinfer": "not installed"}
    heads, device = case.heads, machine.device
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
    bounds = torch.arange(rows + 1, dtype=torch.int32, device=device) * length
    last = torch.ones(rows, dtype=torch.int32, device=device)
    wrapper.plan(
        bounds,
        case.plan.page_table.reshape(-1),
        last,
        heads.num,
        heads.num_kv,
        heads.dim,
        1,
        q_data_type=torch.bfloat16,
        kv_data_type=torch.bfloat16,
    )
    pools = (case.kv.keys[:, None], case.kv.values[:, None])
    run: Callable[[], Any] = lambda: wrapper.run(case.q, pools)  # noqa: E731
    return {"flashinfer microseconds": seconds(device, [run]) * 1e6}
