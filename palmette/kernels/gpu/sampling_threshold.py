"""The threshold of a row: the least z that top-k and top-p keep, by search and without sorting; a part of `sampling`.

    narrow   rows x chunks   sums above PIVOTS pivots of a bracket, level by level
    gather   rows x chunks   the z of what is left in the bracket, to a list
    settle   rows            the last search, among values that occur

A level's bracket is PIVOTS edges and an upper end (float32), and its facts (int64): see `_part`. How the search goes,
and why it is exact, stands in `sampling`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from palmette.kernels.gpu.sampling_scores import (
    best_of_row,
    depth_of,
    element_at,
    scaled_score,
    scores_of,
    weight_of,
)

PIVOTS = tl.constexpr(8)
_FLOOR = tl.constexpr(-28.0)  # exp of it is less than the unit of weights
_ABOVE_ALL = tl.constexpr(1e-30)  # no z is larger than zero
_COUNT = tl.constexpr(51)  # a chunk's count stands in the bits from here, its weight below: at most 2^11 of each
_WEIGHT_BITS = tl.constexpr(2**51 - 1)
_NONE = tl.constexpr(0)  # kinds of search: none,
_BY_COUNT = tl.constexpr(1)  # until top_k tokens are above,
_BY_WEIGHT = tl.constexpr(2)  # until top_p of the weight is,
_UNKNOWN = tl.constexpr(3)  # or what the first level's sums will say
EDGES = tl.constexpr(16)  # floats of a bracket: 8 pivots, the first its lower end; then the upper end
FACTS = tl.constexpr(8)  # integers of a bracket: kind, goal, count above, weight above, settled, candidates


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
    best = best_of_row(found, row, num_chunks, CHUNKS)
    low = tl.where(least <= best, scaled_score(tl.where(least <= best, least, best), best, temperature), 0.0)
    low = tl.where(low > _FLOOR, low, _FLOOR)
    return low, (top_k <= 0) & (top_p >= 1.0)


@triton.jit
def _part(edges, facts, sums, top_k, top_p, LIST: tl.constexpr):
    """The part of a level's bracket that its sums point to; pointers to one row's level."""
    j = tl.arange(0, PIVOTS)
    pivots = tl.load(edges + j)
    high = tl.load(edges + PIVOTS)
    kind = tl.load(facts)
    goal = tl.load(facts + 1)
    count_above = tl.load(facts + 2)
    weight_above = tl.load(facts + 3)
    settled = tl.load(facts + 4)
    candidates = tl.load(facts + 5)
    low = element_at(pivots, j, 0)
    if settled == 0:
        counts = tl.load(sums + j)
        weights = tl.load(sums + PIVOTS + j)
        if kind == _UNKNOWN:  # the first pivot is below all that has weight
            by_count = (top_k > 0) & (top_k <= element_at(counts, j, 0))
            total = element_at(weights, j, 0)
            by_weight = (top_p < 1.0) & (total > 0)
            kind = tl.where(by_count, _BY_COUNT, tl.where(by_weight, _BY_WEIGHT, _NONE)).to(tl.int64)
            goal = tl.where(by_count, top_k.to(tl.int64), _goal(top_p, total))
        met = tl.where(kind == _BY_COUNT, counts, weights) >= goal
        place = tl.maximum(tl.sum(met.to(tl.int32), 0) - 1, 0)
        last = place == PIVOTS - 1
        low = element_at(pivots, j, place)
        high = tl.where(last, high, element_at(pivots, j, place + 1))
        count_above = tl.where(last, count_above, element_at(counts, j, place + 1))
        weight_above = tl.where(last, weight_above, element_at(weights, j, place + 1))
        whole = (kind == _BY_COUNT) & (top_p < 1.0)  # top-p then looks at all that top-k left
        candidates = element_at(counts, j, place) - tl.where(whole, 0, count_above)
        settled = ((kind == _NONE) | (candidates <= LIST)).to(tl.int64)
    return low, high, kind, goal, count_above, weight_above, settled, candidates


@triton.jit
def _pivots(low, high):
    """Made once a level and stored: another kernel's compiler might round the same formula otherwise."""
    return low + (high - low) * (tl.arange(0, PIVOTS).to(tl.float32) * 0.125)


@triton.jit
def _remember(edges, facts, pivots, high, kind, goal, count_above, weight_above, settled, candidates):
    tl.store(edges + tl.arange(0, PIVOTS), pivots)
    tl.store(edges + PIVOTS, high)
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
                edges + before * EDGES,
                facts + before * FACTS,
                sums + (row * LEVELS + LEVEL - 1) * 2 * PIVOTS,
                k,
                p,
                LIST,
            )
        pivots = _pivots(low, high)
        if chunk == 0:
            here = row * (LEVELS + 1) + LEVEL
            _remember(
                edges + here * EDGES,
                facts + here * FACTS,
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
            best = best_of_row(found, row, num_chunks, CHUNKS)
            if scaled_score(tl.load(found + (row * 4 + 2) * num_chunks + chunk), best, t) >= low:
                ids = chunk * CHUNK + tl.arange(0, CHUNK)
                x = scores_of(
                    row, ids, logits, stride, copies, copy_of, masks, mask_row, words, vocab, HAS_COPIES, HAS_MASKS
                )
                z = scaled_score(x, best, t)
                both = weight_of(z) + (tl.full((), 1, tl.int64) << _COUNT)
                j = tl.arange(0, PIVOTS)
                packed = tl.zeros((PIVOTS,), tl.int64)
                for i in tl.static_range(PIVOTS):
                    above = tl.sum(tl.where(z >= element_at(pivots, j, i), both, 0), 0)
                    packed = tl.where(j == i, above, packed)
                into = sums + (row * LEVELS + LEVEL) * 2 * PIVOTS + j
                tl.atomic_add(into, packed >> _COUNT, sem="relaxed")
                tl.atomic_add(into + PIVOTS, packed & _WEIGHT_BITS, sem="relaxed")


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
            edges + (here - 1) * EDGES,
            facts + (here - 1) * FACTS,
            sums + (row * LEVELS + LEVELS - 1) * 2 * PIVOTS,
            k,
            p,
            LIST,
        )
        if chunk == 0:
            _remember(
                edges + here * EDGES,
                facts + here * FACTS,
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
            best = best_of_row(found, row, num_chunks, CHUNKS)
            if scaled_score(tl.load(found + (row * 4 + 2) * num_chunks + chunk), best, t) >= low:
                ids = chunk * CHUNK + tl.arange(0, CHUNK)
                x = scores_of(
                    row, ids, logits, stride, copies, copy_of, masks, mask_row, words, vocab, HAS_COPIES, HAS_MASKS
                )
                z = scaled_score(x, best, t)
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
    j = tl.arange(0, PIVOTS)
    sums = tl.zeros((PIVOTS,), tl.int64)
    for i in tl.static_range(PIVOTS):
        pivot = (low + (((high - low) * i) >> 3)).to(tl.int32)
        sums = tl.where(j == i, tl.sum(tl.where(depth <= pivot, value, 0), 0), sums)
    return sums


@triton.jit
def _cut_bracket(low, high, sums, goal):
    """The part of [low, high] in which the goal is reached first."""
    pivots = low + (((high - low) * tl.arange(0, PIVOTS).to(tl.int64)) >> 3)
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
        sums = tl.zeros((PIVOTS,), tl.int64)
        weight = tl.full((), 0, tl.int64)
        least, most = high, low
        for chunk in range(num_chunks):
            at_best = scaled_score(tl.load(found + (row * 4 + 2) * num_chunks + chunk), best, t)
            if depth_of(at_best).to(tl.int64) <= high:
                ids = chunk * CHUNK + tl.arange(0, CHUNK)
                x = scores_of(
                    row, ids, logits, stride, copies, copy_of, masks, mask_row, words, vocab, HAS_COPIES, HAS_MASKS
                )
                z = scaled_score(x, best, t)
                depth = depth_of(z)
                w = weight_of(z)
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
        kind = tl.load(facts + here * FACTS)
        threshold = tl.full((), -float("inf"), tl.float32)
        if kind != _NONE:
            by_count = kind == _BY_COUNT
            whole = by_count & (p < 1.0)
            goal = tl.load(facts + here * FACTS + 1)
            upper = tl.load(edges + here * EDGES + PIVOTS)
            low = tl.where(upper > 0, 0, depth_of(upper).to(tl.int64) + 1)
            high = depth_of(tl.load(edges + here * EDGES)).to(tl.int64)
            if tl.load(facts + here * FACTS + 4) != 0:
                above = tl.load(facts + here * FACTS + tl.where(by_count, 2, 3))
                i = tl.arange(0, LIST)
                z = tl.load(lists + row * LIST + i, mask=i < tl.load(fill + row), other=-float("inf"))
                depth = depth_of(z)
                w = weight_of(z)
                value = tl.where(by_count, (z > -float("inf")).to(tl.int64), w)
                high = _search_list(depth, value, goal - tl.where(whole, 0, above), low, high)
                if whole:
                    goal = _goal(p, tl.sum(tl.where(depth <= high, w, 0), 0))
                    high = _search_list(depth, w, goal, tl.full((), 0, tl.int64), high)
            else:
                best = best_of_row(found, row, num_chunks, CHUNKS)
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
