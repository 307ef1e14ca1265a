"""The model that a runtime's options name, "tiny" included."""

from __future__ import annotations

from palmette.runtime.config import ModelOptions
from palmette.runtime.models.load import choose_step_kernels, find_device, load_model
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.parallel.orders import StoredModel
from palmette.runtime.parallel.start import start_parallel


def open_model(options: ModelOptions) -> LoadedModel:
    """
    Raises:
        ModelNotFound, CorruptModel, UnsupportedArchitecture: the model.
        InvalidOption: a dtype or instruction set that does not go here.
    """
    if options.tensor_parallel > 1:
        split = start_parallel(StoredModel(options), options.tensor_parallel, device=options.device)
        return LoadedModel(split.config, split, split.tokenizer, split.digest, split.name)
    if options.model_path == "tiny":
        device = find_device(options.device)
        return tiny_model(device=device, kernels=choose_step_kernels(options.gpu_kernels, device, "tiny"))
    return load_model(
        options.model_path,
        dtype=options.dtype,
        device=options.device,
        cpu_kernels=options.cpu_kernels,
        gpu_kernels=options.gpu_kernels,
    )
