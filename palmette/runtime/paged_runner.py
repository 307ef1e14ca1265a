"""Runs a model on a device whose kernels walk a page table: the same promises as ModelRunner, without waiting.

    host                                    device, one stream, in order
    plan the step                           copy of the step's integers
    queue everything  ------------------>   page table's new entries
                                            the model: kernels one by one, or a captured graph of them
    go on                                   logits

A step whose rows have few new tokens each takes shapes of a bucket (`paged_batch.Bucket`). The first step of a bucket
runs kernel by kernel, the second captures a CUDA graph (launching costs the host a few microseconds a kernel, a graph
the same once), later ones replay it.

Knows tensors. Does not know requests: a row of the page table and a slot mean whatever the scheduler says they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from palmette.errors import InvalidOption
from palmette.runtime.batch import write_page_table
from palmette.runtime.kv_pool import KVPool, kv_specs
from palmette.runtime.later import Later
from palmette.runtime.logit_ops import LogitOps, TorchOps
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.paged_batch import (
    Bucket,
    HostBatch,
    PagedShape,
    SentStep,
    StepInputs,
    plan_step,
    table_updates,
)
from palmette.runtime.paged_plan import DEFAULT_PAGED_LIMITS, PagedLimits
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow
from palmette.runtime.staging import Staging

MAX_GRAPH_TOKENS = 256  # tokens of a step that is captured; longer ones keep the device busy while they are launched
MAX_GRAPH_PARTIALS = 1 << 14  # what a captured step may hold of partial results: 0.27 GB at 32 heads of 128
MAX_GRAPHS = 64  # captured at most; the one that was not used for longest goes


@dataclass(slots=True)
class _Captured:
    """One bucket's places, and its graph once there is one."""

    inputs: StepInputs
    graph: torch.cuda.CUDAGraph | None = None


class PagedRunner:
    """One model, its pool of `num_slots` slots from 0 on, and its page table. Used by one thread, on its stream."""

    is_asynchronous = True

    def __init__(
        self,
        model: Decoder,
        *,
        num_slots: int,
        max_running_rows: int,
        context_len: int | None = None,
        kv_dtype: torch.dtype | None = None,
        graphs: bool | None = None,
        limits: PagedLimits = DEFAULT_PAGED_LIMITS,
    ) -> None:
        """Allocate the pool and the page table.

        Args:
            context_len: page-table entries of a row; the model's own when None.
            kv_dtype: of the pool; torch.int8 and torch.float8_e4m3fn keep a scale for each token and head. The model's
                dtype when None.
            graphs: give steps of few tokens the shapes of buckets, and capture them where the device is CUDA; None:
                only there.

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
        self.model, self.config = model, config
        device = model.device
        self.kv_pool = KVPool(kv_specs(config, kv_dtype or model.dtype), num_slots, device)
        self.ops: LogitOps = TorchOps()
        if model.kernels.walks_pages:
            from palmette.runtime.device_ops import DeviceOps  # imports triton, as the model's kernels did

            self.ops = DeviceOps(device)
        self._table: NDArray[np.int32] = np.zeros((max_running_rows, context_len), np.int32)  # row, index -> slot
        self._page_table = torch.zeros((max_running_rows, context_len), dtype=torch.int32, device=device)
        self._drawn = torch.zeros(max_running_rows, dtype=torch.int32, device=device)
        self._shape = PagedShape(
            config.num_heads, config.num_kv_heads, config.windows, self.kv_pool.pad_slot, limits=limits
        )
        self._uses_graphs = device.type == "cuda" if graphs is None else graphs
        self._updates = Staging(device, turns=8)  # with embeddings several in a step
        self._drawn_now = Staging(device, 64, turns=8)
        self._inputs = StepInputs(self._page_table, self._shape)
        self._captured: dict[Bucket, _Captured] = {}
        self._graph_logits: Tensor | None = None  # what every graph writes: a buffer each would be gigabytes
        self._graph_pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    @torch.inference_mode()
    def forward(self, batch: ScheduledBatch, masks: Sequence[NDArray[np.uint32] | None] | None = None) -> Tensor:
        """Queue a step.

        Args:
            masks: which logits matter; all are computed anyway.

        Returns:
            (batch.num_logits, vocab_size) float32 logits of the wanted tokens, in row order, then token order; on the
            device, maybe still being computed, and valid until the next call.
        """
        host = self._plan(batch)
        bucket = (
            host.bucket(max_tokens=MAX_GRAPH_TOKENS, max_partials=MAX_GRAPH_PARTIALS) if self._uses_graphs else None
        )
        if bucket is None:
            return self._compute(self._inputs.send(host))
        return self._replay(bucket, host)[: len(host.logit_tokens)]

    @torch.inference_mode()
    def embed(self, token_ids: tuple[int, ...], slots: tuple[int, ...], row: int) -> Tensor:
        """The last token's hidden state, scaled to length 1.

        Args:
            token_ids: at least one, computed from nothing.
            slots: one for each token, the caller's until the result is asked for.
            row: a free row of the page table.

        Returns:
            (hidden_size,) float32.
        """
        host = self._plan(ScheduledBatch((ScheduledRow(row, token_ids, 0, slots),)))
        hidden = self.model.forward(self._inputs.send(host).as_batch(self._drawn), self.kv_pool)
        return F.normalize(hidden[-1].float(), dim=0)

    @torch.inference_mode()
    def keep_drawn(self, rows: Sequence[int], tokens: Later[list[int]]) -> None:
        """Remember the token drawn last for each of these rows; a later batch names it DRAWN.

        Args:
            tokens: with an attribute `tokens`, an int32 tensor on the device, nothing waits.
        """
        if not rows:
            return
        staging = self._drawn_now
        known: Tensor | None = getattr(tokens, "tokens", None)
        staging.begin()
        staging.fit(2 * len(rows), 2)
        where = staging.put(np.array(rows, np.int32))
        if known is None:
            known = staging.put(np.array(tokens.get(), np.int32))
        staging.send()
        self._drawn.index_copy_(0, where.long(), known)

    # -- private -----------------------------------------------------------------------------------------------

    def _plan(self, batch: ScheduledBatch) -> HostBatch:
        write_page_table(batch, self._table)
        updates = table_updates(batch)
        self._updates.begin()
        self._updates.fit(updates.size + 1, 2)
        new, count = self._updates.put(updates), self._updates.put(np.array([len(updates)], np.int32))
        self._updates.send()
        self.model.kernels.update_page_table(self._page_table, new, count)
        return plan_step(batch, self._table, self._shape)

    def _compute(self, sent: SentStep) -> Tensor:
        packed = sent.as_batch(self._drawn)
        hidden = self.model.forward(packed, self.kv_pool)
        return self.model.logits(hidden.index_select(0, packed.logit_tokens))

    def _replay(self, bucket: Bucket, host: HostBatch) -> Tensor:
        """(bucket.num_tokens, vocab_size): the wanted logits, then those of padding."""
        captured = self._captured.pop(bucket, None)
        if captured is None:
            while len(self._captured) >= MAX_GRAPHS:
                self._captured.pop(next(iter(self._captured)))
            self._captured[bucket] = captured = _Captured(StepInputs(self._page_table, self._shape, bucket))
            return self._compute(captured.inputs.send(host))  # also compiles what the capture will launch
        self._captured[bucket] = captured  # at the end: used last
        sent = captured.inputs.send(host)
        if self._graph_pool is None:
            return self._compute(sent)
        if self._graph_logits is None:
            shape = (MAX_GRAPH_TOKENS, self.config.vocab_size)
            self._graph_logits = torch.empty(shape, dtype=torch.float32, device=self.model.device)
        logits = self._graph_logits[: bucket.num_tokens]
        if captured.graph is None:
            captured.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured.graph, pool=self._graph_pool, capture_error_mode="thread_local"):
                logits.copy_(self._compute(sent))
        captured.graph.replay()
        return logits
