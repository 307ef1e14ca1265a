"""A decoder's weights, as its forward pass calls them.

A projection is whatever maps (rows, in) to (rows, out): a plain matrix, a quantised one, one of several processes'
share. An MLP is one dense pair of them, or many experts. Knows no file, no family and no batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

from torch import Tensor

from palmette.kernels.linear import linear
from palmette.kernels.step_kernels import Activation, StepKernels


class Projection(Protocol):
    """A linear layer, however it is held."""

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, in) -> (rows, out)."""
        ...

    def tensors(self) -> list[Tensor]: ...


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x W^T + b, with W (out_features, in_features) and b (out_features,)."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def tensors(self) -> list[Tensor]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]


class Mlp(Protocol):
    """What stands behind a layer's attention."""

    def __call__(self, x: Tensor, kernels: StepKernels, activation: Activation) -> Tensor:
        """(rows, hidden) -> (rows, hidden)."""
        ...

    def tensors(self) -> list[Tensor]: ...


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """down(activation(gate(x)) * up(x))."""

    gate_up: Projection  # rows: gate, then up
    down: Projection

    def __call__(self, x: Tensor, kernels: StepKernels, activation: Activation) -> Tensor:
        return self.down(kernels.gated(self.gate_up(x), activation))

    def tensors(self) -> list[Tensor]:
        return [*self.gate_up.tensors(), *self.down.tensors()]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Norm weights are float32 and final (Gemma's 1 is added already)."""

    attention_norm: Tensor  # (hidden,)
    qkv: Projection  # rows: all query heads, all key heads, all value heads
    out: Projection  # (hidden, num_heads * head_dim)
    mlp_norm: Tensor  # (hidden,)
    mlp: Mlp
    q_norm: Tensor | None = None  # (head_dim,)
    k_norm: Tensor | None = None
    post_attention_norm: Tensor | None = None  # (hidden,), with sandwich_norms
    post_mlp_norm: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        for value in (getattr(self, field.name) for field in fields(self)):
            if value is not None:
                found += [value] if isinstance(value, Tensor) else value.tensors()
        return found


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """A whole model. `head` is `embedding` itself when tied."""

    embedding: Tensor  # (vocab, hidden)
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # (hidden,) float32
    head: Tensor  # (vocab, hidden)

    @property
    def num_parameters(self) -> int:
        tensors = {id(t): t for t in self.tensors()}
        return sum(t.numel() for t in tensors.values())

    def tensors(self) -> list[Tensor]:
        return [self.embedding, self.final_norm, self.head, *(t for layer in self.layers for t in layer.tensors())]
