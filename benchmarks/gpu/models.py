"""Random weights in the shapes of real models, on the device; and requests of random tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.gpu.machine import Machine
from palmette.kernels.gpu.step_kernels import TritonKernels
from palmette.kernels.rope import RopeSpec
from palmette.runtime.byte_tokenizer import ByteTokenizer
from palmette.runtime.models.config import LayerConfig, ModelConfig
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.layers import DecoderWeights, DenseMlp, LayerWeights, Linear
from palmette.runtime.models.loaded import LoadedModel
from palmette.types import GenerateRequest, SamplingParams

_SPREAD = 0.02  # standard deviation of weights, as models are initialised


def llama_8b() -> ModelConfig:
    """The shapes of Llama-3.1-8B."""
    return ModelConfig(
        family="llama",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        context_len=32768,
        norm_eps=1e-5,
        layers=(LayerConfig(None, RopeSpec(dim=128, theta=5e5)),) * 32,
    )


def tiny() -> ModelConfig:
    """The same in a size that an interpreter computes."""
    return replace(
        llama_8b(),
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        context_len=512,
        layers=(LayerConfig(None, RopeSpec(dim=16, theta=1e4)),) * 2,
    )


def random_weights(machine: Machine, config: ModelConfig) -> DecoderWeights:
    """Dense weights in bf16; float32 where nothing is measured."""
    dtype = torch.bfloat16 if machine.measures else torch.float32

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.empty((rows, columns), dtype=dtype, device=machine.device).normal_(0, _SPREAD)

    def ones() -> Tensor:
        return torch.ones(config.hidden_size, device=machine.device)

    heads, kv, dim = config.num_heads, config.num_kv_heads, config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size
    layers = tuple(
        LayerWeights(
            attention_norm=ones(),
            qkv=Linear(matrix((heads + 2 * kv) * dim, hidden)),
            out=Linear(matrix(hidden, heads * dim)),
            mlp_norm=ones(),
            mlp=DenseMlp(Linear(matrix(2 * inner, hidden)), Linear(matrix(hidden, inner))),
        )
        for _ in range(config.num_layers)
    )
    return DecoderWeights(matrix(config.vocab_size, hidden), layers, ones(), matrix(config.vocab_size, hidden))


def loaded(config: ModelConfig, weights: DecoderWeights) -> LoadedModel:
    """As a runtime takes it. Texts mean nothing; token ids are what counts."""
    return LoadedModel(config, Decoder(config, weights, TritonKernels()), ByteTokenizer(), "random", "random weights")


def weight_bytes(config: ModelConfig, weights: DecoderWeights) -> int:
    """What a decode step reads of the weights: all but the embedding, of which it reads a row a token."""
    tensors = [weights.final_norm, weights.head, *(t for layer in weights.layers for t in layer.tensors())]
    return sum(t.numel() * t.element_size() for t in tensors)


def greedy(request_id: str, prompt: Sequence[int], num_new: int) -> GenerateRequest:
    """A request for exactly `num_new` tokens."""
    params = SamplingParams(max_new_tokens=num_new, temperature=0.0, ignore_eos=True)
    return GenerateRequest(request_id, tuple(prompt), params)


def prompts(config: ModelConfig, num: int, length: int, *, shared: int = 0, seed: int = 0) -> list[tuple[int, ...]]:
    """Random tokens, the first `shared` of them the same in all."""
    rng = random.Random(seed)
    head = tuple(rng.randrange(config.vocab_size) for _ in range(shared))
    return [(*head, *(rng.randrange(config.vocab_size) for _ in range(length - shared))) for _ in range(num)]
