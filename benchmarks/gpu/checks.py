"""Part "checks": every kernel on fresh random inputs against float64, its outputs poisoned before it runs.

At the sizes of real models on a GPU, tiny under the interpreter. A row's error is the largest of any row of its result
(the last dimension), relative; where a result is exact, the share of elements that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu import logit_checks, product_checks
from benchmarks.gpu.exact import gated, rms_norm, rotated
from benchmarks.gpu.machine import Machine, worst_error
from benchmarks.gpu.poison import poisoned
from benchmarks.gpu.rows import Row
from benchmarks.gpu.steps import Variant, make_step
from benchmarks.gpu.tasks import Task
from palmette.kernels.gpu import activation, embedding, gather_rows, merge_partials, page_table
from palmette.kernels.gpu import rms_norm as norms
from palmette.kernels.gpu.rotate_and_store import rotate_and_store
from palmette.kernels.kv_store import KVLayer, dequantize, quantize_rows
from palmette.kernels.paged_plan import ExtendWork, MergeWork, PagedPlan
from palmette.kernels.rope import RopeSpec, rope_cos_sin, rope_frequencies
from palmette.kernels.step_kernels import Activation

ATTENTION_ERROR = 1e-2
ROUNDED = 4.2e-3  # to bfloat16, once; more than half a unit in the last place
CODED = {torch.int8: 1.2e-2, torch.float8_e4m3fn: 3.2e-2}  # of codes themselves

VARIANTS = (
    Variant("32 heads over 8, dim 128"),
    Variant("window", window=1000),
    Variant("soft cap", soft_cap=30.0),
    Variant("tries", tries=True),
    Variant("tries in a window with a soft cap", tries=True, window=300, soft_cap=50.0),
    Variant("int8 pool", pool=torch.int8),
    Variant("fp8 pool", pool=torch.float8_e4m3fn),
    Variant("fp8 pool, tries in a window", pool=torch.float8_e4m3fn, tries=True, window=700),
    Variant("dim 64, 32 heads over 4", heads=(32, 4, 64)),
    Variant("dim 80, 32 heads over 32", heads=(32, 32, 80)),
    Variant("dim 96, 12 heads over 4", heads=(12, 4, 96)),
    Variant("dim 256, 16 heads over 8, window and soft cap", heads=(16, 8, 256), window=1024, soft_cap=50.0),
    Variant("dim 256, 8 heads over 1, fp8 pool", heads=(8, 1, 256), pool=torch.float8_e4m3fn),
    Variant("16 heads over 1, dim 128", heads=(16, 1, 128)),
    Variant("7 heads over 1, dim 64, fp16", heads=(7, 1, 64), dtype=torch.float16),
    Variant("8 heads over 2, dim 64, fp32", heads=(8, 2, 64), dtype=torch.float32),
)


def tasks(machine: Machine) -> Sequence[Task]:
    """Attention in all variants, then every other kernel."""
    found = [Task(f"attention: {v.name}", partial(_attention, machine, _sized(machine, v))) for v in VARIANTS]
    for name, check in _CHECKS.items():
        found.append(Task(name, partial(check, machine)))
    return [*found, *logit_checks.tasks(machine), *product_checks.tasks(machine)]


def _sized(machine: Machine, variant: Variant) -> Variant:
    """The same with few heads, and windows that are shorter than its rows."""
    if machine.measures:
        return variant
    heads, kv_heads, dim = variant.heads
    r = heads // kv_heads
    return Variant(
        variant.name,
        heads=(2 * min(r, 7), 2, dim // 4),
        dtype=variant.dtype,
        pool=variant.pool,
        window=None if variant.window is None else 17,
        soft_cap=None if variant.soft_cap is None else 3.0,
        tries=variant.tries,
    )


def _attention(machine: Machine, variant: Variant) -> Iterable[Row]:
    step = make_step(machine, variant)
    allowed = 1e-5 if variant.dtype == torch.float32 else ATTENTION_ERROR
    for work, found in step.errors(machine).items():
        yield checked(machine, f"attention: {variant.name}: {work}", found, allowed)


def checked(machine: Machine, what: str, found: float, allowed: float) -> Row:
    return Row(f"check {what}", "", None, error=found, allowed_error=allowed * machine.rounding)


def differing(got: Tensor, wanted: Tensor) -> float:
    """The share of elements that are not the same."""
    return float((got != wanted).double().mean()) if got.numel() else 0.0


def _random(machine: Machine, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device=machine.device).to(dtype)


def _gather(machine: Machine) -> Iterable[Row]:
    heads, dim, lengths = (8, 128, (700, 3, 1500)) if machine.measures else (2, 16, (20, 3))
    num, num_slots = len(lengths), 2 * sum(lengths)
    table = torch.randperm(num_slots, device=machine.device)[: num * max(lengths)].int().view(num, -1).contiguous()
    spans, at = [], 0
    for row, length in enumerate(lengths):
        spans.append((row, row, length, at))  # first key = row
        at += length - row + 5  # five rows of nobody between spans
    ints = torch.zeros(1, dtype=torch.int32, device=machine.device)
    plan = PagedPlan(table, ints, ints, ints, None, None, None, 256, (), None, ())
    work = ExtendWork(ints.view(1, 1), 1, torch.tensor(spans, dtype=torch.int32, device=machine.device), at)
    for kind in (None, torch.int8, torch.float8_e4m3fn):
        pools = [_random(machine, num_slots, heads, dim) for _ in range(2)]
        kv = KVLayer(*pools)
        if kind is not None:
            (keys, key_scales), (values, value_scales) = (quantize_rows(pool, kind) for pool in pools)
            kv = KVLayer(keys, values, key_scales, value_scales)
        with poisoned():
            keys, values = (torch.empty((heads, at, dim), dtype=torch.bfloat16, device=machine.device) for _ in "kv")
        gather_rows.gather_rows(kv, plan, work, keys, values)
        found = 0.0
        for row, first, end, begin in spans:
            slots = table[row, first:end].long()
            for got, pool, scales in ((keys, kv.keys, kv.key_scales), (values, kv.values, kv.value_scales)):
                copied = got[:, begin : begin + end - first]
                found = max(found, worst_error(copied, dequantize(pool, scales, slots).transpose(0, 1)))
                behind = got[:, begin + end - first : begin + end - first + 5]
                found = max(found, float((~behind.isnan()).double().mean()))  # what is nobody's stays as it was
        yield checked(machine, f"gather_rows, pool {kind or 'bfloat16'}", found, 0.0 if kind is None else ROUNDED)


def _merge(machine: Machine) -> Iterable[Row]:
    heads, dim, counts = (32, 128, (33, 1, 0, 8, 9, 200)) if machine.measures else (2, 24, (3, 0, 9))
    firsts = torch.tensor([0, *counts]).cumsum(0).tolist()
    partials = torch.randn(firsts[-1], heads, dim, device=machine.device)
    lse = 10 * torch.randn(firsts[-1], heads, device=machine.device)
    lse[0, 0], partials[0, 0] = -torch.inf, 0.0
    order = torch.randperm(len(counts)).tolist()
    with poisoned():
        out = torch.empty((len(counts), heads, dim), dtype=torch.bfloat16, device=machine.device)
    ints = [torch.tensor(x, dtype=torch.int32, device=machine.device) for x in (order, firsts)]
    merge_partials.merge_partials(partials, lse, MergeWork(ints[0], ints[1], firsts[-1]), out)
    wanted = torch.zeros(out.shape, dtype=torch.float64, device=machine.device)
    for token, first, end in zip(order, firsts, firsts[1:], strict=False):
        if end > first:
            weights = (lse[first:end].double() * torch.log(torch.tensor(2.0, dtype=torch.float64))).softmax(0)
            wanted[token] = (weights.nan_to_num(0.0)[..., None] * partials[first:end].double()).sum(0)
    yield checked(machine, "merge_partials", worst_error(out, wanted), ROUNDED)


def _rms_norm(machine: Machine) -> Iterable[Row]:
    for rows, dim in ((333, 4096), (1, 5120), (4001, 128)) if machine.measures else ((3, 96), (5, 64)):
        x, residual = _random(machine, rows, dim), _random(machine, rows, dim)
        weight = torch.rand(dim, device=machine.device) + 0.5
        with poisoned():
            plain = norms.rms_norm(x, weight, 1e-5)
            normed, summed = norms.add_rms_norm(x, residual, weight, 1e-5)
        yield checked(machine, f"rms_norm {rows} x {dim}", worst_error(plain, rms_norm(x, weight, 1e-5)), ROUNDED)
        found = worst_error(summed, x.double() + residual.double())
        found = max(found, worst_error(normed, rms_norm(summed, weight, 1e-5)))
        yield checked(machine, f"add_rms_norm {rows} x {dim}", found, ROUNDED)


def _gated(machine: Machine) -> Iterable[Row]:
    rows, dim = (129, 14336) if machine.measures else (3, 48)
    names: tuple[Activation, ...] = ("silu", "gelu_tanh")
    for name in names:
        x = 3 * _random(machine, rows, 2 * dim)
        with poisoned():
            got = activation.gated(x, name)
        yield checked(machine, f"gated {name} {rows} x {dim}", worst_error(got, gated(x, name)), ROUNDED)


def _embed(machine: Machine) -> Iterable[Row]:
    vocab, dim, num = (128256, 4096, 1000) if machine.measures else (50, 48, 7)
    table = _random(machine, vocab, dim)
    ids = torch.randint(vocab, (num,), device=machine.device)
    drawn = torch.randint(vocab, (9,), device=machine.device).int()
    rows = torch.randint(9, (num,), device=machine.device).int()
    waiting = torch.arange(num, device=machine.device) % 3 == 0
    known = torch.where(waiting, drawn[rows.long()].long(), ids)
    with poisoned():
        got = embedding.embed(torch.where(waiting, -1, ids), table, drawn=drawn, rows=rows)
        scaled = embedding.embed(ids, table, scale=45.3)
    factor = float(torch.tensor(45.3, dtype=torch.bfloat16))
    yield checked(machine, "embed, of known tokens and drawn ones", differing(got, table[known]), 0.0)
    yield checked(machine, "embed, scaled", worst_error(scaled, table[ids].double() * factor), ROUNDED)


def _page_table(machine: Machine) -> Iterable[Row]:
    rows, length, num = (256, 32768, 5000) if machine.measures else (4, 50, 30)
    table = torch.randint(1 << 30, (rows, length), device=machine.device).int()
    where = torch.randperm(rows * length, device=machine.device)[:num]
    slots = torch.randint(1 << 30, (num,), device=machine.device)
    updates = torch.full((num + 77, 3), 1 << 30, dtype=torch.int32, device=machine.device)  # behind them: nowhere
    updates[:num] = torch.stack((where // length, where % length, slots), 1).int()
    wanted = table.clone().view(-1)
    wanted[where] = slots.int()
    page_table.update(table, updates, torch.tensor([num], dtype=torch.int32, device=machine.device))
    yield checked(machine, "page_table.update", differing(table.view(-1), wanted), 0.0)


def _rotate(machine: Machine) -> Iterable[Row]:
    big = machine.measures
    for name, heads, kv_heads, dim, rotating, has_norm, kind in (
        ("32 heads over 8, dim 128", 32, 8, 128, 128, False, None),
        ("32 heads over 4, dim 128, q/k norm", 32, 4, 128, 128, True, None),
        ("dim 80, of which 32 rotate", 32, 32, 80, 32, False, None),
        ("dim 256, q/k norm, int8 pool", 8, 4, 256, 256, True, torch.int8),
        ("dim 128, fp8 pool", 32, 8, 128, 128, False, torch.float8_e4m3fn),
        ("dim 64, q/k norm, fp8 pool", 14, 2, 64, 64, True, torch.float8_e4m3fn),
    ):
        num, num_slots = (777, 2000) if big else (3, 9)
        heads, kv_heads = (heads, kv_heads) if big else (3 * min(2, kv_heads), min(2, kv_heads))
        spec = RopeSpec(dim=rotating, theta=1e4)
        positions = torch.randint(30000, (num,), device=machine.device)
        cos, sin = rope_cos_sin(rope_frequencies(spec).to(machine.device), positions)
        qkv = _random(machine, num, (heads + 2 * kv_heads) * dim)
        weights = [torch.rand(dim, device=machine.device) + 0.5 if has_norm else None for _ in range(2)]
        slots = torch.randperm(num_slots, device=machine.device)[:num]
        with poisoned():
            pools = [
                torch.empty((num_slots, kv_heads, dim), dtype=kind or qkv.dtype, device=machine.device) for _ in "kv"
            ]
            scales = [None if kind is None else torch.empty((num_slots, kv_heads), device=machine.device) for _ in "kv"]
            before = [pool.view(torch.uint8).clone() for pool in pools]
            kv = KVLayer(*pools, *scales)
            got = rotate_and_store(
                qkv, cos, sin, kv, slots, num_heads=heads, q_norm=weights[0], k_norm=weights[1], eps=1e-6
            )
        parts = qkv.view(num, -1, dim)
        q, k, v = parts[:, :heads], parts[:, heads:-kv_heads], parts[:, -kv_heads:]
        wanted_q, wanted_k = (
            rotated(x.double() if w is None else rms_norm(x, w, 1e-6), cos, sin)
            for x, w in zip((q, k), weights, strict=True)
        )
        found = max(
            worst_error(dequantize(kv.keys, kv.key_scales, slots), wanted_k),
            worst_error(dequantize(kv.values, kv.value_scales, slots), v),
        )
        others = torch.ones(num_slots, dtype=torch.bool, device=machine.device)
        others[slots] = False
        touched = max(differing(p.view(torch.uint8)[others], b[others]) for p, b in zip(pools, before, strict=True))
        yield checked(machine, f"rotate_and_store, {name}: queries", worst_error(got, wanted_q), ROUNDED)
        yield checked(machine, f"rotate_and_store, {name}: pool", found, ROUNDED if kind is None else CODED[kind])
        yield checked(machine, f"rotate_and_store, {name}: other slots", touched, 0.0)


_CHECKS: dict[str, Callable[[Machine], Iterable[Row]]] = {
    "gather_rows": _gather,
    "merge_partials": _merge,
    "rms_norm": _rms_norm,
    "gated": _gated,
    "embed": _embed,
    "page_table": _page_table,
    "rotate_and_store": _rotate,
}
