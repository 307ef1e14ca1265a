"""From a step to its draws, and from its logits to results: finite or not, tokens drawn, logprobs. Changes no job.

Knows tensors and reads jobs. Everything after it is plain data again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palmette.errors import PalmetteError
from palmette.runtime.logit_ops import LogitOps
from palmette.runtime.request import AnyJob, GenerateJob, ScoreJob, as_request_error
from palmette.runtime.sampler import Draw
from palmette.runtime.step import Part, Sampled, ScheduledStep, StepResults
from palmette.types import TokenLogprob


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
    """Collect what will be drawn from the step's last logits; computes the masks of constraints."""
    ready: dict[int, Draw] = {}
    unsteered: dict[int, Draw] = {}
    errors: dict[int, PalmetteError] = {}
    for i, part in enumerate(step.parts):
        job = part.job
        if not isinstance(job, GenerateJob) or not part.wants_token or not job.wants_token:
            continue
        try:
            ready[i], other = _draw(job)
        except Exception as error:  # noqa: BLE001 - one request is one failure domain
            errors[i] = as_request_error(error)
            continue
        if other is not None:
            unsteered[i] = other
    return Draws(ready, unsteered, errors)


@torch.inference_mode()
def evaluate(
    step: ScheduledStep, draws: Draws, logits: Tensor | None, embeddings: Sequence[Tensor], ops: LogitOps
) -> StepResults:
    """
    Args:
        logits: (step.batch.num_logits, vocab) float32; None if the batch has no rows.
        embeddings: one (hidden_size,) for each of step.embeds.
    """
    bad_embeds = frozenset(i for i, e in enumerate(embeddings) if not bool(torch.isfinite(e).all()))
    pooled = {i: tuple(e.tolist()) for i, e in enumerate(embeddings) if i not in bad_embeds}
    if logits is None or not len(logits):
        return StepResults(bad_embeds=bad_embeds, embeddings=pooled)
    begins = _begins(step.parts)
    finite = ops.finite_rows(logits)
    bad = frozenset(i for i, part in enumerate(step.parts) if not all(finite[begins[i] : begins[i] + part.num_logits]))
    prompt_logprobs: dict[int, tuple[TokenLogprob, ...]] = {}
    forced_logprobs: dict[int, tuple[TokenLogprob, ...]] = {}
    trie_logprobs: dict[int, tuple[float, ...]] = {}
    for i, part in enumerate(step.parts):
        if i in bad or not part.num_logits:
            continue
        job = part.job
        rows = logits[begins[i] : begins[i] + part.num_logits]
        if isinstance(job, ScoreJob):
            trie_logprobs[i] = _score(job, part, rows, ops)
            continue
        assert isinstance(job, GenerateJob), "an embedding has no row"
        if job.first_missing is not None:
            prompt_logprobs[i] = _known_logprobs(job, part, rows, job.prompt_len, ops)
        if job.first_withheld is not None:
            forced = _known_logprobs(job, part, rows, len(job.tokens), ops, start=job.first_withheld)
            forced_logprobs[i] = tuple(replace(row, forced=True) for row in forced)
    drawn = [i for i in draws.ready if i not in bad]
    last = [begins[i] + step.parts[i].num_logits - 1 for i in drawn]
    sampled = _sample(step.parts, draws, drawn, logits, last, ops)
    errors = {i: error for i, error in draws.errors.items() if i not in bad}
    return StepResults(bad, bad_embeds, sampled, errors, prompt_logprobs, forced_logprobs, trie_logprobs, pooled)


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


def _sample(
    parts: Sequence[Part], draws: Draws, drawn: Sequence[int], logits: Tensor, rows: Sequence[int], ops: LogitOps
) -> dict[int, Sampled]:
    """Draw a token for each of the parts `drawn`, whose logits are `rows`."""
    if not drawn:
        return {}
    some = logits if len(rows) == len(logits) else logits[rows]
    tokens = ops.sample(some, [draws.ready[i] for i in drawn])
    jobs = [parts[i].job for i in drawn]
    logprobs = _logprobs([job for job in jobs if isinstance(job, GenerateJob)], some, tokens, ops)
    places = [place for place, i in enumerate(drawn) if i in draws.unsteered]
    free = ops.sample(some[places], [draws.unsteered[drawn[place]] for place in places]) if places else []
    steered = {place for place, token in zip(places, free, strict=True) if token != tokens[place]}
    return {i: Sampled(tokens[place], logprobs.get(place), place in steered) for place, i in enumerate(drawn)}


def _logprobs(
    jobs: Sequence[GenerateJob], rows: Tensor, tokens: Sequence[int], ops: LogitOps
) -> dict[int, TokenLogprob]:
    """By place, of the tokens drawn for the jobs that asked."""
    asked = {place: wanted.top for place, job in enumerate(jobs) if (wanted := job.request.logprobs) is not None}
    if not asked:
        return {}
    found = ops.token_logprobs(rows[list(asked)], [tokens[place] for place in asked], max(asked.values()))
    return {
        place: replace(row, top=row.top[:top], forced=_is_forced(jobs[place], row.token_id))
        for (place, top), row in zip(asked.items(), found, strict=True)
    }


def _is_forced(job: GenerateJob, token: int) -> bool:
    return job.guide is not None and job.guide.next_forced(job.num_left) == token


def _known_logprobs(
    job: GenerateJob, part: Part, rows: Tensor, end: int, ops: LogitOps, *, start: int = 0
) -> tuple[TokenLogprob, ...]:
    """Of the known tokens from `start` to `end` that the row's logits predict."""
    assert job.request.logprobs is not None, "nobody asked for logprobs"
    first = part.end - part.num_logits + 1  # position that the first of `rows` predicts
    skipped = max(0, start - first)
    targets = job.tokens[first + skipped : min(part.end + 1, end)].tolist()
    rows = rows[skipped : skipped + len(targets)]
    return tuple(ops.token_logprobs(rows, targets, job.request.logprobs.top)) if targets else ()


def _score(job: ScoreJob, part: Part, rows: Tensor, ops: LogitOps) -> tuple[float, ...]:
    """Of the children of the row's last token, or of its trie nodes in order."""
    families = [job.plan.roots] if part.trie is None else job.plan.children[part.start : part.end]
    rows = rows[len(rows) - len(families) :]
    at = [row for row, family in enumerate(families) for _ in family]
    return tuple(ops.pick_logprobs(rows, at, [token for family in families for _, token in family]))
