"""What a step does with logits, whoever computes it: torch, the compiled core beside its decoder, or a device.

The functions of `sampler` and `logprobs` are the specification; `compiled_ops` computes them on the CPU.

A call queues its work and returns. Logits and draws, their masks included, may change as soon as it has returned: what
it needs of them has been read by then, or will have been when the device comes to whatever is queued next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from palmette.runtime import logprobs, sampler
from palmette.runtime.later import Later, Now
from palmette.runtime.sampler import Draw
from palmette.types import TokenLogprob


class LogitOps(Protocol):
    """On logits (rows, vocab) float32. Minus infinity stands for a token that no mask allowed, and is no defect."""

    def finite_rows(self, logits: Tensor) -> Later[list[bool]]:
        """Which rows hold neither NaN nor plus infinity.

        Where the answer is there at once (`Now`), rows that are not finite are not asked for anything else. Elsewhere
        they are, before anybody knows: whatever they give, it must be an id of the vocabulary, or a number.
        """
        ...

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> Later[list[int]]:
        """See sampler.sample."""
        ...

    def token_logprobs(
        self, logits: Tensor, token_ids: Sequence[int] | Later[list[int]], top: int
    ) -> Later[list[TokenLogprob]]:
        """See logprobs.token_logprobs. A Later is what `sample` of this object returned for these rows."""
        ...

    def pick_logprobs(self, logits: Tensor, rows: Sequence[int], token_ids: Sequence[int]) -> Later[list[float]]:
        """See logprobs.pick_logprobs."""
        ...


class TorchOps:
    """On any device, waiting for it."""

    def finite_rows(self, logits: Tensor) -> Later[list[bool]]:
        return Now(sampler.finite_rows(logits))

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> Later[list[int]]:
        return Now(sampler.sample(logits, draws))

    def token_logprobs(
        self, logits: Tensor, token_ids: Sequence[int] | Later[list[int]], top: int
    ) -> Later[list[TokenLogprob]]:
        return Now(logprobs.token_logprobs(logits, known(token_ids), top))

    def pick_logprobs(self, logits: Tensor, rows: Sequence[int], token_ids: Sequence[int]) -> Later[list[float]]:
        return Now(logprobs.pick_logprobs(logits, rows, token_ids))


def known(token_ids: Sequence[int] | Later[list[int]]) -> Sequence[int]:
    """The tokens, waited for if they are on their way."""
    return token_ids if isinstance(token_ids, Sequence) else token_ids.get()
