"""From the logits of a step to plain results: finite or not, tokens drawn, logprobs. Changes no job.

Knows tensors and reads jobs. Everything after it is plain data again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from palmette.runtime.logprobs import pick_logprobs, token_logprobs
from palmette.runtime.request import GenerateJob, ScoreJob
from palmette.runtime.sampler import Draw, finite_rows, sample
from palmette.runtime.step import Part, Sampled, ScheduledStep, StepResults
from palmette.types import TokenLogprob


@torch.inference_mode()
def evaluate(step: ScheduledStep, logits: Tensor | None, embeddings: Sequence[Tensor]) -> StepResults:
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
    finite = finite_rows(logits)
    bad = frozenset(i for i, part in enumerate(step.parts) if not all(finite[begins[i] : begins[i] + part.num_logits]))
    prompt_logprobs: dict[int, tuple[TokenLogprob, ...]] = {}
    trie_logprobs: dict[int, tuple[float, ...]] = {}
    drawn: list[int] = []
    for i, part in enumerate(step.parts):
        if i in bad or not part.num_logits:
            continue
        job = part.job
        rows = logits[begins[i] : begins[i] + part.num_logits]
        if isinstance(job, ScoreJob):
            trie_logprobs[i] = _score(job, part, rows)
            continue
        assert isinstance(job, GenerateJob), "an embedding has no row"
        if job.first_missing is not None:
            prompt_logprobs[i] = _prompt_logprobs(job, part, rows)
        if part.wants_token and job.wants_token:
            drawn.append(i)
    sampled = _sample(step.parts, drawn, logits, [begins[i] + step.parts[i].num_logits - 1 for i in drawn])
    return StepResults(bad, bad_embeds, sampled, prompt_logprobs, trie_logprobs, pooled)


def draw_of(job: GenerateJob) -> Draw:
    """What the job's next draw needs."""
    request = job.request
    needs_prompt = request.params.repetition_penalty != 1.0
    return Draw(
        params=request.params,
        seed=request.seed,
        index=len(job.output.token_ids),
        counts=job.output.counts,
        prompt_ids=request.token_ids if needs_prompt else (),
        banned=job.output.banned,
    )


def _begins(parts: Sequence[Part]) -> list[int]:
    begins, at = [], 0
    for part in parts:
        begins.append(at)
        at += part.num_logits
    return begins


def _sample(parts: Sequence[Part], drawn: Sequence[int], logits: Tensor, rows: Sequence[int]) -> dict[int, Sampled]:
    if not drawn:
        return {}
    jobs = [job for i in drawn if isinstance(job := parts[i].job, GenerateJob)]
    some = logits if len(rows) == len(logits) else logits[rows]
    tokens = sample(some, [draw_of(job) for job in jobs])
    sampled = {i: Sampled(token) for i, token in zip(drawn, tokens, strict=True)}
    asked = [place for place, job in enumerate(jobs) if job.request.logprobs is not None]
    if asked:
        tops = [wanted.top for job in jobs if (wanted := job.request.logprobs) is not None]
        found = token_logprobs(some[asked], [tokens[place] for place in asked], max(tops))
        for place, top, row in zip(asked, tops, found, strict=True):
            sampled[drawn[place]] = Sampled(tokens[place], replace(row, top=row.top[:top]))
    return sampled


def _prompt_logprobs(job: GenerateJob, part: Part, rows: Tensor) -> tuple[TokenLogprob, ...]:
    """Of the prompt tokens that the row's logits predict."""
    assert job.request.logprobs is not None, "nobody asked for logprobs"
    first = part.end - part.num_logits + 1  # position that the first of `rows` predicts
    targets = job.tokens[first : min(part.end + 1, job.prompt_len)].tolist()
    return tuple(token_logprobs(rows[: len(targets)], targets, job.request.logprobs.top)) if targets else ()


def _score(job: ScoreJob, part: Part, rows: Tensor) -> tuple[float, ...]:
    """Of the children of the row's last token, or of its trie nodes in order."""
    families = [job.plan.roots] if part.trie is None else job.plan.children[part.start : part.end]
    rows = rows[len(rows) - len(families) :]
    at = [row for row, family in enumerate(families) for _ in family]
    return tuple(pick_logprobs(rows, at, [token for family in families for _, token in family]))
