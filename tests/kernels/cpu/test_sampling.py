"""The core's sampler against torch's, which is its definition: the same token wherever rounding does not decide."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from palmette.runtime.logit_ops import TorchOps
from palmette.runtime.models.tiny import RandomSource, tiny_config
from palmette.runtime.sampler import Draw, adjust_, draw_margin
from palmette.types import SamplingParams
from tests.kernels.cpu.models import Kept, compile_config, core, run

SETS = core().instruction_sets
TORCH = TorchOps()


@cache
def runner(instruction_set: str, vocab: int, num_threads: int = 2) -> Kept:
    model = compile_config(tiny_config(vocab_size=vocab), RandomSource(0), instruction_set)
    return run(model, num_slots=8, num_threads=num_threads)


def random_logits(rows: int, vocab: int, seed: int) -> Tensor:
    """Of several sharpnesses, with ties."""
    generator = torch.Generator().manual_seed(seed)
    logits = (
        torch.randn((rows, vocab), generator=generator)
        * torch.tensor([0.3, 1.0, 3.0, 10.0])[torch.arange(rows) % 4, None]
    )
    logits[::5] = logits[::5].round()
    return logits


def random_draw(rng: random.Random, vocab: int) -> Draw:
    params = SamplingParams(
        temperature=rng.choice([0.0, 0.2, 0.7, 1.0, 3.0]),
        top_k=rng.choice([-1, -1, 1, 3, 50, 10**6]),
        top_p=rng.choice([1.0, 1.0, 0.05, 0.7, 0.95, 0.999]),
        min_p=rng.choice([0.0, 0.0, 0.05, 0.6]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.5]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
        logit_bias=((rng.randrange(vocab), 2.5),) if rng.random() < 0.2 else (),
    )
    mask: NDArray[np.uint32] | None = None
    if rng.random() < 0.5:
        words = rng.choice([-(-vocab // 32), max(1, vocab // 64)])  # whole, or shorter: what is behind may not come
        mask = np.array([rng.getrandbits(32) & rng.choice([0, 1 << 7, 0xFFFFFFFF]) for _ in range(words)], np.uint32)
        at = rng.randrange(min(vocab, 32 * words))
        mask[at // 32] |= np.uint32(1 << at % 32)
        over = 32 * words - vocab
        if over > 0:
            mask[-1] &= np.uint32(0xFFFFFFFF >> over)
    counts = {rng.randrange(vocab): rng.randint(1, 4) for _ in range(5)}
    banned = (rng.randrange(vocab),) if mask is None and rng.random() < 0.2 and vocab > 1 else ()
    return Draw(params, rng.getrandbits(64), rng.randrange(100), counts, (1 % vocab,), banned, mask)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("vocab", [1, 15, 16, 260, 1023, 5000])
def test_tokens_are_those_of_torch(vocab: int, instruction_set: str) -> None:
    rng = random.Random(vocab)
    ops, clear = runner(instruction_set, vocab).ops, 0
    for seed in range(8):
        logits = random_logits(30, vocab, seed)
        draws = [random_draw(rng, vocab) for _ in range(30)]
        before = logits.clone()
        got, wanted = ops.sample(logits, draws).get(), TORCH.sample(logits, draws).get()
        assert torch.equal(logits, before), "sampling changes logits"
        for row, (a, b, draw) in enumerate(zip(got, wanted, draws, strict=True)):
            assert a == b or (not draw.params.is_greedy and draw_margin(logits[row], draw) < 1e-5), (row, draw)
            clear += a == b
    assert clear >= 239, "ties are rare"


@pytest.mark.parametrize("instruction_set", SETS)
def test_greedy_takes_the_lowest_of_equals(instruction_set: str) -> None:
    logits = torch.zeros((4, 260))
    logits[1, [70, 259]] = 5.0
    logits[2, 259] = 1e-3
    logits[3] = -torch.inf
    logits[3, 17] = -1e30
    draws = [Draw(SamplingParams(temperature=0))] * 4
    assert runner(instruction_set, 260).ops.sample(logits, draws).get() == [0, 70, 259, 17]


@pytest.mark.parametrize("instruction_set", SETS)
def test_a_draw_does_not_depend_on_its_batch_or_the_threads(instruction_set: str) -> None:
    rng = random.Random(3)
    logits = random_logits(40, 1023, 1)
    draws = [random_draw(rng, 1023) for _ in range(40)]
    together = runner(instruction_set, 1023).ops.sample(logits, draws).get()
    for num_threads in (1, 3):
        ops = runner(instruction_set, 1023, num_threads).ops
        assert [ops.sample(logits[i : i + 1], draws[i : i + 1]).get()[0] for i in range(40)] == together


@pytest.mark.parametrize("instruction_set", SETS)
def test_draws_follow_the_distribution(instruction_set: str) -> None:
    """Chi-square of 4,000 draws over 10 cells: 27.9 is passed once in a thousand."""
    logits = torch.linspace(0, 2, 10).repeat(4000, 1)
    draws = [Draw(SamplingParams(temperature=0.8), seed=7, index=i) for i in range(4000)]
    found = np.bincount(runner(instruction_set, 10).ops.sample(logits, draws).get(), minlength=10)
    expected = torch.softmax(logits[0] / 0.8, -1).numpy() * 4000
    assert float(((found - expected) ** 2 / expected).sum()) < 27.9


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("vocab", [1, 260, 5000])
def test_logprobs_are_those_of_torch(vocab: int, instruction_set: str) -> None:
    ops = runner(instruction_set, vocab).ops
    logits = random_logits(12, vocab, 2)
    logits[4, : vocab // 2] = -torch.inf  # what a mask left out
    tokens = [vocab - 1] * 12
    for top in (0, 3):
        got, wanted = (o.token_logprobs(logits, tokens, top).get() for o in (ops, TORCH))
        for mine, theirs in zip(got, wanted, strict=True):
            assert mine.token_id == theirs.token_id
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-5)
            assert [p for _, p in mine.top] == pytest.approx([p for _, p in theirs.top], abs=1e-5)
    rows = [0, 0, 5, 11]
    picked = [0, vocab - 1, vocab // 2, 0]
    one, other = (o.pick_logprobs(logits, rows, picked).get() for o in (ops, TORCH))
    assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("vocab", [1, 16, 260, 1023])
def test_rows_that_hold_no_number_are_found_wherever_it_is(vocab: int, instruction_set: str) -> None:
    ops = runner(instruction_set, vocab).ops
    for odd in (torch.nan, torch.inf):
        logits = random_logits(vocab + 1, vocab, 4)
        logits[torch.arange(vocab), torch.arange(vocab)] = odd
        assert ops.finite_rows(logits).get() == [False] * vocab + [True]
    allowed = random_logits(3, vocab, 5)
    allowed[:, 1:] = -torch.inf
    allowed[2, 0] = torch.nan
    assert ops.finite_rows(allowed).get() == [True, True, False]


def test_adjusted_logits_are_a_copy_of_what_torch_adjusts() -> None:
    """Penalties on a row that a mask of the step already emptied."""
    logits = random_logits(1, 260, 6)
    logits[0, 20:] = -torch.inf
    draw = Draw(SamplingParams(temperature=0, repetition_penalty=2.0), counts={int(logits.argmax()): 1, 200: 2})
    adjusted = logits[0].clone()
    adjust_(adjusted, draw)
    assert runner(SETS[0], 260).ops.sample(logits, [draw]).get() == [int(adjusted.argmax())]
