"""The definition of a mixture of experts against one token at a time in float64, and against what it promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from palmette.kernels.moe import experts, moe, route


def naive(x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, *, top_k: int, normalise: bool) -> Tensor:
    rows = []
    for token, scores in zip(x.double(), logits.double(), strict=True):
        chosen = sorted(range(len(scores)), key=lambda e: (-float(scores[e]), e))[:top_k]
        weights = scores.softmax(0)[chosen]
        weights = weights / weights.sum() if normalise else weights
        total = torch.zeros_like(token)
        for expert, weight in zip(chosen, weights, strict=True):
            gate, up = (gate_up[expert].double() @ token).chunk(2)
            total += weight * (down[expert].double() @ (gate / (1 + (-gate).exp()) * up))
        rows.append(total)
    return torch.stack(rows)


def example(
    num_tokens: int, num_experts: int, hidden: int = 24, inner: int = 20, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, router, gate_up, down)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (num_tokens, hidden), (num_experts, hidden), (num_experts, 2 * inner, hidden), (num_experts, hidden, inner)
    x, router, gate_up, down = (torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for shape in shapes)
    return x * hidden**0.5, router * 2, gate_up, down


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("num_tokens", "num_experts", "top_k"), [(1, 2, 1), (7, 4, 2), (30, 9, 4), (3, 5, 5)])
def test_it_is_the_weighted_sum_of_each_tokens_experts(
    num_tokens: int, num_experts: int, top_k: int, normalise: bool
) -> None:
    x, router, gate_up, down = example(num_tokens, num_experts)
    got = experts(x, router, gate_up, down, top_k=top_k, normalise=normalise)
    wanted = naive(x, x @ router.T, gate_up, down, top_k=top_k, normalise=normalise)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)


def test_equal_logits_choose_the_lowest_ids() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0], [2.0, 1.0, 2.0, 1.0]], dtype=torch.bfloat16)
    weights, ids = route(logits, top_k=2, normalise=True)
    assert ids.tolist() == [[1, 2], [0, 1], [0, 2]]
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.full((3, 2), 0.5))


def test_weights_are_the_softmax_over_all_unless_normalised() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0]])
    weights, ids = route(logits, top_k=2, normalise=False)
    assert ids.tolist() == [[0, 2]]
    torch.testing.assert_close(weights, logits.softmax(-1)[:, [0, 2]])
    normalised, _ = route(logits, top_k=2, normalise=True)
    torch.testing.assert_close(normalised, logits[:, [0, 2]].softmax(-1))  # as Mixtral's paper has it


def test_logits_far_below_the_others_still_order_experts() -> None:
    """Their probabilities are all 0."""
    _, ids = route(torch.tensor([[0.0, -400.0, -300.0, -500.0]]), top_k=2, normalise=True)
    assert ids.tolist() == [[0, 2]]


def test_one_tokens_nan_stays_its_own() -> None:
    x, router, gate_up, down = example(6, 4)
    logits = x @ router.T
    wanted = moe(x, logits, gate_up, down, top_k=2, normalise=True)
    x[2], logits[2, 1] = float("nan"), float("nan")
    got = moe(x, logits, gate_up, down, top_k=2, normalise=True)
    assert got[2].isnan().all()
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(got[others], wanted[others])


def test_no_tokens_are_no_work() -> None:
    x, router, gate_up, down = example(0, 4)
    assert experts(x, router, gate_up, down, top_k=2, normalise=True).shape == (0, 24)
