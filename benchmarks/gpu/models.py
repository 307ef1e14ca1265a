"""Random weights in the shapes of real models, on the device; and requests of random tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.gpu.machine import Machine
from palmette.kernels.gpu.step_kernels import TritonKernels
from palmette.kernels.rope import RopeSpec
from palmette.kernels.step_kernels import Activation, StepKernels
from palmette.runtime.byte_tokenizer import ByteTokenizer
from palmette.runtime.models.config import ExpertConfig, LayerConfig, ModelConfig
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.experts import ExpertMlp
from palmette.runtime.models.layers import DecoderWeights, DenseMlp, LayerWeights, Linear, Mlp
from palmette.runtime.models.loaded import LoadedModel
from palmette.types import GenerateRequest, SamplingParams

_SPREAD = 0.02  # standard deviation of weights, as models are initialised


def llama_8b(num_layers: int = 32) -> ModelConfig:
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
        layers=(LayerConfig(None, RopeSpec(dim=128, theta=5e5)),) * num_layers,
    )


def qwen3_30b(num_layers: int = 48) -> ModelConfig:
    """The shapes of Qwen3-30B-A3B: 3 of its 30 billion parameters a token."""
    return ModelConfig(
        family="qwen3_moe",
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_heads=32,
        num_kv_heads=4,
        head_dim=128,
        context_len=32768,
        norm_eps=1e-6,
        layers=(LayerConfig(None, RopeSpec(dim=128, theta=1e6), is_sparse=True),) * num_layers,
        qk_norm=True,
        experts=ExpertConfig(num_experts=128, top_k=8, intermediate_size=768, normalise=True),
    )


def tiny(config: ModelConfig | None = None) -> ModelConfig:
    """The same in a size that an interpreter computes."""
    config = config or llama_8b()
    experts = config.experts
    return replace(
        config,
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        context_len=512,
        layers=(LayerConfig(None, RopeSpec(dim=16, theta=1e4), config.layers[0].is_sparse),) * 2,
        experts=None if experts is None else ExpertConfig(8, 2, 32, normalise=experts.normalise),
    )


def random_weights(machine: Machine, config: ModelConfig, *, dtype: torch.dtype | None = None) -> DecoderWeights:
    """Weights in bfloat16, where nothing else is asked for; in float32 where nothing is measured."""
    dtype = dtype or (torch.bfloat16 if machine.measures else torch.float32)

    def matrix(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=machine.device).normal_(0, _SPREAD)

    def ones(size: int) -> Tensor:
        return torch.ones(size, device=machine.device)

    def mlp(layer: LayerConfig) -> Mlp:
        experts = config.experts
        if not layer.is_sparse or experts is None:
            inner = config.intermediate_size
            return DenseMlp(Linear(matrix(2 * inner, hidden)), Linear(matrix(hidden, inner)))
        num, inner = experts.num_experts, experts.intermediate_size
        router, gate_up, down = matrix(num, hidden), matrix(num, 2 * inner, hidden), matrix(num, hidden, inner)
        return ExpertMlp(router, gate_up, down, top_k=experts.top_k, normalise=experts.normalise)

    heads, kv, dim, hidden = config.num_heads, config.num_kv_heads, config.head_dim, config.hidden_size
    layers = tuple(
        LayerWeights(
            attention_norm=ones(hidden),
            qkv=Linear(matrix((heads + 2 * kv) * dim, hidden)),
            out=Linear(matrix(hidden, heads * dim)),
            mlp_norm=ones(hidden),
            mlp=mlp(layer),
            q_norm=ones(dim) if config.qk_norm else None,
            k_norm=ones(dim) if config.qk_norm else None,
        )
        for layer in config.layers
    )
    return DecoderWeights(matrix(config.vocab_size, hidden), layers, ones(hidden), matrix(config.vocab_size, hidden))


def loaded(config: ModelConfig, weights: DecoderWeights, kernels: StepKernels | None = None) -> LoadedModel:
    """As a runtime takes it. Texts mean nothing; token ids are what counts."""
    decoder = Decoder(config, weights, kernels or TritonKernels())
    return LoadedModel(config, decoder, ByteTokenizer(), "random", "random weights")


class CountingKernels(TritonKernels):
    """Triton's, and how many experts are taken."""

    def __init__(self) -> None:
        self._hit: list[int] | None = None

    @contextmanager
    def counting(self) -> Iterator[list[int]]:
        """A number for each call of `experts`, which waits for the device meanwhile."""
        found: list[int] = []
        self._hit = found
        try:
            yield found
        finally:
            self._hit = None

    def experts(
        self,
        x: Tensor,
        router: Tensor,
        gate_up: Tensor,
        down: Tensor,
        *,
        top_k: int,
        normalise: bool,
        activation: Activation = "silu",
    ) -> Tensor:
        if self._hit is not None:
            self._hit.append(len(set((x @ router.T).topk(top_k).indices.flatten().tolist())))
        return TritonKernels.experts(x, router, gate_up, down, top_k=top_k, normalise=normalise, activation=activation)


def weight_bytes(weights: DecoderWeights, hit: Sequence[int] = ()) -> int:
    """What a decode step reads of the weights: all but the embedding, of which it reads a row a token.

    Args:
        hit: how many experts each layer takes, where layers have experts: others are not read.
    """
    found = _bytes([weights.final_norm, weights.head])
    for i, layer in enumerate(weights.layers):
        found += _bytes(layer.tensors())
        if isinstance(layer.mlp, ExpertMlp):
            num = layer.mlp.gate_up.shape[0]
            found -= _bytes([layer.mlp.gate_up, layer.mlp.down]) * (num - hit[i]) // num
    return found


def _bytes(tensors: Sequence[Tensor]) -> int:
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
