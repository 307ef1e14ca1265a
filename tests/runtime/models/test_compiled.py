"""Weights for the compiled core: what is held in which format, and what happens where the core cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from palmette.errors import CorruptModel, InvalidOption, PalmetteError
from palmette.interpreter.backends.local import Runtime
from palmette.kernels.cpu import library as cpu
from palmette.kernels.cpu.library import Format, choose_instruction_set, library
from palmette.runtime.models.compiled import CompiledDecoder, compile_weights, why_not_compiled
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.gguf import GGUFFile
from palmette.runtime.models.gguf_model import GGUFSource, gguf_config
from palmette.runtime.models.load import load_model
from palmette.runtime.models.tiny import RandomSource, tiny_config, tiny_model
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow
from tests.kernels.cpu.models import core, reference, run
from tests.runtime.models.checkpoints import configs, random_model, write_gguf
from tests.runtime.models.vocabularies import byte_level
from tests.runtime.test_model_runner import one, tokens

SETS = core().instruction_sets
STEP = one(ScheduledRow(0, tokens(100), 0, tuple(range(100)), logits_from=0))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with floats."""
    directory = tmp_path_factory.mktemp("models") / "floats"
    random_model(configs()["llama-tied"]).save_pretrained(directory)
    byte_level().save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where the package looks for its library; empty, as if no compiler had been there."""
    monkeypatch.setattr(cpu, "__file__", str(tmp_path / "library.py"))
    library.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    library.cache_clear()


def compile_gguf(path: Path) -> CompiledDecoder:
    file = GGUFFile(path)
    config = gguf_config(file)
    return compile_weights(config, GGUFSource(file, config), library=library(), instruction_set=SETS[0])


# -- formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        (gguf.GGMLQuantizationType.F32, Format.F32),
        (gguf.GGMLQuantizationType.F16, Format.F32),
        (gguf.GGMLQuantizationType.Q4_0, Format.U4),
        (gguf.GGMLQuantizationType.Q4_1, Format.U4),
        (gguf.GGMLQuantizationType.Q8_0, Format.U8),
        (gguf.GGMLQuantizationType.Q5_1, Format.U8),
    ],
)
def test_a_gguf_file_is_held_in_its_own_blocks(kind: gguf.GGMLQuantizationType, form: Format, tmp_path: Path) -> None:
    """Rotated rows come in the file's order; logits are near those of the dequantised weights."""
    path = tmp_path / "model.gguf"
    write_gguf(random_model(configs()["llama"]), path, "llama", kind)
    file = GGUFFile(path)
    config = gguf_config(file)
    source = GGUFSource(file, config)
    model = compile_gguf(path)
    assert {tiles.form for layer in model.matrices for tiles in layer.values()} == {form}
    assert (model.embedding.form, model.head.form) == (form, form)
    assert model.is_quantized == (form != Format.F32)
    assert model.dtype == (torch.float32 if form == Format.F32 else torch.float16)
    wanted = reference(config, source).forward(STEP)
    got = run(model).forward(STEP)
    error = (got - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
    assert error < (1e-5 if form == Format.F32 else 0.05)

    floats = compile_weights(config, source, library=library(), instruction_set=SETS[0], precision="float32")
    assert not floats.is_quantized
    torch.testing.assert_close(run(floats).forward(STEP), wanted, rtol=0, atol=2e-4)
    assert floats.digest == model.digest if form == Format.F32 else floats.digest != model.digest


@pytest.mark.parametrize(
    ("kind", "place"), [("Q4_0", 0), ("Q4_1", 0), ("Q4_1", 2), ("Q8_0", 0)], ids=["Q4_0", "Q4_1 d", "Q4_1 m", "Q8_0"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_scale_that_is_not_finite_is_corrupt(kind: str, place: int, value: float, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(random_model(configs()["llama"]), path, "llama", gguf.GGMLQuantizationType[kind])
    file = GGUFFile(path)
    tensor = file.tensors["blk.1.ffn_up.weight"]
    block_bytes = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    with path.open("r+b") as written:
        written.seek(tensor.offset + tensor.num_bytes - block_bytes + place)
        written.write(np.float16(value).tobytes())
    with pytest.raises(CorruptModel, match=r"blk\.1\.ffn_up.*not finite") as caught:
        compile_gguf(path)
    assert caught.value.offset == tensor.offset


@pytest.mark.parametrize("kind", ["F32", "Q4_1", "Q8_0"])
def test_any_number_of_threads_lays_out_the_same(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    config = configs()["llama"]
    config.vocab_size = 1_003  # more tiles than a thread takes at once, and the last is not whole
    write_gguf(random_model(config), path, "llama", gguf.GGMLQuantizationType[kind])
    found: list[list[bytes]] = []
    for count in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        model = compile_gguf(path)
        tiles = [model.embedding, model.head, *(t for layer in model.matrices for t in layer.values())]
        found.append([t.data.tobytes() for t in tiles])
    assert found[0] == found[1] == found[2]


def test_int8_quantises_what_a_file_has_as_floats() -> None:
    model = tiny_model(1, cpu_kernels=SETS[0], dtype="int8").model
    assert isinstance(model, CompiledDecoder)
    assert {tiles.form for layer in model.matrices for tiles in layer.values()} == {Format.U8}
    wanted = reference(model.config, RandomSource(1)).forward(STEP)
    error = (run(model).forward(STEP) - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
    assert 1e-5 < error < 0.05


def test_tied_embeddings_are_held_once() -> None:
    model = tiny_model(1, "gemma2", cpu_kernels=SETS[0]).model
    assert isinstance(model, CompiledDecoder)
    assert model.head is model.embedding


def test_a_digest_tells_weights_and_formats_apart() -> None:
    digests = [
        tiny_model(seed, family, cpu_kernels=SETS[0], dtype=dtype).digest  # type: ignore[arg-type]
        for seed, family, dtype in [
            (0, "llama", "float32"),
            (1, "llama", "float32"),
            (0, "llama", "int8"),
            (0, "qwen3", "float32"),
        ]
    ]
    assert len({*digests, tiny_model().digest}) == 5
    assert tiny_model(0, cpu_kernels=SETS[-1]).digest == digests[0]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden_size": 40}, "40"),
        ({"intermediate_size": 100}, "100"),
        ({"head_dim": 24}, "24"),
        ({"num_heads": 3, "num_kv_heads": 1}, "3 heads of 16"),
    ],
)
def test_shapes_that_do_not_divide_into_vectors_are_named(changes: dict[str, Any], part: str) -> None:
    assert part in (why_not_compiled(replace(tiny_config(), **changes)) or "")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_every_family_can_be_compiled(family: str) -> None:
    assert why_not_compiled(tiny_config(family)) is None


def test_a_model_that_does_not_divide_runs_on_torch_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "qwen3"
    random_model(configs()["qwen3"]).save_pretrained(path)  # heads of 24
    byte_level().save(str(path / "tokenizer.json"))
    with caplog.at_level(logging.WARNING):
        assert isinstance(load_model(path, dtype="auto", cpu_kernels="auto").model, Decoder)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "24" in caplog.text
    with pytest.raises(InvalidOption, match="cpu_kernels"):
        load_model(path, cpu_kernels=SETS[0])


def test_a_model_with_experts_runs_on_torch_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "mixtral"
    random_model(configs()["mixtral"]).save_pretrained(path)
    byte_level().save(str(path / "tokenizer.json"))
    with caplog.at_level(logging.WARNING):
        assert isinstance(load_model(path, dtype="auto", cpu_kernels="auto").model, Decoder)
    assert "layers of 5 experts" in caplog.text
    with pytest.raises(InvalidOption, match="experts"):
        load_model(path, cpu_kernels=SETS[0])


# -- choosing ------------------------------------------------------------------------------------------------------


def test_auto_takes_the_best_and_the_environment_another(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PALMETTE_CPU_KERNELS", raising=False)
    if SETS == ["portable"]:
        pytest.skip("auto leaves such a machine to torch")
    assert choose_instruction_set("auto") == SETS[0]
    assert choose_instruction_set(SETS[-1]) == SETS[-1]
    for name in SETS:
        monkeypatch.setenv("PALMETTE_CPU_KERNELS", name)
        model = load_model(checkpoint, cpu_kernels="auto").model
        assert isinstance(model, CompiledDecoder)
        assert model.instruction_set == name
        assert choose_instruction_set(SETS[0]) == SETS[0]


def test_torch_is_the_default_of_loading_and_of_bfloat16(checkpoint: Path) -> None:
    assert isinstance(load_model(checkpoint).model, Decoder)
    assert isinstance(load_model(checkpoint, dtype="auto").model, Decoder)
    assert isinstance(load_model(checkpoint, dtype="bfloat16", cpu_kernels="auto").model, Decoder)


@pytest.mark.parametrize("name", ["sse9", "AVX2", ""])
def test_an_unknown_instruction_set_is_refused_with_those_that_run(name: str, checkpoint: Path) -> None:
    with pytest.raises(InvalidOption, match="cpu_kernels") as caught:
        load_model(checkpoint, cpu_kernels=name)
    assert all(found in str(caught.value) for found in SETS)


def test_an_unknown_name_in_the_environment_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALMETTE_CPU_KERNELS", "mmx")
    with pytest.raises(InvalidOption, match="PALMETTE_CPU_KERNELS"):
        load_model(checkpoint, cpu_kernels="auto")
    assert isinstance(load_model(checkpoint).model, Decoder)


@pytest.mark.parametrize("options", [{"cpu_kernels": "sse9"}, {"dtype": "int4"}, {"dtype": "float64"}])
def test_a_runtime_refuses_what_it_does_not_know(options: dict[str, str]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(options))):
        Runtime("tiny", **options)


@pytest.mark.parametrize("dtype", ["int4", "float64", "Q4_1"])
def test_another_dtype_is_refused(dtype: str, checkpoint: Path) -> None:
    with pytest.raises(InvalidOption, match="dtype"):
        load_model(checkpoint, dtype=dtype, cpu_kernels="auto")


# -- without the core ----------------------------------------------------------------------------------------------


def test_palmette_native_0_means_torch_and_no_word(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library.cache_clear()
    monkeypatch.setenv("PALMETTE_NATIVE", "0")
    try:
        with caplog.at_level(logging.DEBUG):
            assert isinstance(load_model(checkpoint, dtype="auto", cpu_kernels="auto").model, Decoder)
            with pytest.raises(InvalidOption, match="PALMETTE_NATIVE"):
                load_model(checkpoint, cpu_kernels=SETS[0])
            with pytest.raises(InvalidOption, match="dtype"):
                load_model(checkpoint, dtype="int8", cpu_kernels="auto")
    finally:
        library.cache_clear()
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


@pytest.mark.parametrize("value", ["2", "yes", ""])
def test_palmette_native_is_0_or_1(value: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALMETTE_NATIVE", value)
    with pytest.raises(InvalidOption, match="PALMETTE_NATIVE"):
        load_model(checkpoint, dtype="auto", cpu_kernels="auto")


@pytest.mark.usefixtures("installed")
def test_a_library_that_was_not_built_means_torch_and_one_warning(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert isinstance(load_model(checkpoint, dtype="auto", cpu_kernels="auto").model, Decoder)
    warnings = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert [record.levelname for record in warnings] == ["WARNING"]
    assert "C++17 compiler" in caplog.text
    with pytest.raises(InvalidOption, match="compiler"):
        load_model(checkpoint, cpu_kernels="portable")
    for kernels in ("auto", "torch"):
        with pytest.raises(InvalidOption, match="dtype"):
            load_model(checkpoint, dtype="int8", cpu_kernels=kernels)


def test_a_library_that_does_not_load_means_torch(
    checkpoint: Path, installed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (installed / "_core.native").write_bytes(b"not a library")
    assert isinstance(load_model(checkpoint, dtype="auto", cpu_kernels="auto").model, Decoder)
    assert "does not load" in caplog.text


def test_a_library_of_other_sources_means_torch(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu, "VERSION", -1)
    library.cache_clear()
    try:
        assert isinstance(load_model(checkpoint, dtype="auto", cpu_kernels="auto").model, Decoder)
    finally:
        library.cache_clear()
    assert "other sources" in caplog.text


def test_threads_that_cannot_be_had_are_an_error_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(1, cpu_kernels=SETS[0]).model
    assert isinstance(model, CompiledDecoder)
    with pytest.raises(PalmetteError, match="threads"):
        run(replace(model, instruction_set="abacus"))


def test_a_step_without_rows_that_want_logits_writes_keys_all_the_same() -> None:
    model = tiny_model(1, cpu_kernels=SETS[0]).model
    assert isinstance(model, CompiledDecoder)
    runner = run(model)
    ids = tokens(40)
    runner.forward(ScheduledBatch((ScheduledRow(0, ids[:39], 0, tuple(range(39))),)))
    last = runner.forward(one(ScheduledRow(0, ids[39:], 39, (39,), logits_from=0)))
    whole = run(model).forward(one(ScheduledRow(0, ids, 0, tuple(range(40)), logits_from=39)))
    assert torch.equal(last, whole)
