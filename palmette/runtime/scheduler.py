"""Who runs: admits, schedules, retracts and ends jobs. The one place that changes them.

    schedule() -> ScheduledStep -> (the engine computes it) -> apply(step, results) -> events
                                                        `----> abort() if that failed

While a step is in flight the next may be scheduled ahead: a job that draws in the first goes on in the second with a
token that nobody knows yet (drawn.py). Nobody is retracted then: whether memory is short is seen when all is known. The
part of a job that ended, or stopped running, between the two is dropped when its step is applied.

A step holds every decode, then prompts in progress, then newcomers in the policy's order, within a budget of tokens.
When memory runs out, cached prefixes go first, then the job with the least progress is retracted: what it computed
stays cached while there is room, and it resumes later with the same text, since a draw depends on its seed and place
alone.

Knows jobs, memory and policy. Knows no tensors, threads or clocks: time comes in as a number.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator

from palmette.errors import Cancelled, HoleTimeout, NumericalError, PalmetteError
from palmette.runtime.config import DEFAULT_CHUNK, SchedulerConfig
from palmette.runtime.deadlines import Deadlines
from palmette.runtime.memory import KVMemory
from palmette.runtime.optimum import ReuseOptimum
from palmette.runtime.planner import StepPlan
from palmette.runtime.policy import make_policy
from palmette.runtime.radix_node import RadixNode
from palmette.runtime.request import Added, AnyJob, EmbedJob, GenerateJob, ScoreJob, Status, as_request_error
from palmette.runtime.stats import Counters
from palmette.runtime.step import AnyPart, Part, Sampled, ScheduledStep, StepResults
from palmette.runtime.waiting import WaitingQueue
from palmette.types import Event, FinishReason, TokenEvent, TokenLogprob

logger = logging.getLogger(__name__)


class Scheduler:
    """All live jobs of one engine."""

    def __init__(self, memory: KVMemory, config: SchedulerConfig, *, optimum: ReuseOptimum | None = None) -> None:
        self.memory = memory
        self.counters = Counters()
        self.optimum = optimum
        self._config = config
        self._policy = make_policy(config.policy, page_size=memory.page_size, seed=config.seed)
        self._jobs: dict[str, AnyJob] = {}  # waiting and running
        self._waiting = WaitingQueue()
        self._running: dict[str, AnyJob] = {}  # by admission
        self._rows = list(range(self.num_rows(config) - 1, -1, -1))  # free rows of the page table
        self._deadlines = Deadlines()
        self._in_flight: deque[ScheduledStep] = deque()  # scheduled, the oldest first, neither applied nor aborted
        self._was_retracted = False  # in the step that is being planned: nobody new is admitted then

    @staticmethod
    def num_rows(config: SchedulerConfig) -> int:
        """Rows that the page table needs: one for each job, and one for a trie behind an empty prompt."""
        return config.max_running + 1

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._jobs

    def jobs(self) -> list[AnyJob]:
        """Every live job."""
        return list(self._jobs.values())

    # -- requests come and go ----------------------------------------------------------------------------------

    def add(self, job: AnyJob, now: float) -> Event | None:
        """Queue a job that fits the pool; O(1). Returns what its constraint says before anything is computed: its
        first text, or its end."""
        self._jobs[job.request_id] = job
        self._waiting.append(job)
        self._deadlines.add(job)
        event = self._begin(job, now) if isinstance(job, GenerateJob) and job.guide is not None else None
        is_computed = job.status is Status.WAITING and not isinstance(job, EmbedJob)
        if self.optimum is not None and is_computed:
            prompt = job.tokens[: job.prompt_len]
            self.optimum.add_prompt(job.namespace, prompt, at_least=int(len(job.tokens) == job.prompt_len))
        return event

    def _begin(self, job: GenerateJob, now: float) -> Event | None:
        try:
            return self._told(job, Added(), (), now) if job.wants_token else None
        except Exception as error:  # one request is one failure domain
            logger.exception("request failed when its constraint began")
            return self._end(job, FinishReason.FAILED, now, as_request_error(error))

    def cancel(self, request_id: str, now: float) -> Event | None:
        """End a job now. Returns its terminal event, None if it ended already."""
        job = self._jobs.get(request_id)
        if job is None:
            return None
        return self._end(job, FinishReason.CANCELLED, now, Cancelled("the request was cancelled"))

    def expire(self, now: float) -> list[Event]:
        """End the jobs whose time is up."""
        events: list[Event] = []
        for job in self._deadlines.expired(now):
            waited = f"no result within {now - job.submitted:.3g} s"
            events.append(self._end(job, FinishReason.CANCELLED, now, HoleTimeout(waited)))
        return events

    def fail_all(self, now: float, error: PalmetteError) -> list[Event]:
        """End every job; steps in flight are aborted."""
        self.abort()
        return [self._end(job, FinishReason.FAILED, now, error) for job in self.jobs()]

    def retract(self, request_id: str) -> None:
        """Send a running job back to the head of the queue. What it computed is cached, as far as it was applied; what
        a step in flight draws for it is drawn again."""
        self._requeue(self._running[request_id], keep=True)

    # -- a step ------------------------------------------------------------------------------------------------

    def schedule(self) -> ScheduledStep | None:
        """Decide the next step; None if there is nothing to do, or nothing before the step in flight is applied.

        Each step must be applied, in order, or aborted.
        """
        self._was_retracted = False
        if self._in_flight:
            return self._schedule_ahead()
        while True:
            plan = StepPlan(self.memory, self.counters)
            self._plan_decodes(plan)
            self._plan_prompts(plan)
            if not self._was_retracted:
                self._admit(plan)
            if not plan.is_empty:
                return self._begun(plan)
            if not self._running:
                if self._was_retracted:
                    self._was_retracted = False
                    continue
                assert not self._waiting, "jobs wait, and none can ever be admitted"
                return None
            assert len(self._running) > 1, "a job alone does not fit the pool"
            self._retract_one()  # several prompts hold all memory, and none can go on

    def _schedule_ahead(self) -> ScheduledStep | None:
        plan = StepPlan(self.memory, self.counters)
        if self._is_short(self._decoding()):
            return None
        self._plan_decodes(plan)
        self._plan_prompts(plan)
        self._admit(plan)
        return None if plan.is_empty else self._begun(plan)

    def _begun(self, plan: StepPlan) -> ScheduledStep:
        step = plan.step()
        self._in_flight.append(step)
        self.memory.tree.begin_step()
        self.counters.steps += 1
        return step

    def apply(self, step: ScheduledStep, results: StepResults, now: float) -> list[Event]:
        """Take in what the oldest step in flight computed."""
        oldest = self._in_flight.popleft()
        assert oldest is step, "steps are applied in the order in which they were scheduled"
        self.memory.tree.mark_computed()
        events = self._fail_bad(step, results, now)
        for index, part in enumerate(step.parts):
            job = part.job
            if not part.is_live:
                continue
            try:
                event = self._apply_part(index, part, results, now)
            except Exception as error:  # one request is one failure domain
                logger.exception("request failed while its result was taken in")
                event = self._end(job, FinishReason.FAILED, now, as_request_error(error))
            if event is not None:
                events.append(event)
        for index, embed in enumerate(step.embeds):
            if embed.is_live:
                embed.job.embedding = results.embeddings[index]
                events.append(self._end(embed.job, FinishReason.STOP, now))
        return events

    def abort(self) -> None:
        """A step failed as a whole: forget what it and all others in flight compute, and queue their jobs again."""
        parts = [part for step in self._in_flight for part in step.all_parts]
        for part in reversed(parts):  # the first ends up at the head of the queue
            if part.is_live:  # a job may have several rows
                self._requeue(part.job, keep=False)
        for top in self.memory.tree.in_flight_tops():
            self._purge(top)
        while self._in_flight:
            self._in_flight.popleft()
            self.memory.tree.mark_computed()

    def check_integrity(self) -> None:
        """O(pool); for tests and for idle moments.

        Raises:
            AssertionError: an invariant is broken.
        """
        private = [job.tail for job in self._running.values()]
        for job in self._running.values():
            assert job.status is Status.RUNNING, "a job that does not run is among the running"
            unknown = job.computed_len - len(job.tokens)
            assert unknown <= 0 or self._in_flight, "a token that nobody draws is computed"
            assert unknown <= 1, "a token behind one that nobody knows is computed"
            assert self._in_flight or isinstance(job, EmbedJob) or job.computed_len == self.memory.settled_len(job), (
                "tokens are said to be computed by a step that never was"
            )
            if isinstance(job, ScoreJob):
                private += [trie.slots for trie in job.passes]
        for job in self._waiting:
            assert job.status is Status.WAITING, "a job that does not wait is in the queue"
            assert job.node is None, "a waiting job holds memory"
            assert not job.tail, "a waiting job holds memory"
        assert len(self._jobs) == len(self._running) + len(self._waiting), "a job is lost"
        rows = [row for job in self._running.values() for row in job.rows]
        assert sorted(rows + self._rows) == list(range(self.num_rows(self._config))), "a page table row is lost"
        self.memory.check_integrity(private)

    # -- planning ----------------------------------------------------------------------------------------------

    def _plan_decodes(self, plan: StepPlan) -> None:
        decoding = self._decoding()
        while self._is_short(decoding):
            self._retract_one()
            decoding = self._decoding()
        for job in decoding:
            plan.add_decode(job)
        chunk = self._config.chunk_size or DEFAULT_CHUNK
        # Prompts go on however many decode: at least an eighth of the chunk is theirs.
        plan.budget = max(chunk - len(decoding), chunk // 8, self.memory.page_size)

    def _decoding(self) -> list[GenerateJob]:
        """Those that go on with one token, known or on its way."""
        return [
            job
            for job in self._running.values()
            if isinstance(job, GenerateJob) and not job.is_extending and (not job.is_awaiting or job.can_go_ahead)
        ]

    def _is_short(self, decoding: list[GenerateJob]) -> bool:
        """Are there fewer slots than these jobs need to go on?"""
        needed = sum(self.memory.held_end(job) <= job.computed_len for job in decoding) * self.memory.page_size
        return needed > self.memory.num_available

    def _plan_prompts(self, plan: StepPlan) -> None:
        # Forced tokens of holes that decode go before prompts: they wait for one step, as a decode does.
        for job in sorted(self._running.values(), key=lambda job: job.progress == 0):
            if isinstance(job, EmbedJob):
                continue
            if job.is_extending:
                cached = job.cached
                self.memory.advance(job)
                self.counters.cached_prompt_tokens += job.cached - cached
                plan.try_add_extend(job)
            if isinstance(job, ScoreJob):
                plan.add_trie(job)

    def _admit(self, plan: StepPlan) -> None:
        if plan.budget <= 0 or not self._waiting or len(self._running) >= self._config.max_running:
            return
        windows = self._waiting.windows(self._config.window)
        reserved = sum(self.memory.reserve(job, self._config.decode_reserve) for job in self._running.values())
        admitted: list[int] = []
        for job in self._candidates(windows):
            if plan.budget <= 0 or len(self._running) >= self._config.max_running:
                break
            if plan.must_wait(job):
                continue
            if not self._try_admit(plan, job, reserved):
                break
            reserved += self.memory.reserve(job, self._config.decode_reserve)
            admitted.append(job.number)
        admitted.sort()
        for window in windows if admitted else ():
            for job in window:
                if job.status is Status.WAITING:
                    job.overtaken += len(admitted) - bisect_right(admitted, job.number)

    def _candidates(self, windows: list[list[AnyJob]]) -> Iterator[AnyJob]:
        """Of each priority, whom too many overtook by arrival, then the others as the policy says."""
        for window in windows:
            limit = self._config.max_overtaken
            yield from [job for job in window if job.overtaken >= limit]
            yield from self._policy.order([job for job in window if job.overtaken < limit], self.memory.probe)

    def _try_admit(self, plan: StepPlan, job: AnyJob, reserved: int) -> bool:
        needs_two = isinstance(job, ScoreJob) and job.unconditional is not None and job.plan.num_inner > 0
        if len(self._rows) < 1 + needs_two:
            return False
        if isinstance(job, EmbedJob):
            if self.memory.num_available - (reserved if self._running else 0) < self.memory.pages(job.prompt_len):
                return False
            job.row = self._rows.pop()
            added = plan.try_add_embed(job)
        else:
            self.memory.attach(job)
            if self._running and self.memory.num_available < reserved + self.memory.reserve(
                job, self._config.decode_reserve
            ):
                self._undo_attach(job)
                return False
            job.row = self._rows.pop()
            if isinstance(job, ScoreJob):
                job.conditional.row = job.row
                if needs_two and job.unconditional is not None:
                    job.unconditional.row = self._rows.pop()
            added = plan.try_add_extend(job)
        if not added:
            self._free_rows(job)
            if not isinstance(job, EmbedJob):
                self._undo_attach(job)
            return False
        self._waiting.remove(job)
        self._running[job.request_id] = job
        job.status = Status.RUNNING
        if job.is_first_run and not isinstance(job, EmbedJob):
            self.counters.prompt_tokens += job.prompt_len
            self.counters.cached_prompt_tokens += job.cached
        if isinstance(job, ScoreJob):
            plan.add_trie(job)
        return True

    def _undo_attach(self, job: AnyJob) -> None:
        self.memory.drop(job)
        if job.is_first_run:
            job.cached = 0

    # -- leaving -----------------------------------------------------------------------------------------------

    def _retract_one(self) -> None:
        """The job with the least progress; of several, the last that came."""
        job = min(self._running.values(), key=lambda j: (j.progress, -j.number))
        self._requeue(job, keep=True)
        self._was_retracted = True

    def _requeue(self, job: AnyJob, *, keep: bool) -> None:
        """
        Args:
            keep: cache what the job computed.
        """
        self._release(job, keep=keep, ends=False)
        job.status = Status.WAITING
        job.is_first_run = False
        if isinstance(job, ScoreJob):
            job.restart()
        self._waiting.push_front(job)
        self.counters.retractions += 1

    def _end(self, job: AnyJob, reason: FinishReason, now: float, error: PalmetteError | None = None) -> Event:
        event = job.end_event(reason, now, error)
        self._leave(job, keep=True)
        return event

    def _leave(self, job: AnyJob, *, keep: bool) -> None:
        if job.status is Status.WAITING:
            self._waiting.remove(job)
        else:
            if self.optimum is not None and isinstance(job, GenerateJob):
                self.optimum.add_path(job.namespace, job.tokens[: self.memory.settled_len(job)])
            self._release(job, keep=keep, ends=True)
        del self._jobs[job.request_id]
        job.status = Status.FINISHED
        self.counters.finished += 1

    def _release(self, job: AnyJob, *, keep: bool, ends: bool) -> None:
        """Give back all that a running job holds. What steps in flight compute for it concerns nobody any more."""
        del self._running[job.request_id]
        job.run += 1
        self._free_rows(job)
        if isinstance(job, EmbedJob):
            self.memory.allocator.free(job.tail)
            job.tail = []
            return
        if isinstance(job, ScoreJob):
            for trie in job.passes:
                self.memory.drop_trie(trie)
        if keep:
            self.memory.settle(job, ends=ends)
        else:
            self.memory.drop(job)

    def _free_rows(self, job: AnyJob) -> None:
        """Whoever gets a row has its entries written by a step behind all that is in flight, as with slots."""
        self._rows += job.rows
        job.row = -1
        if isinstance(job, ScoreJob):
            for trie in job.passes:
                trie.row = -1

    def _fail_bad(self, step: ScheduledStep, results: StepResults, now: float) -> list[Event]:
        """End the jobs whose logits were not finite; whoever built on their unproven tokens starts again without."""
        error = NumericalError("the model's output for this request was not finite")
        parts = [step.parts[index] for index in sorted(results.bad)]
        embeds = [step.embeds[index] for index in sorted(results.bad_embeds)]
        both: list[AnyPart] = [*parts, *embeds]
        bad = {part.job.request_id: part.job for part in both if part.is_live}
        events: list[Event] = []
        suspects: list[RadixNode] = []
        for part in parts:  # of jobs that stopped running, too: what they computed may be in the tree
            node = self.memory.tree.find(part.node)
            top = None if node is None else self.memory.tree.suspect(node)
            if top is not None:
                suspects.append(top)
        for job in bad.values():
            events.append(job.end_event(FinishReason.FAILED, now, error))
            self._leave(job, keep=False)
        for top in suspects:
            if top.depth >= 0:  # else it went with another
                self._purge(top)
        return events

    def _purge(self, top: RadixNode) -> None:
        """Remove what cannot be trusted, and let the jobs that hold it start again."""
        for job in list(self._running.values()):
            if job.node is not None and self.memory.tree.is_below(job.node, top):
                self._requeue(job, keep=False)
        self.memory.remove_suspect(top)

    # -- results -----------------------------------------------------------------------------------------------

    def _apply_part(self, index: int, part: Part, results: StepResults, now: float) -> Event | None:
        job = part.job
        if part.trie is None:
            job.settled_len = part.end
        if part.num_logits:
            self.memory.tree.prove(part.node)  # the job may have gone on from there in a step that is in flight
            job.is_proven = True
        if isinstance(job, GenerateJob):
            job.prompt_logprobs += results.prompt_logprobs.get(index, ())
            job.forced_logprobs += results.forced_logprobs.get(index, ())
            if not part.wants_token:
                return None
            if index in results.errors:
                return self._end(job, FinishReason.FAILED, now, results.errors[index])
            if job.wants_token:
                return self._apply_token(job, results.sampled[index], now)
            if job.withheld is None:
                return self._end(job, FinishReason.LENGTH, now)
            return self._told(job, job.withheld, job.take_forced_logprobs(), now)
        assert isinstance(job, ScoreJob), "an embedding has no row"
        values = results.trie_logprobs.get(index, ())
        if part.trie is None:
            if part.num_logits:
                job.conditional.record([job.plan.roots], values)
                job.is_prompt_scored = True
        else:
            part.trie.record(job.plan.children[part.start : part.end], values)
            part.trie.num_done = part.end
        return self._end(job, FinishReason.STOP, now) if job.is_scored else None

    def _apply_token(self, job: GenerateJob, sampled: Sampled, now: float) -> TokenEvent:
        self.counters.sampled_tokens += 1
        job.steered |= sampled.steered
        added = job.append(sampled.token_id)
        logprobs = () if sampled.logprob is None else (*job.take_forced_logprobs(), sampled.logprob)
        event = self._told(job, added, logprobs, now)
        assert event is not None, "a drawn token is told of"
        return event

    def _rewritten(self, job: GenerateJob) -> Added:
        """What the paper's jump adds. Tokens change under their keys and values, so the job is queued again and finds
        what is left of them in the tree."""
        assert job.guide is not None, "only a constraint jumps"
        jump = job.guide.rewrite(job.output.token_ids, job.num_left)
        if jump is None:
            return Added()
        if job.status is Status.RUNNING:
            self._requeue(job, keep=True)
            self.counters.retractions -= 1  # not for want of memory
        forced = job.num_forced
        added = job.rewrite(*jump)
        self.counters.forced_tokens += job.num_forced - forced
        return added

    def _told(
        self, job: GenerateJob, added: Added, logprobs: tuple[TokenLogprob, ...], now: float
    ) -> TokenEvent | None:
        """The event of what a job gained and of what is forced behind it. None if there is nothing to tell."""
        if added.reason is None:
            forced = job.force()
            self.counters.forced_tokens += len(forced.token_ids)
            if forced.token_ids and job.request.logprobs is not None:
                job.withheld = forced  # until their logprobs are known
            else:
                added = added.then(forced)
        if added.reason is None and job.guide is not None and job.guide.rewrites:
            added = added.then(self._rewritten(job))
        if added.reason is None:
            return TokenEvent(job.request_id, added.text, added.token_ids, logprobs) if added.token_ids else None
        event = job.last_event(
            added.reason, now, text=added.text, token_ids=added.token_ids, logprobs=logprobs, matched=added.matched
        )
        self._leave(job, keep=True)
        return event
