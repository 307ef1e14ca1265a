"""From a step's logits to one token a row, as tensors: what `gpu.sampling` computes without sorting the vocabulary.

    x = adjusted, masked logits                 z = x / T - max(x) / T           w = exp(z), so that the best weighs 1
    t_k = the top_k-th largest z;   t_p = the largest t with sum(w where z >= t) >= top_p * sum(w where z >= t_k)
    kept: w >= min_p,  w >= exp(t_k),  w >= exp(t_p)          token: where the sum of kept w, by id, passes at * total

It is the order of operations of the runtime's sampler on the form in which a device gets its rows; requests, seeds
and penalties by name are not known here. Knows what a row's numbers mean, not where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowDraws:
    """How each row is drawn; every tensor on the logits' device.

    `any_drawn` and `any_filtered` say what the host knows of all rows, so that work nobody wants is never queued.
    """

    temperature: Tensor  # (rows,) float32; 0 = greedy: the best, of equals the lowest id
    top_k: Tensor  # (rows,) int32; 0 = off
    top_p: Tensor  # (rows,) float64; 1 = off
    min_p: Tensor  # (rows,) float32; 0 = off
    at: Tensor  # (rows,) float64 in [0, 1)
    any_drawn: bool  # some temperature is not 0
    any_filtered: bool  # some drawn row has a top_k or a top_p
    mask_row: Tensor | None = None  # (rows,) int32: a row of `masks`; -1 = every id may come
    masks: Tensor | None = None  # (num_masks, words) int32: bit `id % 32` of word `id // 32`; beyond them nothing may


@dataclass(frozen=True, slots=True)
class Adjustments:
    """Changes of single logits, made in float32 on copies of the rows that have any.

    An entry makes x of one id  (x > 0 ? x / repetition : x * repetition) - subtract + add;  an `add` of minus infinity
    bans the id. No id has two entries in one copy.
    """

    copy_of: Tensor  # (rows,) int32: the copy that a row is drawn from; -1 = the row itself
    sources: Tensor  # (num_copies,) int32: the row that a copy is of
    copies: Tensor  # (entries,) int32
    ids: Tensor  # (entries,) int32
    repetition: Tensor  # (entries,) float32
    subtract: Tensor  # (entries,) float32
    add: Tensor  # (entries,) float32


@dataclass(frozen=True, slots=True)
class Drawn:
    """One element a row."""

    tokens: Tensor  # int32
    logprobs: Tensor  # float32: of the token under the row as it came: no adjustment, mask or temperature
    finite: Tensor  # int32: 1 if the row as it came holds neither NaN nor plus infinity


def sample(logits: Tensor, draws: RowDraws, adjustments: Adjustments | None = None) -> Drawn:
    """The definition, row by row, in float64 where it adds up. `logits` (rows, vocab) is not changed.

    A row that is not finite gives some token id, and so does one with no id that may come; other rows never notice.
    """
    finite = (logits < torch.inf).all(-1)  # NaN is not less than anything
    raw = torch.where(logits < torch.inf, logits, -torch.inf).float()
    x = allowed(adjusted(raw, adjustments), draws)
    tokens = x.argmax(-1)
    for row in range(len(logits)):
        if float(draws.temperature[row]) > 0 and float(x[row].max()) > -torch.inf:
            tokens[row] = _draw(x[row], draws, row)
    mine = raw.gather(-1, tokens[:, None])[:, 0]
    return Drawn(tokens.int(), mine - raw.logsumexp(-1), finite.int())


def adjusted(logits: Tensor, adjustments: Adjustments | None) -> Tensor:
    """(rows, vocab) float32 logits with every row's entries applied, as a copy."""
    out = logits.clone()
    if adjustments is None:
        return out
    a = adjustments
    rows, ids = a.sources[a.copies.long()].long(), a.ids.long()
    x = logits[rows, ids]
    out[rows, ids] = torch.where(x > 0, x / a.repetition, x * a.repetition) - a.subtract + a.add
    return out


def allowed(logits: Tensor, draws: RowDraws) -> Tensor:
    """`logits` with minus infinity where a row's mask has no bit."""
    if draws.mask_row is None or draws.masks is None:
        return logits
    vocab, words = logits.shape[-1], draws.masks.shape[-1]
    bits = (draws.masks[..., None] >> torch.arange(32, device=logits.device, dtype=torch.int32)) & 1
    may = bits.reshape(-1, words * 32)[:, :vocab].bool()
    may = torch.nn.functional.pad(may, (0, max(0, vocab - words * 32)))
    masked = (draws.mask_row >= 0)[:, None] & ~may[draws.mask_row.clamp(min=0).long()]
    return logits.masked_fill(masked, -torch.inf)


def _draw(x: Tensor, draws: RowDraws, row: int) -> Tensor:
    scaled = x / draws.temperature[row]
    weights = (scaled - scaled.max()).exp()
    least, top_k, top_p = draws.min_p[row], int(draws.top_k[row]), draws.top_p[row]
    left = weights
    if top_k > 0:
        by_k = weights.topk(min(top_k, len(weights))).values[-1]
        least, left = torch.maximum(least, by_k), weights[weights >= by_k]
    if float(top_p) < 1.0:
        ordered = left.sort(descending=True).values
        ends = ordered.cumsum(-1, dtype=torch.float64)
        place = torch.searchsorted(ends, top_p * ends[-1]).clamp_(max=len(ordered) - 1)
        least = torch.maximum(least, ordered[place])
    ends = torch.where(weights >= least, weights, 0.0).cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(ends, (draws.at[row] * ends[-1]).clamp(max=ends[-1].nextafter(ends[0] * 0)), right=True)
