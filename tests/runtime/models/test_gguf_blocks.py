"""Each block format against the gguf package, bit by bit."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from palmette.errors import UnsupportedFeature
from palmette.runtime.models.gguf import BLOCK_TYPES
from palmette.runtime.models.gguf_blocks import dequantize

# kind -> where its blocks hold float16 numbers, which random bytes would make infinite
HALVES: dict[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
SIZES = {name: (elements, num_bytes) for name, elements, num_bytes in BLOCK_TYPES.values()}


def ours(kind: str, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    elements, num_bytes = SIZES[kind]
    out = np.full(blocks.size // num_bytes * elements, np.nan, np.float32)
    dequantize(kind, blocks.reshape(-1), out)
    return out


def random_blocks(kind: str, count: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (count, SIZES[kind][1]), dtype=np.uint8)
    for at in HALVES[kind]:
        blocks[:, at : at + 2] = rng.normal(size=(count, 1)).astype("<f2").view(np.uint8)
    return blocks


@pytest.mark.parametrize("kind", list(HALVES))
def test_random_blocks_are_dequantised_exactly(kind: str) -> None:
    blocks = random_blocks(kind, 500)
    wanted = gguf.quants.dequantize(blocks, Kind[kind]).reshape(-1)
    np.testing.assert_array_equal(ours(kind, blocks), wanted)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_numbers_come_back_exactly_as_the_gguf_package_reads_them(kind: str) -> None:
    values = np.random.default_rng(1).normal(size=(40, 256)).astype(np.float32)
    blocks = gguf.quants.quantize(values, Kind[kind])
    wanted = gguf.quants.dequantize(blocks, Kind[kind]).astype(np.float32).reshape(-1)
    got = ours(kind, np.ascontiguousarray(blocks).view(np.uint8))
    np.testing.assert_array_equal(got, wanted)
    assert np.abs(got - values.reshape(-1)).max() < 0.5


def test_q8_k_is_scale_times_bytes() -> None:  # the package does not read it
    rng = np.random.default_rng(2)
    scales, codes = rng.normal(size=(9, 1)).astype("<f4"), rng.integers(-128, 128, (9, 256), dtype=np.int8)
    blocks = np.concatenate([scales.view(np.uint8), codes.view(np.uint8), np.zeros((9, 32), np.uint8)], axis=1)
    np.testing.assert_array_equal(ours("Q8_K", blocks), (scales * codes).reshape(-1))


def test_more_blocks_than_are_done_at_once_come_out_in_order() -> None:
    blocks = random_blocks("Q4_0", 5000)
    np.testing.assert_array_equal(ours("Q4_0", blocks)[-3200:], ours("Q4_0", blocks[-100:]))


@pytest.mark.parametrize("kind", ["IQ2_XXS", "Q8_1", "I32"])
def test_a_format_that_cannot_be_read_is_refused(kind: str) -> None:
    out: Any = np.zeros(SIZES[kind][0], np.float32)
    with pytest.raises(UnsupportedFeature, match=kind):
        dequantize(kind, np.zeros(SIZES[kind][1], np.uint8), out)


def test_numbers_that_are_not_finite_are_refused() -> None:
    blocks = random_blocks("Q4_0", 100)
    blocks[37, :2] = np.array([np.nan], "<f2").view(np.uint8)
    with pytest.raises(ValueError, match="not finite"):
        ours("Q4_0", blocks)
