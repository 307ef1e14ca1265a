"""The ranks of one model, as a rank sees them: sums over all, and what rank 0 says.

A sum is added in the order of ranks, ((x0 + x1) + x2) + ..., in float32, so that everybody has the same bits and they
do not depend on who was first: over gloo, where parts are gathered and then added, and within one process (`InOne`),
the oracle of the other. On GPUs NCCL adds while it passes parts on, in an order of its own, which is the same from run
to run on one machine and the same on all ranks.

Knows tensors and ranks. Does not know processes (`team`) nor models.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, distributed

MEETING_SECONDS = 120.0  # for ranks that have started to find each other
_dist: Any = distributed  # its types name neither the stores nor what a backend does
_options: Any = distributed.distributed_c10d


class LostRanks(RuntimeError):
    """A call that other ranks did not take part in: one of them failed, hangs or left. Caught where ranks end."""


class Group(Protocol):
    """What a rank asks of the others. All ranks call the same methods in the same order, with tensors of one shape.

    A call raises LostRanks where others do not come; on a GPU whoever waits for its result does, if at all.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every rank's x, of its shape and dtype; x may be overwritten. On a GPU only queued."""
        ...

    def gather(self, x: Tensor) -> list[Tensor]:
        """Every rank's x, by rank."""
        ...

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's x, on every rank; theirs says only shape and dtype and may be overwritten."""
        ...

    def close(self) -> None:
        """Leave: a later call raises, and on a GPU a queued one ends. May be called twice and from another thread."""
        ...


class Gloo:
    """Processes of one machine that compute on its CPUs."""

    def __init__(
        self, meeting: Path, rank: int, size: int, *, timeout: float, meeting_timeout: float = MEETING_SECONDS
    ) -> None:
        """Wait until all have come.

        Args:
            meeting: a file that does not exist yet, the same for all.
            timeout: seconds that anyone is waited for in a call.
            meeting_timeout: the same now.
        """
        self.rank, self.size = rank, size
        seconds = datetime.timedelta(seconds=meeting_timeout)
        options = _dist.ProcessGroupGloo._Options()  # the public name cannot be called
        options._timeout = seconds
        # Else the machine's name decides, which may lead outside or nowhere.
        options._devices = [_dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        store = _dist.FileStore(str(meeting), size)
        store.set_timeout(seconds)
        self._ranks: Any = _dist.ProcessGroupGloo(store, rank, size, options)
        self._gather, self._broadcast = _options.AllgatherOptions(), _options.BroadcastOptions()  # whose root is 0
        self._gather.timeout = self._broadcast.timeout = datetime.timedelta(seconds=timeout)

    def all_reduce(self, x: Tensor) -> Tensor:
        return _sum(self.gather(x))

    def gather(self, x: Tensor) -> list[Tensor]:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        with _with_others():
            _joined(self._ranks).allgather([parts], [x], self._gather).wait()
        return parts

    def broadcast(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        with _with_others():
            _joined(self._ranks).broadcast([x], self._broadcast).wait()
        return x

    def close(self) -> None:
        self._ranks = None


class Nccl:
    """GPUs of one machine, one a process. A call is queued on the current stream, and may be part of a CUDA graph if
    all ranks capture it and replay it in the same order."""

    def __init__(self, meeting: Path, rank: int, size: int, *, device: torch.device, timeout: float) -> None:
        """As Gloo; sums once, so that what fails fails here and no graph is captured around the connecting."""
        self.rank, self.size = rank, size
        options = _dist.ProcessGroupNCCL.Options()
        options._timeout = datetime.timedelta(seconds=timeout)
        store = _dist.FileStore(str(meeting), size)
        store.set_timeout(datetime.timedelta(seconds=MEETING_SECONDS))
        torch.cuda.set_device(device)
        self._ranks: Any = _dist.ProcessGroupNCCL(store, rank, size, options)
        self._sum, self._gather = _options.AllreduceOptions(), _options.AllgatherOptions()
        self._broadcast = _options.BroadcastOptions()  # whose root is 0
        self.all_reduce(torch.zeros(1, device=device))
        torch.cuda.synchronize(device)

    def all_reduce(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        with _with_others():
            _joined(self._ranks).allreduce([x], self._sum).wait()  # the stream waits, the host does not
        return x

    def gather(self, x: Tensor) -> list[Tensor]:
        x = x.contiguous()
        parts = list(torch.empty((self.size, *x.shape), dtype=x.dtype, device=x.device).unbind(0))
        with _with_others():
            _joined(self._ranks).allgather([parts], [x], self._gather).wait()
        return parts

    def broadcast(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        with _with_others():
            _joined(self._ranks).broadcast([x], self._broadcast).wait()
        return x

    def close(self) -> None:
        ranks, self._ranks = self._ranks, None
        if ranks is not None:
            ranks.abort()  # a kernel that waits for a rank that died would wait for ever


class InOne:
    """All ranks in one process, each on a thread of its own."""

    def __init__(self, size: int, *, timeout: float = 120.0) -> None:
        self._parts: list[Tensor] = [torch.empty(0)] * size
        self._all_here = threading.Barrier(size, timeout=timeout)
        self.members = tuple(InOneMember(self, rank, size) for rank in range(size))

    def exchange(self, rank: int, x: Tensor) -> list[Tensor]:
        """Every rank's x. Nobody leaves before all have read, so that a part may be overwritten afterwards.

        Raises:
            LostRanks: another rank failed or left.
        """
        self._parts[rank] = x
        with _with_others():
            self._all_here.wait()
            parts = [part.clone() for part in self._parts]
            self._all_here.wait()
        return parts

    def close(self) -> None:
        self._all_here.abort()


class InOneMember:
    """One rank of InOne."""

    def __init__(self, ranks: InOne, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._ranks = ranks

    def all_reduce(self, x: Tensor) -> Tensor:
        return _sum(self.gather(x))

    def gather(self, x: Tensor) -> list[Tensor]:
        return self._ranks.exchange(self.rank, x)

    def broadcast(self, x: Tensor) -> Tensor:
        return self._ranks.exchange(self.rank, x)[0]

    def close(self) -> None:
        self._ranks.close()


@contextmanager
def _with_others() -> Iterator[None]:
    try:
        yield
    except threading.BrokenBarrierError as error:
        raise LostRanks("another rank left") from error
    except RuntimeError as error:
        raise LostRanks(str(error).split(". ")[0]) from error  # what follows is advice to somebody else


def _joined(ranks: Any) -> Any:
    """
    Raises:
        RuntimeError: the group was left.
    """
    if ranks is None:
        raise RuntimeError("the group was left")
    return ranks


def _sum(parts: list[Tensor]) -> Tensor:
    """In the order of ranks; into the first."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total
