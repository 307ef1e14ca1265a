"""How `select` decides: the trie of the choices' tokens, and the four rules that read its logprobs.

The first three are SGLang's (sglang.lang.choices), with its results: given the same token logprobs they pick the same
choice. `exact_probability` is ours. Plain Python floats; nothing here knows of models.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from palmette.types import ChoiceTrie


@dataclass(frozen=True, slots=True)
class Scored:
    """The choices with their tokens' logprobs; `stop` is log P(stop) behind a choice that others extend, else 0."""

    choices: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]
    stop: tuple[float, ...]
    unconditional: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class ChoicesDecision:
    """What a rule decided. `scores` are comparable among the choices, higher is better."""

    decision: str
    index: int
    scores: tuple[float, ...]
    meta_info: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class ChoicesSamplingMethod(Protocol):
    """A rule; a program may bring its own."""

    @property
    def name(self) -> str: ...

    @property
    def needs_unconditional(self) -> bool: ...

    def decide(self, scored: Scored) -> ChoicesDecision: ...


@dataclass(frozen=True, slots=True)
class TokenLengthNormalized:
    """The highest mean logprob per token."""

    name: str = "token_length_normalized"
    needs_unconditional: bool = False

    def decide(self, scored: Scored) -> ChoicesDecision:
        means = tuple(_mean(row) for row in scored.logprobs)
        return _best(scored, means, normalized_prompt_logprobs=list(means))


@dataclass(frozen=True, slots=True)
class GreedyTokenSelection:
    """The choice that greedy decoding would reach.

    Position by position the choices with the best logprob stay; a choice that has ended stands with its mean.
    """

    name: str = "greedy_token_selection"
    needs_unconditional: bool = False

    def decide(self, scored: Scored) -> ChoicesDecision:
        width = max(len(row) for row in scored.logprobs)
        matrix = [[*row, *[_mean(row)] * (width - len(row))] for row in scored.logprobs]
        remaining = list(range(len(matrix)))
        for column in range(width):
            best = max(matrix[i][column] for i in remaining)
            remaining = [i for i in remaining if matrix[i][column] == best]
            if len(remaining) == 1:
                break
        means = tuple(_mean(row) for row in scored.logprobs)
        return _decision(
            scored, remaining[0], means, normalized_prompt_logprobs=list(means), greedy_logprob_matrix=matrix
        )


@dataclass(frozen=True, slots=True)
class UnconditionalLikelihoodNormalized:
    """The highest mean of logprob minus the same token's logprob without the prompt (its first token counts 0).

    Source: Gao 2021, "Multiple Choice Normalization in LM Evaluation", as SGLang applies it.
    """

    name: str = "unconditional_likelihood_normalized"
    needs_unconditional: bool = True

    def decide(self, scored: Scored) -> ChoicesDecision:
        gains = tuple(
            _mean([a - b for a, b in zip(given, alone, strict=True)])
            for given, alone in zip(scored.logprobs, scored.unconditional, strict=True)
        )
        return _best(
            scored,
            gains,
            normalized_prompt_logprobs=[_mean(row) for row in scored.logprobs],
            unconditional_token_logprobs=[list(row) for row in scored.unconditional],
            normalized_unconditional_prompt_logprobs=list(gains),
        )


@dataclass(frozen=True, slots=True)
class ExactProbability:
    """The choice with the highest probability of being written and then ended, among the choices.

    The product over a choice's tokens, times P(stop) where another choice continues it; so a choice that is a prefix of
    another compares fairly. `scores` are normalised logprobs.
    """

    name: str = "exact_probability"
    needs_unconditional: bool = False

    def decide(self, scored: Scored) -> ChoicesDecision:
        totals = [math.fsum(row) + stop for row, stop in zip(scored.logprobs, scored.stop, strict=True)]
        top = max(totals)
        norm = top + math.log(math.fsum(math.exp(t - top) for t in totals)) if top > -math.inf else 0.0
        normalised = tuple(t - norm for t in totals)
        return _best(
            scored,
            normalised,
            normalized_prompt_logprobs=[_mean(row) for row in scored.logprobs],
            probabilities=[math.exp(x) for x in normalised],
        )


token_length_normalized = TokenLengthNormalized()
greedy_token_selection = GreedyTokenSelection()
unconditional_likelihood_normalized = UnconditionalLikelihoodNormalized()
exact_probability = ExactProbability()

CHOICES_METHODS: tuple[ChoicesSamplingMethod, ...] = (
    token_length_normalized,
    greedy_token_selection,
    unconditional_likelihood_normalized,
    exact_probability,
)


def build_trie(choices: Sequence[Sequence[int]]) -> tuple[ChoiceTrie, list[list[int]]]:
    """The trie of token sequences in depth-first order, and for each sequence the indices of its nodes."""
    children: dict[tuple[int, int], int] = {}
    token_ids: list[int] = []
    parents: list[int] = []
    paths: list[list[int]] = [[] for _ in choices]
    for which in sorted(range(len(choices)), key=lambda i: tuple(choices[i])):  # sorted = depth-first
        node = -1
        for token in choices[which]:
            key = (node, token)
            if key not in children:
                children[key] = len(token_ids)
                token_ids.append(token)
                parents.append(node)
            node = children[key]
            paths[which].append(node)
    return ChoiceTrie(tuple(token_ids), tuple(parents)), paths


def score_choices(
    choices: Sequence[str],
    trie: ChoiceTrie,
    paths: Sequence[Sequence[int]],
    logprobs: Sequence[float],
    unconditional: Sequence[float],
) -> Scored:
    """Spread the logprobs of the trie's nodes over the choices."""
    mass: dict[int, list[float]] = {}  # of the continuations behind a node
    for node, parent in enumerate(trie.parents):
        mass.setdefault(parent, []).append(math.exp(logprobs[node]))
    stop = [_log(1.0 - math.fsum(mass[path[-1]])) if path[-1] in mass else 0.0 for path in paths]
    return Scored(
        choices=tuple(choices),
        token_ids=tuple(tuple(trie.token_ids[n] for n in path) for path in paths),
        logprobs=tuple(tuple(logprobs[n] for n in path) for path in paths),
        stop=tuple(stop),
        unconditional=tuple(tuple(unconditional[n] for n in path) for path in paths) if unconditional else (),
    )


def pick_by_temperature(
    decision: ChoicesDecision, scored: Scored, temperature: float, uniform: float
) -> ChoicesDecision:
    """Draw a choice from softmax(scores / temperature) with one uniform number; temperature 0 keeps the decision."""
    if temperature <= 1e-5:
        return decision
    top = max(decision.scores)
    weights = [math.exp((s - top) / temperature) for s in decision.scores]
    target = uniform * math.fsum(weights)
    below = list(itertools.accumulate(weights))
    index = next((i for i, total in enumerate(below) if target < total), len(weights) - 1)
    return _decision(scored, index, decision.scores, **decision.meta_info)


def _best(scored: Scored, scores: tuple[float, ...], **meta: Any) -> ChoicesDecision:
    return _decision(scored, max(range(len(scores)), key=scores.__getitem__), scores, **meta)


def _decision(scored: Scored, index: int, scores: tuple[float, ...], **meta: Any) -> ChoicesDecision:
    rows = [list(zip(lp, ids, strict=True)) for lp, ids in zip(scored.logprobs, scored.token_ids, strict=True)]
    meta.setdefault("input_token_logprobs", rows)
    return ChoicesDecision(scored.choices[index], index, scores, meta)


def _mean(row: Sequence[float]) -> float:
    return math.fsum(row) / len(row)


def _log(x: float) -> float:
    return math.log(x) if x > 0.0 else -math.inf
