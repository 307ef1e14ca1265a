"""Runs a model on scheduled batches: owns its KV pool and page table, packs, computes, returns logits.

Knows tensors. Does not know requests: a row of the page table and a slot mean whatever the scheduler says they mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from palmette.errors import InvalidOption
from palmette.runtime.batch import AttentionShape, ForwardBatch, pack
from palmette.runtime.drawn import Drawn
from palmette.runtime.kv_pool import KVPool, kv_specs
from palmette.runtime.later import Later
from palmette.runtime.logit_ops import TorchOps
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow

LOGIT_BLOCK = 128  # rows that go through the LM head at once; bounds what is allocated beside the result


class ModelRunner:
    """One model, its pool of `num_slots` slots from 0 on, and its page table. Used by one thread at a time."""

    is_asynchronous = False  # results are there when a call returns

    def __init__(
        self, model: Decoder, *, num_slots: int, max_running_rows: int, context_len: int | None = None
    ) -> None:
        """Allocate the pool and the page table.

        Args:
            context_len: page-table entries of a row; the model's own when None. A score row needs one for every
                token of its prefix and every node of its trie.

        Raises:
            InvalidOption: a size that is not positive, or a context longer than the model's.
        """
        config = model.config
        context_len = config.context_len if context_len is None else context_len
        for name, value in (("num_slots", num_slots), ("max_running_rows", max_running_rows)):
            if value < 1:
                raise InvalidOption(name, value, "at least 1")
        if not 1 <= context_len <= config.context_len:
            raise InvalidOption("context_len", context_len, f"1 to {config.context_len}, the model's own")
        self.model = model
        self.config = config
        self.kv_pool = KVPool(kv_specs(config, model.dtype), num_slots, model.device)
        self.page_table = torch.zeros((max_running_rows, context_len), dtype=torch.int32)  # row, index -> slot
        self._shape = AttentionShape(config.num_heads, config.num_kv_heads, config.windows, self.kv_pool.pad_slot)
        self._drawn = Drawn()
        self.ops = TorchOps()

    def keep_drawn(self, rows: Sequence[int], tokens: Later[list[int]]) -> None:
        """tokens[i] was drawn for page-table row rows[i]: what DRAWN stands for in the next forward pass."""
        self._drawn.keep(rows, tokens)

    @torch.inference_mode()
    def forward(self, batch: ScheduledBatch, masks: Sequence[NDArray[np.uint32] | None] | None = None) -> Tensor:
        """Compute a step.

        Args:
            batch: may have DRAWN for a token, see keep_drawn.
            masks: which logits matter; all are computed anyway.

        Returns:
            (batch.num_logits, vocab_size) float32 logits of the wanted tokens, in row order, then token order.
        """
        packed = self._pack(self._drawn.resolve(batch))
        hidden = self.model.forward(packed, self.kv_pool)
        wanted = hidden.index_select(0, packed.logit_tokens)
        if wanted.shape[0] <= LOGIT_BLOCK:
            return self.model.logits(wanted)
        logits = torch.empty((wanted.shape[0], self.config.vocab_size), dtype=torch.float32, device=wanted.device)
        for block in range(0, wanted.shape[0], LOGIT_BLOCK):
            logits[block : block + LOGIT_BLOCK] = self.model.logits(wanted[block : block + LOGIT_BLOCK])
        return logits

    @torch.inference_mode()
    def embed(self, token_ids: tuple[int, ...], slots: tuple[int, ...], row: int) -> Tensor:
        """The last token's hidden state, scaled to length 1.

        Args:
            token_ids: at least one, computed from nothing.
            slots: one for each token, the caller's until this returns.
            row: a free row of the page table.

        Returns:
            (hidden_size,) float32.
        """
        packed = self._pack(ScheduledBatch((ScheduledRow(row, token_ids, 0, slots),)))
        hidden = self.model.forward(packed, self.kv_pool)
        return F.normalize(hidden[-1].float(), dim=0)

    def _pack(self, batch: ScheduledBatch) -> ForwardBatch:
        return pack(batch, self.page_table, self._shape, self.model.device)
