"""From a name (see `find`) to a model ready to run."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Final

import torch

from palmette.errors import InvalidOption
from palmette.kernels.cpu.library import VERSION, choose_instruction_set, library
from palmette.kernels.step_kernels import StepKernels, TorchKernels
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
from palmette.runtime.models.quantized import quantize_weights
from palmette.runtime.models.tile_cache import tile_cache
from palmette.runtime.models.weights import WeightSource, assemble
from palmette.runtime.tokenizer import Tokenizer

__all__ = ["EMBEDDED", "choose_step_kernels", "find_device", "find_model", "load_model"]

logger = logging.getLogger(__name__)

_TORCH_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_OTHER_DTYPES: Final = ("auto", "int8", "fp8")
_GPU_KERNELS: Final = ("auto", "torch", "triton")


def load_model(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    cpu_kernels: str = "torch",
    gpu_kernels: str = "auto",
) -> LoadedModel:
    """Load a model with its tokenizer.

    Args:
        dtype: what weights are converted to; quantised ones are dequantised. Three more: "auto", on a CPU the blocks
            that the file has, where the compiled core computes, else float32, and on a GPU bfloat16; "int8", 8-bit
            weights, also of floats; "fp8", the same in float8 on a GPU.
        cpu_kernels: "torch", the reference; "auto", the compiled core where it is there and can compute this model,
            and a warning where not; or one of its instruction sets, "avx512", "avx2" or "portable".
        device: "cpu", "cuda", or "auto": the GPU where there is one.
        gpu_kernels: "auto", Triton's where the device is CUDA and triton is there; "torch", the reference; "triton",
            also on a CPU, where its interpreter (TRITON_INTERPRET=1) shows what they compute.

    Raises:
        InvalidOption: a dtype that is none of these or needs the core where there is none; an instruction set that does
            not run here.
        ModelNotFound: nothing has this name; says the three ways to name a model.
        UnsupportedArchitecture, UnsupportedFeature: a model that this decoder would compute wrongly.
        CorruptModel: a file is broken; carries its name and, where known, the offset.
    """
    device = find_device(device)
    key = str(dtype).removeprefix("torch.")
    if key not in (*_TORCH_DTYPES, *_OTHER_DTYPES):
        raise InvalidOption("dtype", dtype, ", ".join((*_TORCH_DTYPES, *_OTHER_DTYPES)))
    path, name = find_model(name_or_path)
    opened = _open_gguf(path, name) if path.is_file() else _open_directory(path, name)
    model, digest = _load_weights(opened, key, device, cpu_kernels, gpu_kernels)
    return LoadedModel(opened.config, model, opened.tokenizer(), digest, name)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A model whose weights are not read yet."""

    name: str
    files: Sequence[Path]  # its weights are in
    config: ModelConfig
    source: WeightSource
    tokenizer: Callable[[], Tokenizer]  # made by the first call, whoever has time for it


@contextmanager
def _no_collections() -> Iterator[None]:
    """A vocabulary is a hundred thousand objects, for which the collector would search everything again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _load_weights(
    opened: _Opened, dtype: str, device: torch.device, cpu_kernels: str, gpu_kernels: str
) -> tuple[Decoder | CompiledDecoder, str]:
    """The model and its digest."""
    on_cpu = device.type == "cpu" and gpu_kernels != "triton"
    if cpu_kernels != "torch" and on_cpu and dtype not in ("bfloat16", "float16"):
        compiled = _try_compiled(opened, dtype, cpu_kernels)
        if compiled is not None:
            return compiled, compiled.digest
    if on_cpu and dtype in ("int8", "fp8"):
        raise InvalidOption("dtype", dtype, "float32, bfloat16 or float16 without the compiled core")
    kernels = choose_step_kernels(gpu_kernels, device, opened.name)
    default = torch.bfloat16 if device.type == "cuda" else torch.float32
    weights = assemble(opened.config, opened.source, dtype=_TORCH_DTYPES.get(dtype, default), device=device)
    digest = model_digest(opened.config, weights)
    if dtype in ("int8", "fp8"):
        weights = quantize_weights(weights, "int8" if dtype == "int8" else "fp8", with_triton=kernels.walks_pages)
        digest = f"{digest}-{dtype}"
    return Decoder(opened.config, weights, kernels), digest


def find_device(device: torch.device | str) -> torch.device:
    """The device of a name, "auto" included.

    Raises:
        InvalidOption: there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InvalidOption("device", str(device), f"'cpu', or 'cuda' where there is a GPU ({error})") from error
    if found.index:
        raise InvalidOption("device", str(device), "'cuda', with CUDA_VISIBLE_DEVICES naming the GPU")
    return found


def choose_step_kernels(gpu_kernels: str, device: torch.device, name: str) -> StepKernels:
    """Who computes on torch's tensors; see load_model."""
    if gpu_kernels not in _GPU_KERNELS:
        raise InvalidOption("gpu_kernels", gpu_kernels, ", ".join(_GPU_KERNELS))
    if gpu_kernels == "torch" or (gpu_kernels == "auto" and device.type != "cuda"):
        return TorchKernels()
    try:
        # triton is an optional dependency, which not every platform has
        from palmette.kernels.gpu.launch import INTERPRETED
        from palmette.kernels.gpu.step_kernels import TritonKernels
    except ImportError as error:
        if gpu_kernels == "triton":
            raise InvalidOption("gpu_kernels", gpu_kernels, f"'torch': triton cannot be imported ({error})") from error
        logger.warning("%s runs on torch, many times slower than Triton's kernels: %s", name, error)
        return TorchKernels()
    if device.type == "cpu" and not INTERPRETED:
        raise InvalidOption("gpu_kernels", gpu_kernels, "'torch' on a CPU, or set TRITON_INTERPRET=1 before the start")
    return TritonKernels()


def _try_compiled(opened: _Opened, dtype: str, cpu_kernels: str) -> CompiledDecoder | None:
    """None where torch has to do it; says why, unless the user chose so."""
    if cpu_kernels == "auto" and not is_wanted():
        return None
    try:
        instruction_set = choose_instruction_set(cpu_kernels)
        reason = why_not_compiled(opened.config)
    except NotBuilt as error:
        reason = str(error)
    if reason is not None:
        if cpu_kernels != "auto":
            raise InvalidOption("cpu_kernels", cpu_kernels, f"torch, as the compiled core cannot be used: {reason}")
        logger.warning("%s runs on torch, several times slower than the compiled core: %s", opened.name, reason)
        return None
    precision: Precision = "float32" if dtype == "float32" else "int8" if dtype == "int8" else "auto"
    return compile_weights(
        opened.config,
        opened.source,
        library=library(),
        instruction_set=instruction_set,
        precision=precision,
        cache=tile_cache(opened.files, precision, f"{VERSION} {opened.config}"),
        meanwhile=opened.tokenizer,
    )


def _open_gguf(path: Path, name: str) -> _Opened:
    with _no_collections():
        file = GGUFFile(path)
    config = gguf_config(file)
    read_tokenizer = _no_collections()(partial(gguf_tokenizer, file))
    return _Opened(name, [path], config, GGUFSource(file, config), cache(read_tokenizer))


def _open_directory(path: Path, name: str) -> _Opened:
    config, source = open_directory(path)
    files = list(path.glob("*.safetensors"))
    return _Opened(name, files, config, source, cache(partial(directory_tokenizer, path)))
