"""The scheduler with two steps in flight, on a model without numbers: whatever happens between the two, no slot is
misread or lost, and each request ends once, with the text that it has in the plain loop."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings

from palmette.runtime.drawn import DRAWN
from palmette.runtime.overlap import OverlappedLoop
from palmette.runtime.radix_node import NodeState
from palmette.runtime.request import ScoreJob
from palmette.runtime.step import ScheduledStep, StepResults
from palmette.types import FinishReason, ScoreEvent, ScoreRequest
from tests.runtime.test_scheduler import TRIE, Bench, SchedulerMachine, expected_scores, golden


class Broken(Exception):
    """What a step raises that is told to fail."""


@dataclass(frozen=True, slots=True)
class Queued:
    step: ScheduledStep
    bench: OverlappedBench

    def start(self) -> Started:
        self.bench.taken = self.step
        return Started(self.bench, self.bench.model.evaluate(self.step, self.bench.bad))


@dataclass(frozen=True, slots=True)
class Started:
    bench: OverlappedBench
    results: StepResults

    def finish(self) -> StepResults:
        self.bench.break_at("finish")
        return self.results


class OverlappedBench(Bench):
    """A step is the call that takes one in; another is in flight behind it, as a rule."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.loop = OverlappedLoop(self.scheduler, self._queue)
        self.taken: ScheduledStep | None = None
        self.bad: set[int] = set()
        self.breaks = ""  # where the next step does

    def step(self, now: float = 0.0, bad: Iterable[int] = ()) -> ScheduledStep | None:
        self.events += self.scheduler.expire(now)
        self.taken, self.bad = None, set(bad)
        self.events += self.loop.step(now)
        self.scheduler.check_integrity()
        return self.taken

    def fail(self) -> None:
        for self.breaks in ("queue", "finish"):
            try:
                self.step()
            except Broken:
                assert not self.loop.is_busy
                self.scheduler.check_integrity()
        self.breaks = ""

    def break_at(self, where: str) -> None:
        if self.breaks == where:
            self.breaks = ""
            raise Broken

    def _queue(self, step: ScheduledStep) -> Queued:
        self.check_budget(step)
        self.break_at("queue")
        self.model.forward(step)
        return Queued(step, self)


# -- what is in a step whose last one is not known -----------------------------------------------------------------


def in_flight(bench: OverlappedBench) -> ScheduledStep:
    assert isinstance(bench.loop._queued, Queued)
    return bench.loop._queued.step


def test_a_job_goes_on_with_the_token_that_nobody_knows() -> None:
    bench = OverlappedBench()
    bench.add("a", [1, 2], max_new=4)
    bench.step()
    (row,) = in_flight(bench).batch.rows
    assert (row.token_ids, row.start) == ((DRAWN,), 2)
    assert bench.sampled("a") == golden([1, 2], 1)
    bench.drain()
    assert bench.sampled("a") == golden([1, 2], 4)
    assert bench.model.computed == 2 + 3  # the last token is never computed, and its step is known to be the last


def test_a_job_whose_only_token_is_drawn_is_in_no_other_step() -> None:
    bench = OverlappedBench()
    bench.add("a", [1, 2], max_new=1)
    bench.add("b", [1, 1], max_new=0)
    bench.step()
    assert not bench.loop.is_busy
    assert bench.reason("a") is bench.reason("b") is FinishReason.LENGTH


def test_nobody_is_retracted_before_all_is_known() -> None:
    """What one needs for its next token another is about to give back."""
    bench = OverlappedBench(slots=12, decode_reserve=0)
    bench.add("ends", [1] * 4, max_new=3)
    bench.add("goes on", [2] * 4, max_new=9)
    idle = 0
    while bench.step() is not None:
        idle += not bench.loop.is_busy
    assert bench.scheduler.counters.retractions == 0
    assert idle == 2  # once for want of memory, and at the end
    assert bench.sampled("goes on") == golden([2] * 4, 9)


def test_a_newcomer_attends_to_what_a_step_in_flight_computes() -> None:
    bench = OverlappedBench(chunk_size=8)
    bench.add("first", [1] * 12, max_new=3)
    bench.step()
    bench.add("second", [1] * 12 + [2], max_new=3)
    bench.drain()
    assert bench.scheduler.counters.computed_prompt_tokens == 12 + 1
    assert bench.sampled("second") == golden([1] * 12 + [2], 3)


def test_a_prompt_goes_on_while_its_last_chunk_is_in_flight() -> None:
    bench = OverlappedBench(chunk_size=16)
    bench.add("a", range(40), max_new=1)
    sizes = []
    while bench.step() is not None:
        assert bench.taken is not None
        sizes += bench.sizes(bench.taken)
    assert sizes == [16, 16, 8]
    assert bench.sampled("a") == golden(range(40), 1)


def test_a_trie_is_scored_behind_a_prompt_in_flight() -> None:
    bench = OverlappedBench(chunk_size=5)
    prompt = [1, 0, 2, 2, 1]
    bench.scheduler.add(ScoreJob(ScoreRequest("s", tuple(prompt), TRIE, unconditional=True), number=1, now=0.0), 0.0)
    bench.drain()
    (event,) = bench.events
    assert isinstance(event, ScoreEvent)
    assert event.logprobs == expected_scores(prompt, TRIE)
    assert event.unconditional == expected_scores([], TRIE, unconditional=True)


# -- what goes wrong between two steps -----------------------------------------------------------------------------


def test_who_built_on_bad_tokens_in_the_step_behind_starts_again() -> None:
    bench = OverlappedBench(max_running=4, chunk_size=6)
    bench.add("bad", [1, 1, 1, 0, 2], max_new=3)
    bench.add("builds on it", [1, 1, 1, 0, 1, 2], max_new=3)  # the budget leaves it to the next step
    bench.step(bad=[0])
    assert bench.reason("bad") is FinishReason.FAILED
    assert bench.names(in_flight(bench)) == ["bad", "builds on it"]
    assert bench.scheduler.num_running == 0
    assert bench.scheduler.memory.tree.num_tokens == 0
    bench.drain()
    assert bench.sampled("builds on it") == golden([1, 1, 1, 0, 1, 2], 3)


def test_bad_tokens_of_a_request_that_was_cancelled_leave_the_cache() -> None:
    bench = OverlappedBench(chunk_size=6)
    bench.add("first", [2, 2, 2, 2, 2, 2], max_new=9)
    bench.add("gone", [1, 1, 1, 0], max_new=3)
    bench.step()
    assert "gone" in bench.names(in_flight(bench))
    bench.scheduler.cancel("gone", 0.0)
    bench.add("builds on it", [1, 1, 1, 0, 2], max_new=3)
    place = bench.names(in_flight(bench)).index("gone")
    bench.step(bad=[place])
    assert not bench.sampled("builds on it")
    assert bench.scheduler.memory.probe(bench.scheduler.jobs()[-1]).length == 0
    bench.drain()
    assert bench.sampled("builds on it") == golden([1, 1, 1, 0, 2], 3)


def test_what_a_step_computes_is_there_when_that_step_is_applied_and_not_before() -> None:
    bench = OverlappedBench(chunk_size=6)
    bench.add("first", [2] * 6, max_new=9)
    bench.add("second", [1] * 5, max_new=9)
    bench.step()
    assert "second" in bench.names(in_flight(bench))
    assert {node.state for node in bench.scheduler.memory.tree.nodes()} == {NodeState.PROVEN, NodeState.IN_FLIGHT}
    bench.breaks = "finish"
    with pytest.raises(Broken):
        bench.step()
    assert bench.scheduler.memory.tree.num_tokens == 6, "what failed is not cached"
    bench.drain()
    assert bench.sampled("second") == golden([1] * 5, 9)


def test_logits_prove_what_their_own_step_read() -> None:
    """Of a job that has gone on meanwhile."""
    bench = OverlappedBench(chunk_size=6, page_size=2)
    prompt = [1, 2, 0, 1, 2, 2, 1, 0, 0, 1, 1, 1]
    bench.add("a", prompt, max_new=2)
    bench.step()
    tree = bench.scheduler.memory.tree
    assert sorted((node.depth, node.state) for node in tree.nodes()) == [
        (6, NodeState.COMPUTED),
        (12, NodeState.IN_FLIGHT),
    ]
    bench.step()
    assert {node.state for node in tree.nodes()} == {NodeState.PROVEN}


def test_a_cancelled_request_leaves_what_was_applied() -> None:
    bench = OverlappedBench()
    bench.add("a", [1, 2, 0], max_new=20)
    for _ in range(3):
        bench.step()
    bench.scheduler.cancel("a", 0.0)
    assert bench.scheduler.memory.tree.num_tokens == 3 + 2
    assert bench.scheduler.memory.num_available == 256
    bench.drain()
    assert bench.scheduler.memory.tree.num_tokens == 3 + 2


# -- everything at once --------------------------------------------------------------------------------------------


class OverlappedMachine(SchedulerMachine):
    """The same with two steps in flight."""

    bench_type = OverlappedBench


TestOverlappedMachine = OverlappedMachine.TestCase
TestOverlappedMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
