"""Executing a plan: partial results merge to the whole, whatever the cuts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from palmette.kernels.attention import paged_attention
from palmette.runtime.attention_plan import PlanLimits, PlanRow, make_attention_plan
from tests.runtime.naive import naive_attention


def attend(
    limits: PlanLimits, *, dtype: torch.dtype = torch.float32, scale_up: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A 70-token extend over 60 cached tokens, and what it should give."""
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn((200, 2, 16), generator=generator) for _ in range(2))
    q = torch.randn((70, 6, 16), generator=generator) * scale_up
    slots = torch.randperm(199, generator=generator)[:130].int().numpy()
    rows = [PlanRow(0, 60, slots, np.arange(60, 130))]
    plan = make_attention_plan(rows, num_heads=6, num_kv_heads=2, pad_slot=199, limits=limits)
    got = paged_attention(q.to(dtype), keys.to(dtype), values.to(dtype), plan, scale=0.25)
    visible = [slots[: 61 + t].tolist() for t in range(70)]
    return got, naive_attention(q.to(dtype), keys.to(dtype), values.to(dtype), visible, scale=0.25)


@pytest.mark.parametrize(("chunk", "blocks"), list(itertools.product([1, 7, 64], [1, 4])))
def test_the_result_does_not_depend_on_the_cuts(chunk: int, blocks: int) -> None:
    got, wanted = attend(PlanLimits(chunk=chunk, block=chunk * blocks))
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=2e-6)


def test_merging_survives_scores_that_overflow_an_exponential() -> None:
    got, wanted = attend(PlanLimits(chunk=8, block=8), scale_up=500.0)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)


def test_half_precision_goes_in_and_out_and_is_summed_in_float32() -> None:
    got, wanted = attend(PlanLimits(chunk=8, block=8), dtype=torch.bfloat16)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), wanted, rtol=8e-3, atol=8e-3)


def test_a_request_whose_values_are_not_finite_spoils_no_other() -> None:
    keys, values = torch.randn(20, 1, 8), torch.randn(20, 1, 8)
    values[0:5] = float("nan")
    rows = [
        PlanRow(0, 4, np.arange(5, dtype=np.int32), np.array([4])),
        PlanRow(1, 2, np.arange(5, 8, dtype=np.int32), np.array([2])),
    ]
    plan = make_attention_plan(rows, num_heads=1, num_kv_heads=1, pad_slot=19)
    values[19] = 0.0
    got = paged_attention(torch.randn(2, 1, 8), keys, values, plan, scale=1.0)
    assert got[0].isnan().all()
    assert got[1].isfinite().all()
