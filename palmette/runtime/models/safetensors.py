"""Reading safetensors files: one, or several under an index. Every length is checked before it is used.

    header length u64 | header JSON: {name: {dtype, shape, data_offsets: [begin, end]}, ...} | data

Knows the container only; what the names mean is `hf_model`'s business.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from palmette.errors import CorruptModel, ModelNotFound

_DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
)
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    begin: int  # in the file
    end: int


class SafetensorsFile:
    """One memory-mapped file."""

    def __init__(self, path: Path) -> None:
        """Map the file and read its header.

        Raises:
            CorruptModel: truncated, or the header contradicts itself or the file's size.
            OSError: it cannot be opened.
        """
        self.path = path
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 8:
                raise CorruptModel(str(path), f"a safetensors file has at least 8 bytes, this one {size}", size)
            # Private pages: torch wants writable memory, and nobody writes.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        length = int.from_bytes(self._map[:8], "little")
        if length > size - 8:
            raise CorruptModel(str(path), f"its header claims {length} bytes, more than the file has", 0)
        try:
            header = json.loads(self._map[8 : 8 + length])
        except (ValueError, RecursionError) as error:
            raise CorruptModel(str(path), f"its header is not JSON: {error}", 8) from error
        if not isinstance(header, dict):
            raise CorruptModel(str(path), "its header is not a JSON object", 8)
        self._entries = {
            name: _entry(path, name, value, 8 + length, size)
            for name, value in header.items()
            if name != "__metadata__"
        }

    def names(self) -> list[str]:
        return list(self._entries)

    def tensor(self, name: str) -> Tensor:
        """A view of the file, shaped; not to be written to.

        Raises:
            CorruptModel: a data type that holds no floats.
        """
        entry = self._entries[name]
        if entry.dtype not in _DTYPES:
            raise CorruptModel(str(self.path), f"tensor {name!r} is of type {entry.dtype}, not a float", entry.begin)
        if entry.begin == entry.end:
            return torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
        raw = torch.frombuffer(self._map, dtype=torch.uint8, count=entry.end - entry.begin, offset=entry.begin)
        if entry.begin % _DTYPES[entry.dtype].itemsize:
            raw = raw.clone()  # a view as floats must be aligned
        return raw.view(_DTYPES[entry.dtype]).view(entry.shape)


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


def _entry(path: Path, name: str, value: object, data: int, size: int) -> _Entry:
    match value:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if all(
            isinstance(dim, int) and dim >= 0 for dim in shape
        ):
            pass
        case _:
            raise CorruptModel(str(path), f"tensor {name!r} has a malformed header entry", 8)
    if not 0 <= begin <= end <= size - data:
        raise CorruptModel(str(path), f"tensor {name!r} lies at {begin}..{end} of {size - data} data bytes", data)
    elements = 1
    for dim in shape:
        elements *= dim
    if dtype in _DTYPES and elements * _DTYPES[dtype].itemsize != end - begin:
        raise CorruptModel(str(path), f"tensor {name!r} of shape {shape} has {end - begin} bytes", data + begin)
    return _Entry(dtype, tuple(shape), data + begin, data + end)
