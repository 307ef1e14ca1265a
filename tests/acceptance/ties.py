"""Comparing token sequences up to ties, as the design counts them.

Floating-point sums change in their last bits with the shape of a batch. Where the two best logits are within 1e-4, or
a draw within 1e-4 of a boundary of the cumulative distribution, either token is right: the comparison of that sequence
ends there. More than one tie in 500 tokens fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

TIE = 1e-4


@dataclass(slots=True)
class Comparison:
    """Counts over many sequences."""

    tokens: int = 0
    ties: int = 0

    def add(self, expected: Sequence[int], got: Sequence[int], margin: Callable[[int], float]) -> None:
        """Compare one sequence. `margin(i)` is asked at the first difference: how far token i was from another one.

        Raises:
            AssertionError: a difference that is no tie.
        """
        for index, (a, b) in enumerate(zip(expected, got, strict=False)):
            self.tokens += 1
            if a != b:
                distance = margin(index)
                assert distance < TIE, f"token {index} is {b}, expected {a}, and the margin was {distance:.2e}"
                self.ties += 1
                return
        assert len(expected) == len(got), f"{len(got)} tokens, expected {len(expected)}"

    def check(self) -> None:
        assert self.ties * 500 <= max(self.tokens, 500), f"{self.ties} ties in {self.tokens} tokens"
