"""A short name for "the same model": what run records and cache namespaces compare.

SHA-256 over the config's fields, then for every tensor its shape, dtype and up to SAMPLES elements taken at equal
distances. Reading every byte of a large model would cost as much as loading it. Fine-tuning moves all of a matrix, so
samples tell two checkpoints apart; somebody who edits single weights can fool it, and it protects against nobody.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.layers import DecoderWeights

SAMPLES = 64


def model_digest(config: ModelConfig, weights: DecoderWeights) -> str:
    """32 hexadecimal digits."""
    digest = hashlib.sha256(repr(config).encode())
    for tensor in weights.tensors():
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_sample(tensor).numpy().tobytes())
    return digest.hexdigest()[:32]


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    count = min(SAMPLES, flat.shape[0])
    at = torch.arange(count, dtype=torch.int64) * (flat.shape[0] // max(count, 1))
    return flat[at.to(flat.device)].to("cpu", torch.float32)
