"""A decoder's weights laid out for the compiled core (kernels/cpu), in the formats of their file.

    file                          held as
    Q4_0, Q4_1, Q8_0              the same blocks, number for number, in another order
    other quantised formats       blocks of 32 8-bit codes: read as floats, then quantised
    floats                        floats; or 8-bit blocks where `dtype="int8"` asks for them

Knows weights and layouts. Does not know batches: `runtime.compiled_runner` runs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from palmette.kernels.cpu import library as core
from palmette.kernels.cpu.library import BLOCK, LANES, PACKED_KINDS, Format, Library
from palmette.kernels.rope import rope_frequencies
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.digest import SAMPLES
from palmette.runtime.models.packing import Packer, WrongSize
from palmette.runtime.models.tile_cache import TileCache
from palmette.runtime.models.weights import WeightSource

Precision = Literal["auto", "float32", "int8"]  # the file's own; all floats; 8-bit blocks where the file has floats

_MATRICES = ("q", "k", "v", "out", "gate", "up", "down")
_NORMS = ("attention_norm", "mlp_norm", "q_norm", "k_norm", "post_attention_norm", "post_mlp_norm")


@dataclass(frozen=True, slots=True)
class Tiles:
    """One matrix; see kernels/cpu/pack.cpp for what `data` holds."""

    form: Format
    shape: tuple[int, int]
    data: NDArray[np.uint8]
    bias: NDArray[np.float32] | None  # padded to whole tiles

    def as_c(self) -> core.Matrix:
        rows, cols = self.shape
        bias = None if self.bias is None else self.bias.ctypes.data
        return core.Matrix(self.form, rows, cols, 0, self.data.ctypes.data, bias)


@dataclass(frozen=True, slots=True)
class CompiledDecoder:
    """A whole model. `embedding` and `head` are one object when tied."""

    config: ModelConfig
    embedding: Tiles
    head: Tiles
    matrices: tuple[dict[str, Tiles], ...]  # by layer
    norms: tuple[dict[str, NDArray[np.float32]], ...]  # by layer; those that the family has
    final_norm: NDArray[np.float32]
    instruction_set: str

    @property
    def is_quantized(self) -> bool:
        return any(tiles.form != Format.F32 for layer in self.matrices for tiles in layer.values())

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values: quantised models keep them in half precision."""
        return torch.float16 if self.is_quantized else torch.float32

    @property
    def digest(self) -> str:
        """As `models.digest`, over the packed weights."""
        found = hashlib.sha256(repr(self.config).encode())
        for tiles in (self.embedding, self.head, *(t for layer in self.matrices for t in layer.values())):
            found.update(f"{tiles.shape} {tiles.form.name}".encode())
            found.update(tiles.data[:: max(1, len(tiles.data) // SAMPLES)].tobytes())
        for norm in (self.final_norm, *(n for layer in self.norms for n in layer.values())):
            found.update(norm.tobytes())
        return found.hexdigest()[:32]


def why_not_compiled(config: ModelConfig) -> str | None:
    """What keeps a model from the compiled core; None if nothing does."""
    if config.experts is not None:
        return f"it has layers of {config.experts.num_experts} experts"
    if config.hidden_size % BLOCK or config.intermediate_size % BLOCK:
        return f"its hidden sizes {config.hidden_size} and {config.intermediate_size} are no multiples of {BLOCK}"
    if config.head_dim % LANES or config.num_heads * config.head_dim % BLOCK:
        return f"{config.num_heads} heads of {config.head_dim} do not divide into vectors of {LANES}"
    return None


def compile_weights(
    config: ModelConfig,
    source: WeightSource,
    *,
    library: Library,
    instruction_set: str,
    precision: Precision = "auto",
    cache: TileCache | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> CompiledDecoder:
    """Read every tensor the config calls for.

    Args:
        cache: where packed weights are, or will be once they are packed.
        meanwhile: called while another thread packs, for which most formats need no interpreter.

    Raises:
        CorruptModel: from the source.
    """
    packer = Packer(library, torch.get_num_threads(), None if cache is None else cache.open())
    compiled = partial(_compile, config, source, instruction_set=instruction_set, precision=precision)
    try:
        decoder = compiled(packer, meanwhile=meanwhile)
    except WrongSize:
        packer = Packer(library, torch.get_num_threads())
        decoder = compiled(packer, meanwhile=meanwhile)
    if cache is not None and packer.packed is None and decoder.is_quantized:  # floats would be many times the file
        cache.write_later(packer.pieces)
    return decoder


def _compile(
    config: ModelConfig,
    source: WeightSource,
    packer: Packer,
    *,
    instruction_set: str,
    precision: Precision,
    meanwhile: Callable[[], object] | None,
) -> CompiledDecoder:
    reader = _Reader(config, source, packer, precision)
    layers = [(reader.matrices(i), reader.norms(i)) for i in range(config.num_layers)]
    embedding = reader.matrix("embedding", config.vocab_size, config.hidden_size)
    head = embedding if config.tie_embeddings else reader.matrix("head", config.vocab_size, config.hidden_size)
    final_norm = reader.floats("final_norm", config.hidden_size)
    with ThreadPoolExecutor(1) as pool:
        packed = pool.submit(packer.run)
        if meanwhile is not None:
            meanwhile()
        packed.result()
    return CompiledDecoder(
        config,
        embedding,
        head,
        tuple(matrices for matrices, _ in layers),
        tuple(norms for _, norms in layers),
        final_norm,
        instruction_set,
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    config: ModelConfig
    source: WeightSource
    packer: Packer
    precision: Precision

    def matrices(self, layer: int) -> dict[str, Tiles]:
        c = self.config
        q_size, kv_size = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        shapes = {
            "q": (q_size, c.hidden_size, c.qkv_bias),
            "k": (kv_size, c.hidden_size, c.qkv_bias),
            "v": (kv_size, c.hidden_size, c.qkv_bias),
            "out": (c.hidden_size, q_size, c.out_bias),
            "gate": (c.intermediate_size, c.hidden_size, c.mlp_bias),
            "up": (c.intermediate_size, c.hidden_size, c.mlp_bias),
            "down": (c.hidden_size, c.intermediate_size, c.mlp_bias),
        }
        return {name: self.matrix(f"layers.{layer}.{name}", *shapes[name]) for name in _MATRICES}

    def norms(self, layer: int) -> dict[str, NDArray[np.float32]]:
        c = self.config
        sizes = {"attention_norm": c.hidden_size, "mlp_norm": c.hidden_size}
        if c.qk_norm:
            sizes |= {"q_norm": c.head_dim, "k_norm": c.head_dim}
        if c.sandwich_norms:
            sizes |= {"post_attention_norm": c.hidden_size, "post_mlp_norm": c.hidden_size}
        return {name: self.floats(f"layers.{layer}.{name}", size) for name, size in sizes.items()}

    def matrix(self, name: str, rows: int, cols: int, bias: bool = False) -> Tiles:
        self.source.require(name, (rows, cols))
        blocks = None if self.precision == "float32" else self.source.blocks(name)
        read = partial(self.floats, name, rows, cols)
        if blocks is not None and blocks.kind in PACKED_KINDS:
            made, data = self.packer.add_blocks(blocks, (rows, cols), read)
        else:
            made, data = self.packer.add_floats(
                read, (rows, cols), quantize=blocks is not None or self.precision == "int8"
            )
        padded = np.zeros(-(-rows // LANES) * LANES, np.float32) if bias else None
        if padded is not None:
            padded[:rows] = self.floats(f"{name}.bias", rows)
        return Tiles(made.form, (rows, cols), data, padded)

    def floats(self, name: str, *shape: int) -> NDArray[np.float32]:
        self.source.require(name, shape)
        values = torch.empty(shape, dtype=torch.float32)
        self.source.read_into(name, values)
        array: NDArray[np.float32] = values.numpy()
        return array


class CoreModel:
    """The C structs of a model over given pools of keys and values; keeps alive what they point to."""

    def __init__(self, decoder: CompiledDecoder, pools: list[tuple[int, int]]) -> None:
        """
        Args:
            pools: addresses of each layer's keys and values, in `decoder.dtype`.
        """
        config = decoder.config
        ropes = list(dict.fromkeys(layer.rope for layer in config.layers))
        frequencies = [rope_frequencies(rope).numpy() for rope in ropes]
        self._alive = (decoder, frequencies)
        self._ropes = (core.Rope * len(ropes))(
            *(core.Rope(r.dim, r.attention_factor, f.ctypes.data) for r, f in zip(ropes, frequencies, strict=True))
        )
        self._layers = (core.Layer * config.num_layers)()
        for i, layer in enumerate(config.layers):
            found = self._layers[i]
            for name, tiles in decoder.matrices[i].items():
                setattr(found, name, tiles.as_c())
            for name in _NORMS:
                norm = decoder.norms[i].get(name)
                setattr(found, name, None if norm is None else norm.ctypes.data)
            found.keys, found.values = pools[i]
            found.window, found.rope = layer.window or 0, ropes.index(layer.rope)
        self.struct = core.Model(
            num_layers=config.num_layers,
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            vocab=config.vocab_size,
            gelu=config.activation == "gelu_tanh",
            kv_half=decoder.dtype == torch.float16,
            num_ropes=len(ropes),
            eps=config.norm_eps,
            embedding_scale=config.embedding_scale,
            score_scale=config.score_scale,
            attention_cap=config.attention_soft_cap or 0.0,
            logit_cap=config.logit_soft_cap or 0.0,
            layers=self._layers,
            ropes=self._ropes,
            embedding=decoder.embedding.as_c(),
            head=decoder.head.as_c(),
            final_norm=decoder.final_norm.ctypes.data,
        )
