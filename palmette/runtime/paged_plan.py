"""From ints to a plan that kernels walk (`kernels.paged_plan`): who reads which cut of keys, and what merges where.

    row 0   [ cut 0 | cut 1 | cut 2a ]        items:  cut 0   queries of rows 0, 1, 2      read once
    row 1   [ cut 0 | cut 1 | cut 2b ]                cut 1   queries of rows 0, 1, 2
    row 2   [ cut 0 | cut 1 | cut 2c ]                cut 2a, 2b, 2c   one row each

A slot holds one token behind one unique prefix, so two rows whose cuts end in the same slot have the same cut, and
share it without anybody having declared it: siblings of a fork, a trie behind its prompt, strangers with one system
prompt. Grouping decides who shares a load; cuts and the order of merging are the same for every grouping.

Rows with many new tokens are extended in tiles of their own, and from `gather_from` tokens on their keys are copied to
contiguous memory first.

Everything is vectorised over rows and cuts: a decode step of 64 rows costs some tens of microseconds of numpy. Knows
page-table slots and positions. Does not know the model, beyond its heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from palmette.runtime.attention_plan import TreeView

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PagedLimits:
    """Where keys are cut, and which way a row takes. Changes speed; `cut` also the rounding of results."""

    cut: int = 256  # keys of one item at most; a multiple of every kernel's key tile
    short: int = 16  # new tokens of a row that is split; longer ones are extended
    wide: int = 64  # query rows (tokens x grouped heads) of a tile that siblings share, below `widest`
    widest: int = 128  # the same where some cut has more of them
    wide_cost: float = 1.3  # time of a wide item over that of a narrow one; see benchmarks/gpu
    extend: int = 128  # query rows of an extend tile
    key_tile: int = 128  # extend tiles begin at its multiples
    gather_from: int = 512  # new tokens of a row whose keys are gathered first
    max_partials: int = 1 << 16  # of a step: 1 GB at 32 heads of 128; rows beyond are extended, though they are short
    max_gathered: int = 1 << 17  # keys gathered in a step, rows beyond are read through the page table


DEFAULT_PAGED_LIMITS = PagedLimits()


@dataclass(frozen=True, slots=True)
class PagedRow:
    """One row of the step, as attention sees it."""

    row: int  # of the page table
    first_token: int  # index of its first query among the step's tokens
    start: int  # page-table index of its first query
    positions: Longs  # (number of queries,)
    tree: TreeView | None = None

    @property
    def count(self) -> int:
        return len(self.positions)

    @property
    def end(self) -> int:
        """Page-table index behind its last query."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class SplitArrays:
    """Host's side of SplitWork."""

    items: Ints  # (n, 6)
    block_m: int


@dataclass(frozen=True, slots=True)
class ExtendArrays:
    """Host's side of ExtendWork."""

    tiles: Ints  # (n, 8)
    tile_tokens: int
    gathered: Ints | None  # (n, 4)
    scratch_len: int


@dataclass(frozen=True, slots=True)
class PlanArrays:
    """Host's side of PagedPlan, but for the page table."""

    rows: Ints  # (num_tokens,), as the next two
    last_keys: Ints
    positions: Ints
    trees: Ints | None  # (num_tokens, 2)
    tree_words: Ints | None
    splits: tuple[SplitArrays, ...]
    pairs: Ints  # (n, 2), of all splits
    merge_tokens: Ints  # tokens of short rows
    merge_firsts: Ints
    extends: tuple[ExtendArrays, ...]


def plan_attention(
    rows: Sequence[PagedRow],
    table: Ints,
    *,
    num_heads: int,
    num_kv_heads: int,
    window: int | None = None,
    limits: PagedLimits = DEFAULT_PAGED_LIMITS,
) -> PlanArrays:
    """Plan one step.

    Args:
        rows: at least one, each with at least one query; together they cover tokens 0 .. num_tokens in order.
        table: (max_rows, context_len), the page table as this step sees it.
        window: a query at position p sees keys at positions > p - window; None = all.
    """
    r = num_heads // num_kv_heads
    counts = np.array([row.count for row in rows], np.int64)
    positions = np.concatenate([row.positions for row in rows])
    last_keys = positions.copy()
    for row in rows:
        if row.tree is not None:
            last_keys[row.first_token : row.first_token + row.count] = row.tree.prefix_len - 1
    trees, words = _tree_words(rows, len(positions), window)
    short, long = _by_length(rows, limits)
    gathered, paged = _by_gathering(long, limits)
    splits, pairs, merge_tokens, merge_firsts = _plan_splits(short, table, r, window, limits)
    return PlanArrays(
        rows=np.repeat(np.array([row.row for row in rows], np.int32), counts),
        last_keys=last_keys.astype(np.int32),
        positions=positions.astype(np.int32),
        trees=trees,
        tree_words=words,
        splits=splits,
        pairs=pairs,
        merge_tokens=merge_tokens,
        merge_firsts=merge_firsts,
        extends=tuple(
            _plan_extend(some, r, window, limits, gathers=gathers)
            for some, gathers in ((gathered, True), (paged, False))
            if some
        ),
    )


def _by_length(rows: Sequence[PagedRow], limits: PagedLimits) -> tuple[list[PagedRow], list[PagedRow]]:
    """Rows that are split, and rows that are extended."""
    short: list[PagedRow] = []
    long: list[PagedRow] = []
    left = limits.max_partials
    for row in rows:
        partials = row.count * -(-row.end // limits.cut)
        if row.count > limits.short or partials > left:
            long.append(row)
        else:
            short.append(row)
            left -= partials
    return short, long


def _by_gathering(rows: Sequence[PagedRow], limits: PagedLimits) -> tuple[list[PagedRow], list[PagedRow]]:
    """Of rows that are extended, those whose keys are gathered first, and the others."""
    gathered: list[PagedRow] = []
    paged: list[PagedRow] = []
    left = limits.max_gathered
    for row in rows:
        if row.count < limits.gather_from or row.end > left:
            paged.append(row)
        else:
            gathered.append(row)
            left -= row.end
    return gathered, paged


# -- tries ---------------------------------------------------------------------------------------------------------


def _tree_words(rows: Sequence[PagedRow], num_tokens: int, window: int | None) -> tuple[Ints | None, Ints | None]:
    if all(row.tree is None for row in rows):
        return None, None
    trees = np.zeros((num_tokens, 2), np.int32)
    words: list[Ints] = []
    used = 0
    for row in rows:
        tree = row.tree
        if tree is None:
            continue
        seen = tree.visible
        if window is not None:
            seen = seen & (tree.positions[None, :] > row.positions[:, None] - window)
        num_bits = seen.shape[1]
        padded = np.zeros((row.count, -(-num_bits // 32) * 32), np.bool_)
        padded[:, :num_bits] = seen
        packed = np.packbits(padded, axis=1, bitorder="little").view(np.int32)
        mine = slice(row.first_token, row.first_token + row.count)
        trees[mine, 0] = used + np.arange(row.count) * packed.shape[1]
        trees[mine, 1] = num_bits
        words.append(packed.reshape(-1))
        used += packed.size
    return trees, np.concatenate(words)


# -- rows with few new tokens --------------------------------------------------------------------------------------


def _plan_splits(
    rows: Sequence[PagedRow], table: Ints, r: int, window: int | None, limits: PagedLimits
) -> tuple[tuple[SplitArrays, ...], Ints, Ints, Ints]:
    """Items, their pairs, and the tokens and bounds of what merges."""
    nothing = np.zeros((0, 2), np.int32), np.zeros(0, np.int32), np.zeros(1, np.int32)
    if not rows:
        return (), *nothing
    row, begin, end, low, high = _cuts(rows, window, limits.cut)
    ids = np.array([x.row for x in rows], np.int64)
    # Cuts that end in the same slot are one; a stable sort keeps their rows in order.
    last_slots = table[ids[row], end - 1].astype(np.int64)
    order = np.argsort(last_slots, kind="stable")
    row, begin, end, low, high, last_slots = (a[order] for a in (row, begin, end, low, high, last_slots))
    is_first = np.ones(len(row), np.bool_)
    is_first[1:] = last_slots[1:] != last_slots[:-1]
    group = np.cumsum(is_first) - 1

    narrow, wide = _tile_pairs(r, np.bincount(group, weights=high - low).max(initial=0), limits)
    group = _apart(group, high - low, narrow, wide, limits.wide_cost)
    first_of = np.flatnonzero(np.diff(group, prepend=-1))  # a group's first (row, cut)

    # Pairs: every query of every (row, cut), in that order.
    num = high - low
    at = np.repeat(np.arange(len(row)), num)
    inside = np.arange(len(at)) - np.repeat(np.cumsum(num) - num, num)
    tokens = np.array([x.first_token for x in rows], np.int64)[row[at]] + low[at] + inside
    partial = np.empty(len(at), np.int64)
    by_token = np.lexsort((begin[at], tokens))
    partial[by_token] = np.arange(len(at))
    pairs = np.stack((tokens, partial), axis=1).astype(np.int32)
    merge_tokens = np.concatenate([np.arange(x.first_token, x.first_token + x.count) for x in rows])
    counts = np.bincount(tokens, minlength=int(merge_tokens[-1]) + 1)[merge_tokens]
    merge_firsts = np.concatenate(([0], np.cumsum(counts)))

    pairs_of = np.add.reduceat(num, first_of)
    pairs_begin = np.cumsum(pairs_of) - pairs_of
    # A query misses keys behind its own place; a node of a trie may miss any other node.
    own = np.array([x.start if x.tree is None else x.tree.prefix_len - 1 for x in rows])[row]
    masked = end - 1 > own + low
    if window is not None:
        newest = np.array([int(x.positions.max()) for x in rows])
        masked |= newest[row] - window >= begin
    masked_of = np.logical_or.reduceat(masked, first_of)

    splits: list[SplitArrays] = []
    for per_tile, block_m, mine in (
        (narrow, _block(r, 16), pairs_of <= narrow),
        (wide, _block(r, wide * r), pairs_of > narrow),
    ):
        if not mine.any():
            continue
        which = np.flatnonzero(mine)
        tiles = -(-pairs_of[which] // per_tile)
        g = np.repeat(which, tiles)
        nth = np.arange(len(g)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
        of = first_of[g]
        first_pair = pairs_begin[g] + nth * per_tile
        items = np.stack(
            (
                ids[row[of]],
                begin[of],
                end[of],
                first_pair,
                np.minimum(per_tile, pairs_of[g] - nth * per_tile),
                masked_of[g],
            ),
            axis=1,
        )
        splits.append(SplitArrays(items.astype(np.int32), block_m))
    return tuple(splits), pairs, merge_tokens.astype(np.int32), merge_firsts.astype(np.int32)


def _cuts(rows: Sequence[PagedRow], window: int | None, cut: int) -> tuple[Longs, Longs, Longs, Longs, Longs]:
    """For every (row, cut) with a reader: the row, keys begin .. end, and queries low .. high that see some of them."""
    ends = np.array([x.end for x in rows], np.int64)
    starts = np.array([x.start for x in rows], np.int64)
    counts = ends - starts
    is_tree = np.array([x.tree is not None for x in rows])
    prefixes = np.array([x.start if x.tree is None else x.tree.prefix_len for x in rows], np.int64)
    first = np.zeros(len(rows), np.int64)
    if window is not None:
        oldest = np.array([int(x.positions.min()) for x in rows], np.int64) - window + 1
        first = np.minimum(np.maximum(oldest, 0), prefixes) // cut
    num = -(-ends // cut) - first
    row = np.repeat(np.arange(len(rows)), num)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(num) - num, num)
    begin = (first[row] + nth) * cut
    end = np.minimum(begin + cut, ends[row])
    low = np.where(is_tree[row], 0, np.maximum(begin - starts[row], 0))
    high = counts[row].copy()
    if window is not None:  # later queries have left it behind
        high = np.where(is_tree[row], high, np.minimum(high, end - 1 + window - starts[row]))
    return row, begin, end, low, high


def _tile_pairs(r: int, most: float, limits: PagedLimits) -> tuple[int, int]:
    """Queries of a narrow and of a wide tile, where the largest group has `most` of them."""
    wide = limits.wide if most * r <= limits.wide else limits.widest
    return _block(r, 16) // r, max(_block(r, 16), wide) // r


def _block(r: int, rows: int) -> int:
    """The power of two that holds `rows` rows and one query's heads; at least 16."""
    return 1 << max(4, (max(rows, r) - 1).bit_length())


def _apart(group: Longs, num: Longs, narrow: int, wide: int, wide_cost: float) -> Longs:
    """The groups, with those taken apart whose members cost less alone."""
    members = np.bincount(group)
    queries = np.bincount(group, weights=num)
    together = np.where(queries <= narrow, 1.0, -(-queries // wide) * wide_cost)
    alone = np.bincount(group, weights=np.where(num <= narrow, 1.0, -(-num // wide) * wide_cost))
    keep = (together <= alone) | (members == 1)
    starts_new = np.ones(len(group), np.bool_)
    starts_new[1:] = (group[1:] != group[:-1]) | ~keep[group[1:]]
    return np.cumsum(starts_new) - 1


# -- rows with many new tokens -------------------------------------------------------------------------------------


def _plan_extend(
    rows: Sequence[PagedRow], r: int, window: int | None, limits: PagedLimits, *, gathers: bool
) -> ExtendArrays:
    tile_tokens = max(1, limits.extend // r)
    tiles: list[Longs] = []
    spans: list[tuple[int, int, int, int]] = []
    scratch = 0
    for x in rows:
        low = np.arange(0, x.count, tile_tokens)
        high = np.minimum(low + tile_tokens, x.count)
        begin, free_begin = np.zeros_like(low), np.zeros_like(low)
        if x.tree is None:
            end, free_end = x.start + high, x.start + low + 1
            oldest, newest = x.positions[low], x.positions[high - 1]
        else:
            end, free_end = np.full_like(low, x.end), np.full_like(low, x.tree.prefix_len)
            oldest = np.minimum.reduceat(x.positions, low)
            newest = np.maximum.reduceat(x.positions, low)
        if window is not None:
            begin = np.minimum(np.maximum(oldest - window + 1, 0), free_end) // limits.key_tile * limits.key_tile
            free_begin = np.minimum(np.maximum(newest - window + 1, 0), free_end)
        first, last = int(begin.min()), int(end.max())
        offset = np.full_like(low, scratch - first if gathers else 0)
        tiles.append(
            np.stack(
                (
                    np.full_like(low, x.row),
                    x.first_token + low,
                    high - low,
                    begin,
                    np.maximum(free_begin, begin),
                    free_end,
                    end,
                    offset,
                ),
                axis=1,
            )
        )
        if gathers:
            spans.append((x.row, first, last, scratch))
            scratch += last - first
    whole = np.concatenate(tiles)
    whole = whole[np.argsort(whole[:, 3] - whole[:, 6], kind="stable")]  # the longest first
    return ExtendArrays(
        tiles=whole.astype(np.int32),
        tile_tokens=tile_tokens,
        gathered=np.array(spans, np.int32) if gathers else None,
        scratch_len=scratch,
    )
