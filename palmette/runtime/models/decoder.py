"""One config-driven decoder for every family of the table.

    x = embed(ids)
    for each layer:   x += attention(norm(x));  x += mlp(norm(x))      (Gemma also normalises what each puts out)
    hidden = norm(x);  logits = hidden @ head^T

Knows weights and formulas. Does not know where weights come from (`WeightSource`), what a request is, or how tokens
were grouped: a step is a flat list of tokens, and who sees whom is the attention plan's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from palmette.kernels.activation import gelu_tanh_mul, silu_mul
from palmette.kernels.attention import paged_attention
from palmette.kernels.kv_store import kv_store
from palmette.kernels.linear import linear
from palmette.kernels.rms_norm import add_rms_norm, rms_norm
from palmette.kernels.rope import apply_rope, rope_cos_sin, rope_frequencies
from palmette.kernels.soft_cap import soft_cap_
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.interface import LayerKV, StepTensors


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x W^T + b, with W (out_features, in_features) and b (out_features,)."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Norm weights are float32 and final (Gemma's 1 is added already)."""

    attention_norm: Tensor  # (hidden,)
    qkv: Linear  # rows: all query heads, all key heads, all value heads
    out: Linear  # (hidden, num_heads * head_dim)
    mlp_norm: Tensor  # (hidden,)
    gate_up: Linear  # rows: gate, then up
    down: Linear
    q_norm: Tensor | None = None  # (head_dim,)
    k_norm: Tensor | None = None
    post_attention_norm: Tensor | None = None  # (hidden,), with sandwich_norms
    post_mlp_norm: Tensor | None = None


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
        found = [self.embedding, self.final_norm, self.head]
        for layer in self.layers:
            for value in (getattr(layer, name) for name in LayerWeights.__slots__):
                parts = (value.weight, value.bias) if isinstance(value, Linear) else (value,)
                found.extend(t for t in parts if t is not None)
        return found


class Decoder:
    """A model that computes hidden states; the head is separate, as few tokens need it."""

    def __init__(self, config: ModelConfig, weights: DecoderWeights) -> None:
        self.config = config
        self.weights = weights
        self.dtype = weights.embedding.dtype
        self.device = weights.embedding.device
        self._activate: Callable[[Tensor], Tensor] = silu_mul if config.activation == "silu" else gelu_tanh_mul
        self._frequencies = {rope: rope_frequencies(rope).to(self.device) for rope in {x.rope for x in config.layers}}

    def forward(self, batch: StepTensors, kv: LayerKV) -> Tensor:
        """Compute a step; writes its keys and values into `kv`.

        Returns:
            (num_tokens, hidden_size) hidden states behind the final norm.
        """
        config, weights = self.config, self.weights
        eps = config.norm_eps
        angles = {
            rope: rope_cos_sin(frequencies, batch.positions, rope.attention_factor)
            for rope, frequencies in self._frequencies.items()
        }
        residual = F.embedding(batch.input_ids, weights.embedding)
        if config.embedding_scale != 1.0:
            residual = residual * torch.tensor(config.embedding_scale, dtype=self.dtype)  # rounded to dtype, as trained
        x = rms_norm(residual, weights.layers[0].attention_norm, eps)
        for i, layer in enumerate(weights.layers):
            x = self._attention(i, layer, x, batch, kv, *angles[config.layers[i].rope])
            if layer.post_attention_norm is not None:
                x = rms_norm(x, layer.post_attention_norm, eps)
            x, residual = add_rms_norm(x, residual, layer.mlp_norm, eps)
            x = layer.down(self._activate(layer.gate_up(x)))
            if layer.post_mlp_norm is not None:
                x = rms_norm(x, layer.post_mlp_norm, eps)
            last = i + 1 == len(weights.layers)
            next_norm = weights.final_norm if last else weights.layers[i + 1].attention_norm
            x, residual = add_rms_norm(x, residual, next_norm, eps)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden_size) -> (n, vocab_size) float32, soft-capped where the family does."""
        logits = linear(hidden, self.weights.head).float()
        return logits if self.config.logit_soft_cap is None else soft_cap_(logits, self.config.logit_soft_cap)

    def _attention(
        self, index: int, layer: LayerWeights, x: Tensor, batch: StepTensors, kv: LayerKV, cos: Tensor, sin: Tensor
    ) -> Tensor:
        config = self.config
        h, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
        qkv = layer.qkv(x).view(-1, h + 2 * kv_heads, dim)
        qk, values = qkv[:, : h + kv_heads], qkv[:, h + kv_heads :]
        if layer.q_norm is not None and layer.k_norm is not None:
            normed = (
                rms_norm(qk[:, :h], layer.q_norm, config.norm_eps),
                rms_norm(qk[:, h:], layer.k_norm, config.norm_eps),
            )
            qk = torch.cat(normed, dim=1)
        qk = apply_rope(qk, cos, sin)
        key_pool, value_pool = kv.layer(index)
        kv_store(qk[:, h:], values, key_pool, value_pool, batch.slots)
        attended = paged_attention(
            qk[:, :h].contiguous(),
            key_pool,
            value_pool,
            batch.plans[config.layers[index].window],
            scale=config.score_scale,
            soft_cap=config.attention_soft_cap,
        )
        return layer.out(attended)
