"""A transformers checkpoint directory: config.json, *.safetensors and tokenizer files, as a LoadedModel's parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from palmette.errors import CorruptModel, ModelNotFound
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.hf_config import model_config
from palmette.runtime.models.safetensors import SafetensorsFile, open_checkpoint, read_json
from palmette.runtime.models.weights import StoredBlocks

_LINEARS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "out": "self_attn.o_proj",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    }
)
_EXPERTS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "mixtral": MappingProxyType({"at": "block_sparse_moe", "gate": "w1", "up": "w3", "down": "w2"}),
        "qwen3_moe": MappingProxyType({"at": "mlp", "gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
    }
)
# As transformers 5 holds all experts of a layer, and writes them if told not to write the original format.
_FUSED_EXPERTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "gate": "mlp.experts.gate_up_proj",
        "up": "mlp.experts.gate_up_proj",
        "down": "mlp.experts.down_proj",
    }
)
_NORMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
    }
)
_SANDWICH_NORMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **_NORMS,
        "post_attention_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "post_mlp_norm": "post_feedforward_layernorm",
    }
)
# Where the decoder sits: alone, or inside a model with vision (transformers 5, then 4).
_PREFIXES: Final = ("model.", "model.language_model.", "language_model.model.")


class CheckpointSource:
    """The weights of a checkpoint directory, as `weights.WeightSource`."""

    def __init__(self, files: Mapping[str, SafetensorsFile], config: ModelConfig, directory: Path) -> None:
        self._files, self._config, self._directory = files, config, directory
        known = [p for p in _PREFIXES if p + "embed_tokens.weight" in files]
        if not known:
            raise CorruptModel(str(directory), "no tensor is named model.embed_tokens.weight")
        self._prefix = known[0]

    def has(self, name: str) -> bool:
        return self._name(name) in self._files

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        key = self._name(name)
        if key not in self._files:
            raise CorruptModel(str(self._directory), f"tensor {key!r} is missing")
        found = tuple(self._tensor(name, key).shape)
        if found != shape:
            where = "" if key.endswith((".weight", ".bias")) else f", for {name!r},"
            raise CorruptModel(
                str(self._files[key].path), f"{key!r} has{where} shape {found}, the config implies {shape}"
            )

    def blocks(self, name: str) -> StoredBlocks | None:
        return None  # the formats that are read hold floats

    def read_into(self, name: str, out: Tensor) -> None:
        self._fill(name, self._tensor(name, self._name(name)), out)

    def read_part_into(self, name: str, axis: int, part: slice, out: Tensor) -> None:
        """See runtime.parallel.shards.PartSource; files are mapped, so what is not asked for is not read."""
        tensor = self._tensor(name, self._name(name))
        self._fill(name, tensor.narrow(axis, part.start, part.stop - part.start), out)

    def _fill(self, name: str, tensor: Tensor, out: Tensor) -> None:
        key = self._name(name)
        out.copy_(tensor)
        if not out.sum(dtype=torch.float32).isfinite():  # one NaN or infinity survives every sum
            raise CorruptModel(str(self._files[key].path), f"tensor {key!r} holds numbers that are not finite")
        if self._config.sandwich_norms and name.endswith("norm"):
            out.add_(1.0)  # Gemma stores its norm weights less 1

    def _tensor(self, name: str, key: str) -> Tensor:
        """The tensor `key`, or of all experts' what `name` says."""
        tensor = self._files[key].tensor(key)
        if not key.endswith(tuple(_FUSED_EXPERTS.values())):
            return tensor
        _, _, _, expert, part = name.split(".")
        if tensor.ndim != 3 or tensor.shape[0] <= int(expert):
            shape = tuple(tensor.shape)
            raise CorruptModel(str(self._files[key].path), f"{key!r} has shape {shape}: there is no expert {expert}")
        mine, half = tensor[int(expert)], tensor.shape[1] // 2
        return mine if part == "down" else mine[:half] if part == "gate" else mine[half:]

    def _name(self, name: str) -> str:
        if name == "embedding":
            return self._prefix + "embed_tokens.weight"
        if name == "final_norm":
            return self._prefix + "norm.weight"
        if name == "head":
            return "language_model.lm_head.weight" if self._prefix.startswith("language_model") else "lm_head.weight"
        _, index, part = name.split(".", 2)
        at = f"{self._prefix}layers.{index}."
        if part == "router" or part.startswith("experts."):
            return self._expert_name(at, part)
        kind = "weight"
        if part.endswith(".bias"):
            part, kind = part.removesuffix(".bias"), "bias"
        norms = _SANDWICH_NORMS if self._config.sandwich_norms else _NORMS
        return f"{at}{_LINEARS.get(part) or norms[part]}.{kind}"

    def _expert_name(self, at: str, part: str) -> str:
        """ "router" and "experts.{n}.{gate, up, down}" of the layer at `at`."""
        names = _EXPERTS[self._config.family]
        if part == "router":
            fused = f"{at}mlp.gate.weight"  # of both families, where the experts are fused
            return fused if fused in self._files else f"{at}{names['at']}.gate.weight"
        _, expert, part = part.split(".")
        fused = at + _FUSED_EXPERTS[part]
        return fused if fused in self._files else f"{at}{names['at']}.experts.{expert}.{names[part]}.weight"


def open_directory(directory: Path) -> tuple[ModelConfig, CheckpointSource]:
    """Config and weights of a checkpoint directory.

    Raises:
        ModelNotFound: no config.json or no *.safetensors.
        UnsupportedArchitecture, UnsupportedFeature, CorruptModel: as reading them does.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ModelNotFound(str(directory), "the directory has no config.json")
    config = model_config(read_json(path), str(path))
    source = CheckpointSource(open_checkpoint(directory), config, directory)
    if not config.tie_embeddings and not source.has("head"):
        config = replace(config, tie_embeddings=True)  # fine-tunes leave the head out when it is the embedding
    return config, source
