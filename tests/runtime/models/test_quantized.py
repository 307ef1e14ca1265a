"""A decoder whose projections hold 8-bit codes: it computes with the weights that the codes stand for."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from palmette.errors import InvalidOption, UnsupportedFeature
from palmette.kernels.quant_linear import dequantize_weight
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.digest import model_digest
from palmette.runtime.models.layers import DecoderWeights, DenseMlp, LayerWeights, Linear, Projection
from palmette.runtime.models.quantized import QuantizedLinear, quantize_linear, quantize_weights
from palmette.runtime.models.tiny import RandomSource, tiny_config
from palmette.runtime.models.weights import assemble
from tests.runtime.models.checkpoints import our_logits

IDS = tuple(range(40, 52))
Kind = Literal["int8", "fp8"]


def model(family: str) -> tuple[ModelConfig, DecoderWeights]:
    config = tiny_config(family)
    return config, assemble(config, RandomSource(1), dtype=torch.float32, device="cpu")


def widened(projection: Projection) -> Linear:
    assert isinstance(projection, QuantizedLinear)
    return Linear(dequantize_weight(projection.codes, projection.scales), projection.bias)


def widened_layer(layer: LayerWeights) -> LayerWeights:
    assert isinstance(layer.mlp, DenseMlp)
    mlp = DenseMlp(widened(layer.mlp.gate_up), widened(layer.mlp.down))
    return replace(layer, qkv=widened(layer.qkv), out=widened(layer.out), mlp=mlp)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_a_decoder_computes_with_the_weights_it_holds(family: str, kind: Kind) -> None:
    config, weights = model(family)
    exact = our_logits(Decoder(config, weights), IDS)
    held = quantize_weights(weights, kind)
    wide = replace(held, layers=tuple(widened_layer(layer) for layer in held.layers))
    got = our_logits(Decoder(config, held), IDS)
    torch.testing.assert_close(got, our_logits(Decoder(config, wide), IDS), rtol=0, atol=1e-4)
    error = float((got - exact).std() / exact.std())
    assert 1e-4 < error < (0.05 if kind == "int8" else 0.2)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_kernel_computes_the_same(kind: Kind) -> None:
    config, weights = model("llama")
    by_torch, by_kernel = (quantize_weights(weights, kind, with_triton=flag) for flag in (False, True))
    modules = [held.layers[0].qkv.multiply.__module__ for held in (by_torch, by_kernel)]  # type: ignore[attr-defined]
    assert modules == ["palmette.kernels.quant_linear", "palmette.kernels.gpu.quant_linear"]
    got, wanted = (our_logits(Decoder(config, held), IDS[:5], (4, 1)) for held in (by_kernel, by_torch))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


def test_only_projections_change_and_they_shrink() -> None:
    config, weights = model("qwen3")
    held = quantize_weights(weights, "int8")
    assert held.embedding is weights.embedding
    assert held.head is weights.head
    assert held.final_norm is weights.final_norm
    for old, new in zip(weights.layers, held.layers, strict=True):
        assert new.attention_norm is old.attention_norm
        assert new.q_norm is old.q_norm
        for before, after in ((old.qkv, new.qkv), (old.out, new.out), (old.mlp, new.mlp)):
            old_bytes, new_bytes = (sum(t.numel() * t.element_size() for t in x.tensors()) for x in (before, after))
            assert new_bytes < 0.4 * old_bytes  # the scales of tiny rows weigh something
    assert model_digest(config, held) != model_digest(config, weights)


def test_a_layer_may_have_a_scale_for_every_block() -> None:
    linear = Linear(torch.randn(10, 256), torch.randn(10))
    quantized = quantize_linear(linear, "fp8", blocks=True)
    assert quantized.scales.shape == (10, 2)
    assert len(quantized.tensors()) == 3
    x = torch.randn(3, 256)
    torch.testing.assert_close(quantized(x), widened(quantized)(x), rtol=1e-5, atol=1e-4)


def test_what_cannot_be_quantised_is_named() -> None:
    _, weights = model("llama")
    with pytest.raises(InvalidOption, match="kind='int4' is not allowed: 'int8' or 'fp8'"):
        quantize_weights(weights, "int4")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedFeature, match="QuantizedLinear"):
        quantize_weights(quantize_weights(weights, "int8"), "int8")
