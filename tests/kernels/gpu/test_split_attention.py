"""Split attention and its merge under Triton against attention by its definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from palmette.kernels.gpu.merge_partials import merge_partials
from palmette.kernels.gpu.split_attention import SplitConfig, split_attention
from palmette.kernels.paged_attention import attend_by_definition
from palmette.kernels.paged_plan import MergeWork
from tests.kernels.gpu.close import DEVICE, assert_within_an_ulp, poisoned_empty
from tests.kernels.gpu.paged_cases import PagedCase, Row, make_case, random_rows

SCALE = 0.3
TILE = SplitConfig(block_n=16, num_warps=4, num_stages=3, programs=1)  # small, so that few keys fill several


def attend(case: PagedCase, *, soft_cap: float | None = None, config: SplitConfig | None = TILE) -> Tensor:
    """(num_tokens, num_heads * head_dim): all splits, then the merge."""
    num_tokens, num_heads, head_dim = case.q.shape
    assert case.plan.merge is not None
    with poisoned_empty():
        partials = torch.empty((case.plan.merge.num_partials, num_heads, head_dim), device=DEVICE)
        lse = torch.empty(partials.shape[:2], device=DEVICE)
        out = torch.empty_like(case.q)
        for work in case.plan.splits:
            split_attention(
                case.q, case.kv, case.plan, work, partials, lse, scale=SCALE, soft_cap=soft_cap, config=config
            )
        merge_partials(partials, lse, case.plan.merge, out)
    return out.view(num_tokens, -1)


def check(case: PagedCase, *, soft_cap: float | None = None, config: SplitConfig | None = TILE) -> Tensor:
    got = attend(case, soft_cap=soft_cap, config=config)
    wanted = attend_by_definition(case.q, case.kv, case.plan, scale=SCALE, soft_cap=soft_cap)
    # A GPU rounds weights to bfloat16 before they meet the values; the interpreter does not.
    rounded = case.q.dtype != torch.float32 and DEVICE.type == "cuda"
    assert_within_an_ulp(got, wanted, ulps=2.0, floor=1e-2 if rounded else 2e-6)
    return got


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"),
    [(1, 1, 64), (3, 1, 80), (6, 2, 96), (5, 1, 128), (7, 1, 256), (4, 4, 32), (64, 4, 16)],
)
def test_it_is_the_definition_for_all_heads(
    num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    rows = [Row(prefix=19), Row(prefix=0, new=2)][: 1 if num_heads == 64 else 2]
    check(
        make_case(rows, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype),
        config=None,
    )


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_definition_for_random_steps(seed: int) -> None:
    """Ragged rows with holes and shared prefixes; windows, caps, tries and tiles of several sizes by the seed."""
    rng = np.random.default_rng(seed)
    case = make_case(
        random_rows(rng, 6, most_keys=50, most_new=5, tries=seed % 2 == 1),
        num_heads=6,
        num_kv_heads=2,
        window=(None, 9, 30)[seed % 3],
        cut=(16, 32)[seed // 2 % 2],
        block_ms=((16,), (16, 32))[seed // 3],
        padding=seed % 3,
        seed=seed,
    )
    check(case, soft_cap=2.0 if seed >= 3 else None)


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_siblings_share_a_prefix_and_keep_their_tails(count: int) -> None:
    rows = [Row(40), *(Row(40 + i % 5, like=0, shared=40) for i in range(1, count))]
    case = make_case(rows, num_heads=4, num_kv_heads=1, cut=16, block_ms=(16, 64), padding=1)
    items = sum(int(work.num_items) for work in case.plan.splits)
    assert items == 2 + count, "two whole cuts of the prefix once, the third ends differently for each"
    together = check(case)
    alone = make_case(rows, num_heads=4, num_kv_heads=1, cut=16, block_ms=(16, 64), padding=1, grouped=False)
    assert_within_an_ulp(together, attend(alone), ulps=2.0)


def test_short_extends_see_what_came_before() -> None:
    check(make_case([Row(21, new=16), Row(0, new=16), Row(15, new=1)], num_heads=4, num_kv_heads=1, block_ms=(16, 64)))


@pytest.mark.parametrize("prefix", [0, 15, 37])
def test_nodes_of_a_trie_see_the_prefix_and_their_ancestors(prefix: int) -> None:
    """More nodes than bits of a word, behind prefixes that leave them anywhere in a tile."""
    rng = np.random.default_rng(prefix)
    parents = tuple(int(rng.integers(-1, j)) if j else -1 for j in range(38))
    rows = [Row(prefix, new=38, parents=parents), Row(9)]
    case = make_case(rows, cut=32, block_ms=(64,), window=20 if prefix == 37 else None)
    assert case.plan.tree_words is not None
    check(case, config=replace(TILE, block_n=32 if prefix % 2 else 16))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_pools_of_codes_are_read_with_their_scales(dtype: torch.dtype) -> None:
    rows = [Row(37), Row(20, new=3), Row(33, like=0, shared=32)]
    check(make_case(rows, num_heads=6, num_kv_heads=2, pool_dtype=dtype, block_ms=(16, 32)))
    check(make_case(rows[:1], dtype=torch.bfloat16, pool_dtype=dtype, window=20), soft_cap=5.0, config=None)


def test_half_precision() -> None:
    check(make_case([Row(20), Row(3)], dtype=torch.float16))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN in the interpreter
@pytest.mark.parametrize("window", [None, 7])
def test_another_requests_nan_stays_with_it(window: int | None) -> None:
    """Slots of nobody are NaN in every case of this file; here a neighbour's own keys are too."""
    rows = [Row(20), Row(22, new=2), Row(20, like=0, shared=16), Row(30, new=3, parents=(-1, 0, 0))]
    case = make_case(rows, window=window, block_ms=(16, 32))
    clean = check(case)
    for poisoned in (1, 3):
        slots = case.plan.page_table[poisoned, : rows[poisoned].num_keys].long()
        case.kv.keys[slots], case.kv.values[slots] = float("nan"), float("nan")
    got = attend(case)
    for row, tokens in enumerate(case.tokens_of_row):
        some = slice(tokens.start, tokens.stop)
        assert bool(got[some].isnan().all()) if row in (1, 3) else torch.equal(got[some], clean[some])


def test_keys_that_left_the_window_are_not_read() -> None:
    """Within a cut that the window begins in, and for a group of siblings at different distances."""
    rows = [Row(44), Row(46, like=0, shared=44), Row(45, like=0, shared=44)]
    case = make_case(rows, window=10, cut=32, block_ms=(16,))
    clean = attend(case)
    gone = case.plan.page_table[0, :35].long()  # the first query is at position 44 and sees keys 35 .. 44
    case.kv.keys[gone], case.kv.values[gone] = float("nan"), float("nan")
    assert torch.equal(attend(case), clean)


def test_a_rows_bits_do_not_depend_on_its_company() -> None:
    """Alone, among strangers, in a group that somebody of sees less of, and with more capacity: the same bits."""
    row = Row(37)
    for window, parents in ((None, None), (30, (-1, 0, -1))):
        wanted = attend(make_case([row], num_heads=4, window=window))[0]
        for i, rows in enumerate(
            (
                [row, Row(11, new=2), Row(37)],
                [row, Row(37, like=0, shared=37), Row(44, like=0, shared=32)],
                [row, Row(33, like=0, shared=32, new=3, parents=parents)],
            )
        ):
            case = make_case(rows, num_heads=4, window=window, spare=1 + 20 * i, padding=i)
            assert torch.equal(attend(case, config=replace(TILE, programs=1 + 4 * i))[0], wanted)


def test_a_cut_that_begins_within_a_tile_keeps_to_its_keys() -> None:
    case = make_case([Row(40), Row(40, like=0, shared=40)], num_heads=4, cut=16, block_ms=(16,))
    got = attend(case)
    assert_within_an_ulp(attend(case, config=replace(TILE, block_n=16)), got)
    work = case.plan.splits[0]
    items = work.items.clone()
    first = int(items[0, 1])
    items[0, 1] += 5  # its first five keys are nobody's now
    slots = case.plan.page_table[0, first : first + 5].long()
    case.kv.keys[slots], case.kv.values[slots] = float("nan"), float("nan")
    trimmed = replace(case, plan=replace(case.plan, splits=(replace(work, items=items),)))
    assert bool(attend(trimmed).isfinite().all())
    assert not torch.equal(attend(trimmed), got)


@pytest.mark.parametrize("num_partials", [1, 7, 8, 9, 20])
def test_merging_is_the_weighted_mean_in_float64(num_partials: int) -> None:
    """Tokens in any order, some without partials, some partials that saw nothing."""
    generator = torch.Generator().manual_seed(num_partials)
    counts = [num_partials, 0, 3, 0, 2]
    firsts = [0, *torch.tensor(counts).cumsum(0).tolist()]
    partials = torch.randn((firsts[-1], 3, 24), generator=generator)
    lse = 40.0 * torch.randn((firsts[-1], 3), generator=generator)
    lse[0, 0], lse[firsts[2] :, 1] = float("-inf"), float("-inf")
    partials[0, 0], partials[firsts[2] :, 1] = 0.0, 0.0
    tokens = [3, 0, 4, 1, 2]
    for dtype in (torch.float32, torch.bfloat16):
        out = torch.full((6, 3, 24), float("nan"), dtype=dtype)
        merge = MergeWork(torch.tensor(tokens, dtype=torch.int32), torch.tensor(firsts, dtype=torch.int32), firsts[-1])
        on_device = MergeWork(merge.tokens.to(DEVICE), merge.firsts.to(DEVICE), merge.num_partials)
        out = out.to(DEVICE)
        merge_partials(partials.to(DEVICE), lse.to(DEVICE), on_device, out)
        wanted = torch.zeros((6, 3, 24), dtype=torch.float64)
        for token, first, end in zip(tokens, firsts, firsts[1:], strict=False):
            if end > first:
                logs = lse[first:end].double()
                weights = torch.exp2(logs - logs.amax(0).clamp(min=-1e30))
                weights /= weights.sum(0).clamp(min=1e-300)
                wanted[token] = (partials[first:end].double() * weights[..., None]).sum(0)
        assert_within_an_ulp(out[:5].cpu(), wanted[:5].to(dtype))
        assert bool(out[5].isnan().all()), "a token that nobody named was written"


def test_merging_adds_in_position_order_whatever_follows() -> None:
    """A token's bits are those of adding one by one, so partials with no weight behind them change nothing."""
    partials, lse = torch.randn((30, 2, 16)), torch.randn((30, 2))
    lse[11:] = float("-inf")
    partials[11:] = 0.0
    partials, lse = partials.to(DEVICE), lse.to(DEVICE)

    def merged(first: int, end: int) -> Tensor:
        out = torch.empty((1, 2, 16), device=DEVICE)
        firsts = torch.tensor([first, end], dtype=torch.int32, device=DEVICE)
        merge_partials(partials, lse, MergeWork(torch.zeros(1, dtype=torch.int32, device=DEVICE), firsts, 30), out)
        return out

    assert torch.equal(merged(0, 11), merged(0, 30))
    weights = torch.exp2(lse[:11] - lse[:11].amax(0))
    acc, total = torch.zeros((2, 16), device=DEVICE), torch.zeros(2, device=DEVICE)
    for i in range(11):
        acc, total = acc + weights[i][:, None] * partials[i], total + weights[i]
    assert_within_an_ulp(merged(0, 11)[0], acc / total[:, None])


def test_no_items_are_no_work() -> None:
    case = make_case([Row(3)], spare=0)
    work = case.plan.splits[0]
    empty = replace(work, items=work.items[:0], num_items=torch.zeros_like(work.num_items))
    partials, lse = torch.full((1, 2, 16), 5.0, device=DEVICE), torch.full((1, 2), 5.0, device=DEVICE)
    split_attention(case.q, case.kv, case.plan, empty, partials, lse, scale=SCALE)
    counted = replace(work, num_items=torch.zeros_like(work.num_items))  # capacity, and nothing in it
    split_attention(case.q, case.kv, case.plan, counted, partials, lse, scale=SCALE)
    assert bool((partials == 5.0).all())
    assert bool((lse == 5.0).all())
