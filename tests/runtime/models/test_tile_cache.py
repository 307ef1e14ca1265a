"""Packed weights that are kept: mapped by the next load, never believed of another file, and never in anybody's way."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import gguf
import pytest
import torch

from palmette.kernels.cpu.library import Library, Packing, library
from palmette.runtime.models.compiled import CompiledDecoder, Precision, compile_weights
from palmette.runtime.models.gguf import GGUFFile
from palmette.runtime.models.gguf_model import GGUFSource, gguf_config
from palmette.runtime.models.load import load_model
from palmette.runtime.models.tile_cache import TileCache, cache_folder, tile_cache
from palmette.runtime.scheduled import ScheduledRow
from tests.kernels.cpu.models import core, run
from tests.runtime.models.checkpoints import configs, random_model, write_gguf
from tests.runtime.models.vocabularies import byte_level
from tests.runtime.test_model_runner import one, tokens

SETS = core().instruction_sets
STEP = one(ScheduledRow(0, tokens(60), 0, tuple(range(60)), logits_from=0))
Q4, Q8 = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    write_gguf(random_model(configs()["llama"]), path, "llama", Q4)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PALMETTE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tiles"


def load(path: Path, precision: Precision = "auto") -> CompiledDecoder:
    file = GGUFFile(path)
    config = gguf_config(file)
    found = compile_weights(
        config,
        GGUFSource(file, config),
        library=library(),
        instruction_set=SETS[0],
        precision=precision,
        cache=tile_cache([path], precision, f"{config}"),
    )
    wait()
    return found


def wait() -> None:
    for thread in threading.enumerate():
        if thread.name == "palmette-tiles":
            thread.join()


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many matrices each call packed."""
    counts: list[int] = []
    pack = Library.pack

    def counting(self: Library, matrices: Sequence[Packing], num_threads: int) -> None:
        counts.append(len(matrices))
        pack(self, matrices, num_threads)

    monkeypatch.setattr(Library, "pack", counting)
    return counts


def same(one: CompiledDecoder, other: CompiledDecoder) -> bool:
    return one.digest == other.digest and torch.equal(run(one).forward(STEP), run(other).forward(STEP))


def test_a_second_load_maps_what_the_first_one_packed(model: Path, folder: Path, packed: list[int]) -> None:
    first = load(model)
    assert packed == [4 * 7 + 2]
    assert [file.suffix for file in folder.iterdir()] == [".tiles"]
    second = load(model)
    assert len(packed) == 1
    assert same(first, second)
    assert not second.embedding.data.flags.writeable
    assert all(tiles.data.ctypes.data % 64 == 0 for layer in second.matrices for tiles in layer.values())


def test_a_model_that_changed_is_packed_again_in_place_of_the_old(model: Path, folder: Path) -> None:
    first = load(model)
    write_gguf(random_model(configs()["llama"], seed=7), model, "llama", Q4)
    second = load(model)
    assert not same(first, second)
    assert same(second, load(model))
    os.utime(model, ns=(1, 1))
    load(model)
    assert len(list(folder.iterdir())) == 1


def test_what_is_kept_is_of_one_precision_and_one_file(model: Path, folder: Path, tmp_path: Path) -> None:
    load(model)
    load(model, "int8")
    assert len(list(folder.iterdir())) == 2
    shutil.copy2(model, tmp_path / "copy.gguf")
    load(tmp_path / "copy.gguf")
    assert len(list(folder.iterdir())) == 3
    floats = load(model, "float32")  # eight times the file
    assert not floats.is_quantized
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("change", ["empty", "short", "long", "garbage", "folder"])
def test_a_broken_file_is_not_believed(change: str, model: Path, folder: Path, packed: list[int]) -> None:
    first = load(model)
    (kept,) = folder.iterdir()
    data = kept.read_bytes()
    kept.unlink()
    if change == "folder":
        kept.mkdir()
    else:
        kept.write_bytes({"empty": b"", "short": data[:-1], "long": data + b"x", "garbage": b"x" * len(data)}[change])
    second = load(model)
    assert same(first, second)
    assert len(packed) == 2
    if change != "folder":
        assert kept.read_bytes() == data


@pytest.mark.parametrize("surplus", [-64, 64])
def test_tiles_of_another_size_are_packed_again(surplus: int, model: Path, folder: Path, packed: list[int]) -> None:
    first = load(model)
    (kept,) = folder.iterdir()
    file = GGUFFile(model)
    cache = tile_cache([model], "auto", f"{gguf_config(file)}")
    assert cache is not None
    tiles = cache.open()
    assert tiles is not None
    pieces = [tiles[:surplus]] if surplus < 0 else [tiles, tiles[:surplus]]
    cache.write_later(pieces).join()
    assert same(first, load(model))
    assert len(packed) == 2
    load(model)
    assert len(packed) == 2
    assert list(folder.iterdir()) == [kept]


def test_nothing_is_kept_where_the_user_wants_nothing(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALMETTE_CACHE", "0")
    load(model)
    assert not folder.exists()


def test_nothing_is_kept_on_a_disk_that_is_almost_full(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = shutil.disk_usage(model.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with caplog.at_level("INFO"):
        load(model)
    assert not list(folder.iterdir())
    assert "not kept" in caplog.text


def test_a_folder_that_cannot_be_made_costs_a_line_of_the_log(
    model: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.parent.write_text("a file")
    with caplog.at_level("INFO"):
        load(model)
    assert "not kept" in caplog.text
    assert same(load(model), load(model))


def test_what_nobody_finished_is_removed_after_a_day(model: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    old, new = folder / "a.part", folder / "b.part"
    for part in (old, new):
        part.write_bytes(b"x")
    os.utime(old, (time.time() - 90_000,) * 2)
    load(model)
    assert sorted(file.suffix for file in folder.iterdir()) == [".part", ".tiles"]
    assert new.exists()


def test_tiles_of_another_version_are_not_believed_and_replaced(model: Path, folder: Path) -> None:
    load(model)
    (kept,) = folder.iterdir()
    newer = tile_cache([model], "auto", "of a newer version")
    assert newer is not None
    assert newer.path == kept
    assert newer.open() is None


def test_a_model_that_is_in_no_file_is_not_kept(folder: Path, tmp_path: Path) -> None:
    assert tile_cache([], "auto", "tiny") is None
    assert tile_cache([tmp_path / "gone"], "auto", "x") is None
    assert TileCache(folder, [], "auto", "x").open() is None


def test_a_directory_is_kept_too(folder: Path, tmp_path: Path, packed: list[int]) -> None:
    directory = tmp_path / "floats"
    random_model(configs()["llama-tied"]).save_pretrained(directory)
    byte_level().save(str(directory / "tokenizer.json"))
    first = load_model(directory, dtype="int8", cpu_kernels="auto")
    wait()
    count = len(packed)
    second = load_model(directory, dtype="int8", cpu_kernels="auto")
    assert len(packed) == count
    assert first.digest == second.digest
    assert len(list(folder.iterdir())) == 1


def test_the_folder_is_the_users_cache_unless_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PALMETTE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PALMETTE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == tmp_path / "x" / "palmette"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "palmette"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "palmette"
