"""Token embedding; defined by `kernels.embedding`.

A program copies BLOCK columns of one token's row, times a factor. Where the token's id is negative it reads the id from
`drawn`, so that a step may be queued before anyone knows what the step before it has drawn. Row offsets are 64 bits.

The gather of hidden rows before the head has no kernel: torch's index_select is one launch that reads and writes each
row once, and there is nothing to fuse it with.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from palmette.kernels.gpu.launch import padded

_BLOCK = 1024


def embed(
    ids: Tensor, table: Tensor, *, scale: float = 1.0, drawn: Tensor | None = None, rows: Tensor | None = None
) -> Tensor:
    """See kernels.embedding.embed; contiguous tensors."""
    tokens, dim = ids.shape[0], table.shape[1]
    out = torch.empty((tokens, dim), dtype=table.dtype, device=table.device)
    if tokens == 0:
        return out
    block = min(_BLOCK, padded(dim))
    has_drawn = drawn is not None and rows is not None
    embed_kernel[(tokens, triton.cdiv(dim, block))](
        ids,
        table,
        drawn if has_drawn else ids,  # pointers that are not read have to point somewhere
        rows if has_drawn else ids,
        out,
        1.0 if scale == 1.0 else float(torch.tensor(scale, dtype=table.dtype)),
        dim,
        HAS_DRAWN=has_drawn,
        BLOCK=block,
        num_warps=max(1, block // 256),
    )
    return out


@triton.jit
def embed_kernel(ids, table, drawn, rows, out, scale, dim, HAS_DRAWN: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = columns < dim
    name = tl.load(ids + token).to(tl.int64)
    if HAS_DRAWN:
        row = tl.load(rows + token, mask=name < 0, other=0)
        name = tl.where(name < 0, tl.load(drawn + row, mask=name < 0, other=0).to(tl.int64), name)
    x = tl.load(table + name * dim + columns, mask=real, other=0.0).to(tl.float32)
    tl.store(out + token * dim + columns, (x * scale).to(out.dtype.element_ty), mask=real)
