"""The compiled decoder as Python sees it: its structs, its functions, and which instruction sets run here.

The structs mirror core.h field by field and hold pointers; whoever fills one keeps the arrays alive. Knows neither
models nor batches.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from palmette.errors import InvalidOption
from palmette.native import NotBuilt, load_library

VERSION = 2  # of the interface and of the tiles; core.cpp has the same

BLOCK = 32  # columns that share a scale
LANES = 16  # rows of a tile


class Format(IntEnum):
    """How a matrix is held: floats, or blocks of 4- or 8-bit codes u with w = d u + m."""

    F32 = 0
    U4 = 1
    U8 = 2


_TILE_BYTES = {Format.F32: 4 * BLOCK * LANES, Format.U4: 64 + BLOCK * LANES // 2, Format.U8: 64 + BLOCK * LANES}


class Source(IntEnum):
    """What a matrix is made of: floats, kept or rounded, or GGUF's blocks of these names."""

    FLOATS = 0
    ROUNDED = 1
    Q4_0 = 2
    Q4_1 = 3
    Q8_0 = 4

    @property
    def form(self) -> Format:
        """How it is held."""
        if self is Source.FLOATS:
            return Format.F32
        return Format.U8 if self in (Source.ROUNDED, Source.Q8_0) else Format.U4


PACKED_KINDS = (Source.Q4_0.name, Source.Q4_1.name, Source.Q8_0.name)  # GGUF's blocks whose numbers are kept


class Matrix(Structure):
    _fields_ = (
        ("format", c_int32),
        ("rows", c_int32),
        ("cols", c_int32),
        ("unused", c_int32),
        ("data", c_void_p),
        ("bias", c_void_p),
    )


class Rope(Structure):
    _fields_ = (("dim", c_int32), ("amplitude", c_float), ("frequencies", c_void_p))


class Layer(Structure):
    _fields_ = (
        *((name, Matrix) for name in ("q", "k", "v", "out", "gate", "up", "down")),
        *((name, c_void_p) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm")),
        *((name, c_void_p) for name in ("post_attention_norm", "post_mlp_norm", "keys", "values")),
        ("window", c_int32),
        ("rope", c_int32),
    )


class Model(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("num_layers", "hidden", "inner", "heads", "kv_heads", "head_dim", "vocab")),
        *((name, c_int32) for name in ("gelu", "kv_half", "num_ropes")),
        *((name, c_float) for name in ("eps", "embedding_scale", "score_scale", "attention_cap", "logit_cap")),
        ("unused", c_int32),
        ("layers", POINTER(Layer)),
        ("ropes", POINTER(Rope)),
        ("embedding", Matrix),
        ("head", Matrix),
        ("final_norm", c_void_p),
    )


class Packing(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("source", "rows", "cols", "finite")),
        *((name, c_void_p) for name in ("data", "order", "out")),
    )


class Row(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("first_token", "num_tokens", "start", "prefix_len")),
        *((name, c_void_p) for name in ("table", "visible", "node_positions")),
        ("num_nodes", c_int64),
    )


class Step(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("num_tokens", "num_rows", "num_wanted", "unused")),
        *((name, c_void_p) for name in ("ids", "positions", "slots", "wanted")),
        ("rows", POINTER(Row)),
        ("hidden", c_void_p),
    )


class Choice(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("logits", "mask")),
        *((name, c_int32) for name in ("mask_words", "top_k")),
        *((name, c_float) for name in ("temperature", "min_p")),
        *((name, c_int32) for name in ("token", "unused")),
        *((name, c_double) for name in ("top_p", "at")),
    )


class Library:
    """The functions of the compiled library. Calls release the interpreter lock."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._new = _declare(functions.palmette_new, c_void_p, POINTER(Model), c_int32, c_char_p)
        self._name = _declare(functions.palmette_instruction_set, c_char_p, c_int32)
        self.free = _declare(functions.palmette_free, None, c_void_p)
        self.forward = _declare(functions.palmette_forward, c_int32, c_void_p, POINTER(Step))
        self.head = _declare(functions.palmette_head, c_int32, c_void_p, c_void_p, c_int32, c_void_p, c_int32, c_void_p)
        self.choose = _declare(functions.palmette_choose, c_int32, c_void_p, POINTER(Choice), c_int32)
        self.survey = _declare(functions.palmette_survey, c_int32, c_void_p, c_void_p, c_int32, c_int32, c_void_p)
        self._pack = _declare(functions.palmette_pack, None, c_void_p, c_int64, c_int32)

    @property
    def instruction_sets(self) -> list[str]:
        """Those that run on this CPU, best first; the last one is "portable"."""
        names: list[str] = []
        while (name := self._name(len(names))) is not None:
            names.append(name.decode())
        return names

    def new(self, model: Model, num_threads: int, instruction_set: str) -> int | None:
        """A decoder's handle, to be freed; None if its threads cannot be started."""
        handle: int | None = self._new(ctypes.byref(model), num_threads, instruction_set.encode())
        return handle

    def pack(self, matrices: Sequence[Packing], num_threads: int) -> None:
        """Lay matrices out for the kernels, in place; writes their `finite`."""
        together = (Packing * len(matrices))(*matrices)
        self._pack(together, len(matrices), num_threads)
        for matrix, done in zip(matrices, together, strict=True):
            matrix.finite = done.finite


def tile_bytes(form: Format, shape: tuple[int, int]) -> int:
    """Memory of a matrix: whole tiles, a multiple of a cache line."""
    rows, cols = shape
    return -(-rows // LANES) * (cols // BLOCK) * _TILE_BYTES[form]


@cache
def library() -> Library:
    """The compiled library, loaded once.

    Raises:
        NotBuilt: it is not there; says why.
    """
    functions = load_library(Path(__file__).parent, "_core")
    if functions.palmette_version() != VERSION:
        raise NotBuilt("it was built from other sources: install palmette again")
    return Library(functions)


def choose_instruction_set(wanted: str) -> str:
    """The instruction set to use: `wanted`, or for "auto" the best one that runs here, unless the environment variable
    PALMETTE_CPU_KERNELS names another. "portable" is there to test with; torch is faster, so "auto" never takes it.

    Raises:
        NotBuilt: the library is not there, or "auto" finds no instruction set worth it.
        InvalidOption: the named one does not run on this CPU; lists those that do.
    """
    found = library().instruction_sets
    option, value = "cpu_kernels", wanted
    if wanted == "auto":
        option, value = "PALMETTE_CPU_KERNELS", os.environ.get("PALMETTE_CPU_KERNELS", "")
        if not value and found == ["portable"]:
            raise NotBuilt("this CPU has neither AVX-512 VNNI nor AVX2")
        if value == "torch":
            raise NotBuilt("PALMETTE_CPU_KERNELS=torch is set")
        value = value or found[0]
    if value not in found:
        raise InvalidOption(option, value, f"one that runs on this CPU ({', '.join(found)}), or torch")
    return value


def _declare(function: ctypes._NamedFuncPointer, result: type | None, *arguments: type) -> ctypes._NamedFuncPointer:
    function.restype = result
    function.argtypes = list(arguments)
    return function


def pointers(arrays: Sequence[NDArray[np.uint32] | None]) -> ctypes.Array[c_void_p]:
    """A C array of their addresses; None is null."""
    return (c_void_p * len(arrays))(*(None if a is None else a.ctypes.data for a in arrays))
