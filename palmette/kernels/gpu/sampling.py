"""One token a row without sorting the vocabulary; defined by `kernels.sampling`.

    survey   rows x chunks   the row as it came: largest, sum of exp, bad; adjusted and masked: best, its id, least
    narrow   rows x chunks   LEVELS times: how many tokens, and how much weight, lie above each of 8 pivots
    gather   rows x chunks   the z that may be the threshold, to a list (at most LIST of a row)
    settle   rows            the threshold itself, in the list; a row with more candidates is read again as a whole
    weigh    rows x chunks   the kept weight of each chunk
    draw     rows            the chunk in which the sum passes at * total, then the id in it; logprob; finite

Only greedy rows: survey and draw. No row with a top-k or top-p: survey, weigh and draw. A row that needs no step, and
a chunk whose best is below all that matters, leave it after a few loads; with a peaked distribution that is nearly all
of them. Each of survey, narrow, gather and weigh reads the logits once at most; adjusted rows are copied before, in
float32, and read as copies from there on (8 bytes more for each id of theirs).

**Why the result is exact and a row's own.** z = x/T - max/T is rounded as torch rounds it. A weight exp(z) counts as
the integer floor(exp(z) * 2^39): integers add up to the same sum in any order, so there are no partial sums to keep in
order, atomic additions included, and nothing depends on the batch. A vocabulary of 2^23 fits in 63 bits. Weights below
2^-39 of the best count as nothing; of 128k tokens that is less than 3e-7 of the whole. The threshold is the z of a
token: the largest z above which the sum reaches its goal, found by search among the floats that occur, not by
sampling. Tokens that weigh as much as the threshold stay.

**Search.** Pivots divide the bracket, at first from the best to the least (at most to 28 below the best, where weights
end), into 8; the sums above them say in which part the threshold is. After three levels a part of 1/512 is left; where
it holds no more than LIST tokens they are gathered (in any order: integers again). The last search is on the floats'
bit patterns, 8 parts a pass, cut down to values that occur, so that equal values end it at once. Where a row has both
filters the bracket is top-k's, the list takes all above its lower end, and settle searches twice. Pivots and a bracket
instead of a sort are FlashInfer's idea (its blog post on sorting-free sampling, 2025); this is another search.

**Expected on an H200**, 64 rows of 128256 float32 (33 MB: a second read comes from the second-level cache in part):
8 to 10 us a read, but instructions bind: by the machine code, about 45 an id in survey, 95 in narrow, 65 in weigh, 60
in gather, and 132 processors issue 9e11 for 32 ids a second: 13, 35, 18 and 17 us. Flat rows, all with top-p: survey,
narrow twice, gather, settle (10), weigh, draw (5) and the gaps between 8 launches, about 150 us; peaked rows, which
leave out most chunks after the first level, about 75; no filter 40; greedy 20. Computed, not measured.

Logits (rows, vocab) float32, bfloat16 or float16, contiguous in the last dimension. No host synchronisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from palmette.kernels.gpu.adjust_rows import adjusted_rows
from palmette.kernels.gpu.launch import padded
from palmette.kernels.gpu.logprobs import chunk_of, merged_norm, sum_exp, without_bad
from palmette.kernels.gpu.sampling_scores import (
    best_of_row,
    is_kept,
    scaled_score,
    scores_of,
    weight_of,
)
from palmette.kernels.gpu.sampling_threshold import EDGES, FACTS, PIVOTS, gather_kernel, narrow_kernel, settle_kernel
from palmette.kernels.sampling import Adjustments, Drawn, RowDraws


@dataclass(frozen=True, slots=True)
class Sizes:
    """How the search is cut. No result depends on it; tests make it small to reach every path."""

    chunk: int  # ids a program; a power of two, 2048 at most
    list_len: int  # candidates that fit a row's list; a power of two
    levels: int  # passes over the rows before candidates are listed; 1 at least

    @classmethod
    def of(cls, vocab: int) -> Sizes:
        list_len = min(8192, padded(vocab))
        return cls(chunk_of(vocab), list_len, 1 if vocab <= list_len else 3)


def sample(
    logits: Tensor, draws: RowDraws, adjustments: Adjustments | None = None, *, sizes: Sizes | None = None
) -> Drawn:
    """See kernels.sampling.sample."""
    return sample_with_cuts(logits, draws, adjustments, sizes=sizes)[0]


def sample_with_cuts(
    logits: Tensor, draws: RowDraws, adjustments: Adjustments | None = None, *, sizes: Sizes | None = None
) -> tuple[Drawn, Tensor | None]:
    """`sample`, and (rows,) float32 the z of the last token that top-k and top-p keep: minus infinity where neither
    cuts, undefined of a greedy row; None where no row has either."""
    rows, vocab = logits.shape
    device = logits.device
    tokens = torch.empty(rows, dtype=torch.int32, device=device)
    logprobs = torch.empty(rows, dtype=torch.float32, device=device)
    finite = torch.empty(rows, dtype=torch.int32, device=device)
    if not rows:
        return Drawn(tokens, logprobs, finite), None
    sizes = sizes or Sizes.of(vocab)
    chunks = triton.cdiv(vocab, sizes.chunk)
    num_chunks_padded = padded(chunks)
    copies = None if adjustments is None else adjusted_rows(logits, adjustments)
    every, rows_alone = (chunks, rows), (rows,)

    found = torch.empty((rows, 4, chunks), dtype=torch.float32, device=device)
    found_ids = torch.empty((rows, 2, chunks), dtype=torch.int32, device=device)
    edges = facts = sums = lists = fill = cut = weights = None
    if draws.any_filtered:
        edges = torch.empty((rows, sizes.levels + 1, EDGES.value), dtype=torch.float32, device=device)
        facts = torch.empty((rows, sizes.levels + 1, FACTS.value), dtype=torch.int64, device=device)
        sums = torch.empty((rows, sizes.levels, 2 * PIVOTS.value), dtype=torch.int64, device=device)
        lists = torch.empty((rows, sizes.list_len), dtype=torch.float32, device=device)
        fill = torch.empty(rows, dtype=torch.int32, device=device)
        cut = torch.empty(rows, dtype=torch.float32, device=device)
    if draws.any_drawn:
        weights = torch.empty((rows, chunks), dtype=torch.int64, device=device)
    source = {
        "logits": logits,
        "stride": logits.stride(0),
        "copies": copies,
        "copy_of": None if adjustments is None else adjustments.copy_of,
        "masks": draws.masks,
        "mask_row": draws.mask_row,
        "words": 0 if draws.masks is None else draws.masks.shape[-1],
        "vocab": vocab,
        "num_chunks": chunks,
        "CHUNK": sizes.chunk,
        "HAS_COPIES": copies is not None,
        "HAS_MASKS": draws.masks is not None,
    }
    levels = {"edges": edges, "facts": facts, "sums": sums}
    survey_kernel[every](
        **source,
        found=found,
        found_ids=found_ids,
        sums=sums,
        fill=fill,
        LEVELS=sizes.levels,
        HAS_FILTERS=draws.any_filtered,
    )
    chosen = {"found": found, "temperature": draws.temperature, "CHUNKS": num_chunks_padded}
    if draws.any_filtered:
        rule = {"top_k": draws.top_k, "top_p": draws.top_p, "LIST": sizes.list_len, "LEVELS": sizes.levels}
        for level in range(sizes.levels):
            narrow_kernel[every](**source, **chosen, **rule, **levels, LEVEL=level)
        gather_kernel[every](**source, **chosen, **rule, **levels, lists=lists, fill=fill)
        settle_kernel[rows_alone](
            **source,
            **chosen,
            **rule,
            edges=edges,
            facts=facts,
            lists=lists,
            fill=fill,
            cut=cut,
            num_warps=max(4, min(16, sizes.list_len // 512)),
        )
    keep = {"min_p": draws.min_p, "cut": cut, "HAS_FILTERS": draws.any_filtered}
    if draws.any_drawn:
        weigh_kernel[every](**source, **chosen, **keep, weights=weights)
    draw_kernel[rows_alone](
        **source,
        **chosen,
        **keep,
        found_ids=found_ids,
        weights=weights,
        at=draws.at,
        tokens=tokens,
        logprobs=logprobs,
        finite=finite,
        ANY_DRAWN=draws.any_drawn,
    )
    return Drawn(tokens, logprobs, finite), cut


# -- survey --------------------------------------------------------------------------------------------------------


@triton.jit
def survey_kernel(
    logits,
    stride,
    copies,
    copy_of,
    masks,
    mask_row,
    words,
    vocab,
    num_chunks,
    found,
    found_ids,
    sums,
    fill,
    CHUNK: tl.constexpr,
    LEVELS: tl.constexpr,
    HAS_COPIES: tl.constexpr,
    HAS_MASKS: tl.constexpr,
    HAS_FILTERS: tl.constexpr,
):
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    raw = tl.load(logits + row * stride + ids, mask=ids < vocab, other=-float("inf")).to(tl.float32)
    largest, total = sum_exp(without_bad(raw))
    x = scores_of(row, ids, logits, stride, copies, copy_of, masks, mask_row, words, vocab, HAS_COPIES, HAS_MASKS)
    best = tl.max(x, 0)
    at = row * 4 * num_chunks + chunk
    tl.store(found + at, largest)
    tl.store(found + at + num_chunks, total)
    tl.store(found + at + 2 * num_chunks, best)
    tl.store(found + at + 3 * num_chunks, tl.min(tl.where(x > -float("inf"), x, float("inf")), 0))
    at = row * 2 * num_chunks + chunk
    tl.store(found_ids + at, tl.min(tl.where(x == best, ids, vocab - 1), 0))
    tl.store(found_ids + at + num_chunks, tl.max(tl.where(raw < float("inf"), 0, 1), 0))
    if HAS_FILTERS:  # noqa: SIM102 - decided when compiling; the other is not
        if chunk == 0:
            j = tl.arange(0, 2 * PIVOTS)
            for level in tl.static_range(LEVELS):
                tl.store(sums + (row * LEVELS + level) * 2 * PIVOTS + j, tl.zeros_like(j).to(tl.int64))
            tl.store(fill + row, 0)


# -- the draw ------------------------------------------------------------------------------------------------------


@triton.jit
def weigh_kernel(
    logits,
    stride,
    copies,
    copy_of,
    masks,
    mask_row,
    words,
    vocab,
    num_chunks,
    found,
    temperature,
    min_p,
    cut,
    weights,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    HAS_COPIES: tl.constexpr,
    HAS_MASKS: tl.constexpr,
    HAS_FILTERS: tl.constexpr,
):
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    t = tl.load(temperature + row)
    if t > 0:
        least = tl.load(min_p + row)
        threshold = tl.full((), -float("inf"), tl.float32)
        if HAS_FILTERS:
            threshold = tl.load(cut + row)
        best = best_of_row(found, row, num_chunks, CHUNKS)
        total = tl.full((), 0, tl.int64)
        if is_kept(scaled_score(tl.load(found + (row * 4 + 2) * num_chunks + chunk), best, t), threshold, least):
            ids = chunk * CHUNK + tl.arange(0, CHUNK)
            x = scores_of(
                row, ids, logits, stride, copies, copy_of, masks, mask_row, words, vocab, HAS_COPIES, HAS_MASKS
            )
            z = scaled_score(x, best, t)
            total = tl.sum(tl.where(is_kept(z, threshold, least), weight_of(z), 0), 0)
        tl.store(weights + row * num_chunks + chunk, total)


@triton.jit
def draw_kernel(
    logits,
    stride,
    copies,
    copy_of,
    masks,
    mask_row,
    words,
    vocab,
    num_chunks,
    found,
    found_ids,
    temperature,
    min_p,
    cut,
    weights,
    at,
    tokens,
    logprobs,
    finite,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    HAS_COPIES: tl.constexpr,
    HAS_MASKS: tl.constexpr,
    HAS_FILTERS: tl.constexpr,
    ANY_DRAWN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, CHUNKS)
    real = c < num_chunks
    bests = tl.load(found + (row * 4 + 2) * num_chunks + c, mask=real, other=-float("inf"))
    best = tl.max(bests, 0)
    first = tl.load(found_ids + row * 2 * num_chunks + c, mask=real, other=vocab - 1)
    token = tl.min(tl.where(bests == best, first, vocab - 1), 0)
    if ANY_DRAWN:
        t = tl.load(temperature + row)
        if t > 0:
            of_chunks = tl.load(weights + row * num_chunks + c, mask=real, other=0)
            total = tl.sum(of_chunks, 0)
            if total > 0:
                least = tl.load(min_p + row)
                threshold = tl.full((), -float("inf"), tl.float32)
                if HAS_FILTERS:
                    threshold = tl.load(cut + row)
                target = tl.minimum((tl.load(at + row) * total.to(tl.float64)).to(tl.int64), total - 1)
                passed = tl.cumsum(of_chunks, 0) <= target
                chunk = tl.sum(passed.to(tl.int32), 0)
                target -= tl.sum(tl.where(passed, of_chunks, 0), 0)
                ids = chunk * CHUNK + tl.arange(0, CHUNK)
                x = scores_of(
                    row, ids, logits, stride, copies, copy_of, masks, mask_row, words, vocab, HAS_COPIES, HAS_MASKS
                )
                z = scaled_score(x, best, t)
                inside = tl.cumsum(tl.where(is_kept(z, threshold, least), weight_of(z), 0), 0)
                token = tl.minimum(chunk * CHUNK + tl.sum((inside <= target).to(tl.int32), 0), vocab - 1)
    tl.store(tokens + row, token)
    largest = tl.load(found + row * 4 * num_chunks + c, mask=real, other=-float("inf"))
    sums = tl.load(found + (row * 4 + 1) * num_chunks + c, mask=real, other=0.0)
    value = without_bad(tl.load(logits + row * stride + token).to(tl.float32))
    tl.store(logprobs + row, value - merged_norm(largest, sums))
    bad = tl.load(found_ids + (row * 2 + 1) * num_chunks + c, mask=real, other=0)
    tl.store(finite + row, 1 - tl.max(bad, 0))
