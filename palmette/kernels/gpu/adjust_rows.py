"""Penalties, bias and banned ids on copies of the rows that have any; defined by `kernels.sampling`.

    x -> (x / repetition where x > 0, else x * repetition) - subtract + add

One launch copies whole rows to float32, another changes a few ids of them: entries (row, id) that stand once each. The
rows themselves stay, since logprobs are of the model's own logits. Logits (rows, vocab) float32, bfloat16 or float16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from palmette.kernels.gpu.logprobs import chunk_of
from palmette.kernels.sampling import Adjustments


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
