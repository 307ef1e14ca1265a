"""Rotary embedding: rotation, relative positions, and the scaled variants against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from palmette.kernels.rope import RopeSpec, apply_rope, rope_cos_sin, rope_frequencies, yarn_attention_factor


def rotate(x: torch.Tensor, spec: RopeSpec, positions: list[int]) -> torch.Tensor:
    return apply_rope(x, *rope_cos_sin(rope_frequencies(spec), torch.tensor(positions), spec.attention_factor))


def test_apply_rope_turns_each_pair_by_position_times_frequency() -> None:
    x = torch.randn(3, 2, 8)
    out = rotate(x, RopeSpec(dim=8, theta=100.0), [0, 5, 11])
    for t, position in enumerate([0, 5, 11]):
        for i in range(4):
            pair = torch.view_as_complex(torch.stack([x[t, :, i], x[t, :, i + 4]], -1))
            turned = pair * torch.exp(torch.tensor(1j * position * 100.0 ** (-2 * i / 8)))
            torch.testing.assert_close(out[t, :, i], turned.real, rtol=0, atol=1e-5)
            torch.testing.assert_close(out[t, :, i + 4], turned.imag, rtol=0, atol=1e-5)


def test_scores_depend_on_the_distance_of_positions_alone() -> None:
    q, k = torch.randn(1, 1, 16), torch.randn(1, 1, 16)
    spec = RopeSpec(dim=16)
    scores = [(rotate(q, spec, [p]) * rotate(k, spec, [p - 7])).sum() for p in (7, 20, 63)]
    torch.testing.assert_close(scores, [scores[0]] * 3, rtol=0, atol=1e-5)


def test_dimensions_behind_the_rotated_ones_stay() -> None:
    x = torch.randn(2, 3, 16)
    out = rotate(x, RopeSpec(dim=8), [3, 4])
    assert torch.equal(out[..., 8:], x[..., 8:])
    assert not torch.equal(out[..., :8], x[..., :8])


VARIANTS: dict[str, tuple[RopeSpec, dict[str, Any]]] = {
    "default": (RopeSpec(dim=64, theta=5e5), {"rope_type": "default"}),
    "linear": (RopeSpec(dim=64, theta=5e5, kind="linear", factor=8.0), {"rope_type": "linear", "factor": 8.0}),
    "llama3": (
        RopeSpec(dim=64, theta=5e5, kind="llama3", factor=32.0, original_context_len=8192),
        {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "yarn": (
        RopeSpec(dim=64, theta=5e5, kind="yarn", factor=4.0, original_context_len=32768),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    ),
}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_scaled_frequencies_are_those_of_transformers(name: str) -> None:
    spec, parameters = VARIANTS[name]
    config = transformers.LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters={**parameters, "rope_theta": 5e5},
    )
    if name == "default":
        wanted, amplitude = 5e5 ** -(torch.arange(0, 64, 2) / 64), 1.0
    else:
        wanted, amplitude = ROPE_INIT_FUNCTIONS[name](config, "cpu")
    torch.testing.assert_close(rope_frequencies(spec), wanted, rtol=1e-6, atol=0)
    assert amplitude == pytest.approx(yarn_attention_factor(4.0) if name == "yarn" else 1.0)


def test_stored_divisors_replace_the_scaling() -> None:
    spec = RopeSpec(dim=4, theta=100.0, kind="llama3", freq_divisors=(1.0, 8.0))
    torch.testing.assert_close(rope_frequencies(spec), torch.tensor([1.0, 0.1 / 8]))
