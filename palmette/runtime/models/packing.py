"""Matrices laid out as the compiled core's tiles: collected first, then written by several threads at once.

Blocks of a file are written by one call that needs no interpreter, so whatever else is to be done (a tokenizer) can be
done meanwhile. Floats are read one matrix at a time, as a whole model of them would not fit beside its tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from palmette.kernels.cpu.library import Format, Library, Packing, Source, tile_bytes
from palmette.runtime.models.weights import StoredBlocks
from palmette.runtime.pages import fresh_pages

_PIECE = 64 << 20  # bytes that are taken from the system at once; those that are not used cost nothing
Read = Callable[[], NDArray[np.float32]]  # a matrix as floats; raises CorruptModel for one that is not finite


class WrongSize(Exception):
    """Tiles that were kept are not as many bytes as the model's."""


@dataclass(slots=True)
class Packer:
    """Adds return the tiles' memory at once; `run` fills all of it.

    Args:
        packed: all tiles in the order of the adds, packed before.
    """

    library: Library
    num_threads: int
    packed: NDArray[np.uint8] | None = None
    pieces: list[NDArray[np.uint8]] = field(default_factory=list)  # what was given out, together all tiles
    _blocks: list[tuple[Packing, StoredBlocks, Read]] = field(default_factory=list)
    _floats: list[tuple[Packing, Read]] = field(default_factory=list)
    _memory: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))  # not given out yet

    def add_blocks(self, blocks: StoredBlocks, shape: tuple[int, int], read: Read) -> tuple[Source, NDArray[np.uint8]]:
        """Blocks of one of PACKED_KINDS, number for number.

        Args:
            read: the same as floats; called where a scale is not finite, to say what is wrong.
        """
        source = Source[blocks.kind]
        data = np.ascontiguousarray(blocks.data)
        order = None if blocks.order is None else np.ascontiguousarray(blocks.order, dtype=np.int64)
        kept = StoredBlocks(blocks.kind, data, order)  # alive until they are packed
        out = self._tiles(source.form, shape)
        at = None if order is None else order.ctypes.data
        self._blocks.append((Packing(source, *shape, 0, data.ctypes.data, at, out.ctypes.data), kept, read))
        return source, out

    def add_floats(self, read: Read, shape: tuple[int, int], *, quantize: bool) -> tuple[Source, NDArray[np.uint8]]:
        """Floats as they are, or in blocks of 8-bit codes."""
        source = Source.ROUNDED if quantize else Source.FLOATS
        out = self._tiles(source.form, shape)
        self._floats.append((Packing(source, *shape, 0, None, None, out.ctypes.data), read))
        return source, out

    def run(self) -> None:
        """
        Raises:
            CorruptModel: from a `read`.
            WrongSize: `packed` is of another model.
        """
        if self.packed is not None:
            if len(self._memory):
                raise WrongSize
            return
        self.library.pack([packing for packing, _, _ in self._blocks], self.num_threads)
        for packing, _, read in self._blocks:
            if not packing.finite:
                read()
        if self._floats:
            largest_first = sorted(self._floats, key=lambda added: -added[0].rows * added[0].cols)
            with ThreadPoolExecutor(self.num_threads) as pool:
                list(pool.map(self._pack_floats, largest_first))

    def _pack_floats(self, added: tuple[Packing, Read]) -> None:
        packing, read = added
        values = np.ascontiguousarray(read(), dtype=np.float32)
        packing.data = values.ctypes.data
        self.library.pack([packing], 1)

    def _tiles(self, form: Format, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Memory of a matrix, beginning at a cache line: zeros, or what was packed before."""
        size = tile_bytes(form, shape)
        if self.packed is not None:
            if not self.pieces:
                self._memory = self.packed
            if size > len(self._memory):
                raise WrongSize
        elif size > len(self._memory):
            self._memory = np.frombuffer(fresh_pages(max(size, _PIECE)), np.uint8)
        tiles, self._memory = self._memory[:size], self._memory[size:]
        self.pieces.append(tiles)
        return tiles
