"""What a decoder looks like, whatever file said so.

`ModelConfig` is the one description the decoder reads. `hf_config` and `gguf_model` fill it from a `config.json` and
from GGUF metadata; families differ in these fields and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from palmette.kernels.rope import RopeSpec
from palmette.kernels.step_kernels import Activation

__all__ = ["FAMILIES", "MAX_CONTEXT", "Activation", "Family", "LayerConfig", "ModelConfig"]

MAX_CONTEXT = 1 << 24  # tokens; a file that claims more is broken, and page tables are sized by it
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")

Family = Literal["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"]


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What may differ from layer to layer."""

    window: int | None  # a token at position p sees positions > p - window; None = all
    rope: RopeSpec


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only transformer. Sizes in elements, lengths in tokens."""

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_len: int
    norm_eps: float
    layers: tuple[LayerConfig, ...]
    activation: Activation = "silu"
    tie_embeddings: bool = False  # the LM head is the embedding
    qkv_bias: bool = False
    out_bias: bool = False  # of the attention's output projection
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm on every query and key head, before rope
    sandwich_norms: bool = False  # Gemma: also normalise what attention and MLP put out
    embedding_scale: float = 1.0
    attention_scale: float = 0.0  # 0 = 1 / sqrt(head_dim)
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def windows(self) -> frozenset[int | None]:
        return frozenset(layer.window for layer in self.layers)

    @property
    def score_scale(self) -> float:
        """Factor on q k^T."""
        return self.attention_scale or self.head_dim**-0.5
