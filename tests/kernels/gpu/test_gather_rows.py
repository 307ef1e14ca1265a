"""Gathering rows of a page table to scratch, against plain indexing."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from palmette.errors import InvalidOption
from palmette.kernels.gpu.gather_rows import gather_rows
from palmette.kernels.kv_store import KVLayer, dequantize, kv_store
from palmette.kernels.paged_plan import ExtendWork, PagedPlan
from tests.kernels.gpu.close import DEVICE, assert_within_an_ulp

UNTOUCHED = 1234.0


def spans_of(lengths: list[int], seed: int) -> tuple[list[list[int]], int]:
    """Spans (row, first, end, scratch row) with holes between them, in any order; the length of scratch."""
    rng = random.Random(seed)
    spans, at = [], rng.randrange(4)
    for row, length in enumerate(lengths):
        first = rng.randrange(8)
        spans.append([row, first, first + length, at])
        at += length + rng.randrange(5)
    rng.shuffle(spans)
    return spans, at + 3


def plan_and_work(spans: list[list[int]], scratch_len: int, num_slots: int, seed: int) -> tuple[PagedPlan, ExtendWork]:
    gen = torch.Generator().manual_seed(seed)
    longest = max(end for _, _, end, _ in spans)
    table = torch.randint(0, num_slots, (len(spans), longest), generator=gen).int().to(DEVICE)
    none = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    plan = PagedPlan(table, none, none, none, None, None, None, 16, (), None, ())
    gathered = torch.tensor(spans, dtype=torch.int32, device=DEVICE)
    return plan, ExtendWork(none.view(0, 8), 16, gathered, scratch_len)


def wanted(plan: PagedPlan, spans: list[list[int]], kv: KVLayer, scratch: Tensor, *, of_keys: bool) -> Tensor:
    pool, scales = (kv.keys, kv.key_scales) if of_keys else (kv.values, kv.value_scales)
    result = torch.full_like(scratch, UNTOUCHED)
    for row, first, end, at in spans:
        rows = dequantize(pool, scales, plan.page_table[row, first:end].long())
        result[:, at : at + end - first] = rows.transpose(0, 1).to(scratch.dtype)
    return result


@pytest.mark.parametrize("pool", [torch.bfloat16, torch.float32, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(1, 128), (3, 80)])
@pytest.mark.parametrize("lengths", [[1], [33, 2, 17], [3] * 37])
def test_spans_are_copied_and_nothing_else(lengths: list[int], kv_heads: int, head_dim: int, pool: torch.dtype) -> None:
    spans, scratch_len = spans_of(lengths, len(lengths))
    plan, work = plan_and_work(spans, scratch_len, 50, 1)
    dtype = pool if pool.itemsize > 1 else torch.bfloat16
    kv = KVLayer(*(torch.zeros((50, kv_heads, head_dim), dtype=pool, device=DEVICE) for _ in range(2)))
    if pool.itemsize == 1:
        kv = kv._replace(key_scales=torch.zeros(50, kv_heads), value_scales=torch.zeros(50, kv_heads))
    kv_store(torch.randn(50, kv_heads, head_dim), torch.randn(50, kv_heads, head_dim), kv, torch.arange(50))
    kv = KVLayer(*(None if x is None else x.to(DEVICE) for x in kv))  # type: ignore[arg-type]
    keys, values = (torch.full((kv_heads, scratch_len, head_dim), UNTOUCHED, dtype=dtype).to(DEVICE) for _ in range(2))
    gather_rows(kv, plan, work, keys, values)
    assert_within_an_ulp(keys, wanted(plan, spans, kv, keys, of_keys=True))
    assert_within_an_ulp(values, wanted(plan, spans, kv, values, of_keys=False))


def test_scratch_may_be_longer_than_the_work() -> None:
    spans, scratch_len = spans_of([9, 4], 3)
    plan, work = plan_and_work(spans, scratch_len, 20, 2)
    kv = KVLayer(*(torch.randn(20, 2, 16, device=DEVICE) for _ in range(2)))
    keys, values = (torch.full((2, scratch_len + 40, 16), UNTOUCHED, device=DEVICE) for _ in range(2))
    gather_rows(kv, plan, work, keys, values)
    assert torch.equal(keys, wanted(plan, spans, kv, keys, of_keys=True))


def test_work_without_spans_is_refused() -> None:
    plan, work = plan_and_work([[0, 0, 1, 0]], 1, 4, 3)
    kv = KVLayer(torch.zeros(4, 1, 16), torch.zeros(4, 1, 16))
    with pytest.raises(InvalidOption, match="page table"):
        gather_rows(kv, plan, ExtendWork(work.tiles, 16), torch.zeros(1, 1, 16), torch.zeros(1, 1, 16))
