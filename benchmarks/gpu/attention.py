"""Attention rows: decode, siblings behind one prefix, extend; against the bytes and operations they cannot avoid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu import exact
from benchmarks.gpu.machine import Machine, graph_seconds, seconds, worst_error
from benchmarks.gpu.poison import poisoned
from benchmarks.gpu.rows import Row, reached
from benchmarks.gpu.tasks import Task
from palmette.kernels.gpu.step_kernels import TritonKernels
from palmette.kernels.kv_store import KVLayer
from palmette.kernels.paged_plan import PagedPlan
from palmette.runtime.paged_batch import HostBatch, PagedShape, StepInputs
from palmette.runtime.paged_plan import PagedLimits, PagedRow, plan_attention

BF16_ERROR = 1e-2
TINY = PagedLimits(cut=128, short=4, wide=32, widest=64, extend=32, key_tile=128, gather_from=24)
_COLD = 200 << 20  # bytes of keys and values that calls in turn read: several times what an L2 cache keeps


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
        """Against float64, of tokens spread over the step; infinity if anything was not written."""
        with poisoned():
            got = self.run().view(self.q.shape)
        picked = torch.linspace(0, len(self.q) - 1, min(num_tokens, len(self.q))).long().tolist()
        wanted = exact.attention(self.q, self.kv, self.plan, picked, scale=self.heads.dim**-0.5)
        return worst_error(got[picked], wanted) if bool(torch.isfinite(got).all()) else float("inf")


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


def tasks(machine: Machine) -> Sequence[Task]:
    """The attention rows of docs/kernels.md."""
    limits = PagedLimits() if machine.measures else TINY
    return [
        Task("decode attention", partial(_decode, machine, limits)),
        Task("decode attention, flashinfer", partial(_flashinfer, machine, limits)),
        Task("cascade decode", partial(_cascade, machine, limits)),
        Task("extend attention, gathered", partial(_extend, machine, limits, 17, 0.60)),
        Task("extend attention, paged", partial(_extend, machine, limits, 1 << 30, 0.45)),
        Task("extend attention, torch's", partial(_against_sdpa, machine, limits)),
    ]


def decode_case(machine: Machine, limits: PagedLimits, *, rows: int = 64, length: int = 8192) -> Case:
    """Rows with nothing in common."""
    heads = HEADS if machine.measures else SMALL
    rows, length = (rows, length) if machine.measures else (min(rows, 3), 150)
    return make_case(machine, heads, rows=rows, shared=0, own=length - 1, new=1, limits=limits)


def cascade_case(machine: Machine, limits: PagedLimits, *, finds_sharing: bool = True) -> Case:
    """Siblings of one fork."""
    heads = HEADS if machine.measures else SMALL
    rows, shared, own = _FORK if machine.measures else _SMALL_FORK
    return make_case(
        machine, heads, rows=rows, shared=shared, own=own - 1, new=1, limits=limits, finds_sharing=finds_sharing
    )


def in_turn(machine: Machine, make: Callable[[], Case]) -> list[Case]:
    """Cases of one kind, so many that what one of them reads has left the cache when it is its turn again."""
    first = make()
    num_bytes = (len(first.kv.keys) - 1) * first.heads.slot_bytes
    return [first, *(make() for _ in range(min(7, _COLD // num_bytes) if machine.measures else 0))]


def extend_case(machine: Machine, limits: PagedLimits, *, gather_from: int) -> Case:
    """One row of many new tokens behind as many that are cached."""
    heads = HEADS if machine.measures else SMALL
    cached, new = _EXTEND if machine.measures else _SMALL_EXTEND
    limits = replace(limits, gather_from=gather_from)
    return make_case(machine, heads, rows=1, shared=0, own=cached, new=new, limits=limits)


HEADS, SMALL = Heads(32, 8, 128), Heads(4, 2, 16)
_FORK, _SMALL_FORK = (64, 8192, 256), (4, 128, 20)  # siblings, shared tokens, private ones
_EXTEND, _SMALL_EXTEND = (8192, 8192), (70, 40)  # cached tokens, new ones


def _decode(machine: Machine, limits: PagedLimits) -> Iterable[Row]:
    case = decode_case(machine, limits)
    rows, length = case.plan.page_table.shape
    heads = case.heads
    wrong = case.error()
    took = graph_seconds(machine, [case.run])
    num_bytes = rows * length * heads.slot_bytes
    value = num_bytes / took / machine.copy_bandwidth if machine.measures else None
    detail = {"microseconds": took * 1e6} if machine.measures else {}
    what = f"decode attention, {rows} x {length} context, {heads.num_kv} KV heads, GQA {heads.num // heads.num_kv}"
    met, allowed = reached(value, least=0.85), BF16_ERROR * machine.rounding
    yield Row(what, ">= 0.85 of copy bandwidth", value, met, wrong, allowed, detail)


def _cascade(machine: Machine, limits: PagedLimits) -> Iterable[Row]:
    rows, shared, own = _FORK if machine.measures else _SMALL_FORK
    what = f"cascade decode, {rows} siblings, {shared} shared + {own} private"
    cases = in_turn(machine, partial(cascade_case, machine, limits))
    plain = cascade_case(machine, limits, finds_sharing=False)
    heads = plain.heads
    wrong, allowed = max(cases[0].error(), plain.error()), BF16_ERROR * machine.rounding
    took, plainly = graph_seconds(machine, [case.run for case in cases]), graph_seconds(machine, [plain.run])
    gain = share = None
    detail: dict[str, Any] = {}
    if machine.measures:
        num_bytes = (shared + rows * own) * heads.slot_bytes
        operations = 4 * rows * heads.num * heads.dim * (shared + own)
        floor = max(num_bytes / machine.copy_bandwidth, operations / machine.matrix_rate)
        detail = {"microseconds": took * 1e6, "plain": plainly * 1e6, "floor": floor * 1e6}
        gain, share = plainly / took, floor / took
    yield Row(f"{what}, times plain decode", ">= 12", gain, reached(gain, least=12), wrong, allowed, detail)
    yield Row(f"{what}, floor / measured", ">= 0.55", share, reached(share, least=0.55))


def _extend(machine: Machine, limits: PagedLimits, gather_from: int, least: float) -> Iterable[Row]:
    case = extend_case(machine, limits, gather_from=gather_from)
    cached, new = _EXTEND if machine.measures else _SMALL_EXTEND
    heads = case.heads
    wrong = case.error(16)
    took = graph_seconds(machine, [case.run])
    operations = 4 * heads.num * heads.dim * (new * cached + new * (new + 1) // 2)
    value = operations / took / machine.matrix_rate if machine.measures else None
    detail = {"ms": took * 1e3, "TFLOP/s": operations / took / 1e12} if machine.measures else {}
    name = "prefix gathered first" if gather_from < new else "page-1 gather"
    met, allowed = reached(value, least=least), BF16_ERROR * machine.rounding
    what = f"extend attention, {new} new on {cached} cached, {name}"
    yield Row(what, f">= {least} of matrix rate", value, met, wrong, allowed, detail)


def _against_sdpa(machine: Machine, limits: PagedLimits) -> Iterable[Row]:
    """torch's flash attention on the same numbers, dense and contiguous, its heads repeated beforehand."""
    what = "extend attention, times torch's flash SDPA"
    if not machine.measures:
        return [Row(what, ">= 1", None)]
    case = extend_case(machine, limits, gather_from=17)
    cached, new = _EXTEND
    ours, theirs = graph_seconds(machine, [case.run]), _sdpa(machine, case, cached, new, case.heads)
    ratio = theirs / ours
    detail = {"ms": ours * 1e3, "torch's": theirs * 1e3}
    return [Row(what, ">= 1", ratio, reached(ratio, least=1.0), detail=detail)]


def _sdpa(machine: Machine, case: Case, cached: int, new: int, heads: Heads) -> float:
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

    return seconds(machine, [run])


def _flashinfer(machine: Machine, limits: PagedLimits) -> Iterable[Row]:
    """FlashInfer's paged decode on the same numbers, where it is installed."""
    what = "decode attention, times flashinfer's"
    if not machine.measures:
        return [Row(what, "", None)]
    try:
        import flashinfer
    except ImportError:
        return [Row(what, "", None, detail={"flashinfer": "not installed"})]
    case, device = decode_case(machine, limits), machine.device
    heads, (rows, length) = case.heads, case.plan.page_table.shape
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
    away = worst_error(run(), case.run().view(case.q.shape))
    theirs, ours = seconds(machine, [run]), graph_seconds(machine, [case.run])
    detail = {"microseconds": ours * 1e6, "flashinfer's": theirs * 1e6}
    return [Row(what, "", theirs / ours, None, away, 2 * BF16_ERROR, detail)]
