"""The engine's side of a split model: rank 0's runner, and the orders that make the other ranks take the same steps.

    forward(batch) -- the batch, as ints --> every rank runs it; their sums meet inside
                      rank 0's logits    --> the engine

Knows runners and the team. Does not know what a step computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palmette.errors import EngineDied
from palmette.runtime.config import KVDType
from palmette.runtime.kv_pool import KVPool
from palmette.runtime.later import Later
from palmette.runtime.logit_ops import LogitOps
from palmette.runtime.parallel.model import ParallelModel
from palmette.runtime.parallel.orders import Build, Embed, Forward, KeepDrawn, Order
from palmette.runtime.parallel.rank_runner import make_rank_runner
from palmette.runtime.parallel.team import Team
from palmette.runtime.scheduled import ScheduledBatch

T = TypeVar("T")


class ParallelRunner:
    """`runtime.engine.Runner` over all ranks. Used by one thread at a time.

    Where a step fails on any rank, the ranks no longer agree on what was computed: all of them end, and this and every
    later call raises EngineDied.
    """

    def __init__(
        self,
        model: ParallelModel,
        *,
        num_slots: int,
        max_running_rows: int,
        context_len: int | None = None,
        kv_dtype: KVDType = "auto",
    ) -> None:
        """Allocate every rank's pool and page table, in place of those of an earlier runner of the team.

        Raises:
            InvalidOption: as make_rank_runner.
            EngineDied: a rank failed.
        """
        # First here: what is wrong with a size is then the user's to mend, and no rank has failed.
        self._runner = make_rank_runner(
            model.decoder,
            num_slots=num_slots,
            max_running_rows=max_running_rows,
            context_len=context_len,
            kv_dtype=kv_dtype,
        )
        self._team = model.team
        self._device = model.decoder.device
        self._team.tell(Build(num_slots, max_running_rows, context_len, kv_dtype))
        self._team.wait()

    @property
    def team(self) -> Team:
        return self._team

    @property
    def kv_pool(self) -> KVPool:
        """Rank 0's; the others have committed theirs."""
        return self._runner.kv_pool

    @property
    def ops(self) -> LogitOps:
        return self._runner.ops

    @property
    def is_asynchronous(self) -> bool:
        return self._runner.is_asynchronous

    def forward(self, batch: ScheduledBatch, masks: Sequence[NDArray[np.uint32] | None] | None = None) -> Tensor:
        """As ModelRunner.forward.

        Raises:
            EngineDied: a rank failed.
        """
        return self._together(Forward(batch), lambda: self._runner.forward(batch, masks))

    def embed(self, token_ids: tuple[int, ...], slots: tuple[int, ...], row: int) -> Tensor:
        """As ModelRunner.embed.

        Raises:
            EngineDied: a rank failed.
        """
        return self._together(Embed(token_ids, slots, row), lambda: self._runner.embed(token_ids, slots, row))

    def keep_drawn(self, rows: Sequence[int], tokens: Later[list[int]]) -> None:
        """Every rank remembers the token drawn last for each of these rows.

        Args:
            tokens: with an attribute `tokens`, an int32 tensor on the device, nothing waits.

        Raises:
            EngineDied: a rank failed.
        """
        if not rows:
            return

        def keep() -> None:
            drawn: Tensor | None = getattr(tokens, "tokens", None)
            if drawn is None:
                drawn = torch.tensor(tokens.get(), dtype=torch.int32, device=self._device)
            with torch.inference_mode():  # which may have made `drawn`
                self._team.group.broadcast(drawn)
            self._runner.keep_drawn(rows, tokens)

        self._together(KeepDrawn(tuple(rows)), keep)

    def check(self) -> None:
        """
        Raises:
            EngineDied: a rank failed; what was queued since the last check may be wrong.
        """
        self._team.check()

    def close(self) -> None:
        """End the other ranks. May be called twice."""
        self._team.close()

    def _together(self, order: Order, mine: Callable[[], T]) -> T:
        self._team.tell(order)
        try:
            return mine()
        except EngineDied:
            raise
        except Exception as error:
            raise self._team.end(error) from error
        except BaseException:
            self._team.close()
            raise
