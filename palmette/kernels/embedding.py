"""Token embedding: rows of a table, for tokens that are known and for tokens that the device has just drawn.

    x_t = table[ids_t] * scale        ids_t < 0: the token drawn last for the row rows_t, which no CPU has seen yet

Reference: `nn.Embedding` of transformers' decoders, and Gemma's `GemmaTextScaledWordEmbedding`, whose scale is rounded
to the table's dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def embed(
    ids: Tensor, table: Tensor, *, scale: float = 1.0, drawn: Tensor | None = None, rows: Tensor | None = None
) -> Tensor:
    """
    Args:
        ids: (num_tokens,) integers; negative ones only with `drawn` and `rows`.
        table: (vocab_size, hidden_size), any float dtype.
        scale: factor on every row, rounded to the table's dtype.
        drawn: (num_rows,) int32 token drawn last for each page-table row.
        rows: (num_tokens,) integers, each token's page-table row; read where ids is negative.

    Returns:
        (num_tokens, hidden_size) in the table's dtype.
    """
    if drawn is not None and rows is not None:
        known = ids >= 0
        ids = torch.where(known, ids, drawn[torch.where(known, 0, rows)].to(ids.dtype))
    x = F.embedding(ids, table)
    return x if scale == 1.0 else x * torch.tensor(scale, dtype=table.dtype)
