"""From ints to an attention plan: which keys are gathered once for whom, and where the partial results merge.

Keys are cut at absolute multiples of `PlanLimits.chunk` page-table indices. A slot holds one token behind one unique
prefix, so two rows whose chunks end in the same slot have the same chunk, and share it without anybody having declared
it:

    row 0   [ chunk 0 | chunk 1 | chunk 2a ]          segments:  chunks 0-1  seen by the queries of rows 0, 1, 2
    row 1   [ chunk 0 | chunk 1 | chunk 2b | 3b ]                chunk 2a    row 0
    row 2   [ chunk 0 | chunk 1 | chunk 2c ]                     chunks 2b-3b  row 1 ...

Neighbouring chunks with the same readers are one segment, cut again at multiples of `block`. Segments with alike
numbers of queries and keys are padded to one batched product. Grouping decides who shares a load; it moves a result by
float32 rounding only (the cuts of a segment follow its readers, and matrix products round by their shapes anyway).

Knows page-table slots and positions. Does not know the model, beyond its numbers of heads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palmette.kernels.attention import AttentionPlan, MergeGroup, SegmentGroup

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """Where keys are cut, and what bounds a product's memory."""

    chunk: int = 64  # sharing is found at this grain: what siblings read twice is less than a chunk each
    block: int = 512  # keys of one segment at most; a multiple of chunk
    max_scores: int = 1 << 20  # scores of one product at most: 4 MB stay in the cache from one pass to the next
    max_gathered: int = 1 << 16  # keys gathered by one product at most, over all its segments


DEFAULT_LIMITS = PlanLimits()


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One row of the step, as attention sees it."""

    first_token: int  # index of its first query among the step's tokens
    start: int  # page-table index of its first query
    slots: NDArray[np.int32]  # (start + number of queries,): its page table up to its last query
    positions: Ints  # (number of queries,)
    tree: TreeView | None = None


@dataclass(frozen=True, slots=True)
class TreeView:
    """Keys at page-table index prefix_len + i belong to node i, which only its descendants and itself see."""

    prefix_len: int
    positions: Ints  # (nodes up to the last query,)
    visible: Bools  # (number of queries, nodes up to the last query)


@dataclass(frozen=True, slots=True)
class _Segment:
    begin: int  # keys begin .. end of the page tables of `rows`
    end: int
    rows: tuple[int, ...]  # who reads it; any of them tells the slots
    queries: tuple[tuple[int, int, int], ...]  # (row, from, to): to-from queries of that row, counted within it
    masked: bool  # some query may not see some key

    @property
    def num_queries(self) -> int:
        return sum(to - begin for _, begin, to in self.queries)


def make_attention_plan(
    rows: Sequence[PlanRow],
    *,
    num_heads: int,
    num_kv_heads: int,
    pad_slot: int,
    window: int | None = None,
    device: torch.device | str = "cpu",
    limits: PlanLimits = DEFAULT_LIMITS,
) -> AttentionPlan:
    """Plan one step.

    Args:
        rows: at least one, each with at least one query; together they cover tokens 0 .. num_tokens in order.
        pad_slot: a slot whose keys and values are finite and which no row uses.
        window: a query at position p sees keys at positions > p - window; None = all.
    """
    groups: dict[tuple[int, int, bool], list[_Segment]] = defaultdict(list)
    for segment in _segments(rows, window, limits):
        for part in _split_queries(segment, num_heads, limits):
            keys = -(-(part.end - part.begin) // limits.chunk)
            groups[(_bucket(part.num_queries), keys, part.masked)].append(part)

    segment_groups: list[SegmentGroup] = []
    places: list[tuple[Ints, Ints, Ints, int]] = []  # token, first key, partial row of head 0, rows between heads
    num_partials = 0
    for segments in groups.values():
        num_queries = max(s.num_queries for s in segments)
        num_keys = max(s.end - s.begin for s in segments)
        most = limits.max_scores // (num_heads * num_queries * num_keys)
        size = max(1, min(most, limits.max_gathered // num_keys))
        for i in range(0, len(segments), size):
            some = segments[i : i + size]
            shape = (len(some), max(s.num_queries for s in some), max(s.end - s.begin for s in some))
            group, place = _build_group(some, rows, shape, num_kv_heads, pad_slot, window, num_partials, device)
            segment_groups.append(group)
            places.append(place)
            num_partials += group.query_rows.shape[0]
    num_tokens = rows[-1].first_token + len(rows[-1].positions)
    merges = _build_merges(places, num_tokens, num_kv_heads, num_partials, device)
    return AttentionPlan(tuple(segment_groups), merges, num_partials, num_kv_heads)


# -- who reads what ------------------------------------------------------------------------------------------------


def _segments(rows: Sequence[PlanRow], window: int | None, limits: PlanLimits) -> Iterator[_Segment]:
    """Each distinct segment once, a row's segments in position order."""
    size = limits.chunk
    readers: dict[int, list[int]] = defaultdict(list)  # last slot of a chunk -> rows
    chunk_ends: list[list[int]] = []
    first_chunks: list[int] = []
    for i, row in enumerate(rows):
        ends: list[int] = row.slots[size - 1 :: size].tolist()
        if len(row.slots) % size:
            ends.append(int(row.slots[-1]))
        oldest = 0 if window is None else max(0, int(row.positions.min()) - window + 1)
        if row.tree is not None:
            oldest = min(oldest, row.tree.prefix_len)  # behind it, indices are no positions
        first = oldest // size
        for end in ends[first:]:
            readers[end].append(i)
        chunk_ends.append(ends)
        first_chunks.append(first)

    for i, (row, ends, chunk) in enumerate(zip(rows, chunk_ends, first_chunks, strict=True)):
        while chunk < len(ends):
            who = readers[ends[chunk]]
            after = chunk + 1
            if who[0] == i:  # the first reader tells of the segment
                while after < len(ends) and after % (limits.block // size) and readers[ends[after]] == who:
                    after += 1
                yield _segment(rows, who, chunk * size, min(after * size, len(row.slots)), window)
            chunk = after


def _segment(rows: Sequence[PlanRow], who: list[int], begin: int, end: int, window: int | None) -> _Segment:
    queries: list[tuple[int, int, int]] = []
    masked = False
    for i in who:
        row = rows[i]
        first, last = max(0, begin - row.start), len(row.positions)
        if window is not None and row.tree is None:
            last = min(last, end - 1 + window - row.start)  # later ones have left it behind
        queries.append((i, first, last))
        masked |= end - 1 > row.start + first
        masked |= row.tree is not None and end > row.tree.prefix_len
        masked |= window is not None and int(row.positions[first:last].max()) - window >= begin
    return _Segment(begin, end, tuple(who), tuple(queries), masked)


def _split_queries(segment: _Segment, num_heads: int, limits: PlanLimits) -> Iterator[_Segment]:
    """Parts whose scores stay within the limit."""
    limit = max(1, limits.max_scores // (num_heads * (segment.end - segment.begin)))
    if segment.num_queries <= limit:
        yield segment
        return
    part: list[tuple[int, int, int]] = []
    room = limit
    for row, first, last in segment.queries:
        while first < last:
            take = min(room, last - first)
            part.append((row, first, first + take))
            first, room = first + take, room - take
            if room == 0:
                yield _Segment(segment.begin, segment.end, segment.rows, tuple(part), segment.masked)
                part, room = [], limit
    if part:
        yield _Segment(segment.begin, segment.end, segment.rows, tuple(part), segment.masked)


def _bucket(n: int) -> int:
    """n rounded up to one of four steps per power of two: few groups, at most a quarter of padding."""
    step = 1 << max(0, n.bit_length() - 3)
    return -(-n // step) * step


# -- tensors -------------------------------------------------------------------------------------------------------


def _build_group(
    segments: list[_Segment],
    rows: Sequence[PlanRow],
    shape: tuple[int, int, int],
    num_kv_heads: int,
    pad_slot: int,
    window: int | None,
    first_partial: int,
    device: torch.device | str,
) -> tuple[SegmentGroup, tuple[Ints, Ints, Ints, int]]:
    g, q, k = shape
    tokens = np.zeros((g, q), np.int64)  # padding repeats token 0; nobody merges what it yields
    slots = np.full((g, k), pad_slot, np.int64)
    real = np.zeros((g, q), np.bool_)
    for s, segment in enumerate(segments):
        ids = [t for row, a, b in segment.queries for t in range(rows[row].first_token + a, rows[row].first_token + b)]
        tokens[s, : len(ids)] = ids
        real[s, : len(ids)] = True
        slots[s, : segment.end - segment.begin] = rows[segment.rows[0]].slots[segment.begin : segment.end]

    masked = segments[0].masked or any(s.end - s.begin < k for s in segments)
    hidden = _hidden(segments, rows, shape, window) if masked else None
    heads = np.arange(num_kv_heads)[None, :, None]
    group = SegmentGroup(
        num_queries=q,
        num_keys=k,
        query_rows=_to_device(tokens[:, None, :] * num_kv_heads + heads, device).view(-1),
        key_rows=_to_device(slots[:, None, :] * num_kv_heads + heads, device).view(-1),
        hidden=None if hidden is None or not hidden.any() else _to_device(hidden, device).view(g, 1, q, 1, k),
        first_partial=first_partial,
    )
    partials = first_partial + np.arange(g)[:, None] * (num_kv_heads * q) + np.arange(q)[None, :]
    begins = np.repeat(np.array([s.begin for s in segments], np.int64), q).reshape(g, q)
    return group, (tokens[real], begins[real], partials[real], q)


def _hidden(
    segments: list[_Segment], rows: Sequence[PlanRow], shape: tuple[int, int, int], window: int | None
) -> Bools:
    """(segments, queries, keys): what each query may not see."""
    g, q, k = shape
    indices = np.zeros((g, q), np.int64)  # page-table index of each query
    for s, segment in enumerate(segments):
        places = [i for row, a, b in segment.queries for i in range(rows[row].start + a, rows[row].start + b)]
        indices[s, : len(places)] = places
    begins = np.array([s.begin for s in segments], np.int64)
    ends = np.array([s.end for s in segments], np.int64)
    keys = begins[:, None] + np.arange(k)[None, :]
    seen = keys[:, None, :] <= indices[:, :, None]
    if window is not None:
        seen &= keys[:, None, :] > indices[:, :, None] - window
    for s, segment in enumerate(segments):
        at = 0
        for row, a, b in segment.queries:
            tree = rows[row].tree
            if tree is not None:
                columns = seen[s, at : at + b - a, : segment.end - segment.begin]
                _mask_tree(columns, tree, rows[row].positions[a:b], tree.visible[a:b], segment, window)
            at += b - a
    hidden: Bools = ~(seen & (keys < ends[:, None])[:, None, :])
    return hidden


def _mask_tree(
    seen: Bools, tree: TreeView, positions: Ints, visible: Bools, segment: _Segment, window: int | None
) -> None:
    """Rewrite the block of a tree row's queries: (queries, keys of the segment)."""
    split = min(max(tree.prefix_len, segment.begin), segment.end)
    nodes = slice(max(0, split - tree.prefix_len), max(0, segment.end - tree.prefix_len))
    seen[:, : split - segment.begin] = True
    seen[:, split - segment.begin :] = visible[:, nodes]
    if window is not None:
        key_positions = np.concatenate([np.arange(segment.begin, split), tree.positions[nodes]])
        seen &= key_positions[None, :] > positions[:, None] - window


def _build_merges(
    places: list[tuple[Ints, Ints, Ints, int]],
    num_tokens: int,
    num_kv_heads: int,
    num_partials: int,
    device: torch.device | str,
) -> tuple[MergeGroup, ...]:
    tokens = np.concatenate([p[0] for p in places])
    begins = np.concatenate([p[1] for p in places])
    firsts = np.concatenate([p[2] for p in places])
    strides = np.concatenate([np.full(len(p[0]), p[3], np.int64) for p in places])
    order = np.lexsort((begins, tokens))  # by token, then by position
    firsts, strides = firsts[order], strides[order]
    counts = np.bincount(tokens, minlength=num_tokens)
    offsets = np.cumsum(counts) - counts

    buckets = 1 << np.ceil(np.log2(np.maximum(counts, 1))).astype(np.int64)
    merges: list[MergeGroup] = []
    distinct = np.unique(buckets)
    for bucket in distinct.tolist():
        members = np.flatnonzero(buckets == bucket)
        width = int(counts[members].max())
        which = np.arange(width)[None, :]
        real = which < counts[members][:, None]  # (tokens here, width)
        at = np.where(real, offsets[members][:, None] + which, 0)
        per_head = firsts[at][:, None, :] + strides[at][:, None, :] * np.arange(num_kv_heads)[None, :, None]
        table = np.where(real[:, None, :], per_head, num_partials)
        whole = len(distinct) == 1
        merges.append(
            MergeGroup(
                num_partials=width,
                partial_rows=_to_device(table, device).view(-1),
                tokens=None if whole else _to_device(members, device),
            )
        )
    return tuple(merges)


def _to_device(array: Ints | Bools, device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
