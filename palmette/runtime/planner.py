"""Builds one step, row by row, within a budget of tokens: decodes, prompts in progress, tries.

Knows how a job's next tokens become a row. Does not know the queue, nor which job should come next.
"""

from __future__ import annotations

from collections.abc import Sequence

from palmette.runtime.choice_trie import TriePass
from palmette.runtime.drawn import DRAWN
from palmette.runtime.memory import KVMemory
from palmette.runtime.radix_node import RadixNode
from palmette.runtime.request import EmbedJob, GenerateJob, Job, ScoreJob
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow, TreeRow
from palmette.runtime.stats import Counters
from palmette.runtime.step import EmbedPart, Part, ScheduledStep


class StepPlan:
    """One step in the making. Changes the memory and the jobs that it takes in."""

    def __init__(self, memory: KVMemory, counters: Counters) -> None:
        self.budget = 0  # tokens that may still go in; decodes are not asked
        self._memory = memory
        self._counters = counters
        self._rows: list[ScheduledRow] = []
        self._parts: list[Part] = []
        self._embeds: list[EmbedPart] = []
        self._frontiers: dict[RadixNode, list[Job]] = {}  # where prompts stop that the next step goes on with

    @property
    def is_empty(self) -> bool:
        return not self._rows and not self._embeds

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    def step(self) -> ScheduledStep:
        return ScheduledStep(ScheduledBatch(tuple(self._rows)), tuple(self._parts), tuple(self._embeds))

    def add_decode(self, job: GenerateJob) -> None:
        """The job's last token, known or not. Its slot must be available."""
        start = job.computed_len
        grown = self._memory.try_grow(job, start + 1)
        assert grown, "no slot for a decode"
        slot = job.tail[start - self._depth(job)]
        job.computed_len = job.peak_len = start + 1
        token = job.tokens[start] if start < len(job.tokens) else DRAWN
        self._rows.append(ScheduledRow(job.row, (token,), start, (slot,), _take_unwritten(job), 0))
        self._add_part(job, start, start + 1, 1)

    def try_add_extend(self, job: GenerateJob | ScoreJob) -> bool:
        """As much of the job's known tokens as budget and memory allow; False if that is nothing."""
        memory, size = self._memory, self._memory.page_size
        start = job.computed_len
        end = min(job.extend_end, start + self.budget, memory.max_end(job))
        if end < job.extend_end:
            end -= end % size  # what others may share begins at a page
        if end <= start:
            return False
        grown = memory.try_grow(job, end)
        assert grown, "max_end promised too much"
        slots = tuple(memory.slots_of(job, start, end))
        memory.publish(job, end)
        memory.count_sibling(job)
        job.computed_len = end
        self.budget -= end - start
        logits_from = _logits_from(job, start, end)
        tokens = tuple(job.tokens[start:end])
        self._rows.append(ScheduledRow(job.row, tokens, start, slots, _take_unwritten(job), logits_from))
        self._add_part(job, start, end, 0 if logits_from is None else end - start - logits_from)
        in_prompt = max(0, min(end, job.prompt_len) - start)
        self._counters.computed_prompt_tokens += in_prompt
        self._counters.recomputed_tokens += max(0, min(end, job.peak_len) - max(start, job.prompt_len))
        job.peak_len = max(job.peak_len, end)
        if end < job.extend_end and not job.is_private:
            assert job.node is not None, "the job is not attached"
            self._frontiers.setdefault(job.node, []).append(job)
        return True

    def add_trie(self, job: ScoreJob) -> None:
        """As many inner nodes of the job's trie as budget and memory allow, maybe none."""
        if job.is_extending:
            return
        for trie in job.passes:
            self._add_trie_pass(job, trie)

    def try_add_embed(self, job: EmbedJob) -> bool:
        """The whole job, whatever the budget; False if it does not fit into memory."""
        slots = self._memory.try_alloc(job.prompt_len)
        if slots is None:
            return False
        job.tail = slots
        self.budget -= job.prompt_len
        self._embeds.append(EmbedPart(job, job.run, job.row, tuple(slots[: job.prompt_len])))
        return True

    def must_wait(self, job: Job) -> bool:
        """Do the job's next tokens belong to a prompt that a running job will go on with in the next step?"""
        if not self._frontiers or job.is_private:
            return False
        node, depth, length = self._memory.probe(job)
        end = depth + self._memory.page_size
        if node is None or length != depth or end > job.match_limit:
            return False
        tokens = job.tokens[depth:end]
        return any(other.tokens[depth:end] == tokens for other in self._frontiers.get(node, ()))

    def _add_trie_pass(self, job: ScoreJob, trie: TriePass) -> None:
        plan, first = job.plan, trie.num_scheduled
        available = self._memory.num_available
        room = len(trie.slots) - first + available - available % self._memory.page_size
        count = min(plan.num_inner - first, self.budget, room)
        if count <= 0:
            return
        grown = self._memory.try_grow_trie(trie, first + count)
        assert grown, "less memory than was available"
        trie.num_scheduled += count
        self.budget -= count
        self._counters.scored_tokens += count
        self._rows.append(
            ScheduledRow(
                row=trie.row,
                token_ids=plan.token_ids[first : first + count],
                start=trie.prefix_len + first,
                slots=tuple(trie.slots[first : first + count]),
                logits_from=0,
                tree=TreeRow(trie.prefix_len, plan.parents, first),
            )
        )
        self._add_part(job, first, first + count, count, trie)

    def _add_part(
        self, job: GenerateJob | ScoreJob, start: int, end: int, num_logits: int, trie: TriePass | None = None
    ) -> None:
        assert job.node is not None, "the job is not attached"
        self._parts.append(Part(job, job.run, start, end, num_logits, job.node, trie))

    def _depth(self, job: Job) -> int:
        assert job.node is not None, "the job is not attached"
        return job.node.depth


def _take_unwritten(job: Job) -> tuple[int, Sequence[int]] | None:
    """What the page table must learn with the job's next row."""
    unwritten, job.unwritten = job.unwritten, None
    return unwritten


def _logits_from(job: GenerateJob | ScoreJob, start: int, end: int) -> int | None:
    """The first of tokens start .. end whose logits are needed, counted from start."""
    missing = job.first_missing if isinstance(job, GenerateJob) else None
    if missing is not None and missing - 1 < end:
        return max(0, missing - 1 - start)
    return end - 1 - start if end == job.extend_end else None
