"""The overlapped loop gives what the plain one gives, and never waits for a step before the next one is queued."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from palmette.errors import Cancelled, HoleTimeout, InvalidOption, NumericalError, RequestError
from palmette.native import NotBuilt
from palmette.runtime.engine import EngineCore
from palmette.runtime.later import Later
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.radix_node import NodeState
from palmette.runtime.request import GenerateJob, Status
from palmette.runtime.step import ScheduledStep
from palmette.specs import Choices, JsonSchema, Regex, Spec
from palmette.types import (
    ChoiceTrie,
    EmbedEvent,
    EmbedRequest,
    Event,
    FinishReason,
    GenerateRequest,
    Hints,
    LogprobParams,
    ProgramEnded,
    Request,
    SamplingParams,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
    TokenLogprob,
)
from tests.runtime.driving import Run, drive, engine, generate, text_ids
from tests.runtime.path_runner import path_behind, path_engine, runner_of
from tests.runtime.test_engine import assert_golden, batch

LOOPS: list[dict[str, Any]] = [{"overlap": "off"}, {"overlap": "on"}, {"lazy": True}]

SPECS: dict[str, Spec] = {
    "words": Regex(r"[a-e]{1,4}( [a-e]{1,3}){0,2}\."),
    "jumps": Regex(r"[ab]( is certain|: anything else)[cd]!"),
    "choices": Choices(("abc", "abcde", "bad", "cab")),
    "object": JsonSchema.of(
        {
            "type": "object",
            "properties": {"a": {"enum": ["b", "cd"]}, "n": {"type": "boolean"}},
            "required": ["a", "n"],
            "additionalProperties": False,
        }
    ),
    "fixed": Regex("nothing to choose"),
}
TRIE = ChoiceTrie((97, 98, 99, 98, 100, 97, 99), (-1, 0, 1, 0, -1, 4, 5))


# -- any work ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """Requests, when they come, and what happens to them."""

    options: dict[str, Any]
    arrivals: tuple[tuple[int, Request], ...]  # step, ascending
    cancels: dict[str, int] = field(default_factory=dict)  # request -> step
    retracts: frozenset[int] = frozenset()  # steps behind which a running request is sent back
    flushes: frozenset[int] = frozenset()

    def play(self, core: EngineCore) -> Run:
        """Everything, a second a step."""
        rng, run, arrivals = random.Random(0), Run(), list(self.arrivals)
        while arrivals or core.has_work:
            now = float(run.steps)
            while arrivals and arrivals[0][0] <= run.steps:
                core.add(arrivals.pop(0)[1], now)
            for name, step in self.cancels.items():
                if step == run.steps:
                    core.cancel(name, now)
            run.take(core.step(now))
            core.check_integrity()
            if run.steps in self.retracts:
                running = [job.request_id for job in core.scheduler.jobs() if job.status is Status.RUNNING]
                if running:
                    core.scheduler.retract(rng.choice(running))
            if run.steps in self.flushes:
                core.flush_cache()
                core.notify(ProgramEnded("p"))
            core.check_integrity()
            run.steps += 1
            assert run.steps < 3000, "it does not come to an end"
        stats = core.stats()
        assert stats.kv_free + stats.kv_evictable == stats.kv_total, "a slot leaked"
        return run

    def alone(self, request: Request) -> Run:
        """One request in the plain loop, with all the memory there is and nobody else."""
        options = {name: self.options[name] for name in ("retokenize", "jump_forward")} | {"kv_tokens": 256}
        if not isinstance(request, EmbedRequest):
            request = replace(request, timeout=None)
        return drive(path_engine(overlap="off", **options), [request])


def random_text(rng: random.Random, least: int, most: int) -> str:
    return "".join(rng.choice("abcde .") for _ in range(rng.randint(least, most)))


def random_generate(rng: random.Random, name: str, prompt: str, *, rewrites: bool) -> GenerateRequest:
    constraint = rng.choice([None, None, *SPECS.values()])
    max_new = rng.choice((0, 1, 2, 5, 9, 9, 14))
    params = SamplingParams(
        max_new_tokens=max_new if constraint is None else max(40, max_new),
        min_new_tokens=rng.choice((0, 0, 0, min(2, max_new))),
        temperature=rng.choice((0.0, 0.7, 1.3)),
        top_p=rng.choice((1.0, 0.9)),
        top_k=rng.choice((-1, 12)),
        min_p=rng.choice((0.0, 0.02)),
        frequency_penalty=rng.choice((0.0, 0.0, 1.0)),
        presence_penalty=rng.choice((0.0, 0.0, 0.5)),
        repetition_penalty=rng.choice((1.0, 1.0, 1.3)),
        stop=rng.choice(((), (), ("ab", "e "), ("ccd",))),
        stop_regex=rng.choice(((), (), ("[ab]d",))),
        stop_token_ids=rng.choice(((), (), (ord("e"),))),
        ignore_eos=rng.random() < 0.5,
    )
    logprobs = None
    if rng.random() < 0.4 and not (rewrites and constraint is not None):
        logprobs = LogprobParams(start_len=rng.choice((None, None, 0, 3)), top=rng.choice((0, 2)))
    return GenerateRequest(
        name,
        text_ids(prompt),
        params,
        seed=rng.getrandbits(64),
        logprobs=logprobs,
        hints=Hints("p", shared_len=min(4, len(prompt)), siblings=3, last_use=True) if rng.random() < 0.3 else Hints(),
        namespace=rng.choice(("", "", "", "other")),
        priority=rng.choice((0, 0, 0, 1)),
        timeout=rng.choice((None,) * 7 + (4.5, 9.5)),
        constraint=constraint,
    )


def random_workload(seed: int) -> Workload:
    rng = random.Random(seed)
    page_size = rng.choice((1, 1, 4))
    options: dict[str, Any] = {
        "kv_tokens": rng.choice((96, 128, 400)),
        "page_size": page_size,
        "chunk_size": rng.choice((4, 8, 16, 64)),
        "max_running": rng.choice((1, 3, 16)),
        "decode_reserve": rng.choice((0, 4)),
        "policy": rng.choice(("longest_prefix", "fcfs", "random")),
        "enabled": rng.random() < 0.85,
        "retokenize": rng.choice(("safe", "safe", "off", "paper")),
        "jump_forward": rng.random() < 0.8,
    }
    rewrites = options["retokenize"] == "paper"
    stems = [random_text(rng, 1, 24) for _ in range(3)]
    arrivals: list[tuple[int, Request]] = []
    at = 0
    for i in range(rng.randint(2, 9)):
        at += rng.choice((0, 0, 0, 1, 4))
        prompt = rng.choice(stems) + random_text(rng, 0, 6) + ("Z" if rng.random() < 0.1 else "")
        kind = rng.random()
        if kind < 0.1:
            ids = text_ids(prompt)
            arrivals.append((at, ScoreRequest(f"s{i}", ids, TRIE, unconditional=rng.random() < 0.5)))
        elif kind < 0.15:
            arrivals.append((at, EmbedRequest(f"e{i}", text_ids(prompt))))
        else:
            request = random_generate(rng, f"g{i}", prompt, rewrites=rewrites)
            arrivals.append((at, request))
            for n in range(rng.choice((0, 0, 2))):  # n answers to one prompt
                sibling = replace(request, request_id=f"g{i}.{n}", seed=rng.getrandbits(64))
                arrivals.append((at, sibling))
    names = [request.request_id for _, request in arrivals]
    return Workload(
        options,
        tuple(arrivals),
        cancels={name: rng.randint(0, 12) for name in names if rng.random() < 0.15},
        retracts=frozenset(rng.sample(range(20), rng.choice((0, 0, 4)))),
        flushes=frozenset(rng.sample(range(20), rng.choice((0, 2)))),
    )


def told(run: Run, name: str) -> list[TokenLogprob]:
    return [*run.finish(name).prompt_logprobs, *run.logprobs(name)]


def assert_same_logprobs(found: Sequence[TokenLogprob], wanted: Sequence[TokenLogprob]) -> None:
    assert [(row.token_id, row.forced) for row in found] == [(row.token_id, row.forced) for row in wanted]
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert [token for token, _ in mine.top] == [token for token, _ in theirs.top]
        assert [value for _, value in mine.top] == pytest.approx([value for _, value in theirs.top], abs=1e-4)


def is_cut_short(event: Event) -> bool:
    error = event.finish.error if isinstance(event, TokenEvent) and event.finish is not None else None
    error = error if isinstance(event, TokenEvent) else event.error
    return isinstance(error, (Cancelled, HoleTimeout))


def assert_same(name: str, run: Run, alone: Run) -> None:
    """What a request was told, however it was grouped."""
    last, wanted = run.last(name), alone.last(name)
    assert [not isinstance(e, TokenEvent) or e.finish is not None for e in run.events[name]].count(True) == 1
    if is_cut_short(last):
        if isinstance(last, TokenEvent):
            tokens = run.sampled(name)
            assert tokens == alone.sampled(name)[: len(tokens)]
            before = "".join(e.text for e in run.events[name][:-1] if isinstance(e, TokenEvent))
            assert alone.text(name).startswith(before)  # the last brings out what a stop string might have begun with
        return
    if isinstance(last, TokenEvent):
        mine, theirs = run.finish(name), alone.finish(name)
        assert run.sampled(name) == alone.sampled(name)
        assert run.text(name) == alone.text(name)
        assert (mine.reason, mine.token_ids, mine.tail) == (theirs.reason, theirs.token_ids, theirs.tail)
        assert (mine.matched, mine.steered) == (theirs.matched, theirs.steered)
        assert type(mine.error) is type(theirs.error)
        assert replace(mine.usage, cached_tokens=0, seconds=0.0) == replace(theirs.usage, cached_tokens=0, seconds=0.0)
        if mine.error is None:  # else how many it has of its prompt depends on the size of steps
            assert_same_logprobs(told(run, name), told(alone, name))
    elif isinstance(last, ScoreEvent):
        assert isinstance(wanted, ScoreEvent)
        assert type(last.error) is type(wanted.error)
        assert last.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)
        assert last.unconditional == pytest.approx(wanted.unconditional, abs=1e-4)
    else:
        assert isinstance(wanted, EmbedEvent)
        assert last.embedding == wanted.embedding


@pytest.mark.parametrize("block", range(4))
def test_every_loop_tells_each_request_what_it_would_be_told_alone(block: int) -> None:
    happened = Counter[str]()
    for seed in range(block * 30, block * 30 + 30):
        workload = random_workload(seed)
        alone = {request.request_id: workload.alone(request) for _, request in workload.arrivals}
        for loop in LOOPS:
            core = path_engine(**workload.options, **loop)
            if loop.get("lazy"):
                Watch(core)
            run = workload.play(core)
            assert run.events.keys() == alone.keys()
            for name in alone:
                assert_same(name, run, alone[name])
                happened[type(run.error(name)).__name__] += 1
            happened["retracted"] += core.stats().retractions
            happened["forced"] += core.stats().forced_tokens
            happened["recomputed"] += core.stats().recomputed_tokens
    for what in ("NoneType", "Cancelled", "HoleTimeout", "NumericalError", "retracted", "forced", "recomputed"):
        assert happened[what] > 2, f"work without {what}"


# -- what waits for what -------------------------------------------------------------------------------------------


class Watch:
    """Fails when the host waits for a step before the next one is queued, unless the scheduler has none."""

    def __init__(self, core: EngineCore) -> None:
        self.num_waits = 0
        self._is_planned = False  # the step behind the one that was started last, if there is one
        self._is_owed = False  # it is planned, and not queued
        scheduler, runner = core.scheduler, runner_of(core)
        schedule, forward, finite_rows = scheduler.schedule, runner.forward, runner.ops.finite_rows

        def watched_schedule() -> ScheduledStep | None:
            step = schedule()
            self._is_planned, self._is_owed = True, step is not None and bool(step.batch.rows)
            return step

        def watched_forward(*args: Any) -> torch.Tensor:
            self._is_owed = False
            return forward(*args)

        def watched_finite_rows(logits: torch.Tensor) -> Later[list[bool]]:
            self._is_planned = False
            return finite_rows(logits)

        scheduler.schedule = watched_schedule  # type: ignore[method-assign]
        runner.forward = watched_forward  # type: ignore[method-assign, assignment]
        runner.ops.finite_rows = watched_finite_rows  # type: ignore[method-assign]
        runner.stream.on_wait = self._waits

    def _waits(self) -> None:
        self.num_waits += 1
        assert self._is_planned, "the device is waited for before anybody looked for its next work"
        assert not self._is_owed, "the device is waited for with nothing to do behind that"


def test_the_device_always_has_the_next_step() -> None:
    core = path_engine(lazy=True, chunk_size=16)
    watch = Watch(core)
    requests = [
        generate("greedy", "abc", 12),
        generate("drawn", "abcd", 12, temperature=1.0, seed=4, repetition_penalty=1.2),
        generate("constrained", "ab", 30, constraint=SPECS["object"], temperature=1.0),
        generate("logprobs", "abcc" * 8, 9, logprobs=LogprobParams(start_len=0, top=2)),
    ]
    run = drive(core, requests)
    assert watch.num_waits >= run.steps >= 12
    for request in requests:
        assert_same(request.request_id, run, drive(path_engine(overlap="off"), [request]))


def test_a_step_is_planned_before_its_tokens_are_known_and_takes_no_longer() -> None:
    """As many steps as in the plain loop, but for rows that go on behind an end that nobody could foresee."""
    ends = generate("ends", "abc", 30, temperature=1.0, seed=2, stop_token_ids=(ord("e"),))
    known = generate("known", "abcd", 6)
    steps = {}
    for lazy in (False, True):
        core = path_engine(lazy=lazy)
        run = drive(core, [ends, known])
        steps[lazy] = core.stats().steps
        assert len(run.sampled("known")) == 6
    assert steps[True] - steps[False] == 1


def test_a_small_pool_retracts_as_in_the_plain_loop() -> None:
    core = path_engine(lazy=True, kv_tokens=120, decode_reserve=0)
    requests = [generate(f"r{i}", f"request {i} says", 40) for i in range(6)]
    run = drive(core, requests)
    plain = path_engine(kv_tokens=120, decode_reserve=0)
    drive(plain, requests)
    assert 0 < core.stats().retractions <= plain.stats().retractions + 2
    for request in requests:
        assert_same(request.request_id, run, drive(path_engine(), [request]))


# -- what a step in flight leaves behind ---------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_what_enters_the_tree_ends_where_it_does_in_the_plain_loop(loop: dict[str, Any]) -> None:
    core = path_engine(**loop)
    run = drive(core, [generate("a", "abc", 30, temperature=1.0, seed=2, stop_token_ids=(ord("e"),))])
    assert run.finish("a").reason is FinishReason.STOP
    assert core.scheduler.memory.tree.num_tokens == 3 + len(run.sampled("a")) - 1
    assert core._overlapped is None or not core._overlapped.is_busy, "there was work left"


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("steps", range(1, 6))
def test_a_request_that_leaves_gives_its_row_to_another_at_once(steps: int, loop: dict[str, Any]) -> None:
    core = path_engine(max_running=1, **loop)
    core.add(generate("a", "abc", 20), 0.0)
    core.add(generate("b", "bcd", 5, temperature=1.0), 0.0)
    run = Run()
    for _ in range(steps):
        run.take(core.step(0.0))
    core.cancel("a", 0.0)
    core.check_integrity()
    rest = drive(core)
    for events in rest.events.values():
        run.take(events)
    assert run.finish("a").reason is FinishReason.CANCELLED
    assert_same("b", run, drive(path_engine(), [generate("b", "bcd", 5, temperature=1.0)]))


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("every", [2, 3])
def test_a_request_that_comes_back_hears_nothing_of_its_earlier_run(every: int, loop: dict[str, Any]) -> None:
    """Its row is its own again, and its last draw still on the way."""
    request = generate("a", "abc", 12, temperature=1.0, seed=5)
    core = path_engine(max_running=1, **loop)

    def after_step(core: EngineCore, step: int) -> None:
        if step % every == 0 and core.scheduler.num_running:
            core.scheduler.retract("a")

    assert_same("a", drive(core, [request], after_step=after_step, max_steps=100), drive(path_engine(), [request]))


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("flushes", [False, True])
def test_the_last_step_in_flight_is_taken_in_when_all_who_wanted_it_are_gone(
    flushes: bool, loop: dict[str, Any]
) -> None:
    core = path_engine(chunk_size=4, **loop)
    core.add(generate("a", "abcdeabcdeabcde", 20), 0.0)
    core.step(0.0)
    core.cancel("a", 0.0)
    if flushes:
        core.flush_cache()
    core.check_integrity()
    drive(core)
    assert core._overlapped is None or not core._overlapped.is_busy
    assert all(node.state is not NodeState.IN_FLIGHT for node in core.scheduler.memory.tree.nodes())
    core.flush_cache()
    assert core.stats().kv_free == core.stats().kv_total


@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_the_end_of_everything_ends_what_is_in_flight(loop: dict[str, Any]) -> None:
    core = path_engine(**loop)
    for i in range(3):
        core.add(generate(f"r{i}", "abc", 20), 0.0)
    core.step(0.0)
    events = core.fail_all(1.0, NumericalError("the end"))
    assert sorted(event.request_id for event in events) == ["r0", "r1", "r2"]
    assert not core.has_work
    core.check_integrity()
    assert core.stats().kv_free + core.stats().kv_evictable == core.stats().kv_total
    request = generate("again", "abc", 5)
    assert_same("again", drive(core, [request]), drive(path_engine(), [request]))


# -- what breaks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_tokens_that_went_wrong_once_never_stay_in_the_cache(seed: int, loop: dict[str, Any]) -> None:
    """A path is computed wrongly once. Who is told so may differ; all others are right, and so is what is cached."""
    rng = random.Random(seed)
    stem = random_text(rng, 3, 12)
    requests = [generate(f"r{i}", stem + random_text(rng, 0, 4), 8, temperature=1.0, seed=i) for i in range(6)]
    core = path_engine(chunk_size=rng.choice((4, 8, 64)), page_size=rng.choice((1, 4)), max_running=4, **loop)
    runner, path, wrong = runner_of(core), 0, set[int]()
    for token in requests[rng.randrange(6)].token_ids:
        path = path_behind(path, token)
        if rng.random() < 0.2:
            wrong.add(path)
    runner.corrupt = wrong
    cancelled = f"r{rng.randrange(6)}"
    at = rng.randint(1, 6)

    def after_step(core: EngineCore, step: int) -> None:
        if step == at:
            core.cancel(cancelled, 0.0)

    run = drive(core, requests, after_step=after_step)
    for request in requests:
        finish = run.finish(request.request_id)
        if finish.reason not in (FinishReason.FAILED, FinishReason.CANCELLED):
            assert_same(request.request_id, run, drive(path_engine(), [request]))
    for slot in core.scheduler.memory.tree.slots():
        assert not runner.contents[slot].is_bad


@pytest.mark.parametrize("where", ["forward", "finite_rows", "sample"])
@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_whatever_raises_nothing_is_lost(where: str, loop: dict[str, Any]) -> None:
    core = path_engine(chunk_size=16, **loop)
    owner: Any = runner_of(core) if where == "forward" else runner_of(core).ops
    plain, calls = getattr(owner, where), 0

    def sometimes(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 4 == 1:
            raise MemoryError("no room")
        return plain(*args)

    setattr(owner, where, sometimes)
    requests = [generate(f"r{i}", "abcab" + "cde"[i % 3] * i, 6, temperature=1.0, seed=i) for i in range(7)]
    for request in requests:
        core.add(request, 0.0)
    run, failures = Run(), 0
    while core.has_work:
        run.steps += 1
        assert run.steps < 300, "it does not come to an end"
        try:
            run.take(core.step(0.0))
        except MemoryError:
            failures += 1
        core.check_integrity()
    assert failures > 1
    for request in requests:
        assert_same(request.request_id, run, drive(path_engine(), [request]))


def test_a_result_that_cannot_be_had_aborts_both_steps() -> None:
    """The device breaks: its error comes when somebody waits."""
    core = path_engine(lazy=True)
    request = generate("a", "abc", 6)
    core.add(request, 0.0)
    run = Run()
    run.take(core.step(0.0))

    def breaks() -> None:
        raise RuntimeError("the device is gone")

    runner_of(core).stream.on_wait = breaks
    with pytest.raises(RuntimeError, match="the device is gone"):
        core.step(0.0)
    core.check_integrity()
    assert core.scheduler.num_running == 0
    assert core.scheduler.num_waiting == 1
    runner_of(core).stream.on_wait = lambda: None
    for events in drive(core).events.values():
        run.take(events)
    assert_same("a", run, drive(path_engine(), [request]))


@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_a_draw_that_fails_ends_its_request_alone(loop: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    core = path_engine(**loop)
    constrained = generate("a", "abc", 20, constraint=SPECS["words"])
    other = generate("b", "abc", 6)
    for request in (constrained, other):
        core.add(request, 0.0)
    (job,) = [job for job in core.scheduler.jobs() if job.request_id == "a"]
    assert isinstance(job, GenerateJob)
    assert job.guide is not None
    plain, calls = job.guide.mask, 0

    def breaks(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise RequestError("no way on")
        return plain(*args)

    monkeypatch.setattr(job.guide, "mask", breaks)
    run = drive(core)
    assert run.finish("a").reason is FinishReason.FAILED
    assert_same("b", run, drive(path_engine(), [other]))


# -- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"chunk_size": 16, "page_size": 4}, {"max_running": 3}, {"kv_tokens": 192, "decode_reserve": 0}],
    ids=str,
)
def test_no_token_of_a_model_changes(options: dict[str, Any]) -> None:
    assert_golden(drive(engine(overlap="on", **options), batch()), batch())


def test_the_compiled_core_takes_part() -> None:
    """Its logits are the same bits in any batch."""
    try:
        loaded = tiny_model(seed=3, cpu_kernels="auto")
    except NotBuilt as error:
        pytest.skip(f"no compiled core: {error}")
    runs = [drive(engine(loaded, overlap=overlap), batch()) for overlap in ("off", "on")]
    assert runs[0].all_sampled() == runs[1].all_sampled()


def test_overlap_is_on_where_results_come_later() -> None:
    assert path_engine()._overlapped is None
    assert path_engine(lazy=True)._overlapped is not None
    assert path_engine(lazy=False, overlap="on")._overlapped is not None
    with pytest.raises(InvalidOption, match="overlap"):
        engine(overlap="sometimes")
