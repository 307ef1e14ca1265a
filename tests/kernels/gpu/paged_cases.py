"""Random steps over a page table, planned in the plainest way, for tests of whatever walks one.

A case has rows with prefixes and new tokens, page tables with holes (no two slots of a row are neighbours but by
chance), rows that share the beginning of another's keys, tries, windows, and padding behind the tokens. What nobody may
read is poisoned: slots of nobody are NaN, page-table entries behind a row's keys point to them, and what stands behind
the counts of a plan is garbage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palmette.kernels.kv_store import KVLayer, quantize_rows
from palmette.kernels.paged_attention import visible_keys
from palmette.kernels.paged_plan import MergeWork, PagedPlan, SplitWork
from tests.kernels.gpu.close import DEVICE

GARBAGE = 1 << 30  # an index that no tensor of a test has


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a step."""

    prefix: int  # keys before its new tokens
    new: int = 1  # tokens of this step
    like: int | None = None  # index of an earlier row, whose first `shared` keys are this row's
    shared: int = 0
    parents: tuple[int, ...] | None = None  # of a trie's nodes, -1 = the prefix; None = a sequence

    @property
    def num_keys(self) -> int:
        return self.prefix + self.new


@dataclass(frozen=True, slots=True)
class PagedCase:
    q: Tensor  # (num_tokens, num_heads, head_dim), padding included
    kv: KVLayer
    plan: PagedPlan
    tokens_of_row: tuple[range, ...]
    num_real: int  # tokens that are no padding


def make_case(
    rows: Sequence[Row],
    *,
    num_heads: int = 2,
    num_kv_heads: int = 1,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    pool_dtype: torch.dtype | None = None,
    window: int | None = None,
    cut: int = 16,
    block_ms: Sequence[int] = (16,),
    grouped: bool = True,
    padding: int = 0,
    spare: int = 3,
    seed: int = 0,
) -> PagedCase:
    """
    Args:
        block_ms: ascending; an item goes to the first that holds it, and is cut in pieces if none does.
        grouped: rows with the same slots in a cut share an item.
        padding: tokens behind the rows' own.
        spare: capacity of the plan's buffers behind their counts.
        seed: of values and slots. Values of a key depend on (row, index) and the seed alone, whatever the other rows.
    """
    table, slots = _page_table(rows, seed)
    kv = _pool(rows, table, slots, num_kv_heads, head_dim, pool_dtype or dtype, seed)
    first_tokens = np.cumsum([0, *(row.new for row in rows)]).tolist()
    tokens = tuple(range(first, first + row.new) for first, row in zip(first_tokens, rows, strict=False))
    q = [_normal((seed, 1, i), (row.new, num_heads, head_dim)) for i, row in enumerate(rows)]
    q.append(torch.full((padding, num_heads, head_dim), 3.0))
    plan = _with_splits(
        _visibility(rows, table, window, cut, padding),
        rows,
        table,
        r=num_heads // num_kv_heads,
        block_ms=block_ms,
        grouped=grouped,
        spare=spare,
    )
    return PagedCase(torch.cat(q).to(dtype).to(DEVICE), kv, plan, tokens, first_tokens[-1])


def random_rows(
    rng: np.random.Generator, count: int, *, most_keys: int, most_new: int, tries: bool = False
) -> list[Row]:
    """Ragged rows; every third continues an earlier one, every fourth has no prefix."""
    rows: list[Row] = []
    for i in range(count):
        new = int(rng.integers(1, most_new + 1))
        prefix = 0 if i % 4 == 3 else int(rng.integers(0, max(1, most_keys - new)))
        like = int(rng.integers(0, i)) if i and i % 3 == 0 else None
        shared = 0 if like is None else int(rng.integers(0, min(prefix, rows[like].prefix) + 1))
        parents = tuple(int(rng.integers(-1, j)) if j else -1 for j in range(new)) if tries and i % 2 else None
        rows.append(Row(prefix, new, like, shared, parents))
    return rows


def _page_table(rows: Sequence[Row], seed: int) -> tuple[NDArray[np.int64], int]:
    """(len(rows), longest row + 5) slots, and how many slots a pool needs; entries behind a row's keys are poison."""
    rng = np.random.default_rng((seed, 2))
    own = sum(row.num_keys - row.shared for row in rows)
    num_slots = 2 * own + 9
    free = iter(rng.permutation(num_slots).tolist())
    table = np.full((len(rows), max(row.num_keys for row in rows) + 5), -1, np.int64)
    for i, row in enumerate(rows):
        if row.like is not None:
            table[i, : row.shared] = table[row.like, : row.shared]
        table[i, row.shared : row.num_keys] = [next(free) for _ in range(row.shared, row.num_keys)]
    table[table < 0] = next(free)
    return table, num_slots


def _pool(
    rows: Sequence[Row],
    table: NDArray[np.int64],
    num_slots: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    seed: int,
) -> KVLayer:
    """A pool with random keys and values in used slots, NaN in all others."""
    parts: list[tuple[Tensor, Tensor | None]] = []
    for which in range(2):
        pool = torch.full((num_slots, num_kv_heads, head_dim), float("nan"))
        for i, row in enumerate(rows):
            mine = torch.from_numpy(table[i, row.shared : row.num_keys])
            pool[mine] = _normal((seed, 3 + which, i), (row.num_keys, num_kv_heads, head_dim))[row.shared :]
        if dtype.itemsize > 1:
            parts.append((pool.to(dtype), None))
            continue
        codes, scales = quantize_rows(pool.nan_to_num(7.0), dtype)
        parts.append((codes, torch.where(pool[..., 0].isnan(), pool[..., 0], scales)))
    (keys, key_scales), (values, value_scales) = parts
    if key_scales is None or value_scales is None:
        return KVLayer(keys.to(DEVICE), values.to(DEVICE))
    return KVLayer(keys.to(DEVICE), values.to(DEVICE), key_scales.to(DEVICE), value_scales.to(DEVICE))


def _visibility(rows: Sequence[Row], table: NDArray[np.int64], window: int | None, cut: int, padding: int) -> PagedPlan:
    """A plan that says who sees what, and has no work yet."""
    of_row: list[int] = []
    last: list[int] = []
    positions: list[int] = []
    trees: list[tuple[int, int]] = []
    words: list[int] = [-1]  # of nobody
    for i, row in enumerate(rows):
        of_row += [i] * row.new
        if row.parents is None:
            last += range(row.prefix, row.num_keys)
            positions += range(row.prefix, row.num_keys)
            trees += [(GARBAGE, 0)] * row.new
            continue
        lines: list[list[int]] = []  # of each node: its ancestors and itself
        for node, parent in enumerate(row.parents):
            lines.append([*(lines[parent] if parent >= 0 else []), node])
        for node, line in enumerate(lines):
            depth = len(line) - 1
            last.append(row.prefix - 1)
            positions.append(row.prefix + depth)
            seen = [a for a in line if window is None or len(lines[a]) - 1 > depth - window]
            num_bits = node + 1
            trees.append((len(words), num_bits))
            bits = sum(1 << a for a in seen) | (-1 << num_bits)  # what stands behind num_bits is not looked at
            count = -(-num_bits // 32)
            words += [_signed((bits >> (32 * w)) & 0xFFFFFFFF) for w in range(count)]
    of_row += [0] * padding
    last += [-1] * padding
    positions += [0] * padding
    trees += [(GARBAGE, 0)] * padding
    has_trees = any(row.parents for row in rows)
    return PagedPlan(
        page_table=_ints(table),
        rows=_ints(of_row),
        last_keys=_ints(last),
        positions=_ints(positions),
        trees=_ints(trees) if has_trees else None,
        tree_words=_ints(words) if has_trees else None,
        window=window,
        cut=cut,
        splits=(),
        merge=None,
        extends=(),
    )


class _Chunk(NamedTuple):
    """Keys that one item reads; rows with equal ones share it."""

    first: int
    end: int
    slots: tuple[int, ...]
    row: int | None  # not shared


def _with_splits(
    plan: PagedPlan,
    rows: Sequence[Row],
    table: NDArray[np.int64],
    *,
    r: int,
    block_ms: Sequence[int],
    grouped: bool,
    spare: int,
) -> PagedPlan:
    """One item for each row and cut in which some query of the row sees a key; rows with the same slots there share."""
    num_tokens, num_real = len(plan.rows), sum(row.new for row in rows)
    seen = [set(visible_keys(plan, t).tolist()) for t in range(num_tokens)]
    readers: dict[_Chunk, list[int]] = defaultdict(list)  # tokens
    of_row: dict[_Chunk, int] = {}
    for i, row in enumerate(rows):
        tokens = [t for t in range(num_real) if int(plan.rows[t]) == i]
        for first in range(0, row.num_keys, plan.cut):
            end = min(first + plan.cut, row.num_keys)
            if any(seen[t] & set(range(first, end)) for t in tokens):
                chunk = _Chunk(first, end, tuple(table[i, first:end].tolist()), None if grouped else i)
                readers[chunk] += tokens
                of_row.setdefault(chunk, i)
    chunks_of = [sorted((c for c in readers if t in readers[c]), key=lambda c: c.first) for t in range(num_tokens)]
    firsts = np.cumsum([0, *(len(chunks) for chunks in chunks_of)]).tolist()

    works: list[SplitWork] = []
    for block_m in block_ms:
        items: list[list[int]] = []
        pairs: list[list[int]] = []
        for chunk, tokens in readers.items():
            fitting = [m for m in block_ms if len(tokens) * r <= m]
            if (fitting[0] if fitting else block_ms[-1]) != block_m:
                continue
            for start in range(0, len(tokens), block_m // r):
                some = tokens[start : start + block_m // r]
                missed = any(not set(range(chunk.first, chunk.end)) <= seen[t] for t in some)
                items.append([of_row[chunk], chunk.first, chunk.end, len(pairs), len(some), int(missed)])
                pairs += [[t, firsts[t] + chunks_of[t].index(chunk)] for t in some]
        garbage = [GARBAGE] * spare
        works.append(
            SplitWork(
                items=_ints([*items, *([g] * 6 for g in garbage)]).view(-1, 6),
                num_items=_ints([len(items)]),
                pairs=_ints([*pairs, *([g] * 2 for g in garbage)]).view(-1, 2),
                block_m=block_m,
            )
        )
    merge = MergeWork(tokens=_ints(range(num_tokens)), firsts=_ints(firsts), num_partials=firsts[-1])
    return replace(plan, splits=tuple(works), merge=merge)


def _normal(seed: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Values whose beginning does not depend on how many there are."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def _ints(values: object) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.int32).copy()).to(DEVICE)
