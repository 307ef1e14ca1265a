"""A rank above 0 as a process: orders in from stdin, the same steps as rank 0 on its own part of the model.

Its stdin's end is its own: a thread watches for it, as this rank may be waiting for the others in a collective call
just then. Run as `python -m palmette.runtime.parallel.rank` by `team`.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import torch
from torch import Tensor

from palmette.runtime.models.decoder import Decoder
from palmette.runtime.parallel.group import Group, LostRanks
from palmette.runtime.parallel.open_shard import open_shard, open_whole, rank_device
from palmette.runtime.parallel.orders import Build, Embed, Forward, Frames, KeepDrawn, Load, Order, Report, Start, frame
from palmette.runtime.parallel.rank_runner import make_rank_runner
from palmette.runtime.parallel.team import describe, join
from palmette.runtime.runner import Runner

logger = logging.getLogger(__name__)

GRACE_SECONDS = 1.0  # that a rank has between its stdin's end and its own
LEFT = 70  # exit code: rank 0 is gone
FAILED = 1


@dataclass(frozen=True, slots=True)
class Received:
    """Tokens that rank 0 drew, as `Later`."""

    tokens: Tensor  # (rows,) int32, on the device

    def get(self) -> list[int]:
        values: list[int] = self.tokens.tolist()
        return values


def serve_rank(orders: Iterator[Order], group: Group, device: torch.device, answer: BinaryIO) -> None:
    """Carry out orders until there are no more. Load and Build are answered; a step is not."""
    decoder: Decoder | None = None
    runner: Runner | None = None
    for order in orders:
        match order:
            case Load(model):
                decoder = runner = None  # what was loaded is freed before
                decoder = open_shard(open_whole(model), group, device)
                _tell(answer, Report())
            case Build():
                runner = None
                if decoder is None:
                    raise RuntimeError("an order to build a runner came before any model")
                runner = make_rank_runner(
                    decoder,
                    num_slots=order.num_slots,
                    max_running_rows=order.max_running_rows,
                    context_len=order.context_len,
                    kv_dtype=order.kv_dtype,
                )
                runner.kv_pool.commit()
                _tell(answer, Report())
            case Start():
                raise RuntimeError("a second order to start")
            case step:
                if runner is None:
                    raise RuntimeError("a step came before any runner was built")
                _step(step, runner, group, device)


def _step(order: Forward | Embed | KeepDrawn, runner: Runner, group: Group, device: torch.device) -> None:
    match order:
        case Forward(batch):
            runner.forward(batch)
        case Embed():
            runner.embed(order.token_ids, order.slots, order.row)
        case KeepDrawn(rows):
            tokens = torch.empty(len(rows), dtype=torch.int32, device=device)
            runner.keep_drawn(rows, Received(group.broadcast(tokens)))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s rank: %(message)s", stream=sys.stderr)
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not reach the pipe
    orders = _orders(Frames(sys.stdin.buffer))
    start = next(orders, None)
    if not isinstance(start, Start):
        os._exit(LEFT)
    folder = Path(start.meeting).parent
    threading.Thread(target=watch_stdin, args=(folder,), name="palmette-lease", daemon=True).start()
    try:
        torch.set_num_threads(start.num_threads)
        _tell(answer, Report())  # it runs: the others may wait for it
        group = join(start)
        _tell(answer, Report())
        serve_rank(orders, group, rank_device(start.device, start.rank), answer)
    except Exception as error:
        logger.exception("rank %d of %d failed", start.rank, start.size)
        _tell(answer, Report(describe(error), lost_others=isinstance(error, LostRanks)))
        os._exit(FAILED)
    shutil.rmtree(folder, ignore_errors=True)  # rank 0 may have been killed
    os._exit(0)  # not by way of destructors, which would wait for ranks that are gone


def _orders(frames: Frames) -> Iterator[Order]:
    decoder: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
    while (order := frames.read(decoder)) is not None:
        yield order


def _tell(answer: BinaryIO, report: Report) -> None:
    try:
        answer.write(frame(report))
        answer.flush()
    except BrokenPipeError:  # rank 0 is gone
        os._exit(LEFT)


def watch_stdin(folder: Path) -> None:
    """Leave when stdin's writer is gone, without reading: its bytes are the main thread's.

    Args:
        folder: where the ranks met; removed, as rank 0 may not have lived to do it.
    """
    poll = select.poll()
    poll.register(0, 0)  # a hang-up is always told
    poll.poll()
    time.sleep(GRACE_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(LEFT)


if __name__ == "__main__":
    main()
