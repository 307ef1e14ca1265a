"""What a GGUF file's metadata and tensor names mean: a ModelConfig and a source of weights.

Family by family the file format leaves things unsaid that llama.cpp knows by heart; the constants here are those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palmette.errors import CorruptModel, UnsupportedArchitecture, UnsupportedFeature
from palmette.kernels.rope import RopeSpec, yarn_attention_factor
from palmette.runtime.models.config import MAX_CONTEXT, MAX_EXPERTS, ExpertConfig, Family, LayerConfig, ModelConfig
from palmette.runtime.models.gguf import GGUFFile, GGUFTensor
from palmette.runtime.models.gguf_blocks import dequantize
from palmette.runtime.models.weights import StoredBlocks

# Mistral's files call themselves llama; Mixtral's too, and have experts.
_FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {
        "llama": "llama",
        "qwen2": "qwen2",
        "qwen3": "qwen3",
        "qwen3moe": "qwen3_moe",
        "gemma2": "gemma2",
        "gemma3": "gemma3",
    }
)
_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "attention_norm": "attn_norm",
        "q": "attn_q",
        "k": "attn_k",
        "v": "attn_v",
        "out": "attn_output",
        "mlp_norm": "ffn_norm",
        "gate": "ffn_gate",
        "up": "ffn_up",
        "down": "ffn_down",
        "router": "ffn_gate_inp",
        "q_norm": "attn_q_norm",
        "k_norm": "attn_k_norm",
        "post_attention_norm": "post_attention_norm",
        "post_mlp_norm": "post_ffw_norm",
    }
)
_GEMMA_WINDOW_PATTERN: Final = MappingProxyType({"gemma2": 2, "gemma3": 6})  # every n-th layer sees everything
# The 27B models scale scores by hidden_size / num_heads instead of head_dim; they are known by their layers.
_GEMMA_27B_LAYERS: Final = MappingProxyType({"gemma2": 46, "gemma3": 62})
_GEMMA3_LOCAL_THETA: Final = 10000.0
_EXPERTS: Final = MappingProxyType({"gate": "ffn_gate_exps", "up": "ffn_up_exps", "down": "ffn_down_exps"})
# What a router may do besides softmax and top-k, and the values that mean it does not.
_OTHER_ROUTERS: Final[Mapping[str, tuple[object, ...]]] = MappingProxyType(
    {
        "expert_shared_count": (None, 0),
        "expert_shared_feed_forward_length": (None, 0),
        "expert_gating_func": (None, 0, 1),  # 1 is softmax
        "expert_weights_scale": (None, 0.0, 1.0),
        "expert_group_count": (None, 0, 1),
    }
)
_FLOATS: Final = ("F32", "F16", "BF16")


class GGUFSource:
    """The weights of a GGUF file, dequantised as they are read, as `weights.WeightSource`."""

    def __init__(self, file: GGUFFile, config: ModelConfig) -> None:
        self._file, self._config = file, config
        self._pairs_neighbours = file.metadata.get("general.architecture") == "llama"

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        key, path = _tensor_name(name), str(self._file.path)
        tensor = self._file.tensors.get(key)
        if tensor is None:
            raise CorruptModel(path, f"tensor {key!r} is missing")
        expert = _expert(name)
        if expert is not None:
            num_experts = tensor.shape[0]
            if len(tensor.shape) != 3 or expert >= num_experts:
                raise CorruptModel(
                    path, f"{key!r} has shape {tensor.shape}: there is no expert {expert}", tensor.offset
                )
            shape = (num_experts, *shape)
        if tensor.shape != shape:
            raise CorruptModel(path, f"{key!r} has shape {tensor.shape}, the metadata imply {shape}", tensor.offset)

    def blocks(self, name: str) -> StoredBlocks | None:
        tensor, data = self._stored(name)
        if tensor.kind in _FLOATS:
            return None
        return StoredBlocks(tensor.kind, data, self._row_order(name, tensor.shape[0]))

    def read_into(self, name: str, out: Tensor) -> None:
        tensor, data = self._stored(name)
        order = self._row_order(name, tensor.shape[0])
        if order is not None:
            data = data.reshape(tensor.shape[0], -1)[order].reshape(-1)
        values = out if out.dtype == torch.float32 else torch.empty(out.shape, dtype=torch.float32)
        try:
            dequantize(tensor.kind, data, values.view(-1).numpy())
        except ValueError as error:
            raise self._not_finite(tensor, str(error)) from error
        if values is not out:
            out.copy_(values)

    def _stored(self, name: str) -> tuple[GGUFTensor, NDArray[np.uint8]]:
        """A tensor and its bytes; of an expert, its own: blocks lie in rows, so a share of the tensor is one run."""
        tensor = self._file.tensors[_tensor_name(name)]
        data, expert = self._file.data(tensor), _expert(name)
        return tensor, data if expert is None else data.reshape(tensor.shape[0], -1)[expert]

    def _row_order(self, name: str, num_rows: int) -> NDArray[np.int64] | None:
        """Llama's files pair the rotated dimensions (2i, 2i + 1); kernels.rope pairs (i, i + dim / 2)."""
        if not self._pairs_neighbours or not name.removesuffix(".bias").endswith((".q", ".k")):
            return None
        rows = np.arange(num_rows, dtype=np.int64).reshape(-1, self._config.head_dim // 2, 2)
        return rows.swapaxes(1, 2).reshape(-1)

    def _not_finite(self, tensor: GGUFTensor, reason: str) -> CorruptModel:
        return CorruptModel(str(self._file.path), f"tensor {tensor.name!r}: {reason}", tensor.offset)


def gguf_config(file: GGUFFile) -> ModelConfig:
    """Read the metadata.

    Raises:
        UnsupportedArchitecture: the architecture is not in the table.
        UnsupportedFeature: a rope scaling or a kind of router that is not implemented.
        CorruptModel: a key is missing, of the wrong type or impossible.
    """
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _FAMILIES:
        raise UnsupportedArchitecture(str(architecture), list(_FAMILIES))
    return _Metadata(file, architecture).config()


@dataclass(frozen=True, slots=True)
class _Metadata:
    file: GGUFFile
    architecture: str

    def config(self) -> ModelConfig:
        family = _FAMILIES[self.architecture]
        if family == "llama" and self.integer("expert_count", 0):
            family = "mixtral"
        gemma = family.startswith("gemma")
        hidden_size, num_heads = self.integer("embedding_length"), self.integer("attention.head_count")
        num_layers = self.integer("block_count")
        num_kv_heads = self.integer("attention.head_count_kv", num_heads)
        head_dim = self.integer("attention.key_length", hidden_size // max(num_heads, 1))
        if (
            min(hidden_size, num_heads, num_kv_heads, head_dim, num_layers) < 1
            or num_heads % num_kv_heads
            or head_dim % 2
        ):
            raise self.corrupt(f"{num_heads} heads of {head_dim} over {num_kv_heads} KV heads do not divide")
        if self.integer("attention.value_length", head_dim) != head_dim:
            raise UnsupportedFeature("values of another size than keys", "no supported family has them")
        embedding = self.file.tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise self.corrupt("there is no matrix token_embd.weight")
        if num_layers * 9 > len(self.file.tensors):  # each has that many, so this bounds what follows
            raise self.corrupt(f"{num_layers} layers cannot consist of {len(self.file.tensors)} tensors")
        scale_dim = hidden_size // num_heads if num_layers == _GEMMA_27B_LAYERS.get(family) else head_dim
        has_bias = "blk.0.attn_q.bias" in self.file.tensors
        layers = tuple(self.layer(i, family, head_dim) for i in range(num_layers))
        return ModelConfig(
            family=family,
            vocab_size=embedding.shape[0],
            hidden_size=hidden_size,
            intermediate_size=self.integer("feed_forward_length"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            context_len=self.integer("context_length", most=MAX_CONTEXT),
            norm_eps=self.number("attention.layer_norm_rms_epsilon"),
            layers=layers,
            activation="gelu_tanh" if gemma else "silu",
            tie_embeddings="output.weight" not in self.file.tensors,
            qkv_bias=has_bias,
            out_bias="blk.0.attn_output.bias" in self.file.tensors,
            mlp_bias="blk.0.ffn_gate.bias" in self.file.tensors,
            qk_norm="blk.0.attn_q_norm.weight" in self.file.tensors,
            sandwich_norms=gemma,
            embedding_scale=hidden_size**0.5 if gemma else 1.0,
            attention_scale=scale_dim**-0.5,
            attention_soft_cap=self.number("attn_logit_softcapping", 50.0) if family == "gemma2" else None,
            logit_soft_cap=self.number("final_logit_softcapping", 30.0) if family == "gemma2" else None,
            experts=self.experts() if any(layer.is_sparse for layer in layers) else None,
        )

    def experts(self) -> ExpertConfig:
        for key, plain in _OTHER_ROUTERS.items():
            if self.value(key) not in plain:
                reason = "of routers, softmax over the experts and the top k of them is implemented"
                raise UnsupportedFeature(f"{key}={self.value(key)!r}", reason)
        num_experts = self.integer("expert_count", most=MAX_EXPERTS)
        top_k = self.integer("expert_used_count", most=num_experts)
        # Mixtral's is the length of a dense layer; llama.cpp normalises the weights of both architectures.
        size = self.integer("expert_feed_forward_length", self.integer("feed_forward_length"))
        if min(num_experts, top_k, size) < 1:
            raise self.corrupt(f"{top_k} of {num_experts} experts of size {size}")
        return ExpertConfig(num_experts, top_k, size, normalise=bool(self.value("expert_weights_norm") in (None, True)))

    def layer(self, index: int, family: Family, head_dim: int) -> LayerConfig:
        pattern = _GEMMA_WINDOW_PATTERN.get(family)
        window: int | None = None
        if pattern is not None and (index + 1) % pattern:
            window = self.integer("attention.sliding_window", 4096)
        elif pattern is None and family in ("llama", "mixtral"):
            window = self.integer("attention.sliding_window", 0) or None  # early Mistral
        if family == "gemma3" and window is not None:
            return LayerConfig(window, RopeSpec(head_dim, self.number("rope.freq_base_swa", _GEMMA3_LOCAL_THETA)))
        return LayerConfig(window, self.rope(head_dim), f"blk.{index}.ffn_gate_inp.weight" in self.file.tensors)

    def rope(self, head_dim: int) -> RopeSpec:
        theta = self.number("rope.freq_base", 10000.0)
        dim = self.integer("rope.dimension_count", head_dim)
        if not 0 < dim <= head_dim or dim % 2:
            raise self.corrupt(f"rope.dimension_count is {dim}, a head has {head_dim}")
        divisors = self.file.tensors.get("rope_freqs.weight")
        if divisors is not None:
            if divisors.shape != (dim // 2,):
                raise self.corrupt(f"rope_freqs.weight has shape {divisors.shape}", divisors.offset)
            values = np.empty(dim // 2, np.float32)
            try:
                dequantize(divisors.kind, self.file.data(divisors), values)
            except ValueError as error:
                raise self.corrupt(f"rope_freqs.weight: {error}", divisors.offset) from error
            return RopeSpec(dim, theta, freq_divisors=tuple(values.tolist()))
        kind = self.value("rope.scaling.type") or "none"
        if kind == "none":
            return RopeSpec(dim, theta)
        factor = self.number("rope.scaling.factor", 1.0)
        if kind == "linear":
            return RopeSpec(dim, theta, kind="linear", factor=factor)
        if kind == "yarn":
            original = self.integer("rope.scaling.original_context_length")
            amplitude = yarn_attention_factor(factor)
            return RopeSpec(
                dim, theta, kind="yarn", factor=factor, original_context_len=original, attention_factor=amplitude
            )
        raise UnsupportedFeature(f"rope scaling {kind!r}", "none, linear, yarn and stored factors are implemented")

    def value(self, key: str) -> object:
        return self.file.metadata.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int | None = None, *, most: int = 1 << 40) -> int:
        value = self.value(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise self.corrupt(f"{self.architecture}.{key} is {value!r}, not an integer from 0 to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.value(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self.corrupt(f"{self.architecture}.{key} is {value!r}, not a positive number")
        return float(value)

    def corrupt(self, reason: str, offset: int | None = None) -> CorruptModel:
        return CorruptModel(str(self.file.path), reason, offset)


def _tensor_name(name: str) -> str:
    if name == "embedding":
        return "token_embd.weight"
    if name == "final_norm":
        return "output_norm.weight"
    if name == "head":
        return "output.weight"
    _, index, part = name.split(".", 2)
    if part.startswith("experts."):
        return f"blk.{index}.{_EXPERTS[part.rpartition('.')[2]]}.weight"
    if part.endswith(".bias"):
        return f"blk.{index}.{_NAMES[part.removesuffix('.bias')]}.bias"
    return f"blk.{index}.{_NAMES[part]}.weight"


def _expert(name: str) -> int | None:
    """The number of the expert whose tensor this is."""
    parts = name.split(".")
    return int(parts[3]) if parts[2:3] == ["experts"] else None
