"""From a ScheduledBatch of ints to a ForwardBatch of tensors: the only packing code.

Knows the page table's layout. Does not know the model, beyond what its layers need planned (`LayerNeeds`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palmette.kernels.attention import AttentionPlan
from palmette.runtime.attention_plan import DEFAULT_LIMITS, PlanLimits, PlanRow, TreeView, make_attention_plan
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow, TreeRow


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What packing must know of a model: its heads, and the windows its layers use."""

    num_heads: int
    num_kv_heads: int
    windows: frozenset[int | None]  # one plan is made for each; None = full attention
    pad_slot: int  # a slot of zeros that no request owns
    limits: PlanLimits = DEFAULT_LIMITS


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One forward pass. All tensors on the model's device; tokens of a row are adjacent, rows in scheduled order."""

    input_ids: Tensor  # (num_tokens,) int64
    positions: Tensor  # (num_tokens,) int64, of the rotary embedding
    slots: Tensor  # (num_tokens,) int64: where each token's keys and values go
    logit_tokens: Tensor  # (num_logits,) int64: the tokens whose logits are wanted
    plans: Mapping[int | None, AttentionPlan]  # by window

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[0]


def pack(
    batch: ScheduledBatch, page_table: Tensor, shape: AttentionShape, device: torch.device | str = "cpu"
) -> ForwardBatch:
    """Write the batch's slots into the page table, then build its tensors.

    Args:
        batch: at least one row, each with at least one token.
        page_table: (max_running_rows, context_len) int32 on the CPU; mutated.
    """
    table: NDArray[np.int32] = page_table.numpy()
    write_page_table(batch, table)
    ids: list[int] = []
    logit_tokens: list[int] = []
    plan_rows: list[PlanRow] = []
    for row in batch.rows:
        end = row.start + len(row.token_ids)
        positions, tree = place(row)
        plan_rows.append(PlanRow(len(ids), row.start, table[row.row, :end], positions, tree))
        if row.logits_from is not None:
            logit_tokens.extend(range(len(ids) + row.logits_from, len(ids) + len(row.token_ids)))
        ids.extend(row.token_ids)

    plans = {
        window: make_attention_plan(
            plan_rows,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            pad_slot=shape.pad_slot,
            window=window,
            device=device,
            limits=shape.limits,
        )
        for window in shape.windows
    }
    return ForwardBatch(
        input_ids=torch.tensor(ids, dtype=torch.int64, device=device),
        positions=torch.from_numpy(np.concatenate([r.positions for r in plan_rows])).to(device),
        slots=torch.tensor([slot for row in batch.rows for slot in row.slots], dtype=torch.int64, device=device),
        logit_tokens=torch.tensor(logit_tokens, dtype=torch.int64, device=device),
        plans=plans,
    )


def write_page_table(batch: ScheduledBatch, table: NDArray[np.int32]) -> None:
    """Each row's slots; before any row is looked at, for a row's slots may be read by another's prefix."""
    for row in batch.rows:
        if row.prefix is not None:
            index, slots = row.prefix
            table[row.row, index : index + len(slots)] = slots
        table[row.row, row.start : row.start + len(row.slots)] = row.slots


def place(row: ScheduledRow) -> tuple[NDArray[np.int64], TreeView | None]:
    """The positions of a row's tokens, and for a tree row what its nodes see."""
    if row.tree is None:
        return np.arange(row.start, row.start + len(row.token_ids), dtype=np.int64), None
    tree, last = row.tree, row.tree.first + len(row.token_ids)
    depths = _depths(tree, last)
    positions = tree.prefix_len + np.array(depths, dtype=np.int64)
    return positions[tree.first :], TreeView(tree.prefix_len, positions, _visible(tree, last))


def _depths(tree: TreeRow, last: int) -> list[int]:
    depths: list[int] = []
    for parent in tree.parents[:last]:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return depths


def _visible(tree: TreeRow, last: int) -> NDArray[np.bool_]:
    """(computed nodes, nodes before `last`): ancestor or self."""
    visible = np.zeros((last - tree.first, last), np.bool_)
    for node in range(tree.first, last):
        parent = tree.parents[node]
        mine = visible[node - tree.first]
        if parent >= tree.first:
            mine |= visible[parent - tree.first]
        else:
            while parent >= 0:
                mine[parent] = True
                parent = tree.parents[parent]
        mine[node] = True
    return visible
