"""A rank's part of a model, from what names the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from palmette.errors import InvalidOption
from palmette.runtime.byte_tokenizer import ByteTokenizer
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.find import find_model
from palmette.runtime.models.gguf import GGUFFile
from palmette.runtime.models.gguf_model import GGUFSource, gguf_config
from palmette.runtime.models.gguf_tokenizer import gguf_tokenizer
from palmette.runtime.models.hf_model import open_directory
from palmette.runtime.models.hf_tokenizer import directory_tokenizer
from palmette.runtime.models.load import choose_step_kernels, find_device
from palmette.runtime.models.tiny import RandomSource, tiny_config
from palmette.runtime.models.weights import WeightSource
from palmette.runtime.parallel.group import Group
from palmette.runtime.parallel.orders import AnyModel, RandomModel
from palmette.runtime.parallel.plan import check_size
from palmette.runtime.parallel.shards import load_shard
from palmette.runtime.tokenizer import Tokenizer

_DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True)
class WholeModel:
    """What is known of a model before its weights are read."""

    config: ModelConfig
    source: WeightSource
    read_tokenizer: Callable[[], Tokenizer]
    name: str
    dtype: torch.dtype | None  # None = the device's usual one
    gpu_kernels: str


def open_whole(model: AnyModel) -> WholeModel:
    """
    Raises:
        InvalidOption: a dtype that only the compiled core has.
        ModelNotFound, CorruptModel, UnsupportedArchitecture, UnsupportedFeature: the model.
    """
    options = model if isinstance(model, RandomModel) else model.options
    name, kernels = options.dtype, options.gpu_kernels
    if name not in _DTYPES:
        raise InvalidOption("dtype", name, "auto, float32, bfloat16 or float16 with tensor_parallel")
    dtype = _DTYPES[name]
    if not isinstance(model, RandomModel) and model.options.model_path == "tiny":
        model = RandomModel(tiny_config())
    if isinstance(model, RandomModel):
        short = f"random-{model.config.family}-{model.seed}"
        return WholeModel(model.config, RandomSource(model.seed), ByteTokenizer, short, dtype, kernels)
    path, short = find_model(model.options.model_path)
    if path.is_file():
        file = GGUFFile(path)
        config = gguf_config(file)
        return WholeModel(config, GGUFSource(file, config), partial(gguf_tokenizer, file), short, dtype, kernels)
    config, source = open_directory(path)
    return WholeModel(config, source, partial(directory_tokenizer, path), short, dtype, kernels)


def find_places(config: ModelConfig, *, size: int, device: str) -> str:
    """Where the ranks compute: "cpu", or "cuda" for one GPU each.

    Args:
        device: "auto" is "cuda" where there are GPUs.

    Raises:
        InvalidOption: the model cannot be cut so, or there are not so many GPUs.
    """
    check_size(config, size)
    if device == "auto":
        device = find_device(device).type
    if device not in ("cpu", "cuda"):
        raise InvalidOption("device", device, "'auto', 'cpu' or 'cuda' with tensor_parallel: ranks take the first GPUs")
    if device == "cuda" and size > torch.cuda.device_count():
        raise InvalidOption("tensor_parallel", size, f"at most {torch.cuda.device_count()}, the GPUs of this machine")
    return device


def rank_device(device: str, rank: int) -> torch.device:
    """One rank's: the r-th GPU is rank r's."""
    return torch.device("cuda", rank) if device == "cuda" else torch.device("cpu")


def open_shard(model: WholeModel, group: Group, device: torch.device) -> Decoder:
    """Read this rank's part.

    Raises:
        InvalidOption, CorruptModel: as load_shard.
    """
    usual = torch.bfloat16 if device.type == "cuda" else torch.float32
    kernels = choose_step_kernels(model.gpu_kernels, device, model.name)
    return load_shard(model.config, model.source, group, dtype=model.dtype or usual, device=device, kernels=kernels)
