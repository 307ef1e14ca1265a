"""The engine on the tiny model: the same tokens whatever the cache, the batch, the chunks or the memory do."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from palmette.errors import Cancelled, HoleTimeout, InvalidOption, NumericalError, PromptTooLong
from palmette.runtime.engine import EngineCore
from palmette.runtime.evaluate import draw_of
from palmette.runtime.model_runner import ModelRunner
from palmette.runtime.request import Status
from palmette.runtime.sampler import Draw, draw_margin, sample
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow
from palmette.types import (
    ChoiceTrie,
    EmbedEvent,
    EmbedRequest,
    FinishReason,
    ForkDeclared,
    GenerateRequest,
    Hints,
    LogprobParams,
    ProgramEnded,
    ScoreEvent,
    ScoreRequest,
)
from tests.runtime.driving import Run, drive, engine, generate, model, text_ids

TIE = 2e-5  # float32 rounding moves these logits and distributions by about 1e-6

PREFIX = "The quick brown fox jumps over the lazy dog, and then does so again. " * 2


@cache
def naive_logits(tokens: tuple[int, ...]) -> Tensor:
    """Logits of every token of a sequence, computed from nothing."""
    runner = ModelRunner(model().decoder, num_slots=len(tokens), max_running_rows=1)
    row = ScheduledRow(0, tokens, 0, tuple(range(len(tokens))), None, 0)
    return runner.forward(ScheduledBatch((row,)))


@cache
def golden(request: GenerateRequest) -> tuple[tuple[int, ...], int]:
    """Tokens of a request without stops by full recomputation, and how many of them no rounding can change."""
    tokens: list[int] = []
    clear: int | None = None
    counts: dict[int, int] = {}
    for index in range(request.params.max_new_tokens):
        logits = naive_logits((*request.token_ids, *tokens))[-1:]
        draw = Draw(request.params, request.seed, index, counts, request.token_ids)
        if clear is None and draw_margin(logits[0], draw) < TIE:
            clear = index
        tokens += sample(logits, [draw])
        counts[tokens[-1]] = counts.get(tokens[-1], 0) + 1
    return tuple(tokens), len(tokens) if clear is None else clear


def batch() -> list[GenerateRequest]:
    """Greedy and seeded, with penalties and filters, with and without a shared prefix."""
    return [
        generate("greedy", PREFIX + "One", 10),
        generate("greedy again", PREFIX + "Two", 10),
        generate("inside", PREFIX[:50], 10),
        generate("alone", "Something else entirely", 10),
        generate("seeded", PREFIX + "One", 10, temperature=1.0, seed=7),
        generate("sibling", PREFIX + "One", 10, temperature=1.0, seed=8),
        generate("filtered", PREFIX + "Three", 10, temperature=1.3, top_k=20, top_p=0.9, min_p=0.01, seed=9),
        generate("penalised", PREFIX, 10, repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.2),
    ]


def assert_golden(run: Run, requests: list[GenerateRequest]) -> None:
    for request in requests:
        tokens, clear = golden(request)
        assert run.sampled(request.request_id)[:clear] == tokens[:clear]
        assert clear >= len(tokens) // 2, "a test that ties cannot tell much"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"enabled": False},
        {"hints": False},
        {"chunk_size": 16},
        {"chunk_size": 64},
        {"page_size": 4},
        {"page_size": 16},
        {"page_size": 16, "chunk_size": 16, "enabled": False},
        {"policy": "fcfs"},
        {"policy": "depth_first"},
        {"policy": "random"},
        {"max_running": 1},
        {"max_running": 3, "chunk_size": 20},
        {"kv_tokens": 192, "decode_reserve": 0},
        {"kv_tokens": 256, "page_size": 16, "decode_reserve": 0},
    ],
    ids=str,
)
def test_no_option_changes_a_token(options: dict[str, Any]) -> None:
    assert_golden(drive(engine(**options), batch()), batch())


@pytest.mark.parametrize("every", [1, 2, 3, 7])
@pytest.mark.parametrize("chunk_size", [32, 512])
def test_retraction_changes_no_token(every: int, chunk_size: int) -> None:
    def retract(core: EngineCore, step: int) -> None:
        if step % every == 0:
            for job in core.scheduler.jobs():
                if job.status is Status.RUNNING:
                    core.scheduler.retract(job.request_id)

    run = drive(engine(chunk_size=chunk_size), batch(), after_step=retract)
    assert_golden(run, batch())


def test_a_seeded_request_gives_the_same_tokens_whatever_is_around_it() -> None:
    request = generate("seeded", PREFIX + "One", 10, temperature=1.0, seed=7)
    alone = drive(engine(), [request]).sampled("seeded")
    others = [generate(f"o{i}", f"{i} is a number", 5 + i, temperature=1.5, seed=i) for i in range(12)]
    among = drive(engine(max_running=5, chunk_size=40), [*others, request])
    _, clear = golden(request)
    assert among.sampled("seeded")[:clear] == alone[:clear]


def test_a_second_run_from_the_cache_gives_the_same_tokens() -> None:
    core = engine()
    first = drive(core, batch())
    before = core.stats().computed_prompt_tokens
    second = drive(core, batch())
    assert core.stats().computed_prompt_tokens - before == len(batch())  # one token each
    assert_golden(second, batch())
    assert first.events.keys() == second.events.keys()


# -- sharing, counted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hinted", [False, True])
@pytest.mark.parametrize("policy", ["longest_prefix", "fcfs", "depth_first", "random"])
def test_64_requests_over_a_new_prefix_of_1000_tokens_compute_prefix_and_suffixes(policy: str, hinted: bool) -> None:
    core = engine(policy=policy, measure_optimum=True)
    prefix = text_ids("x" * 1000)
    hints = Hints(program="p", shared_len=1000, siblings=64) if hinted else Hints()
    if hinted:
        core.notify(ForkDeclared("p", prefix, 64))
    requests = [generate(f"r{i}", (*prefix, 64 + i, 10, 11), 2, hints=hints) for i in range(64)]
    for request in requests:
        core.add(request, 0.0)
    while core.has_work:
        core.step(0.0)
    core.notify(ProgramEnded("p"))
    core.check_integrity()
    stats = core.stats()
    assert stats.computed_prompt_tokens == 1000 + 64 * 3
    assert stats.share_of_optimum == 1.0
    assert core.scheduler.memory.tree.hints.num_programs == 0


def test_the_share_of_the_optimum_counts_what_eviction_lost() -> None:
    core = engine(kv_tokens=150, measure_optimum=True)
    for text in ("a" * 100, "b" * 100, "a" * 100):
        drive(core, [generate("r", text, 0)])
    stats = core.stats()
    assert stats.optimum_computed_tokens == 201
    assert stats.share_of_optimum is not None
    assert 0.0 < stats.share_of_optimum < 1.0


def test_a_flush_forgets_what_nobody_uses() -> None:
    core = engine()
    drive(core, [generate("a", PREFIX, 2)])
    core.flush_cache()
    assert core.stats().kv_free == core.stats().kv_total
    drive(core, [generate("a", PREFIX, 2)])
    assert core.stats().cached_prompt_tokens == 0


# -- ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 6])
def test_cancel_at_any_time_leaks_nothing_and_hurts_nobody(steps: int) -> None:
    core = engine(chunk_size=64)
    requests = batch()
    for request in requests:
        core.add(request, 0.0)
    run = Run()
    for _ in range(steps):
        run.take(core.step(0.0))
    core.cancel("greedy", 0.0)
    core.cancel("never was", 0.0)
    core.check_integrity()
    rest = drive(core)
    for events in rest.events.values():
        run.take(events)
    finish = run.finish("greedy")
    assert finish.reason is FinishReason.CANCELLED
    assert isinstance(finish.error, Cancelled)
    assert finish.token_ids == run.sampled("greedy")[: len(finish.token_ids)]
    assert_golden(run, requests[1:])


def test_a_pool_smaller_than_the_work_retracts_and_loses_nothing() -> None:
    core = engine(kv_tokens=120, decode_reserve=0)
    requests = [generate(f"r{i}", f"request {i} says", 40) for i in range(6)]
    run = drive(core, requests)
    assert core.stats().retractions > 0
    assert_golden(run, requests)
    assert all(run.finish(r.request_id).usage.sampled_tokens == 40 for r in requests)


@pytest.mark.parametrize(
    ("request_", "limit"),
    [
        (generate("long", "x" * 65, 1), 63),
        (generate("long", "x" * 64, 1), 63),
        (ScoreRequest("long", text_ids("x" * 65), ChoiceTrie((1,), (-1,))), 64),
        (ScoreRequest("long", text_ids("x" * 60), ChoiceTrie(tuple(range(9)), tuple(range(-1, 8)))), 56),
        (EmbedRequest("long", text_ids("x" * 65)), 64),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_prompt_beyond_the_context_is_refused_as_an_event(request_: Any, limit: int) -> None:
    error = drive(engine(context_len=64), [request_]).error("long")
    assert isinstance(error, PromptTooLong)
    assert error.limit == limit


def test_a_prompt_beyond_the_pool_is_refused_as_an_event() -> None:
    run = drive(engine(kv_tokens=32), [generate("long", "x" * 32, 1), generate("fits", "x" * 31, 1)])
    assert isinstance(run.finish("long").error, PromptTooLong)
    assert "kv_tokens" in str(run.finish("long").error)
    assert run.finish("fits").reason is FinishReason.LENGTH


def test_output_ends_where_the_context_does() -> None:
    run = drive(engine(context_len=20), [generate("a", "x" * 15, 100)])
    assert run.finish("a").reason is FinishReason.LENGTH
    assert len(run.sampled("a")) == 5


def test_a_timeout_ends_a_request_with_what_it_has() -> None:
    core = engine()
    core.add(generate("a", "abc", 100, timeout=1.0), 0.0)
    run = Run()
    for now in (0.1, 0.2, 0.3, 1.5):
        run.take(core.step(now))
    finish = run.finish("a")
    assert finish.reason is FinishReason.CANCELLED
    assert isinstance(finish.error, HoleTimeout)
    assert finish.token_ids == run.sampled("a")
    assert len(finish.token_ids) == 3
    assert finish.usage.seconds == 1.5
    assert not core.has_work


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest("bad", ()),
        GenerateRequest("bad", (1, 5000)),
        GenerateRequest("bad", (-1,)),
        generate("bad", "a", 1, logit_bias=((9999, 1.0),)),
        generate("bad", "a", 1, stop_token_ids=(9999,)),
        ScoreRequest("bad", (1,), ChoiceTrie((), ())),
        ScoreRequest("bad", (1,), ChoiceTrie((1, 2), (-1, 1))),
        ScoreRequest("bad", (1,), ChoiceTrie((1, 2), (-1,))),
        ScoreRequest("bad", (), ChoiceTrie((1,), (-1,))),
        EmbedRequest("bad", ()),
    ],
    ids=str,
)
def test_a_request_that_makes_no_sense_is_refused_alone(request_: Any) -> None:
    run = drive(engine(), [request_, generate("good", "abc", 2)])
    assert isinstance(run.error("bad"), InvalidOption)
    assert run.finish("good").error is None


def test_an_id_that_is_live_cannot_be_taken_again() -> None:
    core = engine()
    core.add(generate("a", "abc", 2), 0.0)
    with pytest.raises(InvalidOption, match="request_id"):
        core.add(generate("a", "abc", 2), 0.0)
    drive(core)
    drive(core, [generate("a", "abc", 2)])


# -- what breaks ---------------------------------------------------------------------------------------------------


def test_nan_in_one_row_fails_that_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    core = engine()
    plain = core._runner.forward
    poisoned: list[str] = []

    def forward(scheduled: ScheduledBatch, masks: object = None) -> Tensor:
        logits = plain(scheduled).clone()
        at = 0
        for row in scheduled.rows:
            count = 0 if row.logits_from is None else len(row.token_ids) - row.logits_from
            if not poisoned and count and row.token_ids[-1] == ord("Z"):
                logits[at + count - 1, 5] = math.nan
                poisoned.append("done")
            at += count
        return logits

    monkeypatch.setattr(core._runner, "forward", forward)
    bad = generate("bad", PREFIX + "Z", 10)
    run = drive(core, [bad, *batch()])
    assert run.finish("bad").reason is FinishReason.FAILED
    assert isinstance(run.finish("bad").error, NumericalError)
    assert_golden(run, batch())
    before = core.stats().computed_prompt_tokens
    drive(core, [generate("again", PREFIX + "Z", 1)])
    assert core.stats().computed_prompt_tokens - before == 1  # only "Z" itself was thrown away


def test_an_infinite_embedding_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    core = engine()
    monkeypatch.setattr(core._runner, "embed", lambda *args: torch.full((4,), math.inf))
    run = drive(core, [EmbedRequest("e", (1, 2)), generate("a", "abc", 2)])
    event = run.last("e")
    assert isinstance(event, EmbedEvent)
    assert isinstance(event.error, NumericalError)
    assert run.finish("a").error is None


def test_a_forward_pass_that_raises_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    core = engine(chunk_size=64)
    plain, calls = core._runner.forward, 0

    def forward(scheduled: ScheduledBatch, masks: object = None) -> Tensor:
        nonlocal calls
        calls += 1
        if calls % 3 == 1:
            raise MemoryError("no room")
        return plain(scheduled)

    monkeypatch.setattr(core._runner, "forward", forward)
    for request in batch():
        core.add(request, 0.0)
    core.cancel("alone", 0.0)
    run, failures = Run(), 0
    while core.has_work:
        try:
            run.take(core.step(0.0))
        except MemoryError:
            failures += 1
        core.check_integrity()
    assert failures > 1
    assert run.finish("alone").reason is FinishReason.CANCELLED
    assert_golden(run, [r for r in batch() if r.request_id != "alone"])


# -- stops ---------------------------------------------------------------------------------------------------------


def biased(name: str, text: str, **params: Any) -> GenerateRequest:
    """A request that is driven to alternate between the bytes of `text`: both are made likely, repeats unlikely."""
    bias = tuple((byte, 500.0) for byte in sorted(set(text.encode())))
    return generate(name, "go", **{"logit_bias": bias, "frequency_penalty": 2.0, "temperature": 1.0, **params})


def test_a_stop_string_ends_the_text_before_itself() -> None:
    run = drive(engine(), [biased("a", "ab", max_new=50, stop=("bb",), seed=3)])
    finish = run.finish("a")
    assert finish.reason is FinishReason.STOP
    assert finish.matched == "bb"
    assert "bb" not in run.text("a")
    assert bytes(finish.token_ids).decode() + finish.tail == run.text("a")
    assert finish.usage.sampled_tokens == len(finish.token_ids) + 2
    assert finish.usage.wasted_tokens == 2


def test_a_stop_token_ends_the_text_and_is_dropped() -> None:
    run = drive(engine(), [biased("a", "ab", max_new=50, stop_token_ids=(ord("b"),), seed=1)])
    finish = run.finish("a")
    assert finish.reason is FinishReason.STOP
    assert finish.matched == ord("b")
    assert run.sampled("a") == (*finish.token_ids, ord("b"))
    assert ord("b") not in finish.token_ids
    assert finish.usage.wasted_tokens == 0


def test_end_of_sequence_ends_the_text_unless_it_is_ignored() -> None:
    eos = min(model().tokenizer.eos_ids)
    params: dict[str, Any] = {"max_new": 6, "logit_bias": ((eos, 1000.0),)}
    run = drive(
        engine(), [generate("a", "x", ignore_eos=False, **params), generate("b", "x", ignore_eos=True, **params)]
    )
    assert run.finish("a").matched == eos
    assert run.finish("a").token_ids == ()
    assert run.finish("b").token_ids == (eos,) * 6


def test_nothing_ends_a_hole_before_its_least_length() -> None:
    eos = min(model().tokenizer.eos_ids)
    bias = ((eos, 900.0), (ord("b"), 800.0), (ord("c"), 10.0))
    run = drive(
        engine(),
        [
            generate("eos", "x", 9, ignore_eos=False, min_new_tokens=4, logit_bias=bias),
            generate("token", "x", 9, stop_token_ids=(ord("b"),), min_new_tokens=4, logit_bias=bias[1:]),
            generate("string", "x", 9, stop=("bb",), min_new_tokens=4, logit_bias=bias[1:]),
        ],
    )
    assert run.finish("eos").token_ids == (ord("b"),) * 4
    assert ord("b") not in run.finish("token").token_ids
    assert len(run.finish("token").token_ids) == 4
    assert run.text("string") == "bb"
    assert len(run.sampled("string")) == 4


# -- logprobs and scores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [16, 512])
def test_logprobs_of_prompt_and_output_are_the_models_own(chunk_size: int) -> None:
    core = engine(chunk_size=chunk_size)
    drive(core, [generate("warm", PREFIX, 0)])
    request = generate(
        "a", PREFIX[:60], 5, temperature=0.7, seed=3, top_k=9, logprobs=LogprobParams(start_len=20, top=4)
    )
    run = drive(core, [request])
    tokens = (*request.token_ids, *run.sampled("a"))
    logprobs = naive_logits(tokens).double().log_softmax(-1)
    found = (*run.finish("a").prompt_logprobs, *run.logprobs("a"))
    assert [p.token_id for p in found] == list(tokens[20:])
    for position, row in enumerate(found, start=20):
        expected = logprobs[position - 1]
        assert row.logprob == pytest.approx(float(expected[row.token_id]), abs=1e-4)
        best = expected.topk(4)
        assert [p for _, p in row.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert all(len(p.top) == 4 for p in found)


def test_the_first_token_of_a_prompt_has_no_logprob() -> None:
    run = drive(engine(), [generate("a", "abc", 1, logprobs=LogprobParams(start_len=0))])
    rows = run.finish("a").prompt_logprobs
    assert [p.logprob is None for p in rows] == [True, False, False]


@pytest.mark.parametrize(
    "options", [{}, {"chunk_size": 16, "page_size": 4}, {"chunk_size": 3}, {"enabled": False}], ids=str
)
def test_scores_equal_those_of_plain_prompts(options: dict[str, Any]) -> None:
    choices = ["yes", "yet", "no", "nothing at all", "y"]
    trie, paths = make_trie(choices)
    prompt = text_ids(PREFIX)
    core = engine(**options)
    run = drive(core, [ScoreRequest("s", prompt, trie, unconditional=True)])
    event = run.last("s")
    assert isinstance(event, ScoreEvent)
    assert event.error is None
    for choice in choices:
        nodes = paths[choice]
        behind = naive_logits(prompt + text_ids(choice)).double().log_softmax(-1)
        expected = [float(behind[len(prompt) - 1 + i, t]) for i, t in enumerate(text_ids(choice))]
        assert [event.logprobs[n] for n in nodes] == pytest.approx(expected, abs=1e-4)
        alone = naive_logits(text_ids(choice)).double().log_softmax(-1)
        expected = [0.0, *(float(alone[i, t]) for i, t in enumerate(text_ids(choice)[1:]))]
        assert [event.unconditional[n] for n in nodes] == pytest.approx(expected, abs=1e-4)


def make_trie(choices: list[str]) -> tuple[ChoiceTrie, dict[str, list[int]]]:
    """The trie of the choices' bytes in depth-first order, and each choice's nodes."""
    nested: dict[int, Any] = {}
    for choice in choices:
        here = nested
        for token in text_ids(choice):
            here = here.setdefault(token, {})
    token_ids: list[int] = []
    parents: list[int] = []
    index: dict[tuple[int, ...], int] = {}

    def visit(here: dict[int, Any], parent: int, path: tuple[int, ...]) -> None:
        for token, below in here.items():
            index[(*path, token)] = node = len(token_ids)
            token_ids.append(token)
            parents.append(parent)
            visit(below, node, (*path, token))

    visit(nested, -1, ())
    paths = {c: [index[text_ids(c)[: i + 1]] for i in range(len(text_ids(c)))] for c in choices}
    return ChoiceTrie(tuple(token_ids), tuple(parents)), paths


def test_scores_take_one_forward_pass_when_the_prompt_is_cached() -> None:
    core = engine()
    drive(core, [generate("warm", PREFIX, 0)])
    trie, _ = make_trie(["positive", "negative", "neutral"])
    run = drive(core, [ScoreRequest("s", text_ids(PREFIX), trie, unconditional=True)])
    assert run.steps == 1


def test_scoring_changes_nothing_for_those_who_decode() -> None:
    trie, _ = make_trie(["positive", "negative"])
    scores = [ScoreRequest(f"s{i}", text_ids(PREFIX[: 20 + i]), trie) for i in range(5)]
    assert_golden(drive(engine(), [*batch(), *scores, EmbedRequest("e", text_ids(PREFIX))]), batch())


def test_an_embedding_is_the_last_hidden_state_at_length_one() -> None:
    run = drive(engine(), [EmbedRequest("a", text_ids(PREFIX)), EmbedRequest("b", text_ids("else"))])
    a, b = run.last("a"), run.last("b")
    assert isinstance(a, EmbedEvent)
    assert isinstance(b, EmbedEvent)
    assert math.sqrt(sum(x * x for x in a.embedding)) == pytest.approx(1.0, abs=1e-5)
    assert a.embedding != b.embedding


# -- what is told --------------------------------------------------------------------------------------------------


def test_usage_counts_what_was_asked_read_and_sampled() -> None:
    core = engine()
    drive(core, [generate("warm", PREFIX, 0)])
    run = drive(core, [generate("a", PREFIX + "tail", 5)])
    usage = run.finish("a").usage
    assert usage.prompt_tokens == len(PREFIX) + 4
    assert usage.cached_tokens == len(PREFIX)
    assert usage.sampled_tokens == 5
    assert dataclasses.replace(usage, seconds=0.0).completion_tokens == 5


def test_the_next_draws_key_is_seed_and_place_alone() -> None:
    core = engine()
    core.add(generate("a", "abc", 5, temperature=1.0, seed=11), 0.0)
    core.step(0.0)
    core.step(0.0)
    (job,) = core.scheduler.jobs()
    draw = draw_of(job)  # type: ignore[arg-type]
    assert (draw.seed, draw.index) == (11, 2)
