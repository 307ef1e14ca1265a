"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864, section 3.4.2), in the half-split layout.

    out[:d/2] = x[:d/2] cos(p f) - x[d/2:] sin(p f)
    out[d/2:] = x[d/2:] cos(p f) + x[:d/2] sin(p f)          f_i = theta^(-2i/d), p = position

Reference: `apply_rotary_pos_emb` of transformers. Checkpoints that pair neighbours (GGUF's llama) are re-ordered by
their loader. Scaled variants change f (and for YaRN the amplitude) and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ScalingKind = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """What fixes the rotation angles of a layer."""

    dim: int  # how many leading dimensions of a head rotate; even
    theta: float = 10000.0
    kind: ScalingKind = "default"
    factor: float = 1.0  # context extension
    original_context_len: int = 0  # what the model was pretrained on; llama3 and yarn
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float = 1.0  # amplitude of cos and sin; yarn
    freq_divisors: tuple[float, ...] = ()  # (dim / 2,) as GGUF stores llama3's scaling; replaces `kind`


def rope_frequencies(spec: RopeSpec) -> Tensor:
    """(dim / 2,) float32: radians per position of each pair, after scaling."""
    exponents = torch.arange(0, spec.dim, 2, dtype=torch.float32) / spec.dim
    freqs = 1.0 / (spec.theta**exponents)
    if spec.freq_divisors:
        return freqs / torch.tensor(spec.freq_divisors, dtype=torch.float32)
    if spec.kind == "linear":
        return freqs / spec.factor
    if spec.kind == "llama3":
        return _llama3(freqs, spec)
    if spec.kind == "yarn":
        return _yarn(freqs, spec)
    return freqs


def rope_cos_sin(frequencies: Tensor, positions: Tensor, attention_factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """cos and sin of every token's angles. Computed per step: a table of all positions would grow with the context.

    Args:
        frequencies: (dim / 2,) float32.
        positions: (num_tokens,) integers.

    Returns:
        Two of (num_tokens, 1, dim / 2) float32, as apply_rope takes them.
    """
    angles = torch.outer(positions.float(), frequencies).unsqueeze(1)
    cos, sin = angles.cos(), angles.sin()
    return (cos, sin) if attention_factor == 1.0 else (cos.mul_(attention_factor), sin.mul_(attention_factor))


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading 2 * cos.shape[-1] dimensions of every head.

    Args:
        x: (num_tokens, num_heads, head_dim).
        cos, sin: (num_tokens, 1, dim / 2) float32, from rope_cos_sin.

    Returns:
        A new contiguous tensor like x.
    """
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out[..., :half] = torch.addcmul(first * cos, second, sin, value=-1)
    out[..., half : 2 * half] = torch.addcmul(second * cos, first, sin)
    if rest.shape[-1]:
        out[..., 2 * half :] = rest
    return out


def _llama3(freqs: Tensor, spec: RopeSpec) -> Tensor:
    """Long waves are stretched by `factor`, short ones kept, those between interpolated.

    Reference: `_compute_llama3_parameters` of transformers (Llama 3.1 model card).
    """
    wavelengths = 2 * math.pi / freqs
    ratio = spec.original_context_len / wavelengths
    smooth = ((ratio - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)).clamp(0.0, 1.0)
    return (1 - smooth) * freqs / spec.factor + smooth * freqs


def _yarn(freqs: Tensor, spec: RopeSpec) -> Tensor:
    """NTK-by-parts (Peng et al. 2023, arXiv 2309.00071, section 3.2): pairs that turn often keep their frequency."""

    def pair_turning(turns: float) -> float:
        turn = math.log(spec.original_context_len / (turns * 2 * math.pi))
        return spec.dim * turn / (2 * math.log(spec.theta))

    low = max(math.floor(pair_turning(spec.beta_fast)), 0)
    high = min(math.ceil(pair_turning(spec.beta_slow)), spec.dim - 1)
    ramp = (torch.arange(spec.dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    stretched = ramp.clamp(0.0, 1.0)
    return stretched * freqs / spec.factor + (1 - stretched) * freqs


def yarn_attention_factor(factor: float) -> float:
    """The amplitude YaRN recommends (same paper, eq. 22): 0.1 ln(factor) + 1."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0
