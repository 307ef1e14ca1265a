"""From a step to its draws, and from its logits to results: finite or not, tokens drawn, logprobs. Changes no job.

    prepare(step)  ->  start(step, draws, logits, ...)  ->  Evaluation.finish()  ->  StepResults
    masks, penalties   queues, waits for nothing            waits

Knows tensors and reads jobs. Everything after it is plain data again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palmette.errors import PalmetteError
from palmette.runtime.later import Deferred, Later, Now
from palmette.runtime.logit_ops import LogitOps
from palmette.runtime.request import AnyJob, GenerateJob, ScoreJob, as_request_error
from palmette.runtime.sampler import Draw
from palmette.runtime.step import Part, Sampled, ScheduledStep, StepResults
from palmette.runtime.transfer import on_host, take_rows
from palmette.types import TokenLogprob

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Draws:
    """What the step's draws need besides logits, known before any is computed. Keys are indices of the step's parts."""

    ready: Mapping[int, Draw]
    unsteered: Mapping[int, Draw]  # the same with a larger token budget, where that allows more
    errors: Mapping[int, PalmetteError]  # parts that cannot draw

    def masks(self, step: ScheduledStep) -> list[NDArray[np.uint32] | None] | None:
        """For each logit row of the step which tokens its only reader looks at; None where it is all of them."""
        if all(draw.mask is None for draw in self.ready.values()):
            return None
        rows: list[NDArray[np.uint32] | None] = []
        for i, part in enumerate(step.parts):
            mask = None
            if i in self.ready and part.num_logits == 1 and not _wants_logprobs(part.job):
                mask = self.unsteered.get(i, self.ready[i]).mask
            rows.extend([mask] * part.num_logits)
        return rows


def prepare(step: ScheduledStep) -> Draws:
    """Collect what will be drawn from the step's last logits; computes the masks of constraints.

    Steps before it are applied.
    """
    ready: dict[int, Draw] = {}
    unsteered: dict[int, Draw] = {}
    errors: dict[int, PalmetteError] = {}
    for i, part in enumerate(step.parts):
        job = part.job
        if not isinstance(job, GenerateJob) or not part.is_live or not part.wants_token or not job.wants_token:
            continue
        try:
            ready[i], other = _draw(job)
        except Exception as error:  # noqa: BLE001 - one request is one failure domain
            errors[i] = as_request_error(error)
            continue
        if other is not None:
            unsteered[i] = other
    return Draws(ready, unsteered, errors)


@dataclass(frozen=True, slots=True)
class Group:
    """Parts of a step that draw together."""

    parts: Sequence[int]
    tokens: Later[list[int]]  # one for each
    logprobs: Later[list[TokenLogprob]] | None  # the same, if they ask for any


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is asked of a step's logits: queued, and maybe not there yet. Keys are indices of the step's parts."""

    step: ScheduledStep
    errors: Mapping[int, PalmetteError]
    embeddings: Sequence[Later[Tensor]] = ()
    finite: Later[list[bool]] = field(default_factory=lambda: Now([]))  # one for each row of logits
    groups: Sequence[Group] = ()
    unsteered: Mapping[int, Later[int]] = field(default_factory=dict)  # the token, were the budget larger
    prompt: Mapping[int, Later[list[TokenLogprob]]] = field(default_factory=dict)
    forced: Mapping[int, Later[list[TokenLogprob]]] = field(default_factory=dict)
    trie: Mapping[int, Later[list[float]]] = field(default_factory=dict)
    lost: Sequence[int] = ()  # parts that should draw, and do not

    def drawn(self) -> Iterator[tuple[list[int], Later[list[int]]]]:
        """Rows of the page table, and the tokens drawn for them, known or not.

        A step that is behind this one may have rows that go on with tokens that could not be drawn. Those get any: what
        comes of it is told to nobody.
        """
        groups = [(group.parts, group.tokens) for group in self.groups]
        if self.lost:
            groups.append((self.lost, Now([0] * len(self.lost))))
        for parts, tokens in groups:
            yield [self.step.batch.rows[i].row for i in parts], tokens

    @torch.inference_mode()
    def finish(self) -> StepResults:
        """Wait for it. Before the step is applied: what is forced is asked of the jobs."""
        embeddings = [later.get() for later in self.embeddings]
        bad_embeds = frozenset(i for i, e in enumerate(embeddings) if not bool(torch.isfinite(e).all()))
        bad = _bad_parts(self.step.parts, self.finite.get())
        sampled: dict[int, Sampled] = {}
        for group in self.groups:
            logprobs = [None] * len(group.parts) if group.logprobs is None else group.logprobs.get()
            for i, token, logprob in zip(group.parts, group.tokens.get(), logprobs, strict=True):
                if i not in bad:
                    steered = i in self.unsteered and self.unsteered[i].get() != token
                    sampled[i] = Sampled(token, self._as_asked(i, logprob), steered)
        forced = _known(self.forced, bad)
        return StepResults(
            bad=bad,
            bad_embeds=bad_embeds,
            sampled=sampled,
            errors={i: error for i, error in self.errors.items() if i not in bad},
            prompt_logprobs=_known(self.prompt, bad),
            forced_logprobs={i: tuple(replace(row, forced=True) for row in rows) for i, rows in forced.items()},
            trie_logprobs=_known(self.trie, bad),
            embeddings={i: tuple(e.tolist()) for i, e in enumerate(embeddings) if i not in bad_embeds},
        )

    def _as_asked(self, i: int, logprob: TokenLogprob | None) -> TokenLogprob | None:
        """With as many alternatives as the part's job wants."""
        job = self.step.parts[i].job
        if logprob is None or not isinstance(job, GenerateJob) or job.request.logprobs is None:
            return None
        forced = job.guide is not None and job.guide.next_forced(job.num_left) == logprob.token_id
        return replace(logprob, top=logprob.top[: job.request.logprobs.top], forced=forced)


@torch.inference_mode()
def start(
    step: ScheduledStep, draws: Draws, logits: Tensor | None, embeddings: Sequence[Tensor], ops: LogitOps
) -> Evaluation:
    """Queue all that is asked of a step's logits, waiting for nothing. Steps before it are applied.

    Args:
        logits: (step.batch.num_logits, vocab) float32; None if the batch has no rows.
        embeddings: one (hidden_size,) for each of step.embeds.
    """
    pooled = [on_host(embedding) for embedding in embeddings]
    if logits is None or not len(logits):
        return Evaluation(step, draws.errors, pooled)
    parts, begins = step.parts, _begins(step.parts)
    finite = ops.finite_rows(logits)
    bad = _bad_parts(parts, finite.get()) if isinstance(finite, Now) else frozenset()  # as far as it is known
    prompt: dict[int, Later[list[TokenLogprob]]] = {}
    forced: dict[int, Later[list[TokenLogprob]]] = {}
    trie: dict[int, Later[list[float]]] = {}
    for i, part in enumerate(parts):
        if i in bad or not part.num_logits or not part.is_live:
            continue
        job = part.job
        rows = logits[begins[i] : begins[i] + part.num_logits]
        if isinstance(job, ScoreJob):
            trie[i] = _score(job, part, rows, ops)
            continue
        if job.first_missing is not None:
            prompt[i] = _known_logprobs(job, part, rows, job.prompt_len, ops)
        if job.first_withheld is not None:
            forced[i] = _known_logprobs(job, part, rows, len(job.tokens), ops, start=job.first_withheld)
    drawing = [i for i in draws.ready if i not in bad]
    last = {i: begins[i] + parts[i].num_logits - 1 for i in drawing}  # its row of logits
    groups: list[Group] = []
    for asks in (False, True):
        some = [i for i in drawing if _wants_logprobs(parts[i].job) is asks]
        if some:
            rows = take_rows(logits, [last[i] for i in some])
            tokens = ops.sample(rows, [draws.ready[i] for i in some])
            groups.append(Group(some, tokens, ops.token_logprobs(rows, tokens, _top(parts, some)) if asks else None))
    some = [i for i in drawing if i in draws.unsteered]
    free: Later[list[int]] = Now([])
    if some:
        free = ops.sample(take_rows(logits, [last[i] for i in some]), [draws.unsteered[i] for i in some])
    unsteered = {i: _item(free, place) for place, i in enumerate(some)}
    lost = [i for i in range(len(parts)) if i in draws.errors or (i in draws.ready and i in bad)]
    return Evaluation(step, draws.errors, pooled, finite, groups, unsteered, prompt, forced, trie, lost)


def draw_of(job: GenerateJob) -> Draw:
    """What the job's next draw needs.

    Raises:
        PalmetteError: its constraint cannot go on.
    """
    return _draw(job)[0]


def _draw(job: GenerateJob) -> tuple[Draw, Draw | None]:
    """The job's next draw, and the same with a larger token budget where that allows more."""
    request = job.request
    needs_prompt = request.params.repetition_penalty != 1.0
    mask = None if job.guide is None else job.guide.mask(job.num_left, job.output.banned)
    draw = Draw(
        params=request.params,
        seed=request.seed,
        index=len(job.output.token_ids),
        counts=job.output.counts,
        prompt_ids=request.token_ids if needs_prompt else (),
        banned=job.output.banned if mask is None else (),
        mask=None if mask is None else mask.words,
    )
    return draw, None if mask is None or mask.unsteered is None else replace(draw, mask=mask.unsteered)


def _wants_logprobs(job: AnyJob) -> bool:
    return isinstance(job, GenerateJob) and job.request.logprobs is not None


def _begins(parts: Sequence[Part]) -> list[int]:
    begins, at = [], 0
    for part in parts:
        begins.append(at)
        at += part.num_logits
    return begins


def _bad_parts(parts: Sequence[Part], finite: Sequence[bool]) -> frozenset[int]:
    """Those with a row that is not finite."""
    begins = _begins(parts)
    return frozenset(i for i, part in enumerate(parts) if not all(finite[begins[i] : begins[i] + part.num_logits]))


def _top(parts: Sequence[Part], some: Sequence[int]) -> int:
    """The most alternatives that any of these asks for."""
    jobs = [parts[i].job for i in some]
    wanted = [job.request.logprobs for job in jobs if isinstance(job, GenerateJob)]
    return max(params.top for params in wanted if params is not None)


def _item(values: Later[list[T]], place: int) -> Later[T]:
    return Deferred(lambda: values.get()[place])


def _known(values: Mapping[int, Later[list[T]]], bad: Collection[int]) -> dict[int, tuple[T, ...]]:
    return {i: tuple(later.get()) for i, later in values.items() if i not in bad}


def _known_logprobs(
    job: GenerateJob, part: Part, rows: Tensor, end: int, ops: LogitOps, *, start: int = 0
) -> Later[list[TokenLogprob]]:
    """Of the known tokens from `start` to `end` that the row's logits predict."""
    assert job.request.logprobs is not None, "nobody asked for logprobs"
    first = part.end - part.num_logits + 1  # position that the first of `rows` predicts
    skipped = max(0, start - first)
    targets = job.tokens[first + skipped : min(part.end + 1, end)].tolist()
    rows = rows[skipped : skipped + len(targets)]
    return ops.token_logprobs(rows, targets, job.request.logprobs.top) if targets else Now([])


def _score(job: ScoreJob, part: Part, rows: Tensor, ops: LogitOps) -> Later[list[float]]:
    """Of the children of the row's last token, or of its trie nodes in order."""
    families = [job.plan.roots] if part.trie is None else job.plan.children[part.start : part.end]
    rows = rows[len(rows) - len(families) :]
    at = [row for row, family in enumerate(families) for _ in family]
    return ops.pick_logprobs(rows, at, [token for family in families for _, token in family])
