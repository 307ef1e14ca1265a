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

from palmette.kernels.gpu.launch import padded
from palmette.kernels.gpu.logprobs import chunk_of, merged_norm, sum_exp, without_bad
from palmette.kernels.sampling import Adjustments, Drawn, RowDraws

_PIVOTS = tl.constexpr(8)
_FLOOR = tl.constexpr(-28.0)  # exp of it is less than the unit of weights
_ABOVE_ALL = tl.constexpr(1e-30)  # no z is larger than zero
_UNIT = tl.constexpr(float(2**39))  # what the best token weighs
_COUNT = tl.constexpr(51)  # a chunk's count stands in the bits from here, its weight below: at most 2^11 of each
_WEIGHT_BITS = tl.constexpr(2**51 - 1)
_NONE = tl.constexpr(0)  # kinds of search: none,
_BY_COUNT = tl.constexpr(1)  # until top_k tokens are above,
_BY_WEIGHT = tl.constexpr(2)  # until top_p of the weight is,
_UNKNOWN = tl.constexpr(3)  # or what the first level's sums will say
_EDGES = tl.constexpr(16)  # floats of a bracket: 8 pivots, the first its lower end; then the upper end
_FACTS = tl.constexpr(8)  # integers of a bracket: kind, goal, count above, weight above, settled, candidates


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
        edges = torch.empty((rows, sizes.levels + 1, _EDGES.value), dtype=torch.float32, device=device)
        facts = torch.empty((rows, sizes.levels + 1, _FACTS.value), dtype=torch.int64, device=device)
        sums = torch.empty((rows, sizes.levels, 2 * _PIVOTS.value), dtype=torch.int64, device=device)
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


def adjusted_rows(logits: Tensor, adjustments: Adjustments) -> Tensor:
    """(num_copies, vocab) float32 copies of the rows that have entries, with these applied."""
    vocab, a = logits.shape[-1], adjustments
    chunk = chunk_of(vocab)
    copies = torch.empty((max(1, len(a.sources)), vocab), dtype=torch.float32, device=logits.device)
    if len(a.sources):
        copy_kernel[(triton.cdiv(vocab, chunk), len(a.sources))](
            logits, logits.stride(0), a.sources, copies, vocab, CHUNK=chunk
        )
    if len(a.ids):
        adjust_kernel[(triton.cdiv(len(a.ids), 256),)](
            logits,
            logits.stride(0),
            a.sources,
            a.copies,
            a.ids,
            a.repetition,
            a.subtract,
            a.add,
            copies,
            vocab,
            len(a.ids),
            ENTRIES=256,
        )
    return copies


# -- the rows as they are drawn from -------------------------------------------------------------------------------


@triton.jit
def copy_kernel(logits, stride, sources, copies, vocab, CHUNK: tl.constexpr):
    ids = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    copy = tl.program_id(1).to(tl.int64)
    row = tl.load(sources + copy).to(tl.int64)
    x = tl.load(logits + row * stride + ids, mask=ids < vocab, other=0.0).to(tl.float32)
    tl.store(copies + copy * vocab + ids, x, mask=ids < vocab)


@triton.jit(do_not_specialize=["num_entries"])
def adjust_kernel(
    logits,
    stride,
    sources,
    copy_of_entry,
    ids,
    repetition,
    subtract,
    add,
    copies,
    vocab,
    num_entries,
    ENTRIES: tl.constexpr,
):
    at = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    real = at < num_entries
    copy = tl.load(copy_of_entry + at, mask=real, other=0).to(tl.int64)
    id_ = tl.load(ids + at, mask=real, other=0)
    real = real & (id_ >= 0) & (id_ < vocab)
    row = tl.load(sources + copy, mask=real, other=0).to(tl.int64)
    x = tl.load(logits + row * stride + id_, mask=real, other=0.0).to(tl.float32)
    penalty = tl.load(repetition + at, mask=real, other=1.0)
    x = tl.where(x > 0, tl.div_rn(x, penalty), x * penalty)
    x = x - tl.load(subtract + at, mask=real, other=0.0)
    x = x + tl.load(add + at, mask=real, other=0.0)
    tl.store(copies + copy * vocab + id_, x, mask=real)


@triton.jit
def _scores(
    row,
    ids,
    logits,
    stride,
    copies,
    copy_of,
    masks,
    mask_row,
    words,
    vocab,
    HAS_COPIES: tl.constexpr,
    HAS_MASKS: tl.constexpr,
):
    """x of some ids of a row: adjusted, minus infinity where masked or bad."""
    real = ids < vocab
    if HAS_COPIES:
        copy = tl.load(copy_of + row).to(tl.int64)
        if copy >= 0:
            x = tl.load(copies + copy * vocab + ids, mask=real, other=-float("inf"))
        else:
            x = tl.load(logits + row * stride + ids, mask=real, other=-float("inf")).to(tl.float32)
    else:
        x = tl.load(logits + row * stride + ids, mask=real, other=-float("inf")).to(tl.float32)
    x = without_bad(x)
    if HAS_MASKS:
        mask = tl.load(mask_row + row).to(tl.int64)
        if mask >= 0:
            word = tl.load(masks + mask * words + ids // 32, mask=real & (ids // 32 < words), other=0)
            x = tl.where(((word >> (ids % 32)) & 1) != 0, x, -float("inf"))
    return x


@triton.jit
def _scaled(x, best, temperature):
    """z <= 0; minus infinity where x is, or where no number is left of it."""
    base = tl.where(best > -float("inf"), best, 0.0)
    if temperature == 1.0:  # a tenth of what a program does to an id is this division
        z = x - base
    else:
        z = tl.div_rn(x, temperature) - tl.div_rn(base, temperature)
    return tl.where(z <= 0.0, z, -float("inf"))


@triton.jit
def _weight(z):
    return (tl.exp(z) * _UNIT).to(tl.int64)


@triton.jit
def _kept(z, cut, min_p):
    """Whether z stays: at least as likely as the threshold, to the last bit of its weight, and as min_p."""
    w = tl.exp(z)
    return ((z >= cut) | (w >= tl.exp(cut))) & (w >= min_p)


@triton.jit
def _depth(z):
    """Integers in the opposite order of z <= 0."""
    return tl.abs(z).to(tl.int32, bitcast=True)


@triton.jit
def _best_of_row(found, row, num_chunks, CHUNKS: tl.constexpr):
    c = tl.arange(0, CHUNKS)
    return tl.max(tl.load(found + (row * 4 + 2) * num_chunks + c, mask=c < num_chunks, other=-float("inf")), 0)


@triton.jit
def _element(vector, places, place):
    return tl.sum(tl.where(places == place, vector, 0), 0)


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
    x = _scores(row, ids, logits, stride, copies, copy_of, masks, mask_row, words, vocab, HAS_COPIES, HAS_MASKS)
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
            j = tl.arange(0, 2 * _PIVOTS)
            for level in tl.static_range(LEVELS):
                tl.store(sums + (row * LEVELS + level) * 2 * _PIVOTS + j, tl.zeros_like(j).to(tl.int64))
            tl.store(fill + row, 0)


# -- the bracket ---------------------------------------------------------------------------------------------------


@triton.jit
def _goal(top_p, total):
    """The least integer weight that is top_p of `total`."""
    wanted = top_p * total.to(tl.float64)
    goal = wanted.to(tl.int64)
    goal = tl.where(goal.to(tl.float64) < wanted, goal + 1, goal)
    return tl.minimum(tl.maximum(goal, 1), total)


@triton.jit
def _first_bracket(row, found, temperature, top_k, top_p, num_chunks, CHUNKS: tl.constexpr):
    """(lower end, upper end, settled): all that has weight, or nothing to do."""
    c = tl.arange(0, CHUNKS)
    least = tl.min(tl.load(found + (row * 4 + 3) * num_chunks + c, mask=c < num_chunks, other=float("inf")), 0)
    best = _best_of_row(found, row, num_chunks, CHUNKS)
    low = tl.where(least <= best, _scaled(tl.where(least <= best, least, best), best, temperature), 0.0)
    low = tl.where(low > _FLOOR, low, _FLOOR)
    return low, (top_k <= 0) & (top_p >= 1.0)


@triton.jit
def _part(edges, facts, sums, top_k, top_p, LIST: tl.constexpr):
    """The part of a level's bracket that its sums point to; pointers to one row's level."""
    j = tl.arange(0, _PIVOTS)
    pivots = tl.load(edges + j)
    high = tl.load(edges + _PIVOTS)
    kind = tl.load(facts)
    goal = tl.load(facts + 1)
    count_above = tl.load(facts + 2)
    weight_above = tl.load(facts + 3)
    settled = tl.load(facts + 4)
    candidates = tl.load(facts + 5)
    low = _element(pivots, j, 0)
    if settled == 0:
        counts = tl.load(sums + j)
        weights = tl.load(sums + _PIVOTS + j)
        if kind == _UNKNOWN:  # the first pivot is below all that has weight
            by_count = (top_k > 0) & (top_k <= _element(counts, j, 0))
            total = _element(weights, j, 0)
            by_weight = (top_p < 1.0) & (total > 0)
            kind = tl.where(by_count, _BY_COUNT, tl.where(by_weight, _BY_WEIGHT, _NONE)).to(tl.int64)
            goal = tl.where(by_count, top_k.to(tl.int64), _goal(top_p, total))
        met = tl.where(kind == _BY_COUNT, counts, weights) >= goal
        place = tl.maximum(tl.sum(met.to(tl.int32), 0) - 1, 0)
        last = place == _PIVOTS - 1
        low = _element(pivots, j, place)
        high = tl.where(last, high, _element(pivots, j, place + 1))
        count_above = tl.where(last, count_above, _element(counts, j, place + 1))
        weight_above = tl.where(last, weight_above, _element(weights, j, place + 1))
        whole = (kind == _BY_COUNT) & (top_p < 1.0)  # top-p then looks at all that top-k left
        candidates = _element(counts, j, place) - tl.where(whole, 0, count_above)
        settled = ((kind == _NONE) | (candidates <= LIST)).to(tl.int64)
    return low, high, kind, goal, count_above, weight_above, settled, candidates


@triton.jit
def _pivots(low, high):
    """Made once a level and stored: another kernel's compiler might round the same formula otherwise."""
    return low + (high - low) * (tl.arange(0, _PIVOTS).to(tl.float32) * 0.125)


@triton.jit
def _remember(edges, facts, pivots, high, kind, goal, count_above, weight_above, settled, candidates):
    tl.store(edges + tl.arange(0, _PIVOTS), pivots)
    tl.store(edges + _PIVOTS, high)
    tl.store(facts, kind)
    tl.store(facts + 1, goal)
    tl.store(facts + 2, count_above)
    tl.store(facts + 3, weight_above)
    tl.store(facts + 4, settled)
    tl.store(facts + 5, candidates)


@triton.jit
def narrow_kernel(
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
    top_k,
    top_p,
    edges,
    facts,
    sums,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    LIST: tl.constexpr,
    LEVELS: tl.constexpr,
    LEVEL: tl.constexpr,
    HAS_COPIES: tl.constexpr,
    HAS_MASKS: tl.constexpr,
):
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    t = tl.load(temperature + row)
    if t > 0:
        k, p = tl.load(top_k + row), tl.load(top_p + row)
        zero = tl.full((), 0, tl.int64)
        if LEVEL == 0:
            low, nothing = _first_bracket(row, found, t, k, p, num_chunks, CHUNKS)
            high = tl.full((), _ABOVE_ALL, tl.float32)
            settled = nothing.to(tl.int64)
            kind = tl.where(nothing, _NONE, _UNKNOWN).to(tl.int64)
            goal, count_above, weight_above, candidates = zero, zero, zero, zero
        else:
            before = row * (LEVELS + 1) + LEVEL - 1
            low, high, kind, goal, count_above, weight_above, settled, candidates = _part(
                edges + before * _EDGES,
                facts + before * _FACTS,
                sums + (row * LEVELS + LEVEL - 1) * 2 * _PIVOTS,
                k,
                p,
                LIST,
            )
        pivots = _pivots(low, high)
        if chunk == 0:
            here = row * (LEVELS + 1) + LEVEL
            _remember(
                edges + here * _EDGES,
                facts + here * _FACTS,
                pivots,
                high,
                kind,
                goal,
                count_above,
                weight_above,
                settled,
                candidates,
            )
        if settled == 0:
            best = _best_of_row(found, row, num_chunks, CHUNKS)
            if _scaled(tl.load(found + (row * 4 + 2) * num_chunks + chunk), best, t) >= low:
                ids = chunk * CHUNK + tl.arange(0, CHUNK)
                x = _scores(
                    row, ids, logits, stride, copies, copy_of, masks, mask_row, words, vocab, HAS_COPIES, HAS_MASKS
                )
                z = _scaled(x, best, t)
                both = _weight(z) + (tl.full((), 1, tl.int64) << _COUNT)
                j = tl.arange(0, _PIVOTS)
                packed = tl.zeros((_PIVOTS,), tl.int64)
                for i in tl.static_range(_PIVOTS):
                    above = tl.sum(tl.where(z >= _element(pivots, j, i), both, 0), 0)
                    packed = tl.where(j == i, above, packed)
                into = sums + (row * LEVELS + LEVEL) * 2 * _PIVOTS + j
                tl.atomic_add(into, packed >> _COUNT, sem="relaxed")
                tl.atomic_add(into + _PIVOTS, packed & _WEIGHT_BITS, sem="relaxed")


@triton.jit
def gather_kernel(
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
    top_k,
    top_p,
    edges,
    facts,
    sums,
    lists,
    fill,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    LIST: tl.constexpr,
    LEVELS: tl.constexpr,
    HAS_COPIES: tl.constexpr,
    HAS_MASKS: tl.constexpr,
):
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    t = tl.load(temperature + row)
    if t > 0:
        k, p = tl.load(top_k + row), tl.load(top_p + row)
        here = row * (LEVELS + 1) + LEVELS
        low, high, kind, goal, count_above, weight_above, settled, candidates = _part(
            edges + (here - 1) * _EDGES,
            facts + (here - 1) * _FACTS,
            sums + (row * LEVELS + LEVELS - 1) * 2 * _PIVOTS,
            k,
            p,
            LIST,
        )
        if chunk == 0:
            _remember(
                edges + here * _EDGES,
                facts + here * _FACTS,
                _pivots(low, high),
                high,
                kind,
                goal,
                count_above,
                weight_above,
                settled,
                candidates,
            )
        if (kind != _NONE) & (settled != 0):
            best = _best_of_row(found, row, num_chunks, CHUNKS)
            if _scaled(tl.load(found + (row * 4 + 2) * num_chunks + chunk), best, t) >= low:
                ids = chunk * CHUNK + tl.arange(0, CHUNK)
                x = _scores(
                    row, ids, logits, stride, copies, copy_of, masks, mask_row, words, vocab, HAS_COPIES, HAS_MASKS
                )
                z = _scaled(x, best, t)
                whole = (kind == _BY_COUNT) & (p < 1.0)
                listed = (z >= low) & (z < tl.where(whole, 1.0, high))
                number = tl.sum(listed.to(tl.int32), 0)
                if number > 0:
                    first = tl.atomic_add(fill + row, number, sem="relaxed")
                    place = first + tl.cumsum(listed.to(tl.int32), 0) - 1
                    tl.store(lists + row * LIST + place, z, mask=listed & (place < LIST))


# -- the threshold -------------------------------------------------------------------------------------------------


@triton.jit
def _sums_within(depth, value, low, high):
    """(8,) sums of `value` at depths of at most low + i/8 of the way to high."""
    j = tl.arange(0, _PIVOTS)
    sums = tl.zeros((_PIVOTS,), tl.int64)
    for i in tl.static_range(_PIVOTS):
        pivot = (low + (((high - low) * i) >> 3)).to(tl.int32)
        sums = tl.where(j == i, tl.sum(tl.where(depth <= pivot, value, 0), 0), sums)
    return sums


@triton.jit
def _cut_bracket(low, high, sums, goal):
    """The part of [low, high] in which the goal is reached first."""
    pivots = low + (((high - low) * tl.arange(0, _PIVOTS).to(tl.int64)) >> 3)
    met = sums >= goal
    new_low = tl.max(tl.where(met, low, pivots + 1), 0)
    return new_low, tl.min(tl.where(met, pivots, high), 0)


@triton.jit
def _search_list(depth, value, goal, low, high):
    """The least depth in [low, high] down to which `value` sums to the goal, known to be reached at `high`."""
    while low < high:
        inside = (depth >= low) & (depth <= high)
        least = tl.min(tl.where(inside, depth, 0x7FFFFFFF), 0).to(tl.int64)
        most = tl.max(tl.where(inside, depth, 0), 0).to(tl.int64)
        high = tl.minimum(high, most)
        low = tl.minimum(tl.maximum(low, least), high)
        if low < high:
            low, high = _cut_bracket(low, high, _sums_within(depth, value, low, high), goal)
    return high


@triton.jit
def _search_row(
    by_count,
    wants_weight,
    goal,
    low,
    high,
    row,
    t,
    best,
    found,
    logits,
    stride,
    copies,
    copy_of,
    masks,
    mask_row,
    words,
    vocab,
    num_chunks,
    CHUNK: tl.constexpr,
    HAS_COPIES: tl.constexpr,
    HAS_MASKS: tl.constexpr,
):
    """`_search_list` on the whole row, which every pass reads; also the weight down to the depth found, if wanted."""
    weight = tl.full((), 0, tl.int64)
    going = ((low < high) | wants_weight).to(tl.int32)
    while going != 0:
        sums = tl.zeros((_PIVOTS,), tl.int64)
        weight = tl.full((), 0, tl.int64)
        least, most = high, low
        for chunk in range(num_chunks):
            at_best = _scaled(tl.load(found + (row * 4 + 2) * num_chunks + chunk), best, t)
            if _depth(at_best).to(tl.int64) <= high:
                ids = chunk * CHUNK + tl.arange(0, CHUNK)
                x = _scores(
                    row, ids, logits, stride, copies, copy_of, masks, mask_row, words, vocab, HAS_COPIES, HAS_MASKS
                )
                z = _scaled(x, best, t)
                depth = _depth(z)
                w = _weight(z)
                inside = (depth >= low) & (depth <= high)
                least = tl.minimum(least, tl.min(tl.where(inside, depth, 0x7FFFFFFF), 0).to(tl.int64))
                most = tl.maximum(most, tl.max(tl.where(inside, depth, 0), 0).to(tl.int64))
                weight += tl.sum(tl.where(depth <= high, w, 0), 0)
                sums += _sums_within(depth, tl.where(by_count, tl.full((), 1, tl.int64), w), low, high)
        if low >= high:
            going = 0
        else:
            low, high = _cut_bracket(low, high, sums, goal)
            high = tl.minimum(high, most)
            low = tl.minimum(tl.maximum(low, least), high)
            going = ((low < high) | wants_weight).to(tl.int32)
    return high, weight


@triton.jit
def settle_kernel(
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
    top_k,
    top_p,
    edges,
    facts,
    lists,
    fill,
    cut,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    LIST: tl.constexpr,
    LEVELS: tl.constexpr,
    HAS_COPIES: tl.constexpr,
    HAS_MASKS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    t = tl.load(temperature + row)
    if t > 0:
        p = tl.load(top_p + row)
        here = row * (LEVELS + 1) + LEVELS
        kind = tl.load(facts + here * _FACTS)
        threshold = tl.full((), -float("inf"), tl.float32)
        if kind != _NONE:
            by_count = kind == _BY_COUNT
            whole = by_count & (p < 1.0)
            goal = tl.load(facts + here * _FACTS + 1)
            upper = tl.load(edges + here * _EDGES + _PIVOTS)
            low = tl.where(upper > 0, 0, _depth(upper).to(tl.int64) + 1)
            high = _depth(tl.load(edges + here * _EDGES)).to(tl.int64)
            if tl.load(facts + here * _FACTS + 4) != 0:
                above = tl.load(facts + here * _FACTS + tl.where(by_count, 2, 3))
                i = tl.arange(0, LIST)
                z = tl.load(lists + row * LIST + i, mask=i < tl.load(fill + row), other=-float("inf"))
                depth = _depth(z)
                w = _weight(z)
                value = tl.where(by_count, (z > -float("inf")).to(tl.int64), w)
                high = _search_list(depth, value, goal - tl.where(whole, 0, above), low, high)
                if whole:
                    goal = _goal(p, tl.sum(tl.where(depth <= high, w, 0), 0))
                    high = _search_list(depth, w, goal, tl.full((), 0, tl.int64), high)
            else:
                best = _best_of_row(found, row, num_chunks, CHUNKS)
                phase = 0
                while phase < 2:
                    high, weight = _search_row(
                        by_count,
                        whole & (phase == 0),
                        goal,
                        low,
                        high,
                        row,
                        t,
                        best,
                        found,
                        logits,
                        stride,
                        copies,
                        copy_of,
                        masks,
                        mask_row,
                        words,
                        vocab,
                        num_chunks,
                        CHUNK,
                        HAS_COPIES,
                        HAS_MASKS,
                    )
                    goal = _goal(p, weight)
                    low = tl.full((), 0, tl.int64)
                    by_count = kind < 0
                    phase = tl.where(whole, phase + 1, 2)
            threshold = -(high.to(tl.int32).to(tl.float32, bitcast=True))
        tl.store(cut + row, threshold)


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
        best = _best_of_row(found, row, num_chunks, CHUNKS)
        total = tl.full((), 0, tl.int64)
        if _kept(_scaled(tl.load(found + (row * 4 + 2) * num_chunks + chunk), best, t), threshold, least):
            ids = chunk * CHUNK + tl.arange(0, CHUNK)
            x = _scores(row, ids, logits, stride, copies, copy_of, masks, mask_row, words, vocab, HAS_COPIES, HAS_MASKS)
            z = _scaled(x, best, t)
            total = tl.sum(tl.where(_kept(z, threshold, least), _weight(z), 0), 0)
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
                x = _scores(
                    row, ids, logits, stride, copies, copy_of, masks, mask_row, words, vocab, HAS_COPIES, HAS_MASKS
                )
                z = _scaled(x, best, t)
                inside = tl.cumsum(tl.where(_kept(z, threshold, least), _weight(z), 0), 0)
                token = tl.minimum(chunk * CHUNK + tl.sum((inside <= target).to(tl.int32), 0), vocab - 1)
    tl.store(tokens + row, token)
    largest = tl.load(found + row * 4 * num_chunks + c, mask=real, other=-float("inf"))
    sums = tl.load(found + (row * 4 + 1) * num_chunks + c, mask=real, other=0.0)
    value = without_bad(tl.load(logits + row * stride + token).to(tl.float32))
    tl.store(logprobs + row, value - merged_norm(largest, sums))
    bad = tl.load(found_ids + (row * 2 + 1) * num_chunks + c, mask=real, other=0)
    tl.store(finite + row, 1 - tl.max(bad, 0))
