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

from palmette.kernels.cpu.library import Library, Packing, Source, empty_tiles
from palmette.runtime.models.weights import StoredBlocks

Read = Callable[[], NDArray[np.float32]]  # a matrix as floats; raises CorruptModel for one that is not finite


@dataclass(slots=True)
class Packer:
    """Adds return the tiles' memory at once; `run` fills all of it."""

    library: Library
    num_threads: int
    _blocks: list[tuple[Packing, StoredBlocks, Read]] = field(default_factory=list)
    _floats: list[tuple[Packing, Read]] = field(default_factory=list)

    def add_blocks(self, blocks: StoredBlocks, shape: tuple[int, int], read: Read) -> tuple[Source, NDArray[np.uint8]]:
        """Blocks of one of PACKED_KINDS, number for number.

        Args:
            read: the same as floats; called where a scale is not finite, to say what is wrong.
        """
        source = Source[blocks.kind]
        data = np.ascontiguousarray(blocks.data)
        order = None if blocks.order is None else np.ascontiguousarray(blocks.order, dtype=np.int64)
        kept = StoredBlocks(blocks.kind, data, order)  # alive until they are packed
        out = empty_tiles(source.form, shape)
        at = None if order is None else order.ctypes.data
        self._blocks.append((Packing(source, *shape, 0, data.ctypes.data, at, out.ctypes.data), kept, read))
        return source, out

    def add_floats(self, read: Read, shape: tuple[int, int], *, quantize: bool) -> tuple[Source, NDArray[np.uint8]]:
        """Floats as they are, or in blocks of 8-bit codes."""
        source = Source.ROUNDED if quantize else Source.FLOATS
        out = empty_tiles(source.form, shape)
        self._floats.append((Packing(source, *shape, 0, None, None, out.ctypes.data), read))
        return source, out

    def run(self) -> None:
        """
        Raises:
            CorruptModel: from a `read`.
        """
        self.library.pack([packing for packing, _, _ in self._blocks], self.num_threads)
        for packing, _, read in self._blocks:
            if not packing.finite:
                read()
        if self._floats:
            with ThreadPoolExecutor(self.num_threads) as pool:
                list(pool.map(self._pack_floats, self._floats))
        self._blocks.clear()
        self._floats.clear()

    def _pack_floats(self, added: tuple[Packing, Read]) -> None:
        packing, read = added
        values = np.ascontiguousarray(read(), dtype=np.float32)
        packing.data = values.ctypes.data
        self.library.pack([packing], 1)
