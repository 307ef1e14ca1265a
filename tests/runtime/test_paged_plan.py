"""A plan, read back by the plainest Python: every token's partials hold exactly the keys that it sees, in order."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from palmette.runtime.batch import place, write_page_table
from palmette.runtime.paged_plan import Ints, PagedLimits, PagedRow, PlanArrays, plan_attention
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow, TreeRow
from tests.runtime.naive import visible_slots

LIMITS = PagedLimits(cut=16, short=4, wide=32, widest=64, extend=24, key_tile=8, gather_from=12)
CONTEXT = 160


def random_step(seed: int) -> tuple[list[ScheduledRow], Ints]:
    """Rows with prefixes in common and of their own, new tokens few and many, tries; and the page table behind them."""
    rng = random.Random(seed)
    table = np.full((12, CONTEXT), -1, np.int32)
    free = rng.sample(range(4000), 3000)
    rows: list[ScheduledRow] = []
    trunks = [[free.pop() for _ in range(rng.choice([0, 5, 16, 33, 64]))] for _ in range(3)]
    for row in range(rng.randint(1, 8)):
        prefix = list(rng.choice(trunks))[: rng.choice([None, None, 20])]
        prefix += [free.pop() for _ in range(rng.choice([0, 0, 1, 17]))]
        count = rng.choice([1, 1, 1, 3, 4, 5, 13, 40])
        slots = tuple(free.pop() for _ in range(count))
        tree = None
        start = len(prefix)
        if rng.random() < 0.3:
            done = rng.choice([0, 0, 3])  # nodes that an earlier step computed
            parents = [rng.choice([-1, *range(max(0, i - 3), i)]) for i in range(done + count)]
            prefix += [free.pop() for _ in range(done)]
            tree = TreeRow(start, tuple(parents), done)
            start += done
        table[row, : len(prefix)] = prefix
        rows.append(ScheduledRow(row, tuple(range(count)), start, slots, tree=tree))
    write_page_table(ScheduledBatch(tuple(rows)), table)
    return rows, table


def paged_rows(rows: list[ScheduledRow]) -> list[PagedRow]:
    found, first = [], 0
    for row in rows:
        positions, tree = place(row)
        found.append(PagedRow(row.row, first, row.start, positions, tree))
        first += len(row.token_ids)
    return found


def sees(plan: PlanArrays, window: int | None, token: int, key: int) -> bool:
    """The rule at the top of kernels/paged_plan.py."""
    last = int(plan.last_keys[token])
    if key <= last:
        return window is None or key > int(plan.positions[token]) - window
    if plan.trees is None or plan.tree_words is None:
        return False
    first, bits = plan.trees[token].tolist()
    node = key - last - 1
    return node < bits and bool(int(plan.tree_words[first + node // 32]) >> (node % 32) & 1)


@pytest.mark.parametrize("window", [None, 1, 20, 70])
@pytest.mark.parametrize("seed", range(60))
def test_every_token_reads_exactly_what_it_sees_in_position_order(seed: int, window: int | None) -> None:
    rows, table = random_step(seed)
    plan = plan_attention(paged_rows(rows), table, num_heads=6, num_kv_heads=2, window=window, limits=LIMITS)
    wanted = [slots for row in rows for slots in visible_slots(row, table[row.row].tolist(), window)]
    partials: dict[int, tuple[int, list[int]]] = {}
    for split in plan.splits:
        assert split.block_m in (16, 32, 64)
        for row, begin, end, first, num, masked in split.items.tolist():
            assert begin % LIMITS.cut == 0
            assert begin < end <= begin + LIMITS.cut
            assert 0 < num * 3 <= split.block_m
            for token, partial in plan.pairs[first : first + num].tolist():
                keys = [key for key in range(begin, end) if sees(plan, window, token, key)]
                assert masked or len(keys) == end - begin
                assert partial not in partials
                partials[partial] = (begin, [int(table[row, key]) for key in keys])
    assert sorted(partials) == list(range(len(plan.pairs)))
    read: dict[int, list[int]] = {}
    for token, first, after in zip(
        plan.merge_tokens.tolist(), plan.merge_firsts.tolist(), plan.merge_firsts[1:].tolist(), strict=False
    ):
        mine = [partials[partial] for partial in range(first, after)]
        assert [begin for begin, _ in mine] == sorted({begin for begin, _ in mine})
        read[token] = [slot for _, slots in mine for slot in slots]
    for extend in plan.extends:
        read |= read_tiles(plan, extend.tiles.tolist(), extend.gathered, window, table)
    assert [read[token] for token in range(len(wanted))] == wanted


def read_tiles(
    plan: PlanArrays, tiles: list[list[int]], gathered: Ints | None, window: int | None, table: Ints
) -> dict[int, list[int]]:
    scratch: dict[int, int] = {}
    for row, first, after, at in [] if gathered is None else gathered.tolist():
        assert not set(range(at, at + after - first)) & scratch.keys()
        scratch |= {at + key - first: int(table[row, key]) for key in range(first, after)}
    read: dict[int, list[int]] = {}
    for row, first_token, num, begin, free_begin, free_end, end, offset in tiles:
        assert begin % LIMITS.key_tile == 0
        for token in range(first_token, first_token + num):
            assert token not in read
            keys = [key for key in range(begin, end) if sees(plan, window, token, key)]
            assert set(range(free_begin, free_end)) <= set(keys)
            read[token] = [scratch[offset + key] if gathered is not None else int(table[row, key]) for key in keys]
    return read


def test_siblings_read_their_prefix_once() -> None:
    table = np.zeros((8, 64), np.int32)
    table[:, :32] = np.arange(32)
    table[:, 32:40] = 100 + np.arange(64).reshape(8, 8)
    rows = [PagedRow(row, row, 39, np.array([39])) for row in range(8)]
    plan = plan_attention(rows, table, num_heads=8, num_kv_heads=2, limits=LIMITS)
    items = [item for split in plan.splits for item in split.items.tolist()]
    assert sorted((begin, num) for _, begin, _, _, num, _ in items) == [(0, 8), (16, 8), *[(32, 1)] * 8]


def test_members_of_a_group_stay_alone_where_a_shared_item_costs_more() -> None:
    table = np.zeros((3, 32), np.int32)
    table[:, :16] = np.arange(16)
    table[:, 16] = 50, 51, 52
    rows = [PagedRow(row, row, 16, np.array([16])) for row in range(3)]
    dear = replace(LIMITS, wide_cost=3.5)
    shared = plan_attention(rows, table, num_heads=8, num_kv_heads=1, limits=LIMITS)
    alone = plan_attention(rows, table, num_heads=8, num_kv_heads=1, limits=dear)
    assert max(item[4] for split in shared.splits for item in split.items.tolist()) == 3
    assert max(item[4] for split in alone.splits for item in split.items.tolist()) == 1


def test_a_token_merges_the_same_cuts_however_its_row_is_grouped() -> None:
    rows, table = random_step(3)
    whole = plan_attention(paged_rows(rows), table, num_heads=4, num_kv_heads=2, limits=LIMITS)
    for index, row in enumerate(rows):
        alone = plan_attention(paged_rows([row]), table, num_heads=4, num_kv_heads=2, limits=LIMITS)
        offset = sum(len(other.token_ids) for other in rows[:index])
        assert cuts_by_token(alone, 0, len(row.token_ids)) == cuts_by_token(whole, offset, len(row.token_ids))


def cuts_by_token(plan: PlanArrays, first: int, count: int) -> list[list[tuple[int, int]]]:
    where = {
        partial: (token, (begin, end))
        for split in plan.splits
        for _, begin, end, pair, num, _ in split.items.tolist()
        for token, partial in plan.pairs[pair : pair + num].tolist()
    }
    return [[cut for _, (mine, cut) in sorted(where.items()) if mine == first + token] for token in range(count)]


def test_partials_are_bounded_and_whoever_does_not_fit_is_extended() -> None:
    table = np.arange(6 * 200, dtype=np.int32).reshape(6, 200)
    rows = [PagedRow(row, 2 * row, 150, np.array([150, 151])) for row in range(6)]
    bounded = plan_attention(rows, table, num_heads=4, num_kv_heads=2, limits=replace(LIMITS, max_partials=50))
    assert len(bounded.pairs) == 2 * 2 * 10  # two rows of two tokens over ten cuts
    assert sorted(bounded.merge_tokens.tolist()) == [0, 1, 2, 3]
    [extend] = bounded.extends
    assert sorted(extend.tiles[:, 1].tolist()) == [4, 6, 8, 10]


def test_what_is_gathered_is_bounded_and_the_rest_is_read_through_the_page_table() -> None:
    table = np.arange(3 * 200, dtype=np.int32).reshape(3, 200)
    rows = [PagedRow(row, 50 * row, 100, np.arange(100, 150)) for row in range(3)]
    gathered, paged = plan_attention(
        rows, table, num_heads=4, num_kv_heads=2, limits=replace(LIMITS, max_gathered=310)
    ).extends
    assert gathered.scratch_len == 300
    assert paged.gathered is None
    assert set(paged.tiles[:, 0].tolist()) == {2}


def test_a_step_of_decodes_is_planned_by_numpy_alone() -> None:
    """No Python loop over cuts: the number of numpy calls does not depend on the length of the contexts."""
    table = np.arange(4 * 100_000, dtype=np.int32).reshape(4, 100_000)
    rows = [PagedRow(row, row, 99_999, np.array([99_999])) for row in range(4)]
    plan = plan_attention(rows, table, num_heads=4, num_kv_heads=1)
    assert len(plan.pairs) == 4 * -(-100_000 // 256)
    assert torch.from_numpy(plan.merge_firsts).diff().tolist() == [391] * 4
