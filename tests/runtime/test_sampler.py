"""Sampling: each rule against its definition; draws depend on seed and place alone; rows ignore each other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from palmette.errors import InvalidOption
from palmette.runtime.logprobs import pick_logprobs, token_logprobs
from palmette.runtime.sampler import (
    Draw,
    adjust_,
    draw_margin,
    filtered_weights,
    finite_rows,
    inverse_cdf,
    sample,
    uniform,
)
from palmette.types import SamplingParams


def draw(seed: int = 0, index: int = 0, **params: Any) -> Draw:
    names = {"counts", "prompt_ids", "banned"}
    rest = {name: params.pop(name) for name in list(params) if name in names}
    return Draw(SamplingParams(max_new_tokens=100, **params), seed, index, **rest)


def logits_of(rows: int, vocab: int, seed: int = 0) -> Tensor:
    return torch.randn((rows, vocab), generator=torch.Generator().manual_seed(seed)) * 3


def reference_weights(logits: Tensor, params: SamplingParams) -> np.ndarray[Any, Any]:
    """The filters, token by token, in float64."""
    scaled = logits.double().numpy() / params.temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    if params.top_k > 0:
        p = np.where(p >= np.sort(p)[::-1][min(params.top_k, len(p)) - 1], p, 0.0)
        p /= p.sum()
    if params.top_p < 1.0:
        more_likely = np.array([p[p > q].sum() for q in p])
        p = np.where(more_likely < params.top_p, p, 0.0)
        p /= p.sum()
    kept: np.ndarray[Any, Any] = np.where(p >= params.min_p * p.max(), p, 0.0)
    return kept / float(kept.sum())


@settings(max_examples=150, deadline=None)
@given(
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([-1, 2, 5, 40, 1000]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 50),
)
def test_filters_keep_what_their_definition_keeps(
    temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = logits_of(1, 60, seed)
    weights = filtered_weights(logits, [params])[0].double()
    expected = reference_weights(logits[0], params)
    assert (weights / weights.sum()).numpy() == pytest.approx(expected, abs=1e-5)


def test_top_p_of_a_flat_distribution_keeps_most_of_it() -> None:
    logits = torch.zeros((1, 5000))
    logits[0, ::2] = 0.01
    params = SamplingParams(top_p=0.9)
    expected = reference_weights(logits[0], params)
    weights = filtered_weights(logits, [params])[0].double()
    assert (weights / weights.sum()).numpy() == pytest.approx(expected, abs=1e-7)


def test_tokens_that_tie_with_the_last_one_kept_stay() -> None:
    weights = filtered_weights(torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]), [SamplingParams(top_k=2)])
    assert (weights[0] > 0).tolist() == [False, True, True, True, False]


def test_greedy_takes_the_best_and_of_equals_the_lowest_id() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 5.0]])
    assert sample(logits, [draw(temperature=0.0), draw(top_k=1)]) == [1, 0]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_row_gives_the_same_token_alone_and_among_others(data: st.DataObject) -> None:
    """Whatever route its batch takes, and whatever row it stands in."""
    plain = st.builds(lambda s, i: draw(s, i), st.integers(0, 2**64 - 1), st.integers(0, 99))
    special = st.builds(
        lambda s, t, k, p: draw(s, 3, temperature=t, top_k=k, top_p=p),
        st.integers(0, 2**64 - 1),
        st.sampled_from([0.0, 0.7, 1.5]),
        st.sampled_from([-1, 1, 7]),
        st.sampled_from([0.4, 1.0]),
    )
    adjusted = st.builds(
        lambda s: draw(s, 1, frequency_penalty=1.0, counts={1: 2, 5: 1}, banned=(0,), logit_bias=((4, 2.0),)),
        st.integers(0, 99),
    )
    draws = data.draw(st.lists(st.one_of(plain, special, adjusted), min_size=1, max_size=9))
    logits = logits_of(len(draws), 300, data.draw(st.integers(0, 99)))
    together = sample(logits, draws)
    assert together == [sample(logits[i : i + 1], [d])[0] for i, d in enumerate(draws)]


def test_the_plain_route_draws_what_the_filtered_one_draws() -> None:
    logits = logits_of(40, 700)
    plain = [draw(seed) for seed in range(40)]
    filtered = [draw(seed, top_k=700, top_p=0.9999999, min_p=1e-30) for seed in range(40)]
    assert sample(logits, plain) == sample(logits, filtered)


def test_sampling_leaves_the_logits_alone() -> None:
    logits = logits_of(2, 20)
    before = logits.clone()
    sample(logits, [draw(banned=(1,)), draw(repetition_penalty=2.0, prompt_ids=(3,))])
    assert torch.equal(logits, before)


# -- draws ---------------------------------------------------------------------------------------------------------


def test_uniform_is_splitmix64_of_seed_and_index() -> None:
    def mix(z: int) -> int:  # Steele, Lea, Flood 2014
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    for seed, index in [(0, 0), (1, 0), (2**64 - 1, 17)]:
        state = mix(seed)
        for _ in range(index + 1):
            state = (state + 0x9E3779B97F4A7C15) % 2**64
        assert uniform(seed, index) == (mix(state) >> 11) / 2**53


def test_draws_of_neighbouring_seeds_and_places_do_not_resemble_each_other() -> None:
    grid = np.array([[uniform(seed, index) for index in range(64)] for seed in range(64)])
    assert abs(grid.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.05
    assert len(np.unique(grid)) == grid.size


@pytest.mark.parametrize("params", [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.2}])
def test_draws_follow_the_distribution(params: dict[str, Any]) -> None:
    """Chi-square at one in a thousand, with fixed seeds."""
    logits = logits_of(1, 12, seed=4)
    count = 8_000
    draws = [draw(seed, seed % 7, **params) for seed in range(count)]
    expected = reference_weights(logits[0], draws[0].params) * count
    found = np.bincount(sample(logits.expand(count, -1), draws), minlength=12)
    kept = expected > 0
    assert found[~kept].sum() == 0
    chi_square = ((found[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    bounds = {3: 16.3, 4: 18.5, 5: 20.5, 6: 22.5, 7: 24.3, 8: 26.1, 9: 27.9, 10: 29.6, 11: 31.3}
    freedom = int(kept.sum()) - 1
    assert chi_square < bounds.get(freedom, 13.9)


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.0, 0.0, 1e-30, 0.1, 1.0, 7.5]), min_size=1, max_size=600),
    at=st.sampled_from([0.0, 1e-12, 0.3, 0.5, 0.999999, 1.0 - 2**-53]),
)
def test_the_inverse_never_gives_a_token_without_weight(weights: list[float], at: float) -> None:
    if not any(weights):
        return
    row = torch.tensor([weights], dtype=torch.float32)
    token = int(inverse_cdf(row, torch.tensor([at], dtype=torch.float64)))
    assert row[0, token] > 0
    ends = row[0].double().cumsum(0)
    total = float(ends[-1])
    assert float(ends[token]) >= at * total * (1 - 1e-12)
    assert (float(ends[token - 1]) if token else 0.0) <= at * total * (1 + 1e-12)


# -- penalties -----------------------------------------------------------------------------------------------------


def test_penalties_do_what_their_names_say() -> None:
    logits = torch.tensor([1.0, -1.0, 2.0, 3.0])
    adjust_(
        logits,
        draw(repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25, prompt_ids=(0, 1), counts={2: 3}),
    )
    assert logits.tolist() == [0.5, -2.0, 1.0 - 1.5 - 0.25, 3.0]


def test_bias_is_added_and_banned_ids_never_come() -> None:
    logits = torch.zeros(4)
    adjust_(logits, draw(logit_bias=((1, 2.5), (1, 0.5)), banned=(0, 3)))
    assert logits.tolist() == [-math.inf, 3.0, 0.0, -math.inf]


# -- health and logprobs -------------------------------------------------------------------------------------------


def test_only_rows_with_nan_or_infinity_are_not_finite() -> None:
    logits = torch.zeros((5, 8))
    logits[1, 3] = math.nan
    logits[2, 0] = math.inf
    logits[3, 7] = -math.inf
    logits[4, :] = 3e38  # the sum overflows, no number does
    assert finite_rows(logits) == [True, False, False, False, True]


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = logits_of(3, 30)
    expected = logits.double().log_softmax(-1)
    rows = token_logprobs(logits, [4, 7, 29], top=3)
    for row, found in enumerate(rows):
        assert found.logprob == pytest.approx(float(expected[row, found.token_id]), abs=1e-5)
        best = expected[row].topk(3)
        assert [t for t, _ in found.top] == best.indices.tolist()
        assert [p for _, p in found.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert pick_logprobs(logits, [0, 0, 2], [4, 5, 29]) == pytest.approx(
        [float(expected[0, 4]), float(expected[0, 5]), float(expected[2, 29])], abs=1e-5
    )
    assert pick_logprobs(logits, [], []) == []


def test_the_margin_tells_how_close_a_choice_was() -> None:
    logits = torch.tensor([0.0, 1.0, 1.25])
    assert draw_margin(logits, draw(temperature=0.0)) == pytest.approx(0.25)
    u = uniform(9, 0)
    even = torch.zeros(4)
    assert draw_margin(even, draw(9)) == pytest.approx(min(u % 0.25, 0.25 - u % 0.25))


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-38, 1e-7])
def test_a_temperature_that_logits_cannot_be_divided_by_is_greedy(temperature: float) -> None:
    logits = torch.tensor([[1.0, 50.0, -3.0]])
    assert sample(logits, [draw(temperature=temperature)]) == [1]


@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 0.0, 0.009])
def test_a_penalty_that_makes_logits_no_numbers_is_refused(penalty: float) -> None:
    with pytest.raises(InvalidOption, match="repetition_penalty"):
        SamplingParams(repetition_penalty=penalty)
