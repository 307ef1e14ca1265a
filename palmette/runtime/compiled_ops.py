"""Sampling and logprobs by the compiled core: the rows of a step at once, on the decoder's own threads.

torch would start threads of its own here, which wait for more work in a busy loop and take the core's time.
Penalties and biases touch few numbers of a row, so they are applied as `sampler.adjust_` says, to a copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palmette.kernels.cpu.library import Choice, Library
from palmette.runtime.later import Later, Now
from palmette.runtime.logit_ops import known
from palmette.runtime.sampler import Draw, adjust_, uniform
from palmette.types import TokenLogprob


class CompiledOps:
    """`logit_ops.LogitOps` on the threads of a decoder, whose handle outlives this object's use."""

    def __init__(self, core: Library, handle: int) -> None:
        self._core, self._handle = core, handle

    def finite_rows(self, logits: Tensor) -> Later[list[bool]]:
        return Now([not math.isnan(norm) for norm in self._norms(logits, largest_only=True)])

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> Later[list[int]]:
        choices = (Choice * len(draws))()
        rows: NDArray[np.float32] = logits.numpy()
        alive: list[object] = []
        for choice, draw, row in zip(choices, draws, rows, strict=True):
            params = draw.params
            plain = replace(draw, mask=None)
            if plain.changes_logits:
                row = row.copy()
                adjust_(torch.from_numpy(row), plain)
                alive.append(row)
            choice.logits = row.ctypes.data
            if draw.mask is not None:
                choice.mask, choice.mask_words = draw.mask.ctypes.data, len(draw.mask)
            choice.temperature = 0.0 if params.is_greedy else params.temperature
            choice.top_k, choice.top_p, choice.min_p = max(0, params.top_k), params.top_p, params.min_p
            choice.at = uniform(draw.seed, draw.index)
        self._check(self._core.choose(self._handle, choices, len(draws)))
        del alive
        tokens = [choice.token for choice in choices]
        assert min(tokens, default=0) >= 0, "a mask is never empty, and rows are finite"
        return Now(tokens)

    def token_logprobs(
        self, logits: Tensor, token_ids: Sequence[int] | Later[list[int]], top: int
    ) -> Later[list[TokenLogprob]]:
        found: list[TokenLogprob] = []
        for row, norm, token in zip(logits.numpy(), self._norms(logits), known(token_ids), strict=True):
            best: tuple[tuple[int, float], ...] = ()
            if top:
                likely = np.argpartition(row, -top)[-top:] if top < len(row) else np.arange(len(row))
                likely = likely[np.argsort(-row[likely], kind="stable")]
                best = tuple((int(i), float(row[i]) - norm) for i in likely)
            found.append(TokenLogprob(token, float(row[token]) - norm, best))
        return Now(found)

    def pick_logprobs(self, logits: Tensor, rows: Sequence[int], token_ids: Sequence[int]) -> Later[list[float]]:
        norms = self._norms(logits)
        numbers: NDArray[np.float32] = logits.numpy()
        return Now([float(numbers[row, token]) - norms[row] for row, token in zip(rows, token_ids, strict=True)])

    def _norms(self, logits: Tensor, *, largest_only: bool = False) -> list[float]:
        norms = np.empty(len(logits), np.float64)
        logits = logits.contiguous()
        code = self._core.survey(self._handle, logits.data_ptr(), len(logits), largest_only, norms.ctypes.data)
        self._check(code)
        found: list[float] = norms.tolist()
        return found

    def _check(self, code: int) -> None:
        if code:
            raise MemoryError("the compiled core found no memory to sample")
