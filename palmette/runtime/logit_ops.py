"""What a step does with logits, whoever computes it: torch, or the compiled core beside its decoder.

The functions of `sampler` and `logprobs` are the specification; `compiled_ops` is the other implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from palmette.runtime import logprobs, sampler
from palmette.runtime.sampler import Draw
from palmette.types import TokenLogprob


class LogitOps(Protocol):
    """On logits (rows, vocab) float32. Minus infinity stands for a token that no mask allowed, and is no defect."""

    def finite_rows(self, logits: Tensor) -> list[bool]:
        """Which rows hold neither NaN nor plus infinity."""
        ...

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> list[int]:
        """See sampler.sample."""
        ...

    def token_logprobs(self, logits: Tensor, token_ids: Sequence[int], top: int) -> list[TokenLogprob]:
        """See logprobs.token_logprobs."""
        ...

    def pick_logprobs(self, logits: Tensor, rows: Sequence[int], token_ids: Sequence[int]) -> list[float]:
        """See logprobs.pick_logprobs."""
        ...


class TorchOps:
    """On any device."""

    def finite_rows(self, logits: Tensor) -> list[bool]:
        return sampler.finite_rows(logits)

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> list[int]:
        return sampler.sample(logits, draws)

    def token_logprobs(self, logits: Tensor, token_ids: Sequence[int], top: int) -> list[TokenLogprob]:
        return logprobs.token_logprobs(logits, token_ids, top)

    def pick_logprobs(self, logits: Tensor, rows: Sequence[int], token_ids: Sequence[int]) -> list[float]:
        return logprobs.pick_logprobs(logits, rows, token_ids)
