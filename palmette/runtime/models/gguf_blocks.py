"""GGUF's block formats, dequantised with numpy.

A block format packs 32 or 256 neighbouring elements with their scales. Each function takes the bytes of n blocks,
(n, block bytes) uint8, and fills (n, block elements) float32. The layouts are those of ggml's `block_*` structs; the
`gguf` package's `quants` is the oracle in the tests. Knows neither files nor tensors' meanings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from palmette.errors import UnsupportedFeature

Blocks: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]

_BLOCKS_AT_ONCE = 2048  # temporaries stay within the caches

# The non-linear 4-bit grid of IQ4_NL and IQ4_XS.
_IQ4_GRID: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def dequantize(kind: str, data: NDArray[np.uint8], out: Floats) -> None:
    """Fill `out` from blocks of format `kind`.

    Args:
        data: (num_bytes,), whole blocks.
        out: (num_elements,) float32, contiguous.

    Raises:
        UnsupportedFeature: a format that cannot be read.
        ValueError: an element is NaN or infinite.
    """
    if kind not in _FORMATS:
        raise UnsupportedFeature(f"GGUF format {kind}", f"these can be read: {', '.join(_FORMATS)}")
    elements, num_bytes, fill = _FORMATS[kind]
    blocks, values = data.reshape(-1, num_bytes), out.reshape(-1, elements)
    step = max(1, _BLOCKS_AT_ONCE * 32 // elements)
    with np.errstate(invalid="ignore", over="ignore"):  # nonsense is found below
        for first in range(0, len(blocks), step):
            part = values[first : first + step]
            fill(blocks[first : first + step], part)
            if not np.isfinite(part.sum()):  # one NaN or infinity survives every sum
                raise ValueError("it holds numbers that are not finite")


def _half(blocks: Blocks, at: int) -> Floats:
    """(n, 1): the float16 at byte `at` of every block."""
    return _view(blocks, at, at + 2, "<f2").astype(np.float32)


def _view(blocks: Blocks, begin: int, end: int, dtype: str) -> NDArray[Any]:
    return np.ascontiguousarray(blocks[:, begin:end]).view(dtype)


def _f32(blocks: Blocks, out: Floats) -> None:
    out[:] = blocks.view("<f4")


def _f16(blocks: Blocks, out: Floats) -> None:
    out[:] = blocks.view("<f2")


def _bf16(blocks: Blocks, out: Floats) -> None:
    out.view(np.uint32)[:] = blocks.view("<u2").astype(np.uint32) << 16


def _nibbles(packed: Blocks, out: Floats) -> None:
    """16 bytes: low halves are elements 0..15, high halves 16..31."""
    np.bitwise_and(packed, 15, out=out[:, :16], casting="unsafe")
    np.right_shift(packed, 4, out=out[:, 16:], casting="unsafe")


def _q4_0(blocks: Blocks, out: Floats) -> None:
    _nibbles(blocks[:, 2:], out)
    out -= 8
    out *= _half(blocks, 0)


def _q4_1(blocks: Blocks, out: Floats) -> None:
    _nibbles(blocks[:, 4:], out)
    out *= _half(blocks, 0)
    out += _half(blocks, 2)


def _fifth_bits(packed: Blocks) -> Floats:
    """4 bytes: bit i is the fifth bit of element i. (n, 32) of 0 or 16."""
    bits = np.unpackbits(packed, axis=1, bitorder="little")
    return (bits << 4).astype(np.float32)


def _q5_0(blocks: Blocks, out: Floats) -> None:
    _nibbles(blocks[:, 6:], out)
    out += _fifth_bits(blocks[:, 2:6])
    out -= 16
    out *= _half(blocks, 0)


def _q5_1(blocks: Blocks, out: Floats) -> None:
    _nibbles(blocks[:, 8:], out)
    out += _fifth_bits(blocks[:, 4:8])
    out *= _half(blocks, 0)
    out += _half(blocks, 2)


def _q8_0(blocks: Blocks, out: Floats) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _half(blocks, 0), out=out)


def _q8_k(blocks: Blocks, out: Floats) -> None:
    np.multiply(blocks[:, 4:260].view(np.int8), _view(blocks, 0, 4, "<f4"), out=out)


# -- 256 elements in 8 or 16 sub-blocks with scales of their own ---------------------------------------------------


def _crumbs(packed: Blocks) -> Blocks:
    """64 bytes of 2-bit values -> (n, 16, 16), sub-block first: each 32 bytes hold 128 elements in four layers."""
    layers: Blocks = packed.reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & np.uint8(3)
    return layers.reshape(-1, 16, 16)


def _q2_k(blocks: Blocks, out: Floats) -> None:
    scales = blocks[:, :16]
    scale = _half(blocks, 80) * (scales & 15)
    least = _half(blocks, 82) * (scales >> 4)
    out.reshape(-1, 16, 16)[:] = _crumbs(blocks[:, 16:80]) * scale[:, :, None] - least[:, :, None]


def _q3_k(blocks: Blocks, out: Floats) -> None:
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    low4 = np.concatenate([low & 15, low >> 4], axis=1)  # of 16 scales
    high2 = ((high[:, None, :] >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3).reshape(-1, 16)
    scale = _half(blocks, 108) * ((low4 | high2 << 4).astype(np.int8) - 32)
    third = blocks[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # layer of 32 elements, bit
    values = _crumbs(blocks[:, 32:96]).astype(np.int8) + (third.reshape(-1, 16, 16).astype(np.int8) << 2) - 4
    out.reshape(-1, 16, 16)[:] = values * scale[:, :, None]


def _scales_and_mins(packed: Blocks) -> tuple[Blocks, Blocks]:
    """12 bytes: eight 6-bit scales and eight 6-bit minima of Q4_K and Q5_K."""
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    mins = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return scales, mins


def _layered_nibbles(packed: Blocks) -> Blocks:
    """128 bytes -> (n, 8, 32): each 32 bytes hold two sub-blocks, low halves first."""
    quads: Blocks = packed.reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8)[:, None] & np.uint8(15)
    return quads.reshape(-1, 8, 32)


def _q4_k(blocks: Blocks, out: Floats) -> None:
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    scale, least = _half(blocks, 0) * scales, _half(blocks, 2) * mins
    out.reshape(-1, 8, 32)[:] = _layered_nibbles(blocks[:, 16:]) * scale[:, :, None] - least[:, :, None]


def _q5_k(blocks: Blocks, out: Floats) -> None:
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    scale, least = _half(blocks, 0) * scales, _half(blocks, 2) * mins
    fifth = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 4
    values = _layered_nibbles(blocks[:, 48:]) | fifth
    out.reshape(-1, 8, 32)[:] = values * scale[:, :, None] - least[:, :, None]


def _q6_k(blocks: Blocks, out: Floats) -> None:
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 15
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    values = (low.reshape(-1, 16, 16) | high.reshape(-1, 16, 16) << 4).astype(np.int8) - 32
    scale = _half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    out.reshape(-1, 16, 16)[:] = values * scale[:, :, None]


def _iq4_nl(blocks: Blocks, out: Floats) -> None:
    grid = np.array(_IQ4_GRID, np.float32)
    packed = blocks[:, 2:]
    out[:, :16] = grid[packed & 15]
    out[:, 16:] = grid[packed >> 4]
    out *= _half(blocks, 0)


def _iq4_xs(blocks: Blocks, out: Floats) -> None:
    grid = np.array(_IQ4_GRID, np.float32)
    high = _view(blocks, 2, 4, "<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3  # (n, 8)
    low = (blocks[:, 4:8, None] >> np.array([0, 4], np.uint8) & 15).reshape(-1, 8)
    scale = _half(blocks, 0) * ((low | high << 4).astype(np.int8) - 32)
    packed = blocks[:, 8:].reshape(-1, 8, 1, 16) >> np.array([0, 4], np.uint8)[:, None] & 15
    out.reshape(-1, 8, 32)[:] = grid[packed.reshape(-1, 8, 32)] * scale[:, :, None]


# kind -> (elements of a block, bytes of a block, how to fill them)
_FORMATS: Final[Mapping[str, tuple[int, int, Callable[[Blocks, Floats], None]]]] = MappingProxyType(
    {
        "F32": (1, 4, _f32),
        "F16": (1, 2, _f16),
        "BF16": (1, 2, _bf16),
        "Q4_0": (32, 18, _q4_0),
        "Q4_1": (32, 20, _q4_1),
        "Q5_0": (32, 22, _q5_0),
        "Q5_1": (32, 24, _q5_1),
        "Q8_0": (32, 34, _q8_0),
        "Q2_K": (256, 84, _q2_k),
        "Q3_K": (256, 110, _q3_k),
        "Q4_K": (256, 144, _q4_k),
        "Q5_K": (256, 176, _q5_k),
        "Q6_K": (256, 210, _q6_k),
        "Q8_K": (256, 292, _q8_k),
        "IQ4_NL": (32, 18, _iq4_nl),
        "IQ4_XS": (256, 136, _iq4_xs),
    }
)
