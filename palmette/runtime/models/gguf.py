"""Reading a GGUF file's header: metadata, and where each tensor lies. Bounds-checked, no tensor is touched.

Little-endian, versions 2 and 3:

    "GGUF" | version u32 | tensors u64 | pairs u64
    pairs x ( key string | type u32 | value )           string = length u64, bytes; array = type u32, count u64, values
    tensors x ( name string | dims u32 | dims x u64, innermost first | type u32 | offset u64 from the data's begin )
    padding to general.alignment | data

Nothing is allocated by a length the file claims before that length is known to fit into the file. Knows the container
only: architectures are `gguf_model`'s business, block formats `gguf_blocks`'s.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from palmette.errors import CorruptModel

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")

_STRING, _ARRAY = 8, 9
_STRINGS_AT_ONCE, _STRING_BYTES = 1 << 14, 24  # strings that are looked at together, and bytes of one on average
_SCALARS: Final[Mapping[int, struct.Struct]] = MappingProxyType(
    {
        0: struct.Struct("<B"),
        1: struct.Struct("<b"),
        2: struct.Struct("<H"),
        3: struct.Struct("<h"),
        4: _U32,
        5: struct.Struct("<i"),
        6: struct.Struct("<f"),
        7: struct.Struct("<?"),
        10: _U64,
        11: struct.Struct("<q"),
        12: struct.Struct("<d"),
    }
)

# type id -> (name, elements of a block, bytes of a block)
BLOCK_TYPES: Final[Mapping[int, tuple[str, int, int]]] = MappingProxyType(
    {
        0: ("F32", 1, 4),
        1: ("F16", 1, 2),
        2: ("Q4_0", 32, 18),
        3: ("Q4_1", 32, 20),
        6: ("Q5_0", 32, 22),
        7: ("Q5_1", 32, 24),
        8: ("Q8_0", 32, 34),
        9: ("Q8_1", 32, 36),
        10: ("Q2_K", 256, 84),
        11: ("Q3_K", 256, 110),
        12: ("Q4_K", 256, 144),
        13: ("Q5_K", 256, 176),
        14: ("Q6_K", 256, 210),
        15: ("Q8_K", 256, 292),
        16: ("IQ2_XXS", 256, 66),
        17: ("IQ2_XS", 256, 74),
        18: ("IQ3_XXS", 256, 98),
        19: ("IQ1_S", 256, 50),
        20: ("IQ4_NL", 32, 18),
        21: ("IQ3_S", 256, 110),
        22: ("IQ2_S", 256, 82),
        23: ("IQ4_XS", 256, 136),
        24: ("I8", 1, 1),
        25: ("I16", 1, 2),
        26: ("I32", 1, 4),
        27: ("I64", 1, 8),
        28: ("F64", 1, 8),
        29: ("IQ1_M", 256, 56),
        30: ("BF16", 1, 2),
        34: ("TQ1_0", 256, 54),
        35: ("TQ2_0", 256, 66),
        39: ("MXFP4", 32, 17),
    }
)

Value: TypeAlias = "int | float | bool | str | list[int] | list[float] | list[bool] | list[str]"


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Where a tensor lies."""

    name: str
    shape: tuple[int, ...]  # outermost first, as numpy and torch have it
    kind: str  # block format
    offset: int  # of its first byte in the file
    num_bytes: int


class GGUFFile:
    """A parsed header over a memory-mapped file."""

    def __init__(self, path: Path) -> None:
        """Map the file and read its header.

        Raises:
            CorruptModel: it is no GGUF file, is truncated, or contradicts itself; carries the offset.
            OSError: it cannot be opened.
        """
        self.path = path
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise CorruptModel(str(path), f"a GGUF header has at least 24 bytes, the file {size}", size)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        cursor = _Cursor(self._map, str(path))
        if cursor.take(4) != b"GGUF":
            raise cursor.corrupt("it does not begin with GGUF", 0)
        self.version = cursor.u32()
        if self.version not in (2, 3):
            raise cursor.corrupt(f"version {self.version}; versions 2 and 3, little-endian, can be read", 4)
        num_tensors = cursor.count("tensors", least_bytes=8 + 4 + 4 + 8)
        num_pairs = cursor.count("metadata pairs", least_bytes=8 + 4 + 1)
        self.metadata: dict[str, Value] = {}
        for _ in range(num_pairs):
            at = cursor.at
            key = cursor.string()
            if key in self.metadata:
                raise cursor.corrupt(f"metadata key {key!r} stands there twice", at)
            self.metadata[key] = cursor.value()
        heads = [cursor.tensor_head() for _ in range(num_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise cursor.corrupt(f"general.alignment is {alignment!r}, not a power of two", cursor.at)
        data = -(-cursor.at // alignment) * alignment
        self.tensors: dict[str, GGUFTensor] = {}
        for head in heads:
            if head.name in self.tensors:
                raise cursor.corrupt(f"tensor {head.name!r} stands there twice", head.at)
            self.tensors[head.name] = head.placed(data, alignment, cursor)

    def data(self, tensor: GGUFTensor) -> NDArray[np.uint8]:
        """The tensor's bytes, a read-only view of the file."""
        return np.frombuffer(self._map, np.uint8, tensor.num_bytes, tensor.offset)


@dataclass(frozen=True, slots=True)
class _TensorHead:
    at: int
    name: str
    dims: tuple[int, ...]  # innermost first
    kind: int
    offset: int  # from the begin of the data

    def placed(self, data: int, alignment: int, cursor: _Cursor) -> GGUFTensor:
        if self.kind not in BLOCK_TYPES:
            raise cursor.corrupt(f"tensor {self.name!r} has the unknown type {self.kind}", self.at)
        kind, block, block_bytes = BLOCK_TYPES[self.kind]
        elements = 1
        for dim in self.dims:
            elements *= dim
        if elements == 0 or self.dims[0] % block:
            raise cursor.corrupt(f"tensor {self.name!r} of shape {self.dims} cannot consist of {kind} blocks", self.at)
        num_bytes = elements // block * block_bytes
        begin = data + self.offset
        if self.offset % alignment:
            raise cursor.corrupt(f"tensor {self.name!r} begins at {self.offset}, not aligned to {alignment}", self.at)
        if begin + num_bytes > cursor.size:
            missing = begin + num_bytes - cursor.size
            raise cursor.corrupt(f"tensor {self.name!r} ends {missing} bytes behind the end of the file", cursor.size)
        return GGUFTensor(self.name, tuple(reversed(self.dims)), kind, begin, num_bytes)


class _Cursor:
    """A position in the file that cannot leave it."""

    def __init__(self, data: mmap.mmap, file: str) -> None:
        self._data, self._file = data, file
        self.at, self.size = 0, len(data)

    def corrupt(self, reason: str, offset: int) -> CorruptModel:
        return CorruptModel(self._file, reason, offset)

    def take(self, num_bytes: int) -> bytes:
        begin = self._advance(num_bytes)
        return self._data[begin : begin + num_bytes]

    def u32(self) -> int:
        return int(_U32.unpack_from(self._data, self._advance(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack_from(self._data, self._advance(8))[0])

    def count(self, what: str, *, least_bytes: int) -> int:
        """A number of things that each take at least so many bytes: more than fit is nonsense."""
        at = self.at
        number = self.u64()
        if number * least_bytes > self.size - self.at:
            raise self.corrupt(f"it claims {number} {what}, which do not fit into its {self.size} bytes", at)
        return number

    def string(self) -> str:
        length = self.u64()
        at = self.at
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.corrupt(f"a string is not UTF-8: {error.reason}", at + error.start) from error

    def value(self) -> Value:
        at = self.at
        kind = self.u32()
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise self.corrupt(f"unknown metadata type {kind}", at)
        layout = _SCALARS[kind]
        scalar: int | float | bool = layout.unpack_from(self._data, self._advance(layout.size))[0]
        return scalar

    def tensor_head(self) -> _TensorHead:
        at = self.at
        name = self.string()
        num_dims = self.u32()
        if not 1 <= num_dims <= 4:
            raise self.corrupt(f"tensor {name!r} has {num_dims} dimensions; 1 to 4 are allowed", at)
        dims = tuple(self.u64() for _ in range(num_dims))
        return _TensorHead(at, name, dims, self.u32(), self.u64())

    def _array(self) -> list[int] | list[float] | list[bool] | list[str]:
        at = self.at
        kind = self.u32()
        if kind == _STRING:
            return self._strings(self.count("strings", least_bytes=8))
        if kind not in _SCALARS:
            raise self.corrupt(f"an array of type {kind}, which no model needs", at)
        layout = _SCALARS[kind]
        count = self.count("array elements", least_bytes=layout.size)
        begin = self._advance(count * layout.size)
        values: list[int] | list[float] = np.frombuffer(self._data, layout.format, count, begin).tolist()
        return values

    def _strings(self, count: int) -> list[str]:
        """As `string` one after the other; a vocabulary and its merges are a hundred thousand."""
        found: list[str] = []
        alone = 1  # strings that are read one by one where the quick way finds none; many of those, and it is left
        while len(found) < count:
            some = self._short_strings(min(count - len(found), _STRINGS_AT_ONCE))
            if not some:
                some = [self.string() for _ in range(min(count - len(found), alone))]  # which says what is wrong
                alone *= 2
            found += some
        return found

    def _short_strings(self, count: int) -> list[str]:
        """Some of the next `count` strings, those of 1 to 255 bytes without a zero, told by the seven zeros in front of
        each. Stops before any other, and before what is wrong."""
        data = np.frombuffer(self._data, np.uint8, min(count * _STRING_BYTES, self.size - self.at), self.at)
        is_zero = data == 0
        begins = np.flatnonzero(is_zero[1:] & ~is_zero[:-1])[: count + 1]  # where zeros come: lengths, one hopes
        begins = begins[begins < len(data) - 8]
        ends = begins + 8 + data[begins]
        before = begins[:-1]  # whose string is followed by another: no zeros in it then, if it begins with none
        is_good = (begins[1:] == ends[:-1]) & is_zero[before + 7] & ~is_zero[before + 8]
        good = int(np.argmin(np.append(is_good, False))) if begins[:1].tolist() == [0] else 0
        if not good:
            return []
        begins, end = begins[:good], int(ends[good - 1])
        is_kept = ~is_zero[:end]
        is_kept[begins] = False
        is_kept[begins + 7] = True  # one zero before each string
        try:
            text = data[:end][is_kept].tobytes().decode("utf-8")
        except UnicodeDecodeError:
            return []
        self.at += end
        found: list[str] = text.split("\0")
        return found[1:]

    def _advance(self, num_bytes: int) -> int:
        begin = self.at
        if num_bytes > self.size - begin:
            raise self.corrupt(f"it ends in the middle of a value: {num_bytes} more bytes were to come", begin)
        self.at = begin + num_bytes
        return begin
