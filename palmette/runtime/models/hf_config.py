"""A transformers `config.json` as a ModelConfig.

The table of families is closed: an architecture that is not in it is refused, because a decoder that looks alike and
differs in one place computes nonsense without an error. Defaults are those of the family's config class, which leaves
out of the file what has its default. Reads the keys of transformers 4 (`rope_theta`, `rope_scaling`) and 5
(`rope_parameters`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, cast

from palmette.errors import CorruptModel, UnsupportedArchitecture, UnsupportedFeature
from palmette.kernels.rope import RopeSpec, yarn_attention_factor
from palmette.runtime.models.config import (
    MAX_CONTEXT,
    MAX_EXPERTS,
    SPARSE_FAMILIES,
    Activation,
    ExpertConfig,
    Family,
    LayerConfig,
    ModelConfig,
)

_FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {
        "llama": "llama",
        "mistral": "mistral",
        "qwen2": "qwen2",
        "qwen3": "qwen3",
        "mixtral": "mixtral",
        "qwen3_moe": "qwen3_moe",
        "gemma2": "gemma2",
        "gemma3_text": "gemma3",
        "gemma3": "gemma3",  # with vision; its language model is used
    }
)
_ACTIVATIONS: Final[Mapping[str, Activation]] = MappingProxyType(
    {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
)
# What a router may do besides softmax and top-k, and the values that mean it does not.
_OTHER_ROUTERS: Final[Mapping[str, tuple[object, ...]]] = MappingProxyType(
    {
        "n_shared_experts": (None, 0),
        "num_shared_experts": (None, 0),
        "shared_expert_intermediate_size": (None, 0),
        "scoring_func": (None, "softmax"),
        "n_group": (None, 0, 1),
        "topk_group": (None, 0, 1),
        "routed_scaling_factor": (None, 1, 1.0),
    }
)


def model_config(config: Mapping[str, Any], file: str) -> ModelConfig:
    """Read a config.json.

    Args:
        file: its name, for errors.

    Raises:
        UnsupportedArchitecture: `model_type` is not in the table.
        UnsupportedFeature: a rope scaling, activation or kind of router that is not implemented.
        CorruptModel: a field is missing or of the wrong type.
    """
    model_type = str(config.get("model_type"))
    if model_type not in _FAMILIES:
        raise UnsupportedArchitecture(model_type, list(_FAMILIES))
    if isinstance(config.get("text_config"), dict):
        config = {**config["text_config"], "model_type": model_type}
    return _Reader(config, file, _FAMILIES[model_type]).config()


@dataclass(frozen=True, slots=True)
class _Reader:
    raw: Mapping[str, Any]
    file: str
    family: Family

    def config(self) -> ModelConfig:
        gemma = self.family.startswith("gemma")
        num_heads = self.integer("num_attention_heads")
        hidden_size = self.integer("hidden_size")
        head_dim = self.integer(
            "head_dim", 256 if gemma else 128 if self.family == "qwen3" else hidden_size // num_heads
        )
        num_kv_heads = self.integer("num_key_value_heads", _DEFAULT_KV_HEADS.get(self.family, num_heads))
        if num_heads % num_kv_heads or head_dim % 2:
            raise CorruptModel(self.file, f"{num_heads} heads of {head_dim} over {num_kv_heads} KV heads do not divide")
        attention_bias = bool(self.raw.get("attention_bias", False))
        layers = tuple(self.layer(i, head_dim) for i in range(self.integer("num_hidden_layers")))
        return ModelConfig(
            family=self.family,
            vocab_size=self.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=self.integer("intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            context_len=self.integer("max_position_embeddings", _DEFAULT_CONTEXT[self.family], most=MAX_CONTEXT),
            norm_eps=self.number("rms_norm_eps", 1e-5 if self.family == "mixtral" else 1e-6),
            layers=layers,
            activation=self.activation(),
            tie_embeddings=bool(self.raw.get("tie_word_embeddings", gemma)),
            qkv_bias=attention_bias or self.family == "qwen2",
            out_bias=attention_bias,
            mlp_bias=bool(self.raw.get("mlp_bias", False)),
            qk_norm=self.family in ("qwen3", "qwen3_moe", "gemma3"),
            sandwich_norms=gemma,
            embedding_scale=hidden_size**0.5 if gemma else 1.0,
            attention_scale=self.number("query_pre_attn_scalar", 256) ** -0.5 if gemma else 0.0,
            attention_soft_cap=self.soft_cap("attn_logit_softcapping", 50.0),
            logit_soft_cap=self.soft_cap("final_logit_softcapping", 30.0),
            experts=self.experts() if any(layer.is_sparse for layer in layers) else None,
        )

    def layer(self, index: int, head_dim: int) -> LayerConfig:
        window = self.window(index)
        return LayerConfig(window, self.rope(head_dim, sliding=window is not None), self.is_sparse(index))

    def is_sparse(self, index: int) -> bool:
        """Whether a layer's MLP is many experts."""
        if self.family != "qwen3_moe":
            return self.family in SPARSE_FAMILIES
        dense = self.raw.get("mlp_only_layers") or []
        if not isinstance(dense, list):
            raise CorruptModel(self.file, f"mlp_only_layers is {dense!r}, not a list of layers")
        return index not in dense and (index + 1) % self.integer("decoder_sparse_step", 1) == 0

    def experts(self) -> ExpertConfig:
        for key, plain in _OTHER_ROUTERS.items():
            if self.raw.get(key) not in plain:
                reason = "of routers, softmax over the experts and the top k of them is implemented"
                raise UnsupportedFeature(f"{key}={self.raw[key]!r}", reason)
        mixtral = self.family == "mixtral"
        # transformers 4 says num_experts for Qwen, 5 says num_local_experts for both
        key = "num_experts" if self.raw.get("num_local_experts") is None else "num_local_experts"
        num_experts = self.integer(key, 8 if mixtral else 128, most=MAX_EXPERTS)
        return ExpertConfig(
            num_experts=num_experts,
            top_k=self.integer("num_experts_per_tok", 2 if mixtral else 8, most=num_experts),
            intermediate_size=self.integer("intermediate_size")
            if mixtral
            else self.integer("moe_intermediate_size", 768),
            normalise=mixtral or bool(self.raw.get("norm_topk_prob", False)),
        )

    def window(self, index: int) -> int | None:
        """The sliding window of a layer."""
        window = self.raw.get("sliding_window", 4096 if self.family in ("mistral", "gemma2", "gemma3") else None)
        if window is None or (self.family.startswith("qwen") and not self.raw.get("use_sliding_window", False)):
            return None
        if not isinstance(window, int) or window < 1:
            raise CorruptModel(self.file, f"sliding_window is {window!r}")
        kinds = self.raw.get("layer_types")
        if isinstance(kinds, list) and index < len(kinds):
            return window if kinds[index] == "sliding_attention" else None
        match self.family:
            case "gemma2":
                slides = index % 2 == 0
            case "gemma3":
                slides = (index + 1) % self.integer("sliding_window_pattern", 6) != 0
            case "qwen2" | "qwen3":
                slides = index >= self.integer("max_window_layers", 28, least=0)
            case _:
                slides = self.family in ("mistral", "mixtral", "qwen3_moe")
        return window if slides else None

    def rope(self, head_dim: int, *, sliding: bool) -> RopeSpec:
        params = self.raw.get("rope_parameters") or {}
        if not isinstance(params, dict):
            raise CorruptModel(self.file, f"rope_parameters is {params!r}")
        by_kind = params.get("sliding_attention" if sliding else "full_attention")
        if isinstance(by_kind, dict):
            params = by_kind
        elif self.family == "gemma3" and sliding and not params:  # transformers 4
            return RopeSpec(dim=head_dim, theta=self.number("rope_local_base_freq", 10000.0))
        scaling = params or self.raw.get("rope_scaling") or {}
        default = 1e6 if self.family in ("gemma3", "mixtral") else 10000.0
        theta = params.get("rope_theta", self.raw.get("rope_theta", default))
        if not isinstance(scaling, dict) or not isinstance(theta, int | float):
            raise CorruptModel(self.file, f"rope settings are {scaling!r}, theta {theta!r}")
        dim = int(head_dim * self.number("partial_rotary_factor", 1.0))
        return self.scaled_rope(RopeSpec(dim=dim, theta=float(theta)), scaling)

    def scaled_rope(self, plain: RopeSpec, scaling: Mapping[str, Any]) -> RopeSpec:
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind == "default":
            return plain
        if kind not in ("linear", "llama3", "yarn"):
            raise UnsupportedFeature(f"rope scaling {kind!r}", "default, linear, llama3 and yarn are implemented")
        read = _Reader(scaling, self.file, self.family)
        factor = read.number("factor")
        if kind == "linear":
            return RopeSpec(dim=plain.dim, theta=plain.theta, kind="linear", factor=factor)
        original = read.integer("original_max_position_embeddings", self.integer("max_position_embeddings", 2048))
        if kind == "llama3":
            return RopeSpec(
                dim=plain.dim,
                theta=plain.theta,
                kind="llama3",
                factor=factor,
                original_context_len=original,
                low_freq_factor=read.number("low_freq_factor"),
                high_freq_factor=read.number("high_freq_factor"),
            )
        if scaling.get("mscale") or scaling.get("truncate") is False:
            raise UnsupportedFeature("yarn with mscale or without truncation", "no supported family uses them")
        return RopeSpec(
            dim=plain.dim,
            theta=plain.theta,
            kind="yarn",
            factor=factor,
            original_context_len=original,
            beta_fast=read.number("beta_fast", 32.0),
            beta_slow=read.number("beta_slow", 1.0),
            attention_factor=read.number("attention_factor", yarn_attention_factor(factor)),
        )

    def activation(self) -> Activation:
        gemma = self.family.startswith("gemma")
        name = self.raw.get("hidden_activation") if gemma else self.raw.get("hidden_act")
        name = name or ("gelu_pytorch_tanh" if gemma else "silu")
        if name not in _ACTIVATIONS:
            raise UnsupportedFeature(f"activation {name!r}", f"{', '.join(_ACTIVATIONS)} are implemented")
        return _ACTIVATIONS[name]

    def soft_cap(self, key: str, gemma2_default: float) -> float | None:
        if self.family not in ("gemma2", "gemma3"):
            return None
        value = self.raw.get(key, gemma2_default if self.family == "gemma2" else None)
        return None if value is None else self.number(key, gemma2_default)

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = 1 << 40) -> int:
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise CorruptModel(self.file, f"{key} is {value!r}, not an integer from {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise CorruptModel(self.file, f"{key} is {value!r}, not a positive number")
        return float(value)


_DEFAULT_CONTEXT: Final[Mapping[Family, int]] = MappingProxyType(
    cast(
        "dict[Family, int]",
        {
            "llama": 2048,
            "mistral": 131072,
            "qwen2": 32768,
            "qwen3": 32768,
            "mixtral": 131072,
            "qwen3_moe": 32768,
            "gemma2": 8192,
            "gemma3": 131072,
        },
    )
)
_DEFAULT_KV_HEADS: Final = MappingProxyType({"mistral": 8, "mixtral": 8, "qwen3_moe": 4})
