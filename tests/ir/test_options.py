"""The options of a hole: how an author may write them, and how they are laid over each other."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given

from palmette.errors import InvalidOption
from palmette.ir import DEFAULTS, RUN_OPTION_NAMES, HoleOptions
from palmette.types import LogprobParams, SamplingParams
from tests.ir import graphs


@given(graphs.options, graphs.options)
def test_over_takes_from_the_base_exactly_what_is_none(mine: HoleOptions, base: HoleOptions) -> None:
    merged = mine.over(base)
    for field in fields(HoleOptions):
        own = getattr(mine, field.name)
        assert getattr(merged, field.name) == (getattr(base, field.name) if own is None else own)


def test_falsy_options_are_not_taken_for_missing() -> None:
    merged = HoleOptions.of(max_tokens=0, temperature=0, stop=[], ignore_eos=False).over(
        HoleOptions.of(max_tokens=9, temperature=1, stop="x", ignore_eos=True)
    )
    assert (merged.max_new_tokens, merged.temperature, merged.stop, merged.ignore_eos) == (0, 0, (), False)


def test_sglangs_names_and_ours_mean_the_same() -> None:
    assert HoleOptions.of(max_tokens=5, min_tokens=2) == HoleOptions.of(max_new_tokens=5, min_new_tokens=2)
    assert {"max_tokens", "max_new_tokens"} <= RUN_OPTION_NAMES


def test_mutable_arguments_are_copied() -> None:
    stop, ids, bias = ["a"], [1], {"5": 1}
    options = HoleOptions.of(stop=stop, stop_token_ids=ids, logit_bias=bias)
    stop.append("b")
    ids.append(2)
    bias["6"] = 1
    assert (options.stop, options.stop_token_ids, options.logit_bias) == (("a",), (1,), ((5, 1.0),))


def test_one_stop_string_or_token_stands_for_a_list() -> None:
    assert HoleOptions.of(stop="ab", stop_token_ids=7) == HoleOptions.of(stop=["ab"], stop_token_ids=[7])


@pytest.mark.parametrize(
    ("given_", "field"),
    [
        ({"temprature": 1}, "temprature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"max_tokens": True}, "max_new_tokens"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"n": "two"}, "n"),
        ({"seed": "x"}, "seed"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {1: 5000}}, "logit_bias[1]"),
        ({"top_logprobs_num": 21}, "top_logprobs_num"),
    ],
)
def test_an_option_out_of_range_names_itself(given_: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        HoleOptions.of(**given_)
    assert caught.value.field == field


def test_a_smaller_maximum_of_the_run_bounds_a_holes_minimum() -> None:
    params = HoleOptions(min_new_tokens=10).over(HoleOptions(max_new_tokens=4)).over(DEFAULTS).sampling_params()
    assert (params.min_new_tokens, params.max_new_tokens) == (4, 4)


def test_the_defaults_are_those_of_the_engine_with_a_length() -> None:
    assert DEFAULTS.sampling_params() == SamplingParams(max_new_tokens=128, temperature=1.0)


def test_logprobs_are_asked_for_by_any_of_their_options() -> None:
    assert DEFAULTS.logprob_params() is None
    assert HoleOptions.of(return_logprob=True).logprob_params() == LogprobParams()
    assert HoleOptions.of(top_logprobs_num=3).logprob_params() == LogprobParams(top=3)
    assert HoleOptions.of(logprob_start_len=0).logprob_params() == LogprobParams(start_len=0)
    assert HoleOptions.of(return_logprob=True, logprob_start_len=-1).logprob_params() == LogprobParams()
