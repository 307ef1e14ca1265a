"""The processes of a split model: this one, rank 0, and a child for every other rank.

    Team --orders--> children        all get the same orders, in the same order, and so compute the same steps
         <-reports-                  read by a thread for each child, which sees at once when one ends

One for all: a rank that fails or dies ends the team. Its children are killed, whoever waits in a collective call gets
an error (their connections break; NCCL's are aborted), and whatever is asked of the team later raises. A child leaves
when its stdin ends, so none outlives this process, however that goes.

Knows processes and pipes. Does not know what a step is.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import msgspec
import torch

from palmette.errors import EngineDied, InvalidOption
from palmette.runtime.parallel.group import Gloo, Group, LostRanks, Nccl
from palmette.runtime.parallel.orders import Frames, Order, Report, Start, frame, write_all

RANK_MODULE = "palmette.runtime.parallel.rank"
LEAVE_SECONDS = 3.0  # a child has this long to leave by itself
CAUSE_SECONDS = 1.0  # after a rank lost the others: how long the cause may take to become known


@dataclass(slots=True)
class _Children:
    """What the reading threads share with the team, so that they do not keep the team itself alive."""

    size: int
    folder: Path  # where the ranks meet
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)  # of ranks 1, 2, ...
    threads: list[threading.Thread] = field(default_factory=list)
    answers: SimpleQueue[int] = field(default_factory=SimpleQueue)  # ranks; 0 = one of them ended
    gate: threading.Lock = field(default_factory=threading.Lock)
    has_failed: threading.Event = field(default_factory=threading.Event)
    failure: str = ""
    is_closing: bool = False
    group: Group | None = None

    def fail(self, reason: str) -> None:
        """The first reason counts."""
        with self.gate:
            is_first = not self.is_closing and not self.has_failed.is_set()
            if is_first:
                self.failure = reason
                self.has_failed.set()
        if is_first:
            for process in self.processes:
                process.kill()
            if self.group is not None:
                self.group.close()
        self.answers.put(0)

    def listen(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        """Until the child ends."""
        assert process.stdout is not None, "it was opened as a pipe"
        frames, decoder = Frames(process.stdout), msgspec.msgpack.Decoder(Report)
        reason: str | None = None
        try:
            while reason is None and (report := frames.read(decoder)) is not None:
                reason = report.failed
                if reason is None:
                    self.answers.put(rank)
                elif report.lost_others:
                    self.has_failed.wait(CAUSE_SECONDS)
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            reason = f"its report could not be read: {error}"
        if reason is None:
            reason = f"it ended: {_how(process.wait())}"
        self.fail(f"rank {rank} of {self.size} failed: {reason}")

    def end(self) -> None:
        """Have all leave, and wait for it."""
        with self.gate:
            self.is_closing = True
        for process in self.processes:
            assert process.stdin is not None, "it was opened as a pipe"
            with contextlib.suppress(OSError):
                process.stdin.close()
        if self.group is not None:
            self.group.close()
        last = time.monotonic() + LEAVE_SECONDS
        for process in self.processes:
            try:
                process.wait(max(0.0, last - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for thread in self.threads:
            if thread is not threading.current_thread():
                thread.join()
        for process in self.processes:
            assert process.stdout is not None, "it was opened as a pipe"
            process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Team:
    """`size` ranks. Used by one thread at a time, `close` excepted."""

    def __init__(self, size: int, *, device: str = "cpu", timeout: float = 120.0) -> None:
        """Start the children and wait until all ranks have met.

        Args:
            device: "cpu", or "cuda" for one GPU a rank, from the first on.
            timeout: seconds that a rank may keep another waiting in a step before the team gives up. Loading takes as
                long as it takes.

        Raises:
            InvalidOption: fewer than two ranks.
            EngineDied: a child did not start.
        """
        if size < 2:
            raise InvalidOption("tensor_parallel", size, "at least 2 for a team")
        self.size, self.device, self.timeout = size, device, timeout
        self._children = _Children(size, Path(tempfile.mkdtemp(prefix="palmette-ranks-")))
        self._end = weakref.finalize(self, self._children.end)  # at the interpreter's exit at the latest
        try:
            for rank in range(1, size):
                self._spawn(rank)
            self.wait()
            self.group: Group = join(self._start(0))
            self._children.group = self.group
            self.wait()
        except EngineDied:
            self.close()
            raise
        except Exception as error:
            raise self.end(error) from error
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the children."""
        return tuple(process.pid for process in self._children.processes)

    @property
    def num_alive(self) -> int:
        """Children that run."""
        return sum(process.poll() is None for process in self._children.processes)

    def tell(self, order: Order) -> None:
        """Give all children an order; does not wait for what comes of it.

        Raises:
            EngineDied: a rank failed, or does not take orders any more.
        """
        self.check()
        data = frame(order)
        for rank, process in enumerate(self._children.processes, 1):
            assert process.stdin is not None, "it was opened as a pipe"
            try:
                write_all(process.stdin.fileno(), data, partial(self._wait_for_room, process.stdin.fileno(), rank))
            except (BrokenPipeError, TimeoutError) as error:
                raise self.end(error) from error

    def wait(self) -> None:
        """Until every child has answered the last order that is answered.

        Raises:
            EngineDied: a rank failed.
        """
        for _ in self._children.processes:
            self._children.answers.get()
            self.check()

    def check(self) -> None:
        """
        Raises:
            EngineDied: a rank failed, or the team was closed.
        """
        if self._children.has_failed.is_set():
            raise EngineDied(f"{self._children.failure}; start a new runtime")
        if self._children.is_closing:
            raise EngineDied("the ranks of the model were closed; start a new runtime")

    def end(self, error: BaseException) -> EngineDied:
        """This rank cannot go on: the team ends.

        Args:
            error: what it met, which may be another rank's failure seen from here.

        Returns:
            what to raise.
        """
        if isinstance(error, LostRanks | BrokenPipeError):
            self._children.has_failed.wait(CAUSE_SECONDS)
        self._children.fail(f"rank 0 of {self.size} failed: {describe(error)}")
        reason = self._children.failure
        self.close()
        return EngineDied(f"{reason}; start a new runtime")

    def close(self) -> None:
        """End all children and wait for it. May be called twice."""
        self._end()

    # -- private -----------------------------------------------------------------------------------------------

    def _spawn(self, rank: int) -> None:
        # A session of its own, so that Ctrl-C in a terminal reaches this process alone.
        process = subprocess.Popen(
            [sys.executable, "-m", RANK_MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert process.stdin is not None, "it was opened as a pipe"
        os.set_blocking(process.stdin.fileno(), False)
        children = self._children
        children.processes.append(process)
        thread = threading.Thread(target=children.listen, args=(rank, process), name=f"palmette-rank-{rank}")
        thread.daemon = True
        children.threads.append(thread)
        thread.start()
        with contextlib.suppress(BrokenPipeError):  # the thread learns why
            os.write(process.stdin.fileno(), frame(self._start(rank)))

    def _start(self, rank: int) -> Start:
        meeting = str(self._children.folder / "meeting")
        threads = max(1, torch.get_num_threads() // self.size)
        return Start(rank, self.size, self.device, meeting, self.timeout, threads)

    def _wait_for_room(self, fd: int, rank: int) -> None:
        """
        Raises:
            TimeoutError: there is none in time.
            EngineDied: a rank failed.
        """
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        last = time.monotonic() + self.timeout
        while not poll.poll(100):
            self.check()
            if time.monotonic() > last:
                raise TimeoutError(f"rank {rank} took no order for {self.timeout:g} seconds")


def join(start: Start) -> Group:
    """Meet the other ranks."""
    meeting = Path(start.meeting)
    if start.device == "cuda":
        device = torch.device("cuda", start.rank)
        return Nccl(meeting, start.rank, start.size, device=device, timeout=start.timeout)
    return Gloo(meeting, start.rank, start.size, timeout=start.timeout)


def describe(error: BaseException) -> str:
    """An error of a rank, as others are told of it."""
    if isinstance(error, LostRanks):
        return f"it lost the others: {error}"
    return f"{type(error).__name__}: {error}"


def _how(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
