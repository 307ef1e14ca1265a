"""What a decoder looks like, whatever file said so.

`ModelConfig` is the one description the decoder reads. `hf_config` and `gguf_model` fill it from a `config.json` and
from GGUF metadata; families differ in these fields and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from palmette.kernels.rope import RopeSpec
from palmette.kernels.step_kernels import Activation

__all__ = [
    "ALL_FAMILIES",
    "FAMILIES",
    "MAX_CONTEXT",
    "MAX_EXPERTS",
    "SPARSE_FAMILIES",
    "Activation",
    "ExpertConfig",
    "Family",
    "LayerConfig",
    "ModelConfig",
]

MAX_CONTEXT = 1 << 24  # tokens; a file that claims more is broken, and page tables are sized by it
MAX_EXPERTS = 1 << 12  # of a layer; their tensors are asked for one by one
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")  # one MLP a layer: the compiled core has them too
SPARSE_FAMILIES = ("mixtral", "qwen3_moe")  # many experts a layer
ALL_FAMILIES = (*FAMILIES, *SPARSE_FAMILIES)

Family = Literal["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "mixtral", "qwen3_moe"]


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What may differ from layer to layer."""

    window: int | None  # a token at position p sees positions > p - window; None = all
    rope: RopeSpec
    is_sparse: bool = False  # its MLP is many experts, see ModelConfig.experts


@dataclass(frozen=True, slots=True)
class ExpertConfig:
    """The MLPs of a sparse layer; see kernels.moe."""

    num_experts: int
    top_k: int  # of them, a token
    intermediate_size: int  # of one
    normalise: bool  # the weights of a token's experts sum to 1


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only transformer. Sizes in elements, lengths in tokens."""

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int  # of a dense layer's MLP
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
    experts: ExpertConfig | None = None  # where a layer is sparse

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
