"""Totals over engines and tokens a second, with a clock of the test's own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from palmette.runtime.stats import Meter, Stats, Totals

NOTHING = Stats(
    running=0, waiting=0, kv_total=100, kv_free=100, kv_evictable=0, prompt_tokens=0, computed_prompt_tokens=0,
    cached_prompt_tokens=0, recomputed_tokens=0, scored_tokens=0, sampled_tokens=0, forced_tokens=0, steps=0,
    retractions=0, finished=0,
)  # fmt: skip


def test_a_rate_looks_back_one_window() -> None:
    meter = Meter(window=10.0)
    for second in range(21):
        tokens = 100 * second if second <= 10 else 1000 + 7 * (second - 10)  # fast, then slow
        meter.take(float(second), replace(NOTHING, sampled_tokens=tokens, prompt_tokens=2 * tokens), 0)
    assert meter.generated_rate == pytest.approx(7.0)
    assert meter.prompt_rate == pytest.approx(14.0)


def test_forced_tokens_are_generated_tokens() -> None:
    meter = Meter()
    meter.take(0.0, NOTHING, 0)
    meter.take(2.0, replace(NOTHING, sampled_tokens=3, forced_tokens=5), 0)
    assert meter.totals.generated_tokens == 8
    assert meter.generated_rate == pytest.approx(4.0)


def test_nothing_was_measured_yet() -> None:
    meter = Meter()
    assert meter.generated_rate == 0.0
    meter.take(1.0, replace(NOTHING, sampled_tokens=5), 0)
    assert meter.generated_rate == 0.0, "one sample is no rate"
    meter.take(1.0, replace(NOTHING, sampled_tokens=6), 0)
    assert meter.generated_rate == 0.0, "nor are two of one moment"


def test_samples_that_are_rare_tell_the_rate_between_them() -> None:
    meter = Meter(window=10.0)
    meter.take(0.0, NOTHING, 0)
    meter.take(60.0, replace(NOTHING, sampled_tokens=120), 0)
    assert meter.generated_rate == pytest.approx(2.0)


def test_totals_never_fall_when_an_engine_is_replaced() -> None:
    meter = Meter()
    meter.take(0.0, replace(NOTHING, sampled_tokens=50, retractions=2), 0)
    meter.take(1.0, None, 0)  # it died
    assert meter.totals == Totals(sampled_tokens=50, retractions=2)
    meter.take(2.0, None, 1)
    meter.take(3.0, NOTHING, 1)
    assert meter.totals == Totals(sampled_tokens=50, retractions=2)
    meter.take(4.0, replace(NOTHING, sampled_tokens=70), 1)  # more than the first one had
    assert meter.totals == Totals(sampled_tokens=120, retractions=2)
    assert meter.generated_rate == pytest.approx(70 / 4)


def test_the_memory_of_a_meter_is_bounded() -> None:
    meter = Meter(window=1.0)
    for moment in range(10_000):
        meter.take(moment / 100, NOTHING, 0)
    assert len(meter._samples) <= 102
