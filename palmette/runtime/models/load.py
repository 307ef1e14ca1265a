"""From a name (see `find`) to a model ready to run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import torch

from palmette.errors import InvalidOption
from palmette.kernels.cpu.library import choose_instruction_set, library
from palmette.native import NotBuilt, is_wanted
from palmette.runtime.models.compiled import CompiledDecoder, Precision, compile_weights, why_not_compiled
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.digest import model_digest
from palmette.runtime.models.find import EMBEDDED, find_model
from palmette.runtime.models.gguf import GGUFFile
from palmette.runtime.models.gguf_model import GGUFSource, gguf_config
from palmette.runtime.models.gguf_tokenizer import gguf_tokenizer
from palmette.runtime.models.hf_model import open_directory
from palmette.runtime.models.hf_tokenizer import directory_tokenizer
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.models.weights import WeightSource, assemble
from palmette.runtime.tokenizer import Tokenizer

__all__ = ["EMBEDDED", "find_model", "load_model"]

logger = logging.getLogger(__name__)

_TORCH_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CORE_DTYPES: Final = ("auto", "int8")


def load_model(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    cpu_kernels: str = "torch",
) -> LoadedModel:
    """Load a model with its tokenizer.

    Args:
        dtype: what weights are converted to; quantised ones are dequantised. Two more are the compiled core's: "auto"
            computes with the blocks that the file has (float32 without the core), "int8" quantises floats too.
        cpu_kernels: "torch", the reference; "auto", the compiled core where it is there and can compute this model,
            and a warning where not; or one of its instruction sets, "avx512", "avx2" or "portable".

    Raises:
        InvalidOption: a dtype that is none of these or needs the core where there is none; an instruction set that does
            not run here.
        ModelNotFound: nothing has this name; says the three ways to name a model.
        UnsupportedArchitecture, UnsupportedFeature: a model that this decoder would compute wrongly.
        CorruptModel: a file is broken; carries its name and, where known, the offset.
    """
    key = str(dtype).removeprefix("torch.")
    if key not in (*_TORCH_DTYPES, *_CORE_DTYPES):
        raise InvalidOption("dtype", dtype, ", ".join((*_TORCH_DTYPES, *_CORE_DTYPES)))
    path, name = find_model(name_or_path)
    config, source, tokenizer = _open_gguf(path) if path.is_file() else _open_directory(path)
    if cpu_kernels != "torch" and str(device) == "cpu" and key not in ("bfloat16", "float16"):
        compiled = _try_compiled(config, source, key, cpu_kernels, name)
        if compiled is not None:
            return LoadedModel(config, compiled, tokenizer, compiled.digest, name)
    if key == "int8":
        raise InvalidOption("dtype", dtype, "float32, bfloat16 or float16 without the compiled core")
    weights = assemble(config, source, dtype=_TORCH_DTYPES.get(key, torch.float32), device=device)
    return LoadedModel(config, Decoder(config, weights), tokenizer, model_digest(config, weights), name)


def _try_compiled(
    config: ModelConfig, source: WeightSource, dtype: str, cpu_kernels: str, name: str
) -> CompiledDecoder | None:
    """None where torch has to do it; says why, unless the user chose so."""
    if cpu_kernels == "auto" and not is_wanted():
        return None
    try:
        instruction_set = choose_instruction_set(cpu_kernels)
        reason = why_not_compiled(config)
    except NotBuilt as error:
        reason = str(error)
    if reason is not None:
        if cpu_kernels != "auto":
            raise InvalidOption("cpu_kernels", cpu_kernels, f"torch, as the compiled core cannot be used: {reason}")
        logger.warning("%s runs on torch, several times slower than the compiled core: %s", name, reason)
        return None
    precision: Precision = "float32" if dtype == "float32" else "int8" if dtype == "int8" else "auto"
    return compile_weights(config, source, library=library(), instruction_set=instruction_set, precision=precision)


def _open_gguf(path: Path) -> tuple[ModelConfig, WeightSource, Tokenizer]:
    file = GGUFFile(path)
    config = gguf_config(file)
    return config, GGUFSource(file, config), gguf_tokenizer(file)


def _open_directory(path: Path) -> tuple[ModelConfig, WeightSource, Tokenizer]:
    config, source = open_directory(path)
    return config, source, directory_tokenizer(path)
