"""A split model within one process: the same parts, the same runners, the same sums, on a thread for each rank.

The oracle of the processes, which must compute its bits, and the way to try a split without starting anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palmette.runtime.kv_pool import KVPool
from palmette.runtime.later import Later, Now
from palmette.runtime.logit_ops import LogitOps
from palmette.runtime.parallel.group import InOne, LostRanks
from palmette.runtime.parallel.open_shard import open_shard, open_whole
from palmette.runtime.parallel.orders import AnyModel
from palmette.runtime.parallel.rank_runner import make_rank_runner
from palmette.runtime.runner import Runner
from palmette.runtime.scheduled import ScheduledBatch

T = TypeVar("T")


class InOneRunner:
    """`runtime.engine.Runner` over all ranks. Used by one thread at a time."""

    is_asynchronous = False

    def __init__(
        self, model: AnyModel, size: int, *, num_slots: int, max_running_rows: int, context_len: int | None = None
    ) -> None:
        """Load all parts.

        Raises:
            InvalidOption: the model cannot be cut so; a size that does not go with the model.
            ModelNotFound, CorruptModel, UnsupportedArchitecture, UnsupportedFeature: the model.
        """
        whole = open_whole(model)
        self._group = InOne(size)
        self._runners = [
            make_rank_runner(
                open_shard(whole, member, torch.device("cpu")),
                num_slots=num_slots,
                max_running_rows=max_running_rows,
                context_len=context_len,
            )
            for member in self._group.members
        ]
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="palmette-in-one")

    @property
    def kv_pool(self) -> KVPool:
        return self._runners[0].kv_pool

    @property
    def ops(self) -> LogitOps:
        return self._runners[0].ops

    def forward(self, batch: ScheduledBatch, masks: Sequence[NDArray[np.uint32] | None] | None = None) -> Tensor:
        """As ModelRunner.forward."""
        return self._together(lambda rank, runner: runner.forward(batch, None if rank else masks))

    def embed(self, token_ids: tuple[int, ...], slots: tuple[int, ...], row: int) -> Tensor:
        """As ModelRunner.embed."""
        return self._together(lambda _, runner: runner.embed(token_ids, slots, row))

    def keep_drawn(self, rows: Sequence[int], tokens: Later[list[int]]) -> None:
        """Remember the token drawn last for each of these rows."""
        known = Now(tokens.get())
        for runner in self._runners:
            runner.keep_drawn(rows, known)

    def close(self) -> None:
        """End the threads."""
        self._group.close()
        self._threads.shutdown()

    def _together(self, step: Callable[[int, Runner], T]) -> T:
        """Rank 0's result. The first error that is not another's consequence is raised, and no further step runs."""

        def run(rank: int, runner: Runner) -> T:
            try:
                return step(rank, runner)
            except BaseException:
                self._group.close()  # nobody waits for this rank
                raise

        futures = [self._threads.submit(run, rank, runner) for rank, runner in enumerate(self._runners)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        errors.sort(key=lambda error: isinstance(error, LostRanks))
        if errors:
            raise errors[0]
        return futures[0].result()
