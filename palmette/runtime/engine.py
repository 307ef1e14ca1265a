"""The engine: one model, its pool, its jobs. `step` is the primitive; threads and servers are thin drivers around it.

    add -> [ expire -> schedule -> forward -> evaluate -> apply ] -> events
            `------------------- step -------------------------'

Where a device computes, the same stages are those of two steps at once: overlap.py.

Used by one thread at a time. Knows no clock: time comes in as a number of seconds that only grows.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from palmette.errors import InvalidOption, PalmetteError, RequestError
from palmette.fsm.cursor import CompiledConstraint
from palmette.runtime.admission import Limits
from palmette.runtime.compiling import Compiler
from palmette.runtime.config import RuntimeConfig
from palmette.runtime.evaluate import Evaluation, prepare, start
from palmette.runtime.guide import Guide
from palmette.runtime.memory import KVMemory
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.optimum import ReuseOptimum
from palmette.runtime.output import Output
from palmette.runtime.overlap import OverlappedLoop, Queued
from palmette.runtime.parallel.runner import ParallelRunner
from palmette.runtime.request import AnyJob, EmbedJob, GenerateJob, ScoreJob, refusal
from palmette.runtime.runner import Runner
from palmette.runtime.runners import make_runner, settle, warm_up
from palmette.runtime.scheduler import Scheduler
from palmette.runtime.stats import Stats
from palmette.runtime.step import ScheduledStep, StepResults
from palmette.runtime.tokenizer import Tokenizer
from palmette.types import Event, FinishReason, GenerateRequest, ProgramEvent, Request, ScoreRequest


@dataclass(frozen=True, slots=True)
class _Queued:
    """A step that the runner was given; see overlap.Queued."""

    step: ScheduledStep
    logits: Tensor | None
    embeddings: list[Tensor]
    runner: Runner

    def start(self) -> Evaluation:
        found = start(self.step, prepare(self.step), self.logits, self.embeddings, self.runner.ops)
        for rows, tokens in found.drawn():
            self.runner.keep_drawn(rows, tokens)
        return found


class EngineCore:
    """Runs requests on a model. Every request that `add` takes ends in exactly one terminal event out of `step`."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        limits: Limits,
        *,
        config: RuntimeConfig,
        tokenizer: Tokenizer,
    ) -> None:
        """See `build_engine`, which makes the parts fit."""
        self.config = config
        self.scheduler = scheduler
        self._runner = runner
        self._limits = limits
        self.compiler = Compiler(tokenizer, config.constraints)
        self._tokenizer = tokenizer
        self._events: list[Event] = []  # that the next step hands out
        self._num_requests = 0
        overlap = config.scheduler.overlap
        overlaps = overlap == "on" or (overlap == "auto" and runner.is_asynchronous)
        self._overlapped = OverlappedLoop(scheduler, self._queue) if overlaps else None

    @property
    def has_work(self) -> bool:
        """Would a step do or say anything?"""
        is_busy = self._overlapped is not None and self._overlapped.is_busy
        return bool(self._events or self.scheduler.num_waiting or self.scheduler.num_running or is_busy)

    def add(self, request: Request, now: float, constraint: CompiledConstraint | None = None) -> None:
        """Queue a request; O(its length). One that can never run is answered by the next step.

        Args:
            constraint: the request's own, compiled by `compiler`; compiled here where it is missing.

        Raises:
            InvalidOption: a live request has this id.
        """
        if request.request_id in self.scheduler:
            raise InvalidOption("request_id", request.request_id, "an id that no live request has")
        try:
            self._limits.check(request)
            job = self._job(request, self._guide(request, constraint), self._num_requests + 1, now)
        except PalmetteError as error:
            self._events.append(refusal(request, FinishReason.FAILED, error))
            return
        self._num_requests += 1
        event = self.scheduler.add(job, now)
        if event is not None:
            self._events.append(event)

    def cancel(self, request_id: str, now: float) -> None:
        """End a request; the next step hands out its event. Its slots are free at once. An ended one is left alone."""
        event = self.scheduler.cancel(request_id, now)
        if event is not None:
            self._events.append(event)

    def notify(self, event: ProgramEvent) -> None:
        """Hear what a program tells of its future."""
        self.scheduler.memory.hear(event)

    def commit_memory(self) -> None:
        """Take the whole KV pool from the system, before there is any request, so that memory stays flat later."""
        assert not self.has_work, "the pool's contents are lost"
        self._runner.kv_pool.commit()

    def flush_cache(self) -> None:
        """Forget every cached prefix that no running request uses."""
        self.scheduler.memory.flush()

    def step(self, now: float) -> list[Event]:
        """One forward pass over whatever is due, and the events it brings. Returns at once if nothing is.

        An exception is not one request's fault. The jobs of the step are queued again then, with nothing of it kept.
        """
        events, self._events = self._events, []
        events += self.scheduler.expire(now)
        try:
            new = self._plain_step(now) if self._overlapped is None else self._overlapped.step(now)
            if isinstance(self._runner, ParallelRunner):
                self._runner.check()  # before anything is told: what is computed beside a rank that died is garbage
            return events + new
        except BaseException:
            self._events = events  # they are still owed
            raise

    def _plain_step(self, now: float) -> list[Event]:
        step = self.scheduler.schedule()
        if step is None:
            return []
        try:
            results = self._compute(step)
        except BaseException:
            self.scheduler.abort()
            raise
        return self.scheduler.apply(step, results, now)

    def close(self) -> None:
        """End the processes that share the model, if any. Nothing can be computed any more."""
        if isinstance(self._runner, ParallelRunner):
            self._runner.close()

    def fail_all(self, now: float, error: PalmetteError) -> list[Event]:
        """End everything that is owed an event. What is in flight is forgotten."""
        events, self._events = self._events, []
        if self._overlapped is not None:
            self._overlapped.drop()
        return events + self.scheduler.fail_all(now, error)

    def stats(self) -> Stats:
        """This moment's numbers; O(1)."""
        memory, counters, optimum = self.scheduler.memory, self.scheduler.counters, self.scheduler.optimum
        return Stats(
            running=self.scheduler.num_running,
            waiting=self.scheduler.num_waiting,
            kv_total=memory.allocator.num_slots,
            kv_free=memory.allocator.num_free,
            kv_evictable=memory.tree.num_evictable,
            prompt_tokens=counters.prompt_tokens,
            computed_prompt_tokens=counters.computed_prompt_tokens,
            cached_prompt_tokens=counters.cached_prompt_tokens,
            recomputed_tokens=counters.recomputed_tokens,
            scored_tokens=counters.scored_tokens,
            sampled_tokens=counters.sampled_tokens,
            forced_tokens=counters.forced_tokens,
            steps=counters.steps,
            retractions=counters.retractions,
            finished=counters.finished,
            optimum_computed_tokens=None if optimum is None else optimum.computed_tokens,
        )

    def check_integrity(self) -> None:
        """O(pool); for tests and for idle moments.

        Raises:
            AssertionError: an invariant of allocator, tree or scheduler is broken.
        """
        self.scheduler.check_integrity()

    def _compute(self, step: ScheduledStep) -> StepResults:
        draws = prepare(step)
        embeddings = self._embed(step)
        logits = self._runner.forward(step.batch, draws.masks(step)) if step.batch.rows else None
        return start(step, draws, logits, embeddings, self._runner.ops).finish()

    def _queue(self, step: ScheduledStep) -> Queued:
        """The same as far as it can be without knowing all tokens before it."""
        embeddings = self._embed(step)
        logits = self._runner.forward(step.batch) if step.batch.rows else None
        return _Queued(step, logits, embeddings, self._runner)

    def _embed(self, step: ScheduledStep) -> list[Tensor]:
        return [self._runner.embed(e.job.request.token_ids, e.slots, e.row) for e in step.embeds]

    def _guide(self, request: Request, constraint: CompiledConstraint | None) -> Guide | None:
        """
        Raises:
            UnsupportedConstraint: the constraint cannot be enforced.
            RequestError: no text that satisfies it fits into the request's tokens.
        """
        if not isinstance(request, GenerateRequest) or request.constraint is None or not request.params.max_new_tokens:
            return None
        constraint = constraint or self.compiler.compile(request.constraint)
        tokenizer, options = self._tokenizer, self.config.constraints
        if options.retokenize == "paper" and request.logprobs is not None:
            raise InvalidOption("logprobs", "...", 'none with retokenize="paper": it rewrites tokens after their draw')
        encode = {"safe": tokenizer.encode_certain, "paper": tokenizer.encode_bytes}.get(options.retokenize)
        guide = Guide(
            constraint.matcher(),
            token_bytes=tokenizer.token_bytes,
            eos_ids=tokenizer.eos_ids,
            encode=encode,
            rewrites=options.retokenize == "paper",
            jumps=options.jump_forward,
            unenforced=constraint.unenforced,
        )
        needed, left = guide.min_tokens(), self._limits.max_new_tokens(request)
        if needed > left:
            raise RequestError(
                f"the shortest text that satisfies the constraint may need {needed} tokens, and {left} are allowed: "
                "allow more (max_tokens, or max_new_tokens)"
            )
        return guide

    def _job(self, request: Request, guide: Guide | None, number: int, now: float) -> AnyJob:
        if isinstance(request, GenerateRequest):
            output = Output(
                request.params,
                max_new_tokens=self._limits.max_new_tokens(request),
                eos_ids=self._tokenizer.eos_ids,
                # A special token that a constraint names, such as a mark of tool calls, is part of the text.
                token_bytes=self._tokenizer.token_bytes if guide is None else self._tokenizer.shown_bytes,
                must_end=guide is not None,
                searches=[self.compiler.pattern(text).scanner() for text in request.params.stop_regex],
            )
            return GenerateJob(request, output, guide, number=number, now=now)
        if isinstance(request, ScoreRequest):
            return ScoreJob(request, number=number, now=now)
        return EmbedJob(request, number=number, now=now)


def build_engine(loaded: LoadedModel, config: RuntimeConfig | None = None) -> EngineCore:
    """An engine on a loaded model.

    Args:
        config: what it leaves open is settled by the model; `EngineCore.config` is the result.

    Raises:
        InvalidOption: an option the model does not allow.
    """
    config = settle(config or RuntimeConfig(), loaded)
    cache, context_len = config.cache, config.model.context_len
    assert cache.kv_tokens is not None, "settle leaves nothing open"
    assert context_len is not None, "settle leaves nothing open"
    runner = make_runner(loaded, config, num_rows=Scheduler.num_rows(config.scheduler))
    if runner.kv_pool.is_on_gpu:
        warm_up(runner, config)
    memory = KVMemory(cache.kv_tokens, cache.page_size, shares=cache.enabled, listens=cache.hints)
    scheduler = Scheduler(memory, config.scheduler, optimum=ReuseOptimum() if cache.measure_optimum else None)
    return EngineCore(
        runner,
        scheduler,
        Limits(loaded.config.vocab_size, context_len, cache.kv_tokens, cache.page_size),
        config=config,
        tokenizer=loaded.tokenizer,
    )
