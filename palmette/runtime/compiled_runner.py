"""Runs a compiled decoder on scheduled batches; the same promises as ModelRunner, kept by the compiled core.

Results are the same bits whatever else is in the batch and however a prompt was cut or cached.

Knows ints and pointers. Does not know requests.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from palmette.errors import EngineDied
from palmette.kernels.cpu import library as core
from palmette.kernels.cpu.library import library
from palmette.runtime.batch import place, write_page_table
from palmette.runtime.compiled_ops import CompiledOps
from palmette.runtime.drawn import Drawn
from palmette.runtime.kv_pool import KVPool, kv_specs
from palmette.runtime.later import Later
from palmette.runtime.models.compiled import CompiledDecoder, CoreModel
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow

Mask = NDArray[np.uint32]


class CompiledRunner:
    """One compiled model, its pool and its page table. Used by one thread at a time."""

    is_asynchronous = False  # results are there when a call returns

    def __init__(
        self,
        decoder: CompiledDecoder,
        *,
        num_slots: int,
        max_running_rows: int,
        context_len: int,
        num_threads: int | None = None,
    ) -> None:
        """Allocate the pool and the page table, and start the threads.

        Args:
            context_len: page-table entries of a row.
            num_threads: torch's number when None.
        """
        self.config = decoder.config
        self.kv_pool = KVPool(kv_specs(self.config, decoder.dtype), num_slots)
        self.page_table = torch.zeros((max_running_rows, context_len), dtype=torch.int32)  # row, index -> slot
        pools = [self.kv_pool.layer(i) for i in range(self.config.num_layers)]
        self._model = CoreModel(decoder, [(pool.keys.data_ptr(), pool.values.data_ptr()) for pool in pools])
        self._core = library()
        handle = self._core.new(self._model.struct, num_threads or torch.get_num_threads(), decoder.instruction_set)
        if handle is None:
            raise EngineDied("the compiled core could not start its threads")
        self._handle = handle
        self.ops = CompiledOps(self._core, handle)
        self._drawn = Drawn()
        self._logits = np.empty((0, self.config.vocab_size), np.float32)  # used again: fresh pages cost milliseconds
        weakref.finalize(self, self._core.free, handle)

    def keep_drawn(self, rows: Sequence[int], tokens: Later[list[int]]) -> None:
        """tokens[i] was drawn for page-table row rows[i]: what DRAWN stands for in the next forward pass."""
        self._drawn.keep(rows, tokens)

    def forward(self, batch: ScheduledBatch, masks: Sequence[Mask | None] | None = None) -> Tensor:
        """Compute a step.

        Args:
            batch: may have DRAWN for a token, see keep_drawn.
            masks: for each wanted logit row the packed bits of the ids that matter, all of one length; None = all of
                them. What a mask leaves out may come back as minus infinity instead of its logit.

        Returns:
            (batch.num_logits, vocab_size) float32 logits of the wanted tokens, in row order, then token order; valid
            until the next call.
        """
        hidden = self._hidden(self._drawn.resolve(batch))
        if len(hidden) > len(self._logits):
            self._logits = np.empty((len(hidden), self.config.vocab_size), np.float32)
        logits = self._logits[: len(hidden)]
        if len(hidden):
            packed, words = None, 0
            if masks is not None and any(mask is not None for mask in masks):
                packed, words = core.pointers(masks), min(len(mask) for mask in masks if mask is not None)
            code = self._core.head(self._handle, hidden.ctypes.data, len(hidden), packed, words, logits.ctypes.data)
            _check(code)
        return torch.from_numpy(logits)

    def embed(self, token_ids: tuple[int, ...], slots: tuple[int, ...], row: int) -> Tensor:
        """The last token's hidden state, scaled to length 1; see ModelRunner.embed."""
        last = len(token_ids) - 1
        hidden = self._hidden(ScheduledBatch((ScheduledRow(row, token_ids, 0, slots, logits_from=last),)))
        return F.normalize(torch.from_numpy(hidden[0]), dim=0)

    def _hidden(self, batch: ScheduledBatch) -> NDArray[np.float32]:
        """(batch.num_logits, hidden_size), behind the final norm."""
        table: NDArray[np.int32] = self.page_table.numpy()
        write_page_table(batch, table)
        rows = (core.Row * len(batch.rows))()
        ids: list[int] = []
        slots: list[int] = []
        wanted: list[int] = []
        positions: list[NDArray[np.int64]] = []
        alive: list[object] = []
        for into, row in zip(rows, batch.rows, strict=True):
            place_of, tree = place(row)
            positions.append(place_of)
            into.first_token, into.num_tokens, into.start = len(ids), len(row.token_ids), row.start
            into.prefix_len = -1
            into.table = table.ctypes.data + row.row * table.strides[0]
            if tree is not None:
                visible = np.ascontiguousarray(tree.visible).view(np.uint8)
                nodes = tree.positions.astype(np.int32)
                alive += (visible, nodes)
                into.prefix_len, into.num_nodes = tree.prefix_len, len(nodes)
                into.visible, into.node_positions = visible.ctypes.data, nodes.ctypes.data
            if row.logits_from is not None:
                wanted.extend(range(len(ids) + row.logits_from, len(ids) + len(row.token_ids)))
            ids.extend(row.token_ids)
            slots.extend(row.slots)
        hidden = np.empty((len(wanted), self.config.hidden_size), np.float32)
        arrays = [np.array(values, np.int32) for values in (ids, np.concatenate(positions), slots, wanted)]
        step = core.Step(
            len(ids), len(rows), len(wanted), 0, *(a.ctypes.data for a in arrays), rows, hidden.ctypes.data
        )
        _check(self._core.forward(self._handle, ctypes.byref(step)))
        del alive
        return hidden


def _check(code: int) -> None:
    """
    Raises:
        MemoryError: the step's scratch memory could not be had.
    """
    if code:
        raise MemoryError("the compiled core found no memory for this step: use a smaller chunk_size or max_running")
