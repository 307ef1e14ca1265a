"""Logprobs, the best tokens and finite rows, under Triton, against torch in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from palmette.kernels.gpu.logprobs import pick, row_norms, top
from tests.kernels.gpu.close import DEVICE, poisoned_empty


def logits_of(rows: int, vocab: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn((rows, vocab), generator=torch.Generator().manual_seed(vocab)) * 4).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "vocab"), [(1, 50), (4, 1000), (3, 4099)])
def test_logprobs_are_log_softmax(rows: int, vocab: int, dtype: torch.dtype) -> None:
    logits = logits_of(rows, vocab, dtype)
    expected = logits.double().log_softmax(-1)
    at = torch.arange(9, device=DEVICE, dtype=torch.int32) % rows
    ids = (torch.arange(9, device=DEVICE, dtype=torch.int32) * 7919) % vocab
    with poisoned_empty():
        found = row_norms(logits)
        picked = pick(logits, found.norms, at, ids)
        own = pick(logits, found.norms, None, ids[:rows])
    torch.testing.assert_close(picked.double(), expected[at.long(), ids.long()], rtol=1e-6, atol=3e-6)
    torch.testing.assert_close(own.double(), expected.gather(-1, ids[:rows, None].long())[:, 0], rtol=1e-6, atol=3e-6)
    assert found.finite.tolist() == [1] * rows


@pytest.mark.parametrize(("vocab", "n"), [(50, 50), (260, 3), (4099, 20)])
def test_the_best_come_first_and_equals_by_id(vocab: int, n: int) -> None:
    logits = logits_of(3, vocab)
    logits[1] = (logits[1] / 4).round()  # few values, many of each; zeros of both signs
    logits[2, vocab // 2 :] = -math.inf
    with poisoned_empty():
        values, ids = top(logits, row_norms(logits).norms, n)
    ordered = logits.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(ids.long(), ordered.indices[:, :n])
    torch.testing.assert_close(
        values.double(), logits.double().log_softmax(-1).gather(-1, ids.long()), rtol=1e-6, atol=3e-6
    )


def test_a_bad_row_is_told_and_harms_no_other() -> None:
    logits = logits_of(5, 300)
    logits[0, 299], logits[1, 0], logits[2, 5] = math.nan, math.inf, -math.inf
    logits[3] = -math.inf
    found = row_norms(logits)
    assert found.finite.tolist() == [0, 0, 1, 1, 1]
    assert float(found.norms[4]) == float(row_norms(logits[4:]).norms[0])
    assert not bool(pick(logits, found.norms, None, torch.zeros(5, dtype=torch.int32, device=DEVICE)).isnan().any())


def test_large_numbers_do_not_overflow() -> None:
    logits = torch.full((1, 70), 3e38, device=DEVICE)
    found = row_norms(logits)
    assert found.finite.tolist() == [1]
    assert float(found.norms[0]) == pytest.approx(3e38)


def test_no_rows_and_no_pairs_are_no_launch() -> None:
    none = torch.empty(0, 50, device=DEVICE)
    norms = row_norms(none).norms
    assert norms.shape == (0,)
    assert top(none, norms, 3)[1].shape == (0, 3)
    assert pick(none, norms, None, torch.empty(0, dtype=torch.int32, device=DEVICE)).shape == (0,)
