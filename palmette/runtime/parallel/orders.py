"""What rank 0 tells the others, and what they answer: plain data through pipes, msgpack in frames of known length.

    rank 0 --Start, Load, Build, then steps--> rank r      through its stdin, whose end is the end of the rank
           <----------- Report --------------              through its stdout

No pickle: an order can do nothing but what is listed here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import IO, TypeAlias, TypeVar

import msgspec

from palmette.runtime.config import KVDType, ModelOptions
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.scheduled import ScheduledBatch

T = TypeVar("T")
_HEADER = 4  # bytes of a frame's length, little endian


class RandomModel(msgspec.Struct, frozen=True, tag=True):
    """A model of random weights; see models.tiny.RandomSource. Every rank makes the same."""

    config: ModelConfig
    seed: int = 0
    dtype: str = "float32"
    gpu_kernels: str = "auto"


class StoredModel(msgspec.Struct, frozen=True, tag=True):
    """A model that every rank reads from the same files."""

    options: ModelOptions


AnyModel: TypeAlias = RandomModel | StoredModel


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first order: who the rank is, and where it meets the others."""

    rank: int
    size: int
    device: str  # "cpu" or "cuda"
    meeting: str  # path of a file that all ranks name
    timeout: float  # seconds
    num_threads: int  # of torch


class Load(msgspec.Struct, frozen=True, tag=True):
    """Read this rank's part of a model, in place of what was loaded before."""

    model: AnyModel


class Build(msgspec.Struct, frozen=True, tag=True):
    """Make a runner for what was loaded; see rank_runner.make_rank_runner."""

    num_slots: int
    max_running_rows: int
    context_len: int | None
    kv_dtype: KVDType


class Forward(msgspec.Struct, frozen=True, tag=True):
    batch: ScheduledBatch


class Embed(msgspec.Struct, frozen=True, tag=True):
    token_ids: tuple[int, ...]
    slots: tuple[int, ...]
    row: int


class KeepDrawn(msgspec.Struct, frozen=True, tag=True):
    """The tokens drawn last for these rows come by the group's broadcast."""

    rows: tuple[int, ...]


Order: TypeAlias = Start | Load | Build | Forward | Embed | KeepDrawn


class Report(msgspec.Struct, frozen=True):
    """An order that is answered was carried out; or why the rank ends."""

    failed: str | None = None
    lost_others: bool = False  # it failed only because another rank did not answer: that one knows why


class Frames:
    """Reads messages from a pipe."""

    def __init__(self, source: IO[bytes]) -> None:
        """
        Args:
            source: blocking and buffered.
        """
        self._source = source

    def read(self, decoder: msgspec.msgpack.Decoder[T]) -> T | None:
        """The next message; None at the end of the pipe, also where it cuts a message."""
        header = self._source.read(_HEADER)
        data = self._source.read(int.from_bytes(header, "little"))
        if len(header) < _HEADER or len(data) < int.from_bytes(header, "little"):
            return None
        return decoder.decode(data)


def frame(message: object) -> bytes:
    """A message as it goes through a pipe."""
    data = msgspec.msgpack.encode(message, enc_hook=_as_list)
    return len(data).to_bytes(_HEADER, "little") + data


def write_all(fd: int, data: bytes, wait: Callable[[], None]) -> None:
    """Write to a pipe that does not block.

    Args:
        wait: called where the pipe is full; waits for room, or raises.

    Raises:
        BrokenPipeError: nobody reads any more.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            wait()


def _as_list(value: object) -> list[int]:
    """Slots come in whatever sequence the radix tree keeps them."""
    if isinstance(value, Sequence):
        return list(value)
    raise NotImplementedError(f"{type(value).__name__} is no part of an order")
