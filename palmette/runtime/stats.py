"""The numbers people tune by: counters that the scheduler keeps, the snapshot that leaves the runtime, and what adds
up over snapshots. Knows no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
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


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts since a server was started, over all engines it had; adds up with `+`."""

    prompt_tokens: int = 0
    computed_prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    sampled_tokens: int = 0
    forced_tokens: int = 0
    retractions: int = 0

    @classmethod
    def of(cls, stats: Stats) -> Totals:
        """One engine's."""
        return cls(
            stats.prompt_tokens,
            stats.computed_prompt_tokens,
            stats.cached_prompt_tokens,
            stats.sampled_tokens,
            stats.forced_tokens,
            stats.retractions,
        )

    @property
    def generated_tokens(self) -> int:
        return self.sampled_tokens + self.forced_tokens

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.prompt_tokens + other.prompt_tokens,
            self.computed_prompt_tokens + other.computed_prompt_tokens,
            self.cached_prompt_tokens + other.cached_prompt_tokens,
            self.sampled_tokens + other.sampled_tokens,
            self.forced_tokens + other.forced_tokens,
            self.retractions + other.retractions,
        )


class Meter:
    """Totals that outlive an engine, and how fast they grew lately. Knows no clock: whoever samples says when.

    What an engine counted between the last sample and its death is not known.
    """

    def __init__(self, window: float = 10.0) -> None:
        """
        Args:
            window: seconds that a rate looks back.
        """
        self._window = window
        self._before = Totals()  # of the engines that are gone
        self._now = Totals()  # of the one that lives
        self._engine: int | None = None
        self._samples: deque[tuple[float, Totals]] = deque()

    def take(self, now: float, stats: Stats | None, engine: int) -> None:
        """A sample.

        Args:
            now: seconds, never less than before.
            stats: None where there is no engine, or it has said nothing yet.
            engine: which one they are of; another number means another engine.
        """
        if engine != self._engine:
            self._before, self._now, self._engine = self.totals, Totals(), engine
        if stats is not None:
            self._now = Totals.of(stats)
        self._samples.append((now, self.totals))
        while len(self._samples) > 2 and self._samples[1][0] <= now - self._window:
            self._samples.popleft()

    @property
    def totals(self) -> Totals:
        return self._before + self._now

    @property
    def generated_rate(self) -> float:
        """Generated tokens a second between the newest sample and the one a window before it."""
        return self._rate(lambda totals: totals.generated_tokens)

    @property
    def prompt_rate(self) -> float:
        """The same of prompt tokens of admitted requests."""
        return self._rate(lambda totals: totals.prompt_tokens)

    def _rate(self, count: Callable[[Totals], int]) -> float:
        if len(self._samples) < 2:
            return 0.0
        (start, old), (end, new) = self._samples[0], self._samples[-1]
        return (count(new) - count(old)) / (end - start) if end > start else 0.0
