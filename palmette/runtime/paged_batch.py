"""From a ScheduledBatch of ints to tensors for kernels that walk a page table on the device.

The page table lives twice: on the host, where plans find out who shares what, and on the device, which is told of each
step's new entries. The step's other integers travel in one copy (`Staging`).

A bucket fixes the shapes of everything a step sends, so that a CUDA graph can be captured once and replayed: tokens
behind the step's own are padding, which writes to the pad slot, sees nothing and yields zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palmette.kernels.paged_plan import ExtendWork, MergeWork, PagedPlan, SplitWork
from palmette.runtime.batch import place
from palmette.runtime.drawn import DRAWN
from palmette.runtime.paged_plan import (
    DEFAULT_PAGED_LIMITS,
    ExtendArrays,
    PagedLimits,
    PagedRow,
    PlanArrays,
    plan_attention,
)
from palmette.runtime.scheduled import ScheduledBatch
from palmette.runtime.staging import Staging

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PagedShape:
    """What packing must know of a model."""

    num_heads: int
    num_kv_heads: int
    windows: frozenset[int | None]
    pad_slot: int
    limits: PagedLimits = DEFAULT_PAGED_LIMITS


@dataclass(frozen=True, slots=True)
class Bucket:
    """Shapes of a step that can be replayed: rows of few tokens, no tries."""

    num_tokens: int
    num_partials: int  # of each window, which bounds its items too
    block_ms: tuple[tuple[int, ...], ...]  # of each window's splits


@dataclass(frozen=True, slots=True)
class HostBatch:
    """One step, planned, on the host."""

    ids: Ints  # (num_tokens,), DRAWN among them
    slots: Ints
    logit_tokens: Ints
    plans: Mapping[int | None, PlanArrays]

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    def bucket(self, *, max_tokens: int, max_partials: int) -> Bucket | None:
        """The smallest bucket that holds this step; None where it is too large or extends a row."""
        plans = list(self.plans.values())
        num_partials = max(len(plan.pairs) for plan in plans)
        if self.num_tokens > max_tokens or num_partials > max_partials:
            return None
        if any(plan.extends or plan.trees is not None for plan in plans):
            return None
        return Bucket(
            _round_up(self.num_tokens),
            max(64, 1 << (num_partials - 1).bit_length()),
            tuple(tuple(split.block_m for split in plan.splits) for plan in plans),
        )


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """One forward pass (`models.interface.StepTensors`). All tensors on the model's device."""

    input_ids: Tensor  # (num_tokens,) int64
    positions: Tensor  # (num_tokens,) int64
    slots: Tensor  # (num_tokens,) int64
    logit_tokens: Tensor  # (num_logits,) int64; padded to num_tokens in a bucket
    plans: Mapping[int | None, PagedPlan]


def plan_step(batch: ScheduledBatch, table: Ints, shape: PagedShape) -> HostBatch:
    """
    Args:
        batch: at least one row, each with at least one token.
        table: (max_rows, context_len), this step's entries written.
    """
    ids: list[int] = []
    slots: list[int] = []
    logit_tokens: list[int] = []
    rows: list[PagedRow] = []
    for row in batch.rows:
        positions, tree = place(row)
        rows.append(PagedRow(row.row, len(ids), row.start, positions, tree))
        if row.logits_from is not None:
            logit_tokens.extend(range(len(ids) + row.logits_from, len(ids) + len(row.token_ids)))
        ids.extend(row.token_ids)
        slots.extend(row.slots)
    plans = {
        window: plan_attention(
            rows,
            table,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            window=window,
            limits=shape.limits,
        )
        for window in sorted(shape.windows, key=lambda w: w or 0)
    }
    return HostBatch(
        np.array(ids, np.int32), np.array(slots, np.int32), np.array(logit_tokens, np.int32).reshape(-1), plans
    )


def table_updates(batch: ScheduledBatch) -> Ints:
    """(n, 3): row, index and slot of every page-table entry that this step brings."""
    parts: list[Ints] = []
    for row in batch.rows:
        for first, slots in ([] if row.prefix is None else [row.prefix]) + [(row.start, row.slots)]:
            part = np.empty((len(slots), 3), np.int32)
            part[:, 0], part[:, 1], part[:, 2] = row.row, np.arange(first, first + len(slots)), slots
            parts.append(part)
    return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class SentStep:
    """A step's integers on the device, int32, as they were sent."""

    ids: Tensor
    rows: Tensor  # page-table row of each token
    positions: Tensor
    slots: Tensor
    logit_tokens: Tensor
    plans: Mapping[int | None, PagedPlan]

    def as_batch(self, drawn: Tensor) -> PagedBatch:
        """What a model reads; computed on the device, where what was drawn last is known.

        Args:
            drawn: (max_rows,) int32: the token drawn last for each row.
        """
        ids = torch.where(self.ids == DRAWN, drawn[self.rows.long()], self.ids)
        return PagedBatch(ids.long(), self.positions.long(), self.slots.long(), self.logit_tokens.long(), self.plans)


class StepInputs:
    """Where steps' integers lie on the device: of any step in turn, or of one bucket's, at the same places for good."""

    def __init__(self, page_table: Tensor, shape: PagedShape, bucket: Bucket | None = None) -> None:
        """
        Args:
            page_table: (max_rows, context_len) int32 on the device.
        """
        self._page_table, self._shape, self._bucket = page_table, shape, bucket
        self._staging = Staging(page_table.device)

    def send(self, host: HostBatch) -> SentStep:
        """Queue the step's copy. Valid until the next call."""
        staging, bucket = self._staging, self._bucket
        staging.begin()
        staging.fit(*self._size(host))
        tokens = host.num_tokens if bucket is None else bucket.num_tokens
        num_logits = len(host.logit_tokens) if bucket is None else tokens
        some = next(iter(host.plans.values()))
        ids = staging.put(_pad(host.ids, tokens, 0))
        slots = staging.put(_pad(host.slots, tokens, self._shape.pad_slot))
        logit_tokens = staging.put(_pad(host.logit_tokens, num_logits, 0))
        rows = staging.put(_pad(some.rows, tokens, 0))
        last_keys = staging.put(_pad(some.last_keys, tokens, -1))
        positions = staging.put(_pad(some.positions, tokens, 0))
        plans: dict[int | None, PagedPlan] = {}
        for window, arrays in host.plans.items():
            merge = self._merge(arrays, tokens)
            plans[window] = PagedPlan(
                page_table=self._page_table,
                rows=rows,
                last_keys=last_keys,
                positions=positions,
                trees=None if arrays.trees is None else staging.put(arrays.trees),
                tree_words=None if arrays.tree_words is None else staging.put(arrays.tree_words),
                window=window,
                cut=self._shape.limits.cut,
                splits=self._splits(arrays),
                merge=merge,
                extends=tuple(self._extend(extend) for extend in arrays.extends),
            )
        staging.send()
        return SentStep(ids, rows, positions, slots, logit_tokens, plans)

    def _splits(self, arrays: PlanArrays) -> tuple[SplitWork, ...]:
        if not arrays.splits:
            return ()
        reserve = None if self._bucket is None else self._bucket.num_partials
        pairs = self._staging.put(arrays.pairs, reserve=reserve)
        return tuple(
            SplitWork(
                items=self._staging.put(split.items, reserve=reserve),
                num_items=self._staging.put(np.array([len(split.items)], np.int32)),
                pairs=pairs,
                block_m=split.block_m,
            )
            for split in arrays.splits
        )

    def _merge(self, arrays: PlanArrays, tokens: int) -> MergeWork | None:
        if not arrays.splits:
            return None
        merged, firsts, num_partials = arrays.merge_tokens, arrays.merge_firsts, len(arrays.pairs)
        if self._bucket is not None:  # every token is a short row's: they are 0, 1, ... in order
            merged, firsts = np.arange(tokens, dtype=np.int32), _pad(firsts, tokens + 1, int(firsts[-1]))
            num_partials = self._bucket.num_partials
        return MergeWork(self._staging.put(merged), self._staging.put(firsts), num_partials)

    def _extend(self, arrays: ExtendArrays) -> ExtendWork:
        gathered = None if arrays.gathered is None else self._staging.put(arrays.gathered)
        return ExtendWork(self._staging.put(arrays.tiles), arrays.tile_tokens, gathered, arrays.scratch_len)

    def _size(self, host: HostBatch) -> tuple[int, int]:
        """Ints and sections of a step, at least."""
        tokens = host.num_tokens if self._bucket is None else self._bucket.num_tokens
        ints, sections = 6 * tokens, 6
        for arrays in host.plans.values():
            reserve = len(arrays.pairs) if self._bucket is None else self._bucket.num_partials
            ints += 2 * tokens + 2 + 2 * reserve + 7 * len(arrays.splits) * reserve
            sections += 5 + 2 * len(arrays.splits) + 2 * len(arrays.extends)
            for extra in (arrays.trees, arrays.tree_words, *(e.tiles for e in arrays.extends)):
                ints += 0 if extra is None else extra.size
            ints += sum(0 if e.gathered is None else e.gathered.size for e in arrays.extends)
        return ints, sections


def _pad(array: Ints, length: int, value: int) -> Ints:
    if len(array) == length:
        return array
    padded = np.full(length, value, np.int32)
    padded[: len(array)] = array
    return padded


def _round_up(n: int) -> int:
    """To 1, 2, 4, 8, then four steps per power of two: at most a quarter of padding."""
    step = 1 << max(0, n.bit_length() - 3)
    return -(-n // step) * step if n > 8 else 1 << (n - 1).bit_length()
