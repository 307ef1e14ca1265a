"""Every family computes what transformers computes: prefill, chunked extend, decode with cache."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.gguf import GGUFFile
from palmette.runtime.models.gguf_model import GGUFSource, gguf_config
from palmette.runtime.models.hf_model import open_directory
from palmette.runtime.models.safetensors import open_checkpoint
from palmette.runtime.models.weights import assemble
from tests.runtime.models.checkpoints import VOCAB, configs, our_logits, random_model, reference_logits, write_gguf

IDS = tuple(random.Random(0).randrange(VOCAB) for _ in range(150))
NAMES = list(configs())


@cache
def reference(name: str) -> tuple[Any, torch.Tensor]:
    model = random_model(configs()[name])
    return model, reference_logits(model, IDS)


def from_directory(directory: Path) -> Decoder:
    config, source = open_directory(directory)
    return Decoder(config, assemble(config, source, dtype=torch.float32, device="cpu"))


def from_gguf(path: Path) -> Decoder:
    file = GGUFFile(path)
    config = gguf_config(file)
    return Decoder(config, assemble(config, GGUFSource(file, config), dtype=torch.float32, device="cpu"))


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model, wanted = reference(name)
    model.save_pretrained(tmp_path)
    ours = from_directory(tmp_path)
    assert wanted.std() > 0.3  # else agreement would mean little
    for pieces in ((150,), (100, 50), (64, 64, 7, 15), (140, *[1] * 10)):
        torch.testing.assert_close(our_logits(ours, IDS, pieces), wanted, rtol=0, atol=1e-4)


def test_a_sharded_checkpoint_loads_alike(tmp_path: Path) -> None:
    model, wanted = reference("llama")
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    torch.testing.assert_close(our_logits(from_directory(tmp_path), IDS), wanted, rtol=0, atol=1e-4)


def test_a_checkpoint_in_bfloat16_loads_into_float32(tmp_path: Path) -> None:
    model = random_model(configs()["gemma2"]).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    wanted = reference_logits(model.float(), IDS)
    torch.testing.assert_close(our_logits(from_directory(tmp_path), IDS), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe-some-dense"])
def test_experts_that_a_checkpoint_holds_in_one_tensor_load_alike(name: str, tmp_path: Path) -> None:
    """As transformers holds them; by default it writes each expert apart, as the published files have them."""
    model, wanted = reference(name)
    model.save_pretrained(tmp_path, save_original_format=False)
    config, source = open_directory(tmp_path)
    assert any("experts.gate_up_proj" in name for name in open_checkpoint(tmp_path))
    ours = Decoder(config, assemble(config, source, dtype=torch.float32, device="cpu"))
    torch.testing.assert_close(our_logits(ours, IDS), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_computes_in_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model, wanted = reference("qwen3")
    model.save_pretrained(tmp_path)
    config, source = open_directory(tmp_path)
    ours = our_logits(Decoder(config, assemble(config, source, dtype=dtype, device="cpu")), IDS)
    assert torch.cosine_similarity(ours, wanted, dim=-1).min() > 0.98


GGUF_FAMILIES = {
    "llama": "llama",
    "llama-tied": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "mixtral": "llama",
    "qwen3_moe": "qwen3moe",
    "gemma2": "gemma2",
}


@pytest.mark.parametrize("name", list(GGUF_FAMILIES))
def test_logits_from_gguf_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model, _ = reference(name)
    if name == "gemma2":  # the format does not store the score scale: it follows from the head size
        config = configs()[name]
        config.query_pre_attn_scalar = config.head_dim
        model = random_model(config)
    write_gguf(model, tmp_path / "m.gguf", GGUF_FAMILIES[name])
    got = our_logits(from_gguf(tmp_path / "m.gguf"), IDS, (100, 50))
    torch.testing.assert_close(got, reference_logits(model, IDS), rtol=0, atol=1e-4)


def test_gemma3_from_gguf_slides_five_layers_of_six(tmp_path: Path) -> None:
    kinds = [*["sliding_attention"] * 5, "full_attention", "sliding_attention"]
    config = configs()["gemma3"]
    rope = {k: {"rope_type": "default", "rope_theta": v["rope_theta"]} for k, v in config.rope_parameters.items()}
    config = type(config)(
        **{
            **config.to_dict(),
            "num_hidden_layers": 7,
            "layer_types": kinds,
            "query_pre_attn_scalar": config.head_dim,
            "rope_parameters": rope,
        }
    )
    model = random_model(config)
    write_gguf(model, tmp_path / "m.gguf", "gemma3")
    got = our_logits(from_gguf(tmp_path / "m.gguf"), IDS)
    torch.testing.assert_close(got, reference_logits(model, IDS), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "F16", "BF16"])
def test_quantised_gguf_computes_with_the_dequantised_weights(kind: str, tmp_path: Path) -> None:
    model, _ = reference("llama")
    quantised = gguf.GGMLQuantizationType[kind]
    write_gguf(model, tmp_path / "m.gguf", "llama", quantised)
    rounded = random_model(configs()["llama"])
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.ndim > 1:
                blocks = gguf.quants.quantize(parameter.numpy(), quantised)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, quantised)))
    got = our_logits(from_gguf(tmp_path / "m.gguf"), IDS)
    torch.testing.assert_close(got, reference_logits(rounded, IDS), rtol=0, atol=1e-4)
