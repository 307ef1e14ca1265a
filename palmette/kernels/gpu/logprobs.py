"""Logprobs of given tokens, a row's best tokens, and which rows are finite; defined by the runtime's `logprobs`.

    norm = log(sum(exp(l)))                 logprob of id = l[id] - norm                   l: one row (vocab,)

A row is cut into chunks of CHUNK ids, a program each: its largest logit and the sum of exp(l - largest), so one read
of the logits. One program a row merges the chunks in order of ids, always cut at the same places: a row's numbers are
the same bits whatever rows it stands among. NaN and plus infinity make a row not finite and count as minus infinity.

The best n: every chunk takes its largest n times, of equals the lowest id (value and id make one 64-bit key), then a
program a row takes the largest of those n times. Exact, ties in order of ids; one read of the logits.

Logits are (rows, vocab) float32, bfloat16 or float16, contiguous in the last dimension; sums are float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from palmette.kernels.gpu.launch import padded

CHUNK = 2048
_PAIRS = 128  # pairs of a program of `pick`


@dataclass(frozen=True, slots=True)
class RowNorms:
    """One element a row."""

    norms: Tensor  # float32; 0 where every logit is minus infinity
    finite: Tensor  # int32: 1 if the row holds neither NaN nor plus infinity


def row_norms(logits: Tensor) -> RowNorms:
    """(rows, vocab) logits -> log(sum(exp)) of each row, and whether it is finite."""
    rows, vocab = logits.shape
    chunk = chunk_of(vocab)
    chunks = triton.cdiv(vocab, chunk)
    partial = torch.empty((rows, 2, chunks), dtype=torch.float32, device=logits.device)
    bad = torch.empty((rows, chunks), dtype=torch.int32, device=logits.device)
    norms = torch.empty(rows, dtype=torch.float32, device=logits.device)
    finite = torch.empty(rows, dtype=torch.int32, device=logits.device)
    if rows:
        chunk_norms_kernel[(chunks, rows)](logits, logits.stride(0), partial, bad, vocab, chunks, CHUNK=chunk)
        row_norms_kernel[(rows,)](partial, bad, norms, finite, chunks, CHUNKS=padded(chunks), num_warps=1)
    return RowNorms(norms, finite)


def pick(logits: Tensor, norms: Tensor, rows: Tensor | None, ids: Tensor) -> Tensor:
    """The logprob of ids[i] under logits[rows[i]], or under logits[i] without `rows`.

    Args:
        norms: row_norms(logits).norms.
        rows, ids: (pairs,) int32.

    Returns:
        (pairs,) float32.
    """
    out = torch.empty(len(ids), dtype=torch.float32, device=logits.device)
    if len(ids):
        pick_kernel[(triton.cdiv(len(ids), _PAIRS),)](
            logits, logits.stride(0), norms, rows, ids, out, len(ids), HAS_ROWS=rows is not None, PAIRS=_PAIRS
        )
    return out


def top(logits: Tensor, norms: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n most likely ids of each row, best first, of equals the lowest id first.

    Args:
        n: at most the vocabulary.

    Returns:
        Logprobs (rows, n) float32 and ids (rows, n) int32.
    """
    rows, vocab = logits.shape
    chunk = chunk_of(vocab)
    chunks = triton.cdiv(vocab, chunk)
    values = torch.empty((rows, n), dtype=torch.float32, device=logits.device)
    ids = torch.empty((rows, n), dtype=torch.int32, device=logits.device)
    if rows and n:
        keys = torch.empty((rows, chunks, n), dtype=torch.int64, device=logits.device)
        chunk_top_kernel[(chunks, rows)](logits, logits.stride(0), keys, vocab, chunks, n, CHUNK=chunk)
        row_top_kernel[(rows,)](keys, norms, values, ids, chunks * n, n, KEYS=padded(chunks * n))
    return values, ids


def chunk_of(vocab: int) -> int:
    """Ids of a chunk; depends on the vocabulary alone, so that a row is always cut at the same places."""
    return min(CHUNK, padded(vocab))


@triton.jit
def without_bad(x):
    """NaN and plus infinity as minus infinity."""
    return tl.where(x < float("inf"), x, -float("inf"))


@triton.jit
def sum_exp(x):
    """(largest, sum of exp(x - largest)) of numbers below infinity; (-inf, 0) where there is none."""
    largest = tl.max(x, 0)
    base = tl.where(largest > -float("inf"), largest, 0.0)
    return largest, tl.sum(tl.exp(x - base), 0)


@triton.jit
def merged_norm(largest, sums):
    """log(sum(exp)) of what chunks found: vectors of `sum_exp`'s results, padded with (-inf, 0)."""
    top_of_all = tl.max(largest, 0)
    base = tl.where(top_of_all > -float("inf"), top_of_all, 0.0)
    total = tl.sum(sums * tl.exp(largest - base), 0)
    return base + tl.log(tl.where(total > 0, total, 1.0))


@triton.jit
def chunk_norms_kernel(logits, stride, partial, bad, vocab, num_chunks, CHUNK: tl.constexpr):
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    raw = tl.load(logits + row * stride + ids, mask=ids < vocab, other=-float("inf")).to(tl.float32)
    largest, total = sum_exp(without_bad(raw))
    at = row * 2 * num_chunks + chunk
    tl.store(partial + at, largest)
    tl.store(partial + at + num_chunks, total)
    tl.store(bad + row * num_chunks + chunk, tl.max(tl.where(raw < float("inf"), 0, 1), 0))


@triton.jit
def row_norms_kernel(partial, bad, norms, finite, num_chunks, CHUNKS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, CHUNKS)
    real = c < num_chunks
    largest = tl.load(partial + row * 2 * num_chunks + c, mask=real, other=-float("inf"))
    sums = tl.load(partial + row * 2 * num_chunks + num_chunks + c, mask=real, other=0.0)
    tl.store(norms + row, merged_norm(largest, sums))
    tl.store(finite + row, 1 - tl.max(tl.load(bad + row * num_chunks + c, mask=real, other=0), 0))


@triton.jit(do_not_specialize=["num_pairs"])
def pick_kernel(logits, stride, norms, rows, ids, out, num_pairs, HAS_ROWS: tl.constexpr, PAIRS: tl.constexpr):
    at = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    real = at < num_pairs
    row = at.to(tl.int64)
    if HAS_ROWS:
        row = tl.load(rows + at, mask=real, other=0).to(tl.int64)
    id_ = tl.load(ids + at, mask=real, other=0)
    value = without_bad(tl.load(logits + row * stride + id_, mask=real, other=0.0).to(tl.float32))
    tl.store(out + at, value - tl.load(norms + row, mask=real, other=0.0), mask=real)


@triton.jit(do_not_specialize=["n"])
def chunk_top_kernel(logits, stride, keys, vocab, num_chunks, n, CHUNK: tl.constexpr):
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    real = ids < vocab
    raw = tl.load(logits + row * stride + ids, mask=real, other=-float("inf")).to(tl.float32)
    x = without_bad(tl.where(raw == 0.0, 0.0, raw))  # minus zero equals zero
    bits = x.to(tl.int32, bitcast=True)
    ordered = tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).to(tl.int64)  # signed integers in the order of x
    key = (ordered << 32) | (0x7FFFFFFF - ids)
    key = tl.where(real, key, -0x7FFFFFFFFFFFFFFF)
    for i in range(n):
        best = tl.max(key, 0)
        tl.store(keys + (row * num_chunks + chunk) * n + i, best)
        key = tl.where(key == best, -0x7FFFFFFFFFFFFFFF, key)


@triton.jit(do_not_specialize=["num_keys", "n"])
def row_top_kernel(keys, norms, values, ids, num_keys, n, KEYS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, KEYS)
    key = tl.load(keys + row * num_keys + k, mask=k < num_keys, other=-0x7FFFFFFFFFFFFFFF)
    norm = tl.load(norms + row)
    for i in range(n):
        best = tl.max(key, 0)
        key = tl.where(key == best, -0x7FFFFFFFFFFFFFFF, key)
        ordered = (best >> 32).to(tl.int32)
        bits = tl.where(ordered >= 0, ordered, ordered ^ 0x7FFFFFFF)
        tl.store(values + row * n + i, bits.to(tl.float32, bitcast=True) - norm)
        tl.store(ids + row * n + i, 0x7FFFFFFF - (best & 0x7FFFFFFF).to(tl.int32))
