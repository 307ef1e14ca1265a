"""The GGUF header: read like the gguf package reads it; broken files are named, never believed."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palmette.errors import CorruptModel, ModelError, UnsupportedFeature
from palmette.runtime.models.gguf import BLOCK_TYPES, GGUFFile, _Cursor
from palmette.runtime.models.gguf_model import GGUFSource, gguf_config
from palmette.runtime.models.weights import assemble
from tests.runtime.models.checkpoints import configs, random_model, write_gguf


def write_example(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -5)
    writer.add_uint16("a.u16", 60000)
    writer.add_int16("a.i16", -3)
    writer.add_uint32("a.u32", 7)
    writer.add_int32("a.i32", -7)
    writer.add_float32("a.f32", 0.5)
    writer.add_bool("a.yes", True)
    writer.add_string("a.text", "Grüße €")
    writer.add_uint64("a.u64", 1 << 60)
    writer.add_int64("a.i64", -(1 << 60))
    writer.add_float64("a.f64", 0.1)
    writer.add_array("a.words", ["", "x", "▁the"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_array("a.floats", [0.5, 1.5])
    writer.add_tensor("one", np.arange(5, dtype=np.float32))
    writer.add_tensor("two", np.arange(6, dtype=np.float16).reshape(2, 3))
    blocks = gguf.quants.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("three", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_metadata_and_tensors_are_those_the_gguf_package_reads(tmp_path: Path) -> None:
    write_example(tmp_path / "m.gguf")
    ours, theirs = GGUFFile(tmp_path / "m.gguf"), gguf.GGUFReader(tmp_path / "m.gguf")
    wanted = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == wanted
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.shape == tuple(reversed(tensor.shape.tolist()))
        assert (mine.kind, mine.offset, mine.num_bytes) == (tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes)
        assert ours.data(mine).tobytes() == tensor.data.tobytes()


def test_the_table_of_block_types_is_the_gguf_packages() -> None:
    theirs = {t.value: (t.name, *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType}
    # The package changed its mind on Q8_1, which occurs in no file: ggml's struct has 36 bytes.
    assert {k: v for k, v in BLOCK_TYPES.items() if v[0] != "Q8_1"}.items() <= theirs.items()


def header(*, magic: bytes = b"GGUF", version: int = 3, tensors: int = 0, pairs: int = 0, rest: bytes = b"") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, pairs) + rest


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def tensor(name: bytes = b"t", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


HUGE = (1 << 64) - 1
BROKEN = {
    "empty": (b"", "at least 24 bytes"),
    "short": (b"GGUF\x03", "at least 24 bytes"),
    "magic": (header(magic=b"GGML"), "begin with GGUF"),
    "version 1": (header(version=1), "version 1"),
    "big-endian": (header(version=3 << 24), "little-endian"),
    "tensor count": (header(tensors=HUGE), "do not fit"),
    "pair count": (header(pairs=HUGE), "do not fit"),
    "key length": (header(pairs=1, rest=struct.pack("<Q", HUGE) + b"x" * 20), "middle of a value"),
    "key bytes": (header(pairs=1, rest=string(b"\xff\xfe") + bytes(8)), "not UTF-8"),
    "value type": (header(pairs=1, rest=string(b"k") + struct.pack("<I", 13) + bytes(8)), "unknown metadata type 13"),
    "array type": (header(pairs=1, rest=string(b"k") + struct.pack("<IIQ", 9, 9, 1)), "array of type 9"),
    "array count": (header(pairs=1, rest=string(b"k") + struct.pack("<IIQ", 9, 4, HUGE)), "do not fit"),
    "string count": (header(pairs=1, rest=string(b"k") + struct.pack("<IIQ", 9, 8, HUGE)), "do not fit"),
    "key twice": (header(pairs=2, rest=2 * (string(b"k") + struct.pack("<IB", 0, 1)) + bytes(9)), "twice"),
    "alignment": (header(pairs=1, rest=string(b"general.alignment") + struct.pack("<II", 4, 7)), "power of two"),
    "no dims": (header(tensors=1, rest=tensor(dims=()) + bytes(9)), "0 dimensions"),
    "many dims": (header(tensors=1, rest=tensor(dims=(1,) * 5)), "5 dimensions"),
    "kind": (header(tensors=1, rest=tensor(kind=99)), "unknown type 99"),
    "blocks": (header(tensors=1, rest=tensor(dims=(33,), kind=2)), "Q4_0 blocks"),
    "zero dim": (header(tensors=1, rest=tensor(dims=(4, 0))), "F32 blocks"),
    "size": (header(tensors=1, rest=tensor(dims=(HUGE, HUGE, HUGE, HUGE))), "behind the end"),
    "offset": (header(tensors=1, rest=tensor(offset=1 << 40)), "behind the end"),
    "unaligned": (header(tensors=1, rest=tensor(offset=1) + bytes(99)), "aligned"),
    "tensor twice": (header(tensors=2, rest=2 * tensor() + bytes(99)), "twice"),
}


# Strings as vocabularies have them, and such as `_short_strings` must leave to `string`.
WORDS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ["", "\0", "a\0", "\0b", "ab\0cd", "x" * 255, "x" * 256, "y" * 511, "\x01\0\0\0\0\0\0\0z", "é" * 128]
    ),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(WORDS, max_size=40), change=st.none() | st.tuples(st.integers(0, 400), st.integers(0, 255)))
def test_many_strings_are_those_that_are_read_one_by_one(
    tmp_path: Path, words: list[str], change: tuple[int, int] | None
) -> None:
    parts = b"".join(string(word.encode()) for word in words)
    rest = string(b"k") + struct.pack("<IIQ", 9, 8, len(words)) + parts + string(b"after") + struct.pack("<IB", 0, 3)
    data = bytearray(header(pairs=2, rest=rest + bytes(40)))
    if change is not None:
        data[min(change[0] + 24, len(data) - 1)] = change[1]
    path = tmp_path / "words.gguf"
    path.write_bytes(data)

    def read() -> object:
        try:
            return GGUFFile(path).metadata
        except CorruptModel as error:
            return str(error), error.offset

    found = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palmette.runtime.models.gguf._Cursor._short_strings", lambda *_: [])
        assert found == read()
    if change is None:
        assert found == {"k": words, "after": 3}


def test_words_of_a_vocabulary_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"▁word{i}" for i in range(40_000)]
    parts = b"".join(string(word.encode()) for word in words)
    path = tmp_path / "words.gguf"
    path.write_bytes(header(pairs=1, rest=string(b"k") + struct.pack("<IIQ", 9, 8, len(words)) + parts + bytes(9)))
    one_by_one: list[str] = []
    plain = _Cursor.string

    def string_alone(self: _Cursor) -> str:
        one_by_one.append(plain(self))
        return one_by_one[-1]

    monkeypatch.setattr(_Cursor, "string", string_alone)
    assert GGUFFile(path).metadata == {"k": words}
    assert one_by_one[0] == "k"
    assert len(one_by_one) < 5


@pytest.mark.parametrize(
    "words", [[""] * 3000, ["word", ""] * 1500, ["x" * 300] * 3000], ids=["empty", "mixed", "long"]
)
def test_strings_that_cannot_be_read_together_are_not_tried_again_and_again(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = b"".join(string(word.encode()) for word in words)
    path = tmp_path / "words.gguf"
    path.write_bytes(header(pairs=1, rest=string(b"k") + struct.pack("<IIQ", 9, 8, len(words)) + parts + bytes(9)))
    tries: list[int] = []
    together = _Cursor._short_strings

    def counted(self: _Cursor, count: int) -> list[str]:
        tries.append(count)
        return together(self, count)

    monkeypatch.setattr(_Cursor, "_short_strings", counted)
    assert GGUFFile(path).metadata == {"k": words}
    assert len(tries) < 40


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_header_names_file_reason_and_offset(name: str, tmp_path: Path) -> None:
    data, reason = BROKEN[name]
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    with pytest.raises(CorruptModel, match=reason) as caught:
        GGUFFile(path)
    assert caught.value.file == str(path)
    assert caught.value.offset is not None
    assert 0 <= caught.value.offset <= len(data)


def load_everything(path: Path) -> None:
    file = GGUFFile(path)
    config = gguf_config(file)
    assemble(config, GGUFSource(file, config), dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete llama file."""
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    write_gguf(random_model(configs()["llama"]), path, "llama", gguf.GGMLQuantizationType.Q8_0)
    load_everything(path)
    return path


def test_a_file_truncated_anywhere_is_corrupt(whole_file: Path, tmp_path: Path) -> None:
    data = whole_file.read_bytes()
    for length in [*range(0, 3000, 37), *range(3000, len(data), len(data) // 50), len(data) - 1]:
        path = tmp_path / "short.gguf"
        path.write_bytes(data[:length])
        with pytest.raises(CorruptModel) as caught:
            load_everything(path)
        assert caught.value.offset is not None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.integers(0, 3500),
    change=st.one_of(
        st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, bytes(8), b"\x00" * 7 + b"\x40"])
    ),
)
def test_a_header_with_changed_bytes_loads_or_is_refused(
    whole_file: Path, tmp_path: Path, place: int, change: bytes
) -> None:
    data = bytearray(whole_file.read_bytes())
    data[place : place + len(change)] = change
    path = tmp_path / "changed.gguf"
    path.write_bytes(data)
    with contextlib.suppress(ModelError, UnsupportedFeature):
        load_everything(path)
