"""The runner whose kernels walk a page table gives ModelRunner's logits, by definition and by Triton, in any shape."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tests.kernels.gpu.interpreter  # noqa: F401 # makes it faster
from palmette.kernels.gpu.step_kernels import TritonKernels
from palmette.kernels.step_kernels import StepKernels, TorchKernels
from palmette.runtime.drawn import DRAWN
from palmette.runtime.later import Now
from palmette.runtime.model_runner import ModelRunner
from palmette.runtime.models.config import FAMILIES
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.paged_plan import PagedLimits
from palmette.runtime.paged_runner import PagedRunner
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow, TreeRow

SIZES: dict[str, Any] = {"num_slots": 1500, "max_running_rows": 8, "context_len": 256}
SMALL = PagedLimits(cut=64, short=4, wide=32, widest=64, extend=32, key_tile=64, gather_from=24)
KERNELS: dict[str, Callable[[], StepKernels]] = {"definition": TorchKernels, "triton": TritonKernels}


def runners(family: str, kernels: str, *, graphs: bool = True) -> tuple[ModelRunner, PagedRunner]:
    decoder = tiny_model(1, family).decoder
    paged = Decoder(decoder.config, decoder.weights, KERNELS[kernels]())
    return ModelRunner(decoder, **SIZES), PagedRunner(paged, **SIZES, graphs=graphs, limits=SMALL)


class History:
    """Rows that grow step by step, some behind a prefix in common; and tries behind them."""

    def __init__(self, seed: int, trunk: int = 140) -> None:
        self.rng = random.Random(seed)
        self.free = self.rng.sample(range(SIZES["num_slots"]), SIZES["num_slots"])
        self.trunk = [self.free.pop() for _ in range(trunk)]
        self.lengths: dict[int, int] = {}

    def first(self) -> ScheduledBatch:
        """The prefix in common, and three rows behind it in the same step."""
        trunk = len(self.trunk)
        rows = [ScheduledRow(0, self.ids(trunk), 0, tuple(self.trunk), logits_from=trunk - 1)]
        for row in (1, 2, 3):
            rows.append(self.row(row, trunk, self.rng.choice([1, 3, 9]), prefix=(0, self.trunk)))
            self.lengths[row] = trunk + len(rows[-1].token_ids)
        self.lengths[0] = trunk
        return ScheduledBatch(tuple(rows))

    def step(self) -> ScheduledBatch:
        rows: list[ScheduledRow] = []
        for row, length in list(self.lengths.items()):
            if length > 200 or self.rng.random() < 0.2:
                continue
            rows.append(self.row(row, length, self.rng.choice([1, 1, 1, 4, 30])))
            self.lengths[row] += len(rows[-1].token_ids)
        if self.rng.random() < 0.4:
            parents = tuple(self.rng.choice([-1, *range(i)]) for i in range(self.rng.choice([3, 9])))
            slots = tuple(self.free.pop() for _ in parents)
            trunk = len(self.trunk)
            tree = TreeRow(trunk, parents, 0)
            rows.append(ScheduledRow(7, self.ids(len(parents)), trunk, slots, (0, self.trunk), 0, tree))
        return ScheduledBatch(tuple(rows or [self.row(6, 0, 2)]))

    def decodes(self) -> ScheduledBatch:
        rows = tuple(self.row(row, length, 1) for row, length in self.lengths.items())
        self.lengths = {row: length + 1 for row, length in self.lengths.items()}
        return ScheduledBatch(rows)

    def row(self, row: int, start: int, num: int, *, prefix: tuple[int, list[int]] | None = None) -> ScheduledRow:
        slots = tuple(self.free.pop() for _ in range(num))
        return ScheduledRow(row, self.ids(num), start, slots, prefix, self.rng.randrange(num))

    def ids(self, num: int) -> tuple[int, ...]:
        return tuple(self.rng.randrange(256) for _ in range(num))


@pytest.mark.parametrize("family", FAMILIES)
def test_its_logits_are_those_of_the_plain_runner(family: str) -> None:
    plain, paged = runners(family, "definition")
    history = History(FAMILIES.index(family))
    agree(plain, paged, [history.first(), *(history.step() for _ in range(2)), *(history.decodes() for _ in range(2))])


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "mixtral"])
def test_so_are_those_of_triton(family: str) -> None:
    """With window and soft cap, q/k norms, experts; the interpreter is slow, so prompts are short."""
    plain, paged = runners(family, "triton")
    history = History(1, trunk=33)
    agree(plain, paged, [history.first(), history.step(), history.decodes()])


def agree(plain: ModelRunner, paged: PagedRunner, batches: list[ScheduledBatch]) -> None:
    for batch in batches:
        wanted = plain.forward(batch)
        got = paged.forward(batch)
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "qwen3"])
def test_many_histories_agree_by_definition(family: str) -> None:
    for seed in range(8):
        plain, paged = runners(family, "definition", graphs=bool(seed % 2))
        history = History(seed)
        agree(plain, paged, [history.first(), *(history.step() for _ in range(5))])


def test_padding_to_a_bucket_changes_no_logit_and_writes_to_nobody() -> None:
    _, padded = runners("llama", "definition", graphs=True)
    _, exact = runners("llama", "definition", graphs=False)
    history = History(5)
    for batch in [history.first(), *(history.decodes() for _ in range(3))]:
        torch.testing.assert_close(padded.forward(batch), exact.forward(batch), rtol=0, atol=1e-5)
    for index in range(2):
        mine, other = padded.kv_pool.layer(index), exact.kv_pool.layer(index)
        torch.testing.assert_close(mine.keys[:-1], other.keys[:-1], rtol=0, atol=1e-5)


def test_a_drawn_token_need_not_be_known_to_the_host() -> None:
    plain, paged = runners("llama", "definition")
    prompts = ScheduledBatch(
        (ScheduledRow(2, (5, 6, 7), 0, (10, 11, 12)), ScheduledRow(4, (8, 9), 0, (20, 21), logits_from=1))
    )
    plain.forward(prompts)
    paged.forward(prompts)
    paged.keep_drawn([4, 2], Now([33, 44]))
    known = ScheduledBatch(
        (ScheduledRow(2, (44,), 3, (13,), logits_from=0), ScheduledRow(4, (33,), 2, (22,), logits_from=0))
    )
    drawn = ScheduledBatch(
        (ScheduledRow(2, (DRAWN,), 3, (13,), logits_from=0), ScheduledRow(4, (DRAWN,), 2, (22,), logits_from=0))
    )
    torch.testing.assert_close(paged.forward(drawn), plain.forward(known), rtol=0, atol=1e-5)


def test_embedding_is_that_of_the_plain_runner() -> None:
    plain, paged = runners("qwen3", "definition")
    ids, slots = tuple(range(50)), tuple(range(100, 150))
    torch.testing.assert_close(paged.embed(ids, slots, 1), plain.embed(ids, slots, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_pool_of_8_bits_stays_near_the_exact_one(dtype: torch.dtype) -> None:
    decoder = tiny_model(1, "llama").decoder
    exact = PagedRunner(decoder, **SIZES)
    coded = PagedRunner(decoder, **SIZES, kv_dtype=dtype)
    history = History(9)
    for batch in [history.first(), history.decodes()]:
        wanted, got = exact.forward(batch), coded.forward(batch)
        error = (got - wanted).norm() / wanted.norm()
        assert 0 < error < (0.02 if dtype == torch.int8 else 0.06)
    assert coded.kv_pool.num_bytes < 0.5 * exact.kv_pool.num_bytes


def test_places_on_the_device_are_used_again_and_never_too_small() -> None:
    _, paged = runners("llama", "definition", graphs=False)
    slots = np.arange(200).tolist()
    for num in (1, 200, 3):
        row = ScheduledRow(0, tuple(range(num)), 0, tuple(slots[:num]), logits_from=0)
        assert paged.forward(ScheduledBatch((row,))).isfinite().all()
