"""From logits to tokens: pure functions. What a row gives depends on that row alone, never on its batch mates.

The order, for a row of logits l (one token's next-token scores):

    repetition, frequency, presence penalties, bias, banned ids, mask
    ->  greedy: the best token, of equals the lowest id
    ->  l / temperature  ->  top-k  ->  top-p  ->  min-p         ->  inverse of the cumulative distribution at u

A filter keeps every token at least as likely as its last one, so ties stay together and ids do not matter. u depends
only on the request's seed and the token's place in its hole (`uniform`), so a draw repeats whatever else is computed.

Logits are (rows, vocab) float32. Knows neither requests nor tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palmette.types import SamplingParams

BLOCK = 256  # tokens whose probabilities are added up at once when the cumulative distribution is searched

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Draw:
    """What one row needs besides its logits."""

    params: SamplingParams
    seed: int = 0  # 64 bits
    index: int = 0  # of the token in its hole
    counts: Mapping[int, int] | None = None  # generated token id -> occurrences; for the penalties
    prompt_ids: Sequence[int] = ()  # for the repetition penalty
    banned: tuple[int, ...] = ()  # ids that must not come
    mask: NDArray[np.uint32] | None = None  # the ids that may come: bit `id % 32` of word `id // 32`; never empty

    @property
    def changes_logits(self) -> bool:
        p = self.params
        return bool(
            self.banned
            or self.mask is not None
            or p.logit_bias
            or p.frequency_penalty
            or p.presence_penalty
            or p.repetition_penalty != 1.0
        )


def sample(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token id a row. Rows must be finite (`finite_rows`); `logits` is not changed."""
    if any(draw.changes_logits for draw in draws):
        logits = logits.clone()
        for row, draw in enumerate(draws):
            if draw.changes_logits:
                adjust_(logits[row], draw)
    drawn = [row for row, draw in enumerate(draws) if not draw.params.is_greedy]
    if not drawn:
        return _ids(logits.argmax(-1))
    tokens = [0] * len(draws)
    greedy = [row for row, draw in enumerate(draws) if draw.params.is_greedy]
    if greedy:
        for row, token in zip(greedy, _ids(logits[greedy].argmax(-1)), strict=True):
            tokens[row] = token
    some = [draws[row] for row in drawn]
    weights = filtered_weights(logits if len(drawn) == len(draws) else logits[drawn], [draw.params for draw in some])
    at = torch.tensor([uniform(draw.seed, draw.index) for draw in some], dtype=torch.float64, device=logits.device)
    for row, token in zip(drawn, _ids(inverse_cdf(weights, at)), strict=True):
        tokens[row] = token
    return tokens


def finite_rows(logits: Tensor) -> list[bool]:
    """Which rows hold neither NaN nor infinity."""
    sums = torch.isfinite(logits.sum(-1, dtype=torch.float32)).tolist()
    # A sum of finite numbers may overflow; only then is the row looked at number by number.
    return [ok or bool(torch.isfinite(logits[row]).all()) for row, ok in enumerate(sums)]


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on (seed, index) alone: SplitMix64 (Steele, Lea, Flood 2014, section 5) twice.

    The seed is mixed once, then the index steps the generator, so that neighbouring seeds share no sequence.
    """
    return (_mix((_mix(seed & _MASK) + (index + 1) * _GOLDEN) & _MASK) >> 11) * 2.0**-53


def adjust_(logits: Tensor, draw: Draw) -> None:
    """Penalties, bias, banned ids and mask, in place, on one row (vocab,).

    A token id that occurred has its logit divided by the repetition penalty if positive, else multiplied (arXiv
    1909.05858, section 4.1); then it loses presence_penalty, and frequency_penalty for each time it was generated.
    """
    p = draw.params
    counts = draw.counts or {}
    if p.repetition_penalty != 1.0:
        ids = _index({*draw.prompt_ids, *counts}, logits)
        seen = logits[ids]
        logits[ids] = torch.where(seen > 0, seen / p.repetition_penalty, seen * p.repetition_penalty)
    if counts and (p.frequency_penalty or p.presence_penalty):
        times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
        logits[_index(counts, logits)] -= times * p.frequency_penalty + p.presence_penalty
    if p.logit_bias:
        bias = torch.tensor([b for _, b in p.logit_bias], dtype=logits.dtype, device=logits.device)
        logits.index_add_(0, _index([t for t, _ in p.logit_bias], logits), bias)
    if draw.banned:
        logits[_index(draw.banned, logits)] = -math.inf
    if draw.mask is not None:
        _keep_only_(logits, draw.mask)


def filtered_weights(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Unnormalised probabilities (rows, vocab) float32 after temperature and filters; 0 = filtered out."""
    temperature = torch.tensor([p.temperature for p in params], dtype=logits.dtype, device=logits.device)
    scaled = logits / temperature[:, None]
    weights = (scaled - scaled.amax(-1, keepdim=True)).exp_()  # the most likely token weighs 1
    rows = [row for row, p in enumerate(params) if p.top_k > 0 or p.top_p < 1.0 or p.min_p > 0.0]
    if not rows:
        return weights
    some = weights if len(rows) == len(params) else weights[rows]
    thresholds = _thresholds(some, [params[row] for row in rows])
    weights[rows] = torch.where(some >= thresholds[:, None], some, 0.0)
    return weights


def inverse_cdf(weights: Tensor, at: Tensor) -> Tensor:
    """The token at which the cumulative distribution, in order of token ids, passes `at`.

    Two searches: for the block of BLOCK tokens, then inside it. The same bits for a row whatever the other rows.

    Args:
        weights: (rows, vocab) >= 0, with something positive in each row.
        at: (rows,) float64 in [0, 1).

    Returns:
        (rows,) int64, tokens of positive weight.
    """
    rows, vocab = weights.shape
    if vocab % BLOCK:
        weights = torch.nn.functional.pad(weights, (0, -vocab % BLOCK))
    blocks = weights.view(rows, -1, BLOCK)
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    target = _below(at[:, None] * ends[:, -1:], ends)
    block = torch.searchsorted(ends, target, right=True)
    before = torch.where(block > 0, ends.gather(-1, (block - 1).clamp_(min=0)), 0.0)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, BLOCK))[:, 0].cumsum(-1, dtype=torch.float64)
    offset = torch.searchsorted(inside, _below(target - before, inside), right=True)
    return (block * BLOCK + offset)[:, 0]


def draw_margin(logits: Tensor, draw: Draw) -> float:
    """How clear one row's choice is: below some tolerance, rounding could have changed it.

    Args:
        logits: (vocab,).

    Returns:
        Greedy: the best logit less the second. Drawn: the distance of u from the nearer end of the chosen token's
        interval of the cumulative distribution.
    """
    logits = logits.clone()
    adjust_(logits, draw)
    if draw.params.is_greedy:
        best = logits.topk(min(2, logits.shape[-1])).values
        return float(best[0] - best[-1]) if len(best) > 1 else math.inf
    weights = filtered_weights(logits[None], [draw.params])
    u = uniform(draw.seed, draw.index)
    at = torch.tensor([u], dtype=torch.float64, device=logits.device)
    token = int(inverse_cdf(weights, at))
    ends = weights[0].cumsum(-1, dtype=torch.float64) / weights[0].sum(dtype=torch.float64)
    return min(float(ends[token]) - u, u - (float(ends[token - 1]) if token else 0.0))


# -- private -------------------------------------------------------------------------------------------------------


def _thresholds(weights: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """The smallest weight that each row keeps, (rows,)."""
    thresholds = torch.tensor([p.min_p for p in params], device=weights.device, dtype=weights.dtype)
    ks = [min(p.top_k, weights.shape[-1]) if p.top_k > 0 else 0 for p in params]
    if any(ks):
        best = weights.topk(max(ks), dim=-1).values  # descending
        k = torch.tensor(ks, device=weights.device)
        by_k = torch.where(k > 0, best.gather(-1, (k - 1).clamp_(min=0)[:, None])[:, 0], 0.0)
        thresholds = torch.maximum(thresholds, by_k)
    for row, p in enumerate(params):
        if p.top_p < 1.0:
            least = by_k[row] if ks[row] else torch.zeros_like(thresholds[row])
            thresholds[row] = torch.maximum(thresholds[row], _top_p_threshold(weights[row], least, p.top_p))
    return thresholds


def _top_p_threshold(weights: Tensor, least: Tensor, top_p: float) -> Tensor:
    """The weight of the last of the likeliest tokens that together hold top_p of what `least` leaves of one row.

    All tokens lighter than (1 - top_p) / vocab of the whole weigh less than 1 - top_p together, so the last one kept
    is not among them; only the rest is sorted.
    """
    kept = weights[weights >= least]
    total = kept.sum(dtype=torch.float64)
    ordered = kept[kept >= total * ((1.0 - top_p) / (2 * len(kept)))].sort(descending=True).values
    ends = ordered.cumsum(-1, dtype=torch.float64)
    place = torch.searchsorted(ends, top_p * total).clamp_(max=len(ordered) - 1)
    return ordered[place]


def _below(target: Tensor, ends: Tensor) -> Tensor:
    """`target` moved into [0, ends[-1]), where rounding put it outside."""
    limit = torch.nextafter(ends[:, -1:], torch.zeros_like(ends[:, -1:]))
    return torch.minimum(target.clamp(min=0.0), limit)


def _keep_only_(logits: Tensor, mask: NDArray[np.uint32]) -> None:
    """-inf for what a packed mask leaves out, ids behind its end included; (vocab,), in place."""
    allowed = np.unpackbits(mask.view(np.uint8), bitorder="little", count=min(len(logits), 32 * len(mask)))
    logits[: len(allowed)].masked_fill_(torch.from_numpy(allowed == 0).to(logits.device), -math.inf)
    logits[len(allowed) :] = -math.inf


def _index(ids: Iterable[int], like: Tensor) -> Tensor:
    return torch.tensor(list(ids), dtype=torch.int64, device=like.device)


def _ids(tokens: Tensor) -> list[int]:
    ids: list[int] = tokens.tolist()
    return ids


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
