"""Natural logarithms of the model's own distribution, from logits: before temperature, penalties and filters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from palmette.types import TokenLogprob


def token_logprobs(logits: Tensor, token_ids: Sequence[int], top: int = 0) -> list[TokenLogprob]:
    """The logprob of one token a row, with the `top` best alternatives.

    Args:
        logits: (rows, vocab).
        token_ids: one for each row.
    """
    norm = logits.logsumexp(-1)
    ids = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)
    mine: list[float] = (logits.gather(-1, ids[:, None])[:, 0] - norm).tolist()
    if not top:
        return [TokenLogprob(token, value) for token, value in zip(token_ids, mine, strict=True)]
    best = logits.topk(min(top, logits.shape[-1]), dim=-1)
    best_ids: list[list[int]] = best.indices.tolist()
    best_values: list[list[float]] = (best.values - norm[:, None]).tolist()
    return [
        TokenLogprob(token, value, tuple(zip(alternatives, values, strict=True)))
        for token, value, alternatives, values in zip(token_ids, mine, best_ids, best_values, strict=True)
    ]


def pick_logprobs(logits: Tensor, rows: Sequence[int], token_ids: Sequence[int]) -> list[float]:
    """The logprob of token_ids[i] under logits[rows[i]]."""
    if not rows:
        return []
    norm = logits.logsumexp(-1)
    row = torch.tensor(rows, dtype=torch.int64, device=logits.device)
    ids = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)
    values: list[float] = (logits[row, ids] - norm[row]).tolist()
    return values
