"""Extend attention under Triton, through the page table and over gathered keys, against its torch definition."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from palmette.errors import InvalidOption
from palmette.kernels.gpu.extend_attention import CODE_CONFIGS, CONFIGS, ExtendConfig, extend_attention
from palmette.kernels.gpu.gather_rows import gather_rows
from palmette.kernels.gpu.launch import INTERPRETED
from palmette.kernels.kv_store import KVLayer, kv_store
from palmette.kernels.paged_attention import attend_by_definition
from palmette.kernels.paged_plan import ExtendWork, PagedPlan
from tests.kernels.gpu.close import DEVICE, assert_within_an_ulp, poisoned_empty

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Row:
    """New tokens of one row behind its prefix: a sequence, or a trie's nodes by their parents (-1 = the prefix)."""

    prefix: int
    count: int
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One step's operands."""

    q: Tensor
    kv: KVLayer
    plan: PagedPlan
    work: ExtendWork
    used: Tensor  # slots that somebody sees
    slots: tuple[Tensor, ...]  # of each row's tokens


def random_step(
    seed: int,
    rows: Sequence[Row],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    pool: torch.dtype | None = None,
    tile_tokens: int = 8,
    key_tile: int = 16,
    window: int | None = None,
    gathered: bool = False,
    unused: int = 3,
) -> Step:
    """Rows at random places of a pool whose other slots are NaN (or the largest code), `unused` tokens behind them."""
    rng, gen = random.Random(seed), torch.Generator().manual_seed(seed)
    num_tokens = sum(row.count for row in rows) + unused
    ends = [row.prefix + row.count for row in rows]
    num_slots = sum(ends) + 9
    free = rng.sample(range(num_slots), num_slots)
    hidden = free.pop()  # what the page table holds where a row has nothing
    table = torch.full((len(rows) + 2, max(ends, default=0) + key_tile + 5), hidden, dtype=torch.int32)
    table_rows = rng.sample(range(len(table)), len(rows))
    lasts: list[int] = []
    positions: list[int] = []
    words: list[int] = []
    spans, tiles, trees = [], [], []
    scratch_len, used, slots = 5, [], []
    for row, at in zip(rows, table_rows, strict=True):
        end, first_token = row.prefix + row.count, len(lasts)
        own = torch.tensor([free.pop() for _ in range(end)], dtype=torch.int32)
        table[at, :end] = own
        slots.append(own.long())
        depths = list(range(1, row.count + 1))
        for i, parent in enumerate(row.parents):
            depths[i] = 1 if parent < 0 else depths[parent] + 1
        mine = [row.prefix + depth - 1 for depth in depths]
        for i in range(row.count):
            lasts.append(row.prefix - 1 if row.parents else mine[i])
            bits, node = 0, i
            while row.parents and node >= 0:
                if window is None or mine[node] > mine[i] - window:
                    bits |= 1 << node
                node = row.parents[node]
            bits |= rng.getrandbits(32) << row.count  # behind num_bits stands anything
            trees.append((len(words), row.count if row.parents else 0))
            for word in range(0, row.count if row.parents else 0, 32):
                value = bits >> word & 0xFFFFFFFF
                words.append(value - (1 << 32) if value >> 31 else value)
        positions += mine
        shortest = 0 if window is None else max(0, min(mine) - window + 1) // key_tile * key_tile
        for low in range(0, row.count, tile_tokens):
            some = range(low, min(low + tile_tokens, row.count))
            visible_end = end if row.parents else row.prefix + some[-1] + 1
            free_end = row.prefix if row.parents else row.prefix + low + 1
            begin = free_begin = 0
            if window is not None:
                begin = min(max(0, min(mine[i] for i in some) - window + 1), free_end) // key_tile * key_tile
                free_begin = min(max(0, max(mine[i] for i in some) - window + 1), free_end)
            offset = scratch_len - shortest if gathered else 0
            tiles.append([at, first_token + low, len(some), begin, free_begin, free_end, visible_end, offset])
        if gathered:
            spans.append([at, shortest, end, scratch_len])
            scratch_len += end - shortest + rng.randrange(4)
        used.append(own[0 if window is None else max(0, min(mine) - window + 1) :])
    rng.shuffle(tiles)
    rng.shuffle(spans)

    q = torch.randn((num_tokens, heads, head_dim), generator=gen)
    kv_shape = (num_slots, kv_heads, head_dim)
    seen = torch.cat(used).long()
    if pool is None:
        kv = KVLayer(*(torch.full(kv_shape, NAN, dtype=dtype) for _ in range(2)))
    else:
        codes = [torch.full(kv_shape, 0x7F, dtype=torch.uint8).view(pool) for _ in range(2)]
        kv = KVLayer(*codes, *(torch.full(kv_shape[:2], NAN) for _ in range(2)))
    keys, values = (torch.randn((len(seen), kv_heads, head_dim), generator=gen) for _ in range(2))
    kv_store(keys, values, kv, seen)
    kv = KVLayer(*(None if x is None else x.to(DEVICE) for x in kv))  # type: ignore[arg-type]

    def ints(values: Any, *shape: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32).reshape(*shape).to(DEVICE)

    any_tree = any(row.parents for row in rows)
    plan = PagedPlan(
        page_table=table.to(DEVICE),
        rows=ints([at for row, at in zip(rows, table_rows, strict=True) for _ in range(row.count)] + [0] * unused, -1),
        last_keys=ints([*lasts, *[-1] * unused], -1),
        positions=ints([*positions, *[0] * unused], -1),
        trees=ints([*trees, *[(0, 0)] * unused], -1, 2) if any_tree else None,
        tree_words=ints(words, -1) if any_tree else None,
        window=window,
        cut=key_tile,
        splits=(),
        merge=None,
        extends=(),
    )
    work = ExtendWork(
        tiles=ints(tiles, -1, 8),
        tile_tokens=tile_tokens,
        gathered=ints(spans, -1, 4) if gathered else None,
        scratch_len=scratch_len if gathered else 0,
    )
    return Step(q.to(dtype).to(DEVICE), kv, plan, work, seen, tuple(slots))


def attend(step: Step, *, soft_cap: float | None = None, config: ExtendConfig | None = None) -> Tensor:
    """The kernels' results; NaN where nothing was written, and where scratch holds no span."""
    scale = scale_of(step)
    out = torch.full_like(step.q, NAN)
    scratch = None
    with poisoned_empty():
        if step.work.gathered is not None:
            shape = (step.kv.keys.shape[1], step.work.scratch_len, step.q.shape[-1])
            scratch = (
                torch.empty(shape, dtype=step.q.dtype, device=DEVICE),
                torch.empty(shape, dtype=step.q.dtype, device=DEVICE),
            )
            gather_rows(step.kv, step.plan, step.work, *scratch)
        extend_attention(
            step.q, step.kv, step.plan, step.work, out, scale=scale, soft_cap=soft_cap, scratch=scratch, config=config
        )
    return out


def scale_of(step: Step) -> float:
    return 1.5 / float(step.q.shape[-1] ** 0.5)


def check(step: Step, *, soft_cap: float | None = None, config: ExtendConfig | None = None, unused: int = 3) -> None:
    got = attend(step, soft_cap=soft_cap, config=config)
    covered = len(got) - unused
    plan = step.plan
    if plan.window is not None:  # a deep node's window may begin behind the prefix: it sees none of it, and no less
        plan = replace(plan, positions=torch.minimum(plan.positions, plan.last_keys + plan.window))
    wanted = attend_by_definition(step.q, step.kv, plan, scale=scale_of(step), soft_cap=soft_cap).view_as(got)
    floor = 3e-6 if INTERPRETED else 2.0**-6  # the matrix units round weights, whose sums may cancel
    assert_within_an_ulp(got[:covered], wanted[:covered], ulps=4 if soft_cap else 1, floor=floor)
    assert got[covered:].isnan().all()  # which no tile covers


def random_parents(count: int, seed: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(-1, i) if i else -1 for i in range(count))


RAGGED = (Row(0, 1), Row(37, 5), Row(0, 23), Row(16, 9))


@pytest.mark.parametrize(("dtype", "gathered"), [(torch.float32, False), (torch.bfloat16, True)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "tile_tokens"),
    [(4, 4, 64, 16), (6, 2, 80, 5), (5, 1, 96, 12), (8, 2, 128, 8), (7, 1, 256, 4), (3, 3, 32, 16), (64, 1, 16, 2)],
)
def test_ragged_rows_are_their_definition(
    heads: int, kv_heads: int, head_dim: int, tile_tokens: int, dtype: torch.dtype, gathered: bool
) -> None:
    rows = (Row(0, 1), Row(21, 7)) if heads == 64 else RAGGED
    check(
        random_step(
            head_dim + heads,
            rows,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=dtype,
            tile_tokens=tile_tokens,
            gathered=gathered,
        )
    )


def test_sixty_four_kv_heads() -> None:
    check(random_step(1, (Row(3, 2),), heads=64, kv_heads=64))


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize(("window", "soft_cap"), [(1, None), (5, 2.0), (16, None), (33, 2.0)])
def test_windows_and_soft_caps(window: int, soft_cap: float | None, gathered: bool) -> None:
    check(random_step(window, RAGGED, window=window, gathered=gathered), soft_cap=soft_cap)


@pytest.mark.parametrize(("window", "gathered"), [(None, False), (None, True), (4, False), (20, True)])
def test_tries_beside_sequences(window: int | None, gathered: bool) -> None:
    rows = (Row(19, 41, random_parents(41, 1)), Row(5, 6), Row(0, 7, (-1, 0, 1, 2, 3, 4, 5)))
    check(random_step(2, rows, window=window, gathered=gathered, tile_tokens=16))


def test_bits_alone_say_what_a_node_sees_of_the_others() -> None:
    step = random_step(16, (Row(3, 20, tuple(range(-1, 19))),), window=3, tile_tokens=4)
    assert step.plan.tree_words is not None
    step.plan.tree_words.fill_(-1)
    check(step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("pool", [torch.int8, torch.float8_e4m3fn])
def test_pools_of_eight_bits(pool: torch.dtype, dtype: torch.dtype) -> None:
    check(random_step(3, RAGGED, pool=pool, dtype=dtype, heads=6, head_dim=32), soft_cap=5.0)


@pytest.mark.parametrize("pool", [torch.int8, torch.float8_e4m3fn])
def test_gathered_rows_of_a_pool_of_eight_bits(pool: torch.dtype) -> None:
    check(random_step(4, RAGGED, pool=pool, gathered=True, window=18))


@pytest.mark.parametrize(("window", "head_dim"), [(None, 80), (21, 32)])
def test_bulk_copies_are_the_same_bits(window: int | None, head_dim: int) -> None:
    step = random_step(5, RAGGED, gathered=True, window=window, head_dim=head_dim)
    assert_same(attend(step), attend(step, config=ExtendConfig(16, 4, 2, bulk_copy=True)))


def test_gathered_keys_are_the_same_bits() -> None:
    paged, gathered = (random_step(6, RAGGED, gathered=x, window=30, dtype=torch.bfloat16) for x in (False, True))
    assert_same(attend(paged), attend(gathered))


@pytest.mark.filterwarnings("ignore:All-NaN", "ignore:invalid value")  # numpy's, in the interpreter
@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("tree", [False, True])
def test_a_row_has_the_same_bits_in_every_batch(tree: bool, gathered: bool) -> None:
    row = Row(29, 11, random_parents(11, 4) if tree else ())
    alone = random_step(7, (row,), gathered=gathered)
    batch = random_step(8, (Row(3, 17), row, Row(0, 9, random_parents(9, 5)), Row(50, 2)), gathered=gathered)
    for pool, source in zip(batch.kv[:2], alone.kv[:2], strict=True):
        assert pool is not None
        assert source is not None
        pool[batch.slots[0]] = NAN  # and what is wrong with a neighbour stays there
        pool[batch.slots[1]] = source[alone.slots[0]]
    batch.q[17:28] = alone.q[:11]
    assert_same(attend(batch)[17:28], attend(alone)[:11])


@pytest.mark.filterwarnings("ignore:All-NaN", "ignore:invalid value")  # numpy's, in the interpreter
@pytest.mark.parametrize("gathered", [False, True])
def test_what_left_every_window_of_a_tile_is_not_read(gathered: bool) -> None:
    step = random_step(9, (Row(6, 24),), window=5, gathered=gathered, unused=0)
    step.kv.keys[step.slots[0][2]] = step.kv.values[step.slots[0][2]] = NAN  # key 2: position 6 alone sees it
    got = attend(step)
    assert got[0].isnan().all()
    assert not got[8:].isnan().any()  # the next tile, whose keys begin at 0 as well


@pytest.mark.parametrize("gathered", [False, True])
def test_a_query_that_sees_nothing_gives_zeros(gathered: bool) -> None:
    step = random_step(10, (Row(0, 6, (-1, 0, 1, -1, 3, 4)),), gathered=gathered, unused=0)
    assert step.plan.tree_words is not None
    step.plan.tree_words[2] = 0
    got = attend(step)
    assert (got[2] == 0).all()
    assert not got.isnan().any()
    assert got[3].any()


def test_strides_of_tokens_are_free() -> None:
    step = random_step(11, RAGGED)
    wide = torch.full((len(step.q), 7, 16), NAN, device=DEVICE)
    wide[:, :4] = step.q
    assert_same(attend(replace(step, q=wide[:, :4])), attend(step))


def test_no_tiles_are_no_launch() -> None:
    step = random_step(12, RAGGED)
    assert attend(replace(step, work=replace(step.work, tiles=step.work.tiles[:0]))).isnan().all()


@pytest.mark.parametrize("window", [None, 200])
def test_masked_loops_may_have_smaller_key_tiles(window: int | None) -> None:
    rows = (Row(250, 20), Row(140, 35, random_parents(35, 6)))
    step = random_step(13, rows, heads=2, kv_heads=1, key_tile=128, tile_tokens=40, window=window)
    check(step, config=ExtendConfig(128, 8, 2))


def test_every_listed_configuration_gives_the_result() -> None:
    step = random_step(
        14, (Row(100, 40),), heads=2, kv_heads=1, head_dim=128, gathered=True, key_tile=128, tile_tokens=64
    )
    results = [attend(step, config=config) for config in (*CONFIGS[128], *CODE_CONFIGS[128])]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_head_dimensions_beyond_the_listed_are_refused() -> None:
    with pytest.raises(InvalidOption, match="head_dim=300"):
        attend(random_step(15, (Row(0, 1),), head_dim=300))


def test_gathered_work_without_scratch_is_refused() -> None:
    step = random_step(14, RAGGED, gathered=True)
    with pytest.raises(InvalidOption, match="gather_rows"):
        extend_attention(step.q, step.kv, step.plan, step.work, torch.empty_like(step.q), scale=1.0)


def test_cuts_below_the_smallest_key_tile_are_refused() -> None:
    step = random_step(15, RAGGED)
    with pytest.raises(InvalidOption, match="multiple of 16"):
        attend(replace(step, plan=replace(step.plan, cut=24)))


def assert_same(a: Tensor, b: Tensor) -> None:
    """The same bits, NaN included."""
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
