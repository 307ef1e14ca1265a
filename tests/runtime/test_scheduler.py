"""The scheduler on a model without numbers: what runs when, who waits, who is retracted; no slot is misread."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from palmette.errors import Cancelled, HoleTimeout, NumericalError
from palmette.runtime.config import DEFAULT_CHUNK, PolicyName, SchedulerConfig
from palmette.runtime.memory import KVMemory
from palmette.runtime.radix_cache import Place
from palmette.runtime.radix_node import TOKEN_CODE
from palmette.runtime.request import AnyJob, EmbedJob, ScoreJob, Status
from palmette.runtime.scheduler import Scheduler
from palmette.runtime.step import ScheduledStep
from palmette.types import (
    BranchesEnded,
    ChoiceTrie,
    EmbedEvent,
    EmbedRequest,
    Event,
    FinishReason,
    ForkDeclared,
    GenerateRequest,
    Hints,
    LogprobParams,
    ProgramEnded,
    SamplingParams,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
    TokenPath,
)
from tests.runtime.fake_model import FakeModel, make_job, next_token, score


class Bench:
    """A scheduler and its fake model."""

    def __init__(
        self,
        *,
        slots: int = 256,
        page_size: int = 1,
        shares: bool = True,
        listens: bool = True,
        **config: Any,
    ) -> None:
        self.config = SchedulerConfig(**config)
        self.scheduler = Scheduler(KVMemory(slots, page_size, shares=shares, listens=listens), self.config)
        self.model = FakeModel()
        self.events: list[Event] = []
        self.number = 0

    def add(self, name: str, tokens: Iterable[int], max_new: int = 4, **request: Any) -> None:
        self.number += 1
        params = SamplingParams(max_new_tokens=max_new)
        ids = tokens if isinstance(tokens, TokenPath) else tuple(tokens)
        self.scheduler.add(make_job(GenerateRequest(name, ids, params, **request), self.number), 0.0)

    def step(self, now: float = 0.0, bad: Iterable[int] = ()) -> ScheduledStep | None:
        self.events += self.scheduler.expire(now)
        step = self.scheduler.schedule()
        if step is not None:
            self.check_budget(step)
            results = self.model.run(step, set(bad))
            self.events += self.scheduler.apply(step, results, now)
        self.scheduler.check_integrity()
        return step

    def fail(self) -> None:
        """A step that is scheduled, and fails."""
        if self.scheduler.schedule() is not None:
            self.scheduler.abort()

    def check_budget(self, step: ScheduledStep) -> None:
        decodes = sum(part.start >= part.job.extend_end for part in step.parts if part.trie is None)
        rest = step.batch.num_tokens - decodes
        chunk, page_size = self.config.chunk_size or DEFAULT_CHUNK, self.scheduler.memory.page_size
        assert rest <= max(chunk - decodes, chunk // 8, page_size), "a step beyond its budget"

    def running(self) -> list[AnyJob]:
        return [job for job in self.scheduler.jobs() if job.status is Status.RUNNING]

    def drain(self) -> int:
        steps = 0
        while self.step() is not None:
            steps += 1
            assert steps < 2000, "it does not come to an end"
        return steps

    def names(self, step: ScheduledStep | None) -> list[str]:
        assert step is not None
        return [part.job.request_id for part in step.parts]

    def sizes(self, step: ScheduledStep | None) -> list[int]:
        assert step is not None
        return [len(row.token_ids) for row in step.batch.rows]

    def sampled(self, name: str) -> list[int]:
        return [t for e in self.events if isinstance(e, TokenEvent) and e.request_id == name for t in e.token_ids]

    def reason(self, name: str) -> FinishReason:
        (finish,) = [e.finish for e in self.events if isinstance(e, TokenEvent) and e.request_id == name and e.finish]
        return finish.reason


def golden(tokens: Iterable[int], count: int) -> list[int]:
    """What the fake model generates."""
    all_tokens = list(tokens)
    start = len(all_tokens)
    for _ in range(count):
        all_tokens.append(next_token(all_tokens))
    return all_tokens[start:]


# -- what a step holds ---------------------------------------------------------------------------------------------


def test_a_step_holds_decodes_then_prompts_in_progress_then_newcomers() -> None:
    bench = Bench(chunk_size=8)
    bench.add("decoding", [1, 1], max_new=9)
    bench.step()
    bench.add("long", [2] * 12)
    bench.step()
    bench.add("new", [0, 2])
    step = bench.step()
    assert bench.names(step) == ["decoding", "long", "new"]
    assert bench.sizes(step) == [1, 5, 2]


def test_a_long_prompt_is_computed_in_chunks_and_samples_only_at_its_end() -> None:
    bench = Bench(chunk_size=16)
    bench.add("a", range(40), max_new=1)
    sizes = [bench.sizes(bench.step()) for _ in range(3)]
    assert sizes == [[16], [16], [8]]
    assert bench.sampled("a") == golden(range(40), 1)
    assert bench.step() is None


def test_prompts_go_on_however_many_decode() -> None:
    bench = Bench(slots=2048, chunk_size=8, max_running=32)
    for i in range(16):
        bench.add(f"d{i}", [i % 3, i // 3], max_new=50)
    while bench.scheduler.num_waiting:
        bench.step()
    assert bench.scheduler.num_running == 16
    bench.add("late", [2] * 6)
    for _ in range(6):
        bench.step()
    assert bench.sampled("late")


def test_chunks_end_at_pages() -> None:
    bench = Bench(page_size=4, chunk_size=10)
    bench.add("a", [1] * 23, max_new=1)
    assert [bench.sizes(bench.step())[0] for _ in range(3)] == [8, 8, 7]


def test_no_more_requests_run_than_allowed() -> None:
    bench = Bench(max_running=3)
    for i in range(7):
        bench.add(f"r{i}", [i % 3, i], max_new=3)
    while bench.step() is not None:
        assert bench.scheduler.num_running <= 3
    assert all(bench.reason(f"r{i}") is FinishReason.LENGTH for i in range(7))


# -- sharing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [16, 64, 512])
@pytest.mark.parametrize("hinted", [False, True])
def test_requests_that_arrive_together_compute_their_prefix_once(chunk_size: int, hinted: bool) -> None:
    bench = Bench(slots=2048, chunk_size=chunk_size)
    hints = Hints(program="p", shared_len=200, siblings=64) if hinted else Hints()
    for i in range(64):
        bench.add(f"r{i}", [*[1] * 200, 2, i % 2, i], max_new=2, hints=hints)
    bench.drain()
    distinct = 200 + 1 + 2 + 64
    assert bench.scheduler.counters.computed_prompt_tokens == distinct
    assert bench.scheduler.counters.cached_prompt_tokens == 64 * 203 - distinct


def test_a_request_whose_whole_prompt_is_known_computes_one_token() -> None:
    bench = Bench()
    for name in ("a", "b", "c"):
        bench.add(name, [1, 2, 0, 1], max_new=2)
    bench.drain()
    assert bench.scheduler.counters.computed_prompt_tokens == 4 + 1 + 1
    assert bench.sampled("a") == bench.sampled("b") == bench.sampled("c") == golden([1, 2, 0, 1], 2)


def test_a_request_waits_for_a_prefix_that_another_has_yet_to_compute() -> None:
    bench = Bench(chunk_size=10, page_size=4)
    bench.add("first", [1] * 21, max_new=1)
    bench.step()
    bench.add("second", [1] * 20 + [2, 2], max_new=1)
    bench.add("other", [2, 2], max_new=1)
    step = bench.step()
    assert bench.names(step) == ["first", "other"]
    assert bench.sizes(step) == [8, 2]
    bench.drain()
    assert bench.scheduler.counters.computed_prompt_tokens == 21 + 2 + 2


def test_what_was_generated_is_shared_with_prompts_that_continue_it() -> None:
    bench = Bench()
    bench.add("a", [1, 2], max_new=5)
    bench.drain()
    bench.add("b", [1, 2, *bench.sampled("a"), 0], max_new=1)
    bench.drain()
    assert bench.scheduler.counters.computed_prompt_tokens == 2 + 2  # the last sampled token was never computed


def test_namespaces_share_nothing() -> None:
    bench = Bench()
    bench.add("a", [1] * 10, max_new=1, namespace="x")
    bench.add("b", [1] * 10, max_new=1, namespace="y")
    bench.drain()
    assert bench.scheduler.counters.computed_prompt_tokens == 20


def test_with_the_cache_off_nothing_is_shared() -> None:
    bench = Bench(shares=False)
    for name in ("a", "b"):
        bench.add(name, [1] * 10, max_new=3)
    bench.drain()
    assert bench.scheduler.counters.computed_prompt_tokens == 20
    assert bench.scheduler.memory.tree.num_tokens == 0
    assert bench.sampled("a") == golden([1] * 10, 3)


# -- order ---------------------------------------------------------------------------------------------------------


def test_higher_priority_goes_first() -> None:
    bench = Bench(max_running=1, policy="fcfs")
    bench.add("low", [1], max_new=1)
    bench.add("high", [2], max_new=1, priority=5)
    assert bench.names(bench.step()) == ["high"]


def test_a_request_is_overtaken_only_so_often() -> None:
    bench = Bench(max_running=1, max_overtaken=3)
    bench.add("seed", [1, 1, 1], max_new=1)
    bench.drain()
    bench.add("cold", [2, 2], max_new=1)
    order = []
    for i in range(8):
        bench.add(f"hot{i}", [1, 1, 1, i], max_new=1)
    while (step := bench.step()) is not None:
        order += bench.names(step)
    assert order.index("cold") == 3


def test_a_step_looks_at_a_window_not_at_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(max_running=4, window=32, slots=4096)
    for i in range(10_000):
        bench.add(f"r{i}", [i % 3, i, 1], max_new=1)
    probes = 0
    plain = bench.scheduler.memory.probe

    def counted(job: Any) -> Any:
        nonlocal probes
        probes += 1
        return plain(job)

    monkeypatch.setattr(bench.scheduler.memory, "probe", counted)
    for _ in range(20):
        step = bench.scheduler.schedule()
        assert step is not None
        bench.scheduler.apply(step, bench.model.run(step), 0.0)
    assert probes <= 20 * 32 * 6


# -- memory --------------------------------------------------------------------------------------------------------


def test_the_request_with_least_progress_is_retracted_and_resumes_with_the_same_text() -> None:
    bench = Bench(slots=40, decode_reserve=0)
    bench.add("old", [1, 1, 1], max_new=30)
    for _ in range(5):
        bench.step()
    bench.add("young", [2, 2, 2], max_new=30)
    bench.drain()
    assert bench.scheduler.counters.retractions >= 1
    assert bench.sampled("old") == golden([1, 1, 1], 30)
    assert bench.sampled("young") == golden([2, 2, 2], 30)
    assert bench.scheduler.counters.recomputed_tokens < 30  # what survived in the cache was not computed again
    assert bench.scheduler.counters.cached_prompt_tokens == 0  # coming back is not a hit


def test_a_step_that_retracts_admits_nobody() -> None:
    bench = Bench(slots=24, decode_reserve=0)
    for i in range(3):
        bench.add(f"r{i}", [i] * 6, max_new=18)
    while True:
        before, running = bench.scheduler.counters.retractions, {j.request_id for j in bench.running()}
        step = bench.step()
        if step is None:
            break
        if bench.scheduler.counters.retractions > before:
            assert set(bench.names(step)) < running
    assert 0 < bench.scheduler.counters.retractions <= 4


def test_admission_leaves_room_for_those_that_decode() -> None:
    bench = Bench(slots=64, decode_reserve=32)
    bench.add("a", [1] * 8, max_new=24)
    bench.add("b", [2] * 8, max_new=24)
    bench.add("c", [0] * 8, max_new=24)
    bench.drain()
    assert bench.scheduler.counters.retractions == 0
    assert bench.sampled("c") == golden([0] * 8, 24)


@pytest.mark.parametrize("every", [1, 2, 3, 7])
@pytest.mark.parametrize("page_size", [1, 4])
def test_retraction_at_any_time_changes_no_text(every: int, page_size: int) -> None:
    bench = Bench(chunk_size=8, page_size=page_size)
    prompts = {f"r{i}": [*[1] * 17, i, 2 * i] for i in range(5)}
    for name, tokens in prompts.items():
        bench.add(name, tokens, max_new=9)
    steps = 0
    while bench.step() is not None:
        steps += 1
        if steps % every == 0:
            for job in bench.scheduler.jobs():
                if job.status is Status.RUNNING:
                    bench.scheduler.retract(job.request_id)
        bench.scheduler.check_integrity()
        assert steps < 1000
    for name, tokens in prompts.items():
        assert bench.sampled(name) == golden(tokens, 9)


def test_a_request_alone_may_fill_the_whole_pool() -> None:
    bench = Bench(slots=16)
    bench.add("a", [1] * 9, max_new=8)
    bench.drain()
    assert bench.sampled("a") == golden([1] * 9, 8)
    assert bench.scheduler.counters.retractions == 0


# -- ends ----------------------------------------------------------------------------------------------------------


def test_cancel_frees_the_slots_at_once_and_keeps_what_was_computed() -> None:
    bench = Bench(chunk_size=8)
    bench.add("a", [1] * 20, max_new=4)
    bench.step()
    event = bench.scheduler.cancel("a", 1.0)
    assert isinstance(event, TokenEvent)
    assert event.finish is not None
    assert event.finish.reason is FinishReason.CANCELLED
    assert isinstance(event.finish.error, Cancelled)
    bench.scheduler.check_integrity()
    assert bench.scheduler.memory.num_available == 256
    assert bench.scheduler.memory.tree.num_tokens == 8
    assert bench.scheduler.cancel("a", 1.0) is None


def test_a_timeout_counts_from_submission_and_reaches_waiting_and_running() -> None:
    bench = Bench(max_running=1)
    bench.add("runs", [1] * 4, max_new=50, timeout=2.0)
    bench.add("waits", [2] * 4, max_new=50, timeout=1.0)
    bench.step(0.5)
    bench.step(1.0)
    assert bench.reason("waits") is FinishReason.CANCELLED
    bench.step(2.5)
    (error,) = [
        e.finish.error for e in bench.events if isinstance(e, TokenEvent) and e.request_id == "runs" and e.finish
    ]
    assert isinstance(error, HoleTimeout)
    assert bench.step() is None


def test_ended_requests_are_not_remembered_until_their_deadline() -> None:
    bench = Bench()
    for i in range(1000):
        bench.add(f"r{i}", [1], max_new=0, timeout=1e9)
        bench.scheduler.cancel(f"r{i}", 0.0)
    assert len(bench.scheduler._deadlines) < 100


def test_no_new_token_means_computed_and_cached() -> None:
    bench = Bench()
    bench.add("a", [1, 2, 0], max_new=0)
    bench.drain()
    assert bench.reason("a") is FinishReason.LENGTH
    assert bench.sampled("a") == []
    assert bench.scheduler.memory.tree.num_tokens == 3


def test_one_bad_row_fails_alone_and_its_tokens_leave_the_cache() -> None:
    bench = Bench()
    bench.add("bad", [1, 1, 1, 0], max_new=3)
    bench.add("builds on it", [1, 1, 1, 2], max_new=3)
    bench.add("other", [2, 2], max_new=3)
    step = bench.scheduler.schedule()
    assert step is not None
    place = bench.names(step).index("bad")
    bench.events += bench.scheduler.apply(step, bench.model.run(step, {place}), 0.0)
    bench.scheduler.check_integrity()
    assert bench.reason("bad") is FinishReason.FAILED
    assert bench.sampled("builds on it") == []
    assert bench.scheduler.memory.probe(bench.scheduler.jobs()[0]).length == 0
    bench.drain()
    assert bench.sampled("builds on it") == golden([1, 1, 1, 2], 3)
    assert bench.sampled("other") == golden([2, 2], 3)


def test_a_bad_row_takes_nothing_that_others_have_proven() -> None:
    bench = Bench()
    bench.add("good", [1, 1, 1], max_new=1)
    bench.drain()
    bench.add("bad", [1, 1, 1, 0], max_new=3)
    bench.step(bad=[0])
    (finish,) = [e.finish for e in bench.events if isinstance(e, TokenEvent) and e.request_id == "bad" and e.finish]
    assert isinstance(finish.error, NumericalError)
    assert bench.scheduler.memory.tree.num_tokens == 3


def test_a_row_that_goes_bad_while_decoding_caches_nothing_it_decoded() -> None:
    bench = Bench()
    bench.add("bad", [1, 2, 0], max_new=9)
    bench.step()
    bench.step()
    bench.step(bad=[0])
    assert bench.reason("bad") is FinishReason.FAILED
    assert bench.scheduler.memory.tree.num_tokens == 3


def test_a_step_that_failed_leaves_nothing_and_is_done_again() -> None:
    bench = Bench(chunk_size=8)
    bench.add("a", [1] * 12, max_new=3)
    bench.add("b", [1] * 11 + [2], max_new=3)
    bench.step()
    step = bench.scheduler.schedule()
    assert step is not None
    bench.scheduler.abort()
    bench.scheduler.check_integrity()
    assert bench.scheduler.num_running == 0
    assert bench.scheduler.memory.tree.num_tokens == 8
    bench.drain()
    assert bench.sampled("a") == golden([1] * 12, 3)
    assert bench.sampled("b") == golden([1] * 11 + [2], 3)


def test_an_exception_in_one_request_ends_that_one(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.add("a", [1], max_new=3)
    bench.add("b", [2], max_new=3)

    def explode(token_id: int) -> Any:
        raise RuntimeError("broken")

    (job,) = [job for job in bench.scheduler.jobs() if job.request_id == "a"]
    job.output.push = explode  # type: ignore[union-attr, method-assign]
    bench.drain()
    assert bench.reason("a") is FinishReason.FAILED
    assert bench.sampled("b") == golden([2], 3)
    assert "request failed" in caplog.text


# -- choices and embeddings ----------------------------------------------------------------------------------------

TRIE = ChoiceTrie((1, 2, 0, 2, 1, 1, 0), (-1, 0, 1, 0, -1, 4, 5))


def expected_scores(prompt: list[int], trie: ChoiceTrie, *, unconditional: bool = False) -> tuple[float, ...]:
    values: list[float] = []
    paths: list[list[int]] = []
    for token, parent in zip(trie.token_ids, trie.parents, strict=True):
        above = paths[parent] if parent >= 0 else []
        values.append(0.0 if unconditional and parent < 0 else score([*prompt, *above], token))
        paths.append([*above, token])
    return tuple(values)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 64])
@pytest.mark.parametrize("page_size", [1, 4])
def test_each_node_of_a_trie_is_scored_behind_its_path(chunk_size: int, page_size: int) -> None:
    bench = Bench(chunk_size=max(chunk_size, page_size), page_size=page_size)
    prompt = [1, 0, 2, 2, 1]
    bench.scheduler.add(ScoreJob(ScoreRequest("s", tuple(prompt), TRIE, unconditional=True), number=1, now=0.0), 0.0)
    bench.drain()
    (event,) = bench.events
    assert isinstance(event, ScoreEvent)
    assert event.logprobs == expected_scores(prompt, TRIE)
    assert event.unconditional == expected_scores([], TRIE, unconditional=True)
    assert bench.scheduler.memory.tree.num_tokens == 5 - 5 % page_size  # no node of the trie ever enters it


def test_a_cached_prompt_is_scored_in_one_step_that_computes_inner_nodes_only() -> None:
    bench = Bench()
    bench.add("prompt", [1] * 50, max_new=0)
    bench.drain()
    before = bench.model.computed
    bench.scheduler.add(ScoreJob(ScoreRequest("s", (1,) * 50, TRIE, unconditional=True), number=2, now=0.0), 0.0)
    assert bench.drain() == 1
    assert bench.model.computed - before == 1 + 2 * 4


def test_choices_of_one_token_cost_nothing_but_the_prompt() -> None:
    bench = Bench()
    trie = ChoiceTrie((0, 1, 2), (-1, -1, -1))
    bench.scheduler.add(ScoreJob(ScoreRequest("s", (1, 2), trie, unconditional=True), number=1, now=0.0), 0.0)
    bench.drain()
    (event,) = bench.events
    assert isinstance(event, ScoreEvent)
    assert bench.model.computed == 2
    assert event.unconditional == (0.0, 0.0, 0.0)


def test_an_embedding_takes_one_step_and_leaves_no_trace() -> None:
    bench = Bench(chunk_size=4)
    bench.scheduler.add(EmbedJob(EmbedRequest("e", (1, 2, 0, 1, 1, 1)), number=1, now=0.0), 0.0)
    assert bench.drain() == 1
    assert isinstance(bench.events[0], EmbedEvent)
    assert bench.scheduler.memory.allocator.num_free == 256


def test_prompt_logprobs_are_computed_even_where_the_prompt_is_cached() -> None:
    bench = Bench(chunk_size=4)
    prompt = [1, 2, 0, 1, 2, 2, 1, 0, 0]
    bench.add("warm", prompt, max_new=0)
    bench.drain()
    bench.add("a", prompt, max_new=2, logprobs=LogprobParams(start_len=3))
    bench.add("b", prompt, max_new=2, logprobs=LogprobParams(start_len=0))
    bench.drain()
    for name, start in (("a", 3), ("b", 0)):
        (finish,) = [e.finish for e in bench.events if isinstance(e, TokenEvent) and e.request_id == name and e.finish]
        assert [p.token_id for p in finish.prompt_logprobs] == prompt[start:]
        expected = [None if p == 0 else score(prompt[:p], prompt[p]) for p in range(start, len(prompt))]
        assert [p.logprob for p in finish.prompt_logprobs] == expected
        assert bench.sampled(name) == golden(prompt, 2)
    assert bench.scheduler.memory.tree.num_tokens == len(prompt) + 1


# -- streams -------------------------------------------------------------------------------------------------------


def turn(bench: Bench, name: str, path: TokenPath, **request: Any) -> tuple[TokenPath, AnyJob]:
    """One hole of a stream: its prompt with what was written behind it, and its job."""
    bench.add(name, path, max_new=4, **request)
    job = bench.scheduler.jobs()[-1]
    bench.drain()
    assert bench.sampled(name) == golden(path, 4)
    return TokenPath(path, bench.sampled(name)), job


@pytest.mark.parametrize("page_size", [1, 4])
def test_a_stream_reads_of_its_prompt_only_what_is_new(page_size: int) -> None:
    bench = Bench(slots=2048, page_size=page_size)
    path = TokenPath(None, range(50))
    for i in range(20):
        begin = len(path)
        path, job = turn(bench, f"{i}", TokenPath(path, [i] * 9))
        assert job.cached >= begin - 4 - page_size if i else not job.cached
        assert job.tokens.num_unread >= begin - 13 - page_size if i else not job.tokens.num_unread
    assert bench.scheduler.memory.tree.num_nodes <= 4


def test_branches_read_their_own_tokens_alone() -> None:
    bench = Bench(slots=2048)
    base, _ = turn(bench, "parent", TokenPath(None, range(300)))
    base = TokenPath(base, range(50))
    for i in range(8):
        hints = Hints("p", shared_len=len(base), siblings=8)
        _, job = turn(bench, f"{i}", TokenPath(base, [i, 5]), hints=hints)
        assert job.cached == (len(base) if i else 303)
        assert job.tokens.num_unread == (len(base) if i else 300)


def test_a_stream_whose_prefix_is_gone_reads_and_computes_it_again() -> None:
    bench = Bench(slots=2048)
    path, _ = turn(bench, "a", TokenPath(None, range(40)))
    bench.scheduler.memory.flush()
    _, job = turn(bench, "b", TokenPath(path, [1, 2]))
    assert (job.cached, job.tokens.num_unread) == (0, 0)
    assert path.parent is not None
    assert path.parent.place is None


def test_a_place_in_one_namespace_is_none_in_another() -> None:
    bench = Bench(slots=2048)
    path, _ = turn(bench, "a", TokenPath(None, range(40)), namespace="one")
    _, job = turn(bench, "b", TokenPath(path, [1, 2]), namespace="other")
    assert job.cached == 0


# -- everything at once --------------------------------------------------------------------------------------------

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=14)


class SchedulerMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order: no slot is misread or lost, each request ends once, with the same text."""

    bench_type: type[Bench] = Bench

    @initialize(
        page_size=st.sampled_from([1, 2, 4]),
        chunk_size=st.sampled_from([4, 8, 32]),
        pages=st.integers(12, 24),
        policy=st.sampled_from(["longest_prefix", "depth_first", "fcfs", "random"]),
        max_running=st.sampled_from([1, 3, 16]),
        shares=st.booleans(),
        reserve=st.sampled_from([0, 4]),
    )
    def build(
        self,
        page_size: int,
        chunk_size: int,
        pages: int,
        policy: PolicyName,
        max_running: int,
        shares: bool,
        reserve: int,
    ) -> None:
        self.bench = self.bench_type(
            slots=pages * 4,
            page_size=page_size,
            chunk_size=chunk_size,
            policy=policy,
            max_running=max_running,
            shares=shares,
            decode_reserve=reserve,
            max_overtaken=4,
            window=8,
        )
        self.requests: dict[str, list[int]] = {}
        self.paths: dict[str, TokenPath] = {}  # of the prompts that were paths
        self.spared: set[str] = set()  # nothing but their text happens to them

    @rule(tokens=TOKENS, max_new=st.integers(0, 9), start=st.sampled_from([None, None, 0, 2]), hinted=st.booleans())
    def generate(self, tokens: list[int], max_new: int, start: int | None, hinted: bool) -> None:
        name = f"g{len(self.requests)}"
        self.requests[name] = tokens
        self.spared.add(name)
        hints = Hints("p", shared_len=len(tokens) // 2, siblings=3, last_use=max_new % 2 == 0) if hinted else Hints()
        logprobs = None if start is None else LogprobParams(start_len=start)
        self.bench.add(name, tokens, max_new, hints=hints, logprobs=logprobs)

    @rule(data=st.data(), tokens=TOKENS, max_new=st.integers(0, 9), kept=st.integers(0, 9), hinted=st.booleans(),
          start=st.sampled_from([None, None, None, 0, 2, 9]))  # fmt: skip
    def go_on(
        self, data: st.DataObject, tokens: list[int], max_new: int, kept: int, hinted: bool, start: int | None
    ) -> None:
        """A stream's next request, or a branch's first: behind another's prompt and some of what that wrote."""
        name = f"p{len(self.requests)}"
        behind = data.draw(st.sampled_from([None, *self.paths]))
        path = None if behind is None else TokenPath(self.paths[behind], self.bench.sampled(behind)[:kept])
        if path is not None and len(path) > 20:
            path = None
        shared_len = 0 if path is None else len(path)
        path = self.paths[name] = TokenPath(path, tokens)
        self.requests[name] = list(path)
        self.spared.add(name)
        hints = Hints("p", shared_len=shared_len, siblings=3, last_use=max_new % 2 == 0) if hinted else Hints()
        logprobs = None if start is None else LogprobParams(start_len=start)
        self.bench.add(name, path, max_new, hints=hints, logprobs=logprobs)
        if hinted and path.parent is not None:
            self.bench.scheduler.memory.hear(ForkDeclared("p", path.parent, 3))

    @rule(tokens=TOKENS, unconditional=st.booleans(), as_path=st.booleans())
    def select(self, tokens: list[int], unconditional: bool, as_path: bool) -> None:
        name = f"s{len(self.requests)}"
        self.requests[name] = tokens
        self.bench.number += 1
        ids = TokenPath(None, tokens) if as_path else tuple(tokens)
        request = ScoreRequest(name, ids, TRIE, unconditional=unconditional)
        self.bench.scheduler.add(ScoreJob(request, number=self.bench.number, now=0.0), 0.0)

    @rule(tokens=TOKENS)
    def embed(self, tokens: list[int]) -> None:
        name = f"e{len(self.requests)}"
        self.requests[name] = tokens
        self.bench.number += 1
        self.bench.scheduler.add(EmbedJob(EmbedRequest(name, tuple(tokens)), number=self.bench.number, now=0.0), 0.0)

    @rule(bad=st.sets(st.integers(0, 3), max_size=2))
    def step(self, bad: set[int]) -> None:
        self.bench.step(bad=bad)
        self.note_failures()

    @rule()
    def good_step(self) -> None:
        self.bench.step()

    @rule()
    def failed_step(self) -> None:
        self.bench.fail()

    @precondition(lambda self: self.bench.scheduler.num_running)
    @rule(data=st.data())
    def retract(self, data: st.DataObject) -> None:
        running = [job.request_id for job in self.bench.scheduler.jobs() if job.status is Status.RUNNING]
        self.bench.scheduler.retract(data.draw(st.sampled_from(running)))

    @precondition(lambda self: self.bench.scheduler.jobs())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([job.request_id for job in self.bench.scheduler.jobs()]))
        event = self.bench.scheduler.cancel(name, 0.0)
        assert event is not None
        self.bench.events.append(event)
        self.spared.discard(name)

    @rule()
    def flush(self) -> None:
        self.bench.scheduler.memory.flush()

    @rule(tokens=TOKENS, count=st.integers(1, 3))
    def declare(self, tokens: list[int], count: int) -> None:
        self.bench.scheduler.memory.hear(ForkDeclared("p", tuple(tokens), count))

    @rule(tokens=TOKENS)
    def branch_ends(self, tokens: list[int]) -> None:
        self.bench.scheduler.memory.hear(BranchesEnded("p", tuple(tokens), 1))

    @rule()
    def program_ends(self) -> None:
        self.bench.scheduler.memory.hear(ProgramEnded("p"))

    @invariant()
    def all_is_well(self) -> None:
        if hasattr(self, "bench"):
            self.bench.scheduler.check_integrity()

    @invariant()
    def a_path_leads_where_its_tokens_are(self) -> None:
        if not hasattr(self, "bench"):
            return
        memory = self.bench.scheduler.memory
        for path in self.paths.values():
            tokens = array(TOKEN_CODE, path)
            if isinstance(path.place, Place) and memory.tree.try_root() is not None:
                node = memory.tree.resume("", path.place, tokens, len(tokens))
                match = memory.tree.match_prefix(memory.tree.root(), tokens, len(tokens))
                if node is not None:
                    found = memory.tree.match_prefix(node, tokens, len(tokens)).node
                    assert found is match.node
                    assert memory.tree.path_slots(found) == match.slots

    def note_failures(self) -> None:
        for event in self.bench.events:
            if isinstance(event, TokenEvent) and event.finish and event.finish.reason is FinishReason.FAILED:
                self.spared.discard(event.request_id)

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        self.bench.drain()
        ends = [e.request_id for e in self.bench.events if not isinstance(e, TokenEvent) or e.finish is not None]
        assert sorted(ends) == sorted(self.requests)
        memory = self.bench.scheduler.memory
        assert memory.num_available == memory.allocator.num_slots, "a slot leaked"
        for event in self.bench.events:
            if isinstance(event, ScoreEvent) and event.error is None:
                assert event.logprobs == expected_scores(self.requests[event.request_id], TRIE)
        for name in self.spared:
            sampled = self.bench.sampled(name)
            assert sampled == golden(self.requests[name], len(sampled))


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
