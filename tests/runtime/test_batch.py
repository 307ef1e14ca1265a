"""Packing: from scheduled ints to tensors."""

from __future__ import annotations

import torch

from palmette.runtime.batch import AttentionShape, ForwardBatch, pack
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow, TreeRow

SHAPE = AttentionShape(num_heads=2, num_kv_heads=1, windows=frozenset({None}), pad_slot=99)


def packed(*rows: ScheduledRow, table: torch.Tensor | None = None) -> ForwardBatch:
    return pack(ScheduledBatch(rows), torch.zeros((4, 64), dtype=torch.int32) if table is None else table, SHAPE)


def test_tokens_of_mixed_rows_lie_in_row_order() -> None:
    batch = packed(
        ScheduledRow(2, (10, 11, 12), 5, (7, 8, 9), prefix=(0, (1, 2, 3, 4, 6)), logits_from=2),
        ScheduledRow(0, (20,), 0, (30,), logits_from=0),
        ScheduledRow(1, (40, 41), 0, (50, 51)),
    )
    assert batch.input_ids.tolist() == [10, 11, 12, 20, 40, 41]
    assert batch.positions.tolist() == [5, 6, 7, 0, 0, 1]
    assert batch.slots.tolist() == [7, 8, 9, 30, 50, 51]
    assert batch.logit_tokens.tolist() == [2, 3]


def test_slots_and_prefix_are_written_into_the_page_table() -> None:
    table = torch.zeros((4, 64), dtype=torch.int32)
    packed(ScheduledRow(3, (1, 2), 4, (60, 61), prefix=(1, (11, 12, 13))), table=table)
    assert table[3, :7].tolist() == [0, 11, 12, 13, 60, 61, 0]
    assert not table[:3].any()


def test_a_row_may_read_slots_that_another_row_of_the_step_computes() -> None:
    table = torch.zeros((4, 64), dtype=torch.int32)
    batch = packed(
        ScheduledRow(0, (1, 2, 3), 3, (3, 4, 5), prefix=(0, (6, 7, 8))),  # computes what row 1 begins with
        ScheduledRow(1, (4,), 6, (9,), prefix=(0, (6, 7, 8, 3, 4, 5))),
        table=table,
    )
    assert table[1, :7].tolist() == [6, 7, 8, 3, 4, 5, 9]
    assert batch.num_tokens == 4


def test_nodes_of_a_trie_stand_at_the_position_of_their_depth() -> None:
    tree = TreeRow(prefix_len=10, parents=(-1, 0, 1, 0, -1), first=0)
    batch = packed(ScheduledRow(0, (1, 2, 3, 4, 5), 10, (1, 2, 3, 4, 5), prefix=(0, tuple(range(10, 20))), tree=tree))
    assert batch.positions.tolist() == [10, 11, 12, 11, 10]


def test_a_piece_of_a_trie_continues_where_the_piece_before_ended() -> None:
    tree = TreeRow(prefix_len=10, parents=(-1, 0, 1, 0, -1), first=3)
    batch = packed(ScheduledRow(0, (4, 5), 13, (4, 5), prefix=(0, tuple(range(10, 23))), tree=tree))
    assert batch.positions.tolist() == [11, 10]


def test_there_is_one_plan_for_each_window() -> None:
    shape = AttentionShape(num_heads=2, num_kv_heads=1, windows=frozenset({None, 8}), pad_slot=99)
    row = ScheduledRow(0, (1,), 0, (1,))
    batch = pack(ScheduledBatch((row,)), torch.zeros((1, 8), dtype=torch.int32), shape)
    assert set(batch.plans) == {None, 8}
