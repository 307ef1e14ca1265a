"""Who attends to what in one step, as kernels that walk a page table read it. Data only; `runtime` makes it.

A token t sees the key at page-table index k of its row if

    k <= last_key[t]  and  (window is None or k > position[t] - window)                          what came before it
    or  0 <= k - last_key[t] - 1 < num_bits[t], and that bit of its tree words is set           its ancestors and itself

A token of a sequence has last_key = position = its own index and no bits. A node of a choice trie has last_key = the
end of the prefix, and its bits say which nodes it sees; a window between nodes is in the bits already. A token that
pads a batch has last_key = -1 and sees nothing: its result is zero.

Keys are cut at absolute multiples of `cut` page-table indices. Rows with few new tokens are split: one item for each
cut (SplitWork), whose queries share its keys, be they one row's or those of siblings. Each query of an item yields a
partial result, and a token's partials merge in the order of their cuts. Rows with many new tokens are extended: tiles
of queries walk all their keys in order (ExtendWork).

All tensors are int32 on the model's device. What stands behind the counts is capacity: buffers are used again.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class SplitWork:
    """Items of one launch. A tile holds num_pairs * r rows of one KV head, r = num_heads // num_kv_heads."""

    # (capacity, 6): page-table row, first key, end key, first pair, number of pairs, 1 if some query misses some key.
    # Keys first .. end lie within one cut; every query of the item reads the same slots there.
    items: Tensor
    num_items: Tensor  # (1,)
    pairs: Tensor  # (capacity, 2): token, partial that it fills
    block_m: int  # rows of a tile: a power of two, >= 16; pairs * r fit


@dataclass(frozen=True, slots=True)
class MergeWork:
    """Tokens whose results are made of partials: tokens[i] of partials firsts[i] .. firsts[i + 1], position order."""

    tokens: Tensor  # (capacity,)
    firsts: Tensor  # (capacity + 1,); none for tokens behind the count: equal neighbours, which write zeros
    num_partials: int  # that buffers must hold


@dataclass(frozen=True, slots=True)
class ExtendWork:
    """Tiles of adjacent tokens of one row that walk their keys in order."""

    # (num_tiles, 8): page-table row, first token, number of tokens, begin, free_begin, free_end, end, offset.
    # Keys begin .. end are all that some query sees; every query sees free_begin .. free_end (maybe none). begin is a
    # multiple of the key tile. With `gathered`, key k lies in scratch at offset + k.
    tiles: Tensor
    tile_tokens: int  # tokens of a tile at most: tile_tokens * r rows of one KV head
    # (num_spans, 4): page-table row, first key, end key, scratch row of the first: copied before the tiles run; None:
    # keys are read through the page table.
    gathered: Tensor | None = None
    scratch_len: int = 0  # rows of scratch, with `gathered`


@dataclass(frozen=True, slots=True)
class PagedPlan:
    """One step's attention under one window."""

    page_table: Tensor  # (max_rows, context_len): slot of each row's token
    rows: Tensor  # (num_tokens,) page-table row of each token
    last_keys: Tensor  # (num_tokens,)
    positions: Tensor  # (num_tokens,)
    trees: Tensor | None  # (num_tokens, 2): first of its tree words, num_bits; None = no trie in this step
    tree_words: Tensor | None  # (num_words,): bit i % 32 of word i // 32
    window: int | None
    cut: int  # a multiple of every kernel's key tile
    splits: tuple[SplitWork, ...]
    merge: MergeWork | None  # of all splits
    extends: tuple[ExtendWork, ...]
