"""One engine step as plain integers: what the scheduler decides and the batch packer turns into tensors.

No torch here. A row is one request's share of the step. Mixed batches are normal: decode rows have one token, extend
rows several, score rows a piece of a choice trie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TreeRow:
    """The tokens of this row are nodes of a choice trie instead of a sequence.

    Node i (index in the whole trie) is stored at page-table index `prefix_len + i`, stands at position
    `prefix_len + depth(i)`, and attends to the prefix, its ancestors and itself.
    """

    prefix_len: int
    parents: tuple[int, ...]  # of the whole trie; -1 = child of the prefix
    first: int  # the row computes nodes first .. first + len(token_ids)


@dataclass(frozen=True, slots=True)
class ScheduledRow:
    """`token_ids[i]` is computed, its KV written to `slots[i]`, which is also page_table[row, start + i]."""

    row: int  # the request's row of the page table, fixed while it runs
    token_ids: tuple[int, ...]
    start: int  # page-table index of token_ids[0]; its position too, unless `tree`
    slots: tuple[int, ...]
    prefix: tuple[int, Sequence[int]] | None = None  # (index, slots): page-table entries to write first of all
    logits_from: int | None = None  # logits wanted for token_ids[logits_from:]; None = for none
    tree: TreeRow | None = None


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """Rows of one forward pass. Logits come back for the wanted tokens in row order, then token order."""

    rows: tuple[ScheduledRow, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(r.token_ids) for r in self.rows)

    @property
    def num_logits(self) -> int:
        return sum(len(r.token_ids) - r.logits_from for r in self.rows if r.logits_from is not None)
