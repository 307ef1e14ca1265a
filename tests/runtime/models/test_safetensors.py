"""Reading safetensors: what the safetensors library wrote, and what nobody should have written."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from palmette.errors import CorruptModel, ModelNotFound
from palmette.runtime.models.safetensors import SafetensorsFile, open_checkpoint, read_json

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.tensor(1.5, dtype=torch.float64),
    "c": torch.randn(5).to(torch.bfloat16),
    "d": torch.randn(3, 0, 2).to(torch.float16),
    "e": torch.randn(1, 2, 3, 4).to(torch.float16),
}


def test_tensors_are_those_that_were_saved(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "m.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "m.safetensors")
    assert sorted(file.names()) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert file.tensor(name).dtype == tensor.dtype
        assert torch.equal(file.tensor(name), tensor)


def write(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def test_misaligned_tensors_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", json.dumps(entry()).encode() + b" ", struct.pack("<2f", 1, 2))
    assert SafetensorsFile(path).tensor("t").tolist() == [1.0, 2.0]


BROKEN = {
    "not json": (b"{", b""),
    "not an object": ([], b""),
    "deep json": (b"[" * 100_000, b""),
    "no dtype": ({"t": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "negative dim": (entry(shape=[-2]), bytes(8)),
    "text dim": (entry(shape=["2"]), bytes(8)),
    "past the end": (entry(offsets=[0, 9]), bytes(8)),
    "backwards": (entry(offsets=[8, 0]), bytes(8)),
    "negative offset": (entry(offsets=[-8, 0]), bytes(8)),
    "wrong size": (entry(shape=[3]), bytes(8)),
    "huge shape": (entry(shape=[1 << 60, 1 << 60]), bytes(8)),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_file_is_named_with_an_offset(name: str, tmp_path: Path) -> None:
    header, data = BROKEN[name]
    path = write(tmp_path / "m.safetensors", header, data)
    with pytest.raises(CorruptModel) as caught:
        SafetensorsFile(path)
    assert caught.value.file == str(path)
    assert caught.value.offset is not None


@pytest.mark.parametrize("data", [b"", b"1234567", struct.pack("<Q", 1 << 62) + b"{}"])
def test_a_file_shorter_than_it_claims_is_corrupt(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(CorruptModel):
        SafetensorsFile(path)


def test_a_tensor_that_holds_no_floats_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    file = SafetensorsFile(write(tmp_path / "m.safetensors", entry("I64", [1]), bytes(8)))
    with pytest.raises(CorruptModel, match="int64"):
        file.tensor("t")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_changed_bytes_load_or_are_refused(tmp_path: Path, place: int, change: bytes) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": TENSORS["a"], "e": TENSORS["e"]}, path)
    data = bytearray(path.read_bytes())
    data[place : place + len(change)] = change
    path.write_bytes(data)
    with contextlib.suppress(CorruptModel):
        file = SafetensorsFile(path)
        for name in file.names():
            file.tensor(name)


def sharded(directory: Path, weight_map: object) -> Path:
    save_file({"a": TENSORS["a"]}, directory / "one.safetensors")
    save_file({"e": TENSORS["e"]}, directory / "two.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def test_an_index_tells_the_file_of_every_tensor(tmp_path: Path) -> None:
    files = open_checkpoint(sharded(tmp_path, {"a": "one.safetensors", "e": "two.safetensors"}))
    assert {name: file.path.name for name, file in files.items()} == {"a": "one.safetensors", "e": "two.safetensors"}


def test_without_an_index_all_files_are_read(tmp_path: Path) -> None:
    sharded(tmp_path, {})
    (tmp_path / "model.safetensors.index.json").unlink()
    assert sorted(open_checkpoint(tmp_path)) == ["a", "e"]


@pytest.mark.parametrize(
    "weight_map",
    [{"a": "three.safetensors"}, {"a": "two.safetensors"}, {"a": "../one.safetensors"}, {"a": 1}, ["a"], None],
)
def test_an_index_that_lies_is_corrupt(weight_map: object, tmp_path: Path) -> None:
    with pytest.raises(CorruptModel):
        open_checkpoint(sharded(tmp_path, weight_map))


def test_a_directory_without_weights_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\ufeff", "[" * 100_000])
def test_json_that_is_no_object_is_corrupt(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CorruptModel, match=r"config\.json"):
        read_json(tmp_path / "config.json")
