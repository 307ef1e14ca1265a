"""Sampling kernels against the runtime's sampler: tokens, kept sets, the search's paths, rows beside each other."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from palmette.kernels import sampling as definition
from palmette.kernels.gpu.adjust_rows import adjusted_rows
from palmette.kernels.gpu.sampling import Sizes, sample, sample_with_cuts
from palmette.kernels.sampling import Adjustments, RowDraws
from palmette.runtime import sampler
from palmette.runtime.sampler import Draw, draw_margin, filtered_weights, uniform
from palmette.types import SamplingParams
from tests.kernels.gpu.close import DEVICE, poisoned_empty

SMALL = Sizes(chunk=128, list_len=16, levels=2)  # brackets that are narrowed twice and then read again as a whole


def draw(seed: int = 0, mask: Any = None, **params: Any) -> Draw:
    return Draw(SamplingParams(**params), seed, mask=mask)


def tensors(draws: Sequence[Draw]) -> RowDraws:
    """The form that kernels take; masks end with the last word that any of them needs."""
    masks = [d.mask for d in draws if d.mask is not None]
    words = np.zeros((len(masks), max((len(mask) for mask in masks), default=0)), np.uint32)
    for i, mask in enumerate(masks):
        words[i, : len(mask)] = mask
    places = iter(range(len(masks)))
    drawn = [d.params for d in draws if not d.params.is_greedy]

    def column(values: list[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=DEVICE)

    return RowDraws(
        temperature=column([0.0 if d.params.is_greedy else d.params.temperature for d in draws], torch.float32),
        top_k=column([max(0, d.params.top_k) for d in draws], torch.int32),
        top_p=column([d.params.top_p for d in draws], torch.float64),
        min_p=column([d.params.min_p for d in draws], torch.float32),
        at=column([uniform(d.seed, d.index) for d in draws], torch.float64),
        any_drawn=bool(drawn),
        any_filtered=any(p.top_k > 0 or p.top_p < 1 for p in drawn),
        mask_row=column([-1 if d.mask is None else next(places) for d in draws], torch.int32) if masks else None,
        masks=torch.from_numpy(words.view(np.int32)).to(DEVICE) if masks else None,
    )


def packed(allowed: Sequence[int]) -> Any:
    """A mask that ends with the last word in use."""
    bits = np.zeros((max(allowed) // 32 + 1) * 32, np.uint8)
    bits[list(allowed)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


def random_rows(rows: int, vocab: int, seed: int) -> tuple[Tensor, list[Draw]]:
    """Peaked, flat, tied, equal logits; temperatures from tiny to huge; every filter; masks of one, some and most."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    normal = torch.randn((rows, vocab), generator=generator)
    spreads = [8.0, 2.0, 0.01, 0.0, None]
    logits = torch.stack([(row * 2).round() if (by := rng.choice(spreads)) is None else row * by for row in normal])
    draws = []
    for row in range(rows):
        ids = range(vocab)
        masks = [None, None, [rng.choice(ids)], rng.sample(ids, vocab - 3), rng.sample(ids, 7)]
        mask = rng.choice(masks)
        draws.append(
            draw(
                seed * 1000 + row,
                None if mask is None else packed(mask),
                temperature=rng.choice([0.0, 0.01, 0.3, 1.0, 1.0, 2.0, 100.0]),
                top_k=rng.choice([-1, -1, 1, 2, 5, 40, vocab - 1, vocab, 10 * vocab]),
                top_p=rng.choice([1.0, 1.0, 0.999, 0.9, 0.5, 0.05, 1e-6]),
                min_p=rng.choice([0.0, 0.0, 0.1, 0.5]),
            )
        )
    return logits, draws


def assert_same_but_for_close_ones(logits: Tensor, draws: Sequence[Draw], tokens: Tensor) -> None:
    """Tokens are the sampler's, but for draws that rounding could have changed: one of a case at most."""
    wanted = sampler.sample(logits, draws)
    differing = [row for row, token in enumerate(tokens.tolist()) if token != wanted[row]]
    assert all(draw_margin(logits[row], draws[row]) < 1e-5 for row in differing), differing
    assert len(differing) <= 1


@pytest.mark.parametrize(
    ("vocab", "rows", "dtype", "sizes"),
    [
        (50, 12, torch.float32, None),
        (260, 12, torch.bfloat16, Sizes(chunk=64, list_len=64, levels=1)),
        (1000, 8, torch.float32, Sizes(chunk=256, list_len=64, levels=3)),
        (4099, 6, torch.float32, None),
        (4099, 4, torch.bfloat16, None),
    ],
)
def test_it_draws_what_the_sampler_draws(vocab: int, rows: int, dtype: torch.dtype, sizes: Sizes | None) -> None:
    logits, draws = random_rows(rows, vocab, seed=vocab)
    logits = logits.to(dtype).to(DEVICE)
    before = logits.clone()
    with poisoned_empty():
        found = sample(logits, tensors(draws), sizes=sizes)
    assert_same_but_for_close_ones(logits.float().cpu(), draws, found.tokens)
    picked = logits.float().log_softmax(-1).gather(-1, found.tokens[:, None].long())[:, 0]
    torch.testing.assert_close(found.logprobs, picked, rtol=1e-5, atol=2e-5)
    assert found.finite.tolist() == [1] * rows
    assert torch.equal(logits, before)


def test_the_definition_draws_what_the_sampler_draws() -> None:
    for seed in range(4):
        logits, draws = random_rows(40, 300, seed)
        assert_same_but_for_close_ones(logits, draws, definition.sample(logits, tensors(draws)).tokens)


@pytest.mark.parametrize("sizes", [SMALL, Sizes(chunk=512, list_len=512, levels=1)])
def test_the_kept_set_is_the_samplers(sizes: Sizes) -> None:
    """Tokens lighter than the unit of weights are never drawn and do not count."""
    filters: list[dict[str, Any]] = [
        {"top_k": 2},
        {"top_k": 7, "top_p": 0.7},
        {"top_k": 200, "top_p": 0.6, "min_p": 0.05},
        {"top_p": 0.9},
        {"top_p": 1e-6},
        {"top_p": 0.97, "temperature": 3.0},
        {"top_k": 300, "top_p": 0.4},
        {"top_k": 120, "min_p": 0.3},
    ]
    generator = torch.Generator().manual_seed(5)
    normal = torch.randn((len(filters), 300), generator=generator) * 2
    logits = torch.where(torch.arange(len(filters))[:, None] % 3 == 1, (normal * 2).round() / 2, normal)
    draws = [draw(seed, **params) for seed, params in enumerate(filters)]
    found, cuts = sample_with_cuts(logits.to(DEVICE), tensors(draws), sizes=sizes)
    assert cuts is not None
    for row, each in enumerate(draws):
        z = logits[row] / each.params.temperature
        z = z - z.max()
        weights = z.exp()
        kept = (weights >= cuts[row].cpu().exp()) & (weights >= each.params.min_p) & (weights > 2.0**-39)
        wanted = filtered_weights(logits[row : row + 1], [each.params])[0] > 2.0**-39
        assert torch.equal(kept, wanted), (row, int(kept.sum()), int(wanted.sum()))
    assert_same_but_for_close_ones(logits, draws, found.tokens)


@pytest.mark.parametrize("vocab", [100, 300])
def test_how_the_search_is_cut_changes_nothing(vocab: int) -> None:
    logits, draws = random_rows(6, vocab, seed=11)
    logits = logits.to(DEVICE)
    rows = tensors(draws)
    default = sample(logits, rows)
    small = sample(logits, rows, sizes=SMALL)
    assert small.tokens.tolist() == default.tokens.tolist()


def test_equal_logits_and_one_far_above_end_the_search() -> None:
    """More candidates than a list holds, of one value, or all in one part of the first bracket."""
    flat = torch.zeros((2, 200))
    flat[1] = torch.linspace(0.0, 1e-3, 200)
    flat[1, 77] = 27.0
    draws = [draw(1, top_p=0.5), draw(2, top_k=150, top_p=0.999999999999)]
    found, cuts = sample_with_cuts(flat.to(DEVICE), tensors(draws), sizes=SMALL)
    assert cuts is not None
    assert float(cuts[0]) == 0.0  # equals stay together, however little of them was asked for
    kept = int(((flat[1] - 27.0) >= float(cuts[1])).sum())
    assert kept == int((filtered_weights(flat[1:], [draws[1].params]) > 0).sum())
    assert_same_but_for_close_ones(flat, draws, found.tokens)


@pytest.mark.parametrize("levels", [1, 3])
def test_every_bracket_leads_to_the_threshold(levels: int) -> None:
    """Counts and shares that end in every part of the pivots, with few and with many candidates left."""
    logits = torch.randn((20, 100), generator=torch.Generator().manual_seed(levels)) * 2
    draws = [draw(i, top_k=3 + 5 * i) for i in range(10)]
    draws += [draw(i, top_p=0.05 + 0.1 * i, temperature=2.0) for i in range(10)]
    found, cuts = sample_with_cuts(
        logits.to(DEVICE), tensors(draws), sizes=Sizes(chunk=128, list_len=16, levels=levels)
    )
    assert cuts is not None
    for row, each in enumerate(draws):
        z = logits[row] / each.params.temperature
        kept = int((z - z.max() >= float(cuts[row])).sum())
        assert kept == int((filtered_weights(logits[row : row + 1], [each.params]) > 0).sum())
    assert_same_but_for_close_ones(logits, draws, found.tokens)


def test_a_sum_that_is_reached_exactly_is_passed() -> None:
    rows = replace(
        tensors([draw()] * 6), at=torch.tensor([0.0, 0.124, 0.125, 0.5, 0.875, 1 - 2**-53]).double().to(DEVICE)
    )
    found = sample(torch.zeros((6, 8), device=DEVICE), rows, sizes=Sizes(chunk=4, list_len=16, levels=1))
    assert found.tokens.tolist() == [0, 0, 1, 4, 7, 7]


def test_ids_behind_the_masks_end_may_not_come() -> None:
    logits = torch.zeros((2, 300), device=DEVICE)
    logits[0, 37] = 9.0  # in the word behind the first mask's last, where the second mask begins
    draws = [draw(temperature=0.0, mask=packed([4])), draw(temperature=0.0, mask=packed([5, 6]))]
    assert sample(logits, tensors(draws)).tokens.tolist() == [4, 5]


def test_greedy_takes_the_lowest_of_equals_and_launches_no_search() -> None:
    logits = torch.zeros((3, 300))
    logits[0, [299, 140, 141]] = 1.0
    logits[1, [131, 2]] = 4.0
    draws = [draw(temperature=0.0), draw(top_k=1), draw(temperature=0.0, mask=packed([90, 250, 270]))]
    rows = tensors(draws)
    assert not rows.any_drawn
    assert sample(logits.to(DEVICE), rows, sizes=SMALL).tokens.tolist() == [140, 2, 90]


def test_a_row_ignores_the_rows_beside_it_and_bad_ones_are_told() -> None:
    logits, draws = random_rows(7, 300, seed=3)
    params: dict[str, Any] = {"top_k": 30, "top_p": 0.9}
    draws[1], draws[3], draws[5] = (draw(i, **params) for i in range(3))
    logits[1, 17], logits[3, 299] = math.nan, math.inf
    logits[5] = math.nan
    logits[6, ::2] = -math.inf
    with poisoned_empty():
        together = sample(logits.to(DEVICE), tensors(draws), sizes=SMALL)
    assert together.finite.tolist() == [1, 0, 1, 0, 1, 0, 1]
    assert all(0 <= token < 300 for token in together.tokens.tolist())
    assert not bool(together.logprobs.isnan().any())
    for row in (0, 2, 4, 6):
        alone = sample(logits[row : row + 1].to(DEVICE), tensors(draws[row : row + 1]), sizes=SMALL)
        assert int(alone.tokens[0]) == int(together.tokens[row])
        assert float(alone.logprobs[0]) == float(together.logprobs[row])


def test_draws_follow_the_distribution() -> None:
    """Chi-square at one in a thousand, with fixed seeds."""
    row = torch.tensor([0.0, 1.0, -1.0, 0.5, 1.5, -0.5])
    count = 100
    found = sample(row.expand(count, -1).to(DEVICE), tensors([draw(seed) for seed in range(count)]))
    expected = row.softmax(-1).double().numpy() * count
    counted = np.bincount(found.tokens.cpu().numpy(), minlength=6)
    assert float(((counted - expected) ** 2 / expected).sum()) < 20.5


def test_entries_change_copies_and_logprobs_stay_the_models() -> None:
    def column(values: list[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=DEVICE)

    i, f = torch.int32, torch.float32
    logits = torch.randn((4, 300), generator=torch.Generator().manual_seed(8)).to(DEVICE)
    logits[2, [5, 6]] = column([4.0, -1.0], f)
    adjustments = Adjustments(
        copy_of=column([-1, 1, 0, -1], i),
        sources=column([2, 1], i),
        copies=column([0, 0, 0, 1, 1], i),
        ids=column([5, 6, 299, 130, 7], i),
        repetition=column([2.0, 2.0, 1.0, 1.0, 1.0], f),
        subtract=column([0.0, 0.25, 0.0, 0.0, 1.0], f),
        add=column([-math.inf, 0.0, 9.0, 30.0, 0.0], f),
    )
    draws = [draw(s, temperature=t, top_p=p) for s, (t, p) in enumerate([(0, 1), (0, 1), (1, 0.5), (1, 1)])]
    rows = tensors(draws)
    with poisoned_empty():
        found = sample(logits, rows, adjustments, sizes=SMALL)
    wanted = definition.sample(logits, rows, adjustments)
    copies = definition.adjusted(logits, adjustments)[adjustments.sources.long()]
    assert torch.equal(adjusted_rows(logits, adjustments), copies)
    assert found.tokens.tolist() == wanted.tokens.tolist()
    assert found.tokens.tolist()[1:3] == [130, 299]
    torch.testing.assert_close(found.logprobs, wanted.logprobs, rtol=1e-5, atol=2e-5)


def test_no_rows_are_no_launch() -> None:
    found = sample(torch.empty(0, 50, device=DEVICE), tensors([]))
    assert found.tokens.shape == found.finite.shape == (0,)
