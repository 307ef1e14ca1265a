"""Tiny models for the compiled core's tests: any family, any format of weights, any instruction set that runs here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from palmette.kernels.cpu.library import Library, library
from palmette.native import NotBuilt
from palmette.runtime.compiled_runner import CompiledRunner, Mask
from palmette.runtime.model_runner import ModelRunner
from palmette.runtime.models.compiled import CompiledDecoder, compile_weights
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.tiny import RandomSource, tiny_config
from palmette.runtime.models.weights import StoredBlocks, WeightSource, assemble
from palmette.runtime.scheduled import ScheduledBatch

FORMATS = ("F32", "U8", "U4")  # of the core
NUM_SLOTS = 3000


class Kept(CompiledRunner):
    """A runner whose logits stay what they are when it runs again."""

    def forward(self, batch: ScheduledBatch, masks: Sequence[Mask | None] | None = None) -> Tensor:
        return super().forward(batch, masks).clone()


def core() -> Library:
    """The compiled library; skips the test module where there is none."""
    try:
        return library()
    except NotBuilt as error:
        pytest.skip(f"no compiled core: {error}", allow_module_level=True)


class BlockSource(RandomSource):
    """The random model with matrices in blocks of a GGUF format, as a file would hold them."""

    def __init__(self, seed: int, kind: str) -> None:
        super().__init__(seed)
        self.kind = kind
        self._shapes: dict[str, tuple[int, ...]] = {}

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        self._shapes[name] = shape

    def blocks(self, name: str) -> StoredBlocks | None:
        if len(self._shapes[name]) != 2:
            return None
        values = torch.empty(self._shapes[name])
        super().read_into(name, values)
        data = gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType[self.kind])
        return StoredBlocks(self.kind, np.ascontiguousarray(data).reshape(-1), None)

    def read_into(self, name: str, out: Tensor) -> None:
        """What the blocks mean."""
        self._shapes[name] = tuple(out.shape)
        blocks = self.blocks(name)
        if blocks is None:
            super().read_into(name, out)
            return
        kind = gguf.GGMLQuantizationType[self.kind]
        values = gguf.quants.dequantize(blocks.data.reshape(out.shape[0], -1), kind)
        out.copy_(torch.from_numpy(np.ascontiguousarray(values, np.float32)))


def source(form: str) -> RandomSource:
    return RandomSource(1) if form == "F32" else BlockSource(1, "Q8_0" if form == "U8" else "Q4_1")


@cache
def decoder(family: str, form: str, instruction_set: str) -> CompiledDecoder:
    """The tiny model of a family with all matrices in one format."""
    return compile_config(tiny_config(family), source(form), instruction_set)


def compile_config(config: ModelConfig, weights: WeightSource, instruction_set: str) -> CompiledDecoder:
    return compile_weights(config, weights, library=library(), instruction_set=instruction_set)


def make_runner(family: str, form: str, instruction_set: str, *, num_threads: int = 1) -> Kept:
    return run(decoder(family, form, instruction_set), num_threads=num_threads)


def run(model: CompiledDecoder, *, num_slots: int = NUM_SLOTS, num_threads: int = 1) -> Kept:
    context_len = model.config.context_len
    return Kept(model, num_slots=num_slots, max_running_rows=32, context_len=context_len, num_threads=num_threads)


def reference(config: ModelConfig, weights: WeightSource) -> ModelRunner:
    """The same model in torch, float32: quantised weights dequantised, activations as they are."""
    model = Decoder(config, assemble(config, weights, dtype=torch.float32, device="cpu"))
    return ModelRunner(model, num_slots=NUM_SLOTS, max_running_rows=32)
