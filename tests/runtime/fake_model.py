"""A model without numbers: a slot holds the tokens it stands for, so that every read of a wrong slot is seen.

Its next token depends on all tokens before it. No torch: the scheduler's logic at the scheduler's own speed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from palmette.runtime.drawn import DRAWN
from palmette.runtime.output import Output
from palmette.runtime.request import AnyJob, GenerateJob, ScoreJob
from palmette.runtime.scheduled import ScheduledRow
from palmette.runtime.step import Part, Sampled, ScheduledStep, StepResults
from palmette.types import GenerateRequest, TokenLogprob

Content = tuple[int, ...]


def next_token(tokens: Sequence[int], vocab: int = 3) -> int:
    return (sum((i + 1) * t for i, t in enumerate(tokens)) + len(tokens)) % vocab


def score(path: Sequence[int], token: int) -> float:
    return -float(next_token([*path, token], 97))


def make_job(request: GenerateRequest, number: int = 0, now: float = 0.0, max_new: int | None = None) -> GenerateJob:
    wanted = request.params.max_new_tokens
    output = Output(
        request.params,
        max_new_tokens=wanted if max_new is None else min(wanted, max_new),
        eos_ids=frozenset(),
        token_bytes=lambda token: b"%d" % token,
    )
    return GenerateJob(request, output, number=number, now=now)


class FakeModel:
    """A pool and a page table, and the forward pass that checks what it reads."""

    def __init__(self, draw: Callable[[Sequence[int]], int] = next_token) -> None:
        """
        Args:
            draw: the token behind others.
        """
        self._draw = draw
        self.contents: dict[int, Content] = {}
        self.table: dict[tuple[int, int], int] = {}
        self.computed = 0  # tokens, trie nodes included
        self._drawn: dict[int, int] = {}  # row -> the token drawn last

    def run(self, step: ScheduledStep, bad: Collection[int] = ()) -> StepResults:
        """
        Args:
            bad: rows whose logits come out as NaN, if they have any.
        """
        self.forward(step)
        return self.evaluate(step, bad)

    def forward(self, step: ScheduledStep) -> None:
        """Write and read; the step before may have been drawn from, and not applied."""
        for row in step.batch.rows:  # a step writes everything before it reads anything
            if row.prefix is not None:
                index, slots = row.prefix
                self.table.update({(row.row, index + i): slot for i, slot in enumerate(slots)})
            self.table.update({(row.row, row.start + i): slot for i, slot in enumerate(row.slots)})
        written: set[int] = set()
        for row, part in zip(step.batch.rows, step.parts, strict=True):
            self.computed += len(row.token_ids)
            for i, slot in enumerate(row.slots):
                assert slot not in written, "two tokens of a step in one slot"
                written.add(slot)
                self.contents[slot] = self._path(row, part, i)
        for row, part in zip(step.batch.rows, step.parts, strict=True):
            for i in range(len(row.token_ids)):
                self._check_reads(row, part, i)

    def evaluate(self, step: ScheduledStep, bad: Collection[int] = ()) -> StepResults:
        """Steps before it are applied."""
        wrong = frozenset(i for i in bad if i < len(step.parts) and step.parts[i].num_logits)
        sampled, prompt, trie = {}, {}, {}
        for i, part in enumerate(step.parts):
            job = part.job
            self._drawn.setdefault(step.batch.rows[i].row, 0)  # any: what comes of it is told to nobody
            if i in wrong or not part.num_logits or not part.is_live:
                continue
            if isinstance(job, ScoreJob):
                trie[i] = self._scores(job, part)
            elif isinstance(job, GenerateJob):
                tokens = all_tokens(job)
                if job.first_missing is not None:
                    first = part.end - part.num_logits + 1
                    prompt[i] = tuple(
                        TokenLogprob(tokens[p], score(tokens[:p], tokens[p]))
                        for p in range(first, min(part.end + 1, job.prompt_len))
                    )
                if part.wants_token and job.wants_token:
                    sampled[i] = Sampled(self._draw(tokens))
                    self._drawn[step.batch.rows[i].row] = sampled[i].token_id
        embeddings = {i: (float(next_token(all_tokens(e.job))),) for i, e in enumerate(step.embeds)}
        return StepResults(
            bad=wrong, sampled=sampled, prompt_logprobs=prompt, trie_logprobs=trie, embeddings=embeddings
        )

    def _path(self, row: ScheduledRow, part: Part, i: int) -> Content:
        """What token i of the row stands for."""
        tokens = all_tokens(part.job)
        if row.token_ids == (DRAWN,):
            assert part.is_live, "a row for a run that is over"
            assert row.start == len(tokens), "the token drawn last is not the next one"
            return (*tokens, self._drawn[row.row])
        if part.trie is None:
            assert tuple(tokens[row.start : row.start + len(row.token_ids)]) == row.token_ids
            return tuple(tokens[: row.start + i + 1])
        assert isinstance(part.job, ScoreJob)
        assert row.tree is not None
        return (*tokens[: row.tree.prefix_len], *node_path(part.job, row.tree.first + i))

    def _check_reads(self, row: ScheduledRow, part: Part, i: int) -> None:
        """Every slot that token i attends to holds what it should."""
        path = self._path(row, part, i)
        if row.tree is None:
            places = list(range(row.start + i + 1))
        else:
            places = list(range(row.tree.prefix_len))
            node, ancestors = row.tree.first + i, []
            while node >= 0:
                ancestors.append(row.tree.prefix_len + node)
                node = row.tree.parents[node]
            places += reversed(ancestors)
        assert len(places) == len(path)
        for length, place in enumerate(places, start=1):
            assert self.contents[self.table[row.row, place]] == path[:length], "a wrong slot was read"

    def _scores(self, job: ScoreJob, part: Part) -> tuple[float, ...]:
        if part.trie is None:
            prompt = all_tokens(job)
            return tuple(score(prompt, token) for _, token in job.plan.roots)
        prefix = all_tokens(job)[: part.trie.prefix_len]
        return tuple(
            score([*prefix, *node_path(job, inner)], token)
            for inner in range(part.start, part.end)
            for _, token in job.plan.children[inner]
        )


def node_path(job: ScoreJob, inner: int) -> list[int]:
    """Tokens from the trie's root to an inner node."""
    path: list[int] = []
    while inner >= 0:
        path.append(job.plan.token_ids[inner])
        inner = job.plan.parents[inner]
    return path[::-1]


def all_tokens(job: AnyJob) -> list[int]:
    """Not by its `tokens`, which are read as far back as somebody asks: tests look at how far that was."""
    return [*job.request.token_ids, *(job.output.token_ids if isinstance(job, GenerateJob) else ())]
