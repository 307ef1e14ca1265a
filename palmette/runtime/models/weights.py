"""Assembling a decoder's weights from any source, under one set of names.

    embedding  final_norm  head  layers.{i}.{attention_norm, q, k, v, out, mlp_norm, gate, up, down, q_norm, k_norm,
    post_attention_norm, post_mlp_norm}, where q, k, v, out, gate, up, down may also have `.bias`; a sparse layer has
    router and experts.{n}.{gate, up, down} instead of gate, up, down

Fused matrices are allocated once and each part is read into its rows, so nothing exists twice. A source delivers final
values: half-split rotary order, norms with Gemma's 1 added, dequantised. Knows no file format.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.experts import ExpertMlp
from palmette.runtime.models.layers import DecoderWeights, DenseMlp, LayerWeights, Linear, Mlp


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """A quantised tensor as its file has it."""

    kind: str  # GGUF's name of the block format
    data: NDArray[np.uint8]  # (num_bytes,)
    order: NDArray[np.int64] | None  # the file's row for each row of the tensor; None = the same


class WeightSource(Protocol):
    """Where tensors come from. Read from several threads at once."""

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """Check that a tensor is there and has the shape the config implies, before memory is taken for it.

        Raises:
            CorruptModel: it has not.
        """
        ...

    def read_into(self, name: str, out: Tensor) -> None:
        """Fill `out`, whose shape was required, converting to its dtype.

        Raises:
            CorruptModel: an element is NaN or infinite.
        """
        ...

    def blocks(self, name: str) -> StoredBlocks | None:
        """The quantised blocks of a tensor whose shape was required, as they are: a scale may be NaN or infinite, as
        `read_into` would say. None if it is stored as floats."""
        ...


def assemble(
    config: ModelConfig, source: WeightSource, *, dtype: torch.dtype, device: torch.device | str
) -> DecoderWeights:
    """Read every tensor the config calls for. Norm weights stay float32.

    Raises:
        CorruptModel: from the source.
    """
    reader = _Reader(source, dtype, device)
    # Half of the time goes into the first touch of fresh memory, which threads share well.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        layers_to_come = pool.map(lambda i: _layer(config, reader, i), range(config.num_layers))
        embedding = reader.matrix("embedding", config.vocab_size, config.hidden_size)
        layers = tuple(layers_to_come)
    head = embedding if config.tie_embeddings else reader.matrix("head", config.vocab_size, config.hidden_size)
    return DecoderWeights(embedding, layers, reader.norm("final_norm", config.hidden_size), head)


def _layer(config: ModelConfig, reader: _Reader, index: int) -> LayerWeights:
    at, hidden, dim = f"layers.{index}.", config.hidden_size, config.head_dim
    q_size, kv_size = config.num_heads * dim, config.num_kv_heads * dim
    sandwich, qk_norm = config.sandwich_norms, config.qk_norm
    return LayerWeights(
        attention_norm=reader.norm(at + "attention_norm", hidden),
        qkv=reader.linear([(at + "q", q_size), (at + "k", kv_size), (at + "v", kv_size)], hidden, bias=config.qkv_bias),
        out=reader.linear([(at + "out", hidden)], q_size, bias=config.out_bias),
        mlp_norm=reader.norm(at + "mlp_norm", hidden),
        mlp=_mlp(config, reader, index),
        q_norm=reader.norm(at + "q_norm", dim) if qk_norm else None,
        k_norm=reader.norm(at + "k_norm", dim) if qk_norm else None,
        post_attention_norm=reader.norm(at + "post_attention_norm", hidden) if sandwich else None,
        post_mlp_norm=reader.norm(at + "post_mlp_norm", hidden) if sandwich else None,
    )


def _mlp(config: ModelConfig, reader: _Reader, index: int) -> Mlp:
    at, hidden = f"layers.{index}.", config.hidden_size
    if not config.layers[index].is_sparse:
        inner = config.intermediate_size
        return DenseMlp(
            reader.linear([(at + "gate", inner), (at + "up", inner)], hidden, bias=config.mlp_bias),
            reader.linear([(at + "down", hidden)], inner, bias=config.mlp_bias),
        )
    assert config.experts is not None, f"layer {index} is sparse, and the config has no experts"
    experts, inner = config.experts, config.experts.intermediate_size
    return ExpertMlp(
        reader.matrix(at + "router", experts.num_experts, hidden),
        reader.experts(at, ["gate", "up"], experts.num_experts, inner, hidden),
        reader.experts(at, ["down"], experts.num_experts, hidden, inner),
        experts.top_k,
        experts.normalise,
    )


class _Reader:
    def __init__(self, source: WeightSource, dtype: torch.dtype, device: torch.device | str) -> None:
        self._source, self._dtype, self._device = source, dtype, device

    def matrix(self, name: str, rows: int, columns: int) -> Tensor:
        return self._read([(name, rows)], (columns,), self._dtype)

    def norm(self, name: str, size: int) -> Tensor:
        return self._read([(name, size)], (), torch.float32)

    def linear(self, parts: list[tuple[str, int]], columns: int, *, bias: bool) -> Linear:
        """One matrix of the parts' rows, in order."""
        weight = self._read(parts, (columns,), self._dtype)
        biases = self._read([(name + ".bias", rows) for name, rows in parts], (), self._dtype) if bias else None
        return Linear(weight, biases)

    def experts(self, at: str, parts: list[str], num_experts: int, rows: int, columns: int) -> Tensor:
        """(num_experts, len(parts) * rows, columns): each expert's parts, in order."""
        names = [(f"{at}experts.{n}.{part}", rows) for n in range(num_experts) for part in parts]
        return self._read(names, (columns,), self._dtype).view(num_experts, len(parts) * rows, columns)

    def _read(self, parts: list[tuple[str, int]], rest: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        for name, rows in parts:
            self._source.require(name, (rows, *rest))
        whole = torch.empty((sum(rows for _, rows in parts), *rest), dtype=dtype)
        first = 0
        for name, rows in parts:
            self._source.read_into(name, whole[first : first + rows])
            first += rows
        return whole.to(self._device)
