"""Sampling on a device gives what it gives on the host, and its buffers are not used before they are free."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tests.kernels.gpu.interpreter  # noqa: F401 # makes it faster
from palmette.runtime.device_ops import DeviceOps, Uploads
from palmette.runtime.later import Now
from palmette.runtime.logit_ops import LogitOps, TorchOps
from palmette.runtime.sampler import Draw, draw_margin
from palmette.types import SamplingParams

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCAB = 260


def logits_of(rows: int, seed: int = 0) -> Tensor:
    return (torch.randn((rows, VOCAB), generator=torch.Generator().manual_seed(seed)) * 3).to(DEVICE)


def mask_of(ids: Sequence[int]) -> Any:
    """As short as its last id allows."""
    bits = np.zeros((max(ids) // 32 + 1) * 32, np.uint8)
    bits[list(ids)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


def random_draw(rng: random.Random, seed: int) -> Draw:
    """Any parameters; ids of counts, prompt, bias, ban and mask overlap."""
    mask = rng.choice([None, None, [rng.randrange(VOCAB)], rng.sample(range(VOCAB), 90)])
    few = [rng.randrange(40) for _ in range(6)]
    params = SamplingParams(
        temperature=rng.choice([0.0, 0.5, 1.0, 3.0]),
        top_k=rng.choice([-1, -1, 1, 5, 60, 10**12]),
        top_p=rng.choice([1.0, 0.9, 0.3]),
        min_p=rng.choice([0.0, 0.0, 0.05]),
        repetition_penalty=rng.choice([1.0, 1.3, 0.7]),
        frequency_penalty=rng.choice([0.0, 0.5]),
        presence_penalty=rng.choice([0.0, -0.4]),
        logit_bias=rng.choice([(), ((few[0], 2.0), (few[1], -3.0), (few[0], 0.5), (259, 1.0))]),
    )
    return Draw(
        params,
        seed,
        index=rng.randrange(9),
        counts=rng.choice([None, {few[2]: 2, few[3]: 1, few[0]: 5}]),
        prompt_ids=rng.choice([(), (few[0], few[4], few[4], 258)]),
        banned=rng.choice([(), (few[5], 200)]) if mask is None else (),
        mask=None if mask is None else mask_of(mask),
    )


@pytest.mark.parametrize("seed", range(3))
def test_it_draws_what_torch_draws(seed: int) -> None:
    rng = random.Random(seed)
    draws = [random_draw(rng, i) for i in range(8)]
    logits = logits_of(len(draws), seed)
    before = logits.clone()
    found, wanted = DeviceOps(DEVICE).sample(logits, draws).get(), TorchOps().sample(logits.cpu(), draws).get()
    differing = [row for row, token in enumerate(found) if token != wanted[row]]
    assert all(draw_margin(logits[row].cpu(), draws[row]) < 1e-5 for row in differing), differing
    assert len(differing) <= 1
    assert torch.equal(logits, before)


def test_every_adjustment_alone_is_the_samplers() -> None:
    """Greedy draws that a missing penalty, bias, ban or mask would change."""
    row = torch.zeros(VOCAB)
    row[[10, 11, 12, 13]] = torch.tensor([5.0, 4.5, 4.0, 3.9])

    def greedy(**options: Any) -> SamplingParams:
        return SamplingParams(temperature=0.0, **options)

    draws = [
        Draw(greedy()),
        Draw(greedy(), banned=(10, 11)),
        Draw(greedy(repetition_penalty=2.0), prompt_ids=(10, 11, 10)),
        Draw(greedy(repetition_penalty=2.0), counts={10: 1}, prompt_ids=[11]),
        Draw(greedy(repetition_penalty=2.0, logit_bias=((10, 0.1),)), prompt_ids=(10,)),
        Draw(greedy(presence_penalty=0.6), counts={10: 9}),
        Draw(greedy(frequency_penalty=0.3), counts={10: 4, 11: 2}),
        Draw(greedy(logit_bias=((13, 0.6), (13, 0.6)))),
        Draw(greedy(), mask=mask_of([3, 12])),
        Draw(greedy(), banned=(12,), mask=mask_of([3, 12, 13])),
        Draw(greedy(logit_bias=((10, 20.0),)), banned=(10,)),
    ]
    logits = row.expand(len(draws), -1).contiguous()
    wanted = TorchOps().sample(logits, draws).get()
    assert DeviceOps(DEVICE).sample(logits.to(DEVICE), draws).get() == wanted
    assert wanted == [10, 12, 12, 12, 11, 11, 12, 13, 12, 13, 11]


def test_logprobs_are_the_hosts_of_given_and_of_drawn_tokens() -> None:
    ops: LogitOps = DeviceOps(DEVICE)
    host = TorchOps()
    logits = logits_of(4)
    draws = [Draw(SamplingParams(top_p=0.8), seed, banned=(1,)) for seed in range(4)]
    drawn = ops.sample(logits, draws)
    for tokens in (drawn, drawn.get(), Now(drawn.get())):
        found = ops.token_logprobs(logits, tokens, 3).get()
        for mine, other in zip(found, host.token_logprobs(logits.cpu(), drawn.get(), 3).get(), strict=True):
            assert mine.token_id == other.token_id
            assert mine.logprob == pytest.approx(other.logprob, abs=2e-5)
            assert [t for t, _ in mine.top] == [t for t, _ in other.top]
            assert [p for _, p in mine.top] == pytest.approx([p for _, p in other.top], abs=2e-5)
    plain = ops.token_logprobs(logits, [5, 6, 7, 8], 0).get()
    assert [row.top for row in plain] == [()] * 4
    rows, ids = [0, 3, 3, 1, 0], [4, 9, 259, 0, 0]
    assert ops.pick_logprobs(logits, rows, ids).get() == pytest.approx(
        host.pick_logprobs(logits.cpu(), rows, ids).get(), abs=2e-5
    )
    assert len(ops.token_logprobs(logits[:1], [0], 20).get()[0].top) == 20


def test_finite_rows_take_minus_infinity_as_a_token_nobody_allowed() -> None:
    logits = logits_of(4)
    logits[0, 3], logits[1, 259], logits[2, 0] = -math.inf, math.nan, math.inf
    assert DeviceOps(DEVICE).finite_rows(logits).get() == [True, False, False, True]


def test_results_are_of_the_logits_as_they_were_when_asked() -> None:
    ops = DeviceOps(DEVICE)
    logits = logits_of(2)
    mask = mask_of([7, 9])
    draws = [Draw(SamplingParams(temperature=0.0), mask=mask), Draw(SamplingParams(temperature=0.0))]
    wanted = TorchOps().sample(logits.cpu(), draws).get()
    tokens = ops.sample(logits, draws)
    finite, picked = ops.finite_rows(logits), ops.pick_logprobs(logits, [1], [3])
    logprob = float(logits[1].double().log_softmax(-1)[3])
    logits.fill_(math.nan)  # as the next step's graph does, and the masks' owner
    mask.fill(0)
    assert tokens.get() == wanted
    assert finite.get() == [True, True]
    assert picked.get() == pytest.approx([logprob], abs=2e-5)


def test_nothing_asked_is_nothing_done() -> None:
    ops, none = DeviceOps(DEVICE), torch.empty((0, VOCAB), device=DEVICE)
    assert ops.finite_rows(none).get() == []
    assert ops.sample(none, []).get() == []
    assert ops.token_logprobs(none, [], 3).get() == []
    assert ops.pick_logprobs(logits_of(1), [], []).get() == []


def test_a_prompt_is_read_once_while_it_is_remembered() -> None:
    class Prompt(Sequence[int]):
        reads = 0

        def __len__(self) -> int:
            return 3

        def __getitem__(self, at: Any) -> Any:
            type(self).reads += at == 0
            return (4, 4, 9)[at]

    prompt = Prompt()
    draw = Draw(SamplingParams(temperature=0.0, repetition_penalty=5.0), prompt_ids=prompt)
    logits = torch.zeros((1, VOCAB), device=DEVICE)
    logits[0, [4, 9, 11]] = torch.tensor([3.0, 2.0, 1.0], device=DEVICE)
    ops = DeviceOps(DEVICE)
    assert [ops.sample(logits, [draw]).get() for _ in range(2)] == [[11], [11]]
    assert Prompt.reads == 1


def test_warming_up_leaves_no_trace() -> None:
    ops, logits = DeviceOps(DEVICE), logits_of(2)
    before = logits.clone()
    ops.warm_up(logits)
    assert torch.equal(logits, before)


class FakeMark:
    """An event that tells when somebody waits for it."""

    def __init__(self, log: list[str], name: str) -> None:
        self._log, self._name = log, name

    def record(self) -> None:
        self._log.append(f"record {self._name}")

    def query(self) -> bool:
        return False  # a device that is far behind

    def synchronize(self) -> None:
        self._log.append(f"wait {self._name}")


def test_a_buffer_waits_for_the_device_before_it_is_filled_again() -> None:
    log: list[str] = []
    names = iter("abcdefgh")
    uploads = Uploads(DEVICE, lambda: FakeMark(log, next(names)), pinned=False, ring=2, most=2)
    for value in range(5):
        block = uploads.block((np.float64, (1,)), (np.int32, (3,)), (np.float32, (2, 2)))
        block.host[0][:], block.host[1][:], block.host[2][:] = 0.5, value, 1.5
        first, second, third = block.send()
        assert first.tolist() == [0.5]
        assert second.tolist() == [value] * 3
        assert third.tolist() == [[1.5, 1.5]] * 2
        assert second.data_ptr() % 16 == third.data_ptr() % 16 == 0
    assert log == ["record a", "record b", "wait a", "record c", "wait b", "record d", "wait c", "record e"]


def test_many_uploads_in_a_step_take_more_buffers_and_wait_for_nothing() -> None:
    log: list[str] = []
    uploads = Uploads(DEVICE, lambda: FakeMark(log, "x"), pinned=False, ring=2, most=6)
    sent = []
    for value in range(6):
        block = uploads.block((np.int32, (3,)))
        block.host[0][:] = value
        sent += block.send()
    assert [part.tolist() for part in sent] == [[value] * 3 for value in range(6)]
    assert log == ["record x"] * 6


def test_a_result_waits_for_its_copy_and_only_when_asked() -> None:
    log: list[str] = []
    names = iter("abcdefgh")
    ops = DeviceOps(DEVICE, new_mark=lambda: FakeMark(log, next(names)))
    later = ops.sample(logits_of(1), [Draw(SamplingParams(temperature=0.0))])
    assert log == ["record a", "record b"]  # up, down
    later.get()
    later.get()
    assert log == ["record a", "record b", "wait b"]
