"""The numbers people tune by: counters that the scheduler keeps, and the snapshot that leaves the runtime."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Totals since the runtime was built. Mutated by the scheduler and the engine."""

    steps: int = 0
    prompt_tokens: int = 0  # of admitted requests
    computed_prompt_tokens: int = 0  # prompt tokens that went through the model, again after a retraction included
    cached_prompt_tokens: int = 0  # prompt tokens read from the cache when a request was first computed
    recomputed_tokens: int = 0  # generated tokens that went through the model again after a retraction
    scored_tokens: int = 0  # trie nodes of score requests that went through the model
    sampled_tokens: int = 0
    forced_tokens: int = 0  # put there by constraints without a draw
    retractions: int = 0
    finished: int = 0  # terminal events


@dataclass(frozen=True, slots=True)
class Stats:
    """One moment of a runtime. Token counts; free + evictable + held by running requests = kv_total."""

    running: int
    waiting: int
    kv_total: int
    kv_free: int
    kv_evictable: int  # cached and in nobody's use
    prompt_tokens: int
    computed_prompt_tokens: int
    cached_prompt_tokens: int
    recomputed_tokens: int
    scored_tokens: int
    sampled_tokens: int
    forced_tokens: int
    steps: int
    retractions: int
    finished: int
    optimum_computed_tokens: int | None = None  # prompt tokens an infinite cache would have computed, if measured

    @property
    def hit_rate(self) -> float:
        """The share of prompt tokens that did not have to be computed."""
        return 1.0 - self.computed_prompt_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def share_of_optimum(self) -> float | None:
        """Prompt tokens served from the cache, relative to an infinite cache with in-flight sharing; 1.0 = all of them.

        None where it was not measured or nothing could have been shared.
        """
        if self.optimum_computed_tokens is None or self.prompt_tokens <= self.optimum_computed_tokens:
            return None
        return (self.prompt_tokens - self.computed_prompt_tokens) / (self.prompt_tokens - self.optimum_computed_tokens)
