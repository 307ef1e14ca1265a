"""Any batch the scheduler can make attends to exactly what it should."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palmette.kernels.attention import AttentionPlan, paged_attention
from palmette.runtime.attention_plan import PlanLimits, PlanRow, make_attention_plan
from palmette.runtime.batch import AttentionShape, pack
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow, TreeRow
from tests.runtime.naive import naive_attention, visible_slots

SMALL = PlanLimits(chunk=4, block=16, max_scores=4 * 4 * 16 * 4, max_gathered=48)
NUM_SLOTS = 2048


def plan_rows(batch: ScheduledBatch, table: torch.Tensor, window: int | None, limits: PlanLimits) -> AttentionPlan:
    shape = AttentionShape(num_heads=4, num_kv_heads=2, windows=frozenset({window}), pad_slot=NUM_SLOTS, limits=limits)
    return pack(batch, table, shape).plans[window]


class Batches:
    """Random batches: rows fork off each other's tokens, extend, decode, or score a trie."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.slots = self.rng.sample(range(NUM_SLOTS), NUM_SLOTS)
        self.chains: list[list[int]] = [[]]  # slots of known prefixes
        self.tables: list[list[int]] = []

    def row(self, index: int) -> ScheduledRow:
        chain = self.rng.choice(self.chains)
        prefix = chain[: self.rng.randint(0, len(chain))]
        num = self.rng.choice([1, 1, 1, 2, 5, 9, self.rng.randint(1, 40)])
        own = [self.slots.pop() for _ in range(num)]
        ids = tuple(range(num))
        if self.rng.random() < 0.3:
            parents = tuple(self.rng.randint(-1, i - 1) for i in range(num))
            first = self.rng.randint(0, num - 1)
            # nodes before `first` were computed in an earlier step: they are part of the page table
            table = prefix + own
            self.tables.append(table)
            tree = TreeRow(len(prefix), parents, first)
            known = (0, tuple(table[: len(prefix) + first]))
            return ScheduledRow(
                index, ids[first:], len(prefix) + first, tuple(own[first:]), prefix=known, logits_from=0, tree=tree
            )
        self.chains.append(prefix + own)
        self.tables.append(prefix + own)
        return ScheduledRow(index, ids, len(prefix), tuple(own), prefix=(0, tuple(prefix)), logits_from=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([None, None, 1, 3, 8, 30]), st.booleans())
def test_every_token_attends_to_exactly_what_it_may_see(
    seed: int, num_rows: int, window: int | None, soft: bool
) -> None:
    made = Batches(seed)
    batch = ScheduledBatch(tuple(made.row(i) for i in range(num_rows)))
    table = torch.zeros((num_rows, 512), dtype=torch.int32)
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn((NUM_SLOTS + 1, 2, 8), generator=generator) for _ in range(2))
    q = torch.randn((batch.num_tokens, 4, 8), generator=generator)
    soft_cap = 2.0 if soft else None

    plan = plan_rows(batch, table, window, SMALL)
    got = paged_attention(q, keys, values, plan, scale=0.3, soft_cap=soft_cap)

    visible = [v for row, t in zip(batch.rows, made.tables, strict=True) for v in visible_slots(row, t, window)]
    wanted = naive_attention(q, keys, values, visible, scale=0.3, soft_cap=soft_cap)
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([None, 5]))
def test_a_plan_stays_within_its_limits(seed: int, num_rows: int, window: int | None) -> None:
    made = Batches(seed)
    batch = ScheduledBatch(tuple(made.row(i) for i in range(num_rows)))
    plan = plan_rows(batch, torch.zeros((num_rows, 512), dtype=torch.int32), window, SMALL)
    for group in plan.segments:
        products = group.key_rows.shape[0] // group.num_keys
        assert group.num_keys <= SMALL.block
        assert products * 2 * group.num_queries * group.num_keys <= SMALL.max_scores
        assert products // 2 == 1 or products // 2 * group.num_keys <= SMALL.max_gathered


def siblings(num: int, shared: int, own: int) -> list[PlanRow]:
    """`num` decode rows over `shared` common tokens and `own` more each."""
    slots = [np.r_[np.arange(shared), shared + i * own + np.arange(own)].astype(np.int32) for i in range(num)]
    return [PlanRow(i, len(s) - 1, s, np.array([len(s) - 1])) for i, s in enumerate(slots)]


def gathered_keys(plan: AttentionPlan) -> int:
    return sum(len(group.key_rows) for group in plan.segments) // plan.num_kv_heads


def test_siblings_gather_their_shared_prefix_once() -> None:
    plan = make_attention_plan(siblings(64, 1024, 10), num_heads=4, num_kv_heads=2, pad_slot=5000)
    assert gathered_keys(plan) == 1024 + 64 * 10


def test_siblings_read_less_than_a_chunk_of_the_shared_prefix_twice() -> None:
    limits = PlanLimits()
    plan = make_attention_plan(siblings(64, 1000, 10), num_heads=4, num_kv_heads=2, pad_slot=5000)
    assert gathered_keys(plan) <= 1000 + 64 * (10 + limits.chunk)


@pytest.mark.parametrize("lengths", [(5, 6, 7, 8), (100, 110), (513, 600, 640), (1, 2, 3, 64, 65, 700)])
def test_padding_costs_at_most_a_quarter_of_the_queries(lengths: tuple[int, ...]) -> None:
    firsts = np.cumsum((0, *lengths))
    rows = [
        PlanRow(int(f), 0, np.arange(f, f + n, dtype=np.int32), np.arange(n))
        for f, n in zip(firsts, lengths, strict=False)
    ]
    plan = make_attention_plan(rows, num_heads=1, num_kv_heads=1, pad_slot=5000)
    assert plan.num_partials <= 1.25 * sum(n - first for n in lengths for first in range(0, n, 512))


@pytest.mark.parametrize("num", [1, 7, 64])
def test_a_step_of_decodes_is_few_products(num: int) -> None:
    plan = make_attention_plan(siblings(num, 1000, 10), num_heads=4, num_kv_heads=2, pad_slot=5000)
    assert len(plan.segments) <= 3
    assert len(plan.merges) == 1
    assert plan.merges[0].tokens is None
