"""A model in several processes computes the bits of one process that adds the same parts in the same order, and the
tokens of the model in one piece but where two tokens are nearly equal."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from palmette.runtime.drawn import DRAWN
from palmette.runtime.later import Now
from palmette.runtime.parallel.in_one import InOneRunner
from palmette.runtime.parallel.runner import ParallelRunner
from palmette.runtime.parallel.start import load_parallel
from palmette.runtime.parallel.team import Team
from palmette.runtime.runner import Runner
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow, TreeRow
from palmette.types import (
    ChoiceTrie,
    EmbedRequest,
    GenerateRequest,
    LogprobParams,
    Request,
    SamplingParams,
    ScoreEvent,
    ScoreRequest,
)
from tests.conftest import Figures
from tests.runtime.driving import Run, drive, generate
from tests.runtime.parallel.split_models import (
    NUM_ROWS,
    NUM_SLOTS,
    engine_on,
    random_model,
    shapes,
    whole_runner,
)

CASES = [(shape, 2) for shape in shapes()] + [("no groups", 4), ("8 over 4 heads", 4)]
NEAR_TIE = 2e-4  # logprobs closer than that may change places; splits move logits by 1e-5
MAX_NEAR_TIES = 2
TOLERANCE = 5e-5
Forward = Callable[[ScheduledBatch], Tensor]


@contextmanager
def in_one(shape: str, size: int, dtype: str = "float32") -> Iterator[InOneRunner]:
    runner = InOneRunner(random_model(shape, dtype), size, num_slots=NUM_SLOTS, max_running_rows=NUM_ROWS)
    try:
        yield runner
    finally:
        runner.close()


def in_processes(team: Team, shape: str, dtype: str = "float32") -> ParallelRunner:
    model = load_parallel(random_model(shape, dtype), team)
    return ParallelRunner(model, num_slots=NUM_SLOTS, max_running_rows=NUM_ROWS)


def tokens(num: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(random.Random(seed).randrange(256) for _ in range(num))


def steps() -> Iterator[ScheduledBatch]:
    """A prefill, chunks, a mixed batch with siblings that share a prefix, decodes, a trie, a reused row."""
    slots = random.Random(5).sample(range(NUM_SLOTS), NUM_SLOTS)

    def take(num: int) -> tuple[int, ...]:
        return tuple(slots.pop() for _ in range(num))

    prompt = tokens(120)
    own = take(120)
    yield ScheduledBatch((ScheduledRow(0, prompt, 0, own, logits_from=0),))
    chunks, at = tokens(150, 1), 0
    for num in (70, 1, 64, 15):
        yield ScheduledBatch((ScheduledRow(1, chunks[at : at + num], at, take(num), logits_from=num - 1),))
        at += num
    siblings = [
        ScheduledRow(2 + i, tokens(n, n), 120, take(n), prefix=(0, own), logits_from=0)
        for i, n in enumerate((1, 5, 40))
    ]
    yield ScheduledBatch((*siblings, ScheduledRow(0, tokens(1, 9), 120, take(1), logits_from=0)))
    for i in range(3):
        rows = [
            ScheduledRow(row, tokens(1, row), end + i, take(1), logits_from=0)
            for row, end in ((0, 121), (1, 150), (3, 125))
        ]
        yield ScheduledBatch(tuple(rows))
    parents = (-1, 0, 0, 1, 3, -1, 5, 2)
    yield ScheduledBatch(
        (ScheduledRow(5, tokens(5, 7), 120, take(5), prefix=(0, own), logits_from=0, tree=TreeRow(120, parents, 0)),)
    )
    yield ScheduledBatch((ScheduledRow(5, tokens(3, 8), 125, take(3), logits_from=1, tree=TreeRow(120, parents, 5)),))
    yield ScheduledBatch((ScheduledRow(4, tokens(30, 3), 0, take(30)),))


def logits(runner: Runner) -> list[Tensor]:
    """Of every step, and one embedding."""
    found = [runner.forward(batch).clone() for batch in steps()]
    return [*found, runner.embed(tokens(40, 4), tuple(range(NUM_SLOTS - 40, NUM_SLOTS)), 6)]


def workload() -> list[Request]:
    """Requests of every kind, with a prefix that siblings share."""
    shared = tokens(60, 11)
    trie = ChoiceTrie((65, 66, 67, 68, 69), (-1, 0, 0, -1, 3))
    sampled = SamplingParams(max_new_tokens=12, temperature=0.8, top_p=0.9, ignore_eos=True)
    return [
        *(generate(f"greedy {i}", shared + tokens(10 + i, i), 16) for i in range(4)),
        *(GenerateRequest(f"sampled {i}", shared + tokens(3, 20 + i), sampled, seed=i) for i in range(3)),
        generate("logprobs", tokens(50, 12), 8, logprobs=LogprobParams(start_len=3, top=3)),
        generate("long", tokens(300, 13), 4),
        ScoreRequest("choices", shared, trie, unconditional=True),
        EmbedRequest("embedding", tokens(33, 14)),
    ]


def answers(runner: Runner, shape: str, requests: Sequence[Request]) -> Run:
    return drive(engine_on(runner, shape), requests)


# -- the same bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "size"), CASES)
def test_processes_compute_the_bits_of_one_process_that_splits(
    shape: str, size: int, team: Callable[[int], Team]
) -> None:
    found = logits(in_processes(team(size), shape))
    with in_one(shape, size) as oracle:
        wanted = logits(oracle)
    whole = logits(whole_runner(shape))
    assert len(found) == 13
    for step, (a, b, c) in enumerate(zip(found, wanted, whole, strict=True)):
        assert torch.equal(a, b), f"step {step}"
        torch.testing.assert_close(a, c, rtol=0, atol=TOLERANCE)
    assert any(not torch.equal(a, c) for a, c in zip(found, whole, strict=True)), "nothing was split"


def test_bits_agree_in_bfloat16_too(team: Callable[[int], Team]) -> None:
    found = logits(in_processes(team(2), "biases", "bfloat16"))
    with in_one("biases", 2, "bfloat16") as oracle:
        wanted = logits(oracle)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    exact = logits(whole_runner("biases"))
    errors = [(a - b).abs().max().item() for a, b in zip(found, exact, strict=True) if a.numel()]
    plain = logits(whole_runner("biases", "bfloat16"))
    plain_errors = [(a - b).abs().max().item() for a, b in zip(plain, exact, strict=True) if a.numel()]
    assert max(errors) <= 1.5 * max(plain_errors), "a split model is not less exact than a whole one"


@pytest.mark.parametrize(("shape", "size"), [("gemma3", 2), ("qwen2", 2), ("8 over 4 heads", 4)])
def test_an_engine_tells_the_same_events(shape: str, size: int, team: Callable[[int], Team]) -> None:
    found = answers(in_processes(team(size), shape), shape, workload())
    with in_one(shape, size) as oracle:
        wanted = answers(oracle, shape, workload())
    assert found.events == wanted.events
    assert found.steps == wanted.steps
    score = found.last("choices")
    assert isinstance(score, ScoreEvent)
    assert score.error is None
    assert len(score.logprobs) == 5


def test_the_overlapped_loop_hands_drawn_tokens_to_all_ranks(team: Callable[[int], Team]) -> None:
    requests = [request for request in workload() if isinstance(request, GenerateRequest)]
    found = drive(engine_on(in_processes(team(2), "qwen3"), "qwen3", overlap="on"), requests)
    with in_one("qwen3", 2) as oracle:
        wanted = drive(engine_on(oracle, "qwen3"), requests)
        overlapped = drive(engine_on(oracle, "qwen3", overlap="on"), requests)
    for request in requests:
        assert found.sampled(request.request_id) == overlapped.sampled(request.request_id)
        assert found.sampled(request.request_id) == wanted.sampled(request.request_id)
        assert found.finish(request.request_id).reason == wanted.finish(request.request_id).reason


def test_a_team_serves_one_model_after_the_other(team: Callable[[int], Team]) -> None:
    batch = next(steps())
    first = in_processes(team(2), "llama").forward(batch)
    other = in_processes(team(2), "qwen3").forward(batch)
    again = in_processes(team(2), "llama").forward(batch)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="on a GPU the kernels are compiled for it")
def test_tritons_kernels_compute_split_models_too(team: Callable[[int], Team]) -> None:
    """Under its interpreter, with the runner that queues steps; ranks differ from the whole model as torch's do."""
    model = load_parallel(random_model("qwen3", gpu_kernels="triton"), team(2))
    runner = ParallelRunner(model, num_slots=64, max_running_rows=2)
    assert runner.is_asynchronous
    prompt, whole = tokens(9), whole_runner("qwen3")
    prefill = ScheduledBatch((ScheduledRow(1, prompt, 0, tuple(range(20, 29)), logits_from=8),))
    found, wanted = runner.forward(prefill), whole.forward(prefill)
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)
    drawn = int(wanted.argmax())
    runner.keep_drawn((1,), Now([drawn]))
    found = runner.forward(ScheduledBatch((ScheduledRow(1, (DRAWN,), 9, (3,), logits_from=0),)))
    wanted = whole.forward(ScheduledBatch((ScheduledRow(1, (drawn,), 9, (3,), logits_from=0),)))
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


# -- the whole model's tokens --------------------------------------------------------------------------------------


def test_greedy_tokens_are_the_whole_models_but_for_near_ties(team: Callable[[int], Team], figures: Figures) -> None:
    num_tokens = near_ties = 0
    for shape, size in CASES:
        requests = [generate(f"{i}", tokens(5 + 17 * i, 30 + i), 24, logprobs=LogprobParams(top=2)) for i in range(5)]
        found = answers(in_processes(team(size), shape), shape, requests)
        wanted = answers(whole_runner(shape), shape, requests)
        for request in requests:
            mine, theirs = found.sampled(request.request_id), wanted.sampled(request.request_id)
            assert len(mine) == len(theirs) == 24
            same = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b), 24)
            num_tokens += same
            if same < 24:  # behind it the texts are different ones
                (_, best), (_, second) = wanted.logprobs(request.request_id)[same].top
                assert best - second < NEAR_TIE, f"{shape}: token {same} of request {request.request_id}"
                near_ties += 1
    figures(tokens=num_tokens, near_ties=near_ties)
    assert near_ties <= MAX_NEAR_TIES
    assert num_tokens >= len(CASES) * 5 * 24 - 24 * MAX_NEAR_TIES


# -- tokens that stay with the ranks -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["processes", "in one"])
def test_a_token_drawn_on_rank_0_is_known_to_all(kind: str, team: Callable[[int], Team]) -> None:
    prompt, drawn = tokens(20), (77, 201)
    prefill = ScheduledBatch(tuple(ScheduledRow(r, prompt, 0, tuple(range(40 * r, 40 * r + 20))) for r in (0, 3)))

    def second(ids: tuple[int, int]) -> ScheduledBatch:
        rows = zip((0, 3), ids, strict=True)
        return ScheduledBatch(tuple(ScheduledRow(r, (t,), 20, (40 * r + 20,), logits_from=0) for r, t in rows))

    wanted_runner = whole_runner("llama")
    wanted_runner.forward(prefill)
    wanted = wanted_runner.forward(second(drawn))
    with in_one("llama", 2) as oracle:
        runner: ParallelRunner | InOneRunner = oracle if kind == "in one" else in_processes(team(2), "llama")
        runner.forward(prefill)
        runner.keep_drawn((), Now([]))
        runner.keep_drawn((3, 0), Now([drawn[1], drawn[0]]))
        found = runner.forward(second((DRAWN, DRAWN)))
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)
