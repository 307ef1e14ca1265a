"""The plainest attention and the plainest page table: oracles for the fast paths. float64, one token at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from palmette.runtime.scheduled import ScheduledRow


def naive_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Sequence[Sequence[int]],
    *,
    scale: float,
    soft_cap: float | None = None,
) -> Tensor:
    """(num_tokens, num_heads * head_dim): token t attends to the slots visible[t]."""
    num_tokens, num_heads, _ = q.shape
    keys, values = (t.double().repeat_interleave(num_heads // keys.shape[1], dim=1) for t in (keys, values))
    rows: list[Tensor] = []
    for t in range(num_tokens):
        slots = torch.tensor(visible[t])
        scores = torch.einsum("shd,hd->sh", keys[slots], q[t].double()) * scale
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        rows.append(torch.einsum("sh,shd->hd", scores.softmax(0), values[slots]).reshape(-1))
    return torch.stack(rows)


def visible_slots(row: ScheduledRow, table: Sequence[int], window: int | None) -> list[list[int]]:
    """The slots each token of a row may see, by the definitions in runtime.scheduled."""
    found: list[list[int]] = []
    for i in range(len(row.token_ids)):
        places: list[tuple[int, int]] = []  # page-table index, position
        if row.tree is None:
            mine = row.start + i
            places = [(index, index) for index in range(mine + 1)]
        else:
            node = row.tree.first + i
            path = tree_path(row.tree.parents, node)
            mine = row.tree.prefix_len + len(path) - 1
            places = [(index, index) for index in range(row.tree.prefix_len)]
            places += [(row.tree.prefix_len + n, row.tree.prefix_len + depth) for depth, n in enumerate(path)]
        found.append([table[index] for index, at in places if window is None or at > mine - window])
    return found


def tree_path(parents: Sequence[int], node: int) -> list[int]:
    """Nodes from the root down to `node`."""
    path = [node]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path[::-1]
