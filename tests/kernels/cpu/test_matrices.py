"""Packed matrices: no number of a file's blocks changes, and products are what their definition says.

The definition of a quantised product: a row of activations is cut into blocks of 32, each held as int8 codes times one
scale, its largest magnitude over 127; then x W^T in exact arithmetic. Only sums of floats are rounded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from palmette.kernels.cpu.library import Format, library
from palmette.runtime.models.compiled import CompiledDecoder
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.packing import Packer
from palmette.runtime.models.tiny import RandomSource, tiny_config
from palmette.runtime.models.weights import StoredBlocks
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow
from tests.kernels.cpu.models import Kept, compile_config, core, run

SETS = core().instruction_sets
KINDS = ("Q4_0", "Q4_1", "Q8_0")
Floats = NDArray[np.float32]


def normal(*shape: int, seed: int = 0) -> Floats:
    values: Floats = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return values


def random_blocks(kind: str, rows: int, cols: int, size_of_scales: float = 1.0) -> NDArray[np.uint8]:
    """(rows, bytes of a row): any codes, scales of both signs and many sizes, subnormal ones among them."""
    rng = np.random.default_rng(5)
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    blocks = rng.integers(0, 256, (rows * cols // 32, size), dtype=np.uint8)
    for at in (0, 2) if kind == "Q4_1" else (0,):
        scales = size_of_scales * rng.normal(size=len(blocks)) * 10.0 ** -rng.integers(1, 6, len(blocks))
        blocks[:, at : at + 2] = scales.astype("<f2")[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def dequantized(kind: str, blocks: NDArray[np.uint8]) -> Floats:
    return np.asarray(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind]), np.float32)


class Given(RandomSource):
    """Some tensors as given, the others random; what a layer adds to the residual is zero."""

    def __init__(self, **tensors: Floats | StoredBlocks) -> None:
        super().__init__(0)
        self._tensors = tensors

    def blocks(self, name: str) -> StoredBlocks | None:
        found = self._tensors.get(name)
        return found if isinstance(found, StoredBlocks) else None

    def read_into(self, name: str, out: Tensor) -> None:
        found = self._tensors.get(name)
        if isinstance(found, np.ndarray):
            out.copy_(torch.from_numpy(found))
        elif name.endswith(("out", "down")):
            out.zero_()
        else:
            super().read_into(name, out)


def one_layer(vocab: int, cols: int, **changes: Any) -> ModelConfig:
    config = tiny_config(vocab_size=vocab)
    return replace(config, hidden_size=cols, layers=config.layers[:1], **changes)


def embedded(runner: Kept, token: int) -> Floats:
    """The final hidden state of one token at the beginning."""
    row: Floats = runner._hidden(ScheduledBatch((ScheduledRow(0, (token,), 0, (0,), logits_from=0),)))[0]
    return row


def read_back(embedding: Floats | StoredBlocks, vocab: int, cols: int, instruction_set: str) -> Floats:
    """Every row of an embedding, through the model: with eps = 2^20, small numbers have the norm 2^10 exactly."""
    scale = np.full(cols, 1024.0, np.float32)
    config = one_layer(vocab, cols, norm_eps=2.0**20)
    model = compile_config(config, Given(embedding=embedding, final_norm=scale), instruction_set)
    runner, rows = run(model), np.empty((vocab, cols), np.float32)
    for token in range(vocab):
        rows[token] = embedded(runner, token)
    return rows


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_row_is_what_gguf_says(kind: str, instruction_set: str) -> None:
    blocks = random_blocks(kind, 37, 96, 0.01 if kind != "Q8_0" else 0.001)
    order = np.random.default_rng(1).permutation(37)
    wanted = dequantized(kind, blocks)
    assert np.square(wanted).mean(1).max() < 0.01, "too large for read_back"
    stored = StoredBlocks(kind, blocks.reshape(-1), order)
    got = read_back(stored, 37, 96, instruction_set)
    np.testing.assert_array_equal(got, wanted[order])
    assert len(np.unique(got)) > 500


@pytest.mark.parametrize("instruction_set", SETS)
def test_a_float_embedding_row_is_itself(instruction_set: str) -> None:
    values = normal(21, 64) * np.float32(0.02)
    np.testing.assert_array_equal(read_back(values, 21, 64, instruction_set), values)


def rounded(values: Floats) -> tuple[Format, NDArray[np.uint8]]:
    """Floats as 8-bit blocks."""
    packer = Packer(library(), 1)
    source, data = packer.add_floats(lambda: values, (len(values), values.shape[1]), quantize=True)
    packer.run()
    return source.form, data


def test_float_weights_in_8_bits_are_off_by_half_a_step_and_the_rounding_of_their_scale() -> None:
    values = normal(33, 128) * np.float32(0.025)
    values[3, :32] = 0.0
    values[4, 32:64] = -0.015625
    values[5, 64:96] += 0.05  # all of one sign
    form, data = rounded(values)
    assert form == Format.U8
    model = compile_config(one_layer(33, 128, norm_eps=2.0**20), Given(embedding=values), SETS[0])
    tiles = replace(model.embedding, form=form, data=data)
    norm = np.full(128, 1024.0, np.float32)
    runner = run(replace(model, embedding=tiles, final_norm=norm))
    for token in range(33):
        got = embedded(runner, token).reshape(-1, 32).astype(np.float64)
        block = values[token].reshape(-1, 32)
        low, high = block.min(1, keepdims=True), block.max(1, keepdims=True)
        bound = (high - low) / 255 / 2 + (np.abs(low) + (high - low)) * 2.0**-11 + 2.0**-25 * 255
        assert np.all(np.abs(got - block) <= bound)
    np.testing.assert_array_equal(embedded(runner, 3)[:32], 0.0)
    np.testing.assert_array_equal(embedded(runner, 4)[32:64], -0.015625)


# -- products ----------------------------------------------------------------------------------------------------------


def codes_of(x: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Int8 codes and scales of activations (rows, cols) by blocks: (rows, blocks, 32) and (rows, blocks, 1)."""
    blocks = x.reshape(len(x), -1, 32)
    most = np.abs(blocks).max(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        inverse = np.where(most > 0, np.float32(127) / most, np.float32(0)).astype(np.float32)
    codes = np.rint(blocks * inverse).astype(np.float64)
    return codes, (most * np.float32(1 / 127)).astype(np.float64)


def head_product(model: CompiledDecoder, x: Floats, num_threads: int = 1) -> Floats:
    """x W^T for the model's head."""
    runner = run(model, num_threads=num_threads)
    out = np.empty((len(x), model.config.vocab_size), np.float32)
    x = np.ascontiguousarray(x)
    assert runner._core.head(runner._handle, x.ctypes.data, len(x), None, 0, out.ctypes.data) == 0
    return out


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("kind", [*KINDS, "int8"])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 13])
def test_a_quantised_product_is_its_definition(rows: int, kind: str, instruction_set: str) -> None:
    vocab, cols = 75, 160
    x = normal(rows, cols, seed=rows) * np.exp(normal(rows, cols, seed=rows + 1))
    x[0, 32:64] = 0.0
    if kind == "int8":
        given: Floats | StoredBlocks = normal(vocab, cols)
        _, data = rounded(np.asarray(given))
        model = compile_config(one_layer(vocab, cols, tie_embeddings=False), Given(head=given), instruction_set)
        model = replace(model, head=replace(model.head, form=Format.U8, data=data))
        weights = unpacked_u8(data, vocab, cols)
    else:
        blocks = random_blocks(kind, vocab, cols)
        given = StoredBlocks(kind, blocks.reshape(-1), None)
        model = compile_config(one_layer(vocab, cols, tie_embeddings=False), Given(head=given), instruction_set)
        weights = dequantized(kind, blocks).astype(np.float64)
    codes, scales = codes_of(x)
    inputs = (codes * scales).reshape(rows, cols)
    got = head_product(model, x)
    size = np.abs(inputs) @ np.abs(weights).T + mins_of(weights, inputs)
    assert np.all(np.abs(got - inputs @ weights.T) <= 2e-6 * size)
    for i in range(rows):
        np.testing.assert_array_equal(head_product(model, x[i : i + 1], num_threads=2)[0], got[i])


def unpacked_u8(data: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.float64]:
    """Tiles of U8 as pack.cpp describes them, read by another hand."""
    blocks = data.reshape(-(-rows // 16), cols // 32, 64 + 512)
    halves = np.ascontiguousarray(blocks[..., :64]).view("<f2").astype(np.float64)  # (tiles, blocks, 32)
    codes = blocks[..., 64:].reshape(*blocks.shape[:2], 8, 16, 4)  # group of columns, row, column
    codes = codes.transpose(0, 3, 1, 2, 4).reshape(len(blocks), 16, cols // 32, 32)
    d, m = halves[..., :16].transpose(0, 2, 1), halves[..., 16:].transpose(0, 2, 1)  # (tiles, row, blocks)
    values: NDArray[np.float64] = (codes * d[..., None] + m[..., None]).reshape(-1, cols)[:rows]
    return values


def mins_of(weights: NDArray[np.float64], inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """What cancels between the sum over codes and the block's minimum: its size bounds the rounding too."""
    span = np.abs(weights).reshape(len(weights), -1, 32).max(-1).repeat(32, axis=1)
    bound: NDArray[np.float64] = 16 * np.abs(inputs) @ span.T
    return bound


@pytest.mark.parametrize("instruction_set", SETS)
def test_a_float_product_is_its_definition(instruction_set: str) -> None:
    x, weights = normal(9, 96), normal(50, 96, seed=3)
    model = compile_config(one_layer(50, 96, tie_embeddings=False), Given(head=weights), instruction_set)
    got, wanted = head_product(model, x), x.astype(np.float64) @ weights.astype(np.float64).T
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("form", [Format.U8, Format.U4])
def test_a_row_of_activations_with_one_number_that_is_none_gives_nothing_but_those(form: Format) -> None:
    """One NaN or infinity, in any lane of any block."""
    kind = "Q8_0" if form == Format.U8 else "Q4_1"
    given = StoredBlocks(kind, random_blocks(kind, 32, 96).reshape(-1), None)
    for instruction_set in SETS:
        model = compile_config(one_layer(32, 96, tie_embeddings=False), Given(head=given), instruction_set)
        for odd in (np.nan, np.inf, -np.inf):
            x = np.tile(normal(1, 96), (97, 1))
            x[np.arange(96), np.arange(96)] = odd
            got = head_product(model, x)
            assert not np.isfinite(got[:96]).any()
            assert np.isfinite(got[96]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_that_is_no_number_shows(kind: str) -> None:
    blocks = random_blocks(kind, 32, 64)
    blocks[7, :2] = np.array([np.nan], "<f2").view(np.uint8)
    model = compile_config(
        one_layer(32, 64, tie_embeddings=False),
        Given(head=StoredBlocks(kind, blocks.reshape(-1), None)),
        SETS[0],
    )
    got = head_product(model, normal(3, 64))
    assert np.isnan(got[:, 7]).all()
    assert np.isfinite(np.delete(got, 7, axis=1)).all()
