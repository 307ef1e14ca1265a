"""The tokenizer of a model without its weights, for processes that prepare requests but run none. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from palmette.runtime.byte_tokenizer import ByteTokenizer
from palmette.runtime.models.find import find_model
from palmette.runtime.models.gguf import GGUFFile
from palmette.runtime.models.gguf_tokenizer import gguf_tokenizer
from palmette.runtime.models.hf_tokenizer import directory_tokenizer
from palmette.runtime.tokenizer import Tokenizer

_TINY: Final = ("tiny", "tiny-llama-0")  # as a model path, and the name that `tiny_model()` goes by


def tokenizer_of(model_path: str | Path) -> tuple[Tokenizer, str]:
    """The tokenizer, with its chat template, and the short name of the model that `load_model` would load.

    Args:
        model_path: whatever `load_model` takes, or "tiny": the tokenizer of `tiny_model()`.

    Raises:
        ModelNotFound: nothing has this name, or the directory has no tokenizer.json.
        CorruptModel: a file is broken.
        UnsupportedFeature: a kind of tokenizer that cannot be read.
    """
    if model_path == _TINY[0]:
        return ByteTokenizer(), _TINY[1]
    path, name = find_model(model_path)
    return (gguf_tokenizer(GGUFFile(path)) if path.is_file() else directory_tokenizer(path)), name
