"""One step between scheduler and engine: what was scheduled for whom, and what came out of it, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from palmette.errors import PalmetteError
from palmette.runtime.choice_trie import TriePass
from palmette.runtime.radix_node import RadixNode
from palmette.runtime.request import EmbedJob, GenerateJob, ScoreJob
from palmette.runtime.scheduled import ScheduledBatch
from palmette.types import TokenLogprob


@dataclass(frozen=True, slots=True)
class Part:
    """One row of the batch and whose it is: tokens start .. end of the job, or inner nodes start .. end of its trie."""

    job: GenerateJob | ScoreJob
    run: int  # of the job's
    start: int
    end: int  # beyond the job's tokens by one if the last token was not known when the step was scheduled
    num_logits: int  # of the row's last tokens
    node: RadixNode  # the row's tokens are on its path or behind it, in this run's own slots
    trie: TriePass | None = None

    @property
    def is_live(self) -> bool:
        """Does the job still run as it did when the step was scheduled? Else nothing of this part is told or kept."""
        return self.run == self.job.run

    @property
    def wants_token(self) -> bool:
        """Is the next token drawn from the row's last logits? Known once all steps before this one are applied."""
        return self.trie is None and self.num_logits > 0 and self.end == len(self.job.tokens)


@dataclass(frozen=True, slots=True)
class EmbedPart:
    """A whole prompt to embed. The slots are the job's until the step is applied."""

    job: EmbedJob
    run: int  # of the job's
    row: int
    slots: tuple[int, ...]

    @property
    def is_live(self) -> bool:
        """See Part.is_live."""
        return self.run == self.job.run


AnyPart: TypeAlias = Part | EmbedPart


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """One step. parts[i] belongs to batch.rows[i]."""

    batch: ScheduledBatch
    parts: tuple[Part, ...]
    embeds: tuple[EmbedPart, ...] = ()

    @property
    def all_parts(self) -> tuple[AnyPart, ...]:
        return (*self.parts, *self.embeds)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token drawn for one part."""

    token_id: int
    logprob: TokenLogprob | None = None  # if asked for
    steered: bool = False  # a larger token budget would have given another token


@dataclass(frozen=True, slots=True)
class StepResults:
    """What a step computed, by index of its parts."""

    bad: frozenset[int] = frozenset()  # parts whose logits were not finite
    bad_embeds: frozenset[int] = frozenset()
    sampled: Mapping[int, Sampled] = field(default_factory=dict)
    errors: Mapping[int, PalmetteError] = field(default_factory=dict)  # parts whose draw failed for their own reasons
    prompt_logprobs: Mapping[int, tuple[TokenLogprob, ...]] = field(default_factory=dict)
    forced_logprobs: Mapping[int, tuple[TokenLogprob, ...]] = field(default_factory=dict)
    trie_logprobs: Mapping[int, tuple[float, ...]] = field(default_factory=dict)  # of the children of the row's nodes
    embeddings: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
