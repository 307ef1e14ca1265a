"""Small random models of every family: real architecture, real numerics, no files, ready in milliseconds.

The same arguments give the same weights on any machine. They speak bytes (see `ByteTokenizer`) and mean nothing, which
is enough for whatever does not depend on what a model knows.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from palmette.errors import InvalidOption, UnsupportedArchitecture
from palmette.kernels.cpu.library import choose_instruction_set, library
from palmette.kernels.rope import RopeSpec
from palmette.kernels.step_kernels import StepKernels
from palmette.runtime.byte_tokenizer import ByteTokenizer
from palmette.runtime.models.compiled import Precision, compile_weights, why_not_compiled
from palmette.runtime.models.config import ALL_FAMILIES, ExpertConfig, LayerConfig, ModelConfig
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.digest import model_digest
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.models.weights import StoredBlocks, assemble


def tiny_config(family: str = "llama", *, vocab_size: int = 260, context_len: int = 2048) -> ModelConfig:
    """2 layers, hidden 32, 4 heads over 2 KV heads, with what the family is known for.

    Raises:
        UnsupportedArchitecture: no such family.
    """
    rope = RopeSpec(dim=16, theta=10000.0)
    base = ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        context_len=context_len,
        norm_eps=1e-5,
        layers=(LayerConfig(None, rope),) * 2,
    )
    if family == "llama":
        return base
    if family == "mistral":
        return replace(base, family="mistral", layers=(LayerConfig(96, rope),) * 2)
    if family == "qwen2":
        return replace(base, family="qwen2", qkv_bias=True)
    if family == "qwen3":
        return replace(base, family="qwen3", qk_norm=True)
    if family == "mixtral":
        experts = ExpertConfig(num_experts=4, top_k=2, intermediate_size=64, normalise=True)
        return replace(base, family="mixtral", layers=(LayerConfig(None, rope, is_sparse=True),) * 2, experts=experts)
    if family == "qwen3_moe":
        experts = ExpertConfig(num_experts=8, top_k=3, intermediate_size=32, normalise=True)
        layers = (LayerConfig(None, rope), LayerConfig(None, rope, is_sparse=True))
        return replace(base, family="qwen3_moe", qk_norm=True, layers=layers, experts=experts)
    gemma = replace(base, activation="gelu_tanh", sandwich_norms=True, embedding_scale=32**0.5, tie_embeddings=True)
    if family == "gemma2":
        layers = (LayerConfig(96, rope), LayerConfig(None, rope))
        return replace(gemma, family="gemma2", layers=layers, attention_soft_cap=50.0, logit_soft_cap=30.0)
    if family == "gemma3":
        layers = (LayerConfig(96, rope), LayerConfig(None, RopeSpec(dim=16, theta=1e6, kind="linear", factor=8.0)))
        return replace(gemma, family="gemma3", layers=layers, qk_norm=True)
    raise UnsupportedArchitecture(family, list(ALL_FAMILIES))


def tiny_model(
    seed: int = 0,
    family: str = "llama",
    *,
    extra_tokens: Sequence[bytes] = (),
    adds_bos: bool = False,
    context_len: int = 2048,
    cpu_kernels: str = "torch",
    dtype: Precision = "float32",
    device: torch.device | str = "cpu",
    kernels: StepKernels | None = None,
) -> LoadedModel:
    """A random model of `family` with a byte tokenizer.

    Args:
        seed: another seed, another model.
        extra_tokens: further tokens of several bytes each.
        adds_bos: plain-text streams begin with <|bos|>.
        context_len: in tokens.
        cpu_kernels: "torch"; or the compiled core: one of its instruction sets, or "auto", its best one.
        dtype: of the compiled core's weights: "float32", or "int8" for 8-bit blocks.
        device: where torch's tensors are.
        kernels: who computes on them; torch when None.

    Raises:
        NotBuilt: the compiled core is wanted and not there.
        InvalidOption: the instruction set does not run here, or the core does not compute this family.
    """
    tokenizer = ByteTokenizer(extra_tokens=extra_tokens, adds_bos=adds_bos)
    config = tiny_config(family, vocab_size=tokenizer.vocab_size, context_len=context_len)
    source, name = RandomSource(seed), f"tiny-{family}-{seed}"
    if cpu_kernels != "torch":
        instruction_set, reason = choose_instruction_set(cpu_kernels), why_not_compiled(config)
        if reason is not None:
            raise InvalidOption("cpu_kernels", cpu_kernels, f"torch, as the compiled core cannot be used: {reason}")
        compiled = compile_weights(config, source, library=library(), instruction_set=instruction_set, precision=dtype)
        return LoadedModel(config, compiled, tokenizer, compiled.digest, name)
    weights = assemble(config, source, dtype=torch.float32, device=device)
    return LoadedModel(config, Decoder(config, weights, kernels), tokenizer, model_digest(config, weights), name)


class RandomSource:
    """Normal weights, scaled so that logits spread over several units and no two tokens tie. Each tensor's numbers
    follow from the seed and its name, in whatever order tensors are read."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        pass  # whatever is asked for is there

    def blocks(self, name: str) -> StoredBlocks | None:
        return None  # random weights are floats

    def read_into(self, name: str, out: Tensor) -> None:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode(), self._seed & 0xFFFFFFFF))
        values = torch.randn(out.shape, generator=generator)
        if name.endswith("norm"):
            out.copy_(1.0 + 0.1 * values)
        elif name == "embedding":
            out.copy_(values)
        elif name == "head":
            out.copy_(values * (3.0 * out.shape[-1] ** -0.5))
        else:
            out.copy_(values * out.shape[-1] ** -0.5)
