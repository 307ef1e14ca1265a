"""The model that a runtime's options name, "tiny" included."""

from __future__ import annotations

from palmette.runtime.config import ModelOptions
from palmette.runtime.models.load import load_model
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.models.tiny import tiny_model


def open_model(options: ModelOptions) -> LoadedModel:
    """
    Raises:
        ModelNotFound, CorruptModel, UnsupportedArchitecture: the model.
        InvalidOption: a dtype or instruction set that does not go here.
    """
    if options.model_path == "tiny":
        return tiny_model()
    return load_model(options.model_path, dtype=options.dtype, device=options.device, cpu_kernels=options.cpu_kernels)
