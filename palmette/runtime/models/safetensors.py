"""A checkpoint's safetensors files: one, or several under an index.

Knows the container only; what the names mean is `hf_model`'s business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from palmette.errors import CorruptModel, ModelNotFound

if TYPE_CHECKING:  # the library imports torch with the first file, and reading JSON needs neither
    from torch import Tensor

_INDEX = "model.safetensors.index.json"


class SafetensorsFile:
    """One memory-mapped file, read and checked by the safetensors library."""

    def __init__(self, path: Path) -> None:
        """Map the file and read its header.

        Raises:
            CorruptModel: truncated, or the header contradicts itself or the file's size.
            OSError: it cannot be opened.
        """
        self.path = path
        try:
            self._file: Any = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise CorruptModel(str(path), f"its header is refused: {error}", _header_place(path)) from error

    def names(self) -> list[str]:
        names: list[str] = list(self._file.keys())
        return names

    def tensor(self, name: str) -> Tensor:
        """A tensor as stored.

        Raises:
            CorruptModel: a data type that holds no floats.
        """
        tensor: Tensor = self._file.get_tensor(name)
        if not tensor.is_floating_point():
            raise CorruptModel(str(self.path), f"tensor {name!r} is of type {tensor.dtype}, not a float")
        return tensor


def open_checkpoint(directory: Path) -> Mapping[str, SafetensorsFile]:
    """The file of every tensor in a checkpoint directory, by tensor name.

    Raises:
        ModelNotFound: no *.safetensors there.
        CorruptModel: a file is, or the index names files or tensors that are not there.
    """
    index = directory / _INDEX
    if not index.exists():
        paths = sorted(directory.glob("*.safetensors"))
        if not paths:
            raise ModelNotFound(str(directory), "the directory has no *.safetensors files")
        files = [SafetensorsFile(path) for path in paths]
        return {name: file for file in files for name in file.names()}
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CorruptModel(str(index), "it has no weight_map of tensor names to file names")
    by_name: dict[str, SafetensorsFile] = {}
    for shard in sorted(set(weight_map.values())):
        path = directory / shard
        if path.parent != directory or not path.is_file():
            raise CorruptModel(str(index), f"it names the file {shard!r}, which is not in the directory")
        by_name[shard] = SafetensorsFile(path)
    for name, shard in weight_map.items():
        if name not in by_name[shard].names():
            raise CorruptModel(str(directory / shard), f"the index promises tensor {name!r}, which is not in it")
    return {name: by_name[shard] for name, shard in weight_map.items()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model directory.

    Raises:
        CorruptModel: unreadable as JSON, or no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptModel(str(path), f"it is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptModel(str(path), "it is not a JSON object")
    return value


def _header_place(path: Path) -> int:
    """Where the fault lies: the length that opens the file, or the header behind it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return 8 if 8 + length <= file.seek(0, 2) else 0
