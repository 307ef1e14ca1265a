"""Random steps for checks of attention: rows of every kind over one pool, of which what nobody may read is NaN.

    decode, siblings of a fork at two depths, short extends      split attention and the merge
    extends of more tokens                                       extend attention over the page table
    long ones                                                    gather, and extend attention over what it copied

Planned as the runtime plans them, from a ScheduledBatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.gpu import exact
from benchmarks.gpu.machine import Machine, worst_error
from benchmarks.gpu.poison import poisoned
from palmette.kernels.gpu.step_kernels import TritonKernels
from palmette.kernels.kv_store import KVLayer, quantize_rows
from palmette.kernels.paged_plan import PagedPlan
from palmette.runtime.batch import write_page_table
from palmette.runtime.paged_batch import PagedShape, StepInputs, plan_step
from palmette.runtime.paged_plan import PagedLimits
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow, TreeRow

CHECKED = 48  # tokens of each kind of work, on a GPU
_SMALL_LIMITS = PagedLimits(cut=32, short=3, wide=32, widest=64, extend=16, key_tile=32, gather_from=9)


@dataclass(frozen=True, slots=True)
class Variant:
    """What a step's attention is like."""

    name: str
    heads: tuple[int, int, int] = (32, 8, 128)  # query heads, KV heads, head_dim
    dtype: torch.dtype = torch.bfloat16
    pool: torch.dtype | None = None  # of 8-bit codes
    window: int | None = None
    soft_cap: float | None = None
    tries: bool = False


@dataclass(frozen=True, slots=True)
class Spec:
    """One row of a step."""

    prefix: int  # keys before its new tokens
    new: int
    like: int | None = None  # an earlier row, whose first `shared` keys are its own
    shared: int = 0
    is_trie: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    variant: Variant
    q: Tensor
    kv: KVLayer
    plan: PagedPlan
    tokens: dict[str, list[int]]  # by the work that computes them

    @property
    def scale(self) -> float:
        return float(self.variant.heads[2] ** -0.5)

    def errors(self, machine: Machine) -> dict[str, float]:
        """By kind of work, the largest of a token and head."""
        with poisoned():
            got = (
                TritonKernels()
                .attend(self.q, self.kv, self.plan, scale=self.scale, soft_cap=self.variant.soft_cap)
                .view(self.q.shape)
            )
        found: dict[str, float] = {}
        for work, tokens in self.tokens.items():
            most = CHECKED if machine.measures else 5
            picked = [tokens[int(i)] for i in np.linspace(0, len(tokens) - 1, min(most, len(tokens)))]
            wanted = exact.attention(
                self.q, self.kv, self.plan, picked, scale=self.scale, soft_cap=self.variant.soft_cap
            )
            all_written = bool(torch.isfinite(got[tokens]).all())
            found[work] = worst_error(got[picked], wanted) if all_written else float("inf")
        return found


def rows_of(machine: Machine, rng: np.random.Generator, *, tries: bool) -> tuple[list[Spec], PagedLimits]:
    """Rows of every kind, of random lengths."""
    if not machine.measures:
        rows = [Spec(40, 1), *(Spec(40 + int(rng.integers(0, 4)), 1, 0, 36) for _ in range(3)), Spec(7, 3)]
        rows += [Spec(11, 6), Spec(int(rng.integers(0, 20)), 11)]
        if tries:
            rows += [Spec(13, 3, is_trie=True), Spec(21, 7, is_trie=True)]
        return rows, _SMALL_LIMITS
    rows = [Spec(2500, 1), Spec(int(rng.integers(1600, 2000)), 1, 0, 1600)]
    rows += [Spec(2200 + int(rng.integers(0, 300)), 1, 0, 2200) for _ in range(20)]
    rows += [Spec(1500 + int(rng.integers(0, 60)), int(rng.integers(1, 5)), 1, 1500) for _ in range(6)]
    rows += [Spec(int(rng.integers(0, 3000)), int(rng.integers(1, 17))) for _ in range(10)]
    rows += [Spec(0, 1), Spec(255, 1), Spec(256, 2)]
    rows += [Spec(int(rng.integers(0, 2500)), int(rng.integers(17, 500))) for _ in range(4)] + [Spec(0, 70)]
    rows += [Spec(int(rng.integers(0, 2000)), int(rng.integers(512, 1200))) for _ in range(2)] + [Spec(0, 600)]
    if tries:
        rows += [Spec(700, 12, is_trie=True), Spec(0, 9, is_trie=True), Spec(900, 130, is_trie=True)]
        rows += [Spec(333, 530, is_trie=True)]
    return rows, PagedLimits()


def make_step(machine: Machine, variant: Variant) -> Step:
    """Drawn anew in every run, by torch's generator."""
    rng = np.random.default_rng(int(torch.randint(1 << 31, ())))
    specs, limits = rows_of(machine, rng, tries=variant.tries)
    slots, num_slots = _slots(specs, rng)
    rows, first = [], 0
    tokens: dict[str, list[int]] = {"split": [], "extend, paged": [], "extend, gathered": []}
    for i, (spec, mine) in enumerate(zip(specs, slots, strict=True)):
        tree = None
        if spec.is_trie:
            parents = tuple(int(rng.integers(max(-1, j - 7), j)) for j in range(spec.new))
            tree = TreeRow(spec.prefix, parents, 0)
        prefix = (0, mine[: spec.prefix]) if spec.prefix else None
        ids = tuple(int(x) for x in rng.integers(0, 99, spec.new))
        rows.append(ScheduledRow(i, ids, spec.prefix, tuple(mine[spec.prefix :]), prefix, tree=tree))
        work = "split" if spec.new <= limits.short else "extend, paged"
        tokens["extend, gathered" if spec.new >= limits.gather_from else work] += range(first, first + spec.new)
        first += spec.new
    heads, kv_heads, dim = variant.heads
    batch = ScheduledBatch(tuple(rows))
    table: NDArray[np.int32] = np.full((len(specs), max(map(len, slots)) + 9), num_slots, np.int32)
    write_page_table(batch, table)
    shape = PagedShape(heads, kv_heads, frozenset({variant.window}), num_slots, limits)
    page_table = torch.from_numpy(table).to(machine.device)
    plan = StepInputs(page_table, shape).send(plan_step(batch, table, shape)).plans[variant.window]
    q = torch.randn(first, heads, dim, device=machine.device).to(variant.dtype)
    used = torch.tensor(sorted({slot for mine in slots for slot in mine}), device=machine.device)
    kv = _pool(variant, num_slots + 1, used)
    return Step(variant, q, kv, plan, {work: some for work, some in tokens.items() if some})


def _slots(specs: Sequence[Spec], rng: np.random.Generator) -> tuple[list[list[int]], int]:
    """Of each row's keys, anywhere in a pool that is a third larger than it need be; and its size."""
    own = sum(spec.prefix + spec.new - spec.shared for spec in specs)
    num_slots = own * 4 // 3 + 7
    free = iter(rng.permutation(num_slots).tolist())
    found: list[list[int]] = []
    for spec in specs:
        shared = [] if spec.like is None else found[spec.like][: spec.shared]
        found.append([*shared, *(next(free) for _ in range(spec.prefix + spec.new - len(shared)))])
    return found, num_slots


def _pool(variant: Variant, num_slots: int, used: Tensor) -> KVLayer:
    """Random keys and values at used slots; NaN, or codes under a scale of NaN, at all others."""
    _, kv_heads, dim = variant.heads
    parts: list[tuple[Tensor, Tensor | None]] = []
    for _ in range(2):
        values = torch.randn(len(used), kv_heads, dim, device=used.device)
        if variant.pool is None:
            pool = torch.full((num_slots, kv_heads, dim), float("nan"), dtype=variant.dtype, device=used.device)
            pool[used] = values.to(variant.dtype)
            parts.append((pool, None))
            continue
        codes, scales = quantize_rows(values, variant.pool)
        raw = torch.full((num_slots, kv_heads, dim), 0x55, dtype=torch.uint8, device=used.device)
        raw[used] = codes.view(torch.uint8)
        all_scales = torch.full((num_slots, kv_heads), float("nan"), device=used.device)
        all_scales[used] = scales
        parts.append((raw.view(variant.pool), all_scales))
    (keys, key_scales), (values, value_scales) = parts
    return KVLayer(keys, values, key_scales, value_scales)
